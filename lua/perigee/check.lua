-- The conformance suite of backends: every operation on every dtype, at several sizes and numbers of ranks, blocking
-- and asynchronous, compared with the definition as perigee.sim computes it without the backend.
local perigee = require "perigee"
local blame = require "perigee.sim.blame"
local call = require "perigee.sim.call"
local sim = require "perigee.sim"

local check = {}

local UNSIGNED = { u8 = 1, u16 = 1, u32 = 1, u64 = 1 }
local COMPLEX = { c64 = 1, c128 = 1 }

-- ---- inputs -----------------------------------------------------------------------------------------------

-- Small whole numbers, exact in every dtype, that tell ranks, blocks and positions apart.
local function value(c, rank, block, i)
  if c.dtype == "bool" then return (i * 5 + rank * 3 + block) % 3 ~= 0 and 1 or 0 end
  if c.redop == "product" then return 1 + (i + rank + block) % 2 end
  local v = (i * 7 + rank * 3 + block * 5) % 13
  if not UNSIGNED[c.dtype] then v = v - 6 end
  if COMPLEX[c.dtype] then return { v, v + 1 } end
  return v
end

local function input(c, rank, block, n)
  if n == 0 then return perigee.zeros(c.dtype, 0) end
  local list = {}
  for i = 1, n do list[i] = value(c, rank, block, i - 1) end
  return perigee.tensor(c.dtype, list)
end

local function zeros(c, n) return perigee.zeros(c.dtype, n) end

-- ---- cases: what one rank does; the tensors it ends with, each { name, tensor } ------------------------------

local cases = {}

local function names(prefix, list)
  local out = {}
  for i, t in ipairs(list) do out[i] = { ("%s[%d]"):format(prefix, i), t } end
  return out
end

function cases.allreduce(c, g, run)
  local t = input(c, g.rank, 0, c.len)
  run("allreduce", t, { op = c.redop })
  return { { "tensor", t } }
end

function cases.allreduce_list(c, g, run)
  local list = { input(c, g.rank, 0, c.len), input(c, g.rank, 1, c.len) }
  run("allreduce", list, { op = c.redop })
  return names("tensors", list)
end

function cases.allreduce_coalesced(c, g, run)
  local list = { input(c, g.rank, 0, c.len), input(c, g.rank, 1, 3) }
  run("allreduce_coalesced", list, { op = c.redop })
  return names("tensors", list)
end

function cases.broadcast(c, g, run)
  local t = input(c, g.rank, 0, c.len)
  run("broadcast", t, { root = g.size - 1 })
  return { { "tensor", t } }
end

function cases.reduce(c, g, run)
  local t = input(c, g.rank, 0, c.len)
  run("reduce", t, { root = g.size // 2, op = c.redop })
  return g.rank == g.size // 2 and { { "tensor", t } } or {} -- elsewhere it is not defined
end

function cases.allgather(c, g, run) -- uneven: rank r brings len + r
  local outs, t = {}, input(c, g.rank, 0, c.len + g.rank)
  for r = 0, g.size - 1 do outs[r + 1] = zeros(c, c.len + r) end
  run("allgather", { outs }, { t })
  local result = names("outputs", outs)
  result[#result + 1] = { "input", t }
  return result
end

function cases.allgather_into_tensor(c, g, run)
  local out, t = zeros(c, c.len * g.size), input(c, g.rank, 0, c.len)
  run("allgather_into_tensor", out, t)
  return { { "output", out }, { "input", t } }
end

function cases.allgather_into_tensor_coalesced(c, g, run)
  local outs = { zeros(c, c.len * g.size), zeros(c, 2 * g.size) }
  run("allgather_into_tensor_coalesced", outs, { input(c, g.rank, 0, c.len), input(c, g.rank, 1, 2) })
  return names("outputs", outs)
end

function cases.gather(c, g, run)
  local outs, t, root = {}, input(c, g.rank, 0, c.len), g.size - 1
  for r = 1, g.rank == root and g.size or 0 do outs[r] = zeros(c, c.len) end
  run("gather", g.rank == root and { outs } or {}, { t }, { root = root })
  local result = names("outputs", outs)
  result[#result + 1] = { "input", t }
  return result
end

function cases.scatter(c, g, run)
  local ins, out, root = {}, zeros(c, c.len), g.size - 1
  for r = 1, g.rank == root and g.size or 0 do ins[r] = input(c, g.rank, r, c.len) end
  run("scatter", { out }, g.rank == root and { ins } or {}, { root = root })
  return { { "output", out } }
end

function cases.reduce_scatter(c, g, run) -- uneven: rank r gets len + r
  local ins, out = {}, zeros(c, c.len + g.rank)
  for r = 1, g.size do ins[r] = input(c, g.rank, r, c.len + r - 1) end
  run("reduce_scatter", { out }, { ins }, { op = c.redop })
  return { { "output", out } }
end

function cases.reduce_scatter_tensor(c, g, run)
  local out, t = zeros(c, c.len), input(c, g.rank, 0, c.len * g.size)
  run("reduce_scatter_tensor", out, t, { op = c.redop })
  return { { "output", out } }
end

function cases.reduce_scatter_tensor_coalesced(c, g, run)
  local outs = { zeros(c, c.len), zeros(c, 2) }
  run("reduce_scatter_tensor_coalesced", outs,
    { input(c, g.rank, 0, c.len * g.size), input(c, g.rank, 1, 2 * g.size) }, { op = c.redop })
  return names("outputs", outs)
end

function cases.alltoall(c, g, run) -- uneven: rank r sends len + r + s to rank s
  local ins, outs = {}, {}
  for r = 0, g.size - 1 do
    ins[r + 1], outs[r + 1] = input(c, g.rank, r, c.len + g.rank + r), zeros(c, c.len + g.rank + r)
  end
  run("alltoall", outs, ins)
  local result = names("outputs", outs)
  for _, item in ipairs(names("inputs", ins)) do result[#result + 1] = item end
  return result
end

function cases.alltoall_base(c, g, run)
  local out, t = zeros(c, c.len * g.size), input(c, g.rank, 0, c.len * g.size)
  run("alltoall_base", out, t)
  return { { "output", out }, { "input", t } }
end

function cases.alltoall_base_uneven(c, g, run)
  local splits, total = {}, 0
  for r = 0, g.size - 1 do
    splits[r + 1] = c.len + g.rank + r
    total = total + splits[r + 1]
  end
  local out = zeros(c, total)
  run("alltoall_base", out, input(c, g.rank, 0, total), splits, splits)
  return { { "output", out } }
end

function cases.barrier(_, _, run)
  run "barrier"
  return {}
end

function cases.monitored_barrier(_, _, run)
  run("monitored_barrier", { wait_all_ranks = true })
  return {}
end

function cases.send_recv(c, g, run) -- to the right, two tags that are received in the other order
  if g.size == 1 then return {} end
  local right, left = (g.rank + 1) % g.size, (g.rank - 1) % g.size
  local a, b = zeros(c, c.len), zeros(c, c.len)
  local works = {
    g:send(input(c, g.rank, 0, c.len), right, { tag = 1, async = true }),
    g:send(input(c, g.rank, 1, c.len), right, { tag = 2, async = true }),
  }
  run("recv", b, left, { tag = 2 })
  run("recv", a, left, { tag = 1 })
  for _, work in ipairs(works) do work:wait() end
  return { { "tag 1", a }, { "tag 2", b } }
end

function cases.recv_anysource(c, g, run)
  if g.size == 1 then return {} end
  if g.rank ~= 0 then
    run("send", input(c, g.rank, 0, c.len), 0, { tag = 3 })
    return {}
  end
  local result = {}
  for _ = 1, g.size - 1 do
    local t = zeros(c, c.len)
    local _, source = run("recv_anysource", t, { tag = 3 })
    if not math.tointeger(source) or source < 1 or source >= g.size or result[source] then
      error(("recv_anysource: source rank %s"):format(tostring(source)), 0)
    end
    result[source] = { "from rank " .. source, t }
  end
  return result
end

function cases.in_flight(c, g) -- several at once, waited for in the other order
  local list, works = {}, {}
  for i = 1, 4 do
    list[i] = input(c, g.rank, i, c.len)
    works[i] = g:allreduce(list[i], { async = true })
  end
  for i = 4, 1, -1 do works[i]:wait() end
  return names("tensors", list)
end

function cases.subgroups(c, g)
  local t, u = input(c, g.rank, 0, c.len), input(c, g.rank, 1, c.len)
  local half = g:split(g.rank % 2, -g.rank)
  half:allreduce(t)
  half:close()
  local ends = g:subgroup(g.size > 1 and { g.size - 1, 0 } or { 0 })
  if ends then
    ends:broadcast(u, { root = 0 })
    ends:close()
  end
  return { { "split", t }, { "subgroup", u } }
end

-- What a case is called in ops = {...}.
local ORDER = { "allreduce", "allreduce_list", "allreduce_coalesced", "broadcast", "reduce", "allgather",
  "allgather_into_tensor", "allgather_into_tensor_coalesced", "gather", "scatter", "reduce_scatter",
  "reduce_scatter_tensor", "reduce_scatter_tensor_coalesced", "alltoall", "alltoall_base", "alltoall_base_uneven",
  "barrier", "monitored_barrier", "send_recv", "recv_anysource", "in_flight", "subgroups" }
local NO_DATA = { barrier = true, monitored_barrier = true }
local BOTH_WAYS = { in_flight = false, subgroups = false }

local function base_of(name) return (name:gsub("_list$", ""):gsub("_uneven$", "")) end

-- ---- running a case --------------------------------------------------------------------------------------------

local function body(c)
  return function(g)
    local function run(op, ...)
      if not c.async then return g[op](g, ...) end
      local args = table.pack(...)
      local last = args[args.n]
      if type(last) == "table" and #last == 0 and next(last) ~= nil then -- options, not a list
        local opts = { async = true }
        for k, v in pairs(last) do opts[k] = v end
        args[args.n] = opts
      else
        args.n = args.n + 1
        args[args.n] = { async = true }
      end
      local work = g[op](g, table.unpack(args, 1, args.n))
      return work:wait()
    end
    -- Copies, made now: what an operation completes only after it said so does not count.
    local result = cases[c.name](c, g, run)
    for _, item in ipairs(result) do item[2] = item[2]:clone() end
    return result
  end
end

local function shown(v)
  if type(v) == "table" then return ("{%s, %s}"):format(v[1], v[2]) end
  return tostring(v)
end

local function same(v, w)
  if type(v) == "table" then return v[1] == w[1] and v[2] == w[2] end
  return v == w or (v ~= v and w ~= w)
end

local function close(opts, got, want)
  if got:equal(want) then return true end
  if not opts.rtol and not opts.atol then return false end
  return got:allclose(want, opts.rtol or 0, opts.atol or 0)
end

local function differ(opts, name, got, want)
  if close(opts, got, want) then return nil end
  for i = 1, want.numel do
    local v, w = got:get(i), want:get(i)
    local near = (opts.rtol or opts.atol) and type(v) == "number"
      and math.abs(v - w) <= (opts.atol or 0) + (opts.rtol or 0) * math.abs(w)
    if not near and not same(v, w) then
      return ("%s: element %d is %s, %s expected"):format(name, i, shown(v), shown(w))
    end
  end
  return name .. ": the bits differ"
end

local function compare(opts, c, got, want)
  for rank = 0, c.n - 1 do
    for i, item in ipairs(want[rank + 1]) do
      local text = differ(opts, item[1], got[rank + 1][i][2], item[2])
      if text then return rank, text end
    end
  end
end

local function run_backend(backend, opts, c)
  if opts.engine == "ranks" then
    return require "perigee.testing".ranks(c.n, body(c),
      { backend = backend, timeout = opts.timeout or 30, options = opts.options })
  end
  return sim.run(c.n, body(c), { backend = backend, seed = opts.seed or c.n, options = opts.options })
end

local function where(c)
  local text = c.name
  if not NO_DATA[c.name] then text = ("%s %s[%d]"):format(text, c.dtype, c.len) end
  if call.rows[base_of(c.name)] and call.rows[base_of(c.name)].takes.op then text = text .. " " .. c.redop end
  return ("%s, %d rank%s%s"):format(text, c.n, c.n == 1 and "" or "s", c.async and ", async" or "")
end

local function one(backend, opts, c, want)
  local ok, got = pcall(run_backend, backend, opts, c)
  local failure = { op = base_of(c.name), case = c.name, dtype = c.dtype, size = c.len, ranks = c.n, async = c.async,
    redop = c.redop, where = where(c) }
  if not ok then
    local text, traceback = blame.split(tostring(got))
    failure.error, failure.text, failure.traceback = got, "raises: " .. text, traceback
    if type(got) == "table" then failure.rank, failure.traceback = got.rank, got.traceback or traceback end
    return failure
  end
  failure.rank, failure.text = compare(opts, c, got, want)
  if failure.text then return failure end
end

-- ---- the suite ----------------------------------------------------------------------------------------------------

local REDOPS = { "sum", "avg", "product", "min", "max", "band", "bor", "bxor" }

local function redops_of(name, dtype, len, lens)
  local row = call.rows[base_of(name)]
  if not row or not row.takes.op or len ~= lens[#lens] then return { "sum" } end
  local list = {}
  for _, op in ipairs(REDOPS) do
    if call.defined(op, dtype) then list[#list + 1] = op end
  end
  return list
end

local function each_case(opts, f)
  local lens = opts.lengths or { 0, 1, 7 }
  for _, name in ipairs(opts.ops or ORDER) do
    local plain = NO_DATA[name]
    for _, n in ipairs(opts.sizes or { 1, 2, 3, 4 }) do
      for _, dtype in ipairs(plain and { "f32" } or opts.dtypes or perigee.dtypes) do
        for _, len in ipairs(plain and { 0 } or lens) do
          for _, redop in ipairs(redops_of(name, dtype, len, lens)) do
            local c = { name = name, n = n, dtype = dtype, len = len, redop = redop, async = false }
            local want = sim.run(n, body(c), { seed = n })
            f(c, want)
            if BOTH_WAYS[name] ~= false then
              f({ name = name, n = n, dtype = dtype, len = len, redop = redop, async = true }, want)
            end
          end
        end
      end
    end
  end
end

local Report = {}
Report.__index = Report

local SHOWN = 3 -- failures told per operation
local LINES = 8 -- of a traceback

--- The whole result as a text for people.
function Report:verdict()
  if self.ok then return ("backend '%s': %d cases passed"):format(self.name, self.cases) end
  local lines = { ("backend '%s': %d of %d cases failed"):format(self.name, #self.failures, self.cases) }
  local told = {}
  for _, failure in ipairs(self.failures) do
    local k = (told[failure.case] or 0) + 1
    told[failure.case] = k
    if k <= SHOWN then
      local at = failure.rank and (", rank %d"):format(failure.rank) or ""
      lines[#lines + 1] = ("  %s%s: %s"):format(failure.where, at, failure.text)
      local left = k == 1 and LINES or 0
      for line in (failure.traceback or ""):gmatch "[^\n]+" do
        left = left - 1
        if left >= 0 then lines[#lines + 1] = "      " .. line:gsub("^%s+", "") end
      end
    end
  end
  for _, case in ipairs(ORDER) do
    if (told[case] or 0) > SHOWN then lines[#lines + 1] = ("  %s: %d more"):format(case, told[case] - SHOWN) end
  end
  return table.concat(lines, "\n")
end

Report.__tostring = Report.verdict

local OPTS = { ops = 1, dtypes = 1, sizes = 1, lengths = 1, rtol = 1, atol = 1, seed = 1, engine = 1, timeout = 1,
  options = 1, ["raise"] = 1 }

function check.run(backend, opts)
  opts = opts or {}
  if type(backend) ~= "table" and type(backend) ~= "string" then
    local text = "bad argument #1 to 'check_backend' (backend table or stack expected, got %s)"
    error(perigee.error("EINVAL", text:format(type(backend))), 2)
  end
  for key in pairs(opts) do
    if not OPTS[key] then
      local text = "bad argument #2 to 'check_backend' (unknown option '%s')"
      error(perigee.error("EINVAL", text:format(tostring(key))), 2)
    end
  end
  for _, name in ipairs(opts.ops or {}) do
    if not cases[name] then error(perigee.error("EINVAL", ("check_backend: there is no case '%s'"):format(name)), 2) end
  end
  local name = type(backend) == "table" and tostring(rawget(backend, "name") or "backend") or backend
  local report = setmetatable({ name = name, cases = 0, failures = {} }, Report)
  each_case(opts, function(c, want)
    report.cases = report.cases + 1
    report.failures[#report.failures + 1] = one(backend, opts, c, want)
  end)
  report.ok = #report.failures == 0
  if not report.ok and opts.raise ~= false then error(report:verdict(), 2) end
  return report
end

return check
