#include "group/layers.h"

#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/error.h"
#include "group/native.h"
#include "group/work.h"

/* "fp16(native)" for the layers from `from` on, by the names they show or those they are registered under; "" for none. */
static char *stack_text(const perigee_group *group, int from, bool registered) {
  size_t size = (size_t)(group->nlayers - from) * (PERIGEE_NAME_MAX + 2) + 1;
  char *text = perigee__calloc(size, 1);
  if (text == NULL)
    return NULL;
  for (int i = from; i < group->nlayers; i++) {
    if (i > from)
      strcat(text, "(");
    strcat(text, registered ? group->layers[i].backend->name : group->layers[i].name);
  }
  for (int i = from + 1; i < group->nlayers; i++)
    strcat(text, ")");
  return text;
}

/* A layer of a plug-in may fail without a word: a stale message must not stand for it. */
static void unexplained(perigee_error *error, int rc, const perigee_layer *layer,
                        const char *what) {
  perigee__error_set(error, rc, "backend '%s': %s: %s", layer->backend->name, what,
                     perigee_strerror(rc));
}

static int explained(int rc, const perigee_layer *layer, const char *what) {
  if (PERIGEE_UNLIKELY(rc < 0) && perigee_last_error()->code != rc)
    unexplained(perigee__last_error(), rc, layer, what);
  return rc;
}

/* Asked once per operation, when the layer is open. */
static void ask_handles(perigee_layer *layer) {
  const perigee_backend_ops_v1 *ops = &layer->backend->ops;
  for (int op = 0; op < PERIGEE_OP_COUNT; op++)
    if (ops->handles == NULL || ops->handles(layer->self, op))
      layer->handles |= UINT32_C(1) << op;
}

/* Whether ops has a slot for the method. */
static bool has_slot(const perigee_backend_ops_v1 *ops, int method) {
  switch ((perigee_method)method) {
  case PERIGEE_METHOD_BACKEND_NAME:
    return ops->backend_name != NULL;
  case PERIGEE_METHOD_RANK:
    return ops->rank != NULL;
  case PERIGEE_METHOD_SIZE:
    return ops->group_size != NULL;
  case PERIGEE_METHOD_SPLIT:
    return ops->split_group != NULL;
  case PERIGEE_METHOD_SHUTDOWN:
    return ops->shutdown != NULL;
  case PERIGEE_METHOD_START_COALESCING:
    return ops->start_coalescing != NULL;
  case PERIGEE_METHOD_END_COALESCING:
    return ops->end_coalescing != NULL;
  case PERIGEE_METHOD_RECONFIGURE:
    return ops->reconfigure != NULL;
  case PERIGEE_METHOD_OPEN:
  case PERIGEE_METHOD_CLOSE:
  case PERIGEE_METHOD_ABORT:
  case PERIGEE_METHOD_SET_TIMEOUT:
  case PERIGEE_METHOD_COUNT:
    break;
  }
  return false;
}

/* Which methods the open layer has, and the name it shows. */
static int ask_methods(perigee_layer *layer) {
  const perigee_backend_ops_v1 *ops = &layer->backend->ops;
  for (int method = 0; method < PERIGEE_METHOD_COUNT; method++)
    if (has_slot(ops, method) && (ops->provides == NULL || ops->provides(layer->self, method)))
      layer->methods |= UINT32_C(1) << method;
  layer->group->methods |= layer->methods;
  const char *name = layer->methods >> PERIGEE_METHOD_BACKEND_NAME & 1
                         ? ops->backend_name(layer->self)
                         : layer->backend->name;
  if (name == NULL)
    return perigee_last_error()->code < 0
               ? perigee_last_error()->code
               : perigee__fail(PERIGEE_EINVAL, "backend '%s' has no name", layer->backend->name);
  if (!perigee__backend_name_is_good(name))
    return perigee__fail(PERIGEE_EINVAL,
                         "backend '%s': backend_name says '%s': 1 to %d letters, digits, '_' or "
                         "'-' expected",
                         layer->backend->name, name, PERIGEE_NAME_MAX);
  strcpy(layer->name, name);
  return 0;
}

perigee_layer *perigee__layer_with(perigee_group *group, int from, perigee_method method) {
  if (PERIGEE_LIKELY(!(group->methods >> method & 1)))
    return NULL;
  for (int i = from; i < group->nlayers; i++)
    if (group->layers[i].methods >> method & 1)
      return &group->layers[i];
  return NULL;
}

/* Layer i is open: what stands above it goes there for what it takes. What it does not take goes where it goes itself. */
static void add_routes(perigee_group *group, int i) {
  const perigee_layer *layer = &group->layers[i];
  int8_t *above = i > 0 ? group->layers[i - 1].route : group->route;
  for (int op = 0; op < PERIGEE_OP_COUNT; op++)
    above[op] = layer->handles >> op & 1 ? (int8_t)i : layer->route[op];
}

/* Layer i of the group; from: the parent's layer it is split from, or NULL. */
static int open_one(perigee_group *group, int i, const perigee_layer *from) {
  perigee_layer *layer = &group->layers[i];
  const perigee_layer_info info = {
      .size = sizeof(info),
      .layer = layer,
      .backend_name = layer->backend->name,
      .group_name = group->name,
      .rank = group->rank,
      .nranks = group->nranks,
      .store = group->store,
      .timeout_ns = atomic_load_explicit(&group->timeout_ns, memory_order_relaxed),
      .members = group->members,
      .options = group->layer_options,
  };
  const perigee_backend_ops_v1 *ops = &layer->backend->ops;
  if (from != NULL && ops->split != NULL)
    return explained(ops->split(from->self, &info, &layer->self), layer, "split");
  return explained(ops->open(layer->backend->self, &info, &layer->self), layer, "open");
}

static void close_from(perigee_group *group, int first) {
  for (int i = first; i < group->nlayers; i++)
    group->layers[i].backend->ops.close(group->layers[i].self);
}

static void drop_backends(perigee_group *group) {
  for (int i = 0; i < group->nlayers; i++) {
    perigee__backend_unref(group->layers[i].backend);
    free(group->layers[i].below);
    group->layers[i].backend = NULL;
    group->layers[i].below = NULL;
  }
}

int perigee__layers_open(perigee_group *group, const perigee_group *parent, int first) {
  perigee__backend *backends[PERIGEE_LAYERS_MAX];
  int n = 0;
  if (parent != NULL) {
    /* The very same backends, whatever is registered under their names by now. */
    for (n = 0; first + n < parent->nlayers; n++) {
      backends[n] = parent->layers[first + n].backend;
      atomic_fetch_add_explicit(&backends[n]->refs, 1, memory_order_relaxed);
    }
  } else {
    PERIGEE_TRY(perigee__stack_parse(group->stack, backends, &n));
  }
  group->nlayers = n;
  int rc = 0;
  for (int i = 0; i < n; i++) {
    group->layers[i] = (perigee_layer){.group = group, .backend = backends[i], .index = i};
    memset(group->layers[i].route, -1, sizeof(group->layers[i].route));
  }
  int first_open = n;
  while (rc == 0 && first_open > 0) {
    perigee_layer *layer = &group->layers[first_open - 1];
    /* An open layer may already use the ones below it: their routes and names are needed first. */
    layer->below = stack_text(group, first_open, false);
    rc = layer->below != NULL
             ? open_one(group, first_open - 1,
                        parent != NULL ? &parent->layers[first + first_open - 1] : NULL)
             : perigee__fail(PERIGEE_ENOMEM, "no memory for the stack '%s'", group->stack);
    if (rc == 0) {
      first_open--;
      ask_handles(layer);
      add_routes(group, first_open);
      rc = ask_methods(layer);
    }
  }
  if (rc < 0) {
    close_from(group, first_open);
    drop_backends(group);
    return rc;
  }
  free(group->stack);
  group->stack = stack_text(group, 0, false);
  group->spec = stack_text(group, 0, true);
  if (group->stack == NULL || group->spec == NULL) {
    close_from(group, 0);
    drop_backends(group);
    return perigee__fail(PERIGEE_ENOMEM, "no memory for the text of a stack");
  }
  group->native = group->layers[n - 1].backend->ops.submit == perigee__native_ops.submit;
  return 0;
}

void perigee__layers_close(perigee_group *group) {
  close_from(group, 0);
  drop_backends(group);
}

void perigee__layers_abort(perigee_group *group, const perigee_error *error) {
  for (int i = 0; i < group->nlayers; i++)
    if (group->layers[i].backend->ops.abort != NULL)
      group->layers[i].backend->ops.abort(group->layers[i].self, error);
}

/* ---- calls ------------------------------------------------------------------------------------- */

static int nobody(const perigee_request *req, const char *where) {
  return perigee__fail(PERIGEE_ENOTSUP, "%s: no layer of '%s' takes it", perigee_op_name(req->op),
                       where);
}

int perigee__layer_submit_at(perigee_group *group, int index, const perigee_request *req,
                             perigee_work **work_p) {
  perigee_layer *layer = &group->layers[index];
  return explained(layer->backend->ops.submit(layer->self, req, work_p), layer,
                   perigee_op_name(req->op));
}

/* Submit and wait. A work with an engine keeps the operation's deadline by itself; any other one that nobody ends is ended
 * here when the time is over. */
static int submit_and_wait(perigee_group *group, int index, const perigee_request *req,
                           perigee_error *error) {
  int64_t started = perigee__now_ns();
  int64_t deadline = perigee__request_deadline(
      req, atomic_load_explicit(&group->timeout_ns, memory_order_relaxed));
  perigee_work *work;
  int rc = perigee__layer_submit_at(group, index, req, &work);
  if (rc == 0) {
    bool own = work->ops != NULL || deadline == PERIGEE_NEVER;
    rc = perigee_work_wait(work, own ? PERIGEE_TIMEOUT_NONE
                                     : perigee__time_left(deadline) + perigee__work_slack(work));
    if (rc == PERIGEE_EAGAIN) {
      perigee_error late;
      perigee__error_set(&late, PERIGEE_ETIMEDOUT, "timed out after %.1f s: nobody completed it",
                         (double)(deadline - started) / 1e9);
      perigee__work_finish(work, &late, -1);
      rc = perigee_work_wait(work, PERIGEE_TIMEOUT_NONE);
    }
    perigee_work_unref(work);
  }
  if (rc < 0)
    *error = *perigee_last_error();
  return rc;
}

int perigee__layer_run_at(perigee_group *group, int index, const perigee_request *req,
                          perigee_error *error) {
  perigee_layer *layer = &group->layers[index];
  if (layer->backend->ops.run == NULL)
    return submit_and_wait(group, index, req, error);
  error->code = 0;
  int rc = layer->backend->ops.run(layer->self, req, error);
  if (PERIGEE_UNLIKELY(rc < 0) && error->code != rc)
    unexplained(error, rc, layer, perigee_op_name(req->op));
  return rc;
}

int perigee_layer_submit(perigee_layer *layer, const perigee_request *req, perigee_work **work_p) {
  perigee_group *group = layer->group;
  PERIGEE_TRY(perigee__group_enter(group));
  int rc = perigee__request_check(req, group->rank, group->nranks);
  if (rc == 0)
    rc = layer->route[req->op] < 0
             ? nobody(req, layer->below)
             : perigee__layer_submit_at(group, layer->route[req->op], req, work_p);
  return perigee__group_leave(group, rc);
}

int perigee_layer_run(perigee_layer *layer, const perigee_request *req) {
  perigee_group *group = layer->group;
  PERIGEE_TRY(perigee__group_may_block());
  PERIGEE_TRY(perigee__group_enter(group));
  int rc = perigee__request_check(req, group->rank, group->nranks);
  if (rc == 0 && layer->route[req->op] < 0) {
    rc = nobody(req, layer->below);
  } else if (rc == 0) {
    perigee_error error;
    rc = perigee__layer_run_at(group, layer->route[req->op], req, &error);
    if (rc < 0)
      perigee__fail_with(&error);
  }
  return perigee__group_leave(group, rc);
}

const char *perigee_layer_below(const perigee_layer *layer) { return layer->below; }
