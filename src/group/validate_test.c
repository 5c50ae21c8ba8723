/* Defends: a wrong call is refused before anything of it leaves this rank, and the text names the argument. */
#include "group/testing.h"

#include "group/group.h"

enum {
  N = 3,
  ME = 1
};

static perigee_tensor *f3, *f6, *f2, *i3, *f23, *f32, *f9, *c3, *b3, *strided, *scalar;

static perigee_tensor *shaped(perigee_dtype dtype, int64_t rows, int64_t cols) {
  perigee_tensor *t;
  int64_t shape[] = {rows, cols};
  REQUIRE(perigee_tensor_create(dtype, 2, shape, &t) == 0);
  return t;
}

static int make_tensors(void **state) {
  (void)state;
  f2 = tensor_of(PERIGEE_F32, 2);
  f3 = tensor_of(PERIGEE_F32, 3);
  f6 = tensor_of(PERIGEE_F32, 6);
  f9 = tensor_of(PERIGEE_F32, 9);
  i3 = tensor_of(PERIGEE_I32, 3);
  c3 = tensor_of(PERIGEE_C64, 3);
  b3 = tensor_of(PERIGEE_BOOL, 3);
  f23 = shaped(PERIGEE_F32, 2, 3);
  f32 = shaped(PERIGEE_F32, 3, 2);
  REQUIRE(perigee_tensor_create(PERIGEE_F32, 0, NULL, &scalar) == 0);
  REQUIRE(perigee_tensor_narrow(f23, 1, 0, 2, &strided) == 0);
  return 0;
}
static int drop_tensors(void **state) {
  (void)state;
  perigee_tensor *all[] = {f3, f6, f2, i3, f23, f32, f9, c3, b3, strided, scalar};
  for (size_t i = 0; i < PERIGEE_COUNT(all); i++)
    perigee_tensor_unref(all[i]);
  return 0;
}

static void expect_at(const perigee_request *req, int rank, int n, int code, const char *text) {
  int rc = perigee__request_check(req, rank, n);
  if (rc != code || (code < 0 && !last_error_has(text)))
    fail_msg("%s: got %d '%s', wanted %d '%s'", perigee_op_name(req->op), rc,
             perigee_last_error()->message, code, text);
}
static void refuse(const perigee_request *req, int code, const char *text) {
  expect_at(req, ME, N, code, text);
}
static void accept(const perigee_request *req) { expect_at(req, ME, N, 0, ""); }

#define LIST(...) ((perigee_tensor *[]){__VA_ARGS__})
#define INPLACE(_OP, ...)                                                                          \
  request_inplace(PERIGEE_OP_##_OP, LIST(__VA_ARGS__),                                             \
                  sizeof(LIST(__VA_ARGS__)) / sizeof(perigee_tensor *))

/* ---- options ----------------------------------------------------------------------------------- */

static void test_options(void **state) {
  (void)state;
  perigee_request req;
  perigee_request_init(&req, 99);
  refuse(&req, PERIGEE_EINVAL, "there is no operation 99");
  perigee_request_init(&req, -1);
  refuse(&req, PERIGEE_EINVAL, "there is no operation -1");
  req = INPLACE(BROADCAST, f3);
  req.root = 3;
  refuse(&req, PERIGEE_ERANGE, "broadcast: root 3 is not a rank of this group (0 to 2)");
  req.root = -1;
  refuse(&req, PERIGEE_ERANGE, "root -1");
  req.root = 2;
  accept(&req);
  req.timeout_ns = 0;
  refuse(&req, PERIGEE_ERANGE, "timeout must be positive");
  req.timeout_ns = -5;
  refuse(&req, PERIGEE_ERANGE, "timeout must be positive");
  req.timeout_ns = PERIGEE_TIMEOUT_NONE;
  accept(&req);
  req = INPLACE(ALLREDUCE, f3);
  req.root = 77; /* takes none */
  accept(&req);
}

static void test_messages(void **state) {
  (void)state;
  perigee_request req = INPLACE(SEND, f3);
  refuse(&req, PERIGEE_ERANGE, "send: dst -1 is not a rank");
  req.peer = 3;
  refuse(&req, PERIGEE_ERANGE, "send: dst 3 is not a rank of this group (0 to 2)");
  req.peer = ME;
  refuse(&req, PERIGEE_EINVAL, "send: dst 1 is this rank itself");
  req.peer = 0;
  accept(&req);
  req.tag = -1;
  refuse(&req, PERIGEE_ERANGE, "send: tag -1 is negative");
  req.tag = INT64_MAX;
  accept(&req);
  req.in.n = 0;
  refuse(&req, PERIGEE_EINVAL, "send: tensors: 1 tensor expected, got 0");
  req = request_out_in(PERIGEE_OP_RECV, LIST(f3, f3), 2, 0, NULL, 0, 0);
  req.peer = 2;
  refuse(&req, PERIGEE_EINVAL, "recv: tensors: 1 tensor expected, got 2");
  req = request_out_in(PERIGEE_OP_RECV, LIST(strided), 1, 0, NULL, 0, 0);
  req.peer = 5;
  refuse(&req, PERIGEE_ERANGE, "recv: src 5");
  req.peer = 2;
  refuse(&req, PERIGEE_ENOTSUP, "recv: tensors[1] is a non-contiguous view; use contiguous()");
  req = request_out_in(PERIGEE_OP_RECV_ANYSOURCE, LIST(f3), 1, 0, NULL, 0, 0);
  accept(&req); /* no peer */
  req.tag = -2;
  refuse(&req, PERIGEE_ERANGE, "recv_anysource: tag -2");
}

/* ---- lists in place ---------------------------------------------------------------------------- */

static void test_inplace(void **state) {
  (void)state;
  perigee_request req = request_inplace(PERIGEE_OP_ALLREDUCE, NULL, 0);
  refuse(&req, PERIGEE_EINVAL, "allreduce: a non-empty list of tensors is expected");
  req = INPLACE(ALLREDUCE, NULL);
  refuse(&req, PERIGEE_EINVAL, "allreduce: tensors[1] is not a tensor");
  req = INPLACE(ALLREDUCE, f3, NULL);
  refuse(&req, PERIGEE_EINVAL, "tensors[2] is not a tensor");
  req = INPLACE(ALLREDUCE, f3, strided);
  refuse(&req, PERIGEE_ENOTSUP, "tensors[2] is a non-contiguous view");
  req = INPLACE(ALLREDUCE, f3, f3, i3);
  refuse(&req, PERIGEE_EDTYPE, "tensors[3] is i32, the first tensor f32");
  req = INPLACE(ALLREDUCE, f3, f6);
  refuse(&req, PERIGEE_ESHAPE, "tensors[2] is f32[6], tensors[1] f32[3]");
  req = INPLACE(ALLREDUCE, f6, f23); /* same number, other shape */
  refuse(&req, PERIGEE_ESHAPE, "tensors[2] is f32[2,3], tensors[1] f32[6]");
  req = INPLACE(BROADCAST, f23, f32);
  refuse(&req, PERIGEE_ESHAPE, "broadcast: tensors[2] is f32[3,2]");
  req = INPLACE(ALLREDUCE_COALESCED, f3, f6, scalar);
  accept(&req);
  req = INPLACE(ALLREDUCE_COALESCED, f3, i3);
  refuse(&req, PERIGEE_EDTYPE, "allreduce_coalesced: tensors[2] is i32");
  req = INPLACE(REDUCE, f3, f3);
  refuse(&req, PERIGEE_EINVAL, "reduce: tensors: 1 tensor expected, got 2");
}

static void test_reduce_ops(void **state) {
  (void)state;
  perigee_request req = INPLACE(ALLREDUCE, f3);
  req.redop.kind = PERIGEE_REDOP_BAND;
  refuse(&req, PERIGEE_EDTYPE, "allreduce: op band is not defined for f32");
  req.redop.kind = (perigee_redop_kind)42;
  refuse(&req, PERIGEE_EINVAL, "op 42 is not a reduce operation");
  req.redop.kind = PERIGEE_REDOP_CUSTOM;
  refuse(&req, PERIGEE_EINVAL, "a custom op without a function");
  perigee_custom_op custom = {.name = "none"};
  req.redop.custom = &custom;
  refuse(&req, PERIGEE_EINVAL, "a custom op without a function");
  req = INPLACE(ALLREDUCE, c3);
  req.redop.kind = PERIGEE_REDOP_MAX;
  refuse(&req, PERIGEE_EDTYPE, "op max is not defined for c64");
  req = INPLACE(REDUCE, b3);
  req.redop.kind = PERIGEE_REDOP_AVG;
  refuse(&req, PERIGEE_EDTYPE, "reduce: op avg is not defined for bool");
  req = INPLACE(ALLREDUCE, i3);
  req.redop.kind = PERIGEE_REDOP_PREMUL_SUM;
  refuse(&req, PERIGEE_EDTYPE, "op premul_sum is not defined for i32");
  req = request_out_in(PERIGEE_OP_REDUCE_SCATTER_TENSOR, LIST(f3), 1, 0, LIST(f9), 1, 0);
  req.redop.kind = PERIGEE_REDOP_BXOR;
  refuse(&req, PERIGEE_EDTYPE, "reduce_scatter_tensor: op bxor");
  req = INPLACE(BROADCAST, f3);
  req.redop.kind = PERIGEE_REDOP_BAND; /* takes none */
  accept(&req);
}

/* ---- gathers ----------------------------------------------------------------------------------- */

static void test_allgather(void **state) {
  (void)state;
  perigee_request req =
      request_out_in(PERIGEE_OP_ALLGATHER, LIST(f2, f3, f6), 3, 1, LIST(f3), 1, 0);
  accept(&req); /* sizes of the other ranks are their own affair */
  req.in.n = 0;
  refuse(&req, PERIGEE_EINVAL, "allgather: inputs: a non-empty list");
  req = request_out_in(PERIGEE_OP_ALLGATHER, LIST(f3, f3, f3), 3, 2, LIST(f3), 1, 0);
  refuse(&req, PERIGEE_EINVAL, "outputs: 1 list expected, got 2");
  req = request_out_in(PERIGEE_OP_ALLGATHER, LIST(f3, f3), 2, 1, LIST(f3), 1, 0);
  refuse(&req, PERIGEE_EINVAL, "outputs: lists of 3 tensors expected (one per rank), got 2");
  req = request_out_in(PERIGEE_OP_ALLGATHER, LIST(f3, f6, f3), 3, 1, LIST(f3), 1, 0);
  refuse(&req, PERIGEE_ESHAPE, "this rank's output has 6 elements, 3 expected");
  req = request_out_in(PERIGEE_OP_ALLGATHER, LIST(f3, f3, i3), 3, 1, LIST(f3), 1, 0);
  refuse(&req, PERIGEE_EDTYPE, "outputs[3] is i32");
  req = request_out_in(PERIGEE_OP_ALLGATHER, LIST(f3, strided, f3), 3, 1, LIST(f3), 1, 0);
  refuse(&req, PERIGEE_ENOTSUP, "outputs[2] is a non-contiguous view");
  perigee_tensor *rows[] = {f2, f2, f3, f6, f2, f2, f2, f2, f3, f6, f2, f2};
  req = request_out_in(PERIGEE_OP_ALLGATHER, rows, 12, 2, LIST(f3, f6), 2, 0);
  accept(&req); /* two inputs: two rows of n * 2; ours are the third and fourth of each */
  rows[9] = f2;
  refuse(&req, PERIGEE_ESHAPE, "this rank's output has 2 elements, 6 expected");
}

static void test_allgather_into(void **state) {
  (void)state;
  perigee_request req =
      request_out_in(PERIGEE_OP_ALLGATHER_INTO_TENSOR, LIST(f9), 1, 0, LIST(f3), 1, 0);
  accept(&req);
  req.out.v = LIST(f6);
  refuse(&req, PERIGEE_ESHAPE, "outputs[1] has 6 elements, 9 expected");
  req = request_out_in(PERIGEE_OP_ALLGATHER_INTO_TENSOR, LIST(f9, f9), 2, 0, LIST(f3, f3), 2, 0);
  refuse(&req, PERIGEE_EINVAL, "input: 1 tensor expected, got 2");
  req.op = PERIGEE_OP_ALLGATHER_INTO_TENSOR_COALESCED;
  accept(&req);
  req.out.n = 1;
  refuse(&req, PERIGEE_EINVAL, "outputs: 2 tensors expected, got 1");
  req = request_out_in(PERIGEE_OP_ALLGATHER_INTO_TENSOR_COALESCED, LIST(f9, f9), 2, 0, LIST(f3, f2),
                       2, 0);
  refuse(&req, PERIGEE_ESHAPE, "outputs[2] has 9 elements, 6 expected");
  req = request_out_in(PERIGEE_OP_ALLGATHER_INTO_TENSOR, LIST(f9), 1, 0, LIST(i3), 1, 0);
  refuse(&req, PERIGEE_EDTYPE, "outputs[1] is f32, the first tensor i32");
}

static void test_gather_and_scatter(void **state) {
  (void)state;
  perigee_request req = request_out_in(PERIGEE_OP_GATHER, LIST(f2, f3, f6), 3, 1, LIST(f3), 1, 0);
  req.root = ME;
  accept(&req);
  req.out.n = 2;
  refuse(&req, PERIGEE_EINVAL, "gather: outputs: lists of 3 tensors");
  req.out.n = req.out.rows = 0;
  refuse(&req, PERIGEE_EINVAL, "gather: outputs: 1 list expected, got 0");
  req.root = 0;
  accept(&req);
  req.in.n = 0;
  refuse(&req, PERIGEE_EINVAL, "gather: inputs: 1 tensor expected, got 0");
  req = request_out_in(PERIGEE_OP_GATHER, LIST(f3, f3, f3), 3, 1, LIST(f3), 1, 0);
  refuse(&req, PERIGEE_EINVAL, "outputs must be empty on ranks other than the root");
  req.root = ME;
  req.out.v = LIST(f3, f2, f3);
  refuse(&req, PERIGEE_ESHAPE, "this rank's output has 2 elements, 3 expected");

  req = request_out_in(PERIGEE_OP_SCATTER, LIST(f3), 1, 0, LIST(f2, f3, f6), 3, 1);
  req.root = ME;
  accept(&req);
  req.root = 2;
  refuse(&req, PERIGEE_EINVAL, "scatter: inputs must be empty on ranks other than the root");
  req.in = (perigee_tensors){NULL, 0, 0};
  accept(&req);
  req.root = ME;
  refuse(&req, PERIGEE_EINVAL, "scatter: inputs: 1 list expected, got 0");
  req.in = (perigee_tensors){LIST(f3, f6, f3), 3, 1};
  refuse(&req, PERIGEE_ESHAPE, "this rank's input has 6 elements, 3 expected");
  req.in.v = LIST(f3, f3, i3);
  refuse(&req, PERIGEE_EDTYPE, "inputs[3] is i32");
  req.out.n = 0;
  refuse(&req, PERIGEE_EINVAL, "scatter: outputs: 1 tensor expected, got 0");
}

static void test_reduce_scatter(void **state) {
  (void)state;
  perigee_request req =
      request_out_in(PERIGEE_OP_REDUCE_SCATTER, LIST(f3), 1, 0, LIST(f2, f3, f6), 3, 1);
  accept(&req); /* uneven, but ours fits */
  req.in.v = LIST(f3, f2, f3);
  refuse(&req, PERIGEE_ESHAPE, "outputs[1] has 3 elements, 2 expected");
  req.in.n = 2;
  refuse(&req, PERIGEE_EINVAL, "inputs: lists of 3 tensors expected");
  req = request_out_in(PERIGEE_OP_REDUCE_SCATTER_TENSOR, LIST(f3), 1, 0, LIST(f9), 1, 0);
  accept(&req);
  req.in.v = LIST(f6);
  refuse(&req, PERIGEE_ESHAPE, "inputs[1] has 6 elements, 9 expected");
  req = request_out_in(PERIGEE_OP_REDUCE_SCATTER_TENSOR_COALESCED, LIST(f3, f2), 2, 0, LIST(f9, f9),
                       2, 0);
  refuse(&req, PERIGEE_ESHAPE, "inputs[2] has 9 elements, 6 expected");
  req.in.v = LIST(f9, f6);
  accept(&req);
}

/* ---- alltoall ---------------------------------------------------------------------------------- */

static void test_alltoall(void **state) {
  (void)state;
  perigee_request req =
      request_out_in(PERIGEE_OP_ALLTOALL, LIST(f2, f3, f6), 3, 0, LIST(f6, f3, f2), 3, 0);
  accept(&req);
  req.in.n = 2;
  refuse(&req, PERIGEE_EINVAL, "alltoall: inputs: 3 tensors expected, got 2");
  req.in.n = 3;
  req.out.n = 0;
  refuse(&req, PERIGEE_EINVAL, "alltoall: outputs: 3 tensors expected, got 0");
  req = request_out_in(PERIGEE_OP_ALLTOALL, LIST(f2, f3, f6), 3, 0, LIST(f6, f2, f2), 3, 0);
  refuse(&req, PERIGEE_ESHAPE, "this rank's output has 3 elements, 2 expected");
  req = request_out_in(PERIGEE_OP_ALLTOALL, LIST(i3, i3, i3), 3, 0, LIST(f3, f3, f3), 3, 0);
  refuse(&req, PERIGEE_EDTYPE, "outputs[1] is i32");
}

static void test_splits(void **state) {
  (void)state;
  perigee_request req = request_out_in(PERIGEE_OP_ALLTOALL_BASE, LIST(f6), 1, 0, LIST(f6), 1, 0);
  accept(&req);
  req.in.v = LIST(f2);
  refuse(&req, PERIGEE_ESHAPE, "alltoall_base: input: 2 rows do not divide by 3 ranks");
  req.in.v = LIST(f9);
  refuse(&req, PERIGEE_ESHAPE, "own block has 2 elements in the output, 3 in the input");
  req.in.v = LIST(f23);
  refuse(&req, PERIGEE_ESHAPE, "input: 2 rows do not divide");
  req.in.v = LIST(f32);
  accept(&req); /* one row of two each, against two rows of one */
  req.in.v = LIST(scalar);
  refuse(&req, PERIGEE_ESHAPE, "input: 1 rows do not divide");
  int64_t splits[] = {1, 2, 3, 4};
  req.in.v = LIST(f6);
  req.in_splits = splits;
  req.n_in_splits = 4;
  refuse(&req, PERIGEE_EINVAL, "input splits: 3 numbers expected, got 4");
  req.n_in_splits = 3;
  accept(&req);
  splits[2] = 2;
  refuse(&req, PERIGEE_ESHAPE, "input splits add up to 5, the tensor has 6 rows");
  splits[2] = -1;
  refuse(&req, PERIGEE_ERANGE, "input splits[3] is -1");
  splits[2] = 7;
  refuse(&req, PERIGEE_ERANGE, "input splits[3] is 7");
  req.n_in_splits = 0;
  int64_t other[] = {1, 1, 4};
  req.out_splits = other;
  req.n_out_splits = 3;
  refuse(&req, PERIGEE_ESHAPE, "own block has 1 elements in the output, 2 in the input");
  other[1] = 2;
  refuse(&req, PERIGEE_ESHAPE, "output splits add up to 7");
  other[2] = 3;
  accept(&req);
}

/* ---- the rest ---------------------------------------------------------------------------------- */

static void test_barriers_and_one_rank(void **state) {
  (void)state;
  perigee_request req;
  perigee_request_init(&req, PERIGEE_OP_BARRIER);
  accept(&req);
  req.timeout_ns = 0;
  refuse(&req, PERIGEE_ERANGE, "barrier: timeout");
  perigee_request_init(&req, PERIGEE_OP_MONITORED_BARRIER);
  accept(&req);
  req = INPLACE(SEND, f3);
  req.peer = 0;
  expect_at(&req, 0, 1, PERIGEE_EINVAL, "dst 0 is this rank itself");
  req = request_out_in(PERIGEE_OP_ALLGATHER, LIST(f3), 1, 1, LIST(f3), 1, 0);
  expect_at(&req, 0, 1, 0, "");
}

/* What a group adds to a refusal: rank and name; the call does not count. */
static void test_through_a_group(void **state) {
  (void)state;
  perigee_group *group = open_alone("fake", 2, 5);
  assert_int_equal(perigee_broadcast(group, f3, 5), PERIGEE_ERANGE);
  assert_int_equal(perigee_last_error()->rank, 2);
  assert_string_equal(perigee_last_error()->group, "world");
  char line[256];
  perigee_error_format(perigee_last_error(), line, sizeof(line));
  assert_string_equal(line,
                      "world: broadcast: root 5 is not a rank of this group (0 to 4) (rank 2)");
  perigee_request req = INPLACE(ALLREDUCE, f3, i3);
  perigee_work *work = NULL;
  assert_int_equal(perigee_group_submit(group, &req, &work), PERIGEE_EDTYPE);
  assert_null(work);
  assert_int_equal(perigee_group_seq(group), 0);
  drop_group(group);
}

int main(void) {
  program_deadline(60);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_options),
      cmocka_unit_test(test_messages),
      cmocka_unit_test(test_inplace),
      cmocka_unit_test(test_reduce_ops),
      cmocka_unit_test(test_allgather),
      cmocka_unit_test(test_allgather_into),
      cmocka_unit_test(test_gather_and_scatter),
      cmocka_unit_test(test_reduce_scatter),
      cmocka_unit_test(test_alltoall),
      cmocka_unit_test(test_splits),
      cmocka_unit_test(test_barriers_and_one_rank),
      cmocka_unit_test(test_through_a_group),
  };
  return cmocka_run_group_tests(tests, make_tensors, drop_tensors);
}
