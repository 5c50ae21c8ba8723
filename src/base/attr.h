/*
 * Compiler attributes and clang's thread-safety annotations (empty on other compilers).
 *
 * clang 14 cannot name a sibling member in guarded_by in C, so PERIGEE_GUARDED_BY says "some mutex" to the compiler
 * and which one to the reader; lock ranks (thread.h) close the gap at run time.
 */
#ifndef PERIGEE_BASE_ATTR_H
#define PERIGEE_BASE_ATTR_H

#include <perigee/export.h>

#define PERIGEE_CACHE_LINE 64
/* Distance between words written by different cores: the adjacent-line prefetcher pulls lines in pairs. */
#define PERIGEE_FALSE_SHARING 128

#define PERIGEE_LIKELY(_x) __builtin_expect(!!(_x), 1)
#define PERIGEE_UNLIKELY(_x) __builtin_expect(!!(_x), 0)
#define PERIGEE_CONTAINER_OF(_ptr, _type, _member)                                                 \
  ((_type *)(void *)((char *)(_ptr)-offsetof(_type, _member)))
#define PERIGEE_COUNT(_array) (sizeof(_array) / sizeof((_array)[0]))

/* Whether memory is watched: what keeps freed pieces for itself would hide late uses. gcc says so in one way, clang in another. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define PERIGEE_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define PERIGEE_SANITIZED 1
#endif
#endif
#ifndef PERIGEE_SANITIZED
#define PERIGEE_SANITIZED 0
#endif

#if defined(__clang__)
#define PERIGEE__TSA(_x) __attribute__((_x))
#else
#define PERIGEE__TSA(_x)
#endif
#define PERIGEE_CAPABILITY(_name) PERIGEE__TSA(capability(_name))
#define PERIGEE_GUARDED_BY(_mu) PERIGEE__TSA(guarded_var)
#define PERIGEE_REQUIRES(...) PERIGEE__TSA(requires_capability(__VA_ARGS__))
#define PERIGEE_ACQUIRES(...) PERIGEE__TSA(acquire_capability(__VA_ARGS__))
#define PERIGEE_RELEASES(...) PERIGEE__TSA(release_capability(__VA_ARGS__))
#define PERIGEE_TRY_ACQUIRES(...) PERIGEE__TSA(try_acquire_capability(__VA_ARGS__))
#define PERIGEE_NO_TSA PERIGEE__TSA(no_thread_safety_analysis)

#endif
