#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "host/suggest.h"

static void distances(void **state) {
  (void)state;
  assert_int_equal(perigee__edit_distance("send", "send", 3), 0);
  assert_int_equal(perigee__edit_distance("sned", "send", 3), 1); /* one swap */
  assert_int_equal(perigee__edit_distance("allreduc", "allreduce", 3), 1);
  assert_int_equal(perigee__edit_distance("kitten", "sitting", 3), 3);
  assert_int_equal(perigee__edit_distance("", "abc", 5), 3);
  assert_int_equal(perigee__edit_distance("abc", "xyz", 1), 2); /* limit + 1: farther than that */
}

static void nearest_names(void **state) {
  (void)state;
  static const char *const names[] = {"allreduce", "send", "recv", "reduce_scatter", NULL};
  assert_string_equal(perigee__nearest("allReduce", names), "allreduce");
  assert_string_equal(perigee__nearest("all_reduce", names), "allreduce");
  assert_string_equal(perigee__nearest("reducescater", names), "reduce_scatter");
  assert_string_equal(perigee__nearest("sned", names), "send");
  assert_null(perigee__nearest("read", names)); /* two edits from recv: another word */
  assert_null(perigee__nearest("compress", names));
}

static void hint_text(void **state) {
  (void)state;
  static const char *const names[] = {"timeout", NULL};
  char buf[64];
  assert_string_equal(perigee__did_you_mean("timout", names, buf, sizeof(buf)),
                      " (did you mean 'timeout'?)");
  assert_string_equal(perigee__did_you_mean("root", names, buf, sizeof(buf)), "");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(distances),
      cmocka_unit_test(nearest_names),
      cmocka_unit_test(hint_text),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
