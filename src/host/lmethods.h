/*
 * Methods of a backend table that are no operations: split, shutdown, ... (perigee_method in backend.h, kind ASKED).
 *
 * One trampoline serves them all; a row says what a method gets and what is made of its result (lmethods.c). The other way, a layer passes
 * on with self.inner:<name>(...).
 */
#ifndef PERIGEE_HOST_LMETHODS_H
#define PERIGEE_HOST_LMETHODS_H

#include <perigee/group.h>

#include "host/lbackend.h"

/** Keep references to the methods of the instance on top of the stack, which has its open behind it. table: the backend table's index.
 *  [-0, +0, e] */
PERIGEE_RAISES void perigee__methods_resolve(lua_State *L, perigee__llayer *layer, int table);

/** Slots of perigee_backend_ops_v1. */
bool perigee__method_provides(void *self, int method);
const char *perigee__method_backend_name(void *self);
int perigee__method_rank(void *self);
int perigee__method_size(void *self);
int perigee__method_split(void *self, int color, int key, const char *name,
                          perigee_group **group_p);
int perigee__method_shutdown(void *self, int64_t timeout_ns);
int perigee__method_start_coalescing(void *self);
int perigee__method_end_coalescing(void *self, perigee_work **work_p);
int perigee__method_reconfigure(void *self, const perigee_reconfigure_options *opts,
                                perigee_group **group_p);

/** split, shutdown, start_coalescing, end_coalescing and reconfigure of `self.inner` into the methods table on top. [-0, +0, m] */
PERIGEE_RAISES void perigee__linner_methods_add(lua_State *L);

/** Options of reconfigure at index into *opts; strict: what is unknown or of the wrong type is an error. Strings stay on the stack.
 *  [-0, +2, e] */
PERIGEE_RAISES void perigee__reconfigure_options(lua_State *L, int index, bool strict,
                                                 perigee_reconfigure_options *opts);

#endif
