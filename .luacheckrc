std = "lua54"
max_line_length = 120
files["spec"].std = "+busted"
files["lua/perigee/meta.lua"].ignore = { "211", "212", "111", "112", "113", "121", "122", "131", "142", "143" }
exclude_files = { "build*" }
