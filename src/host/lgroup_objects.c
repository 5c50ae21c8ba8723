/*
 * Lua values between ranks: broadcast_object and its siblings.
 *
 * Two steps: the sizes travel first, then the bytes, both by the group's ordinary operations. A rank whose value cannot be
 * encoded announces the size REFUSED and takes part in the rest, so that nobody waits for it; it raises its own error, and those who
 * needed the value raise one that names it. These functions block.
 */
#include <string.h>

#include "host/codec.h"
#include "host/lerror.h"
#include "host/lgroup.h"
#include "host/lgroup_exchange.h"
#include "host/ltensor.h"

static const char *const with_none[] = {"timeout", NULL},
                         *const with_root[] = {"root", "timeout", NULL},
                         *const with_tag[] = {"tag", "timeout", NULL};

/* ---- the operations. Index 4: this rank's bytes, or the error of encoding them ----------------------- */

static int64_t size_of_own(lua_State *L, bool ok) {
  return ok ? (int64_t)lua_rawlen(L, 4) : PERIGEE_EXCHANGE_REFUSED;
}

static const int64_t *sizes_of_all(lua_State *L, const perigee__exchange *x, bool ok) {
  int64_t mine = size_of_own(L, ok);
  return perigee__exchange_all(L, x, &mine, 1);
}

static int raise_own(lua_State *L) {
  lua_pushvalue(L, 4);
  return lua_error(L);
}

/* group:broadcast_object(value [, {root =, timeout =}]): the root's value on every rank */
static int l_broadcast(lua_State *L) {
  perigee__exchange x = perigee__exchange_begin(L, "broadcast_object");
  lua_settop(L, 3);
  perigee__exchange_options(L, 3, 2, with_root, &x);
  bool am_root = x.g->rank == x.root, ok = true;
  if (am_root)
    ok = perigee__exchange_encoded(L, 2);
  else
    lua_pushnil(L);
  perigee_tensor *size = perigee__exchange_flat(L, PERIGEE_I64, 1);
  if (am_root)
    *perigee__exchange_numbers(size) = size_of_own(L, ok);
  perigee__exchange_one(L, &x, PERIGEE_OP_BROADCAST, NULL, size);
  if (!ok)
    return raise_own(L);
  perigee__exchange_check_size(L, &x, *perigee__exchange_numbers(size), x.root);
  perigee_tensor *bytes =
      am_root ? perigee__exchange_bytes_of(L, 4)
              : perigee__exchange_flat(L, PERIGEE_U8, *perigee__exchange_numbers(size));
  perigee__exchange_one(L, &x, PERIGEE_OP_BROADCAST, NULL, bytes);
  if (am_root)
    lua_pushvalue(L, 2);
  else
    perigee__exchange_push(L, bytes, 0, *perigee__exchange_numbers(size));
  return 1;
}

/* group:allgather_object(value [, {timeout =}]): a list of all ranks' values */
static int l_allgather(lua_State *L) {
  perigee__exchange x = perigee__exchange_begin(L, "allgather_object");
  lua_settop(L, 3);
  perigee__exchange_options(L, 3, 2, with_none, &x);
  bool ok = perigee__exchange_encoded(L, 2);
  const int64_t *sizes = sizes_of_all(L, &x, ok);
  if (!ok)
    return raise_own(L);
  perigee_tensor *all =
                     perigee__exchange_flat(L, PERIGEE_U8, perigee__exchange_total(L, &x, sizes)),
                 *mine = perigee__exchange_bytes_of(L, 4);
  uint32_t n = (uint32_t)x.g->nranks;
  luaL_checkstack(L, (int)n + 8, "too many ranks");
  perigee_tensor **parts = lua_newuserdatauv(L, n * sizeof(*parts), 0);
  int64_t offset = 0;
  for (uint32_t r = 0; r < n; r++) {
    perigee__box *box = perigee__tensor_slot(L);
    perigee__check(L, perigee_tensor_narrow(all, 0, offset, sizes[r], &parts[r]));
    box->ptr = parts[r];
    offset += sizes[r];
  }
  perigee_request req;
  perigee_request_init(&req, PERIGEE_OP_ALLGATHER);
  req.out = (perigee_tensors){.v = parts, .n = n, .rows = 1};
  req.in = (perigee_tensors){.v = &mine, .n = 1};
  perigee__exchange_run(L, &x, &req);
  perigee__exchange_push_list(L, &x, all, sizes);
  return 1;
}

/* group:gather_object(value [, {root =, timeout =}]): a list on the root, nil elsewhere */
static int l_gather(lua_State *L) {
  perigee__exchange x = perigee__exchange_begin(L, "gather_object");
  lua_settop(L, 3);
  perigee__exchange_options(L, 3, 2, with_root, &x);
  bool ok = perigee__exchange_encoded(L, 2), am_root = x.g->rank == x.root;
  const int64_t *sizes = sizes_of_all(L, &x, ok);
  if (!ok)
    return raise_own(L);
  int64_t total = perigee__exchange_total(L, &x, sizes);
  perigee_tensor *all = perigee__exchange_flat(L, PERIGEE_U8, am_root ? total : 0),
                 *mine = perigee__exchange_bytes_of(L, 4);
  int64_t *to_root = perigee__exchange_splits(L, &x), *nothing = perigee__exchange_splits(L, &x);
  to_root[x.root] = sizes[x.g->rank];
  perigee__exchange_bytes(L, &x, all, am_root ? sizes : nothing, mine, to_root);
  if (!am_root) {
    lua_pushnil(L);
    return 1;
  }
  perigee__exchange_push_list(L, &x, all, sizes);
  return 1;
}

/* How many values the list at index 2 has: its field n (table.pack makes it: values may be nil), or its length. */
static lua_Integer list_length(lua_State *L) {
  lua_pushliteral(L, "n");
  int exact = 0;
  lua_Integer n = lua_rawget(L, 2) == LUA_TNUMBER ? lua_tointegerx(L, -1, &exact) : 0;
  lua_pop(L, 1);
  return exact ? n : (lua_Integer)lua_rawlen(L, 2);
}

/* [-0, +n, e] Value r + 1 of the list at index 2, encoded, for each rank r. Protected: see encode_list. */
static int encode_list_body(lua_State *L) {
  const perigee__exchange *x = lua_touserdata(L, 1);
  int n = x->g->nranks;
  if (lua_type(L, 2) != LUA_TTABLE)
    perigee__raise_arg(L, x->name, 1, "a list with one value per rank expected, got %s",
                       perigee__type_name(L, 2));
  lua_Integer length = list_length(L);
  if (length != n)
    perigee__raise_arg(L, x->name, 1,
                       "a list with %d values, one per rank, expected, got %lld (a list with nil "
                       "needs its field n, as table.pack makes it)",
                       n, (long long)length);
  luaL_checkstack(L, n + 16, "too many ranks");
  for (int r = 0; r < n; r++) {
    lua_rawgeti(L, 2, r + 1);
    perigee__encode_at(L, -1, r + 1);
    lua_remove(L, -2);
  }
  return n;
}

/* [-0, +1, e] The root's values, one per rank, in one string, and their sizes. False: an error object. */
static bool encode_list(lua_State *L, const perigee__exchange *x, int64_t *sizes) {
  int base = lua_gettop(L), n = x->g->nranks;
  lua_pushcfunction(L, perigee__error_object);
  lua_pushcfunction(L, encode_list_body);
  lua_pushlightuserdata(L, (void *)x);
  lua_pushvalue(L, 2);
  luaL_checkstack(L, n + 16, "too many ranks");
  bool ok = lua_pcall(L, 2, LUA_MULTRET, base + 1) == LUA_OK;
  lua_remove(L, base + 1);
  for (int r = 0; r < n; r++)
    sizes[r] = ok ? (int64_t)lua_rawlen(L, base + 1 + r) : PERIGEE_EXCHANGE_REFUSED;
  if (!ok)
    return false;
  luaL_Buffer b;
  luaL_buffinit(L, &b);
  for (int r = 0; r < n; r++) {
    size_t size;
    const char *bytes = lua_tolstring(L, base + 1 + r, &size);
    luaL_addlstring(&b, bytes, size);
  }
  luaL_pushresult(&b);
  lua_replace(L, base + 1);
  lua_settop(L, base + 1);
  return true;
}

/* group:scatter_object(values [, {root =, timeout =}]): element r + 1 of the root's list on rank r */
static int l_scatter(lua_State *L) {
  perigee__exchange x = perigee__exchange_begin(L, "scatter_object");
  lua_settop(L, 3);
  perigee__exchange_options(L, 3, 2, with_root, &x);
  bool am_root = x.g->rank == x.root, ok = true;
  perigee_tensor *table = perigee__exchange_flat(L, PERIGEE_I64, x.g->nranks);
  int64_t *sizes = perigee__exchange_numbers(table);
  if (am_root)
    ok = encode_list(L, &x, sizes);
  else
    lua_pushnil(L);
  perigee__exchange_one(L, &x, PERIGEE_OP_BROADCAST, NULL, table);
  if (!ok) {
    lua_pushvalue(L, 5);
    return lua_error(L);
  }
  int64_t total = 0; /* refused or not, every rank sees the same and goes on, or no one */
  for (int r = 0; r < x.g->nranks; r++) {
    perigee__exchange_check_size(L, &x, sizes[r], x.root);
    total += sizes[r];
  }
  if (total > PERIGEE_CODEC_MAX)
    perigee__raise(L, PERIGEE_ELIMIT, "%s: the values take %lld bytes, at most %d go together",
                   x.name, (long long)total, PERIGEE_CODEC_MAX);
  int64_t size = sizes[x.g->rank];
  perigee_tensor *bytes =
      am_root ? perigee__exchange_bytes_of(L, 5) : perigee__exchange_flat(L, PERIGEE_U8, 0);
  perigee_tensor *part = perigee__exchange_flat(L, PERIGEE_U8, size);
  int64_t *from_root = perigee__exchange_splits(L, &x), *nothing = perigee__exchange_splits(L, &x);
  from_root[x.root] = size;
  perigee__exchange_bytes(L, &x, part, from_root, bytes, am_root ? sizes : nothing);
  perigee__exchange_push(L, part, 0, size);
  return 1;
}

/* group:send_object(value, dst [, {tag =, timeout =}]) */
static int l_send(lua_State *L) {
  perigee__exchange x = perigee__exchange_begin(L, "send_object");
  perigee__exchange_peer(L, 3, &x);
  lua_settop(L, 4);
  perigee__exchange_options(L, 4, 3, with_tag, &x);
  lua_remove(L, 3); // [ group, value, opts ]
  bool ok = perigee__exchange_encoded(L, 2);
  perigee_tensor *size = perigee__exchange_flat(L, PERIGEE_I64, 1);
  *perigee__exchange_numbers(size) = size_of_own(L, ok);
  perigee__exchange_one(L, &x, PERIGEE_OP_SEND, NULL, size);
  if (!ok)
    return raise_own(L);
  perigee__exchange_one(L, &x, PERIGEE_OP_SEND, NULL, perigee__exchange_bytes_of(L, 4));
  return 0;
}

/* group:recv_object(src [, {tag =, timeout =}]): the value */
static int l_recv(lua_State *L) {
  perigee__exchange x = perigee__exchange_begin(L, "recv_object");
  perigee__exchange_peer(L, 2, &x);
  lua_settop(L, 3);
  perigee__exchange_options(L, 3, 2, with_tag, &x);
  perigee_tensor *size = perigee__exchange_flat(L, PERIGEE_I64, 1);
  perigee__exchange_one(L, &x, PERIGEE_OP_RECV, size, NULL);
  perigee__exchange_check_size(L, &x, *perigee__exchange_numbers(size), x.peer);
  perigee_tensor *bytes = perigee__exchange_flat(L, PERIGEE_U8, *perigee__exchange_numbers(size));
  perigee__exchange_one(L, &x, PERIGEE_OP_RECV, bytes, NULL);
  perigee__exchange_push(L, bytes, 0, *perigee__exchange_numbers(size));
  return 1;
}

void perigee__lgroup_objects_add(lua_State *L) {
  static const luaL_Reg methods[] = {
      {"broadcast_object", l_broadcast},
      {"allgather_object", l_allgather},
      {"gather_object", l_gather},
      {"scatter_object", l_scatter},
      {"send_object", l_send},
      {"recv_object", l_recv},
      {NULL, NULL},
  };
  perigee__functions_add(L, methods);
  perigee__lgroup_reduce_object_add(L);
}
