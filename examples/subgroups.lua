-- Subgroups: split by color (all ranks call), or a list of members (only they call).
--   perigee run -n 4 examples/subgroups.lua
local perigee = require "perigee"

local world <close> = perigee.init()
local row <close> = world:split(world.rank // 2)          -- color, optionally a key: ranks of one color, in order
local sum = row:allreduce(world.rank)
print(("rank %d is rank %d of %d in %s; its row adds up to %d"):format(
  world.rank, row.rank, row.size, row.name, sum))

local members = {}
for r = 0, world.size - 1, 2 do members[#members + 1] = r end
local evens = world:subgroup(members)                     -- nil on ranks that are not in the list
if evens then
  local t = perigee.tensor("f32", { world.rank })
  evens:broadcast(t, { root = evens.size - 1 })           -- roots and peers are the subgroup's own ranks
  assert(t[1] == evens:to_world(evens.size - 1))
  evens:close()
end
world:barrier()
