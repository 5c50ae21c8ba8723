/*
 * Reductions that read every rank's input where it is.
 *
 *   push   all tensors in one symmetric segment: rank r reduces slice r from all inputs and stores the result into all outputs (the
 *          root's alone for reduce). 2N bytes touched per rank, which is the least there is; two meetings.
 *   pull   by system call: rank r reads slice r of the others' inputs piece by piece into its own buffers of the arena, which stay in
 *          cache, and reduces it into its own output; after a meeting it reads the other slices from their owners' outputs.
 *          (3 - 1/n) N bytes touched; three meetings. For reduce the root does it all, for 2 or 3 ranks.
 * In place works: slice r of any buffer is read and written by rank r alone until the second meeting.
 * Numeric: ranks in order 0..n-1 by the same kernel as everywhere.
 */
#include "coll/shm_impl.h"

/* Bytes: of a result that is stored to all outputs at a time, so that it is read back from the first-level cache; of what is pulled from
 * one rank at a time. */
enum {
  HOT = 8 << 10,
  PULL = 64 << 10
};

typedef struct direct {
  perigee__arena *a;
  const perigee__reduce_plan *plan;
  int root; /* -1: all get the result */
} direct;

typedef struct span {
  size_t at, bytes;
} span;

/* Slice of a rank, cut at cache lines. */
static span slice_of(const direct *d, int rank) {
  size_t bytes = d->a->call->count * d->plan->size, n = (size_t)d->a->n;
  size_t per =
      ((bytes + n - 1) / n + PERIGEE_CACHE_LINE - 1) / PERIGEE_CACHE_LINE * PERIGEE_CACHE_LINE;
  size_t at = (size_t)rank * per;
  return (span){.at = at < bytes ? at : bytes, .bytes = perigee__shm_piece(bytes, at, per)};
}

/* Of the first meeting, `age` meetings ago; 1 at most, as for buffers. */
static const perigee__shm_window *window(const direct *d, int rank, uint32_t age) {
  const perigee__arena *a = d->a;
  uint32_t epoch = (a->epoch - age) & PERIGEE_ARENA_EPOCHS;
  return (const perigee__shm_window *)(const void *)perigee__arena_line_at(a, rank, epoch)->payload;
}

/* Where the result for a rank goes, NULL when it gets none. */
static char *target(const direct *d, int rank) {
  if (d->root >= 0)
    return rank == d->root ? perigee__shm_in_at(d->a, window(d, rank, 0), rank) : NULL;
  return perigee__shm_out_at(d->a, window(d, rank, 0), rank);
}

static int push(const direct *d) {
  perigee__arena *a = d->a;
  span own = slice_of(d, a->me);
  int first = d->root >= 0 ? d->root : a->me;
  for (size_t done = 0; done < own.bytes; done += HOT) {
    size_t now = perigee__shm_piece(own.bytes, done, HOT), at = own.at + done;
    for (int r = 0; r < a->n; r++)
      a->srcs[r] = perigee__shm_in_at(a, window(d, r, 0), r) + at;
    char *result = target(d, first) + at;
    perigee__reduce_nary(d->plan, result, a->srcs, a->n, now / d->plan->size);
    for (int i = 1; i < a->n && d->root < 0; i++) {
      int r = (a->me + i) % a->n;
      perigee__shm_copy(target(d, r) + at, result, now);
    }
  }
  return perigee__shm_end(a, true);
}

/* out[at ..] := the reduction of `bytes` from there, of all inputs. */
static int pull_reduce(const direct *d, size_t from, size_t bytes) {
  perigee__arena *a = d->a;
  /* own buffers: out of use since all have come to the first meeting */
  char *scratch =
      a->base + a->layout.slots + (size_t)a->me * PERIGEE_ARENA_BUFFERS * a->buffer_bytes;
  size_t room = a->buffer_bytes * PERIGEE_ARENA_BUFFERS / (size_t)a->n / 16 * 16;
  size_t piece = room < PULL ? room : PULL;
  for (size_t done = 0; done < bytes; done += piece) {
    size_t now = perigee__shm_piece(bytes, done, piece), at = from + done;
    for (int i = 0; i < a->n; i++) {
      int r = (a->me + i) % a->n;
      a->srcs[r] = i == 0 ? (const char *)a->call->in + at : scratch + (size_t)i * room;
      if (i > 0)
        PERIGEE_TRY(perigee__shm_read_in(a, window(d, r, 0), r, scratch + (size_t)i * room,
                                         window(d, r, 0)->in + at, now));
    }
    perigee__reduce_nary(d->plan, (char *)a->call->out + at, a->srcs, a->n, now / d->plan->size);
  }
  return 0;
}

static int pull_all(const direct *d) {
  perigee__arena *a = d->a;
  span own = slice_of(d, a->me);
  PERIGEE_TRY(pull_reduce(d, own.at, own.bytes));
  PERIGEE_TRY(perigee__shm_intact(a));
  PERIGEE_TRY(perigee__arena_meet(a, NULL, NULL));
  for (int i = 1; i < a->n; i++) {
    int r = (a->me + i) % a->n;
    span s = slice_of(d, r);
    const perigee__shm_window *w = window(d, r, 1);
    PERIGEE_TRY(
        perigee__shm_read_out(a, w, r, (char *)a->call->out + s.at, w->out + s.at, s.bytes));
  }
  return perigee__shm_end(a, true);
}

static int pull_root(const direct *d) {
  perigee__arena *a = d->a;
  if (a->me == d->root)
    PERIGEE_TRY(pull_reduce(d, 0, a->call->count * d->plan->size));
  return perigee__shm_end(a, a->me != d->root);
}

/* Whether all tensors are where push can work. Alike on all ranks. */
static bool can_push(const direct *d) {
  const perigee__arena *a = d->a;
  if (!(a->aux_all & PERIGEE_SHM_DIRECT) || a->in.base == NULL)
    return false;
  if (d->root < 0)
    return a->out.base != NULL;
  const perigee__shm_window *w = perigee__shm_window_of(a, d->root);
  return w->out == w->in;
}

int perigee__shm_reduce_direct(perigee__arena *a, const perigee__reduce_plan *plan, int root,
                               bool pull, bool symmetric, bool *done_p) {
  const perigee__coll_call *call = a->call;
  const direct d = {.a = a, .plan = plan, .root = root};
  size_t bytes = call->count * plan->size;
  bool keeps = root < 0 || root == a->me;
  symmetric =
      perigee__shm_open_window(a, call->in, bytes, keeps ? call->out : NULL, keeps ? bytes : 0) &&
      symmetric;
  *done_p = false;
  if (!symmetric && !pull)
    return 0; /* this rank takes another path, and sees in its first meeting that others do not */
  a->aux = symmetric ? PERIGEE_SHM_DIRECT : 0;
  PERIGEE_TRY(perigee__arena_meet(a, NULL, NULL));
  (void)!perigee__shm_reach(a);
  *done_p = true;
  if (can_push(&d))
    return push(&d);
  if (pull)
    return root < 0 ? pull_all(&d) : pull_root(&d);
  *done_p = false;
  return 0;
}
