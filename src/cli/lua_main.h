/* `perigee lua`: the interpreter that `perigee run` starts for scripts. */
#ifndef PERIGEE_CLI_LUA_MAIN_H
#define PERIGEE_CLI_LUA_MAIN_H

/** argv[0] is the command, argv[1] "lua", argv[2] the script. Returns the exit code of the command. */
int perigee__lua_main(int argc, char **argv);
/** "Lua 5.4.4" of the headers. */
const char *perigee__lua_release(void);

#endif
