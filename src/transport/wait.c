/*
 * Who drives and who sleeps.
 *
 * A waiting thread that gets the loop's lock drives: it polls the rings, the sockets and the loop for a while (spin.c), then arms the
 * rings and sleeps in the loop. A thread that does not get the lock sleeps on `events`, which changes each time the lock has been
 * given up; then it looks again, and may find itself the next driver.
 *   events/waiters, seq_cst: a waiter counts itself, reads events, looks at what it waits for and tries the lock once more. Who gives up
 *   the lock, or changes what somebody waits for and kicks, looks at waiters afterwards, behind a full barrier, and changes events if there
 *   are any. So either the waiter sees the change, or gets the lock, or is woken.
 * Sleeps are also cut into slices of SLICE_NS: nothing depends on it.
 */
#include <limits.h>

#include "base/clock.h"
#include "base/futex.h"
#include "transport/mesh_impl.h"

#ifdef PERIGEE_HOSTILE
#define SLICE_NS (60 * PERIGEE_NS_PER_SEC) /* so that a lost wake-up shows */
#else
#define SLICE_NS (100 * PERIGEE_NS_PER_MS)
#endif

static _Thread_local int waiting_for_word;

bool perigee__rings_poll(perigee__mesh *mesh) {
  bool moved = false;
  for (int r = 0; r < mesh->nranks; r++) {
    perigee__peer *peer = &mesh->peers[r];
    if (peer->ring.base == NULL || peer->chan.stream != &peer->ring.stream ||
        !perigee__ring_ready(&peer->ring))
      continue;
    moved |= perigee__channel_pump(peer);
    if (peer->ring.stuck)
      perigee__peer_mark(peer);
  }
  moved |= perigee__pull_some(mesh);
  moved |= perigee__help_some(mesh);
  return perigee__settle(mesh, true) || moved;
}

static void arm(perigee__mesh *mesh, bool on) {
  if (mesh->armed == on && !on)
    return;
  mesh->armed = on;
  for (int r = 0; r < mesh->nranks; r++)
    if (mesh->peers[r].ring.base != NULL) {
      if (on)
        perigee__ring_arm(&mesh->peers[r].ring);
      else
        perigee__ring_disarm(&mesh->peers[r].ring);
    }
}

/* Whether something has ended that another thread may be waiting for. */
bool perigee__others_wait(perigee__mesh *mesh) {
  if (!mesh->ended)
    return false;
  atomic_fetch_add(&mesh->events,
                   0); /* a fence: `done` was stored before waiters is read; see stand_by */
  return atomic_load(&mesh->waiters) > 0;
}

bool perigee__mesh_prepare(void *arg, bool sleep) {
  perigee__mesh *mesh = arg;
  bool moved = perigee__rings_poll(mesh);
  if (!sleep || moved)
    return moved;
  arm(mesh, true);
  if (perigee__rings_poll(mesh)) /* what came between the poll and the arming */
    return true;
  if (perigee__settle(mesh, false)) /* the loop tells when there is room again */
    return true;
  /* Who stands by is not told of what has ended before the lock is given up. */
  return !perigee__list_empty(&mesh->completed) || perigee__others_wait(mesh);
}

/* ---- after the lock ---------------------------------------------------------------------------- */

void *perigee__mesh_collect(void *arg) {
  perigee__mesh *mesh = arg;
  if (!mesh->hold)
    perigee__settle(mesh, false);
  mesh->hold = false;
  mesh->ended = false;
  if (perigee__list_empty(&mesh->completed))
    return NULL;
  /* As a chain that ends in NULL; the head stays behind, empty. */
  perigee__node *first = mesh->completed.next;
  mesh->completed.prev->next = NULL;
  perigee__list_init(&mesh->completed);
  return first;
}

/* Behind a full barrier. */
static void wake_waiters(perigee__mesh *mesh) {
  if (PERIGEE_LIKELY(atomic_load(&mesh->waiters) == 0))
    return;
  atomic_fetch_add(&mesh->events, 1);
  perigee__futex_wake(&mesh->events, INT_MAX, false);
}

void perigee__mesh_deliver(void *arg, void *collected) {
  perigee__mesh *mesh = arg;
  if (collected != NULL) {
    for (perigee__node *it = collected; it != NULL;) {
      perigee__node *next = it->next;
      perigee__xfer *xfer = PERIGEE_CONTAINER_OF(it, perigee__xfer, node);
      atomic_store_explicit(&xfer->done, 1, memory_order_release);
      xfer->on_done(xfer); /* may free it */
      it = next;
    }
    /* A thread that waits for what a callback has changed may sleep in the loop by now. */
    if (atomic_load(&mesh->word_waiters) > (uint32_t)waiting_for_word)
      perigee__loop_kick(mesh->loop);
    atomic_thread_fence(memory_order_seq_cst); /* what the callbacks did, before waiters is read */
  }
  perigee__unlock_fence();
  wake_waiters(mesh);
}

/* ---- waiting ----------------------------------------------------------------------------------- */

static int64_t slice_of(int64_t deadline_ns) {
  int64_t slice = perigee__deadline_in(SLICE_NS);
  return deadline_ns < slice ? deadline_ns : slice;
}

bool perigee__wait_is_over(perigee__mesh *mesh, const perigee__wait *wait) {
  return wait->done(mesh, wait->arg) || (wait->fate != NULL && perigee__fate_failed(wait->fate));
}

/* With the lock: poll, and sleep when that brings nothing. */
static void drive(perigee__mesh *mesh, const perigee__wait *wait) {
  arm(mesh, false);
  if (!perigee__spin(mesh, wait))
    perigee__loop_run_once(mesh->loop, slice_of(wait->deadline_ns));
}

/* Without the lock, which another thread has: sleep until it has been given up. Returns true when we got it after all. */
static bool stand_by(perigee__mesh *mesh, const perigee__wait *wait) {
  bool got = false;
  atomic_fetch_add(&mesh->waiters, 1);
  atomic_thread_fence(memory_order_seq_cst);
  uint32_t seen = atomic_load(&mesh->events);
  if (!perigee__wait_is_over(mesh, wait) && !(got = perigee__loop_trylock(mesh->loop))) {
    perigee__loop_nudge(mesh->loop);
    perigee__futex_wait(&mesh->events, seen, slice_of(wait->deadline_ns), false);
  }
  atomic_fetch_sub(&mesh->waiters, 1);
  return got;
}

/* Drive until it is done, the fate failed, or the deadline. */
static int wait_for(perigee__mesh *mesh, const perigee__wait *wait) {
  if (wait->done(mesh, wait->arg))
    return 0;
  int rc = 0;
  perigee__loop_driver_enter(mesh->loop);
  while (!wait->done(mesh, wait->arg)) {
    if (wait->fate != NULL && perigee__fate_failed(wait->fate)) {
      rc = PERIGEE_EABORTED;
      break;
    }
    if (perigee__passed(wait->deadline_ns)) {
      rc = PERIGEE_ETIMEDOUT;
      break;
    }
    perigee__loop_give_way(mesh->loop);
    if (perigee__loop_trylock(mesh->loop) || stand_by(mesh, wait)) {
      if (!perigee__wait_is_over(mesh, wait))
        drive(mesh, wait);
      perigee__loop_unlock(mesh->loop);
    }
  }
  perigee__loop_driver_leave(mesh->loop);
  return rc;
}

int perigee__mesh_wait_locked(perigee__mesh *mesh, perigee__wait_fn done, void *arg,
                              int64_t deadline_ns) {
  int rc = 0;
  perigee__loop_driver_enter(mesh->loop);
  while (rc == 0 && !done(mesh, arg)) {
    if (perigee__passed(deadline_ns)) {
      rc = PERIGEE_ETIMEDOUT;
      break;
    }
    perigee__loop_run_once(mesh->loop, slice_of(deadline_ns));
    /* So that callbacks run and others get their turn. */
    perigee__loop_unlock(mesh->loop);
    perigee__loop_give_way(mesh->loop);
    perigee__loop_lock(mesh->loop);
  }
  perigee__loop_driver_leave(mesh->loop);
  return rc;
}

static bool ended(const perigee__xfer *xfer) {
  return atomic_load_explicit(&xfer->done, memory_order_acquire) != 0; /* released by xfer_end */
}

static bool all_ended(perigee__mesh *mesh, void *arg) {
  const perigee__wait *wait = arg;
  (void)mesh;
  for (int i = 0; i < wait->n; i++)
    if (!ended(wait->xfers[i]))
      return false;
  return true;
}

static bool any_ended(perigee__mesh *mesh, void *arg) {
  const perigee__wait *wait = arg;
  (void)mesh;
  for (int i = 0; i < wait->n; i++)
    if (ended(wait->xfers[i]))
      return true;
  return false;
}

int perigee__mesh_wait(perigee__mesh *mesh, perigee__xfer *const *xfers, int n, perigee__fate *fate,
                       int64_t deadline_ns) {
  perigee__wait wait = {all_ended, NULL, xfers, n, fate, deadline_ns};
  wait.arg = &wait;
  return wait_for(mesh, &wait);
}

int perigee__mesh_wait_any(perigee__mesh *mesh, perigee__xfer *const *xfers, int n,
                           perigee__fate *fate, int64_t deadline_ns) {
  perigee__wait wait = {any_ended, NULL, xfers, n, fate, deadline_ns};
  wait.arg = &wait;
  return wait_for(mesh, &wait);
}

typedef struct word_wait {
  _Atomic uint32_t *word;
  uint32_t value;
} word_wait;

static bool word_changed(perigee__mesh *mesh, void *arg) {
  const word_wait *w = arg;
  (void)mesh;
  return atomic_load(w->word) != w->value;
}

int perigee__mesh_wait_word(perigee__mesh *mesh, _Atomic uint32_t *word, uint32_t value,
                            int64_t deadline_ns) {
  word_wait w = {word, value};
  const perigee__wait wait = {word_changed, &w, NULL, 0, NULL, deadline_ns};
  atomic_fetch_add(&mesh->word_waiters, 1); /* seq_cst: pairs with the look in deliver */
  waiting_for_word++;
  int rc = wait_for(mesh, &wait);
  waiting_for_word--;
  atomic_fetch_sub(&mesh->word_waiters, 1);
  return rc;
}

void perigee__mesh_kick(perigee__mesh *mesh) {
  perigee__loop_kick(mesh->loop);
  atomic_thread_fence(
      memory_order_seq_cst); /* what the caller has changed, before waiters is read */
  wake_waiters(mesh);
}
