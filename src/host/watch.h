/*
 * Stopping Lua code that does not come back, and telling where it is.
 *
 * A stint is a stretch of Lua that the runtime started: an override, a callback. It has up to two ends: the operation's deadline (wall
 * time) and the interpreter's time limit (time inside the interpreter; waits do not count). The holder of the mutex publishes the nearer
 * one in interp->holder_deadline_ns. When it passes, the watchdog, a thread that exists once there was a stint with an end, sends SIGURG
 * to the holder. The handler looks at its own thread's records only; there lua_sethook is what the manual allows in a signal
 * handler. The hook then raises ETIMEDOUT at the next instruction: once, then after 50 ms (for `<close>` and pcall handlers that clean
 * up) at every instruction until the stint is over, so that no pcall can go on.
 *
 * Cost: nothing is armed while nobody is late. A stint stores two numbers and reads one.
 *
 * The same signal asks a holder where it is (perigee__spot): a hook answers at the next instruction, or, for a holder that sits in a C
 * function, the handler itself.
 *
 * What cannot be stopped: C functions (string.find with a bad pattern, a host's function), a coroutine that was resumed by something else
 * than `coroutine` of a state of ours or perigee__resume, and threads that block SIGURG.
 */
#ifndef PERIGEE_HOST_WATCH_H
#define PERIGEE_HOST_WATCH_H

#include "host/interp.h"

/* Time that an override has beyond its operation's deadline, to see what it waited for fail and to say so. */
#define PERIGEE__STINT_GRACE_NS (150 * PERIGEE_NS_PER_MS)

typedef struct perigee__stint {
  int64_t op_end_ns, limit_end_ns; /* of the stint around it */
  bool came_late;
  uint8_t strikes;
} perigee__stint;

/** Inside. timeout_ns: of the operation; PERIGEE_TIMEOUT_NONE or PERIGEE_NEVER: no end of that kind. */
void perigee__stint_begin(perigee__lthread *t, int64_t timeout_ns, perigee__stint *stint);
/** Inside. L: where it ran. */
void perigee__stint_end(perigee__lthread *t, lua_State *L, const perigee__stint *stint);
/** When the watchdog looks next; relaxed. */
extern _Atomic int64_t perigee__watch_next_ns;
/** An end before that. */
void perigee__watch_at(int64_t end_ns);

/** What a thread that takes the interpreter (again), or whose stint begins or ends, publishes. Inside. */
static inline void perigee__stint_publish(const perigee__lthread *t) {
  int64_t end = t->op_end_ns < t->limit_end_ns ? t->op_end_ns : t->limit_end_ns;
  atomic_store_explicit(&t->interp->holder_deadline_ns, end, memory_order_relaxed);
  if (PERIGEE_UNLIKELY(end < atomic_load_explicit(&perigee__watch_next_ns, memory_order_relaxed)))
    perigee__watch_at(end);
}
/** In a gap: the interpreter's time does not run. */
static inline int64_t perigee__stint_pause(const perigee__lthread *t) {
  return t->limit_end_ns == PERIGEE_NEVER ? PERIGEE_NEVER : perigee__time_left(t->limit_end_ns);
}
/** The gap is over; the thread holds the interpreter again. */
void perigee__stint_go_on(perigee__lthread *t, int64_t limit_left_ns);

/** Stop whoever holds the interpreter, whatever it runs: the interpreter ends. */
void perigee__watch_evict(perigee_interp *interp);

/** A new interpreter, and one that is about to be freed. */
void perigee__watch_add(perigee_interp *interp);
void perigee__watch_remove(perigee_interp *interp);
/** Deliver SIGURG to this thread, which was started with all signals blocked and runs Lua. */
void perigee__watch_unblock(void);

/** Who holds the interpreter, since when, and where it is: "thread 12 holds it since 1.0 s (barrier of backend 'x', x.lua:3; at x.lua:7)".
 *  ask: the holder for the
 *  line, which takes up to 80 ms when it does not run Lua code. Outside, no lock held. */
void perigee__holder_text(perigee_interp *interp, bool ask, char *text, size_t size);

/** lua_resume of a coroutine that may be stopped and asked. [-?, +?, -] */
int perigee__resume(perigee__lthread *t, lua_State *co, lua_State *from, int nargs, int *nres_p);
/** Make resume and wrap in the global `coroutine` functions that do so. [-0, +0, m] */
PERIGEE_RAISES void perigee__coroutine_install(lua_State *L);

#endif
