/*
 * TCP links: listener, dialling, handshake, and the stream over a socket.
 *
 * The dialler writes a hello (magic 8, nonce 8, rank 4, size 4, zero 8; big endian) and waits for one byte: 'A' accepted, 'N' not
 * now. When two ranks dial each other at once, the link dialled by the lower rank stays: the lower one answers 'N', the higher one
 * gives its own up when the other's arrives. Nothing is lost, because nothing is sent before 'A'. A connection that ends in the
 * handshake is dialled again on the next sweep, a few times.
 * A stranger gets STRANGER_NS to send the right bytes, costs one slot of STRANGERS_MAX and no other memory, and is closed without a word.
 */
#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <linux/sockios.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "transport/mesh_impl.h"

enum {
  HELLO_BYTES = 32,
  REDIALS_MAX = 10,
  STRANGERS_MAX = 64,
  SWEEP_MS = 500
};
#define STRANGER_NS (2 * PERIGEE_NS_PER_SEC)
#define DIAL_NS (5 * PERIGEE_NS_PER_SEC)
static const char hello_magic[8] = {'P', 'e', 'r', 'i', 'g', 'e', 'e', '1'};

typedef enum link_state {
  LINK_STRANGER,   /* accepted, its hello is being read */
  LINK_CONNECTING, /* dialled, no connection yet */
  LINK_HELLO,      /* dialled, hello written, waits for the answer */
  LINK_REFUSED,    /* dialled, 'N': the other's link comes */
  LINK_UP,
  LINK_DOWN
} link_state;

typedef struct perigee__link {
  perigee__stream stream;
  perigee__node node; /* in mesh->strangers */
  perigee__mesh *mesh;
  perigee__peer *peer; /* NULL: stranger */
  uv_poll_t poll;
  int fd;
  link_state state;
  int64_t deadline_ns;
  uint8_t hello[HELLO_BYTES];
  size_t hello_have;
  bool want_write;
} perigee__link;

static void on_link(uv_poll_t *poll, int status, int events);

/* ---- sockets ----------------------------------------------------------------------------------- */

static int address_of(const char *host, int port, struct sockaddr_storage *addr, socklen_t *len_p) {
  struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV};
  struct addrinfo *found;
  char service[16];
  snprintf(service, sizeof(service), "%d", port);
  int rc = getaddrinfo(host, service, &hints, &found);
  if (rc != 0)
    return perigee__fail(PERIGEE_EINVAL, "'%s' is not a numeric address: %s", host,
                         gai_strerror(rc));
  memcpy(addr, found->ai_addr, found->ai_addrlen);
  *len_p = found->ai_addrlen;
  freeaddrinfo(found);
  return 0;
}

static bool is_any(const struct sockaddr_storage *at) {
  return at->ss_family == AF_INET6
             ? IN6_IS_ADDR_UNSPECIFIED(&((const struct sockaddr_in6 *)(const void *)at)->sin6_addr)
             : ((const struct sockaddr_in *)(const void *)at)->sin_addr.s_addr == INADDR_ANY;
}

int perigee__link_listen(const char *addr, int *fd_p, int *port_p) {
  struct sockaddr_storage at;
  socklen_t len;
  PERIGEE_TRY(address_of(addr, 0, &at, &len));
  if (is_any(&at))
    return perigee__fail(PERIGEE_EINVAL, "%s cannot be given to peers as the address to dial",
                         addr);
  int fd = socket(at.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0)
    return perigee__fail_errno(errno, "cannot make a socket to listen on %s", addr);
  if (bind(fd, (struct sockaddr *)&at, len) != 0 || listen(fd, SOMAXCONN) != 0 ||
      getsockname(fd, (struct sockaddr *)&at, &len) != 0) {
    int err = errno;
    close(fd);
    return perigee__fail_errno(err, "cannot listen on %s", addr);
  }
  *port_p = ntohs(at.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)(void *)&at)->sin6_port
                                           : ((struct sockaddr_in *)(void *)&at)->sin_port);
  *fd_p = fd;
  return 0;
}

/* Whether both ends of a connection have one address: the loopback device carries it. */
static bool over_loopback(int fd) {
  struct sockaddr_storage own, other;
  socklen_t own_len = sizeof(own), other_len = sizeof(other);
  if (getsockname(fd, (struct sockaddr *)&own, &own_len) != 0 ||
      getpeername(fd, (struct sockaddr *)&other, &other_len) != 0 ||
      own.ss_family != other.ss_family)
    return false;
  if (own.ss_family == AF_INET6)
    return memcmp(&((struct sockaddr_in6 *)(void *)&own)->sin6_addr,
                  &((struct sockaddr_in6 *)(void *)&other)->sin6_addr,
                  sizeof(struct in6_addr)) == 0;
  return ((struct sockaddr_in *)(void *)&own)->sin_addr.s_addr ==
         ((struct sockaddr_in *)(void *)&other)->sin_addr.s_addr;
}

/*
 * Of a connection that is up.
 * Congestion control: within one machine, where nothing is lost, the pacing of bbr, many systems' default, only interrupts the sender:
 * without it a MiB over loopback takes half the time. Reno is in every kernel and open to every user. Networks keep what the
 * system has for them.
 * Over a network bytes that wait unsent in the kernel are bounded: small messages queue behind them.
 * A host that is silent is given up after 3 s. Not one of ours: there the UNIX socket tells, and a stopped process is not dead.
 */
static void set_options(int fd, const perigee__peer *peer) {
  static const char reno[] = "reno";
  const int on = 1, idle = 1, interval = 1, count = 2, unacknowledged_ms = 3000;
  const int unsent = 512 << 10, unbounded = 0;
  bool near = peer->near || over_loopback(fd);
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  if (near)
    setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, reno, sizeof(reno) - 1);
  setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, near ? &unbounded : &unsent, sizeof(unsent));
  if (peer->local)
    return;
  setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
  setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &unacknowledged_ms, sizeof(unacknowledged_ms));
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof(idle));
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof(interval));
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof(count));
}

/* ---- life of a link ---------------------------------------------------------------------------- */

static perigee__link *link_new(perigee__mesh *mesh, int fd, link_state state, int64_t limit_ns) {
  perigee__link *link = perigee__calloc(1, sizeof(*link));
  if (link == NULL)
    return NULL;
  link->mesh = mesh;
  link->fd = fd;
  link->state = state;
  link->deadline_ns = perigee__deadline_in(limit_ns);
  link->poll.data = link;
  perigee__list_init(&link->node);
  if (uv_poll_init(perigee__loop_uv(mesh->loop), &link->poll, fd) < 0) {
    free(link);
    return NULL;
  }
  return link;
}

static void on_closed(uv_handle_t *handle) {
  perigee__link *link = handle->data;
  close(link->fd);
  free(link);
}

/* The memory stays until uv is done with the handle. */
static void link_close(perigee__link *link) {
  if (link->state == LINK_DOWN)
    return;
  if (link->state == LINK_STRANGER)
    link->mesh->n_strangers--;
  else
    link->mesh->n_links--;
  perigee__list_remove(&link->node);
  if (link->peer != NULL && link->peer->link == link) {
    link->peer->link = NULL;
    if (link->peer->chan.stream == &link->stream)
      link->peer->chan.stream = NULL;
  }
  link->state = LINK_DOWN;
  uv_close((uv_handle_t *)&link->poll, on_closed);
}

static void watch(perigee__link *link) {
  int events = UV_READABLE;
  if (link->state == LINK_CONNECTING || link->want_write)
    events |= UV_WRITABLE;
  uv_poll_start(&link->poll, events, on_link);
}

/* ---- the stream -------------------------------------------------------------------------------- */

static perigee__link *of(perigee__stream *stream) {
  return PERIGEE_CONTAINER_OF(stream, perigee__link, stream);
}

static ssize_t link_writev(perigee__stream *stream, const struct iovec *iov, int n) {
  const struct msghdr msg = {.msg_iov = (struct iovec *)(uintptr_t)iov, .msg_iovlen = (size_t)n};
  for (;;) {
    ssize_t written = sendmsg(of(stream)->fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (written >= 0)
      return written;
    if (errno != EINTR)
      return errno == EWOULDBLOCK ? -EAGAIN : -errno;
  }
}

static ssize_t link_read(perigee__stream *stream, void *buf, size_t size) {
  for (;;) {
    ssize_t n = recv(of(stream)->fd, buf, size, MSG_DONTWAIT);
    if (n >= 0)
      return n;
    if (errno != EINTR)
      return errno == EWOULDBLOCK ? -EAGAIN : -errno;
  }
}

static ssize_t link_readv(perigee__stream *stream, const struct iovec *iov, int n) {
  for (;;) {
    ssize_t got = readv(of(stream)->fd, iov, n); /* the socket does not block */
    if (got >= 0)
      return got;
    if (errno != EINTR)
      return errno == EWOULDBLOCK ? -EAGAIN : -errno;
  }
}

static void link_want_write(perigee__stream *stream, bool on) {
  perigee__link *link = of(stream);
  if (link->want_write == on || link->state != LINK_UP)
    return;
  link->want_write = on;
  watch(link);
}

static const perigee__stream_ops link_ops = {link_writev, link_read, link_readv, link_want_write,
                                             true};

static void link_up(perigee__link *link) {
  link->state = LINK_UP;
  link->stream.ops = &link_ops;
  watch(link);
  perigee__tell_past(link->peer);
  perigee__channel_up(link->peer, &link->stream);
}

bool perigee__link_is_up(const perigee__peer *peer) {
  return peer->link != NULL && peer->link->state == LINK_UP;
}

bool perigee__link_is_drained(const perigee__peer *peer) {
  int queued = 0;
  return !perigee__link_is_up(peer) || ioctl(peer->link->fd, SIOCOUTQ, &queued) != 0 || queued == 0;
}

void perigee__link_shutdown(perigee__peer *peer) {
  if (perigee__link_is_up(peer))
    shutdown(peer->link->fd, SHUT_WR);
}

void perigee__link_drop(perigee__peer *peer) {
  peer->redial = false;
  if (peer->link != NULL)
    link_close(peer->link);
}

/* ---- dialling ---------------------------------------------------------------------------------- */

static void put_hello(const perigee__mesh *mesh, const perigee__peer *peer,
                      uint8_t out[HELLO_BYTES]) {
  uint32_t rank = htonl((uint32_t)mesh->rank), size = htonl((uint32_t)mesh->nranks);
  uint64_t nonce = htobe64(peer->nonce);
  memset(out, 0, HELLO_BYTES);
  memcpy(out, hello_magic, sizeof(hello_magic));
  memcpy(out + 8, &nonce, 8); /* shows that the dialler has read the store */
  memcpy(out + 16, &rank, 4);
  memcpy(out + 20, &size, 4);
}

/* A socket that is connecting to the peer, or -1 and why not. */
static int dial_socket(const perigee__peer *peer, const char **why_p) {
  struct sockaddr_storage at;
  socklen_t len;
  *why_p = "its address is none";
  if (address_of(peer->host, peer->port, &at, &len) < 0)
    return -1;
  *why_p = "no socket to dial it";
  int fd = socket(at.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0)
    return -1;
  *why_p = "it does not listen any more";
  if (connect(fd, (struct sockaddr *)&at, len) == 0 || errno == EINPROGRESS)
    return fd;
  close(fd);
  return -1;
}

void perigee__link_dial(perigee__peer *peer) {
  if (peer->link != NULL || peer->redial || peer->lost || peer->dead || peer->closed)
    return;
  const char *why;
  int fd = dial_socket(peer, &why);
  if (fd < 0) {
    perigee__peer_lost(peer, why);
    return;
  }
  perigee__link *link = link_new(peer->mesh, fd, LINK_CONNECTING, DIAL_NS);
  if (link == NULL) {
    close(fd);
    perigee__peer_lost(peer, "no memory to dial it");
    return;
  }
  link->peer = peer;
  peer->link = link;
  peer->mesh->n_links++;
  watch(link);
}

/* Not accepted and not refused: its listener was overrun by others, or its process has ended, which the next dial shows. */
static void dial_later(perigee__link *link) {
  perigee__peer *peer = link->peer;
  link_close(link);
  if (peer->redials++ < REDIALS_MAX)
    peer->redial = true;
  else
    perigee__peer_lost(peer, "it ends every connection in the handshake");
}

static void on_connected(perigee__link *link) {
  int err = 0;
  socklen_t len = sizeof(err);
  if (getsockopt(link->fd, SOL_SOCKET, SO_ERROR, &err, &len) != 0)
    err = errno;
  if (err == EINPROGRESS)
    return;
  if (err != 0) {
    perigee__peer_lost(link->peer, err == ECONNREFUSED ? "it does not listen any more"
                                                       : perigee_strerror(-err));
    return;
  }
  set_options(link->fd, link->peer);
  uint8_t hello[HELLO_BYTES];
  put_hello(link->mesh, link->peer, hello);
  /* The first bytes on a new connection always fit its buffer. */
  if (send(link->fd, hello, sizeof(hello), MSG_NOSIGNAL | MSG_DONTWAIT) != HELLO_BYTES) {
    dial_later(link);
    return;
  }
  link->state = LINK_HELLO;
  watch(link);
}

static void on_answer(perigee__link *link) {
  char answer;
  ssize_t n = recv(link->fd, &answer, 1, MSG_DONTWAIT);
  if (n < 0 && (errno == EAGAIN || errno == EINTR))
    return;
  if (n == 1 && answer == 'A') {
    link_up(link);
  } else if (n == 1 && answer == 'N') {
    link->state = LINK_REFUSED;
    uv_poll_stop(&link->poll);
  } else {
    dial_later(link);
  }
}

/* ---- accepting --------------------------------------------------------------------------------- */

/* A complete hello: who is it, and do we want it? */
static void stranger_known(perigee__link *link) {
  perigee__mesh *mesh = link->mesh;
  uint32_t rank, size;
  uint64_t nonce;
  memcpy(&nonce, link->hello + 8, 8);
  memcpy(&rank, link->hello + 16, 4);
  memcpy(&size, link->hello + 20, 4);
  rank = ntohl(rank);
  size = ntohl(size);
  nonce = be64toh(nonce);
  if (memcmp(link->hello, hello_magic, sizeof(hello_magic)) != 0 || nonce != mesh->nonce ||
      size != (uint32_t)mesh->nranks || rank >= size || rank == (uint32_t)mesh->rank) {
    link_close(link);
    return;
  }
  perigee__peer *peer = &mesh->peers[rank];
  bool mine_wins = peer->chan.stream != NULL || (peer->link != NULL && mesh->rank < (int)rank);
  bool accepted = !mine_wins && !peer->lost && !peer->dead && !peer->closed;
  if (send(link->fd, accepted ? "A" : "N", 1, MSG_NOSIGNAL | MSG_DONTWAIT) != 1 || !accepted) {
    link_close(link);
    return;
  }
  perigee__link_drop(peer); /* our own dial, which has carried nothing yet */
  mesh->n_strangers--;
  mesh->n_links++;
  perigee__list_remove(&link->node);
  link->peer = peer;
  peer->link = link;
  set_options(link->fd, peer);
  link_up(link);
}

void perigee__link_near(perigee__peer *peer) {
  peer->near = true;
  if (perigee__link_is_up(peer)) /* the peer has learnt the addresses first, and dialled */
    set_options(peer->link->fd, peer);
}

static void on_stranger(perigee__link *link) {
  ssize_t n =
      recv(link->fd, link->hello + link->hello_have, HELLO_BYTES - link->hello_have, MSG_DONTWAIT);
  if (n < 0 && (errno == EAGAIN || errno == EINTR))
    return;
  if (n <= 0) {
    link_close(link);
    return;
  }
  link->hello_have += (size_t)n;
  if (memcmp(link->hello, hello_magic,
             link->hello_have < sizeof(hello_magic) ? link->hello_have : sizeof(hello_magic)) != 0)
    link_close(link);
  else if (link->hello_have == HELLO_BYTES)
    stranger_known(link);
}

static void on_listener(uv_poll_t *poll, int status, int events) {
  perigee__mesh *mesh = poll->data;
  (void)status;
  (void)events;
  for (int i = 0; i < STRANGERS_MAX; i++) {
    int fd = accept4(mesh->tcp_listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) {
      if (errno == EMFILE || errno == ENFILE) {
        mesh->listener_paused = true; /* the backlog holds them; ready for ever otherwise */
        uv_poll_stop(&mesh->listener_poll);
      }
      return;
    }
    if (mesh->n_strangers == STRANGERS_MAX)
      link_close(PERIGEE_CONTAINER_OF(mesh->strangers.next, perigee__link, node)); /* the oldest */
    perigee__link *link = link_new(mesh, fd, LINK_STRANGER, STRANGER_NS);
    if (link == NULL) {
      close(fd);
      continue;
    }
    mesh->n_strangers++;
    perigee__list_append(&mesh->strangers, &link->node);
    watch(link);
  }
}

static void on_sweep(uv_timer_t *timer);

void perigee__link_sweep_in(perigee__mesh *mesh, uint64_t ms) {
  uv_update_time(perigee__loop_uv(mesh->loop));
  if (mesh->sweep_inited && uv_timer_get_due_in(&mesh->sweep) > ms)
    uv_timer_start(&mesh->sweep, on_sweep, ms, SWEEP_MS);
}

static void sweep_peer(perigee__peer *peer, int64_t now) {
  const perigee__link *link = peer->link;
  if (link != NULL && link->state != LINK_UP && now >= link->deadline_ns)
    perigee__peer_lost(peer, "it does not answer");
  uint64_t limit_ms = peer->leaving ? PERIGEE_LEAVE_MS : PERIGEE_END_MS;
  if (peer->ended_ns != 0 && now - peer->ended_ns >= (int64_t)limit_ms * PERIGEE_NS_PER_MS) {
    if (!perigee__channel_pump(peer))
      perigee__peer_lost(peer, "its process ended");
    peer->ended_ns = now;
    perigee__link_sweep_in(peer->mesh, limit_ms);
  }
  if (peer->redial) {
    peer->redial = false;
    perigee__link_dial(peer);
  }
}

static void on_sweep(uv_timer_t *timer) {
  perigee__mesh *mesh = timer->data;
  int64_t now = perigee__now_ns();
  PERIGEE_LIST_EACH_SAFE(it, next, &mesh->strangers) {
    perigee__link *link = PERIGEE_CONTAINER_OF(it, perigee__link, node);
    if (now >= link->deadline_ns)
      link_close(link);
  }
  for (int r = 0; r < mesh->nranks; r++)
    if (r != mesh->rank)
      sweep_peer(&mesh->peers[r], now);
  if (mesh->listener_paused) {
    mesh->listener_paused = false;
    uv_poll_start(&mesh->listener_poll, UV_READABLE, on_listener);
  }
}

int perigee__link_watch_listener(perigee__mesh *mesh) {
  uv_loop_t *uv = perigee__loop_uv(mesh->loop);
  int rc = uv_timer_init(uv, &mesh->sweep);
  if (rc == 0) {
    mesh->sweep.data = mesh;
    mesh->sweep_inited = true;
    rc = uv_timer_start(&mesh->sweep, on_sweep, SWEEP_MS, SWEEP_MS);
  }
  if (rc == 0)
    rc = uv_poll_init(uv, &mesh->listener_poll, mesh->tcp_listener);
  if (rc == 0) {
    mesh->listener_poll.data = mesh;
    mesh->listener_polled = true;
    rc = uv_poll_start(&mesh->listener_poll, UV_READABLE, on_listener);
  }
  return rc < 0 ? perigee__fail_errno(-rc, "cannot watch the listener") : 0;
}

void perigee__link_drop_strangers(perigee__mesh *mesh) {
  PERIGEE_LIST_EACH_SAFE(it, next, &mesh->strangers)
  link_close(PERIGEE_CONTAINER_OF(it, perigee__link, node));
}

/* ---- events ------------------------------------------------------------------------------------ */

static void on_link(uv_poll_t *poll, int status, int events) {
  perigee__link *link = poll->data;
  if (status <
      0) /* an error is pending, and uv has stopped watching: the calls below find out what it is */
    events = UV_READABLE | UV_WRITABLE;
  switch (link->state) {
  case LINK_STRANGER:
    on_stranger(link);
    break;
  case LINK_CONNECTING:
    on_connected(link);
    break;
  case LINK_HELLO:
    on_answer(link);
    break;
  case LINK_UP:
    if (status < 0) {
      perigee__channel_drain(link->peer);
      if (link->state == LINK_UP)
        perigee__peer_lost(link->peer, "its connection broke");
      return;
    }
    if (events & UV_READABLE)
      perigee__channel_pump(link->peer);
    if ((events & UV_WRITABLE) && link->state == LINK_UP)
      perigee__peer_mark(link->peer);
    break;
  case LINK_REFUSED:
  case LINK_DOWN:
    break;
  }
}
