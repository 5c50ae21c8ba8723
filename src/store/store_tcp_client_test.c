/* The client: the bytes it writes, and what it does when the other side is late, gone, or wrong. */
#include "store/store_testing.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/time.h>
#include <sys/wait.h>

#include "store/store_tcp_engine.h"

/* ---- a client on a thread of its own, while the test plays the server ---- */

typedef struct play {
  int listener, port;
  pthread_t thread;
  perigee_store *store;
  int (*act)(struct play *p);
  int rc;
  int code; /* of the last error */
  char message[512];
  perigee_bytes value;
  int64_t number, took_ns;
  bool flag;
  leak_mark leaks;
} play;

static int play_setup(void **state) {
  play *p = calloc(1, sizeof(*p));
  p->leaks = leaks_begin();
  p->listener = raw_listen(&p->port);
  *state = p;
  return 0;
}

static int play_teardown(void **state) {
  play *p = *state;
  perigee_store_unref(p->store);
  perigee_bytes_free(&p->value);
  close(p->listener);
  leaks_end(p->leaks);
  free(p);
  return 0;
}

static void *play_run(void *arg) {
  play *p = arg;
  int64_t began = perigee__now_ns();
  p->rc = p->act(p);
  p->took_ns = perigee__now_ns() - began;
  p->code = perigee_last_error()->code;
  snprintf(p->message, sizeof(p->message), "%s", perigee_last_error()->message);
  return NULL;
}

static void act(play *p, int (*fn)(play *p)) {
  p->act = fn;
  assert_int_equal(pthread_create(&p->thread, NULL, play_run, p), 0);
}

static void acted(play *p, int rc, const char *text) {
  pthread_join(p->thread, NULL);
  if (p->rc != rc || (rc < 0 && strstr(p->message, text) == NULL))
    fail_msg("got %s: %s", perigee_err_name(p->rc), p->message);
}

static int raw_accept(int listener) {
  if (!raw_readable(listener, 5000))
    fail_msg("nobody connects");
  int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC), one = 1;
  assert_true(fd >= 0);
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
  return fd;
}

/* The first bytes of every client: the magic in one piece, then a ping with its pid. */
static void shake_hands(int fd) {
  char hello[16];
  char nonce[4];
  assert_true(raw_readable(fd, 5000));
  assert_true(recv(fd, hello, sizeof(hello), MSG_PEEK) >= 5);
  EXPECT(fd, HELLO "\x0D");
  assert_int_equal(raw_recv(fd, nonce, 4), 4);
  assert_int_equal(perigee__le32(nonce), (uint32_t)getpid());
  raw_send(fd, nonce, 4);
}

static int act_connect_world(play *p) {
  perigee_store_tcp_options o = {sizeof(o), "127.0.0.1", p->port, 5 * SEC, 2};
  return perigee_store_tcp_connect(&o, &p->store);
}
static int act_connect(play *p) {
  perigee_store_tcp_options o = {sizeof(o), "127.0.0.1", p->port, 5 * SEC, 0};
  return perigee_store_tcp_connect(&o, &p->store);
}

/* A connected client and the server's end of its connection. */
static int connected(play *p) {
  act(p, act_connect);
  int fd = raw_accept(p->listener);
  shake_hands(fd);
  acted(p, 0, "");
  return fd;
}

static void client_connect(void **state) {
  play *p = *state;
  act(p, act_connect_world);
  int fd = raw_accept(p->listener);
  shake_hands(fd);
  EXPECT(fd, "\x04" L("\x05") "init/" L("\x01"));
  SEND(fd, L("\x02"));
  acted(p, 0, "");
  raw_expect_silence(fd, 20);
  close(fd);
}

/* ---- the bytes of every request ---- */

static int act_set(play *p) { return perigee_store_set(p->store, "k", "v", 1); }
static int act_append(play *p) { return perigee_store_append(p->store, "k", "v", 1); }
static int act_push(play *p) { return perigee_store_queue_push(p->store, "k", "v", 1); }
static int act_get(play *p) { return perigee_store_get(p->store, "k", 200 * MS, &p->value); }
static int act_get_now(play *p) { return perigee_store_get(p->store, "k", 0, &p->value); }
static int act_add(play *p) { return perigee_store_add(p->store, "k", 5, &p->number); }
static int act_len(play *p) { return perigee_store_queue_len(p->store, "k", &p->number); }
static int act_num(play *p) { return perigee_store_num_keys(p->store, &p->number); }
static int act_delete(play *p) { return perigee_store_delete_key(p->store, "k", &p->flag); }
static int act_pop(play *p) { return perigee_store_queue_pop(p->store, "k", 200 * MS, &p->value); }
static int act_pop_now(play *p) { return perigee_store_queue_pop(p->store, "k", 0, &p->value); }
static int act_wait(play *p) {
  return perigee_store_wait(p->store, (const char *[]){"k"}, 1, 200 * MS);
}
static int act_check(play *p) {
  return perigee_store_check(p->store, (const char *[]){"k", ""}, 2, &p->flag);
}
static int act_compare_set(play *p) {
  return perigee_store_compare_set(p->store, "k", "old", 3, "new", 3, &p->value);
}
static int act_multi_set(play *p) {
  char v[] = "v";
  return perigee_store_multi_set(p->store, (const char *[]){"k", "l"},
                                 (perigee_bytes[]){{v, 1}, {NULL, 0}}, 2);
}
static int act_multi_get(play *p) {
  perigee_bytes values[2];
  int rc = perigee_store_multi_get(p->store, (const char *[]){"k", "k"}, 2, 200 * MS, values);
  if (rc == 0) {
    p->flag = values[0].size == 0 && values[1].size == 2 && memcmp(values[1].data, "vw", 3) == 0;
    perigee_bytes_free(&values[0]);
    perigee_bytes_free(&values[1]);
  }
  return rc;
}
static int act_list(play *p) {
  char **keys;
  size_t n;
  int rc = perigee_store_list_keys(p->store, &keys, &n);
  if (rc == 0) {
    p->number = (int64_t)n;
    p->flag = n == 2 && strcmp(keys[0], "k") == 0 && strcmp(keys[1], "") == 0;
    perigee_store_keys_free(keys, n);
  }
  return rc;
}
static int act_barrier(play *p) { return perigee_store_barrier(p->store, "k", 3, 2 * SEC); }

static void bytes_of_requests(void **state) {
  play *p = *state;
  int fd = connected(p);
  act(p, act_set);
  EXPECT(fd, "\x01" K L("\x01") "v");
  acted(p, 0, "");
  act(p, act_append);
  EXPECT(fd, "\x09" K L("\x01") "v");
  acted(p, 0, "");
  act(p, act_push);
  EXPECT(fd, "\x0E" K L("\x01") "v");
  acted(p, 0, "");
  act(p, act_multi_set);
  EXPECT(fd, "\x0B" L("\x02") K L("\x01") "v" L("\x02") "/l" L("\x00"));
  acted(p, 0, "");
  act(p, act_get);
  EXPECT(fd, "\x06" L("\x01") K);
  SEND(fd, "\x00");
  EXPECT(fd, "\x03" K);
  SEND(fd, L("\x02") "vw");
  acted(p, 0, "");
  expect_text(p->value, "vw");
  act(p, act_get_now);
  EXPECT(fd, "\x05" L("\x01") K);
  SEND(fd, "\x00");
  EXPECT(fd, "\x03" K);
  SEND(fd, L("\x00"));
  acted(p, 0, "");
  expect_text(p->value, "");
  p->value = (perigee_bytes){NULL, 0};
  act(p, act_get_now);
  EXPECT(fd, "\x05" L("\x01") K);
  SEND(fd, "\x01");
  acted(p, PERIGEE_ETIMEDOUT, "wait timeout after 0ms, keys: /k");
  act(p, act_add);
  EXPECT(fd, "\x04" K L("\x05"));
  SEND(fd, "\xFE\xFF\xFF\xFF\xFF\xFF\xFF\xFF");
  acted(p, 0, "");
  assert_int_equal(p->number, -2);
  act(p, act_check);
  EXPECT(fd, "\x05" L("\x02") K L("\x01") "/");
  SEND(fd, "\x00");
  acted(p, 0, "");
  assert_true(p->flag);
  act(p, act_num);
  EXPECT(fd, "\x07");
  SEND(fd, L("\x07"));
  acted(p, 0, "");
  assert_int_equal(p->number, 7);
  act(p, act_delete);
  EXPECT(fd, "\x08" K);
  SEND(fd, L("\x01"));
  acted(p, 0, "");
  act(p, act_compare_set);
  EXPECT(fd, "\x02" K L("\x03") "old" L("\x03") "new");
  SEND(fd, L("\x03") "old");
  acted(p, 0, "");
  expect_text(p->value, "old");
  act(p, act_multi_get);
  EXPECT(fd, "\x06" L("\x02") K K);
  SEND(fd, "\x00");
  EXPECT(fd, "\x0A" L("\x02") K K);
  SEND(fd, L("\x00") L("\x02") "vw");
  acted(p, 0, "");
  assert_true(p->flag);
  act(p, act_len);
  EXPECT(fd, "\x10" K);
  SEND(fd, L("\x03"));
  acted(p, 0, "");
  assert_int_equal(p->number, 3);
  act(p, act_pop);
  EXPECT(fd, "\x06" L("\x01") K);
  SEND(fd, "\x00");
  EXPECT(fd, "\x0F" K);
  SEND(fd, L("\x02") L("\x01") "q");
  acted(p, 0, "");
  expect_text(p->value, "q");
  p->value = (perigee_bytes){NULL, 0};
  act(p, act_pop_now);
  EXPECT(fd, "\x0F" K);
  SEND(fd, L("\x00"));
  acted(p, PERIGEE_EAGAIN, "queue is empty");
  act(p, act_list);
  EXPECT(fd, "\x11");
  SEND(fd, L("\x03") L("\x05") "init/" K L("\x01") "/");
  acted(p, 0, "");
  assert_true(p->flag);
  raw_expect_silence(fd, 20);
  close(fd);
}

/* Another client took the item between the WAIT and the POP: the pop goes on waiting. */
static void pop_that_loses_a_race(void **state) {
  play *p = *state;
  int fd = connected(p);
  act(p, act_pop);
  EXPECT(fd, "\x06" L("\x01") K);
  SEND(fd, "\x00");
  EXPECT(fd, "\x0F" K);
  SEND(fd, L("\x00"));
  EXPECT(fd, "\x06" L("\x01") K);
  SEND(fd, "\x00");
  EXPECT(fd, "\x0F" K);
  SEND(fd, L("\x01") L("\x01") "q");
  acted(p, 0, "");
  close(fd);
}

/* BARRIER: a ping on the main connection, then a connection of its own. */
static void bytes_of_barrier(void **state) {
  play *p = *state;
  int fd = connected(p);
  for (int i = 0; i < 2; i++) {
    static int own;
    char ping[5];
    act(p, act_barrier);
    assert_int_equal(raw_recv(fd, ping, 5), 5);
    assert_int_equal(ping[0], 0x0D);
    raw_send(fd, ping + 1, 4);
    if (i == 0) {
      own = raw_accept(p->listener);
      shake_hands(own);
    }
    EXPECT(own, "\x12" K L("\x03"));
    SEND(own, "\x00");
    acted(p, 0, "");
    if (i == 1)
      close(own);
  }
  close(fd);
}

/* ---- timeouts ---- */

/* CANCEL_WAIT answered by one byte, by two, by two after a delay; the connection then is in step. */
static void cancel_flow(void **state) {
  play *p = *state;
  int fd = connected(p);
  for (int i = 0; i < 4; i++) {
    act(p, act_wait);
    EXPECT(fd, "\x06" L("\x01") K);
    EXPECT(fd, "\x0C");
    if (i == 0)
      SEND(fd, "\x01");
    else if (i == 1)
      SEND(fd, "\x00\x01");
    else {
      SEND(fd, "\x00");
      perigee__sleep_ns(20 * MS);
      SEND(fd, "\x01");
    }
    if (i == 0)
      acted(p, PERIGEE_ETIMEDOUT, "wait timeout after 200ms, keys: /k");
    else
      acted(p, 0, ""); /* the keys did come into being */
    assert_in_range(p->took_ns, 195 * MS, SEC);
    act(p, act_add);
    EXPECT(fd, "\x04" K L("\x05"));
    SEND(fd, L("\x05"));
    acted(p, 0, "");
  }
  act(p, act_wait);
  EXPECT(fd, "\x06" L("\x01") K "\x0C");
  SEND(fd, "\x07");
  acted(p, PERIGEE_ETIMEDOUT,
        "wait timeout"); /* nonsense: late all the same, and the connection closed */
  raw_expect_closed(fd);
  close(fd);
}

/* The next request of a client whose connection is broken comes over a new one. */
static void expect_reconnect(play *p, int old) {
  raw_expect_closed(old);
  close(old);
  act(p, act_add);
  int fd = raw_accept(p->listener);
  shake_hands(fd);
  EXPECT(fd, "\x04" K L("\x05"));
  SEND(fd, L("\x06"));
  acted(p, 0, "");
  assert_int_equal(p->number, 6);
  close(fd);
}

static void cancel_never_answered(void **state) {
  play *p = *state;
  int fd = connected(p);
  act(p, act_wait);
  EXPECT(fd, "\x06" L("\x01") K "\x0C");
  acted(p, PERIGEE_ETIMEDOUT, "wait timeout after 200ms");
  assert_in_range(p->took_ns, 350 * MS, 450 * MS + 200 * MS);
  SEND(fd, "\x00\x01"); /* too late: must not be taken for another answer */
  expect_reconnect(p, fd);
}

static void answer_that_stops_half_way(void **state) {
  play *p = *state;
  int fd = connected(p);
  act(p, act_get);
  EXPECT(fd, "\x06" L("\x01") K);
  SEND(fd, "\x00");
  EXPECT(fd, "\x03" K);
  SEND(fd, L("\x05") "ha");
  acted(p, PERIGEE_ETIMEDOUT, "get: the server did not answer in time");
  assert_in_range(p->took_ns, 195 * MS, SEC);
  SEND(fd, "lf.");
  expect_reconnect(p, fd);
}

static int act_set_much(play *p) {
  char *big = calloc(1, 8 << 20);
  int rc = perigee_store_set(p->store, "k", big, 8 << 20);
  free(big);
  return rc;
}

/* A request is longer than what the sockets hold, and the server ends in the middle of it. */
static void closed_while_writing(void **state) {
  play *p = *state;
  int fd = connected(p);
  act(p, act_set_much);
  EXPECT(fd, "\x01" K);
  perigee__sleep_ns(20 * MS);
  close(fd);
  acted(p, PERIGEE_ESTORE, "set: the server closed the connection");
}

/* ---- wrong and missing answers ---- */

static void nonsense(void **state) {
  play *p = *state;
  int fd = connected(p);
  act(p, act_check);
  EXPECT(fd, "\x05" L("\x02") K L("\x01") "/");
  SEND(fd, "\x07");
  acted(p, PERIGEE_EPROTO, "check: the reply is 7");
  expect_reconnect(p, fd);
  perigee_store_unref(p->store);
  fd = connected(p);
  act(p, act_compare_set);
  EXPECT(fd, "\x02" K L("\x03") "old" L("\x03") "new");
  SEND(fd, "\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x7F");
  acted(p, PERIGEE_EPROTO, "length of a value is 9223372036854775807");
  expect_reconnect(p, fd);
  perigee_store_unref(p->store);
  fd = connected(p);
  act(p, act_list);
  EXPECT(fd, "\x11");
  SEND(fd, "\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF");
  acted(p, PERIGEE_EPROTO, "number of keys is -1");
  expect_reconnect(p, fd);
  perigee_store_unref(p->store);
  fd = connected(p);
  act(p, act_wait);
  EXPECT(fd, "\x06" L("\x01") K);
  SEND(fd, "\x01");
  acted(p, PERIGEE_EPROTO, "the reply to a wait is 1");
  expect_reconnect(p, fd);
}

/* A server that does not know a request closes. */
static void closed_on_request(void **state) {
  play *p = *state;
  char text[128];
  int fd = connected(p);
  act(p, act_list);
  EXPECT(fd, "\x11");
  close(fd);
  snprintf(text, sizeof(text), "store at 127.0.0.1:%d, list_keys: the server closed", p->port);
  acted(p, PERIGEE_ESTORE, text);
  assert_true(p->took_ns < SEC);
}

/* The first attempts end in a wrong ping, a close, a silence of its own; the client goes on until one is right. */
static void handshake_is_tried_again(void **state) {
  play *p = *state;
  act(p, act_connect);
  int fd = raw_accept(p->listener);
  EXPECT(fd, HELLO);
  close(fd);
  fd = raw_accept(p->listener);
  EXPECT(fd, HELLO "\x0D");
  SEND(fd, "\x00\x00\x00\x00");
  int next = raw_accept(p->listener);
  close(fd);
  shake_hands(next);
  acted(p, 0, "");
  close(next);
}

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
  assert_in_range(perigee__now_ns() - began, 280 * MS, 500 * MS);
}

static void unknown_host(void **state) {
  (void)state;
  perigee_store *s = NULL;
  int64_t began = perigee__now_ns();
  FAILS(connect_to("no-such-host.invalid", 29500, 400 * MS, &s), PERIGEE_ETIMEDOUT,
        "no-such-host.invalid");
  assert_true(perigee__now_ns() - began < 900 * MS);
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
  assert_true(p->took_ns < 2 * SEC);
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
    assert_true(perigee__now_ns() - killed < SEC);
    /* and what comes after it says so within 2 s */
    killed = perigee__now_ns();
    FAILS(perigee_store_set(p->store, "k", "v", 1), PERIGEE_ESTORE, "the connection was lost");
    assert_true(perigee__now_ns() - killed < 2 * SEC);
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
      TEST(client_connect),
      TEST(bytes_of_requests),
      TEST(pop_that_loses_a_race),
      TEST(bytes_of_barrier),
      TEST(cancel_flow),
      TEST(cancel_never_answered),
      TEST(answer_that_stops_half_way),
      TEST(closed_while_writing),
      TEST(nonsense),
      TEST(closed_on_request),
      TEST(handshake_is_tried_again),
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
