/*
 * The mutex of one interpreter: adaptive, fair in bounded time, with a deadline.
 *
 * Invariants
 *  - LOCKED is set exactly while somebody holds it. SLEEPERS is set while the queue is not empty. AWAKE is set while one
 *    waiter has been woken and not yet taken the mutex or gone back to sleep: then a release wakes nobody else.
 *  - A free mutex may be taken by whoever comes first (no convoy). A waiter that has waited longer than 200 us sets
 *    STARVING; then a release hands the mutex to the oldest waiter, and newcomers queue behind it.
 * Locks: the queue and every bit but LOCKED change under `queue_lock` (rank LEAF, held for a few instructions).
 * Memory order: taking the mutex is an acquire on `word`, releasing it a release; a hand-over releases and acquires through
 *   the waiter's `signal`.
 */
#ifndef PERIGEE_HOST_IMUTEX_H
#define PERIGEE_HOST_IMUTEX_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"
#include "base/thread.h"

typedef struct PERIGEE_CAPABILITY("interpreter") perigee__imutex {
  _Atomic uint32_t word;
  perigee_mutex queue_lock;
  perigee__node queue;    /* waiters, oldest first; under queue_lock */
  _Atomic uint64_t waits; /* times somebody slept (relaxed, a statistic) */
} perigee__imutex;

/** Called once by a waiter that has waited for a second; no lock held. */
typedef void (*perigee__imutex_slow)(void *arg, int64_t waited_ns);

void perigee__imutex_init(perigee__imutex *m);
void perigee__imutex_fini(perigee__imutex *m);
/** Returns 0 with the mutex held, or PERIGEE_ETIMEDOUT (no message) when timeout_ns (PERIGEE_NEVER: none) passed first.
 *  slow may be NULL. The clock is read only when it has to wait. */
int perigee__imutex_lock(perigee__imutex *m, int64_t timeout_ns, perigee__imutex_slow slow,
                         void *arg);
void perigee__imutex_unlock(perigee__imutex *m);

#endif
