/* Messages: what is packed parses back; every cut, every wrong byte that matters, is refused. */
#include "kvtransfer/wire.h"
#include "tests/unit/test.h"

static const kvt_nonce nonce = {0x1122334455667788, 0x99aabbccddeeff00};

static size_t pack(const kvt_message *message, uint8_t *data, size_t capacity)
{
    size_t size = kvt_wire_pack(message, data, capacity);
    assert_true(size > 0);
    return size;
}

/* Parses as a whole; no prefix and no longer text does. */
static void assert_exact(const uint8_t *data, size_t size, kvt_message *out_message)
{
    uint8_t longer[2048];
    kvt_message ignored;
    for (size_t cut = 0; cut < size; cut++)
        assert_false(kvt_wire_parse(data, cut, &ignored));
    memcpy(longer, data, size);
    longer[size] = 0;
    assert_false(kvt_wire_parse(longer, size + 1, &ignored));
    assert_true(kvt_wire_parse(data, size, out_message));
}

static void assert_refused_with(const uint8_t *data, size_t size, size_t at, uint8_t byte)
{
    uint8_t copy[2048];
    kvt_message ignored;
    memcpy(copy, data, size);
    copy[at] = byte;
    assert_false(kvt_wire_parse(copy, size, &ignored));
}

TEST(hello_says_version_and_name)
{
    uint8_t data[256];
    kvt_message in = {.type = KVT_MESSAGE_HELLO, .hello = {1, 77, "decode-0"}}, out;
    size_t size = pack(&in, data, sizeof data);
    assert_exact(data, size, &out);
    assert_int_equal(out.hello.version, 1);
    assert_int_equal(out.hello.incarnation, 77);
    assert_string_equal(out.hello.name, "decode-0");
    assert_refused_with(data, size, 1, 'X');       /* magic */
    assert_refused_with(data, size, size - 1, 10); /* a name goes into metrics */
    assert_refused_with(data, size, 14, 200);      /* longer than the message */
    data[5] = 9;                                   /* another version is understood as such */
    assert_true(kvt_wire_parse(data, size, &out));
    assert_int_equal(out.hello.version, 9);
}

TEST(piece_head_has_its_size)
{
    uint8_t data[256];
    kvt_message in = {.type = KVT_MESSAGE_PIECE,
                      .nonce = nonce,
                      .piece = {5, 6, 7, 1, 403456, 0xfeedfacecafebeef}},
                out;
    size_t size = pack(&in, data, sizeof data);
    assert_int_equal(size, KVT_WIRE_PIECE_SIZE);
    assert_exact(data, size, &out);
    assert_memory_equal(&out.nonce, &nonce, sizeof nonce);
    assert_int_equal(out.piece.ordinal, 5);
    assert_int_equal(out.piece.block, 6);
    assert_int_equal(out.piece.group, 7);
    assert_int_equal(out.piece.attempt, 1);
    assert_int_equal(out.piece.bytes, 403456);
    assert_true(out.piece.sum == 0xfeedfacecafebeef);
    assert_refused_with(data, size, 1, 2);                /* version */
    assert_refused_with(data, size, 2, 1);                /* reserved */
    assert_refused_with(data, size, 30, KVT_FETCHES_MAX); /* attempt */
    assert_refused_with(data, size, 39, 1);               /* bytes: far too many */
    assert_int_equal(kvt_wire_pack(&in, data, size - 1), 0);
}

TEST(commit_carries_its_payload)
{
    uint8_t data[256];
    kvt_message in = {.type = KVT_MESSAGE_COMMIT,
                      .nonce = nonce,
                      .commit = {3, 12, 64, true, {(const uint8_t *)"payload", 7}}},
                out;
    size_t size = pack(&in, data, sizeof data);
    assert_int_equal(size, KVT_WIRE_COMMIT_SIZE + 7);
    assert_exact(data, size, &out);
    assert_int_equal(out.commit.sequence, 3);
    assert_int_equal(out.commit.pieces, 12);
    assert_int_equal(out.commit.tokens, 64);
    assert_true(out.commit.final);
    assert_int_equal(out.commit.payload.size, 7);
    assert_memory_equal(out.commit.payload.data, "payload", 7);
    assert_refused_with(data, size, 36, 2);   /* final is 0 or 1 */
    assert_refused_with(data, size, 38, 200); /* payload longer than the message */
    assert_refused_with(data, size, 27, 200); /* more pieces than any transfer has */
}

TEST(acks_are_bounded)
{
    uint8_t data[KVT_MESSAGE_MAX];
    kvt_message in = {.type = KVT_MESSAGE_ACK, .nonce = nonce}, out;
    in.ack.count = KVT_WIRE_ACKS_MAX;
    for (uint32_t i = 0; i < KVT_WIRE_ACKS_MAX; i++)
        in.ack.entries[i] = (kvt_piece_ack){i * 3, (uint8_t)(i % KVT_RESULT_COUNT), i % 2};
    size_t size = pack(&in, data, sizeof data);
    assert_exact(data, size, &out);
    assert_int_equal(out.ack.count, KVT_WIRE_ACKS_MAX);
    assert_int_equal(out.ack.entries[100].ordinal, 300);
    assert_refused_with(data, size, 20, KVT_WIRE_ACKS_MAX + 1);
    assert_refused_with(data, size, 26, KVT_RESULT_COUNT);
    in.ack.count = 0;
    assert_int_equal(kvt_wire_pack(&in, data, sizeof data), 0);
}

TEST(revoke_tells_why)
{
    uint8_t data[256];
    kvt_message in = {.type = KVT_MESSAGE_REVOKE,
                      .nonce = nonce,
                      .revoke = {SL_DEADLINE, "too late"}},
                out;
    size_t size = pack(&in, data, sizeof data);
    assert_exact(data, size, &out);
    assert_int_equal(out.revoke.code, SL_DEADLINE);
    assert_string_equal(out.revoke.text, "too late");
    assert_refused_with(data, size, 20, SL_OK);
    assert_refused_with(data, size, 23, 0x1b); /* no escapes into logs */
}

TEST(unknown_types_are_refused)
{
    uint8_t data[64];
    kvt_message in = {.type = KVT_MESSAGE_CANCEL, .nonce = nonce}, out;
    size_t size = pack(&in, data, sizeof data);
    assert_exact(data, size, &out);
    for (int type = 0; type < 256; type++) {
        data[0] = (uint8_t)type;
        assert_int_equal(kvt_wire_parse(data, size, &out), type == KVT_MESSAGE_CANCEL);
    }
    in.type = 99;
    assert_int_equal(kvt_wire_pack(&in, data, sizeof data), 0);
}

TEST(local_words_have_one_size_and_version)
{
    uint8_t data[64] = {0};
    kvt_local_message said = {KVT_LOCAL_CHALLENGE, 77, 0x1122334455667788ull, 9}, heard;
    kvt_wire_pack_local(&said, data);
    for (size_t size = 0; size <= sizeof data; size++)
        assert_int_equal(kvt_wire_parse_local(data, size, &heard), size == KVT_WIRE_LOCAL_SIZE);
    assert_true(kvt_wire_parse_local(data, KVT_WIRE_LOCAL_SIZE, &heard));
    assert_int_equal(heard.step, KVT_LOCAL_CHALLENGE);
    assert_int_equal(heard.pid, 77);
    assert_int_equal(heard.word_at, said.word_at);
    assert_int_equal(heard.challenge, 9);
    data[0] = KVT_LOCAL_STEP_COUNT;
    assert_false(kvt_wire_parse_local(data, KVT_WIRE_LOCAL_SIZE, &heard));
    data[0] = KVT_LOCAL_ASK;
    data[1]++; /* of another version: the two do not agree */
    assert_false(kvt_wire_parse_local(data, KVT_WIRE_LOCAL_SIZE, &heard));
}

TEST(offers_to_read_follow_each_other)
{
    enum { MORE = (KVT_WIRE_READS_MAX + 1) * KVT_WIRE_READ_SIZE };
    static uint8_t data[MORE];
    uint8_t head[KVT_WIRE_PIECE_SIZE] = {1, 2, 3};
    kvt_read_offer offers[KVT_WIRE_READS_MAX];
    for (uint32_t i = 0; i <= KVT_WIRE_READS_MAX; i++) {
        kvt_read_offer offer = {100 + i, 0x7fff00001000ull + i, 403456, head};
        kvt_wire_pack_read(&offer, data + i * KVT_WIRE_READ_SIZE);
    }
    for (size_t size = 0; size < MORE; size++) {
        uint32_t whole = size % KVT_WIRE_READ_SIZE == 0 ? (uint32_t)size / KVT_WIRE_READ_SIZE : 0;
        assert_int_equal(kvt_wire_parse_reads(data, size, offers), whole);
    }
    assert_int_equal(kvt_wire_parse_reads(data, MORE, offers), 0);
    assert_int_equal(kvt_wire_parse_reads(data, 2 * KVT_WIRE_READ_SIZE, offers), 2);
    assert_int_equal(offers[1].place, 101);
    assert_int_equal(offers[1].address, 0x7fff00001001ull);
    assert_int_equal(offers[1].bytes, 403456);
    assert_memory_equal(offers[1].head, head, sizeof head);
    data[KVT_WIRE_READ_SIZE]++; /* a place left out */
    assert_int_equal(kvt_wire_parse_reads(data, 2 * KVT_WIRE_READ_SIZE, offers), 0);
    data[1] = KVT_WINDOW_READS >> 8; /* no such place */
    assert_int_equal(kvt_wire_parse_reads(data, KVT_WIRE_READ_SIZE, offers), 0);
}

static bool taken_parses(uint32_t place, uint32_t count)
{
    uint8_t data[KVT_WIRE_TAKEN_SIZE];
    kvt_taken_message said = {place, count}, heard;
    kvt_wire_pack_taken(&said, data);
    if (!kvt_wire_parse_taken(data, sizeof data, &heard))
        return false;
    assert_int_equal(heard.place, place);
    assert_int_equal(heard.count, count);
    return true;
}

TEST(taken_names_places_that_are)
{
    uint8_t data[KVT_WIRE_TAKEN_SIZE + 1] = {3, 0, 0, 0, 1};
    kvt_taken_message heard;
    for (size_t size = 0; size <= sizeof data; size++)
        assert_int_equal(kvt_wire_parse_taken(data, size, &heard), size == KVT_WIRE_TAKEN_SIZE);
    assert_true(taken_parses(KVT_WINDOW_READS - 1, 1));
    assert_true(taken_parses(0, KVT_WINDOW_READS)); /* of several calls */
    assert_false(taken_parses(0, 0));
    assert_false(taken_parses(0, KVT_WINDOW_READS + 1));
    assert_false(taken_parses(KVT_WINDOW_READS, 1));
    assert_false(taken_parses(KVT_WINDOW_READS - 1, 2));
    assert_false(taken_parses(UINT32_MAX, 2));
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(hello_says_version_and_name),
    cmocka_unit_test(piece_head_has_its_size),
    cmocka_unit_test(commit_carries_its_payload),
    cmocka_unit_test(acks_are_bounded),
    cmocka_unit_test(revoke_tells_why),
    cmocka_unit_test(unknown_types_are_refused),
    cmocka_unit_test(local_words_have_one_size_and_version),
    cmocka_unit_test(offers_to_read_follow_each_other),
    cmocka_unit_test(taken_names_places_that_are),
};

TEST_MAIN(tests)
