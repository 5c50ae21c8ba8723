/*
 * Recursive doubling of any number of ranks.
 *
 * Let p be the largest power of two not above n and f = n - p. Of the first 2f ranks each even one folds: it gives its vector
 * to the rank right of it and takes no part until the end. The p ranks that are left get virtual ranks 0 .. p-1 in rank
 * order; in round k virtual rank v exchanges with v ^ 2^k. Each side then has the sum over a block of ranks that are
 * neighbours; the lower block goes first, so both compute the same bits.
 *
 *   n = 6: p = 4, f = 2    0 -> 1, 2 -> 3    virtual ranks of 1 3 4 5: 0 1 2 3    ((01)(23))((4)(5))
 */
#ifndef PERIGEE_COLL_PATTERN_RECDBL_H
#define PERIGEE_COLL_PATTERN_RECDBL_H

#include <stdbool.h>

typedef struct perigee__recdbl {
  int n, folded; /* f */
  int rounds;    /* log2 p */
} perigee__recdbl;

perigee__recdbl perigee__recdbl_of(int n);
/** Virtual rank, -1 for a rank that folds. */
int perigee__recdbl_virtual(const perigee__recdbl *r, int rank);
/** Rank of a virtual rank. */
int perigee__recdbl_rank(const perigee__recdbl *r, int v);
/** Partner of a rank that does not fold, in a round. */
int perigee__recdbl_partner(const perigee__recdbl *r, int rank, int round);
/** The rank that a rank can send its own vector to before it has received anything; -1 for one that is folded into. */
int perigee__recdbl_first(const perigee__recdbl *r, int rank);
/** Whether the rank starts with the vectors of two ranks. */
bool perigee__recdbl_takes(const perigee__recdbl *r, int rank);

#endif
