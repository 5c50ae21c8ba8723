/*
 * The queue of collectives of one native group: who runs what. The words are explained in native.h.
 *
 * The progress thread exists once something was submitted asynchronously. It leaves a freshly submitted operation alone for
 * GRACE_NS, so that "submit, then wait" is run by the waiter without a hand-over; it goes on looking for LINGER_NS after the last
 * submit before it sleeps for good, so that submit wakes it seldom. Each look in vain doubles the time to the next, from GRACE_NS to
 * NAP_MAX_NS: what is always waited for at once costs next to nothing, and what nobody waits for is late by that much, once.
 * No grace where it would cost more than a hand-over does: an operation of LARGE bytes wakes the thread at once, so that it goes on
 * while its caller computes; and a waiter that must be able to come out before the operation ends cannot run it.
 *
 * Each operation keeps its own deadline while it runs. One that stands behind others and is due before them is watched by the
 * deadline service, which then fails the group.
 */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/futex.h"
#include "group/native_impl.h"

enum {
  GRACE_NS = 100000,
  NAP_MAX_NS = 1000000,
  LARGE = 256 << 10, /* bytes: takes several times as long as waking a thread */
  LINGER_NS = 20000000,
  RUNNER_NS = 20000000
};

typedef struct native_op {
  perigee_work work; /* first: ops->free gets it */
  perigee__node node;
  perigee__native *native; /* one reference */
  perigee_request req;     /* tensors point into work.pinned, splits behind this struct */
  int64_t deadline_ns;
  _Atomic bool started; /* it has left the queue: keeps its deadline itself. seq_cst */
} native_op;

/* The group whose collective this thread is running: a custom reduce function must not wait for it. */
static _Thread_local const perigee__native *running;

/* ---- the right to run -------------------------------------------------------------------------- */

static bool take_run(perigee__native *native) {
  uint32_t busy = atomic_load(&native->busy);
  while (!(busy & 1))
    /* acquire: sees what the last runner did to coll_seq */
    if (atomic_compare_exchange_weak(&native->busy, &busy, busy | 1))
      return true;
  return false;
}

static void wake_turn(perigee__native *native) {
  atomic_fetch_add(&native->turn, 1);
  if (atomic_load(&native->sleepers) > 0)
    perigee__futex_wake(&native->turn, INT_MAX, false);
}

static void wake_progress(perigee__native *native, bool urgent) {
  atomic_fetch_add(&native->progress_word, 1);
  if (atomic_load(&native->progress_sleep) >=
      (urgent ? PERIGEE__NATIVE_NAPS : PERIGEE__NATIVE_SLEEPS))
    perigee__futex_wake(&native->progress_word, 1, false);
}

static void give_run(perigee__native *native) {
  uint32_t before = atomic_fetch_sub(&native->busy, 1); /* release: pairs with take_run */
  if (before == 1 && atomic_load_explicit(&native->sleepers, memory_order_seq_cst) == 0)
    return; /* nothing queued, nobody waits */
  wake_turn(native);
  if (before > 1)
    wake_progress(native, false);
}

/* ---- running ----------------------------------------------------------------------------------- */

static native_op *pop(perigee__native *native) {
  native_op *op = NULL;
  perigee__lock(&native->mutex);
  if (!perigee__list_empty(&native->queue)) {
    op = PERIGEE_CONTAINER_OF(native->queue.next, native_op, node);
    perigee__list_remove(&op->node);
    atomic_fetch_sub(&native->busy, 2);
    atomic_store(&op->started, true);
  }
  perigee__unlock(&native->mutex);
  return op;
}

static int execute(perigee__native *native, const perigee_request *req, int64_t deadline_ns,
                   perigee_error *error) {
  const perigee__native *outer = running;
  running = native;
  int rc = perigee__native_execute(native, req, deadline_ns, error);
  running = outer;
  return rc;
}

/* With the right to run: run queued operations until `until` has ended (NULL: until the queue is empty). */
static void run_queue(perigee__native *native, const perigee_work *until) {
  native_op *op;
  while ((until == NULL || !perigee__work_ended(until)) && (op = pop(native)) != NULL) {
    perigee_error error;
    int rc = execute(native, &op->req, op->deadline_ns, &error);
    perigee__work_finish(&op->work, rc < 0 ? &error : NULL, -1);
    perigee_work_unref(&op->work); /* the queue's reference */
  }
}

/* The error of a call on a group that has failed already. */
static int refuse(perigee__native *native, const perigee_request *req, perigee_error *error) {
  perigee__fate_error(&native->fate, req->op, req->seq, false, error);
  return perigee__native_sign(native, req->op, req->seq, error);
}

int perigee__native_run_coll(perigee__native *native, const perigee_request *req,
                             perigee_error *error) {
  int64_t deadline = perigee__native_deadline(native, req);
  uint32_t idle = 0;
  if (PERIGEE_UNLIKELY(perigee__fate_failed(&native->fate)))
    return refuse(native, req, error);
  if (PERIGEE_LIKELY(atomic_compare_exchange_strong(&native->busy, &idle, 1))) {
    if (deadline > atomic_load_explicit(&native->latest_deadline, memory_order_relaxed))
      atomic_store_explicit(&native->latest_deadline, deadline, memory_order_relaxed);
    int rc = execute(native, req, deadline, error);
    give_run(native);
    return rc;
  }
  perigee_work *work;
  int rc = perigee__native_submit_coll(native, req, &work);
  if (rc == 0) {
    rc = perigee_work_wait(work, PERIGEE_TIMEOUT_NONE);
    perigee_work_unref(work);
  }
  if (rc < 0)
    *error = *perigee_last_error();
  return rc;
}

/* ---- works ------------------------------------------------------------------------------------- */

static void op_drive(perigee_work *work, int64_t deadline_ns, const uint32_t *interrupt) {
  native_op *op = PERIGEE_CONTAINER_OF(work, native_op, work);
  perigee__native *native = op->native;
  /* A collective that runs here cannot be left before it ends: a wait that may end earlier leaves it to the progress thread. */
  bool may_run = native->n == 1 || (interrupt == NULL && deadline_ns >= op->deadline_ns);
  if (may_run && take_run(native)) {
    run_queue(native, work);
    give_run(native);
    return;
  }
  if (!may_run && !atomic_load(&op->started)) {
    atomic_store(&native->hurry, true);
    wake_progress(native, true);
  }
  atomic_fetch_add(&native->sleepers, 1);
  uint32_t seen = atomic_load(&native->turn);
  bool stop = interrupt != NULL && __atomic_load_n(interrupt, __ATOMIC_SEQ_CST) != 0;
  uint32_t busy = atomic_load(&native->busy);
  if (!perigee__work_ended(work) && !stop && (!may_run || (busy & 1)))
    perigee__futex_wait(&native->turn, seen, deadline_ns, false);
  atomic_fetch_sub(&native->sleepers, 1);
}

static void op_interrupt(perigee_work *work) {
  wake_turn(PERIGEE_CONTAINER_OF(work, native_op, work)->native);
}

/* Its waiter does not wait for the rest of the queue. */
static void op_ended(perigee_work *work) {
  perigee__native *native = PERIGEE_CONTAINER_OF(work, native_op, work)->native;
  atomic_fetch_sub_explicit(&native->unfinished, 1, memory_order_relaxed);
  wake_turn(native);
}

static void op_abort(perigee_work *work, const perigee_error *reason) {
  perigee__native_fail(PERIGEE_CONTAINER_OF(work, native_op, work)->native, reason);
}

static void op_free(perigee_work *work) {
  native_op *op = PERIGEE_CONTAINER_OF(work, native_op, work);
  if (op->req.redop.kind == PERIGEE_REDOP_CUSTOM && op->req.redop.custom->unref != NULL)
    op->req.redop.custom->unref(op->req.redop.custom);
  perigee__native_unref(op->native);
  free(op);
}

static const perigee__work_ops op_ops = {.drive = op_drive,
                                         .interrupt = op_interrupt,
                                         .ended = op_ended,
                                         .abort = op_abort,
                                         .free = op_free};

/* Its time has come while it stood behind another operation. */
static void op_late(perigee_work *work) {
  native_op *op = PERIGEE_CONTAINER_OF(work, native_op, work);
  if (atomic_load(&op->started))
    return;
  perigee_error error;
  perigee__error_set(&error, PERIGEE_ETIMEDOUT,
                     "timed out after %.1f s behind an operation before it",
                     (double)(op->deadline_ns - work->started_ns) / 1e9);
  perigee__native_sign(op->native, work->op, work->seq, &error);
  perigee__native_fail(op->native, &error);
}

/* The progress thread: sleep as said until progress_word is no longer `seen`, or the deadline. */
static void rest(perigee__native *native, uint32_t how, uint32_t seen, int64_t deadline_ns) {
  atomic_store(&native->progress_sleep, how);
  if (!atomic_load(&native->stopping) && !atomic_load(&native->hurry))
    perigee__futex_wait(&native->progress_word, seen, deadline_ns, false);
  atomic_store(&native->progress_sleep, PERIGEE__NATIVE_AWAKE);
}

/* Leave a new operation to the waiter for a while, unless nobody who waits can run it. */
static void grace(perigee__native *native) {
  int64_t until = perigee__deadline_in(GRACE_NS);
  do {
    uint32_t seen = atomic_load(&native->progress_word);
    rest(native, PERIGEE__NATIVE_NAPS, seen, until);
  } while (!atomic_load(&native->hurry) && !atomic_load(&native->stopping) &&
           !perigee__passed(until));
}

static void *progress_main(void *arg) {
  perigee__native *native = arg;
  int64_t quiet_since = perigee__now_ns(), nap = GRACE_NS;
  uint32_t before = 0;
  while (!atomic_load(&native->stopping)) {
    uint32_t seen = atomic_load(&native->progress_word);
    if (seen != before) /* something was submitted, though it may have been run already */
      quiet_since = perigee__now_ns();
    before = seen;
    if (atomic_load(&native->busy) < 2) { /* nothing queued */
      atomic_store(&native->hurry, false);
      bool linger = perigee__now_ns() - quiet_since < LINGER_NS;
      rest(native, linger ? PERIGEE__NATIVE_NAPS : PERIGEE__NATIVE_SLEEPS, seen,
           linger ? perigee__deadline_in(nap) : PERIGEE_NEVER);
      nap = linger && nap < NAP_MAX_NS ? nap * 2 : nap;
      continue;
    }
    grace(native);
    if (atomic_load(&native->busy) > 1 && take_run(native)) {
      atomic_store(&native->hurry, false);
      run_queue(native, NULL);
      give_run(native);
      nap = GRACE_NS;
    } else if (atomic_load(&native->busy) & 1) {
      /* Somebody runs; give_run bumps the word when it leaves something behind. */
      atomic_store(&native->hurry, false);
      rest(native, PERIGEE__NATIVE_SLEEPS, seen, perigee__deadline_in(RUNNER_NS));
    }
  }
  return NULL;
}

/* Whether what it moves takes longer than handing it to the progress thread. */
static bool is_large(const perigee_request *req) {
  size_t bytes = 0;
  for (uint32_t i = 0; i < req->out.n && bytes < LARGE; i++)
    bytes += perigee_tensor_nbytes(req->out.v[i]);
  for (uint32_t i = 0; i < req->in.n && bytes < LARGE; i++)
    bytes += perigee_tensor_nbytes(req->in.v[i]);
  return bytes >= LARGE;
}

/* Copy of a request that lives as long as its work. */
static int op_create(perigee__native *native, const perigee_request *req, native_op **op_p) {
  size_t nsplits = (size_t)req->n_out_splits + req->n_in_splits;
  native_op *op = malloc(sizeof(*op) + nsplits * sizeof(int64_t));
  if (op == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory for an operation");
  op->deadline_ns = perigee__native_deadline(native, req);
  int rc = perigee__work_init(&op->work, &op_ops, req, op->deadline_ns);
  if (rc < 0) {
    free(op);
    return rc;
  }
  atomic_init(&op->started, false);
  op->native = perigee__native_ref(native);
  op->req = *req;
  op->req.out.v = op->work.pinned;
  op->req.in.v = op->work.pinned != NULL ? op->work.pinned + req->out.n : NULL;
  int64_t *splits = (int64_t *)(op + 1);
  if (req->n_out_splits > 0)
    op->req.out_splits = memcpy(splits, req->out_splits, req->n_out_splits * sizeof(int64_t));
  if (req->n_in_splits > 0)
    op->req.in_splits =
        memcpy(splits + req->n_out_splits, req->in_splits, req->n_in_splits * sizeof(int64_t));
  if (req->redop.kind == PERIGEE_REDOP_CUSTOM && req->redop.custom->ref != NULL)
    req->redop.custom->ref(req->redop.custom);
  *op_p = op;
  return 0;
}

static int start_progress_locked(perigee__native *native) {
  if (native->progress_started)
    return 0;
  /* Deep enough for custom reduce functions, which run Lua. */
  int rc = perigee__thread_start(&native->progress, "pg-progress", (size_t)4 << 20, progress_main,
                                 native);
  if (rc < 0)
    return perigee__fail_errno(-rc, "cannot start the progress thread");
  native->progress_started = true;
  return 0;
}

/* Queue it; under the mutex. */
static int enqueue_locked(perigee__native *native, native_op *op) {
  if (atomic_load(&native->stopping))
    return perigee__fail(PERIGEE_ECLOSED, "the group is closed");
  PERIGEE_TRY(start_progress_locked(native));
  int64_t latest = atomic_load_explicit(&native->latest_deadline, memory_order_relaxed);
  if (op->deadline_ns < latest && atomic_load(&native->busy) != 0)
    PERIGEE_TRY(perigee__deadline_watch(&op->work, op->deadline_ns, op_late));
  else if (op->deadline_ns > latest)
    atomic_store_explicit(&native->latest_deadline, op->deadline_ns, memory_order_relaxed);
  atomic_fetch_add_explicit(&native->unfinished, 1, memory_order_relaxed);
  perigee_work_ref(&op->work); /* the queue's */
  perigee__list_append(&native->queue, &op->node);
  atomic_fetch_add(&native->busy, 2);
  return 0;
}

int perigee__native_submit_coll(perigee__native *native, const perigee_request *req,
                                perigee_work **work_p) {
  if (running == native)
    return perigee__fail(PERIGEE_EDEADLK,
                         "a call on the group whose collective this thread is running");
  if (PERIGEE_UNLIKELY(perigee__fate_failed(&native->fate))) {
    perigee_error error;
    refuse(native, req, &error);
    return perigee__fail_with(&error);
  }
  native_op *op = NULL;
  PERIGEE_TRY(op_create(native, req, &op));
  perigee__lock(&native->mutex);
  int rc = enqueue_locked(native, op);
  perigee__unlock(&native->mutex);
  if (rc < 0) {
    perigee_work_unref(&op->work);
    return rc;
  }
  bool large = native->n > 1 && is_large(req);
  if (large)
    atomic_store(&native->hurry, true);
  wake_progress(native, large);
  *work_p = &op->work;
  return 0;
}

/* Sleep until somebody may have given the right to run back. */
static void await_turn(perigee__native *native) {
  atomic_fetch_add(&native->sleepers, 1);
  uint32_t seen = atomic_load(&native->turn);
  if (atomic_load(&native->busy) & 1)
    perigee__futex_wait(&native->turn, seen, perigee__deadline_in(100 * PERIGEE_NS_PER_MS), false);
  atomic_fetch_sub(&native->sleepers, 1);
}

int perigee__native_alloc(void *self, size_t bytes, uint64_t what, int64_t deadline_ns,
                          perigee__segment **segment_p, void **data_p) {
  perigee__native *native = self;
  perigee_error error;
  if (running == native)
    return perigee__fail(PERIGEE_EDEADLK,
                         "a call on the group whose collective this thread is running");
  while (!take_run(native)) {
    if (perigee__passed(deadline_ns))
      return perigee__fail(PERIGEE_ETIMEDOUT, "timed out behind operations of the group");
    await_turn(native);
  }
  run_queue(native, NULL);
  int rc = perigee__fate_failed(&native->fate)
               ? PERIGEE_EABORTED
               : perigee__coll_alloc(native->coll, bytes, what, deadline_ns, segment_p, data_p);
  give_run(native);
  if (rc == 0 || rc == PERIGEE_ENOSHM)
    return rc;
  if (perigee__fate_failed(&native->fate)) {
    perigee__fate_error(&native->fate, -1, 0, true, &error);
  } else { /* the ranks are not in step any more */
    error = *perigee__last_error();
    perigee__native_sign(native, -1, 0, &error);
    perigee__native_fail(native, &error);
  }
  return perigee__fail_with(&error);
}

void perigee__native_nudge(perigee__native *native) {
  wake_turn(native);
  wake_progress(native, true);
}

void perigee__native_drain(perigee__native *native) {
  atomic_store(&native->stopping, true);
  wake_progress(native, true);
  perigee__lock(&native->mutex);
  bool started = native->progress_started;
  perigee__unlock(&native->mutex);
  if (started)
    pthread_join(native->progress, NULL);
  /* The fate has failed, so whoever runs comes back soon; nothing is queued any more after stopping. */
  while (!take_run(native))
    await_turn(native);
  run_queue(native, NULL); /* each ends at once with the fate's error */
  give_run(native);
}
