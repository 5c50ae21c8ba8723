/* `perigee info`. */
#ifndef PERIGEE_CLI_INFO_H
#define PERIGEE_CLI_INFO_H

/** argv[0] is "info". Returns the exit code of the command. */
int perigee__info_main(int argc, char **argv);

#endif
