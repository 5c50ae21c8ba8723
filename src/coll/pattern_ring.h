/*
 * Who sends which chunk when on a ring: rank r sends to r + 1 and receives from r - 1, all modulo n.
 *
 * Steps 0 .. n-2 (reduce-scatter): a chunk starts at the rank behind its owner and is added to on its way; rank r ends up with
 * chunk r. Steps n-1 .. 2n-3 (allgather): the finished chunks go round. What a rank receives in step t it sends on in step t+1.
 *
 *   n = 4, what rank r receives      step 0    1    2  |  3    4    5
 *                               r      r-2  r-3  r   | r-1  r-2  r-3
 */
#ifndef PERIGEE_COLL_PATTERN_RING_H
#define PERIGEE_COLL_PATTERN_RING_H

/** Chunk that a rank sends in a step, 0 <= step < 2 (n - 1). */
int perigee__ring_send_chunk(int n, int rank, int step);
/** Chunk that it receives. */
int perigee__ring_recv_chunk(int n, int rank, int step);

#endif
