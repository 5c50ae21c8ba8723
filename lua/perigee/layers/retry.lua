--- retry: submits an operation again when it failed with certain codes.
--
--   perigee.init { backend = "retry(flaky(native))", options = { retry = { times = 5, backoff = 0.05 } } }
--
-- Tensors that are changed in place get their old contents back before another attempt. The wait before attempt k is
-- backoff * factor ^ (k - 2), at most max_backoff; all attempts together have the operation's own timeout.
--
-- What can be retried is what failed on this rank alone, before its peers heard of it: refusals (ENOMEM, EAGAIN) and
-- errors of scripted layers below. A group of `native` that has failed (ETIMEDOUT of a collective, EPEERDEAD,
-- EMISMATCH) stays failed on all ranks, and another attempt fails the same way. A message that timed out does not
-- fail its group: with codes = { "ETIMEDOUT" } a receive may be tried again.
--
-- Options
--   times        attempts after the first; 3
--   codes        list of error codes; { "EAGAIN", "ENOMEM" }
--   backoff      seconds before the second attempt; 0.01
--   factor       2
--   max_backoff  seconds; 1
--   ops          list of operations; default: all
--
-- require "perigee.layers.retry".stats holds { retries, given_up } of this process.
local perigee = require "perigee"
local common = require "perigee.layers.common"

local Retry = perigee.backend "retry"

Retry.stats = { retries = 0, given_up = 0 }

-- Copies of what the operation changes in place.
local function save(row, call)
  local saved = {}
  if row["in"] == "inplace" then
    for i, t in ipairs(call.ins) do saved[i] = t:clone() end
  end
  return saved
end

local function restore(call, saved)
  for i, old in ipairs(saved) do call.ins[i]:copy_(old) end
end

local function attempt(self, row, args)
  local work = self.inner[row.name](self.inner, table.unpack(args, 1, args.n))
  local value = work:wait()
  return value, common.source_of(row, work)
end

local function make(row)
  return perigee.async(function(self, ...)
    local args, call = table.pack(...), common.call(row, ...)
    local saved, deadline = save(row, call), perigee.clock() + call.opts.timeout
    local backoff = self.backoff
    for tried = 0, self.times do
      local result = table.pack(pcall(attempt, self, row, args))
      if result[1] then return table.unpack(result, 2, result.n) end
      local e = common.as_error(result[2])
      local left = deadline - perigee.clock() - backoff
      if not self.codes[e.code] then error(e, 0) end
      if tried == self.times or left <= 0 then
        Retry.stats.given_up = Retry.stats.given_up + 1
        e.message = ("%s (attempt %d of %d)"):format(e.message, tried + 1, self.times + 1)
        error(e, 0)
      end
      perigee.sleep(backoff)
      backoff = math.min(backoff * self.factor, self.max_backoff)
      Retry.stats.retries = Retry.stats.retries + 1
      restore(call, saved)
      call.opts.timeout = left
    end
  end)
end

function Retry:open(opts)
  local options = common.options(self, opts, {
    times = 3, codes = { "table" }, backoff = 0.01, factor = 2, max_backoff = 1, ops = { "table" },
  })
  self.times, self.backoff, self.factor = options.times, options.backoff, options.factor
  self.max_backoff, self.codes = options.max_backoff, {}
  for _, code in ipairs(options.codes or { "EAGAIN", "ENOMEM" }) do
    perigee.error(code, "") -- raises for a code that does not exist
    self.codes[code] = true
  end
  common.override(self, common.op_set(self, options.ops, common.names), make)
end

return Retry
