#include "host/lerror.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "host/object.h"

static const char meta_key; /* registry: the metatable */

bool perigee__error_is(lua_State *L, int index) {
  if (lua_type(L, index) != LUA_TTABLE || !lua_getmetatable(L, index))
    return false;
  lua_rawgetp(L, LUA_REGISTRYINDEX, &meta_key);
  bool same = lua_rawequal(L, -1, -2);
  lua_pop(L, 2);
  return same;
}

void perigee__error_bless(lua_State *L) {
  lua_rawgetp(L, LUA_REGISTRYINDEX, &meta_key);
  lua_setmetatable(L, -2);
}

void perigee__copy_text(char *to, size_t size, const char *text) {
  snprintf(to, size, "%s", text != NULL ? text : "");
}

static void one_line(char *text) {
  for (; *text != '\0'; text++)
    if (*text == '\n')
      *text = ' ';
}

void perigee__copy_line(char *to, size_t size, const char *text) {
  perigee__copy_text(to, size, text);
  one_line(to);
}

/* ---- out ----------------------------------------------------------------------------------------- */

static void set_int(lua_State *L, const char *name, lua_Integer value) {
  lua_pushinteger(L, value);
  lua_setfield(L, -2, name);
}

static void set_text(lua_State *L, const char *name, const char *value) {
  if (value[0] == '\0')
    return;
  lua_pushstring(L, value);
  lua_setfield(L, -2, name);
}

void perigee__error_push(lua_State *L, const perigee_error *error) {
  luaL_checkstack(L, 6, NULL);
  lua_createtable(L, 0, 8); // [ e ]
  lua_pushstring(L, perigee_err_name(error->code));
  lua_setfield(L, -2, "code");
  lua_pushstring(L, error->message[0] != '\0' ? error->message : perigee_strerror(error->code));
  lua_setfield(L, -2, "message");
  if (error->op >= 0)
    set_text(L, "op", perigee_op_name(error->op));
  if (error->seq > 0)
    set_int(L, "seq", (lua_Integer)error->seq);
  set_text(L, "group", error->group);
  if (error->rank >= 0)
    set_int(L, "rank", error->rank);
  if (error->origin >= 0)
    set_int(L, "origin", error->origin);
  lua_createtable(L, error->nranks, 0);
  for (int i = 0; i < error->nranks; i++) {
    lua_pushinteger(L, error->ranks[i]);
    lua_rawseti(L, -2, i + 1);
  }
  lua_setfield(L, -2, "ranks");
  set_text(L, "traceback", error->traceback);
  lua_rawgetp(L, LUA_REGISTRYINDEX, &meta_key);
  lua_setmetatable(L, -2);
}

/* ---- in ------------------------------------------------------------------------------------------ */

static int code_of_name(const char *name) {
  static const struct {
    const char *name;
    int code;
  } codes[] = {
#define XX(_name, _number, _text) {#_name, PERIGEE_##_name},
      PERIGEE_ERR_MAP(XX)
#undef XX
  };
  for (size_t i = 0; i < PERIGEE_COUNT(codes); i++)
    if (strcmp(codes[i].name, name) == 0)
      return codes[i].code;
  for (int code = -1; code > -4096; code--) /* system codes: rare */
    if (strcmp(perigee_err_name(code), name) == 0)
      return code;
  return PERIGEE_ELUA;
}

/* [-0, +1, m] */
static int raw_field(lua_State *L, int index, const char *name) {
  lua_pushstring(L, name);
  return lua_rawget(L, index);
}

static void get_text(lua_State *L, int index, const char *name, char *to, size_t size) {
  if (raw_field(L, index, name) == LUA_TSTRING)
    perigee__copy_text(to, size, lua_tostring(L, -1));
  lua_pop(L, 1);
}

static lua_Integer get_int(lua_State *L, int index, const char *name, lua_Integer fallback) {
  raw_field(L, index, name);
  int is_int;
  lua_Integer value = lua_tointegerx(L, -1, &is_int);
  lua_pop(L, 1);
  return is_int ? value : fallback;
}

bool perigee__error_get(lua_State *L, int index, perigee_error *error) {
  luaL_checkstack(L, 6, NULL);
  if (!perigee__error_is(L, index))
    return false;
  index = lua_absindex(L, index);
  perigee__error_init(error);
  char name[64] = "";
  get_text(L, index, "code", name, sizeof(name));
  error->code = code_of_name(name);
  get_text(L, index, "message", error->message, sizeof(error->message));
  one_line(error->message);
  get_text(L, index, "traceback", error->traceback, sizeof(error->traceback));
  get_text(L, index, "group", error->group, sizeof(error->group));
  name[0] = '\0';
  get_text(L, index, "op", name, sizeof(name));
  error->op = name[0] != '\0' ? perigee_op_find(name) : -1;
  lua_Integer seq = get_int(L, index, "seq", 0);
  error->seq = seq > 0 ? (uint64_t)seq : 0;
  error->rank = (int)get_int(L, index, "rank", -1);
  error->origin = (int)get_int(L, index, "origin", -1);
  if (raw_field(L, index, "ranks") == LUA_TTABLE)
    for (lua_Integer i = 1; lua_rawgeti(L, -1, i) == LUA_TNUMBER; i++) {
      perigee__error_add_rank(error, (int)lua_tointeger(L, -1));
      lua_pop(L, 1);
    }
  else
    lua_pushnil(L);
  lua_pop(L, 2);
  return true;
}

void perigee__error_any(lua_State *L, int index, perigee_error *error) {
  if (perigee__error_get(L, index, error))
    return;
  perigee__error_init(error);
  error->code = PERIGEE_ELUA;
  perigee__copy_line(error->message, sizeof(error->message), luaL_tolstring(L, index, NULL));
  lua_pop(L, 1);
}

int perigee__error_object(lua_State *L) {
  if (perigee__error_is(L, 1))
    return 1;
  perigee_error error;
  perigee__error_any(L, 1, &error);
  luaL_traceback(L, L, NULL, 1);
  perigee__copy_text(error.traceback, sizeof(error.traceback), lua_tostring(L, -1));
  perigee__error_push(L, &error);
  return 1;
}

/* ---- raising ------------------------------------------------------------------------------------- */

void perigee__raise_error(lua_State *L, const perigee_error *error) {
  perigee_error copy =
      *error; /* it may be the thread's last error, which what follows could change */
  perigee__error_push(L, &copy);
  if (copy.traceback[0] == '\0') {
    luaL_traceback(L, L, NULL, 1);
    lua_setfield(L, -2, "traceback");
  }
  lua_error(L);
  __builtin_unreachable();
}

void perigee__raise_last(lua_State *L) { perigee__raise_error(L, perigee_last_error()); }

/* Position of the script that called, in front of the text: a wrong call is found by it. */
static void raise_at(lua_State *L, int code, const char *text) {
  perigee_error error;
  luaL_where(L, 1);
  perigee__error_set(&error, code, "%s%s", lua_tostring(L, -1), text);
  perigee__raise_error(L, &error);
}

void perigee__raise(lua_State *L, int code, const char *fmt, ...) {
  char text[sizeof(((perigee_error *)NULL)->message)];
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(text, sizeof(text), fmt, ap);
  va_end(ap);
  raise_at(L, code, text);
  __builtin_unreachable();
}

void perigee__raise_arg(lua_State *L, const char *function, int arg, const char *fmt, ...) {
  char detail[384], text[512];
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(detail, sizeof(detail), fmt, ap);
  va_end(ap);
  snprintf(text, sizeof(text), "bad argument #%d to '%s' (%s)", arg, function, detail);
  raise_at(L, PERIGEE_EINVAL, text);
  __builtin_unreachable();
}

/* ---- the type ------------------------------------------------------------------------------------ */

static int l_error_tostring(lua_State *L) {
  perigee_error error;
  if (!perigee__error_get(L, 1, &error))
    return luaL_typeerror(L, 1, "perigee error");
  char line[1024];
  perigee_error_format(&error, line, sizeof(line));
  lua_pushstring(L, line);
  return 1;
}

/* perigee.error(code, message [, fields]): an error object, for error() and future:set_error(). */
static int l_error_new(lua_State *L) {
  const char *code = luaL_checkstring(L, 1);
  perigee_error error;
  perigee__error_init(&error);
  error.code = code_of_name(code);
  if (strcmp(perigee_err_name(error.code), code) != 0)
    perigee__raise_arg(L, "error", 1, "unknown code '%s'", code);
  perigee__copy_line(error.message, sizeof(error.message), luaL_checkstring(L, 2));
  perigee__error_push(L, &error);
  if (!lua_isnoneornil(L, 3)) {
    luaL_checktype(L, 3, LUA_TTABLE);
    for (lua_pushnil(L); lua_next(L, 3); lua_pop(L, 1)) {
      lua_pushvalue(L, -2);
      lua_pushvalue(L, -2); // [ ..., e, k, v, k, v ]
      lua_settable(L, -5);
    }
  }
  return 1;
}

void perigee__lerror_open(lua_State *L) {
  if (lua_rawgetp(L, LUA_REGISTRYINDEX, &meta_key) == LUA_TNIL) {
    lua_createtable(L, 0, 2);
    lua_pushliteral(L, "perigee.Error");
    lua_setfield(L, -2, "__name");
    lua_pushcfunction(L, l_error_tostring);
    lua_setfield(L, -2, "__tostring");
    lua_rawsetp(L, LUA_REGISTRYINDEX, &meta_key);
  }
  lua_pop(L, 1);
  lua_pushcfunction(L, l_error_new);
  lua_setfield(L, -2, "error");
}

const char *perigee__type_name(lua_State *L, int index) {
  const char *name = perigee__object_name(L, index);
  if (name != NULL)
    return name;
  if (perigee__error_is(L, index))
    return "error object";
  return lua_type(L, index) == LUA_TNONE ? "nil" : luaL_typename(L, index);
}
