--- What specs share: worlds of one rank, real ranks as processes, checks of errors.
local helpers = {}

helpers.bin = os.getenv "PERIGEE_BIN" or "./build/perigee"

local function quote(text) return "'" .. text:gsub("'", "'\\''") .. "'" end

local function read_all(path)
  local f = io.open(path, "rb")
  if not f then return "" end
  local text = f:read "a"
  f:close()
  return text
end

local function run_shell(command)
  local ok, how, code = os.execute(command)
  if ok then return 0 end
  return how == "signal" and 128 + code or code
end

--- The text of a function as a chunk of its own: a script in another process has none of its upvalues.
local function source_of(f)
  for i = 1, 255 do
    local name = debug.getupvalue(f, i)
    if not name then break end
    if name ~= "_ENV" then
      error(("the function uses the local '%s' of the spec: a rank in another process cannot see it"):format(name), 3)
    end
  end
  local info = debug.getinfo(f, "S")
  local lines, at = {}, 0
  for line in io.lines(info.source:sub(2)) do
    at = at + 1
    if at >= info.linedefined and at <= info.lastlinedefined then lines[#lines + 1] = line end
  end
  -- Lines of a function expression: cut what stands before `function` and after its `end`.
  local text = table.concat(lines, "\n")
  local from = text:find "function%s*%("
  for to = #text, from, -1 do
    if text:sub(to, to) == "d" and load("return " .. text:sub(from, to)) then
      return "(" .. text:sub(from, to) .. ")()"
    end
  end
  error("cannot find the function's text", 3)
end

--- Run `body` (Lua text, or a function without upvalues) on n real processes, with `perigee` loaded as a local
---and a world
-- `world` open. Every rank has its own output. opts: timeout (seconds, 30), transport ("shm", "tcp"), backend (stack),
-- world = false (no world is opened), keep_going, env (name -> value).
-- Returns { ok, code, out, ranks = { [1] = { rank = 0, out, err }, ... } }.
function helpers.ranks(n, body, opts)
  opts = opts or {}
  local pipe = assert(io.popen "mktemp -d")
  local dir = pipe:read "l"
  pipe:close()
  local script = dir .. "/script.lua"
  local text = type(body) == "function" and source_of(body) or body
  local head = 'perigee = require "perigee"; '
  if opts.world ~= false then
    head = head .. ("world = perigee.init{backend = %q}; "):format(opts.backend or "native")
  end
  local f = assert(io.open(script, "wb"))
  f:write(head, text, "\n")
  if opts.world ~= false then f:write "world:close()\n" end
  f:close()
  local timeout = opts.timeout or 30
  local env = {}
  for name, value in pairs(opts.env or {}) do env[#env + 1] = name .. "=" .. quote(tostring(value)) end
  if opts.transport then env[#env + 1] = "PERIGEE_TRANSPORT=" .. opts.transport end
  local line = "env %s timeout -k 2 %d %s run -n %d --timeout %d %s --log-dir %s %s >%s/all 2>&1 </dev/null"
  local command = line:format(
    table.concat(env, " "), timeout + 10, quote(helpers.bin), n, timeout,
    opts.keep_going and "--keep-going" or "", quote(dir .. "/log"), quote(script), quote(dir))
  local code = run_shell(command)
  local result = { ok = code == 0, code = code, out = read_all(dir .. "/all"), ranks = {} }
  for rank = 0, n - 1 do
    local log = ("%s/log/rank_%04d/"):format(dir, rank)
    result.ranks[rank + 1] = {
      rank = rank, out = read_all(log .. "stdout.log"), err = read_all(log .. "stderr.log"),
    }
  end
  os.execute("rm -rf " .. quote(dir))
  return result
end

--- As ranks, and fails the spec with everything that was printed when a rank failed.
function helpers.ranks_ok(n, body, opts)
  local result = helpers.ranks(n, body, opts)
  if not result.ok then error(("exit code %d\n%s"):format(result.code, result.out), 2) end
  return result
end

--- A world of this process alone, closed by helpers.close_all().
local worlds = {}
function helpers.world(opts)
  local perigee = require "perigee"
  local options = { rank = 0, size = 1 }
  for k, v in pairs(opts or {}) do options[k] = v end
  local world = perigee.init(options)
  worlds[#worlds + 1] = world
  return world
end

function helpers.close_all()
  for _, world in ipairs(worlds) do world:close() end
  worlds = {}
end

--- The error that f raises, or nil. f gets the arguments.
function helpers.raised(f, ...)
  local ok, e = pcall(f, ...)
  if ok then return nil end
  return e
end

--- Run a Lua script with the interpreter that runs the specs; returns exit code and output.
function helpers.lua(text, timeout)
  local path = os.tmpname()
  local f = assert(io.open(path, "wb"))
  f:write(text)
  f:close()
  local code = run_shell(("timeout -k 2 %d lua5.4 %s >%s.out 2>&1 </dev/null"):format(timeout or 20, path, path))
  local out = read_all(path .. ".out")
  os.remove(path)
  os.remove(path .. ".out")
  return code, out
end

return helpers
