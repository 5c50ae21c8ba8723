-- Rule: includes point downward only. Lua is known to the host and the command alone, libuv to those who do I/O.
local layers = { base = 1, tensor = 2, store = 2, transport = 3, coll = 4, group = 5, host = 6, cli = 7 }

local lua_headers = { ["lua.h"] = true, ["lauxlib.h"] = true, ["lualib.h"] = true, ["perigee/lua.h"] = true }

local uv_allowed = {
  "^base/loop", "^base/error%.c$", "^store/store_tcp_", "^transport/", "^cli/",
}

local function may_use_uv(path)
  for _, pattern in ipairs(uv_allowed) do
    if path:find(pattern) then return true end
  end
  return false
end

--- What is wrong with the includes of one file. path: below src/, "layer/file.c".
local function problems(path, text)
  local list = {}
  local function add(...) list[#list + 1] = ("src/%s: %s"):format(path, (...):format(select(2, ...))) end
  local layer, name = path:match "^(%a+)/([%w_]+)%.[ch]$"
  if not layers[layer] then
    add("is in no layer")
    return list
  end
  local is_test = name:find "_test$"
  local first_quoted
  for quote, header in text:gmatch '#%s*include%s*([<"])([^>"]+)[>"]' do
    if quote == '"' then
      first_quoted = first_quoted or header
      local other = header:match "^(%a+)/"
      if not layers[other] then
        add('"%s" does not begin with a layer', header)
      elseif other ~= layer and layers[other] >= layers[layer] then
        add('"%s" is not below %s', header, layer)
      end
    elseif lua_headers[header] and layer ~= "host" and layer ~= "cli" then
      add("<%s> outside host and cli", header)
    elseif header == "uv.h" and not is_test and not may_use_uv(path) then
      add("<uv.h> outside the files that do I/O")
    end
  end
  local own = ("%s/%s"):format(layer, name)
  local header = io.open("src/" .. own .. ".h")
  if header and path:find "%.c$" then
    header:close()
    if first_quoted ~= own .. ".h" and first_quoted ~= own .. "_impl.h" then
      add('does not include its own header "%s.h" first', own)
    end
  end
  return list
end

--- Public headers stand alone: each other, the C library, and Lua in perigee/lua.h only.
local public_system = { ["stdbool.h"] = true, ["stddef.h"] = true, ["stdint.h"] = true }

local function public_problems(name, text)
  local list = {}
  for quote, header in text:gmatch '#%s*include%s*([<"])([^>"]+)[>"]' do
    local fine
    if quote == '"' then
      fine = not header:find "/"
    else
      fine = public_system[header] or (name == "lua.h" and lua_headers[header])
    end
    if not fine then list[#list + 1] = ("include/perigee/%s: %s"):format(name, header) end
  end
  return list
end

local function files(pattern)
  local list = {}
  local p <close> = assert(io.popen("ls " .. pattern))
  for line in p:lines() do list[#list + 1] = line end
  return list
end

local function read(path)
  local f <close> = assert(io.open(path))
  return f:read "a"
end

describe("includes", function()
  it("point downward in src/", function()
    local all = {}
    local list = files "src/*/*.[ch]"
    assert.is_true(#list > 50)
    for _, path in ipairs(list) do
      for _, problem in ipairs(problems(path:match "^src/(.*)$", read(path))) do all[#all + 1] = problem end
    end
    assert.equal("", table.concat(all, "\n"))
  end)

  it("of public headers are public", function()
    local all = {}
    for _, path in ipairs(files "include/perigee/*.h") do
      for _, problem in ipairs(public_problems(path:match "[^/]+$", read(path))) do all[#all + 1] = problem end
    end
    assert.equal("", table.concat(all, "\n"))
  end)

  it("that break the rule are found", function()
    for _, case in ipairs {
      { "base/zz.c", '#include "tensor/dtype.h"' }, { "tensor/zz.c", '#include "store/store.h"' },
      { "store/zz.c", '#include "tensor/dtype.h"' }, { "group/zz.c", '# include <lua.h>' },
      { "group/zz.c", '#include "host/interp.h"' }, { "coll/zz.c", "#include <uv.h>" },
      { "base/zz.c", "#include <uv.h>" }, { "coll/zz.c", '#include "zz.h"' }, { "other/zz.c", "" },
      { "base/clock.c", '#include "base/error.h"\n#include "base/clock.h"' },
    } do
      assert.equal(1, #problems(case[1], case[2]), case[1] .. ": " .. case[2])
    end
    for _, case in ipairs {
      { "host/zz.c", '#include "group/group.h"\n#include <lua.h>' }, { "cli/zz.c", "#include <uv.h>" },
      { "store/store_tcp_zz.c", '#include "base/list.h"\n#include <uv.h>' },
    } do
      assert.same({}, problems(case[1], case[2]))
    end
    assert.equal(1, #public_problems("group.h", "#include <uv.h>"))
    assert.equal(1, #public_problems("group.h", "#include <lua.h>"))
    assert.equal(1, #public_problems("group.h", '#include "base/attr.h"'))
    assert.same({}, public_problems("lua.h", '#include <lua.h>\n#include "group.h"'))
  end)
end)
