#include "group/native.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/error.h"
#include "group/native_impl.h"

perigee__native *perigee__native_ref(perigee__native *native) {
  atomic_fetch_add_explicit(&native->refs, 1, memory_order_relaxed);
  return native;
}

static void native_free(perigee__native *native) {
  perigee__mutex_fini(&native->mutex);
  free(native->blocks);
  free(native->counts);
  free(native->seen);
  free(native);
}

void perigee__native_unref(perigee__native *native) {
  if (atomic_fetch_sub_explicit(&native->refs, 1, memory_order_acq_rel) != 1)
    return;
  perigee__fate_fini(&native->fate);
  native_free(native);
}

static int native_create(const perigee_layer_info *info, perigee__mesh *mesh,
                         perigee__native **native_p) {
  perigee__native *native = perigee__calloc(1, sizeof(*native));
  if (native == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory for group %s", info->group_name);
  size_t n = (size_t)info->nranks;
  atomic_init(&native->refs, 1);
  atomic_init(&native->timeout_ns, info->timeout_ns);
  native->rank = info->rank;
  native->n = info->nranks;
  snprintf(native->name, sizeof(native->name), "%s", info->group_name);
  native->mesh = info->nranks > 1 ? mesh : NULL;
  perigee__list_init(&native->queue);
  perigee__mutex_init(&native->mutex, PERIGEE_LOCK_QUEUE, "native queue");
  native->blocks = perigee__calloc(2 * n, sizeof(*native->blocks));
  native->counts = perigee__calloc(n, sizeof(*native->counts));
  native->seen = perigee__calloc(n, sizeof(*native->seen));
  if (native->blocks == NULL || native->counts == NULL || native->seen == NULL) {
    native_free(native);
    return perigee__fail(PERIGEE_ENOMEM, "no memory for group %s", info->group_name);
  }
  *native_p = native;
  return 0;
}

static int native_open(void *backend, const perigee_layer_info *info, void **self_p) {
  (void)backend;
  perigee_group *group = info->layer->group;
  perigee__native *native = NULL;
  PERIGEE_TRY(native_create(info, group->world->mesh, &native));
  int rc;
  PERIGEE_TRY_GOTO(perigee__fate_init(&native->fate, group->id, info->group_name, info->rank,
                                      info->nranks, group->members),
                   err_free);
  if (native->mesh != NULL)
    PERIGEE_TRY_GOTO(perigee__mesh_attach(native->mesh, &native->fate), err_fate);
  const perigee__coll_params coll = {.mesh = native->mesh,
                                     .fate = &native->fate,
                                     .deadline_ns = group->open_deadline_ns,
                                     .rules = group->tuning};
  PERIGEE_TRY_GOTO(perigee__coll_create(&coll, &native->coll), err_detach);
  *self_p = native;
  return 0;
err_detach:
  if (native->mesh != NULL)
    perigee__mesh_detach(native->mesh, &native->fate);
err_fate:
  perigee__fate_fini(&native->fate);
err_free:
  native_free(native);
  return rc;
}

int perigee__native_sign(const perigee__native *native, int op, uint64_t seq,
                         perigee_error *error) {
  error->op = op;
  error->seq = seq;
  error->rank = native->rank;
  snprintf(error->group, sizeof(error->group), "%s", native->name);
  return error->code;
}

void perigee__native_fail(perigee__native *native, const perigee_error *error) {
  bool mesh = perigee__native_mesh_enter(native);
  /* A close is this rank's own affair: the peers learn of it in order, behind the data (detach). */
  if (mesh && error->code != PERIGEE_ECLOSED)
    perigee__mesh_fail_group(native->mesh, &native->fate, error);
  else
    perigee__fate_fail(&native->fate, error);
  if (mesh)
    perigee__native_mesh_leave(native);
  perigee__native_nudge(native);
}

static void native_abort(void *self, const perigee_error *reason) {
  perigee__native_fail(self, reason);
}

static void native_close(void *self) {
  perigee__native *native = self;
  perigee_error closed;
  perigee__error_set(&closed, PERIGEE_ECLOSED, "the group was closed");
  perigee__fate_fail(&native->fate, &closed);
  perigee__native_drain(native);
  perigee__coll_destroy(&native->coll);
  if (native->mesh != NULL) {
    perigee__mesh_detach(native->mesh, &native->fate); /* ends posted messages with ECLOSED */
    /* Threads that waited for such a message, or were late to take it back, may still be inside. */
    while (atomic_load(&native->mesh_users) > 0) {
      perigee__mesh_kick(native->mesh);
      perigee__sleep_ns(20000);
    }
  }
  perigee__native_unref(native);
}

static bool is_p2p(int op) {
  return op == PERIGEE_OP_SEND || op == PERIGEE_OP_RECV || op == PERIGEE_OP_RECV_ANYSOURCE;
}

static int native_submit(void *self, const perigee_request *req, perigee_work **work_p) {
  return is_p2p(req->op) ? perigee__native_submit_p2p(self, req, work_p)
                         : perigee__native_submit_coll(self, req, work_p);
}

static int native_run(void *self, const perigee_request *req, perigee_error *error) {
  return is_p2p(req->op) ? perigee__native_run_p2p(self, req, error)
                         : perigee__native_run_coll(self, req, error);
}

static void native_set_timeout(void *self, int64_t timeout_ns) {
  perigee__native *native = self;
  atomic_store_explicit(&native->timeout_ns, timeout_ns, memory_order_relaxed);
}

const perigee_backend_ops_v1 perigee__native_ops = {
    .size = sizeof(perigee_backend_ops_v1),
    .abi = 1,
    .open = native_open,
    .close = native_close,
    .submit = native_submit,
    .run = native_run,
    .abort = native_abort,
    .set_timeout = native_set_timeout,
};

const char *perigee__native_transport(const void *self) {
  const perigee__native *native = self;
  return perigee__coll_transport(native->coll);
}

int perigee__native_explain(const void *self, perigee__coll_kind kind, uint64_t bytes,
                            bool symmetric, perigee_choice *choice_p) {
  const perigee__native *native = self;
  return perigee__coll_explain(native->coll, kind, bytes, symmetric, choice_p);
}

bool perigee__native_is_idle(const void *self) {
  const perigee__native *native = self;
  return atomic_load_explicit(&native->unfinished, memory_order_relaxed) == 0;
}

bool perigee__native_member_gone(void *self, int rank) {
  perigee__native *native = self;
  return native->mesh != NULL && perigee__mesh_member_gone(native->mesh, &native->fate, rank);
}

int perigee__native_failed(void *self, perigee_error *error_p) {
  perigee__native *native = self;
  if (!perigee__fate_failed(&native->fate))
    return 0;
  if (error_p != NULL)
    *error_p = native->fate.error;
  return native->fate.error.code;
}

int perigee__native_listen(void *self, perigee__fate_cb cb, void *arg) {
  perigee__native *native = self;
  return perigee__fate_listen(&native->fate, cb, arg);
}

void perigee__native_unlisten(void *self, perigee__fate_cb cb, void *arg) {
  perigee__native *native = self;
  perigee__fate_unlisten(&native->fate, cb, arg);
}
