/*
 * One collective over the mesh while it runs: its messages, its memory, its roll call.
 *
 * Vocabulary
 *   call        the collective, same kind and fingerprint on all ranks or else an error
 *   message     one perigee__msg between two ranks; peers are ranks of the group everywhere in net_*
 *   live        messages posted and not yet seen done. Every wait looks at all of them: an error of any of them ends the call
 *   roll call   the exchange that every call starts with, before its first wait (net_roll.h); it goes on inside every wait
 *   scratch     memory of the call, freed with it
 *
 * Errors: the function that sees the cause fills call error (net_blame.c) and returns the code; everybody above
 * returns it unchanged. perigee__net_run then fails the group, takes all live messages back and frees the scratch, so
 * algorithms have nothing to clean up and simply return.
 *
 * Steps, the low 16 bits of a message's tag:
 *   0 .. 15     roll call, round
 *   16 .. 31    second roll call, of calls whose blocks do not fit (net_sizes.c)
 *   32 ..       data, numbered by each algorithm
 */
#ifndef PERIGEE_COLL_NET_CALL_H
#define PERIGEE_COLL_NET_CALL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "coll/net.h"
#include "coll/net_roll.h"
#include "coll/tuning.h"
#include "tensor/reduce.h"

enum {
  PERIGEE_NET_STEP_ROUNDS = 16, /* of one roll call */
  PERIGEE_NET_STEP_DATA = 32,
  PERIGEE_NET_STEP_MAX = 65535,
  PERIGEE_NET_INLINE_LIVE = 32,
  PERIGEE_NET_INLINE_SCRATCH = 8192
};

typedef struct perigee__net_block {
  struct perigee__net_block *next;
} perigee__net_block;

typedef struct perigee__net {
  perigee__mesh *mesh;
  perigee__fate *fate;
  const perigee__coll_call *call;
  const perigee__tuning *tuning;
  perigee_error *error; /* filled by who returns the first error */
  int me, n;
  bool asked;           /* peer_seen is filled */
  bool comparing;       /* whether blocks fit their rooms is not known yet (net_sizes.c) */
  perigee__xfer **live; /* of perigee__msg: nlive <= reserved <= live_room */
  int nlive, reserved, live_room;
  perigee__roll roll;
  perigee__net_spare *spare; /* of the group, or NULL */
  size_t spare_used;
  perigee__net_block *blocks; /* scratch beyond the inline part and the spare */
  size_t blocks_bytes;
  unsigned char *free_at; /* inline part: next free byte */
  size_t free_bytes;
  perigee__xfer *inline_live[PERIGEE_NET_INLINE_LIVE];
  _Alignas(64) unsigned char inline_scratch[PERIGEE_NET_INLINE_SCRATCH];
} perigee__net;

/* ---- scope: net_scope.c ------------------------------------------------------------------------- */

void perigee__net_init(perigee__net *net, perigee__mesh *mesh, perigee__fate *fate,
                       const perigee__tuning *tuning, const perigee__coll_call *call,
                       perigee_error *error);
/** Takes back what is live and frees the scratch. */
void perigee__net_fini(perigee__net *net);

/** Zeroed scratch of 64-byte alignment, until the call ends. NULL after filling the error. */
void *perigee__net_alloc(perigee__net *net, size_t count, size_t size);
/** As alloc, for messages: also makes room for them among the live ones. Each may be used again when it was seen done. */
perigee__msg *perigee__net_msgs(perigee__net *net, size_t count);
/** As alloc, not zeroed: for buffers that are written before they are read. */
void *perigee__net_buffer(perigee__net *net, size_t count, size_t size);

/** Post a message from perigee__net_msgs. Never waits, never fails. */
void perigee__net_send(perigee__net *net, perigee__msg *msg, int peer, int step, const void *buf,
                       size_t bytes);
void perigee__net_recv(perigee__net *net, perigee__msg *msg, int peer, int step, void *buf,
                       size_t room);

/** Wait until something live is done, let the roll call go on, return an error of any message that ended with one. */
PERIGEE_MUST_CHECK int perigee__net_progress(perigee__net *net);
/** Wait until msg (posted, or never used) is done. */
PERIGEE_MUST_CHECK int perigee__net_wait(perigee__net *net, perigee__msg *msg);
/** ... until all count are done. */
PERIGEE_MUST_CHECK int perigee__net_wait_all(perigee__net *net, perigee__msg *msgs, size_t count);
/** ... until nothing is live and the roll call is over: the end of every algorithm. */
PERIGEE_MUST_CHECK int perigee__net_finish(perigee__net *net);

/** Has it not been posted, or been done? */
static inline bool perigee__net_idle(const perigee__msg *msg) {
  /* acquire: pairs with the mesh's release of done, so that the buffer may be read */
  return msg->xfer.key.kind == 0 ||
         atomic_load_explicit(&msg->xfer.done, memory_order_acquire) != 0;
}

/** Messages to one peer in order, at most `size` of them under way. */
typedef struct perigee__window {
  perigee__msg *msgs;
  size_t size, next;
} perigee__window;
/** Send; waits for the oldest of the window first when it is full. */
PERIGEE_MUST_CHECK int perigee__window_send(perigee__net *net, perigee__window *w, int peer,
                                            int step, const void *buf, size_t bytes);

/* ---- blame: net_blame.c: fill net->error, return its code ------------------------------------------ */

/** A message ended with an error. */
int perigee__net_blame_msg(perigee__net *net, const perigee__msg *msg);
/** The deadline passed: ask who is missing. */
int perigee__net_blame_timeout(perigee__net *net);
/** The group's fate has failed. */
int perigee__net_blame_fate(perigee__net *net);
int perigee__net_blame_memory(perigee__net *net, size_t bytes);
/** A block does not have the size of the room for it: ETRUNC when it is longer, ESHAPE when it is shorter. */
int perigee__net_blame_room(perigee__net *net, int from, size_t bytes, int to, size_t room);
/** A message that cannot be what the peer should have sent. */
int perigee__net_blame_proto(perigee__net *net, int peer);
/** Blocks do not fit, as all ranks have found (allgather, alltoall): name the pair. net_sizes.c */
int perigee__net_blame_sizes(perigee__net *net);
/** The group fails with this call: do so, and leave in net->error what the caller gets. Returns its code. */
int perigee__net_fail_group(perigee__net *net);

/* ---- algorithms: each one runs the whole call ------------------------------------------------------ */

/** The bytes of slices of one vector: slice r is elements [perigee__slice_at(r), perigee__slice_at(r + 1)). */
static inline size_t perigee__slice_at(size_t count, int n, int r) {
  size_t each = count / (size_t)n, more = count % (size_t)n, rank = (size_t)r;
  return each * rank + (rank < more ? rank : more);
}

/** A vector cut into one slice per rank, for the algorithms that work slice by slice. */
typedef struct perigee__slices {
  const unsigned char **in; /* n: this rank's contribution to slice r */
  unsigned char **out;      /* n: where slice r goes; when !gather only out[me] counts */
  size_t *count;            /* n: elements; the same on all ranks */
  size_t longest;
  bool gather; /* every rank gets every slice: allreduce */
  bool some_empty;
} perigee__slices;

/** Elements of one message of a pipelined algorithm. unit: bytes of an element on the wire. */
size_t perigee__net_segment(const perigee__net *net, size_t unit);

int perigee__net_barrier(perigee__net *net);
int perigee__net_allreduce(perigee__net *net);
int perigee__net_reduce(perigee__net *net);
int perigee__net_reduce_scatter(perigee__net *net);
int perigee__net_broadcast(perigee__net *net);
int perigee__net_allgather(perigee__net *net);
int perigee__net_exchange(perigee__net *net); /* gather, scatter, alltoall */

int perigee__net_broadcast_binomial(perigee__net *net);
int perigee__net_broadcast_chain(perigee__net *net);
int perigee__net_reduce_bruck(perigee__net *net, const perigee__reduce_plan *plan);
int perigee__net_allreduce_recdbl(perigee__net *net, const perigee__reduce_plan *plan);
/** Allreduce and reduce. */
int perigee__net_halving(perigee__net *net, const perigee__reduce_plan *plan);
int perigee__net_allreduce_oneshot(perigee__net *net, const perigee__reduce_plan *plan);
/** Whether the group sits on several hosts, equally many ranks (more than one) on each. */
bool perigee__net_has_hosts(const perigee__net *net);
int perigee__net_allreduce_hier(perigee__net *net, const perigee__reduce_plan *plan);
int perigee__net_slices_direct(perigee__net *net, const perigee__reduce_plan *plan,
                               const perigee__slices *slices);
int perigee__net_slices_ring(perigee__net *net, const perigee__reduce_plan *plan,
                             const perigee__slices *slices);
int perigee__net_reduce_binomial(perigee__net *net, const perigee__reduce_plan *plan);
int perigee__net_reduce_chain(perigee__net *net, const perigee__reduce_plan *plan);

#endif
