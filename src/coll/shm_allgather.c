/*
 * Allgather: every rank has one block, all want them all.
 *
 * Blocks of up to 48 bytes travel in the publish line. Where that is quicker (arena_limits.c), and when all whose block is longer than a chunk can, the takers
 * copy blocks from where they are, and the senders wait until they have, in one more meeting. Otherwise blocks are cut into chunks: a rank stages
 * chunk k + 1 of its block while the takers copy chunk k of all blocks. As many meetings as the largest block has chunks. A block's own
 * rank copies it directly.
 * Cost for blocks of M bytes: 2M touched to send (nothing when it lends), 2(n-1)M + 2M to take.
 */
#include "coll/shm_impl.h"

typedef struct gather {
  perigee__arena *a;
  bool sends; /* more than a line holds */
} gather;

static void stage(const gather *g, size_t k) {
  const perigee__coll_call *call = g->a->call;
  size_t chunk = g->a->table.copy_chunk;
  if (g->sends)
    perigee__shm_copy(perigee__arena_next_slot(g->a, g->a->me), (const char *)call->in + k * chunk,
                      perigee__shm_piece(call->in_bytes, k * chunk, chunk));
}

/* Sizes are those this rank has room for: they were found equal to what is sent. */
static void take(const gather *g, size_t k) {
  perigee__arena *a = g->a;
  size_t chunk = a->table.copy_chunk;
  for (int i = 1; i < a->n; i++) {
    int r = (a->me + i) % a->n;
    const perigee__block *block = &a->call->out_blocks[r];
    if (block->bytes > PERIGEE_ARENA_INLINE)
      perigee__shm_copy_out(a, (char *)block->ptr + k * chunk, perigee__arena_slot_of(a, r, 0),
                            perigee__shm_piece(block->bytes, k * chunk, chunk));
  }
}

/* After the first meeting: what came in lines. */
static void take_lines(const gather *g) {
  perigee__arena *a = g->a;
  for (int r = 0; r < a->n; r++) {
    const perigee__block *block = &a->call->out_blocks[r];
    if (r == a->me)
      perigee__shm_copy_out(a, block->ptr, a->call->in, a->call->in_bytes);
    else if (block->bytes <= PERIGEE_ARENA_INLINE)
      perigee__shm_copy(block->ptr, perigee__arena_line_of(a, r)->payload, block->bytes);
  }
}

/* Whether this rank would have its block read where it is. */
static bool lends(const gather *g) {
  perigee__arena *a = g->a;
  const perigee__coll_call *call = a->call;
  bool segment = call->in_bytes > PERIGEE_ARENA_INLINE &&
                 perigee__shm_open_window(a, call->in, call->in_bytes, NULL, 0);
  return g->sends && perigee__shm_lends(a, call->in_bytes, segment);
}

/* Some lend; what the others have staged is a whole block. */
static int take_direct(const gather *g) {
  perigee__arena *a = g->a;
  for (int i = 1; i < a->n; i++) {
    int r = (a->me + i) % a->n;
    const perigee__block *block = &a->call->out_blocks[r];
    const perigee__shm_window *w = perigee__shm_window_of(a, r);
    if (perigee__arena_line_of(a, r)->aux & PERIGEE_SHM_DIRECT)
      PERIGEE_TRY(perigee__shm_read_in(a, w, r, block->ptr, w->in, block->bytes));
    else if (block->bytes > PERIGEE_ARENA_INLINE)
      perigee__shm_copy_out(a, block->ptr, perigee__arena_slot_of(a, r, 0), block->bytes);
  }
  return perigee__shm_end(a, g->sends);
}

int perigee__shm_allgather(perigee__arena *a) {
  const perigee__coll_call *call = a->call;
  bool inlined = call->in_bytes <= PERIGEE_ARENA_INLINE;
  gather g = {.a = a, .sends = !inlined};
  size_t most;
  if (inlined)
    perigee__shm_copy(perigee__arena_next_payload(a, call->in_bytes), call->in, call->in_bytes);
  perigee__shm_announce(a, inlined, call->in_bytes);
  if (lends(&g))
    a->aux |= PERIGEE_SHM_DIRECT;
  else
    stage(&g, 0);
  PERIGEE_TRY(perigee__arena_meet(a, NULL, NULL));
  PERIGEE_TRY(perigee__shm_check(a, &most));
  take_lines(&g);
  bool lent = (a->aux_any & PERIGEE_SHM_DIRECT) != 0;
  if (lent && perigee__shm_all_there(a, a->table.copy_chunk) && perigee__shm_reach(a))
    return take_direct(&g);
  if (!lent)
    take(&g, 0);
  size_t chunks = perigee__shm_pieces(most, a->table.copy_chunk);
  for (size_t k = lent ? 0 : 1; k < chunks; k++) { /* lent in vain: the first chunk is staged now */
    stage(&g, k);
    PERIGEE_TRY(perigee__arena_meet(a, NULL, NULL));
    take(&g, k);
  }
  return 0;
}
