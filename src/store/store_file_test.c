/* The file behind a file store: who removes it, what survives a crash, what is refused. */
#include "store/store_testing.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>

static char path[64];

static int setup(void **state) {
  (void)state;
  snprintf(path, sizeof(path), "/tmp/perigee-file-test-%d", (int)getpid());
  unlink(path);
  return 0;
}

static int teardown(void **state) {
  (void)state;
  bool left = access(path, F_OK) == 0;
  unlink(path);
  assert_false(left);
  return 0;
}

static perigee_store *open_store(void) {
  perigee_store *s;
  OK(perigee_store_file_create(path, &s));
  perigee_store_set_timeout(s, 5 * SEC);
  return s;
}

static void expect_exit(pid_t pid, int status) {
  int got;
  pid_t rc;
  while ((rc = waitpid(pid, &got, 0)) < 0 && errno == EINTR) {
  }
  assert_int_equal(rc, pid);
  assert_int_equal(got, status);
}

static void refcount(void **state) {
  (void)state;
  perigee_store *a = open_store(), *b = open_store(), *c;
  OK(perigee_store_clone(a, &c));
  set_text(a, "k", "v");
  perigee_store_unref(a);
  assert_int_equal(access(path, F_OK), 0);
  perigee_store_unref(c);
  assert_int_equal(access(path, F_OK), 0);
  expect_get(b, "k", "v");
  perigee_store_unref(b);
  assert_int_not_equal(access(path, F_OK), 0);
}

/* Several processes count and meet; the last one takes the file with it. */
static void processes(void **state) {
  (void)state;
  enum {
    N = 4,
    ADDS = 50
  };
  pid_t pids[N];
  perigee_store *s = open_store();
  for (int i = 0; i < N; i++) {
    pids[i] = fork_child();
    if (pids[i] != 0)
      continue;
    perigee_store *own;
    int rc = perigee_store_file_create(path, &own);
    for (int n = 0; rc == 0 && n < ADDS; n++)
      rc = perigee_store_add(own, "n", 1, NULL);
    if (rc == 0)
      rc = perigee_store_barrier(own, "done", N + 1, 5 * SEC);
    if (rc == 0)
      perigee_store_unref(own);
    _exit(rc != 0);
  }
  OK(perigee_store_barrier(s, "done", N + 1, 5 * SEC));
  expect_get(s, "n", "200");
  perigee_store_unref(s);
  for (int i = 0; i < N; i++)
    expect_exit(pids[i], 0);
}

/* A forked child that ends takes nothing with it, and does not keep the file. */
static void fork_and_exit(void **state) {
  (void)state;
  perigee_store *s = open_store();
  set_text(s, "k", "v");
  pid_t pid = fork_child();
  if (pid == 0) {
    perigee_store_unref(s);
    _exit(0);
  }
  expect_exit(pid, 0);
  expect_get(s, "k", "v");
  perigee_store *other = open_store();
  expect_get(other, "k", "v");
  perigee_store_unref(other);
  perigee_store_unref(s);
}

static void file_size(off_t *size_p) {
  struct stat st;
  assert_int_equal(stat(path, &st), 0);
  *size_p = st.st_size;
}

static void append_bytes(const void *data, size_t size) {
  int fd = open(path, O_WRONLY | O_APPEND | O_CLOEXEC);
  assert_true(fd >= 0);
  assert_int_equal(write(fd, data, size), (ssize_t)size);
  close(fd);
}

/* A writer dies after each byte of a record: readers do not see it, the next writer removes it. */
static void torn_tail(void **state) {
  (void)state;
  perigee_store *s = open_store();
  set_text(s, "k", "v");
  off_t before, after;
  file_size(&before);
  set_text(s, "torn", "value");
  file_size(&after);
  size_t whole = (size_t)(after - before);
  char record[64], garbled[64];
  assert_true(whole <= sizeof(record));
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  assert_int_equal(pread(fd, record, whole, before), (ssize_t)whole);
  close(fd);
  OK(perigee_store_delete_key(s, "torn", NULL));
  for (size_t n = 1; n <= whole; n++) {
    /* the last round is a whole record whose bytes never all reached the disk */
    memcpy(garbled, record, whole);
    garbled[whole - 1] = (char)(garbled[whole - 1] + (n == whole));
    append_bytes(garbled, n);
    assert_false(has(s, "torn"));
    perigee_store *fresh = open_store();
    assert_false(has(fresh, "torn"));
    expect_get(fresh, "k", "v");
    OK(perigee_store_add(n % 2 == 0 ? s : fresh, "n", 1, NULL));
    char text[16];
    snprintf(text, sizeof(text), "%zu", n);
    expect_get(s, "n", text);
    expect_get(fresh, "n", text);
    perigee_store_unref(fresh);
  }
  static const char zeros[40];
  append_bytes(zeros, sizeof(zeros)); /* what a lost block reads as */
  set_text(s, "after", "zeros");
  expect_get(s, "after", "zeros");
  perigee_store_unref(s);
}

static void damage_is_reported(void **state) {
  (void)state;
  perigee_store *s = open_store();
  set_text(s, "k", "v");
  append_bytes("this is no record of ours at all", 32);
  FAILS(perigee_store_set(s, "l", "", 0), PERIGEE_ESTORE, "damaged at byte");
  perigee_store_unref(s);
}

/* kill -9 in the middle of work: what the dead left is not taken for news. */
static void killed_processes_leave_no_keys(void **state) {
  (void)state;
  pid_t pid = fork_child();
  if (pid == 0) {
    perigee_store *s;
    if (perigee_store_file_create(path, &s) == 0 && perigee_store_set(s, "old", "x", 1) == 0)
      for (;;)
        (void)!perigee_store_add(s, "n", 1, NULL);
    _exit(1);
  }
  off_t size = 0;
  for (int i = 0; i < 500 && size < 200; i++) {
    struct stat st;
    perigee__sleep_ns(5 * MS);
    size = stat(path, &st) == 0 ? st.st_size : 0;
  }
  assert_true(size >= 200);
  kill(pid, SIGKILL);
  expect_exit(pid, SIGKILL);
  assert_int_equal(access(path, F_OK), 0);
  perigee_store *s = open_store();
  assert_false(has(s, "old"));
  OK(perigee_store_add(s, "n", 1, NULL));
  expect_get(s, "n", "1");
  perigee_store_unref(s);
}

/* A process that stops while it holds the lock: others end at their deadline. */
static void lock_held_by_another(void **state) {
  (void)state;
  perigee_store *s = open_store(), *late;
  set_text(s, "k", "v");
  OK(perigee_store_clone(s, &late));
  set_text(s, "news", "v");
  int fd = open(path, O_RDWR | O_CLOEXEC);
  assert_int_equal(flock(fd, LOCK_EX), 0);
  int64_t began = perigee__now_ns();
  FAILS(wait_one(late, "news", 100 * MS), PERIGEE_ETIMEDOUT, "another process holds its lock");
  assert_in_range(perigee__now_ns() - began, 95 * MS, SEC);
  close(fd);
  OK(wait_one(late, "news", 100 * MS));
  perigee_store_unref(late);
  perigee_store_unref(s);
}

static void refused_paths(void **state) {
  (void)state;
  perigee_store *s = NULL;
  FAILS(perigee_store_file_create(NULL, &s), PERIGEE_EINVAL, "no path");
  FAILS(perigee_store_file_create("", &s), PERIGEE_EINVAL, "no path");
  FAILS(perigee_store_file_create(path, NULL), PERIGEE_EINVAL, "no output");
  FAILS(perigee_store_file_create("/tmp", &s), -EISDIR, "/tmp");
  FAILS(perigee_store_file_create("/nonexistent/folder/x", &s), -ENOENT, "/nonexistent/folder/x");
  /* a file that is something else is left alone */
  int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
  assert_int_equal(write(fd, "my thesis", 9), 9);
  close(fd);
  FAILS(perigee_store_file_create(path, &s), PERIGEE_EINVAL, "something else");
  off_t size;
  file_size(&size);
  assert_int_equal(size, 9);
  unlink(path);
  /* a link is not followed */
  assert_int_equal(symlink("/tmp/perigee-file-test-target", path), 0);
  FAILS(perigee_store_file_create(path, &s), -ELOOP, path);
  unlink(path);
  assert_null(s);
}

/* An empty file made before, as mkstemp does, and a relative path whose folder is left later. */
static void made_before_and_relative(void **state) {
  (void)state;
  char folder[256];
  assert_non_null(getcwd(folder, sizeof(folder)));
  close(open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
  assert_int_equal(chdir("/tmp"), 0);
  perigee_store *s, *copy;
  OK(perigee_store_file_create(path + 5, &s));
  assert_int_equal(chdir("/"), 0);
  set_text(s, "k", "v");
  OK(perigee_store_clone(s, &copy));
  expect_get(copy, "k", "v");
  perigee_store_unref(s);
  perigee_store_unref(copy);
  assert_int_equal(chdir(folder), 0);
}

static void removed_under_us(void **state) {
  (void)state;
  perigee_store *s = open_store();
  unlink(path);
  FAILS(perigee_store_set(s, "k", "v", 1), PERIGEE_ESTORE, "the file was removed");
  perigee_store *fresh = open_store();
  perigee_store_unref(s); /* the path is not its file any more */
  set_text(fresh, "k", "v");
  perigee_store_unref(fresh);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(refcount, setup, teardown),
      cmocka_unit_test_setup_teardown(processes, setup, teardown),
      cmocka_unit_test_setup_teardown(fork_and_exit, setup, teardown),
      cmocka_unit_test_setup_teardown(torn_tail, setup, teardown),
      cmocka_unit_test_setup_teardown(damage_is_reported, setup, teardown),
      cmocka_unit_test_setup_teardown(killed_processes_leave_no_keys, setup, teardown),
      cmocka_unit_test_setup_teardown(lock_held_by_another, setup, teardown),
      cmocka_unit_test_setup_teardown(refused_paths, setup, teardown),
      cmocka_unit_test_setup_teardown(made_before_and_relative, setup, teardown),
      cmocka_unit_test_setup_teardown(removed_under_us, setup, teardown),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
