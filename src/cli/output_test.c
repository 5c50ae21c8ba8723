/* Rule: whatever the chunks, what goes out is whole lines with their prefix, and bars only on a terminal. */
#include "cli/output.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct text {
  char data[4096];
  size_t size;
} text;

static void collect(void *arg, const char *data, size_t size) {
  text *t = arg;
  assert_true(t->size + size < sizeof(t->data));
  memcpy(t->data + t->size, data, size);
  t->size += size;
  t->data[t->size] = '\0';
}

/* Feed the words in, one chunk each, and compare what came out after the end. */
static void check(bool tty, const char *expected, size_t n, const char *const *chunks) {
  text out = {.size = 0};
  perigee__screen screen = {.tty = tty};
  perigee__lines lines;
  perigee__lines_init(&lines, &screen, "[0] ", collect, &out);
  for (size_t i = 0; i < n; i++)
    perigee__lines_feed(&lines, chunks[i], strlen(chunks[i]));
  perigee__lines_flush(&lines);
  perigee__lines_fini(&lines);
  assert_string_equal(out.data, expected);
  assert_null(screen.bar);
}
#define CHECK(_tty, _expected, ...)                                                                \
  check(_tty, _expected, sizeof((const char *[]){__VA_ARGS__}) / sizeof(char *),                   \
        (const char *[]){__VA_ARGS__})

static void lines_get_prefixes(void **state) {
  (void)state;
  CHECK(false, "[0] a\n[0] b\n", "a\nb\n");
  CHECK(false, "[0] ab\n[0] \n[0] c\n", "a", "b\n", "\nc\n");
  CHECK(true, "[0] ab\n[0] c\n", "a", "b\nc\n");
}

static void a_partial_line_waits_for_its_end(void **state) {
  (void)state;
  text out = {.size = 0};
  perigee__screen screen = {.tty = false};
  perigee__lines lines;
  perigee__lines_init(&lines, &screen, "[0] ", collect, &out);
  perigee__lines_feed(&lines, "abc", 3);
  assert_int_equal(out.size, 0);
  perigee__lines_flush(&lines);
  assert_string_equal(out.data, "[0] abc\n");
  perigee__lines_flush(&lines);
  assert_string_equal(out.data, "[0] abc\n");
  perigee__lines_fini(&lines);
}

static void off_a_terminal_only_the_last_version_counts(void **state) {
  (void)state;
  CHECK(false, "[0] 100%\n", "10%\r50%\r100%\n");
  CHECK(false, "[0] 100%\n", "\r10%", "\r50%", "\r100%\n");
  CHECK(false, "[0] dos\n[0] line\n", "dos\r\nline\r", "\n");
  CHECK(false, "[0] 50%\n", "10%\r", "50%\r");
}

static void on_a_terminal_bars_are_drawn_in_place(void **state) {
  (void)state;
  /* carriage return first, as most bars do it */
  CHECK(true, "[0] 10%\r\033[K[0] 50%\r\033[K[0] done\n", "\r10%", "\r50%", "\rdone\n");
  /* and last */
  CHECK(true, "[0] 10%\r\033[K[0] 50%\r\033[K[0] 50%\n", "10%\r", "50%\r");
  CHECK(true, "[0] dos\n", "dos\r\n");
  CHECK(true, "[0] dos\r\033[K[0] dos\n", "dos\r", "\n");
}

static void a_wiped_bar_leaves_no_line(void **state) {
  (void)state;
  CHECK(true, "[0] 10%\r\033[K", "10%\r", "\r\r");
}

static void a_bar_stays_below_the_lines_of_others(void **state) {
  (void)state;
  text out = {.size = 0};
  perigee__screen screen = {.tty = true};
  perigee__lines bar, other;
  perigee__lines_init(&bar, &screen, "[0] ", collect, &out);
  perigee__lines_init(&other, &screen, "[1] ", collect, &out);
  perigee__lines_feed(&bar, "\r10%", 4);
  perigee__lines_feed(&other, "hello\n", 6);
  assert_string_equal(out.data, "[0] 10%\r\033[K[1] hello\n[0] 10%\r");
  perigee__lines_fini(&bar);
  out.size = 0;
  perigee__lines_feed(&other, "again\n", 6);
  assert_string_equal(out.data, "[1] again\n");
  perigee__lines_fini(&other);
}

static size_t counted, newlines;
static void count(void *arg, const char *data, size_t size) {
  (void)arg;
  counted += size;
  for (size_t i = 0; i < size; i++)
    newlines += data[i] == '\n';
}

static void an_endless_line_is_cut(void **state) {
  (void)state;
  static char chunk[10000];
  memset(chunk, 'x', sizeof(chunk));
  perigee__screen screen = {.tty = false};
  perigee__lines lines;
  perigee__lines_init(&lines, &screen, "", count, NULL);
  size_t total = 0;
  while (total < 3 * (size_t)PERIGEE__LINE_MAX) {
    perigee__lines_feed(&lines, chunk, sizeof(chunk));
    total += sizeof(chunk);
    assert_true(lines.capacity <= PERIGEE__LINE_MAX);
  }
  perigee__lines_feed(&lines, "\n", 1);
  perigee__lines_fini(&lines);
  assert_int_equal(newlines, total / PERIGEE__LINE_MAX + 1);
  assert_int_equal(counted, total + newlines);
}

static void any_split_gives_the_same_lines(void **state) {
  (void)state;
  static const char all[] = "one\ntwo\r2\r\n\rthree\n\n\r\rfour\r\nfive";
  static const char expected[] = "[0] one\n[0] 2\n[0] three\n[0] \n[0] four\n[0] five\n";
  for (size_t a = 0; a < sizeof(all); a++) {
    for (size_t b = a; b < sizeof(all); b++) {
      char parts[3][64];
      snprintf(parts[0], 64, "%.*s", (int)a, all);
      snprintf(parts[1], 64, "%.*s", (int)(b - a), all + a);
      snprintf(parts[2], 64, "%s", all + b);
      CHECK(false, expected, parts[0], parts[1], parts[2]);
    }
  }
}

static void colour_follows_the_conventions(void **state) {
  (void)state;
  setenv("TERM", "xterm", 1);
  unsetenv("NO_COLOR");
  unsetenv("CLICOLOR_FORCE");
  assert_true(perigee__wants_colour(true));
  assert_false(perigee__wants_colour(false));
  setenv("CLICOLOR_FORCE", "1", 1);
  assert_true(perigee__wants_colour(false));
  setenv("NO_COLOR", "1", 1);
  assert_false(perigee__wants_colour(true));
  unsetenv("NO_COLOR");
  setenv("CLICOLOR_FORCE", "0", 1);
  setenv("TERM", "dumb", 1);
  assert_false(perigee__wants_colour(true));
  char buf[32];
  assert_string_equal(perigee__rank_prefix(12, false, buf, sizeof(buf)), "[12] ");
  assert_string_equal(perigee__rank_prefix(10, true, buf, sizeof(buf)), "\033[36m[10]\033[0m ");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(lines_get_prefixes),
      cmocka_unit_test(a_partial_line_waits_for_its_end),
      cmocka_unit_test(off_a_terminal_only_the_last_version_counts),
      cmocka_unit_test(on_a_terminal_bars_are_drawn_in_place),
      cmocka_unit_test(a_wiped_bar_leaves_no_line),
      cmocka_unit_test(a_bar_stays_below_the_lines_of_others),
      cmocka_unit_test(an_endless_line_is_cut),
      cmocka_unit_test(any_split_gives_the_same_lines),
      cmocka_unit_test(colour_follows_the_conventions),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
