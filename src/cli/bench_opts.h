/* What `perigee bench` was asked to do. */
#ifndef PERIGEE_CLI_BENCH_OPTS_H
#define PERIGEE_CLI_BENCH_OPTS_H

#include <stdbool.h>
#include <stddef.h>

#include "base/attr.h"
#include "cli/opt_values.h"

enum {
  PERIGEE__BENCH_SIZES = 64
};

/** Strings are borrowed from argv. */
typedef struct perigee__bench_opts {
  bool help;
  const char *n; /* ranks on this node, as `perigee run` takes it */
  int ranks;     /* the same as a number */
  int nnodes, node_rank;
  const char *endpoint;               /* NULL: none */
  size_t sizes[PERIGEE__BENCH_SIZES]; /* bytes, ascending as given */
  int nsizes;
  int settle_ms;      /* barriers before the first row */
  int iters;          /* calls per row; 0: as many as fill the budget */
  int warmup;         /* calls before; -1: a tenth */
  int reps;           /* repetitions of all rows */
  const char *budget; /* milliseconds per row, a number above 0 */
  bool check;
  const char *dtype, *redop;
  int root;
  const char *backend, *transport;
  bool in_place, symmetric, b2b, overlap, from_lua;
  const char *json, *plot, *overlay, *label; /* NULL: none */
  const char *timeout;                       /* seconds, as `perigee run` takes it */
  char **loads;                              /* files to run first, owned array */
  int nloads;
  char **exports; /* NAME=VALUE, owned array */
  int nexports;
  char **ops; /* names; nops 0: allreduce, or only the plot */
  int nops;
} perigee__bench_opts;

/** argv[0] is the subcommand. Errors: EINVAL naming the option and its value. Outputs set on success only. */
PERIGEE_MUST_CHECK int perigee__bench_opts_parse(int argc, char **argv,
                                                 perigee__bench_opts *opts_p);
void perigee__bench_opts_fini(perigee__bench_opts *opts);

#endif
