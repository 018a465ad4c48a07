/* The request machine: nodes that die, fail, leave, or fall silent, and who is blamed. */
#include "tests/unit/router/request_kit.h"

static rtr_blame blame_of(script *s, const char *line)
{
    rtr_event event;
    rtr_actions actions;
    char words[2][32];
    assert_true(parse_event(line, &event, words));
    if (words[0][0])
        event.code = code_of(words[0]);
    if (words[1][0])
        event.finish = finish_of(words[1]);
    rtr_request_step(&s->request, &event, s->now, &actions);
    return actions.blame;
}

TEST(who_is_to_blame)
{
    script s;
    begin(&s);
    rtr_blame blame = blame_of(&s, "unfilled e1 internal");
    assert_true(blame.prefill == 7 && blame.decode == 0 && !blame.grave);
    begin(&s); /* its streams tell of that */
    blame = blame_of(&s, "unfilled e1 unavailable");
    assert_true(blame.prefill == 0 && blame.decode == 0);
    begin(&s);
    s.now += MS(3000);
    blame = blame_of(&s, "timer");
    assert_true(blame.prefill == 7 && blame.decode == 0 && blame.grave);
    begin(&s);
    blame = blame_of(&s, "refused d1 e1 corrupt");
    assert_true(blame.prefill == 7 && blame.decode == 0 && !blame.grave);
    begin(&s);
    RUN("prefilled e1 => | decoding");
    s.now += MS(4000);
    blame = blame_of(&s, "timer");
    assert_true(blame.prefill == 0 && blame.decode == 1 && blame.grave);
    begin(&s);
    RUN("prefilled e1 => | decoding");
    blame = blame_of(&s, "tokens d1 e1 0+1 failed internal");
    assert_true(blame.prefill == 0 && blame.decode == 1 && !blame.grave);
}

TEST(prefill_node_dies)
{
    script s;
    begin(&s);
    RUN("lost p8 => | prefilling", "lost p7 => cancel p7, place | queued",
        "unfilled e1 unavailable => | queued", "admitted d1 e1 => | queued",
        "placed d1 p8 => admit d1 e2 | admitting", "unfilled e1 internal => | admitting",
        "admitted d1 e1 => | admitting",
        "admitted d1 e2 => migrated prefill_lost, prefill p8 e2 | prefilling",
        "prefilled e1 => | prefilling", "prefilled e2 => | decoding",
        "tokens d1 e2 0+1 stop => deliver 0+1, finish stop | done");
    assert_int_equal(s.request.attempts, 1);
}

TEST(prefill_call_fails)
{
    script s;
    begin(&s);
    RUN("unfilled e1 internal => place | queued", "placed d1 p8 => admit d1 e2 | admitting",
        "admitted d1 e2 => migrated prefill_failed, prefill p8 e2 | prefilling",
        "unfilled e2 invalid => cancel d1, fail invalid (invalid) | failed");
}

TEST(a_decode_node_that_takes_no_pages_is_left)
{
    script s;
    begin(&s);
    RUN("unfilled e1 unavailable => place | queued", "placed d1 p8 => admit d1 e2 | admitting",
        "admitted d1 e2 => migrated prefill_lost, prefill p8 e2 | prefilling",
        "unfilled e2 unavailable => cancel d1, place | queued",
        "placed d2 p7 => admit d2 e3 | admitting",
        "admitted d2 e3 => migrated prefill_lost, prefill p7 e3 | prefilling",
        "tokens d2 e3 0+1 stop => deliver 0+1, cancel p7, finish stop | done");
    assert_int_equal(s.request.refused_decode[0], 1);
}

/* The transfer broke; the rank keeps slot and pages and waits for another epoch. */
TEST(transfer_fails)
{
    script s;
    begin(&s);
    RUN("refused d1 e1 corrupt => cancel p7, place | queued", "refused d1 e1 corrupt => | queued",
        "placed d1 p8 => admit d1 e2 | admitting", "refused d1 e1 corrupt => | admitting",
        "admitted d1 e2 => migrated transfer_failed, prefill p8 e2 | prefilling");
    /* nobody came for it in time: the rank lets go */
    begin(&s);
    RUN("unfilled e1 unavailable => place | queued", "no prefill => | queued",
        "tokens d1 e1 0+0 failed deadline => place | queued",
        "placed d2 p8 => admit d2 e2 | admitting",
        "admitted d2 e2 => migrated prefill_lost, prefill p8 e2 | prefilling");
    assert_int_equal(s.request.attempts, 1);
}

TEST(decode_node_dies_mid_stream)
{
    script s;
    begin(&s);
    RUN("prefilled e1 => | decoding", "tokens d1 e1 0+4 => deliver 0+4 | decoding",
        "lost d2 => | decoding", "lost d1 => place | queued", "tokens d1 e1 4+1 => | queued",
        "placed d2 p7 => admit d2 e2 | admitting", "tokens d1 e1 4+1 => | admitting",
        "admitted d1 e2 => | admitting",
        "admitted d2 e2 => migrated decode_lost, prefill p7 e2 | prefilling",
        "tokens d2 e2 4+2 => deliver 0+2 | decoding",
        "tokens d2 e2 6+1 stop => deliver 0+1, cancel p7, finish stop | done");
    assert_int_equal(s.request.token_count, 7);
}

/* 91 is the process whose stream is d1. */
TEST(decode_node_drains)
{
    script s;
    begin(&s);
    s.limits.attempts_max = 1;
    RUN("drains d1 of 91 => | prefilling", "prefilled e1 => | decoding",
        "tokens d1 e1 0+2 => deliver 0+2 | decoding", "drains d2 of 92 => | decoding",
        "drains d1 of 91 => move from d1, place | queued", "tokens d1 e1 2+1 => | queued",
        "placed d2 p91 => admit d2 e2 | admitting",
        "admitted d2 e2 => migrated drained, prefill p91 e2 | prefilling");
    assert_int_equal(s.request.warm_prefill, 7);
    RUN("prefilled e2 => | decoding", "tokens d2 e2 2+1 => deliver 0+1 | decoding");
    assert_int_equal(s.request.source, 0);
    RUN("tokens d2 e2 3+1 stop => deliver 0+1, finish stop | done");
}

/* Its pages are lost: they are computed again, for the same rank, which has done nothing wrong. */
TEST(pages_of_a_move_are_lost)
{
    static const char *const WAYS[] = {
        "unfilled e2 not_found => place | queued",
        "unfilled e2 unavailable => place | queued",
        "refused d2 e2 corrupt => cancel p91, place | queued",
    };
    for (int i = 0; i < 3; i++) {
        script s;
        begin(&s);
        RUN("prefilled e1 => | decoding", "tokens d1 e1 0+2 => deliver 0+2 | decoding",
            "drains d1 of 91 => move from d1, place | queued",
            "placed d2 p91 => admit d2 e2 | admitting",
            "admitted d2 e2 => migrated drained, prefill p91 e2 | prefilling");
        const char *const LINES[] = {WAYS[i], NULL};
        run(&s, LINES);
        assert_int_equal(s.request.source, 0);
        assert_int_equal(s.request.decode, 2);
        assert_int_equal(s.request.prefills_lost, 0);
        assert_int_equal(s.request.warm_prefill, 7);
    }
}

/* What waits for something else is left alone. */
TEST(a_drain_at_a_bad_moment)
{
    script s;
    begin(&s);
    RUN("prefilled e1 => | decoding", "tokens d1 e1 0+2 => deliver 0+2 | decoding",
        "broken d1 => | decoding", "drains d1 of 91 => | decoding",
        "back d1 d3 => attach d3 e1 | decoding", "drains d1 of 91 => | decoding",
        "drains d3 of 91 => move from d3, place | queued", "drains d3 of 91 => | queued",
        "no room => | queued", "gone => fail cancelled (the client is gone) | failed");
    s.limits.prompt_rows = true;
    begin(&s);
    s.limits.prompt_rows = true;
    RUN("tokens d1 e1 0+2 => deliver 0+2 | decoding", "drains d1 of 91 => | decoding");
}

TEST(decode_node_dies_in_prefill)
{
    script s;
    begin(&s);
    RUN("lost d1 => cancel p7, place | queued", "placed d2 p7 => admit d2 e2 | admitting",
        "admitted d2 e2 => migrated decode_lost, prefill p7 e2 | prefilling");
    /* the prefill node complains first: one migration all the same */
    begin(&s);
    RUN("unfilled e1 unavailable => place | queued", "placed d1 p8 => admit d1 e2 | admitting",
        "lost d1 => place | queued", "placed d2 p8 => admit d2 e3 | admitting",
        "admitted d2 e3 => migrated prefill_lost, prefill p8 e3 | prefilling");
    assert_int_equal(s.request.attempts, 1);
}

TEST(decode_node_dies_with_all_tokens_sent)
{
    script s;
    begin(&s);
    RUN("tokens d1 e1 0+10 => deliver 0+10 | decoding",
        "lost d1 => cancel p7, finish length | done");
}

TEST(attempts_are_bounded)
{
    script s;
    begin(&s);
    RUN("lost d1 => cancel p7, place | queued", "placed d2 p7 => admit d2 e2 | admitting",
        "admitted d2 e2 => migrated decode_lost, prefill p7 e2 | prefilling",
        "lost d2 => cancel p7, place | queued", "placed d3 p7 => admit d3 e3 | admitting",
        "admitted d3 e3 => migrated decode_lost, prefill p7 e3 | prefilling",
        "lost d3 => cancel p7, fail unavailable (given up after 3 attempts: the decode node was "
        "lost) | failed");
    script_init(&s); /* never granted */
    RUN("submit => place | queued", "placed d1 p7 => admit d1 e1 | admitting",
        "lost d1 => place | queued", "placed d2 p7 => admit d2 e2 | admitting",
        "lost d2 => place | queued", "placed d3 p7 => admit d3 e3 | admitting",
        "lost d3 => place | queued", "placed d4 p7 => admit d4 e4 | admitting",
        "lost d4 => place | queued", "placed d5 p7 => admit d5 e5 | admitting",
        "lost d5 => place | queued", "placed d6 p7 => admit d6 e6 | admitting",
        "lost d6 => fail unavailable (given up after 3 attempts: the decode node was lost) | "
        "failed");
}

TEST(silent_nodes)
{
    script s;
    script_init(&s);
    RUN("submit => place | queued", "placed d1 p7 => admit d1 e1 | admitting", "wait 999",
        "timer => | admitting", "wait 1", "timer => cancel d1, place | queued",
        "placed d2 p7 => admit d2 e2 | admitting", "admitted d2 e2 => prefill p7 e2 | prefilling",
        "wait 2900", "progress e2 => | prefilling", "wait 2900", "timer => | prefilling",
        "wait 100", "timer => cancel p7, place | queued", "placed d2 p8 => admit d2 e3 | admitting",
        "admitted d2 e3 => migrated prefill_stalled, prefill p8 e3 | prefilling",
        "prefilled e3 => | decoding", "wait 3999", "timer => | decoding",
        "tokens d2 e3 0+1 => deliver 0+1 | decoding", "wait 3999", "timer => | decoding", "wait 1",
        "timer => cancel d2, place | queued");
    assert_int_equal(s.request.refused_decode[0], 2);
}

TEST(decode_node_gives_up)
{
    script s;
    begin(&s);
    RUN("prefilled e1 => | decoding", "tokens d1 e1 0+1 => deliver 0+1 | decoding",
        "tokens d1 e1 1+1 failed internal => deliver 0+1, place | queued",
        "placed d2 p7 => admit d2 e2 | admitting",
        "admitted d2 e2 => migrated decode_failed, prefill p7 e2 | prefilling",
        "tokens d2 e2 2+0 cancelled => cancel p7, place | queued",
        "placed d3 p7 => admit d3 e3 | admitting",
        "admitted d3 e3 => migrated decode_cancelled, prefill p7 e3 | prefilling",
        "tokens d3 e3 2+0 failed invalid => cancel p7, fail invalid (the decode node ended the "
        "request) | failed");
}

/* Weights are replaced as often as an operator likes: that costs time and no attempt, up to a bound
 * of its own. */
TEST(replaced_weights_are_no_failure)
{
    script s;
    begin(&s);
    for (uint32_t i = 0; i < RTR_REPLACED_MAX + 2; i++) {
        char step[3][160];
        const char *lines[] = {step[0], step[1], step[2], NULL};
        uint32_t e = i + 1;
        snprintf(step[0], sizeof step[0],
                 "tokens d1 e%u 0+0 failed conflict => cancel p7, place | queued", e);
        snprintf(step[1], sizeof step[1], "placed d1 p7 => admit d1 e%u | admitting", e + 1);
        snprintf(step[2], sizeof step[2],
                 "admitted d1 e%u => migrated weights_replaced, prefill p7 e%u | prefilling", e + 1,
                 e + 1);
        run(&s, lines);
        assert_int_equal(s.request.attempts, i < RTR_REPLACED_MAX ? 0 : i + 1 - RTR_REPLACED_MAX);
    }
    begin(&s); /* the prefill node's are others now: no loss either */
    RUN("unfilled e1 conflict => place | queued", "placed d1 p8 => admit d1 e2 | admitting",
        "admitted d1 e2 => prefill p8 e2 | prefilling",
        "unfilled e2 incompatible => place | queued", "placed d1 p9 => admit d1 e3 | admitting");
    assert_int_equal(s.request.attempts, 0);
}

TEST(rows_lost_with_their_node)
{
    script s;
    begin(&s);
    s.limits.prompt_rows = true;
    RUN("tokens d1 e1 0+2 => deliver 0+2 | decoding", "lost p7 => cancel d1, place | queued",
        "placed d2 p8 => admit d2 e2 | admitting",
        "admitted d2 e2 => migrated prefill_lost, prefill p8 e2 | prefilling",
        "rows => | prefilling",
        "tokens d2 e2 2+1 stop => deliver 0+1, cancel p8, finish stop | done");
    begin(&s);
    s.limits.prompt_rows = true;
    RUN("tokens d1 e1 0+2 => deliver 0+2 | decoding",
        "unfilled e1 internal => cancel d1, place | queued");
    begin(&s);
    s.limits.prompt_rows = true;
    RUN("tokens d1 e1 0+2 stop => deliver 0+2 | decoding",
        "unfilled e1 unavailable => fail unavailable (the node was lost before it had told all of "
        "the prompt) | failed");
    begin(&s);
    s.limits.prompt_rows = true;
    RUN("tokens d1 e1 0+2 stop => deliver 0+2 | decoding", "wait 3000",
        "timer => cancel p7, fail unavailable (the node was lost before it had told all of the "
        "prompt) | failed");
    begin(&s);
    s.limits.prompt_rows = true;
    RUN("tokens d1 e1 0+10 => deliver 0+10 | decoding",
        "lost d1 => cancel p7, fail unavailable (the node was lost before it had told all of the "
        "prompt) | failed");
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(who_is_to_blame),
    cmocka_unit_test(prefill_node_dies),
    cmocka_unit_test(prefill_call_fails),
    cmocka_unit_test(a_decode_node_that_takes_no_pages_is_left),
    cmocka_unit_test(transfer_fails),
    cmocka_unit_test(decode_node_dies_mid_stream),
    cmocka_unit_test(decode_node_drains),
    cmocka_unit_test(pages_of_a_move_are_lost),
    cmocka_unit_test(a_drain_at_a_bad_moment),
    cmocka_unit_test(decode_node_dies_in_prefill),
    cmocka_unit_test(decode_node_dies_with_all_tokens_sent),
    cmocka_unit_test(attempts_are_bounded),
    cmocka_unit_test(silent_nodes),
    cmocka_unit_test(decode_node_gives_up),
    cmocka_unit_test(replaced_weights_are_no_failure),
    cmocka_unit_test(rows_lost_with_their_node),
};
TEST_MAIN(TESTS)
