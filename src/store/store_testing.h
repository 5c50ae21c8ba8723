/* What the store's tests share: checks that print the error, a leak check, threads with results, raw bytes. */
#ifndef PERIGEE_STORE_STORE_TESTING_H
#define PERIGEE_STORE_STORE_TESTING_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka needs the four above */
#include <cmocka.h>

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "store/store.h"

#define MS PERIGEE_NS_PER_MS
#define SEC PERIGEE_NS_PER_SEC

/* The call succeeds. */
#define OK(_call)                                                                                  \
  do {                                                                                             \
    int _rc_ok = (_call);                                                                          \
    if (_rc_ok != 0)                                                                               \
      fail_msg("%s: %s: %s", #_call, perigee_err_name(_rc_ok), perigee_last_error()->message);     \
  } while (0)
/* The call fails with this code, and its message contains the text. */
#define FAILS(_call, _code, _text)                                                                 \
  do {                                                                                             \
    int _rc_fails = (_call);                                                                       \
    if (_rc_fails != (_code) || strstr(perigee_last_error()->message, (_text)) == NULL)            \
      fail_msg("%s: got %s (%s), expected %s with '%s'", #_call, perigee_err_name(_rc_fails),      \
               perigee_last_error()->message, perigee_err_name(_code), (_text));                   \
  } while (0)

__attribute__((unused)) static int count_entries(const char *folder) {
  int n = 0;
  DIR *dir = opendir(folder);
  assert_non_null(dir);
  for (struct dirent *e; (e = readdir(dir)) != NULL;)
    n += e->d_name[0] != '.';
  closedir(dir);
  return n;
}

typedef struct leak_mark {
  int fds, threads;
} leak_mark;

__attribute__((unused)) static leak_mark leaks_begin(void) {
  return (leak_mark){.fds = count_entries("/proc/self/fd"),
                     .threads = count_entries("/proc/self/task")};
}

/* The kernel lists a joined thread for a moment longer. */
__attribute__((unused)) static void leaks_end(leak_mark mark) {
  int64_t deadline = perigee__deadline_in(2 * SEC);
  while (count_entries("/proc/self/task") > mark.threads && !perigee__passed(deadline))
    perigee__sleep_ns(MS);
  assert_true(count_entries("/proc/self/task") <=
              mark.threads); /* one of before may have shown still */
  assert_int_equal(count_entries("/proc/self/fd"), mark.fds);
}

/* libuv makes descriptors once per process: have that behind us before anything is counted. */
__attribute__((unused)) static int warm_up(void **state) {
  (void)state;
  perigee_store_server *server;
  OK(perigee_store_server_create(NULL, 0, &server));
  perigee_store_server_destroy(&server);
  return 0;
}

__attribute__((unused)) static perigee_store *connect_to_port(int port, int64_t timeout_ns) {
  perigee_store *s;
  perigee_store_tcp_options opts = {
      .size = sizeof(opts), .host = "127.0.0.1", .port = port, .timeout_ns = timeout_ns};
  OK(perigee_store_tcp_connect(&opts, &s));
  return s;
}

__attribute__((unused)) static void set_text(perigee_store *s, const char *key, const char *text) {
  OK(perigee_store_set(s, key, text, strlen(text)));
}

__attribute__((unused)) static void expect_text(perigee_bytes value, const char *text) {
  assert_int_equal(value.size, strlen(text));
  assert_memory_equal(value.data, text, value.size + 1);
  perigee_bytes_free(&value);
  assert_null(value.data);
}

__attribute__((unused)) static void expect_get(perigee_store *s, const char *key,
                                               const char *text) {
  perigee_bytes value;
  OK(perigee_store_get(s, key, 5 * SEC, &value));
  expect_text(value, text);
}

__attribute__((unused)) static bool has(perigee_store *s, const char *key) {
  bool present;
  OK(perigee_store_check(s, &key, 1, &present));
  return present;
}

__attribute__((unused)) static int wait_one(perigee_store *s, const char *key, int64_t timeout_ns) {
  return perigee_store_wait(s, &key, 1, timeout_ns);
}

/* fork, for a child that does not outlive a test that fails. */
__attribute__((unused)) static pid_t fork_child(void) {
  pid_t pid = fork();
  assert_true(pid >= 0);
  if (pid == 0)
    prctl(PR_SET_PDEATHSIG, SIGKILL);
  return pid;
}

/* ---- raw sockets ---- */

__attribute__((unused)) static int raw_connect(int port) {
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  struct sockaddr_in addr = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  assert_true(fd >= 0);
  assert_int_equal(connect(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
  int one = 1; /* pieces travel as they were sent */
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
  return fd;
}

__attribute__((unused)) static void raw_send(int fd, const void *data, size_t size) {
  for (size_t done = 0; done < size;) {
    ssize_t n = send(fd, (const char *)data + done, size - done, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR)
      continue;
    if (n < 0)
      return; /* the other side closed: the test sees that when it reads */
    done += (size_t)n;
  }
}

__attribute__((unused)) static bool raw_readable(int fd, int ms) {
  struct pollfd p = {.fd = fd, .events = POLLIN};
  int64_t deadline = perigee__deadline_in(ms * MS);
  int n;
  while ((n = poll(&p, 1, perigee__poll_ms(deadline, 60000))) < 0 && errno == EINTR) {
  }
  return n > 0;
}

/* How many bytes came before the end or 5 s of silence. */
__attribute__((unused)) static size_t raw_recv(int fd, void *data, size_t size) {
  size_t done = 0;
  while (done < size && raw_readable(fd, 5000)) {
    ssize_t n = recv(fd, (char *)data + done, size - done, 0);
    if (n <= 0)
      break;
    done += (size_t)n;
  }
  return done;
}

__attribute__((unused)) static void raw_expect(int fd, const void *data, size_t size) {
  char *got = calloc(1, size);
  assert_non_null(got);
  assert_int_equal(raw_recv(fd, got, size), size);
  assert_memory_equal(got, data, size);
  free(got);
}

/* The server closed: nothing but the end comes. */
__attribute__((unused)) static void raw_expect_closed(int fd) {
  char byte;
  if (!raw_readable(fd, 5000))
    fail_msg("the connection is still open");
  assert_true(recv(fd, &byte, 1, 0) <= 0);
}

/* Nothing comes for a while, and the connection is open. */
__attribute__((unused)) static void raw_expect_silence(int fd, int ms) {
  assert_false(raw_readable(fd, ms));
}

#define HELLO "\x00\xCE\xF7\x85\x3C"

/* Connected and validated. */
__attribute__((unused)) static int raw_client(int port) {
  int fd = raw_connect(port);
  raw_send(fd, HELLO, 5);
  return fd;
}

#define L(_n) _n "\0\0\0\0\0\0\0" /* u64 below 256 */
#define K L("\x02") "/k"          /* the key "/k" */
#define SEND(_fd, _text) raw_send(_fd, _text, sizeof(_text) - 1)
#define EXPECT(_fd, _text) raw_expect(_fd, _text, sizeof(_text) - 1)

/* A listening socket on a port of the kernel's choice. */
__attribute__((unused)) static int raw_listen(int *port_p) {
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  struct sockaddr_in addr = {.sin_family = AF_INET};
  socklen_t size = sizeof(addr);
  addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  assert_true(fd >= 0);
  assert_int_equal(bind(fd, (struct sockaddr *)&addr, size), 0);
  assert_int_equal(listen(fd, 64), 0);
  assert_int_equal(getsockname(fd, (struct sockaddr *)&addr, &size), 0);
  *port_p = ntohs(addr.sin_port);
  return fd;
}

#endif
