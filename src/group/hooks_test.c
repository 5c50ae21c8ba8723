/* Hooks: what is told, in which order, how often, and what hooks may do. */
#include "group/testing.h"

#include <perigee/hook.h>

#include "group/work.h"

enum {
  NOTES_MAX = 4096
};

/* What a hook saw. Filled by one thread at a time, read when nothing is under way. */
typedef struct notes {
  int n;
  perigee_event events[NOTES_MAX];
  int codes[NOTES_MAX];
  _Atomic int seen; /* n, for who does not wait for the end */
  _Atomic int drops;
} notes;

static void note(const perigee_event *event, void *arg) {
  notes *all = arg;
  CHECK(event->size == sizeof(*event));
  CHECK((event->error != NULL) ==
        ((event->kind & (PERIGEE_EVENT_ERROR | PERIGEE_EVENT_ABORT)) != 0));
  if (all->n == NOTES_MAX)
    return;
  all->codes[all->n] = event->error != NULL ? event->error->code : 0;
  all->events[all->n++] = *event;
  atomic_store(&all->seen, all->n);
}

static void note_drop(void *arg) { atomic_fetch_add(&((notes *)arg)->drops, 1); }

static notes *listen(perigee_group *group, unsigned events, int64_t after_ns,
                     perigee_hook **hook_p) {
  notes *all = calloc(1, sizeof(*all));
  perigee_hook_options opts;
  perigee_hook_options_init(&opts);
  opts.after_ns = after_ns;
  opts.drop = note_drop;
  REQUIRE(all != NULL && perigee_group_on(group, events, note, all, &opts, hook_p) == 0);
  return all;
}

/* "start#1 done#1 " */
static const char *told(const notes *all, char *buf, size_t size) {
  size_t at = 0;
  buf[0] = '\0';
  for (int i = 0; i < all->n && at < size; i++)
    at += (size_t)snprintf(buf + at, size - at, "%s#%d ", perigee_event_name(all->events[i].kind),
                           (int)all->events[i].seq);
  return buf;
}

static void settle(perigee_group *group) {
  CHECK(perigee_group_wait_for_pending_works(group, 20 * PERIGEE_NS_PER_SEC) == 0);
}

static perigee_work *submit_one(perigee_group *group, int op, perigee_tensor **t) {
  perigee_request req = request_inplace(op, t, t != NULL ? 1 : 0);
  perigee_work *work = NULL;
  REQUIRE(perigee_group_submit(group, &req, &work) == 0);
  return work;
}

/* ---- what is told ------------------------------------------------------------------------------- */

static void blocking_calls_and_works(void **state) {
  (void)state;
  char text[256];
  perigee_group *group = open_alone("native", 0, 1);
  notes *all = listen(group, PERIGEE_EVENT_ALL, 0, NULL);
  perigee_tensor *t = f32_of(3, 1);
  int64_t before = perigee__now_ns();
  assert_int_equal(perigee_allreduce(group, t, PERIGEE_REDOP_SUM), 0);
  perigee_work *work = submit_one(group, PERIGEE_OP_BROADCAST, &t);
  assert_int_equal(perigee_work_wait(work, 20 * PERIGEE_NS_PER_SEC), 0);
  settle(group);
  assert_string_equal(told(all, text, sizeof(text)), "start#1 done#1 start#2 done#2 ");
  const perigee_event *start = &all->events[0], *done = &all->events[1];
  assert_int_equal(start->op, PERIGEE_OP_ALLREDUCE);
  assert_string_equal(done->op_name, "allreduce");
  assert_string_equal(all->events[3].op_name, "broadcast");
  assert_int_equal(done->bytes, 12);
  assert_int_equal(done->rank, 0);
  assert_int_equal(done->nranks, 1);
  assert_int_equal(start->status, PERIGEE_WORK_PENDING);
  assert_int_equal(done->status, PERIGEE_WORK_DONE);
  assert_true(start->time_started >= before && start->time_finished == 0);
  assert_true(done->time_started == start->time_started);
  assert_true(done->time_finished > done->time_started);
  assert_true(done->active_duration == done->time_finished - done->time_started);
  assert_false(done->async);
  assert_true(all->events[3].async);
  perigee_work_unref(work);
  drop_group(group);
  assert_int_equal(atomic_load(&all->drops), 1);
  perigee_tensor_unref(t);
  free(all);
}

static void refused_calls(void **state) {
  (void)state;
  char text[256];
  perigee_group *group = open_alone("native", 0, 1);
  notes *all = listen(group, PERIGEE_EVENT_ALL, 0, NULL);
  perigee_tensor *t = f32_of(3, 1);
  assert_int_equal(perigee_broadcast(group, t, 7), PERIGEE_ERANGE);
  assert_true(last_error_has("root"));
  perigee_work *work;
  perigee_request req = request_inplace(PERIGEE_OP_COUNT, &t, 1);
  assert_int_equal(perigee_group_submit(group, &req, &work), PERIGEE_EINVAL);
  assert_int_equal(perigee_send(group, t, 0, 0), PERIGEE_EINVAL); /* nobody to send to */
  assert_string_equal(told(all, text, sizeof(text)), "error#0 error#0 error#0 ");
  assert_int_equal(all->codes[0], PERIGEE_ERANGE);
  assert_int_equal(all->events[2].op, PERIGEE_OP_SEND);
  assert_int_equal(all->events[2].status, PERIGEE_WORK_FAILED);
  perigee_tensor_unref(t);
  assert_int_equal(perigee_group_close(group), 0);
  assert_int_equal(perigee_barrier(group), PERIGEE_ECLOSED);
  assert_int_equal(all->n, 3);
  perigee_group_unref(group);
  free(all);
}

static void hook_arguments_are_checked(void **state) {
  (void)state;
  perigee_group *group = open_alone("native", 0, 1);
  perigee_hook *hook = NULL;
  assert_int_equal(perigee_group_on(group, PERIGEE_EVENT_DONE, NULL, NULL, NULL, &hook),
                   PERIGEE_EINVAL);
  assert_int_equal(perigee_group_on(group, 0, note, NULL, NULL, &hook), PERIGEE_EINVAL);
  assert_int_equal(perigee_group_on(group, 1 << 5, note, NULL, NULL, &hook), PERIGEE_EINVAL);
  perigee_hook_options opts = {0};
  assert_int_equal(perigee_group_on(group, 1, note, NULL, &opts, &hook), PERIGEE_EINVAL);
  assert_null(hook);
  assert_int_equal(perigee_group_wait_for_pending_works(group, 0), PERIGEE_ERANGE);
  assert_int_equal(perigee_group_close(group), 0);
  assert_int_equal(perigee_group_on(group, 1, note, NULL, NULL, &hook), PERIGEE_ECLOSED);
  perigee_group_unref(group);
  perigee_hook_unref(NULL);
}

static void messages_fn(perigee_group *group, void *arg) {
  (void)arg;
  char text[256];
  int me = perigee_group_rank(group), other = 1 - me;
  notes *all = listen(group, PERIGEE_EVENT_ALL, 0, NULL);
  perigee_tensor *t = f32_of(5, 1);
  if (me == 0) {
    CHECK(perigee_send(group, t, 1, 3) == 0);
    CHECK(perigee_recv(group, t, 1, 3) == 0);
  } else {
    perigee_request req = request_out_in(PERIGEE_OP_RECV, &t, 1, 0, NULL, 0, 0);
    req.peer = 0;
    req.tag = 3;
    perigee_work *work;
    REQUIRE(perigee_group_submit(group, &req, &work) == 0);
    settle(group); /* nobody waits for the work itself */
    CHECK(perigee_work_get_status(work) == PERIGEE_WORK_DONE);
    perigee_work_unref(work);
    CHECK(perigee_send(group, t, 0, 3) == 0);
  }
  settle(group);
  CHECK(strcmp(told(all, text, sizeof(text)), "start#1 done#1 start#2 done#2 ") == 0);
  CHECK(all->events[1].peer == other && all->events[1].bytes == 20);
  CHECK(strcmp(all->events[1].op_name, me == 0 ? "send" : "recv") == 0);
  CHECK(perigee_barrier(group) == 0);
  CHECK(perigee_group_close(group) == 0);
  CHECK(atomic_load(&all->drops) == 1);
  perigee_tensor_unref(t);
  free(all);
}

static void messages(void **state) {
  (void)state;
  with_ranks(2, messages_fn, NULL);
}

/* ---- layers -------------------------------------------------------------------------------------- */

/* allreduce: two operations below. broadcast: one future for all calls. barrier: fails at once. */
typedef struct layer {
  perigee_layer *below;
  perigee_work *cached;
} layer;

static int layer_open(void *backend, const perigee_layer_info *info, void **self_p) {
  (void)backend;
  layer *l = calloc(1, sizeof(*l));
  REQUIRE(l != NULL);
  REQUIRE(perigee_future_create(NULL, NULL, PERIGEE_NEVER, &l->cached) == 0);
  l->below = info->layer;
  *self_p = l;
  return 0;
}

static void layer_close(void *self) {
  layer *l = self;
  perigee_work_unref(l->cached);
  free(l);
}

static perigee_work *cached; /* of the layer that was used last */
static perigee_group *hooked_group;

static int layer_submit(void *self, const perigee_request *req, perigee_work **work_p) {
  layer *l = self;
  if (req->op == PERIGEE_OP_BARRIER)
    return perigee__fail(PERIGEE_ESTATE, "not today");
  if (req->op == PERIGEE_OP_BROADCAST) {
    cached = l->cached;
    *work_p = perigee_work_ref(l->cached);
    return 0;
  }
  PERIGEE_TRY(perigee_layer_run(l->below, req));
  if (hooked_group != NULL) /* it would wait for itself */
    CHECK(perigee_group_wait_for_pending_works(hooked_group, 20 * PERIGEE_NS_PER_SEC) ==
          PERIGEE_EDEADLK);
  return perigee_layer_submit(l->below, req, work_p);
}

static bool layer_handles(void *self, int op) {
  (void)self;
  return op == PERIGEE_OP_ALLREDUCE || op == PERIGEE_OP_BROADCAST || op == PERIGEE_OP_BARRIER;
}

static perigee_group *open_layered(void) {
  static const perigee_backend_ops_v1 ops = {.size = sizeof(ops),
                                             .abi = 1,
                                             .open = layer_open,
                                             .close = layer_close,
                                             .handles = layer_handles,
                                             .submit = layer_submit};
  REQUIRE(perigee_backend_register("hooked_layer", "native", &ops, NULL) == 0);
  return open_alone("hooked_layer(native)", 0, 1);
}

static void only_the_outermost_operation_is_told(void **state) {
  (void)state;
  char text[256];
  perigee_group *group = open_layered();
  notes *all = listen(group, PERIGEE_EVENT_ALL, 0, NULL);
  perigee_tensor *t = f32_of(3, 1);
  hooked_group = group;
  assert_int_equal(perigee_allreduce(group, t, PERIGEE_REDOP_SUM), 0);
  perigee_work *work = submit_one(group, PERIGEE_OP_ALLREDUCE, &t);
  hooked_group = NULL;
  assert_int_equal(perigee_work_wait(work, 20 * PERIGEE_NS_PER_SEC), 0);
  assert_int_equal(perigee_barrier(group), PERIGEE_ESTATE);
  perigee_request req = request_inplace(PERIGEE_OP_BARRIER, NULL, 0);
  perigee_work *none;
  assert_int_equal(perigee_group_submit(group, &req, &none), PERIGEE_ESTATE);
  settle(group);
  assert_string_equal(told(all, text, sizeof(text)),
                      "start#1 done#1 start#2 done#2 start#3 error#3 start#4 error#4 ");
  assert_int_equal(all->codes[7], PERIGEE_ESTATE);
  perigee_work_unref(work);
  perigee_tensor_unref(t);
  drop_group(group);
  free(all);
}

/* Before the first hook works only count; a work that stands for several operations counts for each. */
static void one_work_may_be_several_operations(void **state) {
  (void)state;
  char text[256];
  perigee_group *group = open_layered();
  perigee_tensor *t = f32_of(3, 1);
  perigee_work *works[5];
  works[0] = submit_one(group, PERIGEE_OP_BROADCAST, &t);
  works[1] = submit_one(group, PERIGEE_OP_BROADCAST, &t);
  notes *all = listen(group, PERIGEE_EVENT_ALL, 0, NULL);
  for (int i = 2; i < 5; i++)
    works[i] = submit_one(group, PERIGEE_OP_BROADCAST, &t);
  assert_int_equal(perigee_group_wait_for_pending_works(group, 20 * MS), PERIGEE_EAGAIN);
  assert_string_equal(told(all, text, sizeof(text)), "start#3 start#4 start#5 ");
  assert_true(perigee_future_set_result(cached));
  settle(group);
  assert_string_equal(told(all, text, sizeof(text)),
                      "start#3 start#4 start#5 done#3 done#4 done#5 ");
  works[0] = (perigee_work_unref(works[0]), submit_one(group, PERIGEE_OP_BROADCAST, &t));
  settle(group); /* it had ended */
  assert_int_equal(all->n, 8);
  for (int i = 0; i < 5; i++)
    perigee_work_unref(works[i]);
  perigee_tensor_unref(t);
  drop_group(group);
  free(all);
}

/* ---- hooks that do things ------------------------------------------------------------------------ */

typedef struct doing {
  perigee_group *group;
  perigee_hook *self, *other;
  notes *added;
  perigee_tensor *t;
  perigee_work *work;
  int calls, rc;
  _Atomic bool in, go;
} doing;

static void remove_self_and_other(const perigee_event *event, void *arg) {
  (void)event;
  doing *d = arg;
  d->calls++;
  perigee_hook_remove(d->self);
  perigee_hook_remove(d->self);
  perigee_hook_remove(d->other);
  d->added = listen(d->group, PERIGEE_EVENT_DONE, 0, NULL);
}

static void removal_and_registration_inside_a_hook(void **state) {
  (void)state;
  perigee_group *group = open_alone("native", 0, 1);
  doing d = {.group = group};
  notes *first = listen(group, PERIGEE_EVENT_DONE, 0, NULL);
  assert_int_equal(
      perigee_group_on(group, PERIGEE_EVENT_DONE, remove_self_and_other, &d, NULL, &d.self), 0);
  notes *other = listen(group, PERIGEE_EVENT_DONE, 0, &d.other);
  assert_int_equal(perigee_barrier(group), 0);
  assert_int_equal(d.calls, 1);
  assert_int_equal(first->n, 1);
  assert_int_equal(other->n, 0); /* removed before its turn came */
  assert_int_equal(atomic_load(&other->drops), 1);
  assert_int_equal(d.added->n, 0); /* the operation began before it */
  assert_int_equal(perigee_barrier(group), 0);
  assert_int_equal(d.calls, 1);
  assert_int_equal(first->n, 2);
  assert_int_equal(d.added->n, 1);
  drop_group(group);
  assert_int_equal(atomic_load(&first->drops) + atomic_load(&d.added->drops), 2);
  perigee_hook_remove(d.other); /* the handle outlives the group */
  perigee_hook_unref(d.self);
  perigee_hook_unref(d.other);
  free(first);
  free(other);
  free(d.added);
}

static void count_call(const perigee_event *event, void *arg) {
  (void)event;
  ++*(int *)arg;
}

static void the_same_function_twice(void **state) {
  (void)state;
  perigee_group *group = open_alone("native", 0, 1);
  int calls = 0;
  perigee_hook *hooks[2];
  for (int i = 0; i < 2; i++)
    assert_int_equal(
        perigee_group_on(group, PERIGEE_EVENT_DONE, count_call, &calls, NULL, &hooks[i]), 0);
  assert_int_equal(perigee_barrier(group), 0);
  assert_int_equal(calls, 2);
  perigee_hook_remove(hooks[0]);
  assert_int_equal(perigee_barrier(group), 0);
  assert_int_equal(calls, 3);
  perigee_hook_remove(hooks[1]);
  assert_int_equal(perigee_barrier(group), 0);
  assert_int_equal(calls, 3);
  for (int i = 0; i < 2; i++)
    perigee_hook_unref(hooks[i]);
  drop_group(group);
}

static void submit_three(const perigee_event *event, void *arg) {
  (void)event;
  doing *d = arg;
  if (++d->calls > 3)
    return;
  d->rc = perigee_barrier(d->group); /* must not wait */
  CHECK(perigee_group_wait_for_pending_works(d->group, 1) == PERIGEE_EDEADLK);
  perigee_request req = request_inplace(PERIGEE_OP_ALLREDUCE, &d->t, 1);
  perigee_work *work;
  REQUIRE(perigee_group_submit(d->group, &req, &work) == 0);
  perigee_work_unref(work);
}

static void a_hook_may_submit_but_not_wait(void **state) {
  (void)state;
  perigee_group *group = open_alone("native", 0, 1);
  doing d = {.group = group, .t = f32_of(1, 1)};
  assert_int_equal(perigee_group_on(group, PERIGEE_EVENT_DONE, submit_three, &d, NULL, NULL), 0);
  assert_int_equal(perigee_barrier(group), 0);
  settle(group);
  assert_int_equal(d.calls, 4); /* the barrier and three of its own */
  assert_int_equal(d.rc, PERIGEE_EDEADLK);
  drop_group(group);
  perigee_tensor_unref(d.t);
}

static void close_group(const perigee_event *event, void *arg) {
  doing *d = arg;
  d->calls++;
  CHECK(event->seq == 1 || event->kind == PERIGEE_EVENT_ERROR);
  CHECK(perigee_group_close(d->group) == 0);
}

static void a_hook_may_close_the_group(void **state) {
  (void)state;
  perigee_group *group = open_alone("native", 0, 1);
  doing d = {.group = group};
  notes *all = listen(group, PERIGEE_EVENT_ALL, 0, NULL);
  assert_int_equal(perigee_group_on(group, PERIGEE_EVENT_DONE, close_group, &d, NULL, NULL), 0);
  assert_int_equal(perigee_barrier(group), 0);
  assert_int_equal(perigee_group_close(group), 0); /* waits for the other close */
  assert_int_equal(d.calls, 1);
  assert_int_equal(all->n, 2);
  assert_int_equal(atomic_load(&all->drops), 1);
  perigee_group_unref(group);
  free(all);
}

/* ---- failure ------------------------------------------------------------------------------------- */

static void abort_fn(perigee_group *group, void *arg) {
  (void)arg;
  int me = perigee_group_rank(group);
  notes *aborts = listen(group, PERIGEE_EVENT_ABORT, 0, NULL);
  notes *ends = listen(group, PERIGEE_EVENT_DONE | PERIGEE_EVENT_ERROR, 0, NULL);
  CHECK(perigee_barrier(group) == 0);
  if (me == 0) {
    perigee_tensor *t = f32_of(1, 1);
    perigee_work *work = submit_one(group, PERIGEE_OP_ALLREDUCE, &t); /* rank 1 never comes */
    CHECK(perigee_group_abort(group, "enough") == 0);
    CHECK(perigee_work_wait(work, 20 * PERIGEE_NS_PER_SEC) == PERIGEE_EABORTED);
    CHECK(perigee_group_abort(group, "again") == 0);
    perigee_work_unref(work);
    perigee_tensor_unref(t);
  }
  int64_t until = perigee__deadline_in(20 * PERIGEE_NS_PER_SEC);
  while (perigee_group_failed(group, NULL) == 0 && !perigee__passed(until))
    perigee__sleep_ns(MS);
  CHECK(perigee_barrier(group) == PERIGEE_EABORTED);
  CHECK(perigee_group_close(group) == 0);
  CHECK(aborts->n == 1 && aborts->codes[0] == PERIGEE_EABORTED);
  CHECK(aborts->events[0].status == PERIGEE_WORK_ABORTED && aborts->events[0].op == -1);
  CHECK(ends->n == (me == 0 ? 3 : 2));
  CHECK(ends->events[0].kind == PERIGEE_EVENT_DONE);
  CHECK(ends->events[1].status == PERIGEE_WORK_ABORTED);
  free(aborts);
  free(ends);
}

static void an_abort_is_told_once_on_every_rank(void **state) {
  (void)state;
  with_ranks(2, abort_fn, NULL);
}

static void late_fn(perigee_group *group, void *arg) {
  _Atomic bool *over = arg;
  notes *all = listen(group, PERIGEE_EVENT_ALL & ~(unsigned)PERIGEE_EVENT_STALL, 0, NULL);
  if (perigee_group_rank(group) == 0) {
    perigee_request req;
    perigee_request_init(&req, PERIGEE_OP_BARRIER);
    req.timeout_ns = 50 * MS;
    CHECK(perigee_group_run(group, &req) == PERIGEE_ETIMEDOUT);
    atomic_store(over, true);
    CHECK(perigee_group_close(group) == 0);
    CHECK(all->n == 3 && all->events[0].kind == PERIGEE_EVENT_START);
    int e = all->events[1].kind == PERIGEE_EVENT_ERROR
                ? 1
                : 2; /* the abort comes from another thread */
    CHECK(all->events[e].kind == PERIGEE_EVENT_ERROR);
    CHECK(all->events[e].status == PERIGEE_WORK_TIMEDOUT && all->codes[e] == PERIGEE_ETIMEDOUT);
    CHECK(all->events[3 - e].kind == PERIGEE_EVENT_ABORT && all->codes[3 - e] == PERIGEE_ETIMEDOUT);
    CHECK(all->events[3 - e].op == PERIGEE_OP_BARRIER && all->events[3 - e].seq == 1);
  } else {
    while (!atomic_load(over))
      perigee__sleep_ns(MS);
    CHECK(perigee_group_close(group) == 0);
  }
  free(all);
}

static void a_timeout_is_an_error_and_the_end_of_the_group(void **state) {
  (void)state;
  _Atomic bool over = false;
  with_ranks(2, late_fn, &over);
}

static void close_fn_pending(perigee_group *group, void *arg) {
  (void)arg;
  char text[256];
  if (perigee_group_rank(group) != 0)
    return; /* never comes */
  notes *all = listen(group, PERIGEE_EVENT_ALL, 0, NULL);
  perigee_tensor *t = f32_of(1, 1);
  perigee_work *work = submit_one(group, PERIGEE_OP_ALLREDUCE, &t);
  perigee_request req = request_out_in(PERIGEE_OP_RECV, &t, 1, 0, NULL, 0, 0);
  req.peer = 1;
  perigee_work *message;
  REQUIRE(perigee_group_submit(group, &req, &message) == 0);
  CHECK(perigee_group_close(group) == 0);
  CHECK(atomic_load(&all->drops) == 1);
  CHECK(perigee_work_error(work)->code == PERIGEE_ECLOSED);
  /* The numbers of messages are their own. No abort: a close is no failure. */
  told(all, text, sizeof(text));
  CHECK(strcmp(text, "start#1 start#1 error#1 error#1 ") == 0);
  CHECK(all->events[2].status == PERIGEE_WORK_ABORTED && all->codes[2] == PERIGEE_ECLOSED);
  perigee_work_unref(message);
  perigee_work_unref(work);
  perigee_tensor_unref(t);
  free(all);
}

static void close_tells_of_what_it_ends(void **state) {
  (void)state;
  with_ranks(2, close_fn_pending, NULL);
}

/* ---- stalls -------------------------------------------------------------------------------------- */

static void stall_fn(perigee_group *group, void *arg) {
  _Atomic bool *told_twice = arg;
  char text[256];
  int64_t until = perigee__deadline_in(20 * PERIGEE_NS_PER_SEC);
  if (perigee_group_rank(group) != 0) {
    while (!atomic_load(told_twice) && !perigee__passed(until))
      perigee__sleep_ns(MS);
    CHECK(perigee_barrier(group) == 0);
    return;
  }
  notes *soon = listen(group, PERIGEE_EVENT_STALL | PERIGEE_EVENT_DONE, 20 * MS, NULL);
  notes *later = listen(group, PERIGEE_EVENT_STALL, 60 * MS, NULL);
  notes *never = listen(group, PERIGEE_EVENT_STALL, 3600 * PERIGEE_NS_PER_SEC, NULL);
  perigee_work *work = submit_one(group, PERIGEE_OP_BARRIER, NULL);
  while (atomic_load(&soon->seen) + atomic_load(&later->seen) < 2 && !perigee__passed(until))
    perigee__sleep_ns(MS);
  notes *late = listen(group, PERIGEE_EVENT_STALL, MS, NULL); /* the barrier began before it */
  perigee__sleep_ns(50 * MS);
  atomic_store(told_twice, true);
  CHECK(perigee_work_wait(work, 20 * PERIGEE_NS_PER_SEC) == 0);
  perigee_work_unref(work);
  CHECK(perigee_group_close(group) == 0);
  CHECK(strcmp(told(soon, text, sizeof(text)), "stall#1 done#1 ") == 0);
  CHECK(soon->events[0].active_duration >= 20 * MS && soon->events[0].time_finished == 0);
  CHECK(soon->events[0].status == PERIGEE_WORK_PENDING);
  CHECK(strcmp(told(later, text, sizeof(text)), "stall#1 ") == 0);
  CHECK(later->events[0].active_duration >= 60 * MS);
  CHECK(never->n == 0 && late->n == 0);
  CHECK(atomic_load(&never->drops) == 1);
  free(soon);
  free(later);
  free(never);
  free(late);
}

static void a_stall_is_told_once_for_each_limit(void **state) {
  (void)state;
  _Atomic bool told_twice = false;
  with_ranks(2, stall_fn, &told_twice);
}

static void what_ended_in_time_has_not_stalled(void **state) {
  (void)state;
  perigee_group *group = open_alone("native", 0, 1);
  notes *all = listen(group, PERIGEE_EVENT_STALL, 30 * MS, NULL);
  assert_int_equal(perigee_barrier(group), 0);
  perigee__sleep_ns(80 * MS); /* the alarm for it goes off */
  drop_group(group);
  assert_int_equal(all->n, 0);
  free(all);
}

/* ---- drop ---------------------------------------------------------------------------------------- */

static void hold_call(const perigee_event *event, void *arg) {
  (void)event;
  doing *d = arg;
  atomic_store(&d->in, true);
  int64_t until = perigee__deadline_in(20 * PERIGEE_NS_PER_SEC);
  while (!atomic_load(&d->go) && !perigee__passed(until))
    perigee__sleep_ns(MS);
  CHECK(d->rc == 0); /* not dropped while it runs */
}

static void note_held_drop(void *arg) { ((doing *)arg)->rc = 1; }

static void *barrier_main(void *arg) { return (void *)(intptr_t)perigee_barrier(arg); }

static void a_hook_is_dropped_after_its_call(void **state) {
  (void)state;
  perigee_group *group = open_alone("native", 0, 1);
  doing d = {.group = group};
  perigee_hook_options opts;
  perigee_hook_options_init(&opts);
  opts.drop = note_held_drop;
  assert_int_equal(perigee_group_on(group, PERIGEE_EVENT_START, hold_call, &d, &opts, &d.self), 0);
  pthread_t thread;
  assert_int_equal(pthread_create(&thread, NULL, barrier_main, group), 0);
  while (!atomic_load(&d.in))
    perigee__sleep_ns(MS);
  perigee_hook_remove(d.self);
  atomic_store(&d.go, true);
  void *rc;
  pthread_join(thread, &rc);
  assert_int_equal((intptr_t)rc, 0);
  assert_int_equal(d.rc, 1);
  perigee_hook_unref(d.self);
  drop_group(group);
}

static int check_all(void **state) {
  (void)state;
  assert_no_failures();
  return 0;
}

int main(void) {
  program_deadline(120);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(blocking_calls_and_works),
      cmocka_unit_test(refused_calls),
      cmocka_unit_test(hook_arguments_are_checked),
      cmocka_unit_test(messages),
      cmocka_unit_test(only_the_outermost_operation_is_told),
      cmocka_unit_test(one_work_may_be_several_operations),
      cmocka_unit_test(removal_and_registration_inside_a_hook),
      cmocka_unit_test(the_same_function_twice),
      cmocka_unit_test(a_hook_may_submit_but_not_wait),
      cmocka_unit_test(a_hook_may_close_the_group),
      cmocka_unit_test(an_abort_is_told_once_on_every_rank),
      cmocka_unit_test(a_timeout_is_an_error_and_the_end_of_the_group),
      cmocka_unit_test(close_tells_of_what_it_ends),
      cmocka_unit_test(a_stall_is_told_once_for_each_limit),
      cmocka_unit_test(what_ended_in_time_has_not_stalled),
      cmocka_unit_test(a_hook_is_dropped_after_its_call),
  };
  return cmocka_run_group_tests(tests, NULL, check_all);
}
