/* The public C API of Perigee. perigee/lua.h (which includes Lua) is separate. */
#ifndef PERIGEE_H
#define PERIGEE_H

#include "backend.h"
#include "error.h"
#include "export.h"
#include "group.h"
#include "hook.h"
#include "op.h"
#include "plugin.h"
#include "shared.h"
#include "store.h"
#include "tensor.h"
#include "version.h"
#include "work.h"

#endif
