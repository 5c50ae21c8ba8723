#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <lualib.h>

#include "host/interp.h"

#include "base/alloc.h"
#include "base/assert.h"
#include "base/env.h"
#include "base/futex.h"
#include "base/log.h"
#include "host/lerror.h"
#include "host/task.h"
#include "host/textonly.h"
#include "host/watch.h"

/* How long close waits for threads that are still inside. */
#define CLOSE_WAIT_NS (2 * PERIGEE_NS_PER_SEC)

struct perigee__place {
  struct perigee__place *next;
  char text[];
};

static const char box_key; /* registry: the box of this state */
static _Atomic uint64_t next_id = 1;

/* ---- the struct ---------------------------------------------------------------------------------- */

static perigee_interp *interp_new(bool owned) {
  perigee_interp *interp = perigee__calloc(1, sizeof(*interp));
  if (interp == NULL) {
    perigee__fail(PERIGEE_ENOMEM, "no memory for an interpreter");
    return NULL;
  }
  atomic_init(&interp->refs, 1);
  interp->id = atomic_fetch_add_explicit(&next_id, 1, memory_order_relaxed);
  interp->fork_generation = perigee__fork_generation();
  interp->owned = owned;
  interp->service_ref = LUA_NOREF;
  interp->event_fd = -1;
  perigee__imutex_init(&interp->mutex);
  perigee__mutex_init(&interp->ready_lock, PERIGEE_LOCK_READY, "ready queue");
  perigee__list_init(&interp->threads);
  perigee__list_init(&interp->ready);
  perigee__list_init(&interp->waiters);
  atomic_init(&interp->holder_deadline_ns, PERIGEE_NEVER);
  atomic_init(&interp->time_limit_ns, PERIGEE_NEVER);
  atomic_init(&interp->enter_timeout_ns, perigee__env_seconds("PERIGEE_TIMEOUT"));
  perigee__list_init(&interp->watched);
  perigee__watch_add(interp);
  perigee__list_init(&interp->tasks);
  perigee__list_init(&interp->callbacks);
  return interp;
}

void perigee__interp_ref(perigee_interp *interp) {
  atomic_fetch_add_explicit(&interp->refs, 1, memory_order_relaxed);
}

void perigee__interp_unref(perigee_interp *interp) {
  /* acq_rel: the last owner sees what the others wrote. */
  if (atomic_fetch_sub_explicit(&interp->refs, 1, memory_order_acq_rel) != 1)
    return;
  perigee__watch_remove(interp);
  while (interp->places != NULL) {
    struct perigee__place *next = interp->places->next;
    free(interp->places);
    interp->places = next;
  }
  if (interp->event_fd >= 0)
    close(interp->event_fd);
  perigee__mutex_fini(&interp->ready_lock);
  perigee__imutex_fini(&interp->mutex);
  free(interp);
}

const char *perigee__interp_place(perigee_interp *interp, const char *text) {
  for (struct perigee__place *p = interp->places; p != NULL; p = p->next)
    if (strcmp(p->text, text) == 0)
      return p->text;
  size_t size = strlen(text) + 1;
  struct perigee__place *p = malloc(sizeof(*p) + size);
  if (p == NULL)
    return NULL;
  memcpy(p->text, text, size);
  p->next = interp->places;
  interp->places = p;
  return p->text;
}

/* ---- the box in the registry --------------------------------------------------------------------- */

perigee_interp *perigee__interp_closed(lua_State *L) {
  perigee__raise(L, PERIGEE_ELUASTATE, "the interpreter is being closed");
}

void perigee__interp_push_box(lua_State *L) { lua_rawgetp(L, LUA_REGISTRYINDEX, &box_key); }

/* The state closes. This object was made before every other of the module, so it is finalized after them. */
static int box_gc(lua_State *L) {
  perigee__interp_box *box = lua_touserdata(L, 1);
  perigee_interp *interp = box->interp;
  if (interp == NULL)
    return 0;
  perigee__interp_shutdown(interp, perigee__lthread_try(interp, L));
  box->interp = NULL;
  perigee__interp_unref(interp);
  return 0;
}

/* Index 1: perigee_interp. Makes box and service thread. */
static int attach_body(lua_State *L) {
  perigee_interp *interp = lua_touserdata(L, 1);
  perigee__interp_box *box = lua_newuserdatauv(L, sizeof(*box), 0);
  box->interp = NULL;
  lua_createtable(L, 0, 1);
  lua_pushcfunction(L, box_gc);
  lua_setfield(L, -2, "__gc");
  lua_setmetatable(L, -2);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &box_key);
  interp->service = lua_newthread(L);
  interp->service_ref = luaL_ref(L, LUA_REGISTRYINDEX);
  lua_rawgeti(L, LUA_REGISTRYINDEX, LUA_RIDX_MAINTHREAD);
  interp->main = lua_tothread(L, -1);
  perigee__interp_ref(interp);
  box->interp = interp;
  return 0;
}

/* Join interp and L; the calling thread is inside afterwards. */
static int attach(perigee_interp *interp, lua_State *L) {
  perigee_error error;
  int rc = perigee__protect(L, attach_body, interp, &error);
  if (rc < 0)
    return perigee__fail_with(&error);
  return perigee__adopt_first(interp, L);
}

static perigee__interp_box *box_of(lua_State *L) {
  lua_rawgetp(L, LUA_REGISTRYINDEX, &box_key);
  perigee__interp_box *box = lua_touserdata(L, -1);
  lua_pop(L, 1);
  return box;
}

perigee_interp *perigee__interp_peek(lua_State *L) {
  const perigee__interp_box *box = box_of(L);
  return box != NULL ? box->interp : NULL;
}

perigee_interp *perigee__interp_of_state(lua_State *L) {
  luaL_checkstack(L, 8, NULL);
  perigee__interp_box *box = box_of(L);
  if (box != NULL)
    return box->interp != NULL ? box->interp : perigee__interp_closed(L);
  perigee_interp *interp = interp_new(false);
  int rc = interp != NULL ? attach(interp, L) : PERIGEE_ENOMEM;
  if (interp != NULL)
    perigee__interp_unref(interp); /* the box holds it now, or nobody */
  if (rc < 0)
    luaL_error(L, "perigee: %s", perigee_last_error()->message);
  return interp;
}

/* ---- close --------------------------------------------------------------------------------------- */

static void set_state(perigee_interp *interp, perigee__interp_state state) {
  /* Under ready_lock as well: what is queued or dropped after CLOSED is dropped without Lua. */
  perigee__lock(&interp->ready_lock);
  atomic_store_explicit(&interp->state, (uint32_t)state, memory_order_relaxed);
  perigee__unlock(&interp->ready_lock);
}

/* Give the interpreter up until the other threads that are inside have come out, or the time is over. */
static void wait_for_others(perigee_interp *interp, perigee__lthread *t) {
  int64_t deadline = perigee__deadline_in(CLOSE_WAIT_NS);
  perigee__gap gap;
  perigee__gap_open(interp, perigee__lthread_state(t), &gap); /* cannot raise: t is inside */
  perigee__waiters_wake(interp);
  perigee__dispatcher_stop(interp, CLOSE_WAIT_NS);
  uint32_t n;
  while ((n = atomic_load_explicit(&interp->inside, memory_order_relaxed)) > 1 &&
         !perigee__passed(deadline)) {
    /* In slices: a thread that comes out does not always see that somebody waits for it. */
    int64_t slice = perigee__deadline_in(5 * PERIGEE_NS_PER_MS);
    perigee__waiters_wake(interp);
    perigee__futex_wait(&interp->inside, n, slice < deadline ? slice : deadline, false);
  }
  if (atomic_load_explicit(&interp->inside, memory_order_relaxed) > 1)
    perigee__log(PERIGEE_LOG_ERROR, "a Lua interpreter is closed with threads inside it");
  perigee__gap_close(interp, &gap);
}

static void drop_garbage(perigee_interp *interp) {
  perigee__lock(&interp->ready_lock);
  perigee__luaref *r = interp->garbage;
  interp->garbage = NULL;
  perigee__unlock(&interp->ready_lock);
  while (r != NULL) {
    perigee__luaref *next = r->next;
    perigee__interp_unref(r->interp); /* not the last: the box or the owner holds one */
    free(r);
    r = next;
  }
}

void perigee__interp_shutdown(perigee_interp *interp, perigee__lthread *t) {
  if (atomic_load_explicit(&interp->state, memory_order_relaxed) == PERIGEE_INTERP_CLOSED)
    return;
  set_state(interp, PERIGEE_INTERP_CLOSING);
  bool forked = interp->fork_generation != perigee__fork_generation();
  if (t != NULL && !forked) /* a forked child has none of the other threads */
    wait_for_others(interp, t);
  if (t != NULL && !forked)
    perigee__tasks_close(interp, t);
  perigee__garbage_free(interp);
  set_state(interp, PERIGEE_INTERP_CLOSED);
  /* Works of callbacks that did not run fail with ELUASTATE; nothing is queued any more. */
  perigee__ready_drop_all(interp);
  drop_garbage(interp);
  interp->main = NULL;
  interp->service = NULL;
  atomic_store_explicit(&interp->live_refs, 0, memory_order_relaxed);
  if (t != NULL) {
    t->depth = 1;
    t->gaps = 0;
    perigee__leave(interp, t);
  }
  perigee__lthreads_detach(interp);
}

/* ---- owned states -------------------------------------------------------------------------------- */

void perigee_interp_options_init(perigee_interp_options *opts) {
  *opts = (perigee_interp_options){
      .size = sizeof(*opts), .libs = PERIGEE_LUA_ALL, .enter_timeout_ns = PERIGEE_TIMEOUT_DEFAULT};
}

/* Counts what the state holds and refuses what exceeds its limit; Lua turns that into "not enough memory". */
static void *capped_alloc(void *ud, void *ptr, size_t osize, size_t nsize) {
  perigee_interp *interp = ud;
  int64_t old = ptr != NULL ? (int64_t)osize : 0;
  int64_t used = atomic_load_explicit(&interp->memory_used, memory_order_relaxed);
  if (nsize == 0) {
    perigee__pool_realloc(&interp->pool, ptr, osize, 0);
    atomic_store_explicit(&interp->memory_used, used - old, memory_order_relaxed);
    return NULL;
  }
  int64_t now = used - old + (int64_t)nsize;
  if (interp->memory_limit > 0 && now > used && now > (int64_t)interp->memory_limit)
    return NULL;
  void *grown = perigee__pool_realloc(&interp->pool, ptr, osize, nsize);
  if (grown != NULL) /* one writer at a time: the holder of the mutex */
    atomic_store_explicit(&interp->memory_used, now, memory_order_relaxed);
  return grown;
}

static int on_panic(lua_State *L) {
  const char *text = lua_tostring(L, -1);
  PERIGEE_BUG("Lua error outside a protected call: %s", text != NULL ? text : "?");
}

typedef struct open_args {
  unsigned libs;
} open_args;

static int open_body(lua_State *L) {
  const open_args *args = lua_touserdata(L, 1);
  static const struct {
    unsigned bit;
    luaL_Reg lib;
  } libs[] = {
      {0, {LUA_GNAME, luaopen_base}},
      {0, {LUA_COLIBNAME, luaopen_coroutine}},
      {0, {LUA_TABLIBNAME, luaopen_table}},
      {0, {LUA_STRLIBNAME, luaopen_string}},
      {0, {LUA_MATHLIBNAME, luaopen_math}},
      {0, {LUA_UTF8LIBNAME, luaopen_utf8}},
      {PERIGEE_LUA_PACKAGE, {LUA_LOADLIBNAME, luaopen_package}},
      {PERIGEE_LUA_IO, {LUA_IOLIBNAME, luaopen_io}},
      {PERIGEE_LUA_OS, {LUA_OSLIBNAME, luaopen_os}},
      {PERIGEE_LUA_DEBUG, {LUA_DBLIBNAME, luaopen_debug}},
  };
  for (size_t i = 0; i < PERIGEE_COUNT(libs); i++)
    if (libs[i].bit == 0 || (args->libs & libs[i].bit)) {
      luaL_requiref(L, libs[i].lib.name, libs[i].lib.func, 1);
      lua_pop(L, 1);
    }
  perigee__textonly_install(L);
  perigee__coroutine_install(L);
  /* Backends may be plain tables that never require the module: its types must be there. Without `package` there is no
   * require: the module is a global then. */
  luaL_requiref(L, "perigee.core", luaopen_perigee_core, 0);
  if (!(args->libs & PERIGEE_LUA_PACKAGE))
    lua_setglobal(L, "perigee");
  else
    lua_pop(L, 1);
  return 0;
}

int perigee_interp_create(const perigee_interp_options *given, perigee_interp **interp_p) {
  perigee_interp_options opts;
  perigee_interp_options_init(&opts);
  if (given != NULL) {
    if (given->size < offsetof(perigee_interp_options, time_limit_ns) || given->size > sizeof(opts))
      return perigee__fail(PERIGEE_EINVAL, "perigee_interp_options.size is %u, expected %zu",
                           given->size, sizeof(opts));
    memcpy(&opts, given, given->size); /* a program that knows fewer fields gets their defaults */
  }
  perigee_interp *interp = interp_new(true);
  if (interp == NULL)
    return PERIGEE_ENOMEM;
  interp->memory_limit = opts.memory_limit;
  perigee_interp_set_enter_timeout(interp, opts.enter_timeout_ns);
  atomic_store_explicit(&interp->time_limit_ns,
                        opts.time_limit_ns > 0 ? opts.time_limit_ns : PERIGEE_NEVER,
                        memory_order_relaxed);
  lua_State *L = lua_newstate(capped_alloc, interp);
  if (L == NULL) {
    perigee__pool_fini(&interp->pool);
    perigee__interp_unref(interp);
    return perigee__fail(PERIGEE_ENOMEM, "no memory for a Lua state (limit %zu bytes)",
                         opts.memory_limit);
  }
  lua_atpanic(L, on_panic);
  int rc = attach(interp, L);
  if (rc == 0) {
    perigee_error error;
    open_args args = {opts.libs};
    rc = perigee__protect(L, open_body, &args, &error);
    perigee__lthread *t = perigee__lthread_find(interp);
    /* The creator is a thread like any other: its hold does not stay. */
    interp->implicit = NULL;
    if (rc == 0) {
      perigee__leave(interp, t);
      *interp_p = interp;
      return 0;
    }
    perigee__fail_with(&error);
  }
  lua_close(L);
  perigee__pool_fini(&interp->pool);
  perigee__interp_unref(interp);
  return rc;
}

int perigee_interp_borrow(lua_State *L, perigee_interp **interp_p) {
  perigee__interp_box *box = box_of(L);
  if (box != NULL && box->interp == NULL)
    return perigee__fail(PERIGEE_ELUASTATE, "the lua_State is being closed");
  if (box != NULL) {
    perigee__interp_ref(box->interp);
    *interp_p = box->interp;
    return 0;
  }
  perigee_interp *interp = interp_new(false);
  if (interp == NULL)
    return PERIGEE_ENOMEM;
  int rc = attach(interp, L);
  if (rc < 0)
    perigee__interp_unref(interp);
  else
    *interp_p = interp;
  return rc;
}

/* Take it to end it: whoever holds it too long is stopped. */
static int enter_to_close(perigee_interp *interp, perigee__lthread **t_p) {
  int rc = perigee__enter(interp, CLOSE_WAIT_NS, "perigee_interp_destroy", true, t_p);
  if (rc != PERIGEE_ETIMEDOUT)
    return rc;
  perigee__watch_evict(interp);
  rc = perigee__enter(interp, CLOSE_WAIT_NS, "perigee_interp_destroy", true, t_p);
  atomic_store_explicit(&interp->evict, false, memory_order_relaxed);
  return rc;
}

void perigee_interp_destroy(perigee_interp **interp_p) {
  perigee_interp *interp = *interp_p;
  *interp_p = NULL;
  if (interp == NULL)
    return;
  perigee__lthread *t;
  int rc = interp->owned ? enter_to_close(interp, &t) : PERIGEE_ENOTSUP;
  if (rc == 0) {
    if (t->depth > 1)
      PERIGEE_BUG("perigee_interp_destroy by a thread that is inside");
    lua_State *L = interp->main;
    lua_close(L); /* the box's finalizer shuts the interpreter down */
    perigee__pool_fini(&interp->pool);
  } else if (rc == PERIGEE_ETIMEDOUT) {
    perigee__log(PERIGEE_LOG_ERROR, "a Lua interpreter is left as it is: %s",
                 perigee_last_error()->message);
  }
  perigee__interp_unref(interp);
}

void perigee_interp_stats_get(perigee_interp *interp, perigee_interp_stats *stats) {
  *stats = (perigee_interp_stats){
      .size = sizeof(*stats),
      .refs = atomic_load_explicit(&interp->live_refs, memory_order_relaxed),
      .threads = atomic_load_explicit(&interp->live_threads, memory_order_relaxed),
      .waits = atomic_load_explicit(&interp->mutex.waits, memory_order_relaxed),
      .memory_used =
          interp->owned ? atomic_load_explicit(&interp->memory_used, memory_order_relaxed) : -1,
      .ready = atomic_load_explicit(&interp->ready_count, memory_order_relaxed),
  };
}
