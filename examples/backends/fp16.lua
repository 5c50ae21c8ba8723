-- fp16: allreduce of f32 sums as f16 on the wire, with error feedback.
--
-- Each rank keeps, per tensor, the rounding error of its last contribution and adds it to the next one, so that what
-- the wire loses is sent later instead of being lost. The sum itself is made by the layer below (f16 in, accumulated in
-- f32).
--   perigee.init { backend = "fp16(native)" }
local perigee = require "perigee"

local Fp16 = perigee.backend("fp16", { inner = "native" })

Fp16.stats = { calls = 0, bytes_saved = 0 }   -- of this process

function Fp16:open()
  self.owed = setmetatable({}, { __mode = "k" })  -- t:key() -> f32 tensor: what the wire has not been told yet
end

function Fp16:allreduce(tensors, opts)
  local t = tensors[1]
  if #tensors > 1 or t.dtype ~= "f32" or opts.op ~= "sum" then
    return self.inner:allreduce(tensors, opts)
  end
  local exact, key = t:clone(), t:key()
  if self.owed[key] then exact:add_(self.owed[key]) end
  local half = exact:to("f16")
  self.owed[key] = exact:sub_(half:to("f32"))
  Fp16.stats.calls = Fp16.stats.calls + 1
  Fp16.stats.bytes_saved = Fp16.stats.bytes_saved + t.nbytes - half.nbytes
  return self.inner:allreduce({ half }, opts):map(function() t:copy_(half:to("f32")) end)
end

return Fp16
