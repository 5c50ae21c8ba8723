-- What a layer may override besides operations, over the real runtime and in a simulated world. Cases named as in
-- c10d's test_c10d_pypg.py and test_c10d_pybackend.py assert what those assert.
-- luacheck: no self
local helpers = require "helpers"
local perigee = require "perigee"
local sim = require "perigee.testing".sim

local function raised(code, text, f, ...)
  local e = helpers.raised(f, ...)
  assert.is_truthy(e, "nothing was raised")
  assert.equal(code, e.code, tostring(e))
  assert.is_truthy(tostring(e):find(text, 1, true), ("'%s' does not say '%s'"):format(tostring(e), text))
  return e
end

local count = 0
local function backend(methods)
  count = count + 1
  local B = perigee.backend("methods" .. count)
  for name, f in pairs(methods) do B[name] = f end
  return B
end

-- fn(world) in a world of one rank whose top layer has these methods.
local engines = {
  native = function(methods, fn)
    local world = helpers.world { backend = backend(methods).name }
    finally(helpers.close_all)
    fn(world, "native")
  end,
  sim = function(methods, fn)
    sim(1, function(g) fn(g, "sim") end, { backend = backend(methods).name .. "(sim)" })
  end,
}

for engine, with in pairs(engines) do
  describe("over " .. engine, function()
    it("test_attr_overrides: name, rank and size come from the layer", function()
      local ranks = 122
      with({
        backend_name = function() return "dummy-attr" end,
        rank = function() ranks = ranks + 1 return ranks end,
        size = function() return 456 end,
        barrier = function(self)
          -- The layer itself and what is below keep the real ones.
          assert(self.rank == 0 and self.size == 1 and self.inner.rank == 0 and self.inner.size == 1)
          return true
        end,
      }, function(world, bottom)
        assert.equal(("dummy-attr(%s)"):format(bottom), world.backend)
        assert.equal(123, world.rank)
        assert.equal(124, world.rank) -- asked each time
        assert.equal(456, world.size)
        world:barrier()
        assert.equal(1, #world:allgather(7)) -- of the real size
        assert.equal(5, world:broadcast(5, { root = 0 }))
        raised("EINVAL", "0..0", world.broadcast, world, 5, { root = 1 })
      end)
    end)

    it("what a layer below reports is what the one above sees of it", function()
      local inner = backend { size = function() return 8 end, backend_name = function() return "eight" end }
      local seen
      local outer = { barrier = function(self)
        seen = { self.size, self.inner.size, self.inner.rank, self.inner.name }
        return true
      end }
      count = count + 1
      local B = perigee.backend("methods" .. count)
      B.barrier = outer.barrier
      local stack = ("%s(%s(%s))"):format(B.name, inner.name, engine)
      local function check(world)
        world:barrier()
        assert.same({ 1, 8, 0, ("eight(%s)"):format(engine) }, seen)
        assert.equal(8, world.size)
        assert.equal(("%s(eight(%s))"):format(B.name, engine), world.backend)
      end
      if engine == "sim" then return sim(1, check, { backend = stack }) end
      finally(helpers.close_all)
      check(helpers.world { backend = stack })
    end)

    it("answers of the wrong kind are refused where they are asked for", function()
      with({ rank = function() return "7" end, size = function() return 0 end }, function(world)
        raised("ELUATYPE", "rank must return an integer; got string", function() return world.rank end)
        raised("ERANGE", "size returned 0, at least 1 expected", function() return world.size end)
        assert.equal(3, world:allreduce(3))
      end)
      with({ rank = function() return -1 end, size = function() error "no size today" end }, function(world)
        raised("ERANGE", "rank returned -1, at least 0 expected", function() return world.rank end)
        raised("ELUA", "no size today", function() return world.size end)
      end)
      for _, case in ipairs {
        { function() return 7 end, "ELUATYPE", "backend_name must return a string; got number" },
        { function() return "a b" end, "EINVAL", "backend_name says 'a b'" },
        { function() error "nameless" end, nil, "nameless" },
      } do
        local e = helpers.raised(with, { backend_name = case[1] }, function() end)
        assert.is_truthy(e)
        assert.is_truthy(tostring(e):find(case[3], 1, true), tostring(e))
      end
    end)

    it("test_new_group_delegates_to_pg: split is delegated, answered with a group, refused when it is none", function()
      local calls = {}
      with({
        split = function(self, color, key, opts)
          calls[#calls + 1] = { color, key, opts.name }
          if color == 5 then return 17 end
          if color == 6 then error "no split today" end
          if color == 7 then return end
          if color == 8 then return self.inner:subgroup({ 0 }) end
          return self.inner:split(color, key, opts)
        end,
        backend_name = function() return "splits" end,
      }, function(world, bottom)
        local part = world:split(3, 9, { name = "part" })
        assert.same({ 3, 9, "part" }, calls[1])
        assert.equal(("splits(%s)"):format(bottom), part.backend) -- the whole stack, this layer too
        assert.equal(4, part:allreduce(4))
        assert.is_nil(world:split(-1))
        assert.equal(0, calls[2][2])
        local below = world:split(8)
        assert.equal(bottom, below.backend)
        raised("ELUATYPE", "split must return a group, or nil for a negative color; got number", world.split, world, 5)
        raised("ELUA", "no split today", world.split, world, 6)
        raised("ELUATYPE", "is a 'return' missing?", world.split, world, 7)
        part:close()
        below:close()
      end)
    end)

    it("test_abort_shutdown: without a layer that has them both are harmless", function()
      with({ barrier = function() return true end }, function(world)
        world:barrier()
        world:shutdown()
        assert.is_true(world:is_closed())
        world:shutdown()
        world:close()
      end)
      with({}, function(world)
        world:abort "enough"
        world:shutdown()
        assert.is_true(world:is_closed())
      end)
    end)

    it("shutdown reaches the layer, then the group closes whatever it says", function()
      local told, closed = nil, 0
      with({
        shutdown = function(self, opts)
          told = opts.timeout
          return self.inner:shutdown(opts)
        end,
        close = function() closed = closed + 1 end,
      }, function(world)
        world:shutdown { timeout = 7 }
        assert.equal(7, told)
        assert.equal(1, closed)
      end)
      with({ shutdown = function() error "not now" end }, function(world)
        raised("ELUA", "not now", world.shutdown, world)
        assert.is_true(world:is_closed())
      end)
      with({ shutdown = function() return 3 end }, function(world)
        raised("ELUATYPE", "shutdown must return a Work", world.shutdown, world)
        assert.is_true(world:is_closed())
      end)
    end)

    it("test_reconfigure_delegation: the options arrive unchanged, and a Work is waited for", function()
      local got, waited
      with({
        reconfigure = function(_, opts)
          got = opts
          return { wait = function() waited = true end }
        end,
      }, function(world)
        local opts = { uuid = 11, handles = { "a", "b" }, timeout = 5, hints = { fast = "yes" } }
        assert.equal(world, world:reconfigure(opts))
        assert.equal(opts, got)
        assert.is_true(waited)
        assert.equal(4, world:allreduce(4)) -- the group stays
      end)
    end)

    it("test_reconfigure_cpp_python_work_lifetime: a table as Work lives as long as it is waited for", function()
      local waits, weak = 0, setmetatable({}, { __mode = "v" })
      with({
        reconfigure = function()
          local work = { wait = function()
            collectgarbage()
            waits = waits + 1
          end }
          weak[1] = work
          return work
        end,
      }, function(world)
        world:reconfigure {}
        assert.equal(1, waits)
      end)
      helpers.close_all()
      collectgarbage() collectgarbage()
      perigee.step()
      collectgarbage() collectgarbage()
      assert.is_nil(weak[1])
    end)

    it("test_reconfigure_cpp_fallback: without an override, or with one that passes on, the runtime answers", function()
      local function pass_on(self, opts) return self.inner:reconfigure(opts) end
      for _, methods in ipairs { {}, { reconfigure = pass_on } } do
        local opens = 0
        methods.open = function() opens = opens + 1 end
        with(methods, function(world)
          local seq = world:allreduce(1) and world.seq
          assert.equal(1, seq)
          assert.equal(world, world:reconfigure { rank = 0, size = 1 })
          assert.is_false(world:is_closed())
          assert.equal(0, world.seq) -- another group
          assert.equal(2, opens)
          assert.equal(6, world:allreduce(6))
          world:reconfigure { rank = 0, size = 1 }
          assert.equal(7, world:allreduce(7))
        end)
      end
    end)

    it("test_reconfigure_cpp_errors: what an override raises keeps its kind, twice in a row", function()
      with({
        reconfigure = function(_, opts)
          if opts.what == "nothing" then return end
          if opts.what == "text" then return "done" end
          error(perigee.error("EUNREACH", "no quorum"), 0)
        end,
      }, function(world)
        raised("EUNREACH", "no quorum", world.reconfigure, world, {})
        raised("EUNREACH", "no quorum", world.reconfigure, world, {})
        raised("ELUATYPE", "is a 'return' missing?", world.reconfigure, world, { what = "nothing" })
        raised("ELUATYPE", "got string", world.reconfigure, world, { what = "text" })
        assert.equal(2, world:allreduce(2))
      end)
    end)

    it("a method that is no function is refused when the group opens", function()
      for _, name in ipairs {
        "backend_name", "rank", "size", "split", "shutdown", "start_coalescing", "end_coalescing", "reconfigure",
      } do
        local e = helpers.raised(with, { [name] = 3 }, function() end)
        assert.is_truthy(e, name)
        assert.is_truthy(tostring(e):find(name .. " must be a function, it is a number", 1, true), tostring(e))
      end
    end)
  end)
end

describe("the table of methods", function()
  it("knows their names when one is misspelt", function()
    local B = backend {}
    for wrong, right in pairs {
      start_coalesing = "start_coalescing", backendName = "backend_name", shut_down = "shutdown",
      reconfigur = "reconfigure", splitt = "split",
    } do
      raised("EINVAL", ("did you mean '%s'"):format(right), function() B[wrong] = function() end end)
    end
    B._helper = function() end
  end)

  it("test_backend_only_overrides: those that are told, and those that are asked, all reach Lua", function()
    local log = {}
    local methods = {
      backend_name = function() log.backend_name = true return "all" end,
      end_coalescing = function() log.end_coalescing = true return true end,
      rank = function() log.rank = true return 0 end,
      size = function() log.size = true return 1 end,
      split = function(self, c, k, o) log.split = true return self.inner:split(c, k, o) end,
      reconfigure = function() log.reconfigure = true return true end,
    }
    for _, name in ipairs { "open", "close", "abort", "set_timeout", "start_coalescing", "shutdown" } do
      methods[name] = function() log[name] = true end
    end
    local world = helpers.world { backend = backend(methods).name }
    finally(helpers.close_all)
    world:set_timeout(9)
    assert.is_truthy(world.rank and world.size)
    world:split(0):close()
    world:coalesce(function() world:allreduce(1) end):wait()
    world:reconfigure()
    world:abort "enough"
    perigee.step()
    world:shutdown()
    for name in pairs(methods) do assert.is_true(log[name], name) end
  end)

  it("a backend without a name is refused", function()
    raised("EINVAL", "name expected", perigee.backend)
    raised("EINVAL", "letters", perigee.backend, "")
  end)

  it("shutdown lets what is pending end, close does not", function()
    for _, how in ipairs { "shutdown", "close" } do
      local made
      local world = helpers.world { backend = backend { allreduce = function()
        made = perigee.future()
        return made
      end }.name }
      local work = world:allreduce(1, { async = true })
      if how == "shutdown" then
        raised("ETIMEDOUT", "operations are pending after 0.1 s", world.shutdown, world, { timeout = 0.1 })
        assert.is_true(world:is_closed())
        assert.equal("ECLOSED", work:error().code)
      else
        world:close()
        assert.equal("ECLOSED", work:error().code)
      end
    end
    local world = helpers.world { backend = backend { allreduce = function(self, t, o)
      return self.inner:allreduce(t, o):map(function() perigee.sleep(0.05) end)
    end }.name }
    local works = {}
    for i = 1, 3 do works[i] = world:allreduce(i, { async = true }) end
    world:shutdown()
    for i = 1, 3 do assert.equal(i, works[i]:wait()) end
    helpers.close_all()
  end)
end)
