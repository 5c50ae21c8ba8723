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

  it("documents what self.inner has, and every method that a backend may define", function()
    local doc = documented()
    local B = perigee.backend "meta_inner"
    local inner
    function B:open() inner = self.inner end
    helpers.world { backend = "meta_inner" }
    finally(helpers.close_all)
    local group, own = doc["perigee.Group"], doc["perigee.Inner"]
    for _, name in ipairs(methods(inner)) do assert.is_truthy(group[name] or own[name], name) end
    for name in pairs(own) do assert.is_function(inner[name], name) end

    local meta = assert(io.open(package.searchpath("perigee.meta", package.path))):read "a"
    local rows = 0
    for line in io.lines "include/perigee/backend.h" do
      local name = line:match "^  XX%(%d+, [A-Z_]+, ([a-z_]+), [A-Z]+%)"
      if name then
        rows = rows + 1
        -- rank and size are fields of the instance as well.
        local documented_as = (name == "rank" or name == "size") and "rank and size say" or "@field " .. name .. "? fun"
        assert.is_truthy(meta:find(documented_as, 1, true), name)
        assert.has_no_error(function() B[name] = function() end end)
      end
    end
    assert.equal(12, rows)
  end)

  it("is Lua", function()
    assert.is_function(loadfile(package.searchpath("perigee.meta", package.path)))
  end)
end)
