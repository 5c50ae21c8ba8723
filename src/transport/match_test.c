/* Matching: by peer and key, oldest first on both sides, receives from any source in line with the others. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "transport/match.h"

static perigee__match *match;

static int setup(void **state) {
  (void)state;
  match = malloc(sizeof(*match));
  assert_non_null(match);
  perigee__match_init(match);
  return 0;
}

static int teardown(void **state) {
  (void)state;
  free(match);
  return 0;
}

static perigee__key key(uint64_t group, uint64_t tag, uint32_t kind) {
  return (perigee__key){.group = group, .tag = tag, .kind = kind};
}

static void post(perigee__xfer *x, int peer, perigee__key k) {
  memset(x, 0, sizeof(*x));
  perigee__list_init(&x->node);
  x->peer = peer;
  x->key = k;
  perigee__match_post(match, x);
}

static void keep(perigee__early *e, int peer, perigee__key k) {
  memset(e, 0, sizeof(*e));
  e->peer = peer;
  e->key = k;
  perigee__match_keep(match, e);
}

static perigee__early *want(int peer, perigee__key k) {
  const perigee__xfer x = {.peer = peer, .key = k};
  return perigee__match_wanted(match, &x);
}

static perigee__xfer *arrive(int peer, perigee__key k) {
  return perigee__match_arrived(match, peer, &k);
}

static void every_part_of_the_key_counts(void **state) {
  (void)state;
  perigee__xfer x;
  post(&x, 3, key(1, 2, PERIGEE_KEY_P2P));
  assert_null(arrive(4, key(1, 2, PERIGEE_KEY_P2P)));
  assert_null(arrive(3, key(9, 2, PERIGEE_KEY_P2P)));
  assert_null(arrive(3, key(1, 9, PERIGEE_KEY_P2P)));
  assert_null(arrive(3, key(1, 2, PERIGEE_KEY_COLL)));
  assert_ptr_equal(arrive(3, key(1, 2, PERIGEE_KEY_P2P)), &x);
  assert_null(arrive(3, key(1, 2, PERIGEE_KEY_P2P))); /* taken out */
  perigee__early e;
  keep(&e, 3, key(1, 2, PERIGEE_KEY_P2P));
  assert_null(want(4, key(1, 2, PERIGEE_KEY_P2P)));
  assert_null(want(3, key(9, 2, PERIGEE_KEY_P2P)));
  assert_null(want(3, key(1, 9, PERIGEE_KEY_P2P)));
  assert_null(want(3, key(1, 2, PERIGEE_KEY_COLL)));
  assert_null(want(-1, key(1, 9, PERIGEE_KEY_P2P)));
  assert_ptr_equal(want(3, key(1, 2, PERIGEE_KEY_P2P)), &e);
  assert_null(want(-1, key(1, 2, PERIGEE_KEY_P2P)));
}

static void oldest_first(void **state) {
  (void)state;
  perigee__xfer x[3];
  perigee__early e[3];
  const perigee__key k = key(1, 1, PERIGEE_KEY_P2P);
  for (int i = 0; i < 3; i++)
    post(&x[i], 1, k);
  for (int i = 0; i < 3; i++)
    assert_ptr_equal(arrive(1, k), &x[i]);
  for (int i = 0; i < 3; i++)
    keep(&e[i], 1, k);
  for (int i = 0; i < 3; i++)
    assert_ptr_equal(want(1, k), &e[i]);
}

/* The receive that was posted first gets the message, whether it names the peer or not. */
static void any_source_in_line(void **state) {
  (void)state;
  const perigee__key k = key(1, 1, PERIGEE_KEY_P2P), other = key(1, 2, PERIGEE_KEY_P2P);
  perigee__xfer a, b, c, d;
  post(&d, -1, other);
  post(&a, 1, k);
  post(&b, -1, k);
  post(&c, 1, k);
  assert_ptr_equal(arrive(1, k), &a);
  assert_ptr_equal(arrive(1, k), &b);
  assert_ptr_equal(arrive(1, k), &c);
  post(&b, -1, k);
  post(&a, 1, k);
  assert_ptr_equal(arrive(2, k), &b);
  assert_null(arrive(2, k));
  assert_ptr_equal(arrive(1, k), &a);
  assert_ptr_equal(arrive(7, other), &d);
}

/* A receive from any source takes what arrived first, of whatever peer. */
static void any_source_takes_the_first(void **state) {
  (void)state;
  const perigee__key k = key(1, 1, PERIGEE_KEY_P2P);
  perigee__early e[4];
  for (int i = 0; i < 4; i++)
    keep(&e[i], 3 - i, k);
  assert_ptr_equal(want(1, k), &e[2]);
  assert_ptr_equal(want(-1, k), &e[0]);
  assert_ptr_equal(want(-1, k), &e[1]);
  assert_ptr_equal(want(-1, k), &e[3]);
  assert_null(want(-1, k));
}

static void dropped_is_gone(void **state) {
  (void)state;
  const perigee__key k = key(1, 1, PERIGEE_KEY_P2P);
  perigee__early e[2];
  keep(&e[0], 1, k);
  keep(&e[1], 1, k);
  perigee__match_drop(&e[0]);
  assert_ptr_equal(want(-1, k), &e[1]);
  assert_true(perigee__list_empty(&match->arrivals));
}

static void take_out_even(void *arg, perigee__xfer *x) {
  int *seen = arg;
  (*seen)++;
  if (x->key.tag % 2 == 0)
    perigee__list_remove(&x->node);
}

static void each_posted(void **state) {
  (void)state;
  enum {
    MANY = 3000 /* several per bucket */
  };
  perigee__xfer *x = calloc(MANY, sizeof(*x));
  assert_non_null(x);
  for (int i = 0; i < MANY; i++)
    post(&x[i], i % 5 - 1, key(1, (uint64_t)i, PERIGEE_KEY_P2P));
  int seen = 0;
  perigee__match_each_posted(match, take_out_even, &seen);
  assert_int_equal(seen, MANY);
  seen = 0;
  perigee__match_each_posted(match, take_out_even, &seen);
  assert_int_equal(seen, MANY / 2);
  for (int i = 0; i < MANY; i++) {
    perigee__xfer *found =
        arrive(i % 5 - 1 >= 0 ? i % 5 - 1 : 3, key(1, (uint64_t)i, PERIGEE_KEY_P2P));
    assert_ptr_equal(found, i % 2 == 0 ? NULL : &x[i]);
  }
  free(x);
}

#define TEST(_name) cmocka_unit_test_setup_teardown(_name, setup, teardown)

int main(void) {
  const struct CMUnitTest tests[] = {
      TEST(every_part_of_the_key_counts), TEST(oldest_first),    TEST(any_source_in_line),
      TEST(any_source_takes_the_first),   TEST(dropped_is_gone), TEST(each_posted),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
