/* The order of service: total, lower priority numbers first, then who came first. */
#include "decode/rank.h"

#include "base/rng.h"
#include "tests/unit/test.h"

TEST(the_first_gets_the_last_gives)
{
    const dec_claim claims[] = {
        {{0, 5}, false}, {{-1, 9}, false}, {{0, 2}, true}, {{7, 1}, true}, {{7, 3}, false},
    };
    assert_int_equal(dec_claim_first_lacking(claims, 5), 2);
    assert_int_equal(dec_claim_victim(claims, 5), 4);
    assert_int_equal(dec_claim_victim(claims, 4), 3); /* the one that lacks gives way itself */
    assert_int_equal(dec_claim_first_lacking(claims, 2), DEC_NOBODY);
    assert_int_equal(dec_claim_victim(claims, 1), DEC_NOBODY);
    assert_int_equal(dec_claim_victim(claims, 0), DEC_NOBODY);
    assert_true(dec_rank_before((dec_rank){INT32_MIN, 9}, (dec_rank){INT32_MAX, 0}));
    assert_false(dec_rank_before((dec_rank){1, 1}, (dec_rank){1, 1}));
}

/* Pages, sequences that want more now and then, and the rule: somebody always goes on, and the
 * first in rank never waits while another has more than it. */
TEST(somebody_always_goes_on)
{
    enum { COUNT = 12, PAGES = 9, STEPS = 5000 };
    for (uint64_t seed = 0; seed < 20; seed++) {
        struct {
            dec_rank rank;
            uint32_t held, wanted, done;
        } all[COUNT];
        uint32_t free_pages = PAGES, left = COUNT, steps = 0;
        for (uint32_t i = 0; i < COUNT; i++) {
            all[i].rank = (dec_rank){(int32_t)(sl_keyed_uniform(seed, i, 1) * 3), i};
            all[i].wanted = 1 + (uint32_t)(sl_keyed_uniform(seed, i, 2) * PAGES);
            all[i].held = all[i].done = 0;
        }
        for (; left > 0 && steps < STEPS; steps++) {
            dec_claim claims[COUNT];
            uint32_t index[COUNT], count = 0;
            for (uint32_t i = 0; i < COUNT; i++) {
                if (all[i].done || (all[i].held == 0 && free_pages == 0))
                    continue;
                if (all[i].held == 0) {
                    all[i].held = 1;
                    free_pages--;
                }
                index[count] = i;
                claims[count++] = (dec_claim){all[i].rank, all[i].held < all[i].wanted};
            }
            assert_true(count > 0);
            uint32_t first = dec_claim_first_lacking(claims, count);
            for (uint32_t i = 0; i < count; i++) { /* those that have all they want end */
                uint32_t at = index[i];
                if (claims[i].lacks)
                    continue;
                free_pages += all[at].held;
                all[at].held = 0;
                all[at].done = 1;
                left--;
            }
            if (first == DEC_NOBODY)
                continue;
            if (free_pages == 0) {
                uint32_t victim = dec_claim_victim(claims, count);
                assert_true(victim != DEC_NOBODY);
                assert_false(dec_rank_before(claims[victim].rank, claims[first].rank));
                free_pages += all[index[victim]].held;
                all[index[victim]].held = 0;
                if (victim == first)
                    continue;
            }
            free_pages--;
            all[index[first]].held++;
        }
        assert_int_equal(left, 0);
        assert_int_equal(free_pages, PAGES);
    }
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(the_first_gets_the_last_gives),
    cmocka_unit_test(somebody_always_goes_on),
};
TEST_MAIN(TESTS)
