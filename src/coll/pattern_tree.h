/*
 * Binomial tree over n ranks. Positions are ranks relative to the root (root: 0). The parent of a position is the position without
 * its lowest set bit; the children of p are p + 2^k for each 2^k below that bit, so that the subtree of p + 2^k
 * holds the positions p + 2^k .. p + 2^(k+1) - 1 that exist.
 *
 *   n = 6:   0 - 1
 *              - 2 - 3
 *              - 4 - 5
 */
#ifndef PERIGEE_COLL_PATTERN_TREE_H
#define PERIGEE_COLL_PATTERN_TREE_H

static inline int perigee__tree_position(int n, int root, int rank) {
  return (rank - root + n) % n;
}
static inline int perigee__tree_rank(int n, int root, int position) {
  return (position + root) % n;
}
/** -1 for the root. */
int perigee__tree_parent(int position);
/** Number of children. */
int perigee__tree_children(int n, int position);
/** Child number i, nearest (smallest subtree) first. */
int perigee__tree_child(int position, int i);

#endif
