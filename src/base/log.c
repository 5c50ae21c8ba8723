#include "base/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/env.h"

static const char *const level_names[] = {"error", "warn", "info", "debug"};
static _Atomic int level_cached = -1; /* both: any thread, last writer wins, relaxed */
static _Atomic int shown_rank = -1;

static int level_now(void) {
  int level = atomic_load_explicit(&level_cached, memory_order_relaxed);
  if (level >= 0)
    return level;
  const char *want = perigee__env("PERIGEE_LOG");
  level = PERIGEE_LOG_WARN;
  for (int i = 0; i < (int)PERIGEE_COUNT(level_names); i++)
    if (strcmp(want, level_names[i]) == 0)
      level = i;
  atomic_store_explicit(&level_cached, level, memory_order_relaxed);
  return level;
}

void perigee__log_set_rank(int rank) {
  atomic_store_explicit(&shown_rank, rank, memory_order_relaxed);
}

void perigee__log(perigee_log_level level, const char *fmt, ...) {
  if ((int)level > level_now())
    return;
  char line[1024];
  int rank = atomic_load_explicit(&shown_rank, memory_order_relaxed);
  int n = rank >= 0 ? snprintf(line, sizeof(line), "[perigee %d r%d] %s: ", (int)getpid(), rank,
                               level_names[level])
                    : snprintf(line, sizeof(line), "[perigee %d] %s: ", (int)getpid(),
                               level_names[level]);
  va_list ap;
  va_start(ap, fmt);
  int m = vsnprintf(line + n, sizeof(line) - (size_t)n - 1, fmt, ap);
  va_end(ap);
  size_t len = (size_t)n + (m > 0 ? (size_t)m : 0);
  if (len > sizeof(line) - 2)
    len = sizeof(line) - 2;
  line[len++] = '\n';
  /* One write per line: lines of several ranks on one terminal do not mix. */
  ssize_t written = write(STDERR_FILENO, line, len);
  (void)written;
}
