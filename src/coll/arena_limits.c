/*
 * Where one path of the shared-memory engine ends and the next begins: one table, measured on 2 cores (Xeon, 2 MiB L2 each, shared L3).
 *
 *   one_shot   allreduce: everybody reduces everything (spin), or the last to arrive does (park), up to here; two-shot beyond
 *   chunk      of a two-shot pipeline; at least 16 KiB for each rank
 *   copy       chunk of what is copied through buffers (broadcast, gather, scatter, alltoall)
 *   direct     blocks from here on are copied once, from where they are: in symmetric memory, in alltoall and scatter by system call too
 *   pull       inputs of a reduce by its root alone are read where they are, by system call, from here to the next; then copying and
 *              reducing at the same time wins, until memory is the limit
 *   vast       from here on (caches are too small) that and allreduce read inputs where they are, with a core for each rank
 *   symmetric  reductions in symmetric memory, from here on
 *   past       what a rank copies into its outputs goes past the caches (tensor/copy.h) when its tensors have this many bytes
 *   broadcast, gather, allgather    blocks of these sizes are read where they are by system call
 *
 * The last three, us for blocks of a size, by system call : through buffers. A core that reads from the other's cache what that has just
 * copied is quicker, from some MiB on, than one that reads memory by itself; with more ranks than cores a lender waits too long.
 *   broadcast  2 ranks 64K 3.4:11, 1M 51:82, 2M 169:183, 4M 352:326, 16M 1493:1265, 32M 4063:2622; 4 ranks 64K 23:12, 256K 77:30, 1M
 *              300:135; 8 ranks 64K 35:26, 256K 159:57, 1M 459:300, 16M 10032:7713
 *   gather     2 ranks 256K 15:28, 512K 44:54, 1M 159:132, 16M 3061:2440, 32M 10286:7571; 4 ranks 64K 41:19, 256K 103:69, 1M 396:403, 4M
 *              1385:1657; 8 ranks 256K 290:231, 1M 852:1055, 4M 4641:6100
 *   allgather  2 ranks 64K 6:9, 1M 155:198, 16M 4091:4368; 4 ranks 64K 29:28, 256K 134:146, 1M 622:675; 8 ranks 64K 183:116, 256K 734:535, 1M
 *              3233:2649, 16M 95601:75129
 */
#include "coll/arena_impl.h"

#define NEVER SIZE_MAX
#define K(_n) ((size_t)(_n) << 10)
#ifdef PERIGEE_HOSTILE
#define PAST 256
#else
#define PAST K(56 << 10)
#endif
#define ALWAYS SIZE_MAX /* to there */

typedef struct row {
  bool spin;
  int max_ranks; /* rows of one mode from few ranks to many */
  perigee__arena_limits at;
} row;

/* clang-format off */
static const row rows[] = {
    /* spin ranks      one_shot chunk   copy    direct pull   to      vast     symmetric past
                       broadcast         gather            allgather */
    {true, 2,        {K(32), K(128), K(64),  K(8),  K(8),  K(256), K(4096), K(2),  PAST,
                      {K(8), K(3072)},  {K(8), K(768)},   {K(8), ALWAYS}}},
    {true, 1 << 30,  {K(16), K(128), K(64),  K(8),  K(8),  K(256), K(4096), K(2),  PAST,
                      {K(8), K(3072)},  {K(8), ALWAYS},   {K(8), ALWAYS}}},
    {false, 4,       {K(64), K(128), K(128), K(64), NEVER, NEVER,  NEVER,   K(16), PAST,
                      {NEVER, 0},       {K(768), ALWAYS}, {K(64), ALWAYS}}},
    {false, 1 << 30, {K(64), K(128), K(128), K(64), NEVER, NEVER,  NEVER,   K(16), PAST,
                      {NEVER, 0},       {K(768), ALWAYS}, {NEVER, 0}}},
};
/* clang-format on */

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
    l.broadcast = l.gather = l.allgather = (perigee__arena_range){1, ALWAYS};
  } else if (path == PERIGEE_ARENA_PATH_SYMMETRIC) {
    l.direct_min = l.symmetric_min = 1;
    l.broadcast = l.gather = l.allgather = (perigee__arena_range){1, ALWAYS};
  } else if (path != PERIGEE_ARENA_PATH_AUTO) {
    l.direct_min = l.pull_min = l.symmetric_min = NEVER;
  }
  if (!cma)
    l.pull_min = l.pull_all_min = NEVER;
  if (!cma || l.direct_min == NEVER)
    l.broadcast = l.gather = l.allgather = (perigee__arena_range){NEVER, 0};
  return l;
}
