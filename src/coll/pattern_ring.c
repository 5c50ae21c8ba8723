#include "coll/pattern_ring.h"

int perigee__ring_send_chunk(int n, int rank, int step) {
  int back = step < n - 1 ? step + 1 : step - (n - 1);
  return (rank - back + 2 * n) % n;
}

int perigee__ring_recv_chunk(int n, int rank, int step) {
  return perigee__ring_send_chunk(n, (rank + n - 1) % n, step);
}
