/* The subcommand `perigee bench`. */
#ifndef PERIGEE_CLI_BENCH_H
#define PERIGEE_CLI_BENCH_H

/** argv[0] is the subcommand. Returns the exit code. */
int perigee__bench_main(int argc, char **argv);

#endif
