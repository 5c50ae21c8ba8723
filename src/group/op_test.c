/* Defends: the table of operations is complete, and every name in it finds its row and no other. */
#include "group/testing.h"

static void test_rows(void **state) {
  (void)state;
  for (int op = 0; op < PERIGEE_OP_COUNT; op++) {
    const perigee_op_info *info = perigee_op_get(op);
    assert_non_null(info);
    assert_int_equal(info->op, op);
    assert_string_equal(perigee_op_name(op), info->name);
    assert_int_equal(perigee_op_find(info->name), op);
    assert_true(info->opts & PERIGEE_OPT_TIMEOUT);
    char aliases[128];
    snprintf(aliases, sizeof(aliases), "%s", info->aliases);
    for (char *save, *word = strtok_r(aliases, " ", &save); word != NULL;
         word = strtok_r(NULL, " ", &save))
      assert_int_equal(perigee_op_find(word), op);
  }
  assert_null(perigee_op_get(-1));
  assert_null(perigee_op_get(PERIGEE_OP_COUNT));
  assert_string_equal(perigee_op_name(PERIGEE_OP_COUNT), "?");
}

static void test_names(void **state) {
  (void)state;
  static const struct {
    const char *name;
    int op;
  } names[] = {{"all_reduce", PERIGEE_OP_ALLREDUCE},
               {"all_gather_single", PERIGEE_OP_ALLGATHER_INTO_TENSOR},
               {"_allgather_base", PERIGEE_OP_ALLGATHER_INTO_TENSOR},
               {"_reduce_scatter_base", PERIGEE_OP_REDUCE_SCATTER_TENSOR},
               {"all_to_all", PERIGEE_OP_ALLTOALL},
               {"all_to_all_single", PERIGEE_OP_ALLTOALL_BASE},
               {"recvAnysource", PERIGEE_OP_RECV_ANYSOURCE},
               {"allReduce", -1},
               {"all_reduce ", -1},
               {"all_gather_single _allgather_base", -1},
               {"all", -1},
               {"", -1}};
  for (size_t i = 0; i < PERIGEE_COUNT(names); i++)
    if (perigee_op_find(names[i].name) != names[i].op)
      fail_msg("'%s' is %d", names[i].name, perigee_op_find(names[i].name));
}

static void test_reduce_ops(void **state) {
  (void)state;
  for (int kind = 0; kind < PERIGEE_REDOP_COUNT; kind++)
    assert_int_equal(perigee_redop_find(perigee_redop_name(kind)), kind);
  assert_int_equal(perigee_redop_find("prod"), PERIGEE_REDOP_PRODUCT);
  assert_int_equal(perigee_redop_find("mean"), -1);
  assert_string_equal(perigee_redop_name(-1), "?");
  assert_string_equal(perigee_redop_name(PERIGEE_REDOP_COUNT), "?");
  assert_true(perigee_redop_defined(PERIGEE_REDOP_CUSTOM, PERIGEE_BOOL));
  assert_true(perigee_redop_defined(PERIGEE_REDOP_BAND, PERIGEE_BOOL));
  assert_false(perigee_redop_defined(PERIGEE_REDOP_BAND, PERIGEE_F16));
  assert_false(perigee_redop_defined(PERIGEE_REDOP_AVG, PERIGEE_BOOL));
  assert_false(perigee_redop_defined(PERIGEE_REDOP_MIN, PERIGEE_C64));
}

static void test_request_defaults(void **state) {
  (void)state;
  perigee_request req;
  memset(&req, 0xa5, sizeof(req));
  perigee_request_init(&req, PERIGEE_OP_SEND);
  assert_int_equal(req.size, sizeof(req));
  assert_int_equal(req.op, PERIGEE_OP_SEND);
  assert_int_equal(req.in.n, 0);
  assert_int_equal(req.out.n, 0);
  assert_int_equal(req.root, 0);
  assert_int_equal(req.peer, -1);
  assert_int_equal(req.tag, 0);
  assert_int_equal(req.redop.kind, PERIGEE_REDOP_SUM);
  assert_true(req.redop.factor >= 1 && req.redop.factor <= 1);
  assert_true(req.timeout_ns == PERIGEE_TIMEOUT_DEFAULT);
  assert_int_equal(req.seq, 0);
}

/* The plain calls fill requests as their parameters say. */
static void plain(perigee_group *group, void *arg) {
  (void)arg;
  int me = perigee_group_rank(group);
  perigee_tensor *t = f32_of(2, (float)(me + 1)), *all = f32_of(4, 0);
  CHECK(perigee_allgather_into_tensor(group, all, t) == 0);
  CHECK((int)f32_at(all, 0) == 1 && (int)f32_at(all, 3) == 2);
  CHECK(perigee_reduce(group, t, 1, PERIGEE_REDOP_MAX) == 0);
  CHECK(f32_is(t, (float)(me + 1)));
  CHECK(perigee_reduce(group, t, 0, PERIGEE_REDOP_MAX) == 0);
  CHECK(f32_is(t, 2));
  CHECK(perigee_allreduce(group, t, PERIGEE_REDOP_PRODUCT) == 0);
  CHECK(f32_is(t, 4));
  CHECK(perigee_broadcast(group, t, 1) == 0);
  CHECK(perigee_barrier(group) == 0);
  perigee_tensor_unref(t);
  perigee_tensor_unref(all);
}
static void test_plain_calls(void **state) {
  (void)state;
  with_ranks(2, plain, NULL);
}

int main(void) {
  program_deadline(60);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_rows),        cmocka_unit_test(test_names),
      cmocka_unit_test(test_reduce_ops),  cmocka_unit_test(test_request_defaults),
      cmocka_unit_test(test_plain_calls),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
