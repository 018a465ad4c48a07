/* The bytes of hand-outs: written as docs/HANDOUT.md says, and nothing else is taken for a mask. */
#include "tests/unit/test.h"

#include "model/handout.h"

#define VOCAB 131u

static uint32_t pack(const uint32_t *ids, uint32_t count, uint8_t *out)
{
    uint64_t kept[3] = {0};
    for (uint32_t i = 0; i < count; i++)
        kept[ids[i] / 64] |= 1ull << (ids[i] % 64);
    return mdl_mask_pack(kept, VOCAB, out);
}

TEST(masks_by_hand)
{
    uint8_t out[64], one[64];
    assert_int_equal(mdl_mask_bytes_max(VOCAB), 5 + 17);
    assert_int_equal(mdl_mask_pack(NULL, VOCAB, out), 5);
    assert_memory_equal(out, "\0\0\0\0\0", 5);
    assert_int_equal(pack((uint32_t[]){0, 64, 130}, 3, out), 5 + 12);
    assert_memory_equal(out, "\1\3\0\0\0\0\0\0\0\x40\0\0\0\x82\0\0\0", 17);
    assert_int_equal(pack((uint32_t[]){3, 7, 8, 130, 64}, 5, out), 5 + 17); /* a list is longer */
    assert_memory_equal(out, "\2\5\0\0\0\x88\1\0\0\0\0\0\0\1\0\0\0\0\0\0\0\4", 22);
    assert_int_equal(pack((uint32_t[]){77}, 1, out), mdl_mask_pack_one(77, one));
    assert_memory_equal(out, one, 9);
}

TEST(only_masks_are_taken)
{
    static const struct {
        const char *bytes;
        size_t size;
        bool ok;
    } CASES[] = {
        {"\0\0\0\0\0", 5, true},
        {"\0\1\0\0\0", 5, false},   /* uncut has no count */
        {"\0\0\0\0\0\0", 6, false}, /* something behind */
        {"\0\0\0\0", 4, false},     /* torn */
        {"", 0, false},
        {"\3\0\0\0\0", 5, false}, /* no such kind */
        {"\1\0\0\0\0", 5, true},
        {"\1\1\0\0\0\x82\0\0\0", 9, true},
        {"\1\1\0\0\0\x83\0\0\0", 9, false},        /* not in the vocabulary */
        {"\1\2\0\0\0\1\0\0\0\1\0\0\0", 13, false}, /* twice */
        {"\1\2\0\0\0\2\0\0\0\1\0\0\0", 13, false}, /* descending */
        {"\1\2\0\0\0\1\0\0\0", 9, false},          /* one is missing */
        {"\1\xff\xff\xff\xff", 5, false},
        {"\2\1\0\0\0\1\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 22, true},
        {"\2\2\0\0\0\1\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 22, false},   /* miscounted */
        {"\2\1\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x08", 22, false}, /* beyond the vocabulary */
        {"\2\1\0\0\0\1\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 21, false},
    };
    for (size_t i = 0; i < sizeof(CASES) / sizeof(CASES[0]); i++) {
        sl_span record = {(const uint8_t *)CASES[i].bytes, CASES[i].size};
        if (mdl_mask_check(record, VOCAB) != CASES[i].ok)
            fail_msg("case %zu", i);
    }
}

TEST(routing_by_hand)
{
    mdl_shape shape = {.layer_count = 4, .dense_layer_count = 2, .experts_per_token = 3};
    mdl_routing_layout layout;
    uint8_t row[36];
    const float weights[3] = {1.0f, 0.5f, -2.0f};
    sl_buf head;
    mdl_routing_layout_init(&shape, &layout);
    assert_int_equal(layout.row_bytes, 36);
    mdl_routing_put(&layout, 3, (uint32_t[]){1, 2, 259}, weights, row);
    mdl_routing_put(&layout, 2, (uint32_t[]){4, 5, 6}, weights, row);
    assert_memory_equal(row, "\4\0\5\0\6\0\1\0\2\0\3\1", 12);
    assert_memory_equal(row + 12, "\0\0\x80\x3f\0\0\0\x3f\0\0\0\xc0", 12);
    assert_memory_equal(row + 24, "\0\0\x80\x3f\0\0\0\x3f\0\0\0\xc0", 12);
    sl_buf_init(&head, 0);
    mdl_routing_header(&layout, 7, &head);
    mdl_mask_header(0x12345, 9, &head);
    assert_int_equal(head.size, 2 * MDL_HANDOUT_HEADER_BYTES);
    assert_memory_equal(head.data, "SLRT\1\0\2\0\2\0\3\0\7\0\0\0SLSM\1\0\x45\x23\1\0\0\0\x09\0\0\0",
                        32);
    sl_buf_fini(&head);
}

TEST(scores_round_trip)
{
    const mdl_score_top list[] = {{7, -0.5f}, {130, -1.25f}};
    const mdl_score score = {-3.5f, 9, 2, list};
    mdl_score_top top[3];
    mdl_score got;
    uint8_t bytes[36];
    assert_int_equal(mdl_score_bytes(3), sizeof(bytes));
    mdl_score_pack(&score, 3, bytes);
    assert_true(mdl_score_unpack(bytes, 3, VOCAB, top, &got));
    assert_true(got.logprob == -3.5f && got.rank == 9 && got.top_count == 2 && got.top == top);
    assert_memory_equal(top, list, sizeof(list));
    assert_memory_equal(bytes + 28, "\0\0\0\0\0\0\0\0", 8);
    assert_false(mdl_score_unpack(bytes, 3, 130, top, &got)); /* not in the vocabulary */
    bytes[8] = 4;                                             /* more than there is room for */
    assert_false(mdl_score_unpack(bytes, 3, VOCAB, top, &got));
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(masks_by_hand),
    cmocka_unit_test(only_masks_are_taken),
    cmocka_unit_test(routing_by_hand),
    cmocka_unit_test(scores_round_trip),
};
TEST_MAIN(tests)
