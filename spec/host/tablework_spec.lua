-- A table as Work: every method of it, in every combination, and its end.
-- luacheck: no self
local helpers = require "helpers"
local perigee = require "perigee"

local count = 0
--- A world whose allreduce returns what make(self, tensors, opts) returns.
local function world_of(make)
  count = count + 1
  local B = perigee.backend("table" .. count)
  B.allreduce = make
  return helpers.world { backend = B.name }
end

describe("a table as Work", function()
  after_each(helpers.close_all)

  it("is waited for, once, with the time that is left", function()
    local waits, seconds = 0, nil
    local world = world_of(function(_, tensors)
      return {
        wait = function(self, s)
          waits, seconds = waits + 1, s
          assert(type(self) == "table")
          tensors[1]:add_(1)
          return true
        end,
      }
    end)
    assert.equal(2, world:allreduce(1, { timeout = 50 }))
    assert.equal(1, waits)
    assert.is_true(seconds > 35 and seconds <= 50)
    local work = world:allreduce(1, { async = true, timeout = 50 })
    assert.equal(2, work:wait())
    assert.equal(2, work:wait())
    assert.equal(2, waits)
    assert.equal("allreduce", work.op)
    -- Nobody waits: the interpreter's own thread does.
    work = world:allreduce(1, { async = true })
    local deadline = perigee.clock() + 30
    while not work:is_completed() and perigee.clock() < deadline do perigee.sleep(0.002) end
    assert.equal("done", work:status())
    assert.equal(3, waits)
  end)

  it("may wait for other works inside", function()
    local world = world_of(function(self, tensors, opts)
      local inner = self.inner:allreduce(tensors, opts):map(function() tensors[1]:add_(10) end)
      return { wait = function(_, s) return inner:wait(s) ~= nil end }
    end)
    assert.equal(11, world:allreduce(1))
    local works = {}
    for i = 1, 10 do works[i] = world:allreduce(i, { async = true }) end
    for i = 10, 1, -1 do assert.equal(i + 10, works[i]:wait(5)) end
  end)

  it("may give a future", function()
    local calls, made = 0, nil
    local world = world_of(function()
      return {
        get_future = function()
          calls = calls + 1
          made = perigee.future()
          return made
        end,
      }
    end)
    local work = world:allreduce(1, { async = true })
    assert.equal(1, calls)
    assert.equal("pending", work:status())
    made:set_result()
    assert.equal(1, work:wait(5))
    assert.equal(1, calls)
  end)

  it("may only say whether it is completed, and its error", function()
    local asked, failure = 0, nil
    local world = world_of(function()
      asked = 0
      return {
        is_completed = function()
          asked = asked + 1
          return asked >= 3
        end,
        error = function() return failure end,
      }
    end)
    assert.equal(1, world:allreduce(1))
    assert.equal(3, asked)
    failure = perigee.error("ERANGE", "too far")
    assert.equal("ERANGE", helpers.raised(world.allreduce, world, 1).code)
    failure = "plain"
    assert.matches("plain", tostring(helpers.raised(world.allreduce, world, 1)))
  end)

  it("fails when wait raises or returns false", function()
    local result
    local world = world_of(function() return { wait = function() return result() end } end)
    result = function() error "in wait" end
    local e = helpers.raised(world.allreduce, world, 1)
    assert.equal("ELUA", e.code)
    assert.matches("tablework_spec.lua:%d+: in wait", e.message)
    assert.matches("tablework_spec.lua:%d+: in ", e.traceback)
    assert.equal("allreduce", e.op)
    result = function() return false end
    assert.matches("returned false", tostring(helpers.raised(world.allreduce, world, 1)))
    result = function() return nil end
    assert.equal(1, world:allreduce(1))
  end)

  it("is told when it is aborted, and times out when it never ends", function()
    local told
    local world = world_of(function()
      return {
        is_completed = function() return false end,
        abort = function(_, reason) told = reason end,
      }
    end)
    local work = world:allreduce(1, { async = true })
    assert.is_true(work:abort "enough")
    local e = helpers.raised(work.wait, work)
    assert.equal("EABORTED", e.code)
    perigee.step()
    perigee.sleep(0.02)
    assert.matches("enough", told.message)
    work = world:allreduce(1, { async = true, timeout = 0.05 })
    assert.equal("ETIMEDOUT", helpers.raised(work.wait, work).code)
    assert.equal("ETIMEDOUT", helpers.raised(world.allreduce, world, 1, { timeout = 0.05 }).code)
  end)

  it("is kept alive by the runtime alone", function()
    local collected, waited = 0, 0
    local world = world_of(function()
      return setmetatable({
        wait = function()
          collectgarbage()
          waited = waited + 1
        end,
      }, { __gc = function() collected = collected + 1 end })
    end)
    world:allreduce(0) -- the layer keeps what it made for the first call
    collectgarbage()
    collectgarbage()
    collected, waited = 0, 0
    perigee.sleep(0) -- what earlier works held is let go when the interpreter is next taken
    local refs = perigee.stats().refs
    local works = {}
    for i = 1, 10 do
      works[i] = world:allreduce(i, { async = true })
      collectgarbage()
    end
    for i = 1, 10 do assert.equal(i, works[i]:wait(5)) end
    assert.equal(10, waited)
    perigee.sleep(0)
    collectgarbage()
    collectgarbage()
    assert.equal(10, collected)
    assert.equal(refs, perigee.stats().refs)
  end)

  it("needs one of its methods, and get_future a Work", function()
    local world = world_of(function() return { result = function() end } end)
    assert.equal("ELUATYPE", helpers.raised(world.allreduce, world, 1).code)
    world = world_of(function() return { get_future = function() return 5 end } end)
    assert.matches("get_future of a table as Work must return a Work, got number",
      tostring(helpers.raised(world.allreduce, world, 1)))
  end)
end)
