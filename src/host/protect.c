/* Protected calls: nothing that Lua raises passes a C frame that is not ours. */
#include <string.h>

#include "host/interp.h"

#include "host/lerror.h"

/* Where the message handler of the innermost protected call of this thread writes. */
static _Thread_local perigee_error *handler_error;

/* [-1, +1, -] The error value stays; what C needs of it is copied while the failed frames still stand. */
static int on_error(lua_State *L) {
  perigee_error *error = handler_error;
  perigee__error_any(L, 1, error);
  if (error->traceback[0] == '\0') {
    luaL_traceback(L, L, NULL, 1);
    perigee__copy_text(error->traceback, sizeof(error->traceback), lua_tostring(L, -1));
  }
  lua_settop(L, 1);
  return 1;
}

int perigee__protect(lua_State *L, lua_CFunction body, void *arg, perigee_error *error_p) {
  perigee__error_init(error_p);
  if (!lua_checkstack(L, 8)) {
    perigee__error_set(error_p, PERIGEE_ENOMEM, "no room on the Lua stack");
    return PERIGEE_ENOMEM;
  }
  perigee_error *outer = handler_error;
  handler_error = error_p;
  int base = lua_gettop(L);
  lua_pushcfunction(L, on_error); /* light: none of these allocates */
  lua_pushcfunction(L, body);
  lua_pushlightuserdata(L, arg);
  int status = lua_pcall(L, 1, 0, base + 1);
  lua_settop(L, base);
  handler_error = outer;
  if (PERIGEE_LIKELY(status == LUA_OK))
    return 0;
  if (status == LUA_ERRMEM)
    perigee__error_set(error_p, PERIGEE_ENOMEM, "Lua: not enough memory");
  else if (error_p->code == 0 || error_p->message[0] == '\0')
    perigee__error_set(error_p, PERIGEE_ELUA, "an error whose text could not be made");
  return error_p->code;
}
