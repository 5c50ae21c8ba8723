-- perigee.async and perigee.run: straight-line functions that wait without blocking.
-- luacheck: no self
local helpers = require "helpers"
local perigee = require "perigee"
local testing = require "perigee.testing"

local raised = helpers.raised
local async = perigee.async

-- A future that ends by itself, on another thread.
local function after(seconds) return perigee.future { timeout = seconds } end

-- Wait for what ends only by its time, and go on.
local function pass(seconds) pcall(function() after(seconds):wait() end) end

local backends = 0
local function world_with(methods)
  backends = backends + 1
  local name = "async_spec_" .. backends
  local B = perigee.backend(name)
  for k, f in pairs(methods) do B[k] = f end
  return helpers.world { backend = name .. "(native)", timeout = 30 }
end

describe("perigee.async", function()
  after_each(helpers.close_all)

  it("returns a Work at once, with the function's value", function()
    local gate = perigee.future()
    local seen = {}
    local add = async(function(a, b)
      seen[#seen + 1] = "started"
      local c = gate:wait()
      seen[#seen + 1] = "resumed"
      return a + b + c
    end)
    local work = add(1, 2)
    assert.same({ "started" }, seen)
    assert.equal("pending", work:status())
    gate:set_result(4)
    assert.equal(7, work:wait(20))
    assert.same({ "started", "resumed" }, seen)
    assert.equal(7, work:result())
    assert.equal("x", async(function() return "x" end)():wait(20))
    assert.is_nil(async(function() end)():wait(20))
  end)

  it("fails the Work with what was raised, where", function()
    local work = async(function()
      pass(0.01)
      local nothing = perigee.missing
      return nothing.field
    end)()
    local e = raised(work.wait, work, 20)
    assert.equal("ELUA", e.code)
    assert.matches("async_spec.lua:%d+: .*'nothing'", e.message)
    assert.matches("async_spec.lua:%d+: in function", e.traceback)
    e = raised(function() async(function() error(perigee.error("ERANGE", "far", { ranks = { 3 } })) end)():wait(20) end)
    assert.equal("ERANGE", e.code)
    assert.same({ 3 }, e.ranks)
    e = raised(function() async(function() error { "a table" } end)():wait(20) end)
    assert.equal("ELUA", e.code)
  end)

  it("raises in the function what it waits for, and pcall goes across waits", function()
    local failing, gate = perigee.future(), perigee.future()
    local work = async(function()
      local ok, e = pcall(function()
        gate:wait()
        return failing:wait()
      end)
      return ok or e.code .. ": " .. e.message
    end)()
    gate:set_result()
    failing:set_error(perigee.error("EABORTED", "no more"))
    assert.equal("EABORTED: no more", work:wait(20))
  end)

  it("waits with a limit", function()
    local never = perigee.future()
    local work = async(function()
      local tries = 0
      for _ = 1, 5 do
        local value, e = never:wait(0.002)
        assert(value == nil and e.code == "ETIMEDOUT")
        tries = tries + 1
      end
      local value, e = never:wait(0)
      assert(value == nil and e.code == "ETIMEDOUT")
      local late = async(function()
        pass(0.01)
        return "late"
      end)()
      return late:wait(20), tries
    end)()
    assert.equal("late", work:wait(20))
    never:set_result()
  end)

  it("checks its arguments", function()
    assert.matches("bad argument #1 to 'async' %(function expected, got number%)", tostring(raised(async, 5)))
    assert.matches("bad argument #1 to 'async' %(function expected, got nil%)", tostring(raised(async)))
    assert.matches("bad argument #2 to 'async' %(options table expected", tostring(raised(async, print, 1)))
    assert.matches("orderd", tostring(raised(async, print, { orderd = true })))
    assert.matches("self expected, got nil", tostring(raised(async(print, { ordered = true }))))
  end)

  it("nests, and a returned Work becomes the outcome", function()
    local inner = async(function(n)
      pass(0.001)
      return n * 2
    end)
    local outer = async(function(n) return inner(inner(n):wait() + 1) end)
    assert.equal(14, outer(3):wait(20))
    local failing = async(function() return async(function()
      pass(0.001)
      error "inner"
    end)() end)()
    assert.matches("inner", raised(failing.wait, failing, 20).message)
    local function depth(n)
      return async(function() return n == 0 and 0 or 1 + depth(n - 1):wait() end)()
    end
    assert.equal(20, depth(20):wait(20))
    local e = raised(function() depth(1000):wait(20) end) -- as deep as Lua's C stack
    assert.matches("C stack overflow", e.message)
  end)

  it("refuses to wait for itself", function()
    local me, a, b
    local gate = perigee.future()
    me = async(function()
      gate:wait()
      return me:wait()
    end)()
    a = async(function()
      gate:wait()
      return b:wait()
    end)()
    b = async(function() return a:wait() end)()
    gate:set_result()
    assert.equal("EDEADLK", raised(me.wait, me, 20).code)
    assert.equal("EDEADLK", raised(a.wait, a, 20).code)
    assert.equal("EDEADLK", raised(b.wait, b, 20).code)
    me = async(function()
      pass(0.001)
      return me
    end)()
    assert.equal("EDEADLK", raised(me.wait, me, 20).code)
  end)

  it("waits for several", function()
    local work = async(function()
      local futures = { perigee.future(), perigee.future(), perigee.future() }
      local i, e = perigee.wait_any(futures, 0.002)
      assert(i == nil and e.code == "ETIMEDOUT")
      assert(perigee.wait_all(futures, 0.002) == nil)
      async(function()
        pass(0.001)
        futures[2]:set_result "two"
        pass(0.001)
        futures[3]:set_result "three"
        futures[1]:set_error "one failed"
      end)()
      local which, any = perigee.wait_any(futures)
      assert(which == 2 and any:result() == "two")
      assert(perigee.wait_all { futures[2], futures[3] })
      assert(perigee.wait_any(futures) == 1)
      local ok, err = pcall(perigee.wait_all, futures)
      return not ok and err.message
    end)()
    assert.matches("one failed", work:wait(20))
  end)

  it("sleeps while others go on", function()
    local order = {}
    local function sleeper(name, seconds) return async(function()
      perigee.sleep(seconds)
      order[#order + 1] = name
    end)() end
    local works = { sleeper("slow", 0.5), sleeper("fast", 0.01), sleeper("now", 0) }
    assert.is_true(perigee.wait_all(works, 20))
    assert.same("slow", order[3])
    assert.equal(3, #order)
  end)

  it("goes on without anybody waiting", function()
    local done = false
    async(function()
      pass(0.01)
      done = true
    end)()
    local until_ = perigee.clock() + 20
    while not done and perigee.clock() < until_ do perigee.sleep(0.001) end
    assert.is_true(done)
  end)

  it("can be started in callbacks, and waits there", function()
    local first, value = perigee.future(), nil
    local over = perigee.future()
    first:on_done(function()
      async(function()
        pass(0.001)
        value = "waited"
        over:set_result()
      end)()
    end)
    first:set_result()
    over:wait(20)
    assert.equal("waited", value)
    local derived = perigee.future()
    local mapped = derived:map(function(v) return async(function() return v end)() end)
    derived:set_result(5)
    assert.equal(5, mapped:wait(20):wait(20))
  end)

  it("says so when nobody asked for a failure", function()
    local code, out = helpers.lua [[
      local perigee = require "perigee"
      perigee.async(function() error "unheard" end)()
      collectgarbage()
      local asked = perigee.async(function() error "asked for" end)()
      pcall(asked.wait, asked)
      asked = nil
      collectgarbage()
    ]]
    assert.equal(0, code)
    assert.matches("nobody asked for its outcome: .*unheard", out)
    assert.is_nil(out:find("asked for\n", 1, true))
  end)
end)

describe("a wait where Lua cannot yield", function()
  after_each(helpers.close_all)

  local function slow(v)
    return async(function()
      pass(0.001)
      return v
    end)():wait()
  end

  it("blocks in comparators, gsub and metamethods", function()
    local work = async(function()
      local t = { 3, 1, 2 }
      table.sort(t, function(a, b) return slow(a) < slow(b) end)
      local text = ("abc"):gsub("%w", function(c) return slow(c:upper()) end)
      local object = setmetatable({}, { __tostring = function() return slow "object" end,
        __add = function(_, n) return slow(n) end })
      return table.concat(t) .. text .. tostring(object) .. (object + 7)
    end)()
    assert.equal("123ABCobject7", work:wait(20))
  end)

  it("blocks in the script's own coroutines, whose yields stay their own", function()
    local work = async(function()
      local got = {}
      for v in coroutine.wrap(function()
        for i = 1, 3 do coroutine.yield(slow(i)) end
      end) do got[#got + 1] = v end
      local co = coroutine.create(function(...)
        local a = coroutine.yield(...)
        return slow(a)
      end)
      local _, x = coroutine.resume(co, "x")
      pass(0.001)
      local _, y = coroutine.resume(co, "y")
      return table.concat(got) .. x .. y
    end)()
    assert.equal("123xy", work:wait(20))
  end)

  it("blocks in coroutines outside of async functions, as ever", function()
    local co = coroutine.wrap(function()
      coroutine.yield(slow(1))
      coroutine.yield(async(function() return slow(2) end)():wait(20))
    end)
    assert.equal(1, co())
    assert.equal(2, co())
  end)

  it("refuses a yield that is no wait", function()
    local closed = false
    local work = async(function()
      local _ <close> = setmetatable({}, { __close = function() closed = true end })
      pass(0.001)
      coroutine.yield "stray"
    end)()
    local e = raised(work.wait, work, 20)
    assert.equal("ESTATE", e.code)
    assert.matches("yielded outside of a coroutine of its own", e.message)
    assert.matches("async_spec.lua:%d+", e.traceback)
    assert.is_true(closed)
  end)

  it("survives a script that resumes or closes its coroutine", function()
    for _, meddle in ipairs { coroutine.resume, coroutine.close } do
      local gate, co = perigee.future(), nil
      local work = async(function()
        co = coroutine.running()
        gate:wait()
        return "untouched"
      end)()
      local ok, e = meddle(co, "extra")
      if meddle == coroutine.resume then
        assert.is_false(ok)
        assert.matches("resumed by the script", tostring(e))
      end
      gate:set_result()
      assert.matches("dead coroutine", raised(work.wait, work, 20).message)
    end
  end)
end)

describe("an async override", function()
  after_each(helpers.close_all)

  it("serves blocking and asynchronous callers, whatever it returns", function()
    local calls = 0
    local world = world_with {
      allreduce = async(function(self, tensors, opts)
        calls = calls + 1
        assert(opts.op == "sum" and self.size == 1)
        self.inner:allreduce(tensors, opts):wait()
        tensors[1]:mul_(2)
        self.inner:barrier():wait()
        if calls % 3 == 0 then return tensors[1] end
        if calls % 3 == 1 then return false, "and more" end
      end),
      broadcast = async(function(self, tensors, opts) return self.inner:broadcast(tensors, opts) end),
    }
    for i = 1, 6 do
      local t = perigee.full("f32", 2, i)
      assert.equal(t, world:allreduce(t))
      assert.equal(2 * i, t[2])
      local work = world:allreduce(t, { async = true })
      assert.equal("allreduce", work.op)
      assert.equal(2 * i, work.seq)
      assert.equal(t, work:wait(20))
      assert.equal(4 * i, t[1])
    end
    assert.equal(10, world:allreduce(5))
    assert.equal(3, world:broadcast(3))
    assert.equal(3, world:broadcast(3, { async = true }):wait(20))
  end)

  it("fails its operation by what it raises", function()
    local world = world_with {
      allreduce = async(function(self)
        self.inner:barrier():wait()
        error "in the override"
      end),
      barrier = async(function() error(perigee.error("ERANGE", "at once")) end),
    }
    for _, opts in ipairs { {}, { async = true } } do
      local e = raised(function()
        local result = world:allreduce(perigee.zeros("f32", 1), opts)
        if opts.async then result:wait(20) end
      end)
      assert.equal("ELUA", e.code)
      assert.equal("allreduce", e.op)
      assert.is_true(e.seq > 0)
      assert.matches("in the override", e.message)
      assert.matches("async_spec.lua:%d+", e.traceback)
    end
    assert.equal("ERANGE", raised(world.barrier, world).code)
    assert.is_nil(world:failed())
  end)

  it("keeps the operation's number across waits", function()
    local seqs = {}
    local world = world_with { barrier = async(function(self)
      local before = self.inner.seq
      pass(0.001)
      seqs[#seqs + 1] = { before, self.inner.seq }
    end) }
    local works = { world:barrier { async = true }, world:barrier { async = true } }
    perigee.wait_all(works, 20)
    world:barrier()
    assert.same({ { 1, 1 }, { 2, 2 }, { 3, 3 } }, seqs)
  end)

  it("is in flight a hundred times on one group", function()
    local gates, running, most = {}, 0, 0
    local world = world_with { allreduce = async(function(self, tensors)
      running = running + 1
      most = math.max(most, running)
      gates[#gates + 1] = perigee.future()
      gates[#gates]:wait()
      self.inner:barrier():wait()
      tensors[1]:add_(1)
      running = running - 1
    end) }
    local works, tensors = {}, {}
    for i = 1, 100 do
      tensors[i] = perigee.full("i64", 1, i)
      works[i] = world:allreduce(tensors[i], { async = true })
    end
    assert.equal(100, most)
    for i = 100, 1, -1 do gates[i]:set_result() end
    assert.is_true(perigee.wait_all(works, 30))
    for i = 1, 100 do assert.equal(i + 1, tensors[i][1]) end
    assert.equal(0, running)
  end)

  it("may start others, which overlap, as a plain override may", function()
    local function both(self)
      local gate, order = perigee.future(), {}
      local first = async(function()
        self.inner:barrier():wait() -- native, but must not hold up the second
        gate:wait()
        order[#order + 1] = "first"
      end)()
      local second = async(function()
        order[#order + 1] = "second"
        gate:set_result()
      end)()
      second:wait()
      return first:map(function() assert(table.concat(order, " ") == "second first") end)
    end
    local world = world_with { allreduce = async(both), broadcast = both }
    for _, op in ipairs { "allreduce", "broadcast" } do
      world[op](world, 1)
      world[op](world, 1, { async = true }):wait(20)
    end
  end)

  it("runs in order when it is asked to", function()
    local order, running = {}, 0
    local world = world_with { allreduce = async(function(self, tensors)
      running = running + 1
      assert(running == 1)
      pass(0.001 * (tensors[1][1] % 3))
      self.inner:barrier():wait()
      order[#order + 1] = tensors[1][1]
      running = running - 1
      if #order % 4 == 0 then error "one fails, the next one runs" end
    end, { ordered = true }) }
    local works = {}
    for i = 1, 12 do works[i] = world:allreduce(perigee.full("i64", 1, i), { async = true }) end
    assert.equal("aborted", (works[6]:abort("not wanted") and works[6]:status()))
    pcall(world.allreduce, world, perigee.full("i64", 1, 13))
    for i = 1, 12 do pcall(works[i].wait, works[i], 20) end
    assert.same({ 1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12, 13 }, order)
    assert.equal("failed", works[4]:status())
    assert.equal("done", works[5]:status())
  end)

  it("is told when its operation is over before it is", function()
    local told
    local world = world_with { allreduce = async(function()
      local never = perigee.future()
      local ok, e = pcall(never.wait, never)
      told = not ok and e.code
      pass(0.001) -- cleaning up may wait
      error(e, 0)
    end) }
    local e = raised(world.allreduce, world, perigee.zeros("f32", 1), { timeout = 0.05 })
    assert.equal("ETIMEDOUT", e.code)
    perigee.sleep(0)
    local work = world:allreduce(perigee.zeros("f32", 1), { async = true })
    told = nil
    work:abort "changed my mind"
    local until_ = perigee.clock() + 20
    while not told and perigee.clock() < until_ do
      perigee.step()
      perigee.sleep(0.001)
    end
    assert.equal("EABORTED", told)
  end)

  it("ends when its group is closed or aborted", function()
    for _, how in ipairs { "close", "abort" } do
      local told = {}
      local world = world_with { allreduce = async(function(self)
        local never = perigee.future()
        local ok, e = pcall(never.wait, never)
        told[#told + 1] = not ok and e.code
        local also, e2 = pcall(function() self.inner:barrier():wait() end)
        told[#told + 1] = not also and e2.code
        error(e, 0)
      end) }
      local works = {}
      for i = 1, 3 do works[i] = world:allreduce(perigee.zeros("f32", 1), { async = true }) end
      world[how](world)
      for i = 1, 3 do
        local e = raised(works[i].wait, works[i], 20)
        assert.is_true(e.code == "ECLOSED" or e.code == "EABORTED", e.code)
      end
      local until_ = perigee.clock() + 20
      while #told < 6 and perigee.clock() < until_ do
        perigee.step()
        perigee.sleep(0.001)
      end
      assert.equal(6, #told)
      for _, code in ipairs(told) do assert.is_true(code == "ECLOSED" or code == "EABORTED", tostring(code)) end
    end
  end)

  it("that is a plain function and yields is told about perigee.async", function()
    local world = world_with { allreduce = function() coroutine.yield() end }
    local function call() return world:allreduce(perigee.zeros("f32", 1)) end
    for _, e in ipairs { raised(call), raised(coroutine.wrap(call)),
      raised(function() async(call)():wait(20) end) } do
      assert.matches("backend 'async_spec_%d+': allreduce yielded, but it runs outside of a coroutine", e.message)
      assert.matches("perigee.async", e.message)
      assert.matches("async_spec.lua:%d+", e.traceback)
    end
  end)

  it("waits for itself in no coroutine of others", function()
    -- Blocking forms inside: they yield in a task, and run right here when the caller waits.
    local world
    world = world_with { barrier = async(function(self)
      local t = perigee.tensor("f32", { 1, 2 })
      self.inner:allreduce(t):wait()
      assert(world:allreduce(3) == 3 and world:broadcast(4) == 4)
      assert(world:gather(5)[1] == 5)
      assert(world:allreduce(t) == t and select("#", world:allreduce_coalesced { t }) == 1)
    end) }
    world:barrier()
    world:barrier({ async = true }):wait(20)
    assert.equal("done", (async(function()
      world:barrier()
      return "done"
    end)():wait(20)))
  end)

  it("collects at every step", function()
    local world = world_with { allreduce = async(function(self, tensors, opts)
      collectgarbage()
      local work = self.inner:allreduce(tensors, opts)
      collectgarbage()
      work:wait()
      work = nil -- luacheck: ignore
      collectgarbage()
      pass(0.001)
      collectgarbage()
      return tensors[1]
    end) }
    perigee.run(function()
      local works = {}
      for i = 1, 10 do
        works[i] = world:allreduce(perigee.full("f32", 10, i), { async = true })
        collectgarbage()
      end
      for i = 1, 10 do
        assert(works[i]:wait()[1] == i)
        works[i] = false
        collectgarbage()
      end
      assert(perigee.wait_any { async(function()
        pass(0.001)
        collectgarbage()
      end)() } == 1)
    end)
    collectgarbage()
    local refs = perigee.stats().refs
    for _ = 1, 50 do
      world:allreduce(perigee.zeros("f32", 1))
      world:allreduce(perigee.zeros("f32", 1), { async = true }):wait(20)
    end
    collectgarbage()
    collectgarbage()
    assert.is_true(perigee.stats().refs <= refs + 2, "registry references are left")
  end)
end)

describe("perigee.run", function()
  after_each(helpers.close_all)

  it("returns all values of main, when everything has ended", function()
    local ended = false
    local r = table.pack(perigee.run(function(...)
      async(function()
        perigee.sleep(0.02)
        async(function()
          perigee.sleep(0.02)
          ended = true
        end)()
      end)()
      pass(0.001)
      return select("#", ...), ..., nil
    end, "a", nil))
    assert.same({ 2, "a", nil, n = 3 }, r)
    assert.is_true(ended)
    assert.equal(0, select("#", perigee.run(function() end)))
    assert.equal(9, perigee.run(function() return async(function()
      pass(0.001)
      return 9
    end)() end))
  end)

  it("raises main's error, and ends the rest", function()
    local told, closed
    local e = raised(perigee.run, function()
      async(function()
        local _ <close> = setmetatable({}, { __close = function() closed = true end })
        local never = perigee.future()
        local ok, e = pcall(never.wait, never)
        told = not ok and e.code
        perigee.future():wait() -- does not want to end: closed after a grace
      end)()
      pass(0.001)
      error "main is gone"
    end)
    assert.matches("main is gone", e.message)
    assert.matches("async_spec.lua:%d+", e.traceback)
    assert.equal("ECANCELED", told)
    assert.is_true(closed)
  end)

  it("raises the error of a task that nobody asked for", function()
    local e = raised(perigee.run, function()
      async(function()
        pass(0.001)
        error "unheard"
      end)()
    end)
    assert.matches("unheard", e.message)
    assert.equal("fine", perigee.run(function()
      local task = async(function() error "heard" end)()
      assert(not pcall(task.wait, task))
      return "fine"
    end))
  end)

  it("has a deadline", function()
    local e = raised(perigee.run, { timeout = 0.05 }, function()
      async(function() perigee.sleep(600) end)()
      perigee.sleep(600)
    end)
    assert.equal("ETIMEDOUT", e.code)
    assert.matches("perigee.run: timed out after 0.1 s", e.message)
    assert.matches("unknown option 'timeoot'", tostring(raised(perigee.run, { timeoot = 1 }, print)))
    assert.matches("function expected, got nil", tostring(raised(perigee.run, { timeout = 1 })))
    assert.matches("function expected, got number", tostring(raised(perigee.run, 5)))
  end)

  it("sees a deadlock and tells who waits where", function()
    local e = raised(perigee.run, function()
      local a = perigee.future()
      async(function() a:map(print):wait() end)()
      a:wait()
    end)
    assert.equal("EDEADLK", e.code)
    assert.matches("main at .*async_spec.lua:%d+", e.message)
    assert.matches("a task at .*async_spec.lua:%d+", e.message)
    e = raised(perigee.run, function() perigee.wait_any { perigee.future(), perigee.future() } end)
    assert.equal("EDEADLK", e.code)
  end)

  it("is not for async functions and callbacks", function()
    assert.equal("ESTATE", raised(perigee.run, function() perigee.run(print) end).code)
    local first, e = perigee.future(), nil
    first:on_done(function() e = raised(perigee.run, print) end)
    first:set_result()
    first:wait()
    assert.equal("EDEADLK", e.code)
  end)

  it("runs two hundred tasks that wait for each other", function()
    local sum = perigee.run(function()
      local last = perigee.future()
      local head = last
      for i = 1, 200 do
        local before = last
        last = async(function() return before:wait() + i end)()
      end
      head:set_result(0)
      return last:wait()
    end)
    assert.equal(20100, sum)
  end)
end)

describe("closing the interpreter", function()
  it("closes what is suspended", function()
    local code, out = helpers.lua [[
      local perigee = require "perigee"
      local world = perigee.init { rank = 0, size = 1 }
      local never = perigee.future()
      for i = 1, 3 do
        perigee.async(function()
          local _ <close> = setmetatable({}, { __close = function() print("closed " .. i) end })
          if i == 2 then coroutine.wrap(function() coroutine.yield() end)() end
          never:wait()
        end)()
      end
      perigee.async(function() perigee.sleep(600) end)()
      print "end of the script"
      os.exit(0, true)
    ]]
    assert.equal(0, code, out)
    assert.matches("end of the script", out)
    for i = 1, 3 do assert.matches("closed " .. i, out) end
  end)
end)

describe("async overrides on several ranks", function()
  local Ring = perigee.backend "async_spec_ring"
  Ring.allreduce = async(function(self, tensors, opts)
    local size, rank = self.size, self.rank
    local t, got = tensors[1], tensors[1]:clone()
    local out, tag = t:clone(), 100 + self.inner.seq
    for _ = 1, size - 1 do
      local send = self.inner:send({ out }, (rank + 1) % size, { tag = tag, timeout = opts.timeout })
      self.inner:recv({ got }, (rank - 1) % size, { tag = tag, timeout = opts.timeout }):wait()
      send:wait()
      t:add_(got)
      out:copy_(got)
    end
  end)

  -- A plain override whose helpers need each other: the first receives what only the second one's peer sends.
  function Ring:barrier(opts)
    local size, rank, tag = self.size, self.rank, 10000 + self.inner.seq
    if size == 1 then return true end
    local function token() return { perigee.zeros("u8", 1) } end
    local received = async(function()
      self.inner:recv(token(), (rank - 1) % size, { tag = tag, timeout = opts.timeout }):wait()
    end)()
    local sent = async(function()
      self.inner:send(token(), (rank + 1) % size, { tag = tag, timeout = opts.timeout }):wait()
    end)()
    return async(function() perigee.wait_all { received, sent } end)()
  end

  local function exercise(g)
    g:barrier()
    for round = 1, 3 do
      local t = perigee.full("f64", 5, g.rank + round)
      g:allreduce(t)
      assert(t[5] == g.size * round + g.size * (g.size - 1) / 2)
    end
    local works, tensors = {}, {}
    for i = 1, 25 do
      tensors[i] = perigee.full("f64", 3, g.rank * i)
      works[i] = g:allreduce(tensors[i], { async = true })
    end
    for i = 25, 1, -1 do
      works[i]:wait()
      assert(tensors[i][1] == i * g.size * (g.size - 1) / 2)
    end
    local order = {}
    async(function() order[1] = g:allreduce(g.rank) end)():wait()
    assert(order[1] == g.size * (g.size - 1) / 2)
    return g:allgather(g.rank)
  end

  it("as threads of one interpreter", function()
    for _, n in ipairs { 1, 2, 4 } do
      testing.ranks(n, exercise, { backend = "async_spec_ring(native)", timeout = 60 })
    end
  end)

  it("in the simulator, for any schedule", function()
    for seed = 1, 10 do
      local results = testing.sim(4, exercise, { backend = "async_spec_ring(sim)", seed = seed })
      assert.same({ 0, 1, 2, 3 }, results[3])
    end
  end)

  it("as processes, overlapping in perigee.run", function()
    for _, transport in ipairs { "shm", "tcp" } do
      helpers.ranks_ok(2, [[
        local other = 1 - world.rank
        local sum, got, echo = perigee.run({ timeout = 30 }, function()
          local receive = perigee.async(function(tag)
            local t = perigee.zeros("i64", 1)
            world:recv(t, other, { tag = tag })
            return t[1]
          end)
          local first, second = receive(1), receive(2)
          local reduce = perigee.async(function() return world:allreduce(world.rank + 1) end)()
          local echoes = perigee.async(function()
            world:send(perigee.tensor("i64", { first:wait() * 10 }), other, { tag = 2 })
          end)()
          world:send(perigee.tensor("i64", { 5 + world.rank }), other, { tag = 1 })
          echoes:wait()
          return reduce:wait(), first:wait(), second:wait()
        end)
        assert(sum == 3 and got == 5 + other and echo == 10 * (5 + world.rank))
      ]], { transport = transport })
    end
  end)
end)

describe("async functions in the simulator", function()
  it("are strands of their rank, in virtual time", function()
    local started = perigee.clock()
    local results = testing.sim(3, function(g)
      return perigee.run(function(x)
        local gate = perigee.future()
        local slow = async(function()
          perigee.sleep(1000)
          gate:set_result(g:allreduce(1))
          return "slow"
        end)()
        local failing = async(function()
          local late = perigee.future { timeout = 50 }
          late:wait()
        end)()
        local e = raised(failing.wait, failing)
        assert.equal("ETIMEDOUT", e.code)
        assert.equal(3, gate:wait())
        local which = perigee.wait_any { perigee.future(), slow }
        assert.equal(2, which)
        return x .. slow:wait()
      end, "very ")
    end)
    assert.same({ "very slow", "very slow", "very slow", n = 3 }, results)
    assert.is_true(perigee.clock() - started < 100)
  end)

  it("fail, end and deadlock as they do outside", function()
    local e = raised(testing.sim, 2, function() perigee.run(function()
      async(function() error "unheard" end)()
    end) end)
    assert.matches("unheard", tostring(e))
    e = raised(testing.sim, 2, function(g)
      async(function() g:barrier() end)():wait()
      async(function() if g.rank == 0 then g:barrier() end end)():wait()
      g:allreduce(1)
    end)
    assert.equal("EMISMATCH", e.code)
    e = raised(testing.sim, 2, function(g)
      if g.rank == 0 then async(function() perigee.future():wait() end)():wait() end
    end)
    assert.equal("EDEADLK", e.code)
    assert.matches("a task of rank 0 waits in a future of the script", e.message)
    e = raised(testing.sim, 1, function() async(function() coroutine.yield() end)():wait() end)
    assert.matches("yielded outside of a coroutine of its own", e.message)
    e = raised(testing.sim, 1, function() perigee.run({ timeout = 7 }, function() perigee.sleep(9) end) end)
    assert.equal("ETIMEDOUT", e.code)
    local told
    testing.sim(1, function()
      local work = async(function()
        local never = perigee.future()
        local ok, why = pcall(never.wait, never)
        told = not ok and why.code
      end)()
      work:abort "enough"
      perigee.sleep(1)
    end)
    assert.equal("EABORTED", told)
  end)

  it("run in order when they are asked to", function()
    local order = {}
    testing.sim(1, function()
      local one, works = async(function(_, i)
        perigee.sleep(10 - i)
        order[#order + 1] = i
      end, { ordered = true }), {}
      local self = {}
      for i = 1, 6 do works[i] = one(self, i) end
      works[3]:abort "not wanted"
      for i = 1, 6 do pcall(works[i].wait, works[i]) end
    end)
    assert.same({ 1, 2, 4, 5, 6 }, order)
  end)

  it("leave the module as it was", function()
    testing.sim(1, function() async(function() end)():wait() end)
    assert.is_userdata(perigee.future())
    assert.is_userdata(async(function() end)())
  end)
end)
