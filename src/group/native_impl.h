/* What the files of native share. See native.h for how collectives are ordered and who runs them. */
#ifndef PERIGEE_GROUP_NATIVE_IMPL_H
#define PERIGEE_GROUP_NATIVE_IMPL_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/clock.h"
#include "coll/coll.h"
#include "group/group.h"
#include "group/native.h"
#include "group/work.h"
#include "transport/mesh.h"

/**
 * State of one native layer. Counted by the layer and by its works, so that a thread that still waits for a work of a closed group
 * finds it. What close takes down is touched
 *   coll        only with the right to run (after close the queue is empty)
 *   mesh, fate  only with the right to run, inside a call of the group (which close waits for), or between
 *               perigee__native_mesh_enter and _leave
 */
typedef struct perigee__native {
  _Atomic uint32_t refs;
  int rank, n;
  char name[64];
  perigee__mesh *mesh; /* the world's; NULL when the group has one rank */
  perigee__fate fate;
  perigee__coll *coll;
  _Atomic int64_t timeout_ns;

  _Atomic uint32_t busy;           /* native.h */
  _Atomic uint32_t turn;           /* native.h */
  _Atomic uint32_t sleepers;       /* native.h */
  perigee_mutex mutex;             /* rank QUEUE: queue, progress_started */
  perigee__node queue;             /* native_op.node, oldest first */
  uint64_t coll_seq;               /* with the right to run */
  perigee__block *blocks;          /* 2n, with the right to run: outputs, inputs */
  size_t *counts;                  /* n, with the right to run */
  uint64_t *seen;                  /* n, with the right to run */
  _Atomic uint32_t unfinished;     /* works that have not ended; relaxed: shutdown polls it */
  _Atomic int64_t latest_deadline; /* of any collective so far; relaxed */

  bool progress_started;
  pthread_t progress;
  _Atomic uint32_t
      progress_word; /* futex word of the progress thread: bumped by who has something for it */
  _Atomic uint32_t progress_sleep; /* perigee__native_sleep; seq_cst with progress_word and hurry */
  _Atomic bool hurry;              /* somebody waits for the progress thread: no grace */
  _Atomic bool stopping;           /* seq_cst: set by close before it looks at mesh_users */
  _Atomic uint32_t mesh_users;     /* seq_cst: raised before the look at stopping */
} perigee__native;

/** How the progress thread sleeps, and so who must wake it. */
enum {
  PERIGEE__NATIVE_AWAKE,
  PERIGEE__NATIVE_NAPS,  /* looks again soon: woken only for what is urgent */
  PERIGEE__NATIVE_SLEEPS /* woken for everything */
};

perigee__native *perigee__native_ref(perigee__native *native);
void perigee__native_unref(perigee__native *native);

/** False when the group is being closed: then every message ends soon, and the mesh must not be touched. */
static inline bool perigee__native_mesh_enter(perigee__native *native) {
  atomic_fetch_add(&native->mesh_users, 1);
  if (native->mesh != NULL && !atomic_load(&native->stopping))
    return true;
  atomic_fetch_sub(&native->mesh_users, 1);
  return false;
}
static inline void perigee__native_mesh_leave(perigee__native *native) {
  atomic_fetch_sub(&native->mesh_users, 1);
}

/** Fail the group on all ranks. */
void perigee__native_fail(perigee__native *native, const perigee_error *error);
/** Fill in whose error it is. Returns its code. */
int perigee__native_sign(const perigee__native *native, int op, uint64_t seq, perigee_error *error);

/** Run one collective request to its end; the caller has the right to run. (native_call.c) */
int perigee__native_execute(perigee__native *native, const perigee_request *req,
                            int64_t deadline_ns, perigee_error *error);

/** Collectives: queue a work; run at once on this thread. (native_queue.c) */
int perigee__native_submit_coll(perigee__native *native, const perigee_request *req,
                                perigee_work **work_p);
int perigee__native_run_coll(perigee__native *native, const perigee_request *req,
                             perigee_error *error);
/** End everything queued with the fate's error and stop the progress thread. The fate has failed. Waits for who runs now. */
void perigee__native_drain(perigee__native *native);
/** Make sure that somebody finds out that the fate has failed. */
void perigee__native_nudge(perigee__native *native);

/** Messages. (native_p2p.c) */
int perigee__native_submit_p2p(perigee__native *native, const perigee_request *req,
                               perigee_work **work_p);
int perigee__native_run_p2p(perigee__native *native, const perigee_request *req,
                            perigee_error *error);

static inline int64_t perigee__native_timeout(const perigee__native *native,
                                              const perigee_request *req) {
  return req->timeout_ns == PERIGEE_TIMEOUT_DEFAULT
             ? atomic_load_explicit(&native->timeout_ns, memory_order_relaxed)
             : req->timeout_ns;
}

/** Deadline of a request made now. */
static inline int64_t perigee__native_deadline(const perigee__native *native,
                                               const perigee_request *req) {
  return perigee__deadline_about(perigee__native_timeout(native, req));
}

#endif
