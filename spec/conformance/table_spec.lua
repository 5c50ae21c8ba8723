-- The conformance table on every number of ranks and both transports.
local support = require "cli.support"

local root = io.popen("pwd"):read "l"

local function assert_passed(run, transport)
  assert.equal(0, run.code, run.out .. run.err)
  local cells, used = run.out:match "(%d+) cells passed %((%a+)"
  assert.is_truthy(cells, run.out)
  assert.is_true(tonumber(cells) > 1000)
  assert.equal(transport, used)
end

describe("conformance table", function()
  after_each(support.cleanup)
  for _, transport in ipairs { "shm", "tcp" } do
    for _, n in ipairs(transport == "shm" and { 1, 2, 3, 4, 5, 8 } or { 2, 3, 4, 5, 8 }) do -- 1 has no transport
      it(("holds on %d rank%s over %s"):format(n, n > 1 and "s" or "", transport), function()
        local run = support.bash(([[
          export PERIGEE_TRANSPORT=%s PERIGEE_TIMEOUT=50
          timeout -k 2 170 $P run -n %d --timeout 160 %s/spec/conformance/table.lua
        ]]):format(transport, n, root), nil, 180)
        assert_passed(run, n == 1 and "self" or transport)
      end)
    end
  end
  for _, rule in ipairs { "hier", "direct" } do
    it(("holds on 2 hosts of 2 ranks by %s"):format(rule), function()
      local run = support.bash(([[
        export PERIGEE_TIMEOUT=50 PERIGEE_SELECT=allreduce:0-:%s
        timeout -k 2 170 $P run -n 4 --timeout 160 bash -c \
          'PERIGEE_HOST_ID=host$((RANK/2)) exec $P lua %s/spec/conformance/table.lua'
      ]]):format(rule, root), nil, 180)
      assert_passed(run, "tcp")
    end)
  end

  it("holds on 5 ranks by halving and bruck", function()
    local run = support.bash(([[
      export PERIGEE_TRANSPORT=tcp PERIGEE_TIMEOUT=50 PERIGEE_SELECT="allreduce+reduce:0-:halving;alltoall:0-:bruck"
      timeout -k 2 170 $P run -n 5 --timeout 160 %s/spec/conformance/table.lua
    ]]):format(root), nil, 180)
    assert_passed(run, "tcp")
  end)

  for _, path in ipairs { "inline", "oneshot", "twoshot", "cma", "symmetric", "tcp" } do
    it("holds with PERIGEE_PATH=" .. path, function()
      local run = support.bash(([[
        export PERIGEE_PATH=%s PERIGEE_TIMEOUT=50
        timeout -k 2 170 $P run -n 3 --timeout 160 %s/spec/conformance/table.lua
      ]]):format(path, root), nil, 180)
      assert_passed(run, path == "tcp" and "tcp" or "shm")
    end)
  end
end)
