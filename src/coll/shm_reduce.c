/*
 * Reduce to one root.
 *
 *   inline     up to 48 bytes: in the publish lines, reduced by the root alone; one meeting.
 *   to root    the others copy a chunk into their buffers, the root reduces it into its output while they stage the next. Root:
 *              (n + 1) N bytes touched, others 2N. Right while latency counts, and for n up to 3 at any size: there
 *              the root touches no more than by sharing the work.
 *   two-shot   shm_two_shot.c with only the root taking: root (5 - 2/n) N, at most.
 */
#include "coll/shm_impl.h"

static int reduce_inline(perigee__arena *a, const perigee__reduce_plan *plan, size_t bytes) {
  const perigee__coll_call *call = a->call;
  perigee__shm_copy(perigee__arena_next_line(a)->payload, call->in, bytes);
  PERIGEE_TRY(perigee__arena_meet(a, NULL, NULL));
  if (a->me != call->root)
    return 0;
  for (int r = 0; r < a->n; r++)
    a->srcs[r] = perigee__arena_line_of(a, r)->payload;
  perigee__reduce_nary(plan, call->out, a->srcs, a->n, call->count);
  return 0;
}

static int reduce_to_root(perigee__arena *a, const perigee__reduce_plan *plan, size_t bytes) {
  const perigee__coll_call *call = a->call;
  size_t chunk = a->table.copy_chunk / plan->size * plan->size;
  for (size_t at = 0; at < bytes; at += chunk) {
    size_t now = perigee__shm_piece(bytes, at, chunk);
    const char *in = (const char *)call->in + at;
    do {
      if (a->me != call->root)
        perigee__shm_copy(perigee__arena_next_slot(a, a->me), in, now);
      PERIGEE_TRY(perigee__arena_meet(a, NULL, NULL));
    } while (perigee__shm_again(a));
    if (a->me != call->root)
      continue;
    for (int r = 0; r < a->n; r++)
      a->srcs[r] = r == a->me ? in : perigee__arena_slot_of(a, r, 0);
    perigee__reduce_nary(plan, (char *)call->out + at, a->srcs, a->n, now / plan->size);
  }
  return 0;
}

int perigee__shm_reduce(perigee__arena *a) {
  perigee__reduce_plan plan;
  PERIGEE_TRY(perigee__shm_plan(a, &plan));
  size_t bytes = a->call->count * plan.size;
  if (bytes <= PERIGEE_ARENA_INLINE)
    return reduce_inline(a, &plan, bytes);
  perigee__algo algo = perigee__shm_path(a, bytes, false);
  bool symmetric = perigee__shm_path(a, bytes, true) == PERIGEE_PATH_SYMMETRIC;
  bool pull = algo == PERIGEE_PATH_CMA, done;
  if (pull || symmetric) {
    PERIGEE_TRY(perigee__shm_reduce_direct(a, &plan, a->call->root, pull, symmetric, &done));
    if (done)
      return 0;
  }
  if (algo == PERIGEE_PATH_ROOT)
    return reduce_to_root(a, &plan, bytes);
  return perigee__shm_two_shot(a, &plan, a->call->root);
}
