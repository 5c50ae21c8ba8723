-- log: what it says of which operations, and that it changes nothing.
-- luacheck: ignore 431
local helpers = require "helpers"
local perigee = require "perigee"

local function world_of(options, more)
  local lines, events = {}, {}
  options.to = options.to or function(line, event) lines[#lines + 1], events[#events + 1] = line, event end
  local world = helpers.world {
    backend = "log(" .. (more and more.below or "fake") .. ")", rank = 1, size = 3, options = { log = options },
  }
  return world, lines, events
end

describe("log", function()
  after_each(helpers.close_all)

  it("tells every operation, its tensors and its options in a line", function()
    local world, lines = world_of {}
    local f = perigee.zeros("f32", 2, 3)
    world:allreduce(f, { op = "avg" })
    world:allreduce_coalesced { f, f, perigee.zeros("f32", 1) }
    world:allreduce(f, { op = perigee.premul_sum(0.5) })
    world:broadcast(f, { root = 2 })
    world:allgather(perigee.zeros("i64", 4))
    world:alltoall_base(f:clone():view(6), perigee.zeros("f32", 6), { 2, 2, 2 }, { 2, 2, 2 })
    world:send(f, 0, { tag = 7 })
    world:recv_anysource(f)
    world:barrier()
    world:monitored_barrier { wait_all_ranks = true }
    local expected = {
      "allreduce #1 on world: f32[2,3] op=avg, 24 bytes",
      "allreduce_coalesced #2 on world: 2*f32[2,3] f32[1] op=sum, 52 bytes",
      "allreduce #3 on world: f32[2,3] op=premul_sum(0.5), 24 bytes",
      "broadcast #4 on world: f32[2,3] root=2, 24 bytes",
      "allgather #5 on world: out 3*i64[4] in i64[4], 32 bytes",
      "alltoall_base #6 on world: out f32[6] in f32[6] output_splits={2,2,2} input_splits={2,2,2}, 24 bytes",
      "send #1 on world: f32[2,3] dst=0 tag=7, 24 bytes",
      "recv_anysource #2 on world: f32[2,3] tag=0, 24 bytes",
      "barrier #7 on world:",
      "monitored_barrier #8 on world: wait_all_ranks=true, 0 bytes",
    }
    for i, text in ipairs(expected) do
      local got, ms = lines[i]:match "^%[rank 1%] (.*) ([%d.]+) ms$"
      assert.equal(text, (got or lines[i]):gsub(",$", ""), lines[i])
      assert.is_true(tonumber(ms) < 1000)
    end
    assert.equal(#expected, #lines)
  end)

  it("gives the same as fields", function()
    local world, _, events = world_of { level = "start" }
    world:reduce_scatter_tensor(perigee.zeros("f64", 6))
    assert.equal(2, #events)
    assert.same({ "start", "done" }, { events[1].phase, events[2].phase })
    for _, e in ipairs(events) do
      assert.same({ "reduce_scatter_tensor", 1, "world", 1, 6, 48 }, { e.op, e.seq, e.group, e.rank, e.numel, e.bytes })
      assert.equal("out f64[2] in f64[6] op=sum", e.text)
    end
    assert.is_nil(events[1].ms)
    assert.is_number(events[2].ms)
  end)

  it("tells failures: refused at once, later, and timed out", function()
    local Bad = perigee.backend("bad", { inner = "fake" })
    function Bad.allreduce() error(perigee.error("ENOMEM", "no room")) end
    function Bad.broadcast()
      local future = perigee.future()
      future:set_error(perigee.error("ESTORE", "later"))
      return future
    end
    function Bad.barrier() return perigee.future() end
    local world, lines, events = world_of({ level = "error" }, { below = "bad" })
    assert.equal("ENOMEM", helpers.raised(world.allreduce, world, 1).code)
    assert.equal("ESTORE", helpers.raised(world.broadcast, world, 1).code)
    assert.equal("ETIMEDOUT", helpers.raised(world.barrier, world, { timeout = 0.1 }).code)
    world:reduce(perigee.zeros("f32", 1))
    perigee.step()
    assert.equal(3, #lines)
    assert.matches("ms, ENOMEM: no room$", lines[1])
    assert.matches("ms, ESTORE: later$", lines[2])
    assert.matches("barrier #3 on world: %d+%.%d+ ms, ETIMEDOUT: ", lines[3])
    assert.equal("error", events[3].phase)
    assert.equal("ESTORE", events[2].error.code)
    local work = world:broadcast(1, { async = true })
    assert.equal("ESTORE", helpers.raised(work.wait, work).code)
  end)

  it("leaves operations alone that are not in its list", function()
    local world, lines = world_of { ops = { "all_reduce", "send" } }
    world:broadcast(1)
    world:barrier()
    world:allreduce(1)
    world:send(1, 0)
    assert.equal(2, #lines)
  end)

  it("writes to a file, and to stderr by default", function()
    local file = io.tmpfile()
    local world = world_of { to = file }
    world:barrier()
    file:seek "set"
    assert.matches("^%[rank 1%] barrier #1 on world: [%d.]+ ms\n$", file:read "a")
    local run = helpers.ranks_ok(2, function()
      local perigee = require "perigee"
      local world <close> = perigee.init { backend = "log(native)" }
      assert(world:allreduce(1) == 2)
      local work = world:broadcast(7, { async = true })
      assert(work:wait() == 7)
    end, { world = false })
    for r = 1, 2 do
      assert.matches("%[rank " .. r - 1 .. "%] allreduce #1 on world: f64%[1%] op=sum, 8 bytes, ", run.ranks[r].err)
      assert.matches("broadcast #2 on world: f64%[1%] root=0, 8 bytes, ", run.ranks[r].err)
      assert.equal("", run.ranks[r].out)
    end
  end)

  it("survives an error in its function", function()
    local world = world_of { to = function() error "in the log" end }
    assert.equal(3, world:allreduce(1))
  end)

  it("writes what ends with the group", function()
    local _, lines = (function()
      local Never = perigee.backend("never", { inner = "fake" })
      function Never.allreduce() return perigee.future() end
      local world, lines = world_of({}, { below = "never" })
      local work = world:allreduce(1, { async = true })
      world:close()
      assert.equal("aborted", work:status())
      return world, lines
    end)()
    assert.equal(1, #lines)
    assert.matches("ECLOSED", lines[1])
  end)
end)
