/* Is a node more or less asked for when it should be, not before, and never twice? */
#include "router/planner.h"

#include "tests/unit/test.h"

#define WINDOW (10 * SL_S_NS)
#define PAUSE  (60 * SL_S_NS)
#define LOOK   SL_S_NS

static const rtr_plan_options OPTIONS = {.window_ns = WINDOW,
                                         .windows = 3,
                                         .pause_ns = PAUSE,
                                         .queue_max = 4,
                                         .bounds = {{1, 4}, {1, 4}}};

typedef struct fixture {
    rtr_plan plan;
    rtr_plan_options options;
    rtr_plan_event event;
    sl_time_ns now;
} fixture;

/* Two of each, half busy, nobody waits. */
static fixture fresh(void)
{
    fixture f = {.options = OPTIONS, .now = 1000 * SL_S_NS};
    for (int i = 0; i < RTR_PLAN_ROLE_COUNT; i++)
        f.event.roles[i] = (rtr_plan_load){.nodes = 2, .wanted = 2, .busy = 0.5};
    assert_false(rtr_plan_step(&f.plan, &f.options, &f.event, f.now));
    return f;
}

static rtr_plan_load *load(fixture *f, rtr_plan_role role)
{
    return &f->event.roles[role];
}

static int32_t more(const fixture *f, rtr_plan_role role)
{
    return f->plan.advice[role].more;
}

static const char *reason(const fixture *f, rtr_plan_role role)
{
    return f->plan.advice[role].reason;
}

static bool look(fixture *f, uint64_t after_ns)
{
    f->now += after_ns;
    return rtr_plan_step(&f->plan, &f->options, &f->event, f->now);
}

/* One window of load as it stands; `kept` and `missed` requests of the role in it. */
static void pass(fixture *f, rtr_plan_role role, uint64_t kept, uint64_t missed)
{
    uint32_t judged = 0;
    load(f, role)->kept += kept;
    load(f, role)->missed += missed;
    for (uint64_t t = 0; t < WINDOW; t += LOOK) {
        bool was = look(f, LOOK);
        judged += was;
        assert_int_equal(was, t + LOOK == WINDOW);
    }
    assert_int_equal(judged, 1);
}

static void pass_quiet(fixture *f, uint32_t windows)
{
    for (uint32_t i = 0; i < windows; i++)
        pass(f, RTR_PLAN_ROLE_PREFILL, 0, 0);
}

TEST(late_first_tokens_ask_for_prefill)
{
    fixture f = fresh();
    for (int i = 0; i < 2; i++)
        pass(&f, RTR_PLAN_ROLE_PREFILL, 6, 4);
    assert_int_equal(more(&f, RTR_PLAN_ROLE_PREFILL), 0);
    assert_text_contains(reason(&f, RTR_PLAN_ROLE_PREFILL), "2 of 3 windows");
    load(&f, RTR_PLAN_ROLE_PREFILL)->missed += 5;
    assert_false(look(&f, WINDOW - 1)); /* not a nanosecond early */
    assert_int_equal(more(&f, RTR_PLAN_ROLE_PREFILL), 0);
    assert_true(look(&f, 1));
    assert_int_equal(more(&f, RTR_PLAN_ROLE_PREFILL), 1);
    assert_text_contains(reason(&f, RTR_PLAN_ROLE_PREFILL), "5 of 5 first tokens were late");
    assert_int_equal(more(&f, RTR_PLAN_ROLE_DECODE), 0);
    pass(&f, RTR_PLAN_ROLE_PREFILL, 10, 0); /* one good window takes it back */
    assert_int_equal(more(&f, RTR_PLAN_ROLE_PREFILL), 0);
}

TEST(a_good_window_begins_the_count_anew)
{
    fixture f = fresh();
    for (int i = 0; i < 5; i++) {
        pass(&f, RTR_PLAN_ROLE_DECODE, 0, 9);
        pass(&f, RTR_PLAN_ROLE_DECODE, 0, 9);
        pass(&f, RTR_PLAN_ROLE_DECODE, 9, 1); /* a tenth may miss */
        assert_int_equal(more(&f, RTR_PLAN_ROLE_DECODE), 0);
    }
    for (int i = 0; i < 3; i++)
        pass(&f, RTR_PLAN_ROLE_DECODE, 0, RTR_PLAN_COUNTED_MIN - 1); /* too few to say anything */
    assert_int_equal(more(&f, RTR_PLAN_ROLE_DECODE), 0);
    for (int i = 0; i < 3; i++)
        pass(&f, RTR_PLAN_ROLE_DECODE, 0, RTR_PLAN_COUNTED_MIN);
    assert_int_equal(more(&f, RTR_PLAN_ROLE_DECODE), 1);
    assert_text_contains(reason(&f, RTR_PLAN_ROLE_DECODE), "slow tokens");
}

TEST(first_tokens_that_wait_for_room_ask_for_decode)
{
    fixture f = fresh();
    load(&f, RTR_PLAN_ROLE_DECODE)->queue = 1;
    for (int i = 0; i < 3; i++)
        pass(&f, RTR_PLAN_ROLE_PREFILL, 0, 8);
    assert_int_equal(more(&f, RTR_PLAN_ROLE_PREFILL), 0);
    assert_int_equal(more(&f, RTR_PLAN_ROLE_DECODE), 1);
    assert_text_contains(reason(&f, RTR_PLAN_ROLE_DECODE), "wait for room");
}

TEST(a_long_queue_and_one_that_grows)
{
    fixture f = fresh();
    load(&f, RTR_PLAN_ROLE_PREFILL)->queue = 8; /* as many as may wait */
    pass_quiet(&f, 4);
    assert_int_equal(more(&f, RTR_PLAN_ROLE_PREFILL), 0);
    load(&f, RTR_PLAN_ROLE_PREFILL)->queue = 9;
    pass_quiet(&f, 3);
    assert_int_equal(more(&f, RTR_PLAN_ROLE_PREFILL), 1);
    assert_text_contains(reason(&f, RTR_PLAN_ROLE_PREFILL), "9.0 requests wait, over 4 for each");
    f = fresh();
    for (uint32_t queue = 2; queue <= 6; queue += 2) { /* 2, 4, 6: below what may wait */
        load(&f, RTR_PLAN_ROLE_DECODE)->queue = queue;
        pass_quiet(&f, 1);
    }
    assert_int_equal(more(&f, RTR_PLAN_ROLE_DECODE), 1);
    assert_text_contains(reason(&f, RTR_PLAN_ROLE_DECODE), "4.0 in the window before");
    pass_quiet(&f, 1); /* it grows no more */
    assert_int_equal(more(&f, RTR_PLAN_ROLE_DECODE), 0);
}

TEST(idle_nodes_go_later_and_not_the_last)
{
    fixture f = fresh();
    load(&f, RTR_PLAN_ROLE_DECODE)->busy = 0.2; /* one alone: 0.4 */
    pass_quiet(&f, 3 * RTR_PLAN_IDLE_TIMES - 1);
    assert_int_equal(more(&f, RTR_PLAN_ROLE_DECODE), 0);
    pass_quiet(&f, 1);
    assert_int_equal(more(&f, RTR_PLAN_ROLE_DECODE), -1);
    assert_text_contains(reason(&f, RTR_PLAN_ROLE_DECODE), "one node less would be 40% busy");
    f.options.bounds[RTR_PLAN_ROLE_DECODE].min = 2;
    pass_quiet(&f, 1);
    assert_int_equal(more(&f, RTR_PLAN_ROLE_DECODE), 0);
    assert_text_contains(reason(&f, RTR_PLAN_ROLE_DECODE), "no fewer than 2");
    f = fresh();
    for (int i = 0; i < RTR_PLAN_ROLE_COUNT; i++)
        f.event.roles[i] = (rtr_plan_load){.nodes = 1, .wanted = 1};
    f.plan = (rtr_plan){0};
    f.options.bounds[RTR_PLAN_ROLE_DECODE].min = 0;
    assert_false(look(&f, LOOK));
    pass_quiet(&f, 5 * 3 * RTR_PLAN_IDLE_TIMES);
    assert_int_equal(more(&f, RTR_PLAN_ROLE_DECODE), 0);
    assert_int_equal(more(&f, RTR_PLAN_ROLE_PREFILL), 0);
}

TEST(no_role_shrinks_while_the_other_is_late)
{
    fixture f = fresh();
    load(&f, RTR_PLAN_ROLE_DECODE)->busy = 0.1;
    pass_quiet(&f, 3 * RTR_PLAN_IDLE_TIMES - 1);
    pass(&f, RTR_PLAN_ROLE_PREFILL, 0, 9);
    assert_int_equal(more(&f, RTR_PLAN_ROLE_DECODE), 0);
    assert_text_contains(reason(&f, RTR_PLAN_ROLE_DECODE), "the other role is late");
    pass(&f, RTR_PLAN_ROLE_PREFILL, 9, 0);
    assert_int_equal(more(&f, RTR_PLAN_ROLE_DECODE), -1);
}

TEST(at_the_most_it_only_tells)
{
    fixture f = fresh();
    f.options.bounds[RTR_PLAN_ROLE_PREFILL].max = 2;
    load(&f, RTR_PLAN_ROLE_PREFILL)->queue = 100;
    pass_quiet(&f, 5);
    assert_int_equal(more(&f, RTR_PLAN_ROLE_PREFILL), 0);
    assert_text_contains(reason(&f, RTR_PLAN_ROLE_PREFILL), "no more than 2");
}

/* What happens to the nodes, by whomever, is followed by a pause and all windows again. */
TEST(a_change_pauses)
{
    fixture f = fresh();
    load(&f, RTR_PLAN_ROLE_PREFILL)->queue = 100;
    pass_quiet(&f, 3);
    assert_int_equal(more(&f, RTR_PLAN_ROLE_PREFILL), 1);
    load(&f, RTR_PLAN_ROLE_PREFILL)->wanted = 3; /* it was done */
    assert_false(look(&f, LOOK));
    assert_int_equal(more(&f, RTR_PLAN_ROLE_PREFILL), 0);
    for (int i = 0; i < 100; i++) { /* however long it takes */
        assert_false(look(&f, WINDOW));
        assert_text_contains(reason(&f, RTR_PLAN_ROLE_DECODE), "not as many nodes as wanted");
    }
    load(&f, RTR_PLAN_ROLE_PREFILL)->nodes = 3;
    assert_false(look(&f, LOOK));
    assert_text_contains(reason(&f, RTR_PLAN_ROLE_PREFILL), "a node has come");
    assert_false(look(&f, PAUSE - 1));
    assert_false(look(&f, 1)); /* the first that counts */
    assert_false(look(&f, WINDOW - 2));
    assert_true(look(&f, 1)); /* its window began with the last look of the pause */
    assert_int_equal(f.plan.counts[RTR_PLAN_ROLE_PREFILL].late, 1);
    pass_quiet(&f, 2);
    assert_int_equal(more(&f, RTR_PLAN_ROLE_PREFILL), 1);
}

TEST(ill_and_lost_nodes_pause)
{
    fixture f = fresh();
    load(&f, RTR_PLAN_ROLE_DECODE)->queue = 100;
    pass_quiet(&f, 2);
    load(&f, RTR_PLAN_ROLE_PREFILL)->ill = 1;
    for (int i = 0; i < 50; i++)
        assert_false(look(&f, WINDOW));
    assert_text_contains(reason(&f, RTR_PLAN_ROLE_DECODE), "a node is ill");
    load(&f, RTR_PLAN_ROLE_PREFILL)->ill = 0;
    assert_false(look(&f, PAUSE - 1));
    assert_false(look(&f, 1));
    assert_int_equal(f.plan.counts[RTR_PLAN_ROLE_DECODE].late, 0);
    load(&f, RTR_PLAN_ROLE_DECODE)->nodes = load(&f, RTR_PLAN_ROLE_DECODE)->wanted = 1;
    assert_false(look(&f, LOOK));
    assert_text_contains(reason(&f, RTR_PLAN_ROLE_DECODE), "a node has gone");
    assert_false(look(&f, PAUSE - 1));
}

TEST(routers_that_come_and_go_are_no_load)
{
    fixture f = fresh();
    f.event.routers = 2;
    load(&f, RTR_PLAN_ROLE_DECODE)->missed = 1000; /* of the one that has come */
    assert_false(look(&f, LOOK));
    assert_text_contains(reason(&f, RTR_PLAN_ROLE_DECODE), "a router has come or gone");
    assert_false(look(&f, PAUSE - 1));
    load(&f, RTR_PLAN_ROLE_DECODE)->missed = 3; /* it was started again, unseen */
    for (int i = 0; i < 3; i++)
        pass(&f, RTR_PLAN_ROLE_DECODE, 9, 0);
    assert_int_equal(f.plan.counts[RTR_PLAN_ROLE_DECODE].late, 0);
}

TEST(who_sees_nobody_judges_nothing)
{
    fixture f = fresh();
    load(&f, RTR_PLAN_ROLE_DECODE)->queue = 100;
    pass_quiet(&f, 3);
    assert_int_equal(more(&f, RTR_PLAN_ROLE_DECODE), 1);
    f.event.blind = true;
    assert_false(look(&f, LOOK));
    assert_int_equal(more(&f, RTR_PLAN_ROLE_DECODE), 0);
    f.event.blind = false;
    assert_false(look(&f, LOOK));
    pass_quiet(&f, 2);
    assert_int_equal(more(&f, RTR_PLAN_ROLE_DECODE), 0);
    pass_quiet(&f, 1);
    assert_int_equal(more(&f, RTR_PLAN_ROLE_DECODE), 1);
}

TEST(a_role_without_nodes_is_left_alone)
{
    fixture f = fresh();
    f.plan = (rtr_plan){0};
    *load(&f, RTR_PLAN_ROLE_PREFILL) = (rtr_plan_load){.queue = 50};
    load(&f, RTR_PLAN_ROLE_DECODE)->queue = 50;
    assert_false(look(&f, LOOK));
    pass_quiet(&f, 4);
    assert_int_equal(more(&f, RTR_PLAN_ROLE_PREFILL), 0);
    assert_text_contains(reason(&f, RTR_PLAN_ROLE_PREFILL), "no node of its own");
    assert_int_equal(more(&f, RTR_PLAN_ROLE_DECODE), 1);
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(late_first_tokens_ask_for_prefill),
    cmocka_unit_test(a_good_window_begins_the_count_anew),
    cmocka_unit_test(first_tokens_that_wait_for_room_ask_for_decode),
    cmocka_unit_test(a_long_queue_and_one_that_grows),
    cmocka_unit_test(idle_nodes_go_later_and_not_the_last),
    cmocka_unit_test(no_role_shrinks_while_the_other_is_late),
    cmocka_unit_test(at_the_most_it_only_tells),
    cmocka_unit_test(a_change_pauses),
    cmocka_unit_test(ill_and_lost_nodes_pause),
    cmocka_unit_test(routers_that_come_and_go_are_no_load),
    cmocka_unit_test(who_sees_nobody_judges_nothing),
    cmocka_unit_test(a_role_without_nodes_is_left_alone),
};
TEST_MAIN(TESTS)
