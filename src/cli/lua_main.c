#include "cli/lua_main.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>

#include <perigee/export.h>

#include "cli/bench_loop.h"
#include "cli/paths.h"
#include "cli/rank.h"

PERIGEE_API int luaopen_perigee_core(lua_State *L);

/* ---- telling the launcher ---------------------------------------------------------------------------- */

static int report_fd = -1;

static void take_report_fd(void) {
  const char *text = getenv(PERIGEE_REPORT_FD);
  if (text == NULL)
    return;
  int fd = atoi(text);
  if (fd > STDERR_FILENO && fcntl(fd, F_SETFD, FD_CLOEXEC) == 0)
    report_fd = fd;
  unsetenv(PERIGEE_REPORT_FD);
}

/* [-0, +1, -] Raw access only: an error object's own code must not run once more. */
static void raw_field(lua_State *L, int index, const char *name) {
  lua_pushstring(L, name);
  lua_rawget(L, index);
}

/* [-0, +0, -] Whether an error object says that somebody else was first: a peer is gone, or a group was aborted by another rank. */
static bool is_consequence(lua_State *L, int index) {
  static const char *const codes[] = {"EPEERDEAD", "EPEERCLOSED", "EUNREACH"};
  if (lua_type(L, index) != LUA_TTABLE)
    return false;
  raw_field(L, index, "code");
  const char *code = lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1) : "";
  bool yes = false;
  for (size_t i = 0; i < PERIGEE_COUNT(codes); i++)
    yes = yes || strcmp(code, codes[i]) == 0;
  raw_field(L, index, "origin");
  raw_field(L, index, "rank");
  if (strcmp(code, "EABORTED") == 0)
    yes = lua_isinteger(L, -2) && !lua_rawequal(L, -1, -2);
  lua_pop(L, 3);
  return yes;
}

/* Peers learn of the failure when the state is closed; the launcher has to know before. */
static void report_failure(bool consequence) {
  if (report_fd < 0)
    return;
  char word = consequence ? PERIGEE_REPORT_CONSEQUENCE : PERIGEE_REPORT_CAUSE;
  ssize_t n = write(report_fd, &word, 1);
  (void)n; /* without a launcher nobody has to know */
  close(report_fd);
  report_fd = -1;
}

/* ---- running the script ------------------------------------------------------------------------------ */

/* [-1, +1, m] Message handler: text and traceback, and whether it is a consequence is kept in *upvalue. */
static int traceback(lua_State *L) {
  bool *consequence = lua_touserdata(L, lua_upvalueindex(1));
  *consequence = is_consequence(L, 1);
  const char *text = lua_tostring(L, 1);
  if (text == NULL) {
    if (luaL_callmeta(L, 1, "__tostring") && lua_type(L, -1) == LUA_TSTRING)
      text = lua_tostring(L, -1);
    else
      text = lua_pushfstring(L, "(error object is a %s value)", luaL_typename(L, 1));
  }
  luaL_traceback(L, L, NULL, 1);
  const char *here = lua_tostring(L, -1);
  const char *there =
      here; /* where it was raised at first, if that was elsewhere: in an override, say */
  if (lua_type(L, 1) == LUA_TTABLE) {
    raw_field(L, 1, "traceback");
    if (lua_type(L, -1) == LUA_TSTRING)
      there = lua_tostring(L, -1);
  }
  const char *places = strchr(there, '\n'); /* without its headline */
  if (places == NULL || strstr(here, places) != NULL)
    lua_pushfstring(L, "%s\n%s", text, here);
  else
    lua_pushfstring(L, "%s\n%s\nreported at\n%s", text, there, here);
  return 1;
}

/* [-0, +0, m] arg[0] is the script, as lua5.4 sets it; what comes before has negative indices. */
static void set_arg(lua_State *L, int argc, char **argv, int script) {
  lua_createtable(L, argc - script - 1, script + 1);
  for (int i = 0; i < argc; i++) {
    lua_pushstring(L, argv[i]);
    lua_rawseti(L, -2, i - script);
  }
  lua_setglobal(L, "arg");
}

/* [-0, +0, e] The module is in the command; its Lua part is found before whatever LUA_PATH names. */
static void set_paths(lua_State *L) {
  lua_getglobal(L, "package");
  lua_getfield(L, -1, "path");
  const char *dir = perigee__lua_dir();
  lua_pushfstring(L, "%s/?.lua;%s/?/init.lua;%s", dir, dir, lua_tostring(L, -1));
  lua_setfield(L, -3, "path");
  lua_pop(L, 1);
  lua_getfield(L, -1, "preload");
  lua_pushcfunction(L, luaopen_perigee_core);
  lua_setfield(L, -2, "perigee.core");
  lua_pushcfunction(L, perigee__bench_loop_open);
  lua_setfield(L, -2, "perigee.bench.loop");
  lua_pop(L, 2);
}

typedef struct run_args {
  int argc;
  char **argv;
  bool consequence;
} run_args;

enum {
  SCRIPT = 2
};

/* [-1, +1, e] Everything that may raise; returns whether the script succeeded. */
static int protected_main(lua_State *L) {
  run_args *args = lua_touserdata(L, 1);
  luaL_checkversion(L);
  luaL_openlibs(L);
  lua_warning(L, "@on", 0);
  set_arg(L, args->argc, args->argv, SCRIPT);
  set_paths(L);

  lua_pushlightuserdata(L, &args->consequence);
  lua_pushcclosure(L, traceback, 1);
  int handler = lua_gettop(L);
  int status = luaL_loadfilex(L, args->argv[SCRIPT], "t");
  if (status == LUA_OK) {
    int n = args->argc - SCRIPT - 1;
    luaL_checkstack(L, n, "too many arguments to script");
    for (int i = 0; i < n; i++)
      lua_pushstring(L, args->argv[SCRIPT + 1 + i]);
    status = lua_pcall(L, n, 0, handler);
  }
  if (status != LUA_OK) {
    const char *text = lua_tostring(L, -1);
    /* One piece, so that it does not mix with what other threads say. */
    lua_pushfstring(L, "perigee: %s\n", text != NULL ? text : "error object is not a string");
    fflush(stdout);
    fputs(lua_tostring(L, -1), stderr);
    report_failure(args->consequence);
  }
  lua_pushboolean(L, status == LUA_OK);
  return 1;
}

int perigee__lua_main(int argc, char **argv) {
  if (argc <= SCRIPT) {
    fprintf(stderr, "Usage: perigee lua SCRIPT.lua [ARGUMENT...]\n");
    return 2;
  }
  take_report_fd();
  setvbuf(stdout, NULL, _IOLBF, BUFSIZ); /* through a pipe too, or a crash loses what was said */
  lua_State *L = luaL_newstate();
  if (L == NULL) {
    fprintf(stderr, "perigee: no memory for an interpreter\n");
    return 1;
  }
  run_args args = {.argc = argc, .argv = argv};
  lua_pushcfunction(L, protected_main);
  lua_pushlightuserdata(L, &args);
  int status = lua_pcall(L, 1, 1, 0);
  if (status != LUA_OK) {
    const char *text = lua_tostring(L, -1);
    fprintf(stderr, "perigee: %s\n", text != NULL ? text : "error object is not a string");
    report_failure(false);
  }
  bool ok = status == LUA_OK && lua_toboolean(L, -1);
  lua_close(L);
  return ok ? EXIT_SUCCESS : EXIT_FAILURE;
}

const char *perigee__lua_release(void) { return LUA_RELEASE; }
