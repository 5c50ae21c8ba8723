#include "host/imutex.h"

#include <perigee/error.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/futex.h"

enum {
  LOCKED = 1,
  SLEEPERS = 2,
  AWAKE = 4,
  STARVING = 8
};

/* Polls before sleeping: about 2 us of PAUSE, the length of a short override; longer holds are slept through. */
#define SPINS 60
#define STARVING_AFTER_NS INT64_C(200000)
#define SLOW_AFTER_NS PERIGEE_NS_PER_SEC

enum {
  SLEEP = 0,
  TRY = 1,
  YOURS = 2
};

typedef struct waiter {
  perigee__node node;
  _Atomic uint32_t
      signal; /* SLEEP until the releaser stores TRY or YOURS (release; the waiter acquires) */
} waiter;

void perigee__imutex_init(perigee__imutex *m) {
  atomic_init(&m->word, 0);
  atomic_init(&m->waits, 0);
  perigee__list_init(&m->queue);
  perigee__mutex_init(&m->queue_lock, PERIGEE_LOCK_LEAF, "interpreter queue");
}

void perigee__imutex_fini(perigee__imutex *m) { perigee__mutex_fini(&m->queue_lock); }

/* Take it if it is free and nobody starves. */
static bool try_take(perigee__imutex *m) {
  uint32_t w = atomic_load_explicit(&m->word, memory_order_relaxed);
  while (!(w & (LOCKED | STARVING)))
    if (atomic_compare_exchange_weak_explicit(&m->word, &w, w | LOCKED, memory_order_acquire,
                                              memory_order_relaxed))
      return true;
  return false;
}

static bool spin(perigee__imutex *m) {
  if (perigee__usable_cores() < 2)
    return false;
  for (int i = 0; i < SPINS; i++) {
    if (try_take(m))
      return true;
    perigee__cpu_relax();
  }
  return false;
}

/* queue_lock held. Queue the waiter, or take the mutex if it is free. clear: bits that end with this step. */
static bool queue_or_take_locked(perigee__imutex *m, waiter *me, bool front, uint32_t clear,
                                 uint32_t set) {
  uint32_t w = atomic_load_explicit(&m->word, memory_order_relaxed);
  for (;;) {
    /* A waiter that was woken comes first even when somebody starves: it is the oldest. */
    bool take = !(w & LOCKED) && (front || !(w & STARVING));
    uint32_t to = take ? ((w & ~clear) | LOCKED) : ((w & ~clear) | SLEEPERS | set);
    if (!atomic_compare_exchange_weak_explicit(&m->word, &w, to, memory_order_acquire,
                                               memory_order_relaxed))
      continue;
    if (take)
      return true;
    break;
  }
  atomic_store_explicit(&me->signal, SLEEP, memory_order_relaxed);
  if (front) {
    me->node.next = m->queue.next;
    me->node.prev = &m->queue;
    m->queue.next->prev = &me->node;
    m->queue.next = &me->node;
  } else {
    perigee__list_append(&m->queue, &me->node);
  }
  return false;
}

/* queue_lock held. The word's queue bits after somebody left the queue. */
static uint32_t queue_bits_locked(const perigee__imutex *m, uint32_t w) {
  return perigee__list_empty(&m->queue) ? w & ~(uint32_t)(SLEEPERS | STARVING) : w;
}

/* The deadline passed: leave the queue. False when a releaser was faster and has signalled. */
static bool leave_queue(perigee__imutex *m, waiter *me) {
  perigee__lock(&m->queue_lock);
  bool queued = atomic_load_explicit(&me->signal, memory_order_acquire) == SLEEP;
  if (queued) {
    perigee__list_remove(&me->node);
    uint32_t w = atomic_load_explicit(&m->word, memory_order_relaxed);
    while (!atomic_compare_exchange_weak_explicit(&m->word, &w, queue_bits_locked(m, w),
                                                  memory_order_relaxed, memory_order_relaxed))
      ;
  }
  perigee__unlock(&m->queue_lock);
  return queued;
}

/* Sleep until signalled; returns the signal, or SLEEP when the deadline passed and the queue was left. */
static uint32_t sleep_on(perigee__imutex *m, waiter *me, int64_t since, int64_t deadline_ns,
                         perigee__imutex_slow *slow, void *arg) {
  uint32_t signal;
  atomic_fetch_add_explicit(&m->waits, 1, memory_order_relaxed);
  while ((signal = atomic_load_explicit(&me->signal, memory_order_acquire)) == SLEEP) {
    int64_t until = deadline_ns;
    if (*slow != NULL && since + SLOW_AFTER_NS < until)
      until = since + SLOW_AFTER_NS;
    perigee__futex_wait(&me->signal, SLEEP, until, false);
    if (*slow != NULL && perigee__now_ns() - since >= SLOW_AFTER_NS) {
      perigee__imutex_slow report = *slow;
      *slow = NULL; /* once */
      report(arg, perigee__now_ns() - since);
    }
    if (perigee__passed(deadline_ns) && leave_queue(m, me))
      return SLEEP;
  }
  return signal;
}

int perigee__imutex_lock(perigee__imutex *m, int64_t timeout_ns, perigee__imutex_slow slow,
                         void *arg) {
  if (PERIGEE_LIKELY(try_take(m)) || spin(m))
    return 0;
  waiter me;
  perigee__list_init(&me.node);
  atomic_init(&me.signal, SLEEP);
  int64_t since = perigee__now_ns(), deadline_ns = perigee__deadline_in(timeout_ns);
  bool woken = false;
  for (;;) {
    uint32_t set = perigee__now_ns() - since > STARVING_AFTER_NS && woken ? STARVING : 0;
    perigee__lock(&m->queue_lock);
    bool taken = queue_or_take_locked(m, &me, woken, woken ? AWAKE : 0, set);
    perigee__unlock(&m->queue_lock);
    if (taken)
      return 0;
    uint32_t signal = sleep_on(m, &me, since, deadline_ns, &slow, arg);
    if (signal == YOURS)
      return 0;
    if (signal == SLEEP)
      return PERIGEE_ETIMEDOUT;
    woken = true;
  }
}

/* queue_lock held. Take the oldest waiter out of the queue and say what the word becomes. */
static waiter *pop_locked(perigee__imutex *m) {
  if (perigee__list_empty(&m->queue))
    return NULL;
  waiter *first = PERIGEE_CONTAINER_OF(m->queue.next, waiter, node);
  perigee__list_remove(&first->node);
  return first;
}

static void unlock_slow(perigee__imutex *m) {
  perigee__lock(&m->queue_lock);
  uint32_t w = atomic_load_explicit(&m->word, memory_order_relaxed);
  waiter *next = (w & (AWAKE | STARVING)) == AWAKE ? NULL : pop_locked(m);
  uint32_t give = next == NULL ? SLEEP : (w & STARVING) ? YOURS : TRY, to;
  do {
    to = queue_bits_locked(m, w);
    if (give != YOURS)
      to &= ~(uint32_t)LOCKED;
    if (give == TRY)
      to |= AWAKE;
    /* a hand-over ends the waiter's turn: the next one starves only when it says so */
    if (give == YOURS)
      to &= ~(uint32_t)STARVING;
  } while (!atomic_compare_exchange_weak_explicit(&m->word, &w, to, memory_order_release,
                                                  memory_order_relaxed));
  /* The waiter may return, and its frame go, right after the store: wake by address only. */
  if (next != NULL)
    atomic_store_explicit(&next->signal, give, memory_order_release);
  perigee__unlock(&m->queue_lock);
  if (next != NULL)
    perigee__futex_wake(&next->signal, 1, false);
}

void perigee__imutex_unlock(perigee__imutex *m) {
  uint32_t w = LOCKED;
  if (PERIGEE_LIKELY(atomic_compare_exchange_strong_explicit(&m->word, &w, 0, memory_order_release,
                                                             memory_order_relaxed)))
    return;
  /* Somebody who was woken is on the way: no need to wake another. */
  while ((w & (AWAKE | STARVING)) == AWAKE)
    if (atomic_compare_exchange_weak_explicit(&m->word, &w, w & ~(uint32_t)LOCKED,
                                              memory_order_release, memory_order_relaxed))
      return;
  unlock_slow(m);
}
