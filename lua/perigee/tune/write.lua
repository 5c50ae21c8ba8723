-- The end of `perigee tune`: parts that were measured (JSON) become a file of rules and a summary of what it changes.
local choose = require "perigee.tune.choose"
local json = require "perigee.bench.json"

local o = { part = {} }
for _, word in ipairs(arg) do
  local key, value = word:match "^([%w_]+)=(.*)$"
  if key == "part" then table.insert(o.part, value) else o[key] = value end
end

local function read(path)
  local f <close> = assert(io.open(path, "rb"))
  return json.decode(f:read "a")
end

local function write(path, text)
  local f = assert(io.open(path, "wb"))
  assert(f:write(text))
  assert(f:close())
end

local parts, file, summary = {}, {}, {}
for i, path in ipairs(o.part) do parts[i] = read(path) end
local m = parts[1].machine

local function put(fmt, ...) file[#file + 1] = fmt:format(...) end
local function say(fmt, ...) summary[#summary + 1] = fmt:format(...) end

put "perigee tuning 1"
put("machine %s; %d cores; Linux %s", (m.cpu:gsub("[#;]", " ")), m.cores, m.kernel)
put("# perigee %s, %s, load %s. Use it with PERIGEE_TUNING_FILE; every rank needs the same.", m.perigee, m.date, m.load)

local function describe(part)
  return ("%d ranks, %s%s"):format(part.ranks, part.transport,
    part.where ~= part.transport and ", ranks " .. part.where or "")
end

-- One line about the sizes of some tensors that change.
local function tell(kind, tensors, changes, sizes)
  if #changes == 0 then return end
  local product, n, best = 1, 0, 1
  for _, c in ipairs(changes) do
    if c.gain then product, n, best = product * c.gain, n + 1, math.max(best, c.gain) end
  end
  local first, last = changes[1], changes[#changes]
  say("  %-15s %s%d of %d sizes, %s to %s: predicted %.2f times as fast (at most %.2f); at %s %s instead of %s", kind,
    tensors, #changes, sizes, choose.bytes(first.bytes), choose.bytes(last.bytes), n > 0 and product ^ (1 / n) or 1,
    best, choose.bytes(first.bytes), first.to, first.from)
end

local function summarize(op, decision)
  local plain, symmetric = {}, {}
  for _, c in ipairs(decision.changes) do table.insert(c.symmetric and symmetric or plain, c) end
  tell(op.kind, "", plain, #op.sizes)
  tell(op.kind, "symmetric tensors: ", symmetric, #op.sizes)
  if #decision.changes == 0 then say("  %-15s as built in", op.kind) end
end

for _, part in ipairs(parts) do
  put("\n# ---- %s: %d rounds, %.1f s", describe(part), part.rounds, part.seconds)
  say("%s: what would change", describe(part))
  part.rules = {}
  for _, op in ipairs(part.ops) do
    local decision = choose.decide(op, part.where, part.ranks)
    if decision then
      put ""
      for _, line in ipairs(choose.figures(op, decision.picks)) do put("%s", line) end
      put("%s", decision.rule)
      part.rules[#part.rules + 1] = decision.rule
      op.picks, op.changes = decision.picks, decision.changes
      summarize(op, decision)
    end
  end
end

local text = table.concat(file, "\n") .. "\n"
if o.out then
  write(o.out, text)
  say("written: PERIGEE_TUNING_FILE=%s", o.out)
else
  io.stdout:write(text)
end
if o.json then write(o.json, json.encode { perigee = m.perigee, parts = parts }) end
io.stderr:write(table.concat(summary, "\n"), "\n")
