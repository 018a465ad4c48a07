/* Offers to read on their way: which go together, places, what a sender that lies is refused. */
#include "kvtransfer/reads.h"
#include "tests/unit/test.h"

static kvt_read_offers ring_offers, queue_offers;
static kvt_read_ring ring;
static kvt_read_queue queue;
static uint8_t memory[16];

static kvt_request *request_of(uint32_t number)
{
    return (kvt_request *)(uintptr_t)(0x1000 + number * 16);
}

static void start(void)
{
    kvt_read_ring_init(&ring, &ring_offers);
    queue = (kvt_read_queue){.offers = &queue_offers};
}

/* Its number is in the head. */
static void offer(uint32_t number, uint64_t bytes)
{
    uint8_t head[KVT_WIRE_PIECE_SIZE] = {(uint8_t)number, (uint8_t)(number >> 8)};
    assert_true(kvt_read_ring_free(&ring));
    kvt_read_ring_add(&ring, head, memory, bytes, request_of(number));
}

/* The unsent go to the queue; how many. */
static uint32_t carry(void)
{
    bool *busy;
    uint32_t unsent = ring.unsent;
    sl_span message = kvt_read_ring_take(&ring, &busy);
    assert_false(*busy);
    assert_int_equal(message.size, unsent * KVT_WIRE_READ_SIZE);
    assert_true(kvt_read_queue_put(&queue, message.data, message.size));
    return unsent;
}

static void assert_taken(uint32_t first, uint32_t count)
{
    kvt_read_offer got[KVT_WIRE_READS_MAX];
    assert_int_equal(kvt_read_queue_take(&queue, got), count);
    for (uint32_t i = 0; i < count; i++) {
        assert_int_equal(got[i].place, (first + i) % KVT_WINDOW_READS);
        assert_int_equal(got[i].head[0] | got[i].head[1] << 8, first + i);
        assert_int_equal(got[i].address, (uintptr_t)memory);
        assert_ptr_equal(kvt_read_ring_done(&ring, got[i].place), request_of(first + i));
        assert_null(kvt_read_ring_done(&ring, got[i].place)); /* said twice */
    }
}

TEST(small_pieces_go_and_are_read_together)
{
    start();
    for (uint32_t i = 0; i < 5; i++) {
        assert_false(kvt_read_ring_full(&ring, 4096));
        offer(i, 4096);
    }
    assert_int_equal(carry(), 5);
    offer(5, 4096);
    assert_int_equal(carry(), 1);
    assert_taken(0, 6); /* two messages, one call */
    assert_taken(6, 0);
}

TEST(a_message_is_bounded)
{
    start();
    for (uint32_t i = 0; i < KVT_WIRE_READS_MAX; i++) {
        assert_false(kvt_read_ring_full(&ring, 8));
        offer(i, 8);
    }
    assert_true(kvt_read_ring_full(&ring, 8));
    assert_int_equal(carry(), KVT_WIRE_READS_MAX);
    offer(KVT_WIRE_READS_MAX, 8);
    carry();
    assert_taken(0, KVT_WIRE_READS_MAX);
    assert_taken(KVT_WIRE_READS_MAX, 1);
}

TEST(large_pieces_go_and_are_read_alone)
{
    start();
    assert_false(kvt_read_ring_full(&ring, KVT_READS_BYTES + 1)); /* nothing else is there */
    offer(0, KVT_READS_BYTES + 1);
    assert_true(kvt_read_ring_full(&ring, 8));
    carry();
    offer(1, KVT_READS_BYTES - 8);
    assert_false(kvt_read_ring_full(&ring, 8));
    offer(2, 8);
    assert_true(kvt_read_ring_full(&ring, 8));
    carry();
    offer(3, 8);
    carry();
    assert_taken(0, 1);
    assert_taken(1, 2);
    assert_taken(3, 1);
}

/* Places come back in the order of their messages; none is used twice. */
TEST(the_window_is_the_ring)
{
    start();
    for (uint32_t i = 0; i < KVT_WINDOW_READS; i++) {
        if (kvt_read_ring_full(&ring, 8))
            carry();
        offer(i, 8);
    }
    assert_true(kvt_read_ring_full(&ring, 8)); /* a message does not wrap */
    carry();
    assert_false(kvt_read_ring_free(&ring));
    for (uint32_t i = 0; i < KVT_WINDOW_READS; i += KVT_WIRE_READS_MAX)
        assert_taken(i, KVT_WIRE_READS_MAX);
    offer(KVT_WINDOW_READS, 8); /* the first place again */
    carry();
    assert_taken(KVT_WINDOW_READS, 1);
}

/* Else a dead receiver's FIFO would be full of them. */
TEST(one_by_one_the_window_is_narrow)
{
    start();
    for (uint32_t i = 0; i < KVT_WINDOW_PIECES; i++) {
        assert_int_equal(kvt_read_ring_window(&ring, i), KVT_WINDOW_READS);
        offer(i, 8);
        carry();
    }
    assert_int_equal(kvt_read_ring_window(&ring, KVT_WINDOW_PIECES), KVT_WINDOW_PIECES);
    assert_taken(0, KVT_WIRE_READS_MAX);
    assert_int_equal(kvt_read_ring_window(&ring, KVT_WINDOW_PIECES - KVT_WIRE_READS_MAX),
                     KVT_WINDOW_READS);
    /* Those that went another way count as messages. */
    assert_int_equal(kvt_read_ring_window(&ring, KVT_WINDOW_PIECES), KVT_WINDOW_PIECES);
}

TEST(a_message_being_sent_keeps_its_place)
{
    bool *busy;
    kvt_request *done;
    start();
    offer(0, 8);
    sl_span message = kvt_read_ring_take(&ring, &busy);
    *busy = true;
    done = kvt_read_ring_done(&ring, 0); /* by a receiver that cannot know it yet */
    assert_ptr_equal(done, request_of(0));
    ring.next = 0;
    assert_false(kvt_read_ring_free(&ring));
    *busy = false;
    assert_true(kvt_read_ring_free(&ring));
    assert_int_equal(message.size, KVT_WIRE_READ_SIZE);
}

TEST(more_than_the_window_is_refused)
{
    uint8_t message[KVT_WIRE_READ_SIZE], head[KVT_WIRE_PIECE_SIZE] = {0};
    kvt_read_offer got[KVT_WIRE_READS_MAX];
    start();
    kvt_wire_pack_read(&(kvt_read_offer){7, 0, 8, head}, message);
    for (uint32_t i = 0; i < KVT_WINDOW_READS; i++)
        assert_true(kvt_read_queue_put(&queue, message, sizeof message));
    assert_false(kvt_read_queue_put(&queue, message, sizeof message));
    assert_int_equal(kvt_read_queue_take(&queue, got), 1); /* no row of places */
    assert_true(kvt_read_queue_put(&queue, message, sizeof message));
    assert_false(kvt_read_queue_put(&queue, message, sizeof message - 1));
    assert_false(kvt_read_queue_put(&queue, message, 0));
}

/* D's: one call; how many pieces it had. */
static uint32_t read_one(kvt_read_untold *untold)
{
    kvt_read_offer got[KVT_WIRE_READS_MAX];
    uint32_t count = kvt_read_queue_take(&queue, got);
    if (count > 0)
        kvt_read_untold_add(untold, got, count);
    return count;
}

static void assert_due(kvt_read_untold *untold, uint32_t place, uint32_t count)
{
    assert_true(kvt_read_untold_due(untold, &queue));
    assert_int_equal(untold->taken.place, place);
    assert_int_equal(untold->taken.count, count);
    *untold = (kvt_read_untold){.bytes = 0};
    assert_false(kvt_read_untold_due(untold, &queue));
}

TEST(answers_wait_while_more_is_there)
{
    kvt_read_untold untold = {.bytes = 0};
    start();
    assert_false(kvt_read_untold_due(&untold, &queue));
    for (uint32_t i = 0; i < 3 * KVT_WIRE_READS_MAX; i++) {
        if (kvt_read_ring_full(&ring, 8))
            carry();
        offer(i, 8);
    }
    carry();
    assert_int_equal(read_one(&untold), KVT_WIRE_READS_MAX);
    assert_false(kvt_read_untold_due(&untold, &queue));
    assert_int_equal(read_one(&untold), KVT_WIRE_READS_MAX);
    assert_due(&untold, 0, KVT_WINDOW_READS / 4); /* P needs its places */
    assert_int_equal(read_one(&untold), KVT_WIRE_READS_MAX);
    assert_due(&untold, 2 * KVT_WIRE_READS_MAX, KVT_WIRE_READS_MAX); /* all is read */
}

TEST(answers_wait_for_bytes_of_the_window)
{
    kvt_read_untold untold = {.bytes = 0};
    start();
    offer(0, KVT_WINDOW_BYTES / 4 - 1);
    offer(1, 1);
    offer(2, 8);
    carry();
    queue.count = 1; /* as if the others came by messages of their own */
    assert_int_equal(read_one(&untold), 1);
    queue.count = 2;
    assert_false(kvt_read_untold_due(&untold, &queue));
    queue.count = 1;
    assert_int_equal(read_one(&untold), 1);
    queue.count = 1;
    assert_due(&untold, 0, 2);
}

/* A run ends with the ring, and where a sender that lies goes on elsewhere. */
TEST(answers_name_places_in_a_row)
{
    static const struct {
        uint32_t place, next;
    } cases[] = {{KVT_WINDOW_READS - 1, 0}, {7, 7}, {7, 9}, {7, 6}};
    uint8_t message[KVT_WIRE_READ_SIZE], head[KVT_WIRE_PIECE_SIZE] = {0};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        kvt_read_untold untold = {.bytes = 0};
        start();
        kvt_wire_pack_read(&(kvt_read_offer){cases[i].place, 0, 8, head}, message);
        assert_true(kvt_read_queue_put(&queue, message, sizeof message));
        kvt_wire_pack_read(&(kvt_read_offer){cases[i].next, 0, 8, head}, message);
        assert_true(kvt_read_queue_put(&queue, message, sizeof message));
        assert_int_equal(read_one(&untold), 1);
        assert_due(&untold, cases[i].place, 1);
        assert_int_equal(read_one(&untold), 1);
        assert_due(&untold, cases[i].next, 1);
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(small_pieces_go_and_are_read_together),
    cmocka_unit_test(a_message_is_bounded),
    cmocka_unit_test(large_pieces_go_and_are_read_alone),
    cmocka_unit_test(the_window_is_the_ring),
    cmocka_unit_test(one_by_one_the_window_is_narrow),
    cmocka_unit_test(a_message_being_sent_keeps_its_place),
    cmocka_unit_test(more_than_the_window_is_refused),
    cmocka_unit_test(answers_wait_while_more_is_there),
    cmocka_unit_test(answers_wait_for_bytes_of_the_window),
    cmocka_unit_test(answers_name_places_in_a_row),
};

TEST_MAIN(tests)
