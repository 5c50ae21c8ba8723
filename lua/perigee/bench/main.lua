-- What each rank of `perigee bench` runs; the command has checked the arguments (key=value) before.
local json = require "perigee.bench.json"
local machine = require "perigee.bench.machine"

local lists = { size = true, op = true, load = true }
local numbers = { size = true, iters = true, warmup = true, reps = true, budget = true, settle = true, root = true }
local flags = { check = true, in_place = true, symmetric = true, measure = true }

local function options(words)
  local o = { size = {}, op = {}, load = {}, measure = true }
  for _, word in ipairs(words) do
    local key, value = word:match "^([%w_]+)=(.*)$"
    if numbers[key] then value = tonumber(value) end
    if flags[key] then value = value == "1" end
    if lists[key] then table.insert(o[key], value) else o[key] = value end
  end
  return o
end

local function write(path, text)
  local f <close> = assert(io.open(path, "wb"))
  assert(f:write(text))
end

local function read_run(path)
  local f <close> = assert(io.open(path, "rb"))
  local ok, run = pcall(json.decode, f:read "a")
  if not ok or type(run) ~= "table" or type(run.rows) ~= "table" then
    error(("%s is no result of perigee bench --json%s"):format(path, ok and "" or ": " .. run), 0)
  end
  run.label = run.label or path:match "([^/]*)%.json$" or path
  return run
end

local function draw(o, own)
  local runs = { own }
  for path in (o.overlay or ""):gmatch "[^,]+" do runs[#runs + 1] = read_run(path) end
  write(o.plot, require("perigee.bench.plot").svg(runs))
end

local function measure(o)
  local report = require "perigee.bench.report"
  local run = require("perigee.bench.measure").open(o)
  local first = run.world.rank == 0
  local meta = machine.describe()
  for _, key in ipairs { "backend", "from", "mode", "iters", "budget", "reps", "check", "label", "in_place",
    "symmetric" } do
    meta[key] = o[key]
  end
  meta.ranks, meta.transport, meta.rows, meta.left_out = run.world.size, run.world.transport, {}, run.left_out
  local steal = machine.steal()
  if first then print(report.header(meta)) end
  local last
  run:go(function(result)
    if not first then return end
    if result.op ~= last then print("# " .. result.op) end
    last = result.op
    meta.rows[#meta.rows + 1] = result
    print(report.row(o.mode, result))
    if o.json then write(o.json, json.encode(meta)) end -- what there is, should the rest come too late
  end)
  run:close()
  if not first then return end
  meta.steal_ticks = machine.steal() - steal
  local text, wrong = report.footer(meta)
  if text ~= "" then print(text) end
  meta.complete = true
  if o.json then write(o.json, json.encode(meta)) end
  if o.plot then draw(o, meta) end
  if wrong > 0 then error(("%d elements are not what the operations' definitions say"):format(wrong), 0) end
end

local o = options(arg)
if o.measure then
  measure(o)
else
  draw(o, nil)
end
