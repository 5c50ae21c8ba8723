/*
 * The deadline service: one thread per process, started with the first work that has a deadline of its own, that ends
 * works which nobody waits for when their time has come. It never enters an interpreter and never waits for anything
 * but time.
 *
 * The list is unsorted: it holds asynchronous messages and the works in flight of layers without an engine of their own, few at a
 * time. The thread is woken only for a deadline that is earlier than the one it sleeps for.
 * Lock: `service.mutex` (rank LEAF), never held while a work is ended.
 */
#include <pthread.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/futex.h"
#include "group/work.h"

static struct {
  perigee_mutex mutex;
  perigee__node works; /* perigee_work.timer, one reference each */
  bool started;
  int64_t
      wakes_at; /* deadline the thread sleeps for; 0 while it is awake and will look at the list again */
  _Atomic uint32_t
      changed; /* futex word of the thread; bumped under mutex when an earlier deadline has come */
} service = {.mutex = PERIGEE_MUTEX_INIT(PERIGEE_LOCK_LEAF, "deadline"),
             .works = {&service.works, &service.works}};

/* Take one late work out of the list, or tell the earliest deadline and the word to sleep on. */
static perigee_work *take_late(int64_t *earliest_p, uint32_t *changed_p) {
  int64_t now = perigee__now_ns(), earliest = PERIGEE_NEVER;
  perigee_work *late = NULL;
  perigee__lock(&service.mutex);
  PERIGEE_LIST_EACH(it, &service.works) {
    perigee_work *work = PERIGEE_CONTAINER_OF(it, perigee_work, timer);
    if (work->deadline_ns <= now) {
      late = work;
      break;
    }
    if (work->deadline_ns < earliest)
      earliest = work->deadline_ns;
  }
  if (late != NULL)
    perigee__list_remove(&late->timer);
  service.wakes_at = late != NULL ? 0 : earliest;
  *changed_p = atomic_load(&service.changed);
  perigee__unlock(&service.mutex);
  *earliest_p = earliest;
  return late;
}

static void *service_main(void *arg) {
  (void)arg;
  for (;;) {
    int64_t earliest;
    uint32_t seen;
    perigee_work *late = take_late(&earliest, &seen);
    if (late == NULL) {
      perigee__futex_wait(&service.changed, seen, earliest, false);
      continue;
    }
    late->on_deadline(late);
    perigee_work_unref(late);
  }
  return NULL;
}

int perigee__deadline_watch(perigee_work *work, int64_t deadline_ns,
                            void (*on_deadline)(perigee_work *work)) {
  perigee__lock(&service.mutex);
  int rc = 0;
  bool wake = false;
  if (!service.started) {
    pthread_t thread;
    rc = perigee__thread_start(&thread, "pg-deadline", 0, service_main, NULL);
    if (rc == 0) {
      pthread_detach(thread);
      service.started = true;
    }
  }
  if (rc == 0) {
    work->deadline_ns = deadline_ns;
    work->on_deadline = on_deadline;
    perigee__list_append(&service.works, &work->timer);
    perigee_work_ref(work);
    atomic_store(&work->watched, true);
    wake = deadline_ns < service.wakes_at;
    if (wake)
      atomic_fetch_add(&service.changed, 1);
  }
  perigee__unlock(&service.mutex);
  if (rc < 0)
    return perigee__fail_errno(-rc, "cannot start the deadline thread");
  if (wake)
    perigee__futex_wake(&service.changed, 1, false);
  /* Ended in between: its finish may not have seen `watched` yet; one of the two sees the other's store. */
  if (perigee__work_ended(work))
    perigee__deadline_forget(work);
  return 0;
}

void perigee__deadline_hurry(perigee_work *work, int64_t deadline_ns) {
  perigee__lock(&service.mutex);
  bool wake = false;
  if (!perigee__list_empty(&work->timer) && deadline_ns < work->deadline_ns) {
    work->deadline_ns = deadline_ns;
    wake = deadline_ns < service.wakes_at;
    if (wake)
      atomic_fetch_add(&service.changed, 1);
  }
  perigee__unlock(&service.mutex);
  if (wake)
    perigee__futex_wake(&service.changed, 1, false);
}

void perigee__deadline_forget(perigee_work *work) {
  if (!atomic_load(&work->watched))
    return;
  perigee__lock(&service.mutex);
  bool there = !perigee__list_empty(&work->timer);
  perigee__list_remove(&work->timer);
  perigee__unlock(&service.mutex);
  if (there)
    perigee_work_unref(work);
}
