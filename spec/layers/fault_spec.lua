-- fault: each action, when it acts, and that it is the same in every run.
-- luacheck: ignore 431
local helpers = require "helpers"
local perigee = require "perigee"

local function world_of(rules, seed, group)
  return helpers.world { backend = "fault(fake)", rank = 1, size = 3, name = group, timeout = 5,
    options = { fault = { rules = rules, seed = seed } } }
end

local function fails(world, n)
  local list = {}
  for i = 1, n do list[i] = helpers.raised(world.allreduce, world, 1) and "x" or "." end
  return table.concat(list)
end

describe("fault", function()
  after_each(helpers.close_all)

  it("refuses what fits, and only that", function()
    local world = world_of {
      { action = "raise", op = "allreduce", seq = { 2, 4 }, code = "ENOMEM", message = "no room for it" },
      { action = "raise", op = { "send", "recv" }, rank = { 0, 1 } },
      { action = "raise", op = "barrier", rank = 2 },
      { action = "raise", op = "broadcast", group = "other" },
      { action = "raise", op = "all_gather", times = 2 },
    }
    assert.equal(".x.x...", fails(world, 7))
    local e = helpers.raised(world.send, world, 1, 0)
    assert.same({ "EAGAIN", "send", 1 }, { e.code, e.op, e.seq })
    world:barrier()
    world:broadcast(1)
    assert.equal("EAGAIN", helpers.raised(world.allgather, world, 1).code)
    assert.is_truthy(helpers.raised(world.allgather, world, 1))
    world:allgather(1)
    local again = world_of { { action = "raise", code = "ENOMEM", message = "no room for it" } }
    e = helpers.raised(again.barrier, again)
    assert.same({ "ENOMEM", "no room for it" }, { e.code, e.message })
    e = helpers.raised(again.barrier, again, { async = true })
    assert.equal("ENOMEM", e.code)
  end)

  it("drops until the timeout", function()
    local world = world_of { { action = "drop", op = "allreduce" } }
    local started = perigee.clock()
    local e = helpers.raised(world.allreduce, world, 1, { timeout = 0.2 })
    assert.equal("ETIMEDOUT", e.code)
    local work = world:allreduce(1, { timeout = 0.2, async = true })
    assert.equal("ETIMEDOUT", helpers.raised(work.wait, work).code)
    local took = perigee.clock() - started
    assert.is_true(took > 0.35 and took < 10, took)
    local run = helpers.ranks_ok(2, function()
      local perigee = require "perigee"
      local world <close> = perigee.init { backend = "log(fault(native))", options = {
        log = { to = function() end }, fault = { rules = { { action = "drop", rank = 1, seq = 2 } } } } }
      world:barrier()
      local ok, e = pcall(world.allreduce, world, 1, { timeout = 0.4 })
      assert(not ok and e.code == "ETIMEDOUT", tostring(e))
      print(tostring(e))
    end, { world = false })
    assert.matches("missing ranks 1", run.ranks[1].out)
  end)

  it("drops within the timeout below every layer that waits", function()
    for _, upper in ipairs { "log", "retry", "checked", "record", "fp16", "topk" } do
      local p <close> = io.popen "mktemp -d"
      local dir = p:read "l"
      local world = helpers.world { backend = upper .. "(fault(fake))", rank = 0, size = 4, options = {
        fault = { rules = { { action = "drop", op = { "allreduce", "alltoall", "allgather_into_tensor" } } } },
        record = upper == "record" and { dir = dir } or nil, log = upper == "log" and { to = function() end } or nil,
        topk = upper == "topk" and { min_numel = 1 } or nil } }
      local lists = {}
      for i = 1, 4 do lists[i] = perigee.ones("f32", 2) end
      for _, f in ipairs { -- one that is run by the caller, one with too many tensors for that
        function(opts) return world:allreduce(lists[1], opts) end,
        function(opts) return world:alltoall(lists, opts) end,
      } do
        local started = perigee.clock()
        assert.equal("ETIMEDOUT", helpers.raised(f, { timeout = 0.2 }).code)
        local work = f { timeout = 0.2, async = true }
        assert.equal("ETIMEDOUT", helpers.raised(work.wait, work).code)
        local took = perigee.clock() - started
        assert.is_true(took > 0.3 and took < 10, upper .. ": " .. took)
      end
      os.execute("rm -rf " .. dir)
    end
  end)

  it("delays, and keeps the order", function()
    helpers.ranks_ok(2, function()
      local perigee = require "perigee"
      local world <close> = perigee.init { backend = "fault(native)", options = { fault = { rules = {
        { action = "delay", rank = 1, seq = 1, seconds = 0.2 } } } } }
      local started = perigee.clock()
      local a = world:allreduce(perigee.full("f32", { 1 }, 1), { async = true })
      local b = world:broadcast(perigee.full("f32", { 1 }, 7), { async = true })
      assert(b:wait()[1] == 7 and a:wait()[1] == 2)
      local took = perigee.clock() - started
      assert(took > 0.18 and took < 10, took)
    end, { world = false })
  end)

  it("kills", function()
    local run = helpers.ranks(2, function()
      local perigee = require "perigee"
      local world <close> = perigee.init { backend = "fault(native)", options = { fault = { rules = {
        { action = "kill", rank = 1, op = "barrier" } } } } }
      assert(world:allreduce(1) == 2)
      local ok, e = pcall(world.barrier, world)
      assert(world.rank == 0 and not ok and e.code == "EPEERDEAD" and e.ranks[1] == 1, tostring(e))
      print "seen"
    end, { world = false, keep_going = true })
    assert.equal("seen\n", run.ranks[1].out)
    assert.equal("", run.ranks[2].out)
    assert.matches("rank 1 failed first: killed by signal 9", run.out)
  end)

  it("draws the same in every run with one seed, other rows for other seeds, ranks and groups", function()
    local rules = { { action = "raise", op = "allreduce", probability = 0.3 } }
    local first = fails(world_of(rules, 1), 200)
    assert.equal(first, fails(world_of(rules, 1), 200))
    assert.not_equal(first, fails(world_of(rules, 2), 200))
    assert.not_equal(first, fails(world_of(rules, 1, "other"), 200))
    local _, count = first:gsub("x", "")
    assert.is_true(count > 35 and count < 90, count)
    assert.equal(("."):rep(20), fails(world_of { { action = "raise", probability = 0 } }, 20))
    assert.equal(("x"):rep(20), fails(world_of { { action = "raise", probability = 1 } }, 20))
  end)

  it("goes along into subgroups", function()
    local world = world_of { { action = "raise", op = "allreduce", seq = 1 } }
    local sub <close> = world:subgroup { 0, 1 }
    assert.equal("x.", fails(sub, 2))
    assert.equal("x.", fails(world, 2))
  end)

  it("refuses rules that make no sense", function()
    for text, rule in pairs {
      ["rule 1: a table expected, got number"] = 5,
      ["rule 1: unknown field 'ops'"] = { action = "drop", ops = {} },
      ["rule 1: field 'seq': number or table expected, got string"] = { action = "drop", seq = "1" },
      ["rule 1: action 'drop', 'delay', 'raise' or 'kill' expected, got 'nil'"] = {},
      ["there is no operation 'reduceall'"] = { action = "drop", op = "reduceall" },
      ["rule 1: delay needs 'seconds'"] = { action = "delay" },
    } do
      local e = helpers.raised(world_of, { rule })
      assert.equal("EINVAL", e.code)
      assert.is_truthy(e.message:find("layer 'fault': " .. text, 1, true), e.message)
    end
  end)
end)
