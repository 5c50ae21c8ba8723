-- Every operation x dtype x size on this world, against the plain definition. Run by table_spec.lua on every number of
-- ranks and both transports:  perigee run -n N spec/conformance/table.lua [part]
--
-- Prints "N cells passed" on rank 0; a wrong cell raises with its coordinates.
local here = arg[0]:match("^(.*)/") or "."
package.path = here .. "/?.lua;" .. package.path
local perigee = require "perigee"
local def = require "definition"

local world <close> = perigee.init()
local rank, size = world.rank, world.size
local right, left = (rank + 1) % size, (rank - 1) % size
local cells = 0

local FLOATS = { "f32", "f64", "bf16", "f16" }
local INTS = { "i32", "i8", "u8", "i16", "u16", "u32", "i64", "u64" }
local ALL = { "f32", "f64", "i32", "bf16", "bool", "f16", "i8", "u8", "i16", "u16", "u32", "i64", "u64", "c64", "c128" }

local SIZES, listed = {}, {}
for _, n in ipairs { 0, 1, size - 1, size, size + 1, 1000 } do
  if not listed[n] then SIZES[#SIZES + 1] = n end
  listed[n] = true
end
local BIG = tonumber(os.getenv "PERIGEE_TABLE_BIG" or 1000000)

local function check(got, want, ...)
  cells = cells + 1
  if not got:equal(want) then
    local where = {}
    for i = 1, select("#", ...) do where[i] = tostring((select(i, ...))) end
    local detail = ""
    for i = 1, math.min(want.numel, got.numel) do
      if got:get(i) ~= want:get(i) then
        detail = (": element %d is %s, %s expected"):format(i, tostring(got:get(i)), tostring(want:get(i)))
        break
      end
    end
    error(("rank %d of %d: %s%s"):format(rank, size, table.concat(where, " "), detail), 0)
  end
end

local function input(dtype, op, n, salt) return def.input(dtype, op, rank, salt or 0, n) end
local function from(dtype, r, n, salt) return def.input(dtype, "sum", r, salt or 0, n) end

-- ---- one function per operation: (dtype, n) ----------------------------------------------------------

local ops = {}

function ops.allreduce(dtype, n, op)
  op = op or "sum"
  local t = input(dtype, op, n)
  assert(world:allreduce(t, { op = def.redop(op) }) == t)
  check(t, def.expected(dtype, op, size, 0, n), "allreduce", op, dtype, n)
end

function ops.allreduce_coalesced(dtype, n)
  local a, b, c = input(dtype, "sum", n, 1), input(dtype, "sum", 3, 2), input(dtype, "sum", n // 2, 3)
  world:allreduce_coalesced { a, b, c }
  check(a, def.expected(dtype, "sum", size, 1, n), "allreduce_coalesced[1]", dtype, n)
  check(b, def.expected(dtype, "sum", size, 2, 3), "allreduce_coalesced[2]", dtype, n)
  check(c, def.expected(dtype, "sum", size, 3, n // 2), "allreduce_coalesced[3]", dtype, n)
end

function ops.broadcast(dtype, n)
  for root = 0, size - 1 do
    local t = input(dtype, "sum", n)
    world:broadcast(t, { root = root })
    check(t, from(dtype, root, n), "broadcast", dtype, n, "root", root)
  end
end

function ops.reduce(dtype, n, op)
  op = op or "sum"
  for root = 0, size - 1 do
    local t = input(dtype, op, n)
    world:reduce(t, { root = root, op = def.redop(op) })
    local want = rank == root and def.expected(dtype, op, size, 0, n) or input(dtype, op, n)
    check(t, want, "reduce", op, dtype, n, "root", root)
  end
end

function ops.allgather(dtype, n)
  local outs = {}
  for r = 0, size - 1 do outs[r + 1] = perigee.zeros(dtype, n) end
  world:allgather({ outs }, { input(dtype, "sum", n) })
  for r = 0, size - 1 do check(outs[r + 1], from(dtype, r, n), "allgather", dtype, n, "from", r) end
end

-- Rank r contributes n + r elements.
function ops.allgather_uneven(dtype, n)
  local outs = {}
  for r = 0, size - 1 do outs[r + 1] = perigee.zeros(dtype, n + r) end
  world:allgather({ outs }, { input(dtype, "sum", n + rank) })
  for r = 0, size - 1 do check(outs[r + 1], from(dtype, r, n + r), "allgather uneven", dtype, n, "from", r) end
end

local function concat(dtype, count, one)
  local parts = {}
  for r = 0, count - 1 do parts[#parts + 1] = one(r):tobytes() end
  local bytes = table.concat(parts)
  return #bytes > 0 and perigee.tensor(dtype, bytes) or perigee.zeros(dtype, 0)
end

function ops.allgather_into_tensor(dtype, n)
  local out = perigee.zeros(dtype, n * size)
  world:allgather_into_tensor(out, input(dtype, "sum", n))
  check(out, concat(dtype, size, function(r) return from(dtype, r, n) end), "allgather_into_tensor", dtype, n)
end

function ops.allgather_into_tensor_coalesced(dtype, n)
  local a, b = perigee.zeros(dtype, n * size), perigee.zeros(dtype, 2 * size)
  world:allgather_into_tensor_coalesced({ a, b }, { input(dtype, "sum", n, 1), input(dtype, "sum", 2, 2) })
  local name = "allgather_into_tensor_coalesced"
  check(a, concat(dtype, size, function(r) return from(dtype, r, n, 1) end), name, 1, dtype, n)
  check(b, concat(dtype, size, function(r) return from(dtype, r, 2, 2) end), name, 2, dtype, n)
end

function ops.gather(dtype, n)
  for root = 0, size - 1 do
    local outs = {}
    for r = 0, size - 1 do outs[r + 1] = perigee.zeros(dtype, n) end
    world:gather(rank == root and { outs } or {}, { input(dtype, "sum", n) }, { root = root })
    for r = 0, size - 1 do
      if rank == root then check(outs[r + 1], from(dtype, r, n), "gather", dtype, n, "root", root, "from", r) end
    end
  end
end

-- The block of rank r for rank s has salt s.
function ops.scatter(dtype, n)
  for root = 0, size - 1 do
    local ins = {}
    for s = 0, size - 1 do ins[s + 1] = input(dtype, "sum", n, s) end
    local out = perigee.zeros(dtype, n)
    world:scatter({ out }, rank == root and { ins } or {}, { root = root })
    check(out, from(dtype, root, n, rank), "scatter", dtype, n, "root", root)
  end
end

function ops.reduce_scatter(dtype, n, op)
  op = op or "sum"
  local ins = {}
  for s = 0, size - 1 do ins[s + 1] = input(dtype, op, n, s) end
  local out = perigee.zeros(dtype, n)
  world:reduce_scatter({ out }, { ins }, { op = def.redop(op) })
  check(out, def.expected(dtype, op, size, rank, n), "reduce_scatter", op, dtype, n)
end

function ops.reduce_scatter_tensor(dtype, n, op)
  op = op or "sum"
  local all = concat(dtype, size, function(s) return input(dtype, op, n, s) end)
  local out = perigee.zeros(dtype, n)
  world:reduce_scatter_tensor(out, all, { op = def.redop(op) })
  check(out, def.expected(dtype, op, size, rank, n), "reduce_scatter_tensor", op, dtype, n)
end

function ops.reduce_scatter_tensor_coalesced(dtype, n)
  local a = concat(dtype, size, function(s) return input(dtype, "sum", n, s) end)
  local b = concat(dtype, size, function(s) return input(dtype, "sum", 2, s + 20) end)
  local x, y = perigee.zeros(dtype, n), perigee.zeros(dtype, 2)
  world:reduce_scatter_tensor_coalesced({ x, y }, { a, b })
  check(x, def.expected(dtype, "sum", size, rank, n), "reduce_scatter_tensor_coalesced[1]", dtype, n)
  check(y, def.expected(dtype, "sum", size, rank + 20, 2), "reduce_scatter_tensor_coalesced[2]", dtype, n)
end

function ops.alltoall(dtype, n)
  local ins, outs = {}, {}
  for s = 0, size - 1 do ins[s + 1], outs[s + 1] = input(dtype, "sum", n, s), perigee.zeros(dtype, n) end
  world:alltoall(outs, ins)
  for r = 0, size - 1 do check(outs[r + 1], from(dtype, r, n, rank), "alltoall", dtype, n, "from", r) end
end

-- Rank r sends r + s elements to rank s: splits differ everywhere.
function ops.alltoall_base_uneven(dtype, n)
  local in_splits, out_splits, total_in, total_out = {}, {}, 0, 0
  for s = 0, size - 1 do
    in_splits[s + 1], out_splits[s + 1] = n % 1000 + rank + s, n % 1000 + s + rank
    total_in, total_out = total_in + in_splits[s + 1], total_out + out_splits[s + 1]
  end
  local all = concat(dtype, size, function(s) return input(dtype, "sum", n % 1000 + rank + s, s) end)
  local out = perigee.zeros(dtype, total_out)
  world:alltoall_base(out, all, out_splits, in_splits)
  check(out, concat(dtype, size, function(r) return from(dtype, r, n % 1000 + r + rank, rank) end),
    "alltoall_base uneven", dtype, n)
end

function ops.alltoall_base(dtype, n)
  local all = concat(dtype, size, function(s) return input(dtype, "sum", n, s) end)
  local out = perigee.zeros(dtype, n * size)
  world:alltoall_base(out, all)
  check(out, concat(dtype, size, function(r) return from(dtype, r, n, rank) end), "alltoall_base", dtype, n)
end

function ops.send_recv(dtype, n)
  if size == 1 then return end
  local got = perigee.zeros(dtype, n)
  local work = world:send(input(dtype, "sum", n), right, { tag = n % 7, async = true })
  world:recv(got, left, { tag = n % 7 })
  work:wait()
  check(got, from(dtype, left, n), "send/recv", dtype, n)
end

function ops.recv_anysource(dtype, n)
  if size == 1 then return end
  if rank ~= 0 then
    world:send(input(dtype, "sum", n), 0, { tag = 99 })
    return
  end
  local seen = {}
  for _ = 1, size - 1 do
    local got = perigee.zeros(dtype, n)
    local _, source = world:recv_anysource(got, { tag = 99 })
    assert(source ~= 0 and not seen[source], "recv_anysource: source " .. tostring(source))
    seen[source] = true
    check(got, from(dtype, source, n), "recv_anysource", dtype, n, "from", source)
  end
end

-- ---- the parts -----------------------------------------------------------------------------------------

local names = {}
for name in pairs(ops) do names[#names + 1] = name end
table.sort(names)

local parts = {}

-- Operations that only move data see a dtype's width alone: one dtype of each width goes through every size.
local WIDTHS = { i8 = true, f16 = true, f32 = true, f64 = true, c128 = true }
local function computes(name) return name:find "reduce" ~= nil end

-- Every operation, every dtype, small sizes.
function parts.small()
  for _, dtype in ipairs(ALL) do
    for _, n in ipairs(SIZES) do
      for _, name in ipairs(names) do
        if n == 1000 or WIDTHS[dtype] or computes(name) then ops[name](dtype, n) end
      end
      world:barrier()
    end
  end
end

-- Every other reduce operation x dtype it is defined for, on the operations that reduce.
function parts.redops()
  local function each(dtypes, list)
    for _, dtype in ipairs(dtypes) do
      for _, op in ipairs(list) do
        for _, n in ipairs { 1, size + 1, 1000 } do
          ops.allreduce(dtype, n, op)
          ops.reduce(dtype, n, op)
          ops.reduce_scatter(dtype, n, op)
          ops.reduce_scatter_tensor(dtype, n, op)
        end
      end
    end
  end
  each(FLOATS, { "avg", "product", "min", "max", "premul_sum" })
  each(INTS, { "avg", "product", "min", "max", "band", "bor", "bxor" })
  each({ "bool" }, { "product", "min", "max", "band", "bor", "bxor" })
  each({ "c64", "c128" }, { "avg", "premul_sum" })
end

-- Every operation on a million elements.
function parts.big()
  for _, dtype in ipairs { "f32", "bf16", "i8" } do
    for _, name in ipairs(names) do
      -- operations that loop over roots, or hold a block per rank, take a share of it
      local n = name:find "allreduce" and BIG or BIG // size + 1
      if dtype == "f32" or computes(name) then ops[name](dtype, n) end
    end
  end
  for _, op in ipairs { "max", "avg" } do ops.allreduce("f64", BIG, op) end
end

local wanted = arg[1]
for _, part in ipairs { "small", "redops", "big" } do
  if wanted == nil or wanted == part then parts[part]() end
end
world:barrier()
if rank == 0 then print(("%d cells passed (%s, %d ranks)"):format(cells, world.transport, size)) end
