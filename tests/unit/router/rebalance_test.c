/* Are experts spread anew when their load asks for it, not before, and never to and fro? */
#include "router/rebalance.h"

#include "tests/unit/test.h"

enum { LAYERS = 2, EXPERTS = 8, RANKS = 4 };

#define WINDOW   (10 * SL_S_NS)
#define PAUSE    (60 * SL_S_NS)
#define ROWS     100000u /* of a layer in a window */
#define ROWS_MIN 500u

static const rtr_rebalance_options OPTIONS = {.mode = RTR_PLAN_MODE_ACT,
                                              .window_ns = WINDOW,
                                              .windows = 3,
                                              .rows = ROWS_MIN,
                                              .pause_ns = PAUSE,
                                              .over = 1.25,
                                              .gain = 0.05};

/* Ranks that have two experts each; what they do is written down as they would. */
typedef struct fixture {
    rtr_rebalance *r;
    rtr_rebalance_options options;
    uint64_t experts[LAYERS * EXPERTS], ranks[LAYERS * RANKS];
    rtr_rebalance_seen seen;
    sl_time_ns now;
} fixture;

static rtr_rebalance_action see(fixture *f, uint64_t after_ns)
{
    rtr_rebalance_event event = {.kind = RTR_REBALANCE_SEEN, .seen = f->seen};
    event.seen.expert_rows = f->experts;
    event.seen.rank_rows = f->ranks;
    f->now += after_ns;
    return rtr_rebalance_step(f->r, &f->options, &event, f->now);
}

/* In each layer so many rows of each rank, equally of its experts. */
static void work(fixture *f, const uint64_t rows[RANKS])
{
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        for (uint32_t rank = 0; rank < RANKS; rank++) {
            f->ranks[layer * RANKS + rank] += rows[rank];
            f->experts[layer * EXPERTS + 2 * rank] += rows[rank] / 2;
            f->experts[layer * EXPERTS + 2 * rank + 1] += rows[rank] - rows[rank] / 2;
        }
    }
}

static const uint64_t EVEN[RANKS] = {ROWS / 4, ROWS / 4, ROWS / 4, ROWS / 4};
static const uint64_t SKEWED[RANKS] = {ROWS / 2, ROWS / 6, ROWS / 6, ROWS / 6}; /* 2.00 */
static const uint64_t OTHERWISE[RANKS] = {ROWS / 6, ROWS / 6, ROWS / 6, ROWS / 2};

static rtr_rebalance_action pass(fixture *f, const uint64_t rows[RANKS])
{
    work(f, rows);
    return see(f, WINDOW);
}

/* Placement 1 in use, the first pause is over. */
static fixture fresh(void)
{
    fixture f = {
        .options = OPTIONS, .now = 1000 * SL_S_NS, .seen = {.formation = 1, .placement = 1}};
    f.r = rtr_rebalance_create(LAYERS, EXPERTS, RANKS);
    assert_int_equal(see(&f, 0), RTR_REBALANCE_NOTHING);
    assert_text_contains(f.r->reason, "a pause: who leads has not led for long");
    for (uint64_t t = 0; t < PAUSE; t += WINDOW)
        assert_int_equal(pass(&f, EVEN), RTR_REBALANCE_NOTHING);
    return f;
}

static rtr_rebalance_plan good_plan(const fixture *f)
{
    return (rtr_rebalance_plan){.placement = f->seen.placement,
                                .before = 2,
                                .after = 1.02,
                                .long_before = 1.5,
                                .long_after = 1.1,
                                .moves = 9};
}

static rtr_rebalance_action answer(fixture *f, const rtr_rebalance_plan *plan)
{
    rtr_rebalance_event event = {.kind = RTR_REBALANCE_PLANNED, .plan = *plan};
    return rtr_rebalance_step(f->r, &f->options, &event, f->now);
}

static void tell(fixture *f, rtr_rebalance_kind kind, const char *why)
{
    rtr_rebalance_event event = {.kind = kind, .why = why};
    assert_int_equal(rtr_rebalance_step(f->r, &f->options, &event, f->now), RTR_REBALANCE_NOTHING);
}

static void ask_for_plan(fixture *f)
{
    assert_int_equal(pass(f, SKEWED), RTR_REBALANCE_NOTHING);
    assert_int_equal(pass(f, SKEWED), RTR_REBALANCE_NOTHING);
    assert_int_equal(pass(f, SKEWED), RTR_REBALANCE_PLAN);
}

static void write_plan(fixture *f)
{
    rtr_rebalance_plan plan = good_plan(f);
    ask_for_plan(f);
    assert_int_equal(answer(f, &plan), RTR_REBALANCE_WRITE);
    tell(f, RTR_REBALANCE_WRITTEN, NULL);
}

TEST(load_over_the_bound_is_planned_after_so_many_windows)
{
    fixture f = fresh();
    work(&f, SKEWED);
    assert_int_equal(see(&f, WINDOW - 1), RTR_REBALANCE_NOTHING); /* not a nanosecond early */
    assert_int_equal(f.r->over, 0);
    assert_int_equal(see(&f, 1), RTR_REBALANCE_NOTHING);
    assert_int_equal(f.r->over, 1);
    assert_text_contains(f.r->reason, "2.00, over 1.25; 1 of 3 windows");
    assert_int_equal(pass(&f, SKEWED), RTR_REBALANCE_NOTHING);
    assert_int_equal(pass(&f, SKEWED), RTR_REBALANCE_PLAN);
    assert_true(f.r->recent[0] == 3.0 * (ROWS / 4) && f.r->past[0] > f.r->recent[0]);
    rtr_rebalance_plan plan = good_plan(&f);
    assert_int_equal(answer(&f, &plan), RTR_REBALANCE_WRITE);
    assert_text_contains(f.r->reason, "1.020 planned instead of 2.000, 9 experts move");
    tell(&f, RTR_REBALANCE_WRITTEN, NULL);
    assert_int_equal(see(&f, SL_S_NS), RTR_REBALANCE_NOTHING);
    f.seen.placement = 2;
    f.seen.formation = 2;
    assert_int_equal(see(&f, SL_S_NS), RTR_REBALANCE_DONE);
    assert_int_equal(f.r->took_ns, 2 * SL_S_NS);
    rtr_rebalance_destroy(f.r);
}

TEST(just_the_bound_is_not_over_it)
{
    static const uint64_t AT[RANKS] = {ROWS * 5 / 16, ROWS * 5 / 16, ROWS * 3 / 16, ROWS * 3 / 16};
    static const uint64_t OVER[RANKS] = {ROWS * 5 / 16 + 1, ROWS * 5 / 16 - 1, ROWS * 3 / 16,
                                         ROWS * 3 / 16};
    fixture f = fresh();
    for (int i = 0; i < 20; i++)
        assert_int_equal(pass(&f, AT), RTR_REBALANCE_NOTHING);
    assert_int_equal(f.r->over, 0);
    assert_int_equal(pass(&f, OVER), RTR_REBALANCE_NOTHING);
    assert_int_equal(f.r->over, 1);
    assert_int_equal(pass(&f, AT), RTR_REBALANCE_NOTHING); /* one even window begins anew */
    assert_int_equal(f.r->over, 0);
    assert_true(f.r->recent[0] == 0);
    rtr_rebalance_destroy(f.r);
}

TEST(few_rows_say_nothing)
{
    static const uint64_t FEW[RANKS] = {ROWS_MIN * RANKS - 1, 0, 0, 0};
    static const uint64_t ENOUGH[RANKS] = {ROWS_MIN * RANKS, 0, 0, 0};
    fixture f = fresh();
    for (int i = 0; i < 20; i++)
        assert_int_equal(pass(&f, FEW), RTR_REBALANCE_NOTHING);
    assert_text_contains(f.r->reason, "too few rows");
    assert_int_equal(pass(&f, ENOUGH), RTR_REBALANCE_NOTHING);
    assert_int_equal(f.r->over, 1);
    rtr_rebalance_destroy(f.r);
}

TEST(a_plan_must_gain_now_and_over_a_longer_time)
{
    fixture f = fresh();
    rtr_rebalance_plan plan = good_plan(&f);
    ask_for_plan(&f);
    plan.after = plan.before * (1 - OPTIONS.gain) + 1e-6;
    assert_int_equal(answer(&f, &plan), RTR_REBALANCE_NOTHING);
    assert_false(f.r->advised);
    assert_text_contains(f.r->reason, "under 5.0%");
    ask_for_plan(&f); /* after as many windows again */
    plan = good_plan(&f);
    plan.long_after = plan.long_before;
    assert_int_equal(answer(&f, &plan), RTR_REBALANCE_NOTHING);
    ask_for_plan(&f);
    plan = good_plan(&f);
    plan.placement = 2; /* an operator was faster */
    assert_int_equal(answer(&f, &plan), RTR_REBALANCE_NOTHING);
    assert_text_contains(f.r->reason, "placement 2 is on its way");
    ask_for_plan(&f);
    plan = good_plan(&f);
    plan.after = plan.before * (1 - OPTIONS.gain) - 1e-6;
    assert_int_equal(answer(&f, &plan), RTR_REBALANCE_WRITE);
    rtr_rebalance_destroy(f.r);
}

TEST(advice_is_told_and_nothing_done)
{
    fixture f = fresh();
    rtr_rebalance_plan plan = good_plan(&f);
    f.options.mode = RTR_PLAN_MODE_ADVISE;
    for (int i = 0; i < 5; i++) {
        ask_for_plan(&f);
        assert_int_equal(answer(&f, &plan), RTR_REBALANCE_NOTHING);
        assert_true(f.r->advised);
    }
    assert_int_equal(pass(&f, EVEN), RTR_REBALANCE_NOTHING);
    assert_false(f.r->advised);
    rtr_rebalance_destroy(f.r);
}

TEST(after_a_roll_out_nothing_for_a_pause)
{
    fixture f = fresh();
    write_plan(&f);
    f.seen.placement = f.seen.formation = 2;
    assert_int_equal(see(&f, SL_S_NS), RTR_REBALANCE_DONE);
    sl_time_ns done = f.now;
    rtr_rebalance_action action = RTR_REBALANCE_NOTHING;
    while (action == RTR_REBALANCE_NOTHING)
        action = pass(&f, SKEWED);
    assert_int_equal(action, RTR_REBALANCE_PLAN);
    assert_int_equal(f.now - done, PAUSE + 2 * WINDOW); /* its window of the end counts */
    rtr_rebalance_destroy(f.r);
}

/* Load that changes sides: its rows, and what a plan for those windows would gain by the past. */
static uint32_t writes_under_flapping(uint32_t windows_each_side)
{
    fixture f = fresh();
    uint32_t writes = 0;
    for (uint32_t i = 0; i < 600; i++) {
        bool other = i / windows_each_side % 2;
        rtr_rebalance_action action = pass(&f, other ? OTHERWISE : SKEWED);
        if (action == RTR_REBALANCE_PLAN) {
            /* Rank 0 is the heavy one of the past, or rank 3: a plan by the windows' load helps
             * the past only if that is the same one. */
            double side = f.r->recent[0] - f.r->recent[EXPERTS - 1];
            double past = f.r->past[0] - f.r->past[EXPERTS - 1];
            rtr_rebalance_plan plan = good_plan(&f);
            plan.long_after = side * past > 0 ? plan.long_before * 0.5 : plan.long_before * 1.1;
            if (writes > 0) /* the placement of the first one suits both as well as any */
                plan.long_after = plan.long_before;
            action = answer(&f, &plan);
        }
        if (action == RTR_REBALANCE_WRITE) {
            writes++;
            tell(&f, RTR_REBALANCE_WRITTEN, NULL);
            f.seen.placement++;
            f.seen.formation++;
            assert_int_equal(see(&f, 0), RTR_REBALANCE_DONE);
        }
    }
    rtr_rebalance_destroy(f.r);
    return writes;
}

TEST(load_that_flaps_moves_nothing_to_and_fro)
{
    for (uint32_t side = 1; side < 7; side++)
        assert_true(writes_under_flapping(side) <= 1);
}

TEST(uneven_windows_that_come_and_go_do_nothing)
{
    fixture f = fresh();
    for (int i = 0; i < 200; i++) {
        assert_int_equal(pass(&f, SKEWED), RTR_REBALANCE_NOTHING);
        assert_int_equal(pass(&f, OTHERWISE), RTR_REBALANCE_NOTHING);
        assert_int_equal(pass(&f, EVEN), RTR_REBALANCE_NOTHING);
    }
    rtr_rebalance_destroy(f.r);
}

/* Whatever is planned is always worth it: then only the pause bounds how often. */
TEST(at_most_one_roll_out_in_a_pause)
{
    fixture f = fresh();
    sl_time_ns last = 0;
    for (int i = 0; i < 400; i++) {
        if (pass(&f, i % 2 ? SKEWED : OTHERWISE) != RTR_REBALANCE_PLAN)
            continue;
        rtr_rebalance_plan plan = good_plan(&f);
        assert_int_equal(answer(&f, &plan), RTR_REBALANCE_WRITE);
        assert_true(last == 0 || f.now - last >= PAUSE);
        last = f.now;
        tell(&f, RTR_REBALANCE_WRITTEN, NULL);
        f.seen.placement++;
        assert_int_equal(see(&f, 0), RTR_REBALANCE_DONE);
    }
    assert_true(last != 0);
    rtr_rebalance_destroy(f.r);
}

TEST(ranks_that_come_and_go_begin_a_pause)
{
    fixture f = fresh();
    for (int i = 0; i < 3; i++) {
        assert_int_equal(pass(&f, SKEWED), RTR_REBALANCE_NOTHING);
        assert_int_equal(pass(&f, SKEWED), RTR_REBALANCE_NOTHING);
        if (i == 0)
            f.seen.formation++; /* one was taken in */
        else if (i == 1)
            f.seen.placement++; /* an operator's */
        else
            memset(f.ranks, 0, sizeof(f.ranks)), memset(f.experts, 0, sizeof(f.experts));
        sl_time_ns begun = f.now + WINDOW;
        assert_int_equal(pass(&f, SKEWED), RTR_REBALANCE_NOTHING);
        assert_text_contains(f.r->reason, "a pause: ");
        while (f.now < begun + PAUSE - WINDOW)
            assert_int_equal(pass(&f, SKEWED), RTR_REBALANCE_NOTHING);
        assert_int_equal(f.r->over, 0);
    }
    f.seen.missing = "a rank is away";
    assert_int_equal(pass(&f, SKEWED), RTR_REBALANCE_NOTHING);
    assert_text_contains(f.r->reason, "a rank is away");
    assert_false(f.r->begun);
    f.seen.missing = NULL;
    assert_int_equal(pass(&f, SKEWED), RTR_REBALANCE_NOTHING);
    assert_text_contains(f.r->reason, "a pause: a rank was missing");
    rtr_rebalance_destroy(f.r);
}

TEST(ranks_that_change_while_a_plan_is_made_end_it)
{
    fixture f = fresh();
    rtr_rebalance_plan plan = good_plan(&f);
    ask_for_plan(&f);
    f.seen.missing = "a rank is away";
    assert_int_equal(see(&f, SL_S_NS), RTR_REBALANCE_NOTHING);
    f.seen.missing = NULL;
    assert_int_equal(answer(&f, &plan), RTR_REBALANCE_NOTHING);
    assert_text_contains(f.r->reason, "ranks changed while a plan was made");
    rtr_rebalance_destroy(f.r);
}

TEST(what_is_not_written_is_tried_again_after_a_pause)
{
    fixture f = fresh();
    rtr_rebalance_plan plan = good_plan(&f);
    ask_for_plan(&f);
    assert_int_equal(answer(&f, &plan), RTR_REBALANCE_WRITE);
    assert_int_equal(see(&f, SL_S_NS), RTR_REBALANCE_NOTHING);
    tell(&f, RTR_REBALANCE_FAILED, "no longer the leader: nothing was done");
    assert_text_contains(f.r->reason, "could not be written: no longer the leader");
    for (uint64_t t = WINDOW; t < PAUSE; t += WINDOW)
        assert_int_equal(pass(&f, SKEWED), RTR_REBALANCE_NOTHING);
    ask_for_plan(&f);
    tell(&f, RTR_REBALANCE_FAILED, "there is no placement of x");
    assert_text_contains(f.r->reason, "no plan could be made: there is no placement of x");
    rtr_rebalance_destroy(f.r);
}

TEST(a_table_that_is_not_used_is_told)
{
    fixture f = fresh();
    write_plan(&f);
    f.seen.missing = "a rank is silent";
    assert_int_equal(see(&f, RTR_ROLL_OUT_NS - 1), RTR_REBALANCE_NOTHING);
    assert_int_equal(see(&f, 1), RTR_REBALANCE_LATE);
    assert_text_contains(f.r->reason, "placement 2 is written, but not all ranks use it");
    f.seen.missing = NULL;
    assert_int_equal(see(&f, SL_S_NS), RTR_REBALANCE_NOTHING);
    assert_int_equal(f.r->late, 2);
    f.seen.placement = 2;
    assert_int_equal(see(&f, SL_S_NS), RTR_REBALANCE_NOTHING);
    assert_int_equal(f.r->late, 0);
    assert_text_contains(f.r->reason, "a pause: another placement is in use");
    rtr_rebalance_destroy(f.r);
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(load_over_the_bound_is_planned_after_so_many_windows),
    cmocka_unit_test(just_the_bound_is_not_over_it),
    cmocka_unit_test(few_rows_say_nothing),
    cmocka_unit_test(a_plan_must_gain_now_and_over_a_longer_time),
    cmocka_unit_test(advice_is_told_and_nothing_done),
    cmocka_unit_test(after_a_roll_out_nothing_for_a_pause),
    cmocka_unit_test(load_that_flaps_moves_nothing_to_and_fro),
    cmocka_unit_test(uneven_windows_that_come_and_go_do_nothing),
    cmocka_unit_test(at_most_one_roll_out_in_a_pause),
    cmocka_unit_test(ranks_that_come_and_go_begin_a_pause),
    cmocka_unit_test(ranks_that_change_while_a_plan_is_made_end_it),
    cmocka_unit_test(what_is_not_written_is_tried_again_after_a_pause),
    cmocka_unit_test(a_table_that_is_not_used_is_told),
};
TEST_MAIN(TESTS)
