/* What every kind of store promises, tried on each kind; names follow c10d's StoreTestBase. */
#include "store/store_testing.h"

#include <signal.h>
#include <stdatomic.h>
#include <sys/wait.h>

typedef enum kind {
  HASH,
  FILE_KIND,
  TCP,
  PREFIX_HASH,
  PREFIX_FILE,
  PREFIX_TCP,
} kind;

typedef struct fixture {
  kind kind;
  perigee_store *store;
  perigee_store_server *server;
  char path[64];
  leak_mark leaks;
} fixture;

static perigee_store *prefixed(perigee_store *inner) {
  perigee_store *s;
  OK(perigee_store_prefix_create("test_prefix", inner, &s));
  perigee_store_unref(inner);
  return s;
}

static int setup(void **state) {
  fixture *f = calloc(1, sizeof(*f));
  f->kind = *(const kind *)*state;
  f->leaks = leaks_begin();
  perigee_store *s;
  switch (f->kind) {
  case HASH:
  case PREFIX_HASH:
    OK(perigee_store_hash_create(&s));
    break;
  case FILE_KIND:
  case PREFIX_FILE:
    snprintf(f->path, sizeof(f->path), "/tmp/perigee-store-test-%d", (int)getpid());
    OK(perigee_store_file_create(f->path, &s));
    break;
  default:
    OK(perigee_store_server_create(NULL, 0, &f->server));
    s = connect_to_port(perigee_store_server_port(f->server), 5 * SEC);
  }
  perigee_store_set_timeout(s, 5 * SEC);
  f->store = f->kind >= PREFIX_HASH ? prefixed(s) : s;
  *state = f;
  return 0;
}

static int teardown(void **state) {
  fixture *f = *state;
  perigee_store_unref(f->store);
  perigee_store_server_destroy(&f->server);
  if (f->path[0] != '\0')
    assert_int_not_equal(access(f->path, F_OK), 0);
  leaks_end(f->leaks);
  free(f);
  return 0;
}

static perigee_store *store_of(void **state) { return ((fixture *)*state)->store; }

static perigee_store *clone_of(perigee_store *s) {
  perigee_store *copy;
  OK(perigee_store_clone(s, &copy));
  return copy;
}

static int64_t num_keys(perigee_store *s) {
  int64_t n;
  OK(perigee_store_num_keys(s, &n));
  return n;
}

/* ---- StoreTestBase ---- */

static void set_get_check(void **state) {
  perigee_store *s = store_of(state);
  int64_t sum;
  for (int64_t i = 1; i <= 3; i++)
    OK(perigee_store_add(s, "key", i, &sum));
  assert_int_equal(sum, 6);
  set_text(s, "key0", "value0");
  for (int64_t i = 1; i <= 6; i++)
    OK(perigee_store_add(s, "key3", i, NULL));
  set_text(s, "key1", "value1");
  set_text(s, "key2", "value2");
  expect_get(s, "key", "6");
  expect_get(s, "key0", "value0");
  expect_get(s, "key1", "value1");
  expect_get(s, "key2", "value2");
  expect_get(s, "key3", "21");
  assert_true(has(s, "key3"));
  assert_false(has(s, "Randomkey3"));
  bool all;
  OK(perigee_store_check(s, (const char *[]){"key", "key3"}, 2, &all));
  assert_true(all);
  OK(perigee_store_check(s, (const char *[]){"key", "Randomkey3"}, 2, &all));
  assert_false(all);
  OK(perigee_store_check(s, NULL, 0, &all));
  assert_true(all);
  int64_t before = num_keys(s);
  assert_int_equal(before, 5);
  set_text(s, "-key3", "7");
  expect_get(s, "-key3", "7");
  assert_int_equal(num_keys(s), before + 1);
  bool deleted;
  OK(perigee_store_delete_key(s, "-key3", &deleted));
  assert_true(deleted);
  OK(perigee_store_delete_key(s, "-key3", &deleted));
  assert_false(deleted);
  assert_int_equal(num_keys(s), before);
  assert_false(has(s, "-key3"));
  FAILS(perigee_store_get(s, "-key3", 20 * MS, &(perigee_bytes){0}), PERIGEE_ETIMEDOUT, "-key3");
}

static void expect_cas(perigee_store *s, const char *key, const char *expected, const char *desired,
                       const char *reply) {
  perigee_bytes value;
  OK(perigee_store_compare_set(s, key, expected, strlen(expected), desired, strlen(desired),
                               &value));
  expect_text(value, reply);
}

static void compare_set(void **state) {
  perigee_store *s = store_of(state);
  expect_cas(s, "cs_key0", "wrong_expected", "desired", "wrong_expected");
  assert_false(has(s, "cs_key0"));
  set_text(s, "cs_key0", "value0");
  expect_get(s, "cs_key0", "value0");
  expect_cas(s, "cs_key0", "wrong_expected", "desired", "value0");
  expect_cas(s, "cs_key0", "value0", "desired", "desired");
  expect_get(s, "cs_key0", "desired");
  expect_cas(s, "cs_key1", "", "new", "new");
  expect_get(s, "cs_key1", "new");
  expect_cas(s, "cs_key1", "", "newer", "new");
  set_text(s, "cs_key2", "");
  expect_cas(s, "cs_key2", "", "now", "now");
}

static void simple_wait(void **state) {
  perigee_store *s = store_of(state);
  int64_t began = perigee__now_ns();
  FAILS(wait_one(s, "bad_key", 250 * MS), PERIGEE_ETIMEDOUT, "wait timeout after 250ms, keys: ");
  int64_t took = perigee__now_ns() - began;
  assert_in_range(took, 240 * MS, 1500 * MS);
  OK(perigee_store_add(s, "good_key", 1, NULL));
  OK(wait_one(s, "good_key", 250 * MS));
  FAILS(perigee_store_wait(s, (const char *[]){"good_key", "bad_key"}, 2, 20 * MS),
        PERIGEE_ETIMEDOUT, "bad_key");
  FAILS(wait_one(s, "bad_key", 0), PERIGEE_ETIMEDOUT, "wait timeout after 0ms");
  OK(wait_one(s, "good_key", 0));
  OK(perigee_store_wait(s, NULL, 0, 0));
  perigee_store_set_timeout(s, 30 * MS);
  FAILS(wait_one(s, "bad_key", -1), PERIGEE_ETIMEDOUT, "wait timeout after 30ms");
}

static void append(void **state) {
  perigee_store *s = store_of(state);
  set_text(s, "foo", "po");
  OK(perigee_store_append(s, "foo", "tato", 4));
  OK(perigee_store_append(s, "bar", "po", 2));
  OK(perigee_store_append(s, "bar", "tato", 4));
  expect_get(s, "foo", "potato");
  expect_get(s, "bar", "potato");
  OK(perigee_store_append(s, "empty", NULL, 0));
  expect_get(s, "empty", "");
}

static int64_t queue_len(perigee_store *s, const char *key) {
  int64_t n;
  OK(perigee_store_queue_len(s, key, &n));
  return n;
}

static void push_text(perigee_store *s, const char *key, const char *text) {
  OK(perigee_store_queue_push(s, key, text, strlen(text)));
}

static void expect_pop(perigee_store *s, const char *key, const char *text) {
  perigee_bytes value;
  OK(perigee_store_queue_pop(s, key, 5 * SEC, &value));
  expect_text(value, text);
}

static void queues(void **state) {
  perigee_store *s = store_of(state);
  assert_false(has(s, "test_queue"));
  assert_int_equal(queue_len(s, "test_queue"), 0);
  push_text(s, "test_queue", "first");
  push_text(s, "test_queue", "second");
  assert_true(has(s, "test_queue"));
  assert_int_equal(queue_len(s, "test_queue"), 2);
  OK(wait_one(s, "test_queue", SEC));
  assert_int_equal(num_keys(s), 0);
  expect_pop(s, "test_queue", "first");
  expect_pop(s, "test_queue", "second");
  assert_false(has(s, "test_queue"));
  assert_int_equal(queue_len(s, "test_queue"), 0);
  /* a value of the same name is another thing */
  set_text(s, "test_queue", "plain");
  push_text(s, "test_queue", "");
  expect_get(s, "test_queue", "plain");
  OK(perigee_store_delete_key(s, "test_queue", NULL));
  assert_int_equal(queue_len(s, "test_queue"), 1);
  expect_pop(s, "test_queue", "");
}

static void queues_nonblocking(void **state) {
  perigee_store *s = store_of(state);
  perigee_bytes value = {NULL, 0};
  FAILS(perigee_store_queue_pop(s, "foo", 0, &value), PERIGEE_EAGAIN, "queue is empty");
  assert_null(value.data);
  push_text(s, "foo", "x");
  OK(perigee_store_queue_pop(s, "foo", 0, &value));
  expect_text(value, "x");
}

static void queues_timeout(void **state) {
  perigee_store *s = store_of(state);
  perigee_bytes value;
  perigee_store_set_timeout(s, 10 * MS);
  FAILS(perigee_store_queue_pop(s, "non_existant", -1, &value), PERIGEE_ETIMEDOUT, "timeout");
  set_text(s, "plain", "x"); /* exists, but is no queue */
  FAILS(perigee_store_queue_pop(s, "plain", 60 * MS, &value), PERIGEE_ETIMEDOUT, "timeout");
}

/* Both directions at once, ROUNDS messages each; threads report, the test asserts. */
typedef struct pump {
  perigee_store *store;
  const char *to, *from;
  int failed;
} pump;

static void *pump_run(void *arg) {
  pump *p = arg;
  for (int i = 0; i < 5 && !p->failed; i++) {
    char text[16];
    perigee_bytes value;
    snprintf(text, sizeof(text), "%d", i);
    if (perigee_store_queue_push(p->store, p->to, text, strlen(text)) < 0 ||
        perigee_store_queue_pop(p->store, p->from, 5 * SEC, &value) < 0) {
      p->failed = 1;
      break;
    }
    p->failed |= strcmp(value.data, text) != 0;
    perigee_bytes_free(&value);
  }
  return NULL;
}

static void queues_bidirectional(void **state) {
  perigee_store *a = clone_of(store_of(state)), *b = clone_of(store_of(state));
  pump p[2] = {{.store = a, .to = "there", .from = "back"},
               {.store = b, .to = "back", .from = "there"}};
  pthread_t t[2];
  for (int i = 0; i < 2; i++)
    assert_int_equal(pthread_create(&t[i], NULL, pump_run, &p[i]), 0);
  for (int i = 0; i < 2; i++)
    pthread_join(t[i], NULL);
  assert_int_equal(p[0].failed + p[1].failed, 0);
  perigee_store_unref(a);
  perigee_store_unref(b);
}

static void multi_set(void **state) {
  perigee_store *s = store_of(state);
  char one[] = "foo", two[] = "bar";
  const perigee_bytes values[] = {{one, 3}, {two, 3}, {NULL, 0}};
  OK(perigee_store_multi_set(s, (const char *[]){"foo", "bar", "nil"}, values, 3));
  expect_get(s, "foo", "foo");
  expect_get(s, "bar", "bar");
  expect_get(s, "nil", "");
  OK(perigee_store_multi_set(s, NULL, NULL, 0));
}

static void multi_get(void **state) {
  perigee_store *s = store_of(state);
  const char *keys[] = {"foo", "bar", "foo"};
  perigee_bytes values[3];
  set_text(s, "foo", "po");
  FAILS(perigee_store_multi_get(s, keys, 3, 30 * MS, values), PERIGEE_ETIMEDOUT, "timeout");
  set_text(s, "bar", "tato");
  OK(perigee_store_multi_get(s, keys, 3, SEC, values));
  expect_text(values[0], "po");
  expect_text(values[1], "tato");
  expect_text(values[2], "po");
  OK(perigee_store_multi_get(s, NULL, 0, 0, NULL));
}

static void clone_sees_the_same_keys(void **state) {
  perigee_store *s = store_of(state);
  set_text(s, "foo", "bar");
  perigee_store *copy = clone_of(s);
  assert_string_equal(perigee_store_kind(copy), perigee_store_kind(s));
  expect_get(copy, "foo", "bar");
  set_text(copy, "foo", "baz");
  perigee_store_set_timeout(copy, 10 * MS);
  FAILS(wait_one(copy, "none", -1), PERIGEE_ETIMEDOUT, "10ms");
  expect_get(copy, "foo", "baz");
  expect_get(s, "foo", "baz");
  perigee_store_unref(copy);
  expect_get(s, "foo", "baz");
}

static int by_text(const void *a, const void *b) {
  return strcmp(*(char *const *)a, *(char *const *)b);
}

static void list_keys(void **state) {
  perigee_store *s = store_of(state);
  char **keys;
  size_t n;
  OK(perigee_store_list_keys(s, &keys, &n));
  assert_int_equal(n, 0);
  perigee_store_keys_free(keys, n);
  set_text(s, "foo", "x");
  OK(perigee_store_add(s, "bar", 1, NULL));
  push_text(s, "queue", "not listed");
  set_text(s, "gone", "x");
  OK(perigee_store_delete_key(s, "gone", NULL));
  OK(perigee_store_list_keys(s, &keys, &n));
  assert_int_equal(n, 2);
  qsort(keys, n, sizeof(*keys), by_text);
  assert_string_equal(keys[0], "bar");
  assert_string_equal(keys[1], "foo");
  perigee_store_keys_free(keys, n);
}

static void barrier(void **state) {
  OK(perigee_store_barrier(store_of(state), "one", 1, SEC));
  FAILS(perigee_store_barrier(store_of(state), "two", 2, 50 * MS), PERIGEE_ETIMEDOUT, "timeout");
  FAILS(perigee_store_barrier(store_of(state), "none", 0, SEC), PERIGEE_EINVAL, "world size 0");
}

/* ---- beyond StoreTestBase ---- */

enum {
  RANKS = 4
};

typedef struct rank {
  perigee_store *store;
  _Atomic int *arrived;
  int rc, arrived_after;
} rank;

static void *barrier_run(void *arg) {
  rank *r = arg;
  atomic_fetch_add(r->arrived, 1);
  r->rc = perigee_store_barrier(r->store, "all", RANKS, 5 * SEC);
  r->arrived_after = atomic_load(r->arrived);
  return NULL;
}

static void barrier_of_threads(void **state) {
  _Atomic int arrived = 0;
  rank r[RANKS];
  pthread_t t[RANKS];
  for (int i = 0; i < RANKS; i++) {
    r[i] = (rank){.store = store_of(state), .arrived = &arrived};
    assert_int_equal(pthread_create(&t[i], NULL, barrier_run, &r[i]), 0);
    perigee__sleep_ns(10 * MS);
  }
  for (int i = 0; i < RANKS; i++) {
    pthread_join(t[i], NULL);
    assert_int_equal(r[i].rc, 0);
    assert_int_equal(r[i].arrived_after, RANKS);
  }
}

/* One handle, one thread that waits, one that sets: c10d's TestMultiThreadedWait. */
typedef struct waiter {
  perigee_store *store;
  const char *key;
  int64_t timeout_ns;
  int rc;
  int64_t took_ns;
} waiter;

static void *waiter_run(void *arg) {
  waiter *w = arg;
  int64_t began = perigee__now_ns();
  perigee_bytes value = {NULL, 0};
  w->rc = perigee_store_get(w->store, w->key, w->timeout_ns, &value);
  if (w->rc == 0 && strcmp(value.data, "here") != 0)
    w->rc = 1;
  perigee_bytes_free(&value);
  w->took_ns = perigee__now_ns() - began;
  return NULL;
}

static void multi_threaded_wait(void **state) {
  perigee_store *s = store_of(state);
  waiter w[3];
  pthread_t t[3];
  for (int i = 0; i < 3; i++) {
    w[i] =
        (waiter){.store = s, .key = i < 2 ? "soon" : "never", .timeout_ns = (i < 2 ? 5 : 0) * SEC};
    if (i == 2)
      w[i].timeout_ns = 150 * MS;
    assert_int_equal(pthread_create(&t[i], NULL, waiter_run, &w[i]), 0);
  }
  perigee__sleep_ns(30 * MS);
  /* the waits hold nobody up */
  int64_t began = perigee__now_ns();
  set_text(s, "other", "1");
  expect_get(s, "other", "1");
  set_text(s, "other", "2");
  expect_get(s, "other", "2");
  assert_true(perigee__now_ns() - began < SEC);
  set_text(s, "soon", "here");
  for (int i = 0; i < 3; i++)
    pthread_join(t[i], NULL);
  assert_int_equal(w[0].rc, 0);
  assert_int_equal(w[1].rc, 0);
  assert_int_equal(w[2].rc, PERIGEE_ETIMEDOUT);
  assert_in_range(w[2].took_ns, 140 * MS, 1500 * MS);
}

static void *adder_run(void *arg) {
  rank *r = arg;
  for (int i = 0; i < 40 && r->rc == 0; i++) {
    char key[32], text[16];
    perigee_bytes value;
    snprintf(key, sizeof(key), "own-%p-%d", (void *)r, i);
    snprintf(text, sizeof(text), "%d", i);
    r->rc |= perigee_store_add(r->store, "counter", 1, NULL);
    r->rc |= perigee_store_append(r->store, "letters", "x", 1);
    /* a thread reads what it wrote, whatever the others do */
    r->rc |= perigee_store_set(r->store, key, "old", 3);
    r->rc |= perigee_store_set(r->store, key, text, strlen(text));
    if (r->rc == 0 && (r->rc = perigee_store_get(r->store, key, 5 * SEC, &value)) == 0) {
      r->rc = strcmp(value.data, text) != 0;
      perigee_bytes_free(&value);
    }
  }
  return NULL;
}

static void threads_on_one_handle(void **state) {
  perigee_store *s = store_of(state);
  rank r[RANKS];
  pthread_t t[RANKS];
  for (int i = 0; i < RANKS; i++) {
    r[i] = (rank){.store = s};
    assert_int_equal(pthread_create(&t[i], NULL, adder_run, &r[i]), 0);
  }
  for (int i = 0; i < RANKS; i++) {
    pthread_join(t[i], NULL);
    assert_int_equal(r[i].rc, 0);
  }
  expect_get(s, "counter", "160");
  perigee_bytes value;
  OK(perigee_store_get(s, "letters", 0, &value));
  assert_int_equal(value.size, 160);
  perigee_bytes_free(&value);
}

static void on_signal(int number) { (void)number; }

static void interrupt_doesnt_break_wait(void **state) {
  struct sigaction action = {.sa_handler = on_signal}, before; /* no SA_RESTART */
  assert_int_equal(sigaction(SIGUSR1, &action, &before), 0);
  waiter w = {.store = store_of(state), .key = "k", .timeout_ns = 5 * SEC};
  pthread_t t;
  assert_int_equal(pthread_create(&t, NULL, waiter_run, &w), 0);
  for (int i = 0; i < 20; i++) {
    perigee__sleep_ns(5 * MS);
    pthread_kill(t, SIGUSR1);
  }
  perigee_store *other = clone_of(store_of(state));
  set_text(other, "k", "here");
  pthread_join(t, NULL);
  assert_int_equal(w.rc, 0);
  perigee_store_unref(other);
  sigaction(SIGUSR1, &before, NULL);
}

static void timeouts_do_not_break_the_handle(void **state) {
  perigee_store *s = store_of(state);
  perigee_bytes value;
  for (int i = 0; i < 20; i++) {
    FAILS(perigee_store_get(s, "nonexistent key", i % 3 * MS, &value), PERIGEE_ETIMEDOUT,
          "nonexistent key");
    OK(perigee_store_add(s, "n", 1, NULL));
  }
  expect_get(s, "n", "20");
}

static void any_bytes(void **state) {
  perigee_store *s = store_of(state);
  char all[256];
  for (int i = 0; i < 256; i++)
    all[i] = (char)i;
  perigee_bytes value;
  OK(perigee_store_set(s, "a b/c\n\xff", all, sizeof(all)));
  OK(perigee_store_get(s, "a b/c\n\xff", SEC, &value));
  assert_int_equal(value.size, sizeof(all));
  assert_memory_equal(value.data, all, sizeof(all));
  perigee_bytes_free(&value);
  set_text(s, "", "the empty key is a key");
  expect_get(s, "", "the empty key is a key");
}

static void limits(void **state) {
  perigee_store *s = store_of(state);
  static char key[9000], big[(8 << 20) + 1];
  perigee_bytes value;
  memset(key, 'k', sizeof(key) - 1);
  FAILS(perigee_store_set(s, key, "", 0), PERIGEE_ELIMIT, "longer than 8191 bytes");
  key[8100] = '\0'; /* the prefix needs room too */
  OK(perigee_store_set(s, key, "v", 1));
  expect_get(s, key, "v");
  memset(big, 'b', sizeof(big));
  FAILS(perigee_store_set(s, "big", big, sizeof(big)), PERIGEE_ELIMIT, "8388609 bytes");
  OK(perigee_store_set(s, "big", big, sizeof(big) - 1));
  OK(perigee_store_get(s, "big", 5 * SEC, &value));
  assert_int_equal(value.size, sizeof(big) - 1);
  assert_memory_equal(value.data, big, value.size);
  perigee_bytes_free(&value);
  FAILS(perigee_store_wait(s, (const char *[]){"x"}, 131073, 0), PERIGEE_ELIMIT, "131073 keys");
}

static void wrong_calls(void **state) {
  perigee_store *s = store_of(state);
  int64_t n = 42;
  FAILS(perigee_store_set(NULL, "k", "", 0), PERIGEE_EINVAL, "no store");
  FAILS(perigee_store_set(s, NULL, "", 0), PERIGEE_EINVAL, "no key");
  FAILS(perigee_store_set(s, "k", NULL, 1), PERIGEE_EINVAL, "no value");
  FAILS(perigee_store_get(s, "k", 0, NULL), PERIGEE_EINVAL, "no output");
  FAILS(perigee_store_wait(s, NULL, 1, 0), PERIGEE_EINVAL, "no keys");
  set_text(s, "text", "12x");
  int rc = perigee_store_add(s, "text", 1, &n);
  assert_true(rc == PERIGEE_EINVAL || rc == PERIGEE_ESTORE); /* the protocol has no error reply */
  assert_int_equal(n, 42);
  expect_get(s, "text", "12x"); /* and the handle still works */
  set_text(s, "text", "9223372036854775807");
  rc = perigee_store_add(s, "text", 1, &n);
  assert_true(rc == PERIGEE_ERANGE || rc == PERIGEE_ESTORE);
  OK(perigee_store_add(s, "text", -1, &n));
  assert_true(n == INT64_MAX - 1);
  set_text(s, "text", "-9223372036854775808");
  OK(perigee_store_add(s, "text", 0, &n));
  assert_true(n == INT64_MIN);
}

static void references(void **state) {
  perigee_store *s = store_of(state);
  perigee_store_ref(s);
  perigee_store_unref(s);
  perigee_store_unref(NULL);
  perigee_bytes_free(NULL);
  perigee_store_keys_free(NULL, 0);
  set_text(s, "still", "there");
}

static void forked_child(void **state) {
  perigee_store *s = store_of(state);
  set_text(s, "k", "v");
  pid_t pid = fork_child();
  if (pid == 0) {
    bool wrong = perigee_store_set(s, "k", "child", 5) != PERIGEE_EFORKED ||
                 strstr(perigee_last_error()->message, "belongs to process") == NULL;
    perigee_store_unref(s); /* lets go of memory, and of nothing that is the parent's */
    _exit(wrong);
  }
  int status;
  assert_int_equal(waitpid(pid, &status, 0), pid);
  assert_int_equal(status, 0);
  expect_get(s, "k", "v");
}

#define CASE(_fn)                                                                                  \
  { #_fn, _fn }
static const struct {
  const char *name;
  void (*fn)(void **state);
} cases[] = {
    CASE(set_get_check),
    CASE(compare_set),
    CASE(simple_wait),
    CASE(append),
    CASE(queues),
    CASE(queues_nonblocking),
    CASE(queues_timeout),
    CASE(queues_bidirectional),
    CASE(multi_set),
    CASE(multi_get),
    CASE(clone_sees_the_same_keys),
    CASE(list_keys),
    CASE(barrier),
    CASE(barrier_of_threads),
    CASE(multi_threaded_wait),
    CASE(threads_on_one_handle),
    CASE(interrupt_doesnt_break_wait),
    CASE(timeouts_do_not_break_the_handle),
    CASE(any_bytes),
    CASE(limits),
    CASE(wrong_calls),
    CASE(references),
    CASE(forked_child),
};

enum {
  KINDS = PREFIX_TCP + 1,
  CASES = PERIGEE_COUNT(cases)
};

int main(void) {
  static kind kinds[KINDS] = {HASH, FILE_KIND, TCP, PREFIX_HASH, PREFIX_FILE, PREFIX_TCP};
  static const char *const names[KINDS] = {"hash",         "file",         "tcp",
                                           "prefix(hash)", "prefix(file)", "prefix(tcp)"};
  static struct CMUnitTest tests[KINDS * CASES];
  static char labels[KINDS * CASES][64];
  for (int k = 0; k < KINDS; k++)
    for (int c = 0; c < CASES; c++) {
      int i = k * CASES + c;
      snprintf(labels[i], sizeof(labels[i]), "%s: %s", names[k], cases[c].name);
      tests[i] = (struct CMUnitTest){labels[i], cases[c].fn, setup, teardown, &kinds[k]};
    }
  return cmocka_run_group_tests(tests, warm_up, NULL);
}
