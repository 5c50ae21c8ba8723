/* Layers whose backend is a Lua table: their instances, from open to close. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/lbackend.h"

#include "base/alloc.h"
#include "base/log.h"
#include "group/closing.h"
#include "host/lerror.h"
#include "host/lmethods.h"
#include "host/lshared.h"
#include "host/lstore.h"
#include "host/lwork.h"

/* ---- opening a layer ----------------------------------------------------------------------------- */

typedef struct open_args {
  perigee__lbackend *backend;
  const perigee_layer_info *info;
  perigee__llayer *layer;
} open_args;

static void push_instance(lua_State *L, const open_args *args) {
  const perigee_layer_info *info = args->info;
  lua_createtable(L, 0, 10); // [ self ]
  perigee__inner_push(L, args->layer);
  lua_setfield(L, -2, "inner");
  lua_pushinteger(L, info->rank);
  lua_setfield(L, -2, "rank");
  lua_pushinteger(L, info->nranks);
  lua_setfield(L, -2, "size");
  perigee__store_push(L, info->store);
  lua_setfield(L, -2, "store");
  lua_pushstring(L, info->group_name);
  lua_setfield(L, -2, "group_name");
  lua_pushstring(L, info->backend_name);
  lua_setfield(L, -2, "name");
  lua_createtable(L, info->nranks, 0);
  for (int r = 0; r < info->nranks; r++) {
    lua_pushinteger(L, info->members[r]);
    lua_rawseti(L, -2, r + 1);
  }
  lua_setfield(L, -2, "members");
  lua_createtable(L, 0, 1);
  lua_rawgeti(L, LUA_REGISTRYINDEX, args->backend->table->ref);
  lua_setfield(L, -2, "__index");
  lua_setmetatable(L, -2);
}

/* Copy what init was given for this layer into the table on top. */
static void add_options(lua_State *L, perigee_interp *interp, const perigee_layer_info *info) {
  if (!perigee__lshared_push(interp, L, info->options)) {
    lua_pop(L, 1);
    if (info->options != NULL)
      perigee__raise(L, PERIGEE_EINVAL,
                     "backend '%s': options that were made in another interpreter",
                     info->backend_name);
    return;
  }
  if (lua_getfield(L, -1, info->backend_name) == LUA_TTABLE)
    for (lua_pushnil(L); lua_next(L, -2); lua_pop(L, 1)) {
      lua_pushvalue(L, -2);
      lua_pushvalue(L, -2); // [ opts, all, mine, k, v, k, v ]
      lua_rawset(L, -7);
    }
  lua_pop(L, 2);
}

/* self:open{timeout =, and the layer's own options}, if there is one. Self on top. */
static void call_open(lua_State *L, perigee_interp *interp, const perigee_layer_info *info) {
  if (lua_getfield(L, -1, "open") == LUA_TNIL) {
    lua_pop(L, 1);
    return;
  }
  lua_pushvalue(L, -2);
  lua_createtable(L, 0, 1);
  lua_pushnumber(L, (double)info->timeout_ns / 1e9);
  lua_setfield(L, -2, "timeout");
  add_options(L, interp, info);
  lua_call(L, 2, 0);
}

static const char *place_of(lua_State *L, perigee__llayer *layer, int op) {
  lua_Debug ar;
  lua_pushvalue(L, -1);
  if (!lua_getinfo(L, ">S", &ar))
    return NULL;
  char text[256];
  snprintf(text, sizeof(text), "%s of backend '%s', %.80s:%d", perigee_op_name(op), layer->name,
           ar.short_src, ar.linedefined);
  return perigee__interp_place(layer->interp, text);
}

/* References to what handles each operation and method. Self on top; table: the index of the backend table. */
static void resolve(lua_State *L, perigee__llayer *layer, int table) {
  int self = lua_gettop(L);
  for (int op = 0; op < PERIGEE_OP_COUNT; op++) {
    perigee__backend_method(L, self, perigee_op_get(op));
    if (lua_isnil(L, -1)) {
      lua_pop(L, 1);
      continue;
    }
    if (lua_type(L, -1) != LUA_TFUNCTION)
      perigee__raise(L, PERIGEE_ELUATYPE, "backend '%s': %s must be a function, it is a %s",
                     layer->name, perigee_op_name(op), perigee__type_name(L, -1));
    layer->place[op] = place_of(L, layer, op);
    layer->fn_ref[op] = perigee__ref(layer->interp, L);
  }
  perigee__methods_resolve(L, layer, table);
  lua_settop(L, self);
}

static int open_body(lua_State *L) {
  open_args *args = lua_touserdata(L, 1);
  lua_rawgeti(L, LUA_REGISTRYINDEX, args->backend->table->ref);
  perigee__backend_check_table(L, -1);
  push_instance(L, args);
  lua_pushvalue(L, -1);
  args->layer->self_ref = perigee__ref(args->layer->interp, L);
  call_open(L, args->layer->interp, args->info);
  perigee__backend_check_table(L, -1); /* open may have given the instance methods of its own */
  resolve(L, args->layer, 2);
  return 0;
}

static perigee__llayer *layer_new(const perigee__lbackend *backend,
                                  const perigee_layer_info *info) {
  perigee__llayer *layer = perigee__calloc(1, sizeof(*layer));
  if (layer == NULL)
    return NULL;
  atomic_init(&layer->refs, 1);
  atomic_init(&layer->timeout_ns, info->timeout_ns);
  layer->interp = backend->interp;
  perigee__interp_ref(layer->interp);
  layer->layer = info->layer;
  perigee__copy_text(layer->name, sizeof(layer->name), info->backend_name);
  perigee__copy_text(layer->group_name, sizeof(layer->group_name), info->group_name);
  layer->rank = info->rank;
  layer->nranks = info->nranks;
  layer->self_ref = LUA_NOREF;
  for (int method = 0; method < PERIGEE_METHOD_COUNT; method++)
    layer->method_ref[method] = LUA_NOREF;
  perigee__mutex_init(&layer->running_lock, PERIGEE_LOCK_LEAF, "layer");
  perigee__list_init(&layer->running);
  for (int op = 0; op < PERIGEE_OP_COUNT; op++)
    layer->fn_ref[op] = layer->opts[op].meta_ref = LUA_NOREF;
  return layer;
}

void perigee__llayer_unref(perigee__llayer *layer) {
  /* acq_rel: the last owner sees what the others did with it */
  if (atomic_fetch_sub_explicit(&layer->refs, 1, memory_order_acq_rel) != 1)
    return;
  perigee__mutex_fini(&layer->running_lock);
  perigee__interp_unref(layer->interp);
  free(layer);
}

/* Inside. */
static void drop_refs(perigee__llayer *layer) {
  for (int op = 0; op < PERIGEE_OP_COUNT; op++) {
    perigee__unref(layer->interp, layer->fn_ref[op]);
    perigee__unref(layer->interp, layer->opts[op].meta_ref);
    layer->fn_ref[op] = layer->opts[op].meta_ref = LUA_NOREF;
  }
  perigee__unref(layer->interp, layer->self_ref);
  layer->self_ref = LUA_NOREF;
  for (int method = 0; method < PERIGEE_METHOD_COUNT; method++) {
    perigee__unref(layer->interp, layer->method_ref[method]);
    layer->method_ref[method] = LUA_NOREF;
  }
}

static int backend_open(void *backend, const perigee_layer_info *info, void **self_p) {
  perigee__lbackend *b = backend;
  perigee__lthread *t;
  PERIGEE_TRY(perigee__enter(b->interp, info->timeout_ns, "open of a backend", false, &t));
  open_args args = {b, info, layer_new(b, info)};
  perigee_error error;
  int rc = 0;
  if (args.layer == NULL) {
    perigee__error_set(&error, PERIGEE_ENOMEM, "no memory for a layer");
    rc = error.code;
  } else if ((rc = perigee__protect(perigee__lthread_state(t), open_body, &args, &error)) < 0) {
    atomic_store_explicit(&args.layer->closed, true, memory_order_relaxed);
    drop_refs(args.layer);
    perigee__llayer_unref(args.layer);
  }
  perigee__leave(b->interp, t);
  if (rc < 0)
    return perigee__fail_with(&error);
  *self_p = args.layer;
  return 0;
}

/* ---- closing ------------------------------------------------------------------------------------- */

static int close_body(lua_State *L) {
  const perigee__llayer *layer = lua_touserdata(L, 1);
  lua_rawgeti(L, LUA_REGISTRYINDEX, layer->method_ref[PERIGEE_METHOD_CLOSE]);
  lua_rawgeti(L, LUA_REGISTRYINDEX, layer->self_ref);
  lua_call(L, 1, 0);
  return 0;
}

static void backend_close(void *self) {
  perigee__llayer *layer = self;
  perigee__lthread *t;
  /* An interpreter that is gone took its references along. */
  int rc = perigee__enter(layer->interp, perigee__enter_timeout(layer->interp),
                          "close of a backend", false, &t);
  if (rc == PERIGEE_ETIMEDOUT)
    perigee__log(atomic_load_explicit(&perigee__closing_at_exit, memory_order_relaxed)
                     ? PERIGEE_LOG_DEBUG
                     : PERIGEE_LOG_ERROR,
                 "backend '%s' is closed without its close method: %s", layer->name,
                 perigee_last_error()->message);
  if (rc == 0) {
    perigee_error error;
    /* Events that were queued for this layer come before its close. */
    perigee__ready_drain(layer->interp, t, perigee__lthread_state(t));
    if (layer->method_ref[PERIGEE_METHOD_CLOSE] != LUA_NOREF &&
        perigee__protect(perigee__lthread_state(t), close_body, layer, &error) < 0)
      perigee__log(PERIGEE_LOG_WARN, "backend '%s': error in close: %s\n%s", layer->name,
                   error.message, error.traceback);
    atomic_store_explicit(&layer->closed, true, memory_order_relaxed);
    drop_refs(layer);
    perigee__leave(layer->interp, t);
  }
  atomic_store_explicit(&layer->closed, true, memory_order_relaxed);
  perigee__llayer_unref(layer);
}

static bool backend_handles(void *self, int op) {
  const perigee__llayer *layer = self;
  return layer->fn_ref[op] != LUA_NOREF;
}

/* ---- events: methods that are told something, later, like a callback ----------------------------------- */

typedef struct event {
  perigee__ready ready;
  perigee__llayer *layer; /* one reference */
  bool is_abort;          /* abort(reason), else set_timeout(seconds) */
  int64_t timeout_ns;
  perigee_error reason;
} event;

static void event_drop(perigee__ready *ready) {
  event *e = PERIGEE_CONTAINER_OF(ready, event, ready);
  perigee__llayer_unref(e->layer);
  free(e);
}

static int event_body(lua_State *L) {
  const event *e = lua_touserdata(L, 1);
  lua_rawgeti(
      L, LUA_REGISTRYINDEX,
      e->layer->method_ref[e->is_abort ? PERIGEE_METHOD_ABORT : PERIGEE_METHOD_SET_TIMEOUT]);
  lua_rawgeti(L, LUA_REGISTRYINDEX, e->layer->self_ref);
  if (e->is_abort)
    perigee__error_push(L, &e->reason);
  else
    lua_pushnumber(L, (double)e->timeout_ns / 1e9);
  lua_call(L, 2, 0);
  return 0;
}

static void event_run(perigee__lthread *t, lua_State *L, perigee__ready *ready) {
  (void)t;
  event *e = PERIGEE_CONTAINER_OF(ready, event, ready);
  perigee_error error;
  if (!atomic_load_explicit(&e->layer->closed, memory_order_relaxed) &&
      perigee__protect(L, event_body, e, &error) < 0)
    perigee__report_error(L, e->is_abort ? "abort of a backend" : "set_timeout of a backend",
                          &error);
  event_drop(ready);
}

static void tell(perigee__llayer *layer, const perigee_error *reason, int64_t timeout_ns) {
  event *e = calloc(1, sizeof(*e));
  if (e == NULL)
    return; /* the method is a courtesy; the works themselves have ended */
  e->ready = (perigee__ready){.run = event_run, .drop = event_drop};
  e->layer = layer;
  atomic_fetch_add_explicit(&layer->refs, 1, memory_order_relaxed);
  e->is_abort = reason != NULL;
  e->timeout_ns = timeout_ns;
  if (reason != NULL)
    e->reason = *reason;
  perigee__ready_push(layer->interp, &e->ready);
}

static void backend_set_timeout(void *self, int64_t timeout_ns) {
  perigee__llayer *layer = self;
  atomic_store_explicit(&layer->timeout_ns, timeout_ns, memory_order_relaxed);
  if (layer->method_ref[PERIGEE_METHOD_SET_TIMEOUT] != LUA_NOREF)
    tell(layer, NULL, timeout_ns);
}

/* Works of submitted calls are the group's to end; here those that a synchronous call waits for. */
static perigee_work *next_running(perigee__llayer *layer) {
  perigee_work *work = NULL;
  perigee__lock(&layer->running_lock);
  if (!perigee__list_empty(&layer->running)) {
    perigee__running *r = PERIGEE_CONTAINER_OF(layer->running.next, perigee__running, node);
    perigee__list_remove(&r->node); /* its owner removes it again, which does no harm */
    work = perigee_work_ref(r->work);
  }
  perigee__unlock(&layer->running_lock);
  return work;
}

static void backend_abort(void *self, const perigee_error *reason) {
  perigee__llayer *layer = self;
  for (perigee_work *work; (work = next_running(layer)) != NULL;) {
    perigee_future_set_error(work, reason);
    perigee_work_unref(work);
  }
  if (layer->method_ref[PERIGEE_METHOD_ABORT] != LUA_NOREF && reason->code != PERIGEE_ECLOSED)
    tell(layer, reason, 0);
}

static void backend_drop(void *backend) {
  perigee__lbackend *b = backend;
  perigee__luaref_drop(b->table);
  perigee__interp_unref(b->interp);
  free(b);
}

const perigee_backend_ops_v1 perigee__lua_backend_ops = {
    .size = sizeof(perigee_backend_ops_v1),
    .abi = 1,
    .open = backend_open,
    .close = backend_close,
    .handles = backend_handles,
    .submit = perigee__trampoline_submit,
    .run = perigee__trampoline_run,
    .abort = backend_abort,
    .set_timeout = backend_set_timeout,
    .drop = backend_drop,
    .provides = perigee__method_provides,
    .backend_name = perigee__method_backend_name,
    .rank = perigee__method_rank,
    .group_size = perigee__method_size,
    .split_group = perigee__method_split,
    .shutdown = perigee__method_shutdown,
    .start_coalescing = perigee__method_start_coalescing,
    .end_coalescing = perigee__method_end_coalescing,
    .reconfigure = perigee__method_reconfigure,
};
