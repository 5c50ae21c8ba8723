/*
 * Ranks as processes: a rank that is killed, one that is stopped, and one with another configuration are named by all the others.
 * The same for data over TCP and through rings in shared memory.
 *
 * Every child ends by itself (alarm); the parent waits for all and reads how each fared from a pipe.
 */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "coll/coll.h"
#include "coll/fingerprint.h"
#include "coll/net.h"
#include "coll/tuning.h"

enum {
  N = 4,
  VICTIM = 2,
  COUNT = 300000,
  ALARM_SECONDS = 40
};

/* What a child tells the parent. */
typedef struct verdict {
  int rank, code, nranks, first_culprit;
  uint64_t calls; /* that went well */
  double ms;      /* from the fault, as far as the child can tell, to the error */
  char message[512];
} verdict;

typedef struct child {
  int rank, out;
  perigee__transport transport;
  perigee__mesh *mesh;
  perigee__fate fate;
} child;

static void die(const char *what) {
  fprintf(stderr, "%s: %s\n", what, perigee_last_error()->message);
  _exit(1);
}

static void child_open(child *c, const char *path) {
  int members[N];
  perigee_store *store;
  for (int i = 0; i < N; i++)
    members[i] = i;
  alarm(ALARM_SECONDS);
  if (perigee_store_file_create(path, &store) != 0)
    die("store");
  perigee__mesh_params params = {.rank = c->rank,
                                 .nranks = N,
                                 .store = store,
                                 .transport = c->transport,
                                 .deadline_ns = perigee__deadline_in(20 * PERIGEE_NS_PER_SEC)};
  if (perigee__mesh_create(&params, &c->mesh) != 0)
    die("mesh");
  perigee_store_unref(store);
  if (perigee__fate_init(&c->fate, 1, "test", c->rank, N, members) != 0 ||
      perigee__mesh_attach(c->mesh, &c->fate) != 0)
    die("fate");
}

static void child_close(child *c, const verdict *v) {
  if (write(c->out, v, sizeof(*v)) != (ssize_t)sizeof(*v))
    _exit(1);
  perigee__mesh_detach(c->mesh, &c->fate);
  perigee__mesh_destroy(&c->mesh, perigee__deadline_in(PERIGEE_NS_PER_SEC));
  _exit(0);
}

/* Allreduces and broadcasts by turns until one fails. */
static void work_until_error(child *c, int64_t timeout_ns, verdict *v) {
  static float in[COUNT], out[COUNT];
  int64_t last = perigee__now_ns();
  for (uint64_t seq = 1;; seq++) {
    perigee__fingerprint f = {.op = PERIGEE_OP_BARRIER, .dtype = -1, .redop = -1, .root = -1};
    perigee__coll_call call = {.kind =
                                   seq % 2 == 0 ? PERIGEE_COLL_ALLREDUCE : PERIGEE_COLL_BROADCAST,
                               .op = PERIGEE_OP_BARRIER,
                               .seq = seq,
                               .shown_seq = seq,
                               .fp = perigee__fingerprint_pack(&f),
                               .dtype = PERIGEE_F32,
                               .ncontrib = N,
                               .in = in,
                               .out = out,
                               .count = seq % 3 == 0 ? COUNT : 16,
                               .bytes = seq % 5 == 0 ? sizeof(out) : 64,
                               .timeout_ns = timeout_ns,
                               .deadline_ns = perigee__deadline_in(timeout_ns)};
    perigee_error error;
    atomic_store(&c->fate.entered, seq);
    int rc = perigee__net_run(c->mesh, &c->fate, perigee__tuning_get(), NULL, &call, &error);
    if (rc == 0) {
      last = perigee__now_ns();
      continue;
    }
    *v = (verdict){.rank = c->rank,
                   .code = rc,
                   .nranks = error.nranks,
                   .first_culprit = error.nranks > 0 ? error.ranks[0] : -1,
                   .calls = seq - 1,
                   .ms = (double)(perigee__now_ns() - last) / 1e6};
    snprintf(v->message, sizeof(v->message), "%s", error.message);
    return;
  }
}

/* ---- the parent's side --------------------------------------------------------------------------- */

typedef struct family {
  char dir[64], path[96];
  pid_t pids[N];
  int in;
} family;

static void start_family(family *f, perigee__transport transport,
                         void (*body)(child *c, verdict *v)) {
  int ends[2];
  snprintf(f->dir, sizeof(f->dir), "/tmp/perigee-net-XXXXXX");
  assert_non_null(mkdtemp(f->dir));
  snprintf(f->path, sizeof(f->path), "%s/store", f->dir);
  assert_int_equal(pipe(ends), 0);
  f->in = ends[0];
  for (int r = 0; r < N; r++) {
    f->pids[r] = fork();
    assert_true(f->pids[r] >= 0);
    if (f->pids[r] > 0)
      continue;
    child c = {.rank = r, .out = ends[1], .transport = transport};
    verdict v = {.rank = r};
    close(ends[0]);
    child_open(&c, f->path);
    body(&c, &v);
    child_close(&c, &v);
  }
  close(ends[1]);
}

/* The verdicts of all but `missing` (-1: of all), by rank. */
static void read_verdicts(family *f, int missing, verdict *verdicts) {
  memset(verdicts, 0, N * sizeof(*verdicts));
  for (int i = 0; i < N - (missing >= 0); i++) {
    verdict v;
    assert_int_equal(read(f->in, &v, sizeof(v)), sizeof(v));
    assert_true(v.rank >= 0 && v.rank < N && v.rank != missing);
    verdicts[v.rank] = v;
  }
}

static void end_family(family *f) {
  for (int r = 0; r < N; r++) {
    int status;
    assert_int_equal(waitpid(f->pids[r], &status, 0), f->pids[r]);
  }
  close(f->in);
  unlink(f->path);
  assert_int_equal(rmdir(f->dir), 0);
}

/* ---- killed -------------------------------------------------------------------------------------- */

static void work_on(child *c, verdict *v) { work_until_error(c, 20 * PERIGEE_NS_PER_SEC, v); }

static void kill_one(perigee__transport transport) {
  family f;
  verdict v[N];
  start_family(&f, transport, work_on);
  perigee__sleep_ns(400 * PERIGEE_NS_PER_MS);
  kill(f.pids[VICTIM], SIGKILL);
  int64_t killed = perigee__now_ns();
  read_verdicts(&f, VICTIM, v);
  double ms = (double)(perigee__now_ns() - killed) / 1e6;
  for (int r = 0; r < N; r++)
    if (r != VICTIM) {
      if (v[r].code != PERIGEE_EPEERDEAD || v[r].first_culprit != VICTIM)
        fprintf(stderr, "rank %d: %s: %s\n", r, perigee_err_name(v[r].code), v[r].message);
      assert_int_equal(v[r].code, PERIGEE_EPEERDEAD);
      assert_int_equal(v[r].nranks, 1);
      assert_int_equal(v[r].first_culprit, VICTIM);
      assert_true(v[r].calls > 0);
    }
  assert_true(ms < 1000);
  end_family(&f);
}

static void killed_rank_over_tcp(void **state) {
  (void)state;
  kill_one(PERIGEE_TRANSPORT_TCP);
}
static void killed_rank_over_rings(void **state) {
  (void)state;
  kill_one(PERIGEE_TRANSPORT_SHM);
}

/* ---- stopped ------------------------------------------------------------------------------------- */

static void work_with_short_timeout(child *c, verdict *v) {
  work_until_error(c, 500 * PERIGEE_NS_PER_MS, v);
}

/* A stopped process does not answer who asks how far it is; the others' calls still end in time, and name it. A rank that was one call
 * ahead or behind of the one that timed out is told that the group has failed, and why. */
static void stop_one(perigee__transport transport) {
  family f;
  verdict v[N];
  int timed_out = 0;
  start_family(&f, transport, work_with_short_timeout);
  perigee__sleep_ns(400 * PERIGEE_NS_PER_MS);
  kill(f.pids[VICTIM], SIGSTOP);
  read_verdicts(&f, VICTIM, v);
  for (int r = 0; r < N; r++)
    if (r != VICTIM) {
      timed_out += v[r].code == PERIGEE_ETIMEDOUT;
      if (v[r].code != PERIGEE_ETIMEDOUT && v[r].code != PERIGEE_EABORTED)
        fprintf(stderr, "rank %d: %s: %s\n", r, perigee_err_name(v[r].code), v[r].message);
      assert_true(v[r].code == PERIGEE_ETIMEDOUT || v[r].code == PERIGEE_EABORTED);
      /* one that is stuck a call behind the others counts as missing too */
      assert_non_null(strstr(v[r].message, "timed out after 0.5 s, "));
      assert_non_null(strstr(v[r].message, "no answer from ranks 2"));
      assert_true(v[r].ms < 500 + 400);
    }
  assert_true(timed_out > 0);
  kill(f.pids[VICTIM], SIGKILL);
  end_family(&f);
}

static void stopped_rank(void **state) {
  (void)state;
  stop_one(PERIGEE_TRANSPORT_TCP);
  stop_one(PERIGEE_TRANSPORT_SHM);
}

/* ---- other configuration ------------------------------------------------------------------------- */

static void agree(child *c, verdict *v) {
  perigee__tuning tuning;
  if (perigee__tuning_read(&tuning) != 0)
    die("tuning");
  if (c->rank == VICTIM)
    tuning.segment /= 2;
  perigee__tuning_set(&tuning);
  v->code = perigee__net_agree(c->mesh, &c->fate, perigee__tuning_get(),
                               perigee__deadline_in(5 * PERIGEE_NS_PER_SEC));
  snprintf(v->message, sizeof(v->message), "%s", perigee_last_error()->message);
}

static void other_configuration(void **state) {
  (void)state;
  family f;
  verdict v[N];
  start_family(&f, PERIGEE_TRANSPORT_TCP, agree);
  read_verdicts(&f, -1, v);
  for (int r = 0; r < N; r++) {
    assert_int_equal(v[r].code, PERIGEE_ECONFIG);
    assert_string_equal(v[r].message, "PERIGEE_SEGMENT of ranks 2 is not that of rank 0");
  }
  end_family(&f);
}

static void nobody_to_agree_with(child *c, verdict *v) {
  if (c->rank == VICTIM) {
    perigee__sleep_ns(500 * PERIGEE_NS_PER_MS);
    return;
  }
  v->code = perigee__net_agree(c->mesh, &c->fate, perigee__tuning_get(),
                               perigee__deadline_in(200 * PERIGEE_NS_PER_MS));
  snprintf(v->message, sizeof(v->message), "%s", perigee_last_error()->message);
}

static void late_member(void **state) {
  (void)state;
  family f;
  verdict v[N];
  start_family(&f, PERIGEE_TRANSPORT_TCP, nobody_to_agree_with);
  read_verdicts(&f, -1, v);
  for (int r = 0; r < N; r++)
    if (r != VICTIM) {
      assert_int_equal(v[r].code, PERIGEE_ETIMEDOUT);
      assert_non_null(strstr(v[r].message, "timed out after 0."));
      assert_non_null(strstr(v[r].message, " s, waiting for ranks"));
    }
  end_family(&f);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(killed_rank_over_tcp), cmocka_unit_test(killed_rank_over_rings),
      cmocka_unit_test(stopped_rank), cmocka_unit_test(other_configuration),
      cmocka_unit_test(late_member)};
  alarm(2 * ALARM_SECONDS);
  return cmocka_run_group_tests(tests, NULL, NULL);
}
