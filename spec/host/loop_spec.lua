-- Perigee in the loop of somebody else: pollfd, step and timeout; perigee.luv.
local helpers = require "helpers"
local perigee = require "perigee"
local uv = require "luv"

local raised = helpers.raised
-- luacheck: globals world

--- Whether the descriptor is readable now, or becomes so within the seconds; asked of the system through luv.
local function readable(seconds)
  local poll, timer, seen = assert(uv.new_poll(perigee.pollfd())), uv.new_timer(), false
  local function over()
    poll:close()
    timer:close()
  end
  poll:start("r", function()
    seen = true
    over()
  end)
  if seconds then
    timer:start(math.ceil(seconds * 1000), 0, over)
  else
    uv.run "nowait"
    if not seen then over() end
  end
  uv.run()
  return seen
end

--- Nothing is ready. The runtime's own thread, when it was woken before pollfd, may come once more to see that.
local function rests()
  while readable() do assert.same({ false, 0 }, { perigee.step() }) end
  return true
end

local function settle(polled)
  repeat perigee.step() until not readable()
  perigee.pollfd(polled)
end

describe("perigee.pollfd", function()
  before_each(function() settle(true) end)
  after_each(function()
    perigee.pollfd(false)
    helpers.close_all()
  end)

  it("is one descriptor, closed on exec, for the module and every group", function()
    local a, b = helpers.world(), helpers.world()
    local fd = perigee.pollfd()
    assert.equal("integer", math.type(fd))
    assert.equal(fd, perigee.pollfd())
    assert.equal(fd, perigee.pollfd(true))
    assert.equal(fd, a:pollfd())
    assert.equal(fd, b:pollfd())
    local f <close> = assert(io.open("/proc/self/fdinfo/" .. fd))
    assert.is_true(tonumber(f:read "a":match "flags:%s*(%d+)", 8) & 0x80000 ~= 0)
    b:close()
    assert.equal("ECLOSED", raised(b.pollfd, b).code)
    assert.matches("boolean expected", raised(perigee.pollfd, 1))
  end)

  it("is readable from when a callback is ready until step has run it", function()
    local ran = 0
    assert.is_true(rests())
    assert.is_nil(perigee.timeout())
    local f, g = perigee.future(), perigee.future()
    f:on_done(function() ran = ran + 1 end)
    g:on_done(function() ran = ran + 1 end)
    assert.is_true(rests())
    f:set_result()
    assert.is_true(readable())
    assert.is_true(readable()) -- level, not edge
    g:set_result()
    assert.equal(0, perigee.timeout())
    assert.equal(0, ran)
    assert.same({ true, 2 }, { perigee.step() })
    assert.equal(2, ran)
    assert.same({ false, 0 }, { perigee.step() })
    assert.is_true(rests())
    assert.is_nil(perigee.timeout())
  end)

  it("tells of callbacks that were ready before it was asked for", function()
    perigee.pollfd(false)
    perigee.future():on_done(function() end):set_result()
    assert.is_true(readable())
  end)

  it("is drained by a wait as by step", function()
    local ran = false
    perigee.future():on_done(function() ran = true end):set_result()
    local done = perigee.future()
    done:set_result()
    assert.is_true(readable())
    done:wait()
    assert.is_true(ran)
    assert.is_true(rests())
  end)

  it("hears of collectives of several groups, in the order of their ends", function()
    local a, b, order = helpers.world(), helpers.world(), {}
    for i = 1, 3 do
      local first = a:allreduce(i, { async = true })
      first:on_done(function(_, v) order[#order + 1] = "a" .. v end)
      while not first:is_completed() do perigee.sleep(0.001) end
      local second = b:allreduce(i, { async = true })
      second:on_done(function(_, v) order[#order + 1] = "b" .. v end)
      while not second:is_completed() do perigee.sleep(0.001) end
      assert.is_true(readable(10))
    end
    local total = 0
    while total < 6 do
      local any, n = perigee.step(10)
      assert.is_true(any)
      total = total + n
    end
    assert.same({ "a1", "b1", "a2", "b2", "a3", "b3" }, order)
    assert.is_true(rests())
  end)

  it("keeps callbacks from the runtime's own thread until pollfd(false)", function()
    local world, ran = helpers.world(), false
    local work = world:allreduce(1, { async = true })
    work:on_done(function() ran = true end)
    while not work:is_completed() do perigee.sleep(0.001) end
    perigee.sleep(0.02)
    assert.is_false(ran)
    assert.is_nil(perigee.pollfd(false))
    local until_ = perigee.clock() + 10
    while not ran and perigee.clock() < until_ do perigee.sleep(0.001) end
    assert.is_true(ran)
    assert.is_true(rests())
  end)
end)

describe("perigee.step", function()
  before_each(function() settle(false) end)
  after_each(function()
    perigee.pollfd(false)
    helpers.close_all()
  end)

  for _, polled in ipairs { true, false } do
    local how = polled and "polled" or "not polled"
    it("waits for something to run, at most so long, " .. how, function()
      if polled then perigee.pollfd() end
      local world, start, ran = helpers.world(), perigee.clock(), false
      assert.same({ false, 0 }, { perigee.step(0.05) })
      assert.is_true(perigee.clock() - start >= 0.05)
      world:allreduce(1, { async = true }):on_done(function() ran = true end)
      assert.same({ true, 1 }, { perigee.step(30) })
      assert.is_true(ran)
      assert.is_true(perigee.clock() - start < 20)
    end)
  end

  it("runs 1000 at most, and the descriptor stays readable", function()
    perigee.pollfd()
    local ran = 0
    local function again()
      ran = ran + 1
      if ran < 2500 then perigee.future():on_done(again):set_result() end
    end
    perigee.future():on_done(again):set_result()
    assert.same({ true, 1000 }, { perigee.step() })
    assert.is_true(readable())
    assert.same({ true, 1000 }, { perigee.step() })
    assert.same({ true, 500 }, { perigee.step() })
    assert.is_true(rests())
    assert.equal(2500, ran)
  end)

  it("inside a callback runs nothing, and does not wait", function()
    local inner, code
    local f = perigee.future()
    f:on_done(function()
      inner = { perigee.step() }
      code = raised(perigee.step, 1).code
    end)
    f:on_done(function() end)
    f:set_result()
    assert.same({ true, 2 }, { perigee.step() })
    assert.same({ false, 0 }, inner)
    assert.equal("EDEADLK", code)
  end)

  it("wants seconds", function()
    assert.matches("bad argument #1 to 'step'", tostring(raised(perigee.step, "soon")))
    assert.matches("bad argument #1 to 'step'", tostring(raised(perigee.step, -1)))
  end)
end)

describe("perigee.luv", function()
  local luv = require "perigee.luv"
  before_each(function() settle(false) end)
  after_each(helpers.close_all)

  it("runs callbacks of works inside uv.run", function()
    local world, handle, inside, order = helpers.world(), luv.attach(), false, {}
    for i = 1, 5 do
      world:allreduce(i, { async = true }):on_done(function(err, v)
        assert.is_nil(err)
        order[#order + 1] = inside and v or "outside"
        if i == 5 then handle:stop() end
      end)
    end
    inside = true
    uv.run()
    inside = false
    assert.same({ 1, 2, 3, 4, 5 }, order)
    handle:stop()
  end)

  it("goes on beside timers of the loop", function()
    local world, handle <close>, ticks, sum = helpers.world(), luv.attach(), 0, 0
    local timer = uv.new_timer()
    timer:start(1, 1, function() ticks = ticks + 1 end)
    local function again(_, v)
      sum = sum + (v or 0)
      if sum < 100 or ticks < 5 then
        world:allreduce(1, { async = true }):on_done(again)
      else
        timer:close()
        handle:stop()
      end
    end
    again()
    uv.run()
    assert.is_true(sum >= 100 and ticks >= 5)
  end)

  it("a blocking wait in a callback of the loop runs perigee's callbacks, and none of the loop", function()
    local world, handle, order = helpers.world(), luv.attach(), {}
    local timer, other = uv.new_timer(), uv.new_timer()
    other:start(1, 0, function()
      order[#order + 1] = "other timer"
      other:close()
      handle:stop()
    end)
    timer:start(0, 0, function()
      timer:close()
      local done = perigee.future()
      world:allreduce(1, { async = true }):on_done(function() order[#order + 1] = "on_done" end):map(function()
        done:set_result "mapped"
      end)
      perigee.sleep(0.02) -- the other timer is due
      local value = done:wait(30)
      order[#order + 1] = value
    end)
    uv.run()
    assert.same({ "on_done", "mapped", "other timer" }, order)
  end)

  it("may be attached several times; the last stop ends it", function()
    local a, b = luv.attach(), luv.attach(uv)
    a:stop()
    a:stop()
    local ran = false
    perigee.future():on_done(function()
      ran = true
      b:stop()
    end):set_result()
    uv.run()
    assert.is_true(ran)
    assert.is_false(uv.loop_alive())
    local c <close> = luv.attach()
    assert.is_true(uv.loop_alive())
    c:stop()
  end)

  it("hears of works that end because their group is closed", function()
    local world, handle, codes = helpers.world(), luv.attach(), {}
    local never = world:split(0)
    local pending = perigee.future { timeout = 0.02 } -- a deadline is seen too
    pending:on_done(function(err) codes[#codes + 1] = err.code end)
    local timer = uv.new_timer()
    timer:start(1, 0, function()
      timer:close()
      local work = never:allreduce(1, { async = true })
      work:on_done(function(err) codes[#codes + 1] = err and err.code or "done" end)
      never:close()
      world:close()
    end)
    local guard = uv.new_timer()
    guard:start(1, 1, function()
      if #codes < 2 then return end
      guard:close()
      handle:stop()
    end)
    uv.run()
    table.sort(codes) -- the collective may have been done before the close
    assert.is_true(codes[1] == "ECLOSED" and codes[2] == "ETIMEDOUT" or codes[1] == "ETIMEDOUT" and codes[2] == "done",
      table.concat(codes, " "))
  end)

  it("keeps what it needs through collections, and lets go of it", function()
    local ran = 0
    local function once()
      local handle = luv.attach()
      perigee.future():on_done(function()
        ran = ran + 1
        collectgarbage()
        handle:stop()
      end):set_result()
      collectgarbage()
      uv.run()
    end
    once()
    collectgarbage()
    local refs, handles = perigee.stats().refs, 0
    for _ = 1, 20 do once() end
    collectgarbage()
    assert.equal(21, ran)
    assert.equal(refs, perigee.stats().refs)
    uv.walk(function() handles = handles + 1 end)
    assert.equal(0, handles)
  end)

  it("says what is missing when luv is not there", function()
    local code, out = helpers.lua [[
      package.preload.luv = function() error "module 'luv' not found" end
      local perigee = require "perigee"
      local ok, e = pcall(require "perigee.luv".attach)
      print(ok, e.code, e.message)
      ok, e = pcall(require "perigee.luv".attach, 3)
      print(ok, e.code, e.message)
    ]]
    assert.equal(0, code, out)
    assert.matches("false%s+ENOENT%s+perigee.luv needs luv for Lua 5.4 %(Debian: apt install lua%-luv%)", out)
    assert.matches("false%s+EINVAL%s+bad argument #1 to 'attach'", out)
  end)

  it("may be left attached when the program ends", function()
    local code, out = helpers.lua [[
      local perigee, uv = require "perigee", require "luv"
      local world = perigee.init { rank = 0, size = 1 }
      require "perigee.luv".attach()
      world:allreduce(1, { async = true }):on_done(function() print "ran"; uv.stop() end)
      uv.run()
      perigee.future():on_done(print):set_result()
    ]]
    assert.equal(0, code, out)
    assert.equal("ran\n", out)
  end)

  for _, transport in ipairs { "shm", "tcp" } do
    it("on 3 ranks over " .. transport .. ": the loop sleeps while others enter the interpreter", function()
      helpers.ranks_ok(3, function()
        local uv, perigee = require "luv", require "perigee" -- luacheck: ignore 431
        local handle = require "perigee.luv".attach()
        -- The reduction is a Lua function that the group's own thread calls while uv.run holds the interpreter.
        local op = perigee.op { name = "either", reduce = function(acc, x) acc:max_(x) end }
        local seen = {}
        local function issue(i)
          local t = perigee.full("f32", { 64 }, world.rank + i)
          world:allreduce(t, { op = op, async = true }):on_done(function(err)
            assert(not err, tostring(err))
            seen[#seen + 1] = t[64]
            if i < 10 then issue(i + 1) else handle:stop() end
          end)
        end
        issue(1)
        if world.rank == 1 then -- messages too: from here to there, and back when it has come
          world:send(perigee.full("f32", { 4 }, 7), 2, { async = true, tag = 1 })
        elseif world.rank == 2 then
          local got = perigee.zeros("f32", 4)
          world:recv(got, 1, { async = true, tag = 1 }):on_done(function(err) seen.got = err or got[4] end)
        end
        uv.run()
        for i = 1, 10 do assert(seen[i] == 2 + i, tostring(seen[i])) end
        if world.rank == 2 then
          while not seen.got do perigee.step(1) end
          assert(seen.got == 7, tostring(seen.got))
        end
        world:barrier()
      end, { transport = transport })
    end)
  end
end)
