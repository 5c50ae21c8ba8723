#include "tensor/wide.h"

#include <math.h>

#include "base/assert.h"
#include "base/error.h"
#include "tensor/dtype.h"
#include "tensor/half.h"

/* ---- loading ------------------------------------------------------------------------------------ */

#define LOAD(_type, _member, _value)                                                               \
  for (int k = 0; k < n; k++) {                                                                    \
    _type x = *(const _type *)(const void *)(src + k * stride);                                    \
    w->v._member[k] = (_value);                                                                    \
  }                                                                                                \
  break
#define LOAD_COMPLEX(_type)                                                                        \
  for (int k = 0; k < n; k++) {                                                                    \
    const _type *x = (const _type *)(const void *)(src + k * stride);                              \
    w->v.re[k] = (double)x->re;                                                                    \
    w->im[k] = (double)x->im;                                                                      \
  }                                                                                                \
  break

void perigee__wide_load(perigee__wide *w, perigee_dtype dtype, const char *src, int64_t stride,
                        int n) {
  PERIGEE_ASSERT(n <= PERIGEE__WIDE_MAX);
  w->class = perigee__dtype_class(dtype);
  switch (dtype) {
  case PERIGEE_F16:
    LOAD(uint16_t, re, (double)perigee__f16_to_f32(x));
  case PERIGEE_BF16:
    LOAD(uint16_t, re, (double)perigee__bf16_to_f32(x));
  case PERIGEE_F32:
    LOAD(float, re, (double)x);
  case PERIGEE_F64:
    LOAD(double, re, x);
  case PERIGEE_I8:
    LOAD(int8_t, i, x);
  case PERIGEE_U8:
    LOAD(uint8_t, u, x);
  case PERIGEE_I16:
    LOAD(int16_t, i, x);
  case PERIGEE_U16:
    LOAD(uint16_t, u, x);
  case PERIGEE_I32:
    LOAD(int32_t, i, x);
  case PERIGEE_U32:
    LOAD(uint32_t, u, x);
  case PERIGEE_I64:
    LOAD(int64_t, i, x);
  case PERIGEE_U64:
    LOAD(uint64_t, u, x);
  case PERIGEE_BOOL:
    LOAD(uint8_t, i, x != 0);
  case PERIGEE_C64:
    LOAD_COMPLEX(perigee__c64);
  case PERIGEE_C128:
    LOAD_COMPLEX(perigee__c128);
  case PERIGEE_DTYPE_COUNT:
  default:
    PERIGEE_BUG("dtype %d", (int)dtype);
  }
}

/* ---- storing ------------------------------------------------------------------------------------ */

/*
 * An integer as an f64 that later rounds to 24 bits or fewer as the integer itself would: bits that an f64
 * cannot hold leave a mark in its last bit, so that no false tie appears.
 */
static double odd_from_u64(uint64_t u) {
  if (u >> 53 == 0)
    return (double)u;
  return (double)(u >> 11 | ((u & 0x7ff) != 0 ? 1 : 0)) * 2048.0;
}

static double odd_from_i64(int64_t i) {
  return i < 0 ? -odd_from_u64(0 - (uint64_t)i) : odd_from_u64((uint64_t)i);
}

static int64_t i64_from_real(double x) {
  if (isnan(x))
    return 0;
  if (x >= 0x1p63)
    return INT64_MAX;
  return x < -0x1p63 ? INT64_MIN : (int64_t)x;
}

static uint64_t u64_from_real(double x) {
  if (!(x > 0.0)) /* also NaN */
    return 0;
  return x >= 0x1p64 ? UINT64_MAX : (uint64_t)x;
}

static bool is_real(const perigee__wide *w) {
  return w->class == PERIGEE_SCALAR_FLOAT || w->class == PERIGEE_SCALAR_COMPLEX;
}

/* odd: the values are rounded again, to f32 or less */
static void to_real(const perigee__wide *w, bool odd, double *out, int n) {
  if (is_real(w))
    for (int k = 0; k < n; k++)
      out[k] = w->v.re[k];
  else if (w->class == PERIGEE_SCALAR_UINT)
    for (int k = 0; k < n; k++)
      out[k] = odd ? odd_from_u64(w->v.u[k]) : (double)w->v.u[k];
  else
    for (int k = 0; k < n; k++)
      out[k] = odd ? odd_from_i64(w->v.i[k]) : (double)w->v.i[k];
}

static void to_int(const perigee__wide *w, int64_t *out, int n) {
  if (is_real(w))
    for (int k = 0; k < n; k++)
      out[k] = i64_from_real(w->v.re[k]);
  else if (w->class == PERIGEE_SCALAR_UINT)
    for (int k = 0; k < n; k++)
      out[k] = w->v.u[k] > INT64_MAX ? INT64_MAX : (int64_t)w->v.u[k];
  else
    for (int k = 0; k < n; k++)
      out[k] = w->v.i[k];
}

static void to_uint(const perigee__wide *w, uint64_t *out, int n) {
  if (is_real(w))
    for (int k = 0; k < n; k++)
      out[k] = u64_from_real(w->v.re[k]);
  else if (w->class == PERIGEE_SCALAR_UINT)
    for (int k = 0; k < n; k++)
      out[k] = w->v.u[k];
  else
    for (int k = 0; k < n; k++)
      out[k] = w->v.i[k] < 0 ? 0 : (uint64_t)w->v.i[k];
}

static bool is_true(const perigee__wide *w, int k) {
  switch (w->class) {
  case PERIGEE_SCALAR_FLOAT:
    return w->v.re[k] != 0.0;
  case PERIGEE_SCALAR_COMPLEX:
    return w->v.re[k] != 0.0 || w->im[k] != 0.0;
  case PERIGEE_SCALAR_UINT:
    return w->v.u[k] != 0;
  default:
    return w->v.i[k] != 0;
  }
}

#define STORE(_type, _value)                                                                       \
  for (int k = 0; k < n; k++)                                                                      \
    *(_type *)(void *)(dst + k * stride) = (_value);                                               \
  break
#define CLAMP(_x, _min, _max) ((_x) < (_min) ? (_min) : (_x) > (_max) ? (_max) : (_x))

static void store_real(const perigee__wide *w, perigee_dtype dtype, char *dst, int64_t stride,
                       int n) {
  double x[PERIGEE__WIDE_MAX];
  const bool complex = w->class == PERIGEE_SCALAR_COMPLEX;
  to_real(w, dtype != PERIGEE_F64 && dtype != PERIGEE_C128, x, n);
  switch ((int)dtype) {
  case PERIGEE_F16:
    STORE(uint16_t, perigee__f32_to_f16(perigee__f64_to_f32_odd(x[k])));
  case PERIGEE_BF16:
    STORE(uint16_t, perigee__f32_to_bf16(perigee__f64_to_f32_odd(x[k])));
  case PERIGEE_F32:
    STORE(float, (float)x[k]);
  case PERIGEE_F64:
    STORE(double, x[k]);
  case PERIGEE_C64:
    STORE(perigee__c64, ((perigee__c64){(float)x[k], complex ? (float)w->im[k] : 0.0F}));
  default:
    STORE(perigee__c128, ((perigee__c128){x[k], complex ? w->im[k] : 0.0}));
  }
}

static void store_int(const perigee__wide *w, perigee_dtype dtype, char *dst, int64_t stride,
                      int n) {
  int64_t x[PERIGEE__WIDE_MAX];
  to_int(w, x, n);
  switch ((int)dtype) {
  case PERIGEE_I8:
    STORE(int8_t, (int8_t)CLAMP(x[k], INT8_MIN, INT8_MAX));
  case PERIGEE_I16:
    STORE(int16_t, (int16_t)CLAMP(x[k], INT16_MIN, INT16_MAX));
  case PERIGEE_I32:
    STORE(int32_t, (int32_t)CLAMP(x[k], INT32_MIN, INT32_MAX));
  default:
    STORE(int64_t, x[k]);
  }
}

static void store_uint(const perigee__wide *w, perigee_dtype dtype, char *dst, int64_t stride,
                       int n) {
  uint64_t x[PERIGEE__WIDE_MAX];
  to_uint(w, x, n);
  switch ((int)dtype) {
  case PERIGEE_U8:
    STORE(uint8_t, (uint8_t)(x[k] > UINT8_MAX ? UINT8_MAX : x[k]));
  case PERIGEE_U16:
    STORE(uint16_t, (uint16_t)(x[k] > UINT16_MAX ? UINT16_MAX : x[k]));
  case PERIGEE_U32:
    STORE(uint32_t, (uint32_t)(x[k] > UINT32_MAX ? UINT32_MAX : x[k]));
  default:
    STORE(uint64_t, x[k]);
  }
}

void perigee__wide_store(const perigee__wide *w, perigee_dtype dtype, char *dst, int64_t stride,
                         int n) {
  PERIGEE_ASSERT(n <= PERIGEE__WIDE_MAX);
  switch (perigee__dtype_class(dtype)) {
  case PERIGEE_SCALAR_FLOAT:
  case PERIGEE_SCALAR_COMPLEX:
    store_real(w, dtype, dst, stride, n);
    return;
  case PERIGEE_SCALAR_INT:
    store_int(w, dtype, dst, stride, n);
    return;
  case PERIGEE_SCALAR_UINT:
    store_uint(w, dtype, dst, stride, n);
    return;
  case PERIGEE_SCALAR_BOOL:
    for (int k = 0; k < n; k++)
      *(dst + k * stride) = is_true(w, k);
    return;
  default:
    PERIGEE_BUG("dtype %d", (int)dtype);
  }
}

/* ---- single values ------------------------------------------------------------------------------ */

int perigee__wide_from_scalar(perigee__wide *w, const perigee_scalar *value) {
  w->class = (int)value->kind;
  switch (w->class) {
  case PERIGEE_SCALAR_COMPLEX:
    w->im[0] = value->im;
    w->v.re[0] = value->re;
    return 0;
  case PERIGEE_SCALAR_FLOAT:
    w->v.re[0] = value->re;
    return 0;
  case PERIGEE_SCALAR_UINT:
    w->v.u[0] = value->u;
    return 0;
  case PERIGEE_SCALAR_BOOL:
    w->v.i[0] = value->i != 0;
    return 0;
  case PERIGEE_SCALAR_INT:
    w->v.i[0] = value->i;
    return 0;
  default:
    return perigee__fail(PERIGEE_EINVAL, "value has kind %d, which is none", w->class);
  }
}

void perigee__wide_to_scalar(const perigee__wide *w, int index, perigee_scalar *value_p) {
  perigee_scalar value = {0};
  switch (w->class) {
  case PERIGEE_SCALAR_COMPLEX:
    value.kind = PERIGEE_SCALAR_COMPLEX;
    value.re = w->v.re[index];
    value.im = w->im[index];
    break;
  case PERIGEE_SCALAR_FLOAT:
    value.kind = PERIGEE_SCALAR_FLOAT;
    value.re = w->v.re[index];
    break;
  case PERIGEE_SCALAR_UINT:
    value.kind = PERIGEE_SCALAR_UINT;
    value.u = w->v.u[index];
    break;
  case PERIGEE_SCALAR_BOOL:
    value.kind = PERIGEE_SCALAR_BOOL;
    value.i = w->v.i[index];
    break;
  default:
    value.kind = PERIGEE_SCALAR_INT;
    value.i = w->v.i[index];
    break;
  }
  *value_p = value;
}

long double perigee__wide_real(const perigee__wide *w, int index) {
  if (is_real(w))
    return (long double)w->v.re[index];
  return w->class == PERIGEE_SCALAR_UINT ? (long double)w->v.u[index] : (long double)w->v.i[index];
}
