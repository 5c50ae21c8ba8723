/*
 * Defends: ranks that are refused shared memory, or reading each other's, work all the same, and say so once. Each refusal stands in a process of
 * its own: this program, started again as a rank.
 */
#include "group/testing.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

extern char **environ;

enum {
  RANKS = 3,
#ifdef PERIGEE_HOSTILE
  LARGE = 30001, /* a message for every few elements */
#else
  LARGE = 300001,
#endif
  NO_FILTERS = 77 /* exit status: the kernel takes no seccomp filter here */
};

/* ---- a rank ---------------------------------------------------------------------------------------- */

static void refuse(int call) {
  struct sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)call, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  struct sock_fprog program = {.len = PERIGEE_COUNT(code), .filter = code};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
      prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
    _exit(NO_FILTERS);
}

/* Address space for what a rank needs besides an arena. */
static rlim_t some_more(void) {
  unsigned long pages = 0;
  FILE *f = fopen("/proc/self/statm", "re");
  REQUIRE(f != NULL && fscanf(f, "%lu", &pages) == 1);
  fclose(f);
  return (rlim_t)pages * (rlim_t)sysconf(_SC_PAGESIZE) + ((rlim_t)24 << 20);
}

static void apply(const char *refusal) {
  struct rlimit files, space;
  REQUIRE(getrlimit(RLIMIT_FSIZE, &files) == 0 && getrlimit(RLIMIT_AS, &space) == 0);
  if (strcmp(refusal, "memfd") == 0)
    refuse(SYS_memfd_create);
  else if (strcmp(refusal, "reading") == 0)
    refuse(SYS_process_vm_readv);
  else if (strcmp(refusal, "files") == 0)
    files.rlim_cur = 1024; /* with the signal that ends a process */
  else if (strcmp(refusal, "space") == 0)
    space.rlim_cur = some_more();
  REQUIRE(setrlimit(RLIMIT_FSIZE, &files) == 0 && setrlimit(RLIMIT_AS, &space) == 0);
}

static void sums_and_copies(perigee_group *group) {
  static const int64_t lengths[] = {0, 1, 7, 1000, LARGE};
  int me = perigee_group_rank(group), n = perigee_group_size(group);
  for (size_t i = 0; i < PERIGEE_COUNT(lengths); i++) {
    perigee_tensor *t = f32_of(lengths[i], (float)me), *all = f32_of(lengths[i] * n, -1);
    CHECK(perigee_allgather_into_tensor(group, all, t) == 0);
    for (int64_t k = 0; k < lengths[i] * n; k++)
      CHECK((int)f32_at(all, k) == (int)(k / lengths[i]));
    CHECK(perigee_allreduce(group, t, PERIGEE_REDOP_SUM) == 0);
    CHECK(f32_is(t, (float)(n * (n - 1) / 2)));
    ((float *)perigee_tensor_data(all))[0] = (float)me;
    CHECK(perigee_broadcast(group, all, n - 1) == 0);
    CHECK(lengths[i] == 0 || (int)f32_at(all, 0) == n - 1);
    perigee_tensor_unref(t);
    perigee_tensor_unref(all);
  }
}

/* argv: refusal, transport that is to come of it */
static int rank_main_of(char **argv) {
  program_deadline(60);
  apply(argv[2]);
  perigee_group *world, *half;
  if (perigee_init(NULL, &world) < 0) {
    fprintf(stderr, "init: %s\n", perigee_last_error()->message);
    return 1;
  }
  CHECK(strcmp(perigee_group_transport(world), argv[3]) == 0);
  sums_and_copies(world);
  for (int i = 0; i < 2; i++) { /* the same for subgroups, which have nothing new to say */
    REQUIRE(perigee_group_split(world, 0, perigee_group_rank(world), NULL, &half) == 0);
    CHECK(strcmp(perigee_group_transport(half), argv[3]) == 0);
    sums_and_copies(half);
    drop_group(half);
  }
  drop_group(world);
  return atomic_load(&failures) > 0;
}

/* ---- starting them --------------------------------------------------------------------------------- */

static const char *program;

typedef struct job {
  const char *refusal, *transport;
  int only;         /* the rank that is refused; -1: all */
  const char *says; /* what each rank that is refused says once; NULL: whatever it likes */
} job;

static FILE *start(const job *j, int rank, int port, pid_t *pid_p) {
  char text[4][48];
  char *env[64];
  const char *refusal = j->only < 0 || j->only == rank ? j->refusal : "nothing";
  char *argv[] = {(char *)program, (char *)"rank", (char *)refusal, (char *)j->transport, NULL};
  size_t k = 0;
  snprintf(text[0], sizeof(text[0]), "RANK=%d", rank);
  snprintf(text[1], sizeof(text[1]), "WORLD_SIZE=%d", RANKS);
  snprintf(text[2], sizeof(text[2]), "MASTER_PORT=%d", port);
  snprintf(text[3], sizeof(text[3]), "MASTER_ADDR=127.0.0.1");
  for (; k < 4; k++)
    env[k] = text[k];
  env[k++] = (char *)"PERIGEE_LOG=info";
  env[k++] = (char *)"PERIGEE_SHM_SLOT=16777216"; /* an arena of 48 MiB */
  for (char **e = environ; *e != NULL && k < PERIGEE_COUNT(env) - 1; e++)
    env[k++] = *e;
  env[k] = NULL;
  FILE *log = tmpfile();
  posix_spawn_file_actions_t actions;
  assert_non_null(log);
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, fileno(log), STDERR_FILENO);
  assert_int_equal(posix_spawn(pid_p, program, &actions, NULL, argv, env), 0);
  posix_spawn_file_actions_destroy(&actions);
  return log;
}

static int times_said(FILE *log, const char *text, bool show) {
  char line[1200];
  int times = 0;
  rewind(log);
  while (fgets(line, sizeof(line), log) != NULL) {
    times += strstr(line, text) != NULL;
    if (show)
      fputs(line, stderr);
  }
  return times;
}

static void run(const job *j) {
  perigee_store_server *server;
  pid_t pids[RANKS];
  FILE *logs[RANKS];
  assert_int_equal(perigee_store_server_create(NULL, 0, &server), 0);
  for (int r = 0; r < RANKS; r++)
    logs[r] = start(j, r, perigee_store_server_port(server), &pids[r]);
  int bad = 0, unfiltered = 0;
  for (int r = 0; r < RANKS; r++) {
    int status = -1;
    assert_int_equal(waitpid(pids[r], &status, 0), pids[r]);
    int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128;
    unfiltered += code == NO_FILTERS;
    int said = j->says != NULL ? times_said(logs[r], j->says, false) : 0;
    bool right = code == 0 && (j->says == NULL || said == 1) &&
                 times_said(logs[r], " go over TCP", false) <= 1;
    if (!right) {
      fprintf(stderr, "%s, rank %d: status %#x, said %d times\n", j->refusal, r, (unsigned)status,
              said);
      times_said(logs[r], "", true);
    }
    bad += !right;
    fclose(logs[r]);
  }
  perigee_store_server_destroy(&server);
  if (unfiltered > 0)
    print_message("no seccomp filters here: %s cannot be refused\n", j->refusal);
  else
    assert_int_equal(bad, 0);
}

/* ---- the refusals ---------------------------------------------------------------------------------- */

/* Warnings are shown, so each rank's user sees it. */
#define NO_MEMORY                                                                                  \
  "warn: group world: member 0 of group world has no shared memory to give: using messages "       \
  "instead"

static void test_no_memfd(void **state) {
  (void)state;
  run(&(job){"memfd", "tcp", -1, NO_MEMORY});
  run(&(job){"memfd", "tcp", 0, NO_MEMORY});
}
/* Who is given memory needs not make any. */
static void test_no_memfd_of_a_member(void **state) {
  (void)state;
  run(&(job){"memfd", "shm", 1, NULL});
  run(&(job){"memfd", "shm", 2, NULL});
}
static void test_no_reading(void **state) {
  (void)state;
  run(&(job){"reading", "shm", -1, "cannot be read directly"});
  run(&(job){"reading", "shm", 1, NULL});
}
static void test_small_files(void **state) {
  (void)state;
  run(&(job){"files", "tcp", -1, NO_MEMORY});
  run(&(job){"files", "tcp", 0, NO_MEMORY});
}
static void test_small_space(void **state) {
  (void)state;
/* Sanitizers' own memory cannot be told apart; the tiny arenas of hostile builds fit anywhere. */
#if !defined(SANITIZED) && !defined(PERIGEE_HOSTILE)
  run(&(job){"space", "tcp", -1, NO_MEMORY});
  run(&(job){"space", "tcp", 0, " warn: "});
  run(&(job){"space", "tcp", 2, " warn: "});
#endif
}

/* What no machine has is an error that says how much was asked for, and changes nothing. */
static void too_much(perigee_group *group, void *arg) {
  (void)arg;
  int64_t numel = INT64_C(1) << 45;
  perigee_tensor *t = NULL;
  CHECK(perigee_tensor_create(PERIGEE_F32, 1, &numel, &t) == PERIGEE_ENOMEM);
  CHECK(last_error_has("140737488355328 bytes") && t == NULL);
  CHECK(perigee_group_alloc(group, PERIGEE_F32, 1, &numel, &t) < 0);
  CHECK(last_error_has("140737488355328 bytes") && t == NULL);
  sums_and_copies(group);
}
static void test_too_much(void **state) { (void)state, with_ranks(2, too_much, NULL); }

#ifdef SANITIZED /* whose allocators would rather end the process; they look for these by name */
PERIGEE_API const char *__asan_default_options(void);
const char *__asan_default_options(void) { return "allocator_may_return_null=1"; }
PERIGEE_API const char *__tsan_default_options(void);
const char *__tsan_default_options(void) { return "allocator_may_return_null=1"; }
#endif

int main(int argc, char **argv) {
  if (argc == 4 && strcmp(argv[1], "rank") == 0)
    return rank_main_of(argv);
  program = argv[0];
  program_deadline(110);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_no_memfd),    cmocka_unit_test(test_no_memfd_of_a_member),
      cmocka_unit_test(test_no_reading),  cmocka_unit_test(test_small_files),
      cmocka_unit_test(test_small_space), cmocka_unit_test(test_too_much),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
