/*
 * Work: one asynchronous operation, and the future of its result.
 *
 * States: pending -> done | failed | timed out | aborted. Each work ends exactly once.
 * Design notes
 *  - Who completes it: the layer that made it (the native engine, a script through perigee_future), or the
 *    runtime (deadline, abort, close). The first wins; later completions are ignored and return false.
 *  - What keeps it alive: its references. The maker holds one until it ends; every handle holds one.
 *    It pins the tensors of its request until it ends.
 *  - Waiting drives: perigee_work_wait runs what the work depends on (its group's queue, the I/O loop) on the
 *    calling thread; no other thread is needed for a work that is waited for.
 *  - Callbacks are FIFO and run exactly once, after the state is final, on the thread that ends the work (or, for
 *    a work that has ended, on the thread that registers), with no lock of ours held. They must not block.
 */
#ifndef PERIGEE_WORK_H
#define PERIGEE_WORK_H

#include <stdbool.h>
#include <stdint.h>

#include "error.h"
#include "export.h"
#include "op.h"

typedef struct perigee_work perigee_work;

typedef enum perigee_work_status {
  PERIGEE_WORK_PENDING,
  PERIGEE_WORK_DONE,
  PERIGEE_WORK_FAILED,
  PERIGEE_WORK_TIMEDOUT,
  PERIGEE_WORK_ABORTED
} perigee_work_status;

PERIGEE_API perigee_work *perigee_work_ref(perigee_work *work);
PERIGEE_API void perigee_work_unref(perigee_work *work); /* NULL is accepted; never blocks */

/**
 * Wait until the work has ended, driving it.
 * Units:   timeout_ns: > 0 limit of this wait alone, PERIGEE_TIMEOUT_NONE wait for its own deadline, 0 poll once.
 * Threads: any, also several at once. Locks: none may be held; a Lua host leaves its interpreter first.
 * Errors:  0 done; PERIGEE_EAGAIN: the *wait's* time ran out and the work is still pending; otherwise the work's
 *          own error code (detail: perigee_work_error). EDEADLK when called from a place that must not block.
 */
PERIGEE_API int perigee_work_wait(perigee_work *work, int64_t timeout_ns);

/** As wait, but returns 1 as soon as *interrupt becomes non-zero (it is polled and woken by
 *  perigee_work_interrupt). For hosts that have something else to run while they wait. */
PERIGEE_API int perigee_work_wait_interruptible(perigee_work *work, int64_t timeout_ns,
                                                const uint32_t *interrupt);
/** Wake every thread inside perigee_work_wait_interruptible(work, ...). Any thread, never blocks. */
PERIGEE_API void perigee_work_interrupt(perigee_work *work);

PERIGEE_API perigee_work_status perigee_work_get_status(const perigee_work *work);
PERIGEE_API bool perigee_work_is_completed(const perigee_work *work); /* not pending */
/** "pending" "done" "failed" "timeout" "aborted" */
PERIGEE_API const char *perigee_work_status_name(perigee_work_status status);

/** The error of an ended work, NULL when pending or done. Borrowed from the work. */
PERIGEE_API const perigee_error *perigee_work_error(const perigee_work *work);

PERIGEE_API int perigee_work_op(const perigee_work *work); /* perigee_op, -1 for plain futures */
PERIGEE_API uint64_t perigee_work_seq(const perigee_work *work); /* 0 for plain futures */
PERIGEE_API int
perigee_work_source_rank(const perigee_work *work); /* recv, recv_anysource; else -1 */
/** Output tensors of the request (the in-place list, or outputs row after row). Borrowed. */
PERIGEE_API perigee_tensors perigee_work_outputs(const perigee_work *work);
/** CLOCK_MONOTONIC; of a message that had ended when its submit returned: both about then, up to some ms before. */
PERIGEE_API int64_t perigee_work_started_ns(const perigee_work *work);
PERIGEE_API int64_t perigee_work_finished_ns(const perigee_work *work); /* 0 while pending */

typedef void (*perigee_work_cb)(perigee_work *work, void *arg);
/**
 * Call cb(work, arg) exactly once when the work has ended, whatever its outcome.
 * Threads: registered from any. Runs after the state is final, in the order of registration: on the thread that ends the work (a
 *          waiter, the group's progress thread, the I/O thread, the deadline service, who aborts or closes), or before this
 *          returns when the work has ended. Locks: none of ours is held while it runs.
 * It must be short: a blocking wait in it is EDEADLK. Whoever must not run there defers for himself. For all operations of a group: hook.h.
 * Errors:  EINVAL, ENOMEM; cb is then never called.
 */
PERIGEE_API PERIGEE_MUST_CHECK int perigee_work_on_done(perigee_work *work, perigee_work_cb cb,
                                                        void *arg);

/** End a pending work with EABORTED and this reason; the group of a native operation is aborted with it,
 *  because a collective cannot be canceled on one rank alone. Returns 0 or ESTATE when it has ended. */
PERIGEE_API int perigee_work_abort(perigee_work *work, const char *reason);

/* ---- futures: works that a caller completes ---------------------------------------------------- */

/**
 * A pending work that set_result or set_error ends. depends_on (or NULL) is driven by waits on the new work.
 * req (or NULL) gives op, seq and outputs to pin.
 * deadline_ns: CLOCK_MONOTONIC time after which it ends with ETIMEDOUT by itself; INT64_MAX none.
 */
PERIGEE_API PERIGEE_MUST_CHECK int perigee_future_create(perigee_work *depends_on,
                                                         const perigee_request *req,
                                                         int64_t deadline_ns,
                                                         perigee_work **work_p);
/** Change what waits on a pending future drive (NULL: nothing). */
PERIGEE_API void perigee_future_depend(perigee_work *future, perigee_work *depends_on);
/** End it. Returns true when this call ended it, false when it had ended. */
PERIGEE_API bool perigee_future_set_result(perigee_work *future);
PERIGEE_API bool perigee_future_set_error(perigee_work *future, const perigee_error *error);
/** A slot for the maker's own value; drop(value) is called once when the work is freed or the slot is set anew. */
PERIGEE_API void perigee_work_set_value(perigee_work *work, void *value, void (*drop)(void *value));
PERIGEE_API void *perigee_work_value(const perigee_work *work);

/** A work that has ended already with result 0; shared, static, reference counting is a no-op. */
PERIGEE_API perigee_work *perigee_work_done(void);

#endif
