-- Known values in tensors, and what a reduction of them is by its plain definition.
--
-- Values repeat with a prime period, which divides no chunk, slice or segment: a block in the wrong place is seen, and
-- a million elements are made and compared as byte strings without a loop per element.
local perigee = require "perigee"

local values = {}

values.PERIOD = 97

local INTEGERS = { i8 = true, u8 = true, i16 = true, u16 = true, i32 = true, u32 = true, i64 = true, u64 = true }
local COMPLEX = { c64 = true, c128 = true }

function values.is_integer(dtype) return INTEGERS[dtype] == true end

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

-- bool: sum is or, product is and; the rest works on 0 and 1 as it is.
local BOOL = { sum = "max", product = "min" }

--- The reduction of of_rank(r), r = 0 .. size - 1; what premul_sum multiplies with is a part of them.
function values.reduced(dtype, op, size, of_rank)
  local f = fold[dtype == "bool" and BOOL[op] or op]
  local acc = of_rank(0)
  for rank = 1, size - 1 do acc = f(acc, of_rank(rank)) end
  if op ~= "avg" then return acc end
  return INTEGERS[dtype] and acc // size or acc / size
end

--- The bytes of f(0) .. f(PERIOD - 1).
function values.period(dtype, f)
  local list = {}
  for i = 0, values.PERIOD - 1 do
    local v = f(i)
    if COMPLEX[dtype] then v = { v, v == 0 and 0 or -v } end -- no -0
    list[i + 1] = v
  end
  return perigee.tensor(dtype, list):tobytes()
end

--- n elements of a period's bytes, repeated.
function values.tensor(dtype, period, n)
  if n == 0 then return perigee.zeros(dtype, 0) end
  local size = #period // values.PERIOD
  local times = (n + values.PERIOD - 1) // values.PERIOD
  return perigee.tensor(dtype, (times == 1 and period or period:rep(times)):sub(1, n * size))
end

return values
