/* Entry of the shared-memory engine: what is common to all collectives, and the choice among them by kind. */
#include "coll/shm_impl.h"

#include "base/assert.h"

/* A rank that waits for one that copies does not sleep before this much could have been copied: being woken takes as long as a MiB. */
enum {
  BYTES_PER_NS = 4
};

int perigee__shm_plan(perigee__arena *a, perigee__reduce_plan *plan) {
  const perigee__coll_call *call = a->call;
  int rc = perigee__reduce_init(plan, call->dtype, call->redop, call->factor, call->ncontrib);
  if (PERIGEE_LIKELY(rc == 0))
    return 0;
  perigee__arena_error(a, rc, "%s", perigee_last_error()->message);
  return rc;
}

/* How much the lines and buffers of this kind of collective need of those used before. The rooted ones look again when they go on to buffers. */
static uint32_t room_of(perigee__coll_kind kind) {
  return kind == PERIGEE_COLL_BROADCAST || kind == PERIGEE_COLL_REDUCE ||
                 kind == PERIGEE_COLL_GATHER || kind == PERIGEE_COLL_SCATTER
             ? PERIGEE_ARENA_LINE_ROOM
             : PERIGEE_ARENA_BUFFER_ROOM;
}

static int run(perigee__arena *a, const perigee__coll_call *call) {
  PERIGEE_TRY(perigee__arena_room(a, room_of(call->kind)));
  switch (call->kind) {
  case PERIGEE_COLL_BARRIER:
    return perigee__shm_barrier(a);
  case PERIGEE_COLL_ALLREDUCE:
    return perigee__shm_allreduce(a);
  case PERIGEE_COLL_BROADCAST:
    return perigee__shm_broadcast(a);
  case PERIGEE_COLL_REDUCE:
    return perigee__shm_reduce(a);
  case PERIGEE_COLL_ALLGATHER:
    return perigee__shm_allgather(a);
  case PERIGEE_COLL_GATHER:
    return perigee__shm_gather(a);
  case PERIGEE_COLL_SCATTER:
    return perigee__shm_scatter(a);
  case PERIGEE_COLL_REDUCE_SCATTER:
    return perigee__shm_reduce_scatter(a);
  case PERIGEE_COLL_ALLTOALL:
    return perigee__shm_alltoall(a);
  }
  PERIGEE_BUG("no collective of kind %d", (int)call->kind);
}

/* Of this rank's tensors. */
static size_t bytes_of(const perigee__arena *a, const perigee__coll_call *call) {
  size_t bytes = call->count * perigee_dtype_size(call->dtype) + call->bytes + call->in_bytes +
                 call->out_bytes;
  for (int r = 0; r < a->n; r++) {
    bytes += call->in_blocks != NULL ? call->in_blocks[r].bytes : 0;
    bytes += call->out_blocks != NULL ? call->out_blocks[r].bytes : 0;
  }
  return bytes;
}

int perigee__shm_run(perigee__arena *a, const perigee__coll_call *call, perigee_error *error_p) {
  /* relaxed both: numbers that other ranks ask for to say who is missing */
  atomic_store_explicit(&a->fate->entered, call->seq, memory_order_relaxed);
  atomic_store_explicit(&a->status[a->me].entered, call->seq, memory_order_relaxed);
  (void)perigee__arena_here(a);
  a->call = call;
  a->error = error_p;
  a->aux = 0;
  a->before = a->epoch;
  size_t bytes = bytes_of(a, call);
  a->work_ns = a->mode == PERIGEE_ARENA_SPIN ? (int64_t)(bytes / BYTES_PER_NS) : 0;
  a->past_caches = bytes >= a->table.past_min;
  if (PERIGEE_UNLIKELY(perigee__fate_failed(a->fate)))
    return perigee__fate_error(a->fate, call->op, call->shown_seq, false, error_p);
  perigee__shm_learn(a);
  int rc = run(a, call);
  if (PERIGEE_UNLIKELY(rc < 0) && perigee__fate_failed(a->fate))
    perigee__arena_break(a);
  return rc;
}
