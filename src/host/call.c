#include "host/call.h"

#include <math.h>
#include <string.h>

#include "host/lerror.h"
#include "host/ltensor.h"

/* ---- collecting tensors -------------------------------------------------------------------------- */

/* Room for n pointers: the call's own for short lists, else memory on the Lua stack. [-0, +0..1, m] */
static perigee_tensor **room(lua_State *L, perigee_tensor **few, uint32_t n) {
  if (n <= 2)
    return few;
  return lua_newuserdatauv(L, n * sizeof(perigee_tensor *), 0);
}

static bool is_list(lua_State *L, int index) {
  return lua_type(L, index) == LUA_TTABLE && lua_rawlen(L, index) > 0;
}

static bool is_tensor(lua_State *L, int index) {
  return perigee__object_get(L, index, &perigee__type_tensor) != NULL;
}

static uint32_t list_len(lua_State *L, const perigee__call *call, int index) {
  lua_Unsigned n = lua_rawlen(L, index);
  if (n > UINT32_MAX / 2)
    perigee__raise_arg(L, call->info->name, index - 1, "the list is too long");
  return (uint32_t)n;
}

/* Tensors 1..n of the table at index. Raw access: the table keeps what it holds alive, a metamethod's result would not be. */
static void copy_list(lua_State *L, const perigee__call *call, int index, int arg, uint32_t n,
                      perigee_tensor **to) {
  for (uint32_t i = 0; i < n; i++) {
    lua_rawgeti(L, index, (lua_Integer)i + 1);
    to[i] = perigee__tensor_get(L, -1);
    if (to[i] == NULL)
      perigee__raise_arg(L, call->info->name, arg,
                         "element %u of the list is a %s, tensor expected", i + 1,
                         perigee__type_name(L, -1));
    lua_pop(L, 1);
  }
}

_Noreturn static void expected(lua_State *L, const perigee__call *call, int index,
                               const char *what) {
  perigee__raise_arg(L, call->info->name, index - 1, "%s expected, got %s", what,
                     perigee__type_name(L, index));
}

/* A tensor or a list of them. */
static void collect_list(lua_State *L, perigee__call *call, int index, perigee_tensor **few,
                         perigee_tensors *to, const char *what) {
  if (is_tensor(L, index)) {
    few[0] = perigee__tensor_arg(L, index - 1, call->info->name);
    *to = (perigee_tensors){.v = few, .n = 1};
    return;
  }
  if (lua_type(L, index) != LUA_TTABLE)
    expected(L, call, index, what);
  uint32_t n = list_len(L, call, index);
  perigee_tensor **v = room(L, few, n);
  copy_list(L, call, index, index - 1, n, v);
  *to = (perigee_tensors){.v = v, .n = n};
}

/* One tensor; a list of one is accepted as well. */
static void collect_one(lua_State *L, perigee__call *call, int index, perigee_tensor **few,
                        perigee_tensors *to) {
  collect_list(L, call, index, few, to, "tensor");
  if (to->n != 1)
    perigee__raise_arg(L, call->info->name, index - 1, "one tensor expected, got a list of %u",
                       to->n);
}

/* A list of tensors (one row) or a list of lists of equal length. nil and {} are no rows. */
static void collect_rows(lua_State *L, perigee__call *call, int index, perigee_tensor **few,
                         perigee_tensors *to) {
  if (lua_isnil(L, index))
    return;
  if (lua_type(L, index) != LUA_TTABLE)
    expected(L, call, index, "list of tensors, or list of lists of tensors,");
  uint32_t rows = list_len(L, call, index);
  if (rows == 0)
    return;
  lua_rawgeti(L, index, 1);
  if (is_tensor(L, -1)) {
    lua_pop(L, 1);
    collect_list(L, call, index, few, to, "list");
    to->rows = 1;
    return;
  }
  if (lua_type(L, -1) != LUA_TTABLE)
    perigee__raise_arg(L, call->info->name, index - 1,
                       "element 1 of the list is a %s, tensor or list of tensors expected",
                       perigee__type_name(L, -1));
  uint32_t each = list_len(L, call, lua_gettop(L));
  lua_pop(L, 1);
  if (each > 0 && rows > UINT32_MAX / 2 / each)
    perigee__raise_arg(L, call->info->name, index - 1, "the list is too long");
  perigee_tensor **v = room(L, few, rows * each);
  for (uint32_t r = 0; r < rows; r++) {
    if (lua_rawgeti(L, index, (lua_Integer)r + 1) != LUA_TTABLE || lua_rawlen(L, -1) != each)
      perigee__raise_arg(L, call->info->name, index - 1,
                         "list %u must hold %u tensors, as the first one does", r + 1, each);
    copy_list(L, call, lua_gettop(L), index - 1, each, v + (size_t)r * each);
    lua_pop(L, 1);
  }
  *to = (perigee_tensors){.v = v, .n = rows * each, .rows = rows};
}

/* ---- outputs made for the caller ----------------------------------------------------------------- */

/* [-0, +1, m] A tensor of zeros like `like` with the first extent as given (-1: as it is). */
static perigee_tensor *push_like(lua_State *L, const perigee_tensor *like, int64_t first) {
  int ndim = perigee_tensor_ndim(like);
  int64_t shape[PERIGEE_MAX_DIMS] = {1};
  for (int d = 0; d < ndim; d++)
    shape[d] = perigee_tensor_shape(like)[d];
  if (first >= 0) {
    shape[0] = first;
    ndim = ndim > 0 ? ndim : 1;
  }
  perigee__box *box = perigee__tensor_slot(L);
  perigee_tensor *t;
  perigee__check(L, perigee_tensor_create(perigee_tensor_dtype(like), ndim, shape, &t));
  box->ptr = t;
  perigee__tensor_account(L, t);
  return t;
}

static int64_t extent0(const perigee_tensor *t) {
  return perigee_tensor_ndim(t) > 0 ? perigee_tensor_shape(t)[0] : 1;
}

/* [-0, +1, m] A list of n tensors like the given ones (each[i], or always each[0]); returns its stack index. */
static int push_list_like(lua_State *L, perigee_tensor *const *each, bool same, uint32_t n) {
  lua_createtable(L, (int)n, 0);
  for (uint32_t i = 0; i < n; i++) {
    push_like(L, each[same ? 0 : i], -1);
    lua_rawseti(L, -2, (lua_Integer)i + 1);
  }
  return lua_gettop(L);
}

/* ---- numbers ------------------------------------------------------------------------------------- */

static bool bitwise(const perigee__call *call) {
  return (call->info->opts & PERIGEE_OPT_REDOP) &&
         (call->req.redop.kind == PERIGEE_REDOP_BAND || call->req.redop.kind == PERIGEE_REDOP_BOR ||
          call->req.redop.kind == PERIGEE_REDOP_BXOR);
}

/*
 * A number travels as f64 on every rank, whether it is an integer or a float there: ranks that pass 1 and 0.5 must not be
 * taken for ranks that call different operations. Bitwise ops travel as i64. [-0, +1, e]
 */
static void number_to_tensor(lua_State *L, perigee__call *call, int index) {
  const int64_t one = 1;
  perigee_dtype dtype = bitwise(call) ? PERIGEE_I64 : PERIGEE_F64;
  perigee_scalar value;
  perigee__scalar_arg(L, index, call->info->name, index - 1, &value);
  if (dtype == PERIGEE_I64 && value.kind != PERIGEE_SCALAR_INT)
    perigee__raise_arg(L, call->info->name, index - 1, "integer expected for op '%s'",
                       perigee_redop_name((int)call->req.redop.kind));
  if (dtype == PERIGEE_F64 && value.kind == PERIGEE_SCALAR_INT &&
      (value.i > (INT64_C(1) << 53) || value.i < -(INT64_C(1) << 53)))
    perigee__raise_arg(
        L, call->info->name, index - 1,
        "integers beyond 2^53 are not exact as a number: use perigee.tensor(\"i64\", n)");
  perigee__box *box = perigee__tensor_slot(L);
  perigee_tensor *t;
  perigee__check(L, perigee_tensor_create(dtype, 1, &one, &t));
  box->ptr = t;
  perigee__check(L, perigee_tensor_set(t, 0, &value));
  call->conv |= PERIGEE_CONV_NUMBER;
  bool whole = value.kind == PERIGEE_SCALAR_INT && !((call->info->opts & PERIGEE_OPT_REDOP) &&
                                                     call->req.redop.kind == PERIGEE_REDOP_AVG);
  if (whole)
    call->conv |= PERIGEE_CONV_INTEGER;
}

static void push_number(lua_State *L, const perigee_tensor *t, unsigned conv) {
  perigee_scalar value;
  if (t == NULL) /* a finalizer of the script looks at a work after the state's end has begun */
    perigee__raise(L, PERIGEE_ELUASTATE, "the value is gone: the Lua state is being closed");
  perigee__check(L, perigee_tensor_get(t, 0, &value));
  if ((conv & PERIGEE_CONV_INTEGER) && value.kind == PERIGEE_SCALAR_FLOAT &&
      floor(value.re) == value.re && fabs(value.re) <= 9007199254740992.0)
    lua_pushinteger(L, (lua_Integer)value.re);
  else
    perigee__scalar_push(L, &value);
}

void perigee__value_push(lua_State *L, int index, unsigned conv) {
  if (index == 0) {
    lua_pushnil(L);
    return;
  }
  if (!(conv & PERIGEE_CONV_NUMBER) || lua_isnil(L, index)) {
    lua_pushvalue(L, index);
    return;
  }
  if (!(conv & PERIGEE_CONV_LIST)) {
    push_number(L, perigee__tensor_get(L, index), conv);
    return;
  }
  index = lua_absindex(L, index);
  lua_Integer n = luaL_len(L, index);
  lua_createtable(L, (int)n, 0);
  for (lua_Integer i = 1; i <= n; i++) {
    lua_rawgeti(L, index, i);
    push_number(L, perigee__tensor_get(L, -1), conv);
    lua_rawseti(L, -3, i);
    lua_pop(L, 1);
  }
}

/* ---- the argument forms -------------------------------------------------------------------------- */

static void end_of_args(lua_State *L, const perigee__call *call, int nargs, int most) {
  if (nargs > most)
    perigee__raise_arg(L, call->info->name, most + 1, "no argument expected here, got %s",
                       perigee__type_name(L, most + 2));
}

/* The options are the last argument: read first, since the other forms depend on them. */
static void take_opts(lua_State *L, perigee__call *call, int nargs, int arg) {
  end_of_args(L, call, nargs, arg);
  if (nargs >= arg)
    perigee__opts_parse(L, arg + 1, arg, call);
}

/* (value, opts): tensor, list or number, in place */
static void parse_inplace(lua_State *L, perigee__call *call, int nargs) {
  take_opts(L, call, nargs, 2);
  call->value = 2;
  if (lua_type(L, 2) == LUA_TNUMBER && call->req.op != PERIGEE_OP_ALLREDUCE_COALESCED) {
    number_to_tensor(L, call, 2);
    call->value = lua_gettop(L);
    call->few_in[0] = perigee__tensor_get(L, -1);
    call->req.in = (perigee_tensors){.v = call->few_in, .n = 1};
    return;
  }
  collect_list(L, call, 2, call->few_in, &call->req.in, "tensor, list of tensors or number");
}

/* (input, opts) of operations that can make their outputs. The input is at index 2. */
static void parse_friendly(lua_State *L, perigee__call *call, int nargs) {
  perigee_request *req = &call->req;
  uint32_t n = (uint32_t)call->nranks;
  int input = 2;
  take_opts(L, call, nargs, 2);
  if (lua_type(L, 2) == LUA_TNUMBER &&
      (req->op == PERIGEE_OP_ALLGATHER || req->op == PERIGEE_OP_GATHER)) {
    number_to_tensor(L, call, 2);
    call->conv |= PERIGEE_CONV_LIST;
    input = lua_gettop(L);
    call->few_in[0] = perigee__tensor_get(L, input);
    req->in = (perigee_tensors){.v = call->few_in, .n = 1};
  } else if (req->op == PERIGEE_OP_REDUCE_SCATTER) {
    collect_rows(L, call, input, call->few_in, &req->in);
    if (req->in.n != n)
      perigee__raise_arg(L, call->info->name, 1, "a list of %u tensors (one per rank) expected", n);
  } else if (req->op == PERIGEE_OP_ALLTOALL) {
    collect_list(L, call, input, call->few_in, &req->in, "list of tensors");
  } else {
    collect_one(L, call, input, call->few_in, &req->in);
  }
  perigee_tensor *const *in = req->in.v;
  switch (req->op) {
  case PERIGEE_OP_GATHER:
    if (call->rank != req->root)
      return;
    /* fall through */
  case PERIGEE_OP_ALLGATHER:
    call->value = push_list_like(L, in, true, n);
    collect_rows(L, call, call->value, call->few_out, &req->out);
    return;
  case PERIGEE_OP_ALLTOALL:
    call->value = push_list_like(L, in, false, req->in.n);
    collect_list(L, call, call->value, call->few_out, &req->out, "list");
    return;
  case PERIGEE_OP_ALLGATHER_INTO_TENSOR:
    call->few_out[0] = push_like(L, in[0], extent0(in[0]) * n);
    break;
  case PERIGEE_OP_REDUCE_SCATTER:
    call->few_out[0] = push_like(L, in[call->rank], -1);
    break;
  default: /* reduce_scatter_tensor */
    if (extent0(in[0]) % n != 0)
      perigee__raise_arg(L, call->info->name, 1, "%lld rows do not divide by %u ranks",
                         (long long)extent0(in[0]), n);
    call->few_out[0] = push_like(L, in[0], extent0(in[0]) / n);
    break;
  }
  call->value = lua_gettop(L);
  req->out = (perigee_tensors){.v = call->few_out, .n = 1};
}

static bool makes_outputs(int op) {
  return op == PERIGEE_OP_ALLGATHER || op == PERIGEE_OP_ALLGATHER_INTO_TENSOR ||
         op == PERIGEE_OP_GATHER || op == PERIGEE_OP_REDUCE_SCATTER ||
         op == PERIGEE_OP_REDUCE_SCATTER_TENSOR || op == PERIGEE_OP_ALLTOALL;
}

static void collect_form(lua_State *L, perigee__call *call, int index, perigee_form form,
                         perigee_tensor **few, perigee_tensors *to) {
  if (form == PERIGEE_FORM_ONE)
    collect_one(L, call, index, few, to);
  else if (form == PERIGEE_FORM_LISTS)
    collect_rows(L, call, index, few, to);
  else
    collect_list(L, call, index, few, to, "tensor or list of tensors");
}

/* (outputs, inputs, opts), or (inputs, opts) where the outputs can be made */
static void parse_two_sided(lua_State *L, perigee__call *call, int nargs) {
  bool full = nargs >= 3 || is_tensor(L, 3) || is_list(L, 3) || !makes_outputs(call->req.op);
  if (!full) {
    parse_friendly(L, call, nargs);
    return;
  }
  take_opts(L, call, nargs, 3);
  collect_form(L, call, 2, call->info->out, call->few_out, &call->req.out);
  collect_form(L, call, 3, call->info->in, call->few_in, &call->req.in);
  call->value = 2;
}

/* (output, input [, output splits, input splits], opts) or (input, opts) */
static void parse_alltoall_base(lua_State *L, perigee__call *call, int nargs) {
  perigee_request *req = &call->req;
  bool full = is_tensor(L, 3) || is_list(L, 3);
  if (!full) {
    take_opts(L, call, nargs, 2);
    collect_one(L, call, 2, call->few_in, &req->in);
    int64_t rows = extent0(req->in.v[0]);
    if (req->n_out_splits > 0)
      rows = 0;
    for (uint32_t i = 0; i < req->n_out_splits; i++)
      rows += req->out_splits[i];
    if (rows < 0)
      perigee__raise_arg(L, call->info->name, 2, "output_splits: negative");
    call->few_out[0] = push_like(L, req->in.v[0], rows);
    call->value = lua_gettop(L);
    req->out = (perigee_tensors){.v = call->few_out, .n = 1};
    return;
  }
  bool splits = nargs >= 4 || is_list(L, 4);
  take_opts(L, call, nargs, splits ? 5 : 3);
  if (splits)
    perigee__splits_parse(L, call, 4, 5);
  collect_one(L, call, 2, call->few_out, &req->out);
  collect_one(L, call, 3, call->few_in, &req->in);
  call->value = 2;
}

static lua_Integer rank_arg(lua_State *L, const perigee__call *call, int index, const char *what) {
  int exact;
  lua_Integer rank = lua_tointegerx(L, index, &exact);
  if (!exact || lua_type(L, index) != LUA_TNUMBER)
    perigee__raise_arg(L, call->info->name, index - 1, "%s (a rank) expected, got %s", what,
                       perigee__type_name(L, index));
  if (rank < 0 || rank >= call->nranks)
    perigee__raise_arg(L, call->info->name, index - 1, "%s: rank %lld is outside 0..%d", what,
                       (long long)rank, call->nranks - 1);
  return rank;
}

/* send(value, dst [, tag], opts), recv(value, src [, tag], opts), recv_anysource(value [, tag], opts) */
static void parse_p2p(lua_State *L, perigee__call *call, int nargs) {
  perigee_request *req = &call->req;
  bool is_send = req->op == PERIGEE_OP_SEND;
  int next = 3;
  if (call->info->opts & (PERIGEE_OPT_DST | PERIGEE_OPT_SRC))
    req->peer = (int)rank_arg(L, call, next++, is_send ? "destination" : "source");
  if (lua_type(L, next) == LUA_TNUMBER) {
    int exact;
    req->tag = lua_tointegerx(L, next, &exact);
    if (!exact || req->tag < 0)
      perigee__raise_arg(L, call->info->name, next - 1, "tag: an integer >= 0 expected");
    next++;
  } else if (lua_isnil(L, next) && nargs >= next) {
    next++; /* a tag of nil, options after it */
  }
  take_opts(L, call, nargs, next - 1);
  perigee_tensors *to = is_send ? &req->in : &req->out;
  perigee_tensor **few = is_send ? call->few_in : call->few_out;
  call->value = 2;
  if (req->op == PERIGEE_OP_RECV_ANYSOURCE)
    call->conv |= PERIGEE_CONV_SOURCE;
  if (lua_type(L, 2) == LUA_TNUMBER) {
    number_to_tensor(L, call, 2);
    call->conv |=
        PERIGEE_CONV_INTEGER; /* what comes, not what was passed, says whether it is whole */
    call->value = lua_gettop(L);
    few[0] = perigee__tensor_get(L, -1);
    *to = (perigee_tensors){.v = few, .n = 1};
    return;
  }
  collect_list(L, call, 2, few, to, "tensor, list of tensors or number");
}

void perigee__call_parse(lua_State *L, int op, perigee__call *call) {
  call->info = perigee_op_get(op);
  call->value = 0;
  call->conv = 0;
  call->async = false;
  perigee_request_init(&call->req, op);
  int nargs = lua_gettop(L) - 1;
  if (nargs < 5)
    lua_settop(L, 6); /* arguments that were not given read as nil */
  luaL_checkstack(L, 16, NULL);
  switch ((perigee_op)op) {
  case PERIGEE_OP_ALLREDUCE:
  case PERIGEE_OP_ALLREDUCE_COALESCED:
  case PERIGEE_OP_BROADCAST:
  case PERIGEE_OP_REDUCE:
    parse_inplace(L, call, nargs);
    return;
  case PERIGEE_OP_ALLTOALL_BASE:
    parse_alltoall_base(L, call, nargs);
    return;
  case PERIGEE_OP_BARRIER:
  case PERIGEE_OP_MONITORED_BARRIER:
    take_opts(L, call, nargs, 1);
    return;
  case PERIGEE_OP_SEND:
  case PERIGEE_OP_RECV:
  case PERIGEE_OP_RECV_ANYSOURCE:
    parse_p2p(L, call, nargs);
    return;
  default:
    parse_two_sided(L, call, nargs);
    return;
  }
}

/* ---- holding on ---------------------------------------------------------------------------------- */

void perigee__call_pin(perigee__call *call) {
  for (uint32_t i = 0; i < call->req.in.n; i++)
    perigee_tensor_ref(call->req.in.v[i]);
  for (uint32_t i = 0; i < call->req.out.n; i++)
    perigee_tensor_ref(call->req.out.v[i]);
  perigee_custom_op *custom = call->req.redop.custom;
  if (call->req.redop.kind == PERIGEE_REDOP_CUSTOM && custom->ref != NULL)
    custom->ref(custom);
}

void perigee__call_unpin(perigee__call *call) {
  for (uint32_t i = 0; i < call->req.in.n; i++)
    perigee_tensor_unref(call->req.in.v[i]);
  for (uint32_t i = 0; i < call->req.out.n; i++)
    perigee_tensor_unref(call->req.out.v[i]);
  perigee_custom_op *custom = call->req.redop.custom;
  if (call->req.redop.kind == PERIGEE_REDOP_CUSTOM && custom->unref != NULL)
    custom->unref(custom);
}
