/* The parser: the worked bytes of the protocol, every cut of every request, every limit. */
#include "store/store_tcp_parse.h"

#include "store/store_testing.h"

/* One request of each code, as a client writes it, and what the parser must make of it. */
static const struct sample {
  const char *bytes;
  size_t size;
  const char *texts[4]; /* keys and values, NULL ends */
  int64_t number;
  uint32_t word;
  uint64_t count;
} samples[PERIGEE__REQ_COUNT] = {
#define BYTES(_text) .bytes = _text, .size = sizeof(_text) - 1
    [PERIGEE__REQ_VALIDATE] = {BYTES("\x00\xCE\xF7\x85\x3C")},
    [PERIGEE__REQ_SET] = {BYTES("\x01" K L("\x01") "v"), .texts = {"/k", "v"}},
    [PERIGEE__REQ_COMPARE_SET] = {BYTES("\x02" K L("\x00") L("\x03") "new"),
                                  .texts = {"/k", "", "new"}},
    [PERIGEE__REQ_GET] = {BYTES("\x03" K), .texts = {"/k"}},
    [PERIGEE__REQ_ADD] = {BYTES("\x04" K "\xFB\xFF\xFF\xFF\xFF\xFF\xFF\xFF"), .texts = {"/k"},
                          .number = -5},
    [PERIGEE__REQ_CHECK] = {BYTES("\x05" L("\x02") K L("\x01") "x"), .texts = {"/k", "x"},
                            .count = 2},
    [PERIGEE__REQ_WAIT] = {BYTES("\x06" L("\x01") K), .texts = {"/k"}, .count = 1},
    [PERIGEE__REQ_GETNUMKEYS] = {BYTES("\x07")},
    [PERIGEE__REQ_DELETE_KEY] = {BYTES("\x08" K), .texts = {"/k"}},
    [PERIGEE__REQ_APPEND] = {BYTES("\x09" K L("\x02") "vw"), .texts = {"/k", "vw"}},
    [PERIGEE__REQ_MULTI_GET] = {BYTES("\x0A" L("\x03") K K L("\x00")), .texts = {"/k", "/k", ""},
                                .count = 3},
    [PERIGEE__REQ_MULTI_SET] = {BYTES("\x0B" L("\x02") K L("\x01") "a" L("\x01") "b" L("\x00")),
                                .texts = {"/k", "a", "b", ""}, .count = 2},
    [PERIGEE__REQ_CANCEL_WAIT] = {BYTES("\x0C")},
    [PERIGEE__REQ_PING] = {BYTES("\x0D\x78\x56\x34\x12"), .word = 0x12345678},
    [PERIGEE__REQ_QUEUE_PUSH] = {BYTES("\x0E" K L("\x01") "q"), .texts = {"/k", "q"}},
    [PERIGEE__REQ_QUEUE_POP] = {BYTES("\x0F" K), .texts = {"/k"}},
    [PERIGEE__REQ_QUEUE_LEN] = {BYTES("\x10" K), .texts = {"/k"}},
    [PERIGEE__REQ_LIST_KEYS] = {BYTES("\x11")},
    [PERIGEE__REQ_BARRIER] = {BYTES("\x12" K L("\x04")), .texts = {"/k"}, .number = 4},
};

static void expect_request(const perigee__parser *p, unsigned code) {
  const struct sample *want = &samples[code];
  assert_int_equal(p->code, code);
  size_t n = 0;
  for (; n < 4 && want->texts[n] != NULL; n++) {
    assert_int_equal(p->spans[n].size, strlen(want->texts[n]));
    assert_memory_equal(perigee__parser_text(p, n), want->texts[n], p->spans[n].size);
  }
  assert_int_equal(p->nspans, n);
  assert_int_equal(p->count, want->count);
  if (strchr("\x04\x12", (int)code) != NULL && code != 0)
    assert_true(p->number == want->number);
  if (code == PERIGEE__REQ_PING)
    assert_int_equal(p->word, want->word);
}

/* Feed all of data in one piece; it must be taken and leave the parser at rc. */
static int feed(perigee__parser *p, const void *data, size_t size) {
  size_t used = 0;
  int rc = perigee__parser_feed(p, data, size, &used);
  if (rc == 0)
    assert_int_equal(used, size);
  return rc;
}

static void validated(perigee__parser *p) {
  perigee__parser_init(p);
  assert_int_equal(feed(p, HELLO, 5), 1);
  assert_true(p->validated);
}

static void every_request_cut_everywhere(void **state) {
  (void)state;
  for (unsigned code = 1; code < PERIGEE__REQ_COUNT; code++)
    for (size_t a = 0; a <= samples[code].size; a++)
      for (size_t b = a; b <= samples[code].size; b++) {
        const size_t cuts[] = {0, a, b, samples[code].size};
        perigee__parser p;
        validated(&p);
        size_t used, total = 0;
        int rc = 0;
        for (int i = 0; i < 3; i++) {
          if (cuts[i] == cuts[i + 1] || rc == 1)
            continue;
          rc =
              perigee__parser_feed(&p, samples[code].bytes + cuts[i], cuts[i + 1] - cuts[i], &used);
          assert_true(rc >= 0);
          total += used;
          assert_int_equal(rc, total == samples[code].size);
        }
        assert_int_equal(rc, 1);
        expect_request(&p, code);
        perigee__parser_fini(&p);
      }
}

static void byte_by_byte(void **state) {
  (void)state;
  perigee__parser p;
  perigee__parser_init(&p);
  for (unsigned code = 0; code < PERIGEE__REQ_COUNT; code++)
    for (size_t i = 0; i < samples[code].size; i++) {
      int rc = feed(&p, samples[code].bytes + i, 1);
      assert_int_equal(rc, i + 1 == samples[code].size);
      if (rc == 1)
        expect_request(&p, code);
    }
  perigee__parser_fini(&p);
}

static void pipelined(void **state) {
  (void)state;
  perigee__buf all = {NULL, 0, 0, false};
  for (int round = 0; round < 3; round++)
    for (unsigned code = round > 0; code < PERIGEE__REQ_COUNT; code++)
      perigee__buf_put(&all, samples[code].bytes, samples[code].size);
  perigee__parser p;
  perigee__parser_init(&p);
  size_t at = 0, used;
  unsigned code = 0;
  for (; at < all.size; at += used) {
    assert_int_equal(perigee__parser_feed(&p, all.data + at, all.size - at, &used), 1);
    assert_int_equal(used, samples[code].size);
    expect_request(&p, code);
    code = code + 1 < PERIGEE__REQ_COUNT ? code + 1 : 1;
  }
  perigee__parser_fini(&p);
  perigee__buf_fini(&all);
}

static void handshake(void **state) {
  (void)state;
  /* any other byte, at any place, is refused when it comes */
  for (size_t at = 0; at < 5; at++)
    for (int byte = 0; byte < 256; byte++) {
      perigee__parser p;
      perigee__parser_init(&p);
      char bad = (char)byte;
      if (bad == HELLO[at])
        continue;
      assert_int_equal(feed(&p, HELLO, at), 0);
      assert_int_equal(feed(&p, &bad, 1), PERIGEE_EPROTO);
      assert_false(p.validated);
      perigee__parser_fini(&p);
    }
  perigee__parser p;
  validated(&p);
  FAILS(feed(&p, HELLO, 5), PERIGEE_EPROTO, "request code 00");
  perigee__parser_fini(&p);
  for (int byte = PERIGEE__REQ_COUNT; byte < 256; byte++) {
    char code = (char)byte;
    validated(&p);
    FAILS(feed(&p, &code, 1), PERIGEE_EPROTO, "request code");
    perigee__parser_fini(&p);
  }
}

/* A length field that is refused must be refused with its last byte, with nothing allocated for it. */
static int feed_length(const char *before, size_t size, uint64_t n) {
  perigee__parser p;
  perigee__buf b = {NULL, 0, 0, false};
  validated(&p);
  assert_int_equal(feed(&p, before, size), 0);
  perigee__buf_u64(&b, n);
  int rc = feed(&p, b.data, b.size);
  assert_true(p.text.cap <= 64 << 10);
  assert_true(p.spans_cap <= 64);
  perigee__buf_fini(&b);
  perigee__parser_fini(&p);
  return rc;
}

static void lengths(void **state) {
  (void)state;
  static const struct {
    const char *before;
    size_t size;
    uint64_t max;
  } fields[] = {
      {"\x03", 1, 8192},                   /* key */
      {"\x05\x01\0\0\0\0\0\0\0", 9, 8192}, /* key in a list */
      {"\x01" K, 11, 8 << 20},             /* value */
      {"\x02" K L("\x00"), 19, 8 << 20},   /* second value */
      {"\x0B" L("\x02") K, 19, 8 << 20},   /* value in a list */
      {"\x05", 1, 131072},                 /* lists */
      {"\x06", 1, 131072},
      {"\x0A", 1, 131072},
      {"\x0B", 1, 131072},
  };
  for (size_t i = 0; i < PERIGEE_COUNT(fields); i++) {
    const char *before = fields[i].before;
    size_t size = fields[i].size;
    assert_int_equal(feed_length(before, size, fields[i].max), 0);
    assert_int_equal(feed_length(before, size, fields[i].max + 1), PERIGEE_EPROTO);
    for (int bit = 24; bit < 64; bit++) {
      assert_int_equal(feed_length(before, size, UINT64_C(1) << bit), PERIGEE_EPROTO);
      assert_int_equal(feed_length(before, size, (UINT64_C(1) << bit) - 1), PERIGEE_EPROTO);
    }
    assert_int_equal(feed_length(before, size, UINT64_MAX), PERIGEE_EPROTO);
    assert_int_equal(feed_length(before, size, UINT64_C(1) << 63), PERIGEE_EPROTO);
  }
}

/* A value of 8 MiB is claimed: memory follows what comes. */
static void memory_grows_with_what_comes(void **state) {
  (void)state;
  perigee__parser p;
  static char data[8 << 20];
  validated(&p);
  assert_int_equal(feed(&p, "\x01" K "\x00\x00\x80\0\0\0\0\0", 19), 0);
  assert_true(p.text.cap <= 64);
  assert_int_equal(feed(&p, data, 1000), 0);
  assert_true(p.text.cap <= 2048);
  assert_int_equal(feed(&p, data, sizeof(data) - 1001), 0);
  assert_int_equal(feed(&p, data, 1), 1);
  assert_int_equal(p.spans[1].size, sizeof(data));
  /* and is given back */
  assert_int_equal(feed(&p, "\x07", 1), 1);
  assert_true(p.text.cap <= 64 << 10);
  perigee__parser_fini(&p);
}

/* The longest list, of empty keys; and an empty one, whose request ends with its length. */
static void long_and_empty_lists(void **state) {
  (void)state;
  perigee__parser p;
  validated(&p);
  assert_int_equal(feed(&p, "\x06\x00\x00\x02\0\0\0\0\0", 9), 0);
  for (int i = 0; i < 131072; i++)
    assert_int_equal(feed(&p, L("\x00"), 8), i == 131071);
  assert_int_equal(p.nspans, 131072);
  for (unsigned code = 5; code <= 0x0B; code++)
    if (code != 7 && code != 8 && code != 9) {
      char request[9] = {(char)code};
      assert_int_equal(feed(&p, request, 8), 0);
      assert_int_equal(feed(&p, request + 8, 1), 1);
      assert_int_equal(p.nspans, 0);
      assert_int_equal(p.count, 0);
    }
  perigee__parser_fini(&p);
}

/* One request may not hold more than 256 MiB in all: 32 values of 8 MiB fit, less the keys. */
static void whole_request(void **state) {
  (void)state;
  static char data[8 << 20];
  perigee__parser p;
  validated(&p);
  assert_int_equal(feed(&p, "\x0B\x00\x01\0\0\0\0\0\0", 9), 0);
  int rc = 0, i = 0;
  for (; i < 40 && rc == 0; i++)
    if ((rc = feed(&p, K "\x00\x00\x80\0\0\0\0\0", 18)) == 0)
      rc = feed(&p, data, sizeof(data));
  assert_int_equal(rc, PERIGEE_EPROTO);
  assert_int_equal(i, 32);
  perigee__parser_fini(&p);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(every_request_cut_everywhere),
      cmocka_unit_test(byte_by_byte),
      cmocka_unit_test(pipelined),
      cmocka_unit_test(handshake),
      cmocka_unit_test(lengths),
      cmocka_unit_test(memory_grows_with_what_comes),
      cmocka_unit_test(long_and_empty_lists),
      cmocka_unit_test(whole_request),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
