/* Running Lua text from C: scripts, and files that make a backend. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "host/interp.h"

#include "host/lbackend.h"
#include "host/lerror.h"

typedef struct run_args {
  const char *path, *text, *name; /* path or text */
  const char *backend;            /* the name to register under, or NULL */
} run_args;

/* [-0, +1, e] */
static void load_chunk(lua_State *L, const run_args *args) {
  int status;
  if (args->path != NULL) {
    if (access(args->path, R_OK) != 0)
      perigee__raise(L, errno == ENOENT ? PERIGEE_ENOENT : -errno, "cannot read %s: %s", args->path,
                     strerror(errno));
    status = luaL_loadfilex(L, args->path, "t");
  } else {
    lua_pushfstring(L, "=%s", args->name != NULL ? args->name : "string");
    status = luaL_loadbufferx(L, args->text, strlen(args->text), lua_tostring(L, -1), "t");
    lua_remove(L, -2);
  }
  if (status != LUA_OK)
    lua_error(L);
}

/* Run a chunk that makes a backend. [-0, +n, e] */
static void run_backend(lua_State *L, const run_args *args) {
  load_chunk(L, args);
  perigee_interp *interp = perigee__interp_of_state(L);
  interp->last_backend[0] = '\0';
  lua_pushstring(L, args->backend);
  lua_call(L, 1, 1);
  if (lua_type(L, -1) == LUA_TTABLE) {
    perigee__backend_adopt(L, args->backend);
    return;
  }
  if (strcmp(interp->last_backend, args->backend) != 0)
    perigee__raise(L, PERIGEE_ELUATYPE,
                   "%s must return a backend table or call perigee.backend(\"%s\"); it returned %s",
                   args->path != NULL ? args->path : "the chunk", args->backend,
                   perigee__type_name(L, -1));
}

void perigee__backend_run_file(lua_State *L, const char *path, const char *name) {
  const run_args args = {.path = path, .backend = name};
  run_backend(L, &args);
}

static int run_body(lua_State *L) {
  const run_args *args = lua_touserdata(L, 1);
  if (args->backend != NULL) {
    run_backend(L, args);
    return 0;
  }
  load_chunk(L, args);
  lua_call(L, 0, 0);
  return 0;
}

static int run(perigee_interp *interp, run_args *args) {
  perigee__lthread *t;
  PERIGEE_TRY(perigee__enter(interp, perigee__enter_timeout(interp), "a script run by a C program",
                             false, &t));
  perigee_error error;
  int rc = perigee__protect(perigee__lthread_state(t), run_body, args, &error);
  perigee__leave(interp, t);
  return rc < 0 ? perigee__fail_with(&error) : 0;
}

int perigee_interp_run_file(perigee_interp *interp, const char *path) {
  run_args args = {.path = path};
  return run(interp, &args);
}

int perigee_interp_run_string(perigee_interp *interp, const char *text, const char *name) {
  run_args args = {.text = text, .name = name};
  return run(interp, &args);
}

int perigee_interp_load_backend(perigee_interp *interp, const char *path, const char *name) {
  run_args args = {.path = path, .backend = name};
  return run(interp, &args);
}

int perigee_interp_load_backend_string(perigee_interp *interp, const char *text, const char *name) {
  run_args args = {.text = text, .name = name, .backend = name};
  return run(interp, &args);
}
