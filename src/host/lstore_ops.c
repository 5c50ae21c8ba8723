/*
 * Every operation gives the interpreter up: a TCP store answers from elsewhere, and any store may make the caller wait.
 * The strings an operation uses stay on the Lua stack meanwhile. Results in C memory are turned into Lua strings under
 * protection of a box that frees them if that raises.
 */
#include "host/lstore_ops.h"

#include <stdlib.h>
#include <string.h>

#include "host/call.h"
#include "host/lerror.h"
#include "host/lstore.h"

static perigee_store *self(lua_State *L, const char *method) {
  const perigee__box *box = perigee__object_self(L, &perigee__type_store, method);
  if (box->ptr == NULL)
    perigee__raise(L, PERIGEE_ECLOSED, "'%s' on a store that has been collected", method);
  return box->ptr;
}

/* Run _call with the interpreter given up; raise when it fails. */
#define OUTSIDE(_L, _call)                                                                         \
  do {                                                                                             \
    perigee_interp *_interp = perigee__interp_here(_L);                                            \
    perigee__gap _gap;                                                                             \
    perigee__gap_open(_interp, _L, &_gap);                                                         \
    int _rc = (_call);                                                                             \
    perigee__gap_close(_interp, &_gap);                                                            \
    perigee__check(_L, _rc);                                                                       \
  } while (0)

static const char *key_arg(lua_State *L, const char *method) {
  if (lua_type(L, 2) != LUA_TSTRING)
    perigee__raise_arg(L, method, 1, "key: string expected, got %s", perigee__type_name(L, 2));
  return lua_tostring(L, 2);
}

static const char *value_arg(lua_State *L, int arg, const char *method, size_t *size_p) {
  if (lua_type(L, arg + 1) != LUA_TSTRING && lua_type(L, arg + 1) != LUA_TNUMBER)
    perigee__raise_arg(L, method, arg, "value: string expected, got %s",
                       perigee__type_name(L, arg + 1));
  return lua_tolstring(L, arg + 1, size_p);
}

/* Seconds, nil: the handle's default (-1). */
static int64_t timeout_arg(lua_State *L, int arg, const char *method) {
  if (lua_isnoneornil(L, arg + 1))
    return -1;
  return perigee__seconds_arg(L, arg + 1, method, arg, true);
}

/* ---- results in C memory ------------------------------------------------------------------------- */

typedef struct values {
  perigee_bytes *list;
  size_t n;
} values;

static int values_gc(lua_State *L) {
  values *v = lua_touserdata(L, 1);
  for (size_t i = 0; i < v->n; i++)
    perigee_bytes_free(&v->list[i]);
  free(v->list);
  v->list = NULL;
  v->n = 0;
  return 0;
}

/* [-0, +1, m] Room for n values that are freed with it. */
static values *values_new(lua_State *L, size_t n) {
  values *v = lua_newuserdatauv(L, sizeof(*v), 0);
  *v = (values){NULL, 0};
  if (luaL_newmetatable(L, "perigee.StoreValues")) {
    lua_pushcfunction(L, values_gc);
    lua_setfield(L, -2, "__gc");
  }
  lua_setmetatable(L, -2);
  v->list = calloc(n + 1, sizeof(*v->list));
  if (v->list == NULL)
    luaL_error(L, "not enough memory");
  v->n = n;
  return v;
}

static int push_value(lua_State *L, values *v) {
  lua_pushlstring(L, v->list[0].data, v->list[0].size);
  perigee_bytes_free(&v->list[0]);
  v->list[0] = (perigee_bytes){NULL, 0};
  return 1;
}

/* ---- single keys --------------------------------------------------------------------------------- */

static int l_set(lua_State *L) {
  perigee_store *s = self(L, "set");
  const char *key = key_arg(L, "set");
  size_t size;
  const char *value = value_arg(L, 2, "set", &size);
  OUTSIDE(L, perigee_store_set(s, key, value, size));
  return 0;
}

/* store:get(key [, seconds]): waits until it exists */
static int l_get(lua_State *L) {
  perigee_store *s = self(L, "get");
  const char *key = key_arg(L, "get");
  int64_t timeout_ns = timeout_arg(L, 2, "get");
  values *v = values_new(L, 1);
  OUTSIDE(L, perigee_store_get(s, key, timeout_ns, &v->list[0]));
  return push_value(L, v);
}

/* store:add(key [, delta]) -> integer */
static int l_add(lua_State *L) {
  perigee_store *s = self(L, "add");
  const char *key = key_arg(L, "add");
  lua_Integer delta = luaL_optinteger(L, 3, 1);
  int64_t value;
  OUTSIDE(L, perigee_store_add(s, key, delta, &value));
  lua_pushinteger(L, value);
  return 1;
}

/* store:compare_set(key, expected, desired) -> the value afterwards */
static int l_compare_set(lua_State *L) {
  perigee_store *s = self(L, "compare_set");
  const char *key = key_arg(L, "compare_set");
  size_t expected_size, desired_size;
  const char *expected = value_arg(L, 2, "compare_set", &expected_size);
  const char *desired = value_arg(L, 3, "compare_set", &desired_size);
  values *v = values_new(L, 1);
  OUTSIDE(L, perigee_store_compare_set(s, key, expected, expected_size, desired, desired_size,
                                       &v->list[0]));
  return push_value(L, v);
}

static int l_delete_key(lua_State *L) {
  perigee_store *s = self(L, "delete_key");
  const char *key = key_arg(L, "delete_key");
  bool deleted;
  OUTSIDE(L, perigee_store_delete_key(s, key, &deleted));
  lua_pushboolean(L, deleted);
  return 1;
}

static int l_append(lua_State *L) {
  perigee_store *s = self(L, "append");
  const char *key = key_arg(L, "append");
  size_t size;
  const char *value = value_arg(L, 2, "append", &size);
  OUTSIDE(L, perigee_store_append(s, key, value, size));
  return 0;
}

/* ---- several keys -------------------------------------------------------------------------------- */

/* A list of keys at index 2, or one key. The strings are copied onto the stack. [-0, +n, e] */
static const char **keys_arg(lua_State *L, const char *method, size_t *n_p) {
  if (lua_type(L, 2) == LUA_TSTRING) {
    const char **one = lua_newuserdatauv(L, sizeof(*one), 0);
    one[0] = lua_tostring(L, 2);
    *n_p = 1;
    return one;
  }
  if (lua_type(L, 2) != LUA_TTABLE)
    perigee__raise_arg(L, method, 1, "list of keys expected, got %s", perigee__type_name(L, 2));
  size_t n = lua_rawlen(L, 2);
  luaL_checkstack(L, (int)(n < 100000 ? n : 100000) + 8, "too many keys");
  if (n > 100000)
    perigee__raise_arg(L, method, 1, "%zu keys are too many", n);
  const char **keys = lua_newuserdatauv(L, (n + 1) * sizeof(*keys), 0);
  for (size_t i = 0; i < n; i++) {
    if (lua_rawgeti(L, 2, (lua_Integer)i + 1) != LUA_TSTRING)
      perigee__raise_arg(L, method, 1, "element %zu of the list is a %s, string expected", i + 1,
                         perigee__type_name(L, -1));
    keys[i] = lua_tostring(L, -1);
  }
  *n_p = n;
  return keys;
}

/* store:wait(keys [, seconds]) */
static int l_wait(lua_State *L) {
  perigee_store *s = self(L, "wait");
  int64_t timeout_ns = timeout_arg(L, 2, "wait");
  size_t n;
  const char **keys = keys_arg(L, "wait", &n);
  OUTSIDE(L, perigee_store_wait(s, keys, n, timeout_ns));
  return 0;
}

/* store:check(keys) -> whether all exist */
static int l_check(lua_State *L) {
  perigee_store *s = self(L, "check");
  size_t n;
  const char **keys = keys_arg(L, "check", &n);
  bool all;
  OUTSIDE(L, perigee_store_check(s, keys, n, &all));
  lua_pushboolean(L, all);
  return 1;
}

/* store:multi_get(keys [, seconds]) -> list of values */
static int l_multi_get(lua_State *L) {
  perigee_store *s = self(L, "multi_get");
  int64_t timeout_ns = timeout_arg(L, 2, "multi_get");
  size_t n;
  const char **keys = keys_arg(L, "multi_get", &n);
  values *v = values_new(L, n);
  OUTSIDE(L, perigee_store_multi_get(s, keys, n, timeout_ns, v->list));
  lua_createtable(L, (int)n, 0);
  for (size_t i = 0; i < n; i++) {
    lua_pushlstring(L, v->list[i].data, v->list[i].size);
    lua_rawseti(L, -2, (lua_Integer)i + 1);
  }
  return 1;
}

/* store:multi_set(keys, values) */
static int l_multi_set(lua_State *L) {
  perigee_store *s = self(L, "multi_set");
  if (lua_type(L, 3) != LUA_TTABLE)
    perigee__raise_arg(L, "multi_set", 2, "list of values expected, got %s",
                       perigee__type_name(L, 3));
  size_t n;
  const char **keys = keys_arg(L, "multi_set", &n);
  if (lua_rawlen(L, 3) != n)
    perigee__raise_arg(L, "multi_set", 2, "%zu keys but %llu values", n,
                       (unsigned long long)lua_rawlen(L, 3));
  luaL_checkstack(L, (int)n + 8, "too many values");
  perigee_bytes *list = lua_newuserdatauv(L, (n + 1) * sizeof(*list), 0);
  for (size_t i = 0; i < n; i++) {
    if (lua_rawgeti(L, 3, (lua_Integer)i + 1) != LUA_TSTRING)
      perigee__raise_arg(L, "multi_set", 2, "element %zu of the list is a %s, string expected",
                         i + 1, perigee__type_name(L, -1));
    list[i].data = (char *)lua_tolstring(L, -1, &list[i].size); /* only read */
  }
  OUTSIDE(L, perigee_store_multi_set(s, keys, list, n));
  return 0;
}

static int l_num_keys(lua_State *L) {
  perigee_store *s = self(L, "num_keys");
  int64_t n;
  OUTSIDE(L, perigee_store_num_keys(s, &n));
  lua_pushinteger(L, n);
  return 1;
}

static int l_list_keys(lua_State *L) {
  perigee_store *s = self(L, "list_keys");
  values *v = values_new(L, 0);
  char **keys;
  size_t n;
  OUTSIDE(L, perigee_store_list_keys(s, &keys, &n));
  /* Move the strings into the box, which frees them whatever comes. */
  perigee_bytes *list = calloc(n + 1, sizeof(*list));
  if (list == NULL) {
    perigee_store_keys_free(keys, n);
    luaL_error(L, "not enough memory");
  }
  for (size_t i = 0; i < n; i++) {
    list[i] = (perigee_bytes){keys[i], strlen(keys[i])};
    keys[i] = NULL;
  }
  perigee_store_keys_free(keys, n);
  free(v->list);
  *v = (values){list, n};
  lua_createtable(L, (int)n, 0);
  for (size_t i = 0; i < n; i++) {
    lua_pushlstring(L, list[i].data, list[i].size);
    lua_rawseti(L, -2, (lua_Integer)i + 1);
  }
  return 1;
}

/* ---- queues, barrier, handle --------------------------------------------------------------------- */

static int l_queue_push(lua_State *L) {
  perigee_store *s = self(L, "queue_push");
  const char *key = key_arg(L, "queue_push");
  size_t size;
  const char *value = value_arg(L, 2, "queue_push", &size);
  OUTSIDE(L, perigee_store_queue_push(s, key, value, size));
  return 0;
}

/* store:queue_pop(key [, seconds]): 0 seconds: raises EAGAIN when it is empty */
static int l_queue_pop(lua_State *L) {
  perigee_store *s = self(L, "queue_pop");
  const char *key = key_arg(L, "queue_pop");
  int64_t timeout_ns = timeout_arg(L, 2, "queue_pop");
  values *v = values_new(L, 1);
  OUTSIDE(L, perigee_store_queue_pop(s, key, timeout_ns, &v->list[0]));
  return push_value(L, v);
}

static int l_queue_len(lua_State *L) {
  perigee_store *s = self(L, "queue_len");
  const char *key = key_arg(L, "queue_len");
  int64_t n;
  OUTSIDE(L, perigee_store_queue_len(s, key, &n));
  lua_pushinteger(L, n);
  return 1;
}

/* store:barrier(key, size [, seconds]) */
static int l_barrier(lua_State *L) {
  perigee_store *s = self(L, "barrier");
  const char *key = key_arg(L, "barrier");
  lua_Integer n = luaL_checkinteger(L, 3);
  if (n < 1 || n > INT32_MAX)
    perigee__raise_arg(L, "barrier", 2, "size: %lld is no number of ranks", (long long)n);
  int64_t timeout_ns = timeout_arg(L, 3, "barrier");
  OUTSIDE(L, perigee_store_barrier(s, key, (int)n, timeout_ns));
  return 0;
}

static int l_set_timeout(lua_State *L) {
  perigee_store *s = self(L, "set_timeout");
  perigee_store_set_timeout(s, perigee__seconds_arg(L, 2, "set_timeout", 1, false));
  return 0;
}

/* store:clone(): a handle with a connection of its own */
static int l_clone(lua_State *L) {
  perigee_store *s = self(L, "clone");
  perigee__box *box = perigee__object_new(L, &perigee__type_store, sizeof(perigee__box), 0);
  perigee_store *store;
  OUTSIDE(L, perigee_store_clone(s, &store));
  box->ptr = store;
  return 1;
}

const luaL_Reg perigee__lstore_ops[] = {
    {"set", l_set},
    {"get", l_get},
    {"add", l_add},
    {"compare_set", l_compare_set},
    {"wait", l_wait},
    {"check", l_check},
    {"delete_key", l_delete_key},
    {"num_keys", l_num_keys},
    {"list_keys", l_list_keys},
    {"append", l_append},
    {"multi_get", l_multi_get},
    {"multi_set", l_multi_set},
    {"queue_push", l_queue_push},
    {"queue_pop", l_queue_pop},
    {"queue_len", l_queue_len},
    {"barrier", l_barrier},
    {"set_timeout", l_set_timeout},
    {"clone", l_clone},
    {NULL, NULL},
};
