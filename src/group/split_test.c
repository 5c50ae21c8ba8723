/* Defends: all members agree on who belongs to a subgroup, in which order and under which name; who is missing is named. */
#include "group/testing.h"

#include "group/group.h"

static float sum_of_ones(perigee_group *group) {
  perigee_tensor *t = f32_of(1, 1);
  CHECK(perigee_allreduce(group, t, PERIGEE_REDOP_SUM) == 0);
  float sum = f32_at(t, 0);
  perigee_tensor_unref(t);
  return sum;
}

static void halves(perigee_group *group, void *arg) {
  (void)arg;
  int me = perigee_group_rank(group), n = perigee_group_size(group);
  perigee_group *child = NULL;
  /* odd and even, in reverse order */
  CHECK(perigee_group_split(group, me % 2, -me, NULL, &child) == 0);
  int size = me % 2 ? n / 2 : (n + 1) / 2;
  CHECK(perigee_group_size(child) == size);
  CHECK(perigee_group_rank(child) == size - 1 - me / 2);
  char name[64];
  snprintf(name, sizeof(name), "world/s1.%d", me % 2);
  CHECK(strcmp(perigee_group_name(child), name) == 0);
  for (int r = 0; r < size; r++) {
    int world = perigee_group_to_world(child, r);
    CHECK(world == (size - 1 - r) * 2 + me % 2);
    CHECK(perigee_group_from_world(child, world) == r);
  }
  CHECK(perigee_group_from_world(child, me ^ 1) == -1);
  CHECK((int)sum_of_ones(child) == size);
  perigee_tensor *t = f32_of(1, (float)me);
  CHECK(perigee_broadcast(child, t, size - 1) == 0);
  CHECK(f32_is(t, (float)(me % 2))); /* the last has the lowest rank of the world */
  perigee_tensor_unref(t);
  drop_group(child);
  CHECK((int)sum_of_ones(group) == n);
}
static void test_split(void **state) {
  (void)state;
  for (int n = 1; n <= 5; n += 2)
    with_ranks(n, halves, NULL);
}

static void without_color(perigee_group *group, void *arg) {
  (void)arg;
  int me = perigee_group_rank(group);
  perigee_group *child = group;
  CHECK(perigee_group_split(group, me == 1 ? -1 : 7, 0, "some", &child) == 0);
  if (me == 1) {
    CHECK(child == NULL);
    return;
  }
  CHECK(strcmp(perigee_group_name(child), "world/some1.7") == 0);
  CHECK(perigee_group_size(child) == 2 &&
        perigee_group_rank(child) == me / 2); /* equal keys: by rank */
  drop_group(child);
}
static void test_without_color(void **state) { (void)state, with_ranks(3, without_color, NULL); }

/* A subgroup of a subgroup; peers are its own numbers, its end is its own. */
static void nested(perigee_group *group, void *arg) {
  (void)arg;
  int me = perigee_group_rank(group);
  perigee_group *outer = NULL, *inner = NULL;
  int first[] = {4, 2, 0, 3}, second[] = {1, 3};
  CHECK(perigee_group_subgroup(group, first, 4, NULL, &outer) == 0);
  CHECK((outer == NULL) == (me == 1));
  if (outer == NULL)
    return;
  for (int r = 0; r < 4; r++)
    if (first[r] == me)
      CHECK(perigee_group_rank(outer) == r);
  CHECK(perigee_group_subgroup(outer, second, 2, "pair", &inner) == 0);
  CHECK((inner != NULL) == (me == 2 || me == 3));
  if (inner != NULL) {
    CHECK(perigee_group_rank(inner) == (me == 2 ? 0 : 1));
    CHECK(perigee_group_to_world(inner, 0) == 2 && perigee_group_to_world(inner, 1) == 3);
    CHECK(strstr(perigee_group_name(inner), "/pair.1") != NULL);
    CHECK((int)sum_of_ones(inner) == 2);
    perigee_group *lowest = NULL;
    CHECK(perigee_group_split(inner, 0, -perigee_group_rank(inner), NULL, &lowest) == 0);
    CHECK(perigee_group_rank(lowest) == 1 - perigee_group_rank(inner));
    CHECK((int)sum_of_ones(lowest) == 2);
    drop_group(lowest);
    drop_group(inner);
  }
  CHECK((int)sum_of_ones(outer) == 4);
  drop_group(outer);
}
static void test_nested(void **state) { (void)state, with_ranks(5, nested, NULL); }

/* The world may go first: what its members share lives as long as one of its groups. */
static void outlives(perigee_group *group, void *arg) {
  (void)arg;
  perigee_group *child = NULL, *again = NULL;
  int ranks[] = {1, 0, 2};
  CHECK(perigee_group_subgroup(group, ranks, 3, NULL, &child) == 0);
  CHECK(perigee_group_subgroup(group, ranks, 3, NULL, &again) == 0);
  CHECK(strcmp(perigee_group_name(child), perigee_group_name(again)) != 0);
  CHECK(perigee_group_close(group) == 0);
  CHECK((int)sum_of_ones(again) == 3);
  drop_group(again);
  CHECK((int)sum_of_ones(child) == 3);
  perigee_group *of_child = NULL;
  CHECK(perigee_group_split(child, 0, 0, NULL, &of_child) == 0);
  CHECK((int)sum_of_ones(of_child) == 3);
  drop_group(child);
  CHECK((int)sum_of_ones(of_child) == 3);
  drop_group(of_child);
}
static void test_children_outlive_parents(void **state) {
  (void)state, with_ranks(3, outlives, NULL);
}

/* Disjoint subgroups made at once, and overlapping ones made in different orders on different ranks. */
static void overlapping(perigee_group *group, void *arg) {
  (void)arg;
  int me = perigee_group_rank(group);
  int low[] = {0, 1}, high[] = {2, 3};
  perigee_group *half = NULL, *ring[2] = {NULL, NULL};
  CHECK(perigee_group_subgroup(group, me < 2 ? low : high, 2, NULL, &half) == 0);
  CHECK((int)sum_of_ones(half) == 2);
  drop_group(half);
  for (int i = 0; i < 4; i++) { /* pair i: ranks i and i + 1 */
    int ranks[] = {i, (i + 1) % 4};
    perigee_group *made = NULL;
    CHECK(perigee_group_subgroup(group, ranks, 2, NULL, &made) == 0);
    if (made != NULL)
      ring[ring[0] != NULL] = made;
  }
  CHECK(ring[0] != NULL && ring[1] != NULL);
  perigee_work *works[2];
  perigee_tensor *t[2];
  for (int j = 0; j < 2; j++) {
    int i = me % 2 ? 1 - j : j;
    t[i] = f32_of(1, 1);
    perigee_request req = request_inplace(PERIGEE_OP_ALLREDUCE, &t[i], 1);
    REQUIRE(perigee_group_submit(ring[i], &req, &works[i]) == 0);
  }
  for (int i = 0; i < 2; i++) {
    CHECK(perigee_work_wait(works[i], PERIGEE_TIMEOUT_NONE) == 0);
    CHECK(f32_is(t[i], 2));
    perigee_work_unref(works[i]);
    perigee_tensor_unref(t[i]);
    drop_group(ring[i]);
  }
}
static void test_overlapping(void **state) { (void)state, with_ranks(4, overlapping, NULL); }

/* ---- refusals ---------------------------------------------------------------------------------- */

static void test_wrong_lists(void **state) {
  (void)state;
  perigee_group *group = open_alone("fake", 0, 4), *child = NULL;
  assert_int_equal(perigee_group_subgroup(group, NULL, 0, NULL, &child), PERIGEE_EINVAL);
  assert_true(last_error_has("an empty list"));
  int out[] = {0, 4}, twice[] = {0, 2, 2}, negative[] = {-1};
  assert_int_equal(perigee_group_subgroup(group, out, 2, NULL, &child), PERIGEE_ERANGE);
  assert_true(last_error_has("ranks[2] is 4, not a rank of this group (0 to 3)"));
  assert_int_equal(perigee_group_subgroup(group, negative, 1, NULL, &child), PERIGEE_ERANGE);
  assert_int_equal(perigee_group_subgroup(group, twice, 3, NULL, &child), PERIGEE_EINVAL);
  assert_true(last_error_has("rank 2 is in the list twice"));
  assert_null(child);
  drop_group(group);
}

static void one_does_not_come(perigee_group *group, void *arg) {
  (void)arg;
  perigee_group *child = NULL;
  CHECK(perigee_group_set_timeout(group, 200 * MS) == 0);
  if (perigee_group_rank(group) == 1) {
    perigee__sleep_ns((400 + LATE_MS) * MS);
    return;
  }
  int64_t start = perigee__now_ns();
  CHECK(perigee_group_split(group, 0, 0, NULL, &child) == PERIGEE_ETIMEDOUT);
  CHECK(ms_since(start) >= 200 && ms_since(start) < 200 + LATE_MS);
  CHECK(last_error_has("split: timed out, missing ranks 1"));
  CHECK(perigee_last_error()->nranks == 1 && perigee_last_error()->ranks[0] == 1);
  CHECK(child == NULL);
}
static void test_missing_rank_is_named(void **state) {
  (void)state, with_ranks(3, one_does_not_come, NULL);
}

/* A split that waits ends when its group is closed. */
static void *split_main(void *arg) {
  perigee_group *child = NULL;
  CHECK(perigee_group_split(arg, 0, 0, NULL, &child) == PERIGEE_ECLOSED);
  return NULL;
}
static void close_under_split(perigee_group *group, void *arg) {
  (void)arg;
  if (perigee_group_rank(group) == 1)
    return;
  pthread_t thread;
  REQUIRE(pthread_create(&thread, NULL, split_main, group) == 0);
  perigee__sleep_ns(50 * MS);
  int64_t start = perigee__now_ns();
  CHECK(perigee_group_close(group) == 0);
  CHECK(ms_since(start) < LATE_MS);
  pthread_join(thread, NULL);
}
static void test_close_under_split(void **state) {
  (void)state, with_ranks(2, close_under_split, NULL);
}

int main(void) {
  program_deadline(90);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_split),
      cmocka_unit_test(test_without_color),
      cmocka_unit_test(test_nested),
      cmocka_unit_test(test_children_outlive_parents),
      cmocka_unit_test(test_overlapping),
      cmocka_unit_test(test_wrong_lists),
      cmocka_unit_test(test_missing_rank_is_named),
      cmocka_unit_test(test_close_under_split),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
