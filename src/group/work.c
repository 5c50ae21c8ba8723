#include "group/work.h"

#include <limits.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/futex.h"

/* Values of the state word. */
enum {
  PENDING = 0,
  ENDING = 1,
  FINAL = PERIGEE__WORK_FINAL
};
#define STATIC_REFS UINT32_MAX

static _Thread_local int callback_depth;

bool perigee__work_in_callback(void) { return callback_depth > 0; }
void perigee__work_callback_enter(void) { callback_depth++; }
void perigee__work_callback_leave(void) { callback_depth--; }

/* ---- life -------------------------------------------------------------------------------------- */

static int pin(perigee_work *work, const perigee_request *req) {
  /* In-place operations return their inputs. */
  const perigee_tensors *out = req->out.n > 0 ? &req->out : &req->in;
  uint32_t n = req->out.n + req->in.n;
  if (n == 0)
    return 0;
  work->pinned = n == 1 ? &work->pinned_one : perigee__calloc(n, sizeof(perigee_tensor *));
  if (work->pinned == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory for a work with %u tensors", n);
  for (uint32_t i = 0; i < req->out.n; i++)
    work->pinned[work->n_pinned++] = perigee_tensor_ref(req->out.v[i]);
  for (uint32_t i = 0; i < req->in.n; i++)
    work->pinned[work->n_pinned++] = perigee_tensor_ref(req->in.v[i]);
  const perigee_op_info *info = perigee_op_get(req->op);
  if (info != NULL && (req->out.n > 0 || info->in == PERIGEE_FORM_INPLACE))
    work->outputs = (perigee_tensors){work->pinned, out->n, out->rows};
  return 0;
}

int perigee__work_init(perigee_work *work, const perigee__work_ops *ops, const perigee_request *req,
                       int64_t deadline_ns) {
  memset(work, 0, sizeof(*work));
  atomic_init(&work->refs, 1);
  work->ops = ops;
  work->op = req != NULL ? req->op : -1;
  work->seq = req != NULL ? req->seq : 0;
  work->source_rank = -1;
  work->started_ns = perigee__now_ns();
  work->deadline_ns = deadline_ns;
  work->callbacks_tail = &work->callbacks;
  perigee__list_init(&work->timer);
  if (req != NULL)
    PERIGEE_TRY(pin(work, req));
  perigee__mutex_init(&work->mutex, PERIGEE_LOCK_WORK, "work");
  return 0;
}

/* What it holds goes; fields that were not used are as init has left them. */
static void let_go(perigee_work *work) {
  for (uint32_t i = 0; i < work->n_pinned; i++)
    perigee_tensor_unref(work->pinned[i]);
  if (PERIGEE_UNLIKELY(work->pinned != &work->pinned_one))
    free(work->pinned);
  if (PERIGEE_UNLIKELY(work->error != NULL))
    free(work->error);
  if (PERIGEE_UNLIKELY(work->value_drop != NULL))
    work->value_drop(work->value);
  if (PERIGEE_UNLIKELY(work->depends_on != NULL))
    perigee_work_unref(work->depends_on);
}

void perigee__work_fini(perigee_work *work) {
  let_go(work);
  perigee__mutex_fini(&work->mutex);
}

void perigee__work_make_renewable(perigee_work *work) {
  perigee__list_init(&work->timer);
  perigee__mutex_init(&work->mutex, PERIGEE_LOCK_WORK, "work");
}

void perigee__work_renew(perigee_work *work, uint32_t refs, const perigee__work_ops *ops,
                         const perigee_request *req) {
  atomic_store_explicit(&work->refs, refs, memory_order_relaxed);
  atomic_store_explicit(&work->state, PENDING, memory_order_relaxed);
  work->ops = ops;
  work->op = req->op;
  work->seq = req->seq;
  work->source_rank = -1;
  work->slack_ns = 0;
  work->finished_ns = 0;
  work->pinned = &work->pinned_one;
  work->n_pinned = 0;
  work->pinned_one = req->out.n > 0 ? req->out.v[0] : req->in.v[0];
  work->outputs = (perigee_tensors){work->pinned, req->out.n, req->out.rows};
  work->error = NULL;
  work->callbacks = NULL;
  work->callbacks_tail = &work->callbacks;
  work->depends_on = NULL;
  work->value = NULL;
  work->value_drop = NULL;
  atomic_store_explicit(&work->observers, NULL, memory_order_relaxed);
  atomic_store_explicit(&work->own_taken, false, memory_order_relaxed);
  atomic_store_explicit(&work->watched, false, memory_order_relaxed);
}

static void pin_entered(perigee_work *work) {
  perigee_tensor_ref(work->pinned_one);
  work->n_pinned = 1;
}

void perigee__work_begins(perigee_work *work, int64_t deadline_ns) {
  pin_entered(work);
  work->started_ns = perigee__now_ns();
  work->deadline_ns = deadline_ns;
  /* Another thread may have been quick. */
  if (perigee__work_ended(work) && work->finished_ns < work->started_ns)
    work->started_ns = work->finished_ns;
}

void perigee__work_retire(perigee_work *work) { perigee__mutex_fini(&work->mutex); }

perigee_work *perigee_work_ref(perigee_work *work) {
  if (atomic_load_explicit(&work->refs, memory_order_relaxed) != STATIC_REFS)
    atomic_fetch_add_explicit(&work->refs, 1, memory_order_relaxed);
  return work;
}

/* The end has passed the observers: who comes now is told at once. */
static perigee__observer passed;

/* Oldest first. */
static perigee__observer *take_observers(perigee_work *work) {
  perigee__observer *newest = atomic_exchange(&work->observers, &passed), *list = NULL;
  if (newest == &passed)
    return NULL;
  while (newest != NULL) {
    perigee__observer *next = newest->next;
    newest->next = list;
    list = newest;
    newest = next;
  }
  return list;
}

static void tell_ended(perigee__observer *list) {
  while (list != NULL) {
    perigee__observer *next = list->next; /* ended may free it */
    list->ended(list);
    list = next;
  }
}

/* The last reference of a work that nobody ended. */
static void tell_dropped(perigee_work *work) {
  perigee__observer *list = take_observers(work);
  if (list == NULL)
    return;
  perigee_error error;
  perigee__error_set(&error, PERIGEE_ECANCELED, "the work was dropped before it ended");
  for (perigee__observer *o = list; o != NULL; o = o->next)
    o->ending(o, work, &error);
  tell_ended(list);
}

/* A future that nobody can end any more, with callbacks: they are owed a call. The last reference is gone. */
static void drop_unfinished(perigee_work *work) {
  perigee_error error;
  atomic_store_explicit(&work->refs, 1, memory_order_relaxed);
  perigee__error_set(&error, PERIGEE_ECANCELED, "it was dropped by all who could complete it");
  perigee__work_finish(work, &error, -1);
  perigee_work_unref(work);
}

void perigee_work_unref(perigee_work *work) {
  if (work == NULL || atomic_load_explicit(&work->refs, memory_order_relaxed) == STATIC_REFS)
    return;
  /* acq_rel: the last owner sees what the others wrote. Nobody can add to a reference that is the only one. */
  if (atomic_load_explicit(&work->refs, memory_order_acquire) != 1 &&
      atomic_fetch_sub_explicit(&work->refs, 1, memory_order_acq_rel) != 1)
    return;
  if (PERIGEE_UNLIKELY(work->callbacks != NULL)) {
    drop_unfinished(work);
    return;
  }
  const perigee__observer *observers = atomic_load_explicit(&work->observers, memory_order_relaxed);
  if (PERIGEE_UNLIKELY(observers != NULL && observers != &passed))
    tell_dropped(work);
  if (work->ops != NULL && work->ops->reuse != NULL) {
    let_go(work);
    work->ops->reuse(work);
    return;
  }
  perigee__work_fini(work);
  if (work->ops != NULL && work->ops->free != NULL)
    work->ops->free(work);
  else
    free(work);
}

perigee_work *perigee_work_done(void) {
  static perigee_work done = {.refs = STATIC_REFS,
                              .state = FINAL + PERIGEE_WORK_DONE,
                              .op = -1,
                              .source_rank = -1,
                              .deadline_ns = PERIGEE_NEVER,
                              .mutex = PERIGEE_MUTEX_INIT(PERIGEE_LOCK_WORK, "work")};
  return &done;
}

/* ---- ending ------------------------------------------------------------------------------------ */

perigee_work_status perigee__work_status_of(const perigee_error *error) {
  if (error == NULL)
    return PERIGEE_WORK_DONE;
  switch (error->code) {
  case PERIGEE_ETIMEDOUT:
    return PERIGEE_WORK_TIMEDOUT;
  case PERIGEE_EABORTED:
  case PERIGEE_ECANCELED:
  case PERIGEE_ECLOSED:
    return PERIGEE_WORK_ABORTED;
  default:
    return PERIGEE_WORK_FAILED;
  }
}

static void run_callbacks(perigee_work *work, perigee__work_callback *list) {
  perigee__work_callback_enter();
  while (list != NULL) {
    perigee__work_callback *next = list->next;
    list->cb(work, list->arg);
    free(list);
    list = next;
  }
  perigee__work_callback_leave();
}

void perigee__work_ring(perigee_work *work) {
  if (atomic_load(&work->waiters) == 0)
    return;
  atomic_fetch_add(&work->bell, 1);
  perigee__futex_wake(&work->bell, INT_MAX, false);
}

void perigee__work_observe(perigee_work *work, perigee__observer *o) {
  /* acquire, here and below: pairs with the exchange of the end, whose error is read further down */
  perigee__observer *head = atomic_load_explicit(&work->observers, memory_order_acquire);
  while (head != &passed && !perigee__work_ended(work)) {
    o->next = head;
    if (atomic_compare_exchange_weak_explicit(&work->observers, &head, o, memory_order_release,
                                              memory_order_acquire))
      return;
  }
  /* Between the outcome and the final state lies little more than the calls of other observers. */
  while (!perigee__work_ended(work))
    sched_yield();
  perigee_error unknown;
  const perigee_error *error = work->error;
  if (error == NULL && perigee_work_get_status(work) != PERIGEE_WORK_DONE) {
    perigee__error_set(&unknown, PERIGEE_ENOMEM,
                       "the operation failed, and there was no memory to say why");
    error = &unknown;
  }
  o->ending(o, work, error);
  o->ended(o);
}

bool perigee__work_finish(perigee_work *work, const perigee_error *error, int source_rank) {
  uint32_t pending = PENDING;
  if (!atomic_compare_exchange_strong(&work->state, &pending, ENDING))
    return false;
  perigee_work_ref(work); /* a callback may drop the last other reference */
  if (error != NULL) {
    work->error = malloc(sizeof(*work->error));
    if (work->error != NULL)
      *work->error = *error;
  }
  work->source_rank = source_rank;
  work->finished_ns = perigee__now_ns();
  perigee__observer *observers = take_observers(work);
  for (perigee__observer *o = observers; PERIGEE_UNLIKELY(o != NULL); o = o->next)
    o->ending(o, work, error);
  perigee__lock(&work->mutex);
  perigee__work_callback *list = work->callbacks;
  work->callbacks = NULL;
  work->callbacks_tail = &work->callbacks;
  perigee_work *depends_on = work->depends_on;
  work->depends_on = NULL;
  /* seq_cst: pairs with waiters++ before the last look at state in perigee__work_sleep. Under the mutex so that on_done
   * either queues before this or sees the final state. */
  atomic_store(&work->state, FINAL + (uint32_t)perigee__work_status_of(error));
  perigee__unlock(&work->mutex);
  perigee__work_ring(work);
  if (work->ops != NULL && work->ops->ended != NULL)
    work->ops->ended(work);
  perigee__deadline_forget(work);
  if (depends_on != NULL && !perigee__work_ended(depends_on))
    perigee_work_interrupt(depends_on); /* who waits for this work may be driving that one */
  perigee_work_unref(depends_on);
  run_callbacks(work, list);
  tell_ended(observers);
  perigee_work_unref(work);
  return true;
}

void perigee__work_born_done(perigee_work *work, int source_rank, int64_t now_ns) {
  if (work->outputs.n > 0) /* they are shown as long as it lives */
    pin_entered(work);
  work->source_rank = source_rank;
  work->started_ns = work->finished_ns = now_ns;
  work->deadline_ns = PERIGEE_NEVER;
  atomic_store_explicit(&work->refs, 1, memory_order_relaxed);
  atomic_store_explicit(&work->state, FINAL + PERIGEE_WORK_DONE, memory_order_release);
}

int perigee_work_on_done(perigee_work *work, perigee_work_cb cb, void *arg) {
  if (work == NULL || cb == NULL)
    return perigee__fail(PERIGEE_EINVAL, "perigee_work_on_done: work and cb must not be NULL");
  perigee__work_callback *entry = malloc(sizeof(*entry));
  if (entry == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory for a callback");
  *entry = (perigee__work_callback){NULL, cb, arg};
  perigee__lock(&work->mutex);
  bool ended = perigee__work_ended(work);
  if (!ended) {
    *work->callbacks_tail = entry;
    work->callbacks_tail = &entry->next;
  }
  perigee__unlock(&work->mutex);
  if (ended)
    run_callbacks(work, entry);
  return 0;
}

bool perigee__work_forget(perigee_work *work, perigee_work_cb cb, const void *arg) {
  perigee__work_callback *found = NULL;
  perigee__lock(&work->mutex);
  for (perigee__work_callback **at = &work->callbacks; *at != NULL; at = &(*at)->next)
    if ((*at)->cb == cb && (*at)->arg == arg) {
      found = *at;
      *at = found->next;
      if (found->next == NULL)
        work->callbacks_tail = at;
      break;
    }
  perigee__unlock(&work->mutex);
  free(found);
  return found != NULL;
}

int perigee_work_abort(perigee_work *work, const char *reason) {
  if (perigee__work_ended(work))
    return perigee__fail(PERIGEE_ESTATE, "the work has ended");
  perigee_error error;
  perigee__error_set(&error, PERIGEE_EABORTED, "aborted: %s",
                     reason != NULL ? reason : "no reason given");
  error.op = work->op;
  error.seq = work->seq;
  if (work->ops != NULL && work->ops->abort != NULL)
    work->ops->abort(work, &error);
  else
    perigee__work_finish(work, &error, -1);
  return 0;
}

/* ---- looking ----------------------------------------------------------------------------------- */

perigee_work_status perigee_work_get_status(const perigee_work *work) {
  uint32_t state = atomic_load_explicit(&work->state, memory_order_acquire);
  return state < FINAL ? PERIGEE_WORK_PENDING : (perigee_work_status)(state - FINAL);
}

bool perigee_work_is_completed(const perigee_work *work) { return perigee__work_ended(work); }

const char *perigee_work_status_name(perigee_work_status status) {
  static const char *const names[] = {"pending", "done", "failed", "timeout", "aborted"};
  return (unsigned)status < PERIGEE_COUNT(names) ? names[status] : "?";
}

const perigee_error *perigee_work_error(const perigee_work *work) {
  return perigee__work_ended(work) ? work->error : NULL;
}

int perigee_work_op(const perigee_work *work) { return work->op; }
uint64_t perigee_work_seq(const perigee_work *work) { return work->seq; }
int perigee_work_source_rank(const perigee_work *work) {
  return perigee__work_ended(work) ? work->source_rank : -1;
}
perigee_tensors perigee_work_outputs(const perigee_work *work) { return work->outputs; }
int64_t perigee_work_started_ns(const perigee_work *work) { return work->started_ns; }
int64_t perigee_work_finished_ns(const perigee_work *work) {
  return perigee__work_ended(work) ? work->finished_ns : 0;
}

void perigee_work_set_value(perigee_work *work, void *value, void (*drop)(void *value)) {
  perigee__lock(&work->mutex);
  void *old = work->value;
  void (*old_drop)(void *) = work->value_drop;
  work->value = value;
  work->value_drop = drop;
  perigee__unlock(&work->mutex);
  if (old_drop != NULL)
    old_drop(old);
}

void *perigee_work_value(const perigee_work *work) {
  perigee_mutex *mutex = (perigee_mutex *)&work->mutex;
  perigee__lock(mutex);
  void *value = work->value;
  perigee__unlock(mutex);
  return value;
}
