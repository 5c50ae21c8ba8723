/* Copies and conversions of tensors, and single elements. */
#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "tensor/copy.h"
#include "tensor/dtype.h"
#include "tensor/half.h"
#include "tensor/iter.h"
#include "tensor/tensor.h"
#include "tensor/wide.h"

/* ---- copies ------------------------------------------------------------------------------------- */

/* Same dtype: bits move unchanged, also those of NaNs and of odd bools. */
static void copy_run(char *dst, int64_t dst_stride, const char *src, int64_t src_stride,
                     int64_t count, size_t size) {
  if (dst_stride == (int64_t)size && src_stride == (int64_t)size) {
    perigee__copy(dst, src, (size_t)count * size);
    return;
  }
#define CASE(_size)                                                                                \
  case _size:                                                                                      \
    for (int64_t k = 0; k < count; k++)                                                            \
      memmove(dst + k * dst_stride, src + k * src_stride, _size);                                  \
    return
  switch (size) {
    CASE(1);
    CASE(2);
    CASE(4);
    CASE(8);
  default:
    for (int64_t k = 0; k < count; k++)
      memmove(dst + k * dst_stride, src + k * src_stride, size);
  }
#undef CASE
}

static void convert_run(char *dst, perigee_dtype dst_dtype, int64_t dst_stride, const char *src,
                        perigee_dtype src_dtype, int64_t src_stride, int64_t count) {
  perigee__wide w;
  for (int64_t at = 0; at < count; at += PERIGEE__WIDE_MAX) {
    int n = count - at < PERIGEE__WIDE_MAX ? (int)(count - at) : PERIGEE__WIDE_MAX;
    perigee__wide_load(&w, src_dtype, src + at * src_stride, src_stride, n);
    perigee__wide_store(&w, dst_dtype, dst + at * dst_stride, dst_stride, n);
  }
}

/* Contiguous conversions between f32 and 16-bit floats, which have instructions of their own. */
static bool convert_fast(perigee_tensor *dst, const perigee_tensor *src) {
  size_t n = (size_t)src->numel;
  if (!dst->contiguous || !src->contiguous)
    return false;
  if (src->dtype == PERIGEE_F32 && dst->dtype == PERIGEE_F16)
    perigee__f32_to_f16_array(dst->data, src->data, n);
  else if (src->dtype == PERIGEE_F32 && dst->dtype == PERIGEE_BF16)
    perigee__f32_to_bf16_array(dst->data, src->data, n);
  else if (src->dtype == PERIGEE_F16 && dst->dtype == PERIGEE_F32)
    perigee__f16_to_f32_array(dst->data, src->data, n);
  else if (src->dtype == PERIGEE_BF16 && dst->dtype == PERIGEE_F32)
    perigee__bf16_to_f32_array(dst->data, src->data, n);
  else
    return false;
  return true;
}

int perigee_tensor_copy(perigee_tensor *dst, const perigee_tensor *src) {
  PERIGEE_TRY(perigee__tensor_check_shapes("copy", dst, src));
  const bool same = dst->dtype == src->dtype;
  if (!same && convert_fast(dst, src))
    return 0;
  perigee__iter it;
  char *to, *from;
  perigee__iter_init(&it, dst, src);
  while (perigee__iter_next(&it, &to, &from))
    if (same)
      copy_run(to, it.stride[0], from, it.stride[1], it.count, perigee_dtype_size(dst->dtype));
    else
      convert_run(to, dst->dtype, it.stride[0], from, src->dtype, it.stride[1], it.count);
  return 0;
}

int perigee_tensor_to(const perigee_tensor *tensor, perigee_dtype dtype,
                      perigee_tensor **tensor_p) {
  perigee_tensor *made;
  PERIGEE_TRY(perigee__tensor_create_raw(dtype, tensor->ndim, tensor->shape, &made));
  int rc = perigee_tensor_copy(made, tensor);
  if (rc < 0)
    goto unref_made;
  *tensor_p = made;
  return 0;

unref_made:
  perigee_tensor_unref(made);
  return rc;
}

int perigee_tensor_contiguous(perigee_tensor *tensor, perigee_tensor **tensor_p) {
  if (!tensor->contiguous)
    return perigee_tensor_to(tensor, tensor->dtype, tensor_p);
  *tensor_p = perigee_tensor_ref(tensor);
  return 0;
}

/* ---- single elements ---------------------------------------------------------------------------- */

/* Where element number index is. */
static int locate(const char *what, const perigee_tensor *t, int64_t index, char **at_p) {
  if (index < 0 || index >= t->numel) {
    char text[PERIGEE__DESCRIBE_SIZE];
    return perigee__fail(PERIGEE_ERANGE, "%s: index %" PRId64 " of %s", what, index,
                         perigee_tensor_describe(t, text, sizeof(text)));
  }
  int64_t offset = t->contiguous ? index : 0;
  for (int d = t->ndim - 1; d >= 0 && !t->contiguous; d--) {
    offset += index % t->shape[d] * t->strides[d];
    index /= t->shape[d];
  }
  *at_p = (char *)t->data + offset * (int64_t)perigee_dtype_size(t->dtype);
  return 0;
}

int perigee_tensor_get(const perigee_tensor *tensor, int64_t index, perigee_scalar *value_p) {
  char *at;
  perigee__wide w;
  PERIGEE_TRY(locate("get", tensor, index, &at));
  perigee__wide_load(&w, tensor->dtype, at, 0, 1);
  perigee__wide_to_scalar(&w, 0, value_p);
  return 0;
}

int perigee_tensor_set(perigee_tensor *tensor, int64_t index, const perigee_scalar *value) {
  char *at;
  perigee__wide w;
  PERIGEE_TRY(locate("set", tensor, index, &at));
  PERIGEE_TRY(perigee__wide_from_scalar(&w, value));
  perigee__wide_store(&w, tensor->dtype, at, 0, 1);
  return 0;
}

int perigee_tensor_fill(perigee_tensor *tensor, const perigee_scalar *value) {
  perigee__wide w;
  union {
    double align;
    char bytes[16];
  } element;
  PERIGEE_TRY(perigee__wide_from_scalar(&w, value));
  perigee__wide_store(&w, tensor->dtype, element.bytes, 0, 1);
  perigee__iter it;
  char *at;
  perigee__iter_init(&it, tensor, NULL);
  while (perigee__iter_next(&it, &at, NULL))
    copy_run(at, it.stride[0], element.bytes, 0, it.count, perigee_dtype_size(tensor->dtype));
  return 0;
}
