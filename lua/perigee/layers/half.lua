--- What fp16 and bf16 share: sums of f32 tensors that travel as 16 bits, with error feedback. Not a layer itself.
local perigee = require "perigee"
local common = require "perigee.layers.common"

local half = {}

local reductions = {
  "allreduce", "allreduce_coalesced", "reduce", "reduce_scatter", "reduce_scatter_tensor",
  "reduce_scatter_tensor_coalesced",
}

-- The same decision on all ranks: by what they must agree on anyway.
local function takes(self, list, opts)
  if opts.op ~= "sum" and opts.op ~= "avg" then return false end
  local bytes = 0
  for _, t in ipairs(list) do
    if t.dtype ~= "f32" then return false end
    bytes = bytes + t.nbytes
  end
  return bytes >= self.min_bytes
end

-- What goes on the wire for t, and what the wire is not told: added to t the next time. An error that is not a number,
-- or is infinite (an overflow), is not kept: it would stay for ever.
local function narrow(self, t)
  local exact, key = t:view(-1), t:key()
  local owed = self.owed and self.owed[key]
  if owed then exact = exact:clone():add_(owed) end
  local wire = exact:to(self.wire)
  if not self.owed then return wire end
  local rest = (owed and exact or exact:clone()):sub_(wire:to("f32"))
  local total = rest:sum()
  return wire, key, total - total == 0 and rest or nil
end

local function narrow_all(self, list)
  local wires, notes = {}, {}
  for i, t in ipairs(list) do
    local wire, key, rest = narrow(self, t)
    wires[i] = wire:view(t.shape)
    if key then notes[#notes + 1] = { key, rest } end
    self._count(t.nbytes - wire.nbytes)
  end
  return wires, notes
end

-- Only when the operation is done: what was not sent is owed as before.
local function settle(self, notes)
  if not self.owed then return end -- without feedback, or closed meanwhile
  for _, note in ipairs(notes) do self.owed[note[1]] = note[2] end
end

local function wide_all(list, wires)
  for i, t in ipairs(list) do t:copy_(wires[i]:to("f32")) end
end

-- In place: allreduce, allreduce_coalesced, reduce.
local function make_inplace(row)
  return function(self, tensors, opts)
    if not takes(self, tensors, opts) then return self.inner[row.name](self.inner, tensors, opts) end
    local wires, notes = narrow_all(self, tensors)
    return self.inner[row.name](self.inner, wires, opts):map(function()
      settle(self, notes)
      if row.name ~= "reduce" or self.rank == opts.root then wide_all(tensors, wires) end
    end)
  end
end

-- The flat list cut as `rows` is.
local function rows_like(rows, list)
  local cut, at = {}, 0
  for i, row in ipairs(rows) do
    cut[i] = table.move(list, at + 1, at + #row, 1, {})
    at = at + #row
  end
  return cut
end

-- From inputs into outputs: the reduce_scatters.
local function make_two_sided(row)
  return function(self, outs, ins, opts)
    local call = common.call(row, outs, ins, opts)
    if not takes(self, call.ins, opts) then return self.inner[row.name](self.inner, outs, ins, opts) end
    local wires, notes = narrow_all(self, call.ins)
    local results = {}
    for i, t in ipairs(call.outs) do results[i] = perigee.zeros(self.wire, t.shape) end
    local work
    if row.out == "one" then
      work = self.inner[row.name](self.inner, results[1], wires[1], opts)
    else
      work = self.inner[row.name](self.inner, results, row["in"] == "lists" and rows_like(ins, wires) or wires, opts)
    end
    return work:map(function()
      settle(self, notes)
      wide_all(call.outs, results)
    end)
  end
end

--- The backend `name` that sends f32 as `wire`.
function half.define(name, wire)
  local B = perigee.backend(name)

  B.stats = { calls = 0, bytes_saved = 0 }

  function B:open(opts)
    local options = common.options(self, opts, { feedback = true, min_bytes = 0, ops = { "table" } })
    self.wire, self.min_bytes = wire, options.min_bytes
    self.owed = options.feedback and setmetatable({}, { __mode = "k" }) or nil
    function self._count(bytes)
      B.stats.calls, B.stats.bytes_saved = B.stats.calls + 1, B.stats.bytes_saved + bytes
    end
    local set = common.op_set(self, options.ops, reductions)
    for op in pairs(set) do
      local known = false
      for _, reduction in ipairs(reductions) do known = known or op == reduction end
      if not known then common.refuse(self, "option 'ops': '%s' is no reduction", op) end
    end
    if self.size == 1 then return end -- nothing travels: nothing to save, and nothing is lost
    common.override(self, set, function(row)
      return row["in"] == "inplace" and make_inplace(row) or make_two_sided(row)
    end)
  end

  function B:close() self.owed = nil end

  return B
end

return half
