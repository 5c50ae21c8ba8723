/* The loop: one drives at a time, whoever wants the lock gets it, sleeps end in time, and the I/O thread takes over when nobody drives. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
/* cmocka needs the three above */
#include <cmocka.h>

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/loop.h"

#define MS PERIGEE_NS_PER_MS

static perigee__loop *loop;

static int setup(void **state) {
  (void)state;
  alarm(60);
  return perigee__loop_create("loop-test", &loop);
}

static int teardown(void **state) {
  (void)state;
  perigee__loop_destroy(&loop);
  assert_null(loop);
  return 0;
}

/* ---- sleeping ---------------------------------------------------------------------------------- */

static void sleeps_end_in_time(void **state) {
  (void)state;
  static const int64_t limits[] = {0, 1, 100000, MS, 7 * MS, 40 * MS};
  perigee__loop_driver_enter(loop);
  for (size_t i = 0; i < sizeof(limits) / sizeof(limits[0]); i++)
    for (int round = 0; round < 5; round++) {
      int64_t started = perigee__now_ns();
      perigee__loop_lock(loop);
      perigee__loop_run_once(loop, perigee__deadline_in(limits[i]));
      perigee__loop_unlock(loop);
      assert_true(perigee__now_ns() - started < limits[i] + 10000 * MS);
    }
  perigee__loop_driver_leave(loop);
}

/* A deadline that has passed before the sleep begins. */
static void deadline_in_the_past(void **state) {
  (void)state;
  int64_t started = perigee__now_ns();
  for (int i = 0; i < 20; i++) {
    perigee__loop_lock(loop);
    perigee__loop_run_once(loop, started - 1);
    perigee__loop_unlock(loop);
  }
  assert_true(perigee__now_ns() - started < 10000 * MS);
}

typedef struct sleeper {
  pthread_t thread;
  _Atomic int asked, seen, stop;
} sleeper;

/* A kick is for whoever sleeps then, the I/O thread perhaps: look with the lock, before sleeping, at what came with it. */
static void *sleep_main(void *arg) {
  sleeper *s = arg;
  perigee__loop_driver_enter(loop);
  while (atomic_load(&s->stop) == 0) {
    perigee__loop_give_way(loop);
    perigee__loop_lock(loop);
    if (atomic_load(&s->stop) == 0 && atomic_load(&s->asked) == atomic_load(&s->seen))
      perigee__loop_run_once(loop, PERIGEE_NEVER);
    perigee__loop_unlock(loop);
    atomic_store(&s->seen, atomic_load(&s->asked));
  }
  perigee__loop_driver_leave(loop);
  return NULL;
}

static void sleeper_stop(sleeper *s) {
  atomic_store(&s->stop, 1);
  perigee__loop_kick(loop);
  assert_int_equal(pthread_join(s->thread, NULL), 0);
}

static void kick_ends_a_sleep(void **state) {
  (void)state;
  sleeper s = {0};
  assert_int_equal(pthread_create(&s.thread, NULL, sleep_main, &s), 0);
  for (int i = 1; i <= 100; i++) {
    perigee__sleep_ns(i % 3 * MS / 2);
    atomic_store(&s.asked, i);
    perigee__loop_kick(loop);
    while (atomic_load(&s.seen) != i) /* for ever when the kick is lost: the alarm ends it */
      perigee__sleep_ns(MS / 20);
  }
  sleeper_stop(&s);
}

/* ---- the lock ---------------------------------------------------------------------------------- */

/* Two threads sleep in the loop for ever, by turns; a third gets the lock each time it wants it. */
static void lock_beside_sleepers(void **state) {
  (void)state;
  sleeper a = {0}, b = {0};
  assert_int_equal(pthread_create(&a.thread, NULL, sleep_main, &a), 0);
  assert_int_equal(pthread_create(&b.thread, NULL, sleep_main, &b), 0);
  int64_t started = perigee__now_ns();
  for (int i = 0; i < 300; i++) {
    if (i % 10 == 0)
      perigee__sleep_ns(MS);
    perigee__loop_lock(loop);
    perigee__loop_unlock(loop);
  }
  assert_true(perigee__now_ns() - started < 10000 * MS);
  atomic_store(&a.stop, 1);
  atomic_store(&b.stop, 1);
  sleeper_stop(&a); /* one of them sleeps, the other waits for it */
  sleeper_stop(&b);
}

typedef struct counter {
  pthread_t thread;
  int *shared; /* under the lock */
  int64_t worst_ns;
} counter;

static void *count_main(void *arg) {
  counter *c = arg;
  for (int i = 0; i < 2000; i++) {
    int64_t started = perigee__now_ns();
    perigee__loop_lock(loop);
    int64_t took = perigee__now_ns() - started;
    (*c->shared)++;
    perigee__loop_unlock(loop);
    c->worst_ns = took > c->worst_ns ? took : c->worst_ns;
  }
  return NULL;
}

static void lock_excludes(void **state) {
  (void)state;
  int shared = 0;
  counter c[4];
  sleeper s = {0};
  memset(c, 0, sizeof(c));
  assert_int_equal(pthread_create(&s.thread, NULL, sleep_main, &s), 0);
  for (int i = 0; i < 4; i++) {
    c[i].shared = &shared;
    assert_int_equal(pthread_create(&c[i].thread, NULL, count_main, &c[i]), 0);
  }
  for (int i = 0; i < 4; i++) {
    assert_int_equal(pthread_join(c[i].thread, NULL), 0);
    assert_true(c[i].worst_ns < 10000 * MS);
  }
  assert_int_equal(shared, 8000);
  sleeper_stop(&s);
}

static void try_lock(void **state) {
  (void)state;
  /* The I/O thread sleeps with the lock: a nudge makes it give it up. */
  perigee__sleep_ns(20 * MS);
  perigee__loop_driver_enter(loop);
  bool got = false;
  for (int i = 0; i < 10000 && !got; i++) {
    got = perigee__loop_trylock(loop);
    if (!got) {
      perigee__loop_nudge(loop);
      perigee__sleep_ns(MS / 10);
    }
  }
  assert_true(got);
  perigee__loop_unlock(loop);
  perigee__loop_driver_leave(loop);
}

/* ---- who drives -------------------------------------------------------------------------------- */

typedef struct rung {
  uv_timer_t timer;
  _Atomic int rings, on_io_thread;
} rung;

static void on_ring(uv_timer_t *timer) {
  rung *r = timer->data;
  atomic_store(&r->on_io_thread, perigee__loop_on_io_thread(loop));
  atomic_fetch_add(&r->rings, 1);
}

static void ring_in(rung *r, uint64_t ms) {
  perigee__loop_lock(loop);
  uv_update_time(perigee__loop_uv(loop));
  uv_timer_start(&r->timer, on_ring, ms, 0);
  perigee__loop_unlock(loop);
}

static void until_rings(rung *r, int n) {
  for (int i = 0; i < 10000 && atomic_load(&r->rings) < n; i++)
    perigee__sleep_ns(MS / 2);
  assert_int_equal(atomic_load(&r->rings), n);
}

static void io_thread_takes_over(void **state) {
  (void)state;
  rung r = {.rings = 0};
  perigee__loop_lock(loop);
  uv_timer_init(perigee__loop_uv(loop), &r.timer);
  r.timer.data = &r;
  perigee__loop_unlock(loop);
  ring_in(&r, 1);
  until_rings(&r, 1);
  assert_true(atomic_load(&r.on_io_thread) != 0);
  /* With a driver it stays aside, also when it has napped for long ... */
  perigee__loop_driver_enter(loop);
  ring_in(&r, 1);
  perigee__sleep_ns(30 * MS);
  assert_int_equal(atomic_load(&r.rings), 1);
  perigee__loop_lock(loop);
  perigee__loop_poll(loop);
  perigee__loop_unlock(loop);
  assert_int_equal(atomic_load(&r.rings), 2);
  assert_true(atomic_load(&r.on_io_thread) == 0);
  /* ... and is there again when the driver has left. */
  ring_in(&r, 1);
  perigee__loop_driver_leave(loop);
  int64_t started = perigee__now_ns();
  until_rings(&r, 3);
  assert_true(atomic_load(&r.on_io_thread) != 0);
  assert_true(perigee__now_ns() - started < 10000 * MS);
  perigee__loop_lock(loop);
  uv_close((uv_handle_t *)&r.timer, NULL);
  perigee__loop_unlock(loop);
  /* The handle is on our stack: it must be gone before we are. */
  perigee__loop_destroy(&loop);
  assert_int_equal(perigee__loop_create("loop-test", &loop), 0);
}

/* ---- hooks ------------------------------------------------------------------------------------- */

typedef struct hooked {
  _Atomic int prepared, asleep, collected, delivered, order_broken, busy;
} hooked;

static bool on_prepare(void *arg, bool sleep) {
  hooked *h = arg;
  atomic_fetch_add(sleep ? &h->asleep : &h->prepared, 1);
  return atomic_exchange(&h->busy, 0) != 0;
}

static void *on_collect(void *arg) {
  hooked *h = arg;
  atomic_fetch_add(&h->collected, 1);
  return h;
}

static void on_deliver(void *arg, void *collected) {
  hooked *h = arg;
  if (collected != arg || perigee__locks_held() != 0)
    atomic_store(&h->order_broken, 1);
  atomic_fetch_add(&h->delivered, 1);
}

static void hooks(void **state) {
  (void)state;
  hooked h = {0};
  const perigee__loop_hooks table = {on_prepare, on_collect, on_deliver, &h};
  perigee__loop_set_hooks(loop, &table);
  perigee__loop_driver_enter(loop);
  perigee__loop_lock(loop);
  int polls = atomic_load(&h.prepared);
  perigee__loop_poll(loop);
  assert_true(atomic_load(&h.prepared) > polls);
  /* Who has done something does not sleep. */
  atomic_store(&h.busy, 1);
  int64_t started = perigee__now_ns();
  perigee__loop_run_once(loop, perigee__deadline_in(30000 * MS));
  assert_true(perigee__now_ns() - started < 15000 * MS);
  assert_true(atomic_load(&h.asleep) > 0);
  perigee__loop_unlock(loop);
  perigee__loop_driver_leave(loop);
  perigee__loop_destroy(&loop);
  assert_int_equal(atomic_load(&h.order_broken), 0);
  assert_int_equal(atomic_load(&h.delivered), atomic_load(&h.collected));
  assert_int_equal(perigee__loop_create("loop-test", &loop), 0);
}

#define TEST(_name) cmocka_unit_test_setup_teardown(_name, setup, teardown)

int main(void) {
  const struct CMUnitTest tests[] = {
      TEST(sleeps_end_in_time),   TEST(deadline_in_the_past),
      TEST(kick_ends_a_sleep),    TEST(lock_beside_sleepers),
      TEST(lock_excludes),        TEST(try_lock),
      TEST(io_thread_takes_over), TEST(hooks),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
