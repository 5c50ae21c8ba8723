/* Where the command and the Lua files are. */
#ifndef PERIGEE_CLI_PATHS_H
#define PERIGEE_CLI_PATHS_H

/** The running executable, absolute; "perigee" when the system does not tell. Static memory. */
const char *perigee__exe_path(void);
/** Folder that holds perigee/init.lua: the source tree's for a command in its build folder, else ../share/lua/5.4 seen from
 *  the command, else where it was installed at first. Static memory. */
const char *perigee__lua_dir(void);

#endif
