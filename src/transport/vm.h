/*
 * Reading and writing another process's memory with one system call (process_vm_readv, process_vm_writev), where the kernel lets us.
 *
 * Whether it does cannot be told from settings (Yama, seccomp filters, namespaces, dumpable flags): a rank shows where it has a random
 * value (perigee__vm_face, in memory they share), and who wants to read tries. A process that has the same pid in another pid namespace
 * is found out by the value.
 */
#ifndef PERIGEE_TRANSPORT_VM_H
#define PERIGEE_TRANSPORT_VM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/attr.h"

/** In shared memory, written by its owner before anybody may look. */
typedef struct perigee__vm_face {
  int32_t pid;
  uint64_t at, value; /* where in that process, and what stands there */
} perigee__vm_face;

/** Show this process: *value_p gets the value and must stay where it is. Allows siblings to read (Yama: descendants of our parent). */
void perigee__vm_show(uint64_t *value_p, perigee__vm_face *face);
/** 0, or why the memory behind a face cannot be read: -errno; -ESRCH when it is another process. */
PERIGEE_MUST_CHECK int perigee__vm_probe(const perigee__vm_face *face);
/** Whether a system call takes several times as long to read 64 KiB as copying them does (vm.c).
 *  Measured once in a process, in some 100 us. True where it is not allowed at all. */
bool perigee__vm_is_slow(void);
/** dst := bytes at address src of the process. 0, or -errno (-ESRCH and -EFAULT when it is gone). */
PERIGEE_MUST_CHECK int perigee__vm_read(int32_t pid, void *dst, uint64_t src, size_t bytes);
/** *to of the process := src, in one system call, which looks at *to when it begins. 0, or -errno (-EFAULT when *to has been made empty). */
PERIGEE_MUST_CHECK int perigee__vm_write(int32_t pid, const struct iovec *to, const void *src,
                                         size_t bytes);
/** Whether that thread is in no system call: it is stopped, or has ended. */
bool perigee__vm_thread_stands(int32_t pid, int32_t tid);

#endif
