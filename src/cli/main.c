/* The `perigee` command: one subcommand, its arguments. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <perigee/version.h>

#include "base/attr.h"
#include "cli/bench.h"
#include "cli/info.h"
#include "cli/launch.h"
#include "cli/lua_main.h"
#include "cli/tune.h"

static const char help[] =
    "Usage: perigee COMMAND [ARGUMENT...]\n"
    "\n"
    "Process groups for Lua.\n"
    "\n"
    "Commands\n"
    "  run    start the ranks of a job: perigee run -n 4 script.lua\n"
    "  bench  time operations: perigee bench -n 4 allreduce\n"
    "  tune   measure this machine and write rules that choose algorithms by size\n"
    "  info   print the version, this machine, the variables that are read, and which path an\n"
    "         operation takes and why: perigee info -n 4 allreduce 1M\n"
    "\n"
    "  perigee --version\n"
    "  perigee COMMAND --help\n";

static const struct {
  const char *name;
  int (*main)(int argc, char **argv);
} commands[] = {{"run", perigee__run_main},
                {"bench", perigee__bench_main},
                {"tune", perigee__tune_main},
                {"info", perigee__info_main}};

/* Descriptors 0 to 2 must not be given to pipes and sockets. */
static void open_standard_descriptors(void) {
  int fd;
  do
    fd = open("/dev/null", O_RDWR);
  while (fd >= 0 && fd <= STDERR_FILENO);
  if (fd >= 0)
    close(fd);
}

int main(int argc, char **argv) {
  open_standard_descriptors();
  if (argc < 2) {
    fputs(help, stderr);
    return 2;
  }
  if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
    fputs(help, stdout);
    return 0;
  }
  if (strcmp(argv[1], "--version") == 0) {
    printf("perigee %s\n", perigee_version());
    return 0;
  }
  if (strcmp(argv[1], "lua") == 0)
    return perigee__lua_main(argc, argv);
  for (size_t i = 0; i < PERIGEE_COUNT(commands); i++)
    if (strcmp(argv[1], commands[i].name) == 0)
      return commands[i].main(argc - 1, argv + 1);
  fprintf(stderr, "perigee: unknown command '%s'\nTry 'perigee --help'.\n", argv[1]);
  return 2;
}
