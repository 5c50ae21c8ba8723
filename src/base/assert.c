#include "base/assert.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/thread.h"

void perigee__bug(const char *file, int line, const char *fmt, ...) {
  char text[512];
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(text, sizeof(text), fmt, ap);
  va_end(ap);
  fprintf(stderr, "perigee: BUG at %s:%d: %s (locks held by this thread: %d)\n", file, line, text,
          perigee__locks_held());
  fflush(stderr);
  abort();
}
