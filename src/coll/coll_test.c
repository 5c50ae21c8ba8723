/* Which engine a group gets, the collectives of one rank, and what is said when a group cannot be made. */
#include "coll/net_testing.h"

#include <signal.h>
#include <sys/resource.h>

/* ---- engines ------------------------------------------------------------------------------------- */

static void check_transport(test_rank *r) {
  rank_join(r, 1);
  EXPECT(r, strcmp(perigee__coll_transport(r->coll), r->arg) == 0, "%s",
         perigee__coll_transport(r->coll));
  perigee__coll_call call = {.kind = PERIGEE_COLL_BARRIER, .op = PERIGEE_OP_BARRIER};
  EXPECT(r, rank_call(r, &call, test_fp(PERIGEE_OP_BARRIER, -1, -1, -1, 0)) == 0, "%s",
         r->error.message);
  EXPECT(r, atomic_load(&r->fate.entered) == 1, "entered");
  rank_leave(r);
}

static void engine_of(int n, perigee__transport transport, const char *name) {
  char wanted[8];
  test_world w;
  snprintf(wanted, sizeof(wanted), "%s", name);
  world_open(&w, n, transport);
  world_run(&w, check_transport, wanted);
  world_close(&w);
}

static void engine_by_place(void **state) {
  (void)state;
  engine_of(1, PERIGEE_TRANSPORT_AUTO, "self");
  engine_of(3, PERIGEE_TRANSPORT_TCP, "tcp");
  engine_of(3, PERIGEE_TRANSPORT_SHM, "shm");
  engine_of(3, PERIGEE_TRANSPORT_AUTO, "shm");
}

/* No shared memory is to be had: all ranks go on with messages. */
static void without_shared_memory(void **state) {
  (void)state;
  struct rlimit before, none;
  test_world w;
  char wanted[8] = "tcp";
  world_open(&w, 3, PERIGEE_TRANSPORT_AUTO);
  signal(SIGXFSZ, SIG_IGN);
  assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
  none = (struct rlimit){.rlim_cur = 1024, .rlim_max = before.rlim_max};
  assert_int_equal(setrlimit(RLIMIT_FSIZE, &none), 0);
  world_run(&w, check_transport, wanted);
  assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
  world_close(&w);
}

static void wrong_rules_are_said_at_once(void **state) {
  (void)state;
  perigee__fate fate;
  perigee__coll *coll = NULL;
  int self = 0;
  assert_int_equal(perigee__fate_init(&fate, 1, "test", 0, 1, &self), 0);
  perigee__coll_params params = {.fate = &fate, .deadline_ns = test_deadline()};
  setenv("PERIGEE_SELECT", "allreduce:0-:rink", 1);
  assert_int_equal(perigee__coll_create(&params, &coll), PERIGEE_EINVAL);
  assert_non_null(strstr(perigee_last_error()->message, "'rink' is no algorithm of allreduce"));
  assert_null(coll);
  unsetenv("PERIGEE_SELECT");
  perigee__coll_destroy(&coll);
  perigee__fate_fini(&fate);
}

/* ---- one rank ------------------------------------------------------------------------------------ */

typedef struct alone {
  perigee__fate fate;
  perigee__coll *coll;
} alone;

static void alone_open(alone *a) {
  int self = 0;
  assert_int_equal(perigee__fate_init(&a->fate, 1, "solo", 0, 1, &self), 0);
  perigee__coll_params params = {.fate = &a->fate, .deadline_ns = test_deadline()};
  assert_int_equal(perigee__coll_create(&params, &a->coll), 0);
}

static void alone_close(alone *a) {
  perigee__coll_destroy(&a->coll);
  perigee__fate_fini(&a->fate);
}

static void contribution_of_one(void **state) {
  (void)state;
  alone a;
  alone_open(&a);
  float in[3] = {1, 2, 4}, out[3];
  perigee_error error;
  perigee__coll_call call = {.kind = PERIGEE_COLL_ALLREDUCE,
                             .op = PERIGEE_OP_ALLREDUCE,
                             .seq = 1,
                             .shown_seq = 1,
                             .fp = 1,
                             .dtype = PERIGEE_F32,
                             .redop = PERIGEE_REDOP_AVG,
                             .ncontrib = 4,
                             .in = in,
                             .out = out,
                             .count = 3};
  assert_int_equal(perigee__coll_run(a.coll, &call, &error), 0);
  assert_true(out[0] == 0.25f && out[1] == 0.5f && out[2] == 1);
  call.redop = PERIGEE_REDOP_PREMUL_SUM;
  call.factor = 3;
  call.kind = PERIGEE_COLL_REDUCE;
  call.out = in;
  assert_int_equal(perigee__coll_run(a.coll, &call, &error), 0);
  assert_true(in[0] == 3 && in[1] == 6 && in[2] == 12);
  alone_close(&a);
}

static void errors_of_one(void **state) {
  (void)state;
  alone a;
  alone_open(&a);
  char in[8] = "abcdefg", out[4] = "xyz";
  perigee__block room = {out, 3};
  perigee_error error;
  perigee__coll_call call = {.kind = PERIGEE_COLL_ALLGATHER,
                             .op = PERIGEE_OP_ALLGATHER,
                             .seq = 1,
                             .shown_seq = 1,
                             .fp = 1,
                             .in = in,
                             .in_bytes = 5,
                             .out_blocks = &room};
  assert_int_equal(perigee__coll_run(a.coll, &call, &error), PERIGEE_ETRUNC);
  assert_string_equal(error.message, "rank 0 has 5 bytes for rank 0, which has room for 3");
  assert_string_equal(error.group, "solo");
  assert_int_equal(error.seq, 1);
  assert_string_equal(out, "xyz");
  call.in_bytes = 2;
  assert_int_equal(perigee__coll_run(a.coll, &call, &error), PERIGEE_ESHAPE);
  assert_string_equal(error.message, "rank 0 has 2 bytes for rank 0, which expects 3");
  assert_string_equal(out, "xyz");
  call.kind = PERIGEE_COLL_SCATTER;
  call.in_blocks = &room;
  call.out = in;
  call.out_bytes = 4;
  assert_int_equal(perigee__coll_run(a.coll, &call, &error), PERIGEE_ESHAPE);
  call.out_bytes = 3;
  assert_int_equal(perigee__coll_run(a.coll, &call, &error), 0);
  assert_memory_equal(in, "xyzd", 4);
  call.kind = PERIGEE_COLL_ALLREDUCE;
  call.dtype = PERIGEE_F32;
  call.redop = PERIGEE_REDOP_BAND;
  assert_int_equal(perigee__coll_run(a.coll, &call, &error), PERIGEE_EDTYPE);
  alone_close(&a);
}

static void failed_group_refuses(void **state) {
  (void)state;
  alone a;
  alone_open(&a);
  perigee_error error, cause;
  perigee__error_set(&cause, PERIGEE_EABORTED, "enough");
  assert_true(perigee__fate_fail(&a.fate, &cause));
  perigee__coll_call call = {
      .kind = PERIGEE_COLL_BARRIER, .op = PERIGEE_OP_BARRIER, .seq = 1, .fp = 1};
  assert_int_equal(perigee__coll_run(a.coll, &call, &error), PERIGEE_EABORTED);
  assert_non_null(strstr(error.message, "enough"));
  alone_close(&a);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(engine_by_place),
                                     cmocka_unit_test(without_shared_memory),
                                     cmocka_unit_test(wrong_rules_are_said_at_once),
                                     cmocka_unit_test(contribution_of_one),
                                     cmocka_unit_test(errors_of_one),
                                     cmocka_unit_test(failed_group_refuses)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
