/* Kernels for AVX-512 F BW DQ VL: 64-byte vectors, and masks for the last one. */
#if defined(__x86_64__)
#if !defined(__clang__)
#pragma GCC optimize("fp-contract=off")
#endif

#include "tensor/reduce_table.h"

#include <immintrin.h>
#include <string.h>

#define KERNELS perigee__reduce_avx512
#define KERNELS_BYTES 64
#define KERNELS_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
#define HELPER static inline __attribute__((always_inline)) KERNELS_TARGET
#include "tensor/reduce_lanes.h"

HELPER v_u8 part_load(const char *p, size_t nbytes) {
  return (v_u8)_mm512_maskz_loadu_epi8((__mmask64)((UINT64_C(1) << nbytes) - 1), p);
}

HELPER void part_store(char *p, v_u8 v, size_t nbytes) {
  _mm512_mask_storeu_epi8(p, (__mmask64)((UINT64_C(1) << nbytes) - 1), (__m512i)v);
}

HELPER v_half half_load(const char *p, size_t nbytes) {
  return (v_half)_mm256_maskz_loadu_epi8((__mmask32)((UINT32_C(1) << nbytes) - 1), p);
}

HELPER void half_store(char *p, v_half v, size_t nbytes) {
  _mm256_mask_storeu_epi8(p, (__mmask32)((UINT32_C(1) << nbytes) - 1), (__m256i)v);
}

HELPER v_f32 widen_f16(v_half h) { return (v_f32)_mm512_cvtph_ps((__m256i)h); }

HELPER v_half narrow_f16(v_f32 v) {
  /* With a mask of all lanes: without optimisation the plain form is a macro whose own mask is a sign conversion. */
  return (v_half)_mm512_maskz_cvtps_ph(UINT16_MAX, (__m512)v,
                                       _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

HELPER v_f32 widen_bf16(v_half h) {
  return (v_f32)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)h), 16);
}

/* Not vcvtneps2bf16, which flushes subnormals. */
HELPER v_half narrow_bf16(v_f32 v) {
  const v_u32 x = (v_u32)v;
  const v_u32 rounded = (x + 0x7fff + ((x >> 16) & 1)) >> 16, quiet = (x >> 16) | 0x40;
  const v_u32 nan = (v_u32)(v != v);
  return (v_half)_mm512_cvtepi32_epi16((__m512i)((nan & quiet) | (~nan & rounded)));
}

#include "tensor/reduce_kernels.h"
#else
typedef int perigee__reduce_avx512_unused;
#endif
