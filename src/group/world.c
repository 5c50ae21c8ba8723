#include "group/world.h"

#include <stdlib.h>

perigee__world *perigee__world_ref(perigee__world *world) {
  atomic_fetch_add_explicit(&world->refs, 1, memory_order_relaxed);
  return world;
}

void perigee__world_unref(perigee__world *world, int64_t deadline_ns) {
  if (world == NULL || atomic_fetch_sub_explicit(&world->refs, 1, memory_order_acq_rel) != 1)
    return;
  if (world->mesh != NULL)
    perigee__mesh_destroy(&world->mesh, deadline_ns);
  perigee_store_unref(world->store);
  free(world);
}
