/* Prompts whose pages come from another engine. */
#include "tests/unit/decode/batch_kit.h"

/* Rows and h_final came with the pages: the first step after them drafts already. */
TEST(drafts_at_once_after_a_hand_over)
{
    ask a = ask_of(100, 3, 0);
    a.handed_over = true;
    rig r;
    rig_of(&r, &(nano_options){.echo = true});
    run u = run_at(&r, 1, 0, &a, 1);
    assert_true(u.drafted == 1);
    run_free(&u);
    rig_close(&r);
}

/* Pages that are fetched for others alone are known afterwards, and nothing is drawn. */
TEST(fetched_and_kept)
{
    ask a = ask_of(2 * ENG_PAGE_TOKENS, 3, 0);
    a.handed_over = a.fetch_only = true;
    a.capacity = a.prompt_count;
    rig r;
    rig_of(&r, &(nano_options){.echo = true});
    run u = run_at(&r, 1, 0, &a, 1);
    assert_int_equal(u.outcomes[0].count, 0);
    assert_int_equal(u.outcomes[0].finish, DEC_FINISH_STOP);
    assert_int_equal(u.kept, 2);
    run_free(&u);
    rig_close(&r);
}

/* What has come of a prompt may become known before the rest does: nothing else changes. */
TEST(fetched_in_parts)
{
    enum { COUNT = 4 };
    ask asks[COUNT];
    for (uint32_t i = 0; i < COUNT; i++) {
        asks[i] = ask_of(100 + 30 * i, 20, i % 2 ? 0.5f : 0);
        asks[i].handed_over = i > 0;
    }
    rig r;
    rig_of(&r, &(nano_options){.echo = true});
    run plain = run_at(&r, 1, 0, asks, COUNT);
    for (uint32_t i = 1; i < COUNT; i++)
        asks[i].verified = i % 2 + 1;
    run u = run_at(&r, 1, 0, asks, COUNT);
    assert_int_equal(u.kept_early, COUNT - 1);
    for (uint32_t i = 0; i < COUNT; i++)
        assert_same(&u.outcomes[i], &plain.outcomes[i]);
    run_free(&u);
    run_free(&plain);
    rig_close(&r);
}

/* Fetched prompts go through transit pages that are fewer than they ask for; others generate, and
 * end, meanwhile. */
TEST(fetched_through_transit_pages)
{
    enum { COUNT = 9 };
    ask asks[COUNT];
    for (uint32_t i = 0; i < COUNT; i++) {
        asks[i] = ask_of(30 + 25 * i, 20 + 7 * (i % 4), i % 2 ? 0.5f : 0);
        asks[i].handed_over = i % 3 != 0;
        asks[i].handout = i == 4;
    }
    rig r;
    rig_of(&r, &(nano_options){.echo = true});
    run plain = run_at(&r, 0, 0, asks, COUNT);
    for (uint32_t depth = 0; depth <= 2; depth++) {
        run u = run_tight(&r, &(run){.depth = depth, .context_max = 300}, asks, COUNT);
        assert_true(u.refused > 0 && deferred.landings >= 6);
        for (uint32_t i = 0; i < COUNT; i++)
            assert_same(&u.outcomes[i], &plain.outcomes[i]);
        run_free(&u);
    }
    run_free(&plain);
    rig_close(&r);
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(drafts_at_once_after_a_hand_over),
    cmocka_unit_test(fetched_and_kept),
    cmocka_unit_test(fetched_in_parts),
    cmocka_unit_test(fetched_through_transit_pages),
};
TEST_MAIN(TESTS)
