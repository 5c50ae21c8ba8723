/* The client against a server played by hand: the bytes it writes, and what it does with late, wrong and missing answers. */
#include "store/store_buf.h"
#include "store/store_testing_play.h"

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

static void bytes_of_writes(void **state) {
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
  raw_expect_silence(fd, 20);
  close(fd);
}

static void bytes_of_reads(void **state) {
  play *p = *state;
  int fd = connected(p);
  act(p, act_get);
  EXPECT(fd, "\x06" L("\x01") K);
  SEND(fd, "\x00");
  EXPECT(fd, "\x03" K);
  SEND(fd, L("\x02") "vw");
  acted(p, 0, "");
  got(p, "vw");
  act(p, act_get_now);
  EXPECT(fd, "\x05" L("\x01") K);
  SEND(fd, "\x00");
  EXPECT(fd, "\x03" K);
  SEND(fd, L("\x00"));
  acted(p, 0, "");
  got(p, "");
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
  got(p, "old");
  raw_expect_silence(fd, 20);
  close(fd);
}

static void bytes_of_lists_and_queues(void **state) {
  play *p = *state;
  int fd = connected(p);
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
  got(p, "q");
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

#define TEST(_fn) cmocka_unit_test_setup_teardown(_fn, play_setup, play_teardown)

int main(void) {
  const struct CMUnitTest tests[] = {
      TEST(client_connect),
      TEST(bytes_of_writes),
      TEST(bytes_of_reads),
      TEST(bytes_of_lists_and_queues),
      TEST(pop_that_loses_a_race),
      TEST(bytes_of_barrier),
      TEST(cancel_flow),
      TEST(cancel_never_answered),
      TEST(answer_that_stops_half_way),
      TEST(closed_while_writing),
      TEST(nonsense),
      TEST(closed_on_request),
      TEST(handshake_is_tried_again),
  };
  return cmocka_run_group_tests(tests, warm_up, NULL);
}
