/*
 * Slices reduced on a ring, for any number of ranks, with neighbours as the only peers (pattern_ring.h).
 *
 * Vocabulary
 *   chunk      one rank's slice of the vector; chunks may differ in length
 *   segment    the elements of one message
 *   step       0 .. n-2 adds up (reduce-scatter), n-1 .. 2n-3 passes the finished chunks on (allgather; allreduce alone)
 *   batch      DEPTH segments of every chunk. Batch b takes all its steps before batch b + 1 does; only its last step, in
 *              which a rank has nothing to pass on, sends the first messages of the next batch, so the ring never runs dry.
 *   item       one message from the left: (batch, step, segment). Both sides count items in that order, so one key and the
 *              order of messages suffice; an item that does not exist (short chunk) is skipped on both sides.
 *
 * Cut-through: a segment is added to and sent on as soon as it has come, while the DEPTH - 1 behind it are on their way. A rank
 * holds at most SLOTS segments whatever the vector's length, and they stay in cache.
 * No deadlock: AHEAD receives are posted beyond the item awaited and SLOTS > AHEAD + DEPTH. Of all ranks that wait for a send to
 * be done, the one that is furthest behind has a right neighbour that has posted the receive for it.
 *
 * Order of sums: chunk c is added up as c+1, c+2, ..., n-1, 0, ..., c. Partial sums travel as accumulators, single
 * contributions and finished chunks in their own dtype; the owner rounds once, so all ranks have the same bits.
 *
 * In place is safe: a chunk of `out` is written when this rank's contribution to it has gone into the sum.
 *
 *   n = 4, items of one batch, rank 0:   step  0  1  2 | 3  4  5       receives chunk  2  3  0 | 3  2  1
 *
 * Cost: 2 (n-1) steps, 2 S (n-1)/n bytes sent by each rank, (n-1)/n S of them as accumulators for n > 2.
 * Next to it: direct takes 2 steps but needs every rank's connection to every other.
 * Source: Patarasuk & Yuan 2009.
 */
#include <string.h>

#include "coll/net_call.h"
#include "coll/pattern_ring.h"

enum {
  STEP = PERIGEE_NET_STEP_DATA,
  DEPTH = 4,
  AHEAD = DEPTH,
  SLOTS = 2 * DEPTH + 4
};

/* A segment that is being added up: received, changed, sent on. */
typedef struct ring_slot {
  perigee__msg *recv, *send;
  unsigned char *acc; /* what comes when it is not the first contribution; what is sent on */
  unsigned char *raw; /* a first contribution; acc itself when the dtypes are the same */
} ring_slot;

typedef struct item {
  size_t batch, segment; /* segment within the batch */
  int step;
} item;

typedef struct state {
  perigee__net *net;
  const perigee__reduce_plan *plan;
  const perigee__slices *slices;
  int n, me, left, right, steps;
  size_t segment, batches;
  item post;            /* next item to post a receive for */
  size_t posted, taken; /* items */
  size_t posted_parts,
      taken_parts;      /* of them, items of the steps that add up: they use slots in turn */
  perigee__msg *finals; /* [AHEAD + 1]: receives of finished segments, in turn */
  size_t posted_finals, taken_finals;
  ring_slot slots[SLOTS];
  perigee__window sends; /* from the vectors themselves */
} state;

static size_t offset_of(const state *s, size_t batch, size_t segment) {
  return (batch * DEPTH + segment) * s->segment;
}
static size_t count_of(const state *s, int chunk, size_t batch, size_t segment) {
  size_t count = s->slices->count[chunk], at = offset_of(s, batch, segment);
  if (at >= count)
    return 0;
  return count - at < s->segment ? count - at : s->segment;
}
static bool adds(const state *s, int step) { return step < s->n - 1; }

/* To the next item that exists; batch == batches: there is none. */
static void skip_missing(state *s, item *i) {
  while (i->batch < s->batches &&
         count_of(s, perigee__ring_recv_chunk(s->n, s->me, i->step), i->batch, i->segment) == 0) {
    if (++i->segment < DEPTH)
      continue;
    i->segment = 0;
    if (++i->step < s->steps)
      continue;
    i->step = 0;
    i->batch++;
  }
}

static void post_one(state *s) {
  const perigee__reduce_plan *plan = s->plan;
  item *i = &s->post;
  int chunk = perigee__ring_recv_chunk(s->n, s->me, i->step);
  size_t count = count_of(s, chunk, i->batch, i->segment);
  if (adds(s, i->step)) {
    ring_slot *slot = &s->slots[s->posted_parts++ % SLOTS];
    bool raw = i->step == 0;
    perigee__net_recv(s->net, slot->recv, s->left, STEP, raw ? slot->raw : slot->acc,
                      count * (raw ? plan->size : plan->acc_size));
  } else {
    perigee__net_recv(s->net, &s->finals[s->posted_finals++ % (AHEAD + 1)], s->left, STEP,
                      s->slices->out[chunk] + offset_of(s, i->batch, i->segment) * plan->size,
                      count * plan->size);
  }
  s->posted++;
  i->segment++;
  if (i->segment == DEPTH) {
    i->segment = 0;
    if (++i->step == s->steps) {
      i->step = 0;
      i->batch++;
    }
  }
  skip_missing(s, i);
}

/* Post receives ahead of the next item to take, as far as slots are free; at least that item itself. */
static int post_ahead(state *s) {
  while (s->posted <= s->taken + AHEAD && s->post.batch < s->batches) {
    if (adds(s, s->post.step)) {
      perigee__msg *busy = s->slots[s->posted_parts % SLOTS].send;
      if (!perigee__net_idle(busy) && s->posted > s->taken)
        return 0;
      PERIGEE_TRY(perigee__net_wait(s->net, busy));
    }
    post_one(s);
  }
  return 0;
}

/* The own contribution to a segment that nobody has added to. */
static int send_first(state *s, size_t batch, size_t segment) {
  if (batch >= s->batches)
    return 0;
  int chunk = perigee__ring_send_chunk(s->n, s->me, 0);
  size_t count = count_of(s, chunk, batch, segment);
  if (count == 0)
    return 0;
  return perigee__window_send(s->net, &s->sends, s->right, STEP,
                              s->slices->in[chunk] + offset_of(s, batch, segment) * s->plan->size,
                              count * s->plan->size);
}

/* The last contribution is ours: the segment is finished. */
static int finish_segment(state *s, const ring_slot *slot, const item *i, size_t count) {
  const perigee__reduce_plan *plan = s->plan;
  size_t at = offset_of(s, i->batch, i->segment) * plan->size;
  const unsigned char *own = s->slices->in[s->me] + at;
  unsigned char *out = s->slices->out[s->me] + at;
  if (i->step == 0) { /* two ranks */
    const void *srcs[] = {slot->raw, own};
    perigee__reduce_nary(plan, out, srcs, 2, count);
  } else {
    perigee__reduce_add(plan, slot->acc, own, count);
    perigee__reduce_finish(plan, out, slot->acc, count);
  }
  if (!s->slices->gather)
    return 0;
  return perigee__window_send(s->net, &s->sends, s->right, STEP, out, count * plan->size);
}

static int take_part(state *s, const item *i, int chunk, size_t count) {
  const perigee__reduce_plan *plan = s->plan;
  ring_slot *slot = &s->slots[s->taken_parts++ % SLOTS];
  PERIGEE_TRY(perigee__net_wait(s->net, slot->recv));
  if (chunk == s->me)
    return finish_segment(s, slot, i, count);
  if (i->step == 0)
    perigee__reduce_load(plan, slot->acc, slot->raw, count);
  perigee__reduce_add(plan, slot->acc,
                      s->slices->in[chunk] + offset_of(s, i->batch, i->segment) * plan->size,
                      count);
  perigee__net_send(s->net, slot->send, s->right, STEP, slot->acc, count * plan->acc_size);
  return 0;
}

static int take_final(state *s, const item *i, int chunk, size_t count) {
  PERIGEE_TRY(perigee__net_wait(s->net, &s->finals[s->taken_finals++ % (AHEAD + 1)]));
  if (i->step == s->steps - 1)
    return 0;
  return perigee__window_send(s->net, &s->sends, s->right, STEP,
                              s->slices->out[chunk] +
                                  offset_of(s, i->batch, i->segment) * s->plan->size,
                              count * s->plan->size);
}

static int take(state *s, const item *i) {
  int chunk = perigee__ring_recv_chunk(s->n, s->me, i->step);
  size_t count = count_of(s, chunk, i->batch, i->segment);
  if (count > 0) {
    PERIGEE_TRY(post_ahead(s));
    s->taken++;
    PERIGEE_TRY(adds(s, i->step) ? take_part(s, i, chunk, count) : take_final(s, i, chunk, count));
  }
  return i->step == s->steps - 1 ? send_first(s, i->batch + 1, i->segment) : 0;
}

static int allocate(state *s) {
  perigee__net *net = s->net;
  size_t unit = s->plan->acc_size, raw = s->plan->size;
  s->segment = perigee__net_segment(net, unit);
  if (s->segment > s->slices->longest)
    s->segment = s->slices->longest;
  size_t segments = (s->slices->longest + s->segment - 1) / s->segment;
  s->batches = (segments + DEPTH - 1) / DEPTH;
  perigee__msg *msgs = perigee__net_msgs(net, 2 * SLOTS + AHEAD + 1 + SLOTS);
  unsigned char *acc = perigee__net_buffer(net, SLOTS * s->segment, unit);
  unsigned char *wide = unit == raw ? acc : perigee__net_buffer(net, SLOTS * s->segment, raw);
  if (msgs == NULL || acc == NULL || wide == NULL)
    return net->error->code;
  for (size_t k = 0; k < SLOTS; k++)
    s->slots[k] = (ring_slot){.recv = &msgs[2 * k],
                              .send = &msgs[2 * k + 1],
                              .acc = acc + k * s->segment * unit,
                              .raw = wide + k * s->segment * raw};
  s->finals = msgs + 2 * SLOTS;
  s->sends = (perigee__window){.msgs = s->finals + AHEAD + 1, .size = SLOTS};
  return 0;
}

int perigee__net_slices_ring(perigee__net *net, const perigee__reduce_plan *plan,
                             const perigee__slices *slices) {
  int n = net->n;
  state s = {.net = net,
             .plan = plan,
             .slices = slices,
             .n = n,
             .me = net->me,
             .left = (net->me + n - 1) % n,
             .right = (net->me + 1) % n,
             .steps = slices->gather ? 2 * (n - 1) : n - 1};
  PERIGEE_TRY(allocate(&s));
  PERIGEE_TRY(slices->some_empty && !slices->gather ? perigee__roll_start(net)
                                                    : perigee__roll_link(net, NULL, 0, NULL, 0));
  skip_missing(&s, &s.post);
  PERIGEE_TRY(post_ahead(&s));
  for (size_t j = 0; j < DEPTH; j++)
    PERIGEE_TRY(send_first(&s, 0, j));
  for (item i = {0, 0, 0}; i.batch < s.batches; i.batch++)
    for (i.step = 0; i.step < s.steps; i.step++)
      for (i.segment = 0; i.segment < DEPTH; i.segment++)
        PERIGEE_TRY(take(&s, &i));
  return perigee__net_finish(net);
}
