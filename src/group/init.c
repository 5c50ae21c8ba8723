/*
 * Joining a world: who am I (environment), where is the store, which generation is this, who else is there.
 *
 * Keys on the store, under "perigee/r<restarts>/w<generation>/": the k-th init of a process joins generation k, so that init may be called
 * again; the restart count of torchrun keeps an earlier life's keys apart.
 *   size          world size, written by the first (compare_set): a rank with another one gets ECONFIG
 *   claim/<rank>  who holds the rank (compare_set): a second process with the same rank gets EDUPRANK
 */
#include <inttypes.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/env.h"
#include "base/error.h"
#include "base/log.h"
#include "group/group.h"

void perigee_init_options_init(perigee_init_options *opts) {
  memset(opts, 0, sizeof(*opts));
  opts->size = sizeof(*opts);
  opts->rank = opts->nranks = -1;
}

/* ---- who am I ---------------------------------------------------------------------------------- */

static int env_number(const char *name, int *value_p) {
  const char *text = getenv(name);
  char *end;
  long value = strtol(text, &end, 10);
  if (end == text || *end != '\0' || value < 0 || value > 1 << 20)
    return perigee__fail(PERIGEE_EINVAL, "%s=%s is not a number", name, text);
  *value_p = (int)value;
  return 0;
}

/* Launchers in the order in which they are believed. */
static const char *const launchers[][2] = {{"RANK", "WORLD_SIZE"},
                                           {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"},
                                           {"PMI_RANK", "PMI_SIZE"},
                                           {"SLURM_PROCID", "SLURM_NTASKS"}};

static int rank_from_env(int *rank_p, int *nranks_p) {
  for (size_t i = 0; i < PERIGEE_COUNT(launchers); i++) {
    const char *rank = getenv(launchers[i][0]), *size = getenv(launchers[i][1]);
    if (rank == NULL && size == NULL)
      continue;
    if (rank == NULL || size == NULL) {
      if (i > 0)
        continue; /* half of a foreign launcher's pair says nothing */
      return perigee__fail(PERIGEE_EINVAL, "%s is set, %s is not", launchers[i][rank == NULL],
                           launchers[i][rank != NULL]);
    }
    PERIGEE_TRY(env_number(launchers[i][0], rank_p));
    return env_number(launchers[i][1], nranks_p);
  }
  *rank_p = 0;
  *nranks_p = 1;
  return 0;
}

static int who_am_i(const perigee_init_options *opts, int *rank_p, int *nranks_p) {
  if ((opts->rank < 0) != (opts->nranks < 0))
    return perigee__fail(PERIGEE_EINVAL, "init: give both rank and size, or neither");
  if (opts->rank >= 0) {
    *rank_p = opts->rank;
    *nranks_p = opts->nranks;
  } else {
    PERIGEE_TRY(rank_from_env(rank_p, nranks_p));
  }
  if (*nranks_p < 1)
    return perigee__fail(PERIGEE_ERANGE, "init: size %d: at least 1 expected", *nranks_p);
  if (*rank_p >= *nranks_p)
    return perigee__fail(PERIGEE_ERANGE, "init: rank %d does not exist in a world of %d", *rank_p,
                         *nranks_p);
  return 0;
}

/* ---- the store --------------------------------------------------------------------------------- */

static int store_from_env(int64_t timeout_ns, perigee_store **store_p) {
  const char *host = getenv("MASTER_ADDR"), *port = getenv("MASTER_PORT");
  if (host == NULL || port == NULL || host[0] == '\0' || port[0] == '\0')
    return perigee__fail(PERIGEE_EINVAL,
                         "init: %s is not set; start with `perigee run`, or give a store",
                         host == NULL || host[0] == '\0' ? "MASTER_ADDR" : "MASTER_PORT");
  perigee_store_tcp_options tcp = {.size = sizeof(tcp), .host = host, .timeout_ns = timeout_ns};
  PERIGEE_TRY(env_number("MASTER_PORT", &tcp.port));
  return perigee_store_tcp_connect(&tcp, store_p);
}

/* The number of inits of this process so far, this one included. */
static unsigned next_generation(void) {
  static _Atomic unsigned count;
  return atomic_fetch_add(&count, 1) + 1;
}

static int store_for_world(const perigee_init_options *opts, int64_t timeout_ns,
                           perigee_store **store_p) {
  perigee_store *root = opts->store != NULL ? perigee_store_ref(opts->store) : NULL;
  if (root == NULL)
    PERIGEE_TRY(store_from_env(timeout_ns, &root));
  const char *restarts = getenv("TORCHELASTIC_RESTART_COUNT");
  char prefix[96];
  snprintf(prefix, sizeof(prefix), "perigee/r%.20s/w%u", restarts != NULL ? restarts : "0",
           next_generation());
  int rc = perigee_store_prefix_create(prefix, root, store_p);
  perigee_store_unref(root);
  return rc;
}

/* Write mine at key unless somebody was first; *same_p tells whether what is there now is equal to mine. */
static int pin(perigee_store *store, const char *key, const char *mine, bool *same_p, char *there,
               size_t there_size) {
  perigee_bytes value;
  PERIGEE_TRY(perigee_store_compare_set(store, key, "", 0, mine, strlen(mine), &value));
  *same_p = value.size == strlen(mine) && memcmp(value.data, mine, value.size) == 0;
  snprintf(there, there_size, "%.*s", (int)value.size, value.data);
  perigee_bytes_free(&value);
  return 0;
}

static int claim(perigee_store *store, int rank, int nranks) {
  char key[64], mine[128], there[160];
  bool same;
  snprintf(mine, sizeof(mine), "%d", nranks);
  PERIGEE_TRY(pin(store, "size", mine, &same, there, sizeof(there)));
  if (!same)
    return perigee__fail(PERIGEE_ECONFIG, "init: this rank's world size is %d, that of others %s",
                         nranks, there);
  char host[64] = "?";
  gethostname(host, sizeof(host) - 1);
  snprintf(key, sizeof(key), "claim/%d", rank);
  snprintf(mine, sizeof(mine), "pid %d on %s at %" PRId64, (int)getpid(), host, perigee__now_ns());
  PERIGEE_TRY(pin(store, key, mine, &same, there, sizeof(there)));
  if (!same)
    return perigee__fail(PERIGEE_EDUPRANK, "init: rank %d is held by %s", rank, there);
  return 0;
}

/* ---- worlds ------------------------------------------------------------------------------------ */

static perigee__transport transport_from_env(void) {
  const char *text = perigee__env("PERIGEE_TRANSPORT");
  if (strcmp(text, "shm") == 0)
    return PERIGEE_TRANSPORT_SHM;
  if (strcmp(text, "tcp") == 0)
    return PERIGEE_TRANSPORT_TCP;
  if (strcmp(text, "auto") != 0)
    perigee__log(PERIGEE_LOG_WARN, "PERIGEE_TRANSPORT=%s is not auto, shm or tcp: using auto",
                 text);
  return PERIGEE_TRANSPORT_AUTO;
}

static int world_alone(int rank, int nranks, perigee__world **world_p) {
  perigee__world *world = perigee__calloc(1, sizeof(*world));
  if (world == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory for a world");
  atomic_init(&world->refs, 1);
  world->rank = rank;
  world->nranks = nranks;
  *world_p = world;
  return 0;
}

static const char *host_from_env(void) {
  const char *host = perigee__env("PERIGEE_HOST_ID");
  return host[0] != '\0' ? host : NULL;
}

/* store: taken over once the world has it, and that is always but for memory. */
static int world_join(perigee_store *store, int rank, int nranks, int64_t deadline_ns,
                      perigee__world **world_p) {
  perigee__world *world = NULL;
  int rc = world_alone(rank, nranks, &world);
  if (rc < 0) {
    perigee_store_unref(store);
    return rc;
  }
  world->store = store;
  PERIGEE_TRY_GOTO(claim(world->store, rank, nranks), err);
  const perigee__mesh_params mesh = {.rank = rank,
                                     .nranks = nranks,
                                     .store = world->store,
                                     .transport = transport_from_env(),
                                     .bind_addr = perigee__env("PERIGEE_BIND"),
                                     .host_id = host_from_env(),
                                     .deadline_ns = deadline_ns};
  PERIGEE_TRY_GOTO(perigee__mesh_create(&mesh, &world->mesh), err);
  *world_p = world;
  return 0;
err:
  perigee__world_unref(world, deadline_ns);
  return rc;
}

/* Whether the stack ends in a bottom that has no peers. */
static int bottom_is(const char *stack, const char *name, bool *is_p) {
  perigee__backend *layers[PERIGEE_LAYERS_MAX];
  int n = 0;
  PERIGEE_TRY(perigee__stack_parse(stack, layers, &n));
  *is_p = strcmp(layers[n - 1]->name, name) == 0;
  for (int i = 0; i < n; i++)
    perigee__backend_unref(layers[i]);
  return 0;
}

int perigee__world_meet(perigee_store *store, const char *stack, int rank, int nranks,
                        int64_t deadline_ns, perigee__world **world_p) {
  bool alone = false;
  int rc = bottom_is(stack, "fake", &alone);
  if (rc == 0 && store == NULL && !alone && nranks > 1)
    rc = perigee__fail(PERIGEE_EINVAL, "%d ranks need a store to meet on", nranks);
  if (rc == 0 && !alone && nranks > 1)
    return world_join(store, rank, nranks, deadline_ns, world_p);
  if (rc == 0)
    rc = world_alone(rank, nranks, world_p);
  if (rc == 0)
    (*world_p)->store = store;
  else
    perigee_store_unref(store);
  return rc;
}

/* Makers that know less leave off the end. */
static bool has(const perigee_init_options *opts, size_t offset) {
  return opts->size >= offset + sizeof(void *);
}

static void params_from(const perigee_init_options *opts, perigee__group_params *params) {
  int64_t init_timeout = opts->init_timeout_ns > 0 ? opts->init_timeout_ns
                                                   : perigee__env_seconds("PERIGEE_INIT_TIMEOUT");
  *params = (perigee__group_params){
      .name = opts->name != NULL ? opts->name : "world",
      .id = 1, /* each world has a mesh of its own: nothing to tell apart */
      .stack = opts->backend != NULL ? opts->backend : perigee__env("PERIGEE_BACKEND"),
      .timeout_ns =
          opts->timeout_ns > 0 ? opts->timeout_ns : perigee__env_seconds("PERIGEE_TIMEOUT"),
      .deadline_ns = perigee__deadline_in(init_timeout),
      .layer_options =
          has(opts, offsetof(perigee_init_options, layer_options)) ? opts->layer_options : NULL,
      .tuning = has(opts, offsetof(perigee_init_options, tuning)) ? opts->tuning : NULL,
  };
}

static int *iota(int n) {
  int *list = perigee__calloc((size_t)n, sizeof(int));
  for (int i = 0; list != NULL && i < n; i++)
    list[i] = i;
  if (list == NULL)
    perigee__fail(PERIGEE_ENOMEM, "no memory for %d ranks", n);
  return list;
}

int perigee_init(const perigee_init_options *opts, perigee_group **group_p) {
  perigee_init_options defaults;
  if (opts == NULL) {
    perigee_init_options_init(&defaults);
    opts = &defaults;
  }
  perigee__backends_builtin();
  perigee__group_params params;
  params_from(opts, &params);
  PERIGEE_TRY(who_am_i(opts, &params.rank, &params.nranks));
  bool alone;
  PERIGEE_TRY(bottom_is(params.stack, "fake", &alone));
  alone = alone || params.nranks == 1;
  perigee_store *store = alone && opts->store != NULL ? perigee_store_ref(opts->store) : NULL;
  if (!alone)
    PERIGEE_TRY(store_for_world(opts, perigee__time_left(params.deadline_ns), &store));
  int *members = iota(params.nranks);
  if (members == NULL) {
    perigee_store_unref(store);
    return PERIGEE_ENOMEM;
  }
  params.members = members;
  int rc = perigee__world_meet(store, params.stack, params.rank, params.nranks, params.deadline_ns,
                               &params.world);
  if (rc == 0) {
    perigee__log_set_rank(params.nranks > 1 ? params.rank : -1);
    rc = perigee__group_open(&params, group_p);
    perigee__world_unref(params.world, params.deadline_ns);
  }
  free(members);
  return rc;
}

/* ---- ranks as threads of this process ------------------------------------------------------------ */

typedef struct local_open {
  perigee__group_params params;
  perigee_group *group;
  pthread_t thread;
  bool started;
  int rc;
  perigee_error error;
} local_open;

static void *local_main(void *arg) {
  local_open *open = arg;
  open->rc = perigee__group_open(&open->params, &open->group);
  if (open->rc < 0)
    open->error = *perigee_last_error();
  return NULL;
}

static int local_worlds(int n, local_open *opens, perigee_store *store) {
  perigee__mesh **meshes = perigee__calloc((size_t)n, sizeof(perigee__mesh *));
  if (meshes == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory for %d ranks", n);
  int rc = n > 1 ? perigee__mesh_create_local(n, transport_from_env(), meshes) : 0;
  for (int i = 0; i < n && rc == 0; i++) {
    rc = world_alone(i, n, &opens[i].params.world);
    if (rc < 0)
      break;
    opens[i].params.world->store = perigee_store_ref(store);
    opens[i].params.world->mesh = meshes[i];
    meshes[i] = NULL;
  }
  for (int i = 0; i < n; i++)
    if (meshes[i] != NULL)
      perigee__mesh_destroy(&meshes[i], perigee__deadline_in(0));
  free(meshes);
  return rc;
}

static int local_run(int n, local_open *opens) {
  int rc = 0;
  for (int i = 0; i < n; i++) {
    int err =
        perigee__thread_start(&opens[i].thread, "pg-open", (size_t)4 << 20, local_main, &opens[i]);
    opens[i].started = err == 0;
    if (err < 0)
      rc = perigee__fail_errno(-err, "cannot start a thread for rank %d", i);
  }
  for (int i = 0; i < n; i++)
    if (opens[i].started)
      pthread_join(opens[i].thread, NULL);
  for (int i = 0; i < n && rc == 0; i++)
    if (opens[i].rc < 0)
      rc = perigee__fail_with(&opens[i].error);
  return rc;
}

int perigee_init_local(int n, const perigee_init_options *opts, perigee_group **groups) {
  if (n < 1)
    return perigee__fail(PERIGEE_ERANGE, "init_local: %d ranks: at least 1 expected", n);
  perigee_init_options defaults;
  if (opts == NULL) {
    perigee_init_options_init(&defaults);
    opts = &defaults;
  }
  perigee__backends_builtin();
  local_open *opens = perigee__calloc((size_t)n, sizeof(*opens));
  int *members = iota(n);
  perigee_store *store = NULL;
  int rc = 0;
  if (opens == NULL || members == NULL)
    PERIGEE_TRY_GOTO(perigee__fail(PERIGEE_ENOMEM, "no memory for %d ranks", n), out);
  for (int i = 0; i < n; i++) {
    params_from(opts, &opens[i].params);
    opens[i].params.rank = i;
    opens[i].params.nranks = n;
    opens[i].params.members = members;
  }
  PERIGEE_TRY_GOTO(perigee_store_hash_create(&store), out);
  PERIGEE_TRY_GOTO(local_worlds(n, opens, store), out);
  rc = local_run(n, opens);
  for (int i = 0; i < n; i++) {
    if (rc == 0)
      groups[i] = opens[i].group;
    else if (opens[i].group != NULL) {
      perigee_group_close(opens[i].group);
      perigee_group_unref(opens[i].group);
    }
  }
out:
  for (int i = 0; opens != NULL && i < n; i++)
    perigee__world_unref(opens[i].params.world, perigee__deadline_in(0));
  perigee_store_unref(store);
  free(members);
  free(opens);
  return rc;
}
