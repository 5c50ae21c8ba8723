/*
 * Reduce-scatter: every rank has a block for every rank, and each gets the reduction of those meant for it.
 *
 * The first half of a two-shot allreduce, with the buffers laid out as in alltoall: a rank stages a piece of every block but its own into n - 1
 * parts, and after the meeting reduces the piece of its own block from n - 1 buffers and its own user buffer, in rank order, into
 * its output, while the others stage the next. As many meetings as the largest block has pieces.
 * Cost for n blocks of M bytes: 2(n-1)M staged, (n+1)M reduced per rank.
 * Blocks that fit all together travel in the lines. In symmetric memory every rank reads the others' blocks where they are.
 * The blocks' counts must be the same on all ranks: they are announced and compared (ESHAPE).
 */
#include "coll/shm_impl.h"

/* Bytes of all blocks that fit into a line behind their count. */
enum {
  INLINE_MAX = PERIGEE_ARENA_INLINE - (int)sizeof(uint64_t)
};

typedef struct scattering {
  perigee__arena *a;
  perigee__reduce_plan plan;
  size_t part;  /* bytes of a part */
  size_t piece; /* elements that fit */
} scattering;

static void announce(perigee__arena *a) {
  const size_t *counts = a->call->counts;
  bool same = true;
  for (int r = 1; r < a->n; r++)
    same = same && counts[r] == counts[0];
  a->aux |= same ? PERIGEE_SHM_UNIFORM : 0;
  memcpy(perigee__arena_next_payload(a, sizeof(uint64_t)), &(uint64_t){counts[0]},
         sizeof(uint64_t));
  for (int r = 0; r < a->n && !same; r++)
    perigee__arena_next_sizes(a)[r] = counts[r];
}

static size_t announced(const perigee__arena *a, int rank, int block) {
  const perigee__arena_line *line = perigee__arena_line_of(a, rank);
  uint64_t count;
  memcpy(&count, line->payload, sizeof(count));
  return (size_t)(line->aux & PERIGEE_SHM_UNIFORM ? count
                                                  : perigee__arena_sizes_of(a, rank)[block]);
}

/* All ranks find a difference when there is one: each compares with its own counts. */
static int check(perigee__arena *a, size_t *most_p) {
  const size_t *counts = a->call->counts;
  size_t most = 0;
  for (int block = 0; block < a->n; block++) {
    most = counts[block] > most ? counts[block] : most;
    for (int r = 0; r < a->n; r++) {
      size_t theirs = announced(a, r, block);
      if (theirs == counts[block])
        continue;
      perigee__arena_error(a, PERIGEE_ESHAPE,
                           "block %d has %zu elements on rank %d, %zu on this rank", block, theirs,
                           r, counts[block]);
      perigee__error_add_rank(a->error, r);
      return perigee__arena_fail_group(a);
    }
  }
  *most_p = most;
  return 0;
}

static void stage(const scattering *s, size_t k) {
  const perigee__arena *a = s->a;
  size_t size = s->plan.size;
  char *slot = perigee__arena_next_slot(a, a->me);
  for (int d = 1; d < a->n; d++) {
    int r = (a->me + d) % a->n;
    perigee__shm_copy(slot + (size_t)(d - 1) * s->part,
                      (const char *)a->call->in_blocks[r].ptr + k * s->piece * size,
                      perigee__shm_piece(a->call->counts[r], k * s->piece, s->piece) * size);
  }
}

static void reduce(const scattering *s, size_t k) {
  perigee__arena *a = s->a;
  size_t at = k * s->piece * s->plan.size;
  size_t count = perigee__shm_piece(a->call->counts[a->me], k * s->piece, s->piece);
  if (count == 0)
    return;
  a->srcs[a->me] = (const char *)a->call->in_blocks[a->me].ptr + at;
  for (int d = 1; d < a->n; d++) {
    int r = (a->me - d + a->n) % a->n;
    a->srcs[r] = perigee__arena_slot_of(a, r, 0) + (size_t)(d - 1) * s->part;
  }
  perigee__reduce_nary(&s->plan, (char *)a->call->out + at, a->srcs, a->n, count);
}

/* Few bytes for everybody: they are in the lines, behind the count. */
static bool fits_line(const scattering *s) {
  const perigee__coll_call *call = s->a->call;
  size_t total = 0;
  for (int r = 0; r < s->a->n; r++)
    total += call->counts[r] <= INLINE_MAX ? call->counts[r] * s->plan.size : INLINE_MAX + 1;
  return total <= INLINE_MAX;
}

static int scatter_inline(scattering *s) {
  perigee__arena *a = s->a;
  const perigee__coll_call *call = a->call;
  unsigned char *at = perigee__arena_next_payload(a, PERIGEE_ARENA_INLINE) + sizeof(uint64_t);
  size_t most, before = 0;
  for (int r = 0; r < a->n; at += call->counts[r] * s->plan.size, r++)
    perigee__shm_copy(at, call->in_blocks[r].ptr, call->counts[r] * s->plan.size);
  PERIGEE_TRY(perigee__arena_meet(a, NULL, NULL));
  PERIGEE_TRY(check(a, &most));
  for (int r = 0; r < a->me; r++)
    before += call->counts[r] * s->plan.size;
  for (int r = 0; r < a->n; r++)
    a->srcs[r] = perigee__arena_line_of(a, r)->payload + sizeof(uint64_t) + before;
  if (call->counts[a->me] > 0)
    perigee__reduce_nary(&s->plan, call->out, a->srcs, a->n, call->counts[a->me]);
  return 0;
}

/* All inputs in one symmetric segment: read where they are. out may be the own block. */
static int scatter_symmetric(scattering *s) {
  perigee__arena *a = s->a;
  for (int r = 0; r < a->n; r++) {
    const perigee__shm_window *w = perigee__shm_window_of(a, r);
    a->srcs[r] = perigee__shm_in_at(a, w, r) + (perigee__shm_block_of(a, r, a->me) - w->in);
  }
  if (a->call->counts[a->me] > 0)
    perigee__reduce_nary(&s->plan, a->call->out, a->srcs, a->n, a->call->counts[a->me]);
  return perigee__shm_end(a, true);
}

/* The blocks of a call with their bytes, which the call gives as counts. */
static bool open_blocks(scattering *s) {
  perigee__arena *a = s->a;
  size_t most = 0;
  for (int r = 0; r < a->n; r++)
    most = a->call->counts[r] > most ? a->call->counts[r] : most;
  return perigee__shm_path(a, most * s->plan.size * (size_t)a->n, true) == PERIGEE_PATH_SYMMETRIC &&
         perigee__shm_open_blocks(a, a->call->in_blocks);
}

static int scatter_staged(scattering *s, size_t most) {
  perigee__arena *a = s->a;
  size_t pieces = perigee__shm_pieces(most, s->piece);
  for (size_t k = 1; k < pieces; k++) {
    stage(s, k);
    PERIGEE_TRY(perigee__arena_meet(a, NULL, NULL));
    reduce(s, k);
  }
  return 0;
}

int perigee__shm_reduce_scatter(perigee__arena *a) {
  scattering s = {.a = a, .part = perigee__shm_share(a)};
  size_t most = 0;
  PERIGEE_TRY(perigee__shm_plan(a, &s.plan));
  s.piece = s.part / s.plan.size;
  announce(a);
  if (fits_line(&s))
    return scatter_inline(&s);
  if (open_blocks(&s))
    a->aux |= PERIGEE_SHM_DIRECT;
  else
    stage(&s, 0);
  PERIGEE_TRY(perigee__arena_meet(a, NULL, NULL));
  PERIGEE_TRY(check(a, &most));
  if (perigee__shm_again(a)) {
    if ((a->aux_all & PERIGEE_SHM_DIRECT) && (perigee__shm_reach(a), a->in.base != NULL))
      return scatter_symmetric(&s);
    stage(&s, 0);
    PERIGEE_TRY(perigee__arena_meet(a, NULL, NULL));
  }
  reduce(&s, 0);
  return scatter_staged(&s, most);
}
