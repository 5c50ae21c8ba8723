-- The same bits on all ranks, whatever the path, and with deterministic sums over messages too.
local support = require "cli.support"

local root = io.popen("pwd"):read "l"

describe("rounding", function()
  after_each(support.cleanup)

  local function bits(n, env)
    local run = support.bash(([[
      export PERIGEE_TIMEOUT=50 %s
      timeout -k 2 100 $P run -n %d --timeout 90 %s/spec/conformance/bits.lua
    ]]):format(env, n, root), nil, 110)
    assert.equal(0, run.code, run.out .. run.err)
    local value, transport = run.out:match "bits (%x+) (%a+)"
    assert.is_truthy(value, run.out .. run.err)
    return value, transport
  end

  it("is the same on all paths", function()
    local n = 3
    local expected = bits(n, "PERIGEE_WAIT=spin")
    for _, path in ipairs { "inline", "oneshot", "twoshot", "cma", "symmetric" } do
      for _, wait in ipairs { "spin", "park" } do
        local value, transport = bits(n, ("PERIGEE_PATH=%s PERIGEE_WAIT=%s"):format(path, wait))
        assert.same({ expected, "shm" }, { value, transport }, path .. ", " .. wait)
      end
    end
    for _, env in ipairs { "PERIGEE_PATH=tcp", "PERIGEE_TRANSPORT=tcp" } do
      local value, transport = bits(n, "PERIGEE_DETERMINISTIC=1 " .. env)
      assert.same({ expected, "tcp" }, { value, transport }, env)
      bits(n, env) -- ranks agree, in an order of its own
    end
  end)
end)
