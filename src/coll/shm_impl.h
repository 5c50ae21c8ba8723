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
#include "tensor/copy.h"
#include "tensor/reduce.h"

/** Before every call: keep what the barrier goes by. */
void perigee__shm_learn(perigee__arena *a);
PERIGEE_MUST_CHECK int perigee__shm_barrier(perigee__arena *a);
PERIGEE_MUST_CHECK int perigee__shm_allreduce(perigee__arena *a);
PERIGEE_MUST_CHECK int perigee__shm_reduce(perigee__arena *a);
PERIGEE_MUST_CHECK int perigee__shm_broadcast(perigee__arena *a);
PERIGEE_MUST_CHECK int perigee__shm_allgather(perigee__arena *a);
PERIGEE_MUST_CHECK int perigee__shm_gather(perigee__arena *a);
PERIGEE_MUST_CHECK int perigee__shm_scatter(perigee__arena *a);
PERIGEE_MUST_CHECK int perigee__shm_reduce_scatter(perigee__arena *a);
PERIGEE_MUST_CHECK int perigee__shm_alltoall(perigee__arena *a);

/** Large allreduce (root -1) and reduce. */
PERIGEE_MUST_CHECK int perigee__shm_two_shot(perigee__arena *a, const perigee__reduce_plan *plan,
                                             int root);
/**
 * Allreduce (root -1) and reduce straight from the others' memory. symmetric: if all tensors are. pull: by system call otherwise; without
 * it, when they turn out not to be *done_p is false and nothing has happened but one meeting. A rank that knows at once
 * that its own are not does not even have that: its first meeting on the path it takes then is the same one, and
 * perigee__shm_again tells it to repeat it.
 */
PERIGEE_MUST_CHECK int perigee__shm_reduce_direct(perigee__arena *a,
                                                  const perigee__reduce_plan *plan, int root,
                                                  bool pull, bool symmetric, bool *done_p);
/** Which way the rules send the call that runs. symmetric: if its tensors are. */
static inline perigee__algo perigee__shm_path(const perigee__arena *a, size_t bytes,
                                              bool symmetric) {
  return (perigee__algo)perigee__shm_entry_for(&a->table, a->call->kind,
                                               symmetric && a->table.symmetric, bytes)
      ->algo;
}
/** Whether this rank would have blocks of this size read where they are. segment: they are in symmetric memory. */
static inline bool perigee__shm_lends(const perigee__arena *a, size_t bytes, bool segment) {
  perigee__algo algo = perigee__shm_path(a, bytes, segment);
  return algo == PERIGEE_PATH_CMA || algo == PERIGEE_PATH_SYMMETRIC;
}
/** The plan of the call; errors in *a->error, on all ranks alike, the group stays healthy. */
PERIGEE_MUST_CHECK int perigee__shm_plan(perigee__arena *a, perigee__reduce_plan *plan);

/* ---- sizes of blocks (shm_sizes.c) ------------------------------------------------------------- */

enum {                         /* perigee__arena_line.aux */
  PERIGEE_SHM_UNIFORM = 1,     /* all that this rank sends, and all the room it has, is one size */
  PERIGEE_SHM_INLINE = 2,      /* payload holds the data; else a window */
  PERIGEE_SHM_DIRECT = 4,      /* nothing is staged: the others read it where it is */
  PERIGEE_SHM_SMALL = 8,       /* the data is in the small buffer */
  PERIGEE_SHM_WHOLE = 16,      /* a block is in the buffer */
  PERIGEE_SHM_LENGTH_SHIFT = 8 /* bytes in payload */
};

/** Announce what this rank sends and has room for, in its next line. inlined: the payload holds data already, blocks of `length` bytes. */
void perigee__shm_announce(perigee__arena *a, bool inlined, size_t length);
/** Put the blocks, one for each rank, into the next line and announce them; false when they do not fit or differ in size. */
bool perigee__shm_inline_blocks(perigee__arena *a, const perigee__block *blocks);
/** After the check: whether the blocks of all ranks are lent, inlined or staged whole, in `room` bytes for each. Alike on all
 *  ranks. */
bool perigee__shm_all_there(const perigee__arena *a, size_t room);
/** Bytes of the largest of the n blocks. */
size_t perigee__shm_largest(const perigee__arena *a, const perigee__block *blocks);
/**
 * After the first meeting: compare what every rank sends with the room it finds. *most_p: bytes of the largest block.
 * Errors: ETRUNC, ESHAPE, the same on all ranks, naming both; the group is failed.
 */
PERIGEE_MUST_CHECK int perigee__shm_check(perigee__arena *a, size_t *most_p);
/** Bytes that a rank whose line is there says it sends to another. */
size_t perigee__shm_sent(const perigee__arena *a, int rank, int to);
/** Scatter, on who has seen the root's line: only the own block is compared. *most_p as above. */
PERIGEE_MUST_CHECK int perigee__shm_check_own(perigee__arena *a, size_t *most_p);

/* ---- straight from the others' memory (shm_window.c) -------------------------------------------- */

/**
 * In the payload of a line: where a rank has what the others may read, and write when it is symmetric memory. Addresses are of the
 * rank's process; offsets count from the start of its part of a segment.
 */
typedef struct perigee__shm_window {
  uint64_t size; /* of a uniform rank */
  uint64_t in, out;
  uint64_t in_offset, out_offset;
  uint32_t in_segment, out_segment; /* 0: ordinary memory */
} perigee__shm_window;
_Static_assert(sizeof(perigee__shm_window) <= PERIGEE_ARENA_INLINE, "a window travels in a line");

/** Write a window into the next line, its size left as it is. NULL or 0 bytes: none. Whether `in` is in a segment. */
bool perigee__shm_open_window(perigee__arena *a, const void *in, size_t in_bytes, const void *out,
                              size_t out_bytes);
/** The same for blocks, one for each rank: their addresses go into the line too. */
bool perigee__shm_open_blocks(perigee__arena *a, const perigee__block *blocks);
/** After the first meeting: set a->in and a->out. Whether what the others have opened can be read: alike on all ranks. */
bool perigee__shm_reach(perigee__arena *a);
/** When every rank can read every other's memory: set a->in for reading from this rank, whose line is there. True. */
bool perigee__shm_reach_one(perigee__arena *a, int rank);
/** Address of the block that a rank has for `to`. */
uint64_t perigee__shm_block_of(const perigee__arena *a, int rank, int to);
/** dst := bytes at `at`, an address inside a rank's in (out) window of the first meeting, `age` meetings ago. */
PERIGEE_MUST_CHECK int perigee__shm_read_in(perigee__arena *a, const perigee__shm_window *w,
                                            int rank, void *dst, uint64_t at, size_t bytes);
PERIGEE_MUST_CHECK int perigee__shm_read_out(perigee__arena *a, const perigee__shm_window *w,
                                             int rank, void *dst, uint64_t at, size_t bytes);
/** After reading, before the end: whether everything was still there. The error if not. */
PERIGEE_MUST_CHECK int perigee__shm_intact(perigee__arena *a);
/** The last meeting of a collective that read directly. wait: this rank has lent memory. */
PERIGEE_MUST_CHECK int perigee__shm_end(perigee__arena *a, bool wait);
/** The same after a phase from root, in which the root has lent (perigee__arena_lend). */
PERIGEE_MUST_CHECK int perigee__shm_end_from_root(perigee__arena *a);
/** In this rank's line of the meeting to come. */
static inline perigee__shm_window *perigee__shm_next_window(perigee__arena *a) {
  return (perigee__shm_window *)(void *)perigee__arena_next_payload(a, sizeof(perigee__shm_window));
}
static inline const perigee__shm_window *perigee__shm_window_of(const perigee__arena *a, int rank) {
  return (const perigee__shm_window *)(const void *)perigee__arena_line_of(a, rank)->payload;
}
/** Pointer into a rank's window, when it is in symmetric memory. */
static inline char *perigee__shm_in_at(const perigee__arena *a, const perigee__shm_window *w,
                                       int rank) {
  return a->in.base + (size_t)rank * a->in.stride + w->in_offset;
}
static inline char *perigee__shm_out_at(const perigee__arena *a, const perigee__shm_window *w,
                                        int rank) {
  return a->out.base + (size_t)rank * a->out.stride + w->out_offset;
}

/** After the first meeting of a path that stages: some rank had hoped for symmetric memory and has staged nothing. */
static inline bool perigee__shm_again(const perigee__arena *a) {
  return (a->aux_any & PERIGEE_SHM_DIRECT) != 0;
}

/* ---- small things -------------------------------------------------------------------------------- */

static inline void perigee__shm_copy(void *dst, const void *src, size_t bytes) {
  if (bytes > 0 && dst != src)
    memcpy(dst, src, bytes);
}
/** Into the user's memory. */
static inline void perigee__shm_copy_out(const perigee__arena *a, void *dst, const void *src,
                                         size_t bytes) {
  if (PERIGEE_UNLIKELY(a->past_caches))
    perigee__copy_past(dst, src, bytes);
  else
    perigee__shm_copy(dst, src, bytes);
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
static inline size_t perigee__shm_share(const perigee__arena *a) {
  size_t part = a->n > 1 ? a->buffer_bytes / (size_t)(a->n - 1) : a->buffer_bytes;
  if (part > a->table.copy_chunk)
    part = a->table.copy_chunk;
  return part >= PERIGEE_CACHE_LINE ? part / PERIGEE_CACHE_LINE * PERIGEE_CACHE_LINE
                                    : part / 16 * 16;
}

#endif
