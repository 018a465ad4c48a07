/* Is each rank compared with its own instance, by what it did of late? */
#include "cli/rank_loads.h"

#include "tests/unit/test.h"

static ctl_rank rank(const char *instance, uint64_t incarnation, uint64_t rows)
{
    ctl_rank r = {.incarnation = incarnation, .rows = rows};
    snprintf(r.instance, sizeof r.instance, "%s", instance);
    return r;
}

static void assert_load(const ctl_rank *r, double load)
{
    assert_true(r->load > load - 1e-9 && r->load < load + 1e-9);
}

TEST(each_instance_has_a_mean_of_its_own)
{
    ctl_ranks_seen seen = {0};
    ctl_rank ranks[] = {rank("a", 1, 30), rank("b", 2, 500), rank("a", 3, 10), rank("", 4, 99),
                        rank("b", 5, 500)};
    ctl_rank_loads(ranks, 5, &seen);
    assert_load(&ranks[0], 1.5);
    assert_load(&ranks[2], 0.5);
    assert_load(&ranks[1], 1);
    assert_load(&ranks[4], 1);
    assert_load(&ranks[3], -1);
    assert_int_equal(seen.count, 4);
}

TEST(what_was_done_since_the_look_before)
{
    ctl_ranks_seen seen = {0};
    ctl_rank first[] = {rank("a", 1, 1000), rank("a", 2, 10)};
    ctl_rank_loads(first, 2, &seen);
    ctl_rank then[] = {rank("a", 2, 40), rank("a", 1, 1010)}; /* in another order */
    ctl_rank_loads(then, 2, &seen);
    assert_load(&then[0], 1.5);
    assert_load(&then[1], 0.5);
    ctl_rank_loads(then, 2, &seen); /* nothing was done */
    assert_load(&then[0], -1);
    ctl_rank again[] = {rank("a", 7, 20), rank("a", 1, 1030)}; /* one was started again */
    ctl_rank_loads(again, 2, &seen);
    assert_load(&again[0], 1);
    assert_load(&again[1], 1);
}

TEST(more_than_are_remembered)
{
    enum { COUNT = CTL_RANKS_SEEN_MAX + 2 };
    ctl_ranks_seen *seen = sl_alloc(1, sizeof *seen, "seen");
    ctl_rank *ranks = sl_alloc(COUNT, sizeof *ranks, "ranks");
    for (uint32_t i = 0; i < COUNT; i++)
        ranks[i] = rank("a", i + 1, 5);
    ctl_rank_loads(ranks, COUNT, seen);
    assert_load(&ranks[COUNT - 1], 1);
    assert_int_equal(seen->count, CTL_RANKS_SEEN_MAX);
    for (uint32_t i = 0; i < COUNT; i++)
        ranks[i].rows = 10;
    ctl_rank_loads(ranks, COUNT, seen);
    assert_true(ranks[COUNT - 1].load > ranks[0].load); /* by all that it has done */
    sl_free(ranks);
    sl_free(seen);
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(each_instance_has_a_mean_of_its_own),
    cmocka_unit_test(what_was_done_since_the_look_before),
    cmocka_unit_test(more_than_are_remembered),
};
TEST_MAIN(TESTS)
