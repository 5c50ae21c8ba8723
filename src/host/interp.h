/*
 * The inside of an interpreter: who may run Lua, on which lua_State, and what waits to be run.
 *
 * Invariants
 *  - Lua of one state runs only on the thread that holds `mutex`. enter/leave and the gap functions (interp_thread.c) are
 *    the only places that take it and give it up.
 *  - Every OS thread that enters has a record (perigee__lthread) with a Lua thread of its own, anchored in the registry. The
 *    record is found through thread-local storage; Lua threads of OS threads that ended are used again.
 *  - A thread inside Lua that is about to wait opens a gap: it gives the mutex up entirely, whatever its depth, and remembers the
 *    lua_State it came from. Lua that the same OS thread runs meanwhile (a trampoline) uses that lua_State's stack.
 *  - The functions of the module find their interpreter through upvalue 1, a box userdata (a pointer that close sets to
 *    NULL): the extra space of a borrowed state belongs to its owner, and a box is right in coroutines of scripts too.
 *
 * What does not hold with `require "perigee"`: the host's thread is inside from the luaopen on, without having called enter. If
 * the host moves the whole state to another thread, the hold follows it at the first call that waits (adopt).
 *
 * Lock order: mutex (rank INTERP, no other lock may be held), then ready_lock (READY) and records_lock (LEAF) briefly.
 */
#ifndef PERIGEE_HOST_INTERP_H
#define PERIGEE_HOST_INTERP_H

#include <lauxlib.h>
#include <lua.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include <perigee/lua.h>
#include <perigee/work.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/list.h"
#include "base/thread.h"
#include "host/imutex.h"
#include "host/pool.h"

/* Prototypes of functions that may longjmp out by lua_error. */
#define PERIGEE_RAISES

typedef enum perigee__interp_state {
  PERIGEE_INTERP_OPEN,
  PERIGEE_INTERP_CLOSING, /* new entries are refused; gaps still close */
  PERIGEE_INTERP_CLOSED   /* the lua_State is gone, or about to go */
} perigee__interp_state;

/* Ends what threads wait for; set at most once (ltesting.c). */
typedef struct perigee__stop {
  _Atomic uint32_t set; /* futex word; released after the reason, which then stays */
  char reason[240];
} perigee__stop;

/* One OS thread in one interpreter. Fields without a note: the OS thread itself only. */
typedef struct perigee__lthread {
  perigee__node node;            /* in interp->threads; under records_lock */
  struct perigee__lthread *next; /* this OS thread's records */
  uint64_t interp_id;     /* ids are never used again: tells a record of a dead interpreter */
  perigee_interp *interp; /* valid while attached */
  bool attached;          /* the interpreter is open; under records_lock */
  bool orphan;            /* the OS thread has ended; under records_lock */
  lua_State *home;        /* its Lua thread */
  int home_ref;
  lua_State *current; /* where Lua of this thread runs now, when that is not home */
  unsigned depth;     /* enters without leave; 0: does not hold the mutex */
  unsigned gaps;      /* gaps open, one inside the other */
  unsigned callbacks; /* depth of callbacks from the ready queue: no waiting there */
  int tid;
  uint64_t seq;                   /* number of the operation whose override runs, 0 none */
  struct perigee__waiter *waiter; /* the wait this thread is in, innermost */
  /* the stint that runs on it (watch.h); hooked, old_*: what the signal handler has replaced */
  int64_t op_end_ns, limit_end_ns; /* PERIGEE_NEVER: none */
  int64_t cleanup_end_ns;
  bool came_late;  /* it came out of a wait after op_end_ns and has got its respite */
  uint8_t strikes; /* times it was stopped: 0, 1, or 2 for more */
  int old_mask, old_count;
  lua_Hook old_hook;
  lua_State *hooked;
  bool drains_after; /* a script's blocking call runs here, and the ready queue right after it */
  bool drains_next;  /* it runs the ready queue right afterwards: what it queues wakes nobody */
  bool serves;       /* the dispatcher */
  void *defer_for;   /* the layer whose synchronous override runs here, or NULL (deferred.h) */
  struct perigee__deferred *deferred; /* what it holds back; one reference */
  struct perigee__lbatch *batches; /* coalescings it is inside of, innermost first (lcoalesce.c) */
  perigee__stop *stop;             /* ends its waits for works, and its sleep; NULL: nothing does */
  struct perigee__task *task;      /* the task that runs here, innermost (task.h) */
  const perigee_request
      *calling; /* an async function is being called as the override of this request */
} perigee__lthread;

/* What the ready queue holds. It is embedded in the thing to be run. */
typedef struct perigee__ready {
  perigee__node node;
  /** Runs it in the interpreter (may not raise) and frees it. */
  void (*run)(perigee__lthread *t, lua_State *L, struct perigee__ready *self);
  /** The interpreter is closed: frees it without Lua. */
  void (*drop)(struct perigee__ready *self);
  /** It may wait: it runs outside of the one-at-a-time rule, so that what it waits for can run. */
  bool may_wait;
  /** Not NULL: the dispatcher runs it, or this thread while it waits: another one may be a rank that what it waits for needs.
   *  A wait with a limit runs only what ends its own work. Compared only, as is work. */
  const perigee__lthread *owner;
  const perigee_work *work; /* what it ends */
} perigee__ready;

/* A thread that waits for a work and can run the queue meanwhile. On that thread's stack. */
typedef struct perigee__waiter {
  perigee__node node;         /* in interp->waiters; under ready_lock */
  perigee_work *work;         /* the waiting thread holds a reference */
  _Atomic uint32_t interrupt; /* 1: come out; release by who queues, read by the wait */
  bool limited;               /* the script said how long */
  int64_t deadline_ns;
  struct perigee__waiter *outer;
} perigee__waiter;

/* The wait has nothing left to wait for: its thread must not begin, or go on with, what may take long. */
static inline bool perigee__waiter_over(const perigee__waiter *w) {
  return perigee_work_is_completed(w->work) || perigee__passed(w->deadline_ns);
}

/* A registry reference that may be dropped on any thread. */
typedef struct perigee__luaref {
  perigee_interp *interp; /* counted */
  int ref;
  struct perigee__luaref *next; /* in interp->garbage; under ready_lock */
} perigee__luaref;

/* Where the holder of the mutex is, asked by a thread that waits for it (watch.h). Who moves `state` from IDLE owns it until it is IDLE
 * again, except that the holder goes ASK_* -> WRITING -> ANSWERED. */
enum {
  PERIGEE_SPOT_DEPTH = 4
};
typedef enum perigee__spot_state {
  PERIGEE_SPOT_IDLE,
  PERIGEE_SPOT_ASK_HOOK,    /* to be answered at the next instruction of Lua */
  PERIGEE_SPOT_ASK_HANDLER, /* to be answered right away: it does not run Lua instructions */
  PERIGEE_SPOT_WRITING,
  PERIGEE_SPOT_ANSWERED
} perigee__spot_state;
typedef struct perigee__spot {
  _Atomic uint32_t state;
  int n;
  struct {
    char file[LUA_IDSIZE];
    int line;
  } at[PERIGEE_SPOT_DEPTH]; /* Lua frames, innermost first */
} perigee__spot;

struct perigee_interp {
  _Atomic uint32_t refs;
  uint64_t id;
  unsigned fork_generation;
  bool owned;
  perigee__imutex mutex;
  _Atomic uint32_t state; /* perigee__interp_state; written under mutex */

  /* under mutex */
  lua_State *main;    /* the state's main thread; NULL once closed */
  lua_State *service; /* a Lua thread for short steps that must not raise and have no other stack */
  int service_ref;
  bool draining;           /* somebody runs the ready queue */
  perigee__node tasks;     /* all that have not ended (task.h) */
  perigee__node callbacks; /* of map and on_done, that wait for their works */
  int64_t tensor_debt;     /* bytes of tensors made since the collector was told */
  struct perigee__place *places;
  char last_backend[64];      /* name of the backend registered last */
  perigee__lthread *implicit; /* who is inside since luaopen without an enter, or NULL */

  /* who holds the mutex: written by the holder, read by whoever reports a long wait; relaxed, for people only */
  _Atomic int holder_tid;
  _Atomic int64_t holder_since_ns;
  _Atomic(const char *) holder_place; /* static, or from perigee__interp_place */
  /* when the holder is to be stopped; written by the holder, read by the watchdog and the signal handler; relaxed (watch.c) */
  _Atomic int64_t holder_deadline_ns;
  _Atomic bool evict; /* the interpreter ends: whoever holds it is to be stopped; relaxed */
  _Atomic int64_t time_limit_ns, enter_timeout_ns; /* relaxed settings */
  perigee__node watched;                           /* in the watchdog's list, under its lock */
  perigee__spot spot;

  /* under records_lock */
  perigee__node threads;

  /* under ready_lock */
  perigee_mutex ready_lock;
  perigee__node ready;
  perigee__node waiters;
  perigee__luaref *garbage;
  bool dispatcher_started;
  pthread_t dispatcher;
  int event_fd;   /* what a foreign loop polls (pollfd.c), -1 until somebody asks for it */
  bool event_set; /* it is readable */
  bool
      event_hushed; /* it stays unreadable although there are items: the thread that runs them has not come back */
  unsigned wanting; /* threads that wait for the mutex while `loop_inside` */

  _Atomic uint32_t ready_count; /* items in ready; relaxed hint outside the lock */
  uint32_t ready_owned;         /* of them, those with an owner; under ready_lock */
  _Atomic uint32_t has_garbage; /* relaxed hint */
  _Atomic bool driven;          /* a foreign loop polls event_fd: the dispatcher rests; relaxed */
  _Atomic bool loop_inside;     /* that loop's thread sleeps with the mutex held; relaxed */
  _Atomic uint32_t
      dispatch; /* futex word of the dispatcher: bumped when there is work for it (seq_cst) */
  _Atomic uint32_t stop;     /* the dispatcher ends */
  _Atomic uint32_t inside;   /* OS threads inside or in a gap; futex word of close */
  _Atomic int64_t live_refs; /* registry references, relaxed */
  _Atomic int64_t live_threads;
  _Atomic int64_t memory_used;
  size_t memory_limit;
  perigee__pool pool; /* of an owned state; under mutex */
};

/* ---- life (interp.c) ---------------------------------------------------------------------------- */

void perigee__interp_ref(perigee_interp *interp);
void perigee__interp_unref(perigee_interp *interp);
/** [-0, +0, m] The interpreter of L, made on first use: the calling thread is then inside. Raises when L is closing. */
PERIGEE_RAISES perigee_interp *perigee__interp_of_state(lua_State *L);
/** [-0, +0, -] The interpreter of L, or NULL when it has none or is closed; needs one stack slot. */
perigee_interp *perigee__interp_peek(lua_State *L);
/** Close order of the host, up to and without lua_close. Inside, as the outermost thread. Idempotent. */
void perigee__interp_shutdown(perigee_interp *interp, perigee__lthread *t);
/** [-0, +1, -] Push the box that the module's functions have as upvalue 1. */
void perigee__interp_push_box(lua_State *L);
/** Keep a text as long as the interpreter struct lives (for holder_place); NULL when there is no memory. */
const char *perigee__interp_place(perigee_interp *interp, const char *text);

typedef struct perigee__interp_box {
  perigee_interp *interp; /* one reference; NULL once closed */
} perigee__interp_box;

/** In a C function of the module: its interpreter. Raises ELUASTATE once closed. [-0, +0, e] */
PERIGEE_RAISES perigee_interp *perigee__interp_closed(lua_State *L);
static inline perigee_interp *perigee__interp_here(lua_State *L) {
  perigee__interp_box *box = lua_touserdata(L, lua_upvalueindex(1));
  return PERIGEE_LIKELY(box->interp != NULL) ? box->interp : perigee__interp_closed(L);
}

/* ---- threads (interp_thread.c) ------------------------------------------------------------------ */

/** This thread's first record; `next` leads to the others. For the thread itself, also in a signal handler. */
perigee__lthread *perigee__lthread_mine(void);
/** This thread's record, NULL when it has none. */
perigee__lthread *perigee__lthread_find(const perigee_interp *interp);
/** Take the interpreter. timeout_ns: ETIMEDOUT when that passes first (PERIGEE_NEVER: no limit). ELUASTATE, EFORKED, ENOMEM. place: what the thread
 *  is about to do, for reports (static or from perigee__interp_place). quiet: a long wait is normal. */
int perigee__enter(perigee_interp *interp, int64_t timeout_ns, const char *place, bool quiet,
                   perigee__lthread **t_p);
void perigee__leave(perigee_interp *interp, perigee__lthread *t);
/** How long calls wait for the interpreter that have no deadline of their own. */
static inline int64_t perigee__enter_timeout(perigee_interp *interp) {
  return atomic_load_explicit(&interp->enter_timeout_ns, memory_order_relaxed);
}
/** The lua_State that Lua of this thread may use now. */
static inline lua_State *perigee__lthread_state(const perigee__lthread *t) {
  return t->current != NULL ? t->current : t->home;
}

/** EABORTED with the reason when t's stop is set, else 0. */
int perigee__lthread_stopped(const perigee__lthread *t);
/** Outside (in a gap of t's thread): sleep so long. EABORTED as soon as t's stop is set. */
int perigee__lthread_sleep(perigee__lthread *t, int64_t ns);

/** A stretch in which a thread that is inside has given the interpreter up. */
typedef struct perigee__gap {
  perigee__lthread *t;
  int64_t limit_left_ns; /* of the stint; waiting does not count */
  lua_State *before;
  const char *place;
  unsigned depth;
} perigee__gap;
/** L: the lua_State of the C function that waits. Nothing in a gap may touch L or raise. Raises (before the gap) when this
 *  thread cannot be the one that runs L. */
PERIGEE_RAISES void perigee__gap_open(perigee_interp *interp, lua_State *L, perigee__gap *gap);
void perigee__gap_close(perigee_interp *interp, perigee__gap *gap);
/** The record of the thread that runs L now; adopts the hold of a borrowed state that moved. Raises EFORKED, ENOMEM. */
PERIGEE_RAISES perigee__lthread *perigee__lthread_here(perigee_interp *interp, lua_State *L);
/** The thread that runs L for the first time is inside from now on (luaopen). 0, ENOMEM. Does not raise. */
int perigee__adopt_first(perigee_interp *interp, lua_State *L);
/** The record of the thread that runs L now, also when it cannot be adopted (NULL). Does not raise. */
perigee__lthread *perigee__lthread_try(perigee_interp *interp, lua_State *L);
/** The interpreter closes: detach all records. Inside. */
void perigee__lthreads_detach(perigee_interp *interp);
/** Counts forks that this process came out of as the child. */
unsigned perigee__fork_generation(void);

/** Run body(L) with argument `arg` (a light userdata at index 1) protected; L: of a thread that is inside. Never raises.
 *  Returns 0, or the code with *error_p filled (message, traceback). The stack is as before. */
int perigee__protect(lua_State *L, lua_CFunction body, void *arg, perigee_error *error_p);

/* ---- references (ref.c) -------------------------------------------------------------------------- */

/** [-1, +0, m] Reference to the value on top of the stack. */
PERIGEE_RAISES int perigee__ref(perigee_interp *interp, lua_State *L);
/** [-0, +0, -] Inside. LUA_NOREF and LUA_REFNIL are accepted. */
void perigee__unref(perigee_interp *interp, int ref);
/** [-1, +0, m] The same as an object that any thread may drop. */
PERIGEE_RAISES perigee__luaref *perigee__luaref_create(perigee_interp *interp, lua_State *L);
/** Any thread, inside or not; never blocks. NULL is accepted. The slot is freed by whoever enters next. */
void perigee__luaref_drop(void *luaref);
/** Inside: free what was dropped. */
void perigee__garbage_free(perigee_interp *interp);

/* ---- what waits to be run (ready.c) --------------------------------------------------------------- */

/** Any thread, no lock held: append, and see that somebody runs it: a thread that waits in this interpreter, or the dispatcher. */
void perigee__ready_push(perigee_interp *interp, perigee__ready *item);
/** As push, by a thread that runs the queue right afterwards: nobody is woken for it. */
void perigee__ready_push_own(perigee_interp *interp, perigee__lthread *t, perigee__ready *item);
/** Inside: run everything that is ready and for this thread, oldest first. False when nothing was or somebody else is at it. */
bool perigee__ready_drain(perigee_interp *interp, perigee__lthread *t, lua_State *L);
/** As drain, at most `limit` items; returns how many. */
size_t perigee__ready_run(perigee_interp *interp, perigee__lthread *t, lua_State *L, size_t limit);
/** Whoever is to run the queue hears of it when `interp` has ceased to be driven by a loop. No lock held. */
void perigee__ready_announce(perigee_interp *interp);
/** The interpreter closes: stop the dispatcher and wait that long for it (the mutex must not be held). */
void perigee__dispatcher_stop(perigee_interp *interp, int64_t wait_ns);
/** Drop everything that is queued. */
void perigee__ready_drop_all(perigee_interp *interp);
/** Wake every thread that waits in this interpreter. */
void perigee__waiters_wake(perigee_interp *interp);

/**
 * Wait for a work, running the ready queue when there is something in it.
 * L: the lua_State of the C function that waits, which is inside: gives the interpreter up meanwhile; NULL: the thread is outside.
 * Returns as perigee_work_wait: 0, EAGAIN, the work's error; EDEADLK in a callback; ECLOSED when the interpreter closes.
 */
int perigee__host_wait(perigee_interp *interp, lua_State *L, perigee_work *work,
                       int64_t timeout_ns);
/**
 * Inside, L as for host_wait: run what is ready (a bounded number); when nothing is, wait up to timeout_ns for something.
 * EDEADLK: waiting in a callback. ECLOSED.
 */
int perigee__host_step(perigee_interp *interp, lua_State *L, int64_t timeout_ns, size_t *ran_p);

/* ---- a loop of somebody else (pollfd.c) ----------------------------------------------------------- */

/** ready_lock held: make event_fd readable or not, as the queue and the waiting threads want it. */
void perigee__pollfd_update_locked(perigee_interp *interp);
/** Inside: what is in the queue is being run already, so event_fd does not tell of it until that ends. */
void perigee__pollfd_hush(perigee_interp *interp);
void perigee__pollfd_unhush(perigee_interp *interp);
/** Any thread, no lock held: it waits for the mutex (more) or has it (not more), while `loop_inside`. */
void perigee__pollfd_want(perigee_interp *interp, bool more);
/** Inside: let threads in that wait for the mutex. */
PERIGEE_RAISES void perigee__pollfd_let_in(perigee_interp *interp, lua_State *L);
/** What perigee.pollfd and perigee_interp_pollfd do. inside: the loop's thread keeps the mutex while it sleeps. */
int perigee__pollfd_open(perigee_interp *interp, bool inside, int *fd_p);

#endif
