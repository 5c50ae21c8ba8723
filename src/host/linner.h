/* `self.inner`: the layer below, as an object with a method per operation. */
#ifndef PERIGEE_HOST_LINNER_H
#define PERIGEE_HOST_LINNER_H

#include "host/lbackend.h"
#include "host/object.h"

/** The open layer of the object at index 1. [-0, +0, e] */
PERIGEE_RAISES perigee__llayer *perigee__inner_self(lua_State *L, const char *method);
/** Make the type. [-0, +0, m] */
PERIGEE_RAISES void perigee__linner_open(lua_State *L);

#endif
