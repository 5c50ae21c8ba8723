/* What `perigee bench` makes of its arguments. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/error.h"
#include "cli/bench_opts.h"

#define PARSE(_opts, ...) parse((_opts), (const char *[]){"bench", __VA_ARGS__, NULL})

/* getopt moves the pointers, not the text. */
static int parse(perigee__bench_opts *o, const char **argv) {
  int argc = 0;
  while (argv[argc] != NULL)
    argc++;
  return perigee__bench_opts_parse(argc, (char **)(uintptr_t)argv, o);
}

static void sizes(void **state) {
  (void)state;
  static const struct {
    const char *text;
    size_t bytes;
  } good[] = {{"1", 1},         {"64k", 65536},    {"64K", 65536},         {"64KB", 65536},
              {"64KiB", 65536}, {"1.5M", 1572864}, {"2G", (size_t)2 << 30}};
  for (size_t i = 0; i < PERIGEE_COUNT(good); i++) {
    size_t bytes = 0;
    assert_int_equal(0, perigee__bytes_parse("-b", good[i].text, &bytes));
    assert_int_equal(good[i].bytes, bytes);
  }
  static const char *const bad[] = {"", "0", "-1", "K", "1T", "1KK", "8x", "1e20", "nan"};
  for (size_t i = 0; i < PERIGEE_COUNT(bad); i++) {
    size_t bytes = 77;
    assert_int_equal(PERIGEE_EINVAL, perigee__bytes_parse("-b", bad[i], &bytes));
    assert_int_equal(77, bytes);
    assert_non_null(strstr(perigee_last_error()->message, bad[i]));
  }
}

static void a_range(void **state) {
  (void)state;
  perigee__bench_opts o;
  assert_int_equal(0,
                   PARSE(&o, "-b", "8", "-e", "1K", "-f", "4", "-n", "3", "broadcast", "-r", "2"));
  static const size_t expected[] = {8, 32, 128, 512};
  assert_int_equal(4, o.nsizes);
  assert_memory_equal(expected, o.sizes, sizeof(expected));
  assert_int_equal(3, o.ranks);
  assert_int_equal(1, o.nops);
  assert_string_equal("broadcast", o.ops[0]);
  assert_int_equal(2, o.root);
  perigee__bench_opts_fini(&o);
}

static void a_list_goes_before_the_range(void **state) {
  (void)state;
  perigee__bench_opts o;
  assert_int_equal(0, PARSE(&o, "--sizes", "64K,8", "-e", "1G", "--load", "/dev/null", "--load",
                            "/dev/null", "-x", "A=1"));
  assert_int_equal(2, o.nsizes);
  assert_int_equal(65536, o.sizes[0]);
  assert_int_equal(8, o.sizes[1]);
  assert_int_equal(2, o.nloads);
  assert_int_equal(1, o.nexports);
  assert_int_equal(0, o.nops);
  perigee__bench_opts_fini(&o);
}

static void too_many_sizes(void **state) {
  (void)state;
  perigee__bench_opts o;
  assert_int_equal(PERIGEE_EINVAL, PARSE(&o, "-f", "1.01"));
  assert_non_null(strstr(perigee_last_error()->message, "64 sizes"));
}

static void refused(void **state) {
  (void)state;
  static const char *const cases[][3] = {
      {"-n", "0", "-n '0'"},
      {"-n", "some", "-n 'some' is neither 'auto' nor"},
      {"-f", "1", "-f '1' is not a number above 1"},
      {"-x", "NAME", "-x 'NAME' is not NAME=VALUE"},
      {"-c", "2", "-c '2'"},
      {"--budget", "0", "--budget '0' is not a number above 0"},
      {"--timeout", "soon", "--timeout 'soon' is not a number of seconds above 0"},
      {"--transport", "ib", "--transport 'ib' is none of auto, shm, tcp"},
      {"--from", "perl", "--from 'perl' is none of c, lua"},
      {"--load", "/nowhere/x.lua", "--load: cannot read '/nowhere/x.lua'"},
      {"-r", "2", "-r 2: with 2 ranks the last is 1"},
      {"--wrong", "1", "unknown option '--wrong'"},
      {"bw", "-n", "option '-n' needs a value"},
      {"bw", "--sizes", "option '--sizes' needs a value"},
      {"bw", "--wrong", "unknown option '--wrong'"},
      {"bw", "-qz", "unknown option '-q'"},
      {"bw", "--b2b=1", "unknown option '--b2b=1'"},
  };
  for (size_t i = 0; i < PERIGEE_COUNT(cases); i++) {
    perigee__bench_opts o;
    assert_int_equal(PERIGEE_EINVAL, PARSE(&o, cases[i][0], cases[i][1]));
    assert_non_null(strstr(perigee_last_error()->message, cases[i][2]));
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(sizes), cmocka_unit_test(a_range),
                                     cmocka_unit_test(a_list_goes_before_the_range),
                                     cmocka_unit_test(too_many_sizes), cmocka_unit_test(refused)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
