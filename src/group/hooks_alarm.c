/*
 * Events that no thread of a caller makes: an operation takes too long, the group has failed.
 *
 * The alarm is a work that stays in the deadline service while the group has, or had, hooks for these. The service looks at
 * alarm_at: when the oldest operation will have passed the least limit, or at once when the group's fate has changed (who changes it
 * may hold the mesh's lock, and so only moves the alarm).
 */
#include "base/clock.h"
#include "base/error.h"
#include "group/hooks_impl.h"
#include "group/native.h"

static void on_alarm(perigee_work *alarm);

static void drop_hooks(void *hooks) { perigee__hooks_unref(hooks); }

bool perigee__hooks_alarm_lower(perigee__hooks *hooks, int64_t due_ns) {
  if (due_ns >= hooks->alarm_at || hooks->alarm == NULL)
    return false;
  hooks->alarm_at = due_ns;
  return true;
}

/* ---- the group's failure ------------------------------------------------------------------------- */

/* On whatever thread the fate changes, under its lock. */
static void on_fate(void *arg) {
  perigee__hooks *hooks = arg;
  perigee_error cause;
  const perigee_group *group = hooks->group; /* open: unlisten comes before its end */
  if (perigee__native_failed(group->layers[group->nlayers - 1].self, &cause) == 0 ||
      cause.code == PERIGEE_ECLOSED)
    return;
  perigee__lock(&hooks->mutex);
  if (!hooks->failed)
    hooks->cause = cause;
  hooks->failed = true;
  hooks->alarm_at = 0;
  perigee_work *alarm = hooks->alarm;
  perigee__unlock(&hooks->mutex);
  if (alarm != NULL) /* it stays until the hooks are closed, which is later than unlisten */
    perigee__deadline_hurry(alarm, 0);
}

/* Under the mutex: the event, once. NULL: told already, or not wanted. */
static perigee__event *failure_locked(perigee__hooks *hooks) {
  if (hooks->told || !hooks->failed)
    return NULL;
  hooks->told = true;
  perigee__event *event = perigee__event_create(hooks, PERIGEE_EVENT_ABORT);
  if (event == NULL)
    return NULL;
  if (hooks->cause.op >= 0) {
    event->pub.op = hooks->cause.op;
    event->pub.op_name = perigee_op_name(hooks->cause.op);
    event->pub.seq = hooks->cause.seq;
  }
  event->birth = hooks->registrations;
  event->pub.time_started = event->pub.time_finished = perigee__now_ns();
  perigee__event_fail(event, &hooks->cause);
  if (!(hooks->wanted & PERIGEE_EVENT_ABORT) || !perigee__hooks_push_locked(hooks, event)) {
    perigee__event_unref(&event->pub);
    return NULL;
  }
  return event;
}

void perigee__hooks_failed(perigee__hooks *hooks, const perigee_error *cause) {
  perigee__lock(&hooks->mutex);
  if (!hooks->failed)
    hooks->cause = *cause;
  hooks->failed = true;
  bool tell = failure_locked(hooks) != NULL;
  perigee__unlock(&hooks->mutex);
  if (tell)
    perigee__hooks_deliver(hooks);
}

/* Listen to the fate, once; a group that has failed already has nothing to tell. */
static int listen(perigee__hooks *hooks) {
  const perigee_group *group = hooks->group;
  perigee__lock(&hooks->mutex);
  bool start = !hooks->listening && group->native;
  hooks->listening = true;
  perigee__unlock(&hooks->mutex);
  if (!start)
    return 0;
  void *bottom = group->layers[group->nlayers - 1].self;
  int rc = 0;
  if (perigee__native_failed(bottom, NULL) < 0) {
    perigee__lock(&hooks->mutex);
    hooks->told = true;
    perigee__unlock(&hooks->mutex);
  } else {
    rc = perigee__native_listen(bottom, on_fate, hooks);
  }
  if (rc < 0) {
    perigee__lock(&hooks->mutex);
    hooks->listening = false;
    perigee__unlock(&hooks->mutex);
  }
  return rc;
}

void perigee__hooks_mute(perigee_group *group) {
  perigee__hooks *hooks = group->hooks;
  if (group->native)
    perigee__native_unlisten(group->layers[group->nlayers - 1].self, on_fate, hooks);
  perigee__lock(&hooks->mutex);
  bool tell = failure_locked(hooks) != NULL; /* the service was too slow */
  perigee__unlock(&hooks->mutex);
  if (tell)
    perigee__hooks_deliver(hooks);
}

/* ---- operations that take too long --------------------------------------------------------------- */

/* Under the mutex: what is to be told of an operation now; returns when to look at it again. */
static int64_t look_at_locked(perigee__hooks *hooks, perigee__observed *op, int64_t now) {
  int64_t started = op->start.pub.time_started, next = PERIGEE_NEVER;
  perigee__event probe = {.pub = {.kind = PERIGEE_EVENT_STALL},
                          .birth = op->start.birth,
                          .lo = op->stalled,
                          .hi = now - started};
  bool tell = false;
  PERIGEE_LIST_EACH(it, &hooks->list) {
    const perigee_hook *hook = PERIGEE_CONTAINER_OF(it, perigee_hook, node);
    if (perigee__hook_wants(hook, &probe))
      tell = true;
    else if ((hook->events & PERIGEE_EVENT_STALL) && !hook->removed && hook->after_ns > probe.hi &&
             started + hook->after_ns < next)
      next = started + hook->after_ns;
  }
  perigee__event *event = tell ? perigee__event_create(hooks, PERIGEE_EVENT_STALL) : NULL;
  op->stalled = probe.hi;
  if (event == NULL)
    return next;
  char *group = event->group;
  event->pub = op->start.pub;
  event->pub.kind = PERIGEE_EVENT_STALL;
  event->pub.group = group;
  event->pub.active_duration = probe.hi;
  event->birth = probe.birth;
  event->lo = probe.lo;
  event->hi = probe.hi;
  if (!perigee__hooks_push_locked(hooks, event))
    perigee__event_unref(&event->pub);
  return next;
}

/* Under the mutex. */
static void look_at_all_locked(perigee__hooks *hooks) {
  int64_t now = perigee__now_ns();
  hooks->alarm_at = PERIGEE_NEVER;
  if (hooks->min_after == PERIGEE_NEVER)
    return;
  PERIGEE_LIST_EACH(it, &hooks->running) {
    perigee__observed *op = PERIGEE_CONTAINER_OF(it, perigee__observed, node);
    int64_t due = op->start.pub.time_started + hooks->min_after;
    if (due > now) { /* the others began later */
      if (due < hooks->alarm_at)
        hooks->alarm_at = due;
      return;
    }
    int64_t next = look_at_locked(hooks, op, now);
    if (next < hooks->alarm_at)
      hooks->alarm_at = next;
  }
}

/* ---- the alarm ----------------------------------------------------------------------------------- */

static int watch(perigee__hooks *hooks, perigee_work *alarm) {
  perigee__lock(&hooks->mutex);
  int64_t at = hooks->alarm_at;
  bool closed = hooks->closed;
  perigee__unlock(&hooks->mutex);
  if (closed)
    return 0;
  PERIGEE_TRY(perigee__deadline_watch(alarm, at, on_alarm));
  perigee__lock(&hooks->mutex);
  int64_t later = hooks->alarm_at;
  perigee__unlock(&hooks->mutex);
  if (later < at) /* lowered while nobody could be told */
    perigee__deadline_hurry(alarm, later);
  return 0;
}

/* By the deadline service, which keeps a reference meanwhile. */
static void on_alarm(perigee_work *alarm) {
  perigee__hooks *hooks = perigee_work_value(alarm);
  perigee__lock(&hooks->mutex);
  look_at_all_locked(hooks);
  failure_locked(hooks);
  bool tell = !perigee__list_empty(&hooks->queue);
  perigee__unlock(&hooks->mutex);
  if (tell)
    perigee__hooks_deliver(hooks);
  (void)watch(hooks, alarm); /* cannot fail: the service runs */
}

int perigee__hooks_alarm_start(perigee__hooks *hooks, bool abort) {
  perigee_work *alarm;
  PERIGEE_TRY(perigee_future_create(NULL, NULL, PERIGEE_NEVER, &alarm));
  perigee_work_set_value(alarm, perigee__hooks_ref(hooks), drop_hooks);
  perigee__lock(&hooks->mutex);
  bool mine = hooks->alarm == NULL;
  if (mine)
    hooks->alarm = perigee_work_ref(alarm);
  perigee__unlock(&hooks->mutex);
  int rc = mine ? watch(hooks, alarm) : 0;
  if (rc < 0) {
    perigee__lock(&hooks->mutex);
    hooks->alarm = NULL;
    perigee__unlock(&hooks->mutex);
    perigee_work_unref(alarm);
  }
  perigee_work_unref(alarm);
  return rc == 0 && abort ? listen(hooks) : rc;
}
