/* The rules that choose algorithms: read, written, asked, and what is wrong with a text is named. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/attr.h"
#include "coll/shm_table.h"
#include "coll/tuning.h"

static perigee__tuning tuning_of(const char *rules) {
  perigee__tuning t = {.segment = 65536};
  assert_int_equal(perigee__select_parse(&t.select, rules), 0);
  assert_int_equal(perigee__select_parse(&t.select, perigee__select_builtin), 0);
  return t;
}

static const perigee__coll_kind choices[] = {PERIGEE_COLL_ALLREDUCE, PERIGEE_COLL_BROADCAST,
                                             PERIGEE_COLL_REDUCE, PERIGEE_COLL_ALLGATHER,
                                             PERIGEE_COLL_REDUCE_SCATTER};

/* Whatever is asked, the built-in rules have an answer that the kind can do. */
static void builtin_covers_everything(void **state) {
  (void)state;
  perigee__tuning t = tuning_of("");
  for (size_t k = 0; k < PERIGEE_COUNT(choices); k++)
    for (int n = 2; n < 300; n++)
      for (int shift = 0; shift < 64; shift++)
        for (int ordered = 0; ordered < 2; ordered++) {
          t.deterministic = ordered != 0;
          perigee__algo algo = perigee__select_algo(&t, choices[k], n, false,
                                                    (UINT64_C(1) << shift) - 1 + (shift == 0));
          assert_true(perigee__algo_does(algo, choices[k]));
          if (ordered && choices[k] != PERIGEE_COLL_BROADCAST &&
              choices[k] != PERIGEE_COLL_ALLGATHER)
            assert_true(perigee__algo_get((int)algo)->ordered);
        }
  t.deterministic = false;
  for (size_t k = 0; k < PERIGEE_COUNT(choices); k++)
    (void)perigee__select_algo(&t, choices[k], 2, false, UINT64_MAX);
}

static void first_rule_that_fits(void **state) {
  (void)state;
  perigee__tuning t = tuning_of("allreduce@3-4:1k-2k:ring; allreduce@5:0-:recdbl,0-:bruck;"
                                "allreduce@3:1k-4k : oneshot ,4k-:bruck;");
  assert_int_equal(perigee__select_algo(&t, PERIGEE_COLL_ALLREDUCE, 3, false, 1024),
                   PERIGEE_ALGO_RING);
  assert_int_equal(perigee__select_algo(&t, PERIGEE_COLL_ALLREDUCE, 4, false, 2047),
                   PERIGEE_ALGO_RING);
  assert_int_equal(perigee__select_algo(&t, PERIGEE_COLL_ALLREDUCE, 3, false, 2048),
                   PERIGEE_ALGO_ONESHOT);
  assert_int_equal(perigee__select_algo(&t, PERIGEE_COLL_ALLREDUCE, 3, false, 1 << 20),
                   PERIGEE_ALGO_BRUCK);
  assert_int_equal(perigee__select_algo(&t, PERIGEE_COLL_ALLREDUCE, 5, false, 7),
                   PERIGEE_ALGO_RECDBL);
  perigee__tuning plain = tuning_of("");
  assert_int_equal(perigee__select_algo(&t, PERIGEE_COLL_ALLREDUCE, 4, false, 2048),
                   perigee__select_algo(&plain, PERIGEE_COLL_ALLREDUCE, 4, false, 2048));
}

static void limits(void **state) {
  (void)state;
  perigee__tuning t = tuning_of("allgather:0-100:bruck,100-200:direct,200-300:bruck,300-:ring");
  assert_int_equal(perigee__select_limit(&t, PERIGEE_COLL_ALLGATHER, 2, PERIGEE_ALGO_BRUCK), 299);
  assert_int_equal(perigee__select_limit(&t, PERIGEE_COLL_ALLGATHER, 2, PERIGEE_ALGO_DIRECT), 199);
  assert_true(perigee__select_limit(&t, PERIGEE_COLL_ALLGATHER, 2, PERIGEE_ALGO_RING) == SIZE_MAX);
  t = tuning_of("allgather:0-50:direct,0-:ring");
  assert_int_equal(perigee__select_limit(&t, PERIGEE_COLL_ALLGATHER, 2, PERIGEE_ALGO_BRUCK), 0);
}

/* Written and read again, the rules are the same. */
static void text_and_back(void **state) {
  (void)state;
  perigee__tuning t = tuning_of("allreduce@2:0-3000:bruck,3000-1g:ring;broadcast@4-:1m-:chain");
  char text[4096], again[4096];
  size_t length = perigee__select_format(&t.select, text, sizeof(text));
  assert_int_equal(length, strlen(text));
  assert_memory_equal(text,
                      "allreduce@2-2:0-3000:bruck;allreduce@2-2:3000-1g:ring;"
                      "broadcast@4-:1m-:chain;",
                      77);
  perigee__select read = {.nrules = 0};
  assert_int_equal(perigee__select_parse(&read, text), 0);
  assert_int_equal(read.nrules, t.select.nrules);
  perigee__select_format(&read, again, sizeof(again));
  assert_string_equal(text, again);
  char cut[10];
  assert_int_equal(perigee__select_format(&t.select, cut, sizeof(cut)), length);
  assert_memory_equal(cut, text, 9);
  assert_int_equal(cut[9], 0);
}

static void errors_name_the_word(void **state) {
  (void)state;
  static const struct {
    const char *text, *error;
  } wrong[] = {
      {"allreduse:0-:ring", "'allreduse' is no collective with a choice"},
      {"barrier:0-:ring", "'barrier' is no collective with a choice"},
      {"allreduce:0-:ringo", "'ringo' is no algorithm of allreduce (bruck, recdbl, halving, "
                             "oneshot, direct, hier, ring)"},
      {"broadcast:0-:ring", "'ring' is no algorithm of broadcast (bruck, binomial, chain)"},
      {"allreduce:4k:ring", "expected bytes as 'from-to' or 'from-' at ':ring'"},
      {"allreduce:8k-4k:ring", "expected bytes"},
      {"allreduce:4k-4k:ring", "expected bytes"},
      {"allreduce:99999999999999999999-:ring", "expected bytes"},
      {"allreduce:0-ring", "expected ':' and an algorithm at 'ring'"},
      {"allreduce", "expected ':' and bytes at 'the end'"},
      {"allreduce@x:0-:ring", "expected ranks"},
      {"allreduce@4-2:0-:ring", "expected ranks"},
      {"allreduce:0-:ring allgather:0-:ring", "expected ',' or ';' at 'allgather:0-:ring'"},
      {";", "'' is no collective"},
      {"allreduce/shn:0-:twoshot", "'shn' is no place (tcp, shm, spin, park, quick, slow)"},
      {"gather/spin/park:0-:cma", "nowhere is 'park' and what stands before it"},
      {"gather/tcp/slow:0-:cma", "nowhere is 'slow' and what stands before it"},
      {"allreduce/shm:0-:ring",
       "'ring' is no algorithm of allreduce in shared memory (oneshot, twoshot, cma, symmetric)"},
      {"allreduce:0-:twoshot", "'twoshot' is no algorithm of allreduce ("},
      {"gather:0-:buffers", "'buffers' is no algorithm of gather (it has no choice)"},
      {"segment=4", "segment=4 is not from 16 to 1g"},
      {"segment:4k", "expected '=' and bytes at ':4k'"},
  };
  for (size_t i = 0; i < PERIGEE_COUNT(wrong); i++) {
    perigee__select select = {.nrules = 0};
    assert_int_equal(perigee__select_parse(&select, wrong[i].text), PERIGEE_EINVAL);
    const char *message = perigee_last_error()->message;
    assert_memory_equal(message, "PERIGEE_SELECT: ", 16);
    if (strstr(message, wrong[i].error) == NULL)
      fail_msg("'%s': %s", wrong[i].text, message);
  }
  perigee__select full = {.nrules = 0};
  char many[4096] = "allreduce:0-1:ring";
  for (int i = 0; i < PERIGEE_SELECT_RULES; i++)
    strcat(many, ",0-1:ring");
  assert_int_equal(perigee__select_parse(&full, many), PERIGEE_ELIMIT);
}

/* The environment's rules stand before the built-in ones. */
static void environment(void **state) {
  (void)state;
  perigee__tuning t;
  setenv("PERIGEE_SELECT", "broadcast:0-:binomial", 1);
  setenv("PERIGEE_SEGMENT", "4096", 1);
  setenv("PERIGEE_DETERMINISTIC", "1", 1);
  assert_int_equal(perigee__tuning_read(&t), 0);
  assert_int_equal(perigee__select_algo(&t, PERIGEE_COLL_BROADCAST, 5, false, 1 << 30),
                   PERIGEE_ALGO_BINOMIAL);
  assert_int_equal(t.segment, 4096);
  assert_true(t.deterministic);
  setenv("PERIGEE_SELECT", "broadcast:0-:bush", 1);
  assert_int_equal(perigee__tuning_read(&t), PERIGEE_EINVAL);
  /* who did not ask beforehand goes on with the built-in rules */
  assert_true(perigee__algo_does(
      perigee__select_algo(perigee__tuning_get(), PERIGEE_COLL_BROADCAST, 5, false, 1),
      PERIGEE_COLL_BROADCAST));
  unsetenv("PERIGEE_SELECT");
  unsetenv("PERIGEE_SEGMENT");
  unsetenv("PERIGEE_DETERMINISTIC");
}

/* The same rules choose otherwise where ranks sit on several hosts, unless sums have to be in rank order. */
static void several_hosts(void **state) {
  (void)state;
  perigee__tuning t = tuning_of("");
  assert_int_equal(perigee__select_algo(&t, PERIGEE_COLL_ALLREDUCE, 8, true, 4 << 20),
                   PERIGEE_ALGO_HIER);
  assert_int_not_equal(perigee__select_algo(&t, PERIGEE_COLL_ALLREDUCE, 8, false, 4 << 20),
                       PERIGEE_ALGO_HIER);
  t.deterministic = true;
  assert_int_not_equal(perigee__select_algo(&t, PERIGEE_COLL_ALLREDUCE, 8, true, 4 << 20),
                       PERIGEE_ALGO_HIER);
}

/* Shared memory and settings in the same language; several kinds at once. */
static void places(void **state) {
  (void)state;
  perigee__select select = {.nrules = 0};
  char text[512];
  assert_int_equal(perigee__select_parse(&select, "gather+scatter/park@2-3:8k-:cma,0-:buffers;"
                                                  "allreduce@4/shm:0-:twoshot;segment=32k;"
                                                  "copy_chunk/spin@2=64k"),
                   0);
  assert_true(perigee__select_format(&select, text, sizeof(text)) < sizeof(text));
  assert_string_equal(text, "gather/park@2-3:8k-:cma;gather/park@2-3:0-:buffers;"
                            "scatter/park@2-3:8k-:cma;scatter/park@2-3:0-:buffers;"
                            "allreduce/shm@4-4:0-:twoshot;segment=32k;copy_chunk/spin@2-2=64k");
  perigee__tuning t = {.select = select};
  assert_int_equal(perigee__select_setting(&t, PERIGEE_SETTING_SEGMENT, PERIGEE_WHERE_TCP, 9, 1),
                   32768);
  assert_int_equal(
      perigee__select_setting(&t, PERIGEE_SETTING_COPY_CHUNK, PERIGEE_WHERE_SPIN, 2, 1), 65536);
  assert_int_equal(
      perigee__select_setting(&t, PERIGEE_SETTING_COPY_CHUNK, PERIGEE_WHERE_PARK, 2, 1), 1);
}

/* What two words say together; a rule for one of the places holds there and nowhere else. */
static void places_together(void **state) {
  (void)state;
  char text[512];
  perigee__tuning t = {.select.nrules = 0};
  assert_int_equal(perigee__select_parse(&t.select,
                                         "gather/slow/park:0-1k:cma;gather/spin/quick:0-2k:cma;"
                                         "gather/slow@2:0-:buffers;gather/shm/quick:0-:cma"),
                   0);
  (void)perigee__select_format(&t.select, text, sizeof(text));
  assert_string_equal(text, "gather/park/slow:0-1k:cma;gather/spin/quick:0-2k:cma;"
                            "gather/slow@2-2:0-:buffers;gather/quick:0-:cma");
  perigee__select again = {.nrules = 0};
  assert_int_equal(perigee__select_parse(&again, text), 0);
  assert_memory_equal(again.rules, t.select.rules, sizeof(again.rules[0]) * (size_t)again.nrules);
  static const struct {
    bool spin, slow;
    uint64_t end; /* of the first rule that holds */
  } cases[] = {{false, true, 1024}, {true, false, 2048}, {true, true, UINT64_MAX}};
  for (size_t i = 0; i < PERIGEE_COUNT(cases); i++) {
    const perigee__shm_facts facts = {
        .n = 2, .spin = cases[i].spin, .cma = true, .slow = cases[i].slow, .buffer_bytes = 4096};
    perigee__shm_table table;
    perigee__shm_table_make(&t, &facts, &table);
    assert_int_equal(perigee__shm_entry_for(&table, PERIGEE_COLL_GATHER, false, 10)->end_bytes,
                     cases[i].end);
  }
}

static void write_file(const char *path, const char *text) {
  FILE *f = fopen(path, "w");
  assert_non_null(f);
  assert_true(fputs(text, f) >= 0);
  assert_int_equal(fclose(f), 0);
}

/* Rules of a file stand between those of PERIGEE_SELECT and the built-in ones, and say where they are from. */
static void files(void **state) {
  (void)state;
  char path[] = "/tmp/perigee-select-XXXXXX", machine[64], origin[600];
  int fd = mkstemp(path);
  assert_true(fd >= 0);
  close(fd);
  write_file(path, "# made by hand\n\nperigee tuning 1\nmachine 2 cores # of mine\n"
                   "broadcast:0-:binomial   # why\nreduce:0-:chain\n");
  setenv("PERIGEE_TUNING_FILE", path, 1);
  setenv("PERIGEE_SELECT", "reduce:0-:bruck", 1);
  perigee__tuning t;
  assert_int_equal(perigee__tuning_read_for("allgather:0-:ring", 2, &t), 0);
  perigee__algo algo;
  const perigee__select_rule *rule =
      perigee__select_rule_for(&t, PERIGEE_COLL_BROADCAST, 2, false, 1 << 20, &algo);
  assert_int_equal(algo, PERIGEE_ALGO_BINOMIAL);
  perigee__rule_origin(&t, rule, origin, sizeof(origin));
  assert_memory_equal(origin, path, strlen(path));
  assert_string_equal(origin + strlen(path), ":5");
  assert_int_equal(perigee__select_algo(&t, PERIGEE_COLL_REDUCE, 2, false, 1), PERIGEE_ALGO_BRUCK);
  assert_int_equal(perigee__select_algo(&t, PERIGEE_COLL_ALLGATHER, 2, false, 1),
                   PERIGEE_ALGO_RING);
  perigee__select select = {.nrules = 0};
  assert_int_equal(perigee__tuning_read_file(&select, path, machine, sizeof(machine)), 0);
  assert_string_equal(machine, "2 cores");

  static const struct {
    const char *text, *error;
  } wrong[] = {{"", "expected a line 'perigee tuning 1'"},
               {"perigee tuning 2\n", ":1: expected 'perigee tuning 1', not 'perigee tuning 2'"},
               {"perigee tuning 1\n\nallreduce:0-:rong\n", ":3: 'rong' is no algorithm"},
               {"perigee tuning 1\nspeed 7\n", ":2: 'speed' is no collective"}};
  for (size_t i = 0; i < PERIGEE_COUNT(wrong); i++) {
    write_file(path, wrong[i].text);
    assert_int_equal(perigee__tuning_read(&t), PERIGEE_EINVAL);
    if (strstr(perigee_last_error()->message, wrong[i].error) == NULL)
      fail_msg("'%s': %s", wrong[i].text, perigee_last_error()->message);
  }
  unlink(path);
  assert_true(perigee__tuning_read(&t) < 0);
  assert_non_null(strstr(perigee_last_error()->message, path));
  unsetenv("PERIGEE_TUNING_FILE");
  unsetenv("PERIGEE_SELECT");
}

static void table(void **state) {
  (void)state;
  for (int i = 0; i < PERIGEE_ALGO_COUNT; i++) {
    const perigee__algo_info *info = perigee__algo_get(i);
    assert_int_equal(info->id, i);
    assert_true(strlen(info->name) > 0 && strlen(info->kinds) > 0 && strlen(info->help) > 0);
  }
  assert_null(perigee__algo_get(-1));
  assert_null(perigee__algo_get(PERIGEE_ALGO_COUNT));
  assert_true(perigee__algo_does(PERIGEE_ALGO_CHAIN, PERIGEE_COLL_REDUCE));
  assert_false(perigee__algo_does(PERIGEE_ALGO_CHAIN, PERIGEE_COLL_ALLREDUCE));
  assert_false(perigee__algo_does(PERIGEE_ALGO_BRUCK, PERIGEE_COLL_BARRIER));
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(builtin_covers_everything),
                                     cmocka_unit_test(first_rule_that_fits),
                                     cmocka_unit_test(limits),
                                     cmocka_unit_test(text_and_back),
                                     cmocka_unit_test(errors_name_the_word),
                                     cmocka_unit_test(environment),
                                     cmocka_unit_test(several_hosts),
                                     cmocka_unit_test(places),
                                     cmocka_unit_test(places_together),
                                     cmocka_unit_test(files),
                                     cmocka_unit_test(table)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
