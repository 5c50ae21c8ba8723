/*
 * Who drives and who sleeps.
 *
 * A waiting thread that gets the loop's lock drives: it polls the rings, the sockets and the loop for a while, then arms the rings and
 * sleeps in the loop. How long (mesh->spin_ns) is learnt: the whole SPIN_NS when that has brought something lately, half as long
 * after each time in vain, because then the peer is busy, or shares our core and waits for us to leave it; now and then the whole time
 * is tried again. When ranks outnumber cores it yields a few times instead. A thread that does not get the lock sleeps on
 * `events`, which changes each time the lock has been given up; then it looks again, and may find itself the next driver.
 *   events/waiters, seq_cst: a waiter counts itself, reads events, looks at what it waits for and tries the lock once more. Who gives up
 *   the lock, or changes what somebody waits for and kicks, changes events afterwards and then looks at waiters. So either the waiter
 *   sees the change, or gets the lock, or is woken.
 * Sleeps are also cut into slices of SLICE_NS: nothing depends on it.
 */
#include <limits.h>
#include <sched.h>

#include "base/clock.h"
#include "base/futex.h"
#include "transport/mesh_impl.h"

enum {
  YIELDS = 20,
  BARE_POLLS = 48, /* before the first look at the clock */
  LOOP_EVERY = 64,
  LINKS_POLLED = 3,
  PROBE_EVERY = 32, /* waits */
  LENT_BYTES_PER_NS =
      4 /* who has lent memory polls while it could be read: being woken takes as long as a MiB */
};
/* Several times a message's way when the peer has a core. */
#define SPIN_NS (50 * PERIGEE_NS_PER_US)
#define SPIN_MIN_NS (PERIGEE_NS_PER_US)
/* After this the peer may be waiting for our core: offer it. */
#define SPIN_ALONE_NS (5 * PERIGEE_NS_PER_US)
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
static bool others_wait(perigee__mesh *mesh) {
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
  return !perigee__list_empty(&mesh->completed) || others_wait(mesh);
}

/* ---- after the lock ---------------------------------------------------------------------------- */

void *perigee__mesh_collect(void *arg) {
  perigee__mesh *mesh = arg;
  perigee__settle(mesh, false);
  mesh->ended = false;
  if (perigee__list_empty(&mesh->completed))
    return NULL;
  /* As a chain that ends in NULL; the head stays behind, empty. */
  perigee__node *first = mesh->completed.next;
  mesh->completed.prev->next = NULL;
  perigee__list_init(&mesh->completed);
  return first;
}

static void wake_waiters(perigee__mesh *mesh) {
  atomic_fetch_add(&mesh->events, 1);
  if (atomic_load(&mesh->waiters) > 0)
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
  }
  wake_waiters(mesh);
}

/* ---- waiting ----------------------------------------------------------------------------------- */

static int64_t slice_of(int64_t deadline_ns) {
  int64_t slice = perigee__deadline_in(SLICE_NS);
  return deadline_ns < slice ? deadline_ns : slice;
}

static bool is_over(perigee__mesh *mesh, perigee__wait_fn done, void *arg,
                    const perigee__fate *fate) {
  return done(mesh, arg) || (fate != NULL && perigee__fate_failed(fate));
}

/* One look at everything. Few sockets are read without asking the kernel which of them is ready. Returns whether something moved, as far
 * as that is known. */
static bool poll_pass(perigee__mesh *mesh, int pass) {
  bool moved = false, few = mesh->nranks <= LINKS_POLLED + 1;
  if (pass % LOOP_EVERY == 0 || (mesh->n_links > 0 && !few)) {
    perigee__loop_poll(mesh->loop);
    return false;
  }
  for (int r = 0; mesh->n_links > 0 && r < mesh->nranks; r++)
    if (perigee__link_is_up(&mesh->peers[r]))
      moved |= perigee__channel_pump(&mesh->peers[r]);
  return perigee__rings_poll(mesh) || moved;
}

/* Poll until something has happened (true) or it is time to sleep. */
static bool spin(perigee__mesh *mesh, perigee__wait_fn done, void *arg, const perigee__fate *fate) {
  bool whole = ++mesh->spins % PROBE_EVERY == 0;
  int64_t until = 0, yield_at = 0;
  for (int i = 1;; i++) {
    bool moved = poll_pass(mesh, i);
    if (is_over(mesh, done, arg, fate) || !perigee__list_empty(&mesh->completed) ||
        others_wait(mesh) || perigee__loop_wanted(mesh->loop)) {
      mesh->spin_ns = SPIN_NS;
      return true;
    }
    if (i <= BARE_POLLS && mesh->spins_at_all)
      continue;
    if (!mesh->spins_at_all) {
      if (i == YIELDS)
        return false;
      sched_yield();
      continue;
    }
    int64_t now = perigee__now_ns();
    if (until == 0) {
      until = now + (whole ? SPIN_NS : mesh->spin_ns) + (int64_t)(mesh->lent / LENT_BYTES_PER_NS);
      yield_at = now + SPIN_ALONE_NS;
    } else if (moved) { /* a large message comes in many pieces */
      until = now + SPIN_NS;
      yield_at = now + SPIN_ALONE_NS;
    }
    if (now >= until)
      break;
    if (now >= yield_at)
      sched_yield();
    else
      perigee__cpu_relax();
  }
  if (mesh->spin_ns > SPIN_MIN_NS)
    mesh->spin_ns /= 2;
  return false;
}

/* With the lock: poll, and sleep when that brings nothing. */
static void drive(perigee__mesh *mesh, perigee__wait_fn done, void *arg, const perigee__fate *fate,
                  int64_t deadline_ns) {
  arm(mesh, false);
  if (!spin(mesh, done, arg, fate))
    perigee__loop_run_once(mesh->loop, slice_of(deadline_ns));
}

/* Without the lock, which another thread has: sleep until it has been given up. Returns true when we got it after all. */
static bool stand_by(perigee__mesh *mesh, perigee__wait_fn done, void *arg,
                     const perigee__fate *fate, int64_t deadline_ns) {
  bool got = false;
  atomic_fetch_add(&mesh->waiters, 1);
  uint32_t seen = atomic_load(&mesh->events);
  if (!is_over(mesh, done, arg, fate) && !(got = perigee__loop_trylock(mesh->loop))) {
    perigee__loop_nudge(mesh->loop);
    perigee__futex_wait(&mesh->events, seen, slice_of(deadline_ns), false);
  }
  atomic_fetch_sub(&mesh->waiters, 1);
  return got;
}

int perigee__mesh_wait_for(perigee__mesh *mesh, perigee__wait_fn done, void *arg,
                           perigee__fate *fate, int64_t deadline_ns) {
  if (done(mesh, arg))
    return 0;
  int rc = 0;
  perigee__loop_driver_enter(mesh->loop);
  while (!done(mesh, arg)) {
    if (fate != NULL && perigee__fate_failed(fate)) {
      rc = PERIGEE_EABORTED;
      break;
    }
    if (perigee__passed(deadline_ns)) {
      rc = PERIGEE_ETIMEDOUT;
      break;
    }
    perigee__loop_give_way(mesh->loop);
    if (perigee__loop_trylock(mesh->loop) || stand_by(mesh, done, arg, fate, deadline_ns)) {
      if (!is_over(mesh, done, arg, fate))
        drive(mesh, done, arg, fate, deadline_ns);
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

typedef struct xfer_list {
  perigee__xfer *const *xfers;
  int n;
} xfer_list;

static bool ended(const perigee__xfer *xfer) {
  return atomic_load_explicit(&xfer->done, memory_order_acquire) != 0; /* released by xfer_end */
}

static bool all_ended(perigee__mesh *mesh, void *arg) {
  const xfer_list *list = arg;
  (void)mesh;
  for (int i = 0; i < list->n; i++)
    if (!ended(list->xfers[i]))
      return false;
  return true;
}

static bool any_ended(perigee__mesh *mesh, void *arg) {
  const xfer_list *list = arg;
  (void)mesh;
  for (int i = 0; i < list->n; i++)
    if (ended(list->xfers[i]))
      return true;
  return false;
}

int perigee__mesh_wait(perigee__mesh *mesh, perigee__xfer *const *xfers, int n, perigee__fate *fate,
                       int64_t deadline_ns) {
  xfer_list list = {xfers, n};
  return perigee__mesh_wait_for(mesh, all_ended, &list, fate, deadline_ns);
}

int perigee__mesh_wait_any(perigee__mesh *mesh, perigee__xfer *const *xfers, int n,
                           perigee__fate *fate, int64_t deadline_ns) {
  xfer_list list = {xfers, n};
  return perigee__mesh_wait_for(mesh, any_ended, &list, fate, deadline_ns);
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
  atomic_fetch_add(&mesh->word_waiters, 1); /* seq_cst: pairs with the look in deliver */
  waiting_for_word++;
  int rc = perigee__mesh_wait_for(mesh, word_changed, &w, NULL, deadline_ns);
  waiting_for_word--;
  atomic_fetch_sub(&mesh->word_waiters, 1);
  return rc;
}

void perigee__mesh_kick(perigee__mesh *mesh) {
  perigee__loop_kick(mesh->loop);
  wake_waiters(mesh);
}
