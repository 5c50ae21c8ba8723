-- Hooks of a simulated group: group:on, register_on_completion_hook, wait_for_pending_works, with the promises of
-- meta.lua. Times are the world's virtual seconds; a hook runs as a callback of the world.
local perigee = require "perigee"
local blame = require "perigee.sim.blame"
local call = require "perigee.sim.call"
local Work = require "perigee.sim.work"

local Hooks = {}
Hooks.__index = Hooks

local KINDS = { start = true, done = true, error = true, stall = true, abort = true }
local STALL_AFTER = 2
local LEAST = 1e-9 -- seconds: what an operation takes at least

local Hook = { __name = "perigee.sim.Hook" }
Hook.__index = Hook

function Hook:remove() self.removed = true end
function Hook:__tostring() return ("hook: %s%s"):format(self.event, self.removed and " (removed)" or "") end

local function bad(arg, method, fmt, ...)
  error(perigee.error("EINVAL", ("bad argument #%d to '%s' (%s)"):format(arg, method, fmt:format(...))), 4)
end

function Hooks.new(group)
  return setmetatable({
    group = group, world = group.comm.world, list = {}, running = {}, queued = 0, errors = {}, count = 0,
  }, Hooks)
end

-- ---- telling ------------------------------------------------------------------------------------------------

local function report(self, hook, info, err)
  hook.errors, self.count = hook.errors + 1, self.count + 1
  err = blame.object(err, { op = info.op_type, seq = info.seq, group = info.group, rank = info.rank })
  self.errors[#self.errors + 1] = err
  local handler = perigee.on_hook_error
  if type(handler) == "function" then
    pcall(handler, err)
  else
    io.stderr:write(("error in a hook for '%s': %s\n"):format(info.event, tostring(err)))
  end
end

local function tell_one(self, hook, info)
  self.queued = self.queued + 1
  self.world:defer(function()
    if not hook.removed then
      hook.calls = hook.calls + 1
      local copy = {}
      for k, v in pairs(info) do copy[k] = v end
      local ok, err = xpcall(hook.f, function(e) return blame.object(e, {}, debug.traceback()) end, copy)
      if not ok then report(self, hook, info, err) end
    end
    self.queued = self.queued - 1
  end)
end

local function tell(self, info, born)
  if self.closed then return end
  for _, hook in ipairs(self.list) do
    if hook.kinds[info.event] and not hook.removed and hook.born <= born then tell_one(self, hook, info) end
  end
end

local function info_of(op, event, fields)
  local info = { event = event }
  for k, v in pairs(op.info) do info[k] = v end
  for k, v in pairs(fields or {}) do info[k] = v end
  return info
end

-- ---- operations ---------------------------------------------------------------------------------------------

local function bytes_of(v)
  if call.is_tensor(v) then return v.nbytes end
  local sum = 0
  for _, x in ipairs(type(v) == "table" and v or {}) do sum = sum + bytes_of(x) end
  return sum
end

--- An operation was accepted; async: its caller gets a work. Returns what `follow` and `refuse` take.
function Hooks:start(req, async)
  local group, world = self.group, self.world
  local bytes = bytes_of(req.inp)
  local op = { born = #self.list, timers = {}, info = {
    op_type = req.row.name, seq = req.seq, group = group.name, rank = group.me, peer = req.peer,
    async = async, time_started = world.now, bytes = bytes > 0 and bytes or bytes_of(req.out),
    status = "pending",
  } }
  tell(self, info_of(op, "start"), op.born)
  for _, hook in ipairs(self.list) do
    if hook.kinds.stall and not hook.removed then
      op.timers[#op.timers + 1] = world:at(hook.after, function()
        if not hook.removed and not self.closed then
          tell_one(self, hook, info_of(op, "stall", { active_duration = world.now - op.info.time_started }))
        end
      end)
    end
  end
  return op
end

local function over(self, op, state, err)
  for _, timer in ipairs(op.timers) do timer.run = nil end
  local took = math.max(self.world.now - op.info.time_started, LEAST)
  tell(self, info_of(op, state == "done" and "done" or "error", {
    status = state, error = err, active_duration = took, time_finished = op.info.time_started + took,
  }), op.born)
end

--- Nothing came of it: err was raised.
function Hooks:refuse(op, err)
  local status = { ETIMEDOUT = "timeout", EABORTED = "aborted", ECLOSED = "aborted", ECANCELED = "aborted" }
  over(self, op, blame.is_error(err) and status[err.code] or "failed", blame.object(err))
end

--- It ends with this work.
function Hooks:follow(op, work)
  if work.state ~= "pending" then return over(self, op, work.state, work.err) end
  self.running[#self.running + 1] = work
  work:observe(function()
    for i, w in ipairs(self.running) do
      if w == work then
        table.remove(self.running, i)
        break
      end
    end
    over(self, op, work.state, work.err)
  end)
end

--- The group was aborted or has failed.
function Hooks:failed(cause)
  local group = self.group
  tell(self, {
    event = "abort", op_type = cause.op, seq = cause.seq or 0, group = group.name, rank = group.me, async = false,
    time_started = self.world.now, time_finished = self.world.now, bytes = 0, status = "aborted", error = cause,
  }, #self.list)
end

--- Run what has ended, then no more.
function Hooks:close()
  local world = self.world
  if self.queued > 0 and not world.in_callback and not world.over and world.strand then
    local work = Work.new(world, { what = "close" })
    world:block(work, function() return self.queued == 0 or work.state ~= "pending" end)
  end
  self.closed = true
end

-- ---- methods of groups --------------------------------------------------------------------------------------

local function register(self, method, arg, name, kinds, f, after)
  if type(f) ~= "function" then bad(arg, method, "function expected, got %s", type(f)) end
  if self.group:is_closed() then
    error(perigee.error("ECLOSED", "the group is closed", { group = self.group.name, rank = self.group.me }), 3)
  end
  local hook = setmetatable({
    event = name, kinds = kinds, f = f, after = after or STALL_AFTER, born = #self.list + 1, calls = 0, errors = 0,
  }, Hook)
  self.list[hook.born] = hook
  return hook
end

function Hooks:on(event, f, opts)
  if not KINDS[event] then
    bad(1, "on", "event: 'start', 'done', 'error', 'stall' or 'abort' expected, got '%s'", tostring(event))
  end
  for key in pairs(opts or {}) do
    if key ~= "after" then bad(3, "on", "unknown option '%s'", tostring(key)) end
  end
  local after = opts and opts.after
  if after and event ~= "stall" then bad(3, "on", "after: only for 'stall'") end
  if after and (type(after) ~= "number" or after <= 0 or after ~= after) then
    bad(3, "on", "after: a positive number expected")
  end
  return register(self, "on", 2, event, { [event] = true }, f, after)
end

function Hooks:register_on_completion_hook(f)
  return register(self, "register_on_completion_hook", 1, "completion", { done = true, error = true }, f)
end

local function raise_errors(self)
  if self.count == 0 then return end
  local first, count, errors = self.errors[1], self.count, self.errors
  self.errors, self.count = {}, 0
  local message = first.message
  if count > 1 then message = ("%d errors in hooks, the first: %s"):format(count, message) end
  local err = perigee.error(first.code, message, { op = first.op, seq = first.seq, group = first.group,
    rank = first.rank })
  err.traceback, err.count, err.errors = first.traceback, count, errors
  error(err, 0)
end

function Hooks:wait_for_pending_works(seconds)
  local world = self.world
  if world.in_callback then
    error(perigee.error("EDEADLK", "wait_for_pending_works: a callback must not wait"), 3)
  end
  local function quiet() return #self.running == 0 and self.queued == 0 end
  for _, work in ipairs { table.unpack(self.running) } do
    if work.lazy then pcall(work.wait, work) end
  end
  if seconds == 0 then world:pause() end
  if not quiet() and seconds ~= 0 then
    local work = Work.new(world, { what = "wait_for_pending_works", group = self.group.name })
    if seconds then work:expire_after(seconds) end
    world:block(work, function() return quiet() or work.state ~= "pending" end)
    if not quiet() and work.err.code ~= "ETIMEDOUT" then error(work.err, 3) end
    work:finish "done"
  end
  if not quiet() then
    return nil, perigee.error("ETIMEDOUT",
      ("works or hooks of the group are still pending after %g s"):format(seconds))
  end
  raise_errors(self)
  return true
end

return Hooks
