/* Every collective gives what its definition says: all kinds, group sizes, lengths around the seams, dtypes, modes. */
#include "coll/shm_testing_ops.h"

#ifdef PERIGEE_HOSTILE
enum {
  LONG = 3001
}; /* thousands of chunks already */
#else
enum {
  LONG = 100003
};
#endif

typedef struct flavour {
  perigee_dtype dtype;
  perigee_redop_kind redop;
} flavour;

/* The first is used with every length, the others with those that matter to alignment. */
static const flavour flavours[] = {
    {PERIGEE_F32, PERIGEE_REDOP_SUM},     {PERIGEE_F32, PERIGEE_REDOP_AVG},
    {PERIGEE_BF16, PERIGEE_REDOP_SUM},    {PERIGEE_F16, PERIGEE_REDOP_PREMUL_SUM},
    {PERIGEE_F64, PERIGEE_REDOP_PRODUCT}, {PERIGEE_I32, PERIGEE_REDOP_MAX},
    {PERIGEE_U8, PERIGEE_REDOP_BXOR},     {PERIGEE_I64, PERIGEE_REDOP_MIN},
    {PERIGEE_BOOL, PERIGEE_REDOP_BOR},    {PERIGEE_C128, PERIGEE_REDOP_SUM},
};

static void try_flavour(member *m, const flavour *f, size_t numel) {
  for (int kind = 0; kind < KINDS; kind++)
    for (int in_place = 0; in_place < 2; in_place++) {
      what w = {.kind = (perigee__coll_kind)kind,
                .dtype = f->dtype,
                .redop = f->redop,
                .numel = numel,
                .root = (int)((numel + (size_t)kind) % (size_t)m->n),
                .in_place = in_place != 0};
      if (!(kind_reduces(w.kind) || f == flavours || f->dtype == PERIGEE_U8))
        continue; /* bytes are bytes */
      rank_try(m, &w);
    }
}

static void all_values(member *m) {
  size_t n = (size_t)m->n, lengths[] = {0, 1, n - 1, n, n + 1, 12, 13, 1000, LONG};
  for (size_t l = 0; l < PERIGEE_COUNT(lengths); l++)
    for (size_t f = 0; f < PERIGEE_COUNT(flavours); f++)
      if (f == 0 || lengths[l] == n + 1 || lengths[l] == 1000)
        try_flavour(m, &flavours[f], lengths[l]);
}

/* Blocks whose sizes differ by rank, some of them empty, some in the line, some in buffers, some read where they are, some longer than a
 * buffer. */
static void uneven_values(member *m) {
  static const perigee__coll_kind kinds[] = {PERIGEE_COLL_ALLGATHER, PERIGEE_COLL_GATHER,
                                             PERIGEE_COLL_SCATTER, PERIGEE_COLL_REDUCE_SCATTER,
                                             PERIGEE_COLL_ALLTOALL};
  static const size_t lengths[] = {0, 1, 5, 300, 1500, LONG / 3};
  for (size_t k = 0; k < PERIGEE_COUNT(kinds); k++)
    for (size_t l = 0; l < PERIGEE_COUNT(lengths); l++)
      for (int in_place = 0; in_place < 2; in_place++) {
        what w = {.kind = kinds[k],
                  .dtype = PERIGEE_F32,
                  .numel = lengths[l],
                  .uneven = true,
                  .root = (int)(l + k) % m->n,
                  .in_place = in_place != 0};
        rank_try(m, &w);
      }
}

static void with_sizes(rank_fn fn) {
  static const int sizes[] = {1, 2, 3, 4, 5, 8};
  for (size_t i = 0; i < PERIGEE_COUNT(sizes); i++)
    for (int mode = PERIGEE_ARENA_SPIN; mode <= PERIGEE_ARENA_PARK; mode++) {
      world *w = world_open(sizes[i], (perigee__arena_mode)mode, 0);
      ranks_run(w, fn);
      world_close(w);
    }
}

/* What each forced path does, and what it falls back to, on the lengths that matter. */
static void path_values(member *m) {
  size_t n = (size_t)m->n, lengths[] = {0, 1, n + 1, 12, 1000, LONG / 4};
  for (size_t l = 0; l < PERIGEE_COUNT(lengths); l++)
    for (size_t f = 0; f < PERIGEE_COUNT(flavours); f++)
      if (f == 0 || lengths[l] == n + 1)
        try_flavour(m, &flavours[f], lengths[l]);
  uneven_values(m);
}

static void with_paths(rank_fn fn) {
  for (int n = 2; n <= 4; n++)
    for (int mode = PERIGEE_ARENA_SPIN; mode <= PERIGEE_ARENA_PARK; mode++)
      for (int path = PERIGEE_ARENA_PATH_AUTO; path < PERIGEE_ARENA_PATH_COUNT; path++) {
        world *w = world_open(n, (perigee__arena_mode)mode, 0);
        world_path(w, (perigee__arena_path)path);
        if (path == PERIGEE_ARENA_PATH_SYMMETRIC || path == PERIGEE_ARENA_PATH_AUTO)
          world_symmetric(w, (size_t)64 << 20);
        ranks_run(w, fn);
        world_close(w);
      }
}

static void test_paths(void **state) {
  (void)state;
  with_paths(path_values);
}

static void test_values(void **state) {
  (void)state;
  with_sizes(all_values);
}

static void test_uneven(void **state) {
  (void)state;
  with_sizes(uneven_values);
}

/* Sums whose result depends on their order: all ranks, paths and modes must have the bits of the fold over ranks 0, 1, 2 ... */
static void rank_order(member *m) {
  static const size_t lengths[] = {3, 12, 40, 5000, 40000};
  for (size_t l = 0; l < PERIGEE_COUNT(lengths); l++) {
    size_t numel = lengths[l];
    float *in = malloc(numel * sizeof(float)), *out = malloc(numel * sizeof(float));
    for (size_t i = 0; i < numel; i++)
      in[i] = 1.0f / (float)(m->me * 7 + 3 + (int)(i % 101));
    perigee__coll_call call = {.kind = PERIGEE_COLL_ALLREDUCE,
                               .op = PERIGEE_OP_ALLREDUCE,
                               .dtype = PERIGEE_F32,
                               .redop = PERIGEE_REDOP_SUM,
                               .in = in,
                               .out = out,
                               .count = numel,
                               .fp = 77};
    RANK_CHECK(m, rank_call(m, &call) == 0, "%s", m->error.message);
    for (size_t i = 0; i < numel; i++) {
      float sum = 1.0f / (float)(3 + (int)(i % 101));
      for (int r = 1; r < m->n; r++)
        sum += 1.0f / (float)(r * 7 + 3 + (int)(i % 101));
      RANK_CHECK(m, memcmp(&out[i], &sum, sizeof(sum)) == 0, "element %zu of %zu: %a not %a", i,
                 numel, (double)out[i], (double)sum);
    }
    free(in);
    free(out);
  }
}

static void test_rank_order(void **state) {
  (void)state;
  with_sizes(rank_order);
  with_paths(rank_order);
}

/* An operation that is not defined for the dtype is refused on every rank, and the group goes on. */
static void undefined(member *m) {
  float x = 1;
  perigee__coll_call call = {.kind = PERIGEE_COLL_ALLREDUCE,
                             .op = PERIGEE_OP_ALLREDUCE,
                             .dtype = PERIGEE_F32,
                             .redop = PERIGEE_REDOP_BXOR,
                             .in = &x,
                             .out = &x,
                             .count = 1,
                             .fp = 5};
  RANK_CHECK(m, rank_call(m, &call) == PERIGEE_EDTYPE, "%d", m->error.code);
  RANK_CHECK(m, m->error.code == PERIGEE_EDTYPE && m->error.rank == m->me, "%s", m->error.message);
  RANK_CHECK(m, rank_barrier(m) == 0, "%s", m->error.message);
}

static void test_undefined(void **state) {
  (void)state;
  with_sizes(undefined);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_values),    cmocka_unit_test(test_uneven),
      cmocka_unit_test(test_paths),     cmocka_unit_test(test_rank_order),
      cmocka_unit_test(test_undefined),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
