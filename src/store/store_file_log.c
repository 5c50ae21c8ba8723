#include "store/store_file_log.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "store/store.h"
#include "store/store_buf.h"

enum {
  HEAD_SIZE = 16,
  MAGIC_SIZE = 16
};
static const char magic[MAGIC_SIZE] = "perigee-store1\n";

/* Where the liveness lock is: a byte no file is long enough to hold. */
#define LIVENESS_AT ((off_t)1 << 62)
enum {
  POLL_FIRST_NS = 20000,
  POLL_MAX_NS = 5000000
}; /* between two tries for the lock */

static uint32_t fnv1a(const void *data, size_t size) {
  const unsigned char *p = data;
  uint32_t h = 2166136261u;
  for (size_t i = 0; i < size; i++)
    h = (h ^ p[i]) * 16777619u;
  return h;
}

/* ---- locks ---- */

int perigee__log_lock(perigee__log *log, bool exclusive, int64_t deadline_ns) {
  int64_t pause = POLL_FIRST_NS;
  while (flock(log->fd, (exclusive ? LOCK_EX : LOCK_SH) | LOCK_NB) != 0) {
    if (errno == EINTR)
      continue;
    if (errno != EWOULDBLOCK)
      return perigee__fail_errno(errno, "file store %s: lock", log->path);
    int64_t left = perigee__time_left(deadline_ns);
    if (left == 0)
      return perigee__fail(PERIGEE_ETIMEDOUT, "file store %s: another process holds its lock",
                           log->path);
    perigee__sleep_ns(pause < left ? pause : left);
    pause = pause * 2 < POLL_MAX_NS ? pause * 2 : POLL_MAX_NS;
  }
  return 0;
}

void perigee__log_unlock(perigee__log *log) {
  while (flock(log->fd, LOCK_UN) != 0 && errno == EINTR) {
  }
}

/* F_WRLCK succeeds only for the last live handle. */
static int liveness(const perigee__log *log, short type) {
  struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = LIVENESS_AT, .l_len = 1};
  int rc;
  while ((rc = fcntl(log->fd, F_OFD_SETLK, &lock)) != 0 && errno == EINTR) {
  }
  return rc == 0 ? 0 : -errno;
}

/* ---- reading and writing ---- */

static int read_at(const perigee__log *log, void *data, size_t size, off_t at) {
  for (size_t done = 0; done < size;) {
    ssize_t n = pread(log->fd, (char *)data + done, size - done, at + (off_t)done);
    if (n < 0 && errno == EINTR)
      continue;
    if (n < 0)
      return perigee__fail_errno(errno, "file store %s: read", log->path);
    if (n == 0)
      return perigee__fail(PERIGEE_ESTORE, "file store %s: it became shorter", log->path);
    done += (size_t)n;
  }
  return 0;
}

static int write_at(const perigee__log *log, const void *data, size_t size, off_t at) {
  for (size_t done = 0; done < size;) {
    ssize_t n = pwrite(log->fd, (const char *)data + done, size - done, at + (off_t)done);
    if (n < 0 && errno == EINTR)
      continue;
    if (n < 0)
      return perigee__fail_errno(errno, "file store %s: write", log->path);
    done += (size_t)n;
  }
  return 0;
}

static int cut(const perigee__log *log, off_t size) {
  while (ftruncate(log->fd, size) != 0)
    if (errno != EINTR)
      return perigee__fail_errno(errno, "file store %s: truncate", log->path);
  return 0;
}

static int size_of(const perigee__log *log, off_t *size_p) {
  struct stat st;
  if (fstat(log->fd, &st) != 0)
    return perigee__fail_errno(errno, "file store %s: stat", log->path);
  if (st.st_nlink == 0)
    return perigee__fail(PERIGEE_ESTORE, "file store %s: the file was removed", log->path);
  *size_p = st.st_size;
  return 0;
}

int perigee__log_behind(const perigee__log *log, bool *behind_p) {
  off_t size = 0;
  PERIGEE_TRY(size_of(log, &size));
  *behind_p = size > log->at;
  return 0;
}

int perigee__log_write(perigee__log *log, perigee__record_type type, const char *key,
                       const void *value, size_t size) {
  perigee__buf b = {NULL, 0, 0, false};
  size_t key_size = strlen(key);
  off_t end = 0;
  PERIGEE_TRY(size_of(log, &end));
  perigee__buf_u32(&b, 0);
  perigee__buf_u32(&b, (uint32_t)type);
  perigee__buf_u32(&b, (uint32_t)key_size);
  perigee__buf_u32(&b, (uint32_t)size);
  perigee__buf_put(&b, key, key_size);
  perigee__buf_put(&b, value, size);
  if (b.failed) {
    perigee__buf_fini(&b);
    return perigee__fail(PERIGEE_ENOMEM, "file store %s: no memory for a record", log->path);
  }
  uint32_t check = fnv1a(b.data + 4, b.size - 4);
  for (int i = 0; i < 4; i++)
    b.data[i] = (char)(check >> (8 * i));
  int rc = write_at(log, b.data, b.size, end);
  if (rc < 0) { /* disk full: leave no half record behind; the error that counts is the first */
    perigee_error first = *perigee_last_error();
    cut(log, end);
    perigee__fail_with(&first);
  }
  perigee__buf_fini(&b);
  return rc;
}

/* ---- replay ---- */

static int apply(perigee__table *table, uint32_t type, const char *key, size_t key_size,
                 const char *value, size_t size) {
  int rc = PERIGEE_ESTORE;
  perigee__entry *e = perigee__table_obtain(table, key, key_size);
  if (e == NULL)
    return perigee_last_error()->code;
  switch (type) {
  case PERIGEE__RECORD_SET:
    rc = perigee__entry_set(table, e, value, size);
    break;
  case PERIGEE__RECORD_APPEND:
    rc = perigee__entry_append(table, e, value, size);
    break;
  case PERIGEE__RECORD_UNSET:
    perigee__entry_unset(table, e);
    rc = 0;
    break;
  case PERIGEE__RECORD_PUSH:
    rc = perigee__entry_push(table, e, value, size);
    break;
  case PERIGEE__RECORD_POP:
    free(perigee__entry_pop(table, e));
    rc = 0;
    break;
  default:
    break;
  }
  perigee__table_release(table, e);
  return rc;
}

/*
 * Length of the record at p, of which left bytes are there: 0 when it is torn, that is, when it is the last thing in the
 * file and not whole; ESTORE when it cannot be ours.
 */
static int record_check(const perigee__log *log, const char *p, size_t left, off_t at,
                        size_t *size_p) {
  *size_p = 0;
  if (left < HEAD_SIZE)
    return 0;
  uint32_t type = perigee__le32(p + 4);
  size_t key_size = perigee__le32(p + 8), size = perigee__le32(p + 12);
  if (key_size > PERIGEE__STORE_KEY_MAX || size > PERIGEE__STORE_VALUE_MAX ||
      type < PERIGEE__RECORD_SET || type > PERIGEE__RECORD_POP) {
    /* A file grown by a torn write may hold zeros where data was to be. */
    bool blank = true;
    for (size_t i = 0; i < left && blank; i++)
      blank = p[i] == 0;
    return blank ? 0
                 : perigee__fail(PERIGEE_ESTORE, "file store %s: damaged at byte %" PRId64,
                                 log->path, (int64_t)at);
  }
  size_t whole = HEAD_SIZE + key_size + size;
  if (left < whole)
    return 0;
  if (fnv1a(p + 4, whole - 4) != perigee__le32(p))
    return left == whole ? 0
                         : perigee__fail(PERIGEE_ESTORE, "file store %s: damaged at byte %" PRId64,
                                         log->path, (int64_t)at);
  *size_p = whole;
  return 0;
}

static int replay_bytes(perigee__log *log, perigee__table *table, const char *data, size_t size) {
  while (size > 0) {
    size_t whole = 0;
    PERIGEE_TRY(record_check(log, data, size, log->at, &whole));
    if (whole == 0)
      return 0;
    size_t key_size = perigee__le32(data + 8);
    const char *key = data + HEAD_SIZE;
    PERIGEE_TRY(apply(table, perigee__le32(data + 4), key, key_size, key + key_size,
                      whole - HEAD_SIZE - key_size));
    log->at += (off_t)whole;
    data += whole;
    size -= whole;
  }
  return 0;
}

int perigee__log_replay(perigee__log *log, perigee__table *table, bool exclusive) {
  off_t end = 0;
  PERIGEE_TRY(size_of(log, &end));
  if (end < log->at)
    return perigee__fail(PERIGEE_ESTORE, "file store %s: it became shorter", log->path);
  if (end == log->at)
    return 0;
  size_t size = (size_t)(end - log->at);
  char *data = malloc(size);
  if (data == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "file store %s: no memory for %zu bytes of it", log->path,
                         size);
  int rc = read_at(log, data, size, log->at);
  if (rc == 0)
    rc = replay_bytes(log, table, data, size);
  free(data);
  if (rc == 0 && exclusive && log->at < end)
    rc = cut(log, log->at);
  return rc;
}

/* ---- opening and closing ---- */

static int file_check(const perigee__log *log, const struct stat *st) {
  if (!S_ISREG(st->st_mode))
    return perigee__fail(PERIGEE_EINVAL, "file store %s: not a regular file", log->path);
  if (st->st_uid != geteuid() && st->st_uid != 0)
    return perigee__fail(PERIGEE_EINVAL, "file store %s: belongs to user %u", log->path,
                         (unsigned)st->st_uid);
  char head[MAGIC_SIZE];
  if (st->st_size < MAGIC_SIZE) {
    /* empty, or a creator died over the first write */
    PERIGEE_TRY(read_at(log, head, (size_t)st->st_size, 0));
    if (memcmp(head, magic, (size_t)st->st_size) == 0)
      return 0;
  } else {
    PERIGEE_TRY(read_at(log, head, MAGIC_SIZE, 0));
    if (memcmp(head, magic, MAGIC_SIZE) == 0)
      return 0;
  }
  return perigee__fail(PERIGEE_EINVAL, "file store %s: the file is something else", log->path);
}

/* Lock held. *again_p: the file was removed between our open and our lock. */
static int join(perigee__log *log, bool *again_p) {
  struct stat st, named;
  *again_p = false;
  if (fstat(log->fd, &st) != 0)
    return perigee__fail_errno(errno, "file store %s: stat", log->path);
  if (stat(log->path, &named) != 0 || named.st_ino != st.st_ino || named.st_dev != st.st_dev) {
    *again_p = true;
    return 0;
  }
  PERIGEE_TRY(file_check(log, &st));
  if (liveness(log, F_WRLCK) == 0) { /* nobody else lives: what is in it is of the dead */
    PERIGEE_TRY(cut(log, 0));
    PERIGEE_TRY(write_at(log, magic, MAGIC_SIZE, 0));
  }
  int rc = liveness(log, F_RDLCK);
  if (rc < 0)
    return perigee__fail_errno(-rc, "file store %s: liveness lock", log->path);
  log->at = MAGIC_SIZE;
  return 0;
}

static int absolute(const char *path, char **path_p) {
  char folder[PATH_MAX];
  *path_p = NULL;
  if (path[0] == '/')
    *path_p = perigee__strdup(path);
  else if (getcwd(folder, sizeof(folder)) != NULL)
    *path_p = perigee__format("%s/%s", folder, path);
  else
    return perigee__fail_errno(errno, "file store %s: working folder", path);
  return *path_p != NULL ? 0 : perigee__fail(PERIGEE_ENOMEM, "file store %s: no memory", path);
}

int perigee__log_open(perigee__log *log, const char *path, int64_t deadline_ns) {
  PERIGEE_TRY(absolute(path, &log->path));
  int rc;
  bool again = false;
  do {
    /* O_NOFOLLOW: in a folder that others can write to, a link may lead to a file of the user's own */
    do
      log->fd = open(log->path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    while (log->fd < 0 && errno == EINTR);
    if (log->fd < 0) {
      rc = perigee__fail_errno(errno, "file store %s: open", log->path);
      goto err_path;
    }
    PERIGEE_TRY_GOTO(perigee__log_lock(log, true, deadline_ns), err_fd);
    PERIGEE_TRY_GOTO(join(log, &again), err_fd);
    if (!again)
      perigee__log_unlock(log);
    else
      close(log->fd);
    if (again && perigee__passed(deadline_ns)) {
      rc = perigee__fail(PERIGEE_ETIMEDOUT, "file store %s: it keeps being removed", log->path);
      goto err_path;
    }
  } while (again);
  return 0;
err_fd:
  close(log->fd);
err_path:
  free(log->path);
  return rc;
}

void perigee__log_close(perigee__log *log, bool owner) {
  /* Under the lock nobody can join between "I am the last" and the unlink. Without it the file stays: rare, and the next
   * user discards what is in it. */
  if (owner && perigee__log_lock(log, true, perigee__deadline_in(PERIGEE_NS_PER_SEC)) == 0) {
    struct stat st;
    if (liveness(log, F_WRLCK) == 0 && fstat(log->fd, &st) == 0 && st.st_nlink > 0)
      unlink(log->path);
    /* Under the lock, or two that go at once see each other and both leave the file. Explicitly, since close does it only
     * with the last copy of the descriptor, and a forked child may have one. */
    liveness(log, F_UNLCK);
    perigee__log_unlock(log);
  } else if (owner)
    liveness(log, F_UNLCK);
  close(log->fd);
  free(log->path);
  log->path = NULL;
  log->fd = -1;
}
