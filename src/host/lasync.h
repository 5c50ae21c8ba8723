/* perigee.async and perigee.run. */
#ifndef PERIGEE_HOST_LASYNC_H
#define PERIGEE_HOST_LASYNC_H

#include "host/interp.h"

/** The C function of every function that perigee.async made. */
int perigee__async_call(lua_State *L);

/** Functions into the module table on top of the stack. [-0, +0, m] */
PERIGEE_RAISES void perigee__lasync_open(lua_State *L);
extern const luaL_Reg perigee__lasync_testing[]; /* for _testing */

#endif
