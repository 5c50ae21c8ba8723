-- Train a classifier of handwritten digits on several processes.
--
--   perigee run -n 4 examples/digits.lua [epochs]      or, alone:  lua5.4 examples/digits.lua
--
-- Softmax regression in plain Lua on 1,438 pictures of 8x8 pixels, 359 more (every fifth) to validate. Every step the
-- ranks share one batch and add up their gradients with allreduce, through a backend written in Lua (backends/fp16.lua)
-- that sends half the bytes. All ranks make the same updates, so at the end they hold the same weights bit for bit, and
-- this is checked.

local here = arg and arg[0] and arg[0]:match("^(.*)/") or "."
package.path = here .. "/backends/?.lua;" .. package.path
-- so that plain lua5.4 finds Perigee in the source tree, built but not installed
package.path = package.path .. (";%s/../lua/?.lua;%s/../lua/?/init.lua"):format(here, here)
package.cpath = package.cpath .. (";%s/../build/lua/?.so"):format(here)
local perigee = require "perigee"
local fp16 = require "fp16"

local PIXELS, CLASSES, BATCH = 64, 10, 60
local EPOCHS = tonumber(arg and arg[1]) or 12
local RATE, WANTED = 0.25, 0.93

-- Rows as { pixel 1 .. 64 scaled to 0..1, label = 1..10 }; every fifth row validates.
local function load_digits(path)
  local train, valid, n = {}, {}, 0
  for line in io.lines(path) do
    local row = {}
    for number in line:gmatch("%d+") do row[#row + 1] = tonumber(number) / 16 end
    row.label = math.tointeger(table.remove(row) * 16) + 1
    n = n + 1
    local set = n % 5 == 0 and valid or train
    set[#set + 1] = row
  end
  return train, valid
end

-- The same shuffle on every rank: a generator of our own, seeded by the epoch.
local function shuffled(n, seed)
  local order, state = {}, seed * 2654435761 % 4294967296
  for i = 1, n do order[i] = i end
  for i = n, 2, -1 do
    state = (state * 1664525 + 1013904223) % 4294967296
    local j = state * i // 4294967296 + 1
    order[i], order[j] = order[j], order[i]
  end
  return order
end

-- weights: CLASSES rows of PIXELS + 1 numbers (the last is the bias), flat. Fills p with the class probabilities.
local function predict(weights, row, p)
  local most, at = -math.huge, 0
  for c = 1, CLASSES do
    local z = weights[at + PIXELS + 1]
    for i = 1, PIXELS do z = z + weights[at + i] * row[i] end
    p[c], at = z, at + PIXELS + 1
    if z > most then most = z end
  end
  local total, best = 0, 1
  for c = 1, CLASSES do
    p[c] = math.exp(p[c] - most)
    total = total + p[c]
    if p[c] > p[best] then best = c end
  end
  for c = 1, CLASSES do p[c] = p[c] / total end
  return best
end

-- Add the gradient of one row to g; returns its loss.
local function add_gradient(weights, row, p, g)
  predict(weights, row, p)
  local at = 0
  for c = 1, CLASSES do
    local d = p[c] - (c == row.label and 1 or 0)
    for i = 1, PIXELS do g[at + i] = g[at + i] + d * row[i] end
    at = at + PIXELS + 1
    g[at] = g[at] + d
  end
  return -math.log(math.max(p[row.label], 1e-12))
end

local world <close> = perigee.init { backend = "fp16(native)" }
local train, valid = load_digits(here .. "/data/digits.csv")
local tty = os.getenv("PERIGEE_TTY") == "1"

local N = CLASSES * (PIXELS + 1)
local weights, p, zeros = {}, {}, {}
for i = 1, N do weights[i], zeros[i] = 0.0, 0.0 end
local gradient = perigee.zeros("f32", N)        -- the tensor that goes round, every step

-- One step on this rank's share of the batch; returns the summed loss of that share and its size.
local function step(order, first, last)
  local g, loss, mine = table.move(zeros, 1, N, 1, {}), 0, 0
  for k = first + world.rank, last, world.size do
    loss = loss + add_gradient(weights, train[order[k]], p, g)
    mine = mine + 1
  end
  gradient:copy_(perigee.tensor("f32", g))
  world:allreduce(gradient)                      -- sum over the ranks, as f16
  local sum, scale = gradient:totable(), RATE / (last - first + 1)
  for i = 1, N do weights[i] = weights[i] - scale * sum[i] end
  return loss, mine
end

local function accuracy()
  local right = 0
  for i = 1 + world.rank, #valid, world.size do
    if predict(weights, valid[i], p) == valid[i].label then right = right + 1 end
  end
  return world:allreduce(right) / #valid
end

local function show(epoch, done, loss, correct)
  if world.rank ~= 0 then return end
  local text = ("epoch %2d/%d  loss %.4f%s"):format(epoch, EPOCHS, loss,
    correct and ("  validation accuracy %.2f %%"):format(100 * correct) or "")
  if not tty then
    if correct then print(text) end
    return
  end
  local width = 24
  local full = math.floor(done * width + 0.5)
  io.write("\r[", ("#"):rep(full), ("."):rep(width - full), "] ", text, correct and "\n" or "")
  io.flush()
end

local correct = 0
local clock = perigee.clock()
for epoch = 1, EPOCHS do
  local order, loss, seen = shuffled(#train, epoch), 0, 0
  for first = 1, #train, BATCH do
    local l, n = step(order, first, math.min(first + BATCH - 1, #train))
    loss, seen = loss + l, seen + n
    if tty then show(epoch, first / #train, loss / math.max(seen, 1)) end
  end
  correct = accuracy()
  show(epoch, 1, world:allreduce(loss) / #train, correct)
end
local seconds = perigee.clock() - clock

-- Every rank must hold the same weights, to the last bit.
local final = perigee.tensor("f64", weights)
local same = true
for _, theirs in ipairs(world:allgather(final)) do same = same and theirs:equal(final) end
local all_same = world:allreduce(same and 1 or 0) == world.size

if world.rank == 0 then
  print(("accuracy      %.2f %% of %d pictures (%.0f %% wanted)"):format(100 * correct, #valid, 100 * WANTED))
  print(("speed         %.0f samples/s on %d rank%s"):format(EPOCHS * #train / seconds, world.size,
    world.size > 1 and "s" or ""))
  print(("bytes saved   %d per rank (%d allreduces as f16 through %s)"):format(
    fp16.stats.bytes_saved, fp16.stats.calls, world.backend))
  print(("weights       %s"):format(all_same and "bit-identical on all ranks" or "DIFFER between ranks"))
end
if not all_same then error("the ranks do not hold the same weights", 0) end
if correct < WANTED then error(("accuracy %.4f is below %.2f"):format(correct, WANTED), 0) end
