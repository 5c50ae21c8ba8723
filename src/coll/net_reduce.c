/*
 * Reducing collectives over the mesh: choice of the algorithm, and bruck, the one for tiny vectors.
 *
 * Bruck: each rank's vector is its note in the roll call (net_roll.h); in the end everybody has all n vectors and reduces what
 * it needs itself, in rank order, with one pass. ceil(log2 n) messages, n times the bytes: right while a message costs more than
 * its bytes. All ranks compute the same expression, hence the same bits.
 */
#include <string.h>

#include "coll/net_call.h"

/* Size in bytes of count elements; the layer above has tensors of these sizes, so it does not overflow. */
static size_t vector_bytes(const perigee__reduce_plan *plan, size_t count) {
  return count * plan->size;
}

static int init_plan(perigee__net *net, perigee__reduce_plan *plan) {
  const perigee__coll_call *call = net->call;
  int rc = perigee__reduce_init(plan, call->dtype, call->redop, call->factor, call->ncontrib);
  if (rc != 0)
    *net->error = *perigee__last_error();
  return rc;
}

/* Start the roll call with this rank's vector(s) as its note. */
static int start_bruck(perigee__net *net, const perigee__reduce_plan *plan, size_t *offset_p,
                       size_t *bytes_p) {
  const perigee__coll_call *call = net->call;
  const void *note = call->in;
  size_t bytes = vector_bytes(plan, call->count);
  *offset_p = 0;
  *bytes_p = bytes;
  if (call->kind == PERIGEE_COLL_REDUCE_SCATTER) {
    bytes = 0;
    for (int r = 0; r < net->n; r++) {
      if (r == net->me)
        *offset_p = bytes;
      bytes += vector_bytes(plan, call->counts[r]);
    }
    unsigned char *all = perigee__net_buffer(net, 1, bytes);
    if (all == NULL)
      return net->error->code;
    note = all;
    for (int r = 0; r < net->n; r++) {
      size_t block = vector_bytes(plan, call->counts[r]);
      if (block > 0)
        memcpy(all, call->in_blocks[r].ptr, block);
      all += block;
    }
    *bytes_p = bytes;
  }
  return perigee__roll_start_notes(net, note, bytes, (size_t)net->n * bytes, NULL);
}

int perigee__net_reduce_bruck(perigee__net *net, const perigee__reduce_plan *plan) {
  const perigee__coll_call *call = net->call;
  size_t offset, bytes;
  PERIGEE_TRY(start_bruck(net, plan, &offset, &bytes));
  PERIGEE_TRY(perigee__net_finish(net));
  if (call->kind == PERIGEE_COLL_REDUCE && net->me != call->root)
    return 0;
  const void **srcs = perigee__net_alloc(net, (size_t)net->n, sizeof(*srcs));
  if (srcs == NULL)
    return net->error->code;
  for (int r = 0; r < net->n; r++) {
    size_t got;
    const unsigned char *note = perigee__roll_note(net, r, &got);
    if (got != bytes)
      return perigee__net_blame_proto(net, r);
    srcs[r] = note + offset;
  }
  size_t count = call->kind == PERIGEE_COLL_REDUCE_SCATTER ? call->counts[net->me] : call->count;
  perigee__reduce_nary(plan, call->out, srcs, net->n, count);
  return 0;
}

/* ---- slices ------------------------------------------------------------------------------------ */

static int alloc_slices(perigee__net *net, perigee__slices *s) {
  size_t n = (size_t)net->n;
  memset(s, 0, sizeof(*s));
  s->in = perigee__net_alloc(net, n, sizeof(*s->in));
  s->out = perigee__net_alloc(net, n, sizeof(*s->out));
  s->count = perigee__net_alloc(net, n, sizeof(*s->count));
  return s->in != NULL && s->out != NULL && s->count != NULL ? 0 : net->error->code;
}

static void measure_slices(perigee__net *net, perigee__slices *s) {
  for (int r = 0; r < net->n; r++) {
    if (s->count[r] > s->longest)
      s->longest = s->count[r];
    if (s->count[r] == 0)
      s->some_empty = true;
  }
}

static int allreduce_slices(perigee__net *net, const perigee__reduce_plan *plan,
                            perigee__slices *s) {
  const perigee__coll_call *call = net->call;
  PERIGEE_TRY(alloc_slices(net, s));
  for (int r = 0; r < net->n; r++) {
    size_t from = perigee__slice_at(call->count, net->n, r);
    s->count[r] = perigee__slice_at(call->count, net->n, r + 1) - from;
    s->in[r] = (const unsigned char *)call->in + vector_bytes(plan, from);
    s->out[r] = (unsigned char *)call->out + vector_bytes(plan, from);
  }
  s->gather = true;
  measure_slices(net, s);
  return 0;
}

static int reduce_scatter_slices(perigee__net *net, perigee__slices *s) {
  const perigee__coll_call *call = net->call;
  PERIGEE_TRY(alloc_slices(net, s));
  for (int r = 0; r < net->n; r++) {
    s->count[r] = call->counts[r];
    s->in[r] = call->in_blocks[r].ptr;
  }
  s->out[net->me] = call->out;
  measure_slices(net, s);
  return 0;
}

/* The root's slice is everything. */
static int reduce_slices(perigee__net *net, perigee__slices *s) {
  const perigee__coll_call *call = net->call;
  PERIGEE_TRY(alloc_slices(net, s));
  s->count[call->root] = call->count;
  s->in[call->root] = call->in;
  s->out[net->me] = net->me == call->root ? call->out : NULL;
  measure_slices(net, s);
  return 0;
}

/* ---- entry ------------------------------------------------------------------------------------- */

int perigee__net_allreduce(perigee__net *net) {
  const perigee__coll_call *call = net->call;
  perigee__reduce_plan plan;
  perigee__slices slices;
  PERIGEE_TRY(init_plan(net, &plan));
  if (call->count == 0)
    return perigee__net_barrier(net);
  perigee__algo algo =
      perigee__select_algo(net->tuning, call->kind, net->n, perigee__net_has_hosts(net),
                           vector_bytes(&plan, call->count));
  switch (algo) {
  case PERIGEE_ALGO_BRUCK:
    return perigee__net_reduce_bruck(net, &plan);
  case PERIGEE_ALGO_RECDBL:
    return perigee__net_allreduce_recdbl(net, &plan);
  case PERIGEE_ALGO_HALVING:
    return perigee__net_halving(net, &plan);
  case PERIGEE_ALGO_ONESHOT:
    return perigee__net_allreduce_oneshot(net, &plan);
  case PERIGEE_ALGO_HIER:
    return perigee__net_allreduce_hier(net, &plan);
  case PERIGEE_ALGO_DIRECT:
    PERIGEE_TRY(allreduce_slices(net, &plan, &slices));
    return perigee__net_slices_direct(net, &plan, &slices);
  default:
    PERIGEE_TRY(allreduce_slices(net, &plan, &slices));
    return perigee__net_slices_ring(net, &plan, &slices);
  }
}

int perigee__net_reduce(perigee__net *net) {
  const perigee__coll_call *call = net->call;
  perigee__reduce_plan plan;
  perigee__slices slices;
  PERIGEE_TRY(init_plan(net, &plan));
  if (call->count == 0)
    return perigee__net_barrier(net);
  switch (perigee__select_algo(net->tuning, call->kind, net->n, false,
                               vector_bytes(&plan, call->count))) {
  case PERIGEE_ALGO_BRUCK:
    return perigee__net_reduce_bruck(net, &plan);
  case PERIGEE_ALGO_BINOMIAL:
    return perigee__net_reduce_binomial(net, &plan);
  case PERIGEE_ALGO_HALVING:
    return perigee__net_halving(net, &plan);
  case PERIGEE_ALGO_DIRECT:
    PERIGEE_TRY(reduce_slices(net, &slices));
    return perigee__net_slices_direct(net, &plan, &slices);
  default:
    return perigee__net_reduce_chain(net, &plan);
  }
}

int perigee__net_reduce_scatter(perigee__net *net) {
  const perigee__coll_call *call = net->call;
  perigee__reduce_plan plan;
  perigee__slices slices;
  size_t total = 0;
  PERIGEE_TRY(init_plan(net, &plan));
  for (int r = 0; r < net->n; r++)
    total += call->counts[r];
  if (total == 0)
    return perigee__net_barrier(net);
  perigee__algo algo =
      perigee__select_algo(net->tuning, call->kind, net->n, false, vector_bytes(&plan, total));
  if (algo == PERIGEE_ALGO_BRUCK)
    return perigee__net_reduce_bruck(net, &plan);
  PERIGEE_TRY(reduce_scatter_slices(net, &slices));
  return algo == PERIGEE_ALGO_DIRECT ? perigee__net_slices_direct(net, &plan, &slices)
                                     : perigee__net_slices_ring(net, &plan, &slices);
}
