/*
 * `perigee tune`: measures this machine and writes a file of rules (coll/tuning.h).
 *
 * For each number of ranks and each transport the ranks are started as `perigee run` does, in a child process, because the transport is
 * chosen by a variable that a process reads. They run lua/perigee/tune/measure.lua and leave what they have measured (JSON) in a folder
 * of our own; lua/perigee/tune/write.lua makes the file of it.
 */
#include "cli/tune.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/error.h"
#include "cli/info_paths.h"
#include "cli/launch.h"
#include "cli/lua_main.h"
#include "cli/opt_values.h"
#include "cli/paths.h"
#include "cli/words.h"
#include "coll/select.h"

static const char help[] =
    "Usage: perigee tune [OPTIONS]\n"
    "       perigee tune --check FILE\n"
    "\n"
    "Measure this machine: every collective and size by every algorithm that can do it, in turn.\n"
    "Write the rules that choose the fastest, with the figures behind them, and say what they\n"
    "change. Groups use the file when PERIGEE_TUNING_FILE names it, on every rank the same.\n"
    "\n"
    "  -n LIST              numbers of ranks, for example 2,4 (default 2)\n"
    "  --transport WHICH    shm, tcp or both (default both)\n"
    "  --ops LIST           only these, for example allreduce,broadcast\n"
    "  --sizes LIST         only these sizes, ascending (default 64 to 16M, each 4 times the "
    "last)\n"
    "  --budget S           seconds for each number of ranks and transport (default 30)\n"
    "  --quick              4 sizes, 2 rounds, 2 seconds: to try it, not to keep it\n"
    "  -o FILE              where to write (default: standard output)\n"
    "  --force              write over a file that exists\n"
    "  --json FILE          everything that was measured, as JSON\n"
    "  --timeout S          end everything that takes longer than S seconds more than its budget,\n"
    "                       exit code 124 (default 60)\n"
    "  --check FILE         read a file of rules and explain it; measures nothing\n"
    "\n"
    "Sizes are bytes as in perigee bench. An algorithm must be some 10 % faster before a rule\n"
    "changes to it.\n"
    "\n"
    "Examples\n"
    "  perigee tune -n 2,4 -o tuning\n"
    "  PERIGEE_TUNING_FILE=tuning perigee info -n 4 allreduce 1M\n";

enum {
  SIZES = 32,
  COUNTS = 16
};

/* Strings are borrowed from argv, or literals. */
typedef struct tune_opts {
  bool help, quick, force, shm, tcp;
  const char *out, *json, *check, *ops;
  int n[COUNTS], ncounts;
  size_t sizes[SIZES];
  int nsizes, budget, timeout;
} tune_opts;

/* ---- options ----------------------------------------------------------------------------------------- */

enum {
  OPT_TRANSPORT = 256,
  OPT_OPS,
  OPT_SIZES,
  OPT_BUDGET,
  OPT_QUICK,
  OPT_FORCE,
  OPT_JSON,
  OPT_TIMEOUT,
  OPT_CHECK
};

static const struct option long_options[] = {{"transport", required_argument, NULL, OPT_TRANSPORT},
                                             {"ops", required_argument, NULL, OPT_OPS},
                                             {"sizes", required_argument, NULL, OPT_SIZES},
                                             {"budget", required_argument, NULL, OPT_BUDGET},
                                             {"quick", no_argument, NULL, OPT_QUICK},
                                             {"force", no_argument, NULL, OPT_FORCE},
                                             {"json", required_argument, NULL, OPT_JSON},
                                             {"timeout", required_argument, NULL, OPT_TIMEOUT},
                                             {"check", required_argument, NULL, OPT_CHECK},
                                             {"help", no_argument, NULL, 'h'},
                                             {NULL, 0, NULL, 0}};

static int take_ranks(const char *word, void *arg) {
  tune_opts *o = arg;
  if (o->ncounts == COUNTS)
    return perigee__fail(PERIGEE_ELIMIT, "-n: more than %d numbers", COUNTS);
  return perigee__int_parse("-n", word, 2, PERIGEE__RANKS_MAX, &o->n[o->ncounts++]);
}

static int take_size(const char *word, void *arg) {
  tune_opts *o = arg;
  if (o->nsizes == SIZES)
    return perigee__fail(PERIGEE_ELIMIT, "--sizes: more than %d", SIZES);
  size_t *size = &o->sizes[o->nsizes];
  PERIGEE_TRY(perigee__bytes_parse("--sizes", word, size));
  if (*size < 4 || (o->nsizes > 0 && *size <= size[-1]))
    return perigee__fail(PERIGEE_EINVAL, "--sizes: ascending sizes of 4 and more, not %s", word);
  o->nsizes++;
  return 0;
}

static int check_ops(const char *list) {
  for (const char *at = list;; at++) {
    size_t len = strcspn(at, ",");
    if (perigee__select_kind_named(at, len) < 0)
      return perigee__fail(PERIGEE_EINVAL,
                           "--ops: '%.*s' is none of allreduce, broadcast, reduce, allgather, "
                           "gather, scatter, reduce_scatter, alltoall",
                           (int)len, at);
    at += len;
    if (*at == '\0')
      return 0;
  }
}

static int take_option(tune_opts *o, int option) {
  switch (option) {
  case 'n':
    o->ncounts = 0;
    return perigee__each_word(optarg, take_ranks, o);
  case 'o':
    o->out = optarg;
    return 0;
  case OPT_TRANSPORT:
    o->shm = strcmp(optarg, "tcp") != 0;
    o->tcp = strcmp(optarg, "shm") != 0;
    if (o->shm && o->tcp && strcmp(optarg, "both") != 0)
      return perigee__fail(PERIGEE_EINVAL, "--transport %s is not shm, tcp or both", optarg);
    return 0;
  case OPT_OPS:
    o->ops = optarg;
    return check_ops(optarg);
  case OPT_SIZES:
    o->nsizes = 0;
    return perigee__each_word(optarg, take_size, o);
  case OPT_BUDGET:
    return perigee__int_parse("--budget", optarg, 1, 86400, &o->budget);
  case OPT_TIMEOUT:
    return perigee__int_parse("--timeout", optarg, 1, 86400, &o->timeout);
  case OPT_QUICK:
    o->quick = true;
    return 0;
  case OPT_FORCE:
    o->force = true;
    return 0;
  case OPT_JSON:
    o->json = optarg;
    return 0;
  case OPT_CHECK:
    o->check = optarg;
    return 0;
  default:
    o->help = true;
    return 0;
  }
}

static void fill_in(tune_opts *o) {
  static const size_t quick[] = {64, 4096, 65536, 1048576};
  if (o->budget == 0)
    o->budget = o->quick ? 2 : 30;
  if (o->nsizes > 0)
    return;
  for (size_t i = 0; o->quick && i < PERIGEE_COUNT(quick); i++)
    o->sizes[o->nsizes++] = quick[i];
  for (size_t bytes = 64; !o->quick && bytes <= (size_t)16 << 20; bytes *= 4)
    o->sizes[o->nsizes++] = bytes;
}

static int parse(int argc, char **argv, tune_opts *o) {
  *o = (tune_opts){.shm = true, .tcp = true, .n = {2}, .ncounts = 1, .timeout = 60};
  int option = 0;
  perigee__options_start();
  for (;;) {
    PERIGEE_TRY(perigee__option_next(argc, argv, ":n:o:h", long_options, &option));
    if (option == -1)
      break;
    PERIGEE_TRY(take_option(o, option));
  }
  if (optind < argc)
    return perigee__fail(PERIGEE_EINVAL, "unknown argument '%s'", argv[optind]);
  if (o->out != NULL && !o->force && access(o->out, F_OK) == 0)
    return perigee__fail(PERIGEE_EINVAL, "%s exists: --force writes over it", o->out);
  fill_in(o);
  return 0;
}

/* ---- measuring --------------------------------------------------------------------------------------- */

static void put_ranks(perigee__words *w, const tune_opts *o, int n, const char *transport,
                      const char *part) {
  perigee__words_put(w, perigee__strdup("run"));
  perigee__words_put(w, perigee__format("-n%d", n));
  perigee__words_put_option(w, "--prefix", "never");
  perigee__words_put(w, perigee__format("--timeout=%d", o->budget + o->timeout));
  /* What the rules would be measured against is what is built in. */
  perigee__words_put_option(w, "-x", "PERIGEE_SELECT=");
  perigee__words_put_option(w, "-x", "PERIGEE_TUNING_FILE=");
  perigee__words_put_option(w, "-x", "PERIGEE_PATH=");
  perigee__words_put(w, perigee__strdup("-x"));
  perigee__words_put(w, perigee__format("PERIGEE_TRANSPORT=%s", transport));
  perigee__words_put(w, perigee__format("%s/perigee/tune/measure.lua", perigee__lua_dir()));
  perigee__words_put_pair(w, "out", part);
  perigee__words_put_number(w, "seconds", o->budget);
  perigee__words_put_number(w, "rounds", o->quick ? 2 : 5);
  perigee__words_put_number(w, "progress", isatty(STDERR_FILENO));
  for (int i = 0; i < o->nsizes; i++)
    perigee__words_put(w, perigee__format("size=%zu", o->sizes[i]));
  for (const char *at = o->ops; at != NULL && *at != '\0';) {
    int len = (int)strcspn(at, ",");
    perigee__words_put(w, perigee__format("op=%.*s", len, at));
    at += len + (at[len] == ',');
  }
}

static int out_of_memory(void) {
  fprintf(stderr, "perigee tune: no memory for the arguments\n");
  return 1;
}

/* The exit code of what a child does. The launcher in it sees the keyboard's signals itself; they end us after it. */
static int in_child(int (*run)(int argc, char **argv), perigee__words *w) {
  fflush(NULL);
  pid_t pid = fork();
  if (pid == 0) {
    int code = run((int)w->n, w->v);
    fflush(NULL);
    _exit(code);
  }
  if (pid < 0) {
    fprintf(stderr, "perigee tune: cannot start a process: %s\n", strerror(errno));
    return 1;
  }
  struct sigaction ignore = {.sa_handler = SIG_IGN}, before;
  sigaction(SIGINT, &ignore, &before);
  int status = 0;
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
    ;
  sigaction(SIGINT, &before, NULL);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static int measure(const tune_opts *o, int n, const char *transport, const char *part) {
  perigee__words w = {0};
  put_ranks(&w, o, n, transport, part);
  int code = w.failed ? out_of_memory() : in_child(perigee__run_main, &w);
  perigee__words_fini(&w);
  return code;
}

static int finish(const tune_opts *o, const char *folder, int nparts) {
  perigee__words w = {0};
  perigee__words_put(&w, perigee__strdup("perigee"));
  perigee__words_put(&w, perigee__strdup("lua"));
  perigee__words_put(&w, perigee__format("%s/perigee/tune/write.lua", perigee__lua_dir()));
  for (int i = 0; i < nparts; i++)
    perigee__words_put(&w, perigee__format("part=%s/%d", folder, i));
  perigee__words_put_pair(&w, "out", o->out);
  perigee__words_put_pair(&w, "json", o->json);
  int code = w.failed ? out_of_memory() : perigee__lua_main((int)w.n, w.v);
  perigee__words_fini(&w);
  return code;
}

/* Parts are folder/0, folder/1 ... */
static int measure_all(const tune_opts *o, const char *folder, int *nparts_p) {
  static const char *const transports[] = {"shm", "tcp"};
  for (int i = 0; i < o->ncounts; i++)
    for (int t = 0; t < 2; t++) {
      if (!(t == 0 ? o->shm : o->tcp))
        continue;
      char part[128];
      snprintf(part, sizeof(part), "%.100s/%d", folder, (*nparts_p)++);
      int code = measure(o, o->n[i], transports[t], part);
      if (code != 0)
        return code;
    }
  return 0;
}

static int tune(const tune_opts *o) {
  char folder[64];
  int nparts = 0;
  snprintf(folder, sizeof(folder), "/tmp/perigee-tune-XXXXXX");
  if (mkdtemp(folder) == NULL) {
    fprintf(stderr, "perigee tune: cannot make a folder in /tmp: %s\n", strerror(errno));
    return 1;
  }
  int code = measure_all(o, folder, &nparts);
  if (code == 0)
    code = finish(o, folder, nparts);
  for (int i = 0; i < nparts; i++) {
    char part[128];
    snprintf(part, sizeof(part), "%s/%d", folder, i);
    unlink(part);
  }
  rmdir(folder);
  return code;
}

int perigee__tune_main(int argc, char **argv) {
  tune_opts o;
  if (parse(argc, argv, &o) < 0) {
    fprintf(stderr, "perigee tune: %s\nTry 'perigee tune --help'.\n",
            perigee_last_error()->message);
    return 2;
  }
  if (o.help) {
    fputs(help, stdout);
    return 0;
  }
  if (o.check == NULL)
    return tune(&o);
  if (perigee__info_file(o.check) == 0)
    return 0;
  fprintf(stderr, "perigee tune: %s\n", perigee_last_error()->message);
  return 1;
}
