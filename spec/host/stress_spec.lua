-- Scripts that do not behave, a collector that never rests, and interpreters that end too early.
-- luacheck: no self
local helpers = require "helpers"
local perigee = require "perigee"
local testing = require "perigee.testing"

local count = 0
local function backend()
  count = count + 1
  return perigee.backend("stress" .. count)
end

local function T(...) return perigee.tensor("f32", { ... }) end

--- Arguments of every operation on a group of two ranks, as the rank calls it.
local function arguments(op, rank)
  local t, u, v = T(1, 2), T(3, 4), T(5, 6)
  local row
  for _, r in ipairs(perigee.ops()) do
    if r.name == op then row = r end
  end
  if op == "send" or op == "recv" then return { t, 1 - rank } end
  if op == "recv_anysource" then return { t } end
  if op == "gather" then return { rank == 0 and { u, v } or nil, t } end
  if op == "scatter" then return { t, rank == 0 and { u, v } or nil } end
  if op == "reduce_scatter" then return { t, { u, v } } end
  if op == "allgather_into_tensor" then return { perigee.zeros("f32", 4), t } end
  if op == "reduce_scatter_tensor" then return { t, perigee.zeros("f32", 4) } end
  if op == "allgather_into_tensor_coalesced" then return { { perigee.zeros("f32", 4) }, { t } } end
  if op == "reduce_scatter_tensor_coalesced" then return { { t }, { perigee.zeros("f32", 4) } } end
  if op == "allreduce_coalesced" then return { { t, u } } end
  if op == "alltoall" then return { { u, v }, { t, T(7, 8) } } end
  if op == "allgather" then return { { u, v }, t } end
  if op == "alltoall_base" then return { u, t } end
  if row["in"] == "none" then return {} end
  return { t }
end

--- The arguments with options behind them.
local function with(args, n, opts)
  local copy = { table.unpack(args, 1, n) }
  copy[n + 1] = opts
  return copy
end

local function length(op, args)
  if op == "gather" or op == "scatter" then return 2 end
  return #args
end

--- A backend that overrides every operation: overrides[rank](self, op, ...) decides; without one it delegates.
local function overrides_all(overrides)
  local B = backend()
  for _, row in ipairs(perigee.ops()) do
    local op = row.name
    B[op] = function(self, ...)
      if overrides[self.rank] then return overrides[self.rank](self, op, ...) end
      return self.inner[op](self.inner, ...)
    end
  end
  return B
end

describe("what an override of any operation returns", function()
  --- label -> function(), pattern of the error, whether the error is the script's own and speaks for itself
  local function wrong_values(world)
    local closed = perigee.init { rank = 0, size = 1, name = "closed", backend = "stress_pending" }
    local pending = closed:allreduce(1, { async = true })
    closed:close()
    local failed = perigee.future()
    failed:set_error(perigee.error("ERANGE", "failed before"))
    return {
      { "nothing", function() end, "got nil %(is a 'return' missing%?%)" },
      { "false", function() return false end, "got boolean" },
      { "a number", function() return 5 end, "got number" },
      { "a string", function() return "done" end, "got string" },
      { "a function", function() return print end, "got function" },
      { "a coroutine", function() return coroutine.create(print) end, "got thread" },
      { "an empty table", function() return {} end, "got table" },
      { "an error object", function() return perigee.error("ERANGE", "x") end, "got error object" },
      { "a foreign userdata", function() return io.stdout end, "got userdata" },
      { "a tensor", function() return T(1) end, "got tensor" },
      { "a group", function() return world end, "got group" },
      { "a store", function() return perigee.store.hash() end, "got store" },
      { "nil and a reason", function() return nil, "no luck" end, "got nil and 'no luck' %(errors are raised" },
      { "wait that is no function", function() return { wait = 5 } end, "whose wait is a number" },
      { "get_future that is none", function() return { get_future = true } end, "whose get_future is a boolean" },
      { "abort that is none", function() return { wait = print, abort = "x" } end, "whose abort is a string" },
      { "get_future of no future", function() return { get_future = function() return 1 end } end, "got number" },
      { "an index that raises", function()
        return setmetatable({}, { __index = function() error "in index" end })
      end, "in index", true },
      { "a wait that raises", function() return { wait = function() error "in wait" end } end, "in wait", true },
      { "a wait that is false", function() return { wait = function() return false end } end, "returned false", true },
      { "a work that failed", function() return failed end, "failed before", true },
      { "a work of a closed group", function() return pending end, "group was closed", true },
      { "a yield", function() coroutine.yield(1) end, "yielded, but it runs outside of a coroutine", true },
    }
  end

  setup(function()
    local B = perigee.backend "stress_pending"
    function B:allreduce() return perigee.future() end
  end)

  it("is checked, named, and leaves the world usable", function()
    local overrides = {}
    local B = overrides_all(overrides)
    testing.ranks(2, function(world)
      local values = wrong_values(world)
      for _, row in ipairs(perigee.ops()) do
        local op = row.name
        local args = arguments(op, world.rank)
        local n = length(op, args)
        for _, value in ipairs(values) do
          local label, make, pattern, own = table.unpack(value)
          for _, async in ipairs { false, true } do
            overrides[world.rank] = make
            local e = helpers.raised(function()
              local result = world[op](world, table.unpack(with(args, n, { timeout = 20, async = async }), 1, n + 1))
              if async then result:wait(20) end
            end)
            overrides[world.rank] = nil
            local function check(ok)
              assert(ok, ("%s %s async=%s: %s"):format(op, label, tostring(async), tostring(e)))
            end
            check(e and e.message:find(pattern))
            if not own then
              check(e.code == "ELUATYPE" and e.op == op and e.group == "world" and e.rank == world.rank)
              check(e.message:find("backend 'stress%d+': " .. op))
            end
          end
        end
        world:barrier()
      end
      assert.is_nil(world:failed())
      assert.equal(2, world:allreduce(1))
    end, { backend = B.name, timeout = 120 })
  end)

  it("may be a Work of another operation or of another group", function()
    local other = helpers.world { name = "other" }
    finally(helpers.close_all)
    local B = backend()
    function B:allreduce(tensors) return self.inner:broadcast(tensors) end
    function B:broadcast(tensors) return other:allreduce(tensors[1], { async = true }) end
    function B:barrier() return true, "ignored" end
    local world = helpers.world { backend = B.name }
    assert.equal(3, world:allreduce(3))
    assert.equal(4, world:broadcast(4))
    assert.equal(4, world:broadcast(4, { async = true }):wait())
    world:barrier()
  end)
end)

describe("overrides that call themselves", function()
  --- Runs to the given depth through world; the depth reached and the error.
  local function dive(world, state, depth, async)
    state.depth, state.limit = 0, depth
    local e = helpers.raised(function()
      local r = world:allreduce(1, { async = async })
      if async then r:wait() end
    end)
    return state.depth, e
  end

  local function diving(state)
    local B = backend()
    function B:allreduce(tensors)
      state.depth = state.depth + 1
      if state.depth < state.limit then
        state.world[self.rank]:allreduce(tensors[1], { async = state.async })
      end
      return true
    end
    return B
  end

  local function check(world, state)
    for _, async in ipairs { false, true } do
      state.async = async
      local depth, e = dive(world, state, 50, async)
      assert.equal(50, depth)
      assert.is_nil(e)
      depth, e = dive(world, state, 10000, async)
      assert.is_true(depth >= 60 and depth <= 250, depth)
      assert.equal("ELUA", e.code)
      assert.matches("stack overflow", e.message)
      assert.matches("do overrides call operations that they override%?", e.message)
      assert.equal("allreduce", e.op)
      assert.is_nil(world:failed())
      depth, e = dive(world, state, 50, async)
      assert.equal(50, depth)
      assert.is_nil(e)
    end
  end

  it("end with Lua's error, not with C's stack", function()
    local state = { world = {} }
    local world = helpers.world { backend = diving(state).name }
    finally(helpers.close_all)
    state.world[0] = world
    check(world, state)
    -- In coroutines in coroutines.
    coroutine.wrap(function() coroutine.wrap(check)(world, state) end)()
  end)

  it("also on threads with small stacks, and in callbacks", function()
    local state = { world = {} }
    testing.ranks(1, function(world)
      state.world[0] = world
      check(world, state)
      -- A callback on the dispatcher's thread: asynchronous calls alone.
      state.async, state.depth, state.limit = true, 0, 10000
      local message
      perigee.future({ timeout = 0.01 }):on_done(function()
        message = tostring(helpers.raised(world.allreduce, world, 1, { async = true }))
      end)
      local deadline = perigee.clock() + 20
      while not message and perigee.clock() < deadline do perigee.sleep(0.005) end
      assert.matches("stack overflow", message)
    end, { backend = diving(state).name })
  end)

  it("have room for many tensors at any depth", function()
    local state = { depth = 0 }
    local B = backend()
    function B:allreduce_coalesced(tensors)
      state.depth = state.depth + 1
      assert.equal(300, #tensors)
      if state.depth < 40 then state.world:allreduce_coalesced({ table.unpack(tensors) }) end
      return self.inner:allreduce_coalesced({ table.unpack(tensors) })
    end
    state.world = helpers.world { backend = B.name }
    finally(helpers.close_all)
    local list = {}
    for i = 1, 300 do list[i] = T(i) end
    state.world:allreduce_coalesced(list)
    assert.equal(40, state.depth)
    assert.equal(300, list[300][1])
  end)
end)

describe("a table as Work of one rank", function()
  it("is not waited for by another rank's thread, which it may need", function()
    local B = backend()
    function B:broadcast(tensors, opts)
      local inner = self.inner:broadcast(tensors, opts)
      return { wait = function(_, seconds) return inner:wait(seconds) ~= nil end }
    end
    testing.ranks(2, function(world)
      local t = T(world.rank)
      if world.rank == 1 then
        local work = world:broadcast(t, { root = 1, async = true, timeout = 20 })
        perigee.sleep(0.05) -- rank 0 waits meanwhile, and has not called broadcast
        world:send(1, 0)
        work:wait()
      else
        world:recv(0, 1, { async = true, timeout = 20 }):wait()
        world:broadcast(t, { root = 1, timeout = 20 })
      end
      assert.equal(1, t[1])
    end, { backend = B.name, timeout = 40 })
  end)
end)

describe("a wait with a limit", function()
  it("is not held up by tables as Works that it does not wait for", function()
    local B = backend()
    function B:allreduce() return perigee.future() end
    function B:broadcast() return { is_completed = function() return false end } end
    function B:barrier() return { wait = function() perigee.sleep(0.01) end } end
    local world = helpers.world { backend = B.name }
    finally(helpers.close_all)
    local never = world:broadcast(1, { async = true, timeout = 100 })
    local work = world:allreduce(1, { async = true, timeout = 100 })
    local value, e = work:wait(0.02)
    assert.is_nil(value)
    assert.equal("ETIMEDOUT", e.code)
    perigee.step()
    world:barrier { async = true, timeout = 100 }:wait(50)
    assert.equal("pending", never:status())
    assert.is_true(never:abort())
    assert.is_true(work:abort())
  end)
end)

describe("the collector", function()
  -- Not luassert's: a collection at each of its many calls takes a minute.
  local function equal(expected, got)
    if expected ~= got then error(("expected %s, got %s"):format(tostring(expected), tostring(got)), 2) end
  end

  --- Everything an override, a callback, the codec and works do, once; checks the results.
  local function workload(world)
    local n = world.size
    local t = T(1, 2)
    world:allreduce(t)
    equal(n, t[1])
    equal(2 * n, t[2])
    local works = {}
    for i = 1, 3 do works[i] = world:allreduce(i, { async = true }):map(function(v) return v + 1 end) end
    works[1]:on_done(function() end)
    for i = 3, 1, -1 do equal(i * n + 1, works[i]:wait(20)) end
    perigee.wait_all(works, 20)
    if n == 2 then
      for _, row in ipairs(perigee.ops()) do
        local op = row.name
        if op ~= "send" and op ~= "recv" and op ~= "recv_anysource" then
          local args = arguments(op, world.rank)
          world[op](world, table.unpack(args, 1, length(op, args)))
        end
      end
      local other = 1 - world.rank
      local sent = world:send(T(world.rank), other, { async = true })
      equal(other, world:recv(T(9), other)[1])
      sent:wait(20)
    end
    for r, v in ipairs(world:allgather_object { rank = world.rank, list = { "x", { t } } }) do
      equal(r - 1, v.rank)
      equal(true, v.list[2][1]:equal(t))
    end
    local op = perigee.op { name = "join", reduce = function(a, x) return a .. x end }
    equal(("ab"):rep(n), world:allreduce_object("ab", { op = op }))
    local add = perigee.op { name = "add", reduce = function(a, x) a:add_(x) end }
    equal(3 * n, world:allreduce(T(3), { op = add })[1])
    equal("EINVAL", helpers.raised(world.broadcast, world, print).code)
    equal(true, tostring(helpers.raised(world.allreduce, world, 1, { nonsense = 1 })):find "allreduce" ~= nil)
    perigee.step()
  end

  local function awkward()
    local B = backend()
    function B:open(opts) self.timeout = opts.timeout end
    function B:close() self.closed = true end
    function B:allreduce(tensors, opts)
      local copies = {}
      for i, t in ipairs(tensors) do copies[i] = t:clone() end
      return self.inner:allreduce(copies, opts):map(function()
        for i, t in ipairs(tensors) do t:copy_(copies[i]) end
      end)
    end
    function B:broadcast(tensors, opts)
      local inner = self.inner:broadcast({ table.unpack(tensors) }, opts)
      return { wait = function(_, s) return inner:wait(s) ~= nil end, result = function() return tensors end }
    end
    function B:reduce(tensors, opts)
      return { get_future = function() return self.inner:reduce(tensors, opts):map(function() end) end }
    end
    return B
  end

  --- Runs f with a full collection at every call of a C function by this thread, and at its return.
  local function collecting(f, ...)
    debug.sethook(function()
      if debug.getinfo(2, "S").what == "C" then collectgarbage() end
    end, "cr")
    local results = table.pack(pcall(f, ...))
    debug.sethook()
    if not results[1] then error(results[2], 0) end
  end

  it("may run at every call and return", function()
    local world = helpers.world { backend = awkward().name }
    finally(helpers.close_all)
    workload(world)
    local heap = collectgarbage "count"
    collecting(workload, world)
    world:close()
    collectgarbage()
    collectgarbage()
    assert.is_true(collectgarbage "count" < heap + 1000)
  end)

  it("may run at every call of ranks that share a state", function()
    testing.ranks(2, function(world) collecting(workload, world) end, { backend = awkward().name, timeout = 120 })
  end)

  it("may run all the time, in either mode", function()
    finally(function()
      collectgarbage("incremental", 200, 100, 13)
      helpers.close_all()
    end)
    for _, mode in ipairs { { "generational", 1, 1 }, { "incremental", 1, 1000, 1 } } do
      collectgarbage(table.unpack(mode))
      testing.ranks(2, function(world)
        for _ = 1, 10 do workload(world) end
      end, { backend = awkward().name, timeout = 120 })
    end
  end)

  it("finds nothing left behind", function()
    local function once()
      local world = perigee.init { rank = 0, size = 1, backend = awkward().name }
      collecting(workload, world)
      world:close()
    end
    local function settled()
      for _ = 1, 3 do
        perigee.step()
        perigee.sleep(0)
        collectgarbage()
      end
      return perigee.stats().refs
    end
    once()
    local refs = settled()
    for _ = 1, 3 do once() end
    assert.equal(refs + 3, settled()) -- one per registered backend
  end)

  it("may run finalizers that use groups", function()
    local world = helpers.world { backend = awkward().name }
    finally(helpers.close_all)
    local ran, values = 0, {}
    local function litter()
      setmetatable({}, { __gc = function()
        ran = ran + 1
        values[ran] = world:allreduce(ran)
        world:allreduce(1, { async = true })
      end })
    end
    for _ = 1, 20 do
      litter()
      world:allreduce(T(1, 2))
      collectgarbage()
    end
    assert.equal(20, ran)
    for i = 1, 20 do assert.equal(i, values[i]) end
  end)
end)

describe("an interpreter that ends", function()
  --- Runs the script in a process of its own, which must end by itself with code 0 and say "end".
  local function ends(script)
    local code, out = helpers.lua([[
      local perigee = require "perigee"
      local B = perigee.backend "ending"
      local futures = {}
      function B:allreduce() futures[#futures + 1] = perigee.future() return futures[#futures] end
      function B:broadcast() return { wait = function() perigee.sleep(0.02) end } end
      function B:reduce() return { is_completed = function() return false end, abort = function() end } end
      function B:barrier() return self.inner:barrier():map(function() return 1 end) end
      local world = perigee.init { rank = 0, size = 1, backend = "ending" }
      local function unended()
        return world:allreduce(1, { async = true }), world:broadcast(1, { async = true }),
          world:reduce(1, { async = true }), world:barrier { async = true }
      end
    ]] .. script .. '\nio.write "end\\n" io.stdout:flush()', 30)
    assert.equal(0, code, out)
    assert.matches("end\n", out)
    assert.is_nil(out:find "not reached", out)
  end

  it("with works pending", function()
    ends "unended()"
    ends "a, b, c, d = unended()"
    ends "a, b, c, d = unended() collectgarbage() collectgarbage()"
    ends "local a, b = unended() a:map(function() end) b:on_done(function() end)"
    ends "unended() world:close()"
    ends "a = unended() world:close() pcall(a.wait, a)"
  end)

  it("from os.exit, closing the state or not", function()
    ends "unended() io.write 'end\\n' os.exit(0, true)"
    ends "unended() io.write 'end\\n' os.exit(0, false)"
  end)

  it("in finalizers, with the module's objects dead or alive", function()
    ends [[
      a, b, c, d = unended()
      setmetatable({}, { __gc = function() pcall(world.allreduce, world, 1, { timeout = 0.01 }) end })
      setmetatable({}, { __gc = function() pcall(a.wait, a, 0.01) pcall(world.close, world) end })
      setmetatable({}, { __gc = function() pcall(perigee.future) pcall(perigee.step) end })
    ]]
    ends [[
      local held = {}
      setmetatable(held, { __gc = function()
        for _, w in ipairs(held) do
          pcall(w.wait, w)
          pcall(w.result, w)
        end
      end })
      local plain = perigee.init { rank = 0, size = 1, name = "plain" }
      for i = 1, 10 do held[i] = plain[i % 2 == 0 and "allreduce" or "allgather"](plain, i, { async = true }) end
      perigee.wait_all(held)
    ]]
    ends [[
      keep = setmetatable({}, { __gc = function() -- after the module's own
        for _, f in ipairs { world.allreduce, world.close, world.split, perigee.future, perigee.zeros } do
          pcall(f, world, 1, { timeout = 0.01 })
        end
      end })
      perigee.future():on_done(function() error "never" end)
    ]]
  end)

  it("inside an override, a callback and a wait", function()
    ends [[
      function B:gather() os.exit(0, true) end
      local other = perigee.init { rank = 0, size = 1, backend = "ending", name = "other" }
      io.write "end\n" io.stdout:flush()
      other:gather(1)
      error "not reached"
    ]]
    ends [[
      perigee.future { timeout = 0.01 }:on_done(function() io.write "end\n" io.stdout:flush() os.exit(0, true) end)
      world:allreduce(1)
      error "not reached"
    ]]
    ends [[
      function B:scatter() return { wait = function() io.write "end\n" io.stdout:flush() os.exit(0, true) end } end
      local other = perigee.init { rank = 0, size = 1, backend = "ending", name = "other" }
      other:scatter(perigee.zeros("f32", 1), { perigee.zeros("f32", 1) })
      error "not reached"
    ]]
  end)
end)
