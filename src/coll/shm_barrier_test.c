/* Barriers that let the root go first: when they do, that they are barriers all the same, and what becomes of those that fail. */
#include "coll/shm_testing_ops.h"

enum {
  MODES = 2,
  HABIT = 4 /* rounds after which the root goes first */
};
static const perigee__arena_mode modes[MODES] = {PERIGEE_ARENA_SPIN, PERIGEE_ARENA_PARK};

/* Shared by the ranks of one world. */
typedef struct rounds {
  _Atomic int come; /* to a barrier, in all */
  int root, odd;    /* odd: the rank that does something else */
} rounds;

static bool root_first(const member *m, int root) {
  const perigee__arena_habit *h = &m->arena->habit;
  return h->root == root && h->times == HABIT - 1;
}

/* A barrier that nobody leaves before all have come. */
static void barrier_try(member *m, int number) {
  rounds *all = m->arg;
  atomic_fetch_add(&all->come, 1);
  RANK_CHECK(m, rank_barrier(m) == 0, "%s", m->error.message);
  int come = atomic_load(&all->come);
  RANK_CHECK(m, come >= number * m->n, "barrier %d: only %d had come", number, come);
}

static void change_habits(member *m) {
  int number = 0;
  for (int i = 0; i < 600; i++) {
    what w = {.kind = i % 200 < 100 ? PERIGEE_COLL_BROADCAST : PERIGEE_COLL_SCATTER,
              .dtype = PERIGEE_F32,
              .numel = i % 3 == 0 ? 2000 : 3,
              .root = i / 20 % m->n};
    if (i % 20 >= 15)
      w.kind = PERIGEE_COLL_ALLREDUCE;
    barrier_try(m, ++number);
    rank_try(m, &w);
    int round = i % 20;
    RANK_CHECK(m, round < HABIT || round >= 15 || root_first(m, w.root), "round %d", i);
    RANK_CHECK(m, round < 15 + HABIT || m->arena->habit.root < 0, "round %d", i);
    if (i % 20 == 19) /* with nothing in between */
      barrier_try(m, ++number);
  }
}

static void test_habits(void **state) {
  (void)state;
  for (int i = 0; i < MODES; i++)
    for (int n = 1; n <= 5; n++) {
      rounds all = {0};
      world *w = world_open(n, modes[i], PERIGEE_ARENA_EPOCHS - 100);
      for (int r = 0; r < n; r++)
        w->member[r].arg = &all;
      ranks_run(w, change_habits);
      world_close(w);
    }
}

static void take_habit(member *m) {
  const rounds *all = m->arg;
  what w = {.kind = PERIGEE_COLL_BROADCAST, .dtype = PERIGEE_F32, .numel = 3, .root = all->root};
  for (int i = 0; i < HABIT; i++) {
    RANK_CHECK(m, rank_barrier(m) == 0, "%s", m->error.message);
    rank_try(m, &w);
  }
  RANK_CHECK(m, root_first(m, all->root), "no habit");
}

static void run_all(int n, perigee__arena_mode mode, rounds *all, rank_fn fn) {
  world *w = world_open(n, mode, 0);
  for (int r = 0; r < n; r++)
    w->member[r].arg = all;
  ranks_run(w, fn);
  world_close(w);
}

static void disagree(member *m) {
  const rounds *all = m->arg;
  what other = {.kind = PERIGEE_COLL_ALLREDUCE, .dtype = PERIGEE_F32, .numel = 3};
  take_habit(m);
  trial t;
  int64_t start = perigee__now_ns();
  trial_open(&t, m, &other);
  int rc = m->me == all->odd ? rank_call(m, &t.call) : rank_barrier(m);
  RANK_CHECK(m, rc == PERIGEE_EMISMATCH, "%d %s", rc, m->error.message);
  RANK_CHECK(m, strstr(m->error.message, "called allreduce") != NULL || m->me == all->odd, "%s",
             m->error.message);
  RANK_CHECK(m, perigee__now_ns() - start < 20 * PERIGEE_NS_PER_SEC, "took too long");
  trial_close(&t);
}

/* The root, or another one, calls something else. */
static void test_mismatch(void **state) {
  (void)state;
  for (int i = 0; i < MODES; i++)
    for (int n = 2; n <= 4; n++)
      for (int odd = 0; odd < 2; odd++) {
        rounds all = {.root = n - 1, .odd = odd == 0 ? 0 : n - 1};
        run_all(n, modes[i], &all, disagree);
      }
}

/* Who has not come is named, and not the root that waits for it as well. */
static void one_is_missing(member *m) {
  const rounds *all = m->arg;
  char text[64];
  take_habit(m);
  if (m->me == all->odd)
    return;
  m->timeout_ns = 300 * PERIGEE_NS_PER_MS;
  int rc = rank_barrier(m);
  snprintf(text, sizeof(text), "timed out after 0.3 s, missing ranks %d", all->odd);
  RANK_CHECK(m, rc == PERIGEE_ETIMEDOUT, "%d %s", rc, m->error.message);
  RANK_CHECK(m, strcmp(m->error.message, text) == 0, "%s", m->error.message);
}

static void one_leaves(member *m) {
  const rounds *all = m->arg;
  take_habit(m);
  if (m->me == all->odd) {
    perigee__sleep_ns(20 * PERIGEE_NS_PER_MS);
    perigee__arena_destroy(&m->arena);
    return;
  }
  int rc = rank_barrier(m);
  RANK_CHECK(m, rc == PERIGEE_EPEERCLOSED, "%d %s", rc, m->error.message);
  RANK_CHECK(m, m->error.nranks == 1 && m->error.ranks[0] == all->odd, "%s", m->error.message);
}

static void test_absent(void **state) {
  (void)state;
  for (int i = 0; i < MODES; i++)
    for (int odd = 0; odd < 3; odd++) {
      rounds all = {.root = 1, .odd = odd};
      run_all(3, modes[i], &all, one_is_missing);
      run_all(3, modes[i], &all, one_leaves);
    }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_habits),
      cmocka_unit_test(test_mismatch),
      cmocka_unit_test(test_absent),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
