/*
 * Meetings: how ranks arrive, wait, sleep and are woken.
 *
 * Words. A word is (epoch << 1) | waiters. It is moved on to an epoch by exchange (release), which also hands the publisher the
 * waiters bit: no fence, no second word, and no system call unless somebody sleeps. A sleeper sets the bit by compare-and-swap and
 * sleeps on the value with the bit set. Three writers meet on it: publisher, sleeper, and kick, which clears the bit. All three are
 * read-modify-writes of one word, hence totally ordered:
 *   - sleeper before publisher or kick: these see the bit and wake; the value has changed, so a sleeper that is
 *     not asleep yet does not fall asleep;
 *   - sleeper after publisher: its compare-and-swap or the load before it sees the epoch;
 *   - sleeper after kick: the acquire of its compare-and-swap pairs with the release of the kick, so that it sees what the kick
 *     was for (fate, closed mark), because it looks after setting the bit.
 *   A second sleeper that finds the bit set by the first does not swap; it sleeps on the value it loaded (acquire) and looked after.
 *   If a kick came after that load the value has changed, unless a third has set the bit again already: see SLICE_MS.
 * Data. What a rank wrote before it arrived is seen by all who pass the meeting. SPIN: release of the exchange, acquire of the load
 * that sees the epoch. PARK: the increments are acquire and release, so the last to arrive has seen all; its exchange of
 * the release word pairs with the acquire of those who see it.
 */
#include "coll/arena_impl.h"

#include <limits.h>
#include <sched.h>

#include "base/clock.h"
#include "base/futex.h"

/* BARE_POLLS: about twice as long as a line takes to come over; PAUSE alone is as long as that on some cores.
 * PAUSE_POLLS: with PAUSE, about 1 us, between looks at clock and fate. After PAUSE_ROUNDS of these a rank yields between them: when
 *   somebody else's process has taken a core, both ranks run on one, and polling keeps the other from arriving. A wait that
 *   a yield has ended at once (crowded) lets the next one yield from the start.
 * SLICE_MS: of one sleep. Bounds what a lost wake-up costs: word_kick clears the bit, another rank sets it again, both between
 *   this rank's look and its falling asleep. */
enum {
  BARE_POLLS = 96,
  PAUSE_POLLS = 16,
  PAUSE_ROUNDS = 2,
  SLICE_MS = 100
};

static void word_publish(_Atomic uint32_t *word, uint32_t epoch) {
  /* release: pairs with the acquire loads in word_wait of those who see the epoch */
  uint32_t old = atomic_exchange_explicit(word, epoch << 1, memory_order_release);
  if (PERIGEE_UNLIKELY(old & PERIGEE_ARENA_WAITERS))
    perigee__futex_wake(word, INT_MAX, true);
}

static bool word_reached(_Atomic uint32_t *word, uint32_t epoch) {
  /* acquire: pairs with the release in word_publish */
  return perigee__arena_reached(atomic_load_explicit(word, memory_order_acquire), epoch);
}

static void word_kick(_Atomic uint32_t *word) {
  /* release: pairs with the acquire of the swap and loads in word_sleep */
  uint32_t old = atomic_fetch_and_explicit(word, ~PERIGEE_ARENA_WAITERS, memory_order_release);
  if (old & PERIGEE_ARENA_WAITERS)
    perigee__futex_wake(word, INT_MAX, true);
}

static perigee__arena_reason word_sleep(const perigee__arena *a, _Atomic uint32_t *word,
                                        uint32_t epoch) {
  for (;;) {
    uint32_t seen = atomic_load_explicit(word, memory_order_acquire); /* word_publish, word_kick */
    if (perigee__arena_reached(seen, epoch))
      return PERIGEE_ARENA_GO_ON;
    uint32_t asleep = seen | PERIGEE_ARENA_WAITERS;
    if (seen != asleep && !atomic_compare_exchange_strong_explicit(
                              word, &seen, asleep, memory_order_acquire, memory_order_relaxed))
      continue; /* acquire: word_kick */
    perigee__arena_reason reason = perigee__arena_look(a);
    if (reason != PERIGEE_ARENA_GO_ON)
      return word_reached(word, epoch) ? PERIGEE_ARENA_GO_ON : reason;
    int64_t slice = perigee__deadline_in(SLICE_MS * PERIGEE_NS_PER_MS);
    if (slice > a->call->deadline_ns)
      slice = a->call->deadline_ns;
    (void)perigee__futex_wait(word, asleep, slice, true); /* whatever ended it: look again */
  }
}

/* The slow part of a wait in mode SPIN: the line was not there at once. */
static perigee__arena_reason word_spin(perigee__arena *a, _Atomic uint32_t *word, uint32_t epoch) {
  int64_t until = perigee__now_ns() + a->spin_ns + a->work_ns;
  for (int round = a->crowded ? PAUSE_ROUNDS : 0; !perigee__fate_failed(a->fate); round++) {
    if (round >= PAUSE_ROUNDS)
      sched_yield();
    for (int i = 0; i < PAUSE_POLLS; i++) {
      if (word_reached(word, epoch)) {
        a->crowded = i == 0 && round >= PAUSE_ROUNDS;
        return PERIGEE_ARENA_GO_ON;
      }
      perigee__cpu_relax();
    }
    if (perigee__now_ns() >= until)
      break;
  }
  return word_sleep(a, word, epoch);
}

static int meet_spin(perigee__arena *a, perigee__arena_line *mine, uint32_t epoch) {
  uint64_t fp = mine->fp, differ = 0;
  uint32_t any = mine->aux, all = any;
  word_publish(&mine->word, epoch);
  for (int r = 0; r < a->n; r++) {
    if (r == a->me)
      continue;
    perigee__arena_line *line = perigee__arena_line_at(a, r, epoch);
    int polls = 0;
    while (!word_reached(&line->word, epoch)) {
      if (++polls < BARE_POLLS)
        continue;
      perigee__arena_reason reason = word_spin(a, &line->word, epoch);
      if (reason != PERIGEE_ARENA_GO_ON)
        return perigee__arena_give_up(a, reason);
      break;
    }
    differ |= line->fp ^ fp;
    any |= line->aux;
    all &= line->aux;
  }
  a->aux_any = any;
  a->aux_all = all;
  /* The others have read our next line some meetings ago: have it back by the time it is written. */
  perigee__prefetch_write(perigee__arena_next_line(a));
  return PERIGEE_LIKELY(differ == 0) ? 0 : perigee__arena_mismatch(a);
}

/* All have arrived and this rank was the last: decide for all and let them go. */
static void release(perigee__arena *a, uint32_t epoch, perigee__arena_combine_fn combine,
                    void *arg) {
  uint64_t fp = a->call->fp, differ = 0;
  uint32_t any = 0, all = UINT32_MAX;
  for (int r = 0; r < a->n; r++) {
    const perigee__arena_line *line = perigee__arena_line_at(a, r, epoch);
    differ |= line->fp ^ fp;
    any |= line->aux;
    all &= line->aux;
  }
  a->park->same = differ == 0;
  a->park->aux_any = any;
  a->park->aux_all = all;
  if (combine != NULL && differ == 0)
    combine(a, arg);
  /* relaxed: the counter is used again at epoch + BUFFERS, by ranks that have passed this release */
  atomic_store_explicit(&a->park->arrivals[epoch % PERIGEE_ARENA_BUFFERS], 0, memory_order_relaxed);
  word_publish(&a->park->released, epoch);
}

static perigee__arena_reason park(const perigee__arena *a, uint32_t epoch) {
  _Atomic uint32_t *word = &a->park->released;
  /* With more ranks than cores a yield runs a rank that has not arrived, at a third of the price of sleeping and being woken. It is
   * bounded because it gives nothing to a rank that computes, and starves it when all others keep yielding. */
  for (int i = 0; i < a->yields; i++) {
    if (word_reached(word, epoch))
      return PERIGEE_ARENA_GO_ON;
    if (perigee__fate_failed(a->fate))
      break;
    sched_yield();
  }
  return word_sleep(a, word, epoch);
}

/* True when this rank was the last, and has let the others go. */
static bool arrive_park(perigee__arena *a, perigee__arena_line *mine, uint32_t epoch,
                        perigee__arena_combine_fn combine, void *arg) {
  /* release: who names missing ranks and sees the epoch may read the fingerprint (perigee__arena_mismatch) */
  atomic_store_explicit(&mine->word, epoch << 1, memory_order_release);
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
    perigee__arena_reason reason = park(a, epoch);
    if (reason != PERIGEE_ARENA_GO_ON)
      return perigee__arena_give_up(a, reason);
  }
  a->aux_any = a->park->aux_any;
  a->aux_all = a->park->aux_all;
  return PERIGEE_LIKELY(a->park->same) ? 0 : perigee__arena_mismatch(a);
}

/* Own line of the next epoch, with what every line has; this rank is at it from now on. */
static perigee__arena_line *step(perigee__arena *a) {
  a->epoch = perigee__arena_epoch_after(a->epoch);
  perigee__arena_line *mine = perigee__arena_line_at(a, a->me, a->epoch);
  mine->fp = a->call->fp;
  mine->aux = a->aux;
  a->aux = 0;
  return mine;
}

int perigee__arena_meet(perigee__arena *a, perigee__arena_combine_fn combine, void *arg) {
  perigee__arena_line *mine = step(a);
  if (a->mode == PERIGEE_ARENA_SPIN)
    return meet_spin(a, mine, a->epoch);
  return meet_park(a, mine, a->epoch, combine, arg);
}

void perigee__arena_depart(perigee__arena *a) {
  perigee__arena_line *mine = step(a);
  if (a->mode == PERIGEE_ARENA_SPIN)
    word_publish(&mine->word, a->epoch);
  else
    (void)arrive_park(a, mine, a->epoch, NULL, NULL);
}

bool perigee__arena_will_be_last(const perigee__arena *a) {
  uint32_t b = perigee__arena_epoch_after(a->epoch) % PERIGEE_ARENA_BUFFERS;
  /* relaxed: a hint; the increment that follows acquires */
  return atomic_load_explicit(&a->park->arrivals[b], memory_order_relaxed) + 1 == (uint32_t)a->n;
}

void perigee__arena_kick(const perigee__arena *a) {
  word_kick(&a->park->released);
  for (uint32_t b = 0; b < PERIGEE_ARENA_BUFFERS; b++)
    for (int r = 0; r < a->n; r++)
      word_kick(&perigee__arena_line_at(a, r, b)->word);
}
