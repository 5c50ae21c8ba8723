#include "transport/memfd.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/available.h"
#include "base/error.h"

/* From here on it is worth asking first whether there is as much: reserving what there is not has processes killed before it fails. */
#define LARGE ((size_t)64 << 20)

/*
 * Give fd its memory. 0 or errno. fallocate, because ftruncate succeeds on memory that is not there and the first store is SIGBUS.
 * A limit on file sizes (RLIMIT_FSIZE) holds for this memory too, and brings SIGXFSZ, which ends a process that does not expect it: it is
 * sent to the thread, so it can be held back and taken here.
 */
static int reserve(int fd, size_t bytes) {
  const struct timespec now = {0};
  sigset_t mine, before;
  int rc;
  sigemptyset(&mine);
  sigaddset(&mine, SIGXFSZ);
  pthread_sigmask(SIG_BLOCK, &mine, &before);
  do {
    rc = ftruncate(fd, (off_t)bytes) == 0 ? posix_fallocate(fd, 0, (off_t)bytes) : errno;
  } while (rc == EINTR);
  if (rc == EFBIG && !sigismember(&before, SIGXFSZ))
    (void)sigtimedwait(&mine, NULL, &now);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  return rc;
}

int perigee__memfd_create(const char *name, size_t bytes, int *fd_p) {
  uint64_t available = bytes >= LARGE ? perigee__available_memory() : UINT64_MAX;
  if (bytes > available)
    return perigee__fail(PERIGEE_ENOSHM,
                         "cannot reserve %zu bytes of shared memory: %llu are available", bytes,
                         (unsigned long long)available);
  int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0)
    return perigee__fail(PERIGEE_ENOSHM, "memfd_create for %zu bytes: %s", bytes,
                         perigee_strerror(-errno));
  int rc = reserve(fd, bytes);
  if (rc == 0 && fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)
    rc = errno;
  if (rc != 0) {
    close(fd);
    return perigee__fail(PERIGEE_ENOSHM, "cannot reserve %zu bytes of shared memory: %s", bytes,
                         perigee_strerror(-rc));
  }
  *fd_p = fd;
  return 0;
}

int perigee__memfd_map(int fd, size_t bytes, void **base_p) {
  struct stat st;
  int seals = fcntl(fd, F_GET_SEALS);
  if (seals < 0 || !(seals & F_SEAL_SHRINK) || fstat(fd, &st) != 0)
    return perigee__fail(PERIGEE_ENOSHM, "the descriptor is no sealed shared memory");
  if (st.st_size < 0 || (size_t)st.st_size != bytes)
    return perigee__fail(PERIGEE_ENOSHM, "shared memory has %lld bytes, %zu expected",
                         (long long)st.st_size, bytes);
  void *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (base == MAP_FAILED)
    return perigee__fail(PERIGEE_ENOSHM, "cannot map %zu bytes of shared memory: %s", bytes,
                         perigee_strerror(-errno));
  /* A forked child must not write into the job's memory. */
  if (madvise(base, bytes, MADV_DONTFORK) != 0) {
    int err = errno;
    munmap(base, bytes);
    return perigee__fail_errno(err, "madvise(MADV_DONTFORK)");
  }
  *base_p = base;
  return 0;
}

void perigee__memfd_unmap(void *base, size_t bytes) {
  if (base != NULL)
    munmap(base, bytes);
}
