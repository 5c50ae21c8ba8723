-- Lua values between ranks, on threads of native groups and in the simulator: the same promises.
local helpers = require "helpers"
local perigee = require "perigee"
local testing = require "perigee.testing"

local concat = perigee.op { name = "concat", reduce = function(acc, x) return acc .. x end }
-- 2x2 matrices {a, b, c, d}: not commutative.
local product = perigee.op {
  name = "matrix product",
  reduce = function(m, x)
    return {
      m[1] * x[1] + m[2] * x[3], m[1] * x[2] + m[2] * x[4],
      m[3] * x[1] + m[4] * x[3], m[3] * x[2] + m[4] * x[4],
    }
  end,
}
local merge = perigee.op {
  name = "merge", commutative = true,
  reduce = function(acc, x) -- changes acc in place
    for k, v in pairs(x) do acc[k] = (acc[k] or 0) + v end
  end,
}

--- What f raises, and that the group works afterwards.
local function failure(world, f, ...)
  local e = helpers.raised(f, ...)
  assert.is_not_nil(e)
  assert.equal(world.size, world:allreduce(1))
  return e
end

for engine, run in pairs { ranks = testing.ranks, sim = testing.sim } do
  describe("reductions of values, " .. engine .. ":", function()
    it("strings, in rank order", function()
      for _, n in ipairs { 1, 2, 3, 5 } do
        local all = ""
        for r = 0, n - 1 do all = all .. ("<%d\0>"):format(r) end
        local results = run(n, function(world)
          local text = ("<%d\0>"):format(world.rank)
          assert.equal(world.rank == n - 1 and all or nil,
            world:reduce_object(text, { op = concat, root = n - 1, timeout = 20 }))
          return world:allreduce_object(text, { op = concat })
        end)
        for r = 1, n do assert.equal(all, results[r]) end
      end
    end)

    it("matrices, in rank order", function()
      local ms = { { 1, 2, 3, 4 }, { 0, 1, 1, 0 }, { 2, 0.5, 1, 1 }, { 1, 1, 0, 1 } }
      local expected = ms[1]
      for i = 2, 4 do expected = product.reduce(expected, ms[i]) end
      local results = run(4, function(world)
        local mine = ms[world.rank + 1]
        local result = world:allreduce_object(mine, { op = product })
        assert.is_false(result == mine)
        return result
      end)
      for r = 1, 4 do assert.same(expected, results[r]) end
    end)

    it("tables changed in place are copies, numbers keep their type", function()
      run(3, function(world)
        local mine = { shared = 1, ["of" .. world.rank] = 0.5 }
        assert.same({ shared = 3, of0 = 0.5, of1 = 0.5, of2 = 0.5 }, world:allreduce_object(mine, { op = merge }))
        assert.same({ shared = 1, ["of" .. world.rank] = 0.5 }, mine)
        local most = perigee.op { name = "most", reduce = math.max }
        assert.equal("integer", math.type(world:allreduce_object(world.rank, { op = most })))
        assert.equal("float", math.type(world:allreduce_object(world.rank + 0.0, { op = most })))
        local pick = perigee.op { name = "pick", reduce = function(a) return a end }
        assert.is_true(perigee.zeros("f16", 2):equal(world:allreduce_object(perigee.zeros("f16", 2), { op = pick })))
      end)
    end)

    it("give equal values even when the function does not", function()
      local n = 0
      local counter = perigee.op { name = "counter", reduce = function() n = n + 1 return n end }
      local results = run(3, function(world) return world:allreduce_object(0, { op = counter }) end)
      assert.same({ 2, 2, 2 }, { results[1], results[2], results[3] })
      assert.equal(2, n)
    end)

    it("fail on every rank, with who failed", function()
      local cases = {
        { "boom", "ELUA", "boom", function() error "boom" end },
        { "range", "ERANGE", "too far", function() error(perigee.error("ERANGE", "too far")) end },
        { "nothing", "ELUATYPE", "must return the new value: a number cannot be changed", function() end },
        { "result", "EINVAL", "value: function", function() return print end },
        { "table", "ELUA", "table: ", function() error {} end },
        {
          "waits", "EDEADLK", "a callback must not wait",
          function() _G.spec_world:allreduce_object(1, { op = concat }) end,
        },
        { "yields", "ELUA", "yield", function() coroutine.yield() end },
      }
      for _, case in ipairs(cases) do
        local op = perigee.op { name = case[1], reduce = case[4] }
        run(3, function(world)
          if world.rank == 0 then _G.spec_world = world end
          for _, method in ipairs { "allreduce_object", "reduce_object" } do
            -- In the simulator a rank is a coroutine of the schedule: it would just go on.
            if engine == "sim" and case[1] == "yields" then return end
            local e = failure(world, world[method], world, 7, { op = op })
            assert.equal(case[2], e.code, case[1] .. tostring(e))
            assert.matches(("%s: reduce op '%s' failed on rank 0: "):format(method, case[1]), e.message)
            assert.matches(case[3], e.message)
            assert.same({ 0 }, e.ranks)
            assert.equal(0, e.origin)
            assert.equal(world.rank, e.rank)
          end
        end)
      end
      _G.spec_world = nil
    end)

    it("refuse different ops and roots on every rank", function()
      local other = perigee.op { name = "other", reduce = function(a) return a end }
      run(3, function(world)
        local e = failure(world, world.allreduce_object, world, "x", { op = world.rank == 1 and other or concat })
        assert.equal("EMISMATCH", e.code)
        assert.same({ 1 }, e.ranks)
        e = failure(world, world.reduce_object, world, "x", { op = concat, root = world.rank == 2 and 1 or 0 })
        assert.equal("EMISMATCH", e.code)
        assert.same({ 2 }, e.ranks)
      end)
    end)
  end)

  describe("values between ranks, " .. engine .. ":", function()
    it("travel whole", function()
      local function tree(r)
        return {
          integer = r, float = r + 0.0, zero = -0.0, nan = 0 / 0, most = math.mininteger, inf = math.huge,
          text = ("a\0b"):rep(r * 1000), empty = {}, list = { 1, { 2, { 3 } } }, [r + 10] = false,
        }
      end
      local function check(r, v)
        assert.equal("integer", math.type(v.integer))
        assert.equal("float", math.type(v.float))
        assert.equal("-0.0", tostring(v.zero))
        assert.is_true(v.nan ~= v.nan)
        assert.is_nil(getmetatable(v))
        local want = tree(r)
        v.nan, want.nan = nil, nil
        assert.same(want, v)
      end
      run(4, function(world)
        local r, n = world.rank, world.size
        for root = 0, n - 1 do
          local v = world:broadcast_object(r == root and tree(root) or print, { root = root, timeout = 20 })
          check(root, v)
          local all = world:gather_object(tree(r), { root = root, timeout = 20 })
          assert.equal(r == root, all ~= nil)
          for i = 1, all and n or 0 do check(i - 1, all[i]) end
          local parts = r == root and { tree(0), tree(1), tree(2), tree(3) } or nil
          check(r, world:scatter_object(parts, { root = root, timeout = 20 }))
        end
        for i, v in ipairs(world:allgather_object(tree(r), { timeout = 20 })) do check(i - 1, v) end
        for _, dtype in ipairs(perigee.dtypes) do
          local t = perigee.arange("i32", 6):view(2, 3):to(dtype)
          assert.is_true(t:equal(world:broadcast_object { t }[1]))
        end
        -- Around the ring, with a tag, in the order they were sent.
        local right, left = (r + 1) % n, (r - 1) % n
        if r % 2 == 0 then
          for i = 1, 3 do world:send_object({ i, tree(r) }, right, { tag = 9, timeout = 20 }) end
        end
        for i = 1, 3 do
          if left % 2 == 0 then
            local got = world:recv_object(left, { tag = 9, timeout = 20 })
            assert.equal(i, got[1])
            check(left, got[2])
          end
        end
        if r % 2 == 1 then world:send_object(nil, right) end
        if left % 2 == 1 then assert.is_nil(world:recv_object(left)) end
      end)
    end)

    it("that are refused are errors on every rank at once", function()
      local refused = "rank 1 has a value that cannot be sent"
      run(3, function(world)
        local bad = world.rank == 1
        local wrong = { a = { 1, 2, print } }
        local function fails(own, method, ...)
          local e = failure(world, world[method], world, ...)
          assert.equal("EINVAL", e.code)
          assert.matches(bad and own or refused, e.message)
          if not bad then assert.same({ 1 }, e.ranks) end
        end
        local op = { op = merge }
        fails("value%.a%[3%]: function", "broadcast_object", bad and wrong or nil, { root = 1 })
        fails("value%.a%[3%]: function", "allgather_object", bad and wrong or {})
        fails("value%.a%[3%]: function", "gather_object", bad and wrong or {})
        fails("value%.a%[3%]: function", "allreduce_object", bad and wrong or {}, op)
        fails("value%.a%[3%]: function", "reduce_object", bad and wrong or {}, op)
        fails("value%[2%]%.a%[3%]: function", "scatter_object", bad and { 1, wrong, 3 } or nil, { root = 1 })
        local length = "a list with 3 values, one per rank, expected, got "
        fails(length .. 2, "scatter_object", bad and { 1, 2 } or nil, { root = 1 })
        fails(length .. 4, "scatter_object", bad and { 1, 2, 3, 4 } or nil, { root = 1 })
        fails("one value per rank expected, got nil", "scatter_object", nil, { root = 1 })
        fails("one value per rank expected, got string", "scatter_object", "text", { root = 1 })
        -- With its field n a list may hold nil.
        assert.equal(world.rank == 2 and "c" or nil,
          world:scatter_object(bad and table.pack(nil, nil, "c") or nil, { root = 1 }))
        if bad then
          assert.matches("value%.a%[3%]: function", helpers.raised(world.send_object, world, wrong, 0).message)
        elseif world.rank == 0 then
          local e = helpers.raised(world.recv_object, world, 1)
          assert.matches(refused, e.message)
          assert.same({ 1 }, e.ranks)
        end
        assert.equal(3, world:allreduce(1))
      end)
    end)

    it("have a deadline", function()
      local e = helpers.raised(run, 2, function(world)
        if world.rank == 0 then world:recv_object(1, { timeout = 0.05 }) end
      end)
      assert.is_true(e.code == "ETIMEDOUT" or e.code == "EPEERCLOSED", tostring(e))
    end)
  end)
end
