/* Algorithms, what they can do, and which one the rules choose. Text: select_text.c. Shared memory: shm_table.c. */
#include "coll/select.h"

#include <limits.h>
#include <string.h>

#include "base/assert.h"

static const perigee__algo_info algos[] = {
#define XX(_NAME, _name, _ordered, _kinds, _help)                                                  \
  {PERIGEE_ALGO_##_NAME, #_name, PERIGEE_WHERE_TCP, _ordered, _kinds, _help},
    PERIGEE_ALGO_MAP(XX)
#undef XX
#define XX(_NAME, _name, _kinds, _help)                                                            \
  {PERIGEE_PATH_##_NAME, #_name, PERIGEE_WHERE_SHM, true, _kinds, _help},
        PERIGEE_PATH_MAP(XX)
#undef XX
};

/* KINDS: the kinds that have a choice. */
static const struct {
  perigee__coll_kind kind;
  const char *name;
  char letter;
  bool reduces;
} kinds[] = {
    {PERIGEE_COLL_ALLREDUCE, "allreduce", 'A', true},
    {PERIGEE_COLL_BROADCAST, "broadcast", 'B', false},
    {PERIGEE_COLL_REDUCE, "reduce", 'R', true},
    {PERIGEE_COLL_ALLGATHER, "allgather", 'G', false},
    {PERIGEE_COLL_GATHER, "gather", 'E', false},
    {PERIGEE_COLL_SCATTER, "scatter", 'C', false},
    {PERIGEE_COLL_REDUCE_SCATTER, "reduce_scatter", 'S', true},
    {PERIGEE_COLL_ALLTOALL, "alltoall", 'T', false},
};

/* Ends of ranges: measured between processes on one host over TCP, 2 cores, with 2, 4 and 8 ranks; beyond 16 ranks, from the counts of
 * steps and bytes. Where two are about as quick it is the one that moves fewer bytes: a network is slower than this. direct keeps n-1
 * connections busy, so it ends where that is many, or where so many messages of large data get in each other's way. hier: 2 ranks on
 * each of two hosts (network namespaces of one machine joined by veth, with and without a limit of 1 Gbit/s). */
const char perigee__select_builtin[] =
    "allreduce@4-:32k-:hier;"
    "allreduce@2:0-4k:bruck,4k-64k:oneshot,64k-:direct;"
    "allreduce@3:0-4k:bruck,4k-64k:oneshot,64k-256k:direct,256k-:ring;"
    "allreduce@4:0-4k:bruck,4k-32k:recdbl,32k-512k:halving,512k-:ring;"
    "allreduce@5-16:0-4k:bruck,4k-64k:recdbl,64k-256k:halving,256k-:ring;"
    "allreduce:0-256:bruck,256-32k:recdbl,32k-512k:halving,512k-:ring;"
    "broadcast:0-16k:bruck,16k-512k:binomial,512k-:chain;"
    "reduce@2:0-16k:bruck,16k-:chain;"
    "reduce@3-4:0-1k:bruck,1k-128k:direct,128k-:chain;"
    "reduce@5-16:0-1k:bruck,1k-32k:direct,32k-1m:binomial,1m-:chain;"
    "reduce:0-256:bruck,256-16k:binomial,16k-4m:halving,4m-:chain;"
    "allgather@2:0-4k:bruck,4k-:direct;"
    "allgather@3-4:0-16k:bruck,16k-64k:direct,64k-:ring;"
    "allgather@5-16:0-16k:bruck,16k-256k:direct,256k-:ring;"
    "allgather:0-2k:bruck,2k-:ring;"
    "reduce_scatter@2:0-1k:bruck,1k-:direct;"
    "reduce_scatter@3-4:0-4k:bruck,4k-256k:direct,256k-:ring;"
    "reduce_scatter@5-16:0-4k:bruck,4k-256k:direct,256k-:ring;"
    "reduce_scatter:0-256:bruck,256-:ring;"
    "alltoall@2-3:0-:direct;"
    "alltoall@4-16:0-4k:bruck,4k-:direct;"
    "alltoall:0-512:bruck,512-:direct";

const perigee__algo_info *perigee__algo_get(int algo) {
  return algo >= 0 && algo < PERIGEE_ALGO_COUNT ? &algos[algo] : NULL;
}

static int kind_row(perigee__coll_kind kind) {
  for (int i = 0; i < (int)PERIGEE_COUNT(kinds); i++)
    if (kinds[i].kind == kind)
      return i;
  return -1;
}

bool perigee__algo_does(perigee__algo algo, perigee__coll_kind kind) {
  int row = kind_row(kind);
  return row >= 0 && strchr(algos[algo].kinds, kinds[row].letter) != NULL;
}

const char *perigee__select_kind_name(perigee__coll_kind kind) {
  int row = kind_row(kind);
  return row >= 0 ? kinds[row].name : NULL;
}

int perigee__select_kind_named(const char *name, size_t len) {
  for (size_t i = 0; i < PERIGEE_COUNT(kinds); i++)
    if (strlen(kinds[i].name) == len && memcmp(kinds[i].name, name, len) == 0)
      return (int)kinds[i].kind;
  return -1;
}

bool perigee__select_reduces(perigee__coll_kind kind) {
  int row = kind_row(kind);
  return row >= 0 && kinds[row].reduces;
}

const perigee__select_rule *perigee__select_rule_for(const perigee__tuning *tuning,
                                                     perigee__coll_kind kind, int n, bool hosts,
                                                     uint64_t bytes, perigee__algo *algo_p) {
  const perigee__select *select = &tuning->select;
  for (int i = 0; i < select->nrules; i++) {
    const perigee__select_rule *rule = &select->rules[i];
    if (!perigee__rule_fits(rule, kind, PERIGEE_WHERE_TCP, n) || !perigee__rule_has(rule, bytes))
      continue;
    if (rule->algo == PERIGEE_ALGO_HIER && !hosts)
      continue;
    bool reorders =
        tuning->deterministic && perigee__select_reduces(kind) && !algos[rule->algo].ordered;
    *algo_p = reorders ? PERIGEE_ALGO_DIRECT : (perigee__algo)rule->algo;
    return rule;
  }
  PERIGEE_BUG("no rule for collective %d of %d ranks", (int)kind, n);
}

perigee__algo perigee__select_algo(const perigee__tuning *tuning, perigee__coll_kind kind, int n,
                                   bool hosts, uint64_t bytes) {
  perigee__algo algo;
  (void)perigee__select_rule_for(tuning, kind, n, hosts, bytes, &algo);
  return algo;
}

size_t perigee__select_limit(const perigee__tuning *tuning, perigee__coll_kind kind, int n,
                             perigee__algo algo) {
  const perigee__select *select = &tuning->select;
  uint64_t best = 0;
  bool found = perigee__select_algo(tuning, kind, n, false, UINT64_MAX) == algo;
  if (found)
    return SIZE_MAX;
  /* The choice changes only at ends of ranges: the answer is just below one. */
  for (int i = 0; i < select->nrules; i++) {
    if (select->rules[i].kind != (uint8_t)kind)
      continue;
    const uint64_t ends[] = {select->rules[i].min_bytes, select->rules[i].end_bytes};
    for (int e = 0; e < 2; e++)
      if (ends[e] > best + 1 && perigee__select_algo(tuning, kind, n, false, ends[e] - 1) == algo)
        best = ends[e] - 1;
  }
  return best < SIZE_MAX ? (size_t)best : SIZE_MAX;
}

size_t perigee__select_setting(const perigee__tuning *tuning, perigee__setting setting,
                               perigee__where where, int n, size_t fallback) {
  for (int i = 0; i < tuning->select.nrules; i++) {
    const perigee__select_rule *rule = &tuning->select.rules[i];
    if (rule->kind == PERIGEE_SELECT_SETTING && rule->algo == setting &&
        (rule->where & where) != 0 && n >= rule->min_ranks && n <= rule->max_ranks)
      return rule->min_bytes < SIZE_MAX / 2 ? (size_t)rule->min_bytes : SIZE_MAX / 2;
  }
  return fallback;
}
