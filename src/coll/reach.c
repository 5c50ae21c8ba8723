#include "coll/reach.h"

#include <errno.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "coll/fingerprint.h"

/* Bytes of one call: between two of them the caller's world may be looked at. */
enum {
  CALL_MAX = 4 << 20
};

/* Yama's scope 1 lets only ancestors read a process, and whom it names. Ranks are children of one launcher, and naming an
 * ancestor includes all its descendants. */
static void allow_siblings(void) {
  int scope = 0;
  FILE *f = fopen("/proc/sys/kernel/yama/ptrace_scope", "re");
  if (f == NULL)
    return;
  if (fscanf(f, "%d", &scope) == 1 && scope == 1 && getppid() > 1)
    (void)prctl(PR_SET_PTRACER, (unsigned long)getppid(), 0, 0, 0);
  fclose(f);
}

void perigee__reach_introduce(perigee__arena *a) {
  perigee__arena_status *own = &a->status[a->me];
  if (getrandom(&a->probe, sizeof(a->probe), GRND_NONBLOCK) != (ssize_t)sizeof(a->probe))
    a->probe = perigee__hash_mix((uint64_t)perigee__now_ns(), (uint64_t)(uintptr_t)a);
  allow_siblings();
  own->pid = (int32_t)getpid();
  own->probe_at = (uint64_t)(uintptr_t)&a->probe;
  own->probe = a->probe;
}

bool perigee__reach_probe(perigee__arena *a) {
  for (int r = 0; r < a->n; r++) {
    const perigee__arena_status *peer = &a->status[r];
    uint64_t value = 0;
    a->pids[r] = peer->pid;
    int rc = perigee__reach_read(peer->pid, &value, peer->probe_at, sizeof(value));
    if (rc == 0 && value == peer->probe)
      continue;
    static _Atomic bool said; /* relaxed: once is enough, twice does no harm */
    if (!atomic_exchange_explicit(&said, true, memory_order_relaxed))
      perigee__log(PERIGEE_LOG_INFO,
                   "group %s: the memory of rank %d cannot be read directly (%s): using buffers",
                   a->fate->name, r, rc < 0 ? perigee_strerror(rc) : "it is not who it seems");
    return false;
  }
  return true;
}

int perigee__reach_read(int32_t pid, void *dst, uint64_t src, size_t bytes) {
  char *to = dst;
  while (bytes > 0) {
    size_t now = bytes < CALL_MAX ? bytes : CALL_MAX;
    struct iovec local = {to, now};
    struct iovec remote = {(void *)(uintptr_t)src,
                           now}; /* NOLINT: an address of the other process */
    ssize_t n = process_vm_readv((pid_t)pid, &local, 1, &remote, 1, 0);
    if (n <= 0)
      return n < 0 ? -errno : -EFAULT;
    to += n;
    src += (uint64_t)n;
    bytes -= (size_t)n;
  }
  return 0;
}
