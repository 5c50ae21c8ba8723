--- Scripts that run in namespaces of their own: of processes, mounts and networks. All that they start, make or write
--- ends with them, and they end when whoever has called this ends, however that may be.
local cli = require "cli.support"

local support = {}

local root = io.popen("pwd"):read "l"

--- Run a bash script with the functions of hosts.sh; files: name -> text, in the folder it begins in. limit: seconds.
--- Returns { ok, code, out }; out is everything that was printed, and a line "left over: ..." for every process that
--- was still there at the end.
function support.run(script, files, limit)
  local words = { '. "$ROOT/spec/net/hosts.sh"\n' }
  for name, text in pairs(files or {}) do
    words[#words + 1] = ("printf %%s %s >%s\n"):format(cli.quote(text), cli.quote(name))
  end
  words[#words + 1] = script .. "\nleft\n"
  -- In the foreground, ^C reaches the script; and it ends with this process, for which nobody else could wait.
  local line = table.concat({
    "ROOT=" .. cli.quote(root), "P=" .. cli.quote(cli.absolute_bin()),
    "WIRE=" .. cli.quote((cli.absolute_bin():gsub("[^/]*$", "net_wire"))),
    "exec setpriv --pdeathsig KILL timeout --foreground -k 2", limit,
    "setpriv --pdeathsig KILL unshare --map-root-user --net --mount --pid --fork --kill-child --mount-proc",
    "bash -c", cli.quote(table.concat(words)), "2>&1 </dev/null",
  }, " ")
  local pipe = assert(io.popen(line))
  local out = pipe:read "a"
  local ok, how, code = pipe:close()
  return { ok = ok == true, code = how == "signal" and 128 + code or code, out = out }
end

return support
