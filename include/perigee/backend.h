/*
 * Backends as layers. A group is a stack of layers, "log(fp16(native))": each either handles an operation or
 * leaves it to the layer below, which is found once, when the group opens.
 * A program registers a backend with perigee_backend_register; one in a shared library is found by its name (plugin.h).
 * Functions that fail return a negative code and leave the message with perigee_error_fail.
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

#define PERIGEE_BACKEND_ABI 1 /* of perigee_backend_ops_v1 */

typedef struct perigee_layer perigee_layer; /* one layer of one group */
struct perigee_group;

/*
 * What a layer may define besides operations. XX(id, NAME, name, KIND), never renumber, append only.
 *   ASKED  the first layer from above that has it answers; what none has is the runtime's own. It may pass on (perigee_layer_<name>).
 *   TOLD   every layer that has it is told, top first; the runtime's own part happens in any case.
 */
#define PERIGEE_METHOD_MAP(XX)                                                                     \
  XX(0, OPEN, open, TOLD)                                                                          \
  XX(1, CLOSE, close, TOLD)                                                                        \
  XX(2, ABORT, abort, TOLD)                                                                        \
  XX(3, SET_TIMEOUT, set_timeout, TOLD)                                                            \
  XX(4, BACKEND_NAME, backend_name, ASKED)                                                         \
  XX(5, RANK, rank, ASKED)                                                                         \
  XX(6, SIZE, size, ASKED)                                                                         \
  XX(7, SPLIT, split, ASKED)                                                                       \
  XX(8, SHUTDOWN, shutdown, ASKED)                                                                 \
  XX(9, START_COALESCING, start_coalescing, ASKED)                                                 \
  XX(10, END_COALESCING, end_coalescing, ASKED)                                                    \
  XX(11, RECONFIGURE, reconfigure, ASKED)

typedef enum perigee_method {
#define XX(_id, _NAME, _name, _kind) PERIGEE_METHOD_##_NAME = _id,
  PERIGEE_METHOD_MAP(XX)
#undef XX
  PERIGEE_METHOD_COUNT = 12
} perigee_method;

/** "start_coalescing"; NULL when method is not one. Static memory. */
PERIGEE_API const char *perigee_method_name(int method);

/** What a group is formed anew with. Fields left alone keep what the group had. Borrowed for the time of the call. */
typedef struct perigee_reconfigure_options {
  uint32_t size;
  perigee_store *
      store; /* where the ranks meet; NULL: the store of the group, which all ranks of the new one must know */
  const char *
      id; /* names this configuration on `store`: the same on all ranks, another each time. NULL: "0" with a
                     store, else the number of the configuration, counted by the group */
  int rank, nranks;        /* -1: as before; both or none */
  int64_t timeout_ns;      /* default of operations; <= 0: as before */
  int64_t init_timeout_ns; /* of this call; <= 0: PERIGEE_INIT_TIMEOUT seconds or 300 s */
  perigee_shared
      *script; /* the options as a script gave them, shown to layers written in Lua, or NULL */
} perigee_reconfigure_options;

/** All defaults. */
PERIGEE_API void perigee_reconfigure_options_init(perigee_reconfigure_options *opts);

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
  uint32_t abi;  /* PERIGEE_BACKEND_ABI */

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

  /* ---- optional methods of the kind ASKED; a maker whose `size` ends before them has none --------- */

  /** Whether this layer has a method (perigee_method, ASKED ones only) whose slot is not NULL. Asked once per method, after open. NULL:
   *  it has all of them. */
  bool (*provides)(void *self, int method);
  /** Name to show in stack strings instead of the registered one; the same rules. Asked once, after open; copied. NULL: it failed, and so does the opening (perigee_last_error()). */
  const char *(*backend_name)(void *self);
  /** What the group reports as its rank (>= 0) and size (>= 1), each time it is asked; or an error. Requests are made and checked with
   *  the real ones all the same, and layers keep the real ones of perigee_layer_info. */
  int (*rank)(void *self);
  int (*group_size)(void *self);
  /** Make the group of perigee_group_split. Waits. *group_p: owned by the caller; NULL where color < 0. */
  int (*split_group)(void *self, int color, int key, const char *name,
                     struct perigee_group **group_p);
  /** Wait until what is pending has ended, at most timeout_ns; ETIMEDOUT. The group is closed afterwards in any case. */
  int (*shutdown)(void *self, int64_t timeout_ns);
  /** A batch begins and ends on this layer: its operations are submitted in between, one after the other, on the same thread. end gives a
   *  work (one reference for the caller) that must end too before the batch has ended. end is called for every start that returned 0.
   *  Never wait for peers. */
  int (*start_coalescing)(void *self);
  int (*end_coalescing)(void *self, perigee_work **work_p);
  /** Form the group anew. Waits. *group_p: the new group, owned by the caller; NULL: this layer did it in place and the group stays. */
  int (*reconfigure)(void *self, const perigee_reconfigure_options *opts,
                     struct perigee_group **group_p);
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
/*
 * The methods of kind ASKED, passed on to the first layer below that has them, and else to the runtime.
 * rank, size: what the layers below report. split, reconfigure: the new group has the whole stack, as if this layer had not been asked.
 * shutdown: waits until everything pending on the group has ended. Coalescing: without a layer that has it nothing is done, and the work
 * has ended.
 */
PERIGEE_API int perigee_layer_rank(perigee_layer *layer);
PERIGEE_API int perigee_layer_size(perigee_layer *layer);
PERIGEE_API PERIGEE_MUST_CHECK int perigee_layer_split(perigee_layer *layer, int color, int key,
                                                       const char *name,
                                                       struct perigee_group **group_p);
PERIGEE_API PERIGEE_MUST_CHECK int perigee_layer_shutdown(perigee_layer *layer, int64_t timeout_ns);
PERIGEE_API PERIGEE_MUST_CHECK int perigee_layer_start_coalescing(perigee_layer *layer);
PERIGEE_API PERIGEE_MUST_CHECK int perigee_layer_end_coalescing(perigee_layer *layer,
                                                                perigee_work **work_p);
PERIGEE_API PERIGEE_MUST_CHECK int
perigee_layer_reconfigure(perigee_layer *layer, const perigee_reconfigure_options *opts,
                          struct perigee_group **group_p);
/** Name of the stack below, for example "fp16(native)"; "" at the bottom. Borrowed. */
PERIGEE_API const char *perigee_layer_below(const perigee_layer *layer);

#endif
