/* Collectives as messages over the mesh (any mix of hosts). */
#ifndef PERIGEE_COLL_NET_H
#define PERIGEE_COLL_NET_H

#include "coll/coll.h"

/** Run one collective over the mesh; contract of perigee__coll_run. */
PERIGEE_MUST_CHECK int perigee__net_run(perigee__mesh *mesh, perigee__fate *fate,
                                        const perigee__coll_call *call, perigee_error *error_p);

/** All members together, before their first collective: compare what their collectives go by (select.h). ECONFIG on all ranks
 *  when they differ. Waits. */
PERIGEE_MUST_CHECK int perigee__net_agree(perigee__mesh *mesh, perigee__fate *fate,
                                          int64_t deadline_ns);

#endif
