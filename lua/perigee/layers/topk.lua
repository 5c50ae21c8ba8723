--- topk: sparse allreduce. Each rank sends its k largest elements; the rest is kept and added to the next call.
--
--   perigee.init { backend = "topk(native)", options = { topk = { ratio = 0.01 } } }
--
-- For allreduce with op "sum" or "avg" on f32; everything else goes down unchanged. Indices and values travel in one
-- allgather of 8 * k bytes per rank, and every rank adds up all contributions in rank order: all end with the same
-- bits. The result holds only what was sent, so a single call is far from the sum; with error feedback the sum over
-- many calls is right. What is kept belongs to the tensor's memory: use the same tensor (or the same view of it) in
-- every step.
--
-- Elements are chosen in Lua: about 0.2 us per element. It pays where the network is slower than that.
--
-- Options
--   ratio      part of the elements that is sent, 0 < ratio <= 1; 0.01. At least one element
--   feedback   true (default) or false
--   min_numel  tensors with fewer elements stay exact; 1024
--
-- require "perigee.layers.topk".stats holds { calls, bytes_saved = per rank and direction } of this process.
local perigee = require "perigee"
local common = require "perigee.layers.common"

local Topk = perigee.backend "topk"

Topk.stats = { calls = 0, bytes_saved = 0 }

-- The k-th largest of the list, which is changed: quickselect with the median of three.
local function kth_largest(list, k)
  local low, high = 1, #list
  while low < high do
    local a, b, c = list[low], list[(low + high) // 2], list[high]
    local pivot = math.max(math.min(a, b), math.min(math.max(a, b), c))
    local i, j = low, high
    while i <= j do
      while list[i] > pivot do i = i + 1 end
      while list[j] < pivot do j = j - 1 end
      if i <= j then
        list[i], list[j] = list[j], list[i]
        i, j = i + 1, j - 1
      end
    end
    if k <= j then high = j elseif k >= i then low = i else return list[k] end
  end
  return list[low]
end

-- Indices (ascending, from 1) and values of the k largest magnitudes; of equal ones those that come first. NaN counts
-- as infinite: it must be seen, not kept.
local function largest(values, k)
  local magnitudes = {}
  for i = 1, #values do
    local v = values[i]
    magnitudes[i] = v ~= v and math.huge or v < 0 and -v or v
  end
  local limit = kth_largest(table.move(magnitudes, 1, #magnitudes, 1, {}), k)
  local above = 0
  for i = 1, #magnitudes do
    if magnitudes[i] > limit then above = above + 1 end
  end
  local indices, chosen, ties = {}, {}, k - above
  for i = 1, #magnitudes do
    local m = magnitudes[i]
    if m > limit or (m == limit and ties > 0) then
      if m == limit then ties = ties - 1 end
      indices[#indices + 1], chosen[#chosen + 1] = i, values[i]
    end
  end
  return indices, chosen
end

-- Several tensors in one call count as contributions to one sum.
local function contribution(self, tensors)
  local dense = tensors[1]:view(-1):clone()
  for i = 2, #tensors do dense:add_(tensors[i]:view(-1)) end
  local key = self.owed and tensors[1]:key()
  local owed = key and self.owed[key]
  if owed then dense:add_(owed) end
  return dense, key
end

local function pack(indices, values)
  return perigee.tensor("u8", perigee.tensor("i32", indices):tobytes() .. perigee.tensor("f32", values):tobytes())
end

-- What all ranks sent, added up in rank order.
local function sum_of(self, gathered, k, numel)
  local bytes, sum = gathered:tobytes(), {}
  for i = 1, numel do sum[i] = 0.0 end
  for r = 0, self.size - 1 do
    local at = r * 8 * k
    local indices = perigee.tensor("i32", bytes:sub(at + 1, at + 4 * k)):totable()
    local values = perigee.tensor("f32", bytes:sub(at + 4 * k + 1, at + 8 * k)):totable()
    for i = 1, k do sum[indices[i]] = sum[indices[i]] + values[i] end
  end
  return perigee.tensor("f32", sum)
end

function Topk:_sparse(tensors, opts)
  local t = tensors[1]
  local dense, key = contribution(self, tensors)
  local k = math.max(1, math.floor(t.numel * self.ratio))
  local indices, values = largest(dense:totable(), k)
  local rest
  if key then
    for _, i in ipairs(indices) do dense[i] = 0 end
    local total = dense:sum()
    rest = total - total == 0 and dense or nil -- infinite: it would stay for ever
  end
  local stats = Topk.stats
  stats.calls, stats.bytes_saved = stats.calls + 1, stats.bytes_saved + t.nbytes - 8 * k
  local gathered = perigee.zeros("u8", 8 * k * self.size)
  local timeout = { timeout = opts.timeout }
  return self.inner:allgather_into_tensor(gathered, pack(indices, values), timeout):map(function()
    if key and self.owed then self.owed[key] = rest end -- only now: what was not sent is owed as before
    local sum = sum_of(self, gathered, k, t.numel)
    if opts.op == "avg" then sum:div_(self.size * #tensors) end
    for _, each in ipairs(tensors) do each:copy_(sum:view(each.shape)) end
  end)
end

local function allreduce(self, tensors, opts)
  local t = tensors[1]
  local sparse = t.dtype == "f32" and (opts.op == "sum" or opts.op == "avg") and t.numel >= self.min_numel
    and t.numel > 0 and t.numel < 1 << 31
  if sparse then return self:_sparse(tensors, opts) end
  return self.inner:allreduce(tensors, opts)
end

function Topk:open(opts)
  local options = common.options(self, opts, { ratio = 0.01, feedback = true, min_numel = 1024 })
  if not (options.ratio > 0 and options.ratio <= 1) then
    common.refuse(self, "option 'ratio': a number above 0, at most 1, expected, got %s", options.ratio)
  end
  self.ratio, self.min_numel = options.ratio, options.min_numel
  self.owed = options.feedback and setmetatable({}, { __mode = "k" }) or nil
  if self.size > 1 then self.allreduce = allreduce end -- else nothing travels
end

function Topk:close() self.owed = nil end

return Topk
