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

--- Put the rank to what it raised: in front of a text, as a field of anything else.
function blame.with_rank(err, rank)
  if type(err) == "string" then return ("[rank %d] %s"):format(rank, err) end
  if type(err) ~= "table" then return err end
  if rawget(err, "rank") == nil then rawset(err, "rank", rank) end
  -- luassert and busted show `message`
  local message = rawget(err, "message")
  if not blame.is_error(err) and type(message) == "string" and not message:find "^%[rank %d+%] " then
    rawset(err, "message", ("[rank %d] %s"):format(rank, message))
  end
  return err
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
