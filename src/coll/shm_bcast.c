/*
 * Broadcast: the root writes once, all others read. The root runs ahead (arena.h) wherever it does not lend.
 *
 *   inline    up to 48 bytes in the root's publish line.
 *   small     in the root's small buffer of the epoch.
 *   chunks    the root stages chunks in its buffers, as far ahead of the others as there are buffers. Root 2N bytes touched, others 2N,
 *             of which the reads come from cache.
 *   direct    where that is quicker (arena_limits.c) the others copy from the root's buffer, which it lends until they have. 2N bytes touched by
 *             each of the others.
 */
#include "coll/shm_impl.h"

/* Only the root writes into buffers. */
static uint32_t room_for(const perigee__arena *a) {
  return a->me == a->call->root ? PERIGEE_ARENA_BUFFER_ROOM : PERIGEE_ARENA_LINE_ROOM;
}

static int phase(perigee__arena *a) {
  perigee__arena_give(a);
  return a->me == a->call->root ? 0 : perigee__arena_await(a, a->call->root);
}

static void stage(perigee__arena *a, char *shared, const void *user, size_t bytes) {
  perigee__arena_stages(a);
  perigee__shm_copy(shared, user, bytes);
}

/* One phase: the root has put the bytes where the others find them. */
static int hand_over(perigee__arena *a, char *user, const char *shared, size_t bytes) {
  PERIGEE_TRY(phase(a));
  if (a->me != a->call->root)
    perigee__shm_copy_out(a, user, shared, bytes);
  return 0;
}

static int broadcast_small(perigee__arena *a) {
  const perigee__coll_call *call = a->call;
  uint32_t epoch = perigee__arena_epoch_after(a->epoch);
  bool inlined = call->bytes <= PERIGEE_ARENA_INLINE;
  const char *small = perigee__arena_small_at(a, call->root, epoch);
  const void *line = perigee__arena_line_at(a, call->root, epoch)->payload;
  if (a->me == call->root)
    stage(a,
          inlined ? (char *)perigee__arena_next_payload(a, call->bytes)
                  : perigee__arena_small_at(a, a->me, epoch),
          call->out, call->bytes);
  return hand_over(a, call->out, inlined ? line : small, call->bytes);
}

static int broadcast_chunks(perigee__arena *a, size_t from) {
  const perigee__coll_call *call = a->call;
  for (size_t at = from; at < call->bytes; at += a->table.copy_chunk) {
    PERIGEE_TRY(perigee__arena_room(a, room_for(a)));
    size_t now = perigee__shm_piece(call->bytes, at, a->table.copy_chunk);
    char *user = (char *)call->out + at, *shared = perigee__arena_next_slot(a, call->root);
    if (a->me == call->root)
      stage(a, shared, user, now);
    PERIGEE_TRY(hand_over(a, user, shared, now));
  }
  return 0;
}

/* After the first phase, in which the root has lent. */
static int broadcast_direct(perigee__arena *a) {
  const perigee__coll_call *call = a->call;
  const perigee__shm_window *w = perigee__shm_window_of(a, call->root);
  if (a->me != call->root)
    PERIGEE_TRY(perigee__shm_read_in(a, w, call->root, call->out, w->in, call->bytes));
  return perigee__shm_end_from_root(a);
}

/* The root's flag decides. Without the right to read the others' memory all meet first: only when the windows of all name one segment can
 * they read from it. */
static int broadcast_large(perigee__arena *a) {
  const perigee__coll_call *call = a->call;
  PERIGEE_TRY(perigee__arena_room(a, room_for(a)));
  bool root = a->me == call->root;
  bool segment = perigee__shm_open_window(a, call->out, call->bytes, NULL, 0);
  size_t first = perigee__shm_piece(call->bytes, 0, a->table.copy_chunk);
  if (root && perigee__shm_lends(a, call->bytes, segment)) {
    a->aux = PERIGEE_SHM_DIRECT;
    perigee__arena_lend(a);
  } else if (root) {
    stage(a, perigee__arena_next_slot(a, a->me), call->out, first);
  }
  if (a->cma)
    PERIGEE_TRY(phase(a));
  else
    PERIGEE_TRY(perigee__arena_meet(a, NULL, NULL));
  bool direct = (perigee__arena_line_of(a, call->root)->aux & PERIGEE_SHM_DIRECT) != 0;
  if (direct && (a->cma ? perigee__shm_reach_one(a, call->root) : perigee__shm_reach(a)))
    return broadcast_direct(a);
  if (!root && !direct)
    perigee__shm_copy_out(a, call->out, perigee__arena_slot_of(a, call->root, 0), first);
  return broadcast_chunks(a, direct ? 0 : first);
}

int perigee__shm_broadcast(perigee__arena *a) {
  size_t bytes = a->call->bytes;
  if (bytes > PERIGEE_ARENA_INLINE && perigee__shm_lends(a, bytes, true))
    return broadcast_large(a);
  if (bytes <= PERIGEE_ARENA_SMALL)
    return broadcast_small(a);
  return broadcast_chunks(a, 0);
}
