-- Straight-line code that waits without blocking: a ring allreduce as a backend, then a script that overlaps things.
--   perigee run -n 4 examples/async.lua
local perigee = require "perigee"

-- Chunk i of n of a flat tensor: a view.
local function chunk(flat, i, n)
  local from, to = flat.numel * i // n, flat.numel * (i + 1) // n
  return flat:narrow(1, from + 1, to - from)
end

local Ring = perigee.backend "async_ring"

-- The caller gets a Work at once; the body goes on whenever what it waits for has ended, many calls side by side.
Ring.allreduce = perigee.async(function(self, tensors, opts)
  local rank, size = self.rank, self.size
  if size == 1 or #tensors > 1 or tensors[1].numel < size or opts.op ~= "sum" then
    return self.inner:allreduce(tensors, opts) -- a Work as the value: its outcome becomes this one's
  end
  local flat = tensors[1]:view(-1)
  local right, left, tag = (rank + 1) % size, (rank - 1) % size, 1000 + self.inner.seq
  local room = perigee.zeros(flat.dtype, flat.numel // size + 1)
  local function exchange(out, into)
    local received = self.inner:recv({ into }, left, { tag = tag, timeout = opts.timeout })
    self.inner:send({ out }, right, { tag = tag, timeout = opts.timeout }):wait()
    received:wait()
  end
  for step = 0, size - 2 do -- sums travel round the ring
    local sum = chunk(flat, (rank - step - 1) % size, size)
    local got = room:narrow(1, 1, sum.numel)
    exchange(chunk(flat, (rank - step) % size, size), got)
    sum:add_(got)
  end
  for step = 0, size - 2 do -- and then the results
    exchange(chunk(flat, (rank - step + 1) % size, size), chunk(flat, (rank - step) % size, size))
  end
end)

local world <close> = perigee.init { backend = "async_ring(native)" }
local n = world.size

local t = perigee.arange("f32", 10)
world:allreduce(t)
for i = 1, 10 do assert(t[i] == n * (i - 1)) end

local works, tensors = {}, {}
for i = 1, 20 do -- all in flight at once
  tensors[i] = perigee.full("f64", 100, world.rank + i)
  works[i] = world:allreduce(tensors[i], { async = true })
end
for i, work in ipairs(works) do
  work:wait(30)
  assert(tensors[i][100] == n * i + n * (n - 1) / 2)
end

-- perigee.run: main and what it starts take turns on this thread, each as if it were alone.
local greet = perigee.async(function(peer)
  local got = perigee.zeros("i32", 1)
  local receive = world:recv(got, peer, { tag = 1, async = true })
  world:send(perigee.tensor("i32", { world.rank }), peer, { tag = 1 }) -- the blocking form: only this function waits
  receive:wait()
  return got[1]
end)

local greeted = perigee.run({ timeout = 30 }, function()
  local greetings = {}
  for peer = 0, n - 1 do
    if peer ~= world.rank then greetings[#greetings + 1] = greet(peer) end
  end
  local sum = world:allreduce(1) -- meanwhile
  for _, greeting in ipairs(greetings) do assert(greeting:wait() ~= world.rank) end
  assert(sum == n)
  return #greetings
end)
world:print("sums agree on %d ranks; everybody has greeted %d others", n, greeted)
