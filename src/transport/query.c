/* Asking the members of a group how many collectives they have entered. */
#include <stdlib.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "transport/mesh_impl.h"

void perigee__status_asked(perigee__peer *peer, const perigee__frame *frame) {
  perigee__fate *fate = perigee__fate_find(peer->mesh, frame->group);
  const perigee__frame answer = {
      .type = PERIGEE_FRAME_STATUS_REP,
      .group = frame->group,
      .id = frame->id,
      .tag = fate != NULL ? atomic_load_explicit(&fate->entered, memory_order_relaxed) : 0};
  perigee__channel_queue(peer, &answer, NULL, 0, NULL, NULL);
}

static void answered(perigee__peer *peer, uint64_t entered) {
  perigee__query_state *query = peer->mesh->query;
  int rank = perigee__fate_rank_of(query->fate, peer->rank);
  if (rank < 0 || query->answered[rank])
    return;
  query->answered[rank] = 1;
  query->entered[rank] = entered;
  query->waiting--;
}

void perigee__status_came(perigee__peer *peer, const perigee__frame *frame) {
  if (peer->mesh->query != NULL && peer->mesh->query->id == frame->id)
    answered(peer, frame->tag);
}

void perigee__query_gone(perigee__peer *peer) {
  if (peer->mesh->query != NULL)
    answered(peer, UINT64_MAX);
}

static void ask(perigee__mesh *mesh, perigee__query_state *query) {
  const perigee__fate *fate = query->fate;
  const perigee__frame frame = {
      .type = PERIGEE_FRAME_STATUS_REQ, .group = fate->group, .id = query->id};
  for (int r = 0; r < fate->n; r++) {
    perigee__peer *peer = &mesh->peers[fate->members[r]];
    if (r == fate->me) {
      query->entered[r] = atomic_load_explicit(&fate->entered, memory_order_relaxed);
      query->answered[r] = 1;
    } else if (peer->dead || peer->closed) {
      query->answered[r] = 1;
    } else {
      query->waiting++;
    }
  }
  for (int r = 0; r < fate->n; r++)
    if (!query->answered[r])
      perigee__channel_queue(&mesh->peers[fate->members[r]], &frame, NULL, 0, NULL, NULL);
}

static bool nobody_asks(perigee__mesh *mesh, void *arg) {
  (void)arg;
  return mesh->query == NULL;
}

static bool all_answered(perigee__mesh *mesh, void *arg) {
  const perigee__query_state *query = arg;
  (void)mesh;
  return query->waiting == 0;
}

void perigee__mesh_query(perigee__mesh *mesh, perigee__fate *fate, int64_t deadline_ns,
                         uint64_t *entered) {
  perigee__query_state query = {.fate = fate, .entered = entered};
  for (int r = 0; r < fate->n; r++)
    entered[r] = UINT64_MAX;
  query.answered = perigee__calloc((size_t)fate->n, 1);
  if (query.answered == NULL)
    return;
  perigee__loop_lock(mesh->loop);
  /* One question at a time; another thread's takes at most its own deadline. */
  if (perigee__mesh_wait_locked(mesh, nobody_asks, NULL, deadline_ns) == 0) {
    query.id = ++mesh->next_query;
    mesh->query = &query;
    ask(mesh, &query);
    (void)!perigee__mesh_wait_locked(mesh, all_answered, &query, deadline_ns);
    mesh->query = NULL;
  }
  perigee__loop_unlock(mesh->loop);
  free(query.answered);
}
