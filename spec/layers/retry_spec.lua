-- retry: what is tried again and what is not, and that every attempt starts from the same tensors.
-- luacheck: ignore 431, no self
local helpers = require "helpers"
local perigee = require "perigee"

local count = 0
--- A world "retry(flaky)" whose layer below fails: plan(attempt number, name) gives an error, or nil to go on.
local function world_of(plan, options)
  count = count + 1
  local name, calls = "flaky" .. count, {}
  local Flaky = perigee.backend(name, { inner = "fake" })
  for _, row in ipairs(perigee.ops()) do
    Flaky[row.name] = function(self, ...)
      calls[#calls + 1] = row.name
      local err = plan(#calls, row.name, ...)
      if type(err) == "string" then error(perigee.error(err, "attempt " .. #calls), 0) end
      return err or self.inner[row.name](self.inner, ...)
    end
  end
  local world = helpers.world { backend = "retry(" .. name .. ")", rank = 0, size = 2, timeout = 5,
    options = { retry = options or { backoff = 0.001 } } }
  return world, calls
end

describe("retry", function()
  after_each(helpers.close_all)

  it("tries again after refusals and failures, with the old contents", function()
    local world, calls = world_of(function(n, name, tensors)
      if name ~= "allreduce" or n > 3 then return nil end
      assert(tensors[1][1] == 5 and tensors[2][1] == 6)
      tensors[1]:fill_(99)
      tensors[2]:fill_(98)
      if n == 2 then -- later
        local future = perigee.future()
        future:set_error(perigee.error("ENOMEM", "later"))
        return future
      end
      return "EAGAIN"
    end)
    local list = { perigee.full("f32", { 2 }, 5), perigee.full("f32", { 2 }, 6) }
    assert.equal(list, world:allreduce(list))
    assert.equal(22, list[1][1])
    assert.equal(22, list[2][2])
    assert.equal(4, #calls)
    local work = world:allreduce(3, { async = true })
    assert.equal(6, work:wait())
    world:barrier()
    assert.equal(2, #world:allgather(1))
  end)

  it("gives up after so many attempts, and at once on other codes", function()
    local stats = require "perigee.layers.retry".stats
    local before = stats.retries
    local world, calls = world_of(function() return "EAGAIN" end, { times = 2, backoff = 0.001 })
    local e = helpers.raised(world.barrier, world)
    assert.equal("EAGAIN", e.code)
    assert.matches("attempt 3 %(attempt 3 of 3%)", e.message)
    assert.equal(3, #calls)
    assert.equal(2, stats.retries - before)
    world, calls = world_of(function(n) return n == 1 and "ESTORE" or nil end)
    assert.equal("ESTORE", helpers.raised(world.barrier, world).code)
    assert.equal(1, #calls)
    world, calls = world_of(function(n) return n == 1 and "ESTORE" or nil end, { codes = { "ESTORE" }, backoff = 0 })
    world:barrier()
    assert.equal(2, #calls)
    world = world_of(function() error "a plain error" end)
    assert.matches("a plain error", helpers.raised(world.barrier, world).message)
  end)

  it("waits longer each time, within the operation's timeout", function()
    local started = perigee.clock()
    local world = world_of(function(n) return n <= 4 and "EAGAIN" or nil end,
      { times = 4, backoff = 0.02, factor = 3, max_backoff = 0.1 })
    world:barrier() -- 0.02 + 0.06 + 0.1 + 0.1
    local took = perigee.clock() - started
    assert.is_true(took > 0.27 and took < 10, took)
    local calls
    world, calls = world_of(function() return "EAGAIN" end, { times = 100, backoff = 0.05, factor = 1 })
    assert.equal("EAGAIN", helpers.raised(world.barrier, world, { timeout = 0.3 }).code)
    assert.is_true(#calls > 1 and #calls < 8, #calls) -- of 101
  end)

  it("does not hold up others while it waits", function()
    local world, calls = world_of(function(n) return n == 1 and "EAGAIN" or nil end, { backoff = 0.5 })
    local started = perigee.clock()
    local slow = world:allreduce(1, { async = true })
    assert.equal(2, world:allreduce(1))
    assert.is_true(#calls == 2 or perigee.clock() - started > 0.45) -- the second call came before the second attempt
    assert.equal(2, slow:wait())
    assert.equal(3, #calls)
    assert.is_true(perigee.clock() - started > 0.45)
  end)

  it("leaves operations alone that are not in its list", function()
    local world = world_of(function(n) return n == 1 and "EAGAIN" or nil end, { ops = { "broadcast" } })
    assert.equal("EAGAIN", helpers.raised(world.allreduce, world, 1).code)
  end)

  it("works over real ranks, for messages too", function()
    helpers.ranks_ok(3, function()
      local perigee = require "perigee"
      local world <close> = perigee.init { backend = "retry(fault(native))", timeout = 20, options = {
        retry = { times = 20, backoff = 0.001, codes = { "EAGAIN", "ETIMEDOUT" } },
        fault = { seed = 3, rules = { { action = "raise", probability = 0.3 } } } } }
      local r = world.rank
      for i = 1, 30 do
        assert(world:allreduce(i) == 3 * i)
        assert(world:broadcast(r, { root = i % 3 }) == i % 3)
        world:barrier()
      end
      local t = perigee.zeros("f32", 1)
      if r == 0 then
        local _, source = world:recv_anysource(t)
        assert(source == 2 and t[1] == 2, tostring(source))
        -- what comes later than the first attempt waits
        local work = world:recv(t, 1, { async = true })
        work:wait()
        assert(work:source_rank() == 1 and t[1] == 1)
        world:send(t, 1)
      elseif r == 2 then
        world:send(perigee.full("f32", { 1 }, 2), 0)
      else
        perigee.sleep(0.1) -- so that rank 0 has heard rank 2 first
        world:send(perigee.ones("f32", 1), 0)
        world:recv(t, 0)
      end
      world:barrier()
    end, { world = false })
  end)

  it("cannot mend a native group that has failed", function()
    helpers.ranks_ok(2, function()
      local perigee = require "perigee"
      local world <close> = perigee.init { backend = "retry(native)", options = {
        retry = { times = 2, backoff = 0.01, codes = { "ETIMEDOUT", "EABORTED" } } } }
      world:barrier()
      if world.rank == 1 then
        world.store:get("over", 30)
        return
      end
      local ok, e = pcall(world.allreduce, world, 1, { timeout = 0.3 })
      assert(not ok, tostring(e))
      world.store:set("over", "")
      assert(world:failed().code == "ETIMEDOUT")
    end, { world = false })
  end)
end)
