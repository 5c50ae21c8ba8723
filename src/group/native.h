/*
 * native: the built-in backend at the bottom of most stacks. Collectives go through coll/ (shared memory or TCP), messages
 * through transport/.
 *
 * Order of collectives: a queue per group. A synchronous call on an idle group runs on its caller at once; else calls queue and
 * are run, one at a time and in order, by whoever waits for one of them, or by the group's progress thread when nobody does.
 *
 *   busy (atomic): bit 0: somebody runs; the rest: twice the number of queued operations.
 *   Taking bit 0 from a word is the right to run: with it comes `coll_seq` and the head of the queue.
 *   turn (futex word): changes each time a run ends or an operation is queued; seq_cst with `sleepers`, so that either the
 *   sleeper sees the change or the changer sees the sleeper.
 */
#ifndef PERIGEE_GROUP_NATIVE_H
#define PERIGEE_GROUP_NATIVE_H

#include <perigee/backend.h>

#include "transport/fate.h"
#include "coll/coll.h"
#include "coll/segments.h"

extern const perigee_backend_ops_v1 perigee__native_ops;

/** "shm", "tcp" or "self". */
const char *perigee__native_transport(const void *self);
/** perigee__coll_explain. */
PERIGEE_MUST_CHECK int perigee__native_explain(const void *self, perigee__coll_kind kind,
                                               uint64_t bytes, bool symmetric,
                                               perigee_choice *choice_p);
/** perigee__coll_alloc between the group's collectives: what is queued before runs first. EDEADLK in a reduce function. */
PERIGEE_MUST_CHECK int perigee__native_alloc(void *self, size_t bytes, uint64_t what,
                                             int64_t deadline_ns, perigee__segment **segment_p,
                                             void **data_p);
/** 0, or the code of the first cause, which goes to *error_p (may be NULL). */
int perigee__native_failed(void *self, perigee_error *error_p);
/** Whether every work made so far has ended. */
bool perigee__native_is_idle(const void *self);
/** Whether that rank is known to be dead, or to have left the group or the world. */
bool perigee__native_member_gone(void *self, int rank);
/** perigee__fate_listen and _unlisten on the group's fate. */
PERIGEE_MUST_CHECK int perigee__native_listen(void *self, perigee__fate_cb cb, void *arg);
void perigee__native_unlisten(void *self, perigee__fate_cb cb, void *arg);

#endif
