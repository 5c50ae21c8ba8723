/*
 * send, recv, recv_anysource: messages of the mesh, matched by (group, peer, tag).
 *
 * A message carries a fingerprint (dtype, elements). A receive of another dtype or size is an EMISMATCH that names both sides;
 * its buffer is then unspecified. A message that times out is taken back and does not fail the group.
 *
 * A message that can be sent, or has come, when it is posted is over then: its work is made as one that has ended, and holds neither the
 * native layer nor, when it is a send, the tensor. Works come from a few spare ones that each thread keeps.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/futex.h"
#include "coll/fingerprint.h"
#include "group/native_impl.h"

typedef struct p2p_op {
  perigee_work work;       /* first: ops->reuse gets it */
  perigee__native *native; /* one reference, unless it ended at once */
  perigee__xfer xfer;
  int64_t posted_ns;        /* about */
  int peer;                 /* rank of the group; -1: any */
  _Atomic uint32_t look;    /* changes when who drives should come out; seq_cst with driving */
  _Atomic uint32_t driving; /* threads inside p2p_drive */
  bool began;               /* it is, or was, under way: `native` is its own */
  struct p2p_op *next_spare;
} p2p_op;

/* ---- spare ones -------------------------------------------------------------------------------- */

enum {
#if PERIGEE_SANITIZED
  SPARES_MAX = 0 /* so that a late use is found */
#else
  SPARES_MAX = 128 /* of one thread: more than are in flight as a rule */
#endif
};

static _Thread_local struct {
  p2p_op *first;
  int n;
  bool noted; /* spares_free runs when the thread ends */
} spares;

static pthread_key_t spares_key;
static bool spares_keyed;
static pthread_once_t spares_once = PTHREAD_ONCE_INIT;

static void p2p_retire(p2p_op *op) {
  perigee__work_retire(&op->work);
  free(op);
}

static void spares_free(void *arg) {
  (void)arg;
  while (spares.first != NULL) {
    p2p_op *op = spares.first;
    spares.first = op->next_spare;
    p2p_retire(op);
  }
  spares.n = 0;
  spares.noted = false;
}

static void make_key(void) { spares_keyed = pthread_key_create(&spares_key, spares_free) == 0; }

/* Have this thread's spare ones freed at its end. */
static bool note_thread(void) {
  pthread_once(&spares_once, make_key);
  spares.noted = spares_keyed && pthread_setspecific(spares_key, &spares) == 0;
  return spares.noted;
}

/* Zeroed but for its work, which is to be renewed; NULL: no memory. */
static p2p_op *p2p_take(void) {
  p2p_op *op = spares.first;
  if (PERIGEE_LIKELY(op != NULL)) {
    spares.first = op->next_spare;
    spares.n--;
    memset(&op->work + 1, 0, sizeof(*op) - sizeof(op->work));
    return op;
  }
  op = perigee__calloc(1, sizeof(*op));
  if (op != NULL)
    perigee__work_make_renewable(&op->work);
  return op;
}

static void p2p_reuse(perigee_work *work) {
  p2p_op *op = PERIGEE_CONTAINER_OF(work, p2p_op, work);
  if (op->began)
    perigee__native_unref(op->native);
  if (spares.n >= SPARES_MAX || (PERIGEE_UNLIKELY(!spares.noted) && !note_thread())) {
    p2p_retire(op);
    return;
  }
  op->next_spare = spares.first;
  spares.first = op;
  spares.n++;
}

/* ---- messages ---------------------------------------------------------------------------------- */

static uint64_t fingerprint_of(const perigee_tensor *t) {
  return perigee__fingerprint_pack(
      &(perigee__fingerprint){.op = PERIGEE_OP_SEND,
                              .dtype = (int)perigee_tensor_dtype(t),
                              .redop = -1,
                              .root = -1,
                              .count = (uint64_t)perigee_tensor_numel(t)});
}

static const perigee_tensor *tensor_of(const perigee_request *req) {
  return req->op == PERIGEE_OP_SEND ? req->in.v[0] : req->out.v[0];
}

/* Returns whether it has ended. */
static bool post(perigee__native *native, const perigee_request *req, perigee__xfer *xfer) {
  const perigee_tensor *t = tensor_of(req);
  const perigee__key key = {
      .group = native->fate.group, .tag = (uint64_t)req->tag, .kind = PERIGEE_KEY_P2P};
  int peer = req->op == PERIGEE_OP_RECV_ANYSOURCE ? -1 : native->fate.members[req->peer];
  if (req->op == PERIGEE_OP_SEND)
    return perigee__mesh_send(native->mesh, &native->fate, peer, key, perigee_tensor_data(t),
                              perigee_tensor_nbytes(t), fingerprint_of(t), xfer);
  return perigee__mesh_recv(native->mesh, &native->fate, peer, key, perigee_tensor_data(t),
                            perigee_tensor_nbytes(t), 0, xfer);
}

static int late_error(perigee__native *native, int op, uint64_t seq, int64_t waited_ns, int peer,
                      perigee_error *error) {
  if (peer >= 0)
    perigee__error_set(error, PERIGEE_ETIMEDOUT, "timed out after %.1f s, missing rank %d",
                       (double)waited_ns / 1e9, peer);
  else
    perigee__error_set(error, PERIGEE_ETIMEDOUT, "timed out after %.1f s, no rank has sent",
                       (double)waited_ns / 1e9);
  if (peer >= 0)
    perigee__error_add_rank(error, peer);
  return perigee__native_sign(native, op, seq, error);
}

/* What a finished message means: 0 or the error. */
static int verdict(perigee__native *native, int op, uint64_t seq, const perigee_tensor *t,
                   const perigee__xfer *xfer, perigee_error *error) {
  bool arrived = xfer->status == 0 || xfer->status == PERIGEE_ETRUNC;
  if (PERIGEE_LIKELY(xfer->status == 0 &&
                     (op == PERIGEE_OP_SEND || xfer->peer_fp == fingerprint_of(t))))
    return 0;
  int source = xfer->peer >= 0 ? perigee__fate_rank_of(&native->fate, xfer->peer) : -1;
  if (op != PERIGEE_OP_SEND && arrived && xfer->peer_fp != fingerprint_of(t)) {
    const perigee__fingerprint theirs = perigee__fingerprint_unpack(xfer->peer_fp);
    perigee__error_set(error, PERIGEE_EMISMATCH,
                       "rank %d sent %s[%" PRIu64 "], this rank receives %s[%" PRId64 "]", source,
                       perigee_dtype_name((perigee_dtype)theirs.dtype), theirs.count,
                       perigee_dtype_name(perigee_tensor_dtype(t)), perigee_tensor_numel(t));
    perigee__error_add_rank(error, source);
  } else if (perigee__fate_failed(&native->fate)) {
    perigee__fate_error(&native->fate, op, 0, true, error);
  } else {
    perigee__error_set(error, xfer->status, "%s", perigee_strerror(xfer->status));
    if (source >= 0) {
      snprintf(error->message, sizeof(error->message), "rank %d: %s", source,
               perigee_strerror(xfer->status));
      perigee__error_add_rank(error, source);
    }
  }
  return perigee__native_sign(native, op, seq, error);
}

static int refuse_failed(perigee__native *native, const perigee_request *req,
                         perigee_error *error) {
  if (native->mesh == NULL) {
    perigee__error_set(error, PERIGEE_EINVAL, "there is no other rank in this group");
    return perigee__native_sign(native, req->op, req->seq, error);
  }
  if (!perigee__fate_failed(&native->fate))
    return 0;
  perigee__fate_error(&native->fate, req->op, req->seq, false, error);
  return perigee__native_sign(native, req->op, req->seq, error);
}

/* ---- on the caller ----------------------------------------------------------------------------- */

int perigee__native_run_p2p(perigee__native *native, const perigee_request *req,
                            perigee_error *error) {
  /* The source of recv_anysource is read from the work: those go the long way. */
  if (req->op == PERIGEE_OP_RECV_ANYSOURCE) {
    perigee_work *work;
    int rc = perigee__native_submit_p2p(native, req, &work);
    if (rc == 0) {
      rc = perigee_work_wait(work, PERIGEE_TIMEOUT_NONE);
      perigee_work_unref(work);
    }
    if (rc < 0)
      *error = *perigee_last_error();
    return rc;
  }
  PERIGEE_TRY(refuse_failed(native, req, error));
  perigee__xfer xfer = {.waits = true}, *list[] = {&xfer};
  if (post(native, req, &xfer))
    return verdict(native, req->op, req->seq, tensor_of(req), &xfer, error);
  int64_t started = perigee__now_ns(), deadline = perigee__native_deadline(native, req);
  int rc = perigee__mesh_wait(native->mesh, list, 1, &native->fate, deadline);
  if (rc < 0)
    perigee__mesh_cancel(native->mesh, &xfer);
  if (rc == PERIGEE_ETIMEDOUT && xfer.status == PERIGEE_ECANCELED)
    return late_error(native, req->op, req->seq, perigee__now_ns() - started, req->peer, error);
  return verdict(native, req->op, req->seq, tensor_of(req), &xfer, error);
}

/* ---- as works ---------------------------------------------------------------------------------- */

/* What a message that has ended means for its work: 0 or the error, and the rank it came from. */
static int p2p_outcome(const p2p_op *op, perigee_error *error, int *source_p) {
  const perigee__xfer *xfer = &op->xfer;
  const perigee_work *work = &op->work;
  *source_p = -1;
  if (xfer->status == PERIGEE_ETIMEDOUT)
    return late_error(op->native, work->op, work->seq, xfer->deadline_ns - op->posted_ns, op->peer,
                      error);
  int rc = verdict(op->native, work->op, work->seq, work->pinned[0], xfer, error);
  if (rc == 0 && !xfer->is_send)
    *source_p = op->peer >= 0 ? op->peer : perigee__fate_rank_of(&op->native->fate, xfer->peer);
  return rc;
}

static void p2p_done(perigee__xfer *xfer) {
  p2p_op *op = PERIGEE_CONTAINER_OF(xfer, p2p_op, xfer);
  perigee_error error;
  int source, rc = p2p_outcome(op, &error, &source);
  perigee__work_finish(&op->work, rc < 0 ? &error : NULL, source);
  perigee_work_unref(&op->work); /* the mesh's reference */
}

/* It is under way, and may have ended by now on another thread. The caller's call keeps `native` and the tensor until here. */
static void p2p_begins(p2p_op *op) {
  op->began = true;
  perigee__native_ref(op->native);
  atomic_fetch_add_explicit(&op->native->unfinished, 1, memory_order_relaxed);
  perigee__work_begins(&op->work, op->xfer.deadline_ns);
}

/* It has ended within its post: the mesh's reference is still there. */
static void p2p_at_once(p2p_op *op) {
  perigee_error error;
  int source, rc = p2p_outcome(op, &error, &source);
  if (PERIGEE_LIKELY(rc == 0)) {
    perigee__work_born_done(&op->work, source, op->posted_ns);
    return;
  }
  p2p_begins(op);
  perigee__work_finish(&op->work, &error, source);
  perigee_work_unref(&op->work);
}

static void p2p_drive(perigee_work *work, int64_t deadline_ns, const uint32_t *interrupt) {
  p2p_op *op = PERIGEE_CONTAINER_OF(work, p2p_op, work);
  if (!perigee__native_mesh_enter(op->native)) {
    perigee__work_sleep(work, deadline_ns, interrupt); /* close ends it */
    return;
  }
  atomic_fetch_add(&op->driving, 1);
  uint32_t seen = atomic_load(&op->look);
  bool stop = perigee__work_ended(work) ||
              (interrupt != NULL && __atomic_load_n(interrupt, __ATOMIC_SEQ_CST) != 0);
  if (!stop && perigee__mesh_wait_word(op->native->mesh, &op->look, seen, deadline_ns) < 0)
    perigee__cpu_relax(); /* the time is over, which the caller sees for itself */
  atomic_fetch_sub(&op->driving, 1);
  perigee__native_mesh_leave(op->native);
}

static void p2p_interrupt(perigee_work *work) {
  p2p_op *op = PERIGEE_CONTAINER_OF(work, p2p_op, work);
  atomic_fetch_add(&op->look, 1);
  if (atomic_load(&op->driving) == 0 || !perigee__native_mesh_enter(op->native))
    return;
  perigee__mesh_kick(op->native->mesh);
  perigee__native_mesh_leave(op->native);
}

/* The mesh wakes who waits for a word when it has run p2p_done. */
static void p2p_ended(perigee_work *work) {
  p2p_op *op = PERIGEE_CONTAINER_OF(work, p2p_op, work);
  atomic_fetch_sub_explicit(&op->native->unfinished, 1, memory_order_relaxed);
  atomic_fetch_add(&op->look, 1);
}

static void p2p_abort(perigee_work *work, const perigee_error *reason) {
  perigee__native_fail(PERIGEE_CONTAINER_OF(work, p2p_op, work)->native, reason);
}

static const perigee__work_ops p2p_ops = {.drive = p2p_drive,
                                          .interrupt = p2p_interrupt,
                                          .ended = p2p_ended,
                                          .abort = p2p_abort,
                                          .reuse = p2p_reuse};

int perigee__native_submit_p2p(perigee__native *native, const perigee_request *req,
                               perigee_work **work_p) {
  perigee_error error;
  int rc = refuse_failed(native, req, &error);
  if (rc < 0)
    return perigee__fail_with(&error);
  p2p_op *op = p2p_take();
  if (op == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory for a message");
  perigee__work_renew(&op->work, 2, &p2p_ops, req); /* ours, and the mesh's, dropped by p2p_done */
  op->native = native;
  op->posted_ns = perigee__now_about();
  op->peer = req->op == PERIGEE_OP_RECV_ANYSOURCE ? -1 : req->peer;
  op->xfer.deadline_ns =
      perigee__deadline_about_from(op->posted_ns, perigee__native_timeout(native, req));
  op->xfer.on_done = p2p_done;
  op->xfer.at_once = true;
  *work_p = &op->work;
  if (post(native, req, &op->xfer))
    p2p_at_once(op);
  else
    p2p_begins(op);
  return 0;
}
