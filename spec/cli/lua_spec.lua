-- Rule: a script under `perigee run` sees what lua5.4 would show it, and its errors are told with a traceback.
package.path = "./spec/?.lua;" .. package.path
local support = require "cli.support"
local run, bash = support.run, support.bash

describe("scripts of perigee run", function()
  after_each(support.cleanup)

  it("get arg and ... as from lua5.4", function()
    local r = run("-n 1 a.lua one 'two three' ''", { ["a.lua"] = [[
      print(...)
      print(#arg, arg[0], arg[1], arg[2], arg[3], arg[-1], arg[-2])
    ]] })
    assert.equal("one\ttwo three\t\n3\ta.lua\tone\ttwo three\t\tlua\t" .. support.absolute_bin() .. "\n", r.out)
  end)

  it("find the module, and modules beside them", function()
    local r = run("-n 1 a.lua", {
      ["a.lua"] = [[
        print(package.preload["perigee.core"] ~= nil)
        print(package.searchpath("perigee", package.path) ~= nil)
        print(require("b"))
      ]],
      ["b.lua"] = "return 'beside'",
    })
    assert.is_truthy(r.out:match "^true\ntrue\nbeside", r.out .. r.err)
  end)

  it("have their error objects told by __tostring, and others by type", function()
    local r = run("-n 1 a.lua", { ["a.lua"] =
      "error(setmetatable({}, { __tostring = function() return 'my words' end }))" })
    assert.equal(1, r.code)
    assert.is_truthy(r.err:match "^perigee: my words\nstack traceback:\n", r.err)
    r = run("-n 1 a.lua", { ["a.lua"] = "error({})" })
    assert.is_truthy(r.err:match "^perigee: %(error object is a table value%)\n", r.err)
    r = run("-n 1 a.lua", { ["a.lua"] = "error()" })
    assert.is_truthy(r.err:match "^perigee: %(error object is a nil value%)\n", r.err)
    r = run("-n 1 a.lua", { ["a.lua"] =
      "error(setmetatable({}, { __tostring = function() error 'worse' end }))" })
    assert.equal(1, r.code)
    assert.is_truthy(r.err:match "^perigee: ", r.err)
  end)

  it("have syntax errors told with the line", function()
    local r = run("-n 1 a.lua", { ["a.lua"] = "x = = 1" })
    assert.equal(1, r.code)
    assert.is_truthy(r.err:match "^perigee: a.lua:1: unexpected symbol near '='\n", r.err)
  end)

  it("are never bytecode", function()
    local r = run("-n 1 a.lua", { ["a.lua"] = string.dump(function() print "ran" end) })
    assert.equal(1, r.code)
    assert.equal("", r.out)
    assert.is_true(support.has(r.err, "attempt to load a binary chunk"))
  end)

  it("may begin with #!", function()
    assert.equal("ran\n", run("-n 1 a.lua", { ["a.lua"] = "#!/usr/bin/env lua\nprint 'ran'" }).out)
  end)

  it("have warnings on", function()
    assert.is_true(support.has(run("-n 1 a.lua", { ["a.lua"] = "warn('careful')" }).err, "Lua warning: careful"))
  end)

  it("end with os.exit's code, closing the state when asked", function()
    local files = { ["a.lua"] = [[
      setmetatable({}, { __gc = function() print "closed" end })
      os.exit(3, arg[1] == "close")
    ]] }
    local r = run("-n 1 a.lua", files)
    assert.same({ 3, "" }, { r.code, r.out })
    r = run("-n 1 a.lua close", files)
    assert.same({ 3, "closed\n" }, { r.code, r.out })
  end)

  it("have their state closed at the end, also after an error", function()
    local r = run("-n 1 a.lua", { ["a.lua"] = [[
      local t <close> = setmetatable({}, { __close = function() print "close" end })
      gc = setmetatable({}, { __gc = function() print "gc" end })
      error "x"
    ]] })
    assert.same({ 1, "close\ngc\n" }, { r.code, r.out })
  end)

  it("print line by line through a pipe", function()
    local r = bash([[
      $P run -n 1 a.lua | while read -r line; do echo "$line"; touch seen; done ]], { ["a.lua"] = [[
      print "first"
      for _ = 1, 500 do
        if io.open "seen" then print "second" return end
        os.execute "sleep 0.01"
      end
      print "never seen"
    ]] })
    assert.equal("first\nsecond\n", r.out)
  end)

  it("do not see the launcher's own variables and descriptors", function()
    local r = bash([[lua5.4 a.lua 2>&1 | cat; $P run -n 1 a.lua 2>&1 | cat]], { ["a.lua"] = [[
      print(os.getenv "PERIGEE_REPORT_FD")
      io.stdout:flush()
      os.execute "ls /proc/self/fd | tr '\n' ' '; echo"
    ]] })
    local lines = support.lines(r.out)
    assert.equal(4, #lines)
    assert.equal("nil", lines[3])
    assert.equal(lines[2], lines[4])
  end)
end)
