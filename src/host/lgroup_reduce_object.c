/*
 * Reductions of Lua values by a function of the script: allreduce_object and reduce_object.
 *
 *   1. every rank's size and what it reduces by, to all    refused values and different ops are errors on every rank here
 *   2. the bytes, to the root (allreduce_object: rank 0)
 *   3. the root alone folds, in rank order
 *   4. the verdict, to all; then the result or the error   equal on every rank by construction, whatever the function does
 *
 * So the function runs size - 1 times and on one rank, and may be one that gives different results on different ranks (the order
 * of pairs(), a random number).
 */
#include <string.h>

#include "coll/fingerprint.h"
#include "host/codec.h"
#include "host/lerror.h"
#include "host/lgroup.h"
#include "host/lgroup_exchange.h"
#include "host/lop.h"

enum {
  SIZE, /* of the encoded value, or PERIGEE_EXCHANGE_REFUSED */
  WHAT, /* hash of the op and the root */
  COLUMNS
};

/* What the fold works on. */
typedef struct pieces {
  const perigee__exchange *x;
  const perigee_tensor *all;
  const int64_t *sizes;
} pieces;

/* ---- agreement ----------------------------------------------------------------------------------- */

static int64_t hash_of(const perigee__exchange *x) {
  uint64_t hash = perigee__hash_mix((uint64_t)x->root, x->redop.custom->commutative ? 1 : 0);
  for (const char *c = x->redop.custom->name; *c != '\0'; c++)
    hash = perigee__hash_mix(hash, (unsigned char)*c);
  return (int64_t)hash;
}

/* [-0, +1, e] The sizes of all ranks, when all reduce the same way. */
static const int64_t *agreed(lua_State *L, const perigee__exchange *x, const int64_t *columns) {
  int64_t *sizes = perigee__exchange_splits(L, x);
  perigee_error error;
  perigee__error_set(&error, PERIGEE_EMISMATCH,
                     "%s: op or root differ from rank 0's (op '%s', root %d on rank %d)", x->name,
                     x->redop.custom->name, x->root, x->g->rank);
  error.rank = x->g->rank;
  for (int r = 0; r < x->g->nranks; r++) {
    sizes[r] = columns[r * COLUMNS + SIZE];
    if (columns[r * COLUMNS + WHAT] != columns[WHAT])
      perigee__error_add_rank(&error, r);
  }
  if (error.nranks > 0)
    perigee__raise_error(L, &error);
  return sizes;
}

/* ---- the fold ------------------------------------------------------------------------------------ */

/* [ ..., fn, acc ] -> the same with rank r's value folded into acc. */
static void fold_one(lua_State *L, const pieces *p, int r, int64_t offset) {
  lua_pushvalue(L, -2);
  lua_pushvalue(L, -2);
  perigee__exchange_push(L, p->all, offset, p->sizes[r]); // [ fn, acc, fn, acc, x ]
  lua_call(L, 2, 1);
  int type = lua_type(L, -2);
  if (!lua_isnil(L, -1))
    lua_replace(L, -2);
  else if (type == LUA_TTABLE || type == LUA_TUSERDATA)
    lua_pop(L, 1); /* changed in place */
  else
    perigee__raise(L, PERIGEE_ELUATYPE,
                   "it must return the new value: a %s cannot be changed in place",
                   perigee__type_name(L, -2));
}

static int fold_body(lua_State *L) {
  const pieces *p = lua_touserdata(L, 1);
  int64_t offset = p->sizes[0];
  perigee__redop_push_function(L, &p->x->redop);
  perigee__exchange_push(L, p->all, 0, p->sizes[0]);
  for (int r = 1; r < p->x->g->nranks; r++) {
    fold_one(L, p, r, offset);
    offset += p->sizes[r];
  }
  perigee__encode(L, -1);
  return 1;
}

/* [-1, +1, e] The error on top becomes one that tells every rank where it happened. */
static void blame(lua_State *L, const perigee__exchange *x) {
  perigee_error error;
  char message[sizeof(error.message)];
  perigee__error_any(L, -1, &error);
  lua_pop(L, 1);
  perigee__copy_text(message, sizeof(message), error.message);
  perigee_error named = error;
  perigee__error_set(&named, error.code, "%s: reduce op '%s' failed on rank %d: %s", x->name,
                     x->redop.custom->name, x->g->rank, message);
  perigee__copy_text(named.traceback, sizeof(named.traceback), error.traceback);
  perigee__error_add_rank(&named, x->g->rank);
  named.origin = x->g->rank;
  perigee__error_push(L, &named);
}

/* [-0, +1, e] The result encoded; false: the encoded error. */
static bool folded(lua_State *L, pieces *p) {
  perigee__lthread *t = perigee__lthread_here(p->x->interp, L);
  lua_pushcfunction(L, perigee__error_object);
  int handler = lua_gettop(L);
  lua_pushcfunction(L, fold_body);
  lua_pushlightuserdata(L, p);
  t->callbacks++; /* an operation in here would meet none of the other ranks */
  bool ok = lua_pcall(L, 1, 1, handler) == LUA_OK;
  t->callbacks--;
  if (!ok) {
    blame(L, p->x);
    perigee__encode(L, -1);
    lua_remove(L, -2);
  }
  lua_remove(L, handler);
  return ok;
}

/* ---- the operations ------------------------------------------------------------------------------ */

/* [-0, +n, e] Everybody's bytes on the root, folded there (or true elsewhere). */
static bool brought_together(lua_State *L, const perigee__exchange *x, const int64_t *sizes,
                             int mine) {
  bool am_root = x->g->rank == x->root;
  int64_t total = perigee__exchange_total(L, x, sizes);
  perigee_tensor *all = perigee__exchange_flat(L, PERIGEE_U8, am_root ? total : 0);
  perigee_tensor *own = perigee__exchange_bytes_of(L, mine);
  int64_t *to_root = perigee__exchange_splits(L, x), *nothing = perigee__exchange_splits(L, x);
  to_root[x->root] = sizes[x->g->rank];
  perigee__exchange_bytes(L, x, all, am_root ? sizes : nothing, own, to_root);
  pieces p = {x, all, sizes};
  return !am_root || folded(L, &p);
}

/* The root has its bytes on top of the stack. to_all: a result goes to every rank, else to nobody. */
static int verdict(lua_State *L, const perigee__exchange *x, bool ok, bool to_all) {
  bool am_root = x->g->rank == x->root;
  int bytes_at = lua_gettop(L);
  perigee_tensor *head = perigee__exchange_flat(L, PERIGEE_I64, 2);
  int64_t *numbers = perigee__exchange_numbers(head);
  if (am_root) {
    numbers[0] = ok;
    numbers[1] = (int64_t)lua_rawlen(L, bytes_at);
  }
  perigee__exchange_one(L, x, PERIGEE_OP_BROADCAST, NULL, head);
  ok = numbers[0] != 0;
  if (!ok || to_all) {
    perigee__exchange_check_size(L, x, numbers[1], x->root);
    perigee_tensor *bytes = am_root ? perigee__exchange_bytes_of(L, bytes_at)
                                    : perigee__exchange_flat(L, PERIGEE_U8, numbers[1]);
    perigee__exchange_one(L, x, PERIGEE_OP_BROADCAST, NULL, bytes);
    perigee__exchange_push(L, bytes, 0, numbers[1]);
  } else if (am_root) {
    perigee__exchange_push(L, perigee__exchange_bytes_of(L, bytes_at), 0, numbers[1]);
  } else {
    lua_pushnil(L);
  }
  if (ok)
    return 1;
  lua_pushinteger(L, x->g->rank); /* who reports */
  lua_setfield(L, -2, "rank");
  return lua_error(L);
}

static int reduce(lua_State *L, const char *name, const char *const *known, bool to_all) {
  perigee__exchange x = perigee__exchange_begin(L, name);
  lua_settop(L, 3);
  perigee__exchange_options(L, 3, 2, known, &x);
  if (!x.has_op)
    perigee__raise_arg(L, name, 2, "op: perigee.op{...} expected, got nothing");
  lua_getfield(L, 3, "op"); /* kept: callbacks may change the table while this waits */
  if (!perigee__redop_is_script(L, 4, &x.redop))
    perigee__raise_arg(L, name, 2, "op: it changes while it is read");
  bool ok = perigee__exchange_encoded(L, 2);
  int64_t mine[COLUMNS] = {ok ? (int64_t)lua_rawlen(L, 5) : PERIGEE_EXCHANGE_REFUSED, hash_of(&x)};
  const int64_t *columns = perigee__exchange_all(L, &x, mine, COLUMNS);
  if (!ok) {
    lua_pushvalue(L, 5);
    return lua_error(L);
  }
  const int64_t *sizes = agreed(L, &x, columns);
  ok = brought_together(L, &x, sizes, 5);
  return verdict(L, &x, ok, to_all);
}

/* group:allreduce_object(value, {op = [, timeout =]}): the values of all ranks, reduced, on every rank */
static int l_allreduce(lua_State *L) {
  static const char *const known[] = {"op", "timeout", NULL};
  return reduce(L, "allreduce_object", known, true);
}

/* group:reduce_object(value, {op = [, root =, timeout =]}): the same on the root, nil elsewhere */
static int l_reduce(lua_State *L) {
  static const char *const known[] = {"op", "root", "timeout", NULL};
  return reduce(L, "reduce_object", known, false);
}

void perigee__lgroup_reduce_object_add(lua_State *L) {
  static const luaL_Reg methods[] = {
      {"allreduce_object", l_allreduce}, {"reduce_object", l_reduce}, {NULL, NULL}};
  perigee__functions_add(L, methods);
}
