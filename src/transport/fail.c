/*
 * Death and abort; ending transfers.
 *
 * A rank that sees a peer die fails every group that both are in and tells the other members (ABORT); who is told does the same once,
 * so that the news also passes between ranks without a connection. The first cause wins on each rank.
 */
#include <endian.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "transport/mesh_impl.h"

/* ---- the record on the wire -------------------------------------------------------------------- */

static void put32(uint8_t **at, int32_t value) {
  uint32_t v = htole32((uint32_t)value);
  memcpy(*at, &v, 4);
  *at += 4;
}

static int32_t get32(const uint8_t **at) {
  uint32_t v;
  memcpy(&v, *at, 4);
  *at += 4;
  return (int32_t)le32toh(v);
}

static void record_encode(const perigee_error *error, uint8_t out[PERIGEE_ABORT_SIZE]) {
  uint8_t *at = out;
  memset(out, 0, PERIGEE_ABORT_SIZE);
  put32(&at, error->code);
  put32(&at, error->origin >= 0 ? error->origin : error->rank);
  put32(&at, error->nranks);
  put32(&at, error->op);
  uint64_t seq = htole64(error->seq);
  memcpy(at, &seq, 8);
  at += 8;
  for (int i = 0; i < PERIGEE_ERR_RANKS_MAX; i++)
    put32(&at, i < error->nranks ? error->ranks[i] : -1);
  snprintf((char *)at, 512, "%s", error->message);
}

/* A peer's record, believed no further than its types allow. */
static void record_decode(const uint8_t in[PERIGEE_ABORT_SIZE], perigee_error *error) {
  const uint8_t *at = in;
  perigee__error_init(error);
  error->code = get32(&at);
  error->origin = get32(&at);
  int n = get32(&at);
  error->op = get32(&at);
  uint64_t seq;
  memcpy(&seq, at, 8);
  error->seq = le64toh(seq);
  at += 8;
  for (int i = 0; i < PERIGEE_ERR_RANKS_MAX; i++) {
    int rank = get32(&at);
    if (i < n && rank >= 0)
      perigee__error_add_rank(error, rank);
  }
  memcpy(error->message, at, sizeof(error->message) - 1);
  error->message[sizeof(error->message) - 1] = '\0';
  if (error->code >= 0)
    error->code = PERIGEE_EABORTED;
}

/* ---- failing a group --------------------------------------------------------------------------- */

typedef struct end_those {
  perigee__mesh *mesh;
  const perigee__fate *fate; /* xfers of this fate, or any when NULL */
  int peer;                  /* with this peer, or any when -1 */
  int status;
  int64_t now_ns;  /* with next_p: only those whose deadline has come ... */
  int64_t *next_p; /* ... and the earliest deadline of the others; NULL: whatever their deadlines */
} end_those;

static bool is_late(const end_those *which, const perigee__xfer *xfer) {
  if (xfer->on_done == NULL)
    return false; /* who waits for it looks at the time */
  if (xfer->deadline_ns == 0 || xfer->deadline_ns > which->now_ns) {
    if (xfer->deadline_ns != 0 && xfer->deadline_ns < *which->next_p)
      *which->next_p = xfer->deadline_ns;
    return false;
  }
  return true;
}

static bool concerns(const end_those *which, const perigee__xfer *xfer) {
  if (which->next_p != NULL && !is_late(which, xfer))
    return false;
  return (which->fate == NULL || xfer->fate == which->fate) &&
         (which->peer < 0 || xfer->peer == which->peer);
}

static void end_posted(void *arg, perigee__xfer *xfer) {
  const end_those *which = arg;
  if (!concerns(which, xfer))
    return;
  perigee__list_remove(&xfer->node);
  perigee__xfer_end(which->mesh, xfer, which->status);
}

static void end_list(const end_those *which, perigee__peer *peer, perigee__node *list) {
  PERIGEE_LIST_EACH_SAFE(it, next, list) {
    perigee__xfer *xfer = PERIGEE_CONTAINER_OF(it, perigee__xfer, node);
    if (concerns(which, xfer)) {
      perigee__channel_forget(peer, xfer);
      perigee__xfer_end(which->mesh, xfer, which->status);
    }
  }
}

/* End sends whose frames wait; restart after each, because forgetting changes the list. */
static void end_queued(const end_those *which, perigee__peer *peer) {
  for (bool again = true; again;) {
    again = false;
    PERIGEE_LIST_EACH(it, &peer->chan.out) {
      perigee__xfer *xfer = PERIGEE_CONTAINER_OF(it, perigee__out, node)->xfer;
      if (xfer == NULL || !concerns(which, xfer))
        continue;
      perigee__channel_forget(peer, xfer);
      perigee__xfer_end(which->mesh, xfer, which->status);
      again = true;
      break;
    }
  }
}

static void end_reading(const end_those *which, perigee__peer *peer) {
  perigee__channel *chan = &peer->chan;
  perigee__xfer *xfer = chan->in_xfer;
  if (xfer != NULL && concerns(which, xfer)) {
    perigee__channel_forget(peer, xfer);
    perigee__xfer_end(which->mesh, xfer, which->status);
  }
  perigee__early *early = chan->in_early;
  if (early != NULL && early->taker != NULL && concerns(which, early->taker)) {
    xfer = early->taker;
    early->taker = NULL;
    perigee__channel_free_early(which->mesh, early);
    perigee__xfer_end(which->mesh, xfer, which->status);
  }
}

static void end_xfers(const end_those *which) {
  perigee__mesh *mesh = which->mesh;
  end_those posted = *which;
  perigee__match_each_posted(&mesh->match, end_posted, &posted);
  for (int r = 0; r < mesh->nranks; r++) {
    perigee__peer *peer = &mesh->peers[r];
    if (r == mesh->rank || (which->peer >= 0 && r != which->peer))
      continue;
    end_list(which, peer, &peer->chan.rts_sent);
    end_queued(which, peer);
    end_list(which, peer, &peer->chan.cts_sent);
    end_list(which, peer, &peer->chan.pulls);
    end_reading(which, peer);
  }
}

void perigee__end_xfers(perigee__mesh *mesh, const perigee__fate *fate, int peer, int status) {
  const end_those which = {.mesh = mesh, .fate = fate, .peer = peer, .status = status};
  end_xfers(&which);
}

int64_t perigee__end_late(perigee__mesh *mesh, int64_t now_ns) {
  int64_t next = PERIGEE_NEVER;
  const end_those which = {
      .mesh = mesh, .peer = -1, .status = PERIGEE_ETIMEDOUT, .now_ns = now_ns, .next_p = &next};
  end_xfers(&which);
  return next;
}

static void tell_members(perigee__mesh *mesh, const perigee__fate *fate,
                         const perigee_error *error) {
  const perigee__frame frame = {
      .type = PERIGEE_FRAME_ABORT, .group = fate->group, .length = PERIGEE_ABORT_SIZE};
  for (int r = 0; r < fate->n; r++) {
    perigee__peer *peer = &mesh->peers[fate->members[r]];
    if (r == fate->me || peer->dead || peer->lost || peer->closed || fate->left[r])
      continue;
    uint8_t *record = malloc(PERIGEE_ABORT_SIZE);
    if (record == NULL)
      return; /* the others have their own eyes */
    record_encode(error, record);
    perigee__channel_queue(peer, &frame, record, PERIGEE_ABORT_SIZE, NULL, record);
  }
}

void perigee__fail_locked(perigee__mesh *mesh, perigee__fate *fate, const perigee_error *error) {
  perigee__fate_fail(fate, error);
  /* Another thread may have been first, without the mesh, and may be writing its cause this moment: then ours is told. */
  const perigee_error *cause = perigee__fate_failed(fate) ? &fate->error : error;
  perigee__end_xfers(mesh, fate, -1,
                     cause->code == PERIGEE_ECLOSED ? PERIGEE_ECLOSED : PERIGEE_EABORTED);
  /* Who closes says so by leaving. */
  if (fate->told || fate->mesh == NULL || cause->code == PERIGEE_ECLOSED)
    return;
  fate->told = true;
  tell_members(mesh, fate, cause);
}

void perigee__mesh_fail_group(perigee__mesh *mesh, perigee__fate *fate,
                              const perigee_error *error) {
  perigee__loop_lock(mesh->loop);
  perigee__fail_locked(mesh, fate, error);
  perigee__loop_unlock(mesh->loop);
  perigee__mesh_kick(mesh);
}

void perigee__fail_by_record(perigee__mesh *mesh, perigee__fate *fate,
                             const uint8_t record[PERIGEE_ABORT_SIZE]) {
  perigee_error error;
  record_decode(record, &error);
  error.rank = fate->me;
  perigee__fail_locked(mesh, fate, &error);
}

void perigee__abort_came(perigee__peer *peer, uint64_t group, const uint8_t *record) {
  perigee__fate *fate = perigee__fate_find(peer->mesh, group);
  if (fate != NULL)
    perigee__fail_by_record(peer->mesh, fate, record);
  else
    perigee__note_abort(peer->mesh, group, record);
}

/* ---- peers that go ----------------------------------------------------------------------------- */

void perigee__fail_by_death(perigee__peer *peer, perigee__fate *fate, const char *how) {
  int rank = perigee__fate_rank_of(fate, peer->rank);
  perigee_error error;
  perigee__error_init(&error);
  if (peer->pid > 0)
    perigee__error_set(&error, PERIGEE_EPEERDEAD, "rank %d died (pid %d; %s)", rank, (int)peer->pid,
                       how);
  else
    perigee__error_set(&error, PERIGEE_EPEERDEAD, "rank %d died (%s)", rank, how);
  error.rank = error.origin = fate->me;
  perigee__error_add_rank(&error, rank);
  perigee__fail_locked(peer->mesh, fate, &error);
}

static void died(perigee__peer *peer, const char *how) {
  perigee__mesh *mesh = peer->mesh;
  peer->dead = true;
  perigee__channel_drop_unfinished(peer);
  PERIGEE_LIST_EACH(it, &mesh->fates) {
    perigee__fate *fate = PERIGEE_CONTAINER_OF(it, perigee__fate, node);
    int rank = perigee__fate_rank_of(fate, peer->rank);
    if (rank >= 0 && !fate->left[rank])
      perigee__fail_by_death(peer, fate, how);
  }
  perigee__end_xfers(mesh, NULL, peer->rank, PERIGEE_EPEERDEAD);
  perigee__channel_purge(peer, PERIGEE_EPEERDEAD);
  perigee__query_gone(peer);
}

void perigee__peer_closed(perigee__peer *peer) {
  if (peer->dead || peer->closed)
    return;
  peer->closed = true;
  perigee__link_drop(peer);
  peer->chan.stream = NULL;
  perigee__channel_drop_unfinished(peer);
  perigee__end_xfers(peer->mesh, NULL, peer->rank, PERIGEE_EPEERCLOSED);
  perigee__channel_purge(peer, PERIGEE_EPEERCLOSED);
  perigee__query_gone(peer);
}

void perigee__peer_lost(perigee__peer *peer, const char *how) {
  if (peer->lost || peer->dead || peer->closed)
    return;
  peer->lost = true;
  snprintf(peer->lost_how, sizeof(peer->lost_how), "%s", how);
  perigee__link_drop(peer);
  peer->chan.stream = NULL;
  perigee__peer_mark(peer);
}

void perigee__peer_ends(perigee__peer *peer) {
  if (peer->dead || peer->closed)
    return;
  perigee__local_look(peer);
  if (peer->leaving || peer->mesh->closing)
    perigee__peer_closed(peer);
  else
    died(peer, peer->lost_how);
}
