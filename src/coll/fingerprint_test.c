/* Fingerprints say what a rank is about to do and can be read back: mismatch errors quote them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "coll/fingerprint.h"

#include <perigee/op.h>

static const perigee__fingerprint none = {.dtype = -1, .redop = -1, .root = -1};

static void assert_text(perigee__fingerprint f, const char *expected) {
  char buf[128];
  assert_string_equal(
      perigee__fingerprint_describe(perigee__fingerprint_pack(&f), buf, sizeof(buf)), expected);
}

/* Every field survives the way through the 64 bits, alone and with its neighbours full. */
static void test_round_trip(void **state) {
  (void)state;
  for (int op = 0; op < PERIGEE_OP_COUNT; op++)
    for (int dtype = -1; dtype < PERIGEE_DTYPE_COUNT; dtype++)
      for (int redop = -1; redop < PERIGEE_REDOP_COUNT; redop++)
        for (int root = -1; root < 4094; root += 455) {
          perigee__fingerprint f = {.op = op,
                                    .dtype = dtype,
                                    .redop = redop,
                                    .root = root,
                                    .count = ((uint64_t)1 << 38) - 1 - (uint64_t)op};
          uint64_t fp = perigee__fingerprint_pack(&f);
          perigee__fingerprint g = perigee__fingerprint_unpack(fp);
          assert_int_equal(g.op, op);
          assert_int_equal(g.dtype, dtype);
          assert_int_equal(g.redop, redop);
          assert_int_equal(g.root, root);
          assert_int_equal(g.count, f.count);
          assert_int_equal(g.hashed, 0);
          assert_true(fp != 0);
        }
}

/* A count that does not fit is cut to the largest, never wrapped into another field or a small number. */
static void test_saturates(void **state) {
  (void)state;
  perigee__fingerprint f = none, g;
  f.count = UINT64_MAX;
  g = perigee__fingerprint_unpack(perigee__fingerprint_pack(&f));
  assert_int_equal(g.count, ((uint64_t)1 << 38) - 1);
  assert_int_equal(g.hashed, 0);
  assert_int_equal(g.root, -1);
  f.hashed = 1;
  f.hash = UINT64_MAX;
  g = perigee__fingerprint_unpack(perigee__fingerprint_pack(&f));
  assert_int_equal(g.hashed, 1);
  assert_int_equal(g.hash, ((uint64_t)1 << 38) - 1);
  assert_int_equal(g.root, -1);
}

static void test_texts(void **state) {
  (void)state;
  perigee__fingerprint f = none;
  f.op = PERIGEE_OP_BARRIER;
  assert_text(f, "barrier");
  f.op = PERIGEE_OP_ALLREDUCE;
  f.dtype = PERIGEE_F32;
  f.redop = PERIGEE_REDOP_SUM;
  f.count = 10;
  assert_text(f, "allreduce f32[10] sum");
  f.op = PERIGEE_OP_BROADCAST;
  f.redop = -1;
  f.root = 1;
  f.count = 4;
  assert_text(f, "broadcast f32[4] root 1");
  f.count = 0;
  assert_text(f, "broadcast f32[0] root 1");
  f.op = PERIGEE_OP_ALLTOALL;
  f.root = -1;
  f.hashed = 1;
  f.hash = 0xabc;
  assert_text(f, "alltoall f32[#0000000abc]");
}

/* A buffer that is too small gets a cut text with its terminator. */
static void test_small_buffer(void **state) {
  (void)state;
  perigee__fingerprint f = none;
  char buf[8];
  f.op = PERIGEE_OP_ALLREDUCE;
  perigee__fingerprint_describe(perigee__fingerprint_pack(&f), buf, sizeof(buf));
  assert_string_equal(buf, "allredu");
}

/* Mixing depends on order and on every value. */
static void test_mix(void **state) {
  (void)state;
  uint64_t a = perigee__hash_mix(perigee__hash_mix(0, 1), 2);
  uint64_t b = perigee__hash_mix(perigee__hash_mix(0, 2), 1);
  assert_true(a != b);
  assert_true(perigee__hash_mix(0, 0) != 0);
  assert_true(a == perigee__hash_mix(perigee__hash_mix(0, 1), 2));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_round_trip), cmocka_unit_test(test_saturates),
      cmocka_unit_test(test_texts),      cmocka_unit_test(test_small_buffer),
      cmocka_unit_test(test_mix),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
