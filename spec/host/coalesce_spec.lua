-- Coalescing: several operations as one Work, over ranks as threads and in a simulated world.
-- luacheck: no self
local helpers = require "helpers"
local perigee = require "perigee"
local testing = require "perigee.testing"

local function raised(code, text, f, ...)
  local e = helpers.raised(f, ...)
  assert(e, "nothing was raised")
  assert(e.code == code, ("%s instead of %s"):format(tostring(e), code))
  assert(tostring(e):find(text, 1, true), ("'%s' does not say '%s'"):format(tostring(e), text))
  return e
end

local count = 0
local function backend(methods)
  count = count + 1
  local B = perigee.backend("coalesce" .. count)
  for name, f in pairs(methods) do B[name] = f end
  return B.name
end

local function T(...) return perigee.tensor("f32", { ... }) end

-- The stack of these layers above a bottom.
local function stack(bottom, ...)
  local names = { ... }
  names[#names + 1] = bottom
  return table.concat(names, "(") .. (")"):rep(#names - 1)
end

local engines = {
  ranks = function(n, fn, ...) testing.ranks(n, fn, { backend = stack("native", ...), timeout = 60 }) end,
  sim = function(n, fn, ...) testing.sim(n, fn, { backend = stack("sim", ...) }) end,
}

for engine, run in pairs(engines) do
  describe("coalesce over " .. engine, function()
    it("gives one Work for all, with the list of their values", function()
      run(3, function(g)
        local t, u = T(g.rank, 1), T(g.rank)
        local inside
        local work = g:coalesce(function()
          inside = g:allreduce(t, { op = "max" })
          assert(inside:status() == "pending" and inside.op == "allreduce")
          local b = g:broadcast(u, { root = 2, async = true })
          assert(not b:is_completed())
          g:allreduce(g.rank)
          g:barrier()
          assert(t[1] == g.rank) -- nothing has been submitted yet
        end)
        local values = work:wait()
        assert(work:status() == "done" and inside:status() == "done")
        assert(t[1] == 2 and u[1] == 2)
        assert(values[1] == t and values[2] == u and values[3] == 3)
        assert(inside:wait() == t)
        assert(g.seq == 4)
        assert(g:allreduce(1) == 3) -- afterwards a call is a call again
      end)
    end)

    it("has a work that maps, and that works of others can wait for", function()
      run(2, function(g)
        local sum = g:coalesce(function()
          g:allreduce(1)
          g:allreduce(10)
        end):map(function(values) return values[1] + values[2] end)
        assert(sum:wait() == 22)
        local works = {}
        for i = 1, 3 do
          works[i] = g:coalesce(function()
            for k = 1, 4 do g:allreduce(k * i) end
          end)
        end
        perigee.wait_all(works)
        assert(works[3]:result()[4] == 24)
      end)
    end)

    it("of nothing has ended", function()
      run(2, function(g)
        local work = g:coalesce(function() end)
        assert(work:is_completed() and #work:wait() == 0)
      end)
    end)

    it("checks each operation where it is called, and gives up when f raises", function()
      run(2, function(g)
        local first
        raised("EINVAL", "root", g.coalesce, g, function()
          first = g:allreduce(1)
          g:broadcast(T(1), { root = 9 })
        end)
        raised("ECANCELED", "given up", first.wait, first)
        local mine = {}
        assert(helpers.raised(g.coalesce, g, function()
          g:barrier()
          error(mine, 0)
        end) == mine)
        assert(g.seq == 0)
        assert(g:allreduce(1) == 2)
      end)
    end)

    it("does not nest on one group, and does on two", function()
      run(2, function(g)
        raised("ESTATE", "coalescing on group world within a coalescing", g.coalesce, g, function()
          g:allreduce(1)
          g:coalesce(function() end)
        end)
        local part = g:subgroup { 1, 0 }
        local inner
        local outer = g:coalesce(function()
          g:allreduce(1)
          inner = part:coalesce(function() part:allreduce(5) end)
          g:allreduce(2)
        end)
        assert(inner:wait()[1] == 10)
        local values = outer:wait()
        assert(#values == 2 and values[2] == 4)
      end)
    end)

    it("refuses to wait inside", function()
      run(1, function(g)
        raised("EDEADLK", "when the coalescing ends", g.coalesce, g, function() g:allreduce(1):wait() end)
        assert(g:allreduce(2) == 2)
      end)
    end)

    it("fails with the first that failed, naming which, when all have ended", function()
      local calls = 0
      local name = backend { broadcast = function(self, t, o)
        calls = calls + 1
        if t[1][1] == 7 then error "seven is refused" end
        return self.inner:broadcast(t, o)
      end }
      run(1, function(g)
        local t = T(1)
        local works = {}
        local work = g:coalesce(function()
          works[1] = g:allreduce(t)
          works[2] = g:broadcast(T(7))
          works[3] = g:broadcast(T(8))
        end)
        local e = raised("ELUA", "operation 2 of 3 coalesced, broadcast: ", work.wait, work)
        assert(tostring(e):find("seven is refused", 1, true))
        assert(works[1]:status() == "done" and works[2]:status() == "failed" and works[3]:status() == "done")
        assert(calls == 2)
      end, name)
    end)

    it("test_coalescing_manager: one start, the operations, one end, and its Work counts", function()
      local log, made
      local methods = {
        start_coalescing = function() log[#log + 1] = "start" end,
        allreduce = function(_, t)
          log[#log + 1] = "allreduce"
          t[1]:add_(1)
          return true
        end,
        end_coalescing = function()
          log[#log + 1] = "end"
          return made or true
        end,
      }
      local name = backend(methods)
      run(1, function(g)
        log = {}
        local t = T(1)
        local work = g:coalesce(function()
          g:allreduce(t)
          g:allreduce(t)
        end)
        assert(work:wait()[1] == t and t[1] == 3)
        assert(table.concat(log, " ") == "start allreduce allreduce end", table.concat(log, " "))
        -- What end_coalescing returns must end too.
        made = perigee.future()
        work = g:coalesce(function() g:allreduce(t) end)
        assert(work:status() == "pending")
        made:set_error(perigee.error("EUNREACH", "the batch was lost"))
        raised("EUNREACH", "end_coalescing: the batch was lost", work.wait, work)
        made = nil
        -- An operation outside of one starts none.
        log = {}
        g:allreduce(t)
        assert(table.concat(log, " ") == "allreduce")
      end, name)
    end)

    it("test_collective_config_coalescing: start and end stay balanced whatever raises", function()
      local open, starts, bad = 0, 0, nil
      local name = backend {
        start_coalescing = function()
          if bad == "start" then error "no start" end
          open, starts = open + 1, starts + 1
        end,
        allreduce = function(self, t, o)
          if bad == "op" then error "no op" end
          return self.inner:allreduce(t, o)
        end,
        end_coalescing = function(self)
          open = open - 1
          if bad == "end" then error "no end" end
          if bad == "nothing" then return end
          return self.inner:end_coalescing()
        end,
      }
      run(1, function(g)
        local function try() return g:coalesce(function() g:allreduce(1) end) end
        for what, text in pairs {
          start = "start_coalescing: ", op = "operation 1 of 1 coalesced, allreduce: ", ["end"] = "end_coalescing: ",
          nothing = "is a 'return' missing?",
        } do
          bad = what
          local work = try()
          local e = helpers.raised(work.wait, work)
          assert(tostring(e):find(text, 1, true), tostring(e))
          assert(open == 0)
          bad = nil
          assert(try():wait()[1] == 1)
        end
        helpers.raised(g.coalesce, g, function() error "before" end)
        assert(open == 0 and starts == 7)
      end, name)
    end)

    it("passes on through layers that have them, and is nothing at the bottom", function()
      local log = {}
      local function passing(tag)
        return backend {
          start_coalescing = function(self)
            log[#log + 1] = tag
            self.inner:start_coalescing()
          end,
          end_coalescing = function(self)
            log[#log + 1] = tag:upper()
            return self.inner:end_coalescing()
          end,
        }
      end
      run(1, function(g)
        assert(g:coalesce(function() g:allreduce(3) end):wait()[1] == 3)
        assert(table.concat(log) == "abAB", table.concat(log))
      end, passing "a", passing "b")
    end)

    it("has one timeout for operations without their own", function()
      run(2, function(g)
        if g.rank == 0 then
          local t = T(1)
          local work = g:coalesce(function() g:recv(t, 1) end, { timeout = 0.2 })
          raised("ETIMEDOUT", "operation 1 of 1 coalesced, recv: timed out after 0.2 s", work.wait, work)
        end
        assert(g:allreduce(1) == 2)
      end)
    end)
  end)

  describe("batch_send_recv over " .. engine, function()
    it("test_batch_isend_irecv: moves each message, in any order on the ranks", function()
      run(3, function(g)
        local n, r = g.size, g.rank
        local sent, got = {}, {}
        local list = {}
        for _, peer in ipairs(r % 2 == 0 and { 0, 1, 2 } or { 2, 1, 0 }) do
          if peer ~= r then
            sent[peer] = perigee.full("f32", { 50000 }, r * 10 + peer)
            got[peer] = perigee.zeros("f32", 50000)
            local send = { op = "send", tensor = sent[peer], peer = peer, tag = 3 }
            local recv = { op = "recv", tensor = got[peer], peer = peer, tag = 3 }
            list[#list + 1] = r == 1 and recv or send
            list[#list + 1] = r == 1 and send or recv
          end
        end
        local work = g:batch_send_recv(list)
        assert(#work:wait() == 2 * (n - 1))
        for peer, t in pairs(got) do assert(t[1] == peer * 10 + r and t[50000] == t[1]) end
      end)
    end)

    it("test_batch_isend_irecv_coalescing: with coalescing one start and one end, without each message", function()
      local log = {}
      local methods = {
        send = function(self, t, dst, tag, o) log[#log + 1] = "send" return self.inner:send(t, dst, tag, o) end,
        recv = function(self, t, src, tag, o) log[#log + 1] = "recv" return self.inner:recv(t, src, tag, o) end,
      }
      local function exchange(g)
        local t = T(0)
        g:batch_send_recv({
          { op = "send", tensor = T(g.rank + 1), peer = 1 - g.rank },
          { op = "recv", tensor = t, peer = 1 - g.rank },
        }, { timeout = 20 }):wait()
        assert(t[1] == 2 - g.rank)
      end
      run(2, exchange, backend(methods))
      table.sort(log)
      assert.equal("recv recv send send", table.concat(log, " "))
      log = {}
      methods.start_coalescing = function() log[#log + 1] = "start" end
      methods.end_coalescing = function() log[#log + 1] = "end" return true end
      run(2, exchange, backend(methods))
      table.sort(log)
      assert.equal("end end recv recv send send start start", table.concat(log, " "))
    end)

    it("names the entry that is wrong, and sends nothing", function()
      run(2, function(g)
        local t = T(1)
        local good = { op = "send", tensor = t, peer = 1 - g.rank }
        for text, bad in pairs {
          ["entry 2: op: \"send\" or \"recv\" expected, got sned"] = { op = "sned", tensor = t, peer = 1 - g.rank },
          ["entry 2: a table"] = 7,
          ["entry 2: bad argument"] = { op = "recv", tensor = t, peer = 9 },
          ["unknown option 'tga'"] = { op = "recv", tensor = t, peer = 1 - g.rank, tga = 1 },
        } do
          raised("EINVAL", text, g.batch_send_recv, g, { good, bad })
        end
        assert(g:allreduce(1) == 2)
      end)
    end)
  end)
end

describe("coalesce", function()
  after_each(helpers.close_all)

  it("refuses what has to wait, and ends with the group", function()
    local world = helpers.world()
    raised("ESTATE", "broadcast_object has to wait", world.coalesce, world, function() world:broadcast_object(1) end)
    raised("EINVAL", "function expected, got nil", world.coalesce, world)
    raised("EINVAL", "unknown option 'timeot' (did you mean 'timeout'?)", world.coalesce, world, function() end,
      { timeot = 1 })
    local work = world:coalesce(function()
      world:allreduce(1)
      world:close()
    end)
    raised("ECLOSED", "operation 1 of 1", work.wait, work)
    raised("ECLOSED", "closed", world.coalesce, world, function() end)
  end)

  it("cannot be left by a coroutine", function()
    local world = helpers.world()
    local co = coroutine.create(function() world:coalesce(function() coroutine.yield() end) end)
    local ok, e = coroutine.resume(co)
    assert.is_false(ok)
    assert.is_truthy(tostring(e):find("yield", 1, true), tostring(e))
    assert.equal(3, world:allreduce(3))
  end)
end)
