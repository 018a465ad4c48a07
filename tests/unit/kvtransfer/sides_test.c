/* The library over real transports, two contexts in one process. Process faults: process_test.c. */
#include <pthread.h>
#include <unistd.h>

#include "tests/unit/kvtransfer/kit_ways.h"

static kit_side p, d;
static kit_side *const both[] = {&p, &d};

static void sides_start(uint32_t pages, uint64_t page_bytes, kvt_options extra)
{
    kit_memory(&p, pages, page_bytes);
    kit_memory(&d, pages, page_bytes);
    kvt_options options = extra;
    options.name = "p0";
    options.listen = NULL;
    kit_create(&p, options);
    options = extra;
    options.name = "d0";
    options.listen = "127.0.0.1:0";
    kit_create(&d, options);
}

static void sides_stop(void)
{
    kit_fini(&p);
    kit_fini(&d);
}

static kvt_transport_kind transport(void)
{
    return getenv("KVT_TEST_SOCKETS") ? KVT_TRANSPORT_TCP : KVT_TRANSPORT_UCX;
}

/* "host:port" as an address of the transport under test. */
static const char *address_of(const char *text)
{
    static char address[KVT_ADDRESS_MAX];
    snprintf(address, sizeof address, "%s%s", transport() == KVT_TRANSPORT_TCP ? "tcp:" : "", text);
    return address;
}

static sl_time_ns in_seconds(uint64_t seconds)
{
    return sl_now_ns() + seconds * SL_S_NS;
}

/* 256 pages x 4 groups = 1,024 pieces, exact; window kept. */
TEST(thousand_pieces_arrive_exactly)
{
    sides_start(256, 262144, (kvt_options){.name = NULL});
    kit_fill(&p, 1);
    kit_shape shape = {
        .first_block = 7, .blocks = 256, .deadline = in_seconds(60), .piece_events = true};
    kvt_nonce nonce = kit_nonce();
    kit_end pe = {0}, de = {0};
    kvt_recv *recv = kit_recv(&d, shape, nonce, &de);
    kvt_send *send = kit_send(&p, shape, kvt_context_address(d.context), nonce, &pe);
    kit_announce_all(&p, send, shape);
    kit_commit_final(send, 256 * 64);
    kit_wait(both, 2, &de.closed, 1);
    kit_wait(both, 2, &pe.closed, 1);
    assert_string_equal(de.text, "");
    assert_int_equal(de.code, SL_OK);
    assert_int_equal(pe.code, SL_OK);
    assert_int_equal(de.pieces, 1024);
    assert_int_equal(de.tokens, 256 * 64);
    assert_true(de.final);
    assert_string_equal((char *)de.payload, "h_final");
    assert_true(kit_equal(&p, &d));
    kvt_stats stats;
    kvt_stats_get(p.context, &stats);
    assert_true(stats.window_bytes_peak <= KVT_WINDOW_BYTES);
    assert_int_equal(stats.bytes_sent, 256 * 262144);
    kvt_send_release(send);
    kvt_recv_release(recv);
    kit_assert_rest(&p);
    kit_assert_rest(&d);
    sides_stop();
}

typedef struct pair {
    kvt_send *send;
    kvt_recv *recv;
    kit_end pe, de;
    kvt_nonce nonce;
} pair;

static void pair_open(pair *t, kit_shape shape)
{
    memset(t, 0, sizeof *t);
    t->nonce = kit_nonce();
    t->recv = kit_recv(&d, shape, t->nonce, &t->de);
    t->send = kit_send(&p, shape, kvt_context_address(d.context), t->nonce, &t->pe);
}

static void pair_wait(pair *t)
{
    kit_wait(both, 2, &t->de.closed, 1);
    kit_wait(both, 2, &t->pe.closed, 1);
}

static void pair_release(pair *t)
{
    kvt_send_release(t->send);
    kvt_recv_release(t->recv);
}

static void assert_rest(void)
{
    kit_assert_rest(&p);
    kit_assert_rest(&d);
}

/* Over a connection that has had time to agree, D reads P's memory itself, and only there. */
static void local_reads_of(uint64_t page_bytes)
{
    kvt_stats stats;
    pair t;
    sides_start(64, page_bytes, (kvt_options){.name = NULL});
    kit_fill(&p, 3);
    kit_shape shape = {.blocks = 64, .deadline = in_seconds(60)};
    sl_time_ns give_up = sl_now_ns() + KIT_WAIT_NS;
    do { /* the first pieces may be faster than the agreement */
        memset(d.memory, 0, d.page_count * d.page_bytes);
        pair_open(&t, shape);
        kit_announce_all(&p, t.send, shape);
        kit_commit_final(t.send, 8);
        pair_wait(&t);
        assert_string_equal(t.de.text, "");
        assert_true(kit_equal(&p, &d));
        pair_release(&t);
        kvt_stats_get(d.context, &stats);
        assert_true(sl_now_ns() < give_up);
    } while (!getenv("KVT_TEST_NO_LOCAL_READS") && stats.pieces_local < 64 * KIT_GROUPS);
    if (getenv("KVT_TEST_NO_LOCAL_READS"))
        assert_int_equal(stats.pieces_local, 0);
    assert_rest();
    sides_stop();
}

/* One piece a call, and many. */
TEST(local_reads_are_used_where_allowed)
{
    local_reads_of(131072);
    local_reads_of(8192);
    local_reads_of(64);
}

/* Every size class: eager, one fragment, many, larger than the window; odd sizes. */
TEST(piece_sizes)
{
    static const uint64_t sizes[] = {8,     64,    4096,   8192,    8200,
                                     42000, 65536, 403456, 3145728, 5242880};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        pair t;
        sides_start(2, 4 * sizes[i], (kvt_options){.name = NULL});
        for (uint32_t g = 0; g < KIT_GROUPS; g++)
            p.slices[g] = d.slices[g] = (kvt_piece_slice){g * sizes[i], sizes[i]};
        kit_fill(&p, i);
        kit_shape shape = {.blocks = 2, .deadline = in_seconds(60)};
        pair_open(&t, shape);
        kit_announce_all(&p, t.send, shape);
        kit_commit_final(t.send, 1);
        pair_wait(&t);
        assert_string_equal(t.de.text, "");
        assert_string_equal(t.pe.text, "");
        assert_true(kit_equal(&p, &d));
        pair_release(&t);
        assert_rest();
        sides_stop();
    }
}

TEST(many_transfers_at_once)
{
    enum { COUNT = 200 };
    static pair t[COUNT];
    sides_start(COUNT, 32768, (kvt_options){.name = NULL});
    kit_fill(&p, 3);
    for (uint32_t i = 0; i < COUNT; i++) {
        kit_shape shape = {.blocks = 1, .page = i, .deadline = in_seconds(60)};
        pair_open(&t[i], shape);
        kit_announce_all(&p, t[i].send, shape);
        kit_commit_final(t[i].send, i);
    }
    for (uint32_t i = 0; i < COUNT; i++) {
        pair_wait(&t[i]);
        assert_int_equal(t[i].de.code, SL_OK);
        assert_int_equal(t[i].pe.code, SL_OK);
        assert_int_equal(t[i].de.tokens, i);
        pair_release(&t[i]);
    }
    assert_true(kit_equal(&p, &d));
    assert_rest();
    sides_stop();
}

TEST(largest_payload)
{
    static uint8_t payload[KVT_PAYLOAD_MAX];
    pair t;
    sl_err err;
    sides_start(1, 4096, (kvt_options){.name = NULL});
    memset(payload, 0x5a, sizeof payload);
    pair_open(&t, (kit_shape){.deadline = in_seconds(60)});
    kvt_commit commit = {.payload = payload, .payload_bytes = sizeof payload};
    assert_ok(kvt_send_commit(t.send, &commit, &err), &err);
    kit_wait(both, 2, &t.pe.commits, 1);
    assert_int_equal(t.de.payload_bytes, sizeof payload);
    assert_memory_equal(t.de.payload, payload, sizeof t.de.payload);
    kit_commit_final(t.send, 1);
    pair_wait(&t);
    assert_int_equal(t.de.code, SL_OK);
    pair_release(&t);
    sides_stop();
}

/* The sender's own sum is wrong: fetched again, then both sides say corrupt. */
TEST(wrong_sum_is_fetched_twice_then_corrupt)
{
    pair t;
    sl_err err;
    kvt_stats stats;
    sides_start(4, 262144, (kvt_options){.name = NULL});
    kit_shape shape = {.blocks = 4, .deadline = in_seconds(60)};
    pair_open(&t, shape);
    assert_ok(kit_announce(&p, t.send, shape, 0, 0, &err), &err);
    assert_ok(kvt_send_announce(t.send, 1, 1, p.memory + p.slices[1].offset, p.slices[1].bytes,
                                12345, &err),
              &err);
    pair_wait(&t);
    assert_int_equal(t.de.code, SL_CORRUPT);
    assert_int_equal(t.pe.code, SL_CORRUPT);
    assert_text_contains(t.de.text, "block 1 group 1");
    kvt_stats_get(d.context, &stats);
    assert_int_equal(stats.sum_mismatches, 2);
    pair_release(&t);
    assert_rest();
    sides_stop();
}

/* What comes back for the first piece may end the transfer before the last is announced. */
static void announce_until_refused(kvt_send *send, kit_shape shape)
{
    sl_err err;
    for (uint32_t row = 0; row < shape.blocks; row++)
        for (uint32_t group = 0; group < KIT_GROUPS; group++) {
            sl_status status = kit_announce(&p, send, shape, row, group, &err);
            if (sl_is_ok(status))
                continue;
            assert_code(status, SL_CONFLICT);
            return;
        }
}

TEST(stale_nonce_is_refused_without_payload)
{
    pair t;
    sides_start(4, 262144, (kvt_options){.name = NULL});
    kit_shape shape = {.blocks = 4, .deadline = in_seconds(60)};
    kit_fill(&p, 4);
    pair_open(&t, shape);
    kvt_recv_revoke(t.recv);
    kit_wait(both, 2, &t.de.closed, 1);
    announce_until_refused(t.send, shape);
    kit_wait(both, 2, &t.pe.closed, 1);
    assert_int_equal(t.pe.code, SL_CONFLICT);
    for (uint64_t i = 0; i < 4 * 262144; i++)
        assert_int_equal(d.memory[i], 0);
    pair_release(&t);
    assert_rest();
    sides_stop();
}

/* 4,096 blocks over 64 pages: long enough to be in the middle of it. */
static void open_long(pair *t, kit_shape *out_shape, uint32_t wanted_pieces)
{
    enum { BLOCKS = 2048 };
    static void *pages[BLOCKS];
    sl_err err;
    kvt_stats stats;
    memset(t, 0, sizeof *t);
    t->nonce = kit_nonce();
    kvt_stats_get(d.context, &stats);
    wanted_pieces += (uint32_t)stats.pieces_received;
    for (uint32_t i = 0; i < BLOCKS; i++)
        pages[i] = kit_page(&d, i % d.page_count);
    kvt_recv_options options = {.nonce = t->nonce,
                                .deadline = in_seconds(60),
                                .block_count = BLOCKS,
                                .group_count = KIT_GROUPS,
                                .pages = pages,
                                .slices = d.slices,
                                .sums = KVT_SUMS_OFF,
                                .cookie = &t->de};
    assert_ok(kvt_recv_open(d.context, &options, &t->recv, &err), &err);
    kit_shape shape = {.blocks = BLOCKS, .deadline = in_seconds(60)};
    t->send = kit_send(&p, shape, kvt_context_address(d.context), t->nonce, &t->pe);
    for (uint32_t i = 0; i < BLOCKS * KIT_GROUPS; i++) {
        const kvt_piece_slice *slice = &p.slices[i % KIT_GROUPS];
        const uint8_t *data = kit_page(&p, i / KIT_GROUPS % p.page_count) + slice->offset;
        assert_ok(
            kvt_send_announce(t->send, i / KIT_GROUPS, i % KIT_GROUPS, data, slice->bytes, 0, &err),
            &err);
    }
    do {
        kvt_stats_get(d.context, &stats);
    } while (stats.pieces_received < wanted_pieces);
    *out_shape = shape;
}

static void assert_pages_stay(void)
{
    kit_fill(&d, 999);
    size_t bytes = d.page_count * d.page_bytes;
    uint8_t *copy = sl_alloc(1, bytes, "copy");
    memcpy(copy, d.memory, bytes);
    /* Another transfer over the same connection: whatever was under way has passed by then. */
    pair t;
    kit_shape shape = {.deadline = in_seconds(60)};
    pair_open(&t, shape);
    kit_commit_final(t.send, 1);
    pair_wait(&t);
    assert_int_equal(t.de.code, SL_OK);
    pair_release(&t);
    assert_memory_equal(copy, d.memory, bytes);
    sl_free(copy);
}

TEST(revoke_amid_fetches_then_pages_are_ours)
{
    pair t;
    kit_shape shape;
    sides_start(64, 262144, (kvt_options){.name = NULL});
    for (int i = 0; i < 5; i++) {
        open_long(&t, &shape, 100);
        kvt_recv_revoke(t.recv);
        kit_wait(both, 2, &t.de.closed, 1);
        assert_int_equal(t.de.code, SL_CANCELLED);
        assert_pages_stay();
        kit_wait(both, 2, &t.pe.closed, 1);
        assert_text_contains(t.pe.text, "revoked by the receiver");
        assert_int_equal(t.pe.code, SL_CANCELLED);
        pair_release(&t);
        assert_rest();
    }
    sides_stop();
}

TEST(cancel_amid_fetches)
{
    pair t;
    kit_shape shape;
    sides_start(64, 262144, (kvt_options){.name = NULL});
    open_long(&t, &shape, 100);
    kvt_send_cancel(t.send);
    pair_wait(&t);
    assert_int_equal(t.pe.code, SL_CANCELLED);
    assert_int_equal(t.de.code, SL_CANCELLED);
    assert_pages_stay();
    pair_release(&t);
    assert_rest();
    sides_stop();
}

/* Destroyed with everything open: the other side hears of it, nothing hangs. */
TEST(destroy_amid_fetches)
{
    pair t;
    kit_shape shape;
    sides_start(64, 262144, (kvt_options){.name = NULL});
    open_long(&t, &shape, 50);
    kvt_context_destroy(p.context);
    p.context = NULL;
    kit_wait((kit_side *const[]){&d}, 1, &t.de.closed, 1);
    assert_int_equal(t.de.code, SL_UNAVAILABLE);
    kvt_recv_release(t.recv);
    kit_assert_rest(&d);
    sides_stop();
}

TEST(window_option_bounds_what_is_in_flight)
{
    pair t;
    kvt_stats stats;
    sides_start(64, 262144, (kvt_options){.window_bytes = 300000});
    kit_fill(&p, 9);
    kit_shape shape = {.blocks = 64, .deadline = in_seconds(60)};
    pair_open(&t, shape);
    kit_announce_all(&p, t.send, shape);
    kit_commit_final(t.send, 1);
    pair_wait(&t);
    assert_int_equal(t.de.code, SL_OK);
    assert_true(kit_equal(&p, &d));
    kvt_stats_get(p.context, &stats);
    assert_true(stats.window_bytes_peak > 0 && stats.window_bytes_peak <= 300000);
    pair_release(&t);
    sides_stop();
}

TEST(idle_connection_closes)
{
    pair t;
    kvt_stats stats;
    sides_start(1, 4096, (kvt_options){.idle_ns = 50 * SL_MS_NS});
    pair_open(&t, (kit_shape){.deadline = in_seconds(60)});
    kit_commit_final(t.send, 1);
    pair_wait(&t);
    pair_release(&t);
    sl_time_ns give_up = sl_now_ns() + KIT_WAIT_NS;
    uint32_t open = 2;
    while (open > 0) {
        assert_true(sl_now_ns() < give_up);
        poll(NULL, 0, 1);
        kvt_stats_get(p.context, &stats);
        open = stats.peers_open;
        kvt_stats_get(d.context, &stats);
        open += stats.peers_open;
    }
    pair_open(&t, (kit_shape){.deadline = in_seconds(60)}); /* and connects again */
    kit_commit_final(t.send, 1);
    pair_wait(&t);
    assert_int_equal(t.pe.code, SL_OK);
    pair_release(&t);
    sides_stop();
}

TEST(nobody_listens)
{
    kit_end pe = {0};
    sides_start(1, 4096, (kvt_options){.name = NULL});
    kit_shape shape = {.deadline = in_seconds(60)};
    kvt_send *send = kit_send(&p, shape, address_of("127.0.0.1:1"), kit_nonce(), &pe);
    kit_wait(both, 2, &pe.closed, 1);
    assert_int_equal(pe.code, SL_UNAVAILABLE);
    kvt_send_release(send);
    memset(&pe, 0, sizeof pe);
    send = kit_send(&p, shape, address_of("not an:address"), kit_nonce(), &pe);
    kit_wait(both, 2, &pe.closed, 1);
    assert_int_not_equal(pe.code, SL_OK);
    assert_text_contains(pe.text, "not an:address");
    kvt_send_release(send);
    kit_assert_rest(&p);
    sides_stop();
}

TEST(listen_addresses_are_checked)
{
    sl_err err;
    kvt_context *context = NULL;
    kvt_options options = {.name = "x", .listen = "0.0.0.0:0", .transport = transport()};
    assert_code(kvt_context_create(&options, &context, &err), SL_INVALID);
    assert_text_contains(err.text, "authenticates nobody");
    options.listen = ":0";
    assert_code(kvt_context_create(&options, &context, &err), SL_INVALID);
    options.listen = "nonsense";
    assert_false(sl_is_ok(kvt_context_create(&options, &context, &err)));
    options.name = "";
    assert_code(kvt_context_create(&options, &context, &err), SL_INVALID);
    sides_start(1, 4096, (kvt_options){.name = NULL});
    options.listen = kit_listen_text(kvt_context_address(d.context));
    options.name = "x";
    assert_false(sl_is_ok(kvt_context_create(&options, &context, &err)));
    assert_text_contains(err.text, options.listen);
    assert_null(context);
    sides_stop();
    options.listen = "0.0.0.0:0";
    options.allow_wildcard = true;
    assert_ok(kvt_context_create(&options, &context, &err), &err);
    kvt_context_destroy(context);
    kvt_context_destroy(NULL);
}

/* Its connections of before linger in the kernel: a node restarted on a fixed port takes it all the
 * same. */
TEST(port_is_taken_again_at_once)
{
    char address[KVT_ADDRESS_MAX];
    pair t;
    sl_err err;
    kvt_region region;
    sides_start(1, 4096, (kvt_options){.name = NULL});
    pair_open(&t, (kit_shape){.deadline = in_seconds(60)});
    kit_commit_final(t.send, 1);
    pair_wait(&t);
    pair_release(&t);
    snprintf(address, sizeof address, "%s", kvt_context_address(d.context));
    kvt_context_destroy(d.context); /* closes first: the kernel keeps its end of the connection */
    region = (kvt_region){d.memory, 4096};
    kvt_options options = {.name = "d0",
                           .listen = kit_listen_text(address),
                           .transport = transport(),
                           .regions = &region,
                           .region_count = 1};
    assert_ok(kvt_context_create(&options, &d.context, &err), &err);
    assert_string_equal(kvt_context_address(d.context), address);
    pair_open(&t, (kit_shape){.deadline = in_seconds(60)});
    kit_commit_final(t.send, 1);
    pair_wait(&t);
    pair_release(&t);
    sides_stop();
}

/* One sender, 40 receivers: connections are made lazily and counted. */
TEST(many_peers)
{
    enum { COUNT = 40 };
    static kit_side ds[COUNT];
    static kit_end pe[COUNT], de[COUNT];
    static kvt_send *send[COUNT];
    static kvt_recv *recv[COUNT];
    kvt_stats stats;
    memset(pe, 0, sizeof pe);
    memset(de, 0, sizeof de);
    sides_start(4, 65536, (kvt_options){.name = NULL});
    kit_fill(&p, 5);
    kit_shape shape = {.blocks = 4, .deadline = in_seconds(60)};
    for (uint32_t i = 0; i < COUNT; i++) {
        kit_memory(&ds[i], 4, 65536);
        kit_create(&ds[i], (kvt_options){.name = "many", .listen = "127.0.0.1:0"});
        kvt_nonce nonce = kit_nonce();
        recv[i] = kit_recv(&ds[i], shape, nonce, &de[i]);
        send[i] = kit_send(&p, shape, kvt_context_address(ds[i].context), nonce, &pe[i]);
        kit_announce_all(&p, send[i], shape);
        kit_commit_final(send[i], 1);
    }
    for (uint32_t i = 0; i < COUNT; i++) {
        kit_side *const sides[] = {&p, &ds[i]};
        kit_wait(sides, 2, &de[i].closed, 1);
        kit_wait(sides, 2, &pe[i].closed, 1);
        assert_int_equal(de[i].code, SL_OK);
        assert_true(kit_equal(&p, &ds[i]));
        kvt_send_release(send[i]);
        kvt_recv_release(recv[i]);
    }
    kvt_stats_get(p.context, &stats);
    assert_int_equal(stats.peers_open, COUNT);
    for (uint32_t i = 0; i < COUNT; i++)
        kit_fini(&ds[i]);
    sides_stop();
}

/* Announced from a thread of its own, as an engine does. */
typedef struct producer {
    kvt_send *send;
    kit_shape shape;
} producer;

static void *producer_main(void *argument)
{
    producer *one = argument;
    kit_announce_all(&p, one->send, one->shape);
    kit_commit_final(one->send, 1);
    return NULL;
}

TEST(producer_thread_announces)
{
    pair t;
    pthread_t thread;
    sides_start(64, 65536, (kvt_options){.name = NULL});
    kit_fill(&p, 6);
    producer one = {.shape = {.blocks = 64, .deadline = in_seconds(60), .piece_events = true}};
    pair_open(&t, one.shape);
    one.send = t.send;
    assert_int_equal(pthread_create(&thread, NULL, producer_main, &one), 0);
    pair_wait(&t);
    pthread_join(thread, NULL);
    assert_int_equal(t.de.code, SL_OK);
    assert_int_equal(t.de.pieces, 256);
    assert_true(kit_equal(&p, &d));
    pair_release(&t);
    sides_stop();
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(thousand_pieces_arrive_exactly),
    cmocka_unit_test(local_reads_are_used_where_allowed),
    cmocka_unit_test(piece_sizes),
    cmocka_unit_test(many_transfers_at_once),
    cmocka_unit_test(largest_payload),
    cmocka_unit_test(wrong_sum_is_fetched_twice_then_corrupt),
    cmocka_unit_test(stale_nonce_is_refused_without_payload),
    cmocka_unit_test(revoke_amid_fetches_then_pages_are_ours),
    cmocka_unit_test(cancel_amid_fetches),
    cmocka_unit_test(destroy_amid_fetches),
    cmocka_unit_test(window_option_bounds_what_is_in_flight),
    cmocka_unit_test(idle_connection_closes),
    cmocka_unit_test(nobody_listens),
    cmocka_unit_test(listen_addresses_are_checked),
    cmocka_unit_test(port_is_taken_again_at_once),
    cmocka_unit_test(many_peers),
    cmocka_unit_test(producer_thread_announces),
};

/* Once each way. */
int main(int argc, char **argv)
{
    int failed = 0;
    kit_main(argv);
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    for (kit_way way = 0; way < KIT_WAY_COUNT; way++) {
        if (!kit_way_wanted(way))
            continue;
        kit_way_set(way);
        failed |= cmocka_run_group_tests_name(kit_ways[way].name, tests, NULL, NULL);
    }
    if (failed == 0 && sl_alloc_live() != 0) {
        fprintf(stderr, "%llu allocations are left\n", (unsigned long long)sl_alloc_live());
        failed = 1;
    }
    return failed;
}
