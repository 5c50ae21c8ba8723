-- Rule: the command explains itself.
package.path = "./spec/?.lua;" .. package.path
local support = require "cli.support"
local bash = support.bash

describe("perigee", function()
  after_each(support.cleanup)

  it("prints its version", function()
    local r = bash "$P --version"
    assert.equal(0, r.code)
    assert.is_truthy(r.out:match "^perigee %d+%.%d+%.%d+\n$", r.out)
  end)

  it("prints help, for itself and for each command", function()
    for arguments, part in pairs { ["--help"] = "Commands", ["run --help"] = "Examples", ["info --help"] = "Usage" } do
      local r = bash("$P " .. arguments)
      assert.equal(0, r.code)
      assert.equal("", r.err)
      assert.is_true(support.has(r.out, part))
      for _, line in ipairs(support.lines(r.out)) do assert.is_true(#line <= 100, line) end
    end
  end)

  it("names every option of run in its help", function()
    local help = bash("$P run --help").out
    for _, option in ipairs { "-n ", "--nnodes", "--node-rank", "--endpoint", "-x ", "--prefix", "--ranks",
      "--log-dir", "--timeout", "--grace", "--keep-going" } do
      assert.is_true(support.has(help, option), option)
    end
  end)

  it("refuses what it does not know with code 2", function()
    for arguments, part in pairs { ["what"] = "'what'", ["info more"] = "'more'", [""] = "Usage", ["lua"] = "Usage" } do
      local r = bash("$P " .. arguments)
      assert.equal(2, r.code)
      assert.equal("", r.out)
      assert.is_true(support.has(r.err, part), r.err)
    end
  end)

  it("prints what it runs on and what it reads", function()
    local r = bash "PERIGEE_TIMEOUT=77 $P info"
    assert.equal(0, r.code)
    for _, part in ipairs { "perigee ", "Lua 5.4", "cores ", "page size ", "kernel ", "transports ",
      "* PERIGEE_TIMEOUT=77", "  PERIGEE_BACKEND=native" } do
      assert.is_true(support.has(r.out, part), part)
    end
  end)

  it("works with closed standard descriptors", function()
    local r = bash "$P run -n 2 sh -c 'echo $RANK >$D/r.$RANK' <&- >&- 2>&-; cat r.0 r.1"
    assert.equal("0\n1\n", r.out)
  end)
end)
