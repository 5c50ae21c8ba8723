-- record and replay: a run of several ranks, and each of its ranks again, alone.
-- luacheck: ignore 431
local helpers = require "helpers"
local perigee = require "perigee"

local function folder()
  local p <close> = io.popen "mktemp -d"
  return p:read "l"
end

local function read(path)
  local f <close> = assert(io.open(path, "rb"))
  return f:read "a"
end

-- A script for both: prints what it gets, which must be the same.
local script = [[
  local dir, mode = os.getenv "DIR", os.getenv "MODE"
  local options = { [mode] = { dir = dir } }
  if mode == "record" then options.record.data = os.getenv "DATA" end
  local world = perigee.init { backend = mode == "record" and "record(native)" or "replay(fake)", timeout = 20,
    rank = tonumber(os.getenv "RANK"), size = tonumber(os.getenv "WORLD_SIZE"), options = options }
  local r, n = world.rank, world.size
  local function show(...)
    local parts = {}
    for i, v in ipairs { ... } do parts[i] = tostring(v) end
    print(table.concat(parts, " "))
  end
  local t = perigee.tensor("f32", { r + 1, 1 / (r + 3) })
  show(world:allreduce(t))
  show(world:broadcast(r * 10, { root = n - 1 }))
  for _, each in ipairs(world:allgather(perigee.full("i64", { 2, 2 }, r))) do show(each) end
  local works = {}
  for i = 1, 5 do works[i] = world:allreduce(perigee.full("f64", { 3 }, r + i), { async = true, op = "max" }) end
  for i = 5, 1, -1 do show(works[i]:wait()) end
  local x = perigee.zeros("f32", 2)
  if r == 0 then
    for _ = 1, n - 1 do
      local _, source = world:recv_anysource(x, { tag = 3 })
      show(x, source)
    end
  else
    world:send(t, 0, { tag = 3 })
  end
  local gathered = world:gather(r, { root = 1 })
  show(gathered and gathered[n] or "nothing")
  world:barrier()
  local all <close> = world:split(0)
  show(all:allreduce(r))
  local members = { n - 1, 0 }
  local pair = world:subgroup(members)
  if pair then
    show(pair.rank, pair:allgather(r)[1])
    pair:close()
  end
  world:allreduce(perigee.zeros("f32", 0))
  world:barrier()
  local ok, e
  if r == n - 1 then
    if mode == "record" then perigee.sleep(0.6) end
  else
    ok, e = pcall(world.allreduce, world, 1, { timeout = 0.3 })
    show(ok, e.code, table.concat(e.ranks, ","), tostring(e))
  end
  world:close()
]]

--- Record on n ranks, replay each; returns the folder.
local function both(n, data)
  local dir = folder()
  local run = helpers.ranks_ok(n, script, { world = false, keep_going = true,
    env = { DIR = dir, MODE = "record", DATA = data or "outputs" } })
  for r = 0, n - 1 do
    local path = os.tmpname()
    local f = assert(io.open(path, "w"))
    f:write('perigee = require "perigee"\n', script)
    f:close()
    local command = "DIR=%s MODE=replay RANK=%d WORLD_SIZE=%d timeout 20 lua5.4 %s 2>&1"
    local p <close> = io.popen(command:format(dir, r, n, path))
    assert.equal(run.ranks[r + 1].out, (p:read "a"))
    os.remove(path)
  end
  return dir
end

describe("record and replay", function()
  after_each(helpers.close_all)

  for _, n in ipairs { 2, 3 } do
    it(("give every one of %d ranks again what it had"):format(n), function()
      local dir = both(n)
      local text = read(dir .. "/world.r0.rec")
      assert.matches("^perigee record 1\ngroup world\nrank 0 of " .. n
        .. "\ncall 1 allreduce f32%[2%] op=sum\nend 1 done\nout 8\n", text)
      assert.matches("\nend %d+ done source=%d\nout 8\n", text)
      assert.matches("\nend %d+ error ETIMEDOUT " .. n - 1 .. " timed out after 0.3 s, missing ranks " .. n - 1, text)
      os.execute("rm -rf " .. dir)
    end)
  end

  it("compare inputs where these were recorded", function()
    local dir = both(2, "all")
    local function replay(first)
      local world = helpers.world { backend = "replay(fake)", rank = 0, size = 2,
        options = { replay = { dir = dir } } }
      return helpers.raised(world.allreduce, world, perigee.tensor("f32", first))
    end
    -- this process has not used the file yet: its first world is the recorded one
    local e = replay { 1, 2 }
    assert.equal("EMISMATCH", e.code)
    assert.matches("replay of .*world.r0.rec, call 1: input 1 of 'allreduce f32%[2%] op=sum' has other", e.message)
    os.execute("rm -rf " .. dir)
  end)

  it("refuse another sequence, telling both", function()
    local dir = folder()
    local function record(name, f)
      local world = helpers.world { backend = "record(fake)", rank = 0, size = 2, name = name,
        options = { record = { dir = dir } } }
      f(world)
      world:close()
    end
    local function replay(name, f)
      local world = helpers.world { backend = "replay(fake)", rank = 0, size = 2, name = name,
        options = { replay = { dir = dir } } }
      return helpers.raised(f, world)
    end
    record("a", function(w) w:allreduce(1) w:barrier() end)
    local e = replay("a", function(w) w:allreduce(1) w:allreduce(2) end)
    assert.equal("EMISMATCH", e.code)
    assert.matches("a.r0.rec, call 2: the script calls 'allreduce f64%[1%] op=sum', recorded is 'barrier'", e.message)
    record("b", function(w) w:barrier() end)
    e = replay("b", function(w) w:barrier() w:send(1, 1, { tag = 2 }) end)
    assert.matches("call 2: 'send f64%[1%] dst=1 tag=2', but the recording ends before it", e.message)
    record("c", function(w) w:allreduce(perigee.zeros("f32", 2)) end)
    e = replay("c", function(w) w:allreduce(perigee.zeros("f32", 3)) end)
    assert.matches("the script calls 'allreduce f32%[3%] op=sum', recorded is 'allreduce f32%[2%] op=sum'", e.message)
    e = helpers.raised(helpers.world, { backend = "replay(fake)", rank = 1, size = 2, name = "a",
      options = { replay = { dir = dir } } })
    assert.equal("ENOENT", e.code)
    assert.matches("cannot open the recording: .*a.r1.rec", e.message)
    record("d", function() end)
    e = helpers.raised(helpers.world, { backend = "replay(fake)", rank = 0, size = 3, name = "d",
      options = { replay = { dir = dir } } })
    assert.matches("d.r0.rec is of rank 0 of 2, the group d has rank 0 of 3", e.message)
    os.execute("rm -rf " .. dir)
  end)

  it("keep refusals, and calls that had no end", function()
    local dir = folder()
    local Odd = perigee.backend("odd", { inner = "fake" })
    function Odd.allreduce() error(perigee.error("ENOMEM", "no\nroom", { ranks = { 1, 2 } }), 0) end
    function Odd.broadcast() return perigee.future() end
    local world = helpers.world { backend = "record(odd)", rank = 0, size = 2, name = "odd",
      options = { record = { dir = dir } } }
    assert.equal("ENOMEM", helpers.raised(world.allreduce, world, 1, { async = true }).code)
    world:broadcast(1, { async = true })
    world:barrier()
    world:close()
    local text = read(dir .. "/odd.r0.rec"):gsub("\nend 2 [^\n]*", "")
    local f = assert(io.open(dir .. "/odd.r0.rec", "wb"))
    f:write(text)
    f:close()
    world = helpers.world { backend = "replay(fake)", rank = 0, size = 2, name = "odd",
      options = { replay = { dir = dir } } }
    local e = helpers.raised(world.allreduce, world, 1, { async = true })
    assert.same({ "ENOMEM", "no room", { 1, 2 } }, { e.code, e.message, e.ranks })
    local work = world:broadcast(1, { async = true })
    assert.equal("ESTATE", helpers.raised(work.wait, work).code)
    world:barrier()
    os.execute("rm -rf " .. dir)
  end)

  it("take no other file for a recording", function()
    local dir = folder()
    for text, what in pairs {
      ["hello\n"] = "no recording",
      ["perigee record 1\nrank 0 of 2\nwhat 1\n"] = "unknown entry",
      ["perigee record 1\nrank 0 of 2\ncall 2 barrier\n"] = "unknown entry",
      ["perigee record 1\nrank 0 of 2\ncall 1 barrier\nend 1 maybe\n"] = "unknown result",
    } do
      local f = assert(io.open(dir .. "/world.r0.rec", "wb"))
      f:write(text)
      f:close()
      local code, out = helpers.lua(([[
        local perigee = require "perigee"
        local ok, e = pcall(perigee.init, { backend = "replay(fake)", rank = 0, size = 2,
          options = { replay = { dir = %q } } })
        assert(not ok and e.code == "EPROTO")
        print(e.message)
      ]]):format(dir))
      assert.equal(0, code, out)
      assert.matches(what, out)
    end
    os.execute("rm -rf " .. dir)
  end)

  it("can leave out data, and operations", function()
    local dir = folder()
    local options = { dir = dir, data = "none", ops = { "allreduce" } }
    local world = helpers.world { backend = "record(fake)", rank = 0, size = 2, options = { record = options } }
    assert.equal(6, world:allreduce(3))
    world:barrier()
    local again = helpers.world { backend = "record(fake)", rank = 0, size = 2, options = { record = options } }
    again:allreduce(1)
    world:close()
    assert.equal("perigee record 1\ngroup world\nrank 0 of 2\ncall 1 allreduce f64[1] op=sum\nend 1 done\n",
      read(dir .. "/world.r0.rec"))
    assert.matches("call 1", read(dir .. "/world.r0.2.rec")) -- a second world of one name
    os.execute("rm -rf " .. dir)
  end)
end)
