#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "host/interp.h"

#include "base/alloc.h"
#include "base/assert.h"
#include "base/futex.h"
#include "base/log.h"
#include "group/closing.h"
#include "host/deferred.h"
#include "host/lerror.h"
#include "host/watch.h"

/* Who was ready to wait that long also waits for the holder to say where it is. */
#define ASK_AFTER_NS (20 * PERIGEE_NS_PER_MS)
/* How long a thread waits for an interpreter while the process ends. */
#define EXIT_WAIT_NS (100 * PERIGEE_NS_PER_MS)

static perigee_mutex records_lock = PERIGEE_MUTEX_INIT(PERIGEE_LOCK_LEAF, "lua threads");
static _Thread_local perigee__lthread *my_records;
static pthread_key_t exit_key;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static unsigned
    fork_generation; /* written in a child that has one thread, before anybody can read it */

static void on_fork_child(void) { fork_generation++; }

/* An OS thread ends: its Lua threads are free for the next one. Does not enter, which could wait. */
static void on_thread_exit(void *unused) {
  (void)unused;
  perigee__lock(&records_lock);
  while (my_records != NULL) {
    perigee__lthread *t = my_records;
    my_records = t->next;
    if (t->attached)
      t->orphan = true;
    else
      free(t);
  }
  perigee__unlock(&records_lock);
}

static void set_up_once(void) {
  if (pthread_key_create(&exit_key, on_thread_exit) != 0)
    PERIGEE_BUG("pthread_key_create");
  pthread_atfork(NULL, NULL, on_fork_child);
}

unsigned perigee__fork_generation(void) {
  pthread_once(&once, set_up_once);
  return fork_generation;
}

perigee__lthread *perigee__lthread_mine(void) {
  /* The key is set where there are records: then reading my_records does not allocate, which a signal handler must not. */
  return pthread_getspecific(exit_key) != NULL ? my_records : NULL;
}

perigee__lthread *perigee__lthread_find(const perigee_interp *interp) {
  for (perigee__lthread *t = my_records; t != NULL; t = t->next)
    if (t->interp_id == interp->id)
      return t;
  return NULL;
}

/* ---- records ------------------------------------------------------------------------------------ */

static void forget_dead_records(void) {
  perigee__lock(&records_lock);
  for (perigee__lthread **at = &my_records; *at != NULL;) {
    perigee__lthread *t = *at;
    if (t->attached) {
      at = &t->next;
      continue;
    }
    *at = t->next;
    free(t);
  }
  perigee__unlock(&records_lock);
}

static perigee__lthread *take_orphan(perigee_interp *interp) {
  perigee__lthread *found = NULL;
  perigee__lock(&records_lock);
  PERIGEE_LIST_EACH(it, &interp->threads) {
    perigee__lthread *t = PERIGEE_CONTAINER_OF(it, perigee__lthread, node);
    if (t->orphan && t->home_ref != LUA_NOREF && t->depth == 0 && t->gaps == 0) {
      t->orphan = false;
      found = t;
      break;
    }
  }
  perigee__unlock(&records_lock);
  return found;
}

static int new_lua_thread(lua_State *L) {
  perigee__lthread *t = lua_touserdata(L, 1);
  t->home = lua_newthread(L);
  t->home_ref = luaL_ref(L, LUA_REGISTRYINDEX);
  return 0;
}

/* A record for this OS thread, with the mutex held. home: NULL makes or takes over a Lua thread. */
static perigee__lthread *record_create(perigee_interp *interp, lua_State *home) {
  forget_dead_records();
  pthread_once(&once, set_up_once);
  pthread_setspecific(exit_key, &exit_key); /* any value but NULL: the destructor runs */
  perigee__lthread *t = home == NULL ? take_orphan(interp) : NULL;
  if (t == NULL) {
    t = perigee__calloc(1, sizeof(*t));
    if (t == NULL) {
      perigee__fail(PERIGEE_ENOMEM, "no memory to enter the interpreter");
      return NULL;
    }
    perigee__list_init(&t->node);
    t->interp_id = interp->id;
    t->interp = interp;
    t->home = home;
    t->home_ref = LUA_NOREF;
    t->op_end_ns = t->limit_end_ns = PERIGEE_NEVER;
    if (home == NULL) {
      /* The service stack belongs to whoever holds the mutex; a finalizer could give it up in between: not now. */
      lua_State *S = interp->service;
      int running = lua_gc(S, LUA_GCISRUNNING);
      lua_gc(S, LUA_GCSTOP);
      perigee_error error;
      int rc = perigee__protect(S, new_lua_thread, t, &error);
      if (running)
        lua_gc(S, LUA_GCRESTART);
      if (rc < 0) {
        free(t);
        perigee__fail_with(&error);
        return NULL;
      }
    }
    t->attached = true;
    perigee__lock(&records_lock);
    perigee__list_append(&interp->threads, &t->node);
    perigee__unlock(&records_lock);
    atomic_fetch_add_explicit(&interp->live_threads, 1, memory_order_relaxed);
  }
  t->tid = (int)syscall(SYS_gettid);
  t->next = my_records;
  my_records = t;
  return t;
}

int perigee__lthread_stopped(const perigee__lthread *t) {
  /* acquire: pairs with the release of whoever stops it; the reason is there then */
  if (PERIGEE_LIKELY(t->stop == NULL ||
                     atomic_load_explicit(&t->stop->set, memory_order_acquire) == 0))
    return 0;
  return perigee__fail(PERIGEE_EABORTED, "%s", t->stop->reason);
}

int perigee__lthread_sleep(perigee__lthread *t, int64_t ns) {
  if (t->stop == NULL) {
    perigee__sleep_ns(ns);
    return 0;
  }
  int64_t until = perigee__deadline_in(ns);
  while (!perigee__passed(until)) {
    PERIGEE_TRY(perigee__lthread_stopped(t));
    perigee__futex_wait(&t->stop->set, 0, until, false);
  }
  return 0;
}

void perigee__lthreads_detach(perigee_interp *interp) {
  perigee__lock(&records_lock);
  PERIGEE_LIST_EACH_SAFE(it, tmp, &interp->threads) {
    perigee__lthread *t = PERIGEE_CONTAINER_OF(it, perigee__lthread, node);
    perigee__list_remove(&t->node);
    t->attached = false;
    if (t->orphan)
      free(t);
  }
  perigee__unlock(&records_lock);
  atomic_store_explicit(&interp->live_threads, 0, memory_order_relaxed);
}

/* ---- the one place that locks, the one that unlocks ---------------------------------------------- */

static void report_wait(void *arg, int64_t waited_ns) {
  char holder[400];
  perigee__holder_text(arg, true, holder, sizeof(holder));
  perigee__log(PERIGEE_LOG_WARN, "thread %d has waited %.1f s for the Lua interpreter; %s",
               (int)syscall(SYS_gettid), (double)waited_ns / 1e9, holder);
}

static int64_t coarse_now_ns(void) {
  struct timespec ts;
  clock_gettime(CLOCK_MONOTONIC_COARSE, &ts); /* a few ns; the report speaks of seconds */
  return (int64_t)ts.tv_sec * PERIGEE_NS_PER_SEC + ts.tv_nsec;
}

static int acquire(perigee_interp *interp, int64_t timeout_ns, const char *place, bool quiet) {
  PERIGEE_ASSERT(perigee__locks_held() == 0);
  /* The holder may be a foreign loop's thread, asleep in its poll: it is to come out of it. */
  bool ask = PERIGEE_UNLIKELY(atomic_load_explicit(&interp->loop_inside, memory_order_relaxed));
  if (ask)
    perigee__pollfd_want(interp, true);
  int rc = perigee__imutex_lock(&interp->mutex, timeout_ns, quiet ? NULL : report_wait, interp);
  if (ask)
    perigee__pollfd_want(interp, false);
  if (rc < 0)
    return rc;
  atomic_store_explicit(&interp->holder_since_ns, coarse_now_ns(), memory_order_relaxed);
  atomic_store_explicit(&interp->holder_place, place, memory_order_relaxed);
  return 0;
}

static void release(perigee_interp *interp) {
  atomic_store_explicit(&interp->holder_tid, 0, memory_order_relaxed);
  perigee__imutex_unlock(&interp->mutex);
}

/* ---- enter and leave ----------------------------------------------------------------------------- */

static int fail_closed(void) {
  return perigee__fail(PERIGEE_ELUASTATE, "the Lua interpreter is closed");
}

static void come_in(perigee_interp *interp, perigee__lthread *t) {
  t->depth = 1;
  perigee__stint_publish(t);
  atomic_store_explicit(&interp->holder_tid, t->tid, memory_order_relaxed);
  if (t->gaps == 0)
    atomic_fetch_add_explicit(&interp->inside, 1, memory_order_relaxed);
  if (PERIGEE_UNLIKELY(atomic_load_explicit(&interp->has_garbage, memory_order_relaxed) != 0))
    perigee__garbage_free(interp);
}

int perigee__enter(perigee_interp *interp, int64_t timeout_ns, const char *place, bool quiet,
                   perigee__lthread **t_p) {
  perigee__lthread *t = perigee__lthread_find(interp);
  if (t != NULL && t->depth > 0) {
    t->depth++;
    *t_p = t;
    return 0;
  }
  if (PERIGEE_UNLIKELY(interp->fork_generation != perigee__fork_generation()))
    return perigee__fail(PERIGEE_EFORKED,
                         "this process was forked: the Lua interpreter belongs to its parent");
  /* Racing with close is settled below; this spares late comers the wait. */
  if (atomic_load_explicit(&interp->state, memory_order_relaxed) != PERIGEE_INTERP_OPEN)
    return fail_closed();
  /* Who called exit() may be the holder. */
  if (PERIGEE_UNLIKELY(atomic_load_explicit(&perigee__closing_at_exit, memory_order_relaxed)) &&
      timeout_ns > EXIT_WAIT_NS)
    timeout_ns = EXIT_WAIT_NS;
  if (acquire(interp, timeout_ns, place, quiet) < 0) {
    char holder[400];
    perigee__holder_text(interp, timeout_ns >= ASK_AFTER_NS, holder, sizeof(holder));
    return perigee__fail(PERIGEE_ETIMEDOUT, "timed out waiting for the Lua interpreter: %s",
                         holder);
  }
  if (atomic_load_explicit(&interp->state, memory_order_relaxed) != PERIGEE_INTERP_OPEN) {
    release(interp);
    return fail_closed();
  }
  if (t == NULL && (t = record_create(interp, NULL)) == NULL) {
    release(interp);
    return perigee_last_error()->code;
  }
  come_in(interp, t);
  *t_p = t;
  return 0;
}

void perigee__leave(perigee_interp *interp, perigee__lthread *t) {
  PERIGEE_ASSERT(t->depth > 0);
  if (--t->depth > 0)
    return;
  if (interp->implicit == t)
    interp->implicit = NULL;
  if (t->gaps == 0) {
    atomic_fetch_sub_explicit(&interp->inside, 1, memory_order_relaxed);
    if (atomic_load_explicit(&interp->state, memory_order_relaxed) == PERIGEE_INTERP_CLOSING)
      perigee__futex_wake(&interp->inside, 1, false);
  }
  release(interp);
}

lua_State *perigee_interp_enter(perigee_interp *interp) {
  perigee__lthread *t;
  return perigee__enter(interp, perigee__enter_timeout(interp), "a C program", false, &t) < 0
             ? NULL
             : perigee__lthread_state(t);
}

void perigee_interp_leave(perigee_interp *interp) {
  perigee__lthread *t = perigee__lthread_find(interp);
  if (t == NULL || t->depth == 0)
    PERIGEE_BUG("perigee_interp_leave by a thread that is not inside");
  perigee__leave(interp, t);
}

/* ---- the thread that runs Lua without an enter ---------------------------------------------------- */

int perigee__adopt_first(perigee_interp *interp, lua_State *L) {
  lua_rawgeti(L, LUA_REGISTRYINDEX, LUA_RIDX_MAINTHREAD);
  lua_State *main = lua_tothread(L, -1);
  lua_pop(L, 1);
  if (acquire(interp, PERIGEE_NEVER, NULL, true) < 0)
    return PERIGEE_EBUG;
  perigee__lthread *t = record_create(interp, main);
  if (t == NULL) {
    release(interp);
    return PERIGEE_ENOMEM;
  }
  come_in(interp, t);
  interp->implicit = t;
  return 0;
}

/* The owner of a borrowed state went on with it on this thread: that it runs here means that it does not run there. */
static perigee__lthread *adopt(perigee_interp *interp, perigee__lthread *t) {
  perigee__lthread *old = interp->implicit;
  if (old == NULL || old->depth != 1 || old->gaps > 0)
    return NULL;
  if (t == NULL && (t = record_create(interp, interp->main)) == NULL)
    return NULL;
  old->depth = 0;
  t->depth = 1;
  interp->implicit = t;
  perigee__stint_publish(t);
  atomic_store_explicit(&interp->holder_tid, t->tid, memory_order_relaxed);
  return t;
}

perigee__lthread *perigee__lthread_try(perigee_interp *interp, lua_State *L) {
  (void)L;
  perigee__lthread *t = perigee__lthread_find(interp);
  if (PERIGEE_LIKELY(t != NULL && t->depth > 0))
    return t;
  return adopt(interp, t);
}

perigee__lthread *perigee__lthread_here(perigee_interp *interp, lua_State *L) {
  perigee__lthread *t = perigee__lthread_try(interp, L);
  if (PERIGEE_LIKELY(t != NULL && interp->fork_generation == perigee__fork_generation()))
    return t;
  if (t != NULL)
    perigee__raise(L, PERIGEE_EFORKED,
                   "this process was forked: its groups and its interpreter belong to the parent");
  perigee__raise(
      L, PERIGEE_ESTATE,
      "this thread runs Lua without having entered the interpreter (perigee_interp_enter)");
}

/* ---- gaps ----------------------------------------------------------------------------------------- */

void perigee__gap_open(perigee_interp *interp, lua_State *L, perigee__gap *gap) {
  perigee__lthread *t = perigee__lthread_here(interp, L);
  gap->t = t;
  gap->before = t->current;
  gap->depth = t->depth;
  gap->place = atomic_load_explicit(&interp->holder_place, memory_order_relaxed);
  gap->limit_left_ns = perigee__stint_pause(t);
  t->current = L;
  t->depth = 0;
  t->gaps++;
  if (PERIGEE_LIKELY(t->deferred == NULL)) {
    release(interp);
    return;
  }
  perigee__deferred_mark(t);
  release(interp);
  perigee__deferred_submit(t);
}

void perigee__gap_close(perigee_interp *interp, perigee__gap *gap) {
  perigee__lthread *t = gap->t;
  acquire(interp, PERIGEE_NEVER, gap->place, false);
  if (PERIGEE_UNLIKELY(atomic_load_explicit(&interp->state, memory_order_relaxed) ==
                       PERIGEE_INTERP_CLOSED)) {
    /* The state was closed under a thread that still has frames in it. There is nowhere to return to. */
    release(interp);
    perigee__log(PERIGEE_LOG_ERROR,
                 "thread %d was inside a Lua interpreter that was closed; it stops here", t->tid);
    for (;;)
      pause();
  }
  t->gaps--;
  t->depth = gap->depth;
  t->current = gap->before;
  perigee__stint_go_on(t, gap->limit_left_ns);
  atomic_store_explicit(&interp->holder_tid, t->tid, memory_order_relaxed);
  if (PERIGEE_UNLIKELY(atomic_load_explicit(&interp->has_garbage, memory_order_relaxed) != 0))
    perigee__garbage_free(interp);
}
