/* What goes wrong is an error on every rank, soon, and names who and what. Without a mesh every rank finds out for itself. */
#include "coll/shm_testing_ops.h"

enum {
  MODES = 2
};
static const perigee__arena_mode modes[MODES] = {PERIGEE_ARENA_SPIN, PERIGEE_ARENA_PARK};

static bool names(const perigee_error *e, int rank) {
  for (int i = 0; i < e->nranks; i++)
    if (e->ranks[i] == rank)
      return true;
  return false;
}

/* ---- different calls ------------------------------------------------------------------------------ */

typedef struct disagreement {
  what usual, odd; /* the last rank does the odd one */
} disagreement;

/* A rank whose part asks nothing of the others may be gone before anybody sees it: then its next operation tells. */
static void disagree(member *m) {
  const disagreement *d = m->arg;
  bool odd = m->me == m->n - 1;
  const what *own = odd ? &d->odd : &d->usual;
  trial t;
  char theirs[128], mine[128], text[400];
  int other = odd ? 0 : m->n - 1;
  trial_open(&t, m, own);
  int64_t start = perigee__now_ns();
  int rc = rank_call(m, &t.call);
  bool late = rc == 0 && kind_has_root(own->kind);
  if (late)
    rc = rank_barrier(m);
  RANK_CHECK(m, rc == PERIGEE_EMISMATCH && m->error.code == rc, "%s and %s: %d %s",
             kind_names[d->usual.kind], kind_names[d->odd.kind], rc, m->error.message);
  RANK_CHECK(m, perigee__now_ns() - start < 20 * PERIGEE_NS_PER_SEC, "took too long");
  if (odd && m->error.nranks > 0)
    other = m->error.ranks[0]; /* any of them: some may not have come yet */
  RANK_CHECK(m, names(&m->error, other) && other != m->me, "does not name rank %d", other);
  RANK_CHECK(m, m->error.nranks >= 1 && m->error.nranks <= (odd ? m->n - 1 : 1), "%d culprits",
             m->error.nranks);
  RANK_CHECK(m, m->error.rank == m->me && m->error.seq == (late ? 2 : 1), "rank %d seq %llu",
             m->error.rank, (unsigned long long)m->error.seq);
  RANK_CHECK(m, m->error.op == (late ? PERIGEE_OP_BARRIER : t.call.op), "op %d", m->error.op);
  trial u; /* what the other one called */
  member as_other = {.me = other, .n = m->n};
  trial_open(&u, &as_other, odd ? &d->usual : &d->odd);
  snprintf(text, sizeof(text), "rank %d called %s, this rank %s%s", other,
           perigee__fingerprint_describe(u.call.fp, theirs, sizeof(theirs)),
           perigee__fingerprint_describe(t.call.fp, mine, sizeof(mine)),
           late ? ", in an operation before this one" : "");
  RANK_CHECK(m, strcmp(m->error.message, text) == 0, "\"%s\" not \"%s\"", m->error.message, text);
  rc = rank_barrier(m);
  RANK_CHECK(m, rc == PERIGEE_EABORTED, "then: %d", rc);
  trial_close(&u);
  trial_close(&t);
}

static void disagreement_run(int n, perigee__arena_mode mode, disagreement *d) {
  world *w = world_open(n, mode, 0);
  for (int r = 0; r < n; r++)
    w->member[r].arg = d;
  ranks_run(w, disagree);
  world_close(w);
}

/* Every kind meets every other, with sizes that take one meeting and many. */
static void test_mismatch_kinds(void **state) {
  (void)state;
  for (int a = 0; a < KINDS; a++)
    for (int b = 0; b < KINDS; b++)
      for (int i = 0; i < MODES && a != b; i++) {
        disagreement d = {
            .usual = {.kind = (perigee__coll_kind)a, .dtype = PERIGEE_F32, .numel = 4},
            .odd = {.kind = (perigee__coll_kind)b, .dtype = PERIGEE_F32, .numel = 4}};
        disagreement_run(2, modes[i], &d);
        d.odd.numel = 20000;
        disagreement_run(3, modes[i], &d);
      }
}

static void test_mismatch_details(void **state) {
  (void)state;
  const what usual = {.kind = PERIGEE_COLL_REDUCE, .dtype = PERIGEE_F32, .numel = 10};
  what odd[4] = {usual, usual, usual, usual};
  odd[0].numel = 11;
  odd[1].dtype = PERIGEE_I32;
  odd[2].redop = PERIGEE_REDOP_MAX;
  odd[3].root = 1;
  for (int k = 0; k < 4; k++)
    for (int i = 0; i < MODES; i++)
      for (int n = 2; n <= 5; n += 3) {
        disagreement d = {.usual = usual, .odd = odd[k]};
        disagreement_run(n, modes[i], &d);
      }
}

/* ---- nobody there ---------------------------------------------------------------------------------- */

static void wait_in_vain(member *m) {
  uint64_t seen[RANKS_MAX];
  perigee__coll_call call = {.kind = PERIGEE_COLL_BARRIER,
                             .op = PERIGEE_OP_MONITORED_BARRIER,
                             .fp = fp_of(PERIGEE_OP_MONITORED_BARRIER, -1, -1, -1, 0),
                             .peer_seen = seen};
  RANK_CHECK(m, rank_barrier(m) == 0, "%s", m->error.message);
  if (m->me % 2 == 1)
    return;
  m->timeout_ns = 300 * PERIGEE_NS_PER_MS;
  int64_t start = perigee__now_ns();
  int rc = rank_call(m, &call);
  int64_t took = perigee__now_ns() - start;
  RANK_CHECK(m, rc == PERIGEE_ETIMEDOUT, "%d %s", rc, m->error.message);
  RANK_CHECK(m, strcmp(m->error.message, "timed out after 0.3 s, missing ranks 1,3") == 0, "%s",
             m->error.message);
  RANK_CHECK(m, m->error.nranks == 2 && m->error.ranks[0] == 1 && m->error.ranks[1] == 3, "ranks");
  RANK_CHECK(m, took >= m->timeout_ns && took < m->timeout_ns + 10 * PERIGEE_NS_PER_SEC,
             "took %lld ms", (long long)(took / PERIGEE_NS_PER_MS));
  for (int r = 0; r < m->n; r++)
    RANK_CHECK(m, seen[r] == (r % 2 == 1 ? 1 : 2), "rank %d has entered %llu", r,
               (unsigned long long)seen[r]);
}

static void test_timeout(void **state) {
  (void)state;
  for (int i = 0; i < MODES; i++) {
    world *w = world_open(4, modes[i], 0);
    ranks_run(w, wait_in_vain);
    world_close(w);
  }
}

/* ---- arrivals, deaths and aborts reach who sleeps -------------------------------------------------------------- */

typedef struct reaction {
  int64_t returned;
  int rc;
} reaction;

static void wait_for_cause(member *m) {
  reaction *r = m->arg;
  r->rc = rank_barrier(m);
  r->returned = perigee__now_ns();
}

/* Time from the cause to the return of a rank that slept; the best of some, because the machine may be busy. */
static int64_t best_reaction(perigee__arena_mode mode, void (*cause)(world *w), int expected) {
  int64_t best = PERIGEE_NEVER;
  for (int i = 0; i < 4; i++) {
    reaction r;
    world *w = world_open(2, mode, 0);
    w->member[0].arg = &r;
    ranks_start(w, 0, 1, wait_for_cause);
    perigee__sleep_ns(30 * PERIGEE_NS_PER_MS);
    int64_t start = perigee__now_ns();
    cause(w);
    ranks_join(w);
    assert_int_equal(r.rc, expected);
    best = r.returned - start < best ? r.returned - start : best;
    world_close(w);
  }
  return best;
}

static void die(world *w) {
  perigee_error e;
  perigee__error_set(&e, PERIGEE_EPEERDEAD, "rank 1 died");
  perigee__error_add_rank(&e, 1);
  (void)perigee__fate_fail(&w->member[0].fate, &e);
}

static void arrive(world *w) { assert_int_equal(rank_barrier(&w->member[1]), 0); }

static void leave(world *w) { perigee__arena_destroy(&w->member[1].arena); }

static void test_wakes(void **state) {
  (void)state;
  for (int i = 0; i < MODES; i++) {
    assert_true(best_reaction(modes[i], arrive, 0) < 20 * PERIGEE_NS_PER_MS);
    assert_true(best_reaction(modes[i], die, PERIGEE_EPEERDEAD) < 20 * PERIGEE_NS_PER_MS);
    assert_true(best_reaction(modes[i], leave, PERIGEE_EPEERCLOSED) < 20 * PERIGEE_NS_PER_MS);
  }
}

/* ---- a rank leaves ------------------------------------------------------------------------------------ */

static void left_alone(member *m) {
  RANK_CHECK(m, rank_barrier(m) == 0, "%s", m->error.message);
  if (m->me == 1) {
    perigee__arena_destroy(&m->arena);
    return;
  }
  int rc = rank_barrier(m);
  RANK_CHECK(m, rc == PERIGEE_EPEERCLOSED, "%d %s", rc, m->error.message);
  RANK_CHECK(m, strcmp(m->error.message, "rank 1 closed the group") == 0, "%s", m->error.message);
  RANK_CHECK(m, m->error.nranks == 1 && m->error.ranks[0] == 1, "ranks");
}

static void test_closed(void **state) {
  (void)state;
  for (int i = 0; i < MODES; i++)
    for (int n = 2; n <= 4; n++) {
      world *w = world_open(n, modes[i], 0);
      ranks_run(w, left_alone);
      world_close(w);
    }
}

/* Who has finished its part may leave at once: the others still finish theirs. */
static void finish_and_leave(member *m) {
  what w = {.kind = PERIGEE_COLL_BROADCAST, .dtype = PERIGEE_F32, .numel = 3000, .root = m->n - 1};
  rank_try(m, &w);
  perigee__arena_destroy(&m->arena);
}

static void test_leave_at_once(void **state) {
  (void)state;
  for (int i = 0; i < 60; i++) {
    world *w = world_open(2 + i % 3, modes[i % MODES], 0);
    ranks_run(w, finish_and_leave);
    world_close(w);
  }
}

/* ---- sizes -------------------------------------------------------------------------------------------- */

typedef struct misfit {
  perigee__coll_kind kind;
  size_t numel;
  int delta; /* bytes by which rank 1's block is longer than rank 0 expects (or has for it) */
} misfit;

/* What rank 1 sends (or has room for, in a scatter) is not what the others know. */
static void misfit_apply(member *m, trial *t, const misfit *f) {
  if (m->me != 1)
    return;
  size_t delta = (size_t)f->delta;
  if (f->kind == PERIGEE_COLL_SCATTER)
    t->call.out_bytes -= delta;
  else if (f->kind == PERIGEE_COLL_ALLTOALL)
    t->in[0].bytes += delta;
  else if (f->kind == PERIGEE_COLL_REDUCE_SCATTER)
    t->counts[0] += delta;
  else
    t->call.in_bytes += delta;
}

static void do_not_fit(member *m) {
  const misfit *f = m->arg;
  what w = {.kind = f->kind, .dtype = PERIGEE_F32, .numel = f->numel};
  trial t;
  trial_open(&t, m, &w);
  misfit_apply(m, &t, f);
  int rc = rank_call(m, &t.call);
  /* Who gives and takes nothing hears of it later, as does who takes what fits. */
  bool may_miss = f->kind == PERIGEE_COLL_GATHER    ? m->me != 0
                  : f->kind == PERIGEE_COLL_SCATTER ? m->me != 1
                                                    : false;
  if (rc < 0 && !may_miss)
    world_tell(m);
  if (rc == 0 && may_miss) {
    rc = rank_barrier(m);
    RANK_CHECK(m, rc == PERIGEE_EABORTED, "then: %d %s", rc, m->error.message);
    trial_close(&t);
    return;
  }
  bool counts = f->kind == PERIGEE_COLL_REDUCE_SCATTER;
  int expected = f->delta > 0 && !counts ? PERIGEE_ETRUNC : PERIGEE_ESHAPE;
  RANK_CHECK(m, rc == expected, "%s %zu %+d: %d %s", kind_names[f->kind], f->numel, f->delta, rc,
             m->error.message);
  RANK_CHECK(m, names(&m->error, 1) || m->me == 1, "does not name rank 1");
  RANK_CHECK(m, counts || names(&m->error, 0), "does not name rank 0");
  RANK_CHECK(m, perigee__fate_failed(&m->fate), "the group goes on");
  trial_close(&t);
}

static void test_sizes(void **state) {
  (void)state;
  static const perigee__coll_kind kinds[] = {PERIGEE_COLL_ALLGATHER, PERIGEE_COLL_GATHER,
                                             PERIGEE_COLL_SCATTER, PERIGEE_COLL_ALLTOALL,
                                             PERIGEE_COLL_REDUCE_SCATTER};
  for (size_t k = 0; k < PERIGEE_COUNT(kinds); k++)
    for (int i = 0; i < MODES; i++)
      for (int delta = -1; delta <= 1; delta += 2)
        for (size_t numel = 3; numel < 50000; numel = numel * 10 + 5) {
          misfit f = {kinds[k], numel, delta};
          world *w = world_open(3, modes[i], 0);
          for (int r = 0; r < 3; r++)
            w->member[r].arg = &f;
          ranks_run(w, do_not_fit);
          world_close(w);
        }
}

/* The text names both sides. */
static void too_long(member *m) {
  char in[9] = {0}, out[2][8];
  perigee__block blocks[2] = {{out[0], 8}, {out[1], 8}};
  perigee__coll_call call = {.kind = PERIGEE_COLL_ALLGATHER,
                             .op = PERIGEE_OP_ALLGATHER,
                             .in = in,
                             .in_bytes = m->me == 1 ? 9 : 8,
                             .out_blocks = blocks,
                             .fp = 9};
  RANK_CHECK(m, rank_call(m, &call) == PERIGEE_ETRUNC, "%s", m->error.message);
  RANK_CHECK(m,
             strcmp(m->error.message, "rank 1 has 9 bytes for rank 0, which has room for 8") == 0,
             "%s", m->error.message);
}

static void test_sizes_text(void **state) {
  (void)state;
  for (int i = 0; i < MODES; i++) {
    world *w = world_open(2, modes[i], 0);
    ranks_run(w, too_long);
    world_close(w);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_mismatch_kinds), cmocka_unit_test(test_mismatch_details),
      cmocka_unit_test(test_timeout),        cmocka_unit_test(test_wakes),
      cmocka_unit_test(test_closed),         cmocka_unit_test(test_leave_at_once),
      cmocka_unit_test(test_sizes),          cmocka_unit_test(test_sizes_text),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
