/* Rule: a variable stands in an environment once, with its last value. */
#include "cli/environ.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

static const char *look_up(const perigee__environ *env, const char *name) {
  const char *found = NULL;
  size_t len = strlen(name);
  for (int i = 0; env->vars[i] != NULL; i++) {
    if (strncmp(env->vars[i], name, len) == 0 && env->vars[i][len] == '=') {
      assert_null(found);
      found = env->vars[i] + len + 1;
    }
  }
  return found;
}

static void put_replaces_and_drop_removes(void **state) {
  (void)state;
  static char a[] = "RANK=7", b[] = "RANKS=x", c[] = "EMPTY=";
  char *base[] = {a, b, c, NULL};
  perigee__environ env;
  assert_int_equal(perigee__environ_init(&env, base), 0);
  assert_int_equal(perigee__environ_put(&env, "RANK=%d", 1), 0);
  assert_int_equal(perigee__environ_put(&env, "NEW=a=b"), 0);
  assert_string_equal(look_up(&env, "RANK"), "1");
  assert_string_equal(look_up(&env, "RANKS"), "x");
  assert_string_equal(look_up(&env, "EMPTY"), "");
  assert_string_equal(look_up(&env, "NEW"), "a=b");
  perigee__environ_drop(&env, "RANK");
  perigee__environ_drop(&env, "RANK");
  assert_null(look_up(&env, "RANK"));
  assert_string_equal(look_up(&env, "RANKS"), "x");
  assert_int_equal(env.n, 3);
  perigee__environ_fini(&env);
}

static void it_grows(void **state) {
  (void)state;
  char *base[] = {NULL};
  perigee__environ env;
  assert_int_equal(perigee__environ_init(&env, base), 0);
  for (int i = 0; i < 500; i++)
    assert_int_equal(perigee__environ_put(&env, "V%d=%d", i, i), 0);
  assert_int_equal(env.n, 500);
  assert_string_equal(look_up(&env, "V499"), "499");
  assert_null(env.vars[500]);
  perigee__environ_fini(&env);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(put_replaces_and_drop_removes),
      cmocka_unit_test(it_grows),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
