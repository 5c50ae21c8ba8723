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

#include "host/lbackend.h"

/**
 * [-0, +0, e] The table on top of the stack as a work (returned owned), NULL when it has none of the methods; ELUATYPE when one is
 * no function.
 * req: the operation. timeout_ns: what is left of it, given to wait. drive_p:
 * NULL, or the calling thread waits for the work right afterwards: it then runs what it gets here, with no other thread in between.
 */
PERIGEE_RAISES perigee_work *perigee__table_work(lua_State *L, const perigee__llayer *layer,
                                                 const perigee_request *req, int64_t timeout_ns,
                                                 perigee__ready **drive_p);

#endif
