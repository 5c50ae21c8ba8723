/*
 * Tensors: what a process group needs and no more.
 *
 * A tensor is a view (dtype, shape, strides, offset) of a reference-counted storage. New tensors are
 * contiguous (row-major); narrow along a dimension other than the first gives a strided view, which
 * the element functions here accept and the collectives refuse (perigee_tensor_contiguous copies).
 * Threads: distinct tensors may be used from distinct threads, also when they share storage, as long
 * as nobody writes what another reads. Reference counts are atomic.
 */
#ifndef PERIGEE_TENSOR_H
#define PERIGEE_TENSOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "export.h"
#include "shared.h"

/* XX(id, NAME, name, size in bytes). Ids are part of the wire format: never renumber. */
#define PERIGEE_DTYPE_MAP(XX)                                                                      \
  XX(0, F16, f16, 2)                                                                               \
  XX(1, BF16, bf16, 2)                                                                             \
  XX(2, F32, f32, 4)                                                                               \
  XX(3, F64, f64, 8)                                                                               \
  XX(4, I8, i8, 1)                                                                                 \
  XX(5, U8, u8, 1)                                                                                 \
  XX(6, I16, i16, 2)                                                                               \
  XX(7, U16, u16, 2)                                                                               \
  XX(8, I32, i32, 4)                                                                               \
  XX(9, U32, u32, 4)                                                                               \
  XX(10, I64, i64, 8)                                                                              \
  XX(11, U64, u64, 8)                                                                              \
  XX(12, BOOL, bool, 1)                                                                            \
  XX(13, C64, c64, 8)                                                                              \
  XX(14, C128, c128, 16)

typedef enum perigee_dtype {
#define XX(_id, _NAME, _name, _size) PERIGEE_##_NAME = _id,
  PERIGEE_DTYPE_MAP(XX)
#undef XX
  PERIGEE_DTYPE_COUNT = 15
} perigee_dtype;

#define PERIGEE_MAX_DIMS 8

typedef struct perigee_tensor perigee_tensor;

/** Bytes of one element, 0 for an unknown dtype. */
PERIGEE_API size_t perigee_dtype_size(perigee_dtype dtype);
/** "f32"; "?" for an unknown dtype. Static memory. */
PERIGEE_API const char *perigee_dtype_name(perigee_dtype dtype);
/** Dtype by name; also accepts float16 bfloat16 float32 float64 int8 ... uint64 complex64 complex128.
 *  Returns 0 and sets *dtype_p, or PERIGEE_EDTYPE. */
PERIGEE_API PERIGEE_MUST_CHECK int perigee_dtype_parse(const char *name, perigee_dtype *dtype_p);

/* ---- making ---------------------------------------------------------------------------------- */

/**
 * A new contiguous tensor of zeros in memory of its own (64-byte aligned).
 * Shape:  ndim 0 (one element) to PERIGEE_MAX_DIMS; extents >= 0.
 * Owns:   *tensor_p: returned owned (one reference).
 * Errors: EINVAL (ndim, negative extent), EDTYPE, ELIMIT (size overflows), ENOMEM.
 */
PERIGEE_API PERIGEE_MUST_CHECK int perigee_tensor_create(perigee_dtype dtype, int ndim,
                                                         const int64_t *shape,
                                                         perigee_tensor **tensor_p);

/**
 * A contiguous tensor over the caller's memory.
 * Owns: data: borrowed; release(arg), if given, is called once, when the last view of it is gone, on
 *       whatever thread drops it.
 */
PERIGEE_API PERIGEE_MUST_CHECK int perigee_tensor_wrap(perigee_dtype dtype, int ndim,
                                                       const int64_t *shape, void *data,
                                                       void (*release)(void *arg), void *arg,
                                                       perigee_tensor **tensor_p);

PERIGEE_API perigee_tensor *perigee_tensor_ref(perigee_tensor *tensor); /* returns tensor */
PERIGEE_API void perigee_tensor_unref(perigee_tensor *tensor);          /* NULL is accepted */

/**
 * Attach a value to the tensor's storage: shared by all its views and dropped with it. The first value wins.
 * value: one reference is taken when it is attached; NULL only looks.
 * Returns what is attached now, borrowed as long as the storage lives; NULL: nothing, or memory that nobody counts
 *   (wrapped without release).
 */
PERIGEE_API perigee_shared *perigee_tensor_attach(perigee_tensor *tensor, perigee_shared *value);

/* ---- looking --------------------------------------------------------------------------------- */

PERIGEE_API perigee_dtype perigee_tensor_dtype(const perigee_tensor *tensor);
PERIGEE_API int perigee_tensor_ndim(const perigee_tensor *tensor);
PERIGEE_API const int64_t *perigee_tensor_shape(const perigee_tensor *tensor);   /* ndim extents */
PERIGEE_API const int64_t *perigee_tensor_strides(const perigee_tensor *tensor); /* in elements */
PERIGEE_API int64_t perigee_tensor_numel(const perigee_tensor *tensor);
PERIGEE_API size_t perigee_tensor_nbytes(const perigee_tensor *tensor); /* numel * dtype size */
PERIGEE_API void *perigee_tensor_data(const perigee_tensor *tensor);    /* first element */
PERIGEE_API bool perigee_tensor_is_contiguous(const perigee_tensor *tensor);
/** "f32[2,3]" into buf; returns buf. */
PERIGEE_API const char *perigee_tensor_describe(const perigee_tensor *tensor, char *buf,
                                                size_t size);

/* ---- views (share storage) and copies -------------------------------------------------------- */

/** Elements start .. start+length-1 of dimension dim (0-based). ERANGE when outside. */
PERIGEE_API PERIGEE_MUST_CHECK int perigee_tensor_narrow(const perigee_tensor *tensor, int dim,
                                                         int64_t start, int64_t length,
                                                         perigee_tensor **view_p);
/** Same elements, other shape; one extent may be -1 (inferred). The tensor must be contiguous. */
PERIGEE_API PERIGEE_MUST_CHECK int perigee_tensor_view(const perigee_tensor *tensor, int ndim,
                                                       const int64_t *shape,
                                                       perigee_tensor **view_p);
/** A new contiguous tensor with the same elements, converted to dtype (see perigee_tensor_copy). */
PERIGEE_API PERIGEE_MUST_CHECK int
perigee_tensor_to(const perigee_tensor *tensor, perigee_dtype dtype, perigee_tensor **tensor_p);
/** The tensor itself (one more reference) when contiguous, otherwise a contiguous copy. */
PERIGEE_API PERIGEE_MUST_CHECK int perigee_tensor_contiguous(perigee_tensor *tensor,
                                                             perigee_tensor **tensor_p);
/**
 * dst := src element by element, converting: float to integer truncates toward zero and saturates, NaN
 * becomes 0; to 16-bit floats rounds to nearest even; to bool is x != 0; real to complex sets im = 0; complex
 * to real drops im. Same numel and shape required (ESHAPE). Overlap of the two is not allowed
 * unless they are the same elements.
 */
PERIGEE_API PERIGEE_MUST_CHECK int perigee_tensor_copy(perigee_tensor *dst,
                                                       const perigee_tensor *src);

/* ---- elements -------------------------------------------------------------------------------- */

/** One value in the widest form of its class; which member is set follows the dtype. */
typedef struct perigee_scalar {
  enum {
    PERIGEE_SCALAR_FLOAT,
    PERIGEE_SCALAR_INT,
    PERIGEE_SCALAR_UINT,
    PERIGEE_SCALAR_BOOL,
    PERIGEE_SCALAR_COMPLEX
  } kind;
  double re, im; /* FLOAT uses re; COMPLEX both */
  int64_t i;     /* INT, BOOL (0 or 1) */
  uint64_t u;    /* UINT */
} perigee_scalar;

/** Element number index (row-major, 0-based). ERANGE when outside. */
PERIGEE_API PERIGEE_MUST_CHECK int perigee_tensor_get(const perigee_tensor *tensor, int64_t index,
                                                      perigee_scalar *value_p);
/** Sets one element; converts as perigee_tensor_copy does. */
PERIGEE_API PERIGEE_MUST_CHECK int perigee_tensor_set(perigee_tensor *tensor, int64_t index,
                                                      const perigee_scalar *value);
PERIGEE_API PERIGEE_MUST_CHECK int perigee_tensor_fill(perigee_tensor *tensor,
                                                       const perigee_scalar *value);

/* ---- arithmetic in place --------------------------------------------------------------------- */

typedef enum perigee_binop {
  PERIGEE_ADD,
  PERIGEE_SUB,
  PERIGEE_MUL,
  PERIGEE_DIV,
  PERIGEE_MAXIMUM,
  PERIGEE_MINIMUM
} perigee_binop;

/** a := a op b, elementwise, same dtype and shape. Integer division by zero is EINVAL. Not for bool.
 *  DIV of integers truncates toward zero. Complex: ADD SUB MUL DIV only. */
PERIGEE_API PERIGEE_MUST_CHECK int perigee_tensor_binary(perigee_binop op, perigee_tensor *a,
                                                         const perigee_tensor *b);
/** a := a op value, elementwise. */
PERIGEE_API PERIGEE_MUST_CHECK int perigee_tensor_binary_scalar(perigee_binop op, perigee_tensor *a,
                                                                const perigee_scalar *value);
/** a := a + alpha * b for float dtypes (accumulates in f32 for 16-bit floats). */
PERIGEE_API PERIGEE_MUST_CHECK int perigee_tensor_axpy(perigee_tensor *a, double alpha,
                                                       const perigee_tensor *b);
/** a := |a|. */
PERIGEE_API PERIGEE_MUST_CHECK int perigee_tensor_abs(perigee_tensor *a);

/* ---- whole-tensor values (0 elements: sum 0, others EINVAL where undefined) ------------------- */

PERIGEE_API PERIGEE_MUST_CHECK int perigee_tensor_sum(const perigee_tensor *t, perigee_scalar *v_p);
PERIGEE_API PERIGEE_MUST_CHECK int perigee_tensor_mean(const perigee_tensor *t, double *v_p);
PERIGEE_API PERIGEE_MUST_CHECK int perigee_tensor_norm(const perigee_tensor *t, double *v_p);
PERIGEE_API PERIGEE_MUST_CHECK int perigee_tensor_min(const perigee_tensor *t, perigee_scalar *v_p);
PERIGEE_API PERIGEE_MUST_CHECK int perigee_tensor_max(const perigee_tensor *t, perigee_scalar *v_p);
/** Same dtype, shape and bits. */
PERIGEE_API bool perigee_tensor_equal(const perigee_tensor *a, const perigee_tensor *b);
/** |a-b| <= atol + rtol*|b| everywhere; same shape; NaN equals nothing. Dtypes may differ. */
PERIGEE_API bool perigee_tensor_allclose(const perigee_tensor *a, const perigee_tensor *b,
                                         double rtol, double atol);

#endif
