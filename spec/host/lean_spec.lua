-- What a rank costs that does little: garbage of a blocking call, memory of a rank at rest.
local helpers = require "helpers"

describe("blocking calls", function()
  for _, n in ipairs { 1, 2 } do
    it(("leave no garbage on %d rank%s"):format(n, n > 1 and "s" or ""), function()
      helpers.ranks_ok(n, function()
        local perigee, world = perigee, world -- luacheck: ignore
        local t, wide = perigee.ones("f64", 1), perigee.zeros("f64", world.size)
        local from_last, tagged = { root = world.size - 1 }, { tag = 7 }
        local calls = {
          function() world:allreduce(t, { op = "max" }) end, -- the script's own table: what is counted shows
          function() world:allreduce(t) end,
          function() world:broadcast(t, from_last) end,
          function() world:reduce(t, from_last) end,
          function() world:allgather_into_tensor(wide, t) end,
          function() world:reduce_scatter_tensor(t, wide) end,
          function() world:barrier() end,
        }
        if world.size == 2 then
          calls[#calls + 1] = world.rank == 0 and function() world:send(t, 1, tagged) end
            or function() world:recv(t, 0, tagged) end
        end
        local function bytes_of(call, times)
          for _ = 1, 10 do call() end
          collectgarbage()
          collectgarbage "stop"
          local before = collectgarbage "count"
          for _ = 1, times do call() end
          local after = collectgarbage "count"
          collectgarbage "restart"
          return (after - before) * 1024
        end
        assert(bytes_of(calls[1], 100) >= 100 * 56, "tables are not counted")
        for i = 2, #calls do
          local bytes = bytes_of(calls[i], 20000)
          assert(bytes == 0, ("call %d: %g bytes in 20000 calls"):format(i, bytes))
        end
      end, { timeout = 100 })
    end)
  end
end)

describe("a rank at rest", function()
  for _, n in ipairs { 2, 8 } do
    it(("has less than 4 MiB for itself, of %d ranks"):format(n), function()
      helpers.ranks_ok(n, function()
        local perigee, world = perigee, world -- luacheck: ignore
        world:allreduce(perigee.ones("f32", 1000)) -- has been in use
        world:barrier()
        -- Its own pages, and its part of the memory that the ranks share, touched or not. Not what sanitizers have.
        local own, shared, sanitized = 0, 0, false
        local of_memfd
        for line in io.lines "/proc/self/smaps" do
          local from, to = line:match "^(%x+)%-(%x+) "
          if from then
            of_memfd = line:match "/memfd:perigee%-(%a+)"
            sanitized = sanitized or line:find "lib[at]san" ~= nil
            local kib = (tonumber(to, 16) - tonumber(from, 16)) // 1024
            if of_memfd then shared = shared + kib / (of_memfd == "ring" and 2 or world.size) end
          else
            local name, kib = line:match "^(%a+_%a+): +(%d+) kB"
            local private = name == "Private_Dirty" or name == "Private_Clean"
            if private and not of_memfd then own = own + tonumber(kib) end
          end
        end
        assert(shared >= 1024, "the shared memory is not found")
        if sanitized then own = 0 end
        assert(own + shared < 4096, ("%.0f KiB of its own, %.0f KiB shared"):format(own, shared))
      end)
    end)
  end
end)
