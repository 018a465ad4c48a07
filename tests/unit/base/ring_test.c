/* Ring and mailbox, alone and between two threads (run under the thread sanitizer too). */
#include "tests/unit/test.h"

#include <poll.h>
#include <pthread.h>
#include <sched.h>

#include "base/clock.h"
#include "base/ring.h"

TEST(ring_is_fifo_and_refuses_when_full)
{
    sl_ring *ring = sl_ring_create(sizeof(int), 4);
    int item;
    assert_false(sl_ring_pop(ring, &item));
    for (int round = 0; round < 10; round++) {
        for (int i = 0; i < 4; i++) {
            item = round * 10 + i;
            assert_true(sl_ring_push(ring, &item));
        }
        assert_int_equal(sl_ring_count(ring), 4);
        assert_false(sl_ring_push(ring, &item));
        for (int i = 0; i < 4; i++) {
            assert_true(sl_ring_pop(ring, &item));
            assert_int_equal(item, round * 10 + i);
        }
        assert_false(sl_ring_pop(ring, &item));
        assert_int_equal(sl_ring_count(ring), 0);
    }
    sl_ring_destroy(ring);
    sl_ring_destroy(NULL);
}

TEST(ring_of_one)
{
    sl_ring *ring = sl_ring_create(3, 1);
    char item[3];
    assert_true(sl_ring_push(ring, "ab"));
    assert_false(sl_ring_push(ring, "cd"));
    assert_true(sl_ring_pop(ring, item));
    assert_string_equal(item, "ab");
    sl_ring_destroy(ring);
}

static bool readable(int fd)
{
    struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
    return poll(&poll_fd, 1, 0) == 1;
}

TEST(mailbox_descriptor_tells_when)
{
    sl_err err;
    sl_mailbox *mailbox;
    int item = 1;
    assert_ok(sl_mailbox_create(sizeof(item), 8, &mailbox, &err), &err);
    int fd = sl_mailbox_fd(mailbox);
    assert_false(readable(fd));
    assert_true(sl_mailbox_push(mailbox, &item));
    assert_true(readable(fd));
    sl_mailbox_clear(mailbox);
    assert_false(readable(fd));
    assert_true(sl_mailbox_push(mailbox, &item)); /* not empty: no second wake-up is needed */
    assert_false(readable(fd));
    assert_true(sl_mailbox_pop(mailbox, &item));
    assert_true(sl_mailbox_pop(mailbox, &item));
    assert_false(sl_mailbox_pop(mailbox, &item));
    assert_true(sl_mailbox_push(mailbox, &item));
    assert_true(readable(fd));
    sl_mailbox_clear(mailbox);
    sl_mailbox_clear(mailbox); /* nothing to clear does not block */
    sl_mailbox_wake(mailbox);
    assert_true(readable(fd));
    sl_mailbox_destroy(mailbox);
    sl_mailbox_destroy(NULL);
}

TEST(mailbox_wait_keeps_its_deadline)
{
    sl_err err;
    sl_mailbox *mailbox;
    int item = 1;
    assert_ok(sl_mailbox_create(sizeof(item), 8, &mailbox, &err), &err);
    sl_time_ns until = sl_now_ns() + 5 * SL_MS_NS;
    sl_mailbox_wait(mailbox, until);
    assert_true(sl_now_ns() >= until);
    sl_mailbox_wait(mailbox, 0);
    assert_true(sl_mailbox_push(mailbox, &item));
    sl_mailbox_wait(mailbox, SL_NEVER); /* must return at once */
    assert_true(sl_mailbox_pop(mailbox, &item));
    sl_mailbox_wake(mailbox);
    sl_mailbox_wait(mailbox, SL_NEVER);
    sl_mailbox_destroy(mailbox);
}

#define ITEMS 200000

typedef struct message {
    uint64_t number, square;
} message;

static void *produce(void *context)
{
    sl_mailbox *mailbox = context;
    for (uint64_t i = 1; i <= ITEMS; i++) {
        message m = {i, i * i};
        while (!sl_mailbox_push(mailbox, &m))
            sched_yield();
    }
    return NULL;
}

/* A lost wake-up would hang here for ever: the consumer sleeps without a deadline. */
TEST(mailbox_between_threads_loses_nothing)
{
    sl_err err;
    sl_mailbox *mailbox;
    pthread_t thread;
    assert_ok(sl_mailbox_create(sizeof(message), 64, &mailbox, &err), &err);
    assert_int_equal(pthread_create(&thread, NULL, produce, mailbox), 0);
    uint64_t next = 1;
    while (next <= ITEMS) {
        message m;
        struct pollfd poll_fd = {.fd = sl_mailbox_fd(mailbox), .events = POLLIN};
        if (next % 2)
            assert_true(poll(&poll_fd, 1, -1) == 1);
        else
            sl_mailbox_wait(mailbox, SL_NEVER);
        sl_mailbox_clear(mailbox);
        while (sl_mailbox_pop(mailbox, &m)) {
            if (m.number != next || m.square != next * next)
                fail_msg("got %llu, want %llu", (unsigned long long)m.number,
                         (unsigned long long)next);
            next++;
        }
    }
    pthread_join(thread, NULL);
    sl_mailbox_destroy(mailbox);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(ring_is_fifo_and_refuses_when_full),
    cmocka_unit_test(ring_of_one),
    cmocka_unit_test(mailbox_descriptor_tells_when),
    cmocka_unit_test(mailbox_wait_keeps_its_deadline),
    cmocka_unit_test(mailbox_between_threads_loses_nothing),
};
TEST_MAIN(tests)
