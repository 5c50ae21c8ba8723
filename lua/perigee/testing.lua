-- Worlds of several ranks inside one process, for tests: perigee.testing.ranks (threads), sim (coroutines), and
-- check_backend, which compares a backend with the definition of every operation.
local perigee = require "perigee"
local blame = require "perigee.sim.blame"
local native = perigee._testing

local testing = {}

local GRACE = 2 -- seconds that ranks get to come out of aborted operations

local function check_opts(opts, known, name)
  if opts == nil then return {} end
  if type(opts) ~= "table" then
    error(perigee.error("EINVAL", ("bad argument #3 to '%s' (options table expected, got %s)"):format(
      name, type(opts))), 3)
  end
  for key in pairs(opts) do
    if not known[key] then
      error(perigee.error("EINVAL", ("bad argument #3 to '%s' (unknown option '%s')"):format(name, tostring(key))), 3)
    end
  end
  return opts
end

local function list_of(state, n, wanted)
  local list = {}
  for i = 1, n do
    if state[i] == wanted then list[#list + 1] = i - 1 end
  end
  return list
end

local RANKS_OPTS = { timeout = true, backend = true, name = true, options = true }

--- n ranks as OS threads of this Lua state; see meta.lua.
function testing.ranks(n, fn, opts)
  if math.type(n) ~= "integer" or n < 1 then
    error(perigee.error("EINVAL", "bad argument #1 to 'ranks' (a number of ranks expected)"), 2)
  end
  if type(fn) ~= "function" then
    error(perigee.error("EINVAL", "bad argument #2 to 'ranks' (function expected, got " .. type(fn) .. ")"), 2)
  end
  opts = check_opts(opts, RANKS_OPTS, "ranks")
  local seconds = opts.timeout or 30
  local backend = opts.backend and require "perigee.sim.layers".register(opts.backend, "native")
  local groups = native.groups(n, backend, opts.name, seconds, opts.options)
  local results, state = { n = n }, {}
  local failed, first, culprit, trace = false, nil, nil, nil
  local run, started

  -- On the rank's thread. All ranks take turns under one mutex: the first to come here is the first cause.
  local function body(i)
    local handler, traceback = blame.handler()
    local ok, value = xpcall(fn, handler, groups[i])
    if ok then
      results[i], state[i] = value, "done"
      return
    end
    state[i] = "failed"
    if failed then return end
    failed, first, culprit, trace = true, value, i - 1, traceback()
    run:stop(blame.reason(value, i - 1))
  end

  run, started = native.start(n, body, seconds, groups)
  local late
  if started < n then
    failed, first = true, perigee.error("ELIMIT", ("only %d of %d threads could be started"):format(started, n))
    run:stop "some ranks could not be started"
  end
  if not run:wait(seconds) then
    late = list_of(state, n, nil)
    local names = table.concat(late, ",")
    if not failed then
      failed, first = true, perigee.error("ETIMEDOUT",
        ("testing.ranks: timed out after %g s, ranks %s had not returned"):format(seconds, names), { ranks = late })
    end
    run:stop(("testing.ranks: timed out after %g s"):format(seconds))
    if not run:wait(GRACE) then
      io.stderr:write(("testing.ranks: ranks %s do not end and are left behind\n"):format(
        table.concat(list_of(state, n, nil), ",")))
    end
  end
  for i = 1, n do
    local ok, err = pcall(groups[i].close, groups[i])
    if not ok and not failed then failed, first, culprit = true, err, i - 1 end
  end
  if failed then error(culprit and blame.with_rank(first, culprit, trace) or first, 0) end
  return results
end

--- n ranks as coroutines, deterministic; see perigee.sim.
function testing.sim(n, fn, opts) return require "perigee.sim".run(n, fn, opts) end

--- Compare a backend with the definition of every operation; see perigee.check.
function testing.check_backend(backend, opts) return require "perigee.check".run(backend, opts) end

return testing
