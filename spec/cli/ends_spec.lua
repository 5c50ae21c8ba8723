-- Rule: every end of a job has its exit code and its reason, the first cause is told last, and nothing is left behind.
package.path = "./spec/?.lua;" .. package.path
local support = require "cli.support"
local run, bash, shell = support.run, support.bash, support.shell

-- Ranks write their process id to $D/pid.<rank>, the launcher's to $D/launcher, then wait.
local waiting = [[sh -c 'echo $PPID >$D/launcher; echo $$ >$D/pid.$RANK; exec sleep 30']]

describe("the end of perigee run", function()
  after_each(support.cleanup)

  it("is 0 when all ranks end well", function()
    local r = run("-n 3 true")
    assert.equal(0, r.code)
    assert.equal("", r.err)
  end)

  it("has the code of the first failing rank and its traceback last", function()
    local r = run("-n 4 f.lua", { ["f.lua"] = [[
      io.stderr:write("starting\n")
      if os.getenv "RANK" == "2" then
        local function inner() error("boom") end
        inner()
      end
      os.execute("exec sleep 30")
    ]] })
    assert.equal(1, r.code)
    assert.is_true(r.seconds < 15)
    local last = r.err:match "perigee run: (.*)$"
    assert.is_truthy(last)
    assert.equal(table.concat({
      "rank 2 failed first: exit code 1", "starting", "perigee: f.lua:3: boom", "stack traceback:",
      "\t[C]: in function 'error'", "\tf.lua:3: in local 'inner'", "\tf.lua:4: in main chunk",
      "\t[C]: in ?", "",
    }, "\n"), last)
  end)

  it("has the exit code that the rank chose", function()
    assert.equal(7, run("-n 2 e.lua", { ["e.lua"] = "if os.getenv 'RANK' == '1' then os.exit(7) end" }).code)
    local alone = run("-n 1 sh -c 'echo why >&2; exit 9'")
    assert.equal(9, alone.code)
    assert.equal("why\nperigee run: rank 0 failed: exit code 9\n", alone.err)
  end)

  it("is 128 + signal for a rank that was killed", function()
    local r = bash(shell .. [[
      timeout 20 $P run -n 3 ]] .. waiting .. [[ & job=$!
      wait_for pid.0 pid.1 pid.2
      kill -9 $(cat pid.1)
      wait $job; echo "code $?"
      gone_in 10 $(cat pid.0 pid.1 pid.2) && echo gone ]])
    assert.equal("code 137\ngone\n", r.out)
    assert.equal("perigee run: rank 1 failed first: killed by signal 9 (SIGKILL)\n", r.err)
  end)

  it("tells the first of several failures, also when they come at once", function()
    for _ = 1, 5 do
      local r = bash(shell .. [[
        timeout 20 $P run -n 4 sh -c 'echo $$ >$D/pid.$RANK; echo $PPID >$D/launcher
          while ! [ -e $D/go ]; do sleep 0.01; done
          [ $RANK = 3 ] && exit 33
          while ! grep -q "^State:.Z" /proc/$(cat $D/pid.3)/status; do :; done; exit 1' & job=$!
        wait_for pid.0 pid.1 pid.2 pid.3 launcher
        launcher=$(cat launcher)
        kill -STOP $launcher   # it wakes when all four have failed
        touch go
        gone_in 10 $(cat pid.0 pid.1 pid.2 pid.3) || echo late
        kill -CONT $launcher
        wait $job; echo "code $?" ]])
      assert.equal("code 33\n", r.out)
      assert.is_true(support.has(r.err, "rank 3 failed first: exit code 33"))
    end
  end)

  it("does not take a consequence for the cause", function()
    -- Rank 0 fails at once because "a peer died"; the peer's own failure comes later.
    local r = run("-n 3 c.lua", { ["c.lua"] = [[
      local rank = os.getenv "RANK"
      if rank == "0" then
        error(setmetatable({ code = "EPEERDEAD" }, { __tostring = function() return "peer died" end }))
      elseif rank == "2" then
        os.execute "sleep 0.2"
        error "the cause"
      end
      os.execute "exec sleep 20"
    ]] })
    assert.equal(1, r.code)
    assert.is_true(support.has(r.err, "rank 2 failed first: exit code 1\nperigee: c.lua:6: the cause\n"))
    assert.is_true(r.seconds < 15)
  end)

  it("knows a cause that is told before the process has ended", function()
    -- Rank 1 fails first, but closing its state takes longer than its peer's whole end.
    local r = run("-n 2 c.lua", { ["c.lua"] = [[
      if os.getenv "RANK" == "1" then
        setmetatable({}, { __gc = function() os.execute "touch failed; sleep 0.4" end })
        error "the cause"
      end
      while not io.open "failed" do os.execute "sleep 0.01" end
      error(setmetatable({ code = "EPEERCLOSED" }, { __tostring = function() return "peer closed" end }))
    ]] })
    assert.equal(1, r.code)
    assert.is_true(support.has(r.err, "rank 1 failed first: exit code 1\nperigee: c.lua:3: the cause\n"))
  end)

  for how, told in pairs {
    ["error 'my own fault'"] = "exit code 1\nperigee: g.lua:5: my own fault\n",
    ["os.exit(5)"] = "exit code 5\n",
    ["os.execute 'kill -9 $PPID'"] = "killed by signal 9 (SIGKILL)\n",
  } do
    it("is told by the rank that left its group, not by those that miss it: " .. how, function()
      for _ = 1, 3 do
        local r = run("-n 4 g.lua", { ["g.lua"] = [[
          local perigee = require "perigee"
          local world <close> = perigee.init()
          for i = 1, 1e9 do
            if i == 500 and world.rank == 2 then
              ]] .. how .. [[

            end
            world:allreduce(i)
          end
        ]] })
        assert.is_true(support.has(r.err, "perigee run: rank 2 failed first: " .. told), r.err)
        assert.is_true(r.seconds < 15)
      end
    end)
  end

  it("tells a consequence when no cause comes", function()
    local r = run("-n 2 c.lua", { ["c.lua"] = [[
      if os.getenv "RANK" == "0" then
        error(setmetatable({ code = "EPEERDEAD" }, { __tostring = function() return "peer died" end }))
      end
      os.execute "exec sleep 20"
    ]] })
    assert.equal(1, r.code)
    assert.is_true(support.has(r.err, "rank 0 failed first: exit code 1\nperigee: peer died\n"))
    assert.is_true(r.seconds < 15)
  end)

  it("gives ranks --grace before SIGKILL", function()
    local r = bash(shell .. [[
      start=$(date +%s%N)
      timeout 20 $P run -n 2 --grace 0.6 sh -c '
        if [ $RANK = 0 ]; then trap "" TERM; echo $$ >$D/pid.0; while :; do sleep 0.05; done; fi
        while ! [ -s $D/pid.0 ]; do sleep 0.01; done; exit 3'
      echo "code $?"
      ms=$((($(date +%s%N) - start) / 1000000))
      [ $ms -ge 600 ] && [ $ms -lt 5000 ] && echo in time || echo "took $ms ms"
      gone_in 10 $(cat pid.0) && echo gone ]])
    assert.equal("code 3\nin time\ngone\n", r.out)
  end)

  it("lets the others run with --keep-going", function()
    local r = run [[-n 3 --keep-going sh -c 'case $RANK in 1) exit 4;; 2) sleep 0.2; exit 6;; esac
      sleep 0.5; echo survived']]
    assert.equal(4, r.code)
    assert.equal("[0] survived\n", r.out)
    assert.equal([[
perigee run: rank 1 failed: exit code 4
perigee run: rank 2 failed: exit code 6
perigee run: rank 1 failed first: exit code 4
]], r.err)
  end)

  it("is 124 after --timeout, with the state of every rank", function()
    local r = bash(shell .. [[
      timeout 20 $P run -n 3 --timeout 0.5 sh -c 'echo $$ >$D/pid.$RANK; [ $RANK = 1 ] || exec sleep 30'
      echo "code $?"
      gone_in 10 $(cat pid.0 pid.1 pid.2) && echo gone ]])
    assert.equal("code 124\ngone\n", r.out)
    assert.is_truthy(r.err:match("^perigee run: timed out after 0.5 s; state of the ranks then:\n" ..
      "  rank 0: running %(pid %d+%)\n  rank 1: exited 0\n  rank 2: running %(pid %d+%)\n$"), r.err)
    assert.is_true(r.seconds < 15)
  end)

  for signal, number in pairs { INT = 2, TERM = 15, HUP = 1, QUIT = 3 } do
    it("is 128 + signal after SIG" .. signal .. ", which ranks get too", function()
      local r = bash(shell .. [[
        env --default-signal=INT,QUIT timeout --foreground 20 $P run -n 2 --grace 10 sh -c '
          trap "echo got ]] .. signal .. [[; exit 0" ]] .. signal .. "\n" .. [[
          echo $PPID >$D/launcher; echo $$ >$D/pid.$RANK
          while :; do sleep 0.02; done' & job=$!
        wait_for pid.0 pid.1
        kill -]] .. signal .. [[ $(cat launcher)
        wait $job; echo "code $?" ]])
      assert.same({ "[0] got " .. signal, "[1] got " .. signal, "code " .. 128 + number },
        support.sorted_lines(r.out))
      assert.is_true(r.seconds < 15)
    end)
  end

  it("comes at once with a second Ctrl-C", function()
    local r = bash(shell .. [[
      env --default-signal=INT timeout --foreground 20 $P run -n 2 --grace 15 sh -c '
        trap "" INT; echo $PPID >$D/launcher; echo $$ >$D/pid.$RANK; while :; do sleep 0.02; done' & job=$!
      wait_for pid.0 pid.1
      kill -INT $(cat launcher); sleep 0.2
      [ $(alive $(cat pid.0 pid.1)) = 2 ] && echo alive
      kill -INT $(cat launcher)
      wait $job; echo "code $?"
      gone_in 10 $(cat pid.0 pid.1) && echo gone ]])
    assert.equal("alive\ncode 130\ngone\n", r.out)
    assert.is_true(r.seconds < 15)
  end)

  it("is not changed by signals that are passed on", function()
    local r = bash(shell .. [[
      timeout 20 $P run -n 2 sh -c 'n=0
        trap "echo usr1; n=\$((n + 1))" USR1; trap "echo usr2; n=\$((n + 1))" USR2
        echo $PPID >$D/launcher; echo $$ >$D/pid.$RANK
        while [ $n -lt 2 ]; do sleep 0.02; done; exit 0' & job=$!
      wait_for pid.0 pid.1
      kill -USR1 $(cat launcher); sleep 0.2; kill -USR2 $(cat launcher)
      wait $job; echo "code $?" ]])
    assert.same({ "[0] usr1", "[0] usr2", "[1] usr1", "[1] usr2", "code 0" }, support.sorted_lines(r.out))
  end)

  it("waits while the job is stopped, and goes on with it", function()
    local r = bash(shell .. [[
      state() { sed 's/.*) \(.\).*/\1/' /proc/$1/stat; }
      in_state() { local i; for ((i = 0; i < 300; i++)); do [ "$(state $2)" = $1 ] && return; sleep 0.01; done; false; }
      env --default-signal=TSTP,CONT timeout --foreground 20 $P run -n 1 ]] .. waiting .. [[ & job=$!
      wait_for pid.0
      kill -TSTP $(cat launcher)
      in_state T $(cat pid.0) && in_state T $(cat launcher) && echo stopped
      kill -CONT $(cat launcher)
      in_state S $(cat pid.0) && in_state S $(cat launcher) && echo running
      kill -TERM $(cat launcher)
      wait $job; echo "code $?" ]])
    assert.equal("stopped\nrunning\ncode 143\n", r.out)
  end)

  it("leaves no rank when the launcher is killed", function()
    for _ = 1, 5 do
      local r = bash(shell .. [[
        timeout 20 $P run -n 4 ]] .. waiting .. [[ & job=$!
        wait_for pid.0 pid.1 pid.2 pid.3 launcher
        kill -9 $(cat launcher)
        gone_in 10 $(cat pid.0 pid.1 pid.2 pid.3) && echo gone
        wait $job ]])
      assert.equal("gone\n", r.out)
    end
  end)

  it("leaves none of the processes that ranks have started", function()
    -- one in the rank's group, one in a session of its own, one that ignores SIGTERM
    local r = bash(shell .. [[
      start=$(date +%s%N)
      timeout 20 $P run -n 2 --grace 0.5 sh -c '
        sleep 30 >/dev/null 2>&1 & echo $! >$D/a.$RANK
        setsid sh -c "echo \$\$ >$D/b.$RANK; exec sleep 30" >/dev/null 2>&1 &
        sh -c "trap \"\" TERM; echo \$\$ >$D/c.$RANK; while :; do sleep 0.05; done" >/dev/null 2>&1 &
        while ! [ -s $D/b.$RANK ] || ! [ -s $D/c.$RANK ]; do sleep 0.01; done
        exit 0'
      echo "code $?"
      gone_in 10 $(cat a.* b.* c.*) && echo gone
      ls a.* b.* c.* | wc -l ]])
    assert.equal("code 0\ngone\n6\n", r.out)
  end)

  it("waits a moment for output of processes that outlive their rank", function()
    local r = run [[-n 2 sh -c '(sleep 0.3; echo late) & exit 0']]
    assert.equal(0, r.code)
    assert.same({ "[0] late", "[1] late" }, support.sorted_lines(r.out))
    r = run [[-n 2 --grace 0.5 sh -c 'sleep 30 & exit 0']]
    assert.equal(0, r.code)
    assert.is_true(r.seconds < 15)
  end)

  it("leaves no zombie while the job runs", function()
    local r = bash(shell .. [[
      timeout 20 $P run -n 2 sh -c 'echo $PPID >$D/launcher
        for i in 1 2 3 4 5; do (sh -c "exec true" & ) ; done; sleep 0.3; echo $$ >$D/pid.$RANK; exec sleep 1' & job=$!
      wait_for pid.0 pid.1
      cat /proc/[0-9]*/stat 2>/dev/null | sed 's/.*) //' | grep -c "^Z $(cat launcher) "
      wait $job; echo "code $?" ]])
    assert.equal("0\ncode 0\n", r.out)
  end)

  it("is 127 or 126 for a program that cannot be started, said once", function()
    local r = run("-n 3 no-such-program")
    assert.equal(127, r.code)
    assert.equal("perigee run: cannot start 'no-such-program': no such file or directory\n", r.err)
    r = run("-n 3 missing.lua")
    assert.equal(127, r.code)
    assert.equal("perigee run: cannot start 'missing.lua': no such file or directory\n", r.err)
    r = run("-n 3 ./plain", { plain = "text" })
    assert.equal(126, r.code)
    assert.equal("perigee run: cannot start './plain': permission denied\n", r.err)
  end)

  it("is 2 for wrong usage, naming the argument", function()
    for arguments, part in pairs {
      ["-n 0 true"] = "-n '0'", ["-n abc true"] = "-n 'abc'", ["-n 4 --ranks 9 true"] = "no rank 9",
      ["--what true"] = "'--what'", ["-n 2"] = "no script or program", ["-x A true"] = "-x 'A'",
      ["--nnodes 2 true"] = "--endpoint",
    } do
      local r = run(arguments)
      assert.equal(2, r.code, arguments)
      assert.equal("", r.out)
      assert.is_true(support.has(r.err, part), r.err)
      assert.is_true(support.has(r.err, "Try 'perigee run --help'"), r.err)
    end
  end)

  it("cuts a long story of a failing rank to its last lines", function()
    local r = run [[-n 2 --ranks 0 sh -c 'if [ $RANK = 1 ]; then seq 1 100000 >&2; exit 1; fi']]
    assert.equal(1, r.code)
    local lines = support.lines(r.err)
    assert.same({ "perigee run: rank 1 failed first: exit code 1", "...", "99901" }, { lines[1], lines[2], lines[3] })
    assert.equal("100000", lines[#lines])
    assert.equal(102, #lines)
  end)
end)
