/* perigee.time_limit: how long an override or a callback may run. */
#ifndef PERIGEE_HOST_LLIMIT_H
#define PERIGEE_HOST_LLIMIT_H

#include "host/interp.h"

/** perigee.time_limit into the module table on top of the stack. [-0, +0, m] */
PERIGEE_RAISES void perigee__llimit_open(lua_State *L);

#endif
