/* The engine without sockets: what would depend on time or on luck with them. */
#include "store/store_tcp_engine.h"

#include "store/store_testing.h"

enum {
  PEERS = 4
};

typedef struct fixture {
  perigee__engine engine;
  perigee__peer peers[PEERS];
} fixture;

#define FEED(_p, _text) OK(perigee__peer_feed(_p, _text, sizeof(_text) - 1))
/* The peer's unread replies, and they are read now. */
#define REPLIES(_p, _text)                                                                         \
  do {                                                                                             \
    assert_int_equal((_p)->out.size, sizeof(_text) - 1);                                           \
    assert_memory_equal((_p)->out.data, _text, sizeof(_text) - 1);                                 \
    perigee__buf_reset(&(_p)->out, 0);                                                             \
  } while (0)
#define NOTHING(_p) assert_int_equal((_p)->out.size, 0)
#define Q L("\x02") "/q"

static int setup(void **state) {
  fixture *f = calloc(1, sizeof(*f));
  OK(perigee__engine_init(&f->engine, 1 << 20));
  for (int i = 0; i < PEERS; i++) {
    perigee__peer_init(&f->peers[i], &f->engine);
    FEED(&f->peers[i], HELLO);
  }
  *state = f;
  return 0;
}

static int teardown(void **state) {
  fixture *f = *state;
  for (int i = 0; i < PEERS; i++)
    perigee__peer_fini(&f->peers[i]);
  perigee__engine_fini(&f->engine);
  free(f);
  return 0;
}

/* Two wait for a queue, one item comes, the first is woken. */
static perigee__peer *first_woken(fixture *f) {
  FEED(&f->peers[0], "\x06" L("\x01") Q);
  FEED(&f->peers[1], "\x06" L("\x01") Q);
  FEED(&f->peers[2], "\x0E" Q L("\x01") "i");
  REPLIES(&f->peers[0], "\x00");
  NOTHING(&f->peers[1]);
  return f->peers;
}

static void item_is_fetched(void **state) {
  perigee__peer *p = first_woken(*state);
  FEED(&p[0], "\x0F" Q);
  REPLIES(&p[0], L("\x01") L("\x01") "i");
  NOTHING(&p[1]); /* nothing is left to wake it for */
  assert_true(perigee__engine_tick(p[0].engine, PERIGEE_NEVER - 1) == PERIGEE_NEVER);
  NOTHING(&p[1]);
}

static void another_request_passes_the_item_on(void **state) {
  perigee__peer *p = first_woken(*state);
  FEED(&p[0], "\x07");
  REPLIES(&p[0], L("\x00"));
  REPLIES(&p[1], "\x00");
}

static void the_end_passes_the_item_on(void **state) {
  perigee__peer *p = first_woken(*state);
  perigee__peer_fini(&p[0]);
  REPLIES(&p[1], "\x00");
  perigee__peer_init(&p[0], p[1].engine);
}

static void time_passes_the_item_on(void **state) {
  perigee__peer *p = first_woken(*state);
  int64_t now = perigee__now_ns(), due = perigee__engine_tick(p[0].engine, now);
  assert_in_range(due - now, MS, 100 * MS);
  NOTHING(&p[1]);
  perigee__engine_tick(p[0].engine, due - 1);
  NOTHING(&p[1]);
  int64_t next = perigee__engine_tick(p[0].engine, due); /* now it is the other's to fetch */
  assert_true(next > due);
  REPLIES(&p[1], "\x00");
}

/* Two items, three waiters: two are woken. The third is, when one of them does not fetch. */
static void each_item_wakes_one(void **state) {
  fixture *f = *state;
  perigee__peer *p = f->peers;
  for (int i = 0; i < 3; i++)
    FEED(&p[i], "\x06" L("\x01") Q);
  FEED(&p[3], "\x0E" Q L("\x01") "1"
                                 "\x0E" Q L("\x01") "2");
  REPLIES(&p[0], "\x00");
  REPLIES(&p[1], "\x00");
  NOTHING(&p[2]);
  FEED(&p[1], "\x0F" Q);
  REPLIES(&p[1], L("\x02") L("\x01") "1");
  /* one item is left and one is promised: waking the third is early, not wrong */
  FEED(&p[0], "\x07");
  REPLIES(&p[2], "\x00");
}

/* A value under the queue's name wakes everybody, also who was passed over when the item came. */
static void a_value_wakes_all(void **state) {
  perigee__peer *p = first_woken(*state);
  FEED(&p[2], "\x01" Q L("\x00"));
  REPLIES(&p[1], "\x00");
  FEED(&p[0], "\x0F" Q);
  REPLIES(&p[0], L("\x01") L("\x01") "i");
  NOTHING(&p[1]);
}

static void the_store_is_full(void **state) {
  fixture *f = *state;
  static char big[600 << 10];
  FEED(&f->peers[0], "\x01" K "\x00\x60\x09\0\0\0\0\0");
  OK(perigee__peer_feed(&f->peers[0], big, 0x96000));
  FEED(&f->peers[0], "\x01" Q "\x00\x60\x09\0\0\0\0\0");
  FAILS(perigee__peer_feed(&f->peers[0], big, 0x96000), PERIGEE_ELIMIT, "store is full");
  FEED(&f->peers[1], "\x05" L("\x01") Q);
  REPLIES(&f->peers[1], "\x01");
}

static void replies_unread(void **state) {
  fixture *f = *state;
  perigee__peer *p = &f->peers[0];
  static char big[512 << 10];
  FEED(p, "\x01" K "\x00\x00\x08\0\0\0\0\0");
  OK(perigee__peer_feed(p, big, sizeof(big)));
  /* one reply may be long */
  FEED(p, "\x0A" L("\x60"));
  for (int i = 0; i < 0x60; i++)
    FEED(p, K);
  assert_int_equal(p->out.size, 0x60 * (8 + sizeof(big)));
  /* another on top of it may not */
  FAILS(perigee__peer_feed(p, "\x07", 1), PERIGEE_ELIMIT, "unread");
  /* nor may many short ones, counting what is on its way */
  p = &f->peers[1];
  p->in_flight = (32 << 20) - 20;
  FEED(p, "\x07\x07\x07");
  FAILS(perigee__peer_feed(p, "\x07", 1), PERIGEE_ELIMIT, "unread");
}

#define TEST(_fn) cmocka_unit_test_setup_teardown(_fn, setup, teardown)

int main(void) {
  const struct CMUnitTest tests[] = {
      TEST(item_is_fetched),
      TEST(another_request_passes_the_item_on),
      TEST(the_end_passes_the_item_on),
      TEST(time_passes_the_item_on),
      TEST(each_item_wakes_one),
      TEST(a_value_wakes_all),
      TEST(the_store_is_full),
      TEST(replies_unread),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
