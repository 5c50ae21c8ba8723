/*
 * A uv loop that any thread may drive, one at a time.
 *
 * The loop belongs to whoever holds its lock. Threads that wait for I/O drive it themselves (perigee__loop_run_once), so the
 * latency path has no hand-over between threads. A background thread, the I/O thread, drives it when nobody else
 * does; it steps aside while callers drive (it naps in slices of about 1 ms and takes over when they have stopped).
 * Everything that touches uv handles of the loop, and whatever its callbacks touch, happens with the lock held; callbacks run
 * with it held too, so they must be short, must not block and must not call into Lua.
 * Lock rank: PERIGEE_LOCK_MESH. To take the lock while another thread sleeps in epoll under it, perigee__loop_lock kicks that
 * thread out of its sleep.
 */
#ifndef PERIGEE_BASE_LOOP_H
#define PERIGEE_BASE_LOOP_H

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "base/thread.h"

typedef struct perigee__loop perigee__loop;

/** Make a loop and start its I/O thread. */
int perigee__loop_create(const char *name, perigee__loop **loop_p);
/** Stop the I/O thread, close what is still open on the loop and free it. No other thread may use it any more. */
void perigee__loop_destroy(perigee__loop **loop_p);

/** The uv loop, for making handles. Lock held. */
uv_loop_t *perigee__loop_uv(perigee__loop *loop);

void perigee__loop_lock(perigee__loop *loop);
bool perigee__loop_trylock(perigee__loop *loop);
void perigee__loop_unlock(perigee__loop *loop);

/** Lock held. Run what is ready without sleeping. */
void perigee__loop_poll(perigee__loop *loop);
/**
 * Lock held. Run what is ready, sleeping until there is something, deadline_ns has passed, or another thread wants the lock: who calls
 * this again and again unlocks in between and calls perigee__loop_give_way.
 */
void perigee__loop_run_once(perigee__loop *loop, int64_t deadline_ns);
/** Lock not held, before taking it again: let those who wait for it go first. */
void perigee__loop_give_way(perigee__loop *loop);
/** A driver that did not get the lock: make the I/O thread give it up when that sleeps with it. */
void perigee__loop_nudge(perigee__loop *loop);
/** Any thread, lock held or not: make a thread that sleeps in the loop come out once. Never blocks; signal-safe. */
void perigee__loop_kick(perigee__loop *loop);

/** Bracket a stretch in which this thread drives the loop: the I/O thread stays aside. Lock not needed. */
void perigee__loop_driver_enter(perigee__loop *loop);
void perigee__loop_driver_leave(perigee__loop *loop);

/** Lock held, by a thread that does a part of what drivers do and has not said so: the I/O thread stays out of the way, and looks at
 *  everything once in a nap. */
void perigee__loop_used(perigee__loop *loop);

/** What the owner of a loop adds to it. All may be NULL; set before the loop is shared. */
typedef struct perigee__loop_hooks {
  /** Lock held, on every pass of whoever drives. sleep: the pass is about to sleep (arrange to be woken). Returns true when it did
   *  something, and the pass should not sleep. */
  bool (*prepare)(void *arg, bool sleep);
  /** Lock held, when it is about to be given up: returns what is to be done after it, NULL for nothing. */
  void *(*collect)(void *arg);
  /** No lock held, each time it has been given up: does it. */
  void (*deliver)(void *arg, void *collected);
  void *arg;
} perigee__loop_hooks;
void perigee__loop_set_hooks(perigee__loop *loop, const perigee__loop_hooks *hooks);
/** Whether another thread waits for the lock: a driver that spins should let it in. */
bool perigee__loop_wanted(const perigee__loop *loop);
bool perigee__loop_on_io_thread(const perigee__loop *loop);

#endif
