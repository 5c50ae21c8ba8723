-- The report of a comparison: REPORT.md, REPORT.csv with every figure, REPORT-<operation>-<ranks>.svg.
local figures = require "figures"
local machine = require "perigee.bench.machine"
local plot = require "perigee.bench.plot"

local report = {}

local median, names = figures.median, figures.names
local size_text, us_text, ratio_text = figures.size_text, figures.us_text, figures.ratio_text

local function write_file(path, text)
  local f <close> = assert(io.open(path, "wb"))
  assert(f:write(text))
end

-- ---- text ---------------------------------------------------------------------------------------------------

local Page = {}
Page.__index = Page

function Page:say(...) self[#self + 1] = select("#", ...) > 1 and string.format(...) or (...) end

function Page:row(fields) self:say("| " .. table.concat(fields, " | ") .. " |") end

--- columns: { name, alignment }, ...
function Page:head(...)
  local head, rule = {}, {}
  for i, column in ipairs { ... } do head[i], rule[i] = column[1], column[2] or "--:" end
  self:row(head)
  self:row(rule)
end

-- Those of a list for which accept holds.
local function filter(list, accept)
  local some = {}
  for _, c in ipairs(list) do if accept(c) then some[#some + 1] = c end end
  return some
end

local function ratios_of(list)
  local ratios = {}
  for i, c in ipairs(list) do ratios[i] = c.ratio end
  return ratios
end

-- ---- targets ------------------------------------------------------------------------------------------------

local KIB, MIB = 1 << 10, 1 << 20

local function target(name, limit, accept) return { name = name, limit = limit, accept = accept } end

local function allreduce(ranks, from, to, row)
  return function(c)
    return c.row == (row or "allreduce") and (ranks == nil or c.ranks == ranks) and c.bytes >= from and c.bytes <= to
  end
end

local targets = {
  shm = {
    target("allreduce of 8 B, 2 ranks", 0.5, allreduce(2, 8, 8)),
    target("allreduce of 8 B, 4 ranks", 0.4, allreduce(4, 8, 8)),
    target("allreduce of 8 B, 8 ranks", 0.3, allreduce(8, 8, 8)),
    target("allreduce up to 4 KiB, 8 ranks", 0.3, allreduce(8, 0, 4 * KIB)),
    target("allreduce from 64 KiB on, symmetric tensors, 2 ranks", 0.25,
      allreduce(2, 64 * KIB, math.maxinteger, "allreduce, symmetric")),
    target("allreduce from 1 MiB on, ordinary tensors", 0.6, allreduce(nil, MIB, math.maxinteger)),
    target("every cell", 1, function() return true end),
  },
  tcp = {
    target("allreduce", 0.67, function(c) return c.row == "allreduce" end),
    target("pingpong", 0.67, function(c) return c.row == "pingpong" end),
    target("bw", 0.67, function(c) return c.row == "bw" end),
    target("every cell", 1, function() return true end),
  },
}

local function print_targets(page, data, compared)
  page:say "Targets; one is met when it holds for the median of the rounds in each of its cells:"
  page:say ""
  page:head({ "target", "---" }, { "ratio at most" }, { "median" }, { "largest" }, { "cells that meet it" },
    { "met", "---" })
  for _, t in ipairs(targets[data.over_tcp and "tcp" or "shm"]) do
    local list = filter(compared, t.accept)
    local good = #filter(list, function(c) return c.ratio <= t.limit end)
    if #list == 0 then
      page:row { t.name, t.limit, "", "", "0 of 0", "not measured" }
    else
      local ratios = ratios_of(list)
      page:row { t.name, t.limit, ("%.2f"):format(median(ratios)), ("%.2f"):format(math.max(table.unpack(ratios))),
        ("%d of %d"):format(good, #list), good == #list and "yes" or "**no**" }
    end
  end
  if not data.over_tcp then
    local middle = median(ratios_of(compared))
    page:row { "median of all cells", 0.5, ("%.2f"):format(middle), "", "", middle <= 0.5 and "yes" or "**no**" }
  end
  page:say ""
end

-- ---- summary ------------------------------------------------------------------------------------------------

-- Median ratio of the cells that are accepted, as a field.
local function middle(list, accept)
  local some = ratios_of(filter(list, accept))
  return #some > 0 and ("%.2f"):format(median(some)) or ""
end

local function print_overview(page, data, compared)
  page:say "Median ratio over the sizes:"
  page:say ""
  local head = { { "operation", "---" } }
  for _, ranks in ipairs(data.ranks) do head[#head + 1] = { ranks .. " ranks" } end
  page:head(table.unpack(head))
  local function line(name, accept)
    local fields, any = { name }, false
    for _, ranks in ipairs(data.ranks) do
      local text = middle(compared, function(c) return c.ranks == ranks and accept(c) end)
      fields[#fields + 1], any = text, any or text ~= ""
    end
    if any then page:row(fields) end
  end
  for _, row in ipairs(figures.rows) do line(row[1], function(c) return c.row == row[1] end) end
  for _, bytes in ipairs(data.sizes) do
    if bytes > 0 then line("all of " .. size_text(bytes), function(c) return c.bytes == bytes end) end
  end
  line("**all**", function() return true end)
  page:say ""
end

local function print_slower(page, compared)
  local slower = filter(compared, function(c) return c.ratio > 1 end)
  if #slower == 0 then return end
  table.sort(slower, function(a, b) return a.ratio > b.ratio end)
  page:say "Slower than the best peer:"
  page:say ""
  page:head({ "operation", "---" }, { "ranks" }, { "size" }, { "ratio" }, { "Perigee, us" }, { "best peer, us" },
    { "which", "---" })
  for _, c in ipairs(slower) do
    page:row { c.row, c.ranks, size_text(c.bytes), ratio_text(c), us_text(c.ours), us_text(c.theirs), names[c.whose] }
  end
  page:say ""
end

-- What keeps the figures from being those of one whole, quiet run.
local function doubts(data)
  local list, c = {}, data.conditions
  local cores = machine.describe().cores
  if c.whole ~= "1" then
    list[#list + 1] = ("this is a part of the comparison: %s rounds, %s ms per row, ranks %s, bytes %s, %s, against %s")
      :format(c.rounds or "?", c.budget or "?", c.ranks or "?", c.sizes or "?", c.ops or "?", c.peers or "?")
  end
  if not c.finished then list[#list + 1] = "the run did not come to its end" end
  if #c.sittings > 1 then
    list[#list + 1] = ("the run was interrupted and taken up again: %d sittings"):format(#c.sittings)
  end
  for _, sitting in ipairs(c.sittings) do
    local load = tonumber(sitting:match "load ([%d.]+)")
    if load and load > cores / 4 then list[#list + 1] = "something else ran when it began (load " .. load .. ")" end
  end
  if c.steal > c.seconds * cores then list[#list + 1] = "the host took more than 1 % of the time" end
  if data.wrong > 0 then list[#list + 1] = data.wrong .. " elements were not what the definition says" end
  return list
end

local function print_summary(page, data, cells, compared)
  page:say "## Summary"
  page:say ""
  for _, doubt in ipairs(doubts(data)) do
    page:say("**Mind: %s.**", doubt)
    page:say ""
  end
  if #compared == 0 then
    page:say "No figures."
    page:say ""
    return
  end
  local good = #filter(compared, function(c) return c.ratio <= 1 end)
  page:say("%d of %d cells (%.0f %%) are not slower than the best peer; the median ratio is %.2f.", good, #compared,
    100 * good / #compared, median(ratios_of(compared)))
  page:say ""
  local alone = #filter(cells, function(c) return c.ours and not c.theirs end)
  local absent = #filter(cells, function(c) return not c.ours end)
  if alone > 0 then
    page:say("Not counted: %d cells that no peer reached in its time.", alone)
    page:say ""
  end
  if absent > 0 then
    page:say("**%d cells have figures of peers and none of Perigee.**", absent)
    page:say ""
  end
  print_targets(page, data, compared)
  print_overview(page, data, compared)
  print_slower(page, compared)
end

-- ---- conditions ---------------------------------------------------------------------------------------------

local function print_conditions(page, data)
  local m, c = machine.describe(), data.conditions
  page:say "## Conditions"
  page:say ""
  page:say("* %s, %d cores, Linux %s", m.cpu, m.cores, m.kernel)
  page:say("* begun %s; %d s of runs, %d clock ticks taken by the host in them", c.sittings[1] or "at an unknown time",
    c.seconds, c.steal)
  page:say("* Perigee %s; Open MPI %s, MPICH %s, Gloo %s", c.perigee or m.perigee, c.openmpi or "?", c.mpich or "?",
    c.gloo or "?")
  page:say("* between the ranks: %s; %s rounds of everything, one program after the other, %s ms per row",
    c.net or "?", c.rounds or "?", c.budget or "?")
  page:say("* elements that were not what the definition says: %d", data.wrong)
  page:say ""
  if #data.unfinished == 0 then return end
  page:say "Not finished within the time that each program has (`wall_of` in `compare.sh`); small sizes come first:"
  page:say ""
  page:head({ "program", "---" }, { "ranks" }, { "round" }, { "what", "---" })
  for _, u in ipairs(data.unfinished) do page:row { names[u.who] or "Perigee", u.ranks, u.round, u.text } end
  page:say ""
end

-- ---- every cell ---------------------------------------------------------------------------------------------

local function cell_text(c, what)
  if what == "times" then
    return ("%s / %s %s"):format(us_text(c.ours), us_text(c.theirs), c.whose and names[c.whose] or "")
  end
  if not c.ratio then return c.ours and "no peer" or "**no figure**" end
  return c.ratio > 1 and "**" .. ratio_text(c) .. "**" or ratio_text(c)
end

local function print_tables(page, data, ranks, by_row)
  for _, what in ipairs { "ratio", "times" } do
    page:say(what == "ratio" and "### %d ranks: ratio to the best peer, median (least to largest)"
      or "### %d ranks: Perigee / best peer in microseconds (medians)", ranks)
    page:say ""
    local head = { { "operation", "---" } }
    local sized = filter(data.sizes, function(bytes) return bytes > 0 end)
    for _, bytes in ipairs(sized) do head[#head + 1] = { size_text(bytes) } end
    page:head(table.unpack(head))
    for _, row in ipairs(figures.rows) do
      local cells = by_row[row[1]] or {}
      local fields, any = { row[1] }, false
      for i, bytes in ipairs(sized) do
        local c = cells[bytes] or i == 1 and cells[0] -- what has no size stands in the first column
        fields[#fields + 1], any = c and cell_text(c, what) or "", any or c ~= nil and c ~= false
      end
      if any then page:row(fields) end
    end
    page:say ""
  end
end

local function csv(data, cells)
  local head = { "operation", "ranks", "bytes", "rounds", "ratio", "ratio_min", "ratio_max", "best_peer", "perigee_us" }
  for _, who in ipairs(figures.peers) do
    if data.times[who] then head[#head + 1] = who:gsub("-", "_") .. "_us" end
  end
  local text = { table.concat(head, ",") }
  local function number(v) return v and ("%.4g"):format(v) or "" end
  for _, c in ipairs(cells) do
    local fields = { '"' .. c.row .. '"', c.ranks, c.bytes, c.rounds, number(c.ratio), number(c.low), number(c.high),
      c.whose or "", number(c.ours) }
    for _, who in ipairs(figures.peers) do
      if data.times[who] then fields[#fields + 1] = number(c.peers[who]) end
    end
    text[#text + 1] = table.concat(fields, ",")
  end
  return table.concat(text, "\n") .. "\n"
end

-- ---- drawings -----------------------------------------------------------------------------------------------

-- One program's line: time_of gives a cell's figure of it.
local function curve(label, ranks, cells, time_of)
  local rows = {}
  for _, c in ipairs(cells) do
    local us = c.bytes > 0 and time_of(c)
    if us then rows[#rows + 1] = { op = c.row, bytes = c.bytes, time_us = us, algbw = c.bytes / us / 1e3 } end
  end
  return #rows > 0 and { label = label, ranks = ranks, rows = rows } or nil
end

local function draw(stem, op, ranks, cells)
  local plain = filter(cells, function(c) return c.row == op and c.ranks == ranks end)
  local symmetric = filter(cells, function(c) return c.row == op .. ", symmetric" and c.ranks == ranks end)
  local runs = {}
  runs[1] = curve("Perigee", ranks, plain, function(c) return c.ours end)
  runs[#runs + 1] = curve("Perigee, symmetric", ranks, symmetric, function(c) return c.ours end)
  for _, r in ipairs(runs) do for _, row in ipairs(r.rows) do row.op = op end end
  for _, who in ipairs(figures.peers) do
    runs[#runs + 1] = curve(names[who], ranks, plain, function(c) return c.peers[who] end)
  end
  if #runs < 2 then return nil end
  local path = ("%s-%s-%d.svg"):format(stem, op, ranks)
  write_file(path, plot.svg(runs))
  return path:match "[^/]*$"
end

--- Writes the report of these figures to path (ending in .md), and what belongs to it beside it.
function report.write(data, path)
  local stem = path:gsub("%.md$", "")
  local page, cells = setmetatable({}, Page), data:cells()
  local compared = filter(cells, function(c) return c.ratio end)
  page:say "# Perigee beside Open MPI, MPICH and Gloo"
  page:say ""
  local name = stem:match "[^/]*$" .. ".csv"
  page:say("Between the ranks: %s. Written by bench/compare.sh. A ratio is Perigee's time over that of the quickest",
    data.conditions.net or "?")
  page:say "peer in the same round; below 1 Perigee is quicker. Sizes are bytes per rank, as bench/README.md explains;"
  page:say("every figure is in [%s](%s).", name, name)
  page:say ""
  print_summary(page, data, cells, compared)
  print_conditions(page, data)
  for _, ranks in ipairs(data.ranks) do
    page:say("## %d ranks", ranks)
    page:say ""
    for _, op in ipairs { "allreduce", "broadcast" } do
      local drawing = draw(stem, op, ranks, cells)
      if drawing then
        page:say("![%s, %d ranks](%s)", op, ranks, drawing)
        page:say ""
      end
    end
    local by_row = {}
    for _, c in ipairs(filter(cells, function(c) return c.ranks == ranks end)) do
      by_row[c.row] = by_row[c.row] or {}
      by_row[c.row][c.bytes] = c
    end
    print_tables(page, data, ranks, by_row)
  end
  write_file(path, table.concat(page, "\n"))
  write_file(stem .. ".csv", csv(data, cells))
end

return report
