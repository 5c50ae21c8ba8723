-- Layers on top of each other: the conformance table through them, and several that keep state at once.
-- luacheck: ignore 431
local helpers = require "helpers"
local support = require "cli.support"

local root = io.popen("pwd"):read "l"

-- The table opens its world without options.
local through = [[
  local perigee = require "perigee"
  local init, stack = perigee.init, %q
  function perigee.init()
    return init { backend = stack, options = stack:find "hierarchical" and { hierarchical = { local_size = 2 } } }
  end
  arg[0], arg[1] = %q, %s
  dofile(arg[0])
]]

describe("the conformance table through", function()
  after_each(support.cleanup)
  -- Layers that promise to change nothing (fp16, bf16 and topk do not). Those that hand every operation on as it came
  -- see each reduce operation in the deep stack; alone, they go through the operations, dtypes and sizes.
  for _, case in ipairs {
    { "log(native)", 2, "small" }, { "checked(native)", 2, "small" }, { "retry(native)", 2, "small" },
    { "record(native)", 2, "small" }, { "hierarchical(native)", 4 }, { "hierarchical(native)", 3 },
    { "checked(record(hierarchical(retry(native))))", 4 }, { "checked(record(hierarchical(retry(native))))", 1 },
  } do
    local stack, n, part = case[1], case[2], case[3]
    it(("%s on %d rank%s"):format(stack, n, n > 1 and "s" or ""), function()
      local run = support.bash(([[
        export PERIGEE_TIMEOUT=50 PERIGEE_TABLE_BIG=3000
        timeout -k 2 170 $P run -n %d --timeout 160 through.lua 2>err
      ]]):format(n), { ["through.lua"] = through:format(stack, root .. "/spec/conformance/table.lua",
        part and ("%q"):format(part)) }, 180)
      assert.equal(0, run.code, run.out .. run.err)
      local cells = run.out:match "(%d+) cells passed"
      assert.is_true(cells and tonumber(cells) > 1000, run.out)
    end)
  end
end)

describe("log(checked(fp16(native)))", function()
  for _, ranks in ipairs { 1, 2, 4 } do
    it(("on %d rank%s: sums, subgroups, works, errors"):format(ranks, ranks > 1 and "s" or ""), function()
      helpers.ranks_ok(ranks, function()
        local perigee = require "perigee"
        local lines = {}
        local world <close> = perigee.init { backend = "log(checked(fp16(native)))", timeout = 20, options = {
          log = { to = function(_, event) lines[#lines + 1] = event end }, checked = { sites = true },
          fp16 = { min_bytes = 16 } } }
        local r, n = world.rank, world.size
        assert(world.backend == "log(checked(fp16(native)))")
        local t = perigee.full("f32", { 4 }, 2049)
        local want = n == 1 and 2049 or 2048 * n
        assert(world:allreduce(t)[1] == want, tostring(t))
        local works = {}
        for i = 1, 10 do works[i] = world:allreduce(perigee.full("f32", { 8 }, i), { async = true }) end
        perigee.wait_all(works)
        for i = 1, 10 do assert(works[i]:result()[8] == i * n) end
        local half <close> = world:split(r % 2)
        assert(half:allreduce(perigee.full("f32", { 4 }, 1))[4] == half.size)
        assert(half.backend == world.backend)
        if n > 1 then
          local ok, e = pcall(world.broadcast, world, perigee.zeros("f32", 4), { root = r % 2 })
          assert(not ok and e.code == "EMISMATCH", tostring(e))
          local work = world:reduce(perigee.zeros(r == 0 and "f32" or "f64", 4), { async = true })
          ok, e = pcall(work.wait, work)
          assert(not ok and e.code == "EMISMATCH" and e.op == "reduce", tostring(e))
        end
        world:barrier()
        perigee.step()
        local failed = 0
        for _, event in ipairs(lines) do
          if event.phase == "error" then failed = failed + 1 end
        end
        assert(failed == (n > 1 and 2 or 0), failed)
        assert(#lines == 13 + failed, #lines)
      end, { world = false })
    end)
  end
end)

describe("a deep stack", function()
  it("survives faults that retry mends, in order, with feedback and log", function()
    helpers.ranks_ok(3, function()
      local perigee = require "perigee"
      local seen = 0
      local world <close> = perigee.init { backend = "log(retry(fault(checked(bf16(hierarchical(native))))))",
        timeout = 20, options = {
          log = { to = function() seen = seen + 1 end },
          retry = { times = 50, backoff = 0 }, hierarchical = { local_size = 2 },
          fault = { seed = 5, rules = { { action = "raise", probability = 0.2 } } } } }
      local t, v, sum = perigee.zeros("f32", 5), 1 + 1 / 300, 0
      for i = 1, 40 do
        t:fill_(v)
        world:allreduce(t)
        sum = sum + t[5]
        assert(world:broadcast(i * world.rank, { root = i % 3 }) == i * (i % 3))
      end
      assert(math.abs(sum - 120 * v) < 0.3, sum)
      assert(seen == 80, seen)
    end, { world = false })
  end)

  it("lets go of everything", function()
    helpers.ranks_ok(2, function()
      local perigee = require "perigee"
      local function settled()
        for _ = 1, 5 do
          collectgarbage()
          perigee.sleep(0.001)
        end
        return perigee.stats().refs, collectgarbage "count"
      end
      local refs, kib
      for round = 1, 6 do
        local world = perigee.init { backend = "log(retry(fault(checked(topk(fp16(hierarchical(native)))))))",
          timeout = 20, options = { log = { to = function() end }, topk = { min_numel = 4 } } }
        for _ = 1, 10 do world:allreduce(perigee.ones("f32", 100)) end
        local pending = world:allreduce(perigee.ones("f32", 8), { async = true })
        pending:wait()
        world:close()
        local r, k = settled()
        if round == 2 then refs, kib = r, k end
        if round > 2 then
          assert(r == refs, ("%d references, then %d"):format(refs, r))
          assert(k < kib + 30, ("%.1f KiB, then %.1f"):format(kib, k))
        end
      end
    end, { world = false })
  end)
end)

describe("perigee.testing.check_backend", function()
  local exact = { "log", "checked", "retry", "fault", "record", "hierarchical", "log(checked(retry(hierarchical)))" }
  local rounding = { fp16 = 3e-3, bf16 = 2e-2, topk = 1e-6 }
  local options = {
    log = { to = function() end }, hierarchical = { local_size = 2 }, topk = { ratio = 1, min_numel = 1 },
  }

  local function verdict(stack, rtol, engine)
    local p <close> = io.popen "mktemp -d"
    options.record = { dir = p:read "l" }
    local sizes = stack:find "hierarchical" and not engine and { 1, 2, 4 } or { 1, 3 }
    local report = require "perigee".testing.check_backend(stack, { raise = false, dtypes = { "f32", "i32" },
      sizes = sizes, lengths = { 7 }, options = options, rtol = rtol, atol = rtol, engine = engine })
    os.execute("rm -rf " .. options.record.dir)
    assert.is_true(report.ok, report:verdict())
  end

  for _, stack in ipairs(exact) do
    it("passes " .. stack, function() verdict(stack) end)
  end
  for stack, rtol in pairs(rounding) do
    it("passes " .. stack .. " within its rounding", function() verdict(stack, rtol) end)
  end
  it("passes a deep stack on threads", function()
    verdict("log(checked(record(retry(hierarchical(native)))))", nil, "ranks")
  end)
end)
