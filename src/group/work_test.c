/* Defends: every work ends once; its callbacks run once, in order, where promised; no wake-up is lost. */
#include "group/testing.h"

#include "base/thread.h"
#include "group/work.h"
#include "tensor/tensor.h"

static perigee_work *future_of(perigee_work *depends_on, int64_t deadline_ns) {
  perigee_work *work;
  REQUIRE(perigee_future_create(depends_on, NULL, deadline_ns, &work) == 0);
  return work;
}
static perigee_work *plain_future(void) { return future_of(NULL, PERIGEE_NEVER); }

static perigee_error error_of(int code, const char *text) {
  perigee_error error;
  perigee__error_set(&error, code, "%s", text);
  return error;
}

/* ---- states ------------------------------------------------------------------------------------ */

static void test_result(void **state) {
  (void)state;
  perigee_work *work = plain_future();
  assert_int_equal(perigee_work_get_status(work), PERIGEE_WORK_PENDING);
  assert_false(perigee_work_is_completed(work));
  assert_int_equal(perigee_work_finished_ns(work), 0);
  assert_int_equal(perigee_work_op(work), -1);
  assert_null(perigee_work_error(work));
  assert_int_equal(perigee_work_wait(work, 0), PERIGEE_EAGAIN);
  assert_true(perigee_future_set_result(work));
  assert_false(perigee_future_set_result(work));
  perigee_error late = error_of(PERIGEE_EINVAL, "late");
  assert_false(perigee_future_set_error(work, &late));
  assert_int_equal(perigee_work_get_status(work), PERIGEE_WORK_DONE);
  assert_true(perigee_work_is_completed(work));
  assert_null(perigee_work_error(work));
  assert_true(perigee_work_finished_ns(work) >= perigee_work_started_ns(work));
  assert_int_equal(perigee_work_wait(work, PERIGEE_TIMEOUT_NONE), 0);
  assert_int_equal(perigee_work_wait(work, 0), 0);
  perigee_work_unref(work);
}

static void test_errors_and_status(void **state) {
  (void)state;
  static const struct {
    int code;
    perigee_work_status status;
    const char *name;
  } cases[] = {{PERIGEE_EINVAL, PERIGEE_WORK_FAILED, "failed"},
               {PERIGEE_EPEERDEAD, PERIGEE_WORK_FAILED, "failed"},
               {PERIGEE_ETIMEDOUT, PERIGEE_WORK_TIMEDOUT, "timeout"},
               {PERIGEE_EABORTED, PERIGEE_WORK_ABORTED, "aborted"},
               {PERIGEE_ECLOSED, PERIGEE_WORK_ABORTED, "aborted"},
               {PERIGEE_ECANCELED, PERIGEE_WORK_ABORTED, "aborted"}};
  for (size_t i = 0; i < PERIGEE_COUNT(cases); i++) {
    perigee_work *work = plain_future();
    perigee_error error = error_of(cases[i].code, "because of the test");
    assert_true(perigee_future_set_error(work, &error));
    assert_int_equal(perigee_work_get_status(work), cases[i].status);
    assert_string_equal(perigee_work_status_name(cases[i].status), cases[i].name);
    assert_int_equal(perigee_work_wait(work, PERIGEE_TIMEOUT_NONE), cases[i].code);
    assert_string_equal(perigee_last_error()->message, "because of the test");
    assert_int_equal(perigee_work_error(work)->code, cases[i].code);
    assert_false(perigee_future_set_result(work));
    perigee_work_unref(work);
  }
  assert_string_equal(perigee_work_status_name(PERIGEE_WORK_PENDING), "pending");
  assert_string_equal(perigee_work_status_name(PERIGEE_WORK_DONE), "done");
  assert_string_equal(perigee_work_status_name((perigee_work_status)77), "?");
  perigee_work *work = plain_future();
  assert_true(perigee_future_set_error(work, NULL));
  assert_int_equal(perigee_work_error(work)->code, PERIGEE_EINVAL);
  perigee_work_unref(work);
}

static void test_request_is_pinned(void **state) {
  (void)state;
  perigee_tensor *out[] = {f32_of(2, 0), f32_of(2, 0)}, *in[] = {f32_of(2, 1)};
  perigee_request req = request_out_in(PERIGEE_OP_ALLGATHER, out, 2, 1, in, 1, 0);
  req.seq = 7;
  perigee_work *work;
  assert_int_equal(perigee_future_create(NULL, &req, PERIGEE_NEVER, &work), 0);
  assert_int_equal(atomic_load(&out[0]->refs), 2);
  assert_int_equal(atomic_load(&in[0]->refs), 2);
  assert_int_equal(perigee_work_op(work), PERIGEE_OP_ALLGATHER);
  assert_int_equal(perigee_work_seq(work), 7);
  perigee_tensors outputs = perigee_work_outputs(work);
  assert_int_equal(outputs.n, 2);
  assert_int_equal(outputs.rows, 1);
  assert_ptr_equal(outputs.v[1], out[1]);
  perigee_future_set_result(work);
  perigee_work_unref(work);
  assert_int_equal(atomic_load(&out[0]->refs), 1);
  assert_int_equal(atomic_load(&in[0]->refs), 1);

  req = request_inplace(PERIGEE_OP_ALLREDUCE, out, 2);
  assert_int_equal(perigee_future_create(NULL, &req, PERIGEE_NEVER, &work), 0);
  assert_int_equal(perigee_work_outputs(work).n, 2);
  perigee_work_unref(work);
  req = request_inplace(PERIGEE_OP_SEND, in, 1);
  assert_int_equal(perigee_future_create(NULL, &req, PERIGEE_NEVER, &work), 0);
  assert_int_equal(perigee_work_outputs(work).n, 0);
  perigee_work_unref(work);
  for (int i = 0; i < 2; i++)
    perigee_tensor_unref(out[i]);
  perigee_tensor_unref(in[0]);
}

static int drops;
static void count_drop(void *value) { drops += *(int *)value; }

static void test_value_slot(void **state) {
  (void)state;
  int one = 1, ten = 10;
  drops = 0;
  perigee_work *work = plain_future();
  assert_null(perigee_work_value(work));
  perigee_work_set_value(work, &one, count_drop);
  assert_ptr_equal(perigee_work_value(work), &one);
  perigee_work_set_value(work, &ten, count_drop);
  assert_int_equal(drops, 1);
  perigee_future_set_result(work);
  assert_int_equal(drops, 1);
  perigee_work_unref(work);
  assert_int_equal(drops, 11);
}

/* ---- exactly once ------------------------------------------------------------------------------ */

typedef struct race {
  perigee_work *work;
  pthread_barrier_t *start;
  _Atomic int *winners;
  int index;
} race;

static void count_call(perigee_work *work, void *arg) {
  CHECK(perigee_work_is_completed(work));
  atomic_fetch_add((_Atomic int *)arg, 1);
}

static void *race_main(void *arg) {
  race *self = arg;
  pthread_barrier_wait(self->start);
  perigee_error error = error_of(PERIGEE_EINVAL, "one of many");
  bool won = self->index % 2 ? perigee_future_set_result(self->work)
                             : perigee_future_set_error(self->work, &error);
  if (won)
    atomic_fetch_add(self->winners, 1);
  int rc = perigee_work_wait(self->work, PERIGEE_TIMEOUT_NONE);
  CHECK(rc == 0 || rc == PERIGEE_EINVAL);
  perigee_work_unref(self->work);
  return NULL;
}

static void test_ends_once(void **state) {
  (void)state;
  enum {
    THREADS = 8,
    ROUNDS = 50
  };
  pthread_barrier_t start;
  pthread_barrier_init(&start, NULL, THREADS);
  for (int round = 0; round < ROUNDS; round++) {
    _Atomic int winners = 0, calls = 0;
    perigee_work *work = plain_future();
    assert_int_equal(perigee_work_on_done(work, count_call, &calls), 0);
    pthread_t threads[THREADS];
    race races[THREADS];
    for (int i = 0; i < THREADS; i++) {
      races[i] = (race){perigee_work_ref(work), &start, &winners, i};
      REQUIRE(pthread_create(&threads[i], NULL, race_main, &races[i]) == 0);
    }
    for (int i = 0; i < THREADS; i++)
      pthread_join(threads[i], NULL);
    assert_int_equal(atomic_load(&winners), 1);
    assert_int_equal(atomic_load(&calls), 1);
    perigee_work_unref(work);
  }
  pthread_barrier_destroy(&start);
  assert_no_failures();
}

/* ---- callbacks --------------------------------------------------------------------------------- */

typedef struct trace {
  int order[16];
  int n;
  pthread_t threads[16];
} trace;
typedef struct step {
  trace *to;
  int number;
} step;

static void record(perigee_work *work, void *arg) {
  step *s = arg;
  CHECK(perigee_work_is_completed(work));
  CHECK(perigee__locks_held() == 0);
  s->to->threads[s->to->n] = pthread_self();
  s->to->order[s->to->n++] = s->number;
}

static void *end_it(void *arg) {
  CHECK(perigee_future_set_result(arg));
  return NULL;
}

static void test_callbacks_in_order_on_the_ending_thread(void **state) {
  (void)state;
  trace seen = {.n = 0};
  step steps[5];
  perigee_work *work = plain_future();
  for (int i = 0; i < 4; i++) {
    steps[i] = (step){&seen, i};
    assert_int_equal(perigee_work_on_done(work, record, &steps[i]), 0);
  }
  pthread_t ender;
  REQUIRE(pthread_create(&ender, NULL, end_it, work) == 0);
  pthread_join(ender, NULL);
  assert_int_equal(seen.n, 4);
  for (int i = 0; i < 4; i++) {
    assert_int_equal(seen.order[i], i);
    assert_true(pthread_equal(seen.threads[i], ender));
  }
  /* One that comes late runs at once, here. */
  steps[4] = (step){&seen, 4};
  assert_int_equal(perigee_work_on_done(work, record, &steps[4]), 0);
  assert_int_equal(seen.n, 5);
  assert_true(pthread_equal(seen.threads[4], pthread_self()));
  perigee_work_unref(work);
  assert_int_equal(perigee_work_on_done(NULL, record, NULL), PERIGEE_EINVAL);
  assert_no_failures();
}

static void drop_last(perigee_work *work, void *arg) {
  (void)arg;
  perigee_work_unref(work);
}

static void test_callback_may_drop_the_last_reference(void **state) {
  (void)state;
  perigee_work *work = plain_future();
  assert_int_equal(perigee_work_on_done(work, drop_last, NULL), 0);
  assert_true(perigee_future_set_result(work));
}

typedef struct inside {
  perigee_work *other;
  int blocking, poll, ended;
} inside;

static void wait_inside(perigee_work *work, void *arg) {
  inside *self = arg;
  self->blocking = perigee_work_wait(self->other, PERIGEE_TIMEOUT_NONE);
  self->poll = perigee_work_wait(self->other, 0);
  self->ended = perigee_work_wait(work, PERIGEE_TIMEOUT_NONE);
}

static void test_no_blocking_wait_in_a_callback(void **state) {
  (void)state;
  perigee_work *work = plain_future();
  inside self = {.other = plain_future()};
  assert_int_equal(perigee_work_on_done(work, wait_inside, &self), 0);
  perigee_future_set_result(work);
  assert_int_equal(self.blocking, PERIGEE_EDEADLK);
  assert_int_equal(self.poll, PERIGEE_EAGAIN);
  assert_int_equal(self.ended, 0);
  perigee_future_set_result(self.other);
  assert_int_equal(perigee_work_wait(self.other, PERIGEE_TIMEOUT_NONE), 0);
  perigee_work_unref(self.other);
  perigee_work_unref(work);
}

/* ---- waiting ----------------------------------------------------------------------------------- */

static void test_wait_timeout_leaves_it_pending(void **state) {
  (void)state;
  perigee_work *work = plain_future();
  int64_t start = perigee__now_ns();
  assert_int_equal(perigee_work_wait(work, 30 * MS), PERIGEE_EAGAIN);
  assert_in_range((int)ms_since(start), 30, 30 + LATE_MS);
  assert_int_equal(perigee_work_get_status(work), PERIGEE_WORK_PENDING);
  assert_true(perigee_future_set_result(work));
  assert_int_equal(perigee_work_wait(work, 30 * MS), 0);
  perigee_work_unref(work);
}

static void *wait_for_it(void *arg) {
  CHECK(perigee_work_wait(arg, PERIGEE_TIMEOUT_NONE) == 0);
  return NULL;
}

static void test_end_wakes_all_waiters(void **state) {
  (void)state;
  for (int round = 0; round < 20; round++) {
    perigee_work *work = plain_future();
    pthread_t waiters[6];
    for (int i = 0; i < 6; i++)
      REQUIRE(pthread_create(&waiters[i], NULL, wait_for_it, work) == 0);
    if (round % 2)
      perigee__sleep_ns(2 * MS);
    perigee_future_set_result(work);
    for (int i = 0; i < 6; i++)
      pthread_join(waiters[i], NULL);
    perigee_work_unref(work);
  }
  assert_no_failures();
}

typedef struct interruptible {
  perigee_work *work;
  _Atomic uint32_t word;
  _Atomic int turn; /* rounds the waiter has come out of */
} interruptible;

enum {
  INTERRUPTS = 2000
};

static void *wait_interruptible(void *arg) {
  interruptible *self = arg;
  for (int i = 0; i < INTERRUPTS; i++) {
    CHECK(perigee_work_wait_interruptible(self->work, PERIGEE_TIMEOUT_NONE,
                                          (const uint32_t *)(void *)&self->word) == 1);
    atomic_store(&self->word, 0);
    atomic_fetch_add(&self->turn, 1);
  }
  CHECK(perigee_work_wait_interruptible(self->work, PERIGEE_TIMEOUT_NONE,
                                        (const uint32_t *)(void *)&self->word) == 0);
  return NULL;
}

static void interrupt_rounds(perigee_work *waited) {
  interruptible self = {.work = waited};
  pthread_t waiter;
  REQUIRE(pthread_create(&waiter, NULL, wait_interruptible, &self) == 0);
  for (int i = 0; i < INTERRUPTS; i++) {
    for (int spin = i % 50; spin > 0; spin--)
      (void)perigee__now_ns();
    atomic_store(&self.word, 1);
    perigee_work_interrupt(waited);
    int64_t start = perigee__now_ns();
    while (atomic_load(&self.turn) <= i && ms_since(start) < 5000)
      sched_yield();
    CHECK(atomic_load(&self.turn) == i + 1);
  }
  CHECK(perigee_future_set_result(waited));
  pthread_join(waiter, NULL);
}

static void test_interrupt(void **state) {
  (void)state;
  perigee_work *work = plain_future();
  uint32_t set = 1;
  assert_int_equal(perigee_work_wait_interruptible(work, PERIGEE_TIMEOUT_NONE, &set), 1);
  interrupt_rounds(work);
  perigee_work_unref(work);
  assert_no_failures();
}

static void test_interrupt_reaches_a_dependency(void **state) {
  (void)state;
  perigee_work *below = plain_future(), *above = future_of(below, PERIGEE_NEVER);
  interrupt_rounds(above);
  perigee_work_unref(above);
  perigee_future_set_result(below);
  perigee_work_unref(below);
  assert_no_failures();
}

/* ---- what a work depends on -------------------------------------------------------------------- */

/* A kind of work that ends when it has been driven often enough. */
typedef struct driven {
  perigee_work work;
  _Atomic int drives;
  int ends_after;
  pthread_t driver;
  int aborts;
} driven;

static void driven_drive(perigee_work *work, int64_t deadline_ns, const uint32_t *interrupt) {
  driven *self = PERIGEE_CONTAINER_OF(work, driven, work);
  (void)deadline_ns;
  (void)interrupt;
  self->driver = pthread_self();
  if (atomic_fetch_add(&self->drives, 1) + 1 == self->ends_after)
    perigee__work_finish(work, NULL, 3);
}
static void driven_abort(perigee_work *work, const perigee_error *reason) {
  driven *self = PERIGEE_CONTAINER_OF(work, driven, work);
  self->aborts++;
  perigee__work_finish(work, reason, -1);
}
static void driven_free(perigee_work *work) { free(PERIGEE_CONTAINER_OF(work, driven, work)); }
static const perigee__work_ops driven_ops = {
    .drive = driven_drive, .abort = driven_abort, .free = driven_free};

static driven *driven_of(int ends_after) {
  driven *self = calloc(1, sizeof(*self));
  REQUIRE(self != NULL);
  REQUIRE(perigee__work_init(&self->work, &driven_ops, NULL, PERIGEE_NEVER) == 0);
  self->ends_after = ends_after;
  return self;
}

static void end_future(perigee_work *work, void *arg) {
  (void)work;
  CHECK(perigee_future_set_result(arg));
}

static void test_waiting_drives_the_dependency(void **state) {
  (void)state;
  driven *below = driven_of(5);
  perigee_work *middle = future_of(&below->work, PERIGEE_NEVER);
  perigee_work *above = future_of(middle, PERIGEE_NEVER);
  assert_int_equal(perigee_work_on_done(&below->work, end_future, middle), 0);
  assert_int_equal(perigee_work_on_done(middle, end_future, above), 0);
  assert_int_equal(perigee_work_wait(above, PERIGEE_TIMEOUT_NONE), 0);
  assert_int_equal(atomic_load(&below->drives), 5);
  assert_true(pthread_equal(below->driver, pthread_self()));
  assert_int_equal(perigee_work_source_rank(&below->work), 3);
  perigee_work_unref(above);
  perigee_work_unref(middle);
  perigee_work_unref(&below->work);
  assert_no_failures();
}

static void test_waiter_takes_up_a_new_dependency(void **state) {
  (void)state;
  for (int round = 0; round < 50; round++) {
    perigee_work *above = plain_future();
    driven *below = driven_of(3);
    assert_int_equal(perigee_work_on_done(&below->work, end_future, above), 0);
    pthread_t waiter;
    REQUIRE(pthread_create(&waiter, NULL, wait_for_it, above) == 0);
    if (round % 2)
      perigee__sleep_ns(MS);
    perigee_future_depend(above, &below->work);
    pthread_join(waiter, NULL);
    assert_int_equal(atomic_load(&below->drives), 3);
    perigee_future_depend(above, NULL);
    perigee_work_unref(above);
    perigee_work_unref(&below->work);
  }
  assert_no_failures();
}

static void test_abort(void **state) {
  (void)state;
  perigee_work *work = plain_future();
  assert_int_equal(perigee_work_abort(work, "enough"), 0);
  assert_int_equal(perigee_work_get_status(work), PERIGEE_WORK_ABORTED);
  assert_string_equal(perigee_work_error(work)->message, "aborted: enough");
  assert_int_equal(perigee_work_abort(work, "again"), PERIGEE_ESTATE);
  perigee_work_unref(work);
  driven *kind = driven_of(1);
  assert_int_equal(perigee_work_abort(&kind->work, NULL), 0);
  assert_int_equal(kind->aborts, 1);
  assert_int_equal(perigee_work_error(&kind->work)->code, PERIGEE_EABORTED);
  perigee_work_unref(&kind->work);
}

/* ---- deadlines --------------------------------------------------------------------------------- */

static void test_deadline_ends_it_without_a_waiter(void **state) {
  (void)state;
  /* The later one first: the service must be woken for the earlier. */
  perigee_work *later = future_of(NULL, perigee__deadline_in(120 * MS));
  perigee_work *sooner = future_of(NULL, perigee__deadline_in(40 * MS));
  perigee_work *never = future_of(NULL, perigee__deadline_in(3600 * PERIGEE_NS_PER_SEC));
  perigee_work *ended = future_of(NULL, perigee__deadline_in(50 * MS));
  perigee_future_set_result(ended);
  int64_t start = perigee__now_ns();
  while (!perigee_work_is_completed(sooner) && ms_since(start) < 3000)
    perigee__sleep_ns(MS);
  assert_true(perigee_work_is_completed(sooner));
  int64_t late_ns = perigee_work_finished_ns(sooner) - sooner->deadline_ns;
  assert_in_range(late_ns, 0, LATE_MS * MS);
  assert_int_equal(perigee_work_get_status(sooner), PERIGEE_WORK_TIMEDOUT);
  assert_non_null(strstr(perigee_work_error(sooner)->message, "nobody completed it"));
  assert_int_equal(perigee_work_wait(later, 3000 * MS), PERIGEE_ETIMEDOUT);
  assert_in_range(perigee_work_finished_ns(later) - later->deadline_ns, 0, LATE_MS * MS);
  assert_int_equal(perigee_work_get_status(never), PERIGEE_WORK_PENDING);
  assert_int_equal(perigee_work_get_status(ended), PERIGEE_WORK_DONE);
  /* What the service holds it gives up when the work ends. */
  assert_int_equal(atomic_load(&never->refs), 2);
  perigee_future_set_result(never);
  assert_int_equal(atomic_load(&never->refs), 1);
  perigee_work_unref(later);
  perigee_work_unref(sooner);
  perigee_work_unref(never);
  perigee_work_unref(ended);
}

static void test_many_deadlines(void **state) {
  (void)state;
  enum {
    MANY = 200
  };
  perigee_work *works[MANY];
  _Atomic int calls = 0;
  for (int i = 0; i < MANY; i++) {
    works[i] = future_of(NULL, perigee__deadline_in((i * 7 % MANY) * MS / 2));
    assert_int_equal(perigee_work_on_done(works[i], count_call, &calls), 0);
  }
  for (int i = 0; i < MANY; i++)
    assert_int_equal(perigee_work_wait(works[i], 5000 * MS), PERIGEE_ETIMEDOUT);
  for (int i = 0; i < MANY; i++) {
    assert_in_range(perigee_work_finished_ns(works[i]) - works[i]->deadline_ns, 0, LATE_MS * MS);
    perigee_work_unref(works[i]);
  }
  int64_t start = perigee__now_ns();
  while (atomic_load(&calls) < MANY && ms_since(start) < 3000)
    perigee__sleep_ns(MS);
  assert_int_equal(atomic_load(&calls), MANY);
}

/* ---- the one that is always done ---------------------------------------------------------------- */

static void test_static_done(void **state) {
  (void)state;
  perigee_work *done = perigee_work_done();
  assert_ptr_equal(done, perigee_work_done());
  for (int i = 0; i < 10; i++)
    perigee_work_unref(done);
  assert_ptr_equal(perigee_work_ref(done), done);
  assert_int_equal(perigee_work_get_status(done), PERIGEE_WORK_DONE);
  assert_int_equal(perigee_work_wait(done, PERIGEE_TIMEOUT_NONE), 0);
  assert_false(perigee_future_set_result(done));
  assert_int_equal(perigee_work_abort(done, "no"), PERIGEE_ESTATE);
  _Atomic int calls = 0;
  assert_int_equal(perigee_work_on_done(done, count_call, &calls), 0);
  assert_int_equal(atomic_load(&calls), 1);
  perigee_work *above = future_of(done, PERIGEE_NEVER);
  assert_int_equal(perigee_work_wait(above, 5 * MS), PERIGEE_EAGAIN);
  perigee_future_set_result(above);
  perigee_work_unref(above);
}

/* ---- all at once ------------------------------------------------------------------------------- */

enum {
  STRESS_THREADS = 8,
  STRESS_WORKS = 64,
  STRESS_STEPS = 3000
};

typedef struct stress {
  perigee_work *works[STRESS_WORKS];
  _Atomic int ended[STRESS_WORKS], calls[STRESS_WORKS], registered[STRESS_WORKS];
} stress;
typedef struct stress_thread {
  stress *all;
  uint64_t random;
} stress_thread;

static uint32_t next_random(stress_thread *self) {
  self->random = self->random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
  return (uint32_t)(self->random >> 33);
}

static void stress_step(stress_thread *self) {
  stress *all = self->all;
  uint32_t i = next_random(self) % STRESS_WORKS;
  perigee_work *work = perigee_work_ref(all->works[i]);
  uint32_t zero = 0;
  int rc;
  switch (next_random(self) % 8) {
  case 0:
    if (perigee_future_set_result(work))
      atomic_fetch_add(&all->ended[i], 1);
    break;
  case 1:
    perigee_work_interrupt(work);
    break;
  case 2:
    rc = perigee_work_on_done(work, count_call, &all->calls[i]);
    if (rc == 0)
      atomic_fetch_add(&all->registered[i], 1);
    break;
  case 3:
    perigee_future_depend(work, i + 1 < STRESS_WORKS ? all->works[i + 1] : NULL);
    break;
  case 4:
    (void)perigee_work_get_status(work);
    (void)perigee_work_error(work);
    (void)perigee_work_finished_ns(work);
    break;
  default:
    rc = perigee_work_wait_interruptible(work, 50000, &zero);
    CHECK(rc == 0 || rc == PERIGEE_EAGAIN || rc == PERIGEE_ETIMEDOUT);
    break;
  }
  perigee_work_unref(work);
}

static void *stress_main(void *arg) {
  for (int i = 0; i < STRESS_STEPS; i++)
    stress_step(arg);
  return NULL;
}

static void test_stress(void **state) {
  (void)state;
  static stress all;
  for (int i = 0; i < STRESS_WORKS; i++)
    all.works[i] = future_of(NULL, i % 3 == 0 ? perigee__deadline_in((i + 1) * MS) : PERIGEE_NEVER);
  pthread_t threads[STRESS_THREADS];
  stress_thread args[STRESS_THREADS];
  for (int i = 0; i < STRESS_THREADS; i++) {
    args[i] = (stress_thread){&all, (uint64_t)i * 977 + 1};
    REQUIRE(pthread_create(&threads[i], NULL, stress_main, &args[i]) == 0);
  }
  for (int i = 0; i < STRESS_THREADS; i++)
    pthread_join(threads[i], NULL);
  for (int i = 0; i < STRESS_WORKS; i++)
    perigee_future_set_result(all.works[i]);
  for (int i = 0; i < STRESS_WORKS; i++) {
    int rc = perigee_work_wait(all.works[i], PERIGEE_TIMEOUT_NONE);
    assert_true(rc == 0 || rc == PERIGEE_ETIMEDOUT);
    assert_true(atomic_load(&all.ended[i]) <= 1);
    assert_int_equal(atomic_load(&all.calls[i]), atomic_load(&all.registered[i]));
    perigee_work_unref(all.works[i]);
  }
  assert_no_failures();
}

int main(void) {
  program_deadline(100);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_result),
      cmocka_unit_test(test_errors_and_status),
      cmocka_unit_test(test_request_is_pinned),
      cmocka_unit_test(test_value_slot),
      cmocka_unit_test(test_ends_once),
      cmocka_unit_test(test_callbacks_in_order_on_the_ending_thread),
      cmocka_unit_test(test_callback_may_drop_the_last_reference),
      cmocka_unit_test(test_no_blocking_wait_in_a_callback),
      cmocka_unit_test(test_wait_timeout_leaves_it_pending),
      cmocka_unit_test(test_end_wakes_all_waiters),
      cmocka_unit_test(test_interrupt),
      cmocka_unit_test(test_interrupt_reaches_a_dependency),
      cmocka_unit_test(test_waiting_drives_the_dependency),
      cmocka_unit_test(test_waiter_takes_up_a_new_dependency),
      cmocka_unit_test(test_abort),
      cmocka_unit_test(test_deadline_ends_it_without_a_waiter),
      cmocka_unit_test(test_many_deadlines),
      cmocka_unit_test(test_static_done),
      cmocka_unit_test(test_stress),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
