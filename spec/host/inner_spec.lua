-- The Work of an inner operation, whatever an override does with it: a synchronous call may hold the operation back
-- until it is known how it is wanted, and nobody can tell.
-- luacheck: no self
local helpers = require "helpers"
local perigee = require "perigee"

local count = 0
--- A world with `upper` as its top layer, over a layer that notes what reaches it and fails broadcasts.
local function world_of(upper)
  count = count + 1
  local seen = {}
  local Low = perigee.backend("low" .. count)
  function Low:allreduce(tensors)
    seen[#seen + 1] = "allreduce " .. tostring(tensors[1][1])
    tensors[1]:add_(1)
    return true
  end
  function Low:reduce(tensors)
    seen[#seen + 1] = "reduce"
    tensors[1]:mul_(2)
    return true
  end
  function Low:barrier()
    seen[#seen + 1] = "barrier"
    return true
  end
  function Low:broadcast() error "low failed" end
  local Up = perigee.backend("up" .. count, { inner = Low.name })
  for name, f in pairs(upper) do Up[name] = f end
  return helpers.world { backend = Up.name }, seen
end

describe("an inner operation", function()
  after_each(helpers.close_all)

  it("that is returned is run, and its Work can be kept", function()
    local kept, failed
    local world, seen = world_of {
      allreduce = function(self, tensors, opts)
        kept = self.inner:allreduce(tensors, opts)
        return kept
      end,
      broadcast = function(self, tensors, opts)
        failed = self.inner:broadcast(tensors, opts)
        return failed
      end,
    }
    for i = 1, 3 do
      assert.equal(i + 1, world:allreduce(i))
      assert.equal("done", kept:status())
      assert.equal(i + 1, kept:wait()[1][1])
    end
    assert.equal(3, #seen)
    local e = helpers.raised(world.broadcast, world, 1)
    assert.matches("low failed", e.message)
    assert.equal("failed", failed:status())
    assert.matches("low failed", failed:error().message)
    assert.matches("low failed", tostring(helpers.raised(failed.wait, failed)))
  end)

  it("is issued in order, waited for or not", function()
    local what
    local world, seen = world_of {
      allreduce = function(self, tensors, opts) return what(self, tensors, opts) end,
    }
    what = function(self, tensors, opts)
      self.inner:barrier()
      self.inner:reduce(tensors)
      return self.inner:allreduce(tensors, opts)
    end
    assert.equal(9, world:allreduce(4))
    assert.same({ "barrier", "reduce", "allreduce 8.0" }, seen)
    what = function(self)
      self.inner:barrier()
      return true
    end
    world:allreduce(1)
    assert.equal("barrier", seen[4])
    what = function(self)
      self.inner:barrier()
      error "after"
    end
    assert.matches("after", tostring(helpers.raised(world.allreduce, world, 1)))
    assert.equal("barrier", seen[5])
    what = function(self, tensors)
      local first = self.inner:reduce(tensors)
      self.inner:barrier()
      return first
    end
    assert.equal(10, world:allreduce(5))
    assert.same({ "reduce", "barrier" }, { seen[6], seen[7] })
    assert.equal(7, #seen)
  end)

  it("answers every question inside the override", function()
    local what
    local world = world_of {
      allreduce = function(self, tensors, opts)
        what(self.inner:allreduce(tensors, opts), tensors)
        return true
      end,
      broadcast = function(self, tensors, opts)
        what(self.inner:broadcast(tensors, opts), tensors)
        return true
      end,
    }
    for _, f in ipairs {
      function(w, t) assert(w:wait()[1] == t[1] and t[1][1] == 2) end,
      function(w) assert(w:status() == "done") end,
      function(w) assert(w:is_completed()) end,
      function(w) assert(w:error() == nil) end,
      function(w) assert(w:result()) end,
      function(w) assert(tostring(w):find "done", tostring(w)) end,
      function(w) assert(w.op == "allreduce" or w.op == nil) end,
      function(w) assert(perigee.wait_all { w }) end,
      function(w) assert(perigee.wait_any { w } == 1) end,
      function(w) assert(w:map(function() return 7 end):wait() == 7) end,
      function(w)
        local m = w:map(function() end)
        assert(m:status() == "pending" or m:status() == "done")
        m:wait()
      end,
    } do
      what = f
      assert.equal(2, world:allreduce(1))
    end
    what = function(w) assert(w:error().message:find "low failed") end
    world:broadcast(1)
    what = function(w) assert(helpers.raised(w.wait, w).message:find "low failed") end
    world:broadcast(1)
    local late = {}
    what = function(w)
      w:on_done(function(err) late[#late + 1] = err == nil end)
      w:wait()
    end
    world:allreduce(1)
    assert.same({ true }, late)
  end)

  it("may be mapped, several times and by branches", function()
    local order, branch
    local world = world_of {
      allreduce = function(self, tensors, opts)
        order = ""
        local w = self.inner:allreduce(tensors, opts)
        branch = w:map(function() order = order .. "b" return "branch" end)
        return w:map(function(v)
          assert(v[1] == tensors[1])
          order = order .. "1"
        end):map(function() order = order .. "2" tensors[1]:mul_(10) end)
      end,
      broadcast = function(self, tensors, opts)
        return self.inner:broadcast(tensors, opts):map(function() order = "never" end)
      end,
      reduce = function(self, tensors)
        return self.inner:reduce(tensors):map(function() error "in map" end)
      end,
    }
    for _ = 1, 3 do
      assert.equal(20, world:allreduce(1))
      assert.equal("b12", order)
      assert.equal("branch", branch:wait(5))
      assert.equal(30, world:allreduce(2, { async = true }):wait(5))
    end
    order = nil
    assert.matches("low failed", tostring(helpers.raised(world.broadcast, world, 1)))
    assert.is_nil(order)
    local e = helpers.raised(world.reduce, world, 1)
    assert.matches("inner_spec.lua:%d+: in map", e.message)
    assert.equal("reduce", e.op)
  end)

  it("keeps its tensors, whatever is collected", function()
    local world = world_of {
      allreduce = function(self, tensors)
        local half = tensors[1]:to("f64")
        local work = self.inner:allreduce({ half })
        collectgarbage()
        local mapped = work:map(function(list)
          collectgarbage()
          tensors[1]:copy_(list[1])
        end)
        work = nil -- luacheck: ignore
        half = nil -- luacheck: ignore
        collectgarbage()
        return mapped
      end,
    }
    for i = 1, 50 do assert.equal(i + 1, world:allreduce(perigee.tensor("f32", { i }))[1]) end
    collectgarbage()
    local refs = perigee.stats().refs
    for i = 1, 50 do world:allreduce(i) end
    perigee.sleep(0)
    assert.equal(refs, perigee.stats().refs)
  end)

  it("may be used by another coroutine", function()
    local world = world_of {
      allreduce = function(self, tensors, opts)
        local work = coroutine.wrap(function() return self.inner:allreduce(tensors, opts) end)()
        coroutine.wrap(function() assert(work:status() == "done") end)()
        return coroutine.wrap(function() return self.inner:reduce(tensors) end)()
      end,
    }
    assert.equal(4, world:allreduce(1))
  end)

  it("that its own run asks about is refused, not hung", function()
    local kept, code
    local Low = perigee.backend "asks"
    function Low:allreduce()
      code = helpers.raised(kept.wait, kept).code
      return true
    end
    local Up = perigee.backend("asked", { inner = "asks" })
    function Up:allreduce(tensors, opts)
      kept = self.inner:allreduce(tensors, opts)
      return kept
    end
    local world = helpers.world { backend = "asked" }
    world:allreduce(1)
    assert.equal("EDEADLK", code)
    assert.equal("done", kept:status())
  end)
end)
