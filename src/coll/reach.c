#include "coll/reach.h"

#include "base/log.h"

void perigee__reach_introduce(perigee__arena *a) {
  perigee__vm_show(&a->probe, &a->status[a->me].face);
  a->status[a->me].slow = perigee__vm_is_slow();
}

bool perigee__reach_probe(perigee__arena *a) {
  for (int r = 0; r < a->n; r++)
    a->slow |= a->status[r].slow != 0;
  for (int r = 0; r < a->n; r++) {
    a->pids[r] = a->status[r].face.pid;
    int rc = r == a->me ? 0 : perigee__vm_probe(&a->status[r].face);
    if (rc == 0)
      continue;
    static _Atomic bool said; /* relaxed: once is enough, twice does no harm */
    if (!atomic_exchange_explicit(&said, true, memory_order_relaxed))
      perigee__log(PERIGEE_LOG_INFO,
                   "group %s: the memory of rank %d cannot be read directly (%s): using buffers",
                   a->fate->name, r, perigee_strerror(rc));
    return false;
  }
  return true;
}
