-- The documentation file knows every public function, and nothing that is not there.
local helpers = require "helpers"
local perigee = require "perigee"

--- class name -> { function name -> true } of the functions that meta.lua defines.
local function documented()
  local path = assert(package.searchpath("perigee.meta", package.path))
  local env = setmetatable({}, { __index = _G })
  local text = {}
  local class
  for line in io.lines(path) do
    class = line:match "^%-%-%-@class ([%w%.]+)" or class
    local name = line:match "^local (%w+) = {}"
    if name then
      line = ("%s = tables[%q]"):format(name, class)
    end
    text[#text + 1] = line
  end
  env.tables = setmetatable({}, { __index = function(t, k)
    local new = {}
    rawset(t, k, new)
    return new
  end })
  assert(load(table.concat(text, "\n"), "meta", "t", env))()
  return env.tables
end

local function names(t)
  local list = {}
  for k, v in pairs(t) do
    if type(v) == "function" then list[#list + 1] = k end
  end
  table.sort(list)
  return list
end

local function methods(object) -- what is found through the metatable's method table
  local list = {}
  local index = debug.getmetatable(object).__index
  local _, t = debug.getupvalue(index, 2)
  for k in pairs(t) do list[#list + 1] = k end
  table.sort(list)
  return list
end

describe("meta.lua", function()
  it("documents exactly what is there", function()
    local doc = documented()
    local world = helpers.world()
    finally(helpers.close_all)
    assert.same(names(perigee), names(doc.perigee))
    assert.same(names(perigee.store), names(doc["perigee.stores"]))
    assert.same(methods(perigee.zeros("f32", 1)), names(doc["perigee.Tensor"]))
    assert.same(methods(world), names(doc["perigee.Group"]))
    assert.same(methods(perigee.future()), names(doc["perigee.Work"]))
    assert.same(methods(perigee.store.hash()), names(doc["perigee.Store"]))
    local server <close> = perigee.store.server()
    assert.same(methods(server), names(doc["perigee.StoreServer"]))
  end)

  it("is Lua", function()
    assert.is_function(loadfile(package.searchpath("perigee.meta", package.path)))
  end)
end)
