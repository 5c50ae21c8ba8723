/*
 * Arena: the shared memory of one group whose ranks are on one host, and the ways to meet in it.
 *
 * One sealed memfd made by member 0, mapped by all:
 *   header    magic, version, n, mode, sizes                            written once, before it is shared
 *   park      arrival counters and the release line (mode PARK)
 *   status    per rank: collectives entered, closed mark                written by its owner
 *   lines     per rank PERIGEE_ARENA_BUFFERS publish lines, used in turn (epoch modulo BUFFERS)
 *   slots     per rank PERIGEE_ARENA_BUFFERS buffers for data, used in turn
 *
 * Publish line (at least 128 bytes apart; the first 64 are one cache line, written by its owner only):
 *   OFFSET SIZE FIELD
 *   0      4    word: (epoch << 1) | waiters
 *   4      4    aux: flags of the collective, bytes in payload
 *   8      8    fp: fingerprint of the collective
 *   16     48   inline payload
 *   64     16 n sizes: bytes sent to every rank, room for the bytes of every rank (read only when they are not all equal)
 *   ...    8 n  addresses of the blocks for every rank (alltoall, scatter and reduce_scatter that are read in place)
 *
 * Meeting: every phase of every collective is a meeting of all ranks, and takes the next epoch, the same on all ranks. A rank
 *   writes what it has to say into its line and buffer of that epoch, arrives, and goes on when all have arrived. There is
 *   no other kind of phase, so ranks that run different collectives meet too, and see it: fingerprints are compared in every
 *   meeting. Epochs are 31 bits, are compared by unsigned difference and never reset.
 * Reuse: who has passed meeting e knows that every rank has finished what it did before arriving at e. The line of epoch e is read
 *   before its reader arrives at e+1, a buffer of epoch e is used by anyone only before he arrives at e+2. Both are written
 *   again for epoch e+BUFFERS, by somebody who has passed e+BUFFERS-1: BUFFERS >= 3 needs no exit barrier, however far a fast
 *   rank runs ahead (it cannot pass a meeting that the slow one has not arrived at).
 *
 *   A rank may leave a collective by arriving at its last meeting without waiting for it (perigee__arena_depart): it knows one meeting
 *   less then, until the next one, which it waits for. What it writes for that one has been out of use for long: BUFFERS is 4.
 *
 * Mode, the same on all ranks, decided by member 0: SPIN when all local ranks of the world have a core, else PARK.
 *   SPIN: a rank arrives by publishing its own line and polls the lines of the others: bare, with PAUSE, with yields
 *   between (somebody else's process may have put two ranks on one core), then it sleeps.
 *   PARK: arriving is one increment of a shared counter; the last to arrive compares the fingerprints, runs the combine step (if
 *   any), publishes the release line and wakes all that sleep in one futex call; the others yield a few times, then sleep.
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
