-- topk: which elements are sent, and that the others come later.
-- luacheck: ignore 431
local helpers = require "helpers"

describe("topk", function()
  it("sends the largest magnitudes of each rank and adds them up, alike on all ranks", function()
    for _, ranks in ipairs { 2, 4 } do
      helpers.ranks_ok(ranks, function()
        local perigee = require "perigee"
        local stats = require "perigee.layers.topk".stats
        local world <close> = perigee.init { backend = "topk(native)",
          options = { topk = { ratio = 0.25, min_numel = 4, feedback = false } } }
        local r, n = world.rank, world.size
        local values = { 0.5, -9, 1, 0.25, 0, 3, 2, -1 }
        values[5] = 10 + r -- one that is everybody's, one more of each rank
        values[r + 1] = 100
        local t = perigee.tensor("f32", values):view(2, 4)
        assert(world:allreduce(t) == t)
        local want = perigee.zeros("f32", 8)
        for rank = 0, n - 1 do
          want:set(5, want[5] + 10 + rank)
          want:set(rank + 1, want[rank + 1] + 100)
        end
        assert(t:view(8):equal(want), tostring(t))
        for _, theirs in ipairs(world:allgather(t)) do assert(theirs:equal(t)) end
        assert(stats.calls == 1 and stats.bytes_saved == 32 - 16)
        -- equal magnitudes: those that come first
        t = world:allreduce(perigee.tensor("f32", { 1, -1, 1, -1, 1, 1, 1, 1 }), { op = "avg" })
        assert(t:equal(perigee.tensor("f32", { 1, -1, 0, 0, 0, 0, 0, 0 })), tostring(t))
        -- NaN is seen
        t = world:allreduce(perigee.tensor("f32", { 1, 2, 3, 4, 5, 0 / 0, 7, 8 }))
        assert(t[6] ~= t[6] and t[8] == 8 * n and t[7] == 0)
        -- a list is one sum
        local list = { perigee.tensor("f32", { 1, 0, 0, 0 }), perigee.tensor("f32", { 2, 5, 0, 0 }) }
        world:allreduce(list, { op = "avg" })
        assert(list[1]:equal(perigee.tensor("f32", { 0, 2.5, 0, 0 })) and list[2]:equal(list[1]), tostring(list[1]))
        local work = world:allreduce(perigee.tensor("f32", { 1, 2, 3, 4 }), { async = true })
        assert(work:wait()[4] == 4 * n)
        local row <close> = world:split(0)
        assert(row:allreduce(perigee.tensor("f32", { 1, 2, 3, 4 })):sum() == 4 * row.size)
      end, { world = false })
    end
  end)

  it("leaves alone what is small, of other dtypes and ops", function()
    helpers.ranks_ok(2, function()
      local perigee = require "perigee"
      local world <close> = perigee.init { backend = "topk(native)" }
      local function all(t, opts) return world:allreduce(t, opts):sum() end
      assert(all(perigee.ones("f32", 1023)) == 2046)
      assert(all(perigee.ones("f64", 2000)) == 4000)
      assert(all(perigee.ones("f32", 2000), { op = "max" }) == 2000)
      assert(all(perigee.ones("f32", 2000)) == 40) -- 1 % of 2000, from each of two
      assert(world:broadcast(perigee.ones("f32", 2000)):sum() == 2000)
      assert(world:allreduce(perigee.zeros("f32", 0)).numel == 0)
    end, { world = false })
  end)

  it("with ratio 1 is the sum", function()
    helpers.ranks_ok(4, function()
      local perigee = require "perigee"
      local world <close> = perigee.init { backend = "topk(native)", options = { topk = { ratio = 1, min_numel = 1 } } }
      for _, numel in ipairs { 1, 2, 37, 1000 } do
        local t, want = perigee.arange("f32", numel), perigee.arange("f32", numel):mul_(10)
        t:mul_(world.rank + 1)
        assert(world:allreduce(t):equal(want), tostring(t))
      end
    end, { world = false })
  end)

  it("delivers everything in the end", function()
    helpers.ranks_ok(2, function()
      local perigee = require "perigee"
      local world <close> = perigee.init { backend = "topk(native)",
        options = { topk = { ratio = 0.1, min_numel = 1 } } }
      local function gradient(step, rank)
        local g = {}
        for i = 1, 50 do g[i] = math.sin(i * 1.7 + step * 0.3 + rank) end
        return perigee.tensor("f32", g)
      end
      local t, got, want = perigee.zeros("f32", 50), perigee.zeros("f32", 50), perigee.zeros("f32", 50)
      for step = 1, 60 do
        t:copy_(gradient(step, world.rank))
        world:allreduce(t)
        got:add_(t)
        want:add_(gradient(step, 0)):add_(gradient(step, 1))
      end
      for _ = 1, 40 do -- what is still owed
        t:zero_()
        world:allreduce(t)
        got:add_(t)
      end
      assert(got:allclose(want, 1e-4, 1e-4), tostring(got:sub_(want)))
    end, { world = false })
  end)
end)
