/*
 * Who drives the loop: see loop.h. The words that decide it:
 *   wanted   threads inside loop_lock that had to kick the owner out of epoll; the I/O thread stays off the lock while it
 *            is not 0, so that a mutex without fairness cannot starve them.
 *   drivers  threads between driver_enter and driver_leave.
 *   drives   counts driver_leave calls: when it has changed since its last look, callers are busy and the I/O thread naps on.
 * A driver that sleeps in epoll can be needed elsewhere only by a thread in loop_lock, which kicks it; kicks go through
 * uv_async_send, which is safe from any thread and coalesces.
 */
#include "base/loop.h"

#include <errno.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/futex.h"

enum { NAP_NS = 1000000 }; /* how long callers may be idle before the I/O thread takes over */

struct perigee__loop {
  uv_loop_t uv;     /* under mutex */
  uv_async_t kick;  /* uv_async_send from any thread */
  uv_timer_t timer; /* bounds the sleep of run_once; under mutex */
  perigee_mutex mutex;
  perigee__loop_hooks hooks; /* immutable once shared */
  pthread_t io_thread;
  _Atomic uint32_t wanted;  /* release on decrement, the I/O thread waits on it */
  _Atomic uint32_t drivers; /* relaxed: only steers who drives */
  _Atomic uint32_t drives;  /* futex word of the napping I/O thread; relaxed otherwise */
  _Atomic bool sleeping;    /* somebody is (about to be) in epoll; seq_cst pairs with loop_lock */
  _Atomic bool stopping;
};

static void on_kick(uv_async_t *async) { (void)async; }
static void on_timer(uv_timer_t *timer) { (void)timer; }

uv_loop_t *perigee__loop_uv(perigee__loop *loop) { return &loop->uv; }

void perigee__loop_kick(perigee__loop *loop) { uv_async_send(&loop->kick); }

bool perigee__loop_trylock(perigee__loop *loop) PERIGEE_NO_TSA {
  return perigee__trylock(&loop->mutex);
}

void perigee__loop_lock(perigee__loop *loop) PERIGEE_NO_TSA {
  if (perigee__trylock(&loop->mutex))
    return;
  atomic_fetch_add(&loop->wanted, 1);
  /* seq_cst on both sides: either the sleeper sees wanted before it sleeps, or we see it sleeping and kick it. */
  if (atomic_load(&loop->sleeping))
    uv_async_send(&loop->kick);
  perigee__lock(&loop->mutex);
  if (atomic_fetch_sub(&loop->wanted, 1) == 1)
    perigee__futex_wake(&loop->wanted, INT_MAX, false);
}

void perigee__loop_unlock(perigee__loop *loop) PERIGEE_NO_TSA {
  void *collected = loop->hooks.collect != NULL ? loop->hooks.collect(loop->hooks.arg) : NULL;
  perigee__unlock(&loop->mutex);
  if (collected != NULL)
    loop->hooks.deliver(loop->hooks.arg, collected);
}

bool perigee__loop_wanted(const perigee__loop *loop) {
  return atomic_load_explicit(&loop->wanted, memory_order_relaxed) > 0;
}

static bool prepare(perigee__loop *loop, bool sleep) {
  return loop->hooks.prepare != NULL && loop->hooks.prepare(loop->hooks.arg, sleep);
}

void perigee__loop_poll(perigee__loop *loop) {
  uv_run(&loop->uv, UV_RUN_NOWAIT);
  prepare(loop, false);
}

void perigee__loop_run_once(perigee__loop *loop, int64_t deadline_ns) PERIGEE_NO_TSA {
  if (prepare(loop, true)) {
    uv_run(&loop->uv, UV_RUN_NOWAIT);
    return;
  }
  bool bounded = deadline_ns != PERIGEE_NEVER;
  if (bounded) {
    int64_t left = perigee__time_left(deadline_ns);
    uv_update_time(&loop->uv);
    uv_timer_start(&loop->timer, on_timer,
                   (uint64_t)((left + PERIGEE_NS_PER_MS - 1) / PERIGEE_NS_PER_MS), 0);
  }
  atomic_store(&loop->sleeping, true);
  uv_run(&loop->uv, atomic_load(&loop->wanted) > 0 ? UV_RUN_NOWAIT : UV_RUN_ONCE);
  atomic_store(&loop->sleeping, false);
  if (bounded)
    uv_timer_stop(&loop->timer);
  if (atomic_load(&loop->wanted) > 0) {
    /* Somebody waits for the lock: give way once. */
    perigee__loop_unlock(loop);
    uint32_t wanted = atomic_load(&loop->wanted);
    if (wanted > 0)
      perigee__futex_wait(&loop->wanted, wanted, perigee__deadline_in(PERIGEE_NS_PER_MS), false);
    perigee__lock(&loop->mutex);
  }
}

void perigee__loop_driver_enter(perigee__loop *loop) {
  atomic_fetch_add_explicit(&loop->drivers, 1, memory_order_relaxed);
}

void perigee__loop_driver_leave(perigee__loop *loop) {
  atomic_fetch_add_explicit(&loop->drives, 1, memory_order_relaxed);
  atomic_fetch_sub_explicit(&loop->drivers, 1, memory_order_relaxed);
}

void perigee__loop_set_hooks(perigee__loop *loop, const perigee__loop_hooks *hooks) {
  perigee__loop_lock(loop);
  loop->hooks = *hooks;
  perigee__loop_unlock(loop);
}

bool perigee__loop_on_io_thread(const perigee__loop *loop) {
  return pthread_equal(pthread_self(), loop->io_thread) != 0;
}

/* True when callers drive, or did since the last look: then the I/O thread keeps out of their way. */
static bool callers_drive(perigee__loop *loop, uint32_t *seen) {
  uint32_t drives = atomic_load_explicit(&loop->drives, memory_order_relaxed);
  bool busy = drives != *seen || atomic_load_explicit(&loop->drivers, memory_order_relaxed) > 0;
  *seen = drives;
  return busy;
}

static void *io_main(void *arg) PERIGEE_NO_TSA {
  perigee__loop *loop = arg;
  uint32_t seen = 0;
  while (!atomic_load(&loop->stopping)) {
    uint32_t wanted = atomic_load(&loop->wanted);
    if (wanted > 0) {
      perigee__futex_wait(&loop->wanted, wanted, perigee__deadline_in(NAP_NS), false);
    } else if (callers_drive(loop, &seen)) {
      perigee__futex_wait(&loop->drives, seen, perigee__deadline_in(NAP_NS), false);
    } else {
      perigee__lock(&loop->mutex);
      if (!atomic_load(&loop->stopping))
        perigee__loop_run_once(loop, PERIGEE_NEVER);
      perigee__loop_unlock(loop);
    }
  }
  return NULL;
}

int perigee__loop_create(const char *name, perigee__loop **loop_p) {
  perigee__loop *loop = perigee__calloc(1, sizeof(*loop));
  if (loop == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory for an I/O loop");
  int rc = uv_loop_init(&loop->uv);
  if (rc != 0) {
    free(loop);
    return perigee__fail_errno(-rc, "cannot make an I/O loop");
  }
  rc = uv_async_init(&loop->uv, &loop->kick, on_kick);
  PERIGEE_CHECK(rc == 0 || rc == UV_EMFILE || rc == UV_ENFILE || rc == UV_ENOMEM);
  if (rc != 0) {
    uv_loop_close(&loop->uv);
    free(loop);
    return perigee__fail_errno(-rc, "cannot make the wake-up of an I/O loop");
  }
  uv_timer_init(&loop->uv, &loop->timer);
  perigee__mutex_init(&loop->mutex, PERIGEE_LOCK_MESH, "mesh");
  rc = perigee__thread_start(&loop->io_thread, name, 0, io_main, loop);
  if (rc != 0) {
    atomic_store(&loop->stopping, true);
    uv_close((uv_handle_t *)&loop->kick, NULL);
    uv_close((uv_handle_t *)&loop->timer, NULL);
    uv_run(&loop->uv, UV_RUN_DEFAULT);
    uv_loop_close(&loop->uv);
    perigee__mutex_fini(&loop->mutex);
    free(loop);
    return perigee__fail_errno(-rc, "cannot start an I/O thread");
  }
  *loop_p = loop;
  return 0;
}

static void close_leftover(uv_handle_t *handle, void *arg) {
  (void)arg;
  if (!uv_is_closing(handle))
    uv_close(handle, NULL);
}

void perigee__loop_destroy(perigee__loop **loop_p) {
  perigee__loop *loop = *loop_p;
  if (loop == NULL)
    return;
  *loop_p = NULL;
  atomic_store(&loop->stopping, true);
  uv_async_send(&loop->kick);
  perigee__futex_wake(&loop->drives, INT_MAX, false);
  pthread_join(loop->io_thread, NULL);
  uv_walk(&loop->uv, close_leftover, NULL);
  while (uv_run(&loop->uv, UV_RUN_DEFAULT) != 0) {
  }
  if (uv_loop_close(&loop->uv) != 0)
    PERIGEE_BUG("an I/O loop is closed with handles open");
  perigee__mutex_fini(&loop->mutex);
  free(loop);
}
