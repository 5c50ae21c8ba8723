/*
 * Windows: reading the others' buffers where they are, and in symmetric memory writing to them.
 *
 * A rank says in its line of the first meeting where its buffers are. Who reads copies straight from there: by memcpy when
 * the buffers of all ranks are in one symmetric segment, else by system call (transport/vm.h). What is lent must stay as it is until all
 * have read: a collective that lends ends with one more meeting, for which the lenders wait.
 *
 * A lender that fails (deadline, abort) gives its buffers back to its caller while others may still read. It marks the arena as
 * broken before; who has read looks at the mark afterwards, and does not take what it has read for good. Pairs of fences:
 *   lender: mark, fence, its caller changes the buffer        reader: read, fence, look at the mark
 *   A reader that has seen changed bytes sees the mark. A reader's system call orders like its loads and stores.
 * Symmetric memory stays mapped here whatever the others do; a rank that writes into another's may do so until it hears of
 * a failure itself.
 */
#include "coll/shm_impl.h"

/* Whether bytes of a rank may be read where they are. Where all know the size, who opens a window has decided before. */
static bool worth_it(const perigee__arena *a, size_t bytes) {
  return perigee__select_reduces(a->call->kind) || perigee__shm_lends(a, bytes, true);
}

bool perigee__shm_open_window(perigee__arena *a, const void *in, size_t in_bytes, const void *out,
                              size_t out_bytes) {
  perigee__shm_window *w = perigee__shm_next_window(a);
  perigee__place place = {0};
  bool symmetric = a->table.symmetric && worth_it(a, in_bytes);
  w->in = (uint64_t)(uintptr_t)in;
  w->out = (uint64_t)(uintptr_t)out;
  w->in_segment = w->out_segment = 0;
  if (symmetric && perigee__segments_find(a->segments, in, in_bytes, &place)) {
    w->in_segment = place.id;
    w->in_offset = place.offset;
  }
  if (out == in && out_bytes == in_bytes) {
    w->out_segment = w->in_segment;
    w->out_offset = w->in_offset;
  } else if (symmetric && perigee__segments_find(a->segments, out, out_bytes, &place)) {
    w->out_segment = place.id;
    w->out_offset = place.offset;
  }
  return w->in_segment != 0;
}

bool perigee__shm_open_blocks(perigee__arena *a, const perigee__block *blocks) {
  perigee__shm_window *w = perigee__shm_next_window(a);
  perigee__place first = {0}, place;
  bool together = a->table.symmetric;
  w->out_segment = w->in_segment = 0;
  if (!worth_it(a, perigee__shm_largest(a, blocks)))
    return false;
  for (int r = 0; r < a->n; r++) {
    perigee__arena_next_sizes(a)[2 * a->n + r] = (uint64_t)(uintptr_t)blocks[r].ptr;
    if (!together || blocks[r].bytes == 0)
      continue;
    together = perigee__segments_find(a->segments, blocks[r].ptr, blocks[r].bytes, &place) &&
               (first.id == 0 || place.id == first.id);
    if (together && first.id == 0) {
      first = place;
      w->in = (uint64_t)(uintptr_t)blocks[r].ptr;
    }
  }
  w->out = 0;
  w->in_segment = together ? first.id : 0;
  w->in_offset = first.offset;
  return w->in_segment != 0;
}

/* Where the segment is that all ranks name; nothing when they do not. */
static perigee__reach common(const perigee__arena *a, bool out) {
  const perigee__shm_window *mine = perigee__shm_window_of(a, a->me);
  uint32_t id = out ? mine->out_segment : mine->in_segment;
  const void *own = (const void *)(uintptr_t)(out ? mine->out : mine->in); /* this process's own */
  perigee__place place;
  if (id == 0)
    return (perigee__reach){0};
  for (int r = 0; r < a->n; r++) {
    const perigee__shm_window *w = perigee__shm_window_of(a, r);
    if ((perigee__arena_line_of(a, r)->aux & PERIGEE_SHM_INLINE) ||
        (out ? w->out_segment : w->in_segment) != id)
      return (perigee__reach){0};
  }
  if (!perigee__segments_find(a->segments, own, 1, &place))
    return (perigee__reach){0};
  return (perigee__reach){place.base, place.stride};
}

bool perigee__shm_reach(perigee__arena *a) {
  a->in = common(a, false);
  a->out = common(a, true);
  return a->cma || a->in.base != NULL;
}

bool perigee__shm_reach_one(perigee__arena *a, int rank) {
  const perigee__shm_window *mine = perigee__shm_window_of(a, a->me);
  uint32_t id = perigee__shm_window_of(a, rank)->in_segment;
  perigee__place place;
  a->in = a->out = (perigee__reach){0};
  /* Only who has a buffer of its own in a segment is sure to have it mapped until the end. */
  if (id != 0 && mine->in_segment == id &&
      perigee__segments_find(a->segments, (const void *)(uintptr_t)mine->in, 1, &place))
    a->in = (perigee__reach){place.base, place.stride};
  return true;
}

uint64_t perigee__shm_block_of(const perigee__arena *a, int rank, int to) {
  return perigee__arena_sizes_of(a, rank)[2 * a->n + to];
}

static int read_by_call(perigee__arena *a, int rank, void *dst, uint64_t at, size_t bytes) {
  int rc = perigee__vm_read(a->pids[rank], dst, at, bytes);
  if (PERIGEE_LIKELY(rc == 0))
    return 0;
  return perigee__arena_unreadable(a, rank, rc);
}

int perigee__shm_read_in(perigee__arena *a, const perigee__shm_window *w, int rank, void *dst,
                         uint64_t at, size_t bytes) {
  if (bytes == 0)
    return 0;
  if (a->in.base == NULL)
    return read_by_call(a, rank, dst, at, bytes);
  perigee__shm_copy_out(a, dst, perigee__shm_in_at(a, w, rank) + (at - w->in), bytes);
  return 0;
}

int perigee__shm_read_out(perigee__arena *a, const perigee__shm_window *w, int rank, void *dst,
                          uint64_t at, size_t bytes) {
  if (bytes == 0)
    return 0;
  if (a->out.base == NULL)
    return read_by_call(a, rank, dst, at, bytes);
  perigee__shm_copy_out(a, dst, perigee__shm_out_at(a, w, rank) + (at - w->out), bytes);
  return 0;
}

int perigee__shm_intact(perigee__arena *a) {
  atomic_thread_fence(memory_order_seq_cst); /* pairs with perigee__arena_break */
  if (PERIGEE_UNLIKELY(atomic_load_explicit(&a->park->broken, memory_order_relaxed) != 0))
    return perigee__arena_give_up_broken(a);
  return 0;
}

int perigee__shm_end_from_root(perigee__arena *a) {
  if (a->me == a->call->root)
    return perigee__arena_await_returned(a);
  PERIGEE_TRY(perigee__shm_intact(a));
  perigee__arena_give_back(a, a->call->root);
  return 0;
}

int perigee__shm_end(perigee__arena *a, bool wait) {
  PERIGEE_TRY(perigee__shm_intact(a));
  if (wait)
    return perigee__arena_meet(a, NULL, NULL);
  perigee__arena_depart(a);
  return 0;
}
