/* Rule: every wrong argument is refused by name and value, and nothing leaks then. */
#include "cli/opts.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/futex.h"

enum {
  WORDS = 16
};

static int parse(perigee__run_opts *opts, const char *const *words) {
  static char copies[WORDS][64];
  static char *argv[WORDS + 2];
  int argc = 0;
  static char run[] = "run";
  argv[argc++] = run;
  for (; words[argc - 1] != NULL; argc++)
    argv[argc] = strcpy(copies[argc - 1], words[argc - 1]);
  argv[argc] = NULL;
  return perigee__run_opts_parse(argc, argv, opts);
}
#define PARSE(_opts, ...) parse(_opts, (const char *[]){__VA_ARGS__, NULL})

static void defaults(void **state) {
  (void)state;
  perigee__run_opts o;
  assert_int_equal(PARSE(&o, "a.lua", "-n", "3"), 0);
  assert_int_equal(o.n, 1);
  assert_int_equal(o.nnodes, 1);
  assert_int_equal(o.node_rank, 0);
  assert_null(o.host);
  assert_null(o.log_dir);
  assert_true(o.shown[0]);
  assert_int_equal(o.prefix, PERIGEE__PREFIX_AUTO);
  assert_true(o.timeout_ns == PERIGEE_NEVER);
  assert_true(o.grace_ns == 5 * PERIGEE_NS_PER_SEC);
  assert_false(o.keep_going);
  assert_string_equal(o.program[0], "a.lua");
  assert_string_equal(o.program[1], "-n"); /* options behind the script are the script's */
  assert_null(o.program[3]);
  perigee__run_opts_fini(&o);
}

static void all_options(void **state) {
  (void)state;
  perigee__run_opts o;
  assert_int_equal(PARSE(&o, "-n3", "--log-dir=d", "--ranks", "0,2", "--prefix", "never",
                         "--timeout", "1.5", "--grace", "0", "--keep-going", "-x", "A=1", "--",
                         "-odd"),
                   0);
  assert_int_equal(o.n, 3);
  assert_string_equal(o.log_dir, "d");
  assert_true(o.shown[0] && !o.shown[1] && o.shown[2]);
  assert_int_equal(o.prefix, PERIGEE__PREFIX_NEVER);
  assert_true(o.timeout_ns == 1500 * PERIGEE_NS_PER_MS);
  assert_true(o.grace_ns == 0);
  assert_true(o.keep_going);
  assert_int_equal(o.nexports, 1);
  assert_string_equal(o.exports[0], "A=1");
  assert_string_equal(o.program[0], "-odd");
  perigee__run_opts_fini(&o);
}

static void auto_is_the_usable_cores(void **state) {
  (void)state;
  perigee__run_opts o;
  assert_int_equal(PARSE(&o, "-n", "auto", "x"), 0);
  assert_int_equal(o.n, perigee__usable_cores());
  perigee__run_opts_fini(&o);
}

static void help_needs_no_program(void **state) {
  (void)state;
  perigee__run_opts o;
  assert_int_equal(PARSE(&o, "--help"), 0);
  assert_true(o.help);
  perigee__run_opts_fini(&o);
}

static void several_nodes(void **state) {
  (void)state;
  perigee__run_opts o;
  assert_int_equal(PARSE(&o, "-n", "2", "--nnodes", "3", "--node-rank", "2", "--endpoint",
                         "[::1]:29500", "--ranks", "5", "x"),
                   0);
  assert_string_equal(o.host, "::1");
  assert_int_equal(o.port, 29500);
  assert_true(o.shown[5] && !o.shown[4]);
  perigee__run_opts_fini(&o);
}

static void refused(void **state) {
  (void)state;
  static const struct {
    const char *words[8], *part; /* part of the message */
  } cases[] = {
      {{"-n", "0", "x"}, "-n '0'"},
      {{"-n", "abc", "x"}, "-n 'abc'"},
      {{"-n", "2x", "x"}, "-n '2x'"},
      {{"-n", "", "x"}, "-n ''"},
      {{"-n", "-1", "x"}, "-n '-1'"},
      {{"-n", "99999999999999999999", "x"}, "-n '99999999999999999999'"},
      {{"-n"}, "'-n' needs a value"},
      {{"--timeout"}, "'--timeout' needs a value"},
      {{"--wrong", "x"}, "'--wrong'"},
      {{"-q", "x"}, "'-q'"},
      {{"-n", "2"}, "no script or program"},
      {{NULL}, "no script or program"},
      {{"--prefix", "maybe", "x"}, "--prefix 'maybe'"},
      {{"--timeout", "0", "x"}, "--timeout '0'"},
      {{"--timeout", "soon", "x"}, "--timeout 'soon'"},
      {{"--timeout", "nan", "x"}, "--timeout 'nan'"},
      {{"--grace", "-1", "x"}, "--grace '-1'"},
      {{"--log-dir", "", "x"}, "--log-dir ''"},
      {{"-x", "NAME", "x"}, "-x 'NAME'"},
      {{"-x", "=1", "x"}, "-x '=1'"},
      {{"-n", "4", "--ranks", "9", "x"}, "no rank 9, the last is 3"},
      {{"-n", "4", "--ranks", "1,", "x"}, "--ranks '1,'"},
      {{"-n", "4", "--ranks", "3-1", "x"}, "--ranks '3-1'"},
      {{"-n", "4", "--ranks", "a", "x"}, "--ranks 'a'"},
      {{"-n", "4", "--ranks", "", "x"}, "--ranks ''"},
      {{"-n", "4", "--ranks", "-1", "x"}, "--ranks '-1'"},
      {{"--nnodes", "2", "x"}, "--endpoint"},
      {{"--nnodes", "2", "--endpoint", "h:1", "x"}, "--node-rank"},
      {{"--node-rank", "1", "x"}, "--node-rank 1"},
      {{"--endpoint", "host", "x"}, "--endpoint 'host'"},
      {{"--endpoint", ":1", "x"}, "--endpoint ':1'"},
      {{"--endpoint", "h:0", "x"}, "port '0'"},
      {{"--endpoint", "h:70000", "x"}, "port '70000'"},
      {{"--endpoint", "::1:80", "x"}, "[address]:port"},
  };
  for (size_t i = 0; i < PERIGEE_COUNT(cases); i++) {
    perigee__run_opts o;
    assert_int_equal(parse(&o, cases[i].words), PERIGEE_EINVAL);
    if (strstr(perigee_last_error()->message, cases[i].part) == NULL)
      fail_msg("'%s' does not say '%s'", perigee_last_error()->message, cases[i].part);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(defaults),      cmocka_unit_test(all_options),
      cmocka_unit_test(several_nodes), cmocka_unit_test(auto_is_the_usable_cores),
      cmocka_unit_test(refused),       cmocka_unit_test(help_needs_no_program),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
