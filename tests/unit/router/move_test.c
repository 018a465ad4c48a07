/* A decode node drains: its requests go on at another one with their pages. */
#include "tests/unit/router/front_kit.h"

static void move_drained(rtr_shared *shared)
{
    shared->tuning.move_drained = true;
}

static void drain(kit *k, kit_node *n)
{
    n->info.state = CLU_MEMBER_STATE_DRAINING;
    kit_announce(k, n, false);
}

/* Its pages go along: the node that drains hands them over to the one that has room. */
TEST(a_request_moves_away_from_a_node_that_drains)
{
    kit k;
    kit_open(&k, move_drained);
    kit_node *d = kit_add(&k, "d-a", true), *p = kit_add(&k, "p-a", false);
    KIT_UNTIL(&k, kit_ready(&k));
    kit_client c = kit_post(&k, CHAT, STREAM);
    KIT_UNTIL(&k, p->runs == 1);
    kit_tokens(d, 0, 2, NONE);
    kit_expect(&k, &c, "[100,101]");
    drain(&k, d); /* nobody else has room: it stays */
    kit_tokens(d, 2, 1, NONE);
    kit_expect(&k, &c, "[102]");
    assert_int_equal(d->cancels, 0);
    kit_node *e = kit_add(&k, "d-b", true);
    KIT_UNTIL(&k, d->runs == 1);
    assert_true(d->admits[0].cancelled && d->admits[0].moved && d->run_offer);
    assert_int_equal(e->admits[0].token_count, e->admits[0].prompt_count + 3);
    assert_int_equal(d->run_tokens, e->admits[0].token_count);
    assert_string_equal(d->run_id, e->admits[0].request_id);
    assert_int_equal(p->runs, 1);
    const sl_metric *tokens = k.shared.metrics.migrated_tokens;
    KIT_UNTIL(&k, sl_metric_get(tokens, "kept") > 0);
    kit_tokens(e, 3, 1, STOP);
    kit_expect(&k, &c, "data: [DONE]");
    check_tokens(&c, 4);
    assert_int_equal(migrations(&k, "drained"), 1);
    assert_int_equal(sl_metric_get(tokens, "kept"), e->admits[0].token_count);
    assert_int_equal(sl_metric_get(tokens, "computed"), 0);
    kit_client_close(&c);
    kit_close(&k);
}

/* Whatever goes wrong with that, the prompt and what was generated are computed again. */
TEST(a_move_without_pages_is_computed_again)
{
    kit k;
    kit_open(&k, move_drained);
    kit_node *d = kit_add(&k, "d-a", true), *p = kit_add(&k, "p-a", false);
    KIT_UNTIL(&k, kit_ready(&k));
    kit_client c = kit_post(&k, CHAT, STREAM);
    KIT_UNTIL(&k, p->runs == 1);
    kit_tokens(d, 0, 2, NONE);
    kit_expect(&k, &c, "[100,101]");
    kit_node *e = kit_add(&k, "d-b", true);
    KIT_UNTIL(&k, e->serve);
    d->finish_runs = false;
    drain(&k, d);
    KIT_UNTIL(&k, d->runs == 1);
    rpc_server_call_finish(d->run, SL_NOT_FOUND, "gone");
    KIT_UNTIL(&k, p->runs == 2);
    assert_false(p->run_offer);
    assert_int_equal(e->admit_count, 2); /* the same rank, another epoch */
    assert_int_equal(e->admits[1].epoch, e->admits[0].epoch + 1);
    kit_tokens(e, 2, 1, STOP);
    kit_expect(&k, &c, "data: [DONE]");
    check_tokens(&c, 3);
    kit_client_close(&c);
    kit_close(&k);
}

/* With other weights its pages are worth nothing elsewhere; and moving can be turned off. */
TEST(a_request_stays_where_its_pages_are_of_use)
{
    for (int off = 0; off < 2; off++) {
        kit k;
        kit_open(&k, off ? NULL : move_drained);
        kit_node *d = kit_add(&k, "d-a", true), *p = kit_add(&k, "p-a", false);
        KIT_UNTIL(&k, kit_ready(&k));
        kit_client c = kit_post(&k, CHAT, STREAM);
        KIT_UNTIL(&k, p->runs == 1);
        kit_tokens(d, 0, 1, NONE);
        kit_expect(&k, &c, "[100]");
        kit_node *e = kit_add(&k, "d-b", true);
        if (!off)
            snprintf(e->info.stamp.weights_version, CLU_TEXT_MAX, "2");
        KIT_UNTIL(&k, e->sent);
        for (int i = 0; i < 30; i++)
            kit_turn(&k);
        drain(&k, d);
        kit_tokens(d, 1, 1, NONE);
        kit_expect(&k, &c, "[101]");
        kit_tokens(d, 2, 1, STOP);
        kit_expect(&k, &c, "data: [DONE]");
        assert_int_equal(d->cancels + e->admit_count, 0);
        kit_client_close(&c);
        kit_close(&k);
    }
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(a_request_moves_away_from_a_node_that_drains),
    cmocka_unit_test(a_move_without_pages_is_computed_again),
    cmocka_unit_test(a_request_stays_where_its_pages_are_of_use),
};
API_TEST_MAIN(TESTS)
