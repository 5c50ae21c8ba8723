/*
 * Scatter: the root has a block for every rank. Where one phase is enough it runs ahead (arena.h).
 *
 * Blocks that fit all together travel in the root's publish line. Others go through the buffers:
 * The first piece of every block goes into a part of the root's own small buffer, or buffer when they do not fit (as in alltoall): before
 * the root knows that all others are in this collective it touches nothing that is not its own. When there is more the root waits for all;
 * then it writes the next chunk of rank r's block into the buffer of rank r, so that all buffers of the arena carry data: a buffer has
 * one writer between two meetings whoever owns it, which is all that the rule of reuse asks for. The root stages the next chunk while the
 * others take the one before. As many meetings more as the largest block has chunks behind its first piece.
 * Where the rules say so everybody copies its block from where it is, and the root waits until they have.
 * The others learn from the root's line how long the largest block is, and so which of these it is.
 * Cost for blocks of M bytes: 2nM touched by the root (nothing when it lends), 2M by the others.
 */
#include "coll/shm_impl.h"

/* One step: bytes from `at` on, at most `most`, of every block. */
typedef struct step {
  size_t at, most;
} step;

static void copy_piece(void *dst, const perigee__block *block, step now) {
  perigee__shm_copy(dst, (const char *)block->ptr + now.at,
                    perigee__shm_piece(block->bytes, now.at, now.most));
}

/* Room for the first piece of everybody's block in one small buffer of the root; 0 when the longest does not fit. */
static size_t small_share(const perigee__arena *a, size_t longest) {
  size_t share = a->n > 1 ? PERIGEE_ARENA_SMALL / (size_t)(a->n - 1) / 16 * 16 : longest;
  return longest <= share && !perigee__shm_lends(a, longest, true) ? share : 0;
}

/* First pieces, into parts of the root's own buffer. */
static void stage_first(const perigee__arena *a, char *buffer, step now) {
  for (int d = 1; d < a->n; d++)
    copy_piece(buffer + (size_t)(d - 1) * now.most, &a->call->in_blocks[(a->me + d) % a->n], now);
}

static void take_first(const perigee__arena *a, const char *buffer, step now) {
  size_t d = (size_t)((a->me - a->call->root + a->n) % a->n);
  perigee__shm_copy_out(a, a->call->out, buffer + (d - 1) * now.most,
                        perigee__shm_piece(a->call->out_bytes, 0, now.most));
}

/* What comes behind the first pieces. */
static int scatter_rest(perigee__arena *a, size_t from, size_t longest) {
  const perigee__coll_call *call = a->call;
  for (step now = {from, a->table.copy_chunk}; now.at < longest; now.at += now.most) {
    PERIGEE_TRY(perigee__arena_room(a, PERIGEE_ARENA_BUFFER_ROOM));
    for (int d = 1; d < a->n && a->me == call->root; d++) {
      int r = (a->me + d) % a->n;
      copy_piece(perigee__arena_next_slot(a, r), &call->in_blocks[r], now);
    }
    PERIGEE_TRY(perigee__arena_meet(a, NULL, NULL));
    if (a->me != call->root)
      perigee__shm_copy_out(a, (char *)call->out + now.at, perigee__arena_slot_of(a, a->me, 0),
                            perigee__shm_piece(call->out_bytes, now.at, now.most));
  }
  return 0;
}

static int read_direct(perigee__arena *a) {
  const perigee__coll_call *call = a->call;
  if (a->me != call->root)
    PERIGEE_TRY(perigee__shm_read_in(a, perigee__shm_window_of(a, call->root), call->root,
                                     call->out, perigee__shm_block_of(a, call->root, a->me),
                                     call->out_bytes));
  return perigee__shm_end_from_root(a);
}

/* After the first phase of a scatter that lends. Without the right to read the others' memory all have to be in symmetric memory; in vain:
 * through the buffers from the start. */
static int scatter_direct(perigee__arena *a, size_t longest) {
  if (!a->cma)
    PERIGEE_TRY(perigee__arena_await_all(a));
  return (a->cma ? perigee__shm_reach_one(a, a->call->root) : perigee__shm_reach(a))
             ? read_direct(a)
             : scatter_rest(a, 0, longest);
}

static int scatter_root(perigee__arena *a) {
  const perigee__coll_call *call = a->call;
  const perigee__block *own = &call->in_blocks[a->me];
  size_t longest = perigee__shm_largest(a, call->in_blocks);
  step now = {.at = 0, .most = small_share(a, longest)};
  bool inlined = perigee__shm_inline_blocks(a, call->in_blocks), direct = false;
  if (!inlined) {
    perigee__shm_announce(a, false, 0);
    bool segment = perigee__shm_open_blocks(a, call->in_blocks);
    direct = perigee__shm_lends(a, longest, segment);
    a->aux |= direct ? PERIGEE_SHM_DIRECT : now.most > 0 ? PERIGEE_SHM_SMALL : 0;
    if (direct)
      perigee__arena_lend(a);
  }
  if (!inlined && !direct && now.most > 0) {
    stage_first(a, perigee__arena_small_at(a, a->me, perigee__arena_epoch_after(a->epoch)), now);
  } else if (!inlined && !direct) {
    now.most = perigee__shm_share(a);
    PERIGEE_TRY(perigee__arena_room(a, PERIGEE_ARENA_BUFFER_ROOM));
    stage_first(a, perigee__arena_next_slot(a, a->me), now);
  }
  perigee__arena_give(a);
  PERIGEE_TRY(perigee__shm_check_own(a, &longest));
  perigee__shm_copy_out(a, call->out, own->ptr, own->bytes);
  if (direct)
    return scatter_direct(a, longest);
  if (inlined || longest <= now.most)
    return 0;
  PERIGEE_TRY(perigee__arena_await_all(a));
  return scatter_rest(a, now.most, longest);
}

static int scatter_leaf(perigee__arena *a) {
  const perigee__coll_call *call = a->call;
  size_t longest;
  (void)!perigee__shm_open_window(a, call->out, call->out_bytes, NULL,
                                  0); /* for perigee__shm_reach */
  perigee__arena_give(a);
  PERIGEE_TRY(perigee__arena_await(a, call->root));
  PERIGEE_TRY(perigee__shm_check_own(a, &longest));
  const perigee__arena_line *line = perigee__arena_line_of(a, call->root);
  step now = {.at = 0, .most = small_share(a, longest)};
  if (line->aux & PERIGEE_SHM_INLINE) {
    perigee__shm_copy(call->out, line->payload + (size_t)a->me * call->out_bytes, call->out_bytes);
    return 0;
  }
  if (line->aux & PERIGEE_SHM_DIRECT)
    return scatter_direct(a, longest);
  const char *buffer = perigee__arena_small_at(a, call->root, a->epoch);
  if (!(line->aux & PERIGEE_SHM_SMALL)) {
    now.most = perigee__shm_share(a);
    buffer = perigee__arena_slot_of(a, call->root, 0);
  }
  take_first(a, buffer, now);
  return scatter_rest(a, now.most, longest);
}

int perigee__shm_scatter(perigee__arena *a) {
  return a->me == a->call->root ? scatter_root(a) : scatter_leaf(a);
}
