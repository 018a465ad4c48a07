/* What the decode node has and the prefill node lacks is fetched, before the rest is computed. */
#include "tests/unit/router/front_kit.h"

#define BLOCKS 4u

typedef struct fixture {
    kit k;
    kit_node *d, *p;
    kit_client c;
    sl_buf body;
} fixture;

static void pull(rtr_shared *shared)
{
    shared->tuning.pull_min = BLOCKS * RTR_PAGE_TOKENS;
}

/* The decode node has the first blocks of a long prompt. */
static void setup(fixture *f, void (*change)(rtr_shared *shared))
{
    kit_open(&f->k, change);
    f->d = kit_add(&f->k, "d-a", true);
    f->p = kit_add(&f->k, "p-a", false);
    f->d->first_block = BLOCKS;
    sl_buf_init(&f->body, 0);
    sl_buf_puts(&f->body, "{\"stream\":true,\"return_token_ids\":true,\"max_tokens\":30,"
                          "\"messages\":[{\"role\":\"user\",\"content\":\"");
    for (int i = 0; i < 400; i++)
        sl_buf_puts(&f->body, " word");
    sl_buf_puts(&f->body, "\"}]}");
    KIT_UNTIL(&f->k, kit_ready(&f->k) && f->p->sent);
}

static void ask(fixture *f)
{
    f->c = kit_post(&f->k, CHAT, f->body.data);
}

/* The prompt is computed by the prefill node, whatever came before. */
static void finish(fixture *f, double fetched, double known, double failed)
{
    KIT_UNTIL(&f->k, f->p->runs == 1);
    assert_false(f->p->run_offer);
    assert_string_equal(f->p->run_id, f->d->admits[0].request_id);
    kit_tokens(f->d, 0, 1, STOP);
    kit_expect(&f->k, &f->c, "data: [DONE]");
    check_tokens(&f->c, 1);
    KIT_UNTIL(&f->k, rtr_front_live_count(f->k.front) == 0);
    const rtr_metrics *metrics = &f->k.shared.metrics;
    assert_int_equal(sl_metric_get(metrics->pulls, "fetched"), fetched);
    assert_int_equal(sl_metric_get(metrics->pulls, "known"), known);
    assert_int_equal(sl_metric_get(metrics->pulls, "failed"), failed);
    assert_int_equal(sl_metric_get(metrics->pulled_tokens, NULL),
                     fetched * BLOCKS * RTR_PAGE_TOKENS);
    kit_client_close(&f->c);
    sl_buf_fini(&f->body);
    kit_close(&f->k);
}

static void begin(fixture *f)
{
    setup(f, pull);
    f->d->finish_runs = false;
    ask(f);
    KIT_UNTIL(&f->k, f->d->runs == 1);
    assert_true(f->p->admits[0].fetch_only && f->d->run_offer);
    assert_int_equal(f->p->admits[0].token_count, BLOCKS * RTR_PAGE_TOKENS);
    assert_int_equal(f->d->run_tokens, BLOCKS * RTR_PAGE_TOKENS);
    assert_string_equal(f->d->run_id, f->p->admits[0].request_id);
    assert_string_not_equal(f->d->run_id, f->d->admits[0].request_id);
    assert_int_equal(f->p->runs, 0);
}

TEST(first_fetched_then_computed)
{
    fixture f;
    begin(&f);
    kit_prefill_event(f.d, true);
    kit_tokens(f.p, 0, 0, STOP);
    finish(&f, 1, 0, 0);
}

TEST(what_the_prefill_node_knows_is_not_fetched)
{
    fixture f;
    setup(&f, pull);
    f.p->first_block = BLOCKS - 1;
    ask(&f);
    KIT_UNTIL(&f.k, f.p->runs == 1);
    KIT_UNTIL(&f.k, f.p->admits[0].cancelled);
    assert_int_equal(f.d->runs, 0);
    finish(&f, 0, 1, 0);
}

TEST(few_tokens_are_computed)
{
    fixture f;
    setup(&f, pull);
    f.d->first_block = BLOCKS - 1;
    ask(&f);
    finish(&f, 0, 0, 0);
}

TEST(it_can_be_turned_off)
{
    fixture f;
    setup(&f, NULL);
    ask(&f);
    finish(&f, 0, 0, 0);
}

TEST(pages_that_are_gone_are_computed)
{
    fixture f;
    begin(&f);
    rpc_server_call_finish(f.d->run, SL_NOT_FOUND, "gone");
    KIT_UNTIL(&f.k, f.p->admits[0].cancelled);
    finish(&f, 0, 0, 1);
}

TEST(a_refused_fetch_is_computed)
{
    fixture f;
    setup(&f, pull);
    f.p->grant = false;
    ask(&f);
    KIT_UNTIL(&f.k, f.p->admit_count == 1);
    kit_refuse(f.p, f.p->admits[0].request_id, 1, SL_FULL);
    finish(&f, 0, 0, 1);
}

TEST(a_fetch_that_fails_is_computed)
{
    fixture f;
    begin(&f);
    kit_tokens(f.p, 0, 0, SLUICE__V1__FINISH__FINISH_FAILED);
    finish(&f, 0, 0, 1);
}

static void soon(rtr_shared *shared)
{
    pull(shared);
    shared->tuning.limits.progress_timeout_ns = 400 * SL_MS_NS;
}

TEST(nobody_waits_for_it_for_long)
{
    fixture f;
    setup(&f, soon);
    f.p->grant = false;
    ask(&f);
    KIT_UNTIL(&f.k, f.p->admit_count == 1);
    KIT_UNTIL(&f.k, f.p->admits[0].cancelled);
    finish(&f, 0, 0, 1);
}

TEST(a_client_that_goes_ends_it)
{
    fixture f;
    begin(&f);
    kit_client_close(&f.c);
    KIT_UNTIL(&f.k, f.p->admits[0].cancelled && f.d->runs_cancelled == 1);
    KIT_UNTIL(&f.k, f.d->admits[0].cancelled);
    KIT_UNTIL(&f.k, rtr_front_live_count(f.k.front) == 0);
    assert_int_equal(f.p->runs, 0);
    sl_buf_fini(&f.body);
    kit_close(&f.k);
}

/* Its prefill node, which is also the one that fetches. */
TEST(the_taker_dies)
{
    fixture f;
    begin(&f);
    kit_kill(f.p);
    kit_node *q = kit_add(&f.k, "p-b", false);
    q->first_block = BLOCKS - 1;
    KIT_UNTIL(&f.k, q->runs == 1);
    kit_tokens(f.d, 0, 1, STOP);
    kit_expect(&f.k, &f.c, "data: [DONE]");
    kit_client_close(&f.c);
    sl_buf_fini(&f.body);
    kit_close(&f.k);
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(first_fetched_then_computed),
    cmocka_unit_test(what_the_prefill_node_knows_is_not_fetched),
    cmocka_unit_test(few_tokens_are_computed),
    cmocka_unit_test(it_can_be_turned_off),
    cmocka_unit_test(pages_that_are_gone_are_computed),
    cmocka_unit_test(a_refused_fetch_is_computed),
    cmocka_unit_test(a_fetch_that_fails_is_computed),
    cmocka_unit_test(nobody_waits_for_it_for_long),
    cmocka_unit_test(a_client_that_goes_ends_it),
    cmocka_unit_test(the_taker_dies),
};
API_TEST_MAIN(TESTS)
