-- The scheduler of a simulated world: strands are coroutines, one runs at a time, a seeded generator picks the next.
-- A rank has one strand for its function, and one for each task (perigee.async, sim/task.lua) that it started.
--
-- Time is virtual: it stands still while anybody can move. When nobody can, the earliest timeout that a call was given
-- passes; when there is none, that is a deadlock, and everybody who waits fails with a report of who waits for whom.
-- A wait in the strand's own coroutine yields. A wait anywhere else (in a coroutine of the script, in a comparator of
-- table.sort) runs the other ranks from where it stands: when two ranks do that inside each other, the lower one goes
-- on only after the upper one, which may be a deadlock of its own kind and is reported as one.
local perigee = require "perigee"
local blame = require "perigee.sim.blame"

local World = {}
World.__index = World

local TOKEN = {} -- what a waiting strand yields
local EXTERNAL_SECONDS = 1 -- real time that a work of the runtime gets when only it can move the world

function World.new(n, opts)
  return setmetatable({
    n = n, opts = opts, main = {}, strands = {}, ended = {}, killed = {}, results = { n = n },
    state = (opts.seed or 0) * 2862933555777941757 + 3037000493, steps = 0, now = 0.0, traces = {},
    max_steps = opts.max_steps or 1000000,
    callbacks = {}, delayed = {}, timed = {}, externals = {}, comms = {},
  }, World)
end

--- An integer 1 .. n.
function World:random(n)
  local x = self.state
  x = x ~ (x << 13)
  x = x ~ (x >> 7)
  x = x ~ (x << 17)
  self.state = x
  return (x >> 1) % n + 1
end

-- ---- things that happen later ------------------------------------------------------------------------

function World:later(steps, f) self.delayed[#self.delayed + 1] = { at = self.steps + steps, run = f } end

--- f() at virtual time now + seconds, unless nobody has to wait that long. Returns the entry; cancel: entry.run = nil.
function World:at(seconds, f)
  local entry = { at = self.now + seconds, run = f }
  self.timed[#self.timed + 1] = entry
  return entry
end

function World:defer(f) self.callbacks[#self.callbacks + 1] = f end

local function take_earliest(list)
  local best
  for i, entry in ipairs(list) do
    if not best or entry.at < list[best].at then best = i end
  end
  return best and table.remove(list, best)
end

local function run_due(self)
  for i = #self.externals, 1, -1 do
    if self.externals[i]() then table.remove(self.externals, i) end
  end
  local due = {}
  for i = #self.delayed, 1, -1 do
    if self.delayed[i].at <= self.steps then table.insert(due, 1, table.remove(self.delayed, i)) end
  end
  for _, entry in ipairs(due) do entry.run() end
  for i = #self.timed, 1, -1 do
    if not self.timed[i].run then table.remove(self.timed, i) end
  end
end

local function run_callback(self)
  local f = table.remove(self.callbacks, 1)
  local before = self.in_callback
  self.in_callback = true
  f()
  self.in_callback = before
end

-- ---- ranks ---------------------------------------------------------------------------------------------

local function abort_comms(self, err, rank)
  for _, comm in ipairs(self.comms) do
    comm:fail(perigee.error("EABORTED", blame.reason(err, rank), { origin = rank }))
  end
end

--- The first error of a rank ends the world for the others.
function World:failed(rank, err)
  if self.first then return end
  self.first = { err = err, rank = rank }
  abort_comms(self, err, rank)
end

--- A strand of the rank. The fields that the scheduler uses: rank, co, wait (what it waits for), task (sim/task.lua).
function World:add(rank, body)
  local strand = { rank = rank, co = coroutine.create(body) }
  self.strands[#self.strands + 1] = strand
  return strand
end

function World:start(rank, fn, ...)
  local args = table.pack(...)
  self.main[rank] = self:add(rank, function()
    local ok, value = xpcall(fn, blame.traced, table.unpack(args, 1, args.n))
    self.ended[rank] = true
    if ok then self.results[rank + 1] = value else self:failed(rank, value) end
  end)
end

local function remove(self, strand)
  for i, other in ipairs(self.strands) do
    if other == strand then
      table.remove(self.strands, i)
      return
    end
  end
end

local function main_stopped(self, rank, ok, what)
  if not ok then
    self.ended[rank] = true
    self:failed(rank, what)
  elseif what ~= TOKEN and not self.ended[rank] then
    self.ended[rank] = true
    self:failed(rank, "the rank's function yielded outside of a coroutine of its own")
  end
end

--- Let the strand go on until it waits again.
function World:resume(strand)
  local before, in_callback = self.strand, self.in_callback
  self.strand, self.in_callback = strand, false
  local ok, what = coroutine.resume(strand.co)
  self.strand, self.in_callback = before, in_callback
  if not strand.task then
    main_stopped(self, strand.rank, ok, what)
  elseif not ok or what ~= TOKEN or coroutine.status(strand.co) == "dead" then
    strand.task:stopped(ok, what)
    coroutine.close(strand.co)
    remove(self, strand)
  end
end

--- The rank for which Lua runs now; nil outside of all.
function World:rank_now()
  if self.in_callback then return self.acting end
  return self.strand and self.strand.rank
end

local function runnable(self)
  local list = {}
  for _, strand in ipairs(self.strands) do
    local gone = self.killed[strand.rank] or self.ended[strand.rank] and not strand.task
    local wait = strand.wait
    if not gone and coroutine.status(strand.co) == "suspended" and (not wait or wait.ready()) then
      list[#list + 1] = strand
    end
  end
  return list
end

local function external_moves(self)
  local any = #self.externals > 0
  if perigee.step() then return true end
  if not any then return false end
  self.external_left = (self.external_left or EXTERNAL_SECONDS) - 0.001
  if self.external_left <= 0 then return false end
  perigee._testing.sleep(0.001) -- real time
  return true
end

--- One move of the world. False: nobody can move. still: time stands still, because who asks can go on.
function World:step(still)
  self.steps = self.steps + 1
  if self.steps > self.max_steps and not self.first then
    local rank = self.strand and self.strand.rank or 0
    self:failed(rank, perigee.error("ELIMIT", ("no end after %d steps"):format(self.max_steps)))
    for r = 0, self.n - 1 do self.ended[r] = true end
    self.stopped = true
  end
  if self.stopped then return false end
  run_due(self)
  local strands = runnable(self)
  local n = #strands + (#self.callbacks > 0 and 1 or 0)
  if n > 0 then
    local pick = self:random(n)
    if pick > #strands then run_callback(self) else self:resume(strands[pick]) end
    return true
  end
  if still then return false end
  if external_moves(self) then return true end
  local entry = take_earliest(self.delayed)
  if entry then
    self.steps = math.max(self.steps, entry.at)
    entry.run()
    return true
  end
  entry = take_earliest(self.timed)
  if entry then
    self.now = math.max(self.now, entry.at)
    entry.run()
    return true
  end
  return false
end

-- ---- waiting -------------------------------------------------------------------------------------------

local function can_yield(strand) return coroutine.running() == strand.co and coroutine.isyieldable() end

--- Wait until ready(), on the strand that runs. work: what the report of a deadlock tells, and what it fails.
function World:block(work, ready)
  local strand = self.strand
  if self.over or strand == nil then
    error(perigee.error("ESTATE", "the simulated world has ended: nothing can complete this work"), 0)
  end
  if self.in_callback then
    error(perigee.error("EDEADLK", "a callback must not wait: use map or on_done"), 0)
  end
  local before, task = strand.wait, strand.task
  if task then task:tell() end
  local function over() return ready() or task ~= nil and task:is_told() end
  strand.wait = { work = work, ready = over, outer = before }
  while not over() do
    if can_yield(strand) then
      coroutine.yield(TOKEN)
    elseif not self:step() then
      self:deadlock()
      if not over() then break end -- stopped
    end
  end
  strand.wait = before
  if task then task:tell() end
end

--- Let others move once: for loops that ask is_completed().
function World:pause()
  local strand = self.strand
  if self.over or strand == nil or self.in_callback then return end
  if can_yield(strand) then
    coroutine.yield(TOKEN)
  else
    self:step(true)
  end
end

--- The rank that runs dies here: its strands are not run again.
function World:kill()
  local strand = self.strand
  local rank = strand.rank
  self.ended[rank], self.killed[rank] = true, true
  for _, comm in ipairs(self.comms) do comm:died(rank) end
  if can_yield(strand) then coroutine.yield(TOKEN) end
  error(perigee.error("EPEERDEAD", "this rank was killed by a fault", { rank = rank, ranks = { rank } }), 0)
end

-- ---- deadlock --------------------------------------------------------------------------------------------

local function ranks_text(list)
  if #list == 0 then return "nobody" end
  return (#list == 1 and "rank " or "ranks ") .. table.concat(list, ",")
end

local function describe(self, strand, waits)
  local rank, wait = strand.rank, strand.wait
  local who = (strand.task and "a task of rank %d" or "rank %d"):format(rank)
  if self.killed[rank] then return who .. " was killed" end
  if self.ended[rank] and not strand.task then return who .. " has ended" end
  if not wait then return who .. " waits in a place that cannot be left" end
  if wait.ready() then
    return who .. " could go on, but waits where it cannot yield (a comparator, a coroutine of the script), below "
      .. "another rank that does"
  end
  local work = wait.work
  local missing = work.missing and work.missing() or {}
  waits[#waits + 1] = { rank = rank, op = work.op, seq = work.seq, group = work.group, missing = missing }
  local what = work.what or work.op or "a future of the script"
  if work.seq then what = ("%s #%d"):format(what, work.seq) end
  if work.group then what = ("%s on %s"):format(what, work.group) end
  if not work.missing then return ("%s waits in %s"):format(who, what) end
  return ("%s waits in %s for %s"):format(who, what, ranks_text(missing))
end

--- Nobody can move: fail every wait with the same report.
function World:deadlock()
  local waits, parts, ranks, strands = {}, {}, {}, { table.unpack(self.strands) }
  for _, strand in ipairs(strands) do parts[#parts + 1] = describe(self, strand, waits) end
  for i, wait in ipairs(waits) do ranks[i] = wait.rank end
  local text = "deadlock: " .. table.concat(parts, "; ")
  local function report(fields)
    fields.ranks, fields.waits = ranks, waits
    return perigee.error("EDEADLK", text, fields)
  end
  self.first = self.first or { err = report {} }
  for _, strand in ipairs(strands) do
    local wait = strand.wait
    while wait do
      local work = wait.work
      work:finish("failed", report { op = work.op, seq = work.seq, group = work.group, rank = strand.rank })
      wait = wait.outer
    end
  end
end

--- Run to the end: all ranks have returned, and callbacks that were due have run. Tasks that nobody waited for end with
-- their ranks.
function World:run()
  local function open()
    for rank = 0, self.n - 1 do
      if not self.ended[rank] then return true end
    end
    return false
  end
  while not self.stopped and (open() or #self.callbacks > 0) do
    if not self:step() and not self.stopped then self:deadlock() end
  end
  for _, strand in ipairs(self.strands) do -- of killed ranks, and tasks that are left: pending closes run
    if coroutine.status(strand.co) == "suspended" then coroutine.close(strand.co) end
  end
end

return World
