/*
 * Batches of operations (perigee_group_coalesce_start in group.h).
 *
 * A batch is collected on the thread that started it and found through thread-local storage; group->batches says whether there is one at
 * all. At its end its operations are submitted as if they were called then, between start_coalescing and end_coalescing of the
 * first layer that has them. Each operation has a work from the moment it is collected; a work that joins them ends when all have ended.
 */
#ifndef PERIGEE_GROUP_COALESCE_H
#define PERIGEE_GROUP_COALESCE_H

#include "group/group.h"

typedef struct perigee__batch perigee__batch;

/** The batch this thread has open on the group, or NULL; group->batches is not 0. */
perigee__batch *perigee__batch_find(const perigee_group *group);
static inline perigee__batch *perigee__batch_here(const perigee_group *group) {
  return PERIGEE_LIKELY(atomic_load_explicit(&group->batches, memory_order_relaxed) == 0)
             ? NULL
             : perigee__batch_find(group);
}

/** Check req and add it. *work_p: its work, returned owned. The errors of perigee_group_submit that need no layer. */
PERIGEE_MUST_CHECK int perigee__batch_add(perigee__batch *batch, const perigee_request *req,
                                          perigee_work **work_p);

#endif
