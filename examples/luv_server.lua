-- A server in the same loop as the collectives: rank 0 answers requests while all ranks train.
--
--   perigee run -n 4 examples/luv_server.lua [seconds]       (needs luv: apt install lua-luv)
--   curl http://127.0.0.1:PORT/                              "step 1234, loss 0.0567"
--   curl http://127.0.0.1:PORT/stop                          all ranks end after the same step
--
-- No rank ever blocks: each step is an asynchronous allreduce, whose on_done runs in luv's loop and starts the next.
local perigee = require "perigee"
local uv = require "luv"

local seconds = tonumber(arg[1]) or 2
local world <close> = perigee.init()
local handle = require "perigee.luv".attach()

-- Every rank has its own samples of the line y = 3 x - 1.
local w, b = 0.0, 0.0
local step, loss, stop = 0, 0.0, false
local over = perigee.clock() + seconds

local function gradient()
  local sums = { 0.0, 0.0, 0.0 }
  for i = 1, 64 do
    local x = math.sin(i * (world.rank + 1) + step)
    local off = w * x + b - (3 * x - 1)
    sums[1], sums[2], sums[3] = sums[1] + off * x / 64, sums[2] + off / 64, sums[3] + off * off / 64
  end
  -- the last element tells all ranks at once that rank 0 wants to end
  sums[4] = world.rank == 0 and (stop or perigee.clock() > over) and 1 or 0
  return perigee.tensor("f64", sums)
end

-- ---- the server, on rank 0 ----------------------------------------------------------------------------

local function answer(client, request)
  stop = stop or request:find "^GET /stop" ~= nil
  local body = ("step %d, loss %.6f\n"):format(step, loss)
  client:write(("HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s"):format(#body, body),
    function()
      if not client:is_closing() then client:close() end
    end)
end

local function serve()
  local server = uv.new_tcp()
  assert(server:bind("127.0.0.1", 0))
  assert(server:listen(16, function(err)
    if err then return end
    local client, request = uv.new_tcp(), ""
    server:accept(client)
    client:read_start(function(failed, data)
      request = request .. (data or "")
      if failed or not data or #request > 4096 then
        client:close()
      elseif request:find "\r\n\r\n" then
        client:read_stop()
        answer(client, request)
      end
    end)
  end))
  world:print("listening on 127.0.0.1:%d", server:getsockname().port)
end

-- ---- the training, on every rank ------------------------------------------------------------------------

local function fail(err)
  io.stderr:write(tostring(err), "\n")
  os.exit(1)
end

local function train()
  world:allreduce(gradient(), { op = "avg", async = true }):on_done(function(err, sums)
    if err then return fail(err) end
    w, b, loss, step = w - 0.01 * sums[1], b - 0.01 * sums[2], sums[3], step + 1
    if sums[4] == 0 then return train() end
    handle:stop()
    uv.walk(function(open) -- the server, and clients that say nothing
      if not open:is_closing() then open:close() end
    end)
  end)
end

if world.rank == 0 then serve() end
train()
uv.run() -- until nothing is active any more
world:barrier()
world:print("ended after step %d, loss %.6f: y = %.3f x %+.3f", step, loss, w, b)
