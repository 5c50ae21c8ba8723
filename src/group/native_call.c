/*
 * From a request to collectives: tensors become pointers, lists become several collectives or one of packed tensors.
 *
 * Vocabulary: n ranks; k tensors in a list; count elements of one tensor; block what goes between two ranks.
 * Every rank makes the same number of collectives for one request, or the fingerprints differ at the first that is not
 * common. What a rank cannot do for want of memory it tells the others (the group fails); what fails in a caller's reduce
 * function after the data has come fails here alone.
 */
#include "group/native_call.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "coll/fingerprint.h"
#include "tensor/copy.h"
#include "tensor/reduce.h"

typedef perigee__native_call call_ctx;

/* ---- fingerprints ------------------------------------------------------------------------------ */

perigee__native_print perigee__native_print_start(const call_ctx *x) {
  perigee__native_print print = {0};
  if (!(perigee_op_get(x->req->op)->opts & PERIGEE_OPT_REDOP))
    return print;
  const perigee_redop *redop = &x->req->redop;
  if (redop->kind == PERIGEE_REDOP_CUSTOM) {
    print.hashed = true;
    for (const char *c = redop->custom->name; c != NULL && *c != '\0'; c++)
      print.hash = perigee__hash_mix(print.hash, (unsigned char)*c);
  } else if (redop->kind == PERIGEE_REDOP_PREMUL_SUM) {
    /* Who reduces uses its own factor for all: different ones would not give the same bits everywhere. */
    uint64_t bits;
    memcpy(&bits, &redop->factor, sizeof(bits));
    print.hashed = true;
    print.hash = perigee__hash_mix(print.hash, bits);
  }
  return print;
}

void perigee__native_print_add(perigee__native_print *print, uint64_t count) {
  print->count = count;
  print->hash = perigee__hash_mix(print->hash, count);
  print->parts++;
}

uint64_t perigee__native_print_pack(const call_ctx *x, const perigee__native_print *print,
                                    perigee_dtype dtype) {
  unsigned opts = perigee_op_get(x->req->op)->opts;
  return perigee__fingerprint_pack(
      &(perigee__fingerprint){.op = x->req->op,
                              .dtype = (int)dtype,
                              .redop = opts & PERIGEE_OPT_REDOP ? (int)x->req->redop.kind : -1,
                              .root = opts & PERIGEE_OPT_ROOT ? x->req->root : -1,
                              .count = print->count,
                              .hash = print->hash,
                              .hashed = print->hashed || print->parts > 1});
}

uint64_t perigee__native_print_one(const call_ctx *x, perigee_dtype dtype, uint64_t count) {
  perigee__native_print print = perigee__native_print_start(x);
  perigee__native_print_add(&print, count);
  return perigee__native_print_pack(x, &print, dtype);
}

/* ---- collectives ------------------------------------------------------------------------------- */

perigee__coll_call perigee__native_next(const call_ctx *x, perigee__coll_kind kind,
                                        perigee_dtype dtype, uint64_t fp) {
  const perigee_request *req = x->req;
  return (perigee__coll_call){.kind = kind,
                              .op = req->op,
                              .seq = ++x->native->coll_seq,
                              .shown_seq = req->seq,
                              .fp = fp,
                              .dtype = dtype,
                              .redop = req->redop.kind == PERIGEE_REDOP_CUSTOM ? PERIGEE_REDOP_SUM
                                                                               : req->redop.kind,
                              .factor = req->redop.factor,
                              .ncontrib = x->native->n,
                              .root = req->root,
                              .timeout_ns = x->timeout_ns,
                              .deadline_ns = x->deadline_ns};
}

int perigee__native_do(const call_ctx *x, const perigee__coll_call *call) {
  return perigee__coll_run(x->native->coll, call, x->error);
}

void *perigee__native_room(const call_ctx *x, uint64_t count, uint64_t size) {
  uint64_t bytes;
  void *room = NULL;
  if (!__builtin_mul_overflow(count, size, &bytes) && bytes < PTRDIFF_MAX - 64)
    room = aligned_alloc(64, (bytes / 64 + 1) * 64);
  if (room != NULL)
    return room;
  perigee__error_set(x->error, PERIGEE_ENOMEM,
                     "no memory for %llu temporary elements of %llu bytes",
                     (unsigned long long)count, (unsigned long long)size);
  perigee__native_sign(x->native, x->req->op, x->req->seq, x->error);
  perigee__native_fail(x->native, x->error); /* the others would wait for this rank */
  return NULL;
}

static void copy_to(perigee_tensor *dst, const perigee_tensor *src) {
  if (perigee_tensor_data(dst) != perigee_tensor_data(src))
    perigee__copy(perigee_tensor_data(dst), perigee_tensor_data(src), perigee_tensor_nbytes(src));
}

static perigee__block block_of(const perigee_tensor *t) {
  return (perigee__block){perigee_tensor_data(t), perigee_tensor_nbytes(t)};
}

static uint64_t numel(const perigee_tensor *t) { return (uint64_t)perigee_tensor_numel(t); }

/* ---- reductions -------------------------------------------------------------------------------- */

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
                       (size_t)numel(list->v[0]));
  free(srcs);
  return 0;
}

static int do_allreduce(const call_ctx *x) {
  const perigee_tensors *list = &x->req->in;
  if (x->req->redop.kind == PERIGEE_REDOP_CUSTOM)
    return perigee__native_custom_allreduce(x);
  perigee_tensor *first = list->v[0];
  perigee_dtype dtype = perigee_tensor_dtype(first);
  perigee__native_print print = perigee__native_print_start(x);
  for (uint32_t i = 0; i < list->n; i++)
    perigee__native_print_add(&print, numel(first));
  uint64_t fp = perigee__native_print_pack(x, &print, dtype);
  perigee__coll_call call = perigee__native_next(x, PERIGEE_COLL_ALLREDUCE, dtype, fp);
  call.in = call.out = perigee_tensor_data(first);
  call.count = (size_t)numel(first);
  if (list->n > 1) {
    PERIGEE_TRY(fold_list(x, list, &call.redop));
    call.ncontrib = x->native->n * (int)list->n;
  }
  PERIGEE_TRY(perigee__native_do(x, &call));
  for (uint32_t i = 1; i < list->n; i++)
    copy_to(list->v[i], first);
  return 0;
}

static int do_allreduce_coalesced(const call_ctx *x) {
  const perigee_tensors *list = &x->req->in;
  if (x->req->redop.kind == PERIGEE_REDOP_CUSTOM)
    return perigee__native_custom_allreduce_coalesced(x);
  perigee_dtype dtype = perigee_tensor_dtype(list->v[0]);
  perigee__native_print print = perigee__native_print_start(x);
  uint64_t total = 0;
  for (uint32_t i = 0; i < list->n; i++) {
    perigee__native_print_add(&print, numel(list->v[i]));
    total += numel(list->v[i]);
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

static int do_reduce(const call_ctx *x) {
  if (x->req->redop.kind == PERIGEE_REDOP_CUSTOM)
    return perigee__native_custom_reduce(x);
  const perigee_tensor *t = x->req->in.v[0];
  perigee_dtype dtype = perigee_tensor_dtype(t);
  perigee__coll_call call = perigee__native_next(x, PERIGEE_COLL_REDUCE, dtype,
                                                 perigee__native_print_one(x, dtype, numel(t)));
  call.in = perigee_tensor_data(t);
  call.out = x->native->rank == x->req->root ? perigee_tensor_data(t) : NULL;
  call.count = (size_t)numel(t);
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

static int do_reduce_scatter(const call_ctx *x) {
  perigee__native *native = x->native;
  const perigee_tensors *list = &x->req->in;
  perigee__native_print print = perigee__native_print_start(x);
  bool even = true;
  uint64_t total = 0;
  for (int r = 0; r < native->n; r++) {
    native->blocks[r] = block_of(list->v[r]);
    native->counts[r] = (size_t)numel(list->v[r]);
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

/* The fingerprint of pair i of a request of pairs (out[i], in[i]): exact for one, else a hash of all and of i. */
static uint64_t print_pair(const call_ctx *x, uint32_t i) {
  const perigee_tensors *in = &x->req->in;
  perigee__native_print print = perigee__native_print_start(x);
  for (uint32_t j = 0; j < in->n; j++)
    perigee__native_print_add(&print, numel(in->v[j]));
  if (in->n > 1)
    perigee__native_print_add(&print, i);
  return perigee__native_print_pack(x, &print, perigee_tensor_dtype(in->v[0]));
}

/* One or several. A reduce function that fails on this rank does not keep the others from the rest. */
static int do_reduce_scatter_tensor(const call_ctx *x) {
  perigee__native *native = x->native;
  perigee_error first;
  perigee__error_init(&first);
  for (uint32_t i = 0; i < x->req->in.n; i++) {
    perigee_tensor *out = x->req->out.v[i];
    char *in = perigee_tensor_data(x->req->in.v[i]);
    for (int r = 0; r < native->n; r++) {
      size_t bytes = perigee_tensor_nbytes(out);
      native->blocks[r] = (perigee__block){in + (size_t)r * bytes, bytes};
      native->counts[r] = (size_t)numel(out);
    }
    int rc = reduce_scatter(x, native->blocks, native->counts, out, print_pair(x, i));
    if (rc < 0 && first.code == 0)
      first = *x->error;
    if (rc < 0 && perigee__fate_failed(&native->fate))
      break;
  }
  if (first.code != 0)
    *x->error = first;
  return first.code;
}

/* ---- data moved as it is ----------------------------------------------------------------------- */

static int do_broadcast(const call_ctx *x) {
  const perigee_tensors *list = &x->req->in;
  perigee_tensor *first = list->v[0];
  perigee_dtype dtype = perigee_tensor_dtype(first);
  perigee__coll_call call = perigee__native_next(x, PERIGEE_COLL_BROADCAST, dtype,
                                                 perigee__native_print_one(x, dtype, numel(first)));
  call.out = perigee_tensor_data(first);
  call.bytes = perigee_tensor_nbytes(first);
  PERIGEE_TRY(perigee__native_do(x, &call));
  for (uint32_t i = 1; i < list->n; i++)
    copy_to(list->v[i], first);
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
static int do_allgather(const call_ctx *x) {
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
      native->blocks[r] = block_of(out->v[(uint32_t)r * k + j]);
    call.out_blocks = native->blocks;
    PERIGEE_TRY(perigee__native_do(x, &call));
  }
  for (uint32_t i = row; i < out->n; i++)
    copy_to(out->v[i], out->v[i % row]);
  return 0;
}

/* One or several. */
static int do_allgather_into(const call_ctx *x) {
  perigee__native *native = x->native;
  for (uint32_t i = 0; i < x->req->in.n; i++) {
    const perigee_tensor *in = x->req->in.v[i];
    perigee__coll_call call =
        perigee__native_next(x, PERIGEE_COLL_ALLGATHER, perigee_tensor_dtype(in), print_pair(x, i));
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

static int do_gather(const call_ctx *x) {
  perigee__native *native = x->native;
  const perigee_tensor *in = x->req->in.v[0];
  perigee_dtype dtype = perigee_tensor_dtype(in);
  perigee__coll_call call =
      perigee__native_next(x, PERIGEE_COLL_GATHER, dtype, print_any(x, dtype, 0, 1));
  call.in = perigee_tensor_data(in);
  call.in_bytes = perigee_tensor_nbytes(in);
  if (native->rank == x->req->root) {
    for (int r = 0; r < native->n; r++)
      native->blocks[r] = block_of(x->req->out.v[r]);
    call.out_blocks = native->blocks;
  }
  return perigee__native_do(x, &call);
}

static int do_scatter(const call_ctx *x) {
  perigee__native *native = x->native;
  const perigee_tensor *out = x->req->out.v[0];
  perigee_dtype dtype = perigee_tensor_dtype(out);
  perigee__coll_call call =
      perigee__native_next(x, PERIGEE_COLL_SCATTER, dtype, print_any(x, dtype, 0, 1));
  call.out = perigee_tensor_data(out);
  call.out_bytes = perigee_tensor_nbytes(out);
  if (native->rank == x->req->root) {
    for (int r = 0; r < native->n; r++)
      native->blocks[r] = block_of(x->req->in.v[r]);
    call.in_blocks = native->blocks;
  }
  return perigee__native_do(x, &call);
}

static int do_alltoall(const call_ctx *x) {
  perigee__native *native = x->native;
  perigee_dtype dtype = perigee_tensor_dtype(x->req->in.v[0]);
  perigee__block *out = native->blocks, *in = native->blocks + native->n;
  for (int r = 0; r < native->n; r++) {
    out[r] = block_of(x->req->out.v[r]);
    in[r] = block_of(x->req->in.v[r]);
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

static int do_alltoall_base(const call_ctx *x) {
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

/* ---- barriers ---------------------------------------------------------------------------------- */

static uint64_t print_bare(const call_ctx *x) {
  return perigee__fingerprint_pack(
      &(perigee__fingerprint){.op = x->req->op, .dtype = -1, .redop = -1, .root = -1});
}

static int do_barrier(const call_ctx *x) {
  perigee__coll_call call =
      perigee__native_next(x, PERIGEE_COLL_BARRIER, PERIGEE_U8, print_bare(x));
  return perigee__native_do(x, &call);
}

/* The ranks that did not come, into the error's list: who has not entered this collective, or does not answer. */
static void find_missing(const call_ctx *x, const perigee__coll_call *call) {
  perigee_error *error = x->error;
  for (int r = 0; r < x->native->n; r++) {
    uint64_t seen = x->native->seen[r];
    if (r != x->native->rank && (seen < call->seq || seen == UINT64_MAX))
      perigee__error_add_rank(error, r);
  }
  if (error->nranks > 1 && !x->req->wait_all_ranks)
    error->nranks = 1;
}

static int do_monitored_barrier(const call_ctx *x) {
  perigee__coll_call call =
      perigee__native_next(x, PERIGEE_COLL_BARRIER, PERIGEE_U8, print_bare(x));
  for (int r = 0; r < x->native->n; r++)
    x->native->seen[r] = call.seq;
  call.peer_seen = x->native->seen;
  int rc = perigee__native_do(x, &call);
  if (rc != PERIGEE_ETIMEDOUT)
    return rc;
  find_missing(x, &call);
  char ranks[256] = "";
  size_t used = 0;
  for (int i = 0; i < x->error->nranks && used < sizeof(ranks); i++)
    used += (size_t)snprintf(ranks + used, sizeof(ranks) - used, "%s%d", i > 0 ? ", " : "",
                             x->error->ranks[i]);
  snprintf(x->error->message, sizeof(x->error->message),
           "rank(s) %s failed to pass monitored_barrier in %.1f s", ranks,
           (double)x->timeout_ns / 1e9);
  return rc;
}

/* ---- all of them ------------------------------------------------------------------------------- */

static int dispatch(const call_ctx *x) {
  switch ((perigee_op)x->req->op) {
  case PERIGEE_OP_ALLREDUCE:
    return do_allreduce(x);
  case PERIGEE_OP_ALLREDUCE_COALESCED:
    return do_allreduce_coalesced(x);
  case PERIGEE_OP_BROADCAST:
    return do_broadcast(x);
  case PERIGEE_OP_REDUCE:
    return do_reduce(x);
  case PERIGEE_OP_ALLGATHER:
    return do_allgather(x);
  case PERIGEE_OP_ALLGATHER_INTO_TENSOR:
  case PERIGEE_OP_ALLGATHER_INTO_TENSOR_COALESCED:
    return do_allgather_into(x);
  case PERIGEE_OP_GATHER:
    return do_gather(x);
  case PERIGEE_OP_SCATTER:
    return do_scatter(x);
  case PERIGEE_OP_REDUCE_SCATTER:
    return do_reduce_scatter(x);
  case PERIGEE_OP_REDUCE_SCATTER_TENSOR:
  case PERIGEE_OP_REDUCE_SCATTER_TENSOR_COALESCED:
    return do_reduce_scatter_tensor(x);
  case PERIGEE_OP_ALLTOALL:
    return do_alltoall(x);
  case PERIGEE_OP_ALLTOALL_BASE:
    return do_alltoall_base(x);
  case PERIGEE_OP_BARRIER:
    return do_barrier(x);
  case PERIGEE_OP_MONITORED_BARRIER:
    return do_monitored_barrier(x);
  case PERIGEE_OP_SEND:
  case PERIGEE_OP_RECV:
  case PERIGEE_OP_RECV_ANYSOURCE:
  case PERIGEE_OP_COUNT:
    break;
  }
  perigee__error_set(x->error, PERIGEE_EBUG, "%s is no collective", perigee_op_name(x->req->op));
  return x->error->code;
}

int perigee__native_execute(perigee__native *native, const perigee_request *req,
                            int64_t deadline_ns, perigee_error *error) {
  const call_ctx x = {.native = native,
                      .req = req,
                      .deadline_ns = deadline_ns,
                      .timeout_ns =
                          req->timeout_ns == PERIGEE_TIMEOUT_DEFAULT
                              ? atomic_load_explicit(&native->timeout_ns, memory_order_relaxed)
                              : req->timeout_ns,
                      .error = error};
  if (PERIGEE_UNLIKELY(perigee__fate_failed(&native->fate))) {
    /* It was waiting for its turn when the group failed. */
    perigee__fate_error(&native->fate, req->op, req->seq, true, error);
    return perigee__native_sign(native, req->op, req->seq, error);
  }
  return dispatch(&x);
}
