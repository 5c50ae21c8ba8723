/*
 * Work objects in Lua.
 *
 * The value that wait() returns is kept in one of two places: user value 1 of the object (operations: the tensors the script
 * gave, turned into numbers by `conv`), or the value slot of the work (works that scripts make: map, futures), because there it is
 * known only when the work ends and every object of that work must find it.
 */
#ifndef PERIGEE_HOST_LWORK_H
#define PERIGEE_HOST_LWORK_H

#include <perigee/work.h>

#include "host/object.h"

typedef struct perigee__lwork {
  perigee__box box; /* ptr: the work (one reference) */
  unsigned conv;    /* PERIGEE_CONV_* */
  bool slot;        /* the value is in the work's slot: a script made this work */
  bool open;        /* perigee.future: set_result and set_error may be called */
  /* What this object stands for (box.ptr is NULL until it is settled) or was mapped from; one reference, or NULL. */
  struct perigee__deferred *deferred;
  struct perigee__task *task; /* whose outcome it is; one reference, or NULL */
} perigee__lwork;

/** [-0, +1, m] A new object without a work yet: the caller fills box.ptr with one it owns, and user value 1. */
PERIGEE_RAISES perigee__lwork *perigee__lwork_new(lua_State *L);
/** The live work object at index, or NULL. What it holds back is submitted first. [-0, +0, e] */
PERIGEE_RAISES perigee__lwork *perigee__lwork_get(lua_State *L, int index);
/** See that w has a work: submits what was held back. [-0, +0, e] */
PERIGEE_RAISES void perigee__lwork_settle(lua_State *L, perigee__lwork *w);
/** What this thread holds back for w runs right here, to its end, unless that may take longer than the wait. [-0, +0, e] */
PERIGEE_RAISES void perigee__lwork_run_held(lua_State *L, perigee_interp *interp,
                                            const perigee__lwork *w, int64_t timeout_ns);
/** Push what wait returns: the value of a work that is done (raises when it failed), or nil and an error when timeout_ns ran out.
 *  [-0, +1..2, e] */
PERIGEE_RAISES int perigee__lwork_push_outcome(lua_State *L, int index, int64_t timeout_ns);
/** Push what wait returns when the work at index is done; returns how many values. [-0, +1..2, m] */
PERIGEE_RAISES int perigee__lwork_push_value(lua_State *L, int index);
/** The error of a work that failed, with op and seq filled in. */
void perigee__work_error_of(const perigee_work *work, perigee_error *error);
/** Give a script-made work its value (top of the stack). [-1, +0, m] */
PERIGEE_RAISES void perigee__lwork_set_value(lua_State *L, perigee_work *work);

/** Whether no callback of map or on_done can run, because only Lua could end what they wait for. Inside. */
bool perigee__callbacks_are_stuck(const perigee_interp *interp);

/** An error that no caller can get: perigee.on_hook_error(e), or a warning on stderr. Inside; does not raise. */
void perigee__report_error(lua_State *L, const char *where, const perigee_error *error);

/** Type and functions into the module table on top of the stack. [-0, +0, m] */
PERIGEE_RAISES void perigee__lwork_open(lua_State *L);
extern const luaL_Reg perigee__lwork_callbacks[]; /* map, on_done */

#endif
