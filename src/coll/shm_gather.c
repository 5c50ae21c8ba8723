/*
 * Gather and allgather: every rank has one block, one rank or all want them all.
 *
 * Blocks of up to 48 bytes travel in the publish line. Larger ones are cut into chunks: a rank stages chunk k + 1 of its block while
 * the takers copy chunk k of all blocks. As many meetings as the largest block has chunks. A block's own rank copies it directly.
 * Cost for blocks of M bytes: 2M touched by a sender, 2(n-1)M + 2M by a taker.
 */
#include "coll/shm_impl.h"

typedef struct gather {
  perigee__arena *a;
  bool sends, takes;
} gather;

static void stage(const gather *g, size_t k) {
  const perigee__coll_call *call = g->a->call;
  size_t chunk = g->a->copy_chunk;
  if (g->sends)
    perigee__shm_copy(perigee__arena_next_slot(g->a, g->a->me), (const char *)call->in + k * chunk,
                      perigee__shm_piece(call->in_bytes, k * chunk, chunk));
}

/* Sizes are those this rank has room for: they were found equal to what is sent. */
static void take(const gather *g, size_t k) {
  perigee__arena *a = g->a;
  size_t chunk = a->copy_chunk;
  if (!g->takes)
    return;
  for (int i = 1; i < a->n; i++) {
    int r = (a->me + i) % a->n;
    const perigee__block *block = &a->call->out_blocks[r];
    if (block->bytes <= PERIGEE_ARENA_INLINE) {
      if (k == 0)
        perigee__shm_copy(block->ptr, perigee__arena_line_of(a, r)->payload, block->bytes);
      continue;
    }
    perigee__shm_copy((char *)block->ptr + k * chunk, perigee__arena_slot_of(a, r, 0),
                      perigee__shm_piece(block->bytes, k * chunk, chunk));
  }
}

int perigee__shm_gather(perigee__arena *a, int root) {
  const perigee__coll_call *call = a->call;
  bool inlined = call->in_bytes <= PERIGEE_ARENA_INLINE;
  gather g = {.a = a, .sends = !inlined && a->me != root, .takes = root < 0 || a->me == root};
  size_t most;
  perigee__shm_announce(a, inlined);
  stage(&g, 0);
  PERIGEE_TRY(perigee__arena_meet(a, NULL, NULL));
  PERIGEE_TRY(perigee__shm_check(a, &most));
  if (g.takes)
    perigee__shm_copy(call->out_blocks[a->me].ptr, call->in, call->in_bytes);
  take(&g, 0);
  size_t chunks = perigee__shm_pieces(most, a->copy_chunk);
  for (size_t k = 1; k < chunks; k++) {
    stage(&g, k);
    PERIGEE_TRY(perigee__arena_meet(a, NULL, NULL));
    take(&g, k);
  }
  return 0;
}
