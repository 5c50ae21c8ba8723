#include "cli/info.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>
#include <uv.h>

#include <perigee/version.h>

#include "base/env.h"
#include "base/error.h"
#include "base/futex.h"
#include "cli/info_paths.h"
#include "cli/lua_main.h"
#include "cli/opt_values.h"
#include "cli/paths.h"
#include "tensor/copy.h"
#include "transport/memfd.h"
#include "transport/vm.h"

static const char help[] =
    "Usage: perigee info [OPTIONS] [OPERATION BYTES]\n"
    "\n"
    "Print the version, this machine, the environment variables that Perigee reads with their\n"
    "values, and which paths collectives take by size. With an operation and a size (8, 64K, 1M):\n"
    "the path that it takes, and which rule says so.\n"
    "\n"
    "  -n N                 ranks, all on this machine (default 2)\n"
    "  --transport WHICH    auto, shm or tcp\n"
    "  --symmetric          for tensors that all ranks share (group:alloc)\n"
    "  --rules              print the rules in force and where each is from\n"
    "\n"
    "Rules: a group's option tuning, PERIGEE_SELECT, the file that PERIGEE_TUNING_FILE names (see\n"
    "'perigee tune'), built in. The first that fits decides.\n"
    "\n"
    "Examples\n"
    "  perigee info -n 4 allreduce 1M\n"
    "  PERIGEE_SELECT='allreduce/shm:0-:twoshot' perigee info -n 2 allreduce 4K\n";

/* The value in the brackets of a list of choices as sysfs has them, "always [madvise] never". */
static void read_choice(const char *path, char *buf, size_t size) {
  char line[128] = "", *open, *close;
  FILE *f = fopen(path, "re");
  snprintf(buf, size, "unknown");
  if (f == NULL)
    return;
  if (fgets(line, sizeof(line), f) != NULL && (open = strchr(line, '[')) != NULL &&
      (close = strchr(open, ']')) != NULL)
    snprintf(buf, size, "%.*s", (int)(close - open - 1), open + 1);
  fclose(f);
}

/* What the rules of a group on this machine depend on. */
static void print_shared_memory(void) {
  char huge[64];
  int fd, cores = perigee__usable_cores();
  bool memory = perigee__memfd_create("perigee-info", 4096, &fd) == 0;
  if (memory)
    close(fd);
  read_choice("/sys/kernel/mm/transparent_hugepage/shmem_enabled", huge, sizeof(huge));
  printf("shared mem  %s; huge pages in it: %s\n", memory ? "memfd" : perigee_last_error()->message,
         huge);
  bool cma = perigee__info_cma();
  printf("reads       ranks %s each other's memory by system call%s\n",
         cma ? "read" : "cannot read",
         !cma                    ? ""
         : perigee__vm_is_slow() ? "; slow: rules for \"slow\" hold"
                                 : "; quick: rules for \"quick\" hold");
  printf("copies      past the caches from %zu MiB of tensors on\n",
         perigee__copy_past_from() >> 20);
  printf("waiting     %s: up to %d ranks spin, more park\n", perigee__env("PERIGEE_WAIT"), cores);
}

static void print_machine(void) {
  struct utsname host;
  if (uname(&host) < 0)
    memset(&host, 0, sizeof(host));
  printf("perigee     %s (%s, libuv %s)\n", perigee_version(), perigee__lua_release(),
         uv_version_string());
  printf("command     %s\n", perigee__exe_path());
  printf("lua files   %s\n", perigee__lua_dir());
  printf("kernel      %s %s %s\n", host.sysname, host.release, host.machine);
  printf("cores       %d usable of %ld (affinity, quota of the cgroup)\n", perigee__usable_cores(),
         sysconf(_SC_NPROCESSORS_ONLN));
  printf("page size   %ld\n", sysconf(_SC_PAGESIZE));
  printf("transports  shm tcp\n");
  print_shared_memory();
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

/* ---- arguments --------------------------------------------------------------------------------------- */

typedef struct info_opts {
  perigee__info_asked asked;
  bool help, rules;
} info_opts;

enum {
  OPT_TRANSPORT = 256,
  OPT_SYMMETRIC,
  OPT_RULES
};

static const struct option long_options[] = {{"transport", required_argument, NULL, OPT_TRANSPORT},
                                             {"symmetric", no_argument, NULL, OPT_SYMMETRIC},
                                             {"rules", no_argument, NULL, OPT_RULES},
                                             {"help", no_argument, NULL, 'h'},
                                             {NULL, 0, NULL, 0}};

static int take_option(info_opts *o, int option) {
  switch (option) {
  case 'n':
    return perigee__int_parse("-n", optarg, 1, PERIGEE__RANKS_MAX, &o->asked.n);
  case OPT_TRANSPORT:
    o->asked.transport = optarg;
    if (strcmp(optarg, "auto") != 0 && strcmp(optarg, "shm") != 0 && strcmp(optarg, "tcp") != 0)
      return perigee__fail(PERIGEE_EINVAL, "--transport %s is not auto, shm or tcp", optarg);
    return 0;
  case OPT_SYMMETRIC:
    o->asked.symmetric = true;
    return 0;
  case OPT_RULES:
    o->rules = true;
    return 0;
  default:
    o->help = true;
    return 0;
  }
}

static int parse(int argc, char **argv, info_opts *o) {
  int option = 0;
  perigee__options_start();
  for (;;) {
    PERIGEE_TRY(perigee__option_next(argc, argv, ":n:h", long_options, &option));
    if (option == -1)
      break;
    PERIGEE_TRY(take_option(o, option));
  }
  int words = argc - optind;
  if (o->help || words == 0)
    return 0;
  if (words > 2)
    return perigee__fail(PERIGEE_EINVAL, "unknown argument '%s'", argv[optind + 2]);
  if (words == 1)
    return perigee__fail(PERIGEE_EINVAL, "after '%s': how many bytes?", argv[optind]);
  o->asked.op = argv[optind];
  return perigee__bytes_parse("BYTES", argv[optind + 1], &o->asked.bytes);
}

int perigee__info_main(int argc, char **argv) {
  info_opts o = {.asked = {.n = 2, .transport = "auto"}};
  if (parse(argc, argv, &o) < 0) {
    fprintf(stderr, "perigee info: %s\nTry 'perigee info --help'.\n",
            perigee_last_error()->message);
    return 2;
  }
  int rc = 0;
  if (o.help)
    fputs(help, stdout);
  else if (o.rules)
    rc = perigee__info_rules();
  else if (o.asked.op != NULL)
    rc = perigee__info_choice(&o.asked);
  else {
    print_machine();
    print_variables();
    rc = perigee__info_tables(&o.asked);
  }
  if (rc == 0)
    return 0;
  fflush(stdout);
  fprintf(stderr, "perigee info: %s\n", perigee_last_error()->message);
  return 1;
}
