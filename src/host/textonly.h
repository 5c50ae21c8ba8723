/* Owned states never load precompiled chunks: a crafted one can take over the process. */
#ifndef PERIGEE_HOST_TEXTONLY_H
#define PERIGEE_HOST_TEXTONLY_H

#include "host/interp.h"

/** [-0, +0, e] Make load, loadfile, dofile and require take text only, and let require find this module. */
PERIGEE_RAISES void perigee__textonly_install(lua_State *L);

#endif
