/* perigee.run. */
#ifndef PERIGEE_HOST_LRUN_H
#define PERIGEE_HOST_LRUN_H

#include "host/interp.h"

/** Functions into the module table on top of the stack. [-0, +0, m] */
PERIGEE_RAISES void perigee__lrun_open(lua_State *L);

#endif
