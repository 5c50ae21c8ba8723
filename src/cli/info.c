#include "cli/info.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>
#include <uv.h>

#include <perigee/version.h>

#include "base/env.h"
#include "base/futex.h"
#include "cli/lua_main.h"
#include "cli/paths.h"

static void print_machine(void) {
  struct utsname host;
  if (uname(&host) < 0)
    memset(&host, 0, sizeof(host));
  printf("perigee     %s (%s, libuv %s)\n", perigee_version(), perigee__lua_release(),
         uv_version_string());
  printf("command     %s\n", perigee__exe_path());
  printf("lua files   %s\n", perigee__lua_dir());
  printf("kernel      %s %s %s\n", host.sysname, host.release, host.machine);
  printf("cores       %d usable of %ld\n", perigee__usable_cores(), sysconf(_SC_NPROCESSORS_ONLN));
  printf("page size   %ld\n", sysconf(_SC_PAGESIZE));
  printf("transports  shm tcp\n");
}

static void print_variables(void) {
  printf("\nvariables (* set in this environment)\n");
  for (const perigee__env_entry *e = perigee__env_table(); e->name != NULL; e++) {
    const char *set = getenv(e->name);
    const char *value = perigee__env(e->name);
    printf("%c %s=%s\n      %s\n", set != NULL && set[0] != '\0' ? '*' : ' ', e->name,
           value[0] != '\0' ? value : "''", e->help);
  }
}

int perigee__info_main(int argc, char **argv) {
  static const char help[] = "Usage: perigee info\n"
                             "\n"
                             "Print the version, this machine, and the environment variables that\n"
                             "Perigee reads with their values.\n";
  if (argc > 1 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)) {
    fputs(help, stdout);
    return 0;
  }
  if (argc > 1) {
    fprintf(stderr, "perigee info: unknown argument '%s'\nTry 'perigee info --help'.\n", argv[1]);
    return 2;
  }
  print_machine();
  print_variables();
  return 0;
}
