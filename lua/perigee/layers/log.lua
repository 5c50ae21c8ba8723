--- log: a line for every operation, when it has ended.
--
--   perigee.init { backend = "log(native)", options = { log = { level = "error" } } }
--
--   [rank 1] allreduce #3 on world: f32[1000] op=sum, 4000 bytes, 0.412 ms
--   [rank 1] recv #2 on world: f32[4] src=0 tag=7, 16 bytes, 500.1 ms, ETIMEDOUT: timed out after 0.5 s, ...
--
-- Options
--   level  "all" (default), "error": only operations that failed, "start": all, and a line when each begins
--   to     where lines go: a function(line, event), or a file; default io.stderr. event: op, seq (of the group;
--          messages count for themselves), group, rank, text (the call), numel, bytes (of the tensors that go in, else
--          come out), phase ("start", "done", "error"), ms (not at the start), error
--   ops    list of operations; default: all
--
-- The layer passes everything on as it is; an operation ends after its line. An error in the function `to` is
-- reported as a warning and changes nothing.
local perigee = require "perigee"
local common = require "perigee.layers.common"

local Log = perigee.backend "log"

local levels = { start = true, all = true, error = true }

local function line_of(event)
  local text = ("[rank %d] %s #%d on %s: %s"):format(event.rank, event.op, event.seq, event.group, event.text)
  if event.text ~= "" then text = ("%s, %d bytes"):format(text, event.bytes) end
  if event.phase == "start" then return text .. ", started" end
  text = ("%s%s%.3f ms"):format(text, event.text ~= "" and ", " or "", event.ms)
  local e = event.error
  return e and ("%s, %s: %s"):format(text, e.code, e.message) or text
end

local function put(self, event)
  local to, line = self._to, line_of(event)
  if type(to) ~= "function" then
    to:write(line, "\n")
    return
  end
  local ok, e = pcall(to, line, event)
  if not ok then warn(("layer 'log': error in its function: %s"):format(tostring(e))) end
end

local function event_of(self, row, call)
  local bytes, numel = 0, 0
  for _, t in ipairs(#call.ins > 0 and call.ins or call.outs) do bytes, numel = bytes + t.nbytes, numel + t.numel end
  return {
    op = row.name, seq = self.inner.seq, group = self.group_name, rank = self.rank,
    text = common.text(row, call):sub(#row.name + 2), numel = numel, bytes = bytes,
  }
end

local function copy(event)
  local new = {}
  for k, v in pairs(event) do new[k] = v end
  return new
end

local function make(row)
  return function(self, ...)
    local call = common.call(row, ...)
    local event = event_of(self, row, call)
    if self.level == "start" then
      local first = copy(event)
      first.phase = "start"
      put(self, first)
    end
    local started = perigee.clock()
    local function ended(err)
      event.phase, event.ms, event.error = err and "error" or "done", (perigee.clock() - started) * 1e3, err
      if err or self.level ~= "error" then put(self, event) end
    end
    local work, err = common.submit(self.inner, row.name, ...)
    if not work then
      ended(common.as_error(err))
      error(err, 0)
    end
    return common.observe(self.inner, work, call.opts.timeout, ended)
  end
end

function Log:open(opts)
  local options = common.options(self, opts,
    { level = "all", to = { "function", "userdata", "table" }, ops = { "table" } })
  if not levels[options.level] then
    common.refuse(self, "option 'level': 'all', 'error' or 'start' expected, got '%s'", options.level)
  end
  self.level, self._to = options.level, options.to or io.stderr
  common.override(self, common.op_set(self, options.ops, common.names), make)
end

return Log
