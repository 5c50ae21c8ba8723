-- What each rank of `perigee tune` runs: every operation and size by every algorithm that can do it, in turn.
--
-- A group for each way to force (option tuning), all of the same ranks; a cell is an operation, a size and a group.
-- Rounds are outermost, so that what disturbs the machine for a while falls on all of them; medians of the rounds are
-- kept.
local perigee = require "perigee"
local bench = require "perigee.bench.measure"
local json = require "perigee.bench.json"
local machine = require "perigee.bench.machine"

-- Operations of bench by the kinds of rules, in the order in which they are measured.
local kinds = {
  { "allreduce", "allreduce" }, { "broadcast", "broadcast" }, { "reduce", "reduce" },
  { "allgather", "allgather_into_tensor" }, { "gather", "gather" }, { "scatter", "scatter" },
  { "reduce_scatter", "reduce_scatter_tensor" }, { "alltoall", "alltoall_base" },
}

local o = { op = {}, size = {} }
for _, word in ipairs(arg) do
  local key, value = word:match "^([%w_]+)=(.*)$"
  if key == "op" then
    o.op[value] = true
  elseif key == "size" then
    table.insert(o.size, math.tointeger(tonumber(value)))
  else
    o[key] = tonumber(value) or value
  end
end

local function without_symmetric(list)
  local out = {}
  for _, name in ipairs(list) do
    if name ~= "symmetric" then out[#out + 1] = name end
  end
  return out, #out < #list
end

--- What can be forced: the operations with their algorithms, and the rules of each group.
local function plan(world)
  local ops, groups, symmetric = {}, {}, {}
  local where = world.transport == "tcp" and "tcp" or "shm"
  for _, kind in ipairs(kinds) do
    local name, method = kind[1], kind[2]
    local order, shared = without_symmetric(world:explain(name, 1 << 20).possible)
    if #order > 0 and (next(o.op) == nil or o.op[name]) then
      ops[#ops + 1] = { kind = name, method = method, order = order, shared = shared }
      for i, algo in ipairs(order) do
        groups[i] = groups[i] or {}
        table.insert(groups[i], ("%s/%s:0-:%s"):format(name, where, algo))
      end
      if shared then table.insert(symmetric, ("%s/%s:0-:symmetric"):format(name, where)) end
    end
  end
  return ops, groups, symmetric
end

local function median(list)
  table.sort(list)
  return list[(#list + 1) // 2]
end

local run -- of bench: memory for all cells
local function open_group(rules, name)
  return run:on(perigee.init { name = name, tuning = table.concat(rules, ";") })
end

local function cells(ops, views, symmetric)
  local list = {}
  for _, bytes in ipairs(o.size) do
    for _, op in ipairs(ops) do
      local rows = {}
      for i in ipairs(op.order) do rows[i] = views[i]:row(op.method, bytes) end
      if op.shared and symmetric then rows[#rows + 1] = symmetric:row(op.method, bytes) end
      list[#list + 1] = { op = op, bytes = bytes, rows = rows }
    end
  end
  return list
end

-- Whether there is time for more; the same answer on all ranks.
local function in_time(deadline)
  return run.control:allreduce(perigee.clock() < deadline and 1 or 0, { op = "min" }) == 1
end

local function measure(list, deadline)
  local began = perigee.clock()
  for round = 1, o.rounds do
    for _, cell in ipairs(list) do
      if not in_time(deadline) then return round end
      for i = 1, #cell.rows do
        local row = cell.rows[(i + round) % #cell.rows + 1]
        row.run:prepare(row)
        if round == 1 then row:calibrate() end
        row:repetition()
        row.case = nil
      end
      cell.rounds = round
    end
    if o.progress == 1 and run.world.rank == 0 then
      io.stderr:write(("perigee tune: round %d of %d after %.0f s\n"):format(round, o.rounds, perigee.clock() - began))
    end
  end
  return o.rounds
end

-- Microseconds of a row: the median of its rounds.
local function time_of(row)
  local list = {}
  for i, sample in ipairs(row.samples) do list[i] = sample[1] end
  return #list > 0 and median(list) or nil
end

local function results(ops, list, world, views)
  for _, op in ipairs(ops) do
    op.sizes, op.times, op.default, op.symmetric, op.symmetric_default = {}, {}, {}, {}, {}
    for _, name in ipairs(op.order) do op.times[name] = {} end
    for _, cell in ipairs(list) do
      if cell.op == op and cell.rounds then
        local i = #op.sizes + 1
        op.sizes[i] = cell.bytes
        op.default[i] = world:explain(op.kind, cell.bytes).path
        for k, name in ipairs(op.order) do
          -- not what a forced algorithm leaves to another one
          local forced = views[k].world:explain(op.kind, cell.bytes).path == name
          op.times[name][i] = forced and time_of(cell.rows[k]) or 0
        end
        local extra = cell.rows[#op.order + 1]
        if extra then
          op.symmetric[i] = time_of(extra)
          local path = world:explain(op.kind, cell.bytes, { symmetric = true }).path
          op.symmetric_default[i] = path == "symmetric" and path or "plain"
        end
      end
    end
    if #op.symmetric == 0 then op.symmetric, op.symmetric_default = nil, nil end
  end
end

local started = perigee.clock()
local names = {}
for _, kind in ipairs(kinds) do
  if next(o.op) == nil or o.op[kind[1]] then names[#names + 1] = kind[2] end
end
run = bench.open {
  op = names, size = o.size, load = {}, iters = 0, warmup = -1, reps = 1, budget = 1, settle = 200, check = false,
  dtype = "f32", redop = "sum", root = 0, backend = "native", from = "c", mode = "each", tuning = "",
}
local world = run.world
local ops, groups, shared = plan(world)
-- With more ranks than cores calls one after the other are the fairer figure (bench/README.md).
local wait = world:explain("allreduce", 1 << 20).wait
run.opts.mode = wait == "park" and "b2b" or "each"
local views, symmetric = {}, nil
for i, rules in ipairs(groups) do views[i] = open_group(rules, "tune" .. i) end
if #shared > 0 then
  symmetric = open_group(shared, "tune-symmetric")
  symmetric:allocate(true)
end
run:settle()
local list = cells(ops, views, symmetric)
local rows = 0
for _, cell in ipairs(list) do rows = rows + #cell.rows end
run.opts.budget = math.max(0.3, math.min(20, o.seconds * 1000 / (rows * (o.rounds + 1))))
local rounds = measure(list, started + o.seconds)
results(ops, list, world, views)
if world.rank == 0 then
  local done = {}
  for _, op in ipairs(ops) do
    op.method, op.shared = nil, nil
    if #op.sizes > 0 then done[#done + 1] = op end
  end
  local f <close> = assert(io.open(o.out, "wb"))
  f:write(json.encode { ranks = world.size, transport = world.transport, where = wait or "tcp", rounds = rounds,
    seconds = perigee.clock() - started, machine = machine.describe(), ops = done })
end
for _, view in ipairs(views) do view.world:close() end
if symmetric then symmetric.world:close() end
run:close()
