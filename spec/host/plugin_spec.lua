-- Plug-ins in C: found by name and by path, refused with the reason, used like every other backend.
local helpers = require "helpers"
local perigee = require "perigee"

local build = os.getenv "PERIGEE_BUILD" or "build"
local good, bad = build .. "/plugins", build .. "/spec_plugins"

--- Runs a script with a search path; the script's working folder is `dir`.
local function lua(path, text, dir)
  local file = os.tmpname()
  local f <close> = assert(io.open(file, "wb"))
  f:write('local perigee = require "perigee"\n', text)
  f:close()
  local p = assert(io.popen(("cd %s && PERIGEE_BACKEND_PATH='%s' timeout -k 2 30 lua5.4 %s 2>&1"):format(
    dir or ".", path, file)))
  local out = p:read "a"
  local ok = p:close()
  os.remove(file)
  return ok == true, out
end

local function ok(path, text, dir)
  local done, out = lua(path, text, dir)
  assert.is_true(done, out)
  return out
end

describe("a plug-in", function()
  it("is found by name when a stack names it", function()
    local out = ok("/nowhere::" .. good, [[
      local world <close> = perigee.init { backend = "count(native)", rank = 0, size = 1 }
      assert(world.backend == "count(native)")
      local t = perigee.full("f32", 10, 2)
      world:allreduce(t)
      world:allreduce(t, { async = true }):wait()
      world:broadcast(t)
      world:barrier()
      assert(t[1] == 2)
    ]])
    assert.matches("count: allreduce on world %(rank 0%): 2 calls, 80 bytes, [%d.]+ us each", out)
    assert.matches("count: broadcast on world %(rank 0%): 1 calls, 40 bytes", out)
    assert.matches("count: barrier on world %(rank 0%): 1 calls, 0 bytes", out)
  end)

  it("stands above, below and between layers in Lua, and has a default stack below", function()
    local out = ok(good, [[
      local B = perigee.backend "above"
      function B:allreduce(t, o) return self.inner:allreduce(t, o):map(function() t[1]:add_(1) end) end
      local world <close> = perigee.init { backend = "above(count(above(count)))", rank = 0, size = 1 }
      assert(world.backend == "above(count(above(count(native))))", world.backend)
      assert(world:allreduce(1) == 3)
    ]])
    local _, lines = out:gsub("count: allreduce on world", "")
    assert.equal(2, lines)
  end)

  it("is loaded by name or path with load_backend", function()
    ok(good, [[
      assert(perigee.load_backend "count" == "count")
      assert(perigee.load_backend "count" == "count")
      assert(perigee.backend_inner "count" == "native")
      assert(perigee.load_backend "native" == "native")
    ]])
    ok("", ([[
      assert(perigee.load_backend("%s/perigee_count.so") == "count")
      perigee.init { backend = "count", rank = 0, size = 1 }:close()
    ]]):format(good))
  end)

  it("may be a bottom, and register more than one name", function()
    ok(bad, [[
      for _, name in ipairs { "bottom", "bottom-too" } do
        local world <close> = perigee.init { backend = name, rank = 0, size = 1 }
        assert(world.backend == name)
        world:barrier()
        local done, e = pcall(world.allreduce, world, 1)
        assert(not done and e.code == "ENOTSUP")
      end
    ]])
  end)

  it("is not looked for in the current folder", function()
    for _, path in ipairs { "", ":", "/nowhere" } do
      ok(path, [[
        local done, e = pcall(perigee.init, { backend = "count(native)", rank = 0, size = 1 })
        assert(not done and e.code == "ENOENT", tostring(e))
        done, e = pcall(perigee.load_backend, "perigee_count.so")
        assert(not done and e.code == "EINVAL", tostring(e))
      ]], good)
    end
    ok(".", [[ perigee.load_backend "count" ]], good)
    ok("", [[ assert(perigee.load_backend "./perigee_count.so" == "count") ]], good)
  end)

  local function refusal(name)
    local done, out = lua(bad, ([[
      local ok, e = pcall(perigee.init, { backend = "%s(native)", rank = 0, size = 1 })
      assert(not ok)
      io.write(e.code, " ", e.message)
    ]]):format(name))
    assert.is_true(done, out)
    return out
  end

  it("is refused with the reason", function()
    assert.matches("^EVERSION .*perigee_old_abi.so: made for version 99 of the interface of backends, here it is 1",
      refusal "old_abi")
    assert.matches("^EINVAL .*perigee_no_symbol.so is no plug%-in: it has no perigee_plugin_v1", refusal "no_symbol")
    assert.matches("^EINVAL .*perigee_no_ops.so: a plug%-in needs ops or init", refusal "no_ops")
    assert.matches("^ENOTSUP .*perigee_init_fails.so: its init failed: not here", refusal "init_fails")
    assert.matches("^EINVAL backend 'unresolved' cannot be loaded: .*perigee_of_the_future", refusal "unresolved")
    assert.matches("^ENOENT there is no backend 'absent' %(nor a perigee_absent.so in .*spec_plugins, /",
      refusal "absent")
  end)
end)

describe("a plug-in that fails without a message", function()
  it("gets one that names it", function()
    ok(bad, [[
      local world <close> = perigee.init { backend = "silent", rank = 0, size = 1 }
      pcall(perigee.load_backend, "/nowhere/perigee_x.so") -- a message that is not its own
      local done, e = pcall(world.allreduce, world, 1)
      assert(not done and e.code == "ELIMIT" and e.message == "backend 'silent': allreduce: limit reached", tostring(e))
      done, e = pcall(world.allreduce, world, perigee.zeros("f32", 1), { async = true })
      assert(not done and e.code == "ERANGE", tostring(e))
      assert(e.message == "backend 'silent': allreduce: value out of range", e.message)
    ]])
    local _, out = lua(bad .. "' PERIGEE_TEST_SILENT='open", [[
      perigee.init { backend = "silent", rank = 0, size = 1 }
    ]])
    assert.matches("backend 'silent': open: out of memory", out)
  end)
end)

describe("perigee.load_backend", function()
  it("loads a file of Lua text", function()
    local path = os.tmpname() .. ".lua"
    local f = assert(io.open(path, "w"))
    f:write "local B = {} function B:barrier() return true end return B"
    f:close()
    assert.equal("from_a_file", perigee.load_backend(path, "from_a_file"))
    local world = helpers.world { backend = "from_a_file" }
    finally(function() helpers.close_all() os.remove(path) end)
    world:barrier()
    assert.matches("^lua_", perigee.load_backend(path))
  end)

  it("refuses what it cannot load", function()
    local function code(...)
      local e = helpers.raised(perigee.load_backend, ...)
      return e and e.code
    end
    assert.equal("EINVAL", code())
    assert.equal("EINVAL", code "")
    assert.equal("EINVAL", code(5))
    assert.equal("EINVAL", code("native", "other"))
    assert.equal("EINVAL", code "../native")
    assert.equal("ENOENT", code "/nowhere/perigee_x.so")
    assert.equal("ENOENT", code "/nowhere/x.lua")
    assert.equal("ENOENT", code "nobody_has_this")
  end)
end)
