#include "host/deferred.h"

#include <stdlib.h>

static void hold(perigee_tensors *to, perigee_tensor **room, const perigee_tensors *from) {
  *to = (perigee_tensors){.v = room, .n = from->n, .rows = from->rows};
  for (uint32_t i = 0; i < from->n; i++)
    room[i] = perigee_tensor_ref(from->v[i]);
}

static void let_go(perigee_tensors *list) {
  for (uint32_t i = 0; i < list->n; i++)
    perigee_tensor_unref(list->v[i]);
  list->n = 0;
}

perigee__deferred *perigee__deferred_create(perigee__lthread *t, perigee__llayer *layer,
                                            const perigee__call *call) {
  const perigee_request *req = &call->req;
  if (t->defer_for != layer || t->deferred != NULL || t->callbacks > 0 ||
      req->in.n > PERIGEE_COUNT(((perigee__deferred *)NULL)->in) ||
      req->out.n > PERIGEE_COUNT(((perigee__deferred *)NULL)->out) || req->n_in_splits > 0 ||
      req->n_out_splits > 0 || (call->conv & PERIGEE_CONV_SOURCE))
    return NULL;
  perigee__deferred *d = malloc(sizeof(*d));
  if (d == NULL)
    return NULL;
  atomic_init(&d->refs, 2);
  atomic_init(&d->state, PERIGEE_DEFERRED_HELD);
  d->layer = layer;
  atomic_fetch_add_explicit(&layer->refs, 1, memory_order_relaxed);
  d->runner = t;
  d->req = *req;
  hold(&d->req.in, d->in, &req->in);
  hold(&d->req.out, d->out, &req->out);
  d->work = NULL;
  d->users = NULL;
  d->users_tail = &d->users;
  t->deferred = d;
  return d;
}

void perigee__deferred_unref(perigee__deferred *d) {
  /* acq_rel: the last owner sees what the others did with it */
  if (d == NULL || atomic_fetch_sub_explicit(&d->refs, 1, memory_order_acq_rel) != 1)
    return;
  let_go(&d->req.in);
  let_go(&d->req.out);
  perigee_work_unref(d->work);
  perigee__llayer_unref(d->layer);
  free(d);
}

/* The outcome as a work, for the objects that stand for it. */
static perigee_work *failed_work(const perigee_error *error) {
  perigee_work *work;
  if (perigee_future_create(NULL, NULL, PERIGEE_NEVER, &work) < 0)
    return NULL;
  perigee_future_set_error(work, error);
  return work;
}

/* work: one reference is taken over; NULL when there was no memory for one. */
static void settle(perigee__deferred *d, perigee_work *work) {
  d->work = work;
  let_go(&d->req.in);
  let_go(&d->req.out);
  /* Users are added inside the interpreter while the state is HELD; that time is over. */
  for (perigee__deferred_user *u = d->users, *next; u != NULL; u = next) {
    next = u->next;
    u->attach(u, work);
  }
  d->users = NULL;
  atomic_store_explicit(&d->state, PERIGEE_DEFERRED_SETTLED, memory_order_release);
}

void perigee__deferred_mark(perigee__lthread *t) {
  if (t->deferred != NULL)
    atomic_store_explicit(&t->deferred->state, PERIGEE_DEFERRED_RUNNING, memory_order_relaxed);
}

void perigee__deferred_submit(perigee__lthread *t) {
  perigee__deferred *d = t->deferred;
  if (d == NULL)
    return;
  t->deferred = NULL;
  perigee_work *work;
  if (perigee_layer_submit(d->layer->layer, &d->req, &work) < 0) {
    perigee_error error = *perigee_last_error();
    work = failed_work(&error);
  }
  settle(d, work);
  perigee__deferred_unref(d);
}

int perigee__deferred_run(perigee__deferred *d) {
  int rc = perigee_layer_run(d->layer->layer, &d->req);
  /* Nobody asks any more when this is the last reference. acquire: pairs with the unref of the others. */
  if (atomic_load_explicit(&d->refs, memory_order_acquire) > 1 || d->users != NULL) {
    perigee_work *work = perigee_work_done();
    if (rc < 0) {
      perigee_error error = *perigee_last_error();
      work = failed_work(&error);
      perigee__fail_with(&error);
    }
    settle(d, work);
  }
  perigee__deferred_unref(d);
  return rc;
}
