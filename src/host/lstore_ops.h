/* The operations of stores in Lua. */
#ifndef PERIGEE_HOST_LSTORE_OPS_H
#define PERIGEE_HOST_LSTORE_OPS_H

#include <lauxlib.h>

extern const luaL_Reg perigee__lstore_ops[];

#endif
