-- Rule: launchers of several nodes act as one: same job, same end. Nodes are launchers on this machine here.
package.path = "./spec/?.lua;" .. package.path
local support = require "cli.support"

-- on NODE ARGUMENTS...: the launcher of one of two nodes, 2 ranks each, its output in o.<node> and e.<node>
local shell = support.shell .. [[
endpoint=127.0.0.1:$($P run sh -c 'echo $MASTER_PORT')
on() {
  local node=$1; shift
  timeout -k 2 40 $P run -n 2 --nnodes 2 --node-rank $node --endpoint $endpoint --grace 2 "$@" \
    >o.$node 2>e.$node
}
]]

local function bash(script)
  local r = support.bash(shell .. script)
  for _, name in ipairs { "o.0", "o.1", "e.0", "e.1" } do
    local f = io.open(r.dir .. "/" .. name)
    r[name] = f and f:read "a" or ""
    if f then f:close() end
  end
  return r
end

describe("perigee run on several nodes", function()
  after_each(support.cleanup)

  it("numbers ranks over all nodes and gives them one store and one run id", function()
    local words = "sh -c 'echo $RANK $WORLD_SIZE $LOCAL_RANK $LOCAL_WORLD_SIZE $GROUP_RANK " ..
      "$MASTER_ADDR:$MASTER_PORT $PERIGEE_RUN_ID'"
    local r = bash("on 1 " .. words .. " & sleep 0.2; on 0 " .. words .. "; echo $?; wait $!; echo $?; echo $endpoint")
    local code0, code1, endpoint = r.out:match "^(%d+)\n(%d+)\n(%S+)\n$"
    assert.same({ "0", "0" }, { code0, code1 })
    local lines = support.sorted_lines(r["o.0"] .. r["o.1"])
    local id = lines[1]:match "%x+$"
    assert.equal(32, #id)
    for rank = 0, 3 do
      assert.equal(("[%d] %d 4 %d 2 %d %s %s"):format(rank, rank, rank % 2, rank // 2, endpoint, id), lines[rank + 1])
    end
  end)

  it("ends on all nodes at the first failure, with its code", function()
    local words = [[sh -c 'if [ $RANK = 3 ]; then sleep 0.3; echo why >&2; exit 21; fi; exec sleep 30']]
    local r = bash("on 1 " .. words .. " & on 0 " .. words .. "; echo $?; wait $!; echo $?")
    assert.equal("21\n21\n", r.out)
    assert.is_true(support.has(r["e.0"], "perigee run: rank 3 on node 1 failed first: exit code 21\n"))
    assert.is_true(support.has(r["e.1"], "perigee run: rank 3 failed first: exit code 21\nwhy\n"))
    assert.is_true(r.seconds < 20)
  end)

  it("ends on all nodes with a signal to one", function()
    local words = [[sh -c 'echo $PPID >$D/l.$GROUP_RANK; echo $$ >$D/pid.$RANK; exec sleep 30']]
    local r = bash("on 1 " .. words .. " & one=$!; on 0 " .. words .. [[ & zero=$!
      wait_for pid.0 pid.1 pid.2 pid.3
      kill -TERM $(cat l.1)
      wait $one; echo $?; wait $zero; echo $?
      gone_in 10 $(cat pid.*) && echo gone]])
    assert.equal("143\n143\ngone\n", r.out)
    assert.is_true(support.has(r["e.0"], "node 1 was ended by SIGTERM"))
  end)

  it("keeps the store up until the last node is done", function()
    local r = bash [[
      on 1 bash -c 'sleep 1; exec 3<>/dev/tcp/$MASTER_ADDR/$MASTER_PORT && echo reached' & one=$!
      on 0 true; echo $?; wait $one; echo $?]]
    assert.equal("0\n0\n", r.out)
    assert.same({ "[2] reached", "[3] reached" }, support.sorted_lines(r["o.1"]))
  end)

  it("ends when the launcher of node 0 is killed", function()
    local words = [[sh -c 'echo $PPID >$D/l.$GROUP_RANK; echo $$ >$D/pid.$RANK; exec sleep 30']]
    local r = bash("on 1 " .. words .. " & one=$!; on 0 " .. words .. [[ &
      wait_for pid.0 pid.1 pid.2 pid.3
      kill -9 $(cat l.0)
      wait $one; echo $?
      gone_in 10 $(cat pid.*) && echo gone]])
    assert.equal("1\ngone\n", r.out)
    assert.is_true(support.has(r["e.1"], "the launcher of node 0 at 127.0.0.1:"))
    assert.is_true(r.seconds < 20)
  end)

  it("ends when the launcher of another node is killed", function()
    local words = [[sh -c 'echo $PPID >$D/l.$GROUP_RANK; echo $$ >$D/pid.$RANK; exec sleep 30']]
    local r = bash("on 1 " .. words .. " & on 0 " .. words .. [[ & zero=$!
      wait_for pid.0 pid.1 pid.2 pid.3
      kill -9 $(cat l.1)
      wait $zero; echo $?
      gone_in 10 $(cat pid.*) && echo gone]])
    assert.equal("1\ngone\n", r.out)
    assert.is_true(support.has(r["e.0"], "the launcher of node 1 has been silent for 10 s"))
    assert.is_true(r.seconds < 27)
  end)

  it("refuses nodes that do not fit together", function()
    local r = bash [[
      on 1 -n 3 true & one=$!
      on 0 true; echo $?; wait $one; echo $?]]
    assert.equal("1\n1\n", r.out)
    assert.is_true(support.has(r["e.0"] .. r["e.1"], "-n 3"))
    r = bash [[
      on 0 true & zero=$!
      until (exec 3<>/dev/tcp/${endpoint/://}) 2>/dev/null; do sleep 0.01; done
      PERIGEE_INIT_TIMEOUT=2 on 0 true; echo $?
      PERIGEE_INIT_TIMEOUT=2 on 1 true; echo $?; wait $zero; echo $?]]
    assert.is_true(support.has(r["e.0"], "address already in use"), r["e.0"])
    assert.equal("1\n0\n0\n", r.out)
  end)

  it("says who did not come", function()
    local r = bash [[PERIGEE_INIT_TIMEOUT=1 on 0 true; echo $?]]
    assert.equal("1\n", r.out)
    assert.is_true(support.has(r["e.0"], "node 1 did not come to 127.0.0.1:"))
    assert.is_true(r.seconds < 20)
  end)
end)
