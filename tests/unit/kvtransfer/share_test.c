/* Many transfers and many peers over the in-process network: shares counted exactly, memory
 * bounded.
 */
#include "tests/unit/kvtransfer/kit_net.h"

enum { LONG_BLOCKS = 2048, SHORT_BLOCKS = 128 }; /* 128K and 8K tokens of 64 */

/* Lets time pass, event by event, until P knows `pieces` of the transfer to be verified. */
static void run_to_pieces(net *n, const pair *t, uint32_t pieces)
{
    while (t->pe.pieces < pieces) {
        sl_time_ns due = net_step(n);
        assert_int_not_equal(due, SL_NEVER);
        if (t->pe.pieces < pieces)
            n->now = due > n->now ? due : n->now + 1;
    }
}

static void share_open(net *n, pair *t, uint32_t page, uint32_t blocks)
{
    kit_shape shape = shape_of(n, blocks);
    shape.page = page;
    shape.piece_events = true;
    pair_open(n, t, shape);
    kit_announce_all(&n->p, t->send, shape);
    kit_commit_final(t->send, blocks * 64);
}

/* A hand-over of 128K tokens is under way when `others` of 8K come: from then on all have equal
 * shares, whatever their lengths. Pieces counted at P. The long one is `ahead`, exactly, by the
 * full window that the short ones found, and by its share of the last one, when they have nothing
 * left to offer; rounded to answers of 12. */
static void share_with(uint32_t others, uint32_t ahead)
{
    enum { OTHERS_MAX = 3, SHORT_PIECES = SHORT_BLOCKS * KIT_GROUPS };
    static pair big, small[OTHERS_MAX];
    net n;
    net_start(&n, 24, LONG_BLOCKS + OTHERS_MAX * SHORT_BLOCKS);
    share_open(&n, &big, 0, LONG_BLOCKS);
    run_to_pieces(&n, &big, 1000);
    for (uint32_t i = 0; i < others; i++)
        share_open(&n, &small[i], LONG_BLOCKS + i * SHORT_BLOCKS, SHORT_BLOCKS);
    uint32_t before = big.pe.pieces;
    for (uint32_t k = 1; k <= SHORT_PIECES; k++) {
        run_to_pieces(&n, &small[0], k);
        uint32_t moved = big.pe.pieces - before;
        assert_true(moved <= small[0].pe.pieces + 2 * KVT_WINDOW_PIECES);
        for (uint32_t i = 0; i < others; i++)
            assert_true(small[i].pe.pieces + KVT_WINDOW_PIECES / 4 >= small[0].pe.pieces);
    }
    assert_int_equal(big.pe.pieces - before, SHORT_PIECES + ahead);
    net_run(&n, n.now + SL_S_NS, NULL);
    assert_int_equal(big.de.code, SL_OK);
    assert_int_equal(big.de.closed, 1);
    for (uint32_t i = 0; i < others; i++) {
        assert_int_equal(small[i].de.code, SL_OK);
        pair_release(&small[i]);
    }
    pair_release(&big);
    assert_true(memcmp(n.p.memory, n.d.memory, LONG_BLOCKS * PAGE_BYTES) == 0);
    net_stop(&n);
}

TEST(a_long_transfer_does_not_starve_a_short_one)
{
    share_with(1, 80);
}

TEST(all_transfers_have_equal_shares)
{
    share_with(3, 64);
}

/* Bytes of this process in memory. */
static uint64_t resident(void)
{
    unsigned long long total = 0, pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    assert_non_null(file);
    assert_int_equal(fscanf(file, "%llu %llu", &total, &pages), 2);
    fclose(file);
    return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

enum { MESH = 64 };

static void mesh_create(kvt_fake *fake, kit_side *ps, kit_side *ds)
{
    for (uint32_t i = 0; i < MESH; i++) {
        char name[16], listen[16];
        snprintf(name, sizeof name, "p%u", i);
        kit_memory(&ps[i], 1, PAGE_BYTES);
        kit_fill(&ps[i], i);
        kit_create(&ps[i], (kvt_options){.name = name, .fake = fake});
        snprintf(name, sizeof name, "d%u", i);
        snprintf(listen, sizeof listen, "d%u:1", i);
        kit_memory(&ds[i], MESH, PAGE_BYTES);
        kit_create(&ds[i], (kvt_options){.name = name, .listen = listen, .fake = fake});
    }
}

/* 64 x 64 nodes, all to all: 4,096 connections with a transfer on each at once, in what 128
 * contexts take at most: fixed tables, and pools that are touched only as far as they are used. */
TEST(mesh)
{
    static kit_side ps[MESH], ds[MESH];
    static kit_end pe[MESH][MESH], de[MESH][MESH];
    static kvt_send *send[MESH][MESH];
    static kvt_recv *recv[MESH][MESH];
    memset(pe, 0, sizeof pe);
    memset(de, 0, sizeof de);
    kvt_fake *fake = kvt_fake_create(30);
    uint64_t before = resident();
    mesh_create(fake, ps, ds);
    uint64_t at_rest = resident();
    for (uint32_t i = 0; i < MESH * MESH; i++) {
        uint32_t a = i / MESH, b = i % MESH;
        kit_shape shape = {.blocks = 1, .deadline = 60 * SL_S_NS}, to = shape;
        to.page = a;
        kvt_nonce nonce = kit_nonce();
        recv[a][b] = kit_recv(&ds[b], to, nonce, &de[a][b]);
        send[a][b] = kit_send(&ps[a], shape, kvt_context_address(ds[b].context), nonce, &pe[a][b]);
        kit_announce_all(&ps[a], send[a][b], shape);
        kit_commit_final(send[a][b], i);
    }
    sl_time_ns now = SL_S_NS;
    for (sl_time_ns due = now; due <= 2 * SL_S_NS; now = due > now ? due : now + 1)
        due = kvt_fake_step(fake, now);
    uint64_t peak = resident();
    for (uint32_t i = 0; i < MESH; i++) {
        kvt_poll(ps[i].context, kit_on_event, NULL);
        kvt_poll(ds[i].context, kit_on_event, NULL);
    }
    for (uint32_t i = 0; i < MESH * MESH; i++) {
        uint32_t a = i / MESH, b = i % MESH;
        assert_int_equal(pe[a][b].closed, 1);
        assert_int_equal(de[a][b].closed, 1);
        assert_int_equal(de[a][b].code, SL_OK);
        assert_int_equal(memcmp(kit_page(&ds[b], a), kit_page(&ps[a], 0), PAGE_BYTES), 0);
        kvt_send_release(send[a][b]);
        kvt_recv_release(recv[a][b]);
    }
    print_message("a context at rest %llu KiB, one connection and its transfer %llu bytes\n",
                  (unsigned long long)((at_rest - before) / (2 * MESH) / 1024),
                  (unsigned long long)((peak - at_rest) / (2 * MESH * MESH)));
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    assert_true(at_rest - before < 2ull * MESH << 21);              /* 2 MiB a context */
    assert_true(peak - at_rest < 2ull * MESH * MESH * (16u << 10)); /* 16 KiB an end */
#endif
    for (uint32_t i = 0; i < MESH; i++) {
        kit_fini(&ps[i]);
        kit_fini(&ds[i]);
    }
    kvt_fake_destroy(fake);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(a_long_transfer_does_not_starve_a_short_one),
    cmocka_unit_test(all_transfers_have_equal_shares),
    cmocka_unit_test(mesh),
};

TEST_MAIN(tests)
