/* Stores in Lua: perigee.store. */
#ifndef PERIGEE_HOST_LSTORE_H
#define PERIGEE_HOST_LSTORE_H

#include <perigee/store.h>

#include "host/object.h"

/** [-0, +1, m] Push a handle (taking a reference), or nil for NULL. */
PERIGEE_RAISES void perigee__store_push(lua_State *L, perigee_store *store);
/** The store at index, borrowed; NULL for nil; an error naming the argument otherwise. [-0, +0, e] */
PERIGEE_RAISES perigee_store *perigee__store_opt(lua_State *L, int index, const char *function,
                                                 int arg);
/** Types, and perigee.store into the module table on top of the stack. [-0, +0, m] */
PERIGEE_RAISES void perigee__lstore_open(lua_State *L);

#endif
