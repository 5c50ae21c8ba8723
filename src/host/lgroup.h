/* Groups in Lua (lgroup.c), their operations (lgroup_ops.c). */
#ifndef PERIGEE_HOST_LGROUP_H
#define PERIGEE_HOST_LGROUP_H

#include <perigee/group.h>

#include "host/object.h"

typedef struct perigee__lgroup {
  perigee__box box;        /* ptr: the group (one reference) */
  int rank, nranks;        /* the real ones, whatever layers report */
  perigee_group **retired; /* what it stood for before it was reconfigured; one reference each */
  int n_retired;
  struct perigee__hook_log *hook_log; /* hook_log.h; one reference, NULL before the first hook */
} perigee__lgroup;

/** The group at index 1, also when it is closed. [-0, +0, e] */
PERIGEE_RAISES perigee__lgroup *perigee__lgroup_self(lua_State *L, const char *method);
/** Add one method per operation and alias to the methods table on top of the stack. [-0, +0, m] */
PERIGEE_RAISES void perigee__lgroup_ops_add(lua_State *L, lua_CFunction fn);
int perigee__lgroup_op(lua_State *L);
/** Add broadcast_object and its siblings to the methods table on top of the stack. [-0, +0, m] */
PERIGEE_RAISES void perigee__lgroup_objects_add(lua_State *L);
PERIGEE_RAISES void perigee__lgroup_reduce_object_add(lua_State *L);
/** group:alloc(dtype, shape...) [-0, +1, e] */
int perigee__lgroup_alloc(lua_State *L);
/** group:explain. */
int perigee__lgroup_explain(lua_State *L);
/** Options of layers (a table of tables, or nil) on top of the stack for perigee_init_options; the caller drops it. [-1, +0, e] */
PERIGEE_RAISES perigee_shared *perigee__layer_options(lua_State *L, const char *function);
/** [-0, +1, m] A group object without a group; then it gets one (takes over a reference). */
PERIGEE_RAISES perigee__lgroup *perigee__lgroup_new(lua_State *L);
void perigee__lgroup_set(perigee__lgroup *g, perigee_group *group);
/** shutdown, shrink, reconfigure into the methods table on top of the stack (lgroup_life.c). [-0, +0, m] */
PERIGEE_RAISES void perigee__lgroup_life_add(lua_State *L);
/** The method split(color [, key [, {name =}]]) of what `make` splits; rank: the default of key. [-0, +1, e] */
typedef int perigee__split_fn(void *parent, int color, int key, const char *name,
                              perigee_group **group_p);
PERIGEE_RAISES int perigee__lgroup_split(lua_State *L, void *parent, int rank,
                                         perigee__split_fn *make);
/** The method subgroup(ranks [, {name =}]) of what `make` makes subgroups of; size: its ranks. [-0, +1, e] */
typedef int perigee__subgroup_fn(void *parent, const int *ranks, int n, const char *name,
                                 perigee_group **group_p);
PERIGEE_RAISES int perigee__lgroup_subgroup(lua_State *L, void *parent, int size,
                                            perigee__subgroup_fn *make);

/** Type, and perigee.init into the module table on top of the stack. [-0, +0, m] */
PERIGEE_RAISES void perigee__lgroup_open(lua_State *L);

#endif
