-- Perigee inside a loop of luv (Debian: lua-luv): callbacks of works run in the loop, which stays responsive while
-- collectives are under way.
--
--   local uv = require "luv"
--   local handle = require "perigee.luv".attach()
--   world:allreduce(t, { async = true }):on_done(function(err, sum) ... handle:stop() end) -- runs inside uv.run
--   uv.run() -- until handle:stop(), and nothing else is active
--
-- A blocking wait in a callback of luv blocks the loop, as any other blocking call does: callbacks of works run
-- meanwhile, those of luv do not. No link to luv's libuv: the loop polls perigee.pollfd().
local perigee = require "perigee"

local M = {}

local Handle = {}
Handle.__index = Handle

local shared = {} -- the module of luv -> what all its handles share

local function load_luv()
  local ok, uv = pcall(require, "luv")
  if ok then return uv end
  error(perigee.error("ENOENT", "perigee.luv needs luv for Lua 5.4 (Debian: apt install lua-luv): "
    .. tostring(uv):gsub("\n.*", "")), 3)
end

local function start(uv)
  local self = { poll = assert(uv.new_poll(perigee.pollfd())), timer = assert(uv.new_timer()), handles = 0 }
  local function step()
    perigee.step()
    if self.handles == 0 then return end -- a callback stopped it
    local seconds = perigee.timeout()
    if seconds then
      self.timer:start(math.ceil(seconds * 1000), 0, step)
    else
      self.timer:stop()
    end
  end
  assert(self.poll:start("r", step))
  return self
end

local function close(handle)
  if not handle:is_closing() then handle:close() end
end

--- See meta.lua.
function M.attach(uv)
  uv = uv or load_luv()
  if type(uv) ~= "table" or type(uv.new_poll) ~= "function" then
    local text = "bad argument #1 to 'attach' (the module luv expected, got %s)"
    error(perigee.error("EINVAL", text:format(type(uv))), 2)
  end
  shared[uv] = shared[uv] or start(uv)
  shared[uv].handles = shared[uv].handles + 1
  return setmetatable({ uv = uv }, Handle)
end

--- No callbacks in this loop any more: the runtime's own thread runs them. Again is allowed.
function Handle:stop()
  local all = shared[self.uv]
  if self.stopped or not all then return end
  self.stopped = true
  all.handles = all.handles - 1
  if all.handles > 0 then return end
  shared[self.uv] = nil
  close(all.poll)
  close(all.timer)
  if next(shared) == nil then perigee.pollfd(false) end
end

Handle.__close = Handle.stop

return M
