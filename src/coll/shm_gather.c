/*
 * Gather: every rank has one block, the root wants them all. Who has a small one runs ahead (arena.h).
 *
 * Nobody but the root learns what the others have, so that all take one phase, whatever their blocks: what comes after it is between the
 * root and one sender, over two words of the sender's status. In the phase a sender announces its block, and
 *   line       up to 48 bytes are in it
 *   small      up to SMALL bytes are in its small buffer
 *   whole      what a buffer holds is in its buffer of the epoch
 *   direct     longer ones, where that is quicker (arena_limits.c): lent; the sender waits until the root has read it
 *   chunks     others: through the sender's buffers, as many chunks ahead of the root as there are; it waits until all are taken
 * Words: `given` and `taken` of a sender count chunks and lent blocks, and are equal between collectives. Root and sender start from there:
 *   lent     the root answers with taken + 1: it has read the block; or with taken + 2: it cannot, send it in chunks from there on.
 *   chunks   the sender raises given after each, the root taken.
 *   The root of another gather sees what the one before has written to taken, because the sender has seen it before its next line.
 * Cost for blocks of M bytes: 2M touched by a sender (nothing when it lends), 2(n-1)M + 2M by the root.
 */
#include "coll/shm_impl.h"

typedef enum way {
  IN_LINE,
  SMALL,
  WHOLE,
  DIRECT,
  CHUNKS
} way;

static uint32_t count_of(_Atomic uint32_t *word) {
  /* acquire: pairs with perigee__arena_publish; whoever wrote it has left the collective in which it did */
  return atomic_load_explicit(word, memory_order_acquire) >> 1;
}

/* The first chunk is in the buffer of the epoch. The others are in those of epochs before, which others may still read from until they have
 * come to this one. */
static char *chunk_slot(const perigee__arena *a, int rank, size_t k) {
  return perigee__arena_slot_at(a, rank, a->epoch + (uint32_t)k);
}

/* ---- sender -------------------------------------------------------------------------------------- */

static int send_chunks(perigee__arena *a, uint32_t from) {
  const perigee__coll_call *call = a->call;
  perigee__arena_status *own = &a->status[a->me];
  size_t chunks = perigee__shm_pieces(call->in_bytes, a->table.copy_chunk);
  for (size_t k = 0; k < chunks; k++) {
    size_t at = k * a->table.copy_chunk;
    if (k == 1)
      PERIGEE_TRY(perigee__arena_await_all(a));
    if (k >= PERIGEE_ARENA_BUFFERS) /* its buffer has been taken */
      PERIGEE_TRY(perigee__arena_await_word(a, call->root, &own->taken,
                                            from + (uint32_t)k + 1 - PERIGEE_ARENA_BUFFERS));
    perigee__shm_copy(chunk_slot(a, a->me, k), (const char *)call->in + at,
                      perigee__shm_piece(call->in_bytes, at, a->table.copy_chunk));
    perigee__arena_publish(&own->given, from + (uint32_t)k + 1);
  }
  return perigee__arena_await_word(a, call->root, &own->taken, from + (uint32_t)chunks);
}

static int lend(perigee__arena *a, uint32_t from) {
  perigee__arena_status *own = &a->status[a->me];
  PERIGEE_TRY(perigee__arena_await_word(a, a->call->root, &own->taken, from + 1));
  uint32_t answer = count_of(&own->taken);
  perigee__arena_publish(&own->given, answer);
  return answer == ((from + 1) & PERIGEE_ARENA_EPOCHS) ? 0 : send_chunks(a, answer);
}

/* Unless it lends. */
static way way_for(const perigee__arena *a, size_t bytes) {
  if (bytes <= PERIGEE_ARENA_INLINE)
    return IN_LINE;
  if (bytes <= PERIGEE_ARENA_SMALL && !perigee__shm_lends(a, bytes, true))
    return SMALL;
  return bytes <= a->buffer_bytes ? WHOLE : CHUNKS;
}

static int send(perigee__arena *a) {
  static const uint32_t flags[] = {[SMALL] = PERIGEE_SHM_SMALL,
                                   [WHOLE] = PERIGEE_SHM_WHOLE,
                                   [DIRECT] = PERIGEE_SHM_DIRECT,
                                   [CHUNKS] = 0};
  const perigee__coll_call *call = a->call;
  size_t bytes = call->in_bytes;
  way how = way_for(a, bytes);
  if (how >= WHOLE)
    PERIGEE_TRY(perigee__arena_room(a, PERIGEE_ARENA_BUFFER_ROOM));
  perigee__shm_announce(a, how == IN_LINE, bytes);
  bool segment = how >= WHOLE && perigee__shm_open_window(a, call->in, bytes, NULL, 0);
  if (how >= WHOLE && perigee__shm_lends(a, bytes, segment))
    how = DIRECT;
  if (how == IN_LINE)
    perigee__shm_copy(perigee__arena_next_payload(a, bytes), call->in, bytes);
  if (how == SMALL)
    perigee__shm_copy(perigee__arena_small_at(a, a->me, perigee__arena_epoch_after(a->epoch)),
                      call->in, bytes);
  if (how == WHOLE)
    perigee__shm_copy(perigee__arena_next_slot(a, a->me), call->in, bytes);
  a->aux |= flags[how];
  uint32_t from = count_of(&a->status[a->me].taken);
  perigee__arena_give(a);
  return how == DIRECT ? lend(a, from) : how == CHUNKS ? send_chunks(a, from) : 0;
}

/* ---- root ---------------------------------------------------------------------------------------- */

static way way_of(const perigee__arena *a, int rank) {
  uint32_t aux = perigee__arena_line_of(a, rank)->aux;
  return aux & PERIGEE_SHM_INLINE   ? IN_LINE
         : aux & PERIGEE_SHM_SMALL  ? SMALL
         : aux & PERIGEE_SHM_WHOLE  ? WHOLE
         : aux & PERIGEE_SHM_DIRECT ? DIRECT
                                    : CHUNKS;
}

static int take_lent(perigee__arena *a, int r) {
  const perigee__block *block = &a->call->out_blocks[r];
  const perigee__shm_window *w = perigee__shm_window_of(a, r);
  PERIGEE_TRY(perigee__shm_read_in(a, w, r, block->ptr, w->in, block->bytes));
  PERIGEE_TRY(perigee__shm_intact(a));
  perigee__arena_publish(&a->status[r].taken, count_of(&a->status[r].taken) + 1);
  return 0;
}

/* A large block of a sender whose line is there, while others still stage theirs: unless its size is wrong, which is found out later, or
 * more must be known to read it. */
static int take_early(perigee__arena *a, int r) {
  const perigee__block *block = &a->call->out_blocks[r];
  way how = way_of(a, r);
  if ((how != WHOLE && how != DIRECT) || perigee__shm_sent(a, r, a->me) != block->bytes)
    return 0;
  if (how == DIRECT)
    return a->cma && perigee__shm_reach_one(a, r) ? take_lent(a, r) : 0;
  perigee__shm_copy_out(a, block->ptr, perigee__arena_slot_of(a, r, 0), block->bytes);
  return 0;
}

static void take_small(perigee__arena *a) {
  for (int r = 0; r < a->n; r++) {
    const perigee__block *block = &a->call->out_blocks[r];
    way how = way_of(a, r);
    if (r == a->me)
      perigee__shm_copy_out(a, block->ptr, a->call->in, a->call->in_bytes);
    else if (how == IN_LINE)
      perigee__shm_copy(block->ptr, perigee__arena_line_of(a, r)->payload, block->bytes);
    else if (how == SMALL)
      perigee__shm_copy(block->ptr, perigee__arena_small_at(a, r, a->epoch), block->bytes);
  }
}

/* Without the right to read the others' memory blocks that were lent are in one symmetric segment, or asked for in chunks. */
static int take_symmetric(perigee__arena *a) {
  bool reached = perigee__shm_reach(a);
  for (int i = 1; i < a->n; i++) {
    int r = (a->me + i) % a->n;
    if (way_of(a, r) != DIRECT)
      continue;
    if (reached)
      PERIGEE_TRY(take_lent(a, r));
    else
      perigee__arena_publish(&a->status[r].taken, count_of(&a->status[r].taken) + 2);
  }
  return 0;
}

/* Chunk by chunk, one of each sender at a time: the others stage meanwhile. */
static int take_chunks(perigee__arena *a, size_t most, bool lent_too) {
  size_t chunk = a->table.copy_chunk;
  for (size_t at = 0; at < most; at += chunk)
    for (int i = 1; i < a->n; i++) {
      int r = (a->me + i) % a->n;
      const perigee__block *block = &a->call->out_blocks[r];
      way how = way_of(a, r);
      if ((how != CHUNKS && (how != DIRECT || !lent_too)) || at >= block->bytes)
        continue;
      perigee__arena_status *its = &a->status[r];
      uint32_t count = count_of(&its->taken);
      PERIGEE_TRY(perigee__arena_await_word(a, r, &its->given, count + 1));
      perigee__shm_copy_out(a, (char *)block->ptr + at, chunk_slot(a, r, at / chunk),
                            perigee__shm_piece(block->bytes, at, chunk));
      perigee__arena_publish(&its->taken, count + 1);
    }
  return 0;
}

static int take(perigee__arena *a) {
  const perigee__coll_call *call = a->call;
  size_t most;
  perigee__shm_announce(a, false, 0);
  if (call->in_bytes > PERIGEE_ARENA_INLINE)
    (void)!perigee__shm_open_window(a, call->in, call->in_bytes, NULL, 0);
  perigee__arena_give(a);
  for (int i = 1; i < a->n; i++) {
    int r = (a->me + i) % a->n;
    PERIGEE_TRY(perigee__arena_await(a, r));
    PERIGEE_TRY(take_early(a, r));
  }
  PERIGEE_TRY(perigee__arena_await_all(a)); /* they have come */
  PERIGEE_TRY(perigee__shm_check(a, &most));
  take_small(a);
  bool lent = (a->aux_any & PERIGEE_SHM_DIRECT) != 0 && !a->cma;
  if (lent)
    PERIGEE_TRY(take_symmetric(a));
  return take_chunks(a, most, lent && a->in.base == NULL);
}

int perigee__shm_gather(perigee__arena *a) { return a->me == a->call->root ? take(a) : send(a); }
