/*
 * Sizes of blocks that may differ by rank: announced in the publish lines, compared by every rank before any data is used.
 *
 * Allgather, gather, scatter and alltoall take blocks whose sizes each rank knows for itself alone. What i sends to j and the room j has for
 * i must be equal. Allgather, alltoall: all ranks look at all pairs, so that all come to the same error without another meeting. Gather:
 * the root looks at all pairs. Scatter: every rank looks at its own block and the root at nothing; it hears of an error through the fate.
 * Nearly always there is one size. A rank whose own numbers are all that size says so (UNIFORM) and gives it once; when all
 * ranks do, one comparison per rank is enough and the second lines are not read. Otherwise all n^2 pairs are compared.
 */
#include "coll/shm_impl.h"

/* What this rank sends to r, what room it has for r; 0 where the collective moves nothing. */
static size_t own_send(const perigee__arena *a, int r) {
  const perigee__coll_call *call = a->call;
  switch (call->kind) {
  case PERIGEE_COLL_ALLGATHER:
    return call->in_bytes;
  case PERIGEE_COLL_GATHER:
    return r == call->root ? call->in_bytes : 0;
  case PERIGEE_COLL_SCATTER:
    return a->me == call->root ? call->in_blocks[r].bytes : 0;
  default:
    return call->in_blocks[r].bytes;
  }
}

static size_t own_room(const perigee__arena *a, int r) {
  const perigee__coll_call *call = a->call;
  switch (call->kind) {
  case PERIGEE_COLL_GATHER:
    return a->me == call->root ? call->out_blocks[r].bytes : 0;
  case PERIGEE_COLL_SCATTER:
    return r == call->root ? call->out_bytes : 0;
  default:
    return call->out_blocks[r].bytes;
  }
}

/* Whether the collective moves a block from one rank to another. */
static bool moves(const perigee__arena *a, int from, int to) {
  switch (a->call->kind) {
  case PERIGEE_COLL_GATHER:
    return to == a->call->root;
  case PERIGEE_COLL_SCATTER:
    return from == a->call->root;
  default:
    return true;
  }
}

/* The one size of this rank's blocks, if there is one. */
static bool one_size(const perigee__arena *a, size_t *size_p) {
  bool any = false;
  for (int r = 0; r < a->n; r++) {
    size_t sizes[2];
    int n = 0;
    if (moves(a, a->me, r))
      sizes[n++] = own_send(a, r);
    if (moves(a, r, a->me))
      sizes[n++] = own_room(a, r);
    for (int i = 0; i < n; i++) {
      if (any && sizes[i] != *size_p)
        return false;
      *size_p = sizes[i];
      any = true;
    }
  }
  return any;
}

void perigee__shm_announce(perigee__arena *a, bool inlined, size_t length) {
  size_t size = 0;
  if (inlined)
    a->aux |= PERIGEE_SHM_INLINE | (uint32_t)length << PERIGEE_SHM_LENGTH_SHIFT;
  if (one_size(a, &size)) {
    a->aux |= PERIGEE_SHM_UNIFORM;
    if (!inlined)
      memcpy(perigee__arena_next_payload(a, sizeof(uint64_t)), &(uint64_t){size}, sizeof(uint64_t));
    return;
  }
  uint64_t *sizes = perigee__arena_next_sizes(a);
  for (int r = 0; r < a->n; r++) {
    sizes[r] = own_send(a, r);
    sizes[a->n + r] = own_room(a, r);
  }
}

bool perigee__shm_inline_blocks(perigee__arena *a, const perigee__block *blocks) {
  size_t bytes = blocks[0].bytes;
  if (bytes > PERIGEE_ARENA_INLINE / (size_t)a->n)
    return false;
  for (int r = 1; r < a->n; r++)
    if (blocks[r].bytes != bytes)
      return false;
  unsigned char *payload = perigee__arena_next_payload(a, bytes * (size_t)a->n);
  for (int r = 0; r < a->n; r++)
    perigee__shm_copy(payload + (size_t)r * bytes, blocks[r].ptr, bytes);
  perigee__shm_announce(a, true, bytes);
  return true;
}

size_t perigee__shm_largest(const perigee__arena *a, const perigee__block *blocks) {
  size_t most = 0;
  for (int r = 0; r < a->n; r++)
    most = blocks[r].bytes > most ? blocks[r].bytes : most;
  return most;
}

/* The size a uniform rank announced. */
static size_t uniform_size(const perigee__arena_line *line) {
  uint64_t size;
  if (line->aux & PERIGEE_SHM_INLINE)
    return line->aux >> PERIGEE_SHM_LENGTH_SHIFT;
  memcpy(&size, line->payload, sizeof(size));
  return (size_t)size;
}

static size_t announced(const perigee__arena *a, int rank, int index) {
  const perigee__arena_line *line = perigee__arena_line_of(a, rank);
  return line->aux & PERIGEE_SHM_UNIFORM ? uniform_size(line)
                                         : (size_t)perigee__arena_sizes_of(a, rank)[index];
}

size_t perigee__shm_sent(const perigee__arena *a, int rank, int to) {
  return announced(a, rank, to);
}

static int compare(perigee__arena *a, int from, int to, size_t sent, size_t room) {
  if (sent == room)
    return 0;
  perigee__arena_error(a, sent > room ? PERIGEE_ETRUNC : PERIGEE_ESHAPE,
                       "rank %d has %zu bytes for rank %d, which %s %zu", from, sent, to,
                       sent > room ? "has room for" : "expects", room);
  perigee__error_add_rank(a->error, from);
  perigee__error_add_rank(a->error, to);
  return perigee__arena_fail_group(a);
}

static int check_pair(perigee__arena *a, int from, int to, size_t *most_p) {
  size_t sent = announced(a, from, to);
  if (sent > *most_p)
    *most_p = sent;
  return compare(a, from, to, sent, announced(a, to, a->n + from));
}

int perigee__shm_check_own(perigee__arena *a, size_t *most_p) {
  int root = a->call->root;
  size_t most = 0;
  if (perigee__arena_line_of(a, root)->aux & PERIGEE_SHM_UNIFORM)
    most = announced(a, root, 0);
  else
    for (int r = 0; r < a->n; r++)
      most = announced(a, root, r) > most ? announced(a, root, r) : most;
  *most_p = most;
  return compare(a, root, a->me, announced(a, root, a->me), a->call->out_bytes);
}

int perigee__shm_check(perigee__arena *a, size_t *most_p) {
  size_t size = 0;
  bool same = true;
  for (int r = 0; r < a->n && same; r++) {
    const perigee__arena_line *line = perigee__arena_line_of(a, r);
    same = (line->aux & PERIGEE_SHM_UNIFORM) != 0 && (r == 0 || uniform_size(line) == size);
    if (r == 0 && same)
      size = uniform_size(line);
  }
  *most_p = size;
  if (PERIGEE_LIKELY(same))
    return 0;
  *most_p = 0;
  for (int from = 0; from < a->n; from++)
    for (int to = 0; to < a->n; to++)
      if (moves(a, from, to))
        PERIGEE_TRY(check_pair(a, from, to, most_p));
  return 0;
}

bool perigee__shm_all_there(const perigee__arena *a, size_t room) {
  for (int r = 0; r < a->n; r++) {
    const perigee__arena_line *line = perigee__arena_line_of(a, r);
    if (line->aux & (PERIGEE_SHM_DIRECT | PERIGEE_SHM_INLINE))
      continue;
    for (int to = 0; to < a->n; to++)
      if (announced(a, r, to) > room)
        return false;
  }
  return true;
}
