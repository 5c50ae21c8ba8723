#include "host/lperigee.h"

#include <dlfcn.h>
#include <stdlib.h>

#include <perigee/perigee.h>

#include "base/clock.h"
#include "host/call.h"
#include "host/codec.h"
#include "host/lasync.h"
#include "host/lbackend.h"
#include "host/lerror.h"
#include "host/lfuture.h"
#include "host/lgroup.h"
#include "host/linner.h"
#include "host/llimit.h"
#include "host/lop.h"
#include "host/lplugin.h"
#include "host/lrun.h"
#include "host/lstore.h"
#include "host/ltensor.h"
#include "host/ltesting.h"
#include "host/lwork.h"
#include "host/task.h"

static const char module_key; /* registry: the module table */

void perigee__push_module(lua_State *L) {
  if (lua_rawgetp(L, LUA_REGISTRYINDEX, &module_key) == LUA_TNIL) {
    lua_pop(L, 1);
    lua_newtable(L);
  }
}

/* perigee.step([seconds]): run the callbacks that are ready; whether there were any, and how many */
static int l_step(lua_State *L) {
  perigee_interp *interp = perigee__interp_here(L);
  int64_t ns = lua_isnoneornil(L, 1) ? 0 : perigee__seconds_arg(L, 1, "step", 1, true);
  size_t ran;
  perigee__pollfd_let_in(interp, L);
  perigee__check(L, perigee__host_step(interp, L, ns, &ran));
  lua_pushboolean(L, ran > 0);
  lua_pushinteger(L, (lua_Integer)ran);
  return 2;
}

/* perigee.pollfd(): a descriptor that is readable while step has something to do; pollfd(false): it is polled no more */
static int l_pollfd(lua_State *L) {
  perigee_interp *interp = perigee__interp_here(L);
  if (!lua_isnoneornil(L, 1)) {
    luaL_checktype(L, 1, LUA_TBOOLEAN);
    if (!lua_toboolean(L, 1)) {
      perigee_interp_pollfd_end(interp);
      return 0;
    }
  }
  int fd;
  perigee__check(L, perigee__pollfd_open(interp, true, &fd));
  lua_pushinteger(L, fd);
  return 1;
}

/* perigee.timeout(): seconds after which step wants to be called whatever the descriptor says; nil: never */
static int l_timeout(lua_State *L) {
  int64_t ns = perigee_interp_timeout(perigee__interp_here(L));
  if (ns == PERIGEE_TIMEOUT_NONE)
    lua_pushnil(L);
  else
    lua_pushnumber(L, (double)ns / 1e9);
  return 1;
}

/* perigee.clock(): seconds of a clock that never jumps */
static int l_clock(lua_State *L) {
  lua_pushnumber(L, (double)perigee__now_ns() / 1e9);
  return 1;
}

static int sleep_continues(lua_State *L, int status, lua_KContext ctx) {
  (void)status;
  (void)ctx;
  perigee__task_woken(L);
  return 0;
}

/* perigee.sleep(seconds): other threads run Lua meanwhile, and other tasks where it can yield */
static int l_sleep(lua_State *L) {
  perigee_interp *interp = perigee__interp_here(L);
  int64_t ns = perigee__seconds_arg(L, 1, "sleep", 1, true);
  perigee__task *task = perigee__task_here(perigee__lthread_here(interp, L), L);
  if (task != NULL && !task->straight)
    return perigee__task_sleep(L, task, ns, 0, sleep_continues);
  perigee__gap gap;
  perigee__gap_open(interp, L, &gap);
  int rc = perigee__lthread_sleep(gap.t, ns);
  perigee__gap_close(interp, &gap);
  perigee__check(L, rc);
  return 0;
}

static const char *form_name(perigee_form form) {
  static const char *const names[] = {"none", "one", "list", "lists", "inplace"};
  return (size_t)form < PERIGEE_COUNT(names) ? names[form] : "?";
}

/* perigee.ops(): the operation table, for documentation and tests */
static int l_ops(lua_State *L) {
  static const struct {
    unsigned bit;
    const char *name;
  } bits[] = {{PERIGEE_OPT_TIMEOUT, "timeout"}, {PERIGEE_OPT_REDOP, "op"},
              {PERIGEE_OPT_ROOT, "root"},       {PERIGEE_OPT_WAIT_ALL, "wait_all_ranks"},
              {PERIGEE_OPT_SPLITS, "splits"},   {PERIGEE_OPT_DST, "dst"},
              {PERIGEE_OPT_SRC, "src"},         {PERIGEE_OPT_TAG, "tag"}};
  lua_createtable(L, PERIGEE_OP_COUNT, 0);
  for (int op = 0; op < PERIGEE_OP_COUNT; op++) {
    const perigee_op_info *info = perigee_op_get(op);
    lua_createtable(L, 0, 5); // [ ops, row ]
    lua_pushstring(L, info->name);
    lua_setfield(L, -2, "name");
    lua_pushstring(L, info->aliases);
    lua_setfield(L, -2, "aliases");
    lua_pushstring(L, form_name(info->out));
    lua_setfield(L, -2, "out");
    lua_pushstring(L, form_name(info->in));
    lua_setfield(L, -2, "in");
    lua_createtable(L, 0, 4);
    for (size_t i = 0; i < PERIGEE_COUNT(bits); i++)
      if (info->opts & bits[i].bit) {
        lua_pushboolean(L, 1);
        lua_setfield(L, -2, bits[i].name);
      }
    lua_setfield(L, -2, "takes");
    lua_rawseti(L, -2, op + 1);
  }
  return 1;
}

/* perigee.stats(): what the interpreter holds, for tests and diagnosis */
static int l_stats(lua_State *L) {
  perigee_interp_stats stats;
  perigee_interp_stats_get(perigee__interp_here(L), &stats);
  lua_createtable(L, 0, 4);
  lua_pushinteger(L, stats.refs);
  lua_setfield(L, -2, "refs");
  lua_pushinteger(L, stats.threads);
  lua_setfield(L, -2, "threads");
  lua_pushinteger(L, (lua_Integer)stats.waits);
  lua_setfield(L, -2, "waits");
  lua_pushinteger(L, stats.ready);
  lua_setfield(L, -2, "ready");
  return 1;
}

static void add_values(lua_State *L) {
  static const char *const dtypes[] = {
#define XX(_id, _NAME, _name, _size) #_name,
      PERIGEE_DTYPE_MAP(XX)
#undef XX
  };
  lua_pushstring(L, perigee_version());
  lua_setfield(L, -2, "version");
  lua_createtable(L, PERIGEE_DTYPE_COUNT, 0);
  for (int i = 0; i < PERIGEE_DTYPE_COUNT; i++) {
    lua_pushstring(L, dtypes[i]);
    lua_rawseti(L, -2, i + 1);
  }
  lua_setfield(L, -2, "dtypes");
}

/*
 * lua_close unloads C modules; threads of ours, the callbacks of thread-local storage and backends that were registered may
 * outlive the state, so the library stays where it is.
 */
static void stay_loaded(void) {
  Dl_info info;
  if (dladdr((const void *)&module_key, &info) != 0 && info.dli_fname != NULL) {
    void *handle = dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD | RTLD_NODELETE);
    (void)handle; /* never closed: that is the point */
  }
}

int luaopen_perigee_core(lua_State *L) {
  /* The box comes before every other object: then it is finalized last. */
  perigee__interp_of_state(L);
  if (lua_rawgetp(L, LUA_REGISTRYINDEX, &module_key) == LUA_TTABLE)
    return 1;
  lua_pop(L, 1);
  stay_loaded();
  static const luaL_Reg functions[] = {
      {"clock", l_clock},     {"sleep", l_sleep}, {"step", l_step},   {"pollfd", l_pollfd},
      {"timeout", l_timeout}, {"ops", l_ops},     {"stats", l_stats}, {NULL, NULL},
  };
  lua_newtable(L);
  perigee__functions_add(L, functions);
  add_values(L);
  perigee__lerror_open(L);
  perigee__ltensor_open(L);
  perigee__lop_open(L);
  perigee__codec_open(L);
  perigee__lwork_open(L);
  perigee__lfuture_open(L);
  perigee__lasync_open(L);
  perigee__lrun_open(L);
  perigee__lstore_open(L);
  perigee__lgroup_open(L);
  perigee__linner_open(L);
  perigee__lbackend_open(L);
  perigee__llimit_open(L);
  perigee__lplugin_open(L);
  perigee__ltesting_open(L);
  lua_pushvalue(L, -1);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &module_key);
  return 1;
}
