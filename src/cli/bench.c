/*
 * `perigee bench`: checks the options, then starts the ranks as `perigee run` does. The ranks run lua/perigee/bench/main.lua,
 * whose measured loops are in C (bench_loop.c).
 */
#include "cli/bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "cli/bench_opts.h"
#include "cli/launch.h"
#include "cli/lua_main.h"
#include "cli/paths.h"

static const char help[] =
    "Usage: perigee bench [OPTIONS] [OPERATION...]\n"
    "\n"
    "Time operations (default: allreduce) on ranks started for it; columns as nccl-tests.\n"
    "\n"
    "Operations: allreduce allreduce_coalesced broadcast reduce allgather allgather_into_tensor\n"
    "  allgather_into_tensor_coalesced gather scatter reduce_scatter reduce_scatter_tensor\n"
    "  reduce_scatter_tensor_coalesced alltoall alltoall_base barrier monitored_barrier\n"
    "  send recv recv_anysource, pingpong (half a round trip), bw (a window in flight), all\n"
    "\n"
    "What\n"
    "  -n N | auto          ranks on this machine (default 2)\n"
    "  -b, -e, -f           first and last size, factor between (default 8, 64M, 2)\n"
    "  --sizes LIST         these sizes instead, for example 8,1K,64M\n"
    "  -d DTYPE             element type (default f32)\n"
    "  -o OP                reduce operation (default sum)\n"
    "  -r RANK              root (default 0)\n"
    "  --in-place           allgather_into_tensor, reduce_scatter_tensor: one buffer\n"
    "  --symmetric          inputs and outputs are tensors that all ranks share (group:alloc)\n"
    "  --backend STACK      layers, for example 'log(native)' (default native)\n"
    "  --load FILE.lua      run a file first that registers backends; may be given again\n"
    "  --transport WHICH    auto, shm or tcp\n"
    "\n"
    "How\n"
    "  --settle MS          barriers before the first row, until the ranks have cores (default "
    "200)\n"
    "  --iters N            calls per row (default: as many as fill --budget, 5 to 100000; fewer "
    "of\n"
    "                       those that take more than 20 ms)\n"
    "  --budget MS          milliseconds per row, barriers included (default 20)\n"
    "  -w N                 calls before that (default a tenth)\n"
    "  --reps N             repeat everything and show medians of the rows (default 1)\n"
    "  -c 0 | 1             check results, column #wrong (default 1)\n"
    "  --b2b                back to back: no barrier between calls, time of the whole loop\n"
    "  --overlap            start, compute as long as the call takes, wait: what is hidden\n"
    "  --from c | lua       who calls: a loop in C, or blocking calls from Lua (default c)\n"
    "\n"
    "Result\n"
    "  --json FILE          also as JSON\n"
    "  --plot FILE.svg      draw latency and bandwidth\n"
    "  --overlay A,B        JSON files drawn too; without an operation nothing is measured\n"
    "  --label NAME         name of this run in the drawing\n"
    "\n"
    "Ranks\n"
    "  --timeout S          end everything after S seconds, exit code 124 (default 600)\n"
    "  --nnodes K, --node-rank R, --endpoint HOST:PORT, -x NAME=VALUE\n"
    "                       as for perigee run\n"
    "\n"
    "size is bytes per rank: the vector (allreduce, broadcast, reduce), the block of one rank\n"
    "(allgather, gather, scatter, reduce_scatter), the block for one destination (alltoall).\n"
    "algbw and busbw count the larger side, as nccl-tests do.\n"
    "Each call is timed and followed by a barrier that is not; time is a rank's mean, p50 and\n"
    "p99 are of its calls, each the largest over the ranks; min the smallest call of the rank\n"
    "whose smallest is largest.\n"
    "\n"
    "Examples\n"
    "  perigee bench -n 4 -e 1M allreduce broadcast\n"
    "  perigee bench --backend 'fp16(native)' --sizes 64K,16M --json fp16.json\n"
    "  perigee bench --plot out.svg --overlay fp16.json,native.json\n";

/* ---- arguments for the launcher and for the script --------------------------------------------------- */

/* An argument list; strings are owned. */
typedef struct words {
  char **v; /* NULL-terminated */
  size_t n;
  bool failed;
} words;

static void put(words *w, char *word) {
  char **more = w->failed ? NULL : realloc(w->v, (w->n + 2) * sizeof(*more));
  if (word == NULL || more == NULL) {
    w->failed = true;
    free(word);
    return;
  }
  w->v = more;
  more[w->n++] = word;
  more[w->n] = NULL;
}

static void put2(words *w, const char *option, const char *value) {
  if (value != NULL) {
    put(w, perigee__strdup(option));
    put(w, perigee__strdup(value));
  }
}

static void put_pair(words *w, const char *key, const char *value) {
  if (value != NULL)
    put(w, perigee__format("%s=%s", key, value));
}

static void put_number(words *w, const char *key, int value) {
  put(w, perigee__format("%s=%d", key, value));
}

static void put_sizes(words *w, const perigee__bench_opts *o) {
  for (int i = 0; i < o->nsizes; i++)
    put(w, perigee__format("size=%zu", o->sizes[i]));
}

static void free_words(words *w) {
  for (size_t i = 0; i < w->n; i++)
    free(w->v[i]);
  free(w->v);
}

/* key=value, in any order; those that may be given again are lists there. */
static void put_script(words *w, const perigee__bench_opts *o) {
  put(w, perigee__format("%s/perigee/bench/main.lua", perigee__lua_dir()));
  put_sizes(w, o);
  for (int i = 0; i < o->nops; i++)
    put_pair(w, "op", o->ops[i]);
  for (int i = 0; i < o->nloads; i++)
    put_pair(w, "load", o->loads[i]);
  put_number(w, "iters", o->iters);
  put_number(w, "warmup", o->warmup);
  put_number(w, "reps", o->reps);
  put_pair(w, "budget", o->budget);
  put_number(w, "settle", o->settle_ms);
  put_number(w, "check", o->check);
  put_pair(w, "dtype", o->dtype);
  put_pair(w, "redop", o->redop);
  put_number(w, "root", o->root);
  put_pair(w, "backend", o->backend);
  put_pair(w, "mode", o->overlap ? "overlap" : o->b2b ? "b2b" : "each");
  put_pair(w, "from", o->from_lua ? "lua" : "c");
  put_number(w, "in_place", o->in_place);
  put_number(w, "symmetric", o->symmetric);
  put_pair(w, "json", o->json);
  put_pair(w, "plot", o->plot);
  put_pair(w, "overlay", o->overlay);
  put_pair(w, "label", o->label);
}

static int fail(int code) {
  fprintf(stderr, "perigee bench: %s\n", perigee_last_error()->message);
  return code;
}

static int out_of_memory(void) {
  perigee__fail(PERIGEE_ENOMEM, "no memory for the arguments");
  return fail(1);
}

/* The drawing needs no ranks. */
static int plot_only(const perigee__bench_opts *o) {
  words w = {0};
  put(&w, perigee__strdup("perigee"));
  put(&w, perigee__strdup("lua"));
  put_script(&w, o);
  put_pair(&w, "measure", "0");
  int code = w.failed ? out_of_memory() : perigee__lua_main((int)w.n, w.v);
  free_words(&w);
  return code;
}

static int measure(const perigee__bench_opts *o) {
  words w = {0};
  put(&w, perigee__strdup("run"));
  put2(&w, "-n", o->n);
  put2(&w, "--prefix", "never");
  put2(&w, "--ranks", "0");
  put2(&w, "--timeout", o->timeout);
  put2(&w, "--endpoint", o->endpoint);
  if (o->nnodes > 1)
    put(&w, perigee__format("--nnodes=%d", o->nnodes));
  if (o->node_rank >= 0)
    put(&w, perigee__format("--node-rank=%d", o->node_rank));
  for (int i = 0; i < o->nexports; i++)
    put2(&w, "-x", o->exports[i]);
  put(&w, perigee__strdup("-x"));
  put(&w, perigee__format("PERIGEE_TRANSPORT=%s", o->transport));
  put_script(&w, o);
  int code = w.failed ? out_of_memory() : perigee__run_main((int)w.n, w.v);
  free_words(&w);
  return code;
}

int perigee__bench_main(int argc, char **argv) {
  perigee__bench_opts o;
  if (perigee__bench_opts_parse(argc, argv, &o) < 0) {
    fprintf(stderr, "perigee bench: %s\nTry 'perigee bench --help'.\n",
            perigee_last_error()->message);
    return 2;
  }
  int code = 0;
  if (o.help)
    fputs(help, stdout);
  else if (o.overlay != NULL && o.nops == 0)
    code = plot_only(&o);
  else
    code = measure(&o);
  perigee__bench_opts_fini(&o);
  return code;
}
