/* The transition tables, transition by transition; the pool and the nonce map. */
#include "kvtransfer/ledger.h"
#include "kvtransfer/pool.h"
#include "tests/unit/test.h"

typedef bool (*may_fn)(uint8_t from, uint8_t to);

/* `legal` is the whole table as text: "AB" = A may become B. */
static void assert_table(may_fn may, uint8_t count, const char *names, const char *const *legal)
{
    for (uint8_t from = 0; from < count; from++) {
        for (uint8_t to = 0; to < count; to++) {
            bool expected = false;
            for (const char *const *at = legal; *at; at++)
                expected |= (*at)[0] == names[from] && (*at)[1] == names[to];
            if (may(from, to) != expected)
                fail_msg("%c -> %c should be %s", names[from], names[to],
                         expected ? "legal" : "illegal");
        }
    }
    assert_false(may(count, 0));
    assert_false(may(0, count));
}

TEST(pieces)
{
    /* Absent, aNnounced, Fetching, Retry, Verified, X failed */
    static const char *const legal[] = {"AN", "NF", "FV", "FR", "FX", "RN", NULL};
    assert_table(kvt_piece_may, KVT_PIECE_STATE_COUNT, "ANFRVX", legal);
}

TEST(transfers)
{
    /* Opening, Active, Ending, Closed */
    static const char *const legal[] = {"OA", "OE", "AE", "EC", NULL};
    assert_table(kvt_transfer_may, KVT_TRANSFER_STATE_COUNT, "OAEC", legal);
}

TEST(peers)
{
    /* Free, cOnnecting, Accepted, Ready, Closing */
    static const char *const legal[] = {"FO", "FA", "OR", "OC", "OF", "AR", "AC", "RC", "CF", NULL};
    assert_table(kvt_peer_may, KVT_PEER_STATE_COUNT, "FOARC", legal);
}

TEST(set_moves_on)
{
    uint8_t piece = KVT_PIECE_ABSENT;
    kvt_piece_set(&piece, KVT_PIECE_ANNOUNCED);
    kvt_piece_set(&piece, KVT_PIECE_FETCHING);
    kvt_piece_set(&piece, KVT_PIECE_RETRY);
    kvt_piece_set(&piece, KVT_PIECE_ANNOUNCED);
    assert_int_equal(piece, KVT_PIECE_ANNOUNCED);
}

TEST(pool_is_bounded)
{
    enum { COUNT = 100 };
    kvt_pool pool;
    void *items[COUNT];
    sl_err err;
    assert_ok(kvt_pool_init(&pool, 100, COUNT, &err), &err);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < COUNT; i++) {
            items[i] = kvt_pool_take(&pool);
            assert_non_null(items[i]);
            memset(items[i], i, 100);
        }
        assert_null(kvt_pool_take(&pool));
        assert_int_equal(pool.used, COUNT);
        for (int i = 0; i < COUNT; i++) {
            assert_int_equal(((uint8_t *)items[i])[99], i);
            kvt_pool_give(&pool, items[i]);
        }
        assert_int_equal(pool.used, 0);
    }
    kvt_pool_fini(&pool);
}

/* Against a plain array, with removals amid probe runs. */
TEST(map_finds_what_is_there)
{
    enum { COUNT = KVT_RECVS_MAX };
    static kvt_map map;
    static bool there[COUNT];
    static int values[COUNT];
    uint64_t dice = 5;
    kvt_map_init(&map);
    memset(there, 0, sizeof there);
    for (int i = 0; i < 20000; i++) {
        dice = dice * 6364136223846793005ull + 1442695040888963407ull;
        uint32_t at = (uint32_t)(dice >> 40) % COUNT;
        kvt_nonce nonce = {at, at * 7u};
        if (there[at])
            kvt_map_remove(&map, nonce);
        else
            kvt_map_put(&map, nonce, &values[at]);
        there[at] = !there[at];
        uint32_t probe = (uint32_t)(dice >> 20) % COUNT;
        assert_ptr_equal(kvt_map_get(&map, (kvt_nonce){probe, probe * 7u}),
                         there[probe] ? &values[probe] : NULL);
        assert_null(kvt_map_get(&map, (kvt_nonce){probe, probe * 7u + 1}));
    }
    for (uint32_t at = 0; at < COUNT; at++)
        assert_ptr_equal(kvt_map_get(&map, (kvt_nonce){at, at * 7u}),
                         there[at] ? &values[at] : NULL);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(pieces),          cmocka_unit_test(transfers),
    cmocka_unit_test(peers),           cmocka_unit_test(set_moves_on),
    cmocka_unit_test(pool_is_bounded), cmocka_unit_test(map_finds_what_is_there),
};

TEST_MAIN(tests)
