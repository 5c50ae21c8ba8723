--- hierarchical: allreduce, broadcast and barrier over two levels.
--
--   perigee.init { backend = "hierarchical(native)", options = { hierarchical = { local_size = 8 } } }
--
-- The ranks form rows (machines, sockets): an allreduce is reduced inside each row to the row's first rank, the
-- leader, then among the leaders, and broadcast back into the rows. Rows and leaders are groups of their own, of the
-- layers below. The other operations go down unchanged; so does everything when the rows are trivial (one row, or one
-- rank in each), custom reduce operations that do not commute, and "avg" of other dtypes than f32 and f64.
--
-- One operation runs after the other, also when many are submitted asynchronously. The first failure ends the layer's
-- groups on all ranks: those that are not in the row that failed get EABORTED with the cause in its text. Sums are
-- made in another order than native's, the same on every run.
--
-- Options
--   local_size  ranks with the same (world rank // local_size) form a row; default: LOCAL_WORLD_SIZE
--   group_of    function(world_rank) -> name of its row (a string or number), the same answers on all ranks; instead of
--               local_size
local perigee = require "perigee"
local common = require "perigee.layers.common"

local Hierarchical = perigee.backend "hierarchical"

-- Rows --------------------------------------------------------------------------------------------

-- Lists of ranks, in the order of their first ranks.
local function rows_of(self, group_of)
  local rows, by_name = {}, {}
  for r = 0, self.size - 1 do
    local name = group_of(self.members[r + 1])
    if type(name) ~= "string" and type(name) ~= "number" then
      common.refuse(self, "option 'group_of': it must return a string or number, got %s for rank %d", type(name), r)
    end
    local row = by_name[name]
    if not row then
      row = {}
      by_name[name], rows[#rows + 1] = row, row
    end
    row[#row + 1] = r
  end
  return rows
end

local function grouping(self, options)
  if options.group_of then
    if options.local_size then common.refuse(self, "give either local_size or group_of") end
    return options.group_of
  end
  local size = options.local_size or tonumber(os.getenv "LOCAL_WORLD_SIZE") or 1
  if size < 1 then common.refuse(self, "option 'local_size': at least 1 expected, got %d", size) end
  return function(world_rank) return world_rank // size end
end

-- The rows, with each rank's place: [rank] = { row = index from 0, at = rank in the row }.
local function place_ranks(rows)
  local places = {}
  for i, row in ipairs(rows) do
    for at, r in ipairs(row) do places[r] = { row = i - 1, at = at - 1 } end
  end
  return places
end

-- Running -----------------------------------------------------------------------------------------

-- The error of a stage, told in ranks of this layer's group.
local function translate(self, e, group, name, seq)
  e = common.as_error(e)
  local ranks, rank_of = {}, {}
  for r, world in ipairs(self.members) do rank_of[world] = r - 1 end
  for i, r in ipairs(group and e.ranks or {}) do ranks[i] = rank_of[group:to_world(r)] end
  table.sort(ranks)
  return perigee.error(e.code, group and ("%s (ranks of %s)"):format(e.message, group.name) or e.message,
    { op = name, seq = seq, group = self.group_name, rank = self.rank, ranks = ranks, cause = e,
      traceback = e.traceback })
end

local function abort_groups(self, reason)
  for _, group in pairs { self.row, self.leaders } do
    if not group:is_closed() then group:abort(reason) end
  end
end

-- In an async function: body(stage) in its turn; stage(group, op, ...) runs one operation on a group, the options last.
local function run(self, name, opts, body)
  local seq, deadline = self.inner.seq, perigee.clock() + opts.timeout
  local release = self.line()
  local at
  local function stage(group, op, ...)
    at = group
    local options = select(-1, ...)
    options.timeout = common.time_left(deadline, op)
    group[op](group, ...)
  end
  local ok, e = pcall(body, stage)
  release()
  if ok then return end
  e = translate(self, e, at, name, seq)
  abort_groups(self, tostring(e))
  error(e, 0)
end

-- Operations --------------------------------------------------------------------------------------

-- The op of each level, and what the result is divided by; nil: not over two levels.
local function levels(op, t, contributions)
  if op == "avg" then
    if t.dtype == "f32" or t.dtype == "f64" then return "sum", "sum", contributions end
    return nil
  end
  if type(op) == "string" then return op, op end
  if op.factor then return op, "sum" end
  if op.commutative then return op, op end
end

local allreduce = perigee.async(function(self, tensors, opts)
  local first, second, divisor = levels(opts.op, tensors[1], self.size * #tensors)
  if not first then return self.inner:allreduce(tensors, opts) end
  run(self, "allreduce", opts, function(stage)
    local one = { tensors[1] }
    if #tensors == 1 then
      stage(self.row, "reduce", one, { op = first, root = 0 })
    else
      stage(self.row, "allreduce", tensors, { op = first }) -- a list is one more level of the sum
    end
    if self.leaders then
      stage(self.leaders, "allreduce", one, { op = second })
      if divisor then one[1]:div_(divisor) end
    end
    stage(self.row, "broadcast", one, { root = 0 })
    for i = 2, #tensors do tensors[i]:copy_(one[1]) end
  end)
end)

local broadcast = perigee.async(function(self, tensors, opts)
  local root, me = self.places[opts.root], self.places[self.rank]
  run(self, "broadcast", opts, function(stage)
    if me.row == root.row then stage(self.row, "broadcast", tensors, { root = root.at }) end
    if self.leaders then stage(self.leaders, "broadcast", tensors, { root = root.row }) end
    if me.row ~= root.row then stage(self.row, "broadcast", tensors, { root = 0 }) end
  end)
end)

local barrier = perigee.async(function(self, opts)
  run(self, "barrier", opts, function(stage)
    stage(self.row, "barrier", {})
    if self.leaders then stage(self.leaders, "barrier", {}) end
    stage(self.row, "barrier", {})
  end)
end)

-- Life --------------------------------------------------------------------------------------------

function Hierarchical:open(opts)
  local options = common.options(self, opts, { local_size = { "integer" }, group_of = { "function" } })
  local rows = rows_of(self, grouping(self, options))
  if #rows == 1 or #rows == self.size then return end
  self.places = place_ranks(rows)
  local leaders = {}
  for i, row in ipairs(rows) do leaders[i] = row[1] end
  local mine = rows[self.places[self.rank].row + 1]
  self.row = self.inner:subgroup(mine, { name = "row" .. mine[1] })
  if self.rank == mine[1] then self.leaders = self.inner:subgroup(leaders, { name = "leaders" }) end
  self.line = common.line()
  self.allreduce, self.broadcast, self.barrier = allreduce, broadcast, barrier
end

-- The group was aborted: what runs in the groups of this layer ends too.
function Hierarchical:abort(reason) abort_groups(self, tostring(reason)) end

function Hierarchical:close()
  for _, group in pairs { self.row, self.leaders } do group:close() end
  self.row, self.leaders = nil, nil
end

return Hierarchical
