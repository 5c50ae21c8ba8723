-- Results as a table with the columns of nccl-tests.
local report = {}

local function fixed(v)
  if v >= 1000 then return ("%.1f"):format(v) end
  return v >= 100 and ("%.2f"):format(v) or ("%.3f"):format(v)
end

local columns = {
  each = {
    { "size", "(B)", 12, function(r) return r.bytes end },
    { "count", "(elements)", 11, function(r) return r.count end },
    { "type", "", 5, function(r) return r.dtype end },
    { "redop", "", 8, function(r) return r.redop end },
    { "root", "", 5, function(r) return r.root end },
    { "time", "(us)", 10, function(r) return fixed(r.time_us) end },
    { "algbw", "(GB/s)", 8, function(r) return ("%.3f"):format(r.algbw) end },
    { "busbw", "(GB/s)", 8, function(r) return ("%.3f"):format(r.busbw) end },
    { "#wrong", "", 7, function(r) return r.wrong or "N/A" end },
    { "min", "(us)", 10, function(r) return fixed(r.min_us) end },
    { "p50", "(us)", 10, function(r) return fixed(r.p50_us) end },
    { "p99", "(us)", 10, function(r) return fixed(r.p99_us) end },
    { "iters", "", 6, function(r) return r.iters end },
  },
}
columns.overlap = {}
for i = 1, 5 do columns.overlap[i] = columns.each[i] end
for _, c in ipairs {
  { "call", "(us)", 10, function(r) return fixed(r.comm_us) end },
  { "compute", "(us)", 10, function(r) return fixed(r.compute_us) end },
  { "in turn", "(us)", 10, function(r) return fixed(r.turn_us) end },
  { "both", "(us)", 10, function(r) return fixed(r.both_us) end },
  { "hidden", "(%)", 8, function(r) return ("%.0f"):format(100 * r.hidden) end },
  columns.each[9],
  columns.each[13],
} do columns.overlap[#columns.overlap + 1] = c end

local function line(mode, start, field)
  local out = { start }
  for _, c in ipairs(columns[mode] or columns.each) do out[#out + 1] = ("%" .. c[3] .. "s"):format(field(c)) end
  return table.concat(out, " ")
end

function report.header(meta)
  local how = { each = "each call timed, an untimed barrier after it", b2b = "back to back, without barriers",
    overlap = "compute, call (in turn); submit, compute, wait (both)" }
  local text = {
    ("# perigee %s, %s, %s transport"):format(meta.perigee, meta.backend,
      meta.transport ~= "" and meta.transport or "no"),
    ("# %d ranks on %d cores: %s, Linux %s, load %s, %s"):format(meta.ranks, meta.cores, meta.cpu, meta.kernel,
      meta.load, meta.date),
    ("# called from %s; %s%s; %s; repetitions %d"):format(meta.from == "lua" and "Lua" or "C", how[meta.mode],
      meta.symmetric and "; symmetric tensors" or "",
      meta.iters > 0 and meta.iters .. " calls per row" or ("%g ms of calls per row"):format(meta.budget), meta.reps),
    "#",
    line(meta.mode, "#", function(c) return c[1] end),
    line(meta.mode, "#", function(c) return c[2] end),
  }
  return table.concat(text, "\n")
end

function report.row(mode, result)
  return line(mode, " ", function(c) return tostring(c[4](result)) end)
end

function report.footer(meta)
  local text, wrong, bandwidth, n = {}, 0, 0, 0
  for _, why in ipairs(meta.left_out) do text[#text + 1] = "# left out: " .. why end
  for _, r in ipairs(meta.rows) do
    wrong = wrong + (r.wrong or 0)
    if r.busbw and r.bytes > 0 then bandwidth, n = bandwidth + r.busbw, n + 1 end
  end
  if meta.check then
    text[#text + 1] = ("# Out of bounds values : %d %s"):format(wrong, wrong == 0 and "OK" or "FAILED")
  end
  if n > 0 then text[#text + 1] = ("# Avg bus bandwidth    : %.4g"):format(bandwidth / n) end
  if meta.steal_ticks > 0 then
    text[#text + 1] = ("# the host took %d clock ticks from this machine meanwhile"):format(meta.steal_ticks)
  end
  return table.concat(text, "\n"), wrong
end

return report
