-- checked: what must agree on all ranks and what need not, and what is said when it does not.
-- luacheck: ignore 431
local helpers = require "helpers"

describe("checked", function()
  it("lets everything pass that agrees, in order", function()
    for _, ranks in ipairs { 1, 2, 4 } do
      helpers.ranks_ok(ranks, function()
        local perigee = require "perigee"
        local world <close> = perigee.init { backend = "checked(native)", timeout = 20 }
        local r, n = world.rank, world.size
        local absmax = perigee.op { name = "absmax", reduce = function(acc, x) acc:max_(x) end }
        assert(world:allreduce(r + 1, { op = absmax }) == n)
        assert(world:allreduce(1, { timeout = 5 + r }) == n) -- timeouts are each rank's own
        -- sizes that may differ
        local outs = {}
        for i = 1, n do outs[i] = perigee.zeros("f32", i) end
        world:allgather(outs, perigee.full("f32", { r + 1 }, r))
        assert(outs[n][n] == n - 1)
        local sends, recvs = {}, {}
        for i = 1, n do sends[i], recvs[i] = i, r + 1 end
        local got = world:alltoall_base(perigee.full("i64", { n * (n + 1) // 2 }, r),
          { output_splits = recvs, input_splits = sends })
        assert(got[got.numel] == n - 1)
        local gathered = world:gather(r, { root = n - 1 })
        assert(r ~= n - 1 or gathered[1] == 0)
        local x = perigee.zeros("f64", 2)
        local parts
        if r == 0 then
          parts = {}
          for i = 1, n do parts[i] = perigee.full("f64", { 2 }, i) end
        end
        world:scatter(x, parts)
        assert(x[1] == r + 1)
        -- many at once, and a group of its own at the same time
        local row <close> = world:split(r % 2)
        local works = {}
        for i = 1, 40 do
          works[#works + 1] = world:allreduce(perigee.full("f32", { 3 }, i), { async = true })
          works[#works + 1] = row:broadcast(perigee.full("i32", { 1 }, r + i), { async = true })
        end
        for i = 40, 1, -1 do
          assert(works[2 * i - 1]:wait()[3] == i * n)
          assert(works[2 * i]:wait()[1] == i + r % 2)
        end
        -- messages are not compared
        if r == 0 and n > 1 then world:send(7, 1) elseif r == 1 then assert(world:recv(0, 0) == 7) end
        world:monitored_barrier()
      end, { world = false })
    end
  end)

  it("refuses what differs on every rank, with both sides, and the group goes on", function()
    for _, pair in ipairs {
      { "world:allreduce(t)", "world:broadcast(t, { root = 0 })", "allreduce f32[4] op=sum",
        "broadcast f32[4] root=0" },
      { "world:broadcast(t, { root = 0 })", "world:broadcast(t, { root = 1 })", "root=0", "root=1" },
      { "world:allreduce(t)", "world:allreduce(t:to 'f64')", "f32[4] op=sum", "f64[4] op=sum" },
      { "world:allreduce(t)", "world:allreduce(t:view(2, 2))", "f32[4]", "f32[2,2]" },
      { "world:allreduce(t)", "world:allreduce({ t, t:clone() })", "f32[4] op=sum", "2*f32[4] op=sum" },
      { "world:allreduce(t)", "world:allreduce(t, { op = 'max' })", "op=sum", "op=max" },
      { "world:allreduce(t, { op = perigee.premul_sum(0.5) })", "world:allreduce(t, { op = perigee.premul_sum(0.25) })",
        "op=premul_sum(0.5)", "op=premul_sum(0.25)" },
      { "world:barrier()", "world:reduce(t, { root = 1 })", "barrier (#2)", "reduce f32[4] op=sum root=1" },
      { "world:allgather(t)", "world:allgather({ t, t, t:narrow(1, 1, 2) }, t)", "out 3*f32[4] in f32[4]",
        "out 2*f32[4] f32[2] in f32[4]" },
      { "world:reduce_scatter({ t, t, t })", "world:reduce_scatter({ t:to 'f16', t:to 'f16', t:to 'f16' })",
        "in 3*f32[4]", "in 3*f16[4]" },
    } do
      local run = helpers.ranks_ok(3, ([[
        local world <close> = perigee.init { backend = "checked(native)", timeout = 20 }
        local t = perigee.ones("f32", 4)
        world:barrier()
        local mine = world:allreduce(1) -- #2 for nobody: only #1 so far was the barrier
        assert(mine == 3)
        local ok, e = pcall(function()
          if world.rank == 1 then
            %s
          else
            %s
          end
        end)
        assert(not ok and e.code == "EMISMATCH", tostring(e))
        assert(table.concat(e.ranks, ",") == "1" and e.seq == 3 and e.group == "world", tostring(e))
        print(e.op, e.message)
        print(e.traceback)
        assert(not world:failed())
        assert(world:allreduce(t)[1] == 3)
        world:barrier()
      ]]):format(pair[2], pair[1]), { world = false })
      for r = 1, 3 do
        local out = run.ranks[r].out
        assert.is_truthy(out:find("ranks call different operations: ranks 0,2: ", 1, true), out)
        for i = 3, 4 do
          local text = pair[i]:gsub("#2", "#3")
          assert.is_truthy(out:find(text, 1, true), text .. "\n" .. out)
        end
        assert.matches("; rank 1: .-, at .-script.lua:8\n", out)
        assert.matches("ranks 0,2: .-, at .-script.lua:10; ", out)
        assert.matches("\nrank 0: .-\nrank 1: .-\nrank 2: ", out)
        assert.equal(pair[r == 2 and 2 or 1]:match "world:([%w_]+)", out:match "^%S+")
      end
    end
  end)

  it("tells ranks that have made another number of calls", function()
    local run = helpers.ranks_ok(2, function()
      local perigee = require "perigee"
      local world <close> = perigee.init { backend = "checked(native)", timeout = 20 }
      -- refused at once: no call
      if world.rank == 0 then pcall(world.allreduce, world, perigee.zeros("bool", 2), { op = "avg" }) end
      world:barrier()
      local ok, e = pcall(function()
        if world.rank == 0 then world:allreduce(1) else world:allreduce(1) end
      end)
      assert(ok, tostring(e))
      local Layer = perigee.backend "skip"
      function Layer:barrier() return self.rank == 0 or self.inner:barrier() end
      local other <close> = perigee.init { backend = "skip(checked(native))", timeout = 20 }
      local failed, why = pcall(function()
        other:barrier() -- rank 1 is alone in it
        if other.rank == 1 then return end
        other:allreduce(1)
      end)
      assert(not failed and why.code == "EMISMATCH", tostring(why))
      print(why.message)
    end, { world = false })
    for r = 1, 2 do
      assert.matches("rank 0: allreduce f64%[1%] op=sum %(#2%), at .-; rank 1: barrier %(#1%), at ", run.ranks[r].out)
    end
  end)

  it("says what was waited for when a rank does not come", function()
    local run = helpers.ranks_ok(3, function()
      local perigee = require "perigee"
      local world <close> = perigee.init { backend = "checked(native)" }
      world:barrier()
      if world.rank == 2 then
        perigee.sleep(1)
        return
      end
      local ok, e = pcall(world.allreduce, world, perigee.zeros("f32", 5), { timeout = 0.4 })
      assert(not ok and e.code == "ETIMEDOUT" and e.op == "allreduce" and e.ranks[1] == 2, tostring(e))
      print(e.message)
    end, { world = false })
    for r = 1, 2 do
      assert.matches("missing ranks 2, while the ranks compared allreduce f32%[5%] op=sum %(#2%)", run.ranks[r].out)
    end
  end)

  it("finds the caller behind other layers, or does not look", function()
    for sites, pattern in pairs { ["true"] = "script.lua:%d+", ["false"] = "%(#1%)$" } do
      local run = helpers.ranks_ok(2, "local SITES = " .. sites .. [[

        local world <close> = perigee.init { backend = "log(retry(checked(native)))", timeout = 20,
          options = { checked = { sites = SITES }, log = { level = "error", to = function() end } } }
        local ok, e = pcall(world.broadcast, world, 1, { root = world.rank })
        assert(not ok and e.code == "EMISMATCH", tostring(e))
        io.write(e.message)
      ]], { world = false })
      for r = 1, 2 do assert.matches(pattern, run.ranks[r].out) end
    end
  end)
end)
