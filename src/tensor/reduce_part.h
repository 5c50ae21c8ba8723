/*
 * A few bytes in and out of registers, for vectors that are not full and have no masks: at most two overlapping
 * loads or stores per 8 bytes, none outside of the bytes, and no way through memory, where a wide load would
 * wait for the narrow stores before it.
 */
#ifndef PERIGEE_TENSOR_REDUCE_PART_H
#define PERIGEE_TENSOR_REDUCE_PART_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "first byte in the lowest bits");

#define PART static inline __attribute__((always_inline))

typedef uint64_t part_u64 __attribute__((vector_size(16)));

/* nbytes 0 .. 8; absent ones are 0. Overlapping bytes are or-ed with themselves. */
PART uint64_t part8_load(const char *p, size_t nbytes) {
  if (nbytes >= 4) {
    uint32_t low, high;
    memcpy(&low, p, 4);
    memcpy(&high, p + nbytes - 4, 4);
    return low | (uint64_t)high << 8 * (nbytes - 4);
  }
  if (nbytes >= 2) {
    uint16_t low, high;
    memcpy(&low, p, 2);
    memcpy(&high, p + nbytes - 2, 2);
    return low | (uint64_t)high << 8 * (nbytes - 2);
  }
  return nbytes == 1 ? (uint64_t)(unsigned char)*p : 0;
}

PART void part8_store(char *p, uint64_t v, size_t nbytes) {
  if (nbytes >= 4) {
    const uint32_t low = (uint32_t)v, high = (uint32_t)(v >> 8 * (nbytes - 4));
    memcpy(p, &low, 4);
    memcpy(p + nbytes - 4, &high, 4);
  } else if (nbytes >= 2) {
    const uint16_t low = (uint16_t)v, high = (uint16_t)(v >> 8 * (nbytes - 2));
    memcpy(p, &low, 2);
    memcpy(p + nbytes - 2, &high, 2);
  } else if (nbytes == 1) {
    *p = (char)v;
  }
}

/* nbytes 0 .. 16 */
PART part_u64 part16_load(const char *p, size_t nbytes) {
  if (nbytes <= 8)
    return (part_u64){part8_load(p, nbytes), 0};
  return (part_u64){part8_load(p, 8), part8_load(p + 8, nbytes - 8)};
}

PART void part16_store(char *p, part_u64 v, size_t nbytes) {
  part8_store(p, v[0], nbytes < 8 ? nbytes : 8);
  if (nbytes > 8)
    part8_store(p + 8, v[1], nbytes - 8);
}

#endif
