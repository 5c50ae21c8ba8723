/* Clients and servers that come late, end, stop, come back; and many of them. */
#include "store/store_testing_play.h"

#include <sys/time.h>
#include <sys/wait.h>

#include "store/store_tcp_engine.h"

/* ---- connecting ---- */

static int connect_to(const char *host, int port, int64_t timeout_ns, perigee_store **store_p) {
  perigee_store_tcp_options o = {sizeof(o), host, port, timeout_ns, 0};
  return perigee_store_tcp_connect(&o, store_p);
}

static void nobody_there(void **state) {
  play *p = *state;
  perigee_store *s = NULL;
  char text[128];
  close(p->listener);
  int64_t began = perigee__now_ns();
  snprintf(text, sizeof(text), "connect to 127.0.0.1:%d: connection refused", p->port);
  FAILS(connect_to("127.0.0.1", p->port, 300 * MS, &s), PERIGEE_ETIMEDOUT, text);
  assert_in_range(perigee__now_ns() - began, 200 * MS, 300 * MS + 150 * MS);
  assert_null(s);
  p->listener = raw_listen(&p->port);
}

/* Somebody accepts and says nothing. */
static void silent_server(void **state) {
  play *p = *state;
  perigee_store *s = NULL;
  int64_t began = perigee__now_ns();
  FAILS(connect_to("127.0.0.1", p->port, 300 * MS, &s), PERIGEE_ETIMEDOUT,
        "handshake: the server did not answer in time");
  assert_in_range(perigee__now_ns() - began, 280 * MS, 10 * SEC);
}

static void unknown_host(void **state) {
  (void)state;
  perigee_store *s = NULL;
  int64_t began = perigee__now_ns();
  FAILS(connect_to("no-such-host.invalid", 29500, 400 * MS, &s), PERIGEE_ETIMEDOUT,
        "no-such-host.invalid");
  assert_true(perigee__now_ns() - began < 10 * SEC);
  assert_null(s);
}

static void wrong_options(void **state) {
  (void)state;
  perigee_store *s = NULL;
  perigee_store_tcp_options good = {sizeof(good), "127.0.0.1", 29500, SEC, 0}, o;
  static char name[300];
  memset(name, 'h', sizeof(name) - 1);
  FAILS(perigee_store_tcp_connect(NULL, &s), PERIGEE_EINVAL, "no options");
  FAILS(perigee_store_tcp_connect(&good, NULL), PERIGEE_EINVAL, "no output");
  o = good;
  o.size = 8;
  FAILS(perigee_store_tcp_connect(&o, &s), PERIGEE_EINVAL, "options.size is 8");
  o = good;
  o.host = "";
  FAILS(perigee_store_tcp_connect(&o, &s), PERIGEE_EINVAL, "no host");
  o = good;
  o.host = name;
  FAILS(perigee_store_tcp_connect(&o, &s), PERIGEE_EINVAL, "longer than 255");
  o = good;
  o.port = 0;
  FAILS(perigee_store_tcp_connect(&o, &s), PERIGEE_EINVAL, "port 0");
  o = good;
  o.port = 65536;
  FAILS(perigee_store_tcp_connect(&o, &s), PERIGEE_EINVAL, "port 65536");
  o = good;
  o.world_size = -1;
  FAILS(perigee_store_tcp_connect(&o, &s), PERIGEE_EINVAL, "world size -1");
  assert_null(s);
}

static void server_that_comes_later(void **state) {
  play *p = *state;
  perigee_store_server *server;
  close(p->listener);
  act(p, act_connect);
  perigee__sleep_ns(150 * MS);
  OK(perigee_store_server_create(NULL, p->port, &server));
  acted(p, 0, "");
  assert_true(p->took_ns < 10 * SEC);
  set_text(p->store, "k", "v");
  expect_get(p->store, "k", "v");
  perigee_store_unref(p->store);
  p->store = NULL;
  perigee_store_server_destroy(&server);
  p->listener = raw_listen(&p->port);
}

static void names_and_families(void **state) {
  (void)state;
  perigee_store_server *server;
  perigee_store *s;
  OK(perigee_store_server_create("::", 0, &server));
  const char *hosts[] = {"localhost", "127.0.0.1", "::1"};
  for (int i = 0; i < 3; i++) {
    OK(connect_to(hosts[i], perigee_store_server_port(server), 5 * SEC, &s));
    OK(perigee_store_add(s, "n", 1, NULL));
    perigee_store_unref(s);
  }
  perigee_store_server_destroy(&server);
  /* "localhost" has two addresses, this server only one of them */
  OK(perigee_store_server_create("127.0.0.1", 0, &server));
  OK(connect_to("localhost", perigee_store_server_port(server), 5 * SEC, &s));
  perigee_store_unref(s);
  perigee_store_server_destroy(&server);
}

/* ---- a real server that ends ---- */

static int act_long_get(play *p) {
  return perigee_store_get(p->store, "never", 20 * SEC, &p->value);
}
static int act_long_barrier(play *p) { return perigee_store_barrier(p->store, "b", 2, 20 * SEC); }
static int act_long_pop(play *p) {
  return perigee_store_queue_pop(p->store, "q", 20 * SEC, &p->value);
}

static void server_killed_while_waiting(void **state) {
  static int (*const waits[])(play * p) = {act_long_get, act_long_barrier, act_long_pop};
  play *p = *state;
  for (size_t i = 0; i < PERIGEE_COUNT(waits); i++) {
    close(p->listener);
    int ready[2];
    assert_int_equal(pipe(ready), 0);
    pid_t pid = fork_child();
    if (pid == 0) {
      perigee_store_server *server;
      if (perigee_store_server_create(NULL, p->port, &server) < 0)
        _exit(1);
      (void)!write(ready[1], "", 1);
      for (;;)
        pause();
    }
    char byte;
    assert_int_equal(read(ready[0], &byte, 1), 1);
    p->store = connect_to_port(p->port, 5 * SEC);
    act(p, waits[i]);
    perigee__sleep_ns(100 * MS);
    int64_t killed = perigee__now_ns();
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    acted(p, PERIGEE_ESTORE, "the server closed the connection");
    assert_true(perigee__now_ns() - killed < 10 * SEC);
    /* and what comes after it says so within 2 s */
    killed = perigee__now_ns();
    FAILS(perigee_store_set(p->store, "k", "v", 1), PERIGEE_ESTORE, "the connection was lost");
    assert_true(perigee__now_ns() - killed < 10 * SEC);
    perigee_store_unref(p->store);
    p->store = NULL;
    close(ready[0]);
    close(ready[1]);
    p->listener = raw_listen(&p->port);
  }
}

/* A server that is stopped, not dead: waits end at their own deadline, and all is well when it goes on. */
static void server_stopped(void **state) {
  play *p = *state;
  close(p->listener);
  int ready[2];
  assert_int_equal(pipe(ready), 0);
  pid_t pid = fork_child();
  if (pid == 0) {
    perigee_store_server *server;
    if (perigee_store_server_create(NULL, p->port, &server) < 0)
      _exit(1);
    (void)!write(ready[1], "", 1);
    for (;;)
      pause();
  }
  char byte;
  assert_int_equal(read(ready[0], &byte, 1), 1);
  p->store = connect_to_port(p->port, 5 * SEC);
  set_text(p->store, "k", "v");
  expect_get(p->store, "k", "v");
  kill(pid, SIGSTOP);
  assert_int_equal(waitpid(pid, NULL, WUNTRACED), pid); /* it has stopped */
  int64_t began = perigee__now_ns();
  FAILS(wait_one(p->store, "k", 200 * MS), PERIGEE_ETIMEDOUT, "wait timeout after 200ms");
  assert_in_range(perigee__now_ns() - began, 195 * MS, 650 * MS);
  kill(pid, SIGCONT);
  expect_get(p->store, "k", "v");
  kill(pid, SIGKILL);
  waitpid(pid, NULL, 0);
  close(ready[0]);
  close(ready[1]);
  p->listener = raw_listen(&p->port);
}

/* The server is restarted between two requests: the second one goes to the new server. */
static void server_restarted(void **state) {
  play *p = *state;
  perigee_store_server *server;
  close(p->listener);
  OK(perigee_store_server_create(NULL, p->port, &server));
  p->store = connect_to_port(p->port, 5 * SEC);
  set_text(p->store, "k", "v");
  expect_get(p->store, "k", "v");
  perigee_store_server_destroy(&server);
  OK(perigee_store_server_create(NULL, p->port, &server));
  assert_false(has(p->store, "k"));
  set_text(p->store, "k", "w");
  expect_get(p->store, "k", "w");
  perigee_store_unref(p->store);
  p->store = NULL;
  perigee_store_server_destroy(&server);
  p->listener = raw_listen(&p->port);
}

/* ---- an older server: knows no BARRIER ---- */

typedef struct old_server {
  int listener;
  _Atomic bool stop;
  int barriers;
} old_server;

enum {
  OLD_MAX = 16
};

static void *old_run(void *arg) {
  old_server *o = arg;
  perigee__engine engine;
  perigee__peer peers[OLD_MAX];
  struct pollfd fds[OLD_MAX + 1] = {{.fd = o->listener, .events = POLLIN}};
  if (perigee__engine_init(&engine, SIZE_MAX) < 0)
    return NULL;
  for (int i = 1; i <= OLD_MAX; i++)
    fds[i] = (struct pollfd){.fd = -1, .events = POLLIN};
  while (!o->stop) {
    poll(fds, OLD_MAX + 1, 5);
    for (int i = 1; i <= OLD_MAX; i++) {
      char chunk[4096];
      if (fds[i].fd < 0) {
        if ((fds[0].revents & POLLIN) == 0)
          continue;
        fds[i].fd = accept4(o->listener, NULL, NULL, SOCK_CLOEXEC);
        fds[0].revents = 0;
        fds[i].revents = 0;
        if (fds[i].fd >= 0)
          perigee__peer_init(&peers[i - 1], &engine);
        continue;
      }
      if (fds[i].revents != 0) {
        ssize_t n = recv(fds[i].fd, chunk, sizeof(chunk), MSG_DONTWAIT);
        bool unknown = n > 0 && chunk[0] == PERIGEE__REQ_BARRIER;
        o->barriers += unknown;
        if (n <= 0 || unknown || perigee__peer_feed(&peers[i - 1], chunk, (size_t)n) < 0) {
          perigee__peer_fini(&peers[i - 1]);
          close(fds[i].fd);
          fds[i].fd = -1;
        }
      }
    }
    for (int i = 1; i <= OLD_MAX; i++)
      if (fds[i].fd >= 0 && peers[i - 1].out.size > 0) {
        raw_send(fds[i].fd, peers[i - 1].out.data, peers[i - 1].out.size);
        perigee__buf_reset(&peers[i - 1].out, 0);
      }
  }
  for (int i = 1; i <= OLD_MAX; i++)
    if (fds[i].fd >= 0) {
      perigee__peer_fini(&peers[i - 1]);
      close(fds[i].fd);
    }
  perigee__engine_fini(&engine);
  return NULL;
}

static int act_barrier_of_two(play *p) { return perigee_store_barrier(p->store, "b", 2, 5 * SEC); }

static void server_without_barrier(void **state) {
  play *p = *state;
  pthread_t thread;
  old_server o = {.listener = p->listener};
  assert_int_equal(pthread_create(&thread, NULL, old_run, &o), 0);
  perigee_store *other = connect_to_port(p->port, 5 * SEC);
  p->store = connect_to_port(p->port, 5 * SEC);
  act(p, act_barrier_of_two);
  perigee__sleep_ns(100 * MS);
  OK(perigee_store_barrier(other, "b", 2, 5 * SEC));
  acted(p, 0, "");
  OK(perigee_store_barrier(other, "c", 1, 5 * SEC)); /* and it is not asked again */
  perigee_store_unref(other);
  perigee_store_unref(p->store);
  p->store = NULL;
  o.stop = true;
  pthread_join(thread, NULL);
  assert_int_equal(o.barriers, 2);
}

/* ---- several clients ---- */

static int64_t num_keys(perigee_store *s) {
  int64_t n;
  OK(perigee_store_num_keys(s, &n));
  return n;
}

static perigee_store *join(int port, int world_size) {
  perigee_store *s;
  perigee_store_tcp_options o = {sizeof(o), "127.0.0.1", port, 5 * SEC, world_size};
  OK(perigee_store_tcp_connect(&o, &s));
  return s;
}

static void numkeys_delkeys(void **state) {
  (void)state;
  perigee_store_server *server;
  perigee_bytes value;
  OK(perigee_store_server_create(NULL, 0, &server));
  perigee_store *s = join(perigee_store_server_port(server), 1);
  assert_int_equal(num_keys(s), 1); /* init */
  for (int64_t i = 1; i <= 3; i++)
    OK(perigee_store_add(s, "key", i, NULL));
  set_text(s, "key0", "value0");
  set_text(s, "key1", "value1");
  OK(perigee_store_add(s, "key3", 1, NULL));
  assert_int_equal(num_keys(s), 5);
  bool deleted;
  OK(perigee_store_delete_key(s, "key0", &deleted));
  assert_true(deleted);
  assert_int_equal(num_keys(s), 4);
  perigee_store_set_timeout(s, 200 * MS);
  FAILS(perigee_store_get(s, "key0", -1, &value), PERIGEE_ETIMEDOUT,
        "wait timeout after 200ms, keys: /key0");
  perigee_store *second = join(perigee_store_server_port(server), 2), *copy;
  OK(perigee_store_clone(second, &copy)); /* a clone does not join */
  int fd = raw_client(perigee_store_server_port(server));
  SEND(fd, "\x03" L("\x05") "init/");
  EXPECT(fd, L("\x01") "2");
  close(fd);
  perigee_store_unref(copy);
  perigee_store_unref(second);
  perigee_store_unref(s);
  perigee_store_server_destroy(&server);
}

enum {
  WORKERS = 5
};
typedef struct worker {
  int port, index, bad;
} worker;

static void *worker_run(void *arg) {
  worker *w = arg;
  perigee_store *s;
  perigee_store_tcp_options o = {sizeof(o), "127.0.0.1", w->port, 10 * SEC, WORKERS};
  w->bad = 1;
  if (perigee_store_tcp_connect(&o, &s) < 0)
    return NULL;
  char key[16];
  snprintf(key, sizeof(key), "key%d", w->index);
  w->bad = perigee_store_set(s, key, key, strlen(key)) != 0;
  for (int i = 0; i < WORKERS && !w->bad; i++) {
    perigee_bytes value;
    snprintf(key, sizeof(key), "key%d", i);
    w->bad = perigee_store_get(s, key, 5 * SEC, &value) != 0 || strcmp(value.data, key) != 0;
    if (!w->bad)
      perigee_bytes_free(&value);
  }
  w->bad |= perigee_store_barrier(s, "end", WORKERS, 5 * SEC) != 0;
  perigee_store_unref(s);
  return NULL;
}

static void multi_worker(void **state) {
  (void)state;
  perigee_store_server *server;
  pthread_t t[WORKERS];
  worker w[WORKERS];
  OK(perigee_store_server_create(NULL, 0, &server));
  for (int i = 0; i < WORKERS; i++) {
    w[i] = (worker){.port = perigee_store_server_port(server), .index = i};
    assert_int_equal(pthread_create(&t[i], NULL, worker_run, &w[i]), 0);
  }
  for (int i = 0; i < WORKERS; i++) {
    pthread_join(t[i], NULL);
    assert_int_equal(w[i].bad, 0);
  }
  perigee_store_server_destroy(&server);
}

/* More waits at once than connections are kept, on one handle; all end, and the extra connections go. */
static void *many_run(void *arg) { return (void *)(intptr_t)wait_one(arg, "all", 10 * SEC); }

static void many_waits_on_one_handle(void **state) {
  (void)state;
  enum {
    N = 24
  };
  perigee_store_server *server;
  pthread_t t[N];
  OK(perigee_store_server_create(NULL, 0, &server));
  perigee_store *s = connect_to_port(perigee_store_server_port(server), 5 * SEC);
  for (int i = 0; i < N; i++)
    assert_int_equal(pthread_create(&t[i], NULL, many_run, s), 0);
  perigee__sleep_ns(100 * MS);
  set_text(s, "all", "here");
  for (int i = 0; i < N; i++) {
    void *rc;
    pthread_join(t[i], &rc);
    assert_null(rc);
  }
  perigee_store_unref(s);
  perigee_store_server_destroy(&server);
}

static void on_alarm(int number) { (void)number; }

/* A signal every millisecond, without SA_RESTART: nobody notices. */
static void storm_of_signals(void **state) {
  (void)state;
  perigee_store_server *server;
  struct sigaction action = {.sa_handler = on_alarm}, before;
  struct itimerval every = {{0, 1000}, {0, 1000}}, never = {{0, 0}, {0, 0}};
  OK(perigee_store_server_create(NULL, 0, &server));
  sigaction(SIGALRM, &action, &before);
  setitimer(ITIMER_REAL, &every, NULL);
  size_t size = 4 << 20;
  char *big = malloc(size);
  memset(big, 'b', size);
  for (int i = 0; i < 10; i++) {
    perigee_store *s = connect_to_port(perigee_store_server_port(server), 5 * SEC);
    perigee_bytes value;
    OK(perigee_store_set(s, "big", big, size));
    OK(perigee_store_get(s, "big", 5 * SEC, &value));
    assert_int_equal(value.size, size);
    assert_memory_equal(value.data, big, size);
    perigee_bytes_free(&value);
    int64_t began = perigee__now_ns();
    FAILS(wait_one(s, "none", 30 * MS), PERIGEE_ETIMEDOUT, "30ms");
    assert_true(perigee__now_ns() - began >= 30 * MS);
    perigee_store_unref(s);
  }
  setitimer(ITIMER_REAL, &never, NULL);
  sigaction(SIGALRM, &before, NULL);
  free(big);
  perigee_store_server_destroy(&server);
}

#define TEST(_fn) cmocka_unit_test_setup_teardown(_fn, play_setup, play_teardown)

int main(void) {
  const struct CMUnitTest tests[] = {
      TEST(nobody_there),
      TEST(silent_server),
      TEST(unknown_host),
      TEST(wrong_options),
      TEST(server_that_comes_later),
      TEST(names_and_families),
      TEST(server_killed_while_waiting),
      TEST(server_stopped),
      TEST(server_restarted),
      TEST(server_without_barrier),
      TEST(numkeys_delkeys),
      TEST(multi_worker),
      TEST(many_waits_on_one_handle),
      TEST(storm_of_signals),
  };
  return cmocka_run_group_tests(tests, warm_up, NULL);
}
