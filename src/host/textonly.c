#include "host/textonly.h"

#include <string.h>

#include "host/lerror.h"

/* load(chunk [, name [, mode [, env]]]) with mode "t" whatever was asked for; upvalue 1: the original. */
static int l_load(lua_State *L) {
  bool has_env = lua_gettop(L) >= 4;
  lua_settop(L, 4);
  const char *mode = luaL_optstring(L, 3, "bt");
  if (strchr(mode, 't') == NULL) {
    lua_pushnil(L);
    lua_pushliteral(L, "attempt to load a binary chunk: this interpreter takes text only");
    return 2;
  }
  lua_pushliteral(L, "t");
  lua_replace(L, 3);
  lua_pushvalue(L, lua_upvalueindex(1));
  lua_insert(L, 1);
  if (!has_env)
    lua_settop(L, 4);
  lua_call(L, lua_gettop(L) - 1, LUA_MULTRET);
  return lua_gettop(L);
}

/* loadfile([path [, mode [, env]]]) */
static int l_loadfile(lua_State *L) {
  bool has_env = lua_gettop(L) >= 3;
  lua_settop(L, 3);
  if (strchr(luaL_optstring(L, 2, "bt"), 't') == NULL) {
    lua_pushnil(L);
    lua_pushliteral(L, "attempt to load a binary chunk: this interpreter takes text only");
    return 2;
  }
  lua_pushliteral(L, "t");
  lua_replace(L, 2);
  lua_pushvalue(L, lua_upvalueindex(1));
  lua_insert(L, 1);
  if (!has_env)
    lua_settop(L, 3);
  lua_call(L, lua_gettop(L) - 1, LUA_MULTRET);
  return lua_gettop(L);
}

static int l_dofile(lua_State *L) {
  const char *path = luaL_optstring(L, 1, NULL);
  lua_settop(L, 1);
  if (luaL_loadfilex(L, path, "t") != LUA_OK)
    return lua_error(L);
  lua_call(L, 0, LUA_MULTRET);
  return lua_gettop(L) - 1;
}

/* package.searchers[2]: as the original, text only. Upvalue 1: the package table. */
static int l_searcher(lua_State *L) {
  const char *name = luaL_checkstring(L, 1);
  lua_getfield(L, lua_upvalueindex(1), "searchpath");
  lua_pushvalue(L, 1);
  lua_getfield(L, lua_upvalueindex(1), "path");
  lua_call(L, 2, 2); // [ name, file|nil, message ]
  if (lua_isnil(L, -2))
    return 1;
  lua_pop(L, 1);
  const char *file = lua_tostring(L, -1);
  if (luaL_loadfilex(L, file, "t") != LUA_OK)
    return luaL_error(L, "error loading module '%s' from file '%s':\n\t%s", name, file,
                      lua_tostring(L, -1));
  lua_insert(L, -2); // [ name, loader, file ]
  return 2;
}

/* The last searcher: require "perigee" where perigee/init.lua is not installed. */
static int l_last_searcher(lua_State *L) {
  if (strcmp(luaL_checkstring(L, 1), "perigee") != 0) {
    lua_pushliteral(L, "");
    return 1;
  }
  lua_pushcfunction(L, luaopen_perigee_core);
  lua_pushliteral(L, ":perigee:");
  return 2;
}

static void install_searchers(lua_State *L) {
  if (lua_getglobal(L, "package") != LUA_TTABLE) {
    lua_pop(L, 1);
    return;
  }
  lua_getfield(L, -1, "preload"); // [ package, preload ]
  lua_pushcfunction(L, luaopen_perigee_core);
  lua_setfield(L, -2, "perigee.core");
  lua_pop(L, 1);
  lua_getfield(L, -1, "searchers"); // [ package, searchers ]
  lua_pushvalue(L, -2);
  lua_pushcclosure(L, l_searcher, 1);
  lua_rawseti(L, -2, 2);
  lua_pushcfunction(L, l_last_searcher);
  lua_rawseti(L, -2, luaL_len(L, -2) + 1);
  lua_pop(L, 2);
}

void perigee__textonly_install(lua_State *L) {
  lua_getglobal(L, "load");
  lua_pushcclosure(L, l_load, 1);
  lua_setglobal(L, "load");
  lua_getglobal(L, "loadfile");
  lua_pushcclosure(L, l_loadfile, 1);
  lua_setglobal(L, "loadfile");
  lua_pushcfunction(L, l_dofile);
  lua_setglobal(L, "dofile");
  install_searchers(L);
}
