/*
 * Slices reduced by their owners, directly: each rank sends its part of every slice to the slice's owner, who reduces all
 * n contributions in one pass; for allreduce (gather) it then sends the finished slice to all.
 *
 * Vocabulary: slice r belongs to rank r; segment, the elements of one message; slot, what segment number j of all
 * slices needs while in flight; DEPTH slots. All slices are worked at side by side: the first segments are on their way back while later
 * ones are still coming. Slices may differ in length; a segment that a slice does not have is not sent.
 * Sums are left folds in rank order, rounded once, by one rank: deterministic, and the same bits everywhere.
 *
 * The link of the roll call carries the part for the right neighbour in segment 0; two ranks without gather need no other message.
 *
 * In place is safe: the finished segment overwrites what had to reach its owner before it could be finished.
 *
 *   n = 4, to slice 1's owner:  0 -\          and back:   /-> 0
 *                               1 --> 1 = 0+1+2+3        1 --> (1)
 *                               2 -/                      \-> 2
 *                               3 -/                      \-> 3
 *
 * Cost: 2 steps (1 without gather), 2 (n-1) messages per segment, 2 S (n-1)/n bytes sent by each rank: a ring's bytes without its
 * 2 (n-1) steps and with half the bytes for 16-bit sums, but n-1 connections busy at once.
 */
#include "coll/net_call.h"

enum {
  STEP_PART = PERIGEE_NET_STEP_DATA,
  STEP_DONE,
  DEPTH = 4
};
/* Scratch stays in the last-level cache: beyond this, segments get shorter. */
#define SCRATCH_MAX ((size_t)4 << 20)

enum {
  PART_IN,
  PART_OUT,
  DONE_IN,
  DONE_OUT,
  WAYS
};

typedef struct state {
  perigee__net *net;
  const perigee__reduce_plan *plan;
  const perigee__slices *slices;
  bool linked; /* the link carries a part */
  int left, right;
  size_t segment, nsegments;
  perigee__msg *msgs;    /* [DEPTH][WAYS][n] */
  unsigned char *theirs; /* [DEPTH][n][segment]: contributions to the own slice */
  const void **srcs;     /* n */
} state;

static perigee__msg *msgs_of(const state *s, size_t j, int way) {
  return s->msgs + ((j % DEPTH) * WAYS + (size_t)way) * (size_t)s->net->n;
}
static unsigned char *theirs_of(const state *s, size_t j, int peer) {
  return s->theirs + ((j % DEPTH) * (size_t)s->net->n + (size_t)peer) * s->segment * s->plan->size;
}
/* Elements of segment j of a slice, 0 when it has none. */
static size_t count_of(const state *s, int slice, size_t j) {
  size_t count = s->slices->count[slice], at = j * s->segment;
  if (at >= count)
    return 0;
  return count - at < s->segment ? count - at : s->segment;
}

/* What goes over the link is not sent again. */
static bool on_link(const state *s, size_t j) { return s->linked && j == 0; }

static int post(state *s, size_t j) {
  perigee__net *net = s->net;
  int n = net->n;
  size_t size = s->plan->size, at = j * s->segment * size;
  size_t own = count_of(s, net->me, j) * size;
  PERIGEE_TRY(perigee__net_wait_all(net, msgs_of(s, j, 0), WAYS * (size_t)n));
  for (int i = 1; i < n; i++) {
    int peer = (net->me - i + n) % n;
    size_t bytes = count_of(s, peer, j) * size;
    if (own > 0 && !(on_link(s, j) && peer == s->left))
      perigee__net_recv(net, &msgs_of(s, j, PART_IN)[peer], peer, STEP_PART, theirs_of(s, j, peer),
                        own);
    if (bytes > 0 && s->slices->gather)
      perigee__net_recv(net, &msgs_of(s, j, DONE_IN)[peer], peer, STEP_DONE,
                        s->slices->out[peer] + at, bytes);
  }
  for (int i = 1; i < n; i++) { /* not all to rank 0 first */
    int peer = (net->me + i) % n;
    size_t bytes = count_of(s, peer, j) * size;
    if (bytes > 0 && !(on_link(s, j) && peer == s->right))
      perigee__net_send(net, &msgs_of(s, j, PART_OUT)[peer], peer, STEP_PART,
                        s->slices->in[peer] + at, bytes);
  }
  return 0;
}

static int fold(state *s, size_t j) {
  perigee__net *net = s->net;
  int n = net->n, me = net->me;
  size_t count = count_of(s, me, j), at = j * s->segment * s->plan->size;
  if (count == 0)
    return 0;
  if (on_link(s, j))
    PERIGEE_TRY(perigee__roll_wait(net));
  PERIGEE_TRY(perigee__net_wait_all(net, msgs_of(s, j, PART_IN), (size_t)n));
  for (int r = 0; r < n; r++)
    s->srcs[r] = theirs_of(s, j, r);
  s->srcs[me] = s->slices->in[me] + at;
  unsigned char *out = s->slices->out[me] + at;
  perigee__reduce_nary(s->plan, out, s->srcs, n, count);
  for (int i = 1; i < n && s->slices->gather; i++) {
    int peer = (me + i) % n;
    perigee__net_send(net, &msgs_of(s, j, DONE_OUT)[peer], peer, STEP_DONE, out,
                      count * s->plan->size);
  }
  return 0;
}

static int allocate(state *s) {
  perigee__net *net = s->net;
  size_t n = (size_t)net->n, size = s->plan->size;
  size_t most = SCRATCH_MAX / (DEPTH * n * size);
  s->segment = perigee__net_segment(net, size);
  if (s->segment > most)
    s->segment = most > 0 ? most : 1;
  if (s->segment > s->slices->longest)
    s->segment = s->slices->longest;
  s->nsegments = (s->slices->longest + s->segment - 1) / s->segment;
  size_t own = s->slices->count[net->me];
  s->msgs = perigee__net_msgs(net, DEPTH * WAYS * n);
  s->theirs = perigee__net_buffer(net, own > 0 ? DEPTH * n * s->segment : 0, size);
  s->srcs = perigee__net_alloc(net, n, sizeof(*s->srcs));
  return s->msgs != NULL && s->theirs != NULL && s->srcs != NULL ? 0 : net->error->code;
}

static int start(state *s) {
  perigee__net *net = s->net;
  size_t size = s->plan->size;
  s->linked = s->slices->gather || !s->slices->some_empty;
  if (!s->linked)
    return perigee__roll_start(net);
  return perigee__roll_link(net, s->slices->in[s->right], count_of(s, s->right, 0) * size,
                            theirs_of(s, 0, s->left), count_of(s, net->me, 0) * size);
}

int perigee__net_slices_direct(perigee__net *net, const perigee__reduce_plan *plan,
                               const perigee__slices *slices) {
  state s = {.net = net,
             .plan = plan,
             .slices = slices,
             .left = (net->me + net->n - 1) % net->n,
             .right = (net->me + 1) % net->n};
  PERIGEE_TRY(allocate(&s));
  PERIGEE_TRY(start(&s));
  for (size_t j = 0; j < s.nsegments + DEPTH - 1; j++) {
    if (j < s.nsegments)
      PERIGEE_TRY(post(&s, j));
    if (j >= DEPTH - 1)
      PERIGEE_TRY(fold(&s, j - (DEPTH - 1)));
  }
  return perigee__net_finish(net);
}
