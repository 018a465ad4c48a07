/* Does the depth of drafting follow what is accepted, inside its bounds? */
#include "decode/draft.h"

#include <math.h>

#include "base/rng.h"
#include "decode/draft_cost.h"
#include "tests/unit/test.h"

/* Steps until the depth changes; every draft right or every draft wrong. */
static uint32_t steps_to_change(dec_draft *draft, bool right)
{
    uint32_t depth = dec_draft_depth(draft, 0), steps = 0;
    while (dec_draft_depth(draft, 0) == depth) {
        dec_draft_note(draft, depth, right ? depth : 0, 0);
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
            assert_int_equal(dec_draft_depth(&draft, 0), depth);
            dec_draft_note(&draft, depth, depth, 0);
        }
    }
}

TEST(goes_down_rests_and_tries_again)
{
    dec_draft draft;
    dec_draft_init(&draft, 3);
    for (uint32_t depth = 3; depth > 0; depth--) {
        assert_int_equal(dec_draft_depth(&draft, 0), depth);
        assert_int_equal(steps_to_change(&draft, false), DEC_DRAFT_WINDOW);
    }
    /* each rest is twice as long as the one before, up to a bound */
    for (uint32_t rest = DEC_DRAFT_REST_MIN; rest < 4 * DEC_DRAFT_REST_MAX; rest *= 2) {
        assert_int_equal(dec_draft_depth(&draft, 0), 0);
        assert_int_equal(steps_to_change(&draft, false),
                         rest < DEC_DRAFT_REST_MAX ? rest : DEC_DRAFT_REST_MAX);
        assert_int_equal(dec_draft_depth(&draft, 0), 1);
        assert_int_equal(steps_to_change(&draft, false), DEC_DRAFT_WINDOW);
    }
    /* a try that pays leads back, and the next rest is short again */
    (void)steps_to_change(&draft, false);
    for (uint32_t depth = 1; depth < 3; depth++) {
        assert_int_equal(dec_draft_depth(&draft, 0), depth);
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
        dec_draft_note(&draft, 3, 0, 0);
    for (uint32_t i = 0; i < 100; i++) {
        assert_int_equal(dec_draft_depth(&draft, 0), 2);
        dec_draft_note(&draft, 2, 1, 0);
    }
}

TEST(steps_without_room_say_nothing)
{
    dec_draft draft;
    dec_draft_init(&draft, 2);
    for (uint32_t i = 0; i < 100; i++)
        dec_draft_note(&draft, 0, 0, 0);
    assert_int_equal(dec_draft_depth(&draft, 0), 2);
    for (uint32_t i = 0; i < DEC_DRAFT_WINDOW; i++)
        dec_draft_note(&draft, 1, 0, 0); /* fewer than asked for count as what they are */
    assert_int_equal(dec_draft_depth(&draft, 0), 1);
}

TEST(random_walk_keeps_the_bounds)
{
    for (uint32_t walk = 0; walk < 50; walk++) {
        uint32_t depth_max = walk % 4;
        dec_draft draft, again;
        dec_draft_init(&draft, depth_max);
        dec_draft_init(&again, depth_max);
        for (uint32_t i = 0; i < 5000; i++) {
            double price = sl_keyed_uniform(walk, i / 100, 2) * (walk % 2) * 2;
            uint32_t depth = dec_draft_depth(&draft, price);
            assert_true(depth <= depth_max);
            assert_int_equal(dec_draft_depth(&again, price), depth);
            uint32_t drafted = (uint32_t)(sl_keyed_uniform(walk, i, 0) * (depth + 1));
            uint32_t accepted = (uint32_t)(sl_keyed_uniform(walk, i, 1) * (drafted + 1));
            dec_draft_note(&draft, drafted, accepted, price);
            dec_draft_note(&again, drafted, accepted, price);
            assert_true(draft.rest >= DEC_DRAFT_REST_MIN && draft.rest <= DEC_DRAFT_REST_MAX);
        }
    }
}

/* Steps at a price, of which `of` in `per` have a right first draft and no right second one. */
static void run_steps(dec_draft *draft, uint32_t count, uint32_t of, uint32_t per, double price)
{
    for (uint32_t i = 0; i < count; i++) {
        uint32_t depth = dec_draft_depth(draft, price);
        dec_draft_note(draft, depth, depth > 0 && i % per < of, price);
    }
}

/* Half of the first drafts are right: the depth is the last one that pays. */
TEST(depth_ends_where_drafts_cost_more_than_they_bring)
{
    static const struct {
        double price;
        uint32_t depth;
    } CASES[] = {{0.1, 1}, {0.45, 1}, {0.55, 0}, {3, 0}};
    for (size_t i = 0; i < sizeof(CASES) / sizeof(CASES[0]); i++) {
        dec_draft draft;
        dec_draft_init(&draft, 1);
        run_steps(&draft, DEC_DRAFT_WINDOW, 1, 2, CASES[i].price);
        assert_int_equal(dec_draft_depth(&draft, CASES[i].price), CASES[i].depth);
    }
    /* all right, three deep: a price below one never turns them down */
    dec_draft draft;
    dec_draft_init(&draft, 3);
    for (uint32_t i = 0; i < 100; i++) {
        assert_int_equal(dec_draft_depth(&draft, 0.99), 3);
        dec_draft_note(&draft, 3, 3, 0.99);
    }
    /* the price goes up within a window: one draft stays, to know more */
    assert_int_equal(dec_draft_depth(&draft, 1.5), 1);
    assert_int_equal(dec_draft_depth(&draft, 0.99), 3);
}

TEST(rest_ends_when_the_price_comes_down)
{
    dec_draft draft;
    dec_draft_init(&draft, 1);
    run_steps(&draft, DEC_DRAFT_WINDOW, 3, 4, 0.9);
    assert_int_equal(draft.depth, 0);
    dec_draft_note(&draft, 0, 0, 0.9);
    assert_int_equal(draft.depth, 0);
    dec_draft_note(&draft, 0, 0, 0.5);
    assert_int_equal(draft.depth, 1);
    /* a price that is not known ends no rest */
    dec_draft_init(&draft, 1);
    run_steps(&draft, DEC_DRAFT_WINDOW, 1, 2, 0.9);
    dec_draft_note(&draft, 0, 0, 0);
    assert_int_equal(draft.depth, 0);
}

/* Steps of `rows` rows take 1,000 + 100 rows. */
static void note_rows(dec_draft_cost *cost, uint32_t rows)
{
    dec_draft_cost_note(cost, rows, 1000 + 100 * (uint64_t)rows);
}

TEST(price_grows_with_the_sequences)
{
    dec_draft_cost cost = {0};
    assert_true(dec_draft_price(&cost, 1) == 0);
    for (uint32_t rows = 1; rows <= 128; rows *= 2)
        note_rows(&cost, rows);
    double before = 0;
    for (uint32_t sequences = 1; sequences <= 64; sequences *= 2) {
        double price = dec_draft_price(&cost, sequences);
        double expected = 100.0 * sequences / (1000 + 100.0 * sequences);
        assert_true(fabs(price - expected) < 1e-9 && price > before);
        before = price;
    }
    assert_true(dec_draft_price(&cost, 128) == 0); /* nothing is known of more rows */
    assert_true(dec_draft_price(&cost, 5) == 0);   /* nor of just so many */
    dec_draft_cost_note_drafts(&cost, 4, 4 * 50);
    assert_true(fabs(dec_draft_price(&cost, 1) - 150.0 / 1100) < 1e-9);
}

TEST(old_times_are_forgotten_and_looked_at_again)
{
    dec_draft_cost cost = {0};
    note_rows(&cost, 1);
    uint32_t looks = 0;
    for (uint32_t i = 0; i < DEC_COST_OLD; i++)
        note_rows(&cost, 2);
    assert_true(dec_draft_price(&cost, 1) == 0);
    for (uint32_t i = 0; i < 2 * DEC_COST_LOOK; i++) {
        looks += dec_draft_cost_looks(&cost, 1);
        note_rows(&cost, dec_draft_cost_looks(&cost, 1) ? 1 : 2);
    }
    assert_int_equal(looks, 1);
    assert_true(dec_draft_price(&cost, 1) > 0);
    note_rows(&cost, 1u << 30); /* any number of rows has a place */
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(depth_ends_where_drafts_cost_more_than_they_bring),
    cmocka_unit_test(rest_ends_when_the_price_comes_down),
    cmocka_unit_test(price_grows_with_the_sequences),
    cmocka_unit_test(old_times_are_forgotten_and_looked_at_again),
    cmocka_unit_test(starts_at_the_greatest_depth_and_stays_while_it_pays),
    cmocka_unit_test(goes_down_rests_and_tries_again),
    cmocka_unit_test(stays_between_a_quarter_and_three_quarters),
    cmocka_unit_test(steps_without_room_say_nothing),
    cmocka_unit_test(random_walk_keeps_the_bounds),
};
TEST_MAIN(TESTS)
