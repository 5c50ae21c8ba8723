#include "transport/fate.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"

enum {
  HEALTHY,
  FAILING,
  FAILED
};

int perigee__fate_init(perigee__fate *fate, uint64_t group, const char *name, int me, int n,
                       const int *members) {
  memset(fate, 0, sizeof(*fate));
  fate->members = perigee__calloc((size_t)n, sizeof(int));
  fate->left = perigee__calloc((size_t)n, 1);
  if (fate->members == NULL || fate->left == NULL) {
    free(fate->members);
    free(fate->left);
    return perigee__fail(PERIGEE_ENOMEM, "no memory for a group of %d ranks", n);
  }
  memcpy(fate->members, members, (size_t)n * sizeof(int));
  fate->group = group;
  snprintf(fate->name, sizeof(fate->name), "%s", name);
  fate->me = me;
  fate->n = n;
  perigee__mutex_init(&fate->mutex, PERIGEE_LOCK_FATE, "fate");
  perigee__list_init(&fate->node);
  return 0;
}

void perigee__fate_fini(perigee__fate *fate) {
  free(fate->members);
  free(fate->left);
  fate->members = NULL;
  fate->left = NULL;
  perigee__mutex_fini(&fate->mutex);
}

bool perigee__fate_fail(perigee__fate *fate, const perigee_error *error) {
  uint32_t healthy = HEALTHY;
  if (!atomic_compare_exchange_strong(&fate->state, &healthy, FAILING)) {
    while (atomic_load(&fate->state) == FAILING) /* the other thread copies an error */
      sched_yield();
    return false;
  }
  fate->error = *error;
  if (fate->error.rank < 0)
    fate->error.rank = fate->me;
  if (fate->error.group[0] == '\0')
    snprintf(fate->error.group, sizeof(fate->error.group), "%s", fate->name);
  atomic_store(&fate->state, FAILED); /* release: pairs with perigee__fate_failed */
  /* Under the lock, so that a listener that has been taken off is never called afterwards. They only wake. */
  perigee__lock(&fate->mutex);
  for (int i = 0; i < PERIGEE_FATE_LISTENERS; i++)
    if (fate->listeners[i].cb != NULL)
      fate->listeners[i].cb(fate->listeners[i].arg);
  perigee__unlock(&fate->mutex);
  return true;
}

int perigee__fate_error(perigee__fate *fate, int op, uint64_t seq, bool pending,
                        perigee_error *error) {
  const perigee_error *cause = &fate->error;
  bool keeps_code;
  switch (cause->code) {
  case PERIGEE_EPEERDEAD:
  case PERIGEE_ECLOSED:
    keeps_code = true;
    break;
  case PERIGEE_EMISMATCH:
  case PERIGEE_ETIMEDOUT:
  case PERIGEE_ETRUNC:
  case PERIGEE_ESHAPE:
    /* Consequences are not shown as causes: only the operation it happened to has timed out or differs, also on a rank that
     * comes to it when it is over. */
    keeps_code = cause->seq != 0 && seq != 0 ? cause->seq == seq : pending;
    break;
  default:
    keeps_code = pending;
    break;
  }
  *error = *cause;
  error->op = op;
  error->seq = seq;
  error->rank = fate->me;
  error->traceback[0] = '\0';
  snprintf(error->group, sizeof(error->group), "%s", fate->name);
  if (!keeps_code) {
    error->code = PERIGEE_EABORTED;
    snprintf(error->message, sizeof(error->message), "the group has failed: %.480s",
             cause->message);
  }
  return error->code;
}

int perigee__fate_listen(perigee__fate *fate, perigee__fate_cb cb, void *arg) {
  int rc = PERIGEE_ELIMIT;
  perigee__lock(&fate->mutex);
  for (int i = 0; i < PERIGEE_FATE_LISTENERS && rc < 0; i++)
    if (fate->listeners[i].cb == NULL) {
      fate->listeners[i].cb = cb;
      fate->listeners[i].arg = arg;
      rc = 0;
    }
  perigee__unlock(&fate->mutex);
  if (rc < 0)
    return perigee__fail(rc, "more than %d listeners of one group's fate", PERIGEE_FATE_LISTENERS);
  /* Failed in between: whoever failed it may have missed us. Waking twice does no harm. */
  if (perigee__fate_failed(fate))
    cb(arg);
  return 0;
}

void perigee__fate_unlisten(perigee__fate *fate, perigee__fate_cb cb, void *arg) {
  perigee__lock(&fate->mutex);
  for (int i = 0; i < PERIGEE_FATE_LISTENERS; i++)
    if (fate->listeners[i].cb == cb && fate->listeners[i].arg == arg)
      fate->listeners[i].cb = NULL;
  perigee__unlock(&fate->mutex);
}

int perigee__fate_rank_of(const perigee__fate *fate, int world_rank) {
  for (int r = 0; r < fate->n; r++)
    if (fate->members[r] == world_rank)
      return r;
  return -1;
}
