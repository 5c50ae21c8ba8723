#include "tensor/reduce.h"

#include <string.h>

#include "base/assert.h"
#include "base/error.h"
#include "tensor/copy.h"
#include "tensor/dtype.h"
#include "tensor/half.h"
#include "tensor/reduce_table.h"

const perigee__reduce_table *perigee__reduce_table_now(void) {
#if defined(__x86_64__)
  switch (perigee__simd_level()) {
  case PERIGEE__SIMD_AVX512:
    return &perigee__reduce_avx512;
  case PERIGEE__SIMD_AVX2:
    return &perigee__reduce_avx2;
  default:
    return &perigee__reduce_base;
  }
#else
  return &perigee__reduce_base;
#endif
}

/* ---- which operation on which dtype --------------------------------------------------------------- */

#define OP(_NAME) (1U << PERIGEE_REDOP_##_NAME)
#define BITWISE (OP(BAND) | OP(BOR) | OP(BXOR))
#define ORDERED (OP(SUM) | OP(PRODUCT) | OP(MIN) | OP(MAX) | OP(CUSTOM))

/* By class of the dtype. */
static const unsigned defined[] = {
    [PERIGEE_SCALAR_FLOAT] = ORDERED | OP(AVG) | OP(PREMUL_SUM),
    [PERIGEE_SCALAR_INT] = ORDERED | OP(AVG) | BITWISE,
    [PERIGEE_SCALAR_UINT] = ORDERED | OP(AVG) | BITWISE,
    [PERIGEE_SCALAR_BOOL] = ORDERED | BITWISE,
    [PERIGEE_SCALAR_COMPLEX] = OP(SUM) | OP(AVG) | OP(PREMUL_SUM) | OP(CUSTOM),
};

bool perigee__redop_defined(int kind, perigee_dtype dtype) {
  return kind >= 0 && kind < (int)PERIGEE_REDOP_COUNT && perigee__dtype_valid((int)dtype) &&
         (defined[perigee__dtype_class(dtype)] >> kind & 1) != 0;
}

static const char *kind_name(int kind) {
  static const char *const names[PERIGEE_REDOP_COUNT] = {
#define XX(_id, _NAME, _name) [_id] = #_name,
      PERIGEE_REDOP_MAP(XX)
#undef XX
  };
  return names[kind];
}

static int check(perigee_dtype dtype, int kind, int ncontrib) {
  if (!perigee__dtype_valid((int)dtype))
    return perigee__fail(PERIGEE_EDTYPE, "reduce: dtype %d is not one", (int)dtype);
  if (kind < 0 || kind >= (int)PERIGEE_REDOP_COUNT)
    return perigee__fail(PERIGEE_EINVAL, "reduce: op %d is not one", kind);
  if (!perigee__redop_defined(kind, dtype))
    return perigee__fail(PERIGEE_EDTYPE, "reduce: %s is not defined for %s", kind_name(kind),
                         perigee_dtype_name(dtype));
  if (kind == PERIGEE_REDOP_CUSTOM)
    return perigee__fail(PERIGEE_ENOTSUP, "reduce: a custom op has no kernel");
  if (kind == PERIGEE_REDOP_AVG && ncontrib < 1)
    return perigee__fail(PERIGEE_EINVAL, "reduce: avg of %d contributions", ncontrib);
  return 0;
}

/* ---- average of integers --------------------------------------------------------------------------- */

/* No CPU divides vectors of integers, so this loop exists once. */
#define DIVIDE(_name, _type)                                                                       \
  static void divide_##_name(void *dst, const void *src, size_t count, double param) {             \
    const int64_t by = (int64_t)param;                                                             \
    for (size_t i = 0; i < count; i++) {                                                           \
      _type x;                                                                                     \
      memcpy(&x, (const char *)src + i * sizeof(x), sizeof(x));                                    \
      x = (_type)(x / (_type##_wide)by);                                                           \
      memcpy((char *)dst + i * sizeof(x), &x, sizeof(x));                                          \
    }                                                                                              \
  }
/* by is 1 .. INT_MAX and need not fit in a narrow type */
typedef int32_t int8_t_wide, int16_t_wide, int32_t_wide, uint8_t_wide, uint16_t_wide;
typedef uint32_t uint32_t_wide;
typedef int64_t int64_t_wide;
typedef uint64_t uint64_t_wide;
DIVIDE(i8, int8_t)
DIVIDE(u8, uint8_t)
DIVIDE(i16, int16_t)
DIVIDE(u16, uint16_t)
DIVIDE(i32, int32_t)
DIVIDE(u32, uint32_t)
DIVIDE(i64, int64_t)
DIVIDE(u64, uint64_t)

static perigee__map_fn *const divide_int[PERIGEE_DTYPE_COUNT] = {
    [PERIGEE_I8] = divide_i8,   [PERIGEE_U8] = divide_u8,   [PERIGEE_I16] = divide_i16,
    [PERIGEE_U16] = divide_u16, [PERIGEE_I32] = divide_i32, [PERIGEE_U32] = divide_u32,
    [PERIGEE_I64] = divide_i64, [PERIGEE_U64] = divide_u64};

/* A bool contribution may be any byte; alone it must become 0 or 1 too. As an or of one input. */
static void load_bool(void *acc, const void *src, size_t count, double param) {
  const void *const one[1] = {src};
  perigee__reduce_table_now()->nary[PERIGEE_BOOL][PERIGEE_REDOP_BOR](acc, one, 1, count, param);
}

/* ---- plans ------------------------------------------------------------------------------------------ */

/* The operation that joins two accumulators: contributions were scaled on the way in, averages are divided at the
 * end. */
static int merge_kind(int kind) {
  return kind == PERIGEE_REDOP_AVG || kind == PERIGEE_REDOP_PREMUL_SUM ? (int)PERIGEE_REDOP_SUM
                                                                       : kind;
}

int perigee__reduce_init(perigee__reduce_plan *p, perigee_dtype dtype, perigee_redop_kind kind,
                         double factor, int ncontrib) {
  PERIGEE_TRY(check(dtype, (int)kind, ncontrib));
  const perigee__reduce_table *t = perigee__reduce_table_now();
  const bool complex = dtype == PERIGEE_C64 || dtype == PERIGEE_C128;
  const perigee_dtype lane = dtype == PERIGEE_C64    ? PERIGEE_F32
                             : dtype == PERIGEE_C128 ? PERIGEE_F64
                                                     : dtype;
  const bool half = lane == PERIGEE_F16 || lane == PERIGEE_BF16;
  const bool avg = kind == PERIGEE_REDOP_AVG, premul = kind == PERIGEE_REDOP_PREMUL_SUM;
  p->dtype = dtype;
  p->kind = kind;
  p->size = perigee_dtype_size(dtype);
  p->acc_size = half ? sizeof(float) : p->size;
  p->lanes = complex ? 2 : 1;
  p->param = avg ? (double)ncontrib : factor;
  p->nary = t->nary[lane][kind];
  p->merge = t->nary[half ? PERIGEE_F32 : lane][merge_kind((int)kind)];
  p->fold = t->fold[lane][kind];
  p->load = premul ? t->scale[lane] : t->widen[lane]; /* NULL beside the 16-bit floats */
  p->finish = avg ? t->divide[lane] : t->narrow[lane];
  p->nary_unfinished = avg && divide_int[lane] != NULL;
  if (p->nary_unfinished)
    p->finish = divide_int[lane];
  if (lane == PERIGEE_BOOL)
    p->load = load_bool;
  return 0;
}

void perigee__reduce_nary(const perigee__reduce_plan *p, void *dst, const void *const *srcs, int n,
                          size_t count) {
  PERIGEE_ASSERT(n >= 1);
  p->nary(dst, srcs, n, count * p->lanes, p->param);
  if (p->nary_unfinished)
    p->finish(dst, dst, count * p->lanes, p->param);
}

size_t perigee__reduce_acc_size(const perigee__reduce_plan *p) { return p->acc_size; }

void perigee__reduce_load(const perigee__reduce_plan *p, void *acc, const void *src, size_t count) {
  if (p->load != NULL)
    p->load(acc, src, count * p->lanes, p->param);
  else
    perigee__copy(acc, src, count * p->size);
}

void perigee__reduce_add(const perigee__reduce_plan *p, void *acc, const void *src, size_t count) {
  if (p->fold != NULL) {
    p->fold(acc, src, count * p->lanes, p->param);
    return;
  }
  const void *const both[2] = {acc, src};
  p->merge(acc, both, 2, count * p->lanes, p->param);
}

void perigee__reduce_add_acc(const perigee__reduce_plan *p, void *acc, const void *other,
                             size_t count) {
  perigee__reduce_merge(p, acc, acc, other, count);
}

void perigee__reduce_pair(const perigee__reduce_plan *p, void *acc, const void *first,
                          const void *second, size_t count) {
  if (p->load == NULL && p->fold == NULL) {
    perigee__reduce_merge(p, acc, first, second, count);
    return;
  }
  perigee__reduce_load(p, acc, first, count);
  perigee__reduce_add(p, acc, second, count);
}

void perigee__reduce_merge(const perigee__reduce_plan *p, void *acc, const void *first,
                           const void *second, size_t count) {
  const void *const both[2] = {first, second};
  p->merge(acc, both, 2, count * p->lanes, p->param);
}

void perigee__reduce_finish(const perigee__reduce_plan *p, void *dst, const void *acc,
                            size_t count) {
  if (p->finish != NULL)
    p->finish(dst, acc, count * p->lanes, p->param);
  else if (dst != acc)
    perigee__copy(dst, acc, count * p->acc_size);
}

/* ---- conversions of 16-bit floats (tensor/half.h): the same kernels ---------------------------------- */

void perigee__f16_to_f32_array(float *dst, const void *src, size_t count) {
  perigee__reduce_table_now()->widen[PERIGEE_F16](dst, src, count, 0.0);
}

void perigee__bf16_to_f32_array(float *dst, const void *src, size_t count) {
  perigee__reduce_table_now()->widen[PERIGEE_BF16](dst, src, count, 0.0);
}

void perigee__f32_to_f16_array(void *dst, const float *src, size_t count) {
  perigee__reduce_table_now()->narrow[PERIGEE_F16](dst, src, count, 0.0);
}

void perigee__f32_to_bf16_array(void *dst, const float *src, size_t count) {
  perigee__reduce_table_now()->narrow[PERIGEE_BF16](dst, src, count, 0.0);
}
