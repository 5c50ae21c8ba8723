#include "transport/mesh.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/futex.h"
#include "base/log.h"
#include "transport/memfd.h"
#include "transport/mesh_impl.h"

#define LINGER_NS (500 * PERIGEE_NS_PER_MS)

int perigee__mesh_alloc(int rank, int nranks, perigee__transport transport,
                        perigee__mesh **mesh_p) {
  perigee__mesh *mesh = perigee__calloc(1, sizeof(*mesh));
  if (mesh == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory for a mesh");
  mesh->rank = rank;
  mesh->nranks = nranks;
  mesh->local_ranks = 1;
  mesh->transport = transport;
  mesh->uds_listener = mesh->tcp_listener = -1;
  perigee__match_init(&mesh->match);
  perigee__list_init(&mesh->fates);
  perigee__list_init(&mesh->completed);
  perigee__list_init(&mesh->passed);
  perigee__list_init(&mesh->notes);
  perigee__list_init(&mesh->dirty);
  perigee__list_init(&mesh->later);
  perigee__list_init(&mesh->spare);
  perigee__list_init(&mesh->strangers);
  mesh->peers = perigee__calloc((size_t)nranks, sizeof(*mesh->peers));
  if (mesh->peers == NULL) {
    free(mesh);
    return perigee__fail(PERIGEE_ENOMEM, "no memory for %d peers", nranks);
  }
  for (int r = 0; r < nranks; r++) {
    mesh->peers[r].mesh = mesh;
    mesh->peers[r].rank = r;
    mesh->peers[r].uds = -1;
    perigee__list_init(&mesh->peers[r].dirty);
    perigee__channel_init(&mesh->peers[r].chan);
  }
  char name[16];
  snprintf(name, sizeof(name), "pg-io-%d", rank);
  int rc = perigee__loop_create(name, &mesh->loop);
  if (rc < 0) {
    free(mesh->peers);
    free(mesh);
    return rc;
  }
  perigee__xfer_timer_init(mesh);
  const perigee__loop_hooks hooks = {perigee__mesh_prepare, perigee__mesh_collect,
                                     perigee__mesh_deliver, mesh};
  perigee__loop_set_hooks(mesh->loop, &hooks);
  *mesh_p = mesh;
  return 0;
}

static void free_lists(perigee__mesh *mesh) {
  PERIGEE_LIST_EACH_SAFE(it, next, &mesh->match.arrivals) {
    perigee__early *early = PERIGEE_CONTAINER_OF(it, perigee__early, arrival);
    free(early->data);
    free(early);
  }
  PERIGEE_LIST_EACH_SAFE(it, next, &mesh->passed) {
    perigee__passed_fd *passed = PERIGEE_CONTAINER_OF(it, perigee__passed_fd, node);
    close(passed->fd);
    free(passed);
  }
  PERIGEE_LIST_EACH_SAFE(it, next, &mesh->spare)
  free(PERIGEE_CONTAINER_OF(it, perigee__out, node));
}

void perigee__mesh_free(perigee__mesh *mesh) {
  perigee__loop_lock(mesh->loop);
  perigee__link_drop_strangers(mesh);
  for (int r = 0; r < mesh->nranks; r++)
    perigee__link_drop(&mesh->peers[r]);
  perigee__loop_unlock(mesh->loop);
  perigee__loop_destroy(&mesh->loop); /* closes every handle; from here on this thread is alone */
  for (int r = 0; r < mesh->nranks; r++) {
    perigee__peer *peer = &mesh->peers[r];
    perigee__channel_fini(&peer->chan);
    perigee__ring_stream_fini(&peer->ring);
    if (peer->uds >= 0)
      close(peer->uds);
  }
  free_lists(mesh);
  perigee__groups_free(mesh);
  if (mesh->uds_listener >= 0)
    close(mesh->uds_listener);
  if (mesh->tcp_listener >= 0)
    close(mesh->tcp_listener);
  free(mesh->peers);
  free(mesh);
}

int perigee__peer_local_up(perigee__peer *peer, int uds, int ring_fd) {
  perigee__mesh *mesh = peer->mesh;
  void *base = NULL;
  int rc = ring_fd >= 0 ? perigee__memfd_map(ring_fd, perigee__ring_pair_bytes(), &base) : 0;
  if (ring_fd >= 0)
    close(ring_fd);
  if (rc < 0) {
    close(uds);
    return rc;
  }
  perigee__loop_lock(mesh->loop);
  peer->uds = uds;
  peer->local = true;
  mesh->local_ranks++;
  if (base != NULL) {
    perigee__ring_stream_init(&peer->ring, base, mesh->rank < peer->rank, perigee__local_kick,
                              peer);
    perigee__channel_up(peer, &peer->ring.stream);
  }
  rc = perigee__local_watch(peer);
  perigee__loop_unlock(mesh->loop);
  return rc;
}

int perigee__mesh_listen(perigee__mesh *mesh, const char *addr, int *port_p) {
  PERIGEE_TRY(perigee__link_listen(addr, &mesh->tcp_listener, port_p));
  perigee__loop_lock(mesh->loop);
  int rc = perigee__link_watch_listener(mesh);
  perigee__loop_unlock(mesh->loop);
  return rc;
}

static bool link_settled(perigee__mesh *mesh, void *arg) {
  const perigee__peer *peer = arg;
  (void)mesh;
  return perigee__link_is_up(peer) || peer->dead || peer->closed;
}

/* Every rank's end must be seen by some other: ranks of other hosts are joined in a ring. */
static int dial_neighbour(perigee__mesh *mesh, int64_t deadline_ns) {
  perigee__peer *right = &mesh->peers[(mesh->rank + 1) % mesh->nranks];
  if (right->local || right->rank == mesh->rank)
    return 0;
  perigee__loop_lock(mesh->loop);
  perigee__link_dial(right);
  int rc = perigee__mesh_wait_locked(mesh, link_settled, right, deadline_ns);
  bool up = perigee__link_is_up(right);
  perigee__loop_unlock(mesh->loop);
  if (rc < 0)
    return perigee__fail(PERIGEE_ERENDEZVOUS, "rank %d at %s:%d does not answer", right->rank,
                         right->host, right->port);
  if (!up)
    return perigee__fail(PERIGEE_EUNREACH, "rank %d at %s:%d cannot be reached: %s", right->rank,
                         right->host, right->port, right->lost_how);
  return 0;
}

int perigee__mesh_create(const perigee__mesh_params *params, perigee__mesh **mesh_p) {
  perigee__mesh *mesh;
  PERIGEE_TRY(perigee__mesh_alloc(params->rank, params->nranks, params->transport, &mesh));
  int rc;
  PERIGEE_TRY_GOTO(perigee__bootstrap(mesh, params), err);
  perigee__spin_init(mesh);
  PERIGEE_TRY_GOTO(dial_neighbour(mesh, params->deadline_ns), err);
  *mesh_p = mesh;
  return 0;
err:
  perigee__mesh_free(mesh);
  return rc;
}

/* ---- ranks of one process ---------------------------------------------------------------------- */

static int join_pair(perigee__mesh *low, perigee__mesh *high) {
  int pair[2], fds[2] = {-1, -1};
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0)
    return perigee__fail_errno(errno, "cannot make a socket pair");
  int rc = 0;
  if (low->transport != PERIGEE_TRANSPORT_TCP) {
    rc = perigee__memfd_create("perigee-ring", perigee__ring_pair_bytes(), &fds[0]);
    if (rc == 0 && (fds[1] = fcntl(fds[0], F_DUPFD_CLOEXEC, 0)) < 0) {
      rc = perigee__fail_errno(errno, "cannot duplicate a descriptor");
      close(fds[0]);
    }
    if (rc < 0) {
      close(pair[0]);
      close(pair[1]);
      return rc;
    }
  }
  rc = perigee__peer_local_up(&low->peers[high->rank], pair[0], fds[0]);
  int rc2 = perigee__peer_local_up(&high->peers[low->rank], pair[1], fds[1]);
  return rc < 0 ? rc : rc2;
}

static int local_listen(perigee__mesh *mesh, int *port_p) {
  mesh->nonce = ((uint64_t)perigee__now_ns() << 8) ^ (uint64_t)(uintptr_t)mesh;
  return perigee__mesh_listen(mesh, "127.0.0.1", port_p);
}

static int create_local(int n, perigee__transport transport, perigee__mesh **meshes) {
  int rc = 0, made = 0;
  for (; made < n; made++)
    PERIGEE_TRY_GOTO(perigee__mesh_alloc(made, n, transport, &meshes[made]), err);
  for (int i = 0; i < n && transport == PERIGEE_TRANSPORT_TCP; i++) {
    int port;
    PERIGEE_TRY_GOTO(local_listen(meshes[i], &port), err);
    for (int j = 0; j < n; j++) {
      snprintf(meshes[j]->peers[i].host, sizeof(meshes[j]->peers[i].host), "127.0.0.1");
      meshes[j]->peers[i].port = port;
      meshes[j]->peers[i].nonce = meshes[i]->nonce;
    }
  }
  for (int i = 0; i < n; i++)
    for (int j = i + 1; j < n; j++)
      PERIGEE_TRY_GOTO(join_pair(meshes[i], meshes[j]), err);
  for (int i = 0; i < n; i++)
    perigee__spin_init(meshes[i]);
  return 0;
err:
  while (made-- > 0) {
    perigee__mesh_free(meshes[made]);
    meshes[made] = NULL;
  }
  return rc;
}

int perigee__mesh_create_local(int n, perigee__transport transport, perigee__mesh **meshes) {
  int rc = create_local(n, transport, meshes);
  if (rc != PERIGEE_ENOSHM || transport != PERIGEE_TRANSPORT_AUTO)
    return rc;
  perigee__log(PERIGEE_LOG_WARN, "%s: messages between the ranks go over TCP",
               perigee__last_error()->message);
  return create_local(n, PERIGEE_TRANSPORT_TCP, meshes);
}

/* ---- the end ----------------------------------------------------------------------------------- */

/* Whether something can still be said to the peer: it is there, or is being dialled. */
static bool is_reachable(const perigee__peer *peer) {
  return !peer->dead && !peer->closed && !peer->lost &&
         (peer->chan.stream != NULL || peer->link != NULL || peer->redial);
}

static bool all_sent(perigee__mesh *mesh, void *arg) {
  (void)arg;
  for (int r = 0; r < mesh->nranks; r++)
    if (is_reachable(&mesh->peers[r]) && !perigee__channel_idle(&mesh->peers[r].chan))
      return false;
  return true;
}

/* TCP links that are up: their peers close them when they have read the goodbye. */
static bool links_gone(perigee__mesh *mesh, void *arg) {
  (void)arg;
  for (int r = 0; r < mesh->nranks; r++)
    if (perigee__link_is_up(&mesh->peers[r]))
      return false;
  return true;
}

static bool links_drained(perigee__mesh *mesh, void *arg) {
  (void)arg;
  for (int r = 0; r < mesh->nranks; r++)
    if (!perigee__link_is_drained(&mesh->peers[r]))
      return false;
  return true;
}

/*
 * Closing a socket with unread bytes resets it, and then its host forgets what it has not transmitted: wait until the peers have closed. One
 * that does not (it is stopped) must at least have everything on its side.
 */
static void linger(perigee__mesh *mesh, int64_t deadline_ns) {
  int64_t soon = perigee__deadline_in(LINGER_NS);
  soon = soon < deadline_ns ? soon : deadline_ns;
  if (perigee__mesh_wait_locked(mesh, links_gone, NULL, soon) == 0)
    return;
  while (!links_drained(mesh, NULL) && !perigee__passed(deadline_ns)) {
    soon = perigee__deadline_in(10 * PERIGEE_NS_PER_MS);
    (void)!perigee__mesh_wait_locked(mesh, links_gone, NULL,
                                     soon < deadline_ns ? soon : deadline_ns);
  }
}

void perigee__mesh_destroy(perigee__mesh **mesh_p, int64_t deadline_ns) {
  perigee__mesh *mesh = *mesh_p;
  const perigee__frame bye = {.type = PERIGEE_FRAME_GOODBYE};
  if (mesh == NULL)
    return;
  *mesh_p = NULL;
  perigee__loop_lock(mesh->loop);
  mesh->closing = true;
  for (int r = 0; r < mesh->nranks; r++)
    if (r != mesh->rank && is_reachable(&mesh->peers[r]))
      perigee__channel_queue(&mesh->peers[r], &bye, NULL, 0, NULL, NULL);
  perigee__settle(mesh, false); /* once, even when there is no time */
  (void)!perigee__mesh_wait_locked(mesh, all_sent, NULL, deadline_ns);
  perigee__end_xfers(mesh, NULL, -1, PERIGEE_ECLOSED);
  for (int r = 0; r < mesh->nranks; r++) {
    if (mesh->peers[r].uds >= 0)
      perigee__local_goodbye(&mesh->peers[r]);
    perigee__link_shutdown(&mesh->peers[r]);
  }
  linger(mesh, deadline_ns);
  perigee__loop_unlock(mesh->loop);
  perigee__mesh_free(mesh);
}

int perigee__mesh_rank(const perigee__mesh *mesh) { return mesh->rank; }
int perigee__mesh_size(const perigee__mesh *mesh) { return mesh->nranks; }
int perigee__mesh_local_ranks(const perigee__mesh *mesh) { return mesh->local_ranks; }
perigee__transport perigee__mesh_transport(const perigee__mesh *mesh) { return mesh->transport; }

bool perigee__mesh_same_host(const perigee__mesh *mesh, int world_rank) {
  return world_rank == mesh->rank || mesh->peers[world_rank].local;
}

int perigee__mesh_host_of(const perigee__mesh *mesh, int world_rank) {
  return mesh->peers[world_rank].host_of;
}
