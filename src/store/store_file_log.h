/*
 * The file behind a file store: a log of changes that every process replays into a table of its own.
 *
 *   file   := "perigee-store1\n\0" record*
 *   record := u32 check | u32 type | u32 key size | u32 value size | key | value       (little endian)
 *             check: FNV-1a of everything after it
 *
 * Two locks, both dropped by the kernel when a process dies:
 *   flock        LOCK_EX around every change and LOCK_SH around every read of new records. Polled, with a deadline: a holder
 *                that is stopped must not stop others for ever.
 *   liveness     an open-file-description read lock on one byte far behind the data, held by every open log. It counts the live
 *                handles: whoever can turn it into a write lock is the last one. So the file goes with the last handle, and
 *                what a crowd of killed processes left is told from what living ones share, and discarded.
 * A writer that dies in the middle of a record leaves a torn tail; the next writer cuts it off. Everybody else stops in
 * front of it.
 */
#ifndef PERIGEE_STORE_FILE_LOG_H
#define PERIGEE_STORE_FILE_LOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "store/store_table.h"

typedef enum perigee__record_type {
  PERIGEE__RECORD_SET = 1,
  PERIGEE__RECORD_APPEND,
  PERIGEE__RECORD_UNSET,
  PERIGEE__RECORD_PUSH,
  PERIGEE__RECORD_POP,
} perigee__record_type;

typedef struct perigee__log {
  char *path; /* absolute: the working folder may change */
  int fd;
  off_t at; /* records before it are in the table */
} perigee__log;

/** Open or make the file and register as a live handle. */
int perigee__log_open(perigee__log *log, const char *path, int64_t deadline_ns);
/** Forget it; the last live handle removes the file. owner: false in a forked child, which only lets go of memory. */
void perigee__log_close(perigee__log *log, bool owner);

int perigee__log_lock(perigee__log *log, bool exclusive, int64_t deadline_ns);
void perigee__log_unlock(perigee__log *log);
/** Whether there are records that are not in the table. No lock needed. ESTORE when the file was removed. */
int perigee__log_behind(const perigee__log *log, bool *behind_p);
/** Locked. Bring the table up to date; exclusive: cut off a torn tail. */
int perigee__log_replay(perigee__log *log, perigee__table *table, bool exclusive);
/** Locked exclusively, up to date. Write a change; it is not in the table yet and the next replay puts it there. */
int perigee__log_write(perigee__log *log, perigee__record_type type, const char *key,
                       const void *value, size_t size);

#endif
