-- What a figure was measured on: read from /proc, nothing of it names a person or a place.
local perigee = require "perigee"

local machine = {}

local function read(path)
  local f = io.open(path)
  if not f then return "" end
  local text = f:read "a" or ""
  f:close()
  return text
end

--- Clock ticks that the host of a virtual machine has taken from it since it started.
function machine.steal()
  local fields = {}
  local line = read("/proc/stat"):match "^cpu%s+([^\n]*)" or ""
  for word in line:gmatch "%d+" do fields[#fields + 1] = tonumber(word) end
  return fields[8] or 0
end

function machine.describe()
  local info = read "/proc/cpuinfo"
  local cores = select(2, info:gsub("processor%s*:", ""))
  return {
    perigee = perigee.version,
    lua = _VERSION,
    cpu = info:match "model name%s*:%s*([^\n]*)" or info:match "CPU part%s*:%s*([^\n]*)" or "unknown",
    cores = cores,
    kernel = (read "/proc/sys/kernel/osrelease"):gsub("%s+$", ""),
    load = read("/proc/loadavg"):match "^(%S+)" or "?",
    date = os.date "!%Y-%m-%dT%H:%M:%SZ",
  }
end

--- Bytes of memory that can be had.
function machine.available()
  local kib = read("/proc/meminfo"):match "MemAvailable:%s*(%d+)"
  return kib and tonumber(kib) * 1024 or math.maxinteger
end

return machine
