/* Sockets with deadlines. Every failure names host and port and says why. */
#ifndef PERIGEE_STORE_TCP_NET_H
#define PERIGEE_STORE_TCP_NET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

enum {
  PERIGEE__NET_ADDRS = 8,
  PERIGEE__NET_HOST_MAX = 255
};

typedef struct perigee__net_addr {
  struct sockaddr_storage addr;
  socklen_t size;
} perigee__net_addr;

/**
 * Addresses of a host, IPv6 first. addrs: PERIGEE__NET_ADDRS entries. A name server that does not answer is left behind at the
 * deadline: the thread that asks it ends by itself later.
 */
int perigee__net_resolve(const char *host, int port, int64_t deadline_ns, perigee__net_addr *addrs,
                         size_t *n_p);
/** A listening socket, close-on-exec, not blocking. addr: a name or address. */
int perigee__net_listen(const char *addr, int port, int *fd_p);
/** Connected, close-on-exec, not blocking. Tries each address of the host once. */
int perigee__net_connect(const char *host, int port, int64_t deadline_ns, int *fd_p);
/** No delay, and notice a peer whose host has gone. */
void perigee__net_tune(int fd);
/** Until fd has one of events, or other_fd (-1: none) is readable. 0, 1 (other_fd), or PERIGEE_ETIMEDOUT without a text. */
int perigee__net_poll(int fd, short events, int other_fd, int64_t deadline_ns);

#endif
