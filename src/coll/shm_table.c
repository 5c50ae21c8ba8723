#include "coll/shm_table.h"

#include <limits.h>
#include <string.h>

#include "base/attr.h"
#include "coll/arena_impl.h"
#include "tensor/copy.h"

/* "tcp" is seen by who makes the arena. */
static const char *const path_names[PERIGEE_ARENA_PATH_COUNT] = {"auto",    "inline", "oneshot",
                                                                 "twoshot", "cma",    "symmetric"};

const char *perigee__arena_path_name(perigee__arena_path path) {
  return path < PERIGEE_ARENA_PATH_COUNT ? path_names[path] : NULL;
}

size_t perigee__shm_inline_max(perigee__coll_kind kind, int n) {
  size_t line = PERIGEE_ARENA_INLINE;
  switch (kind) {
  case PERIGEE_COLL_SCATTER:
  case PERIGEE_COLL_ALLTOALL:
    return line / (size_t)n;
  case PERIGEE_COLL_REDUCE_SCATTER:
    return line - sizeof(uint64_t); /* behind the count */
  default:
    return line;
  }
}

/* ---- making ------------------------------------------------------------------------------------ */

bool perigee__shm_possible(const perigee__shm_facts *facts, int algo) {
  bool symmetric =
      facts->path == PERIGEE_ARENA_PATH_AUTO || facts->path == PERIGEE_ARENA_PATH_SYMMETRIC;
  bool cma = facts->cma && (symmetric || facts->path == PERIGEE_ARENA_PATH_CMA);
  switch (algo) {
  case PERIGEE_PATH_SYMMETRIC:
    return symmetric;
  case PERIGEE_PATH_CMA:
    return cma;
  default:
    return true;
  }
}

static void put(perigee__shm_table *t, perigee__coll_kind kind, const perigee__select_rule *rule) {
  if (!perigee__shm_possible(&t->facts, rule->algo))
    return;
  perigee__shm_entry e = {rule->min_bytes, rule->end_bytes, rule->algo, rule};
  if (e.algo == PERIGEE_PATH_ONESHOT && e.end_bytes > t->facts.buffer_bytes)
    e.end_bytes = t->facts.buffer_bytes + 1;
  t->entries[t->first[kind + 1]++] = e;
}

/* PERIGEE_PATH as a rule that goes before all others. */
static const perigee__select_rule *forced(perigee__arena_path path, perigee__coll_kind kind) {
#define RULE(_algo)                                                                                \
  { .algo = PERIGEE_PATH_##_algo, .source = PERIGEE_RULE_PATH, .end_bytes = UINT64_MAX }
  static const perigee__select_rule oneshot = RULE(ONESHOT), twoshot = RULE(TWOSHOT),
                                    cma = RULE(CMA), symmetric = RULE(SYMMETRIC);
#undef RULE
  const perigee__select_rule *rule = NULL;
  if (path == PERIGEE_ARENA_PATH_ONESHOT)
    rule = &oneshot;
  else if (path == PERIGEE_ARENA_PATH_TWOSHOT)
    rule = &twoshot;
  else if (path == PERIGEE_ARENA_PATH_CMA)
    rule = &cma;
  else if (path == PERIGEE_ARENA_PATH_SYMMETRIC)
    rule = &symmetric;
  return rule != NULL && perigee__algo_does((perigee__algo)rule->algo, kind) ? rule : NULL;
}

/* A rule that a kind can always go by. */
static const perigee__select_rule *last_resort(perigee__coll_kind kind) {
  static const perigee__select_rule twoshot = {.algo = PERIGEE_PATH_TWOSHOT,
                                               .end_bytes = UINT64_MAX},
                                    buffers = {.algo = PERIGEE_PATH_BUFFERS,
                                               .end_bytes = UINT64_MAX};
  return kind == PERIGEE_COLL_ALLREDUCE || kind == PERIGEE_COLL_REDUCE ? &twoshot : &buffers;
}

static size_t at_most(size_t bytes, size_t limit) { return bytes < limit ? bytes : limit; }

static void set_chunks(const perigee__tuning *tuning, perigee__shm_table *t) {
  const perigee__shm_facts *f = &t->facts;
  perigee__where where = perigee__shm_where(f);
  size_t two = perigee__select_setting(tuning, PERIGEE_SETTING_TWOSHOT_CHUNK, where, f->n, 131072);
  size_t least = (size_t)f->n << 14;
  size_t copy = perigee__select_setting(tuning, PERIGEE_SETTING_COPY_CHUNK, where, f->n, 65536);
  t->two_shot_chunk = at_most(two > least ? two : least, f->buffer_bytes);
  t->past_min = perigee__select_setting(tuning, PERIGEE_SETTING_PAST_CACHES, where, f->n,
                                        perigee__copy_past_from());
  t->copy_chunk = at_most(copy / PERIGEE_CACHE_LINE * PERIGEE_CACHE_LINE, f->buffer_bytes);
}

void perigee__shm_table_make(const perigee__tuning *tuning, const perigee__shm_facts *facts,
                             perigee__shm_table *t) {
  perigee__where where = perigee__shm_where(facts);
  t->facts = *facts;
  t->symmetric = perigee__shm_possible(facts, PERIGEE_PATH_SYMMETRIC);
  set_chunks(tuning, t);
  t->first[0] = 0;
  for (int k = 0; k < PERIGEE_SHM_KINDS; k++) {
    perigee__coll_kind kind = (perigee__coll_kind)k;
    const perigee__select_rule *first = forced(facts->path, kind);
    t->first[k + 1] = t->first[k];
    if (first != NULL)
      put(t, kind, first);
    for (int i = 0; i < tuning->select.nrules; i++)
      if (perigee__rule_fits(&tuning->select.rules[i], kind, where, facts->n))
        put(t, kind, &tuning->select.rules[i]);
    put(t, kind, last_resort(kind));
  }
}
