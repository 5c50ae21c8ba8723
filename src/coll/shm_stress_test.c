/* Long sequences: buffers are reused safely however the ranks drift apart, also where epochs wrap, in threads and in processes. */
#include <sched.h>

#include "coll/shm_testing_ops.h"

static uint32_t next_random(uint32_t *state) {
  *state ^= *state << 13;
  *state ^= *state >> 17;
  *state ^= *state << 5;
  return *state;
}

/* Drift: this rank alone is late now and then, a little or by a whole time slice. */
static void drift(uint32_t *own) {
  uint32_t r = next_random(own) % 64;
  if (r == 0)
    perigee__sleep_ns(50000);
  else if (r < 6)
    sched_yield();
}

#ifdef PERIGEE_HOSTILE
enum {
  LONG = 3000
};
#else
enum {
  LONG = 30000
};
#endif

static size_t random_numel(uint32_t *shared) {
  uint32_t r = next_random(shared);
  if (r % 100 == 0)
    return r / 128 % LONG;
  return r % 3 == 0 ? r / 128 % (LONG / 10) : r / 128 % 16;
}

/* The same sequence on all ranks, from the same seed; each rank drifts by its own. */
static void mixed(member *m, int calls) {
  uint32_t shared = 20240607, own = (uint32_t)m->me * 7919 + 1;
  static const perigee_dtype dtypes[] = {PERIGEE_F32, PERIGEE_I32, PERIGEE_F64, PERIGEE_U8};
  for (int i = 0; i < calls && m->failures == 0; i++) {
    what w = {.kind = (perigee__coll_kind)(next_random(&shared) % KINDS)};
    w.dtype = dtypes[next_random(&shared) % PERIGEE_COUNT(dtypes)];
    w.redop = next_random(&shared) % 2 ? PERIGEE_REDOP_SUM : PERIGEE_REDOP_MAX;
    w.numel = random_numel(&shared);
    w.root = (int)(next_random(&shared) % (uint32_t)m->n);
    w.in_place = next_random(&shared) % 2;
    w.uneven = next_random(&shared) % 4 == 0;
    drift(&own);
    rank_try(m, &w);
  }
}

static void mixed_5000(member *m) { mixed(m, 5000); }
static void mixed_500(member *m) { mixed(m, 500); }

static void test_mixed(void **state) {
  (void)state;
  static const int sizes[] = {2, 5};
  for (size_t i = 0; i < PERIGEE_COUNT(sizes); i++)
    for (int mode = PERIGEE_ARENA_SPIN; mode <= PERIGEE_ARENA_PARK; mode++) {
      world *w = world_open(sizes[i], (perigee__arena_mode)mode, 0);
      ranks_run(w, mixed_5000);
      world_close(w);
    }
}

/* Epochs pass from the largest to 0 in the middle of the sequence, at every offset to the set of buffers and inside long operations. */
static void test_wrap(void **state) {
  (void)state;
  for (int mode = PERIGEE_ARENA_SPIN; mode <= PERIGEE_ARENA_PARK; mode++)
    for (uint32_t before = 1; before <= 9; before++) {
      world *w = world_open(3, (perigee__arena_mode)mode, PERIGEE_ARENA_EPOCHS - before * 37);
      ranks_run(w, mixed_500);
      assert_true(w->member[0].arena->epoch < PERIGEE_ARENA_EPOCHS / 2);
      world_close(w);
    }
}

/* A broadcast and a gather ask nothing of some ranks, which then run ahead as far as they are let. Payloads in lines and in
 * buffers, by turns; every value says which operation it belongs to. */
static void run_ahead(member *m) {
  uint32_t own = (uint32_t)m->me * 31 + 7;
  enum {
    WIDE = 600
  };
  uint64_t *buf = malloc(WIDE * sizeof(*buf));
  for (uint64_t i = 1; i <= 4000 && m->failures == 0; i++) {
    size_t numel = i % 3 == 0 ? WIDE : 1 + i % 5;
    int root = i % 50 < 25 ? 0 : m->n - 1;
    if (m->me != root || i % 7 == 0)
      drift(&own);
    for (size_t k = 0; k < numel; k++)
      buf[k] = m->me == root ? i * 1000 + k : 0;
    perigee__coll_call call = {.kind = PERIGEE_COLL_BROADCAST,
                               .op = PERIGEE_OP_BROADCAST,
                               .root = root,
                               .out = buf,
                               .bytes = numel * sizeof(*buf),
                               .fp = 3};
    RANK_CHECK(m, rank_call(m, &call) == 0, "%s", m->error.message);
    for (size_t k = 0; k < numel; k++)
      RANK_CHECK(m, buf[k] == i * 1000 + k, "element %zu is %llu", k, (unsigned long long)buf[k]);
  }
  free(buf);
}

static void test_run_ahead(void **state) {
  (void)state;
  static const int sizes[] = {2, 4, 8};
  for (size_t i = 0; i < PERIGEE_COUNT(sizes); i++)
    for (int mode = PERIGEE_ARENA_SPIN; mode <= PERIGEE_ARENA_PARK; mode++) {
      world *w = world_open(sizes[i], (perigee__arena_mode)mode, 0);
      ranks_run(w, run_ahead);
      world_close(w);
    }
}

/* More processes than cores, and two of them polling. */
static void test_processes(void **state) {
  (void)state;
  world *w = world_open(8, PERIGEE_ARENA_PARK, 0);
  processes_run(w, mixed_500);
  world_close(w);
  w = world_open(2, PERIGEE_ARENA_SPIN, 0);
  processes_run(w, mixed_500);
  world_close(w);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_mixed),
      cmocka_unit_test(test_wrap),
      cmocka_unit_test(test_run_ahead),
      cmocka_unit_test(test_processes),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
