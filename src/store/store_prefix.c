/*
 * key -> prefix "/" key in another store.
 *
 * As in c10d, num_keys counts the whole inner store. list_keys lists only keys below the prefix, without it. A barrier
 * is made of add, set and wait on prefixed keys, so that barriers under different prefixes cannot meet.
 */
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "store/store.h"

typedef struct prefix_store {
  perigee_store base;
  perigee_store *inner; /* one reference */
  size_t size;          /* of prefix */
  char prefix[];        /* ends in "/" */
} prefix_store;

static prefix_store *of(perigee_store *s) { return (prefix_store *)(void *)s; }

static char *joined(const prefix_store *p, const char *key) {
  char *full = perigee__format("%s%s", p->prefix, key);
  if (full == NULL)
    perigee__fail(PERIGEE_ENOMEM, "no memory for key '%s%s'", p->prefix, key);
  return full;
}

/* n prefixed keys; free with perigee_store_keys_free. */
static char **joined_all(const prefix_store *p, const char *const *keys, size_t n) {
  char **full = perigee__calloc(n, sizeof(*full));
  if (full == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory for %zu keys", n), NULL;
  for (size_t i = 0; i < n; i++)
    if ((full[i] = joined(p, keys[i])) == NULL) {
      perigee_store_keys_free(full, i);
      return NULL;
    }
  return full;
}

/* Run one call of the inner store with the prefixed key in _full. */
#define WITH_KEY(_s, _key, _call)                                                                  \
  char *full = joined(of(_s), _key);                                                               \
  if (full == NULL)                                                                                \
    return PERIGEE_ENOMEM;                                                                         \
  int rc = _call;                                                                                  \
  free(full);                                                                                      \
  return rc
#define WITH_KEYS(_s, _keys, _n, _call)                                                            \
  char **full = joined_all(of(_s), _keys, _n);                                                     \
  if (full == NULL)                                                                                \
    return PERIGEE_ENOMEM;                                                                         \
  int rc = _call;                                                                                  \
  perigee_store_keys_free(full, _n);                                                               \
  return rc
#define INNER(_s) (of(_s)->inner)
#define FULLS ((const char *const *)full)

static int prefix_set(perigee_store *s, const char *key, const void *value, size_t size) {
  WITH_KEY(s, key, perigee_store_set(INNER(s), full, value, size));
}

static int prefix_get(perigee_store *s, const char *key, int64_t timeout_ns,
                      perigee_bytes *value_p) {
  WITH_KEY(s, key, perigee_store_get(INNER(s), full, timeout_ns, value_p));
}

static int prefix_add(perigee_store *s, const char *key, int64_t delta, int64_t *value_p) {
  WITH_KEY(s, key, perigee_store_add(INNER(s), full, delta, value_p));
}

static int prefix_compare_set(perigee_store *s, const char *key, const void *expected,
                              size_t expected_size, const void *desired, size_t desired_size,
                              perigee_bytes *value_p) {
  WITH_KEY(s, key,
           perigee_store_compare_set(INNER(s), full, expected, expected_size, desired, desired_size,
                                     value_p));
}

static int prefix_wait(perigee_store *s, const char *const *keys, size_t n, int64_t timeout_ns) {
  WITH_KEYS(s, keys, n, perigee_store_wait(INNER(s), FULLS, n, timeout_ns));
}

static int prefix_check(perigee_store *s, const char *const *keys, size_t n, bool *all_present_p) {
  WITH_KEYS(s, keys, n, perigee_store_check(INNER(s), FULLS, n, all_present_p));
}

static int prefix_delete_key(perigee_store *s, const char *key, bool *deleted_p) {
  WITH_KEY(s, key, perigee_store_delete_key(INNER(s), full, deleted_p));
}

static int prefix_num_keys(perigee_store *s, int64_t *n_p) {
  return perigee_store_num_keys(INNER(s), n_p);
}

static int prefix_append(perigee_store *s, const char *key, const void *value, size_t size) {
  WITH_KEY(s, key, perigee_store_append(INNER(s), full, value, size));
}

static int prefix_multi_get(perigee_store *s, const char *const *keys, size_t n, int64_t timeout_ns,
                            perigee_bytes *values_p) {
  WITH_KEYS(s, keys, n, perigee_store_multi_get(INNER(s), FULLS, n, timeout_ns, values_p));
}

static int prefix_multi_set(perigee_store *s, const char *const *keys, const perigee_bytes *values,
                            size_t n) {
  WITH_KEYS(s, keys, n, perigee_store_multi_set(INNER(s), FULLS, values, n));
}

static int prefix_queue_push(perigee_store *s, const char *key, const void *value, size_t size) {
  WITH_KEY(s, key, perigee_store_queue_push(INNER(s), full, value, size));
}

static int prefix_queue_pop(perigee_store *s, const char *key, int64_t timeout_ns,
                            perigee_bytes *value_p) {
  WITH_KEY(s, key, perigee_store_queue_pop(INNER(s), full, timeout_ns, value_p));
}

static int prefix_queue_len(perigee_store *s, const char *key, int64_t *n_p) {
  WITH_KEY(s, key, perigee_store_queue_len(INNER(s), full, n_p));
}

/* Keeps the keys below the prefix and cuts it off them, in place. */
static int prefix_list_keys(perigee_store *s, char ***keys_p, size_t *n_p) {
  const prefix_store *p = of(s);
  size_t n, kept = 0;
  char **keys;
  PERIGEE_TRY(perigee_store_list_keys(p->inner, &keys, &n));
  for (size_t i = 0; i < n; i++) {
    if (strncmp(keys[i], p->prefix, p->size) != 0) {
      free(keys[i]);
      continue;
    }
    memmove(keys[i], keys[i] + p->size, strlen(keys[i] + p->size) + 1);
    keys[kept++] = keys[i];
  }
  *keys_p = keys;
  *n_p = kept;
  return 0;
}

static void prefix_destroy(perigee_store *s) {
  perigee_store_unref(INNER(s));
  free(s);
}

static int prefix_clone(perigee_store *s, perigee_store **store_p);

static const perigee__store_ops prefix_ops = {
    .kind = "prefix",
    .destroy = prefix_destroy,
    .clone = prefix_clone,
    .set = prefix_set,
    .get = prefix_get,
    .add = prefix_add,
    .compare_set = prefix_compare_set,
    .wait = prefix_wait,
    .check = prefix_check,
    .delete_key = prefix_delete_key,
    .num_keys = prefix_num_keys,
    .list_keys = prefix_list_keys,
    .queue_push = prefix_queue_push,
    .queue_pop = prefix_queue_pop,
    .queue_len = prefix_queue_len,
    .append = prefix_append,
    .multi_get = prefix_multi_get,
    .multi_set = prefix_multi_set,
};

/* prefix: size bytes that end in "/". */
static int prefix_handle(const char *prefix, size_t size, perigee_store *inner,
                         perigee_store **store_p) {
  prefix_store *p = perigee__calloc(1, sizeof(*p) + size + 1);
  if (p == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory for a prefix store");
  perigee__store_init(&p->base, &prefix_ops);
  perigee_store_set_timeout(&p->base, perigee__store_timeout(inner));
  memcpy(p->prefix, prefix, size);
  p->size = size;
  p->inner = perigee_store_ref(inner);
  *store_p = &p->base;
  return 0;
}

static int prefix_clone(perigee_store *s, perigee_store **store_p) {
  perigee_store *inner;
  PERIGEE_TRY(perigee_store_clone(INNER(s), &inner));
  int rc = prefix_handle(of(s)->prefix, of(s)->size, inner, store_p);
  perigee_store_unref(inner);
  return rc;
}

int perigee_store_prefix_create(const char *prefix, perigee_store *inner, perigee_store **store_p) {
  if (prefix == NULL || inner == NULL || store_p == NULL)
    return perigee__fail(PERIGEE_EINVAL, "prefix store: no %s given",
                         prefix == NULL  ? "prefix"
                         : inner == NULL ? "inner store"
                                         : "output");
  size_t size = strnlen(prefix, PERIGEE__STORE_KEY_MAX);
  if (size == PERIGEE__STORE_KEY_MAX)
    return perigee__fail(PERIGEE_ELIMIT, "prefix store: prefix '%.32s...' of %d bytes or more",
                         prefix, PERIGEE__STORE_KEY_MAX);
  char *with_slash = perigee__format("%s/", prefix);
  if (with_slash == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory for a prefix store");
  int rc = prefix_handle(with_slash, size + 1, inner, store_p);
  free(with_slash);
  return rc;
}
