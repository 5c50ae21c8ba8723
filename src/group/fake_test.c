/* Defends: fake gives what a world gives in which every rank calls with what this one has. */
#include "group/testing.h"

#include "base/attr.h"
#include "group/work.h"

static void run_ok(perigee_group *group, const perigee_request *req) {
  if (perigee_group_run(group, req) < 0)
    fail_msg("%s: %s", perigee_op_name(req->op), perigee_last_error()->message);
}

static void expect_f32(const perigee_tensor *t, float value) {
  if (!f32_is(t, value))
    fail_msg("%g found, %g wanted", (double)f32_at(t, 0), (double)value);
}

static float reduced(perigee_group *group, perigee_redop_kind kind, float value, double factor) {
  perigee_tensor *t = f32_of(1000, value); /* more than one chunk */
  perigee_request req = request_inplace(PERIGEE_OP_ALLREDUCE, &t, 1);
  req.redop.kind = kind;
  req.redop.factor = factor;
  run_ok(group, &req);
  float result = f32_at(t, 0);
  expect_f32(t, result);
  perigee_tensor_unref(t);
  return result;
}

static void test_allreduce(void **state) {
  (void)state;
  for (int n = 1; n <= 9; n++) {
    perigee_group *group = open_alone("fake", n - 1, n);
    assert_true(reduced(group, PERIGEE_REDOP_SUM, 3, 1) == (float)(3 * n));
    assert_true(reduced(group, PERIGEE_REDOP_AVG, 3, 1) == 3);
    assert_true(reduced(group, PERIGEE_REDOP_PRODUCT, 2, 1) == (float)(1 << n));
    assert_true(reduced(group, PERIGEE_REDOP_MAX, -5, 1) == -5);
    assert_true(reduced(group, PERIGEE_REDOP_MIN, 7, 1) == 7);
    assert_true(reduced(group, PERIGEE_REDOP_PREMUL_SUM, 3, 0.5) == 1.5F * (float)n);
    perigee_tensor *bits = tensor_of(PERIGEE_U8, 3);
    memset(perigee_tensor_data(bits), 0x5a, 3);
    perigee_request req = request_inplace(PERIGEE_OP_ALLREDUCE, &bits, 1);
    req.redop.kind = PERIGEE_REDOP_BXOR;
    run_ok(group, &req);
    assert_int_equal(((uint8_t *)perigee_tensor_data(bits))[2], n % 2 ? 0x5a : 0);
    perigee_tensor_unref(bits);
    drop_group(group);
  }
}

static void test_large_world(void **state) {
  (void)state;
  perigee_group *group = open_alone("fake", 77777, 100000);
  assert_int_equal(perigee_group_size(group), 100000);
  assert_true(reduced(group, PERIGEE_REDOP_SUM, 1, 1) == 100000);
  assert_int_equal(perigee_barrier(group), 0);
  drop_group(group);
}

static void test_lists(void **state) {
  (void)state;
  perigee_group *group = open_alone("fake", 1, 4);
  perigee_tensor *list[] = {f32_of(5, 1), f32_of(5, 2), f32_of(5, 3)};
  perigee_request req = request_inplace(PERIGEE_OP_ALLREDUCE, list, 3);
  run_ok(group, &req);
  for (int i = 0; i < 3; i++)
    expect_f32(list[i], 24); /* (1 + 2 + 3) * 4 */
  req.redop.kind = PERIGEE_REDOP_AVG;
  run_ok(group, &req);
  expect_f32(list[2], 24);
  perigee_tensor *other[] = {f32_of(2, 1), f32_of(3, 10)};
  req = request_inplace(PERIGEE_OP_ALLREDUCE_COALESCED, other, 2);
  run_ok(group, &req);
  expect_f32(other[0], 4);
  expect_f32(other[1], 40);
  perigee_tensor *pair[] = {f32_of(1, 9), f32_of(1, 1)};
  req = request_inplace(PERIGEE_OP_BROADCAST, pair, 2);
  run_ok(group, &req);
  expect_f32(pair[1], 9);
  req = request_inplace(PERIGEE_OP_REDUCE, other, 1);
  run_ok(group, &req);
  expect_f32(other[0], 4); /* not the root */
  req.root = 1;
  run_ok(group, &req);
  expect_f32(other[0], 16);
  drop_group(group);
  for (int i = 0; i < 3; i++)
    perigee_tensor_unref(list[i]);
  for (int i = 0; i < 2; i++) {
    perigee_tensor_unref(other[i]);
    perigee_tensor_unref(pair[i]);
  }
}

static void test_gathers(void **state) {
  (void)state;
  perigee_group *group = open_alone("fake", 1, 3);
  perigee_tensor *in[] = {f32_of(2, 5), f32_of(4, 6)}, *out[12];
  for (int i = 0; i < 12; i++)
    out[i] = f32_of(i % 2 ? 4 : 2, 0);
  perigee_request req = request_out_in(PERIGEE_OP_ALLGATHER, out, 12, 2, in, 2, 0);
  run_ok(group, &req);
  for (int i = 0; i < 12; i++)
    expect_f32(out[i], i % 2 ? 6 : 5);
  perigee_tensor *big[] = {f32_of(6, 0), f32_of(12, 0)};
  req = request_out_in(PERIGEE_OP_ALLGATHER_INTO_TENSOR_COALESCED, big, 2, 0, in, 2, 0);
  run_ok(group, &req);
  expect_f32(big[0], 5);
  expect_f32(big[1], 6);
  perigee_tensor *three[] = {f32_of(2, 0), f32_of(2, 0), f32_of(2, 0)};
  req = request_out_in(PERIGEE_OP_GATHER, NULL, 0, 0, in, 1, 0);
  run_ok(group, &req);
  req = request_out_in(PERIGEE_OP_GATHER, three, 3, 1, in, 1, 0);
  req.root = 1;
  run_ok(group, &req);
  for (int i = 0; i < 3; i++)
    expect_f32(three[i], 5);
  req = request_out_in(PERIGEE_OP_GATHER, out, 3, 1, &in[0], 1, 0);
  req.root = 1;
  req.out.v = (perigee_tensor *[]){three[0], three[1], big[0]};
  assert_int_equal(perigee_group_run(group, &req), PERIGEE_ESHAPE);
  assert_true(last_error_has("an output has 6 elements, but each fake rank sends 2"));
  req = request_out_in(PERIGEE_OP_SCATTER, three, 1, 0, NULL, 0, 0);
  run_ok(group, &req);
  expect_f32(three[0], 5); /* as it was */
  perigee_tensor *give[] = {f32_of(2, 1), f32_of(2, 2), f32_of(2, 3)};
  req = request_out_in(PERIGEE_OP_SCATTER, three, 1, 0, give, 3, 1);
  req.root = 1;
  run_ok(group, &req);
  expect_f32(three[0], 2);
  drop_group(group);
  for (int i = 0; i < 12; i++)
    perigee_tensor_unref(out[i]);
  for (int i = 0; i < 3; i++) {
    perigee_tensor_unref(three[i]);
    perigee_tensor_unref(give[i]);
  }
  for (int i = 0; i < 2; i++) {
    perigee_tensor_unref(in[i]);
    perigee_tensor_unref(big[i]);
  }
}

static void test_reduce_scatter_and_alltoall(void **state) {
  (void)state;
  perigee_group *group = open_alone("fake", 2, 3);
  perigee_tensor *in[] = {f32_of(1, 1), f32_of(2, 2), f32_of(3, 3)}, *out = f32_of(3, 0);
  perigee_request req = request_out_in(PERIGEE_OP_REDUCE_SCATTER, &out, 1, 0, in, 3, 1);
  run_ok(group, &req);
  expect_f32(out, 9);
  perigee_tensor *whole = tensor_of(PERIGEE_F32, 9);
  for (int i = 0; i < 9; i++)
    ((float *)perigee_tensor_data(whole))[i] = (float)i;
  req = request_out_in(PERIGEE_OP_REDUCE_SCATTER_TENSOR, &out, 1, 0, &whole, 1, 0);
  req.redop.kind = PERIGEE_REDOP_AVG;
  run_ok(group, &req);
  assert_true(f32_at(out, 0) == 6 && f32_at(out, 2) == 8);
  perigee_tensor *to[] = {f32_of(3, 0), f32_of(3, 0), f32_of(3, 0)};
  req = request_out_in(PERIGEE_OP_ALLTOALL, to, 3, 0, in, 3, 0);
  run_ok(group, &req);
  for (int i = 0; i < 3; i++)
    expect_f32(to[i], 3);
  perigee_tensor *got = f32_of(9, -1);
  req = request_out_in(PERIGEE_OP_ALLTOALL_BASE, &got, 1, 0, &whole, 1, 0);
  run_ok(group, &req);
  assert_true(f32_at(got, 0) == 6 && f32_at(got, 3) == 6 && f32_at(got, 8) == 8);
  int64_t splits[] = {4, 2, 3}, wrong[] = {3, 3, 3};
  req.in_splits = splits;
  req.n_in_splits = 3;
  run_ok(group, &req);
  assert_true(f32_at(got, 5) == 8);
  req.out_splits = splits;
  req.n_out_splits = 3;
  req.in_splits = wrong;
  assert_int_equal(perigee_group_run(group, &req), PERIGEE_ESHAPE);
  assert_int_equal(perigee_last_error()->op, PERIGEE_OP_ALLTOALL_BASE);
  drop_group(group);
  perigee_tensor *all[] = {in[0], in[1], in[2], out, whole, to[0], to[1], to[2], got};
  for (size_t i = 0; i < PERIGEE_COUNT(all); i++)
    perigee_tensor_unref(all[i]);
}

static void test_messages_and_works(void **state) {
  (void)state;
  perigee_group *group = open_alone("fake", 0, 2);
  perigee_tensor *t = f32_of(2, 8);
  assert_int_equal(perigee_send(group, t, 1, 5), 0);
  assert_int_equal(perigee_recv(group, t, 1, 5), 0);
  expect_f32(t, 8);
  perigee_request req = request_inplace(PERIGEE_OP_ALLREDUCE, &t, 1);
  perigee_work *work;
  assert_int_equal(perigee_group_submit(group, &req, &work), 0);
  assert_ptr_equal(work, perigee_work_done());
  expect_f32(t, 16);
  perigee_work_unref(work);
  req = request_out_in(PERIGEE_OP_RECV_ANYSOURCE, &t, 1, 0, NULL, 0, 0);
  run_ok(group, &req);
  perigee_request_init(&req, PERIGEE_OP_MONITORED_BARRIER);
  run_ok(group, &req);
  assert_string_equal(perigee_group_transport(group), "");
  assert_int_equal(perigee_group_failed(group, NULL), 0);
  perigee_group *half;
  assert_int_equal(perigee_group_subgroup(group, (int[]){1, 0}, 2, NULL, &half), 0);
  assert_int_equal(perigee_group_rank(half), 1);
  assert_int_equal(perigee_barrier(half), 0);
  drop_group(half);
  drop_group(group);
  perigee_tensor_unref(t);
}

/* ---- custom ------------------------------------------------------------------------------------ */

static int calls;

/* acc := 2 acc + x: neither commutative nor associative */
static int twice_plus(perigee_custom_op *self, perigee_tensor *acc, const perigee_tensor *x) {
  (void)self;
  float *a = perigee_tensor_data(acc);
  const float *b = perigee_tensor_data(x);
  for (int64_t i = 0; i < perigee_tensor_numel(acc); i++)
    a[i] = 2 * a[i] + b[i];
  calls++;
  return 0;
}
static int says_no(perigee_custom_op *self, perigee_tensor *acc, const perigee_tensor *x) {
  (void)self;
  (void)acc;
  (void)x;
  return 5;
}

static void test_custom(void **state) {
  (void)state;
  perigee_group *group = open_alone("fake", 0, 3);
  perigee_tensor *list[] = {f32_of(2, 1), f32_of(2, 10)};
  perigee_custom_op op = {.name = "twice_plus", .reduce = twice_plus};
  perigee_request req = request_inplace(PERIGEE_OP_ALLREDUCE, list, 2);
  req.redop = (perigee_redop){.kind = PERIGEE_REDOP_CUSTOM, .custom = &op};
  run_ok(group, &req);
  /* 1 10 1 10 1 10: 12, 25, 60, 121, 252 */
  expect_f32(list[0], 252);
  expect_f32(list[1], 252);
  assert_int_equal(calls, 5);
  op = (perigee_custom_op){.name = "says_no", .reduce = says_no};
  assert_int_equal(perigee_group_run(group, &req), PERIGEE_EINVAL);
  assert_true(last_error_has("the reduce function 'says_no' returned 5"));
  expect_f32(list[0], 252);
  drop_group(group);
  perigee_tensor_unref(list[0]);
  perigee_tensor_unref(list[1]);
}

int main(void) {
  program_deadline(60);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_allreduce),
      cmocka_unit_test(test_large_world),
      cmocka_unit_test(test_lists),
      cmocka_unit_test(test_gathers),
      cmocka_unit_test(test_reduce_scatter_and_alltoall),
      cmocka_unit_test(test_messages_and_works),
      cmocka_unit_test(test_custom),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
