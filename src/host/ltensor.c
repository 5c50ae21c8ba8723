#include "host/ltensor.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "host/lerror.h"
#include "host/lshared.h"

/* A tensor weighs a few dozen bytes for the collector, whatever its storage: it is told after this many bytes. */
#define DEBT_BYTES ((int64_t)256 << 10)

/* ---- access -------------------------------------------------------------------------------------- */

perigee__box *perigee__tensor_slot(lua_State *L) {
  return perigee__object_new(L, &perigee__type_tensor, sizeof(perigee__box), 0);
}

void perigee__tensor_push(lua_State *L, perigee_tensor *tensor) {
  perigee__box *box = perigee__tensor_slot(L);
  box->ptr = perigee_tensor_ref(tensor);
}

void perigee__tensor_account(lua_State *L, const perigee_tensor *tensor) {
  perigee_interp *interp = perigee__interp_here(L);
  interp->tensor_debt += (int64_t)perigee_tensor_nbytes(tensor);
  if (interp->tensor_debt < DEBT_BYTES)
    return;
  int64_t kib = interp->tensor_debt >> 10;
  interp->tensor_debt = 0;
  lua_gc(L, LUA_GCSTEP, kib < (1 << 20) ? (int)kib : 1 << 20);
}

static perigee_tensor *tensor_of(lua_State *L, const perigee__box *box, const char *method) {
  if (PERIGEE_UNLIKELY(box->ptr == NULL))
    perigee__raise(
        L, PERIGEE_ESTATE,
        "'%s' on a tensor that has ended (a view lent to a callback is valid only in it)", method);
  return box->ptr;
}

perigee_tensor *perigee__tensor_self(lua_State *L, const char *method) {
  return tensor_of(L, perigee__object_self(L, &perigee__type_tensor, method), method);
}

perigee_tensor *perigee__tensor_arg(lua_State *L, int arg, const char *method) {
  const perigee__box *box = perigee__object_get(L, arg + 1, &perigee__type_tensor);
  if (box == NULL)
    perigee__raise_arg(L, method, arg, "tensor expected, got %s", perigee__type_name(L, arg + 1));
  return tensor_of(L, box, method);
}

static int l_gc(lua_State *L) {
  perigee__box *box = perigee__object_get(L, 1, &perigee__type_tensor);
  if (box != NULL && box->ptr != NULL) {
    perigee_tensor_unref(box->ptr);
    box->ptr = NULL;
  }
  return 0;
}

/* ---- scalars ------------------------------------------------------------------------------------- */

static bool complex_at(lua_State *L, int index, perigee_scalar *value) {
  bool ok = lua_rawgeti(L, index, 1) == LUA_TNUMBER;
  value->re = lua_tonumber(L, -1);
  ok = lua_rawgeti(L, index, 2) == LUA_TNUMBER && ok;
  value->im = lua_tonumber(L, -1);
  lua_pop(L, 2);
  value->kind = PERIGEE_SCALAR_COMPLEX;
  return ok;
}

void perigee__scalar_arg(lua_State *L, int index, const char *function, int arg,
                         perigee_scalar *value) {
  memset(value, 0, sizeof(*value));
  switch (lua_type(L, index)) {
  case LUA_TNUMBER:
    if (lua_isinteger(L, index)) {
      value->kind = PERIGEE_SCALAR_INT;
      value->i = lua_tointeger(L, index);
    } else {
      value->kind = PERIGEE_SCALAR_FLOAT;
      value->re = lua_tonumber(L, index);
    }
    return;
  case LUA_TBOOLEAN:
    value->kind = PERIGEE_SCALAR_BOOL;
    value->i = lua_toboolean(L, index);
    return;
  case LUA_TTABLE:
    if (complex_at(L, lua_absindex(L, index), value))
      return;
    break;
  default:
    break;
  }
  perigee__raise_arg(L, function, arg, "number, boolean or {re, im} expected, got %s",
                     perigee__type_name(L, index));
}

void perigee__scalar_push(lua_State *L, const perigee_scalar *value) {
  switch (value->kind) {
  case PERIGEE_SCALAR_FLOAT:
    lua_pushnumber(L, value->re);
    return;
  case PERIGEE_SCALAR_INT:
    lua_pushinteger(L, value->i);
    return;
  case PERIGEE_SCALAR_UINT: /* above 2^63 it wraps, as Lua's own unsigned view of integers does */
    lua_pushinteger(L, (lua_Integer)value->u);
    return;
  case PERIGEE_SCALAR_BOOL:
    lua_pushboolean(L, value->i != 0);
    return;
  case PERIGEE_SCALAR_COMPLEX:
    lua_createtable(L, 2, 0);
    lua_pushnumber(L, value->re);
    lua_rawseti(L, -2, 1);
    lua_pushnumber(L, value->im);
    lua_rawseti(L, -2, 2);
    return;
  }
  lua_pushnil(L);
}

/* ---- elements and fields ------------------------------------------------------------------------- */

/* t[i]: element i in row-major order, nil outside, so that ipairs ends. */
static int element_at(lua_State *L, const perigee_tensor *t, lua_Integer i) {
  perigee_scalar value;
  if (i < 1 || i > perigee_tensor_numel(t)) {
    lua_pushnil(L);
    return 1;
  }
  perigee__check(L, perigee_tensor_get(t, i - 1, &value));
  perigee__scalar_push(L, &value);
  return 1;
}

static void push_shape(lua_State *L, const perigee_tensor *t) {
  int ndim = perigee_tensor_ndim(t);
  lua_createtable(L, ndim, 0);
  for (int d = 0; d < ndim; d++) {
    lua_pushinteger(L, perigee_tensor_shape(t)[d]);
    lua_rawseti(L, -2, d + 1);
  }
}

static int l_index(lua_State *L) {
  if (lua_type(L, 2) == LUA_TNUMBER) {
    int exact;
    lua_Integer i = lua_tointegerx(L, 2, &exact);
    const perigee_tensor *t = perigee__tensor_self(L, "index");
    return exact ? element_at(L, t, i) : (lua_pushnil(L), 1);
  }
  lua_pushvalue(L, 2);
  if (lua_rawget(L, lua_upvalueindex(2)) != LUA_TNIL || lua_type(L, 2) != LUA_TSTRING)
    return 1;
  const char *key = lua_tostring(L, 2);
  const perigee_tensor *t = perigee__tensor_self(L, key);
  if (strcmp(key, "dtype") == 0)
    lua_pushstring(L, perigee_dtype_name(perigee_tensor_dtype(t)));
  else if (strcmp(key, "shape") == 0)
    push_shape(L, t);
  else if (strcmp(key, "numel") == 0)
    lua_pushinteger(L, perigee_tensor_numel(t));
  else if (strcmp(key, "nbytes") == 0)
    lua_pushinteger(L, (lua_Integer)perigee_tensor_nbytes(t));
  else if (strcmp(key, "ndim") == 0)
    lua_pushinteger(L, perigee_tensor_ndim(t));
  else
    lua_pushnil(L);
  return 1;
}

static int l_newindex(lua_State *L) {
  perigee_tensor *t = perigee__tensor_self(L, "index");
  int exact;
  lua_Integer i = lua_tointegerx(L, 2, &exact);
  if (!exact || lua_type(L, 2) != LUA_TNUMBER)
    perigee__raise(L, PERIGEE_EINVAL, "a tensor has no settable field '%s'",
                   luaL_tolstring(L, 2, NULL));
  perigee_scalar value;
  perigee__scalar_arg(L, 3, "index", 2, &value);
  if (i < 1 || i > perigee_tensor_numel(t))
    perigee__raise(L, PERIGEE_ERANGE, "index %lld is outside 1..%lld", (long long)i,
                   (long long)perigee_tensor_numel(t));
  perigee__check(L, perigee_tensor_set(t, i - 1, &value));
  return 0;
}

/* Flat 0-based index of the n indices from stack index `first` on. */
static int64_t flat_index(lua_State *L, const perigee_tensor *t, int first, int n,
                          const char *method) {
  int ndim = perigee_tensor_ndim(t);
  if (n == 1)
    ndim = 1; /* one index counts elements in row-major order */
  if (n != ndim)
    perigee__raise_arg(L, method, first - 1, "%d indices expected, or one, got %d", ndim, n);
  int64_t flat = 0;
  for (int d = 0; d < n; d++) {
    int64_t extent = n == 1 ? perigee_tensor_numel(t) : perigee_tensor_shape(t)[d];
    int exact;
    lua_Integer i = lua_tointegerx(L, first + d, &exact);
    if (!exact)
      perigee__raise_arg(L, method, first + d - 1, "integer expected, got %s",
                         perigee__type_name(L, first + d));
    if (i < 1 || i > extent)
      perigee__raise_arg(L, method, first + d - 1, "index %lld is outside 1..%lld", (long long)i,
                         (long long)extent);
    flat = flat * extent + (i - 1);
  }
  return flat;
}

static int l_get(lua_State *L) {
  const perigee_tensor *t = perigee__tensor_self(L, "get");
  perigee_scalar value;
  perigee__check(L, perigee_tensor_get(t, flat_index(L, t, 2, lua_gettop(L) - 1, "get"), &value));
  perigee__scalar_push(L, &value);
  return 1;
}

/* t:set(i, ..., value) */
static int l_set(lua_State *L) {
  perigee_tensor *t = perigee__tensor_self(L, "set");
  int top = lua_gettop(L);
  if (top < 3)
    perigee__raise_arg(L, "set", top, "indices and a value expected");
  perigee_scalar value;
  perigee__scalar_arg(L, top, "set", top - 1, &value);
  perigee__check(L, perigee_tensor_set(t, flat_index(L, t, 2, top - 2, "set"), &value));
  lua_settop(L, 1);
  return 1;
}

static int l_len(lua_State *L) {
  lua_pushinteger(L, perigee_tensor_numel(perigee__tensor_self(L, "#")));
  return 1;
}

/* Two objects for one tensor: an override gets another one than its caller gave. */
static int l_eq(lua_State *L) {
  perigee_tensor *a = perigee__tensor_get(L, 1), *b = perigee__tensor_get(L, 2);
  lua_pushboolean(L, a != NULL && a == b);
  return 1;
}

static void add_scalar(luaL_Buffer *b, const perigee_scalar *v) {
  char text[80] = "";
  switch (v->kind) {
  case PERIGEE_SCALAR_FLOAT:
    snprintf(text, sizeof(text), "%.6g", v->re);
    break;
  case PERIGEE_SCALAR_COMPLEX:
    snprintf(text, sizeof(text), "%.6g%+.6gi", v->re, v->im);
    break;
  case PERIGEE_SCALAR_UINT:
    snprintf(text, sizeof(text), "%" PRIu64, v->u);
    break;
  case PERIGEE_SCALAR_BOOL:
    snprintf(text, sizeof(text), "%s", v->i != 0 ? "true" : "false");
    break;
  case PERIGEE_SCALAR_INT:
    snprintf(text, sizeof(text), "%" PRId64, v->i);
    break;
  }
  luaL_addstring(b, text);
}

static int l_tostring(lua_State *L) {
  const perigee__box *box = perigee__object_self(L, &perigee__type_tensor, "tostring");
  const perigee_tensor *t = box->ptr;
  if (t == NULL) {
    lua_pushliteral(L, "tensor (ended)");
    return 1;
  }
  char head[64];
  luaL_Buffer b;
  luaL_buffinit(L, &b);
  luaL_addstring(&b, perigee_tensor_describe(t, head, sizeof(head)));
  luaL_addstring(&b, " {");
  int64_t numel = perigee_tensor_numel(t), shown = numel <= 8 ? numel : 6;
  for (int64_t i = 0; i < shown; i++) {
    perigee_scalar v;
    if (perigee_tensor_get(t, i, &v) < 0)
      break;
    luaL_addstring(&b, i > 0 ? ", " : "");
    add_scalar(&b, &v);
  }
  luaL_addstring(&b, shown < numel ? ", ...}" : "}");
  luaL_pushresult(&b);
  return 1;
}

/* ---- tables and bytes ---------------------------------------------------------------------------- */

static int64_t push_rows(lua_State *L, const perigee_tensor *t, int dim, int64_t flat) {
  luaL_checkstack(L, 4, NULL);
  int64_t extent = perigee_tensor_shape(t)[dim];
  lua_createtable(L, extent < INT32_MAX ? (int)extent : 0, 0);
  for (int64_t i = 1; i <= extent; i++) {
    if (dim + 1 < perigee_tensor_ndim(t)) {
      flat = push_rows(L, t, dim + 1, flat);
    } else {
      perigee_scalar value;
      perigee__check(L, perigee_tensor_get(t, flat++, &value));
      perigee__scalar_push(L, &value);
    }
    lua_rawseti(L, -2, i);
  }
  return flat;
}

int perigee__ltensor_totable(lua_State *L) {
  const perigee_tensor *t = perigee__tensor_self(L, "totable");
  if (perigee_tensor_ndim(t) == 0)
    return element_at(L, t, 1);
  push_rows(L, t, 0, 0);
  return 1;
}

static int l_tobytes(lua_State *L) {
  perigee_tensor *t = perigee__tensor_self(L, "tobytes");
  perigee__box *flat = perigee__tensor_slot(L);
  perigee_tensor *contiguous;
  perigee__check(L, perigee_tensor_contiguous(t, &contiguous));
  flat->ptr = contiguous;
  lua_pushlstring(L, perigee_tensor_data(contiguous), perigee_tensor_nbytes(contiguous));
  return 1;
}

/* ---- identity ------------------------------------------------------------------------------------ */

/* The table of keys of the tensor's storage, made on first use; nil where nobody counts the storage. [-0, +1, e] */
static void push_keys(lua_State *L, perigee_interp *interp, perigee_tensor *t) {
  perigee_shared *there = perigee_tensor_attach(t, NULL);
  if (there == NULL) {
    lua_newtable(L);
    perigee_shared *made = perigee__lshared_create(interp, L);
    there = perigee_tensor_attach(t, made);
    made->unref(made);
  }
  perigee__lshared_push(interp, L, there);
}

/*
 * t:key(): what stands for these elements in tables with weak keys: the same for every object of them, as long as their memory
 * lives. Where that cannot be told (memory that nobody counts, or that another interpreter has marked) a new one each time.
 */
static int l_key(lua_State *L) {
  perigee_interp *interp = perigee__interp_here(L);
  perigee_tensor *t = perigee__tensor_self(L, "key");
  push_keys(L, interp, t);
  if (lua_isnil(L, -1)) {
    lua_newtable(L);
    return 1;
  }
  lua_pushfstring(L, "%p %I %s", perigee_tensor_data(t), (LUAI_UACINT)perigee_tensor_numel(t),
                  perigee_dtype_name(perigee_tensor_dtype(t)));
  lua_pushvalue(L, -1); // [ t, keys, name, name ]
  if (lua_rawget(L, -3) != LUA_TNIL)
    return 1;
  lua_pop(L, 1);
  lua_newtable(L);
  lua_insert(L, -2);
  lua_pushvalue(L, -2); // [ t, keys, key, name, key ]
  lua_rawset(L, -4);
  return 1;
}

/* ---- the type ------------------------------------------------------------------------------------ */

static const luaL_Reg meta[] = {
    {"__gc", l_gc}, {"__newindex", l_newindex}, {"__len", l_len},
    {"__eq", l_eq}, {"__tostring", l_tostring}, {NULL, NULL},
};

static const luaL_Reg methods[] = {
    {"get", l_get},         {"set", l_set}, {"totable", perigee__ltensor_totable},
    {"tobytes", l_tobytes}, {"key", l_key}, {NULL, NULL},
};

void perigee__ltensor_open(lua_State *L) {
  perigee__type_open(L, &perigee__type_tensor, meta, methods, l_index);
  perigee__type_methods(L, &perigee__type_tensor);
  perigee__functions_add(L, perigee__ltensor_math);
  lua_pop(L, 1);
  perigee__ltensor_make_open(L);
  perigee__ltensor_npy_open(L);
}
