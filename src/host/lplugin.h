/* perigee.load_backend: backends from files. */
#ifndef PERIGEE_HOST_LPLUGIN_H
#define PERIGEE_HOST_LPLUGIN_H

#include "host/interp.h"

/** perigee.load_backend into the module table on top of the stack. [-0, +0, m] */
PERIGEE_RAISES void perigee__lplugin_open(lua_State *L);

#endif
