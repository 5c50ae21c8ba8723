/* For tests with ranks as processes: forked before anything else is made, meeting through a store, watched by the parent. */
#ifndef PERIGEE_TRANSPORT_MESH_PROCESS_TESTING_H
#define PERIGEE_TRANSPORT_MESH_PROCESS_TESTING_H

#include "transport/mesh_testing.h"
/* the above first: cmocka needs what it includes */
#include <errno.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include <perigee/store.h>

/* Memory that all processes of a test see. */
typedef struct board {
  _Atomic int64_t when_ns;
  _Atomic int pid[RANKS_MAX];
  _Atomic int step[RANKS_MAX]; /* how far a rank has come */
  _Atomic int port;
} board;

typedef struct job {
  int n;
  perigee__transport transport;
  const char *host[RANKS_MAX];             /* NULL: the real one */
  void (*fn)(member *m);                   /* with a mesh and the group of all ranks; or ... */
  void (*bare)(struct job *job, int rank); /* ... without either */
  board *board;
  char path[64]; /* of the file store */
} job;

static inline void job_open(job *j) {
  j->board = mmap(NULL, sizeof(board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CHECK(j->board != MAP_FAILED);
  snprintf(j->path, sizeof(j->path), "/tmp/perigee-mesh-test-XXXXXX");
  int fd = mkstemp(j->path);
  CHECK(fd >= 0);
  close(fd);
  CHECK(unlink(j->path) == 0);
}

static inline void job_close(job *j) {
  (void)unlink(j->path);
  munmap(j->board, sizeof(board));
}

static inline void step_to(board *b, int rank, int step) { atomic_store(&b->step[rank], step); }

static inline void until_step(board *b, int rank, int step) {
  int64_t until = patience();
  while (atomic_load(&b->step[rank]) < step) {
    CHECK(!perigee__passed(until));
    perigee__sleep_ns(MS / 4);
  }
}

static inline job *job_of(const member *m) { return m->arg; }

static inline int mesh_open(job *j, int rank, perigee_store *store, int64_t limit_ns,
                            perigee__mesh **mesh_p) {
  const perigee__mesh_params params = {.rank = rank,
                                       .nranks = j->n,
                                       .store = store,
                                       .transport = j->transport,
                                       .deadline_ns = perigee__deadline_in(limit_ns),
                                       .host_id = j->host[rank]};
  return perigee__mesh_create(&params, mesh_p);
}

/* Groups count ranks backwards, so that a world rank is not taken for a group's. */
static inline void member_open(job *j, member *m, int rank) {
  static const int backwards[RANKS_MAX] = {7, 6, 5, 4, 3, 2, 1, 0};
  perigee_store *store;
  m->n = j->n;
  m->me = rank;
  m->arg = j;
  CHECK_OK(perigee_store_file_create(j->path, &store));
  CHECK_OK(mesh_open(j, rank, store, PATIENCE_S * SEC, &m->mesh));
  perigee_store_unref(store);
  CHECK_OK(perigee__fate_init(&m->fate, GROUP_ALL, "all", j->n - 1 - rank, j->n,
                              backwards + RANKS_MAX - j->n));
  CHECK_OK(perigee__mesh_attach(m->mesh, &m->fate));
}

static inline void job_child(job *j, int rank) {
  alarm(60 * SLOWNESS);
  if (j->bare != NULL) {
    j->bare(j, rank);
    exit(0);
  }
  leak_mark mark = leak_begin();
  member m;
  memset(&m, 0, sizeof(m));
  member_open(j, &m, rank);
  j->fn(&m);
  member_leave(&m);
  leak_check(mark);
  exit(0);
}

static inline void job_start(job *j) {
  fflush(NULL);
  for (int r = 0; r < j->n; r++) {
    int pid = fork();
    CHECK(pid >= 0);
    if (pid == 0)
      job_child(j, r);
    atomic_store(&j->board->pid[r], pid);
  }
}

/* All have ended: those in `killed` (bits) by SIGKILL, the others well. */
static inline void job_finish(job *j, unsigned killed) {
  for (int r = 0; r < j->n; r++) {
    int status;
    pid_t pid;
    do {
      pid = waitpid(j->board->pid[r], &status, 0);
    } while (pid < 0 && errno == EINTR);
    CHECK(pid == j->board->pid[r]);
    if (killed & (1u << r))
      CHECKF(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "rank %d: status %x", r,
             (unsigned)status);
    else
      CHECKF(WIFEXITED(status) && WEXITSTATUS(status) == 0, "rank %d: status %x", r,
             (unsigned)status);
  }
}

static inline void job_run(job *j, unsigned killed) {
  job_open(j);
  job_start(j);
  job_finish(j, killed);
  job_close(j);
}

#endif
