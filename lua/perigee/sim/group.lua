-- The group object of a simulated rank: methods and fields of perigee.Group, above a stack of layers.
local perigee = require "perigee"
local blame = require "perigee.sim.blame"
local call = require "perigee.sim.call"
local Comm = require "perigee.sim.comm"
local Hooks = require "perigee.sim.hooks"
local Work = require "perigee.sim.work"
local objects = require "perigee.sim.objects"
local overrides = require "perigee.sim.methods"

local Group = {}
Group.__name = "perigee.sim.Group"

local DEFAULT_TIMEOUT = 1800
local STORE_TIMEOUT = 5 -- real seconds, of the waits of a store that stop the whole world

local work_meta = getmetatable(perigee.future())

-- ---- store --------------------------------------------------------------------------------------------------

-- The group's store: get, wait and multi_get let the other ranks run.
local function store_of(group, real)
  local world, waits = group.comm.world, {}
  real:set_timeout(STORE_TIMEOUT)
  local function await(what, keys, seconds)
    if real:check(keys) then return end
    local work = Work.new(world, { what = ("store:%s(%s)"):format(what,
      type(keys) == "table" and table.concat(keys, ",") or keys) })
    if seconds then work:expire_after(seconds) end
    world:block(work, function() return work.state ~= "pending" or real:check(keys) end)
    if work.err then error(work.err, 0) end
    work:finish "done"
  end
  for _, name in ipairs { "get", "wait", "multi_get" } do
    waits[name] = function(_, keys, seconds)
      await(name, keys, seconds)
      return real[name](real, keys)
    end
  end
  return setmetatable(waits, { __index = function(_, name)
    local v = real[name]
    if type(v) ~= "function" then return v end
    return function(_, ...) return v(real, ...) end
  end })
end

-- ---- layers -------------------------------------------------------------------------------------------------

local function method_of(instance, row)
  local f = instance[row.name]
  for alias in row.aliases:gmatch "%S+" do
    if f == nil then f = instance[alias] end
  end
  return f
end

-- A work of the runtime (perigee.future, perigee.async) as a work of this world.
local function from_runtime(group, result, fields)
  local work = Work.new(group.comm.world, fields)
  table.insert(group.comm.world.externals, function()
    if work.state ~= "pending" then return true end
    if not result:is_completed() then return false end
    local err = result:error()
    local received, source = pcall(result.source_rank, result)
    if received then work.source = source end
    if err then work:finish("failed", blame.object(err, fields)) else work:finish "done" end
    return true
  end)
  return work
end

-- A table with wait, get_future or is_completed.
local function from_table(group, result, fields, timeout)
  if result.get_future and not result.wait then
    return group:_as_work(result:get_future(), fields, timeout)
  end
  local work = Work.new(group.comm.world, fields)
  local function finish()
    local err = result.error and result:error()
    if err then work:finish("failed", blame.object(err, fields)) else work:finish "done" end
  end
  if result.wait then
    work.lazy = function()
      local ok, value = pcall(result.wait, result, timeout)
      if not ok then return work:finish("failed", blame.object(value, fields)) end
      if value == false then return work:fail("ELUA", "wait returned false") end
      finish()
    end
  else
    table.insert(group.comm.world.externals, function()
      if work.state ~= "pending" then return true end
      local ok, done = pcall(result.is_completed, result)
      if not ok then work:finish("failed", blame.object(done, fields)) elseif done then finish() end
      return work.state ~= "pending"
    end)
  end
  return work
end

local function as_work(group, result, fields, timeout, layer)
  if Work.is(result) then
    if not result.op then
      for k, v in pairs(fields) do result[k] = v end -- of perigee.async
    end
    return result
  end
  if result == true then
    local work = Work.new(group.comm.world, fields)
    work:finish "done"
    return work
  end
  if type(result) == "userdata" and getmetatable(result) == work_meta then
    return from_runtime(group, result, fields)
  end
  if type(result) == "table" and (result.wait or result.get_future or result.is_completed) then
    return from_table(group, result, fields, timeout)
  end
  error(perigee.error("ELUATYPE",
    ("backend '%s': %s must return a Work, a table with wait, get_future or is_completed, or true; got %s%s"):format(
      layer or "?", fields.op or "?", type(result), result == nil and " (is a 'return' missing?)" or ""), fields), 0)
end

local submit

local Inner = {}

function Inner.__index(self, key)
  local group, level = self._group, self._level
  local row = call.rows[key]
  if row then
    return function(_, ...)
      local req = call.parse(key, group.me, group.n, table.pack(...))
      req.seq = group.running
      local work = submit(group, level, req)
      local wrapped = Work.is(work) and not work.make_value
      if wrapped then work.make_value = function(w) return call.value(req, w.source) end end
      return work
    end
  end
  if key == "subgroup" then
    return function(_, ranks, opts) return group:_subgroup(ranks, opts, level) end
  end
  if key == "rank" or key == "size" then return overrides.number(group, level, key) end
  local method = overrides.inner[key]
  if method then
    return function(_, ...) return method(group, level, ...) end
  end
  if key == "seq" then return group.running or 0 end
  if key == "name" then return group.below[level] end
end

function Inner.__tostring(self) return ("inner layer '%s'"):format(self.name) end

local function open_layers(group)
  local instances = {}
  for level, layer in ipairs(group.stack) do
    local instance = {
      inner = setmetatable({ _group = group, _level = level + 1 }, Inner),
      rank = group.me, size = group.n, store = group.store, group_name = group.name, name = layer.name,
      members = { table.unpack(group.comm.members) },
    }
    setmetatable(instance, { __index = layer.table })
    instances[level] = { self = instance, name = layer.name, table = layer.table, shown = layer.name }
  end
  for level = #instances, 1, -1 do -- from the bottom, as real groups do
    local instance = instances[level].self
    if instance.open then
      local opts = { timeout = group.seconds }
      for k, v in pairs((group.comm.world.opts.options or {})[instance.name] or {}) do opts[k] = v end
      instance:open(opts)
    end
    overrides.resolve(instances[level])
  end
  return instances
end

-- Start a request at a level of the stack; #instances + 1 is the simulated bottom.
function submit(group, level, req)
  local layer = group.instances[level]
  if not layer then
    if not group.has_bottom then
      error(perigee.error("ENOTSUP", ("no layer of '%s' takes %s"):format(group.backend, req.row.name)), 0)
    end
    return group.comm:submit(group.me, req)
  end
  local f = method_of(layer.self, req.row)
  if f == nil then return submit(group, level + 1, req) end
  local fields = { op = req.row.name, seq = req.seq, group = group.name, rank = group.me }
  local before = group.running
  group.running = req.seq
  local ok, result = xpcall(f, function(err) return blame.object(err, fields, debug.traceback()) end,
    layer.self, table.unpack(call.arguments(req, group.seconds)))
  group.running = before
  if not ok then error(result, 0) end
  local work = as_work(group, result, fields, req.timeout or group.seconds, layer.name)
  if req.timeout and not work.timer then work:expire_after(req.timeout) end
  return work
end

-- ---- operations -------------------------------------------------------------------------------------------------

local methods = {}

-- The work of a caller, ended by the one of the layers once there is one.
local function follow(outer, work, req)
  outer.seq, outer.missing, outer.what = req.seq, work.missing, work.what
  outer.lazy = work.lazy and function() pcall(work.wait, work) end
  outer.on_abort = work.state == "pending" and function() work:abort "aborted by the script" end or nil
  local function ended()
    outer.source = work.source
    outer:finish(work.state == "done" and "done" or "failed", work.err)
  end
  if work.state ~= "pending" then ended() else table.insert(work.callbacks, 1, ended) end
end

local function outer_work(self, req)
  local outer = Work.new(self.comm.world, { op = req.row.name, group = self.name, rank = self.me })
  outer.make_value = function() return call.value(req, outer.source) end
  return outer
end

local function issue(self, req, outer)
  self.accepted = self.accepted + 1
  req.seq = self.accepted
  local told = self.hooks:start(req, outer ~= nil and outer ~= false)
  local ok, work = pcall(submit, self, 1, req)
  if not ok then
    self.hooks:refuse(told, work)
    error(work, 0)
  end
  if outer then follow(outer, work, req) end
  self.hooks:follow(told, outer or work)
  return work
end

-- A coalescing is being collected: the operation is part of it.
local function collect(self, req)
  local outer = outer_work(self, req)
  req.timeout = req.timeout or self.batch.timeout
  local function refuse()
    outer.lazy = refuse
    error(perigee.error("EDEADLK",
      "the operation is submitted when the coalescing ends: wait for it after that", { op = req.row.name }), 0)
  end
  outer.lazy = refuse
  table.insert(self.batch, { req = req, work = outer })
  return outer
end

local function operation(name)
  return function(self, ...)
    if self.comm.closed[self.me] then
      error(perigee.error("ECLOSED", "the group is closed on this rank",
        { op = name, group = self.name, rank = self.me }), 2)
    end
    local req = call.parse(name, self.me, self.n, table.pack(...))
    if self.batch then return collect(self, req) end
    if not req.async and self.comm.world.in_callback then
      error(perigee.error("EDEADLK",
        name .. ": a callback must not wait: pass async = true and use map or on_done"), 2)
    end
    local outer = req.async and outer_work(self, req)
    local work = issue(self, req, outer)
    if outer then return outer end
    work:wait()
    return call.value(req, work.source)
  end
end

for name in pairs(call.rows) do methods[name] = operation(call.rows[name].name) end
for name, f in pairs(objects) do methods[name] = f end

-- ---- life ----------------------------------------------------------------------------------------------------------

function methods:close()
  if self.comm.closed[self.me] then return end
  self.comm:close(self.me)
  self.hooks:close()
  for _, layer in ipairs(self.instances) do
    if layer.self.close then layer.self:close() end
  end
end

function methods:on(event, f, opts) return self.hooks:on(event, f, opts) end
function methods:register_on_completion_hook(f) return self.hooks:register_on_completion_hook(f) end
function methods:wait_for_pending_works(seconds) return self.hooks:wait_for_pending_works(seconds) end

function methods:is_closed() return self.comm.closed[self.me] == true end

function methods:abort(reason)
  self.comm:fail(self.comm:error("EABORTED", reason or "aborted by the script", nil, { origin = self.me }))
end

function methods:failed() return self.comm.failed end

function methods:set_timeout(seconds)
  if type(seconds) ~= "number" or seconds <= 0 or seconds ~= seconds then
    error(perigee.error("EINVAL", "bad argument #1 to 'set_timeout' (timeout: a positive number expected)"), 2)
  end
  self.seconds, self.comm.own_timeout[self.me] = seconds, seconds
  for _, layer in ipairs(self.instances) do
    if layer.self.set_timeout then layer.self:set_timeout(seconds) end
  end
end

function methods:to_world(rank) return self.comm.members[rank + 1] end
function methods:from_world(rank) return self.comm.from[rank] end

function methods:print(fmt, ...)
  if self.me == 0 then print(select("#", ...) > 0 and fmt:format(...) or tostring(fmt)) end
end

function methods:log(fmt, ...)
  print(("[rank %d] %s"):format(self.me, select("#", ...) > 0 and fmt:format(...) or tostring(fmt)))
end

-- ---- subgroups ----------------------------------------------------------------------------------------------------

local function child(self, meet, key, name, ranks, level)
  meet.comms = meet.comms or {}
  local comm = meet.comms[key]
  if not comm then
    local members = {}
    for i, r in ipairs(ranks) do members[i] = self.comm.members[r + 1] end
    comm = Comm.new(self.comm.world, name, members)
    meet.comms[key] = comm
  end
  local stack = { table.unpack(self.stack, level or 1) }
  local rank = comm.from[self.comm.members[self.me + 1]]
  comm.own_timeout[rank] = self.comm.own_timeout[self.me]
  return Group.new(comm, rank, stack, self.has_bottom, self.below[level or 1], self.seconds)
end

function methods:_split(color, key, opts)
  color = math.tointeger(color)
  if not color then error(perigee.error("EINVAL", "bad argument #1 to 'split' (color: integer expected)"), 2) end
  self.splits = self.splits + 1
  local all = {}
  for r = 0, self.n - 1 do all[r + 1] = r end
  local meet = self.comm:meet(self.me, "split" .. self.splits, all,
    { color = color, key = key or self.me }, "split")
  if color < 0 then return nil end
  local ranks = {}
  for r = 0, self.n - 1 do
    if meet.values[r].color == color then ranks[#ranks + 1] = r end
  end
  table.sort(ranks, function(a, b)
    local x, y = meet.values[a].key, meet.values[b].key
    if x ~= y then return x < y end
    return a < b
  end)
  local name = opts and opts.name or ("%s.%d.%d"):format(self.name, self.splits, color)
  return child(self, meet, color, name, ranks)
end

function methods:_subgroup(ranks, opts, level)
  local seen, mine = {}, false
  if type(ranks) ~= "table" or #ranks == 0 then
    error(perigee.error("EINVAL", "subgroup: a non-empty list of ranks is expected"), 2)
  end
  for _, r in ipairs(ranks) do
    if not math.tointeger(r) or r < 0 or r >= self.n or seen[r] then
      error(perigee.error("EINVAL", ("subgroup: rank %s is out of range or there twice"):format(tostring(r))), 2)
    end
    seen[r], mine = true, mine or r == self.me
  end
  if not mine then return nil end
  local key = ("subgroup %s:%s"):format(table.concat(ranks, ","), level or 1)
  self.made[key] = (self.made[key] or 0) + 1
  local meet = self.comm:meet(self.me, key .. "#" .. self.made[key], ranks, true, "subgroup")
  local name = opts and opts.name or ("%s.%s"):format(self.name, table.concat(ranks, "-"))
  return child(self, meet, 1, name, ranks, level)
end

function methods:subgroup(ranks, opts) return self:_subgroup(ranks, opts) end

methods._as_work, methods._child, methods._issue = as_work, child, issue
for name, f in pairs(overrides.methods) do methods[name] = f end

-- ---- the object ---------------------------------------------------------------------------------------------------

function Group.__index(self, key)
  if methods[key] then return methods[key] end
  if key == "seq" then return self.accepted end
  if key == "rank" or key == "size" then return overrides.number(self, 1, key) end
  if key == "timeout" then return self.seconds end
end

Group.__close = methods.close

function Group:__tostring()
  return ("group '%s': rank %d of %d, %s (sim)"):format(self.name, self.me, self.n, self.backend)
end

-- What stands from each level down, as a text.
local function name_layers(group, layers, field)
  local names = {}
  for i, layer in ipairs(layers) do names[i] = layer[field] end
  if group.has_bottom then names[#names + 1] = "sim" end
  for level = 1, #names do
    group.below[level] = table.concat(names, "(", level) .. (")"):rep(#names - level)
  end
end

overrides.Group = Group
-- The object has taken over another one's fields: its layers' inner objects stand for it now.
function overrides.adopt(group)
  for _, layer in ipairs(group.instances) do rawset(layer.self.inner, "_group", group) end
end

--- The group of one rank. stack: layers as sim/layers.lua resolves them; backend: their text.
function Group.new(comm, rank, stack, has_bottom, backend, seconds)
  local self = setmetatable({
    comm = comm, me = rank, n = comm.size, name = comm.name, stack = stack, has_bottom = has_bottom,
    backend = backend, transport = "", accepted = 0, splits = 0, made = {}, below = {},
    seconds = seconds or DEFAULT_TIMEOUT,
  }, Group)
  name_layers(self, stack, "name")
  self.store = store_of(self, perigee.store.prefix(comm.name, comm.world.store))
  self.hooks = Hooks.new(self)
  comm.groups[rank] = self
  self.instances = open_layers(self)
  name_layers(self, self.instances, "shown")
  self.backend = self.below[1]
  return self
end

return Group
