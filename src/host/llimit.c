/* Limits of an interpreter, from C and from Lua. */
#include "host/llimit.h"

#include <perigee/op.h>

#include "base/env.h"
#include "host/call.h"
#include "host/lerror.h"
#include "host/object.h"
#include "host/watch.h"

static void store_limit(perigee_interp *interp, int64_t limit_ns) {
  atomic_store_explicit(&interp->time_limit_ns, limit_ns > 0 ? limit_ns : PERIGEE_NEVER,
                        memory_order_relaxed);
}

static int install_body(lua_State *L) {
  perigee__coroutine_install(L);
  return 0;
}

int perigee_interp_set_time_limit(perigee_interp *interp, int64_t limit_ns) {
  perigee__lthread *t;
  PERIGEE_TRY(perigee__enter(interp, perigee__enter_timeout(interp), "a C program", false, &t));
  perigee_error error;
  int rc =
      interp->owned ? 0 : perigee__protect(perigee__lthread_state(t), install_body, NULL, &error);
  if (rc == 0)
    store_limit(interp, limit_ns);
  perigee__leave(interp, t);
  return rc < 0 ? perigee__fail_with(&error) : 0;
}

void perigee_interp_set_enter_timeout(perigee_interp *interp, int64_t timeout_ns) {
  if (timeout_ns == PERIGEE_TIMEOUT_DEFAULT)
    timeout_ns = perigee__env_seconds("PERIGEE_TIMEOUT");
  atomic_store_explicit(&interp->enter_timeout_ns, timeout_ns >= 0 ? timeout_ns : PERIGEE_NEVER,
                        memory_order_relaxed);
}

/* perigee.time_limit([seconds | false]) */
static int l_time_limit(lua_State *L) {
  perigee_interp *interp = perigee__interp_here(L);
  int64_t before = atomic_load_explicit(&interp->time_limit_ns, memory_order_relaxed);
  if (lua_type(L, 1) == LUA_TBOOLEAN && !lua_toboolean(L, 1)) {
    store_limit(interp, 0);
  } else if (!lua_isnoneornil(L, 1)) {
    int64_t limit = perigee__seconds_arg(L, 1, "time_limit", 1, false);
    if (!interp->owned)
      perigee__coroutine_install(L);
    store_limit(interp, limit);
  }
  if (before == PERIGEE_NEVER)
    lua_pushboolean(L, 0);
  else
    lua_pushnumber(L, (double)before / 1e9);
  return 1;
}

void perigee__llimit_open(lua_State *L) {
  static const luaL_Reg functions[] = {{"time_limit", l_time_limit}, {NULL, NULL}};
  perigee__functions_add(L, functions);
}
