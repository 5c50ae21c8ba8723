/* Requests that reduce. Those with a reduce function of the caller go on in native_custom.c. */
#include <stdlib.h>

#include "base/error.h"
#include "group/native_call.h"
#include "tensor/copy.h"
#include "tensor/reduce.h"

typedef perigee__native_call call_ctx;

/* list[0] := the fold of the whole list, without what the ranks' reduction does at its end. kind: how the ranks go on. */
static int fold_list(const call_ctx *x, const perigee_tensors *list, perigee_redop_kind *kind) {
  const perigee_redop *redop = &x->req->redop;
  perigee_redop_kind local = redop->kind == PERIGEE_REDOP_AVG ? PERIGEE_REDOP_SUM : redop->kind;
  *kind = redop->kind == PERIGEE_REDOP_PREMUL_SUM ? PERIGEE_REDOP_SUM : redop->kind;
  perigee__reduce_plan plan;
  if (perigee__reduce_init(&plan, perigee_tensor_dtype(list->v[0]), local, redop->factor, 1) < 0) {
    *x->error = *perigee_last_error(); /* cannot be: the request was checked */
    perigee__native_fail(x->native, x->error);
    return x->error->code;
  }
  const void **srcs = perigee__native_room(x, list->n, sizeof(void *));
  if (srcs == NULL)
    return x->error->code;
  for (uint32_t i = 0; i < list->n; i++)
    srcs[i] = perigee_tensor_data(list->v[i]);
  perigee__reduce_nary(&plan, perigee_tensor_data(list->v[0]), srcs, (int)list->n,
                       (size_t)perigee__native_numel(list->v[0]));
  free(srcs);
  return 0;
}

int perigee__native_allreduce(const call_ctx *x) {
  const perigee_tensors *list = &x->req->in;
  if (x->req->redop.kind == PERIGEE_REDOP_CUSTOM)
    return perigee__native_custom_allreduce(x);
  perigee_tensor *first = list->v[0];
  perigee_dtype dtype = perigee_tensor_dtype(first);
  perigee__native_print print = perigee__native_print_start(x);
  for (uint32_t i = 0; i < list->n; i++)
    perigee__native_print_add(&print, perigee__native_numel(first));
  uint64_t fp = perigee__native_print_pack(x, &print, dtype);
  perigee__coll_call call = perigee__native_next(x, PERIGEE_COLL_ALLREDUCE, dtype, fp);
  call.in = call.out = perigee_tensor_data(first);
  call.count = (size_t)perigee__native_numel(first);
  if (list->n > 1) {
    PERIGEE_TRY(fold_list(x, list, &call.redop));
    call.ncontrib = x->native->n * (int)list->n;
  }
  PERIGEE_TRY(perigee__native_do(x, &call));
  for (uint32_t i = 1; i < list->n; i++)
    perigee__native_copy(list->v[i], first);
  return 0;
}

int perigee__native_allreduce_coalesced(const call_ctx *x) {
  const perigee_tensors *list = &x->req->in;
  if (x->req->redop.kind == PERIGEE_REDOP_CUSTOM)
    return perigee__native_custom_allreduce_coalesced(x);
  perigee_dtype dtype = perigee_tensor_dtype(list->v[0]);
  perigee__native_print print = perigee__native_print_start(x);
  uint64_t total = 0;
  for (uint32_t i = 0; i < list->n; i++) {
    perigee__native_print_add(&print, perigee__native_numel(list->v[i]));
    total += perigee__native_numel(list->v[i]);
  }
  uint64_t fp = perigee__native_print_pack(x, &print, dtype);
  perigee__coll_call call = perigee__native_next(x, PERIGEE_COLL_ALLREDUCE, dtype, fp);
  call.count = (size_t)total;
  if (list->n == 1) {
    call.in = call.out = perigee_tensor_data(list->v[0]);
    return perigee__native_do(x, &call);
  }
  char *packed = perigee__native_room(x, total, perigee_dtype_size(dtype)), *at = packed;
  if (packed == NULL)
    return x->error->code;
  for (uint32_t i = 0; i < list->n; at += perigee_tensor_nbytes(list->v[i++]))
    perigee__copy(at, perigee_tensor_data(list->v[i]), perigee_tensor_nbytes(list->v[i]));
  call.in = call.out = packed;
  int rc = perigee__native_do(x, &call);
  at = packed;
  for (uint32_t i = 0; rc == 0 && i < list->n; at += perigee_tensor_nbytes(list->v[i++]))
    perigee__copy(perigee_tensor_data(list->v[i]), at, perigee_tensor_nbytes(list->v[i]));
  free(packed);
  return rc;
}

int perigee__native_reduce(const call_ctx *x) {
  if (x->req->redop.kind == PERIGEE_REDOP_CUSTOM)
    return perigee__native_custom_reduce(x);
  const perigee_tensor *t = x->req->in.v[0];
  perigee_dtype dtype = perigee_tensor_dtype(t);
  perigee__coll_call call = perigee__native_next(
      x, PERIGEE_COLL_REDUCE, dtype, perigee__native_print_one(x, dtype, perigee__native_numel(t)));
  call.in = perigee_tensor_data(t);
  call.out = x->native->rank == x->req->root ? perigee_tensor_data(t) : NULL;
  call.count = (size_t)perigee__native_numel(t);
  return perigee__native_do(x, &call);
}

static int reduce_scatter(const call_ctx *x, const perigee__block *in_blocks, const size_t *counts,
                          perigee_tensor *out, uint64_t fp) {
  if (x->req->redop.kind == PERIGEE_REDOP_CUSTOM)
    return perigee__native_custom_reduce_scatter(x, in_blocks, out, fp);
  perigee__coll_call call =
      perigee__native_next(x, PERIGEE_COLL_REDUCE_SCATTER, perigee_tensor_dtype(out), fp);
  call.in_blocks = in_blocks;
  call.counts = counts;
  call.out = perigee_tensor_data(out);
  return perigee__native_do(x, &call);
}

int perigee__native_reduce_scatter(const call_ctx *x) {
  perigee__native *native = x->native;
  const perigee_tensors *list = &x->req->in;
  perigee__native_print print = perigee__native_print_start(x);
  bool even = true;
  uint64_t total = 0;
  for (int r = 0; r < native->n; r++) {
    native->blocks[r] = perigee__native_block(list->v[r]);
    native->counts[r] = (size_t)perigee__native_numel(list->v[r]);
    even = even && native->counts[r] == native->counts[0];
    total += native->counts[r];
  }
  if (even)
    perigee__native_print_add(&print, total);
  for (int r = 0; !even && r < native->n; r++)
    perigee__native_print_add(&print, native->counts[r]);
  perigee_tensor *out = x->req->out.v[0];
  return reduce_scatter(x, native->blocks, native->counts, out,
                        perigee__native_print_pack(x, &print, perigee_tensor_dtype(out)));
}

/* One or several. A reduce function that fails on this rank does not keep the others from the rest. */
int perigee__native_reduce_scatter_tensor(const call_ctx *x) {
  perigee__native *native = x->native;
  perigee_error first;
  perigee__error_init(&first);
  for (uint32_t i = 0; i < x->req->in.n; i++) {
    perigee_tensor *out = x->req->out.v[i];
    char *in = perigee_tensor_data(x->req->in.v[i]);
    for (int r = 0; r < native->n; r++) {
      size_t bytes = perigee_tensor_nbytes(out);
      native->blocks[r] = (perigee__block){in + (size_t)r * bytes, bytes};
      native->counts[r] = (size_t)perigee__native_numel(out);
    }
    int rc =
        reduce_scatter(x, native->blocks, native->counts, out, perigee__native_print_pair(x, i));
    if (rc < 0 && first.code == 0)
      first = *x->error;
    if (rc < 0 && perigee__fate_failed(&native->fate))
      break;
  }
  if (first.code != 0)
    *x->error = first;
  return first.code;
}
