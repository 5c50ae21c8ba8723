/*
 * Allreduce by recursive doubling: the whole vector in every message, log2 n rounds (pattern_recdbl.h).
 *
 * A vector that no other was added to yet travels as it is; sums travel as accumulators, so that 16-bit floats are rounded
 * once, at the end. Of two blocks the lower ranks' one comes first on both sides: all ranks have the same bits. The sum's
 * brackets follow the blocks, ((0 1)(2 3))..., so it is in rank order but not a left fold.
 *
 * The link of the roll call carries the first message where its receiver is the right neighbour (all ranks for n = 2).
 *
 * Cost: log2 p rounds of S bytes; 2 more for n that is no power of two. S = count * size.
 * Next to it: bruck sends fewer but larger messages; direct and ring send 2 S bytes whatever n is.
 * Source: Thakur, Rabenseifner, Gropp 2005, section 4.
 */
#include "coll/net_call.h"
#include "coll/pattern_recdbl.h"

enum {
  STEP_RESULT = PERIGEE_NET_STEP_DATA,
  STEP_ROUND
};

typedef struct state {
  perigee__net *net;
  const perigee__reduce_plan *plan;
  perigee__recdbl pattern;
  size_t count, raw_bytes, acc_bytes;
  int me, left, right;
  perigee__msg *send, *recv;    /* of the current round; the roll call has its own */
  unsigned char *mine, *theirs; /* accumulators */
} state;

/* Whether two ranks that exchange in round 0 have nothing but their own vectors. */
static bool raw_round(const state *s, int rank) {
  return !perigee__recdbl_takes(&s->pattern, rank) &&
         !perigee__recdbl_takes(&s->pattern, perigee__recdbl_partner(&s->pattern, rank, 0));
}

/* Bytes that the link from a rank to its right neighbour carries: 0 when its first message goes elsewhere. */
static size_t link_bytes(const state *s, int rank) {
  if (perigee__recdbl_first(&s->pattern, rank) != (rank + 1) % s->pattern.n)
    return 0;
  bool folds = perigee__recdbl_virtual(&s->pattern, rank) < 0;
  return folds || raw_round(s, rank) ? s->raw_bytes : s->acc_bytes;
}

/* Exchange with the partner of a round; what went over the link is not sent again. */
static int exchange(state *s, int round, const void *out, void *in, size_t bytes) {
  int partner = perigee__recdbl_partner(&s->pattern, s->me, round);
  bool first = round == 0;
  bool linked_in = first && partner == s->left && link_bytes(s, partner) > 0;
  bool linked_out = first && partner == s->right && link_bytes(s, s->me) > 0;
  if (!linked_in)
    perigee__net_recv(s->net, s->recv, partner, STEP_ROUND + round, in, bytes);
  if (!linked_out)
    perigee__net_send(s->net, s->send, partner, STEP_ROUND + round, out, bytes);
  PERIGEE_TRY(linked_in ? perigee__roll_wait(s->net) : perigee__net_wait(s->net, s->recv));
  return perigee__net_wait(s->net, linked_out ? &s->net->roll.msgs[0] : s->send);
}

/* mine := the sum over both blocks of a round. */
static void combine(state *s, int partner, bool raw) {
  const void *in = s->net->call->in;
  if (raw) { /* theirs holds a plain vector; it has room for an accumulator too, but loading widens */
    perigee__reduce_load(s->plan, s->mine, s->me < partner ? in : s->theirs, s->count);
    perigee__reduce_add(s->plan, s->mine, s->me < partner ? s->theirs : in, s->count);
    return;
  }
  if (s->me < partner) {
    perigee__reduce_add_acc(s->plan, s->mine, s->theirs, s->count);
    return;
  }
  perigee__reduce_add_acc(s->plan, s->theirs, s->mine, s->count);
  unsigned char *sum = s->theirs;
  s->theirs = s->mine;
  s->mine = sum;
}

static int start(state *s) {
  const void *in = s->net->call->in;
  int first = perigee__recdbl_first(&s->pattern, s->me);
  bool folds = perigee__recdbl_virtual(&s->pattern, s->me) < 0;
  bool as_acc = first >= 0 && !folds && !raw_round(s, s->me);
  if (as_acc)
    perigee__reduce_load(s->plan, s->mine, in, s->count);
  /* What comes over the link is the first thing this rank needs, or nothing. */
  return perigee__roll_link(s->net, as_acc ? s->mine : in, link_bytes(s, s->me), s->theirs,
                            link_bytes(s, s->left));
}

/* The rounds of a rank that does not fold; the result is in mine. */
static int rounds(state *s) {
  if (perigee__recdbl_takes(&s->pattern, s->me)) {
    PERIGEE_TRY(perigee__roll_wait(s->net));
    perigee__reduce_load(s->plan, s->mine, s->theirs, s->count);
    perigee__reduce_add(s->plan, s->mine, s->net->call->in, s->count);
  }
  for (int k = 0; k < s->pattern.rounds; k++) {
    bool raw = k == 0 && raw_round(s, s->me);
    PERIGEE_TRY(exchange(s, k, raw ? s->net->call->in : s->mine, s->theirs,
                         raw ? s->raw_bytes : s->acc_bytes));
    combine(s, perigee__recdbl_partner(&s->pattern, s->me, k), raw);
  }
  return 0;
}

int perigee__net_allreduce_recdbl(perigee__net *net, const perigee__reduce_plan *plan) {
  const perigee__coll_call *call = net->call;
  state s = {.net = net,
             .plan = plan,
             .pattern = perigee__recdbl_of(net->n),
             .count = call->count,
             .raw_bytes = call->count * plan->size,
             .acc_bytes = call->count * plan->acc_size,
             .me = net->me,
             .left = (net->me + net->n - 1) % net->n,
             .right = (net->me + 1) % net->n};
  s.send = perigee__net_msgs(net, 2);
  s.mine = perigee__net_buffer(net, 1, s.acc_bytes);
  s.theirs = perigee__net_buffer(net, 1, s.acc_bytes);
  if (s.send == NULL || s.mine == NULL || s.theirs == NULL)
    return net->error->code;
  s.recv = s.send + 1;
  PERIGEE_TRY(start(&s));
  if (perigee__recdbl_virtual(&s.pattern, s.me) < 0) {
    perigee__net_recv(net, s.recv, s.right, STEP_RESULT, call->out, s.raw_bytes);
    return perigee__net_finish(net);
  }
  PERIGEE_TRY(rounds(&s));
  /* In place, the vector may still be on its way over the link. */
  PERIGEE_TRY(perigee__net_wait(net, &net->roll.msgs[0]));
  perigee__reduce_finish(plan, call->out, s.mine, s.count);
  if (perigee__recdbl_takes(&s.pattern, s.me))
    perigee__net_send(net, s.send, s.left, STEP_RESULT, call->out, s.raw_bytes);
  return perigee__net_finish(net);
}
