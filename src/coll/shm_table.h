/*
 * The rules (select.h) of one group in shared memory, sifted once for its facts: what is asked in every call is a few comparisons.
 */
#ifndef PERIGEE_COLL_SHM_TABLE_H
#define PERIGEE_COLL_SHM_TABLE_H

#include "coll/tuning.h"

/** PERIGEE_PATH: which path collectives take where they can; AUTO: by the rules. */
typedef enum perigee__arena_path {
  PERIGEE_ARENA_PATH_AUTO,
  PERIGEE_ARENA_PATH_INLINE,    /* in the publish lines, else as AUTO without direct access */
  PERIGEE_ARENA_PATH_ONESHOT,   /* one meeting while a buffer holds it */
  PERIGEE_ARENA_PATH_TWOSHOT,   /* slices through the buffers */
  PERIGEE_ARENA_PATH_CMA,       /* straight from the other's memory by system call */
  PERIGEE_ARENA_PATH_SYMMETRIC, /* straight from and to tensors of perigee_group_alloc */
  PERIGEE_ARENA_PATH_COUNT
} perigee__arena_path;

/** "auto" ...; NULL when it is none. */
const char *perigee__arena_path_name(perigee__arena_path path);

/** What a table depends on besides the rules. The same on all ranks. */
typedef struct perigee__shm_facts {
  int n;
  bool spin; /* a core for each rank */
  bool cma;  /* every rank can read every other's memory */
  bool slow; /* that takes several times as long as copying (transport/vm.h) */
  perigee__arena_path path;
  size_t buffer_bytes;
} perigee__shm_facts;

enum {
  PERIGEE_SHM_KINDS = PERIGEE_COLL_ALLTOALL + 1,
  PERIGEE_SHM_ENTRIES = PERIGEE_SELECT_RULES + PERIGEE_SHM_KINDS
};

typedef struct perigee__shm_entry {
  uint64_t min_bytes, end_bytes; /* end UINT64_MAX: included */
  uint8_t algo;                  /* perigee__algo */
  const perigee__select_rule *rule;
} perigee__shm_entry;

/** Entries point into the tuning it was made of. */
typedef struct perigee__shm_table {
  perigee__shm_facts facts;
  size_t two_shot_chunk, copy_chunk, past_min;
  bool symmetric; /* tensors in symmetric memory are looked for */
  uint16_t first[PERIGEE_SHM_KINDS + 1];
  perigee__shm_entry entries[PERIGEE_SHM_ENTRIES];
} perigee__shm_table;

/** Whose rules hold for such an arena. */
static inline perigee__where perigee__shm_where(const perigee__shm_facts *facts) {
  if (facts->spin)
    return facts->slow ? PERIGEE_WHERE_SPIN_SLOW : PERIGEE_WHERE_SPIN_QUICK;
  return facts->slow ? PERIGEE_WHERE_PARK_SLOW : PERIGEE_WHERE_PARK_QUICK;
}

void perigee__shm_table_make(const perigee__tuning *tuning, const perigee__shm_facts *facts,
                             perigee__shm_table *table_p);
/** What decides on so many bytes; symmetric: the tensors of all ranks are in one symmetric segment, as far as this rank knows. */
static inline const perigee__shm_entry *perigee__shm_entry_for(const perigee__shm_table *table,
                                                               perigee__coll_kind kind,
                                                               bool symmetric, uint64_t bytes) {
  const perigee__shm_entry *e = &table->entries[table->first[kind]];
  while (bytes < e->min_bytes || bytes > e->end_bytes - (e->end_bytes != UINT64_MAX) ||
         (e->algo == PERIGEE_PATH_SYMMETRIC && !symmetric))
    e++; /* the last entry of a kind takes everything */
  return e;
}
/** Whether the facts allow an algorithm at all. */
bool perigee__shm_possible(const perigee__shm_facts *facts, int algo);
/** Largest block that travels in the publish lines, whatever the rules say. */
size_t perigee__shm_inline_max(perigee__coll_kind kind, int n);

#endif
