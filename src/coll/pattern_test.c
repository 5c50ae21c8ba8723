/* Who talks to whom, for every number of ranks up to 70: checked by playing the pattern through. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "coll/net_call.h"
#include "coll/pattern_recdbl.h"
#include "coll/pattern_ring.h"
#include "coll/pattern_tree.h"

enum {
  N_MAX = 70
};

/* What one rank sends its right neighbour receives; a chunk that comes in a step goes on in the next; rank r finishes chunk r. */
static void ring_chunks_travel(void **state) {
  (void)state;
  for (int n = 2; n <= N_MAX; n++)
    for (int rank = 0; rank < n; rank++)
      for (int step = 0; step < 2 * (n - 1); step++) {
        int chunk = perigee__ring_recv_chunk(n, rank, step);
        assert_in_range(chunk, 0, n - 1);
        assert_int_equal(perigee__ring_send_chunk(n, (rank + n - 1) % n, step), chunk);
        if (step + 1 < 2 * (n - 1))
          assert_int_equal(perigee__ring_send_chunk(n, rank, step + 1), chunk);
        if (step == n - 2)
          assert_int_equal(chunk, rank);
      }
}

/* Every rank receives every chunk once in either half, but its own: that one at the end of the first. */
static void ring_visits_every_chunk(void **state) {
  (void)state;
  for (int n = 2; n <= N_MAX; n++)
    for (int rank = 0; rank < n; rank++) {
      int seen[2][N_MAX] = {{0}};
      for (int step = 0; step < 2 * (n - 1); step++)
        seen[step >= n - 1][perigee__ring_recv_chunk(n, rank, step)]++;
      for (int c = 0; c < n; c++) {
        assert_int_equal(seen[0][c], c != (rank + n - 1) % n);
        assert_int_equal(seen[1][c], c != rank);
      }
    }
}

/* Blocks of ranks [lo, hi) that partners hold are neighbours; in the end all hold [0, n). */
static void recdbl_joins_neighbours(void **state) {
  (void)state;
  for (int n = 1; n <= N_MAX; n++) {
    perigee__recdbl p = perigee__recdbl_of(n);
    int lo[N_MAX], hi[N_MAX], new_lo[N_MAX], new_hi[N_MAX];
    for (int r = 0; r < n; r++) {
      lo[r] = r - perigee__recdbl_takes(&p, r);
      hi[r] = r + 1;
    }
    for (int k = 0; k < p.rounds; k++) {
      for (int r = 0; r < n; r++) {
        if (perigee__recdbl_virtual(&p, r) < 0)
          continue;
        int partner = perigee__recdbl_partner(&p, r, k);
        assert_int_equal(perigee__recdbl_partner(&p, partner, k), r);
        assert_int_equal(r < partner ? hi[r] : hi[partner], r < partner ? lo[partner] : lo[r]);
        new_lo[r] = lo[r] < lo[partner] ? lo[r] : lo[partner];
        new_hi[r] = hi[r] > hi[partner] ? hi[r] : hi[partner];
      }
      memcpy(lo, new_lo, sizeof(lo));
      memcpy(hi, new_hi, sizeof(hi));
    }
    for (int r = 0; r < n; r++)
      if (perigee__recdbl_virtual(&p, r) >= 0)
        assert_true(lo[r] == 0 && hi[r] == n);
  }
}

static void recdbl_virtual_ranks(void **state) {
  (void)state;
  for (int n = 1; n <= N_MAX; n++) {
    perigee__recdbl p = perigee__recdbl_of(n);
    assert_true((1 << p.rounds) <= n && (2 << p.rounds) > n);
    for (int v = 0; v < 1 << p.rounds; v++)
      assert_int_equal(perigee__recdbl_virtual(&p, perigee__recdbl_rank(&p, v)), v);
    int folded = 0;
    for (int r = 0; r < n; r++)
      if (perigee__recdbl_virtual(&p, r) < 0) {
        folded++;
        assert_int_equal(perigee__recdbl_first(&p, r), r + 1);
        assert_true(perigee__recdbl_takes(&p, r + 1));
        assert_int_equal(perigee__recdbl_first(&p, r + 1), -1);
      }
    assert_int_equal(folded, p.folded);
  }
}

/* Children and parents agree, every position has one parent, and a subtree's positions follow each other. */
static void tree_covers_all(void **state) {
  (void)state;
  for (int n = 1; n <= N_MAX; n++) {
    int parents[N_MAX] = {0}, size[N_MAX];
    for (int p = n - 1; p >= 0; p--) {
      size[p] = 1;
      for (int i = 0; i < perigee__tree_children(n, p); i++) {
        int child = perigee__tree_child(p, i);
        assert_in_range(child, p + 1, n - 1);
        assert_int_equal(child, p + size[p]); /* those before it are complete */
        assert_int_equal(perigee__tree_parent(child), p);
        parents[child]++;
        size[p] += size[child];
      }
    }
    assert_int_equal(size[0], n);
    assert_int_equal(perigee__tree_parent(0), -1);
    for (int p = 1; p < n; p++)
      assert_int_equal(parents[p], 1);
  }
}

/* A whole roll call reaches everyone; single messages go to the distances 1, 2, 4 ... */
static void roll_call_distances(void **state) {
  (void)state;
  for (int n = 2; n <= N_MAX; n++)
    for (int from = 0; from < n; from++) {
      int reached = 0;
      for (int to = 0; to < n; to++)
        reached += perigee__roll_reaches(n, from, to);
      int rounds = 0;
      while ((1 << rounds) < n)
        rounds++;
      assert_int_equal(reached, rounds);
      assert_true(perigee__roll_reaches(n, from, (from + 1) % n));
      assert_false(perigee__roll_reaches(n, from, from));
    }
}

static void slices_cover_all(void **state) {
  (void)state;
  for (size_t count = 0; count < 40; count++)
    for (int n = 1; n <= 17; n++) {
      assert_int_equal(perigee__slice_at(count, n, 0), 0);
      assert_int_equal(perigee__slice_at(count, n, n), count);
      for (int r = 0; r < n; r++) {
        size_t length = perigee__slice_at(count, n, r + 1) - perigee__slice_at(count, n, r);
        assert_in_range(length, count / (size_t)n, count / (size_t)n + 1);
      }
    }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(ring_chunks_travel),      cmocka_unit_test(ring_visits_every_chunk),
      cmocka_unit_test(recdbl_joins_neighbours), cmocka_unit_test(recdbl_virtual_ranks),
      cmocka_unit_test(tree_covers_all),         cmocka_unit_test(roll_call_distances),
      cmocka_unit_test(slices_cover_all)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
