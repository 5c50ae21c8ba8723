/*
 * Backends as layers. A group is a stack of layers, "log(fp16(native))": each either handles an operation or
 * leaves it to the layer below, which is found once, when the group opens.
 * Frozen ABI: perigee_backend_ops_v1 grows at the end only; `size` tells what the maker knew.
 */
#ifndef PERIGEE_BACKEND_H
#define PERIGEE_BACKEND_H

#include <stdbool.h>
#include <stdint.h>

#include "error.h"
#include "export.h"
#include "op.h"
#include "shared.h"
#include "store.h"
#include "work.h"

typedef struct perigee_layer perigee_layer; /* one layer of one group */
struct perigee_group;

/** What a layer is told when its group opens. Borrowed for the time of the call. */
typedef struct perigee_layer_info {
  uint32_t size;
  perigee_layer *layer;     /* valid until close */
  const char *backend_name; /* name in the stack string */
  const char *group_name;
  int rank, nranks;
  perigee_store *store;    /* prefixed for this group; NULL when the group has none (size 1) */
  int64_t timeout_ns;      /* the group's default */
  const int *members;      /* nranks: the world's rank of each rank */
  perigee_shared *options; /* perigee_init_options.layer_options of the world, or NULL */
} perigee_layer_info;

/**
 * A kind of backend. self is one layer's own state, made by open.
 * All slots may be called from any thread. "No locks": the runtime holds none while it calls.
 */
typedef struct perigee_backend_ops_v1 {
  uint32_t size; /* sizeof(perigee_backend_ops_v1) */
  uint32_t abi;  /* 1 */

  /** Make the state of one layer. May block up to the group's timeout. No locks. */
  int (*open)(void *backend, const perigee_layer_info *info, void **self_p);
  /** Once, after the last submit has returned and its works have ended; frees self. Must not wait for peers. */
  void (*close)(void *self);
  /** Whether this layer takes operation op. Asked once per operation, after open. NULL: takes all. */
  bool (*handles)(void *self, int op);
  /** Start an operation; never waits for peers. Returns 0 and a work (one reference for the caller), or an error
   *  when it is refused at once and nothing was started. */
  int (*submit)(void *self, const perigee_request *req, perigee_work **work_p);
  /** Run an operation to its end on the calling thread. NULL: the runtime submits and waits. */
  int (*run)(void *self, const perigee_request *req, perigee_error *error_p);
  /** End all pending works of this layer with EABORTED. Idempotent, never waits, any thread. NULL: nothing to do. */
  void (*abort)(void *self, const perigee_error *reason);
  /** Default timeout of operations changed. NULL: nothing to do. */
  void (*set_timeout)(void *self, int64_t timeout_ns);
  /** State of one layer for a subgroup; NULL: open is called with the subgroup's info. */
  int (*split)(void *self, const perigee_layer_info *info, void **self_p);
  /** The backend (not a layer) is replaced or the process ends: drop it. May be NULL. */
  void (*drop)(void *backend);
} perigee_backend_ops_v1;

/**
 * Make a backend known by name in this process; registering a name again replaces it for groups opened later.
 * default_inner: stack below it when the stack string names none ("native"), or NULL for a bottom backend.
 * Names: letters, digits, '_' and '-'.
 */
PERIGEE_API PERIGEE_MUST_CHECK int perigee_backend_register(const char *name,
                                                            const char *default_inner,
                                                            const perigee_backend_ops_v1 *ops,
                                                            void *backend);
PERIGEE_API bool perigee_backend_exists(const char *name);

/* ---- what a layer may call: the layer below ---------------------------------------------------- */

/** Start req in the layers below `layer`. Same contract as ops->submit. ENOTSUP when nothing below takes it. */
PERIGEE_API PERIGEE_MUST_CHECK int
perigee_layer_submit(perigee_layer *layer, const perigee_request *req, perigee_work **work_p);
/** Run req in the layers below and wait for its end. */
PERIGEE_API PERIGEE_MUST_CHECK int perigee_layer_run(perigee_layer *layer,
                                                     const perigee_request *req);
/**
 * A group of the layers below alone: these ranks, in this order, become 0..n-1. Otherwise as perigee_group_subgroup, and possible
 * from `open` on. The layer ends it: perigee_group_close and perigee_group_unref, at the latest in `close`.
 * Waits: for the members.
 */
PERIGEE_API PERIGEE_MUST_CHECK int perigee_layer_subgroup(perigee_layer *layer, const int *ranks,
                                                          int n, const char *name,
                                                          struct perigee_group **group_p);
/** Name of the stack below, for example "fp16(native)"; "" at the bottom. Borrowed. */
PERIGEE_API const char *perigee_layer_below(const perigee_layer *layer);

#endif
