#include "store/store.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"

/* ---- values and handles ---- */

void perigee_bytes_free(perigee_bytes *bytes) {
  if (bytes == NULL)
    return;
  free(bytes->data);
  bytes->data = NULL;
  bytes->size = 0;
}

int perigee__bytes_make(const void *data, size_t size, perigee_bytes *bytes_p) {
  char *copy = malloc(size + 1);
  if (copy == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory for a value of %zu bytes", size);
  if (size > 0)
    memcpy(copy, data, size);
  copy[size] = '\0';
  *bytes_p = (perigee_bytes){.data = copy, .size = size};
  return 0;
}

void perigee_store_keys_free(char **keys, size_t n) {
  if (keys == NULL)
    return;
  for (size_t i = 0; i < n; i++)
    free(keys[i]);
  free(keys);
}

void perigee__store_init(perigee_store *s, const perigee__store_ops *ops) {
  s->ops = ops;
  s->pid = getpid();
  atomic_init(&s->refs, 1);
  atomic_init(&s->timeout_ns, PERIGEE__STORE_TIMEOUT_NS);
}

int64_t perigee__store_timeout(const perigee_store *s) {
  return atomic_load_explicit(&s->timeout_ns, memory_order_relaxed);
}

perigee_store *perigee_store_ref(perigee_store *store) {
  atomic_fetch_add_explicit(&store->refs, 1, memory_order_relaxed);
  return store;
}

void perigee_store_unref(perigee_store *store) {
  if (store == NULL)
    return;
  /* release: what this holder did happens before destroy; acquire: destroy sees what every holder did */
  if (atomic_fetch_sub_explicit(&store->refs, 1, memory_order_acq_rel) == 1)
    store->ops->destroy(store);
}

const char *perigee_store_kind(const perigee_store *store) { return store->ops->kind; }

void perigee_store_set_timeout(perigee_store *store, int64_t timeout_ns) {
  atomic_store_explicit(&store->timeout_ns, timeout_ns < 0 ? PERIGEE__STORE_TIMEOUT_NS : timeout_ns,
                        memory_order_relaxed);
}

/* ---- checks ---- */

int perigee__store_timed_out(int64_t timeout_ns, const char *prefix, const char *const *keys,
                             size_t n) {
  char text[400];
  size_t used = 0;
  text[0] = '\0';
  for (size_t i = 0; i < n && used < sizeof(text); i++)
    used += (size_t)snprintf(text + used, sizeof(text) - used, "%s%s%s", i > 0 ? ", " : "", prefix,
                             keys[i]);
  return perigee__fail(PERIGEE_ETIMEDOUT, "wait timeout after %lldms, keys: %s%s",
                       (long long)(timeout_ns / PERIGEE_NS_PER_MS), text,
                       used >= sizeof(text) ? "..." : "");
}

static int handle_check(const perigee_store *s, const char *what) {
  if (s == NULL)
    return perigee__fail(PERIGEE_EINVAL, "store %s: no store given", what);
  if (s->pid != getpid())
    return perigee__fail(PERIGEE_EFORKED, "store %s: this handle belongs to process %d", what,
                         (int)s->pid);
  return 0;
}

static int key_check(const char *key, const char *what) {
  if (key == NULL)
    return perigee__fail(PERIGEE_EINVAL, "store %s: no key given", what);
  size_t size = strnlen(key, PERIGEE__STORE_KEY_MAX + 1);
  if (size > PERIGEE__STORE_KEY_MAX)
    return perigee__fail(PERIGEE_ELIMIT, "store %s: key '%.32s...' is longer than %d bytes", what,
                         key, PERIGEE__STORE_KEY_MAX);
  return 0;
}

static int value_check(const char *key, const void *value, size_t size, const char *what) {
  if (value == NULL && size > 0)
    return perigee__fail(PERIGEE_EINVAL, "store %s '%s': no value given", what, key);
  if (size > PERIGEE__STORE_VALUE_MAX)
    return perigee__fail(PERIGEE_ELIMIT, "store %s '%s': value of %zu bytes, at most %d", what, key,
                         size, PERIGEE__STORE_VALUE_MAX);
  return 0;
}

static int output_check(const void *output, const char *what) {
  return output != NULL ? 0 : perigee__fail(PERIGEE_EINVAL, "store %s: no output given", what);
}

static int one_check(const perigee_store *s, const char *key, const char *what) {
  PERIGEE_TRY(handle_check(s, what));
  return key_check(key, what);
}

static int list_check(const perigee_store *s, const char *const *keys, size_t n, const char *what) {
  PERIGEE_TRY(handle_check(s, what));
  if (keys == NULL && n > 0)
    return perigee__fail(PERIGEE_EINVAL, "store %s: no keys given", what);
  if (n > PERIGEE__STORE_KEYS_MAX)
    return perigee__fail(PERIGEE_ELIMIT, "store %s: %zu keys, at most %d", what, n,
                         PERIGEE__STORE_KEYS_MAX);
  for (size_t i = 0; i < n; i++)
    PERIGEE_TRY(key_check(keys[i], what));
  return 0;
}

static int64_t timeout_of(const perigee_store *s, int64_t timeout_ns) {
  return timeout_ns < 0 ? perigee__store_timeout(s) : timeout_ns;
}

static int unsupported(const perigee_store *s, const char *what) {
  return perigee__fail(PERIGEE_ENOTSUP, "a %s store has no %s", s->ops->kind, what);
}

/* ---- operations ---- */

int perigee_store_clone(perigee_store *store, perigee_store **store_p) {
  PERIGEE_TRY(handle_check(store, "clone"));
  PERIGEE_TRY(output_check(store_p, "clone"));
  perigee_store *copy;
  PERIGEE_TRY(store->ops->clone(store, &copy));
  perigee_store_set_timeout(copy, perigee__store_timeout(store));
  *store_p = copy;
  return 0;
}

int perigee_store_set(perigee_store *s, const char *key, const void *value, size_t size) {
  PERIGEE_TRY(one_check(s, key, "set"));
  PERIGEE_TRY(value_check(key, value, size, "set"));
  return s->ops->set(s, key, value, size);
}

int perigee_store_get(perigee_store *s, const char *key, int64_t timeout_ns,
                      perigee_bytes *value_p) {
  PERIGEE_TRY(one_check(s, key, "get"));
  PERIGEE_TRY(output_check(value_p, "get"));
  return s->ops->get(s, key, timeout_of(s, timeout_ns), value_p);
}

int perigee_store_add(perigee_store *s, const char *key, int64_t delta, int64_t *value_p) {
  PERIGEE_TRY(one_check(s, key, "add"));
  int64_t unused;
  return s->ops->add(s, key, delta, value_p != NULL ? value_p : &unused);
}

int perigee_store_compare_set(perigee_store *s, const char *key, const void *expected,
                              size_t expected_size, const void *desired, size_t desired_size,
                              perigee_bytes *value_p) {
  PERIGEE_TRY(one_check(s, key, "compare_set"));
  PERIGEE_TRY(value_check(key, expected, expected_size, "compare_set"));
  PERIGEE_TRY(value_check(key, desired, desired_size, "compare_set"));
  PERIGEE_TRY(output_check(value_p, "compare_set"));
  return s->ops->compare_set(s, key, expected, expected_size, desired, desired_size, value_p);
}

int perigee_store_wait(perigee_store *s, const char *const *keys, size_t n, int64_t timeout_ns) {
  PERIGEE_TRY(list_check(s, keys, n, "wait"));
  return n == 0 ? 0 : s->ops->wait(s, keys, n, timeout_of(s, timeout_ns));
}

int perigee_store_check(perigee_store *s, const char *const *keys, size_t n, bool *all_present_p) {
  PERIGEE_TRY(list_check(s, keys, n, "check"));
  PERIGEE_TRY(output_check(all_present_p, "check"));
  if (n > 0)
    return s->ops->check(s, keys, n, all_present_p);
  *all_present_p = true;
  return 0;
}

int perigee_store_delete_key(perigee_store *s, const char *key, bool *deleted_p) {
  PERIGEE_TRY(one_check(s, key, "delete_key"));
  bool unused;
  return s->ops->delete_key(s, key, deleted_p != NULL ? deleted_p : &unused);
}

int perigee_store_num_keys(perigee_store *s, int64_t *n_p) {
  PERIGEE_TRY(handle_check(s, "num_keys"));
  PERIGEE_TRY(output_check(n_p, "num_keys"));
  return s->ops->num_keys(s, n_p);
}

int perigee_store_list_keys(perigee_store *s, char ***keys_p, size_t *n_p) {
  PERIGEE_TRY(handle_check(s, "list_keys"));
  PERIGEE_TRY(output_check(keys_p, "list_keys"));
  PERIGEE_TRY(output_check(n_p, "list_keys"));
  return s->ops->list_keys != NULL ? s->ops->list_keys(s, keys_p, n_p)
                                   : unsupported(s, "list_keys");
}

int perigee_store_append(perigee_store *s, const char *key, const void *value, size_t size) {
  PERIGEE_TRY(one_check(s, key, "append"));
  PERIGEE_TRY(value_check(key, value, size, "append"));
  return s->ops->append != NULL ? s->ops->append(s, key, value, size)
                                : perigee__store_generic_append(s, key, value, size);
}

int perigee_store_multi_get(perigee_store *s, const char *const *keys, size_t n, int64_t timeout_ns,
                            perigee_bytes *values_p) {
  PERIGEE_TRY(list_check(s, keys, n, "multi_get"));
  if (n == 0)
    return 0;
  PERIGEE_TRY(output_check(values_p, "multi_get"));
  timeout_ns = timeout_of(s, timeout_ns);
  return s->ops->multi_get != NULL
             ? s->ops->multi_get(s, keys, n, timeout_ns, values_p)
             : perigee__store_generic_multi_get(s, keys, n, timeout_ns, values_p);
}

int perigee_store_multi_set(perigee_store *s, const char *const *keys, const perigee_bytes *values,
                            size_t n) {
  PERIGEE_TRY(list_check(s, keys, n, "multi_set"));
  if (n == 0)
    return 0;
  if (values == NULL)
    return perigee__fail(PERIGEE_EINVAL, "store multi_set: no values given");
  for (size_t i = 0; i < n; i++)
    PERIGEE_TRY(value_check(keys[i], values[i].data, values[i].size, "multi_set"));
  return s->ops->multi_set != NULL ? s->ops->multi_set(s, keys, values, n)
                                   : perigee__store_generic_multi_set(s, keys, values, n);
}

int perigee_store_queue_push(perigee_store *s, const char *key, const void *value, size_t size) {
  PERIGEE_TRY(one_check(s, key, "queue_push"));
  PERIGEE_TRY(value_check(key, value, size, "queue_push"));
  return s->ops->queue_push != NULL ? s->ops->queue_push(s, key, value, size)
                                    : unsupported(s, "queues");
}

int perigee_store_queue_pop(perigee_store *s, const char *key, int64_t timeout_ns,
                            perigee_bytes *value_p) {
  PERIGEE_TRY(one_check(s, key, "queue_pop"));
  PERIGEE_TRY(output_check(value_p, "queue_pop"));
  return s->ops->queue_pop != NULL ? s->ops->queue_pop(s, key, timeout_of(s, timeout_ns), value_p)
                                   : unsupported(s, "queues");
}

int perigee_store_queue_len(perigee_store *s, const char *key, int64_t *n_p) {
  PERIGEE_TRY(one_check(s, key, "queue_len"));
  PERIGEE_TRY(output_check(n_p, "queue_len"));
  return s->ops->queue_len != NULL ? s->ops->queue_len(s, key, n_p) : unsupported(s, "queues");
}

int perigee_store_barrier(perigee_store *s, const char *key, int world_size, int64_t timeout_ns) {
  PERIGEE_TRY(one_check(s, key, "barrier"));
  if (world_size < 1)
    return perigee__fail(PERIGEE_EINVAL, "store barrier '%s': world size %d", key, world_size);
  timeout_ns = timeout_of(s, timeout_ns);
  return s->ops->barrier != NULL ? s->ops->barrier(s, key, world_size, timeout_ns)
                                 : perigee__store_generic_barrier(s, key, world_size, timeout_ns);
}
