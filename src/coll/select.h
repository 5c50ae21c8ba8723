/*
 * Which algorithm a collective over the mesh uses: one table of algorithms, one text of rules by size.
 *
 *   rules := rule { ";" rule }
 *   rule  := kind [ "@" ranks ] ":" range ":" algorithm { "," range ":" algorithm }
 *   ranks := n | lo "-" [ hi ]          members of the group, both ends included; left out: any
 *   range := lo "-" [ hi ]              bytes, hi not included; a number may end in k, m or g
 *
 *   "allreduce:0-4k:bruck,4k-:ring;broadcast@2-4:0-:chain"
 *
 * The first rule that fits decides; the rules of PERIGEE_SELECT stand before the built-in ones, so what they do not
 * mention stays as it is. The bytes are those of the vector (allreduce, reduce, broadcast), of all blocks together
 * (reduce_scatter), or of one rank's block (allgather).
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
  XX(BRUCK, bruck, true, "ABRGS",                                                                  \
     "data rides in the roll call's ceil(log2 n) messages, everyone gets everything: tiny data")   \
  XX(RECDBL, recdbl, false, "A", "recursive doubling, log2 n steps: small vectors, many ranks")    \
  XX(ONESHOT, oneshot, true, "A", "every rank sends all it has to all, in segments: 2 or 3 ranks") \
  XX(DIRECT, direct, true, "ARGS",                                                                 \
     "each slice's owner hears from all ranks itself, 2 steps: large data, up to some 16 ranks")   \
  XX(HIER, hier, false, "A",                                                                       \
     "within each host, between counterparts, within each host: large vectors, several hosts")     \
  XX(RING, ring, false, "AGS", "neighbours only, least bytes: large data, many ranks")             \
  XX(BINOMIAL, binomial, false, "BR", "tree, log2 n steps: small data")                            \
  XX(CHAIN, chain, false, "BR", "pipeline from rank to rank in segments: large data")

typedef enum perigee__algo {
#define XX(_NAME, _name, _ordered, _kinds, _help) PERIGEE_ALGO_##_NAME,
  PERIGEE_ALGO_MAP(XX)
#undef XX
  PERIGEE_ALGO_COUNT
} perigee__algo;

typedef struct perigee__algo_info {
  perigee__algo id;
  const char *name;
  bool ordered;      /* sums are taken in rank order 0..n-1, rounded once */
  const char *kinds; /* letters */
  const char *help;
} perigee__algo_info;

/** Row of the table, NULL when algo is none. Static memory. */
const perigee__algo_info *perigee__algo_get(int algo);
/** Whether the algorithm can do this kind of collective. */
bool perigee__algo_does(perigee__algo algo, perigee__coll_kind kind);

typedef struct perigee__select_rule {
  uint8_t kind; /* perigee__coll_kind */
  uint8_t algo; /* perigee__algo */
  int min_ranks, max_ranks;
  uint64_t min_bytes, end_bytes;
} perigee__select_rule;

enum {
  PERIGEE_SELECT_RULES = 64
};

typedef struct perigee__select {
  perigee__select_rule rules[PERIGEE_SELECT_RULES];
  int nrules;
} perigee__select;

/** Append the rules of text. EINVAL names the word that is wrong; ELIMIT: more than PERIGEE_SELECT_RULES ranges. */
PERIGEE_MUST_CHECK int perigee__select_parse(perigee__select *select, const char *text);
/** The rules as text (one range per rule), in the order in which they are asked. Writes at most size bytes with the
 *  terminator and returns the length that would have been written. */
size_t perigee__select_format(const perigee__select *select, char *buf, size_t size);

/** What the collectives over the mesh go by. The same on all ranks of a group. */
typedef struct perigee__tuning {
  perigee__select select;
  size_t segment; /* bytes of one message of a pipelined collective, > 0 */
  size_t
      segment_max_elems; /* 0: no limit; the hostile build and tests cut messages shorter than bytes can say */
  int ranks_per_host; /* > 0: that is where ranks are, for tests; 0: where they really are */
  bool deterministic; /* only algorithms that sum in rank order */
} perigee__tuning;

/** The built-in rules, no matter what the environment says. */
extern const char perigee__select_builtin[];
/** Fill from the environment. On EINVAL (PERIGEE_SELECT) nothing is written. */
PERIGEE_MUST_CHECK int perigee__tuning_read(perigee__tuning *tuning_p);
/** What this process uses: read from the environment once, or what was set. Never NULL. */
const perigee__tuning *perigee__tuning_get(void);
/** For tests and benchmarks: use this from now on (NULL: the environment's). Borrowed. No collective may be running. */
void perigee__tuning_set(const perigee__tuning *tuning);

/** Algorithm for a collective of n ranks. hosts: they sit on several, equally many (more than one) on each; rules for "hier" are
 *  passed over otherwise. */
perigee__algo perigee__select_algo(const perigee__tuning *tuning, perigee__coll_kind kind, int n,
                                   bool hosts, uint64_t bytes);
/** Largest size for which perigee__select_algo gives algo, SIZE_MAX when it is not bounded; 0 when never. */
size_t perigee__select_limit(const perigee__tuning *tuning, perigee__coll_kind kind, int n,
                             perigee__algo algo);

#endif
