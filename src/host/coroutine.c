/* coroutine.resume and coroutine.wrap as Lua's own, except that the runtime knows which coroutine a thread runs. */
#include "host/watch.h"

#include <lualib.h>

/* Upvalue 1: the box of the interpreter. */
static int resume(lua_State *L, lua_State *co, int nargs, int *nres_p) {
  const perigee__interp_box *box = lua_touserdata(L, lua_upvalueindex(1));
  perigee__lthread *t = box->interp != NULL ? perigee__lthread_find(box->interp) : NULL;
  return t != NULL && t->depth > 0 ? perigee__resume(t, co, L, nargs, nres_p)
                                   : lua_resume(co, L, nargs, nres_p);
}

/* Number of results on L, or -1 with the error on top. [-nargs, +n, m] */
static int resume_values(lua_State *L, lua_State *co, int nargs) {
  if (!lua_checkstack(co, nargs)) {
    lua_pushliteral(L, "too many arguments to resume");
    return -1;
  }
  lua_xmove(L, co, nargs);
  int n;
  int status = resume(L, co, nargs, &n);
  if (status != LUA_OK && status != LUA_YIELD) {
    lua_xmove(co, L, 1);
    return -1;
  }
  if (!lua_checkstack(L, n + 1)) {
    lua_pop(co, n);
    lua_pushliteral(L, "too many results to resume");
    return -1;
  }
  lua_xmove(co, L, n);
  return n;
}

static int l_resume(lua_State *L) {
  lua_State *co = lua_tothread(L, 1);
  luaL_argexpected(L, co != NULL, 1, "coroutine");
  int n = resume_values(L, co, lua_gettop(L) - 1);
  lua_pushboolean(L, n >= 0);
  lua_insert(L, n >= 0 ? -(n + 1) : -2);
  return n >= 0 ? n + 1 : 2;
}

static int close_failed(lua_State *co, lua_State *from) {
#if LUA_VERSION_RELEASE_NUM >= 50406
  return lua_closethread(co, from);
#else
  (void)from;
  return lua_resetthread(co);
#endif
}

/* The function that wrap returns; upvalue 2: the coroutine. */
static int l_wrapped(lua_State *L) {
  lua_State *co = lua_tothread(L, lua_upvalueindex(2));
  int n = resume_values(L, co, lua_gettop(L));
  if (n >= 0)
    return n;
  int status = lua_status(co);
  if (status != LUA_OK && status != LUA_YIELD) { /* it failed: run its `<close>` */
    status = close_failed(co, L);
    lua_xmove(co, L, 1);
  }
  if (status != LUA_ERRMEM && lua_type(L, -1) == LUA_TSTRING) {
    luaL_where(L, 1);
    lua_insert(L, -2);
    lua_concat(L, 2);
  }
  return lua_error(L);
}

static int l_wrap(lua_State *L) {
  luaL_checktype(L, 1, LUA_TFUNCTION);
  lua_pushvalue(L, lua_upvalueindex(1));
  lua_State *co = lua_newthread(L);
  lua_pushvalue(L, 1);
  lua_xmove(L, co, 1);
  lua_pushcclosure(L, l_wrapped, 2);
  return 1;
}

void perigee__coroutine_install(lua_State *L) {
  static const luaL_Reg functions[] = {{"resume", l_resume}, {"wrap", l_wrap}, {NULL, NULL}};
  if (lua_getglobal(L, LUA_COLIBNAME) == LUA_TTABLE) {
    perigee__interp_push_box(L);
    luaL_setfuncs(L, functions, 1);
  }
  lua_pop(L, 1);
}
