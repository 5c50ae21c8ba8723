#include "coll/select.h"

#include <inttypes.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "base/assert.h"
#include "base/env.h"
#include "base/log.h"

static const perigee__algo_info algos[] = {
#define XX(_NAME, _name, _ordered, _kinds, _help)                                                  \
  {PERIGEE_ALGO_##_NAME, #_name, _ordered, _kinds, _help},
    PERIGEE_ALGO_MAP(XX)
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
    {PERIGEE_COLL_REDUCE_SCATTER, "reduce_scatter", 'S', true},
};

/* Ends of ranges: measured between processes on one host over TCP, 2 cores, with 2, 4 and 8 ranks; beyond 16 ranks, from the counts of
 * steps and bytes. direct keeps n-1 connections busy, so it ends where that is many. hier: 2 ranks on each of two hosts (network
 * namespaces of one machine joined by veth). */
const char perigee__select_builtin[] = "allreduce@4-:2m-:hier;"
                                       "allreduce@2:0-4k:bruck,4k-512k:oneshot,512k-:direct;"
                                       "allreduce@3-4:0-4k:bruck,4k-64k:oneshot,64k-:direct;"
                                       "allreduce@5-16:0-2k:bruck,2k-32k:recdbl,32k-:direct;"
                                       "allreduce:0-256:bruck,256-32k:recdbl,32k-:ring;"
                                       "broadcast:0-16k:bruck,16k-512k:binomial,512k-:chain;"
                                       "reduce@2:0-16k:bruck,16k-:chain;"
                                       "reduce@3-16:0-1k:bruck,1k-8k:binomial,8k-:chain;"
                                       "reduce:0-256:bruck,256-16k:binomial,16k-:chain;"
                                       "allgather@2-16:0-4k:bruck,4k-:direct;"
                                       "allgather:0-2k:bruck,2k-:ring;"
                                       "reduce_scatter@2-16:0-4k:bruck,4k-:direct;"
                                       "reduce_scatter:0-256:bruck,256-:ring";

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

/* ---- text -------------------------------------------------------------------------------------- */

/* A reader over the text. Names in errors are the words as written. */
typedef struct reader {
  const char *at;
} reader;

static char peek(reader *r) {
  while (*r->at == ' ')
    r->at++;
  return *r->at;
}

static bool take(reader *r, char c) {
  peek(r);
  if (*r->at != c)
    return false;
  r->at++;
  return true;
}

static size_t word(reader *r, const char **word_p) {
  peek(r);
  *word_p = r->at;
  while ((*r->at >= 'a' && *r->at <= 'z') || *r->at == '_')
    r->at++;
  return (size_t)(r->at - *word_p);
}

static bool number(reader *r, uint64_t *value_p) {
  uint64_t value = 0;
  peek(r);
  const char *start = r->at;
  for (; *r->at >= '0' && *r->at <= '9'; r->at++) {
    if (value > (UINT64_MAX - 9) / 10)
      return false;
    value = value * 10 + (uint64_t)(*r->at - '0');
  }
  if (r->at == start)
    return false;
  int shift = *r->at == 'k' ? 10 : *r->at == 'm' ? 20 : *r->at == 'g' ? 30 : 0;
  if (shift > 0)
    r->at++;
  if (value > UINT64_MAX >> shift)
    return false;
  *value_p = value << shift;
  return true;
}

/* lo "-" [ hi ]; a single number is lo - lo when one is true. */
static bool span(reader *r, bool one, uint64_t *lo_p, uint64_t *hi_p) {
  if (!number(r, lo_p))
    return false;
  if (!take(r, '-')) {
    *hi_p = *lo_p;
    return one;
  }
  if (!number(r, hi_p))
    *hi_p = UINT64_MAX;
  return *lo_p <= *hi_p;
}

static int bad(const reader *r, const char *what) {
  return perigee__fail(PERIGEE_EINVAL, "PERIGEE_SELECT: %s at '%.24s'", what,
                       *r->at != '\0' ? r->at : "the end");
}

static int parse_algo(reader *r, int row, uint8_t *algo_p) {
  const char *name;
  size_t len = word(r, &name);
  char list[96] = "";
  for (int i = 0; i < PERIGEE_ALGO_COUNT; i++) {
    if (strchr(algos[i].kinds, kinds[row].letter) == NULL)
      continue;
    if (strlen(algos[i].name) == len && memcmp(algos[i].name, name, len) == 0) {
      *algo_p = (uint8_t)i;
      return 0;
    }
    size_t used = strlen(list);
    snprintf(list + used, sizeof(list) - used, "%s%s", used > 0 ? ", " : "", algos[i].name);
  }
  return perigee__fail(PERIGEE_EINVAL, "PERIGEE_SELECT: '%.*s' is no algorithm of %s (%s)",
                       (int)len, name, kinds[row].name, list);
}

/* One "range : algorithm" of a rule whose kind and ranks are known. */
static int parse_range(reader *r, perigee__select *select, int row, perigee__select_rule rule) {
  if (!span(r, false, &rule.min_bytes, &rule.end_bytes) || rule.min_bytes == rule.end_bytes)
    return bad(r, "expected bytes as 'from-to' or 'from-'");
  if (!take(r, ':'))
    return bad(r, "expected ':' and an algorithm");
  PERIGEE_TRY(parse_algo(r, row, &rule.algo));
  if (select->nrules == PERIGEE_SELECT_RULES)
    return perigee__fail(PERIGEE_ELIMIT, "PERIGEE_SELECT: more than %d ranges",
                         PERIGEE_SELECT_RULES);
  select->rules[select->nrules++] = rule;
  return 0;
}

static int parse_rule(reader *r, perigee__select *select) {
  const char *name;
  size_t len = word(r, &name);
  int row = (int)PERIGEE_COUNT(kinds) - 1;
  while (row >= 0 && (strlen(kinds[row].name) != len || memcmp(kinds[row].name, name, len) != 0))
    row--;
  if (row < 0)
    return perigee__fail(PERIGEE_EINVAL,
                         "PERIGEE_SELECT: '%.*s' is no collective with a choice (allreduce, "
                         "broadcast, reduce, allgather, reduce_scatter)",
                         (int)len, name);
  uint64_t lo = 0, hi = UINT64_MAX;
  if (take(r, '@') && !span(r, true, &lo, &hi))
    return bad(r, "expected ranks as 'n', 'from-to' or 'from-'");
  if (!take(r, ':'))
    return bad(r, "expected ':' and bytes");
  perigee__select_rule rule = {.kind = (uint8_t)kinds[row].kind,
                               .min_ranks = lo > INT_MAX ? INT_MAX : (int)lo,
                               .max_ranks = hi > INT_MAX ? INT_MAX : (int)hi};
  do
    PERIGEE_TRY(parse_range(r, select, row, rule));
  while (take(r, ','));
  return 0;
}

int perigee__select_parse(perigee__select *select, const char *text) {
  reader r = {text};
  while (peek(&r) != '\0') {
    PERIGEE_TRY(parse_rule(&r, select));
    if (!take(&r, ';') && peek(&r) != '\0')
      return bad(&r, "expected ',' or ';'");
  }
  return 0;
}

static void format_bytes(uint64_t bytes, char *buf, size_t size) {
  static const char units[] = "kmg";
  int unit = -1;
  while (unit < 2 && bytes > 0 && bytes % 1024 == 0) {
    bytes /= 1024;
    unit++;
  }
  snprintf(buf, size, "%" PRIu64 "%.1s", bytes, unit >= 0 ? units + unit : "");
}

size_t perigee__select_format(const perigee__select *select, char *buf, size_t size) {
  size_t used = 0;
  if (size > 0)
    buf[0] = '\0';
  for (int i = 0; i < select->nrules; i++) {
    const perigee__select_rule *rule = &select->rules[i];
    char ranks[32] = "", lo[32], hi[32] = "";
    if (rule->max_ranks != INT_MAX)
      snprintf(ranks, sizeof(ranks), "@%d-%d", rule->min_ranks, rule->max_ranks);
    else if (rule->min_ranks > 0)
      snprintf(ranks, sizeof(ranks), "@%d-", rule->min_ranks);
    format_bytes(rule->min_bytes, lo, sizeof(lo));
    if (rule->end_bytes != UINT64_MAX)
      format_bytes(rule->end_bytes, hi, sizeof(hi));
    size_t room = used < size ? size - used : 0;
    used += (size_t)snprintf(room > 0 ? buf + used : NULL, room, "%s%s%s:%s-%s:%s",
                             i > 0 ? ";" : "", kinds[kind_row((perigee__coll_kind)rule->kind)].name,
                             ranks, lo, hi, algos[rule->algo].name);
  }
  return used;
}

/* ---- choice ------------------------------------------------------------------------------------ */

perigee__algo perigee__select_algo(const perigee__tuning *tuning, perigee__coll_kind kind, int n,
                                   bool hosts, uint64_t bytes) {
  const perigee__select *select = &tuning->select;
  for (int i = 0; i < select->nrules; i++) {
    const perigee__select_rule *rule = &select->rules[i];
    if (rule->kind != (uint8_t)kind || n < rule->min_ranks || n > rule->max_ranks ||
        bytes < rule->min_bytes || (bytes >= rule->end_bytes && rule->end_bytes != UINT64_MAX))
      continue;
    if (rule->algo == PERIGEE_ALGO_HIER && !hosts)
      continue;
    if (tuning->deterministic && kinds[kind_row(kind)].reduces && !algos[rule->algo].ordered)
      return PERIGEE_ALGO_DIRECT;
    return (perigee__algo)rule->algo;
  }
  PERIGEE_BUG("no rule for collective %d of %d ranks", (int)kind, n);
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
    const uint64_t ends[] = {select->rules[i].min_bytes, select->rules[i].end_bytes};
    for (int e = 0; e < 2; e++)
      if (ends[e] > best + 1 && perigee__select_algo(tuning, kind, n, false, ends[e] - 1) == algo)
        best = ends[e] - 1;
  }
  return best < SIZE_MAX ? (size_t)best : SIZE_MAX;
}

/* ---- what this process uses -------------------------------------------------------------------- */

static pthread_once_t once = PTHREAD_ONCE_INIT;
static perigee__tuning from_env; /* written under once */
/* Release in _set, acquire in _get: who sees the pointer sees what it points to. */
static const perigee__tuning *_Atomic chosen;

int perigee__tuning_read(perigee__tuning *tuning_p) {
  perigee__tuning t = {.segment = (size_t)perigee__env_int("PERIGEE_SEGMENT", 16, 1 << 26),
                       .deterministic = perigee__env_int("PERIGEE_DETERMINISTIC", 0, 1) != 0};
#ifdef PERIGEE_HOSTILE
  t.segment_max_elems = 3;
#endif
  PERIGEE_TRY(perigee__select_parse(&t.select, perigee__env("PERIGEE_SELECT")));
  PERIGEE_TRY(perigee__select_parse(&t.select, perigee__select_builtin));
  *tuning_p = t;
  return 0;
}

static void read_once(void) {
  if (perigee__tuning_read(&from_env) == 0)
    return;
  perigee__log(PERIGEE_LOG_WARN, "%s: using the built-in rules", perigee__last_error()->message);
  from_env = (perigee__tuning){.segment = 65536};
  int rc = perigee__select_parse(&from_env.select, perigee__select_builtin);
  PERIGEE_CHECK(rc == 0);
}

const perigee__tuning *perigee__tuning_get(void) {
  const perigee__tuning *tuning = atomic_load_explicit(&chosen, memory_order_acquire);
  if (tuning != NULL)
    return tuning;
  pthread_once(&once, read_once);
  return &from_env;
}

void perigee__tuning_set(const perigee__tuning *tuning) {
  atomic_store_explicit(&chosen, tuning, memory_order_release);
}
