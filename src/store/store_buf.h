/* A growing byte buffer with little-endian writers. An allocation that fails is remembered: check once, at the end. */
#ifndef PERIGEE_STORE_BUF_H
#define PERIGEE_STORE_BUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct perigee__buf {
  char *data;
  size_t size, cap;
  bool failed; /* out of memory; contents are incomplete */
} perigee__buf;

/** Make room for n more bytes; false when there is no memory. */
bool perigee__buf_reserve(perigee__buf *b, size_t n);
void perigee__buf_put(perigee__buf *b, const void *data, size_t n);
void perigee__buf_u8(perigee__buf *b, uint8_t v);
void perigee__buf_u32(perigee__buf *b, uint32_t v);
void perigee__buf_u64(perigee__buf *b, uint64_t v);
static inline void perigee__buf_i64(perigee__buf *b, int64_t v) {
  perigee__buf_u64(b, (uint64_t)v);
}
/** u64 length, then the bytes. */
void perigee__buf_bytes(perigee__buf *b, const void *data, size_t n);
/** Empty it; memory above keep bytes is given back. */
void perigee__buf_reset(perigee__buf *b, size_t keep);
void perigee__buf_fini(perigee__buf *b);

static inline uint32_t perigee__le32(const void *p) {
  const unsigned char *b = p;
  return (uint32_t)b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
}
static inline uint64_t perigee__le64(const void *p) {
  return (uint64_t)perigee__le32(p) | (uint64_t)perigee__le32((const char *)p + 4) << 32;
}

#endif
