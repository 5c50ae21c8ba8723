-- Layers are found by name, get their options, and go along into subgroups; what layers may ask of the runtime.
-- luacheck: no self, ignore 431
local helpers = require "helpers"
local perigee = require "perigee"

--- Registry references of C once everything that is garbage is gone.
local function settled_refs()
  for _ = 1, 4 do
    collectgarbage()
    perigee.sleep(0)
  end
  return perigee.stats().refs
end

local count = 0
local function fresh(prefix)
  count = count + 1
  return prefix .. count
end

describe("a stack string", function()
  after_each(helpers.close_all)

  it("names ready-made layers without a require", function()
    local world = helpers.world { backend = "log(fp16(retry(native)))", options = { log = { level = "error" } } }
    assert.equal("log(fp16(retry(native)))", world.backend)
    assert.equal(3, world:allreduce(3))
    assert.is_table(package.loaded["perigee.layers.retry"])
  end)

  it("names them behind the default stack of a backend of one's own, and in PERIGEE_BACKEND", function()
    local name = fresh "mine"
    perigee.backend(name, { inner = "topk(bf16)" })
    assert.equal(name .. "(topk(bf16(native)))", helpers.world { backend = name }.backend)
    local code, out = helpers.lua [[
      local perigee = require "perigee"
      local world <close> = perigee.init { rank = 0, size = 1 }
      print(world.backend)
    ]]
    assert.equal(0, code, out)
    local script = [[PERIGEE_BACKEND='retry(native)' lua5.4 -e '
      local world <close> = require "perigee".init { rank = 0, size = 1 } io.write(world.backend)']]
    local p <close> = io.popen(script)
    assert.equal("retry(native)", p:read "a")
  end)

  it("that names what is not there is refused as before", function()
    for _, stack in ipairs { "lgo(native)", "log(nativ)", "common(native)", "half(native)" } do
      local e = helpers.raised(helpers.world, { backend = stack })
      assert.equal("ENOENT", e.code)
      assert.matches("there is no backend", e.message)
    end
    assert.equal("EINVAL", helpers.raised(helpers.world, { backend = "log((native)" }).code)
  end)

  it("prefers a backend that the script has registered itself", function()
    local code, out = helpers.lua [[
      local perigee = require "perigee"
      local Mine = perigee.backend "log"
      function Mine:allreduce(tensors) tensors[1]:fill_(42) return true end
      local world <close> = perigee.init { rank = 0, size = 1, backend = "log(native)" }
      assert(world:allreduce(1) == 42)
      assert(package.loaded["perigee.layers.log"] == nil)
    ]]
    assert.equal(0, code, out)
  end)
end)

describe("options", function()
  after_each(helpers.close_all)

  it("reach open together with the group's timeout", function()
    local name, seen = fresh "opts", nil
    local B = perigee.backend(name)
    function B:open(opts) seen = opts end
    local mine = { depth = 3, list = { 1 } }
    helpers.world { backend = name .. "(native)", timeout = 7, options = { [name] = mine } }
    assert.equal(7, seen.timeout)
    assert.equal(3, seen.depth)
    assert.equal(mine.list, seen.list)
    assert.is_nil(mine.timeout)
    helpers.world { backend = name }
    assert.is_nil(seen.depth)
    helpers.world { backend = name, options = {} }
    assert.is_nil(seen.depth)
  end)

  it("for a layer that is not in the stack, or of a wrong form, are refused", function()
    local e = helpers.raised(helpers.world, { backend = "log(native)", options = { lgo = {} } })
    assert.equal("EINVAL", e.code)
    assert.matches("options: the stack 'log%(native%)' has no layer 'lgo'", e.message)
    for _, options in ipairs { 5, { 1 }, { log = 5 } } do
      assert.equal("EINVAL", helpers.raised(helpers.world, { backend = "log(native)", options = options }).code)
    end
  end)

  it("that a layer does not know are refused when it opens", function()
    for layer, options in pairs {
      log = { leval = "all" }, fp16 = { feedback = 1 }, bf16 = { ops = { "send" } }, topk = { ratio = 2 },
      hierarchical = { local_size = 0 }, fault = { rules = { { action = "explode" } } }, retry = { codes = { "NO" } },
      checked = { site = true }, record = { data = "some" },
    } do
      local e = helpers.raised(helpers.world, { backend = layer .. "(native)", options = { [layer] = options } })
      assert.equal("EINVAL", e and e.code, layer)
      if layer ~= "retry" then assert.matches("layer '" .. layer .. "'", e.message) end
    end
  end)

  it("and the chain go along into splits and subgroups", function()
    local lines = {}
    local function to(_, event) lines[#lines + 1] = event.group .. " " .. event.op end
    local world = helpers.world { backend = "log(retry(native))",
      options = { log = { to = to }, retry = { times = 9 } } }
    local row <close> = world:split(0)
    local sub <close> = row:subgroup { 0 }
    assert.equal(world.backend, sub.backend)
    world:allreduce(1)
    row:allreduce(1)
    sub:barrier()
    assert.same({ "world allreduce", row.name .. " allreduce", sub.name .. " barrier" }, lines)
  end)

  it("are let go with the group", function()
    local options = setmetatable({ level = "all", to = function() end }, { __mode = "k" })
    local weak = setmetatable({ options.to }, { __mode = "v" })
    local refs = settled_refs()
    do
      local world <close> = perigee.init { rank = 0, size = 1, backend = "log(native)", options = { log = options } }
      world:allreduce(1)
      assert.is_true(perigee.stats().refs > refs)
    end
    options = nil -- luacheck: ignore
    assert.equal(refs, settled_refs())
    assert.is_nil(weak[1])
  end)
end)

describe("a layer", function()
  after_each(helpers.close_all)

  it("knows the world's ranks and the number of the operation", function()
    helpers.ranks_ok(4, function()
      local perigee = require "perigee"
      local seen
      local B = perigee.backend "seen"
      function B:open() self.list = table.concat(self.members, ",") end
      function B:allreduce(tensors, opts)
        seen = self.list .. " #" .. self.inner.seq
        return self.inner:allreduce(tensors, opts):map(function() assert(self.inner.seq == 0) end)
      end
      local world <close> = perigee.init { backend = "seen(native)" }
      world:barrier()
      world:allreduce(1)
      assert(seen == "0,1,2,3 #2", seen)
      local row <close> = world:split(world.rank % 2, -world.rank)
      row:allreduce(1)
      assert(seen == (world.rank % 2 == 0 and "2,0 #1" or "3,1 #1"), seen)
    end)
  end)

  it("makes subgroups of the layers below it, from open on", function()
    helpers.ranks_ok(4, function()
      local perigee = require "perigee"
      local Upper, calls = perigee.backend "upper", 0
      function Upper:open(opts)
        assert(opts.deep == 1)
        local ranks = self.rank < 2 and { 1, 0 } or { 3, 2 }
        self.pair = self.inner:subgroup(ranks, { name = "pair" })
        assert(self.inner:subgroup { (self.rank + 1) % 4 } == nil)
        assert(self.pair.backend == "lower(native)" and self.pair.size == 2, self.pair.backend)
        assert(self.pair:to_world(0) == ranks[1])
        self.pair:barrier()
      end
      function Upper:allreduce(tensors, opts)
        return self.pair:allreduce(tensors, { op = opts.op, async = true })
      end
      function Upper:close() self.pair:close() end
      local Lower = perigee.backend "lower"
      function Lower:allreduce(tensors, opts)
        calls = calls + 1
        return self.inner:allreduce(tensors, opts)
      end
      local world <close> = perigee.init { backend = "upper(lower(native))", options = { upper = { deep = 1 } } }
      assert(world:allreduce(world.rank) == (world.rank < 2 and 1 or 5))
      assert(calls == 1)
      assert(world:broadcast(world.rank, { root = 3 }) == 3)
      local ok, e = pcall(world.subgroup, world, { 0, 7 })
      assert(not ok and e.code == "ERANGE", tostring(e))
    end)
  end)

  it("knows whether its caller waits, and may then wait itself", function()
    local name, seen = fresh "waits", {}
    local B = perigee.backend(name)
    function B:allreduce(tensors, opts)
      local waits = self.inner.waits
      seen[#seen + 1] = waits
      local work = self.inner:allreduce(tensors, opts)
      if waits then assert(work:wait()[1] == tensors[1]) end
      return work:map(function() seen[#seen + 1] = self.inner.waits end)
    end
    local world = helpers.world { backend = "log(" .. name .. ")", options = { log = { to = function() end } } }
    assert.equal(3, world:allreduce(3))
    assert.equal(3, world:allreduce(3, { async = true }):wait())
    assert.same({ true, false, false, false }, seen)
  end)

  it("at the bottom has nothing to make subgroups of", function()
    local name = fresh "bottom"
    local B = perigee.backend(name, { inner = false })
    local e
    function B:open() e = helpers.raised(self.inner.subgroup, self.inner, { 0 }) end
    helpers.world { backend = name }
    assert.equal("ENOTSUP", e.code)
    assert.is_false((perigee.backend_inner(name)))
    assert.equal("native", (perigee.backend_inner "log"))
    assert.is_nil((perigee.backend_inner "no-such"))
  end)

  it("may map a receive without losing its source", function()
    helpers.ranks_ok(3, function()
      local perigee = require "perigee"
      local B = perigee.backend "mapper"
      function B:recv_anysource(...) return self.inner:recv_anysource(...):map(function() end) end
      function B:recv(...)
        local future, work = perigee.future(), self.inner:recv(...)
        work:on_done(function(err, value)
          if err then future:set_error(err) else future:set_result(value, work:source_rank()) end
        end)
        return future
      end
      local world <close> = perigee.init { backend = "mapper(native)" }
      local t = perigee.zeros("f32", 1)
      if world.rank == 2 then
        local _, source = world:recv_anysource(t)
        assert(source == 1, tostring(source))
        local work = world:recv(t, 1, { async = true })
        work:wait()
        assert(work:source_rank() == 1)
      elseif world.rank == 1 then
        world:send(t, 2)
        world:send(t, 2)
      end
      world:barrier()
    end)
  end)
end)

describe("a tensor's key", function()
  after_each(helpers.close_all)

  it("is the same for every object of its elements, and no other", function()
    local t = perigee.zeros("f32", 4, 2)
    local key = t:key()
    assert.equal(key, t:key())
    assert.equal(key, t:view(8):key())
    assert.equal(t:narrow(1, 2, 2):key(), t:narrow(1, 2, 2):key())
    assert.not_equal(key, t:narrow(1, 2, 2):key())
    assert.not_equal(t:narrow(1, 1, 2):key(), t:narrow(1, 3, 2):key())
    assert.not_equal(key, t:clone():key())
    assert.not_equal(t:narrow(1, 1, 0):key(), key)
  end)

  it("is what an override sees too", function()
    local name, keys = fresh "keys", {}
    local B = perigee.backend(name)
    function B:allreduce(tensors, opts)
      keys[#keys + 1] = tensors[1]:key()
      return self.inner:allreduce(tensors, opts)
    end
    local world = helpers.world { backend = name }
    local t = perigee.zeros("f32", 4)
    for _ = 1, 3 do world:allreduce(t) end
    assert.equal(t:key(), keys[1])
    assert.equal(keys[1], keys[2])
    assert.equal(keys[1], keys[3])
  end)

  it("lives as long as the memory", function()
    local refs = settled_refs()
    local values = setmetatable({}, { __mode = "k" })
    local keep = perigee.zeros("f32", 4)
    values[keep:view(4):key()] = "kept"
    for _ = 1, 100 do values[perigee.zeros("f32", 4):key()] = "gone" end
    assert.equal(refs + 1, settled_refs())
    local left = 0
    for _ in pairs(values) do left = left + 1 end
    assert.equal(1, left)
    assert.equal("kept", values[keep:key()])
  end)
end)
