#include "store/store_buf.h"

#include <stdlib.h>
#include <string.h>

#ifdef PERIGEE_HOSTILE
enum {
  FIRST_CAP = 1
};
#else
enum {
  FIRST_CAP = 64
};
#endif

bool perigee__buf_reserve(perigee__buf *b, size_t n) {
  if (b->failed || n > SIZE_MAX / 4 - b->size)
    return b->failed = true, false;
  if (b->size + n <= b->cap)
    return true;
  size_t cap = b->cap > 0 ? b->cap : FIRST_CAP;
  while (cap < b->size + n)
    cap *= 2;
  char *data = realloc(b->data, cap);
  if (data == NULL)
    return b->failed = true, false;
  b->data = data;
  b->cap = cap;
  return true;
}

void perigee__buf_put(perigee__buf *b, const void *data, size_t n) {
  if (n == 0 || !perigee__buf_reserve(b, n))
    return;
  memcpy(b->data + b->size, data, n);
  b->size += n;
}

void perigee__buf_u8(perigee__buf *b, uint8_t v) { perigee__buf_put(b, &v, 1); }

void perigee__buf_u32(perigee__buf *b, uint32_t v) {
  unsigned char raw[4];
  for (int i = 0; i < 4; i++)
    raw[i] = (unsigned char)(v >> (8 * i));
  perigee__buf_put(b, raw, sizeof(raw));
}

void perigee__buf_u64(perigee__buf *b, uint64_t v) {
  unsigned char raw[8];
  for (int i = 0; i < 8; i++)
    raw[i] = (unsigned char)(v >> (8 * i));
  perigee__buf_put(b, raw, sizeof(raw));
}

void perigee__buf_bytes(perigee__buf *b, const void *data, size_t n) {
  perigee__buf_u64(b, n);
  perigee__buf_put(b, data, n);
}

void perigee__buf_reset(perigee__buf *b, size_t keep) {
  if (b->cap > keep || b->failed)
    perigee__buf_fini(b);
  b->size = 0;
}

void perigee__buf_fini(perigee__buf *b) {
  free(b->data);
  *b = (perigee__buf){NULL, 0, 0, false};
}
