/* Sealed, reserved shared memory without a name: nothing is left behind by kill -9, and shortage is an error, not SIGBUS. */
#ifndef PERIGEE_TRANSPORT_MEMFD_H
#define PERIGEE_TRANSPORT_MEMFD_H

#include <stddef.h>

#include "base/attr.h"

/** memfd_create + fallocate + seals (shrink, grow, seal). ENOSHM with the size needed when memory is short or refused. *fd_p: close-on-exec. */
PERIGEE_MUST_CHECK int perigee__memfd_create(const char *name, size_t bytes, int *fd_p);
/** Map all of it, shared, MADV_DONTFORK. Checks that the descriptor is a memfd of exactly `bytes` and sealed. */
PERIGEE_MUST_CHECK int perigee__memfd_map(int fd, size_t bytes, void **base_p);
void perigee__memfd_unmap(void *base, size_t bytes);

#endif
