#include "cli/bench_opts.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <perigee/op.h>

#include "base/error.h"
#include "cli/opt_values.h"

/* ---- values ------------------------------------------------------------------------------------------ */

static int add_size(perigee__bench_opts *o, size_t bytes) {
  if (o->nsizes == PERIGEE__BENCH_SIZES)
    return perigee__fail(PERIGEE_EINVAL, "more than %d sizes", PERIGEE__BENCH_SIZES);
  o->sizes[o->nsizes++] = bytes;
  return 0;
}

/* first, first * factor, ... up to last */
static int make_sizes(perigee__bench_opts *o, size_t first, size_t last, double factor) {
  if (last < first)
    return perigee__fail(PERIGEE_EINVAL, "-e: the last size (%zu) is below the first (%zu)", last,
                         first);
  for (double size = (double)first; size <= (double)last; size *= factor)
    PERIGEE_TRY(add_size(o, (size_t)size));
  return 0;
}

static int take_size(const char *word, void *arg) {
  size_t bytes;
  PERIGEE_TRY(perigee__bytes_parse("--sizes", word, &bytes));
  return add_size(arg, bytes);
}

static int check_op(const char *name) {
  static const char *const more[] = {"all", "pingpong", "bw", NULL};
  for (int i = 0; more[i] != NULL; i++)
    if (strcmp(name, more[i]) == 0)
      return 0;
  if (perigee_op_find(name) >= 0)
    return 0;
  return perigee__fail(
      PERIGEE_EINVAL, "'%s' is no operation (perigee bench --help lists them), pingpong, bw or all",
      name);
}

static int check_reduce(const perigee__bench_opts *o) {
  perigee_dtype dtype;
  if (perigee_dtype_parse(o->dtype, &dtype) < 0)
    return perigee__fail(PERIGEE_EINVAL, "-d '%s' is no dtype", o->dtype);
  int kind = perigee_redop_find(o->redop);
  if (kind < 0 || kind >= PERIGEE_REDOP_PREMUL_SUM)
    return perigee__fail(PERIGEE_EINVAL,
                         "-o '%s' is none of sum, avg, product, min, max, band, bor, bxor",
                         o->redop);
  if (!perigee_redop_defined(kind, dtype))
    return perigee__fail(PERIGEE_EINVAL, "-o %s is not defined for -d %s", o->redop, o->dtype);
  return 0;
}

static int check_file(const char *option, const char *path) {
  if (access(path, R_OK) < 0)
    return perigee__fail(PERIGEE_EINVAL, "%s: cannot read '%s'", option, path);
  return 0;
}

/* ---- options ----------------------------------------------------------------------------------------- */

/* Sizes are put together when all options are known. */
typedef struct range {
  size_t first, last;
  double factor;
  const char *list;
} range;

enum {
  OPT_ITERS = 256,
  OPT_BUDGET,
  OPT_SETTLE,
  OPT_REPS,
  OPT_SIZES,
  OPT_BACKEND,
  OPT_LOAD,
  OPT_TRANSPORT,
  OPT_IN_PLACE,
  OPT_SYMMETRIC,
  OPT_B2B,
  OPT_OVERLAP,
  OPT_FROM,
  OPT_JSON,
  OPT_PLOT,
  OPT_OVERLAY,
  OPT_LABEL,
  OPT_TIMEOUT,
  OPT_NNODES,
  OPT_NODE_RANK,
  OPT_ENDPOINT
};

static const struct option long_options[] = {{"iters", required_argument, NULL, OPT_ITERS},
                                             {"budget", required_argument, NULL, OPT_BUDGET},
                                             {"settle", required_argument, NULL, OPT_SETTLE},
                                             {"reps", required_argument, NULL, OPT_REPS},
                                             {"sizes", required_argument, NULL, OPT_SIZES},
                                             {"backend", required_argument, NULL, OPT_BACKEND},
                                             {"load", required_argument, NULL, OPT_LOAD},
                                             {"transport", required_argument, NULL, OPT_TRANSPORT},
                                             {"in-place", no_argument, NULL, OPT_IN_PLACE},
                                             {"symmetric", no_argument, NULL, OPT_SYMMETRIC},
                                             {"b2b", no_argument, NULL, OPT_B2B},
                                             {"overlap", no_argument, NULL, OPT_OVERLAP},
                                             {"from", required_argument, NULL, OPT_FROM},
                                             {"json", required_argument, NULL, OPT_JSON},
                                             {"plot", required_argument, NULL, OPT_PLOT},
                                             {"overlay", required_argument, NULL, OPT_OVERLAY},
                                             {"label", required_argument, NULL, OPT_LABEL},
                                             {"timeout", required_argument, NULL, OPT_TIMEOUT},
                                             {"nnodes", required_argument, NULL, OPT_NNODES},
                                             {"node-rank", required_argument, NULL, OPT_NODE_RANK},
                                             {"endpoint", required_argument, NULL, OPT_ENDPOINT},
                                             {"help", no_argument, NULL, 'h'},
                                             {NULL, 0, NULL, 0}};

static int take_factor(const char *text, double *factor_p) {
  double factor;
  PERIGEE_TRY(perigee__number_parse("-f", text, "number", false, &factor));
  if (!(factor > 1))
    return perigee__fail(PERIGEE_EINVAL, "-f '%s' is not a number above 1", text);
  *factor_p = factor;
  return 0;
}

static int take_short(perigee__bench_opts *o, range *r, int option) {
  int flag = 0;
  switch (option) {
  case 'n':
    o->n = optarg;
    return perigee__count_parse(optarg, &o->ranks);
  case 'b':
    return perigee__bytes_parse("-b", optarg, &r->first);
  case 'e':
    return perigee__bytes_parse("-e", optarg, &r->last);
  case 'f':
    return take_factor(optarg, &r->factor);
  case 'w':
    return perigee__int_parse("-w", optarg, 0, 1000000, &o->warmup);
  case 'c':
    PERIGEE_TRY(perigee__int_parse("-c", optarg, 0, 1, &flag));
    o->check = flag != 0;
    return 0;
  case 'd':
    o->dtype = optarg;
    return 0;
  case 'o':
    o->redop = optarg;
    return 0;
  case 'r':
    return perigee__int_parse("-r", optarg, 0, PERIGEE__RANKS_MAX * 16, &o->root);
  case 'x':
    return perigee__export_add(&o->exports, &o->nexports, optarg);
  default: /* 'h' */
    o->help = true;
    return 0;
  }
}

static int take_run(perigee__bench_opts *o, int option) {
  static const char *const transports[] = {"auto", "shm", "tcp", NULL};
  static const char *const callers[] = {"c", "lua", NULL};
  int which;
  switch (option) {
  case OPT_BACKEND:
    o->backend = optarg;
    return 0;
  case OPT_LOAD:
    PERIGEE_TRY(check_file("--load", optarg));
    return perigee__texts_add(&o->loads, &o->nloads, optarg);
  case OPT_TRANSPORT:
    o->transport = optarg;
    return perigee__name_parse("--transport", optarg, transports, &which);
  case OPT_IN_PLACE:
    o->in_place = true;
    return 0;
  case OPT_SYMMETRIC:
    o->symmetric = true;
    return 0;
  case OPT_B2B:
    o->b2b = true;
    return 0;
  case OPT_OVERLAP:
    o->overlap = true;
    return 0;
  case OPT_FROM:
    PERIGEE_TRY(perigee__name_parse("--from", optarg, callers, &which));
    o->from_lua = which == 1;
    return 0;
  case OPT_NNODES:
    return perigee__int_parse("--nnodes", optarg, 1, PERIGEE__RANKS_MAX, &o->nnodes);
  case OPT_NODE_RANK:
    return perigee__int_parse("--node-rank", optarg, 0, PERIGEE__RANKS_MAX - 1, &o->node_rank);
  default: /* OPT_ENDPOINT */
    o->endpoint = optarg;
    return 0;
  }
}

static int take_option(perigee__bench_opts *o, range *r, int option) {
  double number; /* handed on as it was written */
  switch (option) {
  case OPT_ITERS:
    return perigee__int_parse("--iters", optarg, 1, 10000000, &o->iters);
  case OPT_REPS:
    return perigee__int_parse("--reps", optarg, 1, 1000, &o->reps);
  case OPT_SETTLE:
    return perigee__int_parse("--settle", optarg, 0, 60000, &o->settle_ms);
  case OPT_BUDGET:
    o->budget = optarg;
    return perigee__number_parse("--budget", optarg, "number", false, &number);
  case OPT_TIMEOUT:
    o->timeout = optarg;
    return perigee__number_parse("--timeout", optarg, "number of seconds", false, &number);
  case OPT_SIZES:
    r->list = optarg;
    return 0;
  case OPT_JSON:
    o->json = optarg;
    return 0;
  case OPT_PLOT:
    o->plot = optarg;
    return 0;
  case OPT_OVERLAY:
    o->overlay = optarg;
    return 0;
  case OPT_LABEL:
    o->label = optarg;
    return 0;
  default:
    return option < 256 ? take_short(o, r, option) : take_run(o, option);
  }
}

/* What can be said only when all options are known. */
static int check_together(perigee__bench_opts *o, const range *r) {
  if (r->list != NULL)
    PERIGEE_TRY(perigee__each_word(r->list, take_size, o));
  else
    PERIGEE_TRY(make_sizes(o, r->first, r->last, r->factor));
  PERIGEE_TRY(check_reduce(o));
  for (int i = 0; i < o->nops; i++)
    PERIGEE_TRY(check_op(o->ops[i]));
  if (o->root >= o->ranks * o->nnodes)
    return perigee__fail(PERIGEE_EINVAL, "-r %d: with %d ranks the last is %d", o->root,
                         o->ranks * o->nnodes, o->ranks * o->nnodes - 1);
  if (o->overlay != NULL && o->plot == NULL)
    return perigee__fail(PERIGEE_EINVAL, "--overlay needs --plot FILE");
  if (o->overlap && (o->b2b || o->from_lua))
    return perigee__fail(PERIGEE_EINVAL, "--overlap goes with neither --b2b nor --from lua");
  return 0;
}

static int parse_into(int argc, char **argv, perigee__bench_opts *o) {
  range r = {.first = 8, .last = (size_t)64 << 20, .factor = 2};
  perigee__options_start();
  for (;;) {
    int option;
    PERIGEE_TRY(perigee__option_next(argc, argv, ":n:b:e:f:w:c:d:o:r:x:h", long_options, &option));
    if (option == -1)
      break;
    PERIGEE_TRY(take_option(o, &r, option));
    if (o->help)
      return 0;
  }
  o->ops = argv + optind;
  o->nops = argc - optind;
  return check_together(o, &r);
}

int perigee__bench_opts_parse(int argc, char **argv, perigee__bench_opts *opts_p) {
  perigee__bench_opts o = {.n = "2",
                           .ranks = 2,
                           .nnodes = 1,
                           .node_rank = -1,
                           .warmup = -1,
                           .reps = 1,
                           .budget = "20",
                           .settle_ms = 200,
                           .check = true,
                           .dtype = "f32",
                           .redop = "sum",
                           .backend = "native",
                           .transport = "auto",
                           .timeout = "600"};
  int rc = parse_into(argc, argv, &o);
  if (rc < 0) {
    perigee__bench_opts_fini(&o);
    return rc;
  }
  *opts_p = o;
  return 0;
}

void perigee__bench_opts_fini(perigee__bench_opts *opts) {
  free(opts->loads);
  free(opts->exports);
  opts->loads = NULL;
  opts->exports = NULL;
}
