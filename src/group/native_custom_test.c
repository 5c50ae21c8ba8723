/* Defends: a caller's reduce function sees the contributions in rank order, and its failure is its rank's alone. */
#include "group/testing.h"

#include "group/work.h"

/* An operation as a test gives it; the calls are counted by the thread that makes them, one at a time. */
typedef struct counted_op {
  perigee_custom_op op;
  _Atomic int calls, refs, ref_calls;
  int64_t longest; /* elements of a view */
  int fails_at;    /* call number, 0 never */
  int code;
  perigee_group *group; /* for functions that try to use it */
  int got[4];
} counted_op;

/* acc := 3 acc + x, wrapping: (rank, place) order shows in the result */
static int three_acc_plus(perigee_custom_op *self, perigee_tensor *acc, const perigee_tensor *x) {
  counted_op *op = PERIGEE_CONTAINER_OF(self, counted_op, op);
  int call = atomic_fetch_add(&op->calls, 1) + 1;
  int64_t numel = perigee_tensor_numel(acc);
  CHECK(perigee_tensor_ndim(acc) == 1 && perigee_tensor_ndim(x) == 1);
  CHECK(perigee_tensor_numel(x) == numel && perigee_tensor_dtype(x) == perigee_tensor_dtype(acc));
  op->longest = numel > op->longest ? numel : op->longest;
  if (call == op->fails_at)
    return op->code != 0 ? perigee__fail(op->code, "the script says no") : 1;
  uint64_t *a = perigee_tensor_data(acc);
  const uint64_t *b = perigee_tensor_data(x);
  for (int64_t i = 0; i < numel; i++)
    a[i] = 3 * a[i] + b[i];
  return 0;
}
static void op_ref(perigee_custom_op *self) {
  counted_op *op = PERIGEE_CONTAINER_OF(self, counted_op, op);
  atomic_fetch_add(&op->refs, 1);
  atomic_fetch_add(&op->ref_calls, 1);
}
static void op_unref(perigee_custom_op *self) {
  atomic_fetch_sub(&PERIGEE_CONTAINER_OF(self, counted_op, op)->refs, 1);
}

static counted_op op_of(const char *name) {
  return (counted_op){
      .op = {.name = name, .reduce = three_acc_plus, .ref = op_ref, .unref = op_unref}};
}

static uint64_t mine(int rank, int part, int64_t i) {
  return (uint64_t)(rank * 7 + part * 3 + i % 50 + 1);
}

static perigee_tensor *u64_of(int rank, int part, int64_t count) {
  perigee_tensor *t = tensor_of(PERIGEE_U64, count);
  for (int64_t i = 0; i < count; i++)
    ((uint64_t *)perigee_tensor_data(t))[i] = mine(rank, part, i);
  return t;
}

/* The fold of parts part..part+k-1 of all ranks in the order (rank, part), at element i. */
static uint64_t folded(int n, int part, int k, int64_t i) {
  uint64_t acc = 0;
  for (int r = 0; r < n; r++)
    for (int j = part; j < part + k; j++)
      acc = r == 0 && j == part ? mine(r, j, i) : 3 * acc + mine(r, j, i);
  return acc;
}

static bool is_folded(const perigee_tensor *t, int n, int part, int k, int64_t offset) {
  for (int64_t i = 0; i < perigee_tensor_numel(t); i++)
    if (((const uint64_t *)perigee_tensor_data(t))[i] != folded(n, part, k, offset + i))
      return false;
  return true;
}
static bool is_mine(const perigee_tensor *t, int rank, int part) {
  for (int64_t i = 0; i < perigee_tensor_numel(t); i++)
    if (((const uint64_t *)perigee_tensor_data(t))[i] != mine(rank, part, i))
      return false;
  return true;
}

static int run_custom(perigee_group *group, perigee_request *req, counted_op *op, bool async) {
  req->redop = (perigee_redop){.kind = PERIGEE_REDOP_CUSTOM, .custom = &op->op};
  if (!async)
    return perigee_group_run(group, req);
  perigee_work *work;
  int rc = perigee_group_submit(group, req, &work);
  if (rc == 0) {
    rc = perigee_work_wait(work, PERIGEE_TIMEOUT_NONE);
    perigee_work_unref(work);
  }
  return rc;
}

/* ---- values ------------------------------------------------------------------------------------ */

static void in_order(perigee_group *group, void *arg) {
  (void)arg;
  int me = perigee_group_rank(group), n = perigee_group_size(group);
  static const int64_t counts[] = {0, 1, 1000};
  for (size_t c = 0; c < PERIGEE_COUNT(counts); c++)
    for (int async = 0; async < 2; async++) {
      counted_op op = op_of("three_acc_plus");
      int64_t count = counts[c];
      perigee_tensor *list[] = {u64_of(me, 0, count), u64_of(me, 1, count)};
      perigee_request req = request_inplace(PERIGEE_OP_ALLREDUCE, list, 1);
      CHECK(run_custom(group, &req, &op, async) == 0);
      CHECK(is_folded(list[0], n, 0, 1, 0));
      CHECK(atomic_load(&op.calls) == (count > 0 ? n - 1 : 0));
      CHECK(atomic_load(&op.refs) == 0 && atomic_load(&op.ref_calls) == async);
      perigee_tensor_unref(list[0]);
      list[0] = u64_of(me, 0, count);
      req = request_inplace(PERIGEE_OP_ALLREDUCE, list, 2);
      CHECK(run_custom(group, &req, &op, async) == 0);
      CHECK(is_folded(list[0], n, 0, 2, 0) && is_folded(list[1], n, 0, 2, 0));
      perigee_tensor *packed[] = {u64_of(me, 0, count), u64_of(me, 1, 5)};
      req = request_inplace(PERIGEE_OP_ALLREDUCE_COALESCED, packed, 2);
      CHECK(run_custom(group, &req, &op, async) == 0);
      CHECK(is_folded(packed[0], n, 0, 1, 0) && is_folded(packed[1], n, 1, 1, 0));
      for (int i = 0; i < 2; i++) {
        perigee_tensor_unref(list[i]);
        perigee_tensor_unref(packed[i]);
      }
    }
}

static void reduce_and_scatter(perigee_group *group, void *arg) {
  (void)arg;
  int me = perigee_group_rank(group), n = perigee_group_size(group);
  counted_op op = op_of("three_acc_plus");
  for (int root = 0; root < n; root++) {
    perigee_tensor *t = u64_of(me, 0, 9);
    perigee_request req = request_inplace(PERIGEE_OP_REDUCE, &t, 1);
    req.root = root;
    CHECK(run_custom(group, &req, &op, root % 2) == 0);
    CHECK(me == root ? is_folded(t, n, 0, 1, 0) : is_mine(t, me, 0));
    perigee_tensor_unref(t);
  }
  CHECK(atomic_load(&op.calls) == n - 1); /* as root only */
  perigee_tensor *in[RANKS_MAX], *out = u64_of(me, 90, 4 + me);
  for (int r = 0; r < n; r++)
    in[r] = u64_of(me, r, 4 + r);
  perigee_request req = request_out_in(PERIGEE_OP_REDUCE_SCATTER, &out, 1, 0, in, (uint32_t)n, 1);
  CHECK(run_custom(group, &req, &op, false) == 0);
  CHECK(is_folded(out, n, me, 1, 0));
  for (int r = 0; r < n; r++) {
    CHECK(is_mine(in[r], me, r));
    perigee_tensor_unref(in[r]);
  }
  perigee_tensor_unref(out);
  perigee_tensor *big[] = {u64_of(me, 0, 6 * n), u64_of(me, 1, n)};
  perigee_tensor *small[] = {u64_of(0, 0, 6), u64_of(0, 0, 1)};
  req = request_out_in(PERIGEE_OP_REDUCE_SCATTER_TENSOR_COALESCED, small, 2, 0, big, 2, 0);
  CHECK(run_custom(group, &req, &op, true) == 0);
  CHECK(is_folded(small[0], n, 0, 1, 6 * me) && is_folded(small[1], n, 1, 1, me));
  for (int i = 0; i < 2; i++) {
    perigee_tensor_unref(big[i]);
    perigee_tensor_unref(small[i]);
  }
}

static void test_rank_order(void **state) {
  (void)state;
  for (int n = 1; n <= 5; n++) {
    with_ranks(n, in_order, NULL);
    with_ranks(n, reduce_and_scatter, NULL);
  }
}

static void in_chunks(perigee_group *group, void *arg) {
  (void)arg;
  enum {
    COUNT = (1 << 18) * 2 + 5
  };
  int me = perigee_group_rank(group), n = perigee_group_size(group);
  counted_op op = op_of("three_acc_plus");
  perigee_tensor *t = u64_of(me, 0, COUNT);
  perigee_request req = request_inplace(PERIGEE_OP_ALLREDUCE, &t, 1);
  CHECK(run_custom(group, &req, &op, false) == 0);
  CHECK(is_folded(t, n, 0, 1, 0));
  CHECK(atomic_load(&op.calls) == 3 * (n - 1));
  CHECK(op.longest == 1 << 18);
  perigee_tensor_unref(t);
}
static void test_chunks(void **state) { (void)state, with_ranks(2, in_chunks, NULL); }

/* ---- failures ---------------------------------------------------------------------------------- */

static void one_fails(perigee_group *group, void *arg) {
  int me = perigee_group_rank(group), n = perigee_group_size(group), code = *(int *)arg;
  counted_op op = op_of("three_acc_plus");
  op.code = code;
  op.fails_at = me == 1 ? 2 : 0;
  perigee_tensor *t = u64_of(me, 0, 10);
  perigee_request req = request_inplace(PERIGEE_OP_ALLREDUCE, &t, 1);
  req.seq = 41;
  int rc = run_custom(group, &req, &op, code == 0);
  if (me == 1) {
    const perigee_error *error = perigee_last_error();
    CHECK(rc == (code != 0 ? code : PERIGEE_EINVAL));
    CHECK(error_has(error, code != 0 ? "the script says no"
                                     : "the reduce function 'three_acc_plus' returned 1"));
    CHECK(error->op == PERIGEE_OP_ALLREDUCE && error->seq == 41 && error->rank == 1);
    CHECK(strcmp(error->group, "world") == 0);
    CHECK(is_mine(t, me, 0)); /* as it was */
  } else {
    CHECK(rc == 0);
    CHECK(is_folded(t, n, 0, 1, 0));
  }
  CHECK(atomic_load(&op.refs) == 0);
  perigee_tensor_unref(t);
  CHECK(perigee_group_failed(group, NULL) == 0);
  /* Several collectives in one request: the rest of them goes on, too. */
  op = op_of("three_acc_plus");
  op.code = code;
  op.fails_at = me == 0 ? 1 : 0;
  perigee_tensor *big[] = {u64_of(me, 0, n), u64_of(me, 1, n)};
  perigee_tensor *small[] = {u64_of(me, 0, 1), u64_of(me, 0, 1)};
  req = request_out_in(PERIGEE_OP_REDUCE_SCATTER_TENSOR_COALESCED, small, 2, 0, big, 2, 0);
  rc = run_custom(group, &req, &op, false);
  CHECK(me == 0 ? rc == (code != 0 ? code : PERIGEE_EINVAL) : rc == 0);
  CHECK(is_folded(small[1], n, 1, 1, me));
  for (int i = 0; i < 2; i++) {
    perigee_tensor_unref(big[i]);
    perigee_tensor_unref(small[i]);
  }
  CHECK(perigee_barrier(group) == 0);
}

static void test_a_failure_is_local(void **state) {
  (void)state;
  int codes[] = {PERIGEE_ELUA, 0};
  for (int i = 0; i < 2; i++)
    with_ranks(3, one_fails, &codes[i]);
}

static int tries_to_wait(perigee_custom_op *self, perigee_tensor *acc, const perigee_tensor *x) {
  counted_op *op = PERIGEE_CONTAINER_OF(self, counted_op, op);
  (void)acc;
  (void)x;
  perigee_work *work = NULL;
  perigee_request req;
  perigee_request_init(&req, PERIGEE_OP_BARRIER);
  op->got[0] = perigee_barrier(op->group);
  op->got[1] = perigee_group_submit(op->group, &req, &work);
  perigee_group *child;
  op->got[2] = perigee_group_split(op->group, 0, 0, NULL, &child);
  CHECK(perigee_future_create(NULL, NULL, PERIGEE_NEVER, &work) == 0);
  op->got[3] = perigee_work_wait(work, PERIGEE_TIMEOUT_NONE);
  perigee_work_unref(work);
  return 0;
}

static void must_not_wait(perigee_group *group, void *arg) {
  (void)arg;
  for (int async = 0; async < 2; async++) {
    counted_op op = op_of("waits");
    op.op.reduce = tries_to_wait;
    op.group = group;
    perigee_tensor *t = u64_of(0, 0, 1);
    perigee_request req = request_inplace(PERIGEE_OP_ALLREDUCE, &t, 1);
    CHECK(run_custom(group, &req, &op, async) == 0);
    for (int i = 0; i < 4; i++)
      CHECK(op.got[i] == PERIGEE_EDEADLK);
    perigee_tensor_unref(t);
  }
}
static void test_no_waiting_inside(void **state) {
  (void)state, with_ranks(2, must_not_wait, NULL);
}

static void names_differ(perigee_group *group, void *arg) {
  (void)arg;
  counted_op op = op_of(perigee_group_rank(group) ? "this" : "that");
  perigee_tensor *t = u64_of(0, 0, 1);
  perigee_request req = request_inplace(PERIGEE_OP_ALLREDUCE, &t, 1);
  int rc = run_custom(group, &req, &op, false);
  CHECK(rc == PERIGEE_EMISMATCH || rc == PERIGEE_EABORTED);
  CHECK(atomic_load(&op.calls) == 0);
  perigee_tensor_unref(t);
}
static void test_names_are_compared(void **state) {
  (void)state, with_ranks(2, names_differ, NULL);
}

/* ---- no memory --------------------------------------------------------------------------------- */

#ifdef SANITIZED
PERIGEE_API const char *__asan_default_options(void);
const char *__asan_default_options(void) { return "allocator_may_return_null=1"; }
PERIGEE_API const char *__tsan_default_options(void);
const char *__tsan_default_options(void) { return "allocator_may_return_null=1"; }
#endif

/* A temporary that cannot be had: a tensor that claims more than there is. */
static void no_memory(perigee_group *group, void *arg) {
  int op_id = *(int *)arg, me = perigee_group_rank(group);
  static double one;
  int64_t huge = INT64_C(1) << 57;
  perigee_tensor *list[2], *t = u64_of(me, 0, 3);
  counted_op op = op_of("three_acc_plus");
  for (int i = 0; i < 2; i++)
    REQUIRE(perigee_tensor_wrap(PERIGEE_U64, 1, &huge, &one, NULL, NULL, &list[i]) == 0);
  perigee_request req = request_inplace(op_id, me == 0 ? list : &t, me == 0 ? 2 : 1);
  int rc = op_id == PERIGEE_OP_ALLREDUCE ? run_custom(group, &req, &op, false)
                                         : perigee_group_run(group, &req);
  CHECK(rc == PERIGEE_ENOMEM || (me != 0 && rc == PERIGEE_EABORTED));
  CHECK(perigee_last_error()->op == op_id);
  CHECK(last_error_has("no memory for"));
  CHECK(perigee_barrier(group) == PERIGEE_EABORTED);
  CHECK(last_error_has("no memory for"));
  for (int i = 0; i < 2; i++)
    perigee_tensor_unref(list[i]);
  perigee_tensor_unref(t);
}

static void test_no_memory_fails_the_group(void **state) {
  (void)state;
  int ops[] = {PERIGEE_OP_ALLREDUCE_COALESCED, PERIGEE_OP_ALLREDUCE};
  for (int i = 0; i < 2; i++)
    with_ranks(3, no_memory, &ops[i]);
}

int main(void) {
  program_deadline(100);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_rank_order),         cmocka_unit_test(test_chunks),
      cmocka_unit_test(test_a_failure_is_local), cmocka_unit_test(test_no_waiting_inside),
      cmocka_unit_test(test_names_are_compared), cmocka_unit_test(test_no_memory_fails_the_group),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
