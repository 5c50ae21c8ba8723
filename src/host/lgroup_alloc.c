/* group:alloc: tensors that all ranks share. */
#include "host/call.h"
#include "host/lerror.h"
#include "host/lgroup.h"
#include "host/ltensor.h"

/* group:alloc(dtype, shape...) */
int perigee__lgroup_alloc(lua_State *L) {
  perigee_interp *interp = perigee__interp_here(L);
  perigee_group *group = perigee__lgroup_self(L, "alloc")->box.ptr;
  perigee_dtype dtype = perigee__dtype_arg(L, 2, "alloc", 1);
  int64_t shape[PERIGEE_MAX_DIMS];
  int ndim = perigee__shape_arg(L, 3, "alloc", 2, shape, false);
  perigee__box *box = perigee__tensor_slot(L);
  perigee_tensor *tensor = NULL;
  perigee__gap gap;
  perigee__gap_open(interp, L, &gap);
  int rc = perigee_group_alloc(group, dtype, ndim, shape, &tensor);
  perigee__gap_close(interp, &gap);
  perigee__check(L, rc);
  box->ptr = tensor;
  perigee__tensor_account(L, tensor);
  return 1;
}
