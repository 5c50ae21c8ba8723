-- Rule: what is built to be linked or loaded exports the public API and nothing else.
local build = os.getenv "PERIGEE_BUILD" or "build"

local function exported(file)
  local names = {}
  local p <close> = assert(io.popen(("nm --dynamic --defined-only %s/%s"):format(build, file)))
  for line in p:lines() do
    local kind, name = line:match "^%x+ (%a) (%S+)$"
    if kind and not name:find "^__odr_asan" then names[#names + 1] = name end
  end
  return names
end

local function strangers(names)
  local list = {}
  for _, name in ipairs(names) do
    if not name:find "^perigee_[^_]" and not name:find "^luaopen_perigee" then list[#list + 1] = name end
  end
  return list
end

local function contains(names, wanted)
  for _, name in ipairs(names) do
    if name == wanted then return true end
  end
  return false
end

describe("exported symbols", function()
  for _, file in ipairs { "libperigee.so", "lua/perigee/core.so" } do
    it("of " .. file .. " are public names", function()
      local names = exported(file)
      for _, wanted in ipairs { "perigee_version", "perigee_strerror", "luaopen_perigee_core" } do
        assert.is_true(contains(names, wanted), wanted)
      end
      assert.same({}, strangers(names))
    end)
  end

  it("with other names are found", function()
    assert.same({ "perigee__fail", "helper" }, strangers { "perigee_version", "perigee__fail", "helper" })
  end)

  it("of the module are not tied to a Lua library", function()
    local p <close> = assert(io.popen(("readelf -d %s/lua/perigee/core.so"):format(build)))
    local text = p:read "a"
    assert.is_truthy(text:find("libuv", 1, true))
    assert.is_nil(text:find("liblua", 1, true))
  end)
end)
