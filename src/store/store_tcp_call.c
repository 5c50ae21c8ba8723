#include "store/store_tcp_call.h"

#include <stdlib.h>
#include <string.h>

enum {
  POOL_MAX = 8
};
/* How long after its deadline a wait may still talk: to take itself back, or to fetch what it waited for. */
#define SETTLE_NS (200 * PERIGEE_NS_PER_MS)
/* How long the answer to a wait may take before it gives way to another thread: a round trip, for keys that exist. */
#define YIELD_NS (2 * PERIGEE_NS_PER_MS)

static perigee__tcp *of(perigee_store *s) { return (perigee__tcp *)(void *)s; }

/* ---- building ---- */

void perigee__call_put_key(perigee__call *c, const char *key) {
  size_t size = strlen(key);
  perigee__buf_u64(&c->out, size + 1);
  perigee__buf_u8(&c->out, '/');
  perigee__buf_put(&c->out, key, size);
}

void perigee__call_put_keys(perigee__call *c, const char *const *keys, size_t n) {
  perigee__buf_u64(&c->out, n);
  for (size_t i = 0; i < n; i++)
    perigee__call_put_key(c, keys[i]);
}

perigee__call perigee__call_begin(perigee_store *s, const char *what, int64_t deadline_ns,
                                  uint8_t code) {
  perigee__call c = {.store = of(s), .what = what, .deadline_ns = deadline_ns};
  perigee__buf_u8(&c.out, code);
  return c;
}

perigee__call perigee__call_request(perigee_store *s, const char *what, uint8_t code) {
  return perigee__call_begin(s, what, perigee__deadline_in(PERIGEE__STORE_REQUEST_NS), code);
}

void perigee__call_next(perigee__call *c, uint8_t code) {
  perigee__buf_reset(&c->out, 4096);
  perigee__buf_u8(&c->out, code);
}

/* ---- connections ---- */

static int reopen(perigee__call *c, perigee__conn *conn) {
  int64_t limit = perigee__deadline_in(PERIGEE__REOPEN_NS);
  if (perigee__conn_open(conn, limit < c->deadline_ns ? limit : c->deadline_ns) == 0)
    return 0;
  perigee_error last = *perigee_last_error();
  return perigee__fail(PERIGEE_ESTORE, "%s: the connection was lost: %s", c->what, last.message);
}

static int take_main(perigee__call *c) {
  perigee__tcp *s = c->store;
  if (perigee__gate_enter(&s->gate, c->deadline_ns) < 0)
    return perigee__fail(PERIGEE_ETIMEDOUT, "store at %s:%d, %s: busy in another thread",
                         s->to.host, s->to.port, c->what);
  c->in_gate = true;
  c->conn = &s->main;
  return perigee__conn_alive(c->conn) ? 0 : reopen(c, c->conn);
}

void perigee__call_leave_main(perigee__call *c) {
  c->conn = NULL;
  c->in_gate = false;
  perigee__gate_leave(&c->store->gate);
}

int perigee__call_take_own(perigee__call *c) {
  perigee__tcp *s = c->store;
  perigee__conn *conn = NULL;
  perigee__lock(&s->pool_mutex);
  if (!perigee__list_empty(&s->pool)) {
    conn = PERIGEE_CONTAINER_OF(s->pool.prev, perigee__conn, link);
    perigee__list_remove(&conn->link);
    s->npool--;
  }
  perigee__unlock(&s->pool_mutex);
  if (conn == NULL) {
    conn = malloc(sizeof(*conn));
    if (conn == NULL)
      return perigee__fail(PERIGEE_ENOMEM, "store %s: no memory for a connection", c->what);
    perigee__conn_init(conn, &s->to);
  }
  c->conn = conn;
  return perigee__conn_alive(conn) ? 0 : reopen(c, conn);
}

static void give_own(perigee__tcp *s, perigee__conn *conn) {
  perigee__lock(&s->pool_mutex);
  bool keep = conn->fd >= 0 && s->npool < POOL_MAX;
  if (keep) {
    perigee__list_append(&s->pool, &conn->link);
    s->npool++;
  }
  perigee__unlock(&s->pool_mutex);
  if (!keep) {
    perigee__conn_close(conn);
    free(conn);
  }
}

int perigee__call_end(perigee__call *c, int rc) {
  perigee__buf_fini(&c->out);
  if (c->in_gate)
    perigee__call_leave_main(c);
  else if (c->conn != NULL)
    give_own(c->store, c->conn);
  return rc;
}

/* ---- requests ---- */

int perigee__call_send(perigee__call *c) {
  if (c->out.failed)
    return perigee__fail(PERIGEE_ENOMEM, "store %s: no memory for the request", c->what);
  if (c->out.size > PERIGEE__WIRE_REQUEST_MAX)
    return perigee__fail(PERIGEE_ELIMIT, "store %s: request of %zu bytes, at most %d", c->what,
                         c->out.size, PERIGEE__WIRE_REQUEST_MAX);
  if (c->conn == NULL)
    PERIGEE_TRY(take_main(c));
  c->conn->what = c->what;
  return perigee__conn_write(c->conn, c->out.data, c->out.size, c->deadline_ns);
}

int perigee__call_say(perigee__call *c) { return perigee__call_end(c, perigee__call_send(c)); }

int perigee__call_ask_i64(perigee__call *c, int64_t *value_p) {
  int64_t value = 0;
  int rc = perigee__call_send(c);
  if (rc == 0)
    rc = perigee__conn_read_i64(c->conn, c->deadline_ns, &value);
  if (rc == 0)
    *value_p = value;
  return perigee__call_end(c, rc);
}

int perigee__call_read_value(perigee__call *c, perigee_bytes *value_p) {
  return perigee__conn_read_bytes(c->conn, c->deadline_ns, &value_p->data, &value_p->size);
}

int perigee__call_ask_bytes(perigee__call *c, perigee_bytes *value_p) {
  perigee_bytes value;
  int rc = perigee__call_send(c);
  if (rc == 0)
    rc = perigee__call_read_value(c, &value);
  if (rc == 0)
    *value_p = value;
  return perigee__call_end(c, rc);
}

/* One byte that must be a or b. */
static int read_choice(perigee__call *c, uint8_t a, uint8_t b, uint8_t *byte_p) {
  PERIGEE_TRY(perigee__conn_read(c->conn, byte_p, 1, c->deadline_ns));
  if (*byte_p != a && *byte_p != b)
    return perigee__conn_bad_reply(c->conn, "the reply", *byte_p);
  return 0;
}

/* ---- waiting ---- */

/*
 * Take back the WAIT or BARRIER that was sent. 1: it was answered before; 0: it is over; the connection is in step in both
 * cases. Negative: it was not possible and the connection is closed.
 */
static int cancel(perigee__call *c, int64_t deadline_ns) {
  uint8_t code = PERIGEE__REQ_CANCEL_WAIT, byte = 0, second = 0;
  PERIGEE_TRY(perigee__conn_write(c->conn, &code, 1, deadline_ns));
  PERIGEE_TRY(perigee__conn_read(c->conn, &byte, 1, deadline_ns));
  if (byte == PERIGEE__WIRE_WAIT_CANCELED)
    return 0;
  if (byte != PERIGEE__WIRE_STOP_WAITING)
    return perigee__conn_bad_reply(c->conn, "the reply to CANCEL_WAIT", byte);
  PERIGEE_TRY(perigee__conn_read(c->conn, &second, 1, deadline_ns));
  if (second != PERIGEE__WIRE_WAIT_CANCELED)
    return perigee__conn_bad_reply(c->conn, "the second reply to CANCEL_WAIT", second);
  return 1;
}

/* Until when the rest of a call that waited may take: it needs no more than round trips. */
static int64_t settle_deadline(const perigee__call *c) {
  int64_t least = perigee__deadline_in(SETTLE_NS);
  int64_t most = perigee__deadline_in(PERIGEE__STORE_REQUEST_NS);
  int64_t at = c->deadline_ns > least ? c->deadline_ns : least;
  return at < most ? at : most;
}

static int take_back(perigee__call *c, int outcome) {
  int rc = cancel(c, settle_deadline(c));
  if (rc == 1)
    return PERIGEE__WAIT_ANSWERED;
  /* A server that does not even answer that: the connection is closed, the wait is late all the same. */
  return rc == 0 || outcome == PERIGEE__WAIT_EXPIRED ? outcome : rc;
}

int perigee__call_await(perigee__call *c) {
  uint8_t byte = 0;
  int rc;
  do {
    if (c->in_gate && perigee__gate_wanted(&c->store->gate)) {
      int64_t soon = perigee__deadline_in(YIELD_NS);
      rc = perigee__conn_read_byte(c->conn, -1, soon < c->deadline_ns ? soon : c->deadline_ns,
                                   &byte);
      if (rc == PERIGEE_ETIMEDOUT)
        return take_back(c, PERIGEE__WAIT_DISPLACED);
    } else {
      rc = perigee__conn_read_byte(c->conn, c->in_gate ? c->store->kick_fd : -1, c->deadline_ns,
                                   &byte);
      if (rc == PERIGEE_ETIMEDOUT)
        return take_back(c, PERIGEE__WAIT_EXPIRED);
    }
  } while (rc == 1); /* kicked: is somebody still waiting for main? */
  if (rc == 0 && byte != PERIGEE__WIRE_STOP_WAITING)
    rc = perigee__conn_bad_reply(c->conn, "the reply to a wait", byte);
  return rc < 0 ? rc : PERIGEE__WAIT_ANSWERED;
}

int perigee__call_check(perigee__call *c, const char *const *keys, size_t n, bool *all_present_p) {
  uint8_t byte = 0;
  perigee__call_next(c, PERIGEE__REQ_CHECK);
  perigee__call_put_keys(c, keys, n);
  PERIGEE_TRY(perigee__call_send(c));
  PERIGEE_TRY(read_choice(c, PERIGEE__WIRE_READY, PERIGEE__WIRE_NOT_READY, &byte));
  *all_present_p = byte == PERIGEE__WIRE_READY;
  return 0;
}

int perigee__call_await_keys(perigee__call *c, const char *const *keys, size_t n,
                             int64_t timeout_ns) {
  if (timeout_ns == 0) {
    bool present = false;
    PERIGEE_TRY(perigee__call_check(c, keys, n, &present));
    return present ? 0 : perigee__store_timed_out(timeout_ns, "/", keys, n);
  }
  perigee__call_next(c, PERIGEE__REQ_WAIT);
  perigee__call_put_keys(c, keys, n);
  PERIGEE_TRY(perigee__call_send(c));
  int rc = perigee__call_await(c);
  if (rc == PERIGEE__WAIT_DISPLACED) {
    perigee__call_leave_main(c);
    PERIGEE_TRY(perigee__call_take_own(c));
    PERIGEE_TRY(perigee__call_send(c));
    rc = perigee__call_await(c);
  }
  if (rc == PERIGEE__WAIT_EXPIRED)
    return perigee__store_timed_out(timeout_ns, "/", keys, n);
  c->deadline_ns = settle_deadline(c);
  return rc;
}

perigee__call perigee__call_wait(perigee_store *s, const char *what, int64_t timeout_ns) {
  return perigee__call_begin(
      s, what, perigee__deadline_in(timeout_ns > 0 ? timeout_ns : PERIGEE__STORE_REQUEST_NS),
      PERIGEE__REQ_WAIT);
}
