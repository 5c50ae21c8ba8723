/*
 * One descriptor for a loop of somebody else: luv, cqueues, poll in a C program.
 *
 * Invariant, under ready_lock: event_fd is readable exactly while there is something for perigee.step to do: items in the ready
 * queue that nobody is running, or threads that want the mutex which the loop's thread keeps in its sleep (a stock Lua does:
 * luv's uv.run is one call of it). Who changes one of these calls update; the descriptor is written and read there alone, and
 * only when the state changes.
 */
#include <errno.h>
#include <limits.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "host/interp.h"

#include "base/assert.h"

/* Whether the queue has items that step may run: those with an owner are not for it. */
static bool to_step_locked(const perigee_interp *interp) {
  return atomic_load_explicit(&interp->ready_count, memory_order_relaxed) > interp->ready_owned;
}

void perigee__pollfd_update_locked(perigee_interp *interp) {
  if (PERIGEE_LIKELY(interp->event_fd < 0))
    return;
  bool set = interp->wanting > 0 || (!interp->event_hushed && to_step_locked(interp));
  if (set == interp->event_set)
    return;
  uint64_t one = 1;
  ssize_t n =
      set ? write(interp->event_fd, &one, sizeof(one)) : read(interp->event_fd, &one, sizeof(one));
  /* Neither can block or fail: the counter is 0 or 1. */
  PERIGEE_ASSERT(n == (ssize_t)sizeof(one));
  (void)n;
  interp->event_set = set;
}

static void hush(perigee_interp *interp, bool hushed) {
  perigee__lock(&interp->ready_lock);
  interp->event_hushed = hushed;
  perigee__pollfd_update_locked(interp);
  perigee__unlock(&interp->ready_lock);
}

void perigee__pollfd_hush(perigee_interp *interp) { hush(interp, true); }
void perigee__pollfd_unhush(perigee_interp *interp) { hush(interp, false); }

void perigee__pollfd_want(perigee_interp *interp, bool more) {
  perigee__lock(&interp->ready_lock);
  interp->wanting += more ? 1 : -1U;
  perigee__pollfd_update_locked(interp);
  perigee__unlock(&interp->ready_lock);
}

void perigee__pollfd_let_in(perigee_interp *interp, lua_State *L) {
  if (PERIGEE_LIKELY(!atomic_load_explicit(&interp->loop_inside, memory_order_relaxed)))
    return;
  perigee__lock(&interp->ready_lock);
  bool wanted = interp->wanting > 0;
  perigee__unlock(&interp->ready_lock);
  if (!wanted)
    return;
  /* One turn: who does not get it in this one starves soon, and is handed the mutex then (imutex.h). */
  perigee__gap gap;
  perigee__gap_open(interp, L, &gap);
  sched_yield();
  perigee__gap_close(interp, &gap);
}

int perigee__pollfd_open(perigee_interp *interp, bool inside, int *fd_p) {
  int rc = 0;
  perigee__lock(&interp->ready_lock);
  if (interp->event_fd < 0) {
    interp->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    rc = interp->event_fd < 0 ? -errno : 0;
    perigee__pollfd_update_locked(interp);
  }
  if (rc == 0) {
    atomic_store_explicit(&interp->driven, true, memory_order_relaxed);
    atomic_store_explicit(&interp->loop_inside, inside, memory_order_relaxed);
    *fd_p = interp->event_fd;
  }
  perigee__unlock(&interp->ready_lock);
  return rc < 0 ? perigee__fail_errno(-rc, "cannot make the descriptor of pollfd") : 0;
}

int perigee_interp_pollfd(perigee_interp *interp, int *fd_p) {
  const perigee__lthread *t = perigee__lthread_find(interp);
  return perigee__pollfd_open(interp, t != NULL && t->depth > 0, fd_p);
}

void perigee_interp_pollfd_end(perigee_interp *interp) {
  perigee__lock(&interp->ready_lock);
  atomic_store_explicit(&interp->loop_inside, false, memory_order_relaxed);
  atomic_store_explicit(&interp->driven, false, memory_order_relaxed);
  perigee__unlock(&interp->ready_lock);
  perigee__ready_announce(interp);
}

int perigee_interp_step(perigee_interp *interp, int64_t timeout_ns) {
  perigee__lthread *t;
  PERIGEE_TRY(perigee__enter(interp, PERIGEE_NEVER, "perigee_interp_step", true, &t));
  lua_State *L = perigee__lthread_state(t);
  size_t ran;
  perigee__pollfd_let_in(interp, L); /* cannot raise: this thread is inside */
  int rc = perigee__host_step(interp, L, timeout_ns < 0 ? 0 : timeout_ns, &ran);
  perigee__leave(interp, t);
  return rc < 0 ? rc : (int)ran;
}

int64_t perigee_interp_timeout(perigee_interp *interp) {
  perigee__lock(&interp->ready_lock);
  bool now = !interp->event_hushed && to_step_locked(interp);
  perigee__unlock(&interp->ready_lock);
  return now ? 0 : PERIGEE_TIMEOUT_NONE;
}
