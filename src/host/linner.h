/* `self.inner`: the layer below, as an object with a method per operation. */
#ifndef PERIGEE_HOST_LINNER_H
#define PERIGEE_HOST_LINNER_H

#include "host/object.h"

/** Make the type. [-0, +0, m] */
PERIGEE_RAISES void perigee__linner_open(lua_State *L);

#endif
