/* Requests that move data as it is. */
#include "group/native_call.h"

typedef perigee__native_call call_ctx;

int perigee__native_broadcast(const call_ctx *x) {
  const perigee_tensors *list = &x->req->in;
  perigee_tensor *first = list->v[0];
  perigee_dtype dtype = perigee_tensor_dtype(first);
  perigee__coll_call call =
      perigee__native_next(x, PERIGEE_COLL_BROADCAST, dtype,
                           perigee__native_print_one(x, dtype, perigee__native_numel(first)));
  call.out = perigee_tensor_data(first);
  call.bytes = perigee_tensor_nbytes(first);
  PERIGEE_TRY(perigee__native_do(x, &call));
  for (uint32_t i = 1; i < list->n; i++)
    perigee__native_copy(list->v[i], first);
  return 0;
}

/* The fingerprint of an operation whose blocks may have any size on any rank. part, of parts: when it takes several. */
static uint64_t print_any(const call_ctx *x, perigee_dtype dtype, uint32_t part, uint32_t parts) {
  perigee__native_print print = {0};
  if (parts > 1) {
    perigee__native_print_add(&print, parts);
    perigee__native_print_add(&print, part);
  }
  return perigee__native_print_pack(x, &print, dtype);
}

/* outputs[i][r * k + j] is input j of rank r: one collective for each j, into the first row. */
int perigee__native_allgather(const call_ctx *x) {
  perigee__native *native = x->native;
  const perigee_tensors *in = &x->req->in, *out = &x->req->out;
  perigee_dtype dtype = perigee_tensor_dtype(in->v[0]);
  uint32_t k = in->n, row = (uint32_t)native->n * k;
  for (uint32_t j = 0; j < k; j++) {
    perigee__coll_call call =
        perigee__native_next(x, PERIGEE_COLL_ALLGATHER, dtype, print_any(x, dtype, j, k));
    call.in = perigee_tensor_data(in->v[j]);
    call.in_bytes = perigee_tensor_nbytes(in->v[j]);
    for (int r = 0; r < native->n; r++)
      native->blocks[r] = perigee__native_block(out->v[(uint32_t)r * k + j]);
    call.out_blocks = native->blocks;
    PERIGEE_TRY(perigee__native_do(x, &call));
  }
  for (uint32_t i = row; i < out->n; i++)
    perigee__native_copy(out->v[i], out->v[i % row]);
  return 0;
}

/* One or several. */
int perigee__native_allgather_into(const call_ctx *x) {
  perigee__native *native = x->native;
  for (uint32_t i = 0; i < x->req->in.n; i++) {
    const perigee_tensor *in = x->req->in.v[i];
    perigee__coll_call call = perigee__native_next(
        x, PERIGEE_COLL_ALLGATHER, perigee_tensor_dtype(in), perigee__native_print_pair(x, i));
    call.in = perigee_tensor_data(in);
    call.in_bytes = perigee_tensor_nbytes(in);
    char *out = perigee_tensor_data(x->req->out.v[i]);
    for (int r = 0; r < native->n; r++)
      native->blocks[r] = (perigee__block){out + (size_t)r * call.in_bytes, call.in_bytes};
    call.out_blocks = native->blocks;
    PERIGEE_TRY(perigee__native_do(x, &call));
  }
  return 0;
}

int perigee__native_gather(const call_ctx *x) {
  perigee__native *native = x->native;
  const perigee_tensor *in = x->req->in.v[0];
  perigee_dtype dtype = perigee_tensor_dtype(in);
  perigee__coll_call call =
      perigee__native_next(x, PERIGEE_COLL_GATHER, dtype, print_any(x, dtype, 0, 1));
  call.in = perigee_tensor_data(in);
  call.in_bytes = perigee_tensor_nbytes(in);
  if (native->rank == x->req->root) {
    for (int r = 0; r < native->n; r++)
      native->blocks[r] = perigee__native_block(x->req->out.v[r]);
    call.out_blocks = native->blocks;
  }
  return perigee__native_do(x, &call);
}

int perigee__native_scatter(const call_ctx *x) {
  perigee__native *native = x->native;
  const perigee_tensor *out = x->req->out.v[0];
  perigee_dtype dtype = perigee_tensor_dtype(out);
  perigee__coll_call call =
      perigee__native_next(x, PERIGEE_COLL_SCATTER, dtype, print_any(x, dtype, 0, 1));
  call.out = perigee_tensor_data(out);
  call.out_bytes = perigee_tensor_nbytes(out);
  if (native->rank == x->req->root) {
    for (int r = 0; r < native->n; r++)
      native->blocks[r] = perigee__native_block(x->req->in.v[r]);
    call.in_blocks = native->blocks;
  }
  return perigee__native_do(x, &call);
}

int perigee__native_alltoall(const call_ctx *x) {
  perigee__native *native = x->native;
  perigee_dtype dtype = perigee_tensor_dtype(x->req->in.v[0]);
  perigee__block *out = native->blocks, *in = native->blocks + native->n;
  for (int r = 0; r < native->n; r++) {
    out[r] = perigee__native_block(x->req->out.v[r]);
    in[r] = perigee__native_block(x->req->in.v[r]);
  }
  perigee__coll_call call =
      perigee__native_next(x, PERIGEE_COLL_ALLTOALL, dtype, print_any(x, dtype, 0, 1));
  call.in_blocks = in;
  call.out_blocks = out;
  return perigee__native_do(x, &call);
}

/* Cut a tensor along dimension 0 into n blocks: rows as given, or even. */
static void cut(const perigee_tensor *t, const int64_t *splits, int n, perigee__block *blocks) {
  size_t rows = perigee_tensor_ndim(t) > 0 ? (size_t)perigee_tensor_shape(t)[0] : 1;
  size_t row_bytes = rows > 0 ? perigee_tensor_nbytes(t) / rows : 0;
  char *at = perigee_tensor_data(t);
  for (int r = 0; r < n; r++) {
    size_t bytes = (splits != NULL ? (size_t)splits[r] : rows / (size_t)n) * row_bytes;
    blocks[r] = (perigee__block){at, bytes};
    at += bytes;
  }
}

int perigee__native_alltoall_base(const call_ctx *x) {
  const perigee_request *req = x->req;
  perigee__native *native = x->native;
  perigee_dtype dtype = perigee_tensor_dtype(req->in.v[0]);
  perigee__block *out = native->blocks, *in = native->blocks + native->n;
  cut(req->out.v[0], req->n_out_splits > 0 ? req->out_splits : NULL, native->n, out);
  cut(req->in.v[0], req->n_in_splits > 0 ? req->in_splits : NULL, native->n, in);
  perigee__coll_call call =
      perigee__native_next(x, PERIGEE_COLL_ALLTOALL, dtype, print_any(x, dtype, 0, 1));
  call.in_blocks = in;
  call.out_blocks = out;
  return perigee__native_do(x, &call);
}
