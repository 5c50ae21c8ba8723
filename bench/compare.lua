-- The report of compare.sh: perigee run -n 1 bench/compare.lua DATA REPORT.md
--
-- A cell is one operation, size and number of ranks. Its ratio in one round is Perigee's time over the least time that
-- any peer took in the same round, in place or not where both do the same work; below 1 Perigee is quicker. Shown: the
-- median of the rounds, and in brackets the least and the largest.
local json = require "perigee.bench.json"
local machine = require "perigee.bench.machine"
local plot = require "perigee.bench.plot"

local data, report_path = table.unpack(arg)

-- Rows of the report: Perigee's figure, the peers' figures it is held against.
local cells = {
  { "allreduce", "each", "allreduce", { "allreduce", "allreduce_ip", "allreduce_bcube_ip" } },
  { "allreduce, symmetric", "symmetric", "allreduce", { "allreduce", "allreduce_ip", "allreduce_bcube_ip" } },
  { "allreduce, back to back", "b2b", "allreduce", { "allreduce_b2b" } },
  { "broadcast", "each", "broadcast", { "broadcast" } },
  { "broadcast, symmetric", "symmetric", "broadcast", { "broadcast" } },
  { "reduce", "each", "reduce", { "reduce", "reduce_ip" } },
  { "reduce, symmetric", "symmetric", "reduce", { "reduce", "reduce_ip" } },
  { "allgather", "each", "allgather_into_tensor", { "allgather" } },
  { "allgather, list", "each", "allgather", { "allgather" } },
  { "allgather, in place", "in_place", "allgather_into_tensor", { "allgather_ip" } },
  { "allgather, symmetric", "symmetric", "allgather_into_tensor", { "allgather" } },
  { "reduce_scatter", "each", "reduce_scatter_tensor", { "reduce_scatter" } },
  { "reduce_scatter, list", "each", "reduce_scatter", { "reduce_scatter" } },
  { "reduce_scatter, in place", "in_place", "reduce_scatter_tensor", { "reduce_scatter_ip" } },
  { "reduce_scatter, symmetric", "symmetric", "reduce_scatter_tensor", { "reduce_scatter" } },
  { "alltoall", "each", "alltoall_base", { "alltoall" } },
  { "alltoall, list", "each", "alltoall", { "alltoall" } },
  { "alltoall, symmetric", "symmetric", "alltoall_base", { "alltoall" } },
  { "gather", "each", "gather", { "gather", "gather_ip" } },
  { "scatter", "each", "scatter", { "scatter", "scatter_ip" } },
  { "barrier", "each", "barrier", { "barrier" } },
  { "barrier, back to back", "b2b", "barrier", { "barrier_b2b" } },
  { "pingpong", "each", "pingpong", { "pingpong" } },
  { "bw", "each", "bw", { "bw" } },
}

local peer_names = {
  openmpi = "Open MPI", ["openmpi-sm"] = "Open MPI coll/sm", ["openmpi-tcp"] = "Open MPI tcp", mpich = "MPICH",
  gloo = "Gloo",
}
local peer_order = { "openmpi", "openmpi-sm", "openmpi-tcp", "mpich", "gloo" }

local function read(path)
  local f <close> = assert(io.open(path, "rb"))
  return f:read "a"
end

local function write(path, text)
  local f <close> = assert(io.open(path, "wb"))
  assert(f:write(text))
end

local function files()
  local p <close> = assert(io.popen("ls '" .. data:gsub("'", "'\\''") .. "'"))
  local list = {}
  for name in p:lines() do list[#list + 1] = name end
  return list
end

-- ---- raw figures: times[who][ranks][round][op][bytes] = us --------------------------------------------------

local times = {}
local all_ranks, all_sizes, rounds, wrong = {}, {}, 0, 0

local function put(who, ranks, round, op, bytes, us)
  local t = times
  for _, key in ipairs { who, ranks, round, op } do
    t[key] = t[key] or {}
    t = t[key]
  end
  t[bytes] = us
  all_ranks[ranks], all_sizes[bytes] = true, true
  rounds = math.max(rounds, round)
end

local function at(t, ...)
  for _, key in ipairs { ... } do
    if t == nil then return nil end
    t = t[key]
  end
  return t
end

local function load_all()
  for _, name in ipairs(files()) do
    local round, ranks, who = name:match "^r(%d+)%-n(%d+)%-(.+)%.csv$"
    if who then
      for op, bytes, us in read(data .. "/" .. name):gmatch "([%w_]+),(%d+),([%d.]+)\n" do
        put(who, tonumber(ranks), tonumber(round), op, tonumber(bytes), tonumber(us))
      end
    end
    local how
    round, ranks, how = name:match "^r(%d+)%-n(%d+)%-perigee%-([%w_]+)%.json$"
    if how then
      for _, row in ipairs(json.decode(read(data .. "/" .. name)).rows) do
        put("perigee " .. how, tonumber(ranks), tonumber(round), row.op, row.bytes, row.time_us)
        wrong = wrong + (row.wrong or 0)
      end
    end
  end
end

local function keys(set)
  local list = {}
  for k in pairs(set) do list[#list + 1] = k end
  table.sort(list)
  return list
end

-- ---- cells ------------------------------------------------------------------------------------------------

local function median(list)
  table.sort(list)
  local n = #list
  return n % 2 == 1 and list[n // 2 + 1] or (list[n // 2] + list[n // 2 + 1]) / 2
end

-- The least time of all peers in one round, and whose it is.
local function best_peer(ops, ranks, round, bytes)
  local best, whose
  for _, who in ipairs(peer_order) do
    for _, op in ipairs(ops) do
      local us = at(times, who, ranks, round, op, bytes)
      if us and (best == nil or us < best) then best, whose = us, who end
    end
  end
  return best, whose
end

local function commonest(list)
  local count, best = {}, nil
  for _, v in ipairs(list) do
    count[v] = (count[v] or 0) + 1
    if best == nil or count[v] > count[best] then best = v end
  end
  return best
end

local function make_cell(row, ranks, bytes)
  local ratios, ours, theirs, whose = {}, {}, {}, {}
  for round = 1, rounds do
    local us = at(times, "perigee " .. row[2], ranks, round, row[3], bytes)
    local best, who = best_peer(row[4], ranks, round, bytes)
    if us and best then
      ratios[#ratios + 1], ours[#ours + 1] = us / best, us
      theirs[#theirs + 1], whose[#whose + 1] = best, who
    end
  end
  if #ratios == 0 then return nil end
  return {
    row = row[1], ranks = ranks, bytes = bytes, ratio = median(ratios), low = ratios[1], high = ratios[#ratios],
    ours = median(ours), theirs = median(theirs), whose = commonest(whose), rounds = #ratios,
  }
end

-- ---- text ---------------------------------------------------------------------------------------------------

local out = {}
local function say(...) out[#out + 1] = select("#", ...) > 1 and string.format(...) or (...) end

local function size_text(bytes)
  if bytes == 0 then return "-" end
  local units, i = { " B", " KiB", " MiB" }, 1
  while bytes >= 1024 and i < #units do bytes, i = bytes / 1024, i + 1 end
  return ("%g%s"):format(bytes, units[i])
end

local function us_text(us)
  if us >= 1000 then return ("%.0f"):format(us) end
  return us >= 10 and ("%.1f"):format(us) or ("%.2f"):format(us)
end

local function line(fields) say("| " .. table.concat(fields, " | ") .. " |") end

local function ratio_text(c)
  local text = ("%.2f (%.2f to %.2f)"):format(c.ratio, c.low, c.high)
  return c.ratio > 1 and "**" .. text .. "**" or text
end

local function conditions()
  local set = {}
  local f = io.open(data .. "/conditions")
  for text in f and f:lines() or function() end do
    local key, value = text:match "^(%w+)=(.*)$"
    if key then set[key] = value end
  end
  if f then f:close() end
  return set
end

-- Load and stolen time that make figures worth little.
local function doubts(c, m)
  local list = {}
  local load_at_start = tonumber((c.load or ""):match "^[%d.]+")
  if load_at_start and load_at_start > m.cores / 4 then list[#list + 1] = "something else ran when it began" end
  local steal, seconds = tonumber(c.steal), tonumber(c.seconds)
  if steal and seconds and steal > seconds * 100 * m.cores / 100 then
    list[#list + 1] = "the host took more than 1 % of the time"
  end
  return #list > 0 and table.concat(list, "; ") or nil
end

local function print_conditions(c)
  local m = machine.describe()
  local doubt = doubts(c, m)
  say "## Conditions"
  say ""
  say("* %s, %d cores, Linux %s; %s", m.cpu, m.cores, m.kernel, m.date)
  say("* Perigee %s; Open MPI %s, MPICH %s, Gloo %s", c.perigee or m.perigee, c.openmpi or "?", c.mpich or "?",
    c.gloo or "?")
  say("* between the ranks: %s; %d rounds of everything, one program after the other, %s ms of calls per row",
    c.net or "?", rounds, c.budget or "?")
  say("* load %s; %s clock ticks taken by the host in %s s", c.load or "?", c.steal or "?", c.seconds or "?")
  if doubt then say("* **not a quiet machine: %s**", doubt) end
  say("* elements that were not what the definition says: %d", wrong)
  say ""
end

-- Median ratio over the sizes, of one operation (nil: all) on so many ranks (nil: all).
local function overview(list, row, ranks)
  local ratios = {}
  for _, c in ipairs(list) do
    if (row == nil or c.row == row) and (ranks == nil or c.ranks == ranks) then ratios[#ratios + 1] = c.ratio end
  end
  return #ratios > 0 and ("%.2f"):format(median(ratios)) or ""
end

local function print_overview(list)
  say "Median ratio over the sizes:"
  say ""
  local head, rule, all = { "operation" }, { "---" }, { "all" }
  for _, ranks in ipairs(keys(all_ranks)) do
    head[#head + 1], rule[#rule + 1], all[#all + 1] = ranks .. " ranks", "--:", overview(list, nil, ranks)
  end
  line(head)
  line(rule)
  for _, row in ipairs(cells) do
    if overview(list, row[1]) ~= "" then
      local fields = { row[1] }
      for _, ranks in ipairs(keys(all_ranks)) do fields[#fields + 1] = overview(list, row[1], ranks) end
      line(fields)
    end
  end
  line(all)
  say ""
end

local function print_summary(list, missing)
  local ratios, wins, misses = {}, 0, {}
  for _, c in ipairs(list) do
    ratios[#ratios + 1] = c.ratio
    if c.ratio <= 1 then wins = wins + 1 else misses[#misses + 1] = c end
  end
  say "## Summary"
  say ""
  if #list == 0 then
    say "No figures."
    say ""
    return
  end
  say("%d of %d cells (%.0f %%) are not slower than the best peer; the median ratio is %.2f.%s", wins, #list,
    100 * wins / #list, median(ratios),
    missing > 0 and (" %d cells have no peer that reached them within its time."):format(missing) or "")
  say ""
  print_overview(list)
  if #misses == 0 then return end
  table.sort(misses, function(a, b) return a.ratio > b.ratio end)
  say "Slower than the best peer:"
  say ""
  line { "operation", "ranks", "size", "ratio", "Perigee, us", "best peer, us", "which" }
  line { "---", "--:", "--:", "--:", "--:", "--:", "---" }
  for _, c in ipairs(misses) do
    line { c.row, c.ranks, size_text(c.bytes), ("%.2f (%.2f to %.2f)"):format(c.ratio, c.low, c.high), us_text(c.ours),
      us_text(c.theirs), peer_names[c.whose] }
  end
  say ""
end

local function print_tables(list, ranks, sizes)
  for _, what in ipairs { "ratio", "times" } do
    say(what == "ratio" and "### %d ranks: ratio to the best peer, median (least to largest)"
      or "### %d ranks: Perigee / best peer in microseconds (medians)", ranks)
    say ""
    local head, rule = { "operation" }, { "---" }
    for _, s in ipairs(sizes) do
      if s > 0 then head[#head + 1], rule[#rule + 1] = size_text(s), "--:" end
    end
    line(head)
    line(rule)
    for _, row in ipairs(cells) do
      local fields, any = { row[1] }, false
      for _, s in ipairs(sizes) do
        local c = list[row[1]] and list[row[1]][s]
        local text = c and (what == "ratio" and ratio_text(c)
          or ("%s / %s %s"):format(us_text(c.ours), us_text(c.theirs), peer_names[c.whose]))
        if s > 0 or text then any = any or text ~= nil end
        if s > 0 then fields[#fields + 1] = text or "" end
        if s == 0 and text then fields[2] = text end
      end
      if any then
        -- What has no size stands in the first column.
        if list[row[1]] and list[row[1]][0] then fields = { row[1], fields[2] } end
        while #fields < #head do fields[#fields + 1] = "" end
        line(fields)
      end
    end
    say ""
  end
end

-- ---- drawing: allreduce of everybody ------------------------------------------------------------------------

local function curve(label, ranks, sizes, time_of)
  local rows = {}
  for _, bytes in ipairs(sizes) do
    local list = {}
    for round = 1, rounds do list[#list + 1] = bytes > 0 and time_of(round, bytes) or nil end
    if #list > 0 then
      local us = median(list)
      rows[#rows + 1] = { op = "allreduce", bytes = bytes, time_us = us, algbw = bytes / us / 1e3 }
    end
  end
  return #rows > 0 and { label = label, ranks = ranks, rows = rows } or nil
end

local function draw(ranks, sizes)
  local runs = { curve("Perigee", ranks, sizes, function(round, bytes)
    return at(times, "perigee each", ranks, round, "allreduce", bytes)
  end) }
  runs[#runs + 1] = curve("Perigee, symmetric", ranks, sizes, function(round, bytes)
    return at(times, "perigee symmetric", ranks, round, "allreduce", bytes)
  end)
  for _, who in ipairs(peer_order) do
    runs[#runs + 1] = curve(peer_names[who], ranks, sizes, function(round, bytes)
      local best
      for _, op in ipairs(cells[1][4]) do
        local us = at(times, who, ranks, round, op, bytes)
        if us and (best == nil or us < best) then best = us end
      end
      return best
    end)
  end
  if #runs < 2 then return nil end
  local path = report_path:gsub("%.md$", "") .. ("-allreduce-%d.svg"):format(ranks)
  write(path, plot.svg(runs))
  return path:match "[^/]*$"
end

-- ---- all ----------------------------------------------------------------------------------------------------

load_all()
local sizes = keys(all_sizes)
local list, by_ranks, missing = {}, {}, 0
for _, ranks in ipairs(keys(all_ranks)) do
  by_ranks[ranks] = {}
  for _, row in ipairs(cells) do
    by_ranks[ranks][row[1]] = {}
    for _, bytes in ipairs(sizes) do
      local c = make_cell(row, ranks, bytes)
      by_ranks[ranks][row[1]][bytes] = c
      list[#list + 1] = c
      if c == nil and at(times, "perigee " .. row[2], ranks, 1, row[3], bytes) then missing = missing + 1 end
    end
  end
end

say "# Perigee beside Open MPI, MPICH and Gloo"
say ""
say "Written by `bench/compare.sh`. A ratio is Perigee's time over that of the quickest peer in the same round; below 1"
say "Perigee is quicker. Sizes are bytes per rank, as `bench/README.md` explains."
say ""
print_summary(list, missing)
print_conditions(conditions())
for _, ranks in ipairs(keys(all_ranks)) do
  say("## %d ranks", ranks)
  say ""
  local drawing = draw(ranks, sizes)
  if drawing then
    say("![allreduce, %d ranks](%s)", ranks, drawing)
    say ""
  end
  print_tables(by_ranks[ranks], ranks, sizes)
end
write(report_path, table.concat(out, "\n"))
