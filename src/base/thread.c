#include "base/thread.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "base/assert.h"

#ifdef PERIGEE_DEBUG
enum {
  HELD_MAX = 16
};
static _Thread_local const perigee_mutex *held[HELD_MAX];
static _Thread_local int nheld;

static void held_push(const perigee_mutex *m) {
  if (nheld == HELD_MAX)
    PERIGEE_BUG("more than %d locks held", HELD_MAX);
  held[nheld++] = m;
}

static void held_check(const perigee_mutex *m) {
  for (int i = 0; i < nheld; i++)
    if (held[i]->rank >= m->rank)
      PERIGEE_BUG("lock order: taking %s (%d) while holding %s (%d)", m->name, m->rank,
                  held[i]->name, held[i]->rank);
}

static void held_pop(const perigee_mutex *m) {
  for (int i = nheld - 1; i >= 0; i--)
    if (held[i] == m) {
      memmove(&held[i], &held[i + 1], (size_t)(nheld - 1 - i) * sizeof(held[0]));
      nheld--;
      return;
    }
  PERIGEE_BUG("unlock of %s, which this thread does not hold", m->name);
}

int perigee__locks_held(void) { return nheld; }
#else
static void held_push(const perigee_mutex *m) { (void)m; }
static void held_check(const perigee_mutex *m) { (void)m; }
static void held_pop(const perigee_mutex *m) { (void)m; }
int perigee__locks_held(void) { return 0; }
#endif

void perigee__mutex_init(perigee_mutex *m, perigee_lock_rank rank, const char *name) {
  m->rank = (int)rank;
  m->name = name;
  if (pthread_mutex_init(&m->mutex, NULL) != 0)
    PERIGEE_BUG("pthread_mutex_init %s", name);
}

void perigee__mutex_fini(perigee_mutex *m) {
  int rc = pthread_mutex_destroy(&m->mutex);
  if (rc != 0)
    PERIGEE_BUG("pthread_mutex_destroy %s: %d", m->name, rc);
}

void perigee__lock(perigee_mutex *m) PERIGEE_NO_TSA {
  held_check(m);
  int rc = pthread_mutex_lock(&m->mutex);
  if (rc != 0)
    PERIGEE_BUG("pthread_mutex_lock %s: %d", m->name, rc);
  held_push(m);
}

bool perigee__trylock(perigee_mutex *m) PERIGEE_NO_TSA {
  /* No order check: a try never waits, so it cannot close a cycle. */
  if (pthread_mutex_trylock(&m->mutex) != 0)
    return false;
  held_push(m);
  return true;
}

void perigee__unlock(perigee_mutex *m) PERIGEE_NO_TSA {
  held_pop(m);
  int rc = pthread_mutex_unlock(&m->mutex);
  if (rc != 0)
    PERIGEE_BUG("pthread_mutex_unlock %s: %d", m->name, rc);
}

int perigee__thread_start(pthread_t *thread_p, const char *name, size_t stack_bytes,
                          void *(*fn)(void *), void *arg) {
  pthread_attr_t attr;
  int rc = pthread_attr_init(&attr);
  if (rc != 0)
    return -rc;
  pthread_attr_setstacksize(&attr, stack_bytes > 0 ? stack_bytes : (size_t)256 << 10);
  /* Signals belong to the host's threads: a handler of its own must not run on ours. */
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  rc = pthread_create(thread_p, &attr, fn, arg);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  pthread_attr_destroy(&attr);
  if (rc != 0)
    return -rc;
  char short_name[16]; /* the kernel's limit */
  snprintf(short_name, sizeof(short_name), "%s", name);
  pthread_setname_np(*thread_p, short_name);
  return 0;
}
