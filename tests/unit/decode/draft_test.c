/* Does the depth of drafting follow what is accepted, inside its bounds? */
#include "decode/draft.h"

#include "base/rng.h"
#include "tests/unit/test.h"

/* Steps until the depth changes; every draft right or every draft wrong. */
static uint32_t steps_to_change(dec_draft *draft, bool right)
{
    uint32_t depth = dec_draft_depth(draft), steps = 0;
    while (dec_draft_depth(draft) == depth) {
        dec_draft_note(draft, depth, right ? depth : 0);
        assert_true(++steps <= DEC_DRAFT_REST_MAX);
    }
    return steps;
}

TEST(starts_at_the_greatest_depth_and_stays_while_it_pays)
{
    for (uint32_t depth = 0; depth <= 3; depth++) {
        dec_draft draft;
        dec_draft_init(&draft, depth);
        for (uint32_t i = 0; i < 1000; i++) {
            assert_int_equal(dec_draft_depth(&draft), depth);
            dec_draft_note(&draft, depth, depth);
        }
    }
}

TEST(goes_down_rests_and_tries_again)
{
    dec_draft draft;
    dec_draft_init(&draft, 3);
    for (uint32_t depth = 3; depth > 0; depth--) {
        assert_int_equal(dec_draft_depth(&draft), depth);
        assert_int_equal(steps_to_change(&draft, false), DEC_DRAFT_WINDOW);
    }
    /* each rest is twice as long as the one before, up to a bound */
    for (uint32_t rest = DEC_DRAFT_REST_MIN; rest < 4 * DEC_DRAFT_REST_MAX; rest *= 2) {
        assert_int_equal(dec_draft_depth(&draft), 0);
        assert_int_equal(steps_to_change(&draft, false),
                         rest < DEC_DRAFT_REST_MAX ? rest : DEC_DRAFT_REST_MAX);
        assert_int_equal(dec_draft_depth(&draft), 1);
        assert_int_equal(steps_to_change(&draft, false), DEC_DRAFT_WINDOW);
    }
    /* a try that pays leads back, and the next rest is short again */
    (void)steps_to_change(&draft, false);
    for (uint32_t depth = 1; depth < 3; depth++) {
        assert_int_equal(dec_draft_depth(&draft), depth);
        assert_int_equal(steps_to_change(&draft, true), DEC_DRAFT_WINDOW);
    }
    for (uint32_t depth = 3; depth > 0; depth--)
        (void)steps_to_change(&draft, false);
    assert_int_equal(steps_to_change(&draft, false), DEC_DRAFT_REST_MIN);
}

TEST(stays_between_a_quarter_and_three_quarters)
{
    dec_draft draft;
    dec_draft_init(&draft, 3);
    for (uint32_t i = 0; i < DEC_DRAFT_WINDOW; i++)
        dec_draft_note(&draft, 3, 0);
    for (uint32_t i = 0; i < 100; i++) {
        assert_int_equal(dec_draft_depth(&draft), 2);
        dec_draft_note(&draft, 2, 1);
    }
}

TEST(steps_without_room_say_nothing)
{
    dec_draft draft;
    dec_draft_init(&draft, 2);
    for (uint32_t i = 0; i < 100; i++)
        dec_draft_note(&draft, 0, 0);
    assert_int_equal(dec_draft_depth(&draft), 2);
    for (uint32_t i = 0; i < DEC_DRAFT_WINDOW; i++)
        dec_draft_note(&draft, 1, 0); /* fewer than asked for count as what they are */
    assert_int_equal(dec_draft_depth(&draft), 1);
}

TEST(random_walk_keeps_the_bounds)
{
    for (uint32_t walk = 0; walk < 50; walk++) {
        uint32_t depth_max = walk % 4;
        dec_draft draft, again;
        dec_draft_init(&draft, depth_max);
        dec_draft_init(&again, depth_max);
        for (uint32_t i = 0; i < 5000; i++) {
            uint32_t depth = dec_draft_depth(&draft);
            assert_true(depth <= depth_max);
            assert_int_equal(dec_draft_depth(&again), depth);
            uint32_t drafted = (uint32_t)(sl_keyed_uniform(walk, i, 0) * (depth + 1));
            uint32_t accepted = (uint32_t)(sl_keyed_uniform(walk, i, 1) * (drafted + 1));
            dec_draft_note(&draft, drafted, accepted);
            dec_draft_note(&again, drafted, accepted);
            assert_true(draft.rest >= DEC_DRAFT_REST_MIN && draft.rest <= DEC_DRAFT_REST_MAX);
        }
    }
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(starts_at_the_greatest_depth_and_stays_while_it_pays),
    cmocka_unit_test(goes_down_rests_and_tries_again),
    cmocka_unit_test(stays_between_a_quarter_and_three_quarters),
    cmocka_unit_test(steps_without_room_say_nothing),
    cmocka_unit_test(random_walk_keeps_the_bounds),
};
TEST_MAIN(TESTS)
