/* The subcommand `perigee tune`. */
#ifndef PERIGEE_CLI_TUNE_H
#define PERIGEE_CLI_TUNE_H

/** argv[0] is the subcommand. Returns the exit code. */
int perigee__tune_main(int argc, char **argv);

#endif
