/*
 * Allreduce of sizes where latency counts: one meeting.
 *
 *   inline    up to 48 bytes: the contribution travels in the publish line. SPIN: every rank reads n lines and reduces for itself;
 *             2 line transfers, nothing else. PARK: the last to arrive reduces into the release line, which the others read
 *             anyway to be let go.
 *   one-shot  SPIN: every rank copies its contribution into its buffer, meets, and reduces all n into its output; its own is read
 *             from the user's buffer. (n + 3) N bytes touched per rank, less 1/n of it.
 *   combined  PARK: only the last to arrive reduces, into its own buffer, and the others copy the result out: (5n + 1) N bytes in all, and
 *             one sleep per rank. Who sees that all others have arrived knows it will be last and does not stage.
 * Beyond that: shm_two_shot.c. Without buffers: shm_direct.c.
 * Numeric: ranks 0..n-1 in this order, by the same kernel on every path, so that a path never changes the bits.
 */
#include "coll/shm_impl.h"

typedef struct combination {
  const perigee__reduce_plan *plan;
  size_t count;
} combination;

static void combine_inline(perigee__arena *a, void *arg) {
  const combination *c = arg;
  for (int r = 0; r < a->n; r++)
    a->srcs[r] = perigee__arena_line_of(a, r)->payload;
  perigee__reduce_nary(c->plan, a->park->payload, a->srcs, a->n, c->count);
}

static int allreduce_inline(perigee__arena *a, const perigee__reduce_plan *plan, size_t bytes) {
  const perigee__coll_call *call = a->call;
  combination c = {.plan = plan, .count = call->count};
  perigee__shm_copy(perigee__arena_next_payload(a, bytes), call->in, bytes);
  PERIGEE_TRY(perigee__arena_meet(a, combine_inline, &c));
  if (a->mode == PERIGEE_ARENA_PARK) {
    perigee__shm_copy(call->out, a->park->payload, bytes);
    return 0;
  }
  for (int r = 0; r < a->n; r++)
    a->srcs[r] = perigee__arena_line_of(a, r)->payload;
  perigee__reduce_nary(plan, call->out, a->srcs, a->n, call->count);
  return 0;
}

static void sources(perigee__arena *a) {
  for (int r = 0; r < a->n; r++)
    a->srcs[r] = r == a->me ? a->call->in : perigee__arena_slot_of(a, r, 0);
}

static int allreduce_one_shot(perigee__arena *a, const perigee__reduce_plan *plan, size_t bytes) {
  const perigee__coll_call *call = a->call;
  do {
    perigee__shm_copy(perigee__arena_next_slot(a, a->me), call->in, bytes);
    PERIGEE_TRY(perigee__arena_meet(a, NULL, NULL));
  } while (perigee__shm_again(a));
  sources(a);
  perigee__reduce_nary(plan, call->out, a->srcs, a->n, call->count);
  return 0;
}

/* The result goes into the buffer of who combines: its own contribution is read from the user's, and nobody else looks there. */
static void combine_slots(perigee__arena *a, void *arg) {
  const combination *c = arg;
  sources(a);
  perigee__reduce_nary(c->plan, perigee__arena_slot_of(a, a->me, 0), a->srcs, a->n, c->count);
  a->park->source = (uint32_t)a->me;
}

static int allreduce_combined(perigee__arena *a, const perigee__reduce_plan *plan, size_t bytes) {
  const perigee__coll_call *call = a->call;
  combination c = {.plan = plan, .count = call->count};
  do {
    if (!perigee__arena_will_be_last(a))
      perigee__shm_copy(perigee__arena_next_slot(a, a->me), call->in, bytes);
    PERIGEE_TRY(perigee__arena_meet(a, combine_slots, &c));
  } while (perigee__shm_again(a));
  perigee__shm_copy(call->out, perigee__arena_slot_of(a, (int)a->park->source, 0), bytes);
  return 0;
}

int perigee__shm_allreduce(perigee__arena *a) {
  perigee__reduce_plan plan;
  PERIGEE_TRY(perigee__shm_plan(a, &plan));
  size_t bytes = a->call->count * plan.size;
  if (bytes <= PERIGEE_ARENA_INLINE)
    return allreduce_inline(a, &plan, bytes);
  perigee__algo algo = perigee__shm_path(a, bytes, false);
  bool symmetric = perigee__shm_path(a, bytes, true) == PERIGEE_PATH_SYMMETRIC;
  if (algo == PERIGEE_PATH_CMA || symmetric) {
    bool done;
    PERIGEE_TRY(
        perigee__shm_reduce_direct(a, &plan, -1, algo == PERIGEE_PATH_CMA, symmetric, &done));
    if (done)
      return 0;
  }
  if (algo == PERIGEE_PATH_TWOSHOT)
    return perigee__shm_two_shot(a, &plan, -1);
  if (a->mode == PERIGEE_ARENA_PARK)
    return allreduce_combined(a, &plan, bytes);
  return allreduce_one_shot(a, &plan, bytes);
}
