--- record: writes every operation and its result to a file, for replay and for looking at.
--
--   perigee.init { backend = "record(native)", options = { record = { dir = "/tmp/run" } } }
--
-- One file per rank and group, <dir>/<group>.r<world rank>.rec; its form is described in perigee.layers.recording and
-- is mostly text: grep -a ^call world.r0.rec. An operation ends for its caller after its result has been written.
--
-- Options
--   dir   folder, made when it is not there; "record"
--   data  "outputs" (default): what replay needs; "all": inputs as well, which replay then compares; "none"
--   ops   list of operations; default: all. replay is given the same list
local perigee = require "perigee"
local common = require "perigee.layers.common"
local recording = require "perigee.layers.recording"

local Record = perigee.backend "record"

local kinds = { outputs = true, all = true, none = true }

local function make(row)
  return function(self, ...)
    local call, writer = common.call(row, ...), self.writer
    local n = writer:call(common.text(row, call), self.data == "all" and call.ins or nil)
    local outs = self.data ~= "none" and call.outs or nil
    local work, err = common.submit(self.inner, row.name, ...)
    if not work then
      writer:failed(n, "refused", common.as_error(err))
      error(err, 0)
    end
    return common.observe(self.inner, work, call.opts.timeout, function(e)
      if e then
        writer:failed(n, "error", e)
      else
        writer:done(n, common.source_of(row, work), outs)
      end
    end)
  end
end

function Record:open(opts)
  local options = common.options(self, opts, { dir = "record", data = "outputs", ops = { "table" } })
  if not kinds[options.data] then
    common.refuse(self, "option 'data': 'outputs', 'all' or 'none' expected, got '%s'", options.data)
  end
  self.data = options.data
  local path = recording.path(self, options.dir, "record")
  self.writer = recording.create(self, path)
  if not self.writer then -- a process is started for a folder that is not there, and for no other
    os.execute("mkdir -p '" .. options.dir:gsub("'", "'\\''") .. "'")
    self.writer = assert(recording.create(self, path))
  end
  common.override(self, common.op_set(self, options.ops, common.names), make)
end

function Record:close() self.writer:close() end

return Record
