/*
 * Fingerprint: what a rank is about to do, in 8 bytes that travel with every collective and are compared on every rank
 * before any data counts. It can be read back, so that an error names both sides.
 *
 *   bits 63..59  1 + op (never 0, so a fingerprint is never 0)
 *   bits 58..55  dtype (15: none)
 *   bits 54..51  reduce op (15: none)
 *   bits 50..39  root + 1, modulo 4096 (0: none)
 *   bit  38      0: bits 37..0 are the exact number of elements (saturated); 1: they are a hash (several tensors, custom op)
 *   bits 37..0   elements, or hash
 */
#ifndef PERIGEE_COLL_FINGERPRINT_H
#define PERIGEE_COLL_FINGERPRINT_H

#include <stddef.h>
#include <stdint.h>

typedef struct perigee__fingerprint {
  int op;
  int dtype;      /* -1 none */
  int redop;      /* -1 none */
  int root;       /* -1 none */
  uint64_t count; /* elements, when !hashed */
  uint64_t hash;  /* when hashed */
  int hashed;
} perigee__fingerprint;

uint64_t perigee__fingerprint_pack(const perigee__fingerprint *f);
perigee__fingerprint perigee__fingerprint_unpack(uint64_t fp);
/** "allreduce f32[10] sum", "broadcast f32[4] root 1", "barrier". */
const char *perigee__fingerprint_describe(uint64_t fp, char *buf, size_t size);
/** Mix of a value into a hash (splitmix64 finaliser). */
uint64_t perigee__hash_mix(uint64_t hash, uint64_t value);

#endif
