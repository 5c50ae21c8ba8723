/* Tensors in Lua (ltensor.c, ltensor_make.c, ltensor_math.c, ltensor_npy.c). */
#ifndef PERIGEE_HOST_LTENSOR_H
#define PERIGEE_HOST_LTENSOR_H

#include <perigee/tensor.h>

#include "host/object.h"

/** The tensor at index, or NULL. A tensor that ended (a view lent to a callback) is NULL too. [-0, +0, -] */
static inline perigee_tensor *perigee__tensor_get(lua_State *L, int index) {
  perigee__box *box = perigee__object_get(L, index, &perigee__type_tensor);
  return box != NULL ? box->ptr : NULL;
}
/** Argument arg (stack index arg + 1) of a method, or an error that names it. [-0, +0, e] */
PERIGEE_RAISES perigee_tensor *perigee__tensor_arg(lua_State *L, int arg, const char *method);
/** The tensor at stack index 1. [-0, +0, e] */
PERIGEE_RAISES perigee_tensor *perigee__tensor_self(lua_State *L, const char *method);
/** [-0, +1, m] A new object whose ptr the caller fills with a tensor it owns. */
PERIGEE_RAISES perigee__box *perigee__tensor_slot(lua_State *L);
/** [-0, +1, m] Push a tensor, taking a reference of its own. */
PERIGEE_RAISES void perigee__tensor_push(lua_State *L, perigee_tensor *tensor);
/** Tell the collector about memory that it does not see. [-0, +0, m] */
PERIGEE_RAISES void perigee__tensor_account(lua_State *L, const perigee_tensor *tensor);

/** Scalars: arg for messages. [-0, +0, e] and [-0, +1, m] */
PERIGEE_RAISES void perigee__scalar_arg(lua_State *L, int index, const char *function, int arg,
                                        perigee_scalar *value);
PERIGEE_RAISES void perigee__scalar_push(lua_State *L, const perigee_scalar *value);
/** Dtype named at index, or an error that names the argument and lists the names. [-0, +0, e] */
PERIGEE_RAISES perigee_dtype perigee__dtype_arg(lua_State *L, int index, const char *function,
                                                int arg);
/** Shape at index: a table of integers, or integers up to the top of the stack. Returns ndim. [-0, +0, e] */
PERIGEE_RAISES int perigee__shape_arg(lua_State *L, int index, const char *function, int arg,
                                      int64_t shape[PERIGEE_MAX_DIMS], bool negative_ok);
/** Nested tables of the elements. [-0, +1, m] */
int perigee__ltensor_totable(lua_State *L);

/** Type, and constructors into the module table on top of the stack. [-0, +0, m] */
PERIGEE_RAISES void perigee__ltensor_open(lua_State *L);
PERIGEE_RAISES void perigee__ltensor_make_open(lua_State *L);
PERIGEE_RAISES void perigee__ltensor_npy_open(lua_State *L);
extern const luaL_Reg perigee__ltensor_math[];

#endif
