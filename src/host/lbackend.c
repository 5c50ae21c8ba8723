#include "host/lbackend.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/log.h"
#include "host/lerror.h"
#include "host/lstore.h"
#include "host/suggest.h"

static const char mark_key; /* in the metatable of a backend table: its stack below */

/* A backend as the registry of the group layer holds it. */
typedef struct lbackend {
  perigee_interp *interp; /* counted */
  perigee__luaref *table;
} lbackend;

/* ---- names --------------------------------------------------------------------------------------- */

static const char *const other_methods[] = {
    "backend_name",   "rank",        "size",        "split",
    "abort",          "shutdown",    "set_timeout", "start_coalescing",
    "end_coalescing", "reconfigure", "open",        "close",
    "name",           NULL,
};

/* Names of all operations and their aliases, NULL at the end. Made once per call: only at definitions. */
static const char *nearest_op(const char *name) {
  const char *names[PERIGEE_OP_COUNT * 4 + 1];
  char aliases[PERIGEE_OP_COUNT][64];
  size_t n = 0;
  for (int op = 0; op < PERIGEE_OP_COUNT; op++) {
    const perigee_op_info *info = perigee_op_get(op);
    names[n++] = info->name;
    snprintf(aliases[op], sizeof(aliases[op]), "%s", info->aliases);
    for (char *at = aliases[op], *word; (word = strsep(&at, " ")) != NULL;)
      if (word[0] != '\0' && n < PERIGEE_OP_COUNT * 4)
        names[n++] = word;
  }
  names[n] = NULL;
  const char *found = perigee__nearest(name, names);
  /* An alias lives in this frame: tell the canonical name. */
  int op = found != NULL ? perigee_op_find(found) : -1;
  return op >= 0 ? perigee_op_name(op) : NULL;
}

static bool field_is_set(lua_State *L, int index, const char *name, size_t len) {
  lua_pushlstring(L, name, len);
  bool set = lua_rawget(L, index) != LUA_TNIL;
  lua_pop(L, 1);
  return set;
}

/* An operation under two names: which of them would count? */
static void refuse_second_name(lua_State *L, int index, const char *name, int op) {
  const perigee_op_info *info = perigee_op_get(op);
  const char *other = NULL;
  if (strcmp(info->name, name) != 0 && field_is_set(L, index, info->name, strlen(info->name)))
    other = info->name;
  for (const char *at = info->aliases; *at != '\0' && other == NULL;) {
    size_t len = strcspn(at, " ");
    bool me = strlen(name) == len && strncmp(name, at, len) == 0;
    if (!me && field_is_set(L, index, at, len))
      other = lua_pushlstring(L, at, len);
    at += len + strspn(at + len, " ");
  }
  if (other != NULL)
    perigee__raise(L, PERIGEE_EINVAL,
                   "a backend defines both '%s' and '%s', which are two names of one operation",
                   other, name);
}

void perigee__backend_check_name(lua_State *L, int index, const char *name) {
  int op = perigee_op_find(name);
  if (op >= 0) {
    refuse_second_name(L, index, name, op);
    return;
  }
  for (int i = 0; other_methods[i] != NULL; i++)
    if (strcmp(name, other_methods[i]) == 0)
      return;
  if (name[0] == '_')
    return;
  const char *near = nearest_op(name);
  if (near != NULL)
    perigee__raise(
        L, PERIGEE_EINVAL,
        "a backend has no operation '%s' (did you mean '%s'?); a helper's name starts with '_'",
        name, near);
}

/* Every function in the table itself. */
static void check_table(lua_State *L, int index) {
  index = lua_absindex(L, index);
  for (lua_pushnil(L); lua_next(L, index); lua_pop(L, 1))
    if (lua_type(L, -2) == LUA_TSTRING && lua_type(L, -1) == LUA_TFUNCTION)
      perigee__backend_check_name(L, index, lua_tostring(L, -2));
}

void perigee__backend_method(lua_State *L, int index, const perigee_op_info *info) {
  if (lua_getfield(L, index, info->name) != LUA_TNIL)
    return;
  for (const char *at = info->aliases; *at != '\0';) {
    size_t len = strcspn(at, " ");
    lua_pop(L, 1);
    lua_pushlstring(L, at, len);
    if (lua_gettable(L, index) != LUA_TNIL)
      return;
    at += len + strspn(at + len, " ");
  }
}

/* ---- opening a layer ----------------------------------------------------------------------------- */

typedef struct open_args {
  lbackend *backend;
  const perigee_layer_info *info;
  perigee__llayer *layer;
} open_args;

static void push_instance(lua_State *L, const open_args *args) {
  const perigee_layer_info *info = args->info;
  lua_createtable(L, 0, 8); // [ self ]
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
  lua_createtable(L, 0, 1);
  lua_rawgeti(L, LUA_REGISTRYINDEX, args->backend->table->ref);
  lua_setfield(L, -2, "__index");
  lua_setmetatable(L, -2);
}

/* self:open{timeout =}, if there is one. Self on top. */
static void call_open(lua_State *L, const perigee_layer_info *info) {
  if (lua_getfield(L, -1, "open") == LUA_TNIL) {
    lua_pop(L, 1);
    return;
  }
  lua_pushvalue(L, -2);
  lua_createtable(L, 0, 1);
  lua_pushnumber(L, (double)info->timeout_ns / 1e9);
  lua_setfield(L, -2, "timeout");
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

/* References to what handles each operation. Self on top. */
static void resolve(lua_State *L, perigee__llayer *layer) {
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
  if (lua_getfield(L, self, "close") == LUA_TFUNCTION)
    layer->close_ref = perigee__ref(layer->interp, L);
  lua_settop(L, self);
}

static int open_body(lua_State *L) {
  open_args *args = lua_touserdata(L, 1);
  lua_rawgeti(L, LUA_REGISTRYINDEX, args->backend->table->ref);
  check_table(L, -1);
  push_instance(L, args);
  lua_pushvalue(L, -1);
  args->layer->self_ref = perigee__ref(args->layer->interp, L);
  call_open(L, args->info);
  check_table(L, -1); /* open may have given the instance methods of its own */
  resolve(L, args->layer);
  return 0;
}

static perigee__llayer *layer_new(const lbackend *backend, const perigee_layer_info *info) {
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
  layer->self_ref = layer->close_ref = LUA_NOREF;
  for (int op = 0; op < PERIGEE_OP_COUNT; op++)
    layer->fn_ref[op] = layer->opts[op].meta_ref = LUA_NOREF;
  return layer;
}

void perigee__llayer_unref(perigee__llayer *layer) {
  /* acq_rel: the last owner sees what the others did with it */
  if (atomic_fetch_sub_explicit(&layer->refs, 1, memory_order_acq_rel) != 1)
    return;
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
  perigee__unref(layer->interp, layer->close_ref);
  layer->self_ref = layer->close_ref = LUA_NOREF;
}

static int backend_open(void *backend, const perigee_layer_info *info, void **self_p) {
  lbackend *b = backend;
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
  lua_rawgeti(L, LUA_REGISTRYINDEX, layer->close_ref);
  lua_rawgeti(L, LUA_REGISTRYINDEX, layer->self_ref);
  lua_call(L, 1, 0);
  return 0;
}

static void backend_close(void *self) {
  perigee__llayer *layer = self;
  perigee__lthread *t;
  /* An interpreter that is gone took its references along. */
  if (perigee__enter(layer->interp, PERIGEE_NEVER, "close of a backend", false, &t) == 0) {
    perigee_error error;
    if (layer->close_ref != LUA_NOREF &&
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

static void backend_set_timeout(void *self, int64_t timeout_ns) {
  perigee__llayer *layer = self;
  atomic_store_explicit(&layer->timeout_ns, timeout_ns, memory_order_relaxed);
}

static void backend_drop(void *backend) {
  lbackend *b = backend;
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
    .set_timeout = backend_set_timeout,
    .drop = backend_drop,
};

/* ---- perigee.backend ----------------------------------------------------------------------------- */

/* B[name] = value: a misspelt operation is refused where it is written. */
static int l_newindex(lua_State *L) {
  if (lua_type(L, 2) == LUA_TSTRING && lua_type(L, 3) == LUA_TFUNCTION)
    perigee__backend_check_name(L, 1, lua_tostring(L, 2));
  lua_rawset(L, 1);
  return 0;
}

static int l_tostring(lua_State *L) {
  lua_pushliteral(L, "name");
  lua_rawget(L, 1);
  lua_pushfstring(L, "backend '%s'", luaL_tolstring(L, -1, NULL));
  return 1;
}

/* The table on top becomes a backend table. */
static void make_backend_table(lua_State *L, const char *inner) {
  lua_createtable(L, 0, 5);
  static const luaL_Reg meta[] = {
      {"__newindex", l_newindex}, {"__tostring", l_tostring}, {NULL, NULL}};
  perigee__functions_add(L, meta);
  lua_pushliteral(L, "perigee.Backend");
  lua_setfield(L, -2, "__name");
  lua_pushstring(L, inner != NULL ? inner : "");
  lua_rawsetp(L, -2, &mark_key);
  lua_setmetatable(L, -2);
}

/* Register the backend table on top of the stack. inner: NULL for a bottom backend. */
static void register_table(lua_State *L, const char *name, const char *inner) {
  perigee_interp *interp = perigee__interp_of_state(L);
  lua_pushvalue(L, -1);
  perigee__luaref *table = perigee__luaref_create(interp, L);
  lbackend *b = malloc(sizeof(*b));
  if (b == NULL) {
    perigee__luaref_drop(table);
    perigee__raise(L, PERIGEE_ENOMEM, "no memory for a backend");
  }
  *b = (lbackend){.interp = interp, .table = table};
  perigee__interp_ref(interp);
  int rc = perigee_backend_register(name, inner, &perigee__lua_backend_ops, b);
  if (rc < 0) {
    backend_drop(b);
    perigee__raise_last(L);
  }
  perigee__copy_text(interp->last_backend, sizeof(interp->last_backend), name);
}

/* Field `inner` of the table at index: NULL for false, "native" by default. The string stays on the stack. [-0, +1, e] */
static const char *inner_field(lua_State *L, int index, const char *function, int arg) {
  int type = lua_getfield(L, index, "inner");
  if (type == LUA_TNIL)
    return "native";
  if (type == LUA_TBOOLEAN && !lua_toboolean(L, -1))
    return NULL;
  if (type != LUA_TSTRING)
    perigee__raise_arg(L, function, arg,
                       "inner: a stack (string), or false for none, expected, got %s",
                       perigee__type_name(L, -1));
  return lua_tostring(L, -1);
}

/* perigee.backend(name [, {inner = "native"}]) */
static int l_backend(lua_State *L) {
  static const char *const known[] = {"inner", NULL};
  if (lua_type(L, 1) != LUA_TSTRING)
    perigee__raise_arg(L, "backend", 1, "name expected, got %s", perigee__type_name(L, 1));
  lua_settop(L, 2);
  const char *inner = "native";
  if (!lua_isnil(L, 2)) {
    if (lua_type(L, 2) != LUA_TTABLE)
      perigee__raise_arg(L, "backend", 2, "options table expected, got %s",
                         perigee__type_name(L, 2));
    perigee__check_keys(L, 2, "backend", 2, known);
    inner = inner_field(L, 2, "backend", 2);
  }
  lua_newtable(L);
  lua_pushvalue(L, 1);
  lua_setfield(L, -2, "name");
  make_backend_table(L, inner);
  register_table(L, lua_tostring(L, 1), inner);
  return 1;
}

void perigee__backend_adopt(lua_State *L, const char *name) {
  int table = lua_gettop(L);
  const char *inner;
  if (lua_getmetatable(L, table)) {
    if (lua_rawgetp(L, -1, &mark_key) == LUA_TSTRING) {
      /* Made by perigee.backend, maybe under another name. */
      inner = lua_tostring(L, -1);
      lua_getfield(L, table, "name");
      const char *own = lua_tostring(L, -1);
      bool registered = own != NULL && strcmp(own, name) == 0;
      lua_pushvalue(L, table);
      if (!registered)
        register_table(L, name, inner[0] != '\0' ? inner : NULL);
      lua_settop(L, table);
      return;
    }
    lua_settop(L, table);
  }
  inner = inner_field(L, table, name, 1);
  check_table(L, table);
  lua_pushvalue(L, table);
  register_table(L, name, inner);
  lua_settop(L, table);
}

void perigee__lbackend_open(lua_State *L) {
  static const luaL_Reg functions[] = {{"backend", l_backend}, {NULL, NULL}};
  perigee__functions_add(L, functions);
}
