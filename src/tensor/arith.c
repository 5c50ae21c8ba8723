/*
 * Elementwise arithmetic in place.
 *
 * One loop per dtype and operation works on runs of two tensors (tensor/iter.h). A scalar is a second operand whose
 * elements lie 0 bytes apart. 16-bit floats are widened in blocks, computed in f32 and rounded once.
 */
#include <math.h>
#include <string.h>

#include "base/attr.h"
#include "base/error.h"
#include "tensor/dtype.h"
#include "tensor/half.h"
#include "tensor/iter.h"
#include "tensor/tensor.h"
#include "tensor/wide.h"

#define HALF_BLOCK 256

/* a[k] := a[k] op b[k]; strides in bytes. alpha is for axpy alone. */
typedef void run_fn(int op, char *a, int64_t sa, const char *b, int64_t sb, int64_t n,
                    double alpha);

enum {
  AXPY = PERIGEE_MINIMUM + 1
}; /* beside perigee_binop */

static const char *const op_names[] = {"add", "sub", "mul", "div", "maximum", "minimum", "axpy"};

/* ---- loops -------------------------------------------------------------------------------------- */

#define STEP(_type, _sa, _sb, _expr)                                                               \
  for (int64_t k = 0; k < n; k++) {                                                                \
    _type *p = (_type *)(void *)(a + k * (_sa));                                                   \
    const _type x = *p, y = *(const _type *)(const void *)(b + k * (_sb));                         \
    *p = (_expr);                                                                                  \
  }
/* The common case once more with constant distances, which the compiler vectorises. */
#define CASE(_op, _type, _expr)                                                                    \
  case _op:                                                                                        \
    if (sa == (int64_t)sizeof(_type) && sb == (int64_t)sizeof(_type))                              \
      STEP(_type, (int64_t)sizeof(_type), (int64_t)sizeof(_type), _expr)                           \
    else                                                                                           \
      STEP(_type, sa, sb, _expr)                                                                   \
    break;

#define FLOAT_RUN(_name, _type)                                                                    \
  static void run_##_name(int op, char *a, int64_t sa, const char *b, int64_t sb, int64_t n,       \
                          double alpha) {                                                          \
    const _type scale = (_type)alpha;                                                              \
    switch (op) {                                                                                  \
      CASE(PERIGEE_ADD, _type, x + y)                                                              \
      CASE(PERIGEE_SUB, _type, x - y)                                                              \
      CASE(PERIGEE_MUL, _type, x *y)                                                               \
      CASE(PERIGEE_DIV, _type, x / y)                                                              \
      CASE(PERIGEE_MAXIMUM, _type, x > y || x != x ? x : y)                                        \
      CASE(PERIGEE_MINIMUM, _type, x < y || x != x ? x : y)                                        \
      CASE(AXPY, _type, x + scale * y)                                                             \
    default:                                                                                       \
      break;                                                                                       \
    }                                                                                              \
  }

/* _wide: the unsigned type sums are made in, where wrapping is defined and nothing is promoted to int.
 * _quotient: division; the smallest signed value by -1 wraps like everything else. */
#define INT_RUN(_name, _type, _wide, _quotient)                                                    \
  static void run_##_name(int op, char *a, int64_t sa, const char *b, int64_t sb, int64_t n,       \
                          double alpha) {                                                          \
    (void)alpha;                                                                                   \
    switch (op) {                                                                                  \
      CASE(PERIGEE_ADD, _type, (_type)((_wide)x + (_wide)y))                                       \
      CASE(PERIGEE_SUB, _type, (_type)((_wide)x - (_wide)y))                                       \
      CASE(PERIGEE_MUL, _type, (_type)((_wide)x * (_wide)y))                                       \
      CASE(PERIGEE_DIV, _type, _quotient(_type, _wide))                                            \
      CASE(PERIGEE_MAXIMUM, _type, x > y ? x : y)                                                  \
      CASE(PERIGEE_MINIMUM, _type, x < y ? x : y)                                                  \
    default:                                                                                       \
      break;                                                                                       \
    }                                                                                              \
  }
#define SIGNED_QUOTIENT(_type, _wide) (_type)(y == -1 ? (_type)(0 - (_wide)x) : x / y)
#define UNSIGNED_QUOTIENT(_type, _wide) (_type)(x / y)

/* Smith's way: the larger part of the divisor is divided out first, so that squares do not overflow. */
#define COMPLEX_DIV(_name, _type, _real, _fabs)                                                    \
  static _type div_##_name(_type x, _type y) {                                                     \
    if (_fabs(y.re) >= _fabs(y.im)) {                                                              \
      _real ratio = y.im / y.re, whole = y.re + y.im * ratio;                                      \
      return (_type){(x.re + x.im * ratio) / whole, (x.im - x.re * ratio) / whole};                \
    }                                                                                              \
    _real ratio = y.re / y.im, whole = y.re * ratio + y.im;                                        \
    return (_type){(x.re * ratio + x.im) / whole, (x.im * ratio - x.re) / whole};                  \
  }
#define COMPLEX_RUN(_name, _type)                                                                  \
  static void run_##_name(int op, char *a, int64_t sa, const char *b, int64_t sb, int64_t n,       \
                          double alpha) {                                                          \
    (void)alpha;                                                                                   \
    switch (op) {                                                                                  \
      CASE(PERIGEE_ADD, _type, ((_type){x.re + y.re, x.im + y.im}))                                \
      CASE(PERIGEE_SUB, _type, ((_type){x.re - y.re, x.im - y.im}))                                \
      CASE(PERIGEE_MUL, _type, ((_type){x.re * y.re - x.im * y.im, x.re * y.im + x.im * y.re}))    \
      CASE(PERIGEE_DIV, _type, div_##_name(x, y))                                                  \
    default:                                                                                       \
      break;                                                                                       \
    }                                                                                              \
  }
FLOAT_RUN(f32, float)
FLOAT_RUN(f64, double)
INT_RUN(i8, int8_t, uint32_t, SIGNED_QUOTIENT)
INT_RUN(u8, uint8_t, uint32_t, UNSIGNED_QUOTIENT)
INT_RUN(i16, int16_t, uint32_t, SIGNED_QUOTIENT)
INT_RUN(u16, uint16_t, uint32_t, UNSIGNED_QUOTIENT)
INT_RUN(i32, int32_t, uint32_t, SIGNED_QUOTIENT)
INT_RUN(u32, uint32_t, uint32_t, UNSIGNED_QUOTIENT)
INT_RUN(i64, int64_t, uint64_t, SIGNED_QUOTIENT)
INT_RUN(u64, uint64_t, uint64_t, UNSIGNED_QUOTIENT)
COMPLEX_DIV(c64, perigee__c64, float, fabsf)
COMPLEX_DIV(c128, perigee__c128, double, fabs)
COMPLEX_RUN(c64, perigee__c64)
COMPLEX_RUN(c128, perigee__c128)

/* ---- 16-bit floats ------------------------------------------------------------------------------ */

static void widen(perigee_dtype dtype, float *out, const char *p, int64_t stride, int64_t n) {
  if (stride == 2 && dtype == PERIGEE_F16)
    perigee__f16_to_f32_array(out, p, (size_t)n);
  else if (stride == 2)
    perigee__bf16_to_f32_array(out, p, (size_t)n);
  else
    for (int64_t k = 0; k < n; k++) {
      uint16_t half = *(const uint16_t *)(const void *)(p + k * stride);
      out[k] = dtype == PERIGEE_F16 ? perigee__f16_to_f32(half) : perigee__bf16_to_f32(half);
    }
}

static void narrow(perigee_dtype dtype, char *p, int64_t stride, const float *in, int64_t n) {
  if (stride == 2 && dtype == PERIGEE_F16)
    perigee__f32_to_f16_array(p, in, (size_t)n);
  else if (stride == 2)
    perigee__f32_to_bf16_array(p, in, (size_t)n);
  else
    for (int64_t k = 0; k < n; k++)
      *(uint16_t *)(void *)(p + k * stride) =
          dtype == PERIGEE_F16 ? perigee__f32_to_f16(in[k]) : perigee__f32_to_bf16(in[k]);
}

/* b: 16-bit elements, or with b_wide one f32 for all */
static void run_half(perigee_dtype dtype, int op, char *a, int64_t sa, const char *b, int64_t sb,
                     bool b_wide, int64_t n, double alpha) {
  float fa[HALF_BLOCK], fb[HALF_BLOCK];
  for (int64_t at = 0; at < n; at += HALF_BLOCK) {
    int64_t m = n - at < HALF_BLOCK ? n - at : HALF_BLOCK;
    widen(dtype, fa, a + at * sa, sa, m);
    if (!b_wide)
      widen(dtype, fb, b + at * sb, sb, m);
    run_f32(op, (char *)fa, sizeof(float), b_wide ? b : (const char *)fb,
            b_wide ? 0 : (int64_t)sizeof(float), m, alpha);
    narrow(dtype, a + at * sa, sa, fa, m);
  }
}

/* ---- checks and dispatch ------------------------------------------------------------------------ */

static run_fn *run_of(perigee_dtype dtype) {
  static run_fn *const runs[PERIGEE_DTYPE_COUNT] = {
      [PERIGEE_F32] = run_f32, [PERIGEE_F64] = run_f64, [PERIGEE_I8] = run_i8,
      [PERIGEE_U8] = run_u8,   [PERIGEE_I16] = run_i16, [PERIGEE_U16] = run_u16,
      [PERIGEE_I32] = run_i32, [PERIGEE_U32] = run_u32, [PERIGEE_I64] = run_i64,
      [PERIGEE_U64] = run_u64, [PERIGEE_C64] = run_c64, [PERIGEE_C128] = run_c128};
  return runs[dtype];
}

static bool is_half(perigee_dtype dtype) { return dtype == PERIGEE_F16 || dtype == PERIGEE_BF16; }

static bool is_integer(perigee_dtype dtype) {
  int class = perigee__dtype_class(dtype);
  return class == PERIGEE_SCALAR_INT || class == PERIGEE_SCALAR_UINT;
}

static int check_op(int op, perigee_dtype dtype) {
  if (op < 0 || op > PERIGEE_MINIMUM)
    return perigee__fail(PERIGEE_EINVAL, "binary: op %d is not one", op);
  const int class = perigee__dtype_class(dtype);
  if (class == PERIGEE_SCALAR_BOOL ||
      (class == PERIGEE_SCALAR_COMPLEX && (op == PERIGEE_MAXIMUM || op == PERIGEE_MINIMUM)))
    return perigee__fail(PERIGEE_EDTYPE, "%s is not defined for %s", op_names[op],
                         perigee_dtype_name(dtype));
  return 0;
}

static int check_pair(int op, const perigee_tensor *a, const perigee_tensor *b) {
  if (a->dtype != b->dtype)
    return perigee__fail(PERIGEE_EDTYPE, "%s: dtypes differ, %s and %s", op_names[op],
                         perigee_dtype_name(a->dtype), perigee_dtype_name(b->dtype));
  return perigee__tensor_check_shapes(op_names[op], a, b);
}

/* Looked for before anything is changed, so that a refused division changes nothing. */
static int check_divisor(const perigee_tensor *b) {
  static const char zero[8];
  const size_t size = perigee_dtype_size(b->dtype);
  perigee__iter it;
  char *at;
  perigee__iter_init(&it, b, NULL);
  while (perigee__iter_next(&it, &at, NULL))
    for (int64_t k = 0; k < it.count; k++)
      if (memcmp(at + k * it.stride[0], zero, size) == 0)
        return perigee__fail(PERIGEE_EINVAL, "div: %s division by zero",
                             perigee_dtype_name(b->dtype));
  return 0;
}

static void apply(int op, perigee_tensor *a, const perigee_tensor *b, double alpha) {
  perigee__iter it;
  char *pa, *pb;
  perigee__iter_init(&it, a, b);
  while (perigee__iter_next(&it, &pa, &pb))
    if (is_half(a->dtype))
      run_half(a->dtype, op, pa, it.stride[0], pb, it.stride[1], false, it.count, alpha);
    else
      run_of(a->dtype)(op, pa, it.stride[0], pb, it.stride[1], it.count, alpha);
}

int perigee_tensor_binary(perigee_binop op, perigee_tensor *a, const perigee_tensor *b) {
  PERIGEE_TRY(check_op((int)op, a->dtype));
  PERIGEE_TRY(check_pair((int)op, a, b));
  if (op == PERIGEE_DIV && is_integer(a->dtype))
    PERIGEE_TRY(check_divisor(b));
  apply((int)op, a, b, 0.0);
  return 0;
}

int perigee_tensor_binary_scalar(perigee_binop op, perigee_tensor *a, const perigee_scalar *value) {
  perigee__wide w;
  union {
    double align;
    char bytes[16];
  } y = {.bytes = {0}};
  const bool half = is_half(a->dtype); /* the scalar stays an f32: it is not rounded to 16 bits */
  PERIGEE_TRY(check_op((int)op, a->dtype));
  PERIGEE_TRY(perigee__wide_from_scalar(&w, value));
  perigee__wide_store(&w, half ? PERIGEE_F32 : a->dtype, y.bytes, 0, 1);
  static const char zero[8];
  if (op == PERIGEE_DIV && is_integer(a->dtype) &&
      memcmp(y.bytes, zero, perigee_dtype_size(a->dtype)) == 0)
    return perigee__fail(PERIGEE_EINVAL, "div: %s division by zero", perigee_dtype_name(a->dtype));
  perigee__iter it;
  char *at;
  perigee__iter_init(&it, a, NULL);
  while (perigee__iter_next(&it, &at, NULL))
    if (half)
      run_half(a->dtype, (int)op, at, it.stride[0], y.bytes, 0, true, it.count, 0.0);
    else
      run_of(a->dtype)((int)op, at, it.stride[0], y.bytes, 0, it.count, 0.0);
  return 0;
}

int perigee_tensor_axpy(perigee_tensor *a, double alpha, const perigee_tensor *b) {
  if (perigee__dtype_class(a->dtype) != PERIGEE_SCALAR_FLOAT)
    return perigee__fail(PERIGEE_EDTYPE, "axpy is not defined for %s",
                         perigee_dtype_name(a->dtype));
  PERIGEE_TRY(check_pair(AXPY, a, b));
  apply(AXPY, a, b, alpha);
  return 0;
}

/* ---- abs ---------------------------------------------------------------------------------------- */

#define ABS(_dtype, _type, _expr)                                                                  \
  case _dtype:                                                                                     \
    for (int64_t k = 0; k < n; k++) {                                                              \
      _type *p = (_type *)(void *)(a + k * stride);                                                \
      const _type x = *p;                                                                          \
      *p = (_expr);                                                                                \
    }                                                                                              \
    break

static void abs_run(perigee_dtype dtype, char *a, int64_t stride, int64_t n) {
  switch ((int)dtype) {
    ABS(PERIGEE_F16, uint16_t, x & 0x7fff);
    ABS(PERIGEE_BF16, uint16_t, x & 0x7fff);
    ABS(PERIGEE_F32, float, fabsf(x));
    ABS(PERIGEE_F64, double, fabs(x));
    ABS(PERIGEE_I8, int8_t, (int8_t)(x < 0 ? 0 - (uint32_t)x : (uint32_t)x));
    ABS(PERIGEE_I16, int16_t, (int16_t)(x < 0 ? 0 - (uint32_t)x : (uint32_t)x));
    ABS(PERIGEE_I32, int32_t, (int32_t)(x < 0 ? 0 - (uint32_t)x : (uint32_t)x));
    ABS(PERIGEE_I64, int64_t, (int64_t)(x < 0 ? 0 - (uint64_t)x : (uint64_t)x));
    ABS(PERIGEE_C64, perigee__c64, ((perigee__c64){hypotf(x.re, x.im), 0.0F}));
    ABS(PERIGEE_C128, perigee__c128, ((perigee__c128){hypot(x.re, x.im), 0.0}));
  default: /* unsigned and bool */
    break;
  }
}

int perigee_tensor_abs(perigee_tensor *a) {
  perigee__iter it;
  char *at;
  perigee__iter_init(&it, a, NULL);
  while (perigee__iter_next(&it, &at, NULL))
    abs_run(a->dtype, at, it.stride[0], it.count);
  return 0;
}
