-- Rule: `perigee tune` writes rules that groups take, `perigee info` says who decided, and nothing runs with rules that
-- differ or mean nothing.
package.path = "./spec/?.lua;./lua/?.lua;" .. package.path
local support = require "cli.support"
local choose = require "perigee.tune.choose"
local json = require "perigee.bench.json"
local bash, has = support.bash, support.has

local sum = [[
local perigee = require "perigee"
local world <close> = perigee.init()
local t = perigee.tensor("f32", { world.rank + 1, 2 }):view(2)
local big = perigee.ones("f32", 5000)
world:allreduce(t)
world:allreduce(big)
local c = world:explain("allreduce", big.nbytes)
world:print("%g %g %g %s %s", t[1], t[2], big[5000], c.path, c.why)
]]

describe("perigee tune", function()
  after_each(support.cleanup)

  it("measures, and what it writes decides from then on", function()
    local r = bash([[
      $P tune --quick --budget 1 --transport shm --ops allreduce,broadcast --sizes 64,64K -o $D/t --json $D/j || exit
      $P tune --quick -o $D/t; echo "again: $?"
      $P tune --check $D/t || exit
      export PERIGEE_TUNING_FILE=$D/t
      $P info -n 2 --transport shm allreduce 64K
      $P run -n 2 sum.lua]], { ["sum.lua"] = sum }, 110)
    assert.equal(0, r.code, r.err)
    local text = support.read(r.dir .. "/t")
    assert.is_truthy(text:find("^perigee tuning 1\nmachine [^\n]+ cores"), text)
    assert.is_truthy(text:find "\nallreduce/%l+@2:%d", text)
    assert.is_truthy(text:find "\nbroadcast/%l+@2:%d", text)
    assert.is_true(has(r.err, "what would change"), r.err)
    assert.is_true(has(r.err, "exists: --force"), r.err)
    assert.is_true(has(r.out, "again: 2"), r.out)
    assert.is_truthy(r.out:find("why         " .. r.dir .. "/t:%d+: allreduce/"), r.out)
    assert.is_truthy(r.out:find("3 4 2 %l+ " .. r.dir .. "/t:%d+"), r.out)
    local data = json.decode(support.read(r.dir .. "/j"))
    assert.equal("allreduce", data.parts[1].ops[1].kind)
    assert.is_true(data.parts[1].ops[1].times.twoshot[1] > 0)
  end)

  it("is followed by a rule that is changed by hand; the result is the same", function()
    local r = bash([[
      for path in oneshot twoshot cma; do
        printf 'perigee tuning 1\nallreduce/shm:0-:%s\n' $path >t
        PERIGEE_TUNING_FILE=$D/t $P run -n 2 sum.lua
      done
      printf 'perigee tuning 1\nallreduce:0-:ring # slow\n' >t
      PERIGEE_TRANSPORT=tcp PERIGEE_TUNING_FILE=$D/t $P run -n 2 sum.lua]], { ["sum.lua"] = sum })
    assert.equal(0, r.code, r.err)
    local lines = support.lines(r.out)
    assert.equal(4, #lines)
    for i, path in ipairs { "oneshot", "twoshot", nil, "ring" } do
      assert.is_truthy(lines[i]:find("3 4 2 " .. path .. " " .. r.dir .. "/t:2: allreduce", 1, true), lines[i])
    end
    assert.is_truthy(lines[3]:find "3 4 2 %l+ ")
    assert.is_truthy(lines[4]:find("3 4 2 ring " .. r.dir .. "/t:2: allreduce:0-:ring", 1, true), lines[4])
  end)

  it("fails on every rank when rules differ, and says on which", function()
    for _, transport in ipairs { "shm", "tcp" } do
      local r = bash("PERIGEE_TRANSPORT=" .. transport .. [[ $P run -n 3 --timeout 40 one.lua]], { ["one.lua"] = [[
        local perigee = require "perigee"
        local rank = tonumber(os.getenv "RANK")
        local ok, e = pcall(perigee.init, { tuning = rank == 1 and "allreduce/shm:0-:twoshot" or nil })
        assert(not ok and e.code == "ECONFIG", tostring(e))
        print(e.message)]] })
      assert.equal(0, r.code, r.out .. r.err)
      assert.equal(3, select(2, r.out:gsub("rules %([^\n]*%) of ranks 1 ", "")), r.out)
    end
  end)

  it("refuses rules that mean nothing, naming file, line and word", function()
    local r = bash([[
      printf 'perigee tuning 1\n\nallreduce/shm:0-:sideways\n' >t
      $P tune --check t; echo "check $?"
      PERIGEE_TUNING_FILE=$D/t $P info -n 2 allreduce 1K; echo "info $?"
      PERIGEE_TUNING_FILE=$D/t $P run -n 1 sum.lua; echo "run $?"
      PERIGEE_TUNING_FILE=$D/none $P run -n 1 sum.lua 2>&1 | grep -c none
      for a in "-n 1" "-n x" "--transport udp" "--ops all" "--sizes 4K,64" "--budget 0" "--what" more; do
        $P tune $a; echo "$a: $?"
      done]], { ["sum.lua"] = sum })
    assert.equal(3, select(2, r.err:gsub("t:3: 'sideways' is no algorithm of allreduce in shared memory", "")), r.err)
    for _, part in ipairs { "check 1", "info 1", "run 1", "-n 1: 2", "-n x: 2", "--transport udp: 2", "--ops all: 2",
      "--sizes 4K,64: 2", "--budget 0: 2", "--what: 2", "more: 2" } do
      assert.is_true(has(r.out, part), part .. "\n" .. r.out)
    end
  end)

  it("explains itself", function()
    local r = bash "$P tune --help"
    assert.equal(0, r.code)
    for _, line in ipairs(support.lines(r.out)) do assert.is_true(#line <= 100, line) end
  end)
end)

describe("perigee info", function()
  after_each(support.cleanup)

  it("says which path an operation takes and why", function()
    local r = bash [[
      $P info -n 2 --transport tcp allreduce 8
      PERIGEE_SELECT='allreduce:0-:ring' $P info -n 4 --transport tcp all_reduce 8
      PERIGEE_PATH=twoshot $P info -n 4 --transport shm allreduce 1M
      $P info -n 1 allreduce 1M
      $P info --rules | head -3
      $P info barrier 8; echo "barrier $?"
      $P info allreduce; echo "half $?"]]
    for _, part in ipairs { "path        bruck, from 0 to below 4K bytes", "built in: allreduce@2-2:0-4k:bruck",
      "why         PERIGEE_SELECT: allreduce:0-:ring", "why         PERIGEE_PATH=twoshot", "transport   self",
      "# built in", "barrier 1", "half 2" } do
      assert.is_true(has(r.out, part), part .. "\n" .. r.out)
    end
  end)
end)

describe("the choice of rules", function()
  local sizes = { 1024, 4096, 16384, 65536 }
  local order = { "a", "b" }
  local function pick(a, b, default)
    local d = {}
    for i = 1, #sizes do d[i] = default or "a" end
    return choose.pick(sizes, { a = a, b = b }, d, order)
  end

  it("follows the fastest", function()
    assert.same({ "a", "a", "b", "b" }, pick({ 1, 2, 8, 32 }, { 2, 3, 4, 8 }))
    assert.same({ { from = 0, to = 8192, algo = "a" }, { from = 8192, algo = "b" } },
      choose.ranges(sizes, { "a", "a", "b", "b" }, 1))
  end)

  it("does not follow noise", function()
    assert.same({ "a", "a", "a", "a" }, pick({ 1, 2, 8, 32 }, { 1.1, 1.9, 8.3, 31 }))
    assert.same({ "b", "b", "b", "b" }, pick({ 1, 2, 8, 32 }, { 1.03, 2.05, 8.2, 33 }, "b"))
    assert.same({ "a", "a", "a", "a" }, pick({ 1, 2, 8, 32 }, { 2, 4, 7, 64 })) -- one size, 14 %: two switches
    assert.same({ "a", "a", "b", "a" }, pick({ 1, 2, 8, 32 }, { 2, 4, 5, 64 }))
  end)

  it("leaves out what was not measured", function()
    assert.same({ "a", "a", "b", "b" }, pick({ 1, 1, 0, 0 }, { 2, 2, 4, 8 }))
    assert.is_nil(pick({ 0, 0, 0, 0 }, { 0, 0, 0, 0 }))
  end)

  it("writes rules with symmetric tensors first", function()
    local decision = choose.decide({ kind = "reduce_scatter", sizes = sizes, order = order,
      times = { a = { 1, 2, 8, 32 }, b = { 2, 3, 4, 8 } }, default = { "a", "a", "a", "a" },
      symmetric = { 2, 1, 2, 2 }, symmetric_default = { "plain", "plain", "plain", "symmetric" } }, "spin", 2)
    assert.equal("reduce_scatter/spin@2:4k-:symmetric,0-16k:a,16k-:b", decision.rule)
    assert.equal(4, #decision.changes)
    assert.equal(2, decision.changes[1].gain)
  end)
end)
