#include "transport/memfd.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"

int perigee__memfd_create(const char *name, size_t bytes, int *fd_p) {
  int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0)
    return perigee__fail(PERIGEE_ENOSHM, "memfd_create for %zu bytes: %s", bytes,
                         perigee_strerror(-errno));
  /* fallocate, because ftruncate succeeds on memory that is not there and the first store is SIGBUS. */
  int rc;
  do {
    rc = ftruncate(fd, (off_t)bytes) == 0 ? posix_fallocate(fd, 0, (off_t)bytes) : errno;
  } while (rc == EINTR);
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
