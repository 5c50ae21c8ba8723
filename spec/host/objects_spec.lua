-- Lua values as data: the codec, and values between ranks.
local helpers = require "helpers"
local perigee = require "perigee"

local function message(f, ...) return tostring(helpers.raised(f, ...)) end
local function round(v) return perigee.decode(perigee.encode(v)) end

describe("the codec", function()
  it("keeps every kind of data", function()
    for _, v in ipairs {
      true, false, 0, 1, -1, 127, 128, -64, -65, math.maxinteger, math.mininteger, 0.5, -0.0, 1e308,
      math.huge, -math.huge,
      "", "text", "\0\255\n", ("x"):rep(100000),
      {}, { 1, 2, 3 }, { a = 1, b = { c = { "deep" } } }, { 1, 2, n = 2 },
      { [0] = "zero", [-5] = "minus", [1.5] = "half" },
      { [true] = 1, [false] = 2 }, { { { {} } } },
    } do
      local back = round(v)
      assert.same(v, back)
      assert.equal(math.type(v), math.type(back))
    end
    assert.is_nil(round(nil))
    local nan = round(0 / 0)
    assert.is_true(nan ~= nan)
    assert.equal("-0.0", tostring(round(-0.0)))
    local holes = round { 1, nil, 3 }
    assert.equal(1, holes[1])
    assert.equal(3, holes[3])
  end)

  it("keeps tensors of every dtype, also views", function()
    for _, dtype in ipairs(perigee.dtypes) do
      local t = perigee.arange("i32", 6):view(2, 3):to(dtype)
      assert.is_true(round(t):equal(t), dtype)
    end
    local view = perigee.arange("f32", 6):view(2, 3):narrow(2, 2, 2)
    assert.same({ { 1, 2 }, { 4, 5 } }, round({ inside = view }).inside:totable())
    assert.same({ 0, 4 }, round(perigee.zeros("f32", 0, 4)).shape)
    assert.same({}, round(perigee.zeros("f32", {})).shape)
  end)

  it("copies what is reached twice", function()
    local shared = { 1 }
    local back = round { shared, shared }
    assert.same({ { 1 }, { 1 } }, back)
    assert.is_false(back[1] == back[2])
  end)

  it("keeps error objects what they are", function()
    local back = round { e = perigee.error("ERANGE", "too far", { ranks = { 1, 3 }, cause = "x" }) }.e
    assert.equal("ERANGE", back.code)
    assert.same({ 1, 3 }, back.ranks)
    assert.equal("x", back.cause)
    assert.equal("too far", tostring(back))
    assert.equal("EPROTO", helpers.raised(perigee.decode, "PG1ei\2").code)
    assert.equal("EPROTO", helpers.raised(perigee.decode, "PG1e").code)
  end)

  it("refuses the rest and says where", function()
    assert.matches("value%.a%[3%]: function", message(perigee.encode, { a = { 1, 2, print } }))
    assert.matches("value: function", message(perigee.encode, print))
    assert.matches("value%.w: work", message(perigee.encode, { w = perigee.future() }))
    assert.matches("value%.co: thread", message(perigee.encode, { co = coroutine.create(print) }))
    assert.matches("value%.x: a key is a table", message(perigee.encode, { x = { [{}] = 1 } }))
    local loop = { {} }
    loop[1].back = loop
    assert.matches("value%[1%]%.back: the table contains itself", message(perigee.encode, loop))
    local deep = {}
    for _ = 1, 200 do deep = { deep } end
    assert.matches("nest too deep", message(perigee.encode, deep))
    assert.equal("EINVAL", helpers.raised(perigee.encode, print).code)
    -- Behaviour does not travel, so a table that has some is no data.
    local touched = false
    local proxy = setmetatable({}, { __index = function() touched = true end, __pairs = function() touched = true end })
    assert.matches("value%.a%.b: a table with a metatable", message(perigee.encode, { a = { b = proxy } }))
    assert.matches("value: a table with a metatable", message(perigee.encode, setmetatable({}, {})))
    assert.is_false(touched)
    assert.matches("value: redop", (message(perigee.encode, perigee.premul_sum(2)):gsub("reduce op", "redop")))
  end)

  it("has limits: depth, entries", function()
    local function nested(n)
      local v = {}
      for _ = 2, n do v = { v } end
      return v
    end
    assert.same(nested(100), round(nested(100)))
    assert.matches("nest too deep", message(perigee.encode, nested(101)))
    -- 2^26 + 1 entries of one byte each, announced and there.
    local many = "PG1a\129\128\128\32" .. ("n"):rep((1 << 26) + 1)
    assert.matches("too many table entries", message(perigee.decode, many))
  end)

  it("survives every cut and every changed byte", function()
    local bytes = perigee.encode { 1, 2.5, "text", { a = true, b = { false, -7 } }, perigee.arange("f32", 5) }
    for i = 0, #bytes - 1 do
      assert.equal("EPROTO", helpers.raised(perigee.decode, bytes:sub(1, i)).code)
    end
    local codes = {}
    for i = 1, #bytes do
      for _, c in ipairs { 0, 1, 0x7f, 0x80, 0xff, ("s"):byte(), ("a"):byte(), ("x"):byte() } do
        local e = helpers.raised(perigee.decode, bytes:sub(1, i - 1) .. string.char(c) .. bytes:sub(i + 1))
        if e then codes[e.code] = true end
      end
    end
    assert.same({ EPROTO = true }, codes)
    assert.matches("bytes after the end", message(perigee.decode, perigee.encode(1) .. "x"))
    -- Lengths that nothing stands behind.
    for _, text in ipairs {
      "PG1s\255\255\255\255\255\255\255\255\127", "PG1a\255\255\255\255\15", "PG1m\255\255\255\255\15",
      "PG1x\2\1\255\255\255\255\255\255\255\255\127", "PG1x\99\0", "PG1x\2\9", "PG1" .. ("a\1"):rep(200),
    } do
      assert.equal("EPROTO", helpers.raised(perigee.decode, text).code)
    end
    assert.matches("string expected, got number", message(perigee.decode, 5))
  end)
end)

describe("values between ranks", function()
  for _, n in ipairs { 1, 3 } do
    it("travel with " .. n, function()
      helpers.ranks_ok(n, function()
        local perigee, world = _G.perigee, _G.world -- luacheck: ignore
        local r, size = world.rank, world.size
        local last = size - 1
        local v = world:broadcast_object(r == last and { name = "x", list = { 1, 2, { 3 } } } or nil, { root = last })
        assert(v.name == "x" and v.list[3][1] == 3)
        assert(world:broadcast_object(r == 0 and ("y"):rep(100000) or 5) == ("y"):rep(100000))
        local all = world:allgather_object { rank = r, text = ("z"):rep(r * 1000) }
        for i = 1, size do assert(all[i].rank == i - 1 and #all[i].text == (i - 1) * 1000) end
        local got = world:gather_object(r > 0 and r or nil, { root = last })
        assert((got ~= nil) == (r == last))
        for i = 2, got and size or 0 do assert(got[i] == i - 1) end
        local parts
        if r == 0 then
          parts = {}
          for i = 1, size do parts[i] = { i, perigee.full("f32", i, i) } end
        end
        local mine = world:scatter_object(parts)
        assert(mine[1] == r + 1 and mine[2]:sum() == (r + 1) ^ 2)
        if size > 1 then
          if r == 0 then world:send_object({ hello = "there" }, 1, { tag = 4 }) end
          if r == 1 then assert(world:recv_object(0, { tag = 4 }).hello == "there") end
        end
      end)
    end)
  end

  it("that cannot be sent are errors on every rank that needs them", function()
    helpers.ranks_ok(2, function()
      local world = _G.world
      local bad = world.rank == 1
      local function fails(f, own, other)
        local ok, e = pcall(f)
        assert(not ok)
        local want = bad and own or other
        assert(tostring(e):find(want), tostring(e))
      end
      local refused = "rank 1 has a value that cannot be sent"
      fails(function() world:broadcast_object(print, { root = 1 }) end, "value: function", refused)
      fails(function() world:allgather_object(bad and { f = print } or 1) end, "value.f: function", refused)
      fails(function() world:gather_object(bad and print or 1) end, "value: function", refused)
      fails(function() world:scatter_object(bad and { 1, print } or nil, { root = 1 }) end,
        "value%[2%]: function", refused)
      if bad then
        local ok = pcall(world.send_object, world, print, 0)
        assert(not ok)
      else
        local ok, e = pcall(world.recv_object, world, 1)
        assert(not ok and tostring(e):find(refused), tostring(e))
      end
      assert(world:allreduce(1) == 2) -- and the group is as it was
    end)
  end)

  it("go through layers as other data does", function()
    local B = perigee.backend "spec_objects"
    local bytes = 0
    function B:broadcast(tensors, opts)
      bytes = bytes + tensors[1].nbytes
      return self.inner:broadcast(tensors, opts)
    end
    local world = helpers.world { backend = "spec_objects" }
    finally(helpers.close_all)
    assert.same({ 1, "x" }, world:broadcast_object { 1, "x" })
    assert.is_true(bytes > 8)
  end)

  it("check their arguments", function()
    local world = helpers.world()
    finally(helpers.close_all)
    assert.matches("unknown option 'rot' %(did you mean 'root'%?%)",
      message(world.broadcast_object, world, 1, { rot = 0 }))
    assert.matches("root: a rank expected, got 1", message(world.gather_object, world, 1, { root = 1 }))
    assert.matches("a list with one value per rank expected, got nil", message(world.scatter_object, world))
    assert.matches("a list with 1 values, one per rank, expected, got 2",
      message(world.scatter_object, world, { 1, 2 }))
    assert.matches("tag: an integer >= 0 expected, got %-1", message(world.recv_object, world, 0, { tag = -1 }))
    assert.matches("timeout", message(world.broadcast_object, world, 1, { timeout = -1 }))
    assert.matches("unknown option 'root'", message(world.allgather_object, world, 1, { root = 0 }))
    assert.equal("x", world:broadcast_object("x", { timeout = 5 }))
    assert.same({ "x" }, world:gather_object("x", { timeout = 5 }))
    local op = perigee.op { name = "o", reduce = function(a) return a end }
    assert.matches("op: perigee.op{...} expected, got sum", message(world.allreduce_object, world, 1, { op = "sum" }))
    assert.matches("op: perigee.op{...} expected, got nothing", message(world.allreduce_object, world, 1))
    assert.matches("op: perigee.op{...} expected, got reduce op premul_sum",
      message(world.reduce_object, world, 1, { op = perigee.premul_sum(2) }))
    assert.matches("unknown option 'root'", message(world.allreduce_object, world, 1, { op = op, root = 0 }))
    assert.matches("root: a rank expected, got 1", message(world.reduce_object, world, 1, { op = op, root = 1 }))
    assert.matches("a rank expected, got nothing", message(world.send_object, world, 1))
    assert.matches("options table expected, got number", message(world.allgather_object, world, 1, 5))
  end)
end)
