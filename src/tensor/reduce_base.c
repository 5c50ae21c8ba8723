/* Kernels for any CPU the compiler was told of: 16-byte vectors, SSE2 on x86-64, NEON on arm64. */
#if !defined(__clang__)
#pragma GCC optimize("fp-contract=off")
#endif

#include "tensor/reduce_part.h"
#include "tensor/reduce_table.h"

#include <string.h>

#define KERNELS perigee__reduce_base
#define KERNELS_BYTES 16
#define KERNELS_TARGET
#include "tensor/reduce_lanes.h"

#define HELPER static inline
#define OUTLINE static __attribute__((noinline)) /* two uses in each kernel */

OUTLINE v_u8 part_load(const char *p, size_t nbytes) { return (v_u8)part16_load(p, nbytes); }
HELPER void part_store(char *p, v_u8 v, size_t nbytes) { part16_store(p, (part_u64)v, nbytes); }

OUTLINE v_half half_load(const char *p, size_t nbytes) {
  const uint64_t bits = part8_load(p, nbytes);
  v_half v;
  memcpy(&v, &bits, sizeof(v));
  return v;
}

HELPER void half_store(char *p, v_half v, size_t nbytes) {
  uint64_t bits;
  memcpy(&bits, &v, sizeof(bits));
  part8_store(p, bits, nbytes);
}

/* The scalar forms of tensor/half.h without branches. Magnitudes are below 2^31, so comparisons are signed, which
 * SSE2 has. */
#define CHOOSE(_m, _a, _b) (((v_u32)(_m) & (_a)) | (~(v_u32)(_m) & (_b)))

HELPER v_f32 widen_f16(v_half h) {
  const v_u32 u = __builtin_convertvector(h, v_u32), sign = (u & 0x8000) << 16, size = u & 0x7fff;
  const v_i32 at = (v_i32)size;
  const v_u32 normal = (size << 13) + (112U << 23);
  const v_u32 small = (v_u32)(__builtin_convertvector(at, v_f32) * 0x1p-24F);
  const v_u32 quiet = (v_u32)(at > 0x7c00) & 0x400000;
  const v_u32 special = (size << 13) | 0x7f800000 | quiet;
  return (v_f32)(sign | CHOOSE(at >= 0x7c00, special, CHOOSE(at < 0x400, small, normal)));
}

HELPER v_half narrow_f16(v_f32 v) {
  const v_u32 x = (v_u32)v, sign = (x >> 16) & 0x8000, size = x & 0x7fffffff;
  const v_i32 at = (v_i32)size;
  const v_u32 normal = (size + 0xfff + ((size >> 13) & 1) - (112U << 23)) >> 13;
  /* the last bit of 0.5 is 2^-24, that of f16 subnormals: the addition rounds */
  const v_u32 small = (v_u32)((v_f32)size + 0.5F) - 0x3f000000;
  const v_u32 nan = 0x7e00 | ((size >> 13) & 0x3ff);
  const v_u32 infinite = (size & 0) | 0x7c00;
  const v_u32 large = CHOOSE(at > 0x7f800000, nan, infinite);
  const v_u32 finite = CHOOSE(at < 0x38800000, small, normal);
  return __builtin_convertvector(sign | CHOOSE(at >= 0x477ff000, large, finite), v_half);
}

HELPER v_f32 widen_bf16(v_half h) { return (v_f32)(__builtin_convertvector(h, v_u32) << 16); }

HELPER v_half narrow_bf16(v_f32 v) {
  const v_u32 x = (v_u32)v;
  const v_u32 rounded = (x + 0x7fff + ((x >> 16) & 1)) >> 16, quiet = (x >> 16) | 0x40;
  const v_u32 nan = (v_u32)(v != v);
  return __builtin_convertvector((nan & quiet) | (~nan & rounded), v_half);
}

#include "tensor/reduce_kernels.h"
