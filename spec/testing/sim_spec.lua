-- Simulated worlds: deterministic schedules, faults, mismatches and deadlocks that are told instead of hung in.
-- luacheck: no self
local perigee = require "perigee"
local testing = require "perigee.testing"
local sim = testing.sim

local function raised(...)
  local ok, e = pcall(...)
  assert.is_false(ok)
  return e
end

local function T(...) return perigee.tensor("f32", { ... }) end

-- The order in which ranks pass three barriers and send to rank 0.
local function trace(seed)
  local order = {}
  sim(4, function(g)
    for _ = 1, 3 do
      order[#order + 1] = g.rank
      g:barrier()
    end
    if g.rank ~= 0 then return g:send(g.rank, 0) end
    for _ = 1, 3 do
      local _, source = g:recv_anysource(0)
      order[#order + 1] = source
    end
  end, { seed = seed })
  return table.concat(order)
end

describe("perigee.testing.sim", function()
  it("runs the same schedule for the same seed, others for others", function()
    assert.equal(trace(7), trace(7))
    local different = {}
    for seed = 1, 20 do different[trace(seed)] = true end
    local n = 0
    for _ in pairs(different) do n = n + 1 end
    assert.is_true(n > 10, n)
  end)

  it("gives a rank what a group has", function()
    local names = {}
    sim(3, function(g)
      assert.equal(3, g.size)
      assert.equal("world", g.name)
      assert.equal("sim", g.backend)
      assert.equal(1800, g.timeout)
      g:set_timeout(3)
      assert.equal(3, g.timeout)
      assert.equal(g.rank, g:to_world(g:from_world(g.rank)))
      assert.is_nil(g:failed())
      g:barrier()
      g:barrier()
      assert.equal(2, g.seq)
      names[g.rank] = tostring(g)
      g:barrier()
      g:close()
      assert.is_true(g:is_closed())
      assert.equal("ECLOSED", raised(g.barrier, g).code)
    end)
    assert.equal("group 'world': rank 1 of 3, sim (sim)", names[1])
  end)

  it("has every method that a real group has for an operation", function()
    sim(1, function(g)
      for _, row in ipairs(perigee.ops()) do
        assert.is_function(g[row.name], row.name)
        for alias in row.aliases:gmatch "%S+" do assert.is_function(g[alias], alias) end
      end
    end)
  end)

  it("takes the friendly forms", function()
    sim(3, function(g)
      local r = g.rank
      assert.equal(3, g:allreduce(r))
      assert.equal("integer", math.type(g:allreduce(r)))
      assert.equal(7, g:allreduce(1 << r, { op = "bor" }))
      assert.same({ 0, 2, 4 }, g:allgather(r * 2))
      assert.same(r == 2 and { 0, 1, 2 } or nil, g:gather(r, { root = 2 }))
      assert.equal(3, g:allgather_into_tensor(T(r)):sum())
      assert.equal(3, g:reduce_scatter { T(r), T(r), T(r) }[1])
      assert.equal(6, g:reduce_scatter_tensor(perigee.ones("f32", 6)):sum())
      assert.equal(2, g:alltoall_base(perigee.full("f32", { 3 }, r))[3])
      local t = T(r)
      assert.equal(t, g:broadcast(t, { root = 1 }))
    end)
  end)

  it("reduces with a function of the script in rank order", function()
    local op = perigee.op { name = "decimal", reduce = function(acc, x) acc:mul_(10):add_(x) end }
    assert.same({ 123, 123, 123, n = 3 }, sim(3, function(g) return g:allreduce(g.rank + 1, { op = op }) end))
    assert.equal(3, sim(3, function(g)
      return g:allreduce(T(g.rank + 1), { op = perigee.premul_sum(0.5) })[1]
    end)[1])
  end)

  it("matches messages by peer and tag, in order", function()
    sim(2, function(g)
      if g.rank == 0 then
        for i = 1, 3 do g:send(i, 1, { tag = 5 }) end
        g:send(99, 1, { tag = 6 })
      else
        assert.equal(99, g:recv(0, 0, { tag = 6 }))
        for i = 1, 3 do assert.equal(i, g:recv(0, 0, { tag = 5 })) end
      end
    end)
  end)

  it("gives works that wait, map, call back and fail", function()
    local log = {}
    sim(2, function(g)
      local w = g:allreduce(T(1, 2), { async = true })
      local doubled = w:map(function(t) return t:sum() * 2 end)
      w:on_done(function(err, t) log[#log + 1] = err or t[2] end)
      assert.equal(12, doubled:wait())
      assert.equal("done", w:status())
      assert.equal(4, w:result()[2])
      local bad = w:map(function() error "in map" end)
      assert.matches("in map", raised(bad.wait, bad).message)
      local pending = g:recv(T(0), 1 - g.rank, { async = true, tag = 9 })
      local value, err = pending:wait(0.5)
      assert.is_nil(value)
      assert.equal("ETIMEDOUT", err.code)
      assert.equal("pending", pending:status())
      g:barrier()
      g:send(T(3), 1 - g.rank, { tag = 9 })
      assert.equal(3, pending:wait()[1])
      assert.equal(1 - g.rank, pending:source_rank())
      local a, b = g:allreduce(T(1), { async = true }), g:allreduce(T(2), { async = true })
      assert.is_true(perigee.wait_all { a, b })
      local i = perigee.wait_any { a, b }
      assert.equal(1, i)
    end)
    assert.same({ 4, 4 }, log)
  end)

  it("refuses a wait in a callback", function()
    local seen
    sim(2, function(g)
      g:barrier { async = true }:on_done(function()
        local ok, e = pcall(g.barrier, g)
        seen = not ok and e.code
      end)
      g:barrier()
    end)
    assert.equal("EDEADLK", seen)
  end)

  it("waits in comparators and in coroutines of the script", function()
    for seed = 1, 5 do
      sim(3, function(g)
        if g.rank ~= 0 then
          g:barrier()
          assert.equal(3, g:allreduce(1))
          return
        end
        local list = { 3, 1, 2 }
        local calls = 0
        table.sort(list, function(a, b)
          if calls == 0 then g:barrier() end
          calls = calls + 1
          return a < b
        end)
        assert.same({ 1, 2, 3 }, list)
        local co = coroutine.wrap(function()
          coroutine.yield(g:allreduce(1))
          coroutine.yield "mine"
        end)
        assert.equal(3, co())
        assert.equal("mine", co())
      end, { seed = seed })
    end
  end)

  it("tells when ranks that cannot yield lie on top of each other", function()
    local e = raised(sim, 2, function(g)
      local co = coroutine.wrap(function()
        g:barrier()
        g:barrier()
      end)
      co()
    end)
    assert.equal("EDEADLK", e.code)
    assert.matches("could go on, but waits where it cannot yield", e.message)
  end)

  it("splits, and makes subgroups", function()
    sim(4, function(g)
      local half = g:split(g.rank % 2, -g.rank)
      assert.equal(2, half.size)
      assert.equal(g.rank < 2 and 1 or 0, half.rank)
      assert.equal(g.rank, half:to_world(half.rank))
      assert.equal(g.rank % 2 == 0 and 2 or 4, half:allreduce(g.rank))
      local ends = g:subgroup { 3, 0 }
      assert.equal(g.rank == 0 or g.rank == 3, ends ~= nil)
      if ends then assert.equal(3, ends:broadcast(g.rank, { root = 0 })) end
      assert.is_nil(g:split(-1))
    end)
  end)

  it("names the two sides of a mismatch on every rank", function()
    local codes = {}
    local e = raised(sim, 3, function(g)
      local ok, err = pcall(function()
        if g.rank == 1 then g:broadcast(T(1), { root = 2 }) else g:allreduce(T(1, 2)) end
      end)
      codes[g.rank] = not ok and err.code
      error(err, 0)
    end)
    assert.matches("called allreduce f32%[2%] sum", e.message)
    assert.matches("rank 1 called broadcast f32%[1%] root 2", e.message)
    assert.same({ [0] = "EMISMATCH", "EMISMATCH", "EMISMATCH" }, codes)
  end)

  it("sees blocks that do not fit between ranks", function()
    local e = raised(sim, 2, function(g)
      g:alltoall_base(perigee.zeros("f32", 2), T(1, 2), { 1, 1 }, { g.rank + 0, 2 - g.rank })
    end)
    assert.equal("EMISMATCH", e.code)
    assert.matches("rank 0 has room for 1 elements of rank 0, which sends 0", e.message)
  end)

  it("reports a deadlock exactly: who waits for whom in what", function()
    local e = raised(sim, 4, function(g)
      if g.rank == 0 then g:barrier() end
      if g.rank == 1 then g:recv(0, 2, { tag = 4 }) end
      if g.rank == 2 then g:send(1, 1, { tag = 5 }) g:recv(0, 1) end
    end)
    assert.equal("EDEADLK", e.code)
    assert.equal("deadlock: rank 0 waits in barrier #1 on world for ranks 1,2,3; "
      .. "rank 1 waits in recv(src 2, tag 4) #1 on world for rank 2; "
      .. "rank 2 waits in recv(src 1, tag 0) #2 on world for rank 1; rank 3 has ended", e.message)
    assert.same({ 0, 1, 2 }, e.ranks)
    assert.same({ 1, 2, 3 }, e.waits[1].missing)
  end)

  it("finds sends that rely on buffers", function()
    local function exchange(g)
      g:send(g.rank, 1 - g.rank)
      return g:recv(0, 1 - g.rank)
    end
    assert.same({ 1, 0, n = 2 }, sim(2, exchange))
    local e = raised(sim, 2, exchange, { rendezvous = true })
    assert.matches("rank 0 waits in send%(dst 1, tag 0%) #1 on world for rank 1", e.message)
  end)

  it("lets the timeouts of calls pass in virtual time, naming who is missing", function()
    local start = perigee.clock()
    local e = raised(sim, 3, function(g)
      if g.rank ~= 1 then g:barrier { timeout = 1000 } end
    end)
    assert.equal("ETIMEDOUT", e.code)
    assert.same({ 1 }, e.ranks)
    assert.matches("barrier #1 on world: timed out after 1000.0 s, missing ranks 1", tostring(e))
    assert.is_true(perigee.clock() - start < 60)
  end)

  it("raises the first error with its rank, and aborts the others", function()
    local other
    local e = raised(sim, 2, function(g)
      if g.rank == 1 then error("boom", 0) end
      local ok, err = pcall(g.barrier, g)
      other = not ok and err.code
    end)
    assert.matches("^%[rank 1%] boom\nstack traceback of rank 1:\n", e)
    assert.equal("EABORTED", other)
    local failure = raised(sim, 2, function(g) assert.equal(g.rank, 0) end)
    assert.equal(1, failure.rank)
  end)

  it("gives a store whose waits let the others run", function()
    sim(2, function(g)
      if g.rank == 0 then
        assert.equal("v", g.store:get "k")
        assert.is_true(g.store:check { "k" })
      else
        g:send(1, 0, { tag = 8 })
        g.store:set("k", "v")
      end
    end, { seed = 2 })
    local e = raised(sim, 2, function(g) g.store:wait "never" end)
    assert.matches("rank 1 waits in store:wait%(never%)", e.message)
  end)

  it("lets the others run when a loop asks for a work's status", function()
    sim(2, function(g)
      local w = g:allreduce(T(1), { async = true })
      while w:status() == "pending" do end -- luacheck: ignore 542
      assert.equal(2, w:result()[1])
    end)
  end)

  it("stops ranks that ask without end", function()
    local e = raised(sim, 2, function(g)
      local w = g.rank == 0 and g:recv(T(0), 1, { async = true })
      while w and not w:is_completed() do end -- luacheck: ignore 542
    end, { max_steps = 1000 })
    assert.equal("ELIMIT", e.code)
  end)
end)

describe("faults of a simulated world", function()
  local function allreduce(g) return g:allreduce(1) end

  it("drop: the others miss the rank", function()
    local e = raised(sim, 3, allreduce, { faults = { { rank = 1, op = "allreduce", seq = 1, drop = true } } })
    assert.equal("EDEADLK", e.code)
    assert.matches("rank 0 waits in allreduce #1 on world for rank 1", e.message)
    local lost = raised(sim, 2, function(g)
      if g.rank == 0 then g:send(1, 1) else g:recv(0, 0, { timeout = 5 }) end
    end, { faults = { { op = "send", drop = true } } })
    assert.equal("ETIMEDOUT", lost.code)
  end)

  it("delay: late, and right", function()
    assert.same({ 3, 3, 3, n = 3 }, sim(3, allreduce, { faults = { { rank = 1, delay = 50 } } }))
  end)

  it("raise: on that rank, at that operation", function()
    local e = raised(sim, 2, function(g)
      g:barrier()
      g:barrier()
    end, { faults = { { rank = 1, seq = 2, raise = "told to" } } })
    assert.equal("barrier #2 on world: told to (rank 1)", tostring(e))
  end)

  it("kill: the others see a dead peer", function()
    local codes, after = {}, false
    local e = raised(sim, 3, function(g)
      local ok, err = pcall(allreduce, g)
      if g.rank == 1 then after = true end
      codes[g.rank] = not ok and err.code
      codes[g.rank + 10] = raised(g.barrier, g).code
      error(err, 0)
    end, { faults = { { rank = 1, op = "allreduce", kill = true } } })
    assert.equal("EPEERDEAD", e.code)
    assert.same({ 1 }, e.ranks)
    assert.is_false(after)
    assert.same({ [0] = "EPEERDEAD", [2] = "EPEERDEAD", [10] = "EPEERDEAD", [12] = "EPEERDEAD" }, codes)
  end)

  it("are checked", function()
    assert.matches("unknown field 'when'", tostring(raised(sim, 1, allreduce, { faults = { { when = 1 } } })))
    assert.matches("no operation 'allred'", tostring(raised(sim, 1, allreduce, { faults = { { op = "allred" } } })))
    assert.matches("one of drop, delay, raise, kill", tostring(raised(sim, 1, allreduce, { faults = { {} } })))
  end)
end)

describe("backends in a simulated world", function()
  it("may wait, return works, true, futures and tables", function()
    local B = { name = "mixed" }
    function B:allreduce(tensors, opts)
      local half = tensors[1]:to "f16"
      return self.inner:allreduce({ half }, opts):map(function() tensors[1]:copy_(half) end)
    end
    function B:broadcast(tensors, opts)
      self.inner:broadcast(tensors, opts):wait()
      return true
    end
    function B:barrier(opts)
      local work = self.inner:barrier(opts)
      return { wait = function() work:wait() end }
    end
    function B:monitored_barrier()
      local f = perigee.future()
      f:set_result(true)
      return f
    end
    sim(3, function(g)
      assert.equal("mixed(sim)", g.backend)
      assert.equal(3, g:allreduce(T(g.rank))[1])
      assert.equal(2, g:broadcast(g.rank, { root = 2 }))
      g:barrier()
      g:monitored_barrier()
      assert.equal(2, g:split(g.rank == 1 and 1 or 0):allreduce(T(g.rank))[1] + (g.rank == 1 and 1 or 0))
    end, { backend = B })
  end)

  it("are found by their stack", function()
    local calls = {}
    for _, name in ipairs { "sim-outer", "sim-inner" } do
      local B = perigee.backend(name)
      function B:barrier(opts)
        calls[#calls + 1] = name
        return self.inner:barrier(opts)
      end
    end
    local name = sim(1, function(g)
      g:barrier()
      return g.backend
    end, { backend = "sim-outer(sim-inner(native))" })[1]
    assert.equal("sim-outer(sim-inner(sim))", name)
    assert.same({ "sim-outer", "sim-inner" }, calls)
    assert.matches("is no stack", tostring(raised(sim, 1, print, { backend = "a(b" })))
    assert.matches("'nobody' is not written in Lua", tostring(raised(sim, 1, print, { backend = "nobody" })))
  end)

  it("are told what they do wrong", function()
    local e = raised(sim, 1, function(g) g:barrier() end, { backend = { name = "nil", barrier = function() end } })
    assert.equal("ELUATYPE", e.code)
    assert.matches("is a 'return' missing", e.message)
    local bad = { name = "bad", barrier = function() error "oops" end }
    e = raised(sim, 1, function(g) g:barrier() end, { backend = bad })
    assert.matches("oops", e.message)
    assert.matches("sim_spec", e.traceback)
    assert.matches("did you mean 'allreduce'", tostring(raised(sim, 1, print, { backend = { allReduce = print } })))
  end)
end)
