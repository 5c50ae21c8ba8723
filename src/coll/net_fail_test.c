/*
 * What ends a collective badly ends it on every rank, soon, with an error that says who did what: calls that differ, ranks that
 * do not come, blocks that do not fit. And sums that must be the same bits, are.
 */
#include "coll/net_testing.h"

#include "tensor/reduce.h"

/* ---- calls of all kinds ------------------------------------------------------------------------- */

/* One way to call: enough to tell two apart. */
typedef struct how {
  perigee__coll_kind kind;
  perigee_op op;
  perigee_dtype dtype;
  perigee_redop_kind redop; /* CUSTOM: none */
  int root;                 /* -1 none */
  size_t count;
} how;

#define NONE PERIGEE_REDOP_CUSTOM
static const how hows[] = {
    {PERIGEE_COLL_BARRIER, PERIGEE_OP_BARRIER, PERIGEE_U8, NONE, -1, 0},
    {PERIGEE_COLL_ALLREDUCE, PERIGEE_OP_ALLREDUCE, PERIGEE_F32, PERIGEE_REDOP_SUM, -1, 100},
    {PERIGEE_COLL_BROADCAST, PERIGEE_OP_BROADCAST, PERIGEE_F32, NONE, 0, 100},
    {PERIGEE_COLL_REDUCE, PERIGEE_OP_REDUCE, PERIGEE_F32, PERIGEE_REDOP_SUM, 0, 100},
    {PERIGEE_COLL_ALLGATHER, PERIGEE_OP_ALLGATHER, PERIGEE_F32, NONE, -1, 100},
    {PERIGEE_COLL_GATHER, PERIGEE_OP_GATHER, PERIGEE_F32, NONE, 0, 100},
    {PERIGEE_COLL_SCATTER, PERIGEE_OP_SCATTER, PERIGEE_F32, NONE, 0, 100},
    {PERIGEE_COLL_REDUCE_SCATTER, PERIGEE_OP_REDUCE_SCATTER, PERIGEE_F32, PERIGEE_REDOP_SUM, -1,
     100},
    {PERIGEE_COLL_ALLTOALL, PERIGEE_OP_ALLTOALL, PERIGEE_F32, NONE, -1, 100},
    /* the same kinds with another dtype, count, reduce op or root; and lengths that take other algorithms */
    {PERIGEE_COLL_ALLREDUCE, PERIGEE_OP_ALLREDUCE, PERIGEE_I32, PERIGEE_REDOP_SUM, -1, 100},
    {PERIGEE_COLL_ALLREDUCE, PERIGEE_OP_ALLREDUCE, PERIGEE_F32, PERIGEE_REDOP_MAX, -1, 100},
    {PERIGEE_COLL_ALLREDUCE, PERIGEE_OP_ALLREDUCE, PERIGEE_F32, PERIGEE_REDOP_SUM, -1, 0},
    {PERIGEE_COLL_ALLREDUCE, PERIGEE_OP_ALLREDUCE, PERIGEE_F32, PERIGEE_REDOP_SUM, -1, 101},
    {PERIGEE_COLL_ALLREDUCE, PERIGEE_OP_ALLREDUCE, PERIGEE_F32, PERIGEE_REDOP_SUM, -1, 2500},
    {PERIGEE_COLL_ALLREDUCE, PERIGEE_OP_ALLREDUCE, PERIGEE_F32, PERIGEE_REDOP_SUM, -1, 60000},
    {PERIGEE_COLL_BROADCAST, PERIGEE_OP_BROADCAST, PERIGEE_F32, NONE, 1, 100},
    {PERIGEE_COLL_BROADCAST, PERIGEE_OP_BROADCAST, PERIGEE_F32, NONE, 1, 60000},
    {PERIGEE_COLL_REDUCE, PERIGEE_OP_REDUCE, PERIGEE_F32, PERIGEE_REDOP_SUM, 1, 60000},
    {PERIGEE_COLL_GATHER, PERIGEE_OP_GATHER, PERIGEE_F32, NONE, 1, 20000},
    {PERIGEE_COLL_ALLTOALL, PERIGEE_OP_ALLTOALL, PERIGEE_F32, NONE, -1, 20000},
    {PERIGEE_COLL_ALLGATHER, PERIGEE_OP_ALLGATHER, PERIGEE_F32, NONE, -1, 20000},
};

enum {
  BUFFER = 60000 * 4
};

/* Memory for a call of any of them. */
typedef struct memory {
  unsigned char *in, *out;
  perigee__block in_blocks[RANKS_MAX], out_blocks[RANKS_MAX];
  size_t counts[RANKS_MAX];
} memory;

static void memory_make(memory *m) {
  m->in = calloc(RANKS_MAX, BUFFER);
  m->out = calloc(RANKS_MAX, BUFFER);
  if (m->in == NULL || m->out == NULL)
    abort();
}
static void memory_drop(memory *m) {
  free(m->in);
  free(m->out);
}

static int call_how(test_rank *r, memory *m, const how *h, int64_t timeout_ns, uint64_t *seen) {
  size_t bytes = h->count * perigee_dtype_size(h->dtype);
  for (int i = 0; i < r->n; i++) {
    m->in_blocks[i] = (perigee__block){m->in + (size_t)i * BUFFER, bytes};
    m->out_blocks[i] = (perigee__block){m->out + (size_t)i * BUFFER, bytes};
    m->counts[i] = h->count;
  }
  perigee__coll_call call = {.kind = h->kind,
                             .op = (int)h->op,
                             .dtype = h->dtype,
                             .redop = h->redop == NONE ? PERIGEE_REDOP_SUM : h->redop,
                             .ncontrib = r->n,
                             .root = h->root < 0 ? 0 : h->root,
                             .in = m->in,
                             .out = m->out,
                             .count = h->count,
                             .bytes = bytes,
                             .in_bytes = bytes,
                             .out_bytes = bytes,
                             .in_blocks = m->in_blocks,
                             .out_blocks = m->out_blocks,
                             .counts = m->counts,
                             .timeout_ns = timeout_ns,
                             .peer_seen = seen};
  return rank_call(r, &call,
                   test_fp(h->op, h->count > 0 ? (int)h->dtype : -1,
                           h->redop == NONE ? -1 : (int)h->redop, h->root, h->count));
}

/* ---- mismatch ------------------------------------------------------------------------------------ */

/* One rank calls something else than the others. */
static void mismatch(test_rank *r, memory *m, size_t a, size_t b, int odd) {
  static atomic_ullong group = 1000; /* every rank takes the number of this round from rank 0 */
  static _Atomic uint64_t current;
  if (r->me == 0)
    atomic_store(&current, atomic_fetch_add(&group, 1));
  rank_meet(r);
  rank_join(r, atomic_load(&current));
  rank_meet(r);
  int64_t start = perigee__now_ns();
  int rc = call_how(r, m, &hows[r->me == odd ? b : a], 0, NULL);
  double ms = (double)(perigee__now_ns() - start) / 1e6;
  EXPECT(r, rc == PERIGEE_EMISMATCH, "%zu with %zu at %d: %s: %s", a, b, odd, perigee_err_name(rc),
         r->error.message);
  EXPECT(r, ms < 1000, "%zu with %zu at %d: %g ms", a, b, odd, ms);
  EXPECT(r,
         strstr(r->error.message, " called ") != NULL && r->error.nranks == 2 &&
             (r->error.ranks[0] == odd || r->error.ranks[1] == odd),
         "%zu with %zu at %d: %s", a, b, odd, r->error.message);
  EXPECT(r, r->error.rank == r->me && r->error.seq == 1, "%s", r->error.message);
  rc = call_how(r, m, &hows[0], 0, NULL);
  EXPECT(r, rc == PERIGEE_EABORTED, "afterwards: %s", perigee_err_name(rc));
  rank_leave(r);
}

static void all_mismatches(test_rank *r) {
  memory m;
  memory_make(&m);
  for (size_t a = 0; a < PERIGEE_COUNT(hows); a++)
    for (size_t b = 0; b < PERIGEE_COUNT(hows); b++)
      if (a != b)
        mismatch(r, &m, a, b, (int)((a + b) % (size_t)r->n));
  memory_drop(&m);
}

static void mismatches(int n, perigee__transport transport) {
  test_world w;
  world_open(&w, n, transport);
  world_run(&w, all_mismatches, NULL);
  world_close(&w);
}

static void mismatch_of_two(void **state) {
  (void)state;
  mismatches(2, PERIGEE_TRANSPORT_TCP);
}
static void mismatch_of_three(void **state) {
  (void)state;
  mismatches(3, PERIGEE_TRANSPORT_TCP);
}
static void mismatch_of_four(void **state) {
  (void)state;
  mismatches(4, PERIGEE_TRANSPORT_TCP);
}

/* ---- timeout ------------------------------------------------------------------------------------- */

static void nobody_comes(test_rank *r) {
  enum {
    ABSENT = 1,
    TIMEOUT_MS = 100,
    LATE_MS = 500
  };
  memory m;
  memory_make(&m);
  for (size_t h = 0; h < PERIGEE_COUNT(hows); h++) {
    uint64_t seen[RANKS_MAX] = {9, 9, 9, 9};
    rank_join(r, 1 + h);
    EXPECT(r, call_how(r, &m, &hows[0], 0, NULL) == 0, "%s", r->error.message);
    rank_meet(r);
    if (r->me != ABSENT) {
      int64_t start = perigee__now_ns();
      int rc = call_how(r, &m, &hows[h], TIMEOUT_MS * PERIGEE_NS_PER_MS, seen);
      double ms = (double)(perigee__now_ns() - start) / 1e6;
      EXPECT(r, rc == PERIGEE_ETIMEDOUT, "%zu: %s", h, perigee_err_name(rc));
      EXPECT(r, strcmp(r->error.message, "timed out after 0.1 s, missing ranks 1") == 0, "%s",
             r->error.message);
      EXPECT(r, r->error.nranks == 1 && r->error.ranks[0] == ABSENT, "%s", r->error.message);
      /* another rank's clock may be a little ahead; the promise is 250 ms, on a machine that has them */
      EXPECT(r, ms > TIMEOUT_MS / 2 && ms < TIMEOUT_MS + LATE_MS, "%zu: %g ms", h, ms);
    }
    rank_meet(r);
    if (r->me == ABSENT) { /* before the news it might still find all that it waits for */
      int64_t deadline = perigee__deadline_in(5 * PERIGEE_NS_PER_SEC);
      while (!perigee__fate_failed(&r->fate) && !perigee__passed(deadline))
        perigee__sleep_ns(PERIGEE_NS_PER_MS / 10);
      EXPECT(r, call_how(r, &m, &hows[h], 0, NULL) != 0, "too late");
    }
    rank_leave(r);
  }
  memory_drop(&m);
}

/* Who waited in vain, by its own clock or another's, has been told how far each rank had come. */
static void seen_counts(test_rank *r) {
  memory m;
  uint64_t seen[RANKS_MAX] = {9, 9, 9, 9};
  memory_make(&m);
  rank_join(r, 1);
  EXPECT(r, call_how(r, &m, &hows[0], 0, NULL) == 0, "%s", r->error.message);
  if (r->me != 1) {
    int64_t timeout_ns = (r->me == 0 ? 50 : 5000) * PERIGEE_NS_PER_MS;
    int rc = call_how(r, &m, &hows[0], timeout_ns, seen);
    EXPECT(r, rc == PERIGEE_ETIMEDOUT, "%s", perigee_err_name(rc));
    EXPECT(r, seen[1] == 1 && seen[2 - r->me] == 2, "%d %d", (int)seen[1], (int)seen[2 - r->me]);
    EXPECT(r, r->error.nranks == 1, "%s", r->error.message);
  }
  rank_meet(r);
  rank_leave(r);
  memory_drop(&m);
}

static void timeout_names_missing(void **state) {
  (void)state;
  test_world w;
  world_open(&w, 4, PERIGEE_TRANSPORT_TCP);
  world_run(&w, nobody_comes, NULL);
  world_close(&w);
  world_open(&w, 3, PERIGEE_TRANSPORT_TCP);
  world_run(&w, seen_counts, NULL);
  world_close(&w);
}

/* ---- blocks and room ----------------------------------------------------------------------------- */

static const perigee__coll_kind sized_kinds[] = {PERIGEE_COLL_ALLGATHER, PERIGEE_COLL_GATHER,
                                                 PERIGEE_COLL_SCATTER, PERIGEE_COLL_ALLTOALL};
static const perigee_op sized_ops[] = {PERIGEE_OP_ALLGATHER, PERIGEE_OP_GATHER, PERIGEE_OP_SCATTER,
                                       PERIGEE_OP_ALLTOALL};

/* A block that does not fit: what is added to its bytes, and to the room for it. */
typedef struct misfit {
  int from, to;
  int64_t bytes, room;
} misfit;

/* Every block has `bytes` bytes and room but for the misfits. All blocks that a rank allgathers are one. */
static int call_sized(test_rank *r, memory *m, size_t k, size_t bytes, const misfit *odd,
                      int nodd) {
  perigee__coll_kind kind = sized_kinds[k];
  int root = kind == PERIGEE_COLL_GATHER ? odd[0].to : odd[0].from;
  for (int i = 0; i < r->n; i++) {
    m->in_blocks[i] = (perigee__block){m->in + (size_t)i * BUFFER, bytes};
    m->out_blocks[i] = (perigee__block){m->out + (size_t)i * BUFFER, bytes};
  }
  perigee__coll_call call = {.kind = kind,
                             .op = (int)sized_ops[k],
                             .root = root,
                             .in = m->in,
                             .in_bytes = bytes,
                             .out = m->out,
                             .out_bytes = bytes,
                             .in_blocks = m->in_blocks,
                             .out_blocks = m->out_blocks};
  for (int i = 0; i < nodd; i++) {
    size_t sent = (size_t)((int64_t)bytes + odd[i].bytes);
    size_t room = (size_t)((int64_t)bytes + odd[i].room);
    if (r->me == odd[i].from)
      call.in_bytes = m->in_blocks[odd[i].to].bytes = sent;
    if (r->me == odd[i].to)
      call.out_bytes = m->out_blocks[odd[i].from].bytes = room;
  }
  int fp_root = kind == PERIGEE_COLL_ALLGATHER || kind == PERIGEE_COLL_ALLTOALL ? -1 : root;
  return rank_call(r, &call, test_fp(sized_ops[k], PERIGEE_U8, -1, fp_root, 0));
}

/* All ranks get the same error, about the block `first`, and nothing is written past a room. */
static void refused(test_rank *r, memory *m, size_t k, size_t bytes, const misfit *odd, int nodd,
                    const misfit *first) {
  char text[128];
  size_t sent = (size_t)((int64_t)bytes + first->bytes);
  size_t room = (size_t)((int64_t)bytes + first->room);
  snprintf(text, sizeof(text), "rank %d has %zu bytes for rank %d, which %s %zu", first->from, sent,
           first->to, sent > room ? "has room for" : "expects", room);
  memset(m->out, 0x77, RANKS_MAX * (size_t)BUFFER);
  int rc = call_sized(r, m, k, bytes, odd, nodd);
  EXPECT(r, rc == (sent > room ? PERIGEE_ETRUNC : PERIGEE_ESHAPE), "kind %zu: %s instead of: %s", k,
         perigee_err_name(rc), text);
  EXPECT(r, strcmp(r->error.message, text) == 0, "kind %zu: '%s' instead of '%s'", k,
         r->error.message, text);
  EXPECT(r, r->error.rank == r->me && r->error.seq == 1, "kind %zu: %s", k, text);
  EXPECT(r, r->error.nranks == (first->from == first->to ? 1 : 2), "%d ranks", r->error.nranks);
  for (int i = 0; i < r->n; i++)
    EXPECT(r, m->out[(size_t)i * BUFFER + m->out_blocks[i].bytes] == 0x77, "written past the room");
}

static const size_t block_sizes[] = {0, 40, 1024, 2000, 70000, 200000};
static const int64_t differences[] = {1, 3001, -1, -30};

static void one_misfit(test_rank *r) {
  memory m;
  uint64_t group = 1;
  memory_make(&m);
  for (size_t k = 0; k < PERIGEE_COUNT(sized_kinds); k++)
    for (size_t b = 0; b < PERIGEE_COUNT(block_sizes); b++)
      for (size_t d = 0; d < 2 * PERIGEE_COUNT(differences); d++) {
        int64_t more = differences[d / 2];
        if ((int64_t)block_sizes[b] + more < 0)
          continue;
        /* now and then a rank's block for itself */
        misfit odd = {.from = (int)(b % (size_t)r->n)};
        odd.to = (odd.from + (int)(k + d)) % r->n;
        *(d % 2 == 0 ? &odd.bytes : &odd.room) = more;
        misfit first = odd;
        if (sized_kinds[k] == PERIGEE_COLL_ALLGATHER && odd.bytes != 0)
          first.to = 0; /* it fits nobody */
        rank_join(r, group++);
        refused(r, &m, k, block_sizes[b], &odd, 1, &first);
        rank_leave(r);
      }
  memory_drop(&m);
}

/* Different ranks meet different misfits, of both kinds; by mail or notes, and as messages that come before all is compared. */
static void many_misfits(test_rank *r) {
  memory m;
  uint64_t group = 1000;
  int last = r->n - 1;
  memory_make(&m);
  for (size_t b = 1; b < PERIGEE_COUNT(block_sizes); b++)
    for (int shorter = 0; shorter < 2; shorter++) {
      int64_t more = shorter != 0 ? -20 : 20;
      const misfit rooms[] = {{last, 0, 0, more}, {0, last, 0, -more}, {1, 0, 0, more}};
      const misfit blocks[] = {{last, 0, more, 0}, {0, last, -more, 0}, {1, 0, more, 0}};
      rank_join(r, group++);
      refused(r, &m, 0, block_sizes[b], rooms, 3, &rooms[1]);
      rank_leave(r);
      rank_join(r, group++);
      refused(r, &m, PERIGEE_COUNT(sized_kinds) - 1, block_sizes[b], blocks, 3, &blocks[1]);
      rank_leave(r);
    }
  memory_drop(&m);
}

static void blocks_that_do_not_fit(void **state) {
  (void)state;
  test_world w;
  for (int n = 2; n <= 4; n++) {
    world_open(&w, n, PERIGEE_TRANSPORT_TCP);
    world_run(&w, one_misfit, NULL);
    world_run(&w, many_misfits, NULL);
    world_close(&w);
  }
}

static void blocks_that_do_not_fit_on_a_ring(void **state) {
  perigee__tuning tuning = {.segment = 65536};
  assert_int_equal(perigee__select_parse(&tuning.select, "allgather:0-1500:bruck,1500-:ring"), 0);
  assert_int_equal(perigee__select_parse(&tuning.select, perigee__select_builtin), 0);
  perigee__tuning_set(&tuning);
  blocks_that_do_not_fit(state);
  perigee__tuning_set(NULL);
}

/* ---- bits ---------------------------------------------------------------------------------------- */

enum {
  BITS_COUNT = 3001
};

/* Numbers whose sums depend on their order. */
static void fill_rough(perigee_dtype dtype, unsigned char *at, int rank) {
  for (size_t i = 0; i < BITS_COUNT; i++) {
    uint64_t x = perigee__hash_mix((uint64_t)rank, i);
    float f = ((float)(x % 2000003) - 1e6f) * (x % 5 == 0 ? 1e-4f : 1e-3f);
    uint32_t bits;
    memcpy(&bits, &f, 4);
    if (dtype == PERIGEE_F64)
      ((double *)(void *)at)[i] = (double)f * 1.1;
    else if (dtype == PERIGEE_F32)
      ((float *)(void *)at)[i] = f;
    else if (dtype == PERIGEE_BF16)
      ((uint16_t *)(void *)at)[i] = (uint16_t)(bits >> 16);
    else /* f16 between 1 and 2 */
      ((uint16_t *)(void *)at)[i] = (uint16_t)(0x3c00 | (x % 1024));
  }
}

static const perigee_dtype rough[] = {PERIGEE_F32, PERIGEE_F64, PERIGEE_F16, PERIGEE_BF16};
static const perigee_redop_kind rough_ops[] = {PERIGEE_REDOP_SUM, PERIGEE_REDOP_AVG,
                                               PERIGEE_REDOP_PREMUL_SUM, PERIGEE_REDOP_PRODUCT};

/* All contributions reduced in rank order, rounded once. */
static void fold_in_order(perigee_dtype dtype, perigee_redop_kind op, int n, unsigned char *out) {
  static const size_t stride = BITS_COUNT * 8;
  perigee__reduce_plan plan;
  unsigned char *all = malloc((size_t)n * stride);
  const void *srcs[RANKS_MAX];
  if (all == NULL || perigee__reduce_init(&plan, dtype, op, 0.3, n) != 0)
    abort();
  for (int r = 0; r < n; r++) {
    fill_rough(dtype, all + (size_t)r * stride, r);
    srcs[r] = all + (size_t)r * stride;
  }
  perigee__reduce_nary(&plan, out, srcs, n, BITS_COUNT);
  free(all);
}

typedef struct bits_case {
  bool deterministic;
  unsigned char results[RANKS_MAX][BITS_COUNT * 8]; /* compared among ranks */
} bits_case;

static void check_bits(test_rank *r, bits_case *c, const perigee__coll_call *call, size_t bytes) {
  unsigned char want[BITS_COUNT * 8];
  memcpy(c->results[r->me], call->out, bytes);
  rank_meet(r);
  bool reduce = call->kind == PERIGEE_COLL_REDUCE;
  if (!reduce)
    EXPECT(r, memcmp(c->results[0], c->results[r->me], bytes) == 0, "%d %d: ranks differ",
           (int)call->dtype, (int)call->redop);
  fold_in_order(call->dtype, call->redop, r->n, want);
  if (c->deterministic && (!reduce || r->me == call->root))
    EXPECT(r, memcmp(want, c->results[r->me], bytes) == 0, "%d %d: not in rank order",
           (int)call->dtype, (int)call->redop);
  rank_meet(r);
}

static void rough_sums(test_rank *r) {
  unsigned char in[BITS_COUNT * 8], out[BITS_COUNT * 8];
  rank_join(r, 1);
  for (size_t d = 0; d < PERIGEE_COUNT(rough); d++)
    for (size_t o = 0; o < PERIGEE_COUNT(rough_ops); o++)
      for (int reduce = 0; reduce < 2; reduce++) {
        fill_rough(rough[d], in, r->me);
        perigee__coll_call call = {.kind = reduce ? PERIGEE_COLL_REDUCE : PERIGEE_COLL_ALLREDUCE,
                                   .op = reduce ? PERIGEE_OP_REDUCE : PERIGEE_OP_ALLREDUCE,
                                   .dtype = rough[d],
                                   .redop = rough_ops[o],
                                   .factor = 0.3,
                                   .ncontrib = r->n,
                                   .root = r->n - 1,
                                   .in = in,
                                   .out = out,
                                   .count = BITS_COUNT};
        int rc = rank_call(
            r, &call,
            test_fp((perigee_op)call.op, (int)rough[d], (int)rough_ops[o], call.root, BITS_COUNT));
        EXPECT(r, rc == 0, "%s", r->error.message);
        check_bits(r, r->arg, &call, BITS_COUNT * perigee_dtype_size(rough[d]));
      }
  rank_leave(r);
}

static void sums_with(const char *rules, bool deterministic) {
  perigee__tuning tuning = {.segment = 2048, .deterministic = deterministic};
  assert_int_equal(perigee__select_parse(&tuning.select, rules), 0);
  assert_int_equal(perigee__select_parse(&tuning.select, perigee__select_builtin), 0);
  perigee__tuning_set(&tuning);
  bits_case *c = calloc(1, sizeof(*c));
  assert_non_null(c);
  c->deterministic = deterministic;
  for (int n = 2; n <= 7; n += n < 5 ? 1 : 2) {
    test_world w;
    world_open(&w, n, PERIGEE_TRANSPORT_TCP);
    world_run(&w, rough_sums, c);
    world_close(&w);
  }
  free(c);
  perigee__tuning_set(NULL);
}

static void same_bits_everywhere(void **state) {
  (void)state;
  static const char *const names[] = {"bruck", "recdbl", "halving", "oneshot", "direct", "ring"};
  for (size_t i = 0; i < PERIGEE_COUNT(names); i++) {
    char rules[64];
    snprintf(rules, sizeof(rules), "allreduce:0-:%s", names[i]);
    sums_with(rules, false);
  }
}

static void deterministic_is_rank_order(void **state) {
  (void)state;
  static const char *const rules[] = {"",
                                      "allreduce:0-:recdbl;reduce:0-:binomial",
                                      "allreduce:0-:ring;reduce:0-:chain",
                                      "allreduce:0-:halving;reduce:0-:halving",
                                      "allreduce:0-:bruck;reduce:0-:bruck",
                                      "allreduce:0-:oneshot"};
  for (size_t i = 0; i < PERIGEE_COUNT(rules); i++)
    sums_with(rules[i], true);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(mismatch_of_two),        cmocka_unit_test(mismatch_of_three),
      cmocka_unit_test(mismatch_of_four),       cmocka_unit_test(timeout_names_missing),
      cmocka_unit_test(blocks_that_do_not_fit), cmocka_unit_test(blocks_that_do_not_fit_on_a_ring),
      cmocka_unit_test(same_bits_everywhere),   cmocka_unit_test(deterministic_is_rank_order)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
