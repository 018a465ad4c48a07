/* The protocol over the in-process network, in virtual time: every refusal, every fault, exactly.
 */
#include "tests/unit/kvtransfer/kit_net.h"

static void pair_run(net *n, pair *t, kit_shape shape)
{
    pair_open(n, t, shape);
    kit_announce_all(&n->p, t->send, shape);
    kit_commit_final(t->send, shape.blocks * 64);
    net_run(n, n->now + 20 * SL_S_NS, NULL);
    assert_int_equal(t->pe.closed, 1);
    assert_int_equal(t->de.closed, 1);
    pair_release(t);
}

TEST(transfer_is_exact)
{
    net n;
    pair t;
    net_start(&n, 1, 50);
    kit_shape shape = shape_of(&n, 50);
    shape.piece_events = true;
    pair_run(&n, &t, shape);
    assert_int_equal(t.pe.code, SL_OK);
    assert_int_equal(t.de.code, SL_OK);
    assert_int_equal(t.de.pieces, 200);
    assert_int_equal(t.pe.pieces, 200);
    assert_int_equal(t.de.tokens, 50 * 64);
    assert_int_equal(t.pe.commits, 1);
    assert_int_equal(t.de.payload_bytes, 8);
    assert_true(kit_equal(&n.p, &n.d));
    kvt_stats stats;
    kvt_stats_get(n.d.context, &stats);
    assert_int_equal(stats.pieces_received, 200);
    assert_int_equal(stats.bytes_received, 50 * PAGE_BYTES);
    kvt_peer_stats peer[2];
    assert_int_equal(kvt_peers_get(n.p.context, peer, 2), 1);
    assert_string_equal(peer[0].name, "d0");
    assert_int_equal(peer[0].bytes, 50 * PAGE_BYTES);
    assert_true(peer[0].outgoing);
    assert_rest(&n);
    net_stop(&n);
}

TEST(same_seed_same_run)
{
    uint64_t messages[2];
    sl_time_ns end[2];
    for (int i = 0; i < 2; i++) {
        net n;
        pair t;
        net_start(&n, 42, 20);
        kvt_fake_faults faults = {.delay_min_ns = 1000,
                                  .delay_max_ns = 900000,
                                  .duplicate_ppm = 100000,
                                  .reorder_ppm = 100000,
                                  .corrupt_ppm = 20000};
        kvt_fake_faults_set(n.fake, &faults);
        kit_shape shape = shape_of(&n, 20);
        pair_open(&n, &t, shape);
        kit_announce_all(&n.p, t.send, shape);
        kit_commit_final(t.send, 1);
        net_run(&n, n.now + 20 * SL_S_NS, &t.pe.closed);
        end[i] = n.now;
        messages[i] = kvt_fake_messages(n.fake);
        net_run(&n, n.now + 20 * SL_S_NS, NULL);
        pair_release(&t);
        net_stop(&n);
    }
    assert_int_equal(messages[0], messages[1]);
    assert_int_equal(end[0], end[1]);
}

TEST(chunks_commit_in_order_and_cumulatively)
{
    net n;
    pair t;
    sl_err err;
    net_start(&n, 2, 8);
    kit_shape shape = shape_of(&n, 8);
    pair_open(&n, &t, shape);
    for (uint32_t row = 0; row < 8; row++) {
        for (uint32_t g = 0; g < KIT_GROUPS; g++)
            assert_ok(kit_announce(&n.p, t.send, shape, row, g, &err), &err);
        kvt_commit commit = {.tokens = (row + 1) * 64, .final = row == 7};
        assert_ok(kvt_send_commit(t.send, &commit, &err), &err);
        net_run(&n, n.now + SL_S_NS / 10, NULL);
        assert_int_equal(t.de.commits, row + 1);
        assert_int_equal(t.pe.commits, row + 1);
        assert_int_equal(t.de.tokens, (row + 1) * 64);
        assert_int_equal(memcmp(n.p.memory, n.d.memory, (row + 1) * PAGE_BYTES), 0);
    }
    assert_int_equal(t.de.closed, 1);
    assert_int_equal(t.de.code, SL_OK);
    pair_release(&t);
    net_stop(&n);
}

/* A commit is not verified before its pieces, however late they are. */
TEST(commit_waits_for_its_pieces)
{
    net n;
    pair t;
    net_start(&n, 3, 4);
    kit_shape shape = shape_of(&n, 4);
    pair_open(&n, &t, shape);
    net_run(&n, n.now + SL_S_NS / 10, NULL); /* hello done */
    kvt_fake_faults slow = {.delay_min_ns = SL_MS_NS, .delay_max_ns = 500 * SL_MS_NS};
    kvt_fake_faults_set(n.fake, &slow);
    kit_announce_all(&n.p, t.send, shape);
    kit_commit_final(t.send, 9);
    net_run(&n, n.now + 20 * SL_S_NS, &t.de.commits);
    kvt_stats stats;
    kvt_stats_get(n.d.context, &stats);
    assert_int_equal(stats.pieces_received, 16);
    assert_true(kit_equal(&n.p, &n.d));
    net_run(&n, n.now + 20 * SL_S_NS, NULL);
    assert_int_equal(t.pe.code, SL_OK);
    pair_release(&t);
    net_stop(&n);
}

TEST(nothing_to_move_but_the_payload)
{
    net n;
    pair t;
    net_start(&n, 4, 1);
    kit_shape shape = shape_of(&n, 0);
    pair_run(&n, &t, shape);
    assert_int_equal(t.pe.code, SL_OK);
    assert_int_equal(t.de.code, SL_OK);
    assert_string_equal((char *)t.de.payload, "h_final");
    net_stop(&n);
}

/* ---- refusals */

static void assert_untouched(const net *n)
{
    for (uint64_t i = 0; i < n->d.page_count * n->d.page_bytes; i++)
        assert_int_equal(n->d.memory[i], 0);
}

TEST(unknown_nonce_is_refused_without_payload)
{
    net n;
    kit_end pe = {0};
    net_start(&n, 5, 4);
    kit_shape shape = shape_of(&n, 4);
    kvt_send *send = kit_send(&n.p, shape, D_ADDRESS, kit_nonce(), &pe);
    kit_announce_all(&n.p, send, shape);
    net_run(&n, n.now + SL_S_NS, &pe.closed);
    assert_int_equal(pe.code, SL_CONFLICT);
    assert_text_contains(pe.text, "does not know this nonce");
    kvt_stats stats;
    kvt_stats_get(n.d.context, &stats);
    assert_true(stats.pieces_refused >= 1);
    assert_int_equal(stats.pieces_received, 0);
    assert_untouched(&n);
    kvt_send_release(send);
    net_stop(&n);
}

TEST(stale_nonce_after_revoke_is_refused)
{
    net n;
    pair t;
    net_start(&n, 6, 4);
    kit_shape shape = shape_of(&n, 4);
    memset(&t, 0, sizeof t);
    t.nonce = kit_nonce();
    t.recv = kit_recv(&n.d, shape, t.nonce, &t.de);
    kvt_recv_revoke(t.recv);
    net_run(&n, n.now + SL_S_NS, &t.de.closed);
    assert_int_equal(t.de.code, SL_CANCELLED);
    t.send = kit_send(&n.p, shape, D_ADDRESS, t.nonce, &t.pe);
    kit_announce_all(&n.p, t.send, shape);
    net_run(&n, n.now + SL_S_NS, &t.pe.closed);
    assert_int_equal(t.pe.code, SL_CONFLICT);
    assert_untouched(&n);
    pair_release(&t);
    net_stop(&n);
}

TEST(piece_outside_the_transfer_is_refused)
{
    net n;
    pair t;
    sl_err err;
    net_start(&n, 7, 4);
    memset(&t, 0, sizeof t);
    kit_shape narrow = shape_of(&n, 2), wide = shape_of(&n, 4);
    t.nonce = kit_nonce();
    t.recv = kit_recv(&n.d, narrow, t.nonce, &t.de);
    t.send = kit_send(&n.p, wide, D_ADDRESS, t.nonce, &t.pe);
    assert_ok(kit_announce(&n.p, t.send, wide, 3, 0, &err), &err);
    net_run(&n, n.now + SL_S_NS, &t.de.closed);
    net_run(&n, n.now + SL_S_NS, &t.pe.closed);
    assert_int_equal(t.pe.code, SL_INVALID);
    assert_text_contains(t.pe.text, "outside");
    assert_int_equal(t.de.code, SL_CANCELLED);
    assert_untouched(&n);
    pair_release(&t);
    net_stop(&n);
}

TEST(piece_before_the_first_block_is_refused)
{
    net n;
    pair t;
    sl_err err;
    net_start(&n, 7, 4);
    memset(&t, 0, sizeof t);
    kit_shape late = shape_of(&n, 2), early = shape_of(&n, 2);
    early.first_block = 0;
    t.nonce = kit_nonce();
    t.recv = kit_recv(&n.d, late, t.nonce, &t.de);
    t.send = kit_send(&n.p, early, D_ADDRESS, t.nonce, &t.pe);
    assert_ok(kit_announce(&n.p, t.send, early, 0, 0, &err), &err);
    net_run(&n, n.now + SL_S_NS, &t.de.closed);
    assert_int_equal(t.pe.code, SL_INVALID);
    assert_untouched(&n);
    pair_release(&t);
    net_stop(&n);
}

TEST(piece_of_another_size_is_refused)
{
    net n;
    pair t;
    sl_err err;
    net_start(&n, 8, 4);
    kit_shape shape = shape_of(&n, 4);
    pair_open(&n, &t, shape);
    assert_ok(kvt_send_announce(t.send, 3, 0, n.p.memory, n.p.slices[0].bytes - 1, 0, &err), &err);
    net_run(&n, n.now + SL_S_NS, &t.de.closed);
    assert_int_equal(t.pe.code, SL_INVALID);
    assert_text_contains(t.pe.text, "size");
    assert_untouched(&n);
    pair_release(&t);
    net_stop(&n);
}

/* Two senders with one ticket: the first connection has it. */
TEST(second_sender_of_a_nonce_is_refused)
{
    net n;
    pair t;
    sl_err err;
    kit_side other;
    kit_end oe = {0};
    net_start(&n, 9, 4);
    kit_memory(&other, 4, PAGE_BYTES);
    kit_create(&other, (kvt_options){.name = "p1", .fake = n.fake});
    kit_shape shape = shape_of(&n, 4);
    pair_open(&n, &t, shape);
    assert_ok(kit_announce(&n.p, t.send, shape, 0, 0, &err), &err);
    net_run(&n, n.now + SL_S_NS / 10, NULL);
    kvt_send *second = kit_send(&other, shape, D_ADDRESS, t.nonce, &oe);
    kit_announce_all(&other, second, shape);
    net_run(&n, n.now + SL_S_NS / 10, NULL);
    kvt_poll(other.context, kit_on_event, NULL);
    assert_int_equal(oe.closed, 1);
    assert_int_equal(oe.code, SL_CONFLICT);
    for (uint32_t row = 0; row < 4; row++) {
        for (uint32_t g = row == 0; g < KIT_GROUPS; g++)
            assert_ok(kit_announce(&n.p, t.send, shape, row, g, &err), &err);
    }
    kit_commit_final(t.send, 1);
    net_run(&n, n.now + SL_S_NS, &t.de.closed);
    net_run(&n, n.now + SL_S_NS, &t.pe.closed);
    assert_int_equal(t.de.code, SL_OK);
    assert_true(kit_equal(&n.p, &n.d));
    kvt_send_release(second);
    pair_release(&t);
    kit_fini(&other);
    net_stop(&n);
}

TEST(final_commit_must_name_every_piece_of_the_receiver)
{
    net n;
    pair t;
    net_start(&n, 10, 4);
    memset(&t, 0, sizeof t);
    kit_shape wide = shape_of(&n, 4), narrow = shape_of(&n, 2);
    t.nonce = kit_nonce();
    t.recv = kit_recv(&n.d, wide, t.nonce, &t.de);
    t.send = kit_send(&n.p, narrow, D_ADDRESS, t.nonce, &t.pe);
    kit_announce_all(&n.p, t.send, narrow);
    kit_commit_final(t.send, 1);
    net_run(&n, n.now + SL_S_NS, &t.de.closed);
    net_run(&n, n.now + SL_S_NS, &t.pe.closed);
    assert_int_equal(t.de.code, SL_INVALID);
    assert_text_contains(t.de.text, "8 of 16");
    assert_int_equal(t.pe.code, SL_INVALID);
    assert_int_equal(t.de.commits, 0);
    pair_release(&t);
    net_stop(&n);
}

/* ---- faults */

TEST(duplicates_delays_and_reordering_change_nothing)
{
    for (uint64_t seed = 0; seed < 30; seed++) {
        net n;
        pair t;
        net_start(&n, seed, 20);
        kvt_fake_faults faults = {.delay_min_ns = 1000,
                                  .delay_max_ns = 5 * SL_MS_NS,
                                  .duplicate_ppm = 300000,
                                  .reorder_ppm = 300000};
        kvt_fake_faults_set(n.fake, &faults);
        pair_run(&n, &t, shape_of(&n, 20));
        assert_int_equal(t.de.code, SL_OK);
        assert_true(kit_equal(&n.p, &n.d));
        /* P may hear that D forgot the nonce when a doubled commit meets a finished transfer. */
        assert_true(t.pe.code == SL_OK || t.pe.code == SL_CONFLICT);
        assert_rest(&n);
        net_stop(&n);
    }
}

TEST(wrong_sum_is_fetched_again_once)
{
    uint64_t mismatches = 0;
    for (uint64_t seed = 0; seed < 20; seed++) {
        net n;
        pair t;
        net_start(&n, seed, 20);
        kvt_fake_faults faults = {.delay_min_ns = 1000, .delay_max_ns = 1000, .corrupt_ppm = 20000};
        kvt_fake_faults_set(n.fake, &faults);
        pair_run(&n, &t, shape_of(&n, 20));
        kvt_stats stats;
        kvt_stats_get(n.d.context, &stats);
        mismatches += stats.sum_mismatches;
        assert_int_equal(t.pe.code, t.de.code);
        if (t.de.code == SL_OK)
            assert_true(kit_equal(&n.p, &n.d));
        else
            assert_int_equal(t.de.code, SL_CORRUPT);
        net_stop(&n);
    }
    assert_true(mismatches > 0);
}

TEST(sum_wrong_twice_is_corrupt)
{
    net n;
    pair t;
    net_start(&n, 11, 4);
    kvt_fake_faults faults = {.delay_min_ns = 1000, .delay_max_ns = 1000, .corrupt_ppm = 1000000};
    kvt_fake_faults_set(n.fake, &faults);
    pair_run(&n, &t, shape_of(&n, 4));
    assert_int_equal(t.de.code, SL_CORRUPT);
    assert_int_equal(t.pe.code, SL_CORRUPT);
    assert_text_contains(t.de.text, "differed twice");
    assert_int_equal(t.de.commits, 0);
    net_stop(&n);
}

TEST(sums_off_takes_what_comes)
{
    net n;
    pair t;
    net_start(&n, 12, 4);
    kvt_fake_faults faults = {.delay_min_ns = 1000, .delay_max_ns = 1000, .corrupt_ppm = 1000000};
    kvt_fake_faults_set(n.fake, &faults);
    kit_shape shape = shape_of(&n, 4);
    shape.sums = KVT_SUMS_OFF;
    pair_run(&n, &t, shape);
    assert_int_equal(t.de.code, SL_OK);
    assert_false(kit_equal(&n.p, &n.d));
    net_stop(&n);
}

/* One piece in 16 is checked: wrong ones get through until one of those comes. */
TEST(sums_sample_checks_some)
{
    net n;
    pair t;
    kvt_stats stats;
    net_start(&n, 12, 100);
    kvt_fake_faults faults = {.delay_min_ns = 1000, .delay_max_ns = 1000, .corrupt_ppm = 1000000};
    kvt_fake_faults_set(n.fake, &faults);
    kit_shape shape = shape_of(&n, 100);
    shape.sums = KVT_SUMS_SAMPLE;
    pair_run(&n, &t, shape);
    assert_int_equal(t.de.code, SL_CORRUPT);
    kvt_stats_get(n.d.context, &stats);
    assert_in_range(stats.pieces_received, 1, 399);
    assert_in_range(stats.sum_mismatches, 2, 48);
    net_stop(&n);
}

/* A message that never comes: both ends end at their deadline, to the nanosecond. */
TEST(lost_piece_ends_at_the_deadline)
{
    net n;
    pair t;
    net_start(&n, 13, 4);
    kit_shape shape = shape_of(&n, 4);
    shape.deadline = n.now + 3 * SL_S_NS;
    pair_open(&n, &t, shape);
    net_run(&n, n.now + SL_S_NS / 10, NULL);
    kvt_fake_faults faults = {.delay_min_ns = 1000, .delay_max_ns = 1000, .drop_ppm = 1000000};
    kvt_fake_faults_set(n.fake, &faults);
    kit_announce_all(&n.p, t.send, shape);
    kit_commit_final(t.send, 1);
    net_run(&n, n.now + 20 * SL_S_NS, &t.de.closed);
    assert_int_equal(t.de.code, SL_DEADLINE);
    assert_int_equal(n.now, shape.deadline);
    net_run(&n, n.now + 20 * SL_S_NS, &t.pe.closed);
    assert_int_equal(t.pe.code, SL_DEADLINE);
    assert_true(n.now <= shape.deadline + KVT_CLOSE_GRACE_MS * SL_MS_NS);
    assert_text_contains(t.pe.text, "0 of 16");
    pair_release(&t);
    assert_rest(&n);
    net_stop(&n);
}

TEST(receiver_that_nobody_calls_ends_at_its_deadline)
{
    net n;
    kit_end de = {0};
    net_start(&n, 14, 4);
    kit_shape shape = shape_of(&n, 4);
    kvt_recv *recv = kit_recv(&n.d, shape, kit_nonce(), &de);
    net_run(&n, n.now + 60 * SL_S_NS, &de.closed);
    assert_int_equal(de.code, SL_DEADLINE);
    assert_int_equal(n.now, shape.deadline);
    kvt_recv_release(recv);
    net_stop(&n);
}

TEST(nobody_listens)
{
    net n;
    kit_end pe = {0};
    net_start(&n, 15, 4);
    kvt_send *send = kit_send(&n.p, shape_of(&n, 4), "elsewhere:1", kit_nonce(), &pe);
    net_run(&n, n.now + SL_S_NS, &pe.closed);
    assert_int_equal(pe.code, SL_UNAVAILABLE);
    assert_text_contains(pe.text, "refused");
    kvt_send_release(send);
    net_stop(&n);
}

TEST(unanswered_hello_ends_at_the_connect_deadline)
{
    net n;
    kit_end pe = {0};
    net_start(&n, 16, 4);
    sl_time_ns began = n.now;
    kvt_fake_pause(n.fake, "d0", true);
    kvt_send *send = kit_send(&n.p, shape_of(&n, 4), D_ADDRESS, kit_nonce(), &pe);
    net_run(&n, n.now + 20 * SL_S_NS, &pe.closed);
    assert_int_equal(pe.code, SL_UNAVAILABLE);
    assert_int_equal(n.now, began + KVT_CONNECT_MS * SL_MS_NS);
    kvt_send_release(send);
    kvt_fake_pause(n.fake, "d0", false);
    net_run(&n, n.now + SL_S_NS, NULL);
    assert_rest(&n);
    net_stop(&n);
}

/* Runs until D has verified some pieces and more are under way. */
static void run_to_middle(net *n, pair *t, kit_shape shape)
{
    kvt_fake_faults slow = {.delay_min_ns = 20000, .delay_max_ns = 900000};
    pair_open(n, t, shape);
    net_run(n, n->now + SL_S_NS / 10, NULL);
    kvt_fake_faults_set(n->fake, &slow);
    kit_announce_all(&n->p, t->send, shape);
    kit_commit_final(t->send, 5);
    kvt_stats stats;
    do {
        n->now += 50000;
        net_step(n);
        kvt_stats_get(n->d.context, &stats);
    } while (stats.pieces_received < 20);
    assert_int_equal(t->de.closed, 0);
    assert_true(stats.requests_open > 0);
}

/* D reuses its pages: from here on any late byte shows. */
static void reuse_pages(net *n, sl_time_ns ns)
{
    kit_fill(&n->d, 999);
    size_t bytes = n->d.page_count * n->d.page_bytes;
    uint8_t *copy = sl_alloc(1, bytes, "copy");
    memcpy(copy, n->d.memory, bytes);
    net_run(n, n->now + ns, NULL);
    assert_int_equal(memcmp(copy, n->d.memory, bytes), 0);
    sl_free(copy);
}

TEST(revoke_amid_fetches_then_pages_are_ours)
{
    net n;
    pair t;
    net_start(&n, 17, 100);
    run_to_middle(&n, &t, shape_of(&n, 100));
    kvt_recv_revoke(t.recv);
    net_run(&n, n.now + SL_S_NS, &t.de.closed);
    assert_int_equal(t.de.code, SL_CANCELLED);
    reuse_pages(&n, 20 * SL_S_NS);
    assert_int_equal(t.pe.closed, 1);
    assert_int_equal(t.pe.code, SL_CANCELLED);
    assert_text_contains(t.pe.text, "revoked by the receiver");
    pair_release(&t);
    assert_rest(&n);
    net_stop(&n);
}

TEST(cancel_by_the_sender_frees_both_sides)
{
    net n;
    pair t;
    net_start(&n, 18, 100);
    run_to_middle(&n, &t, shape_of(&n, 100));
    kvt_send_cancel(t.send);
    kvt_send_cancel(t.send);
    net_run(&n, n.now + SL_S_NS, &t.pe.closed);
    assert_int_equal(t.pe.code, SL_CANCELLED);
    net_run(&n, n.now + SL_S_NS, &t.de.closed);
    assert_int_equal(t.de.code, SL_CANCELLED);
    assert_text_contains(t.de.text, "by the sender");
    reuse_pages(&n, 20 * SL_S_NS);
    pair_release(&t);
    assert_rest(&n);
    net_stop(&n);
}

TEST(killed_sender_is_unavailable_at_once)
{
    net n;
    pair t;
    net_start(&n, 19, 100);
    run_to_middle(&n, &t, shape_of(&n, 100));
    sl_time_ns began = n.now;
    kvt_fake_kill(n.fake, "p0");
    net_run(&n, n.now + 20 * SL_S_NS, &t.de.closed);
    assert_int_equal(t.de.code, SL_UNAVAILABLE);
    assert_true(n.now - began < 2 * SL_MS_NS);
    reuse_pages(&n, SL_S_NS);
    kit_fini(&n.p);
    kvt_recv_release(t.recv);
    kit_assert_rest(&n.d);
    kvt_stats stats;
    kvt_stats_get(n.d.context, &stats);
    assert_int_equal(stats.peers_open, 0);
    kit_fini(&n.d);
    kvt_fake_destroy(n.fake);
}

TEST(killed_receiver_is_unavailable_at_once)
{
    net n;
    pair t;
    net_start(&n, 20, 100);
    run_to_middle(&n, &t, shape_of(&n, 100));
    sl_time_ns began = n.now;
    kvt_fake_kill(n.fake, "d0");
    net_run(&n, n.now + 20 * SL_S_NS, &t.pe.closed);
    assert_int_equal(t.pe.code, SL_UNAVAILABLE);
    assert_true(n.now - began < 2 * SL_MS_NS);
    kvt_send_release(t.send);
    kit_assert_rest(&n.p);
    net_stop(&n);
}

/* SIGSTOP of P with fetches open: D's deadline, forced close, pages reused, SIGCONT. */
TEST(stopped_sender_cannot_write_late)
{
    net n;
    pair t;
    net_start(&n, 21, 100);
    kit_shape shape = shape_of(&n, 100);
    shape.deadline = n.now + 2 * SL_S_NS;
    run_to_middle(&n, &t, shape);
    kvt_fake_pause(n.fake, "p0", true);
    net_run(&n, n.now + 20 * SL_S_NS, &t.de.closed);
    assert_int_equal(t.de.code, SL_DEADLINE);
    assert_true(n.now <= shape.deadline + KVT_CLOSE_GRACE_MS * SL_MS_NS);
    kvt_stats stats;
    kvt_stats_get(n.d.context, &stats);
    assert_int_equal(stats.closes_forced, 1);
    kvt_fake_pause(n.fake, "p0", false);
    reuse_pages(&n, 20 * SL_S_NS);
    assert_int_equal(t.pe.closed, 1);
    pair_release(&t);
    assert_rest(&n);
    net_stop(&n);
}

/* Fetches that do not move end at the stall deadline, long before the transfer's own. */
TEST(stalled_fetches_close_the_connection)
{
    net n;
    pair t;
    net_start(&n, 22, 100);
    kit_shape shape = shape_of(&n, 100);
    shape.deadline = n.now + 100 * SL_S_NS;
    run_to_middle(&n, &t, shape);
    sl_time_ns began = n.now;
    kvt_fake_pause(n.fake, "p0", true);
    net_run(&n, n.now + 200 * SL_S_NS, &t.de.closed);
    assert_int_equal(t.de.code, SL_UNAVAILABLE);
    assert_text_contains(t.de.text, "stalled");
    assert_true(n.now <= began + KVT_STALL_MS * SL_MS_NS);
    kvt_fake_pause(n.fake, "p0", false);
    net_run(&n, n.now + 200 * SL_S_NS, &t.pe.closed);
    assert_int_equal(t.pe.code, SL_UNAVAILABLE);
    pair_release(&t);
    assert_rest(&n);
    net_stop(&n);
}

TEST(partition_ends_both_sides)
{
    net n;
    pair t;
    net_start(&n, 23, 100);
    kit_shape shape = shape_of(&n, 100);
    shape.deadline = n.now + 100 * SL_S_NS;
    run_to_middle(&n, &t, shape);
    kvt_fake_cut(n.fake, "p0", "d0", true);
    net_run(&n, n.now + 20 * SL_S_NS, NULL);
    assert_int_equal(t.de.code, SL_UNAVAILABLE);
    assert_int_equal(t.pe.code, SL_UNAVAILABLE);
    pair_release(&t);
    assert_rest(&n);
    kvt_fake_cut(n.fake, "p0", "d0", false);
    pair_run(&n, &t, shape_of(&n, 100)); /* healed: a new connection */
    assert_int_equal(t.de.code, SL_OK);
    assert_true(kit_equal(&n.p, &n.d));
    net_stop(&n);
}

/* ---- sharing, limits */

TEST(idle_connection_closes_after_a_minute)
{
    net n;
    pair t;
    kvt_stats stats;
    net_start(&n, 25, 4);
    pair_open(&n, &t, shape_of(&n, 4));
    kit_announce_all(&n.p, t.send, shape_of(&n, 4));
    kit_commit_final(t.send, 1);
    net_run(&n, n.now + SL_S_NS, &t.pe.closed);
    sl_time_ns ended = n.now;
    net_run(&n, ended + KVT_IDLE_MS * SL_MS_NS - SL_MS_NS, NULL);
    kvt_stats_get(n.p.context, &stats);
    assert_int_equal(stats.peers_open, 1);
    net_run(&n, ended + KVT_IDLE_MS * SL_MS_NS + SL_MS_NS, NULL);
    kvt_stats_get(n.p.context, &stats);
    assert_int_equal(stats.peers_open, 0);
    kvt_stats_get(n.d.context, &stats);
    assert_int_equal(stats.peers_open, 0);
    assert_int_equal(stats.closes_forced, 0);
    pair_release(&t);
    net_stop(&n);
}

TEST(warm_connects_ahead)
{
    net n;
    kvt_stats stats;
    net_start(&n, 26, 4);
    kvt_warm(n.p.context, D_ADDRESS);
    kvt_warm(n.p.context, "nowhere:9");
    net_run(&n, n.now + SL_S_NS, NULL);
    kvt_stats_get(n.p.context, &stats);
    assert_int_equal(stats.peers_open, 1);
    kvt_stats_get(n.d.context, &stats);
    assert_int_equal(stats.peers_open, 1);
    net_stop(&n);
}

/* More events than the ring holds: they wait, none is lost. */
TEST(events_wait_for_a_slow_owner)
{
    net n;
    pair t;
    uint32_t blocks = KVT_EVENTS_MAX / KIT_GROUPS + 100;
    net_start(&n, 27, blocks);
    kit_shape shape = shape_of(&n, blocks);
    shape.piece_events = true;
    pair_open(&n, &t, shape);
    kit_announce_all(&n.p, t.send, shape);
    kit_commit_final(t.send, 1);
    for (int i = 0; i < 3000; i++) { /* nobody polls */
        kvt_fake_step(n.fake, n.now);
        n.now += 10000;
    }
    kvt_stats stats;
    kvt_stats_get(n.d.context, &stats);
    assert_int_equal(stats.pieces_received, blocks * KIT_GROUPS);
    assert_true(stats.events_full > 0);
    assert_int_equal(t.de.pieces, 0);
    net_run(&n, n.now + SL_S_NS, NULL);
    assert_int_equal(t.de.pieces, blocks * KIT_GROUPS);
    assert_int_equal(t.pe.pieces, blocks * KIT_GROUPS);
    assert_int_equal(t.de.closed, 1);
    assert_int_equal(t.pe.closed, 1);
    pair_release(&t);
    net_stop(&n);
}

TEST(calls_are_checked)
{
    net n;
    pair t;
    sl_err err;
    net_start(&n, 28, 4);
    kit_shape shape = shape_of(&n, 4);
    pair_open(&n, &t, shape);
    const uint8_t *data = n.p.memory;
    uint64_t bytes = n.p.slices[0].bytes;
    assert_code(kvt_send_announce(t.send, 2, 0, data, bytes, 0, &err), SL_INVALID);
    assert_code(kvt_send_announce(t.send, 7, 0, data, bytes, 0, &err), SL_INVALID);
    assert_code(kvt_send_announce(t.send, 3, KIT_GROUPS, data, bytes, 0, &err), SL_INVALID);
    assert_code(kvt_send_announce(t.send, 3, 0, &err, bytes, 0, &err), SL_INVALID);
    assert_code(kvt_send_announce(t.send, 3, 0, data + 3 * PAGE_BYTES + 1, PAGE_BYTES, 0, &err),
                SL_INVALID);
    assert_code(kvt_send_announce(t.send, 3, 0, data, 0, 0, &err), SL_TOO_LARGE);
    assert_ok(kit_announce(&n.p, t.send, shape, 0, 0, &err), &err);
    assert_code(kit_announce(&n.p, t.send, shape, 0, 0, &err), SL_EXISTS);

    static uint8_t payload[KVT_PAYLOAD_MAX + 1];
    kvt_commit commit = {.tokens = 5, .payload = payload, .payload_bytes = KVT_PAYLOAD_MAX + 1};
    assert_code(kvt_send_commit(t.send, &commit, &err), SL_TOO_LARGE);
    commit = (kvt_commit){.tokens = 5, .final = true};
    assert_code(kvt_send_commit(t.send, &commit, &err), SL_INVALID);
    commit.final = false;
    for (uint32_t i = 0; i + 1 < KVT_COMMITS_OPEN_MAX; i++)
        assert_ok(kvt_send_commit(t.send, &commit, &err), &err);
    assert_code(kvt_send_commit(t.send, &commit, &err), SL_FULL);
    net_run(&n, n.now + SL_S_NS / 10, NULL);
    assert_int_equal(t.de.commits, KVT_COMMITS_OPEN_MAX - 1);
    commit.tokens = 4;
    assert_code(kvt_send_commit(t.send, &commit, &err), SL_INVALID);

    kvt_send_options so = {.address = D_ADDRESS, .nonce = t.nonce, .group_count = 1};
    kvt_send *send = NULL;
    assert_code(kvt_send_open(n.p.context, &so, &send, &err), SL_EXISTS);
    so.nonce.low++;
    so.group_count = 0;
    assert_code(kvt_send_open(n.p.context, &so, &send, &err), SL_INVALID);
    so.group_count = KVT_GROUPS_MAX;
    so.block_count = KVT_BLOCKS_MAX;
    assert_code(kvt_send_open(n.p.context, &so, &send, &err), SL_TOO_LARGE);
    so.block_count = 1;
    so.address = "";
    assert_code(kvt_send_open(n.p.context, &so, &send, &err), SL_INVALID);
    assert_null(send);

    void *page = n.d.memory;
    kvt_recv_options ro = {
        .nonce = t.nonce, .block_count = 1, .group_count = 1, .pages = &page, .slices = n.d.slices};
    kvt_recv *recv = NULL;
    assert_code(kvt_recv_open(n.d.context, &ro, &recv, &err), SL_EXISTS);
    ro.nonce.low++;
    assert_code(kvt_recv_open(n.p.context, &ro, &recv, &err), SL_UNSUPPORTED);
    page = &n;
    assert_code(kvt_recv_open(n.d.context, &ro, &recv, &err), SL_INVALID);
    assert_null(recv);

    kvt_send_cancel(t.send);
    net_run(&n, n.now + SL_S_NS, NULL);
    assert_code(kit_announce(&n.p, t.send, shape, 1, 0, &err), SL_CONFLICT);
    assert_code(kvt_send_commit(t.send, &commit, &err), SL_CONFLICT);
    kvt_send_cancel(t.send);
    kvt_recv_revoke(t.recv);
    pair_release(&t);
    net_stop(&n);
}

TEST(transfers_are_bounded)
{
    static kit_end pe[KVT_SENDS_MAX], de[KVT_RECVS_MAX];
    static kvt_send *send[KVT_SENDS_MAX];
    static kvt_recv *recv[KVT_RECVS_MAX];
    net n;
    sl_err err;
    net_start(&n, 29, 4);
    memset(pe, 0, sizeof pe);
    memset(de, 0, sizeof de);
    kit_shape shape = shape_of(&n, 1);
    for (uint32_t i = 0; i < KVT_SENDS_MAX; i++) {
        kvt_nonce nonce = kit_nonce();
        recv[i] = kit_recv(&n.d, shape, nonce, &de[i]);
        send[i] = kit_send(&n.p, shape, D_ADDRESS, nonce, &pe[i]);
    }
    kvt_send_options so = {.address = D_ADDRESS, .nonce = kit_nonce(), .group_count = 1};
    kvt_send *more = NULL;
    assert_code(kvt_send_open(n.p.context, &so, &more, &err), SL_FULL);
    void *page = n.d.memory;
    kvt_recv_options ro = {.nonce = kit_nonce(),
                           .block_count = 1,
                           .group_count = 1,
                           .pages = &page,
                           .slices = n.d.slices};
    kvt_recv *more_recv = NULL;
    assert_code(kvt_recv_open(n.d.context, &ro, &more_recv, &err), SL_FULL);
    for (uint32_t i = 0; i < KVT_SENDS_MAX; i++) {
        kit_announce_all(&n.p, send[i], shape);
        kit_commit_final(send[i], i);
    }
    net_run(&n, n.now + SL_S_NS, NULL);
    for (uint32_t i = 0; i < KVT_SENDS_MAX; i++) {
        assert_int_equal(pe[i].code, SL_OK);
        assert_int_equal(de[i].code, SL_OK);
        assert_int_equal(de[i].tokens, i);
        assert_int_equal(pe[i].closed, 1);
        assert_int_equal(de[i].closed, 1);
        kvt_send_release(send[i]);
        kvt_recv_release(recv[i]);
    }
    assert_rest(&n);
    net_stop(&n);
}

/* D lost its hearing while nobody spoke to it: the first who does finds out, and whoever comes
 * after is heard. */
TEST(a_deaf_receiver_restarts_its_transport)
{
    net n;
    pair t;
    kvt_stats stats;
    net_start(&n, 21, 10);
    kit_shape shape = shape_of(&n, 10);
    net_run(&n, n.now + SL_MS_NS, NULL); /* a probe was heard */
    kvt_fake_deafen(n.fake, "d0");
    pair_open(&n, &t, shape);
    net_run(&n, n.now + 20 * SL_S_NS, &t.pe.closed);
    assert_int_equal(t.pe.code, SL_UNAVAILABLE);
    net_run(&n, n.now + 20 * SL_S_NS, &t.de.closed);
    pair_release(&t);
    net_run(&n, n.now + 2 * SL_S_NS, NULL);
    kvt_stats_get(n.d.context, &stats);
    assert_int_equal(stats.restarts_deaf, 1);
    assert_int_equal(stats.restarts, 1);
    kvt_stats_get(n.p.context, &stats);
    assert_int_equal(stats.restarts, 0);
    shape = shape_of(&n, 10);
    pair_run(&n, &t, shape);
    assert_int_equal(t.pe.code, SL_OK);
    assert_int_equal(t.de.code, SL_OK);
    assert_true(kit_equal(&n.p, &n.d));
    assert_rest(&n);
    net_stop(&n);
}

/* Amid a transfer: a third process dies, and D hears neither it nor P. What is open ends, once;
 * nothing lands in its pages afterwards; the retry is exact. */
TEST(deafness_amid_a_transfer_ends_what_is_open)
{
    net n;
    pair t;
    kit_side other;
    kvt_stats stats;
    net_start(&n, 22, 100);
    kit_memory(&other, 1, PAGE_BYTES);
    kit_create(&other, (kvt_options){.name = "p1", .fake = n.fake});
    kvt_warm(other.context, D_ADDRESS);
    run_to_middle(&n, &t, shape_of(&n, 100));
    kvt_fake_deafen(n.fake, "d0");
    kvt_fake_kill(n.fake, "p1");
    net_run(&n, n.now + 2 * SL_S_NS, &t.de.closed);
    assert_int_equal(t.de.code, SL_UNAVAILABLE);
    assert_text_contains(t.de.text, "deaf");
    reuse_pages(&n, 20 * SL_S_NS);
    assert_int_equal(t.pe.code, SL_UNAVAILABLE);
    pair_release(&t);
    kvt_stats_get(n.d.context, &stats);
    assert_int_equal(stats.restarts_deaf, 1);
    pair_run(&n, &t, shape_of(&n, 100));
    assert_int_equal(t.de.code, SL_OK);
    assert_true(kit_equal(&n.p, &n.d));
    assert_rest(&n);
    kit_fini(&other);
    net_stop(&n);
}

/* As often as it is deafened, but with time between. A peer that is only slow is no reason. */
TEST(restarts_for_deafness_keep_their_distance)
{
    net n;
    kvt_stats stats;
    net_start(&n, 23, 1);
    net_run(&n, n.now + SL_MS_NS, NULL);
    sl_time_ns began = n.now;
    for (uint32_t i = 1; i <= 3; i++) {
        do {
            kit_end end = {0};
            kvt_fake_deafen(n.fake, "d0");
            kvt_send *send = kit_send(&n.p, shape_of(&n, 1), D_ADDRESS, kit_nonce(), &end);
            net_run(&n, n.now + 20 * SL_S_NS, &end.closed);
            kvt_send_release(send);
            kvt_stats_get(n.d.context, &stats);
        } while (stats.restarts_deaf < i);
    }
    assert_true(n.now >= began + 2 * KVT_DEAF_MS * SL_MS_NS);
    kvt_fake_pause(n.fake, "p0", true);
    net_run(&n, n.now + 200 * SL_S_NS, NULL);
    kvt_fake_pause(n.fake, "p0", false);
    net_run(&n, n.now + 200 * SL_S_NS, NULL);
    kvt_stats_get(n.d.context, &stats);
    assert_int_equal(stats.restarts_deaf, 3);
    net_stop(&n);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(transfer_is_exact),
    cmocka_unit_test(same_seed_same_run),
    cmocka_unit_test(chunks_commit_in_order_and_cumulatively),
    cmocka_unit_test(commit_waits_for_its_pieces),
    cmocka_unit_test(nothing_to_move_but_the_payload),
    cmocka_unit_test(unknown_nonce_is_refused_without_payload),
    cmocka_unit_test(stale_nonce_after_revoke_is_refused),
    cmocka_unit_test(piece_outside_the_transfer_is_refused),
    cmocka_unit_test(piece_before_the_first_block_is_refused),
    cmocka_unit_test(piece_of_another_size_is_refused),
    cmocka_unit_test(second_sender_of_a_nonce_is_refused),
    cmocka_unit_test(final_commit_must_name_every_piece_of_the_receiver),
    cmocka_unit_test(duplicates_delays_and_reordering_change_nothing),
    cmocka_unit_test(wrong_sum_is_fetched_again_once),
    cmocka_unit_test(sum_wrong_twice_is_corrupt),
    cmocka_unit_test(sums_off_takes_what_comes),
    cmocka_unit_test(sums_sample_checks_some),
    cmocka_unit_test(lost_piece_ends_at_the_deadline),
    cmocka_unit_test(receiver_that_nobody_calls_ends_at_its_deadline),
    cmocka_unit_test(nobody_listens),
    cmocka_unit_test(unanswered_hello_ends_at_the_connect_deadline),
    cmocka_unit_test(revoke_amid_fetches_then_pages_are_ours),
    cmocka_unit_test(cancel_by_the_sender_frees_both_sides),
    cmocka_unit_test(killed_sender_is_unavailable_at_once),
    cmocka_unit_test(killed_receiver_is_unavailable_at_once),
    cmocka_unit_test(stopped_sender_cannot_write_late),
    cmocka_unit_test(stalled_fetches_close_the_connection),
    cmocka_unit_test(a_deaf_receiver_restarts_its_transport),
    cmocka_unit_test(deafness_amid_a_transfer_ends_what_is_open),
    cmocka_unit_test(restarts_for_deafness_keep_their_distance),
    cmocka_unit_test(partition_ends_both_sides),
    cmocka_unit_test(idle_connection_closes_after_a_minute),
    cmocka_unit_test(warm_connects_ahead),
    cmocka_unit_test(events_wait_for_a_slow_owner),
    cmocka_unit_test(calls_are_checked),
    cmocka_unit_test(transfers_are_bounded),
};

TEST_MAIN(tests)
