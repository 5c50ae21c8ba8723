/* The language of rules (select.h), read and written. Names in errors are the words as written. */
#include "coll/select.h"

#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "base/attr.h"

static const struct {
  const char *name;
  perigee__where where;
} places[] = {{"tcp", PERIGEE_WHERE_TCP},
              {"shm", PERIGEE_WHERE_SHM},
              {"spin", PERIGEE_WHERE_SPIN},
              {"park", PERIGEE_WHERE_PARK},
              {"quick", PERIGEE_WHERE_QUICK},
              {"slow", PERIGEE_WHERE_SLOW},
              /* only written: what two words say together */
              {"spin/quick", PERIGEE_WHERE_SPIN_QUICK},
              {"spin/slow", PERIGEE_WHERE_SPIN_SLOW},
              {"park/quick", PERIGEE_WHERE_PARK_QUICK},
              {"park/slow", PERIGEE_WHERE_PARK_SLOW}};

static const struct {
  const char *name;
  uint64_t least;
} settings[] = {
#define XX(_NAME, _name, _least) {#_name, _least},
    PERIGEE_SETTING_MAP(XX)
#undef XX
};

/* ---- reading ----------------------------------------------------------------------------------- */

typedef struct reader {
  const char *at;
  const perigee__select_origin *origin;
} reader;

/* "PERIGEE_SELECT" or "file:12". */
static const char *where_read(const reader *r, char *buf, size_t size) {
  if (r->origin->line > 0)
    snprintf(buf, size, "%.140s:%d", r->origin->name, r->origin->line);
  else
    snprintf(buf, size, "%.150s", r->origin->name);
  return buf;
}

static char peek(reader *r) {
  while (*r->at == ' ' || *r->at == '\t')
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
  char from[160];
  return perigee__fail(PERIGEE_EINVAL, "%s: %s at '%.24s'", where_read(r, from, sizeof(from)), what,
                       *r->at != '\0' ? r->at : "the end");
}

/* An algorithm of the kind that runs in all of the places of the rule. */
static int parse_algo(reader *r, perigee__select_rule *rule) {
  const char *name;
  size_t len = word(r, &name);
  char list[96] = "", from[160];
  for (int i = 0; i < PERIGEE_ALGO_COUNT; i++) {
    const perigee__algo_info *info = perigee__algo_get(i);
    if ((rule->where & (uint8_t)~info->where) != 0 ||
        !perigee__algo_does((perigee__algo)i, (perigee__coll_kind)rule->kind))
      continue;
    if (strlen(info->name) == len && memcmp(info->name, name, len) == 0) {
      rule->algo = (uint8_t)i;
      return 0;
    }
    size_t used = strlen(list);
    snprintf(list + used, sizeof(list) - used, "%s%s", used > 0 ? ", " : "", info->name);
  }
  return perigee__fail(PERIGEE_EINVAL, "%s: '%.*s' is no algorithm of %s%s (%s)",
                       where_read(r, from, sizeof(from)), (int)len, name,
                       perigee__select_kind_name((perigee__coll_kind)rule->kind),
                       rule->where == PERIGEE_WHERE_TCP ? "" : " in shared memory",
                       list[0] != '\0' ? list : "it has no choice");
}

static int append(reader *r, perigee__select *select, perigee__select_rule rule) {
  char from[160];
  if (select->nrules == PERIGEE_SELECT_RULES)
    return perigee__fail(PERIGEE_ELIMIT, "%s: more than %d ranges in all",
                         where_read(r, from, sizeof(from)), PERIGEE_SELECT_RULES);
  rule.source = (uint8_t)r->origin->source;
  rule.line = r->origin->line;
  select->rules[select->nrules++] = rule;
  return 0;
}

/* One "range : algorithm" of a rule whose kind, place and ranks are known. */
static int parse_range(reader *r, perigee__select *select, perigee__select_rule rule) {
  if (!span(r, false, &rule.min_bytes, &rule.end_bytes) || rule.min_bytes == rule.end_bytes)
    return bad(r, "expected bytes as 'from-to' or 'from-'");
  if (!take(r, ':'))
    return bad(r, "expected ':' and an algorithm");
  PERIGEE_TRY(parse_algo(r, &rule));
  return append(r, select, rule);
}

/* *where_p: what the words before this one have left. */
static int parse_place(reader *r, uint8_t *where_p) {
  const char *name;
  char from[160];
  size_t len = word(r, &name);
  for (size_t i = 0; i < PERIGEE_COUNT(places); i++)
    if (strlen(places[i].name) == len && memcmp(places[i].name, name, len) == 0) {
      *where_p &= (uint8_t)places[i].where;
      if (*where_p != 0)
        return 0;
      return perigee__fail(PERIGEE_EINVAL, "%s: nowhere is '%.*s' and what stands before it",
                           where_read(r, from, sizeof(from)), (int)len, name);
    }
  return perigee__fail(PERIGEE_EINVAL, "%s: '%.*s' is no place (tcp, shm, spin, park, quick, slow)",
                       where_read(r, from, sizeof(from)), (int)len, name);
}

/* { "/" where | "@" ranks } */
static int parse_conditions(reader *r, perigee__select_rule *rule) {
  uint8_t where = PERIGEE_WHERE_TCP | PERIGEE_WHERE_SHM;
  for (;;) {
    uint64_t lo = 0, hi = UINT64_MAX;
    if (take(r, '/')) {
      PERIGEE_TRY(parse_place(r, &where));
      rule->where = where;
    } else if (take(r, '@')) {
      if (!span(r, true, &lo, &hi))
        return bad(r, "expected ranks as 'n', 'from-to' or 'from-'");
      rule->min_ranks = lo > INT_MAX ? INT_MAX : (int)lo;
      rule->max_ranks = hi > INT_MAX ? INT_MAX : (int)hi;
    } else {
      return 0;
    }
  }
}

static int parse_setting(reader *r, perigee__select *select, int setting) {
  char from[160];
  perigee__select_rule rule = {.kind = PERIGEE_SELECT_SETTING,
                               .algo = (uint8_t)setting,
                               .where = PERIGEE_WHERE_TCP | PERIGEE_WHERE_SHM,
                               .max_ranks = INT_MAX};
  PERIGEE_TRY(parse_conditions(r, &rule));
  if (!take(r, '=') || !number(r, &rule.min_bytes))
    return bad(r, "expected '=' and bytes");
  if (rule.min_bytes < settings[setting].least || rule.min_bytes > UINT64_C(1) << 30)
    return perigee__fail(PERIGEE_EINVAL, "%s: %s=%" PRIu64 " is not from %" PRIu64 " to 1g",
                         where_read(r, from, sizeof(from)), settings[setting].name, rule.min_bytes,
                         settings[setting].least);
  rule.end_bytes = UINT64_MAX;
  return append(r, select, rule);
}

/* What follows the kinds of a rule, for one of them. */
static int parse_tail(reader *r, perigee__select *select, int kind) {
  perigee__select_rule rule = {
      .kind = (uint8_t)kind, .where = PERIGEE_WHERE_TCP, .max_ranks = INT_MAX};
  PERIGEE_TRY(parse_conditions(r, &rule));
  if (!take(r, ':'))
    return bad(r, "expected ':' and bytes");
  do
    PERIGEE_TRY(parse_range(r, select, rule));
  while (take(r, ','));
  return 0;
}

static int parse_rule(reader *r, perigee__select *select) {
  int named[PERIGEE_COLL_ALLTOALL + 1], nkinds = 0;
  const char *name;
  char from[160];
  do {
    size_t len = word(r, &name);
    for (int i = 0; i < PERIGEE_SETTING_COUNT && nkinds == 0; i++)
      if (strlen(settings[i].name) == len && memcmp(settings[i].name, name, len) == 0)
        return parse_setting(r, select, i);
    int kind = perigee__select_kind_named(name, len);
    if (kind < 0 || nkinds == (int)PERIGEE_COUNT(named))
      return perigee__fail(PERIGEE_EINVAL,
                           "%s: '%.*s' is no collective with a choice (allreduce, broadcast, "
                           "reduce, allgather, gather, scatter, reduce_scatter, alltoall)",
                           where_read(r, from, sizeof(from)), (int)len, name);
    named[nkinds++] = kind;
  } while (take(r, '+'));
  reader tail = *r;
  for (int i = 0; i < nkinds; i++) {
    *r = tail;
    PERIGEE_TRY(parse_tail(r, select, named[i]));
  }
  return 0;
}

int perigee__select_add(perigee__select *select, const char *text,
                        const perigee__select_origin *origin) {
  reader r = {text, origin};
  while (peek(&r) != '\0') {
    PERIGEE_TRY(parse_rule(&r, select));
    if (!take(&r, ';') && peek(&r) != '\0')
      return bad(&r, "expected ',' or ';'");
  }
  return 0;
}

int perigee__select_parse(perigee__select *select, const char *text) {
  static const perigee__select_origin env = {PERIGEE_RULE_ENV, "PERIGEE_SELECT", 0};
  return perigee__select_add(select, text, &env);
}

/* ---- writing ----------------------------------------------------------------------------------- */

static void format_bytes(uint64_t bytes, char *buf, size_t size) {
  static const char units[] = "kmg";
  int unit = -1;
  while (unit < 2 && bytes > 0 && bytes % 1024 == 0) {
    bytes /= 1024;
    unit++;
  }
  snprintf(buf, size, "%" PRIu64 "%.1s", bytes, unit >= 0 ? units + unit : "");
}

static const char *place_name(uint8_t where) {
  for (size_t i = 0; i < PERIGEE_COUNT(places); i++)
    if (where == (uint8_t)places[i].where)
      return places[i].name;
  return NULL;
}

void perigee__rule_text(const perigee__select_rule *rule, char *buf, size_t size) {
  bool setting = rule->kind == PERIGEE_SELECT_SETTING;
  char conditions[48] = "", lo[32], hi[32] = "";
  const char *place = place_name(rule->where);
  if (place != NULL && rule->where != PERIGEE_WHERE_TCP)
    snprintf(conditions, sizeof(conditions), "/%s", place);
  else if (place != NULL && setting)
    snprintf(conditions, sizeof(conditions), "/tcp");
  size_t used = strlen(conditions), room = sizeof(conditions) - used;
  if (rule->max_ranks != INT_MAX)
    snprintf(conditions + used, room, "@%d-%d", rule->min_ranks, rule->max_ranks);
  else if (rule->min_ranks > 0)
    snprintf(conditions + used, room, "@%d-", rule->min_ranks);
  format_bytes(rule->min_bytes, lo, sizeof(lo));
  if (rule->end_bytes != UINT64_MAX)
    format_bytes(rule->end_bytes, hi, sizeof(hi));
  if (setting)
    snprintf(buf, size, "%s%s=%s", settings[rule->algo].name, conditions, lo);
  else
    snprintf(buf, size, "%s%s:%s-%s:%s", perigee__select_kind_name((perigee__coll_kind)rule->kind),
             conditions, lo, hi, perigee__algo_get(rule->algo)->name);
}

size_t perigee__select_format(const perigee__select *select, char *buf, size_t size) {
  size_t used = 0;
  if (size > 0)
    buf[0] = '\0';
  for (int i = 0; i < select->nrules; i++) {
    char text[160];
    perigee__rule_text(&select->rules[i], text, sizeof(text));
    size_t room = used < size ? size - used : 0;
    used += (size_t)snprintf(room > 0 ? buf + used : NULL, room, "%s%s", i > 0 ? ";" : "", text);
  }
  return used;
}
