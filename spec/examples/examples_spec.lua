-- Every example runs as it stands, on several numbers of ranks and both transports, and without a launcher.
local support = require "cli.support"

local root = io.popen("pwd"):read "l"
local build = os.getenv "PERIGEE_BUILD" or root .. "/build"

local function run(arguments, transport, limit)
  return support.bash(([[
    cd %s
    export PERIGEE_TRANSPORT=%s
    timeout -k 2 %d $P run %s
  ]]):format(root, transport or "auto", limit or 50, arguments), nil, (limit or 50) + 5)
end

describe("examples", function()
  after_each(support.cleanup)

  for _, name in ipairs { "hello", "custom_backend", "custom_op", "ring", "subgroups", "async" } do
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

  it("luv_server.lua answers while collectives are under way, on both transports", function()
    for _, transport in ipairs { "shm", "tcp" } do
      local r = support.bash(([[
        cd %s
        export PERIGEE_TRANSPORT=%s
        timeout -k 2 50 $P run -n 3 examples/luv_server.lua 40 >$D/said &
        for try in $(seq 300); do
          port=$(sed -n 's/.*listening on 127.0.0.1:\([0-9]*\).*/\1/p' $D/said)
          [ -n "$port" ] && break
          sleep 0.1
        done
        touch $D/answers
        ask() { exec 3<>/dev/tcp/127.0.0.1/$port && printf 'GET %%s HTTP/1.0\r\n\r\n' "$1" >&3 && tail -n 1 <&3; }
        while [ "$(sort -u $D/answers | wc -l)" -lt 5 ]; do ask / >>$D/answers; done
        ask /stop >>$D/answers
        wait $!
        echo "ended $?"
        cat $D/answers $D/said
      ]]):format(root, transport), nil, 60)
      assert.equal(0, r.code, r.out .. r.err)
      assert.is_true(support.has(r.out, "ended 0"), r.out .. r.err)
      local steps, last = {}, tonumber(r.out:match "ended after step (%d+)")
      for step in r.out:gmatch "%f[^\n\0]step (%d+), loss %d" do steps[#steps + 1] = tonumber(step) end
      assert.is_true(#steps > 5, r.out .. r.err)
      for i = 2, #steps do assert.is_true(steps[i - 1] <= steps[i], r.out) end
      assert.is_true(steps[#steps] < last, r.out)
    end
  end)

  it("embed.c runs a Lua backend from C", function()
    for _, n in ipairs { 1, 3 } do
      local program = build .. "/example_embed"
      local r = run(("-n %d %s examples/backends/fp16.lua"):format(n, program))
      assert.equal(0, r.code, r.out .. r.err)
      local said = ("through fp16(native): %d %d %d %d"):format(n, 2 * n, 3 * n, 4 * n)
      assert.is_true(support.has(r.out, said), r.out)
    end
  end)

  it("embed_threads.c calls one Lua backend from eight threads", function()
    for _, n in ipairs { 1, 2 } do
      local r = run(("-n %d %s/example_embed_threads"):format(n, build))
      assert.equal(0, r.code, r.out .. r.err)
      assert.is_true(support.has(r.out, "8 threads, 800 calls, 800 callbacks, each value "), r.out)
      assert.is_true(support.has(r.out, "stopped: barrier"), r.out)
    end
  end)

  it("plugin/count.c counts for C and for Lua", function()
    local path = ("PERIGEE_BACKEND_PATH=%s/plugins "):format(build)
    local r = support.bash(("cd %s && %s timeout 50 $P run -n 2 %s/example_embed %s 'count(fp16(native))'"):format(
      root, path, build, "examples/backends/fp16.lua"))
    assert.equal(0, r.code, r.out .. r.err)
    assert.is_true(support.has(r.out, "through count(fp16(native)): 2 4 6 8"), r.out)
    for rank = 0, 1 do
      local line = ("count: allreduce on world (rank %d): 1 calls, 16 bytes, "):format(rank)
      assert.is_true(support.has(r.out, line), r.out)
    end
    r = support.bash(("cd %s && %s PERIGEE_BACKEND='count(native)' timeout 50 $P run -n 2 examples/hello.lua"):format(
      root, path))
    assert.equal(0, r.code, r.out .. r.err)
    assert.is_true(support.has(r.out, "count: allreduce on world (rank 1): "), r.out)
  end)
end)
