-- fp16 and bf16: what travels narrow, what stays exact, and what rounding takes is sent later.
-- luacheck: ignore 431
local helpers = require "helpers"

describe("fp16", function()
  after_each(helpers.close_all)

  for _, ranks in ipairs { 2, 4 } do
    it(("rounds what it sends, alike on %d ranks"):format(ranks), function()
      helpers.ranks_ok(ranks, function()
        local perigee = require "perigee"
        local world <close> = perigee.init { backend = "fp16(native)" }
        local r, n = world.rank, world.size
        local function rounded(t) return t:to("f16"):to("f32") end
        local function mine(rank) return perigee.tensor("f32", { 1 / 3 + rank, 2049.3, 1e-3 }) end
        local function total(divide)
          local sum = rounded(mine(0))
          for rank = 1, n - 1 do sum:add_(rounded(mine(rank))) end
          if divide then sum:div_(n) end
          return rounded(sum)
        end
        local function same(t, want, what)
          if not t:allclose(want, 3e-3) or t:equal(mine(r)) then
            error(("%s: %s, %s expected"):format(what, tostring(t), tostring(want)), 2)
          end
          for _, theirs in ipairs(world:allgather(t)) do assert(theirs:equal(t), what) end
        end
        local t = mine(r)
        assert(world:allreduce(t) == t)
        assert(t:equal(total()), tostring(t))
        same(t, total(), "allreduce")
        local a = mine(r)
        world:allreduce(a, { op = "avg" })
        same(a, total(true), "avg")
        local list = { mine(r), mine(r) }
        world:allreduce(list)
        same(list[1], total():mul_(2), "list")
        assert(list[1]:equal(list[2]))
        local c = { mine(r):view(3, 1), perigee.ones("f32", 2) }
        world:allreduce_coalesced(c)
        same(c[1], total():view(3, 1), "coalesced")
        assert(c[2][2] == n)
        local red = mine(r)
        world:reduce(red, { root = n - 1 })
        if r == n - 1 then assert(red:equal(total())) else assert(red:equal(mine(r))) end
        local ins = {}
        for i = 1, n do ins[i] = mine(r) end
        local out = perigee.zeros("f32", 3)
        world:reduce_scatter(out, ins)
        assert(out:equal(total()), tostring(out))
        local big = perigee.zeros("f32", n, 3)
        for i = 1, n do big:narrow(1, i, 1):copy_(mine(r):view(1, 3)) end
        assert(world:reduce_scatter_tensor(big):view(3):equal(total()))
        local outs = { perigee.zeros("f32", 1, 3), perigee.zeros("f32", 1, 3) }
        world:reduce_scatter_tensor_coalesced(outs, { big, big:clone() })
        assert(outs[1]:view(3):allclose(total(), 3e-3) and outs[2]:view(3):equal(total()))
        local work = world:allreduce(mine(r), { async = true })
        assert(work:wait():equal(total()))
        local row <close> = world:split(0)
        local x = row:allreduce(perigee.tensor("f32", { 2049.3 }))
        assert(x[1] == 2050 * row.size, x[1])
      end, { world = false })
    end)
  end

  it("leaves alone what must be exact", function()
    helpers.ranks_ok(2, function()
      local perigee = require "perigee"
      local stats = require "perigee.layers.fp16".stats
      local world <close> = perigee.init { backend = "fp16(native)", options = { fp16 = {
        min_bytes = 8, ops = { "allreduce", "reduce_scatter_tensor" } } } }
      local v = 1 / 3
      local function x(dtype) return perigee.full(dtype or "f32", { 2 }, v) end
      assert(world:allreduce(x "f64")[1] == 2 * v)
      assert(world:allreduce(x(), { op = "max" })[1] == x()[1])
      assert(world:allreduce(x(), { op = perigee.premul_sum(1) })[1] == 2 * x()[1])
      assert(world:broadcast(x())[1] == x()[1])
      assert(world:allgather(x())[2][1] == x()[1])
      assert(world:allreduce(perigee.full("f32", { 1 }, v))[1] == 2 * x()[1]) -- 4 bytes are below min_bytes
      local c = world:allreduce_coalesced { x() }
      assert(c[1][1] == 2 * x()[1]) -- not in ops
      assert(world:allreduce(v) == 2 * v) -- numbers travel as f64
      assert(stats.calls == 0)
      world:allreduce(x())
      assert(stats.calls == 1 and stats.bytes_saved == 4)
    end, { world = false })
  end)

  it("is exact where nothing travels", function()
    local t = require "perigee".tensor("f32", { 1 / 3 })
    local want = t[1]
    local world = helpers.world { backend = "fp16(native)" }
    assert.equal(want, world:allreduce(t)[1])
  end)

  it("sends later what rounding took, for each tensor on its own", function()
    helpers.ranks_ok(2, function()
      local perigee = require "perigee"
      local STEPS, V = 200, 1 + 1 / 3000
      local function drift(backend, options, view)
        local world <close> = perigee.init { backend = backend .. "(native)", options = { [backend] = options } }
        local memory, other = perigee.zeros("f32", 8), perigee.zeros("f32", 4)
        local sum = 0
        for _ = 1, STEPS do
          local t = view and memory:narrow(1, 3, 4) or memory
          t:fill_(V)
          other:fill_(-7.7)
          world:allreduce(t)
          world:allreduce(other)
          sum = sum + t[1]
        end
        return math.abs(sum - 2 * V * STEPS)
      end
      for _, backend in ipairs { "fp16", "bf16" } do
        local without, with = drift(backend, { feedback = false }), drift(backend)
        local viewed = drift(backend, nil, true) -- a new view of the same elements each time
        -- without it the same error is made STEPS times, with it at most one is left
        assert(without > 10 * with, ("%s: %g without, %g with"):format(backend, without, with))
        assert(with < 0.02 and viewed < 0.02, ("%s: %g, %g"):format(backend, with, viewed))
      end
    end, { world = false })
  end)

  it("does not keep what overflowed, nor what belongs to tensors that are gone", function()
    helpers.ranks_ok(2, function()
      local perigee = require "perigee"
      local world <close> = perigee.init { backend = "fp16(native)" }
      local t = perigee.full("f32", { 2 }, 1e6)
      assert(world:allreduce(t)[1] == math.huge)
      t:fill_(1.5)
      assert(world:allreduce(t)[1] == 3, tostring(t))
      t:fill_(0 / 0)
      world:allreduce(t)
      assert(t[1] ~= t[1])
      t:fill_(1.5)
      assert(world:allreduce(t)[1] == 3, tostring(t))
      collectgarbage() collectgarbage()
      local before = collectgarbage "count"
      for _ = 1, 200 do world:allreduce(perigee.full("f32", { 4 }, 1 / 3)) end
      for _ = 1, 4 do collectgarbage() perigee.sleep(0) end
      assert(collectgarbage "count" < before + 20, collectgarbage "count" - before)
    end, { world = false })
  end)

  it("owes what a failed operation did not send", function()
    helpers.ranks_ok(2, function()
      local perigee = require "perigee"
      local world <close> = perigee.init { backend = "retry(fp16(fault(native)))", options = {
        fault = { rules = { { action = "raise", op = "allreduce", rank = 1, times = 2 } } } } }
      local t, v = perigee.zeros("f32", 1), 1 + 1 / 3000
      local sum = 0
      for _ = 1, 100 do
        t:fill_(v)
        world:allreduce(t)
        sum = sum + t[1]
      end
      assert(math.abs(sum - 200 * v) < 0.01, sum)
    end, { world = false })
  end)
end)

describe("bf16", function()
  it("keeps the range of f32", function()
    helpers.ranks_ok(2, function()
      local perigee = require "perigee"
      local stats = require "perigee.layers.bf16".stats
      local world <close> = perigee.init { backend = "bf16(native)" }
      local t = world:allreduce(perigee.full("f32", { 3 }, 1e30))
      assert(math.abs(t[1] / 2e30 - 1) < 0.01)
      assert(stats.calls == 1 and stats.bytes_saved == 6)
    end, { world = false })
  end)
end)
