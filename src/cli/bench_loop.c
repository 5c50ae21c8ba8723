#include "cli/bench_loop.h"

#include <stdlib.h>
#include <string.h>

#include <lauxlib.h>

#include <perigee/group.h>

#include "base/clock.h"
#include "base/error.h"
#include "host/call.h"
#include "host/lerror.h"
#include "host/lgroup.h"
#include "host/ltensor.h"

/* What a loop works with; nothing in it touches Lua. */
typedef struct bench_loop {
  perigee_group *group;
  const perigee_request *req; /* of one call */
  int iters, rank, width;     /* width: messages in flight */
  lua_Integer units;          /* of computing */
  perigee_tensor *message, *answer;
  double *us;            /* [iters], one sample per call */
  perigee_work **flight; /* [width] */
} bench_loop;

typedef int loop_fn(bench_loop *l);

static double us_since(int64_t start) { return (double)(perigee__now_ns() - start) / 1e3; }

/* ---- loops ------------------------------------------------------------------------------------------- */

static int loop_calls(bench_loop *l) {
  for (int i = 0; i < l->iters; i++) {
    int64_t start = perigee__now_ns();
    PERIGEE_TRY(perigee_group_run(l->group, l->req));
    l->us[i] = us_since(start);
    PERIGEE_TRY(perigee_barrier(l->group));
  }
  return 0;
}

static int loop_back_to_back(bench_loop *l) {
  int64_t start = perigee__now_ns();
  for (int i = 0; i < l->iters; i++)
    PERIGEE_TRY(perigee_group_run(l->group, l->req));
  double each = us_since(start) / l->iters;
  for (int i = 0; i < l->iters; i++)
    l->us[i] = each;
  return 0;
}

static int loop_idle(bench_loop *l) {
  memset(l->us, 0, (size_t)l->iters * sizeof(*l->us));
  for (int i = 0; i < l->iters; i++)
    PERIGEE_TRY(perigee_barrier(l->group));
  return 0;
}

/* Arithmetic on 4 KiB, so that it competes for a core and not for memory. */
static void compute(lua_Integer units) {
  static float a[1024];
  for (lua_Integer u = 0; u < units; u++)
    for (size_t i = 0; i < PERIGEE_COUNT(a); i++)
      a[i] = a[i] * 0.999f + 1.0f;
  __asm__ volatile("" : : "r"(a) : "memory"); /* a is used */
}

/* What overlap is held against: it has what the ranks' computations differ by, as overlap has. */
static int loop_in_turn(bench_loop *l) {
  for (int i = 0; i < l->iters; i++) {
    int64_t start = perigee__now_ns();
    compute(l->units);
    PERIGEE_TRY(perigee_group_run(l->group, l->req));
    l->us[i] = us_since(start);
    PERIGEE_TRY(perigee_barrier(l->group));
  }
  return 0;
}

static int loop_overlap(bench_loop *l) {
  for (int i = 0; i < l->iters; i++) {
    int64_t start = perigee__now_ns();
    perigee_work *work;
    PERIGEE_TRY(perigee_group_submit(l->group, l->req, &work));
    compute(l->units);
    int rc = perigee_work_wait(work, PERIGEE_TIMEOUT_NONE);
    if (rc < 0 && perigee_work_error(work) != NULL)
      perigee__fail_with(perigee_work_error(work));
    perigee_work_unref(work);
    if (rc < 0)
      return rc;
    l->us[i] = us_since(start);
    PERIGEE_TRY(perigee_barrier(l->group));
  }
  return 0;
}

/* Calls without a pause in between, one look at the clock for each: the end of one is the beginning of the next. */
static double us_since_last(int64_t *last) {
  int64_t now = perigee__now_ns(), passed = now - *last;
  *last = now;
  return (double)passed / 1e3;
}

static int loop_pingpong(bench_loop *l) {
  int64_t last = perigee__now_ns();
  for (int i = 0; i < l->iters; i++) {
    if (l->rank == 0) {
      PERIGEE_TRY(perigee_send(l->group, l->message, 1, 1));
      PERIGEE_TRY(perigee_recv(l->group, l->answer, 1, 1));
    } else if (l->rank == 1) {
      PERIGEE_TRY(perigee_recv(l->group, l->answer, 0, 1));
      PERIGEE_TRY(perigee_send(l->group, l->message, 0, 1));
    }
    l->us[i] = us_since_last(&last) / 2;
  }
  return 0;
}

/* Waits for all that are in flight; the first failure is told. */
static int land(bench_loop *l, int flying) {
  int rc = 0;
  for (int k = 0; k < flying; k++) {
    int one = perigee_work_wait(l->flight[k], PERIGEE_TIMEOUT_NONE);
    if (one < 0 && rc == 0) {
      rc = one;
      if (perigee_work_error(l->flight[k]) != NULL)
        perigee__fail_with(perigee_work_error(l->flight[k]));
    }
    perigee_work_unref(l->flight[k]);
  }
  return rc;
}

static int fly(bench_loop *l, perigee_request *req) {
  for (int k = 0; k < l->width; k++) {
    int rc = perigee_group_submit(l->group, req, &l->flight[k]);
    if (rc < 0) {
      perigee_error error = *perigee_last_error();
      int landed = land(l, k);
      (void)landed; /* the first failure is told */
      return perigee__fail_with(&error);
    }
  }
  return land(l, l->width);
}

static int loop_window(bench_loop *l) {
  perigee_request req;
  perigee_request_init(&req, l->rank == 0 ? PERIGEE_OP_SEND : PERIGEE_OP_RECV);
  req.peer = 1 - l->rank;
  req.tag = 2;
  *(l->rank == 0 ? &req.in : &req.out) = (perigee_tensors){&l->message, 1, 0};
  int64_t last = perigee__now_ns();
  for (int i = 0; i < l->iters; i++) {
    if (l->rank <= 1)
      PERIGEE_TRY(fly(l, &req));
    if (l->rank == 0)
      PERIGEE_TRY(perigee_recv(l->group, l->answer, 1, 3));
    if (l->rank == 1)
      PERIGEE_TRY(perigee_send(l->group, l->answer, 0, 3));
    l->us[i] = us_since_last(&last) / l->width;
  }
  return 0;
}

/* ---- from Lua ---------------------------------------------------------------------------------------- */

enum { /* upvalues of a loop; 1 is the interpreter's box */
  UP_FN = 2,
  UP_OP,
  UP_ITERS,
  UP_EXTRA
};

static loop_fn *const loops[] = {loop_calls, loop_back_to_back, loop_in_turn, loop_overlap,
                                 loop_idle,  loop_pingpong,     loop_window};
enum {
  CALLS,
  BACK_TO_BACK,
  IN_TURN,
  OVERLAP,
  IDLE,
  PINGPONG,
  WINDOW
};

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static int push_summary(lua_State *L, const bench_loop *l) {
  double sum = 0;
  for (int i = 0; i < l->iters; i++)
    sum += l->us[i];
  qsort(l->us, (size_t)l->iters, sizeof(*l->us), by_value);
  lua_pushnumber(L, sum / l->iters);
  lua_pushnumber(L, l->us[0]);
  lua_pushnumber(L, l->us[l->iters / 2]);
  lua_pushnumber(L, l->us[(int)((int64_t)l->iters * 99 / 100)]);
  return 4;
}

static perigee_tensor *tensor_at(lua_State *L, int index) {
  perigee_tensor *tensor = perigee__tensor_get(L, index);
  luaL_argexpected(L, tensor != NULL, index, "tensor");
  return tensor;
}

/* loop(group, arguments of one call...) */
static int l_loop(lua_State *L) {
  perigee_interp *interp = perigee__interp_here(L);
  int fn = (int)lua_tointeger(L, lua_upvalueindex(UP_FN));
  const perigee__lgroup *g = perigee__lgroup_self(L, "loop");
  bench_loop l = {.group = g->box.ptr, .rank = g->rank, .width = 1};
  l.iters = (int)lua_tointeger(L, lua_upvalueindex(UP_ITERS));
  l.units = lua_tointeger(L, lua_upvalueindex(UP_EXTRA));
  perigee__call call = {.rank = g->rank, .nranks = g->nranks};
  if (fn <= OVERLAP) {
    perigee__call_parse(L, (int)lua_tointeger(L, lua_upvalueindex(UP_OP)), &call);
    l.req = &call.req;
  } else if (fn >= PINGPONG) {
    luaL_argcheck(L, g->nranks >= 2, 1, "two ranks are needed");
    l.message = tensor_at(L, 2);
    l.answer = tensor_at(L, 3);
    l.width = fn == WINDOW ? (int)l.units : 1;
  }
  l.us = lua_newuserdatauv(L, (size_t)l.iters * sizeof(*l.us), 0);
  l.flight = lua_newuserdatauv(L, (size_t)l.width * sizeof(perigee_work *), 0);
  perigee__gap gap;
  perigee__gap_open(interp, L, &gap);
  perigee__call_pin(&call);
  int rc = loops[fn](&l);
  perigee__call_unpin(&call);
  perigee__gap_close(interp, &gap);
  perigee__check(L, rc);
  return push_summary(L, &l);
}

static int count_arg(lua_State *L, int index) {
  lua_Integer n = luaL_checkinteger(L, index);
  luaL_argcheck(L, n >= 1 && n <= 10000000, index, "from 1 to 10000000");
  return (int)n;
}

static int push_loop(lua_State *L, int fn, int op, int iters, lua_Integer extra) {
  perigee__interp_push_box(L);
  lua_pushinteger(L, fn);
  lua_pushinteger(L, op);
  lua_pushinteger(L, iters);
  lua_pushinteger(L, extra);
  lua_pushcclosure(L, l_loop, UP_EXTRA);
  return 1;
}

static int op_arg(lua_State *L, int index) {
  int op = perigee_op_find(luaL_checkstring(L, index));
  luaL_argcheck(L, op >= 0, index, "no operation");
  return op;
}

static int l_calls(lua_State *L) { return push_loop(L, CALLS, op_arg(L, 1), count_arg(L, 2), 0); }
static int l_back_to_back(lua_State *L) {
  return push_loop(L, BACK_TO_BACK, op_arg(L, 1), count_arg(L, 2), 0);
}
static int l_overlap(lua_State *L) {
  return push_loop(L, OVERLAP, op_arg(L, 1), count_arg(L, 2), luaL_checkinteger(L, 3));
}
static int l_in_turn(lua_State *L) {
  return push_loop(L, IN_TURN, op_arg(L, 1), count_arg(L, 2), luaL_checkinteger(L, 3));
}
static int l_idle(lua_State *L) { return push_loop(L, IDLE, 0, count_arg(L, 1), 0); }
static int l_pingpong(lua_State *L) { return push_loop(L, PINGPONG, 0, count_arg(L, 1), 0); }
static int l_window(lua_State *L) {
  return push_loop(L, WINDOW, 0, count_arg(L, 1), count_arg(L, 2));
}

static int l_compute(lua_State *L) {
  lua_Integer units = luaL_checkinteger(L, 1);
  int64_t start = perigee__now_ns();
  compute(units);
  lua_pushnumber(L, us_since(start));
  return 1;
}

int perigee__bench_loop_open(lua_State *L) {
  static const luaL_Reg functions[] = {{"calls", l_calls},
                                       {"back_to_back", l_back_to_back},
                                       {"in_turn", l_in_turn},
                                       {"overlap", l_overlap},
                                       {"idle", l_idle},
                                       {"pingpong", l_pingpong},
                                       {"window", l_window},
                                       {"compute", l_compute},
                                       {NULL, NULL}};
  luaL_newlib(L, functions);
  return 1;
}
