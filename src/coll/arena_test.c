/* Arenas made by all members of a group through their meshes: they agree on having one, and fail together. */
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include "coll/shm_testing_ops.h"

enum {
  GROUP_ID = 0x5eed
};

typedef struct party {
  world w; /* first: a member's w is one */
  perigee__mesh *mesh[RANKS_MAX];
  int created[RANKS_MAX]; /* result of perigee__arena_create by rank */
  rank_fn body;           /* after create, NULL: nothing */
  bool yes[RANKS_MAX], all[RANKS_MAX];
} party;

static party *party_of(const member *m) { return (party *)(void *)m->w; }

static void join_and_run(member *m) {
  party *p = party_of(m);
  int rc = perigee__arena_create(p->mesh[m->me], &m->fate,
                                 perigee__deadline_in(PATIENCE_S * PERIGEE_NS_PER_SEC), &m->arena);
  p->created[m->me] = rc;
  if (rc == 0 && p->body != NULL)
    p->body(m);
}

static void party_open(party *p, int n) {
  static const int members[RANKS_MAX] = {0, 1, 2, 3, 4, 5, 6, 7};
  memset(p, 0, sizeof(*p));
  p->w.n = n;
  assert_int_equal(perigee__mesh_create_local(n, PERIGEE_TRANSPORT_AUTO, p->mesh), 0);
  for (int r = 0; r < n; r++) {
    member *m = &p->w.member[r];
    m->w = &p->w;
    m->me = r;
    m->n = n;
    m->timeout_ns = PATIENCE_S * PERIGEE_NS_PER_SEC;
    assert_int_equal(perigee__fate_init(&m->fate, GROUP_ID, "party", r, n, members), 0);
    assert_int_equal(perigee__mesh_attach(p->mesh[r], &m->fate), 0);
  }
}

static void party_close(party *p) {
  for (int r = 0; r < p->w.n; r++) {
    perigee__arena_destroy(&p->w.member[r].arena);
    perigee__mesh_detach(p->mesh[r], &p->w.member[r].fate);
    perigee__fate_fini(&p->w.member[r].fate);
  }
  for (int r = 0; r < p->w.n; r++)
    perigee__mesh_destroy(&p->mesh[r], perigee__deadline_in(PERIGEE_NS_PER_SEC));
}

static void party_run(party *p, int n, rank_fn body) {
  party_open(p, n);
  p->body = body;
  ranks_run(&p->w, join_and_run);
}

/* ---- making ------------------------------------------------------------------------------------------ */

static void some_of_everything(member *m) {
  for (int kind = 0; kind < KINDS; kind++)
    for (size_t numel = 1; numel < 40000; numel *= 33) {
      what w = {
          .kind = (perigee__coll_kind)kind, .dtype = PERIGEE_F32, .numel = numel, .root = m->n - 1};
      rank_try(m, &w);
    }
}

static void test_create(void **state) {
  (void)state;
  static const char *const waits[] = {"spin", "park", "adaptive", "nonsense"};
  static party p;
  for (size_t i = 0; i < PERIGEE_COUNT(waits); i++) {
    setenv("PERIGEE_WAIT", waits[i], 1);
    party_run(&p, 2 + (int)i, some_of_everything);
    for (int r = 0; r < p.w.n; r++) {
      assert_int_equal(p.created[r], 0);
      assert_int_equal(p.w.member[r].arena->mode, p.w.member[0].arena->mode);
    }
    if (i < 2)
      assert_int_equal(p.w.member[0].arena->mode, i == 0 ? PERIGEE_ARENA_SPIN : PERIGEE_ARENA_PARK);
    party_close(&p);
  }
  unsetenv("PERIGEE_WAIT");
}

/* Reading each other's memory is refused by a filter, as in a container: nobody does, and everything works. The
 * filter cannot be taken off, so a child has it. */
static void expect_no_cma(member *m) {
  RANK_CHECK(m, !m->arena->cma, "it was readable");
  some_of_everything(m);
}

static int filtered(void) {
  static party p;
  struct sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_process_vm_readv, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  struct sock_fprog program = {.len = PERIGEE_COUNT(code), .filter = code};
  int bad = 0;
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
      prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
    return 77; /* no filters here */
  alarm(2 * PATIENCE_S);
  party_run(&p, 3, expect_no_cma);
  for (int r = 0; r < 3; r++)
    bad += p.w.member[r].failures != 0 || p.created[r] != 0;
  party_close(&p);
  return bad;
}

static void test_unreadable(void **state) {
  (void)state;
  static party p;
  party_run(&p, 2, NULL); /* without a filter it can be done */
  bool readable = p.w.member[0].arena->cma;
  party_close(&p);
  int status = -1;
  fflush(NULL);
  pid_t pid = fork();
  assert_true(pid >= 0);
  if (pid == 0)
    _exit(filtered());
  assert_int_equal(waitpid(pid, &status, 0), pid);
  assert_true(WIFEXITED(status));
  if (WEXITSTATUS(status) == 77)
    print_message("seccomp filters are refused here; memory is %sreadable\n",
                  readable ? "" : "not ");
  else
    assert_int_equal(WEXITSTATUS(status), 0);
}

/* A group of one needs no mesh. */
static void test_alone(void **state) {
  (void)state;
  static const int members[1] = {0};
  world w = {.n = 1};
  member *m = &w.member[0];
  *m = (member){.w = &w, .n = 1, .timeout_ns = PERIGEE_NS_PER_SEC};
  assert_int_equal(perigee__fate_init(&m->fate, GROUP_ID, "alone", 0, 1, members), 0);
  assert_int_equal(perigee__arena_create(NULL, &m->fate, PERIGEE_NEVER, &m->arena), 0);
  some_of_everything(m);
  assert_int_equal(m->failures, 0);
  perigee__arena_destroy(&m->arena);
  assert_null(m->arena);
  perigee__arena_destroy(&m->arena);
  perigee__fate_fini(&m->fate);
}

/* What a rank takes at rest, and that a slot size is one for each rank. */
static void test_memory(void **state) {
  (void)state;
  for (int n = 2; n <= 64; n *= 2) {
    size_t total = perigee__arena_layout_for(n, perigee__arena_buffer_bytes(n)).total;
    assert_true(total / (size_t)n < (size_t)2 << 20);
  }
#ifndef PERIGEE_HOSTILE
  setenv("PERIGEE_SHM_SLOT", "8192", 1);
  assert_int_equal(perigee__arena_buffer_bytes(2), 2048);
  setenv("PERIGEE_SHM_SLOT", "256", 1);
  assert_int_equal(perigee__arena_buffer_bytes(2), 64);
  assert_int_equal(perigee__arena_buffer_bytes(100), 1600);
  unsetenv("PERIGEE_SHM_SLOT");
#endif
}

/* Memory that was formatted for something else is refused. */
static void test_header(void **state) {
  (void)state;
  static const int members[3] = {0, 1, 2};
  size_t buffer = perigee__arena_buffer_bytes(2);
  size_t bytes = perigee__arena_layout_for(2, buffer).total;
  void *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  perigee__fate fate;
  perigee__arena *a = NULL;
  assert_true(base != MAP_FAILED);
  assert_int_equal(perigee__fate_init(&fate, GROUP_ID, "odd", 0, 3, members), 0);
  assert_int_equal(perigee__arena_create_over(base, bytes, NULL, &fate, &a), PERIGEE_ENOSHM);
  perigee__arena_format(base, 2, PERIGEE_ARENA_PARK, buffer, 0);
  assert_int_equal(perigee__arena_create_over(base, bytes, NULL, &fate, &a), PERIGEE_ENOSHM);
  fate.n = 2;
  assert_int_equal(perigee__arena_create_over(base, bytes - 4096, NULL, &fate, &a), PERIGEE_ENOSHM);
  assert_null(a);
  assert_int_equal(perigee__arena_create_over(base, bytes, NULL, &fate, &a), 0);
  perigee__arena_destroy(&a);
  fate.n = 3;
  perigee__fate_fini(&fate);
  munmap(base, bytes);
}

/* Member 0 gets no memory: nobody has an arena, and everybody knows. */
static void test_refused(void **state) {
  (void)state;
  static party p;
  struct rlimit before, none;
  party_open(&p, 3);
  signal(SIGXFSZ, SIG_IGN);
  assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
  none = (struct rlimit){.rlim_cur = 1024, .rlim_max = before.rlim_max};
  assert_int_equal(setrlimit(RLIMIT_FSIZE, &none), 0);
  ranks_run(&p.w, join_and_run);
  assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
  for (int r = 0; r < 3; r++) {
    assert_int_equal(p.created[r], PERIGEE_ENOSHM);
    assert_null(p.w.member[r].arena);
    assert_false(perigee__fate_failed(&p.w.member[r].fate));
  }
  p.body = some_of_everything; /* the group is as it was: a second attempt works */
  ranks_run(&p.w, join_and_run);
  party_close(&p);
}

/* One member cannot map: the answer is no on all. */
static void vote(member *m) {
  party *p = party_of(m);
  int64_t deadline = perigee__deadline_in(PATIENCE_S * PERIGEE_NS_PER_SEC);
  int rc = perigee__arena_agree(p->mesh[m->me], &m->fate, deadline, p->yes[m->me], &p->all[m->me]);
  RANK_CHECK(m, rc == 0, "%s", perigee_last_error()->message);
}

static void test_agree(void **state) {
  (void)state;
  static party p;
  party_open(&p, 3);
  for (int no = -1; no < 3; no++) {
    for (int r = 0; r < 3; r++)
      p.yes[r] = r != no;
    ranks_run(&p.w, vote);
    for (int r = 0; r < 3; r++)
      assert_int_equal(p.all[r], no < 0);
  }
  party_close(&p);
}

/* ---- failing together --------------------------------------------------------------------------------- */

/* One rank's deadline passes long before another's: both end then, with the same reason, and the missing ones are told. */
static void two_wait(member *m) {
  RANK_CHECK(m, rank_barrier(m) == 0, "%s", m->error.message);
  int64_t start = perigee__now_ns();
  if (m->me == 0)
    m->timeout_ns = 300 * PERIGEE_NS_PER_MS;
  if (m->me % 2 == 0) {
    int rc = rank_barrier(m);
    RANK_CHECK(m, rc == PERIGEE_ETIMEDOUT, "%d %s", rc, m->error.message);
    RANK_CHECK(m, strcmp(m->error.message, "timed out after 0.3 s, missing ranks 1,3") == 0, "%s",
               m->error.message);
    RANK_CHECK(m, m->error.nranks == 2 && m->error.rank == m->me, "%d culprits, rank %d",
               m->error.nranks, m->error.rank);
  }
  while (!perigee__fate_failed(&m->fate) &&
         perigee__now_ns() - start < PATIENCE_S * PERIGEE_NS_PER_SEC)
    perigee__sleep_ns(PERIGEE_NS_PER_MS);
  RANK_CHECK(m, perigee__now_ns() - start < 10 * PERIGEE_NS_PER_SEC, "told after %lld ms",
             (long long)((perigee__now_ns() - start) / PERIGEE_NS_PER_MS));
  if (m->me % 2 == 1) /* too late for this one */
    RANK_CHECK(m, rank_barrier(m) == PERIGEE_ETIMEDOUT, "%s", m->error.message);
  RANK_CHECK(m, rank_barrier(m) == PERIGEE_EABORTED, "%s", m->error.message);
}

static void test_timeout_reaches_all(void **state) {
  (void)state;
  static party p;
  for (int i = 0; i < 2; i++) {
    setenv("PERIGEE_WAIT", i == 0 ? "spin" : "park", 1);
    party_run(&p, 4, two_wait);
    party_close(&p);
  }
  unsetenv("PERIGEE_WAIT");
}

static void one_differs(member *m) {
  what w = {.kind = PERIGEE_COLL_ALLREDUCE, .dtype = PERIGEE_F32, .numel = 4};
  trial t;
  if (m->me == 2)
    w.kind = PERIGEE_COLL_BROADCAST;
  trial_open(&t, m, &w);
  int rc = rank_call(m, &t.call);
  RANK_CHECK(m, rc == PERIGEE_EMISMATCH, "%d %s", rc, m->error.message);
  /* rank 2 names any of the others that has come */
  static const char odd[] = " called allreduce f32[4] sum, this rank broadcast f32[4] root 0";
  static const char usual[] =
      "rank 2 called broadcast f32[4] root 0, this rank allreduce f32[4] sum";
  /* who comes when rank 2 has told already hears it in its words */
  RANK_CHECK(m,
             strstr(m->error.message, odd) != NULL ||
                 (m->me != 2 && strcmp(m->error.message, usual) == 0),
             "%s", m->error.message);
  trial_close(&t);
}

static void test_mismatch(void **state) {
  (void)state;
  static party p;
  for (int i = 0; i < 20; i++) {
    setenv("PERIGEE_WAIT", i % 2 == 0 ? "spin" : "park", 1);
    party_run(&p, 4, one_differs);
    party_close(&p);
  }
  unsetenv("PERIGEE_WAIT");
}

/* Whether reading the others is slow is one answer for all: yes as soon as one rank finds it so. Rules would differ otherwise. */
static void test_slow_for_one(void **state) {
  (void)state;
  for (int slow = -1; slow < 3; slow++) {
    world *w = world_open(3, PERIGEE_ARENA_SPIN, 0);
    for (int r = 0; r < 3; r++)
      perigee__reach_introduce(w->member[r].arena);
    for (int r = 0; r < 3; r++)
      w->member[0].arena->status[r].slow = r == slow;
    for (int r = 0; r < 3; r++) {
      perigee__arena *a = w->member[r].arena;
      a->cma = perigee__reach_probe(a);
      assert_true(a->cma);
      perigee__arena_sift(a);
      assert_int_equal(perigee__arena_table(a)->facts.slow, slow >= 0);
    }
    world_close(w);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_create),   cmocka_unit_test(test_unreadable),
      cmocka_unit_test(test_alone),    cmocka_unit_test(test_memory),
      cmocka_unit_test(test_header),   cmocka_unit_test(test_refused),
      cmocka_unit_test(test_agree),    cmocka_unit_test(test_timeout_reaches_all),
      cmocka_unit_test(test_mismatch), cmocka_unit_test(test_slow_for_one),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
