/* The server as raw bytes see it: every request, every cut, waits and queues, and the defects of the servers it replaces. */
#include "store/store_buf.h"
#include "store/store_testing_server.h"

/* ---- the worked bytes and every code ---- */

static void worked_bytes(void **state) {
  int fd = raw_client(port_of(state));
  SEND(fd, "\x01" K L("\x01") "v"); /* set */
  SEND(fd, "\x06" L("\x01") K);     /* get: wait, */
  EXPECT(fd, "\x00");
  SEND(fd, "\x03" K); /* then get */
  EXPECT(fd, L("\x01") "v");
  SEND(fd, "\x08" K); /* delete */
  EXPECT(fd, L("\x01"));
  SEND(fd, "\x08" K);
  EXPECT(fd, L("\x00"));
  SEND(fd, "\x04" K L("\x05")); /* add 5 */
  EXPECT(fd, L("\x05"));
  SEND(fd, "\x05" L("\x01") K); /* check */
  EXPECT(fd, "\x00");
  SEND(fd, "\x07"); /* number of keys */
  EXPECT(fd, L("\x01"));
  raw_expect_silence(fd, 20);
  close(fd);
}

/* One round of all requests, with their replies, on keys that are clean before and after. */
#define B(_text) _text, sizeof(_text) - 1
#define N0 "\x00\0\0\0\0\0\0\0"
#define N1 "\x01\0\0\0\0\0\0\0"
#define N2 "\x02\0\0\0\0\0\0\0"
#define N3 "\x03\0\0\0\0\0\0\0"
#define MINUS_ONE "\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF"
static const struct exchange {
  const char *request;
  size_t request_size;
  const char *reply;
  size_t reply_size;
} exchanges[] = {
    {B("\x0D\x11\x22\x33\x44"), B("\x11\x22\x33\x44")},    /* ping */
    {B("\x01" N1 "a" N1 "1"), B("")},                      /* set a */
    {B("\x09" N1 "a" N1 "2"), B("")},                      /* append */
    {B("\x03" N1 "a"), B(N2 "12")},                        /* get */
    {B("\x03" N1 "?"), B(N0)},                             /* get of a missing key */
    {B("\x04" N1 "a" MINUS_ONE), B("\x0B\0\0\0\0\0\0\0")}, /* add -1 */
    {B("\x02" N1 "a" N1 "x" N1 "y"), B(N2 "11")},          /* compare_set: differs */
    {B("\x02" N1 "a" N2 "11" N1 "y"), B(N1 "y")},          /* matches */
    {B("\x02" N1 "b" N1 "x" N1 "y"), B(N1 "x")},           /* missing: stores nothing */
    {B("\x02" N1 "c" N0 N1 "z"), B(N1 "z")},               /* missing, as expected */
    {B("\x05" N2 N1 "a" N1 "c"), B("\x00")},               /* check: ready */
    {B("\x05" N2 N1 "a" N1 "b"), B("\x01")},               /* not ready */
    {B("\x05" N0), B("\x00")},                             /* of nothing */
    {B("\x06" N2 N1 "a" N1 "c"), B("\x00")},               /* wait */
    {B("\x06" N0), B("\x00")},                             /* for nothing */
    {B("\x07"), B(N2)},                                    /* number of keys */
    {B("\x0B" N2 N1 "d" N1 "4" N1 "e" N0), B("")},         /* multi_set */
    {B("\x0A" N3 N1 "d" N1 "e" N1 "f"), B(N1 "4" N0 N0)},  /* multi_get */
    {B("\x0A" N0), B("")},                                 /* of nothing */
    {B("\x0B" N0), B("")},                                 /* and multi_set of nothing */
    {B("\x0C"), B("\x01")},                                /* cancel of nothing */
    {B("\x10" N1 "q"), B(N0)},                             /* queue_len */
    {B("\x0F" N1 "q"), B(N0)},                             /* queue_pop: no item, no value */
    {B("\x0E" N1 "q" N2 "q1"), B("")},                     /* queue_push */
    {B("\x0E" N1 "q" N0), B("")},                          /* of an empty item */
    {B("\x10" N1 "q"), B(N2)},                             /* queue_len */
    {B("\x05" N1 N1 "q"), B("\x00")},                      /* check of a queue */
    {B("\x06" N1 N1 "q"), B("\x00")},                      /* wait for a queue */
    {B("\x0F" N1 "q"), B(N2 N2 "q1")},                     /* queue_pop */
    {B("\x0F" N1 "q"), B(N1 N0)},                          /* of the empty item */
    {B("\x08" N1 "a"), B(N1)},                             /* delete */
    {B("\x08" N1 "c\x08" N1 "d"), B(N1 N1)},               /* twice */
    {B("\x11"), B(N1 N1 "e")},                             /* list of keys */
    {B("\x08" N1 "e"), B(N1)},                             /* delete */
    {B("\x12" N1 "g" N1), B("\x00")},                      /* barrier of one */
    {B("\x08" N1 "g"), B(N1)},                             /* its counter */
    {B("\x08" N1 "q"), B(N0)},                             /* queues are not deleted */
};

/* The handshake and all requests; all replies. Filled once. */
static perigee__buf conversation, replies;

enum {
  HELLO_SIZE = 5
};

static int fill_conversation(void **state) {
  perigee__buf_put(&conversation, HELLO, HELLO_SIZE);
  for (size_t i = 0; i < PERIGEE_COUNT(exchanges); i++) {
    perigee__buf_put(&conversation, exchanges[i].request, exchanges[i].request_size);
    perigee__buf_put(&replies, exchanges[i].reply, exchanges[i].reply_size);
  }
  return warm_up(state);
}

static int free_conversation(void **state) {
  (void)state;
  perigee__buf_fini(&conversation);
  perigee__buf_fini(&replies);
  return 0;
}

static void each_request_alone(void **state) {
  int fd = raw_client(port_of(state));
  for (size_t i = 0; i < PERIGEE_COUNT(exchanges); i++) {
    raw_send(fd, exchanges[i].request, exchanges[i].request_size);
    if (exchanges[i].reply_size > 0)
      raw_expect(fd, exchanges[i].reply, exchanges[i].reply_size);
  }
  raw_expect_silence(fd, 20);
  close(fd);
}

static void every_request(void **state) {
  int fd = raw_client(port_of(state));
  /* pipelined, three times */
  for (int i = 0; i < 3; i++)
    raw_send(fd, conversation.data + HELLO_SIZE, conversation.size - HELLO_SIZE);
  for (int i = 0; i < 3; i++)
    raw_expect(fd, replies.data, replies.size);
  raw_expect_silence(fd, 20);
  close(fd);
}

/* The whole conversation, handshake first, in two pieces: cut at every byte. */
static void every_cut(void **state) {
  for (size_t cut = 1; cut < conversation.size; cut++) {
    int fd = raw_connect(port_of(state));
    raw_send(fd, conversation.data, cut);
    if (cut % 16 == 0 || cut < 6)
      perigee__sleep_ns(MS);
    raw_send(fd, conversation.data + cut, conversation.size - cut);
    raw_expect(fd, replies.data, replies.size);
    close(fd);
  }
}

static void one_byte_at_a_time(void **state) {
  int fd = raw_connect(port_of(state));
  for (size_t i = 0; i < conversation.size; i++)
    raw_send(fd, conversation.data + i, 1);
  raw_expect(fd, replies.data, replies.size);
  close(fd);
}

static void big_values(void **state) {
  int fd = raw_client(port_of(state));
  size_t size = 8 << 20;
  char *value = malloc(size), *got = calloc(1, size + 8);
  memset(value, 'x', size);
  SEND(fd, "\x01" K "\x00\x00\x80\0\0\0\0\0");
  raw_send(fd, value, size);
  for (int i = 0; i < 3; i++) {
    SEND(fd, "\x03" K);
    assert_int_equal(raw_recv(fd, got, size + 8), size + 8);
    assert_memory_equal(got + 8, value, size);
  }
  SEND(fd, "\x09" K L("\x01") "y"); /* more than a value may hold */
  raw_expect_closed(fd);
  free(value);
  free(got);
  close(fd);
}

/* ---- waiting ---- */

static void wait_and_set(void **state) {
  int w = raw_client(port_of(state)), s = raw_client(port_of(state));
  SEND(w, "\x06" L("\x02") K L("\x01") "x");
  raw_expect_silence(w, 30);
  SEND(s, "\x01" K L("\x01") "v");
  raw_expect_silence(w, 30);
  /* what satisfied it once is not looked at again */
  SEND(s, "\x08" K);
  EXPECT(s, L("\x01"));
  SEND(s, "\x04" L("\x01") "x" L("\x01"));
  EXPECT(w, "\x00");
  sync_with(w);
  close(w);
  close(s);
}

/* Each request that can bring a key into being does wake; the same key twice in one wait counts twice. */
static void each_write_wakes(void **state) {
  static const struct {
    const char *bytes;
    size_t size;
  } writes[] = {
      W("\x01" K L("\x00")), W("\x02" K L("\x00") L("\x01") "v"), W("\x04" K L("\x01")),
      W("\x09" K L("\x00")), W("\x0B" L("\x01") K L("\x00")),     W("\x0E" K L("\x00")),
      W("\x12" K L("\x02")), /* the first of two arrivals makes the counter */
  };
  for (size_t i = 0; i < PERIGEE_COUNT(writes); i++) {
    int w = raw_client(port_of(state)), s = raw_client(port_of(state));
    SEND(w, "\x06" L("\x02") K K);
    sync_with(w);
    raw_send(s, writes[i].bytes, writes[i].size);
    EXPECT(w, "\x00");
    SEND(w, "\x08" K "\x0F" K);
    raw_recv(w, (char[16]){0}, 16);
    close(w);
    close(s);
  }
}

static void cancel_wait(void **state) {
  int w = raw_client(port_of(state)), s = raw_client(port_of(state));
  for (int i = 0; i < 3; i++) {
    SEND(w, "\x06" L("\x01") K);
    sync_with(w); /* other requests are answered meanwhile */
    SEND(w, "\x0C");
    EXPECT(w, "\x01");
  }
  SEND(w, "\x0C");
  EXPECT(w, "\x01");
  SEND(s, "\x01" K L("\x01") "v");
  sync_with(s);
  raw_expect_silence(w, 20);
  SEND(w, "\x06" L("\x01") K "\x0C");
  EXPECT(w, "\x00\x01");
  sync_with(w);
  close(w);
  close(s);
}

static void second_wait_is_refused(void **state) {
  int w = raw_client(port_of(state));
  SEND(w, "\x06" L("\x01") K "\x06" L("\x01") K);
  raw_expect_closed(w);
  close(w);
  w = raw_client(port_of(state));
  SEND(w, "\x06" L("\x01") K "\x12" L("\x01") "b" L("\x02"));
  raw_expect_closed(w);
  close(w);
}

/* Waiters that go away in the middle of a wait, by FIN and by RST, leave nothing that a write could trip over. */
static void waiters_go_away(void **state) {
  int s = raw_client(port_of(state));
  for (int i = 0; i < 20; i++) {
    int a = raw_client(port_of(state)), b = raw_client(port_of(state));
    SEND(a, "\x06" L("\x02") K L("\x01") "x");
    SEND(b, "\x06" L("\x01") K);
    sync_with(b);
    sync_with(a);
    if (i % 2 == 0) {
      struct linger now = {.l_onoff = 1};
      setsockopt(a, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
    }
    close(a);
    SEND(s, "\x01" K L("\x01") "v");
    EXPECT(b, "\x00");
    SEND(s, "\x08" K);
    EXPECT(s, L("\x01"));
    close(b);
  }
  close(s);
}

static void barriers(void **state) {
  int fd[3];
  for (int i = 0; i < 3; i++)
    fd[i] = raw_client(port_of(state));
  for (int i = 0; i < 2; i++) {
    SEND(fd[i], "\x12" K L("\x03"));
    sync_with(fd[i]);
  }
  SEND(fd[2], "\x03" K);
  EXPECT(fd[2], L("\x01") "2");
  SEND(fd[2], "\x12" K L("\x03"));
  for (int i = 0; i < 3; i++)
    EXPECT(fd[i], "\x00");
  /* the counter stays: one more passes at once */
  SEND(fd[0], "\x12" K L("\x03"));
  EXPECT(fd[0], "\x00");
  /* canceled, the arrival still counts */
  SEND(fd[0], "\x12" L("\x01") "b" L("\x02") "\x0C");
  EXPECT(fd[0], "\x01");
  SEND(fd[1], "\x12" L("\x01") "b" L("\x02"));
  EXPECT(fd[1], "\x00");
  /* a write to the key lets everybody go */
  SEND(fd[0], "\x12" L("\x01") "c" L("\x09"));
  sync_with(fd[0]);
  SEND(fd[1], "\x01" L("\x01") "c" L("\x01") "!");
  EXPECT(fd[0], "\x00");
  /* a counter that is no number */
  SEND(fd[0], "\x12" L("\x01") "c" L("\x02"));
  raw_expect_closed(fd[0]);
  for (int i = 0; i < 3; i++)
    close(fd[i]);
}

/* ---- queues and waiters ---- */

static void push_wakes_one(void **state) {
  int a = raw_client(port_of(state)), b = raw_client(port_of(state)),
      s = raw_client(port_of(state));
  SEND(a, "\x06" L("\x01") K);
  sync_with(a);
  SEND(b, "\x06" L("\x01") K);
  sync_with(b);
  SEND(s, "\x0E" K L("\x01") "1");
  EXPECT(a, "\x00"); /* first come, first served */
  SEND(a, "\x0F" K);
  EXPECT(a, L("\x01") L("\x01") "1");
  raw_expect_silence(b, 200);
  SEND(s, "\x0E" K L("\x01") "2");
  EXPECT(b, "\x00");
  SEND(b, "\x0F" K);
  EXPECT(b, L("\x01") L("\x01") "2");
  close(a);
  close(b);
  close(s);
}

/* The one that was woken does not fetch the item: it asks something else, goes away, or sleeps. The next one is woken. */
static void no_item_is_forgotten(void **state) {
  for (int how = 0; how < 3; how++) {
    int a = raw_client(port_of(state)), b = raw_client(port_of(state)),
        s = raw_client(port_of(state));
    SEND(a, "\x06" L("\x01") K);
    sync_with(a);
    SEND(b, "\x06" L("\x02") K L("\x00")); /* this one also waits for another key */
    sync_with(b);
    int c = raw_client(port_of(state));
    SEND(c, "\x06" L("\x01") K);
    sync_with(c);
    SEND(s, "\x0E" K L("\x01") "1");
    EXPECT(a, "\x00");
    if (how == 0)
      sync_with(a);
    else if (how == 1) {
      close(a);
      a = -1;
    }
    EXPECT(c, "\x00");
    SEND(c, "\x0F" K);
    EXPECT(c, L("\x01") L("\x01") "1");
    SEND(s, "\x01" L("\x00") L("\x00"));
    EXPECT(b, "\x00"); /* the queue had come into being for it */
    SEND(s, "\x08" L("\x00"));
    EXPECT(s, L("\x01"));
    close(b);
    close(c);
    close(s);
    if (a >= 0)
      close(a);
  }
}

/* ---- the defects of other servers ---- */

/* 1: a queue that has items counts as there. */
static void defect_wait_on_a_queue_and_a_key(void **state) {
  int w = raw_client(port_of(state)), s = raw_client(port_of(state));
  SEND(s, "\x0E" K L("\x01") "1");
  sync_with(s);
  SEND(w, "\x06" L("\x02") K L("\x01") "x");
  sync_with(w);
  SEND(s, "\x01" L("\x01") "x" L("\x00"));
  EXPECT(w, "\x00");
  close(w);
  close(s);
}

/* 2: who was woken by a push does not stay registered on that queue. */
static void defect_waiter_left_on_a_queue(void **state) {
  int w = raw_client(port_of(state)), s = raw_client(port_of(state));
  SEND(w, "\x06" L("\x01") K);
  sync_with(w);
  SEND(s, "\x0E" K L("\x01") "1");
  EXPECT(w, "\x00");
  SEND(w, "\x06" L("\x01") L("\x01") "x");
  sync_with(w);
  SEND(s, "\x0E" K L("\x01") "2");
  sync_with(s);
  raw_expect_silence(w, 50);
  SEND(s, "\x01" L("\x01") "x" L("\x00"));
  EXPECT(w, "\x00");
  close(w);
  close(s);
}

/* 3: a compare_set that stores nothing wakes nobody. */
static void defect_compare_set_wakes(void **state) {
  int w = raw_client(port_of(state)), s = raw_client(port_of(state));
  SEND(w, "\x06" L("\x01") K);
  sync_with(w);
  SEND(s, "\x02" K L("\x05") "wrong" L("\x01") "v");
  EXPECT(s, L("\x05") "wrong");
  raw_expect_silence(w, 50);
  SEND(s, "\x02" K L("\x00") L("\x01") "v");
  EXPECT(s, L("\x01") "v");
  EXPECT(w, "\x00");
  close(w);
  close(s);
}

/* 4: half a MULTI_SET changes nothing, however it is cut. */
static void defect_multi_set_in_pieces(void **state) {
  static const char all[] =
      "\x0B" L("\x02") L("\x01") "a" L("\x01") "1" L("\x01") "b" L("\x01") "2";
  int s = raw_client(port_of(state)), r = raw_client(port_of(state));
  for (size_t cut = 1; cut < sizeof(all) - 1; cut++) {
    raw_send(s, all, cut);
    perigee__sleep_ns(MS);
    SEND(r, "\x05" L("\x01") L("\x01") "a");
    EXPECT(r, "\x01");
    raw_send(s, all + cut, sizeof(all) - 1 - cut);
    sync_with(s);
    SEND(r, "\x0A" L("\x02") L("\x01") "a" L("\x01") "b");
    EXPECT(r, L("\x01") "1" L("\x01") "2");
    SEND(s, "\x08" L("\x01") "a"
                             "\x08" L("\x01") "b");
    EXPECT(s, L("\x01") L("\x01"));
  }
  close(s);
  close(r);
}

/* 5: limits hold, and only the one who broke them is closed. */
static void defect_limits(void **state) {
  int other = raw_client(port_of(state));
  static const struct {
    const char *bytes;
    size_t size;
  } bad[] = {
      W("\x03\x01\x20\0\0\0\0\0\0"),             /* key of 8193 */
      W("\x01" K "\x01\x00\x80\0\0\0\0\0"),      /* value of 8 MiB + 1 */
      W("\x06\x01\x00\x02\0\0\0\0\0"),           /* 131073 keys */
      W("\x03\x00\x00\x00\x00\x00\x00\x00\x80"), /* 2^63 */
      W("\x03\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF"), /* 2^64 - 1 */
      W("\x06\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF"),
      W("\x0B\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF"),
      W("\x01" K "\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x7F"),
      W("\x13"), /* no such code */
      W("\xFF"),
      W("\x01" K L("\x03") "1x2"
                           "\x04" K L("\x01")), /* add to what is no number */
      W("\x01" K L("\x13") "9223372036854775807"
                           "\x04" K L("\x01")),
      W(HELLO), /* a second handshake */
  };
  for (size_t i = 0; i < PERIGEE_COUNT(bad); i++) {
    int fd = raw_client(port_of(state));
    raw_send(fd, bad[i].bytes, bad[i].size);
    raw_expect_closed(fd);
    close(fd);
    sync_with(other);
  }
  close(other);
}

/* a, b, c of the handshake: split after byte 1; first byte wrong; magic wrong. */
static void defect_handshake(void **state) {
  int fd = raw_connect(port_of(state));
  for (int i = 0; i < 5; i++) {
    raw_send(fd, &HELLO[i], 1);
    perigee__sleep_ns(5 * MS);
  }
  sync_with(fd);
  close(fd);
  fd = raw_connect(port_of(state));
  SEND(fd, "\x07");
  raw_expect_closed(fd);
  close(fd);
  fd = raw_connect(port_of(state));
  SEND(fd, "\x00\xCE\xF7\x85\x3D");
  raw_expect_closed(fd);
  close(fd);
}

#define TEST(_fn) cmocka_unit_test_setup_teardown(_fn, setup, teardown)

int main(void) {
  const struct CMUnitTest tests[] = {
      TEST(worked_bytes),
      TEST(each_request_alone),
      TEST(every_request),
      TEST(every_cut),
      TEST(one_byte_at_a_time),
      TEST(big_values),
      TEST(wait_and_set),
      TEST(each_write_wakes),
      TEST(cancel_wait),
      TEST(second_wait_is_refused),
      TEST(waiters_go_away),
      TEST(barriers),
      TEST(push_wakes_one),
      TEST(no_item_is_forgotten),
      TEST(defect_wait_on_a_queue_and_a_key),
      TEST(defect_waiter_left_on_a_queue),
      TEST(defect_compare_set_wakes),
      TEST(defect_multi_set_in_pieces),
      TEST(defect_limits),
      TEST(defect_handshake),
  };
  return cmocka_run_group_tests(tests, fill_conversation, free_conversation);
}
