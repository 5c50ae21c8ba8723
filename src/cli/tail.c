#include "cli/tail.h"

#include <stdlib.h>
#include <string.h>

void perigee__tail_feed(perigee__tail *tail, const char *data, size_t size) {
  if (tail->ring == NULL)
    tail->ring = malloc(PERIGEE__TAIL_BYTES);
  if (tail->ring == NULL)
    return; /* a report without its last lines is still a report */
  if (size > PERIGEE__TAIL_BYTES) {
    tail->total += size - PERIGEE__TAIL_BYTES;
    data += size - PERIGEE__TAIL_BYTES;
    size = PERIGEE__TAIL_BYTES;
  }
  size_t at = tail->total % PERIGEE__TAIL_BYTES;
  size_t first = PERIGEE__TAIL_BYTES - at;
  if (first > size)
    first = size;
  memcpy(tail->ring + at, data, first);
  memcpy(tail->ring, data + first, size - first);
  tail->total += size;
}

/* Where the last `lines` lines of text begin; an unfinished last line counts as one. */
static size_t start_of_last(const char *text, size_t size, int lines) {
  size_t i = size;
  if (i > 0 && text[i - 1] == '\n')
    i--;
  while (i > 0) {
    if (text[i - 1] == '\n' && --lines == 0)
      return i;
    i--;
  }
  return 0;
}

char *perigee__tail_text(const perigee__tail *tail, size_t *size_p, int *cut_p) {
  if (tail->ring == NULL || tail->total == 0)
    return NULL;
  size_t size = tail->total < PERIGEE__TAIL_BYTES ? tail->total : PERIGEE__TAIL_BYTES;
  char *text = malloc(size);
  if (text == NULL)
    return NULL;
  size_t at = (tail->total - size) % PERIGEE__TAIL_BYTES;
  size_t first = size < PERIGEE__TAIL_BYTES - at ? size : PERIGEE__TAIL_BYTES - at;
  memcpy(text, tail->ring + at, first);
  memcpy(text + first, tail->ring, size - first);

  size_t start = start_of_last(text, size, PERIGEE__TAIL_LINES);
  if (start == 0 &&
      tail->total > size) { /* the first line has lost its head: leave it out, unless it is all */
    const char *newline = memchr(text, '\n', size - 1);
    if (newline != NULL)
      start = (size_t)(newline - text) + 1;
  }
  *cut_p = start > 0 || tail->total > size;
  *size_p = size - start;
  memmove(text, text + start, size - start);
  return text;
}

void perigee__tail_fini(perigee__tail *tail) {
  free(tail->ring);
  *tail = (perigee__tail){0};
}
