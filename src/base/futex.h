/* Futex wait and wake on 32-bit words, private to the process or shared between processes. */
#ifndef PERIGEE_BASE_FUTEX_H
#define PERIGEE_BASE_FUTEX_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/**
 * Sleep while *word == expected, until woken, until deadline_ns (CLOCK_MONOTONIC) or for no reason (check again).
 * Returns 0 when woken or the word differed, -ETIMEDOUT when the deadline passed, -EINTR on a signal.
 */
int perigee__futex_wait(_Atomic uint32_t *word, uint32_t expected, int64_t deadline_ns,
                        bool shared);
/** Wake up to n sleepers (INT_MAX: all). Never blocks. */
void perigee__futex_wake(_Atomic uint32_t *word, int n, bool shared);

/** PAUSE or the like. */
static inline void perigee__cpu_relax(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("yield" ::: "memory");
#endif
}

/** Ask for a cache line to be written soon: by then it is ours alone. */
static inline void perigee__prefetch_write(const void *line) {
#if defined(__x86_64__)
  __asm__ __volatile__("prefetchw %0"
                       :
                       : "m"(*(const char *)line)); /* ignored where it is unknown */
#else
  __builtin_prefetch(line, 1);
#endif
}

/** Cores this process may use: affinity mask and cgroup quota, at least 1. Read once. */
int perigee__usable_cores(void);

#endif
