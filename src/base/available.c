#include "base/available.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#define UNKNOWN UINT64_MAX

/* Sum of the values of the lines `names` (NULL-terminated) of a file of lines "name value"; false when none is there. */
static bool sum_of(const char *path, const char *const *names, uint64_t *sum_p) {
  char line[256], name[64];
  uint64_t value, sum = 0;
  bool found = false;
  FILE *f = fopen(path, "re");
  if (f == NULL)
    return false;
  while (fgets(line, sizeof(line), f) != NULL) {
    if (sscanf(line, "%63s %" SCNu64, name, &value) != 2)
      continue;
    for (const char *const *n = names; *n != NULL; n++)
      if (strcmp(name, *n) == 0) {
        sum += value;
        found = true;
      }
  }
  fclose(f);
  *sum_p = sum;
  return found;
}

/* The only number of a file; false when it is none ("max"). */
static bool number_of(const char *path, uint64_t *value_p) {
  FILE *f = fopen(path, "re");
  if (f == NULL)
    return false;
  bool read = fscanf(f, "%" SCNu64, value_p) == 1;
  fclose(f);
  return read;
}

/* A cgroup's limit, less what it uses and cannot give back. */
static uint64_t below(const char *limit_path, const char *usage_path, const char *stat_path,
                      const char *const *caches) {
  uint64_t limit, used, cached = 0;
  if (!number_of(limit_path, &limit) || !number_of(usage_path, &used))
    return UNKNOWN;
  (void)sum_of(stat_path, caches, &cached);
  used = used > cached ? used - cached : 0;
  return limit > used ? limit - used : 0;
}

uint64_t perigee__available_memory(void) {
  static const char *const machine[] = {"MemAvailable:", "SwapFree:", NULL};
  static const char *const v2[] = {"inactive_file", "active_file", NULL};
  static const char *const v1[] = {"total_inactive_file", "total_active_file", NULL};
  uint64_t kib, least = UNKNOWN;
  if (sum_of("/proc/meminfo", machine, &kib))
    least = kib * 1024;
  const uint64_t limits[] = {below("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current",
                                   "/sys/fs/cgroup/memory.stat", v2),
                             below("/sys/fs/cgroup/memory/memory.limit_in_bytes",
                                   "/sys/fs/cgroup/memory/memory.usage_in_bytes",
                                   "/sys/fs/cgroup/memory/memory.stat", v1)};
  for (int i = 0; i < 2; i++)
    least = limits[i] < least ? limits[i] : least;
  return least;
}
