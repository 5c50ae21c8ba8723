/* Allocation with overflow checks. Sizes claimed by a peer are never passed here before they were bounded. */
#ifndef PERIGEE_BASE_ALLOC_H
#define PERIGEE_BASE_ALLOC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>

#include "base/attr.h"

/** Zeroed memory for count * size bytes, NULL when it overflows or there is none. free() it. */
void *perigee__calloc(size_t count, size_t size);
/** Zeroed memory aligned to 64 bytes. free() it. */
void *perigee__calloc_aligned(size_t bytes);
/** Copy of a string. */
char *perigee__strdup(const char *s);
/** printf into new memory; NULL when there is none. */
char *perigee__format(const char *fmt, ...) PERIGEE_PRINTF(1, 2);

#endif
