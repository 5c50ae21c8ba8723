/*
 * 16-bit floats: f16 (IEEE 754 binary16) and bf16 (the upper half of an f32).
 *
 * To 16 bits: round to nearest, ties to even; too large becomes inf; subnormals are kept; a NaN becomes a quiet
 * NaN with its sign and upper payload. To f32: exact; f16 signalling NaNs become quiet. The scalar forms here and
 * the vector forms give the same bits as the F16C instructions, whatever the denormal modes of the CPU are.
 */
#ifndef PERIGEE_TENSOR_HALF_H
#define PERIGEE_TENSOR_HALF_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline uint32_t perigee__f32_bits(float f) {
  uint32_t bits;
  memcpy(&bits, &f, sizeof(bits));
  return bits;
}

static inline float perigee__f32_from_bits(uint32_t bits) {
  float f;
  memcpy(&f, &bits, sizeof(f));
  return f;
}

static inline float perigee__f16_to_f32(uint16_t half) {
  uint32_t sign = (uint32_t)(half & 0x8000) << 16;
  uint32_t exponent = (half >> 10) & 0x1f, fraction = half & 0x3ff;
  if (exponent == 0) /* zero or subnormal: fraction * 2^-24 is a normal f32 */
    return perigee__f32_from_bits(sign | perigee__f32_bits((float)fraction * 0x1p-24f));
  if (exponent == 0x1f)
    return perigee__f32_from_bits(sign | 0x7f800000 | fraction << 13 |
                                  (fraction != 0 ? 0x400000 : 0));
  return perigee__f32_from_bits(sign | (exponent + 112) << 23 | fraction << 13);
}

static inline uint16_t perigee__f32_to_f16(float f) {
  uint32_t x = perigee__f32_bits(f), sign = (x >> 16) & 0x8000;
  x &= 0x7fffffff;
  if (x > 0x7f800000) /* NaN */
    return (uint16_t)(sign | 0x7e00 | ((x >> 13) & 0x3ff));
  if (x >= 0x477ff000) /* 65520 and above: half way to 65536 rounds to the even one, which is inf */
    return (uint16_t)(sign | 0x7c00);
  if (x >=
      0x38800000) /* 2^-14: normal; the carry of the rounding may step the exponent, as it should */
    return (uint16_t)(sign | ((x + 0xfff + ((x >> 13) & 1) - (112U << 23)) >> 13));
  if (x < 0x33000000) /* below 2^-25: nearer to 0 */
    return (uint16_t)sign;
  uint32_t shift = 126 - (x >> 23), fraction = (x & 0x7fffff) | 0x800000;
  uint32_t kept = fraction >> shift, lost = fraction & ((1U << shift) - 1), tie = 1U << (shift - 1);
  if (lost > tie || (lost == tie && (kept & 1) != 0))
    kept++;
  return (uint16_t)(sign | kept);
}

static inline float perigee__bf16_to_f32(uint16_t half) {
  return perigee__f32_from_bits((uint32_t)half << 16);
}

static inline uint16_t perigee__f32_to_bf16(float f) {
  uint32_t x = perigee__f32_bits(f);
  if ((x & 0x7fffffff) > 0x7f800000)
    return (uint16_t)(x >> 16 | 0x40);
  return (uint16_t)((x + 0x7fff + ((x >> 16) & 1)) >> 16);
}

/** An f64 as the f32 that rounds to the same 16-bit float as the f64 itself: inexact values become odd, so that
 *  the second rounding never sees a tie which the first one made. */
static inline float perigee__f64_to_f32_odd(double d) {
  float f = (float)d;
  double back = (double)f;
  if (back == d || d != d)
    return f;
  uint32_t bits = perigee__f32_bits(f);
  if ((back < 0 ? -back : back) > (d < 0 ? -d : d))
    bits--; /* toward zero, from inf to the largest finite */
  return perigee__f32_from_bits(bits | 1);
}

/* Whole arrays with the best instructions there are. src and dst do not overlap; no alignment is needed. */
void perigee__f16_to_f32_array(float *dst, const void *src, size_t count);
void perigee__bf16_to_f32_array(float *dst, const void *src, size_t count);
void perigee__f32_to_f16_array(void *dst, const float *src, size_t count);
void perigee__f32_to_bf16_array(void *dst, const float *src, size_t count);

#endif
