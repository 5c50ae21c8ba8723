/*
 * Who is to blame when a call fails. Each function fills net->error and returns its code; the call then ends
 * through perigee__net_fail_group, which tells all ranks.
 */
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/futex.h"
#include "coll/fingerprint.h"
#include "coll/net_call.h"

/* How long a rank whose deadline has passed looks for who is missing; part of the 250 ms that an operation
 * may outlive its deadline. */
#define QUERY_NS (200 * PERIGEE_NS_PER_MS)
/* How long the news of a group's failure may take from a peer that shows that it has heard of it. */
#define NEWS_NS (200 * PERIGEE_NS_PER_MS)

/* Fields that every error of the call has. */
static int close_error(perigee__net *net) {
  perigee_error *e = net->error;
  e->rank = net->me;
  e->op = net->call->op;
  e->seq = net->call->shown_seq;
  snprintf(e->group, sizeof(e->group), "%s", net->fate->name);
  return e->code;
}

int perigee__net_blame_memory(perigee__net *net, size_t bytes) {
  perigee__error_set(net->error, PERIGEE_ENOMEM, "no memory for %zu bytes of buffers", bytes);
  return close_error(net);
}

int perigee__net_blame_room(perigee__net *net, int from, size_t bytes, int to, size_t room) {
  bool longer = bytes > room;
  perigee__error_set(net->error, longer ? PERIGEE_ETRUNC : PERIGEE_ESHAPE,
                     "rank %d has %zu bytes for rank %d, which %s %zu", from, bytes, to,
                     longer ? "has room for" : "expects", room);
  perigee__error_add_rank(net->error, from);
  perigee__error_add_rank(net->error, to);
  return close_error(net);
}

int perigee__net_blame_proto(perigee__net *net, int peer) {
  perigee__error_set(net->error, PERIGEE_EPROTO, "rank %d sent a message that makes no sense",
                     peer);
  perigee__error_add_rank(net->error, peer);
  return close_error(net);
}

static int blame_mismatch(perigee__net *net, int peer, uint64_t peer_fp) {
  char theirs[128], ours[128];
  perigee__fingerprint_describe(peer_fp, theirs, sizeof(theirs));
  perigee__fingerprint_describe(net->call->fp, ours, sizeof(ours));
  perigee__error_set(net->error, PERIGEE_EMISMATCH, "rank %d called %s, rank %d called %s", peer,
                     theirs, net->me, ours);
  perigee__error_add_rank(net->error, peer);
  perigee__error_add_rank(net->error, net->me);
  return close_error(net);
}

int perigee__net_blame_fate(perigee__net *net) {
  /* acquire: pairs with fate_fail. 1: whoever is failing it is writing the cause this moment. */
  while (atomic_load_explicit(&net->fate->state, memory_order_acquire) == 1)
    perigee__cpu_relax();
  return perigee__fate_error(net->fate, net->call->op, net->call->shown_seq, true, net->error);
}

int perigee__net_blame_msg(perigee__net *net, const perigee__msg *msg) {
  const perigee__xfer *xfer = &msg->xfer;
  int peer = perigee__fate_rank_of(net->fate, xfer->peer);
  bool differs = xfer->peer_fp != 0 && xfer->peer_fp != net->call->fp;
  if (xfer->status == PERIGEE_EMISMATCH || (xfer->status == PERIGEE_ETRUNC && differs))
    return blame_mismatch(net, peer, xfer->peer_fp);
  /* The peer takes a message back only when its group has failed: the news is right behind. */
  if (xfer->status == PERIGEE_ECANCELED)
    (void)!perigee__mesh_wait_any(net->mesh, NULL, 0, net->fate, perigee__deadline_in(NEWS_NS));
  if (perigee__fate_failed(net->fate))
    return perigee__net_blame_fate(net);
  if (xfer->status == PERIGEE_ETRUNC && !xfer->is_send)
    return perigee__net_blame_proto(net, peer);
  perigee__error_set(net->error, xfer->status, "message %s rank %d: %s",
                     xfer->is_send ? "to" : "from", peer, perigee_strerror(xfer->status));
  if (peer >= 0)
    perigee__error_add_rank(net->error, peer);
  return close_error(net);
}

/* "timed out after 5.0 s, missing ranks 1,3" from what the members answered. */
static void name_missing(perigee__net *net, const uint64_t *entered) {
  perigee_error *e = net->error;
  perigee_error silent, missing;
  perigee__error_init(&silent);
  perigee__error_init(&missing);
  for (int r = 0; r < net->n; r++) {
    if (r == net->me || (entered[r] >= net->call->seq && entered[r] != UINT64_MAX))
      continue;
    perigee__error_add_rank(entered[r] == UINT64_MAX ? &silent : &missing, r);
    perigee__error_add_rank(e, r);
  }
  char text[160], *at = e->message + strlen(e->message);
  size_t room = sizeof(e->message) - strlen(e->message);
  int used = 0;
  if (missing.nranks > 0) {
    perigee__error_ranks_text(&missing, text, sizeof(text));
    used = snprintf(at, room, ", missing ranks %s", text);
  }
  if (silent.nranks > 0) {
    perigee__error_ranks_text(&silent, text, sizeof(text));
    snprintf(at + used, room - (size_t)used, ", no answer from ranks %s", text);
  }
}

/* All have entered: name those whose messages have not come. */
static void name_awaited(perigee__net *net) {
  perigee_error *e = net->error;
  for (int i = 0; i < net->nlive; i++)
    if (!net->live[i]->is_send && atomic_load(&net->live[i]->done) == 0)
      perigee__error_add_rank(e, perigee__fate_rank_of(net->fate, net->live[i]->peer));
  for (int i = 0; i < net->nlive && e->nranks == 0; i++)
    perigee__error_add_rank(e, perigee__fate_rank_of(net->fate, net->live[i]->peer));
  char text[160];
  perigee__error_ranks_text(e, text, sizeof(text));
  size_t used = strlen(e->message);
  /* Number 0 is the agreement when a group is made: nobody counts as having entered yet. */
  snprintf(e->message + used, sizeof(e->message) - used, "%s waiting for ranks %s",
           net->call->seq > 0 ? ": all ranks have entered but not finished," : ",", text);
}

static void ask_members(perigee__net *net, uint64_t *entered) {
  net->asked = true;
  perigee__mesh_query(net->mesh, net->fate, perigee__deadline_in(QUERY_NS), entered);
}

int perigee__net_blame_timeout(perigee__net *net) {
  uint64_t *entered = perigee__net_alloc(net, (size_t)net->n, sizeof(*entered));
  if (entered == NULL)
    return net->error->code;
  ask_members(net, entered);
  if (net->call->peer_seen != NULL)
    memcpy(net->call->peer_seen, entered, (size_t)net->n * sizeof(*entered));
  double seconds = (double)net->call->timeout_ns / 1e9;
  perigee__error_set(net->error, PERIGEE_ETIMEDOUT,
                     seconds < 1 ? "timed out after %.3g s" : "timed out after %.1f s", seconds);
  name_missing(net, entered);
  if (net->error->nranks == 0)
    name_awaited(net);
  return close_error(net);
}

int perigee__net_fail_group(perigee__net *net) {
  perigee__mesh_fail_group(net->mesh, net->fate, net->error);
  int code = perigee__net_blame_fate(net); /* the first cause, which need not be this one */
  if (code == PERIGEE_ETIMEDOUT && net->call->peer_seen != NULL && !net->asked)
    ask_members(net, net->call->peer_seen); /* another rank's clock was the first */
  return code;
}
