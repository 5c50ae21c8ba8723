/* group:coalesce and group:batch_send_recv. */
#ifndef PERIGEE_HOST_LCOALESCE_H
#define PERIGEE_HOST_LCOALESCE_H

#include <perigee/group.h>

#include "host/interp.h"

/** The Work on top of the stack is of an operation that this thread's coalescing on the group has collected. [-0, +0, m] */
PERIGEE_RAISES void perigee__coalesce_note(lua_State *L, perigee_interp *interp,
                                           const perigee_group *group);
/** Add both methods to the methods table on top of the stack. [-0, +0, m] */
PERIGEE_RAISES void perigee__lcoalesce_add(lua_State *L);

#endif
