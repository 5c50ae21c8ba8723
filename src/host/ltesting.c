/*
 * Ranks as OS threads of one Lua state, for perigee.testing.
 *
 * A run owns n threads; each enters the interpreter and calls body(i) once. The starting thread gives the interpreter up while it
 * waits. A run that is stopped, because a rank failed or the time is over, aborts every group that its ranks have made (the world,
 * and what they split from it) and ends their sleeps and their waits for works. A count hook raises in every rank that still runs
 * Lua COMPUTE_NS later, or when the time is over, so that a loop without end gives the interpreter back.
 */
#include "host/ltesting.h"

#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include <perigee/group.h>

#include "base/alloc.h"
#include "base/futex.h"
#include "base/log.h"
#include "group/registry.h"
#include "host/call.h"
#include "host/lasync.h"
#include "host/lbackend.h"
#include "host/lerror.h"
#include "host/lgroup.h"
#include "host/lop.h"
#include "host/ltensor.h"

#define RANKS_MAX 256
#define HOOK_EVERY 10000 /* instructions of Lua between two looks at the clock */
#define COMPUTE_NS PERIGEE_NS_PER_SEC
#define STACK_BYTES (size_t)(4 << 20) /* as the dispatcher's */

typedef struct run {
  _Atomic uint32_t refs;       /* the object and each thread */
  _Atomic uint32_t running;    /* threads that have not ended; futex word */
  perigee_interp *interp;      /* counted */
  perigee__luaref *body;       /* dropped by the last owner */
  perigee__luaref *groups;     /* set of the groups of its ranks, weak; as body */
  perigee__stop stop;          /* set under the interpreter's mutex */
  _Atomic int64_t deadline_ns; /* of computing; relaxed */
  int n;
  pthread_t threads[RANKS_MAX]; /* the object's */
  struct rank {
    struct run *run;
    int index; /* from 1, as the body gets it */
  } ranks[RANKS_MAX];
} run;

typedef struct lrun {
  perigee__box box; /* ptr: the run (one reference); NULL once joined */
} lrun;

static const perigee__type type_run = {"run", "perigee.testing.Run"};

/* What this OS thread runs: coroutines inherit the hook and may outlive the rank. */
static _Thread_local run *my_run;

static void run_unref(run *r) {
  /* acq_rel: the last owner sees what the others wrote */
  if (atomic_fetch_sub_explicit(&r->refs, 1, memory_order_acq_rel) != 1)
    return;
  perigee__luaref_drop(r->body);
  perigee__luaref_drop(r->groups);
  perigee__interp_unref(r->interp);
  free(r);
}

/* ---- a rank's thread ------------------------------------------------------------------------------ */

static void on_count(lua_State *L, lua_Debug *ar) {
  (void)ar;
  if (my_run == NULL ||
      !perigee__passed(atomic_load_explicit(&my_run->deadline_ns, memory_order_relaxed)))
    return;
  if (atomic_load_explicit(&my_run->stop.set, memory_order_acquire) !=
      0) /* as in lthread_stopped */
    perigee__raise(L, PERIGEE_EABORTED, "stopped: %s", my_run->stop.reason);
  perigee__raise(L, PERIGEE_ETIMEDOUT, "stopped: the time of testing.ranks is over");
}

static int rank_body(lua_State *L) {
  const struct rank *rank = lua_touserdata(L, 1);
  lua_rawgeti(L, LUA_REGISTRYINDEX, rank->run->body->ref);
  lua_pushinteger(L, rank->index);
  lua_call(L, 1, 0);
  return 0;
}

static void *rank_main(void *arg) {
  struct rank *rank = arg;
  run *r = rank->run;
  perigee__lthread *t;
  int rc = perigee__enter(r->interp, PERIGEE_NEVER, "a rank of perigee.testing", true, &t);
  if (rc == 0) {
    lua_State *L = perigee__lthread_state(t);
    perigee_error error;
    my_run = r;
    t->stop = &r->stop;
    lua_sethook(L, on_count, LUA_MASKCOUNT, HOOK_EVERY);
    rc = perigee__protect(L, rank_body, rank, &error);
    lua_sethook(L, NULL, 0, 0); /* the Lua thread is used again by others */
    t->stop = NULL;
    my_run = NULL;
    if (rc < 0) /* the body catches what the user's function raises */
      perigee__log(PERIGEE_LOG_ERROR, "rank %d of perigee.testing: %s", rank->index - 1,
                   error.message);
    perigee__leave(r->interp, t);
  }
  /* release: pairs with the acquire in wait_for_ranks */
  atomic_fetch_sub_explicit(&r->running, 1, memory_order_release);
  perigee__futex_wake(&r->running, 1, false);
  run_unref(r);
  return NULL;
}

/* ---- run:wait(seconds) ---------------------------------------------------------------------------- */

static bool wait_for_ranks(run *r, int64_t deadline_ns) {
  for (;;) {
    /* acquire: pairs with the release in rank_main */
    uint32_t left = atomic_load_explicit(&r->running, memory_order_acquire);
    if (left == 0)
      break;
    if (perigee__passed(deadline_ns))
      return false;
    perigee__futex_wait(&r->running, left, deadline_ns, false);
  }
  for (int i = 0; i < r->n; i++)
    pthread_join(r->threads[i], NULL);
  return true;
}

/* ---- run:stop(reason) ------------------------------------------------------------------------------ */

static void abort_groups(perigee_group **groups, size_t n, const char *reason) {
  for (size_t i = 0; i < n; i++) {
    (void)perigee_group_abort(groups[i], reason); /* it may be closed */
    perigee_group_unref(groups[i]);
  }
}

void perigee__ltesting_note_group(lua_State *L, perigee_group *group) {
  run *r = my_run;
  if (r == NULL)
    return;
  lua_rawgeti(L, LUA_REGISTRYINDEX, r->groups->ref);
  lua_pushvalue(L, -2);
  lua_pushboolean(L, 1);
  lua_rawset(L, -3);
  lua_pop(L, 1);
  /* Its rank was on the way here when the run was stopped. */
  if (perigee__lthread_stopped(perigee__lthread_here(r->interp, L)) == 0)
    return;
  perigee__gap gap;
  perigee__gap_open(r->interp, L, &gap);
  (void)perigee_group_abort(group, r->stop.reason);
  perigee__gap_close(r->interp, &gap);
}

/* [-1, +1, m] The table on top becomes a block of its keys' groups, each with a reference. */
static perigee_group **groups_of(lua_State *L, size_t *n_p) {
  size_t n = 0;
  for (lua_pushnil(L); lua_next(L, -2); lua_pop(L, 1))
    n++;
  perigee_group **list = lua_newuserdatauv(L, (n + 1) * sizeof(perigee_group *), 0);
  lua_insert(L, -2);
  n = 0;
  for (lua_pushnil(L); lua_next(L, -2); lua_pop(L, 1)) {
    const perigee__lgroup *g = perigee__object_get(L, -2, &perigee__type_group);
    if (g != NULL && g->box.ptr != NULL)
      list[n++] = perigee_group_ref(g->box.ptr);
  }
  lua_pop(L, 1);
  *n_p = n;
  return list;
}

/* run:stop(reason): end what its ranks wait for. The first reason counts. */
static int l_stop(lua_State *L) {
  perigee_interp *interp = perigee__interp_here(L);
  lrun *object = perigee__object_self(L, &type_run, "stop");
  const char *reason = luaL_checkstring(L, 2);
  run *r = object->box.ptr;
  if (r == NULL || r->stop.reason[0] != '\0')
    return 0;
  snprintf(r->stop.reason, sizeof(r->stop.reason), "%s", reason);
  int64_t end = perigee__deadline_in(COMPUTE_NS);
  if (end < atomic_load_explicit(&r->deadline_ns, memory_order_relaxed))
    atomic_store_explicit(&r->deadline_ns, end, memory_order_relaxed);
  lua_rawgeti(L, LUA_REGISTRYINDEX, r->groups->ref);
  size_t n;
  perigee_group **groups = groups_of(L, &n);
  /* release: pairs with the acquire in perigee__lthread_stopped. Before the gap: groups made from now on are aborted as they come. */
  atomic_store_explicit(&r->stop.set, 1, memory_order_release);
  perigee__gap gap;
  perigee__gap_open(interp, L, &gap);
  abort_groups(groups, n,
               r->stop.reason); /* first: errors of operations say more than those of waits */
  perigee__futex_wake(&r->stop.set, INT_MAX, false);
  perigee__waiters_wake(interp);
  perigee__gap_close(interp, &gap);
  return 0;
}

/* run:wait(seconds): true when every rank has ended, and its thread with it */
static int l_wait(lua_State *L) {
  perigee_interp *interp = perigee__interp_here(L);
  lrun *object = perigee__object_self(L, &type_run, "wait");
  int64_t ns = perigee__seconds_arg(L, 2, "wait", 1, true);
  run *r = object->box.ptr;
  if (r != NULL) {
    perigee__gap gap;
    perigee__gap_open(interp, L, &gap);
    bool ended = wait_for_ranks(r, perigee__deadline_in(ns));
    perigee__gap_close(interp, &gap);
    if (ended) {
      object->box.ptr = NULL;
      run_unref(r);
    }
  }
  lua_pushboolean(L, object->box.ptr == NULL);
  return 1;
}

/* Threads that could not be ended go on alone and free the run. */
static int l_gc(lua_State *L) {
  lrun *object = perigee__object_get(L, 1, &type_run);
  if (object != NULL && object->box.ptr != NULL) {
    run *r = object->box.ptr;
    object->box.ptr = NULL;
    for (int i = 0; i < r->n; i++)
      pthread_detach(r->threads[i]);
    run_unref(r);
  }
  return 0;
}

/* [-0, +0, m] The set of groups, with those of the list at index. */
static perigee__luaref *group_set_create(lua_State *L, perigee_interp *interp, int index) {
  lua_newtable(L);
  lua_createtable(L, 0, 1);
  lua_pushliteral(L, "k");
  lua_setfield(L, -2, "__mode");
  lua_setmetatable(L, -2);
  for (lua_Integer i = 1; lua_rawgeti(L, index, i) != LUA_TNIL; i++) {
    lua_pushboolean(L, 1);
    lua_rawset(L, -3);
  }
  lua_pop(L, 1);
  return perigee__luaref_create(interp, L);
}

/* _testing.start(n, body, seconds, groups): n threads that call body(1 .. n); after the seconds they may not compute any more */
static int l_start(lua_State *L) {
  perigee_interp *interp = perigee__interp_here(L);
  lua_Integer n = luaL_checkinteger(L, 1);
  luaL_argcheck(L, n >= 1 && n <= RANKS_MAX, 1, "ranks: 1 to 256 expected");
  luaL_checktype(L, 2, LUA_TFUNCTION);
  int64_t ns = perigee__seconds_arg(L, 3, "start", 3, false);
  luaL_checktype(L, 4, LUA_TTABLE);
  lrun *object = perigee__object_new(L, &type_run, sizeof(*object), 0);
  run *r = perigee__calloc(1, sizeof(*r));
  if (r == NULL)
    perigee__raise(L, PERIGEE_ENOMEM, "no memory for %d ranks", (int)n);
  atomic_init(&r->refs, 1);
  atomic_init(&r->running, 0);
  atomic_init(&r->stop.set, 0);
  r->interp = interp;
  perigee__interp_ref(interp);
  object->box.ptr = r; /* frees all of it, whatever is raised */
  lua_pushvalue(L, 2);
  r->body = perigee__luaref_create(interp, L);
  r->groups = group_set_create(L, interp, 4);
  atomic_init(&r->deadline_ns, perigee__deadline_in(ns));
  for (; r->n < (int)n; r->n++) {
    struct rank *rank = &r->ranks[r->n];
    *rank = (struct rank){.run = r, .index = r->n + 1};
    atomic_fetch_add_explicit(&r->refs, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&r->running, 1, memory_order_relaxed);
    int rc = perigee__thread_start(&r->threads[r->n], "pg-test-rank", STACK_BYTES, rank_main, rank);
    if (rc < 0) { /* those that started wait for the interpreter: the script ends them */
      atomic_fetch_sub_explicit(&r->running, 1, memory_order_relaxed);
      atomic_fetch_sub_explicit(&r->refs, 1, memory_order_relaxed); /* the object holds one */
      break;
    }
  }
  lua_pushinteger(L, r->n);
  return 2;
}

/* ---- groups --------------------------------------------------------------------------------------- */

/* _testing.groups(n, backend | nil, name | nil, timeout [, options]): the n groups of one world in this process */
static int l_groups(lua_State *L) {
  perigee_interp *interp = perigee__interp_here(L);
  perigee_init_options opts;
  perigee_init_options_init(&opts);
  lua_Integer n = luaL_checkinteger(L, 1);
  luaL_argcheck(L, n >= 1 && n <= RANKS_MAX, 1, "ranks: 1 to 256 expected");
  opts.backend = luaL_optstring(L, 2, NULL);
  opts.name = luaL_optstring(L, 3, NULL);
  opts.timeout_ns = perigee__seconds_arg(L, 4, "groups", 4, false);
  lua_settop(L, 5);
  lua_createtable(L, (int)n, 0);
  int list = lua_gettop(L);
  perigee__lgroup **objects = lua_newuserdatauv(L, (size_t)n * sizeof(perigee__lgroup *), 0);
  for (int i = 0; i < n; i++) {
    objects[i] = perigee__object_new(L, &perigee__type_group, sizeof(perigee__lgroup), 0);
    lua_rawseti(L, list, i + 1);
  }
  perigee_group *groups[RANKS_MAX];
  perigee__gap gap;
  lua_pushvalue(L, 5);
  opts.layer_options = perigee__layer_options(L, "ranks");
  perigee__gap_open(interp, L, &gap); /* cannot raise: this thread is inside */
  int rc = perigee_init_local((int)n, &opts, groups);
  if (opts.layer_options != NULL)
    opts.layer_options->unref(opts.layer_options);
  if (rc == 0)
    for (int i = 0; i < n; i++)
      perigee__lgroup_set(objects[i], groups[i]);
  perigee__gap_close(interp, &gap);
  perigee__check(L, rc);
  lua_pushvalue(L, list);
  return 1;
}

/* ---- what the simulator cannot see from Lua --------------------------------------------------------- */

/* _testing.backend_table(name): the Lua table registered under the name; nil when it is not written in Lua */
static int l_backend_table(lua_State *L) {
  perigee_interp *interp = perigee__interp_here(L);
  perigee__backend *backend;
  perigee__check(L, perigee__backend_find(luaL_checkstring(L, 1), &backend));
  const perigee__lbackend *b = backend->self;
  if (backend->ops.submit == perigee__lua_backend_ops.submit && b->interp == interp)
    lua_rawgeti(L, LUA_REGISTRYINDEX, b->table->ref);
  else
    lua_pushnil(L);
  perigee__backend_unref(backend);
  return 1;
}

/* _testing.check_table(table): raise what perigee.backend would for its names */
static int l_check_table(lua_State *L) {
  luaL_checktype(L, 1, LUA_TTABLE);
  perigee__backend_check_table(L, 1);
  return 0;
}

/* _testing.reduce(op, acc, x): one step of a perigee.op */
static int l_reduce(lua_State *L) {
  perigee_interp *interp = perigee__interp_here(L);
  perigee_redop redop;
  luaL_argcheck(L, perigee__redop_get(L, 1, &redop) && redop.kind == PERIGEE_REDOP_CUSTOM, 1,
                "a reduce op made by perigee.op expected");
  perigee_tensor *acc = perigee__tensor_arg(L, 1, "reduce");
  perigee_tensor *x = perigee__tensor_arg(L, 2, "reduce");
  perigee__gap gap;
  perigee__gap_open(interp, L, &gap);
  int rc = redop.custom->reduce(redop.custom, acc, x);
  perigee__gap_close(interp, &gap);
  perigee__check(L, rc);
  return 0;
}

void perigee__ltesting_open(lua_State *L) {
  static const luaL_Reg meta[] = {{"__gc", l_gc}, {NULL, NULL}};
  static const luaL_Reg methods[] = {{"wait", l_wait}, {"stop", l_stop}, {NULL, NULL}};
  static const luaL_Reg functions[] = {{"start", l_start},
                                       {"groups", l_groups},
                                       {"backend_table", l_backend_table},
                                       {"check_table", l_check_table},
                                       {"reduce", l_reduce},
                                       {NULL, NULL}};
  perigee__backends_builtin(); /* error objects made before the first group name their operation too */
  perigee__type_open(L, &type_run, meta, methods, NULL);
  lua_newtable(L);
  perigee__functions_add(L, functions);
  perigee__functions_add(L, perigee__lasync_testing);
  lua_setfield(L, -2, "_testing");
}
