/* How much memory there is. */
#ifndef PERIGEE_BASE_AVAILABLE_H
#define PERIGEE_BASE_AVAILABLE_H

#include <stdint.h>

/**
 * Bytes that this process could still get without anybody being killed for it: what the machine has free or can free, and what the
 * memory cgroup leaves. UINT64_MAX when neither can be told. Reads files of /proc and /sys: some 50 us.
 */
uint64_t perigee__available_memory(void);

#endif
