#include "store/store_tcp_net.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/error.h"
#include "store/store_gate.h"

enum {
  POLL_CAP_MS = 60000,
  RESOLVER_STACK = 1 << 20
};

int perigee__net_poll(int fd, short events, int other_fd, int64_t deadline_ns) {
  struct pollfd fds[2] = {{.fd = fd, .events = events}, {.fd = other_fd, .events = POLLIN}};
  for (;;) {
    int n = poll(fds, 2, perigee__poll_ms(deadline_ns, POLL_CAP_MS));
    if (n < 0 && errno != EINTR)
      return perigee__fail_errno(errno, "poll");
    if (n > 0)
      return fds[0].revents != 0 ? 0 : 1; /* errors too: the next call on fd tells which */
    if (n == 0 && perigee__passed(deadline_ns))
      return PERIGEE_ETIMEDOUT;
  }
}

static void set_option(int fd, int level, int name, int value) {
  /* what is refused costs speed or the early notice of a dead host, nothing else */
  (void)setsockopt(fd, level, name, &value, sizeof(value));
}

void perigee__net_tune(int fd) {
  set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
  set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, 5);
  set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, 2);
  set_option(fd, IPPROTO_TCP, TCP_KEEPCNT, 3);
}

/* ---- names ---- */

/* One question to the resolver. Its thread and the asker hold a reference each. */
typedef struct lookup {
  perigee_mutex mutex;
  pthread_cond_t answered;
  int refs;  /* under mutex */
  bool done; /* under mutex */
  int rc;    /* of getaddrinfo, EAI_* */
  char host[PERIGEE__NET_HOST_MAX + 1], service[8];
  int flags;
  struct addrinfo *list;
} lookup;

static void lookup_unref(lookup *q) {
  perigee__lock(&q->mutex);
  bool last = --q->refs == 0;
  perigee__unlock(&q->mutex);
  if (!last)
    return;
  if (q->list != NULL)
    freeaddrinfo(q->list);
  pthread_cond_destroy(&q->answered);
  perigee__mutex_fini(&q->mutex);
  free(q);
}

static void ask(lookup *q) {
  struct addrinfo hints = {
      .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = q->flags};
  struct addrinfo *list = NULL;
  int rc = getaddrinfo(q->host, q->service, &hints, &list);
  perigee__lock(&q->mutex);
  q->rc = rc;
  q->list = rc == 0 ? list : NULL;
  q->done = true;
  pthread_cond_signal(&q->answered);
  perigee__unlock(&q->mutex);
}

static void *asker(void *arg) {
  ask(arg);
  lookup_unref(arg);
  return NULL;
}

/* getaddrinfo has no deadline, so a name is asked for on a thread that can be left behind. */
static int ask_elsewhere(lookup *q, int64_t deadline_ns) {
  pthread_t thread;
  q->refs++; /* nobody else has it yet */
  q->flags = AI_NUMERICSERV;
  int rc = perigee__thread_start(&thread, "perigee-name", RESOLVER_STACK, asker, q);
  if (rc < 0) {
    q->refs--;
    return perigee__fail(rc, "resolve %s: thread: %s", q->host, perigee_strerror(rc));
  }
  pthread_detach(thread);
  perigee__lock(&q->mutex);
  for (rc = 0; !q->done && rc == 0;)
    rc = perigee__cond_wait(&q->answered, &q->mutex, deadline_ns);
  bool done = q->done;
  perigee__unlock(&q->mutex);
  return done ? 0 : perigee__fail(PERIGEE_ETIMEDOUT, "resolve %s: no answer in time", q->host);
}

static size_t copy_family(const lookup *q, int family, perigee__net_addr *addrs, size_t n) {
  for (const struct addrinfo *a = q->list; a != NULL && n < PERIGEE__NET_ADDRS; a = a->ai_next)
    if (a->ai_family == family && a->ai_addrlen <= sizeof(addrs[n].addr)) {
      memcpy(&addrs[n].addr, a->ai_addr, a->ai_addrlen);
      addrs[n++].size = a->ai_addrlen;
    }
  return n;
}

int perigee__net_resolve(const char *host, int port, int64_t deadline_ns, perigee__net_addr *addrs,
                         size_t *n_p) {
  if (strlen(host) > PERIGEE__NET_HOST_MAX)
    return perigee__fail(PERIGEE_EINVAL, "host name '%.32s...' is longer than %d bytes", host,
                         PERIGEE__NET_HOST_MAX);
  lookup *q = perigee__calloc(1, sizeof(*q));
  if (q == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "resolve %s: no memory", host);
  perigee__mutex_init(&q->mutex, PERIGEE_LOCK_LEAF, "name lookup");
  perigee__cond_init(&q->answered);
  q->refs = 1;
  snprintf(q->host, sizeof(q->host), "%s", host);
  snprintf(q->service, sizeof(q->service), "%d", port);
  q->flags = AI_NUMERICHOST | AI_NUMERICSERV;
  ask(q); /* addresses need nobody's answer */
  int rc = 0;
  if (q->rc != 0) {
    q->done = false;
    rc = ask_elsewhere(q, deadline_ns);
  }
  if (rc == 0 && q->rc != 0)
    rc = perigee__fail(PERIGEE_EUNREACH, "resolve %s: %s", host, gai_strerror(q->rc));
  if (rc == 0)
    *n_p = copy_family(q, AF_INET, addrs, copy_family(q, AF_INET6, addrs, 0));
  lookup_unref(q);
  return rc;
}

/* ---- listening ---- */

static int listen_on(const perigee__net_addr *a, int *fd_p) {
  int fd = socket(a->addr.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0)
    return -errno;
  set_option(fd, SOL_SOCKET, SO_REUSEADDR, 1);
  if (a->addr.ss_family == AF_INET6)
    set_option(fd, IPPROTO_IPV6, IPV6_V6ONLY, 0);
  if (bind(fd, (const struct sockaddr *)&a->addr, a->size) != 0 || listen(fd, SOMAXCONN) != 0) {
    int rc = -errno;
    close(fd);
    return rc;
  }
  *fd_p = fd;
  return 0;
}

int perigee__net_listen(const char *addr, int port, int *fd_p) {
  perigee__net_addr addrs[PERIGEE__NET_ADDRS];
  size_t n = 0;
  PERIGEE_TRY(
      perigee__net_resolve(addr, port, perigee__deadline_in(5 * PERIGEE_NS_PER_SEC), addrs, &n));
  int rc = -EADDRNOTAVAIL;
  /* from the back: of "localhost" the IPv4 address, which is what clients are told by default */
  while (n > 0 && rc < 0)
    rc = listen_on(&addrs[--n], fd_p);
  return rc == 0 ? 0
                 : perigee__fail(rc, "store server: cannot listen on %s:%d: %s", addr, port,
                                 perigee_strerror(rc));
}

/* ---- connecting ---- */

/* A port nobody listens on, within the range the kernel picks from: a client can end up connected to itself. */
static bool connected_to_itself(int fd) {
  struct sockaddr_storage here = {0}, there = {0};
  socklen_t here_size = sizeof(here), there_size = sizeof(there);
  return getsockname(fd, (struct sockaddr *)&here, &here_size) == 0 &&
         getpeername(fd, (struct sockaddr *)&there, &there_size) == 0 && here_size == there_size &&
         memcmp(&here, &there, here_size) == 0;
}

static int finish_connect(int fd, int64_t deadline_ns) {
  int rc = perigee__net_poll(fd, POLLOUT, -1, deadline_ns);
  if (rc != 0)
    return rc == PERIGEE_ETIMEDOUT ? -ETIMEDOUT : rc;
  int error = 0;
  socklen_t size = sizeof(error);
  if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0)
    return -errno;
  return -error;
}

/* -errno on failure. */
static int connect_to(const perigee__net_addr *a, int64_t deadline_ns, int *fd_p) {
  int fd = socket(a->addr.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0)
    return -errno;
  int rc = 0;
  if (connect(fd, (const struct sockaddr *)&a->addr, a->size) != 0)
    /* interrupted: it goes on in the background, as after EINPROGRESS */
    rc = errno == EINPROGRESS || errno == EINTR ? finish_connect(fd, deadline_ns) : -errno;
  if (rc == 0 && connected_to_itself(fd))
    rc = -ECONNREFUSED;
  if (rc < 0) {
    close(fd);
    return rc;
  }
  perigee__net_tune(fd);
  *fd_p = fd;
  return 0;
}

int perigee__net_connect(const char *host, int port, int64_t deadline_ns, int *fd_p) {
  perigee__net_addr addrs[PERIGEE__NET_ADDRS];
  size_t n = 0;
  PERIGEE_TRY(perigee__net_resolve(host, port, deadline_ns, addrs, &n));
  int rc = -EADDRNOTAVAIL;
  for (size_t i = 0; i < n; i++) {
    /* An address that swallows packets must leave time for those after it. */
    int64_t left = perigee__time_left(deadline_ns);
    int64_t slice = left == PERIGEE_NEVER ? 10 * PERIGEE_NS_PER_SEC : left / (int64_t)(n - i);
    rc = connect_to(&addrs[i], perigee__deadline_in(slice), fd_p);
    if (rc == 0)
      return 0;
  }
  return perigee__fail(rc, "connect to %s:%d: %s", host, port, perigee_strerror(rc));
}
