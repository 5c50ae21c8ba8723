/*
 * Reductions by a function of the caller: the contributions of all ranks are brought together as they are, and folded by
 * who needs the result, in rank order, chunk by chunk. It is called on plain tensors over the temporary, which live on
 * this stack: a function may look at them while it runs and no longer.
 *
 * When the function fails the operation fails on this rank alone: its data has gone out and the others have what they need.
 * The caller's tensors are then as they were.
 */
#include <stdlib.h>

#include "base/error.h"
#include "group/native_call.h"
#include "tensor/copy.h"
#include "tensor/tensor.h"

enum {
  CHUNK_ELEMS = 1 << 18
};

typedef perigee__native_call call_ctx;

/* The error of a function that returned rc. */
static int function_failed(const call_ctx *x, const perigee_custom_op *custom, int rc) {
  perigee_error *error = x->error;
  *error = *perigee_last_error();
  if (error->code >= 0) /* it said nothing */
    perigee__error_set(error, rc < 0 ? rc : PERIGEE_EINVAL, "the reduce function '%s' returned %d",
                       custom->name != NULL ? custom->name : "?", rc);
  return perigee__native_sign(x->native, x->req->op, x->req->seq, error);
}

/* blocks: nblocks of count elements each, one after another. The first becomes the fold of all. */
static int fold(const call_ctx *x, perigee_dtype dtype, char *blocks, int nblocks, size_t count) {
  perigee_custom_op *custom = x->req->redop.custom;
  size_t size = perigee_dtype_size(dtype);
  int rc = 0;
  perigee__error_init(
      perigee__last_error()); /* so that what is there afterwards is the function's */
  perigee__work_callback_enter();
  for (size_t at = 0; rc == 0 && at < count; at += CHUNK_ELEMS) {
    size_t elems = count - at < CHUNK_ELEMS ? count - at : CHUNK_ELEMS;
    perigee_tensor acc, next;
    perigee__tensor_borrow(&acc, dtype, (int64_t)elems, blocks + at * size);
    for (int r = 1; rc == 0 && r < nblocks; r++) {
      perigee__tensor_borrow(&next, dtype, (int64_t)elems,
                             blocks + ((size_t)r * count + at) * size);
      rc = custom->reduce(custom, &acc, &next);
    }
  }
  perigee__work_callback_leave();
  return rc == 0 ? 0 : function_failed(x, custom, rc);
}

/* All ranks' `in` (count elements), one after another, into gathered. */
static int gather_all(const call_ctx *x, perigee_dtype dtype, uint64_t fp, const void *in,
                      size_t count, char *gathered) {
  perigee__native *native = x->native;
  perigee__coll_call call = perigee__native_next(x, PERIGEE_COLL_ALLGATHER, dtype, fp);
  call.in = in;
  call.in_bytes = count * perigee_dtype_size(dtype);
  for (int r = 0; r < native->n; r++)
    native->blocks[r] = (perigee__block){gathered + (size_t)r * call.in_bytes, call.in_bytes};
  call.out_blocks = native->blocks;
  return perigee__native_do(x, &call);
}

static char *pack(const perigee_tensors *list, char *to) {
  for (uint32_t i = 0; i < list->n; i++) {
    size_t bytes = perigee_tensor_nbytes(list->v[i]);
    perigee__copy(to, perigee_tensor_data(list->v[i]), bytes);
    to += bytes;
  }
  return to;
}

/*
 * The contributions are folded in the order (rank, place in the list), each of them on every rank, so that a function that
 * fails on one rank spoils nothing elsewhere. One extra block at the end holds this rank's packed list.
 */
int perigee__native_custom_allreduce(const call_ctx *x) {
  const perigee_tensors *list = &x->req->in;
  perigee_dtype dtype = perigee_tensor_dtype(list->v[0]);
  size_t count = (size_t)perigee_tensor_numel(list->v[0]),
         bytes = perigee_tensor_nbytes(list->v[0]);
  size_t n = (size_t)x->native->n, k = list->n;
  perigee__native_print print = perigee__native_print_start(x);
  for (size_t i = 0; i < k; i++)
    perigee__native_print_add(&print, count);
  uint64_t fp = perigee__native_print_pack(x, &print, dtype);
  char *room = perigee__native_room(x, (k == 1 ? n : n + 1) * k, bytes);
  if (room == NULL)
    return x->error->code;
  const void *mine = perigee_tensor_data(list->v[0]);
  if (k > 1) {
    mine = room + n * k * bytes;
    pack(list, room + n * k * bytes);
  }
  int rc = gather_all(x, dtype, fp, mine, k * count, room);
  if (rc == 0)
    rc = fold(x, dtype, room, (int)(n * k), count);
  for (size_t i = 0; rc == 0 && i < k; i++)
    perigee__copy(perigee_tensor_data(list->v[i]), room, bytes);
  free(room);
  return rc;
}

int perigee__native_custom_allreduce_coalesced(const call_ctx *x) {
  const perigee_tensors *list = &x->req->in;
  perigee_dtype dtype = perigee_tensor_dtype(list->v[0]);
  perigee__native_print print = perigee__native_print_start(x);
  size_t total = 0, n = (size_t)x->native->n;
  for (uint32_t i = 0; i < list->n; i++) {
    perigee__native_print_add(&print, (uint64_t)perigee_tensor_numel(list->v[i]));
    total += (size_t)perigee_tensor_numel(list->v[i]);
  }
  uint64_t fp = perigee__native_print_pack(x, &print, dtype);
  size_t bytes = total * perigee_dtype_size(dtype);
  char *room = perigee__native_room(x, n + 1, bytes), *at = room;
  if (room == NULL)
    return x->error->code;
  pack(list, room + n * bytes);
  int rc = gather_all(x, dtype, fp, room + n * bytes, total, room);
  if (rc == 0)
    rc = fold(x, dtype, room, (int)n, total);
  for (uint32_t i = 0; rc == 0 && i < list->n; at += perigee_tensor_nbytes(list->v[i++]))
    perigee__copy(perigee_tensor_data(list->v[i]), at, perigee_tensor_nbytes(list->v[i]));
  free(room);
  return rc;
}

int perigee__native_custom_reduce(const call_ctx *x) {
  perigee__native *native = x->native;
  const perigee_tensor *t = x->req->in.v[0];
  perigee_dtype dtype = perigee_tensor_dtype(t);
  size_t count = (size_t)perigee_tensor_numel(t), bytes = perigee_tensor_nbytes(t);
  perigee__coll_call call = perigee__native_next(
      x, PERIGEE_COLL_GATHER, dtype, perigee__native_print_one(x, dtype, (uint64_t)count));
  call.in = perigee_tensor_data(t);
  call.in_bytes = bytes;
  if (native->rank != x->req->root)
    return perigee__native_do(x, &call);
  char *room = perigee__native_room(x, (uint64_t)native->n, bytes);
  if (room == NULL)
    return x->error->code;
  for (int r = 0; r < native->n; r++)
    native->blocks[r] = (perigee__block){room + (size_t)r * bytes, bytes};
  call.out_blocks = native->blocks;
  int rc = perigee__native_do(x, &call);
  if (rc == 0)
    rc = fold(x, dtype, room, native->n, count);
  if (rc == 0)
    perigee__copy(perigee_tensor_data(t), room, bytes);
  free(room);
  return rc;
}

int perigee__native_custom_reduce_scatter(const call_ctx *x, const perigee__block *in_blocks,
                                          perigee_tensor *out, uint64_t fp) {
  perigee__native *native = x->native;
  perigee_dtype dtype = perigee_tensor_dtype(out);
  size_t bytes = perigee_tensor_nbytes(out);
  char *room = perigee__native_room(x, (uint64_t)native->n, bytes);
  if (room == NULL)
    return x->error->code;
  perigee__block *out_blocks = native->blocks + native->n;
  for (int r = 0; r < native->n; r++)
    out_blocks[r] = (perigee__block){room + (size_t)r * bytes, bytes};
  perigee__coll_call call = perigee__native_next(x, PERIGEE_COLL_ALLTOALL, dtype, fp);
  call.in_blocks = in_blocks;
  call.out_blocks = out_blocks;
  int rc = perigee__native_do(x, &call);
  if (rc == 0)
    rc = fold(x, dtype, room, native->n, (size_t)perigee_tensor_numel(out));
  if (rc == 0)
    perigee__copy(perigee_tensor_data(out), room, bytes);
  free(room);
  return rc;
}
