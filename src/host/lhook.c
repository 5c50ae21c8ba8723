#include "host/lhook.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "group/hooks.h"
#include "host/call.h"
#include "host/hook_log.h"
#include "host/lerror.h"
#include "host/lwork.h"
#include "host/suggest.h"

/* One registration of a Lua function. */
typedef struct lhook {
  _Atomic uint32_t refs;  /* the handle's, and one for each use */
  _Atomic uint32_t uses;  /* the C hook, and each entry that is queued: they need the function */
  perigee_interp *interp; /* counted */
  _Atomic(perigee__luaref *)
      fn;                 /* taken out once: by the last use, or by remove (inside, as are calls) */
  perigee__hook_log *log; /* one reference */
  perigee_hook *hook;     /* one reference, set before the handle is seen */
  unsigned events;
  bool completion;        /* registered as c10d's hook: refused calls are none of its business */
  bool removed;           /* inside */
  uint64_t calls, errors; /* inside */
} lhook;

/* An event that is to be told to one hook. */
typedef struct entry {
  perigee__ready ready;
  lhook *hook;                /* one use */
  const perigee_event *event; /* one reference */
} entry;

static void lhook_unref(lhook *hook) {
  /* acq_rel: the last one sees what the others wrote */
  if (atomic_fetch_sub_explicit(&hook->refs, 1, memory_order_acq_rel) != 1)
    return;
  perigee__hook_log_unref(hook->log);
  perigee_hook_unref(hook->hook);
  perigee_interp *interp = hook->interp;
  free(hook);
  perigee__interp_unref(interp);
}

/* Any thread. The reference is freed by whoever enters the interpreter next. */
static void drop_function(lhook *hook) { perigee__luaref_drop(atomic_exchange(&hook->fn, NULL)); }

static void lhook_unuse(lhook *hook) {
  if (atomic_fetch_sub_explicit(&hook->uses, 1, memory_order_acq_rel) == 1) /* as above */
    drop_function(hook);
  lhook_unref(hook);
}

static void on_drop(void *hook) { lhook_unuse(hook); }

/* ---- calling ------------------------------------------------------------------------------------- */

static void set_seconds(lua_State *L, const char *name, int64_t ns) {
  lua_pushnumber(L, (double)ns / 1e9);
  lua_setfield(L, -2, name);
}

static void set_text(lua_State *L, const char *name, const char *text) {
  lua_pushstring(L, text);
  lua_setfield(L, -2, name);
}

static void set_integer(lua_State *L, const char *name, lua_Integer value) {
  lua_pushinteger(L, value);
  lua_setfield(L, -2, name);
}

/* perigee.WorkInfo. [-0, +1, m] */
static void push_info(lua_State *L, const perigee_event *event) {
  bool ended = (event->kind & (PERIGEE_EVENT_DONE | PERIGEE_EVENT_ERROR)) != 0;
  lua_createtable(L, 0, 13);
  set_text(L, "event", perigee_event_name(event->kind));
  if (event->op >= 0)
    set_text(L, "op_type", event->op_name);
  set_integer(L, "seq", (lua_Integer)event->seq);
  set_text(L, "group", event->group);
  set_integer(L, "rank", event->rank);
  if (event->peer >= 0)
    set_integer(L, "peer", event->peer);
  lua_pushboolean(L, event->async);
  lua_setfield(L, -2, "async");
  set_seconds(L, "time_started", event->time_started);
  if (event->time_finished > 0)
    set_seconds(L, "time_finished", event->time_finished);
  if (ended || event->kind == PERIGEE_EVENT_STALL)
    set_seconds(L, "active_duration", event->active_duration);
  set_integer(L, "bytes", (lua_Integer)event->bytes);
  set_text(L, "status", perigee_work_status_name(event->status));
  if (event->error != NULL) {
    perigee__error_push(L, event->error);
    lua_setfield(L, -2, "error");
  }
}

static int call_body(lua_State *L) {
  const entry *e = lua_touserdata(L, 1);
  /* Not removed: it is there. */
  lua_rawgeti(L, LUA_REGISTRYINDEX, atomic_load(&e->hook->fn)->ref);
  push_info(L, e->event);
  lua_call(L, 1, 0);
  return 0;
}

static void keep_error(lua_State *L, const entry *e, perigee_error *error) {
  if (error->op < 0)
    error->op = e->event->op;
  if (error->seq == 0)
    error->seq = e->event->seq;
  if (error->rank < 0)
    error->rank = e->event->rank;
  if (error->group[0] == '\0')
    snprintf(error->group, sizeof(error->group), "%s", e->event->group);
  e->hook->errors++;
  perigee__hook_log_keep(e->hook->log, error);
  char where[48];
  snprintf(where, sizeof(where), "a hook for '%s'", perigee_event_name(e->event->kind));
  perigee__report_error(L, where, error);
}

static void entry_drop(perigee__ready *ready) {
  entry *e = PERIGEE_CONTAINER_OF(ready, entry, ready);
  perigee__event_unref(e->event);
  lhook_unuse(e->hook);
  free(e);
}

static void entry_run(perigee__lthread *t, lua_State *L, perigee__ready *ready) {
  (void)t;
  const entry *e = PERIGEE_CONTAINER_OF(ready, entry, ready);
  if (!e->hook->removed) {
    perigee_error error;
    e->hook->calls++;
    if (perigee__protect(L, call_body, (void *)(uintptr_t)e, &error) < 0)
      keep_error(L, e, &error);
  }
  entry_drop(ready);
}

/* The C hook. Any thread, no lock held. */
static void on_event(const perigee_event *event, void *arg) {
  lhook *hook = arg;
  if (hook->completion && event->seq == 0)
    return;
  entry *e = malloc(sizeof(*e));
  if (e == NULL) {
    perigee__log(PERIGEE_LOG_ERROR, "no memory to tell a hook of %s #%" PRIu64, event->op_name,
                 event->seq);
    return;
  }
  *e = (entry){.ready = {.run = entry_run, .drop = entry_drop},
               .hook = hook,
               .event = perigee__event_ref(event)};
  atomic_fetch_add_explicit(&hook->refs, 1, memory_order_relaxed);
  atomic_fetch_add_explicit(&hook->uses, 1, memory_order_relaxed);
  perigee__lthread *t = perigee__lthread_find(hook->interp);
  if (t != NULL && t->drains_after && perigee__event_is_own(event))
    perigee__ready_push_own(hook->interp, t, &e->ready);
  else
    perigee__ready_push(hook->interp, &e->ready);
}

/* ---- registering --------------------------------------------------------------------------------- */

static const char *const event_names[] = {"start", "done", "error", "stall", "abort", NULL};

static unsigned event_arg(lua_State *L) {
  if (lua_type(L, 2) != LUA_TSTRING)
    perigee__raise_arg(L, "on", 1, "event: string expected, got %s", perigee__type_name(L, 2));
  const char *name = lua_tostring(L, 2);
  for (unsigned i = 0; event_names[i] != NULL; i++)
    if (strcmp(name, event_names[i]) == 0)
      return 1U << i;
  char hint[64];
  perigee__raise_arg(L, "on", 1,
                     "event: 'start', 'done', 'error', 'stall' or 'abort' expected, got '%s'%s",
                     name, perigee__did_you_mean(name, event_names, hint, sizeof(hint)));
}

static perigee__hook_log *log_of(lua_State *L, perigee__lgroup *g) {
  if (g->hook_log == NULL && (g->hook_log = perigee__hook_log_create()) == NULL)
    luaL_error(L, "not enough memory");
  return g->hook_log;
}

/* The function is at stack index `fn`. Returns the handle. [-0, +1, e] */
static int register_hook(lua_State *L, perigee__lgroup *g, const char *method, int fn,
                         unsigned events, int64_t after_ns, bool completion) {
  perigee_interp *interp = perigee__interp_here(L);
  if (lua_type(L, fn) != LUA_TFUNCTION)
    perigee__raise_arg(L, method, fn - 1, "function expected, got %s", perigee__type_name(L, fn));
  perigee__hook_log *log = log_of(L, g);
  perigee__box *handle = perigee__object_new(L, &perigee__type_hook, sizeof(*handle), 0);
  lua_pushvalue(L, fn);
  perigee__luaref *ref = perigee__luaref_create(interp, L);
  lhook *hook = malloc(sizeof(*hook));
  if (hook == NULL) {
    perigee__luaref_drop(ref);
    luaL_error(L, "not enough memory");
  }
  *hook = (lhook){.interp = interp,
                  .log = perigee__hook_log_ref(log),
                  .events = events,
                  .completion = completion};
  atomic_init(&hook->fn, ref);
  atomic_init(&hook->uses, 1);
  atomic_init(&hook->refs, 2);
  perigee__interp_ref(interp);
  handle->ptr = hook;
  perigee_hook_options opts;
  perigee_hook_options_init(&opts);
  opts.after_ns = after_ns;
  opts.drop = on_drop;
  int rc = perigee_group_on(g->box.ptr, events, on_event, hook, &opts, &hook->hook);
  if (rc < 0) {
    lhook_unuse(hook); /* the handle keeps the rest until it is collected */
    perigee__raise_last(L);
  }
  return 1;
}

/* group:on(event, f [, {after = seconds}]) */
static int l_on(lua_State *L) {
  static const char *const known[] = {"after", NULL};
  perigee__lgroup *g = perigee__lgroup_self(L, "on");
  lua_settop(L, 4);
  unsigned event = event_arg(L);
  int64_t after_ns = 0;
  if (!lua_isnil(L, 4)) {
    if (lua_type(L, 4) != LUA_TTABLE)
      perigee__raise_arg(L, "on", 3, "options table expected, got %s", perigee__type_name(L, 4));
    perigee__check_keys(L, 4, "on", 3, known);
    if (lua_getfield(L, 4, "after") != LUA_TNIL) {
      if (event != PERIGEE_EVENT_STALL)
        perigee__raise_arg(L, "on", 3, "after: only for 'stall'");
      after_ns = perigee__seconds_arg(L, -1, "on", 3, false);
    }
    lua_pop(L, 1);
  }
  return register_hook(L, g, "on", 3, event, after_ns, false);
}

/* group:register_on_completion_hook(f): the ends of operations, good or bad */
static int l_register(lua_State *L) {
  perigee__lgroup *g = perigee__lgroup_self(L, "register_on_completion_hook");
  lua_settop(L, 2);
  return register_hook(L, g, "register_on_completion_hook", 2,
                       PERIGEE_EVENT_DONE | PERIGEE_EVENT_ERROR, 0, true);
}

/* ---- the handle ---------------------------------------------------------------------------------- */

static lhook *self(lua_State *L, const char *method) {
  perigee__box *box = perigee__object_self(L, &perigee__type_hook, method);
  if (box->ptr == NULL)
    perigee__raise(L, PERIGEE_ESTATE, "'%s' on a hook that has been collected", method);
  return box->ptr;
}

static int l_gc(lua_State *L) {
  perigee__box *box = perigee__object_get(L, 1, &perigee__type_hook);
  if (box != NULL && box->ptr != NULL) {
    lhook_unref(box->ptr);
    box->ptr = NULL;
  }
  return 0;
}

/* hook:remove(): not called any more, also not for what has happened already */
static int l_remove(lua_State *L) {
  lhook *hook = self(L, "remove");
  hook->removed = true;
  if (hook->hook != NULL)
    perigee_hook_remove(hook->hook);
  drop_function(hook);
  return 0;
}

static int l_index(lua_State *L) {
  lua_pushvalue(L, 2);
  if (lua_rawget(L, lua_upvalueindex(2)) != LUA_TNIL || lua_type(L, 2) != LUA_TSTRING)
    return 1;
  const char *key = lua_tostring(L, 2);
  const lhook *hook = self(L, key);
  if (strcmp(key, "calls") == 0)
    lua_pushinteger(L, (lua_Integer)hook->calls);
  else if (strcmp(key, "errors") == 0)
    lua_pushinteger(L, (lua_Integer)hook->errors);
  else if (strcmp(key, "event") == 0)
    lua_pushstring(L, hook->completion ? "completion" : perigee_event_name(hook->events));
  else
    lua_pushnil(L);
  return 1;
}

static int l_tostring(lua_State *L) {
  const perigee__box *box = perigee__object_self(L, &perigee__type_hook, "tostring");
  const lhook *hook = box->ptr;
  if (hook == NULL)
    lua_pushliteral(L, "hook (collected)");
  else
    lua_pushfstring(L, "hook: %s%s",
                    hook->completion ? "completion" : perigee_event_name(hook->events),
                    hook->removed ? " (removed)" : "");
  return 1;
}

const luaL_Reg perigee__lhook_methods[] = {{"on", l_on},
                                           {"register_on_completion_hook", l_register},
                                           {"wait_for_pending_works", perigee__lhook_wait},
                                           {NULL, NULL}};

void perigee__lhook_open(lua_State *L) {
  static const luaL_Reg meta[] = {{"__gc", l_gc}, {"__tostring", l_tostring}, {NULL, NULL}};
  static const luaL_Reg methods[] = {{"remove", l_remove}, {NULL, NULL}};
  perigee__type_open(L, &perigee__type_hook, meta, methods, l_index);
}
