#include "host/lop.h"

#include <stdlib.h>
#include <string.h>

#include "host/call.h"
#include "host/lerror.h"
#include "host/ltensor.h"

typedef struct lredop {
  perigee__box box; /* ptr: the custom op (one reference), or NULL */
  perigee_redop redop;
} lredop;

/* A reduce function in Lua. */
typedef struct lcustom {
  perigee_custom_op base;
  _Atomic uint32_t refs;
  perigee_interp *interp; /* counted */
  perigee__luaref *fn;
  char name[64];
} lcustom;

/* ---- custom ops ---------------------------------------------------------------------------------- */

static void custom_ref(perigee_custom_op *self) {
  atomic_fetch_add_explicit(&((lcustom *)self)->refs, 1, memory_order_relaxed);
}

static void custom_unref(perigee_custom_op *self) {
  lcustom *c = (lcustom *)self;
  /* acq_rel: the last owner sees what the others did with it */
  if (atomic_fetch_sub_explicit(&c->refs, 1, memory_order_acq_rel) != 1)
    return;
  perigee__luaref_drop(c->fn);
  perigee__interp_unref(c->interp);
  free(c);
}

typedef struct reduce_args {
  lcustom *custom;
  perigee_tensor *acc, *x;
} reduce_args;

/* A view of the chunk in flight: its memory is the operation's, so it must not be used after the call. */
static perigee__box *lend(lua_State *L, perigee_tensor *tensor) {
  perigee__tensor_push(L, tensor);
  return lua_touserdata(L, -1);
}

static void end_loan(perigee__box *box) {
  perigee_tensor_unref(box->ptr);
  box->ptr = NULL;
}

static int reduce_body(lua_State *L) {
  reduce_args *args = lua_touserdata(L, 1);
  lua_rawgeti(L, LUA_REGISTRYINDEX, args->custom->fn->ref);
  perigee__box *acc = lend(L, args->acc), *x = lend(L, args->x); // [ args, fn, acc, x ]
  lua_pushcfunction(L, perigee__error_object);
  lua_insert(L, 2);
  lua_pushvalue(L, 4);
  lua_insert(L, 3);
  lua_pushvalue(L, -1);
  lua_insert(L, 4); // [ args, handler, acc, x, fn, acc, x ]
  int status = lua_pcall(L, 2, 1, 2);
  /* The loan ends whatever happened, and the objects are still on the stack for it. */
  if (status != LUA_OK) {
    end_loan(acc);
    end_loan(x);
    return lua_error(L);
  }
  const perigee_tensor *result = perigee__tensor_get(L, -1);
  int rc = 0;
  if (result != NULL && result != args->acc)
    rc = perigee_tensor_copy(args->acc, result);
  else if (result == NULL && !lua_isnil(L, -1))
    perigee__raise(
        L, PERIGEE_ELUATYPE,
        "reduce op '%s' must change acc in place and return nothing, or a tensor; got %s",
        args->custom->name, perigee__type_name(L, -1));
  end_loan(acc);
  end_loan(x);
  perigee__check(L, rc);
  return 0;
}

static int custom_reduce(perigee_custom_op *self, perigee_tensor *acc, const perigee_tensor *x) {
  reduce_args args = {(lcustom *)self, acc, (perigee_tensor *)x};
  perigee_interp *interp = args.custom->interp;
  perigee__lthread *t;
  PERIGEE_TRY(perigee__enter(interp, PERIGEE_NEVER, "a custom reduce op", false, &t));
  perigee_error error;
  t->callbacks++; /* a wait in here would wait for itself */
  int rc = perigee__protect(perigee__lthread_state(t), reduce_body, &args, &error);
  t->callbacks--;
  perigee__leave(interp, t);
  return rc < 0 ? perigee__fail_with(&error) : 0;
}

/* perigee.op{name =, reduce =, commutative =} */
static int l_op(lua_State *L) {
  static const char *const known[] = {"name", "reduce", "commutative", NULL};
  if (lua_type(L, 1) != LUA_TTABLE)
    perigee__raise_arg(L, "op", 1, "table {name =, reduce =} expected, got %s",
                       perigee__type_name(L, 1));
  lua_settop(L, 1);
  perigee__check_keys(L, 1, "op", 1, known);
  if (lua_getfield(L, 1, "name") != LUA_TSTRING || lua_rawlen(L, -1) == 0 || lua_rawlen(L, -1) > 63)
    perigee__raise_arg(L, "op", 1, "field 'name': a string of 1 to 63 bytes expected");
  if (lua_getfield(L, 1, "reduce") != LUA_TFUNCTION)
    perigee__raise_arg(L, "op", 1, "field 'reduce': function(acc, x) expected, got %s",
                       perigee__type_name(L, -1));
  lua_getfield(L, 1, "commutative"); // [ table, name, reduce, commutative ]
  lredop *object = perigee__object_new(L, &perigee__type_redop, sizeof(*object), 0);
  lua_pushvalue(L, 3);
  perigee__luaref *fn = perigee__luaref_create(perigee__interp_here(L), L);
  lcustom *c = calloc(1, sizeof(*c));
  if (c == NULL) {
    perigee__luaref_drop(fn);
    perigee__raise(L, PERIGEE_ENOMEM, "no memory for a reduce op");
  }
  perigee__copy_text(c->name, sizeof(c->name), lua_tostring(L, 2));
  c->base = (perigee_custom_op){.name = c->name,
                                .commutative = lua_toboolean(L, 4),
                                .reduce = custom_reduce,
                                .ref = custom_ref,
                                .unref = custom_unref};
  atomic_init(&c->refs, 1);
  c->interp = fn->interp;
  perigee__interp_ref(c->interp);
  c->fn = fn;
  object->box.ptr = c;
  object->redop = (perigee_redop){.kind = PERIGEE_REDOP_CUSTOM, .custom = &c->base};
  return 1;
}

/* ---- in and out ---------------------------------------------------------------------------------- */

bool perigee__redop_get(lua_State *L, int index, perigee_redop *redop) {
  if (lua_type(L, index) == LUA_TSTRING) {
    int kind = perigee_redop_find(lua_tostring(L, index));
    /* These two need more than a name. */
    if (kind < 0 || kind == PERIGEE_REDOP_CUSTOM || kind == PERIGEE_REDOP_PREMUL_SUM)
      return false;
    *redop = (perigee_redop){.kind = (perigee_redop_kind)kind};
    return true;
  }
  const lredop *object = perigee__object_get(L, index, &perigee__type_redop);
  if (object == NULL)
    return false;
  *redop = object->redop;
  return true;
}

bool perigee__redop_is_script(lua_State *L, int index, perigee_redop *redop) {
  perigee_redop found;
  if (!perigee__redop_get(L, index, &found) || found.kind != PERIGEE_REDOP_CUSTOM ||
      found.custom->reduce != custom_reduce)
    return false;
  *redop = found;
  return true;
}

void perigee__redop_push_function(lua_State *L, const perigee_redop *redop) {
  lua_rawgeti(L, LUA_REGISTRYINDEX, ((const lcustom *)redop->custom)->fn->ref);
}

void perigee__redop_push(lua_State *L, const perigee_redop *redop) {
  if (redop->kind != PERIGEE_REDOP_CUSTOM && redop->kind != PERIGEE_REDOP_PREMUL_SUM) {
    lua_pushstring(L, perigee_redop_name((int)redop->kind));
    return;
  }
  lredop *object = perigee__object_new(L, &perigee__type_redop, sizeof(*object), 0);
  object->redop = *redop;
  if (redop->kind == PERIGEE_REDOP_CUSTOM && redop->custom->ref != NULL) {
    redop->custom->ref(redop->custom);
    object->box.ptr = redop->custom;
  }
}

/* perigee.premul_sum(factor) */
static int l_premul_sum(lua_State *L) {
  if (lua_type(L, 1) != LUA_TNUMBER)
    perigee__raise_arg(L, "premul_sum", 1, "number expected, got %s", perigee__type_name(L, 1));
  lredop *object = perigee__object_new(L, &perigee__type_redop, sizeof(*object), 0);
  object->redop = (perigee_redop){.kind = PERIGEE_REDOP_PREMUL_SUM, .factor = lua_tonumber(L, 1)};
  return 1;
}

static int l_gc(lua_State *L) {
  lredop *object = perigee__object_get(L, 1, &perigee__type_redop);
  if (object != NULL && object->box.ptr != NULL) {
    perigee_custom_op *custom = object->box.ptr;
    object->box.ptr = NULL;
    if (custom->unref != NULL)
      custom->unref(custom);
  }
  return 0;
}

static int l_index(lua_State *L) {
  const lredop *object = perigee__object_self(L, &perigee__type_redop, "index");
  const char *key = lua_type(L, 2) == LUA_TSTRING ? lua_tostring(L, 2) : "";
  bool custom = object->redop.kind == PERIGEE_REDOP_CUSTOM;
  if (strcmp(key, "name") == 0)
    lua_pushstring(L, custom ? object->redop.custom->name : "premul_sum");
  else if (strcmp(key, "reduce") == 0 && custom && object->redop.custom->reduce == custom_reduce)
    perigee__redop_push_function(L, &object->redop);
  else if (strcmp(key, "factor") == 0 && !custom)
    lua_pushnumber(L, object->redop.factor);
  else if (strcmp(key, "commutative") == 0)
    lua_pushboolean(L, custom ? object->redop.custom->commutative : 1);
  else
    lua_pushnil(L);
  return 1;
}

static int l_tostring(lua_State *L) {
  const lredop *object = perigee__object_self(L, &perigee__type_redop, "tostring");
  if (object->redop.kind == PERIGEE_REDOP_CUSTOM)
    lua_pushfstring(L, "reduce op '%s'", object->redop.custom->name);
  else
    lua_pushfstring(L, "reduce op premul_sum(%f)", object->redop.factor);
  return 1;
}

void perigee__lop_open(lua_State *L) {
  static const luaL_Reg meta[] = {{"__gc", l_gc}, {"__tostring", l_tostring}, {NULL, NULL}};
  static const luaL_Reg none[] = {{NULL, NULL}};
  static const luaL_Reg functions[] = {{"op", l_op}, {"premul_sum", l_premul_sum}, {NULL, NULL}};
  perigee__type_open(L, &perigee__type_redop, meta, none, l_index);
  perigee__functions_add(L, functions);
}
