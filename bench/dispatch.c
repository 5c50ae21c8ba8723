/*
 * What it costs to reach an override: C -> interpreter's mutex -> Lua -> completed work -> C, in a world of one rank.
 *
 *   cmake -S . -B build -DPERIGEE_BENCH=ON && cmake --build build && build/bench_dispatch [--csv]
 *
 * Every case is run REPEATS times, all cases in turn, so that a disturbance of the machine touches one sample of a case and not all; a
 * row shows the smallest, the median and the largest of them. A call goes through perigee_group_submit and perigee_work_wait
 * with a request made anew each time; "run" cases through perigee_group_run. Threads: wall time / all calls.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <perigee/lua.h>
#include <perigee/perigee.h>

enum {
  REPEATS = 9,
  CALLS = 100000,
  THREADS_MAX = 4,
  INTERPS_MAX = 4
};

static const char *const backends[][2] = {
    {"done", "local B = {} function B:allreduce() return true end return B"},
    {"pass",
     "local B = {} function B:allreduce(t, o) return self.inner:allreduce(t, o) end return B"},
    {"fresh", "local perigee = require 'perigee' local B = {} function B:allreduce(t, o) "
              "return self.inner:allreduce({ t[1] }, { op = o.op, timeout = 5 }) end return B"},
    {"mapped", "local B = {} function B:allreduce(t, o) "
               "return self.inner:allreduce(t, o):map(function() end) end return B"},
    {"table", "local B = {} local function wait() return true end "
              "function B:allreduce() return { wait = wait } end return B"},
    {"future", "local perigee = require 'perigee' local B = {} function B:allreduce(t) "
               "local f = perigee.future() f:set_result(t) return f end return B"},
};

typedef struct bench_case {
  const char *name, *stack;
  int op; /* 0: allreduce */
  bool run;
  int threads;
  int interps; /* > 0: that many interpreters, each with a group of its own; thread t calls the one of t % interps */
  double ns[REPEATS];
  bool hook; /* a hook in C that does nothing is there */
  const char
      *script; /* not NULL: blocking calls from a loop in Lua, after this; stack is what it opens */
} bench_case;

static bench_case cases[] = {
    {.name = "native, run", .stack = "native", .threads = 1, .run = true},
    {.name = "native, submit and wait", .stack = "native", .threads = 1},
    {.name = "not overridden, 1 layer, run",
     .stack = "done(native)",
     .threads = 1,
     .op = PERIGEE_OP_BROADCAST,
     .run = true},
    {.name = "not overridden, 3 layers, run",
     .stack = "done(pass(fresh(native)))",
     .threads = 1,
     .op = PERIGEE_OP_BROADCAST,
     .run = true},
    {.name = "override returns true", .stack = "done(native)", .threads = 1},
    {.name = "override returns true", .stack = "done(native)", .threads = 2},
    {.name = "override returns true", .stack = "done(native)", .threads = 4},
    {.name = "override passes on", .stack = "pass(native)", .threads = 1},
    {.name = "override passes on, new tables", .stack = "fresh(native)", .threads = 1},
    {.name = "3 layers pass on", .stack = "pass(pass(pass(native)))", .threads = 1},
    {.name = "override maps the work", .stack = "mapped(native)", .threads = 1},
    {.name = "override passes on", .stack = "pass(native)", .threads = 2},
    {.name = "override passes on", .stack = "pass(native)", .threads = 4},
    {.name = "override passes on, run", .stack = "pass(native)", .threads = 1, .run = true},
    {.name = "override returns a table", .stack = "table(native)", .threads = 1},
    {.name = "override returns a done future", .stack = "future(native)", .threads = 1},
    {.name = "override returns a done future", .stack = "future(native)", .threads = 2},
    {.name = "override returns a done future", .stack = "future(native)", .threads = 4},
    {.name = "returns true, 1 interpreter", .stack = "done", .threads = 1, .interps = 1},
    {.name = "returns true, 2 interpreters", .stack = "done", .threads = 2, .interps = 2},
    {.name = "returns true, 4 interpreters", .stack = "done", .threads = 4, .interps = 4},
    {.name = "native, run, hook in C", .stack = "native", .threads = 1, .run = true, .hook = true},
    {.name = "override returns true, hook in C",
     .stack = "done(native)",
     .threads = 1,
     .hook = true},
    {.name = "called from Lua", .stack = "native", .threads = 1, .script = ""},
    {.name = "called from Lua, hook in Lua",
     .stack = "native",
     .threads = 1,
     .script = "world:on('done', function() end)"},
};
enum {
  CASES = sizeof(cases) / sizeof(cases[0])
};

static void die(const char *what) {
  char text[600];
  perigee_error_format(perigee_last_error(), text, sizeof(text));
  fprintf(stderr, "bench_dispatch: %s: %s\n", what, text);
  exit(1);
}

static double now_ns(void) {
  struct timespec ts;
  clock_gettime(CLOCK_MONOTONIC, &ts);
  return (double)ts.tv_sec * 1e9 + (double)ts.tv_nsec;
}

typedef struct job {
  perigee_group *group;
  const bench_case *c;
  int calls;
  pthread_barrier_t *start;
} job;

static void call(perigee_group *group, const bench_case *c, perigee_tensor *tensor) {
  perigee_request req;
  perigee_request_init(&req, c->op);
  req.in = (perigee_tensors){&tensor, 1, 0};
  if (c->run) {
    if (perigee_group_run(group, &req) < 0)
      die(c->name);
    return;
  }
  perigee_work *work;
  if (perigee_group_submit(group, &req, &work) < 0 ||
      perigee_work_wait(work, PERIGEE_TIMEOUT_NONE) < 0)
    die(c->name);
  perigee_work_unref(work);
}

static void *job_main(void *arg) {
  const job *j = arg;
  perigee_tensor *tensor;
  const int64_t shape[1] = {2};
  if (perigee_tensor_create(PERIGEE_F32, 1, shape, &tensor) < 0)
    die("tensor");
  for (int i = 0; i < 1000; i++)
    call(j->group, j->c, tensor);
  pthread_barrier_wait(j->start);
  for (int i = 0; i < j->calls; i++)
    call(j->group, j->c, tensor);
  pthread_barrier_wait(j->start);
  perigee_tensor_unref(tensor);
  return NULL;
}

/* groups: one, or c->interps of them. */
static double measure(perigee_group *const *groups, const bench_case *c) {
  pthread_t threads[THREADS_MAX];
  pthread_barrier_t start;
  job jobs[THREADS_MAX];
  int calls = CALLS / c->threads;
  pthread_barrier_init(&start, NULL, (unsigned)c->threads + 1);
  for (int t = 0; t < c->threads; t++) {
    jobs[t] = (job){groups[c->interps > 0 ? t % c->interps : 0], c, calls, &start};
    if (pthread_create(&threads[t], NULL, job_main, &jobs[t]) != 0)
      die("thread");
  }
  pthread_barrier_wait(&start);
  double started = now_ns();
  pthread_barrier_wait(&start);
  double ns = (now_ns() - started) / ((double)calls * c->threads);
  for (int t = 0; t < c->threads; t++)
    pthread_join(threads[t], NULL);
  pthread_barrier_destroy(&start);
  return ns;
}

/* A loop in Lua on a world of its own. */
static double measure_script(perigee_interp *interp, const bench_case *c) {
  char text[1024];
  snprintf(text, sizeof(text),
           "local perigee = require 'perigee' "
           "local world = perigee.init { backend = '%s', rank = 0, size = 1 } %s "
           "local t = perigee.zeros('f32', 2) "
           "for _ = 1, 1000 do world:allreduce(t) end "
           "local start = perigee.clock() "
           "for _ = 1, %d do world:allreduce(t) end "
           "ns = (perigee.clock() - start) * 1e9 / %d "
           "world:close()",
           c->stack, c->script, CALLS, CALLS);
  if (perigee_interp_run_string(interp, text, c->name) < 0)
    die(c->name);
  lua_State *L = perigee_interp_enter(interp);
  if (L == NULL)
    die(c->name);
  lua_getglobal(L, "ns");
  double ns = lua_tonumber(L, -1);
  lua_pop(L, 1);
  perigee_interp_leave(interp);
  return ns;
}

static void on_event(const perigee_event *event, void *arg) {
  (void)event;
  (void)arg;
}

static perigee_group *open_group(const char *stack) {
  perigee_init_options options;
  perigee_init_options_init(&options);
  options.backend = stack;
  options.rank = 0;
  options.nranks = 1;
  perigee_group *group;
  if (perigee_init(&options, &group) < 0)
    die(stack);
  return group;
}

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

int main(int argc, char **argv) {
  bool csv = argc > 1 && strcmp(argv[1], "--csv") == 0;
  perigee_interp *interp;
  if (perigee_interp_create(NULL, &interp) < 0)
    die("interpreter");
  for (size_t i = 0; i < sizeof(backends) / sizeof(backends[0]); i++)
    if (perigee_interp_load_backend_string(interp, backends[i][1], backends[i][0]) < 0)
      die(backends[i][0]);
  perigee_group *groups[CASES], *apart[INTERPS_MAX];
  perigee_interp *interps[INTERPS_MAX];
  for (int i = 0; i < INTERPS_MAX; i++) {
    char name[32];
    snprintf(name, sizeof(name), "done%d", i);
    if (perigee_interp_create(NULL, &interps[i]) < 0 ||
        perigee_interp_load_backend_string(interps[i], backends[0][1], name) < 0)
      die(name);
    apart[i] = open_group(name);
  }
  for (int i = 0; i < CASES; i++) {
    groups[i] = open_group(cases[i].stack);
    if (cases[i].hook &&
        perigee_group_on(groups[i], PERIGEE_EVENT_DONE, on_event, NULL, NULL, NULL) < 0)
      die("hook");
  }
  for (int r = 0; r < REPEATS; r++)
    for (int i = 0; i < CASES; i++)
      cases[i].ns[r] = cases[i].script != NULL
                           ? measure_script(interp, &cases[i])
                           : measure(cases[i].interps > 0 ? apart : &groups[i], &cases[i]);
  if (csv)
    printf("case,stack,threads,ns_min,ns_median,ns_max\n");
  else
    printf("%-32s %-28s %7s %8s %8s %8s\n", "case", "stack", "threads", "min ns", "median", "max");
  for (int i = 0; i < CASES; i++) {
    bench_case *c = &cases[i];
    qsort(c->ns, REPEATS, sizeof(c->ns[0]), by_value);
    printf(csv ? "\"%s\",%s,%d,%.0f,%.0f,%.0f\n" : "%-32s %-28s %7d %8.0f %8.0f %8.0f\n", c->name,
           c->stack, c->threads, c->ns[0], c->ns[REPEATS / 2], c->ns[REPEATS - 1]);
  }
  for (int i = 0; i < CASES; i++) {
    perigee_group_close(groups[i]);
    perigee_group_unref(groups[i]);
  }
  for (int i = 0; i < INTERPS_MAX; i++) {
    perigee_group_close(apart[i]);
    perigee_group_unref(apart[i]);
    perigee_interp_destroy(&interps[i]);
  }
  perigee_interp_destroy(&interp);
  return 0;
}
