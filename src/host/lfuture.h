/* perigee.future, wait_any, wait_all. */
#ifndef PERIGEE_HOST_LFUTURE_H
#define PERIGEE_HOST_LFUTURE_H

#include "host/object.h"

extern const luaL_Reg perigee__lfuture_methods[]; /* of works: set_result, set_error */

/** Functions into the module table on top of the stack. [-0, +0, m] */
PERIGEE_RAISES void perigee__lfuture_open(lua_State *L);

#endif
