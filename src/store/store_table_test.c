/* The table: many keys, numbers, limits, what keeps an entry alive. */
#include "store/store_table.h"

#include "store/store_testing.h"

static perigee__entry *obtain(perigee__table *t, const char *key) {
  perigee__entry *e = perigee__table_obtain(t, key, strlen(key));
  assert_non_null(e);
  return e;
}

static void many_keys(void **state) {
  (void)state;
  perigee__table t;
  char key[32];
  OK(perigee__table_init(&t, SIZE_MAX));
  for (int i = 0; i < 5000; i++) {
    snprintf(key, sizeof(key), "key %d", i);
    OK(perigee__entry_set(&t, obtain(&t, key), key, strlen(key)));
  }
  assert_int_equal(t.nvalues, 5000);
  for (int i = 0; i < 5000; i++) {
    snprintf(key, sizeof(key), "key %d", i);
    perigee__entry *e = perigee__table_find(&t, key, strlen(key));
    assert_non_null(e);
    assert_int_equal(e->size, strlen(key));
    assert_memory_equal(e->value, key, e->size);
    if (i % 2 == 0) {
      assert_true(perigee__entry_unset(&t, e));
      perigee__table_release(&t, e);
      assert_null(perigee__table_find(&t, key, strlen(key)));
    }
  }
  assert_int_equal(t.nvalues, 2500);
  assert_int_equal(t.nentries, 2500);
  assert_null(perigee__table_find(&t, "key 1 ", 6));
  perigee__table_fini(&t);
}

static void entries_live_while_needed(void **state) {
  (void)state;
  perigee__table t;
  OK(perigee__table_init(&t, SIZE_MAX));
  perigee__entry *e = obtain(&t, "k");
  e->pins++;
  perigee__table_release(&t, e);
  assert_int_equal(t.nentries, 1);
  e->pins--;
  perigee__node waiter;
  perigee__list_append(&e->waiters, &waiter);
  perigee__table_release(&t, e);
  assert_int_equal(t.nentries, 1);
  perigee__list_remove(&waiter);
  OK(perigee__entry_push(&t, e, "item", 4));
  assert_true(perigee__entry_exists(e));
  perigee__table_release(&t, e);
  assert_int_equal(t.nentries, 1);
  perigee__item *item = perigee__entry_pop(&t, e);
  assert_int_equal(item->size, 4);
  free(item);
  assert_null(perigee__entry_pop(&t, e));
  perigee__table_release(&t, e);
  assert_int_equal(t.nentries, 0);
  assert_int_equal(t.bytes, 0);
  perigee__table_release(&t, NULL);
  perigee__table_fini(&t);
}

static void numbers(void **state) {
  (void)state;
  static const char *const good[] = {"0", "-1", "+7", "9223372036854775806",
                                     "-9223372036854775808"};
  static const char *const bad[] = {"",
                                    "-",
                                    "+",
                                    " 1",
                                    "1 ",
                                    "1x",
                                    "0x1",
                                    "1.0",
                                    "--1",
                                    "9223372036854775808",
                                    "99999999999999999999999"};
  perigee__table t;
  int64_t value = 42;
  OK(perigee__table_init(&t, SIZE_MAX));
  perigee__entry *e = obtain(&t, "n");
  OK(perigee__entry_add(&t, e, 5, &value));
  assert_int_equal(value, 5);
  for (size_t i = 0; i < PERIGEE_COUNT(good); i++) {
    OK(perigee__entry_set(&t, e, good[i], strlen(good[i])));
    OK(perigee__entry_add(&t, e, 1, &value));
    assert_true(value == strtoll(good[i], NULL, 10) + 1);
  }
  value = 42;
  for (size_t i = 0; i < PERIGEE_COUNT(bad); i++) {
    OK(perigee__entry_set(&t, e, bad[i], strlen(bad[i])));
    FAILS(perigee__entry_add(&t, e, 1, &value), PERIGEE_EINVAL, "no decimal number");
    assert_int_equal(e->size, strlen(bad[i]));
    assert_int_equal(value, 42);
  }
  OK(perigee__entry_set(&t, e, "-9223372036854775808", 20));
  FAILS(perigee__entry_add(&t, e, -1, &value), PERIGEE_ERANGE, "64 bits");
  perigee__table_fini(&t);
}

static void limits(void **state) {
  (void)state;
  perigee__table t;
  static char big[8 << 20];
  OK(perigee__table_init(&t, 1000));
  perigee__entry *e = obtain(&t, "k");
  OK(perigee__entry_set(&t, e, big, 500));
  FAILS(perigee__entry_append(&t, e, big, 500), PERIGEE_ELIMIT, "store is full");
  FAILS(perigee__entry_set(&t, e, big, 1000), PERIGEE_ELIMIT, "store is full");
  FAILS(perigee__entry_push(&t, e, big, 500), PERIGEE_ELIMIT, "store is full");
  assert_null(perigee__table_obtain(&t, big, 400));
  assert_int_equal(e->size, 500);
  OK(perigee__entry_set(&t, e, big, 600));
  t.bytes_max = SIZE_MAX;
  OK(perigee__entry_set(&t, e, big, sizeof(big) - 1));
  OK(perigee__entry_append(&t, e, "x", 1));
  FAILS(perigee__entry_append(&t, e, "y", 1), PERIGEE_ELIMIT, "at most 8388608");
  assert_int_equal(e->value[e->size - 1], 'x');
  perigee__table_fini(&t);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(many_keys),
      cmocka_unit_test(entries_live_while_needed),
      cmocka_unit_test(numbers),
      cmocka_unit_test(limits),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
