/*
 * Reading another rank's memory with one system call (process_vm_readv), where the kernel lets us.
 *
 * Whether it does cannot be told from settings (Yama, seccomp filters, namespaces, dumpable flags): every rank puts a random value and
 * its address into the arena, and every other tries to read it. A process in another pid namespace that has the same pid is found out
 * by the value. All pairs work, or nobody uses it.
 */
#ifndef PERIGEE_COLL_REACH_H
#define PERIGEE_COLL_REACH_H

#include "coll/arena_impl.h"

/** Write down who this rank is and allow its siblings to read (Yama: descendants of the same parent). Before the members agree. */
void perigee__reach_introduce(perigee__arena *a);
/** Whether this rank can read all others, all of which have introduced themselves. Says why not, at level info. */
bool perigee__reach_probe(perigee__arena *a);
/** dst := bytes at address src of the process. 0, or -errno (-ESRCH and -EFAULT when it is gone). */
PERIGEE_MUST_CHECK int perigee__reach_read(int32_t pid, void *dst, uint64_t src, size_t bytes);

#endif
