/* Works that a script completes (perigee.future), and waiting for several works. */
#include "host/lfuture.h"

#include <stdlib.h>

#include "group/work.h"
#include "host/call.h"
#include "host/lerror.h"
#include "host/lwork.h"
#include "host/task.h"

/* perigee.future([{timeout =}]): a pending Work; set_result or set_error ends it, or ETIMEDOUT after `timeout` seconds */
static int l_future(lua_State *L) {
  int64_t timeout_ns = PERIGEE_TIMEOUT_NONE;
  if (!lua_isnoneornil(L, 1)) {
    if (lua_type(L, 1) != LUA_TTABLE)
      perigee__raise_arg(L, "future", 1, "options table expected, got %s",
                         perigee__type_name(L, 1));
    static const char *const known[] = {"timeout", NULL};
    perigee__check_keys(L, 1, "future", 1, known);
    if (lua_getfield(L, 1, "timeout") != LUA_TNIL)
      timeout_ns = perigee__seconds_arg(L, -1, "future", 1, false);
  }
  perigee__lwork *w = perigee__lwork_new(L);
  w->slot = w->open = true;
  perigee_work *work;
  perigee__check(L, perigee_future_create(NULL, NULL,
                                          timeout_ns == PERIGEE_TIMEOUT_NONE
                                              ? PERIGEE_NEVER
                                              : perigee__deadline_in(timeout_ns),
                                          &work));
  w->box.ptr = work;
  return 1;
}

static perigee_work *open_future(lua_State *L, const char *method) {
  perigee__lwork *w = perigee__object_self(L, &perigee__type_work, method);
  if (w->box.ptr == NULL || !w->open)
    perigee__raise(L, PERIGEE_ESTATE, "'%s' on a work that was not made by perigee.future", method);
  return w->box.ptr;
}

/* future:set_result([value [, source]]): true when this call ended it. source: the rank a receive came from */
static int l_set_result(lua_State *L) {
  perigee_work *work = open_future(L, "set_result");
  bool ended = false;
  if (!perigee_work_is_completed(work)) {
    int source = (int)luaL_optinteger(L, 3, -1);
    lua_settop(L, 2);
    perigee__lwork_set_value(L, work);
    ended = perigee__work_finish(work, NULL, source);
  }
  lua_pushboolean(L, ended);
  return 1;
}

/* future:set_error(error): an error object, or anything with a text */
static int l_set_error(lua_State *L) {
  perigee_work *work = open_future(L, "set_error");
  if (lua_isnoneornil(L, 2))
    perigee__raise_arg(L, "set_error", 1, "error expected, got nil");
  perigee_error error;
  perigee__error_any(L, 2, &error);
  lua_pushboolean(L, perigee_future_set_error(work, &error));
  return 1;
}

const luaL_Reg perigee__lfuture_methods[] = {
    {"set_result", l_set_result}, {"set_error", l_set_error}, {NULL, NULL}};

/* ---- several works ------------------------------------------------------------------------------- */

static lua_Integer works_arg(lua_State *L, const char *function) {
  if (lua_type(L, 1) != LUA_TTABLE)
    perigee__raise_arg(L, function, 1, "list of works expected, got %s", perigee__type_name(L, 1));
  lua_Integer n = (lua_Integer)lua_rawlen(L, 1);
  for (lua_Integer i = 1; i <= n; i++) {
    lua_rawgeti(L, 1, i);
    if (perigee__lwork_get(L, -1) == NULL)
      perigee__raise_arg(L, function, 1, "element %lld of the list is a %s, work expected",
                         (long long)i, perigee__type_name(L, -1));
    lua_pop(L, 1);
  }
  return n;
}

static perigee_work *work_at(lua_State *L, lua_Integer i) {
  lua_rawgeti(L, 1, i);
  const perigee__lwork *w = perigee__lwork_get(L, -1);
  lua_pop(L, 1);
  return w != NULL ? w->box.ptr : NULL; /* NULL: the list was changed meanwhile */
}

static int wait_ran_out(lua_State *L, int64_t timeout_ns) {
  perigee_error error;
  perigee__error_set(&error, PERIGEE_ETIMEDOUT, "still pending after %.6g s of waiting",
                     (double)timeout_ns / 1e9);
  lua_pushnil(L);
  perigee__error_push(L, &error);
  return 2;
}

static void on_any_ended(perigee_work *work, void *arg) {
  (void)work;
  perigee_work *any = arg;
  perigee_future_set_result(any);
  perigee_work_unref(any);
}

static lua_Integer first_ended(lua_State *L, lua_Integer n) {
  for (lua_Integer i = 1; i <= n; i++) {
    const perigee_work *work = work_at(L, i);
    if (work != NULL && perigee_work_is_completed(work))
      return i;
  }
  return 0;
}

/* Wait for `any` runs something that one of the works needs, if there is such a one. */
static void depend_on_some(lua_State *L, lua_Integer n, perigee_work *any) {
  for (lua_Integer k = 1; k <= n; k++) {
    perigee_work *work = work_at(L, k);
    if (work != NULL && !perigee__work_is_stuck(work)) {
      perigee_future_depend(any, work);
      return;
    }
  }
}

/* Index 1: works, 3: the Work `any`. */
static int any_ended(lua_State *L, int64_t timeout_ns) {
  lua_Integer n = (lua_Integer)lua_rawlen(L, 1), i = first_ended(L, n);
  const perigee__lwork *holder = perigee__object_get(L, 3, &perigee__type_work);
  perigee_work *any = holder != NULL ? holder->box.ptr : NULL;
  for (lua_Integer k = 1; any != NULL && k <= n; k++) {
    perigee_work *work = work_at(L, k);
    if (work != NULL && perigee__work_forget(work, on_any_ended, any))
      perigee_work_unref(any);
  }
  if (i == 0)
    return wait_ran_out(L, timeout_ns);
  lua_pushinteger(L, i);
  lua_rawgeti(L, 1, i);
  return 2;
}

static int any_continues(lua_State *L, int status, lua_KContext timeout_ns) {
  (void)status;
  perigee__task_woken(L);
  return any_ended(L, timeout_ns);
}

/* perigee.wait_any(works [, seconds]): index and work of one that has ended, well or not */
static int l_wait_any(lua_State *L) {
  perigee_interp *interp = perigee__interp_here(L);
  lua_settop(L, 2);
  lua_Integer n = works_arg(L, "wait_any");
  int64_t timeout_ns = PERIGEE_TIMEOUT_NONE;
  if (!lua_isnil(L, 2))
    timeout_ns = perigee__seconds_arg(L, 2, "wait_any", 2, true);
  if (n == 0)
    perigee__raise_arg(L, "wait_any", 1, "the list is empty: it would wait for ever");
  if (first_ended(L, n) != 0)
    return any_ended(L, timeout_ns);
  perigee__lwork *holder = perigee__lwork_new(L); /* frees `any` whatever is raised */
  perigee_work *any = NULL;
  perigee__check(L, perigee_future_create(NULL, NULL, PERIGEE_NEVER, &any));
  holder->box.ptr = any;
  for (lua_Integer k = 1; k <= n; k++) {
    perigee_work *work = work_at(L, k);
    if (work == NULL)
      perigee__raise(L, PERIGEE_ESTATE, "wait_any: the list was changed meanwhile");
    int rc = perigee_work_on_done(work, on_any_ended, perigee_work_ref(any));
    if (rc < 0)
      perigee_work_unref(any);
    perigee__check(L, rc);
  }
  depend_on_some(L, n, any);
  perigee__task *task = perigee__task_here(perigee__lthread_here(interp, L), L);
  if (task != NULL && timeout_ns != 0)
    return perigee__task_wait(L, task, any, timeout_ns, timeout_ns, any_continues);
  int rc = perigee__host_wait(interp, L, any, timeout_ns);
  if (rc < 0 && rc != PERIGEE_EAGAIN)
    perigee__raise_last(L);
  return any_ended(L, timeout_ns);
}

static int all_continue(lua_State *L, int status, lua_KContext i);

/* Wait for the works from i on. Index 1: works, 2: seconds or nil, 3: deadline in ns. */
static int wait_from(lua_State *L, perigee_interp *interp, lua_Integer i) {
  lua_Integer n = (lua_Integer)lua_rawlen(L, 1);
  int64_t deadline_ns = lua_tointeger(L, 3);
  for (; i <= n; i++) {
    lua_settop(L, 3);
    lua_rawgeti(L, 1, i);
    const perigee__lwork *w = perigee__lwork_get(L, -1);
    if (w == NULL)
      perigee__raise(L, PERIGEE_ESTATE, "wait_all: the list was changed meanwhile");
    perigee_work *work = w->box.ptr;
    int64_t left =
        deadline_ns == PERIGEE_NEVER ? PERIGEE_TIMEOUT_NONE : perigee__time_left(deadline_ns);
    perigee__task *task = perigee__task_here(perigee__lthread_here(interp, L), L);
    if (task != NULL && left != 0 && !perigee_work_is_completed(work))
      return perigee__task_wait(L, task, work, left, (lua_KContext)i, all_continue);
    int rc = task != NULL ? perigee_work_wait(work, 0) : perigee__host_wait(interp, L, work, left);
    perigee_error error;
    if (rc < 0 && perigee_work_is_completed(work)) {
      perigee__work_error_of(work, &error);
      perigee__raise_error(L, &error);
    }
    if (rc == PERIGEE_EAGAIN)
      return wait_ran_out(L, perigee__seconds_arg(L, 2, "wait_all", 2, true));
    perigee__check(L, rc);
  }
  lua_pushboolean(L, 1);
  return 1;
}

static int all_continue(lua_State *L, int status, lua_KContext i) {
  (void)status;
  perigee__task_woken(L);
  return wait_from(L, perigee__interp_here(L), (lua_Integer)i);
}

/* perigee.wait_all(works [, seconds]): true when all are done; raises the first error in the order of the list */
static int l_wait_all(lua_State *L) {
  perigee_interp *interp = perigee__interp_here(L);
  lua_settop(L, 2);
  works_arg(L, "wait_all");
  int64_t deadline_ns = PERIGEE_NEVER;
  if (!lua_isnil(L, 2))
    deadline_ns = perigee__deadline_in(perigee__seconds_arg(L, 2, "wait_all", 2, true));
  lua_pushinteger(L, deadline_ns);
  return wait_from(L, interp, 1);
}

void perigee__lfuture_open(lua_State *L) {
  static const luaL_Reg functions[] = {
      {"future", l_future}, {"wait_any", l_wait_any}, {"wait_all", l_wait_all}, {NULL, NULL}};
  perigee__functions_add(L, functions);
}
