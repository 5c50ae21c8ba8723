/* Defends: what a C program may do from many threads at once: one scripted group, layers of several interpreters, interpreters apart. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include <lauxlib.h>

#include <perigee/lua.h>
#include <perigee/perigee.h>

#include "base/clock.h"

enum {
  THREADS = 8,
  CALLS = 200
};
#define LIMIT (20 * PERIGEE_NS_PER_SEC)

static void check(int rc) {
  if (rc < 0)
    print_message("%s: %s\n%s\n", perigee_err_name(rc), perigee_last_error()->message,
                  perigee_last_error()->traceback);
  assert_int_equal(rc, 0);
}

static perigee_interp *make_interp(const char *name, const char *text) {
  perigee_interp *interp;
  check(perigee_interp_create(NULL, &interp));
  check(perigee_interp_load_backend_string(interp, text, name));
  return interp;
}

static int open_world(const char *stack, perigee_group **group_p) {
  perigee_init_options opts;
  perigee_init_options_init(&opts);
  opts.backend = stack;
  opts.rank = 0;
  opts.nranks = 1;
  return perigee_init(&opts, group_p);
}

static void close_group(perigee_group *group) {
  perigee_group_close(group);
  perigee_group_unref(group);
}

/* What a thread of these tests gets; it returns 0, or where it went wrong. */
typedef struct job {
  perigee_group *group;
  float adds; /* what one call adds to a tensor of zeros */
  int calls;
  _Atomic int callbacks;
  intptr_t (*body)(struct job *self, perigee_tensor *t, float *value);
} job;

static void *job_main(void *arg) {
  job *j = arg;
  float value = 0;
  const int64_t shape[] = {1};
  perigee_tensor *t;
  if (perigee_tensor_wrap(PERIGEE_F32, 1, shape, &value, NULL, NULL, &t) < 0)
    return (void *)-1;
  intptr_t rc = j->body(j, t, &value);
  perigee_tensor_unref(t);
  return (void *)rc;
}

static void run_threads(job *j, int n) {
  pthread_t threads[THREADS];
  for (int i = 0; i < n; i++)
    assert_int_equal(pthread_create(&threads[i], NULL, job_main, j), 0);
  for (int i = 0; i < n; i++) {
    void *rc;
    pthread_join(threads[i], &rc);
    assert_int_equal((intptr_t)rc, 0);
  }
}

/* ---- one group ------------------------------------------------------------------------------------- */

static const char adds_one[] =
    "local B = {}\n"
    "function B:allreduce(tensors, opts)\n"
    "  local step = coroutine.wrap(function() coroutine.yield(1) end)\n"
    "  return self.inner:allreduce(tensors, opts):map(function() tensors[1]:add_(step()) end)\n"
    "end\n"
    "return B";

static void count_callback(perigee_work *work, void *arg) {
  job *j = arg;
  if (perigee_work_is_completed(work))
    atomic_fetch_add(&j->callbacks, 1);
}

static intptr_t run_and_submit(job *j, perigee_tensor *t, float *value) {
  for (int i = 0; i < j->calls; i++) {
    *value = 0;
    perigee_request req;
    perigee_request_init(&req, PERIGEE_OP_ALLREDUCE);
    req.in = (perigee_tensors){.v = &t, .n = 1};
    if (i % 2 == 0) {
      if (perigee_group_run(j->group, &req) < 0)
        return 1;
    } else {
      perigee_work *work;
      if (perigee_group_submit(j->group, &req, &work) < 0 ||
          perigee_work_on_done(work, count_callback, j) < 0 || perigee_work_wait(work, LIMIT) < 0)
        return 2;
      perigee_work_unref(work);
    }
    if (*value != j->adds)
      return 3;
  }
  return 0;
}

static void expect_callbacks(job *j, int n) {
  /* A wait may return before the callbacks have run. */
  int64_t until = perigee__now_ns() + LIMIT;
  while (atomic_load(&j->callbacks) < n && perigee__now_ns() < until)
    perigee__sleep_ns(PERIGEE_NS_PER_MS);
  assert_int_equal(atomic_load(&j->callbacks), n);
}

static void eight_threads_share_a_group(void **state) {
  (void)state;
  perigee_interp *interp = make_interp("one", adds_one);
  job j = {.adds = 2, .calls = CALLS, .body = run_and_submit};
  check(open_world("one(one(native))", &j.group));
  run_threads(&j, THREADS);
  expect_callbacks(&j, THREADS * CALLS / 2);
  close_group(j.group);
  perigee_interp_destroy(&interp);
}

/* Threads come and go: each is new to Lua, and none leaves anything there. */
static void threads_that_end_leave_nothing(void **state) {
  (void)state;
  perigee_interp *interp = make_interp("one", adds_one);
  job j = {.adds = 1, .calls = 2, .body = run_and_submit};
  check(open_world("one(native)", &j.group));
  for (int round = 0; round < 20; round++)
    run_threads(&j, THREADS);
  expect_callbacks(&j, 20 * THREADS);
  perigee_interp_stats stats;
  perigee_interp_stats_get(interp, &stats);
  /* those of one round, this one, the dispatcher and the group's own */
  assert_true(stats.threads <= THREADS + 4);
  close_group(j.group);
  perigee_interp_destroy(&interp);
}

static void layers_of_two_interpreters_make_one_stack(void **state) {
  (void)state;
  perigee_interp *one = make_interp("one", adds_one), *two = make_interp("two", adds_one);
  job j = {.adds = 4, .calls = CALLS / 4, .body = run_and_submit};
  check(open_world("one(two(one(two(native))))", &j.group));
  run_threads(&j, THREADS);
  expect_callbacks(&j, THREADS * CALLS / 8);
  close_group(j.group);
  perigee_interp_destroy(&one);
  perigee_interp_destroy(&two);
}

/* ---- interpreters apart ------------------------------------------------------------------------------ */

static _Atomic int met;

/* Called from Lua: comes back only once as many threads are here as there are interpreters. */
static int l_meet(lua_State *L) {
  int n = (int)luaL_checkinteger(L, 1);
  int64_t until = perigee__now_ns() + LIMIT;
  atomic_fetch_add(&met, 1);
  while (atomic_load(&met) < n && perigee__now_ns() < until)
    perigee__sleep_ns(PERIGEE_NS_PER_MS);
  lua_pushboolean(L, atomic_load(&met) >= n);
  return 1;
}

enum {
  APART = 4
};

static void *own_interpreter(void *arg) {
  int id = (int)(intptr_t)arg;
  char name[32], text[200];
  snprintf(name, sizeof(name), "apart%d", id);
  snprintf(text, sizeof(text),
           "local B = {} function B:barrier() assert(meet(%d)) return true end\n"
           "function B:allreduce(t) count = (count or 0) + 1 t[1]:fill_(count) return true end\n"
           "return B",
           APART);
  perigee_interp *own;
  perigee_group *group;
  if (perigee_interp_create(NULL, &own) < 0)
    return (void *)1;
  lua_State *L = perigee_interp_enter(own);
  lua_register(L, "meet", l_meet);
  perigee_interp_leave(own);
  if (perigee_interp_load_backend_string(own, text, name) < 0 || open_world(name, &group) < 0)
    return (void *)2;
  /* All overrides are inside at the same time: their interpreters do not exclude each other. */
  if (perigee_barrier(group) < 0)
    return (void *)3;
  float value = 0;
  const int64_t shape[] = {1};
  perigee_tensor *t;
  if (perigee_tensor_wrap(PERIGEE_F32, 1, shape, &value, NULL, NULL, &t) < 0)
    return (void *)4;
  for (int i = 1; i <= CALLS; i++)
    if (perigee_allreduce(group, t, PERIGEE_REDOP_SUM) < 0 || value != (float)i)
      return (void *)5;
  perigee_tensor_unref(t);
  close_group(group);
  perigee_interp_destroy(&own);
  return NULL;
}

static void interpreters_run_at_the_same_time(void **state) {
  (void)state;
  for (int round = 0; round < 5; round++) {
    atomic_store(&met, 0);
    pthread_t threads[APART];
    for (int i = 0; i < APART; i++)
      assert_int_equal(pthread_create(&threads[i], NULL, own_interpreter, (void *)(intptr_t)i), 0);
    for (int i = 0; i < APART; i++) {
      void *rc;
      pthread_join(threads[i], &rc);
      assert_int_equal((intptr_t)rc, 0);
    }
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(eight_threads_share_a_group),
      cmocka_unit_test(threads_that_end_leave_nothing),
      cmocka_unit_test(layers_of_two_interpreters_make_one_stack),
      cmocka_unit_test(interpreters_run_at_the_same_time),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
