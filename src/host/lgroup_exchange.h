/*
 * What the operations on Lua values are made of (lgroup_objects.c, lgroup_reduce_object.c): sizes and bytes between ranks, by the
 * group's ordinary operations. They block; tensors made here are kept by the stack of the call.
 */
#ifndef PERIGEE_HOST_LGROUP_EXCHANGE_H
#define PERIGEE_HOST_LGROUP_EXCHANGE_H

#include "host/lgroup.h"

/* The size that a rank announces whose value cannot be encoded. */
#define PERIGEE_EXCHANGE_REFUSED INT64_C(-1)

typedef struct perigee__exchange {
  const char *name; /* of the method */
  const perigee__lgroup *g;
  perigee_interp *interp;
  int root, peer;
  int64_t tag, deadline_ns; /* of the whole exchange */
  perigee_redop redop;      /* when the option op was given */
  bool has_op;
} perigee__exchange;

/** The group at index 1; EDEADLK in a callback. [-0, +0, e] */
PERIGEE_RAISES perigee__exchange perigee__exchange_begin(lua_State *L, const char *name);
/** Options at index (argument `arg`): timeout, and those of the NULL-terminated list: root, tag, op. [-0, +0, e] */
PERIGEE_RAISES void perigee__exchange_options(lua_State *L, int index, int arg,
                                              const char *const *known, perigee__exchange *x);
/** The rank at index into x->peer. [-0, +0, e] */
PERIGEE_RAISES void perigee__exchange_peer(lua_State *L, int index, perigee__exchange *x);

/** [-0, +1, e] A new tensor of n elements. */
PERIGEE_RAISES perigee_tensor *perigee__exchange_flat(lua_State *L, perigee_dtype dtype, int64_t n);
/** [-0, +1, m] A tensor over a copy of the string at index. */
PERIGEE_RAISES perigee_tensor *perigee__exchange_bytes_of(lua_State *L, int index);
/** Elements of an i64 tensor. */
int64_t *perigee__exchange_numbers(perigee_tensor *t);
/** [-0, +1, m] Zeros, one per rank. */
PERIGEE_RAISES int64_t *perigee__exchange_splits(lua_State *L, const perigee__exchange *x);

/** Run a request; root, tag and what is left of the time are filled in. [-0, +0, e] */
PERIGEE_RAISES void perigee__exchange_run(lua_State *L, const perigee__exchange *x,
                                          perigee_request *req);
/** An operation on one tensor. [-0, +0, e] */
PERIGEE_RAISES void perigee__exchange_one(lua_State *L, const perigee__exchange *x, int op,
                                          perigee_tensor *out, perigee_tensor *in);
/** Bytes to and from all ranks; one size each. [-0, +0, e] */
PERIGEE_RAISES void perigee__exchange_bytes(lua_State *L, const perigee__exchange *x,
                                            perigee_tensor *out, const int64_t *to_me,
                                            perigee_tensor *in, const int64_t *from_me);
/** [-0, +1, e] k numbers of every rank, rank by rank. */
PERIGEE_RAISES const int64_t *perigee__exchange_all(lua_State *L, const perigee__exchange *x,
                                                    const int64_t *mine, int k);

/** [-0, +1, -] The value at index encoded, or an error object; true when it went well. */
bool perigee__exchange_encoded(lua_State *L, int index);
/** Raise for a size that rank did not mean: refused, or impossible. [-0, +0, e] */
PERIGEE_RAISES void perigee__exchange_check_size(lua_State *L, const perigee__exchange *x,
                                                 int64_t size, int rank);
/** All sizes checked; their sum. [-0, +0, e] */
PERIGEE_RAISES int64_t perigee__exchange_total(lua_State *L, const perigee__exchange *x,
                                               const int64_t *sizes);
/** [-0, +1, e] The value of these bytes of t. */
PERIGEE_RAISES void perigee__exchange_push(lua_State *L, const perigee_tensor *t, int64_t offset,
                                           int64_t size);
/** [-0, +1, e] The list of values that lie one after the other in t. */
PERIGEE_RAISES void perigee__exchange_push_list(lua_State *L, const perigee__exchange *x,
                                                const perigee_tensor *t, const int64_t *sizes);

#endif
