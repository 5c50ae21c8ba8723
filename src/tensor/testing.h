/* Helpers of this layer's tests. */
#ifndef PERIGEE_TENSOR_TESTING_H
#define PERIGEE_TENSOR_TESTING_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/error.h"
#include "tensor/tensor.h"

/* rc is code, and the message of this thread's last error has text in it. */
#define assert_fails(_expr, _code, _text)                                                          \
  do {                                                                                             \
    assert_int_equal((_expr), (_code));                                                            \
    assert_int_equal(perigee_last_error()->code, (_code));                                         \
    if (strstr(perigee_last_error()->message, (_text)) == NULL)                                    \
      fail_msg("\"%s\" is not in \"%s\"", (_text), perigee_last_error()->message);                 \
  } while (0)

/* xorshift: the same values in every run */
static inline uint64_t test_random(uint64_t *state) {
  uint64_t x = *state;
  x ^= x << 13;
  x ^= x >> 7;
  x ^= x << 17;
  return *state = x;
}

/* 1-D or 2-D tensor of zeros */
static inline perigee_tensor *test_tensor(perigee_dtype dtype, int64_t rows, int64_t columns) {
  int64_t shape[2] = {rows, columns};
  perigee_tensor *t;
  assert_int_equal(perigee_tensor_create(dtype, columns > 0 ? 2 : 1, shape, &t), 0);
  return t;
}

static inline perigee_scalar scalar_float(double x) {
  return (perigee_scalar){.kind = PERIGEE_SCALAR_FLOAT, .re = x};
}

static inline perigee_scalar scalar_int(int64_t x) {
  return (perigee_scalar){.kind = PERIGEE_SCALAR_INT, .i = x};
}

static inline perigee_scalar scalar_uint(uint64_t x) {
  return (perigee_scalar){.kind = PERIGEE_SCALAR_UINT, .u = x};
}

static inline perigee_scalar scalar_complex(double re, double im) {
  return (perigee_scalar){.kind = PERIGEE_SCALAR_COMPLEX, .re = re, .im = im};
}

static inline void test_set(perigee_tensor *t, int64_t index, perigee_scalar value) {
  assert_int_equal(perigee_tensor_set(t, index, &value), 0);
}

static inline perigee_scalar test_get(const perigee_tensor *t, int64_t index) {
  perigee_scalar value;
  assert_int_equal(perigee_tensor_get(t, index, &value), 0);
  return value;
}

/* Any real dtype as a double. */
static inline double test_number(const perigee_tensor *t, int64_t index) {
  perigee_scalar v = test_get(t, index);
  switch (v.kind) {
  case PERIGEE_SCALAR_FLOAT:
  case PERIGEE_SCALAR_COMPLEX:
    return v.re;
  case PERIGEE_SCALAR_UINT:
    return (double)v.u;
  default:
    return (double)v.i;
  }
}

#endif
