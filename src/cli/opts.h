/* What `perigee run` was asked to do. */
#ifndef PERIGEE_CLI_OPTS_H
#define PERIGEE_CLI_OPTS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/attr.h"
#include "cli/opt_values.h"

typedef enum perigee__prefix {
  PERIGEE__PREFIX_AUTO, /* when the world has more than one rank */
  PERIGEE__PREFIX_ALWAYS,
  PERIGEE__PREFIX_NEVER
} perigee__prefix;

/** Strings are borrowed from argv except where noted. */
typedef struct perigee__run_opts {
  bool help;
  int n; /* ranks on this node */
  int nnodes, node_rank;
  char *host; /* of --endpoint, owned; NULL: a free port of 127.0.0.1 */
  int port;
  const char *log_dir;    /* NULL: none */
  const char *ranks_text; /* as given; NULL: all */
  bool *shown;            /* [n * nnodes], owned: whose output is shown */
  perigee__prefix prefix;
  int64_t timeout_ns; /* PERIGEE_NEVER: none */
  int64_t grace_ns;
  bool keep_going;
  char **exports; /* NAME=VALUE, owned array, nexports entries */
  int nexports;
  char **program; /* program and its arguments, NULL-terminated */
} perigee__run_opts;

/** argv[0] is the subcommand. Errors: EINVAL naming the option and its value. Outputs set on success only. */
PERIGEE_MUST_CHECK int perigee__run_opts_parse(int argc, char **argv, perigee__run_opts *opts_p);
void perigee__run_opts_fini(perigee__run_opts *opts);

/** "0,3-5" into set[0..world). EINVAL naming what is wrong; set is unspecified then. */
PERIGEE_MUST_CHECK int perigee__ranks_parse(const char *text, int world, bool *set);
/** "host:port" or "[v6]:port". *host_p: owned by the caller. */
PERIGEE_MUST_CHECK int perigee__endpoint_parse(const char *text, char **host_p, int *port_p);

#endif
