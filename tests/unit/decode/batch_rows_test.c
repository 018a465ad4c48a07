/* What is told of each token of a prompt. */
#include "tests/unit/decode/batch_kit.h"

static eng_prompt_rows *rows_of(rig *r, const ask *a, uint32_t chunk)
{
    uint32_t tokens[256];
    sl_err err;
    stream_fill(a->stream, a->prompt_count, tokens);
    eng_engine *engine =
        rig_engine(r, &(eng_options){.kv_bytes = 4 << 20, .rows_max = 256, .threads = 1});
    eng_prompt_rows *rows = eng_prompt_rows_create(&(eng_prompt_want){0, a->prompt_count, true, 3},
                                                   eng_engine_routing(engine));
    eng_sequence *sequence = sequence_open(engine, a->prompt_count);
    for (uint32_t at = 0; at < a->prompt_count; at += chunk) {
        uint32_t left = a->prompt_count - at;
        eng_span span = {sequence,        tokens + at, left < chunk ? left : chunk,
                         ENG_LOGITS_NONE, false,       NULL};
        eng_prompt_ask(rows, at, &span);
        assert_ok(eng_step(engine, &span, 1, NULL, NULL, &err), &err);
        eng_prompt_note(rows, engine, &span, at, 0, 0, tokens);
    }
    assert_int_equal(rows->done, a->prompt_count);
    eng_sequence_close(sequence);
    eng_engine_destroy(engine);
    return rows;
}

/* Rows that a prompt tells are the same for every chunking and company, from wherever they are
 * wanted; tokens are what they are without. */
TEST(prompt_rows_are_told)
{
    enum { COUNT = 4 };
    ask asks[COUNT];
    rig r;
    rig_of(&r, &(nano_options){.echo = true});
    asks[0] = ask_of(130, 20, 1.0f);
    asks[1] = ask_of(70, 20, 0);
    asks[2] = ask_of(128, 20, 0.5f);
    asks[3] = ask_of(1, 20, 0.5f);
    run plain = run_at(&r, 0, 0, asks, COUNT);
    for (uint32_t i = 0; i < COUNT; i++)
        asks[i].rows = true;
    asks[1].rows_first = 40;
    run u = run_at(&r, 2, 0, asks, COUNT);
    for (uint32_t i = 0; i < COUNT; i++) {
        assert_same(&u.outcomes[i], &plain.outcomes[i]);
        for (uint32_t chunk = 7; chunk <= 256; chunk += 249) {
            eng_prompt_rows *rows = rows_of(&r, &asks[i], chunk);
            const eng_prompt_rows *told = u.outcomes[i].rows;
            uint32_t first = asks[i].rows_first, count = asks[i].prompt_count - first;
            assert_int_equal(told->done, asks[i].prompt_count);
            assert_memory_equal(told->scores, rows->scores + first * rows->score_bytes,
                                count * rows->score_bytes);
            assert_memory_equal(told->routing, rows->routing + first * rows->row_bytes,
                                count * rows->row_bytes);
            eng_prompt_rows_destroy(rows);
        }
    }
    run_free(&u);
    run_free(&plain);
    rig_close(&r);
}

TEST(prompt_rows_refused)
{
    static const eng_prompt_want CASES[] = {{5, 5, true, -1},
                                            {6, 5, true, -1},
                                            {0, 11, true, -1},
                                            {0, 10, false, -1},
                                            {0, 10, true, 21}};
    sl_err err;
    rig r;
    rig_of(&r, NULL);
    const mdl_routing_layout *layout = eng_engine_routing(r.engine);
    for (size_t i = 0; i < sizeof(CASES) / sizeof(CASES[0]); i++)
        assert_code(eng_prompt_want_check(&CASES[i], 10, layout, &err), SL_INVALID);
    const eng_prompt_want large = {0, 1u << 30, false, 20};
    assert_code(eng_prompt_want_check(&large, 1u << 30, layout, &err), SL_TOO_LARGE);
    const eng_prompt_want good = {0, 10, false, 0};
    assert_ok(eng_prompt_want_check(&good, 10, layout, &err), &err);
    rig_close(&r);
}

/* A stop at the last row of a page, in a step whose drafts complete the page: it must not be kept,
 * for its last token was never stepped in plain decoding. */
TEST(dropped_rows_are_never_kept)
{
    enum { COUNT = 9, EDGE = ENG_PAGE_TOKENS - 1 };
    ask asks[COUNT];
    rig r;
    rig_of(&r, &(nano_options){.echo = true});
    for (uint32_t i = 0; i < COUNT; i++)
        asks[i] = ask_of(52 + i, (int32_t)(EDGE + 8 - (52 + i)), 0.5f);
    run plain = run_at(&r, 0, 0, asks, COUNT);
    assert_int_equal(plain.kept, COUNT); /* without the stop, the page is complete */
    uint32_t count = 0;
    for (uint32_t i = 0; i < COUNT; i++) {
        uint32_t at = EDGE - asks[i].prompt_count;
        if (latest_first(&plain.outcomes[i], at + 1) != at)
            continue; /* the token there came before */
        asks[count] = asks[i];
        asks[count].sampling.stop_id_count = 1;
        asks[count++].sampling.stop_ids[0] = (int32_t)plain.outcomes[i].sampled[at].id;
    }
    run_free(&plain);
    assert_true(count > 0);
    for (uint32_t depth = 0; depth <= ENG_DRAFTS_MAX; depth++) {
        run u = run_at(&r, depth, 0, asks, count);
        assert_int_equal(u.kept, 0);
        for (uint32_t i = 0; i < count; i++) {
            assert_int_equal(u.outcomes[i].finish, DEC_FINISH_STOP);
            assert_int_equal(asks[i].prompt_count + u.outcomes[i].count, EDGE + 1);
        }
        run_free(&u);
    }
    rig_close(&r);
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(prompt_rows_are_told),
    cmocka_unit_test(prompt_rows_refused),
    cmocka_unit_test(dropped_rows_are_never_kept),
};
TEST_MAIN(TESTS)
