/* Waiting for works: by driving them, or what they depend on, and asleep otherwise. */
#include "base/clock.h"
#include "base/error.h"
#include "base/futex.h"
#include "group/work.h"

static bool interrupted(const uint32_t *interrupt) {
  return interrupt != NULL && __atomic_load_n(interrupt, __ATOMIC_SEQ_CST) != 0;
}

void perigee__work_sleep(perigee_work *work, int64_t deadline_ns, const uint32_t *interrupt) {
  atomic_fetch_add(&work->waiters, 1);
  uint32_t seen = atomic_load(&work->bell);
  perigee__lock(&work->mutex);
  bool drives = work->depends_on != NULL && !perigee__work_ended(work->depends_on);
  perigee__unlock(&work->mutex);
  if (atomic_load(&work->state) < PERIGEE__WORK_FINAL && !drives && !interrupted(interrupt))
    perigee__futex_wait(&work->bell, seen, deadline_ns, false);
  atomic_fetch_sub(&work->waiters, 1);
}

static perigee_work *dependency_of(perigee_work *work) {
  perigee__lock(&work->mutex);
  perigee_work *dep = work->depends_on != NULL ? perigee_work_ref(work->depends_on) : NULL;
  perigee__unlock(&work->mutex);
  return dep;
}

int64_t perigee__work_slack(perigee_work *work) {
  perigee_work *at = perigee_work_ref(work);
  while (at->ops == NULL) {
    perigee_work *dep = dependency_of(at);
    if (dep == NULL)
      break;
    perigee_work_unref(at);
    at = dep;
  }
  bool engine = at->ops != NULL;
  perigee_work_unref(at);
  return (engine ? 100 : 20) * PERIGEE_NS_PER_MS;
}

bool perigee__work_reaches(perigee_work *from, const perigee_work *to) {
  perigee_work *at = perigee_work_ref(from);
  while (at != NULL && at != to) {
    perigee_work *dep = dependency_of(at);
    perigee_work_unref(at);
    at = dep;
  }
  perigee_work_unref(at);
  return at != NULL;
}

bool perigee__work_is_stuck(perigee_work *work) {
  bool stuck = true;
  perigee_work *at = perigee_work_ref(work);
  while (at != NULL && stuck) {
    stuck = !perigee__work_ended(at) && at->ops == NULL && at->deadline_ns == PERIGEE_NEVER &&
            !atomic_load(&at->watched);
    perigee_work *dep = dependency_of(at);
    perigee_work_unref(at);
    at = dep;
  }
  perigee_work_unref(at);
  return stuck;
}

static void drive(perigee_work *work, int64_t deadline_ns, const uint32_t *interrupt) {
  if (work->ops != NULL && work->ops->drive != NULL) {
    work->ops->drive(work, deadline_ns, interrupt);
    return;
  }
  perigee_work *dep = dependency_of(work);
  if (dep != NULL && !perigee__work_ended(dep))
    drive(dep, deadline_ns, interrupt);
  else
    perigee__work_sleep(work, deadline_ns, interrupt);
  perigee_work_unref(dep);
}

static int outcome(const perigee_work *work) {
  uint32_t status = atomic_load_explicit(&work->state, memory_order_acquire) - PERIGEE__WORK_FINAL;
  if (status == PERIGEE_WORK_DONE)
    return 0;
  if (work->error == NULL) /* there was no memory for it */
    return perigee__fail(PERIGEE_ENOMEM,
                         "the operation failed, and there was no memory to say why");
  return perigee__fail_with(work->error);
}

int perigee_work_wait_interruptible(perigee_work *work, int64_t timeout_ns,
                                    const uint32_t *interrupt) {
  if (perigee__work_ended(work))
    return outcome(work);
  if (perigee__work_in_callback() && timeout_ns != 0)
    return perigee__fail(PERIGEE_EDEADLK,
                         "a blocking wait in a completion callback would deadlock");
  if (work->ops != NULL && work->ops->may_wait != NULL)
    PERIGEE_TRY(work->ops->may_wait(work));
  int64_t deadline_ns = timeout_ns < 0 ? PERIGEE_NEVER : perigee__deadline_in(timeout_ns);
  bool once = timeout_ns == 0;
  while (!perigee__work_ended(work)) {
    if (interrupted(interrupt))
      return 1;
    if (!once && perigee__passed(deadline_ns))
      return perigee__fail(PERIGEE_EAGAIN, "the wait's %.3f s ran out, the work is still pending",
                           (double)timeout_ns / 1e9);
    if (once)
      return perigee__fail(PERIGEE_EAGAIN, "the work is still pending");
    drive(work, deadline_ns, interrupt);
  }
  return outcome(work);
}

int perigee_work_wait(perigee_work *work, int64_t timeout_ns) {
  return perigee_work_wait_interruptible(work, timeout_ns, NULL);
}

void perigee_work_interrupt(perigee_work *work) {
  /* The caller's store to the interrupt word comes before the looks for waiters below, whatever order it had. */
  atomic_thread_fence(memory_order_seq_cst);
  perigee_work *dep = dependency_of(work);
  if (dep != NULL) {
    perigee_work_interrupt(dep);
    perigee_work_unref(dep);
  }
  if (work->ops != NULL && work->ops->interrupt != NULL)
    work->ops->interrupt(work);
  perigee__work_ring(work);
}
