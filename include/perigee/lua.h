/*
 * Embedding: Lua interpreters that run scripted backends for a C program.
 *
 * An interpreter is a lua_State and the one mutex that guards it. Any number of interpreters run in parallel in one process;
 * within one, threads take turns. There are two ways to have one:
 *   - perigee_interp_create: the library owns the state (memory cap, chosen libraries, text chunks only).
 *   - perigee_interp_borrow: the program owns the state. `require "perigee"` in a stock lua5.4 does the same by itself.
 *
 * Turns
 *   A thread enters with perigee_interp_enter, which returns this OS thread's own Lua thread of the state, and leaves with
 *   perigee_interp_leave. Entering again on the same thread nests. While it is inside, no other thread runs Lua. Collectives
 *   called from Lua give the interpreter up while they wait and take it back before they return.
 *   Never wait for another rank or thread in C while inside: leave first.
 *   A C function that Lua calls is inside, too. If it takes a lock of the program, and another thread holds that lock and calls an
 *   operation with an override, each waits for the other: the operation then ends at its deadline with ETIMEDOUT and a message that
 *   names the thread inside, the override it runs and the Lua line it is at. The same line is logged after 1 s.
 *
 * Threads
 *   Any thread may call any operation of any group, scripted or not, also several threads on one group (in an order that is the same on
 *   all ranks, as on any process group). A thread's Lua stack is made at its first call and used again when the thread has ended.
 *   Callbacks from C: perigee_work_on_done.
 *
 * Scripts that do not come back: perigee_interp_set_time_limit.
 *
 * A backend written in Lua
 *   perigee_interp *interp;
 *   perigee_interp_create(NULL, &interp);
 *   perigee_interp_load_backend(interp, "fp16.lua", "fp16");
 *   perigee_init_options opts;
 *   perigee_init_options_init(&opts);
 *   opts.backend = "fp16(native)";
 *   perigee_group *group;
 *   perigee_init(&opts, &group);
 *   perigee_allreduce(group, tensor, PERIGEE_REDOP_SUM);    from any thread; the override runs in the interpreter
 *   perigee_group_close(group);
 *   perigee_group_unref(group);
 *   perigee_interp_destroy(&interp);
 * An override that raises fails its operation with PERIGEE_ELUA, the message and the Lua traceback (perigee_last_error()).
 *
 * The end: close the groups first, then destroy the interpreter (or lua_close a borrowed state). What still comes from C
 * afterwards is answered with PERIGEE_ELUASTATE; nothing waits for Lua any more. An interpreter is not usable in a forked
 * child (PERIGEE_EFORKED).
 */
#ifndef PERIGEE_LUA_H
#define PERIGEE_LUA_H

#include <stddef.h>
#include <stdint.h>

#include <lua.h>

#include "error.h"
#include "export.h"
#include "op.h"

typedef struct perigee_interp perigee_interp;

enum { /* libraries of an owned state; coroutine, string, table, math and utf8 are always there */
  PERIGEE_LUA_PACKAGE =
      1 << 0, /* require: text files by package.path, C modules by package.cpath */
  PERIGEE_LUA_IO = 1 << 1,
  PERIGEE_LUA_OS = 1 << 2,
  PERIGEE_LUA_DEBUG = 1 << 3,
  PERIGEE_LUA_ALL = 0xf
};

typedef struct perigee_interp_options {
  uint32_t size;
  size_t
      memory_limit; /* bytes of Lua objects, tensors not counted; 0: none. Beyond it scripts get "not enough memory" */
  unsigned libs;            /* PERIGEE_LUA_* bits; default all */
  int64_t time_limit_ns;    /* perigee_interp_set_time_limit; 0: none */
  int64_t enter_timeout_ns; /* perigee_interp_set_enter_timeout; default PERIGEE_TIMEOUT_DEFAULT */
} perigee_interp_options;

/** All defaults. */
PERIGEE_API void perigee_interp_options_init(perigee_interp_options *opts);

/**
 * A new state. load, loadfile, dofile and require take text only: precompiled chunks are refused.
 * require "perigee" finds perigee/init.lua by package.path, or else the part of it that is written in C.
 * Owns:    *interp_p: returned owned; the calling thread is not inside.
 * Errors:  EINVAL, ENOMEM (also: memory_limit too small to open the libraries).
 */
PERIGEE_API PERIGEE_MUST_CHECK int perigee_interp_create(const perigee_interp_options *opts,
                                                         perigee_interp **interp_p);

/**
 * The interpreter of a state that the program made. The calling thread must be the one that runs Lua on it.
 * Owns:    L: stays the program's, which closes it (lua_close ends the interpreter). *interp_p: returned owned; destroy drops
 *          the handle alone.
 * Threads: the calling thread is inside when this returns (as after enter): it calls perigee_interp_leave when it stops running
 *          Lua and enter when it goes on, if other threads are to run Lua in between.
 * Errors:  ENOMEM, ELUASTATE (L is being closed).
 */
PERIGEE_API PERIGEE_MUST_CHECK int perigee_interp_borrow(lua_State *L, perigee_interp **interp_p);

/**
 * End an owned interpreter, or drop the handle of a borrowed one. NULL in *interp_p is accepted; *interp_p becomes NULL.
 * Owned: new entries are refused; threads inside are asked to come out (their waits end with ECLOSED) and waited for;
 * callbacks that have not run fail their works with ELUASTATE; then lua_close. Lua code that holds the interpreter for 2 s more is
 * stopped; if a C function holds it for another 2 s, the interpreter is left as it is, and that is logged.
 * The calling thread must not be inside.
 */
PERIGEE_API void perigee_interp_destroy(perigee_interp **interp_p);

/**
 * Wait for the interpreter and take it.
 * Returns this OS thread's own lua_State of it, valid until the matching leave; NULL with perigee_last_error():
 *   ETIMEDOUT (perigee_interp_set_enter_timeout; the message says who holds it and where), ELUASTATE closed, EFORKED, ENOMEM.
 * Its stack is the caller's to use; leave it as it was. Calls that may raise belong into lua_pcall.
 */
PERIGEE_API lua_State *perigee_interp_enter(perigee_interp *interp);
/** Undo one enter. */
PERIGEE_API void perigee_interp_leave(perigee_interp *interp);

/**
 * How long one override, or one callback, may run Lua. Time in which it waits for works does not count.
 * One that runs longer is stopped: ETIMEDOUT is raised in it, with its name, the limit and where it was. It may clean up for 50 ms
 * (pcall handlers, <close>); after that every instruction raises again until it is over. Its operation fails with that error.
 * Costs nothing while nothing is late. What cannot be stopped: C functions, and in a borrowed state coroutines that are resumed by
 * a copy of coroutine.resume or coroutine.wrap made before the limit was set.
 * Without a limit an override is stopped 150 ms after the deadline of its operation, in the same way.
 * Units:   limit_ns > 0; 0: none.
 * Errors:  as perigee_interp_enter.
 *
 * How it is done: the thread that is late gets SIGURG, for which a handler is installed the first time somebody is late (or has held
 * up others for a second, and is asked where it is). It passes the signal on to the handler that was there before.
 */
PERIGEE_API PERIGEE_MUST_CHECK int perigee_interp_set_time_limit(perigee_interp *interp,
                                                                 int64_t limit_ns);
/**
 * How long perigee_interp_enter, the run and load functions and the close of a layer wait for the interpreter.
 * Operations wait for it until their own deadline.
 * Units:   timeout_ns: 0 poll; PERIGEE_TIMEOUT_NONE no limit; PERIGEE_TIMEOUT_DEFAULT what PERIGEE_TIMEOUT says (1800 s).
 */
PERIGEE_API void perigee_interp_set_enter_timeout(perigee_interp *interp, int64_t timeout_ns);

/** Run a file or a string of Lua text, without a time limit. Errors: ETIMEDOUT as perigee_interp_enter; ELUA with message and traceback, ENOENT (no such file), ENOMEM, or the code
 *  of the error object that was raised. name: for messages; NULL: "string". */
PERIGEE_API PERIGEE_MUST_CHECK int perigee_interp_run_file(perigee_interp *interp,
                                                           const char *path);
PERIGEE_API PERIGEE_MUST_CHECK int perigee_interp_run_string(perigee_interp *interp,
                                                             const char *text, const char *name);

/**
 * Run a file of Lua text that makes a backend, and register the backend under `name` for stack strings ("name(native)").
 * The file returns perigee.backend(...), or a plain table of methods (its field `inner` names the stack below, default
 * "native"), or it registers `name` by calling perigee.backend(name).
 * Errors: as run_file; ELUATYPE when the file does neither; EINVAL for an unknown method ("did you mean").
 */
PERIGEE_API PERIGEE_MUST_CHECK int perigee_interp_load_backend(perigee_interp *interp,
                                                               const char *path, const char *name);
/** The same from text. */
PERIGEE_API PERIGEE_MUST_CHECK int
perigee_interp_load_backend_string(perigee_interp *interp, const char *text, const char *name);

/*
 * A program with a loop of its own.
 *
 * Callbacks (on_done and map of works, hooks) run on a thread that waits in the interpreter, or else on a thread of the
 * library. A program that polls descriptors can run them on the thread of its loop instead:
 *   int fd;
 *   perigee_interp_pollfd(interp, &fd);
 *   for (;;) {
 *     poll {fd, POLLIN} and what else the loop watches, for at most perigee_interp_timeout(interp);
 *     perigee_interp_step(interp, 0);
 *   }
 * Operations need no driving: collectives, messages and deadlines progress on threads of the library, whatever the transport;
 * the descriptor becomes readable when one of them has left something for Lua to do.
 */

/**
 * A descriptor that is readable (POLLIN) while step has something to do, and the wish that the library's own thread
 * leaves the callbacks to step. Threads that wait in the interpreter still run them meanwhile: what they wait for may depend
 * on it. One descriptor per interpreter, the same at every call; only poll it.
 * Owns:    *fd_p: the interpreter's; closed when that is gone.
 * Threads: any. A thread that is inside counts as the loop's, and as one that keeps the interpreter while it polls: then the
 *          descriptor also becomes readable when another thread wants to enter, and step lets that one in.
 * Errors:  -EMFILE, -ENFILE.
 */
PERIGEE_API PERIGEE_MUST_CHECK int perigee_interp_pollfd(perigee_interp *interp, int *fd_p);
/** It is polled no more: the library's own thread runs callbacks again. Any thread; never blocks. */
PERIGEE_API void perigee_interp_pollfd_end(perigee_interp *interp);

/**
 * Run what is ready, oldest first: 1000 callbacks at most, then the descriptor stays readable. When nothing is ready, wait up to
 * timeout_ns for something (0: do not).
 * Returns: how many callbacks ran, or an error.
 * Threads: any, inside or not: it enters. Locks: none may be held.
 * Errors:  EDEADLK (waiting in a callback), ECLOSED, ELUASTATE, EFORKED, ENOMEM. Errors of callbacks are reported, not returned.
 */
PERIGEE_API PERIGEE_MUST_CHECK int perigee_interp_step(perigee_interp *interp, int64_t timeout_ns);
/** Nanoseconds until step wants to be called whatever the descriptor says: 0 now, PERIGEE_TIMEOUT_NONE never. Any thread. */
PERIGEE_API int64_t perigee_interp_timeout(perigee_interp *interp);

/** What an interpreter holds; a snapshot. Any thread, never waits. */
typedef struct perigee_interp_stats {
  uint32_t size;       /* in: sizeof(perigee_interp_stats) */
  int64_t refs;        /* references into the Lua registry held by C */
  int64_t threads;     /* OS threads that have a Lua thread */
  uint64_t waits;      /* times a thread slept for the interpreter */
  int64_t memory_used; /* bytes of Lua objects; -1 for a borrowed state */
  int64_t ready;       /* callbacks waiting to run */
} perigee_interp_stats;
PERIGEE_API void perigee_interp_stats_get(perigee_interp *interp, perigee_interp_stats *stats);

/** The module `perigee.core`. Calling it again on one state returns the same table. */
PERIGEE_API int luaopen_perigee_core(lua_State *L);

#endif
