-- Perigee: process groups whose operations a Lua table can override.
-- The module is written in C; what is written in Lua is loaded when it is first used. Documentation: perigee/meta.lua.
local perigee = require "perigee.core"

-- Layers that come with Perigee need no require: "log(native)" loads perigee.layers.log. A name that this interpreter,
-- or a C plug-in, has registered is left alone.
local function load_layers(stack, names)
  for name in stack:gmatch "[%w_-]+" do
    if not names[name] then
      names[name] = true
      local inner, foreign = perigee.backend_inner(name)
      local module = "perigee.layers." .. name
      if (inner == nil or foreign) and package.searchpath(module, package.path) then
        package.loaded[module] = nil
        require(module)
        inner = perigee.backend_inner(name)
      end
      if inner then load_layers(inner, names) end
    end
  end
end

local function check_options(options, names, stack)
  for name in pairs(options) do
    if type(name) == "string" and not names[name] then
      error(perigee.error("EINVAL", ("bad argument #1 to 'init' (options: the stack '%s' has no layer '%s')"):format(
        stack, name)), 3)
    end
  end
end

local core_init = perigee.init
if debug.getinfo(core_init, "S").what == "C" then -- the table outlives this file, which busted loads again
  function perigee.init(opts)
    local given = type(opts) == "table" and opts or {}
    local stack = given.backend or os.getenv "PERIGEE_BACKEND" or "native"
    if type(stack) == "string" then
      local names = {}
      load_layers(stack, names)
      if type(given.options) == "table" then check_options(given.options, names, stack) end
    end
    return core_init(opts)
  end
end

-- perigee.testing is loaded when it is first used.
if getmetatable(perigee) == nil then
  setmetatable(perigee, { __index = function(_, name)
    if name == "testing" then return require "perigee.testing" end
  end })
end

return perigee
