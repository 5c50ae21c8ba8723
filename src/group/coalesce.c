#include "group/coalesce.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/error.h"
#include "group/layers.h"
#include "group/work.h"

/* One operation of a batch, and its work: pending until the operation it stands for has ended. */
typedef struct part {
  perigee_work work; /* first: ops->free gets it */
  struct part *next;
  perigee_request req; /* tensors point into work.pinned, splits behind this struct */
  const perigee__batch *_Atomic batch; /* while it is collected; compared only. relaxed */
} part;

struct perigee__batch {
  perigee__batch *outer; /* this thread's batch on another group */
  perigee_group *group;  /* one reference */
  part *first, **last;   /* one reference each */
  uint32_t n;
  int64_t timeout_ns; /* of operations that have none of their own */
};

/* The work of a whole batch. */
typedef struct join {
  perigee_work work;    /* first: ops->free gets it */
  perigee_group *group; /* one reference */
  _Atomic uint32_t
      left; /* works that have not ended. acq_rel: who ends the last sees the others' errors */
  perigee_mutex mutex; /* rank LEAF: `driven` moves on by one thread at a time */
  uint32_t driven;     /* under mutex: works before this one have ended */
  uint32_t
      n; /* under mutex until all are known: parts, and one more when a layer's end_coalescing gave a work */
  bool has_end;         /* as n */
  perigee_work **works; /* n; one reference each */
} join;

static _Thread_local perigee__batch *open_batches;

perigee__batch *perigee__batch_find(const perigee_group *group) {
  perigee__batch *batch = open_batches;
  while (batch != NULL && batch->group != group)
    batch = batch->outer;
  return batch;
}

bool perigee_group_is_coalescing(const perigee_group *group) {
  return perigee__batch_here(group) != NULL;
}

/* ---- parts ------------------------------------------------------------------------------------- */

static int part_may_wait(const perigee_work *work) {
  const part *p = PERIGEE_CONTAINER_OF(work, part, work);
  const perigee__batch *mine = open_batches;
  const perigee__batch *its = atomic_load_explicit(&p->batch, memory_order_relaxed);
  while (mine != NULL && mine != its)
    mine = mine->outer;
  return mine == NULL ? 0
                      : perigee__fail(PERIGEE_EDEADLK,
                                      "the operation is submitted when the coalescing ends: wait "
                                      "for it after that");
}

static void part_free(perigee_work *work) {
  part *p = PERIGEE_CONTAINER_OF(work, part, work);
  if (p->req.redop.kind == PERIGEE_REDOP_CUSTOM && p->req.redop.custom->unref != NULL)
    p->req.redop.custom->unref(p->req.redop.custom);
  free(p);
}

static void part_abort(perigee_work *work, const perigee_error *reason);

static const perigee__work_ops part_ops = {
    .may_wait = part_may_wait, .abort = part_abort, .free = part_free};

static perigee_work *depends_on(perigee_work *work) {
  perigee__lock(&work->mutex);
  perigee_work *dep = work->depends_on != NULL ? perigee_work_ref(work->depends_on) : NULL;
  perigee__unlock(&work->mutex);
  return dep;
}

static void part_abort(perigee_work *work, const perigee_error *reason) {
  perigee_work *real = depends_on(work);
  if (real == NULL || perigee_work_abort(real, reason->message) < 0)
    perigee__work_finish(work, reason, -1);
  perigee_work_unref(real);
}

static int part_create(const perigee_request *req, part **part_p) {
  size_t nsplits = (size_t)req->n_out_splits + req->n_in_splits;
  part *p = perigee__calloc(1, sizeof(*p) + nsplits * sizeof(int64_t));
  if (p == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory for an operation");
  int rc = perigee__work_init(&p->work, &part_ops, req, PERIGEE_NEVER);
  if (rc < 0) {
    free(p);
    return rc;
  }
  p->req = *req;
  p->req.out.v = p->work.pinned;
  p->req.in.v = p->work.pinned != NULL ? p->work.pinned + req->out.n : NULL;
  int64_t *splits = (int64_t *)(p + 1);
  if (req->n_out_splits > 0)
    p->req.out_splits = memcpy(splits, req->out_splits, req->n_out_splits * sizeof(int64_t));
  if (req->n_in_splits > 0)
    p->req.in_splits =
        memcpy(splits + req->n_out_splits, req->in_splits, req->n_in_splits * sizeof(int64_t));
  if (req->redop.kind == PERIGEE_REDOP_CUSTOM && req->redop.custom->ref != NULL)
    req->redop.custom->ref(req->redop.custom);
  *part_p = p;
  return 0;
}

int perigee__batch_add(perigee__batch *batch, const perigee_request *req, perigee_work **work_p) {
  perigee_group *group = batch->group;
  PERIGEE_TRY(perigee__group_enter(group));
  part *p = NULL;
  int rc = perigee__group_check(group, req);
  if (rc == 0)
    rc = part_create(req, &p);
  if (rc < 0)
    return perigee__group_leave(group, rc);
  atomic_store_explicit(&p->batch, batch, memory_order_relaxed);
  if (p->req.timeout_ns == PERIGEE_TIMEOUT_DEFAULT)
    p->req.timeout_ns = batch->timeout_ns;
  *batch->last = p;
  batch->last = &p->next;
  batch->n++;
  *work_p = perigee_work_ref(&p->work);
  return perigee__group_leave(group, 0);
}

/* ---- the work of the batch --------------------------------------------------------------------- */

static void join_free(perigee_work *work) {
  join *j = PERIGEE_CONTAINER_OF(work, join, work);
  for (uint32_t i = 0; i < j->n; i++)
    perigee_work_unref(j->works[i]);
  free(j->works);
  perigee__mutex_fini(&j->mutex);
  perigee_group_unref(j->group);
  free(j);
}

/* Its operations end it. */
static void join_abort(perigee_work *work, const perigee_error *reason) {
  const join *j = PERIGEE_CONTAINER_OF(work, join, work);
  for (uint32_t i = 0; i < j->n; i++)
    (void)!perigee_work_abort(j->works[i], reason->message); /* or it has ended */
}

static const perigee__work_ops join_ops = {.abort = join_abort, .free = join_free};

/* The first that failed, in the order of the batch, and which it was. */
static bool first_error(const join *j, perigee_error *error) {
  for (uint32_t i = 0; i < j->n; i++) {
    const perigee_error *it = perigee_work_error(j->works[i]);
    if (it == NULL)
      continue;
    *error = *it;
    uint32_t parts = j->has_end ? j->n - 1 : j->n;
    if (i < parts)
      snprintf(error->message, sizeof(error->message), "operation %u of %u coalesced, %s: %.400s",
               i + 1, parts, perigee_op_name(perigee_work_op(j->works[i])), it->message);
    else
      snprintf(error->message, sizeof(error->message), "end_coalescing: %.400s", it->message);
    if (error->op < 0)
      error->op = perigee_work_op(j->works[i]);
    if (error->rank < 0)
      error->rank = j->group->rank;
    if (error->group[0] == '\0')
      snprintf(error->group, sizeof(error->group), "%s", j->group->name);
    return true;
  }
  return false;
}

/* Who waits for the batch drives the first work that has not ended. */
static void drive_next(join *j) {
  perigee_work *next;
  do {
    perigee__lock(&j->mutex);
    while (j->driven < j->n && perigee_work_is_completed(j->works[j->driven]))
      j->driven++;
    next = j->driven < j->n ? j->works[j->driven] : NULL;
    perigee__unlock(&j->mutex);
    if (next != NULL)
      perigee_future_depend(&j->work, next);
    /* Another thread may have gone on from it before it was set here. */
  } while (next != NULL && perigee_work_is_completed(next));
}

/* `left` counts one more than the works until all of them are known. */
static void one_less(join *j) {
  if (atomic_fetch_sub_explicit(&j->left, 1, memory_order_acq_rel) != 1)
    return;
  perigee_error error;
  bool failed = first_error(j, &error);
  perigee__work_finish(&j->work, failed ? &error : NULL, -1);
}

static void one_ended(perigee_work *work, void *arg) {
  (void)work;
  join *j = arg;
  drive_next(j);
  one_less(j);
  perigee_work_unref(&j->work);
}

static int join_create(const perigee__batch *batch, join **join_p) {
  join *j = perigee__calloc(1, sizeof(*j));
  if (j != NULL)
    j->works = perigee__calloc((size_t)batch->n + 1, sizeof(perigee_work *));
  if (j == NULL || j->works == NULL) {
    free(j);
    return perigee__fail(PERIGEE_ENOMEM, "no memory for a batch");
  }
  int rc = perigee__work_init(&j->work, &join_ops, NULL, PERIGEE_NEVER);
  if (rc < 0) {
    free(j->works);
    free(j);
    return rc;
  }
  perigee__mutex_init(&j->mutex, PERIGEE_LOCK_LEAF, "batch");
  j->group = perigee_group_ref(batch->group);
  atomic_init(&j->left, 1);
  for (part *p = batch->first; p != NULL; p = p->next)
    j->works[j->n++] = perigee_work_ref(&p->work);
  *join_p = j;
  return 0;
}

/* The join waits for this work. */
static void join_add(join *j, perigee_work *work) {
  atomic_fetch_add_explicit(&j->left, 1, memory_order_relaxed);
  perigee_work_ref(&j->work);
  if (perigee_work_on_done(work, one_ended, j) < 0) { /* without memory: not waited for */
    atomic_fetch_sub_explicit(&j->left, 1, memory_order_relaxed);
    perigee_work_unref(&j->work);
  }
}

/* ---- submitting -------------------------------------------------------------------------------- */

/* The operation has ended: so does the work that stands for it. */
static void real_ended(perigee_work *real, void *arg) {
  part *p = arg;
  perigee__work_finish(&p->work, perigee_work_error(real), perigee_work_source_rank(real));
  perigee_work_unref(&p->work);
}

static void submit_part(perigee_group *group, part *p) {
  perigee_work *real;
  int rc = perigee_group_submit(group, &p->req, &real);
  if (rc == 0) {
    perigee_future_depend(&p->work, real);
    perigee_work_ref(&p->work);
    rc = perigee_work_on_done(real, real_ended, p);
    if (rc < 0)
      perigee_work_unref(&p->work);
    perigee_work_unref(real);
  }
  if (rc < 0) {
    const perigee_error error = *perigee_last_error();
    perigee__work_finish(&p->work, &error, -1);
  }
}

static void fail_parts(const perigee__batch *batch, const perigee_error *error) {
  for (part *p = batch->first; p != NULL; p = p->next)
    perigee__work_finish(&p->work, error, -1);
}

/* What the first layer that has end_coalescing gives is one more work of the batch. */
static void end_layers(perigee_group *group, join *j) {
  const perigee_layer *layer = perigee__layer_with(group, 0, PERIGEE_METHOD_END_COALESCING);
  if (layer == NULL)
    return;
  perigee_work *end = NULL;
  int rc = layer->backend->ops.end_coalescing(layer->self, &end);
  if (rc == 0) {
    rc = perigee__group_track(
        group, end,
        perigee__deadline_in(atomic_load_explicit(&group->timeout_ns, memory_order_relaxed)));
    if (rc < 0)
      perigee_work_unref(end);
  }
  if (rc < 0) {
    const perigee_error error = *perigee_last_error();
    if (perigee_future_create(NULL, NULL, PERIGEE_NEVER, &end) < 0)
      return;
    perigee_future_set_error(end, &error);
  }
  perigee__lock(&j->mutex);
  j->works[j->n++] = end;
  j->has_end = true;
  perigee__unlock(&j->mutex);
  join_add(j, end);
}

static void submit_batch(perigee_group *group, const perigee__batch *batch, join *j) {
  int rc = perigee__group_enter(group);
  if (rc < 0) {
    const perigee_error error = *perigee_last_error();
    fail_parts(batch, &error);
    return;
  }
  const perigee_layer *layer = perigee__layer_with(group, 0, PERIGEE_METHOD_START_COALESCING);
  if (layer != NULL && (rc = layer->backend->ops.start_coalescing(layer->self)) < 0) {
    perigee_error error = *perigee_last_error();
    char text[sizeof(error.message)];
    snprintf(text, sizeof(text), "start_coalescing: %.480s", error.message);
    memcpy(error.message, text, sizeof(text));
    fail_parts(batch, &error);
  } else {
    /* After one that is refused the others go on: their peers wait for them. */
    for (part *p = batch->first; p != NULL; p = p->next)
      submit_part(group, p);
    end_layers(group, j);
  }
  perigee__group_leave(group, 0);
}

/* ---- the batch --------------------------------------------------------------------------------- */

int perigee_group_coalesce_start(perigee_group *group, int64_t timeout_ns) {
  if (perigee__batch_here(group) != NULL)
    return perigee__fail(PERIGEE_ESTATE,
                         "coalescing on group %s within a coalescing on it: the inner one is "
                         "not needed",
                         group->name);
  PERIGEE_TRY(perigee__group_enter(group));
  perigee__batch *batch = perigee__calloc(1, sizeof(*batch));
  if (batch == NULL)
    return perigee__group_leave(group, perigee__fail(PERIGEE_ENOMEM, "no memory for a batch"));
  batch->group = perigee_group_ref(group);
  batch->last = &batch->first;
  batch->timeout_ns = timeout_ns;
  batch->outer = open_batches;
  open_batches = batch;
  atomic_fetch_add_explicit(&group->batches, 1, memory_order_relaxed);
  return perigee__group_leave(group, 0);
}

/* This thread's batch is over: what is called from now on is not part of it. */
static int take(perigee_group *group, perigee__batch **batch_p) {
  perigee__batch *batch = perigee__batch_here(group);
  if (batch == NULL)
    return perigee__fail(PERIGEE_ESTATE, "this thread is not coalescing on group %s", group->name);
  perigee__batch **at = &open_batches;
  while (*at != batch)
    at = &(*at)->outer;
  *at = batch->outer;
  atomic_fetch_sub_explicit(&group->batches, 1, memory_order_relaxed);
  for (part *p = batch->first; p != NULL; p = p->next)
    atomic_store_explicit(&p->batch, NULL, memory_order_relaxed);
  *batch_p = batch;
  return 0;
}

static void batch_free(perigee__batch *batch) {
  for (part *p = batch->first, *next; p != NULL; p = next) {
    next = p->next;
    perigee_work_unref(&p->work);
  }
  perigee_group_unref(batch->group);
  free(batch);
}

int perigee_group_coalesce_cancel(perigee_group *group) {
  perigee__batch *batch = NULL;
  PERIGEE_TRY(take(group, &batch));
  perigee_error error;
  perigee__error_set(&error, PERIGEE_ECANCELED, "the coalescing was given up");
  fail_parts(batch, &error);
  batch_free(batch);
  return 0;
}

int perigee_group_coalesce_end(perigee_group *group, perigee_work **work_p) {
  perigee__batch *batch = NULL;
  PERIGEE_TRY(take(group, &batch));
  join *j = NULL;
  int rc = join_create(batch, &j);
  if (rc < 0) {
    const perigee_error error = *perigee_last_error();
    fail_parts(batch, &error);
    batch_free(batch);
    return perigee__fail_with(&error);
  }
  for (part *p = batch->first; p != NULL; p = p->next)
    join_add(j, &p->work);
  if (batch->n > 0)
    submit_batch(group, batch, j);
  batch_free(batch);
  drive_next(j);
  one_less(j);
  *work_p = &j->work;
  return 0;
}
