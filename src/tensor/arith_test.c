/* Elementwise arithmetic. */
#include "tensor/testing.h"

#include <math.h>
#include <stdbool.h>

#include "base/attr.h"
#include "tensor/dtype.h"
#include "tensor/half.h"

static const char *const names[] = {"add", "sub", "mul", "div", "maximum", "minimum"};

static bool is_float(perigee_dtype dtype) {
  return perigee__dtype_class(dtype) == PERIGEE_SCALAR_FLOAT;
}

/* For small values that are exact in every dtype. */
static double define_op(int op, perigee_dtype dtype, double x, double y) {
  double r = 0.0;
  switch (op) {
  case PERIGEE_ADD:
    r = x + y;
    break;
  case PERIGEE_SUB:
    r = x - y;
    break;
  case PERIGEE_MUL:
    r = x * y;
    break;
  case PERIGEE_DIV:
    r = is_float(dtype) || dtype >= PERIGEE_C64 ? x / y : trunc(x / y);
    break;
  case PERIGEE_MAXIMUM:
    r = x > y ? x : y;
    break;
  default:
    r = x < y ? x : y;
  }
  if (dtype == PERIGEE_F32 || dtype == PERIGEE_C64)
    return (double)(float)r;
  if (dtype == PERIGEE_F16)
    return (double)perigee__f16_to_f32(perigee__f32_to_f16((float)r));
  if (dtype == PERIGEE_BF16)
    return (double)perigee__bf16_to_f32(perigee__f32_to_bf16((float)r));
  return r;
}

/* 300 columns: longer than the blocks of the 16-bit floats. */
enum {
  ROWS = 3,
  COLUMNS = 300
};

/* A tensor of x's: its own memory, or columns of a wider one in *whole_p. */
static perigee_tensor *operand(perigee_dtype dtype, bool strided, int mul,
                               perigee_tensor **whole_p) {
  perigee_tensor *t;
  *whole_p = test_tensor(dtype, ROWS, COLUMNS + (strided ? 2 : 0));
  assert_int_equal(perigee_tensor_narrow(*whole_p, 1, 0, COLUMNS, &t), 0);
  for (int64_t k = 0; k < t->numel;
       k++) /* a in 4..8, b in 1..4: sums, differences, products fit in u8 */
    test_set(t, k, scalar_int(mul == 1 ? 4 + k % 5 : 1 + k * 3 % 4));
  return t;
}

static void check_binary(int op, perigee_dtype dtype, bool sa, bool sb, bool scalar) {
  perigee_tensor *whole_a, *whole_b, *a = operand(dtype, sa, 1, &whole_a);
  perigee_tensor *b = operand(dtype, sb, 2, &whole_b), *before;
  const perigee_scalar three = scalar_int(3);
  assert_int_equal(perigee_tensor_to(a, dtype, &before), 0);
  if (scalar)
    assert_int_equal(perigee_tensor_binary_scalar((perigee_binop)op, a, &three), 0);
  else
    assert_int_equal(perigee_tensor_binary((perigee_binop)op, a, b), 0);
  for (int64_t k = 0; k < a->numel; k++) {
    const double x = test_number(before, k), y = scalar ? 3.0 : test_number(b, k);
    if (test_number(a, k) != define_op(op, dtype, x, y))
      fail_msg("%s: %g %s %g gives %g", perigee_dtype_name(dtype), x, names[op], y,
               test_number(a, k));
  }
  if (sa)
    assert_true(test_number(whole_a, COLUMNS) == 0.0);
  perigee_tensor_unref(before);
  perigee_tensor_unref(a);
  perigee_tensor_unref(b);
  perigee_tensor_unref(whole_a);
  perigee_tensor_unref(whole_b);
}

static void test_binary(void **state) {
  (void)state;
  for (int dtype = 0; dtype < PERIGEE_DTYPE_COUNT; dtype++)
    for (int op = 0; op <= PERIGEE_MINIMUM; op++) {
      if (dtype == PERIGEE_BOOL || (dtype >= PERIGEE_C64 && op >= PERIGEE_MAXIMUM))
        continue;
      for (int form = 0; form < 6; form++)
        check_binary(op, (perigee_dtype)dtype, (form & 1) != 0, (form & 2) != 0, form >= 4);
    }
}

static void test_wrapping(void **state) {
  (void)state;
  const struct {
    perigee_dtype dtype;
    int op;
    int64_t x, y, expected;
  } cases[] = {
      {PERIGEE_I8, PERIGEE_ADD, 127, 1, -128},
      {PERIGEE_I8, PERIGEE_DIV, -128, -1, -128},
      {PERIGEE_I8, PERIGEE_DIV, -7, 2, -3},
      {PERIGEE_U8, PERIGEE_SUB, 0, 1, 255},
      {PERIGEE_U16, PERIGEE_MUL, 65535, 65535, 1},
      {PERIGEE_I16, PERIGEE_MUL, -32768, -32768, 0},
      {PERIGEE_I32, PERIGEE_ADD, INT32_MAX, 1, INT32_MIN},
      {PERIGEE_I32, PERIGEE_DIV, INT32_MIN, -1, INT32_MIN},
      {PERIGEE_I64, PERIGEE_ADD, INT64_MAX, 1, INT64_MIN},
      {PERIGEE_I64, PERIGEE_DIV, INT64_MIN, -1, INT64_MIN},
      {PERIGEE_I64, PERIGEE_MUL, INT64_MIN, 3, INT64_MIN},
      {PERIGEE_U32, PERIGEE_ADD, UINT32_MAX, 2, 1},
  };
  for (size_t k = 0; k < PERIGEE_COUNT(cases); k++) {
    perigee_tensor *t = test_tensor(cases[k].dtype, 1, 0);
    test_set(t, 0, scalar_int(cases[k].x));
    const perigee_scalar y = scalar_int(cases[k].y);
    assert_int_equal(perigee_tensor_binary_scalar((perigee_binop)cases[k].op, t, &y), 0);
    const perigee_scalar got = test_get(t, 0);
    assert_true((got.kind == PERIGEE_SCALAR_INT ? got.i : (int64_t)got.u) == cases[k].expected);
    perigee_tensor_unref(t);
  }
}

static void test_floats(void **state) {
  (void)state;
  perigee_tensor *t = test_tensor(PERIGEE_F16, 1, 0);
  perigee_scalar v;
  /* the exact sum is nearer to 2050; a scalar rounded to f16 would be 1 and make a tie that goes to 2048 */
  test_set(t, 0, scalar_float(2048.0));
  v = scalar_float(1.0004);
  assert_int_equal(perigee_tensor_binary_scalar(PERIGEE_ADD, t, &v), 0);
  assert_true(test_number(t, 0) == 2050.0);
  perigee_tensor_unref(t);

  for (int dtype = PERIGEE_F16; dtype <= PERIGEE_F64; dtype++) /* NaN from either side */
    for (int op = PERIGEE_MAXIMUM; op <= PERIGEE_MINIMUM; op++) {
      perigee_tensor *a = test_tensor((perigee_dtype)dtype, 2, 0);
      perigee_tensor *b = test_tensor((perigee_dtype)dtype, 2, 0);
      test_set(a, 0, scalar_float((double)NAN));
      test_set(b, 1, scalar_float((double)NAN));
      assert_int_equal(perigee_tensor_binary((perigee_binop)op, a, b), 0);
      assert_true(isnan(test_number(a, 0)) && isnan(test_number(a, 1)));
      perigee_tensor_unref(a);
      perigee_tensor_unref(b);
    }

  t = test_tensor(PERIGEE_F32, 1, 0);
  test_set(t, 0, scalar_float(1.0));
  v = scalar_float(0.0);
  assert_int_equal(perigee_tensor_binary_scalar(PERIGEE_DIV, t, &v), 0);
  assert_true(isinf(test_number(t, 0)));
  perigee_tensor_unref(t);
}

static void test_complex(void **state) {
  (void)state;
  for (int dtype = PERIGEE_C64; dtype <= PERIGEE_C128; dtype++) {
    perigee_tensor *a = test_tensor((perigee_dtype)dtype, 1, 0);
    const perigee_scalar y = scalar_complex(1.0, -2.0), i = scalar_complex(0.0, 1.0);
    test_set(a, 0, scalar_complex(3.0, 4.0));
    assert_int_equal(perigee_tensor_binary_scalar(PERIGEE_MUL, a, &y), 0);
    assert_true(test_get(a, 0).re == 11.0 && test_get(a, 0).im == -2.0);
    assert_int_equal(perigee_tensor_binary_scalar(PERIGEE_DIV, a, &y), 0);
    assert_true(test_get(a, 0).re == 3.0 && test_get(a, 0).im == 4.0);
    assert_int_equal(perigee_tensor_binary_scalar(PERIGEE_DIV, a, &i), 0);
    assert_true(test_get(a, 0).re == 4.0 && test_get(a, 0).im == -3.0);
    assert_int_equal(perigee_tensor_abs(a), 0);
    assert_true(test_get(a, 0).re == 5.0 && test_get(a, 0).im == 0.0);
    perigee_tensor_unref(a);
  }
}

static void test_axpy(void **state) {
  (void)state;
  for (int dtype = PERIGEE_F16; dtype <= PERIGEE_F64; dtype++)
    for (int strided = 0; strided < 2; strided++) {
      perigee_tensor *whole_a, *whole_b, *before;
      perigee_tensor *a = operand((perigee_dtype)dtype, strided != 0, 1, &whole_a);
      perigee_tensor *b = operand((perigee_dtype)dtype, false, 2, &whole_b);
      assert_int_equal(perigee_tensor_to(a, PERIGEE_F64, &before), 0);
      assert_int_equal(perigee_tensor_axpy(a, -0.25, b), 0);
      for (int64_t k = 0; k < a->numel; k++)
        assert_true(test_number(a, k) == test_number(before, k) - 0.25 * test_number(b, k));
      perigee_tensor_unref(before);
      perigee_tensor_unref(a);
      perigee_tensor_unref(b);
      perigee_tensor_unref(whole_a);
      perigee_tensor_unref(whole_b);
    }
  perigee_tensor *i = test_tensor(PERIGEE_I32, 1, 0), *c = test_tensor(PERIGEE_C64, 1, 0);
  assert_fails(perigee_tensor_axpy(i, 1.0, i), PERIGEE_EDTYPE, "axpy is not defined for i32");
  assert_fails(perigee_tensor_axpy(c, 1.0, c), PERIGEE_EDTYPE, "c64");
  perigee_tensor_unref(i);
  perigee_tensor_unref(c);
}

static void test_abs(void **state) {
  (void)state;
  for (int dtype = 0; dtype < PERIGEE_C64; dtype++) {
    perigee_tensor *whole, *t = operand((perigee_dtype)dtype, true, 1, &whole), *before;
    const int class = perigee__dtype_class((perigee_dtype)dtype);
    if (class == PERIGEE_SCALAR_INT || class == PERIGEE_SCALAR_FLOAT)
      for (int64_t k = 0; k < t->numel; k += 2)
        test_set(t, k, scalar_int(-5));
    assert_int_equal(perigee_tensor_to(t, (perigee_dtype)dtype, &before), 0);
    assert_int_equal(perigee_tensor_abs(t), 0);
    for (int64_t k = 0; k < t->numel; k++)
      assert_true(test_number(t, k) == fabs(test_number(before, k)));
    perigee_tensor_unref(before);
    perigee_tensor_unref(t);
    perigee_tensor_unref(whole);
  }
  perigee_tensor *t = test_tensor(PERIGEE_I64, 1, 0);
  test_set(t, 0, scalar_int(INT64_MIN));
  assert_int_equal(perigee_tensor_abs(t), 0);
  assert_true(test_get(t, 0).i == INT64_MIN); /* wraps */
  perigee_tensor_unref(t);
}

static void test_errors(void **state) {
  (void)state;
  perigee_tensor *a = test_tensor(PERIGEE_I32, 2, 3), *b = test_tensor(PERIGEE_I32, 3, 2);
  perigee_tensor *u = test_tensor(PERIGEE_U32, 2, 3), *flag = test_tensor(PERIGEE_BOOL, 1, 0);
  perigee_tensor *c = test_tensor(PERIGEE_C128, 1, 0), *d = test_tensor(PERIGEE_I32, 2, 3);
  perigee_scalar v = scalar_int(5), zero = scalar_float(0.5); /* 0.5 as i32 is 0 */
  assert_fails(perigee_tensor_binary(PERIGEE_SUB, a, b), PERIGEE_ESHAPE,
               "sub: shapes differ, i32[2,3] and i32[3,2]");
  assert_fails(perigee_tensor_binary(PERIGEE_ADD, a, u), PERIGEE_EDTYPE, "i32 and u32");
  assert_fails(perigee_tensor_binary(PERIGEE_ADD, flag, flag), PERIGEE_EDTYPE,
               "add is not defined for bool");
  assert_fails(perigee_tensor_binary_scalar(PERIGEE_MAXIMUM, c, &v), PERIGEE_EDTYPE,
               "maximum is not defined for c128");
  assert_fails(perigee_tensor_binary((perigee_binop)6, a, a), PERIGEE_EINVAL, "op 6");
  assert_int_equal(perigee_tensor_fill(a, &v), 0);
  assert_int_equal(perigee_tensor_fill(d, &v), 0);
  test_set(d, 5, scalar_int(0));
  assert_fails(perigee_tensor_binary(PERIGEE_DIV, a, d), PERIGEE_EINVAL, "division by zero");
  assert_fails(perigee_tensor_binary_scalar(PERIGEE_DIV, a, &zero), PERIGEE_EINVAL,
               "division by zero");
  for (int64_t k = 0; k < 6; k++)
    assert_int_equal(test_get(a, k).i, 5); /* a refused call changes nothing */
  memset(&v, 0x7f, sizeof(v));
  assert_fails(perigee_tensor_binary_scalar(PERIGEE_ADD, a, &v), PERIGEE_EINVAL, "kind");
  perigee_tensor_unref(a);
  perigee_tensor_unref(b);
  perigee_tensor_unref(c);
  perigee_tensor_unref(d);
  perigee_tensor_unref(u);
  perigee_tensor_unref(flag);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_binary), cmocka_unit_test(test_wrapping),
      cmocka_unit_test(test_floats), cmocka_unit_test(test_complex),
      cmocka_unit_test(test_axpy),   cmocka_unit_test(test_abs),
      cmocka_unit_test(test_errors),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
