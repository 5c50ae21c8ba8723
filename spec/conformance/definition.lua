-- What every operation is by its plain definition, and inputs that tell ranks and positions apart.
local values = require "perigee.bench.values"
local perigee = require "perigee"

local M = {}

-- Small whole numbers: exact in every dtype, and so are sums over 8 ranks. Products stay exact because the values are
-- 1 and 2.
-- salt tells operations, and blocks for different ranks, apart.
function M.value(dtype, op, rank, salt, i)
  if dtype == "bool" then return (i * 5 + rank * 3 + salt) % 3 ~= 0 and 1 or 0 end
  if op == "product" then return 1 + (i + rank + salt) % 2 end
  local v = (i * 7 + rank * 3 + salt * 5) % 13
  if not values.is_integer(dtype) then v = v - 6 end
  return v
end

-- Periods are made once per key: most of the suite's time would go there.
local periods = {}
local function tensor_of(key, dtype, f, n)
  periods[key] = periods[key] or values.period(dtype, f)
  return values.tensor(dtype, periods[key], n)
end

function M.input(dtype, op, rank, salt, n)
  local key = ("%s %s %d %d"):format(dtype, op == "product" and op or "", rank, salt)
  return tensor_of(key, dtype, function(i) return M.value(dtype, op, rank, salt, i) end, n)
end

M.FACTOR = 0.5

-- Element i of the reduction over ranks 0 .. size-1.
function M.reduced(dtype, op, size, salt, i)
  return values.reduced(dtype, op, size, function(rank)
    return M.value(dtype, op, rank, salt, i) * (op == "premul_sum" and M.FACTOR or 1)
  end)
end

-- Averages need not be exact: they are rounded once, from f32 (16-bit floats) or in the dtype itself.
function M.expected(dtype, op, size, salt, n)
  local key = ("%s %s of %d %d"):format(dtype, op, size, salt)
  local function f(i) return M.reduced(dtype, op, size, salt, i) end
  if op == "avg" and (dtype == "f16" or dtype == "bf16") then
    return tensor_of(key, "f32", f, n):to(dtype)
  end
  return tensor_of(key, dtype, f, n)
end

function M.redop(op)
  return op == "premul_sum" and perigee.premul_sum(M.FACTOR) or op
end

return M
