-- Backends written in Lua: what an override receives, what it may return, and what happens when it does not behave.
-- luacheck: no self
local helpers = require "helpers"
local perigee = require "perigee"

local function message(f, ...) return tostring(helpers.raised(f, ...)) end

local count = 0
local function fresh_name()
  count = count + 1
  return "spec" .. count
end

--- A world of one rank whose top layer has these methods.
local function world_of(methods, opts)
  local B = perigee.backend(fresh_name())
  for name, f in pairs(methods) do B[name] = f end
  return helpers.world { backend = B.name .. (opts or "") }, B
end

describe("an override", function()
  after_each(helpers.close_all)

  it("receives the canonical form of every operation", function()
    local t, u = perigee.tensor("f32", { 1 }), perigee.tensor("f32", { 2 })
    local calls = {
      allreduce = { { t, { op = "max" } }, { { t } }, { op = "max" } },
      allreduce_coalesced = { { { t, u } }, { { t, u } }, { op = "sum" } },
      broadcast = { { t }, { { t } }, { root = 0 } },
      reduce = { { t, { op = "min" } }, { { t } }, { root = 0, op = "min" } },
      allgather = { { { u }, t }, { { { u } }, { t } }, {} },
      allgather_into_tensor = { { u, t }, { u, t }, {} },
      allgather_into_tensor_coalesced = { { { u }, { t } }, { { u }, { t } }, {} },
      gather = { { { u }, t }, { { { u } }, { t } }, { root = 0 } },
      scatter = { { u, { t } }, { { u }, { { t } } }, { root = 0 } },
      reduce_scatter = { { u, { t } }, { { u }, { { t } } }, { op = "sum" } },
      reduce_scatter_tensor = { { u, t }, { u, t }, { op = "sum" } },
      reduce_scatter_tensor_coalesced = { { { u }, { t } }, { { u }, { t } }, { op = "sum" } },
      alltoall = { { { u }, { t } }, { { u }, { t } }, {} },
      alltoall_base = { { u, t, { 1 }, { 1 } }, { u, t, { 1 }, { 1 } }, {} },
      barrier = { { { timeout = 1800 } }, {}, {} },
      monitored_barrier = { { { wait_all_ranks = true } }, {}, { wait_all_ranks = true } },
      recv_anysource = { { u, { tag = 2 } }, { { u }, 2 }, {} },
    }
    local function same(expected, got, path)
      if type(expected) ~= "table" then return assert.is_true(expected == got, path) end
      assert.equal("table", type(got), path)
      assert.equal(#expected, #got, path)
      for i = 1, #expected do same(expected[i], got[i], path .. "[" .. i .. "]") end
    end
    for _, row in ipairs(perigee.ops()) do
      local case = calls[row.name]
      if row.name == "send" or row.name == "recv" then goto continue end -- needs a second rank: p2p_spec.lua
      assert.is_not_nil(case, row.name)
      local seen
      local world = world_of {
        [row.name] = function(self, ...)
          seen = { self, ... }
          return true
        end,
      }
      world[row.name](world, table.unpack(case[1]))
      assert.is_not_nil(seen, row.name)
      assert.equal("table", type(seen[1]))
      local opts = table.remove(seen)
      table.remove(seen, 1)
      same(case[2], seen, row.name)
      for k, v in pairs(case[3]) do assert.equal(v, opts[k], row.name .. "." .. k) end
      assert.equal(1800, opts.timeout)
      ::continue::
    end
  end)

  it("is found under an alias, and called by either name", function()
    for _, row in ipairs(perigee.ops()) do
      for alias in row.aliases:gmatch "%S+" do
        local called = 0
        local world = world_of { [alias] = function() called = called + 1 return true end }
        if row.out == "none" and row["in"] == "inplace" then
          world[row.name](world, perigee.zeros("f32", 1))
          world[alias](world, perigee.zeros("f32", 1))
          assert.equal(2, called, alias)
        end
      end
    end
  end)

  it("gets options it can read, list, change and pass on", function()
    local listed
    local world = world_of {
      allreduce = function(self, tensors, opts)
        listed = {}
        for k, v in pairs(opts) do listed[k] = v end
        assert(opts.nothing == nil and type(opts) == "table")
        opts.op = "max"
        opts.timeout = nil
        return self.inner:allreduce(tensors, opts)
      end,
    }
    local t = perigee.tensor("f32", { 2 })
    world:allreduce(t, { op = "avg", timeout = 7 })
    assert.same({ op = "avg", timeout = 7 }, listed)
    world:allreduce(t, { timeout = 8 })
    assert.same({ op = "sum", timeout = 8 }, listed)
    -- What one call changed is not seen by the next.
    world:allreduce(t, { timeout = 8 })
    assert.same({ op = "sum", timeout = 8 }, listed)
    world:set_timeout(3)
    world:allreduce(t)
    assert.equal(3, listed.timeout)
    world:allreduce(t, { op = perigee.premul_sum(0.5) })
    assert.equal("premul_sum", listed.op.name)
    assert.equal(0.5, listed.op.factor)
  end)

  it("leaves to the layer below what it does not define", function()
    local world = world_of { barrier = function() return true end }
    assert.equal(3, world:allreduce(3))
    assert.same({ 4 }, world:allgather(4))
  end)

  it("sees the group through self, and the layer below through self.inner", function()
    local seen
    local world, B = world_of({
      open = function(self, opts) self.opened = opts.timeout end,
      barrier = function(self)
        seen = self
        return self.inner:barrier()
      end,
    }, "(native)")
    world:barrier()
    assert.equal(0, seen.rank)
    assert.equal(1, seen.size)
    assert.equal("world", seen.group_name)
    assert.equal(B.name, seen.name)
    assert.equal(1800, seen.opened)
    assert.is_nil(seen.store)
    assert.equal("native", seen.inner.name)
    assert.equal(0, seen.inner.rank)
    assert.matches("native", tostring(seen.inner))
    assert.equal(B.name .. "(native)", world.backend)
  end)

  it("can be stacked, and each layer has its own inner", function()
    local order = {}
    local function layer(tag)
      local B = perigee.backend(fresh_name())
      function B:allreduce(tensors, opts)
        order[#order + 1] = tag
        return self.inner:allreduce(tensors, opts):map(function() order[#order + 1] = tag .. "'" end)
      end
      return B.name
    end
    local world = helpers.world { backend = ("%s(%s(%s(native)))"):format(layer "a", layer "b", layer "c") }
    world:allreduce(1)
    assert.same({ "a", "b", "c", "c'", "b'", "a'" }, order)
  end)

  it("may be defined by open, for one group alone", function()
    local world = world_of {
      open = function(self)
        self.barrier = function(me)
          assert(me == self)
          self.called = true
          return true
        end
      end,
      allreduce = function(self, t, o)
        assert(self.called)
        return self.inner:allreduce(t, o)
      end,
    }
    world:barrier()
    assert.equal(2, world:allreduce(2))
  end)

  it("inherits from another backend", function()
    local Base = perigee.backend(fresh_name())
    function Base:allreduce(tensors) tensors[1]:mul_(10) return true end
    local Derived = setmetatable({}, { __index = Base })
    function Derived:barrier() return true end
    local B = perigee.backend(fresh_name())
    for k, v in pairs(Derived) do B[k] = v end
    setmetatable(B, { __index = Base })
    local world = helpers.world { backend = B.name }
    assert.equal(20, world:allreduce(2))
    world:barrier()
  end)

  it("may wait for inner works itself", function()
    local world = world_of {
      allreduce = function(self, tensors, opts)
        self.inner:allreduce(tensors, opts):wait()
        self.inner:barrier():wait(5)
        tensors[1]:add_(1)
        return true
      end,
    }
    assert.equal(6, world:allreduce(5))
  end)

  it("may call other groups, also ones of its own kind", function()
    local B = perigee.backend(fresh_name())
    local other
    function B:allreduce(tensors)
      if self.group_name == "outer" then other:allreduce(tensors[1]) end
      tensors[1]:add_(1)
      return true
    end
    other = helpers.world { backend = B.name, name = "inner" }
    local world = helpers.world { backend = B.name, name = "outer" }
    assert.equal(2, world:allreduce(0))
  end)
end)

describe("what an override returns", function()
  after_each(helpers.close_all)

  it("must be a Work or true, whatever the operation", function()
    local wrong = {
      { nil, "got nil %(is a 'return' missing%?%)" }, { false, "got boolean" }, { 5, "got number" },
      { "x", "got string" }, { {}, "got table" }, { print, "got function" }, { perigee.zeros("f32", 1), "got tensor" },
    }
    local t, u = perigee.zeros("f32", 1), perigee.zeros("f32", 1)
    local args = {
      inplace = { t }, none = {}, one = { u, t }, list = { { u }, { t } }, lists = { { u }, t },
      recv_anysource = { u },
      scatter = { u, { t } }, reduce_scatter = { u, { t } },
    }
    for _, row in ipairs(perigee.ops()) do
      for i = 1, (row.name == "send" or row.name == "recv") and 0 or 7 do
        local case = wrong[i] or { nil, "got nil" }
        local world = world_of { [row.name] = function() return case[1] end }
        local a = args[row.name] or args[row.out ~= "none" and row.out or row["in"]]
        local e = helpers.raised(world[row.name], world, table.unpack(a))
        assert.is_not_nil(e, row.name .. " " .. tostring(case[1]))
        assert.equal("ELUATYPE", e.code, row.name .. ": " .. tostring(e))
        assert.matches(row.name .. " must return a Work, a table .*, or true; " .. case[2], e.message)
        assert.matches("backend 'spec%d+'", e.message)
        assert.equal(row.name, e.op)
        helpers.close_all()
      end
    end
  end)

  it("passes errors on, with the traceback of the script", function()
    local world = world_of {
      allreduce = function() error "boom" end,
      barrier = function() error(perigee.error("ERANGE", "too far", { ranks = { 1, 3 } })) end,
      broadcast = function() error({}) end,
      reduce = function(self, t) return self.inner:reduce(t, { nonsense = 1 }) end,
    }
    local e = helpers.raised(world.allreduce, world, 1)
    assert.equal("ELUA", e.code)
    assert.matches("backend_spec.lua:%d+: boom$", e.message)
    assert.matches("backend_spec.lua:%d+: in ", e.traceback)
    assert.equal("allreduce", e.op)
    assert.equal("world", e.group)
    assert.equal(1, e.seq)
    assert.matches("allreduce #1 on world: .*boom %(rank 0%)", tostring(e))
    e = helpers.raised(world.barrier, world)
    assert.equal("ERANGE", e.code)
    assert.same({ 1, 3 }, e.ranks)
    assert.matches("table: ", message(world.broadcast, world, 1))
    assert.matches("unknown option 'nonsense'", message(world.reduce, world, 1))
    -- The group is as it was.
    assert.same({ 2 }, world:allgather(2))
  end)

  it("may be an error of an asynchronous call", function()
    local world = world_of { allreduce = function() error "boom" end }
    assert.equal("ELUA", helpers.raised(world.allreduce, world, 1, { async = true }).code)
  end)
end)

describe("a backend's names", function()
  after_each(helpers.close_all)

  it("are checked where they are written", function()
    local B = perigee.backend(fresh_name())
    for wrong, right in pairs {
      allReduce = "allreduce", all_gathr = "allgather", reducescatter = "reduce_scatter",
        recvanysource = "recv_anysource",
      Broadcast = "broadcast", sned = "send",
    } do
      local e = helpers.raised(function() B[wrong] = function() end end)
      assert.is_not_nil(e, wrong)
      assert.matches(("no operation '%s' %%(did you mean '%s'%%?%%)"):format(wrong, right), tostring(e))
      assert.matches("backend_spec.lua:%d+:", tostring(e))
      assert.is_nil(rawget(B, wrong))
    end
  end)

  it("leave helpers alone", function()
    local B = perigee.backend(fresh_name())
    function B:compress() end
    function B:_allReduce() end
    function B:open() end
    function B:close() end
    function B:set_timeout() end
    function B:start_coalescing() end
    B.allReduce = 5 -- no function
    assert.is_function(B.compress)
  end)

  it("refuse an operation under two names", function()
    local B = perigee.backend(fresh_name())
    function B:allreduce() return true end
    assert.matches("defines both 'allreduce' and 'all_reduce'", message(function() function B:all_reduce() end end))
    local C = perigee.backend(fresh_name())
    function C:_allgather_base() return true end
    assert.matches("both '_allgather_base' and 'all_gather_single'",
      message(function() function C:all_gather_single() end end))
  end)

  it("are checked again when a group opens", function()
    local B = perigee.backend(fresh_name())
    rawset(B, "allReduce", function() end)
    assert.matches("did you mean 'allreduce'", message(helpers.world, { backend = B.name }))
    local C = perigee.backend(fresh_name())
    C.allreduce = 7
    assert.matches("allreduce must be a function, it is a number", message(helpers.world, { backend = C.name }))
    local D = perigee.backend(fresh_name())
    function D:open() error "no" end
    assert.matches("no$", helpers.raised(helpers.world, { backend = D.name }).message)
  end)

  it("of backends and options are checked", function()
    assert.matches("name expected, got nil", message(perigee.backend))
    assert.matches("unknown option 'iner' %(did you mean 'inner'%?%)",
      message(perigee.backend, "x", { iner = "native" }))
    assert.matches("inner: a stack", message(perigee.backend, "x", { inner = 5 }))
    assert.equal("EINVAL", helpers.raised(perigee.backend, "no good").code)
  end)

  it("can be used again for another table", function()
    local name = fresh_name()
    local A = perigee.backend(name)
    function A:allreduce(t) t[1]:add_(1) return true end
    local world = helpers.world { backend = name }
    local B = perigee.backend(name)
    function B:allreduce(t) t[1]:add_(2) return true end
    assert.equal(1, world:allreduce(0))
    assert.equal(2, helpers.world { backend = name }:allreduce(0))
  end)

  it("name a stack below of their own", function()
    local Low = perigee.backend(fresh_name())
    function Low:allreduce(t, o) t[1]:add_(1) return self.inner:allreduce(t, o) end
    local High = perigee.backend(fresh_name(), { inner = Low.name })
    function High:barrier() return true end
    local world = helpers.world { backend = High.name }
    assert.equal(("%s(%s(native))"):format(High.name, Low.name), world.backend)
    assert.equal(1, world:allreduce(0))
    local Bottom = perigee.backend(fresh_name(), { inner = false })
    function Bottom:allreduce() return true end
    world = helpers.world { backend = Bottom.name }
    assert.equal(5, world:allreduce(5))
    assert.equal("ENOTSUP", helpers.raised(world.barrier, world).code)
  end)
end)

describe("a layer's life", function()
  after_each(helpers.close_all)

  it("begins with open, ends with close, and leaves no reference", function()
    local log = {}
    local B = perigee.backend(fresh_name())
    function B:open() log[#log + 1] = "open" end
    function B:close() log[#log + 1] = "close" end
    function B:barrier() return true end
    local refs = perigee.stats().refs
    local world = perigee.init { backend = B.name, rank = 0, size = 1 }
    local inner
    function B:allreduce(t, o)
      inner = self.inner
      return self.inner:allreduce(t, o)
    end
    world:barrier()
    assert.is_true(perigee.stats().refs > refs)
    world:close()
    assert.same({ "open", "close" }, log)
    assert.equal(refs, perigee.stats().refs)
    assert.is_nil(inner) -- methods are found when the group opens
    world = perigee.init { backend = B.name, rank = 0, size = 1 }
    world:allreduce(1)
    world:close()
    assert.equal("ECLOSED", helpers.raised(inner.barrier, inner).code)
  end)

  it("hears of abort and of a new timeout, later, like a callback", function()
    local heard = {}
    local world = world_of {
      allreduce = function() return perigee.future() end,
      abort = function(self, reason) heard[#heard + 1] = { "abort", self.rank, reason.code, reason.message } end,
      set_timeout = function(_, seconds) heard[#heard + 1] = { "timeout", seconds } end,
    }
    world:set_timeout(7)
    perigee.step()
    assert.same({ { "timeout", 7 } }, heard)
    local work = world:allreduce(1, { async = true })
    world:abort "enough"
    assert.equal("EABORTED", helpers.raised(work.wait, work).code)
    perigee.step()
    assert.equal("abort", heard[2][1])
    assert.equal(0, heard[2][2])
    assert.equal("EABORTED", heard[2][3])
    assert.matches("enough", heard[2][4])
    world:close()
    perigee.step()
    assert.equal(2, #heard) -- a close is no abort
  end)

  it("lets abort end a synchronous call that waits for a script", function()
    -- The aborting thread is the interpreter's own: it runs the callback.
    local world = world_of { allreduce = function() return perigee.future() end }
    local trigger = perigee.future { timeout = 0.05 }
    trigger:on_done(function() world:abort "from a callback" end)
    local started = perigee.clock()
    local e = helpers.raised(world.allreduce, world, 1, { timeout = 20 })
    assert.equal("EABORTED", e.code)
    assert.is_true(perigee.clock() - started < 15)
  end)

  it("is inherited by split and subgroup", function()
    local opened = {}
    local world = world_of {
      open = function(self) opened[#opened + 1] = self.group_name end,
      allreduce = function(_, t) t[1]:mul_(2) return true end,
    }
    local part <close> = world:split(0)
    local sub <close> = world:subgroup { 0 }
    assert.equal(3, #opened)
    assert.equal(6, part:allreduce(3))
    assert.equal(8, sub:allreduce(4))
    assert.equal(world.backend, part.backend)
  end)

  it("survives the collector at every call", function()
    local t = perigee.tensor("f32", { 1, 2 })
    local world = world_of {
      allreduce = function(self, tensors, opts)
        collectgarbage()
        local half = tensors[1]:to("f16")
        collectgarbage()
        return self.inner:allreduce({ half }, { op = opts.op }):map(function()
          collectgarbage()
          tensors[1]:copy_(half)
          collectgarbage()
        end)
      end,
      broadcast = function(self, tensors, opts)
        local list = { tensors[1]:clone() }
        local work = self.inner:broadcast(list, opts)
        list = nil -- luacheck: ignore
        collectgarbage()
        return work
      end,
    }
    for _ = 1, 50 do
      assert.same({ 1, 2 }, world:allreduce(t):totable())
      collectgarbage()
      world:broadcast(perigee.zeros("f32", 100))
      world:allgather(perigee.zeros("f32", 100))
      local work = world:allreduce(perigee.tensor("f32", { 3 }), { async = true })
      collectgarbage()
      assert.equal(3, work:wait()[1])
    end
  end)
end)
