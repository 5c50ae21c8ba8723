/*
 * Mutexes with ranks, and threads.
 *
 * Lock order, outermost to innermost: a thread may take a mutex only when its rank is higher than that of every
 * mutex it holds. Debug builds (PERIGEE_DEBUG) assert it and keep the held ones per thread for crash reports.
 * The interpreter's mutex (PERIGEE_LOCK_INTERP) is taken with no other lock held and is given up around every wait.
 * No callback of any kind runs while a mutex other than the interpreter's is held.
 */
#ifndef PERIGEE_BASE_THREAD_H
#define PERIGEE_BASE_THREAD_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#if defined(__GLIBC__)
#include <sys/single_threaded.h>
#endif

#include "base/attr.h"

typedef enum perigee_lock_rank {
  PERIGEE_LOCK_INTERP = 10,   /* host: one interpreter */
  PERIGEE_LOCK_REGISTRY = 15, /* group: backends by name */
  PERIGEE_LOCK_GROUP = 20,    /* group: membership, works in flight */
  PERIGEE_LOCK_STORE = 30,    /* one store handle */
  PERIGEE_LOCK_MESH = 40,     /* transport: one mesh (its I/O loop, peers, match lists) */
  PERIGEE_LOCK_QUEUE = 50,    /* coll: one group's queue of operations */
  PERIGEE_LOCK_FATE = 55,     /* transport: first cause of a group's failure */
  PERIGEE_LOCK_WORK = 60,     /* group: callbacks of one work */
  PERIGEE_LOCK_READY = 70,    /* host: queue of things ready to run in Lua */
  PERIGEE_LOCK_LEAF = 80,     /* anything that calls nothing while it is held */
  PERIGEE_LOCK_LOG = 90       /* one output line */
} perigee_lock_rank;

typedef struct PERIGEE_CAPABILITY("mutex") perigee_mutex {
  pthread_mutex_t mutex;
  int rank;
  const char *name;
} perigee_mutex;

void perigee__mutex_init(perigee_mutex *m, perigee_lock_rank rank, const char *name);
void perigee__mutex_fini(perigee_mutex *m);
void perigee__lock(perigee_mutex *m) PERIGEE_ACQUIRES(*m);
bool perigee__trylock(perigee_mutex *m) PERIGEE_TRY_ACQUIRES(true, *m);
void perigee__unlock(perigee_mutex *m) PERIGEE_RELEASES(*m);
/** A full barrier right behind perigee__unlock of the thread: what it looks at next is not older than the unlock. */
static inline void perigee__unlock_fence(void) {
#if (defined(__x86_64__) || defined(__i386__)) && defined(__GLIBC__)
  /* An unlock is a locked instruction, but in a process of one thread, where glibc spares itself that. */
  if (PERIGEE_LIKELY(!__libc_single_threaded)) {
    atomic_signal_fence(memory_order_seq_cst);
    return;
  }
#endif
  atomic_thread_fence(memory_order_seq_cst);
}
/** Number of ranked mutexes this thread holds (debug builds; 0 otherwise). */
int perigee__locks_held(void);

#define PERIGEE_MUTEX_INIT(_rank, _name)                                                           \
  { PTHREAD_MUTEX_INITIALIZER, (_rank), (_name) }

/** Start a thread with all signals blocked and stack_bytes of stack (0: 256 KiB). Returns 0 or -errno. */
int perigee__thread_start(pthread_t *thread_p, const char *name, size_t stack_bytes,
                          void *(*fn)(void *), void *arg);

#endif
