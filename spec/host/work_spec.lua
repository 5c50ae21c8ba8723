-- Works, callbacks and futures: order, errors, and what a callback may do.
-- luacheck: no self
local helpers = require "helpers"
local perigee = require "perigee"

local function message(f, ...) return tostring(helpers.raised(f, ...)) end

describe("map", function()
  it("gives the parent's value to f, and f's value to the one who waits", function()
    local parent = perigee.future()
    local seen
    local derived = parent:map(function(v)
      seen = v
      return v * 2
    end)
    local kept = parent:map(function() end)
    assert.equal("pending", derived:status())
    parent:set_result(21)
    assert.is_nil(seen) -- never inside the call that completes
    assert.equal(42, derived:wait(5))
    assert.equal(21, kept:wait(5))
    assert.equal(42, derived:wait())
    assert.equal(42, derived:result())
  end)

  it("chains", function()
    local parent = perigee.future()
    local last = parent
    for _ = 1, 50 do last = last:map(function(v) return v + 1 end) end
    parent:set_result(0)
    assert.equal(50, last:wait(5))
  end)

  it("works on what has ended, also not inline", function()
    local parent = perigee.future()
    parent:set_result("x")
    local called = false
    local derived = parent:map(function(v)
      called = true
      return v .. "y"
    end)
    assert.is_false(called)
    assert.equal("xy", derived:wait(5))
  end)

  it("fails with the error of f, and with the parent's error unchanged", function()
    local parent = perigee.future()
    local derived = parent:map(function() error "in f" end)
    local after = derived:map(function() error "never" end)
    parent:set_result()
    local e = helpers.raised(derived.wait, derived, 5)
    assert.equal("ELUA", e.code)
    assert.matches("work_spec.lua:%d+: in f", e.message)
    assert.matches("work_spec.lua:%d+: in ", e.traceback)
    local e2 = helpers.raised(after.wait, after, 5)
    assert.equal(e.message, e2.message)
    assert.equal("failed", after:status())
    local failed = perigee.future()
    local called = false
    local mapped = failed:map(function() called = true end)
    failed:set_error(perigee.error("ERANGE", "far", { ranks = { 2 } }))
    e = helpers.raised(mapped.wait, mapped, 5)
    assert.equal("ERANGE", e.code)
    assert.same({ 2 }, e.ranks)
    assert.is_false(called)
  end)

  it("wants a function", function()
    local parent = perigee.future()
    assert.matches("bad argument #1 to 'map' %(function expected, got nil%)", message(parent.map, parent))
    parent:set_result()
  end)
end)

describe("on_done", function()
  local report
  before_each(function()
    report = nil
    perigee.on_hook_error = function(e) report = e end
  end)
  after_each(function() perigee.on_hook_error = nil end)

  it("runs once, first registered first, with error or value", function()
    local work, order = perigee.future(), {}
    for i = 1, 5 do
      assert.equal(work, work:on_done(function(err, v) order[#order + 1] = { i, err, v } end))
    end
    work:set_result "v"
    assert.same({}, order)
    assert.is_true(perigee.step())
    assert.is_false(perigee.step())
    assert.same({ { 1, nil, "v" }, { 2, nil, "v" }, { 3, nil, "v" }, { 4, nil, "v" }, { 5, nil, "v" } }, order)
    local failed = perigee.future()
    local got
    failed:on_done(function(err, v) got = { err, v } end)
    failed:set_error "because"
    perigee.step()
    assert.equal("because", got[1].message)
    assert.is_nil(got[2])
  end)

  it("keeps the order of several works and of map", function()
    local a, b, order = perigee.future(), perigee.future(), ""
    b:on_done(function() order = order .. "b" end)
    a:on_done(function() order = order .. "a" end)
    a:map(function() order = order .. "m" end)
    b:map(function() order = order .. "n" end)
    a:set_result()
    b:set_result()
    perigee.step()
    assert.equal("ambn", order)
  end)

  it("reports errors, and the next callbacks still run", function()
    local work, ran = perigee.future(), false
    work:on_done(function() error "in hook" end)
    work:on_done(function() ran = true end)
    work:set_result()
    perigee.step()
    assert.is_true(ran)
    assert.matches("in hook", report.message)
    assert.is_string(report.traceback)
    assert.equal("done", work:status())
  end)

  it("may add callbacks, which run after those that wait", function()
    local work, order = perigee.future(), ""
    work:on_done(function()
      order = order .. "1"
      work:on_done(function() order = order .. "3" end)
    end)
    work:on_done(function() order = order .. "2" end)
    work:set_result()
    perigee.step()
    assert.equal("123", order)
  end)

  it("may not wait, but may issue work", function()
    local world = helpers.world()
    finally(helpers.close_all)
    local pending, codes, issued = perigee.future(), {}, nil
    local work = perigee.future()
    work:on_done(function()
      codes[1] = helpers.raised(pending.wait, pending).code
      codes[2] = helpers.raised(world.allreduce, world, 1).code
      issued = world:allreduce(2, { async = true })
    end)
    work:set_result()
    perigee.step()
    assert.same({ "EDEADLK", "EDEADLK" }, codes)
    assert.equal(2, issued:wait(5))
    pending:set_result()
  end)

  it("is run by a wait on anything", function()
    local world = helpers.world()
    finally(helpers.close_all)
    local work, ran = perigee.future(), false
    work:on_done(function() ran = true end)
    work:set_result()
    local other = perigee.future()
    assert.is_nil(other:wait(0.01))
    assert.is_true(ran)
    other:set_result()
    world:barrier()
  end)

  it("is run by a thread of the runtime when nobody waits", function()
    local work, ran = perigee.future(), 0
    for _ = 1, 10 do work:on_done(function() ran = ran + 1 end) end
    work:set_result()
    local deadline = perigee.clock() + 5
    while ran < 10 and perigee.clock() < deadline do perigee.sleep(0.005) end
    assert.equal(10, ran)
  end)
end)

describe("futures", function()
  it("end once", function()
    local f = perigee.future()
    assert.is_true(f:set_result(1))
    assert.is_false(f:set_result(2))
    assert.is_false(f:set_error "x")
    assert.equal(1, f:wait())
    local g = perigee.future()
    assert.is_true(g:set_error(perigee.error("ESTATE", "no")))
    assert.is_false(g:set_result(1))
    assert.equal("ESTATE", g:error().code)
    assert.equal("failed", g:status())
    assert.is_nil(f.op)
    assert.equal(0, f.seq)
  end)

  it("hold any value, or none", function()
    for _, v in ipairs { true, false, "s", 1.5, { 1 }, print } do
      local f = perigee.future()
      f:set_result(v)
      assert.equal(v, f:wait())
    end
    local f = perigee.future()
    f:set_result(nil)
    assert.is_nil(f:wait())
  end)

  it("time out", function()
    local f = perigee.future { timeout = 0.03 }
    local e = helpers.raised(f.wait, f)
    assert.equal("ETIMEDOUT", e.code)
    assert.equal("timeout", f:status())
    local g = perigee.future()
    local started = perigee.clock()
    local v, err = g:wait(0.03)
    assert.is_nil(v)
    assert.equal("ETIMEDOUT", err.code)
    assert.is_true(perigee.clock() - started < 20)
    assert.equal("pending", g:status())
    g:set_result()
  end)

  it("can be aborted", function()
    local f = perigee.future()
    assert.is_true(f:abort "enough")
    assert.equal("aborted", f:status())
    assert.matches("enough", f:error().message)
    assert.is_false(f:abort "again")
  end)

  it("cannot be completed when somebody else does", function()
    local world = helpers.world()
    finally(helpers.close_all)
    local work = world:allreduce(1, { async = true })
    assert.equal("ESTATE", helpers.raised(work.set_result, work, 1).code)
    local mapped = work:map(function() end)
    assert.equal("ESTATE", helpers.raised(mapped.set_error, mapped, "x").code)
    mapped:wait()
  end)

  it("are what an override may return", function()
    local B = perigee.backend "spec_future"
    local made
    function B:allreduce(tensors)
      made = perigee.future()
      made:on_done(function() tensors[1]:add_(1) end)
      return made
    end
    local world = helpers.world { backend = "spec_future" }
    finally(helpers.close_all)
    local work = world:allreduce(1, { async = true })
    assert.equal("pending", work:status())
    made:set_result "not this: the operation's own value"
    assert.equal(2, work:wait(5))
    work = world:allreduce(1, { async = true, timeout = 0.05 })
    assert.equal("ETIMEDOUT", helpers.raised(work.wait, work).code)
    local e = helpers.raised(world.allreduce, world, 1, { timeout = 0.05 })
    assert.equal("ETIMEDOUT", e.code)
    assert.equal("allreduce", e.op)
    work = world:allreduce(1, { async = true })
    world:abort "stop"
    assert.equal("EABORTED", helpers.raised(work.wait, work).code)
    work = world:allreduce(1, { async = true })
    world:close()
    assert.equal("ECLOSED", helpers.raised(work.wait, work).code)
  end)
end)

describe("waiting for several", function()
  it("waits for all", function()
    local list = {}
    for i = 1, 5 do list[i] = perigee.future() end
    local _, err = perigee.wait_all(list, 0.02)
    assert.equal("ETIMEDOUT", err.code)
    for i = 1, 5 do list[i]:set_result(i) end
    assert.is_true(perigee.wait_all(list))
    list[6] = perigee.future()
    list[6]:set_error "six"
    assert.matches("six", message(perigee.wait_all, list))
    assert.is_true(perigee.wait_all {})
  end)

  it("waits for any", function()
    local a, b, c = perigee.future(), perigee.future(), perigee.future()
    local _, err = perigee.wait_any({ a, b, c }, 0.02)
    assert.equal("ETIMEDOUT", err.code)
    local mapped = b:map(function(v) return v end)
    b:set_result "b"
    local i, work = perigee.wait_any { a, mapped, c }
    assert.equal(2, i)
    assert.equal("b", work:wait())
    c:set_error "bad"
    i, work = perigee.wait_any { a, c }
    assert.equal(2, i)
    assert.equal("failed", work:status())
    a:set_result()
    assert.matches("list is empty", message(perigee.wait_any, {}))
    assert.matches("element 1 of the list is a number", message(perigee.wait_any, { 5 }))
  end)
end)

describe("custom reduce ops", function()
  after_each(helpers.close_all)

  it("are objects with a name", function()
    local op = perigee.op { name = "absmax", reduce = function(acc, x) acc:abs_():max_(x:abs()) end,
      commutative = true }
    assert.equal("absmax", op.name)
    assert.is_true(op.commutative)
    assert.matches("absmax", tostring(op))
    local world = helpers.world()
    local t = perigee.tensor("f32", { 1, -2 })
    assert.is_true(rawequal(t, world:allreduce(t, { op = op })))
    assert.equal(2, world:allreduce(2, { op = op }))
  end)

  it("are checked", function()
    assert.matches("table {name =, reduce =} expected, got nil", message(perigee.op))
    assert.matches("unknown option 'reduc' %(did you mean 'reduce'%?%)",
      message(perigee.op, { name = "x", reduc = print }))
    assert.matches("field 'name'", message(perigee.op, { reduce = print }))
    assert.matches("field 'reduce': function%(acc, x%) expected, got nil", message(perigee.op, { name = "x" }))
  end)

  it("reach an override as the same operation", function()
    local op = perigee.op { name = "first", reduce = function() end }
    local seen
    local B = perigee.backend "spec_custom"
    function B:allreduce(tensors, opts)
      seen = opts.op
      return self.inner:allreduce(tensors, opts)
    end
    local world = helpers.world { backend = "spec_custom" }
    world:allreduce(1, { op = op })
    assert.equal("first", seen.name)
    world:allreduce(1, { op = seen })
    assert.equal("first", seen.name)
  end)
end)
