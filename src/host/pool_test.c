/* The pool against plain malloc: contents survive every resize, and nothing overlaps. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "host/pool.h"

enum {
  PIECES = 300,
  STEPS = 200000,
  LARGEST = 1500
};

typedef struct piece {
  unsigned char *ptr;
  size_t size;
  unsigned char mark;
} piece;

static uint32_t random_state = 12345;
static uint32_t next_random(void) {
  random_state = random_state * 1664525u + 1013904223u;
  return random_state >> 8;
}

static void check_marked(const piece *p, size_t n) {
  for (size_t i = 0; i < n; i++)
    if (p->ptr[i] != p->mark)
      fail_msg("byte %zu of %zu is not what was written", i, p->size);
}

static void contents_survive(void **state) {
  (void)state;
  perigee__pool pool = {0};
  piece pieces[PIECES] = {0};
  for (int step = 0; step < STEPS; step++) {
    piece *p = &pieces[next_random() % PIECES];
    size_t size = next_random() % 4 == 0 ? 0 : next_random() % LARGEST + 1;
    if (p->ptr != NULL)
      check_marked(p, p->size);
    unsigned char *now = perigee__pool_realloc(&pool, p->ptr, p->ptr != NULL ? p->size : 5, size);
    assert_true((now == NULL) == (size == 0));
    assert_int_equal((uintptr_t)now % 16, 0);
    if (p->ptr != NULL && now != NULL) {
      piece kept = {now, p->size < size ? p->size : size, p->mark};
      check_marked(&kept, kept.size);
    }
    *p = (piece){now, size, (unsigned char)next_random()};
    if (now != NULL)
      memset(now, p->mark, size);
  }
  for (int i = 0; i < PIECES; i++)
    perigee__pool_realloc(&pool, pieces[i].ptr, pieces[i].size, 0);
  perigee__pool_fini(&pool);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(contents_survive)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
