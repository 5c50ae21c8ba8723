#include "host/lgroup_exchange.h"

#include <string.h>

#include "base/clock.h"
#include "host/call.h"
#include "host/codec.h"
#include "host/lerror.h"
#include "host/lop.h"
#include "host/ltensor.h"

/* ---- arguments ----------------------------------------------------------------------------------- */

/* [-0, +1, e] Push the field; true when it was given. */
static bool given(lua_State *L, int index, const char *name, const char *const *known) {
  bool is_known = false;
  for (; *known != NULL; known++)
    is_known |= strcmp(*known, name) == 0;
  if (is_known)
    return lua_getfield(L, index, name) != LUA_TNIL;
  lua_pushnil(L);
  return false;
}

static int64_t whole(lua_State *L, int arg, const char *what, int64_t end,
                     const perigee__exchange *x) {
  int exact;
  lua_Integer n = lua_tointegerx(L, -1, &exact);
  if (!exact || n < 0 || n >= end)
    perigee__raise_arg(L, x->name, arg, "%s: %s expected, got %s", what,
                       strcmp(what, "root") == 0 ? "a rank" : "an integer >= 0",
                       luaL_tolstring(L, -1, NULL));
  return n;
}

void perigee__exchange_options(lua_State *L, int index, int arg, const char *const *known,
                               perigee__exchange *x) {
  int64_t timeout_ns = perigee_group_timeout(x->g->box.ptr);
  int top = lua_gettop(L);
  if (!lua_isnoneornil(L, index)) {
    if (lua_type(L, index) != LUA_TTABLE)
      perigee__raise_arg(L, x->name, arg, "options table expected, got %s",
                         perigee__type_name(L, index));
    perigee__check_keys(L, index, x->name, arg, known);
    if (given(L, index, "timeout", known))
      timeout_ns = perigee__seconds_arg(L, -1, x->name, arg, false);
    if (given(L, index, "root", known))
      x->root = (int)whole(L, arg, "root", x->g->nranks, x);
    if (given(L, index, "tag", known))
      x->tag = whole(L, arg, "tag", INT64_MAX, x);
    if (given(L, index, "op", known) &&
        !(x->has_op = perigee__redop_is_script(L, lua_gettop(L), &x->redop)))
      perigee__raise_arg(L, x->name, arg, "op: perigee.op{...} expected, got %s",
                         luaL_tolstring(L, -1, NULL));
    lua_settop(L, top);
  }
  x->deadline_ns =
      timeout_ns == PERIGEE_TIMEOUT_NONE ? PERIGEE_NEVER : perigee__deadline_in(timeout_ns);
}

perigee__exchange perigee__exchange_begin(lua_State *L, const char *name) {
  perigee__exchange x = {.name = name,
                         .g = perigee__lgroup_self(L, name),
                         .interp = perigee__interp_here(L),
                         .peer = -1};
  if (perigee__lthread_here(x.interp, L)->callbacks > 0)
    perigee__raise(L, PERIGEE_EDEADLK, "%s: a callback must not wait", name);
  if (perigee_group_is_coalescing(x.g->box.ptr))
    perigee__raise(L, PERIGEE_ESTATE, "%s has to wait, which a coalescing cannot", name);
  return x;
}

void perigee__exchange_peer(lua_State *L, int index, perigee__exchange *x) {
  int exact;
  lua_Integer rank = lua_tointegerx(L, index, &exact);
  if (!exact || rank < 0 || rank >= x->g->nranks)
    perigee__raise_arg(L, x->name, index - 1, "a rank expected, got %s",
                       lua_isnone(L, index) ? "nothing" : luaL_tolstring(L, index, NULL));
  x->peer = (int)rank;
}

/* ---- pieces -------------------------------------------------------------------------------------- */

perigee_tensor *perigee__exchange_flat(lua_State *L, perigee_dtype dtype, int64_t n) {
  perigee__box *box = perigee__tensor_slot(L);
  perigee_tensor *t;
  perigee__check(L, perigee_tensor_create(dtype, 1, &n, &t));
  box->ptr = t;
  return t;
}

int64_t *perigee__exchange_numbers(perigee_tensor *t) { return perigee_tensor_data(t); }

void perigee__exchange_run(lua_State *L, const perigee__exchange *x, perigee_request *req) {
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

void perigee__exchange_one(lua_State *L, const perigee__exchange *x, int op, perigee_tensor *out,
                           perigee_tensor *in) {
  perigee_request req;
  perigee_request_init(&req, op);
  if (out != NULL)
    req.out = (perigee_tensors){.v = &out, .n = 1};
  if (in != NULL)
    req.in = (perigee_tensors){.v = &in, .n = 1};
  req.peer = x->peer;
  perigee__exchange_run(L, x, &req);
}

void perigee__exchange_bytes(lua_State *L, const perigee__exchange *x, perigee_tensor *out,
                             const int64_t *to_me, perigee_tensor *in, const int64_t *from_me) {
  perigee_request req;
  perigee_request_init(&req, PERIGEE_OP_ALLTOALL_BASE);
  req.out = (perigee_tensors){.v = &out, .n = 1};
  req.in = (perigee_tensors){.v = &in, .n = 1};
  req.out_splits = to_me;
  req.in_splits = from_me;
  req.n_out_splits = req.n_in_splits = (uint32_t)x->g->nranks;
  perigee__exchange_run(L, x, &req);
}

static int encode_body(lua_State *L) {
  perigee__encode(L, 1);
  return 1;
}

bool perigee__exchange_encoded(lua_State *L, int index) {
  lua_pushcfunction(L, perigee__error_object);
  int handler = lua_gettop(L);
  lua_pushcfunction(L, encode_body);
  lua_pushvalue(L, index);
  bool ok = lua_pcall(L, 1, 1, handler) == LUA_OK;
  lua_remove(L, handler);
  return ok;
}

perigee_tensor *perigee__exchange_bytes_of(lua_State *L, int index) {
  size_t size;
  const char *data = lua_tolstring(L, index, &size);
  perigee_tensor *t = perigee__exchange_flat(L, PERIGEE_U8, (int64_t)size);
  if (size > 0)
    memcpy(perigee_tensor_data(t), data, size);
  return t;
}

void perigee__exchange_check_size(lua_State *L, const perigee__exchange *x, int64_t size,
                                  int rank) {
  if (size == PERIGEE_EXCHANGE_REFUSED) {
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
void perigee__exchange_push(lua_State *L, const perigee_tensor *t, int64_t offset, int64_t size) {
  perigee__decode(L, (const char *)perigee_tensor_data(t) + offset, (size_t)size);
}

const int64_t *perigee__exchange_all(lua_State *L, const perigee__exchange *x, const int64_t *mine,
                                     int k) {
  perigee_tensor *all = perigee__exchange_flat(L, PERIGEE_I64, (int64_t)x->g->nranks * k);
  perigee_tensor *own = perigee__exchange_flat(L, PERIGEE_I64, k);
  memcpy(perigee_tensor_data(own), mine, (size_t)k * sizeof(*mine));
  perigee__exchange_one(L, x, PERIGEE_OP_ALLGATHER_INTO_TENSOR, all, own);
  lua_pop(L, 1);
  return perigee__exchange_numbers(all);
}

int64_t perigee__exchange_total(lua_State *L, const perigee__exchange *x, const int64_t *sizes) {
  int64_t total = 0;
  for (int r = 0; r < x->g->nranks; r++) {
    perigee__exchange_check_size(L, x, sizes[r], r);
    total += sizes[r];
  }
  if (total > PERIGEE_CODEC_MAX) /* the same on every rank: nobody goes on alone */
    perigee__raise(L, PERIGEE_ELIMIT,
                   "%s: the values of all ranks take %lld bytes, at most %d go together", x->name,
                   (long long)total, PERIGEE_CODEC_MAX);
  return total;
}

int64_t *perigee__exchange_splits(lua_State *L, const perigee__exchange *x) {
  size_t bytes = (size_t)x->g->nranks * sizeof(int64_t);
  int64_t *splits = lua_newuserdatauv(L, bytes, 0);
  memset(splits, 0, bytes);
  return splits;
}

void perigee__exchange_push_list(lua_State *L, const perigee__exchange *x, const perigee_tensor *t,
                                 const int64_t *sizes) {
  int64_t offset = 0;
  lua_createtable(L, x->g->nranks, 0);
  for (int r = 0; r < x->g->nranks; r++) {
    perigee__exchange_push(L, t, offset, sizes[r]);
    lua_rawseti(L, -2, r + 1);
    offset += sizes[r];
  }
}
