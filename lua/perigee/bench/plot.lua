-- Latency and bandwidth over size as one SVG, both axes logarithmic.
--
-- A line is told from the others by its colour, its dashes and its marks: two of them are left in grey.
local plot = {}

local WIDTH, PANEL, HEIGHT, TOP, LEFT, GAP = 1120, 460, 340, 56, 74, 88
local LEGEND_LINE, LEGEND_COLUMNS = 20, 3

-- Dark to light, so that neighbours differ in grey too.
local colours = { "#1b1d4d", "#b8241b", "#0c7a6f", "#d27a00", "#6a3d9a", "#3b86c4", "#7a4a1e", "#8a8f1a" }
local dashes = { "", "7 3", "2 3", "10 3 2 3" }
local marks = {
  function(x, y) return ('<circle cx="%.1f" cy="%.1f" r="3.2"/>'):format(x, y) end,
  function(x, y) return ('<rect x="%.1f" y="%.1f" width="6" height="6"/>'):format(x - 3, y - 3) end,
  function(x, y) return ('<path d="M%.1f %.1f l4 7 h-8 z"/>'):format(x, y - 4) end,
  function(x, y) return ('<path d="M%.1f %.1f l4 4 l-4 4 l-4 -4 z"/>'):format(x, y - 4) end,
  function(x, y) return ('<path d="M%.1f %.1f l-4 -7 h8 z"/>'):format(x, y + 4) end,
}

local function escape(words)
  return (words:gsub("[&<>\"]", { ["&"] = "&amp;", ["<"] = "&lt;", [">"] = "&gt;", ['"'] = "&quot;" }))
end

local function style(i)
  return {
    colour = colours[(i - 1) % #colours + 1],
    dash = dashes[(i - 1) // 2 % #dashes + 1],
    mark = marks[(i - 1) % #marks + 1],
  }
end

local function text(x, y, anchor, size, words, more)
  return ('<text x="%.1f" y="%.1f" text-anchor="%s" font-size="%d"%s>%s</text>'):format(x, y, anchor, size, more or "",
    escape(words))
end

-- A shape without its end, as a line of this look.
local function stroked(shape, look)
  return ('%s stroke="%s" stroke-width="1.8" stroke-dasharray="%s"/>'):format(shape, look.colour, look.dash)
end

-- ---- lines of the drawing ---------------------------------------------------------------------------

local function label_of(run, i)
  return run.label or ("%s, %d ranks"):format(run.backend or "run " .. i, run.ranks or 0)
end

-- One series per run and operation: { name, points = { {bytes, us, GB/s}, ... } }
local function series_of(runs)
  local list, labels, ops, nops = {}, {}, {}, 0
  for i, run in ipairs(runs) do
    labels[i] = label_of(run, i)
    local by_op = {}
    for _, r in ipairs(run.rows) do
      if r.bytes > 0 and r.time_us and r.time_us > 0 then
        if not by_op[r.op] then
          by_op[r.op] = { run = i, op = r.op, points = {} }
          list[#list + 1] = by_op[r.op]
        end
        if not ops[r.op] then ops[r.op], nops = true, nops + 1 end
        table.insert(by_op[r.op].points, { r.bytes, r.time_us, r.algbw })
      end
    end
  end
  for _, s in ipairs(list) do
    table.sort(s.points, function(a, b) return a[1] < b[1] end)
    s.name = #runs == 1 and s.op or nops == 1 and labels[s.run] or s.op .. ", " .. labels[s.run]
  end
  local title = nops == 1 and list[1].op or ""
  if #runs == 1 then title = (title ~= "" and title .. ", " or "") .. labels[1] end
  return list, title
end

local function range_of(series, column)
  local low, high = math.huge, -math.huge
  for _, s in ipairs(series) do
    for _, p in ipairs(s.points) do low, high = math.min(low, p[column]), math.max(high, p[column]) end
  end
  return low, high
end

-- ---- axes -------------------------------------------------------------------------------------------

local function bytes_text(v)
  local units, i = { "", "K", "M", "G" }, 1
  while v >= 1024 and i < #units do v, i = v / 1024, i + 1 end
  return ("%g%s"):format(v, units[i])
end

local function power(base, e) return base ^ e end

-- Whole powers of the base around [low, high].
local function decades(low, high, base)
  local first, last = math.floor(math.log(low, base) + 1e-9), math.ceil(math.log(high, base) - 1e-9)
  return first, math.max(last, first + 1)
end

local function scale(low, high, from, to)
  local a, b = math.log(low), math.log(high)
  return function(v) return from + (math.log(v) - a) / (b - a) * (to - from) end
end

local function axis_x(out, left, bottom, low, high)
  local first, last = decades(low, high, 2)
  local x = scale(power(2, first), power(2, last), left, left + PANEL)
  local step = math.max(1, math.ceil((last - first) / 9))
  for e = first, last, step do
    local at = x(power(2, e))
    out[#out + 1] = ('<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" class="grid"/>'):format(at, bottom - HEIGHT, at, bottom)
    out[#out + 1] = text(at, bottom + 16, "middle", 11, bytes_text(power(2, e)))
  end
  out[#out + 1] = text(left + PANEL / 2, bottom + 34, "middle", 12, "size per rank (bytes)")
  return x
end

local function axis_y(out, left, bottom, low, high)
  local first, last = decades(low, high, 10)
  local y = scale(power(10, first), power(10, last), bottom, bottom - HEIGHT)
  for e = first, last do
    for digit = 1, e < last and 9 or 1 do
      local at = y(digit * power(10, e))
      out[#out + 1] = ('<line x1="%d" y1="%.1f" x2="%d" y2="%.1f" class="%s"/>'):format(left, at, left + PANEL, at,
        digit == 1 and "grid" or "fine")
    end
    local label = ("%g"):format(power(10, e)):gsub("e%+?(-?)0*", "e%1")
    out[#out + 1] = text(left - 7, y(power(10, e)) + 4, "end", 11, label)
  end
  return y
end

local function panel(out, left, series, column, heading, unit)
  local bottom = TOP + HEIGHT
  out[#out + 1] = text(left + PANEL / 2, TOP - 10, "middle", 13, heading, ' font-weight="bold"')
  local low, high = range_of(series, 1)
  local x = axis_x(out, left, bottom, low, high)
  local y = axis_y(out, left, bottom, range_of(series, column))
  local middle = bottom - HEIGHT / 2
  out[#out + 1] = text(left - 52, middle, "middle", 12, unit,
    (' transform="rotate(-90 %.1f %.1f)"'):format(left - 52, middle))
  for i, s in ipairs(series) do
    local look, path, points = style(i), {}, {}
    for k, p in ipairs(s.points) do
      local px, py = x(p[1]), y(p[column])
      path[k] = ("%.1f,%.1f"):format(px, py)
      points[k] = look.mark(px, py)
    end
    out[#out + 1] = stroked('<polyline points="%s" fill="none"', look):format(table.concat(path, " "))
    out[#out + 1] = ('<g fill="%s">%s</g>'):format(look.colour, table.concat(points))
  end
  out[#out + 1] = ('<rect x="%d" y="%d" width="%d" height="%d" class="frame"/>'):format(left, TOP, PANEL, HEIGHT)
end

local function legend(out, series, top)
  local width = (WIDTH - LEFT - 20) / LEGEND_COLUMNS
  for i, s in ipairs(series) do
    local look = style(i)
    local left = LEFT + (i - 1) % LEGEND_COLUMNS * width
    local y = top + (i - 1) // LEGEND_COLUMNS * LEGEND_LINE
    out[#out + 1] = stroked('<line x1="%.1f" y1="%d" x2="%.1f" y2="%d"', look):format(left, y, left + 36, y)
    out[#out + 1] = ('<g fill="%s">%s</g>'):format(look.colour, look.mark(left + 18, y))
    out[#out + 1] = text(left + 44, y + 4, "start", 12, s.name)
  end
end

--- runs: results as `perigee bench --json` writes them, with .label. Returns the SVG's text.
function plot.svg(runs)
  local series, title = series_of(runs)
  if #series == 0 then error("nothing to draw: no row has a size and a time", 0) end
  local legend_top = TOP + HEIGHT + 62
  local height = legend_top + ((#series - 1) // LEGEND_COLUMNS + 1) * LEGEND_LINE
  local out = {
    '<?xml version="1.0" encoding="UTF-8"?>',
    '<svg xmlns="http://www.w3.org/2000/svg" font-family="sans-serif"',
    (' viewBox="0 0 %d %d" width="%d" height="%d">'):format(WIDTH, height, WIDTH, height),
    "<style>.grid{stroke:#c4c4c4;stroke-width:1}.fine{stroke:#ececec;stroke-width:1}"
      .. ".frame{fill:none;stroke:#444;stroke-width:1}</style>",
    ('<rect width="%d" height="%d" fill="#fff"/>'):format(WIDTH, height),
    text(WIDTH / 2, 22, "middle", 15, title),
  }
  panel(out, LEFT, series, 2, "latency", "time of a call (µs)")
  panel(out, LEFT + PANEL + GAP, series, 3, "bandwidth", "algorithm bandwidth (GB/s)")
  legend(out, series, legend_top)
  out[#out + 1] = "</svg>"
  return table.concat(out, "\n") .. "\n"
end

return plot
