/* The interpreter's mutex: exclusion, deadlines, bounded waiting, the report of a long wait. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <pthread.h>
#include <stdatomic.h>

#include "host/imutex.h"

#include <perigee/error.h>

#include "base/clock.h"

enum {
  THREADS = 8,
  ROUNDS = 20000
};

static perigee__imutex mutex;
static long counter; /* under mutex, and wrong if it does not exclude */

static void *count(void *arg) {
  (void)arg;
  for (int i = 0; i < ROUNDS; i++) {
    if (perigee__imutex_lock(&mutex, PERIGEE_NEVER, NULL, NULL) != 0)
      return (void *)1;
    counter++;
    perigee__imutex_unlock(&mutex);
  }
  return NULL;
}

static void excludes(void **state) {
  (void)state;
  pthread_t threads[THREADS];
  perigee__imutex_init(&mutex);
  counter = 0;
  for (int i = 0; i < THREADS; i++)
    assert_int_equal(pthread_create(&threads[i], NULL, count, NULL), 0);
  for (int i = 0; i < THREADS; i++) {
    void *result;
    pthread_join(threads[i], &result);
    assert_null(result);
  }
  assert_int_equal(counter, THREADS * ROUNDS);
  assert_int_equal(atomic_load(&mutex.word), 0);
  perigee__imutex_fini(&mutex);
}

static _Atomic int phase;

static void *try_with_deadline(void *arg) {
  int64_t started = perigee__now_ns();
  int rc = perigee__imutex_lock(&mutex, 30 * PERIGEE_NS_PER_MS, NULL, NULL);
  *(int64_t *)arg = perigee__now_ns() - started;
  return (void *)(intptr_t)rc;
}

static void gives_up_at_the_deadline(void **state) {
  (void)state;
  perigee__imutex_init(&mutex);
  assert_int_equal(perigee__imutex_lock(&mutex, PERIGEE_NEVER, NULL, NULL), 0);
  pthread_t threads[4];
  int64_t took[4];
  for (int i = 0; i < 4; i++)
    pthread_create(&threads[i], NULL, try_with_deadline, &took[i]);
  for (int i = 0; i < 4; i++) {
    void *rc;
    pthread_join(threads[i], &rc);
    assert_int_equal((intptr_t)rc, PERIGEE_ETIMEDOUT);
    assert_true(took[i] >= 30 * PERIGEE_NS_PER_MS);
    assert_true(took[i] < 10 * PERIGEE_NS_PER_SEC);
  }
  /* Nobody is left in the queue: the word is free after the unlock, and it can be taken. */
  perigee__imutex_unlock(&mutex);
  assert_int_equal(atomic_load(&mutex.word), 0);
  assert_int_equal(perigee__imutex_lock(&mutex, 0, NULL, NULL), 0);
  perigee__imutex_unlock(&mutex);
  perigee__imutex_fini(&mutex);
}

static void *greedy(void *arg) {
  (void)arg;
  while (atomic_load(&phase) == 0) {
    perigee__imutex_lock(&mutex, PERIGEE_NEVER, NULL, NULL);
    int64_t until = perigee__now_ns() + 20000;
    while (perigee__now_ns() < until)
      ;
    perigee__imutex_unlock(&mutex);
  }
  return NULL;
}

/* Two threads take it again the moment they give it up; a third gets its turn all the same. */
static void nobody_starves(void **state) {
  (void)state;
  perigee__imutex_init(&mutex);
  atomic_store(&phase, 0);
  pthread_t threads[2];
  for (int i = 0; i < 2; i++)
    pthread_create(&threads[i], NULL, greedy, NULL);
  int64_t worst = 0;
  for (int i = 0; i < 100; i++) {
    int64_t started = perigee__now_ns();
    assert_int_equal(perigee__imutex_lock(&mutex, 10 * PERIGEE_NS_PER_SEC, NULL, NULL), 0);
    int64_t took = perigee__now_ns() - started;
    perigee__imutex_unlock(&mutex);
    worst = took > worst ? took : worst;
  }
  atomic_store(&phase, 1);
  for (int i = 0; i < 2; i++)
    pthread_join(threads[i], NULL);
  assert_true(worst < PERIGEE_NS_PER_SEC);
  perigee__imutex_fini(&mutex);
}

static void note_slow(void *arg, int64_t waited_ns) {
  assert_true(waited_ns >= PERIGEE_NS_PER_SEC);
  atomic_fetch_add((_Atomic int *)arg, 1);
}

static void *wait_long(void *arg) {
  int rc = perigee__imutex_lock(&mutex, PERIGEE_NEVER, note_slow, arg);
  if (rc == 0)
    perigee__imutex_unlock(&mutex);
  return (void *)(intptr_t)rc;
}

static void a_long_wait_is_reported_once(void **state) {
  (void)state;
  perigee__imutex_init(&mutex);
  _Atomic int reports = 0;
  perigee__imutex_lock(&mutex, PERIGEE_NEVER, NULL, NULL);
  pthread_t thread;
  pthread_create(&thread, NULL, wait_long, (void *)&reports);
  perigee__sleep_ns(1300 * PERIGEE_NS_PER_MS);
  perigee__imutex_unlock(&mutex);
  void *rc;
  pthread_join(thread, &rc);
  assert_int_equal((intptr_t)rc, 0);
  assert_int_equal(atomic_load(&reports), 1);
  perigee__imutex_fini(&mutex);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(excludes),
      cmocka_unit_test(gives_up_at_the_deadline),
      cmocka_unit_test(nobody_starves),
      cmocka_unit_test(a_long_wait_is_reported_once),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
