/* One group's collectives: which engine runs them, and the ones of a group of one rank. */
#include "coll/coll.h"

#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/env.h"
#include "base/log.h"
#include "coll/arena.h"
#include "coll/explain.h"
#include "coll/net.h"
#include "coll/tuning.h"
#include "tensor/reduce.h"

struct perigee__coll {
  perigee__mesh *mesh;      /* borrowed; NULL for one rank */
  perigee__fate *fate;      /* borrowed */
  perigee__arena *arena;    /* owned; NULL: over the mesh */
  perigee__net_spare spare; /* block owned; used by who runs a call */
  perigee__tuning tuning;
};

static bool on_one_host(perigee__mesh *mesh, const perigee__fate *fate) {
  if (perigee__mesh_transport(mesh) == PERIGEE_TRANSPORT_TCP)
    return false;
  for (int r = 0; r < fate->n; r++)
    if (!perigee__mesh_same_host(mesh, fate->members[r]))
      return false;
  return true;
}

/* Every rank comes to the same answer: where the members are is known alike to all, and member 0 tells whether there is memory. */
static int open_engine(perigee__coll *coll, int64_t deadline_ns) {
  PERIGEE_TRY(perigee__net_agree(coll->mesh, coll->fate, &coll->tuning, deadline_ns));
  if (on_one_host(coll->mesh, coll->fate)) {
    int rc = perigee__arena_create(coll->mesh, coll->fate, deadline_ns, &coll->arena);
    if (rc == 0)
      perigee__arena_tune(coll->arena, &coll->tuning);
    if (rc != PERIGEE_ENOSHM)
      return rc;
    static _Atomic bool said; /* relaxed: what one group cannot have its subgroups cannot either */
    bool wanted = strcmp(perigee__env("PERIGEE_PATH"), "tcp") == 0;
    bool quiet = wanted || atomic_exchange_explicit(&said, true, memory_order_relaxed);
    perigee__log(quiet ? PERIGEE_LOG_INFO : PERIGEE_LOG_WARN,
                 "group %s: %s: using messages instead", coll->fate->name,
                 perigee__last_error()->message);
  }
  return 0;
}

int perigee__coll_create(const perigee__coll_params *params, perigee__coll **coll_p) {
  perigee__coll *coll = perigee__calloc(1, sizeof(*coll));
  if (coll == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory for a group's collectives");
  coll->fate = params->fate;
  int rc = perigee__tuning_read_for(params->rules, params->fate->n, &coll->tuning);
  if (rc == 0 && params->fate->n > 1) {
    coll->mesh = params->mesh;
    rc = open_engine(coll, params->deadline_ns);
  }
  if (rc != 0) {
    free(coll);
    return rc;
  }
  *coll_p = coll;
  return 0;
}

void perigee__coll_destroy(perigee__coll **coll_p) {
  perigee__coll *coll = *coll_p;
  if (coll == NULL)
    return;
  perigee__arena_destroy(&coll->arena);
  free(coll->spare.block);
  free(coll);
  *coll_p = NULL;
}

int perigee__coll_alloc(perigee__coll *coll, size_t bytes, uint64_t what, int64_t deadline_ns,
                        perigee__segment **segment_p, void **data_p) {
  if (coll->arena == NULL)
    return perigee__fail(PERIGEE_ENOSHM, "the ranks share no memory");
  return perigee__arena_alloc(coll->arena, bytes, what, deadline_ns, segment_p, data_p);
}

const char *perigee__coll_transport(const perigee__coll *coll) {
  return coll->mesh == NULL ? "self" : coll->arena != NULL ? "shm" : "tcp";
}

int perigee__coll_explain(const perigee__coll *coll, perigee__coll_kind kind, uint64_t bytes,
                          bool symmetric, perigee_choice *choice_p) {
  const perigee__place_facts facts = {
      .tuning = &coll->tuning,
      .table = coll->arena != NULL ? perigee__arena_table(coll->arena) : NULL,
      .n = coll->fate->n,
      .hosts = coll->mesh != NULL && coll->arena == NULL &&
               perigee__net_on_hosts(coll->mesh, coll->fate, &coll->tuning)};
  return perigee__explain(&facts, kind, bytes, symmetric, choice_p);
}

/* ---- one rank ---------------------------------------------------------------------------------- */

/* The result of a reduction of one contribution: avg divides it, premul_sum multiplies it. */
static int self_reduce(const perigee__coll_call *call, const void *in, size_t count) {
  perigee__reduce_plan plan;
  PERIGEE_TRY(perigee__reduce_init(&plan, call->dtype, call->redop, call->factor, call->ncontrib));
  if (count > 0)
    perigee__reduce_nary(&plan, call->out, &in, 1, count);
  return 0;
}

static int self_copy(void *to, size_t room, const void *from, size_t bytes) {
  if (bytes != room)
    return perigee__fail(bytes > room ? PERIGEE_ETRUNC : PERIGEE_ESHAPE,
                         "rank 0 has %zu bytes for rank 0, which %s %zu", bytes,
                         bytes > room ? "has room for" : "expects", room);
  if (bytes > 0 && to != from)
    memcpy(to, from, bytes);
  return 0;
}

static int self_run(const perigee__coll_call *call) {
  switch (call->kind) {
  case PERIGEE_COLL_BARRIER:
  case PERIGEE_COLL_BROADCAST:
    return 0;
  case PERIGEE_COLL_ALLREDUCE:
  case PERIGEE_COLL_REDUCE:
    return self_reduce(call, call->in, call->count);
  case PERIGEE_COLL_REDUCE_SCATTER:
    return self_reduce(call, call->in_blocks[0].ptr, call->counts[0]);
  case PERIGEE_COLL_ALLGATHER:
  case PERIGEE_COLL_GATHER:
    return self_copy(call->out_blocks[0].ptr, call->out_blocks[0].bytes, call->in, call->in_bytes);
  case PERIGEE_COLL_SCATTER:
    return self_copy(call->out, call->out_bytes, call->in_blocks[0].ptr, call->in_blocks[0].bytes);
  case PERIGEE_COLL_ALLTOALL:
    return self_copy(call->out_blocks[0].ptr, call->out_blocks[0].bytes, call->in_blocks[0].ptr,
                     call->in_blocks[0].bytes);
  }
  return perigee__fail(PERIGEE_EBUG, "collective %d is none", (int)call->kind);
}

static int run_alone(const perigee__coll *coll, const perigee__coll_call *call,
                     perigee_error *error_p) {
  int rc = self_run(call);
  if (rc == 0)
    return 0;
  *error_p = *perigee__last_error();
  error_p->op = call->op;
  error_p->seq = call->shown_seq;
  error_p->rank = 0;
  memcpy(error_p->group, coll->fate->name, sizeof(error_p->group));
  return rc;
}

int perigee__coll_run(perigee__coll *coll, const perigee__coll_call *call, perigee_error *error_p) {
  if (perigee__fate_failed(coll->fate)) {
    /* This very call has failed on another rank while this one was on its way: it gets the same error. */
    bool same = coll->fate->error.seq == call->shown_seq;
    return perigee__fate_error(coll->fate, call->op, call->shown_seq, same, error_p);
  }
  /* relaxed: it is compared with other ranks' counters, and orders nothing */
  atomic_store_explicit(&coll->fate->entered, call->seq, memory_order_relaxed);
  if (coll->mesh == NULL)
    return run_alone(coll, call, error_p);
  if (coll->arena != NULL)
    return perigee__shm_run(coll->arena, call, error_p);
  return perigee__net_run(coll->mesh, coll->fate, &coll->tuning, &coll->spare, call, error_p);
}
