-- Tensors that all ranks share, between real processes.
local helpers = require "helpers"

local body = function()
  local perigee, world = perigee, world -- luacheck: ignore
  local r, n = world.rank, world.size
  local function same(t, value, what)
    assert(t:equal(perigee.full("f32", t.shape, value)), what)
  end
  local t = world:alloc("f32", 3, 40000)
  assert(t.shape[1] == 3 and t.shape[2] == 40000 and t.dtype == "f32")
  same(t, 0, "zeros")
  t:fill_(r + 1)
  world:allreduce(t)
  same(t, n * (n + 1) / 2, "all of it")
  local view = t:narrow(1, r % 2 + 1, 1) -- not at the same offset on all ranks
  view:fill_(r)
  world:allreduce(view, { op = "max" })
  same(view, n - 1, "views")
  local mixed = r == 0 and perigee.zeros("f32", 40000) or t:narrow(1, 3, 1):view(40000)
  mixed:fill_(r)
  world:allreduce(mixed)
  same(mixed, n * (n - 1) / 2, "one rank without")
  local all = world:alloc("f32", { n * 40000 })
  local mine = perigee.full("f32", { 40000 }, r)
  world:allgather_into_tensor(all, mine)
  for i = 0, n - 1 do same(all:narrow(1, i * 40000 + 1, 40000), i, "allgather") end
  world:broadcast(all, { root = n - 1 })
  local work = world:allreduce(t, { async = true })
  t = nil -- luacheck: ignore
  collectgarbage()
  work:wait()
  assert(not pcall(world.alloc, world, "f99", 1))
  assert(not pcall(world.alloc, world, "f32", -1))
end

describe("group:alloc", function()
  for _, n in ipairs { 1, 2, 4 } do
    it("works on " .. n .. " ranks", function()
      helpers.ranks_ok(n, body)
    end)
  end
  for _, path in ipairs { "oneshot", "twoshot", "cma", "symmetric", "tcp" } do
    it("works with PERIGEE_PATH=" .. path, function()
      helpers.ranks_ok(3, body, { env = { PERIGEE_PATH = path } })
    end)
  end
  it("is ordinary memory over TCP", function()
    helpers.ranks_ok(3, body, { transport = "tcp" })
  end)

  it("is for all ranks alike", function()
    local result = helpers.ranks(2, function()
      local e = select(2, pcall(world.alloc, world, "f32", world.rank + 1)) -- luacheck: ignore
      assert(e.code == "EMISMATCH", tostring(e))
      print "seen"
    end)
    assert.is_truthy(result.ranks[1].out:find "seen")
    assert.is_truthy(result.ranks[2].out:find "seen")
  end)
end)

describe("a rank that dies while its memory is read", function()
  for _, path in ipairs { "auto", "symmetric" } do
    it("is an error of the others, with PERIGEE_PATH=" .. path, function()
      local result = helpers.ranks(2, function()
        local perigee, world = perigee, world -- luacheck: ignore
        local shared = world:alloc("f32", 4000000)
        local own = perigee.zeros("f32", 4000000)
        if world.rank == 1 then -- in the middle of what follows, with nobody to say goodbye
          local pid = io.open("/proc/self/stat"):read "n"
          os.execute(("(sleep 0.3; kill -9 %d) >/dev/null 2>&1 &"):format(pid))
        end
        local ok, e = pcall(function()
          while true do
            world:broadcast(own, { root = 1 })
            world:allreduce(shared)
            world:allreduce(own)
          end
        end)
        assert(not ok and e.code == "EPEERDEAD", tostring(e))
        print "told"
      end, { keep_going = true, env = { PERIGEE_PATH = path } })
      assert.is_truthy(result.ranks[1].out:find "told", result.out)
    end)
  end
end)
