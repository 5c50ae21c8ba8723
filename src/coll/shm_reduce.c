/*
 * Reduce to one root. The others run ahead (arena.h) while they only give.
 *
 *   small      in the publish lines (up to 48 bytes) or small buffers, reduced by the root alone; one phase.
 *   to root    the others copy a chunk into their buffers, the root reduces it into its output while they stage the next. Root:
 *              (n + 1) N bytes touched, others 2N. Right while latency counts, and for n up to 3 at any size: there
 *              the root touches no more than by sharing the work.
 *   two-shot   shm_two_shot.c with only the root taking: root (5 - 2/n) N, at most.
 * Where symmetric memory is worth it every rank waits in its first meeting, for another may hope for symmetric memory.
 */
#include "coll/shm_impl.h"

/* Where another rank has put its contribution to this phase. */
static const void *small_of(const perigee__arena *a, int rank, size_t bytes) {
  return bytes <= PERIGEE_ARENA_INLINE ? (const void *)perigee__arena_line_of(a, rank)->payload
                                       : perigee__arena_small_at(a, rank, a->epoch);
}

/* Where this rank puts its own to the next. */
static void *next_small(perigee__arena *a, size_t bytes) {
  return bytes <= PERIGEE_ARENA_INLINE
             ? (void *)perigee__arena_next_payload(a, bytes)
             : perigee__arena_small_at(a, a->me, perigee__arena_epoch_after(a->epoch));
}

static int reduce_small(perigee__arena *a, const perigee__reduce_plan *plan, size_t bytes) {
  const perigee__coll_call *call = a->call;
  bool root = a->me == call->root;
  if (!root)
    perigee__shm_copy(next_small(a, bytes), call->in, bytes);
  perigee__arena_give(a);
  if (!root)
    return 0;
  PERIGEE_TRY(perigee__arena_await_all(a));
  for (int r = 0; r < a->n; r++)
    a->srcs[r] = r == a->me ? call->in : small_of(a, r, bytes);
  perigee__reduce_nary(plan, call->out, a->srcs, a->n, call->count);
  return 0;
}

/* One phase of what is staged in buffers. meet: somebody may have staged nothing, which all must see. */
static int bring(perigee__arena *a, const char *in, size_t bytes, bool meet) {
  bool root = a->me == a->call->root;
  do {
    PERIGEE_TRY(perigee__arena_room(a, PERIGEE_ARENA_BUFFER_ROOM));
    if (!root)
      perigee__shm_copy(perigee__arena_next_slot(a, a->me), in, bytes);
    if (meet) {
      PERIGEE_TRY(perigee__arena_meet(a, NULL, NULL));
      continue;
    }
    perigee__arena_give(a);
    if (root)
      PERIGEE_TRY(perigee__arena_await_all(a));
  } while (meet && perigee__shm_again(a));
  return 0;
}

static int reduce_to_root(perigee__arena *a, const perigee__reduce_plan *plan, size_t bytes,
                          bool symmetric) {
  const perigee__coll_call *call = a->call;
  size_t chunk = a->table.copy_chunk / plan->size * plan->size;
  for (size_t at = 0; at < bytes; at += chunk) {
    size_t now = perigee__shm_piece(bytes, at, chunk);
    const char *in = (const char *)call->in + at;
    PERIGEE_TRY(bring(a, in, now, at == 0 && symmetric));
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
  perigee__algo algo = perigee__shm_path(a, bytes, false);
  bool symmetric = perigee__shm_path(a, bytes, true) == PERIGEE_PATH_SYMMETRIC;
  bool pull = algo == PERIGEE_PATH_CMA, done;
  if (bytes <= PERIGEE_ARENA_INLINE ||
      (bytes <= PERIGEE_ARENA_SMALL && algo == PERIGEE_PATH_ROOT && !symmetric))
    return reduce_small(a, &plan, bytes);
  PERIGEE_TRY(perigee__arena_room(a, PERIGEE_ARENA_BUFFER_ROOM));
  if (pull || symmetric) {
    PERIGEE_TRY(perigee__shm_reduce_direct(a, &plan, a->call->root, pull, symmetric, &done));
    if (done)
      return 0;
  }
  if (algo == PERIGEE_PATH_ROOT)
    return reduce_to_root(a, &plan, bytes, symmetric);
  return perigee__shm_two_shot(a, &plan, a->call->root);
}
