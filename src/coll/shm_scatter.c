/*
 * Scatter: the root has a block for every rank.
 *
 * Blocks that fit all together travel in the root's publish line. Where the rules say so everybody copies its block from where it is, and the
 * root waits for that in one more meeting. Others go through the buffers:
 * The first piece of every block goes into a part of the root's own buffer (as in alltoall): before the first meeting nobody knows yet that
 * all others are in this collective, so nobody touches what is not his. From then on the root writes the next chunk of rank r's block
 * into the buffer of rank r, so that all buffers of the arena carry data: a buffer has one writer between two meetings whoever
 * owns it, which is all that the rule of reuse asks for. The root stages the next chunk while the others take the one before. As
 * many meetings as the largest block has pieces.
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

static void stage(const perigee__arena *a, step now) {
  if (a->me != a->call->root)
    return;
  for (int d = 1; d < a->n; d++) {
    int r = (a->me + d) % a->n;
    char *dst = now.at == 0 ? perigee__arena_next_slot(a, a->me) + (size_t)(d - 1) * now.most
                            : perigee__arena_next_slot(a, r);
    copy_piece(dst, &a->call->in_blocks[r], now);
  }
}

static void take(const perigee__arena *a, step now) {
  int root = a->call->root;
  if (a->me == root)
    return;
  size_t d = (size_t)((a->me - root + a->n) % a->n);
  const char *src = now.at == 0 ? perigee__arena_slot_of(a, root, 0) + (d - 1) * now.most
                                : perigee__arena_slot_of(a, a->me, 0);
  perigee__shm_copy_out(a, (char *)a->call->out + now.at, src,
                        perigee__shm_piece(a->call->out_bytes, now.at, now.most));
}

static int take_direct(perigee__arena *a) {
  const perigee__coll_call *call = a->call;
  bool root = a->me == call->root;
  if (!root)
    PERIGEE_TRY(perigee__shm_read_in(a, perigee__shm_window_of(a, call->root), call->root,
                                     call->out, perigee__shm_block_of(a, call->root, a->me),
                                     call->out_bytes));
  return perigee__shm_end(a, root);
}

/* How the root gives its blocks away; the others just say what they have room for. */
static void offer(perigee__arena *a, step now) {
  const perigee__coll_call *call = a->call;
  bool root = a->me == call->root;
  if (root && perigee__shm_inline_blocks(a, call->in_blocks))
    return;
  perigee__shm_announce(a, false, 0);
  bool segment = root ? perigee__shm_open_blocks(a, call->in_blocks)
                      : perigee__shm_open_window(a, call->out, call->out_bytes, NULL, 0);
  if (root && perigee__shm_lends(a, perigee__shm_largest(a, call->in_blocks), segment))
    a->aux |= PERIGEE_SHM_DIRECT;
  else
    stage(a, now);
}

int perigee__shm_scatter(perigee__arena *a) {
  const perigee__coll_call *call = a->call;
  step now = {.at = 0, .most = perigee__shm_share(a)};
  bool root = a->me == call->root;
  size_t most;
  offer(a, now);
  PERIGEE_TRY(perigee__arena_meet(a, NULL, NULL));
  PERIGEE_TRY(perigee__shm_check(a, &most));
  if (root)
    perigee__shm_copy_out(a, call->out, call->in_blocks[a->me].ptr, call->in_blocks[a->me].bytes);
  const perigee__arena_line *line = perigee__arena_line_of(a, call->root);
  if (line->aux & PERIGEE_SHM_INLINE) {
    if (!root)
      perigee__shm_copy(call->out, line->payload + (size_t)a->me * call->out_bytes,
                        call->out_bytes);
    return 0;
  }
  if (line->aux & PERIGEE_SHM_DIRECT) {
    if (perigee__shm_reach(a))
      return take_direct(a);
    stage(a, now); /* in vain: from the start */
    PERIGEE_TRY(perigee__arena_meet(a, NULL, NULL));
  }
  take(a, now);
  for (now = (step){now.most, a->table.copy_chunk}; now.at < most; now.at += now.most) {
    stage(a, now);
    PERIGEE_TRY(perigee__arena_meet(a, NULL, NULL));
    take(a, now);
  }
  return 0;
}
