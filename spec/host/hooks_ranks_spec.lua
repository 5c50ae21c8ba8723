-- Hooks where operations need several processes.
local helpers = require "helpers"

-- c10d's WorkHookTest, by its names.
describe("on completion hook", function()
  local function run(body, opts) return helpers.ranks_ok(2, body, opts) end

  it("on_completion_hook_broadcast", function()
    run(function()
      local perigee, world = perigee, world -- luacheck: ignore
      local fired, durations = 0, {}
      world:register_on_completion_hook(function(info)
        fired = fired + 1
        durations[fired] = info.active_duration
      end)
      local t = perigee.full("f32", { 2, 3 }, world.rank)
      world:broadcast(t, { async = true })
      world:broadcast(t, { async = true })
      assert(world:wait_for_pending_works())
      world:close()
      assert(fired == 2, fired)
      assert(durations[1] > 0 and durations[2] > 0)
      assert(t:sum() == 0)
    end)
  end)

  it("on_completion_hook_mixed_ops", function()
    run(function()
      local perigee, world = perigee, world -- luacheck: ignore
      local fired, ops = 0, {}
      world:register_on_completion_hook(function(info)
        fired = fired + 1
        ops[fired] = info.op_type
        assert(info.active_duration > 0 and info.status == "done")
      end)
      local t = perigee.ones("f32", 2, 3)
      local outputs = { perigee.zeros("f32", 2, 3), perigee.zeros("f32", 2, 3) }
      world:allreduce(t, { async = true })
      world:allgather({ outputs }, { t }, { async = true })
      world:allreduce(t, { async = true })
      assert(world:wait_for_pending_works())
      world:close()
      assert(fired == 3, fired)
      assert(table.concat(ops, " ") == "allreduce allgather allreduce")
      assert(t:sum() == 24 and outputs[1]:sum() == 12 and outputs[2]:sum() == 12)
    end)
  end)

  it("on_completion_hook_with_ddp", function()
    run(function() -- parameters are broadcast, then gradients are reduced bucket by bucket while others are made
      local perigee, world = perigee, world -- luacheck: ignore
      local seen, bad = {}, 0
      world:register_on_completion_hook(function(info)
        seen[info.op_type] = (seen[info.op_type] or 0) + 1
        if info.active_duration <= 0 then bad = bad + 1 end
      end)
      local params = {}
      for i = 1, 4 do params[i] = perigee.full("f32", { 100 }, world.rank + i) end
      for i = 1, 4 do world:broadcast(params[i], { async = true }) end
      assert(world:wait_for_pending_works())
      assert(seen.broadcast >= 1)
      local works = {}
      for i = 1, 4 do
        works[i] = world:allreduce(perigee.ones("f32", 100), { op = "avg", async = true })
      end
      for i = 1, 4 do assert(works[i]:wait():sum() == 100) end
      assert(world:wait_for_pending_works())
      world:close()
      assert(seen.allreduce == 4 and seen.broadcast == 4 and bad == 0)
    end)
  end)

  it("on_completion_hook_all_gather_object", function()
    run(function()
      local world = world -- luacheck: ignore
      local ops, others = 0, 0
      world:register_on_completion_hook(function(info)
        if info.op_type:find "^allgather" then ops = ops + 1 else others = others + 1 end
      end)
      local all = world:allgather_object { rank = world.rank, text = ("x"):rep(1000 * world.rank) }
      assert(all[1].rank == 0 and #all[2].text == 1000)
      assert(world:wait_for_pending_works())
      world:close()
      assert(ops + others == 2, "sizes, then payload")
      assert(ops >= 1)
    end)
  end)

  it("on_completion_hook_seq", function()
    run(function()
      local perigee, world = perigee, world -- luacheck: ignore
      local last, works = 0, 0
      world:register_on_completion_hook(function(info)
        assert(info.seq == last + 1)
        last = info.seq
      end)
      local t = perigee.ones("f32", 8)
      for _ = 1, 3 do
        world:allreduce(t, { async = true })
        works = works + 1
      end
      assert(world:wait_for_pending_works())
      assert(last == works and works == 3 and world.seq == 3)
    end)
  end)
end)

describe("hooks of several ranks", function()
  for _, transport in ipairs { "shm", "tcp" } do
    it("tell of messages over " .. transport, function()
      helpers.ranks_ok(2, function()
        local perigee, world = perigee, world -- luacheck: ignore
        local log = {}
        world:register_on_completion_hook(function(info)
          log[#log + 1] = ("%s %d %d %s"):format(info.op_type, info.peer or -1, info.bytes, info.status)
        end)
        local t = perigee.ones("f32", 4)
        if world.rank == 0 then
          world:send(t, 1)
          world:send(t, 1, { async = true })
        else
          world:recv(t, 0, { async = true })
          world:recv_anysource(t)
        end
        assert(world:wait_for_pending_works())
        table.sort(log)
        local text = table.concat(log, ", ")
        assert(text == (world.rank == 0 and "send 1 16 done, send 1 16 done"
          or "recv 0 16 done, recv_anysource -1 16 done"), text)
      end, { transport = transport })
    end)
  end

  it("tell of stalls while the operation is under way, once for each limit", function()
    helpers.ranks_ok(2, function()
      local perigee, world = perigee, world -- luacheck: ignore
      local log, n = {}, 0
      world:on("stall", function(info)
        log[#log + 1] = ("soon %s %s"):format(info.op_type, info.status)
        assert(info.active_duration >= 0.05 and info.time_finished == nil)
        n = n + 1
        if n == 1 then world.store:set("stalled", "1") end
      end, { after = 0.05 })
      world:on("stall", function() log[#log + 1] = "never" end, { after = 3600 })
      world:on("done", function() log[#log + 1] = "done" end)
      if world.rank == 1 then world.store:wait("stalled") end
      world:barrier()
      assert(world:wait_for_pending_works())
      if world.rank == 0 then
        local text = table.concat(log, ", ")
        assert(text == "soon barrier pending, done", text)
      end
    end)
  end)

  it("tell of an abort once on every rank, with the cause", function()
    helpers.ranks_ok(2, function()
      local perigee, world = perigee, world -- luacheck: ignore
      local causes = {}
      world:on("abort", function(info)
        assert(info.event == "abort" and info.status == "aborted" and info.seq == 0)
        causes[#causes + 1] = info.error
      end)
      world:barrier()
      if world.rank == 0 then world:abort "enough of it" end
      local until_ = perigee.clock() + 20
      while #causes == 0 and perigee.clock() < until_ do
        perigee.step()
        perigee.sleep(0.001)
      end
      pcall(world.barrier, world)
      if world.rank == 0 then world:abort "again" end
      world:close()
      assert(#causes == 1, #causes)
      assert(causes[1].code == "EABORTED" and causes[1].message:find("enough of it", 1, true))
    end)
  end)

  it("tell of a mismatch as the failure of the group", function()
    helpers.ranks_ok(2, function()
      local perigee, world = perigee, world -- luacheck: ignore
      local codes, ends = {}, {}
      world:on("abort", function(info) codes[#codes + 1] = info.error.code end)
      world:on("error", function(info) ends[#ends + 1] = info.error.code end)
      local ok = pcall(world.allreduce, world, perigee.ones("f32", 4 + world.rank))
      assert(not ok)
      world:close()
      assert(#codes == 1 and codes[1] == "EMISMATCH", codes[1])
      assert(#ends == 1 and ends[1] == "EMISMATCH", ends[1])
    end)
  end)
end)
