/* A program's own loop: the descriptor, step and timeout from C. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>

#include <lauxlib.h>

#include <perigee/lua.h>

#include "base/clock.h"

#define LONG_NS (60 * PERIGEE_NS_PER_SEC)

static perigee_interp *make(void) {
  perigee_interp *interp;
  assert_int_equal(perigee_interp_create(NULL, &interp), 0);
  assert_int_equal(perigee_interp_run_string(interp,
                                             "perigee, ran = require 'perigee.core', 0\n"
                                             "function ready(n)\n"
                                             "  for i = 1, n or 1 do\n"
                                             "    local f = perigee.future()\n"
                                             "    f:on_done(function() ran = ran + 1 end)\n"
                                             "    f:set_result()\n"
                                             "  end\n"
                                             "end",
                                             NULL),
                   0);
  return interp;
}

static void run(perigee_interp *interp, const char *text) {
  assert_int_equal(perigee_interp_run_string(interp, text, NULL), 0);
}

static int ran(perigee_interp *interp) {
  lua_State *L = perigee_interp_enter(interp);
  assert_non_null(L);
  lua_getglobal(L, "ran");
  int n = (int)lua_tointeger(L, -1);
  lua_pop(L, 1);
  perigee_interp_leave(interp);
  return n;
}

static bool readable(int fd, int ms) {
  struct pollfd p = {.fd = fd, .events = POLLIN};
  return poll(&p, 1, ms) == 1;
}

static void is_readable_while_step_has_something_to_do(void **state) {
  (void)state;
  perigee_interp *interp = make();
  int fd, again;
  assert_int_equal(perigee_interp_pollfd(interp, &fd), 0);
  assert_int_equal(perigee_interp_pollfd(interp, &again), 0);
  assert_int_equal(fd, again);
  assert_false(readable(fd, 0));
  assert_true(perigee_interp_timeout(interp) == PERIGEE_TIMEOUT_NONE);
  assert_int_equal(perigee_interp_step(interp, 0), 0);
  run(interp, "ready(3)");
  assert_true(readable(fd, 0));
  assert_true(perigee_interp_timeout(interp) == 0);
  assert_int_equal(ran(interp), 0); /* nobody else runs them */
  assert_int_equal(perigee_interp_step(interp, 0), 3);
  assert_int_equal(ran(interp), 3);
  assert_false(readable(fd, 0));
  perigee_interp_destroy(&interp);
}

static void *make_ready(void *arg) {
  perigee__sleep_ns(20 * PERIGEE_NS_PER_MS);
  assert_int_equal(perigee_interp_run_string(arg, "ready()", NULL), 0);
  return NULL;
}

static void step_waits(void **state) {
  (void)state;
  perigee_interp *interp = make();
  int fd;
  assert_int_equal(perigee_interp_pollfd(interp, &fd), 0);
  int64_t start = perigee__now_ns();
  assert_int_equal(perigee_interp_step(interp, 20 * PERIGEE_NS_PER_MS), 0);
  assert_true(perigee__now_ns() - start >= 20 * PERIGEE_NS_PER_MS);
  pthread_t other;
  assert_int_equal(pthread_create(&other, NULL, make_ready, interp), 0);
  assert_int_equal(perigee_interp_step(interp, LONG_NS), 1);
  pthread_join(other, NULL);
  assert_false(readable(fd, 0));
  perigee_interp_destroy(&interp);
}

static void *enter_once(void *arg) {
  assert_int_equal(perigee_interp_run_string(arg, "entered = true", NULL), 0);
  return NULL;
}

/* The loop's thread never leaves: it is asked to. */
static void lets_others_in(void **state) {
  (void)state;
  perigee_interp *interp = make();
  lua_State *L = perigee_interp_enter(interp);
  int fd;
  assert_int_equal(perigee_interp_pollfd(interp, &fd), 0);
  assert_false(readable(fd, 0));
  pthread_t other;
  assert_int_equal(pthread_create(&other, NULL, enter_once, interp), 0);
  bool entered = false;
  while (!entered) {
    assert_true(readable(fd, 60000));
    assert_int_equal(perigee_interp_step(interp, 0), 0);
    lua_getglobal(L, "entered");
    entered = lua_toboolean(L, -1);
    lua_pop(L, 1);
  }
  pthread_join(other, NULL);
  assert_false(readable(fd, 0));
  perigee_interp_leave(interp);
  perigee_interp_destroy(&interp);
}

static void *run_slow_callback(void *arg) {
  assert_int_equal(perigee_interp_step(arg, 0), 2);
  return NULL;
}

/* A callback on another thread has given the interpreter up: a loop must not turn round and round meanwhile. */
static void is_silent_while_another_thread_runs_the_queue(void **state) {
  (void)state;
  perigee_interp *interp = make();
  int fd;
  assert_int_equal(perigee_interp_pollfd(interp, &fd), 0);
  run(interp, "local f = perigee.future()\n"
              "f:on_done(function()\n"
              "  asleep = true\n"
              "  while not over do perigee.sleep(0.001) end\n"
              "end)\n"
              "f:set_result() ready()");
  pthread_t other;
  assert_int_equal(pthread_create(&other, NULL, run_slow_callback, interp), 0);
  run(interp, "while not asleep do perigee.sleep(0.001) end");
  assert_int_equal(perigee_interp_step(interp, 0), 0);
  assert_false(readable(fd, 0));
  assert_true(perigee_interp_timeout(interp) == PERIGEE_TIMEOUT_NONE);
  run(interp, "over = true");
  pthread_join(other, NULL);
  assert_int_equal(ran(interp), 1);
  assert_false(readable(fd, 0));
  run(interp, "ready()");
  assert_true(readable(fd, 0));
  perigee_interp_destroy(&interp);
}

static void gives_callbacks_back_to_the_library(void **state) {
  (void)state;
  perigee_interp *interp = make();
  int fd;
  assert_int_equal(perigee_interp_pollfd(interp, &fd), 0);
  run(interp, "ready(2)");
  assert_int_equal(ran(interp), 0);
  perigee_interp_pollfd_end(interp);
  for (int64_t until = perigee__deadline_in(LONG_NS); ran(interp) < 2 && !perigee__passed(until);)
    perigee__sleep_ns(PERIGEE_NS_PER_MS);
  assert_int_equal(ran(interp), 2);
  perigee_interp_destroy(&interp);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(is_readable_while_step_has_something_to_do),
      cmocka_unit_test(step_waits),
      cmocka_unit_test(lets_others_in),
      cmocka_unit_test(is_silent_while_another_thread_runs_the_queue),
      cmocka_unit_test(gives_callbacks_back_to_the_library),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
