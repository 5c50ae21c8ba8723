#include "store/store_tcp_conn.h"

#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "store/store.h"
#include "store/store_tcp_proto.h"

#define PAUSE_FIRST_NS (10 * PERIGEE_NS_PER_MS)
#define PAUSE_MAX_NS (1000 * PERIGEE_NS_PER_MS)
#define LAST_CALL_NS (2 * PERIGEE_NS_PER_MS) /* no use in another try */
/* One try of connecting and shaking hands: a server that accepts and says nothing must not use up all the time. */
#define ATTEMPT_NS (10 * PERIGEE_NS_PER_SEC)

void perigee__conn_init(perigee__conn *c, const perigee__endpoint *to) {
  c->to = to;
  c->fd = -1;
  c->what = "connect";
  c->in_at = c->in_end = 0;
  perigee__list_init(&c->link);
}

void perigee__conn_close(perigee__conn *c) {
  if (c->fd >= 0)
    close(c->fd);
  c->fd = -1;
  c->in_at = c->in_end = 0;
}

/* ---- failures: each names the server and the request, and closes ---- */

static int late(perigee__conn *c) {
  perigee__conn_close(c);
  return perigee__fail(PERIGEE_ETIMEDOUT, "store at %s:%d, %s: the server did not answer in time",
                       c->to->host, c->to->port, c->what);
}

static int gone(perigee__conn *c) {
  perigee__conn_close(c);
  return perigee__fail(
      PERIGEE_ESTORE,
      "store at %s:%d, %s: the server closed the connection (it ended, refused the "
      "request, or does not know it)",
      c->to->host, c->to->port, c->what);
}

static int broken(perigee__conn *c, int error) {
  if (error == EPIPE || error == ECONNRESET)
    return gone(c);
  perigee__conn_close(c);
  return perigee__fail(PERIGEE_ESTORE, "store at %s:%d, %s: %s", c->to->host, c->to->port, c->what,
                       perigee_strerror(-error));
}

int perigee__conn_bad_reply(perigee__conn *c, const char *what, long long got) {
  perigee__conn_close(c);
  return perigee__fail(PERIGEE_EPROTO, "store at %s:%d, %s: %s is %lld", c->to->host, c->to->port,
                       c->what, what, got);
}

/* ---- bytes ---- */

int perigee__conn_write(perigee__conn *c, const void *data, size_t size, int64_t deadline_ns) {
  for (size_t done = 0; done < size;) {
    ssize_t n = send(c->fd, (const char *)data + done, size - done, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n >= 0) {
      done += (size_t)n;
      continue;
    }
    if (errno == EINTR)
      continue;
    if (errno != EAGAIN && errno != EWOULDBLOCK)
      return broken(c, errno);
    int rc = perigee__net_poll(c->fd, POLLOUT, -1, deadline_ns);
    if (rc < 0)
      return rc == PERIGEE_ETIMEDOUT ? late(c) : (perigee__conn_close(c), rc);
  }
  return 0;
}

/* Whether receiving failed for good (*rc_p set); otherwise it would have to wait. */
static bool receive_failed(perigee__conn *c, ssize_t n, int *rc_p) {
  if (n == 0)
    *rc_p = gone(c);
  else if (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)
    *rc_p = broken(c, errno);
  else
    return false;
  return true;
}

int perigee__conn_read(perigee__conn *c, void *data, size_t size, int64_t deadline_ns) {
  int rc;
  for (char *to = data; size > 0;) {
    size_t have = c->in_end - c->in_at, take = have < size ? have : size;
    memcpy(to, c->in + c->in_at, take);
    c->in_at += take;
    to += take;
    size -= take;
    if (size == 0)
      break;
    c->in_at = c->in_end = 0;
    bool direct = size >= sizeof(c->in);
    ssize_t n = recv(c->fd, direct ? to : c->in, direct ? size : sizeof(c->in), MSG_DONTWAIT);
    if (n > 0 && direct) {
      to += n;
      size -= (size_t)n;
    } else if (n > 0)
      c->in_end = (size_t)n;
    else if (receive_failed(c, n, &rc))
      return rc;
    else if ((rc = perigee__net_poll(c->fd, POLLIN, -1, deadline_ns)) < 0)
      return rc == PERIGEE_ETIMEDOUT ? late(c) : (perigee__conn_close(c), rc);
  }
  return 0;
}

int perigee__conn_read_byte(perigee__conn *c, int other_fd, int64_t deadline_ns, uint8_t *byte_p) {
  int rc;
  while (c->in_at == c->in_end) {
    ssize_t n = recv(c->fd, c->in, sizeof(c->in), MSG_DONTWAIT);
    if (n > 0) {
      c->in_at = 0;
      c->in_end = (size_t)n;
    } else if (receive_failed(c, n, &rc))
      return rc;
    else if ((rc = perigee__net_poll(c->fd, POLLIN, other_fd, deadline_ns)) != 0)
      return rc;
  }
  *byte_p = (uint8_t)c->in[c->in_at++];
  return 0;
}

int perigee__conn_read_i64(perigee__conn *c, int64_t deadline_ns, int64_t *value_p) {
  char raw[8];
  PERIGEE_TRY(perigee__conn_read(c, raw, sizeof(raw), deadline_ns));
  *value_p = (int64_t)perigee__le64(raw);
  return 0;
}

int perigee__conn_read_bytes(perigee__conn *c, int64_t deadline_ns, char **data_p, size_t *size_p) {
  int64_t claimed = 0;
  PERIGEE_TRY(perigee__conn_read_i64(c, deadline_ns, &claimed));
  if (claimed < 0 || claimed > PERIGEE__WIRE_REQUEST_MAX)
    return perigee__conn_bad_reply(c, "length of a value", claimed);
  size_t size = (size_t)claimed, at = 0, cap = 0;
  char *data = NULL;
  do { /* grows with what comes, not with what was claimed */
    size_t next = cap == 0 ? (size_t)64 << 10 : cap * 2;
    cap = next < size ? next : size;
    char *bigger = realloc(data, cap + 1);
    int rc = bigger != NULL ? 0 : perigee__fail(PERIGEE_ENOMEM, "no memory for %zu bytes", cap);
    if (bigger == NULL)
      perigee__conn_close(c);
    else {
      data = bigger;
      rc = perigee__conn_read(c, data + at, cap - at, deadline_ns);
    }
    if (rc < 0) {
      free(data);
      return rc;
    }
    at = cap;
  } while (at < size);
  data[size] = '\0';
  *data_p = data;
  *size_p = size;
  return 0;
}

/* ---- opening ---- */

static int shake_hands(perigee__conn *c, int64_t deadline_ns) {
  static const char hello[] = "\0" PERIGEE__WIRE_MAGIC;
  uint32_t nonce = (uint32_t)getpid();
  char ping[5] = {PERIGEE__REQ_PING}, reply[4];
  for (int i = 0; i < 4; i++)
    ping[1 + i] = (char)(nonce >> (8 * i));
  c->what = "handshake";
  /* Two writes: there are servers that want the first five bytes alone. */
  PERIGEE_TRY(perigee__conn_write(c, hello, 1 + PERIGEE__WIRE_MAGIC_SIZE, deadline_ns));
  PERIGEE_TRY(perigee__conn_write(c, ping, sizeof(ping), deadline_ns));
  PERIGEE_TRY(perigee__conn_read(c, reply, sizeof(reply), deadline_ns));
  if (perigee__le32(reply) != nonce)
    return perigee__conn_bad_reply(c, "the answer to a ping", perigee__le32(reply));
  return 0;
}

int perigee__conn_open_once(perigee__conn *c, int64_t deadline_ns) {
  perigee__conn_close(c);
  PERIGEE_TRY(perigee__net_connect(c->to->host, c->to->port, deadline_ns, &c->fd));
  return shake_hands(c, deadline_ns);
}

/* pause times 0.5 to 1.5, so that clients that lost a server together do not come back together. */
static int64_t jittered(int64_t pause_ns) {
  static _Atomic uint64_t state;
  /* splitmix64; relaxed: only has to differ */
  uint64_t z =
      atomic_fetch_add_explicit(&state, UINT64_C(0x9e3779b97f4a7c15), memory_order_relaxed) +
      (uint64_t)perigee__now_ns() + (uint64_t)getpid();
  z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
  z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
  z ^= z >> 31;
  return pause_ns / 2 + (int64_t)(z % (uint64_t)pause_ns);
}

int perigee__conn_open(perigee__conn *c, int64_t deadline_ns) {
  int64_t pause = PAUSE_FIRST_NS, began = perigee__now_ns();
  for (int tries = 1;; tries++) {
    int64_t attempt = perigee__deadline_in(ATTEMPT_NS);
    int rc = perigee__conn_open_once(c, attempt < deadline_ns ? attempt : deadline_ns);
    if (rc == 0)
      return 0;
    if (rc == PERIGEE_EINVAL || rc == PERIGEE_ENOMEM || rc == -EMFILE || rc == -ENFILE)
      return rc; /* waiting does not help */
    int64_t rest = jittered(pause), left = perigee__time_left(deadline_ns);
    if (rest >= left) /* near the end the tries come closer: the server may just be starting */
      rest = left / 2;
    if (left < LAST_CALL_NS) {
      perigee_error last = *perigee_last_error();
      return perigee__fail(
          PERIGEE_ETIMEDOUT, "store at %s:%d: no connection within %lldms (%d attempts, last: %s)",
          c->to->host, c->to->port, (long long)((perigee__now_ns() - began) / PERIGEE_NS_PER_MS),
          tries, last.message);
    }
    perigee__sleep_ns(rest);
    pause = pause * 2 < PAUSE_MAX_NS ? pause * 2 : PAUSE_MAX_NS;
  }
}

bool perigee__conn_alive(perigee__conn *c) {
  char byte;
  if (c->fd < 0)
    return false;
  /* Nothing was asked, so there is nothing to come but the end. */
  ssize_t n = c->in_at == c->in_end ? recv(c->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) : 1;
  if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
    return true;
  perigee__conn_close(c);
  return false;
}
