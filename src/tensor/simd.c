#include "tensor/simd.h"

#include <stdatomic.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

/* -1 until asked. Relaxed everywhere: every thread computes the same value, and it guards no other data. */
static atomic_int level = -1;

perigee__simd perigee__simd_best(void) {
#if defined(__x86_64__)
  /* The builtin checks the operating system's state saving too; it does not know F16C in every compiler. */
  unsigned a, b, c = 0, d;
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__get_cpuid(1, &a, &b, &c, &d) || (c & bit_F16C) == 0)
    return PERIGEE__SIMD_BASE;
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return PERIGEE__SIMD_AVX512;
  return PERIGEE__SIMD_AVX2;
#else
  return PERIGEE__SIMD_BASE;
#endif
}

perigee__simd perigee__simd_level(void) {
  int now = atomic_load_explicit(&level, memory_order_relaxed);
  return now >= 0 ? (perigee__simd)now : perigee__simd_force(-1);
}

perigee__simd perigee__simd_force(int forced) {
  perigee__simd best = perigee__simd_best();
  perigee__simd use = forced >= 0 && forced < (int)best ? (perigee__simd)forced : best;
  atomic_store_explicit(&level, (int)use, memory_order_relaxed);
  return use;
}

const char *perigee__simd_name(perigee__simd which) {
  static const char *const names[PERIGEE__SIMD_COUNT] = {"base", "avx2", "avx512"};
  return (unsigned)which < PERIGEE__SIMD_COUNT ? names[which] : "?";
}
