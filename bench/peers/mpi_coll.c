/*
 * Collectives and messages of an MPI, timed as `perigee bench` times its own. Standard MPI only: the source is compiled once for each MPI.
 *
 *   mpirun -n 4 mpi_coll --sizes 8,65536 --ops allreduce,barrier [--budget 20] [--settle 200] [--wall 60]
 *
 * bytes  = the count argument times the element's 4 bytes: the vector (allreduce, broadcast, reduce), the block of one rank (allgather,
 *          gather, scatter, reduce_scatter), the block for one destination (alltoall), the message (pingpong, bw).
 * time   = each call is timed and followed by a barrier that is not; a rank's figure is its mean, the row's the largest over the
 *          ranks. *_b2b: no barrier between calls, whole loop / calls. pingpong: half a round trip. bw: per message, with a
 *          window in flight. *_ip: MPI_IN_PLACE.
 * calls  = as many as fill --budget milliseconds, barriers included. Before the first row --settle milliseconds of barriers, so that the
 *          kernel has spread the ranks over the cores.
 * Sizes are the outer loop, so that a run that is ended early has the small ones. --wall S: no new row after S seconds.
 *
 * CSV on stdout: op,bytes,usec; at the end "# rows DONE of PLANNED"
 */
#include <mpi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
  SIZES_MAX = 64,
  WINDOW_MAX = 64,
  CALLS_MAX = 100000
};
static const double MEMORY_CAP = 6.5e9; /* bytes of buffers of all ranks */

static int rank, nranks;
static char *A, *B; /* inputs and outputs */

static double now_us(void) {
  struct timespec ts;
  clock_gettime(CLOCK_MONOTONIC, &ts);
  return (double)ts.tv_sec * 1e6 + (double)ts.tv_nsec * 1e-3;
}

static int window_of(size_t bytes) {
  return bytes <= 65536 ? 64 : bytes <= (1u << 20) ? 16 : bytes <= (16u << 20) ? 4 : 2;
}

/* ---- operations ------------------------------------------------------------------------------------- */

#define WORLD MPI_COMM_WORLD
#define N ((int)(bytes / 4))
typedef void call_fn(size_t bytes);

static void allreduce(size_t bytes) { MPI_Allreduce(A, B, N, MPI_FLOAT, MPI_SUM, WORLD); }
static void allreduce_ip(size_t bytes) {
  MPI_Allreduce(MPI_IN_PLACE, A, N, MPI_FLOAT, MPI_SUM, WORLD);
}
static void broadcast(size_t bytes) { MPI_Bcast(A, N, MPI_FLOAT, 0, WORLD); }
static void reduce(size_t bytes) { MPI_Reduce(A, B, N, MPI_FLOAT, MPI_SUM, 0, WORLD); }
static void reduce_ip(size_t bytes) {
  MPI_Reduce(rank == 0 ? MPI_IN_PLACE : (void *)A, rank == 0 ? A : NULL, N, MPI_FLOAT, MPI_SUM, 0,
             WORLD);
}
static void allgather(size_t bytes) { MPI_Allgather(A, N, MPI_FLOAT, B, N, MPI_FLOAT, WORLD); }
static void allgather_ip(size_t bytes) {
  MPI_Allgather(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, B, N, MPI_FLOAT, WORLD);
}
static void reduce_scatter(size_t bytes) {
  MPI_Reduce_scatter_block(A, B, N, MPI_FLOAT, MPI_SUM, WORLD);
}
static void reduce_scatter_ip(size_t bytes) {
  MPI_Reduce_scatter_block(MPI_IN_PLACE, A, N, MPI_FLOAT, MPI_SUM, WORLD);
}
static void alltoall(size_t bytes) { MPI_Alltoall(A, N, MPI_FLOAT, B, N, MPI_FLOAT, WORLD); }
static void gather(size_t bytes) { MPI_Gather(A, N, MPI_FLOAT, B, N, MPI_FLOAT, 0, WORLD); }
static void gather_ip(size_t bytes) {
  MPI_Gather(rank == 0 ? MPI_IN_PLACE : (void *)A, N, MPI_FLOAT, B, N, MPI_FLOAT, 0, WORLD);
}
static void scatter(size_t bytes) { MPI_Scatter(A, N, MPI_FLOAT, B, N, MPI_FLOAT, 0, WORLD); }
static void scatter_ip(size_t bytes) {
  MPI_Scatter(A, N, MPI_FLOAT, rank == 0 ? MPI_IN_PLACE : (void *)B, N, MPI_FLOAT, 0, WORLD);
}
static void barrier(size_t bytes) {
  (void)bytes;
  MPI_Barrier(WORLD);
}

typedef enum kind {
  EACH,
  BACK_TO_BACK,
  PINGPONG,
  BW
} kind;
typedef struct op {
  const char *name;
  kind kind;
  call_fn *call;
  int all_a, all_b; /* A and B hold a block for every rank, not one */
  int sized, on;
} op;

static op ops[] = {
    {"allreduce", EACH, allreduce, 0, 0, 1, 1},
    {"allreduce_ip", EACH, allreduce_ip, 0, 0, 1, 1},
    {"allreduce_b2b", BACK_TO_BACK, allreduce_ip, 0, 0, 1, 1},
    {"broadcast", EACH, broadcast, 0, 0, 1, 1},
    {"reduce", EACH, reduce, 0, 0, 1, 1},
    {"reduce_ip", EACH, reduce_ip, 0, 0, 1, 1},
    {"allgather", EACH, allgather, 0, 1, 1, 1},
    {"allgather_ip", EACH, allgather_ip, 0, 1, 1, 1},
    {"reduce_scatter", EACH, reduce_scatter, 1, 0, 1, 1},
    {"reduce_scatter_ip", EACH, reduce_scatter_ip, 1, 0, 1, 1},
    {"alltoall", EACH, alltoall, 1, 1, 1, 1},
    {"gather", EACH, gather, 0, 1, 1, 1},
    {"gather_ip", EACH, gather_ip, 0, 1, 1, 1},
    {"scatter", EACH, scatter, 1, 0, 1, 1},
    {"scatter_ip", EACH, scatter_ip, 1, 0, 1, 1},
    {"barrier", EACH, barrier, 0, 0, 0, 1},
    {"barrier_b2b", BACK_TO_BACK, barrier, 0, 0, 0, 1},
    {"pingpong", PINGPONG, NULL, 0, 0, 1, 1},
    {"bw", BW, NULL, 0, 0, 1, 1},
};
enum {
  OPS = sizeof(ops) / sizeof(ops[0])
};

/* ---- loops: microseconds per call of this rank ------------------------------------------------------- */

static double loop_each(const op *o, size_t bytes, int iters) {
  double sum = 0;
  for (int i = 0; i < iters; i++) {
    double start = now_us();
    o->call(bytes);
    sum += now_us() - start;
    MPI_Barrier(WORLD);
  }
  return sum / iters;
}

static double loop_back_to_back(const op *o, size_t bytes, int iters) {
  double start = now_us();
  for (int i = 0; i < iters; i++)
    o->call(bytes);
  return (now_us() - start) / iters;
}

static double loop_pingpong(size_t bytes, int iters) {
  double start = now_us();
  for (int i = 0; i < iters; i++) {
    if (rank == 0) {
      MPI_Send(A, (int)bytes, MPI_BYTE, 1, 1, WORLD);
      MPI_Recv(B, (int)bytes, MPI_BYTE, 1, 1, WORLD, MPI_STATUS_IGNORE);
    } else if (rank == 1) {
      MPI_Recv(B, (int)bytes, MPI_BYTE, 0, 1, WORLD, MPI_STATUS_IGNORE);
      MPI_Send(A, (int)bytes, MPI_BYTE, 0, 1, WORLD);
    }
  }
  return (now_us() - start) / iters / 2;
}

static double loop_bw(size_t bytes, int iters) {
  int width = window_of(bytes);
  MPI_Request flying[WINDOW_MAX];
  MPI_Status statuses[WINDOW_MAX];
  double start = now_us();
  for (int i = 0; i < iters; i++) {
    if (rank == 0) {
      for (int k = 0; k < width; k++)
        MPI_Isend(A, (int)bytes, MPI_BYTE, 1, 2, WORLD, &flying[k]);
      MPI_Waitall(width, flying, statuses);
      MPI_Recv(B, 4, MPI_BYTE, 1, 3, WORLD, MPI_STATUS_IGNORE);
    } else if (rank == 1) {
      for (int k = 0; k < width; k++)
        MPI_Irecv(B, (int)bytes, MPI_BYTE, 0, 2, WORLD, &flying[k]);
      MPI_Waitall(width, flying, statuses);
      MPI_Send(A, 4, MPI_BYTE, 0, 3, WORLD);
    }
  }
  return (now_us() - start) / iters / width;
}

static double loop(const op *o, size_t bytes, int iters) {
  switch (o->kind) {
  case EACH:
    return loop_each(o, bytes, iters);
  case BACK_TO_BACK:
    return loop_back_to_back(o, bytes, iters);
  case PINGPONG:
    return loop_pingpong(bytes, iters);
  default:
    return loop_bw(bytes, iters);
  }
}

static double largest(double value) {
  double result;
  MPI_Allreduce(&value, &result, 1, MPI_DOUBLE, MPI_MAX, WORLD);
  return result;
}

/* Microseconds that one call takes with the barrier after it: of the slowest rank. */
static double pace(const op *o, size_t bytes, int iters) {
  double start = now_us();
  loop(o, bytes, iters);
  return largest(now_us() - start) / iters;
}

/* Warm up, find how many calls fill the budget, measure. Long calls are warm after one. */
static double measure(const op *o, size_t bytes, double budget_us) {
  double per = pace(o, bytes, 1);
  if (per < 50000)
    per = pace(o, bytes, 2);
  if (per < 2000)
    per = pace(o, bytes, 10);
  double calls = budget_us / (per > 0.05 ? per : 0.05);
  int least = per > 200000 ? 1 : per > 20000 ? 2 : 5;
  int iters = calls < least ? least : calls > CALLS_MAX ? CALLS_MAX : (int)calls;
  if (iters > 20)
    loop(o, bytes, iters / 10);
  MPI_Barrier(WORLD);
  return largest(loop(o, bytes, iters));
}

/* Ranks that have just begun share a core for a while, however many there are. */
static void settle(double us) {
  double start = now_us();
  for (int n = 1; largest(now_us() - start) < us; n = n < 512 ? 2 * n : n)
    for (int i = 0; i < n; i++)
      MPI_Barrier(WORLD);
}

/* ---- arguments ------------------------------------------------------------------------------------ */

typedef struct args {
  size_t sizes[SIZES_MAX];
  int nsizes;
  double budget_us, settle_us, wall_us;
} args;

static void die(const char *what, const char *value) {
  if (rank == 0)
    fprintf(stderr, "mpi_coll: %s %s\n", what, value);
  MPI_Abort(WORLD, 2);
  exit(2);
}

static int is_listed(const char *list, const char *name) {
  size_t n = strlen(name);
  for (const char *at = list; (at = strstr(at, name)) != NULL; at += n)
    if ((at == list || at[-1] == ',') && (at[n] == '\0' || at[n] == ','))
      return 1;
  return 0;
}

static void take_sizes(args *a, char *list) {
  for (char *item = strtok(list, ","); item != NULL; item = strtok(NULL, ",")) {
    if (a->nsizes == SIZES_MAX)
      die("too many sizes:", item);
    a->sizes[a->nsizes++] = strtoull(item, NULL, 10) / 4 * 4;
  }
}

static void parse(args *a, int argc, char **argv) {
  for (int i = 1; i < argc; i += 2) {
    if (i + 1 == argc)
      die("no value for", argv[i]);
    if (strcmp(argv[i], "--sizes") == 0)
      take_sizes(a, argv[i + 1]);
    else if (strcmp(argv[i], "--ops") == 0)
      for (int k = 0; k < OPS; k++)
        ops[k].on = is_listed(argv[i + 1], ops[k].name);
    else if (strcmp(argv[i], "--budget") == 0)
      a->budget_us = atof(argv[i + 1]) * 1e3;
    else if (strcmp(argv[i], "--settle") == 0)
      a->settle_us = atof(argv[i + 1]) * 1e3;
    else if (strcmp(argv[i], "--wall") == 0)
      a->wall_us = atof(argv[i + 1]) * 1e6;
    else
      die("unknown argument", argv[i]);
  }
  if (a->nsizes == 0)
    die("--sizes", "is missing");
}

static size_t need(int all, size_t bytes) { return bytes * (all ? (size_t)nranks : 1); }

static int fits(const op *o, size_t bytes) {
  return (double)(need(o->all_a, bytes) + need(o->all_b, bytes)) * nranks <= MEMORY_CAP;
}

static void allocate(const args *a) {
  size_t for_a = 4096, for_b = 4096;
  for (int k = 0; k < OPS; k++)
    for (int s = 0; ops[k].on && ops[k].sized && s < a->nsizes; s++) {
      if (!fits(&ops[k], a->sizes[s]))
        continue;
      size_t bytes = need(ops[k].all_a, a->sizes[s]);
      for_a = bytes > for_a ? bytes : for_a;
      bytes = need(ops[k].all_b, a->sizes[s]);
      for_b = bytes > for_b ? bytes : for_b;
    }
  if (posix_memalign((void **)&A, 4096, for_a) != 0 ||
      posix_memalign((void **)&B, 4096, for_b) != 0)
    die("no memory for", "the buffers");
  for (size_t i = 0; i < for_a / 4; i++)
    ((float *)A)[i] = 1.0f;
  for (size_t i = 0; i < for_b / 4; i++)
    ((float *)B)[i] = 1.0f;
}

/* One sum is checked, so that it is known to compute what it is timed for. */
static void check(void) {
  float x = (float)(rank + 1), sum = 0;
  MPI_Allreduce(&x, &sum, 1, MPI_FLOAT, MPI_SUM, WORLD);
  if (sum != (float)(nranks * (nranks + 1)) / 2)
    die("a wrong", "sum");
}

static int is_row(const op *o, const args *a, int s) {
  return o->on && (o->sized ? fits(o, a->sizes[s]) : s == 0);
}

/* Returns the number of rows that are done. */
static int measure_all(const args *a) {
  double start = now_us();
  int done = 0;
  for (int s = 0; s < a->nsizes; s++)
    for (int k = 0; k < OPS; k++) {
      if (!is_row(&ops[k], a, s))
        continue;
      if (largest(now_us() - start) > a->wall_us)
        return done;
      double us = measure(&ops[k], a->sizes[s], a->budget_us);
      if (rank == 0)
        printf("%s,%zu,%.4f\n", ops[k].name, ops[k].sized ? a->sizes[s] : 0, us);
      fflush(stdout);
      done++;
    }
  return done;
}

int main(int argc, char **argv) {
  args a = {.budget_us = 20000, .settle_us = 200000, .wall_us = 1e12};
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(WORLD, &rank);
  MPI_Comm_size(WORLD, &nranks);
  parse(&a, argc, argv);
  int planned = 0;
  for (int k = 0; k < OPS; k++) {
    if ((ops[k].kind == PINGPONG || ops[k].kind == BW) && nranks != 2)
      ops[k].on = 0;
    for (int s = 0; s < a.nsizes; s++)
      planned += is_row(&ops[k], &a, s);
  }
  allocate(&a);
  check();
  settle(a.settle_us);
  int done = measure_all(&a);
  if (rank == 0)
    printf("# rows %d of %d\n", done, planned);
  MPI_Finalize();
  return 0;
}
