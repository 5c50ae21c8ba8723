/* Beside the public API: a server on a socket that somebody else made. */
#ifndef PERIGEE_STORE_TCP_SERVER_H
#define PERIGEE_STORE_TCP_SERVER_H

#include <perigee/store.h>

/**
 * Serve on fd, a bound TCP socket (listening or not), for instance one inherited from a launcher.
 * Owns: fd is taken on success and stays the caller's on failure.
 */
PERIGEE_MUST_CHECK int perigee__store_server_from_fd(int fd, perigee_store_server **server_p);

#endif
