-- Reductions whose result depends on the order of the additions. Rank 0 prints one line: a digest of all results.
-- Run by bits_spec.lua on every path; a rank with other bits than rank 0 raises.
local perigee = require "perigee"
local world <close> = perigee.init()
local rank, size = world.rank, world.size

-- Words of 32 bits are enough to see one wrong bit.
local function digest(bytes, h)
  bytes = bytes .. ("\0"):rep(-#bytes % 4)
  for i = 1, #bytes, 4 do h = (h * 31 + string.unpack("<I4", bytes, i)) & 0xffffffffffff end
  return h
end

local function filled(dtype, n, salt)
  local t = world:alloc(dtype, n) -- the memory that path symmetric is for, as good as any for the others
  local values = {}
  for i = 1, n do values[i] = 1 / (rank * 7 + 3 + (i + salt) % 101) end
  return t:copy_(perigee.tensor(dtype, values))
end

local h = 0
for _, dtype in ipairs { "f32", "f64", "bf16", "f16", "c64" } do
  for _, op in ipairs { "sum", "avg", "product" } do
    for _, n in ipairs { 1, 5, 700, 9001 } do
      if not (dtype == "c64" and op == "product") then
        local t = filled(dtype, n, 0)
        world:allreduce(t, { op = op })
        h = digest(t:tobytes(), h)
        local root = n % size
        local u = filled(dtype, n, 1)
        world:reduce(u, { root = root, op = op })
        world:broadcast(u, { root = root })
        h = digest(u:tobytes(), h)
        local all, part = filled(dtype, n * size, 2), world:alloc(dtype, n)
        world:reduce_scatter_tensor(part, all, { op = op })
        world:allgather_into_tensor(all, part)
        h = digest(all:tobytes(), h)
      end
    end
  end
end
local all = world:allgather_object(h)
for r = 1, size do assert(all[r] == all[1], ("rank %d has other bits than rank 0"):format(r - 1)) end
if rank == 0 then print(("bits %012x %s"):format(h, world.transport)) end
