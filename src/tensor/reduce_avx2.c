/* Kernels for AVX2 and F16C: 32-byte vectors. FMA is not used, it would change sums. */
#if defined(__x86_64__)
#if !defined(__clang__)
#pragma GCC optimize("fp-contract=off")
#endif

#include "tensor/reduce_part.h"
#include "tensor/reduce_table.h"

#include <immintrin.h>
#include <string.h>

#define KERNELS perigee__reduce_avx2
#define KERNELS_BYTES 32
#define KERNELS_TARGET __attribute__((target("avx2,f16c")))
#define HELPER static inline __attribute__((always_inline)) KERNELS_TARGET
/* Loads have two uses in each kernel. Stores stay inside: gcc 12 leaves the upper halves of the registers in use
 * when a kernel ends in a call that takes one, and the SSE code after it runs 20 times slower. */
#define OUTLINE static __attribute__((noinline)) KERNELS_TARGET
#include "tensor/reduce_lanes.h"

OUTLINE v_u8 part_load(const char *p, size_t nbytes) {
  if (nbytes <= 16)
    return (v_u8)_mm256_zextsi128_si256((__m128i)part16_load(p, nbytes));
  return (v_u8)_mm256_set_m128i((__m128i)part16_load(p + 16, nbytes - 16),
                                _mm_loadu_si128((const __m128i *)(const void *)p));
}

HELPER void part_store(char *p, v_u8 v, size_t nbytes) {
  part16_store(p, (part_u64)_mm256_castsi256_si128((__m256i)v), nbytes < 16 ? nbytes : 16);
  if (nbytes > 16)
    part16_store(p + 16, (part_u64)_mm256_extracti128_si256((__m256i)v, 1), nbytes - 16);
}

OUTLINE v_half half_load(const char *p, size_t nbytes) { return (v_half)part16_load(p, nbytes); }
HELPER void half_store(char *p, v_half v, size_t nbytes) { part16_store(p, (part_u64)v, nbytes); }

HELPER v_f32 widen_f16(v_half h) { return (v_f32)_mm256_cvtph_ps((__m128i)h); }

HELPER v_half narrow_f16(v_f32 v) {
  return (v_half)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

HELPER v_f32 widen_bf16(v_half h) {
  return (v_f32)_mm256_slli_epi32(_mm256_cvtepu16_epi32((__m128i)h), 16);
}

HELPER v_half narrow_bf16(v_f32 v) {
  const v_u32 x = (v_u32)v;
  const v_u32 rounded = (x + 0x7fff + ((x >> 16) & 1)) >> 16, quiet = (x >> 16) | 0x40;
  const v_u32 nan = (v_u32)(v != v);
  const __m256i r = (__m256i)((nan & quiet) | (~nan & rounded));
  /* packs within each 16-byte half; the permute brings the two together */
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(r, r), 0x08);
  return (v_half)_mm256_castsi256_si128(packed);
}

#include "tensor/reduce_kernels.h"
#else
typedef int perigee__reduce_avx2_unused;
#endif
