/* Options tables: checking those of a call, and making those of an override. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "host/call.h"

#include "base/clock.h"
#include "host/lerror.h"
#include "host/lop.h"
#include "host/suggest.h"

static const char opts_key; /* in a metatable of opts_push: the values as a perigee__opts_cache */

typedef struct option {
  const char *name;
  unsigned bit;
  void (*set)(lua_State *L, int index, int arg, perigee__call *call);
} option;

int64_t perigee__seconds_arg(lua_State *L, int index, const char *function, int arg, bool zero_ok) {
  if (lua_type(L, index) != LUA_TNUMBER)
    perigee__raise_arg(L, function, arg, "timeout: seconds (a number) expected, got %s",
                       perigee__type_name(L, index));
  double seconds = lua_tonumber(L, index);
  if (!(zero_ok ? seconds >= 0 : seconds > 0))
    perigee__raise_arg(L, function, arg, "timeout: %g seconds; a positive number expected",
                       seconds);
  double ns = seconds * 1e9;
  if (ns >= 9e18)
    return PERIGEE_TIMEOUT_NONE;
  return ns < 1 && seconds > 0 ? 1 : (int64_t)ns;
}

void perigee__check_keys(lua_State *L, int index, const char *function, int arg,
                         const char *const *known) {
  for (lua_pushnil(L); lua_next(L, index); lua_pop(L, 1)) {
    char hint[96];
    const char *key = lua_type(L, -2) == LUA_TSTRING ? lua_tostring(L, -2) : "(not a string)";
    bool found = false;
    for (int i = 0; known[i] != NULL; i++)
      found = found || strcmp(known[i], key) == 0;
    if (!found)
      perigee__raise_arg(L, function, arg, "unknown option '%s'%s", key,
                         perigee__did_you_mean(key, known, hint, sizeof(hint)));
  }
}

int64_t perigee__timeout_option(lua_State *L, int index, const char *function, int arg) {
  static const char *const known[] = {"timeout", NULL};
  int64_t ns = 0;
  if (lua_isnoneornil(L, index))
    return 0;
  if (lua_type(L, index) != LUA_TTABLE)
    perigee__raise_arg(L, function, arg, "options table expected, got %s",
                       perigee__type_name(L, index));
  perigee__check_keys(L, index, function, arg, known);
  if (lua_getfield(L, index, "timeout") != LUA_TNIL)
    ns = perigee__seconds_arg(L, -1, function, arg, false);
  lua_pop(L, 1);
  return ns;
}

/* ---- one setter per option ----------------------------------------------------------------------- */

static void set_op(lua_State *L, int index, int arg, perigee__call *call) {
  if (perigee__redop_get(L, index, &call->req.redop))
    return;
  if (lua_type(L, index) != LUA_TSTRING)
    perigee__raise_arg(L, call->info->name, arg,
                       "op: name of a reduce operation or perigee.op{...} expected, got %s",
                       perigee__type_name(L, index));
  static const char *const names[] = {"sum",  "avg", "product", "min", "max",
                                      "band", "bor", "bxor",    NULL};
  char hint[96];
  const char *name = lua_tostring(L, index);
  if (strcmp(name, "premul_sum") == 0)
    perigee__raise_arg(L, call->info->name, arg,
                       "op: 'premul_sum' needs its factor: op = perigee.premul_sum(factor)");
  perigee__raise_arg(L, call->info->name, arg, "op: unknown reduce operation '%s'%s", name,
                     perigee__did_you_mean(name, names, hint, sizeof(hint)));
}

static lua_Integer integer_option(lua_State *L, int index, int arg, const perigee__call *call,
                                  const char *name) {
  int exact;
  lua_Integer n = lua_tointegerx(L, index, &exact);
  if (!exact || lua_type(L, index) != LUA_TNUMBER)
    perigee__raise_arg(L, call->info->name, arg, "%s: integer expected, got %s", name,
                       perigee__type_name(L, index));
  return n;
}

static void set_root(lua_State *L, int index, int arg, perigee__call *call) {
  lua_Integer root = integer_option(L, index, arg, call, "root");
  if (root < 0 || root >= call->nranks)
    perigee__raise_arg(L, call->info->name, arg, "root: rank %lld is outside 0..%d",
                       (long long)root, call->nranks - 1);
  call->req.root = (int)root;
}

static void set_tag(lua_State *L, int index, int arg, perigee__call *call) {
  lua_Integer tag = integer_option(L, index, arg, call, "tag");
  if (tag < 0)
    perigee__raise_arg(L, call->info->name, arg, "tag: %lld is negative", (long long)tag);
  call->req.tag = tag;
}

static void set_timeout(lua_State *L, int index, int arg, perigee__call *call) {
  call->req.timeout_ns = perigee__seconds_arg(L, index, call->info->name, arg, false);
}

static void set_async(lua_State *L, int index, int arg, perigee__call *call) {
  if (lua_type(L, index) != LUA_TBOOLEAN)
    perigee__raise_arg(L, call->info->name, arg, "async: boolean expected, got %s",
                       perigee__type_name(L, index));
  call->async = lua_toboolean(L, index);
}

static void set_wait_all(lua_State *L, int index, int arg, perigee__call *call) {
  if (lua_type(L, index) != LUA_TBOOLEAN)
    perigee__raise_arg(L, call->info->name, arg, "wait_all_ranks: boolean expected, got %s",
                       perigee__type_name(L, index));
  call->req.wait_all_ranks = lua_toboolean(L, index);
}

/* Array of integers at index into new memory on the stack. [-0, +1, e] */
static const int64_t *split_list(lua_State *L, int index, int arg, const perigee__call *call,
                                 const char *name, uint32_t *n_p) {
  index = lua_absindex(L, index);
  if (lua_type(L, index) != LUA_TTABLE)
    perigee__raise_arg(L, call->info->name, arg, "%s: list of integers expected, got %s", name,
                       perigee__type_name(L, index));
  lua_Integer n = luaL_len(L, index);
  int64_t *list = lua_newuserdatauv(L, ((size_t)n + 1) * sizeof(*list), 0);
  for (lua_Integer i = 0; i < n; i++) {
    lua_geti(L, index, i + 1);
    list[i] = integer_option(L, -1, arg, call, name);
    lua_pop(L, 1);
  }
  *n_p = (uint32_t)n;
  return n > 0 ? list : NULL;
}

static void set_out_splits(lua_State *L, int index, int arg, perigee__call *call) {
  call->req.out_splits = split_list(L, index, arg, call, "output_splits", &call->req.n_out_splits);
}

static void set_in_splits(lua_State *L, int index, int arg, perigee__call *call) {
  call->req.in_splits = split_list(L, index, arg, call, "input_splits", &call->req.n_in_splits);
}

void perigee__splits_parse(lua_State *L, perigee__call *call, int out_index, int in_index) {
  if (!lua_isnil(L, out_index))
    set_out_splits(L, out_index, out_index - 1, call);
  if (!lua_isnil(L, in_index))
    set_in_splits(L, in_index, in_index - 1, call);
}

#define ALWAYS (1u << 31)

static const option options[] = {
    {"op", PERIGEE_OPT_REDOP, set_op},
    {"root", PERIGEE_OPT_ROOT, set_root},
    {"tag", PERIGEE_OPT_TAG, set_tag},
    {"timeout", PERIGEE_OPT_TIMEOUT, set_timeout},
    {"wait_all_ranks", PERIGEE_OPT_WAIT_ALL, set_wait_all},
    {"output_splits", PERIGEE_OPT_SPLITS, set_out_splits},
    {"input_splits", PERIGEE_OPT_SPLITS, set_in_splits},
    {"async", ALWAYS, set_async},
};

/* ---- the table of a call ------------------------------------------------------------------------- */

_Noreturn static void unknown_option(lua_State *L, int arg, const perigee__call *call,
                                     const char *key) {
  const char *names[PERIGEE_COUNT(options) + 1];
  char hint[96], list[160] = "";
  size_t n = 0, used = 0;
  for (size_t i = 0; i < PERIGEE_COUNT(options); i++)
    if (options[i].bit & (call->info->opts | ALWAYS)) {
      names[n++] = options[i].name;
      used += (size_t)snprintf(list + used, sizeof(list) - used, "%s%s", n > 1 ? ", " : "",
                               options[i].name);
    }
  names[n] = NULL;
  perigee__raise_arg(L, call->info->name, arg, "unknown option '%s'%s; %s takes %s", key,
                     perigee__did_you_mean(key, names, hint, sizeof(hint)), call->info->name, list);
}

static void set_option(lua_State *L, int index, int arg, perigee__call *call, const char *key) {
  for (size_t i = 0; i < PERIGEE_COUNT(options); i++)
    if ((options[i].bit & (call->info->opts | ALWAYS)) && strcmp(options[i].name, key) == 0) {
      options[i].set(L, index, arg, call);
      return;
    }
  unknown_option(L, arg, call, key);
}

/* Values that the table does not hold itself but shows through its metatable (which is on the top of the stack). */
static void parse_inherited(lua_State *L, int index, int arg, perigee__call *call) {
  lua_rawgetp(L, -1, &opts_key);
  const perigee__opts_cache *values = lua_touserdata(L, -1);
  lua_pop(L, 2);
  if (values != NULL) { /* as opts_push made it: no look-up by name needed */
    if (call->info->opts & PERIGEE_OPT_REDOP)
      call->req.redop = values->redop;
    if (call->info->opts & PERIGEE_OPT_ROOT)
      call->req.root = values->root;
    call->req.timeout_ns = values->timeout_ns;
    call->req.wait_all_ranks = values->wait_all_ranks;
    return;
  }
  for (size_t i = 0; i < PERIGEE_COUNT(options); i++)
    if (options[i].bit & (call->info->opts | ALWAYS)) {
      if (lua_getfield(L, index, options[i].name) != LUA_TNIL)
        options[i].set(L, lua_gettop(L), arg, call);
      /* what a setter left on top stays: the request points into it */
    }
}

void perigee__opts_parse(lua_State *L, int index, int arg, perigee__call *call) {
  if (lua_isnoneornil(L, index))
    return;
  if (lua_type(L, index) != LUA_TTABLE)
    perigee__raise_arg(L, call->info->name, arg, "options table expected, got %s",
                       perigee__type_name(L, index));
  luaL_checkstack(L, 40, NULL);
  if (lua_getmetatable(L, index))
    parse_inherited(L, index, arg, call);
  for (lua_pushnil(L); lua_next(L, index);) {
    /* Values that a setter leaves above stay anchored; key and value move on top of them. */
    int key = lua_gettop(L) - 1;
    if (lua_type(L, key) != LUA_TSTRING)
      perigee__raise_arg(
          L, call->info->name, arg,
          "options table expected, got a table with the key %s: is a list missing before it?",
          luaL_tolstring(L, key, NULL));
    set_option(L, key + 1, arg, call, lua_tostring(L, key));
    lua_pushvalue(L, key);
  }
}

/* ---- the table of an override -------------------------------------------------------------------- */

/* pairs(opts): over a copy that holds everything. */
static int l_opts_pairs(lua_State *L) {
  lua_getglobal(L, "next");
  lua_newtable(L); // [ opts, next, copy ]
  if (lua_getmetatable(L, 1)) {
    lua_pushliteral(L, "__index");
    lua_rawget(L, -2); // [ opts, next, copy, meta, fields ]
    for (lua_pushnil(L); lua_next(L, -2);) {
      lua_pushvalue(L, -2);
      lua_insert(L, -2); // [ ..., fields, k, k, v ]
      lua_rawset(L, 3);
    }
    lua_settop(L, 3);
  }
  for (lua_pushnil(L); lua_next(L, 1);) {
    lua_pushvalue(L, -2);
    lua_insert(L, -2);
    lua_rawset(L, 3);
  }
  lua_pushnil(L);
  return 3;
}

static void fill_fields(lua_State *L, const perigee__opts_cache *values, unsigned bits) {
  if (bits & PERIGEE_OPT_REDOP) {
    perigee__redop_push(L, &values->redop);
    lua_setfield(L, -2, "op");
  }
  if (bits & PERIGEE_OPT_ROOT) {
    lua_pushinteger(L, values->root);
    lua_setfield(L, -2, "root");
  }
  if (bits & PERIGEE_OPT_WAIT_ALL) {
    lua_pushboolean(L, values->wait_all_ranks);
    lua_setfield(L, -2, "wait_all_ranks");
  }
  lua_pushnumber(L, values->timeout_ns == PERIGEE_TIMEOUT_NONE ? HUGE_VAL
                                                               : (double)values->timeout_ns / 1e9);
  lua_setfield(L, -2, "timeout");
}

static void make_meta(perigee_interp *interp, lua_State *L, perigee__opts_cache *cache,
                      unsigned bits) {
  lua_createtable(L, 0, 4); // [ meta ]
  lua_createtable(L, 0, 4);
  fill_fields(L, cache, bits);
  lua_setfield(L, -2, "__index");
  lua_pushcfunction(L, l_opts_pairs);
  lua_setfield(L, -2, "__pairs");
  lua_pushliteral(L, "perigee.Options");
  lua_setfield(L, -2, "__name");
  perigee__opts_cache *values = lua_newuserdatauv(L, sizeof(*values), 0);
  *values = *cache; /* a custom op is kept alive by the field "op" */
  lua_rawsetp(L, -2, &opts_key);
  cache->meta_ref = perigee__ref(interp, L);
}

static bool same(const perigee__opts_cache *a, const perigee__opts_cache *b) {
  return a->redop.kind == b->redop.kind && a->redop.factor == b->redop.factor &&
         a->redop.custom == b->redop.custom && a->root == b->root &&
         a->wait_all_ranks == b->wait_all_ranks && a->timeout_ns == b->timeout_ns;
}

void perigee__opts_push(perigee_interp *interp, lua_State *L, const perigee_request *req,
                        const perigee_op_info *info, int64_t timeout_ns,
                        perigee__opts_cache *cache) {
  perigee__opts_cache now = {
      .meta_ref = cache->meta_ref,
      .redop = req->redop,
      .root = req->root,
      .wait_all_ranks = req->wait_all_ranks,
      .timeout_ns = req->timeout_ns == PERIGEE_TIMEOUT_DEFAULT ? timeout_ns : req->timeout_ns,
  };
  if (now.meta_ref == LUA_NOREF || !same(&now, cache)) {
    perigee__unref(interp, cache->meta_ref);
    cache->meta_ref = LUA_NOREF;
    *cache = now;
    cache->meta_ref = LUA_NOREF;
    make_meta(interp, L, cache, info->opts);
  }
  lua_createtable(L, 0, 0);
  lua_rawgeti(L, LUA_REGISTRYINDEX, cache->meta_ref);
  lua_setmetatable(L, -2);
}
