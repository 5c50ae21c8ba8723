/* Errors of one group's hooks that nobody was told by wait_for_pending_works yet. */
#ifndef PERIGEE_HOST_HOOK_LOG_H
#define PERIGEE_HOST_HOOK_LOG_H

#include <lua.h>

#include <perigee/error.h>

#include "host/interp.h"

/** Counted. Inside the interpreter, but for references. */
typedef struct perigee__hook_log perigee__hook_log;

/** With one reference; NULL: no memory. */
PERIGEE_MUST_CHECK perigee__hook_log *perigee__hook_log_create(void);
perigee__hook_log *perigee__hook_log_ref(perigee__hook_log *log);
/** NULL is accepted. Any thread. */
void perigee__hook_log_unref(perigee__hook_log *log);

/** The error is counted; the first few are kept. */
void perigee__hook_log_keep(perigee__hook_log *log, const perigee_error *error);
/** Raises what there is as one error, and forgets it. NULL is accepted. [-0, +0, e] */
PERIGEE_RAISES void perigee__hook_log_raise(lua_State *L, perigee__hook_log *log);

#endif
