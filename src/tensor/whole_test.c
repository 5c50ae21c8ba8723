/* Values of whole tensors. */
#include "tensor/testing.h"

#include <math.h>
#include <stdbool.h>

#include "base/attr.h"
#include "tensor/dtype.h"

enum {
  ROWS = 5,
  COLUMNS = 100
};

/* k % 7 in every element, in columns of a wider tensor filled with 9. */
static perigee_tensor *sample(perigee_dtype dtype) {
  perigee_tensor *whole = test_tensor(dtype, ROWS, COLUMNS + 1), *t;
  perigee_scalar nine = scalar_int(9);
  assert_int_equal(perigee_tensor_fill(whole, &nine), 0);
  assert_int_equal(perigee_tensor_narrow(whole, 1, 1, COLUMNS, &t), 0);
  perigee_tensor_unref(whole);
  for (int64_t k = 0; k < t->numel; k++)
    test_set(t, k, scalar_int(k % 7));
  return t;
}

static void test_every_dtype(void **state) {
  (void)state;
  double sum = 0.0, squares = 0.0, trues = 0.0;
  for (int k = 0; k < ROWS * COLUMNS; k++) {
    sum += k % 7;
    squares += (k % 7) * (k % 7);
    trues += k % 7 != 0;
  }
  for (int dtype = 0; dtype < PERIGEE_DTYPE_COUNT; dtype++) {
    perigee_tensor *t = sample((perigee_dtype)dtype);
    perigee_scalar v;
    double x;
    const bool is_bool = dtype == PERIGEE_BOOL, is_complex = dtype >= PERIGEE_C64;
    const int class = perigee__dtype_class((perigee_dtype)dtype);
    assert_int_equal(perigee_tensor_sum(t, &v), 0);
    assert_int_equal(v.kind, is_bool ? PERIGEE_SCALAR_INT : class);
    const double got = v.kind == PERIGEE_SCALAR_INT    ? (double)v.i
                       : v.kind == PERIGEE_SCALAR_UINT ? (double)v.u
                                                       : v.re;
    assert_true(got == (is_bool ? trues : sum));
    assert_int_equal(perigee_tensor_norm(t, &x), 0);
    assert_true(fabs(x - sqrt(is_bool ? trues : squares)) < 1e-12);
    if (is_complex) {
      assert_fails(perigee_tensor_mean(t, &x), PERIGEE_EDTYPE, "mean");
      assert_fails(perigee_tensor_min(t, &v), PERIGEE_EDTYPE, "min");
      assert_fails(perigee_tensor_max(t, &v), PERIGEE_EDTYPE, "max");
    } else {
      assert_int_equal(perigee_tensor_mean(t, &x), 0);
      assert_true(x == (is_bool ? trues : sum) / (ROWS * COLUMNS));
      test_set(t, 321, scalar_int(8));
      assert_int_equal(perigee_tensor_max(t, &v), 0);
      assert_int_equal(v.kind, class);
      assert_true((v.kind == PERIGEE_SCALAR_FLOAT  ? v.re
                   : v.kind == PERIGEE_SCALAR_UINT ? (double)v.u
                                                   : (double)v.i) == (is_bool ? 1.0 : 8.0));
      if (class == PERIGEE_SCALAR_INT || class == PERIGEE_SCALAR_FLOAT)
        test_set(t, 322, scalar_int(-8));
      assert_int_equal(perigee_tensor_min(t, &v), 0);
      assert_true((v.kind == PERIGEE_SCALAR_FLOAT  ? v.re
                   : v.kind == PERIGEE_SCALAR_UINT ? (double)v.u
                                                   : (double)v.i) ==
                  (class == PERIGEE_SCALAR_INT || class == PERIGEE_SCALAR_FLOAT ? -8.0 : 0.0));
    }
    perigee_tensor_unref(t);
  }
}

static void test_extremes(void **state) {
  (void)state;
  perigee_tensor *f = test_tensor(PERIGEE_F64, 300, 0), *u = test_tensor(PERIGEE_U64, 2, 0);
  perigee_scalar v;
  double x;
  test_set(f, 290, scalar_float((double)NAN));
  assert_int_equal(perigee_tensor_min(f, &v), 0);
  assert_true(isnan(v.re));
  assert_int_equal(perigee_tensor_max(f, &v), 0);
  assert_true(isnan(v.re));
  assert_int_equal(perigee_tensor_norm(f, &x), 0);
  assert_true(isnan(x));
  test_set(f, 290, scalar_float(-(double)INFINITY));
  assert_int_equal(perigee_tensor_norm(f, &x), 0);
  assert_true(isinf(x) && x > 0);
  /* squares that overflow, and squares that vanish */
  test_set(f, 290, scalar_float(3e200));
  test_set(f, 10, scalar_float(-4e200));
  assert_int_equal(perigee_tensor_norm(f, &x), 0);
  assert_true(fabs(x / 5e200 - 1.0) < 1e-14);
  test_set(f, 290, scalar_float(3e-300));
  test_set(f, 10, scalar_float(-4e-300));
  assert_int_equal(perigee_tensor_norm(f, &x), 0);
  assert_true(fabs(x / 5e-300 - 1.0) < 1e-14);
  test_set(f, 290, scalar_float(0x3p-1074));
  test_set(f, 10, scalar_float(0x4p-1074));
  assert_int_equal(perigee_tensor_norm(f, &x), 0);
  assert_true(x == 0x5p-1074);
  /* beyond what a double can tell apart */
  test_set(u, 0, scalar_uint(UINT64_MAX));
  test_set(u, 1, scalar_uint(UINT64_MAX - 1));
  assert_int_equal(perigee_tensor_min(u, &v), 0);
  assert_true(v.u == UINT64_MAX - 1);
  assert_int_equal(perigee_tensor_sum(u, &v), 0);
  assert_true(v.u == UINT64_MAX - 2); /* wraps */
  assert_int_equal(perigee_tensor_mean(u, &x), 0);
  assert_true(x == 0x1p64); /* does not */
  perigee_tensor_unref(f);
  perigee_tensor_unref(u);
  perigee_tensor *c = test_tensor(PERIGEE_C64, 2, 0);
  test_set(c, 0, scalar_complex(3.0, -4.0));
  test_set(c, 1, scalar_complex(0.0, 12.0));
  assert_int_equal(perigee_tensor_sum(c, &v), 0);
  assert_true(v.re == 3.0 && v.im == 8.0);
  assert_int_equal(perigee_tensor_norm(c, &x), 0);
  assert_true(x == 13.0);
  perigee_tensor_unref(c);
}

static void test_empty(void **state) {
  (void)state;
  perigee_tensor *t = test_tensor(PERIGEE_F32, 3, 5), *e;
  perigee_scalar v;
  double x;
  assert_int_equal(perigee_tensor_narrow(t, 1, 2, 0, &e), 0);
  assert_int_equal(perigee_tensor_sum(e, &v), 0);
  assert_true(v.re == 0.0);
  assert_int_equal(perigee_tensor_norm(e, &x), 0);
  assert_true(x == 0.0);
  assert_fails(perigee_tensor_mean(e, &x), PERIGEE_EINVAL, "mean: f32[3,0] has no elements");
  assert_fails(perigee_tensor_min(e, &v), PERIGEE_EINVAL, "min: f32[3,0]");
  assert_fails(perigee_tensor_max(e, &v), PERIGEE_EINVAL, "max: f32[3,0]");
  assert_true(perigee_tensor_equal(e, e));
  assert_true(perigee_tensor_allclose(e, e, 0.0, 0.0));
  perigee_tensor_unref(e);
  perigee_tensor_unref(t);
}

static void test_equal(void **state) {
  (void)state;
  for (int dtype = 0; dtype < PERIGEE_DTYPE_COUNT; dtype++) {
    perigee_tensor *a = sample((perigee_dtype)dtype), *b;
    assert_int_equal(perigee_tensor_to(a, (perigee_dtype)dtype, &b), 0);
    assert_true(perigee_tensor_equal(a, b));
    assert_true(perigee_tensor_equal(b, a));
    assert_true(perigee_tensor_equal(b, b));
    test_set(b, 499, scalar_int(dtype == PERIGEE_BOOL ? 499 % 7 == 0 : 8));
    assert_false(perigee_tensor_equal(a, b));
    assert_false(perigee_tensor_equal(b, a));
    perigee_tensor_unref(a);
    perigee_tensor_unref(b);
  }
  perigee_tensor *a = test_tensor(PERIGEE_I32, 6, 0), *b = test_tensor(PERIGEE_I32, 2, 3);
  perigee_tensor *c = test_tensor(PERIGEE_U32, 6, 0);
  assert_false(perigee_tensor_equal(a, b));
  assert_false(perigee_tensor_equal(a, c));
  perigee_tensor_unref(a);
  perigee_tensor_unref(b);
  perigee_tensor_unref(c);
  perigee_tensor *x = test_tensor(PERIGEE_F32, 1, 0), *y = test_tensor(PERIGEE_F32, 1, 0);
  test_set(x, 0, scalar_float((double)NAN));
  test_set(y, 0, scalar_float((double)NAN));
  assert_true(perigee_tensor_equal(x, y)); /* bits, not values */
  test_set(x, 0, scalar_float(0.0));
  test_set(y, 0, scalar_float(-0.0));
  assert_false(perigee_tensor_equal(x, y));
  perigee_tensor_unref(x);
  perigee_tensor_unref(y);
}

static bool close(perigee_dtype da, perigee_scalar a, perigee_dtype db, perigee_scalar b,
                  double rtol, double atol) {
  perigee_tensor *x = test_tensor(da, 1, 0), *y = test_tensor(db, 1, 0);
  test_set(x, 0, a);
  test_set(y, 0, b);
  const bool result = perigee_tensor_allclose(x, y, rtol, atol);
  perigee_tensor_unref(x);
  perigee_tensor_unref(y);
  return result;
}

static void test_allclose(void **state) {
  (void)state;
  const perigee_dtype f = PERIGEE_F64, i = PERIGEE_I64, u = PERIGEE_U64, c = PERIGEE_C64;
  const perigee_scalar inf = scalar_float((double)INFINITY), nan = scalar_float((double)NAN);
  assert_true(close(f, scalar_float(100.0), f, scalar_float(101.0), 0.01, 0.0));
  assert_false(close(f, scalar_float(100.0), f, scalar_float(101.0), 0.009, 0.0));
  assert_true(close(f, scalar_float(0.0), f, scalar_float(0.1), 0.0, 0.1));
  assert_true(close(PERIGEE_F16, scalar_float(0.1), f, scalar_float(0.1), 1e-3, 0.0));
  assert_false(close(f, nan, f, nan, 1.0, 1.0));
  assert_true(close(f, inf, PERIGEE_F32, inf, 0.0, 0.0));
  assert_false(close(f, scalar_float(1.0), f, inf, 0.5, 0.5));
  assert_false(close(f, inf, f, scalar_float(1.0), 0.5, 0.5));
  assert_false(close(i, scalar_int(INT64_MAX), i, scalar_int(INT64_MAX - 1), 0.0, 0.0));
  assert_true(close(i, scalar_int(INT64_MAX), u, scalar_uint(INT64_MAX), 0.0, 0.0));
  assert_false(close(i, scalar_int(-1), u, scalar_uint(UINT64_MAX), 0.0, 1.0));
  assert_true(close(c, scalar_complex(0.0, 1.0), c, scalar_complex(0.0, 1.5), 0.0, 0.5));
  assert_false(close(c, scalar_complex(0.0, 1.0), f, scalar_float(0.0), 0.0, 0.5));
  /* runs of different lengths, and the last element counts */
  perigee_tensor *a = sample(PERIGEE_F32), *b, *other = test_tensor(PERIGEE_F32, COLUMNS, ROWS);
  assert_int_equal(perigee_tensor_to(a, PERIGEE_I16, &b), 0);
  assert_true(perigee_tensor_allclose(a, b, 0.0, 0.0));
  assert_true(perigee_tensor_allclose(b, a, 0.0, 0.0));
  test_set(b, ROWS * COLUMNS - 1, scalar_int(50));
  assert_false(perigee_tensor_allclose(a, b, 0.0, 0.0));
  assert_false(perigee_tensor_allclose(a, other, 1e9, 1e9)); /* shape */
  perigee_tensor_unref(a);
  perigee_tensor_unref(b);
  perigee_tensor_unref(other);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_every_dtype), cmocka_unit_test(test_extremes),
      cmocka_unit_test(test_empty),       cmocka_unit_test(test_equal),
      cmocka_unit_test(test_allclose),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
