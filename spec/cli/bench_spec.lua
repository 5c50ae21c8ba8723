-- Rule: `perigee bench` measures what it says, checks results, and refuses what makes no sense.
package.path = "./spec/?.lua;./lua/?.lua;" .. package.path
local support = require "cli.support"
local json = require "perigee.bench.json"
local bash = support.bash

-- Tiny rows: the numbers are of no interest here.
local function bench(arguments, files, env)
  return bash((env or "") .. " timeout -k 2 100 $P bench --iters 2 -w 0 " .. arguments, files, 110)
end

local function rows(text)
  local list = {}
  for _, line in ipairs(support.lines(text)) do
    if not line:find "^#" then
      local words = {}
      for word in line:gmatch "%S+" do words[#words + 1] = word end
      list[#list + 1] = words
    end
  end
  return list
end

-- What makes a text well-formed XML, as far as our drawings use XML. Returns nil or what is wrong.
local function xml_problem(text)
  local open = {}
  local body = text:gsub("^<%?xml.-%?>", "")
  for close, name, rest in body:gmatch "<(/?)([%w]+)([^<>]*)>" do
    if close == "/" then
      if table.remove(open) ~= name then return "</" .. name .. "> closes nothing" end
    else
      if (rest:gsub('%s[%w%-:]+="[^"<>]*"', "")):gsub("/$", ""):find "%S" then return "attributes of " .. name end
      if rest:sub(-1) ~= "/" then open[#open + 1] = name end
    end
  end
  local words = body:gsub("<[^<>]*>", "")
  if words:find "[<>]" or words:gsub("&%a+;", ""):find "&" then return "a bare < > or &" end
  return #open > 0 and open[#open] .. " is not closed" or nil
end

local all_ops = {
  "allreduce", "allreduce_coalesced", "broadcast", "reduce", "allgather", "allgather_into_tensor",
  "allgather_into_tensor_coalesced", "gather", "scatter", "reduce_scatter", "reduce_scatter_tensor",
  "reduce_scatter_tensor_coalesced", "alltoall", "alltoall_base", "barrier", "monitored_barrier", "send", "recv",
  "recv_anysource", "pingpong", "bw",
}

describe("perigee bench", function()
  after_each(support.cleanup)

  it("prints the columns of nccl-tests with what it ran on", function()
    local r = bench "-n 2 --sizes 8,1K -o max -d f64 allreduce"
    assert.equal(0, r.code, r.err)
    assert.equal("", r.err)
    for _, part in ipairs { "# perigee ", "native", "shm transport", "2 ranks on ", "Linux ", "called from C",
      "2 calls per row", "# allreduce\n", "# Out of bounds values : 0 OK", "# Avg bus bandwidth" } do
      assert.is_true(support.has(r.out, part), part .. "\n" .. r.out)
    end
    assert.is_truthy(r.out:find(
      "#%s+size%s+count%s+type%s+redop%s+root%s+time%s+algbw%s+busbw%s+#wrong%s+min%s+p50%s+p99%s+iters\n"))
    local list = rows(r.out)
    assert.equal(2, #list)
    for i, row in ipairs(list) do
      assert.equal(13, #row)
      assert.same({ ({ "8", "1024" })[i], ({ "1", "128" })[i], "f64", "max", "-1" }, { table.unpack(row, 1, 5) })
      assert.equal("0", row[9])
      assert.equal("2", row[13])
      for k = 6, 12 do assert.is_truthy(tonumber(row[k]), row[k]) end
      assert.is_true(tonumber(row[6]) > 0)
      assert.is_true(tonumber(row[10]) <= tonumber(row[11]) and tonumber(row[11]) <= tonumber(row[12]))
    end
  end)

  for _, case in ipairs {
    "", "--transport tcp", "--from lua", "--backend 'log(native)' --load quiet.lua", "--b2b",
    "--in-place -r 2", "--symmetric",
    "-d i8 -o avg", "-d bool -o bxor", "-d bf16 -o product", "-d c64", "--from lua --b2b -d u16 -o bor",
  } do
    it("times and checks every operation: " .. case, function()
      local r = bench("-n 3 --sizes 8,20000 -x PERIGEE_LOG=error " .. case .. " --json r.json all", {
        ["quiet.lua"] = "require('perigee.layers.log')",
      })
      assert.equal(0, r.code, r.err .. r.out)
      local result = json.decode(support.read(r.dir .. "/r.json"))
      local seen = {}
      for _, row in ipairs(result.rows) do
        assert.equal(0, row.wrong, row.op)
        seen[row.op] = (seen[row.op] or 0) + 1
      end
      for _, op in ipairs(all_ops) do assert.equal(op:find "barrier" and 1 or 2, seen[op], op) end
      assert.equal(3, result.ranks)
      assert.equal(case:find "tcp" and "tcp" or "shm", result.transport)
    end)
  end

  it("counts what is wrong and fails", function()
    local r = bench("-n 2 --sizes 4K --load bad.lua --backend 'bad(native)' allreduce broadcast", { ["bad.lua"] = [[
      local perigee = require "perigee"
      local bad = perigee.backend("bad")
      function bad:allreduce(tensors, opts)
        return self.inner:allreduce(tensors, opts):map(function()
          if self.rank == 1 then tensors[1]:set(3, -1):set(900, -1) end
        end)
      end]] })
    assert.equal(1, r.code)
    local list = rows(r.out)
    assert.equal("2", list[1][9])
    assert.equal("0", list[2][9])
    assert.is_true(support.has(r.out, "# Out of bounds values : 2 FAILED"))
    assert.is_true(support.has(r.err, "2 elements are not"), r.err)
  end)

  it("does not check when told so", function()
    local r = bench "-n 2 --sizes 8 -c 0 allreduce"
    assert.equal("N/A", rows(r.out)[1][9])
    assert.is_false(support.has(r.out, "Out of bounds"))
  end)

  it("finds the number of calls by itself and repeats", function()
    local r = bash "$P bench -n 2 --sizes 8 --budget 1 --reps 3 --json r.json allreduce barrier"
    assert.equal(0, r.code, r.err)
    local result = json.decode(support.read(r.dir .. "/r.json"))
    assert.equal(3, result.reps)
    assert.is_true(result.complete)
    for _, row in ipairs(result.rows) do assert.is_true(row.iters >= 5 and row.iters <= 5000) end
    assert.is_true(support.has(r.out, "1 ms of calls per row"))
  end)

  it("leaves the rows that there were in the JSON when it ends early", function()
    local r = bench("-n 2 --sizes 8 --json r.json --load l.lua --backend 'broken(native)' barrier allreduce", {
      ["l.lua"] = [[
        local perigee = require "perigee"
        local broken = perigee.backend("broken")
        function broken:allreduce() error "enough" end]],
    })
    assert.equal(1, r.code)
    assert.is_true(support.has(r.err, "enough"), r.err)
    local result = json.decode(support.read(r.dir .. "/r.json"))
    assert.equal(1, #result.rows)
    assert.equal("barrier", result.rows[1].op)
    assert.is_nil(result.complete)
  end)

  it("says which rows need more ranks", function()
    local r = bench "-n 1 --sizes 8 pingpong allreduce"
    assert.equal(0, r.code, r.err)
    assert.is_true(support.has(r.out, "# left out: pingpong needs 2 ranks"))
    assert.equal(1, #rows(r.out))
  end)

  it("shows what a computation hides", function()
    local r = bench "-n 2 --sizes 64K --overlap --json r.json allreduce barrier"
    assert.equal(0, r.code, r.err)
    assert.is_truthy(r.out:find "call%s+compute%s+in turn%s+both%s+hidden%s+#wrong")
    assert.is_true(support.has(r.out, "left out: barrier"))
    local row = json.decode(support.read(r.dir .. "/r.json")).rows[1]
    assert.is_true(row.comm_us > 0 and row.compute_us > 0 and row.turn_us > row.compute_us / 2 and row.both_us > 0)
  end)

  it("takes sizes, ranges and aliases", function()
    local r = bench "-n 2 -b 1K -e 4K -f 2 all_reduce"
    local sizes = {}
    for i, row in ipairs(rows(r.out)) do sizes[i] = row[1] end
    assert.same({ "1024", "2048", "4096" }, sizes)
  end)

  it("draws its rows and those of other runs", function()
    local r = bash([[
      timeout 60 $P bench -n 2 --iters 2 --sizes 8,4K --json one.json --label 'a < b & "c"' allreduce >/dev/null &&
      timeout 60 $P bench -n 2 --iters 2 --sizes 8,4K --plot two.svg --overlay one.json allreduce broadcast &&
      timeout 60 $P bench --plot three.svg --overlay one.json,one.json]])
    assert.equal(0, r.code, r.err)
    for _, name in ipairs { "two", "three" } do
      local svg = support.read(r.dir .. "/" .. name .. ".svg")
      assert.is_nil(xml_problem(svg))
      for _, part in ipairs { "a &lt; b &amp; &quot;c&quot;", "time of a call (µs)", "(GB/s)", ">4K<", "<polyline" } do
        assert.is_true(support.has(svg, part), part)
      end
      assert.equal(name == "two" and 6 or 4, select(2, svg:gsub("<polyline", "")))
      assert.is_nil(svg:find "nan" or svg:find "inf")
    end
  end)

  it("refuses what makes no sense with code 2 and a reason", function()
    for arguments, part in pairs {
      ["--what"] = "'--what'", ["allredoce"] = "'allredoce'", ["-d f31"] = "'f31'", ["-o plus"] = "'plus'",
      ["-d f32 -o band"] = "band is not defined for -d f32", ["-n 0"] = "-n '0'", ["-r 2 -n 2"] = "-r 2",
      ["-b 64K -e 8"] = "below the first", ["--sizes 8,,9"] = "--sizes ''", ["-b 1Q"] = "'1Q'", ["-f 1"] = "-f '1'",
      ["--load missing.lua"] = "'missing.lua'", ["--transport udp"] = "'udp'", ["--from c++"] = "'c++'",
      ["--overlay a.json"] = "--plot", ["--overlap --b2b"] = "--overlap", ["--iters"] = "needs a value",
      ["--budget 0"] = "--budget '0'", ["-c 2"] = "-c '2'",
    } do
      local r = bash("$P bench " .. arguments)
      assert.equal(2, r.code, arguments)
      assert.equal("", r.out)
      assert.is_true(support.has(r.err, part), arguments .. ": " .. r.err)
    end
  end)

  it("tells about files that are no results, and stacks that are none", function()
    local r = bash("$P bench --plot o.svg --overlay bad.json", { ["bad.json"] = '{"rows": [1,}' })
    assert.equal(1, r.code)
    assert.is_true(support.has(r.err, "bad.json is no result of perigee bench --json: line 1"), r.err)
    r = bench "-n 2 --sizes 8 --backend 'nosuch(native)'"
    assert.equal(1, r.code)
    assert.is_true(support.has(r.err, "nosuch"), r.err)
  end)

  it("names every option in its help", function()
    local help = bash("$P bench --help").out
    for _, option in ipairs { "-n ", "-b, -e, -f", "--sizes", "-d ", "-o ", "-r ", "--in-place", "--symmetric",
      "--backend", "--load",
      "--transport", "--iters", "--budget", "-w ", "--reps", "-c ", "--b2b", "--overlap", "--from", "--json", "--plot",
      "--overlay", "--label", "--timeout", "--nnodes", "--node-rank", "--endpoint", "-x " } do
      assert.is_true(support.has(help, option), option)
    end
    for _, op in ipairs(all_ops) do assert.is_true(support.has(help, op), op) end
    for _, line in ipairs(support.lines(help)) do assert.is_true(#line <= 100, line) end
  end)
end)

describe("JSON of results", function()
  it("comes back as it was", function()
    local value = { a = { 1, 2.5, -3e-7, true, false }, b = "q\"\\\n\t\1 µ", c = {}, d = { e = "x" } }
    assert.same(value, json.decode(json.encode(value)))
    assert.same({ 1, "é/\n" }, json.decode ' [1, "\\u00e9\\/\\n"]\n')
    assert.same({ a = 1 }, json.decode '{"a":1,"b":null}')
  end)

  it("with a fault is refused with its line", function()
    for text, part in pairs {
      ["[1\n,]"] = "line 2", ["{1:2}"] = "a name", ['{"a" 1}'] = "':'", ["[1 2]"] = "','", ['"abc'] = "without its end",
      ["tru"] = "a value", ["[] []"] = "more than one", ['"\\x"'] = "escape", [("["):rep(60)] = "deep",
      [""] = "a value",
    } do
      local ok, message = pcall(json.decode, text)
      assert.is_false(ok, text)
      assert.is_truthy(message:find(part, 1, true), message)
    end
  end)
end)
