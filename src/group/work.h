/*
 * The inside of a work. What it promises stands in include/perigee/work.h.
 *
 * A kind of work embeds perigee_work as its first member and gives a perigee__work_ops.
 *
 * Thread-safety
 *   state      0 pending, 1 while the winner writes the outcome, then PERIGEE__WORK_FINAL + status.
 *              release by the winner, acquire by readers: whoever sees a final state may read error, source, finished_ns.
 *   bell       futex word of sleepers: changes at the end, at an interrupt and at a new dependency.
 *   waiters    threads that sleep or may sleep on bell. seq_cst against what they look at before they sleep (state, interrupt word,
 *              depends_on): either the waiter sees the change, or the changer sees the waiter and rings.
 *   callbacks, depends_on, value: under mutex.
 *   observers  a stack that the end takes as a whole and marks; release by who pushes, acq_rel by the end.
 *   the rest is immutable after init.
 */
#ifndef PERIGEE_GROUP_WORK_H
#define PERIGEE_GROUP_WORK_H

#include <stdatomic.h>

#include <perigee/work.h>

#include "base/list.h"
#include "base/thread.h"

typedef struct perigee__work_ops {
  /** Make progress on the calling thread until the work has ended, *interrupt (may be NULL) is non-zero, or deadline_ns.
   *  May return early for no reason. NULL: nothing to drive, the waiter sleeps. */
  void (*drive)(perigee_work *work, int64_t deadline_ns, const uint32_t *interrupt);
  /** Make threads inside drive come out: they have something to look at. May be NULL. */
  void (*interrupt)(perigee_work *work);
  /** It has ended: threads inside drive must come out. Called before the callbacks run. May be NULL. */
  void (*ended)(perigee_work *work);
  /** Make the owner end it (abort of its group). NULL: the work is ended directly. */
  void (*abort)(perigee_work *work, const perigee_error *reason);
  /** Refuse a wait that could not end: 0 or an error. Asked before the first look, while it is pending. NULL: never refused. */
  int (*may_wait)(const perigee_work *work);
  /** Free what the kind added, and the memory. NULL: free(work). */
  void (*free)(perigee_work *work);
  /** Instead of free: the last reference is gone and what the work held is let go; its memory may be used again after
   *  perigee__work_renew, or is given back after perigee__work_retire. */
  void (*reuse)(perigee_work *work);
} perigee__work_ops;

typedef struct perigee__work_callback {
  struct perigee__work_callback *next;
  perigee_work_cb cb;
  void *arg;
} perigee__work_callback;

/* Who is told of a work's end besides its callbacks, without an allocation that could fail: the group's hooks. Embedded in the
 * observer's own struct. */
typedef struct perigee__observer {
  struct perigee__observer *next;
  /** The outcome is decided (error NULL: well), waits have not returned yet. */
  void (*ending)(struct perigee__observer *self, const perigee_work *work,
                 const perigee_error *error);
  /** Afterwards: the state is final, the callbacks have run. May free self. */
  void (*ended)(struct perigee__observer *self);
  void *arg;
} perigee__observer;

struct perigee_work {
  _Atomic uint32_t refs; /* acq_rel on release; 0xffffffff: static, never counted */
  _Atomic uint32_t state;
  _Atomic uint32_t bell;
  _Atomic uint32_t waiters;
  int op;
  uint64_t seq;
  const perigee__work_ops *ops;
  int source_rank;
  int64_t started_ns, finished_ns, deadline_ns;
  int64_t
      slack_ns; /* part of deadline_ns that nobody asked for; set before the deadline service knows the work */
  perigee_tensor *
      *pinned; /* tensors of the request: outputs first, then inputs; one reference each */
  perigee_tensor *pinned_one; /* what pinned points to when there is one */
  uint32_t n_pinned;
  perigee_tensors outputs; /* points into pinned */
  perigee_error *error;    /* NULL unless failed */
  perigee_mutex mutex;     /* rank WORK */
  perigee__work_callback *callbacks, **callbacks_tail;
  perigee_work *depends_on; /* one reference, or NULL */
  void *value;
  void (*value_drop)(void *value);
  _Atomic(perigee__observer *) observers; /* newest first; a mark once the end has passed them */
  perigee__observer own;                  /* room for the first observer that brings none */
  _Atomic bool own_taken;
  _Atomic bool
      watched; /* the deadline service has, or may have, it; seq_cst against the final state */
  perigee__node timer; /* in the deadline service's list; under its lock, as on_deadline */
  void (*on_deadline)(perigee_work *work); /* called by the deadline service, once; no lock held */
};

/** Set up the common part with one reference; req (or NULL) gives op, seq and the tensors to pin. ENOMEM. */
int perigee__work_init(perigee_work *work, const perigee__work_ops *ops, const perigee_request *req,
                       int64_t deadline_ns);
/** Undo init of a work that nobody else has seen. */
void perigee__work_fini(perigee_work *work);

/**
 * A work that was made renewable, or that ops->reuse was called for, as if it were new: with so many references, with the one tensor of
 * req (a message) entered but not referenced, and without the times and the deadline. Before anybody else sees it, or before the call that
 * made it returns, the maker calls either of
 *   perigee__work_born_done  it has ended well within that call; nobody else may have seen it
 *   perigee__work_begins     it is under way
 */
void perigee__work_make_renewable(perigee_work *work); /* zeroed memory */
void perigee__work_renew(perigee_work *work, uint32_t refs, const perigee__work_ops *ops,
                         const perigee_request *req);
void perigee__work_begins(perigee_work *work, int64_t deadline_ns);
/** The end of a work that is not to be renewed any more: its memory is the caller's. */
void perigee__work_retire(perigee_work *work);

/** End it: error NULL is success. source_rank: -1 unless a receive. Runs the callbacks. True when this call ended it. */
bool perigee__work_finish(perigee_work *work, const perigee_error *error, int source_rank);

/** A renewed work has ended with success, at about now_ns, before anybody else has seen it: nobody is told. One reference is left, the
 *  caller's. */
void perigee__work_born_done(perigee_work *work, int source_rank, int64_t now_ns);

/** Wake who sleeps on it, after something they look at has changed (seq_cst). Any thread. */
void perigee__work_ring(perigee_work *work);
/** Tell o of the work's end: once, on the thread that ends it, or before this returns when it has ended. No lock may be held. */
void perigee__work_observe(perigee_work *work, perigee__observer *o);
/** The status that ending with this error gives. */
perigee_work_status perigee__work_status_of(const perigee_error *error);

/** Least value of state that is final: this + perigee_work_status. */
enum {
  PERIGEE__WORK_FINAL = 2
};

static inline bool perigee__work_ended(const perigee_work *work) {
  return atomic_load_explicit(&work->state, memory_order_acquire) >= PERIGEE__WORK_FINAL;
}

/** What a work without an engine gets beyond its operation's deadline: what it depends on, or the layers below, have the same deadline
 *  and know better who is missing. */
int64_t perigee__work_slack(perigee_work *work);

/** Take one callback (cb, arg) back. False: it has been called, or is being called. Linear in the work's callbacks. */
bool perigee__work_forget(perigee_work *work, perigee_work_cb cb, const void *arg);

/** Whether waiting for `from` would wait for `to`: it is the same, or depends on it. */
bool perigee__work_reaches(perigee_work *from, const perigee_work *to);
/** Whether nothing but a caller's set_result, set_error or abort can end it: it is pending, and neither it nor what it depends on has an
 *  engine or a deadline. */
bool perigee__work_is_stuck(perigee_work *work);

/** Sleep until the work ends, has something to drive, *interrupt (may be NULL) is non-zero, the deadline passes, or for no reason. */
void perigee__work_sleep(perigee_work *work, int64_t deadline_ns, const uint32_t *interrupt);

/** True while this thread runs callbacks of works or a reduce function of a caller: there a blocking wait is refused. */
bool perigee__work_in_callback(void);
/** Bracket a call of a caller's function that must not wait. */
void perigee__work_callback_enter(void);
void perigee__work_callback_leave(void);

/* ---- deadlines of works nobody waits for (deadline.c) ------------------------------------------ */

/** Call on_deadline(work) at deadline_ns unless the work has ended by then. Holds a reference meanwhile. Again only out of
 *  on_deadline. */
int perigee__deadline_watch(perigee_work *work, int64_t deadline_ns,
                            void (*on_deadline)(perigee_work *work));
/** on_deadline of works that nobody else ends: ends it with ETIMEDOUT. */
void perigee__work_late(perigee_work *work);
/** A work that is watched: not later than deadline_ns. Wakes the service at most; locks may be held. Nothing when it is not there at the
 *  moment: on_deadline may watch it again. */
void perigee__deadline_hurry(perigee_work *work, int64_t deadline_ns);
/** Drop it from the service, if it is there (done by perigee__work_finish). */
void perigee__deadline_forget(perigee_work *work);

#endif
