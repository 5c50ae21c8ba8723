/*
 * Log lines on stderr: "[perigee 1234 r2] warn: text". Level by PERIGEE_LOG=error|warn|info|debug (default warn).
 * The first function that decides an error logs it, at most once; callers add nothing.
 */
#ifndef PERIGEE_BASE_LOG_H
#define PERIGEE_BASE_LOG_H

#include "base/attr.h"

typedef enum perigee_log_level {
  PERIGEE_LOG_ERROR,
  PERIGEE_LOG_WARN,
  PERIGEE_LOG_INFO,
  PERIGEE_LOG_DEBUG
} perigee_log_level;

void perigee__log(perigee_log_level level, const char *fmt, ...) PERIGEE_PRINTF(2, 3);
/** Rank shown in lines of this process; -1 hides it. */
void perigee__log_set_rank(int rank);

#endif
