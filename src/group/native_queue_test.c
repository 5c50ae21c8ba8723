/* Defends: collectives of a group run once, in their order, whoever waits or nobody; each within its own time. */
#include "group/testing.h"

#include "group/work.h"

static perigee_request bare(int op) {
  perigee_request req;
  perigee_request_init(&req, op);
  return req;
}

/* ---- in flight --------------------------------------------------------------------------------- */

enum {
  MANY = 1000
};

static void many_broadcasts(perigee_group *group, void *arg) {
  int how = *(int *)arg, me = perigee_group_rank(group), n = perigee_group_size(group);
  static _Thread_local perigee_work *works[MANY];
  static _Thread_local perigee_tensor *tensors[MANY];
  for (int i = 0; i < MANY; i++) {
    tensors[i] = f32_of(3, (float)(i * 10 + me));
    perigee_request req = request_inplace(PERIGEE_OP_BROADCAST, &tensors[i], 1);
    req.root = i % n;
    works[i] = submit(group, &req);
    CHECK(perigee_work_seq(works[i]) == perigee_group_seq(group));
  }
  if (how == 2) /* nobody waits */
    for (int64_t start = perigee__now_ns();
         !perigee_work_is_completed(works[MANY - 1]) && ms_since(start) < 20000;)
      perigee__sleep_ns(MS);
  for (int j = 0; j < MANY; j++) {
    int i = how == 1 ? MANY - 1 - j : j;
    if (how == 2)
      CHECK(perigee_work_get_status(works[i]) == PERIGEE_WORK_DONE);
    else
      CHECK(perigee_work_wait(works[i], PERIGEE_TIMEOUT_NONE) == 0);
    CHECK(f32_is(tensors[i], (float)(i * 10 + i % n)));
    perigee_work_unref(works[i]);
    perigee_tensor_unref(tensors[i]);
  }
}

static void test_many_in_flight(void **state) {
  (void)state;
  for (int how = 0; how < 3; how++)
    for (int n = 2; n <= 4; n += 2)
      with_ranks(n, many_broadcasts, &how);
}

/* Large and small, none of them waited for, while the callers do something else. */
static void unattended(perigee_group *group, void *arg) {
  int64_t numel = *(int64_t *)arg;
  float n = (float)perigee_group_size(group);
  perigee_tensor *t = f32_of(numel, 1);
  perigee_request req = request_inplace(PERIGEE_OP_ALLREDUCE, &t, 1);
  for (int i = 0; i < 5; i++) {
    perigee_work *work = submit(group, &req);
    int64_t start = perigee__now_ns();
    while (!perigee_work_is_completed(work) && ms_since(start) < 20000)
      perigee__sleep_ns(MS);
    CHECK(perigee_work_get_status(work) == PERIGEE_WORK_DONE);
    perigee_work_unref(work);
    perigee__sleep_ns(i * 10 * MS); /* the progress thread naps, and sleeps for good */
  }
  float expected = n * n * n * n * n;
  CHECK(f32_is(t, expected));
  perigee_tensor_unref(t);
}
static void test_unattended(void **state) {
  (void)state;
  for (int64_t numel = 2; numel < 3000000; numel *= 1024)
    with_ranks(2, unattended, &numel);
}

/* Synchronous calls between asynchronous ones take their turn. */
static void mixed(perigee_group *group, void *arg) {
  (void)arg;
  perigee_tensor *t = f32_of(1, 1), *u = f32_of(1, 1);
  for (int i = 0; i < 60; i++) {
    perigee_request req = request_inplace(PERIGEE_OP_ALLREDUCE, &t, 1);
    req.redop.kind = PERIGEE_REDOP_AVG;
    perigee_work *works[4];
    for (int j = 0; j < 4; j++)
      works[j] = submit(group, &req);
    CHECK(perigee_allreduce(group, u, PERIGEE_REDOP_AVG) == 0);
    for (int j = 0; j < 4; j++) {
      CHECK(perigee_work_is_completed(works[j])); /* they stood before it */
      CHECK(perigee_work_wait(works[j], 0) == 0);
      perigee_work_unref(works[j]);
    }
  }
  CHECK(f32_is(t, 1) && f32_is(u, 1));
  perigee_tensor_unref(t);
  perigee_tensor_unref(u);
}
static void test_synchronous_between_asynchronous(void **state) {
  (void)state, with_ranks(3, mixed, NULL);
}

/* The request lives in the work: nothing of the caller's is used after submit. */
static void caller_forgets(perigee_group *group, void *arg) {
  (void)arg;
  int me = perigee_group_rank(group), n = perigee_group_size(group);
  perigee_work *works[20];
  for (int i = 0; i < 20; i++) {
    int64_t *splits = malloc((size_t)n * sizeof(*splits));
    perigee_tensor **list = malloc(2 * sizeof(*list));
    REQUIRE(splits != NULL && list != NULL);
    for (int r = 0; r < n; r++)
      splits[r] = 2;
    list[0] = f32_of(2 * n, -1);
    list[1] = f32_of(2 * n, (float)(me + i));
    perigee_request *req = malloc(sizeof(*req));
    REQUIRE(req != NULL);
    *req = request_out_in(PERIGEE_OP_ALLTOALL_BASE, &list[0], 1, 0, &list[1], 1, 0);
    req->in_splits = req->out_splits = splits;
    req->n_in_splits = req->n_out_splits = (uint32_t)n;
    works[i] = submit(group, req);
    for (int r = 0; r < n; r++)
      splits[r] = 1 << 20;
    perigee_tensor_unref(list[0]);
    perigee_tensor_unref(list[1]);
    list[0] = list[1] = NULL;
    memset(req, 0xff, sizeof(*req));
    free(splits);
    free(list);
    free(req);
  }
  for (int i = 0; i < 20; i++) {
    CHECK(perigee_work_wait(works[i], PERIGEE_TIMEOUT_NONE) == 0);
    const perigee_tensor *out = perigee_work_outputs(works[i]).v[0];
    for (int r = 0; r < n; r++)
      CHECK((int)f32_at(out, 2 * r) == r + i);
    perigee_work_unref(works[i]);
  }
}
static void test_the_work_holds_the_request(void **state) {
  (void)state, with_ranks(3, caller_forgets, NULL);
}

/* ---- waiting ----------------------------------------------------------------------------------- */

static void short_waits(perigee_group *group, void *arg) {
  (void)arg;
  int me = perigee_group_rank(group);
  perigee_tensor *t = f32_of(2, 1);
  perigee_request req = request_inplace(PERIGEE_OP_ALLREDUCE, &t, 1);
  if (me == 0) {
    perigee_work *work = submit(group, &req);
    for (int i = 0; i < 3; i++) {
      int64_t start = perigee__now_ns();
      CHECK(perigee_work_wait(work, 30 * MS) == PERIGEE_EAGAIN);
      CHECK(ms_since(start) >= 30 && ms_since(start) < 30 + LATE_MS);
      CHECK(last_error_has("still pending"));
      CHECK(perigee_work_get_status(work) == PERIGEE_WORK_PENDING);
    }
    CHECK(perigee_work_wait(work, 0) == PERIGEE_EAGAIN);
    uint32_t set = 1;
    CHECK(perigee_work_wait_interruptible(work, PERIGEE_TIMEOUT_NONE, &set) == 1);
    CHECK(perigee_work_wait(work, 10 * PERIGEE_NS_PER_SEC) == 0);
    CHECK(f32_is(t, 2));
    perigee_work_unref(work);
  } else {
    perigee__sleep_ns(150 * MS);
    CHECK(perigee_group_run(group, &req) == 0);
  }
  perigee_tensor_unref(t);
}
static void test_short_waits_leave_it_pending(void **state) {
  (void)state, with_ranks(2, short_waits, NULL);
}

typedef struct interrupter {
  perigee_work *work;
  _Atomic uint32_t word;
} interrupter;

static void *interrupt_soon(void *arg) {
  interrupter *self = arg;
  perigee__sleep_ns(40 * MS);
  atomic_store(&self->word, 1);
  perigee_work_interrupt(self->work);
  return NULL;
}

/* A wait that can be interrupted comes out although the collective it waits for is under way. */
static void interrupted(perigee_group *group, void *arg) {
  _Atomic int *out = arg;
  perigee_request req = bare(PERIGEE_OP_BARRIER);
  if (perigee_group_rank(group) == 1) { /* comes when rank 0 has come out of its wait */
    for (int64_t start = perigee__now_ns(); atomic_load(out) == 0 && ms_since(start) < 5000;)
      perigee__sleep_ns(MS);
    CHECK(perigee_group_run(group, &req) == 0);
    return;
  }
  interrupter self = {.work = submit(group, &req)};
  pthread_t thread;
  REQUIRE(pthread_create(&thread, NULL, interrupt_soon, &self) == 0);
  int64_t start = perigee__now_ns();
  CHECK(perigee_work_wait_interruptible(self.work, PERIGEE_TIMEOUT_NONE,
                                        (const uint32_t *)(void *)&self.word) == 1);
  CHECK(ms_since(start) < 40 + LATE_MS);
  atomic_store(out, 1);
  pthread_join(thread, NULL);
  CHECK(perigee_work_wait(self.work, PERIGEE_TIMEOUT_NONE) == 0);
  perigee_work_unref(self.work);
}
static void test_interrupt(void **state) {
  (void)state;
  _Atomic int out = 0;
  with_ranks(2, interrupted, &out);
}

/* Each waiter of a queue comes out when its own work ends, not when the queue is empty. */
typedef struct timed_wait {
  perigee_work *work;
  int64_t out_ns;
} timed_wait;

static void *wait_timed(void *arg) {
  timed_wait *self = arg;
  CHECK(perigee_work_wait(self->work, 10 * PERIGEE_NS_PER_SEC) == 0);
  self->out_ns = perigee__now_ns();
  return NULL;
}

static void waiters_come_out(perigee_group *group, void *arg) {
  (void)arg;
  perigee_request req = bare(PERIGEE_OP_BARRIER);
  if (perigee_group_rank(group) == 1) {
    for (int i = 0; i < 3; i++) {
      perigee__sleep_ns(60 * MS);
      CHECK(perigee_group_run(group, &req) == 0);
    }
    return;
  }
  timed_wait waits[3];
  pthread_t threads[3];
  for (int i = 0; i < 3; i++)
    waits[i].work = submit(group, &req);
  for (int i = 0; i < 3; i++)
    REQUIRE(pthread_create(&threads[i], NULL, wait_timed, &waits[i]) == 0);
  for (int i = 0; i < 3; i++)
    pthread_join(threads[i], NULL);
  for (int i = 0; i < 3; i++) /* before the next one, which ends 60 ms later */
    CHECK(i == 2 || waits[i].out_ns < perigee_work_finished_ns(waits[i + 1].work));
  for (int i = 0; i < 3; i++)
    perigee_work_unref(waits[i].work);
}
static void test_waiters_come_out_one_by_one(void **state) {
  (void)state, with_ranks(2, waiters_come_out, NULL);
}

static void in_callback(perigee_work *work, void *arg) {
  perigee_group *group = arg;
  (void)work;
  perigee_request req = bare(PERIGEE_OP_BARRIER);
  CHECK(perigee_group_run(group, &req) == PERIGEE_EDEADLK);
  perigee_work *next = submit(group, &req); /* a callback may issue work */
  CHECK(perigee_work_wait(next, PERIGEE_TIMEOUT_NONE) == PERIGEE_EDEADLK);
  perigee_work_unref(next);
}

static void callbacks(perigee_group *group, void *arg) {
  (void)arg;
  perigee_request req = bare(PERIGEE_OP_BARRIER);
  perigee_work *work = submit(group, &req);
  CHECK(perigee_work_on_done(work, in_callback, group) == 0);
  CHECK(perigee_work_wait(work, PERIGEE_TIMEOUT_NONE) == 0);
  perigee_work_unref(work);
  int64_t start = perigee__now_ns();
  while (perigee_group_seq(group) < 2 && ms_since(start) < 2000)
    perigee__sleep_ns(100000); /* the callback may run on the progress thread */
  CHECK(perigee_barrier(group) == 0);
  CHECK(perigee_group_seq(group) == 3);
}
static void test_callbacks_issue_work(void **state) { (void)state, with_ranks(2, callbacks, NULL); }

/* ---- time -------------------------------------------------------------------------------------- */

static void sooner_behind_later(perigee_group *group, void *arg) {
  (void)arg;
  perigee_request slow = bare(PERIGEE_OP_BARRIER), quick = slow;
  slow.timeout_ns = 10 * PERIGEE_NS_PER_SEC;
  quick.timeout_ns = 100 * MS;
  if (perigee_group_rank(group) != 0) {
    int64_t start = perigee__now_ns();
    while (perigee_group_failed(group, NULL) == 0 && ms_since(start) < 5000)
      perigee__sleep_ns(MS);
    perigee_error error;
    CHECK(perigee_group_failed(group, &error) == PERIGEE_ETIMEDOUT);
    CHECK(error.seq == 2 && error.origin == 0);
    return;
  }
  int64_t start = perigee__now_ns();
  perigee_work *first = submit(group, &slow), *second = submit(group, &quick);
  CHECK(perigee_work_wait(second, PERIGEE_TIMEOUT_NONE) == PERIGEE_ETIMEDOUT);
  CHECK(ms_since(start) >= 100 && ms_since(start) < 100 + LATE_MS);
  CHECK(last_error_has("timed out after 0.1 s behind an operation before it"));
  CHECK(perigee_last_error()->seq == 2);
  CHECK(perigee_work_wait(first, PERIGEE_TIMEOUT_NONE) == PERIGEE_EABORTED);
  CHECK(last_error_has("timed out after 0.1 s behind"));
  perigee_work_unref(first);
  perigee_work_unref(second);
}
static void test_time_runs_out_in_the_queue(void **state) {
  (void)state, with_ranks(2, sooner_behind_later, NULL);
}

/* ---- several groups ---------------------------------------------------------------------------- */

enum {
  GROUPS = 4
};

static void open_children(perigee_group *group, perigee_group **children) {
  int all[RANKS_MAX];
  for (int r = 0; r < perigee_group_size(group); r++)
    all[r] = r;
  for (int i = 0; i < GROUPS; i++)
    REQUIRE(perigee_group_subgroup(group, all, perigee_group_size(group), NULL, &children[i]) == 0);
}

typedef struct worker {
  perigee_group **children;
  int index;
} worker;

/* Threads of a rank start their operations on all groups, each in another order, and then wait: whatever order that gives on a
 * group, no thread holds up an operation that another rank waits for. */
static void *work_on_groups(void *arg) {
  worker *self = arg;
  for (int i = 0; i < 60; i++) {
    perigee_work *works[GROUPS];
    perigee_tensor *t[GROUPS];
    for (int j = 0; j < GROUPS; j++) {
      int which =
          self->index % 2 ? (self->index + j) % GROUPS : (self->index + GROUPS - j) % GROUPS;
      t[j] = f32_of(64, 1);
      perigee_request req = request_inplace(PERIGEE_OP_ALLREDUCE, &t[j], 1);
      works[j] = submit(self->children[which], &req);
    }
    for (int j = 0; j < GROUPS; j++) {
      CHECK(perigee_work_wait(works[j], PERIGEE_TIMEOUT_NONE) == 0);
      CHECK(f32_is(t[j], (float)perigee_group_size(self->children[0])));
      perigee_work_unref(works[j]);
      perigee_tensor_unref(t[j]);
    }
  }
  return NULL;
}

static void *work_on_one(void *arg) {
  worker *self = arg;
  perigee_group *group = self->children[self->index];
  perigee_tensor *t = f32_of(64, 1);
  for (int i = 0; i < 200; i++)
    CHECK(perigee_allreduce(group, t, PERIGEE_REDOP_AVG) == 0);
  CHECK(f32_is(t, 1));
  perigee_tensor_unref(t);
  return NULL;
}

static void run_workers(perigee_group **children, void *(*fn)(void *arg)) {
  pthread_t threads[GROUPS];
  worker workers[GROUPS];
  for (int i = 0; i < GROUPS; i++) {
    workers[i] = (worker){children, i};
    REQUIRE(pthread_create(&threads[i], NULL, fn, &workers[i]) == 0);
  }
  for (int i = 0; i < GROUPS; i++)
    pthread_join(threads[i], NULL);
}

static void four_threads(perigee_group *group, void *arg) {
  (void)arg;
  perigee_group *children[GROUPS];
  open_children(group, children);
  run_workers(children, work_on_groups);
  run_workers(children, work_on_one);
  for (int i = 0; i < GROUPS; i++)
    drop_group(children[i]);
}
static void test_four_threads_on_four_groups(void **state) {
  (void)state;
  with_ranks(2, four_threads, NULL);
  with_ranks(3, four_threads, NULL);
}

/* Groups are independent: ranks start them in opposite orders and wait in others. */
static void opposite_orders(perigee_group *group, void *arg) {
  (void)arg;
  int me = perigee_group_rank(group);
  perigee_group *children[GROUPS];
  open_children(group, children);
  for (int round = 0; round < 25; round++) {
    perigee_work *works[GROUPS];
    perigee_tensor *t[GROUPS];
    for (int j = 0; j < GROUPS; j++) {
      int i = me % 2 ? GROUPS - 1 - j : j;
      t[i] = f32_of(5, (float)i);
      perigee_request req = request_inplace(PERIGEE_OP_ALLREDUCE, &t[i], 1);
      works[i] = submit(children[i], &req);
    }
    for (int j = 0; j < GROUPS; j++) {
      int i = (j + me + round) % GROUPS;
      CHECK(perigee_work_wait(works[i], PERIGEE_TIMEOUT_NONE) == 0);
      CHECK(f32_is(t[i], (float)(i * perigee_group_size(group))));
      perigee_work_unref(works[i]);
      perigee_tensor_unref(t[i]);
    }
  }
  for (int i = 0; i < GROUPS; i++)
    drop_group(children[i]);
}
static void test_opposite_orders(void **state) {
  (void)state, with_ranks(3, opposite_orders, NULL);
}

int main(void) {
  program_deadline(115);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_many_in_flight),
      cmocka_unit_test(test_unattended),
      cmocka_unit_test(test_synchronous_between_asynchronous),
      cmocka_unit_test(test_the_work_holds_the_request),
      cmocka_unit_test(test_short_waits_leave_it_pending),
      cmocka_unit_test(test_interrupt),
      cmocka_unit_test(test_waiters_come_out_one_by_one),
      cmocka_unit_test(test_callbacks_issue_work),
      cmocka_unit_test(test_time_runs_out_in_the_queue),
      cmocka_unit_test(test_four_threads_on_four_groups),
      cmocka_unit_test(test_opposite_orders),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
