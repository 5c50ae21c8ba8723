-- Rule: ranks start with what they need to find each other, and with nothing of the launcher's in their way.
package.path = "./spec/?.lua;" .. package.path
local support = require "cli.support"
local run, bash = support.run, support.bash

describe("ranks of perigee run", function()
  after_each(support.cleanup)

  it("get the variables of torchrun", function()
    local r = run [[-n 2 --prefix never sh -c \
      'echo $RANK $WORLD_SIZE $LOCAL_RANK $LOCAL_WORLD_SIZE $GROUP_RANK $MASTER_ADDR $MASTER_PORT $PERIGEE_RUN_ID']]
    local lines = support.sorted_lines(r.out)
    local port, id = lines[1]:match "^0 2 0 2 0 127%.0%.0%.1 (%d+) (%x+)$"
    assert.is_truthy(port, lines[1])
    assert.equal(32, #id)
    assert.equal(("1 2 1 2 0 127.0.0.1 %s %s"):format(port, id), lines[2])
    assert.is_true(tonumber(port) > 0)
  end)

  it("get a run id of their own in each job", function()
    local r = bash "for i in 1 2 3; do $P run sh -c 'echo $PERIGEE_RUN_ID'; done | sort -u | wc -l"
    assert.equal("3\n", r.out)
  end)

  it("keep the environment, with -x on top", function()
    local r = bash [[A=1 B=2 RANK=77 $P run -n 1 -x B=three -x C=a=b sh -c 'echo "$A $B $C $RANK"']]
    assert.equal("1 three a=b 0\n", r.out)
  end)

  it("can reach the store of the launcher", function()
    local r = run [[-n 2 bash -c 'exec 3<>/dev/tcp/$MASTER_ADDR/$MASTER_PORT && echo reached']]
    assert.same({ "[0] reached", "[1] reached" }, support.sorted_lines(r.out))
  end)

  it("are as many as there are cores with -n auto", function()
    local r = bash "$P run -n auto --prefix never sh -c 'echo $WORLD_SIZE' | sort -u; nproc"
    local lines = support.lines(r.out)
    assert.equal(2, #lines)
    assert.is_true(tonumber(lines[1]) >= 1 and tonumber(lines[1]) <= tonumber(lines[2]))
  end)

  it("lead a session and a process group", function()
    local r = run [[-n 2 sh -c 'set -- $(sed "s/.*) //" /proc/$$/stat); test "$3 $4" = "$$ $$" && echo leader']]
    assert.same({ "[0] leader", "[1] leader" }, support.sorted_lines(r.out))
  end)

  it("inherit no descriptor, no blocked signal and no handled signal", function()
    -- signals 1 to 31: those above belong to the C library's threads
    local look = [[bash -c 'ls /proc/self/fd | tr "\n" " "; for set in Blk Ign Cgt; do
      echo -n "$set $((0x$(sed -n "s/^Sig$set:.//p" /proc/self/status) & 0x7fffffff)) "; done; echo']]
    local direct = bash(look .. " 2>&1 | cat").out:gsub("\n$", "")
    local r = bash("$P run -n 2 --prefix never " .. look .. " 2>&1 | cat")
    assert.same({ direct, direct }, support.lines(r.out))
  end)

  it("are named by rank in jobs of many", function()
    local r = run("-n 40 sh -c 'echo $RANK'")
    assert.equal(0, r.code)
    local lines = support.lines(r.out)
    assert.equal(40, #lines)
    for _, line in ipairs(lines) do
      local prefix, rank = line:match "^%[(%d+)%] (%d+)$"
      assert.is_truthy(prefix)
      assert.equal(prefix, rank)
    end
  end)

  it("may be more than the soft limit of descriptors allows, which they get unchanged", function()
    local r = bash [[ulimit -Sn 64; $P run -n 40 --prefix never sh -c 'ulimit -Sn' | sort | uniq -c | tr -s ' ']]
    assert.equal(" 40 64\n", r.out)
  end)
end)
