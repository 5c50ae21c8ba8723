/* shutdown, shrink and reconfigure of groups. */
#include <stdlib.h>

#include "group/group.h"
#include "group/layers.h"
#include "host/lerror.h"
#include "host/lgroup.h"
#include "host/lmethods.h"
#include "host/lshared.h"
#include "host/lstore.h"
#include "host/ltesting.h"

/* group:shutdown([{timeout =}]): orderly end */
static int l_shutdown(lua_State *L) {
  perigee_interp *interp = perigee__interp_here(L);
  perigee_group *group = perigee__lgroup_self(L, "shutdown")->box.ptr;
  int64_t timeout_ns = perigee__timeout_option(L, 2, "shutdown", 1);
  perigee__gap gap;
  perigee__gap_open(interp, L, &gap);
  int rc = perigee_group_shutdown(group, timeout_ns);
  perigee__gap_close(interp, &gap);
  perigee__check(L, rc);
  return 0;
}

/* group:shrink([{timeout =, name =}]): a new group of the ranks that are alive */
static int l_shrink(lua_State *L) {
  static const char *const known[] = {"timeout", "name", NULL};
  perigee_interp *interp = perigee__interp_here(L);
  perigee_group *group = perigee__lgroup_self(L, "shrink")->box.ptr;
  int64_t timeout_ns = 0;
  const char *name = NULL;
  lua_settop(L, 2);
  if (!lua_isnil(L, 2)) {
    if (lua_type(L, 2) != LUA_TTABLE)
      perigee__raise_arg(L, "shrink", 1, "options table expected, got %s",
                         perigee__type_name(L, 2));
    perigee__check_keys(L, 2, "shrink", 1, known);
    if (lua_getfield(L, 2, "timeout") != LUA_TNIL)
      timeout_ns = perigee__seconds_arg(L, -1, "shrink", 1, false);
    int type = lua_getfield(L, 2, "name");
    if (type != LUA_TNIL && type != LUA_TSTRING)
      perigee__raise_arg(L, "shrink", 1, "name: string expected, got %s",
                         perigee__type_name(L, -1));
    name = lua_tostring(L, -1);
  }
  perigee__lgroup *g = perigee__lgroup_new(L);
  perigee_group *made = NULL;
  perigee__gap gap;
  perigee__gap_open(interp, L, &gap);
  int rc = perigee_group_shrink(group, timeout_ns, name, &made);
  perigee__gap_close(interp, &gap);
  perigee__check(L, rc);
  perigee__lgroup_set(g, made);
  perigee__ltesting_note_group(L, made);
  return 1;
}

/* ---- reconfigure --------------------------------------------------------------------------------- */

static int rank_field(lua_State *L, int index, const char *name, bool strict) {
  int exact = 0;
  lua_Integer n = -1;
  if (lua_getfield(L, index, name) != LUA_TNIL) {
    n = lua_tointegerx(L, -1, &exact);
    if (strict && (!exact || n < 0 || n > INT32_MAX))
      perigee__raise_arg(L, "reconfigure", 1, "%s: integer >= 0 expected, got %s", name,
                         luaL_tolstring(L, -1, NULL));
  }
  lua_pop(L, 1);
  return exact && n >= 0 && n <= INT32_MAX ? (int)n : -1;
}

static int64_t seconds_field(lua_State *L, int index, const char *name, bool strict) {
  int64_t ns = 0;
  int type = lua_getfield(L, index, name);
  if (type != LUA_TNIL && (strict || (type == LUA_TNUMBER && lua_tonumber(L, -1) > 0)))
    ns = perigee__seconds_arg(L, -1, "reconfigure", 1, false);
  lua_pop(L, 1);
  return ns;
}

void perigee__reconfigure_options(lua_State *L, int index, bool strict,
                                  perigee_reconfigure_options *opts) {
  static const char *const known[] = {"store",   "id",           "rank", "size",
                                      "timeout", "init_timeout", NULL};
  perigee_reconfigure_options_init(opts);
  if (lua_isnil(L, index)) {
    lua_pushnil(L);
    lua_pushnil(L);
    return;
  }
  if (lua_type(L, index) != LUA_TTABLE)
    perigee__raise_arg(L, "reconfigure", 1, "options table expected, got %s",
                       perigee__type_name(L, index));
  if (strict)
    perigee__check_keys(L, index, "reconfigure", 1, known);
  opts->rank = rank_field(L, index, "rank", strict);
  opts->nranks = rank_field(L, index, "size", strict);
  opts->timeout_ns = seconds_field(L, index, "timeout", strict);
  opts->init_timeout_ns = seconds_field(L, index, "init_timeout", strict);
  lua_getfield(L, index, "store");
  if (strict || perigee__object_get(L, -1, &perigee__type_store) != NULL)
    opts->store = perigee__store_opt(L, -1, "reconfigure", 1);
  int type = lua_getfield(L, index, "id");
  if (type == LUA_TSTRING || type == LUA_TNUMBER)
    opts->id = lua_tostring(L, -1);
  else if (strict && type != LUA_TNIL)
    perigee__raise_arg(L, "reconfigure", 1, "id: string expected, got %s",
                       perigee__type_name(L, -1));
}

/* The object stands for another group from now on. Threads may be on their way into the old one: it goes with the object. */
static void replace(perigee__lgroup *g, perigee_group **slot, perigee_group *group) {
  slot[g->n_retired] = g->box.ptr;
  g->retired = slot;
  g->n_retired++;
  perigee__lgroup_set(g, group);
}

/* group:reconfigure([opts]): forms the group anew in place, and returns it */
static int l_reconfigure(lua_State *L) {
  perigee_interp *interp = perigee__interp_here(L);
  perigee__lgroup *g = perigee__lgroup_self(L, "reconfigure");
  perigee_group *group = g->box.ptr;
  perigee_reconfigure_options opts;
  lua_settop(L, 2);
  bool overridden =
      !perigee_group_is_closed(group) && group->methods >> PERIGEE_METHOD_RECONFIGURE & 1;
  perigee__reconfigure_options(L, 2, !overridden, &opts);
  perigee_group **slot = realloc(g->retired, (size_t)(g->n_retired + 1) * sizeof(perigee_group *));
  if (slot == NULL)
    perigee__raise(L, PERIGEE_ENOMEM, "no memory for a group");
  g->retired = slot;
  if (overridden && !lua_isnil(L, 2)) {
    lua_pushvalue(L, 2);
    opts.script = perigee__lshared_create(interp, L);
  }
  perigee_group *made = NULL;
  perigee__gap gap;
  perigee__gap_open(interp, L, &gap); /* cannot raise: this thread is inside */
  int rc = perigee_group_reconfigure(group, &opts, &made);
  if (opts.script != NULL)
    opts.script->unref(opts.script);
  perigee__gap_close(interp, &gap);
  perigee__check(L, rc);
  if (made != NULL &&
      g->box.ptr != group) { /* another thread was faster; there is one group for the object */
    perigee_group_unref(made);
    perigee__raise(L, PERIGEE_ESTATE, "reconfigure: another thread reconfigures this group");
  }
  if (made != NULL) {
    replace(g, g->retired, made);
    perigee__ltesting_note_group(L, made);
  }
  lua_settop(L, 1);
  return 1;
}

void perigee__lgroup_life_add(lua_State *L) {
  static const luaL_Reg methods[] = {
      {"shutdown", l_shutdown}, {"shrink", l_shrink}, {"reconfigure", l_reconfigure}, {NULL, NULL}};
  perigee__functions_add(L, methods);
}
