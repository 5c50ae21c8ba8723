#include "cli/launch.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include <perigee/store.h>

#include "base/alloc.h"
#include "base/error.h"
#include "cli/address.h"
#include "cli/nodes.h"
#include "cli/opts.h"
#include "cli/paths.h"
#include "cli/supervise.h"

extern char **environ;

static const char help[] =
    "Usage: perigee run [OPTIONS] [--] SCRIPT.lua|PROGRAM [ARGUMENT...]\n"
    "\n"
    "Start ranks that find each other, show their output with the rank in front, and end all of\n"
    "them when one fails. A *.lua file is run by Perigee itself, anything else as it is.\n"
    "\n"
    "Ranks\n"
    "  -n N | auto          ranks on this machine (default 1; auto: one per usable core)\n"
    "  --nnodes K           machines; start the command once on each\n"
    "  --node-rank R        which of them this is, from 0\n"
    "  --endpoint HOST:PORT where machine 0 listens (default: a free port of 127.0.0.1)\n"
    "  -x NAME=VALUE        set a variable for the ranks; may be given again\n"
    "\n"
    "Output\n"
    "  --prefix WHEN        auto (more than one rank), always or never (default auto)\n"
    "  --ranks LIST         show only these ranks, for example 0,3-5\n"
    "  --log-dir DIR        also write DIR/rank_0000/stdout.log and stderr.log, and so on\n"
    "\n"
    "Ends\n"
    "  --timeout S          end everything after S seconds, exit code 124\n"
    "  --grace S            seconds between the request to end and SIGKILL (default 5)\n"
    "  --keep-going         a rank that fails does not end the others\n"
    "\n"
    "Ranks get RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, GROUP_RANK, MASTER_ADDR, "
    "MASTER_PORT\n"
    "and PERIGEE_RUN_ID; on a terminal also PERIGEE_TTY=1 and COLUMNS. With several machines they\n"
    "listen on PERIGEE_BIND: the address by which this machine reaches HOST, unless you set it.\n"
    "The exit code is that of the rank that failed first, 128 + signal if a signal ended it.\n"
    "Ctrl-C asks all ranks to end, a second one kills them.\n"
    "\n"
    "Examples\n"
    "  perigee run -n 4 train.lua --epochs 3\n"
    "  perigee run -n auto --ranks 0 --log-dir logs train.lua\n"
    "  perigee run -n 2 --timeout 60 lua5.4 script.lua\n"
    "  perigee run -n 8 --nnodes 2 --node-rank 0 --endpoint node0:29500 train.lua\n";

typedef struct launch {
  perigee__run_opts opts;
  perigee_store_server *server; /* NULL on nodes other than 0 */
  char run_id[33];
  char bind[46];    /* PERIGEE_BIND for the ranks; empty: it is set, or there is one machine */
  const char *addr; /* of the store, borrowed */
  int port;
  char **argv; /* of every rank, owned array */
  bool lua;    /* a script, run by `perigee lua` */
  perigee__nodes nodes;
  perigee__job job;
} launch;

/* ---- what is to be run ------------------------------------------------------------------------------- */

static bool is_script(const char *program) {
  size_t len = strlen(program);
  return len > 4 && strcmp(program + len - 4, ".lua") == 0;
}

static int make_argv(launch *l) {
  char **program = l->opts.program;
  size_t n = 0;
  while (program[n] != NULL)
    n++;
  l->argv = perigee__calloc(n + 3, sizeof(*l->argv));
  if (l->argv == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory for %zu arguments", n);
  l->lua = is_script(program[0]);
  size_t at = 0;
  if (l->lua) {
    static char subcommand[] = "lua";
    l->argv[at++] = (char *)(uintptr_t)perigee__exe_path();
    l->argv[at++] = subcommand;
  }
  memcpy(l->argv + at, program, n * sizeof(*program));
  return 0;
}

/* One message, instead of one per rank, for a script that is not there. */
static int check_script(const launch *l) {
  if (l->lua && access(l->opts.program[0], R_OK) < 0)
    return perigee__fail_errno(errno, "cannot start '%s'", l->opts.program[0]);
  return 0;
}

/* ---- where ranks meet -------------------------------------------------------------------------------- */

static int make_run_id(char *run_id) {
  unsigned char bytes[16];
  if (getrandom(bytes, sizeof(bytes), 0) != (ssize_t)sizeof(bytes))
    return perigee__fail_errno(errno, "no random number");
  for (size_t i = 0; i < sizeof(bytes); i++)
    snprintf(run_id + 2 * i, 3, "%02x", bytes[i]);
  return 0;
}

static int serve(launch *l) {
  const perigee__run_opts *o = &l->opts;
  PERIGEE_TRY(make_run_id(l->run_id));
  l->addr = o->host != NULL ? o->host : "127.0.0.1";
  l->port = o->port;
  if (o->node_rank == 0) {
    PERIGEE_TRY(perigee_store_server_create(l->addr, o->port, &l->server));
    l->port = perigee_store_server_port(l->server);
  }
  if (o->nnodes == 1)
    return 0;
  /* Ranks of other machines reach those here where the others' launchers reach this one. */
  if (getenv("PERIGEE_BIND") == NULL)
    PERIGEE_TRY(perigee__address_towards(l->addr, l->port, l->bind, sizeof(l->bind)));
  return perigee__nodes_join(&l->nodes, o, l->run_id);
}

/* ---- ranks ------------------------------------------------------------------------------------------- */

static bool has_prefix(const perigee__run_opts *o) {
  return o->prefix == PERIGEE__PREFIX_ALWAYS ||
         (o->prefix == PERIGEE__PREFIX_AUTO && o->n * o->nnodes > 1);
}

static perigee__rank_style style_of(const launch *l, int rank) {
  const perigee__run_opts *o = &l->opts;
  bool alone = o->n == 1 && !has_prefix(o) && o->shown[rank];
  return (perigee__rank_style){.shown = o->shown[rank],
                               .prefix = has_prefix(o),
                               .raw = alone,
                               .inherit = alone && l->job.console.out_tty && o->log_dir == NULL,
                               .log_dir = o->log_dir};
}

static int common_environ(const launch *l, perigee__environ *env) {
  const perigee__run_opts *o = &l->opts;
  if (l->bind[0] != '\0')
    PERIGEE_TRY(perigee__environ_put(env, "PERIGEE_BIND=%s", l->bind));
  for (int i = 0; i < o->nexports; i++)
    PERIGEE_TRY(perigee__environ_put(env, "%s", o->exports[i]));
  perigee__environ_drop(env, "PERIGEE_TTY");
  if (l->job.console.out_tty) {
    PERIGEE_TRY(perigee__environ_put(env, "PERIGEE_TTY=1"));
    int columns = perigee__console_columns(&l->job.console);
    int taken = has_prefix(o) ? snprintf(NULL, 0, "[%d] ", o->n * o->nnodes - 1) : 0;
    if (columns > taken)
      PERIGEE_TRY(perigee__environ_put(env, "COLUMNS=%d", columns - taken));
  }
  PERIGEE_TRY(perigee__environ_put(env, "WORLD_SIZE=%d", o->n * o->nnodes));
  PERIGEE_TRY(perigee__environ_put(env, "LOCAL_WORLD_SIZE=%d", o->n));
  PERIGEE_TRY(perigee__environ_put(env, "GROUP_RANK=%d", o->node_rank));
  PERIGEE_TRY(perigee__environ_put(env, "MASTER_ADDR=%s", l->addr));
  PERIGEE_TRY(perigee__environ_put(env, "MASTER_PORT=%d", l->port));
  return perigee__environ_put(env, "PERIGEE_RUN_ID=%s", l->run_id);
}

static int rank_environ(const launch *l, const perigee__rank *rank, perigee__environ *env) {
  int rc = perigee__environ_init(env, environ);
  if (rc == 0)
    rc = common_environ(l, env);
  if (rc == 0)
    rc = perigee__environ_put(env, "RANK=%d", rank->number);
  if (rc == 0)
    rc = perigee__environ_put(env, "LOCAL_RANK=%d", rank->local);
  return rc;
}

static int start_rank(launch *l, int local, int null_fd, const struct rlimit *files,
                      bool *exec_failed_p) {
  perigee__job *job = &l->job;
  perigee__rank *rank = &job->ranks[local];
  int number = l->opts.node_rank * l->opts.n + local;
  perigee__rank_style style = style_of(l, number);
  int rc = perigee__rank_init(rank, number, local, &job->console, &job->hooks, &style);
  job->nranks = local + 1;
  if (rc < 0)
    return rc;
  perigee__child_spec spec = {.argv = l->argv, .in = number == 0 ? -1 : null_fd, .files = *files};
  perigee__environ env;
  rc = rank_environ(l, rank, &env);
  if (rc == 0)
    rc = perigee__rank_start(rank, &job->loop, &spec, &env, style.inherit, l->lua, exec_failed_p);
  perigee__environ_fini(&env);
  if (rank->pid > 0)
    job->nstarted = local + 1;
  return rc;
}

/* The ranks' pipes need descriptors; ranks themselves get the limit that we were given. */
static void raise_files(int n, struct rlimit *given) {
  struct rlimit more = {.rlim_cur = 64, .rlim_max = 64};
  if (getrlimit(RLIMIT_NOFILE, given) < 0)
    *given = more;
  more = *given;
  rlim_t wanted = 64 + 8 * (rlim_t)n;
  if (more.rlim_cur != RLIM_INFINITY && more.rlim_cur < wanted) {
    more.rlim_cur = wanted < more.rlim_max ? wanted : more.rlim_max;
    setrlimit(RLIMIT_NOFILE, &more);
  }
}

static int exec_code(int rc) { return rc == -ENOENT ? 127 : 126; }

static void start_ranks(launch *l) {
  perigee__job *job = &l->job;
  struct rlimit files;
  raise_files(l->opts.n, &files);
  bool exec_failed = false;
  int rc = 0;
  int null_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
  job->ranks = perigee__calloc((size_t)l->opts.n, sizeof(*job->ranks));
  if (null_fd < 0)
    rc = perigee__fail_errno(errno, "cannot open /dev/null");
  else if (job->ranks == NULL)
    rc = perigee__fail(PERIGEE_ENOMEM, "no memory for %d ranks", l->opts.n);
  for (int local = 0; rc == 0 && local < l->opts.n; local++)
    rc = start_rank(l, local, null_fd, &files, &exec_failed);
  if (null_fd >= 0)
    close(null_fd);
  if (rc < 0) {
    perigee__console_say(&job->console, "%s", perigee_last_error()->message);
    perigee__job_start_failed(job, exec_failed ? exec_code(rc) : 1);
  }
}

/* ---- the whole --------------------------------------------------------------------------------------- */

static int fail(int code) {
  fprintf(stderr, "perigee run: %s\n", perigee_last_error()->message);
  return code;
}

static int supervise(launch *l) {
  if (perigee__job_init(&l->job, &l->opts) < 0)
    return fail(1);
  start_ranks(l);
  bool many = l->opts.nnodes > 1;
  if (many)
    perigee__nodes_watch(&l->nodes, &l->job);
  int code = perigee__job_run(&l->job);
  if (many)
    perigee__nodes_leave(&l->nodes);
  perigee__job_fini(&l->job);
  return code;
}

static int run(launch *l) {
  if (make_argv(l) < 0)
    return fail(1);
  if (check_script(l) < 0)
    return fail(exec_code(perigee_last_error()->code));
  int code = serve(l) < 0 ? fail(1) : supervise(l);
  if (l->opts.nnodes > 1)
    perigee__nodes_fini(&l->nodes);
  perigee_store_server_destroy(&l->server);
  return code;
}

int perigee__run_main(int argc, char **argv) {
  static launch l;
  if (perigee__run_opts_parse(argc, argv, &l.opts) < 0) {
    fprintf(stderr, "perigee run: %s\nTry 'perigee run --help'.\n", perigee_last_error()->message);
    return 2;
  }
  int code = 0;
  if (l.opts.help)
    fputs(help, stdout);
  else
    code = run(&l);
  free(l.argv);
  perigee__run_opts_fini(&l.opts);
  return code;
}
