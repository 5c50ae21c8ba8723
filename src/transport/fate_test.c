/* A group's fate changes once, tells its listeners, and each operation gets the error that is its own. */
#include "transport/mesh_testing.h"

static const int members[3] = {4, 2, 7};

static void set_up(perigee__fate *fate) {
  assert_int_equal(perigee__fate_init(fate, 99, "world", 1, 3, members), 0);
}

static void ring_up(void *arg) { atomic_fetch_add((_Atomic int *)arg, 1); }

static perigee_error cause_of(int code, uint64_t seq) {
  perigee_error error;
  perigee__error_init(&error);
  perigee__error_set(&error, code, "the cause");
  error.seq = seq;
  return error;
}

static void changes_once(void **state) {
  (void)state;
  perigee__fate fate;
  set_up(&fate);
  perigee_error first = cause_of(PERIGEE_EMISMATCH, 3), second = cause_of(PERIGEE_ETIMEDOUT, 4);
  assert_false(perigee__fate_failed(&fate));
  assert_true(perigee__fate_fail(&fate, &first));
  assert_false(perigee__fate_fail(&fate, &second));
  assert_true(perigee__fate_failed(&fate));
  assert_int_equal(fate.error.code, PERIGEE_EMISMATCH);
  assert_int_equal(fate.error.rank, 1);
  assert_string_equal(fate.error.group, "world");
  perigee__fate_fini(&fate);
}

static void listeners(void **state) {
  (void)state;
  perigee__fate fate;
  _Atomic int calls[PERIGEE_FATE_LISTENERS + 1] = {0};
  set_up(&fate);
  for (int i = 0; i < PERIGEE_FATE_LISTENERS; i++)
    assert_int_equal(perigee__fate_listen(&fate, ring_up, &calls[i]), 0);
  assert_int_equal(perigee__fate_listen(&fate, ring_up, &calls[PERIGEE_FATE_LISTENERS]),
                   PERIGEE_ELIMIT);
  perigee__fate_unlisten(&fate, ring_up, &calls[1]);
  perigee_error error = cause_of(PERIGEE_EABORTED, 0);
  perigee__fate_fail(&fate, &error);
  perigee__fate_fail(&fate, &error);
  for (int i = 0; i < PERIGEE_FATE_LISTENERS; i++)
    assert_int_equal(calls[i], i == 1 ? 0 : 1);
  assert_int_equal(perigee__fate_listen(&fate, ring_up, &calls[1]), 0); /* too late: told at once */
  assert_int_equal(calls[1], 1);
  perigee__fate_fini(&fate);
}

/* code: of the cause, which happened to operation 5. */
static int error_for(int code, uint64_t cause_seq, uint64_t seq, bool pending) {
  perigee__fate fate;
  perigee_error cause = cause_of(code, cause_seq), error;
  set_up(&fate);
  cause.rank = 0;
  cause.op = 9;
  perigee__fate_fail(&fate, &cause);
  int got = perigee__fate_error(&fate, 2, seq, pending, &error);
  assert_int_equal(got, error.code);
  assert_int_equal(error.op, 2);
  assert_true(error.seq == seq && error.rank == 1);
  assert_non_null(strstr(error.message, "the cause"));
  perigee__fate_fini(&fate);
  return got;
}

static void whose_error(void **state) {
  (void)state;
  assert_int_equal(error_for(PERIGEE_EPEERDEAD, 0, 5, true), PERIGEE_EPEERDEAD);
  assert_int_equal(error_for(PERIGEE_EMISMATCH, 5, 5, true), PERIGEE_EMISMATCH);
  assert_int_equal(error_for(PERIGEE_EMISMATCH, 5, 6, true), PERIGEE_EABORTED);
  assert_int_equal(error_for(PERIGEE_EMISMATCH, 5, 5, false), PERIGEE_EMISMATCH); /* comes late */
  assert_int_equal(error_for(PERIGEE_EMISMATCH, 0, 5, false), PERIGEE_EABORTED);
  assert_int_equal(error_for(PERIGEE_ETIMEDOUT, 5, 5, true), PERIGEE_ETIMEDOUT);
  assert_int_equal(error_for(PERIGEE_ETIMEDOUT, 0, 5, true), PERIGEE_ETIMEDOUT);
  assert_int_equal(error_for(PERIGEE_ETIMEDOUT, 4, 5, true), PERIGEE_EABORTED);
  assert_int_equal(error_for(PERIGEE_ESHAPE, 5, 5, true), PERIGEE_ESHAPE);
  assert_int_equal(error_for(PERIGEE_ESHAPE, 4, 5, true), PERIGEE_EABORTED);
  assert_int_equal(error_for(PERIGEE_EPEERCLOSED, 0, 5, true), PERIGEE_EPEERCLOSED);
  assert_int_equal(error_for(PERIGEE_EPEERCLOSED, 0, 5, false), PERIGEE_EABORTED);
  assert_int_equal(error_for(PERIGEE_ECLOSED, 0, 5, false), PERIGEE_ECLOSED);
}

static void ranks(void **state) {
  (void)state;
  perigee__fate fate;
  set_up(&fate);
  assert_int_equal(perigee__fate_rank_of(&fate, 4), 0);
  assert_int_equal(perigee__fate_rank_of(&fate, 2), 1);
  assert_int_equal(perigee__fate_rank_of(&fate, 7), 2);
  assert_int_equal(perigee__fate_rank_of(&fate, 0), -1);
  perigee__fate_fini(&fate);
}

typedef struct race {
  perigee__fate fate;
  _Atomic int go, won;
} race;

static void *race_main(void *arg) {
  race *r = arg;
  perigee_error error = cause_of(PERIGEE_ETIMEDOUT, 1);
  while (atomic_load(&r->go) == 0) {
  }
  if (perigee__fate_fail(&r->fate, &error))
    atomic_fetch_add(&r->won, 1);
  /* Who was not first may be before the first has written its cause; who sees it failed may read. */
  while (!perigee__fate_failed(&r->fate)) {
  }
  CHECK(r->fate.error.code == PERIGEE_ETIMEDOUT);
  return NULL;
}

static void one_winner(void **state) {
  (void)state;
  for (int round = 0; round < 50; round++) {
    race r;
    pthread_t threads[4];
    memset(&r, 0, sizeof(r));
    set_up(&r.fate);
    for (int i = 0; i < 4; i++)
      assert_int_equal(pthread_create(&threads[i], NULL, race_main, &r), 0);
    atomic_store(&r.go, 1);
    for (int i = 0; i < 4; i++)
      pthread_join(threads[i], NULL);
    assert_int_equal(r.won, 1);
    perigee__fate_fini(&r.fate);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(changes_once), cmocka_unit_test(listeners),  cmocka_unit_test(whose_error),
      cmocka_unit_test(ranks),        cmocka_unit_test(one_winner),
  };
  return run_all("fate", tests, sizeof(tests) / sizeof(tests[0]));
}
