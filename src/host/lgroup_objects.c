/*
 * Lua values between ranks: broadcast_object and its siblings.
 *
 * Two steps: the sizes travel first, then the bytes, both by the group's ordinary operations. A rank whose value cannot be
 * encoded announces the size REFUSED and takes part in the rest, so that nobody waits for it; it raises its own error, and those who
 * needed the value raise one that names it. These functions block.
 */
#include <string.h>

#include "base/clock.h"
#include "host/call.h"
#include "host/codec.h"
#include "host/lerror.h"
#include "host/lgroup.h"
#include "host/ltensor.h"

#define REFUSED INT64_C(-1)

typedef struct exchange {
  const char *name;
  const perigee__lgroup *g;
  perigee_interp *interp;
  int root, peer;
  int64_t tag, deadline_ns;
} exchange;

/* ---- arguments ----------------------------------------------------------------------------------- */

/* Options at index (argument `arg`): timeout, and the one named by `what` ("root", "tag" or NULL). */
static void options(lua_State *L, int index, int arg, const char *what, exchange *x) {
  const char *const known[] = {"timeout", what, NULL};
  int64_t timeout_ns = perigee_group_timeout(x->g->box.ptr);
  if (!lua_isnoneornil(L, index)) {
    if (lua_type(L, index) != LUA_TTABLE)
      perigee__raise_arg(L, x->name, arg, "options table expected, got %s",
                         perigee__type_name(L, index));
    perigee__check_keys(L, index, x->name, arg, known);
    if (lua_getfield(L, index, "timeout") != LUA_TNIL)
      timeout_ns = perigee__seconds_arg(L, -1, x->name, arg, false);
    lua_pop(L, 1);
    if (what != NULL && lua_getfield(L, index, what) != LUA_TNIL) {
      int exact;
      lua_Integer n = lua_tointegerx(L, -1, &exact);
      bool is_root = strcmp(what, "root") == 0;
      if (!exact || n < 0 || (is_root && n >= x->g->nranks))
        perigee__raise_arg(L, x->name, arg, "%s: %s expected, got %s", what,
                           is_root ? "a rank" : "an integer >= 0", luaL_tolstring(L, -1, NULL));
      if (is_root)
        x->root = (int)n;
      else
        x->tag = n;
      lua_pop(L, 1);
    }
  }
  x->deadline_ns =
      timeout_ns == PERIGEE_TIMEOUT_NONE ? PERIGEE_NEVER : perigee__deadline_in(timeout_ns);
}

static exchange begin(lua_State *L, const char *name) {
  exchange x = {.name = name,
                .g = perigee__lgroup_self(L, name),
                .interp = perigee__interp_here(L),
                .peer = -1};
  if (perigee__lthread_here(x.interp, L)->callbacks > 0)
    perigee__raise(L, PERIGEE_EDEADLK, "%s: a callback must not wait", name);
  if (perigee_group_is_coalescing(x.g->box.ptr))
    perigee__raise(L, PERIGEE_ESTATE, "%s has to wait, which a coalescing cannot", name);
  return x;
}

static void peer_arg(lua_State *L, int index, exchange *x) {
  int exact;
  lua_Integer rank = lua_tointegerx(L, index, &exact);
  if (!exact || rank < 0 || rank >= x->g->nranks)
    perigee__raise_arg(L, x->name, index - 1, "a rank expected, got %s",
                       lua_isnone(L, index) ? "nothing" : luaL_tolstring(L, index, NULL));
  x->peer = (int)rank;
}

/* ---- pieces -------------------------------------------------------------------------------------- */

/* [-0, +1, e] A new tensor of n elements, kept by the stack. */
static perigee_tensor *flat(lua_State *L, perigee_dtype dtype, int64_t n) {
  perigee__box *box = perigee__tensor_slot(L);
  perigee_tensor *t;
  perigee__check(L, perigee_tensor_create(dtype, 1, &n, &t));
  box->ptr = t;
  return t;
}

static int64_t *sizes_of(perigee_tensor *t) { return perigee_tensor_data(t); }

/* Tensors on this stack stay: nobody else knows them. */
static void run(lua_State *L, const exchange *x, perigee_request *req) {
  req->root = x->root;
  req->tag = x->tag;
  req->timeout_ns = x->deadline_ns == PERIGEE_NEVER ? PERIGEE_TIMEOUT_NONE
                                                    : perigee__time_left(x->deadline_ns) + 1;
  perigee__gap gap;
  perigee__gap_open(x->interp, L, &gap);
  int rc = perigee_group_run(x->g->box.ptr, req);
  perigee__gap_close(x->interp, &gap);
  perigee__check(L, rc);
}

static void run_one(lua_State *L, const exchange *x, int op, perigee_tensor *out,
                    perigee_tensor *in) {
  perigee_request req;
  perigee_request_init(&req, op);
  if (out != NULL)
    req.out = (perigee_tensors){.v = &out, .n = 1};
  if (in != NULL)
    req.in = (perigee_tensors){.v = &in, .n = 1};
  req.peer = x->peer;
  run(L, x, &req);
}

/* Bytes to and from all ranks; n sizes each. The total of negative sizes is not counted. */
static void run_bytes(lua_State *L, const exchange *x, perigee_tensor *out, const int64_t *to_me,
                      perigee_tensor *in, const int64_t *from_me) {
  perigee_request req;
  perigee_request_init(&req, PERIGEE_OP_ALLTOALL_BASE);
  req.out = (perigee_tensors){.v = &out, .n = 1};
  req.in = (perigee_tensors){.v = &in, .n = 1};
  req.out_splits = to_me;
  req.in_splits = from_me;
  req.n_out_splits = req.n_in_splits = (uint32_t)x->g->nranks;
  run(L, x, &req);
}

/* [-0, +1, -] The value at index encoded, or an error object; true when it went well. */
static int encode_body(lua_State *L) {
  perigee__encode(L, 1);
  return 1;
}

static bool encoded(lua_State *L, int index) {
  lua_pushcfunction(L, perigee__error_object);
  int handler = lua_gettop(L);
  lua_pushcfunction(L, encode_body);
  lua_pushvalue(L, index);
  bool ok = lua_pcall(L, 1, 1, handler) == LUA_OK;
  lua_remove(L, handler);
  return ok;
}

/* [-0, +1, m] A tensor over a copy of the string at index. */
static perigee_tensor *bytes_of(lua_State *L, int index) {
  size_t size;
  const char *data = lua_tolstring(L, index, &size);
  perigee_tensor *t = flat(L, PERIGEE_U8, (int64_t)size);
  if (size > 0)
    memcpy(perigee_tensor_data(t), data, size);
  return t;
}

static void check_size(lua_State *L, const exchange *x, int64_t size, int rank) {
  if (size == REFUSED) {
    perigee_error error;
    perigee__error_set(&error, PERIGEE_EINVAL, "%s: rank %d has a value that cannot be sent",
                       x->name, rank);
    perigee__error_add_rank(&error, rank);
    error.rank = x->g->rank;
    perigee__raise_error(L, &error);
  }
  if (size < 0 || size > PERIGEE_CODEC_MAX)
    perigee__raise(L, PERIGEE_EPROTO, "%s: rank %d announces %lld bytes", x->name, rank,
                   (long long)size);
}

/* [-0, +1, e] The value of `size` bytes at `offset` of a tensor. */
static void push_value(lua_State *L, const perigee_tensor *t, int64_t offset, int64_t size) {
  perigee__decode(L, (const char *)perigee_tensor_data(t) + offset, (size_t)size);
}

/* [-0, +1, e] Every rank's size, from each one's own. */
static const int64_t *all_sizes(lua_State *L, const exchange *x, int64_t mine) {
  perigee_tensor *all = flat(L, PERIGEE_I64, x->g->nranks), *one = flat(L, PERIGEE_I64, 1);
  *sizes_of(one) = mine;
  run_one(L, x, PERIGEE_OP_ALLGATHER_INTO_TENSOR, all, one);
  lua_pop(L, 1);
  return sizes_of(all);
}

static int64_t total_of(lua_State *L, const exchange *x, const int64_t *sizes) {
  int64_t total = 0;
  for (int r = 0; r < x->g->nranks; r++) {
    check_size(L, x, sizes[r], r);
    total += sizes[r];
  }
  return total;
}

/* [-0, +1, m] Zeros, one per rank. */
static int64_t *splits_new(lua_State *L, const exchange *x) {
  size_t bytes = (size_t)x->g->nranks * sizeof(int64_t);
  int64_t *splits = lua_newuserdatauv(L, bytes, 0);
  memset(splits, 0, bytes);
  return splits;
}

/* [-0, +1, e] The list of values that lie one after the other in t. */
static void push_values(lua_State *L, const exchange *x, const perigee_tensor *t,
                        const int64_t *sizes) {
  int64_t offset = 0;
  lua_createtable(L, x->g->nranks, 0);
  for (int r = 0; r < x->g->nranks; r++) {
    push_value(L, t, offset, sizes[r]);
    lua_rawseti(L, -2, r + 1);
    offset += sizes[r];
  }
}

/* ---- the operations. Index 4: this rank's bytes, or the error of encoding them ----------------------- */

static int64_t size_of_own(lua_State *L, bool ok) {
  return ok ? (int64_t)lua_rawlen(L, 4) : REFUSED;
}

static int raise_own(lua_State *L) {
  lua_pushvalue(L, 4);
  return lua_error(L);
}

/* group:broadcast_object(value [, {root =, timeout =}]): the root's value on every rank */
static int l_broadcast(lua_State *L) {
  exchange x = begin(L, "broadcast_object");
  lua_settop(L, 3);
  options(L, 3, 2, "root", &x);
  bool am_root = x.g->rank == x.root, ok = true;
  if (am_root)
    ok = encoded(L, 2);
  else
    lua_pushnil(L);
  perigee_tensor *size = flat(L, PERIGEE_I64, 1);
  if (am_root)
    *sizes_of(size) = size_of_own(L, ok);
  run_one(L, &x, PERIGEE_OP_BROADCAST, NULL, size);
  if (!ok)
    return raise_own(L);
  check_size(L, &x, *sizes_of(size), x.root);
  perigee_tensor *bytes = am_root ? bytes_of(L, 4) : flat(L, PERIGEE_U8, *sizes_of(size));
  run_one(L, &x, PERIGEE_OP_BROADCAST, NULL, bytes);
  if (am_root)
    lua_pushvalue(L, 2);
  else
    push_value(L, bytes, 0, *sizes_of(size));
  return 1;
}

/* group:allgather_object(value [, {timeout =}]): a list of all ranks' values */
static int l_allgather(lua_State *L) {
  exchange x = begin(L, "allgather_object");
  lua_settop(L, 3);
  options(L, 3, 2, NULL, &x);
  bool ok = encoded(L, 2);
  const int64_t *sizes = all_sizes(L, &x, size_of_own(L, ok));
  if (!ok)
    return raise_own(L);
  perigee_tensor *all = flat(L, PERIGEE_U8, total_of(L, &x, sizes)), *mine = bytes_of(L, 4);
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
  run(L, &x, &req);
  push_values(L, &x, all, sizes);
  return 1;
}

/* group:gather_object(value [, {root =, timeout =}]): a list on the root, nil elsewhere */
static int l_gather(lua_State *L) {
  exchange x = begin(L, "gather_object");
  lua_settop(L, 3);
  options(L, 3, 2, "root", &x);
  bool ok = encoded(L, 2), am_root = x.g->rank == x.root;
  const int64_t *sizes = all_sizes(L, &x, size_of_own(L, ok));
  if (!ok)
    return raise_own(L);
  int64_t total = total_of(L, &x, sizes);
  perigee_tensor *all = flat(L, PERIGEE_U8, am_root ? total : 0), *mine = bytes_of(L, 4);
  int64_t *to_root = splits_new(L, &x), *nothing = splits_new(L, &x);
  to_root[x.root] = sizes[x.g->rank];
  run_bytes(L, &x, all, am_root ? sizes : nothing, mine, to_root);
  if (!am_root)
    return 0;
  push_values(L, &x, all, sizes);
  return 1;
}

/* The root's values, one per rank, in one string on top of the stack, and their sizes. False: an error object is on top.
 * [-0, +1, e] */
static bool encode_list(lua_State *L, const exchange *x, int64_t *sizes) {
  int base = lua_gettop(L), n = x->g->nranks;
  luaL_checkstack(L, n + 16, "too many ranks");
  for (int r = 0; r < n; r++) {
    lua_rawgeti(L, 2, r + 1);
    bool ok = encoded(L, lua_gettop(L)); // [ ..., value, bytes|error ]
    lua_remove(L, -2);
    if (!ok) {
      lua_replace(L, base + 1);
      lua_settop(L, base + 1);
      for (int i = 0; i < n; i++)
        sizes[i] = REFUSED;
      return false;
    }
    sizes[r] = (int64_t)lua_rawlen(L, -1);
  }
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
  exchange x = begin(L, "scatter_object");
  lua_settop(L, 3);
  options(L, 3, 2, "root", &x);
  bool am_root = x.g->rank == x.root, ok = true;
  if (am_root && lua_type(L, 2) != LUA_TTABLE)
    perigee__raise_arg(L, x.name, 1, "a list with one value per rank expected, got %s",
                       perigee__type_name(L, 2));
  perigee_tensor *table = flat(L, PERIGEE_I64, x.g->nranks);
  int64_t *sizes = sizes_of(table);
  if (am_root)
    ok = encode_list(L, &x, sizes);
  else
    lua_pushnil(L);
  run_one(L, &x, PERIGEE_OP_BROADCAST, NULL, table);
  if (!ok) {
    lua_pushvalue(L, 5);
    return lua_error(L);
  }
  for (int r = 0; r < x.g->nranks; r++)
    check_size(L, &x, sizes[r], sizes[r] == REFUSED ? x.root : r);
  int64_t size = sizes[x.g->rank];
  perigee_tensor *bytes = am_root ? bytes_of(L, 5) : flat(L, PERIGEE_U8, 0);
  perigee_tensor *part = flat(L, PERIGEE_U8, size);
  int64_t *from_root = splits_new(L, &x), *nothing = splits_new(L, &x);
  from_root[x.root] = size;
  run_bytes(L, &x, part, from_root, bytes, am_root ? sizes : nothing);
  push_value(L, part, 0, size);
  return 1;
}

/* group:send_object(value, dst [, {tag =, timeout =}]) */
static int l_send(lua_State *L) {
  exchange x = begin(L, "send_object");
  peer_arg(L, 3, &x);
  lua_settop(L, 4);
  options(L, 4, 3, "tag", &x);
  lua_remove(L, 3); // [ group, value, opts ]
  bool ok = encoded(L, 2);
  perigee_tensor *size = flat(L, PERIGEE_I64, 1);
  *sizes_of(size) = size_of_own(L, ok);
  run_one(L, &x, PERIGEE_OP_SEND, NULL, size);
  if (!ok)
    return raise_own(L);
  run_one(L, &x, PERIGEE_OP_SEND, NULL, bytes_of(L, 4));
  return 0;
}

/* group:recv_object(src [, {tag =, timeout =}]): the value */
static int l_recv(lua_State *L) {
  exchange x = begin(L, "recv_object");
  peer_arg(L, 2, &x);
  lua_settop(L, 3);
  options(L, 3, 2, "tag", &x);
  perigee_tensor *size = flat(L, PERIGEE_I64, 1);
  run_one(L, &x, PERIGEE_OP_RECV, size, NULL);
  check_size(L, &x, *sizes_of(size), x.peer);
  perigee_tensor *bytes = flat(L, PERIGEE_U8, *sizes_of(size));
  run_one(L, &x, PERIGEE_OP_RECV, bytes, NULL);
  push_value(L, bytes, 0, *sizes_of(size));
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
}
