/* Reduce kernels against the plain definition of every operation, element by element, in every variant. */
#include "tensor/testing.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/attr.h"
#include "tensor/dtype.h"
#include "tensor/half.h"
#include "tensor/reduce.h"
#include "tensor/simd.h"

enum {
  MAX_N = 9,
  MAX_COUNT = 1000,
  KINDS = PERIGEE_REDOP_CUSTOM,
  GUARD = 64
};

static const size_t counts[] = {0, 1, 3, 7, 8, 15, 16, 17, 31, 33, MAX_COUNT};
static const double factor = 0.3; /* no exact f32, no exact f64 */

/* ---- the definition --------------------------------------------------------------------------------- */

#define ELEMENT(_type, _k) ((const _type *)srcs[_k])[i]

#define FOLD_FLOAT(_real, _type, _get, _put)                                                       \
  {                                                                                                \
    volatile _real product; /* no product and sum in one rounding */                               \
    _real acc = _get(ELEMENT(_type, 0));                                                           \
    if (kind == PERIGEE_REDOP_PREMUL_SUM)                                                          \
      acc = acc * (_real)factor;                                                                   \
    for (int k = 1; k < n; k++) {                                                                  \
      const _real x = _get(ELEMENT(_type, k));                                                     \
      if (kind == PERIGEE_REDOP_SUM || kind == PERIGEE_REDOP_AVG) {                                \
        acc = acc + x;                                                                             \
      } else if (kind == PERIGEE_REDOP_PREMUL_SUM) {                                               \
        product = x * (_real)factor;                                                               \
        acc = acc + product;                                                                       \
      } else if (kind == PERIGEE_REDOP_PRODUCT) {                                                  \
        acc = acc * x;                                                                             \
      } else if (isnan(acc) || isnan(x)) {                                                         \
        acc = isnan(acc) ? acc : x;                                                                \
      } else if (kind == PERIGEE_REDOP_MIN) {                                                      \
        acc = acc < x ? acc : x;                                                                   \
      } else {                                                                                     \
        acc = acc > x ? acc : x;                                                                   \
      }                                                                                            \
    }                                                                                              \
    if (kind == PERIGEE_REDOP_AVG)                                                                 \
      acc = acc / (_real)ncontrib;                                                                 \
    const _type result = _put(acc);                                                                \
    memcpy(out, &result, sizeof(result));                                                          \
    return;                                                                                        \
  }

/* In 64 bits, cut to the width after every step. */
#define FOLD_INT(_type, _wide)                                                                     \
  {                                                                                                \
    _type acc = ELEMENT(_type, 0);                                                                 \
    for (int k = 1; k < n; k++) {                                                                  \
      const _type x = ELEMENT(_type, k);                                                           \
      const uint64_t a = (uint64_t)acc, b = (uint64_t)x;                                           \
      const bool keep = kind == PERIGEE_REDOP_MIN ? acc < x : acc > x;                             \
      if (kind == PERIGEE_REDOP_SUM || kind == PERIGEE_REDOP_AVG)                                  \
        acc = (_type)(a + b);                                                                      \
      else if (kind == PERIGEE_REDOP_PRODUCT)                                                      \
        acc = (_type)(a * b);                                                                      \
      else if (kind == PERIGEE_REDOP_BAND)                                                         \
        acc = (_type)(a & b);                                                                      \
      else if (kind == PERIGEE_REDOP_BOR)                                                          \
        acc = (_type)(a | b);                                                                      \
      else if (kind == PERIGEE_REDOP_BXOR)                                                         \
        acc = (_type)(a ^ b);                                                                      \
      else                                                                                         \
        acc = keep ? acc : x;                                                                      \
    }                                                                                              \
    if (kind == PERIGEE_REDOP_AVG)                                                                 \
      acc = (_type)((_wide)acc / (_wide)ncontrib);                                                 \
    memcpy(out, &acc, sizeof(acc));                                                                \
    return;                                                                                        \
  }

static void define_bool(int kind, const void *const *srcs, int n, size_t i, void *out) {
  int trues = 0;
  for (int k = 0; k < n; k++)
    trues += ELEMENT(uint8_t, k) != 0;
  const bool is_and =
      kind == PERIGEE_REDOP_PRODUCT || kind == PERIGEE_REDOP_MIN || kind == PERIGEE_REDOP_BAND;
  *(uint8_t *)out = is_and ? trues == n : kind == PERIGEE_REDOP_BXOR ? trues % 2 == 1 : trues > 0;
}

#define SAME(_x) (_x)

/* Result element i of a dtype that is not complex. */
static void define(perigee_dtype dtype, int kind, int ncontrib, const void *const *srcs, int n,
                   size_t i, void *out) {
  switch (dtype) {
  case PERIGEE_F16:
    FOLD_FLOAT(float, uint16_t, perigee__f16_to_f32, perigee__f32_to_f16)
  case PERIGEE_BF16:
    FOLD_FLOAT(float, uint16_t, perigee__bf16_to_f32, perigee__f32_to_bf16)
  case PERIGEE_F32:
  case PERIGEE_C64:
    FOLD_FLOAT(float, float, SAME, SAME)
  case PERIGEE_F64:
  case PERIGEE_C128:
    FOLD_FLOAT(double, double, SAME, SAME)
  case PERIGEE_I8:
    FOLD_INT(int8_t, int64_t)
  case PERIGEE_U8:
    FOLD_INT(uint8_t, uint64_t)
  case PERIGEE_I16:
    FOLD_INT(int16_t, int64_t)
  case PERIGEE_U16:
    FOLD_INT(uint16_t, uint64_t)
  case PERIGEE_I32:
    FOLD_INT(int32_t, int64_t)
  case PERIGEE_U32:
    FOLD_INT(uint32_t, uint64_t)
  case PERIGEE_I64:
    FOLD_INT(int64_t, int64_t)
  case PERIGEE_U64:
    FOLD_INT(uint64_t, uint64_t)
  case PERIGEE_BOOL:
    define_bool(kind, srcs, n, i, out);
    return;
  case PERIGEE_DTYPE_COUNT:
  default:
    fail();
  }
}

static bool is_nan_element(perigee_dtype dtype, const void *p) {
  uint16_t h;
  float f;
  double d;
  switch ((int)dtype) {
  case PERIGEE_F16:
    memcpy(&h, p, sizeof(h));
    return isnan(perigee__f16_to_f32(h));
  case PERIGEE_BF16:
    memcpy(&h, p, sizeof(h));
    return isnan(perigee__bf16_to_f32(h));
  case PERIGEE_F32:
  case PERIGEE_C64:
    memcpy(&f, p, sizeof(f));
    return isnan(f);
  case PERIGEE_F64:
  case PERIGEE_C128:
    memcpy(&d, p, sizeof(d));
    return isnan(d);
  default:
    return false;
  }
}

/* ---- inputs ------------------------------------------------------------------------------------------- */

/* Components per element, and bytes of one. */
static size_t parts(perigee_dtype dtype) {
  return dtype == PERIGEE_C64 || dtype == PERIGEE_C128 ? 2 : 1;
}
static size_t part_size(perigee_dtype dtype) { return perigee_dtype_size(dtype) / parts(dtype); }

/* Ordinary numbers, and now and then zero, infinities, NaN, subnormals and random bits. */
static double some_float(uint64_t *seed) {
  static const double special[] = {
      0.0, -0.0, (double)INFINITY, -(double)INFINITY, (double)NAN, 1e-40, -3e-8, 6e4, 3e38, -1e300};
  const uint64_t r = test_random(seed);
  if (r % 16 == 0)
    return special[(r >> 8) % PERIGEE_COUNT(special)];
  return ((double)(r >> 11) * 0x1p-53 - 0.5) * ldexp(1.0, (int)(r % 7));
}

static void fill(perigee_dtype dtype, void *p, size_t count, uint64_t *seed) {
  const size_t components = count * parts(dtype);
  for (size_t i = 0; i < components; i++) {
    const double x = some_float(seed);
    const uint64_t bits = test_random(seed) >> (test_random(seed) % 3 == 0 ? 60 : 0);
    switch ((int)dtype) {
    case PERIGEE_F16:
      ((uint16_t *)p)[i] = perigee__f32_to_f16((float)x);
      break;
    case PERIGEE_BF16:
      ((uint16_t *)p)[i] = perigee__f32_to_bf16((float)x);
      break;
    case PERIGEE_F32:
    case PERIGEE_C64:
      ((float *)p)[i] = (float)x;
      break;
    case PERIGEE_F64:
    case PERIGEE_C128:
      ((double *)p)[i] = x;
      break;
    case PERIGEE_BOOL: /* any byte is a bool */
      ((uint8_t *)p)[i] = (uint8_t)((bits & 1) != 0 ? bits >> 8 | 1 : 0);
      break;
    default:
      memcpy((char *)p + i * part_size(dtype), &bits, part_size(dtype));
    }
  }
}

/* Inputs of one case, each in a block of its very size, so that a sanitizer sees any byte read beside it. */
typedef struct inputs {
  void *v[MAX_N];
  size_t bytes;
  int n;
} inputs;

static void inputs_make(inputs *in, perigee_dtype dtype, int n, size_t count, uint64_t *seed) {
  in->n = n;
  in->bytes = count * perigee_dtype_size(dtype);
  for (int k = 0; k < n; k++) {
    in->v[k] = malloc(in->bytes);
    fill(dtype, in->v[k], count, seed);
  }
}

static void inputs_free(inputs *in) {
  for (int k = 0; k < in->n; k++)
    free(in->v[k]);
}

static const void *const *inputs_of(const inputs *in) { return (const void *const *)in->v; }

/* ---- checks ------------------------------------------------------------------------------------------- */

/* Same bits; of two NaNs any may survive. */
static void check_same(const char *what, perigee_dtype dtype, int kind, int n, size_t count,
                       const void *got, const void *expected) {
  const size_t size = part_size(dtype);
  for (size_t i = 0; i < count * parts(dtype); i++) {
    const char *a = (const char *)got + i * size, *b = (const char *)expected + i * size;
    if (memcmp(a, b, size) == 0 || (is_nan_element(dtype, a) && is_nan_element(dtype, b)))
      continue;
    fail_msg("%s: %s kind %d n %d count %zu differs at %zu (%s)", what, perigee_dtype_name(dtype),
             kind, n, count, i, perigee__simd_name(perigee__simd_level()));
  }
}

static void define_all(perigee_dtype dtype, int kind, int ncontrib, const inputs *in, size_t count,
                       void *out) {
  for (size_t i = 0; i < count * parts(dtype); i++)
    define(dtype, kind, ncontrib, inputs_of(in), in->n, i, (char *)out + i * part_size(dtype));
}

static void check_nary(const perigee__reduce_plan *p, const inputs *in, size_t count,
                       const void *expected) {
  unsigned char *dst = malloc(in->bytes + 2 * GUARD);
  memset(dst, 0x5a, in->bytes + 2 * GUARD);
  perigee__reduce_nary(p, dst + GUARD, inputs_of(in), in->n, count);
  check_same("nary", p->dtype, (int)p->kind, in->n, count, dst + GUARD, expected);
  for (size_t k = 0; k < GUARD; k++) {
    assert_int_equal(dst[k], 0x5a);
    assert_int_equal(dst[GUARD + in->bytes + k], 0x5a);
  }
  free(dst);
}

/* dst in place of each input in turn. */
static void check_alias(const perigee__reduce_plan *p, inputs *in, size_t count,
                        const void *expected) {
  void *saved = malloc(in->bytes);
  for (int k = 0; k < in->n; k++) {
    if (in->bytes > 0)
      memcpy(saved, in->v[k], in->bytes);
    perigee__reduce_nary(p, in->v[k], inputs_of(in), in->n, count);
    check_same("alias", p->dtype, (int)p->kind, in->n, count, in->v[k], expected);
    if (in->bytes > 0)
      memcpy(in->v[k], saved, in->bytes);
  }
  free(saved);
}

/* load, add ..., finish: the same fold, so the same bits also for the rounding types. */
static void check_partial(const perigee__reduce_plan *p, const inputs *in, size_t count,
                          const void *expected) {
  void *acc = malloc(count * perigee__reduce_acc_size(p)), *dst = malloc(in->bytes);
  perigee__reduce_load(p, acc, in->v[0], count);
  for (int k = 1; k < in->n; k++)
    perigee__reduce_add(p, acc, in->v[k], count);
  perigee__reduce_finish(p, dst, acc, count);
  check_same("partial", p->dtype, (int)p->kind, in->n, count, dst, expected);
  if (perigee__reduce_acc_size(p) == perigee_dtype_size(p->dtype)) { /* may finish in place */
    perigee__reduce_finish(p, acc, acc, count);
    check_same("in place", p->dtype, (int)p->kind, in->n, count, acc, expected);
  }
  free(acc);
  free(dst);
}

static void check_case(perigee_dtype dtype, int kind, int n, size_t count, uint64_t *seed) {
  const int ncontrib = n + (int)(count % 3); /* not always the number of inputs */
  inputs in;
  inputs_make(&in, dtype, n, count, seed);
  void *expected = malloc(in.bytes);
  define_all(dtype, kind, ncontrib, &in, count, expected);
  for (int level = 0; level < PERIGEE__SIMD_COUNT; level++) {
    perigee__reduce_plan p;
    perigee__simd_force(level);
    assert_int_equal(perigee__reduce_init(&p, dtype, (perigee_redop_kind)kind, factor, ncontrib),
                     0);
    check_nary(&p, &in, count, expected);
    check_alias(&p, &in, count, expected);
    check_partial(&p, &in, count, expected);
  }
  perigee__simd_force(-1);
  free(expected);
  inputs_free(&in);
}

/* ---- tests -------------------------------------------------------------------------------------------- */

static void test_every_kernel(void **state) {
  (void)state;
  uint64_t seed = 42;
  int cases = 0;
  for (int dtype = 0; dtype < PERIGEE_DTYPE_COUNT; dtype++)
    for (int kind = 0; kind < KINDS; kind++) {
      if (!perigee__redop_defined(kind, (perigee_dtype)dtype))
        continue;
      for (int n = 1; n <= MAX_N; n++)
        for (size_t c = 0; c < PERIGEE_COUNT(counts); c++, cases++)
          check_case((perigee_dtype)dtype, kind, n, counts[c], &seed);
    }
  /* 4 floats x 6, 8 integers x 8, bool 7, 2 complex x 3 */
  assert_int_equal(cases, (24 + 64 + 7 + 6) * MAX_N * (int)PERIGEE_COUNT(counts));
}

/* Every length up to several vectors, and sources and results that are aligned to nothing. */
static void test_lengths_unaligned(void **state) {
  (void)state;
  uint64_t seed = 3;
  static const perigee_dtype dtypes[] = {PERIGEE_F32, PERIGEE_BF16, PERIGEE_F16, PERIGEE_I8,
                                         PERIGEE_C128};
  for (size_t d = 0; d < PERIGEE_COUNT(dtypes); d++)
    for (size_t count = 0; count < 300; count++) {
      inputs in;
      inputs_make(&in, dtypes[d], 3, count, &seed);
      char *expected = malloc(in.bytes + 1), *moved[3], *dst = malloc(in.bytes + 1);
      for (int k = 0; k < 3; k++) {
        moved[k] = malloc(in.bytes + 1);
        if (in.bytes > 0)
          memcpy(moved[k] + 1, in.v[k], in.bytes);
      }
      define_all(dtypes[d], PERIGEE_REDOP_SUM, 3, &in, count, expected);
      const void *srcs[3] = {moved[0] + 1, moved[1] + 1, moved[2] + 1};
      for (int level = 0; level < PERIGEE__SIMD_COUNT; level++) {
        perigee__reduce_plan p;
        perigee__simd_force(level);
        assert_int_equal(perigee__reduce_init(&p, dtypes[d], PERIGEE_REDOP_SUM, 0.0, 3), 0);
        perigee__reduce_nary(&p, dst + 1, srcs, 3, count);
        check_same("unaligned", dtypes[d], PERIGEE_REDOP_SUM, 3, count, dst + 1, expected);
      }
      for (int k = 0; k < 3; k++)
        free(moved[k]);
      free(dst);
      free(expected);
      inputs_free(&in);
    }
  perigee__simd_force(-1);
}

/* Small whole numbers make every order of every operation exact: accumulators may be joined in any shape. */
static void test_merge(void **state) {
  (void)state;
  enum {
    COUNT = 37,
    N = 6
  };
  for (int dtype = 0; dtype < PERIGEE_DTYPE_COUNT; dtype++)
    for (int kind = 0; kind < KINDS; kind++) {
      if (!perigee__redop_defined(kind, (perigee_dtype)dtype))
        continue;
      const size_t size = perigee_dtype_size((perigee_dtype)dtype);
      perigee_tensor *t[N];
      const void *srcs[N];
      for (int k = 0; k < N; k++) {
        t[k] = test_tensor((perigee_dtype)dtype, COUNT, 0);
        for (int i = 0; i < COUNT; i++)
          test_set(t[k], i, scalar_int((i * 7 + k * 5) % 4));
        srcs[k] = t[k]->data;
      }
      for (int level = 0; level < PERIGEE__SIMD_COUNT; level++) {
        perigee__reduce_plan p;
        perigee__simd_force(level);
        assert_int_equal(
            perigee__reduce_init(&p, (perigee_dtype)dtype, (perigee_redop_kind)kind, 0.5, 4), 0);
        const size_t acc_size = perigee__reduce_acc_size(&p);
        char *a = malloc(COUNT * acc_size), *b = malloc(COUNT * acc_size);
        char *got = malloc(COUNT * size), *expected = malloc(COUNT * size);
        perigee__reduce_nary(&p, expected, srcs, N, COUNT);
        perigee__reduce_load(&p, a, srcs[0], COUNT);
        perigee__reduce_add(&p, a, srcs[1], COUNT);
        perigee__reduce_load(&p, b, srcs[2], COUNT);
        for (int k = 3; k < N; k++)
          perigee__reduce_add(&p, b, srcs[k], COUNT);
        perigee__reduce_add_acc(&p, a, b, COUNT);
        perigee__reduce_finish(&p, got, a, COUNT);
        check_same("merge", p.dtype, kind, N, COUNT, got, expected);
        perigee__reduce_pair(&p, a, srcs[0], srcs[1], COUNT);
        perigee__reduce_merge(&p, b, a, b, COUNT);
        perigee__reduce_finish(&p, got, b, COUNT);
        check_same("pair and merge", p.dtype, kind, N, COUNT, got, expected);
        free(a);
        free(b);
        free(got);
        free(expected);
      }
      for (int k = 0; k < N; k++)
        perigee_tensor_unref(t[k]);
    }
  perigee__simd_force(-1);
}

/* Values worked out by hand, so that the definition above is not the only witness. */
static void test_known_values(void **state) {
  (void)state;
  perigee__reduce_plan p;
  const int8_t a8[] = {-7, 127, -128}, b8[] = {0, 1, -1};
  const void *i8s[] = {a8, b8};
  int8_t r8[3];
  assert_int_equal(perigee__reduce_init(&p, PERIGEE_I8, PERIGEE_REDOP_AVG, 0.0, 2), 0);
  perigee__reduce_nary(&p, r8, i8s, 2, 3);
  assert_int_equal(r8[0], -3);  /* toward zero */
  assert_int_equal(r8[1], -64); /* 127 + 1 wraps to -128 */
  assert_int_equal(r8[2], 63);  /* -129 wraps to 127 */

  const uint8_t a1[] = {0, 2, 255, 4}, b1[] = {0, 0, 1, 8};
  const void *bools[] = {a1, b1};
  uint8_t r1[4];
  assert_int_equal(perigee__reduce_init(&p, PERIGEE_BOOL, PERIGEE_REDOP_BXOR, 0.0, 2), 0);
  perigee__reduce_nary(&p, r1, bools, 2, 4);
  assert_memory_equal(r1, ((uint8_t[]){0, 1, 0, 0}), 4);
  perigee__reduce_nary(&p, r1, bools, 1, 4);
  assert_memory_equal(r1, ((uint8_t[]){0, 1, 1, 1}), 4);

  /* 2048 + 1 + 1 in f16: 2048 when each step rounds, 2050 when only the end does */
  const uint16_t big = perigee__f32_to_f16(2048.0F), one = perigee__f32_to_f16(1.0F);
  const void *halves[] = {&big, &one, &one};
  uint16_t half;
  assert_int_equal(perigee__reduce_init(&p, PERIGEE_F16, PERIGEE_REDOP_SUM, 0.0, 3), 0);
  perigee__reduce_nary(&p, &half, halves, 3, 1);
  assert_int_equal(half, perigee__f32_to_f16(2050.0F));

  const float nan = NAN, f = 1.0F;
  const void *first[] = {&nan, &f}, *second[] = {&f, &nan};
  float r;
  for (int kind = PERIGEE_REDOP_MIN; kind <= PERIGEE_REDOP_MAX; kind++) {
    assert_int_equal(perigee__reduce_init(&p, PERIGEE_F32, (perigee_redop_kind)kind, 0.0, 2), 0);
    perigee__reduce_nary(&p, &r, first, 2, 1);
    assert_true(isnan(r));
    perigee__reduce_nary(&p, &r, second, 2, 1);
    assert_true(isnan(r));
  }
}

/* The rule itself, and refusals that say what was wrong. */
static void test_defined(void **state) {
  (void)state;
  static const char *const rows[PERIGEE_DTYPE_COUNT] = {
      /* sum avg product min max band bor bxor premul custom */
      [PERIGEE_F16] = "1111100011",  [PERIGEE_BF16] = "1111100011", [PERIGEE_F32] = "1111100011",
      [PERIGEE_F64] = "1111100011",  [PERIGEE_I8] = "1111111101",   [PERIGEE_U8] = "1111111101",
      [PERIGEE_I16] = "1111111101",  [PERIGEE_U16] = "1111111101",  [PERIGEE_I32] = "1111111101",
      [PERIGEE_U32] = "1111111101",  [PERIGEE_I64] = "1111111101",  [PERIGEE_U64] = "1111111101",
      [PERIGEE_BOOL] = "1011111101", [PERIGEE_C64] = "1100000011",  [PERIGEE_C128] = "1100000011"};
  perigee__reduce_plan p;
  for (int dtype = 0; dtype < PERIGEE_DTYPE_COUNT; dtype++)
    for (int kind = 0; kind < PERIGEE_REDOP_COUNT; kind++) {
      const bool defined = rows[dtype][kind] == '1';
      assert_int_equal(perigee__redop_defined(kind, (perigee_dtype)dtype), defined);
      const int rc =
          perigee__reduce_init(&p, (perigee_dtype)dtype, (perigee_redop_kind)kind, 1.0, 1);
      assert_int_equal(rc, !defined                       ? PERIGEE_EDTYPE
                           : kind == PERIGEE_REDOP_CUSTOM ? PERIGEE_ENOTSUP
                                                          : 0);
    }
  assert_false(perigee__redop_defined(-1, PERIGEE_F32));
  assert_false(perigee__redop_defined(PERIGEE_REDOP_COUNT, PERIGEE_F32));
  assert_false(perigee__redop_defined(PERIGEE_REDOP_SUM, PERIGEE_DTYPE_COUNT));
  assert_fails(perigee__reduce_init(&p, PERIGEE_BOOL, PERIGEE_REDOP_AVG, 0.0, 2), PERIGEE_EDTYPE,
               "avg is not defined for bool");
  assert_fails(perigee__reduce_init(&p, PERIGEE_C64, PERIGEE_REDOP_MAX, 0.0, 2), PERIGEE_EDTYPE,
               "max is not defined for c64");
  assert_fails(perigee__reduce_init(&p, PERIGEE_F32, (perigee_redop_kind)77, 0.0, 2),
               PERIGEE_EINVAL, "77");
  assert_fails(perigee__reduce_init(&p, (perigee_dtype)15, PERIGEE_REDOP_SUM, 0.0, 2),
               PERIGEE_EDTYPE, "15");
  assert_fails(perigee__reduce_init(&p, PERIGEE_F32, PERIGEE_REDOP_AVG, 0.0, 0), PERIGEE_EINVAL,
               "0 contributions");
}

static void test_force(void **state) {
  (void)state;
  const perigee__simd best = perigee__simd_best();
  assert_int_equal(perigee__simd_force(PERIGEE__SIMD_BASE), PERIGEE__SIMD_BASE);
  assert_int_equal(perigee__simd_level(), PERIGEE__SIMD_BASE);
  assert_int_equal(perigee__simd_force(PERIGEE__SIMD_COUNT), best);
  assert_int_equal(perigee__simd_force(-1), best);
  print_message("best variant here: %s\n", perigee__simd_name(best));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_every_kernel), cmocka_unit_test(test_lengths_unaligned),
      cmocka_unit_test(test_merge),        cmocka_unit_test(test_known_values),
      cmocka_unit_test(test_defined),      cmocka_unit_test(test_force),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
