#include "host/watch.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/futex.h"
#include "base/log.h"
#include "host/lerror.h"

/* Ignored by default, used by nobody else but Go, which uses it for the same. */
#define POKE SIGURG
/* Between two signals to a holder that does not stop. */
#define AGAIN_NS (20 * PERIGEE_NS_PER_MS)
/* After the first strike, for handlers and `<close>`. */
#define CLEANUP_NS (50 * PERIGEE_NS_PER_MS)
/* How long a holder has to answer from a hook, and then from the handler. */
#define ANSWER_HOOK_NS (20 * PERIGEE_NS_PER_MS)
#define ANSWER_HANDLER_NS (60 * PERIGEE_NS_PER_MS)

/* ---- in the signal handler and in the hook: this thread's own records only ------------------------- */

static int64_t clock_ns(void) {
  struct timespec ts;
  clock_gettime(CLOCK_MONOTONIC, &ts); /* async-signal-safe */
  return (int64_t)ts.tv_sec * PERIGEE_NS_PER_SEC + ts.tv_nsec;
}

static bool is_late(const perigee_interp *interp) {
  if (atomic_load_explicit(&interp->evict, memory_order_relaxed))
    return true;
  int64_t end = atomic_load_explicit(&interp->holder_deadline_ns, memory_order_relaxed);
  return end != PERIGEE_NEVER && clock_ns() >= end;
}

/* The Lua frames of L, innermost first. Reads only. */
static void look(lua_State *L, perigee__spot *spot) {
  lua_Debug ar;
  int n = 0;
  for (int level = 0; n < PERIGEE_SPOT_DEPTH && level < 40 && lua_getstack(L, level, &ar);
       level++) {
    lua_getinfo(L, "Sl", &ar);
    if (ar.currentline <= 0)
      continue;
    size_t i = 0;
    for (; i < sizeof(spot->at[n].file) - 1 && ar.short_src[i] != '\0'; i++)
      spot->at[n].file[i] = ar.short_src[i];
    spot->at[n].file[i] = '\0';
    spot->at[n++].line = ar.currentline;
  }
  spot->n = n;
}

static void answer(lua_State *L, perigee_interp *interp, uint32_t asked) {
  perigee__spot *spot = &interp->spot;
  /* Whoever asked may have given up. acquire: pairs with the asker's exchange, behind which the last answer has been read */
  if (!atomic_compare_exchange_strong_explicit(&spot->state, &asked, PERIGEE_SPOT_WRITING,
                                               memory_order_acquire, memory_order_relaxed))
    return;
  look(L, spot);
  /* release: pairs with the acquire of who asked, and so do `n` and `at` */
  atomic_store_explicit(&spot->state, PERIGEE_SPOT_ANSWERED, memory_order_release);
}

static void hook(lua_State *L, lua_Debug *ar);

static void unhook(perigee__lthread *t, lua_State *L) {
  if (t != NULL && t->hooked == L) {
    lua_sethook(L, t->old_hook, t->old_mask, t->old_count);
    t->hooked = NULL;
  } else {
    lua_sethook(L, NULL, 0, 0);
  }
}

static void arm(perigee__lthread *t, lua_State *L) {
  if (lua_gethook(L) == hook)
    return;
  t->old_hook = lua_gethook(L);
  t->old_mask = lua_gethookmask(L);
  t->old_count = lua_gethookcount(L);
  t->hooked = L;
  lua_sethook(L, hook, LUA_MASKCOUNT, 1);
}

static struct sigaction chained; /* the handler before ours */
static _Atomic bool has_chained; /* release when `chained` is complete, acquire by the handler */

static void on_poke(int signal, siginfo_t *info, void *context) {
  int saved = errno;
  for (perigee__lthread *t = perigee__lthread_mine(); t != NULL; t = t->next) {
    if (t->depth == 0)
      continue;
    lua_State *L = perigee__lthread_state(t);
    uint32_t asked = atomic_load_explicit(&t->interp->spot.state, memory_order_relaxed);
    if (asked == PERIGEE_SPOT_ASK_HANDLER)
      answer(L, t->interp, asked);
    else if (asked == PERIGEE_SPOT_ASK_HOOK || is_late(t->interp))
      arm(t, L);
  }
  if (!atomic_load_explicit(&has_chained, memory_order_acquire))
    ;
  else if (chained.sa_flags & SA_SIGINFO)
    chained.sa_sigaction(signal, info, context);
  else if (chained.sa_handler != SIG_DFL && chained.sa_handler != SIG_IGN)
    chained.sa_handler(signal);
  errno = saved;
}

_Noreturn static void strike(lua_State *L, perigee_interp *interp, const lua_Debug *ar) {
  const perigee__lthread *t = perigee__lthread_find(interp);
  int64_t limit = atomic_load_explicit(&interp->time_limit_ns, memory_order_relaxed);
  const char *place = atomic_load_explicit(&interp->holder_place, memory_order_relaxed);
  char why[64];
  if (atomic_load_explicit(&interp->evict, memory_order_relaxed))
    snprintf(why, sizeof(why), "while the interpreter is closed");
  else if (t->limit_end_ns <= t->op_end_ns)
    snprintf(why, sizeof(why), "longer than its time limit of %.3g s", (double)limit / 1e9);
  else
    snprintf(why, sizeof(why), "beyond the operation's deadline");
  perigee__raise(L, PERIGEE_ETIMEDOUT, "timed out: %s ran %s and was stopped at %.60s:%d",
                 place != NULL ? place : "Lua code", why, ar->short_src, ar->currentline);
}

static void hook(lua_State *L, lua_Debug *ar) {
  perigee_interp *interp = perigee__interp_peek(L);
  perigee__lthread *t = interp != NULL ? perigee__lthread_find(interp) : NULL;
  if (t == NULL || t->depth == 0) {
    unhook(t, L);
    return;
  }
  answer(L, interp, PERIGEE_SPOT_ASK_HOOK);
  if (t->strikes == 0 && !is_late(interp)) {
    unhook(t, L);
    return;
  }
  int64_t now = clock_ns();
  if (t->strikes > 0 && now < t->cleanup_end_ns)
    return;
  if (t->strikes++ == 0)
    t->cleanup_end_ns = now + CLEANUP_NS;
  else
    t->strikes = 2;
  lua_getinfo(L, "Sl", ar);
  strike(L, interp, ar);
}

static void install_handler(void) {
  struct sigaction action = {.sa_flags = SA_SIGINFO | SA_RESTART | SA_ONSTACK};
  action.sa_sigaction = on_poke;
  sigemptyset(&action.sa_mask);
  bool known = sigaction(POKE, NULL, &chained) == 0;
  atomic_store_explicit(&has_chained, known, memory_order_release);
  if (!known || sigaction(POKE, &action, NULL) != 0)
    perigee__log(PERIGEE_LOG_ERROR, "Lua code that runs too long cannot be stopped: %s",
                 strerror(errno));
}

/* Any thread. The thread may have ended or do something else by now: its handler looks for itself. */
static void poke(int tid) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, install_handler);
  if (tid > 0)
    syscall(SYS_tgkill, getpid(), tid, POKE);
}

void perigee__watch_unblock(void) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, POKE);
  pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

/* ---- the watchdog ---------------------------------------------------------------------------------- */

static struct {
  perigee_mutex mutex;
  perigee__node interps; /* perigee_interp.watched */
  bool started;
  unsigned fork_generation;
  _Atomic uint32_t changed; /* futex word of the thread, bumped under mutex */
} watch = {.mutex = PERIGEE_MUTEX_INIT(PERIGEE_LOCK_LEAF, "watchdog"),
           .interps = {&watch.interps, &watch.interps}};
_Atomic int64_t perigee__watch_next_ns = PERIGEE_NEVER; /* written under watch.mutex */

/* Poke who is late. Returns when to look again. */
static int64_t look_at_all(uint32_t *seen_p) {
  int64_t now = perigee__now_ns(), earliest = PERIGEE_NEVER;
  perigee__lock(&watch.mutex);
  PERIGEE_LIST_EACH(it, &watch.interps) {
    perigee_interp *interp = PERIGEE_CONTAINER_OF(it, perigee_interp, watched);
    int tid = atomic_load_explicit(&interp->holder_tid, memory_order_relaxed);
    int64_t end = atomic_load_explicit(&interp->holder_deadline_ns, memory_order_relaxed);
    if (atomic_load_explicit(&interp->evict, memory_order_relaxed))
      end = 0;
    if (tid == 0 || end == PERIGEE_NEVER)
      continue;
    if (end <= now) {
      poke(tid);
      end = now + AGAIN_NS;
    }
    earliest = end < earliest ? end : earliest;
  }
  atomic_store_explicit(&perigee__watch_next_ns, earliest, memory_order_relaxed);
  *seen_p = atomic_load_explicit(&watch.changed, memory_order_relaxed);
  perigee__unlock(&watch.mutex);
  return earliest;
}

/*
 * A holder stores its end and then reads watch_next_ns; this thread reads the ends and then stores watch_next_ns, all relaxed. Each may
 * miss the other's store. So who has moved watch_next_ns up looks again before long, until a look finds nothing earlier: a holder that
 * came in between has stored its end by then, or has read the new value. That spares the holder a fence.
 */
static void *watch_main(void *arg) {
  (void)arg;
  int64_t before = 0;
  for (;;) {
    uint32_t seen;
    int64_t next = look_at_all(&seen), soon = perigee__now_ns() + AGAIN_NS;
    perigee__futex_wait(&watch.changed, seen, next > before && next > soon ? soon : next, false);
    before = next;
  }
  return NULL;
}

/* An end before the one that the watchdog sleeps for. */
void perigee__watch_at(int64_t end_ns) {
  perigee__lock(&watch.mutex);
  if (!watch.started || watch.fork_generation != perigee__fork_generation()) {
    pthread_t thread;
    int rc = perigee__thread_start(&thread, "pg-watch", 0, watch_main, NULL);
    if (rc < 0) {
      perigee__unlock(&watch.mutex);
      perigee__log(PERIGEE_LOG_ERROR, "cannot start the watchdog of Lua code: %s",
                   perigee_strerror(rc));
      return;
    }
    pthread_detach(thread);
    watch.started = true;
    watch.fork_generation = perigee__fork_generation();
  }
  if (end_ns < atomic_load_explicit(&perigee__watch_next_ns, memory_order_relaxed))
    atomic_store_explicit(&perigee__watch_next_ns, end_ns, memory_order_relaxed);
  atomic_fetch_add_explicit(&watch.changed, 1, memory_order_relaxed); /* the futex orders */
  perigee__unlock(&watch.mutex);
  perigee__futex_wake(&watch.changed, 1, false);
}

void perigee__watch_add(perigee_interp *interp) {
  perigee__lock(&watch.mutex);
  perigee__list_append(&watch.interps, &interp->watched);
  perigee__unlock(&watch.mutex);
}

void perigee__watch_remove(perigee_interp *interp) {
  perigee__lock(&watch.mutex);
  perigee__list_remove(&interp->watched);
  perigee__unlock(&watch.mutex);
}

/* ---- stints ---------------------------------------------------------------------------------------- */

static int64_t end_in(int64_t now, int64_t ns) {
  return ns <= 0 || ns >= PERIGEE_NEVER - now ? PERIGEE_NEVER : now + ns;
}

void perigee__stint_begin(perigee__lthread *t, int64_t timeout_ns, perigee__stint *stint) {
  perigee_interp *interp = t->interp;
  *stint = (perigee__stint){t->op_end_ns, t->limit_end_ns, t->came_late, t->strikes};
  int64_t now = t->depth == 1 ? atomic_load_explicit(&interp->holder_since_ns, memory_order_relaxed)
                              : perigee__now_ns();
  int64_t limit = atomic_load_explicit(&interp->time_limit_ns, memory_order_relaxed);
  t->op_end_ns = end_in(now + PERIGEE__STINT_GRACE_NS, timeout_ns);
  t->limit_end_ns = end_in(now, limit);
  t->came_late = false;
  t->strikes = 0;
  perigee__stint_publish(t);
}

void perigee__stint_end(perigee__lthread *t, lua_State *L, const perigee__stint *stint) {
  t->op_end_ns = stint->op_end_ns;
  t->limit_end_ns = stint->limit_end_ns;
  t->came_late = stint->came_late;
  t->strikes = stint->strikes;
  perigee__stint_publish(t);
  if (PERIGEE_UNLIKELY(t->hooked == L) && t->strikes == 0)
    unhook(t, L);
}

void perigee__stint_go_on(perigee__lthread *t, int64_t limit_left_ns) {
  int64_t now = atomic_load_explicit(&t->interp->holder_since_ns, memory_order_relaxed);
  if (limit_left_ns != PERIGEE_NEVER)
    t->limit_end_ns = now + limit_left_ns;
  if (PERIGEE_UNLIKELY(t->op_end_ns < now + CLEANUP_NS) && !t->came_late) {
    t->came_late = true;
    t->op_end_ns = now + CLEANUP_NS;
  }
  perigee__stint_publish(t);
}

void perigee__watch_evict(perigee_interp *interp) {
  atomic_store_explicit(&interp->evict, true, memory_order_relaxed);
  perigee__watch_at(0);
}

int perigee__resume(perigee__lthread *t, lua_State *co, lua_State *from, int nargs, int *nres_p) {
  lua_State *before = t->current;
  t->current = co;
  int status = lua_resume(co, from, nargs, nres_p);
  t->current = before;
  if (PERIGEE_UNLIKELY(t->hooked == co)) {
    unhook(t, co);
    if (t->strikes > 0) /* who resumed it is to stop as well */
      arm(t, from);
  }
  return status;
}

/* ---- where a holder is ----------------------------------------------------------------------------- */

static bool wait_for_answer(perigee__spot *spot, uint32_t asked) {
  int64_t limit = asked == PERIGEE_SPOT_ASK_HOOK ? ANSWER_HOOK_NS : ANSWER_HANDLER_NS;
  for (int64_t waited = 0; waited < limit; waited += PERIGEE_NS_PER_MS) {
    /* acquire: pairs with the release in answer */
    if (atomic_load_explicit(&spot->state, memory_order_acquire) == PERIGEE_SPOT_ANSWERED)
      return true;
    perigee__sleep_ns(PERIGEE_NS_PER_MS);
  }
  uint32_t is = asked;
  if (atomic_compare_exchange_strong_explicit(&spot->state, &is, PERIGEE_SPOT_IDLE,
                                              memory_order_relaxed, memory_order_relaxed))
    return false;
  /* It is being written: that takes no time, but the writer may not have a core. */
  while (atomic_load_explicit(&spot->state, memory_order_acquire) != PERIGEE_SPOT_ANSWERED)
    perigee__sleep_ns(PERIGEE_NS_PER_MS);
  return true;
}

/* "at a.lua:3, called from b.lua:9" behind what stands in text already. */
static void add_spot(perigee_interp *interp, int tid, char *text, size_t size) {
  static const uint32_t ways[] = {PERIGEE_SPOT_ASK_HOOK, PERIGEE_SPOT_ASK_HANDLER};
  perigee__spot *spot = &interp->spot;
  for (size_t i = 0; i < PERIGEE_COUNT(ways); i++) {
    uint32_t idle = PERIGEE_SPOT_IDLE;
    /* acq_rel: pairs with the release of who asked before, and with the acquire in answer */
    if (!atomic_compare_exchange_strong_explicit(&spot->state, &idle, ways[i], memory_order_acq_rel,
                                                 memory_order_relaxed))
      return; /* somebody else asks */
    poke(tid);
    if (!wait_for_answer(spot, ways[i]))
      continue;
    for (int n = 0; n < spot->n; n++) {
      size_t used = strlen(text);
      snprintf(text + used, size - used, "%s %s:%d", n == 0 ? "; at" : ", called from",
               spot->at[n].file, spot->at[n].line);
    }
    atomic_store_explicit(&spot->state, PERIGEE_SPOT_IDLE, memory_order_release); /* it is read */
    return;
  }
}

void perigee__holder_text(perigee_interp *interp, bool ask, char *text, size_t size) {
  int tid = atomic_load_explicit(&interp->holder_tid, memory_order_relaxed);
  if (tid == 0) {
    snprintf(text, size, "it was free for a moment");
    return;
  }
  int64_t since = atomic_load_explicit(&interp->holder_since_ns, memory_order_relaxed);
  const char *place = atomic_load_explicit(&interp->holder_place, memory_order_relaxed);
  snprintf(text, size, "thread %d holds it since %.1f s (%s", tid,
           (double)(perigee__now_ns() - since) / 1e9, place != NULL ? place : "its own Lua code");
  if (ask)
    add_spot(interp, tid, text, size - 2);
  size_t used = strlen(text);
  snprintf(text + used, size - used, ")");
}
