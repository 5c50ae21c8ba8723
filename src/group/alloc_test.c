/* Defends: shared tensors hold what collectives on them say, on every mix of views and ordinary tensors, and leave nothing behind. */
#include "group/testing.h"

#include <signal.h>
#include <sys/resource.h>

enum {
  RANKS = 3,
  LONG = 100000
};

static perigee_tensor *alloc_f32(perigee_group *group, int64_t numel) {
  perigee_tensor *t;
  REQUIRE(perigee_group_alloc(group, PERIGEE_F32, 1, &numel, &t) == 0);
  return t;
}

static perigee_tensor *part_of(const perigee_tensor *t, int64_t start, int64_t length) {
  perigee_tensor *view;
  REQUIRE(perigee_tensor_narrow(t, 0, start, length, &view) == 0);
  return view;
}

static void fill(perigee_tensor *t, float value) {
  for (int64_t i = 0; i < perigee_tensor_numel(t); i++)
    ((float *)perigee_tensor_data(t))[i] = value;
}

/* Mappings of symmetric memory in this process. */
static int segments_mapped(void) {
  char line[512];
  int n = 0;
  FILE *maps = fopen("/proc/self/maps", "r");
  REQUIRE(maps != NULL);
  while (fgets(line, sizeof(line), maps) != NULL)
    n += strstr(line, "perigee-segment") != NULL;
  fclose(maps);
  return n;
}

/* ---- values ------------------------------------------------------------------------------------ */

/* The sum of 1 .. n on every rank, wherever the tensors are. */
static void sum_on(perigee_group *group, perigee_tensor *t) {
  float n = (float)perigee_group_size(group);
  fill(t, (float)perigee_group_rank(group) + 1);
  CHECK(perigee_allreduce(group, t, PERIGEE_REDOP_SUM) == 0);
  CHECK(f32_is(t, n * (n + 1) / 2));
}

static void sums(perigee_group *group, void *arg) {
  (void)arg;
  static const int64_t lengths[] = {1, 12, 1000, 5000, LONG};
  int me = perigee_group_rank(group);
  perigee_tensor *shared = alloc_f32(group, 2 * LONG), *other = alloc_f32(group, LONG);
  CHECK(f32_is(shared, 0));
  for (size_t i = 0; i < PERIGEE_COUNT(lengths); i++) {
    perigee_tensor *same = part_of(shared, 7, lengths[i]);
    perigee_tensor *apart = part_of(shared, me * 1001, lengths[i]);
    perigee_tensor *ordinary = f32_of(lengths[i], 0);
    perigee_tensor *elsewhere = part_of(other, 0, lengths[i]);
    sum_on(group, same);
    sum_on(group, apart);
    sum_on(group, me == 1 ? ordinary : same);  /* one rank has none */
    sum_on(group, me == 1 ? elsewhere : same); /* nor in the same memory */
    sum_on(group, ordinary);
    CHECK(i > 0 || f32_at(shared, 6) <= 0);
    perigee_tensor_unref(same);
    perigee_tensor_unref(apart);
    perigee_tensor_unref(ordinary);
    perigee_tensor_unref(elsewhere);
  }
  perigee_tensor_unref(shared);
  perigee_tensor_unref(other);
}

static void test_sums(void **state) {
  (void)state;
  with_ranks(2, sums, NULL);
  with_ranks(RANKS, sums, NULL);
  with_ranks(5, sums, NULL);
  setenv("PERIGEE_TRANSPORT", "tcp", 1);
  with_ranks(RANKS, sums, NULL);
  unsetenv("PERIGEE_TRANSPORT");
  assert_int_equal(segments_mapped(), 0);
}

static void others(perigee_group *group, void *arg) {
  (void)arg;
  int me = perigee_group_rank(group), n = perigee_group_size(group);
  int64_t block = 20000;
  perigee_tensor *mine = alloc_f32(group, block), *all = alloc_f32(group, block * n);
  fill(mine, (float)me + 1);
  CHECK(perigee_allgather_into_tensor(group, all, mine) == 0);
  for (int r = 0; r < n; r++) {
    perigee_tensor *view = part_of(all, r * block, block);
    CHECK(f32_is(view, (float)r + 1));
    perigee_tensor_unref(view);
  }
  perigee_request req = request_out_in(PERIGEE_OP_REDUCE_SCATTER_TENSOR, &mine, 1, 0, &all, 1, 0);
  CHECK(perigee_group_run(group, &req) == 0);
  CHECK(f32_is(mine, (float)(n * (me + 1))));
  fill(mine, (float)me);
  CHECK(perigee_broadcast(group, mine, n - 1) == 0);
  CHECK(f32_is(mine, (float)(n - 1)));
  CHECK(perigee_reduce(group, mine, 1, PERIGEE_REDOP_SUM) == 0);
  CHECK(f32_is(mine, (float)(n - 1) * (me == 1 ? (float)n : 1)));
  perigee_tensor *from = alloc_f32(group, block * n);
  fill(from, (float)me);
  req = request_out_in(PERIGEE_OP_ALLTOALL_BASE, &all, 1, 0, &from, 1, 0);
  CHECK(perigee_group_run(group, &req) == 0);
  for (int r = 0; r < n; r++)
    CHECK(f32_at(all, r * block) >= (float)r && f32_at(all, (r + 1) * block - 1) <= (float)r);
  perigee_tensor_unref(from);
  perigee_tensor_unref(mine);
  perigee_tensor_unref(all);
}

static void test_others(void **state) {
  (void)state;
  with_ranks(2, others, NULL);
  with_ranks(4, others, NULL);
  assert_int_equal(segments_mapped(), 0);
}

/* ---- life -------------------------------------------------------------------------------------- */

static void drop_early(perigee_group *group, void *arg) {
  (void)arg;
  int me = perigee_group_rank(group);
  perigee_tensor *t = alloc_f32(group, LONG);
  if (me == 0) { /* the others' stays, and what this rank gives instead is found to be none */
    perigee_tensor_unref(t);
    t = f32_of(LONG, 0);
  }
  for (int i = 0; i < 3; i++)
    sum_on(group, t);
  CHECK(perigee_broadcast(group, t, 1) == 0);
  perigee_tensor_unref(t);
}

static perigee_tensor *kept[RANKS];

static void keep(perigee_group *group, void *arg) {
  (void)arg;
  perigee_tensor *t = alloc_f32(group, LONG);
  sum_on(group, t);
  kept[perigee_group_rank(group)] = part_of(t, 5, 10);
  perigee_tensor_unref(t);
}

static void test_life(void **state) {
  (void)state;
  with_ranks(RANKS, drop_early, NULL);
  assert_int_equal(segments_mapped(), 0);
  with_ranks(RANKS, keep, NULL); /* a view outlives its tensor and the group */
  assert_int_equal(segments_mapped(), RANKS);
  for (int r = 0; r < RANKS; r++) {
    assert_true(f32_is(kept[r], 6));
    fill(kept[r], (float)r);
    perigee_tensor_unref(kept[r]);
  }
  assert_int_equal(segments_mapped(), 0);
}

/* What is queued goes first: nobody waits in alloc for a rank that waits for the queued operation. */
static void behind_queue(perigee_group *group, void *arg) {
  (void)arg;
  perigee_tensor *t = f32_of(LONG, 1);
  perigee_request req = request_inplace(PERIGEE_OP_ALLREDUCE, &t, 1);
  perigee_work *work;
  if (perigee_group_rank(group) == 0)
    CHECK(perigee_group_run(group, &req) == 0);
  else
    REQUIRE(perigee_group_submit(group, &req, &work) == 0);
  perigee_tensor_unref(alloc_f32(group, 10));
  if (perigee_group_rank(group) != 0) {
    CHECK(perigee_work_wait(work, PERIGEE_TIMEOUT_NONE) == 0);
    perigee_work_unref(work);
  }
  CHECK(f32_is(t, RANKS));
  perigee_tensor_unref(t);
}

static void test_queue(void **state) {
  (void)state;
  for (int i = 0; i < 10; i++)
    with_ranks(RANKS, behind_queue, NULL);
}

/* ---- what goes wrong ---------------------------------------------------------------------------- */

static void differ(perigee_group *group, void *arg) {
  (void)arg;
  int64_t shape[2] = {4, perigee_group_rank(group) == 2 ? 5 : 6};
  perigee_tensor *t = NULL;
  CHECK(perigee_group_alloc(group, PERIGEE_F32, 2, shape, &t) == PERIGEE_EMISMATCH);
  CHECK(t == NULL && last_error_has("asked for different"));
  CHECK(perigee_group_failed(group, NULL) < 0);
}

static void bad(perigee_group *group, void *arg) {
  (void)arg;
  int64_t negative = -1, none = 0;
  perigee_tensor *t = NULL;
  CHECK(perigee_group_alloc(group, PERIGEE_F32, 1, &negative, &t) == PERIGEE_EINVAL && t == NULL);
  CHECK(perigee_group_failed(group, NULL) == 0);
  REQUIRE(perigee_group_alloc(group, PERIGEE_F32, 1, &none, &t) == 0);
  CHECK(perigee_tensor_numel(t) == 0);
  CHECK(perigee_allreduce(group, t, PERIGEE_REDOP_SUM) == 0);
  perigee_tensor_unref(t);
}

static void late(perigee_group *group, void *arg) {
  (void)arg;
  int64_t numel = 4;
  perigee_tensor *t = NULL;
  if (perigee_group_rank(group) == 1)
    return;
  CHECK(perigee_group_set_timeout(group, 200 * MS) == 0);
  int rc = perigee_group_alloc(group, PERIGEE_F32, 1, &numel, &t);
  CHECK(rc == PERIGEE_ETIMEDOUT || rc == PERIGEE_EABORTED || rc == PERIGEE_EPEERCLOSED);
  CHECK(t == NULL && perigee_group_failed(group, NULL) < 0);
}

static void test_wrong(void **state) {
  (void)state;
  with_ranks(RANKS, differ, NULL);
  with_ranks(RANKS, bad, NULL);
  with_ranks(RANKS, late, NULL);
  assert_int_equal(segments_mapped(), 0);
}

static void test_alone(void **state) {
  (void)state;
  with_ranks(1, sums, NULL);
}

/* No shared memory of that size: ordinary tensors on all ranks, and the group goes on. */
static void refused(perigee_group *group, void *arg) {
  (void)arg;
  perigee_tensor *t = alloc_f32(group, LONG);
  CHECK(segments_mapped() == 0);
  sum_on(group, t);
  perigee_tensor_unref(t);
}

static void test_refused(void **state) {
  (void)state;
  perigee_group *groups[RANKS_MAX];
  struct rlimit before, none;
  open_local(RANKS, NULL, groups);
  signal(SIGXFSZ, SIG_IGN);
  assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
  none = (struct rlimit){.rlim_cur = 1024, .rlim_max = before.rlim_max};
  assert_int_equal(setrlimit(RLIMIT_FSIZE, &none), 0);
  on_ranks(RANKS, groups, refused, NULL);
  assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
  close_local(RANKS, groups);
  assert_no_failures();
}

int main(void) {
  program_deadline(120);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_sums),    cmocka_unit_test(test_others), cmocka_unit_test(test_life),
      cmocka_unit_test(test_queue),   cmocka_unit_test(test_wrong),  cmocka_unit_test(test_alone),
      cmocka_unit_test(test_refused),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
