/* Is what is computed again bounded, and does nobody wait for ever? */
#include "router/budget.h"

#include "tests/unit/test.h"

TEST(a_burst_then_the_rate)
{
    rtr_budget b = {.tokens_per_s = 1000};
    sl_time_ns now = 50 * SL_S_NS;
    for (int i = 0; i < 5; i++) /* 4 s of the rate, and one more while there is something left */
        assert_true(rtr_budget_take(&b, 1000, now));
    assert_false(rtr_budget_take(&b, 1, now));
    assert_int_equal(rtr_budget_next(&b), now + SL_S_NS);
    assert_false(rtr_budget_take(&b, 1, now + SL_S_NS - 1));
    assert_true(rtr_budget_take(&b, 1000, now + SL_S_NS));
    assert_false(rtr_budget_take(&b, 1, now + SL_S_NS));
    assert_true(rtr_budget_take(&b, 1000, now + 100 * SL_S_NS));
    assert_true(rtr_budget_next(&b) <= now + 100 * SL_S_NS);
}

TEST(no_request_is_too_large)
{
    rtr_budget b = {.tokens_per_s = 1000};
    assert_true(rtr_budget_take(&b, 100000, SL_S_NS));
    assert_false(rtr_budget_take(&b, 1, 96 * SL_S_NS));
    assert_true(rtr_budget_take(&b, 1, 97 * SL_S_NS));
}

TEST(without_a_rate_all_may_go)
{
    rtr_budget b = {.tokens_per_s = 0};
    for (int i = 0; i < 1000; i++)
        assert_true(rtr_budget_take(&b, 1u << 20, 1));
    assert_int_equal(rtr_budget_next(&b), 0);
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(a_burst_then_the_rate),
    cmocka_unit_test(no_request_is_too_large),
    cmocka_unit_test(without_a_rate_all_may_go),
};
TEST_MAIN(TESTS)
