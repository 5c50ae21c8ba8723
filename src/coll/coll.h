/*
 * Collectives of one group: plain buffers in, plain buffers out.
 *
 * The layer above has checked the arguments and turned tensors into pointers. Calls of one group come one at a time, in the
 * group's order (seq 1, 2, 3 ...), from any thread; the calling thread runs the whole collective and waits where it must.
 * Two engines: shm_* (all members on one host: coll/arena.h) and net_* (messages over the mesh). Both end a call on a rank only when those
 * it has received from have entered it with the same fingerprint, so that no rank's buffers are passed off as good. A rank that receives
 * nothing (root of a broadcast or scatter, the others of a reduce or gather) may be gone before a mismatch is found: its next call fails
 * then. Ranks that ask each other for nothing in a mismatch find it in their next call too: a fingerprint stands for all before it.
 * Sums in shared memory are in rank order 0..n-1; net algorithms document theirs, and use rank order when
 * PERIGEE_DETERMINISTIC is set. All ranks end with the same bits.
 */
#ifndef PERIGEE_COLL_COLL_H
#define PERIGEE_COLL_COLL_H

#include <stddef.h>
#include <stdint.h>

#include <perigee/group.h>
#include <perigee/op.h>

#include "base/error.h"
#include "coll/segments.h"
#include "transport/mesh.h"

typedef enum perigee__coll_kind {
  PERIGEE_COLL_BARRIER,
  PERIGEE_COLL_ALLREDUCE, /* in, out, count */
  PERIGEE_COLL_BROADCAST, /* out (root: source as well), bytes */
  PERIGEE_COLL_REDUCE,    /* in, out (root only), count, root */
  PERIGEE_COLL_ALLGATHER, /* in, in_bytes; out_blocks[n]. Sizes may differ by rank; block r is exactly what rank r sends */
  PERIGEE_COLL_GATHER,  /* in, in_bytes; out_blocks[n] on root */
  PERIGEE_COLL_SCATTER, /* in_blocks[n] on root; out, out_bytes */
  PERIGEE_COLL_REDUCE_SCATTER, /* in_blocks[n] of counts[r] elements each (same on all ranks); out: own block */
  PERIGEE_COLL_ALLTOALL /* in_blocks[n] (to r), out_blocks[n] (from r); sizes may differ */
} perigee__coll_kind;

typedef struct perigee__block {
  void *ptr; /* not written through in in_blocks */
  size_t bytes;
} perigee__block;

/** One collective. in may be equal to out (in place) and in_blocks[me] to out; otherwise nothing overlaps. */
typedef struct perigee__coll_call {
  perigee__coll_kind kind;
  int op;             /* perigee_op, for messages */
  uint64_t seq;       /* this group's collective number: 1, 2, 3 ... */
  uint64_t shown_seq; /* the number in error texts */
  uint64_t fp;        /* fingerprint.h; never 0 */
  perigee_dtype dtype;
  perigee_redop_kind redop; /* never CUSTOM: the layer above folds those */
  double factor;
  int ncontrib; /* AVG divides by it (contributions over all ranks) */
  int root;
  const void *in;
  void *out;
  size_t count;     /* elements: allreduce, reduce */
  size_t bytes;     /* broadcast */
  size_t in_bytes;  /* allgather, gather */
  size_t out_bytes; /* scatter: room of out */
  const perigee__block *in_blocks, *out_blocks;
  const size_t *counts; /* reduce_scatter: elements of each block */
  int64_t timeout_ns;   /* for the text of ETIMEDOUT */
  int64_t deadline_ns;
  uint64_t *peer_seen; /* or NULL: monitored barrier fills entered counters here on timeout */
} perigee__coll_call;

typedef struct perigee__coll perigee__coll;

typedef struct perigee__coll_params {
  perigee__mesh *mesh; /* borrowed until destroy; NULL when the group has one rank */
  perigee__fate *fate; /* borrowed until destroy; attached to the mesh by the caller */
  int64_t deadline_ns; /* of create */
  const char *rules;   /* of the group alone, before those of the environment (select.h); or NULL */
} perigee__coll_params;

/** Waits for all members (they set up shared memory together). */
PERIGEE_MUST_CHECK int perigee__coll_create(const perigee__coll_params *params,
                                            perigee__coll **coll_p);
/** No call may be running. Does not wait for peers. */
void perigee__coll_destroy(perigee__coll **coll_p);
/** perigee__arena_alloc; ENOSHM over the mesh or alone. Needs what a call needs: no other may be running. */
PERIGEE_MUST_CHECK int perigee__coll_alloc(perigee__coll *coll, size_t bytes, uint64_t what,
                                           int64_t deadline_ns, perigee__segment **segment_p,
                                           void **data_p);
/** What call_run would do with so many bytes (counted as in perigee_group_explain). EINVAL: a kind without a choice. */
PERIGEE_MUST_CHECK int perigee__coll_explain(const perigee__coll *coll, perigee__coll_kind kind,
                                             uint64_t bytes, bool symmetric,
                                             perigee_choice *choice_p);
/** "shm", "tcp", "self". */
const char *perigee__coll_transport(const perigee__coll *coll);

/**
 * Run one collective to its end. Returns 0 or the code, with *error_p filled (op, seq, group, rank, culprits).
 * Errors that leave ranks at different points (ETIMEDOUT, EMISMATCH, ETRUNC, ESHAPE, EPEER*) fail the group's fate first, on all ranks.
 * ETRUNC, ESHAPE: an allgather, gather, scatter or alltoall block is longer, is shorter than its receiver's room; it must be exactly as long.
 * All ranks name the same block: the first that does not fit, by sender, then receiver; of a scatter, one that does not fit. It is found by
 * the root of a gather and by the receivers of a scatter. Nothing is written past a room; what is
 * in the rooms is undefined then.
 */
PERIGEE_MUST_CHECK int perigee__coll_run(perigee__coll *coll, const perigee__coll_call *call,
                                         perigee_error *error_p);

#endif
