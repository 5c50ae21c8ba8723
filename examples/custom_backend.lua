-- A backend is a table. This one counts calls and bytes; what it does not override falls through to the layer below.
--   perigee run -n 3 examples/custom_backend.lua
local perigee = require "perigee"

local Count = perigee.backend("count", { inner = "native" })
local calls, bytes = 0, 0

function Count:allreduce(tensors, opts)         -- canonical form: always a list, then the options
  calls = calls + 1
  for _, t in ipairs(tensors) do bytes = bytes + t.nbytes end
  return self.inner:allreduce(tensors, opts)    -- a layer's method returns a Work
end

function Count.barrier()                        -- does not need itself
  calls = calls + 1
  return true                                   -- "already done": this layer answers for the ones below
end

local world <close> = perigee.init { backend = "count(native)" }
local t = perigee.tensor("f64", { 1, 2, 3 })
world:allreduce(t, { op = "max" })
world:barrier()
world:broadcast(t, { root = 0 })                -- not overridden: straight to native

world:print("%s: %d calls through the script, %d bytes", world.backend, calls, bytes)
assert(calls == 2 and bytes == 24)
