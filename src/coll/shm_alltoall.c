/*
 * Alltoall: every rank has a block for every rank.
 *
 * A rank's buffer is cut into n - 1 parts, one for each other rank; part d - 1 is for the rank d places further on. A piece is what fits in a
 * part; a rank stages piece k + 1 of all its blocks while the others take piece k. As many meetings as the largest block has
 * pieces. The block a rank has for itself is copied directly. Both loops start with the next rank, so that no two ranks
 * work on the same buffer at the same time.
 * Cost for blocks of M bytes: 4(n-1)M + 2M touched per rank.
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

static void take(const perigee__arena *a, size_t part, size_t k) {
  for (int d = 1; d < a->n; d++) {
    int r = (a->me - d + a->n) % a->n;
    const perigee__block *block = &a->call->out_blocks[r];
    perigee__shm_copy((char *)block->ptr + k * part,
                      perigee__arena_slot_of(a, r, 0) + (size_t)(d - 1) * part,
                      perigee__shm_piece(block->bytes, k * part, part));
  }
}

int perigee__shm_alltoall(perigee__arena *a) {
  const perigee__coll_call *call = a->call;
  size_t most, part = perigee__shm_part(a);
  perigee__shm_announce(a, false);
  stage(a, part, 0);
  PERIGEE_TRY(perigee__arena_meet(a, NULL, NULL));
  PERIGEE_TRY(perigee__shm_check(a, &most));
  perigee__shm_copy(call->out_blocks[a->me].ptr, call->in_blocks[a->me].ptr,
                    call->in_blocks[a->me].bytes);
  take(a, part, 0);
  size_t pieces = perigee__shm_pieces(most, part);
  for (size_t k = 1; k < pieces; k++) {
    stage(a, part, k);
    PERIGEE_TRY(perigee__arena_meet(a, NULL, NULL));
    take(a, part, k);
  }
  return 0;
}
