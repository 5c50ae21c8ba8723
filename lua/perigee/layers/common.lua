--- What the ready-made layers share: options, calls as text, and turns of async functions.
-- Not a layer itself.
local perigee = require "perigee"

local common = {}

--- Name of an operation -> its row of the operation table; `names` holds them in the table's order.
common.rows, common.names = {}, {}
local alias_of = {}
for i, row in ipairs(perigee.ops()) do
  common.rows[row.name], common.names[i] = row, row.name
  for alias in row.aliases:gmatch "%S+" do alias_of[alias] = row.name end
end

--- Whether all ranks take part in it, in one order.
function common.is_collective(row) return not row.takes.tag end

--- The rank that a receive's work got its message from; nil for other operations, and where nobody sends ("fake").
function common.source_of(row, work)
  if row["in"] ~= "none" or not row.takes.tag then return nil end
  local known, source = pcall(work.source_rank, work)
  return known and source or nil
end

-- Errors and options ------------------------------------------------------------------------------

local function refuse(self, fmt, ...)
  error(perigee.error("EINVAL", ("layer '%s': "):format(self.name) .. fmt:format(...)), 0)
end
common.refuse = refuse

--- The options a layer was opened with, over its defaults. `defaults` lists all that it knows: a value (which also
-- tells the type), or { "type", "type", ... } for one without.
function common.options(self, given, defaults)
  local options = {}
  for name, default in pairs(defaults) do
    if type(default) ~= "table" then options[name] = default end
  end
  for name, value in pairs(given or {}) do
    local default = defaults[name]
    if default == nil and name ~= "timeout" then -- the group's, which every layer is told
      local known = {}
      for k in pairs(defaults) do known[#known + 1] = k end
      table.sort(known)
      refuse(self, "unknown option '%s' (it takes %s)", tostring(name), table.concat(known, ", "))
    elseif default ~= nil then
      local types = type(default) == "table" and default or { type(default) }
      local fits = false
      for _, wanted in ipairs(types) do fits = fits or type(value) == wanted or math.type(value) == wanted end
      if not fits then
        refuse(self, "option '%s': %s expected, got %s", name, table.concat(types, " or "), type(value))
      end
      options[name] = value
    end
  end
  return options
end

--- A list of names of operations as a set; nil is all of `default` (a list).
function common.op_set(self, list, default)
  local set = {}
  for _, name in ipairs(list or default) do
    local op = common.rows[name] and name or alias_of[name]
    if not op then refuse(self, "there is no operation '%s'", tostring(name)) end
    set[op] = true
  end
  return set
end

--- Give the instance an override of each operation in the set: make(row) returns the function. What is not in it never
-- comes into Lua.
function common.override(self, set, make)
  for _, name in ipairs(common.names) do
    if set[name] then self[name] = make(common.rows[name]) end
  end
end

-- Calls -------------------------------------------------------------------------------------------

local function flat(value, form)
  if form == "one" then return { value } end
  if form ~= "lists" then return value end
  local list = {}
  for _, row in ipairs(value) do table.move(row, 1, #row, #list + 1, list) end
  return list
end

--- The arguments of an override by name: outs, ins (flat lists), out_splits, in_splits, peer, tag, opts.
function common.call(row, ...)
  local args, at = { ... }, 1
  local call = { outs = {}, ins = {} }
  local function take()
    at = at + 1
    return args[at - 1]
  end
  if row.out ~= "none" then call.outs = flat(take(), row.out) end
  if row["in"] ~= "none" then call.ins = flat(take(), row["in"]) end
  if row.takes.splits then call.out_splits, call.in_splits = take(), take() end
  if row.takes.dst or row.takes.src then call.peer = take() end
  if row.takes.tag then call.tag = take() end
  call.opts = take()
  if row["in"] == "inplace" then call.outs = call.ins end
  return call
end

--- "f32[2,3]"
function common.tensor_text(t)
  return ("%s[%s]"):format(t.dtype, table.concat(t.shape, ","))
end

--- "f32[4] 3*i64[]": equal neighbours are counted. text(t): of one tensor.
function common.tensors_text(list, text)
  text = text or common.tensor_text
  local parts, i = {}, 1
  while i <= #list do
    local one, n = text(list[i]), 1
    while list[i + n] and text(list[i + n]) == one do n = n + 1 end
    parts[#parts + 1] = n > 1 and ("%d*%s"):format(n, one) or one
    i = i + n
  end
  return table.concat(parts, " ")
end

local function splits_text(splits)
  return splits and #splits > 0 and "{" .. table.concat(splits, ",") .. "}" or "even"
end

--- The options that decide what an operation does: " op=sum root=1"; timeouts do not.
function common.options_text(row, call)
  local parts = { "" }
  local function add(name, value) parts[#parts + 1] = name .. "=" .. value end
  if row.takes.op then
    local op = call.opts.op
    add("op", type(op) == "string" and op or op.factor and ("premul_sum(%.17g)"):format(op.factor) or op.name)
  end
  if row.takes.root then add("root", call.opts.root) end
  if call.peer then add(row.takes.dst and "dst" or "src", call.peer) end
  if call.tag then add("tag", call.tag) end
  if row.takes.splits then
    add("output_splits", splits_text(call.out_splits))
    add("input_splits", splits_text(call.in_splits))
  end
  if row.takes.wait_all_ranks then add("wait_all_ranks", tostring(call.opts.wait_all_ranks)) end
  return table.concat(parts, " ")
end

--- The whole call in a line: "allgather out 2*f32[4] in f32[4]", "allreduce f32[4] op=sum".
function common.text(row, call)
  local text = row.name
  if row["in"] == "inplace" or row.out == "none" or row["in"] == "none" then
    local tensors = common.tensors_text(row["in"] ~= "none" and call.ins or call.outs)
    if tensors ~= "" then text = text .. " " .. tensors end
  else
    text = ("%s out %s in %s"):format(text, common.tensors_text(call.outs), common.tensors_text(call.ins))
  end
  return text .. common.options_text(row, call)
end

--- Submit to the layer below: a Work, or nil and what was raised.
function common.submit(inner, name, ...)
  local ok, work = pcall(inner[name], inner, ...)
  if ok then return work end
  return nil, work
end

local GRACE = 0.05 -- seconds beyond a call's deadline, in which the error of the operation itself may come

local function timed_out()
  return perigee.error("ETIMEDOUT", "timed out: the layers below did not complete it")
end

--- Call f(err) when the work has ended, before the caller hears of it. Returns the Work to return from the override.
-- timeout: the operation's.
function common.observe(inner, work, timeout, f)
  if inner.waits then
    pcall(work.wait, work, timeout + GRACE)
    local late = not work:is_completed() and timed_out()
    f(late or work:error())
    if late then error(late, 0) end
    return work
  end
  return work:map(function() f() end):on_done(function(e)
    if e then f(e) end
  end)
end

--- What was raised, as an error object.
function common.as_error(e)
  if type(e) == "table" and e.code and e.message then return e end
  return perigee.error("ELUA", tostring(e))
end

-- Turns -------------------------------------------------------------------------------------------

--- A line for async functions: local release = line() waits until those that came before have called release. So their
-- operations reach the layers below in the order of the calls, which is the same on all ranks.
function common.line()
  local last
  return function()
    local before, turn = last, perigee.future()
    last = turn
    local function release() turn:set_result() end
    if before then
      local in_turn, e = pcall(before.wait, before)
      if not in_turn then -- this one was ended; the next one still waits for the one before
        before:on_done(release)
        error(e, 0)
      end
    end
    return release
  end
end

--- Seconds until a call's deadline as the timeout of an operation that it needs: a little less, because the operation
-- knows better than the call who is missing. Raises when the time is over.
function common.time_left(deadline, what)
  local left = deadline - perigee.clock()
  if left <= 0 then error(perigee.error("ETIMEDOUT", what .. ": no time is left"), 0) end
  return left - math.min(left / 10, 0.05)
end

return common
