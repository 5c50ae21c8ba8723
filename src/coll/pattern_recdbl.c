#include "coll/pattern_recdbl.h"

perigee__recdbl perigee__recdbl_of(int n) {
  perigee__recdbl r = {.n = n};
  while ((2 << r.rounds) <= n)
    r.rounds++;
  r.folded = n - (1 << r.rounds);
  return r;
}

int perigee__recdbl_virtual(const perigee__recdbl *r, int rank) {
  if (rank >= 2 * r->folded)
    return rank - r->folded;
  return rank % 2 == 0 ? -1 : rank / 2;
}

int perigee__recdbl_rank(const perigee__recdbl *r, int v) {
  return v < r->folded ? 2 * v + 1 : v + r->folded;
}

int perigee__recdbl_partner(const perigee__recdbl *r, int rank, int round) {
  return perigee__recdbl_rank(r, perigee__recdbl_virtual(r, rank) ^ (1 << round));
}

bool perigee__recdbl_takes(const perigee__recdbl *r, int rank) {
  return rank < 2 * r->folded && rank % 2 == 1;
}

int perigee__recdbl_first(const perigee__recdbl *r, int rank) {
  if (perigee__recdbl_takes(r, rank))
    return -1;
  return rank < 2 * r->folded ? rank + 1 : perigee__recdbl_partner(r, rank, 0);
}
