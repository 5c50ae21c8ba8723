/* Interpreters: who may be inside, what they refuse, and how they end. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <lauxlib.h>
#include <lualib.h>

#include <perigee/lua.h>

#include "base/clock.h"

static perigee_interp *make(void) {
  perigee_interp *interp;
  assert_int_equal(perigee_interp_create(NULL, &interp), 0);
  return interp;
}

static perigee_interp_stats stats_of(perigee_interp *interp) {
  perigee_interp_stats stats;
  perigee_interp_stats_get(interp, &stats);
  return stats;
}

/* ---- turns --------------------------------------------------------------------------------------- */

static void enter_nests(void **state) {
  (void)state;
  perigee_interp *interp = make();
  lua_State *outer = perigee_interp_enter(interp);
  assert_non_null(outer);
  lua_State *inner = perigee_interp_enter(interp);
  assert_ptr_equal(outer, inner);
  assert_int_equal(perigee_interp_run_string(interp, "x = 1", NULL), 0);
  perigee_interp_leave(interp);
  perigee_interp_leave(interp);
  perigee_interp_destroy(&interp);
  assert_null(interp);
  perigee_interp_destroy(&interp);
}

typedef struct visit {
  perigee_interp *interp;
  lua_State *L;
} visit;

static void *visit_once(void *arg) {
  visit *v = arg;
  v->L = perigee_interp_enter(v->interp);
  if (v->L != NULL)
    perigee_interp_leave(v->interp);
  return NULL;
}

static void each_thread_has_its_own_lua_thread(void **state) {
  (void)state;
  perigee_interp *interp = make();
  visit mine = {interp, NULL}, other = {interp, NULL}, later = {interp, NULL};
  visit_once(&mine);
  pthread_t thread;
  pthread_create(&thread, NULL, visit_once, &other);
  pthread_join(thread, NULL);
  assert_non_null(other.L);
  assert_ptr_not_equal(mine.L, other.L);
  /* The Lua thread of an OS thread that has ended is used again. */
  int64_t threads = stats_of(interp).threads;
  pthread_create(&thread, NULL, visit_once, &later);
  pthread_join(thread, NULL);
  assert_ptr_equal(later.L, other.L);
  assert_int_equal(stats_of(interp).threads, threads);
  perigee_interp_destroy(&interp);
}

enum {
  COUNTERS = 8,
  COUNTS = 20000
};

static void *count_in_lua(void *arg) {
  perigee_interp *interp = arg;
  for (int i = 0; i < COUNTS; i++) {
    lua_State *L = perigee_interp_enter(interp);
    if (L == NULL)
      return (void *)1;
    lua_getglobal(L, "n");
    lua_pushinteger(L, lua_tointeger(L, -1) + 1);
    lua_setglobal(L, "n");
    lua_pop(L, 1);
    perigee_interp_leave(interp);
  }
  return NULL;
}

static void threads_take_turns(void **state) {
  (void)state;
  perigee_interp *interp = make();
  assert_int_equal(perigee_interp_run_string(interp, "n = 0", NULL), 0);
  pthread_t threads[COUNTERS];
  for (int i = 0; i < COUNTERS; i++)
    pthread_create(&threads[i], NULL, count_in_lua, interp);
  for (int i = 0; i < COUNTERS; i++) {
    void *failed;
    pthread_join(threads[i], &failed);
    assert_null(failed);
  }
  char check[64];
  snprintf(check, sizeof(check), "assert(n == %d)", COUNTERS * COUNTS);
  assert_int_equal(perigee_interp_run_string(interp, check, NULL), 0);
  perigee_interp_destroy(&interp);
}

/* ---- errors -------------------------------------------------------------------------------------- */

static void errors_carry_message_and_traceback(void **state) {
  (void)state;
  perigee_interp *interp = make();
  assert_int_equal(
      perigee_interp_run_string(interp, "local function f() error('boom') end\nf()", "chunk"),
      PERIGEE_ELUA);
  const perigee_error *error = perigee_last_error();
  assert_string_equal(error->message, "chunk:1: boom");
  assert_non_null(strstr(error->traceback, "chunk:1: in "));
  assert_non_null(strstr(error->traceback, "chunk:2: in main chunk"));
  assert_int_equal(perigee_interp_run_string(interp, "x x", "chunk"), PERIGEE_ELUA);
  assert_non_null(strstr(perigee_last_error()->message, "syntax error"));
  /* An error object of ours keeps its code and fields. */
  assert_int_equal(perigee_interp_run_string(interp,
                                             "local p = require 'perigee.core'\n"
                                             "error(p.error('ERANGE', 'too far', {rank = 3}))",
                                             NULL),
                   PERIGEE_ERANGE);
  assert_string_equal(perigee_last_error()->message, "too far");
  assert_int_equal(perigee_last_error()->rank, 3);
  /* Values that are no strings, and one whose text cannot be made. */
  assert_int_equal(perigee_interp_run_string(interp, "error({})", NULL), PERIGEE_ELUA);
  assert_non_null(strstr(perigee_last_error()->message, "table: "));
  assert_int_equal(
      perigee_interp_run_string(
          interp, "error(setmetatable({}, {__tostring = function() error('again') end}))", NULL),
      PERIGEE_ELUA);
  assert_true(strlen(perigee_last_error()->message) > 0);
  assert_int_equal(perigee_interp_run_file(interp, "/no/such/file.lua"), PERIGEE_ENOENT);
  assert_non_null(strstr(perigee_last_error()->message, "/no/such/file.lua"));
  perigee_interp_destroy(&interp);
}

static void memory_is_capped(void **state) {
  (void)state;
  perigee_interp_options opts;
  perigee_interp_options_init(&opts);
  opts.memory_limit = (size_t)4 << 20;
  perigee_interp *interp;
  assert_int_equal(perigee_interp_create(&opts, &interp), 0);
  int rc = perigee_interp_run_string(interp, "local t = {} for i = 1, 1e9 do t[i] = {} end", NULL);
  assert_int_equal(rc, PERIGEE_ENOMEM);
  assert_true(stats_of(interp).memory_used <= (int64_t)opts.memory_limit);
  /* It is usable afterwards, and the script can catch it. */
  assert_int_equal(perigee_interp_run_string(interp,
                                             "local ok, e = pcall(string.rep, 'x', 8 << 20)\n"
                                             "assert(not ok and e == 'not enough memory')",
                                             NULL),
                   0);
  perigee_interp_destroy(&interp);
  opts.memory_limit = 10000;
  assert_int_equal(perigee_interp_create(&opts, &interp), PERIGEE_ENOMEM);
  opts.size = 3;
  assert_int_equal(perigee_interp_create(&opts, &interp), PERIGEE_EINVAL);
}

/* ---- text only ----------------------------------------------------------------------------------- */

static void precompiled_chunks_are_refused(void **state) {
  (void)state;
  char dir[] = "/tmp/perigee-interp-XXXXXX", path[64], script[1024];
  assert_non_null(mkdtemp(dir));
  snprintf(path, sizeof(path), "%s/binary.lua", dir);
  lua_State *L = luaL_newstate();
  luaL_openlibs(L);
  snprintf(script, sizeof(script),
           "local f = io.open('%s', 'wb') f:write(string.dump(function() return 1 end)) f:close()",
           path);
  assert_int_equal(luaL_dostring(L, script), 0);
  lua_close(L);

  perigee_interp *interp = make();
  snprintf(script, sizeof(script),
           "local code = string.dump(function() return 1 end)\n"
           "for _, mode in ipairs{'b', 'bt', false} do\n"
           "  local f, why = load(code, 'x', mode or nil)\n"
           "  assert(f == nil and why:find('binary'), tostring(mode))\n"
           "end\n"
           "assert(load('return ...', 'x', 't', {})(7) == 7)\n"
           "local env = {} load('y = 5', 'x', 'bt', env)() assert(env.y == 5 and y == nil)\n"
           "assert(loadfile('%s') == nil)\n"
           "assert(loadfile('%s', 'b') == nil)\n"
           "assert(not pcall(dofile, '%s'))\n"
           "package.path = '%s/?.lua'\n"
           "local ok, why = pcall(require, 'binary') assert(not ok and why:find('binary'))",
           path, path, path, dir);
  int rc = perigee_interp_run_string(interp, script, NULL);
  if (rc != 0)
    print_message("%s\n", perigee_last_error()->message);
  assert_int_equal(rc, 0);
  assert_int_equal(perigee_interp_run_file(interp, path), PERIGEE_ELUA);
  perigee_interp_destroy(&interp);
  unlink(path);
  rmdir(dir);
}

static void libraries_are_chosen(void **state) {
  (void)state;
  perigee_interp_options opts;
  perigee_interp_options_init(&opts);
  opts.libs = 0;
  perigee_interp *interp;
  assert_int_equal(perigee_interp_create(&opts, &interp), 0);
  assert_int_equal(
      perigee_interp_run_string(
          interp,
          "assert(not io and not os and not debug and not require)\n"
          "assert(string.rep('x', 2) == 'xx' and perigee.version and not perigee.core)",
          NULL),
      0);
  perigee_interp_destroy(&interp);
}

/* ---- borrowed states ----------------------------------------------------------------------------- */

static void a_state_can_be_borrowed(void **state) {
  (void)state;
  lua_State *L = luaL_newstate();
  luaL_openlibs(L);
  luaL_requiref(L, "perigee.core", luaopen_perigee_core, 1);
  lua_pop(L, 1);
  perigee_interp *interp, *again;
  assert_int_equal(perigee_interp_borrow(L, &interp), 0);
  assert_int_equal(perigee_interp_borrow(L, &again), 0);
  assert_ptr_equal(interp, again);
  perigee_interp_destroy(&again);
  /* Inside since the first call; others get their turn once this thread has left. */
  perigee_interp_leave(interp);
  visit other = {interp, NULL};
  pthread_t thread;
  pthread_create(&thread, NULL, visit_once, &other);
  pthread_join(thread, NULL);
  assert_non_null(other.L);
  assert_ptr_equal(perigee_interp_enter(interp), L);
  lua_close(L);
  /* The handle outlives the state. */
  assert_null(perigee_interp_enter(interp));
  assert_int_equal(perigee_last_error()->code, PERIGEE_ELUASTATE);
  assert_int_equal(perigee_interp_run_string(interp, "x = 1", NULL), PERIGEE_ELUASTATE);
  perigee_interp_destroy(&interp);
}

static void opening_twice_gives_the_same_module(void **state) {
  (void)state;
  lua_State *L = luaL_newstate();
  luaL_openlibs(L);
  luaL_requiref(L, "perigee.core", luaopen_perigee_core, 0);
  lua_pushnil(L);
  lua_setfield(L, LUA_REGISTRYINDEX, "nothing");
  lua_getfield(L, LUA_REGISTRYINDEX, LUA_LOADED_TABLE);
  lua_pushnil(L);
  lua_setfield(L, -2, "perigee.core");
  luaL_requiref(L, "perigee.core", luaopen_perigee_core, 0);
  assert_true(lua_rawequal(L, 1, -1));
  lua_close(L);
}

/* A host that moves its state to another thread, as it may with any lua_State. */
static void *run_elsewhere(void *arg) {
  lua_State *L = arg;
  return luaL_dostring(L, "local p = require 'perigee.core'\n"
                          "local g = p.init{rank = 0, size = 1}\n"
                          "assert(g:allreduce(3) == 3) g:close()")
             ? (void *)lua_tostring(L, -1)
             : NULL;
}

static void the_hold_follows_a_state_that_moves(void **state) {
  (void)state;
  lua_State *L = luaL_newstate();
  luaL_openlibs(L);
  luaL_requiref(L, "perigee.core", luaopen_perigee_core, 0);
  pthread_t thread;
  pthread_create(&thread, NULL, run_elsewhere, L);
  void *failed;
  pthread_join(thread, &failed);
  assert_null(failed);
  assert_null(run_elsewhere(L));
  lua_close(L);
}

/* ---- the end ------------------------------------------------------------------------------------- */

typedef struct knocker {
  perigee_interp *interp;
  _Atomic int inside, refused;
  _Atomic bool stop;
} knocker;

static void *knock(void *arg) {
  knocker *k = arg;
  while (!atomic_load(&k->stop)) {
    if (perigee_interp_enter(k->interp) != NULL) {
      atomic_fetch_add(&k->inside, 1);
      perigee_interp_leave(k->interp);
    } else {
      if (perigee_last_error()->code != PERIGEE_ELUASTATE)
        return (void *)1;
      atomic_fetch_add(&k->refused, 1);
      perigee__sleep_ns(100000);
    }
  }
  return NULL;
}

/* lua_close while foreign threads come in, and after. */
static void close_with_threads_at_the_door(void **state) {
  (void)state;
  for (int round = 0; round < 20; round++) {
    lua_State *L = luaL_newstate();
    knocker k = {.interp = NULL};
    assert_int_equal(perigee_interp_borrow(L, &k.interp), 0);
    perigee_interp_leave(k.interp);
    pthread_t threads[3];
    for (int i = 0; i < 3; i++)
      pthread_create(&threads[i], NULL, knock, &k);
    while (atomic_load(&k.inside) < 30)
      perigee__sleep_ns(10000);
    assert_ptr_equal(perigee_interp_enter(k.interp), L);
    lua_close(L);
    while (atomic_load(&k.refused) < 3)
      perigee__sleep_ns(10000);
    atomic_store(&k.stop, true);
    for (int i = 0; i < 3; i++) {
      void *failed;
      pthread_join(threads[i], &failed);
      assert_null(failed);
    }
    perigee_interp_destroy(&k.interp);
  }
}

static void a_forked_child_is_refused(void **state) {
  (void)state;
  perigee_interp *interp = make();
  pid_t child = fork();
  assert_true(child >= 0);
  if (child == 0) {
    bool refused =
        perigee_interp_enter(interp) == NULL && perigee_last_error()->code == PERIGEE_EFORKED;
    if (refused)
      execl("/bin/true", "true",
            (char *)NULL); /* so that no leak checker looks at the child's copy */
    _exit(1);
  }
  int status;
  assert_int_equal(waitpid(child, &status, 0), child);
  assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  assert_non_null(perigee_interp_enter(interp));
  perigee_interp_leave(interp);
  perigee_interp_destroy(&interp);
}

static char noted[256];

static int note(lua_State *L) {
  snprintf(noted, sizeof(noted), "%s", luaL_tolstring(L, 1, NULL));
  return 0;
}

static void finalizers_that_run_late_get_an_error(void **state) {
  (void)state;
  lua_State *L = luaL_newstate();
  luaL_openlibs(L);
  lua_pushcfunction(L, note);
  lua_setglobal(L, "note");
  lua_getfield(L, LUA_REGISTRYINDEX, LUA_PRELOAD_TABLE);
  lua_pushcfunction(L, luaopen_perigee_core);
  lua_setfield(L, -2, "perigee.core");
  /* Made before the module, so finalized after it. */
  static const char script[] = "late = setmetatable({}, {__gc = function()\n"
                               "  local ok, e = pcall(p.init, {rank = 0, size = 1})\n"
                               "  note(not ok and e.code)\n"
                               "end})\n"
                               "p = require 'perigee.core'";
  assert_int_equal(luaL_dostring(L, script), 0);
  lua_close(L);
  assert_string_equal(noted, "ELUASTATE");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(enter_nests),
      cmocka_unit_test(each_thread_has_its_own_lua_thread),
      cmocka_unit_test(threads_take_turns),
      cmocka_unit_test(errors_carry_message_and_traceback),
      cmocka_unit_test(memory_is_capped),
      cmocka_unit_test(precompiled_chunks_are_refused),
      cmocka_unit_test(libraries_are_chosen),
      cmocka_unit_test(a_state_can_be_borrowed),
      cmocka_unit_test(opening_twice_gives_the_same_module),
      cmocka_unit_test(the_hold_follows_a_state_that_moves),
      cmocka_unit_test(close_with_threads_at_the_door),
      cmocka_unit_test(a_forked_child_is_refused),
      cmocka_unit_test(finalizers_that_run_late_get_an_error),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
