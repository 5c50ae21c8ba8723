/*
 * Which way a collective goes: one table of algorithms, one language of rules by size, for messages and for shared memory.
 *
 *   rules   := rule { ";" rule }
 *   rule    := kinds { "/" where | "@" ranks } ":" range ":" algorithm { "," range ":" algorithm }
 *            | setting { "/" where | "@" ranks } "=" bytes
 *   kinds   := kind { "+" kind }
 *   where   := "tcp" | "shm"                       messages; shared memory. Left out: tcp for kinds, anywhere for settings
 *            | "spin" | "park"                     shared memory with a core for each rank, with fewer cores
 *            | "quick" | "slow"                    shared memory where reading another process's memory takes about as long as copying,
 *                                                  several times as long. "park/slow": both
 *   ranks   := n | lo "-" [ hi ]          members of the group, both ends included; left out: any
 *   range   := lo "-" [ hi ]              bytes, hi not included
 *   bytes   := number [ "k" | "m" | "g" ] powers of 1024
 *
 *   "allreduce:0-4k:bruck,4k-:ring;broadcast@2-4:0-:chain;allreduce/spin@2:0-32k:oneshot,32k-:twoshot;segment=32k"
 *
 * The first rule that fits decides, and one whose algorithm cannot run here (no symmetric tensors, memory of others not readable, one
 * host only) does not fit. Rules are asked in the order: the group's own (option "tuning"), PERIGEE_SELECT, the file that
 * PERIGEE_TUNING_FILE names (tuning.h), built in (perigee__select_builtin, perigee__arena_rules): what the former do not mention stays as
 * it is. The bytes are those of the vector (allreduce, reduce, broadcast), of all blocks together (reduce_scatter), of one rank's
 * block (allgather, gather), or of the largest block (scatter, alltoall).
 *
 * All ranks must use the same rules: they are compared when a group is made (perigee__net_agree).
 */
#ifndef PERIGEE_COLL_SELECT_H
#define PERIGEE_COLL_SELECT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "coll/coll.h"

/* XX(NAME, name, sums in rank order, kinds it can do (letters: see KINDS in select.c), what it is good for) */
#define PERIGEE_ALGO_MAP(XX)                                                                       \
  XX(BRUCK, bruck, true, "ABRGST",                                                                 \
     "data rides in the roll call's ceil(log2 n) messages, everyone gets everything: tiny data")   \
  XX(RECDBL, recdbl, false, "A", "recursive doubling, log2 n steps: small vectors, many ranks")    \
  XX(HALVING, halving, false, "AR",                                                                \
     "recursive halving, then doubling (reduce: a gather), 2 log2 n steps: medium vectors")        \
  XX(ONESHOT, oneshot, true, "A", "every rank sends all it has to all, in segments: 2 or 3 ranks") \
  XX(DIRECT, direct, true, "ARGST",                                                                \
     "each slice's owner hears from all ranks itself, 2 steps: large data, up to some 16 ranks")   \
  XX(HIER, hier, false, "A",                                                                       \
     "within each host, between counterparts, within each host: large vectors, several hosts")     \
  XX(RING, ring, false, "AGS", "neighbours only, least bytes: large data, many ranks")             \
  XX(BINOMIAL, binomial, false, "BR", "tree, log2 n steps: small data")                            \
  XX(CHAIN, chain, false, "BR", "pipeline from rank to rank in segments: large data")

/* The same for shared memory, where all sums are in rank order. */
#define PERIGEE_PATH_MAP(XX)                                                                       \
  XX(ONESHOT, oneshot, "A", "everybody reduces everything, or the last to arrive does: small")     \
  XX(TWOSHOT, twoshot, "AR", "every rank reduces a slice, in chunks through the buffers: large")   \
  XX(ROOT, root, "R", "the root reduces all there is in the buffers: small, or few ranks")         \
  XX(CMA, cma, "ARBGECT", "inputs and blocks are read where they are, by system call: large")      \
  XX(SYMMETRIC, symmetric, "ARSBGECT", "straight in tensors of group:alloc: from few KiB on")      \
  XX(BUFFERS, buffers, "BGECTS", "in chunks through the buffers: small blocks")

typedef enum perigee__algo {
#define XX(_NAME, _name, _ordered, _kinds, _help) PERIGEE_ALGO_##_NAME,
  PERIGEE_ALGO_MAP(XX)
#undef XX
#define XX(_NAME, _name, _kinds, _help) PERIGEE_PATH_##_NAME,
  PERIGEE_PATH_MAP(XX)
#undef XX
      PERIGEE_ALGO_COUNT
} perigee__algo;

/** Bits: one for messages and for each kind of shared memory. */
typedef enum perigee__where {
  PERIGEE_WHERE_TCP = 1,
  PERIGEE_WHERE_SPIN_QUICK = 2,
  PERIGEE_WHERE_SPIN_SLOW = 4,
  PERIGEE_WHERE_PARK_QUICK = 8,
  PERIGEE_WHERE_PARK_SLOW = 16,
  PERIGEE_WHERE_SPIN = PERIGEE_WHERE_SPIN_QUICK | PERIGEE_WHERE_SPIN_SLOW,
  PERIGEE_WHERE_PARK = PERIGEE_WHERE_PARK_QUICK | PERIGEE_WHERE_PARK_SLOW,
  PERIGEE_WHERE_QUICK = PERIGEE_WHERE_SPIN_QUICK | PERIGEE_WHERE_PARK_QUICK,
  PERIGEE_WHERE_SLOW = PERIGEE_WHERE_SPIN_SLOW | PERIGEE_WHERE_PARK_SLOW,
  PERIGEE_WHERE_SHM = PERIGEE_WHERE_SPIN | PERIGEE_WHERE_PARK
} perigee__where;

typedef struct perigee__algo_info {
  perigee__algo id;
  const char *name; /* TCP's and shared memory's are told apart by where */
  perigee__where where;
  bool ordered;      /* sums are taken in rank order 0..n-1, rounded once */
  const char *kinds; /* letters */
  const char *help;
} perigee__algo_info;

/** Row of the table, NULL when algo is none. Static memory. */
const perigee__algo_info *perigee__algo_get(int algo);
/** Whether the algorithm can do this kind of collective. */
bool perigee__algo_does(perigee__algo algo, perigee__coll_kind kind);

/** "allreduce"; NULL for a kind that has no choice anywhere. */
const char *perigee__select_kind_name(perigee__coll_kind kind);
/** By its name of `len` characters; -1 when it is none. */
int perigee__select_kind_named(const char *name, size_t len);
/** Whether the kind adds something up. */
bool perigee__select_reduces(perigee__coll_kind kind);

/* Numbers that are no choice but belong to one: XX(NAME, name, least) in bytes. */
#define PERIGEE_SETTING_MAP(XX)                                                                    \
  XX(SEGMENT, segment, 16)             /* one message of a pipelined TCP collective */             \
  XX(TWOSHOT_CHUNK, twoshot_chunk, 64) /* of a two-shot pipeline; at least 16 KiB for each rank */ \
  XX(COPY_CHUNK, copy_chunk, 64)       /* of what is copied through buffers otherwise */           \
  XX(PAST_CACHES, past_caches, 1)      /* a rank's tensors from which on outputs go past them */

typedef enum perigee__setting {
#define XX(_NAME, _name, _least) PERIGEE_SETTING_##_NAME,
  PERIGEE_SETTING_MAP(XX)
#undef XX
  PERIGEE_SETTING_COUNT
} perigee__setting;

/** Who made a rule. */
typedef enum perigee__rule_source {
  PERIGEE_RULE_BUILTIN,
  PERIGEE_RULE_FILE,   /* PERIGEE_TUNING_FILE */
  PERIGEE_RULE_ENV,    /* PERIGEE_SELECT */
  PERIGEE_RULE_OPTION, /* of the group */
  PERIGEE_RULE_PATH    /* PERIGEE_PATH */
} perigee__rule_source;

enum {
  PERIGEE_SELECT_RULES = 256,
  PERIGEE_SELECT_SETTING =
      0xff /* kind of a rule that is a setting: algo is the setting, min_bytes its value */
};

typedef struct perigee__select_rule {
  uint8_t kind;   /* perigee__coll_kind */
  uint8_t algo;   /* perigee__algo */
  uint8_t where;  /* perigee__where */
  uint8_t source; /* perigee__rule_source */
  int line;       /* of the file, from 1 */
  int min_ranks, max_ranks;
  uint64_t min_bytes, end_bytes; /* end UINT64_MAX: included */
} perigee__select_rule;

typedef struct perigee__select {
  perigee__select_rule rules[PERIGEE_SELECT_RULES];
  int nrules;
} perigee__select;

/** Where a text of rules comes from. */
typedef struct perigee__select_origin {
  perigee__rule_source source;
  const char *name; /* in errors: "PERIGEE_SELECT", a file */
  int line;         /* 0: none */
} perigee__select_origin;

/** Append the rules of text. EINVAL names the origin and the word that is wrong; ELIMIT: more than PERIGEE_SELECT_RULES ranges. */
PERIGEE_MUST_CHECK int perigee__select_add(perigee__select *select, const char *text,
                                           const perigee__select_origin *origin);
/** The same, of PERIGEE_SELECT. */
PERIGEE_MUST_CHECK int perigee__select_parse(perigee__select *select, const char *text);
/** One rule as it is read. */
void perigee__rule_text(const perigee__select_rule *rule, char *buf, size_t size);
/** The rules as text (one range per rule), in the order in which they are asked. Writes at most size bytes with the
 *  terminator and returns the length that would have been written. */
size_t perigee__select_format(const perigee__select *select, char *buf, size_t size);

/** Whether the rule is for this kind, number of ranks and size. */
static inline bool perigee__rule_fits(const perigee__select_rule *rule, perigee__coll_kind kind,
                                      perigee__where where, int n) {
  return rule->kind == (uint8_t)kind && (rule->where & where) != 0 && n >= rule->min_ranks &&
         n <= rule->max_ranks;
}
static inline bool perigee__rule_has(const perigee__select_rule *rule, uint64_t bytes) {
  return bytes >= rule->min_bytes && (bytes < rule->end_bytes || rule->end_bytes == UINT64_MAX);
}

/** The built-in rules for messages, and for shared memory (arena_limits.c), no matter what the environment says. */
extern const char perigee__select_builtin[];
extern const char perigee__arena_rules[];

enum {
  PERIGEE_TUNING_NAME = 512 /* room of a file's name */
};

/** What collectives go by. The same on all ranks of a group. */
typedef struct perigee__tuning {
  perigee__select select;
  size_t segment; /* bytes of one message of a pipelined collective, > 0 */
  size_t
      segment_max_elems; /* 0: no limit; the hostile build and tests cut messages shorter than bytes can say */
  int ranks_per_host; /* > 0: that is where ranks are, for tests; 0: where they really are */
  bool deterministic; /* only algorithms that sum in rank order */
  char file[PERIGEE_TUNING_NAME]; /* rules of source FILE are from it; "" when there is none */
} perigee__tuning;

/**
 * The rule that decides on a collective of n ranks over messages. hosts: they sit on several, equally many (more than one) on each;
 * rules for "hier" are passed over otherwise. Rules whose sums are not in rank order are passed on to "direct" when tuning->deterministic:
 * *algo_p is what runs.
 */
const perigee__select_rule *perigee__select_rule_for(const perigee__tuning *tuning,
                                                     perigee__coll_kind kind, int n, bool hosts,
                                                     uint64_t bytes, perigee__algo *algo_p);
/** Its algorithm. */
perigee__algo perigee__select_algo(const perigee__tuning *tuning, perigee__coll_kind kind, int n,
                                   bool hosts, uint64_t bytes);
/** Largest size for which perigee__select_algo gives algo, SIZE_MAX when it is not bounded; 0 when never. */
size_t perigee__select_limit(const perigee__tuning *tuning, perigee__coll_kind kind, int n,
                             perigee__algo algo);
/** Value of a setting, fallback when no rule gives one. */
size_t perigee__select_setting(const perigee__tuning *tuning, perigee__setting setting,
                               perigee__where where, int n, size_t fallback);

#endif
