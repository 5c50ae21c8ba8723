/*
 * A store in a file: see store_file_log.h for the file itself.
 *
 * Each handle keeps a table that is the file's log replayed up to some point. A change takes the file's exclusive lock, catches
 * up, computes, writes one record and replays it, so all handles of all processes see the same changes in the same order.
 * A reader catches up under the shared lock, and only when the file has grown. Waits poll with growing pauses.
 * The gate serialises the threads of one handle; the file's lock, the processes.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "store/store.h"
#include "store/store_file_log.h"
#include "store/store_gate.h"

enum {
  POLL_FIRST_NS = 200000,
  POLL_MAX_NS = 20000000
}; /* between two looks of a wait */

typedef struct file_store {
  perigee_store base;
  perigee__gate gate; /* guards what follows */
  perigee__log log;
  perigee__table table;
} file_store;

static file_store *of(perigee_store *s) { return (file_store *)(void *)s; }

static int enter(file_store *f, int64_t deadline) {
  if (perigee__gate_enter(&f->gate, deadline) == 0)
    return 0;
  return perigee__fail(PERIGEE_ETIMEDOUT, "file store %s: busy in another thread", f->log.path);
}

/* Ready for a change: gate and exclusive lock held, table up to date, *e_p obtained. */
static int change_begin(file_store *f, const char *key, perigee__entry **e_p) {
  int64_t deadline = perigee__deadline_in(PERIGEE__STORE_REQUEST_NS);
  int rc;
  PERIGEE_TRY(enter(f, deadline));
  PERIGEE_TRY_GOTO(perigee__log_lock(&f->log, true, deadline), err_gate);
  PERIGEE_TRY_GOTO(perigee__log_replay(&f->log, &f->table, true), err_lock);
  *e_p = perigee__table_obtain(&f->table, key, strlen(key));
  if (*e_p != NULL)
    return 0;
  rc = perigee_last_error()->code;
err_lock:
  perigee__log_unlock(&f->log);
err_gate:
  perigee__gate_leave(&f->gate);
  return rc;
}

/* The table still is as the file says: the new record reaches it by replay, so that the two cannot part. */
static int change_end(file_store *f, perigee__entry *e, int rc) {
  perigee__table_release(&f->table, e);
  if (rc == 0)
    rc = perigee__log_replay(&f->log, &f->table, true);
  perigee__log_unlock(&f->log);
  perigee__gate_leave(&f->gate);
  return rc;
}

/* Gate held: bring the table up to date for reading. */
static int catch_up(file_store *f, int64_t deadline) {
  bool behind = false;
  PERIGEE_TRY(perigee__log_behind(&f->log, &behind));
  if (!behind)
    return 0;
  PERIGEE_TRY(perigee__log_lock(&f->log, false, deadline));
  int rc = perigee__log_replay(&f->log, &f->table, false);
  perigee__log_unlock(&f->log);
  return rc;
}

static int read_begin(file_store *f) {
  int64_t deadline = perigee__deadline_in(PERIGEE__STORE_REQUEST_NS);
  PERIGEE_TRY(enter(f, deadline));
  int rc = catch_up(f, deadline);
  if (rc < 0)
    perigee__gate_leave(&f->gate);
  return rc;
}

static bool all_exist(const file_store *f, const char *const *keys, size_t n) {
  for (size_t i = 0; i < n; i++)
    if (!perigee__entry_exists(perigee__table_find(&f->table, keys[i], strlen(keys[i]))))
      return false;
  return true;
}

/* Until all keys exist; on success the gate is held. */
static int wait_begin(file_store *f, const char *const *keys, size_t n, int64_t timeout_ns) {
  int64_t deadline = perigee__deadline_in(timeout_ns);
  /* "do not wait" must still be able to take the locks */
  int64_t locks = timeout_ns > 0 ? deadline : perigee__deadline_in(PERIGEE__STORE_REQUEST_NS);
  for (int64_t pause = POLL_FIRST_NS;;
       pause = pause * 3 / 2 < POLL_MAX_NS ? pause * 3 / 2 : POLL_MAX_NS) {
    PERIGEE_TRY(enter(f, locks));
    int rc = catch_up(f, locks);
    if (rc == 0 && all_exist(f, keys, n))
      return 0;
    perigee__gate_leave(&f->gate);
    if (rc < 0)
      return rc;
    int64_t left = perigee__time_left(deadline);
    if (left == 0)
      return perigee__store_timed_out(timeout_ns, "", keys, n);
    perigee__sleep_ns(pause < left ? pause : left);
  }
}

/* ---- changes ---- */

static int file_set(perigee_store *s, const char *key, const void *value, size_t size) {
  file_store *f = of(s);
  perigee__entry *e;
  PERIGEE_TRY(change_begin(f, key, &e));
  return change_end(f, e, perigee__log_write(&f->log, PERIGEE__RECORD_SET, key, value, size));
}

static int file_append(perigee_store *s, const char *key, const void *value, size_t size) {
  file_store *f = of(s);
  perigee__entry *e;
  PERIGEE_TRY(change_begin(f, key, &e));
  int rc =
      size <= PERIGEE__STORE_VALUE_MAX - e->size
          ? perigee__log_write(&f->log, PERIGEE__RECORD_APPEND, key, value, size)
          : perigee__fail(PERIGEE_ELIMIT, "append to '%s': value of %zu + %zu bytes, at most %d",
                          key, e->size, size, PERIGEE__STORE_VALUE_MAX);
  return change_end(f, e, rc);
}

static int file_add(perigee_store *s, const char *key, int64_t delta, int64_t *value_p) {
  file_store *f = of(s);
  perigee__entry *e;
  int64_t value = 0;
  PERIGEE_TRY(change_begin(f, key, &e));
  int rc = perigee__entry_sum(e, delta, &value);
  if (rc == 0) {
    char text[24];
    int n = snprintf(text, sizeof(text), "%" PRId64, value);
    rc = perigee__log_write(&f->log, PERIGEE__RECORD_SET, key, text, (size_t)n);
  }
  rc = change_end(f, e, rc);
  if (rc == 0)
    *value_p = value;
  return rc;
}

static int file_compare_set(perigee_store *s, const char *key, const void *expected,
                            size_t expected_size, const void *desired, size_t desired_size,
                            perigee_bytes *value_p) {
  file_store *f = of(s);
  perigee_bytes reply;
  perigee__entry *e;
  PERIGEE_TRY(change_begin(f, key, &e));
  bool match = perigee__entry_matches(e, expected, expected_size);
  int rc = match              ? perigee__bytes_make(desired, desired_size, &reply)
           : e->value != NULL ? perigee__bytes_make(e->value, e->size, &reply)
                              : perigee__bytes_make(expected, expected_size, &reply);
  if (rc == 0 && match) {
    rc = perigee__log_write(&f->log, PERIGEE__RECORD_SET, key, desired, desired_size);
    if (rc < 0)
      perigee_bytes_free(&reply);
  }
  rc = change_end(f, e, rc);
  if (rc == 0)
    *value_p = reply;
  return rc;
}

static int file_delete_key(perigee_store *s, const char *key, bool *deleted_p) {
  file_store *f = of(s);
  perigee__entry *e;
  PERIGEE_TRY(change_begin(f, key, &e));
  bool had = e->value != NULL;
  int rc = had ? perigee__log_write(&f->log, PERIGEE__RECORD_UNSET, key, NULL, 0) : 0;
  rc = change_end(f, e, rc);
  if (rc == 0)
    *deleted_p = had;
  return rc;
}

static int file_queue_push(perigee_store *s, const char *key, const void *value, size_t size) {
  file_store *f = of(s);
  perigee__entry *e;
  PERIGEE_TRY(change_begin(f, key, &e));
  return change_end(f, e, perigee__log_write(&f->log, PERIGEE__RECORD_PUSH, key, value, size));
}

/* One try: *got_p tells whether there was an item. */
static int pop_once(file_store *f, const char *key, bool *got_p, perigee_bytes *value_p) {
  perigee_bytes value = {NULL, 0};
  perigee__entry *e;
  PERIGEE_TRY(change_begin(f, key, &e));
  bool got = e->first != NULL;
  int rc = got ? perigee__bytes_make(e->first->data, e->first->size, &value) : 0;
  if (rc == 0 && got)
    rc = perigee__log_write(&f->log, PERIGEE__RECORD_POP, key, NULL, 0);
  rc = change_end(f, e, rc);
  if (rc < 0) {
    perigee_bytes_free(&value);
    return rc;
  }
  *got_p = got;
  if (got)
    *value_p = value;
  return 0;
}

static int file_queue_len(perigee_store *s, const char *key, int64_t *n_p);

static int file_queue_pop(perigee_store *s, const char *key, int64_t timeout_ns,
                          perigee_bytes *value_p) {
  int64_t deadline = perigee__deadline_in(timeout_ns), pause = POLL_FIRST_NS, len = 0;
  for (;;) {
    /* looking costs no exclusive lock */
    PERIGEE_TRY(file_queue_len(s, key, &len));
    bool got = false;
    if (len > 0)
      PERIGEE_TRY(pop_once(of(s), key, &got, value_p));
    if (got)
      return 0;
    if (timeout_ns == 0)
      return perigee__fail(PERIGEE_EAGAIN, "queue is empty: %s", key);
    int64_t left = perigee__time_left(deadline);
    if (left == 0)
      return perigee__store_timed_out(timeout_ns, "", &key, 1);
    perigee__sleep_ns(pause < left ? pause : left);
    pause = pause * 3 / 2 < POLL_MAX_NS ? pause * 3 / 2 : POLL_MAX_NS;
  }
}

/* ---- reads ---- */

static int copy_values(const file_store *f, const char *const *keys, size_t n, perigee_bytes *out) {
  for (size_t i = 0; i < n; i++) {
    const perigee__entry *e = perigee__table_find(&f->table, keys[i], strlen(keys[i]));
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

static int file_multi_get(perigee_store *s, const char *const *keys, size_t n, int64_t timeout_ns,
                          perigee_bytes *values_p) {
  file_store *f = of(s);
  perigee_bytes *values = perigee__calloc(n, sizeof(*values));
  if (values == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "store multi_get: no memory for %zu values", n);
  int rc = wait_begin(f, keys, n, timeout_ns);
  if (rc == 0) {
    rc = copy_values(f, keys, n, values);
    perigee__gate_leave(&f->gate);
  }
  if (rc == 0)
    memcpy(values_p, values, n * sizeof(*values));
  free(values);
  return rc;
}

static int file_get(perigee_store *s, const char *key, int64_t timeout_ns, perigee_bytes *value_p) {
  return file_multi_get(s, &key, 1, timeout_ns, value_p);
}

static int file_wait(perigee_store *s, const char *const *keys, size_t n, int64_t timeout_ns) {
  PERIGEE_TRY(wait_begin(of(s), keys, n, timeout_ns));
  perigee__gate_leave(&of(s)->gate);
  return 0;
}

static int file_check(perigee_store *s, const char *const *keys, size_t n, bool *all_present_p) {
  PERIGEE_TRY(read_begin(of(s)));
  *all_present_p = all_exist(of(s), keys, n);
  perigee__gate_leave(&of(s)->gate);
  return 0;
}

static int file_num_keys(perigee_store *s, int64_t *n_p) {
  PERIGEE_TRY(read_begin(of(s)));
  *n_p = (int64_t)of(s)->table.nvalues;
  perigee__gate_leave(&of(s)->gate);
  return 0;
}

static int file_list_keys(perigee_store *s, char ***keys_p, size_t *n_p) {
  PERIGEE_TRY(read_begin(of(s)));
  int rc = perigee__table_list(&of(s)->table, keys_p, n_p);
  perigee__gate_leave(&of(s)->gate);
  return rc;
}

static int file_queue_len(perigee_store *s, const char *key, int64_t *n_p) {
  PERIGEE_TRY(read_begin(of(s)));
  const perigee__entry *e = perigee__table_find(&of(s)->table, key, strlen(key));
  *n_p = e != NULL ? e->queue_len : 0;
  perigee__gate_leave(&of(s)->gate);
  return 0;
}

/* ---- handles ---- */

static void file_destroy(perigee_store *s) {
  file_store *f = of(s);
  perigee__log_close(&f->log, s->pid == getpid());
  perigee__table_fini(&f->table);
  perigee__gate_fini(&f->gate);
  free(f);
}

static int file_clone(perigee_store *s, perigee_store **store_p) {
  return perigee_store_file_create(of(s)->log.path, store_p);
}

static const perigee__store_ops file_ops = {
    .kind = "file",
    .destroy = file_destroy,
    .clone = file_clone,
    .set = file_set,
    .get = file_get,
    .add = file_add,
    .compare_set = file_compare_set,
    .wait = file_wait,
    .check = file_check,
    .delete_key = file_delete_key,
    .num_keys = file_num_keys,
    .list_keys = file_list_keys,
    .queue_push = file_queue_push,
    .queue_pop = file_queue_pop,
    .queue_len = file_queue_len,
    .append = file_append,
    .multi_get = file_multi_get,
};

int perigee_store_file_create(const char *path, perigee_store **store_p) {
  if (path == NULL || path[0] == '\0' || store_p == NULL)
    return perigee__fail(PERIGEE_EINVAL, "file store: no %s given",
                         store_p == NULL ? "output" : "path");
  file_store *f = perigee__calloc(1, sizeof(*f));
  if (f == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "file store %s: no memory", path);
  int rc;
  PERIGEE_TRY_GOTO(perigee__table_init(&f->table, SIZE_MAX), err_free);
  PERIGEE_TRY_GOTO(
      perigee__log_open(&f->log, path, perigee__deadline_in(PERIGEE__STORE_REQUEST_NS)), err_table);
  perigee__gate_init(&f->gate, "file store", -1);
  perigee__store_init(&f->base, &file_ops);
  *store_p = &f->base;
  return 0;
err_table:
  perigee__table_fini(&f->table);
err_free:
  free(f);
  return rc;
}
