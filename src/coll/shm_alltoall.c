/*
 * Alltoall: every rank has a block for every rank.
 *
 * A rank's buffer is cut into n - 1 parts, one for each other rank; part d - 1 is for the rank d places further on. A piece is what fits in a
 * part; a rank stages piece k + 1 of all its blocks while the others take piece k. As many meetings as the largest block has
 * pieces. The block a rank has for itself is copied directly. Both loops start with the next rank, so that no two ranks
 * work on the same buffer at the same time.
 * A rank whose largest block goes another way than through buffers stages nothing: the others read its blocks where they are, and all wait
 * for that in one more meeting; unless somebody else has staged the first of several pieces.
 * Cost for blocks of M bytes: 4(n-1)M + 2M touched per rank, direct 2nM.
 */
#include "coll/shm_impl.h"

static void stage(const perigee__arena *a, size_t part, size_t k) {
  char *slot = perigee__arena_next_slot(a, a->me);
  for (int d = 1; d < a->n; d++) {
    const perigee__block *block = &a->call->in_blocks[(a->me + d) % a->n];
    perigee__shm_copy(slot + (size_t)(d - 1) * part, (const char *)block->ptr + k * part,
                      perigee__shm_piece(block->bytes, k * part, part));
  }
}

/* Whose blocks are in its line, in the first round. Later rounds have lines without flags, and all stage then. */
static bool inlined(const perigee__arena *a, int rank) {
  return (perigee__arena_line_of(a, rank)->aux & PERIGEE_SHM_INLINE) != 0;
}

static void take(const perigee__arena *a, size_t part, size_t k) {
  for (int d = 1; d < a->n; d++) {
    int r = (a->me - d + a->n) % a->n;
    if (inlined(a, r))
      continue;
    const perigee__block *block = &a->call->out_blocks[r];
    perigee__shm_copy_out(a, (char *)block->ptr + k * part,
                          perigee__arena_slot_of(a, r, 0) + (size_t)(d - 1) * part,
                          perigee__shm_piece(block->bytes, k * part, part));
  }
}

/* Some lend; what the others have staged is all they have. */
static int take_direct(perigee__arena *a, size_t part) {
  for (int d = 1; d < a->n; d++) {
    int r = (a->me - d + a->n) % a->n;
    const perigee__block *block = &a->call->out_blocks[r];
    if (perigee__arena_line_of(a, r)->aux & PERIGEE_SHM_DIRECT)
      PERIGEE_TRY(perigee__shm_read_in(a, perigee__shm_window_of(a, r), r, block->ptr,
                                       perigee__shm_block_of(a, r, a->me), block->bytes));
    else if (!inlined(a, r))
      perigee__shm_copy(block->ptr, perigee__arena_slot_of(a, r, 0) + (size_t)(d - 1) * part,
                        block->bytes);
  }
  return perigee__shm_end(a, true);
}

/* Blocks that came in a line, from those who have few bytes for everybody. */
static void take_lines(const perigee__arena *a) {
  for (int r = 0; r < a->n; r++) {
    const perigee__arena_line *line = perigee__arena_line_of(a, r);
    const perigee__block *block = &a->call->out_blocks[r];
    if (r != a->me && inlined(a, r))
      perigee__shm_copy(block->ptr, line->payload + (size_t)a->me * block->bytes, block->bytes);
  }
}

static void offer(perigee__arena *a, size_t part) {
  const perigee__block *blocks = a->call->in_blocks;
  if (perigee__shm_inline_blocks(a, blocks))
    return;
  perigee__shm_announce(a, false, 0);
  bool segment = perigee__shm_open_blocks(a, blocks);
  if (perigee__shm_lends(a, perigee__shm_largest(a, blocks), segment))
    a->aux |= PERIGEE_SHM_DIRECT;
  else
    stage(a, part, 0);
}

int perigee__shm_alltoall(perigee__arena *a) {
  const perigee__coll_call *call = a->call;
  size_t most, part = perigee__shm_share(a);
  offer(a, part);
  PERIGEE_TRY(perigee__arena_meet(a, NULL, NULL));
  PERIGEE_TRY(perigee__shm_check(a, &most));
  perigee__shm_copy_out(a, call->out_blocks[a->me].ptr, call->in_blocks[a->me].ptr,
                        call->in_blocks[a->me].bytes);
  if (a->aux_any & PERIGEE_SHM_INLINE)
    take_lines(a);
  bool lent = (a->aux_any & PERIGEE_SHM_DIRECT) != 0;
  if (lent && perigee__shm_all_there(a, part) && perigee__shm_reach(a))
    return take_direct(a, part);
  if (!lent)
    take(a, part, 0);
  size_t pieces = perigee__shm_pieces(most, part);
  for (size_t k = lent ? 0 : 1; k < pieces; k++) { /* lent in vain: the first piece is staged now */
    stage(a, part, k);
    PERIGEE_TRY(perigee__arena_meet(a, NULL, NULL));
    take(a, part, k);
  }
  return 0;
}
