/*
 * Every kind of collective, by every algorithm, for several group sizes and lengths, gives what its definition says: the same
 * bits on every rank, in place or not, and nothing beyond the buffers.
 *
 * Values are small integers or powers of two, so that every order of summation gives the exact result.
 */
#include "coll/net_testing.h"

#include <math.h>

#include "tensor/half.h"
#include "tensor/reduce.h"

enum {
  CANARY = 32,
  CANARY_BYTE = 0xa5
};

/* Rules that force each algorithm; in the last ones the built-in choice. */
static const struct {
  const char *rules;
  size_t segment, max_elems;
  int ranks_per_host;
} forced[] = {
    {"allreduce:0-:bruck;broadcast:0-:bruck;reduce:0-:bruck;allgather:0-:bruck;"
     "reduce_scatter:0-:bruck",
     65536, 0, 0},
    {"allreduce:0-:recdbl;broadcast:0-:binomial;reduce:0-:binomial;allgather:0-:direct;"
     "reduce_scatter:0-:direct",
     4096, 0, 0},
    {"allreduce:0-:oneshot;broadcast:0-:chain;reduce:0-:chain;allgather:0-:ring;"
     "reduce_scatter:0-:ring",
     4096, 0, 0},
    {"allreduce:0-:direct;reduce:0-:direct;allgather:0-300:bruck,300-700:ring,700-:direct", 4096, 0,
     0},
    {"allreduce:0-:ring;alltoall:0-:bruck", 4096, 0, 0},
    {"allreduce+reduce:0-:halving", 4096, 0, 0},
    {"allreduce+reduce:0-:halving;alltoall:0-300:bruck,300-:direct", 512, 0, 0},
    {"allreduce:0-:hier", 4096, 0, 2},
    {"allreduce:0-:hier", 256, 0, 3},
    {"allreduce:0-:hier", 65536, 0, 4},
    {"", 65536, 0, 0},
};

/* ---- the definition ---------------------------------------------------------------------------- */

typedef struct reduction {
  perigee_dtype dtype;
  perigee_redop_kind redop;
} reduction;

static const reduction reductions[] = {
    {PERIGEE_F32, PERIGEE_REDOP_SUM},       {PERIGEE_F16, PERIGEE_REDOP_SUM},
    {PERIGEE_BF16, PERIGEE_REDOP_AVG},      {PERIGEE_F64, PERIGEE_REDOP_PREMUL_SUM},
    {PERIGEE_F16, PERIGEE_REDOP_AVG},       {PERIGEE_I32, PERIGEE_REDOP_PRODUCT},
    {PERIGEE_I8, PERIGEE_REDOP_AVG},        {PERIGEE_U8, PERIGEE_REDOP_SUM},
    {PERIGEE_U16, PERIGEE_REDOP_MAX},       {PERIGEE_I64, PERIGEE_REDOP_MIN},
    {PERIGEE_U32, PERIGEE_REDOP_BAND},      {PERIGEE_I16, PERIGEE_REDOP_BXOR},
    {PERIGEE_U64, PERIGEE_REDOP_BOR},       {PERIGEE_BOOL, PERIGEE_REDOP_SUM},
    {PERIGEE_C64, PERIGEE_REDOP_SUM},       {PERIGEE_C128, PERIGEE_REDOP_AVG},
    {PERIGEE_F32, PERIGEE_REDOP_PRODUCT},   {PERIGEE_BF16, PERIGEE_REDOP_MIN},
    {PERIGEE_F16, PERIGEE_REDOP_PREMUL_SUM}};

static bool is_float(perigee_dtype d) {
  return d == PERIGEE_F16 || d == PERIGEE_BF16 || d == PERIGEE_F32 || d == PERIGEE_F64 ||
         d == PERIGEE_C64 || d == PERIGEE_C128;
}
static bool is_unsigned(perigee_dtype d) {
  return d == PERIGEE_U8 || d == PERIGEE_U16 || d == PERIGEE_U32 || d == PERIGEE_U64 ||
         d == PERIGEE_BOOL;
}
/* Complex elements are two numbers. */
static size_t lanes_of(perigee_dtype d) { return d == PERIGEE_C64 || d == PERIGEE_C128 ? 2 : 1; }

/* Number i of a rank's vector. */
static double value_of(reduction what, int rank, size_t i) {
  size_t mix = (size_t)rank * 7 + i * 3;
  if (what.dtype == PERIGEE_BOOL)
    return (size_t)rank + i % 3 == 1;
  if (what.redop == PERIGEE_REDOP_PRODUCT)
    return is_float(what.dtype) ? ldexp(1, (int)(mix % 3) - 1) : (double)(1 + mix % 3);
  return (double)(mix % 13) - (is_unsigned(what.dtype) ? 0 : 6);
}

static void store(perigee_dtype dtype, void *at, size_t i, double v) {
  switch (dtype) {
#define CASE(_NAME, _type)                                                                         \
  case PERIGEE_##_NAME:                                                                            \
    ((_type *)at)[i] = (_type)v;                                                                   \
    break
    CASE(F32, float);
    CASE(C64, float);
    CASE(F64, double);
    CASE(C128, double);
    CASE(I8, int8_t);
    CASE(U8, uint8_t);
    CASE(I16, int16_t);
    CASE(U16, uint16_t);
    CASE(I32, int32_t);
    CASE(U32, uint32_t);
    CASE(I64, int64_t);
    CASE(U64, uint64_t);
    CASE(BOOL, uint8_t);
#undef CASE
  case PERIGEE_F16:
    ((uint16_t *)at)[i] = perigee__f32_to_f16((float)v);
    break;
  default:
    ((uint16_t *)at)[i] = perigee__f32_to_bf16((float)v);
  }
}

/* Numbers are small enough for exact results, but for sums of 8-bit integers: those wrap. */
static double wrapped(perigee_dtype dtype, double v) {
  return dtype == PERIGEE_U8 ? (double)((int64_t)v & 0xff) : v;
}

static double combine(reduction what, double a, double b) {
  switch (what.redop) {
  case PERIGEE_REDOP_PRODUCT:
    return a * b;
  case PERIGEE_REDOP_MIN:
    return a < b ? a : b;
  case PERIGEE_REDOP_MAX:
    return a > b ? a : b;
  case PERIGEE_REDOP_BAND:
    return (double)((int64_t)a & (int64_t)b);
  case PERIGEE_REDOP_BOR:
    return (double)((int64_t)a | (int64_t)b);
  case PERIGEE_REDOP_BXOR:
    return (double)((int64_t)a ^ (int64_t)b);
  default:
    return what.dtype == PERIGEE_BOOL ? (double)(a != 0 || b != 0) : wrapped(what.dtype, a + b);
  }
}

/* Number i of the result. */
static double result_of(reduction what, int n, size_t i) {
  double factor = what.redop == PERIGEE_REDOP_PREMUL_SUM ? 0.5 : 1;
  double v = factor * value_of(what, 0, i);
  for (int r = 1; r < n; r++)
    v = combine(what, v, factor * value_of(what, r, i));
  if (what.redop != PERIGEE_REDOP_AVG)
    return v;
  if (what.dtype == PERIGEE_F64 || what.dtype == PERIGEE_C128)
    return v / n;
  return is_float(what.dtype) ? (double)((float)v / (float)n) : trunc(v / n);
}

/* ---- buffers ----------------------------------------------------------------------------------- */

typedef struct guarded {
  unsigned char *at;
  size_t bytes;
} guarded;

static guarded guarded_make(size_t bytes) {
  guarded g = {malloc(bytes + CANARY), bytes};
  if (g.at == NULL)
    abort();
  memset(g.at, 0x11, bytes);
  memset(g.at + bytes, CANARY_BYTE, CANARY);
  return g;
}

static bool guarded_drop(guarded g) {
  bool whole = true;
  for (size_t i = 0; i < CANARY; i++)
    whole &= g.at[g.bytes + i] == CANARY_BYTE;
  free(g.at);
  return whole;
}

static guarded vector_of(reduction what, int rank, size_t first, size_t count) {
  size_t lanes = lanes_of(what.dtype);
  guarded g = guarded_make(count * perigee_dtype_size(what.dtype));
  for (size_t i = 0; i < count * lanes; i++)
    store(what.dtype, g.at, i, value_of(what, rank, first * lanes + i));
  return g;
}

static guarded result_vector(reduction what, int n, size_t first, size_t count) {
  size_t lanes = lanes_of(what.dtype);
  guarded g = guarded_make(count * perigee_dtype_size(what.dtype));
  for (size_t i = 0; i < count * lanes; i++)
    store(what.dtype, g.at, i, result_of(what, n, first * lanes + i));
  return g;
}

/* Byte i of what rank `from` has for rank `to`. */
static unsigned char byte_of(int from, int to, size_t i) {
  return (unsigned char)(from * 31 + to * 17 + 1 + (int)(i * 7 % 251));
}

static guarded block_of(int from, int to, size_t bytes) {
  guarded g = guarded_make(bytes);
  for (size_t i = 0; i < bytes; i++)
    g.at[i] = byte_of(from, to, i);
  return g;
}

static bool block_is(const perigee__block *b, int from, int to) {
  const unsigned char *at = b->ptr;
  for (size_t i = 0; i < b->bytes; i++)
    if (at[i] != byte_of(from, to, i))
      return false;
  return true;
}

/* ---- one call of each kind ----------------------------------------------------------------------- */

typedef struct shape {
  reduction what;
  size_t numel;
  int root;
  bool in_place;
} shape;

static perigee__coll_call reducing(const shape *s, perigee__coll_kind kind, int op, int n) {
  return (perigee__coll_call){.kind = kind,
                              .op = op,
                              .dtype = s->what.dtype,
                              .redop = s->what.redop,
                              .factor = 0.5,
                              .ncontrib = n,
                              .root = s->root,
                              .count = s->numel};
}

#define SHOW(_what, _r, _s)                                                                        \
  "%s %s[%zu] redop %d root %d%s: %s", _what, perigee_dtype_name((_s)->what.dtype), (_s)->numel,   \
      (int)(_s)->what.redop, (_s)->root, (_s)->in_place ? " in place" : "", (_r)->error.message

static void test_allreduce(test_rank *r, const shape *s) {
  perigee__coll_call call = reducing(s, PERIGEE_COLL_ALLREDUCE, PERIGEE_OP_ALLREDUCE, r->n);
  guarded in = vector_of(s->what, r->me, 0, s->numel),
          want = result_vector(s->what, r->n, 0, s->numel);
  guarded out = s->in_place ? in : guarded_make(in.bytes);
  call.in = in.at;
  call.out = out.at;
  int rc = rank_call(
      r, &call,
      test_fp(PERIGEE_OP_ALLREDUCE, (int)s->what.dtype, (int)s->what.redop, -1, s->numel));
  EXPECT(r, rc == 0, SHOW("allreduce", r, s));
  EXPECT(r, memcmp(out.at, want.at, want.bytes) == 0, SHOW("allreduce", r, s));
  EXPECT(r, guarded_drop(out) && guarded_drop(want), SHOW("allreduce", r, s));
  if (!s->in_place)
    EXPECT(r, guarded_drop(in), SHOW("allreduce", r, s));
}

static void test_reduce(test_rank *r, const shape *s) {
  perigee__coll_call call = reducing(s, PERIGEE_COLL_REDUCE, PERIGEE_OP_REDUCE, r->n);
  guarded in = vector_of(s->what, r->me, 0, s->numel),
          want = result_vector(s->what, r->n, 0, s->numel);
  guarded out = s->in_place ? in : guarded_make(in.bytes);
  call.in = in.at;
  call.out = r->me == s->root ? out.at : NULL;
  int rc = rank_call(
      r, &call,
      test_fp(PERIGEE_OP_REDUCE, (int)s->what.dtype, (int)s->what.redop, s->root, s->numel));
  EXPECT(r, rc == 0, SHOW("reduce", r, s));
  if (r->me == s->root)
    EXPECT(r, memcmp(out.at, want.at, want.bytes) == 0, SHOW("reduce", r, s));
  EXPECT(r, guarded_drop(out) && guarded_drop(want), SHOW("reduce", r, s));
  if (!s->in_place)
    EXPECT(r, guarded_drop(in), SHOW("reduce", r, s));
}

/* Elements of block r: even ones, or (odd lengths) uneven and some empty. */
static size_t block_count(size_t numel, int n, int r) {
  size_t each = numel / (size_t)n;
  return numel % 2 == 0 ? each : (size_t)r % 3 == 1 ? 0 : each + (size_t)(r * 5);
}

static void test_reduce_scatter(test_rank *r, const shape *s) {
  perigee__coll_call call =
      reducing(s, PERIGEE_COLL_REDUCE_SCATTER, PERIGEE_OP_REDUCE_SCATTER, r->n);
  guarded ins[RANKS_MAX];
  perigee__block blocks[RANKS_MAX];
  size_t counts[RANKS_MAX], first = 0, mine = 0;
  for (int i = 0; i < r->n; i++) {
    counts[i] = block_count(s->numel, r->n, i);
    ins[i] = vector_of(s->what, r->me, first, counts[i]);
    blocks[i] = (perigee__block){ins[i].at, ins[i].bytes};
    if (i == r->me)
      mine = first;
    first += counts[i];
  }
  guarded want = result_vector(s->what, r->n, mine, counts[r->me]);
  guarded out = s->in_place ? ins[r->me] : guarded_make(want.bytes);
  call.in_blocks = blocks;
  call.counts = counts;
  call.out = out.at;
  int rc = rank_call(
      r, &call,
      test_fp(PERIGEE_OP_REDUCE_SCATTER, (int)s->what.dtype, (int)s->what.redop, -1, s->numel));
  EXPECT(r, rc == 0, SHOW("reduce_scatter", r, s));
  EXPECT(r, memcmp(out.at, want.at, want.bytes) == 0, SHOW("reduce_scatter", r, s));
  EXPECT(r, guarded_drop(want) && (s->in_place || guarded_drop(out)), SHOW("reduce_scatter", r, s));
  for (int i = 0; i < r->n; i++)
    EXPECT(r, guarded_drop(ins[i]), SHOW("reduce_scatter", r, s));
}

static void test_broadcast(test_rank *r, const shape *s) {
  guarded out = r->me == s->root ? block_of(s->root, 0, s->numel) : guarded_make(s->numel);
  perigee__coll_call call = {.kind = PERIGEE_COLL_BROADCAST,
                             .op = PERIGEE_OP_BROADCAST,
                             .root = s->root,
                             .out = out.at,
                             .bytes = s->numel};
  int rc = rank_call(r, &call, test_fp(PERIGEE_OP_BROADCAST, PERIGEE_U8, -1, s->root, s->numel));
  perigee__block whole = {out.at, out.bytes};
  EXPECT(r, rc == 0, SHOW("broadcast", r, s));
  EXPECT(r, block_is(&whole, s->root, 0), SHOW("broadcast", r, s));
  EXPECT(r, guarded_drop(out), SHOW("broadcast", r, s));
}

/* Blocks of a rank towards all others, sizes depend on both ends. */
static size_t block_bytes(size_t numel, int from, int to) {
  return numel == 0 ? 0 : numel % 2 == 0 ? numel : numel * (size_t)(1 + (from + 2 * to) % 3) / 2;
}

static void test_allgather(test_rank *r, const shape *s) {
  guarded outs[RANKS_MAX];
  perigee__block blocks[RANKS_MAX];
  for (int i = 0; i < r->n; i++) {
    outs[i] = guarded_make(block_bytes(s->numel, i, 0));
    blocks[i] = (perigee__block){outs[i].at, outs[i].bytes};
  }
  guarded in = block_of(r->me, 0, block_bytes(s->numel, r->me, 0));
  if (s->in_place)
    memcpy(outs[r->me].at, in.at, in.bytes);
  perigee__coll_call call = {.kind = PERIGEE_COLL_ALLGATHER,
                             .op = PERIGEE_OP_ALLGATHER,
                             .in = s->in_place ? outs[r->me].at : in.at,
                             .in_bytes = in.bytes,
                             .out_blocks = blocks};
  int rc = rank_call(r, &call, test_fp(PERIGEE_OP_ALLGATHER, PERIGEE_U8, -1, -1, 0));
  EXPECT(r, rc == 0, SHOW("allgather", r, s));
  for (int i = 0; i < r->n; i++) {
    EXPECT(r, block_is(&blocks[i], i, 0), SHOW("allgather", r, s));
    EXPECT(r, guarded_drop(outs[i]), SHOW("allgather", r, s));
  }
  EXPECT(r, guarded_drop(in), SHOW("allgather", r, s));
}

static void test_gather(test_rank *r, const shape *s) {
  guarded outs[RANKS_MAX];
  perigee__block blocks[RANKS_MAX];
  bool root = r->me == s->root;
  for (int i = 0; root && i < r->n; i++) {
    outs[i] = guarded_make(block_bytes(s->numel, i, s->root));
    blocks[i] = (perigee__block){outs[i].at, outs[i].bytes};
  }
  guarded in = block_of(r->me, s->root, block_bytes(s->numel, r->me, s->root));
  perigee__coll_call call = {.kind = PERIGEE_COLL_GATHER,
                             .op = PERIGEE_OP_GATHER,
                             .root = s->root,
                             .in = in.at,
                             .in_bytes = in.bytes,
                             .out_blocks = root ? blocks : NULL};
  int rc = rank_call(r, &call, test_fp(PERIGEE_OP_GATHER, PERIGEE_U8, -1, s->root, 0));
  EXPECT(r, rc == 0, SHOW("gather", r, s));
  for (int i = 0; root && i < r->n; i++) {
    EXPECT(r, block_is(&blocks[i], i, s->root), SHOW("gather", r, s));
    EXPECT(r, guarded_drop(outs[i]), SHOW("gather", r, s));
  }
  EXPECT(r, guarded_drop(in), SHOW("gather", r, s));
}

static void test_scatter(test_rank *r, const shape *s) {
  guarded ins[RANKS_MAX];
  perigee__block blocks[RANKS_MAX];
  bool root = r->me == s->root;
  for (int i = 0; root && i < r->n; i++) {
    ins[i] = block_of(s->root, i, block_bytes(s->numel, s->root, i));
    blocks[i] = (perigee__block){ins[i].at, ins[i].bytes};
  }
  guarded out = guarded_make(block_bytes(s->numel, s->root, r->me));
  perigee__coll_call call = {.kind = PERIGEE_COLL_SCATTER,
                             .op = PERIGEE_OP_SCATTER,
                             .root = s->root,
                             .in_blocks = root ? blocks : NULL,
                             .out = out.at,
                             .out_bytes = out.bytes};
  int rc = rank_call(r, &call, test_fp(PERIGEE_OP_SCATTER, PERIGEE_U8, -1, s->root, 0));
  perigee__block got = {out.at, out.bytes};
  EXPECT(r, rc == 0, SHOW("scatter", r, s));
  EXPECT(r, block_is(&got, s->root, r->me), SHOW("scatter", r, s));
  EXPECT(r, guarded_drop(out), SHOW("scatter", r, s));
  for (int i = 0; root && i < r->n; i++)
    EXPECT(r, guarded_drop(ins[i]), SHOW("scatter", r, s));
}

static void test_alltoall(test_rank *r, const shape *s) {
  guarded ins[RANKS_MAX], outs[RANKS_MAX];
  perigee__block in_blocks[RANKS_MAX], out_blocks[RANKS_MAX];
  for (int i = 0; i < r->n; i++) {
    ins[i] = block_of(r->me, i, block_bytes(s->numel, r->me, i));
    outs[i] = guarded_make(block_bytes(s->numel, i, r->me));
    in_blocks[i] = (perigee__block){ins[i].at, ins[i].bytes};
    out_blocks[i] = (perigee__block){outs[i].at, outs[i].bytes};
  }
  perigee__coll_call call = {.kind = PERIGEE_COLL_ALLTOALL,
                             .op = PERIGEE_OP_ALLTOALL,
                             .in_blocks = in_blocks,
                             .out_blocks = out_blocks};
  int rc = rank_call(r, &call, test_fp(PERIGEE_OP_ALLTOALL, PERIGEE_U8, -1, -1, 0));
  EXPECT(r, rc == 0, SHOW("alltoall", r, s));
  for (int i = 0; i < r->n; i++) {
    EXPECT(r, block_is(&out_blocks[i], i, r->me), SHOW("alltoall", r, s));
    EXPECT(r, guarded_drop(ins[i]) && guarded_drop(outs[i]), SHOW("alltoall", r, s));
  }
}

static void test_barrier(test_rank *r, const shape *s) {
  perigee__coll_call call = {.kind = PERIGEE_COLL_BARRIER, .op = PERIGEE_OP_BARRIER};
  EXPECT(r, rank_call(r, &call, test_fp(PERIGEE_OP_BARRIER, -1, -1, -1, 0)) == 0,
         SHOW("barrier", r, s));
}

static void (*const all_kinds[])(test_rank *r, const shape *s) = {
    test_allreduce, test_reduce,  test_reduce_scatter, test_broadcast, test_allgather,
    test_gather,    test_scatter, test_alltoall,       test_barrier};

/* ---- the matrix -------------------------------------------------------------------------------- */

static bool defined(reduction what) { return perigee__redop_defined((int)what.redop, what.dtype); }

static void run_numel(test_rank *r, size_t numel, size_t nreductions) {
  shape s = {.numel = numel};
  for (size_t k = 0; k < nreductions; k++) {
    s.what = reductions[(numel + k) % PERIGEE_COUNT(reductions)];
    if (!defined(s.what))
      continue;
    s.root = (int)(k % (size_t)r->n);
    s.in_place = k % 2 == 0;
    for (int kind = 0; kind < 3; kind++)
      all_kinds[kind](r, &s);
  }
  for (int root = 0; root<r->n; root += r->n> 4 ? 3 : 1) {
    s.root = root;
    s.in_place = root % 2 == 0;
    for (size_t kind = 3; kind < PERIGEE_COUNT(all_kinds); kind++)
      all_kinds[kind](r, &s);
  }
}

static void matrix(test_rank *r) {
  const size_t n = (size_t)r->n, small[] = {0, 1, n - 1, n, n + 1, 1000, 4097};
  rank_join(r, 1);
  for (size_t i = 0; i < PERIGEE_COUNT(small); i++)
    run_numel(r, small[i], PERIGEE_COUNT(reductions));
  run_numel(r, 100003, 2);
  rank_leave(r);
}

static void run_matrix(int n, perigee__transport transport, size_t which) {
  perigee__tuning tuning = {.segment = forced[which].segment,
                            .segment_max_elems = forced[which].max_elems,
                            .ranks_per_host = forced[which].ranks_per_host};
  assert_int_equal(perigee__select_parse(&tuning.select, forced[which].rules), 0);
  assert_int_equal(perigee__select_parse(&tuning.select, perigee__select_builtin), 0);
  perigee__tuning_set(&tuning);
  test_world w;
  world_open(&w, n, transport);
  w.over_rings = transport == PERIGEE_TRANSPORT_SHM;
  world_run(&w, matrix, NULL);
  world_close(&w);
  perigee__tuning_set(NULL);
}

static void matrix_of(int n) {
  for (size_t which = 0; which < PERIGEE_COUNT(forced); which++)
    run_matrix(n, PERIGEE_TRANSPORT_TCP, which);
}

static void alone(void **state) {
  (void)state;
  run_matrix(1, PERIGEE_TRANSPORT_TCP, 0);
}
static void two_ranks(void **state) {
  (void)state;
  matrix_of(2);
}
static void three_ranks(void **state) {
  (void)state;
  matrix_of(3);
}
static void four_ranks(void **state) {
  (void)state;
  matrix_of(4);
}
static void five_ranks(void **state) {
  (void)state;
  matrix_of(5);
}
static void eight_ranks(void **state) {
  (void)state;
  matrix_of(8);
}

static void over_rings(void **state) {
  (void)state;
  for (size_t which = 0; which < PERIGEE_COUNT(forced); which++)
    run_matrix(which % 2 == 0 ? 4 : 3, PERIGEE_TRANSPORT_SHM, which);
}

/* ---- segments of three elements ------------------------------------------------------------------ */

static void tiny_segments(test_rank *r) {
  static const size_t numels[] = {1, 2, 7, 100, 513};
  rank_join(r, 1);
  for (size_t i = 0; i < PERIGEE_COUNT(numels); i++)
    run_numel(r, numels[i], 6);
  rank_leave(r);
}

static void many_segments(void **state) {
  (void)state;
  for (size_t which = 1; which < PERIGEE_COUNT(forced); which++)
    for (int n = 2; n <= 5; n += which % 2 == 0 ? 1 : 2) {
      perigee__tuning tuning = {
          .segment = 65536, .segment_max_elems = 3, .ranks_per_host = forced[which].ranks_per_host};
      assert_int_equal(perigee__select_parse(&tuning.select, forced[which].rules), 0);
      assert_int_equal(perigee__select_parse(&tuning.select, perigee__select_builtin), 0);
      perigee__tuning_set(&tuning);
      test_world w;
      world_open(&w, n, PERIGEE_TRANSPORT_TCP);
      world_run(&w, tiny_segments, NULL);
      world_close(&w);
      perigee__tuning_set(NULL);
    }
}

/* ---- spare scratch ------------------------------------------------------------------------------- */

/* It is there after the first call that needed it, the second one uses it, and what is too large is not kept. */
static void uses_spare(test_rank *r) {
  enum {
    COUNT = 100000,
    HUGE = 2000000
  };
  perigee__net_spare spare = {NULL, 0};
  float *data = calloc(HUGE, sizeof(*data));
  EXPECT(r, data != NULL, "memory");
  rank_join(r, 1);
  perigee__coll_call call = {.kind = PERIGEE_COLL_ALLREDUCE,
                             .op = PERIGEE_OP_ALLREDUCE,
                             .dtype = PERIGEE_F32,
                             .redop = PERIGEE_REDOP_SUM,
                             .ncontrib = r->n,
                             .in = data,
                             .out = data};
  static const size_t counts[] = {COUNT, COUNT, HUGE, COUNT};
  const unsigned char *first = NULL;
  for (size_t i = 0; i < PERIGEE_COUNT(counts); i++) {
    call.count = counts[i];
    for (size_t k = 0; k < counts[i]; k++)
      data[k] = (float)(k % 100) + (float)r->me;
    r->spare = &spare;
    int rc = rank_call(
        r, &call, test_fp(PERIGEE_OP_ALLREDUCE, PERIGEE_F32, PERIGEE_REDOP_SUM, -1, counts[i]));
    EXPECT(r, rc == 0, "allreduce: %s", r->error.message);
    float others = (float)(r->n * (r->n - 1) / 2);
    EXPECT(r, data[counts[i] - 1] == (float)(r->n * 99) + others, "%g",
           (double)data[counts[i] - 1]);
    if (i == 0)
      first = spare.block;
    EXPECT(r, spare.block != NULL && spare.block == first, "another block in call %zu", i);
    EXPECT(r, spare.bytes >= COUNT * sizeof(float) && spare.bytes <= (size_t)2 << 20, "%zu bytes",
           spare.bytes);
  }
  rank_leave(r);
  free(spare.block);
  free(data);
}

static void spare_scratch(void **state) {
  (void)state;
  perigee__tuning tuning = {.segment = 65536};
  assert_int_equal(perigee__select_parse(&tuning.select, "allreduce:0-:recdbl"), 0);
  assert_int_equal(perigee__select_parse(&tuning.select, perigee__select_builtin), 0);
  perigee__tuning_set(&tuning);
  test_world w;
  world_open(&w, 4, PERIGEE_TRANSPORT_TCP);
  w.over_rings = true;
  world_run(&w, uses_spare, NULL);
  world_close(&w);
  perigee__tuning_set(NULL);
}

/* ---- random sequences ---------------------------------------------------------------------------- */

static uint64_t next_random(uint64_t *state) {
  *state = perigee__hash_mix(*state, 1);
  return *state;
}

/* The same sequence on all ranks, with pauses that differ. */
static void random_calls(test_rank *r) {
  uint64_t seed = *(const uint64_t *)r->arg, own = seed + 1 + (uint64_t)r->me;
  rank_join(r, 1);
  for (int i = 0; i < 300; i++) {
    uint64_t x = next_random(&seed);
    shape s = {.numel = (x >> 8) % (x % 7 == 0 ? 50000 : 300),
               .root = (int)((x >> 32) % (uint64_t)r->n),
               .in_place = (x >> 40 & 1) != 0,
               .what = reductions[(x >> 48) % PERIGEE_COUNT(reductions)]};
    if (!defined(s.what))
      s.what = reductions[0];
    if (next_random(&own) % 50 == 0)
      perigee__sleep_ns((int64_t)(next_random(&own) % 1000000));
    all_kinds[x % PERIGEE_COUNT(all_kinds)](r, &s);
  }
  rank_leave(r);
}

static void random_sequences(void **state) {
  (void)state;
  uint64_t seed = 20240607;
  for (int n = 2; n <= 6; n++) {
    test_world w;
    world_open(&w, n, PERIGEE_TRANSPORT_TCP);
    world_run(&w, random_calls, &seed);
    world_close(&w);
    seed++;
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(alone),         cmocka_unit_test(two_ranks),
      cmocka_unit_test(three_ranks),   cmocka_unit_test(four_ranks),
      cmocka_unit_test(five_ranks),    cmocka_unit_test(eight_ranks),
      cmocka_unit_test(over_rings),    cmocka_unit_test(many_segments),
      cmocka_unit_test(spare_scratch), cmocka_unit_test(random_sequences)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
