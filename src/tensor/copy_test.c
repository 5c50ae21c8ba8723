/* Copies of any length and alignment, and nothing beside them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "tensor/copy.h"

enum {
  ROOM = 1024,
  EDGE = 130
};

typedef void copy_fn(void *dst, const void *src, size_t bytes);

static void try_copy(copy_fn *copy, size_t to, size_t from, size_t bytes) {
  unsigned char src[ROOM], dst[ROOM], expected[ROOM];
  for (size_t i = 0; i < ROOM; i++)
    src[i] = (unsigned char)(i * 7 + i / 256 + 1);
  memset(dst, 0xee, sizeof(dst));
  memset(expected, 0xee, sizeof(expected));
  memcpy(expected + to, src + from, bytes);
  copy(dst + to, src + from, bytes);
  assert_memory_equal(dst, expected, sizeof(dst));
}

static void try_all(copy_fn *copy) {
  static const size_t lengths[] = {0, 1, 15, 16, 63, 64, 65, 127, 128, 129, 191, 256, 700};
  for (size_t to = 0; to < EDGE; to++)
    for (size_t from = 0; from < EDGE; from += 13)
      for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++)
        try_copy(copy, to, from, lengths[i]);
}

static void test_copy(void **state) {
  (void)state;
  try_all(perigee__copy);
}

static void test_copy_past(void **state) {
  (void)state;
  try_all(perigee__copy_past);
}

static void test_copy_onto_itself(void **state) {
  (void)state;
  unsigned char x[200];
  for (size_t i = 0; i < sizeof(x); i++)
    x[i] = (unsigned char)i;
  perigee__copy(x, x, sizeof(x));
  perigee__copy_past(x, x, sizeof(x));
  for (size_t i = 0; i < sizeof(x); i++)
    assert_int_equal(x[i], (unsigned char)i);
  perigee__copy(NULL, NULL, 0);
  perigee__copy_past(NULL, NULL, 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_copy),
      cmocka_unit_test(test_copy_past),
      cmocka_unit_test(test_copy_onto_itself),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
