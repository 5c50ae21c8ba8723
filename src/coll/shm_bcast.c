/*
 * Broadcast: the root writes once, all others read.
 *
 *   inline    up to 48 bytes in the root's publish line; one meeting.
 *   direct    where that is quicker (arena_limits.c) the others copy from the root's buffer, which it lends until they have; two
 *             meetings, of which the root alone waits for the second. 2N bytes touched by each of the others.
 *   chunks    the root stages chunk k + 1 while the others take chunk k; one meeting per chunk. Root 2N bytes touched, others 2N, of
 *             which the reads come from cache.
 */
#include "coll/shm_impl.h"

static int broadcast_inline(perigee__arena *a) {
  const perigee__coll_call *call = a->call;
  if (a->me == call->root)
    perigee__shm_copy(perigee__arena_next_line(a)->payload, call->out, call->bytes);
  PERIGEE_TRY(perigee__arena_meet(a, NULL, NULL));
  if (a->me != call->root)
    perigee__shm_copy(call->out, perigee__arena_line_of(a, call->root)->payload, call->bytes);
  return 0;
}

/* Chunks from `at` on. The first one is staged already when `staged`, and its meeting has been. */
static int broadcast_staged(perigee__arena *a, bool staged) {
  const perigee__coll_call *call = a->call;
  size_t chunk = a->table.copy_chunk;
  for (size_t at = 0; at < call->bytes; at += chunk) {
    size_t now = perigee__shm_piece(call->bytes, at, chunk);
    char *user = (char *)call->out + at;
    if (at > 0 || !staged) {
      if (a->me == call->root)
        perigee__shm_copy(perigee__arena_next_slot(a, a->me), user, now);
      PERIGEE_TRY(perigee__arena_meet(a, NULL, NULL));
    }
    if (a->me != call->root)
      perigee__shm_copy_out(a, user, perigee__arena_slot_of(a, call->root, 0), now);
  }
  return 0;
}

/* Every rank opens a window: only when all name one segment is it taken for symmetric. The root's flag decides. */
static int broadcast_large(perigee__arena *a) {
  const perigee__coll_call *call = a->call;
  bool root = a->me == call->root;
  bool segment = perigee__shm_open_window(a, call->out, call->bytes, NULL, 0);
  bool direct = perigee__shm_lends(a, call->bytes, segment);
  if (root && direct)
    a->aux = PERIGEE_SHM_DIRECT;
  else if (root)
    perigee__shm_copy(perigee__arena_next_slot(a, a->me), call->out,
                      perigee__shm_piece(call->bytes, 0, a->table.copy_chunk));
  PERIGEE_TRY(perigee__arena_meet(a, NULL, NULL));
  direct = (a->aux_any & PERIGEE_SHM_DIRECT) != 0;
  if (!direct || !perigee__shm_reach(a))
    return broadcast_staged(a, !direct);
  const perigee__shm_window *w = perigee__shm_window_of(a, call->root);
  if (!root)
    PERIGEE_TRY(perigee__shm_read_in(a, w, call->root, call->out, w->in, call->bytes));
  return perigee__shm_end(a, root);
}

int perigee__shm_broadcast(perigee__arena *a) {
  if (a->call->bytes <= PERIGEE_ARENA_INLINE)
    return broadcast_inline(a);
  if (perigee__shm_lends(a, a->call->bytes, true))
    return broadcast_large(a);
  return broadcast_staged(a, false);
}
