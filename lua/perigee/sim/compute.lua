-- Every operation by its plain definition: the requests of all ranks in, the outputs written. The oracle of the tests,
-- so nothing here is clever. reqs[r + 1] is the request of rank r in canonical form (sim/call.lua).
local perigee = require "perigee"
local native = perigee._testing

local compute = {}

local HALF = { f16 = true, bf16 = true }

local function flat(t) return t:view(t.numel) end

--- Rows first .. first + n - 1 (from 0) of a flat tensor.
local function part(t, first, n) return n == 0 and perigee.zeros(t.dtype, 0) or t:narrow(1, first + 1, n) end

local function put(dst, src) flat(dst):copy_(flat(src)) end

-- ---- reduction ---------------------------------------------------------------------------------------

local byte_ops = {
  band = function(a, b) return a & b end,
  bor = function(a, b) return a | b end,
  bxor = function(a, b) return a ~ b end,
}
-- what the other operations are on booleans
local BOOL = { sum = "bor", max = "bor", product = "band", min = "band", band = "band", bor = "bor", bxor = "bxor" }

local function bitwise(list, f)
  local acc = { list[1]:tobytes():byte(1, -1) }
  for i = 2, #list do
    local bytes = list[i]:tobytes()
    for k = 1, #acc do acc[k] = f(acc[k], bytes:byte(k)) end
  end
  for k = 1, #acc do acc[k] = string.char(acc[k]) end
  return perigee.tensor(list[1].dtype, table.concat(acc), { list[1].numel })
end

local steps = {
  sum = function(acc, x) acc:add_(x) end,
  product = function(acc, x) acc:mul_(x) end,
  min = function(acc, x) acc:min_(x) end,
  max = function(acc, x) acc:max_(x) end,
}
steps.avg, steps.premul_sum = steps.sum, steps.sum

local function custom(list, op)
  local acc = list[1]:clone()
  for i = 2, #list do native.reduce(op, acc, list[i]) end
  return acc
end

--- The reduction of flat tensors, in the order of the list, as a new tensor.
function compute.reduce(list, op)
  local name = type(op) == "string" and op or op.name
  local dtype = list[1].dtype
  if type(op) ~= "string" and not op.factor then return custom(list, op) end
  if list[1].numel == 0 then return list[1]:clone() end
  if dtype == "bool" then return bitwise(list, byte_ops[BOOL[name]]) end
  if byte_ops[name] then return bitwise(list, byte_ops[name]) end
  local acc
  for _, t in ipairs(list) do
    local x = HALF[dtype] and t:to "f32" or t:clone() -- 16-bit floats accumulate in f32
    if name == "premul_sum" then x:mul_(op.factor) end
    if acc then steps[name](acc, x) else acc = x end
  end
  if name == "avg" then acc:div_(#list) end
  return HALF[dtype] and acc:to(dtype) or acc
end

-- ---- operations --------------------------------------------------------------------------------------

local ops = {}
compute.ops = ops

local function mismatch(fmt, ...) error({ mismatch = fmt:format(...) }, 0) end

local function fits(out, input, i, j, what)
  if out.numel ~= input.numel then
    mismatch("rank %d has room for %d elements of rank %d's %s, which are %d", i, out.numel, j, what, input.numel)
  end
end

-- All tensors of all ranks, rank by rank: a list of several on each rank is reduced as well.
function ops.allreduce(reqs)
  local list = {}
  for _, req in ipairs(reqs) do
    for _, t in ipairs(req.inp) do list[#list + 1] = flat(t) end
  end
  local result = compute.reduce(list, reqs[1].redop)
  for _, t in ipairs(list) do t:copy_(result) end
end

function ops.allreduce_coalesced(reqs)
  for k = 1, #reqs[1].inp do
    local list = {}
    for r, req in ipairs(reqs) do list[r] = flat(req.inp[k]) end
    local result = compute.reduce(list, reqs[1].redop)
    for _, t in ipairs(list) do t:copy_(result) end
  end
end

function ops.broadcast(reqs)
  local value = reqs[reqs[1].root + 1].inp[1]:clone()
  for _, req in ipairs(reqs) do
    for _, t in ipairs(req.inp) do put(t, value) end
  end
end

function ops.reduce(reqs)
  local list = {}
  for r, req in ipairs(reqs) do list[r] = flat(req.inp[1]) end
  list[reqs[1].root + 1]:copy_(compute.reduce(list, reqs[1].redop))
end

-- outputs[i][r * k + j] is input j of rank r.
function ops.allgather(reqs)
  local k = #reqs[1].inp
  local values = {}
  for r, req in ipairs(reqs) do
    for j, t in ipairs(req.inp) do values[(r - 1) * k + j] = t:clone() end
  end
  for i, req in ipairs(reqs) do
    for _, row in ipairs(req.out) do
      for at, value in ipairs(values) do
        fits(row[at], value, i - 1, (at - 1) // k, "input")
        put(row[at], value)
      end
    end
  end
end

local function into(reqs, output, input)
  local values = {}
  for r, req in ipairs(reqs) do values[r] = flat(input(req)):clone() end
  for _, req in ipairs(reqs) do
    local out = flat(output(req))
    for r, value in ipairs(values) do part(out, (r - 1) * value.numel, value.numel):copy_(value) end
  end
end

function ops.allgather_into_tensor(reqs)
  into(reqs, function(req) return req.out end, function(req) return req.inp end)
end

function ops.allgather_into_tensor_coalesced(reqs)
  for k = 1, #reqs[1].inp do
    into(reqs, function(req) return req.out[k] end, function(req) return req.inp[k] end)
  end
end

function ops.gather(reqs)
  local root = reqs[1].root
  local row = reqs[root + 1].out[1]
  for r, req in ipairs(reqs) do fits(row[r], req.inp[1], root, r - 1, "input") end
  for r, req in ipairs(reqs) do put(row[r], req.inp[1]) end
end

function ops.scatter(reqs)
  local root = reqs[1].root
  local row = reqs[root + 1].inp[1]
  for r, req in ipairs(reqs) do fits(req.out[1], row[r], r - 1, root, "input") end
  for r, req in ipairs(reqs) do put(req.out[1], row[r]) end
end

function ops.reduce_scatter(reqs)
  local results = {}
  for i, req in ipairs(reqs) do
    local list = {}
    for r, other in ipairs(reqs) do
      list[r] = flat(other.inp[1][i])
      fits(req.out[1], list[r], i - 1, r - 1, "input")
    end
    results[i] = compute.reduce(list, reqs[1].redop)
  end
  for i, req in ipairs(reqs) do put(req.out[1], results[i]) end
end

local function scatter_rows(reqs, output, input)
  local results = {}
  for i, req in ipairs(reqs) do
    local n, list = output(req).numel, {}
    for r, other in ipairs(reqs) do list[r] = part(flat(input(other)), (i - 1) * n, n) end
    results[i] = compute.reduce(list, reqs[1].redop)
  end
  for i, req in ipairs(reqs) do put(output(req), results[i]) end
end

function ops.reduce_scatter_tensor(reqs)
  scatter_rows(reqs, function(req) return req.out end, function(req) return req.inp end)
end

function ops.reduce_scatter_tensor_coalesced(reqs)
  for k = 1, #reqs[1].inp do
    scatter_rows(reqs, function(req) return req.out[k] end, function(req) return req.inp[k] end)
  end
end

function ops.alltoall(reqs)
  local values = {}
  for r, req in ipairs(reqs) do
    values[r] = {}
    for i, t in ipairs(req.inp) do
      fits(reqs[i].out[r], t, i - 1, r - 1, "input")
      values[r][i] = t:clone()
    end
  end
  for i, req in ipairs(reqs) do
    for r, t in ipairs(req.out) do put(t, values[r][i]) end
  end
end

-- Elements of each rank's block of t.
local function blocks(t, splits, n)
  local rows = t.ndim > 0 and t.shape[1] or 1
  local each = rows > 0 and t.numel // rows or 0
  local sizes = {}
  for r = 1, n do sizes[r] = (#splits > 0 and splits[r] or rows // n) * each end
  return sizes
end

function ops.alltoall_base(reqs)
  local n = #reqs
  local sent = {}
  for r, req in ipairs(reqs) do
    local at, sizes = 0, blocks(req.inp, req.isplits, n)
    sent[r] = {}
    for i = 1, n do
      sent[r][i] = part(flat(req.inp), at, sizes[i]):clone()
      at = at + sizes[i]
    end
  end
  for i, req in ipairs(reqs) do
    local sizes = blocks(req.out, req.osplits, n)
    for r = 1, n do
      if sizes[r] ~= sent[r][i].numel then
        mismatch("rank %d has room for %d elements of rank %d, which sends %d", i - 1, sizes[r], r - 1,
          sent[r][i].numel)
      end
    end
  end
  for i, req in ipairs(reqs) do
    local at, sizes = 0, blocks(req.out, req.osplits, n)
    for r = 1, n do
      part(flat(req.out), at, sizes[r]):copy_(sent[r][i])
      at = at + sizes[r]
    end
  end
end

function ops.barrier() end
function ops.monitored_barrier() end

-- ---- what all ranks must agree on -----------------------------------------------------------------------

-- Sizes may differ by rank.
local ANY_SIZE = { allgather = true, alltoall = true, alltoall_base = true, gather = true, scatter = true,
  reduce_scatter = true }

local function first_tensor(v)
  while type(v) == "table" do v = v[1] end
  return v
end

local function sizes_of(req)
  local v = req.inp or req.out
  if type(v) ~= "table" then return tostring(v.numel) end
  local list = {}
  for i, t in ipairs(v) do list[i] = tostring(t.numel) end
  return table.concat(list, "+")
end

--- "allreduce f32[2] sum": equal on all ranks, or their calls do not belong together.
function compute.describe(req)
  local name = req.row.name
  local t = first_tensor(req.inp) or first_tensor(req.out)
  local text = name
  if t then
    text = ("%s %s"):format(text, t.dtype)
    if not ANY_SIZE[name] then text = ("%s[%s]"):format(text, sizes_of(req)) end
  end
  if req.row.takes.op then
    local op = req.redop
    text = text .. " " .. (type(op) == "string" and op or op.name)
    if type(op) ~= "string" and op.factor then text = ("%s(%g)"):format(text, op.factor) end
  end
  if req.row.takes.root then text = ("%s root %d"):format(text, req.root) end
  return text
end

return compute
