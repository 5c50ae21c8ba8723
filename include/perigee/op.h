/*
 * The operation table: one row per operation of a process group, and the request that carries a call.
 *
 * Everything that knows operations is made from these rows: the C entry points, the trampoline, the Lua
 * methods, the check of the options, the recorder's names, the documentation and the conformance tests.
 *
 * OUT and IN give the canonical argument form:
 *   NONE  no tensors          ONE   one tensor
 *   LIST  a list of tensors   LISTS a list of lists (rows), one list per input tensor
 *   INPLACE (as IN) a list that is both input and output; OUT is then NONE
 * OPTS are the options the operation takes, as bits; SPLITS, PEER and TAG are positional arguments.
 * ALIASES: names also accepted for overrides and method calls, separated by blanks.
 */
#ifndef PERIGEE_OP_H
#define PERIGEE_OP_H

#include <stdbool.h>
#include <stdint.h>

#include "export.h"
#include "tensor.h"

enum { /* OPTS bits */
  PERIGEE_OPT_TIMEOUT = 1 << 0,
  PERIGEE_OPT_REDOP = 1 << 1,
  PERIGEE_OPT_ROOT = 1 << 2,
  PERIGEE_OPT_WAIT_ALL = 1 << 3, /* wait_all_ranks of monitored_barrier */
  PERIGEE_OPT_SPLITS = 1 << 4,   /* output splits, input splits */
  PERIGEE_OPT_DST = 1 << 5,      /* positional peer of send */
  PERIGEE_OPT_SRC = 1 << 6,      /* positional peer of recv */
  PERIGEE_OPT_TAG = 1 << 7
};

typedef enum perigee_form {
  PERIGEE_FORM_NONE,
  PERIGEE_FORM_ONE,
  PERIGEE_FORM_LIST,
  PERIGEE_FORM_LISTS,
  PERIGEE_FORM_INPLACE
} perigee_form;

#define PERIGEE__T PERIGEE_OPT_TIMEOUT

/* Ids are part of the wire format (fingerprint): never renumber, append only.
 * XX(id, NAME, name, OUT, IN, OPTS, ALIASES) */
#define PERIGEE_OP_MAP(XX)                                                                         \
  XX(0, ALLREDUCE, allreduce, NONE, INPLACE, PERIGEE__T | PERIGEE_OPT_REDOP, "all_reduce")         \
  XX(1, ALLREDUCE_COALESCED, allreduce_coalesced, NONE, INPLACE, PERIGEE__T | PERIGEE_OPT_REDOP,   \
     "")                                                                                           \
  XX(2, BROADCAST, broadcast, NONE, INPLACE, PERIGEE__T | PERIGEE_OPT_ROOT, "")                    \
  XX(3, REDUCE, reduce, NONE, INPLACE, PERIGEE__T | PERIGEE_OPT_ROOT | PERIGEE_OPT_REDOP, "")      \
  XX(4, ALLGATHER, allgather, LISTS, LIST, PERIGEE__T, "all_gather")                               \
  XX(5, ALLGATHER_INTO_TENSOR, allgather_into_tensor, ONE, ONE, PERIGEE__T,                        \
     "all_gather_single _allgather_base")                                                          \
  XX(6, ALLGATHER_INTO_TENSOR_COALESCED, allgather_into_tensor_coalesced, LIST, LIST, PERIGEE__T,  \
     "all_gather_single_coalesced")                                                                \
  XX(7, GATHER, gather, LISTS, LIST, PERIGEE__T | PERIGEE_OPT_ROOT, "")                            \
  XX(8, SCATTER, scatter, LIST, LISTS, PERIGEE__T | PERIGEE_OPT_ROOT, "")                          \
  XX(9, REDUCE_SCATTER, reduce_scatter, LIST, LISTS, PERIGEE__T | PERIGEE_OPT_REDOP, "")           \
  XX(10, REDUCE_SCATTER_TENSOR, reduce_scatter_tensor, ONE, ONE, PERIGEE__T | PERIGEE_OPT_REDOP,   \
     "reduce_scatter_single _reduce_scatter_base")                                                 \
  XX(11, REDUCE_SCATTER_TENSOR_COALESCED, reduce_scatter_tensor_coalesced, LIST, LIST,             \
     PERIGEE__T | PERIGEE_OPT_REDOP, "reduce_scatter_single_coalesced")                            \
  XX(12, ALLTOALL, alltoall, LIST, LIST, PERIGEE__T, "all_to_all")                                 \
  XX(13, ALLTOALL_BASE, alltoall_base, ONE, ONE, PERIGEE__T | PERIGEE_OPT_SPLITS,                  \
     "all_to_all_single")                                                                          \
  XX(14, BARRIER, barrier, NONE, NONE, PERIGEE__T, "")                                             \
  XX(15, MONITORED_BARRIER, monitored_barrier, NONE, NONE, PERIGEE__T | PERIGEE_OPT_WAIT_ALL, "")  \
  XX(16, SEND, send, NONE, LIST, PERIGEE__T | PERIGEE_OPT_DST | PERIGEE_OPT_TAG, "")               \
  XX(17, RECV, recv, LIST, NONE, PERIGEE__T | PERIGEE_OPT_SRC | PERIGEE_OPT_TAG, "")               \
  XX(18, RECV_ANYSOURCE, recv_anysource, LIST, NONE, PERIGEE__T | PERIGEE_OPT_TAG, "recvAnysource")

typedef enum perigee_op {
#define XX(_id, _NAME, _name, _out, _in, _opts, _aliases) PERIGEE_OP_##_NAME = _id,
  PERIGEE_OP_MAP(XX)
#undef XX
  PERIGEE_OP_COUNT = 19
} perigee_op;

/** One row of the table, for code that wants data. */
typedef struct perigee_op_info {
  perigee_op op;
  const char *name;
  perigee_form out, in;
  unsigned opts;       /* PERIGEE_OPT_* bits */
  const char *aliases; /* separated by blanks */
} perigee_op_info;

/** Row of an operation, NULL when op is not one. Static memory. */
PERIGEE_API const perigee_op_info *perigee_op_get(int op);
/** Operation by its name or one of its aliases, -1 when there is none. */
PERIGEE_API int perigee_op_find(const char *name);
/** "allreduce"; "?" when op is not one. */
PERIGEE_API const char *perigee_op_name(int op);

/* ---- reduce operations ----------------------------------------------------------------------- */

/* XX(id, NAME, name); ids are part of the wire format */
#define PERIGEE_REDOP_MAP(XX)                                                                      \
  XX(0, SUM, sum)                                                                                  \
  XX(1, AVG, avg)                                                                                  \
  XX(2, PRODUCT, product)                                                                          \
  XX(3, MIN, min)                                                                                  \
  XX(4, MAX, max)                                                                                  \
  XX(5, BAND, band)                                                                                \
  XX(6, BOR, bor)                                                                                  \
  XX(7, BXOR, bxor)                                                                                \
  XX(8, PREMUL_SUM, premul_sum)                                                                    \
  XX(9, CUSTOM, custom)

typedef enum perigee_redop_kind {
#define XX(_id, _NAME, _name) PERIGEE_REDOP_##_NAME = _id,
  PERIGEE_REDOP_MAP(XX)
#undef XX
  PERIGEE_REDOP_COUNT = 10
} perigee_redop_kind;

/**
 * A reduce operation given by the caller.
 * reduce: acc := acc op x on views of equal dtype and 1-D shape; called per chunk, in rank order
 *   (acc holds ranks 0..r-1, x rank r), never concurrently for one call, on a thread that waits for the
 *   operation or on the group's progress thread, with no lock of ours held. A non-zero return fails the operation.
 * ref/unref: the runtime takes one reference per operation in flight.
 */
typedef struct perigee_custom_op {
  const char *name; /* compared across ranks */
  bool commutative;
  int (*reduce)(struct perigee_custom_op *self, perigee_tensor *acc, const perigee_tensor *x);
  void (*ref)(struct perigee_custom_op *self);
  void (*unref)(struct perigee_custom_op *self);
} perigee_custom_op;

typedef struct perigee_redop {
  perigee_redop_kind kind;
  double factor;             /* PREMUL_SUM: every contribution is multiplied by it first */
  perigee_custom_op *custom; /* CUSTOM */
} perigee_redop;

PERIGEE_API const char *perigee_redop_name(int kind);
/** Kind by name ("sum", "prod" and "product", ...), -1 when there is none. */
PERIGEE_API int perigee_redop_find(const char *name);
/** Whether the kind is defined for the dtype: band bor bxor on integers and bool; avg not on bool; complex takes
 *  sum avg premul_sum only; premul_sum on floats and complex; bool: sum=or, product=and, min, max too. */
PERIGEE_API bool perigee_redop_defined(int kind, perigee_dtype dtype);

/* ---- requests -------------------------------------------------------------------------------- */

#define PERIGEE_TIMEOUT_DEFAULT INT64_C(-1) /* the group's */
#define PERIGEE_TIMEOUT_NONE INT64_MAX      /* no limit of the operation's own */

/** A list (rows 0) or a list of lists of equal length (n = rows * length, row after row). */
typedef struct perigee_tensors {
  perigee_tensor **v;
  uint32_t n;
  uint32_t rows;
} perigee_tensors;

/**
 * One call of an operation in canonical form. Layers pass it down, changed or not.
 * Owns: everything in it is borrowed by submit and run; who needs it longer copies (perigee_work does).
 */
typedef struct perigee_request {
  uint32_t size;       /* sizeof(perigee_request): room for growth */
  int op;              /* perigee_op */
  perigee_tensors out; /* empty for in-place operations */
  perigee_tensors in;
  int root;    /* group-local, default 0 */
  int peer;    /* dst of send, src of recv; -1 none */
  int64_t tag; /* >= 0, default 0 */
  perigee_redop redop;
  const int64_t *out_splits, *in_splits; /* alltoall_base: extents along dimension 0; NULL even */
  uint32_t n_out_splits, n_in_splits;
  int64_t timeout_ns; /* PERIGEE_TIMEOUT_* or > 0 */
  bool wait_all_ranks;
  uint64_t seq; /* 0: the group numbers it; layers keep it when they pass a request on */
} perigee_request;

/** Fills a request with defaults for op: empty lists, root 0, peer -1, tag 0, sum, group's timeout. */
PERIGEE_API void perigee_request_init(perigee_request *req, int op);

#endif
