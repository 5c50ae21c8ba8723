/*
 * Tasks: coroutines of the runtime, in which a wait yields instead of blocking (perigee.async).
 *
 * Invariants
 *  - A task runs, sleeps, or is in the interpreter's ready queue. `asleep` tells which: the number of the wait it sleeps in, 0
 *    otherwise. Who changes it from a number to 0 puts the task into the queue, so it is there at most once.
 *  - A wait of a task yields only in the task's own coroutine and only where Lua can yield. Everywhere else (a coroutine of the script,
 *    a comparator of table.sort, a metamethod called from C) waits block as they do outside of tasks.
 *  - Only the queue resumes a task: a yield that is not one of its waits ends it with an error, and a resume by the script raises inside it.
 *  - The outcome is a work that anybody may end first (abort, deadline, close of its group). The task is told: the wait it is
 *    in, or the next one, raises that error, once.
 *  - The work depends on what the task waits for: who waits for a task drives that.
 *
 * A task may go on on another OS thread each time. Fields are under the interpreter's mutex unless noted.
 */
#ifndef PERIGEE_HOST_TASK_H
#define PERIGEE_HOST_TASK_H

#include "host/interp.h"

/* perigee.run: what its tasks have in common. On the stack of the thread that runs it. */
typedef struct perigee__task_run {
  struct perigee__task **failed; /* tasks that failed, one reference each */
  size_t n_failed, room;
  uint64_t resumes; /* changes whenever one of the tasks goes on */
} perigee__task_run;

typedef struct perigee__task {
  perigee__ready ready;    /* the queue holds a reference */
  perigee__node node;      /* in interp->tasks until it has ended; that list holds a reference */
  _Atomic uint32_t refs;   /* acq_rel on release */
  _Atomic uint32_t asleep; /* seq_cst: see perigee__task_wait */
  perigee_interp *interp;  /* counted */
  perigee_work *work;      /* its outcome; one reference */
  perigee_work *turn; /* of ordered ones: ends when the task has ended; one reference, or NULL */
  lua_State *co;      /* NULL once it has ended */
  int co_ref, follow_ref; /* follow: the Work object whose outcome becomes the task's */
  lua_State *maker;       /* who starts it, until its first wait; else NULL */
  int nargs;              /* on the stack of co, before the start */
  uint32_t waits;         /* number of the newest wait */
  uint64_t seq;           /* of the operation whose override started it */
  perigee_work *awaited;  /* while it sleeps: one reference */
  perigee_work *timer;    /* while it sleeps: limit of the wait, or NULL */
  struct perigee__waker
      *wakers[2];         /* while it sleeps: callbacks of awaited and timer; one reference each */
  perigee__task_run *run; /* the perigee.run it belongs to, or NULL */
  int values_ref;         /* main of perigee.run: table of what it returned */
  bool is_main, started;
  bool yields;  /* it is about to yield in a wait of its own */
  bool resumed; /* the queue has resumed it, and the wait has not looked yet */
  bool
      straight; /* its caller waits: works that an engine runs are waited for right here, without a yield */
  bool told; /* that its work was ended by somebody else */
  bool seen; /* somebody asked for its outcome, or will not */
} perigee__task;

/** Make a task of the function and the nargs arguments on top of the stack; it is not started. req: the operation it stands for, or NULL.
 *  Leaves the Work object. [-(nargs + 1), +1, e] */
PERIGEE_RAISES perigee__task *perigee__task_create(lua_State *L, perigee__lthread *t, int nargs,
                                                   const perigee_request *req);
/** Run it on this thread up to its first wait. Does not raise. */
void perigee__task_start(perigee__lthread *t, lua_State *L, perigee__task *task);
/** Start it once `before`, the turn of another task, has ended. A task whose work is ended meanwhile keeps its place. [-0, +0, e] */
PERIGEE_RAISES void perigee__task_start_after(lua_State *L, perigee__task *task,
                                              perigee_work *before);
void perigee__task_unref(perigee__task *task); /* NULL is accepted */

/** The task whose coroutine is L, if L can yield; NULL: a wait on L blocks. */
static inline perigee__task *perigee__task_here(const perigee__lthread *t, lua_State *L) {
  perigee__task *task = t->task;
  return PERIGEE_UNLIKELY(task != NULL) && task->co == L && lua_isyieldable(L) ? task : NULL;
}
/** Sleep until the work has ended or the wait's time is over, then go on in k, which calls perigee__task_woken first.
 *  Returns what the calling C function returns. [-0, +0, e] */
PERIGEE_RAISES int perigee__task_wait(lua_State *L, perigee__task *task, perigee_work *work,
                                      int64_t timeout_ns, lua_KContext ctx, lua_KFunction k);
/** The same for a time alone. */
PERIGEE_RAISES int perigee__task_sleep(lua_State *L, perigee__task *task, int64_t ns,
                                       lua_KContext ctx, lua_KFunction k);
/** In a continuation: raise when it is not the queue that resumed, or when the task's work was ended meanwhile. [-0, +0, e] */
PERIGEE_RAISES void perigee__task_woken(lua_State *L);

/** End a task that sleeps, closing its coroutine; its work gets *error if it has not ended. Does not raise. */
void perigee__task_close(perigee__lthread *t, perigee__task *task, const perigee_error *error);
/** The interpreter closes: the same for all tasks. Inside. */
void perigee__tasks_close(perigee_interp *interp, perigee__lthread *t);

#endif
