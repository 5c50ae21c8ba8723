/* Waiting until nothing is under way and all hooks have run. */
#include <stdlib.h>

#include "base/clock.h"
#include "base/error.h"
#include "group/hooks.h"
#include "host/call.h"
#include "host/hook_log.h"
#include "host/lerror.h"
#include "host/lhook.h"
#include "host/lwork.h"

#define FLUSH_NS (2 * PERIGEE_NS_PER_SEC)

/* An entry behind all that is queued: a work that ends when it is its turn. */
typedef struct barrier {
  perigee__ready ready;
  perigee_interp *interp; /* counted */
  perigee_work *work;     /* one reference */
} barrier;

static void barrier_free(barrier *b) {
  perigee_interp *interp = b->interp;
  perigee_work_unref(b->work);
  free(b);
  perigee__interp_unref(interp);
}

static void barrier_run(perigee__lthread *t, lua_State *L, perigee__ready *ready) {
  (void)t;
  (void)L;
  barrier *b = PERIGEE_CONTAINER_OF(ready, barrier, ready);
  perigee_future_set_result(b->work);
  barrier_free(b);
}

static void barrier_drop(perigee__ready *ready) {
  barrier *b = PERIGEE_CONTAINER_OF(ready, barrier, ready);
  perigee_error error;
  perigee__error_set(&error, PERIGEE_ELUASTATE, "the interpreter was closed");
  perigee_future_set_error(b->work, &error);
  barrier_free(b);
}

/* NULL: no memory. *work_p: one reference for the caller. */
static barrier *barrier_create(perigee_interp *interp, perigee_work *depends_on,
                               perigee_work **work_p) {
  barrier *b = malloc(sizeof(*b));
  if (b == NULL || perigee_future_create(depends_on, NULL, PERIGEE_NEVER, &b->work) < 0) {
    free(b);
    return NULL;
  }
  b->ready = (perigee__ready){.run = barrier_run, .drop = barrier_drop};
  b->interp = interp;
  perigee__interp_ref(interp);
  *work_p = perigee_work_ref(b->work);
  return b;
}

static void on_quiet(perigee_work *work, void *arg) {
  (void)work;
  barrier *b = arg;
  perigee__ready_push(b->interp, &b->ready);
}

void perigee__lhook_flush(lua_State *L, perigee_interp *interp, const perigee__lgroup *g) {
  const perigee__lthread *t = perigee__lthread_here(interp, L);
  perigee_work *work;
  barrier *b;
  if (g->hook_log == NULL || t->callbacks > 0 || (b = barrier_create(interp, NULL, &work)) == NULL)
    return;
  perigee__ready_push(interp, &b->ready);
  (void)perigee__host_wait(interp, L, work, FLUSH_NS); /* a hook that hangs is not waited for */
  perigee_work_unref(work);
}

/* A Work that ends when nothing is under way and all hooks have run, on top of the stack. [-0, +1, e] */
static void push_quiet(lua_State *L, const perigee__lgroup *g) {
  perigee_interp *interp = perigee__interp_here(L);
  perigee__lwork *w = perigee__lwork_new(L);
  perigee_work *fence, *work = NULL;
  const perigee_group *group = g->box.ptr;
  perigee__check(L, perigee__hooks_fence(group->hooks, &fence));
  barrier *b = barrier_create(interp, fence, &work);
  int rc = b == NULL ? perigee__fail(PERIGEE_ENOMEM, "no memory to wait for pending works")
                     : perigee_work_on_done(fence, on_quiet, b);
  perigee_work_unref(fence);
  w->box.ptr = work;
  if (rc < 0 && b != NULL)
    barrier_free(b);
  perigee__check(L, rc);
}

/* Stack: group, timeout, deadline, and the two results of a wait. -1: wait again. */
static int after_wait(lua_State *L) {
  const perigee__lgroup *g = perigee__lgroup_self(L, "wait_for_pending_works");
  const perigee_group *group = g->box.ptr;
  if (!lua_isnil(L, -1)) { /* nil and an error: the time is over */
    lua_pushfstring(L, "works or hooks of the group are still pending after %f s",
                    lua_tonumber(L, 2));
    lua_setfield(L, -2, "message");
    return 2;
  }
  lua_settop(L, 3);
  if (perigee__hooks_busy(group->hooks)) /* a hook has issued work */
    return -1;
  perigee__hook_log_raise(L, g->hook_log);
  lua_pushboolean(L, 1);
  return 1;
}

static int wait_loop(lua_State *L);

static int wait_more(lua_State *L, int status, lua_KContext ctx) {
  (void)status;
  (void)ctx;
  int n = after_wait(L);
  return n >= 0 ? n : wait_loop(L);
}

static int wait_loop(lua_State *L) {
  for (;;) {
    push_quiet(L, perigee__lgroup_self(L, "wait_for_pending_works"));
    lua_getfield(L, -1, "wait");
    lua_insert(L, -2);
    int64_t deadline_ns = (int64_t)lua_tointeger(L, 3);
    if (deadline_ns == PERIGEE_NEVER)
      lua_pushnil(L);
    else
      lua_pushnumber(L, (double)perigee__time_left(deadline_ns) / 1e9);
    lua_callk(L, 2, 2, 0, wait_more); /* Work:wait, which may yield */
    int n = after_wait(L);
    if (n >= 0)
      return n;
  }
}

int perigee__lhook_wait(lua_State *L) {
  perigee__lgroup_self(L, "wait_for_pending_works");
  lua_settop(L, 2);
  int64_t deadline_ns = PERIGEE_NEVER;
  if (!lua_isnil(L, 2)) {
    int64_t ns = perigee__seconds_arg(L, 2, "wait_for_pending_works", 1, true);
    deadline_ns = ns == PERIGEE_TIMEOUT_NONE ? PERIGEE_NEVER : perigee__deadline_in(ns);
  }
  lua_pushinteger(L, deadline_ns);
  return wait_loop(L);
}
