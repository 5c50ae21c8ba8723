-- Opening and closing: the module twice, states that end with things pending, exits from everywhere.
local helpers = require "helpers"
local perigee = require "perigee"

--- Runs a script in an interpreter of its own; it must end within the limit, with this code, and without a crash.
local function ends(text, code)
  local started = perigee.clock()
  local got, out = helpers.lua('local perigee = require "perigee"\n' .. text)
  assert.equal(code or 0, got, out)
  assert.is_true(perigee.clock() - started < 15, "took long")
  return out
end

describe("the module", function()
  it("is the same when it is loaded again, and old objects stay good", function()
    local world = helpers.world()
    finally(helpers.close_all)
    local t = perigee.tensor("f32", { 1 })
    local core = package.loaded["perigee.core"]
    package.loaded["perigee.core"], package.loaded["perigee"] = nil, nil
    local again = require "perigee"
    assert.equal(core, require "perigee.core")
    assert.equal(perigee, again)
    assert.equal(t, world:allreduce(t))
    assert.is_true(again.tensor("f32", { 1 }):equal(t))
    assert.equal(getmetatable(t), getmetatable(again.zeros("f32", 1)))
  end)

  it("leaves nothing behind when a state opens and closes it", function()
    ends [[for _ = 1, 3 do
      package.loaded["perigee"], package.loaded["perigee.core"] = nil, nil
      perigee = require "perigee"
      perigee.init{rank = 0, size = 1}:close()
    end]]
  end)
end)

describe("a state ends", function()
  local pending = [[
    local B = perigee.backend "never"
    local made
    function B:allreduce() made = perigee.future() return made end
    function B:broadcast(t, o) return self.inner:broadcast(t, o):map(function() end) end
    function B:barrier() error "no" end
    local w = perigee.init{backend = "never", rank = 0, size = 1}
    local t = perigee.zeros("f32", 4)
    local work = w:allreduce(t, {async = true})
    work:on_done(function() end)
    work:map(function() end)
    for i = 1, 10 do w:broadcast(t, {async = true}) end
  ]]

  it("with works pending, groups open and callbacks queued", function()
    ends(pending)
  end)

  it("by os.exit, with and without closing", function()
    ends(pending .. "os.exit(3, true)", 3)
    ends(pending .. "os.exit(4)", 4)
  end)

  it("by os.exit in an override, in a callback, in a finalizer", function()
    ends([[
      local B = perigee.backend "exits"
      function B:barrier() os.exit(5, true) end
      perigee.init{backend = "exits", rank = 0, size = 1}:barrier()
    ]], 5)
    ends([[
      local f = perigee.future()
      f:on_done(function() os.exit(6, true) end)
      f:set_result()
      perigee.future():wait()
    ]], 6)
    ends([[
      setmetatable({}, {__gc = function() os.exit(7, true) end})
      perigee.init{rank = 0, size = 1}
      collectgarbage()
    ]], 7)
  end)

  -- Where a script may be when it ends the process. Each runs `leave()`, and would hang if that did nothing.
  local places = {
    ["the main chunk"] = "leave()",
    ["a coroutine"] = "coroutine.wrap(function() leave() end)()",
    ["an override that is waited for"] = [[
      function L:allreduce() leave() end
      world():allreduce(t)]],
    ["an override that was submitted"] = [[
      function L:allreduce() leave() end
      world():allreduce(t, {async = true})]],
    ["an override in an override"] = [[
      local Outer = perigee.backend("outer", {inner = "leaves"})
      function Outer:allreduce(tensors, opts) return self.inner:allreduce(tensors, opts) end
      function L:allreduce() leave() end
      perigee.init{backend = "outer", rank = 0, size = 1}:allreduce(t)]],
    ["a coroutine of an override"] = [[
      function L:allreduce() coroutine.wrap(leave)() end
      world():allreduce(t)]],
    ["an override that waits"] = [[
      function L:allreduce(...) self.inner:barrier():wait() leave() end
      world():allreduce(t)]],
    ["the wait of a table"] = [[
      function L:allreduce() return { wait = function() leave() end } end
      world():allreduce(t)]],
    ["map"] = [[
      function L:allreduce(...) return self.inner:allreduce(...):map(leave) end
      world():allreduce(t)
      perigee.future():wait()]],
    ["on_done, while main waits"] = [[
      world():allreduce(t, {async = true}):on_done(leave)
      perigee.future():wait()]],
    ["on_done of a future"] = [[
      local f = perigee.future()
      f:on_done(leave)
      f:set_result(1)
      perigee.future():wait()]],
    ["on_done, on the thread of the runtime"] = [[
      local f = perigee.future()
      f:on_done(leave)
      f:set_result(1)
      perigee.sleep(30)]],
    ["step"] = [[
      local f = perigee.future()
      f:on_done(leave)
      f:set_result(1)
      perigee.step()]],
    ["a reduce function"] = [[
      local op = perigee.op{name = "leave", reduce = function() leave() end}
      perigee.testing.ranks(2, function(g) g:allreduce(perigee.zeros("f32", 1), {op = op}) end)
      leave()]],
    ["open of a backend"] = [[
      function L:open() leave() end
      world()]],
    ["close of a backend"] = [[
      function L:close() leave() end
      world():close()]],
    ["a finalizer"] = [[
      setmetatable({}, {__gc = leave})
      collectgarbage()]],
    ["a variable that is closed"] = [[
      do local _ <close> = setmetatable({}, {__close = leave}) end]],
    ["pcall in an override"] = [[
      function L:allreduce() pcall(leave) end
      world():allreduce(t)]],
  }
  --- Runs scripts (name -> text), some at a time; name -> { code, out }. One that does not end in 10 s gets code 124.
  local function run_all(scripts)
    local pipe = assert(io.popen "mktemp -d")
    local dir = pipe:read "l"
    pipe:close()
    local names = {}
    for name, text in pairs(scripts) do
      names[#names + 1] = name
      local f <close> = assert(io.open(("%s/%d.lua"):format(dir, #names), "wb"))
      f:write(text)
    end
    os.execute(([[seq %d | xargs -P 6 -I{} sh -c \
      'timeout -k 2 10 lua5.4 %s/{}.lua >%s/{}.out 2>&1 </dev/null; echo $? >%s/{}.code']]):format(
      #names, dir, dir, dir))
    local results = {}
    for i, name in ipairs(names) do
      local code <close> = assert(io.open(("%s/%d.code"):format(dir, i)))
      local out <close> = assert(io.open(("%s/%d.out"):format(dir, i)))
      results[name] = { code = code:read "n", out = out:read "a" }
    end
    os.execute("rm -rf " .. dir)
    return results
  end

  for _, how in ipairs { "os.exit(9)", "os.exit(9, true)" } do
    it(("by %s, wherever that is said"):format(how), function()
      local scripts = {}
      for place, text in pairs(places) do
        scripts[place] = ([[
          local perigee = require "perigee"
          local L = perigee.backend "leaves"
          local function world() return perigee.init{backend = "leaves(native)", rank = 0, size = 1} end
          local t = perigee.zeros("f32", 4)
          local function leave() %s end
          local N = perigee.backend("never", {inner = false})
          local made = {}
          function N:allreduce() made[#made + 1] = perigee.future() return made[#made] end
          local pending = perigee.init{backend = "never", rank = 0, size = 1}
          for _ = 1, 3 do pending:allreduce(t, {async = true}):on_done(function() end) end
          %s
          perigee.sleep(60)
        ]]):format(how, text)
      end
      for place, result in pairs(run_all(scripts)) do
        assert.equal(9, result.code, place .. ": " .. result.out)
      end
    end)
  end

  it("with peers: who stays is told, and nobody hangs", function()
    for _, how in ipairs { "os.exit(0, true)", "os.exit(0)", "world:close() os.exit(0)", "error 'gone'" } do
      local result = helpers.ranks(3, ([[
        local t = perigee.zeros("f32", 4)
        for _ = 1, 4 do world:allreduce(t, {async = true}) end
        if world.rank == 1 then %s end
        local started = perigee.clock()
        local ok, e = true, nil
        while ok do ok, e = pcall(world.allreduce, world, t, {timeout = 20}) end
        assert(perigee.clock() - started < 15, "took long")
        io.write(e.code)
        os.exit(0)
      ]]):format(how), { keep_going = true, timeout = 40 })
      for _, rank in ipairs { 1, 3 } do
        assert.matches("^E[A-Z]+$", result.ranks[rank].out, result.out)
      end
    end
  end)

  it("by an error", function()
    local out = ends(pending .. "w:barrier()", 1)
    assert.matches("barrier #%d+ on world: .*: no %(rank 0%)", out)
  end)

  it("while the runtime's thread runs a callback", function()
    ends [[
      local f = perigee.future()
      f:on_done(function() perigee.sleep(0.3) end)
      f:set_result()
      perigee.sleep(0.1)
    ]]
  end)

  it("with objects whose parents went first", function()
    ends [[
      local s = perigee.store.prefix("a", perigee.store.prefix("b", perigee.store.hash()))
      local w = perigee.init{rank = 0, size = 1}
      local part = w:split(0)
      w = nil
      collectgarbage() collectgarbage()
      assert(part:allreduce(1) == 1)
      local t = perigee.arange("f32", 100):narrow(1, 5, 5)
      collectgarbage()
      assert(t[1] == 4)
    ]]
  end)

  it("while finalizers use the module", function()
    ends [[
      local w = perigee.init{rank = 0, size = 1}
      local t = perigee.zeros("f32", 1)
      setmetatable({}, {__gc = function()
        pcall(w.allreduce, w, t)
        pcall(perigee.init, {rank = 0, size = 1})
        pcall(perigee.backend, "late")
        pcall(perigee.step)
      end})
    ]]
  end)
end)

describe("the collector", function()
  it("is told about tensors", function()
    collectgarbage()
    -- 4 GiB of tensors in all, of which only a few may live at once.
    for _ = 1, 256 do perigee.zeros("u8", 16 << 20) end
    local status = io.open("/proc/self/status"):read "a"
    local kib = tonumber(status:match "VmRSS:%s+(%d+)")
    assert.is_true(kib < 1 << 20, kib .. " KiB")
  end)

  it("may run at every moment", function()
    local world = helpers.world()
    finally(helpers.close_all)
    collectgarbage "generational"
    collectgarbage "incremental"
    collectgarbage("setpause", 0)
    for i = 1, 200 do
      local work = world:allreduce(perigee.full("f32", 10, i), { async = true })
      local mapped = work:map(function(t) return t:sum() end)
      work = nil -- luacheck: ignore
      assert.equal(10 * i, mapped:wait(5))
    end
    collectgarbage("setpause", 200)
    collectgarbage()
    collectgarbage()
    assert.is_true(perigee.stats().ready == 0)
  end)

  it("releases what callbacks held", function()
    collectgarbage()
    perigee.step()
    local refs = perigee.stats().refs
    for _ = 1, 100 do
      local f = perigee.future()
      f:map(function(v) return v end):on_done(function() end)
      f:set_result { 1 }
    end
    while perigee.step() do end -- luacheck: ignore
    collectgarbage()
    collectgarbage()
    perigee.sleep(0)
    assert.equal(refs, perigee.stats().refs)
  end)
end)
