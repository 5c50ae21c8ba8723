/* Lua values that objects of the layers below carry: layer options of a world, keys of a tensor's storage. */
#ifndef PERIGEE_HOST_LSHARED_H
#define PERIGEE_HOST_LSHARED_H

#include <perigee/shared.h>

#include "host/interp.h"

/** The value on top of the stack as a counted object, returned with one reference. [-1, +0, m] */
PERIGEE_RAISES perigee_shared *perigee__lshared_create(perigee_interp *interp, lua_State *L);
/** [-0, +1, -] Its value; false and nil when it is not one of this interpreter. shared: NULL is accepted. */
bool perigee__lshared_push(perigee_interp *interp, lua_State *L, const perigee_shared *shared);

#endif
