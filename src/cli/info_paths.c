#include "cli/info_paths.h"

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <perigee/group.h>

#include "base/alloc.h"
#include "base/env.h"
#include "base/error.h"
#include "coll/arena.h"
#include "coll/explain.h"
#include "transport/vm.h"

/* ---- may ranks read each other's memory? ------------------------------------------------------------- */

enum {
  SHOW_SECONDS = 10
};

/* A child that shows where it is and stays until it is killed. */
static pid_t start_shown(perigee__vm_face *face, int ready) {
  pid_t pid = fork();
  if (pid != 0)
    return pid;
  static uint64_t value;
  alarm(SHOW_SECONDS); /* should nobody be there to kill it */
  perigee__vm_show(&value, face);
  if (write(ready, "", 1) == 1)
    pause();
  _exit(0);
}

static bool probe_from_sibling(const perigee__vm_face *face) {
  pid_t pid = fork();
  if (pid == 0)
    _exit(perigee__vm_probe(face) == 0 ? 0 : 1);
  int status = 1;
  return pid > 0 && waitpid(pid, &status, 0) == pid && WIFEXITED(status) &&
         WEXITSTATUS(status) == 0;
}

bool perigee__info_cma(void) {
  perigee__vm_face *face =
      mmap(NULL, sizeof(*face), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  int ready[2];
  bool can = false;
  char byte;
  if (face == MAP_FAILED)
    return false;
  fflush(stdout);
  if (pipe(ready) == 0) {
    pid_t pid = start_shown(face, ready[1]);
    close(ready[1]);
    can = pid > 0 && read(ready[0], &byte, 1) == 1 && probe_from_sibling(face);
    if (pid > 0) {
      kill(pid, SIGKILL);
      waitpid(pid, NULL, 0);
    }
    close(ready[0]);
  }
  munmap(face, sizeof(*face));
  return can;
}

/* ---- choices ----------------------------------------------------------------------------------------- */

/* A group of n ranks on this machine, as it would be. */
typedef struct thought {
  perigee__tuning tuning;
  perigee__shm_table table;
  perigee__place_facts facts;
} thought;

static bool shared(const char *transport) {
  const char *wanted =
      strcmp(transport, "auto") == 0 ? perigee__env("PERIGEE_TRANSPORT") : transport;
  return strcmp(wanted, "tcp") != 0 && strcmp(perigee__env("PERIGEE_PATH"), "tcp") != 0;
}

static int think(int n, bool shm, bool cma, thought *t) {
  PERIGEE_TRY(perigee__tuning_read_for(NULL, n, &t->tuning));
  if (shm) {
    perigee__shm_facts facts;
    perigee__arena_facts(n, n, cma, &facts);
    perigee__shm_table_make(&t->tuning, &facts, &t->table);
  }
  t->facts = (perigee__place_facts){
      .tuning = &t->tuning, .table = shm && n > 1 ? &t->table : NULL, .n = n};
  return 0;
}

static void show_bytes(uint64_t bytes, char *buf, size_t size) {
  static const char units[] = "KMG";
  int unit = -1;
  while (unit < 2 && bytes > 0 && bytes % 1024 == 0) {
    bytes /= 1024;
    unit++;
  }
  snprintf(buf, size, "%" PRIu64 "%.1s", bytes, unit >= 0 ? units + unit : "");
}

static void show_stretch(const perigee_choice *c, char *buf, size_t size) {
  char from[32], end[32];
  show_bytes(c->from, from, sizeof(from));
  show_bytes(c->end, end, sizeof(end));
  if (c->end == UINT64_MAX)
    snprintf(buf, size, "from %s bytes on", from);
  else
    snprintf(buf, size, "from %s to below %s bytes", from, end);
}

int perigee__info_choice(const perigee__info_asked *asked) {
  int op = perigee_op_find(asked->op);
  if (op < 0)
    return perigee__fail(PERIGEE_EINVAL, "'%s' is no operation", asked->op);
  int kind = perigee__explain_kind(op);
  if (kind < 0)
    return perigee__fail(PERIGEE_EINVAL, "the way of %s does not depend on its size",
                         perigee_op_name(op));
  thought *t = perigee__calloc(1, sizeof(*t));
  if (t == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory for rules");
  perigee_choice c;
  bool shm = shared(asked->transport);
  int rc = think(asked->n, shm, shm && perigee__info_cma(), t);
  if (rc == 0)
    rc = perigee__explain(&t->facts, (perigee__coll_kind)kind, asked->bytes, asked->symmetric, &c);
  free(t);
  if (rc < 0)
    return rc;
  char size[32], stretch[96];
  show_bytes(asked->bytes, size, sizeof(size));
  show_stretch(&c, stretch, sizeof(stretch));
  printf("%s of %s bytes, %d ranks on this machine%s\n", perigee_op_name(op), size, asked->n,
         asked->symmetric ? ", symmetric tensors" : "");
  printf("transport   %s%s%s\n", c.transport, c.wait[0] != '\0' ? ", ranks " : "", c.wait);
  printf("path        %s, %s\n", c.path, stretch);
  printf("why         %s\n", c.why);
  if (c.possible[0] != '\0')
    printf("possible    %s\n", c.possible);
  return 0;
}

/* ---- tables ------------------------------------------------------------------------------------------ */

static const int table_ops[] = {PERIGEE_OP_ALLREDUCE,      PERIGEE_OP_BROADCAST, PERIGEE_OP_REDUCE,
                                PERIGEE_OP_ALLGATHER,      PERIGEE_OP_GATHER,    PERIGEE_OP_SCATTER,
                                PERIGEE_OP_REDUCE_SCATTER, PERIGEE_OP_ALLTOALL};

/* "inline 49 oneshot 33K twoshot": a path, and where the next one begins. */
static int print_row(const thought *t, int op, bool symmetric) {
  perigee_choice c = {.end = 0};
  char last[sizeof(c.path)] = "";
  printf("  %-15s %2d %-5s", perigee_op_name(op), t->facts.n,
         t->facts.table == NULL ? "tcp"
         : t->table.facts.spin  ? "spin"
                                : "park");
  do {
    char begin[32];
    uint64_t at = c.end;
    PERIGEE_TRY(perigee__explain(&t->facts, (perigee__coll_kind)perigee__explain_kind(op), at,
                                 symmetric, &c));
    if (strcmp(c.path, last) == 0)
      continue;
    show_bytes(at, begin, sizeof(begin));
    printf("%s%s %s", at > 0 ? " " : "", at > 0 ? begin : "", c.path);
    snprintf(last, sizeof(last), "%s", c.path);
  } while (c.end != UINT64_MAX);
  printf("\n");
  return 0;
}

static int print_table(thought *t, bool shm, bool cma, bool symmetric) {
  static const int ranks[] = {2, 4, 8};
  for (size_t o = 0; o < PERIGEE_COUNT(table_ops); o++)
    for (size_t i = 0; i < PERIGEE_COUNT(ranks); i++) {
      PERIGEE_TRY(think(ranks[i], shm, cma, t));
      PERIGEE_TRY(print_row(t, table_ops[o], symmetric));
    }
  return 0;
}

int perigee__info_tables(const perigee__info_asked *asked) {
  thought *t = perigee__calloc(1, sizeof(*t));
  if (t == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory for rules");
  int rc = 0;
  printf(
      "\npaths: operation, ranks, and from which size on which path (bytes as in perigee bench;\n"
      "'perigee info -n N OPERATION BYTES' says why)\n");
  if (strcmp(asked->transport, "tcp") != 0)
    rc = print_table(t, true, perigee__info_cma(), asked->symmetric);
  if (rc == 0 && strcmp(asked->transport, "shm") != 0)
    rc = print_table(t, false, false, false);
  free(t);
  return rc;
}

/* ---- rules ------------------------------------------------------------------------------------------- */

static void print_rules(const perigee__tuning *tuning) {
  for (int i = 0; i < tuning->select.nrules; i++) {
    char text[160], origin[PERIGEE_TUNING_NAME + 16];
    perigee__rule_text(&tuning->select.rules[i], text, sizeof(text));
    perigee__rule_origin(tuning, &tuning->select.rules[i], origin, sizeof(origin));
    printf("%-48s # %s\n", text, origin);
  }
}

int perigee__info_rules(void) {
  perigee__tuning *t = perigee__calloc(1, sizeof(*t));
  if (t == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory for rules");
  int rc = perigee__tuning_read(t);
  if (rc == 0)
    print_rules(t);
  free(t);
  return rc;
}

int perigee__info_file(const char *path) {
  char machine[256];
  perigee__tuning *t = perigee__calloc(1, sizeof(*t));
  if (t == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory for rules");
  snprintf(t->file, sizeof(t->file), "%s", path);
  int rc = perigee__tuning_read_file(&t->select, path, machine, sizeof(machine));
  if (rc == 0) {
    printf("%s: %d rules%s%s\n", path, t->select.nrules, machine[0] != '\0' ? ", measured on " : "",
           machine);
    print_rules(t);
  }
  free(t);
  return rc;
}
