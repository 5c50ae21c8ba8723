/* Tensors in memory that all ranks of a group share. */
#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "coll/fingerprint.h"
#include "group/group.h"
#include "group/native.h"
#include "tensor/tensor.h"

static void drop(void *arg) { perigee__segment_drop(arg); }

static uint64_t hash_of(perigee_dtype dtype, int ndim, const int64_t *shape) {
  uint64_t hash = perigee__hash_mix((uint64_t)dtype, (uint64_t)ndim);
  for (int d = 0; d < ndim; d++)
    hash = perigee__hash_mix(hash, (uint64_t)shape[d]);
  return hash;
}

static int alloc_shared(perigee_group *group, perigee_dtype dtype, int ndim, const int64_t *shape,
                        size_t bytes, perigee_tensor **tensor_p) {
  perigee__segment *segment;
  void *data;
  int64_t timeout = atomic_load_explicit(&group->timeout_ns, memory_order_relaxed);
  PERIGEE_TRY(perigee__native_alloc(group->layers[group->nlayers - 1].self, bytes,
                                    hash_of(dtype, ndim, shape), perigee__deadline_in(timeout),
                                    &segment, &data));
  int rc = perigee_tensor_wrap(dtype, ndim, shape, data, drop, segment, tensor_p);
  if (rc < 0)
    perigee__segment_drop(segment);
  return rc;
}

static int alloc(perigee_group *group, perigee_dtype dtype, int ndim, const int64_t *shape,
                 perigee_tensor **tensor_p) {
  int64_t numel;
  size_t bytes;
  PERIGEE_TRY(perigee__tensor_check_shape(dtype, ndim, shape, &numel, &bytes));
  if (!group->native || group->nranks == 1)
    return perigee_tensor_create(dtype, ndim, shape, tensor_p);
  int rc = alloc_shared(group, dtype, ndim, shape, bytes, tensor_p);
  if (rc != PERIGEE_ENOSHM)
    return rc;
  perigee__log(PERIGEE_LOG_INFO, "group %s: %s: using ordinary memory", group->name,
               perigee__last_error()->message);
  return perigee_tensor_create(dtype, ndim, shape, tensor_p);
}

int perigee_group_alloc(perigee_group *group, perigee_dtype dtype, int ndim, const int64_t *shape,
                        perigee_tensor **tensor_p) {
  PERIGEE_TRY(perigee__group_may_block());
  PERIGEE_TRY(perigee__group_enter(group));
  return perigee__group_leave(group, alloc(group, dtype, ndim, shape, tensor_p));
}
