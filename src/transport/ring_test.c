/* Rings: the bytes come through whole and in order, a sleeper is woken, and a hostile peer's positions are refused. */
#include "transport/mesh_testing.h"
/* the above first: cmocka needs what it includes */
#include <errno.h>

#include "base/available.h"
#include "base/error.h"
#include "base/futex.h"
#include "transport/memfd.h"
#include "transport/ring.h"

typedef struct end {
  perigee__ring_stream rs;
  _Atomic uint32_t *bell; /* of the other end */
  _Atomic uint32_t own_bell;
  size_t bytes;
  int sleeps;
} end;

static void ring_bell(void *arg) {
  const end *e = arg;
  atomic_fetch_add(e->bell, 1);
  perigee__futex_wake(e->bell, 1, false);
}

static void pair_open(end ends[2]) {
  int fd;
  memset(ends, 0, 2 * sizeof(end));
  CHECK_OK(perigee__memfd_create("ring", perigee__ring_pair_bytes(), &fd));
  for (int i = 0; i < 2; i++) {
    void *base;
    CHECK_OK(perigee__memfd_map(fd, perigee__ring_pair_bytes(), &base));
    perigee__ring_stream_init(&ends[i].rs, base, i == 0, ring_bell, &ends[i]);
    ends[i].bell = &ends[1 - i].own_bell;
  }
  close(fd);
}

static void pair_close(end ends[2]) {
  for (int i = 0; i < 2; i++)
    perigee__ring_stream_fini(&ends[i].rs);
}

static ssize_t put(end *e, const void *data, size_t size) {
  const struct iovec iov = {(void *)(uintptr_t)data, size};
  return e->rs.stream.ops->writev(&e->rs.stream, &iov, 1);
}

static ssize_t get(end *e, void *data, size_t size) {
  return e->rs.stream.ops->read(&e->rs.stream, data, size);
}

/* As the mesh does it: arm, look again, sleep. A lost wake-up shows as a sleep to its limit. */
static void sleep_until_ready(end *e) {
  uint32_t seen = atomic_load(&e->own_bell);
  perigee__ring_arm(&e->rs);
  if (!perigee__ring_ready(&e->rs)) {
    e->sleeps++;
    int rc = perigee__futex_wait(&e->own_bell, seen, patience(), false);
    CHECK(rc != PERIGEE_ETIMEDOUT && rc != -ETIMEDOUT);
  }
  perigee__ring_disarm(&e->rs);
}

static uint8_t byte_at(size_t i) { return (uint8_t)(i * 31 + (i >> 8)); }

static void *writer_main(void *arg) {
  end *e = arg;
  uint8_t part[700];
  uint64_t x = 1;
  for (size_t at = 0; at < e->bytes;) {
    x = x * UINT64_C(6364136223846793005) + 1;
    size_t n = 1 + (size_t)(x >> 40) % sizeof(part);
    n = n < e->bytes - at ? n : e->bytes - at;
    for (size_t i = 0; i < n; i++)
      part[i] = byte_at(at + i);
    /* As two pieces, the first perhaps empty. */
    const struct iovec iov[2] = {{part, n / 3}, {part + n / 3, n - n / 3}};
    ssize_t done = e->rs.stream.ops->writev(&e->rs.stream, iov, 2);
    e->rs.stream.ops->want_write(&e->rs.stream, done == -EAGAIN);
    CHECK(done > 0 || done == -EAGAIN);
    if (done > 0)
      at += (size_t)done;
    else
      sleep_until_ready(e);
  }
  return NULL;
}

static void *reader_main(void *arg) {
  end *e = arg;
  uint8_t part[900];
  uint64_t x = 2;
  for (size_t at = 0; at < e->bytes;) {
    x = x * UINT64_C(6364136223846793005) + 1;
    ssize_t n = get(e, part, 1 + (size_t)(x >> 40) % sizeof(part));
    CHECK(n > 0 || n == -EAGAIN);
    for (ssize_t i = 0; i < n; i++)
      CHECKF(part[i] == byte_at(at + (size_t)i), "byte %zu", at + (size_t)i);
    if (n > 0)
      at += (size_t)n;
    else
      sleep_until_ready(e);
  }
  return NULL;
}

static void stream_of_bytes(void **state) {
  (void)state;
  end ends[2];
  pthread_t writer, reader;
  pair_open(ends);
  ends[0].bytes = ends[1].bytes = 4 << 20;
  assert_int_equal(pthread_create(&reader, NULL, reader_main, &ends[1]), 0);
  assert_int_equal(pthread_create(&writer, NULL, writer_main, &ends[0]), 0);
  pthread_join(writer, NULL);
  pthread_join(reader, NULL);
  assert_false(perigee__ring_ready(&ends[1].rs));
  pair_close(ends);
}

static void full_and_empty(void **state) {
  (void)state;
  end ends[2];
  uint8_t *data = bytes_new(PERIGEE_RING_BYTES + 10), *back = bytes_new(PERIGEE_RING_BYTES + 10);
  pair_open(ends);
  fill(data, PERIGEE_RING_BYTES + 10, 1);
  for (int round = 0; round < 3; round++) { /* the third starts in the middle */
    assert_int_equal(get(&ends[1], back, 10), -EAGAIN);
    assert_int_equal(put(&ends[0], data, PERIGEE_RING_BYTES + 10), PERIGEE_RING_BYTES);
    assert_int_equal(put(&ends[0], data, 1), -EAGAIN);
    ends[0].rs.stream.ops->want_write(&ends[0].rs.stream, true);
    assert_false(perigee__ring_ready(&ends[0].rs));
    assert_true(perigee__ring_ready(&ends[1].rs));
    assert_int_equal(get(&ends[1], back, 7), 7);
    assert_true(perigee__ring_ready(&ends[0].rs)); /* room for what was stuck */
    ends[0].rs.stream.ops->want_write(&ends[0].rs.stream, false);
    assert_false(perigee__ring_ready(&ends[0].rs));
    assert_int_equal(get(&ends[1], back + 7, PERIGEE_RING_BYTES + 10), PERIGEE_RING_BYTES - 7);
    assert_memory_equal(data, back, PERIGEE_RING_BYTES);
    if (round == 1) {
      assert_int_equal(put(&ends[0], data, 100), 100);
      assert_int_equal(get(&ends[1], back, 200), 100);
    }
  }
  /* The other direction is another ring. */
  assert_int_equal(get(&ends[0], back, 1), -EAGAIN);
  assert_int_equal(put(&ends[1], data, 5), 5);
  assert_int_equal(get(&ends[0], back, 10), 5);
  pair_close(ends);
  free(data);
  free(back);
}

static void kicks_only_who_sleeps(void **state) {
  (void)state;
  end ends[2];
  uint8_t byte = 0;
  pair_open(ends);
  assert_int_equal(put(&ends[0], &byte, 1), 1);
  assert_int_equal(ends[1].own_bell, 0);
  perigee__ring_arm(&ends[1].rs);
  assert_int_equal(put(&ends[0], &byte, 1), 1);
  assert_int_equal(put(&ends[0], &byte, 1), 1);
  assert_int_equal(ends[1].own_bell, 1); /* once */
  perigee__ring_arm(&ends[1].rs);
  perigee__ring_disarm(&ends[1].rs);
  assert_int_equal(put(&ends[0], &byte, 1), 1);
  assert_int_equal(ends[1].own_bell, 1);
  pair_close(ends);
}

/* ---- slots ------------------------------------------------------------------------------------- */

static perigee__frame eager_of(size_t length, uint64_t tag) {
  return (perigee__frame){.type = PERIGEE_FRAME_EAGER, .kind = 1, .tag = tag, .length = length};
}

/* The next message, which must be number `tag` of that size: from a slot, or from the stream, where it is as many bytes. */
static void expect_message(end *e, size_t length, uint64_t tag, bool slot) {
  uint8_t buf[PERIGEE_SLOT_MAX];
  perigee__slot found;
  int rc = perigee__ring_peek_slot(&e->rs, &found);
  assert_int_equal(rc, slot);
  if (slot) {
    assert_int_equal(found.frame.tag, tag);
    assert_int_equal(found.frame.length, length);
    perigee__ring_take_slot(&e->rs, &found, buf, length);
  } else {
    assert_int_equal(get(e, buf, length), length); /* all of it, and nothing of what comes next */
  }
  assert_true(is_filled(buf, length, tag));
}

/* Messages in slots and as bytes, up to `ahead` of them on their way: one sequence. */
static void slots_and_stream_are_one_sequence(void **state) {
  (void)state;
  static const size_t sizes[] = {1, 8, 24, 25, 40, 63, 64};
  enum {
    AHEAD = 3,
    COUNT = 3000
  };
  end ends[2];
  bool in_slot[COUNT];
  int used = 0;
  pair_open(ends);
  for (int i = 0, taken = 0; taken < COUNT;) {
    size_t length = sizes[(size_t)(i * 5 + i / 9) % PERIGEE_COUNT(sizes)];
    if (i < COUNT && i - taken < AHEAD) {
      uint8_t data[64];
      perigee__frame frame = eager_of(length, (uint64_t)i);
      fill(data, length, (uint64_t)i);
      in_slot[i] = i % 3 != 2 && perigee__ring_put_slot(&ends[0].rs, &frame, data);
      if (in_slot[i] || put(&ends[0], data, length) == (ssize_t)length) {
        used += in_slot[i];
        i++;
        continue;
      }
    }
    length = sizes[(size_t)(taken * 5 + taken / 9) % PERIGEE_COUNT(sizes)];
    assert_true(perigee__ring_ready(&ends[1].rs));
    expect_message(&ends[1], length, (uint64_t)taken, in_slot[taken]);
    taken++;
  }
  assert_false(perigee__ring_ready(&ends[1].rs));
  assert_true(used > COUNT / 3);
  pair_close(ends);
}

static void slots_run_out(void **state) {
  (void)state;
  end ends[2];
  const uint64_t word = 7;
  pair_open(ends);
  for (int round = 0; round < 3; round++) {
    for (int i = 0; i < PERIGEE_RING_SLOTS; i++) {
      perigee__frame frame = eager_of(8, (uint64_t)i);
      assert_true(perigee__ring_put_slot(&ends[0].rs, &frame, &word));
    }
    perigee__frame more = eager_of(8, 99);
    assert_false(perigee__ring_put_slot(&ends[0].rs, &more, &word));
    for (int i = 0; i < PERIGEE_RING_SLOTS; i++) {
      perigee__slot found;
      uint64_t got = 0;
      assert_int_equal(perigee__ring_peek_slot(&ends[1].rs, &found), 1);
      assert_int_equal(found.frame.tag, i);
      perigee__ring_take_slot(&ends[1].rs, &found, &got, 8);
      assert_int_equal(got, word);
    }
    assert_false(perigee__ring_ready(&ends[1].rs));
  }
  perigee__ring_arm(&ends[1].rs);
  perigee__frame frame = eager_of(8, 0);
  assert_true(perigee__ring_put_slot(&ends[0].rs, &frame, &word));
  perigee__ring_wake(&ends[0].rs);
  perigee__ring_wake(&ends[0].rs);
  assert_int_equal(ends[1].own_bell, 1); /* a sleeper is woken, once */
  pair_close(ends);
}

static void hostile_slots(void **state) {
  (void)state;
  for (int what = 0; what < 3; what++) {
    end ends[2];
    uint64_t word = 1;
    perigee__slot found;
    perigee__frame frame = eager_of(8, 0);
    pair_open(ends);
    assert_true(perigee__ring_put_slot(&ends[0].rs, &frame, &word));
    perigee__ring_slot *slot = &ends[0].rs.out->slots[0];
    if (what == 0)
      slot->at = PERIGEE_RING_BYTES + 1;
    else if (what == 1)
      slot->type = PERIGEE_FRAME_ABORT;
    else
      slot->size = PERIGEE_SLOT_MAX + 1;
    assert_int_equal(perigee__ring_peek_slot(&ends[1].rs, &found), PERIGEE_EPROTO);
    if (what == 0)
      assert_int_equal(get(&ends[1], &word, 8), -EPROTO);
    pair_close(ends);
  }
}

/* Positions that cannot be: refused on both sides, and no byte outside the ring is touched. */
static void hostile_positions(void **state) {
  (void)state;
  static const uint64_t bad[] = {PERIGEE_RING_BYTES + 1, UINT64_MAX, UINT64_C(1) << 63};
  for (size_t i = 0; i < 3; i++) {
    end ends[2];
    uint8_t buf[PERIGEE_RING_BYTES / 2] = {0};
    pair_open(ends);
    atomic_store(&ends[0].rs.out->head, bad[i]);
    assert_true(perigee__ring_ready(&ends[1].rs));
    assert_int_equal(get(&ends[1], buf, sizeof(buf)), -EPROTO);
    atomic_store(&ends[1].rs.out->tail, bad[i]);
    /* The writer looks when it has written as much as it knows room for. */
    assert_int_equal(put(&ends[1], buf, sizeof(buf)), sizeof(buf));
    assert_int_equal(put(&ends[1], buf, sizeof(buf)), sizeof(buf));
    assert_int_equal(put(&ends[1], buf, sizeof(buf)), -EPROTO);
    ends[1].rs.stuck = true;
    assert_true(perigee__ring_ready(&ends[1].rs)); /* so that writing is tried, and finds it */
    pair_close(ends);
  }
}

static void memfd_of_another_size(void **state) {
  (void)state;
  int fd;
  void *base = NULL;
  assert_int_equal(perigee__memfd_create("small", 4096, &fd), 0);
  assert_int_equal(perigee__memfd_map(fd, 8192, &base), PERIGEE_ENOSHM);
  assert_null(base);
  assert_int_equal(ftruncate(fd, 0), -1); /* sealed */
  close(fd);
  FILE *file = tmpfile();
  assert_non_null(file);
  assert_int_equal(perigee__memfd_map(fileno(file), 4096, &base), PERIGEE_ENOSHM);
  fclose(file);
}

/* Asked for more than there is: told so at once, not by whoever is killed for it. */
static void memfd_of_too_much(void **state) {
  (void)state;
  uint64_t available = perigee__available_memory();
  int fd = -1;
  assert_true(available > 0 && available < UINT64_MAX);
  assert_int_equal(perigee__memfd_create("large", (size_t)available * 2, &fd), PERIGEE_ENOSHM);
  assert_non_null(strstr(perigee_last_error()->message, " are available"));
  assert_int_equal(fd, -1);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(stream_of_bytes),
      cmocka_unit_test(full_and_empty),
      cmocka_unit_test(kicks_only_who_sleeps),
      cmocka_unit_test(hostile_positions),
      cmocka_unit_test(slots_and_stream_are_one_sequence),
      cmocka_unit_test(slots_run_out),
      cmocka_unit_test(hostile_slots),
      cmocka_unit_test(memfd_of_another_size),
      cmocka_unit_test(memfd_of_too_much),
  };
  return run_all("ring", tests, sizeof(tests) / sizeof(tests[0]));
}
