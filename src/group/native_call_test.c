/* Defends: every operation, in every list form, gives what its plain definition gives, on every number of ranks. */
#include "group/testing.h"

#include "group/work.h"

/* What one case works with. Values are small whole numbers, so that every dtype holds every sum exactly. */
typedef struct ctx {
  perigee_group *group;
  int me, n;
  perigee_dtype dtype;
  int64_t count;
  bool async;
} ctx;

static int64_t value(int rank, int part, int64_t i) { return (rank * 3 + part * 5 + i) % 7 + 1; }

static void set_num(perigee_tensor *t, int64_t i, int64_t v) {
  perigee_scalar s = {.kind = PERIGEE_SCALAR_INT, .i = v};
  CHECK(perigee_tensor_set(t, i, &s) == 0);
}

static double get_num(const perigee_tensor *t, int64_t i) {
  perigee_scalar s;
  REQUIRE(perigee_tensor_get(t, i, &s) == 0);
  return s.kind == PERIGEE_SCALAR_UINT                                   ? (double)s.u
         : s.kind == PERIGEE_SCALAR_INT || s.kind == PERIGEE_SCALAR_BOOL ? (double)s.i
                                                                         : s.re;
}

static perigee_tensor *blank(const ctx *c, int64_t count) {
  perigee_tensor *t = tensor_of(c->dtype, count);
  for (int64_t i = 0; i < count; i++)
    set_num(t, i, 99);
  return t;
}

static perigee_tensor *filled(const ctx *c, int part, int64_t count) {
  perigee_tensor *t = tensor_of(c->dtype, count);
  for (int64_t i = 0; i < count; i++)
    set_num(t, i, value(c->me, part, i));
  return t;
}

static void drop(perigee_tensor **list, uint32_t n) {
  for (uint32_t i = 0; i < n; i++)
    perigee_tensor_unref(list[i]);
}

static void go(const ctx *c, const perigee_request *req) {
  if (!c->async) {
    CHECK(perigee_group_run(c->group, req) == 0);
    return;
  }
  perigee_work *work;
  REQUIRE(perigee_group_submit(c->group, req, &work) == 0);
  CHECK(perigee_work_wait(work, PERIGEE_TIMEOUT_NONE) == 0);
  CHECK(perigee_work_get_status(work) == PERIGEE_WORK_DONE);
  perigee_work_unref(work);
}

#define SAME(_a, _b) (!((_a) < (_b)) && !((_a) > (_b)))

/* All elements of t are value(rank, part, offset + i). */
static bool holds(const perigee_tensor *t, int64_t from, int64_t count, int rank, int part,
                  int64_t offset) {
  for (int64_t i = 0; i < count; i++)
    if (!SAME(get_num(t, from + i), (double)value(rank, part, offset + i)))
      return false;
  return true;
}

/* ---- reductions -------------------------------------------------------------------------------- */

static double combine(perigee_redop_kind kind, double a, double b) {
  switch (kind) {
  case PERIGEE_REDOP_MAX:
    return a > b ? a : b;
  case PERIGEE_REDOP_MIN:
    return a < b ? a : b;
  case PERIGEE_REDOP_BAND:
    return (double)((int64_t)a & (int64_t)b);
  case PERIGEE_REDOP_BOR:
    return (double)((int64_t)a | (int64_t)b);
  case PERIGEE_REDOP_BXOR:
    return (double)((int64_t)a ^ (int64_t)b);
  case PERIGEE_REDOP_PRODUCT:
    return a * b;
  default:
    return a + b;
  }
}

/* The reduction over all ranks of parts 0..k-1 at element i. */
static double expected(const ctx *c, const perigee_redop *redop, int part, int k, int64_t i) {
  double factor = redop->kind == PERIGEE_REDOP_PREMUL_SUM ? redop->factor : 1, acc = 0;
  for (int r = 0; r < c->n; r++)
    for (int j = part; j < part + k; j++) {
      double v = factor * (double)value(r, j, i);
      acc = r == 0 && j == part ? v : combine(redop->kind, acc, v);
    }
  if (redop->kind == PERIGEE_REDOP_AVG)
    acc /= c->n * k;
  bool whole = c->dtype != PERIGEE_F32 && c->dtype != PERIGEE_F64 && c->dtype != PERIGEE_C64 &&
               c->dtype != PERIGEE_F16 && c->dtype != PERIGEE_BF16;
  return whole ? (double)(int64_t)acc : acc;
}

static bool is_reduced(const ctx *c, const perigee_tensor *t, const perigee_redop *redop, int part,
                       int k, int64_t offset) {
  for (int64_t i = 0; i < perigee_tensor_numel(t); i++) {
    double want = expected(c, redop, part, k, offset + i), got = get_num(t, i);
    /* a quotient is rounded to the dtype */
    double slack =
        redop->kind == PERIGEE_REDOP_AVG ? want / (c->dtype == PERIGEE_BF16 ? 100 : 1000) : 0;
    if (!(got >= want - slack && got <= want + slack))
      return false;
  }
  return true;
}

static bool takes(const ctx *c, perigee_redop_kind kind) {
  if (kind == PERIGEE_REDOP_PRODUCT) /* 7^8 and more */
    return c->dtype == PERIGEE_F64 || c->dtype == PERIGEE_I64;
  return perigee_redop_defined((int)kind, c->dtype);
}

static void case_allreduce(const ctx *c) {
  for (int kind = 0; kind < PERIGEE_REDOP_CUSTOM; kind++)
    for (int k = 1; k <= 3; k += 2) {
      if (!takes(c, (perigee_redop_kind)kind) || (kind == PERIGEE_REDOP_PRODUCT && k > 1))
        continue;
      perigee_tensor *list[3];
      for (int j = 0; j < k; j++)
        list[j] = filled(c, j, c->count);
      perigee_request req = request_inplace(PERIGEE_OP_ALLREDUCE, list, (uint32_t)k);
      req.redop = (perigee_redop){.kind = (perigee_redop_kind)kind, .factor = 2};
      go(c, &req);
      for (int j = 0; j < k; j++)
        CHECK(is_reduced(c, list[j], &req.redop, 0, k, 0));
      drop(list, (uint32_t)k);
    }
}

static void case_allreduce_coalesced(const ctx *c) {
  perigee_tensor *list[] = {filled(c, 0, c->count), filled(c, 1, 1), filled(c, 2, c->count / 2)};
  for (uint32_t k = 1; k <= 3; k += 2) {
    for (int j = 0; j < 3; j++) {
      perigee_tensor_unref(list[j]);
      list[j] = filled(c, j, j == 1 ? 1 : c->count / (j + 1));
    }
    perigee_request req = request_inplace(PERIGEE_OP_ALLREDUCE_COALESCED, list, k);
    req.redop.kind = PERIGEE_REDOP_SUM;
    go(c, &req);
    for (int j = 0; j < (int)k; j++)
      CHECK(is_reduced(c, list[j], &req.redop, j, 1, 0));
  }
  drop(list, 3);
}

static void case_broadcast(const ctx *c) {
  for (int root = 0; root < c->n; root++) {
    perigee_tensor *list[] = {filled(c, 0, c->count), filled(c, 1, c->count)};
    perigee_request req = request_inplace(PERIGEE_OP_BROADCAST, list, 1 + (uint32_t)(c->me % 2));
    req.root = root;
    go(c, &req);
    CHECK(holds(list[0], 0, c->count, root, 0, 0));
    /* the second tensor is in the list of odd ranks only */
    CHECK(holds(list[1], 0, c->count, c->me % 2 ? root : c->me, c->me % 2 ? 0 : 1, 0));
    drop(list, 2);
  }
}

static void case_reduce(const ctx *c) {
  for (int root = 0; root < c->n; root++) {
    perigee_tensor *t = filled(c, 0, c->count);
    perigee_request req = request_inplace(PERIGEE_OP_REDUCE, &t, 1);
    req.root = root;
    req.redop.kind = root % 2 ? PERIGEE_REDOP_MAX : PERIGEE_REDOP_SUM;
    if (!takes(c, req.redop.kind))
      req.redop.kind = PERIGEE_REDOP_SUM;
    go(c, &req);
    if (c->me == root)
      CHECK(is_reduced(c, t, &req.redop, 0, 1, 0));
    else
      CHECK(holds(t, 0, c->count, c->me, 0, 0));
    perigee_tensor_unref(t);
  }
}

static void case_reduce_scatter(const ctx *c) {
  for (int uneven = 0; uneven < 2; uneven++) {
    perigee_tensor *in[RANKS_MAX], *out = blank(c, c->count + uneven * c->me);
    for (int r = 0; r < c->n; r++)
      in[r] = filled(c, r, c->count + uneven * r);
    perigee_request req =
        request_out_in(PERIGEE_OP_REDUCE_SCATTER, &out, 1, 0, in, (uint32_t)c->n, 1);
    go(c, &req);
    CHECK(is_reduced(c, out, &req.redop, c->me, 1, 0));
    for (int r = 0; r < c->n; r++)
      CHECK(holds(in[r], 0, c->count + uneven * r, c->me, r, 0));
    drop(in, (uint32_t)c->n);
    perigee_tensor_unref(out);
  }
}

static void case_reduce_scatter_tensor(const ctx *c) {
  perigee_tensor *in[] = {filled(c, 0, c->count * c->n), filled(c, 1, 2 * c->n)};
  perigee_tensor *out[] = {blank(c, c->count), blank(c, 2)};
  perigee_request req = request_out_in(PERIGEE_OP_REDUCE_SCATTER_TENSOR, out, 1, 0, in, 1, 0);
  go(c, &req);
  CHECK(is_reduced(c, out[0], &req.redop, 0, 1, c->count * c->me));
  req = request_out_in(PERIGEE_OP_REDUCE_SCATTER_TENSOR_COALESCED, out, 2, 0, in, 2, 0);
  if (takes(c, PERIGEE_REDOP_AVG))
    req.redop.kind = PERIGEE_REDOP_AVG;
  go(c, &req);
  CHECK(is_reduced(c, out[0], &req.redop, 0, 1, c->count * c->me));
  CHECK(is_reduced(c, out[1], &req.redop, 1, 1, 2 * c->me));
  drop(in, 2);
  drop(out, 2);
}

/* ---- data moved as it is ----------------------------------------------------------------------- */

static void case_allgather(const ctx *c) {
  for (int k = 1; k <= 2; k++) {
    perigee_tensor *in[2], *out[2 * 2 * RANKS_MAX];
    int row = c->n * k;
    for (int j = 0; j < k; j++)
      in[j] = filled(c, j, c->count + c->me + j); /* every rank its own size */
    for (int i = 0; i < k * row; i++)
      out[i] = blank(c, c->count + i % row / k + i % k);
    perigee_request req = request_out_in(PERIGEE_OP_ALLGATHER, out, (uint32_t)(k * row),
                                         (uint32_t)k, in, (uint32_t)k, 0);
    go(c, &req);
    for (int i = 0; i < k * row; i++) {
      int r = i % row / k, j = i % k;
      CHECK(holds(out[i], 0, c->count + r + j, r, j, 0));
    }
    drop(in, (uint32_t)k);
    drop(out, (uint32_t)(k * row));
  }
}

static void case_allgather_into(const ctx *c) {
  perigee_tensor *in[] = {filled(c, 0, c->count), filled(c, 1, 3)};
  perigee_tensor *out[] = {blank(c, c->count * c->n), blank(c, 3 * c->n)};
  for (uint32_t k = 1; k <= 2; k++) {
    perigee_request req = request_out_in(k == 1 ? PERIGEE_OP_ALLGATHER_INTO_TENSOR
                                                : PERIGEE_OP_ALLGATHER_INTO_TENSOR_COALESCED,
                                         out, k, 0, in, k, 0);
    go(c, &req);
    for (int r = 0; r < c->n; r++) {
      CHECK(holds(out[0], r * c->count, c->count, r, 0, 0));
      if (k > 1)
        CHECK(holds(out[1], r * 3, 3, r, 1, 0));
    }
  }
  drop(in, 2);
  drop(out, 2);
}

static void case_gather(const ctx *c) {
  for (int root = 0; root < c->n; root++) {
    perigee_tensor *in = filled(c, 0, c->count + c->me), *out[RANKS_MAX];
    for (int r = 0; r < c->n; r++)
      out[r] = blank(c, c->count + r);
    bool am = c->me == root;
    perigee_request req =
        request_out_in(PERIGEE_OP_GATHER, out, am ? (uint32_t)c->n : 0, am, &in, 1, 0);
    req.root = root;
    go(c, &req);
    for (int r = 0; am && r < c->n; r++)
      CHECK(holds(out[r], 0, c->count + r, r, 0, 0));
    perigee_tensor_unref(in);
    drop(out, (uint32_t)c->n);
  }
}

static void case_scatter(const ctx *c) {
  for (int root = 0; root < c->n; root++) {
    perigee_tensor *out = blank(c, c->count + c->me), *in[RANKS_MAX];
    for (int r = 0; r < c->n; r++)
      in[r] = filled(c, r, c->count + r);
    bool am = c->me == root;
    perigee_request req =
        request_out_in(PERIGEE_OP_SCATTER, &out, 1, 0, in, am ? (uint32_t)c->n : 0, am);
    req.root = root;
    go(c, &req);
    CHECK(holds(out, 0, c->count + c->me, root, c->me, 0));
    perigee_tensor_unref(out);
    drop(in, (uint32_t)c->n);
  }
}

static int64_t size_between(const ctx *c, int from, int to) {
  return c->count + (from * 2 + to) % 3;
}

static void case_alltoall(const ctx *c) {
  perigee_tensor *in[RANKS_MAX], *out[RANKS_MAX];
  for (int r = 0; r < c->n; r++) {
    in[r] = filled(c, r, size_between(c, c->me, r));
    out[r] = blank(c, size_between(c, r, c->me));
  }
  perigee_request req =
      request_out_in(PERIGEE_OP_ALLTOALL, out, (uint32_t)c->n, 0, in, (uint32_t)c->n, 0);
  go(c, &req);
  for (int r = 0; r < c->n; r++)
    CHECK(holds(out[r], 0, size_between(c, r, c->me), r, c->me, 0));
  drop(in, (uint32_t)c->n);
  drop(out, (uint32_t)c->n);
}

static perigee_tensor *rows_of_two(const ctx *c, int64_t rows, bool fill) {
  int64_t shape[] = {rows, 2};
  perigee_tensor *t;
  REQUIRE(perigee_tensor_create(c->dtype, 2, shape, &t) == 0);
  for (int64_t i = 0; i < 2 * rows; i++)
    set_num(t, i, fill ? value(c->me, 0, i) : 99);
  return t;
}

static void case_alltoall_base(const ctx *c) {
  /* even, without splits */
  perigee_tensor *in = rows_of_two(c, c->count * c->n, true),
                 *out = rows_of_two(c, c->count * c->n, false);
  perigee_request req = request_out_in(PERIGEE_OP_ALLTOALL_BASE, &out, 1, 0, &in, 1, 0);
  go(c, &req);
  int64_t block = 2 * c->count;
  for (int r = 0; r < c->n; r++)
    CHECK(holds(out, r * block, block, r, 0, c->me * block));
  perigee_tensor_unref(in);
  perigee_tensor_unref(out);
  /* with splits that differ from pair to pair */
  int64_t in_splits[RANKS_MAX], out_splits[RANKS_MAX], in_rows = 0, out_rows = 0;
  for (int r = 0; r < c->n; r++) {
    in_rows += in_splits[r] = size_between(c, c->me, r);
    out_rows += out_splits[r] = size_between(c, r, c->me);
  }
  in = rows_of_two(c, in_rows, true);
  out = rows_of_two(c, out_rows, false);
  req = request_out_in(PERIGEE_OP_ALLTOALL_BASE, &out, 1, 0, &in, 1, 0);
  req.in_splits = in_splits;
  req.out_splits = out_splits;
  req.n_in_splits = req.n_out_splits = (uint32_t)c->n;
  go(c, &req);
  int64_t at = 0;
  for (int r = 0; r < c->n; r++) {
    int64_t sent_from = 0; /* where our block starts in what r sends */
    for (int d = 0; d < c->me; d++)
      sent_from += size_between(c, r, d);
    CHECK(holds(out, at, 2 * out_splits[r], r, 0, 2 * sent_from));
    at += 2 * out_splits[r];
  }
  perigee_tensor_unref(in);
  perigee_tensor_unref(out);
}

static void case_barriers(const ctx *c) {
  perigee_request req;
  perigee_request_init(&req, PERIGEE_OP_BARRIER);
  go(c, &req);
  perigee_request_init(&req, PERIGEE_OP_MONITORED_BARRIER);
  req.wait_all_ranks = c->count % 2;
  go(c, &req);
}

/* ---- all of them ------------------------------------------------------------------------------- */

static void (*const cases[])(const ctx *c) = {case_allreduce,      case_allreduce_coalesced,
                                              case_broadcast,      case_reduce,
                                              case_reduce_scatter, case_reduce_scatter_tensor,
                                              case_allgather,      case_allgather_into,
                                              case_gather,         case_scatter,
                                              case_alltoall,       case_alltoall_base,
                                              case_barriers};

static const perigee_dtype dtypes[] = {PERIGEE_F32, PERIGEE_F16, PERIGEE_F64, PERIGEE_BF16,
                                       PERIGEE_I32, PERIGEE_U8,  PERIGEE_I64, PERIGEE_C64};
static const int64_t counts[] = {0, 1, 7, 130};

static void all_cases(perigee_group *group, void *arg) {
  (void)arg;
  ctx c = {.group = group, .me = perigee_group_rank(group), .n = perigee_group_size(group)};
  for (size_t d = 0; d < PERIGEE_COUNT(dtypes); d++)
    for (size_t s = 0; s < PERIGEE_COUNT(counts); s++)
      for (size_t i = 0; i < PERIGEE_COUNT(cases); i++) {
        c.dtype = dtypes[d];
        c.count = counts[s];
        c.async = (d + s + i) % 3 == 0;
        cases[i](&c);
      }
  /* and once beyond what fits into one buffer */
  c.dtype = PERIGEE_F32;
  c.count = c.n > 4 ? 3000 : 20000;
  for (size_t i = 0; i < PERIGEE_COUNT(cases); i++)
    cases[i](&c);
}

static void test_one(void **state) { (void)state, with_ranks(1, all_cases, NULL); }
static void test_two(void **state) { (void)state, with_ranks(2, all_cases, NULL); }
static void test_three(void **state) { (void)state, with_ranks(3, all_cases, NULL); }
static void test_four(void **state) { (void)state, with_ranks(4, all_cases, NULL); }
static void test_five(void **state) { (void)state, with_ranks(5, all_cases, NULL); }
static void test_eight(void **state) { (void)state, with_ranks(8, all_cases, NULL); }

static void test_three_by_tcp(void **state) {
  (void)state;
  setenv("PERIGEE_TRANSPORT", "tcp", 1);
  with_ranks(3, all_cases, NULL);
  unsetenv("PERIGEE_TRANSPORT");
}

/* Large vectors keep to the definition too: compared with a sum in rank order. */
static void large(perigee_group *group, void *arg) {
  (void)arg;
  enum {
    COUNT = 700001
  };
  int me = perigee_group_rank(group), n = perigee_group_size(group);
  perigee_tensor *t = tensor_of(PERIGEE_F32, COUNT);
  float *data = perigee_tensor_data(t);
  for (int i = 0; i < COUNT; i++)
    data[i] = (float)(i % 1000 + me);
  CHECK(perigee_allreduce(group, t, PERIGEE_REDOP_SUM) == 0);
  bool same = true;
  for (int i = 0; i < COUNT; i++)
    same = same && SAME(data[i], (float)(i % 1000 * n + n * (n - 1) / 2));
  CHECK(same);
  perigee_tensor_unref(t);
}
static void test_large(void **state) { (void)state, with_ranks(3, large, NULL); }

/* premul_sum: who reduces multiplies; ranks with different factors would differ, and are told so. */
static void premul(perigee_group *group, void *arg) {
  (void)arg;
  perigee_tensor *t = f32_of(3, 1);
  perigee_request req = request_inplace(PERIGEE_OP_ALLREDUCE, &t, 1);
  req.redop.kind = PERIGEE_REDOP_PREMUL_SUM;
  req.redop.factor = 1 + perigee_group_rank(group);
  int rc = perigee_group_run(group, &req);
  CHECK(rc == PERIGEE_EMISMATCH || rc == PERIGEE_EABORTED);
  perigee_tensor_unref(t);
}
static void test_premul_factors_differ(void **state) { (void)state, with_ranks(2, premul, NULL); }

int main(void) {
  program_deadline(115);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_one),          cmocka_unit_test(test_two),
      cmocka_unit_test(test_three),        cmocka_unit_test(test_four),
      cmocka_unit_test(test_five),         cmocka_unit_test(test_eight),
      cmocka_unit_test(test_large),        cmocka_unit_test(test_premul_factors_differ),
      cmocka_unit_test(test_three_by_tcp),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
