/*
 * The trampoline: the way of an operation from C into the override of a Lua table, and of its result back.
 *
 *   enter -> protected call of `body` -> leave
 *   body: function and instance by reference, arguments in canonical form by the operation's row, lua_call, result
 *
 * One function serves all operations: the row says which arguments there are. No Lua pointer leaves it: the work is counted, the
 * error is copied. On the success path nothing is allocated in C, and in Lua only what the override gets: its lists, its
 * tensor objects and its options.
 */
#include <stdio.h>
#include <string.h>

#include "group/work.h"
#include "host/deferred.h"
#include "host/lasync.h"
#include "host/lbackend.h"
#include "host/lerror.h"
#include "host/ltablework.h"
#include "host/ltensor.h"
#include "host/lwork.h"
#include "host/task.h"
#include "host/watch.h"

typedef struct submission {
  perigee__lthread *t;
  perigee__llayer *layer;
  const perigee_request *req;
  perigee_work *work;          /* one reference, set on success */
  bool waits;                  /* the caller waits for the work right afterwards */
  perigee__deferred *deferred; /* what the result needs first, held back so far; one reference */
  perigee__ready *drive;       /* what ends the work, run by the caller that waits, or NULL */
} submission;

static int64_t timeout_of(const submission *s) {
  return s->req->timeout_ns == PERIGEE_TIMEOUT_DEFAULT
             ? atomic_load_explicit(&s->layer->timeout_ns, memory_order_relaxed)
             : s->req->timeout_ns;
}

/* ---- arguments ----------------------------------------------------------------------------------- */

static void push_list(lua_State *L, perigee_tensor *const *v, uint32_t n) {
  lua_createtable(L, (int)n, 0);
  for (uint32_t i = 0; i < n; i++) {
    perigee__tensor_push(L, v[i]);
    lua_rawseti(L, -2, (lua_Integer)i + 1);
  }
}

static void push_tensors(lua_State *L, const perigee_tensors *t, perigee_form form) {
  if (form == PERIGEE_FORM_ONE) {
    if (t->n > 0)
      perigee__tensor_push(L, t->v[0]);
    else
      lua_pushnil(L);
    return;
  }
  if (form != PERIGEE_FORM_LISTS) {
    push_list(L, t->v, t->n);
    return;
  }
  uint32_t rows = t->rows, each = rows > 0 ? t->n / rows : 0;
  lua_createtable(L, (int)rows, 0);
  for (uint32_t r = 0; r < rows; r++) {
    push_list(L, t->v + (size_t)r * each, each);
    lua_rawseti(L, -2, (lua_Integer)r + 1);
  }
}

static void push_splits(lua_State *L, const int64_t *splits, uint32_t n) {
  lua_createtable(L, (int)n, 0);
  for (uint32_t i = 0; i < n; i++) {
    lua_pushinteger(L, splits[i]);
    lua_rawseti(L, -2, (lua_Integer)i + 1);
  }
}

/* Canonical form of DESIGN's table: tensors, splits or peer and tag, options. Returns how many. */
static int push_args(lua_State *L, perigee__llayer *layer, const perigee_request *req) {
  const perigee_op_info *info = perigee_op_get(req->op);
  int top = lua_gettop(L);
  if (info->out != PERIGEE_FORM_NONE)
    push_tensors(L, &req->out, info->out);
  if (info->in != PERIGEE_FORM_NONE)
    push_tensors(L, &req->in, info->in);
  if (info->opts & PERIGEE_OPT_SPLITS) {
    push_splits(L, req->out_splits, req->n_out_splits);
    push_splits(L, req->in_splits, req->n_in_splits);
  }
  if (info->opts & (PERIGEE_OPT_DST | PERIGEE_OPT_SRC))
    lua_pushinteger(L, req->peer);
  if (info->opts & PERIGEE_OPT_TAG)
    lua_pushinteger(L, req->tag);
  perigee__opts_push(layer->interp, L, req, info,
                     atomic_load_explicit(&layer->timeout_ns, memory_order_relaxed),
                     &layer->opts[req->op]);
  return lua_gettop(L) - top;
}

/* ---- result -------------------------------------------------------------------------------------- */

/* The Work of an operation that is still held back, or one mapped from it: then the caller runs it. */
static bool take_held_back(submission *s, const perigee__lwork *w) {
  perigee__lthread *t = s->t;
  if (w->deferred == NULL || w->deferred != t->deferred)
    return false;
  s->deferred = t->deferred; /* the thread's reference */
  perigee__deferred_mark(t);
  t->deferred = NULL;
  if (w->box.ptr != NULL)
    s->work = perigee_work_ref(w->box.ptr);
  return true;
}

perigee_work *perigee__result_work(lua_State *L, perigee__llayer *layer, const perigee_request *req,
                                   int64_t timeout_ns, perigee__ready **drive_p) {
  const perigee__lwork *w = perigee__lwork_get(L, -1);
  if (w != NULL)
    return perigee_work_ref(w->box.ptr);
  if (lua_type(L, -1) == LUA_TBOOLEAN && lua_toboolean(L, -1))
    return perigee_work_done();
  return lua_type(L, -1) == LUA_TTABLE ? perigee__table_work(L, layer, req, timeout_ns, drive_p)
                                       : NULL;
}

static void take_result(lua_State *L, submission *s) {
  const perigee__lwork *w = perigee__object_get(L, -1, &perigee__type_work);
  if (w != NULL && take_held_back(s, w))
    return;
  s->work = perigee__result_work(L, s->layer, s->req, timeout_of(s), s->waits ? &s->drive : NULL);
  if (s->work != NULL)
    return;
  const char *got = perigee__type_name(L, -1), *hint = "";
  if (lua_isnil(L, -1))
    hint = " (is a 'return' missing?)";
  if (!lua_toboolean(L, -1) && lua_gettop(L) > 2)
    hint = lua_pushfstring(L, " and '%s' (errors are raised, not returned)",
                           luaL_tolstring(L, 2, NULL));
  perigee__raise(L, PERIGEE_ELUATYPE,
                 "backend '%s': %s must return a Work, a table with wait, get_future or "
                 "is_completed, or true; got %s%s",
                 s->layer->name, perigee_op_name(s->req->op), got, hint);
}

static int body(lua_State *L) {
  submission *s = lua_touserdata(L, 1);
  luaL_checkstack(L, 16, NULL);
  lua_rawgeti(L, LUA_REGISTRYINDEX, s->layer->fn_ref[s->req->op]);
  lua_rawgeti(L, LUA_REGISTRYINDEX, s->layer->self_ref);
  int n = push_args(L, s->layer, s->req);
  if (lua_tocfunction(L, -n - 2) == perigee__async_call)
    s->t->calling = s->req; /* it takes that at once */
  lua_call(L, n + 1, LUA_MULTRET);
  if (PERIGEE_UNLIKELY(lua_gettop(L) != 2)) {
    lua_settop(L, lua_gettop(L) < 2 ? 2 : 3);
    if (lua_gettop(L) == 3) /* below the first one: only a message wants it */
      lua_insert(L, 2);
  }
  take_result(L, s);
  return 0;
}

/* ---- the call ------------------------------------------------------------------------------------ */

/* Lua says what cannot be, not what to do. */
static void explain_overflow(perigee_error *error) {
  static const char why[] = " (do overrides call operations that they override?)";
  size_t used = strlen(error->message);
  if (error->code == PERIGEE_ELUA && strstr(error->message, "C stack overflow") != NULL &&
      strstr(error->message, why) == NULL)
    snprintf(error->message + used, sizeof(error->message) - used, "%s", why);
}

static void decorate(perigee_error *error, const submission *s) {
  explain_overflow(error);
  if (error->op < 0)
    error->op = s->req->op;
  if (error->seq == 0)
    error->seq = s->req->seq;
  if (error->rank < 0)
    error->rank = s->layer->rank;
  if (error->group[0] == '\0')
    memcpy(error->group, s->layer->group_name, sizeof(error->group));
}

/* What Lua says about a yield where it cannot yield tells nobody what to do. */
static void explain_yield(perigee_error *error, const submission *s) {
  if (strstr(error->message, "attempt to yield ") == NULL)
    return;
  error->code = PERIGEE_ESTATE;
  snprintf(error->message, sizeof(error->message),
           "backend '%s': %s yielded, but it runs outside of a coroutine: an override that waits "
           "without "
           "blocking is made by perigee.async(function(self, ...) ... end)",
           s->layer->name, perigee_op_name(s->req->op));
}

static int enter_and_call(submission *s) {
  perigee__llayer *layer = s->layer;
  perigee_interp *interp = layer->interp;
  perigee__lthread *t;
  PERIGEE_TRY(perigee__enter(interp, timeout_of(s), layer->place[s->req->op], false, &t));
  s->t = t;
  uint64_t seq = t->seq;
  void *defer_for = t->defer_for;
  perigee__deferred *outer = t->deferred;
  perigee__task *task = t->task; /* of the caller, if it is Lua */
  t->task = NULL;
  t->seq = s->req->seq;
  t->defer_for = s->waits ? layer : NULL;
  t->deferred = NULL;
  perigee__stint stint;
  perigee__stint_begin(t, timeout_of(s), &stint);
  perigee_error error;
  lua_State *L = perigee__lthread_state(t);
  int rc = perigee__protect(L, body, s, &error);
  perigee__stint_end(t, L, &stint);
  t->seq = seq;
  t->defer_for = defer_for;
  t->task = task;
  perigee__deferred *left = t->deferred;
  perigee__deferred_mark(t);
  perigee__leave(interp, t);
  if (PERIGEE_UNLIKELY(left != NULL)) /* issued, but not what was returned */
    perigee__deferred_submit(t);
  t->deferred = outer;
  if (PERIGEE_LIKELY(rc == 0))
    return 0;
  perigee_work_unref(s->work);
  explain_yield(&error, s);
  decorate(&error, s);
  return perigee__fail_with(&error);
}

int perigee__trampoline_submit(void *self, const perigee_request *req, perigee_work **work_p) {
  submission s = {.layer = self, .req = req};
  PERIGEE_TRY(enter_and_call(&s));
  *work_p = s.work;
  return 0;
}

/* The methods of a table as Work, on the thread that waits for it: another one might be a rank that they wait for. */
static void run_drive(const submission *s) {
  perigee_interp *interp = s->layer->interp;
  perigee__lthread *t;
  if (perigee__enter(interp, PERIGEE_NEVER, s->layer->place[s->req->op], true, &t) < 0) {
    s->drive->drop(s->drive);
    return;
  }
  uint64_t seq = t->seq;
  void *defer_for = t->defer_for;
  t->seq = 0;
  t->defer_for = NULL;
  if (t->callbacks == 0)
    s->drive->run(t, perigee__lthread_state(t), s->drive);
  else /* it must not wait here, and neither will its caller */
    perigee__ready_push(interp, s->drive);
  t->seq = seq;
  t->defer_for = defer_for;
  perigee__leave(interp, t);
}

/* Wait for the work an override returned; what it needs from Lua (map) runs on this thread. */
static int wait_for(submission *s, int64_t deadline_ns) {
  perigee_interp *interp = s->layer->interp;
  if (s->work->ops != NULL) /* an engine runs it: it ends by its own deadline */
    return perigee__host_wait(interp, NULL, s->work, PERIGEE_TIMEOUT_NONE);
  int64_t left = deadline_ns == PERIGEE_NEVER
                     ? PERIGEE_TIMEOUT_NONE
                     : perigee__time_left(deadline_ns) + perigee__work_slack(s->work);
  perigee__running running = {.work = s->work};
  perigee__lock(&s->layer->running_lock);
  perigee__list_append(&s->layer->running, &running.node);
  perigee__unlock(&s->layer->running_lock);
  if (s->drive != NULL)
    run_drive(s);
  int rc = perigee__host_wait(interp, NULL, s->work, left);
  perigee__lock(&s->layer->running_lock);
  perigee__list_remove(&running.node);
  perigee__unlock(&s->layer->running_lock);
  if (rc != PERIGEE_EAGAIN)
    return rc;
  perigee_error late;
  perigee__error_set(&late, PERIGEE_ETIMEDOUT,
                     "timed out after %.1f s: backend '%s' did not complete it",
                     (double)timeout_of(s) / 1e9, s->layer->name);
  decorate(&late, s);
  perigee_future_set_error(s->work, &late);
  return perigee_work_wait(s->work, 0);
}

/* What was held back runs here, to its end. Returns its code when it is all there is to do, else 1. */
static int run_held_back(submission *s, perigee_error *error_p) {
  s->t->drains_next = s->work != NULL; /* in wait_for */
  int rc = perigee__deferred_run(s->deferred);
  s->t->drains_next = false;
  if (s->work != NULL) /* mapped from it: that has yet to run, and knows about a failure */
    return 1;
  if (PERIGEE_UNLIKELY(rc < 0)) {
    *error_p = *perigee_last_error();
    decorate(error_p, s);
  }
  return rc;
}

int perigee__trampoline_run(void *self, const perigee_request *req, perigee_error *error_p) {
  submission s = {.layer = self, .req = req, .waits = true};
  int rc = enter_and_call(&s);
  if (PERIGEE_UNLIKELY(rc < 0)) {
    *error_p = *perigee_last_error();
    return rc;
  }
  if (s.work == perigee_work_done())
    return 0;
  int64_t deadline_ns = s.work != NULL ? perigee__deadline_in(timeout_of(&s)) : PERIGEE_NEVER;
  if (s.deferred != NULL && (rc = run_held_back(&s, error_p)) <= 0)
    return rc;
  perigee_work_status status = perigee_work_get_status(s.work);
  if (status == PERIGEE_WORK_DONE ||
      (status == PERIGEE_WORK_PENDING && wait_for(&s, deadline_ns) == 0)) {
    perigee_work_unref(s.work);
    return 0;
  }
  if (perigee_work_is_completed(s.work))
    perigee__work_error_of(s.work, error_p);
  else
    *error_p = *perigee_last_error();
  decorate(error_p, &s);
  perigee_work_unref(s.work);
  return error_p->code;
}
