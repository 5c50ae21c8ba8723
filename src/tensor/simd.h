/* Which instructions the kernels use. Decided once per process; all variants give the same bits. */
#ifndef PERIGEE_TENSOR_SIMD_H
#define PERIGEE_TENSOR_SIMD_H

typedef enum perigee__simd {
  PERIGEE__SIMD_BASE,   /* what the compiler's target always has */
  PERIGEE__SIMD_AVX2,   /* and F16C */
  PERIGEE__SIMD_AVX512, /* F BW DQ VL */
  PERIGEE__SIMD_COUNT
} perigee__simd;

/** The best this CPU and operating system can run. */
perigee__simd perigee__simd_best(void);
/** The one in use: the best, unless forced. */
perigee__simd perigee__simd_level(void);
/** For tests: use this variant from now on in plans initialised and conversions called later. Levels above the
 *  best are lowered to it; a negative level goes back to the best. Returns the level now in use. */
perigee__simd perigee__simd_force(int level);
/** "base", "avx2", "avx512". */
const char *perigee__simd_name(perigee__simd level);

#endif
