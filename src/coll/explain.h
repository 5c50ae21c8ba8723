/* What a group would do with a collective of some size, and which rule says so: asks the functions that decide when it runs. */
#ifndef PERIGEE_COLL_EXPLAIN_H
#define PERIGEE_COLL_EXPLAIN_H

#include <perigee/group.h>

#include "coll/shm_table.h"

/** A group that is there or is thought of. Borrowed. */
typedef struct perigee__place_facts {
  const perigee__tuning *tuning;
  const perigee__shm_table *table; /* NULL: over messages */
  int n;                           /* 1: alone */
  bool hosts;                      /* perigee__net_on_hosts */
} perigee__place_facts;

/** EINVAL: a kind whose way does not depend on its size. Units and fields: perigee_group_explain. */
PERIGEE_MUST_CHECK int perigee__explain(const perigee__place_facts *facts, perigee__coll_kind kind,
                                        uint64_t bytes, bool symmetric, perigee_choice *choice_p);
/** The kind of collective an operation is, -1 when it is none of those with a choice. */
int perigee__explain_kind(int op);

#endif
