-- Every rank says hello, then all add up a number.
--   perigee run -n 4 examples/hello.lua        (or without a launcher: lua5.4 examples/hello.lua)
local perigee = require "perigee"

local world <close> = perigee.init()            -- reads RANK, WORLD_SIZE, ...; size 1 when nothing is set
print(("hello from rank %d of %d"):format(world.rank, world.size))

local total = world:allreduce(world.rank + 1)   -- a number in, a number out
local t = perigee.tensor("f32", { world.rank, 1 })
world:allreduce(t)                              -- a tensor is reduced in place

world:print("1 + ... + %d = %d; tensor: {%g, %g}", world.size, total, t[1], t[2])
assert(total == world.size * (world.size + 1) // 2)
