/*
 * An operation on the inner layer that is held back until it is known how it is wanted.
 *
 * While a synchronous call runs an override, `self.inner:op(...)` does not submit at once: most overrides return that Work, or one
 * mapped from it, and then the operation can be run to its end on the calling thread, which costs no queue, no other thread and no work.
 * The script cannot tell the difference: whatever it does with the Work (wait, status, on_done, another operation, anything that gives the
 * interpreter up) submits it first, and so does the end of the override.
 *
 * At most one is held back per thread. State: HELD -> (submitted) -> SETTLED, or HELD -> RUNNING -> SETTLED. HELD only while its
 * thread is inside the interpreter; whoever else is inside therefore sees RUNNING or SETTLED.
 * References: the thread until it is settled, and every Work object that stands for it or was mapped from it.
 */
#ifndef PERIGEE_HOST_DEFERRED_H
#define PERIGEE_HOST_DEFERRED_H

#include "host/call.h"
#include "host/lbackend.h"

typedef enum perigee__deferred_state {
  PERIGEE_DEFERRED_HELD,
  PERIGEE_DEFERRED_RUNNING,
  PERIGEE_DEFERRED_SETTLED
} perigee__deferred_state;

/* Something to be attached to the work once there is one; embedded in a callback of map. */
typedef struct perigee__deferred_user {
  struct perigee__deferred_user *next;
  void (*attach)(struct perigee__deferred_user *self, perigee_work *work);
} perigee__deferred_user;

typedef struct perigee__deferred {
  _Atomic uint32_t refs;
  _Atomic uint32_t state; /* release when settled, acquire by who reads `work` */
  perigee__llayer *layer; /* one reference */
  perigee__lthread *runner;
  perigee_request req;
  perigee_tensor *in[2], *out[2]; /* one reference each until settled */
  perigee_work *work;             /* one reference, once settled */
  perigee__deferred_user *users, **users_tail;
} perigee__deferred;

/** Hold the call back, if it is of the kind that can be; NULL otherwise, or when there is no memory. Inside. The caller gets a
 *  reference for its Work object; the thread has its own. */
perigee__deferred *perigee__deferred_create(perigee__lthread *t, perigee__llayer *layer,
                                            const perigee__call *call);
void perigee__deferred_unref(perigee__deferred *d);
/** Inside, right before t comes out: what it holds back is not HELD any more. */
void perigee__deferred_mark(perigee__lthread *t);
/** Submit what t holds back, if anything (after mark). Outside the interpreter (in a gap, or after leave). */
void perigee__deferred_submit(perigee__lthread *t);
/** Run d, which t has given up (t->deferred is NULL), to its end. Outside. Returns its code with the detail in the last error. */
int perigee__deferred_run(perigee__deferred *d);

#endif
