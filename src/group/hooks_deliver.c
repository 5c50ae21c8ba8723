/* The queue of events: one thread at a time delivers, outside of the mutex. */
#include <sched.h>
#include <stdlib.h>

#include "group/hooks_impl.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"

enum {
  TURN = 256 /* events one thread delivers before it offers the rest to others */
};

typedef struct fence {
  perigee__node node; /* in hooks->fences; under the mutex */
  perigee_work *work; /* one reference */
} fence;

bool perigee__hooks_push_locked(perigee__hooks *hooks, perigee__event *event) {
  if (hooks->closed)
    return false;
  perigee__list_append(&hooks->queue, &event->node);
  return true;
}

bool perigee__hook_wants(const perigee_hook *hook, const perigee__event *event) {
  if (hook->removed || !(hook->events & event->pub.kind) || hook->born > event->birth)
    return false;
  return event->pub.kind != PERIGEE_EVENT_STALL ||
         (hook->after_ns > event->lo && hook->after_ns <= event->hi);
}

/* Call the hooks for one event. Under the mutex, given up for each call. The list may grow at its end meanwhile. */
static PERIGEE_NO_TSA void call_hooks(perigee__hooks *hooks, const perigee__event *event) {
  for (perigee__node *it = hooks->list.next; it != &hooks->list; it = it->next) {
    const perigee_hook *hook = PERIGEE_CONTAINER_OF(it, perigee_hook, node);
    if (!perigee__hook_wants(hook, event))
      continue;
    perigee__unlock(&hooks->mutex);
    hook->cb(&event->pub, hook->arg);
    perigee__lock(&hooks->mutex);
  }
}

/* Under the mutex: hooks that were removed, into `out`. */
static void sweep(perigee__hooks *hooks, perigee__node *out) {
  perigee__list_init(out);
  if (!hooks->sweep)
    return;
  hooks->sweep = false;
  PERIGEE_LIST_EACH_SAFE(it, next, &hooks->list) {
    if (PERIGEE_CONTAINER_OF(it, perigee_hook, node)->removed) {
      perigee__list_remove(it);
      perigee__list_append(out, it);
    }
  }
}

static void drop_swept(perigee__node *swept) {
  while (!perigee__list_empty(swept)) {
    perigee_hook *hook = PERIGEE_CONTAINER_OF(swept->next, perigee_hook, node);
    perigee__list_remove(&hook->node);
    perigee__hook_over(hook);
  }
}

/* Up to TURN events. False: nothing is left. */
static bool deliver_some(perigee__hooks *hooks) {
  bool more = true;
  for (int n = 0; more && n < TURN; n++) {
    perigee__node swept;
    perigee__event *event = NULL;
    perigee__lock(&hooks->mutex);
    if (!perigee__list_empty(&hooks->queue)) {
      event = PERIGEE_CONTAINER_OF(hooks->queue.next, perigee__event, node);
      perigee__list_remove(&event->node);
      call_hooks(hooks, event);
    }
    sweep(hooks, &swept);
    more = event != NULL;
    if (!more || n == TURN - 1)
      hooks->delivering = false;
    perigee__unlock(&hooks->mutex);
    drop_swept(&swept);
    if (event != NULL)
      perigee__event_unref(&event->pub);
  }
  return more;
}

static bool begin_turn(perigee__hooks *hooks) {
  perigee__lock(&hooks->mutex);
  bool mine = !hooks->delivering && !perigee__list_empty(&hooks->queue);
  if (mine)
    hooks->delivering = true;
  perigee__unlock(&hooks->mutex);
  return mine;
}

/* End the fences, when nothing is under way or queued. */
static void settle(perigee__hooks *hooks) {
  if (!atomic_load(&hooks->fenced) || perigee__hooks_busy(hooks))
    return;
  for (;;) {
    fence *f = NULL;
    perigee__lock(&hooks->mutex);
    if (!perigee__hooks_busy(hooks) && perigee__list_empty(&hooks->queue) && !hooks->delivering &&
        !perigee__list_empty(&hooks->fences)) {
      f = PERIGEE_CONTAINER_OF(hooks->fences.next, fence, node);
      perigee__list_remove(&f->node);
      atomic_store(&hooks->fenced, !perigee__list_empty(&hooks->fences));
    }
    perigee__unlock(&hooks->mutex);
    if (f == NULL)
      return;
    perigee__work_finish(f->work, NULL, -1);
    perigee_work_unref(f->work);
    free(f);
  }
}

void perigee__hooks_deliver(perigee__hooks *hooks) {
  bool more = true;
  while (more && begin_turn(hooks)) {
    perigee__work_callback_enter();
    more = deliver_some(hooks);
    perigee__work_callback_leave();
    if (more)
      sched_yield(); /* whoever queues next may go on; if nobody does, this thread */
  }
  settle(hooks);
}

/* ---- what is under way --------------------------------------------------------------------------- */

bool perigee__hooks_busy(const perigee__hooks *hooks) {
  return (uint32_t)atomic_load(&hooks->life) != 0;
}

void perigee__hooks_less(perigee__hooks *hooks) {
  /* From under way to a reference of ours, so that there is something to settle. seq_cst: pairs with fenced. */
  atomic_fetch_add(&hooks->life, (UINT64_C(1) << 32) - 1);
  settle(hooks);
  perigee__hooks_unref(hooks);
}

int perigee__hooks_fence(perigee__hooks *hooks, perigee_work **work_p) {
  if (perigee__hooks_inside(hooks))
    return perigee__fail(PERIGEE_EDEADLK,
                         "an operation of the group that waits for its pending works would wait "
                         "for itself");
  fence *f = malloc(sizeof(*f));
  if (f == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory to wait for pending works");
  int rc = perigee_future_create(NULL, NULL, PERIGEE_NEVER, &f->work);
  if (rc < 0) {
    free(f);
    return rc;
  }
  *work_p = perigee_work_ref(f->work);
  perigee__lock(&hooks->mutex);
  perigee__list_append(&hooks->fences, &f->node);
  atomic_store(&hooks->fenced, true);
  perigee__unlock(&hooks->mutex);
  settle(hooks);
  return 0;
}

int perigee_group_wait_for_pending_works(perigee_group *group, int64_t timeout_ns) {
  if (timeout_ns <= 0)
    return perigee__fail(PERIGEE_ERANGE, "timeout must be positive");
  PERIGEE_TRY(perigee__group_may_block());
  perigee_work *work;
  PERIGEE_TRY(perigee__hooks_fence(group->hooks, &work));
  int rc = perigee_work_wait(work, timeout_ns);
  perigee_work_unref(work);
  return rc == PERIGEE_EAGAIN
             ? perigee__fail(rc, "%.3f s ran out, and works of the group are still pending",
                             (double)timeout_ns / 1e9)
             : rc;
}

/* ---- the end ------------------------------------------------------------------------------------- */

void perigee__hooks_close(perigee__hooks *hooks, int64_t deadline_ns) {
  perigee_work *work;
  if (perigee__hooks_fence(hooks, &work) == 0) {
    int64_t left = perigee__time_left(deadline_ns);
    if (perigee_work_wait(work, left > 0 ? left : 1) < 0)
      perigee__log(PERIGEE_LOG_WARN, "group %s: a hook does not return; events are lost",
                   hooks->name);
    perigee_work_unref(work);
  }
  perigee__node swept, lost;
  perigee__list_init(&lost);
  perigee__lock(&hooks->mutex);
  hooks->closed = true;
  hooks->group = NULL;
  while (!perigee__list_empty(&hooks->queue)) {
    perigee__node *it = hooks->queue.next;
    perigee__list_remove(it);
    perigee__list_append(&lost, it);
  }
  PERIGEE_LIST_EACH(it, &hooks->list) {
    PERIGEE_CONTAINER_OF(it, perigee_hook, node)->removed = true;
    hooks->sweep = true;
  }
  perigee__hooks_recount(hooks);
  perigee__list_init(&swept);
  if (!hooks->delivering)
    sweep(hooks, &swept); /* else the thread that delivers does */
  perigee_work *alarm = hooks->alarm;
  hooks->alarm = NULL;
  perigee__unlock(&hooks->mutex);
  drop_swept(&swept);
  while (!perigee__list_empty(&lost)) {
    perigee__event *event = PERIGEE_CONTAINER_OF(lost.next, perigee__event, node);
    perigee__list_remove(&event->node);
    perigee__event_unref(&event->pub);
  }
  if (alarm != NULL)
    perigee__work_finish(alarm, NULL, -1);
  perigee_work_unref(alarm);
}
