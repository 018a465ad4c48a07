/* Status map and message validation: no network. */
#include "tests/unit/rpc/harness.h"

#include <grpc/status.h>

static const sl_code CODES[] = {
    SL_OK,           SL_INVALID,  SL_TOO_LARGE, SL_UNSUPPORTED, SL_NOT_FOUND, SL_EXISTS,
    SL_CANCELLED,    SL_DEADLINE, SL_FULL,      SL_CONFLICT,    SL_CORRUPT,   SL_UNAVAILABLE,
    SL_INCOMPATIBLE, SL_DENIED,   SL_IO,        SL_NO_MEMORY,   SL_INTERNAL};

TEST(status_round_trip)
{
    for (size_t i = 0; i < sizeof(CODES) / sizeof(CODES[0]); i++) {
        int grpc = rpc_status_to_grpc(CODES[i]);
        char text[16];
        snprintf(text, sizeof(text), "%d", (int)CODES[i]);
        assert_int_equal(rpc_status_from_wire(grpc, text, ""), CODES[i]);
        /* Without the exact code: the same again, or at least the same on gRPC's side. */
        assert_int_equal(rpc_status_to_grpc(rpc_status_from_grpc(grpc)), grpc);
        assert_true((grpc == GRPC_STATUS_OK) == (CODES[i] == SL_OK));
    }
    for (int grpc = 0; grpc <= 16; grpc++)
        assert_true((rpc_status_from_grpc(grpc) == SL_OK) == (grpc == 0));
    assert_int_equal(rpc_status_from_grpc(99), SL_INTERNAL);
}

TEST(status_from_a_liar)
{
    /* A code that does not fit its status is not believed, above all not success. */
    assert_int_equal(rpc_status_from_wire(GRPC_STATUS_UNAVAILABLE, "0", ""), SL_UNAVAILABLE);
    assert_int_equal(rpc_status_from_wire(GRPC_STATUS_OK, "42", ""), SL_OK);
    assert_int_equal(rpc_status_from_wire(GRPC_STATUS_NOT_FOUND, "5x", ""), SL_NOT_FOUND);
    assert_int_equal(rpc_status_from_wire(GRPC_STATUS_NOT_FOUND, "", ""), SL_NOT_FOUND);
    assert_int_equal(rpc_status_from_wire(GRPC_STATUS_RESOURCE_EXHAUSTED, NULL,
                                          "Received message larger than max (7 vs. 4)"),
                     SL_TOO_LARGE);
    assert_string_equal(rpc_status_grpc_name(14), "UNAVAILABLE");
    assert_string_equal(rpc_status_grpc_name(-1), "(unknown status)");
}

static sl_status unpack(const ProtobufCMessageDescriptor *descriptor, const void *data, size_t size)
{
    ProtobufCMessage *message = NULL;
    sl_status status = rpc_message_unpack(descriptor, data, size, &message, &err);
    assert_true(sl_is_ok(status) == (message != NULL));
    rpc_message_free(message);
    return status;
}

#define ADMIT  (&sluice__v1__admit__descriptor)
#define ROUTER (&sluice__v1__router_message__descriptor)

TEST(unpack_good)
{
    assert_code(unpack(ADMIT, NULL, 0), SL_OK);
    assert_code(unpack(ADMIT, "\x0a\x03r-1\x10\x07", 7), SL_OK);
    assert_code(unpack(ADMIT, "\x0a\x06\xe4\xbd\xa0\xf0\x9f\x98\x80", 2), SL_INVALID);
    assert_code(unpack(ADMIT, "\x0a\x07\xe4\xbd\xa0\xf0\x9f\x98\x80", 9), SL_OK);
    /* Unknown fields of every wire type are skipped. */
    assert_code(unpack(ADMIT,
                       "\xf8\x07\x01\xf9\x07"
                       "12345678\xfa\x07\x02zz\xfd\x07"
                       "1234",
                       24),
                SL_OK);
}

TEST(unpack_bad)
{
    assert_code(unpack(ADMIT, "\x0a\x03r\x00x", 5), SL_INVALID); /* NUL inside */
    assert_text_contains(err.text, "request_id");
    assert_code(unpack(ADMIT, "\x0a\x01\xff", 3), SL_INVALID);
    assert_code(unpack(ADMIT, "\x0a\x05r", 3), SL_INVALID);
    assert_code(unpack(ADMIT, "\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 11), SL_INVALID);
    assert_code(unpack(ADMIT, "\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", 12), SL_INVALID);
    assert_code(unpack(ADMIT, "\x0b", 1), SL_INVALID); /* groups */
    assert_code(unpack(ADMIT, "\x00", 1), SL_INVALID);
    assert_code(unpack(ROUTER, "\x12\x03\x0a\x01\xff", 5), SL_INVALID); /* one level down */
    assert_text_contains(err.text, "sluice.v1.Admit.request_id");
}

/* Nesting cannot run the stack out. */
TEST(unpack_deep)
{
    const ProtobufCMessageDescriptor *txn = rpc_method_etcd_kv_txn.request;
    uint8_t bytes[400];
    size_t size = 0;
    /* TxnRequest.success(2) > RequestOp.request_txn(4) > ..., from the inside out. */
    for (int depth = 0; depth < 60; depth++) {
        uint8_t key = depth % 2 == 0 ? 0x22 : 0x12;
        size_t head = size < 128 ? 2 : 3;
        memmove(bytes + head, bytes, size);
        bytes[0] = key;
        bytes[1] = size < 128 ? (uint8_t)size : (uint8_t)(size | 128);
        if (head == 3)
            bytes[2] = (uint8_t)(size >> 7);
        size += head;
    }
    assert_code(unpack(txn, bytes, size), SL_INVALID);
    assert_text_contains(err.text, "deep");
}

/* Millions of empty submessages are refused before they take gigabytes. */
TEST(unpack_bomb)
{
    size_t size = (size_t)16 << 20;
    uint8_t *bytes = sl_alloc(size, 1, "test");
    for (size_t i = 0; i + 1 < size; i += 2)
        bytes[i] = 0x0a; /* Step.runs, length 0 */
    assert_code(unpack(&sluice__v1__step__descriptor, bytes, size), SL_TOO_LARGE);
    sl_free(bytes);
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(status_round_trip), cmocka_unit_test(status_from_a_liar),
    cmocka_unit_test(unpack_good),       cmocka_unit_test(unpack_bad),
    cmocka_unit_test(unpack_deep),       cmocka_unit_test(unpack_bomb),
};
TEST_MAIN(TESTS)
