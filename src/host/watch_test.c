/* Defends: Lua code that does not come back is stopped, its callers and those who wait for it get an error that says where it is. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <lauxlib.h>
#include <lualib.h>

#include <perigee/lua.h>
#include <perigee/perigee.h>

#include "base/clock.h"

/* What the sanitizers delay, they deliver at calls of functions they know, such as malloc: the loops below make tables. */
#define SPIN "local x = {} "
/* A stop is due within 250 ms of the deadline. The bound leaves room for a loaded machine. */
#define SOON (10 * PERIGEE_NS_PER_SEC)
#define MS PERIGEE_NS_PER_MS

static perigee_interp *interp;

static int setup(void **state) {
  (void)state;
  return perigee_interp_create(NULL, &interp);
}

static int teardown(void **state) {
  (void)state;
  perigee_interp_destroy(&interp);
  return 0;
}

static void check(int rc) {
  if (rc < 0)
    print_message("%s: %s\n%s\n", perigee_err_name(rc), perigee_last_error()->message,
                  perigee_last_error()->traceback);
  assert_int_equal(rc, 0);
}

static void expect_text(const char *text, const char *part) {
  if (strstr(text, part) == NULL)
    print_message("'%s' is not in '%s'\n", part, text);
  assert_non_null(strstr(text, part));
}

static perigee_group *open_group(perigee_interp *in, const char *name, const char *text) {
  check(perigee_interp_load_backend_string(in, text, name));
  perigee_init_options opts;
  perigee_init_options_init(&opts);
  opts.backend = name;
  opts.rank = 0;
  opts.nranks = 1;
  perigee_group *group;
  check(perigee_init(&opts, &group));
  return group;
}

static void close_group(perigee_group *group) {
  check(perigee_group_close(group));
  perigee_group_unref(group);
}

static int barrier_within(perigee_group *group, int64_t timeout_ns) {
  perigee_request req;
  perigee_request_init(&req, PERIGEE_OP_BARRIER);
  req.timeout_ns = timeout_ns;
  return perigee_group_run(group, &req);
}

/* ---- who does not come back is stopped ------------------------------------------------------------- */

/* Bodies of an override that never returns by itself. */
static const char *const endless[] = {
    "while true do " SPIN " end",
    "while true do pcall(function() while true do " SPIN " end end) end",
    "while true do xpcall(function() while true do " SPIN " end end, function() " SPIN
    " return 1 end) end",
    "while true do pcall(error, 'x') " SPIN " end",
    "local co = coroutine.wrap(function() while true do " SPIN " end end) co()",
    "local co = coroutine.create(function() coroutine.yield() while true do pcall(function() " SPIN
    " end) end end) coroutine.resume(co) while true do coroutine.resume(co) " SPIN " end",
    "local a <close> = setmetatable({}, {__close = function() while true do " SPIN " end end})",
    "local t = setmetatable({}, {__index = function() while true do " SPIN
    " end end}) local _ = t.x",
    "table.sort({1, 2, 3}, function() while true do " SPIN " end end)",
    "while true do pcall(function() self.inner:barrier():wait() end) end",
};

static void stop_all(perigee_interp *in, int64_t timeout_ns, const char *why) {
  for (size_t i = 0; i < sizeof(endless) / sizeof(endless[0]); i++) {
    char text[600];
    snprintf(text, sizeof(text),
             "local B = {} function B:barrier()\n%s\nreturn true end\n"
             "function B:allreduce() return true end return B",
             endless[i]);
    perigee_group *group = open_group(in, "endless", text);
    int64_t started = perigee__now_ns();
    assert_int_equal(barrier_within(group, timeout_ns), PERIGEE_ETIMEDOUT);
    assert_true(perigee__now_ns() - started < SOON);
    const perigee_error *error = perigee_last_error();
    expect_text(error->message, "barrier of backend 'endless', endless:1");
    expect_text(error->message, why);
    expect_text(error->message, "was stopped at endless:2");
    assert_int_equal(error->op, PERIGEE_OP_BARRIER);
    assert_string_equal(error->group, "world");
    /* Nothing of it is left: the interpreter and the group go on. */
    check(perigee_interp_run_string(in,
                                    "local n = 0 for i = 1, 1e5 do n = n + 1 end assert(n == 1e5)\n"
                                    "assert(coroutine.wrap(function() return 7 end)() == 7)",
                                    NULL));
    float value = 1;
    const int64_t shape[] = {1};
    perigee_tensor *t;
    check(perigee_tensor_wrap(PERIGEE_F32, 1, shape, &value, NULL, NULL, &t));
    check(perigee_allreduce(group, t, PERIGEE_REDOP_SUM));
    perigee_tensor_unref(t);
    close_group(group);
  }
}

static void the_time_limit_stops_it(void **state) {
  (void)state;
  check(perigee_interp_set_time_limit(interp, 50 * MS));
  stop_all(interp, PERIGEE_TIMEOUT_DEFAULT, "longer than its time limit of 0.05 s");
}

static void the_deadline_of_its_operation_stops_it(void **state) {
  (void)state;
  stop_all(interp, 50 * MS, "beyond the operation's deadline");
}

static void the_limit_is_an_option_too(void **state) {
  (void)state;
  perigee_interp_options opts;
  perigee_interp_options_init(&opts);
  opts.time_limit_ns = 50 * MS;
  perigee_interp *other;
  check(perigee_interp_create(&opts, &other));
  perigee_group *group =
      open_group(other, "optional",
                 "local B = {} function B:barrier() while true do " SPIN " end end return B");
  assert_int_equal(perigee_barrier(group), PERIGEE_ETIMEDOUT);
  close_group(group);
  perigee_interp_destroy(&other);
}

static void a_borrowed_state_is_limited_too(void **state) {
  (void)state;
  lua_State *L = luaL_newstate();
  luaL_openlibs(L);
  perigee_interp *other;
  check(perigee_interp_borrow(L, &other));
  luaL_requiref(L, "perigee.core", luaopen_perigee_core, 0);
  lua_settop(L, 0);
  check(perigee_interp_set_time_limit(other, 50 * MS));
  perigee_interp_leave(other);
  stop_all(other, PERIGEE_TIMEOUT_DEFAULT, "longer than its time limit of 0.05 s");
  assert_ptr_equal(perigee_interp_enter(other), L);
  lua_close(L);
  perigee_interp_destroy(&other);
}

/* Waiting is not running, and what cleans up gets the time for it. */
static void waits_do_not_count(void **state) {
  (void)state;
  check(perigee_interp_set_time_limit(interp, 200 * MS));
  perigee_group *group =
      open_group(interp, "sleeper",
                 "local p = require 'perigee.core'\n"
                 "local B = {} function B:barrier() p.sleep(0.5) return true end return B");
  check(perigee_barrier(group));
  close_group(group);
  group =
      open_group(interp, "tidy",
                 "local B = {} function B:barrier()\n"
                 "  local f <close> = setmetatable({}, {__close = function() tidied = true end})\n"
                 "  local ok, e = pcall(function() while true do " SPIN " end end)\n"
                 "  caught = e.code\n"
                 "  error(e)\n"
                 "end return B");
  assert_int_equal(perigee_barrier(group), PERIGEE_ETIMEDOUT);
  check(
      perigee_interp_run_string(interp, "assert(tidied and caught == 'ETIMEDOUT', caught)", NULL));
  close_group(group);
}

/* A hook that the script has set is there again afterwards. */
static void a_hook_of_the_script_comes_back(void **state) {
  (void)state;
  perigee_group *group =
      open_group(interp, "hooked",
                 "local B = {} function B:barrier()\n"
                 "  lines = 0 debug.sethook(function() lines = lines + 1 end, 'l')\n"
                 "  if endless then while true do " SPIN " end end\n"
                 "  return true\n"
                 "end return B");
  check(perigee_interp_run_string(interp, "endless = true", NULL));
  assert_int_equal(barrier_within(group, 50 * MS), PERIGEE_ETIMEDOUT);
  check(perigee_interp_run_string(interp,
                                  "local before = lines\nlocal x = 1\nx = 2\n"
                                  "assert(lines > before, lines) debug.sethook()",
                                  NULL));
  close_group(group);
}

static void callbacks_are_limited(void **state) {
  (void)state;
  check(perigee_interp_set_time_limit(interp, 50 * MS));
  perigee_group *group =
      open_group(interp, "callback",
                 "local B = {} function B:barrier(o)\n"
                 "  return self.inner:barrier(o):map(function() while true do " SPIN " end end)\n"
                 "end return B");
  assert_int_equal(perigee_barrier(group), PERIGEE_ETIMEDOUT);
  expect_text(perigee_last_error()->message, "time limit of 0.05 s");
  close_group(group);
}

/* ---- who waits for it ------------------------------------------------------------------------------ */

static _Atomic int entered;
static _Atomic bool leave_c;
static pthread_mutex_t host_lock = PTHREAD_MUTEX_INITIALIZER;

static int l_entered(lua_State *L) {
  (void)L;
  atomic_fetch_add(&entered, 1);
  return 0;
}

/* A host's function that blocks in C. */
static int l_block(lua_State *L) {
  (void)L;
  atomic_fetch_add(&entered, 1);
  while (!atomic_load(&leave_c))
    perigee__sleep_ns(MS);
  return 0;
}

static int l_done(lua_State *L) {
  lua_pushboolean(L, atomic_load(&leave_c));
  return 1;
}

/* A host's function that takes the host's own lock. */
static int l_host(lua_State *L) {
  (void)L;
  atomic_fetch_add(&entered, 1);
  /* pthread_mutex_lock in small steps: ThreadSanitizer holds signals back inside of it */
  while (pthread_mutex_trylock(&host_lock) != 0)
    perigee__sleep_ns(MS);
  pthread_mutex_unlock(&host_lock);
  return 0;
}

static void give_functions(void) {
  atomic_store(&entered, 0);
  atomic_store(&leave_c, false);
  lua_State *L = perigee_interp_enter(interp);
  assert_non_null(L);
  lua_register(L, "entered", l_entered);
  lua_register(L, "block", l_block);
  lua_register(L, "host", l_host);
  lua_register(L, "done", l_done);
  perigee_interp_leave(interp);
}

static void *run_barrier(void *arg) { return (void *)(intptr_t)perigee_barrier(arg); }

static void wait_entered(int n) {
  while (atomic_load(&entered) < n)
    perigee__sleep_ns(MS);
}

/* Eight threads want in while one sits in a C function that nothing can stop. */
static void *wait_short(void *arg) {
  int64_t started = perigee__now_ns();
  int rc = barrier_within(arg, 100 * MS);
  if (rc != PERIGEE_ETIMEDOUT || perigee__now_ns() - started > SOON)
    return (void *)1;
  const char *said = perigee_last_error()->message;
  return strstr(said, "waiting for the Lua interpreter") != NULL &&
                 strstr(said, "barrier of backend 'stuck', stuck:2") != NULL
             ? NULL
             : (void *)2;
}

/* A holder that does not get a core for a while answers too late for one report: the next one has it. */
static void expect_report(int (*ask)(void *), void *arg, const char *part) {
  int64_t until = perigee__now_ns() + SOON;
  do {
    assert_int_equal(ask(arg), PERIGEE_ETIMEDOUT);
  } while (strstr(perigee_last_error()->message, part) == NULL && perigee__now_ns() < until);
  expect_text(perigee_last_error()->message, part);
}

static int ask_by_barrier(void *group) { return barrier_within(group, 50 * MS); }

static int ask_by_enter(void *unused) {
  (void)unused;
  return perigee_interp_enter(interp) == NULL ? perigee_last_error()->code : 0;
}

static void waiters_give_up_at_their_deadline(void **state) {
  (void)state;
  give_functions();
  perigee_group *group = open_group(interp, "stuck",
                                    "local B = {}\n"
                                    "function B:barrier()\n"
                                    "  block()\n"
                                    "  return true\n"
                                    "end\n"
                                    "return B");
  pthread_t holder, waiters[8];
  pthread_create(&holder, NULL, run_barrier, group);
  wait_entered(1);
  for (int i = 0; i < 8; i++)
    pthread_create(&waiters[i], NULL, wait_short, group);
  void *rc;
  for (int i = 0; i < 8; i++) {
    pthread_join(waiters[i], &rc);
    assert_int_equal((intptr_t)rc, 0);
  }
  /* One alone is also told the line: the holder is asked for it where it is. */
  expect_report(ask_by_barrier, group, "stuck:2; at stuck:3)");
  /* So are those who come in from C. */
  perigee_interp_set_enter_timeout(interp, 50 * MS);
  expect_report(ask_by_enter, NULL, "at stuck:3)");
  assert_int_equal(perigee_interp_run_string(interp, "x = 1", NULL), PERIGEE_ETIMEDOUT);
  perigee_interp_set_enter_timeout(interp, PERIGEE_TIMEOUT_DEFAULT);
  atomic_store(&leave_c, true);
  pthread_join(holder, &rc);
  assert_int_equal((intptr_t)rc, 0);
  check(perigee_barrier(group));
  close_group(group);
}

/* The same for a holder that runs Lua, which goes on afterwards: asking does not stop it. */
static void a_holder_that_runs_is_asked_where(void **state) {
  (void)state;
  give_functions();
  perigee_group *group = open_group(interp, "busy",
                                    "local B = {}\n"
                                    "local function work()\n"
                                    "  while not done() do " SPIN " end\n"
                                    "end\n"
                                    "function B:barrier()\n"
                                    "  entered()\n"
                                    "  work()\n"
                                    "  return true\n"
                                    "end\n"
                                    "return B");
  pthread_t holder;
  pthread_create(&holder, NULL, run_barrier, group);
  wait_entered(1);
  expect_report(ask_by_barrier, group, "called from busy:7");
  expect_text(perigee_last_error()->message, "barrier of backend 'busy', busy:5; at ");
  atomic_store(&leave_c, true);
  void *rc;
  pthread_join(holder, &rc);
  assert_int_equal((intptr_t)rc, 0);
  close_group(group);
}

/*
 * Lock-order inversion: this thread has the host's lock and wants the interpreter; the other has the interpreter and wants the
 * host's lock. The call here ends at its deadline and says what the other does; with the lock given up, both go on.
 */
static void inversion_ends_with_a_report(void **state) {
  (void)state;
  give_functions();
  perigee_group *group = open_group(interp, "inverted",
                                    "local B = {}\n"
                                    "function B:barrier()\n"
                                    "  host()\n"
                                    "  return true\n"
                                    "end\n"
                                    "return B");
  pthread_mutex_lock(&host_lock);
  pthread_t other;
  pthread_create(&other, NULL, run_barrier, group);
  wait_entered(1);
  int64_t started = perigee__now_ns();
  int rc = barrier_within(group, 200 * MS);
  assert_int_equal(rc, PERIGEE_ETIMEDOUT);
  assert_true(perigee__now_ns() - started < SOON);
  expect_report(ask_by_barrier, group, "barrier of backend 'inverted', inverted:2; at inverted:3");
  pthread_mutex_unlock(&host_lock);
  void *theirs;
  pthread_join(other, &theirs);
  assert_int_equal((intptr_t)theirs, 0);
  check(perigee_barrier(group));
  close_group(group);
}

/* ---- the end --------------------------------------------------------------------------------------- */

static void destroy_stops_what_runs(void **state) {
  (void)state;
  give_functions();
  perigee_group *group = open_group(
      interp, "late",
      "local B = {} function B:barrier() entered() while true do " SPIN " end end return B");
  pthread_t holder;
  pthread_create(&holder, NULL, run_barrier, group);
  wait_entered(1);
  int64_t started = perigee__now_ns();
  perigee_interp_destroy(&interp);
  assert_true(perigee__now_ns() - started < SOON);
  void *rc;
  pthread_join(holder, &rc);
  assert_int_equal((intptr_t)rc, PERIGEE_ETIMEDOUT);
  assert_int_equal(perigee_barrier(group), PERIGEE_ELUASTATE);
  close_group(group);
}

int main(void) {
#define TEST(_name) cmocka_unit_test_setup_teardown(_name, setup, teardown)
  const struct CMUnitTest tests[] = {
      TEST(the_time_limit_stops_it),
      TEST(the_deadline_of_its_operation_stops_it),
      TEST(the_limit_is_an_option_too),
      TEST(a_borrowed_state_is_limited_too),
      TEST(waits_do_not_count),
      TEST(a_hook_of_the_script_comes_back),
      TEST(callbacks_are_limited),
      TEST(waiters_give_up_at_their_deadline),
      TEST(a_holder_that_runs_is_asked_where),
      TEST(inversion_ends_with_a_report),
      TEST(destroy_stops_what_runs),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
