/*
 * World: what the groups of one perigee_init share in this process: the mesh and the store.
 * Reference-counted by its groups; the last one to close says goodbye to the peers.
 */
#ifndef PERIGEE_GROUP_WORLD_H
#define PERIGEE_GROUP_WORLD_H

#include <perigee/store.h>

#include "transport/mesh.h"

typedef struct perigee__world {
  _Atomic uint32_t refs;
  int rank, nranks;
  perigee__mesh *mesh;  /* NULL when nranks is 1 */
  perigee_store *store; /* prefixed for this world; NULL when there is none */
} perigee__world;

perigee__world *perigee__world_ref(perigee__world *world);
/** The last reference destroys the mesh: waits at most until deadline_ns for data on its way out. */
void perigee__world_unref(perigee__world *world, int64_t deadline_ns);

/**
 * The world of these ranks for a stack, met on `store` (taken over, also on failure; prefixed for this world, NULL: from nowhere). Alone when
 * there is one rank or the bottom has no peers. Waits for all ranks until deadline_ns. (init.c)
 */
int perigee__world_meet(perigee_store *store, const char *stack, int rank, int nranks,
                        int64_t deadline_ns, perigee__world **world_p);

#endif
