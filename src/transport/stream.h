/*
 * Streams: the two kinds of byte pipe between this rank and one peer, as the framing (channel.c) sees them.
 * The mesh's lock is held in every call. Nothing blocks.
 */
#ifndef PERIGEE_TRANSPORT_STREAM_H
#define PERIGEE_TRANSPORT_STREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

typedef struct perigee__stream perigee__stream;

typedef struct perigee__stream_ops {
  /** Bytes taken (at least 1), -EAGAIN, or another -errno when the peer is gone. */
  ssize_t (*writev)(perigee__stream *stream, const struct iovec *iov, int n);
  /** Bytes read (at least 1), 0 at the end, -EAGAIN, or another -errno. */
  ssize_t (*read)(perigee__stream *stream, void *buf, size_t size);
  /** The same into several places, one after the other. NULL unless staged. */
  ssize_t (*readv)(perigee__stream *stream, const struct iovec *iov, int n);
  /** Whether the mesh has bytes that writev refused and wants to hear when there is room. */
  void (*want_write)(perigee__stream *stream, bool on);
  bool staged; /* a read costs a system call: small frames are read many at a time into a stage */
} perigee__stream_ops;

struct perigee__stream {
  const perigee__stream_ops *ops;
};

#endif
