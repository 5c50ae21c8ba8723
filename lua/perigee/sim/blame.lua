-- Errors of ranks: what is recorded when one rank raises, and what the caller of a whole world gets.
local perigee = require "perigee"

local blame = {}

local error_meta = getmetatable(perigee.error("EINVAL", "x"))

--- Whether v is an error object of Perigee.
function blame.is_error(v) return type(v) == "table" and getmetatable(v) == error_meta end

--- Message handler: an error object gets the traceback of where it was raised first.
function blame.traced(err)
  if blame.is_error(err) and err.traceback == nil then err.traceback = debug.traceback("", 2):gsub("^\n", "") end
  return err
end

-- Frames that lead to the rank's function, from the outside, and to the raise, from the inside.
local OUTSIDE = { "^%[C%]: in %?$", "^%[C%]: in function 'xpcall'", "perigee/sim%.lua:", "perigee/sim/",
  "perigee/testing%.lua:" }
local INSIDE = { "^%[C%]: in function 'error'", "^%[C%]: in function 'assert'", "/luassert/", "/busted/core%.lua:",
  "perigee/sim/blame%.lua:" }

local function matches(line, patterns)
  for _, pattern in ipairs(patterns) do
    if line:find(pattern) then return true end
  end
end

-- The frames of the rank's own code, one per line.
local function own_frames()
  local lines = {}
  for line in debug.traceback("", 2):gmatch "\t([^\n]+)" do lines[#lines + 1] = line end
  while #lines > 1 and matches(lines[#lines], OUTSIDE) do lines[#lines] = nil end
  while #lines > 1 and matches(lines[1], INSIDE) do table.remove(lines, 1) end
  return "\t" .. table.concat(lines, "\n\t")
end

--- A message handler that leaves errors as they are (error objects get a traceback), and a function that returns
-- the traceback of what it saw.
function blame.handler()
  local trace
  return function(err)
    trace = own_frames()
    return blame.traced(err)
  end, function() return trace end
end

local TRACE = "\nstack traceback of rank %d:\n%s"

--- Put the rank, and the traceback, to what it raised: to a text itself, as fields to anything else.
function blame.with_rank(err, rank, trace)
  local appended = trace and TRACE:format(rank, trace) or ""
  if type(err) == "string" then return ("[rank %d] %s%s"):format(rank, err, appended) end
  if type(err) ~= "table" then return err end
  if rawget(err, "rank") == nil then rawset(err, "rank", rank) end
  -- luassert and busted show `message`
  local message = rawget(err, "message")
  if not blame.is_error(err) and type(message) == "string" and not message:find "^%[rank %d+%] " then
    rawset(err, "message", ("[rank %d] %s%s"):format(rank, message, appended))
  end
  return err
end

--- The other way: text without what with_rank appended, and that.
function blame.split(text)
  local at = text:find("\nstack traceback of rank %d+:\n")
  if not at then return text end
  return text:sub(1, at - 1), text:sub(at + 1):gsub("^[^\n]*\n", "")
end

--- One line for a reason: why the other ranks are aborted.
function blame.reason(err, rank)
  local text = type(err) == "table" and type(rawget(err, "message")) == "string" and not blame.is_error(err)
    and err.message or tostring(err)
  return ("rank %d raised: %s"):format(rank, (text:gsub("\n.*", "")))
end

--- Any raised value as an error object; texts become ELUA. fields are set where the object has none.
function blame.object(err, fields, traceback)
  if not blame.is_error(err) then
    local text = type(err) == "string" and err or tostring(err)
    err = perigee.error("ELUA", (text:gsub("\n", " ")), { cause = type(err) ~= "string" and err or nil })
    err.traceback = traceback
  end
  for name, value in pairs(fields or {}) do
    if err[name] == nil then err[name] = value end
  end
  return err
end

return blame
