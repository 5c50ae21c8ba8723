#include "tensor/copy.h"

#include <string.h>

/*
 * memcpy beats non-temporal stores where the reader shares the last-level cache with the writer, which is the
 * case for every copy made today; a policy by size and distance belongs here.
 */
void perigee__copy(void *dst, const void *src, size_t bytes) {
  if (bytes > 0 && dst != src)
    memcpy(dst, src, bytes);
}
