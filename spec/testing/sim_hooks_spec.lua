-- Hooks of simulated worlds keep the promises of those of real ones.
local perigee = require "perigee"
local testing = require "perigee.testing"

describe("hooks of simulated worlds", function()
  after_each(function() perigee.on_hook_error = nil end)

  it("tell the same story", function()
    local logs = testing.sim(3, function(world)
      local log = {}
      for _, event in ipairs { "start", "done", "error" } do
        world:on(event, function(info)
          assert(event == "start" or info.active_duration > 0)
          log[#log + 1] = ("%s %s#%d %s %d"):format(info.event, info.op_type, info.seq, info.status, info.bytes)
        end)
      end
      world:allreduce(perigee.ones("f32", 2))
      world:barrier { async = true }
      assert(world:wait_for_pending_works())
      return log
    end)
    for r = 1, 3 do
      assert.same({ "start allreduce#1 pending 8", "done allreduce#1 done 8", "start barrier#2 pending 0",
        "done barrier#2 done 0" }, logs[r])
    end
  end)

  it("remove, raise, register twice, issue work, refuse waits", function()
    local handled = 0
    perigee.on_hook_error = function() handled = handled + 1 end
    testing.sim(2, function(world)
      local n, refused, completed = 0, nil, 0
      local function f() n = n + 1 end
      world:register_on_completion_hook(function() completed = completed + 1 end)
      local a = world:on("done", f)
      world:on("done", f)
      local bad
      bad = world:on("done", function()
        bad:remove()
        local _, e = pcall(world.barrier, world)
        refused = e.code
        world:barrier { async = true }
        error "boom"
      end)
      world:barrier()
      local ok, e = pcall(world.wait_for_pending_works, world)
      assert(not ok and e.count == 1 and e.message:find("boom", 1, true) and e.traceback)
      assert(n == 4 and refused == "EDEADLK" and bad.errors == 1 and completed == 2)
      a:remove()
      world:barrier()
      assert(world:wait_for_pending_works())
      assert(n == 5 and a.calls == 2)
      world:close()
      assert(not pcall(world.on, world, "done", f))
    end)
    assert.equal(2, handled)
  end)

  it("tell of stalls in virtual time, timeouts and aborts", function()
    local results = testing.sim(2, function(world)
      local log = {}
      world:on("stall", function(info) log[#log + 1] = ("stall %g"):format(info.active_duration) end, { after = 3 })
      world:on("error", function(info) log[#log + 1] = "error " .. info.status end)
      world:on("abort", function(info) log[#log + 1] = "abort " .. info.error.code end)
      if world.rank == 0 then pcall(world.barrier, world, { timeout = 5 }) end
      world:wait_for_pending_works()
      return log
    end)
    assert.same("stall 3", results[1][1])
    table.sort(results[1])
    assert.same({ "abort ETIMEDOUT", "error timeout", "stall 3" }, results[1])
    assert.same({ "abort ETIMEDOUT" }, results[2])
  end)

  it("run what has ended when the group closes", function()
    local results = testing.sim(2, function(world)
      local n = 0
      world:on("done", function() n = n + 1 end)
      for _ = 1, 5 do world:barrier() end
      world:close()
      local at_close = n
      return at_close
    end)
    assert.same({ 5, 5, n = 2 }, results)
  end)
end)
