/* PERIGEE_ASSERT: cheap, in debug builds. PERIGEE_BUG: always; for what cannot be unless we are wrong. */
#ifndef PERIGEE_BASE_ASSERT_H
#define PERIGEE_BASE_ASSERT_H

#include "base/attr.h"

/** Print the place, the text and the locks this thread holds, then abort(). */
_Noreturn void perigee__bug(const char *file, int line, const char *fmt, ...) PERIGEE_PRINTF(3, 4);

#define PERIGEE_BUG(...) perigee__bug(__FILE__, __LINE__, __VA_ARGS__)
#define PERIGEE_CHECK(_cond)                                                                       \
  do {                                                                                             \
    if (PERIGEE_UNLIKELY(!(_cond)))                                                                \
      PERIGEE_BUG("check failed: %s", #_cond);                                                     \
  } while (0)
#ifdef PERIGEE_DEBUG
#define PERIGEE_ASSERT(_cond) PERIGEE_CHECK(_cond)
#else
#define PERIGEE_ASSERT(_cond) ((void)sizeof(!(_cond)))
#endif

#endif
