/*
 * The store of one process: a table, a mutex and a condition variable.
 *
 * Clones share the table. Every change that brings a key or a queue item into being wakes all waiters, which look
 * again; there are few of them and they are threads of this process.
 */
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "store/store.h"
#include "store/store_gate.h"
#include "store/store_table.h"

typedef struct hash_core {
  _Atomic int refs; /* release on drop, acquire on the last one */
  perigee_mutex mutex;
  pthread_cond_t changed;
  perigee__table table; /* under mutex */
} hash_core;

typedef struct hash_store {
  perigee_store base;
  hash_core *core;
} hash_store;

static hash_core *core_of(perigee_store *s) { return ((hash_store *)(void *)s)->core; }

/* Lock the core, obtain the key's entry; on failure nothing is locked. */
static int begin(hash_core *core, const char *key, perigee__entry **e_p) PERIGEE_NO_TSA {
  perigee__lock(&core->mutex);
  *e_p = perigee__table_obtain(&core->table, key, strlen(key));
  if (*e_p != NULL)
    return 0;
  perigee__unlock(&core->mutex);
  return perigee_last_error()->code;
}

static void end(hash_core *core, perigee__entry *e, bool existed) PERIGEE_NO_TSA {
  if (!existed && perigee__entry_exists(e))
    pthread_cond_broadcast(&core->changed);
  perigee__table_release(&core->table, e);
  perigee__unlock(&core->mutex);
}

static bool all_exist(const hash_core *core, const char *const *keys, size_t n) {
  for (size_t i = 0; i < n; i++)
    if (!perigee__entry_exists(perigee__table_find(&core->table, keys[i], strlen(keys[i]))))
      return false;
  return true;
}

/* Locked: until all exist or the time is up. */
static int wait_locked(hash_core *core, const char *const *keys, size_t n, int64_t timeout_ns) {
  int64_t deadline = perigee__deadline_in(timeout_ns);
  int rc = 0;
  while (!all_exist(core, keys, n)) {
    if (rc < 0)
      return perigee__store_timed_out(timeout_ns, "", keys, n);
    rc = perigee__cond_wait(&core->changed, &core->mutex, deadline);
  }
  return 0;
}

static int hash_set(perigee_store *s, const char *key, const void *value, size_t size) {
  hash_core *core = core_of(s);
  perigee__entry *e;
  PERIGEE_TRY(begin(core, key, &e));
  bool existed = perigee__entry_exists(e);
  int rc = perigee__entry_set(&core->table, e, value, size);
  end(core, e, existed);
  return rc;
}

static int hash_append(perigee_store *s, const char *key, const void *value, size_t size) {
  hash_core *core = core_of(s);
  perigee__entry *e;
  PERIGEE_TRY(begin(core, key, &e));
  bool existed = perigee__entry_exists(e);
  int rc = perigee__entry_append(&core->table, e, value, size);
  end(core, e, existed);
  return rc;
}

static int hash_add(perigee_store *s, const char *key, int64_t delta, int64_t *value_p) {
  hash_core *core = core_of(s);
  perigee__entry *e;
  PERIGEE_TRY(begin(core, key, &e));
  bool existed = perigee__entry_exists(e);
  int rc = perigee__entry_add(&core->table, e, delta, value_p);
  end(core, e, existed);
  return rc;
}

static int hash_compare_set(perigee_store *s, const char *key, const void *expected,
                            size_t expected_size, const void *desired, size_t desired_size,
                            perigee_bytes *value_p) {
  hash_core *core = core_of(s);
  perigee__entry *e;
  PERIGEE_TRY(begin(core, key, &e));
  bool existed = perigee__entry_exists(e);
  bool match = perigee__entry_matches(e, expected, expected_size);
  int rc = match ? perigee__entry_set(&core->table, e, desired, desired_size) : 0;
  if (rc == 0)
    rc = match              ? perigee__bytes_make(desired, desired_size, value_p)
         : e->value != NULL ? perigee__bytes_make(e->value, e->size, value_p)
                            : perigee__bytes_make(expected, expected_size, value_p);
  end(core, e, existed);
  return rc;
}

static int values_locked(hash_core *core, const char *const *keys, size_t n, perigee_bytes *out) {
  for (size_t i = 0; i < n; i++) {
    const perigee__entry *e = perigee__table_find(&core->table, keys[i], strlen(keys[i]));
    /* a queue of this name satisfies the wait, as on a TCP store; its plain value is then empty */
    bool present = e != NULL && e->value != NULL;
    int rc = perigee__bytes_make(present ? e->value : "", present ? e->size : 0, &out[i]);
    if (rc < 0) {
      while (i > 0)
        perigee_bytes_free(&out[--i]);
      return rc;
    }
  }
  return 0;
}

static int hash_multi_get(perigee_store *s, const char *const *keys, size_t n, int64_t timeout_ns,
                          perigee_bytes *values_p) {
  hash_core *core = core_of(s);
  perigee_bytes *values = perigee__calloc(n, sizeof(*values));
  if (values == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "store multi_get: no memory for %zu values", n);
  perigee__lock(&core->mutex);
  int rc = wait_locked(core, keys, n, timeout_ns);
  if (rc == 0)
    rc = values_locked(core, keys, n, values);
  perigee__unlock(&core->mutex);
  if (rc == 0)
    memcpy(values_p, values, n * sizeof(*values));
  free(values);
  return rc;
}

static int hash_get(perigee_store *s, const char *key, int64_t timeout_ns, perigee_bytes *value_p) {
  hash_core *core = core_of(s);
  perigee_bytes value;
  perigee__lock(&core->mutex);
  int rc = wait_locked(core, &key, 1, timeout_ns);
  if (rc == 0)
    rc = values_locked(core, &key, 1, &value);
  perigee__unlock(&core->mutex);
  if (rc == 0)
    *value_p = value;
  return rc;
}

static int hash_wait(perigee_store *s, const char *const *keys, size_t n, int64_t timeout_ns) {
  hash_core *core = core_of(s);
  perigee__lock(&core->mutex);
  int rc = wait_locked(core, keys, n, timeout_ns);
  perigee__unlock(&core->mutex);
  return rc;
}

static int hash_check(perigee_store *s, const char *const *keys, size_t n, bool *all_present_p) {
  hash_core *core = core_of(s);
  perigee__lock(&core->mutex);
  *all_present_p = all_exist(core, keys, n);
  perigee__unlock(&core->mutex);
  return 0;
}

static int hash_delete_key(perigee_store *s, const char *key, bool *deleted_p) {
  hash_core *core = core_of(s);
  perigee__lock(&core->mutex);
  perigee__entry *e = perigee__table_find(&core->table, key, strlen(key));
  *deleted_p = e != NULL && perigee__entry_unset(&core->table, e);
  perigee__table_release(&core->table, e);
  perigee__unlock(&core->mutex);
  return 0;
}

static int hash_num_keys(perigee_store *s, int64_t *n_p) {
  hash_core *core = core_of(s);
  perigee__lock(&core->mutex);
  *n_p = (int64_t)core->table.nvalues;
  perigee__unlock(&core->mutex);
  return 0;
}

static int hash_list_keys(perigee_store *s, char ***keys_p, size_t *n_p) {
  hash_core *core = core_of(s);
  perigee__lock(&core->mutex);
  int rc = perigee__table_list(&core->table, keys_p, n_p);
  perigee__unlock(&core->mutex);
  return rc;
}

/* Unlike other changes a push also wakes when the queue was not empty: a waiter may want the second item. */
static int hash_queue_push(perigee_store *s, const char *key, const void *value, size_t size) {
  hash_core *core = core_of(s);
  perigee__entry *e;
  PERIGEE_TRY(begin(core, key, &e));
  int rc = perigee__entry_push(&core->table, e, value, size);
  end(core, e, false);
  return rc;
}

static int hash_queue_pop(perigee_store *s, const char *key, int64_t timeout_ns,
                          perigee_bytes *value_p) {
  hash_core *core = core_of(s);
  int64_t deadline = perigee__deadline_in(timeout_ns);
  perigee__item *item = NULL;
  int rc = 0;
  perigee__lock(&core->mutex);
  for (;;) {
    perigee__entry *e = perigee__table_find(&core->table, key, strlen(key));
    item = e != NULL ? perigee__entry_pop(&core->table, e) : NULL;
    perigee__table_release(&core->table, e);
    if (item != NULL || rc < 0 || timeout_ns == 0)
      break;
    rc = perigee__cond_wait(&core->changed, &core->mutex, deadline);
  }
  perigee__unlock(&core->mutex);
  if (item == NULL)
    return timeout_ns == 0 ? perigee__fail(PERIGEE_EAGAIN, "queue is empty: %s", key)
                           : perigee__store_timed_out(timeout_ns, "", &key, 1);
  rc = perigee__bytes_make(item->data, item->size, value_p);
  free(item);
  return rc;
}

static int hash_queue_len(perigee_store *s, const char *key, int64_t *n_p) {
  hash_core *core = core_of(s);
  perigee__lock(&core->mutex);
  const perigee__entry *e = perigee__table_find(&core->table, key, strlen(key));
  *n_p = e != NULL ? e->queue_len : 0;
  perigee__unlock(&core->mutex);
  return 0;
}

static void hash_destroy(perigee_store *s) {
  hash_core *core = core_of(s);
  if (atomic_fetch_sub_explicit(&core->refs, 1, memory_order_acq_rel) == 1) {
    perigee__table_fini(&core->table);
    pthread_cond_destroy(&core->changed);
    perigee__mutex_fini(&core->mutex);
    free(core);
  }
  free(s);
}

static int hash_clone(perigee_store *s, perigee_store **store_p);

static const perigee__store_ops hash_ops = {
    .kind = "hash",
    .destroy = hash_destroy,
    .clone = hash_clone,
    .set = hash_set,
    .get = hash_get,
    .add = hash_add,
    .compare_set = hash_compare_set,
    .wait = hash_wait,
    .check = hash_check,
    .delete_key = hash_delete_key,
    .num_keys = hash_num_keys,
    .list_keys = hash_list_keys,
    .queue_push = hash_queue_push,
    .queue_pop = hash_queue_pop,
    .queue_len = hash_queue_len,
    .append = hash_append,
    .multi_get = hash_multi_get,
};

static int hash_handle(hash_core *core, perigee_store **store_p) {
  hash_store *s = perigee__calloc(1, sizeof(*s));
  if (s == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory for a hash store");
  perigee__store_init(&s->base, &hash_ops);
  s->core = core;
  *store_p = &s->base;
  return 0;
}

static int hash_clone(perigee_store *s, perigee_store **store_p) {
  hash_core *core = core_of(s);
  PERIGEE_TRY(hash_handle(core, store_p));
  atomic_fetch_add_explicit(&core->refs, 1, memory_order_relaxed);
  return 0;
}

int perigee_store_hash_create(perigee_store **store_p) {
  if (store_p == NULL)
    return perigee__fail(PERIGEE_EINVAL, "hash store: no output given");
  hash_core *core = perigee__calloc(1, sizeof(*core));
  if (core == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory for a hash store");
  int rc;
  PERIGEE_TRY_GOTO(perigee__table_init(&core->table, SIZE_MAX), free_core);
  PERIGEE_TRY_GOTO(hash_handle(core, store_p), fini_table);
  atomic_init(&core->refs, 1);
  perigee__mutex_init(&core->mutex, PERIGEE_LOCK_STORE, "hash store");
  perigee__cond_init(&core->changed);
  return 0;
fini_table:
  perigee__table_fini(&core->table);
free_core:
  free(core);
  return rc;
}
