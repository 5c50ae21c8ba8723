/*
 * Broadcast and reduce as a pipeline: the ranks in a row, each passes segments on to its right neighbour.
 *
 * Broadcast: root, root+1, ..., root-1. Segments are received straight into the tensor and sent on from there.
 * Reduce: root+1, root+2, ..., root; each adds its own and passes the sum on. The order of the sum is root+1, ..., n-1, 0, ...,
 * root; sums travel as accumulators, the first contribution in its own dtype, and the root rounds once.
 * DEPTH segments are under way at each link. They are LONGER times a segment of the algorithms in which ranks wait for each other: a
 * stream in one direction gains from messages so large that they are announced and then received in place, because the sender
 * tends to be ahead.
 *
 * Cost: S bytes over each of n-1 links, (n-2) segments of delay until the last rank gets the first. For long vectors that is the time of
 * S bytes over one link, the least possible.
 */
#include "coll/net_call.h"

enum {
  STEP = PERIGEE_NET_STEP_DATA,
  DEPTH = 4,
  LONGER = 4
};

/* ---- broadcast --------------------------------------------------------------------------------- */

static int broadcast_segments(perigee__net *net, perigee__msg *recvs, perigee__window *sends) {
  const perigee__coll_call *call = net->call;
  size_t segment = LONGER * perigee__net_segment(net, 1),
         count = (call->bytes + segment - 1) / segment;
  int n = net->n, prev = (net->me + n - 1) % n, next = (net->me + 1) % n;
  bool first = net->me == call->root, last = next == call->root;
  size_t posted = 0;
  for (size_t j = 0; j < count; j++) {
    for (; !first && posted < count && posted < j + DEPTH; posted++) {
      size_t at = posted * segment;
      perigee__net_recv(net, &recvs[posted % DEPTH], prev, STEP, (unsigned char *)call->out + at,
                        call->bytes - at < segment ? call->bytes - at : segment);
    }
    if (!first)
      PERIGEE_TRY(perigee__net_wait(net, &recvs[j % DEPTH]));
    size_t at = j * segment;
    if (!last)
      PERIGEE_TRY(perigee__window_send(net, sends, next, STEP, (unsigned char *)call->out + at,
                                       call->bytes - at < segment ? call->bytes - at : segment));
  }
  return perigee__net_finish(net);
}

int perigee__net_broadcast_chain(perigee__net *net) {
  perigee__msg *msgs = perigee__net_msgs(net, 2 * DEPTH);
  if (msgs == NULL)
    return net->error->code;
  perigee__window sends = {.msgs = msgs + DEPTH, .size = DEPTH};
  PERIGEE_TRY(perigee__roll_start(net));
  return broadcast_segments(net, msgs, &sends);
}

/* ---- reduce ------------------------------------------------------------------------------------ */

typedef struct state {
  perigee__net *net;
  const perigee__reduce_plan *plan;
  int place, prev, next; /* place in the row, 0 .. n-1 (root) */
  size_t segment, nsegments, posted;
  perigee__msg *recvs, *sends; /* DEPTH each, of the slot of a segment */
  unsigned char *acc, *raw;    /* [DEPTH][segment] */
} state;

static size_t count_of(const state *s, size_t j) {
  size_t left = s->net->call->count - j * s->segment;
  return left < s->segment ? left : s->segment;
}
static unsigned char *acc_of(const state *s, size_t j) {
  return s->acc + (j % DEPTH) * s->segment * s->plan->acc_size;
}
static unsigned char *raw_of(const state *s, size_t j) {
  return s->raw + (j % DEPTH) * s->segment * s->plan->size;
}

/* Post receives up to DEPTH - 1 beyond segment j; a slot is free when its last sum has been sent. */
static int post_ahead(state *s, size_t j) {
  for (; s->posted < s->nsegments && s->posted < j + DEPTH; s->posted++) {
    perigee__msg *busy = &s->sends[s->posted % DEPTH];
    if (!perigee__net_idle(busy) && s->posted > j)
      return 0;
    PERIGEE_TRY(perigee__net_wait(s->net, busy));
    bool single = s->place == 1;
    perigee__net_recv(s->net, &s->recvs[s->posted % DEPTH], s->prev, STEP,
                      single ? raw_of(s, s->posted) : acc_of(s, s->posted),
                      count_of(s, s->posted) * (single ? s->plan->size : s->plan->acc_size));
  }
  return 0;
}

static void add_own(state *s, size_t j, bool last) {
  const perigee__reduce_plan *plan = s->plan;
  const perigee__coll_call *call = s->net->call;
  size_t count = count_of(s, j), at = j * s->segment * plan->size;
  const unsigned char *own = (const unsigned char *)call->in + at;
  if (s->place == 1 && last) { /* two ranks */
    const void *srcs[] = {raw_of(s, j), own};
    perigee__reduce_nary(plan, (unsigned char *)call->out + at, srcs, 2, count);
    return;
  }
  if (s->place == 1)
    perigee__reduce_load(plan, acc_of(s, j), raw_of(s, j), count);
  perigee__reduce_add(plan, acc_of(s, j), own, count);
  if (last)
    perigee__reduce_finish(plan, (unsigned char *)call->out + at, acc_of(s, j), count);
}

static int reduce_segments(state *s) {
  perigee__net *net = s->net;
  bool first = s->place == 0, last = net->me == net->call->root;
  for (size_t j = 0; j < s->nsegments; j++) {
    size_t count = count_of(s, j), slot = j % DEPTH;
    if (first) {
      PERIGEE_TRY(perigee__net_wait(net, &s->sends[slot]));
      perigee__net_send(net, &s->sends[slot], s->next, STEP,
                        (const unsigned char *)net->call->in + j * s->segment * s->plan->size,
                        count * s->plan->size);
      continue;
    }
    PERIGEE_TRY(post_ahead(s, j));
    PERIGEE_TRY(perigee__net_wait(net, &s->recvs[slot]));
    add_own(s, j, last);
    if (!last)
      perigee__net_send(net, &s->sends[slot], s->next, STEP, acc_of(s, j),
                        count * s->plan->acc_size);
  }
  return perigee__net_finish(net);
}

int perigee__net_reduce_chain(perigee__net *net, const perigee__reduce_plan *plan) {
  const perigee__coll_call *call = net->call;
  int n = net->n;
  state s = {.net = net,
             .plan = plan,
             .place = (net->me - call->root - 1 + 2 * n) % n,
             .prev = (net->me + n - 1) % n,
             .next = (net->me + 1) % n,
             .segment = LONGER * perigee__net_segment(net, plan->acc_size)};
  if (s.segment > call->count)
    s.segment = call->count;
  s.nsegments = (call->count + s.segment - 1) / s.segment;
  s.recvs = perigee__net_msgs(net, 2 * DEPTH);
  s.acc = perigee__net_buffer(net, DEPTH * s.segment, plan->acc_size);
  s.raw = plan->acc_size == plan->size ? s.acc
                                       : perigee__net_buffer(net, DEPTH * s.segment, plan->size);
  if (s.recvs == NULL || s.acc == NULL || s.raw == NULL)
    return net->error->code;
  s.sends = s.recvs + DEPTH;
  PERIGEE_TRY(perigee__roll_start(net));
  return reduce_segments(&s);
}
