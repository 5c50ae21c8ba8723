/* Ranks that run ahead: how far, and what becomes of those who find out later that something was wrong. */
#include "coll/shm_testing_ops.h"

enum {
  MODES = 2,
  ROOM = PERIGEE_ARENA_LINE_ROOM,
#ifdef PERIGEE_HOSTILE
  SMALL_MAX = 1 /* all else is lent */
#else
  SMALL_MAX = 13 /* i32 that a line does not hold */
#endif
};
static const perigee__arena_mode modes[MODES] = {PERIGEE_ARENA_SPIN, PERIGEE_ARENA_PARK};

static const perigee__coll_kind rooted[] = {PERIGEE_COLL_BROADCAST, PERIGEE_COLL_SCATTER,
                                            PERIGEE_COLL_GATHER, PERIGEE_COLL_REDUCE};

/* Shared by the ranks of one world. */
typedef struct progress {
  perigee__coll_kind kind;
  size_t numel;
  int room;                    /* operations that who gives can do before it has to wait */
  _Atomic int done[RANKS_MAX]; /* operations each rank has returned from */
  what usual, odd;
} progress;

static bool gives(const progress *p, int rank) {
  bool from_root = p->kind == PERIGEE_COLL_BROADCAST || p->kind == PERIGEE_COLL_SCATTER;
  return from_root == (rank == 0);
}

/* Everybody does the same, and who takes starts when those who give cannot go on: then they have done all that there is room for. */
static void far_ahead(member *m) {
  progress *p = m->arg;
  bool late = p->kind == PERIGEE_COLL_BROADCAST || p->kind == PERIGEE_COLL_SCATTER ? m->me == 1
                                                                                   : m->me == 0;
  int64_t until = perigee__deadline_in(PATIENCE_S * PERIGEE_NS_PER_SEC);
  for (int r = 0; late && r < m->n; r++)
    while (gives(p, r) && atomic_load(&p->done[r]) < p->room && !perigee__passed(until))
      perigee__sleep_ns(PERIGEE_NS_PER_MS);
  if (late) { /* time to go too far in */
    perigee__sleep_ns(20 * PERIGEE_NS_PER_MS);
    for (int r = 0; r < m->n; r++)
      if (gives(p, r))
        RANK_CHECK(m, atomic_load(&p->done[r]) == p->room, "%s: rank %d has done %d",
                   kind_names[p->kind], r, atomic_load(&p->done[r]));
  }
  what w = {.kind = p->kind, .dtype = PERIGEE_I32, .numel = p->numel};
  for (int i = 0; i < 5 * p->room + 2; i++) {
    rank_try(m, &w);
    atomic_fetch_add(&p->done[m->me], 1);
  }
  for (int i = 0; i < 3; i++) { /* and all together again */
    w.kind = PERIGEE_COLL_ALLREDUCE;
    rank_try(m, &w);
  }
}

static void test_far_ahead(void **state) {
  (void)state;
  for (size_t k = 0; k < PERIGEE_COUNT(rooted); k++)
    for (int i = 0; i < MODES; i++)
      for (size_t numel = 1; numel <= SMALL_MAX; numel += 12) {
        progress p = {.kind = rooted[k], .numel = numel, .room = ROOM};
        world *w = world_open(3, modes[i], PERIGEE_ARENA_EPOCHS - 7);
        for (int r = 0; r < 3; r++)
          w->member[r].arg = &p;
        ranks_run(w, far_ahead);
        world_close(w);
      }
}

#ifndef PERIGEE_HOSTILE
/* Blocks for a gather that buffers hold whole: their senders go on as far as there are buffers. */
static void test_whole_blocks_ahead(void **state) {
  (void)state;
  for (int i = 0; i < MODES; i++) {
    world *w = world_open(3, modes[i], PERIGEE_ARENA_EPOCHS - 7);
    size_t most = w->member[0].arena->buffer_bytes / sizeof(int32_t), numels[] = {5000, most};
    world_close(w);
    for (size_t k = 0; k < PERIGEE_COUNT(numels); k++) {
      progress p = {
          .kind = PERIGEE_COLL_GATHER, .numel = numels[k], .room = PERIGEE_ARENA_BUFFER_ROOM};
      w = world_open(3, modes[i], PERIGEE_ARENA_EPOCHS - 7);
      for (int r = 0; r < 3; r++)
        w->member[r].arg = &p;
      ranks_run(w, far_ahead);
      world_close(w);
    }
  }
}
#endif

/* One rank sleeps a second in the middle of rooted operations of all roots, kinds and sizes. */
static void one_is_late(member *m) {
  static const size_t sizes[] = {1, 12, 100, 900, 5000, 40000, 3, 0};
  for (int i = 0; i < 300; i++) {
    what w = {.kind = rooted[i % 4],
              .dtype = PERIGEE_F32,
              .numel = sizes[i / 4 % 8],
              .root = i / 3 % m->n,
              .uneven = i % 5 == 0 && rooted[i % 4] != PERIGEE_COLL_REDUCE};
    if (i == 37 + m->me * 60 && m->me < 2)
      perigee__sleep_ns(m->me == 0 ? PERIGEE_NS_PER_SEC : PERIGEE_NS_PER_SEC / 10);
    rank_try(m, &w);
  }
}

static void test_one_is_late(void **state) {
  (void)state;
  for (int i = 0; i < MODES; i++)
    for (int n = 2; n <= 5; n += 3) {
      world *w = world_open(n, modes[i], 0);
      ranks_run(w, one_is_late);
      world_close(w);
    }
}

/* The last rank calls something else. Everybody goes on until an error says so, and is told within the room there is. */
static void part_ways(member *m) {
  progress *p = m->arg;
  bool odd = m->me == m->n - 1;
  what good = {.kind = PERIGEE_COLL_BROADCAST, .dtype = PERIGEE_F32, .numel = 2};
  char text[128], mine[128];
  int rc = 0, calls = 0;
  for (int i = 0; i < 3; i++)
    rank_try(m, &good);
  trial t, u;
  member as_other = {.me = odd ? 0 : m->n - 1, .n = m->n};
  trial_open(&u, &as_other, odd ? &p->usual : &p->odd);
  perigee__fingerprint_describe(u.call.fp, text, sizeof(text));
  for (; rc == 0 && calls <= ROOM + 1; calls++) {
    trial_open(&t, m, calls > 0 ? &good : odd ? &p->odd : &p->usual);
    if (calls == 0)
      perigee__fingerprint_describe(t.call.fp, mine, sizeof(mine));
    rc = rank_call(m, &t.call);
    trial_close(&t);
  }
  RANK_CHECK(m, rc == PERIGEE_EMISMATCH, "%s and %s: %d after %d calls: %s", mine, text, rc, calls,
             m->error.message);
  RANK_CHECK(m, strstr(m->error.message, text) != NULL && strstr(m->error.message, mine) != NULL,
             "\"%s\" does not tell of %s and %s", m->error.message, mine, text);
  RANK_CHECK(m, (strstr(m->error.message, "before this one") != NULL) == (calls > 1), "%s",
             m->error.message);
  RANK_CHECK(m, m->error.nranks >= 1, "nobody is named");
  RANK_CHECK(m, rank_barrier(m) == PERIGEE_EABORTED, "the group goes on");
  trial_close(&u);
}

static void test_part_ways(void **state) {
  (void)state;
  for (size_t k = 0; k < PERIGEE_COUNT(rooted); k++)
    for (int odd = 0; odd < 5; odd++)
      for (int i = 0; i < MODES; i++)
        for (int n = 2; n <= 4; n++) {
          progress p = {.usual = {.kind = rooted[k], .dtype = PERIGEE_F32, .numel = 10}};
          p.odd = p.usual;
          if (odd == 0)
            p.odd.numel = 11;
          else if (odd == 1)
            p.odd.dtype = PERIGEE_I32;
          else if (odd == 2)
            p.odd.root = n - 1;
          else if (odd == 3)
            p.odd.kind = rooted[(k + 1) % 4];
          else
            p.odd.kind = PERIGEE_COLL_BARRIER;
          world *w = world_open(n, modes[i], 0);
          for (int r = 0; r < n; r++)
            w->member[r].arg = &p;
          ranks_run(w, part_ways);
          world_close(w);
        }
}

/* The rank that all the others wait for dies when they have run ahead of it. */
static void outlive(member *m) {
  what w = {.kind = PERIGEE_COLL_GATHER, .dtype = PERIGEE_F32, .numel = 3};
  int rc = 0, calls = 0;
  if (m->me == 0) {
    perigee__sleep_ns(50 * PERIGEE_NS_PER_MS);
    perigee__error_set(&m->error, PERIGEE_EPEERDEAD, "rank 0 died");
    perigee__error_add_rank(&m->error, 0);
    world_tell(m);
    return;
  }
  for (; rc == 0 && calls <= ROOM; calls++) {
    trial t;
    trial_open(&t, m, &w);
    rc = rank_call(m, &t.call);
    trial_close(&t);
  }
  RANK_CHECK(m, rc == PERIGEE_EPEERDEAD, "%d %s", rc, m->error.message);
  RANK_CHECK(m, m->error.nranks == 1 && m->error.ranks[0] == 0, "rank 0 is not named");
}

static void test_outlive(void **state) {
  (void)state;
  for (int i = 0; i < MODES; i++)
    for (int n = 2; n <= 4; n++) {
      world *w = world_open(n, modes[i], 0);
      ranks_run(w, outlive);
      world_close(w);
    }
}

/* Who is missing: only the rank that is waited for. */
static void name_the_root(member *m) {
  what w = {.kind = PERIGEE_COLL_BROADCAST, .dtype = PERIGEE_F32, .numel = 3, .root = 1};
  RANK_CHECK(m, rank_barrier(m) == 0, "%s", m->error.message);
  if (m->me != 0)
    return;
  m->timeout_ns = 300 * PERIGEE_NS_PER_MS;
  trial t;
  trial_open(&t, m, &w);
  int rc = rank_call(m, &t.call);
  RANK_CHECK(m, rc == PERIGEE_ETIMEDOUT, "%d %s", rc, m->error.message);
  RANK_CHECK(m, strcmp(m->error.message, "timed out after 0.3 s, missing ranks 1") == 0, "%s",
             m->error.message);
  RANK_CHECK(m, m->error.nranks == 1 && m->error.ranks[0] == 1, "ranks");
  trial_close(&t);
}

static void test_missing_root(void **state) {
  (void)state;
  for (int i = 0; i < MODES; i++) {
    world *w = world_open(3, modes[i], 0);
    ranks_run(w, name_the_root);
    world_close(w);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_far_ahead),
#ifndef PERIGEE_HOSTILE
      cmocka_unit_test(test_whole_blocks_ahead),
#endif
      cmocka_unit_test(test_one_is_late),
      cmocka_unit_test(test_part_ways),
      cmocka_unit_test(test_outlive),
      cmocka_unit_test(test_missing_root),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
