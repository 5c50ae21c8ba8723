#include "host/object.h"

#include <string.h>

#include "host/lerror.h"

const perigee__type perigee__type_tensor = {"tensor", "perigee.Tensor"};
const perigee__type perigee__type_work = {"work", "perigee.Work"};
const perigee__type perigee__type_group = {"group", "perigee.Group"};
const perigee__type perigee__type_store = {"store", "perigee.Store"};
const perigee__type perigee__type_server = {"store server", "perigee.StoreServer"};
const perigee__type perigee__type_redop = {"reduce op", "perigee.ReduceOp"};
const perigee__type perigee__type_inner = {"inner layer", "perigee.Inner"};
const perigee__type perigee__type_hook = {"hook", "perigee.Hook"};

static const perigee__type *const all_types[] = {
    &perigee__type_tensor, &perigee__type_work,  &perigee__type_group, &perigee__type_store,
    &perigee__type_server, &perigee__type_redop, &perigee__type_inner, &perigee__type_hook,
};

void *perigee__object_new(lua_State *L, const perigee__type *type, size_t size, int user_values) {
  perigee__box *box = lua_newuserdatauv(L, size, user_values);
  memset(box, 0, size);
  box->type = type;
  lua_rawgetp(L, LUA_REGISTRYINDEX, type);
  lua_setmetatable(L, -2);
  return box;
}

void *perigee__object_self(lua_State *L, const perigee__type *type, const char *method) {
  perigee__box *box = perigee__object_get(L, 1, type);
  if (PERIGEE_UNLIKELY(box == NULL))
    perigee__raise(L, PERIGEE_EINVAL,
                   "calling '%s' on a bad self (%s expected, got %s): use ':', not '.'", method,
                   type->name, perigee__type_name(L, 1));
  return box;
}

const char *perigee__object_name(lua_State *L, int index) {
  if (lua_type(L, index) != LUA_TUSERDATA || lua_rawlen(L, index) < sizeof(perigee__box))
    return NULL;
  const perigee__box *box = lua_touserdata(L, index);
  for (size_t i = 0; i < PERIGEE_COUNT(all_types); i++)
    if (box->type == all_types[i])
      return box->type->name;
  return NULL;
}

void perigee__functions_add(lua_State *L, const luaL_Reg *functions) {
  perigee__interp_push_box(L);
  luaL_setfuncs(L, functions, 1);
}

static const char methods_key[] = "methods";

void perigee__type_methods(lua_State *L, const perigee__type *type) {
  lua_rawgetp(L, LUA_REGISTRYINDEX, type);
  lua_rawgetp(L, -1, methods_key);
  lua_remove(L, -2);
}

void perigee__type_open(lua_State *L, const perigee__type *type, const luaL_Reg *meta,
                        const luaL_Reg *methods, lua_CFunction index) {
  if (lua_rawgetp(L, LUA_REGISTRYINDEX, type) != LUA_TNIL) {
    lua_pop(L, 1);
    return;
  }
  lua_pop(L, 1);
  lua_createtable(L, 0, 12); // [ meta ]
  perigee__functions_add(L, meta);
  lua_pushstring(L, type->meta_name);
  lua_setfield(L, -2, "__name");
  lua_newtable(L); // [ meta, methods ]
  perigee__functions_add(L, methods);
  lua_pushvalue(L, -1);
  lua_rawsetp(L, -3, methods_key);
  if (index != NULL) {
    perigee__interp_push_box(L);
    lua_insert(L, -2);
    lua_pushcclosure(L, index, 2);
  }
  lua_setfield(L, -2, "__index");
  lua_rawsetp(L, LUA_REGISTRYINDEX, type);
}
