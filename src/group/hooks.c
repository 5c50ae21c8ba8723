#include "group/hooks.h"

#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/error.h"
#include "group/hooks_impl.h"
#include "group/native.h"

#define REFERENCE (UINT64_C(1) << 32)
#define DEFAULT_AFTER_NS (2 * PERIGEE_NS_PER_SEC)

/* ---- life ---------------------------------------------------------------------------------------- */

int perigee__hooks_create(perigee_group *group, perigee__hooks **hooks_p) {
  perigee__hooks *hooks = perigee__calloc(1, sizeof(*hooks));
  if (hooks == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory for a group");
  atomic_init(&hooks->life, REFERENCE);
  hooks->group = group;
  memcpy(hooks->name, group->name, sizeof(hooks->name));
  hooks->rank = group->rank;
  hooks->nranks = group->nranks;
  perigee__mutex_init(&hooks->mutex, PERIGEE_LOCK_LEAF, "hooks");
  perigee__list_init(&hooks->list);
  perigee__list_init(&hooks->queue);
  perigee__list_init(&hooks->running);
  perigee__list_init(&hooks->fences);
  hooks->min_after = hooks->alarm_at = PERIGEE_NEVER;
  *hooks_p = hooks;
  return 0;
}

perigee__hooks *perigee__hooks_ref(perigee__hooks *hooks) {
  atomic_fetch_add_explicit(&hooks->life, REFERENCE, memory_order_relaxed);
  return hooks;
}

void perigee__hooks_unref(perigee__hooks *hooks) {
  /* acq_rel: the last one sees what the others wrote */
  if (hooks == NULL ||
      atomic_fetch_sub_explicit(&hooks->life, REFERENCE, memory_order_acq_rel) != REFERENCE)
    return;
  perigee__mutex_fini(&hooks->mutex);
  free(hooks);
}

/* ---- events -------------------------------------------------------------------------------------- */

const char *perigee_event_name(unsigned kind) {
  switch (kind) {
  case PERIGEE_EVENT_START:
    return "start";
  case PERIGEE_EVENT_DONE:
    return "done";
  case PERIGEE_EVENT_ERROR:
    return "error";
  case PERIGEE_EVENT_STALL:
    return "stall";
  case PERIGEE_EVENT_ABORT:
    return "abort";
  default:
    return "?";
  }
}

static void event_init(const perigee__hooks *hooks, perigee__event *event, unsigned kind) {
  *event = (perigee__event){.pub = {.size = sizeof(event->pub),
                                    .kind = kind,
                                    .op = -1,
                                    .op_name = "",
                                    .rank = hooks->rank,
                                    .nranks = hooks->nranks,
                                    .peer = -1}};
  memcpy(event->group, hooks->name, sizeof(event->group));
  event->pub.group = event->group;
  perigee__list_init(&event->node);
}

perigee__event *perigee__event_create(const perigee__hooks *hooks, unsigned kind) {
  perigee__event *event = malloc(sizeof(*event));
  if (event == NULL)
    return NULL;
  event_init(hooks, event, kind);
  atomic_init(&event->refs, 1);
  return event;
}

void perigee__event_fail(perigee__event *event, const perigee_error *error) {
  static const perigee_error no_memory = {.code = PERIGEE_ENOMEM,
                                          .rank = -1,
                                          .op = -1,
                                          .origin = -1,
                                          .message = "failed, and there was no memory to say why"};
  event->pub.status = perigee__work_status_of(error);
  event->error = malloc(sizeof(*event->error));
  if (event->error == NULL) {
    event->pub.error = &no_memory;
    return;
  }
  *event->error = *error;
  event->pub.error = event->error;
  if (event->error->op < 0)
    event->error->op = event->pub.op;
  if (event->error->seq == 0)
    event->error->seq = event->pub.seq;
  if (event->error->rank < 0)
    event->error->rank = event->pub.rank;
  if (event->error->group[0] == '\0')
    memcpy(event->error->group, event->group, sizeof(event->error->group));
}

/* The events' counter: an operation and its events are one piece of memory. */
static perigee__event *counted(const perigee_event *pub, _Atomic uint32_t **refs_p) {
  /* The events are ours; hooks get them as constants. */
  perigee__event *event = (perigee__event *)(uintptr_t)pub;
  *refs_p = event->op != NULL ? &event->op->refs : &event->refs;
  return event;
}

const perigee_event *perigee__event_ref(const perigee_event *pub) {
  _Atomic uint32_t *refs;
  counted(pub, &refs);
  atomic_fetch_add_explicit(refs, 1, memory_order_relaxed);
  return pub;
}

static void observed_unref(perigee__observed *op) {
  if (atomic_fetch_sub_explicit(&op->refs, 1, memory_order_acq_rel) != 1) /* as above */
    return;
  free(op->end.error);
  free(op);
}

void perigee__event_unref(const perigee_event *pub) {
  _Atomic uint32_t *refs;
  perigee__event *event = counted(pub, &refs);
  if (event->op != NULL) {
    observed_unref(event->op);
  } else if (atomic_fetch_sub_explicit(refs, 1, memory_order_acq_rel) == 1) { /* as above */
    free(event->error);
    free(event);
  }
}

/* Its address stands for the thread. */
static _Thread_local char this_thread;

static bool made_here(const perigee__observed *op) {
  return atomic_load_explicit(&op->thread, memory_order_relaxed) == &this_thread;
}

bool perigee__event_is_own(const perigee_event *pub) {
  _Atomic uint32_t *refs;
  const perigee__event *event = counted(pub, &refs);
  return event->op != NULL && event == &event->op->end && !pub->async && made_here(event->op);
}

bool perigee__hooks_inside(perigee__hooks *hooks) {
  bool inside = false;
  perigee__lock(&hooks->mutex);
  PERIGEE_LIST_EACH(it, &hooks->running) {
    inside = inside || made_here(PERIGEE_CONTAINER_OF(it, perigee__observed, node));
  }
  perigee__unlock(&hooks->mutex);
  return inside;
}

/* ---- hooks --------------------------------------------------------------------------------------- */

void perigee_hook_options_init(perigee_hook_options *opts) {
  *opts = (perigee_hook_options){.size = sizeof(*opts)};
}

void perigee__hooks_recount(perigee__hooks *hooks) {
  hooks->wanted = 0;
  hooks->min_after = PERIGEE_NEVER;
  PERIGEE_LIST_EACH(it, &hooks->list) {
    const perigee_hook *hook = PERIGEE_CONTAINER_OF(it, perigee_hook, node);
    if (hook->removed)
      continue;
    hooks->wanted |= hook->events;
    if ((hook->events & PERIGEE_EVENT_STALL) && hook->after_ns < hooks->min_after)
      hooks->min_after = hook->after_ns;
  }
  if (hooks->group !=
      NULL) /* relaxed: who is to be told of an operation has registered before it by other means */
    atomic_store_explicit(&hooks->group->hooked, (hooks->wanted & PERIGEE__EVENTS_OF_OPS) != 0,
                          memory_order_relaxed);
}

static int check(unsigned events, perigee_hook_cb cb, const perigee_hook_options *opts) {
  if (cb == NULL)
    return perigee__fail(PERIGEE_EINVAL, "perigee_group_on: cb must not be NULL");
  if (events == 0 || (events & ~(unsigned)PERIGEE_EVENT_ALL) != 0)
    return perigee__fail(PERIGEE_EINVAL, "perigee_group_on: events is 0x%x, which %s", events,
                         events == 0 ? "names none" : "has unknown bits");
  if (opts != NULL && opts->size != sizeof(*opts))
    return perigee__fail(PERIGEE_EINVAL, "perigee_hook_options.size is %u, expected %zu",
                         opts->size, sizeof(*opts));
  return 0;
}

int perigee_group_on(perigee_group *group, unsigned events, perigee_hook_cb cb, void *arg,
                     const perigee_hook_options *opts, perigee_hook **hook_p) {
  PERIGEE_TRY(check(events, cb, opts));
  PERIGEE_TRY(perigee__group_enter(group));
  perigee__hooks *hooks = group->hooks;
  int rc = 0;
  if (events & (PERIGEE_EVENT_STALL | PERIGEE_EVENT_ABORT))
    rc = perigee__hooks_alarm_start(hooks, events & PERIGEE_EVENT_ABORT);
  perigee_hook *hook = NULL;
  if (rc == 0 && (hook = malloc(sizeof(*hook))) == NULL)
    rc = perigee__fail(PERIGEE_ENOMEM, "no memory for a hook");
  if (rc < 0)
    return perigee__group_leave(group, rc);
  *hook = (perigee_hook){.hooks = perigee__hooks_ref(hooks),
                         .events = events,
                         .after_ns =
                             opts != NULL && opts->after_ns > 0 ? opts->after_ns : DEFAULT_AFTER_NS,
                         .cb = cb,
                         .arg = arg,
                         .drop = opts != NULL ? opts->drop : NULL};
  atomic_init(&hook->refs, hook_p != NULL ? 2 : 1);
  perigee__lock(&hooks->mutex);
  hook->born = ++hooks->registrations;
  perigee__list_append(&hooks->list, &hook->node);
  perigee__hooks_recount(hooks);
  perigee__unlock(&hooks->mutex);
  if (hook_p != NULL)
    *hook_p = hook;
  return perigee__group_leave(group, 0);
}

void perigee_hook_unref(perigee_hook *hook) {
  /* acq_rel: the last one sees what the others wrote */
  if (hook == NULL || atomic_fetch_sub_explicit(&hook->refs, 1, memory_order_acq_rel) != 1)
    return;
  perigee__hooks_unref(hook->hooks);
  free(hook);
}

void perigee__hook_over(perigee_hook *hook) {
  if (hook->drop != NULL)
    hook->drop(hook->arg);
  perigee_hook_unref(hook);
}

void perigee_hook_remove(perigee_hook *hook) {
  perigee__hooks *hooks = hook->hooks;
  perigee__lock(&hooks->mutex);
  bool out = !hook->removed && !hooks->delivering;
  if (!hook->removed) {
    hook->removed = true;
    if (out)
      perigee__list_remove(&hook->node);
    else
      hooks->sweep = true; /* by the thread that delivers, which may be inside it */
    perigee__hooks_recount(hooks);
  }
  perigee__unlock(&hooks->mutex);
  if (out)
    perigee__hook_over(hook);
}

/* ---- operations ---------------------------------------------------------------------------------- */

static uint64_t bytes_of(const perigee_request *req) {
  const perigee_tensors *list = req->in.n > 0 ? &req->in : &req->out;
  uint64_t bytes = 0;
  for (uint32_t i = 0; i < list->n; i++)
    bytes += perigee_tensor_nbytes(list->v[i]);
  return bytes;
}

static void describe(perigee__event *event, const perigee_request *req) {
  event->pub.op = req->op;
  event->pub.op_name = perigee_op_name(req->op);
  event->pub.peer = req->peer;
}

static void on_ending(perigee__observer *self, const perigee_work *work,
                      const perigee_error *error);
static void on_ended(perigee__observer *self);

static perigee__observed *observed_create(perigee__hooks *hooks, const perigee_request *req,
                                          bool async) {
  perigee__observed *op = malloc(sizeof(*op));
  if (op == NULL)
    return NULL;
  op->watch = (perigee__observer){.ending = on_ending, .ended = on_ended};
  atomic_init(&op->refs, 1);
  op->hooks = hooks;
  perigee__list_init(&op->node);
  op->stalled = 0;
  atomic_init(&op->thread, &this_thread);
  event_init(hooks, &op->start, PERIGEE_EVENT_START);
  describe(&op->start, req);
  op->start.pub.async = async;
  op->start.pub.bytes = bytes_of(req);
  op->start.op = op;
  return op;
}

/* Under the mutex. True: the alarm has to be told. */
static bool start_locked(perigee__hooks *hooks, perigee__observed *op, perigee_request *mine,
                         _Atomic uint64_t *counter) {
  /* The number is taken here, so that starts are told in the order of the numbers. */
  uint64_t seq = atomic_fetch_add_explicit(counter, 1, memory_order_relaxed) + 1;
  if (mine->seq == 0)
    mine->seq = seq;
  op->start.birth = hooks->registrations;
  op->start.pub.seq = mine->seq;
  op->start.pub.time_started = perigee__now_ns();
  op->end = op->start;
  op->end.pub.group = op->end.group;
  perigee__list_init(&op->end.node);
  atomic_fetch_add_explicit(&hooks->life, 1, memory_order_relaxed);
  perigee__list_append(&hooks->running, &op->node);
  if ((hooks->wanted & PERIGEE_EVENT_START) && perigee__hooks_push_locked(hooks, &op->start))
    atomic_fetch_add_explicit(&op->refs, 1, memory_order_relaxed);
  return hooks->min_after != PERIGEE_NEVER &&
         perigee__hooks_alarm_lower(hooks, op->start.pub.time_started + hooks->min_after);
}

int perigee__hooks_begin(perigee_group *group, perigee_request *mine, _Atomic uint64_t *counter,
                         bool async, perigee__observed **op_p) {
  perigee__hooks *hooks = group->hooks;
  perigee__observed *op = observed_create(hooks, mine, async);
  if (op == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory for the events of an operation");
  perigee__lock(&hooks->mutex);
  bool hurry = start_locked(hooks, op, mine, counter);
  bool tell = !perigee__list_empty(&hooks->queue);
  int64_t due_ns = hooks->alarm_at;
  perigee_work *alarm = hurry ? perigee_work_ref(hooks->alarm) : NULL;
  perigee__unlock(&hooks->mutex);
  if (alarm != NULL) {
    perigee__deadline_hurry(alarm, due_ns);
    perigee_work_unref(alarm);
  }
  if (tell)
    perigee__hooks_deliver(hooks);
  *op_p = op;
  return 0;
}

/* finished_ns: when it ended. */
static void tell_end(perigee__observed *op, int64_t finished_ns, const perigee_error *error) {
  perigee__hooks *hooks = op->hooks;
  perigee_event *pub = &op->end.pub;
  pub->kind = error == NULL ? PERIGEE_EVENT_DONE : PERIGEE_EVENT_ERROR;
  pub->status = PERIGEE_WORK_DONE;
  pub->time_finished = finished_ns > pub->time_started ? finished_ns : pub->time_started + 1;
  pub->active_duration = pub->time_finished - pub->time_started;
  if (error != NULL)
    perigee__event_fail(&op->end, error);
  perigee__lock(&hooks->mutex);
  perigee__list_remove(&op->node);
  bool tell = (hooks->wanted & pub->kind) && perigee__hooks_push_locked(hooks, &op->end);
  if (tell)
    atomic_fetch_add_explicit(&op->refs, 1, memory_order_relaxed);
  perigee__unlock(&hooks->mutex);
  if (tell)
    perigee__hooks_deliver(hooks);
}

static void observed_over(perigee__observed *op) {
  perigee__hooks *hooks = op->hooks;
  observed_unref(op);
  perigee__hooks_less(hooks);
}

void perigee__hooks_end(perigee__observed *op, const perigee_error *error) {
  if (error == NULL) {
    tell_end(op, perigee__now_ns(), NULL);
    observed_over(op);
    return;
  }
  perigee_error kept = *error; /* this thread's last error, which hooks may overwrite */
  tell_end(op, perigee__now_ns(), &kept);
  observed_over(op);
  perigee__fail_with(&kept);
}

static void on_ending(perigee__observer *self, const perigee_work *work,
                      const perigee_error *error) {
  perigee__observed *op = PERIGEE_CONTAINER_OF(self, perigee__observed, watch);
  /* A layer may return a work that ended long ago. */
  bool older = work->finished_ns <= op->start.pub.time_started;
  tell_end(op, older ? perigee__now_ns() : work->finished_ns, error);
}

static void on_ended(perigee__observer *self) {
  observed_over(PERIGEE_CONTAINER_OF(self, perigee__observed, watch));
}

/* ---- works that only count ----------------------------------------------------------------------- */

static void count_ending(perigee__observer *self, const perigee_work *work,
                         const perigee_error *error) {
  (void)self;
  (void)work;
  (void)error;
}

static void count_ended(perigee__observer *self) { perigee__hooks_less(self->arg); }

static void count_ended_free(perigee__observer *self) {
  perigee__hooks *hooks = self->arg;
  free(self);
  perigee__hooks_less(hooks);
}

void perigee__hooks_follow(perigee_group *group, perigee__observed *op, perigee_work *work) {
  if (op != NULL) {
    atomic_store_explicit(&op->thread, NULL, memory_order_relaxed);
    perigee__work_observe(work, &op->watch);
    return;
  }
  if (perigee__work_ended(work))
    return;
  perigee__observer *o = &work->own;
  bool own = !atomic_exchange(&work->own_taken, true);
  if (!own && (o = malloc(sizeof(*o))) == NULL)
    return; /* one work for two operations (a script's): it counts once */
  *o = (perigee__observer){
      .ending = count_ending, .ended = own ? count_ended : count_ended_free, .arg = group->hooks};
  atomic_fetch_add_explicit(&group->hooks->life, 1, memory_order_relaxed);
  perigee__work_observe(work, o);
}

/* ---- what is no operation ------------------------------------------------------------------------ */

static void tell_alone(perigee__hooks *hooks, perigee__event *event) {
  perigee__lock(&hooks->mutex);
  event->birth = hooks->registrations;
  bool taken = (hooks->wanted & event->pub.kind) && perigee__hooks_push_locked(hooks, event);
  perigee__unlock(&hooks->mutex);
  if (taken)
    perigee__hooks_deliver(hooks);
  else
    perigee__event_unref(&event->pub);
}

void perigee__hooks_refused(perigee_group *group, const perigee_request *req) {
  perigee_error kept = *perigee_last_error();
  perigee__event *event = perigee__event_create(group->hooks, PERIGEE_EVENT_ERROR);
  if (event != NULL) {
    describe(event, req); /* tensors and peers of such a request may be anything */
    event->pub.peer = -1;
    event->pub.time_started = perigee__now_ns();
    event->pub.time_finished = event->pub.time_started + 1;
    event->pub.active_duration = 1;
    perigee__event_fail(event, &kept);
    tell_alone(group->hooks, event);
  }
  perigee__fail_with(&kept);
}
