/*
 * Allreduce by recursive halving and doubling (Rabenseifner): over pattern_recdbl.h, but with half of what is left in every message.
 *
 * Round k of the first part: a rank and its partner each have the sum over a block of 2^k neighbours, for one range of the vector. The one with
 * bit k of its virtual rank 0 keeps the lower half of the range and gets the other's sum of it; so after the last round each has one range
 * of 1/p of the vector, summed over all ranks. It rounds that once. The second part goes through the rounds backwards and passes
 * finished ranges on: all ranks have the same bits. The sum's brackets follow the blocks, ((0 1)(2 3))..., as those of recdbl.
 *
 * A vector that no other was added to yet travels as it is, sums as accumulators. Empty ranges (fewer elements than ranks) are messages all the
 * same: who has received in every round has heard from all.
 *
 * In place is safe: a range of `out` is written when this rank has sent what it had of it.
 *
 *   p = 4, ranges of v = 0 .. 3 after round 0: [0,1/2) [1/2,1) [0,1/2) [1/2,1)    after round 1: 1st, 3rd, 2nd, 4th quarter
 *
 * Cost: 2 log2 p rounds, 2 S (p-1)/p bytes; 2 more rounds of S bytes for n that is no power of two. S = count * size.
 * Next to it: recdbl has half the rounds and log2 p S bytes; direct as many bytes in 2 steps, but 2 (n-1) messages.
 * Source: Thakur, Rabenseifner, Gropp 2005, section 4.
 */
#include "coll/net_call.h"
#include "coll/pattern_recdbl.h"

enum {
  STEP_FOLD = PERIGEE_NET_STEP_DATA,
  STEP_RESULT,
  STEP_HALVE,                                        /* + round */
  STEP_DOUBLE = STEP_HALVE + PERIGEE_NET_STEP_ROUNDS /* + round */
};

typedef struct range {
  size_t lo, hi; /* elements */
} range;

typedef struct state {
  perigee__net *net;
  const perigee__reduce_plan *plan;
  perigee__recdbl pattern;
  int me, v;
  perigee__msg *send, *recv;    /* of the current round */
  unsigned char *mine, *theirs; /* accumulators, each at its place in the vector */
} state;

/* What a virtual rank is left with after so many rounds. */
static range range_of(const state *s, int v, int rounds) {
  range r = {0, s->net->call->count};
  for (int k = 0; k < rounds; k++) {
    size_t middle = r.lo + (r.hi - r.lo) / 2;
    if (v >> k & 1)
      r.lo = middle;
    else
      r.hi = middle;
  }
  return r;
}

static int exchange(state *s, int partner, int step, const unsigned char *out, range give,
                    unsigned char *in, range get, size_t unit) {
  perigee__net_recv(s->net, s->recv, partner, step, in + get.lo * unit, (get.hi - get.lo) * unit);
  perigee__net_send(s->net, s->send, partner, step, out + give.lo * unit,
                    (give.hi - give.lo) * unit);
  PERIGEE_TRY(perigee__net_wait(s->net, s->recv));
  return perigee__net_wait(s->net, s->send);
}

/* Round 0 of two ranks that have nothing but their own vectors: mine := the sum of both. */
static int halve_raw(state *s, int partner, range get, range give) {
  const perigee__reduce_plan *plan = s->plan;
  const unsigned char *in = s->net->call->in;
  PERIGEE_TRY(exchange(s, partner, STEP_HALVE, in, give, s->theirs, get, plan->size));
  const unsigned char *own = in + get.lo * plan->size, *other = s->theirs + get.lo * plan->size;
  unsigned char *sum = s->mine + get.lo * plan->acc_size;
  perigee__reduce_load(plan, sum, s->me < partner ? own : other, get.hi - get.lo);
  perigee__reduce_add(plan, sum, s->me < partner ? other : own, get.hi - get.lo);
  return 0;
}

/* mine := the sum over both blocks, for the half that this rank keeps. The lower ranks' block comes first. */
static int halve(state *s, int round) {
  int partner = perigee__recdbl_partner(&s->pattern, s->me, round);
  range get = range_of(s, s->v, round + 1), give = range_of(s, s->v ^ 1 << round, round + 1);
  bool raw =
      !perigee__recdbl_takes(&s->pattern, s->me) && !perigee__recdbl_takes(&s->pattern, partner);
  if (round == 0 && raw)
    return halve_raw(s, partner, get, give);
  size_t unit = s->plan->acc_size, at = get.lo * unit;
  PERIGEE_TRY(exchange(s, partner, STEP_HALVE + round, s->mine, give, s->theirs, get, unit));
  if (s->me < partner) {
    perigee__reduce_add_acc(s->plan, s->mine + at, s->theirs + at, get.hi - get.lo);
    return 0;
  }
  perigee__reduce_add_acc(s->plan, s->theirs + at, s->mine + at, get.hi - get.lo);
  unsigned char *sum = s->theirs;
  s->theirs = s->mine;
  s->mine = sum;
  return 0;
}

/* mine := the vectors that this rank starts with, where its first round needs them as accumulators. */
static int start(state *s) {
  const perigee__coll_call *call = s->net->call;
  int left = (s->me + s->net->n - 1) % s->net->n;
  if (perigee__recdbl_takes(&s->pattern, s->me)) {
    perigee__net_recv(s->net, s->recv, left, STEP_FOLD, s->theirs, call->count * s->plan->size);
    PERIGEE_TRY(perigee__net_wait(s->net, s->recv));
    perigee__reduce_load(s->plan, s->mine, s->theirs, call->count);
    perigee__reduce_add(s->plan, s->mine, call->in, call->count);
  } else if (s->pattern.rounds > 0 &&
             perigee__recdbl_takes(&s->pattern, perigee__recdbl_partner(&s->pattern, s->me, 0))) {
    perigee__reduce_load(s->plan, s->mine, call->in, call->count);
  }
  return 0;
}

static int rounds(state *s) {
  const perigee__coll_call *call = s->net->call;
  const perigee__reduce_plan *plan = s->plan;
  unsigned char *out = call->out;
  PERIGEE_TRY(start(s));
  for (int k = 0; k < s->pattern.rounds; k++)
    PERIGEE_TRY(halve(s, k));
  range own = range_of(s, s->v, s->pattern.rounds);
  perigee__reduce_finish(plan, out + own.lo * plan->size, s->mine + own.lo * plan->acc_size,
                         own.hi - own.lo);
  for (int k = s->pattern.rounds - 1; k >= 0; k--)
    PERIGEE_TRY(exchange(s, perigee__recdbl_partner(&s->pattern, s->me, k), STEP_DOUBLE + k, out,
                         range_of(s, s->v, k + 1), out, range_of(s, s->v ^ 1 << k, k + 1),
                         plan->size));
  if (perigee__recdbl_takes(&s->pattern, s->me))
    perigee__net_send(s->net, s->send, (s->me + s->net->n - 1) % s->net->n, STEP_RESULT, out,
                      call->count * plan->size);
  return 0;
}

/* A rank that gives its vector to its right neighbour, and gets the result from it. In place: that comes when the vector has been used. */
static int fold(state *s) {
  const perigee__coll_call *call = s->net->call;
  int right = (s->me + 1) % s->net->n;
  size_t bytes = call->count * s->plan->size;
  perigee__net_send(s->net, s->send, right, STEP_FOLD, call->in, bytes);
  perigee__net_recv(s->net, s->recv, right, STEP_RESULT, call->out, bytes);
  return 0;
}

int perigee__net_allreduce_halving(perigee__net *net, const perigee__reduce_plan *plan) {
  state s = {.net = net, .plan = plan, .pattern = perigee__recdbl_of(net->n), .me = net->me};
  s.v = perigee__recdbl_virtual(&s.pattern, s.me);
  s.send = perigee__net_msgs(net, 2);
  if (s.send == NULL)
    return net->error->code;
  s.recv = s.send + 1;
  PERIGEE_TRY(perigee__roll_link(net, NULL, 0, NULL, 0));
  if (s.v < 0) {
    PERIGEE_TRY(fold(&s));
    return perigee__net_finish(net);
  }
  s.mine = perigee__net_buffer(net, net->call->count, plan->acc_size);
  s.theirs = perigee__net_buffer(net, net->call->count, plan->acc_size);
  if (s.mine == NULL || s.theirs == NULL)
    return net->error->code;
  PERIGEE_TRY(rounds(&s));
  return perigee__net_finish(net);
}
