/* The library over real UCX, two contexts in one process. Process faults: ucx_process_test.c. */
#include <unistd.h>

#include "tests/unit/kvtransfer/kit.h"

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

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(thousand_pieces_arrive_exactly),
    };
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    int failed = cmocka_run_group_tests_name("ucx_local", tests, NULL, NULL);
    if (failed == 0 && sl_alloc_live() != 0) {
        fprintf(stderr, "%llu allocations are left\n", (unsigned long long)sl_alloc_live());
        failed = 1;
    }
    return failed;
}
