/* What is explained is what the tables say, over the whole stretch that it names, and who decided. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "coll/explain.h"

typedef struct place {
  perigee__tuning tuning;
  perigee__shm_table table;
  perigee__place_facts facts;
} place;

static void open_place(place *p, const char *rules, int n, bool shm, perigee__arena_path path,
                       bool cma) {
  const perigee__shm_facts facts = {
      .n = n, .spin = n <= 2, .cma = cma, .path = path, .buffer_bytes = 262144};
  assert_int_equal(perigee__tuning_read_for(rules, n, &p->tuning), 0);
  perigee__shm_table_make(&p->tuning, &facts, &p->table);
  p->facts = (perigee__place_facts){.tuning = &p->tuning, .table = shm ? &p->table : NULL, .n = n};
}

static perigee_choice ask(const place *p, perigee__coll_kind kind, uint64_t bytes, bool symmetric) {
  perigee_choice c;
  assert_int_equal(perigee__explain(&p->facts, kind, bytes, symmetric, &c), 0);
  return c;
}

/* Walking from stretch to stretch covers all sizes, each of them once, and every place in a stretch has the same answer. */
static void stretches(void **state) {
  (void)state;
  static place p;
  for (int n = 1; n <= 9; n++)
    for (int shm = 0; shm < 2; shm++)
      for (int cma = 0; cma < 2; cma++)
        for (int k = PERIGEE_COLL_ALLREDUCE; k <= PERIGEE_COLL_ALLTOALL; k++) {
          open_place(&p, NULL, n, shm != 0 && n > 1, PERIGEE_ARENA_PATH_AUTO, cma != 0);
          uint64_t at = 0;
          for (int i = 0; at != UINT64_MAX; i++) {
            perigee_choice c = ask(&p, (perigee__coll_kind)k, at, cma != 0);
            assert_true(i < 20 && c.from == at && c.end > at);
            const uint64_t places[] = {at + (c.end - at) / 2, c.end - 1};
            for (int j = 0; j < 2; j++) {
              perigee_choice other = ask(&p, (perigee__coll_kind)k, places[j], cma != 0);
              assert_string_equal(other.path, c.path);
              assert_string_equal(other.why, c.why);
            }
            at = c.end;
          }
        }
}

static void who_decides(void **state) {
  (void)state;
  static place p;
  open_place(&p, "allreduce/spin@2:100-4k:twoshot", 2, true, PERIGEE_ARENA_PATH_AUTO, true);
  perigee_choice c = ask(&p, PERIGEE_COLL_ALLREDUCE, 200, false);
  assert_string_equal(c.path, "twoshot");
  assert_string_equal(c.transport, "shm");
  assert_string_equal(c.wait, "spin");
  assert_string_equal(c.why, "the group's option tuning: allreduce/spin@2-2:100-4k:twoshot");
  assert_string_equal(c.possible, "oneshot twoshot cma symmetric");
  assert_int_equal(c.from, 100);
  assert_int_equal(c.end, 4096);
  assert_string_equal(ask(&p, PERIGEE_COLL_ALLREDUCE, 48, false).path, "inline");
  assert_string_equal(ask(&p, PERIGEE_COLL_ALLREDUCE, 4096, true).path, "symmetric");
  assert_non_null(strstr(ask(&p, PERIGEE_COLL_ALLREDUCE, 4096, false).why, "built in: "));

  open_place(&p, NULL, 2, true, PERIGEE_ARENA_PATH_TWOSHOT, true);
  c = ask(&p, PERIGEE_COLL_ALLREDUCE, 64, true);
  assert_string_equal(c.path, "twoshot");
  assert_string_equal(c.why, "PERIGEE_PATH=twoshot");
  assert_string_equal(c.possible, "oneshot twoshot");

  open_place(&p, "allgather:0-:bruck", 4, false, PERIGEE_ARENA_PATH_AUTO, false);
  assert_string_equal(ask(&p, PERIGEE_COLL_ALLGATHER, 65536, false).path, "bruck");
  c = ask(&p, PERIGEE_COLL_ALLGATHER, 65537, false);
  assert_string_equal(c.path, "direct");
  assert_non_null(strstr(c.why, "notes"));
  assert_string_equal(ask(&p, PERIGEE_COLL_GATHER, 9, false).path, "exchange");

  open_place(&p, "alltoall:0-:bruck", 4, false, PERIGEE_ARENA_PATH_AUTO, false);
  c = ask(&p, PERIGEE_COLL_ALLTOALL, 4096, false);
  assert_string_equal(c.path, "bruck");
  assert_string_equal(c.possible, "bruck direct");
  assert_int_equal(c.end, 4097);
  c = ask(&p, PERIGEE_COLL_ALLTOALL, 4097, false);
  assert_string_equal(c.path, "direct");
  assert_non_null(strstr(c.why, "blocks of this size"));
}

/* A path that cannot be taken is passed over; one-shot ends with the buffer. */
static void passed_over(void **state) {
  (void)state;
  static place p;
  open_place(&p, "reduce/shm:0-:cma;allreduce/shm:0-:oneshot;alltoall/shm:0-:symmetric", 2, true,
             PERIGEE_ARENA_PATH_AUTO, false);
  assert_string_equal(ask(&p, PERIGEE_COLL_REDUCE, 4096, false).path, "root");
  assert_string_equal(ask(&p, PERIGEE_COLL_ALLREDUCE, 262144, false).path, "oneshot");
  assert_string_equal(ask(&p, PERIGEE_COLL_ALLREDUCE, 262145, false).path, "twoshot");
  assert_string_equal(ask(&p, PERIGEE_COLL_ALLTOALL, 4096, true).path, "symmetric");
  assert_string_equal(ask(&p, PERIGEE_COLL_ALLTOALL, 4096, false).path, "buffers");
  open_place(&p, "reduce/shm:0-:cma", 4, true, PERIGEE_ARENA_PATH_AUTO, true);
  assert_string_equal(ask(&p, PERIGEE_COLL_REDUCE, 4096, false).path, "cma");
  /* blocks of reduce_scatter are counted one by one, rules count them together */
  open_place(&p, "reduce_scatter:0-4k:ring", 4, false, PERIGEE_ARENA_PATH_AUTO, true);
  perigee_choice c = ask(&p, PERIGEE_COLL_REDUCE_SCATTER, 1023, false);
  assert_string_equal(c.path, "ring");
  assert_int_equal(c.end, 1024);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(stretches), cmocka_unit_test(who_decides),
                                     cmocka_unit_test(passed_over)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
