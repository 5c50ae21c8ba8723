/*
 * Arena: the shared memory of one group whose ranks are on one host, and the ways to meet in it.
 *
 * One sealed memfd made by member 0, mapped by all:
 *   header    magic, version, n, mode, sizes                            written once, before it is shared
 *   park      arrival counters and the release line (mode PARK)
 *   status    per rank: collectives entered, closed mark                written by its owner
 *   notes     per rank what it did in its last LINES epochs, for errors
 *   lines     per rank LINES publish lines, used in turn (epoch modulo LINES)
 *   small     per rank LINES small buffers, used with the lines
 *   slots     per rank BUFFERS buffers for data, used in turn
 *
 * Publish line (at least 128 bytes apart; the first 64 are one cache line, written by its owner only):
 *   OFFSET SIZE FIELD
 *   0      4    word: (epoch << 1) | waiters
 *   4      4    aux: flags of the collective, bytes in payload
 *   8      8    check: fingerprints of this collective and all before it, mixed
 *   16     48   inline payload
 *   64     16 n sizes: bytes sent to every rank, room for the bytes of every rank (read only when they are not all equal)
 *   ...    8 n  addresses of the blocks for every rank (alltoall, scatter and reduce_scatter that are read in place)
 *
 * Phases: every collective is a sequence of phases, and each takes the next epoch, the same on all ranks. In each a rank writes
 *   what it has to say into its line and buffers of that epoch, arrives, and goes on when those it needs have arrived. Epochs are 31
 *   bits, are compared by unsigned difference and never reset.
 *   meeting      all need all. There is one kind, so ranks that run different collectives meet too, and see it. Only barriers may meet
 *                through a root, which waits for all and publishes last (shm_barrier.c).
 *   from root    (broadcast, scatter) the others need the root, and the root nobody
 *   to root      (reduce, gather) the root needs all, and the others nobody
 *   A rank that needs nobody runs ahead: it may be in a later collective before the others have come to this one.
 *   In the last two every rank publishes its own line, in both modes, and who waits does so on the lines of those it needs.
 * Mismatch: who waits for a line compares its check before it uses anything. A check stands for all that its rank has done, so two ranks whose
 *   ways have parted can never pass each other's data off as good again, even if they asked nothing of each other when it happened. Who
 *   waits for somebody that has gone elsewhere looks at the notes after each slice of its sleep, and fails the group.
 * Reuse: known is the last epoch that a rank knows all ranks to have arrived at; a meeting passed makes it that meeting's. Who has
 *   arrived at e+1 has read the lines and small buffers of e; who has arrived at e+2 has read the buffers of e, and the last to arrive
 *   at e has reset its counter. Hence, before a rank writes
 *     the line and small buffer of e     known >= e - LINES + 1     (used before at e - LINES)
 *     the buffer or counter of e         known >= e - BUFFERS + 2   (used before at e - BUFFERS)
 *   When that does not hold (perigee__arena_room, one comparison) it waits until all have come to the epoch it has arrived at last
 *   itself: no line of that epoch can have been written over, because nobody may do that before this rank has arrived at the next. So a rank
 *   runs ahead by LINES - 1 phases, or BUFFERS - 2 when they use buffers, and then waits once for all of them.
 *   Nobody waits in a circle: of the ranks that have arrived at the least epoch none waits for another to arrive there or before.
 *
 *   Lending: a root may let the others read its memory where it is. In a phase from root it counts those that have read it, in its status
 *   line (perigee__arena_lend), and waits for them alone: they need no further phase.
 *   A rank may also leave a collective by arriving at its last meeting without waiting for it (perigee__arena_depart): it knows one meeting
 *   less then.
 *
 * Mode, the same on all ranks, decided by member 0: SPIN when all local ranks of the world have a core, else PARK.
 *   SPIN: a rank arrives by publishing its own line and polls the lines of the others: bare, with PAUSE, then it sleeps. It yields between
 *   polls when the rank it waits for was last seen on the same core, and only then: to somebody else's process it would give a slice.
 *   PARK: arriving is one increment of a shared counter; the last to arrive compares the fingerprints, runs the combine step (if
 *   any), publishes the release line and wakes all that sleep in one futex call; the others yield a few times, then sleep.
 *   In both, a rank that finds more of the ranks on its core than on another moves there (arena_wait.c).
 *   PERIGEE_WAIT=spin|park|adaptive overrides.
 *
 * Death and abort: the group's fate is looked at by everybody who waits. Its listener clears the waiters bit of every word here and
 *   wakes, so that a sleeper looks at once. A rank that closes marks its status line and does the same.
 */
#ifndef PERIGEE_COLL_ARENA_H
#define PERIGEE_COLL_ARENA_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "coll/coll.h"
#include "coll/segments.h"
#include "coll/shm_table.h"
#include "transport/mesh.h"

typedef struct perigee__arena perigee__arena;

/** All members together; waits. ENOSHM when one of them cannot have the memory: then it is ENOSHM on all, and they fall back to
 *  the mesh together. mesh may be NULL when the group has one rank. */
PERIGEE_MUST_CHECK int perigee__arena_create(perigee__mesh *mesh, perigee__fate *fate,
                                             int64_t deadline_ns, perigee__arena **arena_p);
/** Go by these rules instead of the environment's. Borrowed until destroy. Before the first call. */
void perigee__arena_tune(perigee__arena *arena, const perigee__tuning *tuning);
/** Facts of an arena that member 0 of n ranks on one host would make here, of local_ranks of the world; cma: what the probe would say. */
void perigee__arena_facts(int n, int local_ranks, bool cma, perigee__shm_facts *facts_p);
/** What the rules are sifted to. */
const perigee__shm_table *perigee__arena_table(const perigee__arena *arena);
/** Leave: peers that wait for this rank get EPEERCLOSED. No call may be running. Does not wait. */
void perigee__arena_destroy(perigee__arena **arena_p);

/**
 * Symmetric memory: `bytes` for every rank, mapped by all (segments.h). All members together, in one order; waits. what: the same on all,
 * else EMISMATCH. *data_p: this rank's part, zeroed, page-aligned. When a rank cannot have it: ENOSHM on all. *segment_p: owned by the
 * caller, given back with perigee__segment_drop from any thread, also after the arena's end.
 */
PERIGEE_MUST_CHECK int perigee__arena_alloc(perigee__arena *arena, size_t bytes, uint64_t what,
                                            int64_t deadline_ns, perigee__segment **segment_p,
                                            void **data_p);

/** Run one collective in the arena; contract of perigee__coll_run. */
PERIGEE_MUST_CHECK int perigee__shm_run(perigee__arena *arena, const perigee__coll_call *call,
                                        perigee_error *error_p);

#endif
