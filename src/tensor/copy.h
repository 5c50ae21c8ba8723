/* The one way this layer and those above move large blocks of bytes. */
#ifndef PERIGEE_TENSOR_COPY_H
#define PERIGEE_TENSOR_COPY_H

#include <stddef.h>

/** dst := src; the two are the same or do not overlap. bytes 0 accepts any pointers. */
void perigee__copy(void *dst, const void *src, size_t bytes);

#endif
