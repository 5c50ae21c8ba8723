/* The operations of a TCP store as requests of its protocol: see store_tcp_call.h for how they share connections. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/alloc.h"
#include "store/store_tcp_call.h"

static perigee__tcp *of(perigee_store *s) { return (perigee__tcp *)(void *)s; }

/* ---- operations ---- */

static int tcp_set(perigee_store *s, const char *key, const void *value, size_t size) {
  perigee__call c = perigee__call_request(s, "set", PERIGEE__REQ_SET);
  perigee__call_put_key(&c, key);
  perigee__buf_bytes(&c.out, value, size);
  return perigee__call_say(&c);
}

static int tcp_append(perigee_store *s, const char *key, const void *value, size_t size) {
  perigee__call c = perigee__call_request(s, "append", PERIGEE__REQ_APPEND);
  perigee__call_put_key(&c, key);
  perigee__buf_bytes(&c.out, value, size);
  return perigee__call_say(&c);
}

static int tcp_multi_set(perigee_store *s, const char *const *keys, const perigee_bytes *values,
                         size_t n) {
  perigee__call c = perigee__call_request(s, "multi_set", PERIGEE__REQ_MULTI_SET);
  perigee__buf_u64(&c.out, n);
  for (size_t i = 0; i < n; i++) {
    perigee__call_put_key(&c, keys[i]);
    perigee__buf_bytes(&c.out, values[i].data, values[i].size);
  }
  return perigee__call_say(&c);
}

static int tcp_queue_push(perigee_store *s, const char *key, const void *value, size_t size) {
  perigee__call c = perigee__call_request(s, "queue_push", PERIGEE__REQ_QUEUE_PUSH);
  perigee__call_put_key(&c, key);
  perigee__buf_bytes(&c.out, value, size);
  return perigee__call_say(&c);
}

static int tcp_add(perigee_store *s, const char *key, int64_t delta, int64_t *value_p) {
  perigee__call c = perigee__call_request(s, "add", PERIGEE__REQ_ADD);
  perigee__call_put_key(&c, key);
  perigee__buf_i64(&c.out, delta);
  return perigee__call_ask_i64(&c, value_p);
}

static int tcp_compare_set(perigee_store *s, const char *key, const void *expected,
                           size_t expected_size, const void *desired, size_t desired_size,
                           perigee_bytes *value_p) {
  perigee__call c = perigee__call_request(s, "compare_set", PERIGEE__REQ_COMPARE_SET);
  perigee__call_put_key(&c, key);
  perigee__buf_bytes(&c.out, expected, expected_size);
  perigee__buf_bytes(&c.out, desired, desired_size);
  return perigee__call_ask_bytes(&c, value_p);
}

static int tcp_check(perigee_store *s, const char *const *keys, size_t n, bool *all_present_p) {
  perigee__call c = perigee__call_request(s, "check", PERIGEE__REQ_CHECK);
  return perigee__call_end(&c, perigee__call_check(&c, keys, n, all_present_p));
}

static int tcp_delete_key(perigee_store *s, const char *key, bool *deleted_p) {
  int64_t n = 0;
  perigee__call c = perigee__call_request(s, "delete_key", PERIGEE__REQ_DELETE_KEY);
  perigee__call_put_key(&c, key);
  PERIGEE_TRY(perigee__call_ask_i64(&c, &n));
  *deleted_p = n > 0;
  return 0;
}

static int tcp_num_keys(perigee_store *s, int64_t *n_p) {
  perigee__call c = perigee__call_request(s, "num_keys", PERIGEE__REQ_GETNUMKEYS);
  return perigee__call_ask_i64(&c, n_p);
}

static int tcp_queue_len(perigee_store *s, const char *key, int64_t *n_p) {
  perigee__call c = perigee__call_request(s, "queue_len", PERIGEE__REQ_QUEUE_LEN);
  perigee__call_put_key(&c, key);
  return perigee__call_ask_i64(&c, n_p);
}

static int tcp_wait(perigee_store *s, const char *const *keys, size_t n, int64_t timeout_ns) {
  perigee__call c = perigee__call_wait(s, "wait", timeout_ns);
  return perigee__call_end(&c, perigee__call_await_keys(&c, keys, n, timeout_ns));
}

static int tcp_get(perigee_store *s, const char *key, int64_t timeout_ns, perigee_bytes *value_p) {
  perigee__call c = perigee__call_wait(s, "get", timeout_ns);
  int rc = perigee__call_await_keys(&c, &key, 1, timeout_ns);
  if (rc < 0)
    return perigee__call_end(&c, rc);
  perigee__call_next(&c, PERIGEE__REQ_GET);
  perigee__call_put_key(&c, key);
  return perigee__call_ask_bytes(&c, value_p);
}

static int tcp_multi_get(perigee_store *s, const char *const *keys, size_t n, int64_t timeout_ns,
                         perigee_bytes *values_p) {
  perigee_bytes *values = perigee__calloc(n, sizeof(*values));
  if (values == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "store multi_get: no memory for %zu values", n);
  perigee__call c = perigee__call_wait(s, "multi_get", timeout_ns);
  int rc = perigee__call_await_keys(&c, keys, n, timeout_ns);
  if (rc == 0) {
    perigee__call_next(&c, PERIGEE__REQ_MULTI_GET);
    perigee__call_put_keys(&c, keys, n);
    rc = perigee__call_send(&c);
  }
  size_t done = 0;
  while (rc == 0 && done < n && (rc = perigee__call_read_value(&c, &values[done])) == 0)
    done++;
  if (rc == 0)
    memcpy(values_p, values, n * sizeof(*values));
  else
    while (done > 0)
      perigee_bytes_free(&values[--done]);
  free(values);
  return perigee__call_end(&c, rc);
}

/* One try. *len_p: items before it; 0: there was none. */
static int pop_on(perigee__call *c, const char *key, int64_t *len_p, perigee_bytes *value_p) {
  perigee__call_next(c, PERIGEE__REQ_QUEUE_POP);
  perigee__call_put_key(c, key);
  PERIGEE_TRY(perigee__call_send(c));
  PERIGEE_TRY(perigee__conn_read_i64(c->conn, c->deadline_ns, len_p));
  return *len_p > 0 ? perigee__call_read_value(c, value_p) : 0;
}

static int tcp_queue_pop(perigee_store *s, const char *key, int64_t timeout_ns,
                         perigee_bytes *value_p) {
  int64_t deadline = perigee__deadline_in(timeout_ns), len = 0, pause = PERIGEE_NS_PER_MS;
  perigee_bytes value;
  for (;;) {
    perigee__call c = perigee__call_wait(s, "queue_pop", timeout_ns);
    int rc = 0;
    if (timeout_ns > 0) {
      c.deadline_ns = deadline;
      rc = perigee__call_await_keys(&c, &key, 1, timeout_ns);
    }
    if (rc == 0)
      rc = pop_on(&c, key, &len, &value);
    PERIGEE_TRY(perigee__call_end(&c, rc));
    if (len > 0) {
      *value_p = value;
      return 0;
    }
    if (timeout_ns == 0)
      return perigee__fail(PERIGEE_EAGAIN, "queue is empty: /%s", key);
    /* Another client was quicker; or a plain key of this name exists, which satisfies a WAIT without end. */
    int64_t left = perigee__time_left(deadline);
    if (left == 0)
      return perigee__store_timed_out(timeout_ns, "/", &key, 1);
    perigee__sleep_ns(pause < left ? pause : left);
    pause = pause * 2 < 50 * PERIGEE_NS_PER_MS ? pause * 2 : 50 * PERIGEE_NS_PER_MS;
  }
}

static int read_keys(perigee__call *c, char ***keys_p, size_t *n_p) {
  int64_t claimed = 0;
  PERIGEE_TRY(perigee__conn_read_i64(c->conn, c->deadline_ns, &claimed));
  char **keys = NULL;
  size_t n = 0, cap = 0;
  int rc = claimed >= 0 ? 0 : perigee__conn_bad_reply(c->conn, "number of keys", claimed);
  for (int64_t i = 0; i < claimed && rc == 0; i++) {
    perigee_bytes key;
    if ((rc = perigee__call_read_value(c, &key)) < 0)
      break;
    if (key.size == 0 || key.data[0] != '/') { /* "init/" is no user's */
      perigee_bytes_free(&key);
      continue;
    }
    char **bigger = n < cap ? keys : realloc(keys, (cap = cap > 0 ? cap * 2 : 16) * sizeof(*keys));
    if (bigger == NULL) {
      perigee_bytes_free(&key);
      perigee__conn_close(c->conn);
      rc = perigee__fail(PERIGEE_ENOMEM, "store list_keys: no memory for %zu keys", cap);
      break;
    }
    keys = bigger;
    memmove(key.data, key.data + 1, key.size); /* with the NUL */
    keys[n++] = key.data;
  }
  if (rc < 0) {
    perigee_store_keys_free(keys, n);
    return rc;
  }
  *keys_p = keys;
  *n_p = n;
  return 0;
}

static int tcp_list_keys(perigee_store *s, char ***keys_p, size_t *n_p) {
  perigee__call c = perigee__call_request(s, "list_keys", PERIGEE__REQ_LIST_KEYS);
  int rc = perigee__call_send(&c);
  if (rc == 0)
    rc = read_keys(&c, keys_p, n_p);
  return perigee__call_end(&c, rc);
}

/* ---- barrier ---- */

/* What this handle wrote has been carried out when this returns. */
static int flush_main(perigee__call *c) {
  char reply[4];
  perigee__call_next(c, PERIGEE__REQ_PING);
  perigee__buf_u32(&c->out, (uint32_t)getpid());
  int rc = perigee__call_send(c);
  if (rc == 0)
    rc = perigee__conn_read(c->conn, reply, sizeof(reply), c->deadline_ns);
  if (c->in_gate)
    perigee__call_leave_main(c);
  return rc;
}

/*
 * BARRIER is younger than other requests, and a server that does not know it closes the connection. One that is still there
 * to shake hands after that is such a server: it has counted nothing.
 */
static bool unknown_request(perigee__call *c) {
  perigee_error first = *perigee_last_error();
  if (first.code != PERIGEE_ESTORE || c->conn == NULL)
    return false;
  int64_t soon = perigee__deadline_in(PERIGEE__REOPEN_NS);
  int rc = perigee__conn_open_once(c->conn, soon < c->deadline_ns ? soon : c->deadline_ns);
  perigee__fail_with(&first);
  return rc == 0;
}

static int tcp_barrier(perigee_store *s, const char *key, int world_size, int64_t timeout_ns) {
  perigee__tcp *t = of(s);
  int64_t deadline = perigee__deadline_in(timeout_ns);
  if (atomic_load_explicit(&t->no_barrier, memory_order_relaxed))
    return perigee__store_generic_barrier(s, key, world_size, timeout_ns);
  perigee__call c = perigee__call_wait(s, "barrier", timeout_ns);
  int rc = flush_main(&c);
  if (rc == 0)
    rc = perigee__call_take_own(&c);
  if (rc == 0) {
    perigee__call_next(&c, PERIGEE__REQ_BARRIER);
    perigee__call_put_key(&c, key);
    perigee__buf_i64(&c.out, world_size);
    rc = perigee__call_send(&c);
    c.deadline_ns = deadline;
    if (rc == 0)
      rc = perigee__call_await(&c);
    if (rc < 0 && unknown_request(&c)) {
      atomic_store_explicit(&t->no_barrier, true, memory_order_relaxed);
      perigee__call_end(&c, rc);
      return perigee__store_generic_barrier(s, key, world_size, perigee__time_left(deadline));
    }
  }
  perigee__call_end(&c, rc);
  if (rc == PERIGEE__WAIT_EXPIRED)
    return perigee__fail(PERIGEE_ETIMEDOUT, "barrier timeout after %lldms, key: /%s",
                         (long long)(timeout_ns / PERIGEE_NS_PER_MS), key);
  return rc;
}

/* ---- handles ---- */

static void tcp_destroy(perigee_store *s) {
  perigee__tcp *t = of(s);
  while (!perigee__list_empty(&t->pool)) {
    perigee__conn *conn = PERIGEE_CONTAINER_OF(t->pool.next, perigee__conn, link);
    perigee__list_remove(&conn->link);
    perigee__conn_close(conn);
    free(conn);
  }
  perigee__conn_close(&t->main);
  perigee__gate_fini(&t->gate);
  perigee__mutex_fini(&t->pool_mutex);
  close(t->kick_fd);
  free(t->to.host);
  free(t);
}

static int tcp_clone(perigee_store *s, perigee_store **store_p);

static const perigee__store_ops tcp_ops = {
    .kind = "tcp",
    .destroy = tcp_destroy,
    .clone = tcp_clone,
    .set = tcp_set,
    .get = tcp_get,
    .add = tcp_add,
    .compare_set = tcp_compare_set,
    .wait = tcp_wait,
    .check = tcp_check,
    .delete_key = tcp_delete_key,
    .num_keys = tcp_num_keys,
    .list_keys = tcp_list_keys,
    .queue_push = tcp_queue_push,
    .queue_pop = tcp_queue_pop,
    .queue_len = tcp_queue_len,
    .append = tcp_append,
    .multi_get = tcp_multi_get,
    .multi_set = tcp_multi_set,
    .barrier = tcp_barrier,
};

/* A handle that is not connected yet. */
static int tcp_new(const char *host, int port, perigee__tcp **store_p) {
  perigee__tcp *t = perigee__calloc(1, sizeof(*t));
  if (t == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory for a tcp store");
  t->to = (perigee__endpoint){.host = perigee__strdup(host), .port = port};
  if (t->to.host == NULL) {
    free(t);
    return perigee__fail(PERIGEE_ENOMEM, "no memory for a tcp store");
  }
  t->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (t->kick_fd < 0) {
    int rc = perigee__fail_errno(errno, "tcp store: eventfd");
    free(t->to.host);
    free(t);
    return rc;
  }
  perigee__gate_init(&t->gate, "tcp store", t->kick_fd);
  perigee__mutex_init(&t->pool_mutex, PERIGEE_LOCK_STORE, "tcp store pool");
  perigee__list_init(&t->pool);
  perigee__conn_init(&t->main, &t->to);
  perigee__store_init(&t->base, &tcp_ops);
  *store_p = t;
  return 0;
}

/* Tell the server that one more client of the world is there. */
static int join_world(perigee__tcp *t, int64_t deadline_ns) {
  int64_t joined;
  perigee__call c = perigee__call_begin(&t->base, "join", deadline_ns, PERIGEE__REQ_ADD);
  perigee__buf_bytes(&c.out, PERIGEE__WIRE_INIT_KEY, strlen(PERIGEE__WIRE_INIT_KEY));
  perigee__buf_i64(&c.out, 1);
  return perigee__call_ask_i64(&c, &joined);
}

static int tcp_open(const char *host, int port, int64_t timeout_ns, int world_size,
                    perigee_store **store_p) {
  int64_t deadline = perigee__deadline_in(timeout_ns);
  perigee__tcp *t = NULL;
  PERIGEE_TRY(tcp_new(host, port, &t));
  int rc = perigee__conn_open(&t->main, deadline);
  if (rc == 0 && world_size > 0)
    rc = join_world(t, deadline);
  if (rc < 0) {
    tcp_destroy(&t->base);
    return rc;
  }
  perigee_store_set_timeout(&t->base, timeout_ns);
  *store_p = &t->base;
  return 0;
}

static int tcp_clone(perigee_store *s, perigee_store **store_p) {
  int64_t timeout = perigee__store_timeout(s);
  return tcp_open(of(s)->to.host, of(s)->to.port, timeout > 0 ? timeout : PERIGEE__STORE_REQUEST_NS,
                  0, store_p);
}

int perigee_store_tcp_connect(const perigee_store_tcp_options *opts, perigee_store **store_p) {
  if (opts == NULL || store_p == NULL)
    return perigee__fail(PERIGEE_EINVAL, "tcp store: no %s given",
                         opts == NULL ? "options" : "output");
  if (opts->size < sizeof(*opts))
    return perigee__fail(PERIGEE_EINVAL, "tcp store: options.size is %u, not %zu", opts->size,
                         sizeof(*opts));
  if (opts->host == NULL || opts->host[0] == '\0')
    return perigee__fail(PERIGEE_EINVAL, "tcp store: no host given");
  if (opts->port < 1 || opts->port > 65535)
    return perigee__fail(PERIGEE_EINVAL, "tcp store: port %d", opts->port);
  if (opts->world_size < 0)
    return perigee__fail(PERIGEE_EINVAL, "tcp store: world size %d", opts->world_size);
  return tcp_open(opts->host, opts->port,
                  opts->timeout_ns > 0 ? opts->timeout_ns : PERIGEE__STORE_TIMEOUT_NS,
                  opts->world_size, store_p);
}
