--- Running the command in specs: each use has a folder of its own and a time limit.
local support = {}

support.bin = os.getenv "PERIGEE_BIN" or "./build/perigee"

local function read_all(path)
  local f <close> = assert(io.open(path, "rb"))
  return f:read "a"
end
support.read = read_all

function support.quote(text)
  return "'" .. text:gsub("'", "'\\''") .. "'"
end

--- A new folder, removed by support.cleanup().
local folders = {}
function support.folder()
  local p <close> = assert(io.popen "mktemp -d")
  local dir = p:read "l"
  folders[#folders + 1] = dir
  return dir
end

function support.cleanup()
  for _, dir in ipairs(folders) do os.execute("rm -rf " .. support.quote(dir)) end
  folders = {}
end

function support.write(dir, name, text)
  local path = dir .. "/" .. name
  local f <close> = assert(io.open(path, "wb"))
  f:write(text)
  return path
end

--- Run a bash script with $P (the command) and $D (an empty folder). files: name -> text, written to $D before.
--- limit: seconds, 60 when not given. Returns { out, err, code, dir, seconds }.
function support.bash(script, files, limit)
  local dir = support.folder()
  for name, text in pairs(files or {}) do support.write(dir, name, text) end
  support.write(dir, "script.sh", script)
  local started = os.time()
  local _, how, code = os.execute(([[
    cd %s && P=%s D=%s PERIGEE_LOG=warn NO_COLOR= CLICOLOR_FORCE= \
    timeout -k 2 %d bash script.sh </dev/null >out.txt 2>err.txt]]):format(
    support.quote(dir), support.quote(support.absolute_bin()), support.quote(dir), limit or 60))
  assert(how == "exit", "the shell was killed")
  return {
    out = read_all(dir .. "/out.txt"), err = read_all(dir .. "/err.txt"), code = code, dir = dir,
    seconds = os.time() - started,
  }
end

local absolute
function support.absolute_bin()
  if absolute == nil then
    local p <close> = assert(io.popen("readlink -f " .. support.quote(support.bin)))
    absolute = p:read "l"
  end
  return absolute
end

--- `perigee run <arguments>` with files in the current folder.
function support.run(arguments, files)
  return support.bash("timeout -k 2 40 $P run " .. arguments, files)
end

function support.lines(text)
  local list = {}
  for line in text:gmatch "[^\n]*\n?" do
    if line ~= "" then list[#list + 1] = (line:gsub("\n$", "")) end
  end
  return list
end

function support.sorted_lines(text)
  local list = support.lines(text)
  table.sort(list)
  return list
end

function support.has(text, part)
  return text:find(part, 1, true) ~= nil
end

--- Shell functions for scripts that have to wait and to look at processes.
support.shell = [[
# wait_for FILE...: until all exist and are not empty, 10 s at most
wait_for() {
  local f i
  for f in "$@"; do
    for ((i = 0; i < 1000; i++)); do [ -s "$f" ] && break; sleep 0.01; done
    [ -s "$f" ] || { echo "no $f"; exit 99; }
  done
}
# alive PID...: prints how many are there and not zombies
alive() {
  local n=0 p
  for p in "$@"; do
    case "$(sed 's/.*) //' "/proc/$p/stat" 2>/dev/null)" in ''|Z*|X*) ;; *) n=$((n + 1)) ;; esac
  done
  echo "$n"
}
# gone_in SECONDS PID...: whether all are gone in this time
gone_in() {
  local limit=$1 i; shift
  for ((i = 0; i < limit * 100; i++)); do [ "$(alive "$@")" = 0 ] && return 0; sleep 0.01; done
  return 1
}
]]

return support
