/*
 * Broadcast: the root writes once, all others read.
 *
 *   inline    up to 48 bytes in the root's publish line; one meeting.
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

int perigee__shm_broadcast(perigee__arena *a) {
  const perigee__coll_call *call = a->call;
  if (call->bytes <= PERIGEE_ARENA_INLINE)
    return broadcast_inline(a);
  size_t chunk = a->copy_chunk;
  for (size_t at = 0; at < call->bytes; at += chunk) {
    size_t now = perigee__shm_piece(call->bytes, at, chunk);
    char *user = (char *)call->out + at;
    if (a->me == call->root)
      perigee__shm_copy(perigee__arena_next_slot(a, a->me), user, now);
    PERIGEE_TRY(perigee__arena_meet(a, NULL, NULL));
    if (a->me != call->root)
      perigee__shm_copy(user, perigee__arena_slot_of(a, call->root, 0), now);
  }
  return 0;
}
