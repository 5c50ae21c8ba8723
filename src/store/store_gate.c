#include "store/store_gate.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <time.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/error.h"

void perigee__cond_init(pthread_cond_t *cond) {
  pthread_condattr_t attr;
  pthread_condattr_init(&attr);
  pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
  if (pthread_cond_init(cond, &attr) != 0)
    PERIGEE_BUG("pthread_cond_init");
  pthread_condattr_destroy(&attr);
}

int perigee__cond_wait(pthread_cond_t *cond, perigee_mutex *mutex, int64_t deadline_ns) {
  if (deadline_ns == PERIGEE_NEVER) {
    pthread_cond_wait(cond, &mutex->mutex);
    return 0;
  }
  struct timespec at = {.tv_sec = deadline_ns / PERIGEE_NS_PER_SEC,
                        .tv_nsec = deadline_ns % PERIGEE_NS_PER_SEC};
  int rc = pthread_cond_timedwait(cond, &mutex->mutex, &at);
  return rc == ETIMEDOUT ? PERIGEE_ETIMEDOUT : 0;
}

void perigee__gate_init(perigee__gate *gate, const char *name, int kick_fd) {
  perigee__mutex_init(&gate->mutex, PERIGEE_LOCK_STORE, name);
  perigee__cond_init(&gate->free);
  gate->kick_fd = kick_fd;
  gate->wanted = 0;
  gate->busy = false;
}

void perigee__gate_fini(perigee__gate *gate) {
  pthread_cond_destroy(&gate->free);
  perigee__mutex_fini(&gate->mutex);
}

int perigee__gate_enter(perigee__gate *gate, int64_t deadline_ns) {
  int rc = 0;
  perigee__lock(&gate->mutex);
  gate->wanted++;
  /* Every pass kicks: who is in may have changed, and the new one may have taken back the old kick. */
  while (gate->busy && rc == 0) {
    if (gate->kick_fd >= 0)
      eventfd_write(gate->kick_fd, 1);
    rc = perigee__cond_wait(&gate->free, &gate->mutex, deadline_ns);
  }
  gate->wanted--;
  if (!gate->busy) {
    gate->busy = true;
    rc = 0;
  } else
    rc = PERIGEE_ETIMEDOUT;
  perigee__unlock(&gate->mutex);
  return rc;
}

void perigee__gate_leave(perigee__gate *gate) {
  perigee__lock(&gate->mutex);
  gate->busy = false;
  pthread_cond_signal(&gate->free);
  perigee__unlock(&gate->mutex);
}

bool perigee__gate_wanted(perigee__gate *gate) {
  eventfd_t count;
  perigee__lock(&gate->mutex);
  /* Under the mutex: a kick taken back here belongs to a thread already counted in wanted. */
  if (gate->kick_fd >= 0)
    eventfd_read(gate->kick_fd, &count);
  bool wanted = gate->wanted > 0;
  perigee__unlock(&gate->mutex);
  return wanted;
}
