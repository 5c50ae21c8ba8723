/*
 * Lua objects of the module: full userdata that start with a box.
 *
 * The type of a value is told by the first word of its memory, not by its metatable: a check costs two loads, objects survive the
 * module being opened again (busted does it per file), and debug.setmetatable cannot pass one type for another.
 */
#ifndef PERIGEE_HOST_OBJECT_H
#define PERIGEE_HOST_OBJECT_H

#include "host/interp.h"

typedef struct perigee__type {
  const char *name;      /* for people: "tensor" */
  const char *meta_name; /* __name of the metatable: "perigee.Tensor" */
} perigee__type;

typedef struct perigee__box {
  const perigee__type *type;
  void *ptr; /* what the object stands for; NULL once it is finalized */
} perigee__box;

extern const perigee__type perigee__type_tensor, perigee__type_work, perigee__type_group,
    perigee__type_store, perigee__type_server, perigee__type_redop, perigee__type_inner,
    perigee__type_hook;

/** [-0, +1, m] A new object: zeroed beyond the box, with its metatable, ptr NULL. size >= sizeof(perigee__box). */
PERIGEE_RAISES void *perigee__object_new(lua_State *L, const perigee__type *type, size_t size,
                                         int user_values);
/** The object at index when it is one of this type, else NULL. [-0, +0, -] */
static inline void *perigee__object_get(lua_State *L, int index, const perigee__type *type) {
  if (lua_type(L, index) != LUA_TUSERDATA || lua_rawlen(L, index) < sizeof(perigee__box))
    return NULL;
  perigee__box *box = lua_touserdata(L, index);
  return box->type == type ? box : NULL;
}
/** The object at index, or an error that names `self` of the method. [-0, +0, e] */
PERIGEE_RAISES void *perigee__object_self(lua_State *L, const perigee__type *type,
                                          const char *method);
/** "tensor", ... or NULL when the value is no object of the module. */
const char *perigee__object_name(lua_State *L, int index);

/**
 * Make the metatable of a type, once per state. [-0, +0, m]
 * methods become __index; when index is given it is __index instead and gets the methods as upvalue 2. Every function has the
 * interpreter's box as upvalue 1.
 */
PERIGEE_RAISES void perigee__type_open(lua_State *L, const perigee__type *type,
                                       const luaL_Reg *meta, const luaL_Reg *methods,
                                       lua_CFunction index);
/** Add functions to the table on top, with the box as upvalue 1. [-0, +0, m] */
PERIGEE_RAISES void perigee__functions_add(lua_State *L, const luaL_Reg *functions);
/** [-0, +1, m] The methods of a type that was opened. */
PERIGEE_RAISES void perigee__type_methods(lua_State *L, const perigee__type *type);

#endif
