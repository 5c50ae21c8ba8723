---@meta perigee
-- The Lua API of Perigee: types and documentation for editors (LuaCATS). This file is never loaded.
-- Ranks count from 0, Lua lists and tensor elements from 1; times are seconds.

-- luacheck: ignore 241 212 311

---@class perigee
---@field version string # "0.1.0"
---@field dtypes string[] # names of all dtypes
---@field store perigee.stores
---@field on_hook_error? fun(e: perigee.Error) # called with errors of callbacks and hooks; without it they are printed
---as warnings
local perigee = {}

---@alias perigee.Dtype "f16"|"bf16"|"f32"|"f64"|"i8"|"u8"|"i16"|"u16"|"i32"|"u32"|"i64"|"u64"|"bool"|"c64"|"c128"
---@alias perigee.Scalar number|boolean|number[] # {re, im} for complex dtypes
---@alias perigee.Reduce "sum"|"avg"|"product"|"min"|"max"|"band"|"bor"|"bxor"|perigee.ReduceOp
---@alias perigee.Value perigee.Tensor|perigee.Tensor[]|number # what allreduce, broadcast and reduce take

-- Worlds ------------------------------------------------------------------------------------------

---@class perigee.InitOptions
---@field backend? string # stack of layers, "log(fp16(native))"; default PERIGEE_BACKEND or "native"
---@field rank? integer # with size; default: from the environment of perigee run, torchrun, mpirun or srun, else 0 of 1
---@field size? integer
---@field store? perigee.Store # where ranks meet; default: from the environment; not needed for size 1
---@field timeout? number # default timeout of operations; 1800
---@field init_timeout? number # of this call; 300
---@field name? string # default "world"
---@field options? perigee.LayerOptions # what layers of the stack are opened with; subgroups and splits inherit it
---@field tuning? string # rules before those of the environment, "allreduce/shm:64k-:twoshot"; the same on all ranks

---Options of layers, by their names in the stack. Layers of one's own get theirs in `open`; those that come with
---Perigee need no require, and each describes itself in lua/perigee/layers/<name>.lua.
---@class perigee.LayerOptions
---@field log? {level?: "all"|"error"|"start", to?: (fun(line: string, event: table))|file*, ops?: string[]}
---@field fp16? {feedback?: boolean, min_bytes?: integer, ops?: string[]}
---@field bf16? {feedback?: boolean, min_bytes?: integer, ops?: string[]}
---@field topk? {ratio?: number, feedback?: boolean, min_numel?: integer}
---@field hierarchical? {local_size?: integer, group_of?: fun(world_rank: integer): string|number}
---@field checked? {sites?: boolean}
---@field fault? {rules?: table[], seed?: integer}
---@field retry? {times?: integer, codes?: string[], backoff?: number, factor?: number, max_backoff?: number,
---ops?: string[]}
---@field record? {dir?: string, data?: "outputs"|"all"|"none", ops?: string[]}
---@field replay? {dir?: string, verify?: boolean, ops?: string[]}
---@field [string] table

---Join the world: waits for all ranks. May be called again, each call is a new world.
---@param opts? perigee.InitOptions
---@return perigee.Group
function perigee.init(opts) end

---Make a backend and register it by name; methods are then added to the table. See perigee.Backend.
---@param name string # letters, digits, '_' and '-'
---@param opts? {inner?: string|false} # the stack below when the stack string names none; default "native", false
---for none
---@return perigee.Backend
function perigee.backend(name, opts) end

---Load a backend from a file: a C plug-in by name ("count": perigee_count.so in the folders of PERIGEE_BACKEND_PATH,
---then in the installed one) or by path, or a file of Lua text ("my.lua") that returns a backend table or calls
---perigee.backend. Stack strings find plug-ins by themselves. Other threads run Lua meanwhile.
---Raises ENOENT, EINVAL (no plug-in), EVERSION, or what the file raised.
---@param what string # a name, a path with '/' that ends in perigee_<name>.so, or a path that ends in .lua
---@param name? string # of a Lua file: the backend's name; default: the file's
---@return string name # for stack strings
function perigee.load_backend(what, name) end

---Get and set how long one override or one callback may run Lua; waiting for works does not count. One that runs longer
---is stopped: ETIMEDOUT is raised in it, saying where it was; after 50 ms for cleaning up it is raised again at every
---instruction. C functions cannot be stopped. Without a limit an override is stopped 150 ms after the deadline of its
---operation. For this interpreter; coroutine.resume and coroutine.wrap are replaced by equals that can be stopped.
---@param seconds? number|false # false: no limit; nil: leave as it is
---@return number|false before # the limit so far
function perigee.time_limit(seconds) end

---What stands below a backend when a stack string names nothing: for tools that take stack strings apart.
---@param name string
---@return string|false|nil inner # false for a bottom; nil when there is no such backend
---@return boolean? foreign # a Lua table of another interpreter
function perigee.backend_inner(name) end

-- Tensors -----------------------------------------------------------------------------------------

---A tensor from nested tables, from numbers, or from bytes in memory order.
---@param dtype perigee.Dtype
---@param data table|string|number
---@param shape? integer[]|number # with a table or bytes: the shape; with a number: the next number
---@param ... number
---@return perigee.Tensor
function perigee.tensor(dtype, data, shape, ...) end

---@param dtype perigee.Dtype
---@param ... integer|integer[] # shape
---@return perigee.Tensor
function perigee.zeros(dtype, ...) end

---@param dtype perigee.Dtype
---@param ... integer|integer[] # shape
---@return perigee.Tensor
function perigee.ones(dtype, ...) end

---@param dtype perigee.Dtype
---@param shape integer|integer[]
---@param value perigee.Scalar
---@return perigee.Tensor
function perigee.full(dtype, shape, value) end

---start, start + step, ... below stop. arange(dtype, n) counts 0 .. n - 1.
---@param dtype perigee.Dtype
---@param start number
---@param stop? number
---@param step? number
---@return perigee.Tensor
function perigee.arange(dtype, start, stop, step) end

---Write a tensor as a .npy file (format 1.0, C order); the file appears whole or not at all.
---@param path string
---@param tensor perigee.Tensor
function perigee.save_npy(path, tensor) end

---@param path string
---@return perigee.Tensor
function perigee.load_npy(path) end

---@class perigee.Tensor
---@field dtype perigee.Dtype
---@field shape integer[]
---@field ndim integer
---@field numel integer # also #t
---@field nbytes integer
---@field [integer] perigee.Scalar # element in row-major order, nil outside
local Tensor = {}

---Element by its indices, or by one index in row-major order. ERANGE outside.
---@param ... integer
---@return perigee.Scalar
function Tensor:get(...) end

---t:set(i, ..., value)
---@param ... any
---@return perigee.Tensor self
function Tensor:set(...) end

---Elements start .. start + length - 1 of dimension dim: a view.
---@param dim integer # from 1
---@param start integer # from 1
---@param length integer
---@return perigee.Tensor
function Tensor:narrow(dim, start, length) end

---Same elements in another shape (one extent may be -1): a view. The tensor must be contiguous.
---@param ... integer|integer[]
---@return perigee.Tensor
function Tensor:view(...) end

---As view, but copies a tensor that is not contiguous.
---@param ... integer|integer[]
---@return perigee.Tensor
function Tensor:reshape(...) end

---@return perigee.Tensor # the same elements in row-major order; no copy when they are already
function Tensor:contiguous() end

---@return boolean
function Tensor:is_contiguous() end

---@return perigee.Tensor # a copy
function Tensor:clone() end

---A copy in another dtype: floats to integers truncate and saturate, to 16-bit floats round to nearest even.
---@param dtype perigee.Dtype
---@return perigee.Tensor
function Tensor:to(dtype) end

---@param src perigee.Tensor # same shape, any dtype
---@return perigee.Tensor self
function Tensor:copy_(src) end

---@param value perigee.Scalar
---@return perigee.Tensor self
function Tensor:fill_(value) end

---@return perigee.Tensor self
function Tensor:zero_() end

---@param x perigee.Tensor|number
---@return perigee.Tensor self
function Tensor:add_(x) end

---@param x perigee.Tensor|number
---@return perigee.Tensor self
function Tensor:sub_(x) end

---@param x perigee.Tensor|number
---@return perigee.Tensor self
function Tensor:mul_(x) end

---Integers truncate toward zero; an integer 0 to divide by is EINVAL.
---@param x perigee.Tensor|number
---@return perigee.Tensor self
function Tensor:div_(x) end

---Elementwise maximum.
---@param x perigee.Tensor|number
---@return perigee.Tensor self
function Tensor:max_(x) end

---Elementwise minimum.
---@param x perigee.Tensor|number
---@return perigee.Tensor self
function Tensor:min_(x) end

---self = self + alpha * x
---@param alpha number
---@param x perigee.Tensor
---@return perigee.Tensor self
function Tensor:axpy_(alpha, x) end

---@return perigee.Tensor self
function Tensor:abs_() end

---@return perigee.Tensor # a new tensor
function Tensor:abs() end

---@return perigee.Scalar
function Tensor:sum() end

---@return number
function Tensor:mean() end

---@return number # Euclidean norm
function Tensor:norm() end

---@return perigee.Scalar
function Tensor:min() end

---@return perigee.Scalar
function Tensor:max() end

---@param other perigee.Tensor
---@return boolean # same dtype, shape and bits
function Tensor:equal(other) end

---@param other perigee.Tensor
---@param rtol? number # 1e-5
---@param atol? number # 1e-8
---@return boolean
function Tensor:allclose(other, rtol, atol) end

---@return table|perigee.Scalar # nested tables; the element itself when there are no dimensions
function Tensor:totable() end

---@return string # the elements' memory, row-major
function Tensor:tobytes() end

---What stands for these elements as a key of tables with weak keys: the same for every object of them, as long as
---their memory lives.
---@return table
function Tensor:key() end

-- Reduce operations -------------------------------------------------------------------------------

---@class perigee.ReduceOp
---@field name string
---@field factor? number # premul_sum
---@field commutative boolean
---@field reduce? fun(acc: any, x: any): any # what perigee.op was given: an override may call it
local ReduceOp = {}

---A sum of contributions that are each multiplied by factor first.
---@param factor number
---@return perigee.ReduceOp
function perigee.premul_sum(factor) end

---A reduce operation in Lua, for tensors and for any value that perigee.encode takes (allreduce_object).
---On tensors reduce(acc, x) changes acc in place (or returns a tensor); it is called per chunk, on every rank, always
---in rank order, with views that are valid only in the call. On other values it returns the new value, or nothing when
---it has changed acc in place. The name is compared across ranks.
---@param def {name: string, reduce: (fun(acc: any, x: any): any), commutative?: boolean}
---@return perigee.ReduceOp
function perigee.op(def) end

-- Errors ------------------------------------------------------------------------------------------

---A rank that only gives (the root of a broadcast or scatter, the others of a reduce or gather) may return before the
---others have come: what is found to be wrong after that, its next operation raises.
---
---Everything the module raises. tostring(e) is one line: "allreduce #42 on world: timed out after 5.0 s, missing
---ranks 1,3 (rank 0)".
---@class perigee.Error
---@field code string # "ETIMEDOUT", "EMISMATCH", "EPEERDEAD", "ELUA", ...
---@field message string
---@field op? string
---@field seq? integer
---@field group? string
---@field rank? integer # who reports
---@field origin? integer # rank that saw the first cause
---@field ranks integer[] # the culprits
---@field cause? any
---@field traceback? string

---@param code string
---@param message string
---@param fields? table # copied into the object
---@return perigee.Error
function perigee.error(code, message, fields) end

---A value as bytes: nil, booleans, numbers, strings, tables of these (trees: what is reached twice is copied twice),
---tensors, error objects. Refuses the rest and says where: "value.a[3]: function", "value.b: a table with a metatable".
---Tables nest at most 100 deep and have at most 2^26 entries together; the bytes are at most 1 GiB.
---@param value any
---@return string
function perigee.encode(value) end

---The value of bytes made by encode. Never runs anything they contain; EPROTO for bytes that are malformed.
---@param bytes string
---@return any
function perigee.decode(bytes) end

-- Works -------------------------------------------------------------------------------------------

---An operation in flight, and the future of its value.
---@class perigee.Work
---@field op? string
---@field seq integer
local Work = {}

---Wait until it has ended. Raises the error of a work that failed. nil and an error when only `seconds` ran out:
---it stays pending.
---@param seconds? number # 0 looks once; default: until the work ends by its own deadline
---@return any value
---@return any err_or_source # the source rank of recv_anysource
function Work:wait(seconds) end

---@return "pending"|"done"|"failed"|"timeout"|"aborted"
function Work:status() end

---@return boolean # it has ended, well or not
function Work:is_completed() end

---@return perigee.Error? # nil while pending and when done
function Work:error() end

---The value, without waiting: ESTATE while pending, raises when it failed.
---@return any
function Work:result() end

---@return integer # of a receive that is done
function Work:source_rank() end

---End a pending work with EABORTED; the group of an operation that runs natively is aborted with it.
---@param reason? string
---@return boolean # false when it had ended
function Work:abort(reason) end

---A new work that ends after f(value) has run: with what f returns, or this work's value when that is nil. An
---error in f fails it; when
---this work fails, f is not called and the new work fails with the same error. f runs later, never inside the
---call that completes.
---@param f fun(value: any): any
---@return perigee.Work
function Work:map(f) end

---Call f(err, value) once, when the work has ended: later, in the order of registration. f must not wait; it may
---issue work.
---@param f fun(err: perigee.Error?, value: any)
---@return perigee.Work self
function Work:on_done(f) end

---Of works made by perigee.future: end it with a value. False when it had ended.
---@param value? any
---@param source? integer # the rank a receive came from
---@return boolean
function Work:set_result(value, source) end

---Of works made by perigee.future: end it with an error object, or anything that has a text.
---@param err any
---@return boolean
function Work:set_error(err) end

---A pending work that a script completes.
---@param opts? {timeout?: number}
---@return perigee.Work
function perigee.future(opts) end

---Index and work of one that has ended; nil and an error when the seconds ran out.
---@param works perigee.Work[]
---@param seconds? number
---@return integer?
---@return perigee.Work|perigee.Error
function perigee.wait_any(works, seconds) end

---true when all are done; raises the first error; nil and an error when the seconds ran out.
---@param works perigee.Work[]
---@param seconds? number
---@return boolean?
---@return perigee.Error?
function perigee.wait_all(works, seconds) end

-- Straight-line functions -----------------------------------------------------------------------

---@class perigee.AsyncOptions
---@field ordered? boolean # calls with the same first argument (self) run one after the other, in their order

---f as a function that returns a Work at once. f runs as a coroutine, at once up to its first wait; in it work:wait,
---wait_any, wait_all, perigee.sleep and the blocking operations of groups let others run instead of blocking, and it
---goes on, on whatever thread drives the interpreter, when what it waits for has ended. What f returns first is the
---Work's value (a second integer: the source of a receive; a Work: its outcome); what it raises fails the Work.
---
---As a method of a backend it is an override, whose value nobody looks at. Many calls of it may be in flight. One that
---issues collectives after a wait wants `ordered`: when each call goes on depends on timing, and ranks must issue
---collectives in one order. When the caller of the operation waits anyway, waits for native works block right there.
---
---Ending the Work (abort, its timeout, the group's close) raises that error in the wait that f is in, once. Where Lua
---cannot yield (comparators, gsub, metamethods called from C) and in coroutines of the script's own, generators for
---instance, waits block. A yield of f itself that is no wait is an error. Objects, stores and splits block.
---@param f fun(...): any
---@param opts? perigee.AsyncOptions
---@return fun(...): perigee.Work
function perigee.async(f, opts) end

---@class perigee.RunOptions
---@field timeout? number # of the whole run: ETIMEDOUT, raised in all waits, then by run

---Run main(...) as an async function, and on this thread it and all async functions that it called (they theirs, ...)
---until they have ended; returns what main returned. When main fails the others are told by ECANCELED in their waits,
---and closed if they have not ended a second later. An error of a task whose Work nobody asked for is raised as well.
---EDEADLK, with the places that wait, when nothing in this interpreter can go on. Not inside async functions.
---@param opts perigee.RunOptions|fun(...): any # options may be left out
---@param main any
---@param ... any
---@return any ...
function perigee.run(opts, main, ...) end

---Run the callbacks that are ready, on this thread: 1000 at most. When none is, wait up to the seconds for one.
---@param seconds? number # 0
---@return boolean # whether there were any
---@return integer # how many ran
function perigee.step(seconds) end

---A file descriptor that is readable while perigee.step() has something to do: for loops of others (luv: see
---perigee.luv; cqueues; poll). From now on callbacks run in step, and in threads that wait, and on no thread of
---the runtime's own. pollfd(false) ends that. One descriptor per interpreter; only poll it. Operations need no
---driving: they progress by themselves.
---@param polled? boolean # true
---@return integer? fd
function perigee.pollfd(polled) end

---When step wants to be called whatever the descriptor says.
---@return number? seconds # nil: never
function perigee.timeout() end

---@return number # seconds of a clock that never jumps
function perigee.clock() end

---Sleep; other threads run Lua meanwhile, and in an async function its interpreter's other tasks.
---@param seconds number
function perigee.sleep(seconds) end

---@return {name: string, aliases: string, out: string, ["in"]: string, takes: table<string, true>}[] # the
---operation table
function perigee.ops() end

---@return {refs: integer, threads: integer, waits: integer, ready: integer} # what the interpreter holds
function perigee.stats() end

-- Groups ------------------------------------------------------------------------------------------

---@class perigee.Options
---@field async? boolean # return a Work at once
---@field timeout? number # math.huge: none

---@class perigee.ReduceOptions: perigee.Options
---@field op? perigee.Reduce # default "sum"

---@class perigee.RootOptions: perigee.Options
---@field root? integer # default 0

---@class perigee.ReduceRootOptions: perigee.ReduceOptions
---@field root? integer

---@class perigee.TagOptions: perigee.Options
---@field tag? integer # default 0

---@class perigee.SplitsOptions: perigee.Options
---@field output_splits? integer[] # rows from each rank
---@field input_splits? integer[] # rows for each rank

---A group of ranks. Every rank issues its collectives in the same order. Every operation blocks and returns its
---value, or returns a Work
---with async = true; failures are raised as perigee.Error. Numbers travel as f64 (as i64 for band, bor, bxor).
---@class perigee.Group
---@field rank integer
---@field size integer
---@field name string
---@field backend string # "fp16(native)"
---@field transport string # "shm", "tcp", "self", or "" when the bottom is not native
---@field seq integer # operations accepted so far
---@field timeout number
---@field store? perigee.Store # the group's own, prefixed
local Group = {}

---@generic T: perigee.Value
---@param value T # changed in place
---@param opts? perigee.ReduceOptions
---@return T|perigee.Work
function Group:allreduce(value, opts) end

---@param tensors perigee.Tensor[]
---@param opts? perigee.ReduceOptions
---@return perigee.Tensor[]|perigee.Work
function Group:allreduce_coalesced(tensors, opts) end

---@generic T: perigee.Value
---@param value T
---@param opts? perigee.RootOptions
---@return T|perigee.Work
function Group:broadcast(value, opts) end

---@generic T: perigee.Value
---@param value T # the result on the root, undefined elsewhere
---@param opts? perigee.ReduceRootOptions
---@return T|perigee.Work
function Group:reduce(value, opts) end

---allgather(outputs, input): one output per rank; sizes may differ by rank. allgather(input) makes the outputs.
---@param outputs perigee.Tensor[]|perigee.Tensor[][]|perigee.Tensor|number
---@param inputs? perigee.Tensor|perigee.Tensor[]
---@param opts? perigee.Options
---@return perigee.Tensor[]|number[]|perigee.Work
function Group:allgather(outputs, inputs, opts) end

---allgather_into_tensor(output, input), or (input) alone, which makes the output.
---@param output perigee.Tensor
---@param input? perigee.Tensor
---@param opts? perigee.Options
---@return perigee.Tensor|perigee.Work
function Group:allgather_into_tensor(output, input, opts) end

---@param outputs perigee.Tensor[]
---@param inputs perigee.Tensor[]
---@param opts? perigee.Options
---@return perigee.Tensor[]|perigee.Work
function Group:allgather_into_tensor_coalesced(outputs, inputs, opts) end

---gather(outputs, input): outputs on the root, nil elsewhere. gather(input) makes them; it returns nil elsewhere.
---@param outputs perigee.Tensor[]|perigee.Tensor[][]|perigee.Tensor|number|nil
---@param inputs? perigee.Tensor|perigee.Tensor[]
---@param opts? perigee.RootOptions
---@return perigee.Tensor[]|number[]|perigee.Work|nil
function Group:gather(outputs, inputs, opts) end

---@param output perigee.Tensor|perigee.Tensor[]
---@param inputs perigee.Tensor[]|perigee.Tensor[][]|nil # one per rank, on the root
---@param opts? perigee.RootOptions
---@return perigee.Tensor|perigee.Work
function Group:scatter(output, inputs, opts) end

---reduce_scatter(output, inputs): one input per rank. reduce_scatter(inputs) makes the output.
---@param output perigee.Tensor|perigee.Tensor[]
---@param inputs? perigee.Tensor[]|perigee.Tensor[][]
---@param opts? perigee.ReduceOptions
---@return perigee.Tensor|perigee.Work
function Group:reduce_scatter(output, inputs, opts) end

---@param output perigee.Tensor
---@param input? perigee.Tensor
---@param opts? perigee.ReduceOptions
---@return perigee.Tensor|perigee.Work
function Group:reduce_scatter_tensor(output, input, opts) end

---@param outputs perigee.Tensor[]
---@param inputs perigee.Tensor[]
---@param opts? perigee.ReduceOptions
---@return perigee.Tensor[]|perigee.Work
function Group:reduce_scatter_tensor_coalesced(outputs, inputs, opts) end

---alltoall(outputs, inputs): inputs[r + 1] goes to rank r. alltoall(inputs) makes outputs of the inputs' shapes.
---@param outputs perigee.Tensor[]
---@param inputs? perigee.Tensor[]
---@param opts? perigee.Options
---@return perigee.Tensor[]|perigee.Work
function Group:alltoall(outputs, inputs, opts) end

---Rows of one tensor to all ranks. alltoall_base(output, input [, output_splits, input_splits] [, opts]), or
---(input, opts).
---@param output perigee.Tensor
---@param input? perigee.Tensor
---@param ... integer[]|perigee.SplitsOptions
---@return perigee.Tensor|perigee.Work
function Group:alltoall_base(output, input, ...) end

---@param opts? perigee.Options
---@return perigee.Work?
function Group:barrier(opts) end

---A barrier that names the ranks that did not come.
---@param opts? {timeout?: number, wait_all_ranks?: boolean, async?: boolean}
---@return perigee.Work?
function Group:monitored_barrier(opts) end

---@generic T: perigee.Value
---@param value T
---@param dst integer
---@param opts? perigee.TagOptions
---@return T|perigee.Work
function Group:send(value, dst, opts) end

---@generic T: perigee.Value
---@param value T # a tensor to fill, or a number to receive a number
---@param src integer
---@param opts? perigee.TagOptions
---@return T|perigee.Work
function Group:recv(value, src, opts) end

---@generic T: perigee.Value
---@param value T
---@param opts? perigee.TagOptions
---@return T|perigee.Work
---@return integer source
function Group:recv_anysource(value, opts) end

-- Other names of the same operations, as c10d spells them.
Group.all_reduce = Group.allreduce
Group.all_gather = Group.allgather
Group.all_gather_single = Group.allgather_into_tensor
Group._allgather_base = Group.allgather_into_tensor
Group.all_gather_single_coalesced = Group.allgather_into_tensor_coalesced
Group.reduce_scatter_single = Group.reduce_scatter_tensor
Group._reduce_scatter_base = Group.reduce_scatter_tensor
Group.reduce_scatter_single_coalesced = Group.reduce_scatter_tensor_coalesced
Group.all_to_all = Group.alltoall
Group.all_to_all_single = Group.alltoall_base
Group.recvAnysource = Group.recv_anysource

---@class perigee.ObjectOptions
---@field root? integer # default 0
---@field timeout? number # of the whole exchange

---The root's value (what perigee.encode takes) on every rank. This and its siblings block. A value that cannot be
---encoded is an error on every rank that needs it, at once, and the group stays usable. A value takes at most 1 GiB
---encoded, and so do the values of all ranks together where one rank gets them.
---@param value any # looked at on the root alone
---@param opts? perigee.ObjectOptions
---@return any
function Group:broadcast_object(value, opts) end

---@param value any
---@param opts? {timeout?: number}
---@return any[] # the values of all ranks
function Group:allgather_object(value, opts) end

---@param value any
---@param opts? perigee.ObjectOptions
---@return any[]? # the values of all ranks, on the root; nil elsewhere
function Group:gather_object(value, opts) end

---@param values? any[] # one per rank, on the root; with its field n (table.pack) when some are nil
---@param opts? perigee.ObjectOptions
---@return any # element r + 1 on rank r
function Group:scatter_object(values, opts) end

---The values of all ranks reduced by a function of the script: op.reduce(op.reduce(v0, v1), v2) ..., always in rank
---order. Rank 0 alone calls it, with copies, and sends the result to all, so every rank gets an equal value whatever
---the function does. When it fails, every rank gets its error, `ranks` and `origin` naming the rank where it ran. It
---must not wait.
---@param value any
---@param opts {op: perigee.ReduceOp, timeout?: number} # op: of perigee.op
---@return any
function Group:allreduce_object(value, opts) end

---As allreduce_object, by the root, which alone gets the result; nil elsewhere. An error is raised on every rank.
---@param value any
---@param opts {op: perigee.ReduceOp, root?: integer, timeout?: number}
---@return any
function Group:reduce_object(value, opts) end

---@param value any
---@param dst integer
---@param opts? {tag?: integer, timeout?: number}
function Group:send_object(value, dst, opts) end

---@param src integer
---@param opts? {tag?: integer, timeout?: number}
---@return any
function Group:recv_object(src, opts) end

---Collective: ranks with the same color form a group ordered by (key, rank). nil for a negative color.
---@param color integer
---@param key? integer # default: the rank
---@param opts? {name?: string}
---@return perigee.Group?
function Group:split(color, key, opts) end

---Collective among its members: these ranks, in this order. nil on ranks that are not in the list.
---@param ranks integer[]
---@param opts? {name?: string}
---@return perigee.Group?
function Group:subgroup(ranks, opts) end

---Collective: a tensor of zeros in memory that all ranks of the group share. When the tensors of all ranks in a
---collective are views of one of these, they are worked on in place instead of being copied through buffers. Every
---rank calls it with the same arguments. Over TCP, or where memory cannot be shared, a tensor like any other.
---@param dtype perigee.Dtype
---@param ... integer|integer[] # shape
---@return perigee.Tensor
function Group:alloc(dtype, ...) end

---@class perigee.Choice
---@field transport "shm"|"tcp"|"self"
---@field wait? "spin"|"park" # how ranks wait in shared memory
---@field path string # "oneshot", "ring" ...
---@field from integer # the same path from so many bytes on ...
---@field to number # ... to below so many; math.huge: without end
---@field why string # the rule and where it is from: "built in", a variable, "FILE:LINE"
---@field possible string[] # paths that rules may name here

---Which way the built-in backend at the bottom would take with an operation: what decides when it runs is asked. Raises
---for operations whose way does not depend on their size (barriers, messages).
---@param op string # "allreduce"
---@param bytes integer # of the vector; allgather, gather, scatter, reduce_scatter, alltoall: of one rank's block
---@param opts? {symmetric?: boolean} # as if the tensors were from group:alloc
---@return perigee.Choice
function Group:explain(op, bytes, opts) end

---Leave the group: what is pending ends with ECLOSED. Idempotent; also done by `local world <close>`.
function Group:close() end

---Orderly end: waits until everything pending on this rank has ended, then closes; where `close` ends what is
---pending. The
---group is closed also when this raises. Idempotent.
---@param opts? {timeout?: number} # of the wait; default: the group's
function Group:shutdown(opts) end

---@return boolean
function Group:is_closed() end

---Fail the group on every rank, now: pending and later operations end with EABORTED and this reason.
---@param reason? string
function Group:abort(reason) end

---@return perigee.Error? # the first cause, nil while healthy
function Group:failed() end

---After a failure: a new group of the ranks that are alive, in the same order and with the same layers. Every
---survivor calls
---it; they agree through the store, and all get the same members. Who died, left, or does not come within half of the
---time
---is not one of them; when another one dies meanwhile they agree again. The old group stays as it is: close it.
---@param opts? {timeout?: number, name?: string} # timeout: the group's, at most 60 s
---@return perigee.Group
function Group:shrink(opts) end

---Forms the group anew, in place: other ranks, size, store; failed, closed or not. Collective over the ranks of the new
---one. A layer may override it: then it gets these options as they are, whatever is in them. May be called again
---after an
---error.
---@param opts? perigee.ReconfigureOptions
---@return perigee.Group # itself
function Group:reconfigure(opts) end

---@class perigee.ReconfigureOptions
---@field store? perigee.Store # where the ranks meet; default: the group's
---@field id? string # names this configuration on the store: the same on all ranks, another one each time. Needed where
---one store is given again and again; default: counted by the group
---@field rank? integer # with size; default: as before
---@field size? integer
---@field timeout? number # default timeout of operations; default: as before
---@field init_timeout? number # of this call; 300

---Several operations as one batch: operations of this group that f calls on its thread are submitted, in their order,
---when it
---has returned. Inside of f every form of an operation returns a Work, for after the end; waiting there raises
---EDEADLK. The
---one Work returned ends when all have ended; it fails with the error of the first that failed, naming which; its
---value is
---the list of theirs. When f raises nothing is submitted and the error goes on. A coalescing in another one on the same
---group is refused. Layers with start_coalescing and end_coalescing have them called around the operations.
---@param f fun()
---@param opts? {timeout?: number} # of operations that have none of their own
---@return perigee.Work
function Group:coalesce(f, opts) end

---@class perigee.Message
---@field op "send"|"recv"
---@field tensor perigee.Value
---@field peer integer
---@field tag? integer # default 0

---Sends and receives as one coalescing: one Work for all, without deadlock whatever their order on the ranks.
---@param list perigee.Message[]
---@param opts? {timeout?: number}
---@return perigee.Work
function Group:batch_send_recv(list, opts) end

---@param seconds number # default timeout of operations from now on
function Group:set_timeout(seconds) end

---perigee.pollfd(), as long as the group is open.
---@return integer fd
function Group:pollfd() end
-- Hooks -------------------------------------------------------------------------------------------

---What a hook is told. Times are seconds of perigee.clock().
---@class perigee.WorkInfo
---@field event "start"|"done"|"error"|"stall"|"abort"
---@field op_type? string # "allreduce"; nil for an abort that no operation caused
---@field seq integer # number of the operation on its group; 0 for a call that was refused
---@field group string # name
---@field rank integer # of this rank in the group
---@field peer? integer # destination of send, source of recv
---@field async boolean # whether the script got a Work for it
---@field time_started number
---@field time_finished? number # nil while it is under way
---@field active_duration? number # > 0 when it has ended; so far for "stall"
---@field bytes integer # of this rank's inputs; where there are none, of its outputs
---@field status "pending"|"done"|"failed"|"timeout"|"aborted"
---@field error? perigee.Error # of "error"; the first cause for "abort"

---One registration of a function. It stays when the handle is collected.
---@class perigee.Hook
---@field event string # as registered; "completion" for register_on_completion_hook
---@field calls integer
---@field errors integer # calls that raised
local Hook = {}

---f is not called any more, also not for what has happened already. Idempotent; also inside the hook itself.
function Hook:remove() end

---Call f(info) for what happens on this group to the operations that its callers start from now on:
---"start" when one was accepted, then exactly one of "done" and "error" (failed, timed out, aborted; also once, with
---seq 0, for a call that the group refuses because its tensors do not fit), "stall" when one has been under way for
---opts.after seconds (2), "abort" once when the group was aborted or has failed, with the cause.
---Calls are protected and deferred: they run in order, when a thread of the interpreter waits or a blocking operation
---returns, else on the interpreter's dispatcher; never inside the call that caused them. An error in one is printed
---(perigee.on_hook_error), counted, and raised by wait_for_pending_works; it changes no result, and the other hooks
---run. A hook may issue operations with async = true (which are told of too), add and remove hooks and close the
---group (then what has ended is still told); a blocking operation or wait in it raises EDEADLK. The same function may
---be registered any number of times. The group keeps f until it is removed or the group closes; close runs the hooks
---of all that has ended, and none after. Subgroups do not inherit hooks, nor does the group after reconfigure.
---@param event "start"|"done"|"error"|"stall"|"abort"
---@param f fun(info: perigee.WorkInfo)
---@param opts? {after?: number} # of "stall": seconds
---@return perigee.Hook
function Group:on(event, f, opts) end

---c10d's hook: f(info) for the end of every operation from now on, good or bad.
---@param f fun(info: perigee.WorkInfo)
---@return perigee.Hook
function Group:register_on_completion_hook(f) end

---Wait until no operation of this rank on the group is under way and all hooks have run. Raises when hooks have
---raised since the last report: the first error, with `count` and the list `errors`. Errors of operations are not
---raised.
---@param seconds? number # nil and an error when these run out
---@return true?
---@return perigee.Error?
function Group:wait_for_pending_works(seconds) end

---@param rank integer
---@return integer? # the world's rank of this group's rank
function Group:to_world(rank) end

---@param world_rank integer
---@return integer? # this group's rank of the world's rank, nil when it is no member
function Group:from_world(world_rank) end

---print on rank 0 alone; formatted when there are arguments after fmt.
---@param fmt any
---@param ... any
function Group:print(fmt, ...) end

---print on every rank, with "[rank r]" in front.
---@param fmt any
---@param ... any
function Group:log(fmt, ...) end

-- Backends ----------------------------------------------------------------------------------------

---A layer written in Lua. A method with the name of an operation (or one of its aliases, not both) overrides it;
---what is not defined
---is left to the layer below. It receives the canonical form: lists of tensors even for one tensor, rows of lists for
---allgather, gather, scatter and reduce_scatter, then split sizes, or peer and tag, and last a table of options
---(op, root,
---timeout, wait_all_ranks). It returns a Work, or true when the operation is done.
---Other names are the script's own, except that a misspelt operation is refused; names that start with '_' are never.
---Fields of `self`, one instance per group:
---@class perigee.Backend
---@field name string
---@field inner perigee.Inner # the layer below
---@field rank integer
---@field size integer
---@field group_name string
---@field store? perigee.Store
---@field members integer[] # the world's rank of each rank
---@field open? fun(self: perigee.Backend, opts: table) # when a group starts to use the layer; opts: the group's
---timeout, and what init was given in options for this layer. It may add overrides to self
---@field close? fun(self: perigee.Backend) # when the group ends
---@field abort? fun(self: perigee.Backend, reason: perigee.Error) # told when the group was aborted
---@field set_timeout? fun(self: perigee.Backend, seconds: number) # told when the group's default timeout has changed
---The rest is asked: the first layer from the top that has the method answers, and may pass on to self.inner:
---@field backend_name? fun(self: perigee.Backend): string # shown in "outer(inner)" instead of `name`; asked once,
---after open
---As functions of the backend table, rank and size say what the group reports as group.rank (>= 0) and group.size (>=
---1), each
---time it is asked. Operations and the layers below keep the real ones, and so do self.rank and self.size.
---@field split? fun(self: perigee.Backend, color: integer, key: integer, opts: {name?: string}): perigee.Group?
---@field shutdown? fun(self: perigee.Backend, opts: {timeout: number}): perigee.Work|true|nil # before the group is
---closed
---@field start_coalescing? fun(self: perigee.Backend) # a batch's operations come between these two
---@field end_coalescing? fun(self: perigee.Backend): perigee.Work|true # one more work of the batch
---@field reconfigure? fun(self: perigee.Backend, opts: table): perigee.Group|perigee.Work|true # the new group; or a
---Work or
---true: the layer did it in place and the group stays

---The layer below: the operations of a group, in canonical or friendly form, always returning a Work.
---@class perigee.Inner: perigee.Group
---@field name string # "fp16(native)"
---@field rank integer
---@field size integer
---@field seq integer # number of the operation whose override runs; 0 outside of one
---@field waits boolean # whether the caller of the override that runs waits for its operation: then it may block
local Inner = {}

---A group of the layers below, for these ranks in this order; nil on the others. The layer closes it, at the latest in
---its `close`. Possible from `open` on.
---@param ranks integer[]
---@param opts? {name?: string}
---@return perigee.Group?
function Inner:subgroup(ranks, opts) end

---For an override of split: goes on with it. The new group has all layers of this one, as if this layer had no
---override.
---@param color integer
---@param key? integer
---@param opts? {name?: string}
---@return perigee.Group?
function Inner:split(color, key, opts) end

---For an override of shutdown: waits until everything pending has ended.
---@param opts? {timeout?: number}
function Inner:shutdown(opts) end

---For overrides of these: goes on in the layers below.
function Inner:start_coalescing() end

---@return perigee.Work
function Inner:end_coalescing() end

---For an override of reconfigure: goes on with it. true when a layer below did it in place.
---@param opts? perigee.ReconfigureOptions
---@return perigee.Group|true
function Inner:reconfigure(opts) end

-- Stores ------------------------------------------------------------------------------------------

---@class perigee.stores
local stores = {}

---@return perigee.Store # in this process only
function stores.hash() end

---@param path string
---@return perigee.Store # shared by processes of one machine
function stores.file(path) end

---@param prefix string
---@param store perigee.Store
---@return perigee.Store # key -> prefix/key in store
function stores.prefix(prefix, store) end

---A client of a TCP store (PyTorch's TCPStore protocol).
---@param host string
---@param port integer
---@param opts? {timeout?: number, world_size?: integer}
---@return perigee.Store
function stores.tcp(host, port, opts) end

---Serve a TCP store from a thread of its own.
---@param port? integer # 0: chosen by the kernel
---@param address? string # 127.0.0.1
---@return perigee.StoreServer
function stores.server(port, address) end

---@class perigee.StoreServer
---@field port integer
local StoreServer = {}

function StoreServer:close() end

---Keys and values are byte strings. Waits end with ETIMEDOUT naming the keys.
---@class perigee.Store
---@field kind "hash"|"file"|"tcp"|"prefix"
local Store = {}

---@param key string
---@param value string
function Store:set(key, value) end

---Waits until the key exists.
---@param key string
---@param seconds? number
---@return string
function Store:get(key, seconds) end

---@param key string
---@param delta? integer # 1
---@return integer # the new value; a missing key counts as 0
function Store:add(key, delta) end

---@param key string
---@param expected string # "": the key must be missing
---@param desired string
---@return string # the value afterwards
function Store:compare_set(key, expected, desired) end

---@param keys string|string[]
---@param seconds? number
function Store:wait(keys, seconds) end

---@param keys string|string[]
---@return boolean # whether all exist
function Store:check(keys) end

---@param key string
---@return boolean # whether it existed
function Store:delete_key(key) end

---@return integer
function Store:num_keys() end

---@return string[]
function Store:list_keys() end

---@param key string
---@param value string
function Store:append(key, value) end

---@param keys string[]
---@param seconds? number
---@return string[]
function Store:multi_get(keys, seconds) end

---@param keys string[]
---@param values string[]
function Store:multi_set(keys, values) end

---@param key string
---@param value string
function Store:queue_push(key, value) end

---Waits for an entry; 0 seconds: EAGAIN when there is none.
---@param key string
---@param seconds? number
---@return string
function Store:queue_pop(key, seconds) end

---@param key string
---@return integer
function Store:queue_len(key) end

---@param key string
---@param size integer # how many callers it takes
---@param seconds? number
function Store:barrier(key, size, seconds) end

---@param seconds number
function Store:set_timeout(seconds) end

---@return perigee.Store # a handle with a connection of its own
function Store:clone() end

-- Loops of others -------------------------------------------------------------------------------

---Perigee inside a loop of luv (Debian: lua-luv): require "perigee.luv". Callbacks of works run inside uv.run. A
---blocking wait in a callback of luv blocks the loop, and runs perigee's callbacks alone.
---@class perigee.luv
local luv = {}

---@class perigee.LuvHandle
local LuvHandle = {}

---uv.run goes on until the handle is stopped. Several handles share one poll.
---@param uv? table # the module luv; neovim: vim.uv
---@return perigee.LuvHandle # also a to-be-closed value
function luv.attach(uv) end

---Again is allowed. After the last one the runtime's own thread runs callbacks again.
function LuvHandle:stop() end

-- Testing -----------------------------------------------------------------------------------------

---Worlds of several ranks inside one process, for specs. Also: require "perigee.testing".
---@class perigee.testing
local testing = {}

---@class perigee.RanksOptions
---@field timeout? number # seconds from when the groups are open: of the whole run, and of each operation; 30
---@field backend? string|table # a stack, or a backend table (over native)
---@field name? string # of the group; "world"
---@field options? perigee.LayerOptions

---Run fn(group) on n ranks, which are threads of this Lua state: they take turns, so closures, upvalues and asserts
---just work. Returns what fn returned, per rank. The first error of a rank is raised here: a text with "[rank r] " in
---front and the rank's traceback behind (failures of asserts have it in their message), an object with the field rank.
---It ends the others: all groups they have made are aborted, sleep, step and waits for works raise EABORTED, and who
---computes on for a second is stopped. When the time is over all ranks are ended so: ETIMEDOUT, `ranks` are those that
---had not returned. Groups are closed and threads joined at the end; subgroups that fn makes are fn's to close.
---@param n integer
---@param fn fun(group: perigee.Group): any
---@param opts? perigee.RanksOptions
---@return any[]
function testing.ranks(n, fn, opts) end

---@class perigee.Fault
---@field rank? integer # of the world; default: every rank
---@field op? string # default: every operation
---@field seq? integer # the rank's collective, or point-to-point operation, of this number on the group; default: all
---@field drop? true # it never reaches the others (a send is lost)
---@field delay? integer # it reaches the others so many steps of the schedule later
---@field raise? string # it raises this on the rank
---@field kill? true # the rank ends here; the others get EPEERDEAD

---@class perigee.SimOptions
---@field seed? integer # the same seed gives the same schedule; 0
---@field backend? string|table # a stack of layers in Lua whose bottom is "sim", or a backend table
---@field options? table<string, table> # per layer, for its open
---@field faults? perigee.Fault[]
---@field timeout? number # what group.timeout shows; 1800
---@field rendezvous? boolean # a send ends only when it was received; default: it is buffered
---@field max_steps? integer # of the schedule: ELIMIT beyond; 1000000
---@field name? string

---Run fn(group) on n ranks, which are coroutines of one Lua state, one at a time, in an order made from the seed. Every
---operation is computed by its definition. Time is virtual: when nobody can move, the earliest timeout that a call (or
---set_timeout) was given passes; without one that is a deadlock: EDEADLK, whose message and field `waits` say who waits
---for whom in which operation. Async functions take part; futures and perigee.sleep keep virtual time. Errors as in
---ranks.
---@param n integer
---@param fn fun(group: perigee.Group): any
---@param opts? perigee.SimOptions
---@return any[]
function testing.sim(n, fn, opts) end

---@class perigee.CheckOptions
---@field ops? string[] # cases: operations, and allreduce_list, alltoall_base_uneven, send_recv, in_flight, subgroups
---@field dtypes? perigee.Dtype[] # default: all
---@field sizes? integer[] # numbers of ranks; {1, 2, 3, 4}
---@field lengths? integer[] # of tensors; {0, 1, 7}; every reduce operation is tried at the last one
---@field rtol? number # default: the same bits
---@field atol? number
---@field engine? "sim"|"ranks" # "ranks": on threads, over the stack's own bottom
---@field seed? integer
---@field timeout? number # of each case on threads
---@field options? table<string, table>
---@field raise? boolean # false: return the report of a backend that failed

---@class perigee.CheckReport
---@field ok boolean
---@field cases integer
---@field failures {op: string, case: string, dtype: string, size: integer, ranks: integer, async: boolean,
---redop: string, rank?: integer, text: string, error?: any, traceback?: string}[]
---@field verdict fun(self: perigee.CheckReport): string # readable: what failed where, and the first wrong element

---Compare a backend with the definition: every operation, dtype and size, blocking and async, lists, subgroups. Raises
---the verdict when something differs.
---@param backend string|table # a stack, or a backend table
---@param opts? perigee.CheckOptions
---@return perigee.CheckReport
function testing.check_backend(backend, opts) end

perigee.testing = testing

return perigee
