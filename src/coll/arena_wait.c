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

#include <errno.h>
#include <limits.h>
#include <sched.h>
#include <string.h>

#include "base/clock.h"
#include "base/futex.h"

/* PAUSE_POLLS: with PAUSE, about 1 us, between looks at clock, core and fate.
 * CROWDED_OFTEN, PARKED_OFTEN: waits in a row that a yield to the awaited rank has ended, and waits in mode PARK, before a rank looks for
 *   another core.
 * STAGING_NS: as long as a rank may take to stage what others wait for; a buffer of the usual size takes a third of it.
 * SLICE_MS: of one sleep. Bounds what a lost wake-up costs: word_kick clears the bit, another rank sets it again, both between
 *   this rank's look and its falling asleep. After each slice a rank also looks whether the others do something else: nothing wakes
 *   it when they have gone on without it. The first one is short for that. */
enum {
  PAUSE_POLLS = 16,
  CROWDED_OFTEN = 8,
  PARKED_OFTEN = 64,
  FIRST_SLICE_MS = 10,
  SLICE_MS = 100
};
#define STAGING_NS (40 * PERIGEE_NS_PER_US)
#define CHECK_FACTOR UINT64_C(0x9e3779b97f4a7c15) /* odd */

static void word_publish(_Atomic uint32_t *word, uint32_t epoch) {
  /* release: pairs with the acquire in word_reached of those who see the epoch */
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
  int64_t slice_ns = FIRST_SLICE_MS * PERIGEE_NS_PER_MS;
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
    int64_t slice = perigee__deadline_in(slice_ns);
    if (slice > a->call->deadline_ns)
      slice = a->call->deadline_ns;
    if (perigee__futex_wait(word, asleep, slice, true) != -ETIMEDOUT)
      continue; /* whatever ended it: look again */
    if (perigee__arena_differs(a))
      return PERIGEE_ARENA_DIFFERS;
    slice_ns = SLICE_MS * PERIGEE_NS_PER_MS;
  }
}

/* More of the ranks share this core than one it might run on as well: go there, if no other rank here will. The kernel sees to that at its next
 * tick or some later one, and for ranks that yield and sleep much later; thousands of operations fit in between. Being shut out of all
 * other cores for a moment moves this thread at once. */
static void spread(perigee__arena *a) {
  cpu_set_t allowed, there;
  uint8_t ranks[CPU_SETSIZE] = {0};
  int own = perigee__arena_here(a), best = -1;
  if (own < 0 || own >= CPU_SETSIZE || sched_getaffinity(0, sizeof(allowed), &allowed) != 0)
    return;
  for (int r = 0; r < a->n; r++) {
    int cpu = r == a->me ? own : atomic_load_explicit(&a->status[r].cpu, memory_order_relaxed);
    if (cpu == own && r > a->me)
      return;
    if (cpu >= 0 && cpu < CPU_SETSIZE && ranks[cpu] < UINT8_MAX)
      ranks[cpu]++;
  }
  for (int c = 0; c < CPU_SETSIZE; c++)
    if (CPU_ISSET((size_t)c, &allowed) && (best < 0 || ranks[c] < ranks[best]))
      best = c;
  if (best < 0 || ranks[best] + 2 > ranks[own])
    return;
  CPU_ZERO(&there);
  CPU_SET((size_t)best, &there);
  if (sched_setaffinity(0, sizeof(there), &there) == 0)
    (void)!sched_setaffinity(0, sizeof(allowed), &allowed);
  (void)perigee__arena_here(a);
}

static bool is_on(const perigee__arena *a, int rank, int cpu) {
  return cpu >= 0 &&
         atomic_load_explicit(&a->status[rank].cpu, memory_order_relaxed) == cpu; /* a hint */
}

/* ---- mode SPIN --------------------------------------------------------------------------------- */

/* Whether that rank, or one of the READERS, was last seen on the core this one runs on: then it cannot come while this one polls. */
static bool same_core(perigee__arena *a, int rank) {
  int cpu = perigee__arena_here(a);
  if (rank >= 0)
    return is_on(a, rank, cpu);
  for (int r = 0; r < a->n; r++)
    if (r != a->me && is_on(a, r, cpu))
      return true;
  return false;
}

/* The line was not there at once. A yield helps when the awaited rank needs this very core, and gives a whole slice away
 * when somebody else's process does. */
static perigee__arena_reason word_spin(perigee__arena *a, int rank, _Atomic uint32_t *word,
                                       uint32_t epoch) {
  int64_t until = 0;
  while (!perigee__fate_failed(a->fate)) {
    bool crowded = same_core(a, rank);
    if (crowded) {
      sched_yield();
      if (word_reached(word, epoch)) {
        if (++a->crowded % CROWDED_OFTEN == 0)
          spread(a);
        return PERIGEE_ARENA_GO_ON;
      }
    }
    for (int i = 0; i < PAUSE_POLLS; i++) {
      if (word_reached(word, epoch)) {
        a->crowded = 0;
        return PERIGEE_ARENA_GO_ON;
      }
      perigee__cpu_relax();
    }
    int64_t now = perigee__now_ns();
    if (until == 0)
      until = now + a->spin_ns + a->work_ns;
    if (now >= until)
      break;
  }
  return word_sleep(a, word, epoch);
}

/* ---- mode PARK --------------------------------------------------------------------------------- */

/* The awaited rank copies right now what this one waits for, on another core: polled for as long as the copy may take. Who yields meanwhile
 * waits for what the others on this core do as well. */
static bool word_comes(perigee__arena *a, int rank, _Atomic uint32_t *word, uint32_t epoch) {
  if (rank < 0 || atomic_load_explicit(&a->status[rank].staging, memory_order_relaxed) != epoch ||
      is_on(a, rank, perigee__arena_here(a)))
    return false;
  int64_t until = perigee__deadline_in(STAGING_NS);
  do {
    for (int i = 0; i < PAUSE_POLLS; i++) {
      if (word_reached(word, epoch))
        return true;
      perigee__cpu_relax();
    }
  } while (!perigee__passed(until));
  return false;
}

/* The slow part of a wait in mode PARK. With more ranks than cores a yield runs a rank that has not arrived, at a third of the price of sleeping
 * and being woken. It is bounded because it gives nothing to a rank that computes, and starves it when all others keep yielding. */
static perigee__arena_reason word_park(perigee__arena *a, int rank, _Atomic uint32_t *word,
                                       uint32_t epoch) {
  if (++a->crowded % PARKED_OFTEN == 0)
    spread(a);
  for (int i = 0; i < a->yields; i++) {
    if (word_reached(word, epoch) || word_comes(a, rank, word, epoch))
      return PERIGEE_ARENA_GO_ON;
    if (perigee__fate_failed(a->fate))
      break;
    sched_yield();
  }
  return word_sleep(a, word, epoch);
}

/* It was not there at once. */
static perigee__arena_reason word_wait(perigee__arena *a, int rank, _Atomic uint32_t *word,
                                       uint32_t epoch) {
  return a->mode == PERIGEE_ARENA_SPIN ? word_spin(a, rank, word, epoch)
                                       : word_park(a, rank, word, epoch);
}

/* Wait for all lines of the epoch this rank has arrived at. */
static int lines_wait(perigee__arena *a) {
  uint64_t check = a->check, differ = 0;
  uint32_t epoch = a->epoch, any = a->own.aux, all = any;
  for (int r = 0; r < a->n; r++) {
    if (r == a->me)
      continue;
    perigee__arena_line *line = perigee__arena_line_at(a, r, epoch);
    int polls = a->bare_polls;
    while (!word_reached(&line->word, epoch)) {
      if (--polls > 0)
        continue;
      perigee__arena_reason reason = word_wait(a, r, &line->word, epoch);
      if (reason != PERIGEE_ARENA_GO_ON)
        return perigee__arena_give_up(a, reason);
      break;
    }
    differ |= line->check ^ check;
    any |= line->aux;
    all &= line->aux;
  }
  a->aux_any = any;
  a->aux_all = all;
  a->known = epoch;
  return PERIGEE_LIKELY(differ == 0) ? 0 : perigee__arena_give_up(a, PERIGEE_ARENA_DIFFERS);
}

static int meet_spin(perigee__arena *a, perigee__arena_line *mine) {
  word_publish(&mine->word, a->epoch);
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
  word_publish(&a->park->released, epoch);
}

/* True when this rank was the last, and has let the others go. */
static bool arrive_park(perigee__arena *a, perigee__arena_line *mine, uint32_t epoch,
                        perigee__arena_combine_fn combine, void *arg) {
  /* release: who looks for missing ranks and sees the epoch also sees what was done before */
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
    perigee__arena_reason reason = word_park(a, PERIGEE_ARENA_ALL, &a->park->released, epoch);
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
  perigee__arena_line *mine = step(a), *first = perigee__arena_line_at(a, root, a->epoch);
  if (a->me == root) {
    PERIGEE_TRY(lines_wait(a));
    word_publish(&mine->word, a->epoch);
    return 0;
  }
  word_publish(&mine->word, a->epoch);
  for (int polls = a->bare_polls; !word_reached(&first->word, a->epoch);)
    if (--polls <= 0) {
      perigee__arena_reason reason = word_wait(a, root, &first->word, a->epoch);
      if (reason != PERIGEE_ARENA_GO_ON)
        return perigee__arena_give_up(a, reason);
    }
  if (PERIGEE_UNLIKELY(first->check != a->check))
    return perigee__arena_give_up(a, PERIGEE_ARENA_DIFFERS);
  a->known = a->epoch; /* a root that has done what this rank has done has waited for all */
  return 0;
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

/* ---- running ahead ------------------------------------------------------------------------------- */

void perigee__arena_publish(_Atomic uint32_t *word, uint32_t value) {
  word_publish(word, value & PERIGEE_ARENA_EPOCHS);
}

void perigee__arena_give(perigee__arena *a) {
  perigee__arena_line *mine = step(a);
  word_publish(&mine->word, a->epoch);
  perigee__prefetch_write(perigee__arena_next_line(a));
}

int perigee__arena_await_word(perigee__arena *a, int rank, _Atomic uint32_t *word, uint32_t value) {
  value &= PERIGEE_ARENA_EPOCHS;
  for (int polls = a->bare_polls; polls > 0; polls--)
    if (word_reached(word, value))
      return 0;
  a->awaited = rank;
  a->awaited_word = word;
  a->awaited_value = value;
  perigee__arena_reason reason = word_wait(a, rank, word, value);
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
    perigee__futex_wake(word, INT_MAX, true);
}

int perigee__arena_await_returned(perigee__arena *a) {
  PERIGEE_TRY(perigee__arena_await_word(a, PERIGEE_ARENA_READERS, &a->status[a->me].returned,
                                        (uint32_t)a->n - 1));
  a->known = a->epoch;
  return 0;
}

int perigee__arena_await_all(perigee__arena *a) { return lines_wait(a); }

int perigee__arena_settle(perigee__arena *a) { return perigee__arena_await_all(a); }

void perigee__arena_kick(const perigee__arena *a) {
  word_kick(&a->park->released);
  for (int r = 0; r < a->n; r++) {
    word_kick(&a->status[r].given);
    word_kick(&a->status[r].taken);
    word_kick(&a->status[r].returned);
    for (uint32_t i = 0; i < PERIGEE_ARENA_LINES; i++)
      word_kick(&perigee__arena_line_at(a, r, i)->word);
  }
}
