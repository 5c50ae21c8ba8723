/* Rule: the tail is the end of the stream, in whole lines, whatever the chunks. */
#include "cli/tail.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void nothing_said_is_nothing_told(void **state) {
  (void)state;
  perigee__tail tail = {0};
  size_t size;
  int cut;
  assert_null(perigee__tail_text(&tail, &size, &cut));
}

static void a_short_stream_is_kept_whole(void **state) {
  (void)state;
  perigee__tail tail = {0};
  perigee__tail_feed(&tail, "a\nb", 3);
  perigee__tail_feed(&tail, "c\n", 2);
  size_t size;
  int cut;
  char *text = perigee__tail_text(&tail, &size, &cut);
  assert_int_equal(size, 5);
  assert_memory_equal(text, "a\nbc\n", 5);
  assert_false(cut);
  free(text);
  perigee__tail_fini(&tail);
}

static void only_the_last_lines_are_told(void **state) {
  (void)state;
  perigee__tail tail = {0};
  char line[32];
  for (int i = 0; i < 1000; i++)
    perigee__tail_feed(&tail, line, (size_t)snprintf(line, sizeof(line), "line %d\n", i));
  size_t size;
  int cut;
  char *text = perigee__tail_text(&tail, &size, &cut);
  assert_true(cut);
  assert_memory_equal(text, "line 900\n", 9);
  assert_memory_equal(text + size - 9, "line 999\n", 9);
  free(text);
  perigee__tail_fini(&tail);
}

/* Lines of 1001 bytes: the ring holds 65 of them and a part, which is left out. */
static void a_line_without_its_head_is_left_out(void **state) {
  (void)state;
  static const size_t chunks[] = {1, 7, 1001, 4096, 200000};
  enum {
    LINES = 200,
    LINE = 1001
  };
  static char all[LINES * LINE];
  for (size_t i = 0; i < LINES; i++) {
    memset(all + i * LINE, 'a' + (int)(i % 26), LINE - 1);
    all[i * LINE + LINE - 1] = '\n';
  }
  for (size_t c = 0; c < sizeof(chunks) / sizeof(chunks[0]); c++) {
    perigee__tail tail = {0};
    for (size_t at = 0; at < sizeof(all); at += chunks[c]) {
      size_t left = sizeof(all) - at;
      perigee__tail_feed(&tail, all + at, left < chunks[c] ? left : chunks[c]);
    }
    size_t size;
    int cut;
    char *text = perigee__tail_text(&tail, &size, &cut);
    assert_int_equal(size, (size_t)(PERIGEE__TAIL_BYTES / LINE) * LINE);
    assert_memory_equal(text, all + sizeof(all) - size, size);
    assert_true(cut);
    free(text);
    perigee__tail_fini(&tail);
  }
}

static void one_endless_line_is_told_in_part(void **state) {
  (void)state;
  static char big[100000];
  memset(big, 'x', sizeof(big));
  perigee__tail tail = {0};
  perigee__tail_feed(&tail, big, sizeof(big));
  size_t size;
  int cut;
  char *text = perigee__tail_text(&tail, &size, &cut);
  assert_int_equal(size, PERIGEE__TAIL_BYTES);
  assert_true(cut);
  free(text);
  perigee__tail_fini(&tail);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(nothing_said_is_nothing_told),
      cmocka_unit_test(a_short_stream_is_kept_whole),
      cmocka_unit_test(only_the_last_lines_are_told),
      cmocka_unit_test(a_line_without_its_head_is_left_out),
      cmocka_unit_test(one_endless_line_is_told_in_part),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
