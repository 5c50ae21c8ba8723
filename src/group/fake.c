#include "group/fake.h"

#include <inttypes.h>
#include <stdlib.h>

#include "base/alloc.h"
#include "base/error.h"
#include "group/work.h"
#include "tensor/copy.h"
#include "tensor/reduce.h"
#include "tensor/tensor.h"

enum {
  CHUNK_ELEMS = 512,
  CHUNK_BYTES = CHUNK_ELEMS * 16
};

typedef struct fake {
  int rank, n;
} fake;

/* ---- reductions -------------------------------------------------------------------------------- */

/* acc := acc op acc op ... , n times, in log2(n) steps. */
static void repeat(const perigee__reduce_plan *plan, void *acc, int n, size_t count) {
  _Alignas(64) char base[CHUNK_BYTES], twin[CHUNK_BYTES];
  size_t bytes = count * perigee__reduce_acc_size(plan);
  perigee__copy(base, acc, bytes);
  for (n--; n > 0; n >>= 1) {
    if (n & 1)
      perigee__reduce_add_acc(plan, acc, base, count);
    perigee__copy(twin, base, bytes);
    perigee__reduce_add_acc(plan, base, twin, count);
  }
}

/* out := the fold of n times the list. out may be one of the list. */
static int reduce_kernel(const fake *f, const perigee_redop *redop, perigee_tensor *const *list,
                         uint32_t k, perigee_tensor *out) {
  perigee__reduce_plan plan;
  perigee_dtype dtype = perigee_tensor_dtype(out);
  PERIGEE_TRY(perigee__reduce_init(&plan, dtype, redop->kind, redop->factor, f->n * (int)k));
  size_t count = (size_t)perigee_tensor_numel(out), size = perigee_dtype_size(dtype);
  _Alignas(64) char acc[CHUNK_BYTES];
  for (size_t at = 0; at < count; at += CHUNK_ELEMS) {
    size_t elems = count - at < CHUNK_ELEMS ? count - at : CHUNK_ELEMS;
    perigee__reduce_load(&plan, acc, (char *)perigee_tensor_data(list[0]) + at * size, elems);
    for (uint32_t i = 1; i < k; i++)
      perigee__reduce_add(&plan, acc, (char *)perigee_tensor_data(list[i]) + at * size, elems);
    repeat(&plan, acc, f->n, elems);
    perigee__reduce_finish(&plan, (char *)perigee_tensor_data(out) + at * size, acc, elems);
  }
  return 0;
}

/* The same with a function of the caller: one call for each contribution but the first. */
static int reduce_custom(const fake *f, perigee_custom_op *custom, perigee_tensor *const *list,
                         uint32_t k, perigee_tensor *out) {
  perigee_tensor *acc = NULL;
  PERIGEE_TRY(perigee_tensor_to(list[0], perigee_tensor_dtype(list[0]), &acc));
  perigee_tensor acc_flat, next;
  int64_t count = perigee_tensor_numel(out);
  perigee__tensor_borrow(&acc_flat, perigee_tensor_dtype(out), count, perigee_tensor_data(acc));
  perigee__error_init(
      perigee__last_error()); /* so that what is there afterwards is the function's */
  perigee__work_callback_enter();
  int rc = 0;
  for (int64_t i = 1; rc == 0 && count > 0 && i < (int64_t)f->n * k; i++) {
    perigee__tensor_borrow(&next, perigee_tensor_dtype(out), count,
                           perigee_tensor_data(list[i % k]));
    rc = custom->reduce(custom, &acc_flat, &next);
  }
  perigee__work_callback_leave();
  if (rc == 0)
    perigee__copy(perigee_tensor_data(out), perigee_tensor_data(acc), perigee_tensor_nbytes(out));
  else if (perigee_last_error()->code >= 0)
    perigee__fail(rc < 0 ? rc : PERIGEE_EINVAL, "the reduce function '%s' returned %d",
                  custom->name != NULL ? custom->name : "?", rc);
  perigee_tensor_unref(acc);
  return rc == 0 ? 0 : perigee_last_error()->code;
}

static int reduce_into(const fake *f, const perigee_redop *redop, perigee_tensor *const *list,
                       uint32_t k, perigee_tensor *out) {
  return redop->kind == PERIGEE_REDOP_CUSTOM ? reduce_custom(f, redop->custom, list, k, out)
                                             : reduce_kernel(f, redop, list, k, out);
}

/* ---- operations -------------------------------------------------------------------------------- */

/* dst := src, which every rank sends. */
static int put(const perigee_request *req, perigee_tensor *dst, const perigee_tensor *src) {
  if (perigee_tensor_numel(dst) != perigee_tensor_numel(src))
    return perigee__fail(
        PERIGEE_ESHAPE, "%s: an output has %" PRId64 " elements, but each fake rank sends %" PRId64,
        perigee_op_name(req->op), perigee_tensor_numel(dst), perigee_tensor_numel(src));
  if (perigee_tensor_data(dst) != perigee_tensor_data(src))
    perigee__copy(perigee_tensor_data(dst), perigee_tensor_data(src), perigee_tensor_nbytes(src));
  return 0;
}

static int do_allreduce(const fake *f, const perigee_request *req) {
  const perigee_tensors *list = &req->in;
  PERIGEE_TRY(reduce_into(f, &req->redop, list->v, list->n, list->v[0]));
  for (uint32_t i = 1; i < list->n; i++)
    PERIGEE_TRY(put(req, list->v[i], list->v[0]));
  return 0;
}

static int do_allreduce_coalesced(const fake *f, const perigee_request *req) {
  for (uint32_t i = 0; i < req->in.n; i++)
    PERIGEE_TRY(reduce_into(f, &req->redop, &req->in.v[i], 1, req->in.v[i]));
  return 0;
}

static int do_broadcast(const perigee_request *req) {
  for (uint32_t i = 1; i < req->in.n; i++)
    PERIGEE_TRY(put(req, req->in.v[i], req->in.v[0]));
  return 0;
}

/* outputs[i][r * k + j] := inputs[j] */
static int do_allgather(const perigee_request *req) {
  for (uint32_t i = 0; i < req->out.n; i++)
    PERIGEE_TRY(put(req, req->out.v[i], req->in.v[i % req->in.n]));
  return 0;
}

static int do_allgather_into(const fake *f, const perigee_request *req) {
  for (uint32_t i = 0; i < req->in.n; i++) {
    size_t bytes = perigee_tensor_nbytes(req->in.v[i]);
    char *out = perigee_tensor_data(req->out.v[i]);
    for (int r = 0; r < f->n; r++, out += bytes)
      if (out != perigee_tensor_data(req->in.v[i]))
        perigee__copy(out, perigee_tensor_data(req->in.v[i]), bytes);
  }
  return 0;
}

static int do_gather(const fake *f, const perigee_request *req) {
  if (f->rank != req->root)
    return 0;
  for (uint32_t i = 0; i < req->out.n; i++)
    PERIGEE_TRY(put(req, req->out.v[i], req->in.v[0]));
  return 0;
}

static int do_reduce_scatter_tensor(const fake *f, const perigee_request *req) {
  for (uint32_t i = 0; i < req->in.n; i++) {
    perigee_tensor mine, *list[] = {&mine};
    size_t bytes = perigee_tensor_nbytes(req->out.v[i]);
    perigee__tensor_borrow(&mine, perigee_tensor_dtype(req->out.v[i]),
                           perigee_tensor_numel(req->out.v[i]),
                           (char *)perigee_tensor_data(req->in.v[i]) + (size_t)f->rank * bytes);
    PERIGEE_TRY(reduce_into(f, &req->redop, list, 1, req->out.v[i]));
  }
  return 0;
}

/* Rows of block r of a tensor cut along dimension 0, and the row it starts at. */
static int64_t block_rows(const perigee_tensor *t, const int64_t *splits, uint32_t nsplits, int n,
                          int r, int64_t *start_p) {
  int64_t rows = perigee_tensor_ndim(t) > 0 ? perigee_tensor_shape(t)[0] : 1, start = 0;
  if (nsplits == 0) {
    *start_p = rows / n * r;
    return rows / n;
  }
  for (int i = 0; i < r; i++)
    start += splits[i];
  *start_p = start;
  return splits[r];
}

static perigee_tensor block_view(const perigee_tensor *t, int64_t start, int64_t rows) {
  int64_t all = perigee_tensor_ndim(t) > 0 ? perigee_tensor_shape(t)[0] : 1;
  int64_t row = all > 0 ? perigee_tensor_numel(t) / all : 0;
  perigee_tensor view;
  perigee__tensor_borrow(&view, perigee_tensor_dtype(t), rows * row,
                         (char *)perigee_tensor_data(t) +
                             (size_t)(start * row) * perigee_dtype_size(perigee_tensor_dtype(t)));
  return view;
}

static int do_alltoall_base(const fake *f, const perigee_request *req) {
  int64_t start,
      rows = block_rows(req->in.v[0], req->in_splits, req->n_in_splits, f->n, f->rank, &start);
  const perigee_tensor mine = block_view(req->in.v[0], start, rows);
  for (int r = 0; r < f->n; r++) {
    rows = block_rows(req->out.v[0], req->out_splits, req->n_out_splits, f->n, r, &start);
    perigee_tensor out = block_view(req->out.v[0], start, rows);
    PERIGEE_TRY(put(req, &out, &mine));
  }
  return 0;
}

static int execute(const fake *f, const perigee_request *req) {
  switch ((perigee_op)req->op) {
  case PERIGEE_OP_ALLREDUCE:
    return do_allreduce(f, req);
  case PERIGEE_OP_ALLREDUCE_COALESCED:
    return do_allreduce_coalesced(f, req);
  case PERIGEE_OP_BROADCAST:
    return do_broadcast(req);
  case PERIGEE_OP_REDUCE:
    return f->rank == req->root ? reduce_into(f, &req->redop, req->in.v, 1, req->in.v[0]) : 0;
  case PERIGEE_OP_ALLGATHER:
    return do_allgather(req);
  case PERIGEE_OP_ALLGATHER_INTO_TENSOR:
  case PERIGEE_OP_ALLGATHER_INTO_TENSOR_COALESCED:
    return do_allgather_into(f, req);
  case PERIGEE_OP_GATHER:
    return do_gather(f, req);
  case PERIGEE_OP_SCATTER: /* only the root knows what it sends */
    return f->rank == req->root ? put(req, req->out.v[0], req->in.v[f->rank]) : 0;
  case PERIGEE_OP_REDUCE_SCATTER:
    return reduce_into(f, &req->redop, &req->in.v[f->rank], 1, req->out.v[0]);
  case PERIGEE_OP_REDUCE_SCATTER_TENSOR:
  case PERIGEE_OP_REDUCE_SCATTER_TENSOR_COALESCED:
    return do_reduce_scatter_tensor(f, req);
  case PERIGEE_OP_ALLTOALL:
    for (int r = 0; r < f->n; r++)
      PERIGEE_TRY(put(req, req->out.v[r], req->in.v[f->rank]));
    return 0;
  case PERIGEE_OP_ALLTOALL_BASE:
    return do_alltoall_base(f, req);
  case PERIGEE_OP_BARRIER:
  case PERIGEE_OP_MONITORED_BARRIER:
  case PERIGEE_OP_SEND:
  case PERIGEE_OP_RECV: /* nobody sends: the buffer stays as it is */
  case PERIGEE_OP_RECV_ANYSOURCE:
  case PERIGEE_OP_COUNT:
    break;
  }
  return 0;
}

/* ---- the backend ------------------------------------------------------------------------------- */

static int fake_open(void *backend, const perigee_layer_info *info, void **self_p) {
  (void)backend;
  fake *f = perigee__calloc(1, sizeof(*f));
  if (f == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory for group %s", info->group_name);
  f->rank = info->rank;
  f->n = info->nranks;
  *self_p = f;
  return 0;
}

static void fake_close(void *self) { free(self); }

static int fake_submit(void *self, const perigee_request *req, perigee_work **work_p) {
  int rc = execute(self, req);
  if (rc < 0)
    return rc;
  *work_p = perigee_work_done();
  return 0;
}

static int fake_run(void *self, const perigee_request *req, perigee_error *error) {
  int rc = execute(self, req);
  if (rc < 0)
    *error = *perigee_last_error();
  return rc;
}

const perigee_backend_ops_v1 perigee__fake_ops = {.size = sizeof(perigee_backend_ops_v1),
                                                  .abi = 1,
                                                  .open = fake_open,
                                                  .close = fake_close,
                                                  .submit = fake_submit,
                                                  .run = fake_run};
