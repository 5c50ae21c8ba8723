-- Every example runs as it stands, on several numbers of ranks and both transports, and without a launcher.
local support = require "cli.support"

local root = io.popen("pwd"):read "l"

local function run(arguments, transport, limit)
  return support.bash(([[
    cd %s
    export PERIGEE_TRANSPORT=%s
    timeout -k 2 %d $P run %s
  ]]):format(root, transport or "auto", limit or 50, arguments), nil, (limit or 50) + 5)
end

describe("examples", function()
  after_each(support.cleanup)

  for _, name in ipairs { "hello", "custom_backend", "custom_op", "ring", "subgroups" } do
    for _, n in ipairs { 1, 2, 4 } do
      it(("%s.lua on %d"):format(name, n), function()
        local r = run(("-n %d examples/%s.lua"):format(n, name))
        assert.equal(0, r.code, r.out .. r.err)
        assert.equal("", r.err)
        assert.is_true(#r.out > 0)
      end)
    end
    it(name .. ".lua on 3 over tcp", function()
      local r = run(("-n 3 examples/%s.lua"):format(name), "tcp")
      assert.equal(0, r.code, r.out .. r.err)
    end)
  end

  it("digits.lua learns on 1, 3, 4 and 8 ranks", function()
    for _, n in ipairs { 1, 3, 4, 8 } do
      local r = run(("-n %d examples/digits.lua 6"):format(n), "auto", 100)
      assert.equal(0, r.code, r.out .. r.err)
      assert.is_true(tonumber(r.out:match "accuracy%s%s+([%d.]+) %%") >= 93, r.out)
      assert.is_true(tonumber(r.out:match "bytes saved%s+(%d+)") == 6 * 24 * 650 * 2, r.out)
      assert.is_true(support.has(r.out, "bit-identical on all ranks"), r.out)
    end
  end)

  it("digits.lua runs under lua5.4 without a launcher", function()
    local r = support.bash(("cd %s && timeout 50 lua5.4 examples/digits.lua 6"):format(root))
    assert.equal(0, r.code, r.out .. r.err)
    assert.is_true(support.has(r.out, "bit-identical on all ranks"), r.out)
  end)

  it("digits.lua fails, saying why, when it has not learnt enough", function()
    local r = run "-n 2 examples/digits.lua 0"
    assert.equal(1, r.code)
    assert.is_true(support.has(r.err, "accuracy 0.0000 is below 0.93"), r.err)
  end)

  it("embed.c runs a Lua backend from C", function()
    for _, n in ipairs { 1, 3 } do
      local program = (os.getenv "PERIGEE_BUILD" or "build") .. "/example_embed"
      local r = run(("-n %d %s examples/backends/fp16.lua"):format(n, program))
      assert.equal(0, r.code, r.out .. r.err)
      local said = ("through fp16(native): %d %d %d %d"):format(n, 2 * n, 3 * n, 4 * n)
      assert.is_true(support.has(r.out, said), r.out)
    end
  end)
end)
