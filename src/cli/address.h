/* Addresses of this machine. */
#ifndef PERIGEE_CLI_ADDRESS_H
#define PERIGEE_CLI_ADDRESS_H

#include <stddef.h>

#include "base/error.h"

/** The address that this machine shows to host:port, in numbers, into buf (size 46 holds any). Sends nothing. EINVAL when host is unknown, the
 *  system's error when there is no way there. May wait for a name server. */
PERIGEE_MUST_CHECK int perigee__address_towards(const char *host, int port, char *buf, size_t size);

#endif
