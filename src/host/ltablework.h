/*
 * A Lua table as a Work: what an override may return instead of a Work of the runtime.
 *
 * Methods, all optional but one of the first three: wait(self, seconds), get_future(self), is_completed(self), result(self), error(self),
 * abort(self, reason). The table is wrapped into a work of its own, which one of them ends:
 *   wait           called once, by whoever waits for the operation (or the interpreter's own thread): returning ends the work,
 *                  false or an error fails it
 *   get_future     without wait: called at once; the Work (or future) it returns stands for the operation
 *   is_completed   without both: asked every millisecond
 * error(self), asked when the table is done, fails the work when it returns something; result(self) gives its value; abort(self, reason)
 * is told when the work was aborted. A reference keeps the table until the work has ended.
 */
#ifndef PERIGEE_HOST_LTABLEWORK_H
#define PERIGEE_HOST_LTABLEWORK_H

#include <perigee/work.h>

#include "host/interp.h"

/**
 * [-0, +0, e] The table on top of the stack as a work (returned owned), NULL when it has none of the methods.
 * req: the operation. timeout_ns: what is left of it, given to wait. own: the calling thread waits for it right afterwards.
 */
PERIGEE_RAISES perigee_work *perigee__table_work(lua_State *L, perigee_interp *interp,
                                                 const perigee_request *req, int64_t timeout_ns,
                                                 bool own);

#endif
