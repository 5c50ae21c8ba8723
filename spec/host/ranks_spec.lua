-- Several real processes: the bindings and scripted layers over a transport.
local helpers = require "helpers"

for _, transport in ipairs { "shm", "tcp" } do
  describe("ranks over " .. transport, function()
    it("run every friendly form", function()
      helpers.ranks_ok(3, function()
        local perigee, world = perigee, world -- luacheck: ignore
        local r, n = world.rank, world.size
        local function eq(a, b, what)
          if a ~= b then error(("%s: %s ~= %s"):format(what, tostring(a), tostring(b)), 2) end
        end
        local t = perigee.tensor("f32", { r, r + 10 })
        world:allreduce(t)
        eq(t[1], 3, "allreduce") eq(t[2], 33, "allreduce")
        eq(world:allreduce(r), 3, "number")
        eq(world:allreduce(r == 0 and 1 or 0.5), 2.0, "mixed numbers")
        eq(world:allreduce(1 << r, { op = "bor" }), 7, "bor")
        eq(world:allreduce(r, { op = "max" }), 2, "max")
        eq(world:broadcast(r == 1 and 7.5 or 0, { root = 1 }), 7.5, "broadcast number")
        local list = world:allgather(r * 2)
        for i = 1, n do eq(list[i], 2 * (i - 1), "allgather number") end
        local tensors = world:allgather(perigee.tensor("i32", { r, -r }))
        for i = 1, n do eq(tensors[i][2], 1 - i, "allgather") end
        local got = world:gather(perigee.tensor("i32", { r }), { root = 2 })
        if r == 2 then eq(got[2][1], 1, "gather") else eq(got, nil, "gather elsewhere") end
        local numbers = world:gather(r, { root = 0 })
        eq(numbers and numbers[3], r == 0 and 2 or nil, "gather numbers")
        local out = perigee.zeros("f64", 1)
        local parts
        if r == 0 then
          parts = {}
          for i = 1, n do parts[i] = perigee.tensor("f64", { i * i }) end
        end
        world:scatter(out, parts, { root = 0 })
        eq(out[1], (r + 1) ^ 2, "scatter")
        eq(world:allgather_into_tensor(perigee.tensor("i64", { r })):sum(), 3, "into tensor")
        local mine = {}
        for i = 1, n do mine[i] = perigee.tensor("i64", { r * 10 + i }) end
        eq(world:reduce_scatter(mine)[1], 30 + 3 * (r + 1), "reduce_scatter")
        eq(world:alltoall(mine)[2][1], 10 + r + 1, "alltoall")
        eq(world:reduce_scatter_tensor(perigee.ones("i64", 6)):sum(), 6, "reduce_scatter_tensor")
        local rows = world:alltoall_base(perigee.full("i64", { n }, r))
        eq(rows[3], 2, "alltoall_base")
        -- uneven: rank r sends i + 1 rows to rank i
        local sends, recvs = {}, {}
        for i = 1, n do sends[i], recvs[i] = i, r + 1 end
        local uneven = world:alltoall_base(perigee.full("i64", { 6 }, r), { output_splits = recvs,
          input_splits = sends })
        eq(uneven.numel, 3 * (r + 1), "uneven")
        world:barrier()
        world:monitored_barrier { wait_all_ranks = true }
      end, { transport = transport })
    end)

    it("send and receive, and tell the source", function()
      helpers.ranks_ok(2, function()
        local perigee, world = perigee, world -- luacheck: ignore
        local other = 1 - world.rank
        local t = perigee.tensor("f32", { world.rank + 1, 5 })
        local s = world:send(t, other, { tag = 7, async = true })
        local u = perigee.zeros("f32", 2)
        assert(rawequal(u, world:recv(u, other, { tag = 7 })))
        s:wait()
        assert(u[1] == other + 1)
        if world.rank == 0 then
          world:send({ t }, 1, 3, { timeout = 5 })
          world:send(2.5, 1)
        else
          local v, source = world:recv_anysource(perigee.zeros("f32", 2), { tag = 3 })
          assert(v[1] == 1 and source == 0)
          local w = world:recv(0, 0, { async = true })
          assert(w:wait() == 2.5 and w:source_rank() == 0)
        end
        local w = world:recv(perigee.zeros("f32", 1), other, { async = true, timeout = 20 })
        local v, e = w:wait(0.05)
        assert(v == nil and e.code == "ETIMEDOUT" and w:status() == "pending")
        world:barrier()
        world:send(perigee.ones("f32", 1), other)
        assert(w:wait(10)[1] == 1)
        local ok, err = pcall(world.recv, world, perigee.zeros("f32", 1), other, { timeout = 0.1 })
        assert(not ok and err.code == "ETIMEDOUT" and err.op == "recv", tostring(err))
        world:barrier()
      end, { transport = transport })
    end)

    it("run overrides of every kind of result", function()
      helpers.ranks_ok(3, [[
        local B = perigee.backend "mix"
        function B:allreduce(tensors, opts)
          local half = tensors[1]:to("f16")
          return self.inner:allreduce({ half }, opts):map(function() tensors[1]:copy_(half) end)
        end
        function B:broadcast(tensors, opts)
          self.inner:broadcast(tensors, opts):wait()
          return true
        end
        function B:send(tensors, dst, tag, opts)
          assert(#tensors == 1 and math.type(dst) == "integer" and tag == 9)
          return self.inner:send(tensors, dst, tag, opts)
        end
        local g = perigee.init { backend = "mix" }
        for i = 1, 20 do
          local t = perigee.tensor("f32", { g.rank, i })
          g:allreduce(t)
          assert(t[1] == 3 and t[2] == 3 * i)
        end
        local works = {}
        for i = 1, 8 do works[i] = g:allreduce(perigee.full("f32", 4, g.rank + i), { async = true }) end
        for i = 8, 1, -1 do assert(works[i]:wait(10)[1] == 3 + 3 * i) end
        assert(g:broadcast(g.rank == 2 and 5 or 0, { root = 2 }) == 5)
        if g.rank == 0 then g:send(perigee.ones("f32", 2), 1, { tag = 9 }) end
        if g.rank == 1 then assert(g:recv(perigee.zeros("f32", 2), 0, { tag = 9 }):sum() == 2) end
        g:close()
      ]], { transport = transport })
    end)

    it("reduce with a function in Lua, in rank order", function()
      helpers.ranks_ok(3, [[
        local op = perigee.op { name = "decimal", reduce = function(acc, x) acc:mul_(10):add_(x) end }
        assert(world:allreduce(perigee.tensor("f64", { world.rank + 1 }), { op = op })[1] == 123)
        local kept
        local replaced = perigee.op { name = "last", reduce = function(_, x) kept = x return x end }
        assert(world:allreduce(perigee.tensor("f64", { world.rank }), { op = replaced })[1] == 2)
        if kept then assert(not pcall(kept.sum, kept)) end
        local bad = perigee.op { name = "bad", reduce = function() error "in reduce" end }
        local ok, e = pcall(world.allreduce, world, perigee.zeros("f32", 4), { op = bad, timeout = 5 })
        assert(not ok)
        if e.code == "ELUA" then assert(e.message:find "in reduce" and e.traceback, tostring(e)) end
      ]], { transport = transport, timeout = 40 })
    end)

    it("end with the script's error and its traceback", function()
      local result = helpers.ranks(2, [[
        local B = perigee.backend "raises"
        function B:allreduce() error "told you" end
        local g = perigee.init { backend = "raises" }
        g:allreduce(1)
      ]], { transport = transport })
      assert.is_false(result.ok)
      assert.matches("told you", result.out)
      assert.matches("stack traceback", result.out)
    end)
  end)
end

describe("several groups", function()
  it("are independent, and split inherits the stack", function()
    helpers.ranks_ok(4, [[
      local calls = 0
      local B = perigee.backend "counting"
      function B:allreduce(tensors, opts)
        calls = calls + 1
        return self.inner:allreduce(tensors, opts)
      end
      local g = perigee.init { backend = "counting", timeout = 20 }
      local half = g:split(g.rank % 2, -g.rank)
      assert(half.size == 2 and half.rank == (g.rank < 2 and 1 or 0), half.rank)
      assert(half:to_world(half.rank) == g.rank)
      assert(half:allreduce(g.rank) == (g.rank % 2 == 0 and 2 or 4))
      assert(calls == 1)
      local sub = g:subgroup({ 3, 0 }, { name = "ends" })
      assert((sub ~= nil) == (g.rank == 0 or g.rank == 3))
      if sub then assert(sub:broadcast(g.rank, { root = 0 }) == 3) sub:close() end
      half:close()
      g:barrier()
      g:close()
    ]])
  end)
end)
