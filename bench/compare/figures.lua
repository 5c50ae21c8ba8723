-- Raw figures of compare.sh become cells.
--
-- A cell is one operation, size and number of ranks. Its ratio in one round is Perigee's time over the least that any
-- peer took in the same round; below 1 Perigee is quicker. A cell's ratio is the median of its rounds.
local json = require "perigee.bench.json"

local figures = {}

-- Rows: name, how Perigee is called, its operation, the peers' variants it is held against: those that do the same
-- work. allreduce and reduce are always in place here, so that peers may choose.
figures.rows = {
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
  { "gather", "each", "gather", { "gather" } },
  { "scatter", "each", "scatter", { "scatter" } },
  { "barrier", "each", "barrier", { "barrier" } },
  { "barrier, back to back", "b2b", "barrier", { "barrier_b2b" } },
  { "pingpong", "each", "pingpong", { "pingpong" } },
  { "bw", "each", "bw", { "bw" } },
}

figures.peers = { "openmpi", "openmpi-sm", "openmpi-tcp", "mpich", "gloo" }
figures.names = {
  openmpi = "Open MPI", ["openmpi-sm"] = "Open MPI coll/sm", ["openmpi-tcp"] = "Open MPI tcp", mpich = "MPICH",
  gloo = "Gloo",
}

local function read(path)
  local f <close> = assert(io.open(path, "rb"))
  return f:read "a"
end

local function lines(path)
  local list = {}
  local f <close> = io.open(path)
  if f then for text in f:lines() do list[#list + 1] = text end end
  return list
end

function figures.median(list)
  local sorted = table.move(list, 1, #list, 1, {})
  table.sort(sorted)
  local n = #sorted
  return n % 2 == 1 and sorted[n // 2 + 1] or (sorted[n // 2] + sorted[n // 2 + 1]) / 2
end

function figures.keys(set)
  local list = {}
  for k in pairs(set) do list[#list + 1] = k end
  table.sort(list)
  return list
end

-- ---- raw: times[who][ranks][round][op][bytes] = us -----------------------------------------------------------

local Data = {}
Data.__index = Data

function Data:put(who, ranks, round, op, bytes, us)
  local t = self.times
  for _, key in ipairs { who, ranks, round, op } do
    t[key] = t[key] or {}
    t = t[key]
  end
  t[bytes] = us
  self.has_ranks[ranks], self.has_sizes[bytes] = true, true
  self.rounds = math.max(self.rounds, round)
end

--- nil when there is none.
function Data:time(who, ranks, round, op, bytes)
  local t = self.times
  for _, key in ipairs { who, ranks, round, op, bytes } do
    t = t[key]
    if t == nil then return nil end
  end
  return t
end

-- What a program could not do in its time: { who, ranks, round, text }
function Data:lacks(who, ranks, round, text)
  self.unfinished[#self.unfinished + 1] = { who = who, ranks = ranks, round = round, text = text }
end

function Data:read_peer(name, round, ranks, who)
  local text = read(self.dir .. "/" .. name)
  for op, bytes, us in text:gmatch "([%w_]+),(%d+),([%d.]+)\n" do
    self:put(who, ranks, round, op, tonumber(bytes), tonumber(us))
  end
  local done, planned = text:match "# rows (%d+) of (%d+)"
  if done and done == planned then return end
  local op, bytes = text:match "([%w_]+),(%d+),[%d.]+\n[^,]*$"
  local last = op and (", the last: %s of %s"):format(op, figures.size_text(tonumber(bytes))) or ""
  if not done then
    local _, n = text:gsub("\n", "\n")
    self:lacks(who, ranks, round, ("ended by its limit after %d rows%s"):format(n, last))
  else
    self:lacks(who, ranks, round, ("%s of %s rows%s"):format(done, planned, last))
  end
end

function Data:read_perigee(name, round, ranks, how)
  local run = json.decode(read(self.dir .. "/" .. name))
  for _, row in ipairs(run.rows) do
    self:put("perigee " .. how, ranks, round, row.op, row.bytes, row.time_us)
    self.wrong = self.wrong + (row.wrong or 0)
  end
  if not run.complete then
    self:lacks("perigee", ranks, round, ("%s: ended after %d rows"):format(how, #run.rows))
  end
end

-- Programs that gave nothing in the end, perhaps after another try.
function Data:read_failures()
  local last = {}
  for _, text in ipairs(lines(self.dir .. "/runs")) do
    local name, how = text:match "^(%S+) (%S+)"
    if name then last[name] = how end
  end
  for _, name in ipairs(figures.keys(last)) do
    local round, ranks, who = name:match "^r(%d+)%-n(%d+)%-([%w-]+)"
    local code = last[name]:match "^failed:(%d+)"
    if code then self:lacks(who, tonumber(ranks), tonumber(round), "failed with exit code " .. code) end
  end
end

function Data:read_conditions()
  local set, sittings = {}, {}
  for _, text in ipairs(lines(self.dir .. "/conditions")) do
    local key, value = text:match "^(%w+)=(.*)$"
    if key == "sitting" then sittings[#sittings + 1] = value elseif key then set[key] = value end
  end
  set.sittings, set.seconds, set.steal = sittings, 0, 0
  for _, text in ipairs(lines(self.dir .. "/spent")) do
    local seconds, steal = text:match "^(%d+) (%d+)$"
    if seconds then set.seconds, set.steal = set.seconds + seconds, set.steal + steal end
  end
  local f = io.open(self.dir .. "/finished")
  set.finished = f ~= nil
  if f then f:close() end
  self.conditions = set
end

--- All that is in a folder of raw figures.
function figures.load(dir)
  local data = setmetatable({
    dir = dir, times = {}, has_ranks = {}, has_sizes = {}, rounds = 0, wrong = 0, unfinished = {},
  }, Data)
  local p <close> = assert(io.popen("ls '" .. dir:gsub("'", "'\\''") .. "'"))
  for name in p:lines() do
    local round, ranks, who = name:match "^r(%d+)%-n(%d+)%-(.+)%.csv$"
    if who then data:read_peer(name, tonumber(round), tonumber(ranks), who) end
    local how
    round, ranks, how = name:match "^r(%d+)%-n(%d+)%-perigee%-([%w_]+)%.json$"
    if how then data:read_perigee(name, tonumber(round), tonumber(ranks), how) end
  end
  data:read_failures()
  data:read_conditions()
  data.ranks, data.sizes = figures.keys(data.has_ranks), figures.keys(data.has_sizes)
  data.over_tcp = data.conditions.net ~= nil and data.conditions.net ~= "shared memory"
  return data
end

-- ---- cells --------------------------------------------------------------------------------------------------

-- The least time of the variants that do the work of a row.
function Data:peer_time(who, ranks, round, variants, bytes)
  local best
  for _, op in ipairs(variants) do
    local us = self:time(who, ranks, round, op, bytes)
    if us and (best == nil or us < best) then best = us end
  end
  return best
end

local function commonest(list)
  local count, best = {}, nil
  for _, v in ipairs(list) do
    count[v] = (count[v] or 0) + 1
    if best == nil or count[v] > count[best] then best = v end
  end
  return best
end

local function median_or_nil(list) return #list > 0 and figures.median(list) or nil end

--- nil when nobody has a figure. Without ratio when Perigee or all peers have none.
function Data:cell(row, ranks, bytes)
  local ours, theirs, whose, ratios, peers = {}, {}, {}, {}, {}
  for round = 1, self.rounds do
    local us = self:time("perigee " .. row[2], ranks, round, row[3], bytes)
    local best, who
    for _, peer in ipairs(figures.peers) do
      local t = self:peer_time(peer, ranks, round, row[4], bytes)
      if t then
        peers[peer] = peers[peer] or {}
        table.insert(peers[peer], t)
        if best == nil or t < best then best, who = t, peer end
      end
    end
    if us then ours[#ours + 1] = us end
    if best then theirs[#theirs + 1], whose[#whose + 1] = best, who end
    if us and best then ratios[#ratios + 1] = us / best end
  end
  if #ours == 0 and #theirs == 0 then return nil end
  local cell = {
    row = row[1], ranks = ranks, bytes = bytes, ours = median_or_nil(ours), theirs = median_or_nil(theirs),
    whose = commonest(whose), peers = {}, rounds = #ratios,
  }
  for who, list in pairs(peers) do cell.peers[who] = figures.median(list) end
  if #ratios > 0 then
    cell.ratio, cell.low, cell.high = figures.median(ratios), math.min(table.unpack(ratios)),
      math.max(table.unpack(ratios))
  end
  return cell
end

--- All cells, in the order of ranks, rows, sizes.
function Data:cells()
  local list = {}
  for _, ranks in ipairs(self.ranks) do
    for _, row in ipairs(figures.rows) do
      -- Memory that all ranks share does not go over a network.
      for _, bytes in ipairs(self.over_tcp and row[2] == "symmetric" and {} or self.sizes) do
        list[#list + 1] = self:cell(row, ranks, bytes)
      end
    end
  end
  return list
end

-- ---- text ---------------------------------------------------------------------------------------------------

function figures.size_text(bytes)
  if bytes == 0 then return "-" end
  local units, i = { " B", " KiB", " MiB" }, 1
  while bytes >= 1024 and i < #units do bytes, i = bytes / 1024, i + 1 end
  return ("%g%s"):format(bytes, units[i])
end

function figures.us_text(us)
  if us == nil then return "" end
  if us >= 1000 then return ("%.0f"):format(us) end
  return us >= 10 and ("%.1f"):format(us) or ("%.2f"):format(us)
end

function figures.ratio_text(c) return ("%.2f (%.2f to %.2f)"):format(c.ratio, c.low, c.high) end

return figures
