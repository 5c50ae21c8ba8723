-- What PyTorch's threaded and fake groups are used for: testing.ranks, and the backend "fake".
-- luacheck: no self
local helpers = require "helpers"
local perigee = require "perigee"
local testing = require "perigee.testing"

local function T(...) return perigee.tensor("f32", { ... }) end

describe("threaded groups (multi_threaded_pg):", function()
  local N = 4

  it("all_reduce with every reduce operation", function()
    local values = { 6, 3, 5, 7 } -- of ranks 0 to 3
    local want = {
      sum = 21, avg = 5.25, product = 630, min = 3, max = 7, band = 6 & 3 & 5 & 7, bor = 7, bxor = 6 ~ 3 ~ 5 ~ 7,
    }
    testing.ranks(N, function(world)
      for op, expected in pairs(want) do
        local t = perigee.tensor(op == "avg" and "f32" or "i64", { values[world.rank + 1] })
        assert.equal(expected, world:allreduce(t, { op = op })[1], op)
      end
      assert.equal(42, world:allreduce(T(values[world.rank + 1]), { op = perigee.premul_sum(2) })[1])
    end)
  end)

  it("all_to_all, all_gather, broadcast, scatter, gather, reduce_scatter, their single and coalesced forms", function()
    testing.ranks(N, function(world)
      local r = world.rank
      local function list(f)
        local l = {}
        for i = 1, N do l[i] = f(i - 1) end
        return l
      end
      local out = list(function() return T(-1) end)
      world:all_to_all(out, list(function(p) return T(10 * r + p) end))
      for p = 0, N - 1 do assert.equal(10 * p + r, out[p + 1][1]) end
      local single = perigee.zeros("f32", N)
      world:all_to_all_single(single, T(10 * r, 10 * r + 1, 10 * r + 2, 10 * r + 3))
      assert.same({ r, 10 + r, 20 + r, 30 + r }, single:totable())
      world:all_gather(out, T(r * r))
      for p = 0, N - 1 do assert.equal(p * p, out[p + 1][1]) end
      local into, more = perigee.zeros("f32", N), perigee.zeros("f32", 2 * N)
      world:all_gather_single(into, T(r))
      assert.same({ 0, 1, 2, 3 }, into:totable())
      world:all_gather_single_coalesced({ into, more }, { T(r + 1), T(r, -r) })
      assert.same({ 1, 2, 3, 4 }, into:totable())
      assert.same({ 0, 0, 1, -1, 2, -2, 3, -3 }, more:totable())
      for root = 0, N - 1 do
        assert.equal(root, world:broadcast(T(r), { root = root })[1])
        local part = T(-1)
        world:scatter(part, r == root and list(function(p) return T(p + root) end) or nil, { root = root })
        assert.equal(r + root, part[1])
        local all = r == root and list(function() return T(-1) end) or nil
        world:gather(all, T(r), { root = root })
        for p = 0, all and N - 1 or -1 do assert.equal(p, all[p + 1][1]) end
      end
      for op, expected in pairs { sum = 6 + 4 * r, avg = 1.5 + r } do
        local part = T(-1)
        world:reduce_scatter(part, list(function(p) return T(r + p) end), { op = op })
        assert.equal(expected, part[1])
        world:reduce_scatter_single(part, T(r, r + 1, r + 2, r + 3), { op = op })
        assert.equal(expected, part[1])
        local other = T(-1)
        local ins = { T(r, r + 1, r + 2, r + 3), T(r, r, r, r) }
        world:reduce_scatter_single_coalesced({ part, other }, ins, { op = op })
        assert.equal(expected, part[1])
        assert.equal(op == "sum" and 6 or 1.5, other[1])
      end
      local a, b = T(r), T(1, r)
      world:allreduce_coalesced { a, b }
      assert.equal(6, a[1])
      assert.same({ 4, 6 }, b:totable())
      world:barrier()
    end)
  end)

  it("have send and recv too", function()
    testing.ranks(N, function(world)
      local right, left = (world.rank + 1) % N, (world.rank - 1) % N
      local sent = world:send(T(world.rank), right, { async = true })
      assert.equal(left, world:recv(T(-1), left)[1])
      sent:wait(20)
    end)
  end)

  it("any exception ends all waiting threads", function()
    local left = 0
    local e = helpers.raised(testing.ranks, N, function(world)
      if world.rank == 2 then error "rank 2 gives up" end
      local ok, err = pcall(world.barrier, world)
      if not ok then left = left + 1 end
      error(err, 0)
    end, { timeout = 60 })
    assert.matches("%[rank 2%].*rank 2 gives up", tostring(e))
    assert.equal(N - 1, left)
  end)

  it("have a world of their own, several in one process, subgroups too", function()
    testing.ranks(2, function(outer)
      local even <close> = outer:split(outer.rank)
      assert.equal(1, even.size)
      assert.equal(1, even:allreduce(1))
      assert.equal(2, outer:allreduce(1))
    end)
    testing.ranks(3, function(world) assert.equal(3, world:allreduce(1)) end)
  end)
end)

describe("FakeProcessGroup:", function()
  after_each(helpers.close_all)

  it("completes everything at once, for any world size", function()
    local world = helpers.world { backend = "fake", rank = 3, size = 1000 }
    assert.equal(3, world.rank)
    assert.equal(1000, world.size)
    local t = T(5)
    local work = world:allreduce(t, { async = true })
    assert.is_true(work:is_completed())
    assert.is_true(work:wait() == t)
    assert.equal(5000, t[1]) -- as if all ranks held the same
    world:barrier()
    world:broadcast(t, { root = 999 })
    world:send(t, 0)
    world:recv(t, 999)
    assert.equal(5000, t[1])
  end)

  it("copies the local input to the outputs", function()
    local world = helpers.world { backend = "fake", rank = 1, size = 3 }
    local out = perigee.zeros("f32", 3)
    world:allgather_into_tensor(out, T(4))
    assert.equal(4, out[2])
    local list = { T(0), T(0), T(0) }
    world:allgather(list, T(6))
    assert.equal(6, list[2][1])
  end)

  it("splits", function()
    local world = helpers.world { backend = "fake", rank = 0, size = 8 }
    local part <close> = world:subgroup { 0, 5, 6 }
    assert.equal(3, part.size)
    assert.equal(0, part.rank)
    part:barrier()
  end)

  it("can be scripted: what a mocked collective returns, and errors", function()
    local Mock = perigee.backend("c10d_mock", { inner = "fake" })
    function Mock:allreduce(tensors)
      tensors[1]:fill_(self.size)
      return true
    end
    function Mock:broadcast() error(perigee.error("EPEERDEAD", "scripted", { ranks = { 2 } })) end
    local world = helpers.world { backend = "c10d_mock", rank = 0, size = 64 }
    assert.equal(64, world:allreduce(T(1))[1])
    local e = helpers.raised(world.broadcast, world, T(1))
    assert.equal("EPEERDEAD", e.code)
    assert.same({ 2 }, e.ranks)
    world:barrier()
  end)
end)

-- Without a counterpart: the thread-local "world" object (a group is an object, nothing is global). "fake" always
-- models simulate_uniform_ranks; a layer over it says what others hold.
