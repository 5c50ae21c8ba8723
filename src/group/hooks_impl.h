/* What the files of the observer share: hooks.c (who is told, operations), hooks_deliver.c (the queue), hooks_alarm.c (stall, abort). */
#ifndef PERIGEE_GROUP_HOOKS_IMPL_H
#define PERIGEE_GROUP_HOOKS_IMPL_H

#include "group/hooks.h"
#include "group/work.h"

struct perigee_hook {
  perigee__node node;    /* in hooks->list; under the mutex */
  perigee__hooks *hooks; /* one reference */
  _Atomic uint32_t refs; /* the list's, and handles */
  unsigned events;
  uint64_t born; /* sees operations that began at or after this registration */
  int64_t after_ns;
  perigee_hook_cb cb;
  void *arg;
  void (*drop)(void *arg);
  bool removed; /* under the mutex */
};

/* An event, on its way to the hooks and maybe kept by some. */
typedef struct perigee__event {
  perigee_event pub;     /* first: events are found by their public part */
  perigee__node node;    /* in hooks->queue; under the mutex */
  perigee__observed *op; /* it is part of, which counts its references; or NULL */
  _Atomic uint32_t refs; /* of an event that is no part of an operation */
  uint64_t birth;        /* registrations there were when what it tells of began */
  int64_t lo, hi;        /* STALL: limits that were passed, lo < limit <= hi */
  perigee_error *error;  /* owned, or NULL */
  char group[64];        /* what pub.group points to */
} perigee__event;

/* One operation under way, or ended with events still kept. */
struct perigee__observed {
  perigee__observer watch; /* of its work */
  _Atomic uint32_t refs;   /* the operation's, and one for each of its events that somebody keeps */
  perigee__hooks *hooks;   /* kept by the operation counting as under way */
  perigee__node node;      /* in hooks->running, oldest first; under the mutex */
  int64_t stalled;         /* the limits told so far; under the mutex */
  /* Who is inside the call that makes it: address of a thread-local; NULL once that has returned with a work. Only compared, and equal
   * only on that thread: relaxed. */
  _Atomic(const void *) thread;
  perigee__event start, end;
};

struct perigee__hooks {
  _Atomic uint64_t life; /* references << 32 | operations under way; acq_rel on the way down */
  perigee_group *group;  /* valid while it is open: mute and close come before its end */
  char name[64];
  int rank, nranks;

  perigee_mutex mutex;
  perigee__node list;    /* perigee_hook, oldest first */
  perigee__node queue;   /* perigee__event, oldest first; a reference each */
  perigee__node running; /* perigee__observed, oldest first */
  perigee__node fences;  /* fence */
  uint64_t registrations;
  unsigned wanted;   /* kinds that some hook wants */
  int64_t min_after; /* least limit of a STALL hook, PERIGEE_NEVER none */
  bool delivering;   /* somebody is at it: nothing is unlinked from `list` but by that thread */
  bool sweep;        /* removed hooks are in `list` */
  bool closed;
  _Atomic bool fenced; /* fences is not empty. seq_cst against `life` reaching no operation */

  perigee_work *alarm; /* in the deadline service; NULL before the first STALL or ABORT hook */
  int64_t alarm_at;    /* when the service is to look */
  bool listening;      /* to the fate of the native bottom */
  bool told;           /* ABORT was told, or came before anybody wanted it */
  bool failed;         /* `cause` is known */
  perigee_error cause;
};

enum {
  PERIGEE__EVENTS_OF_OPS =
      PERIGEE_EVENT_START | PERIGEE_EVENT_DONE | PERIGEE_EVENT_ERROR | PERIGEE_EVENT_STALL
};

perigee__hooks *perigee__hooks_ref(perigee__hooks *hooks);
/** The observed operation, or what counts as one, is over. */
void perigee__hooks_less(perigee__hooks *hooks);
/** A new event that is no part of an operation, filled in as far as the group knows; NULL: no memory. */
perigee__event *perigee__event_create(const perigee__hooks *hooks, unsigned kind);
/** Give an event its error (copied); op and group that it does not name are the event's. */
void perigee__event_fail(perigee__event *event, const perigee_error *error);

/** Whether this thread is inside an observed call of the group, which then is under way. */
bool perigee__hooks_inside(perigee__hooks *hooks);

/** Under the mutex: takes over a reference. False, and nothing taken, when hooks are closed. */
bool perigee__hooks_push_locked(perigee__hooks *hooks, perigee__event *event);
/** Deliver what is queued, unless another thread does. No lock held. */
void perigee__hooks_deliver(perigee__hooks *hooks);
/** Whether this hook is to see this event. Under the mutex. */
bool perigee__hook_wants(const perigee_hook *hook, const perigee__event *event);
/** Under the mutex: what is wanted, after a change. */
void perigee__hooks_recount(perigee__hooks *hooks);
/** A hook that has left the list. No lock held. */
void perigee__hook_over(perigee_hook *hook);

/** The alarm exists, and the group's failure is listened to when `abort` asks for it. The group is entered. */
int perigee__hooks_alarm_start(perigee__hooks *hooks, bool abort);
/** The service looks at due_ns at the latest. Under the mutex; true: call perigee__deadline_hurry afterwards. */
bool perigee__hooks_alarm_lower(perigee__hooks *hooks, int64_t due_ns);

#endif
