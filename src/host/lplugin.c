#include "host/lplugin.h"

#include <string.h>

#include <perigee/plugin.h>

#include "host/lbackend.h"
#include "host/lerror.h"

/* "dir/fp16.lua" -> "fp16", pushed. */
static const char *name_of_file(lua_State *L, const char *path) {
  const char *file = strrchr(path, '/');
  file = file != NULL ? file + 1 : path;
  return lua_pushlstring(L, file, strlen(file) - strlen(".lua"));
}

static bool is_lua_file(const char *path) {
  size_t len = strlen(path);
  return len > 4 && strcmp(path + len - 4, ".lua") == 0;
}

/* perigee.load_backend(what [, name]): a plug-in in C by name or path, or a file of Lua text. Returns the backend's name. */
static int l_load_backend(lua_State *L) {
  perigee_interp *interp = perigee__interp_here(L);
  if (lua_type(L, 1) != LUA_TSTRING)
    perigee__raise_arg(L, "load_backend", 1, "name or path expected, got %s",
                       perigee__type_name(L, 1));
  if (!lua_isnoneornil(L, 2) && lua_type(L, 2) != LUA_TSTRING)
    perigee__raise_arg(L, "load_backend", 2, "name expected, got %s", perigee__type_name(L, 2));
  const char *what = lua_tostring(L, 1);
  lua_settop(L, 2);
  if (is_lua_file(what)) {
    const char *name = lua_isnil(L, 2) ? name_of_file(L, what) : lua_tostring(L, 2);
    lua_pushstring(L, name); // [ what, name|nil, ..., name ]
    perigee__backend_run_file(L, what, name);
    lua_pushstring(L, name);
    return 1;
  }
  if (!lua_isnil(L, 2))
    perigee__raise_arg(L, "load_backend", 2, "a plug-in in C is called like its file");
  perigee__gap gap;
  perigee__gap_open(interp, L, &gap); /* what stays on the stack keeps `what` alive */
  int rc = perigee_backend_load(what);
  perigee__gap_close(interp, &gap);
  perigee__check(L, rc);
  /* The name was good: a path ends in perigee_<name>.so. */
  const char *file = strrchr(what, '/');
  if (file == NULL)
    lua_pushvalue(L, 1);
  else
    lua_pushlstring(L, file + strlen("/perigee_"), strlen(file) - strlen("/perigee_.so"));
  return 1;
}

void perigee__lplugin_open(lua_State *L) {
  static const luaL_Reg functions[] = {{"load_backend", l_load_backend}, {NULL, NULL}};
  perigee__functions_add(L, functions);
}
