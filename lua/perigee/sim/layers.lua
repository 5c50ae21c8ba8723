-- Backends as lists of Lua tables: what a stack string names, and registered names for tables.
local perigee = require "perigee"
local native = perigee._testing

local layers = {}

local BOTTOM = { sim = true, native = true, ["local"] = true }
local MOST = 32

local function fail(fmt, ...) error(perigee.error("EINVAL", fmt:format(...)), 0) end

local function load_layer(name)
  if perigee.backend_inner(name) ~= nil then return end
  local module = "perigee.layers." .. name
  if package.searchpath(module, package.path) then
    package.loaded[module] = nil
    require(module)
  end
end

local function names_of(stack)
  local plain = stack:gsub("%s", "")
  local names = {}
  for name in plain:gmatch "[%w_-]+" do names[#names + 1] = name end
  if #names == 0 or plain ~= table.concat(names, "(") .. (")"):rep(#names - 1) then
    fail("'%s' is no stack of layers: \"a(b(sim))\" expected", stack)
  end
  return names
end

--- The layers of a stack (string, backend table, or nil for none) above a simulated bottom, outermost first:
--- { {name, table} ... }, whether the simulated bottom is below them, and the stack as a text.
function layers.resolve(backend)
  local list, text = {}, {}
  local pending
  if type(backend) == "table" then
    local name = rawget(backend, "name") or "backend"
    native.check_table(backend)
    list[1], text[1] = { name = name, table = backend }, name
    local registered = perigee.backend_inner(name)
    local inner = rawget(backend, "inner")
    if inner == nil then inner = registered end
    if inner == false then return list, false, name end
    pending = names_of(type(inner) == "string" and inner or "sim")
  else
    pending = names_of(backend or "sim")
  end
  while true do
    for _, name in ipairs(pending) do
      if BOTTOM[name] then
        text[#text + 1] = "sim"
        return list, true, table.concat(text, "(") .. (")"):rep(#text - 1)
      end
      load_layer(name)
      local found = perigee.backend_inner(name) ~= nil and native.backend_table(name)
      if not found then fail("backend '%s' is not written in Lua: a simulated world cannot run it", name) end
      list[#list + 1], text[#text + 1] = { name = name, table = found }, name
      if #list > MOST then fail("more than %d layers", MOST) end
    end
    local inner = perigee.backend_inner(list[#list].name)
    if not inner then return list, false, table.concat(text, "(") .. (")"):rep(#text - 1) end
    pending = names_of(inner)
  end
end

--- A stack string for real groups: registers a table that has no registered name of its own.
function layers.register(backend, bottom)
  if type(backend) == "string" then
    for _, name in ipairs(names_of(backend)) do load_layer(name) end
    return backend
  end
  local name = rawget(backend, "name")
  local inner = rawget(backend, "inner")
  if name and perigee.backend_inner(name) ~= nil and native.backend_table(name) == backend then return name end
  name = name or "backend"
  if inner == nil then inner = bottom end
  local made = perigee.backend(name, { inner = inner })
  for k, v in pairs(backend) do
    if k ~= "name" and k ~= "inner" then made[k] = v end
  end
  return name
end

return layers
