--- The files that record writes and replay reads: one per rank and group. Not a layer itself.
--
-- Lines of text, with the bytes of tensors between them:
--   perigee record 1
--   group world
--   rank 0 of 4
--   call 1 allreduce f32[4] op=sum            in the order in which the script called
--   in 16                                     with data "all": bytes of each input, then the bytes and a line's end
--   end 1 done                                in the order in which they ended; "source=2" follows for receives
--   out 16                                    with data "outputs" and "all"
--   end 2 error ETIMEDOUT 1,3 timed out ...   code, ranks ("-": none), message
--   end 3 refused EAGAIN - busy               the call itself raised
local perigee = require "perigee"

local recording = {}

local MAGIC = "perigee record 1"
local uses = {} -- path -> groups of this process that had it: a second world of one name gets a file of its own

--- Path of the file of the group that `self` is a layer of. kind: "record" or "replay", which count for themselves.
function recording.path(self, dir, kind)
  local path = ("%s/%s.r%d"):format(dir, self.group_name:gsub("[^%w._-]", "-"), self.members[self.rank + 1])
  local key = kind .. " " .. path
  uses[key] = (uses[key] or 0) + 1
  return path .. (uses[key] > 1 and "." .. uses[key] or "") .. ".rec"
end

-- Writing -----------------------------------------------------------------------------------------

local Writer = {}
Writer.__index = Writer

--- A new file; nil and why when it cannot be made.
function recording.create(self, path)
  local file, why = io.open(path, "wb")
  if not file then return nil, why end
  file:write(MAGIC, "\ngroup ", self.group_name, "\nrank ", self.rank, " of ", self.size, "\n")
  return setmetatable({ file = file, calls = 0 }, Writer)
end

local function write_tensors(file, word, list)
  local sizes, parts = {}, {}
  for i, t in ipairs(list) do sizes[i], parts[i] = t.nbytes, t:tobytes() end
  file:write(word, " ", table.concat(sizes, " "), "\n", table.concat(parts), "\n")
end

--- Write a call; ins: its input tensors, or nil. Returns its number.
function Writer:call(text, ins)
  if not self.file then return 0 end
  self.calls = self.calls + 1
  self.file:write("call ", self.calls, " ", text, "\n")
  if ins and #ins > 0 then write_tensors(self.file, "in", ins) end
  self.file:flush() -- what was called last is there when the process dies
  return self.calls
end

--- Write that call n is done; outs: its output tensors, or nil.
function Writer:done(n, source, outs)
  if not self.file then return end
  self.file:write("end ", n, " done", source and " source=" .. source or "", "\n")
  if outs and #outs > 0 then write_tensors(self.file, "out", outs) end
end

--- word: "error", or "refused" when the call itself raised.
function Writer:failed(n, word, e)
  if not self.file then return end
  local ranks = e.ranks and #e.ranks > 0 and table.concat(e.ranks, ",") or "-"
  self.file:write("end ", n, " ", word, " ", e.code, " ", ranks, " ", (e.message:gsub("\n", " ")), "\n")
end

function Writer:close()
  if self.file then self.file:close() end
  self.file = nil
end

-- Reading -----------------------------------------------------------------------------------------

local Reader = {}
Reader.__index = Reader

local function broken(path, line, what)
  error(perigee.error("EPROTO", ("%s: %s at '%s'"):format(path, what, line)), 0)
end

-- Where the bytes of a list of tensors stand: { { position, size }, ... }.
local function skip_tensors(file, sizes)
  local places, at = {}, file:seek()
  for size in sizes:gmatch "%d+" do
    size = math.tointeger(size)
    places[#places + 1] = { at, size }
    at = at + size
  end
  file:seek("set", at + 1) -- and the line's end
  return places
end

local function result_of(path, line, words)
  local source = words:match "^done source=(%d+)$"
  if words == "done" or source then return { word = "done", source = math.tointeger(source) } end
  local word, code, ranks, message = words:match "^(%l+) (%u+) (%S+) (.*)$"
  if word ~= "error" and word ~= "refused" then broken(path, line, "unknown result") end
  local list = {}
  for r in ranks:gmatch "%d+" do list[#list + 1] = math.tointeger(r) end
  return { word = word, code = code, ranks = list, message = message }
end

--- Open a recording and find its entries: calls[n] = { text, ins, result = { word, source, outs, code, ranks, message
-- } }.
function recording.open(path)
  local file, why = io.open(path, "rb")
  if not file then error(perigee.error("ENOENT", ("cannot open the recording: %s"):format(why)), 0) end
  local self = setmetatable({ file = file, path = path, calls = {} }, Reader)
  local current -- what "in" and "out" belong to
  if file:read "l" ~= MAGIC then broken(path, "line 1", "no recording") end
  for line in file:lines() do
    local word, rest = line:match "^(%l+) (.*)$"
    local n, tail = (rest or ""):match "^(%d+) (.*)$"
    n = math.tointeger(n)
    if word == "group" then
      self.group = rest
    elseif word == "rank" then
      self.rank, self.size = rest:match "^(%d+) of (%d+)$"
      self.rank, self.size = math.tointeger(self.rank), math.tointeger(self.size)
    elseif word == "call" and n == #self.calls + 1 then
      current = { text = tail }
      self.calls[n] = current
    elseif word == "end" and n and self.calls[n] then
      current = result_of(path, line, tail)
      self.calls[n].result = current
    elseif (word == "in" or word == "out") and current then
      current[word .. "s"] = skip_tensors(file, rest)
    else
      broken(path, line, "unknown entry")
    end
  end
  return self
end

--- The bytes at a place.
function Reader:bytes(place)
  self.file:seek("set", place[1])
  return place[2] == 0 and "" or self.file:read(place[2])
end

function Reader:close()
  if self.file then self.file:close() end
  self.file = nil
end

return recording
