#include "host/task.h"

#include <stdlib.h>

#include "base/clock.h"
#include "group/work.h"
#include "host/lerror.h"
#include "host/lwork.h"
#include "host/watch.h"

#define CLOSE_ROUNDS 100000 /* so many tasks at most can be closed with their interpreter */

/* ---- life ---------------------------------------------------------------------------------------- */

static perigee__task *task_ref(perigee__task *task) {
  atomic_fetch_add_explicit(&task->refs, 1, memory_order_relaxed);
  return task;
}

void perigee__task_unref(perigee__task *task) {
  /* acq_rel: the last owner sees what the others did with it */
  if (task == NULL || atomic_fetch_sub_explicit(&task->refs, 1, memory_order_acq_rel) != 1)
    return;
  perigee_work_unref(task->work);
  perigee_work_unref(task->turn);
  perigee_interp *interp = task->interp;
  free(task);
  perigee__interp_unref(interp);
}

static void close_coroutine(lua_State *co) {
#if LUA_VERSION_RELEASE_NUM >= 50406
  (void)lua_closethread(co, NULL);
#else
  (void)lua_resetthread(co);
#endif
}

static void remember_failure(perigee__task *task) {
  perigee__task_run *run = task->run;
  if (run->n_failed == run->room) {
    size_t room = run->room > 0 ? 2 * run->room : 8;
    perigee__task **grown = realloc(run->failed, room * sizeof(*grown));
    if (grown == NULL)
      return;
    run->failed = grown;
    run->room = room;
  }
  run->failed[run->n_failed++] = task_ref(task);
}

/* Its coroutine is over, and its work has ended. */
static void retire(perigee__task *task) {
  perigee__unref(task->interp, task->co_ref);
  perigee__unref(task->interp, task->follow_ref);
  task->co_ref = task->follow_ref = LUA_NOREF;
  task->co = NULL;
  if (task->run != NULL && !task->is_main &&
      perigee_work_get_status(task->work) != PERIGEE_WORK_DONE)
    remember_failure(task);
  perigee__list_remove(&task->node);
  if (task->turn != NULL)
    perigee_future_set_result(task->turn);
  perigee__task_unref(task);
}

/* ---- waking -------------------------------------------------------------------------------------- */

/* The callback of a work that a task sleeps in. Two users: the work, and the task while it sleeps. */
typedef struct perigee__waker {
  _Atomic uint32_t refs;
  uint32_t wait;
  perigee__task *task; /* one reference */
} waker;

static void waker_unref(waker *w) {
  /* acq_rel: the last user sees what the other did with it */
  if (w == NULL || atomic_fetch_sub_explicit(&w->refs, 1, memory_order_acq_rel) != 1)
    return;
  perigee__task_unref(w->task);
  free(w);
}

/* Any thread, no lock held. */
static void wake(perigee__task *task, uint32_t wait) {
  if (wait != 0 && atomic_compare_exchange_strong(&task->asleep, &wait, 0)) {
    task_ref(task); /* the queue's */
    perigee__ready_push(task->interp, &task->ready);
  }
}

static void on_awaited_ended(perigee_work *work, void *arg) {
  (void)work;
  waker *w = arg;
  wake(w->task, w->wait);
  waker_unref(w);
}

/* The task's own work has ended: by the task itself, or by somebody else while it sleeps. */
static void on_work_ended(perigee_work *work, void *arg) {
  (void)work;
  perigee__task *task = arg;
  wake(task, atomic_load(&task->asleep));
  perigee__task_unref(task);
}

static int wake_at_end(perigee__task *task, perigee_work *work, waker **w_p) {
  waker *w = malloc(sizeof(*w));
  if (w == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory to wait");
  atomic_init(&w->refs, 2);
  w->wait = task->waits;
  w->task = task_ref(task);
  *w_p = w;
  int rc = perigee_work_on_done(work, on_awaited_ended, w);
  if (rc < 0)
    waker_unref(w);
  return rc;
}

static void forget(perigee_work **work_p, waker **w_p) {
  if (*work_p == NULL)
    return;
  if (*w_p != NULL && perigee__work_forget(*work_p, on_awaited_ended, *w_p))
    waker_unref(*w_p);
  waker_unref(*w_p);
  perigee_work_unref(*work_p);
  *w_p = NULL;
  *work_p = NULL;
}

static void forget_wait(perigee__task *task) {
  perigee_future_depend(task->work, NULL);
  forget(&task->awaited, &task->wakers[0]);
  if (task->timer != NULL && !perigee_work_is_completed(task->timer))
    perigee_future_set_result(task->timer); /* the deadline service lets go of it */
  forget(&task->timer, &task->wakers[1]);
}

/* The task sleeps from now on, until work ends or the time is over. On failure it does not. */
static int fall_asleep(perigee__task *task, perigee_work *work, int64_t timeout_ns) {
  perigee_work *timer = NULL;
  if (timeout_ns != PERIGEE_TIMEOUT_NONE)
    PERIGEE_TRY(perigee_future_create(NULL, NULL, perigee__deadline_in(timeout_ns), &timer));
  if (++task->waits == 0)
    task->waits = 1;
  task->awaited = perigee_work_ref(work);
  task->timer = timer;
  perigee_future_depend(task->work, work);
  uint32_t wait = task->waits;
  /* seq_cst: who ends task->work sees that it sleeps, or this thread sees below that it has ended */
  atomic_store(&task->asleep, wait);
  int rc = wake_at_end(task, work, &task->wakers[0]);
  if (rc == 0 && timer != NULL)
    rc = wake_at_end(task, timer, &task->wakers[1]);
  if (rc < 0 && atomic_compare_exchange_strong(&task->asleep, &wait, 0)) {
    forget_wait(task);
    return rc;
  }
  if (!task->told && perigee_work_is_completed(task->work))
    wake(task, task->waits);
  return 0; /* it may be in the queue already, which is fine: the interpreter is ours until it has yielded */
}

/* The task's work was ended by somebody else: tell it. */
static void tell(lua_State *L, perigee__task *task) {
  perigee_error error;
  if (task->told || !perigee_work_is_completed(task->work))
    return;
  task->told = true;
  if (perigee_work_get_status(task->work) == PERIGEE_WORK_DONE)
    perigee__error_set(&error, PERIGEE_ECANCELED, "the work of this async function has ended");
  else
    perigee__work_error_of(task->work, &error);
  perigee__raise_error(L, &error);
}

int perigee__task_wait(lua_State *L, perigee__task *task, perigee_work *work, int64_t timeout_ns,
                       lua_KContext ctx, lua_KFunction k) {
  tell(L, task);
  if (perigee__work_reaches(work, task->work))
    perigee__raise(L, PERIGEE_EDEADLK, "an async function must not wait for itself");
  perigee__check(L, fall_asleep(task, work, timeout_ns));
  task->straight = false;
  task->yields = true;
  return lua_yieldk(L, 0, ctx, k);
}

int perigee__task_sleep(lua_State *L, perigee__task *task, int64_t ns, lua_KContext ctx,
                        lua_KFunction k) {
  perigee_work *timer;
  perigee__check(L, perigee_future_create(NULL, NULL, perigee__deadline_in(ns), &timer));
  int rc = fall_asleep(task, timer, PERIGEE_TIMEOUT_NONE);
  perigee_work_unref(timer);
  perigee__check(L, rc);
  task->straight = false;
  task->yields = true;
  return lua_yieldk(L, 0, ctx, k);
}

void perigee__task_woken(lua_State *L) {
  perigee_interp *interp = perigee__interp_here(L);
  const perigee__lthread *t = perigee__lthread_here(interp, L);
  perigee__task *task = t->task;
  if (task == NULL || task->co != L || !task->resumed)
    perigee__raise(L, PERIGEE_ESTATE,
                   "the coroutine of an async function was resumed by the script");
  task->resumed = false;
  tell(L, task);
}

/* ---- the end ------------------------------------------------------------------------------------- */

typedef struct ending {
  perigee__task *task;
  int status, n;  /* of lua_resume; values on the stack of co */
  bool continues; /* what it returned is pending: the task follows it */
} ending;

static void take_error(lua_State *L, perigee__task *task, int status) {
  perigee_error error;
  perigee__error_init(&error);
  luaL_checkstack(L, 8, NULL);
  if (status == LUA_YIELD)
    perigee__error_set(&error, PERIGEE_ESTATE,
                       "an async function yielded outside of a coroutine of its own: it waits by "
                       "work:wait()");
  else {
    lua_xmove(task->co, L, 1);
    perigee__error_any(L, -1, &error);
  }
  if (error.traceback[0] == '\0') {
    luaL_traceback(L, task->co, NULL, 0);
    perigee__copy_text(error.traceback, sizeof(error.traceback), lua_tostring(L, -1));
  }
  perigee_future_set_error(task->work, &error);
}

/* The Work object at index has ended: so does the task, the same way. */
static void take_outcome(lua_State *L, perigee__task *task, int index) {
  const perigee__lwork *w = perigee__lwork_get(L, index);
  if (w == NULL)
    perigee__raise(L, PERIGEE_ESTATE, "the work that an async function returned was collected");
  perigee_work *work = w->box.ptr;
  perigee_error error;
  if (perigee_work_get_status(work) != PERIGEE_WORK_DONE) {
    perigee__work_error_of(work, &error);
    perigee_future_set_error(task->work, &error);
    return;
  }
  int n = perigee__lwork_push_value(L, index);
  lua_pop(L, n - 1);
  perigee__lwork_set_value(L, task->work);
  perigee__work_finish(task->work, NULL, perigee_work_source_rank(work));
}

static void keep_values(lua_State *L, perigee__task *task, int first, int n) {
  lua_createtable(L, n, 1);
  for (int i = 0; i < n; i++) {
    lua_pushvalue(L, first + i);
    lua_rawseti(L, -2, i + 1);
  }
  lua_pushinteger(L, n);
  lua_setfield(L, -2, "n");
  task->values_ref = perigee__ref(task->interp, L);
}

/* Value, or value and the source rank of a receive; or a Work that becomes the outcome. */
static void take_values(lua_State *L, ending *e) {
  perigee__task *task = e->task;
  luaL_checkstack(L, e->n + 8, NULL);
  lua_xmove(task->co, L, e->n); // [ ending, values... ]
  const perigee__lwork *held = e->n > 0 ? perigee__object_get(L, 2, &perigee__type_work) : NULL;
  if (held != NULL && task->straight)
    perigee__lwork_run_held(L, task->interp, held, PERIGEE_TIMEOUT_NONE);
  const perigee__lwork *w = e->n > 0 ? perigee__lwork_get(L, 2) : NULL;
  if (w != NULL && !perigee_work_is_completed(w->box.ptr)) {
    if (perigee__work_reaches(w->box.ptr, task->work))
      perigee__raise(L, PERIGEE_EDEADLK, "an async function returned what waits for it");
    lua_pushvalue(L, 2);
    task->follow_ref = perigee__ref(task->interp, L);
    perigee__check(L, fall_asleep(task, w->box.ptr, PERIGEE_TIMEOUT_NONE));
    e->continues = true;
    return;
  }
  if (w != NULL) {
    take_outcome(L, task, 2);
    return;
  }
  if (task->is_main)
    keep_values(L, task, 2, e->n);
  int source = e->n > 1 && lua_isinteger(L, 3) ? (int)lua_tointeger(L, 3) : -1;
  lua_settop(L, e->n > 0 ? 2 : 1);
  if (e->n > 0 && !perigee_work_is_completed(task->work))
    perigee__lwork_set_value(L, task->work);
  perigee__work_finish(task->work, NULL, source);
}

static int end_body(lua_State *L) {
  ending *e = lua_touserdata(L, 1);
  if (e->status == LUA_OK)
    take_values(L, e);
  else
    take_error(L, e->task, e->status);
  return 0;
}

static int follow_body(lua_State *L) {
  perigee__task *task = lua_touserdata(L, 1);
  lua_rawgeti(L, LUA_REGISTRYINDEX, task->follow_ref);
  take_outcome(L, task, 2);
  return 0;
}

/* ---- running ------------------------------------------------------------------------------------- */

static void advance(perigee__lthread *t, lua_State *L, perigee__task *task, int nargs) {
  perigee__task *outer = t->task;
  uint64_t seq = t->seq;
  t->task = task;
  t->seq = task->seq;
  if (task->run != NULL)
    task->run->resumes++;
  ending e = {.task = task};
  e.status = perigee__resume(t, task->co, L, nargs, &e.n);
  t->task = outer;
  t->seq = seq;
  task->maker = NULL;
  if (e.status == LUA_YIELD && task->yields) {
    task->yields = false;
    return;
  }
  task->resumed = false;
  perigee_error error;
  if (perigee__protect(L, end_body, &e, &error) < 0)
    perigee_future_set_error(task->work, &error);
  if (e.status != LUA_OK)
    close_coroutine(task->co);
  if (!e.continues)
    retire(task);
}

/* Its turn has come, or its work was ended before that. */
static void take_turn(perigee__lthread *t, lua_State *L, perigee__task *task) {
  bool ended = perigee_work_is_completed(task->work);
  if (ended && !perigee_work_is_completed(task->awaited)) {
    perigee_work *before = perigee_work_ref(task->awaited);
    forget_wait(task);
    task->told = true;
    int rc = fall_asleep(task, before, PERIGEE_TIMEOUT_NONE);
    perigee_work_unref(before);
    if (rc == 0)
      return;
  }
  forget_wait(task);
  if (ended)
    retire(task);
  else
    perigee__task_start(t, L, task);
}

static void follow(lua_State *L, perigee__task *task) {
  perigee_error error;
  forget_wait(task);
  if (!perigee_work_is_completed(task->work) && perigee__protect(L, follow_body, task, &error) < 0)
    perigee_future_set_error(task->work, &error);
  retire(task);
}

/* From the ready queue. */
static void on_ready(perigee__lthread *t, lua_State *L, perigee__ready *ready) {
  perigee__task *task = PERIGEE_CONTAINER_OF(ready, perigee__task, ready);
  if (task->co == NULL) {
    /* closed meanwhile */
  } else if (task->follow_ref != LUA_NOREF) {
    follow(L, task);
  } else if (!task->started) {
    take_turn(t, L, task);
  } else {
    forget_wait(task);
    task->resumed = true;
    advance(t, L, task, 0);
  }
  perigee__task_unref(task); /* the queue's reference */
}

/* The interpreter is closed; perigee__tasks_close has ended its work. */
static void on_drop(perigee__ready *ready) {
  perigee__task_unref(PERIGEE_CONTAINER_OF(ready, perigee__task, ready));
}

void perigee__task_start(perigee__lthread *t, lua_State *L, perigee__task *task) {
  task->started = true;
  task->maker = L;
  advance(t, L, task, task->nargs);
}

void perigee__task_start_after(lua_State *L, perigee__task *task, perigee_work *before) {
  int rc = fall_asleep(task, before, PERIGEE_TIMEOUT_NONE);
  if (rc == 0)
    return;
  perigee_error error = *perigee_last_error();
  perigee_future_set_error(task->work, &error);
  retire(task);
  perigee__raise_error(L, &error);
}

perigee__task *perigee__task_create(lua_State *L, perigee__lthread *t, int nargs,
                                    const perigee_request *req) {
  perigee_interp *interp = t->interp;
  luaL_checkstack(L, nargs + 8, NULL);
  perigee__lwork *w = perigee__lwork_new(L);
  lua_insert(L, -(nargs + 2)); // [ w, f, args... ]
  w->slot = true;
  perigee_work *work;
  perigee__check(L, perigee_future_create(NULL, req, PERIGEE_NEVER, &work));
  w->box.ptr = work;
  perigee__task *task = calloc(1, sizeof(*task));
  if (task == NULL)
    perigee__raise(L, PERIGEE_ENOMEM, "no memory for an async function");
  w->task = task; /* its reference */
  atomic_init(&task->refs, 1);
  perigee__list_init(&task->node);
  task->ready = (perigee__ready){.run = on_ready, .drop = on_drop, .may_wait = true};
  task->interp = interp;
  perigee__interp_ref(interp);
  task->work = perigee_work_ref(work);
  task->co_ref = task->follow_ref = task->values_ref = LUA_NOREF;
  task->seq = t->seq;
  task->nargs = nargs;
  task->run = t->task != NULL ? t->task->run : NULL;
  lua_State *co = lua_newthread(L);
  if (!lua_checkstack(co, nargs + LUA_MINSTACK))
    perigee__raise(L, PERIGEE_ENOMEM, "no memory for the arguments of an async function");
  task->co_ref = perigee__ref(interp, L);
  lua_xmove(L, co, nargs + 1); // [ w ]
  int rc = perigee_work_on_done(work, on_work_ended, task_ref(task));
  if (rc < 0) {
    perigee__task_unref(task);
    perigee__unref(interp, task->co_ref);
    perigee__raise_last(L);
  }
  task->co = co;
  perigee__list_append(&interp->tasks, &task_ref(task)->node);
  return task;
}

/* ---- closing ------------------------------------------------------------------------------------- */

void perigee__task_close(perigee__lthread *t, perigee__task *task, const perigee_error *error) {
  task_ref(task);
  perigee_future_set_error(task->work, error);
  lua_State *co = task->co;
  /* One that runs is below us, or on another thread: it goes on when it comes to that, and its wait raises. */
  if (co != NULL &&
      (lua_status(co) == LUA_YIELD || !task->started || task->follow_ref != LUA_NOREF)) {
    atomic_store(&task->asleep, 0); /* an entry in the queue finds it without a coroutine */
    forget_wait(task);
    perigee__task *outer = t->task;
    t->task = NULL;
    close_coroutine(co);
    t->task = outer;
    retire(task);
  }
  perigee__task_unref(task);
}

void perigee__tasks_close(perigee_interp *interp, perigee__lthread *t) {
  perigee_error error;
  perigee__error_set(&error, PERIGEE_ELUASTATE,
                     "the interpreter was closed before the async function ended");
  /* Closing one may start others; what runs somewhere below cannot be closed and stays in the list. */
  for (int round = 0; round < CLOSE_ROUNDS && !perigee__list_empty(&interp->tasks); round++) {
    perigee__task *task = PERIGEE_CONTAINER_OF(interp->tasks.next, perigee__task, node);
    perigee__list_remove(&task->node);
    perigee__list_append(&interp->tasks, &task->node);
    perigee__task_close(t, task, &error);
  }
}
