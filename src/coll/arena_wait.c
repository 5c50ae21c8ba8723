/*
 * Words, and how a rank waits for one: polls, yields, sleeps and is woken. Who meets whom: arena_meet.c.
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
 */
#include "coll/arena_impl.h"

#include <errno.h>
#include <limits.h>
#include <sched.h>

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

void perigee__arena_wake(_Atomic uint32_t *word) { perigee__futex_wake(word, INT_MAX, true); }

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
    uint32_t seen =
        atomic_load_explicit(word, memory_order_acquire); /* perigee__arena_publish, word_kick */
    if (perigee__arena_reached(seen, epoch))
      return PERIGEE_ARENA_GO_ON;
    uint32_t asleep = seen | PERIGEE_ARENA_WAITERS;
    if (seen != asleep && !atomic_compare_exchange_strong_explicit(
                              word, &seen, asleep, memory_order_acquire, memory_order_relaxed))
      continue; /* acquire: word_kick */
    perigee__arena_reason reason = perigee__arena_look(a);
    if (reason != PERIGEE_ARENA_GO_ON)
      return perigee__arena_word_reached(word, epoch) ? PERIGEE_ARENA_GO_ON : reason;
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
      if (perigee__arena_word_reached(word, epoch)) {
        if (++a->crowded % CROWDED_OFTEN == 0)
          spread(a);
        return PERIGEE_ARENA_GO_ON;
      }
    }
    for (int i = 0; i < PAUSE_POLLS; i++) {
      if (perigee__arena_word_reached(word, epoch)) {
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
      if (perigee__arena_word_reached(word, epoch))
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
    if (perigee__arena_word_reached(word, epoch) || word_comes(a, rank, word, epoch))
      return PERIGEE_ARENA_GO_ON;
    if (perigee__fate_failed(a->fate))
      break;
    sched_yield();
  }
  return word_sleep(a, word, epoch);
}

perigee__arena_reason perigee__arena_wait(perigee__arena *a, int rank, _Atomic uint32_t *word,
                                          uint32_t epoch) {
  return a->mode == PERIGEE_ARENA_SPIN ? word_spin(a, rank, word, epoch)
                                       : word_park(a, rank, word, epoch);
}

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
