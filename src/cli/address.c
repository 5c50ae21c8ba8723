#include "cli/address.h"

#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Connecting a datagram socket only looks up the route. */
static int address_of_route(const struct addrinfo *to, char *buf, size_t size) {
  struct sockaddr_storage own;
  socklen_t length = sizeof(own);
  int fd = socket(to->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0), rc = 0;
  if (fd < 0)
    return -errno;
  if (connect(fd, to->ai_addr, to->ai_addrlen) != 0 ||
      getsockname(fd, (struct sockaddr *)(void *)&own, &length) != 0)
    rc = -errno;
  else if (getnameinfo((struct sockaddr *)(void *)&own, length, buf, (socklen_t)size, NULL, 0,
                       NI_NUMERICHOST) != 0)
    rc = -EADDRNOTAVAIL;
  close(fd);
  return rc;
}

int perigee__address_towards(const char *host, int port, char *buf, size_t size) {
  char service[16];
  struct addrinfo hints = {.ai_socktype = SOCK_DGRAM}, *list;
  snprintf(service, sizeof(service), "%d", port);
  int rc = getaddrinfo(host, service, &hints, &list);
  if (rc != 0)
    return perigee__fail(PERIGEE_EINVAL, "%s: %s", host, gai_strerror(rc));
  rc = -EADDRNOTAVAIL;
  for (const struct addrinfo *to = list; to != NULL && rc < 0; to = to->ai_next)
    rc = address_of_route(to, buf, size);
  freeaddrinfo(list);
  return rc < 0 ? perigee__fail_errno(-rc, "no address of this machine reaches %s", host) : 0;
}
