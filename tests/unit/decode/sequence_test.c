/* Which actions does a sequence ask for in each life, and does every life end with nothing held? */
#include "decode/sequence.h"

#include "tests/unit/test.h"

static dec_sequence sequence;
static const uint64_t PREFILL_NS = 5 * SL_S_NS;

static dec_outcome on(dec_event_kind kind, sl_time_ns now)
{
    dec_event event = {.kind = kind, .code = SL_UNAVAILABLE};
    return dec_sequence_handle(&sequence, &event, now);
}

static dec_outcome admit(uint32_t epoch, bool self_prefill, sl_time_ns now)
{
    dec_event event = {.kind = DEC_EVENT_ADMIT,
                       .epoch = epoch,
                       .self_prefill = self_prefill,
                       .prefill_ns = PREFILL_NS};
    return dec_sequence_handle(&sequence, &event, now);
}

static void fetch(void)
{
    dec_sequence_init(&sequence, 1, false, PREFILL_NS);
    assert_int_equal(on(DEC_EVENT_OPENED, 10).actions,
                     DEC_ACTION_OPEN_TRANSFER | DEC_ACTION_SEND_ADMITTED);
    assert_int_equal(sequence.state, DEC_STATE_FETCHING);
    assert_int_equal(sequence.deadline, 10 + PREFILL_NS);
}

TEST(plain_life)
{
    fetch();
    assert_int_equal(on(DEC_EVENT_COMMITTED, 20).actions, DEC_ACTION_ADOPT);
    assert_int_equal(on(DEC_EVENT_TRANSFER_CLOSED, 21).actions, 0);
    assert_int_equal(sequence.state, DEC_STATE_RUNNING);
    assert_int_equal(on(DEC_EVENT_FINISHED, 30).actions, 0);
    assert_int_equal(sequence.state, DEC_STATE_DONE);
}

TEST(finished_before_the_transfer_closed)
{
    fetch();
    assert_int_equal(on(DEC_EVENT_COMMITTED, 20).actions, DEC_ACTION_ADOPT);
    assert_int_equal(on(DEC_EVENT_FINISHED, 30).actions, 0);
    assert_int_equal(sequence.state, DEC_STATE_CLOSING);
    assert_int_equal(on(DEC_EVENT_TRANSFER_CLOSED, 31).actions, 0);
    assert_int_equal(sequence.state, DEC_STATE_DONE);
}

TEST(self_prefill_needs_no_transfer)
{
    dec_sequence_init(&sequence, 1, true, PREFILL_NS);
    assert_int_equal(on(DEC_EVENT_OPENED, 10).actions, DEC_ACTION_RUN_SELF);
    assert_int_equal(sequence.state, DEC_STATE_RUNNING);
}

TEST(no_pages)
{
    dec_sequence_init(&sequence, 1, false, PREFILL_NS);
    dec_outcome out = on(DEC_EVENT_OPEN_FAILED, 10);
    assert_int_equal(out.actions, DEC_ACTION_SEND_REFUSED);
    assert_int_equal(out.code, SL_UNAVAILABLE);
    assert_int_equal(sequence.state, DEC_STATE_DONE);
}

TEST(prefill_died_then_a_newer_epoch)
{
    fetch();
    assert_int_equal(on(DEC_EVENT_TRANSFER_FAILED, 20).actions, DEC_ACTION_SEND_REFUSED);
    assert_int_equal(admit(2, false, 21).actions, 0); /* the old transfer is still open */
    assert_int_equal(on(DEC_EVENT_TRANSFER_CLOSED, 22).actions,
                     DEC_ACTION_OPEN_TRANSFER | DEC_ACTION_SEND_ADMITTED);
    assert_int_equal(sequence.epoch, 2);
    assert_int_equal(sequence.state, DEC_STATE_FETCHING);
}

TEST(newer_epoch_while_fetching_revokes_first)
{
    fetch();
    assert_int_equal(admit(2, false, 20).actions, DEC_ACTION_REVOKE_TRANSFER);
    assert_int_equal(sequence.state, DEC_STATE_STALLED);
    assert_int_equal(on(DEC_EVENT_TRANSFER_CLOSED, 21).actions,
                     DEC_ACTION_OPEN_TRANSFER | DEC_ACTION_SEND_ADMITTED);
}

TEST(newer_epoch_may_ask_this_rank_to_prefill)
{
    fetch();
    assert_int_equal(on(DEC_EVENT_TRANSFER_FAILED, 20).actions, DEC_ACTION_SEND_REFUSED);
    assert_int_equal(on(DEC_EVENT_TRANSFER_CLOSED, 21).actions, 0);
    assert_int_equal(admit(2, true, 22).actions, DEC_ACTION_RUN_SELF);
}

TEST(old_epochs_are_refused)
{
    fetch();
    assert_int_equal(admit(1, false, 20).code, SL_CONFLICT);
    assert_int_equal(sequence.state, DEC_STATE_FETCHING);
    assert_int_equal(on(DEC_EVENT_COMMITTED, 30).actions, DEC_ACTION_ADOPT);
    assert_int_equal(admit(2, false, 31).code, SL_CONFLICT); /* generation began */
}

/* ---- the router's stream breaks */

static dec_outcome detach(uint64_t park_ns, sl_time_ns now)
{
    dec_event event = {.kind = DEC_EVENT_DETACH, .park_ns = park_ns};
    return dec_sequence_handle(&sequence, &event, now);
}

TEST(parked_it_goes_on_and_the_router_comes_back)
{
    fetch();
    assert_int_equal(detach(300, 20).actions, 0);
    assert_true(dec_sequence_is_parked(&sequence));
    assert_int_equal(dec_sequence_due(&sequence), 320);
    assert_int_equal(on(DEC_EVENT_COMMITTED, 30).actions, DEC_ACTION_ADOPT);
    assert_int_equal(on(DEC_EVENT_TRANSFER_CLOSED, 31).actions, 0);
    assert_int_equal(on(DEC_EVENT_TICK, 319).actions, 0);
    assert_int_equal(on(DEC_EVENT_ATTACH, 319).actions, 0);
    assert_false(dec_sequence_is_parked(&sequence));
    assert_int_equal(on(DEC_EVENT_TICK, 320).actions, 0);
    assert_int_equal(sequence.state, DEC_STATE_RUNNING);
    assert_true(dec_sequence_due(&sequence) == SL_NEVER);
}

TEST(parked_too_long_it_ends_as_if_cancelled)
{
    fetch();
    assert_int_equal(detach(300, 20).actions, 0);
    assert_int_equal(on(DEC_EVENT_TICK, 320).actions, DEC_ACTION_REVOKE_TRANSFER);
    assert_int_equal(sequence.state, DEC_STATE_CLOSING);
    assert_true(sequence.cancelled);
    assert_int_equal(on(DEC_EVENT_TRANSFER_CLOSED, 321).actions, DEC_ACTION_CLOSE_ENGINE);
    assert_int_equal(on(DEC_EVENT_ENGINE_CLOSED, 322).actions, 0);
    assert_int_equal(sequence.state, DEC_STATE_DONE);
}

TEST(without_parking_a_broken_stream_cancels)
{
    fetch();
    assert_int_equal(detach(0, 20).actions, DEC_ACTION_REVOKE_TRANSFER);
    assert_true(sequence.cancelled);
    assert_false(dec_sequence_is_parked(&sequence));
}

TEST(a_cancelled_one_is_not_parked)
{
    fetch();
    on(DEC_EVENT_CANCEL, 15);
    detach(300, 20);
    assert_false(dec_sequence_is_parked(&sequence));
}

TEST(what_ended_while_parked_keeps_its_end_until_the_deadline)
{
    dec_sequence_init(&sequence, 1, true, PREFILL_NS);
    on(DEC_EVENT_OPENED, 10);
    detach(300, 20);
    assert_int_equal(on(DEC_EVENT_FINISHED, 30).actions, 0);
    assert_int_equal(sequence.state, DEC_STATE_DONE);
    assert_true(dec_sequence_is_parked(&sequence));
    assert_int_equal(on(DEC_EVENT_TICK, 320).actions, 0);
    assert_false(dec_sequence_is_parked(&sequence));
}

TEST(opening_and_parked)
{
    dec_sequence_init(&sequence, 1, false, PREFILL_NS);
    detach(300, 5);
    assert_int_equal(on(DEC_EVENT_TICK, 305).actions, 0);
    assert_true(sequence.cancelled);
    assert_int_equal(on(DEC_EVENT_OPENED, 310).actions, DEC_ACTION_CLOSE_ENGINE);
    on(DEC_EVENT_ENGINE_CLOSED, 311);
    assert_int_equal(sequence.state, DEC_STATE_DONE);
}

TEST(a_refusal_that_was_not_heard_is_told_again)
{
    fetch();
    detach(300, 20);
    dec_outcome out = on(DEC_EVENT_TRANSFER_FAILED, 30);
    assert_int_equal(out.actions, DEC_ACTION_SEND_REFUSED);
    out = on(DEC_EVENT_ATTACH, 40);
    assert_int_equal(out.actions, DEC_ACTION_SEND_REFUSED);
    assert_int_equal(out.code, SL_UNAVAILABLE);
    assert_int_equal(on(DEC_EVENT_TRANSFER_CLOSED, 41).actions, 0);
    assert_int_equal(admit(2, false, 42).actions,
                     DEC_ACTION_OPEN_TRANSFER | DEC_ACTION_SEND_ADMITTED);
}

TEST(deadlines_are_exact)
{
    fetch();
    assert_int_equal(on(DEC_EVENT_TICK, 10 + PREFILL_NS - 1).actions, 0);
    dec_outcome out = on(DEC_EVENT_TICK, 10 + PREFILL_NS);
    assert_int_equal(out.actions, DEC_ACTION_REVOKE_TRANSFER | DEC_ACTION_SEND_REFUSED);
    assert_int_equal(out.code, SL_DEADLINE);
    sl_time_ns stalled = 10 + PREFILL_NS;
    assert_int_equal(on(DEC_EVENT_TRANSFER_CLOSED, stalled + 1).actions, 0);
    assert_int_equal(on(DEC_EVENT_TICK, stalled + DEC_STALL_NS - 1).actions, 0);
    out = on(DEC_EVENT_TICK, stalled + DEC_STALL_NS);
    assert_int_equal(out.actions, DEC_ACTION_CLOSE_ENGINE | DEC_ACTION_SEND_FAILED);
    on(DEC_EVENT_ENGINE_CLOSED, stalled + DEC_STALL_NS + 1);
    assert_int_equal(sequence.state, DEC_STATE_DONE);
}

TEST(cancel_in_every_state)
{
    /* opening */
    dec_sequence_init(&sequence, 1, false, PREFILL_NS);
    assert_int_equal(on(DEC_EVENT_CANCEL, 5).actions, 0);
    assert_int_equal(on(DEC_EVENT_OPENED, 6).actions, DEC_ACTION_CLOSE_ENGINE);
    on(DEC_EVENT_ENGINE_CLOSED, 7);
    assert_int_equal(sequence.state, DEC_STATE_DONE);
    /* fetching: the pages go only after the transfer has let go */
    fetch();
    assert_int_equal(on(DEC_EVENT_CANCEL, 20).actions, DEC_ACTION_REVOKE_TRANSFER);
    assert_int_equal(on(DEC_EVENT_TRANSFER_CLOSED, 21).actions, DEC_ACTION_CLOSE_ENGINE);
    on(DEC_EVENT_ENGINE_CLOSED, 22);
    assert_int_equal(sequence.state, DEC_STATE_DONE);
    /* running, and the engine had finished at the same moment */
    fetch();
    on(DEC_EVENT_COMMITTED, 20);
    assert_int_equal(on(DEC_EVENT_CANCEL, 21).actions, DEC_ACTION_CLOSE_ENGINE);
    assert_int_equal(on(DEC_EVENT_FINISHED, 22).actions, 0);
    assert_int_equal(on(DEC_EVENT_TRANSFER_CLOSED, 23).actions, 0);
    assert_int_equal(sequence.state, DEC_STATE_CLOSING);
    on(DEC_EVENT_ENGINE_CLOSED, 24);
    assert_int_equal(sequence.state, DEC_STATE_DONE);
}

static dec_outcome extend(uint64_t prefill_ns, sl_time_ns now)
{
    dec_event event = {.kind = DEC_EVENT_EXTEND, .prefill_ns = prefill_ns};
    return dec_sequence_handle(&sequence, &event, now);
}

TEST(a_prefill_node_that_rests_has_more_time)
{
    fetch();
    assert_int_equal(extend(30 * SL_S_NS, 4 * SL_S_NS).actions, 0);
    assert_int_equal(on(DEC_EVENT_TICK, 34 * SL_S_NS - 1).actions, 0);
    assert_int_equal(extend(PREFILL_NS, 20 * SL_S_NS).actions, 0); /* it works again */
    assert_int_equal(on(DEC_EVENT_TICK, 25 * SL_S_NS - 1).actions, 0);
    dec_outcome out = on(DEC_EVENT_TICK, 25 * SL_S_NS);
    assert_int_equal(out.actions, DEC_ACTION_REVOKE_TRANSFER | DEC_ACTION_SEND_REFUSED);
    assert_int_equal(out.code, SL_DEADLINE);
    /* stalled: what is here is kept for longer as well */
    on(DEC_EVENT_TRANSFER_CLOSED, 26 * SL_S_NS);
    extend(600 * SL_S_NS, 30 * SL_S_NS);
    assert_int_equal(on(DEC_EVENT_TICK, 630 * SL_S_NS - 1).actions, 0);
    assert_int_equal(on(DEC_EVENT_TICK, 630 * SL_S_NS).actions,
                     DEC_ACTION_CLOSE_ENGINE | DEC_ACTION_SEND_FAILED);
}

TEST(only_what_waits_for_a_prefill_node_has)
{
    dec_sequence_init(&sequence, 1, false, PREFILL_NS);
    extend(30 * SL_S_NS, 1);
    assert_true(sequence.deadline == SL_NEVER);
    on(DEC_EVENT_OPENED, 10);
    admit(2, false, 11); /* gives way: the transfer closes in its own time */
    extend(30 * SL_S_NS, 12);
    assert_true(sequence.deadline == SL_NEVER);
    on(DEC_EVENT_TRANSFER_CLOSED, 13);
    on(DEC_EVENT_COMMITTED, 20);
    extend(30 * SL_S_NS, 21);
    assert_int_equal(sequence.state, DEC_STATE_RUNNING);
    assert_true(sequence.deadline == SL_NEVER);
}

/* ---- a random walk against a model of the world: who may answer what ---- */

typedef struct world {
    bool open_pending, close_pending; /* the engine owes an answer */
    bool engine_running;              /* may report FINISHED */
    bool transfer, revoking;          /* kvtransfer owes CLOSED */
    uint64_t state;
} world;

static uint32_t draw(world *w, uint32_t limit)
{
    w->state = w->state * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(w->state >> 33) % limit;
}

static void carry_out(world *w, dec_outcome out)
{
    if (out.actions & DEC_ACTION_REVOKE_TRANSFER) {
        assert_true(w->transfer);
        w->revoking = true;
    }
    if (out.actions & DEC_ACTION_OPEN_TRANSFER) {
        assert_false(w->transfer);
        w->transfer = true;
    }
    if (out.actions & (DEC_ACTION_ADOPT | DEC_ACTION_RUN_SELF)) {
        assert_false(w->engine_running);
        w->engine_running = true;
    }
    if (out.actions & DEC_ACTION_CLOSE_ENGINE) {
        /* The one rule that matters: pages are given back only when nobody can write into them. A
         * verified transfer has ended writing. */
        assert_true(!w->transfer || w->engine_running);
        assert_false(w->close_pending);
        w->close_pending = true;
    }
}

static void random_event(world *w, sl_time_ns now)
{
    switch (draw(w, 10)) {
    case 0:
        if (w->open_pending) {
            w->open_pending = false;
            carry_out(w, on(draw(w, 8) ? DEC_EVENT_OPENED : DEC_EVENT_OPEN_FAILED, now));
        }
        break;
    case 1:
        if (w->transfer && !w->revoking && sequence.state == DEC_STATE_FETCHING)
            carry_out(w, on(draw(w, 2) ? DEC_EVENT_COMMITTED : DEC_EVENT_TRANSFER_FAILED, now));
        break;
    case 2:
        if (w->transfer && (w->revoking || sequence.state != DEC_STATE_FETCHING)) {
            w->transfer = w->revoking = false;
            carry_out(w, on(DEC_EVENT_TRANSFER_CLOSED, now));
        }
        break;
    case 3:
        if (w->engine_running) {
            w->engine_running = false;
            carry_out(w, on(DEC_EVENT_FINISHED, now));
        }
        break;
    case 4:
        if (w->close_pending) {
            w->close_pending = w->engine_running = false;
            carry_out(w, on(DEC_EVENT_ENGINE_CLOSED, now));
        }
        break;
    case 5:
        if (draw(w, 6) == 0)
            carry_out(w, on(DEC_EVENT_CANCEL, now));
        break;
    case 6:
        carry_out(w, admit(sequence.epoch + draw(w, 2), draw(w, 4) == 0, now));
        break;
    case 7:
        if (dec_sequence_is_parked(&sequence))
            carry_out(w, on(DEC_EVENT_ATTACH, now));
        else
            carry_out(w, detach(draw(w, 3) * SL_S_NS, now));
        break;
    case 8:
        if (draw(w, 8) == 0) /* or it would never end */
            carry_out(w, extend(draw(w, 30) * SL_S_NS, now));
        break;
    default:
        carry_out(w, on(DEC_EVENT_TICK, now));
    }
}

TEST(every_walk_ends_with_nothing_held)
{
    for (uint64_t seed = 0; seed < 20000; seed++) {
        world w = {.open_pending = true, .state = seed};
        sl_time_ns now = 0;
        dec_sequence_init(&sequence, 1, draw(&w, 4) == 0, PREFILL_NS);
        for (int step = 0; step < 4000 && sequence.state != DEC_STATE_DONE; step++) {
            now += SL_S_NS / 2;
            random_event(&w, now);
        }
        assert_int_equal(sequence.state, DEC_STATE_DONE);
        assert_false(w.transfer || w.close_pending || w.open_pending);
    }
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(plain_life),
    cmocka_unit_test(finished_before_the_transfer_closed),
    cmocka_unit_test(self_prefill_needs_no_transfer),
    cmocka_unit_test(no_pages),
    cmocka_unit_test(prefill_died_then_a_newer_epoch),
    cmocka_unit_test(newer_epoch_while_fetching_revokes_first),
    cmocka_unit_test(newer_epoch_may_ask_this_rank_to_prefill),
    cmocka_unit_test(old_epochs_are_refused),
    cmocka_unit_test(parked_it_goes_on_and_the_router_comes_back),
    cmocka_unit_test(parked_too_long_it_ends_as_if_cancelled),
    cmocka_unit_test(without_parking_a_broken_stream_cancels),
    cmocka_unit_test(a_cancelled_one_is_not_parked),
    cmocka_unit_test(what_ended_while_parked_keeps_its_end_until_the_deadline),
    cmocka_unit_test(opening_and_parked),
    cmocka_unit_test(a_refusal_that_was_not_heard_is_told_again),
    cmocka_unit_test(deadlines_are_exact),
    cmocka_unit_test(cancel_in_every_state),
    cmocka_unit_test(a_prefill_node_that_rests_has_more_time),
    cmocka_unit_test(only_what_waits_for_a_prefill_node_has),
    cmocka_unit_test(every_walk_ends_with_nothing_held),
};
TEST_MAIN(TESTS)
