/*
 * What the layers above may know of a tensor: its fields, and constructors without an allocation of data.
 *
 * Memory. Whoever made the data decides which of three forms a tensor has:
 *   owned     one block holds the storage, the first tensor and (64-byte aligned) the data. The block lives as
 *             long as its storage, so it outlives the first tensor while a view is left.
 *   wrapped   the caller's memory. With a release function there is a storage to count its views; without one
 *             nothing is counted.
 *   borrowed  a tensor on somebody's stack (perigee__tensor_borrow): neither it nor its data is ever freed.
 * Thread-safety: both reference counts are atomic; every other field is immutable after creation.
 */
#ifndef PERIGEE_TENSOR_TENSOR_H
#define PERIGEE_TENSOR_TENSOR_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include <perigee/tensor.h>

/** Memory shared by tensors. refs counts the tensors that point to it. */
typedef struct perigee__storage {
  atomic_int refs;
  void (*release)(void *arg); /* NULL when the data stands behind this struct */
  void *arg;
  /* One reference, or NULL; set once. release by who attaches, acquire by who looks. */
  _Atomic(perigee_shared *) attached;
} perigee__storage;

struct perigee_tensor {
  atomic_int refs;
  perigee_dtype dtype;
  int ndim;
  bool contiguous;                   /* row-major without gaps; true when numel is 0 */
  bool embedded;                     /* lives in its storage's block, which frees it */
  int64_t numel;                     /* product of the extents */
  size_t nbytes;                     /* numel * size of the dtype */
  void *data;                        /* first element */
  perigee__storage *storage;         /* one reference; NULL: nobody counts */
  int64_t shape[PERIGEE_MAX_DIMS];   /* extents, >= 0 */
  int64_t strides[PERIGEE_MAX_DIMS]; /* in elements */
};

/**
 * Make *tensor a 1-D contiguous tensor over memory of the caller, without any allocation.
 * Owns: data: borrowed as long as the tensor or a view of it is used, which is the caller's business to know:
 *       references keep neither alive. Taking and dropping references is harmless and never frees.
 */
void perigee__tensor_borrow(perigee_tensor *tensor, perigee_dtype dtype, int64_t numel, void *data);

/** Elements and bytes of a shape that may be one: EDTYPE, EINVAL, ELIMIT as perigee_tensor_create. */
PERIGEE_MUST_CHECK int perigee__tensor_check_shape(perigee_dtype dtype, int ndim,
                                                   const int64_t *shape, int64_t *numel_p,
                                                   size_t *nbytes_p);
/** As perigee_tensor_create, but the elements have any value. */
PERIGEE_MUST_CHECK int perigee__tensor_create_raw(perigee_dtype dtype, int ndim,
                                                  const int64_t *shape, perigee_tensor **tensor_p);

/** Same number of dimensions and same extents. */
bool perigee__tensor_same_shape(const perigee_tensor *a, const perigee_tensor *b);
/** 0, or ESHAPE with both shapes named: "what: a is f32[2], b is f32[3]". */
PERIGEE_MUST_CHECK int perigee__tensor_check_shapes(const char *what, const perigee_tensor *a,
                                                    const perigee_tensor *b);

/** Room for the longest perigee_tensor_describe text. */
#define PERIGEE__DESCRIBE_SIZE (8 + PERIGEE_MAX_DIMS * 21)

#endif
