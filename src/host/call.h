/*
 * From the arguments of a Lua call to a request in canonical form, for groups and inner layers alike.
 *
 * Every operation takes its canonical form (what overrides receive) and the friendly forms of lua/perigee/meta.lua. Objects made
 * on the way (outputs, arrays) stay on the Lua stack, which keeps them alive; the request borrows them.
 */
#ifndef PERIGEE_HOST_CALL_H
#define PERIGEE_HOST_CALL_H

#include <perigee/op.h>

#include "host/interp.h"

/* How the value that comes back is made from the value kept on the stack. */
enum {
  PERIGEE_CONV_NUMBER = 1,  /* a tensor of one element becomes a number */
  PERIGEE_CONV_INTEGER = 2, /* a float that is whole becomes an integer */
  PERIGEE_CONV_LIST = 4,    /* a list of such tensors becomes a list of numbers */
  PERIGEE_CONV_SOURCE = 8,  /* the source rank is a second value */
  PERIGEE_CONV_BATCH = 16   /* a list of Works becomes the list of their values */
};

typedef struct perigee__call {
  perigee_request req;
  const perigee_op_info *info;
  int rank, nranks; /* of the group; set by the caller before parse */
  int value;        /* stack index of what the call returns; 0: nothing */
  unsigned conv;
  bool async;
  perigee_tensor *few_in[2], *few_out[2]; /* room for short lists */
} perigee__call;

/** Arguments from stack index 2 on into call->req. [-0, +n, e] */
PERIGEE_RAISES void perigee__call_parse(lua_State *L, int op, perigee__call *call);
/** Take and drop references on the tensors and the function of the request, for while this thread is outside: another one may take them out of their
 *  tables, or close the state. Do not raise in between. */
void perigee__call_pin(perigee__call *call);
void perigee__call_unpin(perigee__call *call);
/** Push the value at index as conv says. [-0, +1, m] */
PERIGEE_RAISES void perigee__value_push(lua_State *L, int index, unsigned conv);

/** Options at stack index `index` (argument `arg`) into the request. call->info is set. [-0, +0..2, e] */
PERIGEE_RAISES void perigee__opts_parse(lua_State *L, int index, int arg, perigee__call *call);
/** Raise for a key of the table at index that is not in the NULL-terminated list. [-0, +0, e] */
PERIGEE_RAISES void perigee__check_keys(lua_State *L, int index, const char *function, int arg,
                                        const char *const *known);
/** Split sizes at the two indices (nil: even) into the request. [-0, +0..2, e] */
PERIGEE_RAISES void perigee__splits_parse(lua_State *L, perigee__call *call, int out_index,
                                          int in_index);
/** Seconds at index as nanoseconds: > 0, math.huge is PERIGEE_TIMEOUT_NONE. [-0, +0, e] */
PERIGEE_RAISES int64_t perigee__seconds_arg(lua_State *L, int index, const char *function, int arg,
                                            bool zero_ok);

/** Field `timeout` of an options table at index (argument `arg`) that takes nothing else: nanoseconds, 0 when there is none.
 *  [-0, +0, e] */
PERIGEE_RAISES int64_t perigee__timeout_option(lua_State *L, int index, const char *function,
                                               int arg);

/* ---- options as an override gets them ------------------------------------------------------------- */

/* Values of an options table, and the metatable that shows them. */
typedef struct perigee__opts_cache {
  int meta_ref; /* LUA_NOREF before the first use */
  perigee_redop redop;
  int root;
  bool wait_all_ranks;
  int64_t timeout_ns;
} perigee__opts_cache;

/** [-0, +1, m] A fresh, empty table that shows the options of req through a metatable, which is made again only when they
 *  differ from the last ones. timeout_ns: what the default is now. */
PERIGEE_RAISES void perigee__opts_push(perigee_interp *interp, lua_State *L,
                                       const perigee_request *req, const perigee_op_info *info,
                                       int64_t timeout_ns, perigee__opts_cache *cache);

#endif
