/*
 * Backends written in Lua.
 *
 * perigee.backend(name) makes a table B and registers a backend of that name. When a group opens with it, each group gets an
 * instance: a table whose metatable is {__index = B}, with the fields inner, rank, size, store, group_name, name. The functions
 * that handle operations are looked up through the instance once, after its open method has run, and kept as references.
 */
#ifndef PERIGEE_HOST_LBACKEND_H
#define PERIGEE_HOST_LBACKEND_H

#include <perigee/backend.h>

#include "host/call.h"
#include "host/object.h"

/* A backend as the registry of the group layer holds it. */
typedef struct perigee__lbackend {
  perigee_interp *interp; /* counted */
  perigee__luaref *table;
} perigee__lbackend;

/* One layer of one group whose backend is a Lua table. */
typedef struct perigee__llayer {
  _Atomic uint32_t refs; /* the group's, and one per inner object */
  _Atomic bool closed;
  perigee_interp *interp; /* counted */
  perigee_layer *layer;   /* valid until closed */
  char name[64], group_name[64];
  char shown[64]; /* what backend_name said */
  int rank, nranks;
  _Atomic int64_t timeout_ns; /* relaxed: a call sees the old or the new one */
  perigee_mutex running_lock; /* rank LEAF */
  perigee__node running; /* perigee__running: works of scripts that a synchronous call waits for */
  /* under the interpreter's mutex */
  int self_ref;
  int method_ref[PERIGEE_METHOD_COUNT];
  int fn_ref[PERIGEE_OP_COUNT];
  const char *place[PERIGEE_OP_COUNT];
  perigee__opts_cache opts[PERIGEE_OP_COUNT];
} perigee__llayer;

/* A synchronous call that waits for a work only a script completes: abort and close end it. On the caller's stack. */
typedef struct perigee__running {
  perigee__node node;
  perigee_work *work; /* the caller holds a reference */
} perigee__running;

extern const perigee_backend_ops_v1 perigee__lua_backend_ops;

void perigee__llayer_unref(perigee__llayer *layer);
/** [-0, +1, m] The object `self.inner`; takes a reference on the layer. */
PERIGEE_RAISES void perigee__inner_push(lua_State *L, perigee__llayer *layer);

/** Trampoline: contracts of perigee_backend_ops_v1. */
int perigee__trampoline_submit(void *self, const perigee_request *req, perigee_work **work_p);
int perigee__trampoline_run(void *self, const perigee_request *req, perigee_error *error_p);
/** What an override returned (on top of the stack) as a work, returned owned: a Work, a table as Work, or true; NULL when it is none of
 *  these. req: the operation, or NULL. drive_p: as perigee__table_work. [-0, +0, e] */
PERIGEE_RAISES perigee_work *perigee__result_work(lua_State *L, perigee__llayer *layer,
                                                  const perigee_request *req, int64_t timeout_ns,
                                                  perigee__ready **drive_p);

/** Raise when `name` is an operation misspelt, or when B holds an operation under two names. B at index. [-0, +0, e] */
PERIGEE_RAISES void perigee__backend_check_name(lua_State *L, int index, const char *name);
/** The same for every function of the table at index. [-0, +0, e] */
PERIGEE_RAISES void perigee__backend_check_table(lua_State *L, int index);
/** The function of op in the table at index by its name or an alias, pushed, or nil. [-0, +1, e] */
PERIGEE_RAISES void perigee__backend_method(lua_State *L, int index, const perigee_op_info *info);

/** Register the table of methods on top of the stack under name; leaves the backend table. [-1, +1, e] */
PERIGEE_RAISES void perigee__backend_adopt(lua_State *L, const char *name);

/** Run a file of Lua text that makes a backend, and register it under name. [-0, +n, e] */
PERIGEE_RAISES void perigee__backend_run_file(lua_State *L, const char *path, const char *name);

/** Type of inner, and perigee.backend into the module table on top of the stack. [-0, +0, m] */
PERIGEE_RAISES void perigee__lbackend_open(lua_State *L);

#endif
