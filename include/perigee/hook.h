/*
 * Hooks: what happens on a group, told to whoever asks.
 *
 * A hook sees the operations that begin after it was registered: those that callers start on the group (perigee_group_run,
 * perigee_group_submit and what is built on them). What a layer issues below itself is part of the operation it handles.
 * Design notes
 *  - Each operation has one START, then any number of STALLs, then exactly one DONE or ERROR, in this order. STARTs come in the
 *    order of the operations' numbers, ends in the order in which the runtime saw them. A call that is refused before it gets
 *    a number (bad arguments) has a single ERROR with seq 0. A call refused with ECLOSED or EDEADLK has no event.
 *  - Events of one group are delivered one at a time, hooks in the order of their registration, with no lock held.
 *  - Threads: a hook runs on any thread that begins or ends an operation of the group: a caller, the group's progress thread,
 *    the I/O thread, the deadline service. So it must be short, and must not wait: a blocking call in it is EDEADLK. It may submit
 *    operations (which have events of their own), remove hooks, register others, abort or close the group.
 *  - A hook cannot change the outcome of an operation.
 *  - A work's end is delivered before waits for that work return, unless another thread is delivering at that moment.
 *  - Cost: a group without hooks: one relaxed load and a branch for each operation. With hooks: one allocation and about
 *    0.5 us for each operation, beside the hooks themselves.
 *  - Close: ends what is pending, delivers all that has ended, then drops the hooks. None is called afterwards. Hooks are not
 *    inherited by subgroups.
 */
#ifndef PERIGEE_HOOK_H
#define PERIGEE_HOOK_H

#include <stdint.h>

#include "error.h"
#include "export.h"
#include "group.h"
#include "work.h"

enum {                          /* kinds of events, as bits */
  PERIGEE_EVENT_START = 1 << 0, /* an operation was accepted */
  PERIGEE_EVENT_DONE = 1 << 1,  /* it succeeded */
  PERIGEE_EVENT_ERROR = 1 << 2, /* it failed, timed out, was aborted, or was refused */
  PERIGEE_EVENT_STALL = 1 << 3, /* it has been under way for longer than the hook's limit */
  PERIGEE_EVENT_ABORT =
      1 << 4, /* the group was aborted or has failed: once, with the first cause */
  PERIGEE_EVENT_ALL = (1 << 5) - 1
};

/** What happened. Borrowed by the hook for the time of its call, with all it points to. */
typedef struct perigee_event {
  uint32_t size;           /* sizeof(perigee_event): room for growth */
  unsigned kind;           /* one PERIGEE_EVENT_* bit */
  int op;                  /* perigee_op; -1: ABORT that no operation caused */
  const char *op_name;     /* "allreduce"; "" when op is -1 */
  uint64_t seq;            /* the operation's number on its group; 0: refused, or none */
  const char *group;       /* name */
  int rank, nranks;        /* of the group */
  int peer;                /* dst of send, src of recv; -1 none */
  bool async;              /* the caller got a work for it */
  int64_t time_started;    /* ns, CLOCK_MONOTONIC: when it was accepted */
  int64_t time_finished;   /* the same, when it ended; 0: START, STALL */
  int64_t active_duration; /* ns: between the two, at least 1; STALL: so far; START, ABORT: 0 */
  uint64_t bytes;          /* of this rank's inputs; where there are none, of its outputs */
  perigee_work_status status;
  const perigee_error *error; /* ERROR, ABORT; else NULL */
} perigee_event;

typedef struct perigee_hook perigee_hook;
typedef void (*perigee_hook_cb)(const perigee_event *event, void *arg);

typedef struct perigee_hook_options {
  uint32_t size;
  int64_t after_ns; /* STALL: the limit; <= 0: 2 s */
  /** Called once with the hook's arg when it will not be called any more: removed, and not inside a call, or the group is closed.
   *  Any thread, no lock held; must not wait. NULL: nothing to do. */
  void (*drop)(void *arg);
} perigee_hook_options;

/** All defaults. */
PERIGEE_API void perigee_hook_options_init(perigee_hook_options *opts);

/** "start" "done" "error" "stall" "abort"; "?" when kind is not one bit of them. Static memory. */
PERIGEE_API const char *perigee_event_name(unsigned kind);

/**
 * Call cb(event, arg) for these kinds of events (PERIGEE_EVENT_* bits). The same cb may be registered any number of times.
 * Owns:    *hook_p (NULL: not wanted) returned owned, end it with perigee_hook_unref. The hook itself stays with the group until it is
 *          removed or the group closes. opts (or NULL) is borrowed.
 * Threads: any, also from hooks.
 * Errors:  EINVAL, ENOMEM, ECLOSED; ELIMIT or -errno for STALL and ABORT when the service behind them cannot be started. Then drop
 *          is not called.
 */
PERIGEE_API PERIGEE_MUST_CHECK int perigee_group_on(perigee_group *group, unsigned events,
                                                    perigee_hook_cb cb, void *arg,
                                                    const perigee_hook_options *opts,
                                                    perigee_hook **hook_p);
/** No call of the hook begins after this has returned (one on another thread may be under way: see drop). Idempotent, never
 *  waits, any thread, also from the hook itself and after the group's end. The caller keeps its reference. */
PERIGEE_API void perigee_hook_remove(perigee_hook *hook);
/** Give up a reference; the hook stays registered. NULL is accepted. */
PERIGEE_API void perigee_hook_unref(perigee_hook *hook);

/**
 * Wait until no operation of the group is under way and every hook that was due has returned. Counts all works, and the blocking
 * calls of other threads that began while the group had hooks. What a hook submits counts as well.
 * Units: timeout_ns: > 0, or PERIGEE_TIMEOUT_NONE (operations end by their own deadlines).
 * Waits. Errors: EAGAIN when the time ran out; EDEADLK in a hook or callback, and inside an operation of the group (a layer). Errors of operations are none of its own.
 */
PERIGEE_API PERIGEE_MUST_CHECK int perigee_group_wait_for_pending_works(perigee_group *group,
                                                                        int64_t timeout_ns);

#endif
