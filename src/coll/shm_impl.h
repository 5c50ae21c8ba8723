/*
 * The paths of the shared-memory engine, one function per kind of collective. Included by shm_*.c only.
 *
 * A path runs between two calls of perigee__shm_run. It finds the call in a->call, leaves an error in *a->error, and takes as many
 * meetings as the sizes that all ranks know alike ask for. Its parts are named after what a rank does with one chunk:
 *   stage    copy from the user's buffer into a buffer of the arena, for the meeting to come
 *   take     copy from buffers of the last meeting into the user's buffer
 * All follow the rule of reuse in arena.h: what was staged for a meeting is read before the next but one, and nobody
 * writes what somebody else may read or write in the same stretch between two meetings.
 */
#ifndef PERIGEE_COLL_SHM_IMPL_H
#define PERIGEE_COLL_SHM_IMPL_H

#include <string.h>

#include "coll/arena_impl.h"
#include "tensor/reduce.h"

PERIGEE_MUST_CHECK int perigee__shm_allreduce(perigee__arena *a);
PERIGEE_MUST_CHECK int perigee__shm_reduce(perigee__arena *a);
PERIGEE_MUST_CHECK int perigee__shm_broadcast(perigee__arena *a);
/** Allgather with root -1, else gather. */
PERIGEE_MUST_CHECK int perigee__shm_gather(perigee__arena *a, int root);
PERIGEE_MUST_CHECK int perigee__shm_scatter(perigee__arena *a);
PERIGEE_MUST_CHECK int perigee__shm_reduce_scatter(perigee__arena *a);
PERIGEE_MUST_CHECK int perigee__shm_alltoall(perigee__arena *a);

/** Large allreduce (root -1) and reduce. */
PERIGEE_MUST_CHECK int perigee__shm_two_shot(perigee__arena *a, const perigee__reduce_plan *plan,
                                             int root);
/** The plan of the call; errors in *a->error, on all ranks alike, the group stays healthy. */
PERIGEE_MUST_CHECK int perigee__shm_plan(perigee__arena *a, perigee__reduce_plan *plan);

/* ---- sizes of blocks (shm_sizes.c) ------------------------------------------------------------- */

enum {                     /* perigee__arena_line.aux */
  PERIGEE_SHM_UNIFORM = 1, /* all that this rank sends, and all the room it has, is one size */
  PERIGEE_SHM_INLINE = 2,  /* payload holds the data; else of a uniform rank it holds the size */
  PERIGEE_SHM_LENGTH_SHIFT = 8 /* bytes in payload */
};

/** Announce what this rank sends and has room for, in its next line. inlined: an allgather or gather block of at most
 *  PERIGEE_ARENA_INLINE bytes that goes into the line itself, which this does. */
void perigee__shm_announce(perigee__arena *a, bool inlined);
/**
 * After the first meeting: compare what every rank sends with the room it finds. *most_p: bytes of the largest block.
 * Errors: ETRUNC, ESHAPE, the same on all ranks, naming both; the group is failed.
 */
PERIGEE_MUST_CHECK int perigee__shm_check(perigee__arena *a, size_t *most_p);

/* ---- small things -------------------------------------------------------------------------------- */

static inline void perigee__shm_copy(void *dst, const void *src, size_t bytes) {
  if (bytes > 0 && dst != src)
    memcpy(dst, src, bytes);
}
/** Bytes of the piece that starts at offset when pieces are `piece` long. */
static inline size_t perigee__shm_piece(size_t bytes, size_t offset, size_t piece) {
  if (offset >= bytes)
    return 0;
  return bytes - offset < piece ? bytes - offset : piece;
}
/** Pieces that cover bytes; at least 1, because every collective meets. */
static inline size_t perigee__shm_pieces(size_t bytes, size_t piece) {
  return bytes <= piece ? 1 : (bytes - 1) / piece + 1;
}
/** Part of a buffer for each of the n - 1 others, when one buffer serves all of them: a multiple of the widest element. */
static inline size_t perigee__shm_part(const perigee__arena *a) {
  size_t part = a->n > 1 ? a->buffer_bytes / (size_t)(a->n - 1) : a->buffer_bytes;
  if (part > a->copy_chunk)
    part = a->copy_chunk;
  return part >= PERIGEE_CACHE_LINE ? part / PERIGEE_CACHE_LINE * PERIGEE_CACHE_LINE
                                    : part / 16 * 16;
}

#endif
