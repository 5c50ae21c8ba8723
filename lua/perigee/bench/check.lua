-- Known values into tensors, and counting what differs from the definition afterwards.
--
-- They are small whole numbers, exact in every dtype together with the sums over any number of ranks. Large tensors are
-- handled piece by piece.
local values_of = require "perigee.bench.values"

local check = {}

local PERIOD = values_of.PERIOD
local PIECE = PERIOD * 1024 -- elements; also bounds the memory that a check takes

-- Contribution of one rank to element i of a reduction. avg: the deviations from a common value cancel over the ranks.
local function term(redop, size, rank, salt, i)
  if redop == "product" then return rank < 6 and 1 + (i + rank + salt) % 2 or 1 end
  if redop == "avg" then
    local deviation = (size % 2 == 1 and rank == size - 1) and 0 or 1 - 2 * (rank % 2)
    return (i * 7 + salt * 5) % 13 + 1 + deviation
  end
  local room = redop == "sum" and math.max(2, math.min(13, 100 // size)) or 13
  return (i * 7 + rank * 3 + salt * 5) % room
end

-- What a rank contributes: values(i) for i = 0 .. PERIOD - 1.
function check.contribution(dtype, redop, size, rank, salt)
  return function(i)
    local v = term(redop, size, rank, salt, i)
    return dtype == "bool" and v % 2 or v
  end
end

function check.reduction(dtype, redop, size, salt)
  return function(i)
    return values_of.reduced(dtype, redop, size, function(rank)
      return check.contribution(dtype, redop, size, rank, salt)(i)
    end)
  end
end

-- A block that is only moved: tells its source and its destination.
function check.moved(dtype, source, destination)
  return function(i)
    local v = (i * 7 + source * 31 + destination * 17) % PERIOD
    return dtype == "bool" and v % 2 or v
  end
end

-- f(part of tensor, same part of the values) for all of a flat tensor
local function in_pieces(tensor, values, f)
  local n = tensor.numel
  if n == 0 then return end
  local whole = values_of.tensor(tensor.dtype, values_of.period(tensor.dtype, values), math.min(n, PIECE))
  for at = 0, n - 1, PIECE do
    local len = math.min(PIECE, n - at)
    f(tensor:narrow(1, at + 1, len), len == #whole and whole or whole:narrow(1, 1, len))
  end
end

function check.fill(tensor, values)
  in_pieces(tensor, values, function(part, known) part:copy_(known) end)
end

--- Elements that are not what they should be.
function check.wrong(tensor, values)
  local wrong = 0
  in_pieces(tensor, values, function(part, known)
    if part:equal(known) then return end
    local a, b = part:tobytes(), known:tobytes()
    local size = #a // #part
    for i = 1, #a, size do
      if a:sub(i, i + size - 1) ~= b:sub(i, i + size - 1) then wrong = wrong + 1 end
    end
  end)
  return wrong
end

return check
