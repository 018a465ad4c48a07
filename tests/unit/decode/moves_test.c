/* Whom a rank that drains waits for. */
#include "tests/unit/test.h"

#include "decode/moves.h"

TEST(until_it_is_asked_for_or_time_is_up)
{
    static dec_moves moves;
    assert_int_equal(dec_moves_due(&moves), SL_NEVER);
    dec_moves_add(&moves, "r-1", 30);
    dec_moves_add(&moves, "r-2", 20);
    dec_moves_add(&moves, "r-3", 40);
    assert_int_equal(moves.count, 3);
    assert_int_equal(dec_moves_due(&moves), 20);
    dec_moves_remove(&moves, "r-9");
    dec_moves_remove(&moves, "r-3");
    dec_moves_expire(&moves, 19);
    assert_int_equal(moves.count, 2);
    dec_moves_expire(&moves, 20);
    assert_int_equal(dec_moves_due(&moves), 30);
    dec_moves_remove(&moves, "r-1");
    assert_int_equal(moves.count, 0);
}

TEST(full_is_not_waited_for)
{
    static dec_moves moves;
    for (uint32_t i = 0; i < DEC_SEQUENCES_MAX + 1; i++)
        dec_moves_add(&moves, "r", i);
    assert_int_equal(moves.count, DEC_SEQUENCES_MAX);
    dec_moves_remove(&moves, "r");
    assert_int_equal(moves.count, 0);
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(until_it_is_asked_for_or_time_is_up),
    cmocka_unit_test(full_is_not_waited_for),
};
TEST_MAIN(TESTS)
