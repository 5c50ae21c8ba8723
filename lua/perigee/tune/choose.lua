-- From measured times to rules: which algorithm for which sizes, without a switch that the figures do not carry.
--
-- The choice for a ladder of sizes is the cheapest path through it: a size costs the logarithm of its time, each change
-- of the algorithm SWITCH on top, and one that is not the default of its size LOYAL. So noise of a few percent neither
-- scatters the rules nor leaves the defaults.
local choose = {}

local SWITCH, LOYAL = 0.10, 0.05

--- One algorithm for each size. times: algorithm -> microseconds of each size (0: none). default: the
--- algorithm of each size. order: names; with once = true it is never left for one that stands before it.
function choose.pick(sizes, times, default, order, once)
  local best, from = {}, {}
  for i = 1, #sizes do
    best[i], from[i] = {}, {}
    for k, name in ipairs(order) do
      local us = times[name] and times[name][i]
      local cost = us and us > 0 and math.log(us) + (name == default[i] and 0 or LOYAL) or math.huge
      local least, before = i == 1 and 0 or math.huge, nil
      if i > 1 then
        for j, other in ipairs(order) do
          local way = best[i - 1][j] + (other == name and 0 or SWITCH)
          if way < least and not (once and j > k) then least, before = way, j end
        end
      end
      best[i][k], from[i][k] = least + cost, before
    end
  end
  local at
  for k = 1, #order do
    if best[#sizes][k] < math.huge and (not at or best[#sizes][k] < best[#sizes][at]) then at = k end
  end
  local picks = {}
  for i = #sizes, 1, -1 do
    if not at then return nil end
    picks[i], at = order[at], from[i][at]
  end
  return picks
end

--- Where the sizes of one algorithm end: halfway (of the logarithms) to the next size, at a power of two.
local function boundary(a, b)
  if b <= 2 * a then return b end
  return 1 << math.floor(math.log(math.sqrt(a * b), 2) + 0.5)
end

--- Ranges { from, to, algo }; `to` is not included, and the last one has none. unit: bytes of a
--- rule per byte of a size.
function choose.ranges(sizes, picks, unit)
  local ranges = { { from = 0, algo = picks[1] } }
  for i = 2, #sizes do
    local last = ranges[#ranges]
    if picks[i] ~= last.algo then
      last.to = boundary(sizes[i - 1], sizes[i]) * unit
      ranges[#ranges + 1] = { from = last.to, algo = picks[i] }
    end
  end
  return ranges
end

--- 65536 as "64k".
function choose.bytes(n)
  local units, unit = { "", "k", "m", "g" }, 1
  while unit < 4 and n > 0 and n % 1024 == 0 do n, unit = n // 1024, unit + 1 end
  return ("%d%s"):format(n, units[unit])
end

local function range_text(ranges)
  local out = {}
  for i, r in ipairs(ranges) do
    out[i] = ("%s-%s:%s"):format(choose.bytes(r.from), r.to and choose.bytes(r.to) or "", r.algo)
  end
  return table.concat(out, ",")
end

--- What to do about one operation of one run. op: { kind, sizes, times, default, symmetric, symmetric_default, order }.
--- Returns { rule, picks, changes }: changes are { bytes, from, to, gain, symmetric } of the sizes whose path
--- differs, gain how many times as fast, symmetric for symmetric tensors ("plain": as other tensors).
function choose.decide(op, where, ranks)
  local sizes, result = op.sizes, { changes = {} }
  local picks = choose.pick(sizes, op.times, op.default, op.order)
  if not picks then return nil end
  local unit = op.kind == "reduce_scatter" and ranks or 1
  local ranges = choose.ranges(sizes, picks, unit)
  result.picks = picks
  for i, bytes in ipairs(sizes) do
    local was = op.times[op.default[i]] and op.times[op.default[i]][i]
    local now = op.times[picks[i]][i]
    if picks[i] ~= op.default[i] then
      result.changes[#result.changes + 1] =
        { bytes = bytes, from = op.default[i], to = picks[i], gain = was and was / now or nil }
    end
  end
  if op.symmetric then
    local plain = {}
    for i = 1, #sizes do plain[i] = op.times[picks[i]][i] end
    local two = choose.pick(sizes, { plain = plain, symmetric = op.symmetric }, op.symmetric_default,
      { "plain", "symmetric" }, true)
    for i, one in ipairs(two or {}) do
      if one == "symmetric" then
        local from = i == 1 and 0 or boundary(sizes[i - 1], sizes[i]) * unit
        table.insert(ranges, 1, { from = from, algo = "symmetric" })
        break
      end
    end
    for i, bytes in ipairs(sizes) do
      local now = two and two[i] or "plain"
      if now ~= op.symmetric_default[i] then
        local us = { plain = plain[i], symmetric = op.symmetric[i] }
        result.changes[#result.changes + 1] = { bytes = bytes, symmetric = true, from = op.symmetric_default[i],
          to = now, gain = us[op.symmetric_default[i]] / us[now] }
      end
    end
  end
  result.rule = ("%s/%s@%d:%s"):format(op.kind, where, ranks, range_text(ranges))
  return result
end

local function us(v) return (not v or v == 0) and "-" or v >= 100 and ("%.0f"):format(v) or ("%.2f"):format(v) end

--- Lines of comment: the figures behind a rule.
function choose.figures(op, picks)
  local head = { "# bytes" }
  for _, name in ipairs(op.order) do head[#head + 1] = ("%12s"):format(name) end
  if op.symmetric then head[#head + 1] = ("%12s"):format "symmetric" end
  local lines = { table.concat(head, " ") .. "   us; * by this rule, = built in" }
  for i, bytes in ipairs(op.sizes) do
    local line = { ("# %-5s"):format(choose.bytes(bytes)) }
    for _, name in ipairs(op.order) do
      local mark = (picks[i] == name and "*" or "") .. (op.default[i] == name and "=" or "")
      line[#line + 1] = ("%12s"):format(us(op.times[name] and op.times[name][i]) .. mark)
    end
    if op.symmetric then line[#line + 1] = ("%12s"):format(us(op.symmetric[i])) end
    lines[#lines + 1] = table.concat(line, " ")
  end
  return lines
end

return choose
