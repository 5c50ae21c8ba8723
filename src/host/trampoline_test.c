/* Overrides called from C: every operation, every outcome, and from many threads at once. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include <perigee/lua.h>
#include <perigee/perigee.h>

#include "base/clock.h"
#include "host/lgroup.h"

static perigee_interp *interp;

static void check(int rc) {
  if (rc < 0) {
    char line[700];
    perigee_error_format(perigee_last_error(), line, sizeof(line));
    print_message("%s: %s\n%s\n", perigee_err_name(rc), line, perigee_last_error()->traceback);
  }
  assert_int_equal(rc, 0);
}

static void load(const char *name, const char *text) {
  check(perigee_interp_load_backend_string(interp, text, name));
}

static perigee_group *open_group(const char *stack) {
  perigee_init_options opts;
  perigee_init_options_init(&opts);
  opts.backend = stack;
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

static perigee_tensor *tensor_of(float value) {
  const int64_t shape[] = {4};
  perigee_tensor *t;
  check(perigee_tensor_create(PERIGEE_F32, 1, shape, &t));
  const perigee_scalar v = {.kind = PERIGEE_SCALAR_FLOAT, .re = (double)value};
  check(perigee_tensor_fill(t, &v));
  return t;
}

static float first_of(const perigee_tensor *t) { return *(float *)perigee_tensor_data(t); }

static int setup(void **state) {
  (void)state;
  return perigee_interp_create(NULL, &interp);
}

static int teardown(void **state) {
  (void)state;
  perigee_interp_destroy(&interp);
  return 0;
}

/* ---- outcomes ------------------------------------------------------------------------------------ */

static void an_override_may_be_done_at_once(void **state) {
  (void)state;
  load("twice", "local B = {}\n"
                "function B:allreduce(tensors, opts)\n"
                "  assert(#tensors == 1 and opts.op == 'max' and opts.timeout == 5)\n"
                "  tensors[1]:mul_(2)\n"
                "  return true\n"
                "end\n"
                "return B");
  perigee_group *group = open_group("twice(native)");
  assert_false(perigee_group_is_direct(group, PERIGEE_OP_ALLREDUCE));
  assert_true(perigee_group_is_direct(group, PERIGEE_OP_BROADCAST));
  perigee_tensor *t = tensor_of(3);
  perigee_request req;
  perigee_request_init(&req, PERIGEE_OP_ALLREDUCE);
  req.in = (perigee_tensors){.v = &t, .n = 1};
  req.redop.kind = PERIGEE_REDOP_MAX;
  req.timeout_ns = 5 * PERIGEE_NS_PER_SEC;
  check(perigee_group_run(group, &req));
  assert_true(first_of(t) == 6);
  perigee_work *work;
  check(perigee_group_submit(group, &req, &work));
  check(perigee_work_wait(work, PERIGEE_TIMEOUT_NONE));
  perigee_work_unref(work);
  assert_true(first_of(t) == 12);
  perigee_tensor_unref(t);
  close_group(group);
}

static void an_override_may_delegate_and_map(void **state) {
  (void)state;
  load("mapped",
       "local B = {}\n"
       "function B:allreduce(tensors, opts)\n"
       "  return self.inner:allreduce(tensors, opts):map(function() tensors[1]:add_(1) end)\n"
       "end\n"
       "return B");
  perigee_group *group = open_group("mapped(mapped(native))");
  perigee_tensor *t = tensor_of(3);
  check(perigee_allreduce(group, t, PERIGEE_REDOP_SUM));
  assert_true(first_of(t) == 5);
  /* Waited for by plain C: the dispatcher runs the callbacks. */
  perigee_request req;
  perigee_request_init(&req, PERIGEE_OP_ALLREDUCE);
  req.in = (perigee_tensors){.v = &t, .n = 1};
  perigee_work *work;
  check(perigee_group_submit(group, &req, &work));
  check(perigee_work_wait(work, 10 * PERIGEE_NS_PER_SEC));
  perigee_work_unref(work);
  assert_true(first_of(t) == 7);
  perigee_tensor_unref(t);
  close_group(group);
}

static void wrong_results_are_refused(void **state) {
  (void)state;
  static const struct {
    const char *result, *got;
  } cases[] = {
      {"", "got nil (is a 'return' missing?)"},
      {"return 5", "got number"},
      {"return 'x'", "got string"},
      {"return false", "got boolean"},
      {"return {}", "got table"},
      {"return function() end", "got function"},
      {"return t[1]", "got tensor"},
      {"return self.inner", "got inner layer"},
  };
  for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
    char text[200];
    snprintf(text, sizeof(text), "local B = {} function B:allreduce(t) %s end return B",
             cases[i].result);
    load("wrong", text);
    perigee_group *group = open_group("wrong");
    perigee_tensor *t = tensor_of(1);
    assert_int_equal(perigee_allreduce(group, t, PERIGEE_REDOP_SUM), PERIGEE_ELUATYPE);
    const char *message = perigee_last_error()->message;
    assert_non_null(strstr(message, "backend 'wrong': allreduce must return a Work"));
    assert_non_null(strstr(message, cases[i].got));
    perigee_tensor_unref(t);
    close_group(group);
  }
}

static void errors_come_out_with_their_traceback(void **state) {
  (void)state;
  load("raiser", "local p = require 'perigee.core'\n"
                 "local B = {}\n"
                 "local function deep() error('no luck') end\n"
                 "function B:barrier() deep() end\n"
                 "function B:allreduce(t) error(p.error('ESTATE', 'not now')) end\n"
                 "return B");
  perigee_group *group = open_group("raiser");
  assert_int_equal(perigee_barrier(group), PERIGEE_ELUA);
  const perigee_error *error = perigee_last_error();
  assert_string_equal(error->message, "raiser:3: no luck");
  assert_non_null(strstr(error->traceback, "raiser:4: in "));
  assert_int_equal(error->op, PERIGEE_OP_BARRIER);
  assert_int_equal(error->rank, 0);
  assert_string_equal(error->group, "world");
  perigee_tensor *t = tensor_of(1);
  assert_int_equal(perigee_allreduce(group, t, PERIGEE_REDOP_SUM), PERIGEE_ESTATE);
  assert_string_equal(perigee_last_error()->message, "not now");
  perigee_tensor_unref(t);
  close_group(group);
}

static void names_are_checked_when_the_backend_is_loaded(void **state) {
  (void)state;
  assert_int_equal(perigee_interp_load_backend_string(
                       interp, "local B = {} function B:allReduce() end return B", "misspelt"),
                   PERIGEE_EINVAL);
  assert_non_null(strstr(perigee_last_error()->message, "did you mean 'allreduce'?"));
  assert_int_equal(perigee_interp_load_backend_string(interp,
                                                      "local B = {}\n"
                                                      "function B:allgather() end\n"
                                                      "function B:all_gather() end\n"
                                                      "return B",
                                                      "both"),
                   PERIGEE_EINVAL);
  assert_int_equal(perigee_interp_load_backend_string(interp, "return 5", "number"),
                   PERIGEE_ELUATYPE);
  assert_int_equal(perigee_interp_load_backend_string(interp, "return", "nothing"),
                   PERIGEE_ELUATYPE);
  assert_int_equal(perigee_interp_load_backend_string(
                       interp, "require 'perigee.core'.backend('registers')", "registers"),
                   0);
}

/* ---- the layer's life ---------------------------------------------------------------------------- */

static void references_end_with_the_layer(void **state) {
  (void)state;
  load("lived", "local B = { opened = 0 }\n"
                "function B:open(opts) B.opened = B.opened + 1 assert(opts.timeout > 0) end\n"
                "function B:close() B.opened = B.opened - 1 end\n"
                "function B:barrier() assert(self.rank == 0 and self.size == 1) return true end\n"
                "lived = B\n"
                "return B");
  perigee_interp_stats before, during, after;
  perigee_interp_stats_get(interp, &before);
  perigee_group *group = open_group("lived");
  perigee_interp_stats_get(interp, &during);
  assert_true(during.refs > before.refs);
  check(perigee_barrier(group));
  check(perigee_interp_run_string(interp, "assert(lived.opened == 1)", NULL));
  close_group(group);
  check(perigee_interp_run_string(interp, "assert(lived.opened == 0)", NULL));
  perigee_interp_stats_get(interp, &after);
  assert_int_equal(after.refs, before.refs);
}

static void a_layer_outlives_its_interpreter(void **state) {
  (void)state;
  perigee_interp *other;
  assert_int_equal(perigee_interp_create(NULL, &other), 0);
  check(perigee_interp_load_backend_string(
      other, "local B = {} function B:barrier() return true end return B", "orphan"));
  perigee_group *group = open_group("orphan");
  check(perigee_barrier(group));
  perigee_interp_destroy(&other);
  assert_int_equal(perigee_barrier(group), PERIGEE_ELUASTATE);
  close_group(group);
}

/* A work whose callback has not run when the interpreter ends. */
static void close_with_a_callback_pending(void **state) {
  (void)state;
  perigee_interp *other;
  assert_int_equal(perigee_interp_create(NULL, &other), 0);
  check(perigee_interp_load_backend_string(
      other,
      "local B = {}\n"
      "function B:allreduce(t, o) return self.inner:allreduce(t, o):map(function() end) end\n"
      "return B",
      "pending"));
  perigee_group *group = open_group("pending");
  perigee_tensor *t = tensor_of(1);
  perigee_request req;
  perigee_request_init(&req, PERIGEE_OP_ALLREDUCE);
  req.in = (perigee_tensors){.v = &t, .n = 1};
  perigee_work *works[8];
  assert_non_null(perigee_interp_enter(other)); /* nobody runs callbacks meanwhile */
  for (int i = 0; i < 8; i++)
    check(perigee_group_submit(group, &req, &works[i]));
  perigee_interp_leave(other);
  perigee_interp_destroy(&other);
  for (int i = 0; i < 8; i++) {
    int rc = perigee_work_wait(works[i], 5 * PERIGEE_NS_PER_SEC);
    assert_true(rc == 0 || rc == PERIGEE_ELUASTATE);
    perigee_work_unref(works[i]);
  }
  perigee_tensor_unref(t);
  close_group(group);
}

/* ---- many threads -------------------------------------------------------------------------------- */

enum {
  THREADS = 8,
  CALLS = 100000
};

static perigee_group *shared;

static void *call_many(void *arg) {
  (void)arg;
  perigee_tensor *t = tensor_of(1);
  intptr_t failed = 0;
  for (int i = 0; i < CALLS && failed == 0; i++)
    failed = perigee_allreduce(shared, t, i % 2 == 0 ? PERIGEE_REDOP_SUM : PERIGEE_REDOP_MAX);
  perigee_tensor_unref(t);
  return (void *)failed;
}

static void eight_threads_call_one_interpreter(void **state) {
  (void)state;
  load("counts", "count = 0\n"
                 "local B = {}\n"
                 "function B:allreduce(tensors, opts)\n"
                 "  count = count + 1\n"
                 "  return true\n"
                 "end\n"
                 "return B");
  shared = open_group("counts");
  pthread_t threads[THREADS];
  for (int i = 0; i < THREADS; i++)
    assert_int_equal(pthread_create(&threads[i], NULL, call_many, NULL), 0);
  for (int i = 0; i < THREADS; i++) {
    void *failed;
    pthread_join(threads[i], &failed);
    assert_int_equal((intptr_t)failed, 0);
  }
  char text[64];
  snprintf(text, sizeof(text), "assert(count == %d)", THREADS * CALLS);
  check(perigee_interp_run_string(interp, text, NULL));
  close_group(shared);
}

/* The same with hooks: one in C, which sees every operation once, and one in Lua, which is told by then. */
static void count_event(const perigee_event *event, void *arg) {
  (void)event;
  ++*(int64_t *)arg; /* events of a group are told one at a time */
}

static void eight_threads_with_hooks(void **state) {
  (void)state;
  load("counts_too", "ended = 0\n"
                     "local B = {}\n"
                     "function B:allreduce(tensors, opts) return true end\n"
                     "return B");
  check(perigee_interp_run_string(
      interp,
      "local perigee = require 'perigee'\n"
      "hooked = perigee.init{rank = 0, size = 1, backend = 'counts_too'}\n"
      "hooked:register_on_completion_hook(function(info)\n"
      "  assert(info.status == 'done' and info.op_type == 'allreduce')\n"
      "  ended = ended + 1\n"
      "end)\n"
      "hooked:on('done', function(info) if info.seq % 1000 == 0 then error 'boom' end end)\n"
      "perigee.on_hook_error = function() reports = (reports or 0) + 1 end",
      NULL));
  lua_State *L = perigee_interp_enter(interp);
  assert_non_null(L);
  lua_getglobal(L, "hooked");
  const perigee__lgroup *g = perigee__object_get(L, -1, &perigee__type_group);
  assert_non_null(g);
  shared = g->box.ptr; /* kept by the global */
  lua_pop(L, 1);
  perigee_interp_leave(interp);
  int64_t events = 0;
  check(perigee_group_on(shared, PERIGEE_EVENT_START | PERIGEE_EVENT_DONE, count_event, &events,
                         NULL, NULL));
  pthread_t threads[THREADS];
  for (int i = 0; i < THREADS; i++)
    assert_int_equal(pthread_create(&threads[i], NULL, call_many, NULL), 0);
  for (int i = 0; i < THREADS; i++) {
    void *failed;
    pthread_join(threads[i], &failed);
    assert_int_equal((intptr_t)failed, 0);
  }
  check(perigee_group_wait_for_pending_works(shared, 60 * PERIGEE_NS_PER_SEC));
  assert_int_equal(events, 2 * THREADS * CALLS);
  char text[256];
  snprintf(text, sizeof(text),
           "local ok, e = pcall(hooked.wait_for_pending_works, hooked, 60)\n"
           "assert(not ok and e.count == %d, e)\n"
           "assert(reports == %d and ended == %d, ended)\n"
           "hooked:close() hooked = nil\n"
           "require 'perigee'.on_hook_error = nil",
           THREADS * CALLS / 1000, THREADS * CALLS / 1000, THREADS * CALLS);
  check(perigee_interp_run_string(interp, text, NULL));
}

static void *call_and_submit(void *arg) {
  (void)arg;
  perigee_tensor *t = tensor_of(1);
  perigee_request req;
  perigee_request_init(&req, PERIGEE_OP_ALLREDUCE);
  req.in = (perigee_tensors){.v = &t, .n = 1};
  intptr_t failed = 0;
  for (int i = 0; i < CALLS / 50 && failed == 0; i++) {
    failed = perigee_group_run(shared, &req);
    perigee_work *work;
    if (i % 10 == 0 && failed == 0 && (failed = perigee_group_submit(shared, &req, &work)) == 0) {
      failed = perigee_work_wait(work, 20 * PERIGEE_NS_PER_SEC);
      perigee_work_unref(work);
    }
  }
  if (first_of(t) != 1 + CALLS / 50 + CALLS / 500)
    failed = 1;
  perigee_tensor_unref(t);
  return (void *)failed;
}

static void threads_delegate_and_map(void **state) {
  (void)state;
  load("maps", "local B = {}\n"
               "function B:allreduce(tensors, opts)\n"
               "  local work = self.inner:allreduce(tensors, opts)\n"
               "  B.last = work\n"
               "  return work:map(function() tensors[1]:add_(1) end)\n"
               "end\n"
               "return B");
  shared = open_group("maps");
  pthread_t threads[4];
  for (int i = 0; i < 4; i++)
    assert_int_equal(pthread_create(&threads[i], NULL, call_and_submit, NULL), 0);
  for (int i = 0; i < 4; i++) {
    void *failed;
    pthread_join(threads[i], &failed);
    assert_int_equal((intptr_t)failed, 0);
  }
  close_group(shared);
}

static void *run_own_interpreter(void *arg) {
  perigee_interp *own;
  char name[32], text[160];
  if (perigee_interp_create(NULL, &own) < 0)
    return (void *)1;
  snprintf(name, sizeof(name), "own%d", (int)(intptr_t)arg);
  snprintf(text, sizeof(text),
           "local B = {} function B:allreduce(t) t[1]:add_(%d) return true end return B",
           (int)(intptr_t)arg);
  perigee_init_options opts;
  perigee_init_options_init(&opts);
  opts.backend = name;
  opts.rank = 0;
  opts.nranks = 1;
  perigee_group *group;
  if (perigee_interp_load_backend_string(own, text, name) < 0 || perigee_init(&opts, &group) < 0)
    return (void *)2;
  perigee_tensor *t = tensor_of(0);
  intptr_t wrong = 0;
  for (int i = 0; i < 1000 && wrong == 0; i++)
    wrong = perigee_allreduce(group, t, PERIGEE_REDOP_SUM);
  if (first_of(t) != (float)((intptr_t)arg * 1000))
    wrong = 3;
  perigee_tensor_unref(t);
  perigee_group_close(group);
  perigee_group_unref(group);
  perigee_interp_destroy(&own);
  return (void *)wrong;
}

static void interpreters_run_side_by_side(void **state) {
  (void)state;
  pthread_t threads[4];
  for (intptr_t i = 0; i < 4; i++)
    pthread_create(&threads[i], NULL, run_own_interpreter, (void *)(i + 1));
  for (int i = 0; i < 4; i++) {
    void *failed;
    pthread_join(threads[i], &failed);
    assert_int_equal((intptr_t)failed, 0);
  }
}

/* An override that does not return: a caller with a deadline gives up and is told who is in there. */
static _Atomic bool slow_started;

static _Atomic bool slow_over;
static int is_slow_over(lua_State *L) {
  lua_pushboolean(L, atomic_load(&slow_over));
  return 1;
}

static int note_slow_started(lua_State *L) {
  (void)L;
  atomic_store(&slow_started, true);
  return 0;
}

static void *call_slow(void *arg) { return (void *)(intptr_t)perigee_barrier(arg); }

static void a_busy_interpreter_does_not_hold_up_deadlines(void **state) {
  (void)state;
  load("slow", "local B = {}\n"
               "function B:barrier()\n"
               "  started()\n"
               "  while not over() do end\n"
               "  return true\n"
               "end\n"
               "return B");
  lua_State *L = perigee_interp_enter(interp);
  assert_non_null(L);
  lua_pushcfunction(L, note_slow_started);
  lua_setglobal(L, "started");
  lua_pushcfunction(L, is_slow_over);
  lua_setglobal(L, "over");
  perigee_interp_leave(interp);
  perigee_group *group = open_group("slow");
  pthread_t thread;
  pthread_create(&thread, NULL, call_slow, group);
  while (!atomic_load(&slow_started))
    perigee__sleep_ns(PERIGEE_NS_PER_MS);
  perigee_request req;
  perigee_request_init(&req, PERIGEE_OP_BARRIER);
  req.timeout_ns = 50 * PERIGEE_NS_PER_MS;
  assert_int_equal(perigee_group_run(group, &req), PERIGEE_ETIMEDOUT);
  assert_non_null(strstr(perigee_last_error()->message, "barrier of backend 'slow'"));
  atomic_store(&slow_over, true);
  void *rc;
  pthread_join(thread, &rc);
  assert_int_equal((intptr_t)rc, 0);
  close_group(group);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(an_override_may_be_done_at_once),
      cmocka_unit_test(an_override_may_delegate_and_map),
      cmocka_unit_test(wrong_results_are_refused),
      cmocka_unit_test(errors_come_out_with_their_traceback),
      cmocka_unit_test(names_are_checked_when_the_backend_is_loaded),
      cmocka_unit_test(references_end_with_the_layer),
      cmocka_unit_test(a_layer_outlives_its_interpreter),
      cmocka_unit_test(close_with_a_callback_pending),
      cmocka_unit_test(eight_threads_call_one_interpreter),
      cmocka_unit_test(eight_threads_with_hooks),
      cmocka_unit_test(threads_delegate_and_map),
      cmocka_unit_test(interpreters_run_side_by_side),
      cmocka_unit_test(a_busy_interpreter_does_not_hold_up_deadlines),
  };
  return cmocka_run_group_tests(tests, setup, teardown);
}
