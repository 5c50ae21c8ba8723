/*
 * Process groups.
 *
 * A group is a set of ranks 0..size-1, a stack of layers (backend.h) and a sequence of operations. Every rank issues its
 * collectives on one group in the same order; point-to-point operations are matched by (peer, tag) in FIFO order.
 * Distinct groups are independent. Roots and peers are group-local ranks.
 *
 * Threads: every function may be called from any thread; collectives of one group issued from several threads need
 *   an order agreed by the callers, as on any process group.
 * Locks: none may be held by a caller in functions marked "waits".
 * After the first failure that involves a peer (EPEERDEAD, EMISMATCH, ETIMEDOUT of a collective, abort) the group is failed:
 *   everything pending ends with that cause, later calls return EABORTED (EPEERDEAD stays itself) with the cause in the message.
 * Rooted operations: a rank that only gives (the root of a broadcast or scatter, the others of a reduce or gather) may return before
 *   the others have come. Who receives has compared operation, dtype, size and root with who gave; a rank that had returned by then
 *   gets EMISMATCH, ETRUNC or ESHAPE, or EABORTED with it in the message, from its next operation. Use a barrier to know that all have come.
 */
#ifndef PERIGEE_GROUP_H
#define PERIGEE_GROUP_H

#include <stdbool.h>
#include <stdint.h>

#include "backend.h"
#include "error.h"
#include "export.h"
#include "op.h"
#include "store.h"
#include "work.h"

typedef struct perigee_group perigee_group;

typedef struct perigee_init_options {
  uint32_t size;
  const char *backend;     /* stack string; NULL: PERIGEE_BACKEND or "native" */
  int rank, nranks;        /* -1: from the environment; both or none */
  perigee_store *store;    /* NULL: from the environment; not needed when nranks is 1 */
  int64_t timeout_ns;      /* default of operations; <= 0: 30 min */
  int64_t init_timeout_ns; /* of this call; <= 0: PERIGEE_INIT_TIMEOUT seconds or 300 s */
  const char *name;        /* NULL: "world" */
  /** Shown to every layer's open (perigee_layer_info.options), inherited by subgroups. Borrowed for the time of the call; or NULL. */
  perigee_shared *layer_options;
  /** Rules that choose algorithms by size, before those of the environment, inherited by subgroups: "allreduce/spin@2:64k-:twoshot"
   *  (`perigee info --rules` shows the built-in ones). The same on all ranks, else ECONFIG. Borrowed for the time of the call; or NULL. */
  const char *tuning;
} perigee_init_options;

/** All defaults. */
PERIGEE_API void perigee_init_options_init(perigee_init_options *opts);

/**
 * Join the world of this process. Waits for all ranks.
 * Environment: RANK and WORLD_SIZE (torchrun, perigee run), else OMPI_COMM_WORLD_*, PMI_*, SLURM_*; nothing set: size 1.
 *   MASTER_ADDR and MASTER_PORT name the store. May be called again: each call is a new world (own generation on the store).
 * Owns: *group_p: returned owned; end it with perigee_group_close and perigee_group_unref.
 * Errors: EINVAL, ERENDEZVOUS or ETIMEDOUT naming missing ranks, ECONFIG (sizes differ), EDUPRANK, ESTORE, ENOENT (backend).
 */
PERIGEE_API PERIGEE_MUST_CHECK int perigee_init(const perigee_init_options *opts,
                                                perigee_group **group_p);

/**
 * n groups that are the ranks 0..n-1 of one world inside this process, to be used from n threads ("local").
 * groups: n entries, each returned owned.
 */
PERIGEE_API PERIGEE_MUST_CHECK int perigee_init_local(int n, const perigee_init_options *opts,
                                                      perigee_group **groups);

PERIGEE_API perigee_group *perigee_group_ref(perigee_group *group);
PERIGEE_API void perigee_group_unref(perigee_group *group); /* NULL is accepted; never blocks */

/**
 * End the group on this rank: pending works end with ECLOSED, peers are told, resources go. Idempotent.
 * Waits: at most 2 s, for data that is still on its way out. From a callback or hook it only requests the end.
 */
PERIGEE_API int perigee_group_close(perigee_group *group);
PERIGEE_API bool perigee_group_is_closed(const perigee_group *group);

/**
 * Orderly end: wait until everything pending on this rank has ended, then close. A layer may override the wait. Idempotent.
 * Waits: at most timeout_ns (<= 0: the group's default), and as close does.
 * Errors: ETIMEDOUT, or what a layer's override says; the group is closed all the same. EDEADLK in callbacks.
 */
PERIGEE_API int perigee_group_shutdown(perigee_group *group, int64_t timeout_ns);

/** The rank and the size; or what a layer that overrides them says: then < 0 when it fails (detail: perigee_last_error()). */
PERIGEE_API int perigee_group_rank(const perigee_group *group);
PERIGEE_API int perigee_group_size(const perigee_group *group);
PERIGEE_API const char *perigee_group_name(const perigee_group *group);
/** The stack, "log(fp16(native))". */
PERIGEE_API const char *perigee_group_backend(const perigee_group *group);
/** Transport in use for the whole group: "shm", "tcp", "self", or "" when the bottom is not native. */
PERIGEE_API const char *perigee_group_transport(const perigee_group *group);
/** The group's own prefixed store, NULL when it has none. Borrowed. */
PERIGEE_API perigee_store *perigee_group_store(const perigee_group *group);
/** Rank of the world that is `rank` here, -1 when out of range; and back (-1: no member). */
PERIGEE_API int perigee_group_to_world(const perigee_group *group, int rank);
PERIGEE_API int perigee_group_from_world(const perigee_group *group, int world_rank);
/** Collectives accepted so far. */
PERIGEE_API uint64_t perigee_group_seq(const perigee_group *group);

PERIGEE_API int64_t perigee_group_timeout(const perigee_group *group);
PERIGEE_API int perigee_group_set_timeout(perigee_group *group, int64_t timeout_ns);

/**
 * Start an operation. Checks the request against the operation's row and the tensors first.
 * Returns at once: 0 and *work_p (returned owned), or EINVAL ESHAPE EDTYPE ERANGE ENOTSUP ECLOSED EABORTED and no work.
 */
PERIGEE_API PERIGEE_MUST_CHECK int
perigee_group_submit(perigee_group *group, const perigee_request *req, perigee_work **work_p);
/** Run an operation to its end on this thread. Waits. Detail of an error: perigee_last_error(). */
PERIGEE_API PERIGEE_MUST_CHECK int perigee_group_run(perigee_group *group,
                                                     const perigee_request *req);

/** Whether op reaches the bottom without any layer in between (it never takes an interpreter's mutex then). */
PERIGEE_API bool perigee_group_is_direct(const perigee_group *group, int op);

/**
 * Subgroups. Both are collective over the members only for subgroup, over all ranks for split, and wait for them.
 * split: ranks with the same color form a group ordered by (key, rank); color < 0: *group_p is NULL.
 * subgroup: ranks in this order become 0..n-1; a caller that is not in the list gets NULL and does not wait.
 * name: NULL: made from the parent's name. The chain of layers is inherited.
 * Errors: EINVAL (empty, duplicate, out of range), ETIMEDOUT, ...
 */
PERIGEE_API PERIGEE_MUST_CHECK int perigee_group_split(perigee_group *group, int color, int key,
                                                       const char *name, perigee_group **group_p);
PERIGEE_API PERIGEE_MUST_CHECK int perigee_group_subgroup(perigee_group *group, const int *ranks,
                                                          int n, const char *name,
                                                          perigee_group **group_p);

/**
 * Coalescing: several operations as one batch. Between start and end, perigee_group_submit and perigee_group_run of the calling
 * thread on this group check the request and put it in the batch; submit returns a work of its own for it, run returns 0 at
 * once, and its outcome is that of the batch. end submits them all in their order and returns one work (owned) that ends when
 * all have ended: with the error of the first that failed, naming which. cancel drops them: their works end with ECANCELED.
 * Units:   timeout_ns: of operations that have none of their own; PERIGEE_TIMEOUT_DEFAULT the group's.
 * Threads: a batch belongs to the thread that started it; operations of other threads are not part of it. Every start needs its end or
 *   cancel on the same thread.
 * Never waits. Waiting for a work of the batch before its end, on the batch's thread, is EDEADLK.
 * Errors: start: ESTATE when this thread has a batch open on the group; ECLOSED. end, cancel: ESTATE without one. What fails once
 *   the batch is submitted fails the work.
 */
PERIGEE_API PERIGEE_MUST_CHECK int perigee_group_coalesce_start(perigee_group *group,
                                                                int64_t timeout_ns);
PERIGEE_API PERIGEE_MUST_CHECK int perigee_group_coalesce_end(perigee_group *group,
                                                              perigee_work **work_p);
PERIGEE_API int perigee_group_coalesce_cancel(perigee_group *group);
/** Whether the calling thread has a batch open on the group. */
PERIGEE_API bool perigee_group_is_coalescing(const perigee_group *group);

/**
 * After a failure: a new group of the ranks that are alive, in the same order, with the same stack. Every survivor calls it; they agree
 * on the store who belongs to it, and all that return 0 got the same members. A rank that died, left, or does not come within half of the
 * time is not one of them. When another one dies meanwhile they agree anew, without it. The old group stays as it is; close it.
 * timeout_ns: <= 0: the group's default, at most 60 s. name: NULL: made from the group's.
 * Errors: ETIMEDOUT naming who is missing; ESTATE: the others went on without this rank; ESTORE; ENOTSUP without a store.
 */
PERIGEE_API PERIGEE_MUST_CHECK int perigee_group_shrink(perigee_group *group, int64_t timeout_ns,
                                                        const char *name, perigee_group **group_p);
/**
 * Close this group, failed or not, and form another one with the same stack, whose ranks meet anew; also for a group that is closed. After an
 * error it may be called again. Waits for all ranks of the new one.
 * *group_p: returned owned; NULL when a layer's override did it in place and the group stays.
 * Errors: those of perigee_init.
 */
PERIGEE_API PERIGEE_MUST_CHECK int
perigee_group_reconfigure(perigee_group *group, const perigee_reconfigure_options *opts,
                          perigee_group **group_p);

/**
 * A contiguous tensor of zeros in memory that all ranks of the group on this host share: collectives whose tensors on all ranks are views
 * of one such tensor, at whatever offset, work straight in it instead of copying through buffers. Otherwise a tensor like any other.
 * Collective: every rank calls it with the same dtype and shape, in the same order as its other collectives. Waits for all ranks.
 * Memory:  on a group of one rank, over TCP, on a bottom other than native, or where shared memory is refused: ordinary memory. Not
 *          there in a forked child. After a failure of the group other ranks may still write to it until they have heard of it.
 * Owns:    *tensor_p: returned owned; it may outlive the group. Its memory goes here with the last view, elsewhere with theirs.
 * Errors:  as perigee_tensor_create; EMISMATCH (ranks differ), ETIMEDOUT, EPEERDEAD ... fail the group.
 */
PERIGEE_API PERIGEE_MUST_CHECK int perigee_group_alloc(perigee_group *group, perigee_dtype dtype,
                                                       int ndim, const int64_t *shape,
                                                       perigee_tensor **tensor_p);

/** How an operation of some size runs on a group, and who decided it. */
typedef struct perigee_choice {
  uint32_t size;
  char transport[8];  /* "shm", "tcp", "self" */
  char wait[8];       /* "spin", "park"; "" elsewhere than in shared memory */
  char path[16];      /* "oneshot", "ring" ... */
  uint64_t from, end; /* bytes over which it stays so, end not included; UINT64_MAX: without end */
  char why[704];      /* the rule and where it is from: "built in", a variable, "FILE:LINE" */
  char possible[96];  /* paths that rules may name here, separated by spaces */
} perigee_choice;

/**
 * What the bottom would do with an operation: the very decision that is taken when it runs.
 * nbytes: of the vector, or of one rank's block (allgather, gather, scatter, reduce_scatter, alltoall: of the largest).
 * symmetric: as if its tensors were from perigee_group_alloc.
 * choice_p->size must be sizeof(perigee_choice). Never waits for peers.
 * Errors: EINVAL: an operation whose way does not depend on its size (barriers, messages); ENOTSUP: the bottom is not native.
 */
PERIGEE_API PERIGEE_MUST_CHECK int perigee_group_explain(perigee_group *group, int op,
                                                         uint64_t nbytes, bool symmetric,
                                                         perigee_choice *choice_p);

/** Fail the group on every rank: pending and later operations end with EABORTED and this reason. Never waits. */
PERIGEE_API int perigee_group_abort(perigee_group *group, const char *reason);
/** 0 while healthy; else the code, and the first cause in *error_p (may be NULL). */
PERIGEE_API int perigee_group_failed(const perigee_group *group, perigee_error *error_p);

/* ---- the common operations as plain calls. All wait. ------------------------------------------- */

PERIGEE_API int perigee_allreduce(perigee_group *group, perigee_tensor *tensor,
                                  perigee_redop_kind op);
PERIGEE_API int perigee_broadcast(perigee_group *group, perigee_tensor *tensor, int root);
PERIGEE_API int perigee_reduce(perigee_group *group, perigee_tensor *tensor, int root,
                               perigee_redop_kind op);
PERIGEE_API int perigee_allgather_into_tensor(perigee_group *group, perigee_tensor *out,
                                              perigee_tensor *in);
PERIGEE_API int perigee_barrier(perigee_group *group);
PERIGEE_API int perigee_send(perigee_group *group, perigee_tensor *tensor, int dst, int64_t tag);
PERIGEE_API int perigee_recv(perigee_group *group, perigee_tensor *tensor, int src, int64_t tag);

#endif
