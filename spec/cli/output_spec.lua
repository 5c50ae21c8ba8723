-- Rule: what ranks print arrives whole, marked with the rank, where it was asked for.
package.path = "./spec/?.lua;" .. package.path
local support = require "cli.support"
local run, bash = support.run, support.bash

describe("output of perigee run", function()
  after_each(support.cleanup)

  it("has the rank before each line of stdout and stderr", function()
    local r = run("-n 3 sh -c 'echo out; echo err >&2'")
    assert.equal(0, r.code)
    assert.same({ "[0] out", "[1] out", "[2] out" }, support.sorted_lines(r.out))
    assert.same({ "[0] err", "[1] err", "[2] err" }, support.sorted_lines(r.err))
  end)

  it("has no prefix for a lone rank, and gives its bytes on unchanged", function()
    local r = run [[-n 1 printf 'a\rb\n\000partial']]
    assert.equal(0, r.code)
    assert.equal("a\rb\n\0partial", r.out)
  end)

  it("follows --prefix", function()
    assert.equal("[0] a\n", run("-n 1 --prefix always echo a").out)
    assert.equal("a\na\n", run("-n 2 --prefix never echo a").out)
  end)

  it("never mixes lines of different ranks", function()
    local r = run("-n 4 w.lua", { ["w.lua"] = [[
      local rank = os.getenv "RANK"
      for i = 1, 300 do
        io.write("rank ", rank)
        if i % 50 == 0 then io.stdout:flush() end
        io.write(" line ", i, " ", ("x"):rep(i), "\n")
      end
    ]] })
    local seen = { 0, 0, 0, 0 }
    for _, line in ipairs(support.lines(r.out)) do
      local prefix, rank, i, x = line:match "^%[(%d)%] rank (%d) line (%d+) (x+)$"
      assert.is_truthy(prefix, line)
      assert.equal(prefix, rank)
      assert.equal(tonumber(i), #x)
      seen[rank + 1] = seen[rank + 1] + 1
      assert.equal(seen[rank + 1], tonumber(i))
    end
    assert.same({ 300, 300, 300, 300 }, seen)
  end)

  it("keeps partial lines until the rank ends", function()
    local r = run [[-n 2 sh -c 'printf "a $RANK"; sleep 0.1; printf " b"']]
    assert.same({ "[0] a 0 b", "[1] a 1 b" }, support.sorted_lines(r.out))
  end)

  it("shows only the last state of a progress bar off a terminal", function()
    local r = run [[-n 2 sh -c 'printf "10%%\r"; sleep 0.05; printf "50%%\r"; printf "done\n"']]
    assert.equal("[0] done\n[1] done\n", table.concat(support.sorted_lines(r.out), "\n") .. "\n")
  end)

  it("redraws progress bars on a terminal", function()
    local r = bash [[
      show='for i in 1 5 9; do printf "\r$i%%"; sleep 0.05; done; echo'
      export show
      script -qec "$P run -n 2 --ranks 0 sh -c 'eval \"\$show\"'" /dev/null ]]
    assert.equal(0, r.code)
    local plain = r.out:gsub("\27%[[%d;]*m", "")
    assert.equal("[0] 1%\r\27[K[0] 5%\r\27[K[0] 9%\r\27[K[0] 9%\r\n", plain)
  end)

  it("colours prefixes on a terminal, unless NO_COLOR is set", function()
    local on = bash [[TERM=xterm script -qec "$P run -n 2 echo a" /dev/null]]
    assert.is_true(support.has(on.out, "\27[36m[0]\27[0m a"))
    assert.is_true(support.has(on.out, "\27[33m[1]\27[0m a"))
    local off = bash [[export NO_COLOR=1 TERM=xterm; script -qec "$P run -n 2 echo a" /dev/null]]
    assert.is_true(support.has(off.out, "[0] a"))
    assert.is_false(support.has(off.out, "\27["))
    assert.is_true(support.has(bash("CLICOLOR_FORCE=1 $P run -n 2 echo a").out, "\27[36m[0]\27[0m a"))
  end)

  it("tells ranks of the terminal and its width", function()
    local r = bash [[
      script -qec "stty cols 70; $P run -n 2 sh -c 'echo \$PERIGEE_TTY \$COLUMNS'" /dev/null
      PERIGEE_TTY=1 $P run -n 1 sh -c 'echo "<$PERIGEE_TTY>"' ]]
    assert.is_true(support.has(r.out, "1 66")) -- the prefix takes 4
    assert.is_true(support.has(r.out, "<>"))
  end)

  it("gives a lone rank the terminal itself", function()
    local r = bash [[script -qec "$P run sh -c 'test -t 1 && test -t 2 && echo yes'" /dev/null]]
    assert.equal("yes\r\n", r.out)
    assert.equal(0, r.code)
  end)

  it("shows only --ranks, and still the words of a failing one", function()
    local r = run("-n 5 --ranks 0,3-4 echo hello")
    assert.same({ "[0] hello", "[3] hello", "[4] hello" }, support.sorted_lines(r.out))
    r = run [[-n 3 --ranks 0 sh -c 'if [ $RANK = 2 ]; then echo why >&2; exit 5; fi; sleep 20']]
    assert.equal(5, r.code)
    assert.equal("", r.out)
    assert.equal("perigee run: rank 2 failed first: exit code 5\nwhy\n", r.err)
  end)

  it("writes logs of all ranks, without prefix and unfiltered", function()
    local r = run [[-n 3 --ranks 1 --log-dir logs/deep sh -c 'printf "a\r$RANK\nend"; echo err >&2']]
    assert.equal("[1] 1\n[1] end\n", r.out)
    for rank = 0, 2 do
      local dir = ("%s/logs/deep/rank_%04d/"):format(r.dir, rank)
      assert.equal(("a\r%d\nend"):format(rank), support.read(dir .. "stdout.log"))
      assert.equal("err\n", support.read(dir .. "stderr.log"))
    end
  end)

  it("refuses a log folder that cannot be", function()
    local r = run("-n 2 --log-dir /dev/null/x echo a")
    assert.equal(1, r.code)
    assert.is_true(support.has(r.err, "'/dev/null/x"))
  end)

  it("loses nothing when the reader is slow, and holds the ranks up", function()
    local r = bash([[$P run -n 2 w.lua | (sleep 1; cat) | wc -lc]], { ["w.lua"] = [[
      for _ = 1, 40000 do print(("x"):rep(95)) end
    ]] })
    assert.equal("  80000 8000000\n", r.out)
  end)

  it("ends the job when nobody reads any more", function()
    local r = bash [[$P run -n 2 yes | head -1; echo "${PIPESTATUS[0]}"]]
    assert.is_truthy(r.out:match "^%[%d%] y\n141\n$", r.out)
    assert.is_true(r.seconds < 20)
  end)

  it("gives stdin to rank 0 alone", function()
    local r = bash [[printf 'one\ntwo\n' | $P run -n 2 sh -c 'while read -r l; do echo "got $l"; done; echo end']]
    assert.same({ "[0] end", "[0] got one", "[0] got two", "[1] end" }, support.sorted_lines(r.out))
  end)

  it("shows what a crashed script had printed", function()
    local r = run("-n 2 c.lua", { ["c.lua"] = [[
      print "before"
      os.execute("kill -KILL $PPID")
    ]] })
    assert.is_true(support.has(r.out, "] before"))
    assert.equal(128 + 9, r.code)
  end)
end)
