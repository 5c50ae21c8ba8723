-- What each operation is measured with: its arguments, what is filled in before a check and what must come out.
--
-- A case is made for one size. a and b are flat tensors, the memory of inputs and outputs; count is the number of
-- elements of one block (the vector, or the block of one rank).
local check = require "perigee.bench.check"

local ops = {}

local PARTS = 4 -- tensors of a coalesced call

-- Blocks k = 0 .. n-1 of count elements.
local function blocks(t, n, count)
  local list = {}
  for k = 0, n - 1 do list[k + 1] = t:narrow(1, k * count + 1, count) end
  return list
end

-- A block as up to PARTS tensors, none of them empty.
local function parts(t)
  local n = math.min(PARTS, t.numel)
  local list = {}
  for k = 0, n - 1 do
    local from, to = t.numel * k // n, t.numel * (k + 1) // n
    list[k + 1] = t:narrow(1, from + 1, to - from)
  end
  return list
end

local function reduce_values(c, salt) return check.contribution(c.dtype, c.redop, c.size, c.rank, salt) end
local function reduced(c, salt) return check.reduction(c.dtype, c.redop, c.size, salt) end
local function moved(c, from, to) return check.moved(c.dtype, from, to) end

-- { { tensor, values }, ... }: block k of list with f(k), k counting from 0
local function each(list, f)
  local pairs_of = {}
  for k, t in ipairs(list) do pairs_of[k] = { t, f(k - 1) } end
  return pairs_of
end

local function one_vector(c) return c.a:narrow(1, 1, c.count) end

local function allreduce_like(args_of, everywhere)
  return { a = 1, b = 0, redop = true, bus = everywhere and function(n) return 2 * (n - 1) / n end, make = function(c)
    local t = one_vector(c)
    return {
      args = args_of(c, t),
      fill = { { t, reduce_values(c, 0) } },
      expect = (everywhere or c.rank == c.root) and { { t, reduced(c, 0) } } or {},
    }
  end }
end

-- Gathering: everybody's block of a into all blocks of b. In place: the own block of b is the input.
local function gather_like(form)
  return { a = 1, b = "n", in_place = form == "single", total = true, make = function(c)
    local out = c.b:narrow(1, 1, c.count * c.size)
    local rows = blocks(out, c.size, c.count)
    local input = c.in_place and rows[c.rank + 1] or one_vector(c)
    local all = each(rows, function(k) return moved(c, k, 0) end)
    local case = { fill = { { input, moved(c, c.rank, 0) } }, expect = all }
    if form == "lists" then
      case.args = { { rows }, { input } }
    elseif form == "single" then
      case.args = { out, input }
    elseif form == "coalesced" then
      local outs, ins = {}, parts(input)
      local at = 1
      case.expect = {}
      for k, t in ipairs(ins) do
        outs[k] = c.b:narrow(1, at, t.numel * c.size)
        at = at + t.numel * c.size
        case.fill[k] = { t, moved(c, c.rank, k) }
        for r, row in ipairs(blocks(outs[k], c.size, t.numel)) do
          case.expect[#case.expect + 1] = { row, moved(c, r - 1, k) }
        end
      end
      case.args = { outs, ins }
    else -- gather
      case.args = { c.rank == c.root and { rows } or {}, { input }, { root = c.root } }
      if c.rank ~= c.root then case.expect = {} end
    end
    return case
  end }
end

-- Reduce and scatter: block k of everybody's a into rank k's b.
local function scatter_reduce(form)
  return { a = "n", b = 1, redop = true, in_place = form == "single", total = true, make = function(c)
    local input = c.a:narrow(1, 1, c.count * c.size)
    local columns = blocks(input, c.size, c.count)
    local out = c.in_place and columns[c.rank + 1] or c.b:narrow(1, 1, c.count)
    local opts = { op = c.redop }
    local case = {
      fill = each(columns, function(k) return reduce_values(c, k) end),
      expect = { { out, reduced(c, c.rank) } },
    }
    if form == "lists" then
      case.args = { { out }, { columns }, opts }
    elseif form == "single" then
      case.args = { out, input, opts }
    else -- coalesced
      local outs, ins = parts(out), {}
      local at = 1
      case.fill, case.expect = {}, {}
      for k, t in ipairs(outs) do
        ins[k] = c.a:narrow(1, at, t.numel * c.size)
        at = at + t.numel * c.size
        for r, block in ipairs(blocks(ins[k], c.size, t.numel)) do
          case.fill[#case.fill + 1] = { block, reduce_values(c, r - 1 + 7 * k) }
        end
        case.expect[k] = { t, reduced(c, c.rank + 7 * k) }
      end
      case.args = { outs, ins, opts }
    end
    return case
  end }
end

local function alltoall_like(args_of)
  return { a = "n", b = "n", total = true, make = function(c)
    local columns = blocks(c.a, c.size, c.count)
    local rows = blocks(c.b, c.size, c.count)
    return {
      args = args_of(c, rows, columns),
      fill = each(columns, function(k) return moved(c, c.rank, k) end),
      expect = each(rows, function(k) return moved(c, k, c.rank) end),
    }
  end }
end

-- Messages from rank 0 to rank 1 ("one"), or both ways. timed: the rank whose calls count; without it both. Other
-- ranks take part in the barriers alone.
local function message(ways, timed)
  return { a = 1, b = 1, ranks = 2, timed = timed, message = true, make = function(c)
    local out, into = one_vector(c), c.b:narrow(1, 1, c.count)
    local hears = c.rank <= 1 and (ways == "both" or c.rank == 1)
    return {
      out = out, into = into,
      fill = { { out, moved(c, c.rank, 0) } },
      expect = hears and { { into, moved(c, 1 - c.rank, 0) } } or {},
    }
  end }
end

local function nothing()
  return { a = 0, b = 0, unsized = true, make = function() return { args = {}, fill = {}, expect = {} } end }
end

ops.table = {
  allreduce = allreduce_like(function(c, t) return { { t }, { op = c.redop } } end, true),
  allreduce_coalesced = allreduce_like(function(c, t) return { parts(t), { op = c.redop } } end, true),
  reduce = allreduce_like(function(c, t) return { { t }, { op = c.redop, root = c.root } } end, false),
  broadcast = { a = 1, b = 0, make = function(c)
    local t = one_vector(c)
    return {
      args = { { t }, { root = c.root } },
      fill = { { t, moved(c, c.rank, 0) } },
      expect = { { t, moved(c, c.root, 0) } },
    }
  end },
  allgather = gather_like "lists",
  allgather_into_tensor = gather_like "single",
  allgather_into_tensor_coalesced = gather_like "coalesced",
  gather = gather_like "gather",
  scatter = { a = "n", b = 1, total = true, make = function(c)
    local columns = blocks(c.a, c.size, c.count)
    local out = c.b:narrow(1, 1, c.count)
    return {
      args = { { out }, c.rank == c.root and { columns } or {}, { root = c.root } },
      fill = each(columns, function(k) return moved(c, c.rank, k) end),
      expect = { { out, moved(c, c.root, c.rank) } },
    }
  end },
  reduce_scatter = scatter_reduce "lists",
  reduce_scatter_tensor = scatter_reduce "single",
  reduce_scatter_tensor_coalesced = scatter_reduce "coalesced",
  alltoall = alltoall_like(function(_, rows, columns) return { rows, columns } end),
  alltoall_base = alltoall_like(function(c)
    return { c.b:narrow(1, 1, c.count * c.size), c.a:narrow(1, 1, c.count * c.size) }
  end),
  barrier = nothing(),
  monitored_barrier = nothing(),
  send = message("one", 0),
  recv = message("one", 1),
  recv_anysource = message("one", 1),
  pingpong = message("both"),
  bw = message "one",
}

ops.order = {
  "allreduce", "allreduce_coalesced", "broadcast", "reduce", "allgather", "allgather_into_tensor",
  "allgather_into_tensor_coalesced", "gather", "scatter", "reduce_scatter", "reduce_scatter_tensor",
  "reduce_scatter_tensor_coalesced", "alltoall", "alltoall_base", "barrier", "monitored_barrier", "send", "recv",
  "recv_anysource", "pingpong", "bw",
}

--- Elements that the memory of inputs (a) and outputs (b) needs.
function ops.need(op, count, size)
  local function times(m) return m == "n" and size or m end
  return count * times(op.a), count * times(op.b)
end

--- Messages in flight of `bw`.
function ops.window(bytes)
  if bytes <= 65536 then return 64 end
  if bytes <= 1 << 20 then return 16 end
  return bytes <= 16 << 20 and 4 or 2
end

--- GB/s as nccl-tests count: of the larger side, and what the links must carry at least.
function ops.bandwidth(op, bytes, size, us)
  if op.unsized or us <= 0 then return 0, 0 end
  local total = bytes * (op.total and size or 1)
  local algbw = total / us / 1e3
  local factor = op.bus and op.bus(size) or op.total and (size - 1) / size or 1
  return algbw, algbw * factor
end

return ops
