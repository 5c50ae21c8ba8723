#include "host/lmethods.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "host/lerror.h"
#include "host/lgroup.h"
#include "host/linner.h"
#include "host/lshared.h"
#include "host/lstore.h"
#include "host/lwork.h"

/* One call of a method: what it gets and what it gives. */
typedef struct method_call {
  perigee__llayer *layer;
  perigee_method method;
  int64_t timeout_ns;
  int color, key;
  const char *name;
  const perigee_reconfigure_options *opts;
  int value;            /* rank, size */
  perigee_work *work;   /* one reference, or NULL */
  perigee_group *group; /* one reference, or NULL */
} method_call;

_Noreturn static void wrong_type(lua_State *L, const method_call *c, const char *what) {
  perigee__raise(L, PERIGEE_ELUATYPE, "backend '%s': %s must return %s; got %s%s", c->layer->name,
                 perigee_method_name((int)c->method), what, perigee__type_name(L, -1),
                 lua_isnil(L, -1) ? " (is a 'return' missing?)" : "");
}

/* ---- arguments ----------------------------------------------------------------------------------- */

static int push_nothing(lua_State *L, const method_call *c) {
  (void)L;
  (void)c;
  return 0;
}

static void push_seconds(lua_State *L, const char *name, int64_t ns) {
  lua_pushnumber(L, (double)ns / 1e9);
  lua_setfield(L, -2, name);
}

/* split(self, color, key, {name =}) */
static int push_split(lua_State *L, const method_call *c) {
  lua_pushinteger(L, c->color);
  lua_pushinteger(L, c->key);
  lua_createtable(L, 0, 1);
  if (c->name != NULL) {
    lua_pushstring(L, c->name);
    lua_setfield(L, -2, "name");
  }
  return 3;
}

/* shutdown(self, {timeout =}) */
static int push_shutdown(lua_State *L, const method_call *c) {
  lua_createtable(L, 0, 1);
  push_seconds(L, "timeout", c->timeout_ns);
  return 1;
}

/* reconfigure(self, opts): the very table of the caller, or one made of what a C caller gave */
static int push_reconfigure(lua_State *L, const method_call *c) {
  const perigee_reconfigure_options *opts = c->opts;
  if (perigee__lshared_push(c->layer->interp, L, opts->script))
    return 1;
  lua_pop(L, 1);
  lua_createtable(L, 0, 6);
  if (opts->rank >= 0) {
    lua_pushinteger(L, opts->rank);
    lua_setfield(L, -2, "rank");
    lua_pushinteger(L, opts->nranks);
    lua_setfield(L, -2, "size");
  }
  if (opts->store != NULL) {
    perigee__store_push(L, opts->store);
    lua_setfield(L, -2, "store");
  }
  if (opts->id != NULL) {
    lua_pushstring(L, opts->id);
    lua_setfield(L, -2, "id");
  }
  if (opts->timeout_ns > 0)
    push_seconds(L, "timeout", opts->timeout_ns);
  if (opts->init_timeout_ns > 0)
    push_seconds(L, "init_timeout", opts->init_timeout_ns);
  return 1;
}

/* ---- results: on top of the stack ---------------------------------------------------------------- */

static void take_nothing(lua_State *L, method_call *c) {
  (void)L;
  (void)c;
}

static void take_name(lua_State *L, method_call *c) {
  if (lua_type(L, -1) != LUA_TSTRING)
    wrong_type(L, c, "a string");
  perigee__copy_text(c->layer->shown, sizeof(c->layer->shown), lua_tostring(L, -1));
}

static void take_number(lua_State *L, method_call *c) {
  int exact, least = c->method == PERIGEE_METHOD_SIZE ? 1 : 0;
  lua_Integer n = lua_tointegerx(L, -1, &exact);
  if (!exact || lua_type(L, -1) != LUA_TNUMBER)
    wrong_type(L, c, "an integer");
  if (n < least || n > INT32_MAX)
    perigee__raise(L, PERIGEE_ERANGE, "backend '%s': %s returned %lld, at least %d expected",
                   c->layer->name, perigee_method_name((int)c->method), (long long)n, least);
  c->value = (int)n;
}

static bool take_group_if(lua_State *L, method_call *c) {
  const perigee__lgroup *g = perigee__object_get(L, -1, &perigee__type_group);
  if (g == NULL || g->box.ptr == NULL)
    return false;
  c->group = perigee_group_ref(g->box.ptr);
  return true;
}

static void take_group(lua_State *L, method_call *c) {
  if (!take_group_if(L, c) && !(lua_isnil(L, -1) && c->color < 0))
    wrong_type(L, c, "a group, or nil for a negative color");
}

static void take_work(lua_State *L, method_call *c) {
  c->work = perigee__result_work(L, c->layer, NULL, c->timeout_ns, NULL);
  if (c->work == NULL)
    wrong_type(L, c, "a Work, a table with wait, get_future or is_completed, or true");
}

static void take_optional_work(lua_State *L, method_call *c) {
  if (!lua_isnil(L, -1))
    take_work(L, c);
}

static void take_group_or_work(lua_State *L, method_call *c) {
  if (take_group_if(L, c))
    return;
  c->work = perigee__result_work(L, c->layer, NULL, c->timeout_ns, NULL);
  if (c->work == NULL)
    wrong_type(L, c, "the new group, or a Work or true when this one stays");
}

/* ---- the trampoline ------------------------------------------------------------------------------ */

static const struct row {
  int (*push)(lua_State *L, const method_call *c); /* returns how many */
  void (*take)(lua_State *L, method_call *c);
} rows[PERIGEE_METHOD_COUNT] = {
    [PERIGEE_METHOD_BACKEND_NAME] = {push_nothing, take_name},
    [PERIGEE_METHOD_RANK] = {push_nothing, take_number},
    [PERIGEE_METHOD_SIZE] = {push_nothing, take_number},
    [PERIGEE_METHOD_SPLIT] = {push_split, take_group},
    [PERIGEE_METHOD_SHUTDOWN] = {push_shutdown, take_optional_work},
    [PERIGEE_METHOD_START_COALESCING] = {push_nothing, take_nothing},
    [PERIGEE_METHOD_END_COALESCING] = {push_nothing, take_work},
    [PERIGEE_METHOD_RECONFIGURE] = {push_reconfigure, take_group_or_work},
};

static int body(lua_State *L) {
  method_call *c = lua_touserdata(L, 1);
  luaL_checkstack(L, 16, NULL);
  lua_rawgeti(L, LUA_REGISTRYINDEX, c->layer->method_ref[c->method]);
  lua_rawgeti(L, LUA_REGISTRYINDEX, c->layer->self_ref);
  lua_call(L, rows[c->method].push(L, c) + 1, 1);
  rows[c->method].take(L, c);
  return 0;
}

static int call(method_call *c) {
  perigee__llayer *layer = c->layer;
  perigee_interp *interp = layer->interp;
  perigee__lthread *t;
  if (c->timeout_ns <= 0)
    c->timeout_ns = atomic_load_explicit(&layer->timeout_ns, memory_order_relaxed);
  PERIGEE_TRY(
      perigee__enter(interp, c->timeout_ns, perigee_method_name((int)c->method), false, &t));
  /* What an operation's override around this one holds back is not this one's. */
  void *defer_for = t->defer_for;
  t->defer_for = NULL;
  perigee_error error;
  int rc = perigee__protect(perigee__lthread_state(t), body, c, &error);
  t->defer_for = defer_for;
  perigee__leave(interp, t);
  if (PERIGEE_LIKELY(rc == 0))
    return 0;
  if (error.rank < 0)
    error.rank = layer->rank;
  if (error.group[0] == '\0')
    memcpy(error.group, layer->group_name, sizeof(error.group));
  return perigee__fail_with(&error);
}

/* What the method returned has to end before the call does. */
static int wait_for_work(const method_call *c) {
  if (c->work == NULL)
    return 0;
  int rc = perigee__host_wait(c->layer->interp, NULL, c->work, c->timeout_ns);
  if (rc == PERIGEE_EAGAIN)
    rc = perigee__fail(
        PERIGEE_ETIMEDOUT, "%s: timed out after %.1f s: backend '%s' did not complete it",
        perigee_method_name((int)c->method), (double)c->timeout_ns / 1e9, c->layer->name);
  perigee_work_unref(c->work);
  return rc;
}

/* ---- slots --------------------------------------------------------------------------------------- */

bool perigee__method_provides(void *self, int method) {
  const perigee__llayer *layer = self;
  return layer->method_ref[method] != LUA_NOREF;
}

const char *perigee__method_backend_name(void *self) {
  method_call c = {.layer = self, .method = PERIGEE_METHOD_BACKEND_NAME};
  return call(&c) == 0 ? c.layer->shown : NULL;
}

static int number(void *self, perigee_method method) {
  method_call c = {.layer = self, .method = method};
  PERIGEE_TRY(call(&c));
  return c.value;
}

int perigee__method_rank(void *self) { return number(self, PERIGEE_METHOD_RANK); }
int perigee__method_size(void *self) { return number(self, PERIGEE_METHOD_SIZE); }

int perigee__method_split(void *self, int color, int key, const char *name,
                          perigee_group **group_p) {
  method_call c = {
      .layer = self, .method = PERIGEE_METHOD_SPLIT, .color = color, .key = key, .name = name};
  PERIGEE_TRY(call(&c));
  *group_p = c.group;
  return 0;
}

int perigee__method_shutdown(void *self, int64_t timeout_ns) {
  method_call c = {.layer = self, .method = PERIGEE_METHOD_SHUTDOWN, .timeout_ns = timeout_ns};
  PERIGEE_TRY(call(&c));
  return wait_for_work(&c);
}

int perigee__method_start_coalescing(void *self) {
  method_call c = {.layer = self, .method = PERIGEE_METHOD_START_COALESCING};
  return call(&c);
}

int perigee__method_end_coalescing(void *self, perigee_work **work_p) {
  method_call c = {.layer = self, .method = PERIGEE_METHOD_END_COALESCING};
  PERIGEE_TRY(call(&c));
  *work_p = c.work;
  return 0;
}

int perigee__method_reconfigure(void *self, const perigee_reconfigure_options *opts,
                                perigee_group **group_p) {
  method_call c = {.layer = self,
                   .method = PERIGEE_METHOD_RECONFIGURE,
                   .timeout_ns = opts->init_timeout_ns,
                   .opts = opts};
  PERIGEE_TRY(call(&c));
  PERIGEE_TRY(wait_for_work(&c));
  *group_p = c.group;
  return 0;
}

/* ---- finding them -------------------------------------------------------------------------------- */

/* Push the method or nil. The fields rank and size of an instance are numbers: there a method is the table's. [-0, +1, e] */
static void push_method(lua_State *L, perigee_method method, int self, int table) {
  int type = lua_getfield(L, self, perigee_method_name((int)method));
  if ((method == PERIGEE_METHOD_RANK || method == PERIGEE_METHOD_SIZE) && type != LUA_TFUNCTION) {
    lua_pop(L, 1);
    lua_getfield(L, table, perigee_method_name((int)method));
  }
}

void perigee__methods_resolve(lua_State *L, perigee__llayer *layer, int table) {
  int self = lua_gettop(L);
  for (int method = 0; method < PERIGEE_METHOD_COUNT; method++) {
    push_method(L, (perigee_method)method, self, table);
    if (lua_isnil(L, -1)) {
      lua_pop(L, 1);
      continue;
    }
    if (lua_type(L, -1) != LUA_TFUNCTION)
      perigee__raise(L, PERIGEE_ELUATYPE, "backend '%s': %s must be a function, it is a %s",
                     layer->name, perigee_method_name(method), perigee__type_name(L, -1));
    layer->method_ref[method] = perigee__ref(layer->interp, L);
  }
}

/* ---- self.inner:<method> --------------------------------------------------------------------------- */

static int split_of_layer(void *layer, int color, int key, const char *name,
                          perigee_group **group_p) {
  return perigee_layer_split(layer, color, key, name, group_p);
}

/* inner:split(color [, key [, {name =}]]): goes on with the split of the group, in which the new group has the whole stack */
static int l_split(lua_State *L) {
  perigee__llayer *layer = perigee__inner_self(L, "split");
  return perigee__lgroup_split(L, layer->layer, layer->rank, split_of_layer);
}

/* inner:shutdown([{timeout =}]): waits until what is pending has ended */
static int l_shutdown(lua_State *L) {
  perigee_interp *interp = perigee__interp_here(L);
  const perigee__llayer *layer = perigee__inner_self(L, "shutdown");
  int64_t timeout_ns = perigee__timeout_option(L, 2, "shutdown", 1);
  perigee__gap gap;
  perigee__gap_open(interp, L, &gap);
  int rc = perigee_layer_shutdown(layer->layer, timeout_ns);
  perigee__gap_close(interp, &gap);
  perigee__check(L, rc);
  return 0;
}

static int l_start_coalescing(lua_State *L) {
  perigee_interp *interp = perigee__interp_here(L);
  const perigee__llayer *layer = perigee__inner_self(L, "start_coalescing");
  perigee__gap gap;
  perigee__gap_open(interp, L, &gap);
  int rc = perigee_layer_start_coalescing(layer->layer);
  perigee__gap_close(interp, &gap);
  perigee__check(L, rc);
  return 0;
}

/* inner:end_coalescing(): a Work */
static int l_end_coalescing(lua_State *L) {
  perigee_interp *interp = perigee__interp_here(L);
  const perigee__llayer *layer = perigee__inner_self(L, "end_coalescing");
  perigee__lwork *w = perigee__lwork_new(L);
  perigee_work *work = NULL;
  perigee__gap gap;
  perigee__gap_open(interp, L, &gap);
  int rc = perigee_layer_end_coalescing(layer->layer, &work);
  perigee__gap_close(interp, &gap);
  perigee__check(L, rc);
  w->box.ptr = work;
  return 1;
}

/* inner:reconfigure(opts): the new group; true when a layer below did it in place */
static int l_reconfigure(lua_State *L) {
  perigee_interp *interp = perigee__interp_here(L);
  const perigee__llayer *layer = perigee__inner_self(L, "reconfigure");
  perigee_reconfigure_options opts;
  lua_settop(L, 2);
  perigee__reconfigure_options(L, 2, true, &opts);
  perigee__lgroup *g = perigee__lgroup_new(L);
  perigee_group *group = NULL;
  perigee__gap gap;
  perigee__gap_open(interp, L, &gap);
  int rc = perigee_layer_reconfigure(layer->layer, &opts, &group);
  perigee__gap_close(interp, &gap);
  perigee__check(L, rc);
  if (group != NULL)
    perigee__lgroup_set(g, group);
  else
    lua_pushboolean(L, 1);
  return 1;
}

void perigee__linner_methods_add(lua_State *L) {
  static const luaL_Reg methods[] = {{"split", l_split},
                                     {"shutdown", l_shutdown},
                                     {"start_coalescing", l_start_coalescing},
                                     {"end_coalescing", l_end_coalescing},
                                     {"reconfigure", l_reconfigure},
                                     {NULL, NULL}};
  perigee__functions_add(L, methods);
}
