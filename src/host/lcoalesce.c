/*
 * group:coalesce and group:batch_send_recv.
 *
 * While the function of a coalescing runs, operations of the same group called on its thread return their Works at once (lgroup_ops.c) and are
 * noted in a list, through the thread's record. Batches are one inside the other only on different groups.
 */
#include "host/lcoalesce.h"

#include <stdio.h>
#include <string.h>

#include "host/call.h"
#include "host/lerror.h"
#include "host/lgroup.h"
#include "host/lwork.h"

/* On the C stack of the coalescing. */
typedef struct perigee__lbatch {
  struct perigee__lbatch *outer;
  const perigee_group *group;
  int list_ref; /* the Works of its operations, in their order */
} lbatch;

void perigee__coalesce_note(lua_State *L, perigee_interp *interp, const perigee_group *group) {
  const lbatch *batch = perigee__lthread_here(interp, L)->batches;
  while (batch != NULL && batch->group != group)
    batch = batch->outer;
  if (batch == NULL)
    return; /* started by C code around this script */
  lua_rawgeti(L, LUA_REGISTRYINDEX, batch->list_ref);
  lua_pushvalue(L, -2);
  lua_rawseti(L, -2, (lua_Integer)lua_rawlen(L, -2) + 1);
  lua_pop(L, 1);
}

/* Run the function and its n arguments on top as a batch; leaves the one Work. [-(n+1), +1, e] */
static int coalesce(lua_State *L, const perigee__lgroup *g, int n, int64_t timeout_ns) {
  perigee_interp *interp = perigee__interp_here(L);
  perigee__lthread *t = perigee__lthread_here(interp, L);
  perigee_group *group = g->box.ptr;
  perigee__lwork *w = perigee__lwork_new(L); // [ ..., f, args, work ]
  w->conv = PERIGEE_CONV_BATCH;
  lua_newtable(L);
  lua_pushvalue(L, -1);
  lua_setiuservalue(L, -3, 1);
  lbatch batch = {.outer = t->batches, .group = group, .list_ref = perigee__ref(interp, L)};
  lua_insert(L, -(n + 2)); // [ ..., work, f, args ]
  int rc = perigee_group_coalesce_start(group, timeout_ns);
  if (rc < 0) {
    perigee__unref(interp, batch.list_ref);
    perigee__raise_last(L);
  }
  t->batches = &batch;
  int status = lua_pcall(L, n, 0, 0);
  t->batches = batch.outer;
  perigee__unref(interp, batch.list_ref);
  if (status != LUA_OK) { /* nothing has been submitted */
    (void)!perigee_group_coalesce_cancel(group);
    return lua_error(L);
  }
  perigee_work *work = NULL;
  perigee__gap gap;
  perigee__gap_open(interp, L, &gap); /* cannot raise: this thread is inside */
  rc = perigee_group_coalesce_end(group, &work);
  perigee__gap_close(interp, &gap);
  perigee__check(L, rc);
  w->box.ptr = work;
  return 1;
}

/* group:coalesce(f [, {timeout =}]) */
static int l_coalesce(lua_State *L) {
  const perigee__lgroup *g = perigee__lgroup_self(L, "coalesce");
  if (lua_type(L, 2) != LUA_TFUNCTION)
    perigee__raise_arg(L, "coalesce", 1, "function expected, got %s", perigee__type_name(L, 2));
  lua_settop(L, 3);
  int64_t timeout_ns = perigee__timeout_option(L, 3, "coalesce", 2);
  lua_pushvalue(L, 2);
  return coalesce(L, g, 0, timeout_ns > 0 ? timeout_ns : PERIGEE_TIMEOUT_DEFAULT);
}

/* ---- batch_send_recv ----------------------------------------------------------------------------- */

/* Index 1: group, 2: the entry. Calls its method. */
static int post(lua_State *L) {
  static const char *const known[] = {"op", "tensor", "peer", "tag", NULL};
  if (lua_type(L, 2) != LUA_TTABLE)
    perigee__raise(L, PERIGEE_EINVAL, "a table {op =, tensor =, peer =, tag =} expected, got %s",
                   perigee__type_name(L, 2));
  perigee__check_keys(L, 2, "batch_send_recv", 1, known);
  int type = lua_getfield(L, 2, "op"); // [ group, entry, op ]
  const char *op = type == LUA_TSTRING ? lua_tostring(L, 3) : NULL;
  if (op == NULL || (strcmp(op, "send") != 0 && strcmp(op, "recv") != 0))
    perigee__raise(L, PERIGEE_EINVAL, "op: \"send\" or \"recv\" expected, got %s",
                   op != NULL ? op : perigee__type_name(L, 3));
  lua_getfield(L, 1, op);
  lua_pushvalue(L, 1);
  lua_getfield(L, 2, "tensor");
  lua_getfield(L, 2, "peer");
  lua_createtable(L, 0, 1);
  lua_getfield(L, 2, "tag");
  lua_setfield(L, -2, "tag");
  lua_call(L, 4, 0);
  return 0;
}

/* Index 1: group, 2: list. */
static int post_all(lua_State *L) {
  lua_Integer n = luaL_len(L, 2);
  for (lua_Integer i = 1; i <= n; i++) {
    lua_pushcclosure(L, post, 0);
    lua_pushvalue(L, 1);
    lua_geti(L, 2, i);
    if (lua_pcall(L, 2, 0, 0) == LUA_OK)
      continue;
    perigee_error error;
    perigee__error_any(L, -1, &error);
    char text[sizeof(error.message)];
    snprintf(text, sizeof(text), "batch_send_recv: entry %lld: %.440s", (long long)i,
             error.message);
    perigee__copy_text(error.message, sizeof(error.message), text);
    perigee__raise_error(L, &error);
  }
  return 0;
}

/* group:batch_send_recv(list [, {timeout =}]) */
static int l_batch_send_recv(lua_State *L) {
  const perigee__lgroup *g = perigee__lgroup_self(L, "batch_send_recv");
  if (lua_type(L, 2) != LUA_TTABLE)
    perigee__raise_arg(L, "batch_send_recv", 1, "list of tables expected, got %s",
                       perigee__type_name(L, 2));
  lua_settop(L, 3);
  int64_t timeout_ns = perigee__timeout_option(L, 3, "batch_send_recv", 2);
  lua_pushcfunction(L, post_all);
  lua_pushvalue(L, 1);
  lua_pushvalue(L, 2);
  return coalesce(L, g, 2, timeout_ns > 0 ? timeout_ns : PERIGEE_TIMEOUT_DEFAULT);
}

void perigee__lcoalesce_add(lua_State *L) {
  static const luaL_Reg methods[] = {
      {"coalesce", l_coalesce}, {"batch_send_recv", l_batch_send_recv}, {NULL, NULL}};
  perigee__functions_add(L, methods);
}
