/*
 * fake: one rank that plays any world size, for programs that are to run without peers. Completes everything at once by the
 * definition for a world in which every rank holds what this one holds: sums are multiplied, gathers are filled with copies.
 */
#ifndef PERIGEE_GROUP_FAKE_H
#define PERIGEE_GROUP_FAKE_H

#include <perigee/backend.h>

extern const perigee_backend_ops_v1 perigee__fake_ops;

#endif
