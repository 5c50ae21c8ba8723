/*
 * Defends: a process knows who it is from its environment or is told what is wrong there; worlds of several processes
 * meet on a store, and a rank that does not fit is told so. Ranks of other processes are this program, started again.
 */
#include "group/testing.h"

#include <spawn.h>
#include <sys/wait.h>

#include "group/group.h"

extern char **environ;

static const char *const names[] = {"RANK",
                                    "WORLD_SIZE",
                                    "OMPI_COMM_WORLD_RANK",
                                    "OMPI_COMM_WORLD_SIZE",
                                    "PMI_RANK",
                                    "PMI_SIZE",
                                    "SLURM_PROCID",
                                    "SLURM_NTASKS",
                                    "MASTER_ADDR",
                                    "MASTER_PORT",
                                    "PERIGEE_BACKEND",
                                    "PERIGEE_TIMEOUT",
                                    "PERIGEE_INIT_TIMEOUT",
                                    "TORCHELASTIC_RESTART_COUNT"};

static int clean_environment(void **state) {
  (void)state;
  for (size_t i = 0; i < PERIGEE_COUNT(names); i++)
    unsetenv(names[i]);
  return 0;
}

/* Set variables from "A=1 B=2". */
static void environment(const char *text) {
  clean_environment(NULL);
  char copy[512];
  snprintf(copy, sizeof(copy), "%s", text);
  for (char *save, *word = strtok_r(copy, " ", &save); word != NULL;
       word = strtok_r(NULL, " ", &save)) {
    char *equals = strchr(word, '=');
    *equals = '\0';
    setenv(word, equals + 1, 1);
  }
}

/* ---- who am I ---------------------------------------------------------------------------------- */

static void expect_world(const char *env, int rank, int size) {
  environment(env);
  perigee_init_options opts;
  perigee_init_options_init(&opts);
  opts.backend = "fake"; /* needs no peers */
  perigee_group *group = NULL;
  if (perigee_init(&opts, &group) < 0)
    fail_msg("'%s': %s", env, perigee_last_error()->message);
  if (perigee_group_rank(group) != rank || perigee_group_size(group) != size)
    fail_msg("'%s': rank %d of %d", env, perigee_group_rank(group), perigee_group_size(group));
  drop_group(group);
}

static void expect_refused(const char *env, const char *backend, int code, const char *text) {
  environment(env);
  perigee_init_options opts;
  perigee_init_options_init(&opts);
  opts.backend = backend;
  perigee_group *group = NULL;
  int rc = perigee_init(&opts, &group);
  if (rc != code || !last_error_has(text) || group != NULL)
    fail_msg("'%s': %d '%s', wanted %d '%s'", env, rc, perigee_last_error()->message, code, text);
}

static void test_environment(void **state) {
  (void)state;
  expect_world("", 0, 1);
  expect_world("RANK=2 WORLD_SIZE=5", 2, 5);
  expect_world("OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=4", 1, 4);
  expect_world("PMI_RANK=3 PMI_SIZE=4", 3, 4);
  expect_world("SLURM_PROCID=6 SLURM_NTASKS=7", 6, 7);
  /* the first that is complete wins */
  expect_world("RANK=0 WORLD_SIZE=2 OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=4", 0, 2);
  expect_world("PMI_RANK=1 PMI_SIZE=3 SLURM_PROCID=6 SLURM_NTASKS=7", 1, 3);
  expect_world("OMPI_COMM_WORLD_RANK=1 PMI_RANK=2 PMI_SIZE=3", 2, 3);
  expect_world("SLURM_NTASKS=7", 0, 1); /* what a shell inside an allocation has */
  expect_world("MASTER_ADDR=somewhere", 0, 1);
}

static void test_wrong_environment(void **state) {
  (void)state;
  expect_refused("RANK=1", "fake", PERIGEE_EINVAL, "RANK is set, WORLD_SIZE is not");
  expect_refused("WORLD_SIZE=4", "fake", PERIGEE_EINVAL, "WORLD_SIZE is set, RANK is not");
  expect_refused("RANK=1 OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=4", "fake", PERIGEE_EINVAL,
                 "RANK is set, WORLD_SIZE is not");
  expect_refused("RANK=one WORLD_SIZE=4", "fake", PERIGEE_EINVAL, "RANK=one is not a number");
  expect_refused("RANK= WORLD_SIZE=4", "fake", PERIGEE_EINVAL, "RANK= is not a number");
  expect_refused("RANK=-1 WORLD_SIZE=4", "fake", PERIGEE_EINVAL, "RANK=-1 is not a number");
  expect_refused("RANK=1 WORLD_SIZE=4x", "fake", PERIGEE_EINVAL, "WORLD_SIZE=4x is not a number");
  expect_refused("RANK=1 WORLD_SIZE=99999999999999999999", "fake", PERIGEE_EINVAL, "WORLD_SIZE=9");
  expect_refused("RANK=4 WORLD_SIZE=4", "fake", PERIGEE_ERANGE,
                 "init: rank 4 does not exist in a world of 4");
  expect_refused("RANK=0 WORLD_SIZE=0", "fake", PERIGEE_ERANGE,
                 "init: size 0: at least 1 expected");
  expect_refused("PMI_RANK=x PMI_SIZE=2", "fake", PERIGEE_EINVAL, "PMI_RANK=x is not a number");
  expect_refused("RANK=0 WORLD_SIZE=2", "native", PERIGEE_EINVAL, "MASTER_ADDR is not set");
  expect_refused("RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1", "native", PERIGEE_EINVAL,
                 "MASTER_PORT is not set");
  expect_refused("RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=x", "native",
                 PERIGEE_EINVAL, "MASTER_PORT=x is not a number");
  expect_refused("", "nobody", PERIGEE_ENOENT, "there is no backend 'nobody'");
  expect_refused("PERIGEE_BACKEND=else(", NULL, PERIGEE_ENOENT, "there is no backend 'else'");
}

static int init_as(int rank, int nranks, perigee_group **group_p) {
  perigee_init_options opts;
  perigee_init_options_init(&opts);
  opts.backend = "fake";
  opts.rank = rank;
  opts.nranks = nranks;
  return perigee_init(&opts, group_p);
}

static void test_options_beat_the_environment(void **state) {
  (void)state;
  environment("RANK=1 WORLD_SIZE=2");
  perigee_group *group = NULL;
  assert_int_equal(init_as(3, 9, &group), 0);
  assert_int_equal(perigee_group_rank(group), 3);
  assert_int_equal(perigee_group_size(group), 9);
  drop_group(group);
  group = NULL;
  assert_int_equal(init_as(3, -1, &group), PERIGEE_EINVAL);
  assert_true(last_error_has("give both rank and size, or neither"));
  assert_int_equal(init_as(-1, 3, &group), PERIGEE_EINVAL);
  assert_int_equal(init_as(3, 3, &group), PERIGEE_ERANGE);
  assert_int_equal(init_as(0, 0, &group), PERIGEE_ERANGE);
  assert_null(group);
}

static void test_alone(void **state) {
  (void)state;
  environment("PERIGEE_TIMEOUT=12.5");
  perigee_group *group = NULL;
  assert_int_equal(perigee_init(NULL, &group), 0);
  assert_int_equal(perigee_group_rank(group), 0);
  assert_int_equal(perigee_group_size(group), 1);
  assert_string_equal(perigee_group_transport(group), "self");
  assert_string_equal(perigee_group_name(group), "world");
  assert_null(perigee_group_store(group));
  assert_true(perigee_group_timeout(group) == 12500 * MS);
  perigee_tensor *t = f32_of(3, 2);
  assert_int_equal(perigee_allreduce(group, t, PERIGEE_REDOP_SUM), 0);
  assert_true(f32_is(t, 2));
  perigee_tensor_unref(t);
  drop_group(group);
  /* a store is taken when it is given, and a name */
  perigee_store *store;
  assert_int_equal(perigee_store_hash_create(&store), 0);
  perigee_init_options opts;
  perigee_init_options_init(&opts);
  opts.store = store;
  opts.name = "mine";
  opts.timeout_ns = 3 * PERIGEE_NS_PER_SEC;
  assert_int_equal(perigee_init(&opts, &group), 0);
  assert_non_null(perigee_group_store(group));
  assert_string_equal(perigee_group_name(group), "mine");
  assert_true(perigee_group_timeout(group) == 3 * PERIGEE_NS_PER_SEC);
  drop_group(group);
  perigee_store_unref(store);
}

/* ---- ranks as threads -------------------------------------------------------------------------- */

static void rank_of_local(perigee_group *group, void *arg) {
  (void)arg;
  perigee_tensor *t = f32_of(1, (float)perigee_group_rank(group));
  CHECK(perigee_broadcast(group, t, 2) == 0);
  CHECK(f32_is(t, 2));
  perigee_tensor_unref(t);
  /* They share a store. */
  char key[16], value[16];
  perigee_bytes got;
  snprintf(key, sizeof(key), "k%d", perigee_group_rank(group));
  CHECK(perigee_store_set(perigee_group_store(group), key, key, strlen(key)) == 0);
  snprintf(key, sizeof(key), "k%d", (perigee_group_rank(group) + 1) % 3);
  CHECK(perigee_store_get(perigee_group_store(group), key, 5000 * MS, &got) == 0);
  snprintf(value, sizeof(value), "%.*s", (int)got.size, got.data);
  CHECK(strcmp(value, key) == 0);
  perigee_bytes_free(&got);
}

static void test_local(void **state) {
  (void)state;
  environment("");
  perigee_group *groups[RANKS_MAX];
  assert_int_equal(perigee_init_local(0, NULL, groups), PERIGEE_ERANGE);
  assert_true(last_error_has("init_local: 0 ranks"));
  open_local(3, NULL, groups);
  for (int r = 0; r < 3; r++) {
    assert_int_equal(perigee_group_rank(groups[r]), r);
    assert_int_equal(perigee_group_size(groups[r]), 3);
  }
  on_ranks(3, groups, rank_of_local, NULL);
  close_local(3, groups);
  perigee_init_options opts;
  perigee_init_options_init(&opts);
  opts.backend = "nobody";
  assert_int_equal(perigee_init_local(2, &opts, groups), PERIGEE_ENOENT);
  opts.backend = "fake";
  assert_int_equal(perigee_init_local(2, &opts, groups), 0);
  assert_int_equal(perigee_barrier(groups[1]), 0);
  close_local(2, groups);
  assert_no_failures();
}

/* ---- ranks as processes -------------------------------------------------------------------------- */

/* What the other processes do; the result is the exit status. */
static int child_join(void) {  /* two worlds, one after the other, then both ends at once */
  static perigee_group *group; /* the second world stays open: the end of the process closes it */
  for (int round = 0; round < 2; round++) {
    if (perigee_init(NULL, &group) < 0)
      return 1;
    perigee_tensor *t = f32_of(1000, 1);
    int rc = perigee_allreduce(group, t, PERIGEE_REDOP_SUM);
    bool right = f32_is(t, (float)perigee_group_size(group));
    perigee_tensor_unref(t);
    if (rc < 0 || !right || strcmp(perigee_group_transport(group), "shm") != 0)
      return 2;
    if (round == 0)
      drop_group(group);
  }
  return 0;
}

/* The code of a failed init, told by number; its text goes to stderr for people. */
static int child_fails(int want, const char *text) {
  perigee_group *group;
  if (perigee_init(NULL, &group) == 0)
    return 10;
  if (perigee_last_error()->code == want && (text == NULL || last_error_has(text)))
    return 0;
  fprintf(stderr, "rank %s: %d %s\n", getenv("RANK"), perigee_last_error()->code,
          perigee_last_error()->message);
  return 11;
}

static int child_main(const char *role) {
  program_deadline(30);
  if (strcmp(role, "join") == 0)
    return child_join();
  if (strcmp(role, "late") == 0)
    return child_fails(PERIGEE_ERENDEZVOUS, "2");
  if (strcmp(role, "size") == 0) /* whoever came first has fixed the size; it waits in vain */
    return child_fails(PERIGEE_ECONFIG, "this rank's world size is") == 0 ? 0 : 12;
  if (strcmp(role, "twice") == 0)
    return child_fails(PERIGEE_EDUPRANK, "init: rank 0 is held by pid");
  return 99;
}

static const char *program;

static pid_t start(const char *role, int rank, int size, int port, const char *timeout) {
  char env[256];
  snprintf(env, sizeof(env),
           "RANK=%d WORLD_SIZE=%d MASTER_ADDR=127.0.0.1 MASTER_PORT=%d PERIGEE_INIT_TIMEOUT=%s",
           rank, size, port, timeout);
  environment(env);
  char *argv[] = {(char *)(uintptr_t)program, (char *)(uintptr_t)role, NULL};
  pid_t pid;
  assert_int_equal(posix_spawn(&pid, program, NULL, NULL, argv, environ), 0);
  clean_environment(NULL);
  return pid;
}

static int exit_of(pid_t pid) {
  int status;
  assert_int_equal(waitpid(pid, &status, 0), pid);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

static perigee_store_server *serve(int *port_p) {
  perigee_store_server *server;
  assert_int_equal(perigee_store_server_create(NULL, 0, &server), 0);
  *port_p = perigee_store_server_port(server);
  return server;
}

static void test_processes_join(void **state) {
  (void)state;
  int port;
  perigee_store_server *server = serve(&port);
  pid_t pids[3];
  for (int r = 0; r < 3; r++)
    pids[r] = start("join", r, 3, port, "20");
  for (int r = 0; r < 3; r++)
    assert_int_equal(exit_of(pids[r]), 0);
  perigee_store_server_destroy(&server);
}

static void test_missing_process_is_named(void **state) {
  (void)state;
  int port;
  perigee_store_server *server = serve(&port);
  pid_t pids[2];
  for (int r = 0; r < 2; r++)
    pids[r] = start("late", r, 3, port, "0.5");
  for (int r = 0; r < 2; r++)
    assert_int_equal(exit_of(pids[r]), 0);
  perigee_store_server_destroy(&server);
}

static void test_sizes_differ(void **state) {
  (void)state;
  int port;
  perigee_store_server *server = serve(&port);
  pid_t a = start("size", 0, 2, port, "1"), b = start("size", 1, 3, port, "1");
  int first = exit_of(a), second = exit_of(b);
  /* one was first and waits for ranks that do not come, the other is told */
  assert_true((first == 0 && second == 12) || (first == 12 && second == 0));
  perigee_store_server_destroy(&server);
}

static void test_rank_taken(void **state) {
  (void)state;
  int port;
  perigee_store_server *server = serve(&port);
  pid_t a = start("twice", 0, 2, port, "1"), b = start("twice", 0, 2, port, "1");
  int first = exit_of(a), second = exit_of(b);
  assert_true((first == 0 && second == 11) || (first == 11 && second == 0));
  perigee_store_server_destroy(&server);
}

int main(int argc, char **argv) {
  if (argc > 1)
    return child_main(argv[1]);
  program_deadline(100);
  program = argv[0];
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup(test_environment, clean_environment),
      cmocka_unit_test_setup(test_wrong_environment, clean_environment),
      cmocka_unit_test_setup(test_options_beat_the_environment, clean_environment),
      cmocka_unit_test_setup(test_alone, clean_environment),
      cmocka_unit_test_setup(test_local, clean_environment),
      cmocka_unit_test_setup(test_processes_join, clean_environment),
      cmocka_unit_test_setup(test_missing_process_is_named, clean_environment),
      cmocka_unit_test_setup(test_sizes_differ, clean_environment),
      cmocka_unit_test_setup(test_rank_taken, clean_environment),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
