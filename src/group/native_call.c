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

uint64_t perigee__native_print_pair(const call_ctx *x, uint32_t i) {
  const perigee_tensors *in = &x->req->in;
  perigee__native_print print = perigee__native_print_start(x);
  for (uint32_t j = 0; j < in->n; j++)
    perigee__native_print_add(&print, perigee__native_numel(in->v[j]));
  if (in->n > 1)
    perigee__native_print_add(&print, i);
  return perigee__native_print_pack(x, &print, perigee_tensor_dtype(in->v[0]));
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
    return perigee__native_allreduce(x);
  case PERIGEE_OP_ALLREDUCE_COALESCED:
    return perigee__native_allreduce_coalesced(x);
  case PERIGEE_OP_BROADCAST:
    return perigee__native_broadcast(x);
  case PERIGEE_OP_REDUCE:
    return perigee__native_reduce(x);
  case PERIGEE_OP_ALLGATHER:
    return perigee__native_allgather(x);
  case PERIGEE_OP_ALLGATHER_INTO_TENSOR:
  case PERIGEE_OP_ALLGATHER_INTO_TENSOR_COALESCED:
    return perigee__native_allgather_into(x);
  case PERIGEE_OP_GATHER:
    return perigee__native_gather(x);
  case PERIGEE_OP_SCATTER:
    return perigee__native_scatter(x);
  case PERIGEE_OP_REDUCE_SCATTER:
    return perigee__native_reduce_scatter(x);
  case PERIGEE_OP_REDUCE_SCATTER_TENSOR:
  case PERIGEE_OP_REDUCE_SCATTER_TENSOR_COALESCED:
    return perigee__native_reduce_scatter_tensor(x);
  case PERIGEE_OP_ALLTOALL:
    return perigee__native_alltoall(x);
  case PERIGEE_OP_ALLTOALL_BASE:
    return perigee__native_alltoall_base(x);
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
