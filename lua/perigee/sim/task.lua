-- Tasks of a simulated world: what perigee.async, run, future and sleep are while it runs.
local perigee = require "perigee"
local blame = require "perigee.sim.blame"
local Work = require "perigee.sim.work"

local task = {}

local Task = {}
Task.__index = Task

local current -- the world that runs
local makers = setmetatable({}, { __mode = "kv" }) -- coroutine of a strand -> the one that starts it

-- A strand for f(...): at once up to its first wait, or when the work `before` has ended. run: of perigee.run, or nil;
-- turn: a work that ends when the strand has ended, or nil.
local function spawn(world, run, before, turn, f, ...)
  local args, rank = table.pack(...), world:rank_now() or 0
  local work = Work.new(world, { rank = rank, what = "an async function" })
  local self = setmetatable({ work = work, run = run, turn = turn }, Task)
  local function body()
    local result = table.pack(f(table.unpack(args, 1, args.n)))
    if Work.is(result[1]) then return result[1]:wait() end
    return table.unpack(result, 1, result.n)
  end
  local strand = world:add(rank, function()
    if before then
      self.queued = true -- is not told before its turn
      world:block(before, function() return before.state ~= "pending" end)
      self.queued = false
      self:tell()
    end
    self.results = table.pack(xpcall(body, function(e)
      return blame.object(e, { op = work.op, seq = work.seq, group = work.group, rank = rank }, debug.traceback())
    end))
  end)
  strand.task = self
  if run then run[#run + 1] = self end
  makers[strand.co] = coroutine.running()
  world:resume(strand)
  makers[strand.co] = nil
  return self
end

--- Its coroutine has ended, or yielded something that is no wait.
function Task:stopped(ok, what)
  local work, results = self.work, self.results
  if not ok then
    work:finish("failed", blame.object(what, { rank = work.rank }))
  elseif not results then
    work:fail("ESTATE", "an async function yielded outside of a coroutine of its own: it waits by work:wait()")
  elseif not results[1] then
    work:finish("failed", results[2])
  elseif work.state == "pending" then
    work.value, work.source = results[2], math.type(results[3]) == "integer" and results[3] or nil
    work:finish "done"
  end
  self.ended = true
  if self.turn then self.turn:finish "done" end
end

--- Whether somebody else has ended its work, and it has not been told.
function Task:is_told() return self.work.state ~= "pending" and not self.told and not self.queued end

--- Raise that in it, once.
function Task:tell()
  if not self:is_told() then return end
  self.told = true
  error(self.work.err or perigee.error("ECANCELED", "the work of this async function has ended"), 0)
end

-- ---- perigee.async ------------------------------------------------------------------------------------------------

local lines = setmetatable({}, { __mode = "k" }) -- first argument -> turn of the newest ordered task

local function take(f, ordered, ...)
  local world, before, turn = current, nil, nil
  local running = world.strand and world.strand.task
  if ordered then
    before, turn = lines[(...)], Work.new(world, { what = "an ordered async function" })
    if before and before.state ~= "pending" then before = nil end
    lines[(...)] = turn
  end
  return spawn(world, running and running.run, before, turn, f, ...).work
end

-- ---- perigee.run --------------------------------------------------------------------------------------------------

local function end_all(run, err)
  for _, one in ipairs(run) do
    if one.work.state == "pending" then
      one.work.seen = true
      one.work:finish("failed", err)
    end
  end
end

local function await(world, one)
  world:block(one.work, function() return one.ended end)
end

local function run(world, timeout, main, ...)
  local tasks, timer = {}, nil
  local first = spawn(world, tasks, nil, nil, main, ...)
  if timeout then
    timer = world:at(timeout, function()
      end_all(tasks, perigee.error("ETIMEDOUT", ("perigee.run: timed out after %.1f s"):format(timeout)))
    end)
  end
  await(world, first)
  if first.work.err then
    end_all(tasks, perigee.error("ECANCELED", "the main function of perigee.run has failed"))
  end
  local at = 1
  while tasks[at] do -- tasks may start others
    await(world, tasks[at])
    at = at + 1
  end
  if timer then timer.run = nil end
  if first.work.err then error(first.work.err, 0) end
  for i = 2, #tasks do
    if tasks[i].work.err and not tasks[i].work.seen then error(tasks[i].work.err, 0) end
  end
  return table.unpack(first.results, 2, first.results.n)
end

-- ---- the module's functions -----------------------------------------------------------------------------------------

local function simulated() return current ~= nil and not current.over and current.strand ~= nil end

-- The module's table outlives this file, which busted loads again: what was there first is kept in it.
local native = perigee._testing
if not native.sleep then
  native.sleep, native.future, native.run = perigee.sleep, perigee.future, perigee.run
  native.native_task_maker = native.task_maker
end

function native.task_maker(thread) return makers[thread] or native.native_task_maker(thread) end

function perigee.sleep(seconds)
  if not simulated() or current.in_callback or type(seconds) ~= "number" or seconds < 0 then
    return native.sleep(seconds)
  end
  local world, work = current, Work.new(current, { what = "perigee.sleep" })
  world:at(seconds, function() work:finish "done" end)
  world:block(work, function() return work.state ~= "pending" end)
end

function perigee.future(opts)
  if not simulated() then return native.future(opts) end
  local timeout = opts and opts.timeout
  native.future(opts):abort() -- complains about options as the module does
  local work = Work.new(current, { open = true })
  if timeout then work:expire_after(timeout) end
  return work
end

function perigee.run(opts, main, ...)
  if not simulated() then return native.run(opts, main, ...) end
  if type(opts) == "function" then return perigee.run({}, opts, main, ...) end
  if type(main) ~= "function" then
    error(perigee.error("EINVAL", ("bad argument #1 to 'run' (function expected, got %s)"):format(type(main))), 2)
  end
  if current.strand.task then
    error(perigee.error("ESTATE",
      "run: not inside an async function: call perigee.async(f)() and wait for that"), 2)
  end
  return run(current, opts.timeout, main, ...)
end

--- The world runs from now on; returns what leave wants.
function task.enter(world)
  local outer = { world = current, taker = perigee._testing.task_taker() }
  current = world
  perigee._testing.take_tasks(take)
  return outer
end

function task.leave(outer)
  current = outer.world
  perigee._testing.take_tasks(outer.taker)
end

return task
