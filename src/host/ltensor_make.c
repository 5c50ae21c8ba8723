/* Constructors: perigee.tensor, zeros, ones, full, arange. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "host/ltensor.h"

#include "host/lerror.h"
#include "host/suggest.h"

perigee_dtype perigee__dtype_arg(lua_State *L, int index, const char *function, int arg) {
  static const char *const names[] = {
#define XX(_id, _NAME, _name, _size) #_name,
      PERIGEE_DTYPE_MAP(XX)
#undef XX
          NULL,
  };
  if (lua_type(L, index) != LUA_TSTRING)
    perigee__raise_arg(L, function, arg, "dtype expected (\"f32\", \"i64\", ...), got %s",
                       perigee__type_name(L, index));
  perigee_dtype dtype;
  const char *name = lua_tostring(L, index);
  if (perigee_dtype_parse(name, &dtype) == 0)
    return dtype;
  char hint[96];
  perigee__raise_arg(L, function, arg, "unknown dtype '%s'%s", name,
                     perigee__did_you_mean(name, names, hint, sizeof(hint)));
}

static int64_t extent_at(lua_State *L, int index, const char *function, int arg, bool negative_ok) {
  int exact;
  lua_Integer n = lua_tointegerx(L, index, &exact);
  if (!exact)
    perigee__raise_arg(L, function, arg, "shape: integers expected, got %s",
                       perigee__type_name(L, index));
  if (n < 0 && !(negative_ok && n == -1))
    perigee__raise_arg(L, function, arg, "shape: extent %lld is negative", (long long)n);
  return n;
}

int perigee__shape_arg(lua_State *L, int index, const char *function, int arg,
                       int64_t shape[PERIGEE_MAX_DIMS], bool negative_ok) {
  bool list = lua_type(L, index) == LUA_TTABLE;
  int top = lua_gettop(L);
  lua_Integer ndim = list ? luaL_len(L, index) : top - index + 1;
  if (!list && ndim < 1)
    perigee__raise_arg(L, function, arg, "shape expected: integers, or a list of them");
  if (ndim > PERIGEE_MAX_DIMS)
    perigee__raise_arg(L, function, arg, "shape: %lld dimensions, at most %d are possible",
                       (long long)ndim, PERIGEE_MAX_DIMS);
  for (int d = 0; d < (int)ndim; d++) {
    if (list) {
      lua_geti(L, index, d + 1);
      shape[d] = extent_at(L, -1, function, arg, negative_ok);
      lua_pop(L, 1);
    } else {
      shape[d] = extent_at(L, index + d, function, arg + d, negative_ok);
    }
  }
  return (int)ndim;
}

/* [-0, +1, m] */
static perigee_tensor *make(lua_State *L, perigee_dtype dtype, int ndim, const int64_t *shape) {
  perigee__box *box = perigee__tensor_slot(L);
  perigee_tensor *t;
  perigee__check(L, perigee_tensor_create(dtype, ndim, shape, &t));
  box->ptr = t;
  perigee__tensor_account(L, t);
  return t;
}

/* ---- from nested tables -------------------------------------------------------------------------- */

/* A pair of numbers is one element of a complex tensor. */
static bool is_leaf(lua_State *L, bool complex) {
  if (lua_type(L, -1) != LUA_TTABLE)
    return true;
  if (!complex || lua_rawlen(L, -1) != 2)
    return false;
  bool leaf = lua_rawgeti(L, -1, 1) == LUA_TNUMBER;
  lua_pop(L, 1);
  return leaf;
}

/* Shape of the table at index by its first elements. */
static int measure(lua_State *L, int index, bool complex, int64_t shape[PERIGEE_MAX_DIMS]) {
  int ndim = 0, top = lua_gettop(L);
  luaL_checkstack(L, PERIGEE_MAX_DIMS + 4, NULL);
  lua_pushvalue(L, index);
  /* A complex tensor's outermost table is a list, never an element. */
  while (lua_type(L, -1) == LUA_TTABLE && (ndim == 0 || !is_leaf(L, complex))) {
    if (ndim == PERIGEE_MAX_DIMS)
      perigee__raise_arg(L, "tensor", 2, "tables nest deeper than %d levels", PERIGEE_MAX_DIMS);
    shape[ndim++] = luaL_len(L, -1);
    if (shape[ndim - 1] == 0)
      break;
    lua_geti(L, -1, 1);
  }
  lua_settop(L, top);
  return ndim;
}

typedef struct filler {
  perigee_tensor *t;
  int ndim;
  int64_t shape[PERIGEE_MAX_DIMS];
  int64_t at[PERIGEE_MAX_DIMS]; /* 1-based, for messages */
  int64_t flat;
} filler;

static const char *where(const filler *f, int depth, char *buf, size_t size) {
  size_t used = 0;
  buf[0] = '\0';
  for (int d = 0; d < depth && used < size; d++)
    used += (size_t)snprintf(buf + used, size - used, "[%lld]", (long long)f->at[d]);
  return buf;
}

/* The table on top is dimension `dim`. */
static void fill_rows(lua_State *L, filler *f, int dim) {
  char path[128];
  if (lua_type(L, -1) != LUA_TTABLE)
    perigee__raise_arg(L, "tensor", 2, "table%s is a %s where others are tables",
                       where(f, dim, path, sizeof(path)), perigee__type_name(L, -1));
  if (luaL_len(L, -1) != f->shape[dim])
    perigee__raise_arg(L, "tensor", 2, "table%s has %lld elements where others have %lld",
                       where(f, dim, path, sizeof(path)), (long long)luaL_len(L, -1),
                       (long long)f->shape[dim]);
  for (int64_t i = 1; i <= f->shape[dim]; i++) {
    f->at[dim] = i;
    int type = lua_geti(L, -1, i);
    if (dim + 1 < f->ndim) {
      fill_rows(L, f, dim + 1);
    } else {
      perigee_scalar value;
      if (type != LUA_TNUMBER && type != LUA_TBOOLEAN && type != LUA_TTABLE)
        perigee__raise_arg(L, "tensor", 2, "table%s is a %s, number expected",
                           where(f, dim + 1, path, sizeof(path)), perigee__type_name(L, -1));
      perigee__scalar_arg(L, -1, "tensor", 2, &value);
      perigee__check(L, perigee_tensor_set(f->t, f->flat++, &value));
    }
    lua_pop(L, 1);
  }
}

static int from_table(lua_State *L, perigee_dtype dtype) {
  filler f = {.ndim = 0};
  f.ndim = measure(L, 2, dtype == PERIGEE_C64 || dtype == PERIGEE_C128, f.shape);
  f.t = make(L, dtype, f.ndim, f.shape);
  lua_pushvalue(L, 2);
  fill_rows(L, &f, 0);
  lua_pop(L, 1);
  return 1;
}

static int from_bytes(lua_State *L, perigee_dtype dtype) {
  size_t size;
  const char *bytes = lua_tolstring(L, 2, &size);
  size_t each = perigee_dtype_size(dtype);
  if (size % each != 0)
    perigee__raise_arg(L, "tensor", 2, "%zu bytes are no whole number of %s elements", size,
                       perigee_dtype_name(dtype));
  int64_t numel = (int64_t)(size / each);
  perigee_tensor *t = make(L, dtype, 1, &numel);
  if (size > 0)
    memcpy(perigee_tensor_data(t), bytes, size);
  return 1;
}

static int from_numbers(lua_State *L, perigee_dtype dtype) {
  int n = lua_gettop(L) - 1;
  int64_t numel = n;
  perigee_tensor *t = make(L, dtype, 1, &numel);
  for (int i = 0; i < n; i++) {
    perigee_scalar value;
    perigee__scalar_arg(L, i + 2, "tensor", i + 2, &value);
    perigee__check(L, perigee_tensor_set(t, i, &value));
  }
  return 1;
}

/* The tensor on top in the shape at index 3. */
static int reshaped(lua_State *L) {
  int64_t shape[PERIGEE_MAX_DIMS];
  int ndim = perigee__shape_arg(L, 3, "tensor", 3, shape, true);
  perigee__box *box = perigee__tensor_slot(L);
  perigee_tensor *view;
  perigee__check(L, perigee_tensor_view(perigee__tensor_get(L, -2), ndim, shape, &view));
  box->ptr = view;
  return 1;
}

/* perigee.tensor(dtype, table [, shape]), (dtype, bytes [, shape]), (dtype, number...) */
static int l_tensor(lua_State *L) {
  perigee_dtype dtype = perigee__dtype_arg(L, 1, "tensor", 1);
  bool shaped = lua_type(L, 2) != LUA_TNUMBER && !lua_isnoneornil(L, 3);
  if (shaped && lua_type(L, 3) != LUA_TTABLE)
    perigee__raise_arg(L, "tensor", 3, "shape (a list of integers) expected, got %s",
                       perigee__type_name(L, 3));
  switch (lua_type(L, 2)) {
  case LUA_TTABLE:
    from_table(L, dtype);
    break;
  case LUA_TSTRING:
    from_bytes(L, dtype);
    break;
  case LUA_TNUMBER:
  case LUA_TBOOLEAN:
    return from_numbers(L, dtype);
  default:
    perigee__raise_arg(L, "tensor", 2, "table, string or numbers expected, got %s",
                       perigee__type_name(L, 2));
  }
  return shaped ? reshaped(L) : 1;
}

/* ---- by shape ------------------------------------------------------------------------------------ */

static perigee_tensor *shaped(lua_State *L, const char *function, bool to_top) {
  perigee_dtype dtype = perigee__dtype_arg(L, 1, function, 1);
  int64_t shape[PERIGEE_MAX_DIMS];
  int ndim;
  if (to_top || lua_type(L, 2) == LUA_TTABLE) {
    ndim = perigee__shape_arg(L, 2, function, 2, shape, false);
  } else {
    ndim = 1;
    shape[0] = extent_at(L, 2, function, 2, false);
  }
  return make(L, dtype, ndim, shape);
}

/* perigee.zeros(dtype, n, ...) or (dtype, {n, ...}) */
static int l_zeros(lua_State *L) {
  shaped(L, "zeros", true);
  return 1;
}

static int l_ones(lua_State *L) {
  perigee_tensor *t = shaped(L, "ones", true);
  const perigee_scalar one = {.kind = PERIGEE_SCALAR_INT, .i = 1};
  perigee__check(L, perigee_tensor_fill(t, &one));
  return 1;
}

/* perigee.full(dtype, shape, value) */
static int l_full(lua_State *L) {
  perigee_scalar value;
  perigee__scalar_arg(L, 3, "full", 3, &value);
  perigee_tensor *t = shaped(L, "full", false);
  perigee__check(L, perigee_tensor_fill(t, &value));
  return 1;
}

static double number_arg(lua_State *L, int index, double fallback) {
  if (lua_isnoneornil(L, index))
    return fallback;
  if (lua_type(L, index) != LUA_TNUMBER)
    perigee__raise_arg(L, "arange", index, "number expected, got %s", perigee__type_name(L, index));
  return lua_tonumber(L, index);
}

/* perigee.arange(dtype, stop) or (dtype, start, stop [, step]): start, start + step, ... below stop */
static int l_arange(lua_State *L) {
  perigee_dtype dtype = perigee__dtype_arg(L, 1, "arange", 1);
  lua_settop(L, 4);
  double start = number_arg(L, 2, 0), stop = number_arg(L, 3, (double)NAN),
         step = number_arg(L, 4, 1);
  if (isnan(stop)) {
    stop = start;
    start = 0;
  }
  if (step == 0 || isnan(step))
    perigee__raise_arg(L, "arange", 4, "step must not be 0");
  double count = ceil((stop - start) / step);
  if (!(count < 9e15))
    perigee__raise_arg(L, "arange", 3, "%g elements are too many", count);
  int64_t numel = count > 0 ? (int64_t)count : 0;
  perigee_tensor *t = make(L, dtype, 1, &numel);
  for (int64_t i = 0; i < numel; i++) {
    const perigee_scalar value = {.kind = PERIGEE_SCALAR_FLOAT, .re = start + (double)i * step};
    perigee__check(L, perigee_tensor_set(t, i, &value));
  }
  return 1;
}

void perigee__ltensor_make_open(lua_State *L) {
  static const luaL_Reg functions[] = {
      {"tensor", l_tensor}, {"zeros", l_zeros},   {"ones", l_ones},
      {"full", l_full},     {"arange", l_arange}, {NULL, NULL},
  };
  perigee__functions_add(L, functions);
}
