/*
 * Callbacks of works: map and on_done.
 *
 * The C callback of a work only puts an entry into the interpreter's ready queue, on whatever thread the work ends. The entry is
 * run later, in the interpreter, by whoever runs the queue (ready.c): never inside the call that ended the work or registered it.
 */
#include <stdlib.h>

#include "host/deferred.h"
#include "host/lerror.h"
#include "host/lperigee.h"
#include "host/lwork.h"

#include "base/log.h"
#include "group/work.h"

typedef struct callback {
  perigee__ready ready;
  perigee__node node;     /* in interp->callbacks until it has run; under the interpreter's mutex */
  perigee_interp *interp; /* counted */
  int fn_ref;
  int parent_ref;              /* the Work object: keeps the parent and its value */
  perigee_work *parent;        /* one reference: for when there is no Lua any more */
  perigee_work *derived;       /* map: one reference; on_done: NULL */
  perigee__deferred_user user; /* while the parent is held back */
} callback;

static void callback_free(callback *cb) {
  perigee_work_unref(cb->parent);
  perigee_work_unref(cb->derived);
  perigee_interp *interp = cb->interp;
  free(cb);
  perigee__interp_unref(interp);
}

/* The interpreter is closed. */
static void callback_drop(perigee__ready *ready) {
  callback *cb = PERIGEE_CONTAINER_OF(ready, callback, ready);
  if (cb->derived != NULL) {
    perigee_error error;
    perigee__error_set(&error, PERIGEE_ELUASTATE,
                       "the interpreter was closed before the callback of map ran");
    perigee_future_set_error(cb->derived, &error);
  }
  callback_free(cb);
}

/* Index 1: callback. map(f): the value f returns, or the parent's where it returns nothing. */
static int map_body(lua_State *L) {
  callback *cb = lua_touserdata(L, 1);
  lua_rawgeti(L, LUA_REGISTRYINDEX, cb->parent_ref); // [ cb, parent ]
  lua_rawgeti(L, LUA_REGISTRYINDEX, cb->fn_ref);
  int n = perigee__lwork_push_value(L, 2); // [ cb, parent, f, value... ]
  lua_call(L, n, 1);
  if (lua_isnil(L, -1)) {
    lua_pop(L, 1);
    n = perigee__lwork_push_value(L, 2);
    lua_settop(L, 3);
  }
  perigee__lwork_set_value(L, cb->derived);
  return 0;
}

/* on_done(f): f(err, value...) */
static int done_body(lua_State *L) {
  callback *cb = lua_touserdata(L, 1);
  lua_rawgeti(L, LUA_REGISTRYINDEX, cb->parent_ref); // [ cb, parent ]
  lua_rawgeti(L, LUA_REGISTRYINDEX, cb->fn_ref);
  int n = 0;
  if (perigee_work_get_status(cb->parent) == PERIGEE_WORK_DONE) {
    lua_pushnil(L);
    n = perigee__lwork_push_value(L, 2);
  } else {
    perigee_error error;
    perigee__work_error_of(cb->parent, &error);
    perigee__error_push(L, &error);
  }
  lua_call(L, n + 1, 0);
  return 0;
}

static void run_map(lua_State *L, callback *cb) {
  perigee_error error;
  if (perigee_work_is_completed(cb->derived))
    return; /* its deadline or an abort was faster */
  if (perigee_work_get_status(cb->parent) != PERIGEE_WORK_DONE) {
    perigee__work_error_of(cb->parent, &error);
    perigee_future_set_error(cb->derived, &error);
    return;
  }
  if (perigee__protect(L, map_body, cb, &error) < 0) {
    if (error.op < 0)
      error.op = perigee_work_op(cb->parent);
    if (error.seq == 0)
      error.seq = perigee_work_seq(cb->parent);
    perigee_future_set_error(cb->derived, &error);
  } else {
    perigee__work_finish(cb->derived, NULL, perigee_work_source_rank(cb->parent));
  }
}

static void callback_run(perigee__lthread *t, lua_State *L, perigee__ready *ready) {
  (void)t;
  callback *cb = PERIGEE_CONTAINER_OF(ready, callback, ready);
  if (cb->derived != NULL) {
    run_map(L, cb);
  } else {
    perigee_error error;
    if (perigee__protect(L, done_body, cb, &error) < 0)
      perigee__report_error(L, "a callback of on_done", &error);
  }
  perigee__list_remove(&cb->node);
  perigee__unref(cb->interp, cb->fn_ref);
  perigee__unref(cb->interp, cb->parent_ref);
  callback_free(cb);
}

/* Any thread, no lock held. */
static void on_parent_ended(perigee_work *work, void *arg) {
  (void)work;
  callback *cb = arg;
  perigee__ready_push(cb->interp, &cb->ready);
}

bool perigee__callbacks_are_stuck(const perigee_interp *interp) {
  PERIGEE_LIST_EACH(it, &interp->callbacks) {
    const callback *cb = PERIGEE_CONTAINER_OF(it, callback, node);
    if (cb->parent == NULL || !perigee__work_is_stuck(cb->parent))
      return false;
  }
  return true;
}

/* ---- registering --------------------------------------------------------------------------------- */

/* The parent was held back and now has a work (NULL: there was no memory for one). Outside. */
static void attach(perigee__deferred_user *user, perigee_work *work) {
  callback *cb = PERIGEE_CONTAINER_OF(user, callback, user);
  if (work != NULL) {
    cb->parent = perigee_work_ref(work);
    perigee_future_depend(cb->derived, work);
    if (perigee_work_on_done(work, on_parent_ended, cb) == 0)
      return;
  }
  perigee_error error;
  perigee__error_set(&error, PERIGEE_ENOMEM, "no memory for a callback of map");
  perigee_future_set_error(cb->derived, &error);
  perigee__ready_push(cb->interp, &cb->ready); /* finds the derived work ended, and frees all */
}

/* Whether the operation is held back and can stay so: map only adds itself to it. */
static bool is_held(const perigee__lwork *w) {
  return w->deferred != NULL && w->box.ptr == NULL &&
         atomic_load_explicit(&w->deferred->state, memory_order_relaxed) == PERIGEE_DEFERRED_HELD;
}

static perigee__lwork *parent_arg(lua_State *L, const char *method, bool may_be_held) {
  perigee__lwork *w = perigee__object_self(L, &perigee__type_work, method);
  bool held = may_be_held && is_held(w);
  /* A work that was mapped from one that is held back is a work of its own: no need to submit for another map. */
  if (!held && !(may_be_held && w->box.ptr != NULL))
    perigee__lwork_settle(L, w);
  if (w->box.ptr == NULL && !held)
    perigee__raise(L, PERIGEE_ESTATE, "'%s' on a work that has been collected", method);
  if (lua_type(L, 2) != LUA_TFUNCTION)
    perigee__raise_arg(L, method, 1, "function expected, got %s", perigee__type_name(L, 2));
  return w;
}

/* The function is at index 2, the parent at 1. */
static void register_callback(lua_State *L, perigee_interp *interp, const perigee__lwork *w,
                              perigee_work *derived) {
  perigee_work *parent = w->box.ptr;
  perigee__deferred *held = parent == NULL ? w->deferred : NULL;
  lua_settop(L, 3);
  lua_pushvalue(L, 2);
  int fn_ref = perigee__ref(interp, L);
  lua_pushvalue(L, 1);
  int parent_ref = perigee__ref(interp, L);
  callback *cb = malloc(sizeof(*cb));
  int rc = PERIGEE_ENOMEM;
  if (cb != NULL) {
    *cb = (callback){.ready = {.run = callback_run, .drop = callback_drop},
                     .interp = interp,
                     .fn_ref = fn_ref,
                     .parent_ref = parent_ref,
                     .parent = parent != NULL ? perigee_work_ref(parent) : NULL,
                     .derived = derived != NULL ? perigee_work_ref(derived) : NULL,
                     .user = {.attach = attach}};
    perigee__list_append(&interp->callbacks, &cb->node);
    perigee__interp_ref(interp);
    rc = 0;
    if (held != NULL) {
      *held->users_tail = &cb->user;
      held->users_tail = &cb->user.next;
    } else {
      rc = perigee_work_on_done(parent, on_parent_ended, cb);
    }
    if (rc < 0) {
      perigee__list_remove(&cb->node);
      callback_free(cb);
    }
  } else {
    perigee__fail(rc, "no memory for a callback");
  }
  if (rc < 0) {
    perigee__unref(interp, fn_ref);
    perigee__unref(interp, parent_ref);
    perigee__raise_last(L);
  }
}

/* work:map(f): a new Work that ends after f(value) has run */
static int l_map(lua_State *L) {
  perigee_interp *interp = perigee__interp_here(L);
  perigee__lwork *w = parent_arg(L, "map", true);
  perigee_work *parent = w->box.ptr; /* NULL: held back */
  lua_settop(L, 2);
  perigee__lwork *derived = perigee__lwork_new(L); // [ parent, f, derived ]
  derived->slot = true;
  perigee_request req;
  int op = parent != NULL ? perigee_work_op(parent) : w->deferred->req.op;
  if (op >= 0) {
    perigee_request_init(&req, op);
    req.seq = parent != NULL ? perigee_work_seq(parent) : w->deferred->req.seq;
  }
  perigee_work *work;
  perigee__check(L, perigee_future_create(parent, op >= 0 ? &req : NULL, PERIGEE_NEVER, &work));
  derived->box.ptr = work;
  register_callback(L, interp, w, work);
  if (w->deferred != NULL) { /* so that it is known what a wait for this one needs first */
    derived->deferred = w->deferred;
    atomic_fetch_add_explicit(&derived->deferred->refs, 1, memory_order_relaxed);
  }
  lua_settop(L, 3);
  return 1;
}

/* work:on_done(f): f(err, value) once, later; returns the work */
static int l_on_done(lua_State *L) {
  perigee_interp *interp = perigee__interp_here(L);
  const perigee__lwork *w = parent_arg(L, "on_done", false);
  register_callback(L, interp, w, NULL);
  lua_settop(L, 1);
  return 1;
}

const luaL_Reg perigee__lwork_callbacks[] = {{"map", l_map}, {"on_done", l_on_done}, {NULL, NULL}};

/* ---- errors of callbacks ------------------------------------------------------------------------- */

typedef struct report_args {
  const perigee_error *error;
  bool handled; /* there is a handler, and it was called */
} report_args;

static int report_body(lua_State *L) {
  report_args *args = lua_touserdata(L, 1);
  perigee__push_module(L);
  if (lua_getfield(L, -1, "on_hook_error") != LUA_TFUNCTION)
    return 0;
  args->handled = true;
  perigee__error_push(L, args->error);
  lua_call(L, 1, 0);
  return 0;
}

void perigee__report_error(lua_State *L, const char *where, const perigee_error *error) {
  report_args args = {error, false};
  perigee_error second;
  if (perigee__protect(L, report_body, &args, &second) == 0 && args.handled)
    return;
  char line[1024];
  perigee_error_format(error, line, sizeof(line));
  perigee__log(PERIGEE_LOG_WARN, "error in %s: %s\n%s", where, line, error->traceback);
  if (args.handled) {
    perigee_error_format(&second, line, sizeof(line));
    perigee__log(PERIGEE_LOG_WARN, "error in perigee.on_hook_error: %s", line);
  }
}
