/*
 * Allreduce by recursive halving and doubling, and reduce by halving and a gather to the root (Rabenseifner): over pattern_recdbl.h,
 * but with half of what is left in every round.
 *
 * Vocabulary
 *   batch     elements of the vector that go through all rounds before the next ones do: bounds the scratch
 *   range     of a batch, what a rank is left with after some rounds
 *   segment   the elements of one message: a round sends its range in some of them, each added up as it comes, while it is in the cache
 *
 * Round k of the first part: a rank and its partner each have the sum over a block of 2^k neighbours, for one range of the batch. The one with
 * bit k of its virtual rank 0 keeps the lower half of the range and gets the other's sum of it; so after the last round each has one range
 * of 1/p of the batch, summed over all ranks. It rounds that once. The second part goes through the rounds backwards. Allreduce: both
 * partners pass on the finished ranges they have, and all ranks have the same bits. Reduce: the one that is farther from the root gives all it
 * has to the other, and is done. The sum's brackets follow the blocks, ((0 1)(2 3))..., as those of recdbl.
 *
 * All receives of a batch are posted before its first message is sent, so nothing comes before there is room for it. A vector that no other
 * was added to yet travels as it is, sums as accumulators. Empty ranges (fewer elements than ranks) are messages all the same: who has
 * received in every round has heard from all.
 *
 * In place is safe: what comes into a range of `out` was made from what this rank had there.
 *
 *   p = 4, ranges of v = 0 .. 3 after round 0: [0,1/2) [1/2,1) [0,1/2) [1/2,1)    after round 1: 1st, 3rd, 2nd, 4th quarter
 *
 * Cost: 2 log2 p rounds, 2 S (p-1)/p bytes; 2 more rounds of S bytes for n that is no power of two. S = count * size. Neighbours exchange the
 * larger part: with two ranks on each of two hosts S bytes leave a host, of a ring's 1.5 S and direct's 2 S.
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
enum {
  BATCH = 8 /* segments of a batch; scratch is at most three times as much */
};

typedef struct range {
  size_t lo, hi; /* elements of the batch */
} range;

typedef struct state {
  perigee__net *net;
  const perigee__reduce_plan *plan;
  perigee__recdbl pattern;
  int me, v;
  int goal; /* reduce: the virtual rank that ends with everything; -1: all do */
  size_t segment, batch;
  const unsigned char *in; /* of the batch, as all that follow */
  unsigned char *out;      /* finished ranges: the call's own, or scratch */
  size_t count;
  unsigned char *sums, *theirs; /* accumulators; what has come in each round, one after the other */
  perigee__msg *recvs;          /* used in the order in which they are posted */
  size_t posted, taken;
  perigee__window sends;
} state;

/* What a virtual rank is left with after so many rounds. */
static range range_of(const state *s, int v, int rounds) {
  range r = {0, s->count};
  for (int k = 0; k < rounds; k++) {
    size_t middle = r.lo + (r.hi - r.lo) / 2;
    if (v >> k & 1)
      r.lo = middle;
    else
      r.hi = middle;
  }
  return r;
}

static range segment_at(const state *s, range r, size_t lo) {
  return (range){lo, r.hi - lo < s->segment ? r.hi : lo + s->segment};
}

/* ---- ranges as messages: at least one, even if it is empty ------------------------------------------ */

/* to: where element 0 of the batch would be. */
static void post_range(state *s, int peer, int step, unsigned char *to, range r, size_t unit) {
  size_t lo = r.lo;
  do {
    range part = segment_at(s, r, lo);
    perigee__net_recv(s->net, &s->recvs[s->posted++], peer, step, to + lo * unit,
                      (part.hi - lo) * unit);
    lo = part.hi;
  } while (lo < r.hi);
}

static int send_range(state *s, int peer, int step, const unsigned char *from, range r,
                      size_t unit) {
  size_t lo = r.lo;
  do {
    range part = segment_at(s, r, lo);
    PERIGEE_TRY(perigee__window_send(s->net, &s->sends, peer, step, from + lo * unit,
                                     (part.hi - lo) * unit));
    lo = part.hi;
  } while (lo < r.hi);
  return 0;
}

/* Wait for the next segment of what was posted. */
static int take(state *s) { return perigee__net_wait(s->net, &s->recvs[s->taken++]); }

static int take_range(state *s, range r) {
  size_t lo = r.lo;
  do {
    PERIGEE_TRY(take(s));
    lo = segment_at(s, r, lo).hi;
  } while (lo < r.hi);
  return 0;
}

/* ---- rounds --------------------------------------------------------------------------------------- */

static range kept(const state *s, int round) { return range_of(s, s->v, round + 1); }
static range given(const state *s, int round) { return range_of(s, s->v ^ 1 << round, round + 1); }

static int partner_of(const state *s, int round) {
  return perigee__recdbl_partner(&s->pattern, s->me, round);
}

/* Whether the partners of a round have nothing but their own vectors. */
static bool is_raw(const state *s, int round) {
  return round == 0 && !perigee__recdbl_takes(&s->pattern, s->me) &&
         !perigee__recdbl_takes(&s->pattern, partner_of(s, 0));
}

/* In the second part, whether this rank is still there in a round, and on which side. */
static bool gathers(const state *s, int round) {
  return s->goal < 0 || (s->v ^ s->goal) >> round == 0;
}
static bool gives_up(const state *s, int round) {
  return s->goal >= 0 && (s->v ^ s->goal) >> round == 1;
}

static void post_rounds(state *s) {
  const perigee__reduce_plan *plan = s->plan;
  unsigned char *at = s->theirs;
  s->posted = s->taken = 0;
  for (int k = 0; k < s->pattern.rounds; k++) {
    range get = kept(s, k);
    size_t unit = is_raw(s, k) ? plan->size : plan->acc_size;
    /* at - lo: the range comes to `at` */
    post_range(s, partner_of(s, k), STEP_HALVE + k, at, (range){0, get.hi - get.lo}, unit);
    at += (get.hi - get.lo) * plan->acc_size;
  }
  for (int k = s->pattern.rounds - 1; k >= 0; k--)
    if (gathers(s, k))
      post_range(s, partner_of(s, k), STEP_DOUBLE + k, s->out, given(s, k), plan->size);
}

/* The sum over both blocks of a round, for a segment of what this rank keeps. The lower ranks' block comes first. */
static void combine(state *s, int round, range part, const unsigned char *other) {
  const perigee__reduce_plan *plan = s->plan;
  size_t count = part.hi - part.lo;
  bool lower = s->me < partner_of(s, round), last = round == s->pattern.rounds - 1;
  unsigned char *sum = s->sums + part.lo * plan->acc_size, *out = s->out + part.lo * plan->size;
  if (is_raw(s, round)) {
    const unsigned char *own = s->in + part.lo * plan->size;
    perigee__reduce_pair(plan, sum, lower ? own : other, lower ? other : own, count);
  } else {
    unsigned char *to = last && plan->acc_size == plan->size ? out : sum;
    perigee__reduce_merge(plan, to, lower ? sum : other, lower ? other : sum, count);
    sum = to;
  }
  if (last)
    perigee__reduce_finish(plan, out, sum, count);
}

static int halve(state *s, int round, const unsigned char *theirs) {
  const perigee__reduce_plan *plan = s->plan;
  bool raw = is_raw(s, round);
  size_t unit = raw ? plan->size : plan->acc_size;
  range get = kept(s, round);
  PERIGEE_TRY(send_range(s, partner_of(s, round), STEP_HALVE + round, raw ? s->in : s->sums,
                         given(s, round), unit));
  size_t lo = get.lo;
  do {
    range part = segment_at(s, get, lo);
    PERIGEE_TRY(take(s));
    combine(s, round, part, theirs + (lo - get.lo) * unit);
    lo = part.hi;
  } while (lo < get.hi);
  return 0;
}

static int second_part(state *s) {
  size_t size = s->plan->size;
  for (int k = s->pattern.rounds - 1; k >= 0; k--) {
    if (s->goal < 0 || gives_up(s, k))
      PERIGEE_TRY(send_range(s, partner_of(s, k), STEP_DOUBLE + k, s->out, kept(s, k), size));
    if (gathers(s, k))
      PERIGEE_TRY(take_range(s, given(s, k)));
  }
  return 0;
}

/* sums := the vectors that this rank starts with, where its first round needs them as accumulators. */
static int start(state *s) {
  const perigee__reduce_plan *plan = s->plan;
  range all = {0, s->count};
  if (perigee__recdbl_takes(&s->pattern, s->me)) {
    s->posted = s->taken = 0;
    post_range(s, (s->me + s->net->n - 1) % s->net->n, STEP_FOLD, s->theirs, all, plan->size);
    PERIGEE_TRY(take_range(s, all));
    perigee__reduce_pair(plan, s->sums, s->theirs, s->in, s->count);
  } else if (s->pattern.rounds > 0 && !is_raw(s, 0)) {
    perigee__reduce_load(plan, s->sums, s->in, s->count);
  }
  return 0;
}

static int run_batch(state *s) {
  PERIGEE_TRY(start(s));
  post_rounds(s);
  const unsigned char *theirs = s->theirs;
  for (int k = 0; k < s->pattern.rounds; k++) {
    PERIGEE_TRY(halve(s, k, theirs));
    range get = kept(s, k);
    theirs += (get.hi - get.lo) * s->plan->acc_size;
  }
  return second_part(s);
}

/* ---- ranks beyond the power of two ---------------------------------------------------------------- */

/* The rank left of one that takes gives it its vector, and gets the result from it. */
static bool wants_result(const perigee__net *net, int rank) {
  return net->call->kind == PERIGEE_COLL_ALLREDUCE || rank == net->call->root;
}

static int give_result(state *s) {
  int left = (s->me + s->net->n - 1) % s->net->n;
  if (!perigee__recdbl_takes(&s->pattern, s->me) || !wants_result(s->net, left))
    return 0;
  return send_range(s, left, STEP_RESULT, s->out, (range){0, s->count}, s->plan->size);
}

/* In place: the result comes when the vector has been used. */
static int fold_batch(state *s) {
  int right = (s->me + 1) % s->net->n;
  range all = {0, s->count};
  s->posted = s->taken = 0;
  if (wants_result(s->net, s->me))
    post_range(s, right, STEP_RESULT, s->out, all, s->plan->size);
  PERIGEE_TRY(send_range(s, right, STEP_FOLD, s->in, all, s->plan->size));
  return wants_result(s->net, s->me) ? take_range(s, all) : 0;
}

/* ---- the call ------------------------------------------------------------------------------------- */

static int allocate(state *s) {
  perigee__net *net = s->net;
  const perigee__reduce_plan *plan = s->plan;
  size_t count = net->call->count;
  s->segment = perigee__net_segment(net, plan->acc_size);
  s->batch = count / s->segment < BATCH ? count : BATCH * s->segment;
  /* Of one part: its ranges together are at most the batch, and each ends with a segment that may be short. */
  size_t messages = BATCH + (size_t)s->pattern.rounds + 1;
  s->recvs = perigee__net_msgs(net, 2 * messages);
  s->sends = (perigee__window){.msgs = perigee__net_msgs(net, 2 * messages), .size = 2 * messages};
  bool folds = s->v < 0;
  s->sums = perigee__net_buffer(net, folds ? 0 : s->batch, plan->acc_size);
  /* each half of an odd number is rounded up for one of the partners */
  s->theirs =
      perigee__net_buffer(net, folds ? 0 : s->batch + (size_t)s->pattern.rounds, plan->acc_size);
  return s->recvs != NULL && s->sends.msgs != NULL && s->sums != NULL && s->theirs != NULL
             ? 0
             : net->error->code;
}

static int run(state *s) {
  perigee__net *net = s->net;
  const perigee__coll_call *call = net->call;
  size_t size = s->plan->size;
  bool everything = wants_result(net, s->me), folds = s->v < 0;
  if (!everything && !folds && (s->out = perigee__net_buffer(net, s->batch, size)) == NULL)
    return net->error->code;
  for (size_t at = 0; at < call->count; at += s->batch) {
    /* scratch may still be on its way to who has nothing to answer */
    PERIGEE_TRY(perigee__net_wait_all(net, s->sends.msgs, s->sends.size));
    s->count = call->count - at < s->batch ? call->count - at : s->batch;
    s->in = (const unsigned char *)call->in + at * size;
    if (everything)
      s->out = (unsigned char *)call->out + at * size;
    if (folds) {
      PERIGEE_TRY(fold_batch(s));
      continue;
    }
    PERIGEE_TRY(run_batch(s));
    PERIGEE_TRY(give_result(s));
  }
  return perigee__net_finish(net);
}

/* The virtual rank that gets the whole result: the root's own, or of who took its vector. */
static int goal_of(const state *s) {
  const perigee__coll_call *call = s->net->call;
  if (call->kind == PERIGEE_COLL_ALLREDUCE)
    return -1;
  int v = perigee__recdbl_virtual(&s->pattern, call->root);
  return v >= 0 ? v : perigee__recdbl_virtual(&s->pattern, call->root + 1);
}

int perigee__net_halving(perigee__net *net, const perigee__reduce_plan *plan) {
  state s = {.net = net, .plan = plan, .pattern = perigee__recdbl_of(net->n), .me = net->me};
  s.v = perigee__recdbl_virtual(&s.pattern, s.me);
  s.goal = goal_of(&s);
  PERIGEE_TRY(allocate(&s));
  PERIGEE_TRY(net->call->kind == PERIGEE_COLL_ALLREDUCE ? perigee__roll_link(net, NULL, 0, NULL, 0)
                                                        : perigee__roll_start(net));
  return run(&s);
}
