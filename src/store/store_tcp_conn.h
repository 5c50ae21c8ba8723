/*
 * One connection of a client: bytes out, bytes in, each with a deadline.
 *
 * A request that fails half-way leaves the connection closed (fd -1), never out of step: the next user opens it again.
 * One user at a time.
 */
#ifndef PERIGEE_STORE_TCP_CONN_H
#define PERIGEE_STORE_TCP_CONN_H

#include "base/list.h"
#include "store/store_buf.h"
#include "store/store_tcp_net.h"

#ifdef PERIGEE_HOSTILE
enum {
  PERIGEE__CONN_IN = 1
};
#else
enum {
  PERIGEE__CONN_IN = 4096
};
#endif

typedef struct perigee__endpoint {
  char *host;
  int port;
} perigee__endpoint;

typedef struct perigee__conn {
  const perigee__endpoint *to;
  int fd;               /* -1: not connected */
  const char *what;     /* request under way, for messages */
  size_t in_at, in_end; /* bytes of in that were received and not taken */
  perigee__node link;   /* for the owner */
  char in[PERIGEE__CONN_IN];
} perigee__conn;

void perigee__conn_init(perigee__conn *c, const perigee__endpoint *to);
void perigee__conn_close(perigee__conn *c);
/** Connect and shake hands, once. */
int perigee__conn_open_once(perigee__conn *c, int64_t deadline_ns);
/** Again and again, with growing pauses, until it works or the deadline is near; the message names the last cause. */
int perigee__conn_open(perigee__conn *c, int64_t deadline_ns);
/** Idle: whether the other side still is there. Closes it when not. */
bool perigee__conn_alive(perigee__conn *c);

/* Each closes the connection when it fails. */
int perigee__conn_write(perigee__conn *c, const void *data, size_t size, int64_t deadline_ns);
int perigee__conn_read(perigee__conn *c, void *data, size_t size, int64_t deadline_ns);
int perigee__conn_read_i64(perigee__conn *c, int64_t deadline_ns, int64_t *value_p);
/** A length and that many bytes, with a NUL behind them; returned owned. */
int perigee__conn_read_bytes(perigee__conn *c, int64_t deadline_ns, char **data_p, size_t *size_p);
/** One byte. 1 when other_fd became readable first, ETIMEDOUT without text; in both cases the connection stays. */
int perigee__conn_read_byte(perigee__conn *c, int other_fd, int64_t deadline_ns, uint8_t *byte_p);
/** Close it because the reply makes no sense. Returns EPROTO. */
int perigee__conn_bad_reply(perigee__conn *c, const char *what, long long got);

#endif
