-- What PyTorch's test_c10d_pybackend.py asserts of backends written in Python, of backends written in Lua.
-- luacheck: no self
local helpers = require "helpers"
local perigee = require "perigee"
local testing = require "perigee.testing"

local function T(...) return perigee.tensor("f32", { ... }) end

local ADDS = {
  broadcast = 1, allreduce = 2, allreduce_coalesced = 3, reduce = 4, recv_anysource = 5, send = 1, recv = 2,
}

local count = 0

--- A backend that changes data recognisably and records calls; its Works count waits. calls: { name, opts }.
local function recording()
  count = count + 1
  local B = perigee.backend("recording" .. count, { inner = false })
  local record = { calls = {}, waits = 0, get_futures = 0 }
  local function work()
    return { wait = function() record.waits = record.waits + 1 return true end }
  end
  local function first(v)
    while type(v) == "table" do v = v[1] end
    return v
  end
  for _, row in ipairs(perigee.ops()) do
    B[row.name] = function(_, ...)
      local out, inp = ...
      record.calls[#record.calls + 1] = { name = row.name, opts = select(-1, ...) }
      if ADDS[row.name] then
        for _, t in ipairs(out) do t:add_(ADDS[row.name]) end
      elseif row["in"] ~= "none" then
        first(out):copy_(first(inp))
      end
      return work()
    end
  end
  return B, record
end

--- name -> arguments on a group of one rank, the tensor whose element changes, from what to what
local function cases()
  local function copying(list)
    local out, inp = T(0), T(8)
    return { args = list and list(out, inp) or { out, inp }, tensor = out, want = 8 }
  end
  local function adding(op, ...)
    local t = T(10)
    return { args = { t, ... }, tensor = t, want = 10 + ADDS[op] }
  end
  local co = T(10)
  return {
    broadcast = adding "broadcast", allreduce = adding "allreduce", reduce = adding "reduce",
    allreduce_coalesced = { args = { { co } }, tensor = co, want = 13 },
    recv_anysource = adding "recv_anysource",
    allgather = copying(function(o, i) return { { o }, i } end),
    allgather_into_tensor = copying(),
    allgather_into_tensor_coalesced = copying(function(o, i) return { { o }, { i } } end),
    gather = copying(function(o, i) return { { o }, i } end),
    scatter = copying(function(o, i) return { o, { i } } end),
    reduce_scatter = copying(function(o, i) return { o, { i } } end),
    reduce_scatter_tensor = copying(),
    reduce_scatter_tensor_coalesced = copying(function(o, i) return { { o }, { i } } end),
    alltoall = copying(function(o, i) return { { o }, { i } } end),
    alltoall_base = copying(),
    barrier = { args = {} }, monitored_barrier = { args = {} },
  }
end

local function call(world, name, case, opts)
  local args = { table.unpack(case.args) }
  args[#args + 1] = opts
  return world[name](world, table.unpack(args))
end

describe("PyBackendTest:", function()
  after_each(helpers.close_all)

  it("test_collective_config: one call of the right method, with its options; wait once when synchronous", function()
    local B, record = recording()
    local world = helpers.world { backend = B.name }
    for _, row in ipairs(perigee.ops()) do
      for _, async in ipairs { false, true } do
        local case = cases()[row.name]
        if case then -- send and recv need a peer: test_init_process_group_with_pybackend
          record.calls, record.waits = {}, 0
          local result = call(world, row.name, case, {
            async = async, timeout = 9, op = row.takes.op and "max" or nil, root = row.takes.root and 0 or nil,
          })
          assert.equal(1, #record.calls, row.name)
          assert.equal(row.name, record.calls[1].name)
          local opts = record.calls[1].opts
          assert.equal(9, opts.timeout, row.name)
          assert.equal(row.takes.op and "max" or nil, opts.op, row.name)
          assert.equal(row.takes.root and 0 or nil, opts.root, row.name)
          if async then
            assert.equal(row.name, result.op)
            result:wait(20)
          end
          assert.equal("done", async and result:status() or "done")
          assert.equal(1, record.waits, row.name)
          if case.tensor then assert.equal(case.want, case.tensor[1], row.name) end
        end
      end
    end
  end)

  it("test_collective_config_unsupported_backend: an unknown option is an error, the backend is not called", function()
    local B, record = recording()
    local world = helpers.world { backend = B.name }
    for name, case in pairs(cases()) do
      local e = helpers.raised(call, world, name, case, { config = {} })
      assert.equal("EINVAL", e.code, name)
      assert.matches("unknown option 'config'", e.message)
    end
    assert.equal(0, #record.calls)
  end)

  it("test_collective_overrides: each collective changes data as it says", function()
    local B = recording()
    local world = helpers.world { backend = B.name }
    for name, case in pairs(cases()) do
      call(world, name, case)
      if case.tensor then assert.equal(case.want, case.tensor[1], name) end
    end
  end)

  it("test_collective_returns_none: of the instance: side effects are done, and the missing Work is told", function()
    local B = recording()
    local done = {}
    function B:open()
      for _, row in ipairs(perigee.ops()) do
        self[row.name] = function() done[row.name] = (done[row.name] or 0) + 1 end
      end
    end
    local world = helpers.world { backend = B.name }
    for name, case in pairs(cases()) do
      local e = helpers.raised(call, world, name, case)
      assert.equal("ELUATYPE", e.code, name)
      assert.matches("got nil %(is a 'return' missing%?%)", e.message)
      assert.equal(1, done[name], name)
    end
  end)

  it("test_backend_only_overrides: set_timeout, abort, open, close reach the layer; sequence numbers count", function()
    local B = recording()
    local heard = {}
    function B:open(opts) heard[#heard + 1] = "open " .. opts.timeout end
    function B:set_timeout(seconds) heard[#heard + 1] = "timeout " .. seconds end
    function B:abort(reason) heard[#heard + 1] = "abort " .. reason.code end
    function B:close() heard[#heard + 1] = "close" end
    local world = helpers.world { backend = B.name, timeout = 50 }
    world:set_timeout(7)
    perigee.step()
    assert.equal(0, world.seq)
    world:barrier()
    world:monitored_barrier { wait_all_ranks = true }
    assert.equal(2, world.seq)
    world:abort "enough"
    perigee.step()
    world:close()
    assert.same({ "open 50.0", "timeout 7.0", "abort EABORTED", "close" }, heard)
  end)

  it("test_init_process_group_with_pybackend: sync, async, mapped and four at once, point to point", function()
    helpers.ranks_ok(2, function()
      local perigee = _G.perigee -- luacheck: ignore
      local B = perigee.backend "adding"
      function B:allreduce(tensors, opts)
        return self.inner:allreduce(tensors, opts):map(function() tensors[1]:add_(2) end)
      end
      function B:send(tensors, dst, tag, opts)
        return self.inner:send({ tensors[1]:clone():add_(1) }, dst, tag, opts)
      end
      function B:recv(tensors, src, tag, opts)
        return self.inner:recv(tensors, src, tag, opts):map(function() tensors[1]:add_(2) end)
      end
      local world = perigee.init { backend = "adding", name = "custom" }
      local function T(v) return perigee.tensor("f32", { v }) end -- luacheck: ignore
      local r = world.rank
      assert(world.backend == "adding(native)")
      assert(world:allreduce(T(r))[1] == 3) -- sync
      assert(world:allreduce(T(r), { async = true }):wait(20)[1] == 3)
      assert(world:allreduce(T(r), { async = true }):map(function(t) return t[1] * 2 end):wait(20) == 6)
      local works = {}
      for i = 1, 4 do works[i] = world:allreduce(T(i), { async = true }) end
      for i = 4, 1, -1 do assert(works[i]:wait(20)[1] == 2 * i + 2) end
      local got = T(0)
      local pair = { world:send(T(10 + r), 1 - r, { async = true }), world:recv(got, 1 - r, { async = true }) }
      perigee.wait_all(pair, 20)
      assert(got[1] == 10 + (1 - r) + 3)
      world:close()
    end)
  end)

  it("test_init_process_group_with_pybackend: ranks in one process", function()
    local B, record = recording()
    testing.ranks(2, function(world)
      local t = T(1)
      world:send(t, 1 - world.rank)
      assert.equal(2, t[1])
      world:recv(t, 1 - world.rank)
      assert.equal(4, t[1])
    end, { backend = B.name })
    assert.equal(4, #record.calls)
  end)
end)

-- Without a counterpart:
--   test_collective_config_selected_backend     no devices
--   test_collective_config_compile_fallback     no compiler
--   test_collective_config_torch_function       no interception modes: layers do that
--   test_collective_config_keyword_only         options are always one table
--   test_collective_config_lifetime             options are a fresh table of each call: backend_spec.lua
--   test_collective_config_time_estimator_cleanup   no time estimator; plans have one of their own
--   of test_backend_only_overrides: shrink, merge, eager connect, tensor allocation, suspend, resume, memory stats
