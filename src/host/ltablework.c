#include "host/ltablework.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "host/lerror.h"
#include "host/lwork.h"

#define POLL_NS PERIGEE_NS_PER_MS

/* Two users: the driver in the ready queue, and the callback at the end of the work. */
typedef struct table_work {
  perigee__ready drive, told; /* driver, and abort(self, reason) */
  _Atomic int users;
  perigee_interp *interp; /* counted */
  perigee__luaref *table;
  perigee_work *work; /* one reference */
  int64_t deadline_ns;
  bool again; /* somebody else goes on with it; written and read by who runs `drive` */
  int rank;   /* who reports its errors, and where */
  char group[sizeof(((perigee_error *)NULL)->group)];
} table_work;

static void release(table_work *w) {
  /* acq_rel: the last user sees what the other did with it */
  if (atomic_fetch_sub_explicit(&w->users, 1, memory_order_acq_rel) != 1)
    return;
  perigee__luaref_drop(w->table);
  perigee_work_unref(w->work);
  perigee_interp *interp = w->interp;
  free(w);
  perigee__interp_unref(interp);
}

/* [-0, +1, e] Push method and table when there is the method; else nothing, and false. The table is at index 2. */
static bool push_method(lua_State *L, const char *name) {
  if (lua_getfield(L, 2, name) == LUA_TNIL) {
    lua_pop(L, 1);
    return false;
  }
  lua_pushvalue(L, 2);
  return true;
}

/* ---- driving ------------------------------------------------------------------------------------- */

static double seconds_left(const table_work *w) {
  return w->deadline_ns == PERIGEE_NEVER ? (double)INFINITY
                                         : (double)perigee__time_left(w->deadline_ns) / 1e9;
}

/* Until the table says that it is completed, or the work has ended otherwise. False: this thread has waited for something
 * else, and that has ended. */
static bool poll_completed(lua_State *L, table_work *w) {
  const perigee__lthread *t = perigee__lthread_here(w->interp, L);
  while (!perigee_work_is_completed(w->work)) {
    if (t->waiter != NULL && perigee__waiter_over(t->waiter))
      return false;
    push_method(L, "is_completed");
    lua_call(L, 1, 1);
    bool completed = lua_toboolean(L, -1);
    lua_pop(L, 1);
    if (completed)
      return true;
    if (atomic_load_explicit(&w->interp->state, memory_order_relaxed) != PERIGEE_INTERP_OPEN)
      perigee__raise(L, PERIGEE_ELUASTATE, "the Lua interpreter is being closed");
    if (perigee__passed(w->deadline_ns))
      perigee__raise(L, PERIGEE_ETIMEDOUT, "timed out: the table as Work is not completed");
    perigee__gap gap;
    perigee__gap_open(w->interp, L, &gap);
    perigee__sleep_ns(POLL_NS);
    perigee__gap_close(w->interp, &gap);
  }
  return true;
}

static int drive_body(lua_State *L) {
  table_work *w = lua_touserdata(L, 1);
  lua_rawgeti(L, LUA_REGISTRYINDEX, w->table->ref); // [ w, table ]
  if (push_method(L, "wait")) {
    lua_pushnumber(L, seconds_left(w));
    lua_call(L, 2, 1);
    if (lua_type(L, -1) == LUA_TBOOLEAN && !lua_toboolean(L, -1))
      perigee__raise(L, PERIGEE_ELUA, "wait of a table as Work returned false");
    lua_settop(L, 2);
  } else if (!poll_completed(L, w)) {
    w->again = true;
    return 0;
  }
  if (push_method(L, "error")) {
    lua_call(L, 1, 1);
    if (lua_toboolean(L, -1))
      return lua_error(L);
    lua_settop(L, 2);
  }
  if (push_method(L, "result")) {
    lua_call(L, 1, 1);
    perigee__lwork_set_value(L, w->work);
  }
  return 0;
}

static void drive_run(perigee__lthread *t, lua_State *L, perigee__ready *ready) {
  (void)t;
  table_work *w = PERIGEE_CONTAINER_OF(ready, table_work, drive);
  perigee_error error;
  if (!perigee_work_is_completed(w->work)) {
    if (perigee__protect(L, drive_body, w, &error) < 0) {
      if (error.rank < 0)
        error.rank = w->rank;
      if (error.group[0] == '\0')
        memcpy(error.group, w->group, sizeof(error.group));
      perigee_future_set_error(w->work, &error);
    } else if (w->again) {
      w->again = false;
      perigee__ready_push(w->interp, &w->drive);
      return;
    } else {
      perigee_future_set_result(w->work);
    }
  }
  release(w);
}

static void drive_drop(perigee__ready *ready) {
  table_work *w = PERIGEE_CONTAINER_OF(ready, table_work, drive);
  perigee_error error;
  perigee__error_set(&error, PERIGEE_ELUASTATE, "the interpreter was closed before the work ended");
  perigee_future_set_error(w->work, &error);
  release(w);
}

/* ---- the end ------------------------------------------------------------------------------------- */

static int told_body(lua_State *L) {
  const table_work *w = lua_touserdata(L, 1);
  lua_rawgeti(L, LUA_REGISTRYINDEX, w->table->ref);
  if (!push_method(L, "abort"))
    return 0;
  perigee_error error;
  perigee__work_error_of(w->work, &error);
  perigee__error_push(L, &error);
  lua_call(L, 2, 0);
  return 0;
}

static void told_run(perigee__lthread *t, lua_State *L, perigee__ready *ready) {
  (void)t;
  table_work *w = PERIGEE_CONTAINER_OF(ready, table_work, told);
  perigee_error error;
  if (perigee__protect(L, told_body, w, &error) < 0)
    perigee__report_error(L, "abort of a table as Work", &error);
  release(w);
}

static void told_drop(perigee__ready *ready) {
  release(PERIGEE_CONTAINER_OF(ready, table_work, told));
}

/* Any thread, no lock held. */
static void on_ended(perigee_work *work, void *arg) {
  table_work *w = arg;
  if (perigee_work_get_status(work) == PERIGEE_WORK_ABORTED)
    perigee__ready_push(w->interp, &w->told);
  else
    release(w);
}

/* ---- making -------------------------------------------------------------------------------------- */

static bool has(lua_State *L, const char *name) {
  bool yes = lua_getfield(L, -1, name) != LUA_TNIL;
  lua_pop(L, 1);
  return yes;
}

/* A method that cannot be called is told where the table is returned, not when it is first needed. */
static void check_methods(lua_State *L, const perigee__llayer *layer, const char *op) {
  static const char *const names[] = {"wait",  "get_future", "is_completed",
                                      "error", "result",     "abort"};
  int top = lua_gettop(L);
  for (size_t i = 0; i < PERIGEE_COUNT(names); i++) {
    int type = lua_getfield(L, -1, names[i]);
    if (type != LUA_TNIL && type != LUA_TFUNCTION && luaL_getmetafield(L, -1, "__call") == LUA_TNIL)
      perigee__raise(
          L, PERIGEE_ELUATYPE,
          "backend '%s': %s returned a table as Work whose %s is a %s, a function expected",
          layer->name, op, names[i], perigee__type_name(L, -1));
    lua_settop(L, top);
  }
}

static perigee_work *from_future(lua_State *L, const perigee__llayer *layer, const char *op) {
  lua_getfield(L, -1, "get_future");
  lua_pushvalue(L, -2);
  lua_call(L, 1, 1);
  const perigee__lwork *future = perigee__lwork_get(L, -1);
  if (future == NULL)
    perigee__raise(L, PERIGEE_ELUATYPE,
                   "backend '%s': %s: get_future of a table as Work must return a Work, got %s",
                   layer->name, op, perigee__type_name(L, -1));
  perigee_work *work = perigee_work_ref(future->box.ptr);
  lua_pop(L, 1);
  return work;
}

perigee_work *perigee__table_work(lua_State *L, const perigee__llayer *layer,
                                  const perigee_request *req, int64_t timeout_ns,
                                  perigee__ready **drive_p) {
  perigee_interp *interp = layer->interp;
  const char *op = req != NULL ? perigee_op_name(req->op) : "a method";
  check_methods(L, layer, op);
  bool waits = has(L, "wait");
  if (!waits && has(L, "get_future"))
    return from_future(L, layer, op);
  if (!waits && !has(L, "is_completed"))
    return NULL;
  lua_pushvalue(L, -1);
  perigee__luaref *table = perigee__luaref_create(interp, L);
  table_work *w = calloc(1, sizeof(*w));
  perigee_work *work = NULL;
  int rc = w != NULL ? perigee_future_create(NULL, req, PERIGEE_NEVER, &work)
                     : perigee__fail(PERIGEE_ENOMEM, "no memory for a table as Work");
  if (rc < 0) {
    free(w);
    perigee__luaref_drop(table);
    perigee__raise_last(L);
  }
  *w = (table_work){.drive = {.run = drive_run, .drop = drive_drop, .may_wait = true},
                    .told = {.run = told_run, .drop = told_drop},
                    .users = 2,
                    .interp = interp,
                    .table = table,
                    .work = perigee_work_ref(work),
                    .deadline_ns = timeout_ns == PERIGEE_TIMEOUT_NONE
                                       ? PERIGEE_NEVER
                                       : perigee__deadline_in(timeout_ns),
                    .rank = layer->rank};
  memcpy(w->group, layer->group_name, sizeof(w->group));
  perigee__interp_ref(interp);
  if (perigee_work_on_done(work, on_ended, w) < 0)
    release(w); /* abort of the table is lost, nothing else */
  w->drive.owner = perigee__lthread_here(interp, L);
  w->drive.work = work;
  if (drive_p != NULL)
    *drive_p = &w->drive;
  else
    perigee__ready_push(interp, &w->drive);
  return work;
}
