#include "transport/frame.h"

#include <endian.h>
#include <string.h>

#include "base/error.h"

static const uint8_t magic[4] = {'P', 'G', 'F', '1'};

static void put64(uint8_t *at, uint64_t value) {
  value = htole64(value);
  memcpy(at, &value, sizeof(value));
}

static uint64_t get64(const uint8_t *at) {
  uint64_t value;
  memcpy(&value, at, sizeof(value));
  return le64toh(value);
}

void perigee__frame_encode(const perigee__frame *frame, uint8_t out[PERIGEE_FRAME_SIZE]) {
  memset(out, 0, PERIGEE_FRAME_SIZE);
  memcpy(out, magic, sizeof(magic));
  out[4] = frame->type;
  out[5] = frame->kind;
  put64(out + 8, frame->group);
  put64(out + 16, frame->tag);
  put64(out + 24, frame->fp);
  put64(out + 32, frame->length);
  put64(out + 40, frame->id);
  put64(out + 48, frame->credit);
  put64(out + 56, frame->at);
}

/* The most that may stand in `length` of a type; RTS and DATA speak of a buffer that the receiver has or not. */
static uint64_t length_limit(uint8_t type) {
  switch (type) {
  case PERIGEE_FRAME_EAGER:
    return PERIGEE_EAGER_MAX;
  case PERIGEE_FRAME_RTS:
  case PERIGEE_FRAME_DATA:
    return INT64_MAX;
  case PERIGEE_FRAME_ABORT:
    return PERIGEE_ABORT_SIZE;
  default:
    return 0;
  }
}

int perigee__frame_check(const perigee__frame *frame) {
  return frame->length <= length_limit(frame->type)
             ? 0
             : perigee__fail(PERIGEE_EPROTO, "frame: type %u with length %llu", frame->type,
                             (unsigned long long)frame->length);
}

int perigee__frame_decode(const uint8_t in[PERIGEE_FRAME_SIZE], perigee__frame *frame) {
  if (memcmp(in, magic, sizeof(magic)) != 0)
    return perigee__fail(PERIGEE_EPROTO, "frame: wrong magic %02x%02x%02x%02x", in[0], in[1], in[2],
                         in[3]);
  if (in[4] == 0 || in[4] >= PERIGEE_FRAME_TYPES)
    return perigee__fail(PERIGEE_EPROTO, "frame: unknown type %u", in[4]);
  frame->type = in[4];
  frame->kind = in[5];
  frame->group = get64(in + 8);
  frame->tag = get64(in + 16);
  frame->fp = get64(in + 24);
  frame->length = get64(in + 32);
  frame->id = get64(in + 40);
  frame->credit = get64(in + 48);
  frame->at = get64(in + 56);
  PERIGEE_TRY(perigee__frame_check(frame));
  if (frame->credit > PERIGEE_CREDIT)
    return perigee__fail(PERIGEE_EPROTO, "frame: credit %llu", (unsigned long long)frame->credit);
  return 0;
}
