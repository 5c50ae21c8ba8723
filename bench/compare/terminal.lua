-- A part of the comparison, for the eye: one line per cell, medians of the rounds in microseconds.
local figures = require "figures"

local terminal = {}

local function columns(data)
  local list = {
    { "operation", 26, function(c) return c.row end },
    { "ranks", 5, function(c) return tostring(c.ranks) end },
    { "size", 9, function(c) return figures.size_text(c.bytes) end },
    { "Perigee", 9, function(c) return figures.us_text(c.ours) end },
  }
  for _, who in ipairs(figures.peers) do
    if data.times[who] then
      local name = figures.names[who]:gsub("Open MPI coll/sm", "OMPI sm")
      list[#list + 1] = { name, math.max(9, #name), function(c) return figures.us_text(c.peers[who]) end }
    end
  end
  list[#list + 1] = { "ratio (min to max)", 21, function(c) return c.ratio and figures.ratio_text(c) or "" end }
  return list
end

function terminal.print(data)
  local list = columns(data)
  local function line(field)
    local words = {}
    for i, column in ipairs(list) do
      words[i] = (i == 1 and "%-" .. column[2] .. "s" or "%" .. column[2] .. "s"):format(field(column))
    end
    print(table.concat(words, " "))
  end
  line(function(column) return column[1] end)
  for _, cell in ipairs(data:cells()) do line(function(column) return column[3](cell) end) end
  for _, u in ipairs(data.unfinished) do
    local who = figures.names[u.who] or "Perigee"
    print(("not finished: %s, %d ranks, round %d: %s"):format(who, u.ranks, u.round, u.text))
  end
  if data.wrong > 0 then print(("%d elements are not what the definition says"):format(data.wrong)) end
end

return terminal
