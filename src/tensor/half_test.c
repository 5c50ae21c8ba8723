/* 16-bit floats against their definition, in every variant of the instructions. */
#include "tensor/testing.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

#include "tensor/half.h"
#include "tensor/simd.h"

typedef struct format {
  const char *name;
  int fraction_bits, bias;
  float (*widen)(uint16_t half);
  uint16_t (*narrow)(float f);
  void (*widen_array)(float *dst, const void *src, size_t count);
  void (*narrow_array)(void *dst, const float *src, size_t count);
} format;

static const format formats[] = {
    {"f16", 10, 15, perigee__f16_to_f32, perigee__f32_to_f16, perigee__f16_to_f32_array,
     perigee__f32_to_f16_array},
    {"bf16", 7, 127, perigee__bf16_to_f32, perigee__f32_to_bf16, perigee__bf16_to_f32_array,
     perigee__f32_to_bf16_array},
};

/* ---- the definition, with arithmetic that is exact in f64 ------------------------------------------ */

static bool half_is_nan(const format *f, uint16_t h) {
  const unsigned infinite = ((1U << (15 - f->fraction_bits)) - 1) << f->fraction_bits;
  return (h & 0x7fffU) > infinite;
}

static double define_widen(const format *f, uint16_t h) {
  const int fraction = h & ((1 << f->fraction_bits) - 1), max = 2 * f->bias + 1;
  const int exponent = (h >> f->fraction_bits) & max;
  double size;
  if (exponent == max)
    size = fraction == 0 ? (double)INFINITY : (double)NAN;
  else if (exponent == 0)
    size = ldexp(fraction, 1 - f->bias - f->fraction_bits);
  else
    size = ldexp(fraction + (1 << f->fraction_bits), exponent - f->bias - f->fraction_bits);
  return (h & 0x8000) != 0 ? -size : size;
}

/* Not for NaN. */
static uint16_t define_narrow(const format *f, double x) {
  const unsigned sign = signbit(x) ? 0x8000 : 0;
  const unsigned infinite = (2U * (unsigned)f->bias + 1) << f->fraction_bits;
  x = fabs(x);
  if (isinf(x))
    return (uint16_t)(sign | infinite);
  if (x == 0.0)
    return (uint16_t)sign;
  int exponent = ilogb(x) < 1 - f->bias ? 1 - f->bias : ilogb(x);
  /* in units of the last place: nearbyint rounds ties to even */
  double units = nearbyint(ldexp(x, f->fraction_bits - exponent));
  unsigned bits = (unsigned)units + ((unsigned)(exponent + f->bias - 1) << f->fraction_bits);
  return (uint16_t)(sign | (bits > infinite ? infinite : bits));
}

/* ---- tests ------------------------------------------------------------------------------------------ */

/* Every 16-bit pattern widens to exactly its value, and back to itself. */
static void test_all_halves(void **state) {
  (void)state;
  for (size_t k = 0; k < sizeof(formats) / sizeof(formats[0]); k++) {
    const format *f = &formats[k];
    for (uint32_t h = 0; h <= 0xffff; h++) {
      const float wide = f->widen((uint16_t)h);
      if (half_is_nan(f, (uint16_t)h)) {
        const uint16_t quiet = (uint16_t)(h | 1U << (f->fraction_bits - 1));
        assert_true(isnan(wide));
        assert_int_equal(f->narrow(wide), quiet);
        continue;
      }
      const double expected = define_widen(f, (uint16_t)h);
      if ((double)wide != expected || !signbit(wide) != !signbit(expected))
        fail_msg("%s 0x%04x widens to %a, not %a", f->name, h, (double)wide, expected);
      assert_int_equal(f->narrow(wide), h);
      assert_int_equal(define_narrow(f, expected), h);
    }
  }
}

/* Between any two neighbours: the tie goes to the even one, a step beside it to the nearer one. */
static void test_ties(void **state) {
  (void)state;
  for (size_t k = 0; k < sizeof(formats) / sizeof(formats[0]); k++) {
    const format *f = &formats[k];
    const unsigned infinite = (2U * (unsigned)f->bias + 1) << f->fraction_bits;
    for (uint32_t h = 0; h < infinite; h++) {
      /* above the largest comes the power of two that the format lacks: inf */
      const double low = define_widen(f, (uint16_t)h);
      const double high =
          h + 1 < infinite ? define_widen(f, (uint16_t)(h + 1)) : ldexp(1.0, f->bias + 1);
      const float tie = (float)((low + high) / 2);
      assert_true((double)tie == (low + high) / 2);
      assert_int_equal(f->narrow(tie), (h & 1) != 0 ? h + 1 : h);
      assert_int_equal(f->narrow(nextafterf(tie, 0.0F)), h);
      assert_int_equal(f->narrow(nextafterf(tie, INFINITY)), h + 1);
      assert_int_equal(f->narrow(-tie), 0x8000 | ((h & 1) != 0 ? h + 1 : h));
    }
  }
}

/* Any f32 and any f64 round as defined; an f64 only once. */
static void test_random_values(void **state) {
  (void)state;
  uint64_t seed = 1;
  for (size_t k = 0; k < sizeof(formats) / sizeof(formats[0]); k++) {
    const format *f = &formats[k];
    for (int i = 0; i < 300000; i++) {
      const float x = perigee__f32_from_bits((uint32_t)(test_random(&seed) >> 32));
      if (!isnan(x))
        assert_int_equal(f->narrow(x), define_narrow(f, (double)x));
      /* around a tie of two neighbours, nearer to it than an f32 can tell */
      const uint16_t h = (uint16_t)(test_random(&seed) % (0x7b00U));
      const double low = define_widen(f, h), high = define_widen(f, (uint16_t)(h + 1));
      const double tie = (low + high) / 2, above = nextafter(tie, (double)INFINITY);
      assert_int_equal(f->narrow(perigee__f64_to_f32_odd(tie)), (h & 1) != 0 ? h + 1 : h);
      assert_int_equal(f->narrow(perigee__f64_to_f32_odd(above)), h + 1);
      assert_int_equal(f->narrow(perigee__f64_to_f32_odd(nextafter(tie, 0.0))), h);
    }
    assert_int_equal(f->narrow(perigee__f64_to_f32_odd(1e300)), define_narrow(f, (double)INFINITY));
    assert_int_equal(f->narrow(perigee__f64_to_f32_odd(-1e300)),
                     define_narrow(f, -(double)INFINITY));
    assert_int_equal(f->narrow(perigee__f64_to_f32_odd(-1e-300)), 0x8000);
    assert_true(half_is_nan(f, f->narrow(perigee__f64_to_f32_odd((double)NAN))));
  }
}

/* The array forms give the bits of the scalar forms, for all patterns, in every variant, at any length. */
static void test_arrays(void **state) {
  (void)state;
  enum {
    N = 65536
  };
  uint16_t *halves = malloc(N * sizeof(uint16_t)), *back = malloc(N * sizeof(uint16_t));
  float *wide = malloc(N * sizeof(float));
  uint64_t seed = 7;
  for (int level = 0; level < PERIGEE__SIMD_COUNT; level++) {
    perigee__simd_force(level);
    for (size_t k = 0; k < sizeof(formats) / sizeof(formats[0]); k++) {
      const format *f = &formats[k];
      for (uint32_t h = 0; h < N; h++)
        halves[h] = (uint16_t)h;
      f->widen_array(wide, halves, N);
      f->narrow_array(back, wide, N);
      for (uint32_t h = 0; h < N; h++) {
        assert_int_equal(perigee__f32_bits(wide[h]), perigee__f32_bits(f->widen((uint16_t)h)));
        assert_int_equal(back[h], f->narrow(wide[h]));
      }
      for (int round = 0; round < 10; round++) {
        for (uint32_t h = 0; h < N; h++)
          wide[h] = perigee__f32_from_bits((uint32_t)(test_random(&seed) >> 32));
        for (uint32_t h = 0; h + 1 < N; h += 2) { /* ties and their neighbours, subnormals too */
          const uint16_t low = (uint16_t)(h & 0x7fff);
          const float a = f->widen(low), b = f->widen((uint16_t)(low + 1));
          wide[h] = nextafterf(a / 2 + b / 2, round % 3 == 0   ? INFINITY
                                              : round % 3 == 1 ? 0.0F
                                                               : a / 2 + b / 2);
        }
        f->narrow_array(back, wide, N);
        for (uint32_t h = 0; h < N; h++)
          assert_int_equal(back[h], f->narrow(wide[h]));
      }
      for (size_t n = 0; n < 70; n++) {
        memset(back, 0xab, 80 * sizeof(*back));
        f->narrow_array(back, wide, n);
        for (size_t h = 0; h < 80; h++)
          assert_int_equal(back[h], h < n ? f->narrow(wide[h]) : 0xabab);
      }
    }
  }
  perigee__simd_force(-1);
  free(halves);
  free(back);
  free(wide);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_all_halves),
      cmocka_unit_test(test_ties),
      cmocka_unit_test(test_random_values),
      cmocka_unit_test(test_arrays),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
