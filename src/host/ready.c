/*
 * What waits to be run in an interpreter: callbacks of works, tasks, and the threads that run them.
 *
 * Who runs the queue: a thread that waits in this interpreter (it comes out of its wait for it); a thread that starts to
 * wait; perigee.step(); and the dispatcher, a thread that exists only once something was queued while nobody waited. The
 * dispatcher rests while a foreign loop drives the interpreter (pollfd.c): that calls step.
 * Oldest first, one at a time per interpreter (`draining`), never inside the call that queued.
 */
#include <limits.h>
#include <time.h>

#include "host/interp.h"

#include "base/assert.h"
#include "base/futex.h"
#include "base/log.h"
#include "host/watch.h"

/* Deep enough for Lua's limit of C levels to end overrides that call themselves: 100 of them at 7 KiB, and more in checked builds. */
#define DISPATCHER_STACK ((size_t)4 << 20)

enum {
  STEP_MAX =
      1000 /* items per step: callbacks that queue callbacks must not keep a loop from its other work */
};

/* How long a thread that waits in C tries to get in and run callbacks. */
#define DRAIN_WAIT_NS (100 * PERIGEE_NS_PER_MS)

static void *dispatcher_main(void *arg) {
  perigee_interp *interp = arg;
  uint32_t seen = 0;
  perigee__watch_unblock();
  while (!atomic_load(&interp->stop)) {
    uint32_t now = atomic_load(&interp->dispatch);
    if (now == seen) {
      perigee__futex_wait(&interp->dispatch, seen, PERIGEE_NEVER, false);
      continue;
    }
    seen = now;
    if (atomic_load_explicit(&interp->driven, memory_order_relaxed))
      continue;
    perigee__lthread *t;
    if (perigee__enter(interp, PERIGEE_NEVER, "callbacks of works", true, &t) < 0)
      continue; /* closing: stop comes next */
    t->serves = true;
    perigee__ready_drain(interp, t, perigee__lthread_state(t));
    perigee__leave(interp, t);
  }
  perigee__interp_unref(interp);
  return NULL;
}

static void wake_dispatcher(perigee_interp *interp) {
  /* seq_cst: pairs with the dispatcher's look at `dispatch` before it sleeps on it */
  atomic_fetch_add(&interp->dispatch, 1);
  perigee__futex_wake(&interp->dispatch, 1, false);
}

/* ready_lock held. The waiter that is to run the queue, with a reference on its work, or NULL. */
static perigee_work *wake_one_locked(perigee_interp *interp, bool *handled_p) {
  perigee__lthread *t = perigee__lthread_find(interp);
  perigee__waiter *chosen = t != NULL ? t->waiter : NULL;
  *handled_p = true;
  if (t != NULL && t->drains_next)
    return NULL;
  if (chosen != NULL) {
    /* This thread runs what it waits for; it looks at its word before it sleeps. */
    atomic_store_explicit(&chosen->interrupt, 1, memory_order_release);
    return NULL;
  }
  PERIGEE_LIST_EACH(it, &interp->waiters) {
    perigee__waiter *w = PERIGEE_CONTAINER_OF(it, perigee__waiter, node);
    if (atomic_load_explicit(&w->interrupt, memory_order_relaxed) != 0)
      return NULL; /* somebody is on the way already */
    if (chosen == NULL)
      chosen = w;
  }
  if (chosen == NULL) {
    *handled_p = false;
    return NULL;
  }
  /* release: pairs with the wait's look at its interrupt word; the queue itself is under the lock */
  atomic_store_explicit(&chosen->interrupt, 1, memory_order_release);
  return perigee_work_ref(chosen->work);
}

/* ready_lock held; started: in case there is none yet. */
static void start_dispatcher_locked(perigee_interp *interp) {
  if (interp->dispatcher_started ||
      atomic_load_explicit(&interp->state, memory_order_relaxed) != PERIGEE_INTERP_OPEN)
    return;
  /* the thread's: it may outlive a close that does not get it to end in time */
  perigee__interp_ref(interp);
  int rc = perigee__thread_start(&interp->dispatcher, "pg-lua", DISPATCHER_STACK, dispatcher_main,
                                 interp);
  interp->dispatcher_started = rc == 0;
  if (rc < 0) {
    perigee__log(PERIGEE_LOG_ERROR, "cannot start the thread that runs callbacks: %s",
                 perigee_strerror(rc));
    perigee__interp_unref(interp); /* not the last: the caller holds one */
  }
}

/* Have the dispatcher run what this thread leaves. */
static void hand_over(perigee_interp *interp) {
  perigee__lock(&interp->ready_lock);
  start_dispatcher_locked(interp);
  perigee__unlock(&interp->ready_lock);
  wake_dispatcher(interp);
}

/* ready_lock held on entry, given up here: see that somebody runs the queue. What has an owner is for the dispatcher, also
 * when a loop drives the rest, unless its owner waits before. */
static void announce_and_unlock(perigee_interp *interp, bool owned)
    PERIGEE_RELEASES(interp->ready_lock) {
  bool handled = false;
  perigee_work *work = owned ? NULL : wake_one_locked(interp, &handled);
  if (!owned && atomic_load_explicit(&interp->driven, memory_order_relaxed))
    handled = true; /* event_fd tells the loop */
  if (!handled)
    start_dispatcher_locked(interp);
  perigee__unlock(&interp->ready_lock);
  if (work != NULL) {
    perigee_work_interrupt(work);
    perigee_work_unref(work);
  }
  if (!handled)
    wake_dispatcher(interp);
}

void perigee__ready_announce(perigee_interp *interp) {
  perigee__lock(&interp->ready_lock);
  if (perigee__list_empty(&interp->ready))
    perigee__unlock(&interp->ready_lock);
  else
    announce_and_unlock(interp, false);
}

void perigee__ready_push(perigee_interp *interp, perigee__ready *item) {
  perigee__lock(&interp->ready_lock);
  if (atomic_load_explicit(&interp->state, memory_order_relaxed) == PERIGEE_INTERP_CLOSED) {
    perigee__unlock(&interp->ready_lock);
    item->drop(item);
    return;
  }
  perigee__list_append(&interp->ready, &item->node);
  atomic_fetch_add_explicit(&interp->ready_count, 1, memory_order_relaxed);
  interp->ready_owned += item->owner != NULL;
  perigee__pollfd_update_locked(interp);
  announce_and_unlock(interp, item->owner != NULL);
}

void perigee__ready_push_own(perigee_interp *interp, perigee__lthread *t, perigee__ready *item) {
  bool before = t->drains_next;
  t->drains_next = true;
  perigee__ready_push(interp, item);
  t->drains_next = before;
}

static bool is_open(perigee_interp *interp) {
  return atomic_load_explicit(&interp->state, memory_order_relaxed) == PERIGEE_INTERP_OPEN;
}

static bool may_run(const perigee_interp *interp, const perigee__lthread *t,
                    const perigee__ready *item) {
  if (t == NULL)
    return true;
  if (item->owner == NULL) /* a loop that drives has them to itself, but for threads that wait */
    return !t->serves || !atomic_load_explicit(&interp->driven, memory_order_relaxed);
  const perigee__waiter *w = t->waiter;
  if (w != NULL && perigee__waiter_over(w))
    return false;
  return t->serves || (item->owner == t && w != NULL && (!w->limited || w->work == item->work));
}

/* The oldest item that this thread may run; t NULL: that there is. */
static perigee__ready *pop(perigee_interp *interp, const perigee__lthread *t) {
  perigee__ready *found = NULL;
  perigee__lock(&interp->ready_lock);
  PERIGEE_LIST_EACH(it, &interp->ready) {
    perigee__ready *item = PERIGEE_CONTAINER_OF(it, perigee__ready, node);
    if (may_run(interp, t, item)) {
      found = item;
      break;
    }
  }
  if (found != NULL) {
    perigee__list_remove(&found->node);
    interp->ready_owned -= found->owner != NULL;
    atomic_fetch_sub_explicit(&interp->ready_count, 1, memory_order_relaxed);
    perigee__pollfd_update_locked(interp);
  }
  perigee__unlock(&interp->ready_lock);
  return found;
}

/* With the interpreter's time limit, and without the deadline of an override that waits on this thread. */
static void run_item(perigee__lthread *t, lua_State *L, perigee__ready *item) {
  perigee__stint stint;
  perigee__stint_begin(t, PERIGEE_NEVER, &stint);
  item->run(t, L, item);
  perigee__stint_end(t, L, &stint);
}

size_t perigee__ready_run(perigee_interp *interp, perigee__lthread *t, lua_State *L, size_t limit) {
  if (interp->draining || atomic_load_explicit(&interp->ready_count, memory_order_relaxed) == 0)
    return 0;
  interp->draining = true;
  t->callbacks++;
  uint64_t seq = t->seq;
  void *defer_for = t->defer_for;
  struct perigee__task *task = t->task;
  t->seq = 0;
  t->defer_for = NULL;
  t->task = NULL;
  bool mine = true;
  size_t ran = 0;
  /* A state that closes has finalized the objects of callbacks: what is left is dropped. */
  for (perigee__ready *item;
       mine && ran < limit && is_open(interp) && (item = pop(interp, t)) != NULL; ran++) {
    if (!item->may_wait) {
      run_item(t, L, item);
      continue;
    }
    interp->draining = false;
    t->callbacks--;
    run_item(t, L, item);
    t->callbacks++;
    /* Another thread may have taken over, and is in the middle of a callback. */
    mine = !interp->draining;
    interp->draining = true;
  }
  t->seq = seq;
  t->defer_for = defer_for;
  t->task = task;
  t->callbacks--;
  if (mine) {
    interp->draining = false;
    /* Left for another thread, which may have come and gone meanwhile. */
    if (!t->serves && atomic_load_explicit(&interp->ready_count, memory_order_relaxed) > 0)
      hand_over(interp);
  }
  if (PERIGEE_UNLIKELY(interp->event_hushed))
    perigee__pollfd_unhush(interp);
  if (PERIGEE_UNLIKELY(ran == limit)) /* others may have come out of their waits for what is left */
    perigee__ready_announce(interp);
  return ran;
}

bool perigee__ready_drain(perigee_interp *interp, perigee__lthread *t, lua_State *L) {
  return perigee__ready_run(interp, t, L, SIZE_MAX) > 0;
}

void perigee__ready_drop_all(perigee_interp *interp) {
  for (perigee__ready *item; (item = pop(interp, NULL)) != NULL;)
    item->drop(item);
}

void perigee__dispatcher_stop(perigee_interp *interp, int64_t wait_ns) {
  perigee__lock(&interp->ready_lock);
  bool started = interp->dispatcher_started;
  interp->dispatcher_started = false;
  perigee__unlock(&interp->ready_lock);
  atomic_store(&interp->stop, 1);
  atomic_fetch_add(&interp->dispatch, 1);
  perigee__futex_wake(&interp->dispatch, 1, false);
  if (!started)
    return;
  struct timespec until; /* wall time, as pthread_timedjoin_np wants it */
  clock_gettime(CLOCK_REALTIME, &until);
  until.tv_sec += wait_ns / PERIGEE_NS_PER_SEC;
  until.tv_nsec += wait_ns % PERIGEE_NS_PER_SEC;
  if (until.tv_nsec >= PERIGEE_NS_PER_SEC) {
    until.tv_nsec -= PERIGEE_NS_PER_SEC;
    until.tv_sec++;
  }
  if (pthread_timedjoin_np(interp->dispatcher, NULL, &until) != 0)
    pthread_detach(interp->dispatcher);
}

/* ---- waiting ------------------------------------------------------------------------------------- */

enum {
  WAKE_BATCH = 16
};

void perigee__waiters_wake(perigee_interp *interp) {
  for (;;) {
    perigee_work *works[WAKE_BATCH];
    int n = 0;
    perigee__lock(&interp->ready_lock);
    PERIGEE_LIST_EACH(it, &interp->waiters) {
      perigee__waiter *w = PERIGEE_CONTAINER_OF(it, perigee__waiter, node);
      if (atomic_load_explicit(&w->interrupt, memory_order_relaxed) != 0 || n == WAKE_BATCH)
        continue;
      atomic_store_explicit(&w->interrupt, 1, memory_order_release); /* as in wake_one_locked */
      works[n++] = perigee_work_ref(w->work);
    }
    perigee__unlock(&interp->ready_lock);
    for (int i = 0; i < n; i++) {
      perigee_work_interrupt(works[i]);
      perigee_work_unref(works[i]);
    }
    if (n < WAKE_BATCH)
      return;
  }
}

static void waiter_add(perigee_interp *interp, perigee__lthread *t, perigee__waiter *w,
                       perigee_work *work) {
  perigee__list_init(&w->node);
  w->work = work;
  atomic_init(&w->interrupt, 0);
  w->outer = t->waiter;
  t->waiter = w;
  perigee__lock(&interp->ready_lock);
  /* Only the innermost wait of a thread can be woken; the outer ones look at the queue when it comes back to them. */
  if (w->outer != NULL)
    perigee__list_remove(&w->outer->node);
  perigee__list_append(&interp->waiters, &w->node);
  perigee__unlock(&interp->ready_lock);
}

static void waiter_remove(perigee_interp *interp, perigee__lthread *t, perigee__waiter *w) {
  perigee__lock(&interp->ready_lock);
  perigee__list_remove(&w->node);
  if (w->outer != NULL) {
    perigee__list_append(&interp->waiters, &w->outer->node);
    atomic_store_explicit(&w->outer->interrupt, 1, memory_order_relaxed);
  }
  perigee__unlock(&interp->ready_lock);
  t->waiter = w->outer;
}

/* One stretch of waiting, outside the interpreter. 1: there is something to run. */
static int wait_outside(perigee__waiter *w, int64_t deadline_ns, int64_t timeout_ns) {
  int64_t left = timeout_ns == PERIGEE_TIMEOUT_NONE ? timeout_ns : perigee__time_left(deadline_ns);
  /* The wait reads the word with an acquire load. */
  return perigee_work_wait_interruptible(w->work, left, (const uint32_t *)(void *)&w->interrupt);
}

/* Whether a thread that waits for something else than the end of `work` is to give up. */
static int may_go_on(perigee_interp *interp, const perigee__lthread *t, const perigee_work *work) {
  if (!is_open(interp))
    return perigee__fail(PERIGEE_ECLOSED, "the Lua interpreter is being closed");
  return perigee_work_is_completed(work) ? 0 : perigee__lthread_stopped(t);
}

static int wait_inside(perigee_interp *interp, perigee__lthread *t, lua_State *L,
                       perigee__waiter *w, int64_t deadline_ns, int64_t timeout_ns) {
  for (;;) {
    perigee__ready_drain(interp, t, L);
    PERIGEE_TRY(may_go_on(interp, t, w->work));
    perigee__gap gap;
    perigee__gap_open(interp, L, &gap); /* cannot raise: this thread is inside */
    int rc = wait_outside(w, deadline_ns, timeout_ns);
    perigee__gap_close(interp, &gap);
    atomic_store_explicit(&w->interrupt, 0, memory_order_relaxed);
    if (rc != 1) {
      /* What was queued for this thread must not be left lying. */
      if (atomic_load_explicit(&interp->ready_count, memory_order_relaxed) == 0)
        return rc;
      perigee_error error = *perigee_last_error();
      perigee__ready_drain(interp, t, L);
      return rc < 0 ? perigee__fail_with(&error) : rc;
    }
  }
}

/* The wait has a deadline, and the interpreter may be held beyond it: then the dispatcher runs the queue. */
static void drain_from_c(perigee_interp *interp) {
  perigee__lthread *t;
  if (atomic_load_explicit(&interp->ready_count, memory_order_relaxed) == 0)
    return;
  int rc = perigee__enter(interp, DRAIN_WAIT_NS, "callbacks of works", true, &t);
  if (rc == 0) {
    perigee__ready_drain(interp, t, perigee__lthread_state(t));
    perigee__leave(interp, t);
  } else if (rc == PERIGEE_ETIMEDOUT) {
    hand_over(interp);
  }
}

static int wait_from_c(perigee_interp *interp, const perigee__lthread *t, perigee__waiter *w,
                       int64_t deadline_ns, int64_t timeout_ns) {
  drain_from_c(interp);
  for (;;) {
    PERIGEE_TRY(may_go_on(interp, t, w->work));
    int rc = wait_outside(w, deadline_ns, timeout_ns);
    atomic_store_explicit(&w->interrupt, 0, memory_order_relaxed);
    perigee_error error;
    if (rc < 0)
      error = *perigee_last_error();
    drain_from_c(interp);
    if (rc != 1)
      return rc < 0 ? perigee__fail_with(&error) : rc;
  }
}

int perigee__host_wait(perigee_interp *interp, lua_State *L, perigee_work *work,
                       int64_t timeout_ns) {
  perigee__lthread *t =
      L != NULL ? perigee__lthread_here(interp, L) : perigee__lthread_find(interp);
  if (t != NULL && t->callbacks > 0 && !perigee_work_is_completed(work) && timeout_ns != 0)
    return perigee__fail(PERIGEE_EDEADLK,
                         "a callback must not wait for a work: use map or on_done on it");
  /* Callbacks of works that have ended run before a wait returns, also when it has nothing to wait for. */
  if (perigee_work_is_completed(work) && L != NULL) {
    if (t->callbacks == 0)
      perigee__ready_drain(interp, t, L);
    return perigee_work_wait(work, 0);
  }
  int64_t deadline_ns =
      timeout_ns == PERIGEE_TIMEOUT_NONE ? PERIGEE_NEVER : perigee__deadline_in(timeout_ns);
  if (t == NULL)
    return perigee_work_wait(work, timeout_ns);
  perigee__waiter w = {.limited = L != NULL && timeout_ns != PERIGEE_TIMEOUT_NONE,
                       .deadline_ns = deadline_ns};
  /* A callback may close the state (os.exit), and that ends the object that held the work. */
  perigee_work_ref(work);
  waiter_add(interp, t, &w, work);
  int rc = L != NULL ? wait_inside(interp, t, L, &w, deadline_ns, timeout_ns)
                     : wait_from_c(interp, t, &w, deadline_ns, timeout_ns);
  waiter_remove(interp, t, &w);
  perigee_work_unref(work);
  return rc;
}

int perigee__host_step(perigee_interp *interp, lua_State *L, int64_t timeout_ns, size_t *ran_p) {
  perigee__lthread *t = perigee__lthread_here(interp, L);
  size_t ran = perigee__ready_run(interp, t, L, STEP_MAX);
  *ran_p = ran;
  if (ran == 0 && interp->draining)
    perigee__pollfd_hush(interp); /* nothing for a loop to do until the thread at it comes back */
  if (ran > 0 || timeout_ns == 0)
    return 0;
  if (t->callbacks > 0)
    return perigee__fail(PERIGEE_EDEADLK, "a callback must not wait for other callbacks");
  perigee_work *never;
  PERIGEE_TRY(perigee_future_create(NULL, NULL, PERIGEE_NEVER, &never));
  int64_t deadline_ns = perigee__deadline_in(timeout_ns);
  perigee__waiter w;
  waiter_add(interp, t, &w, never);
  int rc = 1;
  while (rc == 1 && (ran = perigee__ready_run(interp, t, L, STEP_MAX)) == 0) {
    rc = may_go_on(interp, t, never);
    if (rc < 0)
      break;
    perigee__gap gap;
    perigee__gap_open(interp, L, &gap); /* cannot raise: this thread is inside */
    rc = wait_outside(&w, deadline_ns, timeout_ns);
    perigee__gap_close(interp, &gap);
    atomic_store_explicit(&w.interrupt, 0, memory_order_relaxed);
  }
  waiter_remove(interp, t, &w);
  perigee_work_unref(never);
  /* What came as the time ran out, and found this thread waiting for it. */
  if (rc == PERIGEE_EAGAIN)
    ran = perigee__ready_run(interp, t, L, STEP_MAX);
  *ran_p = ran;
  return rc == 1 || rc == PERIGEE_EAGAIN ? 0 : rc;
}
