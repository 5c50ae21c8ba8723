#include "host/lasync.h"

#include "group/work.h"
#include "host/call.h"
#include "host/lerror.h"
#include "host/lwork.h"
#include "host/task.h"

static const char
    lines_key; /* registry: first argument -> Work of the newest ordered task, weak keys */
static const char taker_key; /* registry: who makes tasks instead (a simulated world), or nil */

/* ---- perigee.async --------------------------------------------------------------------------------- */

/* [-0, +0, e] The task stands behind the newest one with the same first argument, which is at `key`. */
static void start_in_order(lua_State *L, perigee__lthread *t, perigee__task *task, int key) {
  int top = lua_gettop(L);
  lua_rawgetp(L, LUA_REGISTRYINDEX, &lines_key);
  lua_pushvalue(L, key);
  lua_rawget(L, -2); // [ lines, turn of the newest | nil ]
  const perigee__lwork *before = perigee__object_get(L, -1, &perigee__type_work);
  lua_pushvalue(L, key);
  perigee__lwork *turn = perigee__lwork_new(L);
  perigee_work *work;
  perigee__check(L, perigee_future_create(NULL, NULL, PERIGEE_NEVER, &work));
  turn->box.ptr = work;
  task->turn = perigee_work_ref(work);
  lua_rawset(L, -4); // [ lines, turn of the newest | nil ]
  if (before != NULL && before->box.ptr != NULL && !perigee_work_is_completed(before->box.ptr))
    perigee__task_start_after(L, task, before->box.ptr);
  else
    perigee__task_start(t, L, task);
  lua_settop(L, top);
}

/* Upvalues: box, function, whether calls are ordered. Index 1 .. n: the arguments. */
int perigee__async_call(lua_State *L) {
  perigee_interp *interp = perigee__interp_here(L);
  perigee__lthread *t = perigee__lthread_here(interp, L);
  const perigee_request *req = t->calling;
  t->calling = NULL;
  int n = lua_gettop(L);
  bool ordered = lua_toboolean(L, lua_upvalueindex(3));
  luaL_checkstack(L, n + 8, NULL);
  if (PERIGEE_UNLIKELY(lua_rawgetp(L, LUA_REGISTRYINDEX, &taker_key) != LUA_TNIL)) {
    lua_insert(L, 1);
    lua_pushvalue(L, lua_upvalueindex(2));
    lua_insert(L, 2);
    lua_pushboolean(L, ordered);
    lua_insert(L, 3); // [ taker, f, ordered, args... ]
    lua_call(L, n + 2, 1);
    return 1;
  }
  lua_pop(L, 1);
  int key = 0;
  if (ordered) {
    if (n == 0 || lua_isnil(L, 1))
      perigee__raise_arg(L, "ordered async function", 1, "self expected, got nil");
    lua_pushvalue(L, 1);
    lua_insert(L, 1);
    key = 1;
  }
  lua_pushvalue(L, lua_upvalueindex(2));
  lua_insert(L, key + 1);
  perigee__task *task = perigee__task_create(L, t, n, req); // [ key?, work ]
  /* Only an override itself: what it starts besides must not hold up the rest of it. */
  task->straight = req != NULL && t->defer_for != NULL && t->callbacks == 0;
  if (ordered)
    start_in_order(L, t, task, key);
  else
    perigee__task_start(t, L, task);
  return 1;
}

/* perigee.async(f [, {ordered =}]): f as a function that returns a Work at once and waits without blocking */
static int l_async(lua_State *L) {
  static const char *const known[] = {"ordered", NULL};
  bool ordered = false;
  if (lua_type(L, 1) != LUA_TFUNCTION)
    perigee__raise_arg(L, "async", 1, "function expected, got %s", perigee__type_name(L, 1));
  if (!lua_isnoneornil(L, 2)) {
    if (lua_type(L, 2) != LUA_TTABLE)
      perigee__raise_arg(L, "async", 2, "options table expected, got %s", perigee__type_name(L, 2));
    perigee__check_keys(L, 2, "async", 2, known);
    lua_getfield(L, 2, "ordered");
    ordered = lua_toboolean(L, -1);
  }
  perigee__interp_push_box(L);
  lua_pushvalue(L, 1);
  lua_pushboolean(L, ordered);
  lua_pushcclosure(L, perigee__async_call, 3);
  return 1;
}

/* _testing.take_tasks(f | nil): async functions call f(function, ordered, ...) instead of starting a task */
static int l_take_tasks(lua_State *L) {
  lua_settop(L, 1);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &taker_key);
  return 0;
}

/* _testing.task_taker(): that function, or nil */
static int l_task_taker(lua_State *L) {
  lua_rawgetp(L, LUA_REGISTRYINDEX, &taker_key);
  return 1;
}

/* _testing.task_maker(coroutine): the coroutine that is calling the async function that runs in this one, up to its first wait;
 * nil otherwise */
static int l_task_maker(lua_State *L) {
  const perigee_interp *interp = perigee__interp_here(L);
  const lua_State *co = lua_tothread(L, 1);
  PERIGEE_LIST_EACH(it, &interp->tasks) {
    const perigee__task *task = PERIGEE_CONTAINER_OF(it, perigee__task, node);
    if (co == NULL || task->co != co || task->maker == NULL)
      continue;
    if (!lua_checkstack(task->maker, 1))
      return 0;
    lua_pushthread(task->maker);
    lua_xmove(task->maker, L, 1);
    return 1;
  }
  return 0;
}

const luaL_Reg perigee__lasync_testing[] = {{"take_tasks", l_take_tasks},
                                            {"task_taker", l_task_taker},
                                            {"task_maker", l_task_maker},
                                            {NULL, NULL}};

void perigee__lasync_open(lua_State *L) {
  static const luaL_Reg functions[] = {{"async", l_async}, {NULL, NULL}};
  perigee__functions_add(L, functions);
  lua_newtable(L);
  lua_createtable(L, 0, 1);
  lua_pushliteral(L, "k");
  lua_setfield(L, -2, "__mode");
  lua_setmetatable(L, -2);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &lines_key);
}
