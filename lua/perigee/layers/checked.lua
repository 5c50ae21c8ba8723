--- checked: before every collective all ranks compare what they are about to do, and where.
--
--   perigee.init { backend = "checked(native)" }
--
--   EMISMATCH: allreduce #3 on world: ranks call different operations:
--     ranks 0,2: allreduce f32[4] op=sum, at train.lua:12; rank 1: broadcast f32[4] root=0, at train.lua:15
--
-- c10d's TORCH_DISTRIBUTED_DEBUG=DETAIL as a layer. Compared are the operation, its number on the group, dtypes and
-- shapes of all tensors that must agree, roots, reduce operations and their factors; not timeouts, and not sizes that
-- may differ (allgather's inputs, alltoall's blocks). native's own check covers dtype and number of elements in 8
-- bytes; this one costs an allgather of 24 bytes per rank, sees shapes, and tells both sides in full with their call
-- sites. (The error's `message` is cut at 500 bytes; the text of every rank, one per line, is its `traceback`.)
--
-- After a mismatch nothing was sent: the operation fails on all ranks and the group stays usable. A rank that does not
-- call at all is what it is below: ETIMEDOUT naming the missing ranks, with the call that waited in the text.
-- Messages (send, recv) are passed on as they are.
--
-- Options
--   sites  look for the caller's file and line; true
local perigee = require "perigee"
local common = require "perigee.layers.common"

local Checked = perigee.backend "checked"

-- What must agree ----------------------------------------------------------------------------------

local function dtype_of(t) return t.dtype end

-- Tensors of a call that must be alike on all ranks, as text.
local function alike(row, call)
  local name = row.name
  if name == "allgather" then return common.tensors_text(call.outs) end
  if name == "gather" then return common.tensors_text(call.ins, dtype_of) end
  if name == "scatter" then return common.tensors_text(call.outs, dtype_of) end
  if name == "reduce_scatter" then return common.tensors_text(call.ins) end
  if name == "alltoall" or name == "alltoall_base" then return common.tensors_text(call.ins, dtype_of) end
  return common.tensors_text(call.outs) .. " < " .. common.tensors_text(call.ins)
end

local function essence(row, call)
  if row.takes.splits then return row.name .. alike(row, call) end -- the splits are each rank's own
  return row.name .. alike(row, call) .. common.options_text(row, call)
end

-- FNV-1a, 64 bits.
local function hash(text)
  local h = 0xcbf29ce484222325
  for i = 1, #text do h = (h ~ text:byte(i)) * 0x100000001b3 end
  return h
end

-- File and line of the caller: the nearest Lua function that is not a layer of ours, also behind async functions of
-- layers above.
local function call_site()
  local thread, level = coroutine.running(), 3
  while thread do
    local info = debug.getinfo(thread, level, "Sl")
    if not info then
      thread, level = perigee._testing.task_maker(thread), 0
    elseif info.currentline > 0 and not info.source:find("perigee/layers/", 1, true)
        and not info.source:find("perigee/init.lua", 1, true) then
      return (", at %s:%d"):format(info.short_src, info.currentline)
    else
      level = level + 1
    end
  end
  return ""
end

-- Comparing ---------------------------------------------------------------------------------------

-- seqs are compared where every rank knows one: a call that a layer above makes later has none.
local function differ(all, size)
  local numbered = true
  for r = 0, size - 1 do numbered = numbered and all[3 * r + 3] ~= 0 end
  for r = 1, size - 1 do
    if all[3 * r + 1] ~= all[1] or (numbered and all[3 * r + 3] ~= all[3]) then return true end
  end
  return false
end

local function padded(text, length) return perigee.tensor("u8", text .. (" "):rep(length - #text)) end

local function ranks_text(ranks)
  return (#ranks > 1 and "ranks " or "rank ") .. table.concat(ranks, ",")
end

-- Sides of the mismatch in the order of their first ranks; culprits: the ranks that are not on the largest side.
local function sides_of(texts, keys)
  local sides, by_key = {}, {}
  for r = 0, #texts - 1 do
    local side = by_key[keys[r + 1]]
    if not side then
      side = { ranks = {}, text = texts[r + 1] }
      by_key[keys[r + 1]], sides[#sides + 1] = side, side
    end
    side.ranks[#side.ranks + 1] = r
  end
  local largest = sides[1]
  for _, side in ipairs(sides) do
    if #side.ranks > #largest.ranks then largest = side end
  end
  local culprits, parts = {}, {}
  for i, side in ipairs(sides) do
    parts[i] = ("%s: %s"):format(ranks_text(side.ranks), side.text)
    if side ~= largest then table.move(side.ranks, 1, #side.ranks, #culprits + 1, culprits) end
  end
  table.sort(culprits)
  return parts, culprits
end

-- All ranks have seen the same table, so all come here.
local function mismatch(self, mine, all, opts)
  local longest, size = 0, self.size
  for r = 0, size - 1 do longest = math.max(longest, all[3 * r + 2]) end
  local gathered = perigee.zeros("u8", longest * size)
  self.inner:allgather_into_tensor(gathered, padded(mine.text, longest), opts):wait()
  local bytes, texts, keys, full = gathered:tobytes(), {}, {}, {}
  for r = 0, size - 1 do
    texts[r + 1] = bytes:sub(r * longest + 1, r * longest + all[3 * r + 2])
    keys[r + 1] = ("%d %d"):format(all[3 * r + 1], all[3 * r + 3])
    full[r + 1] = ("rank %d: %s"):format(r, texts[r + 1])
  end
  local parts, culprits = sides_of(texts, keys)
  return perigee.error("EMISMATCH", "ranks call different operations: " .. table.concat(parts, "; "), {
    op = mine.op, seq = mine.seq, group = self.group_name, rank = self.rank, ranks = culprits,
    traceback = table.concat(full, "\n"),
  })
end

local function compare(self, mine, opts)
  local all = perigee.zeros("i64", 3 * self.size)
  local check = self.inner:allgather_into_tensor(all, perigee.tensor("i64", { mine.hash, #mine.text, mine.seq }), opts)
  local ok, e = pcall(check.wait, check)
  if not ok then
    e = common.as_error(e)
    e.message = ("%s, while the ranks compared %s"):format(e.message, mine.text)
    e.op, e.seq = mine.op, mine.seq
    error(e, 0)
  end
  if differ(all, self.size) then error(mismatch(self, mine, all, opts), 0) end
end

-- The layer ---------------------------------------------------------------------------------------

local function make(row)
  return perigee.async(function(self, ...)
    local args, call = table.pack(...), common.call(row, ...)
    local seq, deadline = self.inner.seq, perigee.clock() + call.opts.timeout
    local mine = { op = row.name, seq = seq, hash = hash(essence(row, call)) }
    mine.text = ("%s (#%d)%s"):format(common.text(row, call), seq, self.sites and call_site() or "")
    local release = self._line()
    local ok, e = pcall(function()
      compare(self, mine, { timeout = common.time_left(deadline, row.name) })
      call.opts.timeout = common.time_left(deadline, row.name)
      return self.inner[row.name](self.inner, table.unpack(args, 1, args.n))
    end)
    release() -- the next may be compared while this one runs
    if not ok then error(e, 0) end
    return e
  end)
end

function Checked:open(opts)
  local options = common.options(self, opts, { sites = true })
  self.sites, self._line = options.sites, common.line()
  if self.size == 1 then return end
  local collectives = {}
  for name, row in pairs(common.rows) do collectives[name] = common.is_collective(row) or nil end
  common.override(self, collectives, make)
end

return Checked
