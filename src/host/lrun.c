/*
 * perigee.run: main as a task, and this thread to run it and all that it starts until they have ended.
 *
 * The thread waits for one of the tasks at a time, in slices: waiting runs the ready queue, and so all of them. Between two slices it looks
 * whether anything can go on at all. (A C program that lets another thread enter only later to complete a future has to give that future
 * a timeout: until then nobody can know of it.)
 */
#include "host/lrun.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "group/work.h"
#include "host/call.h"
#include "host/lerror.h"
#include "host/lwork.h"
#include "host/task.h"

#define SLICE_NS (50 * PERIGEE_NS_PER_MS)
#define STUCK_SLICES 10               /* nothing could go on for so long: a deadlock */
#define GRACE_NS (PERIGEE_NS_PER_SEC) /* for tasks that were told to end */

typedef struct run {
  perigee__task_run shared;
  perigee_interp *interp;
  perigee__lthread *t;
  perigee__task *main; /* one reference */
  int64_t deadline_ns; /* of the run; after the end was asked for: of the grace */
  double seconds;
  bool ending; /* the tasks were told to end */
  int stuck;   /* slices in a row */
  uint64_t resumes;
} run;

/* The next task of this run, after `after` (NULL: the first), or NULL. */
static perigee__task *next_task(const run *r, const perigee__task *after) {
  bool past = after == NULL;
  PERIGEE_LIST_EACH(it, &r->interp->tasks) {
    perigee__task *task = PERIGEE_CONTAINER_OF(it, perigee__task, node);
    if (past && task->run == &r->shared)
      return task;
    past = past || task == after;
  }
  return NULL;
}

/* ---- ending ---------------------------------------------------------------------------------------- */

/* Every wait of the tasks raises this, once. */
static void end_all(run *r, const perigee_error *error) {
  r->ending = true;
  r->deadline_ns = perigee__deadline_in(GRACE_NS);
  perigee_work *works[16];
  for (;;) {
    /* In batches: ending a work runs callbacks of C code. */
    int n = 0;
    for (perigee__task *task = next_task(r, NULL); task != NULL && n < 16;
         task = next_task(r, task))
      if (!perigee_work_is_completed(task->work)) {
        task->seen = true;
        works[n++] = perigee_work_ref(task->work);
      }
    if (n == 0)
      return;
    for (int i = 0; i < n; i++) {
      perigee_future_set_error(works[i], error);
      perigee_work_unref(works[i]);
    }
  }
}

/* What is left after the grace: the coroutines are closed. What blocks on another thread is let go. */
static void close_rest(run *r) {
  perigee_error error;
  perigee__error_set(&error, PERIGEE_ECANCELED, "perigee.run has ended");
  for (perigee__task *task = next_task(r, NULL); task != NULL; task = next_task(r, NULL)) {
    task->run = NULL;
    perigee__task_close(r->t, task, &error);
  }
}

/* ---- deadlocks ------------------------------------------------------------------------------------- */

/* Whether nothing can go on: all tasks sleep in works that only Lua could end, and nothing else of this interpreter runs. */
static bool is_stuck(const run *r) {
  const perigee_interp *interp = r->interp;
  if (atomic_load_explicit(&interp->ready_count, memory_order_relaxed) > 0 ||
      atomic_load_explicit(&interp->inside, memory_order_relaxed) > 1)
    return false;
  PERIGEE_LIST_EACH(it, &interp->tasks) {
    perigee__task *task = PERIGEE_CONTAINER_OF(it, perigee__task, node);
    if (atomic_load(&task->asleep) == 0 || task->timer != NULL ||
        !perigee__work_is_stuck(task->awaited))
      return false;
  }
  return perigee__callbacks_are_stuck(interp);
}

/* Where a task waits, as far as there is room: "main at train.lua:12" */
static size_t describe(const perigee__task *task, char *to, size_t size) {
  lua_Debug ar;
  const char *what = task->is_main ? "main" : "a task";
  for (int level = 0; task->co != NULL && lua_getstack(task->co, level, &ar); level++) {
    lua_getinfo(task->co, "Sl", &ar);
    if (ar.currentline > 0)
      return (size_t)snprintf(to, size, "%s at %s:%d", what, ar.short_src, ar.currentline);
  }
  return (size_t)snprintf(to, size, "%s", what);
}

static void deadlock(run *r) {
  char where[400] = "";
  size_t len = 0;
  for (const perigee__task *task = next_task(r, NULL); task != NULL; task = next_task(r, task)) {
    char one[120];
    size_t n = describe(task, one, sizeof(one));
    if (n >= sizeof(one) || len + n + 8 >= sizeof(where)) {
      memcpy(where + len, ", ...", sizeof(", ..."));
      break;
    }
    len += (size_t)snprintf(where + len, sizeof(where) - len, "%s%s", len > 0 ? ", " : "", one);
  }
  perigee_error error;
  perigee__error_set(&error, PERIGEE_EDEADLK, "deadlock: nothing that runs can end the wait of %s",
                     where);
  end_all(r, &error);
}

/* ---- the loop -------------------------------------------------------------------------------------- */

static perigee_work *target(const run *r) {
  perigee__task *task = next_task(r, NULL);
  PERIGEE_LIST_EACH(it, &r->interp->tasks) {
    perigee__task *other = PERIGEE_CONTAINER_OF(it, perigee__task, node);
    if (other == r->main)
      task = other;
  }
  if (task == NULL)
    return NULL;
  bool told = perigee_work_is_completed(task->work) && task->awaited != NULL;
  return perigee_work_ref(told ? task->awaited : task->work);
}

static void look_after(run *r) {
  perigee_error error;
  perigee_work_status status = perigee_work_get_status(r->main->work);
  if (r->ending)
    return;
  if (status != PERIGEE_WORK_PENDING && status != PERIGEE_WORK_DONE) {
    perigee__error_set(&error, PERIGEE_ECANCELED, "the main function of perigee.run has failed");
    end_all(r, &error);
  } else if (perigee__passed(r->deadline_ns)) {
    perigee__error_set(&error, PERIGEE_ETIMEDOUT, "perigee.run: timed out after %.1f s",
                       r->seconds);
    end_all(r, &error);
  } else if (r->resumes != r->shared.resumes || !is_stuck(r)) {
    r->resumes = r->shared.resumes;
    r->stuck = 0;
  } else if (++r->stuck >= STUCK_SLICES) {
    deadlock(r);
  }
}

/* 0, or an error with which waiting itself failed. */
static int loop(lua_State *L, run *r) {
  for (perigee_work *work; (work = target(r)) != NULL;) {
    if (perigee__passed(r->deadline_ns) && r->ending) {
      perigee_work_unref(work);
      return 0;
    }
    int64_t left = perigee__time_left(r->deadline_ns);
    bool ended = perigee_work_is_completed(work);
    int rc = perigee__host_wait(r->interp, L, work, left < SLICE_NS ? left + 1 : SLICE_NS);
    bool failed = rc < 0 && rc != PERIGEE_EAGAIN && !perigee_work_is_completed(work);
    perigee_work_unref(work);
    if (failed)
      return rc;
    if (ended) { /* a task that blocks elsewhere */
      perigee__gap gap;
      perigee__gap_open(r->interp, L, &gap);
      perigee__sleep_ns(PERIGEE_NS_PER_MS);
      perigee__gap_close(r->interp, &gap);
    }
    look_after(r);
  }
  return 0;
}

/* The error to raise: main's, or the first of a task whose outcome nobody asked for. */
static bool find_error(const run *r, int rc, perigee_error *error) {
  if (rc < 0) {
    *error = *perigee_last_error();
    return true;
  }
  if (perigee_work_get_status(r->main->work) != PERIGEE_WORK_DONE) {
    perigee__work_error_of(r->main->work, error);
    return true;
  }
  for (size_t i = 0; i < r->shared.n_failed; i++)
    if (!r->shared.failed[i]->seen) {
      perigee__work_error_of(r->shared.failed[i]->work, error);
      return true;
    }
  return false;
}

static int push_values(lua_State *L, const run *r, int values_ref) {
  if (values_ref == LUA_NOREF) /* it returned a Work */
    return perigee__lwork_push_value(L, 1);
  lua_rawgeti(L, LUA_REGISTRYINDEX, values_ref);
  perigee__unref(r->interp, values_ref);
  int table = lua_gettop(L);
  lua_getfield(L, table, "n");
  int n = (int)lua_tointeger(L, -1);
  luaL_checkstack(L, n + 4, NULL);
  for (int i = 1; i <= n; i++)
    lua_rawgeti(L, table, i);
  return n;
}

static int run_main(lua_State *L, run *r) {
  int rc = loop(L, r);
  perigee_error error;
  if (rc < 0) {
    error = *perigee_last_error();
    end_all(r, &error);
    perigee__fail_with(&error);
  }
  close_rest(r);
  bool failed = find_error(r, rc, &error);
  for (size_t i = 0; i < r->shared.n_failed; i++)
    perigee__task_unref(r->shared.failed[i]);
  free(r->shared.failed);
  int values_ref = r->main->values_ref;
  r->main->values_ref = LUA_NOREF;
  perigee__task_unref(r->main);
  if (!failed)
    return push_values(L, r, values_ref);
  perigee__unref(r->interp, values_ref);
  perigee__raise_error(L, &error);
}

/* perigee.run([{timeout =},] main, ...): main(...) as an async function; what it returns, when it and all it started have ended */
static int l_run(lua_State *L) {
  static const char *const known[] = {"timeout", NULL};
  run r = {.interp = perigee__interp_here(L), .deadline_ns = PERIGEE_NEVER};
  r.t = perigee__lthread_here(r.interp, L);
  if (lua_type(L, 1) == LUA_TTABLE) {
    perigee__check_keys(L, 1, "run", 1, known);
    if (lua_getfield(L, 1, "timeout") != LUA_TNIL) {
      int64_t ns = perigee__seconds_arg(L, -1, "run", 1, false);
      r.seconds = (double)ns / 1e9;
      if (ns != PERIGEE_TIMEOUT_NONE)
        r.deadline_ns = perigee__deadline_in(ns);
    }
    lua_pop(L, 1);
    lua_remove(L, 1);
  }
  if (lua_type(L, 1) != LUA_TFUNCTION)
    perigee__raise_arg(L, "run", 1, "function expected, got %s", perigee__type_name(L, 1));
  if (r.t->task != NULL)
    perigee__raise(L, PERIGEE_ESTATE,
                   "run: not inside an async function: call perigee.async(f)() and wait for that");
  if (r.t->callbacks > 0)
    perigee__raise(L, PERIGEE_EDEADLK, "run: a callback must not wait: use perigee.async");
  int n = lua_gettop(L) - 1;
  r.main = perigee__task_create(L, r.t, n, NULL); // [ work ]
  atomic_fetch_add_explicit(&r.main->refs, 1, memory_order_relaxed);
  r.main->is_main = r.main->seen = true;
  r.main->run = &r.shared;
  perigee__task_start(r.t, L, r.main);
  look_after(&r);
  return run_main(L, &r);
}

void perigee__lrun_open(lua_State *L) {
  static const luaL_Reg functions[] = {{"run", l_run}, {NULL, NULL}};
  perigee__functions_add(L, functions);
}
