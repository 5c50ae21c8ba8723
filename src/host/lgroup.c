#include "host/lgroup.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "group/group.h"
#include "host/call.h"
#include "host/hook_log.h"
#include "host/lcoalesce.h"
#include "host/lerror.h"
#include "host/lhook.h"
#include "host/lshared.h"
#include "host/lstore.h"
#include "host/ltesting.h"

perigee__lgroup *perigee__lgroup_self(lua_State *L, const char *method) {
  perigee__lgroup *g = perigee__object_self(L, &perigee__type_group, method);
  if (g->box.ptr == NULL)
    perigee__raise(L, PERIGEE_ECLOSED, "'%s' on a group that has been collected", method);
  return g;
}

static perigee_group *group_self(lua_State *L, const char *method) {
  return perigee__lgroup_self(L, method)->box.ptr;
}

perigee__lgroup *perigee__lgroup_new(lua_State *L) {
  return perigee__object_new(L, &perigee__type_group, sizeof(perigee__lgroup), 0);
}

void perigee__lgroup_set(perigee__lgroup *g, perigee_group *group) {
  g->box.ptr = group;
  g->rank = group->rank;
  g->nranks = group->nranks;
}

/* ---- init ---------------------------------------------------------------------------------------- */

/* The field as a string that stays on the stack, or NULL. [-0, +1, e] */
static const char *text_field(lua_State *L, int index, const char *function, const char *name) {
  int type = lua_getfield(L, index, name);
  if (type == LUA_TNIL)
    return NULL;
  if (type != LUA_TSTRING)
    perigee__raise_arg(L, function, 1, "%s: string expected, got %s", name,
                       perigee__type_name(L, -1));
  return lua_tostring(L, -1);
}

static int int_field(lua_State *L, int index, const char *function, const char *name) {
  if (lua_getfield(L, index, name) == LUA_TNIL) {
    lua_pop(L, 1);
    return -1;
  }
  int exact;
  lua_Integer n = lua_tointegerx(L, -1, &exact);
  if (!exact || n < 0 || n > INT32_MAX)
    perigee__raise_arg(L, function, 1, "%s: integer >= 0 expected, got %s", name,
                       luaL_tolstring(L, -1, NULL));
  lua_pop(L, 1);
  return (int)n;
}

static int64_t seconds_field(lua_State *L, int index, const char *function, const char *name) {
  int64_t ns = 0;
  if (lua_getfield(L, index, name) != LUA_TNIL)
    ns = perigee__seconds_arg(L, -1, function, 1, false);
  lua_pop(L, 1);
  return ns;
}

perigee_shared *perigee__layer_options(lua_State *L, const char *function) {
  if (lua_isnil(L, -1)) {
    lua_pop(L, 1);
    return NULL;
  }
  if (lua_type(L, -1) != LUA_TTABLE)
    perigee__raise_arg(L, function, 1, "options: a table (layer -> its options) expected, got %s",
                       perigee__type_name(L, -1));
  for (lua_pushnil(L); lua_next(L, -2); lua_pop(L, 1))
    if (lua_type(L, -2) != LUA_TSTRING || lua_type(L, -1) != LUA_TTABLE)
      perigee__raise_arg(L, function, 1, "options: tables under names of layers expected, got %s",
                         perigee__type_name(L, -1));
  return perigee__lshared_create(perigee__interp_here(L), L);
}

/* perigee.init{backend =, rank =, size =, store =, timeout =, init_timeout =, name =, options =, tuning =} */
static int l_init(lua_State *L) {
  static const char *const known[] = {"backend",      "rank", "size",    "store",  "timeout",
                                      "init_timeout", "name", "options", "tuning", NULL};
  perigee_interp *interp = perigee__interp_here(L);
  perigee_init_options opts;
  perigee_init_options_init(&opts);
  lua_settop(L, 1);
  if (lua_isnil(L, 1)) {
    lua_newtable(L);
    lua_replace(L, 1);
  }
  if (lua_type(L, 1) != LUA_TTABLE)
    perigee__raise_arg(L, "init", 1, "options table expected, got %s", perigee__type_name(L, 1));
  perigee__check_keys(L, 1, "init", 1, known);
  opts.rank = int_field(L, 1, "init", "rank");
  opts.nranks = int_field(L, 1, "init", "size");
  if ((opts.rank < 0) != (opts.nranks < 0))
    perigee__raise_arg(L, "init", 1, "rank and size belong together: give both or none");
  opts.timeout_ns = seconds_field(L, 1, "init", "timeout");
  opts.init_timeout_ns = seconds_field(L, 1, "init", "init_timeout");
  opts.backend = text_field(L, 1, "init", "backend");
  opts.name = text_field(L, 1, "init", "name");
  opts.tuning = text_field(L, 1, "init", "tuning");
  lua_getfield(L, 1, "store");
  opts.store = perigee__store_opt(L, -1, "init", 1);
  perigee__lgroup *g = perigee__lgroup_new(L);
  perigee_group *group;
  perigee__gap gap;
  lua_getfield(L, 1, "options");
  opts.layer_options = perigee__layer_options(L, "init");
  perigee__gap_open(interp, L, &gap); /* cannot raise: this thread is inside */
  int rc = perigee_init(&opts, &group);
  if (rc == 0)
    perigee__lgroup_set(g, group);
  if (opts.layer_options != NULL)
    opts.layer_options->unref(opts.layer_options);
  perigee__gap_close(interp, &gap);
  perigee__check(L, rc);
  perigee__ltesting_note_group(L, group);
  return 1;
}

/* ---- life ---------------------------------------------------------------------------------------- */

static int l_close(lua_State *L) {
  perigee_interp *interp = perigee__interp_here(L);
  perigee__lgroup *g = perigee__object_self(L, &perigee__type_group, "close");
  if (g->box.ptr == NULL)
    return 0;
  perigee__gap gap;
  perigee__gap_open(interp, L, &gap);
  int rc = perigee_group_close(g->box.ptr);
  perigee__gap_close(interp, &gap);
  perigee__check(L, rc);
  perigee__lhook_flush(L, interp, g);
  return 0;
}

/* Never waits: what is still open is closed by the library, on a thread of its own. */
static int l_gc(lua_State *L) {
  perigee__lgroup *g = perigee__object_get(L, 1, &perigee__type_group);
  if (g != NULL) {
    perigee_group_unref(g->box.ptr);
    g->box.ptr = NULL;
    for (int i = 0; i < g->n_retired; i++)
      perigee_group_unref(g->retired[i]);
    free(g->retired);
    g->retired = NULL;
    g->n_retired = 0;
    perigee__hook_log_unref(g->hook_log);
    g->hook_log = NULL;
  }
  return 0;
}

/* ---- subgroups ----------------------------------------------------------------------------------- */

static const char *name_option(lua_State *L, int index, const char *function) {
  static const char *const known[] = {"name", NULL};
  if (lua_isnoneornil(L, index))
    return NULL;
  if (lua_type(L, index) != LUA_TTABLE)
    perigee__raise_arg(L, function, index - 1, "options table expected, got %s",
                       perigee__type_name(L, index));
  perigee__check_keys(L, index, function, index - 1, known);
  return text_field(L, index, function, "name");
}

static int push_group(lua_State *L, perigee__lgroup *g, int rc, perigee_group *group) {
  perigee__check(L, rc);
  if (group == NULL) {
    lua_pushnil(L);
    return 1;
  }
  perigee__lgroup_set(g, group);
  perigee__ltesting_note_group(L, group);
  return 1;
}

int perigee__lgroup_split(lua_State *L, void *parent, int rank, perigee__split_fn *make) {
  perigee_interp *interp = perigee__interp_here(L);
  int exact;
  lua_settop(L, 4);
  lua_Integer color = lua_tointegerx(L, 2, &exact);
  if (!exact)
    perigee__raise_arg(L, "split", 1, "color: integer expected, got %s", perigee__type_name(L, 2));
  lua_Integer key = luaL_optinteger(L, 3, rank);
  if (color > INT32_MAX || color < INT32_MIN || key > INT32_MAX || key < INT32_MIN)
    perigee__raise_arg(L, "split", 1, "color and key must fit 32 bits");
  const char *name = name_option(L, 4, "split");
  perigee__lgroup *g = perigee__lgroup_new(L);
  perigee_group *group = NULL;
  perigee__gap gap;
  perigee__gap_open(interp, L, &gap);
  int rc = make(parent, (int)color, (int)key, name, &group);
  perigee__gap_close(interp, &gap);
  return push_group(L, g, rc, group);
}

static int make_split(void *parent, int color, int key, const char *name, perigee_group **group_p) {
  return perigee_group_split(parent, color, key, name, group_p);
}

/* group:split(color [, key [, {name =}]]): nil for a negative color */
static int l_split(lua_State *L) {
  perigee__lgroup *g = perigee__lgroup_self(L, "split");
  return perigee__lgroup_split(L, g->box.ptr, g->rank, make_split);
}

int perigee__lgroup_subgroup(lua_State *L, void *parent, int size, perigee__subgroup_fn *make) {
  perigee_interp *interp = perigee__interp_here(L);
  lua_settop(L, 3);
  if (lua_type(L, 2) != LUA_TTABLE)
    perigee__raise_arg(L, "subgroup", 1, "list of ranks expected, got %s",
                       perigee__type_name(L, 2));
  lua_Unsigned n = lua_rawlen(L, 2);
  if (n > (lua_Unsigned)size)
    perigee__raise_arg(L, "subgroup", 1, "%llu ranks in a group of %d", (unsigned long long)n,
                       size);
  const char *name = name_option(L, 3, "subgroup");
  int *ranks = lua_newuserdatauv(L, (n + 1) * sizeof(int), 0);
  for (lua_Unsigned i = 0; i < n; i++) {
    int exact;
    lua_rawgeti(L, 2, (lua_Integer)i + 1);
    ranks[i] = (int)lua_tointegerx(L, -1, &exact);
    if (!exact)
      perigee__raise_arg(L, "subgroup", 1, "element %llu: rank expected, got %s",
                         (unsigned long long)i + 1, perigee__type_name(L, -1));
    lua_pop(L, 1);
  }
  perigee__lgroup *g = perigee__lgroup_new(L);
  perigee_group *group = NULL;
  perigee__gap gap;
  perigee__gap_open(interp, L, &gap);
  int rc = make(parent, ranks, (int)n, name, &group);
  perigee__gap_close(interp, &gap);
  return push_group(L, g, rc, group);
}

static int make_subgroup(void *parent, const int *ranks, int n, const char *name,
                         perigee_group **group_p) {
  return perigee_group_subgroup(parent, ranks, n, name, group_p);
}

/* group:subgroup(ranks [, {name =}]): nil on ranks that are not in the list */
static int l_subgroup(lua_State *L) {
  perigee__lgroup *g = perigee__lgroup_self(L, "subgroup");
  return perigee__lgroup_subgroup(L, g->box.ptr, g->nranks, make_subgroup);
}

/* ---- state --------------------------------------------------------------------------------------- */

/* group:abort(reason): on every rank; never waits for them */
static int l_abort(lua_State *L) {
  perigee_interp *interp = perigee__interp_here(L);
  perigee_group *group = group_self(L, "abort");
  const char *reason = luaL_optstring(L, 2, "aborted by the script");
  perigee__gap gap;
  perigee__gap_open(interp, L, &gap);
  int rc = perigee_group_abort(group, reason);
  perigee__gap_close(interp, &gap);
  perigee__check(L, rc);
  return 0;
}

/* group:failed(): nil while healthy, else the error */
static int l_failed(lua_State *L) {
  perigee_error error;
  if (perigee_group_failed(group_self(L, "failed"), &error) == 0)
    lua_pushnil(L);
  else
    perigee__error_push(L, &error);
  return 1;
}

static int l_is_closed(lua_State *L) {
  lua_pushboolean(L, perigee_group_is_closed(group_self(L, "is_closed")));
  return 1;
}

static int l_set_timeout(lua_State *L) {
  perigee_interp *interp = perigee__interp_here(L);
  perigee_group *group = group_self(L, "set_timeout");
  int64_t ns = perigee__seconds_arg(L, 2, "set_timeout", 1, false);
  perigee__gap gap;
  perigee__gap_open(interp, L, &gap);
  int rc = perigee_group_set_timeout(group, ns);
  perigee__gap_close(interp, &gap);
  perigee__check(L, rc);
  return 0;
}

/* group:pollfd(): perigee.pollfd(), as long as the group is open */
static int l_pollfd(lua_State *L) {
  perigee_interp *interp = perigee__interp_here(L);
  if (perigee_group_is_closed(group_self(L, "pollfd")))
    perigee__raise(L, PERIGEE_ECLOSED, "'pollfd' on a group that is closed");
  int fd;
  perigee__check(L, perigee__pollfd_open(interp, true, &fd));
  lua_pushinteger(L, fd);
  return 1;
}

static int map_rank(lua_State *L, const char *method,
                    int (*fn)(const perigee_group *group, int rank)) {
  const perigee_group *group = group_self(L, method);
  int exact;
  lua_Integer rank = lua_tointegerx(L, 2, &exact);
  if (!exact)
    perigee__raise_arg(L, method, 1, "rank expected, got %s", perigee__type_name(L, 2));
  int other = rank < 0 || rank > INT32_MAX ? -1 : fn(group, (int)rank);
  if (other < 0)
    lua_pushnil(L);
  else
    lua_pushinteger(L, other);
  return 1;
}

static int l_to_world(lua_State *L) { return map_rank(L, "to_world", perigee_group_to_world); }
static int l_from_world(lua_State *L) {
  return map_rank(L, "from_world", perigee_group_from_world);
}

/* ---- output -------------------------------------------------------------------------------------- */

/* The text of (fmt, ...) from stack index 2 on: formatted when there is something to format. [-0, +1, e] */
static void push_text(lua_State *L) {
  int top = lua_gettop(L);
  if (top <= 2) {
    luaL_tolstring(L, 2, NULL);
    return;
  }
  lua_getglobal(L, "string");
  lua_getfield(L, -1, "format");
  lua_remove(L, -2);
  for (int i = 2; i <= top; i++)
    lua_pushvalue(L, i);
  lua_call(L, top - 1, 1);
}

static void print_top(lua_State *L) {
  lua_getglobal(L, "print");
  lua_insert(L, -2);
  lua_call(L, 1, 0);
  fflush(stdout); /* a rank that is killed must not take its lines along */
}

/* group:print(fmt, ...): on rank 0 alone */
static int l_print(lua_State *L) {
  if (perigee__lgroup_self(L, "print")->rank != 0)
    return 0;
  push_text(L);
  print_top(L);
  return 0;
}

/* group:log(fmt, ...): on every rank, with the rank in front */
static int l_log(lua_State *L) {
  int rank = perigee__lgroup_self(L, "log")->rank;
  push_text(L);
  lua_pushfstring(L, "[rank %d] %s", rank, lua_tostring(L, -1));
  print_top(L);
  return 0;
}

/* ---- fields -------------------------------------------------------------------------------------- */

/* The rank or the size, which may be a script's answer. [-0, +1, e] */
static void push_reported(lua_State *L, const perigee__lgroup *g, perigee_method method) {
  const perigee_group *group = g->box.ptr;
  bool rank = method == PERIGEE_METHOD_RANK;
  int n = rank ? g->rank : g->nranks;
  if (PERIGEE_UNLIKELY(group->methods >> method & 1)) {
    perigee_interp *interp = perigee__interp_here(L);
    perigee__gap gap;
    perigee__gap_open(interp, L, &gap);
    n = rank ? perigee_group_rank(group) : perigee_group_size(group);
    perigee__gap_close(interp, &gap);
    perigee__check(L, n);
  }
  lua_pushinteger(L, n);
}

static void push_field(lua_State *L, const perigee__lgroup *g, const char *key) {
  const perigee_group *group = g->box.ptr;
  if (strcmp(key, "rank") == 0)
    push_reported(L, g, PERIGEE_METHOD_RANK);
  else if (strcmp(key, "size") == 0)
    push_reported(L, g, PERIGEE_METHOD_SIZE);
  else if (strcmp(key, "name") == 0)
    lua_pushstring(L, perigee_group_name(group));
  else if (strcmp(key, "backend") == 0)
    lua_pushstring(L, perigee_group_backend(group));
  else if (strcmp(key, "transport") == 0)
    lua_pushstring(L, perigee_group_transport(group));
  else if (strcmp(key, "seq") == 0)
    lua_pushinteger(L, (lua_Integer)perigee_group_seq(group));
  else if (strcmp(key, "timeout") == 0)
    lua_pushnumber(L, (double)perigee_group_timeout(group) / 1e9);
  else if (strcmp(key, "store") == 0)
    perigee__store_push(L, perigee_group_store(group));
  else
    lua_pushnil(L);
}

static int l_index(lua_State *L) {
  lua_pushvalue(L, 2);
  if (lua_rawget(L, lua_upvalueindex(2)) != LUA_TNIL || lua_type(L, 2) != LUA_TSTRING)
    return 1;
  const char *key = lua_tostring(L, 2);
  push_field(L, perigee__lgroup_self(L, key), key);
  return 1;
}

static int l_tostring(lua_State *L) {
  const perigee__lgroup *g = perigee__object_self(L, &perigee__type_group, "tostring");
  const perigee_group *group = g->box.ptr;
  if (group == NULL)
    lua_pushliteral(L, "group (collected)");
  else
    lua_pushfstring(L, "group '%s': rank %d of %d, %s%s", perigee_group_name(group), g->rank,
                    g->nranks, perigee_group_backend(group),
                    perigee_group_is_closed(group) ? " (closed)" : "");
  return 1;
}

void perigee__lgroup_open(lua_State *L) {
  static const luaL_Reg meta[] = {
      {"__gc", l_gc}, {"__close", l_close}, {"__tostring", l_tostring}, {NULL, NULL}};
  static const luaL_Reg methods[] = {
      {"alloc", perigee__lgroup_alloc},
      {"explain", perigee__lgroup_explain},
      {"close", l_close},
      {"is_closed", l_is_closed},
      {"split", l_split},
      {"subgroup", l_subgroup},
      {"abort", l_abort},
      {"failed", l_failed},
      {"set_timeout", l_set_timeout},
      {"pollfd", l_pollfd},
      {"to_world", l_to_world},
      {"from_world", l_from_world},
      {"print", l_print},
      {"log", l_log},
      {NULL, NULL},
  };
  static const luaL_Reg functions[] = {{"init", l_init}, {NULL, NULL}};
  perigee__type_open(L, &perigee__type_group, meta, methods, l_index);
  perigee__type_methods(L, &perigee__type_group);
  perigee__lgroup_ops_add(L, perigee__lgroup_op);
  perigee__lgroup_objects_add(L);
  perigee__lgroup_life_add(L);
  perigee__lcoalesce_add(L);
  perigee__functions_add(L, perigee__lhook_methods);
  lua_pop(L, 1);
  perigee__functions_add(L, functions);
  perigee__lhook_open(L);
}
