-- Hooks of groups: what is told, in which order, protected how, and what hooks may do.
local helpers = require "helpers"
local perigee = require "perigee"

local function log_of(world, ...)
  local log = {}
  for _, event in ipairs { ... } do
    world:on(event, function(info) log[#log + 1] = ("%s %s#%d"):format(info.event, info.op_type, info.seq) end)
  end
  return log
end

local function quiet() perigee.on_hook_error = function() end end

describe("group:on", function()
  local world, t
  before_each(function()
    world = helpers.world()
    t = perigee.tensor("f32", { 1, 2, 3 })
  end)
  after_each(function()
    helpers.close_all()
    perigee.on_hook_error = nil
  end)

  it("tells of blocking calls and works, start before end", function()
    local log = log_of(world, "start", "done", "error")
    world:allreduce(t)
    world:broadcast(t, { async = true }):wait()
    world:barrier()
    assert.is_true(world:wait_for_pending_works())
    assert.same({ "start allreduce#1", "done allreduce#1", "start broadcast#2", "done broadcast#2",
      "start barrier#3", "done barrier#3" }, log)
  end)

  it("tells what c10d's WorkInfo tells, and more", function()
    local infos = {}
    local before = perigee.clock()
    world:on("start", function(info) infos.start = info end)
    world:on("done", function(info) infos.done = info end)
    world:allreduce(t, { async = true }):wait()
    world:wait_for_pending_works()
    local info = infos.done
    assert.equal("allreduce", info.op_type)
    assert.equal(1, info.seq)
    assert.equal(12, info.bytes)
    assert.equal("done", info.status)
    assert.equal("world", info.group)
    assert.equal(0, info.rank)
    assert.is_true(info.async)
    assert.is_nil(info.error)
    assert.is_true(info.time_started >= before and info.time_finished <= perigee.clock())
    assert.is_true(info.active_duration > 0)
    assert.near(info.time_finished - info.time_started, info.active_duration, 1e-6)
    assert.equal("pending", infos.start.status)
    assert.is_nil(infos.start.time_finished)
    assert.is_nil(infos.start.active_duration)
  end)

  it("sees only what begins after it", function()
    local log
    local work = world:allreduce(t, { async = true })
    log = log_of(world, "start", "done", "error")
    work:wait()
    world:wait_for_pending_works()
    assert.same({}, log)
  end)

  it("tells of failed operations, without changing them", function()
    local errors, calls = {}, 0
    world:on("error", function(info) errors[#errors + 1] = info end)
    world:on("done", function() calls = calls + 1 end)
    world:abort "why not"
    local e = helpers.raised(world.barrier, world)
    assert.equal("EABORTED", e.code)
    local e2 = helpers.raised(world.allreduce, world, t, { async = true })
    assert.equal("EABORTED", e2.code)
    assert.is_true(world:wait_for_pending_works())
    assert.equal(2, #errors)
    assert.equal("aborted", errors[1].status)
    assert.equal("EABORTED", errors[1].error.code)
    assert.equal("barrier", errors[1].error.op)
    assert.equal(2, errors[2].seq)
    assert.equal(0, calls)
  end)

  it("tells of calls that the group refuses, with number 0", function()
    local infos = {}
    world:on("error", function(info) infos[#infos + 1] = info end)
    local completed = 0
    world:register_on_completion_hook(function() completed = completed + 1 end)
    local e = helpers.raised(world.allgather_into_tensor, world, perigee.zeros("f32", 7), t)
    assert.equal("ESHAPE", e.code)
    world:wait_for_pending_works()
    assert.equal(1, #infos)
    assert.equal(0, infos[1].seq)
    assert.equal("failed", infos[1].status)
    assert.equal("ESHAPE", infos[1].error.code)
    assert.equal(0, completed)
  end)

  it("tells once of an operation whose override issues others", function()
    local B = perigee.backend "hooked"
    function B:allreduce(tensors, opts)
      self.inner:allreduce(tensors, opts):wait()
      return self.inner:allreduce(tensors, opts):map(function() tensors[1]:add_(1) end)
    end
    function B:broadcast() error "not this one" end -- luacheck: ignore
    function B:barrier() return { wait = function() return true end } end -- luacheck: ignore
    local layered = helpers.world { backend = "hooked(native)" }
    local log = log_of(layered, "start", "done", "error")
    layered:allreduce(t)
    layered:allreduce(t, { async = true }):wait()
    assert.is_table(helpers.raised(layered.broadcast, layered, t))
    assert.is_table(helpers.raised(layered.broadcast, layered, t, { async = true }))
    layered:barrier { async = true } -- nobody waits for it
    layered:wait_for_pending_works()
    assert.same({ "start allreduce#1", "done allreduce#1", "start allreduce#2", "done allreduce#2",
      "start broadcast#3", "error broadcast#3", "start broadcast#4", "error broadcast#4",
      "start barrier#5", "done barrier#5" }, log)
  end)

  it("tells of a work that timed out", function()
    local B = perigee.backend "never"
    local futures = {}
    function B:allreduce() -- luacheck: ignore
      futures[#futures + 1] = perigee.future()
      return futures[#futures]
    end
    local layered = helpers.world { backend = "never(native)" }
    local infos = {}
    layered:on("error", function(info) infos[#infos + 1] = info end)
    local work = layered:allreduce(t, { async = true, timeout = 0.05 })
    assert.equal("ETIMEDOUT", helpers.raised(layered.allreduce, layered, t, { timeout = 0.05 }).code)
    layered:wait_for_pending_works()
    assert.equal("timeout", work:status())
    assert.equal(2, #infos)
    for _, info in ipairs(infos) do
      assert.equal("timeout", info.status)
      assert.equal("ETIMEDOUT", info.error.code)
      assert.is_true(info.active_duration >= 0.05)
    end
  end)

  it("is never inline", function()
    local traces = {}
    world:on("start", function() traces[#traces + 1] = debug.traceback() end)
    local function submits_here() return (world:allreduce(t, { async = true })) end
    submits_here():wait()
    world:wait_for_pending_works()
    assert.equal(1, #traces)
    assert.is_nil(traces[1]:find("submits_here", 1, true))
  end)

  it("takes the same function twice, each with a handle of its own", function()
    local n = 0
    local function f() n = n + 1 end
    local a, b = world:on("done", f), world:on("done", f)
    assert.are_not.equal(a, b)
    world:barrier()
    world:wait_for_pending_works()
    assert.equal(2, n)
    a:remove()
    world:barrier()
    world:wait_for_pending_works()
    assert.equal(3, n)
    b:remove()
    a:remove()
    world:barrier()
    world:wait_for_pending_works()
    assert.equal(3, n)
    assert.equal(1, a.calls)
    assert.equal(2, b.calls)
    assert.equal("done", a.event)
    assert.equal("hook: done (removed)", tostring(a))
  end)

  it("runs any number in the order of registration", function()
    local order = {}
    for i = 1, 100 do world:on("done", function() order[#order + 1] = i end) end
    world:barrier()
    world:wait_for_pending_works()
    assert.equal(100, #order)
    for i = 1, 100 do assert.equal(i, order[i]) end
  end)

  it("may remove itself and others, and add some, while running", function()
    local log, a, b = {}, nil, nil
    a = world:on("done", function(info)
      log[#log + 1] = "a" .. info.seq
      a:remove()
      b:remove()
      world:on("done", function(i) log[#log + 1] = "c" .. i.seq end)
    end)
    b = world:on("done", function(info) log[#log + 1] = "b" .. info.seq end)
    world:barrier()
    world:wait_for_pending_works()
    world:barrier()
    world:wait_for_pending_works()
    assert.same({ "a1", "c2" }, log)
  end)

  it("may issue work, which is told of too, but not wait", function()
    local log, refused = {}, {}
    world:on("done", function(info)
      log[#log + 1] = info.op_type
      if info.op_type ~= "barrier" then return end
      refused[1] = helpers.raised(world.allreduce, world, t)
      refused[2] = helpers.raised(world.wait_for_pending_works, world)
      local work = world:broadcast(t, { async = true })
      refused[3] = not work:is_completed() and helpers.raised(work.wait, work) or { code = "EDEADLK" }
    end)
    world:barrier()
    assert.is_true(world:wait_for_pending_works(20))
    assert.same({ "barrier", "broadcast" }, log)
    for i = 1, 3 do assert.equal("EDEADLK", refused[i].code) end
    assert.truthy(refused[1].message:find("callback must not wait", 1, true))
  end)

  it("may close the group", function()
    local n = 0
    world:on("done", function()
      n = n + 1
      world:close()
    end)
    world:barrier()
    local until_ = perigee.clock() + 20
    while not world:is_closed() and perigee.clock() < until_ do perigee.sleep(0.001) end
    world:close()
    assert.equal(1, n)
    assert.equal("ECLOSED", helpers.raised(world.barrier, world).code)
    assert.equal("ECLOSED", helpers.raised(world.on, world, "done", print).code)
  end)

  it("runs what has ended when the group closes, and nothing after", function()
    local n, ends = 0, 0
    world:on("done", function() n = n + 1 end)
    world:on("error", function() ends = ends + 1 end)
    for _ = 1, 10 do world:allreduce(t, { async = true }) end
    world:close()
    assert.equal(10, n + ends)
    perigee.step()
    perigee.sleep(0.01)
    assert.equal(10, n + ends)
  end)

  it("checks its arguments", function()
    local function message(...) return helpers.raised(world.on, world, ...).message end
    assert.truthy(message("Done", print):find("did you mean 'done'", 1, true))
    assert.truthy(message("nothing like it", print):find("'stall' or 'abort' expected", 1, true))
    assert.truthy(message(3, print):find("string expected, got number", 1, true))
    assert.truthy(message("done"):find("function expected, got nil", 1, true))
    assert.truthy(message("done", {}):find("function expected, got table", 1, true))
    assert.truthy(message("done", print, { after = 1 }):find("only for 'stall'", 1, true))
    assert.equal("EINVAL", helpers.raised(world.on, world, "stall", print, { after = 0 }).code)
    assert.equal("EINVAL", helpers.raised(world.on, world, "stall", print, { later = 1 }).code)
    assert.equal("EINVAL", helpers.raised(world.on, world, "stall", print, 7).code)
    assert.equal("EINVAL", helpers.raised(world.register_on_completion_hook, world, "f").code)
  end)

  it("keeps nothing of a hook that was removed, or whose group is closed", function()
    local weak = setmetatable({}, { __mode = "v" })
    local function collected()
      world:barrier() -- what was dropped is freed by whoever enters next
      collectgarbage()
      collectgarbage()
      return weak[1] == nil
    end
    local function removed() -- a function of its own: no stale local keeps f
      world:barrier() -- frees what specs before this one left
      local refs = perigee.stats().refs
      local function f() return weak end
      weak[1] = f
      local hook = world:on("done", f)
      world:barrier()
      hook:remove()
      return refs, hook
    end
    local refs, handle = removed()
    assert.is_true(collected())
    assert.is_true(perigee.stats().refs <= refs)
    assert.equal(1, handle.calls) -- which does not keep the function
    local function closed()
      local other = perigee.init { rank = 0, size = 1 }
      local function f() return other, weak end
      weak[1] = f
      handle = other:on("done", f)
      other:barrier()
      other:close()
    end
    closed()
    assert.is_true(collected())
    assert.is_true(perigee.stats().refs <= refs)
    assert.equal(1, handle.calls)
  end)

  it("outlives the group object until the group is closed", function()
    local n = 0
    local function open_and_forget()
      local other = perigee.init { rank = 0, size = 1 }
      other:on("done", function() n = n + 1 end)
      other:on("error", function() n = n + 1 end)
      other:allreduce(t, { async = true })
    end
    open_and_forget()
    collectgarbage()
    collectgarbage() -- a thread of the library closes it
    local until_ = perigee.clock() + 20
    while n == 0 and perigee.clock() < until_ do
      perigee.step()
      perigee.sleep(0.001)
    end
    assert.equal(1, n)
  end)
end)

describe("errors of hooks", function()
  local world
  before_each(function() world = helpers.world() end)
  after_each(function()
    helpers.close_all()
    perigee.on_hook_error = nil
  end)

  it("go to perigee.on_hook_error, with a traceback, and change nothing else", function()
    local reports, n = {}, 0
    perigee.on_hook_error = function(e) reports[#reports + 1] = e end
    local hook = world:on("done", function() error "boom" end)
    world:on("done", function() n = n + 1 end)
    assert.equal(3, world:allreduce(3))
    assert.equal(3, world:allreduce(3, { async = true }):wait())
    pcall(world.wait_for_pending_works, world)
    assert.equal(2, n)
    assert.equal(2, #reports)
    assert.equal(2, hook.errors)
    assert.equal(2, hook.calls)
    assert.equal("ELUA", reports[1].code)
    assert.truthy(reports[1].message:find("boom", 1, true))
    assert.truthy(reports[1].traceback:find("hooks_spec", 1, true))
    assert.equal("allreduce", reports[1].op)
    assert.equal(1, reports[1].seq)
  end)

  it("are raised by wait_for_pending_works, once", function()
    quiet()
    world:on("done", function(info) error(perigee.error("ESTATE", "number " .. info.seq)) end)
    world:barrier()
    local e = helpers.raised(world.wait_for_pending_works, world)
    assert.equal("ESTATE", e.code)
    assert.equal("number 1", e.message)
    assert.equal(1, e.count)
    assert.is_true(world:wait_for_pending_works())
    for _ = 1, 20 do world:barrier() end
    e = helpers.raised(world.wait_for_pending_works, world)
    assert.equal(20, e.count)
    assert.equal("20 errors in hooks, the first: number 2", e.message)
    assert.equal("number 3", e.errors[2].message)
    assert.equal(16, #e.errors)
    assert.is_true(world:wait_for_pending_works())
  end)

  it("of the handler itself are survived", function()
    local n = 0
    perigee.on_hook_error = function() error "worse" end
    world:on("done", function() error "boom" end)
    world:on("done", function() n = n + 1 end)
    world:barrier()
    assert.is_table(helpers.raised(world.wait_for_pending_works, world))
    assert.equal(1, n)
  end)
end)

describe("group:wait_for_pending_works", function()
  after_each(helpers.close_all)

  it("waits for works, also without hooks", function()
    local world = helpers.world()
    local works = {}
    for i = 1, 20 do works[i] = world:allreduce(perigee.zeros("f32", 100), { async = true }) end
    assert.is_true(world:wait_for_pending_works())
    for i = 1, 20 do assert.is_true(works[i]:is_completed()) end
  end)

  it("returns nil and an error when its seconds run out", function()
    local B = perigee.backend "open_ended"
    local future
    function B:allreduce() -- luacheck: ignore
      future = perigee.future()
      return future
    end
    local world = helpers.world { backend = "open_ended(native)" }
    local n = 0
    world:on("done", function() n = n + 1 end)
    world:allreduce(1, { async = true })
    for _, seconds in ipairs { 0, 0.02 } do
      local ok, e = world:wait_for_pending_works(seconds)
      assert.is_nil(ok)
      assert.equal("ETIMEDOUT", e.code)
      assert.truthy(e.message:find("still pending", 1, true))
    end
    future:set_result()
    assert.is_true(world:wait_for_pending_works(20))
    assert.equal(1, n)
    assert.equal("EINVAL", helpers.raised(world.wait_for_pending_works, world, -1).code)
  end)
end)

describe("hooks at the end of the interpreter", function()
  it("pending ones are dropped, and nothing is left", function()
    local code, out = helpers.lua [[
      local perigee = require "perigee"
      local world = perigee.init { rank = 0, size = 1 }
      local t = perigee.zeros("f32", 10)
      for _, event in ipairs { "start", "done", "error", "stall", "abort" } do
        world:on(event, function() io.stdout:write(world:is_closed() and "after " or "") end)
      end
      world:register_on_completion_hook(function() return world end)
      for _ = 1, 50 do world:allreduce(t, { async = true }) end
      os.exit(7, true)
    ]]
    assert.equal(7, code, out)
    assert.equal("", out)
  end)

  it("the state may close with the group open and hooks that refer to it", function()
    local code, out = helpers.lua [[
      local perigee = require "perigee"
      local world = perigee.init { rank = 0, size = 1 }
      world:on("done", function() return world end)
      world:barrier()
      local other = perigee.init { rank = 0, size = 1 }
      other:on("error", function() error "never" end)
      other = nil
      collectgarbage()
      print "end"
    ]]
    assert.equal(0, code, out)
    assert.equal("end\n", out)
  end)
end)
