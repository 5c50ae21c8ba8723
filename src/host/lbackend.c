#include "host/lbackend.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "group/registry.h"
#include "host/lerror.h"
#include "host/suggest.h"

static const char mark_key; /* in the metatable of a backend table: its stack below */

/* ---- names --------------------------------------------------------------------------------------- */

/* Nearest of the names of all operations, their aliases and the other methods. Made once per call: only at definitions. */
static const char *nearest_name(const char *name) {
  const char *names[PERIGEE_OP_COUNT * 4 + PERIGEE_METHOD_COUNT + 1];
  char aliases[PERIGEE_OP_COUNT][64];
  size_t n = 0;
  for (int op = 0; op < PERIGEE_OP_COUNT; op++) {
    const perigee_op_info *info = perigee_op_get(op);
    names[n++] = info->name;
    snprintf(aliases[op], sizeof(aliases[op]), "%s", info->aliases);
    for (char *at = aliases[op], *word; (word = strsep(&at, " ")) != NULL;)
      if (word[0] != '\0' && n < PERIGEE_OP_COUNT * 4)
        names[n++] = word;
  }
  for (int method = 0; method < PERIGEE_METHOD_COUNT; method++)
    names[n++] = perigee_method_name(method);
  names[n] = NULL;
  const char *found = perigee__nearest(name, names);
  /* An alias lives in this frame: tell the canonical name. */
  int op = found != NULL ? perigee_op_find(found) : -1;
  return op >= 0 ? perigee_op_name(op) : found;
}

static bool field_is_set(lua_State *L, int index, const char *name, size_t len) {
  lua_pushlstring(L, name, len);
  bool set = lua_rawget(L, index) != LUA_TNIL;
  lua_pop(L, 1);
  return set;
}

/* An operation under two names: which of them would count? */
static void refuse_second_name(lua_State *L, int index, const char *name, int op) {
  const perigee_op_info *info = perigee_op_get(op);
  const char *other = NULL;
  if (strcmp(info->name, name) != 0 && field_is_set(L, index, info->name, strlen(info->name)))
    other = info->name;
  for (const char *at = info->aliases; *at != '\0' && other == NULL;) {
    size_t len = strcspn(at, " ");
    bool me = strlen(name) == len && strncmp(name, at, len) == 0;
    if (!me && field_is_set(L, index, at, len))
      other = lua_pushlstring(L, at, len);
    at += len + strspn(at + len, " ");
  }
  if (other != NULL)
    perigee__raise(L, PERIGEE_EINVAL,
                   "a backend defines both '%s' and '%s', which are two names of one operation",
                   other, name);
}

void perigee__backend_check_name(lua_State *L, int index, const char *name) {
  int op = perigee_op_find(name);
  if (op >= 0) {
    refuse_second_name(L, index, name, op);
    return;
  }
  for (int method = 0; method < PERIGEE_METHOD_COUNT; method++)
    if (strcmp(name, perigee_method_name(method)) == 0)
      return;
  if (name[0] == '_' || strcmp(name, "name") == 0)
    return;
  const char *near = nearest_name(name);
  if (near != NULL)
    perigee__raise(L, PERIGEE_EINVAL,
                   "a backend has no %s '%s' (did you mean '%s'?); a helper's name starts with '_'",
                   perigee_op_find(near) >= 0 ? "operation" : "method", name, near);
}

/* Every function in the table itself. */
void perigee__backend_check_table(lua_State *L, int index) {
  index = lua_absindex(L, index);
  for (lua_pushnil(L); lua_next(L, index); lua_pop(L, 1))
    if (lua_type(L, -2) == LUA_TSTRING && lua_type(L, -1) == LUA_TFUNCTION)
      perigee__backend_check_name(L, index, lua_tostring(L, -2));
}

void perigee__backend_method(lua_State *L, int index, const perigee_op_info *info) {
  if (lua_getfield(L, index, info->name) != LUA_TNIL)
    return;
  for (const char *at = info->aliases; *at != '\0';) {
    size_t len = strcspn(at, " ");
    lua_pop(L, 1);
    lua_pushlstring(L, at, len);
    if (lua_gettable(L, index) != LUA_TNIL)
      return;
    at += len + strspn(at + len, " ");
  }
}

/* ---- perigee.backend ----------------------------------------------------------------------------- */

/* B[name] = value: a misspelt operation is refused where it is written. */
static int l_newindex(lua_State *L) {
  if (lua_type(L, 2) == LUA_TSTRING && lua_type(L, 3) == LUA_TFUNCTION)
    perigee__backend_check_name(L, 1, lua_tostring(L, 2));
  lua_rawset(L, 1);
  return 0;
}

static int l_tostring(lua_State *L) {
  lua_pushliteral(L, "name");
  lua_rawget(L, 1);
  lua_pushfstring(L, "backend '%s'", luaL_tolstring(L, -1, NULL));
  return 1;
}

/* The table on top becomes a backend table. */
static void make_backend_table(lua_State *L, const char *inner) {
  lua_createtable(L, 0, 5);
  static const luaL_Reg meta[] = {
      {"__newindex", l_newindex}, {"__tostring", l_tostring}, {NULL, NULL}};
  perigee__functions_add(L, meta);
  lua_pushliteral(L, "perigee.Backend");
  lua_setfield(L, -2, "__name");
  lua_pushstring(L, inner != NULL ? inner : "");
  lua_rawsetp(L, -2, &mark_key);
  lua_setmetatable(L, -2);
}

/* Register the backend table on top of the stack. inner: NULL for a bottom backend. */
static void register_table(lua_State *L, const char *name, const char *inner) {
  perigee_interp *interp = perigee__interp_of_state(L);
  lua_pushvalue(L, -1);
  perigee__luaref *table = perigee__luaref_create(interp, L);
  perigee__lbackend *b = malloc(sizeof(*b));
  if (b == NULL) {
    perigee__luaref_drop(table);
    perigee__raise(L, PERIGEE_ENOMEM, "no memory for a backend");
  }
  *b = (perigee__lbackend){.interp = interp, .table = table};
  perigee__interp_ref(interp);
  int rc = perigee_backend_register(name, inner, &perigee__lua_backend_ops, b);
  if (rc < 0) {
    perigee__lua_backend_ops.drop(b);
    perigee__raise_last(L);
  }
  perigee__copy_text(interp->last_backend, sizeof(interp->last_backend), name);
}

/* Field `inner` of the table at index: NULL for false, "native" by default. The string stays on the stack. [-0, +1, e] */
static const char *inner_field(lua_State *L, int index, const char *function, int arg) {
  int type = lua_getfield(L, index, "inner");
  if (type == LUA_TNIL)
    return "native";
  if (type == LUA_TBOOLEAN && !lua_toboolean(L, -1))
    return NULL;
  if (type != LUA_TSTRING)
    perigee__raise_arg(L, function, arg,
                       "inner: a stack (string), or false for none, expected, got %s",
                       perigee__type_name(L, -1));
  return lua_tostring(L, -1);
}

/* perigee.backend(name [, {inner = "native"}]) */
static int l_backend(lua_State *L) {
  static const char *const known[] = {"inner", NULL};
  if (lua_type(L, 1) != LUA_TSTRING)
    perigee__raise_arg(L, "backend", 1, "name expected, got %s", perigee__type_name(L, 1));
  lua_settop(L, 2);
  const char *inner = "native";
  if (!lua_isnil(L, 2)) {
    if (lua_type(L, 2) != LUA_TTABLE)
      perigee__raise_arg(L, "backend", 2, "options table expected, got %s",
                         perigee__type_name(L, 2));
    perigee__check_keys(L, 2, "backend", 2, known);
    inner = inner_field(L, 2, "backend", 2);
  }
  lua_newtable(L);
  lua_pushvalue(L, 1);
  lua_setfield(L, -2, "name");
  make_backend_table(L, inner);
  register_table(L, lua_tostring(L, 1), inner);
  return 1;
}

void perigee__backend_adopt(lua_State *L, const char *name) {
  int table = lua_gettop(L);
  const char *inner;
  if (lua_getmetatable(L, table)) {
    if (lua_rawgetp(L, -1, &mark_key) == LUA_TSTRING) {
      /* Made by perigee.backend, maybe under another name. */
      inner = lua_tostring(L, -1);
      lua_getfield(L, table, "name");
      const char *own = lua_tostring(L, -1);
      bool registered = own != NULL && strcmp(own, name) == 0;
      lua_pushvalue(L, table);
      if (!registered)
        register_table(L, name, inner[0] != '\0' ? inner : NULL);
      lua_settop(L, table);
      return;
    }
    lua_settop(L, table);
  }
  inner = inner_field(L, table, name, 1);
  perigee__backend_check_table(L, table);
  lua_pushvalue(L, table);
  register_table(L, name, inner);
  lua_settop(L, table);
}

/*
 * perigee.backend_inner(name): its default stack below, false for a bottom; nil when there is no such backend. Second value: whether
 * it is a Lua table of another interpreter.
 */
static int l_backend_inner(lua_State *L) {
  if (lua_type(L, 1) != LUA_TSTRING)
    perigee__raise_arg(L, "backend_inner", 1, "name expected, got %s", perigee__type_name(L, 1));
  perigee__backend *backend;
  int rc = perigee__backend_find(lua_tostring(L, 1), &backend);
  if (rc == PERIGEE_ENOENT && !perigee_backend_exists(lua_tostring(L, 1))) {
    lua_pushnil(L);
    return 1;
  }
  perigee__check(L, rc);
  char inner[1024]; /* the entry may be replaced meanwhile, and what pushes a string may raise */
  bool bottom = backend->inner == NULL;
  bool foreign = backend->ops.open == perigee__lua_backend_ops.open &&
                 ((perigee__lbackend *)backend->self)->interp != perigee__interp_here(L);
  perigee__copy_text(inner, sizeof(inner), backend->inner);
  perigee__backend_unref(backend);
  if (bottom)
    lua_pushboolean(L, 0);
  else
    lua_pushstring(L, inner);
  lua_pushboolean(L, foreign);
  return 2;
}

void perigee__lbackend_open(lua_State *L) {
  static const luaL_Reg functions[] = {
      {"backend", l_backend}, {"backend_inner", l_backend_inner}, {NULL, NULL}};
  perigee__functions_add(L, functions);
}
