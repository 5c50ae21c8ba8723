/*
 * Symmetric memory of one rank's arena: segments that every rank of the group has mapped, each with one part per rank.
 *
 *   base: part of rank 0 | part of rank 1 | ...      each `stride` bytes, whole pages; one sealed memfd
 *
 * Where this rank's own part has something at an offset, the others find it at base + rank * stride + offset in their mapping. Ids are the
 * same on all ranks, because segments are made by all together, and are never used twice.
 * Ownership: a segment belongs to who made it (perigee__segment_drop) and keeps the list; the list knows it until then.
 *   A drop unmaps on this rank alone. A place is valid as long as the caller holds what it asked for.
 * Threads: any. One leaf mutex.
 */
#ifndef PERIGEE_COLL_SEGMENTS_H
#define PERIGEE_COLL_SEGMENTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/attr.h"

typedef struct perigee__segment perigee__segment;
typedef struct perigee__segments perigee__segments;

/** Where a buffer of this rank lies. */
typedef struct perigee__place {
  uint32_t id; /* 0: in no segment */
  size_t offset;
  char *base;
  size_t stride;
} perigee__place;

/** NULL without memory. One reference. */
perigee__segments *perigee__segments_create(void);
void perigee__segments_unref(perigee__segments *list);

/** Bytes of the memory of a segment, its stride in *stride_p; 0 when that is too much. */
size_t perigee__segment_total(int n, size_t bytes, size_t *stride_p);
/** Map the memory behind fd as segment id. */
PERIGEE_MUST_CHECK int perigee__segment_create(perigee__segments *list, int fd, int me, int n,
                                               size_t bytes, uint32_t id,
                                               perigee__segment **segment_p);
void *perigee__segment_own(const perigee__segment *segment);
void perigee__segment_drop(perigee__segment *segment);

/** Whether all of the bytes (more than none) are in this rank's part of one segment. */
bool perigee__segments_find(perigee__segments *list, const void *ptr, size_t bytes,
                            perigee__place *place_p);

#endif
