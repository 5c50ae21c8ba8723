/*
 * The server of a TCP store: an engine, a libuv loop and its thread.
 *
 * Thread-safety: everything but the port belongs to the thread. The creator prepares it before the thread starts; destroy sends
 *   one async message, joins, and frees.
 * Strangers: a connection counts as fresh until its 5 handshake bytes have come. Fresh ones are closed after FRESH_NS, and when
 *   there are more than FRESH_MAX the oldest goes. In a storm of honest clients the bytes of the oldest usually are in its
 *   socket already, so it is read once more before it is closed.
 * Out of descriptors: libuv keeps a spare one, closes it to accept and close the connection, and opens it again; so clients
 *   see an end and retry, and the loop does not spin.
 * Signals are blocked on the thread (thread.h), so a write to a peer that is gone cannot raise SIGPIPE.
 */
#include "store/store_tcp_server.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <uv.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/thread.h"
#include "store/store.h"
#include "store/store_tcp_engine.h"
#include "store/store_tcp_net.h"

enum {
  FRESH_MAX = 64,
  TICK_MS = 50, /* while something is pending */
  OUT_KEEP = 64 << 10,
#ifdef PERIGEE_HOSTILE
  CHUNK = 3,
#else
  CHUNK = 64 << 10,
#endif
};
#define FRESH_NS (2 * PERIGEE_NS_PER_SEC)
#define BYTES_MAX ((size_t)1 << 30) /* of all keys and values */

typedef struct conn {
  uv_tcp_t tcp; /* data: the conn */
  perigee_store_server *server;
  perigee__peer peer;
  perigee__node link; /* in server->fresh or server->conns */
  bool fresh;
  int64_t since_ns;
  uv_write_t write;
  perigee__buf sending; /* what write is about; empty when no write is under way */
} conn;

struct perigee_store_server {
  int port; /* immutable */
  pid_t pid;
  pthread_t thread;
  uv_async_t stop; /* uv_async_send from any thread */
  /* the thread's */
  uv_loop_t loop;
  uv_tcp_t listener;
  uv_timer_t timer;
  bool stopping;
  perigee__engine engine;
  perigee__node fresh, conns; /* oldest first */
  unsigned nfresh;
  bool unaccepted;   /* a connection is waiting for memory */
  int64_t logged_ns; /* last line about a bad peer */
  unsigned unlogged;
  char chunk[CHUNK];
};

/* ---- connections ---- */

static void on_conn_closed(uv_handle_t *handle) {
  conn *c = handle->data;
  perigee__buf_fini(&c->sending);
  free(c);
}

static void flush_ready(perigee_store_server *server);
static void tick_start(perigee_store_server *server);
static void on_written(uv_write_t *req, int status);

static void unlink_conn(conn *c) {
  perigee__list_remove(&c->link);
  c->server->nfresh -= c->fresh;
  c->fresh = false;
}

/* Every path of a connection ends here, once. */
static void conn_close(conn *c) {
  if (uv_is_closing((uv_handle_t *)&c->tcp))
    return;
  unlink_conn(c);
  perigee__peer_fini(&c->peer);
  uv_close((uv_handle_t *)&c->tcp, on_conn_closed);
}

/* Peers that talk nonsense: one line a second says so. */
static void complain(perigee_store_server *server) {
  int64_t now = perigee__now_ns();
  if (server->logged_ns != 0 && now - server->logged_ns < PERIGEE_NS_PER_SEC) {
    server->unlogged++;
    return;
  }
  perigee__log(PERIGEE_LOG_INFO, "store server on port %d: closed a connection (and %u before): %s",
               server->port, server->unlogged, perigee_last_error()->message);
  server->logged_ns = now;
  server->unlogged = 0;
}

/* Send what the peer's out holds: at once as far as the socket takes it, the rest when it can. */
static void conn_flush(conn *c) {
  perigee__buf *out = &c->peer.out;
  if (out->size == 0 || c->peer.in_flight > 0 || uv_is_closing((uv_handle_t *)&c->tcp))
    return;
  uv_buf_t all = uv_buf_init(out->data, (unsigned)out->size);
  int sent = uv_try_write((uv_stream_t *)&c->tcp, &all, 1);
  if (sent < 0 && sent != UV_EAGAIN) {
    conn_close(c);
    return;
  }
  size_t done = sent > 0 ? (size_t)sent : 0;
  if (done == out->size) {
    perigee__buf_reset(out, OUT_KEEP);
    return;
  }
  c->sending = *out;
  *out = (perigee__buf){NULL, 0, 0, false};
  c->peer.in_flight = c->sending.size - done;
  uv_buf_t rest = uv_buf_init(c->sending.data + done, (unsigned)c->peer.in_flight);
  if (uv_write(&c->write, (uv_stream_t *)&c->tcp, &rest, 1, on_written) < 0)
    conn_close(c);
}

static void on_written(uv_write_t *req, int status) {
  conn *c = req->handle->data;
  if (uv_is_closing((uv_handle_t *)&c->tcp))
    return;
  c->peer.in_flight = 0;
  perigee__buf_fini(&c->sending);
  if (status < 0)
    conn_close(c);
  else
    conn_flush(c);
  flush_ready(c->server);
}

static void flush_ready(perigee_store_server *server) {
  while (!perigee__list_empty(&server->engine.ready)) {
    perigee__node *node = server->engine.ready.next;
    perigee__list_remove(node);
    perigee__peer *peer = PERIGEE_CONTAINER_OF(node, perigee__peer, ready);
    conn_flush(PERIGEE_CONTAINER_OF(peer, conn, peer));
  }
}

static void conn_feed(conn *c, const char *data, size_t size) {
  perigee_store_server *server = c->server;
  if (perigee__peer_feed(&c->peer, data, size) < 0) {
    complain(server);
    conn_flush(c); /* replies to what came before the offence */
    conn_close(c);
  } else if (c->fresh && c->peer.parser.validated) {
    unlink_conn(c);
    perigee__list_append(&server->conns, &c->link);
  }
  flush_ready(server);
  if (!perigee__list_empty(&server->engine.batons))
    tick_start(server);
}

/* Outside the loop's turn: take what has arrived already. */
static void conn_read_now(conn *c) {
  perigee_store_server *server = c->server;
  uv_os_fd_t fd;
  if (uv_fileno((uv_handle_t *)&c->tcp, &fd) < 0)
    return;
  ssize_t n = recv(fd, server->chunk, sizeof(server->chunk), MSG_DONTWAIT);
  if (n > 0)
    conn_feed(c, server->chunk, (size_t)n);
  else if (n == 0)
    conn_close(c);
}

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf) {
  (void)suggested;
  perigee_store_server *server = ((conn *)handle->data)->server;
  *buf =
      uv_buf_init(server->chunk, sizeof(server->chunk)); /* read_cb follows at once: one for all */
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf) {
  conn *c = stream->data;
  perigee_store_server *server = c->server;
  if (n > 0)
    conn_feed(c, buf->base, (size_t)n);
  else if (n < 0) {
    conn_close(c);
    flush_ready(server); /* its baton may have gone to somebody */
  }
}

/* ---- the listener ---- */

static conn *first_fresh(perigee_store_server *server) {
  return PERIGEE_CONTAINER_OF(server->fresh.next, conn, link);
}

static void evict(perigee_store_server *server) {
  while (server->nfresh > FRESH_MAX) {
    conn *c = first_fresh(server);
    conn_read_now(c);
    if (server->nfresh > FRESH_MAX && !perigee__list_empty(&server->fresh) &&
        first_fresh(server) == c)
      conn_close(c);
  }
}

static void on_connection(uv_stream_t *listener, int status) {
  perigee_store_server *server = listener->data;
  if (status < 0) { /* out of descriptors, or gone before it was accepted */
    perigee__fail(status, "accept: %s", perigee_strerror(status));
    complain(server);
    return;
  }
  conn *c = perigee__calloc(1, sizeof(*c));
  server->unaccepted = c == NULL || uv_tcp_init(&server->loop, &c->tcp) < 0;
  if (server
          ->unaccepted) { /* out of memory; libuv calls again only after an uv_accept, so the timer has to */
    free(c);
    tick_start(server);
    return;
  }
  c->server = server;
  c->tcp.data = c;
  c->fresh = true;
  c->since_ns = perigee__now_ns();
  server->nfresh++;
  perigee__list_append(&server->fresh, &c->link);
  perigee__peer_init(&c->peer, &server->engine);
  uv_os_fd_t fd;
  if (uv_accept(listener, (uv_stream_t *)&c->tcp) < 0 ||
      uv_fileno((uv_handle_t *)&c->tcp, &fd) < 0 ||
      uv_read_start((uv_stream_t *)&c->tcp, on_alloc, on_read) < 0) {
    conn_close(c);
    return;
  }
  perigee__net_tune(fd);
  if (server->nfresh > FRESH_MAX)
    evict(server);
  tick_start(server);
}

/* ---- time ---- */

static void on_tick(uv_timer_t *timer) {
  perigee_store_server *server = timer->data;
  int64_t now = perigee__now_ns();
  while (!perigee__list_empty(&server->fresh) && now - first_fresh(server)->since_ns > FRESH_NS)
    conn_close(first_fresh(server));
  if (server->unaccepted)
    on_connection((uv_stream_t *)&server->listener, 0);
  int64_t next = perigee__engine_tick(&server->engine, now);
  flush_ready(server);
  if (!server->unaccepted && next == PERIGEE_NEVER && perigee__list_empty(&server->fresh))
    uv_timer_stop(timer);
}

static void tick_start(perigee_store_server *server) {
  if (!server->stopping && !uv_is_active((uv_handle_t *)&server->timer))
    uv_timer_start(&server->timer, on_tick, TICK_MS, TICK_MS);
}

/* ---- life ---- */

static void close_all(perigee__node *list) {
  while (!perigee__list_empty(list))
    conn_close(PERIGEE_CONTAINER_OF(list->next, conn, link));
}

static void on_stop(uv_async_t *async) {
  perigee_store_server *server = async->data;
  server->stopping = true;
  close_all(&server->fresh);
  close_all(&server->conns);
  uv_close((uv_handle_t *)&server->listener, NULL);
  uv_close((uv_handle_t *)&server->timer, NULL);
  uv_close((uv_handle_t *)&server->stop, NULL);
}

static void *serve(void *arg) {
  perigee_store_server *server = arg;
  uv_run(&server->loop, UV_RUN_DEFAULT); /* returns when on_stop has closed every handle */
  return NULL;
}

/* Handles of a server whose thread did not start. */
static void close_handle(uv_handle_t *handle, void *arg) {
  (void)arg;
  if (!uv_is_closing(handle))
    uv_close(handle, NULL);
}

static void loop_fini(perigee_store_server *server) {
  uv_walk(&server->loop, close_handle, NULL);
  uv_run(&server->loop, UV_RUN_DEFAULT);
  if (uv_loop_close(&server->loop) != 0)
    PERIGEE_BUG("store server: handles left on the loop");
}

static int handles_init(perigee_store_server *server) {
  PERIGEE_TRY(uv_async_init(&server->loop, &server->stop, on_stop));
  server->stop.data = server;
  PERIGEE_TRY(uv_timer_init(&server->loop, &server->timer));
  server->timer.data = server;
  PERIGEE_TRY(uv_tcp_init(&server->loop, &server->listener));
  server->listener.data = server;
  return 0;
}

/* fd becomes the listener's; until then a failure leaves it to the caller. */
static int start(perigee_store_server *server, int fd) {
  int rc = handles_init(server);
  if (rc < 0)
    return perigee__fail(rc, "store server: event loop: %s", perigee_strerror(rc));
  /* libuv owns a descriptor once it is opened, and would close the caller's on failure: give it a copy */
  int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
  if (copy < 0)
    return perigee__fail_errno(errno, "store server: duplicate descriptor %d", fd);
  rc = uv_tcp_open(&server->listener, copy);
  if (rc < 0) {
    close(copy);
    return perigee__fail(rc, "store server: descriptor %d: %s", fd, perigee_strerror(rc));
  }
  rc = uv_listen((uv_stream_t *)&server->listener, SOMAXCONN, on_connection);
  if (rc < 0)
    return perigee__fail(rc, "store server: listen on port %d: %s", server->port,
                         perigee_strerror(rc));
  rc = perigee__thread_start(&server->thread, "perigee-store", 0, serve, server);
  return rc < 0 ? perigee__fail(rc, "store server: thread: %s", perigee_strerror(rc)) : 0;
}

static int port_of(int fd, int *port_p) {
  struct sockaddr_storage addr;
  socklen_t size = sizeof(addr), type_size = sizeof(int);
  int type = 0;
  if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &type_size) != 0 ||
      getsockname(fd, (struct sockaddr *)&addr, &size) != 0)
    return perigee__fail_errno(errno, "store server: descriptor %d", fd);
  if (type != SOCK_STREAM || (addr.ss_family != AF_INET && addr.ss_family != AF_INET6))
    return perigee__fail(PERIGEE_EINVAL, "store server: descriptor %d is no TCP socket", fd);
  in_port_t port = addr.ss_family == AF_INET ? ((struct sockaddr_in *)(void *)&addr)->sin_port
                                             : ((struct sockaddr_in6 *)(void *)&addr)->sin6_port;
  if (port == 0)
    return perigee__fail(PERIGEE_EINVAL, "store server: descriptor %d is not bound", fd);
  *port_p = ntohs(port);
  return 0;
}

int perigee__store_server_from_fd(int fd, perigee_store_server **server_p) {
  int port = 0;
  PERIGEE_TRY(port_of(fd, &port));
  perigee_store_server *server = perigee__calloc(1, sizeof(*server));
  if (server == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory for a store server");
  server->port = port;
  server->pid = getpid();
  perigee__list_init(&server->fresh);
  perigee__list_init(&server->conns);
  int rc;
  PERIGEE_TRY_GOTO(perigee__engine_init(&server->engine, BYTES_MAX), err_free);
  rc = uv_loop_init(&server->loop);
  if (rc < 0) {
    perigee__fail(rc, "store server: event loop: %s", perigee_strerror(rc));
    goto err_engine;
  }
  PERIGEE_TRY_GOTO(start(server, fd), err_loop);
  close(fd);
  *server_p = server;
  return 0;
err_loop:
  loop_fini(server);
err_engine:
  perigee__engine_fini(&server->engine);
err_free:
  free(server);
  return rc;
}

int perigee_store_server_create(const char *bind_addr, int port, perigee_store_server **server_p) {
  if (server_p == NULL)
    return perigee__fail(PERIGEE_EINVAL, "store server: no output given");
  if (port < 0 || port > 65535)
    return perigee__fail(PERIGEE_EINVAL, "store server: port %d", port);
  int fd = -1;
  PERIGEE_TRY(perigee__net_listen(bind_addr != NULL ? bind_addr : "127.0.0.1", port, &fd));
  int rc = perigee__store_server_from_fd(fd, server_p);
  if (rc < 0)
    close(fd);
  return rc;
}

int perigee_store_server_port(const perigee_store_server *server) { return server->port; }

void perigee_store_server_destroy(perigee_store_server **server_p) {
  if (server_p == NULL || *server_p == NULL)
    return;
  perigee_store_server *server = *server_p;
  *server_p = NULL;
  if (server->pid != getpid())
    return; /* a forked child has no such thread; what it inherited goes with it */
  uv_async_send(&server->stop);
  pthread_join(server->thread, NULL);
  if (uv_loop_close(&server->loop) != 0)
    PERIGEE_BUG("store server: handles left on the loop");
  perigee__engine_fini(&server->engine);
  free(server);
}
