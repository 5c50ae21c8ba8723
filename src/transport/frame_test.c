/* The header survives encode and decode; what is none of ours is refused by field. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "base/error.h"
#include "transport/frame.h"

static const perigee__frame sample = {.type = PERIGEE_FRAME_RTS,
                                      .kind = 2,
                                      .group = 0x0102030405060708u,
                                      .tag = 0xfffffffffffffff0u,
                                      .fp = 0x1122334455667788u,
                                      .length = 1ull << 40,
                                      .id = 42,
                                      .credit = 17};

static void round_trip(void **state) {
  (void)state;
  uint8_t bytes[PERIGEE_FRAME_SIZE];
  perigee__frame back;
  perigee__frame_encode(&sample, bytes);
  assert_memory_equal(bytes, "PGF1", 4);
  assert_int_equal(bytes[8], 0x08); /* little endian */
  assert_int_equal(perigee__frame_decode(bytes, &back), 0);
  assert_int_equal(back.type, sample.type);
  assert_int_equal(back.kind, sample.kind);
  assert_true(back.group == sample.group && back.tag == sample.tag && back.fp == sample.fp);
  assert_true(back.length == sample.length && back.id == 42 && back.credit == 17);
}

static void refused(void **state) {
  (void)state;
  uint8_t bytes[PERIGEE_FRAME_SIZE];
  perigee__frame back;
  perigee__frame_encode(&sample, bytes);
  bytes[0] = 'G';
  assert_int_equal(perigee__frame_decode(bytes, &back), PERIGEE_EPROTO);
  assert_non_null(strstr(perigee_last_error()->message, "magic"));
  perigee__frame_encode(&sample, bytes);
  bytes[4] = PERIGEE_FRAME_TYPES;
  assert_int_equal(perigee__frame_decode(bytes, &back), PERIGEE_EPROTO);
  assert_non_null(strstr(perigee_last_error()->message, "type"));
  perigee__frame eager = sample;
  eager.type = PERIGEE_FRAME_EAGER;
  eager.length = PERIGEE_EAGER_MAX + 1;
  perigee__frame_encode(&eager, bytes);
  assert_int_equal(perigee__frame_decode(bytes, &back), PERIGEE_EPROTO);
  assert_non_null(strstr(perigee_last_error()->message, "length"));
  perigee__frame rich = sample;
  rich.credit = PERIGEE_CREDIT + 1;
  perigee__frame_encode(&rich, bytes);
  assert_int_equal(perigee__frame_decode(bytes, &back), PERIGEE_EPROTO);
  assert_non_null(strstr(perigee_last_error()->message, "credit"));
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(round_trip), cmocka_unit_test(refused)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
