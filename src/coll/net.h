/* Collectives as messages over the mesh (any mix of hosts). */
#ifndef PERIGEE_COLL_NET_H
#define PERIGEE_COLL_NET_H

#include "coll/coll.h"
#include "coll/tuning.h"

/**
 * Scratch that the calls of one group use one after the other, so that none of them has to ask for pages and touch them anew, which takes
 * longer than sending what stands in them. Grows to what a call has needed, up to 2 MiB. Owner: who owns the group's
 * collectives; free(block) in the end.
 */
typedef struct perigee__net_spare {
  unsigned char *block;
  size_t bytes;
} perigee__net_spare;

/** Run one collective over the mesh; contract of perigee__coll_run. spare may be NULL. */
PERIGEE_MUST_CHECK int perigee__net_run(perigee__mesh *mesh, perigee__fate *fate,
                                        const perigee__tuning *tuning, perigee__net_spare *spare,
                                        const perigee__coll_call *call, perigee_error *error_p);

/** All members together, before their first collective: compare what their collectives go by (select.h). ECONFIG on all ranks
 *  when they differ. Waits. */
PERIGEE_MUST_CHECK int perigee__net_agree(perigee__mesh *mesh, perigee__fate *fate,
                                          const perigee__tuning *tuning, int64_t deadline_ns);

enum {
  PERIGEE_NET_NOTE_MAX = 65536, /* bytes of an allgather's block that goes with the roll call */
  PERIGEE_NET_LETTER_MAX = 4096 /* the same of an alltoall */
};

/** How blocks of so many bytes travel in an allgather of n ranks; *rule_p: by which rule. */
perigee__algo perigee__net_allgather_way(const perigee__tuning *tuning, int n, size_t bytes,
                                         const perigee__select_rule **rule_p);
/** The same of an alltoall. */
perigee__algo perigee__net_alltoall_way(const perigee__tuning *tuning, int n, size_t bytes,
                                        const perigee__select_rule **rule_p);
/** Whether the members sit on several hosts, equally many (more than one) on each. Alike on all ranks. */
bool perigee__net_on_hosts(perigee__mesh *mesh, perigee__fate *fate, const perigee__tuning *tuning);

#endif
