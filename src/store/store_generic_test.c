/* Prefixes, and a store of somebody else's that has only what every store must have: c10d's TestPythonStore. */
#include "store/store_testing.h"

#include "base/alloc.h"

/* Forwards the mandatory slots to a hash store. */
typedef struct plain_store {
  perigee_store base;
  perigee_store *inner;
} plain_store;

static perigee_store *inner(perigee_store *s) { return ((plain_store *)(void *)s)->inner; }
static void plain_destroy(perigee_store *s) {
  perigee_store_unref(inner(s));
  free(s);
}
static int plain_set(perigee_store *s, const char *key, const void *value, size_t size) {
  return perigee_store_set(inner(s), key, value, size);
}
static int plain_get(perigee_store *s, const char *key, int64_t timeout_ns, perigee_bytes *out) {
  return perigee_store_get(inner(s), key, timeout_ns, out);
}
static int plain_add(perigee_store *s, const char *key, int64_t delta, int64_t *value_p) {
  return perigee_store_add(inner(s), key, delta, value_p);
}
static int plain_compare_set(perigee_store *s, const char *key, const void *expected, size_t n,
                             const void *desired, size_t m, perigee_bytes *value_p) {
  return perigee_store_compare_set(inner(s), key, expected, n, desired, m, value_p);
}
static int plain_wait(perigee_store *s, const char *const *keys, size_t n, int64_t timeout_ns) {
  return perigee_store_wait(inner(s), keys, n, timeout_ns);
}
static int plain_check(perigee_store *s, const char *const *keys, size_t n, bool *all_p) {
  return perigee_store_check(inner(s), keys, n, all_p);
}

static const perigee__store_ops plain_ops = {
    .kind = "plain",
    .destroy = plain_destroy,
    .set = plain_set,
    .get = plain_get,
    .add = plain_add,
    .compare_set = plain_compare_set,
    .wait = plain_wait,
    .check = plain_check,
};

static perigee_store *plain_new(void) {
  plain_store *p = perigee__calloc(1, sizeof(*p));
  assert_non_null(p);
  perigee__store_init(&p->base, &plain_ops);
  OK(perigee_store_hash_create(&p->inner));
  return &p->base;
}

/* A C caller drives a plain store through a prefix. */
static void fallbacks(void **state) {
  (void)state;
  perigee_store *plain = plain_new(), *s;
  perigee_bytes values[2];
  char one[] = "1", two[] = "2";
  OK(perigee_store_prefix_create("p", plain, &s));
  OK(perigee_store_append(s, "foo", "po", 2));
  OK(perigee_store_append(s, "foo", "tato", 4));
  expect_get(plain, "p/foo", "potato");
  OK(perigee_store_multi_set(s, (const char *[]){"a", "b"}, (perigee_bytes[]){{one, 1}, {two, 1}},
                             2));
  OK(perigee_store_multi_get(s, (const char *[]){"a", "b"}, 2, SEC, values));
  expect_text(values[0], "1");
  expect_text(values[1], "2");
  FAILS(perigee_store_multi_get(s, (const char *[]){"a", "c"}, 2, 10 * MS, values),
        PERIGEE_ETIMEDOUT, "p/c");
  OK(perigee_store_barrier(s, "b1", 1, SEC));
  expect_get(plain, "p/b1/num_members", "1");
  expect_get(plain, "p/b1/last_member", "1");
  FAILS(perigee_store_barrier(s, "b2", 2, 10 * MS), PERIGEE_ETIMEDOUT, "p/b2/last_member");
  OK(perigee_store_barrier(s, "b2", 2, SEC));
  perigee_store_unref(s);
  perigee_store_unref(plain);
}

static void what_is_missing_says_so(void **state) {
  (void)state;
  perigee_store *s = plain_new();
  char **keys;
  size_t n;
  int64_t len;
  perigee_bytes value;
  FAILS(perigee_store_list_keys(s, &keys, &n), PERIGEE_ENOTSUP, "a plain store has no list_keys");
  FAILS(perigee_store_queue_push(s, "q", "", 0), PERIGEE_ENOTSUP, "no queues");
  FAILS(perigee_store_queue_pop(s, "q", 0, &value), PERIGEE_ENOTSUP, "no queues");
  FAILS(perigee_store_queue_len(s, "q", &len), PERIGEE_ENOTSUP, "no queues");
  perigee_store_unref(s);
}

static void prefixes_nest(void **state) {
  (void)state;
  perigee_store *base, *pg, *device;
  char **keys;
  size_t n;
  OK(perigee_store_hash_create(&base));
  OK(perigee_store_prefix_create("default_pg/0/", base, &pg));
  OK(perigee_store_prefix_create("cpu/", pg, &device));
  set_text(device, "0", "x");
  expect_get(base, "default_pg/0//cpu//0", "x");
  assert_string_equal(perigee_store_kind(device), "prefix");
  /* only keys below the prefix, without it; "cpu" is not a prefix of "cpux/..." */
  set_text(pg, "cpu//1", "x");
  set_text(pg, "cpux//2", "x");
  OK(perigee_store_list_keys(device, &keys, &n));
  assert_int_equal(n, 2);
  assert_int_equal(keys[0][0] + keys[1][0], '0' + '1');
  perigee_store_keys_free(keys, n);
  /* the inner store outlives its creator's reference */
  perigee_store_unref(base);
  perigee_store_unref(pg);
  expect_get(device, "0", "x");
  perigee_store_unref(device);
}

static void wrong_prefixes(void **state) {
  (void)state;
  perigee_store *base, *s = NULL;
  static char longest[8193];
  memset(longest, 'p', sizeof(longest) - 1);
  OK(perigee_store_hash_create(&base));
  FAILS(perigee_store_prefix_create(NULL, base, &s), PERIGEE_EINVAL, "no prefix");
  FAILS(perigee_store_prefix_create("p", NULL, &s), PERIGEE_EINVAL, "no inner store");
  FAILS(perigee_store_prefix_create("p", base, NULL), PERIGEE_EINVAL, "no output");
  FAILS(perigee_store_prefix_create(longest, base, &s), PERIGEE_ELIMIT, "prefix");
  assert_null(s);
  longest[8000] = '\0';
  OK(perigee_store_prefix_create(longest, base, &s));
  set_text(s, "short", "x");
  longest[300] = '\0';
  FAILS(perigee_store_set(s, longest, "", 0), PERIGEE_ELIMIT, "longer than 8191 bytes");
  perigee_store_unref(s);
  perigee_store_unref(base);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(fallbacks),
      cmocka_unit_test(what_is_missing_says_so),
      cmocka_unit_test(prefixes_nest),
      cmocka_unit_test(wrong_prefixes),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
