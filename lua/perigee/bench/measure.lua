-- The measurement of one rank: opens the world, runs every row, agrees with the other ranks on what a row is.
local perigee = require "perigee"
local loop = require "perigee.bench.loop"
local check = require "perigee.bench.check"
local machine = require "perigee.bench.machine"
local ops = require "perigee.bench.ops"

local measure = {}

local MEMORY_CAP = 6.5e9  -- bytes of buffers of all ranks
local LARGE = 1 << 20     -- bytes of a row that ranks settle after
local MOST_CALLS = 100000 -- of a row, when the budget decides

-- ---- calls from a Lua loop: what loop.lua's C loops do, through the methods of the group ------------------

local lua_loops = {}

local function summary(us)
  local sum = 0
  for _, v in ipairs(us) do sum = sum + v end
  table.sort(us)
  local n = #us
  return sum / n, us[1], us[n // 2 + 1], us[n * 99 // 100 + 1]
end

function lua_loops.calls(op, iters)
  return function(world, ...)
    local method, us, clock = world[op], {}, perigee.clock
    for i = 1, iters do
      local start = clock()
      method(world, ...)
      us[i] = (clock() - start) * 1e6
      world:barrier()
    end
    return summary(us)
  end
end

function lua_loops.back_to_back(op, iters)
  return function(world, ...)
    local method = world[op]
    local start = perigee.clock()
    for _ = 1, iters do method(world, ...) end
    local each = (perigee.clock() - start) * 1e6 / iters
    return each, each, each, each
  end
end

function lua_loops.pingpong(iters)
  return function(world, out, into)
    local us = {}
    for i = 1, iters do
      local start = perigee.clock()
      if world.rank == 0 then
        world:send(out, 1)
        world:recv(into, 1)
      elseif world.rank == 1 then
        world:recv(into, 0)
        world:send(out, 0)
      end
      us[i] = (perigee.clock() - start) * 1e6 / 2
    end
    return summary(us)
  end
end

function lua_loops.window(iters, width)
  return function(world, out, into)
    local us, works, peer = {}, {}, 1 - world.rank
    for i = 1, iters do
      local start = perigee.clock()
      if world.rank <= 1 then
        for k = 1, width do
          works[k] = world.rank == 0 and world:send(out, peer, { async = true })
            or world:recv(out, peer, { async = true })
        end
        for k = 1, width do works[k]:wait() end
        if world.rank == 0 then world:recv(into, peer, { tag = 3 }) else world:send(into, peer, { tag = 3 }) end
      end
      us[i] = (perigee.clock() - start) * 1e6 / width
    end
    return summary(us)
  end
end

lua_loops.idle = loop.idle

-- ---- one row ----------------------------------------------------------------------------------------

local Row = {}
Row.__index = Row

-- A value of all ranks: the largest, unless op says otherwise.
function Row:agree(value, op)
  return self.run.control:allreduce(value + 0.0, { op = op or "max" })
end

-- Arguments of send, recv and recv_anysource for this rank; nil for those that have no part.
local function message_call(row)
  local case, rank = row.case, row.run.world.rank
  if rank == 0 then return "send", case.out, 1, { tag = 5 } end
  if rank ~= 1 then return nil end
  if row.name == "recv_anysource" then return "recv_anysource", case.into, { tag = 5 } end
  return "recv", case.into, 0, { tag = 5 }
end

--- iters calls; four numbers of this rank.
function Row:calls(iters)
  local loops, world, case = self.run.loops, self.run.world, self.case
  if self.name == "pingpong" then return loops.pingpong(iters)(world, case.out, case.into) end
  if self.name == "bw" then
    local message = world.rank == 0 and case.out or case.into
    return loops.window(iters, self.width)(world, message, self.run.answer)
  end
  local kind = self.run.opts.mode == "b2b" and "back_to_back" or "calls"
  if not self.op.message then return loops[kind](self.name, iters)(world, table.unpack(case.args)) end
  local name = message_call(self)
  if name then return loops[kind](name, iters)(world, select(2, message_call(self))) end
  if kind == "calls" then loops.idle(iters)(world) end
  return 0, 0, 0, 0
end

-- What this rank's figures count for the row.
function Row:timed(...)
  local timed = self.op.timed
  if timed and timed ~= self.run.world.rank then return 0, 0, 0, 0 end
  return ...
end

function Row:mean_of(iters)
  return self:agree((self:timed(self:calls(iters))))
end

-- Microseconds that one call takes with the barrier after it: of the slowest rank.
function Row:pace(iters)
  local start = perigee.clock()
  self:calls(iters)
  return self:agree((perigee.clock() - start) * 1e6) / iters
end

--- Warm up and find how many calls fill the budget, barriers included. Long calls are warm after one.
function Row:calibrate()
  local opts = self.run.opts
  if opts.iters > 0 then
    self:calls(1)
    self.iters = opts.iters
    return
  end
  local per = self:pace(1)
  if per < 50000 then per = self:pace(2) end
  if per < 2000 then per = self:pace(10) end
  local least = per > 200000 and 1 or per > 20000 and 2 or 5
  self.iters = math.max(least, math.min(MOST_CALLS, math.floor(opts.budget * 1000 / math.max(per, 0.05))))
end

function Row:repetition()
  local warmup = self.run.opts.warmup
  if warmup < 0 then warmup = self.iters > 20 and self.iters // 10 or 0 end
  if warmup > 0 then self:calls(warmup) end
  self.run.world:barrier()
  local figures = { self:timed(self:calls(self.iters)) }
  for i, v in ipairs(figures) do figures[i] = self:agree(v) end
  self.samples[#self.samples + 1] = figures
end

--- Wrong elements of one call on known values, over all ranks.
function Row:check()
  for _, pair in ipairs(self.case.fill) do check.fill(pair[1], pair[2]) end
  self.run.control:barrier()
  self:calls(1)
  local wrong = 0
  for _, pair in ipairs(self.case.expect) do wrong = wrong + check.wrong(pair[1], pair[2]) end
  self.wrong = math.tointeger(self:agree(wrong, "sum"))
end

--- Start, compute for as long as the call alone takes, wait; and the same one after the other.
function Row:overlap()
  local world, args = self.run.world, self.case.args
  self:calls(self.iters)
  local comm = self:mean_of(self.iters)
  loop.compute(2000)
  local unit = self:agree(loop.compute(5000) / 5000)
  local units = math.max(1, math.floor(comm / unit))
  local compute = 0
  for _ = 1, self.iters do compute = compute + loop.compute(units) end
  compute = self:agree(compute / self.iters)
  local turn = self:agree((loop.in_turn(self.name, self.iters, units)(world, table.unpack(args))))
  local both = self:agree((loop.overlap(self.name, self.iters, units)(world, table.unpack(args))))
  self.samples[#self.samples + 1] = { comm, compute, turn, both }
end

-- ---- all rows -----------------------------------------------------------------------------------------

local Run = {}
Run.__index = Run

-- Names as they were given become rows of the table: aliases, "all".
local function op_names(given)
  local alias, names, seen = {}, {}, {}
  for _, op in ipairs(perigee.ops()) do
    for word in op.aliases:gmatch "%S+" do alias[word] = op.name end
  end
  for _, name in ipairs(#given > 0 and given or { "allreduce" }) do
    for _, one in ipairs(name == "all" and ops.order or { alias[name] or name }) do
      if not seen[one] then names[#names + 1] = one end
      seen[one] = true
    end
  end
  return names
end

local function row_of(run, name, bytes)
  local op = ops.table[name]
  local count = op.unsized and 0 or math.max(1, bytes // run.element)
  return setmetatable({
    run = run, name = name, op = op, count = count, bytes = count * run.element, samples = {},
    width = name == "bw" and ops.window(count * run.element) or nil,
  }, Row)
end

-- Rows that can be measured; says on rank 0 which cannot.
function Run:plan()
  local cap = self.control:allreduce(math.min(MEMORY_CAP, machine.available() * 0.7), { op = "min" })
  self.rows, self.left_out = {}, {}
  for _, name in ipairs(op_names(self.opts.op)) do
    local op = ops.table[name]
    if (op.ranks or 1) > self.world.size then
      self.left_out[#self.left_out + 1] = ("%s needs %d ranks"):format(name, op.ranks)
    elseif self.opts.mode == "overlap" and (op.message or op.unsized) then
      self.left_out[#self.left_out + 1] = name .. " has no overlap to measure"
    else
      for _, bytes in ipairs(op.unsized and { 0 } or self.opts.size) do
        local row = row_of(self, name, bytes)
        local a, b = ops.need(op, row.count, self.world.size)
        if (a + b) * self.element * self.world.size > cap then
          self.left_out[#self.left_out + 1] = ("%s of %d bytes: the buffers of all ranks would take %.1f GB"):format(
            name, bytes, (a + b) * self.element * self.world.size / 1e9)
        else
          self.rows[#self.rows + 1] = row
          self.need_a, self.need_b = math.max(self.need_a, a), math.max(self.need_b, b)
        end
      end
    end
  end
end

-- One memory for all rows, as a program that reuses its buffers; written to, so that it is there.
function Run:allocate(symmetric)
  local function make(n)
    if not symmetric then return perigee.ones(self.opts.dtype, n) end
    return self.world:alloc(self.opts.dtype, n):fill_(1)
  end
  self.a, self.b = make(math.max(1, self.need_a)), make(math.max(1, self.need_b))
  self.answer = perigee.zeros("f32", 1)
end

function Run:prepare(row)
  local world = self.world
  row.case = row.op.make {
    a = self.a, b = self.b, count = row.count, rank = world.rank, size = world.size, root = self.opts.root,
    redop = self.opts.redop, dtype = self.opts.dtype, in_place = self.opts.in_place and row.op.in_place,
  }
end

local function median(samples, i)
  local list = {}
  for k, s in ipairs(samples) do list[k] = s[i] end
  table.sort(list)
  local n = #list
  return n % 2 == 1 and list[n // 2 + 1] or (list[n // 2] + list[n // 2 + 1]) / 2
end

--- The same measurement on another group of the same ranks, with this one's memory unless it allocates its own.
function Run:on(world)
  return setmetatable({ world = world }, { __index = self })
end

--- A row that is measured by hand: run:prepare(row), row:calibrate(), row:repetition().
function Run:row(name, bytes) return row_of(self, name, bytes) end

-- What is printed and stored of a row.
function Run:result(row)
  local op, opts = row.op, self.opts
  local takes_root = { broadcast = true, reduce = true, gather = true, scatter = true }
  local r = {
    op = row.name, bytes = row.bytes, count = row.count, dtype = opts.dtype,
    redop = op.redop and opts.redop or "none", root = takes_root[row.name] and opts.root or -1,
    iters = row.iters, wrong = row.wrong,
  }
  if opts.mode == "overlap" then
    r.comm_us, r.compute_us = median(row.samples, 1), median(row.samples, 2)
    r.turn_us, r.both_us = median(row.samples, 3), median(row.samples, 4)
    r.hidden = (r.turn_us - r.both_us) / math.min(r.comm_us, r.compute_us)
    return r
  end
  r.time_us, r.min_us = median(row.samples, 1), median(row.samples, 2)
  r.p50_us, r.p99_us = median(row.samples, 3), median(row.samples, 4)
  r.algbw, r.busbw = ops.bandwidth(op, row.bytes, self.world.size, r.time_us)
  return r
end

--- Barriers until the kernel has spread the ranks over the cores: those that have just begun share one for a while, and
--- so do those that have computed for long, as the check of a large size does.
function Run:settle()
  self.control:barrier() -- some rank may have been getting its memory for longer than all of this takes
  local start, n = perigee.clock(), 1
  while self.control:allreduce((perigee.clock() - start) * 1000, { op = "max" }) < self.opts.settle do
    loop.idle(n)(self.world)
    n = math.min(2 * n, 512)
  end
end

--- Run everything; each(result) as soon as a row is known.
function Run:go(each)
  local before = math.huge -- bytes
  for rep = 1, self.opts.reps do
    for _, row in ipairs(self.rows) do
      if row.bytes < before and before >= LARGE then self:settle() end
      before = row.bytes
      self:prepare(row)
      if rep == 1 then row:calibrate() end
      if self.opts.mode == "overlap" then row:overlap() else row:repetition() end
      if rep == self.opts.reps then
        if self.opts.check then row:check() end
        each(self:result(row))
      end
      row.case = nil
    end
  end
end

function Run:close()
  if self.control ~= self.world then self.control:close() end
  self.world:close()
end

--- Join the world and decide what is measured.
function measure.open(opts)
  for _, path in ipairs(opts.load) do dofile(path) end
  local world = perigee.init { backend = opts.backend, tuning = opts.tuning }
  local control = opts.backend == "native" and world or perigee.init { backend = "native", name = "bench" }
  local run = setmetatable({
    opts = opts, world = world, control = control, loops = opts.from == "lua" and lua_loops or loop,
    element = perigee.zeros(opts.dtype, 1).nbytes, need_a = 0, need_b = 0,
  }, Run)
  run:plan()
  run:allocate(opts.symmetric)
  return run
end

return measure
