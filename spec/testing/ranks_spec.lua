-- Ranks as threads of this Lua state: c10d's threaded groups, and what happens when a rank goes wrong.
local perigee = require "perigee"
local testing = require "perigee.testing"

local function raised(...)
  local ok, e = pcall(...)
  assert.is_false(ok)
  return e
end

local function threads()
  for line in io.lines "/proc/self/status" do
    local n = line:match "^Threads:%s*(%d+)"
    if n then return tonumber(n) end
  end
end

local function descriptors()
  local n = 0
  for fd = 0, 1023 do
    local f = io.open("/proc/self/fdinfo/" .. fd)
    if f then
      n = n + 1
      f:close()
    end
  end
  return n
end

describe("perigee.testing.ranks", function()
  it("is perigee.testing", function() assert.equal(testing, perigee.testing) end)

  it("runs the closures and asserts of the spec on every rank", function()
    local seen, total = {}, 0
    local results = testing.ranks(4, function(g)
      assert.equal(4, g.size)
      seen[g.rank] = true
      total = total + g.rank
      return g:allreduce(g.rank + 1)
    end)
    assert.same({ 10, 10, 10, 10, n = 4 }, results)
    assert.same({ [0] = true, true, true, true }, seen)
    assert.equal(6, total)
  end)

  -- test_allreduce_basics: reference values of one and of two tensors per rank
  it("test_allreduce_basics", function()
    testing.ranks(4, function(g)
      local r, w = g.rank, g.size
      local want = { sum = w * (w + 1) / 2, product = 24, min = 1, max = w, avg = (w + 1) / 2 }
      for op, v in pairs(want) do
        assert.equal(v, g:allreduce(perigee.tensor("f32", { r + 1 }), { op = op })[1], op)
      end
      for i = 0, 3 do
        assert.equal(1 << i, g:allreduce(perigee.tensor("i32", { r | 1 << i }), { op = "band" })[1])
      end
      local two = g:allreduce({ perigee.tensor("f32", { 2 * r }), perigee.tensor("f32", { 2 * r + 1 }) })
      assert.equal(w * (2 * w - 1), two[1][1])
      assert.equal(w * (2 * w - 1), two[2][1])
    end)
  end)

  it("test_broadcast_basics, each rank root once", function()
    testing.ranks(3, function(g)
      for root = 0, 2 do
        assert.equal(root, g:broadcast(perigee.tensor("f32", { g.rank }), { root = root })[1])
      end
    end)
  end)

  it("test_alltoall_data_routing", function()
    testing.ranks(3, function(g)
      local ins = {}
      for r = 0, 2 do ins[r + 1] = perigee.tensor("i64", { 100 * g.rank + r }) end
      local outs = g:alltoall(ins)
      for r = 0, 2 do assert.equal(100 * r + g.rank, outs[r + 1][1]) end
    end)
  end)

  it("test_barrier_implies_wait: dropped works are complete after a barrier", function()
    testing.ranks(2, function(g)
      local list = {}
      for i = 1, 16 do
        list[i] = perigee.tensor("f32", { i })
        g:allreduce(list[i], { async = true })
      end
      g:barrier()
      for i = 1, 16 do assert.equal(2 * i, list[i][1]) end
    end)
  end)

  it("runs a backend written in Lua", function()
    local calls = 0
    local B = { name = "ranks-spec" }
    function B:allreduce(tensors, opts)
      calls = calls + 1
      return self.inner:allreduce(tensors, opts)
    end
    assert.equal(3, testing.ranks(2, function(g) return g:allreduce(g.rank + 1) end, { backend = B })[1])
    assert.equal(2, calls)
    local name = testing.ranks(2, function(g) return g.backend end, { backend = "ranks-spec(native)" })[1]
    assert.equal("ranks-spec(native)", name)
  end)

  it("raises the first error with its rank in front, and ends the others", function()
    local aborted
    local e = raised(testing.ranks, 3, function(g)
      if g.rank == 1 then error("boom", 0) end
      local ok, err = pcall(g.barrier, g)
      if not ok and g.rank == 0 then aborted = err end
      g:barrier()
    end)
    assert.matches("^%[rank 1%] boom\nstack traceback of rank 1:\n", e)
    assert.equal("EABORTED", aborted.code)
    assert.matches("rank 1 raised: boom", tostring(aborted))
  end)

  it("shows where the culprit raised, and nothing else", function()
    local function deep() error "here" end
    local e = raised(testing.ranks, 2, function(g)
      if g.rank == 1 then deep() end
      g:barrier()
    end)
    local at = debug.getinfo(1, "l").currentline
    local lines = {}
    for line in e:gmatch "[^\n]+" do lines[#lines + 1] = line end
    assert.matches("^%[rank 1%] .*ranks_spec%.lua:" .. at - 5 .. ": here$", lines[1])
    assert.equal("stack traceback of rank 1:", lines[2])
    assert.matches("^\t.*ranks_spec%.lua:" .. at - 5 .. ": in ", lines[3])
    assert.matches("^\t.*ranks_spec%.lua:" .. at - 3 .. ": in ", lines[4])
    assert.equal(4, #lines)
    e = raised(testing.sim, 2, function(g)
      if g.rank == 1 then deep() end
      g:barrier()
    end)
    assert.matches("stack traceback of rank 1:\n\t[^\n]*: in [^\n]*\n\t[^\n]*: in [^\n]*$", e)
    e = raised(testing.ranks, 1, function() assert.is_true(false) end)
    assert.matches("stack traceback of rank 0:\n\t[^\n]*ranks_spec%.lua:" .. at + 13 .. ": in [^\n]*$", e.message)
  end)

  it("ends what other ranks wait for: subgroups, works, futures, messages, sleep", function()
    local codes, start = {}, perigee.clock()
    local never = perigee.future()
    local e = raised(testing.ranks, 7, function(g)
      local half = g:split(g.rank % 2)
      local quarter = g.rank < 6 and half:subgroup(g.rank % 2 == 0 and { 0, 1 } or { 0 })
      local t = perigee.zeros("f32", 1)
      g:barrier()
      if g.rank == 6 then
        perigee.sleep(0.05) -- the others are about to wait
        error("boom", 0)
      end
      local ok, err = pcall(({
        [0] = function() half:barrier() end,
        [1] = function() perigee.sleep(60) end,
        [2] = function() quarter:recv(t, 0) end,
        [3] = function() half:allreduce(t, { async = true }):wait() end,
        [4] = function() never:wait() end,
        [5] = function() perigee.step(60) end,
      })[g.rank])
      codes[g.rank] = ok and "nothing" or err.code .. ": " .. err.message
      -- what comes later ends at once, too
      for _, wait in ipairs { perigee.sleep, perigee.step } do
        local _, later = pcall(wait, 60)
        assert(later.code == "EABORTED", later)
      end
    end, { timeout = 60 })
    assert.matches("^%[rank 6%] boom", e)
    for rank = 0, 5 do assert.matches("^EABORTED: .*rank 6 raised: boom", codes[rank]) end
    assert.is_true(perigee.clock() - start < 30)
    assert.is_false(never:is_completed())
  end)

  it("ends groups that are made while it ends", function()
    local codes = {}
    raised(testing.ranks, 2, function(g)
      if g.rank == 1 then error "boom" end
      pcall(perigee.sleep, 60)
      local own = perigee.init { rank = 0, size = 1 }
      codes[1] = select(2, pcall(own.barrier, own)).code
      own:close()
    end)
    assert.same({ "EABORTED" }, codes)
  end)

  it("ends a rank that computes for ever when another one fails", function()
    local e = raised(testing.ranks, 2, function(g)
      if g.rank == 1 then error("boom", 0) end
      pcall(g.barrier, g)
      while true do end -- luacheck: ignore 542
    end, { timeout = 3600 })
    assert.matches("^%[rank 1%] boom", e)
  end)

  it("ends a rank that sleeps when the time is over", function()
    local e = raised(testing.ranks, 2, function(g)
      if g.rank == 1 then perigee.sleep(3600) end
    end, { timeout = 0.1 })
    assert.equal("ETIMEDOUT", e.code)
    assert.same({ 1 }, e.ranks)
  end)

  it("keeps error objects, and adds the rank", function()
    local e = raised(testing.ranks, 2, function(g)
      if g.rank == 1 then error(perigee.error("EINVAL", "an object")) end
      g:barrier()
    end)
    assert.equal("EINVAL", e.code)
    assert.equal(1, e.rank)
    assert.equal("an object (rank 1)", tostring(e))
  end)

  it("keeps the failures of asserts, and adds the rank", function()
    local e = raised(testing.ranks, 2, function(g)
      if g.rank == 1 then assert.equal(1, 2) end
      g:barrier()
    end)
    assert.equal("table", type(e))
    assert.equal(1, e.rank)
    assert.matches("%[rank 1%] .*Expected objects to be equal", e.message)
  end)

  it("ends ranks that wait for ever, and names them", function()
    local start = perigee.clock()
    local e = raised(testing.ranks, 3, function(g)
      if g.rank == 2 then g:recv(perigee.zeros("f32", 1), 0, { timeout = 600 }) end
    end, { timeout = 0.3 })
    assert.equal("ETIMEDOUT", e.code)
    assert.same({ 2 }, e.ranks)
    assert.is_true(perigee.clock() - start < 20)
  end)

  it("ends a rank that never stops computing", function()
    local start = perigee.clock()
    local e = raised(testing.ranks, 2, function(g)
      while g.rank == 1 do end -- luacheck: ignore 542
    end, { timeout = 0.3 })
    assert.equal("ETIMEDOUT", e.code)
    assert.equal(1, e.rank)
    assert.is_true(perigee.clock() - start < 20)
  end)

  it("leaves no thread and no descriptor", function()
    testing.ranks(2, function(g) g:barrier() end)
    collectgarbage()
    local threads_before, fds_before = threads(), descriptors()
    for _ = 1, 10 do
      testing.ranks(4, function(g) g:allreduce(1) end)
      pcall(testing.ranks, 2, function(g) if g.rank == 0 then error "x" end g:barrier() end)
    end
    assert.is_true(threads() <= threads_before)
    assert.is_true(descriptors() <= fds_before)
  end)

  it("refuses wrong arguments", function()
    assert.matches("a number of ranks expected", tostring(raised(testing.ranks, 0, print)))
    assert.matches("function expected, got nil", tostring(raised(testing.ranks, 1)))
    assert.matches("unknown option 'time'", tostring(raised(testing.ranks, 1, print, { time = 1 })))
  end)
end)
