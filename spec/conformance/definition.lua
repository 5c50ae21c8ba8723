-- What every operation is by its plain definition, and inputs that tell ranks and positions apart.
--
-- Values repeat with a period (a prime), so that a million elements are made and compared as byte strings without a
-- loop per element; the period does not divide any chunk, slice or segment, so a block in the wrong place is seen.
local perigee = require "perigee"

local M = {}

M.PERIOD = 97

local INTEGERS = { i8 = true, u8 = true, i16 = true, u16 = true, i32 = true, u32 = true, i64 = true, u64 = true }
local COMPLEX = { c64 = true, c128 = true }

-- Small whole numbers: exact in every dtype, and so are sums over 8 ranks. Products stay exact because the values are
-- 1 and 2.
-- salt tells operations, and blocks for different ranks, apart.
function M.value(dtype, op, rank, salt, i)
  if dtype == "bool" then return (i * 5 + rank * 3 + salt) % 3 ~= 0 and 1 or 0 end
  if op == "product" then return 1 + (i + rank + salt) % 2 end
  local v = (i * 7 + rank * 3 + salt * 5) % 13
  if not INTEGERS[dtype] then v = v - 6 end
  return v
end

-- A dtype's bytes of the values f(0 .. PERIOD-1), made once per key: most of the suite's time would go there.
local blocks = {}
local function block_of(key, dtype, f)
  local block = blocks[key]
  if block then return block end
  local period = {}
  for i = 0, M.PERIOD - 1 do
    local v = f(i)
    if COMPLEX[dtype] then v = { v, v == 0 and 0 or -v } end -- no -0
    period[#period + 1] = v
  end
  block = perigee.tensor(dtype, period):tobytes()
  blocks[key] = block
  return block
end

-- n values of a block, repeated.
local function tensor_of(block, dtype, n)
  if n == 0 then return perigee.zeros(dtype, 0) end
  local size = #block // M.PERIOD
  local times = (n + M.PERIOD - 1) // M.PERIOD
  return perigee.tensor(dtype, (times == 1 and block or block:rep(times)):sub(1, n * size))
end

function M.input(dtype, op, rank, salt, n)
  local key = ("%s %s %d %d"):format(dtype, op == "product" and op or "", rank, salt)
  return tensor_of(block_of(key, dtype, function(i) return M.value(dtype, op, rank, salt, i) end), dtype, n)
end

local fold = {
  sum = function(a, b) return a + b end,
  product = function(a, b) return a * b end,
  min = math.min,
  max = math.max,
  band = function(a, b) return a & b end,
  bor = function(a, b) return a | b end,
  bxor = function(a, b) return a ~ b end,
}
fold.avg, fold.premul_sum = fold.sum, fold.sum

M.FACTOR = 0.5

-- Element i of the reduction over ranks 0 .. size-1.
function M.reduced(dtype, op, size, salt, i)
  local acc
  for rank = 0, size - 1 do
    local v = M.value(dtype, op, rank, salt, i)
    if op == "premul_sum" then v = v * M.FACTOR end
    acc = acc == nil and v or fold[op](acc, v)
  end
  if dtype == "bool" then
    if op == "bxor" then return acc % 2 end
    return acc ~= 0 and 1 or 0
  end
  if op ~= "avg" then return acc end
  if not INTEGERS[dtype] then return acc / size end
  return acc // size -- the values are not negative, so this is C's division
end

-- Averages need not be exact: they are rounded once, from f32 (16-bit floats) or in the dtype itself.
function M.expected(dtype, op, size, salt, n)
  local key = ("%s %s of %d %d"):format(dtype, op, size, salt)
  local function f(i) return M.reduced(dtype, op, size, salt, i) end
  if op == "avg" and (dtype == "f16" or dtype == "bf16") then
    return tensor_of(block_of(key, "f32", f), "f32", n):to(dtype)
  end
  return tensor_of(block_of(key, dtype, f), dtype, n)
end

function M.redop(op)
  return op == "premul_sum" and perigee.premul_sum(M.FACTOR) or op
end

return M
