/* What perigee.testing and perigee.sim need from C: groups of one process, ranks as threads, a look at backends. */
#ifndef PERIGEE_HOST_LTESTING_H
#define PERIGEE_HOST_LTESTING_H

#include <perigee/group.h>

#include "host/interp.h"

/** Add the table `_testing` to the module table on top of the stack. [-0, +0, m] */
PERIGEE_RAISES void perigee__ltesting_open(lua_State *L);

/** The group object on top of the stack was made: on the thread of a rank, it is aborted when the run is stopped. [-0, +0, m] */
PERIGEE_RAISES void perigee__ltesting_note_group(lua_State *L, perigee_group *group);

#endif
