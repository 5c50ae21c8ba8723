-- JSON, as much as the results need: UTF-8 text, no null (nil is left out), arrays without holes.
local json = {}

local escapes = { ['"'] = '\\"', ["\\"] = "\\\\", ["\n"] = "\\n", ["\r"] = "\\r", ["\t"] = "\\t" }

local function quote(text)
  return '"' .. text:gsub('[%c"\\]', function(c) return escapes[c] or ("\\u%04x"):format(c:byte()) end) .. '"'
end

local function number(v)
  if math.type(v) == "integer" then return tostring(v) end
  if v ~= v or v == math.huge or v == -math.huge then error("a number that JSON cannot write: " .. v, 0) end
  return (("%.17g"):format(v):gsub(",", "."))
end

local function write(v, indent, out)
  local kind = type(v)
  if kind == "table" then
    local inner = indent .. "  "
    local list, keys = #v > 0 or next(v) == nil, {}
    if list then
      for i = 1, #v do keys[i] = i end
    else
      for k in pairs(v) do keys[#keys + 1] = k end
      table.sort(keys)
    end
    out[#out + 1] = list and "[" or "{"
    for i, k in ipairs(keys) do
      out[#out + 1] = (i > 1 and "," or "") .. "\n" .. inner .. (list and "" or quote(k) .. ": ")
      write(v[k], inner, out)
    end
    out[#out + 1] = (#keys > 0 and "\n" .. indent or "") .. (list and "]" or "}")
  elseif kind == "string" then
    out[#out + 1] = quote(v)
  elseif kind == "number" then
    out[#out + 1] = number(v)
  else
    out[#out + 1] = tostring(v)
  end
end

function json.encode(value)
  local out = {}
  write(value, "", out)
  return table.concat(out) .. "\n"
end

-- ---- reading ---------------------------------------------------------------------------------------

local function fail(text, at, what)
  local line = select(2, text:sub(1, at):gsub("\n", "\n")) + 1
  error(("line %d: %s"):format(line, what), 0)
end

local function skip(text, at) return text:find("[^ \t\r\n]", at) or #text + 1 end

local plain = { b = "\b", f = "\f", n = "\n", r = "\r", t = "\t", ['"'] = '"', ["\\"] = "\\", ["/"] = "/" }

local function read_string(text, at)
  local out = {}
  at = at + 1
  while true do
    local stop = text:find('["\\]', at) or fail(text, at, "a string without its end")
    out[#out + 1] = text:sub(at, stop - 1)
    if text:byte(stop) == 34 then return table.concat(out), stop + 1 end
    local c = text:sub(stop + 1, stop + 1)
    if c == "u" then
      local code = text:match("^%x%x%x%x", stop + 2) or fail(text, stop, "a bad \\u")
      out[#out + 1] = utf8.char(tonumber(code, 16))
      at = stop + 6
    else
      out[#out + 1] = plain[c] or fail(text, stop, "an unknown escape")
      at = stop + 2
    end
  end
end

local read_value

-- Items up to `close`; one(at) reads one item and returns where it ended.
local function read_items(text, at, close, one)
  at = skip(text, at + 1)
  if text:sub(at, at) == close then return at + 1 end
  while true do
    at = skip(text, one(at))
    local c = text:sub(at, at)
    if c == close then return at + 1 end
    if c ~= "," then fail(text, at, ("',' or '%s' expected"):format(close)) end
    at = skip(text, at + 1)
  end
end

local words = { ["true"] = true, ["false"] = false }

function read_value(text, at, depth)
  at = skip(text, at)
  local c = text:sub(at, at)
  if depth > 50 then fail(text, at, "too deep") end
  if c == '"' then return read_string(text, at) end
  if c == "{" or c == "[" then
    local t = {}
    return t, read_items(text, at, c == "{" and "}" or "]", function(here)
      local key = #t + 1
      if c == "{" then
        if text:sub(here, here) ~= '"' then fail(text, here, "a name in quotes expected") end
        key, here = read_string(text, here)
        here = skip(text, here)
        if text:sub(here, here) ~= ":" then fail(text, here, "':' expected") end
        here = here + 1
      end
      t[key], here = read_value(text, here, depth + 1)
      return here
    end)
  end
  local word = text:match("^%a+", at)
  if word == "null" then return nil, at + 4 end
  if word and words[word] ~= nil then return words[word], at + #word end
  local digits = text:match("^-?%d+%.?%d*[eE]?[-+]?%d*", at)
  local v = digits and tonumber(digits)
  if not v then fail(text, at, "a value expected") end
  return v, at + #digits
end

--- The value of a JSON text. Raises a message with the line.
function json.decode(text)
  local value, at = read_value(text, 1, 0)
  at = skip(text, at)
  if at <= #text then fail(text, at, "more than one value") end
  return value
end

return json
