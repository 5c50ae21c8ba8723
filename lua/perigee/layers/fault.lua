--- fault: makes operations fail on purpose, to test what an application does then.
--
--   perigee.init { backend = "fault(native)", options = { fault = { seed = 1, rules = {
--     { action = "delay", op = "allreduce", rank = 1, seq = 3, seconds = 0.5 },
--     { action = "raise", probability = 0.01, code = "EAGAIN" },
--     { action = "kill", rank = 2, seq = 10 },
--   } } } }
--
-- The first rule that fits an operation acts on it. What it must fit, each optional:
--   op           name of the operation, or a list of names
--   rank         rank in the group, or a list of ranks
--   seq          number of the operation on its group (messages count for themselves), or a list
--   group        name of the group; without it the rule holds in subgroups too
--   probability  0 to 1, drawn from a generator of this rank's own that starts with `seed`: alike in every run
--   times        how often the rule acts in one group; no limit
-- What it does:
--   action "drop"   the operation never starts and never ends, until its timeout; the others miss this rank
--   action "delay"  the call takes `seconds` before it goes down, as on a slow rank, also when it is asynchronous: so
--                   the order of the operations stays as it is
--   action "raise"  the operation is refused with `code` (EAGAIN) and `message`; the layers below hear nothing of it
--   action "kill"   the process ends at once, by SIGKILL
--
-- Options: rules, and seed (an integer, 0).
local perigee = require "perigee"
local common = require "perigee.layers.common"

local Fault = perigee.backend "fault"

-- Rules -------------------------------------------------------------------------------------------

local function set_of(value)
  if value == nil then return nil end
  local set = {}
  for _, v in ipairs(type(value) == "table" and value or { value }) do set[v] = true end
  return set
end

local fields = {
  action = "string", op = "string table", rank = "number table", seq = "number table", group = "string",
  probability = "number", times = "number", seconds = "number", code = "string", message = "string",
}
local actions = { drop = true, delay = true, raise = true, kill = true }

local function check_rule(self, i, rule)
  if type(rule) ~= "table" then common.refuse(self, "rule %d: a table expected, got %s", i, type(rule)) end
  for name, value in pairs(rule) do
    local wanted = fields[name]
    if not wanted then common.refuse(self, "rule %d: unknown field '%s'", i, tostring(name)) end
    if not wanted:find(type(value), 1, true) then
      common.refuse(self, "rule %d: field '%s': %s expected, got %s", i, name, wanted:gsub(" ", " or "), type(value))
    end
  end
  if not actions[rule.action] then
    common.refuse(self, "rule %d: action 'drop', 'delay', 'raise' or 'kill' expected, got '%s'", i,
      tostring(rule.action))
  end
  if rule.action == "delay" and not rule.seconds then common.refuse(self, "rule %d: delay needs 'seconds'", i) end
end

-- A rule made for this group, or nil when it can never fit here.
local function compile(self, i, rule)
  check_rule(self, i, rule)
  local ops = rule.op and common.op_set(self, type(rule.op) == "table" and rule.op or { rule.op })
  local ranks = set_of(rule.rank)
  if (ranks and not ranks[self.rank]) or (rule.group and rule.group ~= self.group_name) then return nil end
  return {
    act = rule.action, ops = ops, seqs = set_of(rule.seq), probability = rule.probability, left = rule.times,
    seconds = rule.seconds, code = rule.code or "EAGAIN", message = rule.message or "refused by the layer 'fault'",
  }
end

-- Numbers in [0, 1), another row of them for each rank and group (xorshift64*).
local function generator(self, seed)
  local state = seed * 0x9E3779B97F4A7C15 + self.rank + 1
  for i = 1, #self.group_name do state = (state ~ self.group_name:byte(i)) * 0x100000001B3 end
  if state == 0 then state = 1 end
  return function()
    state = state ~ state >> 12
    state = state ~ state << 25
    state = state ~ state >> 27
    return (state * 0x2545F4914F6CDD1D >> 11) / (1 << 53)
  end
end

local function fits(rule, name, seq, random)
  if (rule.ops and not rule.ops[name]) or (rule.seqs and not rule.seqs[seq]) then return false end
  if rule.probability and random() >= rule.probability then return false end
  if rule.left then
    if rule.left <= 0 then return false end
    rule.left = rule.left - 1
  end
  return true
end

-- Actions -----------------------------------------------------------------------------------------

local function kill()
  local f <close> = assert(io.open("/proc/self/stat"))
  os.execute("kill -KILL " .. f:read "n")
  perigee.sleep(60) -- the signal is on its way
end

local function make(row)
  return function(self, ...)
    local seq = self.inner.seq
    for _, rule in ipairs(self.rules) do
      if fits(rule, row.name, seq, self._random) then
        if rule.act == "drop" then return perigee.future() end
        if rule.act == "raise" then error(perigee.error(rule.code, rule.message), 0) end
        if rule.act == "kill" then kill() end
        perigee.sleep(rule.seconds)
        break
      end
    end
    return self.inner[row.name](self.inner, ...)
  end
end

-- Life --------------------------------------------------------------------------------------------

-- Operations that no rule is about stay out of Lua.
function Fault:open(opts)
  local options = common.options(self, opts, { rules = { "table" }, seed = 0 })
  self.rules, self._random = {}, generator(self, options.seed)
  local touched = {}
  for i, rule in ipairs(options.rules or {}) do
    local compiled = compile(self, i, rule)
    if compiled then
      self.rules[#self.rules + 1] = compiled
      for _, name in ipairs(common.names) do
        touched[name] = touched[name] or not compiled.ops or compiled.ops[name]
      end
    end
  end
  common.override(self, touched, make)
end

return Fault
