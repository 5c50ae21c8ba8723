/* Views, copies, arithmetic in place, and values of whole tensors. */
#include <math.h>
#include <string.h>

#include "host/ltensor.h"

#include "host/lerror.h"

/* ---- views and copies ---------------------------------------------------------------------------- */

static lua_Integer integer_arg(lua_State *L, int arg, const char *method) {
  int exact;
  lua_Integer n = lua_tointegerx(L, arg + 1, &exact);
  if (!exact)
    perigee__raise_arg(L, method, arg, "integer expected, got %s", perigee__type_name(L, arg + 1));
  return n;
}

/* t:narrow(dim, start, length), dim and start counted from 1 */
static int l_narrow(lua_State *L) {
  const perigee_tensor *t = perigee__tensor_self(L, "narrow");
  lua_Integer dim = integer_arg(L, 1, "narrow"), start = integer_arg(L, 2, "narrow"),
              length = integer_arg(L, 3, "narrow");
  if (dim < 1 || dim > perigee_tensor_ndim(t))
    perigee__raise_arg(L, "narrow", 1, "dimension %lld is outside 1..%d", (long long)dim,
                       perigee_tensor_ndim(t));
  int64_t extent = perigee_tensor_shape(t)[dim - 1];
  if (start < 1 || start > extent + 1)
    perigee__raise_arg(L, "narrow", 2, "start %lld is outside 1..%lld", (long long)start,
                       (long long)extent);
  if (length < 0 || length > extent - start + 1)
    perigee__raise_arg(L, "narrow", 3, "length %lld from %lld does not fit into %lld",
                       (long long)length, (long long)start, (long long)extent);
  perigee__box *box = perigee__tensor_slot(L);
  perigee_tensor *view;
  perigee__check(L, perigee_tensor_narrow(t, (int)dim - 1, start - 1, length, &view));
  box->ptr = view;
  return 1;
}

/* t:view(n, ...): one extent may be -1 */
static int l_view(lua_State *L) {
  const perigee_tensor *t = perigee__tensor_self(L, "view");
  int64_t shape[PERIGEE_MAX_DIMS];
  int ndim = perigee__shape_arg(L, 2, "view", 1, shape, true);
  perigee__box *box = perigee__tensor_slot(L);
  perigee_tensor *view;
  perigee__check(L, perigee_tensor_view(t, ndim, shape, &view));
  box->ptr = view;
  return 1;
}

/* [-0, +1, e] A contiguous tensor with t's elements: t itself when it is contiguous. */
static perigee_tensor *contiguous(lua_State *L, perigee_tensor *t) {
  perigee__box *box = perigee__tensor_slot(L);
  perigee_tensor *flat;
  perigee__check(L, perigee_tensor_contiguous(t, &flat));
  box->ptr = flat;
  return flat;
}

static int l_contiguous(lua_State *L) {
  contiguous(L, perigee__tensor_self(L, "contiguous"));
  return 1;
}

/* t:reshape(n, ...): a view where possible, else of a copy */
static int l_reshape(lua_State *L) {
  perigee_tensor *t = perigee__tensor_self(L, "reshape");
  int64_t shape[PERIGEE_MAX_DIMS];
  int ndim = perigee__shape_arg(L, 2, "reshape", 1, shape, true);
  t = contiguous(L, t);
  perigee__box *box = perigee__tensor_slot(L);
  perigee_tensor *view;
  perigee__check(L, perigee_tensor_view(t, ndim, shape, &view));
  box->ptr = view;
  return 1;
}

static perigee_tensor *converted(lua_State *L, const perigee_tensor *t, perigee_dtype dtype) {
  perigee__box *box = perigee__tensor_slot(L);
  perigee_tensor *copy;
  perigee__check(L, perigee_tensor_to(t, dtype, &copy));
  box->ptr = copy;
  perigee__tensor_account(L, copy);
  return copy;
}

static int l_clone(lua_State *L) {
  const perigee_tensor *t = perigee__tensor_self(L, "clone");
  converted(L, t, perigee_tensor_dtype(t));
  return 1;
}

/* t:to(dtype): a new tensor, also when the dtype is the same */
static int l_to(lua_State *L) {
  const perigee_tensor *t = perigee__tensor_self(L, "to");
  converted(L, t, perigee__dtype_arg(L, 2, "to", 1));
  return 1;
}

/* ---- in place: all return self ------------------------------------------------------------------- */

static int self_back(lua_State *L, int rc) {
  perigee__check(L, rc);
  lua_settop(L, 1);
  return 1;
}

static int l_copy(lua_State *L) {
  perigee_tensor *t = perigee__tensor_self(L, "copy_");
  return self_back(L, perigee_tensor_copy(t, perigee__tensor_arg(L, 1, "copy_")));
}

static int l_fill(lua_State *L) {
  perigee_tensor *t = perigee__tensor_self(L, "fill_");
  perigee_scalar value;
  perigee__scalar_arg(L, 2, "fill_", 1, &value);
  return self_back(L, perigee_tensor_fill(t, &value));
}

static int l_zero(lua_State *L) {
  const perigee_scalar zero = {.kind = PERIGEE_SCALAR_INT};
  return self_back(L, perigee_tensor_fill(perigee__tensor_self(L, "zero_"), &zero));
}

static int binary(lua_State *L, perigee_binop op, const char *method) {
  perigee_tensor *t = perigee__tensor_self(L, method);
  if (perigee__object_get(L, 2, &perigee__type_tensor) != NULL)
    return self_back(L, perigee_tensor_binary(op, t, perigee__tensor_arg(L, 1, method)));
  if (lua_type(L, 2) != LUA_TNUMBER && lua_type(L, 2) != LUA_TTABLE)
    perigee__raise_arg(L, method, 1, "tensor or number expected, got %s", perigee__type_name(L, 2));
  perigee_scalar value;
  perigee__scalar_arg(L, 2, method, 1, &value);
  return self_back(L, perigee_tensor_binary_scalar(op, t, &value));
}

static int l_add(lua_State *L) { return binary(L, PERIGEE_ADD, "add_"); }
static int l_sub(lua_State *L) { return binary(L, PERIGEE_SUB, "sub_"); }
static int l_mul(lua_State *L) { return binary(L, PERIGEE_MUL, "mul_"); }
static int l_div(lua_State *L) { return binary(L, PERIGEE_DIV, "div_"); }
static int l_max_(lua_State *L) { return binary(L, PERIGEE_MAXIMUM, "max_"); }
static int l_min_(lua_State *L) { return binary(L, PERIGEE_MINIMUM, "min_"); }

/* t:axpy_(alpha, x): t = t + alpha * x */
static int l_axpy(lua_State *L) {
  perigee_tensor *t = perigee__tensor_self(L, "axpy_");
  if (lua_type(L, 2) != LUA_TNUMBER)
    perigee__raise_arg(L, "axpy_", 1, "number expected, got %s", perigee__type_name(L, 2));
  const perigee_tensor *x = perigee__tensor_arg(L, 2, "axpy_");
  return self_back(L, perigee_tensor_axpy(t, lua_tonumber(L, 2), x));
}

static int l_abs_(lua_State *L) {
  return self_back(L, perigee_tensor_abs(perigee__tensor_self(L, "abs_")));
}

/* t:abs(): a new tensor */
static int l_abs(lua_State *L) {
  const perigee_tensor *t = perigee__tensor_self(L, "abs");
  perigee__check(L, perigee_tensor_abs(converted(L, t, perigee_tensor_dtype(t))));
  return 1;
}

/* ---- values -------------------------------------------------------------------------------------- */

static int scalar_value(lua_State *L, const char *method,
                        int (*fn)(const perigee_tensor *, perigee_scalar *)) {
  perigee_scalar value;
  perigee__check(L, fn(perigee__tensor_self(L, method), &value));
  perigee__scalar_push(L, &value);
  return 1;
}

static int number_value(lua_State *L, const char *method,
                        int (*fn)(const perigee_tensor *, double *)) {
  double value;
  perigee__check(L, fn(perigee__tensor_self(L, method), &value));
  lua_pushnumber(L, value);
  return 1;
}

static int l_sum(lua_State *L) { return scalar_value(L, "sum", perigee_tensor_sum); }
static int l_min(lua_State *L) { return scalar_value(L, "min", perigee_tensor_min); }
static int l_max(lua_State *L) { return scalar_value(L, "max", perigee_tensor_max); }
static int l_mean(lua_State *L) { return number_value(L, "mean", perigee_tensor_mean); }
static int l_norm(lua_State *L) { return number_value(L, "norm", perigee_tensor_norm); }

/* t:equal(other): dtype, shape and bits */
static int l_equal(lua_State *L) {
  const perigee_tensor *t = perigee__tensor_self(L, "equal");
  lua_pushboolean(L, perigee_tensor_equal(t, perigee__tensor_arg(L, 1, "equal")));
  return 1;
}

/* t:allclose(other [, rtol [, atol]]) */
static int l_allclose(lua_State *L) {
  const perigee_tensor *t = perigee__tensor_self(L, "allclose");
  const perigee_tensor *other = perigee__tensor_arg(L, 1, "allclose");
  double rtol = luaL_optnumber(L, 3, 1e-5), atol = luaL_optnumber(L, 4, 1e-8);
  lua_pushboolean(L, perigee_tensor_allclose(t, other, rtol, atol));
  return 1;
}

static int l_is_contiguous(lua_State *L) {
  lua_pushboolean(L, perigee_tensor_is_contiguous(perigee__tensor_self(L, "is_contiguous")));
  return 1;
}

const luaL_Reg perigee__ltensor_math[] = {
    {"narrow", l_narrow},
    {"view", l_view},
    {"reshape", l_reshape},
    {"contiguous", l_contiguous},
    {"is_contiguous", l_is_contiguous},
    {"clone", l_clone},
    {"to", l_to},
    {"copy_", l_copy},
    {"fill_", l_fill},
    {"zero_", l_zero},
    {"add_", l_add},
    {"sub_", l_sub},
    {"mul_", l_mul},
    {"div_", l_div},
    {"max_", l_max_},
    {"min_", l_min_},
    {"axpy_", l_axpy},
    {"abs_", l_abs_},
    {"abs", l_abs},
    {"sum", l_sum},
    {"mean", l_mean},
    {"norm", l_norm},
    {"min", l_min},
    {"max", l_max},
    {"equal", l_equal},
    {"allclose", l_allclose},
    {NULL, NULL},
};
