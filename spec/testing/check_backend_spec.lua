-- The conformance suite of backends: passes what is right, and fails on each kind of defect, saying where.
-- luacheck: no self
local perigee = require "perigee"
local testing = require "perigee.testing"

local FEW = { "f32", "i32" }

-- A backend with these methods, on few dtypes; returns the report.
local function report(methods, opts)
  methods.name = "broken"
  local all = { raise = false, dtypes = FEW, sizes = { 1, 2 } }
  for k, v in pairs(opts or {}) do all[k] = v end
  return testing.check_backend(methods, all)
end

local function fails(methods, pattern, opts)
  local r = report(methods, opts)
  assert.is_false(r.ok, "the suite passed")
  assert.matches(pattern, r:verdict())
  return r
end

describe("perigee.testing.check_backend", function()
  it("passes a backend that overrides nothing, on every dtype", function()
    local r = testing.check_backend({ name = "plain" }, { sizes = { 1, 2, 3 }, lengths = { 0, 5 } })
    assert.is_true(r.ok)
    assert.is_true(r.cases > 2000, r.cases)
    assert.equal(("backend 'plain': %d cases passed"):format(r.cases), r:verdict())
  end)

  it("passes a backend that overrides every operation and passes it on", function()
    local B = { name = "passing" }
    local calls = {}
    for _, row in ipairs(perigee.ops()) do
      B[row.name] = function(self, ...)
        calls[row.name] = true
        return self.inner[row.name](self.inner, ...)
      end
    end
    testing.check_backend(B, { dtypes = FEW })
    for _, row in ipairs(perigee.ops()) do assert.is_true(calls[row.name], row.name) end
  end)

  it("passes native on threads", function()
    local r = testing.check_backend("native", { engine = "ranks", dtypes = { "f32", "bf16" }, sizes = { 1, 3 },
      lengths = { 7 } })
    assert.is_true(r.ok)
  end)

  it("takes a tolerance for backends that round", function()
    local B = { name = "rounding" }
    function B:allreduce(tensors, opts)
      if tensors[1].dtype ~= "f32" or opts.op ~= "avg" then return self.inner:allreduce(tensors, opts) end
      return self.inner:allreduce(tensors, opts):map(function()
        for _, t in ipairs(tensors) do t:copy_(t:to "f16") end
      end)
    end
    local opts = { ops = { "allreduce" }, dtypes = { "f32" }, raise = false }
    assert.is_false(testing.check_backend(B, opts).ok)
    opts.rtol = 1e-3
    assert.is_true(testing.check_backend(B, opts).ok)
  end)

  it("finds a wrong value, and tells the first wrong element", function()
    local r = fails({
      allreduce = function(self, tensors, opts)
        return self.inner:allreduce(tensors, opts):map(function()
          if tensors[1].numel > 2 and self.rank == 1 then tensors[1]:set(3, tensors[1]:get(3) + 1) end
        end)
      end,
    }, "allreduce f32%[7%] sum, 2 ranks, rank 1: tensor: element 3 is %-?%d+%.0, %-?%d+%.0 expected")
    local first = r.failures[1]
    assert.equal("allreduce", first.op)
    assert.equal("f32", first.dtype)
    assert.equal(7, first.size)
    assert.equal(1, first.rank)
  end)

  it("finds a reduce op that is ignored", function()
    fails({
      allreduce = function(self, tensors, opts)
        opts.op = "sum"
        return self.inner:allreduce(tensors, opts)
      end,
    }, "allreduce f32%[7%] avg, 2 ranks, rank 0: tensor: element 1 is %-9.0, %-4.5 expected")
  end)

  it("finds a root that is ignored", function()
    fails({
      broadcast = function(self, tensors) return self.inner:broadcast(tensors) end,
    }, "broadcast f32%[1%], 2 ranks, rank 0: tensor: element 1 is")
  end)

  it("finds a list of which only the first is handled", function()
    fails({
      allreduce_coalesced = function(self, tensors, opts) return self.inner:allreduce(tensors[1], opts) end,
    }, "allreduce_coalesced f32%[0%] sum, 2 ranks, rank 0: tensors%[2%]: element 1 is")
  end)

  it("finds an input that was changed", function()
    fails({
      allgather_into_tensor = function(self, out, t, opts)
        return self.inner:allgather_into_tensor(out, t, opts):map(function() t:zero_() end)
      end,
    }, "allgather_into_tensor f32%[%d%], 1 rank, rank 0: input: element")
  end)

  it("finds split sizes that are lost", function()
    fails({
      alltoall_base = function(self, out, t, _, _, opts) return self.inner:alltoall_base(out, t, opts) end,
    }, "alltoall_base_uneven f32%[0%], 2 ranks, rank 0: raises: .*1 rows do not divide",
      { ops = { "alltoall_base", "alltoall_base_uneven" } })
  end)

  it("finds tags that are ignored", function()
    fails({
      send = function(self, tensors, dst, _, opts) return self.inner:send(tensors, dst, 0, opts) end,
      recv = function(self, tensors, src, _, opts) return self.inner:recv(tensors, src, 0, opts) end,
    }, "send_recv f32%[%d%], 2 ranks, rank %d: tag 1: element 1 is", { ops = { "send_recv" } })
  end)

  it("finds 'done' that is said too early", function()
    fails({
      allreduce = function(self, tensors, opts)
        self.inner:allreduce(tensors, opts)
        return true
      end,
    }, "allreduce f32%[%d%] sum, 2 ranks, rank %d: tensor: element")
  end)

  it("finds what only async calls show", function()
    local B = {}
    function B:open() self._busy = 0 end
    function B:allreduce(tensors, opts)
      self._busy = self._busy + 1
      if self._busy > 1 then error "one at a time" end
      return self.inner:allreduce(tensors, opts):map(function() self._busy = self._busy - 1 end)
    end
    local r = fails(B, "in_flight f32%[%d%], 1 rank, rank 0: raises: .*one at a time")
    for _, failure in ipairs(r.failures) do assert.equal("in_flight", failure.case) end
  end)

  it("finds a wrong return", function()
    fails({ barrier = function() end }, "barrier, 1 rank, rank 0: raises: .*must return a Work.*is a 'return' missing")
    fails({ barrier = function() return 7 end }, "barrier, 1 rank, rank 0: raises: .*must return a Work.*got number")
  end)

  it("tells errors with their traceback", function()
    fails({ reduce = function() error "told you" end },
      "reduce f32%[0%] sum, 1 rank, rank 0: raises: .*told you.*\n +stack traceback:.*check_backend_spec")
  end)

  it("finds ranks that leave one out", function()
    fails({
      barrier = function(self, opts)
        if self.rank == 1 then return true end
        return self.inner:barrier(opts)
      end,
    }, "barrier, 2 ranks: raises: deadlock: rank 0 waits in barrier #1 on world for rank 1; rank 1 has ended")
  end)

  it("finds ranks that call different operations", function()
    fails({
      barrier = function(self, opts)
        return self.rank == 1 and self.inner:allreduce(perigee.zeros("f32", 1)) or self.inner:barrier(opts)
      end,
    }, "barrier, 2 ranks, rank %d: raises: .*called")
  end)

  it("finds a layer that mixes up subgroups with the world", function()
    fails({
      allreduce = function(self, tensors, opts)
        if #self.members > 1 and self.members[1] ~= 0 then return true end
        return self.inner:allreduce(tensors, opts)
      end,
    }, "subgroups f32%[%d%], 4 ranks, rank %d: split: element", { ops = { "subgroups" }, sizes = { 4 } })
  end)

  it("raises its verdict, unless told not to", function()
    local ok, e = pcall(testing.check_backend, { name = "silent", barrier = function() end }, { ops = { "barrier" } })
    assert.is_false(ok)
    assert.matches("backend 'silent': 8 of 8 cases failed", e)
    assert.matches("barrier: 5 more", e)
  end)

  it("refuses wrong arguments", function()
    assert.matches("got number", tostring(select(2, pcall(testing.check_backend, 1))))
    assert.matches("unknown option 'speed'", tostring(select(2, pcall(testing.check_backend, {}, { speed = 1 }))))
    assert.matches("no case 'allred'", tostring(select(2, pcall(testing.check_backend, {}, { ops = { "allred" } }))))
  end)
end)
