/*
 * `perigee bench`: checks the options, then starts the ranks as `perigee run` does. The ranks run lua/perigee/bench/main.lua,
 * whose measured loops are in C (bench_loop.c).
 */
#include "cli/bench.h"

#include <stdio.h>

#include "base/alloc.h"
#include "base/error.h"
#include "cli/bench_opts.h"
#include "cli/launch.h"
#include "cli/lua_main.h"
#include "cli/paths.h"
#include "cli/words.h"

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

static void put_sizes(perigee__words *w, const perigee__bench_opts *o) {
  for (int i = 0; i < o->nsizes; i++)
    perigee__words_put(w, perigee__format("size=%zu", o->sizes[i]));
}

/* key=value, in any order; those that may be given again are lists there. */
static void put_script(perigee__words *w, const perigee__bench_opts *o) {
  perigee__words_put(w, perigee__format("%s/perigee/bench/main.lua", perigee__lua_dir()));
  put_sizes(w, o);
  for (int i = 0; i < o->nops; i++)
    perigee__words_put_pair(w, "op", o->ops[i]);
  for (int i = 0; i < o->nloads; i++)
    perigee__words_put_pair(w, "load", o->loads[i]);
  perigee__words_put_number(w, "iters", o->iters);
  perigee__words_put_number(w, "warmup", o->warmup);
  perigee__words_put_number(w, "reps", o->reps);
  perigee__words_put_pair(w, "budget", o->budget);
  perigee__words_put_number(w, "settle", o->settle_ms);
  perigee__words_put_number(w, "check", o->check);
  perigee__words_put_pair(w, "dtype", o->dtype);
  perigee__words_put_pair(w, "redop", o->redop);
  perigee__words_put_number(w, "root", o->root);
  perigee__words_put_pair(w, "backend", o->backend);
  perigee__words_put_pair(w, "mode", o->overlap ? "overlap" : o->b2b ? "b2b" : "each");
  perigee__words_put_pair(w, "from", o->from_lua ? "lua" : "c");
  perigee__words_put_number(w, "in_place", o->in_place);
  perigee__words_put_number(w, "symmetric", o->symmetric);
  perigee__words_put_pair(w, "json", o->json);
  perigee__words_put_pair(w, "plot", o->plot);
  perigee__words_put_pair(w, "overlay", o->overlay);
  perigee__words_put_pair(w, "label", o->label);
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
  perigee__words w = {0};
  perigee__words_put(&w, perigee__strdup("perigee"));
  perigee__words_put(&w, perigee__strdup("lua"));
  put_script(&w, o);
  perigee__words_put_pair(&w, "measure", "0");
  int code = w.failed ? out_of_memory() : perigee__lua_main((int)w.n, w.v);
  perigee__words_fini(&w);
  return code;
}

static int measure(const perigee__bench_opts *o) {
  perigee__words w = {0};
  perigee__words_put(&w, perigee__strdup("run"));
  perigee__words_put_option(&w, "-n", o->n);
  perigee__words_put_option(&w, "--prefix", "never");
  perigee__words_put_option(&w, "--ranks", "0");
  perigee__words_put_option(&w, "--timeout", o->timeout);
  perigee__words_put_option(&w, "--endpoint", o->endpoint);
  if (o->nnodes > 1)
    perigee__words_put(&w, perigee__format("--nnodes=%d", o->nnodes));
  if (o->node_rank >= 0)
    perigee__words_put(&w, perigee__format("--node-rank=%d", o->node_rank));
  for (int i = 0; i < o->nexports; i++)
    perigee__words_put_option(&w, "-x", o->exports[i]);
  perigee__words_put(&w, perigee__strdup("-x"));
  perigee__words_put(&w, perigee__format("PERIGEE_TRANSPORT=%s", o->transport));
  put_script(&w, o);
  int code = w.failed ? out_of_memory() : perigee__run_main((int)w.n, w.v);
  perigee__words_fini(&w);
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
