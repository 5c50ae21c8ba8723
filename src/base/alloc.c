#include "base/alloc.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

void *perigee__calloc(size_t count, size_t size) {
  return calloc(count > 0 ? count : 1, size > 0 ? size : 1);
}

void *perigee__calloc_aligned(size_t bytes) {
  if (bytes > SIZE_MAX - 127)
    return NULL;
  size_t rounded = bytes > 0 ? (bytes + 63) & ~(size_t)63 : 64;
  void *p = aligned_alloc(64, rounded);
  if (p != NULL)
    memset(p, 0, rounded);
  return p;
}

char *perigee__strdup(const char *s) {
  size_t n = strlen(s) + 1;
  char *copy = malloc(n);
  if (copy != NULL)
    memcpy(copy, s, n);
  return copy;
}

char *perigee__format(const char *fmt, ...) {
  va_list ap, again;
  va_start(ap, fmt);
  va_copy(again, ap);
  int n = vsnprintf(NULL, 0, fmt, ap);
  va_end(ap);
  char *text = n >= 0 ? malloc((size_t)n + 1) : NULL;
  if (text != NULL)
    vsnprintf(text, (size_t)n + 1, fmt, again);
  va_end(again);
  return text;
}
