/*
 * Who drives the loop: see loop.h. The words that decide it, all seq_cst because each is one half of a handshake:
 *   wanted    threads in the slow path of loop_lock. Who is about to sleep in epoll looks at it after it has said so in `sleeping`;
 *             loop_lock looks at `sleeping` after it has counted itself: one of them sees the other. Drivers and the I/O thread stay
 *             off the lock while it is not 0, so that a mutex without fairness cannot starve whoever waits for it.
 *   sleeping  who is (about to be) in epoll with the lock: 0 nobody, CALLER, or IO.
 *   drivers   threads between driver_enter and driver_leave. The I/O thread looks at it after it has set `sleeping`, a driver that
 *             did not get the lock looks at `sleeping` after it has counted itself (loop_nudge).
 *   drives    changes when a driver leaves, in loop_used, and when the I/O thread was in somebody's way: callers are busy then and it naps on.
 *   parked    the I/O thread sleeps longer than a nap, because drivers have been there for a while; driver_leave wakes it.
 * Kicks go through uv_async_send, which is safe from any thread and coalesces.
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

enum {
  NAP_NS = 1000000, /* how long callers may be idle before the I/O thread takes over */
  PARK_AFTER = 4    /* naps */
};
/* Bounds the sleep of a parked I/O thread; nothing depends on it. */
#ifdef PERIGEE_HOSTILE
#define PARK_NS (60 * PERIGEE_NS_PER_SEC) /* so that a lost wake-up shows */
#else
#define PARK_NS (100 * PERIGEE_NS_PER_MS)
#endif
enum {
  NOBODY,
  CALLER,
  IO
};

struct perigee__loop {
  uv_loop_t uv;     /* under mutex */
  uv_async_t kick;  /* uv_async_send from any thread */
  uv_timer_t timer; /* bounds the sleep of run_once; under mutex */
  perigee_mutex mutex;
  perigee__loop_hooks hooks; /* immutable once shared */
  pthread_t io_thread;
  _Atomic uint32_t wanted; /* also a futex word: woken when it falls to 0 */
  _Atomic uint32_t drivers;
  _Atomic uint32_t drives; /* also the futex word of the I/O thread's naps */
  _Atomic uint32_t sleeping;
  _Atomic uint32_t parked;
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
  uint32_t sleeper = atomic_load(&loop->sleeping);
  if (sleeper != NOBODY)
    uv_async_send(&loop->kick);
  if (sleeper == IO)
    atomic_fetch_add(&loop->drives, 1);
  perigee__lock(&loop->mutex);
  if (atomic_fetch_sub(&loop->wanted, 1) == 1)
    perigee__futex_wake(&loop->wanted, INT_MAX, false);
}

void perigee__loop_unlock(perigee__loop *loop) PERIGEE_NO_TSA {
  const perigee__loop_hooks hooks = loop->hooks; /* under the lock: set_hooks changes them */
  void *collected = hooks.collect != NULL ? hooks.collect(hooks.arg) : NULL;
  perigee__unlock(&loop->mutex);
  if (hooks.deliver != NULL)
    hooks.deliver(hooks.arg, collected);
}

bool perigee__loop_wanted(const perigee__loop *loop) { return atomic_load(&loop->wanted) > 0; }

void perigee__loop_give_way(perigee__loop *loop) {
  uint32_t wanted = atomic_load(&loop->wanted);
  if (PERIGEE_UNLIKELY(wanted > 0))
    perigee__futex_wait(&loop->wanted, wanted, perigee__deadline_in(NAP_NS), false);
}

void perigee__loop_nudge(perigee__loop *loop) {
  if (atomic_load(&loop->sleeping) == IO)
    uv_async_send(&loop->kick);
}

static bool prepare(perigee__loop *loop, bool sleep) {
  return loop->hooks.prepare != NULL && loop->hooks.prepare(loop->hooks.arg, sleep);
}

void perigee__loop_poll(perigee__loop *loop) {
  uv_run(&loop->uv, UV_RUN_NOWAIT);
  prepare(loop, false);
}

static void run(perigee__loop *loop, int64_t deadline_ns, uint32_t who) {
  if (prepare(loop, true)) {
    uv_run(&loop->uv, UV_RUN_NOWAIT);
    return;
  }
  bool bounded = deadline_ns != PERIGEE_NEVER;
  if (bounded) {
    int64_t left = perigee__time_left(deadline_ns);
    uv_update_time(&loop->uv);
    /* Repeating: uv runs timers before it sleeps, and one that had come due by then would not bound the sleep. */
    uv_timer_start(&loop->timer, on_timer,
                   (uint64_t)((left + PERIGEE_NS_PER_MS - 1) / PERIGEE_NS_PER_MS), 1);
  }
  atomic_store(&loop->sleeping, who);
  bool in_the_way =
      atomic_load(&loop->wanted) > 0 || (who == IO && atomic_load(&loop->drivers) > 0);
  uv_run(&loop->uv, in_the_way ? UV_RUN_NOWAIT : UV_RUN_ONCE);
  atomic_store(&loop->sleeping, NOBODY);
  if (bounded)
    uv_timer_stop(&loop->timer);
}

void perigee__loop_run_once(perigee__loop *loop, int64_t deadline_ns) {
  run(loop, deadline_ns, CALLER);
}

void perigee__loop_driver_enter(perigee__loop *loop) { atomic_fetch_add(&loop->drivers, 1); }

void perigee__loop_driver_leave(perigee__loop *loop) {
  atomic_fetch_sub(&loop->drivers, 1);
  atomic_fetch_add(&loop->drives, 1);
  /* After drives has changed: either we see it parked, or it sees the change and does not park. */
  if (PERIGEE_UNLIKELY(atomic_load(&loop->parked) != 0))
    perigee__futex_wake(&loop->drives, 1, false);
}

void perigee__loop_used(perigee__loop *loop) {
  /* No read-modify-write: that it mostly changes is enough. And no wake-up: while the I/O thread is parked there is a driver. */
  uint32_t drives = atomic_load_explicit(&loop->drives, memory_order_relaxed);
  atomic_store_explicit(&loop->drives, drives + 1, memory_order_relaxed);
}

void perigee__loop_set_hooks(perigee__loop *loop, const perigee__loop_hooks *hooks) {
  perigee__loop_lock(loop);
  loop->hooks = *hooks;
  perigee__loop_unlock(loop);
}

bool perigee__loop_on_io_thread(const perigee__loop *loop) {
  return pthread_equal(pthread_self(), loop->io_thread) != 0;
}

/* Callers who use the loop without driving it (loop_used) do not sleep, but do not do all that a driver does either. */
static void look_in(perigee__loop *loop) PERIGEE_NO_TSA {
  if (atomic_load(&loop->drivers) > 0 || perigee__loop_wanted(loop) ||
      !perigee__trylock(&loop->mutex))
    return;
  if (!atomic_load(&loop->stopping))
    perigee__loop_poll(loop);
  perigee__loop_unlock(loop);
}

/* While callers drive, or have done so since the last look, the I/O thread keeps out of their way. */
static void nap(perigee__loop *loop, uint32_t drives, int quiet) {
  if (quiet < PARK_AFTER) {
    perigee__futex_wait(&loop->drives, drives, perigee__deadline_in(NAP_NS), false);
    return;
  }
  atomic_store(&loop->parked, 1);
  perigee__futex_wait(&loop->drives, drives, perigee__deadline_in(PARK_NS), false);
  atomic_store(&loop->parked, 0);
}

static void *io_main(void *arg) PERIGEE_NO_TSA {
  perigee__loop *loop = arg;
  uint32_t seen = 0;
  int quiet = 0; /* naps since drives has changed */
  while (!atomic_load(&loop->stopping)) {
    uint32_t drives = atomic_load(&loop->drives);
    quiet = drives == seen ? quiet + 1 : 0;
    if (drives != seen || atomic_load(&loop->drivers) > 0) {
      seen = drives;
      nap(loop, drives, quiet);
      look_in(loop);
    } else if (perigee__loop_wanted(loop)) {
      perigee__loop_give_way(loop);
    } else {
      perigee__lock(&loop->mutex);
      if (!atomic_load(&loop->stopping))
        run(loop, PERIGEE_NEVER, IO);
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
  atomic_fetch_add(&loop->drives, 1);
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
