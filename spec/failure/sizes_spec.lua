-- Blocks whose sizes differ by rank: exactly as long as the room for them, or the same error on every rank. Over both
-- transports.
local support = require "cli.support"

-- Put in front of every script: t(k) has k numbers of this rank; attempt(f) prints "<code> <ranks> | <text>" of the
-- error of f.
local prelude = [[
local perigee = require "perigee"
local world = perigee.init()
local rank, size = world.rank, world.size
local function t(k) return perigee.full("f32", { k }, rank) end
local function rooms(of)
  local list = {}
  for r = 0, size - 1 do list[r + 1] = perigee.zeros("f32", of(r)) end
  return list
end
local function attempt(f)
  local ok, e = pcall(f)
  if ok then print "OK" return end
  if type(e) ~= "table" then error(e, 0) end
  print(("%s [%s] | %s"):format(e.code, table.concat(e.ranks or {}, ","), e.message))
end
]]

local function run(transport, n, body)
  return support.bash(([[
    export PERIGEE_TRANSPORT=%s PERIGEE_TIMEOUT=20
    timeout -k 2 30 $P run -n %d --keep-going --prefix always $D/s.lua
  ]]):format(transport, n), { ["s.lua"] = prelude .. body })
end

-- Every rank prints this line and no other.
local function all_say(transport, n, body, wanted)
  local result = run(transport, n, body)
  local seen = {}
  for _, line in ipairs(support.lines(result.out)) do
    local r, text = line:match "^%[(%d+)%] (.*)$"
    if r then
      assert.equal(wanted, text)
      seen[tonumber(r)] = true
    end
  end
  for r = 0, n - 1 do assert.is_true(seen[r], result.out .. result.err) end
end

for _, transport in ipairs { "shm", "tcp" } do
  describe("over " .. transport, function()
    after_each(support.cleanup)

    it("blocks of different sizes arrive where the rooms are as long", function()
      all_say(transport, 3, [[
        for _, unit in ipairs { 1, 100, 30000 } do
          local function count(r) return unit * r + (r == 1 and 7 or 0) end -- none of rank 0
          local out = rooms(count)
          world:allgather(out, t(count(rank)))
          for r = 0, size - 1 do
            assert(out[r + 1]:equal(perigee.full("f32", { count(r) }, r)))
          end
          local sent = rooms(function(r) return unit * (rank + 2 * r) end)
          local got = rooms(function(r) return unit * (r + 2 * rank) end)
          for r = 0, size - 1 do sent[r + 1]:fill_(10 * rank + r) end
          world:alltoall(got, sent)
          for r = 0, size - 1 do
            assert(got[r + 1]:equal(perigee.full("f32", { got[r + 1].numel }, 10 * r + rank)))
          end
        end
        print "ok"
        world:close()
      ]], "ok")
    end)

    -- 4 numbers travel with the first messages, 100000 in messages of their own.
    for _, count in ipairs { 4, 100000 } do
      it(("one rank's output of allgather for %d numbers is too long"):format(count), function()
        all_say(transport, 3, ([[
          local out = rooms(function(r) return rank == 1 and r == 2 and %d + 2 or %d end)
          attempt(function() world:allgather(out, t(%d)) end)
        ]]):format(count, count, count),
          ("ESHAPE [1,2] | rank 2 has %d bytes for rank 1, which expects %d"):format(4 * count, 4 * count + 8))
      end)

      it(("one rank's output of allgather for %d numbers is too short"):format(count), function()
        all_say(transport, 3, ([[
          local out = rooms(function(r) return rank == 1 and r == 2 and %d - 2 or %d end)
          attempt(function() world:allgather(out, t(%d)) end)
        ]]):format(count, count, count),
          ("ETRUNC [1,2] | rank 2 has %d bytes for rank 1, which has room for %d"):format(4 * count, 4 * count - 8))
      end)

      it(("the first of several blocks of %d numbers that do not fit is everybody's error"):format(count), function()
        all_say(transport, 3, ([[
          local count = %d
          local sent = rooms(function(r)
            return rank == 0 and r == 2 and count - 1 or rank == 2 and r == 0 and count + 1 or count
          end)
          attempt(function() world:alltoall(rooms(function() return count end), sent) end)
        ]]):format(count),
          ("ESHAPE [0,2] | rank 0 has %d bytes for rank 2, which expects %d"):format(4 * count - 4, 4 * count))
      end)
    end

    it("what was queued behind does not get the error as its own", function()
      all_say(transport, 2, [[
        local out = rooms(function(r) return rank == 1 and r == 0 and 3 or 2 end)
        local first = world:allgather(out, t(2), { async = true })
        local second = world:allreduce(t(4), { async = true })
        local ok, e = pcall(first.wait, first)
        local ok2, e2 = pcall(second.wait, second)
        print(ok, e.code, ok2, e2.code)
      ]], "false\tESHAPE\tfalse\tEABORTED")
    end)
  end)
end
