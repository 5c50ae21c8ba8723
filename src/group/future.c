/* Works that are ended by whoever holds them. */
#include <stdlib.h>

#include "base/clock.h"
#include "base/error.h"
#include "group/work.h"

void perigee__work_late(perigee_work *work) {
  perigee_error error;
  perigee__error_set(&error, PERIGEE_ETIMEDOUT, "timed out after %.1f s: nobody completed it",
                     (double)(work->deadline_ns - work->slack_ns - work->started_ns) / 1e9);
  error.op = work->op;
  error.seq = work->seq;
  perigee__work_finish(work, &error, -1);
}

int perigee_future_create(perigee_work *depends_on, const perigee_request *req, int64_t deadline_ns,
                          perigee_work **work_p) {
  perigee_work *work = malloc(sizeof(*work));
  if (work == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory for a future");
  int rc = perigee__work_init(work, NULL, req, deadline_ns);
  if (rc < 0) {
    free(work);
    return rc;
  }
  if (depends_on != NULL)
    work->depends_on = perigee_work_ref(depends_on);
  if (deadline_ns != PERIGEE_NEVER) {
    rc = perigee__deadline_watch(work, deadline_ns, perigee__work_late);
    if (rc < 0) {
      perigee_work_unref(work);
      return rc;
    }
  }
  *work_p = work;
  return 0;
}

void perigee_future_depend(perigee_work *future, perigee_work *depends_on) {
  perigee__lock(&future->mutex);
  perigee_work *old = future->depends_on;
  bool ended = perigee__work_ended(future);
  future->depends_on = depends_on != NULL && !ended ? perigee_work_ref(depends_on) : NULL;
  perigee__unlock(&future->mutex);
  perigee_work_unref(old);
  perigee__work_ring(future); /* a waiter that sleeps must start to drive the new dependency */
}

bool perigee_future_set_result(perigee_work *future) {
  return perigee__work_finish(future, NULL, -1);
}

bool perigee_future_set_error(perigee_work *future, const perigee_error *error) {
  perigee_error unknown;
  if (error == NULL || error->code >= 0) {
    perigee__error_set(&unknown, PERIGEE_EINVAL, "failed without an error");
    error = &unknown;
  }
  return perigee__work_finish(future, error, -1);
}
