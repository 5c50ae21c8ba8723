/* Hooks while eight threads call, and others come and go: every event once, one at a time, in order. */
#include "group/testing.h"

#include <perigee/hook.h>

enum {
  THREADS = 8,
  CALLS = 2000
};

typedef struct tally {
  uint64_t last_start;
  uint8_t starts[THREADS * CALLS + 1], ends[THREADS * CALLS + 1];
  int wrong;
  _Atomic int inside;
} tally;

/* No lock: hooks of one group never run at the same time. TSan agrees. */
static void tally_event(const perigee_event *event, void *arg) {
  tally *all = arg;
  if (atomic_fetch_add(&all->inside, 1) != 0)
    all->wrong++;
  if (event->seq == 0 || event->seq > THREADS * CALLS) {
    all->wrong++;
  } else if (event->kind == PERIGEE_EVENT_START) {
    all->wrong += event->seq != all->last_start + 1; /* in the order of the numbers */
    all->last_start = event->seq;
    all->starts[event->seq]++;
  } else {
    all->wrong += all->starts[event->seq] != 1;
    all->ends[event->seq]++;
  }
  atomic_fetch_sub(&all->inside, 1);
}

static void *call_many(void *arg) {
  perigee_group *group = arg;
  perigee_tensor *t = f32_of(1, 1);
  for (int i = 0; i < CALLS; i++) {
    if (i % 4 != 0) {
      CHECK(perigee_allreduce(group, t, PERIGEE_REDOP_SUM) == 0);
      continue;
    }
    perigee_request req = request_inplace(PERIGEE_OP_ALLREDUCE, &t, 1);
    perigee_work *work;
    REQUIRE(perigee_group_submit(group, &req, &work) == 0);
    if (i % 8 == 0)
      CHECK(perigee_work_wait(work, 20 * PERIGEE_NS_PER_SEC) == 0);
    perigee_work_unref(work);
  }
  perigee_tensor_unref(t);
  return NULL;
}

static void look(const perigee_event *event, void *arg) {
  (void)arg;
  CHECK(event->size == sizeof(*event));
  CHECK((event->error != NULL) ==
        ((event->kind & (PERIGEE_EVENT_ERROR | PERIGEE_EVENT_ABORT)) != 0));
}

static void count_drop(void *arg) { atomic_fetch_add((_Atomic int *)arg, 1); }

/* Hooks come and go meanwhile. */
static void *come_and_go(void *arg) {
  perigee_group *group = arg;
  perigee_hook_options opts;
  perigee_hook_options_init(&opts);
  opts.drop = count_drop;
  for (int i = 0; i < 200; i++) {
    perigee_hook *hook;
    _Atomic int drops = 0;
    REQUIRE(perigee_group_on(group, PERIGEE_EVENT_ALL, look, &drops, &opts, &hook) == 0);
    perigee__sleep_ns(50000);
    perigee_hook_remove(hook);
    int64_t until = perigee__deadline_in(20 * PERIGEE_NS_PER_SEC);
    while (atomic_load(&drops) == 0 && !perigee__passed(until))
      perigee__sleep_ns(10000);
    REQUIRE(atomic_load(&drops) == 1);
    perigee_hook_unref(hook);
  }
  return NULL;
}

static void eight_threads(void **state) {
  (void)state;
  perigee_group *group = open_alone("native", 0, 1);
  tally *all = calloc(1, sizeof(*all));
  assert_non_null(all);
  assert_int_equal(perigee_group_on(group,
                                    PERIGEE_EVENT_START | PERIGEE_EVENT_DONE | PERIGEE_EVENT_ERROR,
                                    tally_event, all, NULL, NULL),
                   0);
  pthread_t threads[THREADS + 1];
  for (int i = 0; i < THREADS; i++)
    assert_int_equal(pthread_create(&threads[i], NULL, call_many, group), 0);
  assert_int_equal(pthread_create(&threads[THREADS], NULL, come_and_go, group), 0);
  for (int i = 0; i <= THREADS; i++)
    pthread_join(threads[i], NULL);
  assert_int_equal(perigee_group_wait_for_pending_works(group, 20 * PERIGEE_NS_PER_SEC), 0);
  assert_int_equal(all->wrong, 0);
  assert_int_equal(all->last_start, THREADS * CALLS);
  for (int i = 1; i <= THREADS * CALLS; i++)
    assert_true(all->starts[i] == 1 && all->ends[i] == 1);
  drop_group(group);
  free(all);
  assert_no_failures();
}

int main(void) {
  program_deadline(120);
  const struct CMUnitTest tests[] = {cmocka_unit_test(eight_threads)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
