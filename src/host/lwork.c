#include "host/lwork.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "host/call.h"
#include "base/log.h"
#include "group/work.h"
#include "host/deferred.h"
#include "host/lerror.h"
#include "host/lfuture.h"
#include "host/task.h"

perigee__lwork *perigee__lwork_new(lua_State *L) {
  return perigee__object_new(L, &perigee__type_work, sizeof(perigee__lwork), 1);
}

static void give_up_a_moment(lua_State *L, perigee_interp *interp, int64_t ns) {
  perigee__gap gap;
  perigee__gap_open(interp, L, &gap); /* submits what this thread holds back */
  if (ns > 0)
    perigee__sleep_ns(ns);
  perigee__gap_close(interp, &gap);
}

void perigee__lwork_settle(lua_State *L, perigee__lwork *w) {
  perigee__deferred *d = w->deferred;
  if (PERIGEE_LIKELY(d == NULL))
    return;
  perigee_interp *interp = d->layer->interp;
  /* acquire: pairs with the release in settle */
  while (atomic_load_explicit(&d->state, memory_order_acquire) != PERIGEE_DEFERRED_SETTLED) {
    const perigee__lthread *t = perigee__lthread_here(interp, L);
    if (t->deferred == d)
      give_up_a_moment(L, interp, 0);
    else if (d->runner == t)
      perigee__raise(L, PERIGEE_EDEADLK, "the work is being run by this very thread");
    else
      give_up_a_moment(L, interp, PERIGEE_NS_PER_MS / 10);
  }
  if (w->deferred != d)
    return; /* another thread was faster */
  if (w->box.ptr == NULL && d->work != NULL)
    w->box.ptr = perigee_work_ref(d->work);
  w->deferred = NULL;
  perigee__deferred_unref(d);
}

perigee__lwork *perigee__lwork_get(lua_State *L, int index) {
  perigee__lwork *w = perigee__object_get(L, index, &perigee__type_work);
  if (w == NULL)
    return NULL;
  perigee__lwork_settle(L, w);
  if (w->task != NULL)
    w->task->seen = true;
  return w->box.ptr != NULL ? w : NULL;
}

static perigee__lwork *self(lua_State *L, const char *method) {
  perigee__lwork *w = perigee__object_self(L, &perigee__type_work, method);
  perigee__lwork_settle(L, w);
  if (w->box.ptr == NULL)
    perigee__raise(L, PERIGEE_ESTATE, "'%s' on a work that has been collected", method);
  if (w->task != NULL)
    w->task->seen = true;
  return w;
}

/* An async function that failed with nobody asking for its outcome. perigee.run looks after its own. */
static void report_unseen(const perigee__lwork *w) {
  const perigee_work *work = w->box.ptr;
  perigee_work_status status = perigee_work_get_status(work);
  if (w->task->seen || w->task->run != NULL || status == PERIGEE_WORK_PENDING ||
      status == PERIGEE_WORK_DONE)
    return;
  perigee_error error;
  char line[1024];
  perigee__work_error_of(work, &error);
  perigee_error_format(&error, line, sizeof(line));
  perigee__log(PERIGEE_LOG_WARN,
               "an async function failed, and nobody asked for its outcome: %s\n%s", line,
               error.traceback);
}

static int l_gc(lua_State *L) {
  perigee__lwork *w = perigee__object_get(L, 1, &perigee__type_work);
  if (w != NULL) {
    if (w->task != NULL && w->box.ptr != NULL)
      report_unseen(w);
    perigee__task_unref(w->task);
    w->task = NULL;
    perigee_work_unref(w->box.ptr);
    w->box.ptr = NULL;
    perigee__deferred_unref(w->deferred);
    w->deferred = NULL;
  }
  return 0;
}

/* ---- value and error ----------------------------------------------------------------------------- */

void perigee__lwork_set_value(lua_State *L, perigee_work *work) {
  if (lua_isnil(L, -1)) {
    lua_pop(L, 1);
    return;
  }
  perigee__luaref *value = perigee__luaref_create(perigee__interp_of_state(L), L);
  perigee_work_set_value(work, value, perigee__luaref_drop);
}

/* [-0, +1, m] The values of the Works in the list that is user value 1 of the object at index. */
static void push_batch(lua_State *L, int index) {
  lua_getiuservalue(L, index, 1);
  lua_Integer n = (lua_Integer)lua_rawlen(L, -1);
  lua_createtable(L, (int)n, 0);
  for (lua_Integer i = 1; i <= n; i++) {
    lua_rawgeti(L, -2, i);
    int values = perigee__lwork_push_value(L, -1); // [ works, values, work, value... ]
    lua_pop(L, values - 1);
    lua_rawseti(L, -3, i);
    lua_pop(L, 1);
  }
  lua_remove(L, -2);
}

int perigee__lwork_push_value(lua_State *L, int index) {
  index = lua_absindex(L, index);
  const perigee__lwork *w = lua_touserdata(L, index);
  const perigee_work *work = w->box.ptr;
  if (w->conv & PERIGEE_CONV_BATCH) {
    push_batch(L, index);
    return 1;
  }
  if (w->slot) {
    const perigee__luaref *value = perigee_work_value(work);
    if (value != NULL)
      lua_rawgeti(L, LUA_REGISTRYINDEX, value->ref);
    else
      lua_pushnil(L);
  } else {
    lua_getiuservalue(L, index, 1);
    perigee__value_push(L, -1, w->conv);
    lua_remove(L, -2);
  }
  if (!(w->conv & PERIGEE_CONV_SOURCE))
    return 1;
  lua_pushinteger(L, perigee_work_source_rank(work));
  return 2;
}

void perigee__work_error_of(const perigee_work *work, perigee_error *error) {
  const perigee_error *known = perigee_work_error(work);
  if (known != NULL)
    *error = *known;
  else /* there was no memory to keep it */
    perigee__error_set(error, PERIGEE_ENOMEM, "the operation failed");
  if (error->op < 0)
    error->op = perigee_work_op(work);
  if (error->seq == 0)
    error->seq = perigee_work_seq(work);
}

/* ---- methods ------------------------------------------------------------------------------------- */

void perigee__lwork_run_held(lua_State *L, perigee_interp *interp, const perigee__lwork *w,
                             int64_t timeout_ns) {
  perigee__deferred *d = w->deferred;
  if (d == NULL)
    return;
  perigee__lthread *t = perigee__lthread_here(interp, L);
  if (t->deferred != d || t->callbacks > 0)
    return;
  int64_t own = d->req.timeout_ns == PERIGEE_TIMEOUT_DEFAULT
                    ? atomic_load_explicit(&d->layer->timeout_ns, memory_order_relaxed)
                    : d->req.timeout_ns;
  if (own > timeout_ns)
    return;
  perigee__deferred_mark(t);
  t->deferred = NULL; /* its reference goes to the run */
  perigee__gap gap;
  perigee__gap_open(interp, L, &gap); /* cannot raise: this thread is inside */
  (void)!perigee__deferred_run(d);    /* the outcome is in the work, which w settles on */
  perigee__gap_close(interp, &gap);
}

int perigee__lwork_push_outcome(lua_State *L, int index, int64_t timeout_ns) {
  index = lua_absindex(L, index);
  const perigee_work *work = ((perigee__lwork *)lua_touserdata(L, index))->box.ptr;
  perigee_error error;
  perigee_work_status status = perigee_work_get_status(work);
  if (status == PERIGEE_WORK_DONE)
    return perigee__lwork_push_value(L, index);
  if (status != PERIGEE_WORK_PENDING) {
    perigee__work_error_of(work, &error);
    perigee__raise_error(L, &error);
  }
  perigee__error_set(&error, PERIGEE_ETIMEDOUT, "still pending after %.6g s of waiting",
                     (double)timeout_ns / 1e9);
  error.op = perigee_work_op(work);
  error.seq = perigee_work_seq(work);
  lua_pushnil(L);
  perigee__error_push(L, &error);
  return 2;
}

static int wait_continues(lua_State *L, int status, lua_KContext timeout_ns) {
  (void)status;
  perigee__task_woken(L);
  return perigee__lwork_push_outcome(L, 1, timeout_ns);
}

/* work:wait([seconds]): the value; nil and an error when only these seconds ran out; raises when the work failed */
static int l_wait(lua_State *L) {
  perigee_interp *interp = perigee__interp_here(L);
  int64_t timeout_ns = PERIGEE_TIMEOUT_NONE;
  if (!lua_isnoneornil(L, 2))
    timeout_ns = perigee__seconds_arg(L, 2, "wait", 1, true);
  perigee__task *task = perigee__task_here(perigee__lthread_here(interp, L), L);
  const perigee__lwork *w = perigee__object_self(L, &perigee__type_work, "wait");
  if (task == NULL || task->straight)
    perigee__lwork_run_held(L, interp, w, timeout_ns);
  perigee_work *work = self(L, "wait")->box.ptr;
  if (task != NULL) {
    if (perigee_work_is_completed(work))
      return perigee__lwork_push_outcome(L, 1, timeout_ns);
    if (timeout_ns != 0 && !(task->straight && work->ops != NULL))
      return perigee__task_wait(L, task, work, timeout_ns, timeout_ns, wait_continues);
  }
  int rc = perigee__host_wait(interp, L, work, timeout_ns);
  if (rc < 0 && rc != PERIGEE_EAGAIN && !perigee_work_is_completed(work))
    perigee__raise_last(L);
  return perigee__lwork_push_outcome(L, 1, timeout_ns);
}

static int l_status(lua_State *L) {
  lua_pushstring(L, perigee_work_status_name(perigee_work_get_status(self(L, "status")->box.ptr)));
  return 1;
}

static int l_is_completed(lua_State *L) {
  lua_pushboolean(L, perigee_work_is_completed(self(L, "is_completed")->box.ptr));
  return 1;
}

/* work:error(): the error of a work that failed, else nil */
static int l_error(lua_State *L) {
  const perigee_work *work = self(L, "error")->box.ptr;
  perigee_work_status status = perigee_work_get_status(work);
  if (status == PERIGEE_WORK_PENDING || status == PERIGEE_WORK_DONE) {
    lua_pushnil(L);
    return 1;
  }
  perigee_error error;
  perigee__work_error_of(work, &error);
  perigee__error_push(L, &error);
  return 1;
}

/* work:result(): the value of a work that is done; raises when it failed or is pending. Never waits. */
static int l_result(lua_State *L) {
  const perigee_work *work = self(L, "result")->box.ptr;
  perigee_work_status status = perigee_work_get_status(work);
  if (status == PERIGEE_WORK_PENDING)
    perigee__raise(L, PERIGEE_ESTATE, "the work is still pending: wait for it first");
  if (status == PERIGEE_WORK_DONE)
    return perigee__lwork_push_value(L, 1);
  perigee_error error;
  perigee__work_error_of(work, &error);
  perigee__raise_error(L, &error);
}

static int l_source_rank(lua_State *L) {
  const perigee_work *work = self(L, "source_rank")->box.ptr;
  int rank = perigee_work_source_rank(work);
  if (rank < 0)
    perigee__raise(L, PERIGEE_ESTATE,
                   perigee_work_is_completed(work) ? "source_rank: this work is no receive"
                                                   : "source_rank: the work is still pending");
  lua_pushinteger(L, rank);
  return 1;
}

static PERIGEE_NO_TSA int l_abort(lua_State *L) {
  perigee_interp *interp = perigee__interp_here(L);
  perigee_work *work = self(L, "abort")->box.ptr;
  const char *reason = luaL_optstring(L, 2, "aborted by the script");
  perigee__gap gap; /* ending a work runs callbacks of C code, which may be anybody's */
  perigee__gap_open(interp, L, &gap);
  int rc = perigee_work_abort(work, reason);
  perigee__gap_close(interp, &gap);
  lua_pushboolean(L, rc == 0);
  return 1;
}

static int l_index(lua_State *L) {
  lua_pushvalue(L, 2);
  if (lua_rawget(L, lua_upvalueindex(2)) != LUA_TNIL || lua_type(L, 2) != LUA_TSTRING)
    return 1;
  const char *key = lua_tostring(L, 2);
  const perigee_work *work = self(L, key)->box.ptr;
  if (strcmp(key, "op") == 0 && perigee_work_op(work) >= 0)
    lua_pushstring(L, perigee_op_name(perigee_work_op(work)));
  else if (strcmp(key, "seq") == 0)
    lua_pushinteger(L, (lua_Integer)perigee_work_seq(work));
  else
    lua_pushnil(L);
  return 1;
}

static int l_tostring(lua_State *L) {
  perigee__lwork *w = perigee__object_self(L, &perigee__type_work, "tostring");
  perigee__lwork_settle(L, w);
  const perigee_work *work = w->box.ptr;
  if (work == NULL) {
    lua_pushliteral(L, "work (collected)");
    return 1;
  }
  char text[96];
  const char *status = perigee_work_status_name(perigee_work_get_status(work));
  if (perigee_work_op(work) >= 0)
    snprintf(text, sizeof(text), "work: %s #%" PRIu64 " (%s)",
             perigee_op_name(perigee_work_op(work)), perigee_work_seq(work), status);
  else
    snprintf(text, sizeof(text), "work (%s)", status);
  lua_pushstring(L, text);
  return 1;
}

void perigee__lwork_open(lua_State *L) {
  static const luaL_Reg meta[] = {{"__gc", l_gc}, {"__tostring", l_tostring}, {NULL, NULL}};
  static const luaL_Reg methods[] = {
      {"wait", l_wait},   {"status", l_status}, {"is_completed", l_is_completed},
      {"error", l_error}, {"result", l_result}, {"source_rank", l_source_rank},
      {"abort", l_abort}, {NULL, NULL},
  };
  perigee__type_open(L, &perigee__type_work, meta, methods, l_index);
  perigee__type_methods(L, &perigee__type_work);
  perigee__functions_add(L, perigee__lwork_callbacks);
  perigee__functions_add(L, perigee__lfuture_methods);
  lua_pop(L, 1);
}
