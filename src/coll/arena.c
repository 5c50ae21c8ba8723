/*
 * Making an arena: member 0 allocates and formats the memory, the others map it, and all agree that everybody has it.
 *
 * Agreement. Whether shared memory can be had may differ by rank (limits, containers), and the answer must not. Member 0 without memory
 * passes a descriptor of /dev/null instead: what is no regular file means "none". A member that cannot map says so in a message to
 * member 0, which tells all. Either way ENOSHM is the result on all ranks, or on none.
 */
#include "coll/arena_impl.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/env.h"
#include "base/futex.h"
#include "base/log.h"
#include "coll/fingerprint.h"
#include "coll/reach.h"
#include "transport/memfd.h"

#define ARENA_MAGIC UINT64_C(0x50455249474545a1)
/* WIDEST: bytes of the largest element, c128.
 * SPIN: time a rank polls before it sleeps; several times what a peer is late by when it has a core, and what a sleep and a wake-up cost.
 * BARE_POLLS: about twice as long as a line takes to come over; PAUSE alone is as long as that on some cores.
 * YIELDS: mode PARK, before it sleeps; 2 to 50 measured alike, more only burns time when some rank computes. */
enum {
  ARENA_VERSION = 5,
  PAGE = 4096,
  WIDEST = 16,
  SPIN_US = 50,
  SPIN_FORCED_US = 2000,
  BARE_POLLS = 96,
  YIELDS = 50
};

static size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

perigee__arena_layout perigee__arena_layout_for(int n, size_t buffer_bytes) {
  size_t ranks = (size_t)n;
  perigee__arena_layout l;
  l.park = round_up(sizeof(perigee__arena_header), PERIGEE_FALSE_SHARING);
  l.status = l.park + sizeof(perigee__arena_park);
  l.notes = l.status + ranks * sizeof(perigee__arena_status);
  l.lines = round_up(l.notes + ranks * PERIGEE_ARENA_LINES * sizeof(perigee__arena_note),
                     PERIGEE_FALSE_SHARING);
  l.line_stride =
      round_up(sizeof(perigee__arena_line) + 3 * ranks * sizeof(uint64_t), PERIGEE_FALSE_SHARING);
  l.small = round_up(l.lines + ranks * PERIGEE_ARENA_LINES * l.line_stride, PAGE);
  l.slots = round_up(l.small + ranks * PERIGEE_ARENA_LINES * PERIGEE_ARENA_SMALL, PAGE);
  l.total = round_up(l.slots + ranks * PERIGEE_ARENA_BUFFERS * buffer_bytes, PAGE);
  return l;
}

size_t perigee__arena_buffer_bytes(int n) {
  size_t least = (size_t)n * WIDEST;
#ifdef PERIGEE_HOSTILE
  size_t bytes = 64;
#else
  size_t bytes =
      (size_t)perigee__env_int("PERIGEE_SHM_SLOT", 256, INT64_C(1) << 30) / PERIGEE_ARENA_BUFFERS;
#endif
  return round_up(bytes > least ? bytes : least, PERIGEE_CACHE_LINE);
}

/* Same on all ranks: member 0 decides and the header carries it. */
static perigee__arena_mode mode_for(int local_ranks) {
  const char *wanted = perigee__env("PERIGEE_WAIT");
  if (strcmp(wanted, "spin") == 0)
    return PERIGEE_ARENA_SPIN;
  if (strcmp(wanted, "park") == 0)
    return PERIGEE_ARENA_PARK;
  if (strcmp(wanted, "adaptive") != 0)
    perigee__log(PERIGEE_LOG_WARN, "PERIGEE_WAIT=%s is not adaptive, spin or park: using adaptive",
                 wanted);
  return local_ranks <= perigee__usable_cores() ? PERIGEE_ARENA_SPIN : PERIGEE_ARENA_PARK;
}

perigee__arena_path perigee__arena_path_named(const char *name) {
  for (int i = 0; i < PERIGEE_ARENA_PATH_COUNT; i++)
    if (strcmp(perigee__arena_path_name((perigee__arena_path)i), name) == 0)
      return (perigee__arena_path)i;
  perigee__log(
      PERIGEE_LOG_WARN,
      "PERIGEE_PATH=%s is not auto, inline, oneshot, twoshot, cma, symmetric or tcp: using auto",
      name);
  return PERIGEE_ARENA_PATH_AUTO;
}

void perigee__arena_format(void *base, int n, perigee__arena_mode mode, size_t buffer_bytes,
                           uint32_t first_epoch) {
  perigee__arena_layout l = perigee__arena_layout_for(n, buffer_bytes);
  perigee__arena_header *header = base;
  perigee__arena_park *park = (perigee__arena_park *)(void *)((char *)base + l.park);
  *header = (perigee__arena_header){
      .magic = ARENA_MAGIC,
      .version = ARENA_VERSION,
      .n = (uint32_t)n,
      .mode = (uint32_t)mode,
      .first_epoch = first_epoch & PERIGEE_ARENA_EPOCHS,
      .path = (uint32_t)perigee__arena_path_named(perigee__env("PERIGEE_PATH")),
      .buffer_bytes = buffer_bytes};
  for (int r = 0; r < n; r++)
    atomic_init(&((perigee__arena_status *)(void *)((char *)base + l.status))[r].cpu, -1);
  atomic_init(&park->released, header->first_epoch << 1);
  for (size_t i = 0; i < (size_t)n * PERIGEE_ARENA_LINES; i++) {
    char *line = (char *)base + l.lines + i * l.line_stride;
    char *note = (char *)base + l.notes + i * sizeof(perigee__arena_note);
    atomic_init(&((perigee__arena_line *)(void *)line)->word, header->first_epoch << 1);
    atomic_init(&((perigee__arena_note *)(void *)note)->epoch, PERIGEE_ARENA_WRITTEN);
  }
}

/* ---- one rank's view ----------------------------------------------------------------------------- */

static void on_fate_failed(void *arg) { perigee__arena_kick(arg); }

void perigee__arena_sift(perigee__arena *a) {
  const perigee__shm_facts facts = {.n = a->n,
                                    .spin = a->mode == PERIGEE_ARENA_SPIN,
                                    .cma = a->cma,
                                    .slow = a->slow,
                                    .path = a->path,
                                    .buffer_bytes = a->buffer_bytes};
  perigee__shm_table_make(a->tuning, &facts, &a->table);
}

void perigee__arena_tune(perigee__arena *a, const perigee__tuning *tuning) {
  a->tuning = tuning;
  perigee__arena_sift(a);
}

void perigee__arena_facts(int n, int local_ranks, bool cma, perigee__shm_facts *facts_p) {
  *facts_p = (perigee__shm_facts){.n = n,
                                  .spin = mode_for(local_ranks) == PERIGEE_ARENA_SPIN,
                                  .cma = cma,
                                  .slow = perigee__vm_is_slow(),
                                  .path = perigee__arena_path_named(perigee__env("PERIGEE_PATH")),
                                  .buffer_bytes = perigee__arena_buffer_bytes(n)};
}

const perigee__shm_table *perigee__arena_table(const perigee__arena *a) { return &a->table; }

static int check_header(const void *base, size_t bytes, const perigee__fate *fate) {
  const perigee__arena_header *h = base;
  if (bytes < sizeof(*h) || h->magic != ARENA_MAGIC || h->version != ARENA_VERSION)
    return perigee__fail(PERIGEE_ENOSHM, "shared memory of group %s has an unknown header",
                         fate->name);
  if (h->n != (uint32_t)fate->n ||
      (h->mode != PERIGEE_ARENA_SPIN && h->mode != PERIGEE_ARENA_PARK) ||
      h->path >= PERIGEE_ARENA_PATH_COUNT || h->buffer_bytes < (size_t)fate->n * WIDEST ||
      h->buffer_bytes % PERIGEE_CACHE_LINE != 0 || h->buffer_bytes > bytes ||
      perigee__arena_layout_for(fate->n, h->buffer_bytes).total != bytes)
    return perigee__fail(PERIGEE_ENOSHM,
                         "shared memory of group %s (%zu bytes, %u ranks) does not fit %d ranks",
                         fate->name, bytes, h->n, fate->n);
  return 0;
}

static void free_view(perigee__arena *a) {
  perigee__segments_unref(a->segments);
  free(a->pids);
  free(a->srcs);
  free(a);
}

int perigee__arena_create_over(void *base, size_t bytes, perigee__mesh *mesh, perigee__fate *fate,
                               perigee__arena **arena_p) {
  PERIGEE_TRY(check_header(base, bytes, fate));
  const perigee__arena_header *header = base;
  int rc;
  perigee__arena *a = perigee__calloc_aligned(sizeof(*a));
  if (a == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory for the arena of group %s", fate->name);
  a->srcs = perigee__calloc((size_t)fate->n, sizeof(a->srcs[0]));
  a->pids = perigee__calloc((size_t)fate->n, sizeof(a->pids[0]));
  a->segments = perigee__segments_create();
  if (a->srcs == NULL || a->pids == NULL || a->segments == NULL) {
    rc = perigee__fail(PERIGEE_ENOMEM, "no memory for the arena of group %s", fate->name);
    goto free_parts;
  }
  a->mesh = mesh;
  a->fate = fate;
  a->me = fate->me;
  a->n = fate->n;
  a->mode = (perigee__arena_mode)header->mode;
  a->buffer_bytes = header->buffer_bytes;
  a->layout = perigee__arena_layout_for(a->n, a->buffer_bytes);
  a->base = base;
  a->park = (perigee__arena_park *)(void *)(a->base + a->layout.park);
  a->status = (perigee__arena_status *)(void *)(a->base + a->layout.status);
  a->epoch = a->known = header->first_epoch;
  a->awaited = PERIGEE_ARENA_ALL;
  a->cpu = -1;
  a->yields = YIELDS;
  a->bare_polls = a->mode == PERIGEE_ARENA_SPIN ? BARE_POLLS : 1;
  bool forced = strcmp(perigee__env("PERIGEE_WAIT"), "spin") == 0;
  a->spin_ns = (int64_t)(forced ? SPIN_FORCED_US : SPIN_US) * 1000;
  a->path = (perigee__arena_path)header->path;
  perigee__arena_tune(a, perigee__tuning_get());
  PERIGEE_TRY_GOTO(perigee__fate_listen(fate, on_fate_failed, a), free_parts);
  *arena_p = a;
  return 0;

free_parts:
  free_view(a);
  return rc;
}

void perigee__arena_destroy(perigee__arena **arena_p) {
  perigee__arena *a = *arena_p;
  if (a == NULL)
    return;
  *arena_p = NULL;
  perigee__fate_unlisten(a->fate, on_fate_failed, a);
  /* release: pairs with the acquire in perigee__arena_look; who sees it also sees the last line we published */
  atomic_store_explicit(&a->status[a->me].closed, 1, memory_order_release);
  perigee__arena_kick(a);
  if (a->mapped)
    perigee__memfd_unmap(a->base, a->layout.total);
  free_view(a);
}

/* ---- all members together ------------------------------------------------------------------------ */

static int make_memory(perigee__mesh *mesh, const perigee__fate *fate, int *fd_p, void **base_p,
                       size_t *bytes_p) {
  size_t buffer = perigee__arena_buffer_bytes(fate->n);
  size_t bytes = perigee__arena_layout_for(fate->n, buffer).total;
  int fd, local = mesh != NULL ? perigee__mesh_local_ranks(mesh) : 1;
  void *base;
  if (strcmp(perigee__env("PERIGEE_PATH"), "tcp") == 0)
    return perigee__fail(PERIGEE_ENOSHM, "PERIGEE_PATH=tcp");
  PERIGEE_TRY(perigee__memfd_create("perigee-arena", bytes, &fd));
  int rc = perigee__memfd_map(fd, bytes, &base);
  if (rc < 0) {
    close(fd);
    return rc;
  }
  perigee__arena_format(base, fate->n, mode_for(local), buffer, 0);
  *fd_p = fd;
  *base_p = base;
  *bytes_p = bytes;
  return 0;
}

/* What member 0 passes when it has no memory is no regular file. */
static bool is_memory(int fd, size_t *bytes_p) {
  struct stat st;
  if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || st.st_size <= 0)
    return false;
  *bytes_p = (size_t)st.st_size;
  return true;
}

static void tell(const perigee__arena *a) {
  perigee__log(PERIGEE_LOG_DEBUG,
               "group %s: shared memory for %d ranks, %s, path %s, the others' memory is %s",
               a->fate->name, a->n, a->mode == PERIGEE_ARENA_SPIN ? "spinning" : "parking",
               perigee__arena_path_name(a->path),
               !a->cma   ? "copied through buffers"
               : a->slow ? "read directly, slowly"
                         : "read directly");
}

int perigee__arena_create(perigee__mesh *mesh, perigee__fate *fate, int64_t deadline_ns,
                          perigee__arena **arena_p) {
  int fd = -1, rc = 0;
  void *base = NULL;
  size_t bytes = 0;
  bool all = true;
  perigee__arena *a = NULL;
  if (fate->me == 0 && make_memory(mesh, fate, &fd, &base, &bytes) < 0 &&
      (fd = open("/dev/null", O_RDONLY | O_CLOEXEC)) < 0)
    return perigee__fail_errno(errno, "open /dev/null");
  if (fate->n > 1)
    PERIGEE_TRY_GOTO(perigee__mesh_share_fd(mesh, fate->members, fate->n, fate->me,
                                            perigee__hash_mix(fate->group, ARENA_MAGIC),
                                            deadline_ns, &fd),
                     out);
  if (!is_memory(fd, &bytes)) { /* seen alike by all: no need to agree */
    rc = perigee__fail(PERIGEE_ENOSHM, "member 0 of group %s has no shared memory to give",
                       fate->name);
    goto out;
  }
  if ((base != NULL || perigee__memfd_map(fd, bytes, &base) == 0) &&
      perigee__arena_create_over(base, bytes, mesh, fate, &a) == 0) {
    a->mapped = true;
    perigee__reach_introduce(a);
  }
  if (fate->n > 1)
    PERIGEE_TRY_GOTO(perigee__arena_agree(mesh, fate, deadline_ns, a != NULL, &all), out);
  if (all && a != NULL && fate->n > 1) {
    PERIGEE_TRY_GOTO(
        perigee__arena_agree(mesh, fate, deadline_ns, perigee__reach_probe(a), &a->cma), out);
    perigee__arena_sift(a);
  }
  if (!all || a == NULL)
    rc = perigee__fail(PERIGEE_ENOSHM, "%s of group %s cannot map its shared memory",
                       a == NULL ? "this rank" : "a rank", fate->name);
out:
  if (fd >= 0)
    close(fd);
  if (rc == 0)
    tell(a);
  if (rc == 0)
    *arena_p = a;
  else if (a != NULL)
    perigee__arena_destroy(&a);
  else if (base != NULL)
    perigee__memfd_unmap(base, bytes);
  return rc;
}

/* ---- symmetric memory ---------------------------------------------------------------------------- */

/* Member 0's memory for segment id, at every member; *total_p 0 when it has none. */
static int share_segment(perigee__arena *a, size_t bytes, uint32_t id, int64_t deadline_ns,
                         int *fd_p, size_t *total_p) {
  size_t stride, total = perigee__segment_total(a->n, bytes, &stride);
  int fd = -1;
  if (a->me == 0 && (total == 0 || perigee__memfd_create("perigee-segment", total, &fd) < 0) &&
      (fd = open("/dev/null", O_RDONLY | O_CLOEXEC)) < 0)
    return perigee__fail_errno(errno, "open /dev/null");
  if (a->n > 1) {
    int rc = perigee__mesh_share_fd(a->mesh, a->fate->members, a->n, a->me,
                                    perigee__hash_mix(a->fate->group, ARENA_MAGIC + id),
                                    deadline_ns, &fd);
    if (rc < 0) {
      if (fd >= 0)
        close(fd);
      return rc;
    }
  }
  *fd_p = fd;
  if (!is_memory(fd, total_p))
    *total_p = 0;
  return 0;
}

int perigee__arena_alloc(perigee__arena *a, size_t bytes, uint64_t what, int64_t deadline_ns,
                         perigee__segment **segment_p, void **data_p) {
  uint32_t id = ++a->last_segment;
  perigee__segment *segment = NULL;
  size_t total = 0;
  bool all = true;
  int fd = -1;
  /* What is wanted is compared before anything is made: ranks that differ would not even find each other's descriptor. */
  if (a->n > 1)
    PERIGEE_TRY(perigee__arena_agree_on(a->mesh, a->fate, deadline_ns, what | 1, &all));
  PERIGEE_TRY(share_segment(a, bytes, id, deadline_ns, &fd, &total));
  bool have =
      total != 0 && perigee__segment_create(a->segments, fd, a->me, a->n, bytes, id, &segment) == 0;
  close(fd);
  int rc = 0;
  if (a->n > 1)
    rc = perigee__arena_agree(a->mesh, a->fate, deadline_ns, have, &have);
  if (rc == 0 && !have)
    rc = perigee__fail(PERIGEE_ENOSHM,
                       "a rank of group %s cannot have %zu bytes of symmetric memory",
                       a->fate->name, bytes);
  if (rc < 0) {
    if (segment != NULL)
      perigee__segment_drop(segment);
    return rc;
  }
  *segment_p = segment;
  *data_p = perigee__segment_own(segment);
  return 0;
}
