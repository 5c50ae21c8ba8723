-- hierarchical: the same results as one level, in order, and failures that reach every row.
-- luacheck: ignore 431
local helpers = require "helpers"

--- Outputs of the ranks of a run, as a list of their lines that look like results: "<code> <ranks> <ms> <text>".
local function outcomes(run)
  local list = {}
  for i, rank in ipairs(run.ranks) do
    local code, ranks, ms, text = rank.out:match "result (%S+) %[([%d,]*)%] (%d+) ([^\n]*)"
    list[i] = { code = code, ranks = ranks, ms = tonumber(ms), text = text }
  end
  return list
end

describe("hierarchical", function()
  after_each(helpers.close_all)

  for _, case in ipairs {
    { n = 4, how = "{ local_size = 2 }" },
    { n = 4, how = "{ group_of = function(r) return r == 3 and 'b' or 'a' end }" },
    { n = 5, how = "{ group_of = function(r) return r % 2 end }" },
    { n = 3, how = "{ local_size = 2 }" },
    { n = 2, how = "{ local_size = 2 }" },
    { n = 1, how = "{ local_size = 2 }" },
  } do
    it(("computes what one level does, %d ranks, %s"):format(case.n, case.how), function()
      helpers.ranks_ok(case.n, "local OPTIONS = " .. case.how .. [[

        local world <close> = perigee.init { backend = "hierarchical(native)", options = { hierarchical = OPTIONS } }
        local plain <close> = perigee.init { backend = "native" }
        local r, n = world.rank, world.size
        local absmax = perigee.op { name = "absmax", commutative = true, reduce = function(acc, x)
          acc:abs_():max_(x:abs()) end }
        local last = perigee.op { name = "last", reduce = function(acc, x) acc:copy_(x) end }
        for _, dtype in ipairs { "f32", "f64", "i32", "bf16" } do
          for _, op in ipairs { "sum", "product", "min", "max", "avg", "bxor", absmax, last,
              perigee.premul_sum(0.5) } do
            local fits = (op ~= "bxor" or dtype == "i32")
              and (type(op) == "string" or not op.factor or dtype ~= "i32")
            for _, copies in ipairs(fits and { 1, 3 } or {}) do
              local function tensors()
                local list = {}
                for i = 1, copies do list[i] = perigee.tensor(dtype, { r + 1, 2 * i, -r, 4 }) end
                return list
              end
              local ours, theirs = tensors(), tensors()
              world:allreduce(ours, { op = op })
              plain:allreduce(theirs, { op = op })
              for i = 1, copies do
                assert(ours[i]:allclose(theirs[i], 1e-6), ("%s %s: %s, plain %s"):format(dtype,
                  tostring(op), tostring(ours[i]), tostring(theirs[i])))
              end
            end
          end
        end
        for root = 0, n - 1 do
          local list = { perigee.full("f32", { 3 }, r), perigee.full("f32", { 3 }, r + 100) }
          world:broadcast(list, { root = root })
          assert(list[1][3] == root and list[2][1] == root)
          assert(world:broadcast(r, { root = root }) == root)
        end
        assert(world:allreduce(r + 1) == n * (n + 1) // 2)
        world:barrier()
        assert(#world:allgather(r) == n)
        local works = {}
        for i = 1, 30 do
          works[i] = i % 3 == 0 and world:broadcast(perigee.full("f32", { 2 }, r + i), { root = i % n, async = true })
            or world:allreduce(perigee.full("f32", { 2 }, i), { async = true })
        end
        for i = 30, 1, -1 do
          assert(works[i]:wait()[2] == (i % 3 == 0 and i % n + i or i * n), i)
        end
      ]], { world = false, timeout = 40 })
    end)
  end

  it("waits in a barrier for all ranks of all rows", function()
    helpers.ranks_ok(4, function()
      local perigee = require "perigee"
      local world <close> = perigee.init { backend = "hierarchical(native)",
        options = { hierarchical = { local_size = 2 } } }
      for late = 0, 3 do
        if world.rank == late then perigee.sleep(0.1) end
        local entered = perigee.clock() -- of this host: all ranks read the same one
        world:barrier()
        local left = perigee.clock()
        for _, other in ipairs(world:allgather(entered)) do assert(left >= other) end
      end
    end, { world = false })
  end)

  it("groups subgroups by the world's ranks", function()
    helpers.ranks_ok(4, function()
      local perigee = require "perigee"
      local seen = {}
      local Probe = perigee.backend "probe"
      function Probe:allreduce(tensors, opts)
        seen[#seen + 1] = self.group_name:match "[^/]*$" .. ":" .. self.size
        return self.inner:allreduce(tensors, opts)
      end
      local world <close> = perigee.init { backend = "hierarchical(probe(native))" } -- LOCAL_WORLD_SIZE: one row
      world:allreduce(1)
      assert(seen[1] == "world:4", seen[1])
      local two <close> = perigee.init { backend = "hierarchical(probe(native))", name = "two",
        options = { hierarchical = { local_size = 2 } } }
      seen = {}
      assert(two:allreduce(1) == 4)
      local leader = two.rank % 2 == 0
      assert(leader and seen[1]:match "^leaders%.%d+:2$" or #seen == 0, seen[1])
      local three = two:subgroup { 3, 0, 2 } -- rows { 3, 2 } and { 0 }
      if three then
        seen = {}
        assert(three:allreduce(three.rank) == 3)
        assert(leader == (three.rank ~= 0))
        assert(#seen == (three.rank == 2 and 0 or 1), #seen)
        three:close()
      end
      two:barrier()
    end, { world = false })
  end)

  local prelude = [[
    local world <close> = perigee.init { backend = "log(hierarchical(native))", timeout = 20,
      options = { hierarchical = { local_size = 2 }, log = { level = "error", to = function() end } } }
    local r = world.rank
    local function result(f)
      local started = perigee.clock()
      local ok, e = pcall(f)
      assert(not ok, "no error")
      assert(e.op and e.seq and e.group == "world" and e.rank == r, tostring(e))
      print(("result %s [%s] %d %s"):format(e.code, table.concat(e.ranks, ","),
        (perigee.clock() - started) * 1000 // 1 | 0, tostring(e)))
    end
  ]]

  it("a dead rank fails the operation in every row", function()
    local run = helpers.ranks(4, prelude .. [[
      world:barrier()
      if r == 3 then
        perigee.sleep(0.3)
        local f = io.open "/proc/self/stat"
        os.execute("kill -9 " .. f:read "n")
      end
      result(function() world:allreduce(1) end)
      local ok, e = pcall(world.allreduce, world, 1)
      assert(not ok and (e.code == "EABORTED" or e.code == "EPEERDEAD"), tostring(e))
    ]], { world = false, keep_going = true })
    local seen = outcomes(run)
    assert.equal("EPEERDEAD", seen[3].code, run.out)
    assert.equal("3", seen[3].ranks)
    for i = 1, 2 do
      assert.is_truthy(seen[i].code == "EABORTED" or seen[i].code == "EPEERDEAD", run.out)
      assert.matches("died", seen[i].text)
    end
    for i = 1, 3 do assert.is_true(seen[i].ms < 10000, seen[i].ms) end
  end)

  it("a missing rank is named by its number in the group", function()
    local run = helpers.ranks(4, prelude .. [[
      world:barrier()
      if r == 3 then perigee.sleep(2.5) return end
      result(function() world:allreduce(1, { timeout = 0.6 }) end)
    ]], { world = false, keep_going = true })
    local seen = outcomes(run)
    assert.equal("ETIMEDOUT", seen[3].code, run.out)
    assert.equal("3", seen[3].ranks, run.out)
    for i = 1, 3 do assert.is_true(seen[i].ms > 400 and seen[i].ms < 10000, run.out) end
  end)

  it("ends what is pending when the group is aborted or closed", function()
    helpers.ranks_ok(4, function()
      local perigee = require "perigee"
      for _, how in ipairs { "abort", "close" } do
        local world = perigee.init { backend = "hierarchical(native)", timeout = 20,
          options = { hierarchical = { local_size = 2 } } }
        world:barrier()
        local started = perigee.clock()
        if world.rank == 1 then
          perigee.sleep(0.2)
          if how == "abort" then world:abort "enough" else world:close() end
        else
          local ok, e = pcall(world.allreduce, world, 1)
          assert(not ok and e.code ~= "ETIMEDOUT", tostring(e))
        end
        assert(perigee.clock() - started < 15, perigee.clock() - started)
        world:close()
      end
    end, { world = false })
  end)
end)
