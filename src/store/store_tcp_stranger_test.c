/* The server among strangers and without resources; its addresses, its sockets, its end. */
#include "store/store_tcp_server.h"

#include "store/store_testing_server.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>

/* ---- strangers ---- */

static void garbage(void **state) {
  int good = raw_client(port_of(state));
  static const char http[] = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
  static const char tls[] = "\x16\x03\x01\x02\x00\x01\x00\x01\xFC\x03\x03 a client hello";
  static const char ssh[] = "SSH-2.0-OpenSSH_9.2\r\n";
  const char *texts[] = {http, tls, ssh};
  const size_t sizes[] = {sizeof(http) - 1, sizeof(tls) - 1, sizeof(ssh) - 1};
  for (int i = 0; i < 3; i++) {
    int fd = raw_connect(port_of(state));
    raw_send(fd, texts[i], sizes[i]);
    raw_expect_closed(fd);
    close(fd);
  }
  uint64_t random = 88172645463325252u;
  for (int i = 0; i < 200; i++) { /* noise, and noise after a handshake */
    char noise[256];
    for (size_t n = 0; n < sizeof(noise); n++)
      noise[n] = (char)next_random(&random);
    int fd = i % 2 == 0 ? raw_connect(port_of(state)) : raw_client(port_of(state));
    raw_send(fd, noise, 1 + next_random(&random) % sizeof(noise));
    close(fd);
  }
  for (int i = 0; i < 5; i++) { /* a part of a handshake, of a request, and gone */
    int fd = raw_connect(port_of(state));
    raw_send(fd, HELLO "\x01" L("\x02"), (size_t)(1 + 3 * i));
    close(fd);
  }
  sync_with(good);
  close(good);
}

static bool is_closed(int fd) {
  char byte;
  return raw_readable(fd, 0) && recv(fd, &byte, 1, MSG_DONTWAIT) <= 0;
}

/* At most 64 that have not shaken hands, the oldest goes first; all are gone after 2 s; others are served meanwhile. */
static void slow_strangers(void **state) {
  enum {
    N = 100,
    KEPT = 64
  };
  int fds[N], good = raw_client(port_of(state)), closed = 0;
  sync_with(good);
  for (int i = 0; i < N; i++) {
    fds[i] = raw_connect(port_of(state));
    raw_send(fds[i], HELLO, (size_t)(i % 5));
  }
  int late = raw_client(port_of(state));
  sync_with(late);
  for (int i = 0; i < N; i++)
    closed += is_closed(fds[i]);
  assert_in_range(closed, N - KEPT, N - KEPT + 1);
  for (int i = 0; i < N - KEPT; i++)
    assert_true(is_closed(fds[i]));
  int64_t began = perigee__now_ns();
  for (int i = 0; i < N; i++) {
    if (i > 0 && raw_readable(fds[i], 4000))
      assert_true(is_closed(fds[i]));
    close(fds[i]);
  }
  assert_in_range(perigee__now_ns() - began, SEC, 4 * SEC);
  sync_with(late);
  sync_with(good);
  close(late);
  close(good);
}

/* Many honest clients at once are no strangers: none is turned away for good. */
static void *storm_run(void *arg) {
  const fixture *f = arg;
  for (int i = 0; i < 25; i++) {
    perigee_store *s = connect_to_port(f->port, 10 * SEC);
    perigee_store *copy;
    OK(perigee_store_clone(s, &copy));
    OK(perigee_store_add(copy, "storm", 1, NULL));
    perigee_store_unref(s);
    perigee_store_unref(copy);
  }
  return NULL;
}

static void reconnect_storm(void **state) {
  pthread_t t[16];
  for (int i = 0; i < 16; i++)
    assert_int_equal(pthread_create(&t[i], NULL, storm_run, *state), 0);
  for (int i = 0; i < 16; i++)
    pthread_join(t[i], NULL);
  int fd = raw_client(port_of(state));
  SEND(fd, "\x03" L("\x06") "/storm");
  EXPECT(fd, L("\x03") "400");
  close(fd);
}

/* Who asks and does not read is closed before it costs much. */
static void replies_left_unread(void **state) {
  int fd = raw_client(port_of(state)), s = raw_client(port_of(state));
  size_t size = 1 << 20;
  char *value = calloc(1, size);
  SEND(s, "\x01" K "\x00\x00\x10\0\0\0\0\0");
  raw_send(s, value, size);
  sync_with(s);
  free(value);
  fcntl(fd, F_SETFL, O_NONBLOCK);
  int64_t deadline = perigee__deadline_in(10 * SEC);
  bool open = true;
  while (open && !perigee__passed(deadline)) {
    open = send(fd, "\x03" K, 11, MSG_NOSIGNAL) >= 0 || errno == EAGAIN;
    if (open)
      perigee__sleep_ns(100000);
  }
  assert_false(open);
  close(fd);
  sync_with(s);
  close(s);
}

/* ---- descriptors and addresses ---- */

/* Out of descriptors the server refuses quickly and does not spin; afterwards it serves again. In a child: limits are for ever. */
static int run_out_of_descriptors(int port) {
  int s = raw_client(port), fds[64], n = 0;
  sync_with(s);
  struct rlimit limit;
  getrlimit(RLIMIT_NOFILE, &limit);
  int next = dup(s);
  close(next);
  /* room for clients' ends, none for the server's */
  while (n < 8)
    fds[n++] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  limit.rlim_cur = (rlim_t)fds[n - 1] + 1;
  setrlimit(RLIMIT_NOFILE, &limit);
  struct sockaddr_in addr = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  struct timespec cpu_before, cpu_after;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu_before);
  for (int i = 0; i < n; i++)
    if (connect(fds[i], (struct sockaddr *)&addr, sizeof(addr)) != 0)
      return 1;
  for (int i = 0; i < n; i++) {
    char byte;
    if (!raw_readable(fds[i], 3000) || recv(fds[i], &byte, 1, 0) > 0)
      return 2;
  }
  perigee__sleep_ns(300 * MS);
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu_after);
  int64_t cpu =
      (cpu_after.tv_sec - cpu_before.tv_sec) * SEC + cpu_after.tv_nsec - cpu_before.tv_nsec;
  if (cpu > 100 * MS)
    return 3;
  sync_with(s); /* old connections do not notice */
  for (int i = 0; i < n; i++)
    close(fds[i]);
  int again = raw_client(port);
  sync_with(again);
  close(again);
  close(s);
  return 0;
}

static void out_of_descriptors(void **state) {
  (void)state;
  pid_t pid = fork_child();
  if (pid == 0) {
    perigee_store_server *server;
    if (perigee_store_server_create(NULL, 0, &server) < 0)
      _exit(10);
    int rc = run_out_of_descriptors(perigee_store_server_port(server));
    perigee_store_server_destroy(&server);
    _exit(rc);
  }
  int status;
  assert_int_equal(waitpid(pid, &status, 0), pid);
  assert_int_equal(status, 0);
}

static void address_already_in_use(void **state) {
  perigee_store_server *second = NULL;
  char text[64];
  snprintf(text, sizeof(text), "cannot listen on 127.0.0.1:%d: address already in use",
           port_of(state));
  FAILS(perigee_store_server_create(NULL, port_of(state), &second), -EADDRINUSE, text);
  assert_null(second);
}

static void addresses(void **state) {
  (void)state;
  perigee_store_server *server = NULL;
  FAILS(perigee_store_server_create(NULL, 65536, &server), PERIGEE_EINVAL, "port 65536");
  FAILS(perigee_store_server_create(NULL, -1, &server), PERIGEE_EINVAL, "port -1");
  FAILS(perigee_store_server_create(NULL, 0, NULL), PERIGEE_EINVAL, "no output");
  FAILS(perigee_store_server_create("192.0.2.1", 0, &server), -EADDRNOTAVAIL, "192.0.2.1");
  assert_null(server);
  perigee_store_server_destroy(&server);
  perigee_store_server_destroy(NULL);
  const char *names[] = {"localhost", "0.0.0.0", "::", "127.0.0.1"};
  for (int i = 0; i < 4; i++) {
    OK(perigee_store_server_create(names[i], 0, &server));
    int fd = raw_client(perigee_store_server_port(server));
    sync_with(fd);
    close(fd);
    perigee_store_server_destroy(&server);
  }
}

/* The same port again, at once, though connections of the last server linger. */
static void restart_on_the_same_port(void **state) {
  fixture *f = *state;
  for (int i = 0; i < 5; i++) {
    int fd = raw_client(f->port);
    sync_with(fd);
    perigee_store_server_destroy(&f->server);
    raw_expect_closed(fd);
    OK(perigee_store_server_create(NULL, f->port, &f->server));
    close(fd);
  }
}

static void take_over_listen_socket(void **state) {
  (void)state;
  perigee_store_server *server = NULL;
  int port, fd = raw_listen(&port);
  OK(perigee__store_server_from_fd(fd, &server));
  assert_int_equal(perigee_store_server_port(server), port);
  assert_int_equal(fcntl(fd, F_GETFD), -1); /* taken */
  perigee_store *s = connect_to_port(port, 5 * SEC);
  set_text(s, "key", "value");
  expect_get(s, "key", "value");
  perigee_store_unref(s);
  perigee_store_server_destroy(&server);
  /* what cannot be served stays the caller's */
  FAILS(perigee__store_server_from_fd(-1, &server), -EBADF, "descriptor -1");
  int pair[2];
  assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
  FAILS(perigee__store_server_from_fd(pair[0], &server), PERIGEE_EINVAL, "no TCP socket");
  fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  FAILS(perigee__store_server_from_fd(fd, &server), PERIGEE_EINVAL, "not bound");
  assert_int_not_equal(fcntl(fd, F_GETFD), -1);
  close(fd);
  close(pair[0]);
  close(pair[1]);
  assert_null(server);
}

/* Destroying a server with many kinds of connections is quick and leaves nothing (teardown counts). */
static void destroy_with_everything_open(void **state) {
  fixture *f = *state;
  int fd[40];
  for (int i = 0; i < 40; i++) {
    fd[i] = i % 4 == 0 ? raw_connect(f->port) : raw_client(f->port);
    if (i % 4 == 1)
      SEND(fd[i], "\x06" L("\x01") K);
    if (i % 4 == 2)
      SEND(fd[i], "\x12" L("\x01") "b" L("\x7F"));
    if (i % 4 == 3)
      SEND(fd[i], "\x01" K L("\x7F") "half");
  }
  sync_with(fd[1]);
  perigee_store_server_destroy(&f->server);
  for (int i = 0; i < 40; i++) {
    raw_expect_closed(fd[i]);
    close(fd[i]);
  }
}

/* Waits and cancels of many connections against writes and deletes: whoever is answered, is answered once and in step. */
static void *racer_run(void *arg) {
  const fixture *f = arg;
  int fd = raw_client(f->port);
  uint64_t random = (uint64_t)(uintptr_t)&fd | 1;
  intptr_t bad = 0;
  for (int i = 0; i < 150 && !bad; i++) {
    char byte = 9;
    SEND(fd, "\x06" L("\x01") K);
    if (next_random(&random) % 2 == 0)
      raw_readable(fd, 1);
    SEND(fd, "\x0C");
    if (raw_recv(fd, &byte, 1) != 1)
      bad = 1;
    else if (byte == 0 && (raw_recv(fd, &byte, 1) != 1 || byte != 1))
      bad = 2;
    else if (byte != 1)
      bad = 3;
    if (next_random(&random) % 4 == 0) {
      SEND(fd, "\x01" K L("\x00") "\x08" K);
      char reply[8];
      bad |= raw_recv(fd, reply, 8) != 8;
    }
  }
  close(fd);
  return (void *)bad;
}

static void wait_and_cancel_race(void **state) {
  pthread_t t[6];
  for (int i = 0; i < 6; i++)
    assert_int_equal(pthread_create(&t[i], NULL, racer_run, *state), 0);
  for (int i = 0; i < 6; i++) {
    void *bad;
    pthread_join(t[i], &bad);
    assert_null(bad);
  }
}

#define TEST(_fn) cmocka_unit_test_setup_teardown(_fn, setup, teardown)

int main(void) {
  const struct CMUnitTest tests[] = {
      TEST(garbage),
      TEST(slow_strangers),
      TEST(reconnect_storm),
      TEST(replies_left_unread),
      /* no fixture: it forks, and must be one thread to do so */
      cmocka_unit_test(out_of_descriptors),
      TEST(address_already_in_use),
      TEST(addresses),
      TEST(restart_on_the_same_port),
      TEST(take_over_listen_socket),
      TEST(destroy_with_everything_open),
      TEST(wait_and_cancel_race),
  };
  return cmocka_run_group_tests(tests, warm_up, NULL);
}
