/*
 * UNIX sockets (SOCK_SEQPACKET) between ranks of one host. One packet is one message:
 *   'k'             look at your rings
 *   'f' + key (8)   a descriptor comes with it
 *   'g'             goodbye: the end that follows is no death
 * The end of the socket is the end of the process, seen within microseconds of kill -9.
 */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/error.h"
#include "transport/mesh_impl.h"

enum {
  PACKET_MAX = 16
};

void perigee__local_kick(void *arg) {
  const perigee__peer *peer = arg;
  /* A full socket holds enough kicks already; a dead peer's end is seen by reading. */
  ssize_t n = send(peer->uds, "k", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
  (void)n;
}

void perigee__local_goodbye(perigee__peer *peer) {
  ssize_t n = send(peer->uds, "g", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
  (void)n;
}

int perigee__uds_send_fd(int uds, char type, uint64_t key, int fd) {
  char packet[1 + sizeof(key)];
  packet[0] = type;
  memcpy(packet + 1, &key, sizeof(key));
  struct iovec iov = {packet, sizeof(packet)};
  union {
    struct cmsghdr align;
    char bytes[CMSG_SPACE(sizeof(int))];
  } control;
  memset(&control, 0, sizeof(control));
  struct msghdr msg = {.msg_iov = &iov,
                       .msg_iovlen = 1,
                       .msg_control = control.bytes,
                       .msg_controllen = sizeof(control.bytes)};
  struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);
  cmsg->cmsg_level = SOL_SOCKET;
  cmsg->cmsg_type = SCM_RIGHTS;
  cmsg->cmsg_len = CMSG_LEN(sizeof(int));
  memcpy(CMSG_DATA(cmsg), &fd, sizeof(int));
  for (;;) {
    if (sendmsg(uds, &msg, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0)
      return 0;
    if (errno != EINTR)
      return -errno;
  }
}

/* One packet: its size, 0 at the end, or -errno. *fd_p: a descriptor that came with it, -1 none. */
static ssize_t receive(int uds, char *packet, int *fd_p) {
  struct iovec iov = {packet, PACKET_MAX};
  union {
    struct cmsghdr align;
    char bytes[CMSG_SPACE(sizeof(int))];
  } control;
  struct msghdr msg = {.msg_iov = &iov,
                       .msg_iovlen = 1,
                       .msg_control = control.bytes,
                       .msg_controllen = sizeof(control.bytes)};
  ssize_t n = recvmsg(uds, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  *fd_p = -1;
  if (n < 0)
    return -errno;
  for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c != NULL; c = CMSG_NXTHDR(&msg, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
      continue;
    /* Alignment leaves room for one more than asked for. */
    for (size_t at = 0; at + sizeof(int) <= c->cmsg_len - CMSG_LEN(0); at += sizeof(int)) {
      if (*fd_p >= 0)
        close(*fd_p);
      memcpy(fd_p, CMSG_DATA(c) + at, sizeof(int));
    }
  }
  return n;
}

static void keep_fd(perigee__peer *peer, uint64_t key, int fd) {
  perigee__passed_fd *passed = perigee__calloc(1, sizeof(*passed));
  if (passed == NULL) {
    close(fd);
    return;
  }
  passed->peer = peer->rank;
  passed->fd = fd;
  passed->key = key;
  perigee__list_append(&peer->mesh->passed, &passed->node);
}

static void stop_watching(perigee__peer *peer) {
  if (peer->uds_polled && !uv_is_closing((uv_handle_t *)&peer->uds_poll))
    uv_poll_stop(&peer->uds_poll);
}

/*
 * The process at the other end has gone, or is about to. What it left in the ring or in the TCP stream counts first. A TCP stream ends by
 * itself right behind; should it not, the sweep ends it.
 */
static void ended(perigee__peer *peer) {
  stop_watching(peer);
  if (peer->dead || peer->closed)
    return;
  peer->ended_ns = perigee__now_ns();
  perigee__channel_drain(peer);
  if (perigee__link_is_up(peer))
    perigee__link_sweep_in(peer->mesh, peer->leaving ? PERIGEE_LEAVE_MS : PERIGEE_END_MS);
  else
    perigee__peer_lost(peer, "its process ended");
}

static void take_packet(perigee__peer *peer, const char *packet, size_t size, int fd) {
  uint64_t key;
  if (packet[0] == 'f' && size == 1 + sizeof(key) && fd >= 0) {
    memcpy(&key, packet + 1, sizeof(key));
    keep_fd(peer, key, fd);
    return;
  }
  if (fd >= 0)
    close(fd);
  if (packet[0] == 'g')
    peer->leaving = true;
}

/* Take what has come. Returns whether the socket has ended, too. */
static bool take_all(perigee__peer *peer) {
  for (int errors = 0;;) {
    char packet[PACKET_MAX];
    int fd;
    ssize_t n = receive(peer->uds, packet, &fd);
    if (n > 0)
      take_packet(peer, packet, (size_t)n, fd);
    else if (n == -EAGAIN)
      return false;
    else if (n == 0 || (n != -EINTR && ++errors > 1))
      /* Once an error may stand before packets that can still be read: the peer closed with some of ours unread. */
      return true;
  }
}

void perigee__local_look(perigee__peer *peer) {
  if (peer->uds >= 0)
    take_all(peer);
}

static void on_uds(uv_poll_t *poll, int status, int events) {
  perigee__peer *peer = poll->data;
  (void)status;
  (void)events;
  if (take_all(peer))
    ended(peer);
}

int perigee__local_watch(perigee__peer *peer) {
  int rc = uv_poll_init(perigee__loop_uv(peer->mesh->loop), &peer->uds_poll, peer->uds);
  if (rc < 0)
    return perigee__fail_errno(-rc, "cannot watch the socket to rank %d", peer->rank);
  peer->uds_poll.data = peer;
  peer->uds_polled = true;
  rc = uv_poll_start(&peer->uds_poll, UV_READABLE | UV_DISCONNECT, on_uds);
  return rc < 0 ? perigee__fail_errno(-rc, "cannot watch the socket to rank %d", peer->rank) : 0;
}

/* ---- descriptors ------------------------------------------------------------------------------- */

static int take_passed(perigee__mesh *mesh, int peer, uint64_t key) {
  PERIGEE_LIST_EACH(it, &mesh->passed) {
    perigee__passed_fd *passed = PERIGEE_CONTAINER_OF(it, perigee__passed_fd, node);
    if (passed->peer == peer && passed->key == key) {
      int fd = passed->fd;
      perigee__list_remove(&passed->node);
      free(passed);
      return fd;
    }
  }
  return -1;
}

static bool never(perigee__mesh *mesh, void *arg) {
  (void)mesh;
  (void)arg;
  return false;
}

static int give_to(perigee__mesh *mesh, const perigee__peer *peer, uint64_t key, int fd,
                   int64_t deadline_ns) {
  for (;;) {
    int rc = perigee__uds_send_fd(peer->uds, 'f', key, fd);
    if (rc == 0)
      return 0;
    if (rc != -EAGAIN)
      return perigee__fail(PERIGEE_EPEERDEAD, "cannot pass a descriptor to rank %d: %s", peer->rank,
                           perigee_strerror(rc));
    if (perigee__passed(deadline_ns))
      return perigee__fail(PERIGEE_ETIMEDOUT, "rank %d does not take a descriptor", peer->rank);
    (void)!perigee__mesh_wait_locked(mesh, never, NULL, perigee__deadline_in(PERIGEE_NS_PER_MS));
  }
}

typedef struct fd_wait {
  const perigee__peer *peer;
  uint64_t key;
  int fd;
} fd_wait;

static bool fd_came(perigee__mesh *mesh, void *arg) {
  fd_wait *w = arg;
  if (w->fd < 0)
    w->fd = take_passed(mesh, w->peer->rank, w->key);
  return w->fd >= 0 || w->peer->dead || w->peer->closed || w->peer->ended_ns != 0;
}

int perigee__mesh_share_fd(perigee__mesh *mesh, const int *members, int n, int me, uint64_t key,
                           int64_t deadline_ns, int *fd_p) {
  int rc = 0;
  perigee__loop_lock(mesh->loop);
  if (me == 0) {
    for (int i = 1; i < n && rc == 0; i++)
      rc = give_to(mesh, &mesh->peers[members[i]], key, *fd_p, deadline_ns);
  } else {
    const perigee__peer *giver = &mesh->peers[members[0]];
    fd_wait w = {giver, key, -1};
    rc = perigee__mesh_wait_locked(mesh, fd_came, &w, deadline_ns);
    if (w.fd >= 0) {
      *fd_p = w.fd;
      rc = 0;
    } else if (rc == 0) {
      rc = perigee__fail(PERIGEE_EPEERDEAD, "rank %d has gone before it passed a descriptor",
                         giver->rank);
    } else {
      rc = perigee__fail(PERIGEE_ETIMEDOUT, "timed out, rank %d has not passed a descriptor",
                         giver->rank);
    }
  }
  perigee__loop_unlock(mesh->loop);
  return rc;
}
