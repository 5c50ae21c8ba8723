-- What compare.sh shows: perigee run -n 1 bench/compare.lua DATA [REPORT.md]. Without a report a table in the terminal.
package.path = arg[0]:gsub("%.lua$", "") .. "/?.lua;" .. package.path

local data = require("figures").load(arg[1])
if arg[2] then
  require("report").write(data, arg[2])
else
  require("terminal").print(data)
end
