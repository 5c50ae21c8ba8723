/*
 * Blocks that do not fit: the same error on every rank, about the same block.
 *
 * A block must be exactly as long as its receiver's room. Sender and receiver each know one of the two numbers, and data may be under way
 * before they are compared. So nobody judges by the data: while net->comparing is set, a block message longer than its room
 * is set aside (net_scope.c). The notes of the roll call tell all ranks alike whether everything fits:
 *   gather, scatter       all sizes and rooms are in the notes; net_exchange.c finds the block itself
 *   allgather, alltoall   checksums of them. When these differ all ranks come here and tell each other every size in a second
 *                         roll call, so the n^2 numbers travel only in a call that fails.
 * All ranks look at all pairs in one order, by sender, then receiver, as in shared memory (shm_sizes.c): the first that does not fit
 * is the error of all, whoever is the first to fail the group.
 */
#include <string.h>

#include "coll/net_call.h"

/* Word i of a rank's note: bytes for rank i; room for what rank i - n sends. */
static uint64_t word_of(const perigee__net *net, int rank, int i) {
  size_t bytes;
  uint64_t word;
  const unsigned char *note = perigee__roll_note(net, rank, &bytes);
  memcpy(&word, note + 8 * (size_t)i, 8);
  return word;
}

static int tell_sizes(perigee__net *net) {
  const perigee__coll_call *call = net->call;
  size_t n = (size_t)net->n;
  uint64_t *sizes = perigee__net_buffer(net, 2 * n, sizeof(*sizes));
  if (sizes == NULL)
    return net->error->code;
  for (size_t r = 0; r < n; r++) {
    sizes[r] = call->kind == PERIGEE_COLL_ALLGATHER ? call->in_bytes : call->in_blocks[r].bytes;
    sizes[n + r] = call->out_blocks[r].bytes;
  }
  PERIGEE_TRY(perigee__roll_start_notes(net, sizes, 16 * n, 16 * n * n, NULL));
  PERIGEE_TRY(perigee__roll_wait(net));
  for (int r = 0; r < net->n; r++) {
    size_t bytes;
    perigee__roll_note(net, r, &bytes);
    if (bytes != 16 * n)
      return perigee__net_blame_proto(net, r);
  }
  return 0;
}

int perigee__net_blame_sizes(perigee__net *net) {
  PERIGEE_TRY(tell_sizes(net));
  for (int from = 0; from < net->n; from++)
    for (int to = 0; to < net->n; to++) {
      uint64_t bytes = word_of(net, from, to), room = word_of(net, to, net->n + from);
      if (bytes != room)
        return perigee__net_blame_room(net, from, (size_t)bytes, to, (size_t)room);
    }
  /* Some rank's checksum was not that of its sizes; nobody can tell whose. */
  return perigee__net_blame_proto(net, net->me);
}
