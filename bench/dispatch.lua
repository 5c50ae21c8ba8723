-- The tables of dispatch.sh: perigee run -n 1 bench/dispatch.lua FOLDER ROUNDS
local folder, rounds = arg[1], tonumber(arg[2])

-- figures[case][threads] = { min, median, max } in ns: the least, the median of the medians, the largest of all rounds
local function load_csv(name)
  local figures, order = {}, {}
  for round = 1, rounds do
    local f = io.open(("%s/%s-%d.csv"):format(folder, name, round))
    for line in f and f:lines() or function() end do
      local case, rest = line:match '^"([^"]*)",(.*)$'
      if case then
        -- a stack of layers may stand between
        local stack, threads, low, middle, high = rest:match "^([^,]*),?(%d+),(%d+),(%d+),(%d+)$"
        local key = case .. "\0" .. threads
        if not figures[key] then
          figures[key] = {
            case = case, stack = stack, threads = tonumber(threads), min = math.huge, max = 0, medians = {},
          }
          order[#order + 1] = figures[key]
        end
        local r = figures[key]
        r.min, r.max = math.min(r.min, tonumber(low)), math.max(r.max, tonumber(high))
        table.insert(r.medians, tonumber(middle))
      end
    end
    if f then f:close() end
  end
  for _, r in ipairs(order) do
    table.sort(r.medians)
    local n = #r.medians
    r.median = n % 2 == 1 and r.medians[n // 2 + 1] or (r.medians[n // 2] + r.medians[n // 2 + 1]) / 2
  end
  return figures, order
end

local function print_table(title, order)
  print(title)
  print(("%-36s %-28s %7s %9s %9s %9s"):format("case", "stack", "threads", "min ns", "median", "max"))
  for _, r in ipairs(order) do
    print(("%-36s %-28s %7d %9.0f %9.0f %9.0f"):format(r.case, r.stack, r.threads, r.min, r.median, r.max))
  end
  print ""
end

local ours, our_order = load_csv "perigee"
local theirs, their_order = load_csv "torch"

local function median_of(figures, case, threads, base)
  local r = figures[case .. "\0" .. threads]
  if not r then return nil end
  local b = base and figures[base .. "\0" .. (figures[base .. "\0" .. threads] and threads or 0)]
  return r.median - (b and b.median or 0)
end

-- What is held against what. Perigee's calls wait for the work that comes back, PyTorch's only where it is said;
-- Perigee's one thread is one that Lua does not know beforehand.
local pairs_of = {
  { "done at once / new Work and Future", "override returns true", 1, "new work and future", 0 },
  { "done at once / one cached Work", "override returns true", 1, "cached work", 0 },
  { "done at once / new Work and Future, foreign thread", "override returns true", 1, "new work and future", 1 },
  { "the same, its thread state kept", "override returns true", 1, "new work and future, kept thread", 1 },
  { "done at once / new Work and Future", "override returns true", 2, "new work and future", 2 },
  { "the same, thread states kept", "override returns true", 2, "new work and future, kept thread", 2 },
  { "done at once / new Work and Future", "override returns true", 4, "new work and future", 4 },
  { "the same, thread states kept", "override returns true", 4, "new work and future, kept thread", 4 },
  { "a future of its own, done", "override returns a done future", 1, "new work and future", 0 },
  { "a future of its own, done", "override returns a done future", 4, "new work and future, kept thread", 4 },
  { "a Work of the script's, waited for", "override returns a table", 1, "new work, future and wait", 0 },
  { "passes on", "override passes on", 1, "delegates", 0 },
  { "passes on, above the inner call", "override passes on", 1, "delegates", 0, "native, submit and wait", "native" },
  { "passes on", "override passes on", 2, "delegates, kept thread", 2 },
  { "passes on", "override passes on", 4, "delegates, kept thread", 4 },
}

print_table("Perigee, override in Lua", our_order)
if #their_order > 0 then
  print_table("PyTorch, override in Python", their_order)
  print "Medians, ns"
  print(("%-52s %7s %9s %9s %7s"):format("an override that is", "threads", "Perigee", "PyTorch", "ratio"))
  for _, p in ipairs(pairs_of) do
    local a, b = median_of(ours, p[2], p[3], p[6]), median_of(theirs, p[4], p[5], p[7])
    if a and b then print(("%-52s %7d %9.0f %9.0f %7.2f"):format(p[1], p[3], a, b, a / b)) end
  end
end
local run = median_of(ours, "native, run", 1)
print(("not overridden, above the bottom's own call: %+.0f ns below one layer, %+.0f ns below three"):format(
  median_of(ours, "not overridden, 1 layer, run", 1) - run, median_of(ours, "not overridden, 3 layers, run", 1) - run))
