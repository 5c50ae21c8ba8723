/*
 * Meetings: how ranks arrive, and whom they wait for. How they wait: arena_wait.c.
 *
 * Data. What a rank wrote before it arrived is seen by all who pass the meeting. SPIN: release of the exchange, acquire of the load
 * that sees the epoch. PARK: the increments are acquire and release, so the last to arrive has seen all; its exchange of
 * the release word pairs with the acquire of those who see it.
 */
#include "coll/arena_impl.h"

#include <string.h>

#include "base/futex.h"

#define CHECK_FACTOR UINT64_C(0x9e3779b97f4a7c15) /* odd */

/* ---- waiting for lines --------------------------------------------------------------------------- */

/* Looks without anything in between, for as long as a line may take to come over. */
static inline bool polled(const perigee__arena *a, _Atomic uint32_t *word, uint32_t epoch) {
  for (int polls = a->bare_polls; polls > 0; polls--)
    if (perigee__arena_word_reached(word, epoch))
      return true;
  return false;
}

/* For the line of one rank in the epoch this one has arrived at. */
static inline perigee__arena_reason line_wait(perigee__arena *a, int rank) {
  _Atomic uint32_t *word = &perigee__arena_line_at(a, rank, a->epoch)->word;
  return PERIGEE_LIKELY(polled(a, word, a->epoch)) ? PERIGEE_ARENA_GO_ON
                                                   : perigee__arena_wait(a, rank, word, a->epoch);
}

/* Wait for all lines of the epoch this rank has arrived at. */
static int lines_wait(perigee__arena *a) {
  uint64_t check = a->check, differ = 0;
  uint32_t epoch = a->epoch, any = a->own.aux, all = any;
  for (int r = 0; r < a->n; r++) {
    if (r == a->me)
      continue;
    const perigee__arena_line *line = perigee__arena_line_at(a, r, epoch);
    perigee__arena_reason reason = line_wait(a, r);
    if (PERIGEE_UNLIKELY(reason != PERIGEE_ARENA_GO_ON))
      return perigee__arena_give_up(a, reason);
    differ |= line->check ^ check;
    any |= line->aux;
    all &= line->aux;
  }
  a->aux_any = any;
  a->aux_all = all;
  a->known = epoch;
  return PERIGEE_LIKELY(differ == 0) ? 0 : perigee__arena_give_up(a, PERIGEE_ARENA_DIFFERS);
}

/* ---- meeting ------------------------------------------------------------------------------------- */

static int meet_spin(perigee__arena *a, perigee__arena_line *mine) {
  perigee__arena_publish(&mine->word, a->epoch);
  PERIGEE_TRY(lines_wait(a));
  /* The others have read our next line some meetings ago: have it back by the time it is written. */
  perigee__prefetch_write(perigee__arena_next_line(a));
  return 0;
}

/* All have arrived and this rank was the last: decide for all and let them go. */
static void release(perigee__arena *a, uint32_t epoch, perigee__arena_combine_fn combine,
                    void *arg) {
  uint64_t differ = 0;
  uint32_t any = 0, all = UINT32_MAX;
  for (int r = 0; r < a->n; r++) {
    const perigee__arena_line *line = perigee__arena_line_of(a, r);
    differ |= line->check ^ a->check;
    any |= line->aux;
    all &= line->aux;
  }
  a->park->same = differ == 0;
  a->park->aux_any = any;
  a->park->aux_all = all;
  if (combine != NULL && differ == 0)
    combine(a, arg);
  /* relaxed: the counter is used again at epoch + BUFFERS, by ranks that know of all that they have arrived at a later one, which
   * this rank does after this store */
  atomic_store_explicit(&a->park->arrivals[epoch % PERIGEE_ARENA_BUFFERS], 0, memory_order_relaxed);
  perigee__arena_publish(&a->park->released, epoch);
}

/* True when this rank was the last, and has let the others go. */
static bool arrive_park(perigee__arena *a, perigee__arena_line *mine, uint32_t epoch,
                        perigee__arena_combine_fn combine, void *arg) {
  /* For who looks for missing ranks, or has departed and waits for room. */
  perigee__arena_publish(&mine->word, epoch);
  /* release: what this rank wrote goes to the last to arrive. acquire: the last sees what all the others wrote, because their increments form
   * one release sequence. */
  uint32_t before = atomic_fetch_add_explicit(&a->park->arrivals[epoch % PERIGEE_ARENA_BUFFERS], 1,
                                              memory_order_acq_rel);
  if (before + 1 != (uint32_t)a->n)
    return false;
  release(a, epoch, combine, arg);
  return true;
}

static int meet_park(perigee__arena *a, perigee__arena_line *mine, uint32_t epoch,
                     perigee__arena_combine_fn combine, void *arg) {
  if (!arrive_park(a, mine, epoch, combine, arg)) {
    perigee__arena_reason reason =
        perigee__arena_wait(a, PERIGEE_ARENA_ALL, &a->park->released, epoch);
    if (reason != PERIGEE_ARENA_GO_ON)
      return perigee__arena_give_up(a, reason);
  }
  a->known = epoch;
  a->aux_any = a->park->aux_any;
  a->aux_all = a->park->aux_all;
  return PERIGEE_LIKELY(a->park->same) ? 0 : perigee__arena_give_up(a, PERIGEE_ARENA_DIFFERS);
}

/* Write down what this rank does in this epoch. */
static void take_note(perigee__arena *a) {
  perigee__arena_note *note = perigee__arena_note_at(a, a->me, a->epoch);
  /* A reader that sees something of what follows the fence does not see the epoch that was there before (noted in arena_fail.c). */
  atomic_store_explicit(&note->epoch, PERIGEE_ARENA_WRITTEN, memory_order_relaxed);
  atomic_thread_fence(memory_order_release);
  atomic_store_explicit(&note->fp, a->call->fp, memory_order_relaxed);
  atomic_store_explicit(&note->check, a->check, memory_order_relaxed);
  /* release: pairs with the acquire in noted */
  atomic_store_explicit(&note->epoch, a->epoch, memory_order_release);
}

/* Own line of the next epoch, with what every line has; this rank is at it from now on. */
static perigee__arena_line *step(perigee__arena *a) {
  a->epoch = perigee__arena_epoch_after(a->epoch);
  /* one-to-one for either of the two when the other is given: a difference stays one */
  uint64_t check = (a->check ^ a->call->fp) * CHECK_FACTOR;
  a->check = check ^ (check >> 32);
  take_note(a);
  perigee__arena_line *mine = perigee__arena_line_at(a, a->me, a->epoch);
  mine->check = a->own.check = a->check;
  mine->aux = a->own.aux = a->aux;
  for (size_t i = 0; i < a->own_bytes; i += sizeof(uint64_t))
    memcpy(mine->payload + i, a->own.payload + i, sizeof(uint64_t));
  a->own_bytes = 0;
  a->aux = 0;
  return mine;
}

int perigee__arena_meet(perigee__arena *a, perigee__arena_combine_fn combine, void *arg) {
  PERIGEE_TRY(perigee__arena_room(a, PERIGEE_ARENA_BUFFER_ROOM)); /* for the counter */
  perigee__arena_line *mine = step(a);
  if (a->mode == PERIGEE_ARENA_SPIN)
    return meet_spin(a, mine);
  return meet_park(a, mine, a->epoch, combine, arg);
}

int perigee__arena_meet_root(perigee__arena *a, int root) {
  perigee__arena_line *mine = step(a);
  const perigee__arena_line *first = perigee__arena_line_at(a, root, a->epoch);
  if (a->me == root) {
    PERIGEE_TRY(lines_wait(a));
    perigee__arena_publish(&mine->word, a->epoch);
    return 0;
  }
  perigee__arena_publish(&mine->word, a->epoch);
  perigee__arena_reason reason = line_wait(a, root);
  if (PERIGEE_UNLIKELY(reason != PERIGEE_ARENA_GO_ON))
    return perigee__arena_give_up(a, reason);
  if (PERIGEE_UNLIKELY(first->check != a->check))
    return perigee__arena_give_up(a, PERIGEE_ARENA_DIFFERS);
  a->known = a->epoch; /* a root that has done what this rank has done has waited for all */
  return 0;
}

void perigee__arena_depart(perigee__arena *a) {
  perigee__arena_line *mine = step(a);
  if (a->mode == PERIGEE_ARENA_SPIN)
    perigee__arena_publish(&mine->word, a->epoch);
  else
    (void)arrive_park(a, mine, a->epoch, NULL, NULL);
}

bool perigee__arena_will_be_last(const perigee__arena *a) {
  uint32_t b = perigee__arena_epoch_after(a->epoch) % PERIGEE_ARENA_BUFFERS;
  /* relaxed: a hint; the increment that follows acquires */
  return atomic_load_explicit(&a->park->arrivals[b], memory_order_relaxed) + 1 == (uint32_t)a->n;
}

/* ---- running ahead ------------------------------------------------------------------------------- */

void perigee__arena_give(perigee__arena *a) {
  perigee__arena_line *mine = step(a);
  perigee__arena_publish(&mine->word, a->epoch);
  perigee__prefetch_write(perigee__arena_next_line(a));
}

int perigee__arena_await_word(perigee__arena *a, int rank, _Atomic uint32_t *word, uint32_t value) {
  value &= PERIGEE_ARENA_EPOCHS;
  if (polled(a, word, value))
    return 0;
  a->awaited = rank;
  a->awaited_word = word;
  a->awaited_value = value;
  perigee__arena_reason reason = perigee__arena_wait(a, rank, word, value);
  int rc = reason == PERIGEE_ARENA_GO_ON ? 0 : perigee__arena_give_up(a, reason);
  a->awaited = PERIGEE_ARENA_ALL;
  return rc;
}

int perigee__arena_await(perigee__arena *a, int rank) {
  perigee__arena_line *line = perigee__arena_line_at(a, rank, a->epoch);
  PERIGEE_TRY(perigee__arena_await_word(a, rank, &line->word, a->epoch));
  return PERIGEE_LIKELY(line->check == a->check) ? 0
                                                 : perigee__arena_give_up(a, PERIGEE_ARENA_DIFFERS);
}

void perigee__arena_lend(perigee__arena *a) {
  /* relaxed: all that was lent before is returned; seen by who sees this rank's next line */
  atomic_store_explicit(&a->status[a->me].returned, 0, memory_order_relaxed);
}

void perigee__arena_give_back(perigee__arena *a, int root) {
  _Atomic uint32_t *word = &a->status[root].returned;
  /* release: pairs with the acquire in await_word, directly or by the increments of the others, which form one release sequence */
  uint32_t before = atomic_fetch_add_explicit(word, 2, memory_order_release);
  if ((before >> 1) + 2 == (uint32_t)a->n && (before & PERIGEE_ARENA_WAITERS))
    perigee__arena_wake(word);
}

int perigee__arena_await_returned(perigee__arena *a) {
  PERIGEE_TRY(perigee__arena_await_word(a, PERIGEE_ARENA_READERS, &a->status[a->me].returned,
                                        (uint32_t)a->n - 1));
  a->known = a->epoch;
  return 0;
}

int perigee__arena_await_all(perigee__arena *a) { return lines_wait(a); }

int perigee__arena_settle(perigee__arena *a) { return perigee__arena_await_all(a); }
