/* The request machine: what goes well, waits, breaks off and comes back. */
#include "base/rng.h"
#include "tests/unit/router/request_kit.h"

TEST(straight_run)
{
    script s;
    begin(&s);
    RUN("progress e1 => | prefilling", "prefilled e1 => | decoding",
        "tokens d1 e1 0+1 => deliver 0+1 | decoding", "tokens d1 e1 1+3 => deliver 0+3 | decoding",
        "tokens d1 e1 4+1 stop => deliver 0+1, finish stop | done", "tokens d1 e1 5+1 => | done",
        "gone => | done", "lost d1 => | done", "timer => | done");
    assert_int_equal(s.request.token_count, 5);
    assert_true(rtr_request_over(&s.request));
    assert_true(rtr_request_deadline(&s.request) == SL_NEVER);
}

TEST(a_broken_stream_comes_back)
{
    script s;
    begin(&s);
    RUN("broken d1 => | prefilling", "progress e1 => | prefilling", "wait 1999",
        "timer => | prefilling", "back d1 d2 => attach d2 e1 | prefilling",
        "tokens d1 e1 0+1 => | prefilling", "tokens d2 e1 0+2 => deliver 0+2 | decoding",
        "prefilled e1 => | decoding", "broken d2 => | decoding", "back d1 d9 => | decoding",
        "back d2 d3 => attach d3 e1 | decoding", "wait 2001", "timer => | decoding",
        "tokens d3 e1 1+3 => deliver 1+2 | decoding",
        "tokens d3 e1 4+1 stop => deliver 0+1, finish stop | done");
    assert_int_equal(s.request.attempts, 0);
}

TEST(a_broken_stream_does_not_come_back)
{
    script s;
    begin(&s);
    RUN("prefilled e1 => | decoding", "tokens d1 e1 0+1 => deliver 0+1 | decoding",
        "broken d1 => | decoding", "wait 1999", "timer => | decoding", "wait 1",
        "timer => place | queued", "back d1 d2 => | queued",
        "placed d3 p7 => admit d3 e2 | admitting",
        "admitted d3 e2 => migrated decode_lost, prefill p7 e2 | prefilling");
    begin(&s);
    RUN("broken d1 => | prefilling", "lost d1 => cancel p7, place | queued");
    begin(&s);
    RUN("prefilled e1 => | decoding", "broken d1 => | decoding",
        "back d1 d2 => attach d2 e1 | decoding", "refused d2 e1 not_found => place | queued");
}

TEST(a_stream_breaks_around_an_admission)
{
    script s;
    script_init(&s); /* nothing was done yet: elsewhere */
    RUN("submit => place | queued", "placed d1 p7 => admit d1 e1 | admitting",
        "broken d1 => place | queued");
    script_init(&s); /* it may be computing: the same admission again */
    RUN("submit => place | queued", "placed d1 => admit d1 e1 | admitting",
        "broken d1 => | admitting", "back d1 d2 => admit d2 e1 | admitting",
        "tokens d2 e1 0+1 => deliver 0+1 | decoding");
    begin(&s); /* the prefill is lost meanwhile: the verified blocks are still wanted */
    RUN("broken d1 => | prefilling", "lost p7 => cancel p7, place | queued",
        "no decode => | queued", "back d1 d2 => attach d2 e1, place | queued",
        "placed d2 p8 => admit d2 e2 | admitting",
        "admitted d2 e2 => migrated prefill_lost, prefill p8 e2 | prefilling");
    begin(&s);
    s.limits.attach_timeout_ns = 0;
    RUN("broken d1 => cancel p7, place | queued");
}

TEST(recovery_waits_for_its_budget)
{
    script s;
    begin(&s);
    RUN("tokens d1 e1 0+1 => deliver 0+1 | decoding", "lost d1 => cancel p7, place | queued",
        "no budget => | queued", "wait 59999", "timer => | queued", "changed => place | queued",
        "no budget => | queued", "wait 1",
        "timer => fail full (too much is to be computed again after losses (waited 60000 ms)) | "
        "failed");
}

TEST(a_client_goes_while_the_stream_is_broken)
{
    script s;
    begin(&s);
    RUN("broken d1 => | prefilling",
        "gone => cancel p7, cancel d1, fail cancelled "
        "(the client is gone) | failed",
        "back d1 d2 => | failed");
}

TEST(first_token_before_the_prefill_nodes_end)
{
    script s;
    begin(&s);
    RUN("tokens d1 e1 0+1 => deliver 0+1 | decoding", "prefilled e1 => | decoding",
        "tokens d1 e1 1+0 length => finish length | done");
    begin(&s);
    RUN("tokens d1 e1 0+2 stop => deliver 0+2, cancel p7, finish stop | done");
}

TEST(duplicates_are_dropped_and_gaps_are_errors)
{
    script s;
    begin(&s);
    RUN("tokens d1 e1 0+3 => deliver 0+3 | decoding", "tokens d1 e1 0+3 => | decoding",
        "tokens d1 e1 1+4 => deliver 2+2 | decoding", "tokens d1 e1 4+0 => | decoding",
        "tokens d1 e1 6+1 => cancel p7, cancel d1, fail internal (the decode node skipped tokens "
        "(expected index 5, got 6)) | failed");
    begin(&s);
    RUN("prefilled e1 => | decoding", "tokens d1 e1 0+9 => deliver 0+9 | decoding",
        "tokens d1 e1 9+2 => cancel d1, fail internal (the decode node sent more tokens than asked "
        "for) | failed");
}

TEST(prefill_node_is_full)
{
    script s;
    begin(&s);
    RUN("unfilled e1 full => place | queued", "no room => | queued", "wait 100",
        "timer => place | queued", "placed d1 p7 => admit d1 e2 | admitting",
        "admitted d1 e2 => prefill p7 e2 | prefilling");
    assert_int_equal(s.request.attempts, 0);
}

/* A rank's new ticket says nothing about those that had no room: they get their pause. */
TEST(prefill_nodes_that_are_full_are_not_asked_in_circles)
{
    script s;
    begin(&s);
    RUN("unfilled e1 full => place | queued", "placed d1 p8 => admit d1 e2 | admitting",
        "admitted d1 e2 => prefill p8 e2 | prefilling", "unfilled e2 full => place | queued");
    assert_int_equal(s.request.refused_prefill_count, 2);
    RUN("no room => | queued", "wait 100", "timer => place | queued");
    assert_int_equal(s.request.refused_prefill_count, 0);
    RUN("placed d1 p7 => admit d1 e3 | admitting", "admitted d1 e3 => prefill p7 e3 | prefilling",
        "unfilled e3 full => place | queued", "placed d1 p8 => admit d1 e4 | admitting",
        "admitted d1 e4 => prefill p8 e4 | prefilling");
    assert_int_equal(s.request.refused_prefill_count, 1);
    RUN("progress e4 => | prefilling"); /* it took it */
    assert_int_equal(s.request.refused_prefill_count, 0);
    assert_int_equal(s.request.attempts, 0);
}

TEST(asked_again_a_rank_has_already_begun)
{
    script s;
    begin(&s);
    RUN("lost p7 => cancel p7, place | queued", "placed d1 p8 => admit d1 e2 | admitting",
        "refused d1 e2 conflict => | decoding", "tokens d1 e1 0+1 => deliver 0+1 | decoding",
        "tokens d1 e1 1+1 stop => deliver 0+1, finish stop | done");
    begin(&s);
    RUN("lost p7 => cancel p7, place | queued", "placed d1 p8 => admit d1 e2 | admitting",
        "tokens d1 e1 0+1 => deliver 0+1 | decoding", "refused d1 e2 conflict => | decoding");
}

TEST(nobody_is_left)
{
    script s;
    begin(&s);
    RUN("tokens d1 e1 0+4 => deliver 0+4 | decoding", "lost d1 => cancel p7, place | queued",
        "no decode => | queued", "wait 4999", "timer => | queued", "changed => place | queued",
        "no decode => | queued", "wait 1",
        "timer => fail unavailable (no decode node is usable (waited 5000 ms for one)) | failed");
    script_init(&s);
    RUN("submit => place | queued", "no prefill => | queued", "wait 5000",
        "timer => fail unavailable (no prefill node is usable (waited 5000 ms for one)) | failed");
}

TEST(waiting_for_room_is_longer)
{
    script s;
    script_init(&s);
    RUN("submit => place | queued", "no room => | queued", "wait 59999", "timer => | queued",
        "wait 1",
        "timer => fail full (all decode nodes are full (waited 60000 ms for room)) | failed");
    /* room, then no node at all: the wait for a node begins then */
    script_init(&s);
    RUN("submit => place | queued", "no room => | queued", "wait 30000",
        "changed => place | queued", "no decode => | queued", "wait 4999", "timer => | queued",
        "wait 1",
        "timer => fail unavailable (no decode node is usable (waited 5000 ms for one)) | failed");
    /* the whole search is bounded, however the reasons change */
    script_init(&s);
    RUN("submit => place | queued", "no room => | queued", "wait 59000",
        "changed => place | queued", "no decode => | queued", "wait 3000",
        "changed => place | queued", "no room => | queued", "wait 3000",
        "timer => fail full (all decode nodes are full (waited 3000 ms for room)) | failed");
}

/* Times are absolute: a script begins at 1000. */
TEST(a_pause_is_waited_for)
{
    script s;
    script_init(&s);
    RUN("submit => place | queued", "no node works until 91000 => | queued", "wait 89000",
        "timer => | queued", "changed => place | queued", "no node works until 181000 => | queued",
        "wait 90000", "changed => place | queued", "no decode => | queued", "wait 4999",
        "timer => | queued", "changed => place | queued", "no room => | queued", "wait 54999",
        "timer => | queued", "changed => place | queued",
        "placed d1 p7 => admit d1 e1 | admitting");
    /* a node that said so and does not come back is waited for no longer than any */
    script_init(&s);
    RUN("submit => place | queued", "no node works until 91000 => | queued", "wait 94999",
        "timer => | queued", "wait 1",
        "timer => fail unavailable (the nodes are paused (waited 95000 ms)) | failed");
    /* refused after the pause: the search is as old as before it */
    script_init(&s);
    RUN("submit => place | queued", "no node works until 91000 => | queued", "wait 90000",
        "changed => place | queued", "placed d1 p7 => admit d1 e1 | admitting",
        "refused d1 e1 full => place | queued", "no room => | queued", "wait 59999",
        "timer => place | queued");
}

TEST(who_rests_is_not_stuck)
{
    script s;
    begin(&s); /* a prefill may be silent for 3000 */
    RUN("wait 3000", "timer, at rest until 3999 => | prefilling", "wait 2998",
        "timer, at rest until 3999 => | prefilling", "wait 1",
        "timer, at rest until 3999 => cancel p7, place | queued");
    begin(&s); /* between two tokens there may be 4000 */
    RUN("prefilled e1 => | decoding", "tokens d1 e1 0+1 => deliver 0+1 | decoding", "wait 4000",
        "timer, at rest until 5000 => | decoding", "wait 4000",
        "timer, at rest until 9000 => | decoding", "wait 3999",
        "timer, at rest until 9000 => | decoding", "tokens d1 e1 1+1 => deliver 0+1 | decoding",
        "wait 4000", "timer, at rest until 9000 => cancel d1, place | queued");
    assert_int_equal(s.request.attempts, 1);
    begin(&s); /* a stream that broke is no pause */
    RUN("broken d1 => | prefilling", "wait 2000",
        "timer, at rest until 3000 => cancel p7, place | queued");
}

/* The decode node's own deadline for the prompt is moved: `self_timeout_ns` after the rest. */
TEST(a_prefill_node_that_rests_has_more_time)
{
    script s;
    begin(&s);
    RUN("rests p7 until 91000 => extend d1 e1 by 110000 | prefilling", "wait 30000",
        "rests p8 until 91000 => | prefilling", "works p7 => extend d1 e1 by 20000 | prefilling",
        "prefilled e1 => | decoding", "rests p7 until 91000 => | decoding");
    /* what the decode node has of the prompt is kept until there is a prefill node again */
    begin(&s);
    RUN("lost p7 => cancel p7, place | queued",
        "no node works until 91000 => extend d1 e1 by 110000 | queued", "wait 10000",
        "changed => place | queued", "no node works until 92000 => | queued",
        "changed => place | queued", "no node works until 92001 => extend d1 e1 by 101001 | queued",
        "works p7 => | queued", "changed => place | queued",
        "placed d1 p8 => admit d1 e2 | admitting",
        "admitted d1 e2 => migrated prefill_lost, prefill p8 e2 | prefilling");
    /* a stream that broke did not carry it */
    begin(&s);
    RUN("lost p7 => cancel p7, place | queued",
        "no node works until 91000 => extend d1 e1 by 110000 | queued", "broken d1 => | queued",
        "back d1 d2 => attach d2 e1, place | queued",
        "no node works until 91000 => extend d2 e1 by 110000 | queued");
    script_init(&s); /* nothing is kept anywhere */
    RUN("submit => place | queued", "no node works until 91000 => | queued");
}

TEST(larger_than_every_node_fails_at_once)
{
    script s;
    script_init(&s);
    RUN("submit => place | queued",
        "too large => fail too_large (prompt and max_tokens together exceed the cache of every "
        "decode node) | failed");
}

TEST(refusals)
{
    script s;
    script_init(&s);
    RUN("submit => place | queued", "placed d1 p7 => admit d1 e1 | admitting",
        "refused d2 e1 full => | admitting", "refused d1 e0 full => | admitting",
        "refused d1 e1 full => place | queued");
    assert_int_equal(s.request.refused_decode[0], 1);
    RUN("placed d2 p7 => admit d2 e2 | admitting", "refused d2 e2 unavailable => place | queued",
        "no room => | queued");
    assert_int_equal(s.request.refused_decode_count, 2);
    assert_true(rtr_request_deadline(&s.request) == s.now + MS(100));
    RUN("wait 100", "timer => place | queued");
    assert_int_equal(s.request.refused_decode_count, 0);
    RUN("placed d1 p7 => admit d1 e3 | admitting", "refused d1 e3 unavailable => place | queued",
        "no room => | queued", "wait 5000",
        "timer => fail full (no node took the request (waited 5100 ms; the last one said: "
        "unavailable)) | failed");
    script_init(&s);
    RUN("submit => place | queued", "placed d1 p7 => admit d1 e1 | admitting",
        "refused d1 e1 too_large => fail too_large (too_large) | failed");
    script_init(&s);
    RUN("submit => place | queued", "placed d1 p7 => admit d1 e1 | admitting",
        "refused d1 e1 conflict => place | queued", /* it never had it: not "already begun" */
        "placed d2 p7 => admit d2 e2 | admitting");
}

TEST(refusals_without_end_are_bounded)
{
    script s;
    script_init(&s);
    rtr_actions actions;
    rtr_event submit = {.kind = RTR_EVENT_SUBMIT};
    rtr_request_step(&s.request, &submit, s.now, &actions);
    for (int i = 0; i < 10000 && !rtr_request_over(&s.request); i++) {
        rtr_event placed = {.kind = RTR_EVENT_PLACED, .decode = 1 + (uint64_t)i, .prefill = 7};
        rtr_request_step(&s.request, &placed, s.now, &actions);
        rtr_event refused = {.kind = RTR_EVENT_REFUSED,
                             .decode = 1 + (uint64_t)i,
                             .epoch = s.request.epoch,
                             .code = SL_FULL};
        s.now += MS(50);
        rtr_request_step(&s.request, &refused, s.now, &actions);
        assert_true(s.request.refused_decode_count <= RTR_REFUSED_MAX);
    }
    assert_int_equal(s.request.state, RTR_STATE_FAILED);
    assert_true(s.now <= MS(1000 + 65000 + 50));
}

TEST(the_rank_prefills_itself)
{
    script s;
    script_init(&s);
    RUN("submit => place | queued", "placed d1 p0 => admit d1 e1 | admitting", "wait 19000",
        "timer => | admitting", "tokens d1 e1 0+1 => deliver 0+1 | decoding",
        "tokens d1 e1 1+1 stop => deliver 0+1, finish stop | done");
    script_init(&s);
    RUN("submit => place | queued", "placed d1 p0 => admit d1 e1 | admitting",
        "admitted d1 e1 => | prefilling", "wait 20000", "timer => cancel d1, place | queued");
}

TEST(client_goes)
{
    script s;
    script_init(&s);
    RUN("submit => place | queued", "no room => | queued",
        "gone => fail cancelled (the client is gone) | failed");
    script_init(&s);
    RUN("submit => place | queued", "placed d1 p7 => admit d1 e1 | admitting",
        "gone => cancel d1, fail cancelled (the client is gone) | failed",
        "admitted d1 e1 => | failed");
    begin(&s);
    RUN("gone => cancel p7, cancel d1, fail cancelled (the client is gone) | failed");
    begin(&s);
    RUN("prefilled e1 => | decoding",
        "gone => cancel d1, fail cancelled (the client is gone) | failed");
}

TEST(stop_string_and_abort)
{
    script s;
    begin(&s);
    RUN("tokens d1 e1 0+1 => deliver 0+1 | decoding", "prefilled e1 => | decoding",
        "stopped => cancel d1 | done");
    begin(&s);
    RUN("tokens d1 e1 0+1 => deliver 0+1 | decoding", "lost d1 => cancel p7, place | queued",
        "stopped => | done");
    begin(&s);
    RUN("stopped => cancel p7, cancel d1 | done");
    begin(&s);
    RUN("abort => cancel p7, cancel d1, fail unavailable (shutting down) | failed");
}

TEST(transition_table)
{
    for (int from = 0; from < RTR_STATE_COUNT; from++) {
        assert_false(rtr_state_legal(RTR_STATE_DONE, (rtr_state)from));
        assert_false(rtr_state_legal(RTR_STATE_FAILED, (rtr_state)from));
        assert_false(rtr_state_legal((rtr_state)from, (rtr_state)from));
        assert_string_not_equal(rtr_state_name((rtr_state)from), "?");
    }
    assert_false(rtr_state_legal(RTR_STATE_DECODING, RTR_STATE_PREFILLING));
    assert_false(rtr_state_legal(RTR_STATE_QUEUED, RTR_STATE_PREFILLING));
    assert_false(rtr_state_legal((rtr_state)99, RTR_STATE_DONE));
    assert_string_equal(rtr_state_name((rtr_state)99), "?");
}

/* The prompt's rows come on another way than the tokens: whichever is last ends the request. */
TEST(rows_of_the_prompt)
{
    script s;
    begin(&s);
    s.limits.prompt_rows = true;
    RUN("tokens d1 e1 0+1 => deliver 0+1 | decoding",
        "tokens d1 e1 1+1 stop => deliver 0+1 | decoding", "wait 2900", "progress e1 => | decoding",
        "wait 2900", "lost d1 => | decoding", "timer => | decoding",
        "rows => cancel p7, finish stop | done");
    begin(&s);
    s.limits.prompt_rows = true;
    RUN("rows => | prefilling", "prefilled e1 => | decoding",
        "tokens d1 e1 0+10 length => deliver 0+10, finish length | done");
    begin(&s); /* a node of before: it never tells them */
    s.limits.prompt_rows = true;
    RUN("tokens d1 e1 0+1 => deliver 0+1 | decoding",
        "prefilled e1 => cancel d1, fail unsupported (the node does not tell what was asked of the "
        "prompt) | failed");
    script_init(&s);
    s.limits.prompt_rows = true;
    RUN("submit => place | queued", "placed d1 p0 => admit d1 e1 | admitting",
        "tokens d1 e1 0+1 stop => deliver 0+1, fail unsupported (the node does not tell what was "
        "asked of the prompt) | failed");
}

/* Any events in any order: no assertion, tokens never skip, a finished request stays finished,
 * what is granted or running is always let go. */
TEST(random_events)
{
    for (uint64_t seed = 0; seed < 3000; seed++) {
        script s;
        script_init(&s);
        s.limits.prompt_rows = seed % 2;
        uint32_t delivered = 0;
        bool place = false;
        for (uint64_t i = 0; i < 120; i++) {
            rtr_event e;
            rtr_actions actions;
            memset(&e, 0, sizeof e);
#define DRAW(n, stream) ((uint32_t)(sl_keyed_uniform(seed, i, stream) * (n)))
            e.kind = i == 0 ? RTR_EVENT_SUBMIT : (rtr_event_kind)(1 + DRAW(RTR_EVENT_COUNT - 1, 0));
            if (place)
                e.kind = DRAW(4, 1) ? RTR_EVENT_PLACED : RTR_EVENT_UNPLACED;
            else if (e.kind == RTR_EVENT_PLACED || e.kind == RTR_EVENT_UNPLACED)
                e.kind = RTR_EVENT_TOKENS;
            if ((e.kind == RTR_EVENT_ABORT || e.kind == RTR_EVENT_CLIENT_GONE ||
                 e.kind == RTR_EVENT_STOPPED) &&
                DRAW(8, 2))
                e.kind = RTR_EVENT_ADMITTED;
            e.decode = DRAW(4, 3) ? s.request.decode : 1 + DRAW(3, 4);
            e.again = 1 + DRAW(3, 12);
            if (e.kind == RTR_EVENT_PLACED && s.request.decode)
                e.decode = s.request.decode;
            else if (e.kind == RTR_EVENT_PLACED)
                e.decode = 1 + DRAW(3, 4);
            e.prefill = DRAW(4, 5) ? 7 + DRAW(3, 6) : 0;
            e.epoch = s.request.epoch - (DRAW(4, 7) == 0 && s.request.epoch > 0);
            e.first_index = s.request.token_count - (s.request.token_count ? DRAW(2, 8) : 0) +
                            (DRAW(20, 9) == 0);
            e.count = DRAW(3, 10);
            e.finish = DRAW(6, 11) ? RTR_FINISH_NONE : (rtr_finish)DRAW(5, 12);
            static const sl_code CODES[] = {SL_FULL,     SL_UNAVAILABLE, SL_INTERNAL, SL_DEADLINE,
                                            SL_CONFLICT, SL_CORRUPT,     SL_INVALID};
            e.code = CODES[DRAW(7, 13)];
            e.lack = (rtr_lack)(1 + DRAW(5, 14));
            e.until = s.now + MS(DRAW(2000, 16)) - MS(1000);
            s.now += MS(DRAW(400, 15));
            bool over = rtr_request_over(&s.request);
            rtr_request_step(&s.request, &e, s.now, &actions);
            if (over)
                assert_int_equal(actions.count, 0);
            place = false;
            for (uint32_t k = 0; k < actions.count; k++) {
                if (actions.at[k].kind == RTR_ACTION_DELIVER) {
                    assert_int_equal(e.first_index + actions.at[k].skip, delivered);
                    delivered += actions.at[k].count;
                }
                place = place || actions.at[k].kind == RTR_ACTION_PLACE;
                if (actions.at[k].kind == RTR_ACTION_FINISH)
                    assert_true(s.request.rows_done || !s.limits.prompt_rows);
                assert_false(place && k + 1 != actions.count); /* always the last */
            }
            assert_int_equal(delivered, s.request.token_count);
            assert_true(s.request.attempts <= s.limits.attempts_max);
            if (rtr_request_over(&s.request)) {
                assert_false(s.request.prefill_running);
                assert_int_equal(s.request.decode, 0);
            }
        }
    }
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(straight_run),
    cmocka_unit_test(a_broken_stream_comes_back),
    cmocka_unit_test(a_broken_stream_does_not_come_back),
    cmocka_unit_test(a_stream_breaks_around_an_admission),
    cmocka_unit_test(recovery_waits_for_its_budget),
    cmocka_unit_test(a_client_goes_while_the_stream_is_broken),
    cmocka_unit_test(first_token_before_the_prefill_nodes_end),
    cmocka_unit_test(duplicates_are_dropped_and_gaps_are_errors),
    cmocka_unit_test(prefill_node_is_full),
    cmocka_unit_test(prefill_nodes_that_are_full_are_not_asked_in_circles),
    cmocka_unit_test(asked_again_a_rank_has_already_begun),
    cmocka_unit_test(nobody_is_left),
    cmocka_unit_test(waiting_for_room_is_longer),
    cmocka_unit_test(a_pause_is_waited_for),
    cmocka_unit_test(who_rests_is_not_stuck),
    cmocka_unit_test(a_prefill_node_that_rests_has_more_time),
    cmocka_unit_test(larger_than_every_node_fails_at_once),
    cmocka_unit_test(refusals),
    cmocka_unit_test(refusals_without_end_are_bounded),
    cmocka_unit_test(the_rank_prefills_itself),
    cmocka_unit_test(client_goes),
    cmocka_unit_test(stop_string_and_abort),
    cmocka_unit_test(transition_table),
    cmocka_unit_test(rows_of_the_prompt),
    cmocka_unit_test(random_events),
};
TEST_MAIN(TESTS)
