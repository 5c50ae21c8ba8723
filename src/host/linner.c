#include "host/linner.h"

#include <string.h>

#include "group/group.h"
#include "host/call.h"
#include "host/deferred.h"
#include "host/lbackend.h"
#include "host/lerror.h"
#include "host/lgroup.h"
#include "host/lmethods.h"
#include "host/lwork.h"

void perigee__inner_push(lua_State *L, perigee__llayer *layer) {
  perigee__box *box = perigee__object_new(L, &perigee__type_inner, sizeof(perigee__box), 0);
  atomic_fetch_add_explicit(&layer->refs, 1, memory_order_relaxed);
  box->ptr = layer;
}

perigee__llayer *perigee__inner_self(lua_State *L, const char *method) {
  const perigee__box *box = perigee__object_self(L, &perigee__type_inner, method);
  perigee__llayer *layer = box->ptr;
  if (layer == NULL || atomic_load_explicit(&layer->closed, memory_order_relaxed))
    perigee__raise(L, PERIGEE_ECLOSED, "'%s' on the inner layer of a group that is closed", method);
  return layer;
}

/*
 * inner:op(...): the arguments of the group's method; always returns a Work. Upvalue 2: the operation.
 * The interpreter is given up for the submission: layers below may belong to another interpreter, and two threads that hold one
 * and want the other would wait for ever.
 */
static int l_inner_op(lua_State *L) {
  perigee_interp *interp = perigee__interp_here(L);
  int op = (int)lua_tointeger(L, lua_upvalueindex(2));
  perigee__llayer *layer = perigee__inner_self(L, perigee_op_name(op));
  perigee__call call;
  call.rank = layer->rank;
  call.nranks = layer->nranks;
  perigee__call_parse(L, op, &call);
  perigee__lthread *t = perigee__lthread_here(interp, L);
  call.req.seq = t->seq;
  perigee__lwork *w = perigee__lwork_new(L);
  w->conv = call.conv;
  if (call.value != 0) {
    lua_pushvalue(L, call.value);
    lua_setiuservalue(L, -2, 1);
  }
  if ((w->deferred = perigee__deferred_create(t, layer, &call)) != NULL)
    return 1;
  perigee_work *work;
  perigee__gap gap;
  perigee__call_pin(&call);
  perigee__gap_open(interp, L, &gap); /* cannot raise: this thread is inside */
  int rc = perigee_layer_submit(layer->layer, &call.req, &work);
  perigee__call_unpin(&call);
  perigee__gap_close(interp, &gap);
  perigee__check(L, rc);
  w->box.ptr = work;
  return 1;
}

static int make_subgroup(void *parent, const int *ranks, int n, const char *name,
                         perigee_group **group_p) {
  return perigee_layer_subgroup(parent, ranks, n, name, group_p);
}

/* inner:subgroup(ranks [, {name =}]): a group of the layers below; the layer closes it */
static int l_subgroup(lua_State *L) {
  const perigee__llayer *layer = perigee__inner_self(L, "subgroup");
  return perigee__lgroup_subgroup(L, layer->layer, layer->nranks, make_subgroup);
}

static int l_gc(lua_State *L) {
  perigee__box *box = perigee__object_get(L, 1, &perigee__type_inner);
  if (box != NULL && box->ptr != NULL) {
    perigee__llayer *layer = box->ptr;
    box->ptr = NULL;
    perigee__llayer_unref(layer);
  }
  return 0;
}

/* What the layers below report, which may be a script's answer. [-0, +1, e] */
static void push_reported(lua_State *L, const perigee__llayer *layer, perigee_method method) {
  bool rank = method == PERIGEE_METHOD_RANK;
  int n = rank ? layer->rank : layer->nranks;
  if (layer->layer->group->methods >> method & 1) {
    perigee_interp *interp = perigee__interp_here(L);
    perigee__gap gap;
    perigee__gap_open(interp, L, &gap);
    n = rank ? perigee_layer_rank(layer->layer) : perigee_layer_size(layer->layer);
    perigee__gap_close(interp, &gap);
    perigee__check(L, n);
  }
  lua_pushinteger(L, n);
}

static int l_index(lua_State *L) {
  lua_pushvalue(L, 2);
  if (lua_rawget(L, lua_upvalueindex(2)) != LUA_TNIL || lua_type(L, 2) != LUA_TSTRING)
    return 1;
  const char *key = lua_tostring(L, 2);
  const perigee__llayer *layer = perigee__inner_self(L, key);
  if (strcmp(key, "name") == 0)
    lua_pushstring(L, perigee_layer_below(layer->layer));
  else if (strcmp(key, "rank") == 0)
    push_reported(L, layer, PERIGEE_METHOD_RANK);
  else if (strcmp(key, "size") == 0)
    push_reported(L, layer, PERIGEE_METHOD_SIZE);
  else if (strcmp(key, "seq") == 0) /* of the operation whose override runs, 0 outside */
    lua_pushinteger(L, (lua_Integer)perigee__lthread_here(perigee__interp_here(L), L)->seq);
  else if (strcmp(key, "waits") ==
           0) /* whether the caller of the override that runs waits for its operation */
    lua_pushboolean(L, perigee__lthread_here(perigee__interp_here(L), L)->defer_for == layer);
  else
    lua_pushnil(L);
  return 1;
}

static int l_tostring(lua_State *L) {
  const perigee__box *box = perigee__object_self(L, &perigee__type_inner, "tostring");
  const perigee__llayer *layer = box->ptr;
  bool open = layer != NULL && !atomic_load_explicit(&layer->closed, memory_order_relaxed);
  lua_pushfstring(L, "inner layer '%s'", open ? perigee_layer_below(layer->layer) : "(closed)");
  return 1;
}

void perigee__linner_open(lua_State *L) {
  static const luaL_Reg meta[] = {{"__gc", l_gc}, {"__tostring", l_tostring}, {NULL, NULL}};
  static const luaL_Reg methods[] = {{"subgroup", l_subgroup}, {NULL, NULL}};
  perigee__type_open(L, &perigee__type_inner, meta, methods, l_index);
  perigee__type_methods(L, &perigee__type_inner);
  perigee__lgroup_ops_add(L, l_inner_op);
  perigee__linner_methods_add(L);
  lua_pop(L, 1);
}
