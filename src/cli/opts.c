#include "cli/opts.h"

#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/error.h"
#include "cli/opt_values.h"

int perigee__endpoint_parse(const char *text, char **host_p, int *port_p) {
  const char *colon = strrchr(text, ':');
  const char *host = text, *host_end = colon;
  if (colon != NULL && text[0] == '[' && colon > text + 1 && colon[-1] == ']') {
    host = text + 1;
    host_end = colon - 1;
  } else if (colon != NULL && memchr(text, ':', (size_t)(colon - text)) != NULL) {
    return perigee__fail(PERIGEE_EINVAL,
                         "--endpoint '%s': an IPv6 address is written [address]:port", text);
  }
  if (colon == NULL || host == host_end)
    return perigee__fail(PERIGEE_EINVAL, "--endpoint '%s' is not host:port", text);
  int port;
  if (perigee__int_parse("--endpoint: port", colon + 1, 1, 65535, &port) < 0)
    return PERIGEE_EINVAL;
  char *copy = perigee__format("%.*s", (int)(host_end - host), host);
  if (copy == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory for the endpoint");
  *host_p = copy;
  *port_p = port;
  return 0;
}

int perigee__ranks_parse(const char *text, int world, bool *set) {
  memset(set, 0, (size_t)world * sizeof(*set));
  const char *at = text;
  for (;;) {
    char *end;
    errno = 0;
    long first = strtol(at, &end, 10), last = first;
    if (end == at || errno != 0)
      break;
    if (*end == '-') {
      at = end + 1;
      last = strtol(at, &end, 10);
      if (end == at || errno != 0)
        break;
    }
    if (first < 0 || last < first)
      break;
    if (last >= world)
      return perigee__fail(PERIGEE_EINVAL, "--ranks '%s': there is no rank %ld, the last is %d",
                           text, last, world - 1);
    for (long r = first; r <= last; r++)
      set[r] = true;
    if (*end == '\0')
      return 0;
    if (*end != ',')
      break;
    at = end + 1;
  }
  return perigee__fail(PERIGEE_EINVAL, "--ranks '%s' is not a list of ranks such as 0,3-5", text);
}

enum {
  OPT_NNODES = 256,
  OPT_NODE_RANK,
  OPT_ENDPOINT,
  OPT_LOG_DIR,
  OPT_RANKS,
  OPT_PREFIX,
  OPT_TIMEOUT,
  OPT_GRACE,
  OPT_KEEP_GOING
};

static const struct option long_options[] = {{"nnodes", required_argument, NULL, OPT_NNODES},
                                             {"node-rank", required_argument, NULL, OPT_NODE_RANK},
                                             {"endpoint", required_argument, NULL, OPT_ENDPOINT},
                                             {"log-dir", required_argument, NULL, OPT_LOG_DIR},
                                             {"ranks", required_argument, NULL, OPT_RANKS},
                                             {"prefix", required_argument, NULL, OPT_PREFIX},
                                             {"timeout", required_argument, NULL, OPT_TIMEOUT},
                                             {"grace", required_argument, NULL, OPT_GRACE},
                                             {"keep-going", no_argument, NULL, OPT_KEEP_GOING},
                                             {"help", no_argument, NULL, 'h'},
                                             {NULL, 0, NULL, 0}};

static int take_prefix(const char *text, perigee__prefix *prefix_p) {
  static const char *const names[] = {"auto", "always", "never", NULL};
  int which;
  PERIGEE_TRY(perigee__name_parse("--prefix", text, names, &which));
  *prefix_p = (perigee__prefix)which;
  return 0;
}

static int take_seconds(const char *option, const char *text, bool zero, int64_t *ns_p) {
  double seconds;
  PERIGEE_TRY(perigee__number_parse(option, text, "number of seconds", zero, &seconds));
  *ns_p = (int64_t)(seconds * (double)PERIGEE_NS_PER_SEC);
  return 0;
}

static int take_option(perigee__run_opts *o, int option) {
  switch (option) {
  case 'n':
    return perigee__count_parse(optarg, &o->n);
  case 'x':
    return perigee__export_add(&o->exports, &o->nexports, optarg);
  case 'h':
    o->help = true;
    return 0;
  case OPT_NNODES:
    return perigee__int_parse("--nnodes", optarg, 1, PERIGEE__RANKS_MAX, &o->nnodes);
  case OPT_NODE_RANK:
    return perigee__int_parse("--node-rank", optarg, 0, PERIGEE__RANKS_MAX - 1, &o->node_rank);
  case OPT_ENDPOINT:
    free(o->host);
    o->host = NULL;
    return perigee__endpoint_parse(optarg, &o->host, &o->port);
  case OPT_LOG_DIR:
    o->log_dir = optarg;
    return optarg[0] != '\0' ? 0 : perigee__fail(PERIGEE_EINVAL, "--log-dir '' is no folder");
  case OPT_RANKS:
    o->ranks_text = optarg;
    return 0;
  case OPT_PREFIX:
    return take_prefix(optarg, &o->prefix);
  case OPT_TIMEOUT:
    return take_seconds("--timeout", optarg, false, &o->timeout_ns);
  case OPT_GRACE:
    return take_seconds("--grace", optarg, true, &o->grace_ns);
  case OPT_KEEP_GOING:
    o->keep_going = true;
    return 0;
  default:
    return perigee__fail(PERIGEE_EBUG, "option %d has no meaning", option);
  }
}

/* What can be said only when all options are known. */
static int check_together(perigee__run_opts *o) {
  if (o->nnodes > 1 && o->host == NULL)
    return perigee__fail(PERIGEE_EINVAL, "--nnodes %d needs --endpoint host:port", o->nnodes);
  if (o->nnodes > 1 && o->node_rank < 0)
    return perigee__fail(PERIGEE_EINVAL, "--nnodes %d needs --node-rank 0 to %d", o->nnodes,
                         o->nnodes - 1);
  if (o->node_rank < 0)
    o->node_rank = 0;
  if (o->node_rank >= o->nnodes)
    return perigee__fail(PERIGEE_EINVAL, "--node-rank %d: with --nnodes %d the last is %d",
                         o->node_rank, o->nnodes, o->nnodes - 1);
  if (o->n > PERIGEE__RANKS_MAX * 16 / o->nnodes)
    return perigee__fail(PERIGEE_EINVAL, "-n %d on %d nodes: more than %d ranks", o->n, o->nnodes,
                         PERIGEE__RANKS_MAX * 16);
  int world = o->n * o->nnodes;
  o->shown = perigee__calloc((size_t)world, sizeof(*o->shown));
  if (o->shown == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory for %d ranks", world);
  if (o->ranks_text != NULL)
    return perigee__ranks_parse(o->ranks_text, world, o->shown);
  memset(o->shown, true, (size_t)world * sizeof(*o->shown));
  return 0;
}

static int parse_into(int argc, char **argv, perigee__run_opts *o) {
  perigee__options_start();
  for (;;) {
    int option;
    PERIGEE_TRY(perigee__option_next(argc, argv, "+:n:x:h", long_options, &option));
    if (option == -1)
      break;
    PERIGEE_TRY(take_option(o, option));
    if (o->help)
      return 0;
  }
  if (optind >= argc)
    return perigee__fail(PERIGEE_EINVAL, "no script or program given");
  o->program = argv + optind;
  return check_together(o);
}

int perigee__run_opts_parse(int argc, char **argv, perigee__run_opts *opts_p) {
  perigee__run_opts o = {.n = 1,
                         .nnodes = 1,
                         .node_rank = -1,
                         .timeout_ns = PERIGEE_NEVER,
                         .grace_ns = 5 * PERIGEE_NS_PER_SEC};
  int rc = parse_into(argc, argv, &o);
  if (rc < 0) {
    perigee__run_opts_fini(&o);
    return rc;
  }
  *opts_p = o;
  return 0;
}

void perigee__run_opts_fini(perigee__run_opts *opts) {
  free(opts->host);
  free(opts->shown);
  free(opts->exports);
  opts->exports = NULL;
  opts->host = NULL;
  opts->shown = NULL;
}
