/*
 * Ends that cannot happen where they are asked for: a close from a callback, from inside a call, or by the last unref.
 *
 * They run on a thread of their own. At exit of the process the groups that are still open are closed, within 2 s in all,
 * so that data on its way out is not lost and peers see an orderly end.
 */
#ifndef PERIGEE_GROUP_CLOSING_H
#define PERIGEE_GROUP_CLOSING_H

#include "group/group.h"

/** Close the group on a thread of its own, soon. Takes over one reference. Never blocks. */
void perigee__closing_defer(perigee_group *group);
/** Wait until every deferred end is over. False when deadline_ns has passed. */
bool perigee__closing_wait(int64_t deadline_ns);
/** The group is open from now on: takes the reference that keeps it until it is closed. forget gives it up. ENOMEM. */
int perigee__closing_register(perigee_group *group);
void perigee__closing_forget(perigee_group *group);

/* group.c */
bool perigee__group_inside_call(void);
void perigee__group_close_now(perigee_group *group);
/* split.c */
void perigee__subgroup_counts_free(struct perigee__subgroup_count *list);

/** The process ends: whoever runs exit() may hold what a close waits for, and does not come back. Relaxed. */
extern _Atomic bool perigee__closing_at_exit;

#endif
