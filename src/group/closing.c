#include "group/closing.h"

#include <limits.h>
#include <stdlib.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/futex.h"
#include "base/log.h"

/* How long exit() waits for groups to close in order. */
#define EXIT_WAIT_NS (2 * PERIGEE_NS_PER_SEC)
#define INSIDE_WAIT_NS (500 * PERIGEE_NS_PER_MS)

typedef struct entry {
  perigee__node node;
  perigee_group *group; /* one reference */
} entry;

static perigee_mutex mutex = PERIGEE_MUTEX_INIT(PERIGEE_LOCK_LEAF, "closing");
static perigee__node open_groups = {&open_groups, &open_groups}; /* entry, under mutex */
static bool at_exit_set;                                         /* under mutex */
_Atomic bool perigee__closing_at_exit;
static _Atomic uint32_t closers; /* threads that close; futex word of at_exit */

static void *closer_main(void *arg) {
  perigee_group *group = arg;
  perigee_group_close(group);
  perigee_group_unref(group);
  atomic_fetch_sub(&closers, 1);
  perigee__futex_wake(&closers, INT_MAX, false);
  return NULL;
}

void perigee__closing_defer(perigee_group *group) {
  pthread_t thread;
  atomic_fetch_add(&closers, 1);
  /* Deep enough for a layer's close written in Lua. */
  int rc = perigee__thread_start(&thread, "pg-close", (size_t)4 << 20, closer_main, group);
  if (rc == 0) {
    pthread_detach(thread);
    return;
  }
  atomic_fetch_sub(&closers, 1);
  perigee__log(PERIGEE_LOG_ERROR, "group %s is not closed: no thread (%d)", group->name, rc);
}

static perigee_group *take_open(void) {
  perigee_group *group = NULL;
  perigee__lock(&mutex);
  if (!perigee__list_empty(&open_groups)) {
    entry *e = PERIGEE_CONTAINER_OF(open_groups.next, entry, node);
    group = e->group; /* its reference goes to the caller */
    perigee__list_remove(&e->node);
    free(e);
  }
  perigee__unlock(&mutex);
  return group;
}

bool perigee__closing_wait(int64_t deadline_ns) {
  uint32_t n;
  while ((n = atomic_load(&closers)) > 0 && !perigee__passed(deadline_ns))
    perigee__futex_wait(&closers, n, deadline_ns, false);
  return n == 0;
}

static void at_exit(void) {
  atomic_store_explicit(&perigee__closing_at_exit, true, memory_order_relaxed);
  for (perigee_group *group; (group = take_open()) != NULL;)
    perigee__closing_defer(group);
  /* exit() inside an operation (of a script): that group's close waits for this very thread, only the others can end. */
  int64_t limit = perigee__group_inside_call() ? INSIDE_WAIT_NS : EXIT_WAIT_NS;
  perigee__closing_wait(perigee__deadline_in(limit));
}

int perigee__closing_register(perigee_group *group) {
  entry *e = malloc(sizeof(*e));
  if (e == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory for a group");
  e->group = perigee_group_ref(group);
  perigee__lock(&mutex);
  if (!at_exit_set)
    at_exit_set = atexit(at_exit) == 0;
  perigee__list_append(&open_groups, &e->node);
  perigee__unlock(&mutex);
  return 0;
}

void perigee__closing_forget(perigee_group *group) {
  entry *found = NULL;
  perigee__lock(&mutex);
  PERIGEE_LIST_EACH(it, &open_groups) {
    entry *e = PERIGEE_CONTAINER_OF(it, entry, node);
    if (e->group == group) {
      perigee__list_remove(&e->node);
      found = e;
      break;
    }
  }
  perigee__unlock(&mutex);
  if (found != NULL)
    perigee_group_unref(group);
  free(found);
}
