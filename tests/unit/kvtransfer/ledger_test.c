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

/* One row of the README's table: "| of | from | to, to |". */
static bool readme_row(char *line, const char *of, char **out_from, char **out_to)
{
    char *save = NULL;
    char *noun = strtok_r(line, "|", &save);
    *out_from = strtok_r(NULL, "|", &save);
    *out_to = strtok_r(NULL, "|", &save);
    return noun && *out_to && strcmp(noun, of) == 0;
}

static uint8_t state_of(const char *text, const char *const *names, uint8_t count)
{
    text += strspn(text, " ");
    size_t length = strcspn(text, " ,|");
    for (uint8_t i = 0; i < count; i++) {
        if (strlen(names[i]) == length && strncmp(names[i], text, length) == 0)
            return i;
    }
    fail_msg("the README names a state that is none: %s", text);
    return count;
}

/* The table that people read says what the code does: every row, and nothing but the rows. */
static void assert_readme(const char *of, may_fn may, const char *const *names, uint8_t count)
{
    FILE *file = fopen("kvtransfer/README.md", "r");
    bool legal[16][16] = {{false}}, seen[16] = {false};
    char line[512], *from, *to;
    assert_non_null(file);
    while (fgets(line, sizeof line, file)) {
        if (!readme_row(line, of, &from, &to))
            continue;
        uint8_t at = state_of(from, names, count);
        seen[at] = true;
        for (char *save = NULL, *next = strtok_r(to, ",", &save); next;
             next = strtok_r(NULL, ",", &save)) {
            if (next[strspn(next, " \n")])
                legal[at][state_of(next, names, count)] = true;
        }
    }
    fclose(file);
    for (uint8_t a = 0; a < count; a++) {
        assert_true(seen[a]);
        for (uint8_t b = 0; b < count; b++) {
            if (may(a, b) != legal[a][b])
                fail_msg("%s: %s -> %s: the README and the code differ", of, names[a], names[b]);
        }
    }
}

TEST(readme_has_the_same_table)
{
    static const char *const pieces[] = {"absent", "announced", "fetching",
                                         "retry",  "verified",  "failed"};
    static const char *const transfers[] = {"opening", "active", "closing", "closed"};
    static const char *const peers[] = {"free", "connecting", "accepted", "ready", "closing"};
    assert_readme(" piece ", kvt_piece_may, pieces, KVT_PIECE_STATE_COUNT);
    assert_readme(" transfer ", kvt_transfer_may, transfers, KVT_TRANSFER_STATE_COUNT);
    assert_readme(" peer ", kvt_peer_may, peers, KVT_PEER_STATE_COUNT);
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
    kvt_pool_init(&pool, 100, COUNT);
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
    cmocka_unit_test(pieces),
    cmocka_unit_test(transfers),
    cmocka_unit_test(peers),
    cmocka_unit_test(set_moves_on),
    cmocka_unit_test(readme_has_the_same_table),
    cmocka_unit_test(pool_is_bounded),
    cmocka_unit_test(map_finds_what_is_there),
};

TEST_MAIN(tests)
