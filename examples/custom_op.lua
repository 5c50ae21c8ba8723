-- Reduce with an operation of one's own: a Lua function on whole tensor views, called once per chunk.
--   perigee run -n 4 examples/custom_op.lua
local perigee = require "perigee"

local absmax = perigee.op {
  name = "absmax",                              -- compared across ranks
  reduce = function(acc, x) acc:abs_():max_(x:abs()) end,
}

local world <close> = perigee.init()
local sign = world.rank % 2 == 0 and 1 or -1
local t = perigee.tensor("f32", { sign * world.rank, -0.5, sign * (10 - world.rank) })
world:allreduce(t, { op = absmax })

world:print("largest magnitudes: %g %g %g", t[1], t[2], t[3])
if world.size > 1 then
  assert(t[1] == world.size - 1 and t[2] == 0.5 and t[3] == 10)
end
