/* `perigee run`. */
#ifndef PERIGEE_CLI_LAUNCH_H
#define PERIGEE_CLI_LAUNCH_H

/** argv[0] is "run". Returns the exit code of the command. */
int perigee__run_main(int argc, char **argv);

#endif
