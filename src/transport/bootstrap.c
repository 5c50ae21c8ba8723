/*
 * Finding each other: the only file of the transport that uses the store.
 *
 *   addr/<rank> = "1 <host id> <uid> <pid> <uds nonce> <tcp host> <tcp port> <tcp nonce> <shm or tcp>"
 * Host id: boot id and network namespace: ranks that share both can connect over abstract UNIX sockets.
 *
 * Every rank listens before it writes its address, and answers its TCP listener from then on: a peer may be done long before us.
 *
 * UNIX sockets: each dials all lower ranks of its host (a connect succeeds
 * as soon as there is a listener), says who it is, and accepts all higher ones, checking uid and nonce. The lower rank of a pair
 * makes the rings and passes them, or, when it is refused the memory, a descriptor of something else: then the two use TCP. No step
 * waits for an answer to an earlier one, so the order cannot deadlock.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "transport/memfd.h"
#include "transport/mesh_impl.h"

typedef struct address {
  char host_id[96];
  bool rings; /* it wants rings to ranks of its host */
  unsigned uid;
  int pid;
  uint64_t uds_nonce;
} address;

typedef struct uds_hello {
  char magic[8];
  uint64_t nonce; /* of the one that is dialled */
  int32_t rank;
} uds_hello;
static const char uds_magic[8] = {'P', 'G', 'u', 'd', 's', '0', '0', '1'};

static void own_host_id(char *out, size_t size) {
  char boot[64] = "unknown";
  FILE *f = fopen("/proc/sys/kernel/random/boot_id", "re");
  if (f != NULL) {
    if (fscanf(f, "%63s", boot) != 1)
      snprintf(boot, sizeof(boot), "unknown");
    fclose(f);
  }
  struct stat ns = {0};
  if (stat("/proc/self/ns/net", &ns) != 0)
    ns.st_ino = 0;
  snprintf(out, size, "%s/%llu", boot, (unsigned long long)ns.st_ino);
}

static int random_u64(uint64_t *value_p) {
  if (getrandom(value_p, sizeof(*value_p), 0) != (ssize_t)sizeof(*value_p))
    return perigee__fail_errno(errno, "getrandom");
  return 0;
}

static socklen_t uds_name(uint64_t nonce, int rank, struct sockaddr_un *addr) {
  memset(addr, 0, sizeof(*addr));
  addr->sun_family = AF_UNIX;
  /* abstract: sun_path[0] is 0; nothing in the file system */
  int len = snprintf(addr->sun_path + 1, sizeof(addr->sun_path) - 1, "perigee-%016" PRIx64 "-%d",
                     nonce, rank);
  return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)len);
}

/* ---- addresses --------------------------------------------------------------------------------- */

/* Write the own address unless somebody else has written one for this rank. */
static int claim(const perigee__mesh_params *params, const char *key, const char *value,
                 size_t size) {
  perigee_bytes there;
  PERIGEE_TRY(perigee_store_compare_set(params->store, key, "", 0, value, size, &there));
  bool ours = there.size == size && memcmp(there.data, value, size) == 0;
  char text[160] = "";
  int pid = 0;
  if (there.size > 0)
    snprintf(text, sizeof(text), "%.*s",
             (int)(there.size < sizeof(text) ? there.size : sizeof(text)), there.data);
  if (sscanf(text, "%*s %*s %*s %d", &pid) != 1)
    pid = 0;
  perigee_bytes_free(&there);
  if (ours)
    return 0;
  return perigee__fail(PERIGEE_EDUPRANK, "rank %d of %d is taken by process %d", params->rank,
                       params->nranks, pid);
}

static int publish(perigee__mesh *mesh, const perigee__mesh_params *params, address *own) {
  const char *bind_addr = params->bind_addr != NULL ? params->bind_addr : "127.0.0.1";
  int port;
  PERIGEE_TRY(random_u64(&mesh->nonce));
  PERIGEE_TRY(random_u64(&own->uds_nonce));
  PERIGEE_TRY(perigee__mesh_listen(mesh, bind_addr, &port));
  struct sockaddr_un name;
  socklen_t len = uds_name(own->uds_nonce, mesh->rank, &name);
  mesh->uds_listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  if (mesh->uds_listener < 0 || bind(mesh->uds_listener, (struct sockaddr *)&name, len) != 0 ||
      listen(mesh->uds_listener, SOMAXCONN) != 0)
    return perigee__fail_errno(errno, "cannot listen on a UNIX socket");
  if (params->host_id != NULL && (params->host_id[strcspn(params->host_id, " \t\n")] != '\0' ||
                                  strlen(params->host_id) >= sizeof(own->host_id)))
    return perigee__fail(PERIGEE_EINVAL,
                         "PERIGEE_HOST_ID: '%.100s' is not a word of 1 to %zu bytes",
                         params->host_id, sizeof(own->host_id) - 1);
  if (params->host_id != NULL)
    snprintf(own->host_id, sizeof(own->host_id), "%s", params->host_id);
  else
    own_host_id(own->host_id, sizeof(own->host_id));
  own->rings = mesh->transport != PERIGEE_TRANSPORT_TCP;
  own->uid = (unsigned)getuid();
  own->pid = (int)getpid();
  char key[32], value[320];
  snprintf(key, sizeof(key), "addr/%d", mesh->rank);
  int n = snprintf(value, sizeof(value), "1 %s %u %d %" PRIu64 " %s %d %" PRIu64 " %s",
                   own->host_id, own->uid, own->pid, own->uds_nonce, bind_addr, port, mesh->nonce,
                   own->rings ? "shm" : "tcp");
  return claim(params, key, value, (size_t)n);
}

static int parse_address(perigee__peer *peer, const perigee_bytes *bytes, address *a) {
  char text[320], path[8] = "";
  snprintf(text, sizeof(text), "%.*s",
           (int)(bytes->size < sizeof(text) ? bytes->size : sizeof(text)),
           bytes->size > 0 ? bytes->data : "");
  int version = 0;
  if (sscanf(text, "%d", &version) == 1 && version != 1)
    return perigee__fail(PERIGEE_EVERSION, "rank %d speaks version %d, this rank 1", peer->rank,
                         version);
  int pid;
  if (sscanf(text, "1 %95s %u %d %" SCNu64 " %63s %d %" SCNu64 " %7s", a->host_id, &a->uid, &pid,
             &a->uds_nonce, peer->host, &peer->port, &peer->nonce, path) != 8)
    return perigee__fail(PERIGEE_EPROTO, "rank %d published '%.60s' as its address", peer->rank,
                         text);
  peer->pid = a->pid = pid;
  a->rings = strcmp(path, "shm") == 0;
  return 0;
}

static int read_all(perigee__mesh *mesh, const perigee__mesh_params *params, address *list) {
  int64_t started = perigee__now_ns();
  perigee_error late;
  perigee__error_init(&late);
  for (int r = 0; r < mesh->nranks; r++) {
    if (r == mesh->rank)
      continue;
    char key[32];
    perigee_bytes value;
    snprintf(key, sizeof(key), "addr/%d", r);
    /* When time is over: a last look at each of the rest, so that all that are missing are named. */
    int64_t left = perigee__time_left(params->deadline_ns);
    int rc = perigee_store_get(params->store, key,
                               left > PERIGEE_NS_PER_MS ? left : PERIGEE_NS_PER_MS, &value);
    if (rc == PERIGEE_ETIMEDOUT) {
      perigee__error_add_rank(&late, r);
      continue;
    }
    PERIGEE_TRY(rc);
    rc = parse_address(&mesh->peers[r], &value, &list[r]);
    perigee_bytes_free(&value);
    PERIGEE_TRY(rc);
  }
  if (late.nranks == 0)
    return 0;
  char ranks[128];
  perigee__error_ranks_text(&late, ranks, sizeof(ranks));
  snprintf(late.message, sizeof(late.message), "rank%s %s of %d did not arrive within %.1f s",
           late.nranks > 1 ? "s" : "", ranks, mesh->nranks,
           (double)(perigee__now_ns() - started) / 1e9);
  late.code = PERIGEE_ERENDEZVOUS;
  late.rank = mesh->rank;
  return perigee__fail_with(&late);
}

/* ---- ranks of this host ------------------------------------------------------------------------ */

static bool same_host(const address *a, const address *b) {
  return a->uid == b->uid && strcmp(a->host_id, b->host_id) == 0;
}

static int wait_readable(int fd, int64_t deadline_ns) {
  struct pollfd p = {.fd = fd, .events = POLLIN};
  for (;;) {
    int n = poll(&p, 1, perigee__poll_ms(deadline_ns, 1000));
    if (n > 0)
      return 0;
    if (n < 0 && errno != EINTR)
      return -errno;
    if (perigee__passed(deadline_ns))
      return PERIGEE_ETIMEDOUT;
  }
}

static int dial_uds(perigee__mesh *mesh, perigee__peer *peer, const address *a) {
  struct sockaddr_un name;
  socklen_t len = uds_name(a->uds_nonce, peer->rank, &name);
  int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  if (fd < 0)
    return perigee__fail_errno(errno, "cannot make a UNIX socket");
  int rc;
  do {
    rc = connect(fd, (struct sockaddr *)&name, len);
  } while (rc != 0 && errno == EINTR);
  uds_hello hello = {.nonce = a->uds_nonce, .rank = mesh->rank};
  memcpy(hello.magic, uds_magic, sizeof(uds_magic));
  if (rc != 0 || send(fd, &hello, sizeof(hello), MSG_NOSIGNAL) != (ssize_t)sizeof(hello)) {
    int err = errno;
    close(fd);
    return perigee__fail(PERIGEE_EUNREACH, "rank %d on this host cannot be reached: %s", peer->rank,
                         perigee_strerror(-err));
  }
  peer->uds = fd;
  return 0;
}

/* One caller: the rank it is, or -1 when it is none of ours (and closed). */
static int accept_one(perigee__mesh *mesh, const address *own, int64_t deadline_ns) {
  int fd = accept4(mesh->uds_listener, NULL, NULL, SOCK_CLOEXEC);
  if (fd < 0)
    return -1;
  struct ucred cred;
  socklen_t len = sizeof(cred);
  uds_hello hello;
  int64_t limit = perigee__deadline_in(2 * PERIGEE_NS_PER_SEC);
  bool good =
      getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) == 0 && (unsigned)cred.uid == own->uid &&
      wait_readable(fd, limit < deadline_ns ? limit : deadline_ns) == 0 &&
      recv(fd, &hello, sizeof(hello), MSG_DONTWAIT) == (ssize_t)sizeof(hello) &&
      memcmp(hello.magic, uds_magic, sizeof(uds_magic)) == 0 && hello.nonce == own->uds_nonce &&
      hello.rank > mesh->rank && hello.rank < mesh->nranks && mesh->peers[hello.rank].uds < 0;
  if (!good) {
    close(fd);
    return -1;
  }
  mesh->peers[hello.rank].uds = fd;
  return hello.rank;
}

/* ERENDEZVOUS naming the higher ranks of this host that have not connected. */
static int not_connected(const perigee__mesh *mesh, const address *list) {
  perigee_error late;
  perigee__error_init(&late);
  for (int r = mesh->rank + 1; r < mesh->nranks; r++)
    if (same_host(&list[mesh->rank], &list[r]) && mesh->peers[r].uds < 0)
      perigee__error_add_rank(&late, r);
  char ranks[128];
  perigee__error_ranks_text(&late, ranks, sizeof(ranks));
  snprintf(late.message, sizeof(late.message), "rank%s %s of %d came but did not connect",
           late.nranks > 1 ? "s" : "", ranks, mesh->nranks);
  late.code = PERIGEE_ERENDEZVOUS;
  late.rank = mesh->rank;
  return perigee__fail_with(&late);
}

static int accept_all(perigee__mesh *mesh, const address *list, int64_t deadline_ns) {
  int missing = 0;
  for (int r = mesh->rank + 1; r < mesh->nranks; r++)
    missing += same_host(&list[mesh->rank], &list[r]);
  while (missing > 0) {
    if (wait_readable(mesh->uds_listener, deadline_ns) < 0)
      return not_connected(mesh, list);
    missing -= accept_one(mesh, &list[mesh->rank], deadline_ns) >= 0;
  }
  return 0;
}

/* One descriptor from a lower rank. */
static int receive_ring(const perigee__peer *peer, int64_t deadline_ns, int *fd_p) {
  if (wait_readable(peer->uds, deadline_ns) < 0)
    return perigee__fail(PERIGEE_ERENDEZVOUS, "rank %d did not pass its ring", peer->rank);
  char byte;
  struct iovec iov = {&byte, 1};
  union {
    struct cmsghdr align;
    char bytes[CMSG_SPACE(sizeof(int))];
  } control;
  struct msghdr msg = {.msg_iov = &iov,
                       .msg_iovlen = 1,
                       .msg_control = control.bytes,
                       .msg_controllen = sizeof(control.bytes)};
  ssize_t n = recvmsg(peer->uds, &msg, MSG_CMSG_CLOEXEC);
  struct cmsghdr *c = n > 0 ? CMSG_FIRSTHDR(&msg) : NULL;
  if (c == NULL || c->cmsg_type != SCM_RIGHTS)
    return perigee__fail(PERIGEE_ERENDEZVOUS, "rank %d ended while it passed its ring", peer->rank);
  memcpy(fd_p, CMSG_DATA(c), sizeof(int));
  return 0;
}

/* A ring for the peer, or what stands for none. */
static int make_ring(const perigee__mesh *mesh, const perigee__peer *peer, int *fd_p) {
  static _Atomic bool said; /* relaxed: once is enough, twice does no harm */
  int rc = perigee__memfd_create("perigee-ring", perigee__ring_pair_bytes(), fd_p);
  if (rc != PERIGEE_ENOSHM || mesh->transport == PERIGEE_TRANSPORT_SHM)
    return rc;
  if (!atomic_exchange_explicit(&said, true, memory_order_relaxed))
    perigee__log(PERIGEE_LOG_WARN, "%s: messages between this rank and rank %d go over TCP",
                 perigee__last_error()->message, peer->rank);
  *fd_p = open("/dev/null", O_RDONLY | O_CLOEXEC);
  return *fd_p >= 0 ? 0 : perigee__fail_errno(errno, "open /dev/null");
}

static bool is_ring(int fd) {
  struct stat st;
  return fstat(fd, &st) != 0 || S_ISREG(st.st_mode);
}

static int exchange_ring(perigee__mesh *mesh, perigee__peer *peer, int64_t deadline_ns) {
  int fd = -1;
  if (mesh->transport != PERIGEE_TRANSPORT_TCP) {
    if (mesh->rank < peer->rank) {
      PERIGEE_TRY(make_ring(mesh, peer, &fd));
      int rc = perigee__uds_send_fd(peer->uds, 'r', 0, fd);
      if (rc < 0) {
        close(fd);
        return perigee__fail_errno(-rc, "cannot pass a ring to rank %d", peer->rank);
      }
    } else {
      PERIGEE_TRY(receive_ring(peer, deadline_ns, &fd));
    }
  }
  if (fd >= 0 && !is_ring(fd)) {
    close(fd);
    fd = -1;
  }
  int uds = peer->uds;
  peer->uds = -1;
  return perigee__peer_local_up(peer, uds, fd);
}

static int connect_host(perigee__mesh *mesh, const address *list, int64_t deadline_ns) {
  for (int r = 0; r < mesh->rank; r++)
    if (same_host(&list[mesh->rank], &list[r]))
      PERIGEE_TRY(dial_uds(mesh, &mesh->peers[r], &list[r]));
  PERIGEE_TRY(accept_all(mesh, list, deadline_ns));
  close(mesh->uds_listener);
  mesh->uds_listener = -1;
  /* First all that this rank gives, then all that it waits for. */
  for (int r = mesh->nranks - 1; r >= 0; r--)
    if (r != mesh->rank && mesh->peers[r].uds >= 0)
      PERIGEE_TRY(exchange_ring(mesh, &mesh->peers[r], deadline_ns));
  return 0;
}

/* What the ranks have asked for must fit together. */
static int check_paths(const perigee__mesh *mesh, const address *list) {
  const address *own = &list[mesh->rank];
  for (int r = 0; r < mesh->nranks; r++) {
    if (mesh->transport == PERIGEE_TRANSPORT_SHM && !same_host(own, &list[r]))
      return perigee__fail(PERIGEE_EUNREACH,
                           "PERIGEE_TRANSPORT=shm, but rank %d is on another host", r);
    if (same_host(own, &list[r]) && own->rings != list[r].rings)
      return perigee__fail(
          PERIGEE_ECONFIG,
          "PERIGEE_TRANSPORT: rank %d forces tcp, rank %d on the same host does not",
          own->rings ? r : mesh->rank, own->rings ? mesh->rank : r);
  }
  return 0;
}

/* Both host ids begin with a boot id, the same one. */
static bool same_machine(const address *a, const address *b) {
  size_t n = strcspn(a->host_id, "/");
  return a->host_id[n] == '/' && strncmp(a->host_id, b->host_id, n + 1) == 0;
}

static void find_hosts(perigee__mesh *mesh, const address *list) {
  perigee__loop_lock(mesh->loop);
  for (int r = 0; r < mesh->nranks; r++)
    if (same_machine(&list[mesh->rank], &list[r]))
      perigee__link_near(&mesh->peers[r]);
  perigee__loop_unlock(mesh->loop);
  for (int r = 0; r < mesh->nranks; r++)
    for (int *host = &mesh->peers[r].host_of; !same_host(&list[*host], &list[r]);)
      ++*host;
}

int perigee__bootstrap(perigee__mesh *mesh, const perigee__mesh_params *params) {
  address *list = perigee__calloc((size_t)mesh->nranks, sizeof(*list));
  if (list == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory for %d addresses", mesh->nranks);
  int rc;
  PERIGEE_TRY_GOTO(publish(mesh, params, &list[mesh->rank]), out);
  PERIGEE_TRY_GOTO(read_all(mesh, params, list), out);
  PERIGEE_TRY_GOTO(check_paths(mesh, list), out);
  find_hosts(mesh, list);
  rc = connect_host(mesh, list, params->deadline_ns);
out:
  free(list);
  return rc;
}
