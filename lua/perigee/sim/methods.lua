-- Methods of a simulated group that layers may override besides operations: what methods.c, coalesce.c, shrink.c and
-- reconfigure.c do for groups of C.
local perigee = require "perigee"
local blame = require "perigee.sim.blame"
local Work = require "perigee.sim.work"

local sim = {}

local NAMES = {
  "backend_name", "rank", "size", "split", "shutdown", "start_coalescing", "end_coalescing", "reconfigure",
}

local function fail(code, fmt, ...) error(perigee.error(code, fmt:format(...)), 0) end

-- ---- who answers --------------------------------------------------------------------------------------------

-- The fields rank and size of an instance are numbers: there a method is the table's.
local function method_of(layer, name)
  local f = layer.self[name]
  if (name == "rank" or name == "size") and type(f) ~= "function" then f = layer.table[name] end
  if f ~= nil and type(f) ~= "function" then
    fail("ELUATYPE", "backend '%s': %s must be a function, it is a %s", layer.name, name, type(f))
  end
  return f
end

--- Called when a layer is open: checks its methods, and gives it the name it shows.
function sim.resolve(layer)
  for _, name in ipairs(NAMES) do method_of(layer, name) end
  local f = method_of(layer, "backend_name")
  layer.shown = layer.name
  if not f then return end
  local name = f(layer.self)
  if type(name) ~= "string" then
    fail("ELUATYPE", "backend '%s': backend_name must return a string; got %s", layer.name, type(name))
  elseif not name:match "^[%w_-]+$" or #name > 63 then
    fail("EINVAL", "backend '%s': backend_name says '%s': 1 to 63 letters, digits, '_' or '-' expected",
      layer.name, name)
  end
  layer.shown = name
end

-- The first layer from this level down that has the method, and the method.
local function find(group, level, name)
  for i = level, #group.instances do
    local f = method_of(group.instances[i], name)
    if f then return group.instances[i], f end
  end
end

local function ask(group, layer, f, ...)
  local fields = { group = group.name, rank = group.me }
  local ok, result = xpcall(f, function(err) return blame.object(err, fields, debug.traceback()) end, layer.self, ...)
  if not ok then error(result, 0) end
  return result
end

local function wrong_type(layer, name, what, got)
  fail("ELUATYPE", "backend '%s': %s must return %s; got %s%s", layer.name, name, what, type(got),
    got == nil and " (is a 'return' missing?)" or "")
end

--- What a layer from this level down reports as rank or size.
function sim.number(group, level, name)
  local layer, f = find(group, level, name)
  if not f then return name == "rank" and group.me or group.n end
  local n, least = ask(group, layer, f), name == "size" and 1 or 0
  if math.type(n) ~= "integer" then wrong_type(layer, name, "an integer", n) end
  if n < least then fail("ERANGE", "backend '%s': %s returned %d, at least %d expected", layer.name, name, n, least) end
  return n
end

local function is_group(v) return type(v) == "table" and getmetatable(v) == sim.Group end

-- ---- split, shutdown ------------------------------------------------------------------------------------------

function sim.split(group, level, color, key, opts)
  local layer, f = find(group, level, "split")
  if not f then return group:_split(color, key, opts) end
  local made = ask(group, layer, f, color, key or group.me, opts or {})
  if not is_group(made) and not (made == nil and math.tointeger(color) and color < 0) then
    wrong_type(layer, "split", "a group, or nil for a negative color", made)
  end
  return made
end

local function wait_until_idle(group, seconds)
  for _, work in ipairs { table.unpack(group.comm.pending) } do
    if work.rank == group.me and work.state == "pending" then
      local ok, _, err = pcall(work.wait, work, seconds)
      if ok and err then fail("ETIMEDOUT", "shutdown: operations are pending after %.1f s", seconds) end
    end
  end
end

function sim.shutdown(group, level, opts)
  local seconds = opts and opts.timeout or group.seconds
  local layer, f = find(group, level, "shutdown")
  if not f then return wait_until_idle(group, seconds) end
  local result = ask(group, layer, f, { timeout = seconds })
  if result ~= nil then group._as_work(group, result, { op = "shutdown" }, seconds, layer.name):wait() end
end

-- ---- coalescing -----------------------------------------------------------------------------------------------

function sim.start_coalescing(group, level)
  local layer, f = find(group, level, "start_coalescing")
  if f then ask(group, layer, f) end
end

function sim.end_coalescing(group, level)
  local layer, f = find(group, level, "end_coalescing")
  if not f then return group._as_work(group, true, {}) end
  return group._as_work(group, ask(group, layer, f), { op = "end_coalescing" }, group.seconds, layer.name)
end

local function failed_work(group, err)
  local work = Work.new(group.comm.world, { group = group.name, rank = group.me })
  work:finish("failed", blame.object(err))
  return work
end

-- One work that ends when all of the list have: with the first error in their order.
local function join(group, works, parts)
  local joined = Work.new(group.comm.world, { what = "coalesce" })
  local function first_pending()
    for _, work in ipairs(works) do
      if work.state == "pending" then return work end
    end
  end
  joined.missing = function()
    local work = first_pending()
    return work and work.missing and work.missing() or {}
  end
  joined.lazy = function()
    for _, work in ipairs(works) do
      if work.lazy then pcall(work.wait, work) end
    end
  end
  joined.on_abort = function(err)
    for _, work in ipairs(works) do work:abort(err.message) end
  end
  local function ended()
    if first_pending() then return end
    for i, work in ipairs(works) do
      local e = work.state ~= "done" and work.err
      if e then
        local where = "end_coalescing"
        if i <= parts then where = ("operation %d of %d coalesced, %s"):format(i, parts, work.op or "?") end
        joined:finish("failed", perigee.error(e.code, where .. ": " .. e.message, {
          op = e.op or work.op, seq = e.seq or work.seq, group = group.name, rank = group.me, ranks = e.ranks,
          origin = e.origin, cause = e.cause }))
        return
      end
    end
    joined:finish "done"
  end
  for _, work in ipairs(works) do
    if work.state == "pending" then table.insert(work.callbacks, 1, ended) end
  end
  joined.make_value = function()
    local values = {}
    for i = 1, parts do values[i] = works[i]:result() end
    return values
  end
  ended()
  return joined
end

local function submit_batch(group, batch)
  local works = {}
  for i, part in ipairs(batch) do works[i] = part.work end
  if #batch == 0 then return join(group, works, 0) end
  local started, err = pcall(sim.start_coalescing, group, 1)
  for _, part in ipairs(batch) do
    local ok, e = started, err
    if started then ok, e = pcall(group._issue, group, part.req, part.work) end
    if not ok then
      e = blame.object(e)
      if not started then e = perigee.error(e.code, "start_coalescing: " .. e.message, { rank = group.me }) end
      part.work:finish("failed", e)
    end
  end
  if started then
    local ok, work = pcall(sim.end_coalescing, group, 1)
    works[#works + 1] = ok and work or failed_work(group, work)
  end
  return join(group, works, #batch)
end

local methods = {}
sim.methods = methods

function methods:coalesce(f, opts)
  if type(f) ~= "function" then
    error(perigee.error("EINVAL", ("bad argument #1 to 'coalesce' (function expected, got %s)"):format(type(f))), 2)
  end
  if self.batch then
    error(perigee.error("ESTATE",
      ("coalescing on group %s within a coalescing on it: the inner one is not needed"):format(self.name)), 2)
  end
  local batch = { timeout = opts and opts.timeout }
  self.batch = batch
  local ok, err = pcall(f)
  self.batch = nil
  if ok then return submit_batch(self, batch) end
  for _, part in ipairs(batch) do part.work:fail("ECANCELED", "the coalescing was given up") end
  error(err, 0)
end

local KEYS = { op = true, tensor = true, peer = true, tag = true }

local function post(self, entry)
  if type(entry) ~= "table" then
    fail("EINVAL", "a table {op =, tensor =, peer =, tag =} expected, got %s", type(entry))
  end
  for key in pairs(entry) do
    if not KEYS[key] then fail("EINVAL", "unknown option '%s'", tostring(key)) end
  end
  if entry.op ~= "send" and entry.op ~= "recv" then
    fail("EINVAL", "op: \"send\" or \"recv\" expected, got %s", tostring(entry.op))
  end
  self[entry.op](self, entry.tensor, entry.peer, { tag = entry.tag })
end

function methods:batch_send_recv(list, opts)
  return self:coalesce(function()
    for i, entry in ipairs(list) do
      local ok, err = pcall(post, self, entry)
      if not ok then
        err = blame.object(err)
        fail(err.code, "batch_send_recv: entry %d: %s", i, err.message)
      end
    end
  end, opts)
end

-- ---- shrink, reconfigure ----------------------------------------------------------------------------------------

-- The members that have not ended meet; all get the same list. value: what this rank brings.
local function survivors(self, key, value, seconds)
  local comm = self.comm
  local world = comm.world
  comm.regroups = comm.regroups or {}
  local meet = comm.regroups[key] or { values = {} }
  comm.regroups[key] = meet
  meet.values[self.me] = value
  local function alive(rank) return not world.ended[comm.members[rank + 1]] end
  local function missing()
    local list = {}
    for rank = 0, self.n - 1 do
      if alive(rank) and meet.values[rank] == nil then list[#list + 1] = comm.members[rank + 1] end
    end
    return list
  end
  local work = Work.new(world, { what = key, group = self.name, rank = self.me, missing = missing })
  work:expire_after(seconds or self.seconds)
  world:block(work, function() return work.state ~= "pending" or meet.list or #missing() == 0 end)
  if work.err then error(work.err, 0) end
  work:finish "done"
  if not meet.list then
    meet.list = {}
    for rank = 0, self.n - 1 do
      if alive(rank) then meet.list[#meet.list + 1] = rank end
    end
  end
  return meet
end

function methods:shrink(opts)
  self.shrinks = (self.shrinks or 0) + 1
  local meet = survivors(self, "shrink" .. self.shrinks, true, opts and opts.timeout)
  return self:_child(meet, 1, ("%s/%s%d"):format(self.name, opts and opts.name or "alive", self.shrinks), meet.list)
end

-- Without an override: the ranks that are alive, which must be as many as `size` says, in the order of their `rank`.
local function reform(self, opts)
  self.configurations = (self.configurations or 0) + 1
  local rank, size = opts.rank or self.me, opts.size or self.n
  local meet = survivors(self, "reconfigure" .. self.configurations, rank, opts.init_timeout)
  if #meet.list ~= size then
    fail("ERENDEZVOUS", "reconfigure: %d ranks are here, %d expected", #meet.list, size)
  end
  local list = { table.unpack(meet.list) }
  table.sort(list, function(a, b) return meet.values[a] < meet.values[b] end)
  return self:_child(meet, 1, self.name, list)
end

function sim.reconfigure(group, level, opts)
  local layer, f = find(group, level, "reconfigure")
  if not f then return reform(group, opts or {}) end
  local result = ask(group, layer, f, opts or {})
  if is_group(result) then return result end
  if result == nil then
    wrong_type(layer, "reconfigure", "the new group, or a Work or true when this one stays", result)
  end
  group._as_work(group, result, { op = "reconfigure" }, group.seconds, layer.name):wait()
end

function methods:reconfigure(opts)
  local made = sim.reconfigure(self, 1, opts)
  if made then
    self:close()
    for k in pairs(self) do self[k] = nil end
    for k, v in pairs(made) do self[k] = v end
    sim.adopt(self)
  end
  return self
end

function methods:shutdown(opts)
  if self:is_closed() then return end
  local ok, err = pcall(sim.shutdown, self, 1, opts)
  self:close()
  if not ok then error(err, 0) end
end

function methods:split(color, key, opts) return sim.split(self, 1, color, key, opts) end

--- What self.inner has of these: name -> function(group, level, ...).
sim.inner = {
  split = sim.split, shutdown = sim.shutdown, start_coalescing = sim.start_coalescing,
  end_coalescing = sim.end_coalescing,
  reconfigure = function(group, level, opts) return sim.reconfigure(group, level, opts) or true end,
}

return sim
