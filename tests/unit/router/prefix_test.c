/* The record of who has which prefixes: what is found of it, what is forgotten, and its bounds. */
#include "tests/unit/test.h"

#include "base/alloc.h"
#include "router/prefix.h"

#define BLOCK  RTR_PAGE_TOKENS
#define TOKENS (20 * BLOCK)

static const clu_stamp STAMP = {"cpu", "hash-content", "1", "v1"};

typedef struct fixture {
    rtr_prefixes *prefixes;
    uint32_t tokens[TOKENS];
    rtr_prefix prefix; /* all of them */
    rtr_prefix_match matches[RTR_PREFIX_MATCHES_MAX];
} fixture;

static void setup(fixture *f)
{
    memset(f, 0, sizeof *f);
    f->prefixes = rtr_prefixes_create(7);
    for (uint32_t i = 0; i < TOKENS; i++)
        f->tokens[i] = i * 2654435761u >> 12;
    f->prefix = (rtr_prefix){rtr_prefixes_root(f->prefixes, &STAMP, 1), f->tokens, TOKENS};
}

static void note(fixture *f, uint32_t tokens, uint64_t node)
{
    rtr_prefix prefix = f->prefix;
    prefix.token_count = tokens;
    rtr_prefixes_note(f->prefixes, &prefix, node);
}

/* Blocks that the node had of the first `tokens`. */
static uint32_t had(fixture *f, uint32_t tokens, uint64_t node)
{
    rtr_prefix prefix = f->prefix;
    prefix.token_count = tokens;
    uint32_t count = rtr_prefixes_find(f->prefixes, &prefix, f->matches);
    assert_true(count <= RTR_PREFIX_MATCHES_MAX);
    for (uint32_t i = 0; i < count; i++)
        if (f->matches[i].node == node)
            return f->matches[i].blocks;
    return 0;
}

TEST(whole_blocks_count)
{
    fixture f;
    setup(&f);
    assert_int_equal(had(&f, TOKENS, 5), 0);
    note(&f, 3 * BLOCK + 63, 5);
    assert_int_equal(had(&f, TOKENS, 5), 3);
    assert_int_equal(had(&f, 3 * BLOCK - 1, 5), 2);
    assert_int_equal(had(&f, BLOCK - 1, 5), 0);
    note(&f, BLOCK, 5); /* it still has the others */
    assert_int_equal(had(&f, TOKENS, 5), 3);
    note(&f, TOKENS, 0); /* nobody */
    assert_int_equal(had(&f, TOKENS, 0), 0);
    rtr_prefixes_destroy(f.prefixes);
}

TEST(what_begins_otherwise_is_something_else)
{
    fixture f;
    setup(&f);
    note(&f, TOKENS, 5);
    f.tokens[2 * BLOCK + 1] ^= 1; /* the blocks behind it stand on another one */
    assert_int_equal(had(&f, TOKENS, 5), 2);
    f.tokens[0] ^= 1;
    assert_int_equal(had(&f, TOKENS, 5), 0);
    rtr_prefixes_destroy(f.prefixes);
}

TEST(stamp_and_space_are_the_root)
{
    fixture f;
    setup(&f);
    note(&f, TOKENS, 5);
    uint64_t root = f.prefix.root;
    f.prefix.root = rtr_prefixes_root(f.prefixes, &STAMP, 2);
    assert_int_equal(had(&f, TOKENS, 5), 0);
    for (int i = 0; i < 4; i++) {
        clu_stamp other = STAMP;
        char *parts[] = {other.numerics_id, other.model_hash, other.weights_version,
                         other.cache_format};
        snprintf(parts[i], CLU_TEXT_MAX, "other");
        f.prefix.root = rtr_prefixes_root(f.prefixes, &other, 1);
        assert_int_equal(had(&f, TOKENS, 5), 0);
    }
    f.prefix.root = rtr_prefixes_root(f.prefixes, &STAMP, 1);
    assert_true(f.prefix.root == root);
    assert_int_equal(had(&f, TOKENS, 5), 20);
    rtr_prefixes_destroy(f.prefixes);
}

TEST(each_node_by_its_own_blocks)
{
    fixture f;
    setup(&f);
    for (uint32_t node = 12; node >= 1; node--)
        note(&f, node * BLOCK, node);
    /* Of each block those are known that were noted last; of all, those with the most. */
    for (uint32_t node = 1; node <= 12; node++)
        assert_int_equal(had(&f, TOKENS, node), node > 12 - RTR_PREFIX_MATCHES_MAX ? node : 0);
    assert_int_equal(had(&f, BLOCK, RTR_PREFIX_NODES_MAX), 1);
    assert_int_equal(had(&f, BLOCK, RTR_PREFIX_NODES_MAX + 1), 0);
    rtr_prefixes_destroy(f.prefixes);
}

TEST(forgotten_where_it_was_wrong)
{
    fixture f;
    setup(&f);
    note(&f, TOKENS, 5);
    note(&f, TOKENS, 6);
    rtr_prefix prefix = f.prefix;
    prefix.token_count = 8 * BLOCK;
    rtr_prefixes_forget(f.prefixes, &prefix, 5);
    assert_int_equal(had(&f, 8 * BLOCK, 5), 0);
    assert_int_equal(had(&f, TOKENS, 6), 20);
    rtr_prefixes_forget(f.prefixes, &prefix, 77); /* it never had any */
    rtr_prefixes_forget(f.prefixes, &f.prefix, 6);
    assert_int_equal(had(&f, TOKENS, 6), 0);
    assert_int_equal(had(&f, TOKENS, 5), 0); /* nothing is known of the first blocks */
    rtr_prefixes_destroy(f.prefixes);
}

TEST(a_node_is_forgotten_whole)
{
    fixture f;
    setup(&f);
    note(&f, TOKENS, 5);
    note(&f, 4 * BLOCK, 6);
    f.tokens[0] ^= 1;
    note(&f, TOKENS, 5);
    rtr_prefixes_forget_node(f.prefixes, 0);
    rtr_prefixes_forget_node(f.prefixes, 5);
    assert_int_equal(had(&f, TOKENS, 5), 0);
    f.tokens[0] ^= 1;
    assert_int_equal(had(&f, TOKENS, 5), 0);
    assert_int_equal(had(&f, TOKENS, 6), 4);
    rtr_prefixes_destroy(f.prefixes);
}

/* Three times what there is room for: what was seen of late is there, the first is not. */
TEST(what_was_not_seen_for_longest_goes)
{
    enum { PROMPTS = 3 * RTR_PREFIX_BLOCKS_MAX / 20 };
    fixture f;
    setup(&f);
    uint32_t first = 0, last = 0, seen = 0;
    f.tokens[1] = UINT32_MAX; /* one that is asked for again and again */
    note(&f, TOKENS, 5);
    f.tokens[1] = 0;
    for (uint32_t i = 0; i < PROMPTS; i++) {
        f.tokens[0] = i;
        note(&f, TOKENS, 5);
        if (i % 1000 != 0)
            continue;
        f.tokens[0] = 0;
        f.tokens[1] = UINT32_MAX;
        seen += had(&f, TOKENS, 5) == 20;
        f.tokens[1] = 0;
    }
    for (uint32_t i = 0; i < 500; i++) {
        f.tokens[0] = i;
        first += had(&f, TOKENS, 5);
        f.tokens[0] = PROMPTS - 1 - i;
        last += had(&f, TOKENS, 5);
    }
    assert_int_equal(seen, PROMPTS / 1000 + 1);
    assert_in_range(first, 0, 500);
    assert_in_range(last, 500 * 18, 500 * 20);
    rtr_prefixes_destroy(f.prefixes);
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(whole_blocks_count),
    cmocka_unit_test(what_begins_otherwise_is_something_else),
    cmocka_unit_test(stamp_and_space_are_the_root),
    cmocka_unit_test(each_node_by_its_own_blocks),
    cmocka_unit_test(forgotten_where_it_was_wrong),
    cmocka_unit_test(a_node_is_forgotten_whole),
    cmocka_unit_test(what_was_not_seen_for_longest_goes),
};
TEST_MAIN(TESTS)
