-- Simulated worlds: n ranks as coroutines of one Lua state, every operation by its plain definition, the same schedule
-- for the same seed, faults on request, and a report instead of a hang when nobody can move.
local perigee = require "perigee"
local blame = require "perigee.sim.blame"
local layers = require "perigee.sim.layers"
local Comm = require "perigee.sim.comm"
local Group = require "perigee.sim.group"
local task = require "perigee.sim.task"
local World = require "perigee.sim.world"

local sim = {}

local OPTS = { seed = 1, backend = 1, faults = 1, name = 1, timeout = 1, max_steps = 1, rendezvous = 1, options = 1 }
local FAULT = { rank = 1, op = 1, seq = 1, drop = 1, delay = 1, raise = 1, kill = 1 }

local function fail(fmt, ...) error(perigee.error("EINVAL", fmt:format(...)), 3) end

local function check_faults(faults)
  for i, fault in ipairs(faults) do
    for key in pairs(fault) do
      if not FAULT[key] then fail("sim: faults[%d]: unknown field '%s'", i, tostring(key)) end
    end
    if fault.op and not require "perigee.sim.call".rows[fault.op] then
      fail("sim: faults[%d]: there is no operation '%s'", i, tostring(fault.op))
    end
    if not (fault.drop or fault.delay or fault.raise or fault.kill) then
      fail("sim: faults[%d]: one of drop, delay, raise, kill is missing", i)
    end
  end
end

local function check(n, fn, opts)
  if math.type(n) ~= "integer" or n < 1 then fail "bad argument #1 to 'sim' (a number of ranks expected)" end
  if type(fn) ~= "function" then fail("bad argument #2 to 'sim' (function expected, got %s)", type(fn)) end
  if type(opts) ~= "table" then fail("bad argument #3 to 'sim' (options table expected, got %s)", type(opts)) end
  for key in pairs(opts) do
    if not OPTS[key] then fail("bad argument #3 to 'sim' (unknown option '%s')", tostring(key)) end
  end
  check_faults(opts.faults or {})
end

--- Run fn(group) on n ranks. Returns the list of what it returned per rank (and n), raises the first error of a rank.
function sim.run(n, fn, opts)
  opts = opts or {}
  check(n, fn, opts)
  local stack, has_bottom, text = layers.resolve(opts.backend)
  local world = World.new(n, opts)
  world.store = perigee.store.hash()
  local members = {}
  for r = 0, n - 1 do members[r + 1] = r end
  local comm = Comm.new(world, opts.name or "world", members)
  for rank = 0, n - 1 do
    world:start(rank, function()
      local group = Group.new(comm, rank, stack, has_bottom, text, opts.timeout)
      local handler, trace = blame.handler()
      local result = table.pack(xpcall(fn, handler, group))
      world.traces[rank] = trace()
      for _, layer in ipairs(group.instances) do
        if not group:is_closed() and layer.self.close then layer.self:close() end
      end
      if not result[1] then error(result[2], 0) end
      return result[2]
    end)
  end
  local outer = task.enter(world)
  local ran, why = pcall(world.run, world)
  world.over = true
  task.leave(outer)
  if not ran then error(why, 0) end
  local first = world.first
  if first then error(first.rank and blame.with_rank(first.err, first.rank, world.traces[first.rank])
    or first.err, 0) end
  return world.results
end

return sim
