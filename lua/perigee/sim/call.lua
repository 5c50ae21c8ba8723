-- From the arguments of a call to a request in canonical form, and back to the arguments of an override: what
-- host/call.c does for groups of C. A request: { row, out, inp (nested as the row says), root, peer, tag, redop,
-- osplits, isplits, timeout (nil: the group's), wait_all_ranks, async, value (what the call returns), number, whole,
-- list, source }.
local perigee = require "perigee"

local call = {}

local rows = {}
for _, row in ipairs(perigee.ops()) do
  rows[row.name] = row
  for alias in row.aliases:gmatch "%S+" do rows[alias] = row end
end
call.rows = rows

local tensor_meta = getmetatable(perigee.zeros("f32", 1))
local redop_meta = getmetatable(perigee.premul_sum(1))
local function is_tensor(v) return type(v) == "userdata" and getmetatable(v) == tensor_meta end
local function is_list(v) return type(v) == "table" and #v > 0 end
call.is_tensor = is_tensor

local function fail(code, fmt, ...) error(perigee.error(code, fmt:format(...)), 0) end

local function bad(req, arg, fmt, ...)
  fail("EINVAL", "bad argument #%d to '%s' (%s)", arg, req.row.name, fmt:format(...))
end

local function kind(v)
  if is_tensor(v) then return "tensor" end
  return type(v)
end

-- ---- options --------------------------------------------------------------------------------------------

local REDUCE = { sum = 1, avg = 1, product = 1, min = 1, max = 1, band = 1, bor = 1, bxor = 1 }
-- tables made by call.arguments, whose timeout is the group's: passing them on does not make it the call's own
local defaulted = setmetatable({}, { __mode = "k" })

local function integer(req, arg, name, v, least)
  local n = math.tointeger(v)
  if type(v) ~= "number" or not n then bad(req, arg, "%s: integer expected, got %s", name, kind(v)) end
  if least and n < least then bad(req, arg, "%s: %d is negative", name, n) end
  return n
end

local function splits(req, arg, name, v)
  if v == nil then return {} end
  if type(v) ~= "table" then bad(req, arg, "%s: list of integers expected, got %s", name, kind(v)) end
  local list = {}
  for i, n in ipairs(v) do list[i] = integer(req, arg, name, n) end
  return list
end

local setters = {}
function setters.op(req, arg, v)
  if v == "prod" then v = "product" end
  if v == "premul_sum" then
    bad(req, arg, "op: 'premul_sum' needs its factor: op = perigee.premul_sum(factor)")
  end
  if type(v) == "string" and not REDUCE[v] then bad(req, arg, "op: unknown reduce operation '%s'", v) end
  if type(v) ~= "string" and not (type(v) == "userdata" and getmetatable(v) == redop_meta) then
    bad(req, arg, "op: name of a reduce operation or perigee.op{...} expected, got %s", kind(v))
  end
  req.redop = v
end
function setters.root(req, arg, v)
  req.root = integer(req, arg, "root", v)
  if req.root < 0 or req.root >= req.size then
    bad(req, arg, "root: rank %d is outside 0..%d", req.root, req.size - 1)
  end
end
function setters.tag(req, arg, v) req.tag = integer(req, arg, "tag", v, 0) end
function setters.timeout(req, arg, v)
  if type(v) ~= "number" then bad(req, arg, "timeout: seconds (a number) expected, got %s", kind(v)) end
  if v <= 0 or v ~= v then bad(req, arg, "timeout: %g seconds; a positive number expected", v) end
  req.timeout = v
end
function setters.wait_all_ranks(req, arg, v)
  if type(v) ~= "boolean" then bad(req, arg, "wait_all_ranks: boolean expected, got %s", kind(v)) end
  req.wait_all_ranks = v
end
function setters.async(req, arg, v)
  if type(v) ~= "boolean" then bad(req, arg, "async: boolean expected, got %s", kind(v)) end
  req.async = v
end
function setters.output_splits(req, arg, v) req.osplits = splits(req, arg, "output_splits", v) end
function setters.input_splits(req, arg, v) req.isplits = splits(req, arg, "input_splits", v) end

local function takes(row, key)
  if key == "async" then return true end
  if key == "output_splits" or key == "input_splits" then return row.takes.splits end
  return setters[key] and row.takes[key]
end

-- The options are argument `at`, the last one.
local function take_opts(req, args, at)
  if args.n > at then bad(req, at + 1, "no argument expected here, got %s", kind(args[at + 1])) end
  local opts = args[at]
  if opts == nil then return end
  if type(opts) ~= "table" then bad(req, at, "options table expected, got %s", kind(opts)) end
  for key, v in pairs(opts) do
    if not takes(req.row, key) then
      bad(req, at, "unknown option '%s' of %s", tostring(key), req.row.name)
    end
    if not (key == "timeout" and defaulted[opts] == v) then setters[key](req, at, v) end
  end
end

-- ---- values -----------------------------------------------------------------------------------------------

local BITS = { band = true, bor = true, bxor = true }

local function from_number(req, arg, v)
  local dtype = BITS[req.redop] and req.row.takes.op and "i64" or "f64"
  if dtype == "i64" and math.type(v) ~= "integer" then
    bad(req, arg, "integer expected for op '%s'", req.redop)
  end
  req.number = true
  req.whole = math.type(v) == "integer" and not (req.row.takes.op and req.redop == "avg")
  return perigee.tensor(dtype, { v })
end

local function tensors(req, arg, v, what)
  if is_tensor(v) then return { v } end
  if type(v) ~= "table" then bad(req, arg, "%s expected, got %s", what, kind(v)) end
  local list = {}
  for i = 1, #v do
    if not is_tensor(v[i]) then
      bad(req, arg, "element %d of the list is a %s, tensor expected", i, kind(v[i]))
    end
    list[i] = v[i]
  end
  return list
end

local function one(req, arg, v)
  local list = tensors(req, arg, v, "tensor")
  if #list ~= 1 then bad(req, arg, "one tensor expected, got a list of %d", #list) end
  return list[1]
end

local function lists(req, arg, v)
  if v == nil then return {} end
  if type(v) ~= "table" then
    bad(req, arg, "list of tensors, or list of lists of tensors, expected, got %s", kind(v))
  end
  if #v == 0 then return {} end
  if is_tensor(v[1]) then return { tensors(req, arg, v, "list") } end
  local result = {}
  for i = 1, #v do
    if type(v[i]) ~= "table" or #v[i] ~= #v[1] then
      bad(req, arg, "list %d must hold %d tensors, as the first one does", i, type(v[1]) == "table" and #v[1] or 1)
    end
    result[i] = tensors(req, arg, v[i], "list")
  end
  return result
end

local function by_form(form, req, arg, v)
  if form == "one" then return one(req, arg, v) end
  if form == "lists" then return lists(req, arg, v) end
  return tensors(req, arg, v, "tensor or list of tensors")
end

local function like(t, rows_)
  if not rows_ then return perigee.zeros(t.dtype, table.unpack(t.shape)) end
  local shape = t.shape
  shape[1] = rows_
  return perigee.zeros(t.dtype, table.unpack(shape))
end

local function extent(t) return t.ndim > 0 and t.shape[1] or 1 end

-- ---- the argument forms -------------------------------------------------------------------------------------

local function parse_inplace(req, args)
  take_opts(req, args, 2)
  local v = args[1]
  if type(v) == "number" and req.row.name ~= "allreduce_coalesced" then
    req.value = from_number(req, 1, v)
    req.inp = { req.value }
  else
    req.value, req.inp = v, tensors(req, 1, v, "tensor, list of tensors or number")
  end
end

local makers = {}
function makers.allgather(req)
  local row = {}
  for r = 1, req.size do row[r] = like(req.inp[1]) end
  req.out, req.value = { row }, row
end
function makers.gather(req)
  if req.rank == req.root then makers.allgather(req) else req.out = {} end
end
function makers.alltoall(req)
  local row = {}
  for r, t in ipairs(req.inp) do row[r] = like(t) end
  req.out, req.value = row, row
end
function makers.allgather_into_tensor(req)
  req.out = like(req.inp, extent(req.inp) * req.size)
  req.value = req.out
end
function makers.reduce_scatter(req)
  if #req.inp ~= 1 or #req.inp[1] ~= req.size then
    bad(req, 1, "a list of %d tensors (one per rank) expected", req.size)
  end
  req.value = like(req.inp[1][req.rank + 1])
  req.out = { req.value }
end
function makers.reduce_scatter_tensor(req)
  if extent(req.inp) % req.size ~= 0 then
    bad(req, 1, "%d rows do not divide by %d ranks", extent(req.inp), req.size)
  end
  req.out = like(req.inp, extent(req.inp) // req.size)
  req.value = req.out
end

local function parse_two_sided(req, args)
  local make = makers[req.row.name]
  if args.n >= 3 or is_tensor(args[2]) or is_list(args[2]) or not make then
    take_opts(req, args, 3)
    req.out = by_form(req.row.out, req, 1, args[1])
    req.inp = by_form(req.row["in"], req, 2, args[2])
    req.value = args[1]
    return
  end
  take_opts(req, args, 2)
  local name, v = req.row.name, args[1]
  if type(v) == "number" and (name == "allgather" or name == "gather") then
    req.inp, req.list = { from_number(req, 1, v) }, true
  elseif name == "reduce_scatter" then
    req.inp = lists(req, 1, v)
  elseif name == "alltoall" then
    req.inp = tensors(req, 1, v, "list of tensors")
  else
    req.inp = name == "allgather" and { one(req, 1, v) } or name == "gather" and { one(req, 1, v) } or one(req, 1, v)
  end
  make(req)
end

local function parse_alltoall_base(req, args)
  if is_tensor(args[2]) or is_list(args[2]) then
    local with_splits = args.n >= 4 or is_list(args[3])
    take_opts(req, args, with_splits and 5 or 3)
    if with_splits then
      if args[3] ~= nil then req.osplits = splits(req, 3, "output_splits", args[3]) end
      if args[4] ~= nil then req.isplits = splits(req, 4, "input_splits", args[4]) end
    end
    req.out, req.inp, req.value = one(req, 1, args[1]), one(req, 2, args[2]), args[1]
    return
  end
  take_opts(req, args, 2)
  req.inp = one(req, 1, args[1])
  local n = #req.osplits == 0 and extent(req.inp) or 0
  for _, k in ipairs(req.osplits) do n = n + k end
  if n < 0 then bad(req, 2, "output_splits: negative") end
  req.out = like(req.inp, n)
  req.value = req.out
end

local function parse_p2p(req, args)
  local is_send, at = req.row.name == "send", 2
  if req.row.takes.dst or req.row.takes.src then
    local what = is_send and "destination" or "source"
    local peer = type(args[2]) == "number" and math.tointeger(args[2])
    if not peer then bad(req, 2, "%s (a rank) expected, got %s", what, kind(args[2])) end
    if peer < 0 or peer >= req.size then
      bad(req, 2, "%s: rank %d is outside 0..%d", what, peer, req.size - 1)
    end
    req.peer, at = peer, 3
  end
  if type(args[at]) == "number" then
    req.tag = integer(req, at, "tag", args[at], 0)
    at = at + 1
  elseif args[at] == nil and args.n >= at then
    at = at + 1
  end
  take_opts(req, args, at)
  local v = args[1]
  local list
  if type(v) == "number" then
    req.value = from_number(req, 1, v)
    req.whole, list = true, { req.value }
  else
    req.value, list = v, tensors(req, 1, v, "tensor, list of tensors or number")
  end
  if is_send then req.inp = list else req.out = list end
  req.source = req.row.name == "recv_anysource"
end

-- ---- checks that need no other rank --------------------------------------------------------------------------

local function check_list(req, what, list, dtype)
  for i, t in ipairs(list) do
    if not t:is_contiguous() then
      fail("ENOTSUP", "%s: %s[%d] is a non-contiguous view; use contiguous()", req.row.name, what, i)
    end
    if t.dtype ~= dtype then
      fail("EDTYPE", "%s: %s[%d] is %s, the first tensor %s", req.row.name, what, i, t.dtype, dtype)
    end
  end
end

local function flat_list(v)
  if v == nil then return {} end
  if is_tensor(v) then return { v } end
  local list = {}
  for _, item in ipairs(v) do
    for _, t in ipairs(flat_list(item)) do list[#list + 1] = t end
  end
  return list
end
call.tensors_of = flat_list

local function count(req, what, got, want)
  if got == want then return end
  fail("EINVAL", "%s: %s: %d tensor%s expected, got %d", req.row.name, what, want, want == 1 and "" or "s", got)
end

local function numel(req, what, t, want, why)
  if t.numel ~= want then
    fail("ESHAPE", "%s: %s has %d elements, %d expected (%s)", req.row.name, what, t.numel, want, why)
  end
end

local function row_of(req, what, v)
  if #v ~= 1 then fail("EINVAL", "%s: %s: 1 list expected, got %d", req.row.name, what, #v) end
  count(req, what, #v[1], req.size)
  return v[1]
end

local checks = {}
function checks.inplace(req)
  local list = req.inp
  if #list == 0 then fail("EINVAL", "%s: a non-empty list of tensors is expected", req.row.name) end
  if req.row.name == "reduce" then count(req, "tensors", #list, 1) end
  if req.row.name ~= "allreduce_coalesced" then
    for i = 2, #list do numel(req, ("tensors[%d]"):format(i), list[i], list[1].numel, "as the first one") end
  end
end
function checks.allgather(req)
  local k = #req.inp
  if k == 0 then fail("EINVAL", "%s: inputs: a non-empty list is expected", req.row.name) end
  if #req.out ~= k then fail("EINVAL", "%s: outputs: %d lists expected, got %d", req.row.name, k, #req.out) end
  for _, row in ipairs(req.out) do
    count(req, "outputs", #row, req.size * k)
    for j = 1, k do numel(req, "this rank's output", row[req.rank * k + j], req.inp[j].numel, "as its input") end
  end
end
function checks.gather(req)
  count(req, "inputs", #req.inp, 1)
  if req.rank ~= req.root then
    if #req.out > 0 then
      fail("EINVAL", "%s: outputs must be empty on ranks other than the root", req.row.name)
    end
    return
  end
  numel(req, "this rank's output", row_of(req, "outputs", req.out)[req.rank + 1], req.inp[1].numel, "as its input")
end
function checks.scatter(req)
  count(req, "outputs", #req.out, 1)
  if req.rank ~= req.root then
    if #req.inp > 0 then fail("EINVAL", "%s: inputs must be empty on ranks other than the root", req.row.name) end
    return
  end
  numel(req, "this rank's input", row_of(req, "inputs", req.inp)[req.rank + 1], req.out[1].numel, "as its output")
end
function checks.reduce_scatter(req)
  count(req, "outputs", #req.out, 1)
  local row = row_of(req, "inputs", req.inp)
  numel(req, "outputs[1]", req.out[1], row[req.rank + 1].numel, "as this rank's input")
end
function checks.alltoall(req)
  count(req, "inputs", #req.inp, req.size)
  count(req, "outputs", #req.out, req.size)
  numel(req, "this rank's output", req.out[req.rank + 1], req.inp[req.rank + 1].numel, "as its input")
end
local function pairs_of(req)
  local big, small = flat_list(req.inp), flat_list(req.out)
  count(req, "outputs", #small, #big)
  local name = "inputs"
  if req.row.name:find "^allgather" then big, small, name = small, big, "outputs" end
  if #big == 0 then fail("EINVAL", "%s: inputs: a non-empty list is expected", req.row.name) end
  for i, t in ipairs(big) do
    numel(req, ("%s[%d]"):format(name, i), t, small[i].numel * req.size, "ranks times the other side")
  end
end
checks.allgather_into_tensor, checks.allgather_into_tensor_coalesced = pairs_of, pairs_of
checks.reduce_scatter_tensor, checks.reduce_scatter_tensor_coalesced = pairs_of, pairs_of
function checks.alltoall_base(req)
  for what, side in pairs { output = { req.out, req.osplits }, input = { req.inp, req.isplits } } do
    local n, list = extent(side[1]), side[2]
    if #list == 0 and n % req.size ~= 0 then
      fail("ESHAPE", "%s: %s: %d rows do not divide by %d ranks", req.row.name, what, n, req.size)
    elseif #list > 0 then
      if #list ~= req.size then
        fail("EINVAL", "%s: %s splits: %d numbers expected, got %d", req.row.name, what, req.size, #list)
      end
      local sum = 0
      for i, k in ipairs(list) do
        if k < 0 or k > n then fail("ERANGE", "%s: %s splits[%d] is %d", req.row.name, what, i, k) end
        sum = sum + k
      end
      if sum ~= n then
        fail("ESHAPE", "%s: %s splits add up to %d, the tensor has %d rows", req.row.name, what, sum, n)
      end
    end
  end
end
function checks.p2p(req)
  local list = req.inp or req.out
  if #list == 0 then fail("EINVAL", "%s: a non-empty list of tensors is expected", req.row.name) end
  if req.peer == req.rank then
    fail("EINVAL", "%s: %s %d is this rank itself", req.row.name, req.inp and "dst" or "src", req.peer)
  end
end

local INTEGER = { i8 = 1, u8 = 1, i16 = 1, u16 = 1, i32 = 1, u32 = 1, i64 = 1, u64 = 1 }
local COMPLEX = { c64 = 1, c128 = 1 }

local function defined(op, dtype)
  if type(op) ~= "string" then
    return not op.factor or not (INTEGER[dtype] or dtype == "bool")
  end
  if COMPLEX[dtype] then return op == "sum" or op == "avg" end
  if BITS[op] then return INTEGER[dtype] or dtype == "bool" end
  return not (op == "avg" and dtype == "bool")
end
call.defined = defined

local function validate(req)
  local row = req.row
  local check = row["in"] == "inplace" and checks.inplace or checks[row.name]
  if row.takes.tag then check = checks.p2p end
  if not check then return end -- barriers
  local all = flat_list(req.inp)
  local first = all[1] or flat_list(req.out)[1]
  if first then
    check_list(req, row["in"] == "inplace" and "tensors" or "inputs", all, first.dtype)
    check_list(req, "outputs", flat_list(req.out), first.dtype)
  end
  check(req)
  if row.takes.op and not defined(req.redop, first.dtype) then
    fail("EDTYPE", "%s: op %s is not defined for %s", row.name,
      type(req.redop) == "string" and req.redop or req.redop.name, first.dtype)
  end
end

--- The arguments (table.pack) of a call of `name` on rank `rank` of `size` as a checked request. Raises error objects.
function call.parse(name, rank, size, args)
  local row = rows[name]
  local req = { row = row, rank = rank, size = size, root = 0, tag = 0, redop = "sum", osplits = {}, isplits = {} }
  if row.takes.tag then
    parse_p2p(req, args)
  elseif row["in"] == "inplace" then
    parse_inplace(req, args)
  elseif row.takes.splits then
    parse_alltoall_base(req, args)
  elseif row["in"] == "none" then
    take_opts(req, args, 1)
  else
    parse_two_sided(req, args)
  end
  validate(req)
  return req
end

local function copy_list(v)
  if type(v) ~= "table" then return v end
  local list = {}
  for i, item in ipairs(v) do list[i] = copy_list(item) end
  return list
end

--- The arguments an override gets for a request: canonical form, then options of its own.
function call.arguments(req, default_timeout)
  local row, args = req.row, {}
  if row.out ~= "none" then args[#args + 1] = copy_list(req.out) end
  if row["in"] ~= "none" then args[#args + 1] = copy_list(req.inp) end
  if row.takes.splits then
    args[#args + 1] = copy_list(req.osplits)
    args[#args + 1] = copy_list(req.isplits)
  end
  if row.takes.dst or row.takes.src then args[#args + 1] = req.peer end
  if row.takes.tag then args[#args + 1] = req.tag end
  local opts = { timeout = req.timeout or default_timeout }
  if not req.timeout then defaulted[opts] = default_timeout end
  if row.takes.op then opts.op = req.redop end
  if row.takes.root then opts.root = req.root end
  if row.takes.wait_all_ranks then opts.wait_all_ranks = req.wait_all_ranks or false end
  args[#args + 1] = opts
  return args
end

local function number_of(req, t)
  local v = t:get(1)
  if req.whole and math.type(v) == "float" and math.tointeger(v) then return math.tointeger(v) end
  return v
end

--- What the call returns once its operation is done.
function call.value(req, source)
  local v = req.value
  if req.number and v ~= nil then
    if req.list then
      local list = {}
      for i, t in ipairs(v) do list[i] = number_of(req, t) end
      v = list
    else
      v = number_of(req, v)
    end
  end
  if req.source then return v, source end
  return v
end

return call
