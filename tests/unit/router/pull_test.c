/* What the decode node or another one has, and the prefill node lacks, is fetched before the rest
 * is computed. */
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
    KIT_UNTIL(&f->k, kit_ready(&f->k) && kit_heard(&f->k, f->p));
}

static void ask(fixture *f)
{
    f->c = kit_post(&f->k, CHAT, f->body.data);
}

typedef struct ends {
    uint32_t fetched, known, stale, late, failed;
} ends;

static void check_ends(fixture *f, ends e)
{
    const rtr_metrics *metrics = &f->k.shared.metrics;
    assert_int_equal(sl_metric_get(metrics->pulls, "fetched"), e.fetched);
    assert_int_equal(sl_metric_get(metrics->pulls, "known"), e.known);
    assert_int_equal(sl_metric_get(metrics->pulls, "stale"), e.stale);
    assert_int_equal(sl_metric_get(metrics->pulls, "late"), e.late);
    assert_int_equal(sl_metric_get(metrics->pulls, "failed"), e.failed);
}

static void close_all(fixture *f)
{
    sl_buf_fini(&f->body);
    kit_close(&f->k);
}

/* The prompt is computed by the prefill node, whatever came before. */
static void finish(fixture *f, ends e)
{
    KIT_UNTIL(&f->k, f->p->runs == 1);
    assert_false(f->p->run_offer);
    assert_string_equal(f->p->run_id, f->d->admits[0].request_id);
    kit_tokens(f->d, 0, 1, STOP);
    kit_expect(&f->k, &f->c, "data: [DONE]");
    check_tokens(&f->c, 1);
    KIT_UNTIL(&f->k, rtr_front_live_count(f->k.front) == 0);
    check_ends(f, e);
    assert_int_equal(sl_metric_get(f->k.shared.metrics.pulled_tokens, NULL),
                     e.fetched * BLOCKS * RTR_PAGE_TOKENS);
    kit_client_close(&f->c);
    close_all(f);
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
    finish(&f, (ends){.fetched = 1});
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
    finish(&f, (ends){.known = 1});
}

TEST(few_tokens_are_computed)
{
    fixture f;
    setup(&f, pull);
    f.d->first_block = BLOCKS - 1;
    ask(&f);
    finish(&f, (ends){0});
}

TEST(it_can_be_turned_off)
{
    fixture f;
    setup(&f, NULL);
    ask(&f);
    finish(&f, (ends){0});
}

TEST(pages_that_are_gone_are_computed)
{
    fixture f;
    begin(&f);
    rpc_server_call_finish(f.d->run, SL_NOT_FOUND, "gone");
    KIT_UNTIL(&f.k, f.p->admits[0].cancelled);
    finish(&f, (ends){.stale = 1});
}

TEST(a_refused_fetch_is_computed)
{
    fixture f;
    setup(&f, pull);
    f.p->grant = false;
    ask(&f);
    KIT_UNTIL(&f.k, f.p->admit_count == 1);
    kit_refuse(f.p, f.p->admits[0].request_id, 1, SL_FULL);
    finish(&f, (ends){.failed = 1});
}

TEST(a_fetch_that_fails_is_computed)
{
    fixture f;
    begin(&f);
    kit_tokens(f.p, 0, 0, SLUICE__V1__FINISH__FINISH_FAILED);
    finish(&f, (ends){.failed = 1});
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
    finish(&f, (ends){.late = 1});
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
    close_all(&f);
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
    close_all(&f);
}

/* ---- from nodes that were seen to have it */

static void set_state(fixture *f, kit_node *n, clu_member_state state)
{
    n->info.state = state;
    kit_announce(&f->k, n, false);
}

/* Asks, and answers with one token once the prefill node has run so often. */
static void answer(fixture *f, kit_node *d, const kit_node *p, size_t runs)
{
    KIT_UNTIL(&f->k, p->runs == runs);
    assert_false(p->run_offer);
    kit_tokens(d, 0, 1, STOP);
    kit_expect(&f->k, &f->c, "data: [DONE]");
    kit_client_close(&f->c);
    KIT_UNTIL(&f->k, rtr_front_live_count(f->k.front) == 0);
}

static kit_node *add(fixture *f, const char *name, bool decode)
{
    kit_node *n = kit_add(&f->k, name, decode);
    KIT_UNTIL(&f->k, kit_heard(&f->k, n));
    return n;
}

/* p-a has computed the prompt and gets nothing new; p-b has not. */
static kit_node *other_has_it(fixture *f, void (*change)(rtr_shared *shared))
{
    setup(f, change);
    f->d->first_block = 0;
    ask(f);
    answer(f, f->d, f->p, 1);
    kit_node *q = add(f, "p-b", false);
    set_state(f, f->p, CLU_MEMBER_STATE_CORDONED);
    return q;
}

static uint32_t whole_blocks(const kit_node *n)
{
    return (n->run_tokens - 1) / RTR_PAGE_TOKENS * RTR_PAGE_TOKENS;
}

TEST(another_prefill_node_offers_it)
{
    fixture f;
    kit_node *q = other_has_it(&f, pull);
    uint32_t wanted = whole_blocks(f.p);
    f.p->finish_runs = false;
    ask(&f);
    KIT_UNTIL(&f.k, f.p->runs == 2);
    assert_true(f.p->run_offer && q->admits[0].fetch_only);
    assert_int_equal(f.p->run_tokens, wanted);
    assert_int_equal(q->admits[0].token_count, wanted);
    kit_prefill_event(f.p, true);
    kit_tokens(q, 0, 0, STOP);
    answer(&f, f.d, q, 1);
    check_ends(&f, (ends){.fetched = 1});
    assert_int_equal(sl_metric_get(f.k.shared.metrics.pulled_tokens, NULL), wanted);
    ask(&f); /* now q has it too */
    answer(&f, f.d, q, 2);
    check_ends(&f, (ends){.fetched = 1});
    close_all(&f);
}

/* It told what it computed last, so that the next ones do without it. */
TEST(pages_that_another_one_lost_are_computed)
{
    fixture f;
    kit_node *q = other_has_it(&f, pull);
    f.p->finish_runs = false;
    ask(&f);
    KIT_UNTIL(&f.k, f.p->runs == 2);
    rpc_server_call_finish(f.p->run, SL_NOT_FOUND, "gone");
    KIT_UNTIL(&f.k, q->admits[0].cancelled);
    answer(&f, f.d, q, 1);
    check_ends(&f, (ends){.stale = 1});
    f.p->finish_runs = true;
    set_state(&f, q, CLU_MEMBER_STATE_CORDONED);
    set_state(&f, f.p, CLU_MEMBER_STATE_READY);
    ask(&f);
    KIT_UNTIL(&f.k, q->runs == 2);
    assert_true(q->run_offer && f.p->admits[0].fetch_only);
    kit_tokens(f.p, 0, 0, STOP);
    answer(&f, f.d, f.p, 3);
    check_ends(&f, (ends){.stale = 1, .fetched = 1});
    close_all(&f);
}

TEST(a_source_that_dies_is_done_without)
{
    fixture f;
    kit_node *q = other_has_it(&f, pull);
    f.p->finish_runs = false;
    ask(&f);
    KIT_UNTIL(&f.k, f.p->runs == 2);
    kit_kill(f.p);
    answer(&f, f.d, q, 1);
    check_ends(&f, (ends){.failed = 1});
    ask(&f);
    answer(&f, f.d, q, 2);
    check_ends(&f, (ends){.failed = 1});
    close_all(&f);
}

/* Nothing is asked of it any more, whatever else it was seen to have. */
TEST(a_source_that_is_stuck_is_waited_for_once)
{
    fixture f;
    kit_node *q = other_has_it(&f, soon);
    f.p->finish_runs = false;
    ask(&f);
    KIT_UNTIL(&f.k, f.p->runs == 2);
    answer(&f, f.d, q, 1);
    check_ends(&f, (ends){.late = 1});
    kit_kill(q);
    kit_node *r = add(&f, "p-c", false);
    ask(&f);
    answer(&f, f.d, r, 1);
    check_ends(&f, (ends){.late = 1});
    close_all(&f);
}

TEST(another_cache_space_has_other_pages)
{
    fixture f;
    kit_node *q = other_has_it(&f, pull);
    sl_buf salted;
    sl_buf_init(&salted, 0);
    sl_buf_puts(&salted, "{\"cache_salt\":\"mine\",");
    sl_buf_puts(&salted, f.body.data + 1);
    f.c = kit_post(&f.k, CHAT, salted.data);
    answer(&f, f.d, q, 1);
    check_ends(&f, (ends){0});
    assert_int_equal(q->admit_count, 0);
    sl_buf_fini(&salted);
    close_all(&f);
}

/* Its record says other weights by now: what it has is of no use. */
TEST(other_weights_are_other_pages)
{
    fixture f;
    kit_node *q = other_has_it(&f, pull);
    snprintf(f.p->info.stamp.weights_version, CLU_TEXT_MAX, "2");
    size_t sent = f.p->sent;
    rpc_server_call_finish(f.p->serve, SL_UNAVAILABLE, "another stamp");
    kit_announce(&f.k, f.p, false);
    KIT_UNTIL(&f.k, f.p->serve && f.p->sent <= sent && f.p->sent > 0);
    ask(&f);
    answer(&f, f.d, q, 1);
    check_ends(&f, (ends){0});
    close_all(&f);
}

/* The one that gave the answer to it, when another one is to give the next. */
TEST(another_decode_node_offers_it)
{
    fixture f;
    kit_node *q = other_has_it(&f, pull);
    uint32_t wanted = whole_blocks(f.p);
    kit_node *e = add(&f, "d-b", true);
    rtr_nodes_remove(rtr_front_nodes(f.k.front), "p-a", f.p->info.incarnation);
    set_state(&f, f.d, CLU_MEMBER_STATE_CORDONED);
    ask(&f);
    KIT_UNTIL(&f.k, f.d->runs == 1);
    assert_true(f.d->run_offer && q->admits[0].fetch_only);
    assert_int_equal(f.d->run_tokens, wanted);
    kit_tokens(q, 0, 0, STOP);
    answer(&f, e, q, 1);
    check_ends(&f, (ends){.fetched = 1});
    close_all(&f);
}

/* What the decode node has for certain is taken, unless another one has so much more. */
TEST(little_more_is_not_worth_a_guess)
{
    fixture f;
    kit_node *q = other_has_it(&f, pull);
    f.d->first_block = BLOCKS;
    ask(&f);
    KIT_UNTIL(&f.k, f.d->runs == 1);
    assert_int_equal(f.d->run_tokens, BLOCKS * RTR_PAGE_TOKENS);
    kit_tokens(q, 0, 0, STOP);
    answer(&f, f.d, q, 1);
    assert_int_equal(f.p->runs, 1);
    close_all(&f);
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
    cmocka_unit_test(another_prefill_node_offers_it),
    cmocka_unit_test(pages_that_another_one_lost_are_computed),
    cmocka_unit_test(a_source_that_dies_is_done_without),
    cmocka_unit_test(a_source_that_is_stuck_is_waited_for_once),
    cmocka_unit_test(another_cache_space_has_other_pages),
    cmocka_unit_test(other_weights_are_other_pages),
    cmocka_unit_test(another_decode_node_offers_it),
    cmocka_unit_test(little_more_is_not_worth_a_guess),
};
API_TEST_MAIN(TESTS)
