/*
 * The operations of mpi_coll.c on Gloo's C++ API, in the calling thread (no torch, no Python): the quickest way to use Gloo. Same
 * sizes, same meaning of bytes, same timing, same CSV.
 *
 *   gloo_coll --ranks 4 --sizes 8,65536 [--ops a,b] [--budget 20] [--settle 200] [--wall 60] [--iface lo] [--netns first,second]
 *
 * It forks its ranks; with --netns they are dealt out to the network namespaces in turn.
 */
#include <gloo/allgather.h>
#include <gloo/allreduce.h>
#include <gloo/alltoall.h>
#include <gloo/barrier.h>
#include <gloo/broadcast.h>
#include <gloo/gather.h>
#include <gloo/math.h>
#include <gloo/reduce.h>
#include <gloo/reduce_scatter.h>
#include <gloo/rendezvous/context.h>
#include <gloo/rendezvous/file_store.h>
#include <gloo/scatter.h>
#include <gloo/transport/tcp/device.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <memory>
#include <string>
#include <vector>

static const double MEMORY_CAP = 6.5e9; // bytes of buffers of all ranks
static const int CALLS_MAX = 100000;

static std::shared_ptr<gloo::rendezvous::Context> context;
static int rank_ = -1, nranks = 2;
static float *A, *B; // inputs and outputs

static double now_us() {
  struct timespec ts;
  clock_gettime(CLOCK_MONOTONIC, &ts);
  return ts.tv_sec * 1e6 + ts.tv_nsec * 1e-3;
}

static int window_of(size_t bytes) {
  return bytes <= 65536 ? 64 : bytes <= (1u << 20) ? 16 : bytes <= (16u << 20) ? 4 : 2;
}

static void barrier() {
  gloo::BarrierOptions o(context);
  o.setTag(99);
  gloo::barrier(o);
}

static double largest(double value) {
  gloo::AllreduceOptions o(context);
  o.setOutput(&value, 1);
  o.setTag(98);
  o.setReduceFunction(
      static_cast<void (*)(void *, const void *, const void *, size_t)>(&gloo::max<double>));
  gloo::allreduce(o);
  return value;
}

static void sum(void *out, const void *a, const void *b, size_t n) {
  float *__restrict z = static_cast<float *>(out);
  const float *x = static_cast<const float *>(a), *y = static_cast<const float *>(b);
  for (size_t i = 0; i < n; i++)
    z[i] = x[i] + y[i];
}

// ---- operations: a call for one size ------------------------------------------------------------------

typedef std::function<void()> Call;

static Call allreduce(size_t n, gloo::AllreduceOptions::Algorithm how) {
  return [n, how] {
    gloo::AllreduceOptions o(context);
    o.setAlgorithm(how);
    o.setOutput(A, n);
    o.setReduceFunction(sum);
    gloo::allreduce(o);
  };
}
static Call allreduce_ring(size_t n) {
  return allreduce(n, gloo::AllreduceOptions::Algorithm::RING);
}
static Call allreduce_bcube(size_t n) {
  return allreduce(n, gloo::AllreduceOptions::Algorithm::BCUBE);
}
static Call broadcast(size_t n) {
  return [n] {
    gloo::BroadcastOptions o(context);
    o.setOutput(A, n);
    o.setRoot(0);
    gloo::broadcast(o);
  };
}
static Call reduce(size_t n) {
  return [n] {
    gloo::ReduceOptions o(context);
    o.setOutput(A, n);
    o.setRoot(0);
    o.setReduceFunction(sum);
    gloo::reduce(o);
  };
}
static Call allgather(size_t n) {
  return [n] {
    gloo::AllgatherOptions o(context);
    o.setInput(A, n);
    o.setOutput(B, n * nranks);
    gloo::allgather(o);
  };
}
static Call alltoall(size_t n) {
  return [n] {
    gloo::AlltoallOptions o(context);
    o.setInput(A, n * nranks);
    o.setOutput(B, n * nranks);
    gloo::alltoall(o);
  };
}
static Call gather(size_t n) {
  return [n] {
    gloo::GatherOptions o(context);
    o.setInput(A, n);
    if (rank_ == 0)
      o.setOutput(B, n * nranks);
    o.setRoot(0);
    gloo::gather(o);
  };
}
static Call scatter(size_t n) {
  return [n] {
    gloo::ScatterOptions o(context);
    if (rank_ == 0) {
      std::vector<float *> blocks(nranks);
      for (int i = 0; i < nranks; i++)
        blocks[i] = A + n * i;
      o.setInputs(blocks, n);
    }
    o.setOutput(B, n);
    o.setRoot(0);
    gloo::scatter(o);
  };
}
static Call reduce_scatter(size_t n) {
  std::vector<int> counts(nranks, static_cast<int>(n));
  auto algorithm = std::make_shared<gloo::ReduceScatterHalvingDoubling<float>>(
      context, std::vector<float *>{A}, static_cast<int>(n * nranks), counts,
      gloo::ReductionFunction<float>::sum);
  return [algorithm] { algorithm->run(); };
}
static Call barrier_call(size_t) { return barrier; }

enum Kind {
  EACH,
  BACK_TO_BACK,
  PINGPONG,
  BW
};
struct Op {
  const char *name;
  Kind kind;
  Call (*make)(size_t);
  bool all_a, all_b; // A and B hold a block for every rank, not one
};

// Allreduce, reduce and reduce_scatter work in place; as in mpi_coll.c that is said by _ip.
static const std::vector<Op> OPS = {{"allreduce_ip", EACH, allreduce_ring, false, false},
                                    {"allreduce_bcube_ip", EACH, allreduce_bcube, false, false},
                                    {"allreduce_b2b", BACK_TO_BACK, allreduce_ring, false, false},
                                    {"broadcast", EACH, broadcast, false, false},
                                    {"reduce_ip", EACH, reduce, false, false},
                                    {"allgather", EACH, allgather, false, true},
                                    {"reduce_scatter_ip", EACH, reduce_scatter, true, false},
                                    {"alltoall", EACH, alltoall, true, true},
                                    {"gather", EACH, gather, false, true},
                                    {"scatter", EACH, scatter, true, false},
                                    {"barrier", EACH, barrier_call, false, false},
                                    {"barrier_b2b", BACK_TO_BACK, barrier_call, false, false},
                                    {"pingpong", PINGPONG, nullptr, false, false},
                                    {"bw", BW, nullptr, false, false}};

// ---- loops: microseconds per call of this rank ----------------------------------------------------------

static double loop_messages(const Op &op, size_t bytes, int iters) {
  auto out = context->createUnboundBuffer(A, bytes), in = context->createUnboundBuffer(B, bytes);
  const int peer = 1 - rank_, width = op.kind == BW ? window_of(bytes) : 1;
  double start = now_us();
  for (int i = 0; i < iters; i++) {
    if (rank_ == 0) {
      for (int k = 0; k < width; k++)
        out->send(peer, 7);
      for (int k = 0; k < width; k++)
        out->waitSend();
      in->recv(peer, 8, 0, op.kind == BW ? 4 : bytes);
      in->waitRecv();
    } else {
      for (int k = 0; k < width; k++)
        in->recv(peer, 7);
      for (int k = 0; k < width; k++)
        in->waitRecv();
      out->send(peer, 8, 0, op.kind == BW ? 4 : bytes);
      out->waitSend();
    }
  }
  double us = (now_us() - start) / iters;
  return op.kind == BW ? us / width : us / 2;
}

static double loop(const Op &op, const Call &call, size_t bytes, int iters) {
  if (op.kind == PINGPONG || op.kind == BW)
    return loop_messages(op, bytes, iters);
  double start = now_us();
  if (op.kind == BACK_TO_BACK) {
    for (int i = 0; i < iters; i++)
      call();
    return (now_us() - start) / iters;
  }
  double total = 0;
  for (int i = 0; i < iters; i++) {
    start = now_us();
    call();
    total += now_us() - start;
    barrier();
  }
  return total / iters;
}

// Microseconds that one call takes with the barrier after it: of the slowest rank.
static double pace(const Op &op, const Call &call, size_t bytes, int iters) {
  double start = now_us();
  loop(op, call, bytes, iters);
  return largest(now_us() - start) / iters;
}

static double measure(const Op &op, size_t bytes, double budget_us) {
  Call call = op.make ? op.make(bytes / 4) : Call();
  double per = pace(op, call, bytes, 1);
  if (per < 50000)
    per = pace(op, call, bytes, 2);
  if (per < 2000)
    per = pace(op, call, bytes, 10);
  int least = per > 200000 ? 1 : per > 20000 ? 2 : 5;
  int iters = std::max(
      least, static_cast<int>(std::min<double>(CALLS_MAX, budget_us / std::max(per, 0.05))));
  if (iters > 20)
    loop(op, call, bytes, iters / 10);
  barrier();
  return largest(loop(op, call, bytes, iters));
}

static void settle(double us) {
  double start = now_us();
  for (int n = 1; largest(now_us() - start) < us; n = n < 512 ? 2 * n : n)
    for (int i = 0; i < n; i++)
      barrier();
}

// ---- ranks --------------------------------------------------------------------------------------------

struct Args {
  std::string iface = "lo", netns, ops, store;
  std::vector<size_t> sizes;
  double budget_us = 20000, settle_us = 200000, wall_us = 1e12;
};

static std::vector<std::string> split(const std::string &text) {
  std::vector<std::string> list;
  for (size_t at = 0; !text.empty() && at != std::string::npos;) {
    size_t comma = text.find(',', at);
    list.push_back(text.substr(at, comma == std::string::npos ? comma : comma - at));
    at = comma == std::string::npos ? comma : comma + 1;
  }
  return list;
}

static void die(const std::string &what) {
  fprintf(stderr, "gloo_coll: %s\n", what.c_str());
  exit(2);
}

static Args parse(int argc, char **argv) {
  Args a;
  for (int i = 1; i < argc; i += 2) {
    std::string key = argv[i];
    if (i + 1 == argc)
      die("no value for " + key);
    std::string value = argv[i + 1];
    if (key == "--iface")
      a.iface = value;
    else if (key == "--netns")
      a.netns = value;
    else if (key == "--ops")
      a.ops = "," + value + ",";
    else if (key == "--sizes")
      for (auto &s : split(value))
        a.sizes.push_back(strtoull(s.c_str(), nullptr, 10) / 4 * 4);
    else if (key == "--budget")
      a.budget_us = atof(value.c_str()) * 1e3;
    else if (key == "--settle")
      a.settle_us = atof(value.c_str()) * 1e3;
    else if (key == "--wall")
      a.wall_us = atof(value.c_str()) * 1e6;
    else if (key == "--ranks")
      nranks = atoi(value.c_str());
    else if (key == "--rank")
      rank_ = atoi(value.c_str());
    else if (key == "--store")
      a.store = value;
    else
      die("unknown argument " + key);
  }
  if (a.sizes.empty())
    die("--sizes is missing");
  return a;
}

// Each rank is this program again, inside its namespace, and ends when the launcher does.
static int launch(const Args &a, int argc, char **argv) {
  std::string base = getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp";
  std::string dir = base + "/gloo_collXXXXXX";
  if (!mkdtemp(&dir[0]))
    die("no temporary folder");
  char exe[4096];
  ssize_t len = readlink("/proc/self/exe", exe, sizeof(exe) - 1);
  std::string self(exe, len > 0 ? len : 0);
  auto spaces = split(a.netns);
  for (int r = 0; r < nranks; r++) {
    if (fork())
      continue;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    std::vector<std::string> words;
    if (!spaces.empty())
      words = {"ip", "netns", "exec", spaces[r % spaces.size()]};
    words.push_back(self);
    words.insert(words.end(), argv + 1, argv + argc);
    words.insert(words.end(), {"--rank", std::to_string(r), "--store", dir});
    std::vector<char *> pointers;
    for (auto &w : words)
      pointers.push_back(&w[0]);
    pointers.push_back(nullptr);
    execvp(pointers[0], pointers.data());
    _exit(127);
  }
  int bad = 0, status;
  while (wait(&status) > 0)
    bad |= status;
  if (system(("rm -rf '" + dir + "'").c_str()) != 0)
    bad = 1;
  return bad != 0;
}

static size_t need(bool all, size_t bytes) { return bytes * (all ? nranks : 1); }

static bool is_on(const Args &a, const Op &op) {
  if ((op.kind == PINGPONG || op.kind == BW) && nranks != 2)
    return false;
  return a.ops.empty() || a.ops.find("," + std::string(op.name) + ",") != std::string::npos;
}

static bool fits(const Op &op, size_t bytes) {
  return static_cast<double>(need(op.all_a, bytes) + need(op.all_b, bytes)) * nranks <= MEMORY_CAP;
}

static void allocate(const Args &a) {
  size_t for_a = 4096, for_b = 4096;
  for (auto &op : OPS)
    for (size_t bytes : a.sizes)
      if (is_on(a, op) && fits(op, bytes)) {
        for_a = std::max(for_a, need(op.all_a, bytes));
        for_b = std::max(for_b, need(op.all_b, bytes));
      }
  if (posix_memalign(reinterpret_cast<void **>(&A), 4096, for_a) != 0 ||
      posix_memalign(reinterpret_cast<void **>(&B), 4096, for_b) != 0)
    die("no memory for the buffers");
  std::fill(A, A + for_a / 4, 1.0f);
  std::fill(B, B + for_b / 4, 1.0f);
}

static bool is_sized(const Op &op) { return strncmp(op.name, "barrier", 7) != 0; }

static bool is_row(const Args &a, const Op &op, size_t s) {
  return is_on(a, op) && (is_sized(op) ? fits(op, a.sizes[s]) : s == 0);
}

// Returns the number of rows that are done.
static int run(const Args &a) {
  double start = now_us();
  int done = 0;
  for (size_t s = 0; s < a.sizes.size(); s++)
    for (auto &op : OPS) {
      if (!is_row(a, op, s))
        continue;
      if (largest(now_us() - start) > a.wall_us)
        return done;
      double us = measure(op, is_sized(op) ? a.sizes[s] : 4, a.budget_us);
      if (rank_ == 0)
        printf("%s,%zu,%.4f\n", op.name, is_sized(op) ? a.sizes[s] : 0, us);
      fflush(stdout);
      done++;
    }
  return done;
}

int main(int argc, char **argv) {
  Args a = parse(argc, argv);
  if (rank_ < 0)
    return launch(a, argc, argv);
  gloo::transport::tcp::attr attr;
  attr.iface = a.iface;
  auto device = gloo::transport::tcp::CreateDevice(attr);
  gloo::rendezvous::FileStore store(a.store);
  context = std::make_shared<gloo::rendezvous::Context>(rank_, nranks);
  context->connectFullMesh(store, device);
  allocate(a);
  if (largest(rank_ + 1) != nranks)
    die("a wrong maximum");
  settle(a.settle_us);
  int planned = 0, done = run(a);
  for (auto &op : OPS)
    for (size_t k = 0; k < a.sizes.size(); k++)
      planned += is_row(a, op, k);
  if (rank_ == 0)
    printf("# rows %d of %d\n", done, planned);
  fflush(stdout);
  barrier();
  _exit(0); // Gloo's threads are not asked to end
}
