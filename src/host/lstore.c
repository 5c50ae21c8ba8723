#include "host/lstore.h"

#include <string.h>

#include "host/call.h"
#include "host/lerror.h"
#include "host/lstore_ops.h"

void perigee__store_push(lua_State *L, perigee_store *store) {
  if (store == NULL) {
    lua_pushnil(L);
    return;
  }
  perigee__box *box = perigee__object_new(L, &perigee__type_store, sizeof(perigee__box), 0);
  box->ptr = perigee_store_ref(store);
}

perigee_store *perigee__store_opt(lua_State *L, int index, const char *function, int arg) {
  if (lua_isnoneornil(L, index))
    return NULL;
  const perigee__box *box = perigee__object_get(L, index, &perigee__type_store);
  if (box == NULL || box->ptr == NULL)
    perigee__raise_arg(L, function, arg, "store: perigee.store expected, got %s",
                       perigee__type_name(L, index));
  return box->ptr;
}

static int l_gc(lua_State *L) {
  perigee__box *box = perigee__object_get(L, 1, &perigee__type_store);
  if (box != NULL) {
    perigee_store_unref(box->ptr);
    box->ptr = NULL;
  }
  return 0;
}

static int l_tostring(lua_State *L) {
  const perigee__box *box = perigee__object_self(L, &perigee__type_store, "tostring");
  lua_pushfstring(L, "store (%s)", box->ptr != NULL ? perigee_store_kind(box->ptr) : "closed");
  return 1;
}

/* ---- making -------------------------------------------------------------------------------------- */

static perigee__box *slot(lua_State *L) {
  return perigee__object_new(L, &perigee__type_store, sizeof(perigee__box), 0);
}

static int l_hash(lua_State *L) {
  perigee__box *box = slot(L);
  perigee_store *store;
  perigee__check(L, perigee_store_hash_create(&store));
  box->ptr = store;
  return 1;
}

/* perigee.store.file(path) */
static int l_file(lua_State *L) {
  const char *path = luaL_checkstring(L, 1);
  perigee__box *box = slot(L);
  perigee_store *store;
  perigee__check(L, perigee_store_file_create(path, &store));
  box->ptr = store;
  return 1;
}

/* perigee.store.prefix(prefix, store) */
static int l_prefix(lua_State *L) {
  const char *prefix = luaL_checkstring(L, 1);
  perigee_store *inner = perigee__store_opt(L, 2, "prefix", 2);
  if (inner == NULL)
    perigee__raise_arg(L, "prefix", 2, "store expected, got nil");
  perigee__box *box = slot(L);
  perigee_store *store;
  perigee__check(L, perigee_store_prefix_create(prefix, inner, &store));
  box->ptr = store;
  return 1;
}

/* perigee.store.tcp(host, port [, {timeout =, world_size =}]) */
static int l_tcp(lua_State *L) {
  perigee_interp *interp = perigee__interp_here(L);
  perigee_store_tcp_options opts = {.size = sizeof(opts)};
  lua_settop(L, 3);
  opts.host = luaL_checkstring(L, 1);
  lua_Integer port = luaL_checkinteger(L, 2);
  if (port < 1 || port > 65535)
    perigee__raise_arg(L, "tcp", 2, "port %lld is outside 1..65535", (long long)port);
  opts.port = (int)port;
  if (!lua_isnil(L, 3)) {
    luaL_checktype(L, 3, LUA_TTABLE);
    if (lua_getfield(L, 3, "timeout") != LUA_TNIL)
      opts.timeout_ns = perigee__seconds_arg(L, -1, "tcp", 3, false);
    lua_getfield(L, 3, "world_size");
    opts.world_size = (int)luaL_optinteger(L, -1, 0);
    lua_pop(L, 2);
  }
  perigee__box *box = slot(L);
  perigee_store *store;
  perigee__gap gap;
  perigee__gap_open(interp, L, &gap);
  int rc = perigee_store_tcp_connect(&opts, &store);
  perigee__gap_close(interp, &gap);
  perigee__check(L, rc);
  box->ptr = store;
  return 1;
}

/* ---- the server ---------------------------------------------------------------------------------- */

/* perigee.store.server([port [, address]]): port 0 or none: chosen by the kernel */
static int l_server(lua_State *L) {
  lua_Integer port = luaL_optinteger(L, 1, 0);
  const char *address = luaL_optstring(L, 2, NULL);
  if (port < 0 || port > 65535)
    perigee__raise_arg(L, "server", 1, "port %lld is outside 0..65535", (long long)port);
  perigee__box *box = perigee__object_new(L, &perigee__type_server, sizeof(perigee__box), 0);
  perigee_store_server *server;
  perigee__check(L, perigee_store_server_create(address, (int)port, &server));
  box->ptr = server;
  return 1;
}

/* Its thread answers requests and never enters Lua: joining it here does not wait for anybody else. */
static int l_server_close(lua_State *L) {
  perigee__box *box = perigee__object_get(L, 1, &perigee__type_server);
  if (box != NULL && box->ptr != NULL) {
    perigee_store_server *server = box->ptr;
    box->ptr = NULL;
    perigee_store_server_destroy(&server);
  }
  return 0;
}

static int l_server_index(lua_State *L) {
  const perigee__box *box = perigee__object_self(L, &perigee__type_server, "index");
  lua_pushvalue(L, 2);
  if (lua_rawget(L, lua_upvalueindex(2)) != LUA_TNIL || lua_type(L, 2) != LUA_TSTRING)
    return 1;
  if (strcmp(lua_tostring(L, 2), "port") == 0 && box->ptr != NULL)
    lua_pushinteger(L, perigee_store_server_port(box->ptr));
  else
    lua_pushnil(L);
  return 1;
}

static int l_index(lua_State *L) {
  lua_pushvalue(L, 2);
  if (lua_rawget(L, lua_upvalueindex(2)) != LUA_TNIL || lua_type(L, 2) != LUA_TSTRING)
    return 1;
  const perigee__box *box = perigee__object_self(L, &perigee__type_store, "index");
  if (strcmp(lua_tostring(L, 2), "kind") == 0 && box->ptr != NULL)
    lua_pushstring(L, perigee_store_kind(box->ptr));
  else
    lua_pushnil(L);
  return 1;
}

void perigee__lstore_open(lua_State *L) {
  static const luaL_Reg meta[] = {{"__gc", l_gc}, {"__tostring", l_tostring}, {NULL, NULL}};
  static const luaL_Reg server_meta[] = {
      {"__gc", l_server_close}, {"__close", l_server_close}, {NULL, NULL}};
  static const luaL_Reg server_methods[] = {{"close", l_server_close}, {NULL, NULL}};
  static const luaL_Reg functions[] = {
      {"hash", l_hash}, {"file", l_file},     {"prefix", l_prefix},
      {"tcp", l_tcp},   {"server", l_server}, {NULL, NULL},
  };
  perigee__type_open(L, &perigee__type_store, meta, perigee__lstore_ops, l_index);
  perigee__type_open(L, &perigee__type_server, server_meta, server_methods, l_server_index);
  lua_newtable(L);
  perigee__functions_add(L, functions);
  lua_setfield(L, -2, "store");
}
