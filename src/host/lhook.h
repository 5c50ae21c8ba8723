/*
 * Hooks of groups in Lua: group:on, register_on_completion_hook, wait_for_pending_works, and the handle perigee.Hook.
 *
 * The C hook of a Lua function only puts an entry into the interpreter's ready queue, on whatever thread the event is told. It is run
 * later as a protected call by whoever runs the queue (ready.c), so the order of events stays.
 */
#ifndef PERIGEE_HOST_LHOOK_H
#define PERIGEE_HOST_LHOOK_H

#include "host/lgroup.h"

extern const luaL_Reg perigee__lhook_methods[]; /* of groups */
/** The handle's type. [-0, +0, m] */
PERIGEE_RAISES void perigee__lhook_open(lua_State *L);
/** The group was closed by this thread, which is inside: run the hooks of what has ended. [-0, +0, m] */
PERIGEE_RAISES void perigee__lhook_flush(lua_State *L, perigee_interp *interp,
                                         const perigee__lgroup *g);
/** group:wait_for_pending_works([seconds]) (lhook_wait.c). [-0, +1 or 2, e] */
int perigee__lhook_wait(lua_State *L);

#endif
