/*
 * Allreduce in one step: every rank sends its whole vector to all others, in segments, and reduces all vectors itself.
 *
 * Vocabulary: segment, the elements of one message; slot, what one segment in flight needs; DEPTH segments are in flight.
 * Sums are left folds in rank order, rounded once: all ranks compute the same expression, hence the same bits.
 *
 * Cost: 1 step, (n-1) S bytes sent by each rank. For n = 2 that is what any algorithm must send, without the second step of
 * those that cut the vector in slices; for larger n it is right for small vectors alone.
 */
#include "coll/net_call.h"

enum {
  STEP = PERIGEE_NET_STEP_DATA,
  DEPTH = 4
};

typedef struct state {
  perigee__net *net;
  const perigee__reduce_plan *plan;
  size_t segment, nsegments; /* elements; number */
  perigee__msg *msgs;        /* [DEPTH][2][n]: receives, sends */
  unsigned char *theirs;     /* [DEPTH][n][segment] */
  const void **srcs;         /* n */
} state;

static perigee__msg *recvs_of(const state *s, size_t j) {
  return s->msgs + (j % DEPTH) * 2 * (size_t)s->net->n;
}
static perigee__msg *sends_of(const state *s, size_t j) { return recvs_of(s, j) + s->net->n; }
static unsigned char *theirs_of(const state *s, size_t j, int peer) {
  return s->theirs + ((j % DEPTH) * (size_t)s->net->n + (size_t)peer) * s->segment * s->plan->size;
}
static size_t count_of(const state *s, size_t j) {
  size_t left = s->net->call->count - j * s->segment;
  return left < s->segment ? left : s->segment;
}

/* Post a segment. The link carries segment 0 between neighbours. */
static int post(state *s, size_t j) {
  perigee__net *net = s->net;
  int n = net->n, left = (net->me + n - 1) % n, right = (net->me + 1) % n;
  const unsigned char *mine = (const unsigned char *)net->call->in + j * s->segment * s->plan->size;
  size_t bytes = count_of(s, j) * s->plan->size;
  PERIGEE_TRY(perigee__net_wait_all(net, recvs_of(s, j), 2 * (size_t)n));
  for (int i = 1; i < n; i++) {
    int peer = (net->me - i + n) % n;
    if (j > 0 || peer != left)
      perigee__net_recv(net, &recvs_of(s, j)[peer], peer, STEP, theirs_of(s, j, peer), bytes);
  }
  if (j == 0)
    PERIGEE_TRY(perigee__roll_link(net, mine, bytes, theirs_of(s, 0, left), bytes));
  for (int i = 1; i < n; i++) {
    int peer = (net->me + i) % n;
    if (j > 0 || peer != right)
      perigee__net_send(net, &sends_of(s, j)[peer], peer, STEP, mine, bytes);
  }
  return 0;
}

static int fold(state *s, size_t j) {
  perigee__net *net = s->net;
  const perigee__coll_call *call = net->call;
  size_t n = (size_t)net->n, at = j * s->segment * s->plan->size;
  bool in_place = call->in == call->out; /* then it must have left before it is written over */
  if (j == 0) {
    PERIGEE_TRY(perigee__roll_wait(net));
    if (in_place)
      PERIGEE_TRY(perigee__net_wait(net, &net->roll.msgs[0]));
  }
  PERIGEE_TRY(perigee__net_wait_all(net, recvs_of(s, j), in_place ? 2 * n : n));
  for (int r = 0; r < net->n; r++)
    s->srcs[r] = theirs_of(s, j, r);
  s->srcs[net->me] = (const unsigned char *)call->in + at;
  perigee__reduce_nary(s->plan, (unsigned char *)call->out + at, s->srcs, net->n, count_of(s, j));
  return 0;
}

int perigee__net_allreduce_oneshot(perigee__net *net, const perigee__reduce_plan *plan) {
  size_t n = (size_t)net->n;
  state s = {.net = net, .plan = plan, .segment = perigee__net_segment(net, plan->size)};
  if (s.segment > net->call->count)
    s.segment = net->call->count;
  s.nsegments = (net->call->count + s.segment - 1) / s.segment;
  size_t depth = s.nsegments < DEPTH ? s.nsegments : DEPTH;
  s.msgs = perigee__net_msgs(net, DEPTH * 2 * n);
  s.theirs = perigee__net_buffer(net, depth * n * s.segment, plan->size);
  s.srcs = perigee__net_alloc(net, n, sizeof(*s.srcs));
  if (s.msgs == NULL || s.theirs == NULL || s.srcs == NULL)
    return net->error->code;
  for (size_t j = 0; j < s.nsegments + DEPTH - 1; j++) {
    if (j < s.nsegments)
      PERIGEE_TRY(post(&s, j));
    if (j >= DEPTH - 1)
      PERIGEE_TRY(fold(&s, j - (DEPTH - 1)));
  }
  return perigee__net_finish(net);
}
