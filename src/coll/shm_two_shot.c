/*
 * Allreduce and reduce of large vectors: every rank reduces one slice for all.
 *
 * Vocabulary: a chunk is what one set of buffers holds; the vector is cut into chunks of equal size. A slice is one rank's share of a
 * chunk; rank r owns slice r. For each chunk
 *   stage    every rank copies the slices it does not own into its buffer, where they would stand in the chunk
 *   reduce   after the meeting, the owner reads its slice from n - 1 buffers and from its own user buffer, in rank order, and
 *            stores the result into its buffer, where nothing was staged, and into its output
 *   take     after the next meeting, every rank (or the root alone) copies the other slices from their owners' buffers
 * Chunks overlap: between two meetings a rank reduces chunk k, takes chunk k - 1 and stages chunk k + 1, so that K chunks need
 * K + 1 meetings and nobody waits for a chunk while it could work on another. For K = 2, n = 2 (digits: chunk):
 *     stage 0 | reduce 0, stage 1 | reduce 1, take 0 | take 1           ( | is a meeting)
 * Three sets of buffers are in use at a time; BUFFERS is 4.
 * Slices are multiples of a cache line when the chunk is large enough, so that no line has two writers. When a chunk does not divide,
 * the last slices are shorter, or empty.
 * Cost per rank, N bytes: stage 2N(n-1)/n, reduce N(n+1)/n + N/n, take 2N(n-1)/n: about (5 - 2/n) N touched, of which the parts in
 * buffers are read from cache. A one-shot would touch (n + 3) N, a ring 8 to 10 N.
 */
#include "coll/shm_impl.h"

/* Bytes reduced at a time, so that the second store finds the result in the first-level cache. */
enum {
  HOT = 16 << 10
};

typedef struct two_shot {
  perigee__arena *a;
  const perigee__reduce_plan *plan;
  int root;            /* -1: all take */
  size_t count, chunk; /* elements: of the vector, of a chunk */
  size_t nchunks;
} two_shot;

typedef struct span {
  size_t at, count; /* elements, from the start of the chunk */
} span;

static size_t chunk_count(const two_shot *t, size_t k) {
  return perigee__shm_piece(t->count, k * t->chunk, t->chunk);
}

static span slice_of(const two_shot *t, size_t k, int rank) {
  size_t count = chunk_count(t, k), n = (size_t)t->a->n;
  size_t per_line = PERIGEE_CACHE_LINE / t->plan->size, per = (count + n - 1) / n;
  if (per >= 4 * per_line)
    per = (per + per_line - 1) / per_line * per_line;
  size_t at = (size_t)rank * per;
  return (span){.at = at < count ? at : count, .count = perigee__shm_piece(count, at, per)};
}

static void stage(const two_shot *t, size_t k) {
  perigee__arena *a = t->a;
  size_t size = t->plan->size, count = chunk_count(t, k);
  const char *in = (const char *)a->call->in + k * t->chunk * size;
  char *slot = perigee__arena_next_slot(a, a->me);
  span own = slice_of(t, k, a->me);
  size_t after = own.at + own.count;
  perigee__shm_copy(slot, in, own.at * size);
  perigee__shm_copy(slot + after * size, in + after * size, (count - after) * size);
}

static void reduce(const two_shot *t, size_t k) {
  perigee__arena *a = t->a;
  size_t size = t->plan->size, hot = HOT / size;
  span own = slice_of(t, k, a->me);
  bool keep = t->root < 0 || t->root == a->me;
  for (size_t done = 0; done < own.count; done += hot) {
    size_t count = perigee__shm_piece(own.count, done, hot);
    size_t in_chunk = (own.at + done) * size, in_vector = k * t->chunk * size + in_chunk;
    char *result = perigee__arena_slot_of(a, a->me, 0) + in_chunk;
    for (int r = 0; r < a->n; r++)
      a->srcs[r] = r == a->me ? (const char *)a->call->in + in_vector
                              : perigee__arena_slot_of(a, r, 0) + in_chunk;
    perigee__reduce_nary(t->plan, result, a->srcs, a->n, count);
    if (keep)
      perigee__shm_copy((char *)a->call->out + in_vector, result, count * size);
  }
}

/* age: how many meetings ago the chunk was staged. */
static void take(const two_shot *t, size_t k, uint32_t age) {
  perigee__arena *a = t->a;
  size_t size = t->plan->size;
  if (t->root >= 0 && t->root != a->me)
    return;
  char *out = (char *)a->call->out + k * t->chunk * size;
  for (int i = 1; i < a->n; i++) { /* from the next rank on: not all from the same one at a time */
    int r = (a->me + i) % a->n;
    span s = slice_of(t, k, r);
    perigee__shm_copy(out + s.at * size, perigee__arena_slot_of(a, r, age) + s.at * size,
                      s.count * size);
  }
}

int perigee__shm_two_shot(perigee__arena *a, const perigee__reduce_plan *plan, int root) {
  two_shot t = {.a = a, .plan = plan, .root = root, .count = a->call->count};
  size_t limit = a->table.two_shot_chunk / plan->size;
  t.nchunks = perigee__shm_pieces(t.count, limit);
  t.chunk = (t.count + t.nchunks - 1) / t.nchunks;
  stage(&t, 0);
  for (size_t k = 0; k < t.nchunks; k++) {
    PERIGEE_TRY(perigee__arena_meet(a, NULL, NULL));
    if (k == 0 && perigee__shm_again(a)) {
      stage(&t, 0);
      PERIGEE_TRY(perigee__arena_meet(a, NULL, NULL));
    }
    reduce(&t, k);
    if (k > 0)
      take(&t, k - 1, 1);
    if (k + 1 < t.nchunks)
      stage(&t, k + 1);
  }
  PERIGEE_TRY(perigee__arena_meet(a, NULL, NULL));
  take(&t, t.nchunks - 1, 1);
  return 0;
}
