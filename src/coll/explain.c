#include "coll/explain.h"

#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "coll/net.h"

int perigee__explain_kind(int op) {
  switch (op) {
  case PERIGEE_OP_ALLREDUCE:
  case PERIGEE_OP_ALLREDUCE_COALESCED:
    return PERIGEE_COLL_ALLREDUCE;
  case PERIGEE_OP_BROADCAST:
    return PERIGEE_COLL_BROADCAST;
  case PERIGEE_OP_REDUCE:
    return PERIGEE_COLL_REDUCE;
  case PERIGEE_OP_ALLGATHER:
  case PERIGEE_OP_ALLGATHER_INTO_TENSOR:
  case PERIGEE_OP_ALLGATHER_INTO_TENSOR_COALESCED:
    return PERIGEE_COLL_ALLGATHER;
  case PERIGEE_OP_GATHER:
    return PERIGEE_COLL_GATHER;
  case PERIGEE_OP_SCATTER:
    return PERIGEE_COLL_SCATTER;
  case PERIGEE_OP_REDUCE_SCATTER:
  case PERIGEE_OP_REDUCE_SCATTER_TENSOR:
  case PERIGEE_OP_REDUCE_SCATTER_TENSOR_COALESCED:
    return PERIGEE_COLL_REDUCE_SCATTER;
  case PERIGEE_OP_ALLTOALL:
  case PERIGEE_OP_ALLTOALL_BASE:
    return PERIGEE_COLL_ALLTOALL;
  default:
    return -1;
  }
}

/* ---- one decision ------------------------------------------------------------------------------ */

/* rule NULL: it is not a rule that decides. */
typedef struct decision {
  const char *path;
  const perigee__select_rule *rule;
  const char *note; /* what the rule alone does not say, or "" */
} decision;

static bool same(const decision *a, const decision *b) {
  return a->rule == b->rule && a->path == b->path && a->note == b->note;
}

static decision decide_tcp(const perigee__place_facts *f, perigee__coll_kind kind, uint64_t bytes) {
  decision d = {"exchange", NULL, "every block goes straight to its rank"};
  if (kind == PERIGEE_COLL_GATHER || kind == PERIGEE_COLL_SCATTER)
    return d;
  perigee__algo algo;
  bool by_block = kind == PERIGEE_COLL_ALLGATHER || kind == PERIGEE_COLL_ALLTOALL;
  if (kind == PERIGEE_COLL_ALLGATHER)
    algo = perigee__net_allgather_way(f->tuning, f->n, (size_t)bytes, &d.rule);
  else if (kind == PERIGEE_COLL_ALLTOALL)
    algo = perigee__net_alltoall_way(f->tuning, f->n, (size_t)bytes, &d.rule);
  else
    d.rule = perigee__select_rule_for(f->tuning, kind, f->n,
                                      f->hosts && kind == PERIGEE_COLL_ALLREDUCE, bytes, &algo);
  d.path = perigee__algo_get((int)algo)->name;
  d.note = (int)algo == (int)d.rule->algo ? ""
           : by_block                     ? ", whose notes are not for blocks of this size"
                      : ", which does not sum in rank order (PERIGEE_DETERMINISTIC)";
  return d;
}

static decision decide_shm(const perigee__place_facts *f, perigee__coll_kind kind, uint64_t bytes,
                           bool symmetric) {
  const perigee__shm_table *t = f->table;
  if (bytes <= perigee__shm_inline_max(kind, f->n))
    return (decision){"inline", NULL, "it fits into the line in which ranks meet"};
  const perigee__shm_entry *e = perigee__shm_entry_for(t, kind, symmetric && t->symmetric, bytes);
  return (decision){perigee__algo_get(e->algo)->name, e->rule, ""};
}

static decision decide(const perigee__place_facts *f, perigee__coll_kind kind, uint64_t bytes,
                       bool symmetric) {
  if (f->n == 1)
    return (decision){"copy", NULL, "there are no other ranks"};
  return f->table != NULL ? decide_shm(f, kind, bytes, symmetric) : decide_tcp(f, kind, bytes);
}

/* ---- where it holds ---------------------------------------------------------------------------- */

typedef struct window {
  uint64_t at, from, end; /* from <= at < end */
} window;

static void bound(window *w, uint64_t boundary) {
  if (boundary <= w->at && boundary > w->from)
    w->from = boundary;
  if (boundary > w->at && boundary < w->end)
    w->end = boundary;
}

/* The stretch around `at` in which nothing that is compared with a size changes. */
static window stretch(const perigee__place_facts *f, perigee__coll_kind kind, uint64_t at) {
  window w = {at, 0, UINT64_MAX};
  if (f->n == 1)
    return w;
  for (int i = 0; i < f->tuning->select.nrules; i++) {
    const perigee__select_rule *r = &f->tuning->select.rules[i];
    if (r->kind != (uint8_t)kind)
      continue;
    bound(&w, r->min_bytes);
    bound(&w, r->end_bytes);
  }
  bound(&w, PERIGEE_NET_NOTE_MAX + 1);
  bound(&w, PERIGEE_NET_LETTER_MAX + 1);
  if (f->table != NULL) {
    bound(&w, perigee__shm_inline_max(kind, f->n) + 1);
    bound(&w, f->table->facts.buffer_bytes + 1);
  }
  return w;
}

static window widest(const perigee__place_facts *f, perigee__coll_kind kind, uint64_t at,
                     bool symmetric, const decision *d) {
  window w = stretch(f, kind, at);
  while (w.from > 0) {
    decision before = decide(f, kind, w.from - 1, symmetric);
    if (!same(&before, d))
      break;
    w.from = stretch(f, kind, w.from - 1).from;
  }
  while (w.end != UINT64_MAX) {
    decision after = decide(f, kind, w.end, symmetric);
    if (!same(&after, d))
      break;
    w.end = stretch(f, kind, w.end).end;
  }
  return w;
}

/* ---- as text ----------------------------------------------------------------------------------- */

static void tell_possible(const perigee__place_facts *f, perigee__coll_kind kind,
                          perigee_choice *c) {
  size_t used = 0;
  int where = f->table != NULL ? PERIGEE_WHERE_SHM : PERIGEE_WHERE_TCP;
  for (int i = 0; i < PERIGEE_ALGO_COUNT && f->n > 1; i++) {
    const perigee__algo_info *info = perigee__algo_get(i);
    bool here = (int)info->where == where && perigee__algo_does((perigee__algo)i, kind) &&
                (i != PERIGEE_ALGO_HIER || f->hosts) &&
                (f->table == NULL || perigee__shm_possible(&f->table->facts, i)) &&
                (f->table != NULL || !f->tuning->deterministic || info->ordered ||
                 !perigee__select_reduces(kind));
    if (here)
      used += (size_t)snprintf(c->possible + used, sizeof(c->possible) - used, "%s%s",
                               used > 0 ? " " : "", info->name);
  }
}

static void tell_why(const perigee__place_facts *f, const decision *d, perigee_choice *c) {
  char origin[PERIGEE_TUNING_NAME + 16];
  char text[96];
  if (d->rule == NULL) {
    snprintf(c->why, sizeof(c->why), "%s", d->note);
    return;
  }
  perigee__rule_origin(f->tuning, d->rule, origin, sizeof(origin));
  if (d->rule->source == PERIGEE_RULE_PATH) {
    snprintf(c->why, sizeof(c->why), "%s=%s%s", origin,
             perigee__arena_path_name(f->table->facts.path), d->note);
    return;
  }
  perigee__rule_text(d->rule, text, sizeof(text));
  snprintf(c->why, sizeof(c->why), "%s: %s%s", origin, text, d->note);
}

static uint64_t up(uint64_t bytes, uint64_t unit) {
  return bytes == UINT64_MAX ? bytes : bytes / unit + (bytes % unit != 0);
}

int perigee__explain(const perigee__place_facts *f, perigee__coll_kind kind, uint64_t bytes,
                     bool symmetric, perigee_choice *choice_p) {
  if (perigee__select_kind_name(kind) == NULL)
    return perigee__fail(PERIGEE_EINVAL, "its way does not depend on its size");
  /* rules count all blocks of a reduce_scatter together */
  uint64_t unit = kind == PERIGEE_COLL_REDUCE_SCATTER ? (uint64_t)f->n : 1;
  uint64_t at = bytes > UINT64_MAX / unit ? UINT64_MAX : bytes * unit;
  perigee_choice c = {.size = sizeof(c)};
  decision d = decide(f, kind, at, symmetric);
  window w = widest(f, kind, at, symmetric, &d);
  c.from = up(w.from, unit);
  c.end = up(w.end, unit);
  const char *transport = f->n == 1 ? "self" : f->table != NULL ? "shm" : "tcp";
  snprintf(c.transport, sizeof(c.transport), "%s", transport);
  if (f->table != NULL)
    snprintf(c.wait, sizeof(c.wait), "%s", f->table->facts.spin ? "spin" : "park");
  snprintf(c.path, sizeof(c.path), "%s", d.path);
  tell_why(f, &d, &c);
  tell_possible(f, kind, &c);
  *choice_p = c;
  return 0;
}
