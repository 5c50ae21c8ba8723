/* TCP on the loopback device: one way as half a round trip, and streams. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>
#include <uv.h>

#include "machine.h"

typedef enum how {
  BLOCKING,
  SPIN,
  EPOLL
} how;

typedef struct wire {
  int fd[2]; /* of the parent, of the child */
  how how;
  size_t bytes;
  int turns;
  char *data;
} wire;

static void open_link(int fd[2]) {
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t len = sizeof(a);
  int one = 1, l = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (l < 0 || bind(l, (void *)&a, len) || listen(l, 1) || getsockname(l, (void *)&a, &len))
    die("listen");
  fd[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd[0] < 0 || connect(fd[0], (void *)&a, len) || (fd[1] = accept(l, NULL, NULL)) < 0)
    die("connect");
  for (int i = 0; i < 2; i++)
    setsockopt(fd[i], IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
  close(l);
}

static void get(how how, int fd, int epoll, char *to, size_t bytes) {
  while (bytes > 0) {
    struct epoll_event event;
    if (how == EPOLL && epoll_wait(epoll, &event, 1, -1) < 0 && errno != EINTR)
      die("epoll_wait");
    ssize_t n = recv(fd, to, bytes, how == BLOCKING ? 0 : MSG_DONTWAIT);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
      die("recv");
    if (n > 0)
      to += n, bytes -= (size_t)n;
  }
}

static void put(int fd, const char *from, size_t bytes) {
  while (bytes > 0) {
    ssize_t n = send(fd, from, bytes, MSG_NOSIGNAL);
    if (n < 0 && errno != EINTR)
      die("send");
    if (n > 0)
      from += n, bytes -= (size_t)n;
  }
}

static int epoll_of(int fd) {
  int epoll = epoll_create1(EPOLL_CLOEXEC);
  struct epoll_event event = {.events = EPOLLIN};
  if (epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event))
    die("epoll");
  return epoll;
}

static void echo(void *arg) {
  wire *l = arg;
  int epoll = epoll_of(l->fd[1]);
  pin(cores() > 1 ? 1 : 0);
  for (int i = 0; i < l->turns; i++) {
    get(l->how, l->fd[1], epoll, l->data, l->bytes);
    put(l->fd[1], l->data, l->bytes);
  }
}

static void pingpong(const char *name, how how, size_t bytes) {
  wire l = {.how = how, .bytes = bytes, .data = malloc(bytes)};
  l.turns = bytes <= 4096 ? 3000 : 500;
  if (l.data == NULL)
    die("malloc");
  memset(l.data, 1, bytes);
  open_link(l.fd);
  pid_t pid = child(echo, &l);
  int epoll = epoll_of(l.fd[0]), warm = l.turns / 10;
  pin(0);
  double started = 0;
  for (int i = 0; i < l.turns; i++) {
    if (i == warm)
      started = now_us();
    put(l.fd[0], l.data, bytes);
    get(how, l.fd[0], epoll, l.data, bytes);
  }
  double us = (now_us() - started) / (l.turns - warm) / 2;
  reap(pid);
  pin(-1);
  sample(US, us, bytes, "TCP one way, %s", name);
  close(l.fd[0]), close(l.fd[1]), close(epoll);
  free(l.data);
}

/* ---- the same through libuv, written and read by the loop's thread -------------------------------------- */

typedef struct player {
  uv_tcp_t tcp;
  char *data;
  size_t bytes, got;
  int turn, turns, serves;
  double started, ended;
  uv_write_t write;
} player;

static void uv_room(uv_handle_t *handle, size_t suggested, uv_buf_t *buf) {
  player *p = handle->data;
  (void)suggested;
  *buf = uv_buf_init(p->data, (unsigned)p->bytes);
}

static void uv_put(player *p) {
  uv_buf_t buf = uv_buf_init(p->data, (unsigned)p->bytes);
  int n = uv_try_write((uv_stream_t *)&p->tcp, &buf, 1);
  if (n == (int)p->bytes)
    return;
  size_t done = n > 0 ? (size_t)n : 0;
  buf = uv_buf_init(p->data + done, (unsigned)(p->bytes - done));
  if (uv_write(&p->write, (uv_stream_t *)&p->tcp, &buf, 1, NULL) != 0)
    die("uv_write");
}

static void uv_got(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf) {
  player *p = stream->data;
  (void)buf;
  if (n < 0)
    die("uv read");
  p->got += (size_t)n;
  if (p->got < p->bytes)
    return;
  p->got = 0;
  p->turn++;
  if (p->turn == p->turns / 10)
    p->started = now_us();
  if (p->turn < p->turns || !p->serves)
    uv_put(p);
  if (p->turn == p->turns) {
    p->ended = now_us();
    uv_read_stop(stream);
    uv_close((uv_handle_t *)stream, NULL);
  }
}

static void uv_play(player *p, int fd) {
  uv_loop_t loop;
  if (uv_loop_init(&loop) || uv_tcp_init(&loop, &p->tcp) || uv_tcp_open(&p->tcp, fd))
    die("libuv");
  p->tcp.data = p;
  if (uv_read_start((uv_stream_t *)&p->tcp, uv_room, uv_got))
    die("uv_read_start");
  if (p->serves)
    uv_put(p);
  uv_run(&loop, UV_RUN_DEFAULT);
  uv_loop_close(&loop);
}

typedef struct uv_side {
  player *player;
  int fd;
} uv_side;

static void uv_answer(void *arg) {
  uv_side *side = arg;
  pin(cores() > 1 ? 1 : 0);
  uv_play(side->player, side->fd);
}

static void pingpong_uv(size_t bytes) {
  int fd[2];
  open_link(fd);
  player p = {.data = calloc(1, bytes), .bytes = bytes, .turns = bytes <= 4096 ? 3000 : 500};
  uv_side side = {&p, fd[1]};
  pid_t pid = child(uv_answer, &side);
  close(fd[1]);
  p.serves = 1;
  pin(0);
  uv_play(&p, fd[0]);
  reap(pid);
  pin(-1);
  sample(US, (p.ended - p.started) / (p.turns - p.turns / 10) / 2, bytes,
         "TCP one way, libuv loop");
  free(p.data);
}

/* ---- streams --------------------------------------------------------------------------------------------- */

typedef struct stream {
  int fd[2][2], n;
  size_t chunk, total;
  char *data;
} stream;

static void drain(void *arg) {
  stream *s = arg;
  pin(cores() > 1 ? 1 : 0);
  for (size_t done = 0; done < s->total; done += s->chunk)
    for (int k = 0; k < s->n; k++)
      get(BLOCKING, s->fd[k][1], -1, s->data, s->chunk);
  put(s->fd[0][1], s->data, 1);
}

static void streams(int n, size_t chunk) {
  stream s = {
      .n = n, .chunk = chunk, .total = (size_t)(128 << 20) / (size_t)n, .data = malloc(chunk)};
  if (s.data == NULL)
    die("malloc");
  memset(s.data, 1, chunk);
  for (int k = 0; k < n; k++)
    open_link(s.fd[k]);
  pid_t pid = child(drain, &s);
  pin(0);
  double started = now_us();
  for (size_t done = 0; done < s.total; done += chunk)
    for (int k = 0; k < n; k++)
      put(s.fd[k][0], s.data, chunk);
  get(BLOCKING, s.fd[0][0], -1, s.data, 1);
  double us = now_us() - started;
  reap(pid);
  pin(-1);
  sample(GBPS, (double)s.total * n / us * 1e-3, chunk, "TCP stream, %d connection%s", n,
         n > 1 ? "s" : "");
  for (int k = 0; k < n; k++)
    close(s.fd[k][0]), close(s.fd[k][1]);
  free(s.data);
}

void group_tcp(void) {
  static const size_t sizes[] = {8, 1024, 65536};
  for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
    pingpong("blocking", BLOCKING, sizes[i]);
    pingpong("epoll", EPOLL, sizes[i]);
    pingpong_uv(sizes[i]);
    if (cores() > 1)
      pingpong("spinning", SPIN, sizes[i]);
  }
  for (int n = 1; n <= 2; n++) {
    streams(n, 65536);
    streams(n, 1 << 20);
  }
}
