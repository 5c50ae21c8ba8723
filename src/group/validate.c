/*
 * Wrong calls, refused at once on the caller with the argument's name: nothing of them reaches a peer.
 * Lists are counted from 1 in texts, as scripts count them.
 */
#include <inttypes.h>
#include <stdio.h>

#include "base/clock.h"
#include "base/error.h"
#include "group/group.h"

int64_t perigee__request_deadline(const perigee_request *req, int64_t default_ns) {
  int64_t timeout = req->timeout_ns == PERIGEE_TIMEOUT_DEFAULT ? default_ns : req->timeout_ns;
  return perigee__deadline_about(timeout);
}

typedef struct check {
  const perigee_request *req;
  const char *op;
  int rank, n;
} check;

/* One list: every tensor there, contiguous, and (when like is given) of like's dtype. */
static int check_list(const check *c, const char *what, const perigee_tensors *list,
                      const perigee_tensor *like) {
  for (uint32_t i = 0; i < list->n; i++) {
    const perigee_tensor *t = list->v[i];
    if (t == NULL)
      return perigee__fail(PERIGEE_EINVAL, "%s: %s[%u] is not a tensor", c->op, what, i + 1);
    if (!perigee_tensor_is_contiguous(t))
      return perigee__fail(PERIGEE_ENOTSUP, "%s: %s[%u] is a non-contiguous view; use contiguous()",
                           c->op, what, i + 1);
    if (like != NULL && perigee_tensor_dtype(t) != perigee_tensor_dtype(like))
      return perigee__fail(PERIGEE_EDTYPE, "%s: %s[%u] is %s, the first tensor %s", c->op, what,
                           i + 1, perigee_dtype_name(perigee_tensor_dtype(t)),
                           perigee_dtype_name(perigee_tensor_dtype(like)));
  }
  return 0;
}

static int check_count(const check *c, const char *what, uint32_t got, uint32_t want) {
  if (got == want)
    return 0;
  return perigee__fail(PERIGEE_EINVAL, "%s: %s: %u tensor%s expected, got %u", c->op, what, want,
                       want == 1 ? "" : "s", got);
}

static int check_same_shape(const check *c, const char *what, const perigee_tensors *list) {
  for (uint32_t i = 1; i < list->n; i++) {
    const perigee_tensor *a = list->v[0], *b = list->v[i];
    bool same = perigee_tensor_ndim(a) == perigee_tensor_ndim(b);
    for (int d = 0; same && d < perigee_tensor_ndim(a); d++)
      same = perigee_tensor_shape(a)[d] == perigee_tensor_shape(b)[d];
    if (!same) {
      char x[96], y[96];
      return perigee__fail(PERIGEE_ESHAPE, "%s: %s[%u] is %s, %s[1] %s", c->op, what, i + 1,
                           perigee_tensor_describe(b, y, sizeof(y)), what,
                           perigee_tensor_describe(a, x, sizeof(x)));
    }
  }
  return 0;
}

static int check_numel(const check *c, const char *what, const perigee_tensor *t, int64_t want,
                       const char *why) {
  if (perigee_tensor_numel(t) == want)
    return 0;
  return perigee__fail(PERIGEE_ESHAPE, "%s: %s has %" PRId64 " elements, %" PRId64 " expected (%s)",
                       c->op, what, perigee_tensor_numel(t), want, why);
}

/* A list of rows: nrows rows of row_len tensors. */
static int check_rows(const check *c, const char *what, const perigee_tensors *list, uint32_t rows,
                      uint32_t row_len) {
  if (list->rows != rows)
    return perigee__fail(PERIGEE_EINVAL, "%s: %s: %u list%s expected, got %u", c->op, what, rows,
                         rows == 1 ? "" : "s", list->rows);
  if (list->n != rows * row_len)
    return perigee__fail(PERIGEE_EINVAL,
                         "%s: %s: lists of %u tensors expected (one per rank), got %u in all",
                         c->op, what, row_len, list->n);
  return 0;
}

static int check_opts(const check *c, unsigned opts) {
  const perigee_request *req = c->req;
  if ((opts & PERIGEE_OPT_ROOT) && (req->root < 0 || req->root >= c->n))
    return perigee__fail(PERIGEE_ERANGE, "%s: root %d is not a rank of this group (0 to %d)", c->op,
                         req->root, c->n - 1);
  if (opts & (PERIGEE_OPT_DST | PERIGEE_OPT_SRC)) {
    const char *what = (opts & PERIGEE_OPT_DST) ? "dst" : "src";
    if (req->peer < 0 || req->peer >= c->n)
      return perigee__fail(PERIGEE_ERANGE, "%s: %s %d is not a rank of this group (0 to %d)", c->op,
                           what, req->peer, c->n - 1);
    if (req->peer == c->rank)
      return perigee__fail(PERIGEE_EINVAL, "%s: %s %d is this rank itself", c->op, what, req->peer);
  }
  if ((opts & PERIGEE_OPT_TAG) && req->tag < 0)
    return perigee__fail(PERIGEE_ERANGE, "%s: tag %" PRId64 " is negative", c->op, req->tag);
  if (req->timeout_ns != PERIGEE_TIMEOUT_DEFAULT && req->timeout_ns <= 0)
    return perigee__fail(PERIGEE_ERANGE, "%s: timeout must be positive", c->op);
  return 0;
}

static int check_redop(const check *c, const perigee_tensor *t) {
  const perigee_redop *redop = &c->req->redop;
  if ((int)redop->kind < 0 || redop->kind >= PERIGEE_REDOP_COUNT)
    return perigee__fail(PERIGEE_EINVAL, "%s: op %d is not a reduce operation", c->op,
                         (int)redop->kind);
  if (redop->kind == PERIGEE_REDOP_CUSTOM &&
      (redop->custom == NULL || redop->custom->reduce == NULL))
    return perigee__fail(PERIGEE_EINVAL, "%s: a custom op without a function", c->op);
  if (!perigee_redop_defined((int)redop->kind, perigee_tensor_dtype(t)))
    return perigee__fail(PERIGEE_EDTYPE, "%s: op %s is not defined for %s", c->op,
                         perigee_redop_name((int)redop->kind),
                         perigee_dtype_name(perigee_tensor_dtype(t)));
  return 0;
}

/* allreduce, broadcast, reduce and the coalesced allreduce: one list in place. */
static int check_inplace(const check *c) {
  const perigee_tensors *list = &c->req->in;
  if (list->n == 0)
    return perigee__fail(PERIGEE_EINVAL, "%s: a non-empty list of tensors is expected", c->op);
  PERIGEE_TRY(check_list(c, "tensors", list, list->v[0]));
  if (c->req->op == PERIGEE_OP_REDUCE)
    PERIGEE_TRY(check_count(c, "tensors", list->n, 1));
  return c->req->op == PERIGEE_OP_ALLREDUCE_COALESCED ? 0 : check_same_shape(c, "tensors", list);
}

static int check_allgather(const check *c) {
  const perigee_request *req = c->req;
  if (req->in.n == 0)
    return perigee__fail(PERIGEE_EINVAL, "%s: inputs: a non-empty list is expected", c->op);
  PERIGEE_TRY(check_list(c, "inputs", &req->in, req->in.v[0]));
  PERIGEE_TRY(check_rows(c, "outputs", &req->out, req->in.n, (uint32_t)c->n * req->in.n));
  PERIGEE_TRY(check_list(c, "outputs", &req->out, req->in.v[0]));
  uint32_t row = (uint32_t)c->n * req->in.n;
  for (uint32_t i = 0; i < req->in.n; i++)
    for (uint32_t j = 0; j < req->in.n; j++)
      PERIGEE_TRY(check_numel(c, "this rank's output",
                              req->out.v[i * row + (uint32_t)c->rank * req->in.n + j],
                              perigee_tensor_numel(req->in.v[j]), "as its input"));
  return 0;
}

static int check_gather(const check *c) {
  const perigee_request *req = c->req;
  PERIGEE_TRY(check_count(c, "inputs", req->in.n, 1));
  PERIGEE_TRY(check_list(c, "inputs", &req->in, NULL));
  if (c->rank != req->root) {
    if (req->out.n > 0)
      return perigee__fail(PERIGEE_EINVAL, "%s: outputs must be empty on ranks other than the root",
                           c->op);
    return 0;
  }
  PERIGEE_TRY(check_rows(c, "outputs", &req->out, 1, (uint32_t)c->n));
  PERIGEE_TRY(check_list(c, "outputs", &req->out, req->in.v[0]));
  return check_numel(c, "this rank's output", req->out.v[c->rank],
                     perigee_tensor_numel(req->in.v[0]), "as its input");
}

static int check_scatter(const check *c) {
  const perigee_request *req = c->req;
  PERIGEE_TRY(check_count(c, "outputs", req->out.n, 1));
  PERIGEE_TRY(check_list(c, "outputs", &req->out, NULL));
  if (c->rank != req->root) {
    if (req->in.n > 0)
      return perigee__fail(PERIGEE_EINVAL, "%s: inputs must be empty on ranks other than the root",
                           c->op);
    return 0;
  }
  PERIGEE_TRY(check_rows(c, "inputs", &req->in, 1, (uint32_t)c->n));
  PERIGEE_TRY(check_list(c, "inputs", &req->in, req->out.v[0]));
  return check_numel(c, "this rank's input", req->in.v[c->rank],
                     perigee_tensor_numel(req->out.v[0]), "as its output");
}

static int check_reduce_scatter(const check *c) {
  const perigee_request *req = c->req;
  PERIGEE_TRY(check_count(c, "outputs", req->out.n, 1));
  PERIGEE_TRY(check_list(c, "outputs", &req->out, NULL));
  PERIGEE_TRY(check_rows(c, "inputs", &req->in, 1, (uint32_t)c->n));
  PERIGEE_TRY(check_list(c, "inputs", &req->in, req->out.v[0]));
  return check_numel(c, "outputs[1]", req->out.v[0], perigee_tensor_numel(req->in.v[c->rank]),
                     "as this rank's input");
}

/* One output, one input, or equal lists of them: one side is n times the other. */
static int check_pairs(const check *c, bool out_is_big) {
  const perigee_request *req = c->req;
  if (req->in.n == 0)
    return perigee__fail(PERIGEE_EINVAL, "%s: inputs: a non-empty list is expected", c->op);
  PERIGEE_TRY(check_count(c, "outputs", req->out.n, req->in.n));
  PERIGEE_TRY(check_list(c, "inputs", &req->in, req->in.v[0]));
  PERIGEE_TRY(check_list(c, "outputs", &req->out, req->in.v[0]));
  for (uint32_t i = 0; i < req->in.n; i++) {
    const perigee_tensor *small = out_is_big ? req->in.v[i] : req->out.v[i];
    const perigee_tensor *big = out_is_big ? req->out.v[i] : req->in.v[i];
    int64_t numel = perigee_tensor_numel(small) * c->n;
    if (PERIGEE_LIKELY(perigee_tensor_numel(big) == numel))
      continue; /* the text is for who needs it */
    char what[32];
    snprintf(what, sizeof(what), "%s[%u]", out_is_big ? "outputs" : "inputs", i + 1);
    return check_numel(c, what, big, numel, "ranks times the other side");
  }
  return 0;
}

static int check_alltoall(const check *c) {
  const perigee_request *req = c->req;
  PERIGEE_TRY(check_count(c, "inputs", req->in.n, (uint32_t)c->n));
  PERIGEE_TRY(check_count(c, "outputs", req->out.n, (uint32_t)c->n));
  PERIGEE_TRY(check_list(c, "inputs", &req->in, req->in.v[0]));
  PERIGEE_TRY(check_list(c, "outputs", &req->out, req->in.v[0]));
  return check_numel(c, "this rank's output", req->out.v[c->rank],
                     perigee_tensor_numel(req->in.v[c->rank]), "as its input");
}

static int check_splits(const check *c, const char *what, const perigee_tensor *t,
                        const int64_t *splits, uint32_t n) {
  int64_t rows = perigee_tensor_ndim(t) > 0 ? perigee_tensor_shape(t)[0] : 1;
  if (n == 0) {
    if (rows % c->n != 0)
      return perigee__fail(PERIGEE_ESHAPE, "%s: %s: %" PRId64 " rows do not divide by %d ranks",
                           c->op, what, rows, c->n);
    return 0;
  }
  if (n != (uint32_t)c->n)
    return perigee__fail(PERIGEE_EINVAL, "%s: %s splits: %d numbers expected, got %u", c->op, what,
                         c->n, n);
  int64_t sum = 0;
  for (uint32_t i = 0; i < n; i++) {
    if (splits[i] < 0 || splits[i] > rows)
      return perigee__fail(PERIGEE_ERANGE, "%s: %s splits[%u] is %" PRId64, c->op, what, i + 1,
                           splits[i]);
    sum += splits[i];
  }
  if (sum != rows)
    return perigee__fail(PERIGEE_ESHAPE,
                         "%s: %s splits add up to %" PRId64 ", the tensor has %" PRId64 " rows",
                         c->op, what, sum, rows);
  return 0;
}

/* Elements of the block that goes from this rank to itself. */
static int64_t own_block(const check *c, const perigee_tensor *t, const int64_t *splits,
                         uint32_t n) {
  int64_t rows = perigee_tensor_ndim(t) > 0 ? perigee_tensor_shape(t)[0] : 1;
  int64_t row = rows > 0 ? perigee_tensor_numel(t) / rows : 0;
  return row * (n > 0 ? splits[c->rank] : rows / c->n);
}

static int check_alltoall_base(const check *c) {
  const perigee_request *req = c->req;
  PERIGEE_TRY(check_count(c, "input", req->in.n, 1));
  PERIGEE_TRY(check_count(c, "output", req->out.n, 1));
  PERIGEE_TRY(check_list(c, "input", &req->in, NULL));
  PERIGEE_TRY(check_list(c, "output", &req->out, req->in.v[0]));
  PERIGEE_TRY(check_splits(c, "output", req->out.v[0], req->out_splits, req->n_out_splits));
  PERIGEE_TRY(check_splits(c, "input", req->in.v[0], req->in_splits, req->n_in_splits));
  int64_t out = own_block(c, req->out.v[0], req->out_splits, req->n_out_splits);
  int64_t in = own_block(c, req->in.v[0], req->in_splits, req->n_in_splits);
  if (out == in)
    return 0;
  return perigee__fail(PERIGEE_ESHAPE,
                       "%s: this rank's own block has %" PRId64 " elements in the output, %" PRId64
                       " in the input",
                       c->op, out, in);
}

static int check_p2p(const check *c, const char *what, const perigee_tensors *list) {
  PERIGEE_TRY(check_count(c, what, list->n, 1));
  return check_list(c, what, list, NULL);
}

static int check_tensors(const check *c) {
  switch ((perigee_op)c->req->op) {
  case PERIGEE_OP_ALLREDUCE:
  case PERIGEE_OP_ALLREDUCE_COALESCED:
  case PERIGEE_OP_BROADCAST:
  case PERIGEE_OP_REDUCE:
    return check_inplace(c);
  case PERIGEE_OP_ALLGATHER:
    return check_allgather(c);
  case PERIGEE_OP_ALLGATHER_INTO_TENSOR:
    PERIGEE_TRY(check_count(c, "input", c->req->in.n, 1));
    return check_pairs(c, true);
  case PERIGEE_OP_ALLGATHER_INTO_TENSOR_COALESCED:
    return check_pairs(c, true);
  case PERIGEE_OP_GATHER:
    return check_gather(c);
  case PERIGEE_OP_SCATTER:
    return check_scatter(c);
  case PERIGEE_OP_REDUCE_SCATTER:
    return check_reduce_scatter(c);
  case PERIGEE_OP_REDUCE_SCATTER_TENSOR:
    PERIGEE_TRY(check_count(c, "input", c->req->in.n, 1));
    return check_pairs(c, false);
  case PERIGEE_OP_REDUCE_SCATTER_TENSOR_COALESCED:
    return check_pairs(c, false);
  case PERIGEE_OP_ALLTOALL:
    return check_alltoall(c);
  case PERIGEE_OP_ALLTOALL_BASE:
    return check_alltoall_base(c);
  case PERIGEE_OP_SEND:
    return check_p2p(c, "tensors", &c->req->in);
  case PERIGEE_OP_RECV:
  case PERIGEE_OP_RECV_ANYSOURCE:
    return check_p2p(c, "tensors", &c->req->out);
  case PERIGEE_OP_BARRIER:
  case PERIGEE_OP_MONITORED_BARRIER:
  case PERIGEE_OP_COUNT:
    break;
  }
  return 0;
}

int perigee__request_check(const perigee_request *req, int rank, int nranks) {
  const perigee_op_info *info = perigee_op_get(req->op);
  if (info == NULL)
    return perigee__fail(PERIGEE_EINVAL, "there is no operation %d", req->op);
  check c = {req, info->name, rank, nranks};
  PERIGEE_TRY(check_opts(&c, info->opts));
  PERIGEE_TRY(check_tensors(&c));
  if (!(info->opts & PERIGEE_OPT_REDOP))
    return 0;
  return check_redop(&c, req->in.v[0]);
}
