/* Which ranks of an arena can read each other's memory (transport/vm.h): all pairs can, or nobody does. */
#ifndef PERIGEE_COLL_REACH_H
#define PERIGEE_COLL_REACH_H

#include "coll/arena_impl.h"

/** Show this rank to the others. Before the members agree. */
void perigee__reach_introduce(perigee__arena *a);
/** Whether this rank can read all others, all of which have introduced themselves. Says why not, once, at level info. */
bool perigee__reach_probe(perigee__arena *a);

#endif
