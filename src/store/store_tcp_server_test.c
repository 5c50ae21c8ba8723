/* The server as raw bytes see it: every request, every cut, strangers, and the defects of the servers it replaces. */
#include "store/store_tcp_server.h"

#include "store/store_testing.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>

typedef struct fixture {
  perigee_store_server *server;
  int port;
  leak_mark leaks;
} fixture;

static int setup(void **state) {
  fixture *f = calloc(1, sizeof(*f));
  f->leaks = leaks_begin();
  OK(perigee_store_server_create(NULL, 0, &f->server));
  f->port = perigee_store_server_port(f->server);
  *state = f;
  return 0;
}

static int teardown(void **state) {
  fixture *f = *state;
  int64_t began = perigee__now_ns();
  perigee_store_server_destroy(&f->server);
  assert_true(perigee__now_ns() - began < SEC);
  assert_null(f->server);
  leaks_end(f->leaks);
  free(f);
  return 0;
}

static int port_of(void **state) { return ((fixture *)*state)->port; }

/* A connection whose earlier requests have all been carried out. */
static void sync_with(int fd) {
  SEND(fd, "\x0D\x01\x02\x03\x04");
  EXPECT(fd, "\x01\x02\x03\x04");
}

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

/* One round of all requests on clean keys and its replies. */
#define ALL_REQUESTS                                                                                                                                                                                                                                                                                                                                    \
  "\x0D\x11\x22\x33\x44" /* ping */                                                                                                                                                                                                                                                                                                                     \
  "\x01" L("\x01") "a" L(                                                                                                                                                                                                                                                                                                                               \
      "\x01") "1" /* set a 1 */                                                                                                                                                                                                                                                                                                                         \
              "\x09" L("\x01") "a" L(                                                                                                                                                                                                                                                                                                                   \
                  "\x01") "2" /* append: 12 */                                                                                                                                                                                                                                                                                                          \
                          "\x03" L(                                                                                                                                                                                                                                                                                                                     \
                              "\x01") "a" /* get */                                                                                                                                                                                                                                                                                                     \
                                      "\x03" L(                                                                                                                                                                                                                                                                                                         \
                                          "\x04") "none" /* get of a missing key: empty */                                                                                                                                                                                                                                                              \
                                                  "\x04" L(                                                                                                                                                                                                                                                                                             \
                                                      "\x01") "a"                                                                                                                                                                                                                                                                                       \
                                                              "\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF" /* add -1: 11 */                                                                                                                                                                                                                                       \
                                                              "\x02" L("\x01") "a" L("\x01") "x" L(                                                                                                                                                                                                                                                     \
                                                                  "\x01") "y" /* compare_set, differs: 11 */                                                                                                                                                                                                                                            \
                                                                          "\x02" L("\x01") "a" L("\x02") "11" L(                                                                                                                                                                                                                                        \
                                                                              "\x01") "y" /* matches: y */                                                                                                                                                                                                                                              \
                                                                                      "\x02" L("\x01") "b" L("\x01") "x" L(                                                                                                                                                                                                                             \
                                                                                          "\x01") "y" /* missing, expected: x, stores nothing */                                                                                                                                                                                                        \
                                                                                                  "\x02" L("\x01") "c" L(                                                                                                                                                                                                                               \
                                                                                                      "\x00")                                                                                                                                                                                                                                           \
                                                                                                      L("\x01") "z" /* missing, empty: z */                                                                                                                                                                                                             \
                                                                                                                "\x05" L("\x02") L("\x01") "a" L(                                                                                                                                                                                                       \
                                                                                                                    "\x01") "c" /* check: ready */                                                                                                                                                                                                      \
                                                                                                                            "\x05" L(                                                                                                                                                                                                                   \
                                                                                                                                "\x02")                                                                                                                                                                                                                 \
                                                                                                                                L("\x01") "a" L(                                                                                                                                                                                                        \
                                                                                                                                    "\x01") "b" /* not ready */                                                                                                                                                                                         \
                                                                                                                                            "\x05" L(                                                                                                                                                                                                   \
                                                                                                                                                "\x00") /* of nothing: ready */                                                                                                                                                                         \
      "\x06" L("\x02")                                                                                                                                                                                                                                                                                                                                  \
          L("\x01") "a" L("\x01") "c"                     /* wait: stop */                                                                                                                                                                                                                                                                              \
                                  "\x06" L("\x00") "\x07" /* 2 keys */                                                                                                                                                                                                                                                                                  \
                                                   "\x0B" L("\x02") L("\x01") "d" L("\x01") "4" L(                                                                                                                                                                                                                                                      \
                                                       "\x01") "e" L("\x00") /* multi_set */                                                                                                                                                                                                                                                            \
      "\x0A" L("\x03") L("\x01") "d" L(                                                                                                                                                                                                                                                                                                                 \
          "\x01") "e" L("\x01") "f" /* multi_get: 4, "", "" */                                                                                                                                                                                                                                                                                          \
                                "\x0A" L(                                                                                                                                                                                                                                                                                                               \
                                    "\x00") "\x0B" L("\x00") "\x0C" /* cancel of nothing: canceled */                                                                                                                                                                                                                                                   \
                                                             "\x10" L("\x01") "q" /* queue_len: 0 */                                                                                                                                                                                                                                                    \
                                                                              "\x0F" L("\x01") "q" /* queue_pop: 0, no value */                                                                                                                                                                                                                         \
                                                                                               "\x0E" L("\x01") "q" L("\x02") "q1" /* queue_push */                                                                                                                                                                                                     \
                                                                                                                              "\x0E" L("\x01") "q" L("\x00") "\x10" L("\x01") "q" /* 2 */                                                                                                                                                               \
                                                                                                                                                                              "\x05" L("\x01") L("\x01") "q" /* check: ready */                                                                                                                         \
                                                                                                                                                                                                         "\x0F" L(                                                                                                                                      \
                                                                                                                                                                                                             "\x01") "q" /* 2, q1 */                                                                                                                    \
                                                                                                                                                                                                                     "\x0F" L(                                                                                                                          \
                                                                                                                                                                                                                         "\x01") "q" /* 1, "" */                                                                                                        \
                                                                                                                                                                                                                                 "\x08" L("\x01") "a" /* delete: 1 */                                                                                   \
                                                                                                                                                                                                                                                  "\x08" L("\x01") "c"                                                                                  \
                                                                                                                                                                                                                                                                   "\x08" L(                                                                            \
                                                                                                                                                                                                                                                                       "\x01") "d" /* 1 1 */                                                            \
                                                                                                                                                                                                                                                                               "\x11" /* list: e */                                                     \
                                                                                                                                                                                                                                                                               "\x08" L("\x01") "e" /* 1 */                                             \
                                                                                                                                                                                                                                                                                                "\x12" L("\x01") "g" L("\x01") /* barrier of 1: stop */ \
      "\x08" L("\x01") "g"                  /* its counter: 1 */                                                                                                                                                                                                                                                                                        \
                       "\x08" L("\x01") "q" /* queues are not deleted: 0 */
#define ALL_REPLIES                                                                                \
  "\x11\x22\x33\x44" L("\x02") "12" L("\x00") L("\x0B") L("\x02") "11" L("\x01") "y" L(            \
      "\x01") "x" L("\x01") "z"                                                                    \
                            "\x00"                                                                 \
                            "\x01"                                                                 \
                            "\x00"                                                                 \
                            "\x00"                                                                 \
                            "\x00" L("\x02") L("\x01") "4" L("\x00") L("\x00") "\x01" L("\x00")    \
                                L("\x00") L("\x02") "\x00" L("\x02") L("\x02") "q1" L("\x01")      \
                                    L("\x00") L("\x01") L("\x01") L("\x01") L("\x01")              \
                                        L("\x01") "e" L("\x01") "\x00" L("\x01") L("\x00")

static void every_request(void **state) {
  int fd = raw_client(port_of(state));
  /* pipelined, three times */
  for (int i = 0; i < 3; i++)
    SEND(fd, ALL_REQUESTS);
  for (int i = 0; i < 3; i++)
    EXPECT(fd, ALL_REPLIES);
  raw_expect_silence(fd, 20);
  close(fd);
}

/* The whole conversation, handshake first, in two pieces: cut at every byte. */
static void every_cut(void **state) {
  static const char all[] = HELLO ALL_REQUESTS;
  size_t size = sizeof(all) - 1;
  for (size_t cut = 1; cut < size; cut++) {
    int fd = raw_connect(port_of(state));
    raw_send(fd, all, cut);
    if (cut % 16 == 0 || cut < 6)
      perigee__sleep_ns(MS);
    raw_send(fd, all + cut, size - cut);
    EXPECT(fd, ALL_REPLIES);
    close(fd);
  }
}

static void one_byte_at_a_time(void **state) {
  static const char all[] = HELLO ALL_REQUESTS;
  int fd = raw_connect(port_of(state));
  for (size_t i = 0; i < sizeof(all) - 1; i++)
    raw_send(fd, all + i, 1);
  EXPECT(fd, ALL_REPLIES);
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
#define W(_text) {_text, sizeof(_text) - 1}
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

/* ---- strangers ---- */

static uint64_t next_random(uint64_t *state) {
  *state ^= *state << 13;
  *state ^= *state >> 7;
  return *state ^= *state << 17;
}

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
      TEST(worked_bytes),
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
      TEST(garbage),
      TEST(slow_strangers),
      TEST(reconnect_storm),
      TEST(replies_left_unread),
      cmocka_unit_test(
          out_of_descriptors), /* no fixture: it forks, and must be one thread to do so */
      TEST(address_already_in_use),
      TEST(addresses),
      TEST(restart_on_the_same_port),
      TEST(take_over_listen_socket),
      TEST(destroy_with_everything_open),
      TEST(wait_and_cancel_race),
  };
  return cmocka_run_group_tests(tests, warm_up, NULL);
}
