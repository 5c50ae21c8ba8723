/*
 * Mesh: messages between the ranks of one world. Knows bytes, not dtypes.
 *
 * A mesh joins this rank to the others of its world. Towards each peer it has one channel that carries framed messages in
 * order: a pair of rings in shared memory when the peer is on the same host (and PERIGEE_TRANSPORT does not say tcp), else TCP,
 * dialled when first used, by who sends or who waits for a message. Messages are matched by (peer, key): a receive takes the
 * oldest message with its key.
 *
 * Same host: ranks with equal boot id connect UNIX sockets (abstract names, peer uid checked, nonce verified) at creation. These pass
 * file descriptors (memfd), wake a peer that sleeps, and by their EOF tell its death. They are kept whatever path carries
 * the data, so that death on one host is seen at once also with TCP.
 * Other hosts: the rank dials its right neighbour (rank + 1) at creation, so that every rank's death is seen by some other; who
 * sees it fails the groups concerned and tells every rank it is connected to (an ABORT frame is passed on once).
 *
 * Progress: the thread that waits drives (perigee__mesh_wait); otherwise the I/O thread of the mesh's loop (base/loop.h).
 * Thread-safety: every function from any thread. One lock per mesh, its loop's (rank MESH).
 */
#ifndef PERIGEE_TRANSPORT_MESH_H
#define PERIGEE_TRANSPORT_MESH_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <perigee/store.h>

#include "base/list.h"
#include "transport/fate.h"

typedef struct perigee__mesh perigee__mesh;

typedef enum perigee__transport {
  PERIGEE_TRANSPORT_AUTO,
  PERIGEE_TRANSPORT_SHM,
  PERIGEE_TRANSPORT_TCP
} perigee__transport;

typedef struct perigee__mesh_params {
  int rank, nranks;     /* world */
  perigee_store *store; /* prefixed for this world; borrowed during create only */
  perigee__transport
      transport; /* SHM: error when a peer is on another host; TCP: data never in shared memory */
  const char *bind_addr; /* numeric address to listen on and publish; NULL: 127.0.0.1 */
  int64_t deadline_ns;   /* of create */
  const char *
      host_id; /* ranks with the same are on one host: a word; NULL: boot id and network namespace */
} perigee__mesh_params;

/**
 * Exchange addresses through the store and connect what must be connected at once. Waits for all ranks.
 * Errors: ERENDEZVOUS "ranks 2,3 of 4 did not arrive within 10.0 s", EUNREACH (SHM forced, or cannot connect), ESTORE, ENOMEM, -errno.
 */
PERIGEE_MUST_CHECK int perigee__mesh_create(const perigee__mesh_params *params,
                                            perigee__mesh **mesh_p);
/** n meshes that are the ranks 0..n-1 of one world in this process, joined by socket pairs; each has its own loop and I/O thread. */
PERIGEE_MUST_CHECK int perigee__mesh_create_local(int n, perigee__transport transport,
                                                  perigee__mesh **meshes);
/**
 * Say goodbye to the peers after everything queued has gone out (at most until deadline_ns), fail what is still posted with
 * ECLOSED, stop the I/O thread and free. No other thread may use the mesh any more; all fates must be detached.
 */
void perigee__mesh_destroy(perigee__mesh **mesh_p, int64_t deadline_ns);

int perigee__mesh_rank(const perigee__mesh *mesh);
int perigee__mesh_size(const perigee__mesh *mesh);
/** Whether descriptors can be passed to that world rank (true for the own one). */
bool perigee__mesh_same_host(const perigee__mesh *mesh, int world_rank);
/** The lowest world rank on the host of that world rank. */
int perigee__mesh_host_of(const perigee__mesh *mesh, int world_rank);
/** Ranks of this world on this host, the own one included. */
int perigee__mesh_local_ranks(const perigee__mesh *mesh);
/** The transport asked for at creation. */
perigee__transport perigee__mesh_transport(const perigee__mesh *mesh);

/* ---- groups on the mesh ------------------------------------------------------------------------ */

/** From now on deaths and aborts reach this fate (also those that came before it was attached). */
int perigee__mesh_attach(perigee__mesh *mesh, perigee__fate *fate);
/** Tell the members that this rank has left the group (in order behind all data sent to them), fail what is still posted for
 *  the group with ECLOSED and drop what came for it. Afterwards the mesh does not touch the fate any more. */
void perigee__mesh_detach(perigee__mesh *mesh, perigee__fate *fate);
/** Fail the fate with error (when it has not failed yet), fail every posted transfer of the group, and tell all members. */
void perigee__mesh_fail_group(perigee__mesh *mesh, perigee__fate *fate, const perigee_error *error);
/** Whether that rank of the group is known here to be dead, or to have left the group or the world. */
bool perigee__mesh_member_gone(perigee__mesh *mesh, perigee__fate *fate, int rank);
/**
 * Ask every member how many collectives of the group it has entered: entered[r], UINT64_MAX for who does not answer until
 * deadline_ns. Peers answer on their I/O thread, whatever their main thread does. Used to name missing ranks.
 */
void perigee__mesh_query(perigee__mesh *mesh, perigee__fate *fate, int64_t deadline_ns,
                         uint64_t *entered);

/* ---- messages ---------------------------------------------------------------------------------- */

typedef enum perigee__key_kind {
  PERIGEE_KEY_COLL = 1,
  PERIGEE_KEY_P2P = 2
} perigee__key_kind;

/** What a message is matched by, besides the peer. */
typedef struct perigee__key {
  uint64_t group; /* perigee__fate.group */
  uint64_t tag;   /* p2p: user tag; coll: (sequence number << 16) | step */
  uint32_t kind;
} perigee__key;

/**
 * One message on its way: caller's memory, zeroed before first use, that stays valid and unmoved until `done`.
 * Fields below "out" are written by the mesh before done is released.
 */
typedef struct perigee__xfer {
  /* in, set by perigee__mesh_send / _recv */
  perigee__node node;
  perigee__fate *fate;
  perigee__key key;
  int peer; /* world rank; -1 on receive: any source. After done: the actual source */
  bool is_send;
  void *buf;
  size_t size; /* bytes to send, or room of the receive buffer */
  uint64_t
      fp; /* send: fingerprint to put in the header; receive: expected one, 0 = do not compare */
  void (*on_done)(
      struct perigee__xfer
          *xfer); /* or NULL; set before posting. Called once on the thread that ended it, no lock
                                                  held; it may free the xfer. A xfer with on_done is not waited for by `done` */
  bool
      at_once; /* with on_done: an end within the call that posts is told by what that returns, not by on_done */
  bool waits; /* receive: the caller waits for it next, so the call may poll a moment by itself */
  int64_t
      deadline_ns; /* with on_done: it ends with ETIMEDOUT then, whoever drives; 0 or PERIGEE_NEVER: never */
  /* out */
  _Atomic uint32_t done; /* 0 -> 1, release; acquire by the waiter */
  int status; /* 0, or the code: EPEERDEAD EPEERCLOSED EMISMATCH ETRUNC ECANCELED EABORTED ECLOSED EUNREACH
                 ETIMEDOUT (deadline_ns) */
  size_t received;  /* bytes of the message (may exceed size with ETRUNC) */
  uint64_t peer_fp; /* fingerprint that came with the message */
  /* the mesh's own */
  uint32_t phase;
  bool posting; /* inside the call that posts */
  uint64_t id;
  size_t moved;
  uint64_t remote; /* where it is read from (pull.c) */
  uint32_t parts;  /* it is moved in so many by both ranks (help.c); 0: by this one */
} perigee__xfer;

/**
 * Post a message. Never waits; buf is borrowed until done. Messages to one peer with one key arrive in the order posted. A message
 * that is small enough is sent without asking and kept by the receiver until it is wanted, within a budget per peer; a larger
 * one, or one beyond the budget, announces itself and its data moves when the receiver has posted its buffer, straight into it.
 * A send with on_done that comes close behind others over TCP may be written together with what follows: when a thread waits for
 * anything, with the next call, or else within a millisecond or two.
 * Posting never fails by return value: an error ends the xfer (status). Returns whether it has ended within the call, well or not.
 */
bool perigee__mesh_send(perigee__mesh *mesh, perigee__fate *fate, int peer, perigee__key key,
                        const void *buf, size_t size, uint64_t fp, perigee__xfer *xfer);
bool perigee__mesh_recv(perigee__mesh *mesh, perigee__fate *fate, int peer, perigee__key key,
                        void *buf, size_t size, uint64_t expected_fp, perigee__xfer *xfer);

/**
 * Drive until all n xfers are done, the fate failed, or the deadline passed. fate may be NULL.
 * Returns 0 when all are done (their status tells more), ETIMEDOUT, or EABORTED when the fate failed first. In the latter two the caller must
 * perigee__mesh_cancel what is not done before it gives up the memory.
 */
PERIGEE_MUST_CHECK int perigee__mesh_wait(perigee__mesh *mesh, perigee__xfer *const *xfers, int n,
                                          perigee__fate *fate, int64_t deadline_ns);
/** As wait, until any one of them is done. Returns 0 then. */
PERIGEE_MUST_CHECK int perigee__mesh_wait_any(perigee__mesh *mesh, perigee__xfer *const *xfers,
                                              int n, perigee__fate *fate, int64_t deadline_ns);
/**
 * Drive until *word != value (somebody else's event, for example a work that completes), the deadline passed (ETIMEDOUT). Whoever changes the word
 * calls perigee__mesh_kick. Used to wait for works that the mesh completes through on_done.
 */
PERIGEE_MUST_CHECK int perigee__mesh_wait_word(perigee__mesh *mesh, _Atomic uint32_t *word,
                                               uint32_t value, int64_t deadline_ns);
void perigee__mesh_kick(perigee__mesh *mesh);

/**
 * Take a posted xfer back: it ends with ECANCELED unless it was done already. When its bytes are partly on the wire the mesh keeps the
 * stream in order by itself (it goes on from a copy, or swallows the rest). After return the mesh does not touch its buffer, and xfer
 * only when it has an on_done that another thread is about to call.
 */
void perigee__mesh_cancel(perigee__mesh *mesh, perigee__xfer *xfer);

/* ---- shared memory ------------------------------------------------------------------------------ */

/**
 * Give one descriptor to all members: member 0 passes *fd_p (it keeps it), the others get a new one (close-on-exec) in *fd_p.
 * All members must be on this host. key: same on all, used once. Waits.
 */
PERIGEE_MUST_CHECK int perigee__mesh_share_fd(perigee__mesh *mesh, const int *members, int n,
                                              int me, uint64_t key, int64_t deadline_ns, int *fd_p);

#endif
