/* Is a node that fails left alone, probed by one request at a time, and taken back by progress? */
#include "router/breaker.h"

#include "tests/unit/test.h"

static const sl_time_ns T = 100 * SL_S_NS;

TEST(three_failures_in_a_row)
{
    rtr_breaker b = {0};
    assert_false(rtr_breaker_note_failure(&b, false, T));
    assert_false(rtr_breaker_note_failure(&b, false, T));
    assert_false(rtr_breaker_note_progress(&b));
    assert_false(rtr_breaker_note_failure(&b, false, T));
    assert_false(rtr_breaker_note_failure(&b, false, T));
    assert_true(rtr_breaker_allows(&b, T));
    assert_true(rtr_breaker_note_failure(&b, false, T));
    assert_false(rtr_breaker_allows(&b, T + RTR_BREAKER_FIRST_NS - 1));
    assert_true(rtr_breaker_allows(&b, T + RTR_BREAKER_FIRST_NS));
}

TEST(one_probe_at_a_time_with_back_off)
{
    rtr_breaker b = {0};
    sl_time_ns now = T, pause = RTR_BREAKER_FIRST_NS;
    assert_true(rtr_breaker_note_failure(&b, true, now));
    assert_false(rtr_breaker_note_failure(&b, true, now)); /* others that were there */
    for (int i = 0; i < 8; i++) {
        assert_false(rtr_breaker_allows(&b, now + pause - 1));
        now += pause;
        assert_true(rtr_breaker_allows(&b, now));
        rtr_breaker_note_given(&b, now);
        assert_false(rtr_breaker_allows(&b, now));
        assert_false(rtr_breaker_note_failure(&b, true, now));
        pause = 2 * pause < RTR_BREAKER_MAX_NS ? 2 * pause : RTR_BREAKER_MAX_NS;
    }
    assert_int_equal(pause, RTR_BREAKER_MAX_NS);
    now += pause;
    rtr_breaker_note_given(&b, now);
    assert_true(rtr_breaker_note_progress(&b));
    assert_false(rtr_breaker_is_open(&b));
    assert_true(rtr_breaker_allows(&b, now));
}

TEST(a_probe_that_is_never_heard_of_is_followed_by_another)
{
    rtr_breaker b = {0};
    (void)rtr_breaker_note_failure(&b, true, T);
    rtr_breaker_note_given(&b, T); /* the last resort: no probe */
    sl_time_ns now = T + RTR_BREAKER_FIRST_NS;
    rtr_breaker_note_given(&b, now); /* its client hangs up */
    assert_false(rtr_breaker_allows(&b, now + RTR_BREAKER_FIRST_NS - 1));
    assert_true(rtr_breaker_allows(&b, now + RTR_BREAKER_FIRST_NS));
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(three_failures_in_a_row),
    cmocka_unit_test(one_probe_at_a_time_with_back_off),
    cmocka_unit_test(a_probe_that_is_never_heard_of_is_followed_by_another),
};
TEST_MAIN(TESTS)
