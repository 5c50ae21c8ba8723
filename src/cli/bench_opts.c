#include "cli/bench_opts.h"

#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <perigee/op.h>

#include "base/alloc.h"
#include "base/error.h"
#include "base/futex.h"
#include "cli/opts.h"

/* ---- values ------------------------------------------------------------------------------------------ */

int perigee__bytes_parse(const char *option, const char *text, size_t *bytes_p) {
  static const char units[] = "KMG";
  char *end;
  double value = strtod(text, &end);
  double scale = 1;
  const char *unit = *end != '\0' ? strchr(units, *end & ~0x20) : NULL;
  if (unit != NULL) {
    for (const char *u = units; u <= unit; u++)
      scale *= 1024;
    end++;
    if (strcmp(end, "B") == 0 || strcmp(end, "iB") == 0)
      end += strlen(end);
  }
  if (end == text || *end != '\0' || !(value * scale >= 1) || value * scale > 1e12)
    return perigee__fail(PERIGEE_EINVAL, "%s '%s' is not a size such as 8, 64K or 16M", option,
                         text);
  *bytes_p = (size_t)(value * scale);
  return 0;
}

static int parse_whole(const char *option, const char *text, long min, long max, int *value_p) {
  char *end;
  errno = 0;
  long value = strtol(text, &end, 10);
  if (errno != 0 || end == text || *end != '\0' || value < min || value > max)
    return perigee__fail(PERIGEE_EINVAL, "%s '%s' is not a whole number from %ld to %ld", option,
                         text, min, max);
  *value_p = (int)value;
  return 0;
}

static int check_above_zero(const char *option, const char *text) {
  char *end;
  double value = strtod(text, &end);
  if (end == text || *end != '\0' || !(value > 0) || value > 1e9)
    return perigee__fail(PERIGEE_EINVAL, "%s '%s' is not a number above 0", option, text);
  return 0;
}

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

static int parse_sizes(perigee__bench_opts *o, const char *list) {
  char *copy = perigee__strdup(list), *rest = copy;
  if (copy == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory for the sizes");
  int rc = 0;
  for (char *item; rc == 0 && (item = strsep(&rest, ",")) != NULL;) {
    size_t bytes = 0;
    rc = perigee__bytes_parse("--sizes", item, &bytes);
    if (rc == 0)
      rc = add_size(o, bytes);
  }
  free(copy);
  return rc;
}

static int append(char ***list_p, int *count_p, char *text) {
  char **more = realloc(*list_p, ((size_t)*count_p + 1) * sizeof(*more));
  if (more == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory for '%s'", text);
  *list_p = more;
  more[(*count_p)++] = text;
  return 0;
}

static int one_of(const char *option, const char *text, const char *const *names,
                  const char *shown) {
  for (; *names != NULL; names++)
    if (strcmp(text, *names) == 0)
      return 0;
  return perigee__fail(PERIGEE_EINVAL, "%s '%s' is none of %s", option, text, shown);
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
  char *end;
  double factor = strtod(text, &end);
  if (end == text || *end != '\0' || !(factor > 1) || factor > 1e9)
    return perigee__fail(PERIGEE_EINVAL, "-f '%s' is not a number above 1", text);
  *factor_p = factor;
  return 0;
}

static int take_short(perigee__bench_opts *o, range *r, int option) {
  int flag = 0;
  switch (option) {
  case 'n':
    o->n = optarg;
    o->ranks = strcmp(optarg, "auto") == 0 ? perigee__usable_cores() : 0;
    return o->ranks > 0 ? 0 : parse_whole("-n", optarg, 1, PERIGEE__RANKS_MAX, &o->ranks);
  case 'b':
    return perigee__bytes_parse("-b", optarg, &r->first);
  case 'e':
    return perigee__bytes_parse("-e", optarg, &r->last);
  case 'f':
    return take_factor(optarg, &r->factor);
  case 'w':
    return parse_whole("-w", optarg, 0, 1000000, &o->warmup);
  case 'c':
    PERIGEE_TRY(parse_whole("-c", optarg, 0, 1, &flag));
    o->check = flag != 0;
    return 0;
  case 'd':
    o->dtype = optarg;
    return 0;
  case 'o':
    o->redop = optarg;
    return 0;
  case 'r':
    return parse_whole("-r", optarg, 0, PERIGEE__RANKS_MAX * 16, &o->root);
  case 'x':
    return append(&o->exports, &o->nexports, optarg);
  default: /* 'h' */
    o->help = true;
    return 0;
  }
}

static int take_run(perigee__bench_opts *o, int option) {
  static const char *const transports[] = {"auto", "shm", "tcp", NULL};
  static const char *const callers[] = {"c", "lua", NULL};
  switch (option) {
  case OPT_BACKEND:
    o->backend = optarg;
    return 0;
  case OPT_LOAD:
    PERIGEE_TRY(check_file("--load", optarg));
    return append(&o->loads, &o->nloads, optarg);
  case OPT_TRANSPORT:
    o->transport = optarg;
    return one_of("--transport", optarg, transports, "auto, shm, tcp");
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
    o->from_lua = strcmp(optarg, "lua") == 0;
    return one_of("--from", optarg, callers, "c, lua");
  case OPT_NNODES:
    return parse_whole("--nnodes", optarg, 1, PERIGEE__RANKS_MAX, &o->nnodes);
  case OPT_NODE_RANK:
    return parse_whole("--node-rank", optarg, 0, PERIGEE__RANKS_MAX - 1, &o->node_rank);
  default: /* OPT_ENDPOINT */
    o->endpoint = optarg;
    return 0;
  }
}

static int take_option(perigee__bench_opts *o, range *r, int option) {
  switch (option) {
  case OPT_ITERS:
    return parse_whole("--iters", optarg, 1, 10000000, &o->iters);
  case OPT_REPS:
    return parse_whole("--reps", optarg, 1, 1000, &o->reps);
  case OPT_SETTLE:
    return parse_whole("--settle", optarg, 0, 60000, &o->settle_ms);
  case OPT_BUDGET:
    o->budget = optarg;
    return check_above_zero("--budget", optarg);
  case OPT_TIMEOUT:
    o->timeout = optarg;
    return check_above_zero("--timeout", optarg);
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
    PERIGEE_TRY(parse_sizes(o, r->list));
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
  optind = 0; /* glibc: start afresh */
  opterr = 0;
  for (;;) {
    int at = optind > 0 ? optind : 1;
    int option = getopt_long(argc, argv, ":n:b:e:f:w:c:d:o:r:x:h", long_options, NULL);
    if (option == -1)
      break;
    if (option == '?')
      return perigee__fail(PERIGEE_EINVAL, "unknown option '%s'", argv[at]);
    if (option == ':')
      return perigee__fail(PERIGEE_EINVAL, "option '%s' needs a value", argv[at]);
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
