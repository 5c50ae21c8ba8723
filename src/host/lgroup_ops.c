/* The operations of a group as methods: one function, made into a method per row of the operation table. */
#include <stdio.h>
#include <string.h>

#include "group/coalesce.h"
#include "host/call.h"
#include "host/lcoalesce.h"
#include "host/lerror.h"
#include "host/lgroup.h"
#include "host/lwork.h"
#include "host/task.h"

/* What the error does not say about the call it belongs to. */
static void raise_work_error(lua_State *L, const perigee__lgroup *g, int op, perigee_error *error) {
  if (error->op < 0)
    error->op = op;
  if (error->rank < 0)
    error->rank = g->rank;
  if (error->group[0] == '\0')
    snprintf(error->group, sizeof(error->group), "%s", perigee_group_name(g->box.ptr));
  perigee__raise_error(L, error);
}

static int submit(lua_State *L, perigee_interp *interp, const perigee__lgroup *g,
                  perigee__call *call, perigee_work **work_p) {
  perigee__gap gap;
  (void)perigee__lthread_here(interp, L); /* raises, if gap_open would */
  perigee__call_pin(call);
  perigee__gap_open(interp, L, &gap);
  int rc = perigee_group_submit(g->box.ptr, &call->req, work_p);
  perigee__call_unpin(call);
  perigee__gap_close(interp, &gap);
  return rc;
}

static int run_async(lua_State *L, perigee_interp *interp, const perigee__lgroup *g,
                     perigee__call *call) {
  perigee__lwork *w = perigee__lwork_new(L);
  w->conv = call->conv;
  if (call->value != 0) {
    lua_pushvalue(L, call->value);
    lua_setiuservalue(L, -2, 1);
  }
  perigee_work *work;
  perigee__check(L, submit(L, interp, g, call, &work));
  w->box.ptr = work;
  return 1;
}

/* Within a coalescing every form is asynchronous. */
static int run_coalesced(lua_State *L, perigee_interp *interp, const perigee__lgroup *g,
                         perigee__call *call) {
  run_async(L, interp, g, call);
  perigee__coalesce_note(L, interp, g->box.ptr);
  return 1;
}

static int push_result(lua_State *L, const perigee__call *call, int source) {
  if (call->value == 0 && call->req.op != PERIGEE_OP_GATHER)
    return 0;
  perigee__value_push(L, call->value, call->conv);
  if (!(call->conv & PERIGEE_CONV_SOURCE))
    return 1;
  lua_pushinteger(L, source);
  return 2;
}

/* Only a work knows the source rank. */
static int run_anysource(lua_State *L, perigee_interp *interp, const perigee__lgroup *g,
                         perigee__call *call) {
  perigee_work *work;
  perigee__check(L, submit(L, interp, g, call, &work));
  int rc = perigee__host_wait(interp, L, work, PERIGEE_TIMEOUT_NONE);
  int source = perigee_work_source_rank(work);
  perigee_error error;
  if (rc < 0 && perigee_work_is_completed(work))
    perigee__work_error_of(work, &error);
  else if (rc < 0)
    error = *perigee_last_error();
  perigee_work_unref(work);
  if (rc < 0)
    raise_work_error(L, g, call->req.op, &error);
  return push_result(L, call, source);
}

/* Run what is ready; the error of rc stays this thread's last one. */
static void drain(lua_State *L, perigee_interp *interp, perigee__lthread *t, int rc) {
  perigee_error error;
  if (rc < 0)
    error = *perigee_last_error();
  perigee__ready_drain(interp, t, L);
  if (rc < 0)
    perigee__fail_with(&error);
}

/* To its end on this thread: straight to the bottom nothing is allocated on the way, and what layers queue for Lua (map) runs
 * here, in the trampoline's wait. */
static int run_sync(lua_State *L, perigee_interp *interp, const perigee__lgroup *g,
                    perigee__call *call) {
  perigee__gap gap;
  perigee__call_pin(call);
  perigee__gap_open(interp, L, &gap);
  bool before = gap.t->drains_after;
  gap.t->drains_after = true;
  int rc = perigee_group_run(g->box.ptr, &call->req);
  gap.t->drains_after = before;
  perigee__call_unpin(call);
  perigee__gap_close(interp, &gap);
  if (PERIGEE_UNLIKELY(atomic_load_explicit(&interp->ready_count, memory_order_relaxed) > 0))
    drain(L, interp, gap.t, rc);
  perigee__check(L, rc);
  return push_result(L, call, -1);
}

/* The Work of operation `op` at index has ended. */
static int push_ended(lua_State *L, int op, int index, bool has_value) {
  const perigee__lgroup *g = perigee__lgroup_self(L, perigee_op_name(op));
  const perigee__lwork *w = perigee__lwork_get(L, index);
  perigee_error error;
  if (w == NULL)
    perigee__raise(L, PERIGEE_ESTATE, "%s: its work has been collected", perigee_op_name(op));
  if (perigee_work_get_status(w->box.ptr) != PERIGEE_WORK_DONE) {
    perigee__work_error_of(w->box.ptr, &error);
    raise_work_error(L, g, op, &error);
  }
  return has_value ? perigee__lwork_push_value(L, index) : 0;
}

/* ctx: 2 * stack index of the Work, + 1 when the operation has a value */
static int op_continues(lua_State *L, int status, lua_KContext ctx) {
  (void)status;
  perigee__task_woken(L);
  return push_ended(L, (int)lua_tointeger(L, lua_upvalueindex(2)), (int)(ctx / 2), ctx % 2 != 0);
}

/* In a task: submitted, and waited for without blocking. */
static int run_in_task(lua_State *L, perigee_interp *interp, const perigee__lgroup *g,
                       perigee__call *call, perigee__task *task) {
  run_async(L, interp, g, call);
  const perigee__lwork *w = perigee__lwork_get(L, -1);
  bool value = call->value != 0 || call->req.op == PERIGEE_OP_GATHER;
  int index = lua_gettop(L);
  if (perigee_work_is_completed(w->box.ptr))
    return push_ended(L, call->req.op, index, value);
  return perigee__task_wait(L, task, w->box.ptr, PERIGEE_TIMEOUT_NONE,
                            2 * (lua_KContext)index + value, op_continues);
}

/* Upvalue 2: the operation. */
int perigee__lgroup_op(lua_State *L) {
  perigee_interp *interp = perigee__interp_here(L);
  int op = (int)lua_tointeger(L, lua_upvalueindex(2));
  const perigee__lgroup *g = perigee__lgroup_self(L, perigee_op_name(op));
  perigee__call call;
  call.rank = g->rank;
  call.nranks = g->nranks;
  perigee__call_parse(L, op, &call);
  if (PERIGEE_UNLIKELY(perigee__batch_here(g->box.ptr) != NULL))
    return run_coalesced(L, interp, g, &call);
  if (call.async)
    return run_async(L, interp, g, &call);
  const perigee__lthread *t = perigee__lthread_here(interp, L);
  perigee__task *task = perigee__task_here(t, L);
  if (task != NULL && !task->straight)
    return run_in_task(L, interp, g, &call, task);
  if (t->callbacks > 0)
    perigee__raise(L, PERIGEE_EDEADLK,
                   "%s: a callback must not wait: pass async = true and use map or on_done",
                   call.info->name);
  return op == PERIGEE_OP_RECV_ANYSOURCE ? run_anysource(L, interp, g, &call)
                                         : run_sync(L, interp, g, &call);
}

static void add_method(lua_State *L, const char *name, size_t len, int op, lua_CFunction fn) {
  lua_pushlstring(L, name, len);
  perigee__interp_push_box(L);
  lua_pushinteger(L, op);
  lua_pushcclosure(L, fn, 2);
  lua_rawset(L, -3);
}

void perigee__lgroup_ops_add(lua_State *L, lua_CFunction fn) {
  for (int op = 0; op < PERIGEE_OP_COUNT; op++) {
    const perigee_op_info *info = perigee_op_get(op);
    add_method(L, info->name, strlen(info->name), op, fn);
    for (const char *at = info->aliases; *at != '\0';) {
      size_t len = strcspn(at, " ");
      add_method(L, at, len, op, fn);
      at += len + strspn(at + len, " ");
    }
  }
}
