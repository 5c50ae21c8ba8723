/*
 * Where one path of the shared-memory engine ends and the next begins: one table, measured on 2 cores (Xeon, 1 MiB L2 each, shared L3).
 *
 *   one_shot   allreduce: everybody reduces everything (spin), or the last to arrive does (park), up to here; two-shot beyond
 *   chunk      of a two-shot pipeline; at least 16 KiB for each rank
 *   copy       chunk of what is copied through buffers (broadcast, gather, scatter, alltoall)
 *   direct     blocks from here on are copied once, from where they are
 *   pull       inputs of a reduce by its root alone are read where they are, by system call, from here to the next; then copying and
 *              reducing at the same time wins, until memory is the limit
 *   vast       from here on (caches are too small) that and allreduce read inputs where they are, with a core for each rank
 *   symmetric  reductions in symmetric memory, from here on
 */
#include "coll/arena_impl.h"

#define NEVER SIZE_MAX
#define K(_n) ((size_t)(_n) << 10)

typedef struct row {
  bool spin;
  int max_ranks; /* rows of one mode from few ranks to many */
  perigee__arena_limits at;
} row;

static const row rows[] = {
    /* spin ranks            one_shot chunk   copy   direct  pull    to     vast     symmetric */
    {true, 2, {K(32), K(128), K(64), K(8), K(8), K(256), K(4096), K(2)}},
    {true, 1 << 30, {K(16), K(128), K(64), K(8), K(8), K(256), K(4096), K(2)}},
    {false, 1 << 30, {K(64), K(128), K(128), K(64), NEVER, NEVER, NEVER, K(16)}},
};

static size_t at_least(size_t bytes, size_t limit) { return bytes > limit ? bytes : limit; }

perigee__arena_limits perigee__arena_limits_for(bool spin, int n, perigee__arena_path path,
                                                bool cma) {
  const row *r = rows;
  while (r->spin != spin || r->max_ranks < n)
    r++;
  perigee__arena_limits l = r->at;
  l.two_shot_chunk = at_least(l.two_shot_chunk, K(16) * (size_t)n);
  if (spin && n > 4)
    l.one_shot_max = K(64) / (size_t)n;
  if (path == PERIGEE_ARENA_PATH_ONESHOT)
    l.one_shot_max = NEVER;
  if (path == PERIGEE_ARENA_PATH_TWOSHOT)
    l.one_shot_max = 0;
  if (path == PERIGEE_ARENA_PATH_CMA) {
    l.direct_min = l.pull_min = l.pull_all_min = 1;
    l.pull_max = l.symmetric_min = NEVER;
  } else if (path == PERIGEE_ARENA_PATH_SYMMETRIC) {
    l.direct_min = l.symmetric_min = 1;
  } else if (path != PERIGEE_ARENA_PATH_AUTO) {
    l.direct_min = l.pull_min = l.symmetric_min = NEVER;
  }
  if (!cma)
    l.pull_min = l.pull_all_min = NEVER;
  return l;
}
