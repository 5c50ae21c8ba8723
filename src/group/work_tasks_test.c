/* What tasks and deadlock reports need of works: callbacks taken back, works nobody can end any more, what depends on what. */
#include "group/testing.h"

#include "group/work.h"

static perigee_work *future_of(perigee_work *depends_on, int64_t deadline_ns) {
  perigee_work *work;
  REQUIRE(perigee_future_create(depends_on, NULL, deadline_ns, &work) == 0);
  return work;
}
static perigee_work *plain_future(void) { return future_of(NULL, PERIGEE_NEVER); }

static void add_one(perigee_work *work, void *arg) {
  (void)work;
  ++*(int *)arg;
}

static void test_a_callback_can_be_taken_back(void **state) {
  (void)state;
  perigee_work *work = plain_future();
  int calls[3] = {0};
  for (int i = 0; i < 3; i++)
    REQUIRE(perigee_work_on_done(work, add_one, &calls[i]) == 0);
  assert_true(perigee__work_forget(work, add_one, &calls[2])); /* the last one: the tail moves */
  assert_false(perigee__work_forget(work, add_one, &calls[2]));
  REQUIRE(perigee_work_on_done(work, add_one, &calls[2]) == 0);
  assert_true(perigee__work_forget(work, add_one, &calls[1]));
  perigee_future_set_result(work);
  assert_int_equal(calls[0], 1);
  assert_int_equal(calls[1], 0);
  assert_int_equal(calls[2], 1);
  assert_false(perigee__work_forget(work, add_one, &calls[0]));
  perigee_work_unref(work);
}

static void keep_code(perigee_work *work, void *arg) {
  *(int *)arg = perigee_work_error(work)->code;
}

static void test_dropped_work_still_calls_back(void **state) {
  (void)state;
  perigee_work *work = plain_future();
  int code = 0;
  REQUIRE(perigee_work_on_done(work, keep_code, &code) == 0);
  perigee_work_unref(work);
  assert_int_equal(code, PERIGEE_ECANCELED);
}

static void test_what_a_work_depends_on(void **state) {
  (void)state;
  perigee_work *a = plain_future(), *b = future_of(a, PERIGEE_NEVER),
               *c = future_of(b, PERIGEE_NEVER);
  assert_true(perigee__work_reaches(c, a));
  assert_true(perigee__work_reaches(c, c));
  assert_false(perigee__work_reaches(a, c));
  assert_true(perigee__work_is_stuck(c));
  perigee_work *timed = future_of(NULL, perigee__deadline_in(3600 * PERIGEE_NS_PER_SEC));
  perigee_future_depend(a, timed);
  assert_false(perigee__work_is_stuck(c));
  perigee_future_depend(a, NULL);
  assert_true(perigee__work_is_stuck(c));
  perigee_future_set_result(a);
  assert_false(perigee__work_is_stuck(a));
  assert_false(perigee__work_is_stuck(c)); /* somebody is about to go on */
  perigee_future_set_result(b);
  perigee_future_set_result(c);
  perigee_future_set_result(timed);
  perigee_work_unref(a);
  perigee_work_unref(b);
  perigee_work_unref(c);
  perigee_work_unref(timed);
}

int main(void) {
  program_deadline(60);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_a_callback_can_be_taken_back),
      cmocka_unit_test(test_dropped_work_still_calls_back),
      cmocka_unit_test(test_what_a_work_depends_on),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
