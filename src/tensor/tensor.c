#include "tensor/tensor.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/error.h"
#include "tensor/dtype.h"

#define DATA_ALIGN 64
/* From this size on fresh pages are zero already and calloc knows it; below, a plain malloc is far cheaper. */
#define CALLOC_FROM 65536
/* A count no careless ref or unref can bring to zero. */
#define IMMORTAL (1 << 30)

/* Storage and first tensor of owned data, and of wrapped data that has a release function. */
typedef struct block {
  perigee__storage storage; /* first: freeing the storage frees the block */
  perigee_tensor tensor;
} block;

/* ---- shapes ------------------------------------------------------------------------------------- */

/* Checks dtype and shape and returns the number of elements and bytes. */
int perigee__tensor_check_shape(perigee_dtype dtype, int ndim, const int64_t *shape,
                                int64_t *numel_p, size_t *nbytes_p) {
  if (!perigee__dtype_valid((int)dtype))
    return perigee__fail(PERIGEE_EDTYPE, "dtype %d is not one", (int)dtype);
  if (ndim < 0 || ndim > PERIGEE_MAX_DIMS)
    return perigee__fail(PERIGEE_EINVAL, "ndim is %d, must be 0 to %d", ndim, PERIGEE_MAX_DIMS);
  if (ndim > 0 && shape == NULL)
    return perigee__fail(PERIGEE_EINVAL, "shape is NULL, ndim is %d", ndim);
  int64_t limit = (PTRDIFF_MAX - 4096) / (int64_t)perigee_dtype_size(dtype);
  int64_t numel = 1, span = 1; /* span: an extent of 0 counts as 1, it bounds the strides */
  for (int d = 0; d < ndim; d++) {
    if (shape[d] < 0)
      return perigee__fail(PERIGEE_EINVAL, "shape[%d] is %" PRId64 ", must be >= 0", d, shape[d]);
    int64_t extent = shape[d] > 0 ? shape[d] : 1;
    if (extent > limit / span)
      return perigee__fail(PERIGEE_ELIMIT, "shape[%d] = %" PRId64 ": %s tensor is too large", d,
                           shape[d], perigee_dtype_name(dtype));
    span *= extent;
    numel *= shape[d];
  }
  *numel_p = numel;
  *nbytes_p = (size_t)numel * perigee_dtype_size(dtype);
  return 0;
}

/* Everything but the counts, the storage and the data, of a contiguous tensor. */
static void set_shape(perigee_tensor *t, perigee_dtype dtype, int ndim, const int64_t *shape,
                      int64_t numel, size_t nbytes) {
  t->dtype = dtype;
  t->ndim = ndim;
  t->contiguous = true;
  t->numel = numel;
  t->nbytes = nbytes;
  int64_t stride = 1;
  for (int d = ndim - 1; d >= 0; d--) {
    t->shape[d] = shape[d];
    t->strides[d] = stride;
    stride *= shape[d] > 0 ? shape[d] : 1;
  }
}

static bool strides_contiguous(const perigee_tensor *t) {
  if (t->numel == 0)
    return true;
  int64_t expected = 1;
  for (int d = t->ndim - 1; d >= 0; d--) {
    if (t->shape[d] != 1 && t->strides[d] != expected)
      return false;
    expected *= t->shape[d];
  }
  return true;
}

bool perigee__tensor_same_shape(const perigee_tensor *a, const perigee_tensor *b) {
  if (a->ndim != b->ndim)
    return false;
  for (int d = 0; d < a->ndim; d++)
    if (a->shape[d] != b->shape[d])
      return false;
  return true;
}

int perigee__tensor_check_shapes(const char *what, const perigee_tensor *a,
                                 const perigee_tensor *b) {
  if (perigee__tensor_same_shape(a, b))
    return 0;
  char left[PERIGEE__DESCRIBE_SIZE], right[PERIGEE__DESCRIBE_SIZE];
  return perigee__fail(PERIGEE_ESHAPE, "%s: shapes differ, %s and %s", what,
                       perigee_tensor_describe(a, left, sizeof(left)),
                       perigee_tensor_describe(b, right, sizeof(right)));
}

/* ---- making ------------------------------------------------------------------------------------- */

/* A block with extra bytes behind it. The tensor in it has one reference and holds the storage's only one. */
static block *block_new(size_t extra, bool zeroed) {
  block *b = zeroed ? calloc(1, sizeof(*b) + extra) : malloc(sizeof(*b) + extra);
  if (b == NULL)
    return NULL;
  atomic_init(&b->storage.refs, 1);
  b->storage.release = NULL;
  b->storage.arg = NULL;
  atomic_init(&b->storage.attached, NULL);
  atomic_init(&b->tensor.refs, 1);
  b->tensor.embedded = true;
  b->tensor.storage = &b->storage;
  return b;
}

static int create(perigee_dtype dtype, int ndim, const int64_t *shape, bool zero,
                  perigee_tensor **tensor_p) {
  int64_t numel;
  size_t nbytes;
  PERIGEE_TRY(perigee__tensor_check_shape(dtype, ndim, shape, &numel, &nbytes));
  bool lazy = zero && nbytes >= CALLOC_FROM;
  block *b = block_new(nbytes + DATA_ALIGN - 1, lazy);
  if (b == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory for %zu bytes of a %s tensor", nbytes,
                         perigee_dtype_name(dtype));
  char *after = (char *)(b + 1);
  after += -(uintptr_t)after & (DATA_ALIGN - 1);
  if (zero && !lazy)
    memset(after, 0, nbytes);
  set_shape(&b->tensor, dtype, ndim, shape, numel, nbytes);
  b->tensor.data = after;
  *tensor_p = &b->tensor;
  return 0;
}

int perigee_tensor_create(perigee_dtype dtype, int ndim, const int64_t *shape,
                          perigee_tensor **tensor_p) {
  return create(dtype, ndim, shape, true, tensor_p);
}

int perigee__tensor_create_raw(perigee_dtype dtype, int ndim, const int64_t *shape,
                               perigee_tensor **tensor_p) {
  return create(dtype, ndim, shape, false, tensor_p);
}

/* A tensor alone, one reference, no storage yet. */
static perigee_tensor *tensor_new(void) {
  perigee_tensor *t = malloc(sizeof(*t));
  if (t == NULL)
    return NULL;
  atomic_init(&t->refs, 1);
  t->embedded = false;
  t->storage = NULL;
  return t;
}

int perigee_tensor_wrap(perigee_dtype dtype, int ndim, const int64_t *shape, void *data,
                        void (*release)(void *arg), void *arg, perigee_tensor **tensor_p) {
  int64_t numel;
  size_t nbytes;
  PERIGEE_TRY(perigee__tensor_check_shape(dtype, ndim, shape, &numel, &nbytes));
  if (data == NULL && nbytes > 0)
    return perigee__fail(PERIGEE_EINVAL, "data is NULL for %zu bytes", nbytes);
  if ((uintptr_t)data % perigee__dtype_align(dtype) != 0)
    return perigee__fail(PERIGEE_EINVAL, "data %p is not aligned to %zu bytes as %s needs", data,
                         perigee__dtype_align(dtype), perigee_dtype_name(dtype));
  block *b = release != NULL ? block_new(0, false) : NULL;
  perigee_tensor *t = release == NULL ? tensor_new() : b != NULL ? &b->tensor : NULL;
  if (t == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory for a tensor");
  if (b != NULL) {
    b->storage.release = release;
    b->storage.arg = arg;
  }
  set_shape(t, dtype, ndim, shape, numel, nbytes);
  t->data = data;
  *tensor_p = t;
  return 0;
}

void perigee__tensor_borrow(perigee_tensor *tensor, perigee_dtype dtype, int64_t numel,
                            void *data) {
  PERIGEE_ASSERT(perigee__dtype_valid((int)dtype) && numel >= 0);
  PERIGEE_ASSERT((uintptr_t)data % perigee__dtype_align(dtype) == 0);
  atomic_init(&tensor->refs, IMMORTAL);
  tensor->embedded = true;
  tensor->storage = NULL;
  set_shape(tensor, dtype, 1, &numel, numel, (size_t)numel * perigee_dtype_size(dtype));
  tensor->data = data;
}

/* ---- references --------------------------------------------------------------------------------- */

static void storage_unref(perigee__storage *storage) {
  /* Acquire pairs with the release of every earlier drop: all use of the data is over before it is freed. */
  if (atomic_fetch_sub_explicit(&storage->refs, 1, memory_order_acq_rel) != 1)
    return;
  /* relaxed: the acquire above is enough */
  perigee_shared *attached = atomic_load_explicit(&storage->attached, memory_order_relaxed);
  if (attached != NULL)
    attached->unref(attached);
  if (storage->release != NULL)
    storage->release(storage->arg);
  free(storage);
}

perigee_tensor *perigee_tensor_ref(perigee_tensor *tensor) {
  /* relaxed: who takes a reference has one */
  atomic_fetch_add_explicit(&tensor->refs, 1, memory_order_relaxed);
  return tensor;
}

void perigee_tensor_unref(perigee_tensor *tensor) {
  if (tensor == NULL)
    return;
  /* Acquire pairs with the release of every earlier drop, as in storage_unref. */
  int before = atomic_fetch_sub_explicit(&tensor->refs, 1, memory_order_acq_rel);
  PERIGEE_ASSERT(before > 0);
  if (before != 1)
    return;
  perigee__storage *storage = tensor->storage; /* read first: the block may hold the tensor */
  if (!tensor->embedded)
    free(tensor);
  if (storage != NULL)
    storage_unref(storage);
}

perigee_shared *perigee_tensor_attach(perigee_tensor *tensor, perigee_shared *value) {
  perigee__storage *storage = tensor->storage;
  if (storage == NULL)
    return NULL;
  perigee_shared *there = atomic_load_explicit(&storage->attached, memory_order_acquire);
  if (there != NULL || value == NULL)
    return there;
  value->ref(value);
  /* release: who finds it sees what its maker wrote; acquire: so do we when another one was faster */
  if (atomic_compare_exchange_strong_explicit(&storage->attached, &there, value,
                                              memory_order_acq_rel, memory_order_acquire))
    return value;
  value->unref(value);
  return there;
}

/* ---- views -------------------------------------------------------------------------------------- */

/* A new tensor on the storage of another; shape, strides and data are the caller's to set. */
static perigee_tensor *view_new(const perigee_tensor *of) {
  perigee_tensor *view = tensor_new();
  if (view == NULL)
    return NULL;
  view->storage = of->storage;
  if (view->storage != NULL) /* relaxed: `of` holds a reference */
    atomic_fetch_add_explicit(&view->storage->refs, 1, memory_order_relaxed);
  return view;
}

int perigee_tensor_narrow(const perigee_tensor *tensor, int dim, int64_t start, int64_t length,
                          perigee_tensor **view_p) {
  char text[PERIGEE__DESCRIBE_SIZE];
  if (dim < 0 || dim >= tensor->ndim)
    return perigee__fail(PERIGEE_ERANGE, "narrow: dim %d of %s", dim,
                         perigee_tensor_describe(tensor, text, sizeof(text)));
  int64_t extent = tensor->shape[dim];
  if (start < 0 || start > extent)
    return perigee__fail(PERIGEE_ERANGE, "narrow: start %" PRId64 " in dim %d of %s", start, dim,
                         perigee_tensor_describe(tensor, text, sizeof(text)));
  if (length < 0 || length > extent - start)
    return perigee__fail(PERIGEE_ERANGE,
                         "narrow: length %" PRId64 " from start %" PRId64 " in dim %d of %s",
                         length, start, dim, perigee_tensor_describe(tensor, text, sizeof(text)));
  perigee_tensor *view = view_new(tensor);
  if (view == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory for a tensor");
  size_t size = perigee_dtype_size(tensor->dtype);
  view->dtype = tensor->dtype;
  view->ndim = tensor->ndim;
  view->numel = 1;
  for (int d = 0; d < tensor->ndim; d++) {
    view->shape[d] = d == dim ? length : tensor->shape[d];
    view->strides[d] = tensor->strides[d];
    view->numel *= view->shape[d];
  }
  view->nbytes = (size_t)view->numel * size;
  view->data = tensor->data;
  if (view->numel > 0) /* an empty view points to the start: its own place may be past the memory */
    view->data = (char *)tensor->data + start * tensor->strides[dim] * (int64_t)size;
  view->contiguous = strides_contiguous(view);
  *view_p = view;
  return 0;
}

/* shape with its one -1 replaced, in out. */
static int infer_shape(const perigee_tensor *tensor, int ndim, const int64_t *shape, int64_t *out) {
  int inferred = -1;
  int64_t known = 1;
  for (int d = 0; d < ndim; d++) {
    out[d] = shape[d];
    if (shape[d] == -1 && inferred >= 0)
      return perigee__fail(PERIGEE_EINVAL, "view: shape[%d] and shape[%d] are both -1", inferred,
                           d);
    if (shape[d] == -1) {
      inferred = d;
      continue;
    }
    if (shape[d] < 0)
      return perigee__fail(PERIGEE_EINVAL, "view: shape[%d] is %" PRId64, d, shape[d]);
    if (shape[d] > 0 && known > INT64_MAX / shape[d])
      return perigee__fail(PERIGEE_ELIMIT, "view: shape[%d] = %" PRId64 " is too large", d,
                           shape[d]);
    known *= shape[d];
  }
  if (inferred < 0)
    return 0;
  if (known == 0 || tensor->numel % known != 0)
    return perigee__fail(PERIGEE_ESHAPE,
                         "view: shape[%d] = -1 cannot be inferred: %" PRId64
                         " elements, the other extents make %" PRId64,
                         inferred, tensor->numel, known);
  out[inferred] = tensor->numel / known;
  return 0;
}

int perigee_tensor_view(const perigee_tensor *tensor, int ndim, const int64_t *shape,
                        perigee_tensor **view_p) {
  char text[PERIGEE__DESCRIBE_SIZE];
  int64_t full[PERIGEE_MAX_DIMS] = {0}, numel;
  size_t nbytes;
  if (!tensor->contiguous)
    return perigee__fail(PERIGEE_ESHAPE, "view: %s is not contiguous",
                         perigee_tensor_describe(tensor, text, sizeof(text)));
  if (ndim >= 0 && ndim <= PERIGEE_MAX_DIMS && shape != NULL)
    PERIGEE_TRY(infer_shape(tensor, ndim, shape, full));
  PERIGEE_TRY(perigee__tensor_check_shape(tensor->dtype, ndim, shape != NULL ? full : NULL, &numel,
                                          &nbytes));
  if (numel != tensor->numel)
    return perigee__fail(PERIGEE_ESHAPE, "view: %" PRId64 " elements asked of %s", numel,
                         perigee_tensor_describe(tensor, text, sizeof(text)));
  perigee_tensor *view = view_new(tensor);
  if (view == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory for a tensor");
  set_shape(view, tensor->dtype, ndim, full, numel, nbytes);
  view->data = tensor->data;
  *view_p = view;
  return 0;
}

/* ---- looking ------------------------------------------------------------------------------------ */

perigee_dtype perigee_tensor_dtype(const perigee_tensor *tensor) { return tensor->dtype; }
int perigee_tensor_ndim(const perigee_tensor *tensor) { return tensor->ndim; }
const int64_t *perigee_tensor_shape(const perigee_tensor *tensor) { return tensor->shape; }
const int64_t *perigee_tensor_strides(const perigee_tensor *tensor) { return tensor->strides; }
int64_t perigee_tensor_numel(const perigee_tensor *tensor) { return tensor->numel; }
size_t perigee_tensor_nbytes(const perigee_tensor *tensor) { return tensor->nbytes; }
void *perigee_tensor_data(const perigee_tensor *tensor) { return tensor->data; }
bool perigee_tensor_is_contiguous(const perigee_tensor *tensor) { return tensor->contiguous; }

const char *perigee_tensor_describe(const perigee_tensor *tensor, char *buf, size_t size) {
  if (size == 0)
    return buf;
  size_t used = (size_t)snprintf(buf, size, "%s[", perigee_dtype_name(tensor->dtype));
  for (int d = 0; d < tensor->ndim && used < size; d++)
    used +=
        (size_t)snprintf(buf + used, size - used, "%s%" PRId64, d > 0 ? "," : "", tensor->shape[d]);
  if (used < size)
    snprintf(buf + used, size - used, "]");
  return buf;
}
