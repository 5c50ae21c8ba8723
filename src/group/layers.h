/* Opening, routing and closing the layers of a group. */
#ifndef PERIGEE_GROUP_LAYERS_H
#define PERIGEE_GROUP_LAYERS_H

#include "group/group.h"

/** Open the layers of group->stack, bottom first, or split them from parent's from index first on; find the routes. On failure what was
 *  opened is closed. */
PERIGEE_MUST_CHECK int perigee__layers_open(perigee_group *group, const perigee_group *parent,
                                            int first);
/** Close them, top first. */
void perigee__layers_close(perigee_group *group);
/** Tell every layer, top first, to end what it has pending with this error. */
void perigee__layers_abort(perigee_group *group, const perigee_error *error);

/** The first layer of index `from` or below that has a method of kind ASKED, or NULL. */
perigee_layer *perigee__layer_with(perigee_group *group, int from, perigee_method method);

/** Start req at the layer of this index; run it there to its end. */
int perigee__layer_submit_at(perigee_group *group, int index, const perigee_request *req,
                             perigee_work **work_p);
int perigee__layer_run_at(perigee_group *group, int index, const perigee_request *req,
                          perigee_error *error);

#endif
