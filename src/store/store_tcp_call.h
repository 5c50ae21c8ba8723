/*
 * One operation on a TCP store, and the connections it may use.
 *
 * Every request goes over the main connection, one at a time (the gate), so that what a thread wrote is seen by what any thread
 * of this handle asks later; that matters because writes have no reply. A single-threaded user needs no other connection.
 *
 * A wait begins on the main connection too. When another thread wants in, the gate's kick ends the wait there with CANCEL_WAIT,
 * whose reply also proves that all writes before it were carried out, and the wait goes on over a connection of its own, taken
 * from a pool or opened. BARRIER counts and must not be sent twice: it takes a connection of its own from the start, after a
 * PING on the main one for the same proof.
 *
 * A request that fails half-way closes its connection; the next one opens it again. What the server may have
 * carried out is never sent again.
 *
 * A call is begun, filled, sent, answered and ended, on one thread:
 *   perigee__call c = perigee__call_request(s, "get", code);
 *   put...; perigee__call_send(&c); read...;
 *   return perigee__call_end(&c, rc);
 */
#ifndef PERIGEE_STORE_TCP_CALL_H
#define PERIGEE_STORE_TCP_CALL_H

#include "base/clock.h"
#include "store/store.h"
#include "store/store_gate.h"
#include "store/store_tcp_conn.h"
#include "store/store_tcp_proto.h"

/* How long a lost connection may take to come back before the store counts as dead. */
#define PERIGEE__REOPEN_NS (1500 * PERIGEE_NS_PER_MS)

typedef struct perigee__tcp {
  perigee_store base;
  perigee__endpoint to; /* immutable */
  int kick_fd;          /* immutable: the gate's */
  perigee__gate gate;   /* whoever is in has main */
  perigee__conn main;
  _Atomic bool no_barrier; /* the server does not know BARRIER; relaxed: a hint */
  perigee_mutex pool_mutex;
  perigee__node pool; /* idle connections for waits, under pool_mutex */
  int npool;          /* under pool_mutex */
} perigee__tcp;

/* One operation: a request, the connection it has, and until when it may take. */
typedef struct perigee__call {
  perigee__tcp *store;
  const char *what;
  int64_t deadline_ns;
  perigee__buf out;
  perigee__conn *conn; /* NULL: none yet */
  bool in_gate;        /* conn is main */
} perigee__call;

/* ---- building ---- */

perigee__call perigee__call_begin(perigee_store *s, const char *what, int64_t deadline_ns,
                                  uint8_t code);
/** For a request that has nothing to wait for. */
perigee__call perigee__call_request(perigee_store *s, const char *what, uint8_t code);
/** For an operation that begins with a wait. */
perigee__call perigee__call_wait(perigee_store *s, const char *what, int64_t timeout_ns);
/** The next request of the same call, on the connection it has. */
void perigee__call_next(perigee__call *c, uint8_t code);
/** "/" and the key. */
void perigee__call_put_key(perigee__call *c, const char *key);
void perigee__call_put_keys(perigee__call *c, const char *const *keys, size_t n);

/* ---- sending and reading. A failure between a request and the end of its reply closes the connection ---- */

/** Write the request that was built; takes main unless the call has a connection. */
int perigee__call_send(perigee__call *c);
int perigee__call_read_value(perigee__call *c, perigee_bytes *value_p);
/** CHECK. */
int perigee__call_check(perigee__call *c, const char *const *keys, size_t n, bool *all_present_p);
/** Give back the connection and the memory. Every call ends here. Returns rc. */
int perigee__call_end(perigee__call *c, int rc);

/** Send a request that has no reply, and end. */
int perigee__call_say(perigee__call *c);
/** Send, read one number, end. */
int perigee__call_ask_i64(perigee__call *c, int64_t *value_p);
/** Send, read one value, end. */
int perigee__call_ask_bytes(perigee__call *c, perigee_bytes *value_p);

/* ---- waiting ---- */

/* How a wait ended; negative: with an error. */
enum {
  PERIGEE__WAIT_ANSWERED,
  PERIGEE__WAIT_DISPLACED, /* taken back, because another thread wants main */
  PERIGEE__WAIT_EXPIRED,   /* taken back, or the connection closed, because time is up */
};
/** A WAIT or BARRIER was sent: see it through. */
int perigee__call_await(perigee__call *c);
/** Until all keys exist. On success the call has a connection and time for what is to follow. */
int perigee__call_await_keys(perigee__call *c, const char *const *keys, size_t n,
                             int64_t timeout_ns);
void perigee__call_leave_main(perigee__call *c);
/** A connection for a wait alone. */
int perigee__call_take_own(perigee__call *c);

#endif
