/*
 * The observer of a group: who is told of its operations, and what is under way. include/perigee/hook.h has the promises.
 *
 * Every operation that a caller starts passes begin and end (blocking calls) or begin and follow (works) of group.c: the one choke
 * point. While a group has no hook, begin is a look at group->hooked.
 *
 * Events are queued under the mutex and delivered by whichever thread finds nobody delivering, one at a time, outside of
 * it. That makes their order total, keeps hooks from running inside one another, and lets hooks submit.
 *
 * Lifetime: an object of its own, because operations end after their group was dropped. `life` holds, in one word, the references
 * (high half) and the operations under way (low half, each of which keeps it too).
 *
 * Lock: `mutex` (rank LEAF): hooks, queue, running, fences, alarm_at and the flags. Nothing is called while it is held.
 */
#ifndef PERIGEE_GROUP_HOOKS_H
#define PERIGEE_GROUP_HOOKS_H

#include <perigee/hook.h>

#include "group/group.h"

typedef struct perigee__hooks perigee__hooks;
typedef struct perigee__observed perigee__observed; /* one operation that is told about */

int perigee__hooks_create(perigee_group *group, perigee__hooks **hooks_p);
void perigee__hooks_unref(perigee__hooks *hooks);
/** Before the layers are closed: their failures are no news from now on. */
void perigee__hooks_mute(perigee_group *group);
/** Deliver what has ended, until deadline_ns, and drop all hooks. Not inside a hook. */
void perigee__hooks_close(perigee__hooks *hooks, int64_t deadline_ns);

/**
 * An operation begins on a group that is `hooked`: gives mine->seq its number (unless it has one) out of *counter, and tells.
 * *op_p: NULL when there is nobody to tell any more. ENOMEM: the operation must not begin.
 */
int perigee__hooks_begin(perigee_group *group, perigee_request *mine, _Atomic uint64_t *counter,
                         bool async, perigee__observed **op_p);
/** It has ended; error NULL: well. The calling thread's last error is kept. */
void perigee__hooks_end(perigee__observed *op, const perigee_error *error);
/** It has become this work: ends with it. op: NULL when nobody is told; the work then only counts as under way. */
void perigee__hooks_follow(perigee_group *group, perigee__observed *op, perigee_work *work);
/** A call was refused before it had a number. The calling thread's last error says why, and is kept. */
void perigee__hooks_refused(perigee_group *group, const perigee_request *req);
/** The group was aborted or has failed, for this reason. Tells once. */
void perigee__hooks_failed(perigee__hooks *hooks, const perigee_error *cause);

/** A work that ends when nothing is under way and all hooks have run. EDEADLK inside an operation that is told about. */
int perigee__hooks_fence(perigee__hooks *hooks, perigee_work **work_p);
/** Whether anything is under way. */
bool perigee__hooks_busy(const perigee__hooks *hooks);

/** Keep an event beyond the call of its hook. */
const perigee_event *perigee__event_ref(const perigee_event *event);
void perigee__event_unref(const perigee_event *event);
/** Whether the event is the end of a blocking call that this very thread is about to return from. */
bool perigee__event_is_own(const perigee_event *event);

#endif
