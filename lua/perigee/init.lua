-- Perigee: process groups whose operations a Lua table can override.
-- The module is written in C; what is written in Lua is loaded when it is first used. Documentation: perigee/meta.lua.
local perigee = require "perigee.core"

return perigee
