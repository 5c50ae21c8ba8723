-- Lua values between simulated ranks: what host/lgroup_objects.c and lgroup_reduce_object.c do for groups of C, by the
-- same operations in the same order.
local perigee = require "perigee"
local blame = require "perigee.sim.blame"

local methods = {}

local REFUSED = -1
local redop_meta = getmetatable(perigee.premul_sum(1))

-- ---- arguments ----------------------------------------------------------------------------------------------

local function bad(name, arg, fmt, ...)
  error(perigee.error("EINVAL", ("bad argument #%d to '%s' (%s)"):format(arg, name, fmt:format(...))), 0)
end

local function rank_arg(self, name, arg, v)
  local rank = type(v) == "number" and math.tointeger(v)
  if not rank or rank < 0 or rank >= self.size then
    bad(name, arg, "a rank expected, got %s", v == nil and "nothing" or tostring(v))
  end
  return rank
end

local function script_op(v)
  return type(v) == "userdata" and getmetatable(v) == redop_meta and v.reduce ~= nil
end

-- A copy of the options: { root, tag, op, timeout }.
local function options(self, name, arg, opts, known)
  local x = { root = 0, tag = 0 }
  if opts == nil then return x end
  if type(opts) ~= "table" then bad(name, arg, "options table expected, got %s", type(opts)) end
  for key, v in pairs(opts) do
    if not known[key] then bad(name, arg, "unknown option '%s'", tostring(key)) end
    x[key] = v
  end
  if math.type(x.root) ~= "integer" or x.root < 0 or x.root >= self.size then
    bad(name, arg, "root: a rank expected, got %s", tostring(x.root))
  end
  if math.type(x.tag) ~= "integer" or x.tag < 0 then
    bad(name, arg, "tag: an integer >= 0 expected, got %s", tostring(x.tag))
  end
  if x.op ~= nil and not script_op(x.op) then
    bad(name, arg, "op: perigee.op{...} expected, got %s", tostring(x.op))
  end
  return x
end

local NONE, ROOT, TAG = { timeout = true }, { timeout = true, root = true }, { timeout = true, tag = true }
local OP, OP_ROOT = { timeout = true, op = true }, { timeout = true, op = true, root = true }

local function begin(self, name)
  if self.comm.world.in_callback then
    error(perigee.error("EDEADLK", name .. ": a callback must not wait"), 0)
  end
end

-- ---- pieces -------------------------------------------------------------------------------------------------

local function bytes_of(text) return perigee.tensor("u8", text, { #text }) end

-- The encoded value, or nil and the error.
local function encoded(value)
  local ok, result = pcall(perigee.encode, value)
  if ok then return result end
  return nil, result
end

local function size_of(text) return text and #text or REFUSED end

local function check_size(self, name, size, rank)
  if size == REFUSED then
    error(perigee.error("EINVAL", ("%s: rank %d has a value that cannot be sent"):format(name, rank),
      { ranks = { rank }, rank = self.rank }), 0)
  end
end

-- k numbers of every rank, rank by rank.
local function all_numbers(self, mine, timeout)
  local all = perigee.zeros("i64", self.size * #mine)
  self:allgather_into_tensor(all, perigee.tensor("i64", mine), { timeout = timeout })
  return all
end

local function bytes_to_all(self, out, to_me, inp, from_me, timeout)
  self:alltoall_base(out, inp, to_me, from_me, { timeout = timeout })
end

local function zeros(n)
  local list = {}
  for i = 1, n do list[i] = 0 end
  return list
end

-- Raises for a value that was refused; the sizes as a list, and their sum.
local function checked(self, name, sizes)
  local list, total = {}, 0
  for i = 1, self.size do
    check_size(self, name, sizes[i], i - 1)
    list[i], total = sizes[i], total + sizes[i]
  end
  return list, total
end

-- Everybody's text on the root: a list there, nil elsewhere.
local function brought_together(self, x, text, sizes, total)
  local am_root = self.rank == x.root
  local out = perigee.zeros("u8", am_root and total or 0)
  local to_root = zeros(self.size)
  to_root[x.root + 1] = #text
  bytes_to_all(self, out, am_root and sizes or zeros(self.size), bytes_of(text), to_root, x.timeout)
  if not am_root then return nil end
  local all, list, at = out:tobytes(), {}, 1
  for i, size in ipairs(sizes) do
    list[i] = all:sub(at, at + size - 1)
    at = at + size
  end
  return list
end

-- ---- the operations -----------------------------------------------------------------------------------------

function methods:broadcast_object(value, opts)
  local name = "broadcast_object"
  begin(self, name)
  local x = options(self, name, 2, opts, ROOT)
  local am_root = self.rank == x.root
  local text, err
  if am_root then text, err = encoded(value) end
  local size = perigee.tensor("i64", { am_root and size_of(text) or 0 })
  self:broadcast(size, { root = x.root, timeout = x.timeout })
  if err then error(err, 0) end
  check_size(self, name, size[1], x.root)
  local bytes = am_root and bytes_of(text) or perigee.zeros("u8", size[1])
  self:broadcast(bytes, { root = x.root, timeout = x.timeout })
  if am_root then return value end
  return perigee.decode(bytes:tobytes())
end

function methods:allgather_object(value, opts)
  local name = "allgather_object"
  begin(self, name)
  local x = options(self, name, 2, opts, NONE)
  local text, err = encoded(value)
  local sizes = all_numbers(self, { size_of(text) }, x.timeout)
  if err then error(err, 0) end
  local outputs, values = {}, {}
  for i, size in ipairs(checked(self, name, sizes)) do outputs[i] = perigee.zeros("u8", size) end
  self:allgather(outputs, bytes_of(text), { timeout = x.timeout })
  for i, t in ipairs(outputs) do values[i] = perigee.decode(t:tobytes()) end
  return values
end

function methods:gather_object(value, opts)
  local name = "gather_object"
  begin(self, name)
  local x = options(self, name, 2, opts, ROOT)
  local text, err = encoded(value)
  local sizes = all_numbers(self, { size_of(text) }, x.timeout)
  if err then error(err, 0) end
  local texts = brought_together(self, x, text, checked(self, name, sizes))
  if not texts then return nil end
  local values = {}
  for i, t in ipairs(texts) do values[i] = perigee.decode(t) end
  return values
end

-- The encoded elements of the root's list; raises.
local function encoded_list(self, name, values)
  if type(values) ~= "table" then
    bad(name, 1, "a list with one value per rank expected, got %s", type(values))
  end
  local length = math.tointeger(rawget(values, "n")) or rawlen(values)
  if length ~= self.size then
    bad(name, 1, "a list with %d values, one per rank, expected, got %d (a list with nil needs its field n, as "
      .. "table.pack makes it)", self.size, length)
  end
  local list = {}
  for i = 1, self.size do
    local ok, text = pcall(perigee.encode, values[i])
    if not ok then
      text.message = text.message:gsub("value", ("value[%d]"):format(i), 1)
      error(text, 0)
    end
    list[i] = text
  end
  return list
end

function methods:scatter_object(values, opts)
  local name = "scatter_object"
  begin(self, name)
  local x = options(self, name, 2, opts, ROOT)
  local am_root, ok, list = self.rank == x.root, true, {}
  if am_root then ok, list = pcall(encoded_list, self, name, values) end
  local mine = zeros(self.size)
  for i = 1, am_root and self.size or 0 do mine[i] = ok and #list[i] or REFUSED end
  local table_of_sizes = perigee.tensor("i64", mine)
  self:broadcast(table_of_sizes, { root = x.root, timeout = x.timeout })
  if not ok then error(list, 0) end
  local sizes = {}
  for i = 1, self.size do
    check_size(self, name, table_of_sizes[i], x.root)
    sizes[i] = table_of_sizes[i]
  end
  local part, from_root = perigee.zeros("u8", sizes[self.rank + 1]), zeros(self.size)
  from_root[x.root + 1] = sizes[self.rank + 1]
  bytes_to_all(self, part, from_root, bytes_of(am_root and table.concat(list) or ""),
    am_root and sizes or zeros(self.size), x.timeout)
  return perigee.decode(part:tobytes())
end

function methods:send_object(value, dst, opts)
  local name = "send_object"
  begin(self, name)
  dst = rank_arg(self, name, 2, dst)
  local x = options(self, name, 3, opts, TAG)
  local text, err = encoded(value)
  local how = { tag = x.tag, timeout = x.timeout }
  self:send(perigee.tensor("i64", { size_of(text) }), dst, how)
  if err then error(err, 0) end
  self:send(bytes_of(text), dst, how)
end

function methods:recv_object(src, opts)
  local name = "recv_object"
  begin(self, name)
  src = rank_arg(self, name, 1, src)
  local x = options(self, name, 2, opts, TAG)
  local how = { tag = x.tag, timeout = x.timeout }
  local size = perigee.zeros("i64", 1)
  self:recv(size, src, how)
  check_size(self, name, size[1], src)
  local bytes = perigee.zeros("u8", size[1])
  self:recv(bytes, src, how)
  return perigee.decode(bytes:tobytes())
end

-- ---- reductions ---------------------------------------------------------------------------------------------

local function fold(op, texts)
  local acc = perigee.decode(texts[1])
  for i = 2, #texts do
    local result = op.reduce(acc, perigee.decode(texts[i]))
    if result ~= nil then
      acc = result
    elseif type(acc) ~= "table" and type(acc) ~= "userdata" then
      error(perigee.error("ELUATYPE",
        ("it must return the new value: a %s cannot be changed in place"):format(type(acc))), 0)
    end
  end
  return perigee.encode(acc)
end

-- On the root: the encoded result, or false and the encoded error.
local function folded(self, name, x, texts)
  local world = self.comm.world
  local before = world.in_callback
  world.in_callback = true
  local ok, result = xpcall(fold, function(err) return blame.object(err, nil, debug.traceback()) end, x.op, texts)
  world.in_callback = before
  if ok then return true, result end
  result.message = ("%s: reduce op '%s' failed on rank %d: %s"):format(name, x.op.name, self.rank, result.message)
  result.ranks, result.origin, result.cause = { self.rank }, self.rank, nil
  return false, perigee.encode(result)
end

local function hash_of(x)
  local hash = x.root * 2 + (x.op.commutative and 1 or 0)
  for i = 1, #x.op.name do hash = hash * 31 + x.op.name:byte(i) end
  return hash
end

local function agreed(self, name, x, columns)
  local sizes, different = {}, {}
  for i = 1, self.size do
    sizes[i] = columns[2 * i - 1]
    if columns[2 * i] ~= columns[2] then different[#different + 1] = i - 1 end
  end
  if #different > 0 then
    error(perigee.error("EMISMATCH", ("%s: op or root differ from rank 0's (op '%s', root %d on rank %d)"):format(
      name, x.op.name, x.root, self.rank), { ranks = different, rank = self.rank }), 0)
  end
  return sizes
end

local function reduce(self, name, value, opts, known, to_all)
  begin(self, name)
  local x = options(self, name, 2, opts, known)
  if not x.op then bad(name, 2, "op: perigee.op{...} expected, got nothing") end
  local text, err = encoded(value)
  local columns = all_numbers(self, { size_of(text), hash_of(x) }, x.timeout)
  if err then error(err, 0) end
  local texts = brought_together(self, x, text, checked(self, name, agreed(self, name, x, columns)))
  local ok, result = true, nil
  if texts then ok, result = folded(self, name, x, texts) end
  local head = perigee.tensor("i64", { ok and 1 or 0, result and #result or 0 })
  self:broadcast(head, { root = x.root, timeout = x.timeout })
  ok = head[1] ~= 0
  if not ok or to_all then
    local bytes = result and bytes_of(result) or perigee.zeros("u8", head[2])
    self:broadcast(bytes, { root = x.root, timeout = x.timeout })
    result = bytes:tobytes()
  end
  if not result then return nil end
  result = perigee.decode(result)
  if ok then return result end
  result.rank = self.rank
  error(result, 0)
end

function methods:allreduce_object(value, opts) return reduce(self, "allreduce_object", value, opts, OP, true) end
function methods:reduce_object(value, opts) return reduce(self, "reduce_object", value, opts, OP_ROOT, false) end

return methods
