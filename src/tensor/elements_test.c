/* Copies, conversions, single elements. */
#include "tensor/testing.h"

#include <math.h>
#include <stdbool.h>

#include "base/attr.h"
#include "tensor/dtype.h"
#include "tensor/half.h"

static bool is_integer(perigee_dtype dtype) {
  const int class = perigee__dtype_class(dtype);
  return class == PERIGEE_SCALAR_INT || class == PERIGEE_SCALAR_UINT;
}

static void limits(perigee_dtype dtype, double *min_p, double *max_p) {
  const int bits = (int)perigee_dtype_size(dtype) * 8;
  const bool is_signed = perigee__dtype_class(dtype) == PERIGEE_SCALAR_INT;
  *max_p = ldexp(1.0, is_signed ? bits - 1 : bits) - 1;
  *min_p = is_signed ? -ldexp(1.0, bits - 1) : 0.0;
}

/* What x of one dtype becomes in another, for values that are exact in f64 and in the source. */
static double define_convert(double x, perigee_dtype to) {
  double min, max;
  if (to == PERIGEE_BOOL)
    return x != 0.0;
  if (is_integer(to)) {
    limits(to, &min, &max);
    x = isnan(x) ? 0.0 : trunc(x);
    return x < min ? min : x > max ? max : x;
  }
  if (to == PERIGEE_F16)
    return (double)perigee__f16_to_f32(perigee__f32_to_f16((float)x));
  if (to == PERIGEE_BF16)
    return (double)perigee__bf16_to_f32(perigee__f32_to_bf16((float)x));
  return to == PERIGEE_F32 || to == PERIGEE_C64 ? (double)(float)x : x;
}

static void check_copy(const perigee_tensor *dst, const perigee_tensor *src) {
  for (int64_t k = 0; k < src->numel; k++) {
    const double x = test_number(src, k), got = test_number(dst, k);
    const double expected = define_convert(x, dst->dtype);
    if (got != expected && !(isnan(got) && isnan(expected)))
      fail_msg("%s %g becomes %s %g, not %g", perigee_dtype_name(src->dtype), x,
               perigee_dtype_name(dst->dtype), got, expected);
  }
}

/* Every dtype to every dtype, in all four combinations of contiguous and strided, over several blocks. */
static void test_every_pair(void **state) {
  (void)state;
  static const double values[] = {0,    1,    -1,  2.5, -2.5,  100.75, 127, 128,
                                  -128, -129, 255, 256, -0.99, 300,    1e6, -1e6};
  enum {
    ROWS = 20,
    COLUMNS = 16
  };
  for (int from = 0; from < PERIGEE_DTYPE_COUNT; from++)
    for (int to = 0; to < PERIGEE_DTYPE_COUNT; to++)
      for (int strided = 0; strided < 4; strided++) {
        perigee_tensor *big_src = test_tensor((perigee_dtype)from, ROWS, COLUMNS + 3), *src;
        perigee_tensor *big_dst = test_tensor((perigee_dtype)to, ROWS, COLUMNS + 1), *dst;
        perigee_scalar fill = scalar_int(1);
        assert_int_equal(perigee_tensor_fill(big_dst, &fill), 0);
        if ((strided & 1) != 0) {
          assert_int_equal(perigee_tensor_narrow(big_src, 1, 2, COLUMNS, &src), 0);
        } else {
          src = test_tensor((perigee_dtype)from, ROWS, COLUMNS);
        }
        if ((strided & 2) != 0) {
          assert_int_equal(perigee_tensor_narrow(big_dst, 1, 0, COLUMNS, &dst), 0);
        } else {
          dst = test_tensor((perigee_dtype)to, ROWS, COLUMNS);
        }
        for (int64_t k = 0; k < src->numel; k++)
          test_set(src, k, scalar_float(values[(size_t)(k + k / 16) % PERIGEE_COUNT(values)]));
        assert_int_equal(perigee_tensor_copy(dst, src), 0);
        check_copy(dst, src);
        if ((strided & 2) != 0) /* what lies between the rows is untouched */
          for (int64_t row = 0; row < ROWS; row++)
            assert_true(test_number(big_dst, row * (COLUMNS + 1) + COLUMNS) == 1.0);
        perigee_tensor *made;
        assert_int_equal(perigee_tensor_to(src, (perigee_dtype)to, &made), 0);
        assert_true(perigee_tensor_equal(made, dst));
        perigee_tensor_unref(made);
        perigee_tensor_unref(src);
        perigee_tensor_unref(dst);
        perigee_tensor_unref(big_src);
        perigee_tensor_unref(big_dst);
      }
}

static void test_saturation(void **state) {
  (void)state;
  static const double extreme[] = {1e30, -1e30, (double)INFINITY, -(double)INFINITY, (double)NAN};
  for (int to = 0; to < PERIGEE_DTYPE_COUNT; to++) {
    if (!is_integer((perigee_dtype)to))
      continue;
    double min, max;
    limits((perigee_dtype)to, &min, &max);
    perigee_tensor *t = test_tensor((perigee_dtype)to, 1, 0);
    for (size_t k = 0; k < PERIGEE_COUNT(extreme); k++) {
      test_set(t, 0, scalar_float(extreme[k]));
      const double expected = isnan(extreme[k]) ? 0.0 : extreme[k] > 0.0 ? max : min;
      assert_true(test_number(t, 0) == expected);
    }
    test_set(t, 0, scalar_uint(UINT64_MAX));
    assert_true(test_number(t, 0) == max);
    test_set(t, 0, scalar_int(INT64_MIN));
    assert_true(test_number(t, 0) == min);
    perigee_tensor_unref(t);
  }
  perigee_tensor *i64 = test_tensor(PERIGEE_I64, 1, 0), *u64 = test_tensor(PERIGEE_U64, 1, 0);
  /* 2^63 and 2^64 are the first values that do not fit; what is exact must stay exact */
  test_set(i64, 0, scalar_float(0x1p63));
  assert_true(test_get(i64, 0).i == INT64_MAX);
  test_set(i64, 0, scalar_float(-0x1p63));
  assert_true(test_get(i64, 0).i == INT64_MIN);
  test_set(u64, 0, scalar_float(0x1p63));
  assert_true(test_get(u64, 0).u == UINT64_C(1) << 63);
  test_set(u64, 0, scalar_float(0x1p64));
  assert_true(test_get(u64, 0).u == UINT64_MAX);
  test_set(i64, 0, scalar_int(INT64_MAX - 1));
  assert_int_equal(perigee_tensor_copy(u64, i64), 0);
  assert_true(test_get(u64, 0).u == (uint64_t)INT64_MAX - 1);
  perigee_tensor_unref(i64);
  perigee_tensor_unref(u64);
}

/* A 64-bit integer, or an f64, goes to f32, f16 and bf16 in one rounding: a bit below what an f64 or f32 can hold
 * decides a tie. */
static void test_single_rounding(void **state) {
  (void)state;
  perigee_tensor *i64 = test_tensor(PERIGEE_I64, 1, 0), *u64 = test_tensor(PERIGEE_U64, 1, 0);
  perigee_tensor *f64 = test_tensor(PERIGEE_F64, 1, 0), *out;
  const int64_t tie32 = (INT64_C(1) << 62) + (INT64_C(1) << 38); /* between two f32 */
  const struct {
    const perigee_tensor *from;
    perigee_scalar value;
    perigee_dtype to;
    double expected;
  } cases[] = {
      {i64, scalar_int(tie32), PERIGEE_F32, 0x1p62},
      {i64, scalar_int(tie32 + 1), PERIGEE_F32, 0x1p62 + 0x1p39},
      {i64, scalar_int(-tie32 - 1), PERIGEE_F32, -0x1p62 - 0x1p39},
      {u64, scalar_uint((UINT64_C(1) << 63) + (UINT64_C(1) << 55)), PERIGEE_BF16, 0x1p63},
      {u64, scalar_uint((UINT64_C(1) << 63) + (UINT64_C(1) << 55) + 1), PERIGEE_BF16,
       0x1p63 + 0x1p56},
      {f64, scalar_float(1.0 + 0x1p-11), PERIGEE_F16, 1.0},
      {f64, scalar_float(1.0 + 0x1p-11 + 0x1p-40), PERIGEE_F16, 1.0 + 0x1p-10},
      {f64, scalar_float(1.0 + 0x1p-8 + 0x1p-50), PERIGEE_BF16, 1.0 + 0x1p-7},
  };
  for (size_t k = 0; k < PERIGEE_COUNT(cases); k++) {
    perigee_tensor *from = cases[k].from == i64 ? i64 : cases[k].from == u64 ? u64 : f64;
    test_set(from, 0, cases[k].value);
    assert_int_equal(perigee_tensor_to(from, cases[k].to, &out), 0);
    if (test_number(out, 0) != cases[k].expected)
      fail_msg("case %zu gives %a", k, test_number(out, 0));
    perigee_tensor_unref(out);
  }
  perigee_tensor_unref(i64);
  perigee_tensor_unref(u64);
  perigee_tensor_unref(f64);
}

static void test_complex(void **state) {
  (void)state;
  perigee_tensor *c = test_tensor(PERIGEE_C64, 2, 0), *out;
  test_set(c, 0, scalar_complex(0.0, 3.0));
  test_set(c, 1, scalar_complex(-1.5, 2.0));
  assert_int_equal(perigee_tensor_to(c, PERIGEE_C128, &out), 0);
  assert_true(test_get(out, 1).re == -1.5 && test_get(out, 1).im == 2.0);
  perigee_tensor_unref(out);
  assert_int_equal(perigee_tensor_to(c, PERIGEE_BOOL, &out), 0);
  assert_int_equal(test_get(out, 0).i, 1); /* 3i is not 0 */
  perigee_tensor_unref(out);
  assert_int_equal(perigee_tensor_to(c, PERIGEE_F32, &out), 0);
  assert_true(test_get(out, 0).re == 0.0 && test_get(out, 1).re == -1.5);
  perigee_tensor_unref(out);
  test_set(c, 1, scalar_float(7.0)); /* real to complex clears im */
  assert_true(test_get(c, 1).re == 7.0 && test_get(c, 1).im == 0.0);
  perigee_tensor_unref(c);
}

/* The same dtype keeps bits: NaN payloads, bools that are neither 0 nor 1. */
static void test_bits(void **state) {
  (void)state;
  perigee_tensor *a = test_tensor(PERIGEE_F32, 2, 0), *b = test_tensor(PERIGEE_F32, 2, 0);
  ((float *)a->data)[0] = perigee__f32_from_bits(0x7f812345);
  assert_int_equal(perigee_tensor_copy(b, a), 0);
  assert_memory_equal(a->data, b->data, 8);
  assert_true(perigee_tensor_equal(a, b));
  assert_int_equal(perigee_tensor_copy(a, a), 0);
  perigee_tensor_unref(a);
  perigee_tensor_unref(b);
  perigee_tensor *odd = test_tensor(PERIGEE_BOOL, 1, 0);
  *(uint8_t *)odd->data = 77;
  const perigee_scalar v = test_get(odd, 0);
  assert_int_equal(v.kind, PERIGEE_SCALAR_BOOL);
  assert_int_equal(v.i, 1);
  perigee_tensor_unref(odd);
}

static void test_scalars(void **state) {
  (void)state;
  perigee_tensor *big = test_tensor(PERIGEE_I16, 4, 5), *t;
  assert_int_equal(perigee_tensor_narrow(big, 1, 1, 3, &t), 0);
  perigee_scalar v = scalar_float(-3.9);
  assert_int_equal(perigee_tensor_fill(t, &v), 0);
  for (int64_t k = 0; k < 20; k++)
    assert_true(test_number(big, k) == (k % 5 >= 1 && k % 5 <= 3 ? -3.0 : 0.0));
  test_set(t, 11, scalar_uint(9));
  assert_true(test_number(big, 18) == 9.0);
  assert_int_equal(test_get(t, 11).kind, PERIGEE_SCALAR_INT);
  assert_fails(perigee_tensor_get(t, 12, &v), PERIGEE_ERANGE, "index 12 of i16[4,3]");
  assert_fails(perigee_tensor_set(t, -1, &v), PERIGEE_ERANGE, "index -1");
  memset(&v, 0x7f, sizeof(v)); /* a kind that is none */
  assert_fails(perigee_tensor_set(t, 0, &v), PERIGEE_EINVAL, "kind");
  assert_fails(perigee_tensor_fill(t, &v), PERIGEE_EINVAL, "kind");
  perigee_tensor_unref(t);
  perigee_tensor_unref(big);
}

static void test_errors(void **state) {
  (void)state;
  perigee_tensor *a = test_tensor(PERIGEE_F32, 2, 3), *b = test_tensor(PERIGEE_F32, 3, 2);
  perigee_tensor *out = NULL;
  assert_fails(perigee_tensor_copy(a, b), PERIGEE_ESHAPE, "f32[2,3] and f32[3,2]");
  assert_fails(perigee_tensor_to(a, (perigee_dtype)99, &out), PERIGEE_EDTYPE, "99");
  assert_null(out);
  perigee_tensor_unref(a);
  perigee_tensor_unref(b);
  a = test_tensor(PERIGEE_F16, 0, 0);
  assert_int_equal(perigee_tensor_to(a, PERIGEE_I8, &out), 0); /* nothing to do is no error */
  perigee_tensor_unref(out);
  perigee_tensor_unref(a);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_every_pair),
      cmocka_unit_test(test_saturation),
      cmocka_unit_test(test_single_rounding),
      cmocka_unit_test(test_complex),
      cmocka_unit_test(test_bits),
      cmocka_unit_test(test_scalars),
      cmocka_unit_test(test_errors),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
