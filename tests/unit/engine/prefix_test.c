/* Kept pages: found by their tokens, shared, given up for memory; a hit changes no bit. */
#include "tests/unit/engine/support.h"

#include "engine/prefix.h"

#define LENGTH 200u

static eng_sequence *open_known(eng_engine *engine, const uint32_t *tokens, uint32_t count,
                                uint64_t space)
{
    const eng_prefix prefix = {tokens, count, space};
    eng_sequence *sequence = NULL;
    sl_err err;
    assert_ok(eng_sequence_open_prefix(engine, LENGTH + 40, LENGTH + 40, &prefix, &sequence, &err),
              &err);
    return sequence;
}

static void publish_and_close(eng_sequence *sequence, const uint32_t *tokens, uint32_t count,
                              uint64_t space)
{
    eng_sequence_publish(sequence, &(eng_prefix){tokens, count, space});
    eng_sequence_close(sequence);
}

TEST(a_hit_changes_no_bit)
{
    uint32_t tokens[LENGTH + 1];
    float whole[NANO_VOCAB], logits[NANO_VOCAB];
    size_t size, again;
    sl_err err;
    rig r;
    rig_open(&r);
    stream_fill(1, LENGTH + 1, tokens);
    eng_sequence *sequence = open_known(r.engine, tokens, LENGTH, 0);
    assert_int_equal(eng_sequence_length(sequence), 0);
    sequence_feed(r.engine, sequence, tokens, LENGTH, 64, whole);
    uint8_t *bytes = sequence_bytes(r.engine, sequence, &size);
    publish_and_close(sequence, tokens, LENGTH, 0);
    assert_int_equal(eng_engine_pages_kept(r.engine), 3);
    for (uint32_t count = 0; count <= LENGTH; count += 25) { /* only whole blocks count */
        sequence = open_known(r.engine, tokens, count, 0);
        uint32_t known = eng_sequence_length(sequence);
        assert_int_equal(known, count / 64 * 64);
        sequence_feed(r.engine, sequence, tokens + known, LENGTH - known, 50, logits);
        assert_memory_equal(logits, whole, sizeof(whole));
        uint8_t *other = sequence_bytes(r.engine, sequence, &again);
        assert_int_equal(size, again);
        assert_memory_equal(bytes, other, size);
        sl_free(other);
        eng_sequence_close(sequence);
    }
    /* a hit of everything: the head needs the kept h_final only; drafts go on too */
    sequence = open_known(r.engine, tokens, 192, 0);
    assert_int_equal(eng_sequence_length(sequence), 192);
    eng_sequence *fresh = sequence_open(r.engine, LENGTH);
    sequence_feed(r.engine, fresh, tokens, 192, 192, logits);
    assert_memory_equal(eng_head_logits(r.engine, sequence), logits, sizeof(logits));
    uint32_t a, b;
    assert_ok(eng_draft(r.engine, &sequence, &tokens[192], 1, &a, &err), &err);
    assert_ok(eng_draft(r.engine, &fresh, &tokens[192], 1, &b, &err), &err);
    assert_int_equal(a, b);
    eng_sequence_close(sequence);
    eng_sequence_close(fresh);
    sl_free(bytes);
    rig_close(&r);
}

TEST(only_the_same_tokens_in_the_same_space)
{
    uint32_t tokens[LENGTH], other[LENGTH];
    rig r;
    rig_open(&r);
    stream_fill(2, LENGTH, tokens);
    memcpy(other, tokens, sizeof(other));
    other[70] ^= 1; /* second block */
    eng_sequence *sequence = open_known(r.engine, tokens, LENGTH, 7);
    sequence_feed(r.engine, sequence, tokens, LENGTH, 128, NULL);
    publish_and_close(sequence, tokens, LENGTH, 7);
    const struct {
        const uint32_t *tokens;
        uint32_t count;
        uint64_t space;
        uint32_t known;
    } CASES[] = {
        {tokens, LENGTH, 7, 192}, {tokens, LENGTH, 8, 0}, {other, LENGTH, 7, 64},
        {tokens + 64, 136, 7, 0}, {tokens, 63, 7, 0},     {tokens, 64, 7, 64},
        {tokens, 0, 7, 0},        {tokens, LENGTH, 0, 0},
    };
    for (size_t i = 0; i < sizeof(CASES) / sizeof(CASES[0]); i++) {
        sequence = open_known(r.engine, CASES[i].tokens, CASES[i].count, CASES[i].space);
        assert_int_equal(eng_sequence_length(sequence), CASES[i].known);
        eng_sequence_close(sequence);
    }
    eng_engine_drop_kept(r.engine);
    assert_int_equal(eng_engine_pages_kept(r.engine), 0);
    sequence = open_known(r.engine, tokens, LENGTH, 7);
    assert_int_equal(eng_sequence_length(sequence), 0);
    eng_sequence_close(sequence);
    rig_close(&r);
}

/* Several sequences have the same pages bound; what they write goes elsewhere. */
TEST(shared_pages_are_not_written)
{
    uint32_t tokens[LENGTH];
    eng_sequence *sequences[4];
    size_t size;
    rig r;
    rig_open(&r);
    stream_fill(3, LENGTH, tokens);
    uint32_t all = eng_engine_pages_free(r.engine);
    eng_sequence *first = open_known(r.engine, tokens, 128, 0);
    sequence_feed(r.engine, first, tokens, 128, 128, NULL);
    uint8_t *bytes = sequence_bytes(r.engine, first, &size);
    eng_sequence_publish(first, &(eng_prefix){tokens, 128, 0});
    for (uint32_t i = 0; i < 4; i++) {
        sequences[i] = open_known(r.engine, tokens, 128, 0);
        assert_int_equal(eng_sequence_length(sequences[i]), 128);
        assert_int_equal(eng_sequence_page(sequences[i], 1), eng_sequence_page(first, 1));
        uint32_t own[8];
        stream_fill(50 + i, 8, own);
        sequence_feed(r.engine, sequences[i], own, 8, 3, NULL);
    }
    uint8_t *after = sequence_bytes(r.engine, first, &size);
    assert_memory_equal(bytes, after, size);
    eng_sequence_close(first);
    for (uint32_t i = 0; i < 4; i++)
        eng_sequence_close(sequences[i]);
    assert_int_equal(eng_engine_pages_kept(r.engine), 2);
    assert_int_equal(eng_engine_pages_free(r.engine), all);
    sl_free(bytes);
    sl_free(after);
    rig_close(&r);
}

/* Two prefills of the same prompt at once: the second's pages are not kept twice. */
TEST(twins_are_kept_once)
{
    uint32_t tokens[LENGTH];
    rig r;
    rig_open(&r);
    stream_fill(4, LENGTH, tokens);
    eng_sequence *a = open_known(r.engine, tokens, LENGTH, 0);
    eng_sequence *b = open_known(r.engine, tokens, LENGTH, 0);
    sequence_feed(r.engine, a, tokens, LENGTH, 64, NULL);
    sequence_feed(r.engine, b, tokens, LENGTH, 64, NULL);
    eng_sequence_publish(a, &(eng_prefix){tokens, LENGTH, 0});
    eng_sequence_publish(a, &(eng_prefix){tokens, LENGTH, 0});
    publish_and_close(b, tokens, LENGTH, 0);
    assert_int_equal(eng_engine_pages_kept(r.engine), 0);
    eng_sequence_close(a);
    assert_int_equal(eng_engine_pages_kept(r.engine), 3);
    rig_close(&r);
}

/* Memory for new sequences comes from the oldest kept pages, the ends of prefixes first. */
TEST(kept_pages_give_way)
{
    uint32_t tokens[2][LENGTH];
    rig r;
    sl_err err;
    rig_open(&r);
    eng_engine *small = rig_engine(
        &r, &(eng_options){.kv_bytes = eng_model_kv_bytes(r.model, 8 * 64), .rows_max = 256});
    for (uint32_t i = 0; i < 2; i++)
        stream_fill(60 + i, LENGTH, tokens[i]);
    for (uint32_t i = 0; i < 2; i++) {
        eng_sequence *sequence = sequence_open(small, LENGTH);
        sequence_feed(small, sequence, tokens[i], LENGTH, 200, NULL);
        publish_and_close(sequence, tokens[i], LENGTH, 0);
    }
    assert_int_equal(eng_engine_pages_kept(small), 6);
    assert_int_equal(eng_engine_pages_free(small), 8);
    eng_sequence *third = sequence_open(small, 4 * 64); /* two free, two of the oldest kept */
    assert_int_equal(eng_engine_pages_kept(small), 4);
    static const uint32_t KNOWN[2] = {64, 192}; /* each asked for no more than that */
    for (uint32_t i = 0; i < 2; i++) {
        eng_sequence *sequence = NULL;
        const eng_prefix prefix = {tokens[i], KNOWN[i], 0};
        assert_ok(eng_sequence_open_prefix(small, KNOWN[i], KNOWN[i], &prefix, &sequence, &err),
                  &err);
        assert_int_equal(eng_sequence_length(sequence), KNOWN[i]);
        eng_sequence_close(sequence);
    }
    assert_int_equal(eng_engine_pages_kept(small), 4);
    eng_sequence_close(third);
    eng_engine_destroy(small);
    rig_close(&r);
}

TEST(full_with_a_hit_leaves_it_kept)
{
    uint32_t tokens[LENGTH];
    rig r;
    sl_err err;
    rig_open(&r);
    eng_engine *small = rig_engine(
        &r, &(eng_options){.kv_bytes = eng_model_kv_bytes(r.model, 5 * 64), .rows_max = 256});
    stream_fill(5, LENGTH, tokens);
    eng_sequence *sequence = sequence_open(small, 128);
    sequence_feed(small, sequence, tokens, 128, 128, NULL);
    publish_and_close(sequence, tokens, 128, 0);
    eng_sequence *other = sequence_open(small, 64), *refused = NULL;
    const eng_prefix prefix = {tokens, 128, 0};
    assert_code(eng_sequence_open_prefix(small, 5 * 64, 5 * 64, &prefix, &refused, &err), SL_FULL);
    assert_null(refused);
    assert_int_equal(eng_engine_pages_kept(small), 2);
    assert_int_equal(eng_engine_pages_free(small), 4);
    assert_ok(eng_sequence_open_prefix(small, 4 * 64, 4 * 64, &prefix, &refused, &err), &err);
    assert_int_equal(eng_sequence_length(refused), 128);
    eng_sequence_close(refused);
    eng_sequence_close(other);
    eng_engine_destroy(small);
    rig_close(&r);
}

/* Adopting continues after a local hit: only the blocks behind it were fetched. */
TEST(adopt_behind_a_hit)
{
    uint32_t tokens[LENGTH];
    float whole[NANO_VOCAB], logits[NANO_VOCAB];
    rig r;
    rig_open(&r);
    stream_fill(6, LENGTH, tokens);
    eng_sequence *a = open_known(r.engine, tokens, LENGTH, 0);
    sequence_feed(r.engine, a, tokens, 128, 128, NULL);
    eng_sequence_publish(a, &(eng_prefix){tokens, 128, 0});
    sequence_feed(r.engine, a, tokens + 128, LENGTH - 128, 99, whole);
    eng_sequence *b = open_known(r.engine, tokens, LENGTH, 0);
    assert_int_equal(eng_sequence_length(b), 128);
    const eng_cache_layout *layout = eng_engine_layout(r.engine);
    uint8_t *base = eng_engine_cache_base(r.engine);
    for (uint32_t block = 2; block < 4; block++)
        memcpy(base + eng_sequence_page(b, block) * layout->page_bytes,
               base + eng_sequence_page(a, block) * layout->page_bytes, layout->page_bytes);
    eng_sequence_adopt(b, LENGTH, eng_sequence_h_final(a));
    assert_memory_equal(eng_head_logits(r.engine, b), whole, sizeof(whole));
    sequence_feed(r.engine, a, tokens, 1, 1, whole);
    sequence_feed(r.engine, b, tokens, 1, 1, logits);
    assert_memory_equal(logits, whole, sizeof(whole));
    eng_sequence_close(a);
    eng_sequence_close(b);
    rig_close(&r);
}

/* A block that went away and comes back in another page continues the chain behind it. */
TEST(a_chain_does_not_depend_on_pages)
{
    uint32_t tokens[LENGTH];
    rig r;
    sl_err err;
    rig_open(&r);
    eng_engine *small = rig_engine(
        &r, &(eng_options){.kv_bytes = eng_model_kv_bytes(r.model, 4 * 64), .rows_max = 256});
    stream_fill(8, LENGTH, tokens);
    eng_sequence *first = sequence_open(small, 64), *all = sequence_open(small, 192);
    sequence_feed(small, first, tokens, 64, 64, NULL);
    sequence_feed(small, all, tokens, 192, 64, NULL);
    publish_and_close(first, tokens, 64, 0);
    publish_and_close(all, tokens, 192, 0); /* its own first block is not kept: the other's is */
    assert_int_equal(eng_engine_pages_kept(small), 3);
    eng_sequence *other = sequence_open(small, 128); /* the oldest kept one goes: the first block */
    eng_sequence_close(other);
    first = sequence_open(small, 64);
    sequence_feed(small, first, tokens, 64, 64, NULL);
    publish_and_close(first, tokens, 64, 0);
    const eng_prefix prefix = {tokens, 192, 0};
    assert_ok(eng_sequence_open_prefix(small, 192, 192, &prefix, &all, &err), &err);
    assert_int_equal(eng_sequence_length(all), 192);
    eng_sequence_close(all);
    eng_engine_destroy(small);
    rig_close(&r);
}

/* A fork holds what a sequence with the same tokens holds, wherever it is cut, and neither of the
 * two is changed by what the other does. */
TEST(a_fork_is_a_copy)
{
    static const uint32_t CUTS[] = {1, 63, 64, 65, 128, 150, LENGTH};
    uint32_t tokens[LENGTH + 40];
    float logits[NANO_VOCAB], expected[NANO_VOCAB];
    sl_err err;
    rig r;
    rig_open(&r);
    stream_fill(9, LENGTH + 40, tokens);
    uint32_t free_pages = eng_engine_pages_free(r.engine);
    for (size_t i = 0; i < sizeof(CUTS) / sizeof(CUTS[0]); i++) {
        uint32_t cut = CUTS[i];
        uint16_t h[NANO_HIDDEN];
        size_t size, again;
        eng_sequence *source = sequence_open(r.engine, LENGTH + 40), *fork = NULL;
        sequence_feed(r.engine, source, tokens, cut, 64, NULL);
        uint8_t *before = sequence_bytes(r.engine, source, &size);
        memcpy(h, eng_sequence_h_final(source), sizeof(h));
        sequence_feed(r.engine, source, tokens + cut, LENGTH + 40 - cut, 64, expected);
        assert_ok(eng_sequence_fork(source, cut, h, LENGTH + 40, &fork, &err), &err);
        assert_int_equal(eng_sequence_length(fork), cut);
        uint8_t *after = sequence_bytes(r.engine, fork, &again);
        assert_int_equal(size, again);
        assert_memory_equal(before, after, size);
        assert_memory_equal(eng_sequence_h_final(fork), h, sizeof(h));
        sl_free(after);
        eng_sequence_close(source); /* the shared pages live on */
        assert_int_equal(eng_engine_pages_free(r.engine), free_pages - 4); /* rest: promised */
        assert_ok(eng_sequence_bind(fork, LENGTH + 40, &err), &err);
        assert_int_equal(eng_sequence_room(fork), LENGTH + 40);
        sequence_feed(r.engine, fork, tokens + cut, LENGTH + 40 - cut, 50, logits);
        assert_memory_equal(logits, expected, sizeof(logits));
        eng_sequence_close(fork);
        sl_free(before);
        assert_int_equal(eng_engine_pages_free(r.engine), free_pages);
    }
    rig_close(&r);
}

TEST(a_fork_without_room_takes_nothing)
{
    uint32_t tokens[130];
    sl_err err;
    rig r;
    rig_open_options(&r, NULL, &(eng_options){.kv_bytes = 1 << 20, .rows_max = 130, .threads = 1});
    uint32_t pages = eng_engine_pages_free(r.engine);
    stream_fill(9, 130, tokens);
    eng_sequence *source = sequence_open(r.engine, 130), *fork = NULL;
    sequence_feed(r.engine, source, tokens, 130, 130, NULL);
    eng_sequence *rest = sequence_open(r.engine, (pages - 3) * ENG_PAGE_TOKENS);
    assert_code(eng_sequence_fork(source, 130, eng_sequence_h_final(source), 130, &fork, &err),
                SL_FULL);
    eng_sequence_close(rest);
    assert_ok(eng_sequence_fork(source, 130, eng_sequence_h_final(source), 130, &fork, &err), &err);
    assert_int_equal(eng_engine_pages_free(r.engine), pages - 4);
    eng_sequence_close(source);
    eng_sequence_close(fork);
    assert_int_equal(eng_engine_pages_free(r.engine), pages);
    rig_close(&r);
}

/* The index against a list of all that should be known, over random operations. */
TEST(index_agrees_with_a_list)
{
    enum { PAGES = 32, STEPS = 4000 };
    static const uint64_t KEY[ENG_CHAIN_KEY_WORDS] = {1, 2, 3, 4};
    struct {
        bool used;
        eng_chain chain;
        uint32_t token;
    } known[PAGES] = {0};
    eng_prefix_index index;
    eng_prefix_index_init(&index, PAGES, KEY);
    for (uint32_t step = 0; step < STEPS; step++) {
        uint32_t page = (uint32_t)(sl_keyed_uniform(1, step, 1) * PAGES);
        uint32_t before = (uint32_t)(sl_keyed_uniform(1, step, 2) * (PAGES + 1));
        uint32_t tokens[ENG_PAGE_TOKENS] = {(uint32_t)(sl_keyed_uniform(1, step, 3) * 3)};
        eng_chain parent = before == PAGES ? (eng_chain){0} : known[before].chain;
        eng_chain chain = eng_prefix_chain(&index, 0, parent, tokens);
        assert_false(eng_chain_equal(chain, eng_prefix_chain(&index, 1, parent, tokens)));
        uint32_t expected = ENG_NO_PAGE;
        for (uint32_t i = 0; i < PAGES; i++)
            if (known[i].used && eng_chain_equal(known[i].chain, chain))
                expected = i;
        assert_int_equal(eng_prefix_index_find(&index, chain, tokens), expected);
        tokens[ENG_PAGE_TOKENS - 1] = 9; /* the chain alone is not enough */
        assert_int_equal(eng_prefix_index_find(&index, chain, tokens), ENG_NO_PAGE);
        tokens[ENG_PAGE_TOKENS - 1] = 0;
        if (known[page].used) {
            eng_prefix_index_remove(&index, page);
            known[page].used = false;
        } else {
            eng_prefix_index_add(&index, page, chain, tokens);
            known[page].used = expected == ENG_NO_PAGE;
            known[page].chain = chain;
        }
        assert_int_equal(eng_prefix_index_has(&index, page), known[page].used);
    }
    eng_prefix_index_fini(&index);
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(a_hit_changes_no_bit),
    cmocka_unit_test(only_the_same_tokens_in_the_same_space),
    cmocka_unit_test(shared_pages_are_not_written),
    cmocka_unit_test(twins_are_kept_once),
    cmocka_unit_test(kept_pages_give_way),
    cmocka_unit_test(full_with_a_hit_leaves_it_kept),
    cmocka_unit_test(adopt_behind_a_hit),
    cmocka_unit_test(a_fork_is_a_copy),
    cmocka_unit_test(a_fork_without_room_takes_nothing),
    cmocka_unit_test(a_chain_does_not_depend_on_pages),
    cmocka_unit_test(index_agrees_with_a_list),
};
TEST_MAIN(TESTS)
