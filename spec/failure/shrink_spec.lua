-- After a death: the survivors make a new group, by shrink or by reconfigure, also when another one dies meanwhile.
local support = require "cli.support"

local prelude = [[
local perigee = require "perigee"
local function die() os.execute("kill -9 " .. io.open("/proc/self/stat"):read "n") end
local function die_after(seconds)
  os.execute(("(sleep %g; kill -9 %d) >/dev/null 2>&1 &"):format(seconds, io.open("/proc/self/stat"):read "n"))
end
local function sleep(seconds) os.execute("sleep " .. seconds) end
-- A barrier that everybody has left: who dies afterwards does not take it along.
local function settle(g)
  g:barrier()
  g.store:barrier("settled", g.size)
end
local function members(g)
  local list = {}
  for r = 0, g.size - 1 do list[#list + 1] = g:to_world(r) end
  return table.concat(list, ",")
end
]]

-- Run on n ranks; returns rank -> what it printed last, and the run.
local function run(transport, n, body, limit)
  local result = support.bash(([[
    export PERIGEE_TRANSPORT=%s PERIGEE_TIMEOUT=30
    timeout -k 2 %d $P run -n %d --keep-going --prefix always $D/s.lua
  ]]):format(transport, limit or 50, n), { ["s.lua"] = prelude .. body })
  local said = {}
  for _, line in ipairs(support.lines(result.out)) do
    local rank, text = line:match "^%[(%d+)%] (.*)$"
    if rank then said[tonumber(rank)] = text end
  end
  return said, result
end

for _, transport in ipairs { "shm", "tcp" } do
  describe("shrink over " .. transport, function()
    after_each(support.cleanup)

    it("makes a group of the three survivors of a killed rank", function()
      local said, result = run(transport, 4, [[
        local world = perigee.init()
        settle(world)
        if world.rank == 2 then die() end
        local ok, e = pcall(world.allreduce, world, 1)
        assert(not ok and e.code == "EPEERDEAD", tostring(e))
        assert(world:failed().code == "EPEERDEAD" and world:failed().ranks[1] == 2)
        local alive = world:shrink()
        assert(alive:failed() == nil and alive.name:find("world/alive1", 1, true))
        local sum = alive:allreduce(10 ^ world.rank)
        world:close()
        local part = alive:split(alive.rank % 2)
        print(members(alive), alive.rank, math.tointeger(sum), part:allreduce(1), #alive:allgather_object("x"))
      ]])
      assert.equal("0,1,3\t0\t1011\t2\t3", said[0], result.out .. result.err)
      assert.equal("0,1,3\t1\t1011\t1\t3", said[1], result.out .. result.err)
      assert.equal("0,1,3\t2\t1011\t2\t3", said[3], result.out .. result.err)
    end)

    it("can be done again on the group it made, down to one rank", function()
      local said, result = run(transport, 4, [[
        local g = perigee.init()
        local me = g.rank
        settle(g)
        for victim = 3, 1, -1 do
          if me == victim then die() end
          local ok, e = pcall(g.barrier, g)
          assert(not ok and e.code == "EPEERDEAD", tostring(e))
          g = g:shrink()
          assert(g:allreduce(1) == victim and g.size == victim)
          settle(g)
        end
        print("alone", members(g), g:shrink():allreduce(5))
      ]])
      assert.equal("alone\t0\t5", said[0], result.out .. result.err)
    end)

    it("goes on without who dies while the others gather", function()
      local said, result = run(transport, 4, [[
        local world = perigee.init()
        settle(world)
        if world.rank == 1 then die() end
        if world.rank == 3 then die_after(0.3) end -- it is in shrink then, and waits for rank 0
        pcall(world.barrier, world)
        if world.rank == 0 then sleep(0.8) end
        local alive = world:shrink()
        print(members(alive), alive:allreduce(1))
      ]])
      assert.equal("0,2\t2", said[0], result.out .. result.err)
      assert.equal("0,2\t2", said[2], result.out .. result.err)
    end)

    it("agrees again when a member dies after the agreement", function()
      -- A layer is opened when its group's bottom is there, and before the members agree that the group is good.
      local said, result = run(transport, 4, [[
        local B = perigee.backend "dies"
        function B:open()
          if self.group_name:find("alive1.1", 1, true) and self.members[self.rank + 1] == 3 then die() end
        end
        local world = perigee.init { backend = "dies" }
        settle(world)
        if world.rank == 1 then die() end
        pcall(world.barrier, world)
        local alive = world:shrink()
        print(members(alive), alive:allreduce(1), alive.name)
      ]])
      assert.equal("0,2\t2\tworld/alive1.2", said[0], result.out .. result.err)
      assert.equal("0,2\t2\tworld/alive1.2", said[2], result.out .. result.err)
    end)

    it("leaves out a rank that does not come, which is told so", function()
      local said, result = run(transport, 3, [[
        local world = perigee.init()
        settle(world)
        world:abort "enough"
        if world.rank == 2 then sleep(6) end
        local ok, alive = pcall(world.shrink, world, { timeout = 8 })
        print(ok and members(alive) or tostring(alive), ok and alive:allreduce(1))
      ]])
      assert.equal("0,1\t2", said[0], result.out .. result.err)
      assert.equal("0,1\t2", said[1], result.out .. result.err)
      assert.is_truthy(said[2]:find("the others went on without this rank, as 0,1", 1, true), said[2])
    end)

    it("gives the same members to all that return, whenever a second one dies", function()
      for _, ms in ipairs { 1, 4, 8 } do
        local said, result = run(transport, 4, ([[
          local world = perigee.init()
          local me = world.rank
          settle(world)
          if me == 1 then die() end
          if me == 3 then die_after(%g) end
          pcall(world.barrier, world)
          local g, trail = world, {}
          for _ = 1, 4 do
            g = g:shrink()
            trail[#trail + 1] = members(g)
            if me == 3 then sleep(5) end
            local ok, e = pcall(function() while g.size > 2 do g:barrier() end end)
            if ok then break end
            assert(e.code == "EPEERDEAD" or e.code == "EABORTED", tostring(e))
          end
          print(table.concat(trail, " "), g:allreduce(10 ^ me))
        ]]):format(ms / 1000))
        assert.is_truthy(said[0], result.out .. result.err)
        assert.equal(said[0], said[2], result.out .. result.err)
        assert.is_truthy(said[0]:find "0,2\t101", said[0])
      end
    end)
  end)

  describe("reconfigure over " .. transport, function()
    after_each(support.cleanup)

    it("forms the same object anew for the survivors, in an order of their choice", function()
      local said, result = run(transport, 4, [[
        local world = perigee.init()
        local me = world.rank
        settle(world)
        if me == 0 then die() end
        local ok, e = pcall(world.allreduce, world, 1)
        assert(not ok and e.code == "EPEERDEAD", tostring(e))
        local same = world:reconfigure { rank = 3 - me, size = 3 }
        assert(same == world and world:failed() == nil and world.seq == 0)
        print(world.rank, world.size, math.tointeger(world:allreduce(10 ^ me)), world:broadcast(me, { root = 0 }))
      ]])
      for rank = 1, 3 do
        assert.equal(("%d\t3\t1110\t3"):format(3 - rank), said[rank], result.out .. result.err)
      end
    end)

    it("of a healthy group, again and again, on a store and under an id, with a newcomer", function()
      local said, result = run(transport, 3, [[
        local store = perigee.store.tcp(os.getenv "MASTER_ADDR", tonumber(os.getenv "MASTER_PORT"))
        local me = tonumber(os.getenv "RANK")
        -- Rank 2 has never been in a group with the others.
        local g = me < 2 and perigee.init { rank = me, size = 2, store = perigee.store.prefix("two", store) }
          or perigee.init { rank = 0, size = 1 }
        if me < 2 then assert(g:allreduce(1) == 2) end
        local sums = {}
        for quorum = 1, 3 do
          local size = quorum == 2 and 2 or 3
          if me < size then
            g:reconfigure { store = store, id = "q" .. quorum, rank = me, size = size, timeout = 20 }
            sums[#sums + 1] = g:allreduce(me + 1)
            assert(g.timeout == 20)
          end
        end
        print(table.concat(sums, " "))
      ]])
      assert.equal("6 3 6", said[0], result.out .. result.err)
      assert.equal("6 3 6", said[1], result.out .. result.err)
      assert.equal("6 6", said[2], result.out .. result.err)
    end)

    it("says who is missing, and may be called again", function()
      local said, result = run(transport, 2, [[
        local world = perigee.init()
        settle(world)
        if world.rank == 1 then die() end
        pcall(world.barrier, world)
        local ok, e = pcall(world.reconfigure, world, { init_timeout = 0.5 })
        assert(not ok and (e.code == "ERENDEZVOUS" or e.code == "ETIMEDOUT"), tostring(e))
        assert(tostring(e):find("ranks? 1"), tostring(e))
        for _, wrong in ipairs { { rank = 0 }, { rank = 2, size = 2 }, { ran = 1 }, { id = {} } } do
          assert(not pcall(world.reconfigure, world, wrong))
        end
        world:reconfigure { rank = 0, size = 1 }
        print(world:allreduce(7))
      ]])
      assert.equal("7", said[0], result.out .. result.err)
    end)
  end)
end

describe("in a simulated world", function()
  local perigee = require "perigee"
  local sim = perigee.testing.sim

  it("survivors shrink, and reconfigure", function()
    local seen = {}
    for seed = 1, 10 do
      sim(4, function(g)
        local me = g.rank
        local ok, e = pcall(g.barrier, g)
        assert(not ok and e.code == "EPEERDEAD", tostring(e))
        local alive = g:shrink()
        assert(alive.size == 3 and alive:to_world(2) == 3 and alive:allreduce(10 ^ me) == 1011)
        assert(g:failed() and not alive:failed())
        assert(g:reconfigure { rank = 2 - alive.rank, size = 3 } == g)
        assert(g:failed() == nil and g.rank == 2 - alive.rank and g:broadcast(me, { root = 0 }) == 3)
        seen[me] = (seen[me] or 0) + 1
      end, { seed = seed, faults = { { rank = 2, op = "barrier", kill = true } } })
    end
    assert.same({ [0] = 10, [1] = 10, [3] = 10 }, seen)
  end)

  it("a rank that does not come to shrink is named", function()
    local ok, e = pcall(sim, 2, function(g)
      if g.rank == 0 then g:shrink { timeout = 30 } else g:recv(perigee.zeros("f32", 1), 0) end
    end)
    assert.is_false(ok)
    assert.is_truthy(tostring(e):find("timed out after 30.0 s, missing ranks 1", 1, true), tostring(e))
  end)
end)
