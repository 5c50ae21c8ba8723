/* group:explain: which way an operation goes, and why. */
#include <math.h>
#include <string.h>

#include "host/call.h"
#include "host/lerror.h"
#include "host/lgroup.h"

static void set_text(lua_State *L, const char *name, const char *text) {
  lua_pushstring(L, text);
  lua_setfield(L, -2, name);
}

static void set_bytes(lua_State *L, const char *name, uint64_t bytes) {
  if (bytes > INT64_MAX)
    lua_pushnumber(L, HUGE_VAL);
  else
    lua_pushinteger(L, (lua_Integer)bytes);
  lua_setfield(L, -2, name);
}

static void push_choice(lua_State *L, const perigee_choice *c) {
  lua_createtable(L, 0, 7);
  set_text(L, "transport", c->transport);
  if (c->wait[0] != '\0')
    set_text(L, "wait", c->wait);
  set_text(L, "path", c->path);
  set_bytes(L, "from", c->from);
  set_bytes(L, "to", c->end);
  set_text(L, "why", c->why);
  lua_newtable(L);
  const char *at = c->possible;
  for (lua_Integer i = 1; *at != '\0'; i++) {
    size_t len = strcspn(at, " ");
    lua_pushlstring(L, at, len);
    lua_rawseti(L, -2, i);
    at += len + (at[len] == ' ');
  }
  lua_setfield(L, -2, "possible");
}

/* group:explain(op, bytes [, {symmetric =}]) */
int perigee__lgroup_explain(lua_State *L) {
  static const char *const known[] = {"symmetric", NULL};
  perigee_interp *interp = perigee__interp_here(L);
  perigee_group *group = perigee__lgroup_self(L, "explain")->box.ptr;
  bool symmetric = false;
  int exact, op = lua_type(L, 2) == LUA_TSTRING ? perigee_op_find(lua_tostring(L, 2)) : -1;
  if (op < 0)
    perigee__raise_arg(L, "explain", 1, "an operation expected, got %s",
                       luaL_tolstring(L, 2, NULL));
  lua_Integer bytes = lua_tointegerx(L, 3, &exact);
  if (!exact || bytes < 0)
    perigee__raise_arg(L, "explain", 2, "bytes: integer >= 0 expected, got %s",
                       luaL_tolstring(L, 3, NULL));
  if (!lua_isnoneornil(L, 4)) {
    if (lua_type(L, 4) != LUA_TTABLE)
      perigee__raise_arg(L, "explain", 3, "options table expected, got %s",
                         perigee__type_name(L, 4));
    perigee__check_keys(L, 4, "explain", 3, known);
    lua_getfield(L, 4, "symmetric");
    symmetric = lua_toboolean(L, -1);
  }
  perigee_choice choice = {.size = sizeof(choice)};
  perigee__gap gap;
  perigee__gap_open(interp, L, &gap);
  int rc = perigee_group_explain(group, op, (uint64_t)bytes, symmetric, &choice);
  perigee__gap_close(interp, &gap);
  perigee__check(L, rc);
  push_choice(L, &choice);
  return 1;
}
