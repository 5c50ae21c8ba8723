-- What the ranks of one simulated group share: collectives that wait for their last rank, messages, the group's fate.
local perigee = require "perigee"
local compute = require "perigee.sim.compute"
local blame = require "perigee.sim.blame"
local Work = require "perigee.sim.work"

local Comm = {}
Comm.__index = Comm

--- members: world ranks in the order of their ranks here.
function Comm.new(world, name, members)
  local self = setmetatable({
    world = world, name = name, members = members, size = #members, slots = {}, count = {}, mail = {}, posted = {},
    p2p = {}, closed = {}, meets = {}, pending = {}, own_timeout = {}, groups = {},
  }, Comm)
  self.from = {}
  for i, w in ipairs(members) do
    self.from[w] = i - 1
    self.count[i - 1], self.mail[i - 1], self.posted[i - 1], self.p2p[i - 1] = 0, {}, {}, 0
  end
  world.comms[#world.comms + 1] = self
  return self
end

function Comm:error(code, message, rank, fields)
  local all = { group = self.name, rank = rank }
  for k, v in pairs(fields or {}) do all[k] = v end
  return perigee.error(code, message, all)
end

-- ---- fate -------------------------------------------------------------------------------------------------

--- The group fails once, with this first cause; everything pending ends with it.
function Comm:fail(cause)
  if self.failed then return end
  self.failed = cause
  local pending = self.pending
  self.pending = {}
  for _, work in ipairs(pending) do
    work:fail(cause.code, cause.message, { ranks = cause.ranks, origin = cause.origin, cause = cause.cause })
  end
  for rank = 0, self.size - 1 do
    local group = self.groups[rank]
    if group and not self.closed[rank] then group.hooks:failed(cause) end
  end
end

function Comm:died(world_rank)
  local rank = self.from[world_rank]
  if not rank then return end
  self:fail(self:error("EPEERDEAD", ("rank %d died"):format(rank), nil, { ranks = { rank }, origin = rank }))
end

local function check_open(self, rank, op)
  if self.closed[rank] then
    error(self:error("ECLOSED", "the group is closed on this rank", rank, { op = op }), 0)
  end
  local cause = self.failed
  if not cause then return end
  local dead = cause.code == "EPEERDEAD"
  error(self:error(dead and "EPEERDEAD" or "EABORTED",
    dead and cause.message or "the group has failed: " .. cause.message, rank,
    { op = op, ranks = cause.ranks, origin = cause.origin, cause = cause }), 0)
end

local function world_ranks(self, list)
  local result = {}
  for i, rank in ipairs(list) do result[i] = self.members[rank + 1] end
  return result
end

local function not_in(self, arrived)
  local list = {}
  for rank = 0, self.size - 1 do
    if not arrived[rank] then list[#list + 1] = rank end
  end
  return list
end

local function new_work(self, rank, fields)
  fields.group, fields.rank = self.name, rank
  local work = Work.new(self.world, fields)
  for i = #self.pending, 1, -1 do
    if self.pending[i].state ~= "pending" then table.remove(self.pending, i) end
  end
  self.pending[#self.pending + 1] = work
  work.on_abort = function(err) self:fail(err) end
  return work
end

local function closed_among(self, list)
  for _, rank in ipairs(list) do
    if self.closed[rank] then return rank end
  end
end

local function peer_closed(self, rank)
  local text = ("rank %d closed its group"):format(rank)
  self:fail(self:error("EPEERCLOSED", text, nil, { ranks = { rank }, origin = rank }))
end

function Comm:close(rank)
  if self.closed[rank] then return end
  self.closed[rank] = true
  for _, work in ipairs(self.pending) do
    if work.rank == rank then work:fail("ECLOSED", "the group was closed on this rank") end
  end
  for _, slot in pairs(self.slots) do
    if not slot.arrived[rank] then return peer_closed(self, rank) end
  end
  for _, list in pairs(self.posted) do
    for _, entry in ipairs(list) do
      if entry.src == rank then
        entry.work:fail("EPEERCLOSED", ("rank %d closed its group"):format(rank), { ranks = { rank } })
      end
    end
  end
end

-- ---- collectives --------------------------------------------------------------------------------------------

local function mismatch(self, slot, rank, described)
  self:fail(self:error("EMISMATCH", ("rank %d called %s, rank %d called %s, as collective #%d"):format(
    slot.by, slot.described, rank, described, slot.index), nil, { ranks = { slot.by, rank }, origin = rank }))
end

local function finish_slot(self, slot)
  self.slots[slot.index] = nil
  local reqs = {}
  for rank = 0, self.size - 1 do reqs[rank + 1] = slot.arrived[rank].req end
  local ok, err = xpcall(compute.ops[slot.op], function(e)
    if type(e) == "table" and e.mismatch then return e end
    return blame.object(e, {}, debug.traceback())
  end, reqs)
  if not ok and err.mismatch then
    self:fail(self:error("EMISMATCH", ("%s, in %s #%d"):format(err.mismatch, slot.op, slot.index)))
    return
  end
  for rank = 0, self.size - 1 do
    local work = slot.arrived[rank].work
    if ok then work:finish "done" else work:fail(err.code, err.message, { traceback = err.traceback }) end
  end
end

local function arrive(self, slot, rank, req, work)
  if work.state ~= "pending" then return end
  local described = compute.describe(req)
  if slot.described and slot.described ~= described then return mismatch(self, slot, rank, described) end
  slot.described, slot.by, slot.op = described, slot.by or rank, req.row.name
  slot.arrived[rank] = { req = req, work = work }
  local missing = not_in(self, slot.arrived)
  if #missing == 0 then return finish_slot(self, slot) end
  local gone = closed_among(self, missing)
  if gone then peer_closed(self, gone) end
end

local function slot_of(self, rank)
  local index = self.count[rank] + 1
  self.count[rank] = index
  local slot = self.slots[index] or { index = index, arrived = {} }
  self.slots[index] = slot
  return slot, index
end

-- ---- point to point -------------------------------------------------------------------------------------------

local function deliver(message, entry)
  local work, outs = entry.work, entry.req.out
  work.source = message.src
  message.work:finish "done"
  if #outs ~= #message.tensors then
    return work:fail("EMISMATCH", ("rank %d sent %d tensors, %d expected"):format(message.src, #message.tensors, #outs))
  end
  for i, out in ipairs(outs) do
    local t = message.tensors[i]
    if t.dtype ~= out.dtype or t.numel < out.numel then
      return work:fail("EMISMATCH", ("rank %d sent %s[%d], %s[%d] expected"):format(
        message.src, t.dtype, t.numel, out.dtype, out.numel))
    elseif t.numel > out.numel then
      return work:fail("ETRUNC", ("rank %d sent %d elements into %d"):format(message.src, t.numel, out.numel))
    end
  end
  for i, out in ipairs(outs) do out:view(out.numel):copy_(message.tensors[i]:view(out.numel)) end
  work:finish "done"
end

local function matches(entry, message)
  return entry.work.state == "pending" and entry.tag == message.tag and (not entry.src or entry.src == message.src)
end

local function post_send(self, rank, req, work)
  local tensors = {}
  for i, t in ipairs(req.inp) do tensors[i] = t:clone() end
  local message = { src = rank, tag = req.tag, tensors = tensors, work = work }
  local posted = self.posted[req.peer]
  for i, entry in ipairs(posted) do
    if matches(entry, message) then
      table.remove(posted, i)
      return deliver(message, entry)
    end
  end
  table.insert(self.mail[req.peer], message)
  if not self.world.opts.rendezvous then work:finish "done" end
end

-- The oldest message of each source fits; which source comes first is the schedule's choice.
local function post_recv(self, rank, req, work)
  local entry = { src = req.peer, tag = req.tag, req = req, work = work }
  local fits, seen = {}, {}
  for i, message in ipairs(self.mail[rank]) do
    if matches(entry, message) and not seen[message.src] then
      seen[message.src] = true
      fits[#fits + 1] = i
    end
  end
  if #fits > 0 then
    return deliver(table.remove(self.mail[rank], fits[#fits > 1 and self.world:random(#fits) or 1]), entry)
  end
  table.insert(self.posted[rank], entry)
  if entry.src and self.closed[entry.src] then
    work:fail("EPEERCLOSED", ("rank %d closed its group"):format(entry.src), { ranks = { entry.src } })
  end
end

-- ---- submit -------------------------------------------------------------------------------------------------------

-- A fault that fits this operation. seq counts collectives, or point-to-point operations, of the rank on this group.
local function fault_of(self, rank, req, seq)
  for _, f in ipairs(self.world.opts.faults or {}) do
    if (f.rank == nil or f.rank == self.members[rank + 1]) and (f.op == nil or f.op == req.row.name)
      and (f.seq == nil or f.seq == seq) then
      return f
    end
  end
end

local function missing_of(self, req, rank, slot)
  if slot then
    return function() return world_ranks(self, not_in(self, slot.arrived)) end
  end
  if req.peer then return function() return world_ranks(self, { req.peer }) end end
  return function()
    local others = {}
    for r = 0, self.size - 1 do
      if r ~= rank then others[#others + 1] = r end
    end
    return world_ranks(self, others)
  end
end

--- The bottom of every simulated group: a Work that ends when the operation has happened.
function Comm:submit(rank, req)
  local op = req.row.name
  check_open(self, rank, op)
  local slot, seq
  if req.row.takes.tag then
    seq = self.p2p[rank] + 1
    self.p2p[rank] = seq
  else
    slot, seq = slot_of(self, rank)
  end
  local fault = fault_of(self, rank, req, seq) or {}
  if fault.raise then error(self:error("ELUA", tostring(fault.raise), rank, { op = op, seq = seq }), 0) end
  if fault.kill then self.world:kill() end
  local work = new_work(self, rank, { op = op, seq = seq, missing = missing_of(self, req, rank, slot),
    what = req.peer and ("%s(%s %d, tag %d)"):format(op, op == "send" and "dst" or "src", req.peer, req.tag) })
  local timeout = req.timeout or self.own_timeout[rank]
  if timeout then
    work:expire_after(timeout, slot and function(err) self:fail(err) end)
  end
  local post = op == "send" and post_send or not slot and post_recv
  local function go()
    if slot then arrive(self, slot, rank, req, work) else post(self, rank, req, work) end
  end
  if fault.drop then
    if op == "send" then work:finish "done" end
  elseif fault.delay then
    self.world:later(fault.delay, go)
  else
    go()
  end
  return work
end

--- Wait until `ranks` have called with the same key; the values of all of them, by rank.
function Comm:meet(rank, key, ranks, value, what)
  check_open(self, rank, what)
  local meet = self.meets[key] or { values = {}, works = {} }
  self.meets[key] = meet
  meet.values[rank] = value
  local function absent()
    local list = {}
    for _, r in ipairs(ranks) do
      if meet.values[r] == nil then list[#list + 1] = r end
    end
    return list
  end
  local work = new_work(self, rank, { what = what, missing = function() return world_ranks(self, absent()) end })
  meet.works[#meet.works + 1] = work
  if #absent() == 0 then
    self.meets[key] = nil
    for _, w in ipairs(meet.works) do w:finish "done" end
  end
  work:wait()
  return meet
end

return Comm
