/* Version numbers. CMakeLists.txt reads them from here. */
#ifndef PERIGEE_VERSION_H
#define PERIGEE_VERSION_H

#include "export.h"

#define PERIGEE_VERSION_MAJOR 0
#define PERIGEE_VERSION_MINOR 1
#define PERIGEE_VERSION_PATCH 0

/** "major.minor.patch" of the library that is loaded, which may differ from the headers. */
PERIGEE_API const char *perigee_version(void);

#endif
