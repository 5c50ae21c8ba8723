/* The one way this layer and those above move large blocks of bytes. */
#ifndef PERIGEE_TENSOR_COPY_H
#define PERIGEE_TENSOR_COPY_H

#include <stddef.h>

/** dst := src; the two are the same or do not overlap. bytes 0 accepts any pointers. */
void perigee__copy(void *dst, const void *src, size_t bytes);

/**
 * The same for bytes that are not wanted again before the caches have been through as much as they hold: nothing of dst is read into them
 * first, or kept in them. Quicker then (see copy.c), slower otherwise. Other threads that are told by a store made afterwards see the bytes.
 */
void perigee__copy_past(void *dst, const void *src, size_t bytes);
/** Bytes of all tensors of a call from which on that pays on this machine, as its last level of cache tells (copy.c). */
size_t perigee__copy_past_from(void);

#endif
