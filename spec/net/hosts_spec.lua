-- Rule: a job on several hosts does what it does on one, and what goes wrong between them ends in time and by name.
-- Hosts are network namespaces here, started as hosts.sh says; not part of the quick tests.
local net = require "net.support"

--- As net.run, and fails with all that was printed unless every launcher's exit code is 0 and nothing was left behind.
local function run_ok(hosts, script, files, limit)
  local run = net.run(script, files, limit)
  assert.is_true(run.ok, run.out)
  assert.is_truthy(run.out:find("exit codes" .. (" 0"):rep(hosts) .. " \n", 1, true), run.out)
  assert.is_nil(run.out:match "left over: [^\n]*", run.out)
  return run
end

--- The conformance table, with a line of shell that makes the network, and options of the launcher.
local function table_holds(hosts, n, network, options, part)
  local script = ("%s\nlaunch %d %d %s -- $ROOT/spec/conformance/table.lua %s")
    :format(network, hosts, n, options or "", part or "")
  local run = run_ok(hosts, script, nil, 120)
  local cells, ranks = run.out:match "(%d+) cells passed %(tcp, (%d+) ranks%)"
  assert.equal(tostring(hosts * n), ranks, run.out)
  assert.is_true(tonumber(cells) > (part and 50 or 1000), run.out)
end

describe("the conformance table", function()
  it("holds on 2 hosts", function() table_holds(2, 1, "cabled") end)
  it("holds on 4 hosts on a switch", function() table_holds(4, 1, "switched 4") end)
  it("holds on 2 hosts of 2 ranks", function() table_holds(2, 2, "cabled") end)
  it("holds on 2 hosts of 2 ranks without shared memory", function()
    table_holds(2, 2, "cabled", "-x PERIGEE_TRANSPORT=tcp")
  end)
  it("holds on 2 hosts of 2 ranks by hier", function()
    table_holds(2, 2, "cabled", "-x PERIGEE_SELECT=allreduce:0-:hier")
  end)
  it("holds on 2 hosts of 2 ranks through the layer hierarchical", function()
    table_holds(2, 2, "cabled", "-x 'PERIGEE_BACKEND=hierarchical(native)'")
  end)
  it("holds on 2 containers of one host", function() table_holds(2, 2, "identity=container; cabled") end)
  it("holds at 1 Gbit/s", function()
    table_holds(2, 2, "cabled; limit_space host0 1gbit; limit_space host1 1gbit")
  end)
  it("holds on a wire that is 5 ms long and loses 1 packet in 100", function()
    for _, n in ipairs { 1, 2 } do
      local script = ([[
        wired 5 10
        launch 2 %d -x PERIGEE_TABLE_BIG=100000 -- $ROOT/spec/conformance/table.lua big
        unwire]]):format(n)
      local run = run_ok(2, script, nil, 120)
      assert.is_truthy(run.out:find("cells passed (tcp, " .. 2 * n .. " ranks)", 1, true), run.out)
      local carried, lost = run.out:match "carried (%d+), lost (%d+)"
      assert.is_true(tonumber(carried) > 1000 and tonumber(lost) > 10, run.out)
    end
  end)
end)

describe("ranks of 2 hosts of 2", function()
  -- Prints how many connections rank 0's host has between its own ranks.
  local script = [[
    local perigee = require "perigee"
    local world <close> = perigee.init()
    for r = 0, world.size - 1 do world:broadcast(r, { root = r }) end
    world:alltoall_base(perigee.zeros("u8", 4 << 20), perigee.zeros("u8", 4 << 20))
    if world.rank == 0 then
      local store, n = ("%04X"):format(os.getenv "MASTER_PORT"), 0
      for line in io.lines "/proc/net/tcp" do
        local from, from_port, to, to_port = line:match "(%x+):(%x+) (%x+):(%x+) 01 "
        if from and from == to and from_port ~= store and to_port ~= store then n = n + 1 end
      end
      print("connections inside: " .. n)
    end
    world:barrier()]]

  for transport, pattern in pairs { auto = "inside: 0\n", tcp = "inside: [1-9]" } do
    it(("are connected as PERIGEE_TRANSPORT=%s says"):format(transport), function()
      local run = run_ok(2, "cabled; launch 2 2 -x PERIGEE_TRANSPORT=" .. transport .. " -- inside.lua",
        { ["inside.lua"] = script }, 60)
      assert.is_truthy(run.out:find(pattern), run.out)
    end)
  end
end)

describe("a link", function()
  -- Every rank prints a line "<what> <code> [<culprits>] <seconds> <text>" and ends by itself.
  local head = [[
    local perigee = require "perigee"
    local world = perigee.init { timeout = 40 }
    local rank, size = world.rank, world.size
    world:barrier()
    local started = perigee.clock()
    local function try(what, f, ...)
      local ok, e = pcall(f, world, ...)
      print(("%s %s [%s] %d %s"):format(what, ok and "fine" or e.code, ok and "" or table.concat(e.ranks, ","),
        (perigee.clock() - started) // 1 | 0, tostring(e)))
    end
    local function ready() io.open("ready", "w"):write("now"):close() end
  ]]
  local tail = "\nworld:close()\n"

  --- Lines of a kind, one of each of these ranks: { [1] = { code, ranks, seconds, text } of rank 0, ... }
  local function lines(run, what, ...)
    local list = {}
    local pattern = "%[(%d)%] " .. what .. " (%S+) %[([%d,]*)%] (%d+) ([^\n]*)"
    for rank, code, ranks, seconds, text in run.out:gmatch(pattern) do
      list[rank + 1] = { code = code, ranks = ranks, seconds = tonumber(seconds), text = text }
    end
    for _, rank in ipairs { ... } do assert(list[rank + 1], run.out) end
    return list
  end

  --- Cuts the last host off, half a second after the script has called ready(). Launchers that miss each other may end
  --- their ranks while these close: exit codes do not tell.
  local function cut(hosts, n, network, script)
    local run = net.run(([[
      %s
      cut() { sleep 0.5; ip -n host%d link set veth0 down; }
      when ready cut
      launch %d %d -- script.lua]]):format(network, hosts - 1, hosts, n),
      { ["script.lua"] = head .. script .. tail }, 60)
    assert.is_true(run.ok, run.out)
    assert.is_nil(run.out:match "left over: [^\n]*", run.out)
    return run
  end

  it("that is cut while messages are waited for names the peers, 2 hosts of 2 ranks", function()
    local run = cut(2, 2, "cabled", [[
      if rank == 0 then ready() end
      try("recv", world.recv, perigee.zeros("f32", 4), (rank + 2) % 4)
      try("next", world.allreduce, 1)]])
    local recv, next_op = lines(run, "recv", 0, 1, 2, 3), lines(run, "next", 0, 1, 2, 3)
    for rank = 0, 3 do
      local e = recv[rank + 1]
      assert.is_truthy(e.code == "EPEERDEAD" or e.code == "EABORTED", run.out)
      assert.is_true(e.seconds < 15, run.out)
      assert.is_truthy(e.text:find "its host cannot be reached", run.out)
      assert.is_truthy((rank < 2 and "23" or "01"):find(e.ranks, 1, true) and #e.ranks == 1, run.out)
      assert.not_equal("fine", next_op[rank + 1].code, run.out)
    end
  end)

  it("that is cut while one rank is late for a collective names the peer, 4 hosts on a switch", function()
    local run = cut(4, 1, "switched 4", [[
      if rank == 0 then ready() end
      if rank == 1 then perigee.sleep(6) end
      try("sum", world.allreduce, perigee.zeros("f32", 1000))]])
    local sum = lines(run, "sum", 0, 1, 2, 3)
    for rank = 0, 2 do
      local e = sum[rank + 1]
      assert.is_truthy(e.code == "EPEERDEAD" or e.code == "EABORTED", run.out)
      assert.equal("3", e.ranks, run.out)
      assert.is_true(e.seconds < 20, run.out)
    end
    assert.not_equal("fine", sum[4].code, run.out)
    assert.is_truthy(("012"):find(sum[4].ranks:sub(1, 1), 1, true), run.out)
  end)

  it("that is cut in the middle of 64 MiB names the peer on both ends", function()
    local run = cut(2, 1, "cabled; limit_space host0 100mbit", [[
      local t = perigee.zeros("u8", 64 << 20)
      if rank == 0 then ready() try("big", world.send, t, 1) else try("big", world.recv, t, 0) end]])
    local big = lines(run, "big", 0, 1)
    for rank = 0, 1 do
      local e = big[rank + 1]
      assert.same({ "EPEERDEAD", tostring(1 - rank) }, { e.code, e.ranks }, run.out)
      assert.is_truthy(e.text:find "its host cannot be reached", run.out)
      assert.is_true(e.seconds < 20, run.out)
    end
  end)

  it("that is cut does not outlast a deadline", function()
    local run = cut(2, 1, "cabled", [[
      if rank == 0 then ready() end
      if rank == 1 then perigee.sleep(1) end -- until the link is cut; it may have what it needs already
      try("sum", world.allreduce, 1, { timeout = 1.5 })]])
    local sum = lines(run, "sum", 0, 1)
    assert.same({ "ETIMEDOUT", "1" }, { sum[1].code, sum[1].ranks }, run.out)
    for rank = 0, 1 do assert.is_true(sum[rank + 1].seconds < 15, run.out) end
  end)

  it("that is away for a second loses nothing", function()
    local run = run_ok(2, [[
      cabled; limit_space host0 100mbit
      away() { ip -n host0 link set veth0 down; sleep 1; ip -n host0 link set veth0 up; }
      when ready away
      launch 2 1 -- script.lua]], { ["script.lua"] = head .. [[
        local N = 32 << 20
        local t = rank == 0 and perigee.full("u8", N, 7) or perigee.zeros("u8", N)
        if rank == 0 then ready() try("big", world.send, t, 1) else try("big", world.recv, t, 0) end
        try("sum", world.allreduce, perigee.zeros("f32", 1000))
        assert(t:equal(perigee.full("u8", N, 7)))]] .. tail }, 60)
    for _, what in ipairs { "big", "sum" } do
      local list = lines(run, what, 0, 1)
      assert.same({ "fine", "fine" }, { list[1].code, list[2].code }, run.out)
    end
  end)

  -- 64 MiB take 13 s here, longer than a launcher may be silent.
  it("that is full lets small messages, deadlines and the launchers through", function()
    local run = run_ok(2, [[
      cabled; limit_space host0 40mbit; limit_space host1 40mbit
      launch 2 1 -- script.lua]], { ["script.lua"] = head .. [[
        local N = 64 << 20
        local small = perigee.zeros("f32", 1)
        if rank == 0 then
          local work = world:send(perigee.full("u8", N, 7), 1, { tag = 1, async = true })
          world:recv(small, 1, { tag = 2 }) -- the big one has begun to arrive
          world:send(perigee.full("f32", { 1 }, 5), 1, { tag = 3 })
          work:wait()
        else
          local big = perigee.zeros("u8", N)
          local work = world:recv(big, 0, { tag = 1, async = true })
          while big[1] == 0 do perigee.sleep(0.01) end
          world:send(small, 0, { tag = 2 })
          world:recv(small, 0, { tag = 3 })
          print("small came before half of the big one: " .. tostring(big[N // 2] == 0 and small[1] == 5))
          try("never", world.recv, small, 0, { tag = 4, timeout = 1 })
          print("the big one was under way then: " .. tostring(not work:is_completed()))
          work:wait()
          assert(big:equal(perigee.full("u8", N, 7)))
        end
        try("sum", world.allreduce, 1)]] .. tail }, 90)
    assert.is_truthy(run.out:find("small came before half of the big one: true", 1, true), run.out)
    assert.is_truthy(run.out:find("the big one was under way then: true", 1, true), run.out)
    local never, sum = lines(run, "never", 1)[2], lines(run, "sum", 0, 1)
    assert.same({ "ETIMEDOUT", "0" }, { never.code, never.ranks }, run.out)
    assert.same({ "fine", "fine" }, { sum[1].code, sum[2].code }, run.out)
  end)
end)
