-- What the ranks see when one of them dies, is late, calls something else, aborts or closes: over both transports.
local support = require "cli.support"

-- Put in front of every script: runs f, expects an error object, prints "<code> <ranks> <milliseconds>" and the text.
local prelude = [[
local perigee = require "perigee"
local world = perigee.init()
local rank, size = world.rank, world.size
local function now() return perigee.clock() end
local function attempt(f)
  local started = now()
  local ok, e = pcall(f)
  local ms = math.floor((now() - started) * 1000)
  if ok then print("OK", "-", ms) return end
  if type(e) ~= "table" then error(e, 0) end
  print(("%s [%s] %d | %s"):format(e.code, table.concat(e.ranks or {}, ","), ms, tostring(e)))
  return e
end
local function die() os.execute("kill -9 " .. io.open("/proc/self/stat"):read "n") end
local t = perigee.tensor("f32", { 1, 2, 3, 4 })
]]

-- Run a script on n ranks; returns rank -> { code, ranks, ms, text } of the first attempt line of each rank, and the
-- run.
local function faults(transport, n, body, seconds)
  local run = support.bash(([[
    export PERIGEE_TRANSPORT=%s PERIGEE_TIMEOUT=20
    timeout -k 2 %d $P run -n %d --keep-going --prefix always $D/s.lua
  ]]):format(transport, seconds or 30, n), { ["s.lua"] = prelude .. body })
  local seen = {}
  for _, line in ipairs(support.lines(run.out)) do
    local r, code, ranks, ms, text = line:match "^%[(%d+)%] (E%w+) %[([%d,]*)%] (%d+) | (.*)$"
    r = tonumber(r)
    if r and not seen[r] then seen[r] = { code = code, ranks = ranks, ms = tonumber(ms), text = text } end
  end
  return seen, run
end

for _, transport in ipairs { "shm", "tcp" } do
  describe("over " .. transport, function()
    after_each(support.cleanup)

    for _, n in ipairs { 2, 4 } do
      it(("a killed rank fails the operation of all %d others"):format(n - 1), function()
        local seen, run = faults(transport, n, [[
          world:barrier()
          if rank == size - 1 then
            os.execute "sleep 0.3"
            die()
          end
          attempt(function() world:allreduce(t) end)
        ]])
        for r = 0, n - 2 do
          assert.is_truthy(seen[r], run.out .. run.err)
          assert.equal("EPEERDEAD", seen[r].code, seen[r].text)
          assert.equal(tostring(n - 1), seen[r].ranks)
          assert.is_true(seen[r].ms < 10000, seen[r].ms)
        end
      end)
    end

    it("a killed rank fails a receive, a send of much data, and what was queued", function()
      local seen, run = faults(transport, 3, [[
        local big = perigee.zeros("f32", 1 << 20)
        world:barrier()
        if rank == 2 then os.execute "sleep 0.2" die() end
        if rank == 0 then attempt(function() world:recv(t, 2) end) end
        if rank == 1 then
          local works = {}
          for i = 1, 5 do works[i] = world:allreduce(perigee.zeros("f32", 8), { async = true }) end
          attempt(function() world:send(big, 2) end)
          for i = 1, 5 do
            local e = attempt(function() works[i]:wait() end)
            assert(e and works[i]:is_completed() and works[i]:status() ~= "done")
          end
        end
      ]])
      assert.equal("EPEERDEAD", seen[0] and seen[0].code, run.out .. run.err)
      assert.equal("EPEERDEAD", seen[1] and seen[1].code, run.out .. run.err)
      assert.equal("2", seen[0].ranks)
      local _, count = run.out:gsub("%[1%] EPEERDEAD", "")
      assert.equal(6, count, run.out)
    end)

    it("a missing call times out naming who is missing", function()
      local seen, run = faults(transport, 4, [[
        world:barrier()
        if rank == 1 or rank == 3 then os.execute "sleep 2" return end
        attempt(function() world:allreduce(t, { timeout = 0.5 }) end)
      ]])
      for _, r in ipairs { 0, 2 } do
        assert.equal("ETIMEDOUT", seen[r] and seen[r].code, run.out .. run.err)
        assert.equal("1,3", seen[r].ranks, seen[r].text)
        local said = "allreduce #2 on world: timed out after 0.5 s, missing ranks 1,3"
        assert.is_truthy(seen[r].text:find(said, 1, true), seen[r].text)
        assert.is_true(seen[r].ms >= 450 and seen[r].ms < 10000, seen[r].ms)
      end
    end)

    it("different calls are a mismatch on every rank, naming both sides", function()
      for _, pair in ipairs {
        { "world:allreduce(t)", "world:broadcast(t, { root = 0 })" },
        { "world:broadcast(t, { root = 0 })", "world:broadcast(t, { root = 1 })" },
        { "world:allreduce(t)", "world:allreduce(perigee.zeros('f32', 5))" },
        { "world:allreduce(t)", "world:allreduce(perigee.zeros('f64', 4))" },
        { "world:allreduce(t)", "world:allreduce(t, { op = 'max' })" },
        { "world:barrier()", "world:reduce(t, { root = 1 })" },
        { "world:reduce(t, { root = 0 })", "world:allgather(t)" },
      } do
        local seen, run = faults(transport, 3, ([[
          world:barrier()
          os.execute "sleep 0.1" -- news of a failure may overtake the end of an operation before it
          attempt(function()
            if rank == 1 then %s else %s end
            world:barrier() -- who only gave may have returned before anybody saw it
          end)
        ]]):format(pair[1], pair[2]))
        for r = 0, 2 do
          local code = seen[r] and seen[r].code
          if code == "EABORTED" and (pair[1] .. pair[2]):find "root" then code = "EMISMATCH" end -- in the barrier
          assert.equal("EMISMATCH", code, pair[1] .. " | " .. pair[2] .. "\n" .. run.out .. run.err)
          assert.is_true(seen[r].ms < 10000, seen[r].ms)
          assert.is_truthy(seen[r].text:find "called", seen[r].text)
        end
      end
    end)

    it("abort ends what is pending on all ranks, and later calls fail", function()
      local seen, run = faults(transport, 3, [[
        world:barrier()
        if rank == 2 then
          os.execute "sleep 0.2"
          world:abort "enough"
          attempt(function() world:allreduce(t) end)
        else
          attempt(function() world:allreduce(t) end)
        end
        local ok, e = pcall(world.barrier, world)
        assert(not ok and e.code == "EABORTED", tostring(e))
        assert(world:failed().code == "EABORTED")
      ]])
      for r = 0, 2 do
        assert.equal("EABORTED", seen[r] and seen[r].code, run.out .. run.err)
        assert.is_truthy(seen[r].text:find("enough", 1, true), seen[r].text)
      end
      assert.equal(0, run.code, run.err)
    end)

    it("closing with works pending does not hang, and the peers are told", function()
      local seen, run = faults(transport, 2, [[
        world:barrier()
        if rank == 0 then
          local work = world:allreduce(t, { async = true })
          local recv = world:recv(perigee.zeros("f32", 4), 1, { async = true })
          local started = now()
          world:close()
          assert(now() - started < 10, "close took long")
          for _, w in ipairs { work, recv } do
            assert(w:is_completed() and w:error().code == "ECLOSED", tostring(w:error()))
          end
          local ok, e = pcall(world.barrier, world)
          assert(not ok and e.code == "ECLOSED")
          print "closed"
        else
          attempt(function() world:barrier(); world:barrier() end)
        end
      ]])
      assert.is_truthy(run.out:find("[0] closed", 1, true), run.out .. run.err)
      assert.is_truthy(seen[1], run.out .. run.err)
      assert.is_true(seen[1].code == "EPEERCLOSED" or seen[1].code == "EMISMATCH", seen[1].text)
    end)

    it("a wait of its own time leaves the work pending", function()
      local _, run = faults(transport, 2, [[
        world:barrier()
        if rank == 1 then world.store:get("waited", 30) end
        local work = world:allreduce(t, { async = true })
        if rank == 0 then
          local value, e = work:wait(0.1)
          assert(value == nil and e.code == "ETIMEDOUT" and work:status() == "pending", tostring(e))
          world.store:set("waited", "")
        end
        work:wait()
        assert(work:status() == "done" and t[2] == 4)
        print "done"
      ]])
      assert.equal(0, run.code, run.out .. run.err)
      local _, count = run.out:gsub("done", "")
      assert.equal(2, count, run.out)
    end)

    it("a message that times out is taken back and the group goes on", function()
      local seen, run = faults(transport, 2, [[
        world:barrier()
        if rank == 0 then attempt(function() world:recv(t, 1, { timeout = 0.2 }) end) end
        world:barrier()
        t:fill_(9 * rank)
        if rank == 1 then world:send(t, 0) else world:recv(t, 1) assert(t[1] == 9) end
        print "goes on"
      ]])
      assert.equal("ETIMEDOUT", seen[0] and seen[0].code, run.out .. run.err)
      assert.equal("1", seen[0].ranks)
      assert.equal(0, run.code, run.out .. run.err)
    end)

    it("data sent right before an orderly end arrives", function()
      local _, run = faults(transport, 2, [[
        local big = perigee.zeros("f32", 300000)
        if rank == 0 then
          big:fill_(7)
          world:send(big, 1)
        else
          os.execute "sleep 0.3"
          world:recv(big, 0)
          assert(big[300000] == 7)
          print "arrived"
        end
        world:close()
      ]])
      assert.equal(0, run.code, run.out .. run.err)
      assert.is_truthy(run.out:find("arrived", 1, true), run.out)
    end)
  end)
end

describe("wrong use", function()
  after_each(support.cleanup)
  it("is an error on the caller that names the argument, and leaves the group usable", function()
    local run = support.run("-n 2 $D/s.lua", { ["s.lua"] = prelude .. [[
      local function refused(code, text, f, ...)
        local ok, e = pcall(f, ...)
        assert(not ok, "not refused: " .. text)
        assert(type(e) == "string" or e.code == code, tostring(e) .. " instead of " .. code)
        assert(tostring(e):find(text, 1, true), ("'%s' does not say '%s'"):format(tostring(e), text))
      end
      local f64 = perigee.zeros("f64", 4)
      refused("EDTYPE", "tensors[2]", world.allreduce, world, { t, f64 })
      refused("ESHAPE", "tensors[2]", world.allreduce, world, { t, perigee.zeros("f32", 5) })
      refused("EINVAL", "root: rank 2 is outside 0..1", world.broadcast, world, t, { root = 2 })
      refused("EINVAL", "root: rank -1 is outside 0..1", world.broadcast, world, t, { root = -1 })
      refused("EDTYPE", "op band is not defined for f32", world.allreduce, world, t, { op = "band" })
      refused("EINVAL", "destination: rank 5 is outside 0..1", world.send, world, t, 5)
      refused("EINVAL", "this rank itself", world.send, world, t, rank)
      refused("EINVAL", "tag: -1 is negative", world.send, world, t, 1 - rank, { tag = -1 })
      local m = perigee.zeros("f32", 4, 4)
      refused("ENOTSUP", "non-contiguous", world.allreduce, world, m:narrow(2, 1, 2))
      refused("ESHAPE", "8 expected", world.allgather_into_tensor, world, perigee.zeros("f32", 7), t)
      refused("EINVAL", "did you mean 'timeout'", world.allreduce, world, t, { timeot = 1 })
      world:allreduce(t)
      assert(t[4] == 8)
      world:close()
      refused("ECLOSED", "closed", world.allreduce, world, t)
      print "ok"
    ]] })
    assert.equal(0, run.code, run.out .. run.err)
    local _, count = run.out:gsub("ok", "")
    assert.equal(2, count)
  end)
end)
