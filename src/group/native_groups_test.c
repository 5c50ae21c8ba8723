/*
 * Defends: groups of the same ranks know nothing of each other. Several run all operations at once, each on a thread of its own, in threads
 * and in processes; ranks use them in opposite orders; a rank is late by a second, or ahead by as much as it is let.
 */
#include "group/testing.h"

#include <spawn.h>
#include <sys/wait.h>

#include "group/work.h"

extern char **environ;

#if defined(THREAD_SANITIZED) || defined(PERIGEE_HOSTILE)
#define SLOW
#endif

enum {
  GROUPS = 4,
#ifdef SLOW
  ROUNDS = 300,
  LONG = 3000
#else
  ROUNDS = 10000,
  LONG = 30000
#endif
};

/* ---- all operations, checked --------------------------------------------------------------------- */

/* One round of one group. */
typedef struct turn {
  perigee_group *group;
  int me, n, root;
  unsigned salt; /* the same on all ranks, another in every group and round */
  int64_t numel;
} turn;

static float value_of(const turn *t, int from, int to, int64_t k) {
  return (float)((t->salt + (unsigned)from * 7 + (unsigned)to * 11 + (unsigned)k) % 13);
}
static float sum_of(const turn *t, int to, int64_t k) {
  float sum = 0;
  for (int r = 0; r < t->n; r++)
    sum += value_of(t, r, to, k);
  return sum;
}

/* What this rank has for rank `to`; for all of them, one after the other. */
static perigee_tensor *input(const turn *t, int to) {
  perigee_tensor *x = f32_of(t->numel, 0);
  for (int64_t k = 0; k < t->numel; k++)
    ((float *)perigee_tensor_data(x))[k] = value_of(t, t->me, to, k);
  return x;
}
static perigee_tensor *inputs(const turn *t) {
  perigee_tensor *x = f32_of(t->numel * t->n, 0);
  for (int64_t k = 0; k < t->numel * t->n; k++)
    ((float *)perigee_tensor_data(x))[k] = value_of(t, t->me, (int)(k / t->numel), k % t->numel);
  return x;
}

static bool same(float a, float b) { return a >= b && a <= b; }

/* From `from`, for `to`, at offset. */
static bool is_from(const turn *t, const perigee_tensor *x, int64_t offset, int from, int to) {
  for (int64_t k = 0; k < t->numel; k++)
    if (!same(f32_at(x, offset + k), value_of(t, from, to, k)))
      return false;
  return true;
}
static bool is_sum(const turn *t, const perigee_tensor *x, int to) {
  for (int64_t k = 0; k < t->numel; k++)
    if (!same(f32_at(x, k), sum_of(t, to, k)))
      return false;
  return true;
}

static void all_reduced(const turn *t) {
  perigee_tensor *x = input(t, 0);
  CHECK(perigee_allreduce(t->group, x, PERIGEE_REDOP_SUM) == 0 && is_sum(t, x, 0));
  perigee_tensor_unref(x);
}
static void broadcasted(const turn *t) {
  perigee_tensor *x = input(t, 0);
  CHECK(perigee_broadcast(t->group, x, t->root) == 0 && is_from(t, x, 0, t->root, 0));
  perigee_tensor_unref(x);
}
static void reduced(const turn *t) {
  perigee_tensor *x = input(t, 0);
  CHECK(perigee_reduce(t->group, x, t->root, PERIGEE_REDOP_SUM) == 0);
  CHECK(t->me == t->root ? is_sum(t, x, 0) : is_from(t, x, 0, t->me, 0));
  perigee_tensor_unref(x);
}
static void gathered_by_all(const turn *t) {
  perigee_tensor *x = input(t, 0), *out = f32_of(t->numel * t->n, -1);
  CHECK(perigee_allgather_into_tensor(t->group, out, x) == 0);
  for (int r = 0; r < t->n; r++)
    CHECK(is_from(t, out, t->numel * r, r, 0));
  perigee_tensor_unref(x);
  perigee_tensor_unref(out);
}

/* The root's list of one tensor for each rank: outputs of a gather, inputs of a scatter. */
static void rooted_list(const turn *t, int op) {
  bool gather = op == PERIGEE_OP_GATHER;
  perigee_tensor *list[RANKS_MAX], *one = gather ? input(t, 0) : f32_of(t->numel, -1);
  uint32_t n = t->me == t->root ? (uint32_t)t->n : 0;
  for (int r = 0; r < (int)n; r++)
    list[r] = gather ? f32_of(t->numel, -1) : input(t, r);
  perigee_request req = gather ? request_out_in(op, list, n, n > 0, &one, 1, 0)
                               : request_out_in(op, &one, 1, 0, list, n, n > 0);
  req.root = t->root;
  CHECK(perigee_group_run(t->group, &req) == 0);
  for (int r = 0; r < (int)n && gather; r++)
    CHECK(is_from(t, list[r], 0, r, 0));
  CHECK(gather || is_from(t, one, 0, t->root, t->me));
  for (int r = 0; r < (int)n; r++)
    perigee_tensor_unref(list[r]);
  perigee_tensor_unref(one);
}
static void gathered(const turn *t) { rooted_list(t, PERIGEE_OP_GATHER); }
static void scattered(const turn *t) { rooted_list(t, PERIGEE_OP_SCATTER); }

static void reduced_and_scattered(const turn *t) {
  perigee_tensor *x = inputs(t), *out = f32_of(t->numel, -1);
  perigee_request req = request_out_in(PERIGEE_OP_REDUCE_SCATTER_TENSOR, &out, 1, 0, &x, 1, 0);
  CHECK(perigee_group_run(t->group, &req) == 0 && is_sum(t, out, t->me));
  perigee_tensor_unref(x);
  perigee_tensor_unref(out);
}
static void exchanged(const turn *t) {
  perigee_tensor *x = inputs(t), *out = f32_of(t->numel * t->n, -1);
  perigee_request req = request_out_in(PERIGEE_OP_ALLTOALL_BASE, &out, 1, 0, &x, 1, 0);
  CHECK(perigee_group_run(t->group, &req) == 0);
  for (int r = 0; r < t->n; r++)
    CHECK(is_from(t, out, t->numel * r, r, t->me));
  perigee_tensor_unref(x);
  perigee_tensor_unref(out);
}
static void passed_on(const turn *t) {
  int right = (t->me + 1) % t->n, left = (t->me + t->n - 1) % t->n;
  perigee_tensor *x = input(t, right), *got = f32_of(t->numel, -1);
  perigee_request req;
  perigee_request_init(&req, PERIGEE_OP_RECV);
  req.out = (perigee_tensors){&got, 1, 0};
  req.peer = left;
  req.tag = 5;
  perigee_work *work;
  REQUIRE(perigee_group_submit(t->group, &req, &work) == 0);
  CHECK(perigee_send(t->group, x, right, 5) == 0);
  CHECK(perigee_work_wait(work, PERIGEE_TIMEOUT_NONE) == 0 && is_from(t, got, 0, left, t->me));
  perigee_work_unref(work);
  perigee_tensor_unref(x);
  perigee_tensor_unref(got);
}
static void met(const turn *t) { CHECK(perigee_barrier(t->group) == 0); }

static void (*const kinds[])(const turn *t) = {
    all_reduced, broadcasted,           reduced,   gathered_by_all, gathered,
    scattered,   reduced_and_scattered, exchanged, passed_on,       met,
};

/* Sizes: mostly a few elements, now and then some hundred, seldom what goes in pieces. */
static void play(perigee_group *group, unsigned salt, int round) {
  turn t = {.group = group, .me = perigee_group_rank(group), .n = perigee_group_size(group)};
  unsigned mix = (salt * 7919 + (unsigned)round) * 2654435761U >> 8;
  t.salt = salt + (unsigned)round * 5;
  t.root = (int)(mix % (unsigned)t.n);
  t.numel = 1 + mix % 8;
  if (mix % 256 == 0)
    t.numel = mix / 256 % LONG;
  else if (mix % 16 == 1)
    t.numel = mix / 256 % 700;
  kinds[((unsigned)round + salt) % PERIGEE_COUNT(kinds)](&t);
}

/* ---- several groups at once ----------------------------------------------------------------------- */

typedef struct player {
  pthread_t thread;
  perigee_group *group;
  unsigned salt;
  int rounds;
} player;

static void *player_main(void *arg) {
  const player *p = arg;
  for (int i = 0; i < p->rounds && atomic_load(&failures) == 0; i++)
    play(p->group, p->salt, i);
  return NULL;
}

/* The group and three of the same ranks, each on its own thread. The i-th has the ranks in another order. */
static void at_once(perigee_group *group, void *arg) {
  player players[GROUPS];
  int me = perigee_group_rank(group), n = perigee_group_size(group);
  for (int g = 0; g < GROUPS; g++) {
    players[g] = (player){.group = group, .salt = (unsigned)g * 3, .rounds = *(int *)arg};
    if (g > 0)
      REQUIRE(perigee_group_split(group, 0, (me + g) % n, NULL, &players[g].group) == 0);
  }
  for (int g = 0; g < GROUPS; g++)
    REQUIRE(pthread_create(&players[g].thread, NULL, player_main, &players[g]) == 0);
  for (int g = 0; g < GROUPS; g++)
    REQUIRE(pthread_join(players[g].thread, NULL) == 0);
  for (int g = 1; g < GROUPS; g++)
    drop_group(players[g].group);
}

static void test_at_once(void **state) {
  (void)state;
  int many = ROUNDS, some = ROUNDS / 10;
  with_ranks(2, at_once, &many);
  with_ranks(3, at_once, &some);
}

/* More ranks than cores. */
static void one_after_the_other(perigee_group *group, void *arg) {
  for (int i = 0; i < *(int *)arg && atomic_load(&failures) == 0; i++)
    play(group, 1, i);
}
static void test_crowd(void **state) {
  (void)state;
  int rounds = ROUNDS / 10;
  with_ranks(8, one_after_the_other, &rounds);
}

/* ---- the same in processes ------------------------------------------------------------------------ */

static int child_main(void) {
  perigee_group *world;
  program_deadline(100);
  int rounds = ROUNDS;
  if (perigee_init(NULL, &world) < 0) {
    fprintf(stderr, "init: %s\n", perigee_last_error()->message);
    return 1;
  }
  at_once(world, &rounds);
  drop_group(world);
  return atomic_load(&failures) > 0;
}

static pid_t start_rank(const char *program, int rank, int n, int port) {
  char text[4][48];
  char *env[64], *argv[] = {(char *)program, (char *)"rank", NULL};
  size_t k = 0;
  snprintf(text[0], sizeof(text[0]), "RANK=%d", rank);
  snprintf(text[1], sizeof(text[1]), "WORLD_SIZE=%d", n);
  snprintf(text[2], sizeof(text[2]), "MASTER_PORT=%d", port);
  snprintf(text[3], sizeof(text[3]), "MASTER_ADDR=127.0.0.1");
  for (; k < 4; k++)
    env[k] = text[k];
  for (char **e = environ; *e != NULL && k < PERIGEE_COUNT(env) - 1; e++)
    env[k++] = *e;
  env[k] = NULL;
  pid_t pid;
  assert_int_equal(posix_spawn(&pid, program, NULL, NULL, argv, env), 0);
  return pid;
}

static const char *this_program;

static void test_processes(void **state) {
  (void)state;
  enum {
    N = 2
  };
  perigee_store_server *server;
  assert_int_equal(perigee_store_server_create(NULL, 0, &server), 0);
  pid_t pids[N];
  for (int r = 0; r < N; r++)
    pids[r] = start_rank(this_program, r, N, perigee_store_server_port(server));
  for (int r = 0; r < N; r++) {
    int status = -1;
    assert_int_equal(waitpid(pids[r], &status, 0), pids[r]);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  }
  perigee_store_server_destroy(&server);
}

/* ---- in opposite orders ---------------------------------------------------------------------------- */

static perigee_group *child_of(perigee_group *group, const char *name) {
  perigee_group *child = NULL;
  REQUIRE(perigee_group_split(group, 0, 0, name, &child) == 0);
  return child;
}

static perigee_work *start_sum(perigee_group *group, perigee_tensor **t) {
  perigee_request req = request_inplace(PERIGEE_OP_ALLREDUCE, t, 1);
  perigee_work *work;
  REQUIRE(perigee_group_submit(group, &req, &work) == 0);
  return work;
}

/* Rank 0 starts on the one group and waits there first, rank 1 on the other. */
static void crosswise(perigee_group *group, void *arg) {
  int me = perigee_group_rank(group);
  perigee_group *groups[2] = {child_of(group, "a"), child_of(group, "b")};
  for (int i = 0; i < *(int *)arg; i++) {
    int64_t numel = i % 20 == 0 ? LONG : 1 + i % 9;
    perigee_tensor *t[2];
    perigee_work *works[2];
    for (int j = 0; j < 2; j++) {
      int g = j ^ me;
      t[g] = f32_of(numel, (float)(1 + g + me * 10));
      works[g] = start_sum(groups[g], &t[g]);
    }
    for (int j = 0; j < 2; j++) {
      int g = j ^ me;
      CHECK(perigee_work_wait(works[g], PERIGEE_TIMEOUT_NONE) == 0);
      CHECK(f32_is(t[g], (float)(2 * (1 + g) + 10)));
      perigee_work_unref(works[g]);
      perigee_tensor_unref(t[g]);
    }
  }
  drop_group(groups[me]);
  drop_group(groups[1 - me]);
}
static void test_crosswise(void **state) {
  (void)state;
  int rounds = ROUNDS / 30;
  with_ranks(2, crosswise, &rounds);
}

/* The same with calls that block: each rank waits where the other is not. An error that says so on both, not a mix-up. */
static void crosswise_blocking(perigee_group *group, void *arg) {
  (void)arg;
  int me = perigee_group_rank(group);
  perigee_group *groups[2] = {child_of(group, "a"), child_of(group, "b")};
  REQUIRE(perigee_group_set_timeout(groups[me], 500 * MS) == 0);
  perigee_tensor *t = f32_of(4, (float)(me + 1));
  CHECK(perigee_allreduce(groups[me], t, PERIGEE_REDOP_SUM) == PERIGEE_ETIMEDOUT);
  const perigee_error *e = perigee_last_error();
  CHECK(e->nranks == 1 && e->ranks[0] == 1 - me && last_error_has("timed out after 0.5 s"));
  CHECK(strcmp(e->group, perigee_group_name(groups[me])) == 0);
  perigee_tensor_unref(t);
  t = f32_of(4, (float)(me + 1)); /* the group of both is as it was */
  CHECK(perigee_allreduce(group, t, PERIGEE_REDOP_SUM) == 0 && f32_is(t, 3));
  perigee_tensor_unref(t);
  drop_group(groups[0]);
  drop_group(groups[1]);
}
static void test_crosswise_blocking(void **state) {
  (void)state, with_ranks(2, crosswise_blocking, NULL);
}

/* ---- late ------------------------------------------------------------------------------------------ */

/* Each rank in turn comes a second late to a series of all operations: the others have gone as far as they could. */
static void late(perigee_group *group, void *arg) {
  (void)arg;
  int me = perigee_group_rank(group), n = perigee_group_size(group);
  for (int who = 0; who < n; who++) {
    if (me == who)
      perigee__sleep_ns(PERIGEE_NS_PER_SEC);
    for (int i = 0; i < 2 * (int)PERIGEE_COUNT(kinds); i++)
      play(group, (unsigned)who, i);
  }
}
static void test_late(void **state) { (void)state, with_ranks(3, late, NULL); }

/* Nobody waits for the receivers of a broadcast, the senders of a reduce and a gather: who is ahead is ahead by many. */
static void ahead(perigee_group *group, void *arg) {
  (void)arg;
  turn t = {.group = group, .me = perigee_group_rank(group), .n = perigee_group_size(group)};
  static void (*const rooted[])(const turn *) = {broadcasted, reduced, gathered, scattered};
  for (int kind = 0; kind < (int)PERIGEE_COUNT(rooted); kind++)
    for (int i = 0; i < 40; i++) {
      t.root = i / 20 == 0 ? 0 : t.n - 1;
      t.salt = (unsigned)(kind * 100 + i);
      t.numel = i % 7 == 6 ? 900 : 1 + i % 5;
      if (i % 20 == 0 &&
          (t.me == t.root) == (kind % 2 == 1)) /* those the others do not wait for are ahead */
        perigee__sleep_ns(100 * MS);
      rooted[kind](&t);
    }
}
static void test_ahead(void **state) {
  (void)state;
  with_ranks(2, ahead, NULL);
  with_ranks(4, ahead, NULL);
}

int main(int argc, char **argv) {
  if (argc == 2 && strcmp(argv[1], "rank") == 0)
    return child_main();
  this_program = argv[0];
  program_deadline(550);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_at_once),   cmocka_unit_test(test_crowd),
      cmocka_unit_test(test_processes), cmocka_unit_test(test_crosswise),
      cmocka_unit_test(test_late),      cmocka_unit_test(test_crosswise_blocking),
      cmocka_unit_test(test_ahead),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
