/* The order of those that wait, and how often one may be overtaken. */
#include "router/queue.h"

#include "base/rng.h"
#include "router/limits.h"
#include "tests/unit/test.h"

TEST(by_priority_then_age)
{
    enum { COUNT = 40 };
    rtr_queue queue = {0};
    rtr_waiter all[COUNT] = {0};
    for (uint32_t step = 0; step < 4000; step++) {
        rtr_waiter *waiter = &all[(uint32_t)(sl_keyed_uniform(1, step, 1) * COUNT)];
        if (waiter->queued) {
            rtr_queue_remove(&queue, waiter);
        } else {
            if (waiter->since == 0) /* it keeps its place when it comes again */
                *waiter = (rtr_waiter){.since = step + 1,
                                       .priority = (int32_t)(sl_keyed_uniform(1, step, 2) * 3) - 1};
            rtr_queue_insert(&queue, waiter);
            rtr_queue_insert(&queue, waiter); /* again: nothing */
        }
        uint32_t count = 0;
        for (rtr_waiter *at = queue.first; at; at = at->next, count++) {
            assert_true(at->next ? at->next->prev == at : queue.last == at);
            if (at->next)
                assert_true(at->priority < at->next->priority ||
                            (at->priority == at->next->priority && at->since < at->next->since));
        }
        assert_int_equal(count, queue.count);
    }
}

TEST(overtaking_is_bounded)
{
    rtr_queue queue = {0};
    rtr_waiter big = {.since = 1, .lacks_room = true}, urgent = {.priority = -1, .since = 50};
    rtr_queue_insert(&queue, &big);
    for (uint32_t i = 0; i < RTR_OVERTAKEN_MAX; i++) {
        rtr_waiter small = {.since = 2 + i}; /* found a place at once: never queued */
        assert_false(rtr_queue_must_wait(&queue, &small));
        rtr_queue_note_placed(&queue, &small);
    }
    rtr_waiter late = {.since = 100};
    rtr_queue_insert(&queue, &late);
    assert_true(rtr_queue_must_wait(&queue, &late));
    assert_false(rtr_queue_must_wait(&queue, &big));
    assert_false(rtr_queue_must_wait(&queue, &urgent)); /* of another priority: not behind it */
    rtr_queue_note_placed(&queue, &urgent);
    assert_int_equal(big.overtaken, RTR_OVERTAKEN_MAX);
    big.lacks_room = false; /* it waits for something else: nobody has to wait for it */
    assert_false(rtr_queue_must_wait(&queue, &late));
    rtr_queue_note_placed(&queue, &late);
    assert_int_equal(big.overtaken, RTR_OVERTAKEN_MAX);
    rtr_queue_remove(&queue, &late);
    rtr_queue_remove(&queue, &late);
    assert_int_equal(queue.count, 1);
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(by_priority_then_age),
    cmocka_unit_test(overtaking_is_bounded),
};
TEST_MAIN(TESTS)
