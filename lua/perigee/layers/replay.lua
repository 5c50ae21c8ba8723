--- replay: answers operations from the files that record wrote, without any peers.
--
--   perigee.init { backend = "replay(fake)", rank = 2, size = 4, options = { replay = { dir = "/tmp/run" } } }
--
-- One rank of a recorded run, alone: in a debugger, or as a test. The script must make the same calls in the same
-- order; the first that differs fails with EMISMATCH, which tells both. Tensors get the recorded contents, errors are
-- raised again, receives know their source. Asynchronous operations have ended when the call returns.
--
-- The layer below takes what the recording does not hold (ops). `fake` makes subgroups without peers:
-- group:subgroup(ranks) works as recorded, group:split only when all ranks gave the same color, else it is refused
-- when it opens.
--
-- Options
--   dir     folder; "record"
--   ops     as it was given to record
--   verify  compare inputs where they were recorded (data = "all"); true
local perigee = require "perigee"
local common = require "perigee.layers.common"
local recording = require "perigee.layers.recording"

local Replay = perigee.backend "replay"

local function differs(self, n, what)
  error(perigee.error("EMISMATCH", ("replay of %s, call %d: %s"):format(self.reader.path, n, what)), 0)
end

local function compare_inputs(self, n, entry, call)
  for i, place in ipairs(self.verify and entry.ins or {}) do
    if call.ins[i]:tobytes() ~= self.reader:bytes(place) then
      differs(self, n, ("input %d of '%s' has other contents than the recorded one"):format(i, entry.text))
    end
  end
end

local function next_entry(self, text)
  self.at = self.at + 1
  local entry = self.reader.calls[self.at]
  if not entry then differs(self, self.at, ("'%s', but the recording ends before it"):format(text)) end
  if entry.text ~= text then
    differs(self, self.at, ("the script calls '%s', recorded is '%s'"):format(text, entry.text))
  end
  return entry
end

local function error_of(result)
  return perigee.error(result.code, result.message, { ranks = result.ranks })
end

local function make(row)
  return function(self, ...)
    local call = common.call(row, ...)
    local entry = next_entry(self, common.text(row, call))
    compare_inputs(self, self.at, entry, call)
    local result, future = entry.result, perigee.future()
    if not result then
      future:set_error(perigee.error("ESTATE",
        ("replay: call %d had not ended when the recording did"):format(self.at)))
    elseif result.word == "refused" then
      error(error_of(result), 0)
    elseif result.word == "error" then
      future:set_error(error_of(result))
    else
      for i, place in ipairs(result.outs or {}) do
        local t = call.outs[i]
        t:copy_(perigee.tensor(t.dtype, self.reader:bytes(place), t.shape))
      end
      future:set_result(nil, result.source)
    end
    return future
  end
end

function Replay:open(opts)
  local options = common.options(self, opts, { dir = "record", verify = true, ops = { "table" } })
  local path = recording.path(self, options.dir, "replay")
  local reader = recording.open(path)
  if reader.rank ~= self.rank or reader.size ~= self.size then
    reader:close()
    common.refuse(self, "%s is of rank %d of %d, the group %s has rank %d of %d", path, reader.rank, reader.size,
      self.group_name, self.rank, self.size)
  end
  self.reader, self.verify, self.at = reader, options.verify, 0
  common.override(self, common.op_set(self, options.ops, common.names), make)
end

function Replay:close() self.reader:close() end

return Replay
