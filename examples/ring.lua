-- Point to point: a token goes round the ring, each rank adds itself; then everybody greets its neighbours without
-- blocking.
--   perigee run -n 4 examples/ring.lua
local perigee = require "perigee"

local world <close> = perigee.init()
local right, left = (world.rank + 1) % world.size, (world.rank - 1) % world.size
if world.size == 1 then
  print("a ring needs at least 2 ranks: perigee run -n 4 examples/ring.lua")
  return
end

local token = perigee.tensor("i64", { 0 })
if world.rank == 0 then
  world:send(token, right, { tag = 7 })
  world:recv(token, left, { tag = 7, timeout = 30 })
  print(("the token came back with %d"):format(token[1]))
  assert(token[1] == world.size * (world.size - 1) // 2)
else
  world:recv(token, left, { tag = 7, timeout = 30 })
  token:add_(world.rank)
  world:send(token, right, { tag = 7 })
end

local from_left, from_right = perigee.zeros("i32", 1), perigee.zeros("i32", 1)
local mine = perigee.tensor("i32", { world.rank })
local works = {
  world:recv(from_left, left, { tag = 1, async = true }),
  world:recv(from_right, right, { tag = 2, async = true }),
  world:send(mine, right, { tag = 1, async = true }),
  world:send(mine, left, { tag = 2, async = true }),
}
for _, work in ipairs(works) do work:wait(30) end
assert(from_left[1] == left and from_right[1] == right)
world:print("every rank knows its neighbours")
