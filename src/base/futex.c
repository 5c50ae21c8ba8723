#include "base/futex.h"

#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"

int perigee__futex_wait(_Atomic uint32_t *word, uint32_t expected, int64_t deadline_ns,
                        bool shared) {
  struct timespec ts, *limit = NULL;
  if (deadline_ns != PERIGEE_NEVER) {
    ts.tv_sec = deadline_ns / PERIGEE_NS_PER_SEC;
    ts.tv_nsec = deadline_ns % PERIGEE_NS_PER_SEC;
    limit = &ts;
  }
  /* WAIT_BITSET takes an absolute CLOCK_MONOTONIC time, so retries do not stretch the deadline. */
  int op = FUTEX_WAIT_BITSET | (shared ? 0 : FUTEX_PRIVATE_FLAG);
  if (syscall(SYS_futex, word, op, expected, limit, NULL, FUTEX_BITSET_MATCH_ANY) == 0)
    return 0;
  if (errno == EAGAIN)
    return 0;
  return -errno;
}

void perigee__futex_wake(_Atomic uint32_t *word, int n, bool shared) {
  syscall(SYS_futex, word, FUTEX_WAKE | (shared ? 0 : FUTEX_PRIVATE_FLAG), n, NULL, NULL, 0);
}

/* cgroup v2 "cpu.max" (quota period) or v1 cfs files; 0 when there is no limit. */
static int quota_cores(void) {
  long long quota = -1, period = 0;
  FILE *f = fopen("/sys/fs/cgroup/cpu.max", "re");
  if (f != NULL) {
    if (fscanf(f, "%lld %lld", &quota, &period) != 2)
      quota = -1; /* "max" */
    fclose(f);
  } else if ((f = fopen("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "re")) != NULL) {
    if (fscanf(f, "%lld", &quota) != 1)
      quota = -1;
    fclose(f);
    if ((f = fopen("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "re")) != NULL) {
      if (fscanf(f, "%lld", &period) != 1)
        period = 0;
      fclose(f);
    }
  }
  if (quota <= 0 || period <= 0)
    return 0;
  return quota < period ? 1 : (int)(quota / period);
}

int perigee__usable_cores(void) {
  static _Atomic int cached; /* the same value whoever computes it */
  int n = atomic_load_explicit(&cached, memory_order_relaxed);
  if (n > 0)
    return n;
  cpu_set_t set;
  n = sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
  int quota = quota_cores();
  if (quota > 0 && quota < n)
    n = quota;
  if (n < 1)
    n = 1;
  atomic_store_explicit(&cached, n, memory_order_relaxed);
  return n;
}
