-- Works of a simulated world: the methods of perigee.Work, waiting by the world's scheduler.
local perigee = require "perigee"
local blame = require "perigee.sim.blame"

local Work = {}
Work.__index = Work
Work.__name = "perigee.sim.Work"

local STATUS = { ETIMEDOUT = "timeout", EABORTED = "aborted" }

--- fields: op, seq, group, rank (for errors), what (text for the deadlock report), missing (function: the world ranks
--- it waits for).
function Work.new(world, fields)
  local self = setmetatable(fields or {}, Work)
  self.world, self.state, self.callbacks = world, "pending", {}
  return self
end

function Work.is(v) return type(v) == "table" and getmetatable(v) == Work end

--- End it once: "done", or "failed" with an error object. The value: fields `value`, or make_value(). False when it had
--- ended.
function Work:finish(state, err)
  if self.state ~= "pending" then return false end
  self.state, self.err = state == "done" and "done" or STATUS[err.code] or "failed", err
  if self.timer then self.timer.run = nil end
  for _, f in ipairs(self.callbacks) do self.world:defer(f) end
  self.callbacks = {}
  for _, f in ipairs(self.observers or {}) do f() end
  return true
end

--- f() right when it ends, on whoever ends it; for the group's hooks.
function Work:observe(f)
  self.observers = self.observers or {}
  table.insert(self.observers, f)
end

--- Fail with an error of its own: code, message and where it happened.
function Work:fail(code, message, fields)
  local all = { op = self.op, seq = self.seq, group = self.group, rank = self.rank }
  for k, v in pairs(fields or {}) do all[k] = v end
  return self:finish("failed", perigee.error(code, message, all))
end

--- Fail it after these seconds of virtual time.
function Work:expire_after(seconds, on_expire)
  if seconds == math.huge or self.state ~= "pending" then return end
  self.timer = self.world:at(seconds, function()
    if self.state ~= "pending" then return end
    local missing = self.missing and self.missing() or {}
    local text = ("timed out after %.1f s"):format(seconds)
    if #missing > 0 then text = text .. ", missing ranks " .. table.concat(missing, ",") end
    self:fail("ETIMEDOUT", text, { ranks = missing })
    if on_expire then on_expire(self.err) end
  end)
end

local function value_of(self)
  if self.make_value then return self.make_value(self) end
  return self.value
end

function Work:wait(seconds)
  self.seen = true
  if self.state == "pending" and self.lazy then
    local f = self.lazy
    self.lazy = nil
    f()
  end
  if self.state == "pending" and seconds == 0 then
    self.world:pause() -- looks once
  elseif self.state == "pending" then
    local expired = false
    local timer = seconds and seconds < math.huge and self.world:at(seconds, function() expired = true end)
    self.world:block(self, function() return self.state ~= "pending" or expired end)
    if timer then timer.run = nil end
  end
  if self.state == "pending" then
    return nil, perigee.error("ETIMEDOUT", ("still pending after %.6g s of waiting"):format(seconds or 0),
      { op = self.op, seq = self.seq })
  end
  if self.state ~= "done" then error(self.err, 0) end
  return value_of(self)
end

-- Asking lets the others move: a loop that asks ends.
function Work:status()
  if self.state == "pending" then self.world:pause() end
  return self.state
end

function Work:is_completed()
  if self.state == "pending" then self.world:pause() end
  return self.state ~= "pending"
end

function Work:error()
  self.seen = true
  if self.state ~= "done" then return self.err end
end

function Work:result()
  self.seen = true
  if self.state == "pending" then
    error(perigee.error("ESTATE", "the work is still pending: wait for it first"), 2)
  end
  if self.state ~= "done" then error(self.err, 2) end
  return value_of(self)
end

function Work:source_rank()
  if self.state ~= "done" or not self.source then
    error(perigee.error("ESTATE", self.state == "pending" and "source_rank: the work is still pending"
      or "source_rank: this work is no receive"), 2)
  end
  return self.source
end

function Work:abort(reason)
  local ended = self:fail("EABORTED", reason or "aborted by the script")
  if ended and self.on_abort then self.on_abort(self.err) end
  return ended
end

local function subscribe(self, callback)
  local world = self.world
  local rank = world:rank_now()
  self.seen = true
  local function f()
    local before = world.acting
    world.acting = rank
    callback()
    world.acting = before
  end
  if self.state ~= "pending" then self.world:defer(f) else self.callbacks[#self.callbacks + 1] = f end
end

local function check_function(f, name)
  if type(f) ~= "function" then
    error(perigee.error("EINVAL", ("bad argument #1 to '%s' (function expected, got %s)"):format(name, type(f))), 3)
  end
end

function Work:map(f)
  check_function(f, "map")
  local derived = Work.new(self.world, { op = self.op, seq = self.seq, group = self.group, rank = self.rank,
    missing = self.missing, what = self.what, source = self.source })
  derived.lazy = self.lazy and function() pcall(self.wait, self) end
  subscribe(self, function()
    if self.state ~= "done" then
      derived:finish("failed", self.err)
      return
    end
    derived.source = self.source
    local values = table.pack(value_of(self))
    local ok, value = xpcall(f, function(err)
      return blame.object(err, { op = self.op, seq = self.seq, group = self.group, rank = self.rank },
        debug.traceback())
    end, table.unpack(values, 1, values.n))
    if not ok then
      derived:finish("failed", value)
    elseif value == nil then
      derived.make_value = function() return table.unpack(values, 1, values.n) end
      derived:finish "done"
    else
      derived.value = value
      derived:finish "done"
    end
  end)
  return derived
end

function Work:on_done(f)
  check_function(f, "on_done")
  subscribe(self, function()
    local ok, err
    if self.state == "done" then ok, err = pcall(f, nil, value_of(self)) else ok, err = pcall(f, self.err) end
    if ok then return end
    local handler = perigee.on_hook_error
    if type(handler) == "function" then
      pcall(handler, blame.object(err))
    else
      io.stderr:write("error in a callback of on_done: ", tostring(err), "\n")
    end
  end)
  return self
end

local function check_open(self, name)
  if not self.open then
    error(perigee.error("ESTATE", ("'%s' on a work that was not made by perigee.future"):format(name)), 3)
  end
end

function Work:set_result(value, source)
  check_open(self, "set_result")
  if self.state ~= "pending" then return false end
  self.value, self.source = value, source
  return self:finish "done"
end

function Work:set_error(err)
  check_open(self, "set_error")
  if err == nil then error(perigee.error("EINVAL", "bad argument #1 to 'set_error' (error expected, got nil)"), 2) end
  return self:finish("failed", blame.object(err))
end

function Work:__tostring()
  if not self.op then return ("work (%s)"):format(self.state) end
  return ("work: %s #%d (%s)"):format(self.op, self.seq or 0, self.state)
end

-- perigee.wait_all and wait_any take works of simulated worlds as well, once this module is loaded.

local native_all, native_any = perigee.wait_all, perigee.wait_any
if debug.getinfo(native_all, "S").what == "C" then -- the table outlives this file, which busted loads again
  local function simulated(works) return type(works) == "table" and type(works[1]) == "table" and works[1].world end

  function perigee.wait_all(works, seconds)
    if not simulated(works) then return native_all(works, seconds) end
    local deadline = works[1].world.now + (seconds or math.huge)
    for _, work in ipairs(works) do
      if work.state == "pending" then
        local _, err = work:wait(seconds and math.max(0, deadline - work.world.now))
        if work.state == "pending" then return nil, err end
      end
      if work:error() then error(work:error(), 2) end
    end
    return true
  end

  function perigee.wait_any(works, seconds)
    if not simulated(works) then return native_any(works, seconds) end
    local function ended()
      for i, work in ipairs(works) do
        if work.state ~= "pending" then return i end
      end
    end
    if not ended() then
      local world = works[1].world
      local any = Work.new(world, { what = "wait_any" })
      if seconds then any:expire_after(seconds) end
      world:block(any, function() return ended() ~= nil or any.state ~= "pending" end)
      if not ended() and any.err and any.err.code ~= "ETIMEDOUT" then error(any.err, 2) end
      if not ended() then return nil, any.err end
    end
    local i = ended()
    return i, works[i]
  end
end

return Work
