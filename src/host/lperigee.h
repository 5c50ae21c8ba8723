/* The module table. */
#ifndef PERIGEE_HOST_LPERIGEE_H
#define PERIGEE_HOST_LPERIGEE_H

#include "host/interp.h"

/** [-0, +1, m] The module table, or an empty one when the module was never opened. */
PERIGEE_RAISES void perigee__push_module(lua_State *L);

#endif
