/* Reduce operations in Lua: names, perigee.premul_sum(factor), perigee.op{...}. */
#ifndef PERIGEE_HOST_LOP_H
#define PERIGEE_HOST_LOP_H

#include <perigee/op.h>

#include "host/object.h"

/** The reduce operation at index (a name or an object) into *redop; false when it is neither. A custom op is borrowed from
 *  the object. [-0, +0, -] */
bool perigee__redop_get(lua_State *L, int index, perigee_redop *redop);
/** As get, but only a function of a script (perigee.op) will do. [-0, +0, -] */
bool perigee__redop_is_script(lua_State *L, int index, perigee_redop *redop);
/** [-0, +1, -] Push the function of what is_script accepted. */
void perigee__redop_push_function(lua_State *L, const perigee_redop *redop);
/** As an override sees it: a name, or an object. [-0, +1, m] */
PERIGEE_RAISES void perigee__redop_push(lua_State *L, const perigee_redop *redop);
/** Type, and functions into the module table on top of the stack. [-0, +0, m] */
PERIGEE_RAISES void perigee__lop_open(lua_State *L);

#endif
