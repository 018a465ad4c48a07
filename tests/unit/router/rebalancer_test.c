/* The controller's spreading of experts with a real etcd and false ranks: is an uneven load spread
 * by one fenced, audited transaction, and does nobody write who should not? */
#include "tests/unit/cluster/harness.h"

#include "cluster/placement_table.h"
#include "cluster/view.h"
#include "proto/sluice/v1/node.pb-c.h"
#include "router/rebalancer.h"

enum { RANKS = 3, LAYERS = 2, EXPERTS = 4, SLOTS = 2 };

#define KEY       "/sluice/v1/t/"
#define PLACEMENT KEY "placement/decode-0"

/* As a rank says it; the load of its experts grows whenever it is asked. */
typedef struct rank {
    rpc_server *server;
    uint32_t number, ranks, layers, asked;
    uint64_t formation, placement, rows[LAYERS * EXPERTS];
    const char *instance;
    bool holds; /* its answer, until rank_answer */
    rpc_server_call *held;
} rank;

typedef struct fixture {
    clu_etcd *client;
    clu_view *view;
    sl_metrics *registry;
    rtr_metrics metrics;
    rtr_events_ring events;
    rtr_options tuned;
    rtr_rebalancer *r;
    rank ranks[RANKS];
    int64_t fence;
} fixture;

static void rank_answer(rank *of, rpc_server_call *call)
{
    Sluice__V1__ExpertsReply reply = SLUICE__V1__EXPERTS_REPLY__INIT;
    for (uint32_t i = 0; i < LAYERS * EXPERTS; i++)
        of->rows[i] += of->number == 0 ? 9000 : 1000;
    reply.instance = (char *)(uintptr_t)of->instance;
    reply.rank = of->number;
    reply.ranks = of->ranks;
    reply.ranks_present = (1u << RANKS) - 1;
    reply.formation = of->formation;
    reply.placement_version = of->placement;
    reply.layers = of->layers;
    reply.experts = EXPERTS;
    reply.expert_bytes = 1000;
    reply.n_rows = LAYERS * EXPERTS;
    reply.rows = of->rows;
    rpc_server_call_reply(call, &reply.base);
}

static void on_experts(void *context, rpc_server_call *call, const ProtobufCMessage *request)
{
    rank *of = context;
    of->asked++;
    if (of->holds)
        of->held = call;
    else
        rank_answer(of, call);
}

static void rank_start(fixture *f, uint32_t number)
{
    rank *of = &f->ranks[number];
    *of = (rank){.number = number,
                 .ranks = RANKS,
                 .layers = LAYERS,
                 .formation = 1,
                 .placement = 1,
                 .instance = "decode-0"};
    rpc_handler handlers[] = {{&rpc_method_node_get_experts, on_experts, of}};
    rpc_server_options options = {
        .listen = "127.0.0.1:0", .handlers = handlers, .handler_count = 1};
    assert_ok(rpc_server_create(runtime, &options, &of->server, &err), &err);
    clu_member_info info = {.role = "decode", .incarnation = number + 1};
    char key[CLU_KEY_MAX];
    sl_buf json;
    snprintf(info.name, sizeof info.name, "decode-0-%u", number);
    snprintf(info.control, sizeof info.control, "%s", rpc_server_address(of->server));
    snprintf(info.kv, sizeof info.kv, "127.0.0.1:1");
    snprintf(info.version, sizeof info.version, "0");
    assert_ok(clu_member_key("t", info.name, key, &err), &err);
    sl_buf_init(&json, CLU_MEMBER_JSON_MAX);
    clu_member_write_json(&json, &info);
    sl_buf_putc(&json, '\0');
    put(f->client, key, json.data);
    sl_buf_fini(&json);
}

/* Rank 0 has experts 0 and 1 alone, the others share two. */
static void table_put(fixture *f, uint64_t version)
{
    static const uint16_t SLOTS_OF[RANKS * SLOTS] = {0, 1, 2, 3, 2, 3};
    const clu_place_shape shape = {
        .layers = LAYERS, .experts = EXPERTS, .ranks = RANKS, .slots = SLOTS};
    clu_placement *table;
    sl_buf json;
    assert_ok(clu_placement_create(&shape, version, &table, &err), &err);
    for (uint32_t layer = 0; layer < LAYERS; layer++)
        memcpy(table->slots + layer * RANKS * SLOTS, SLOTS_OF, sizeof SLOTS_OF);
    sl_buf_init(&json, CLU_PLACEMENT_JSON_MAX);
    clu_placement_write_json(&json, table);
    sl_buf_putc(&json, '\0');
    put(f->client, PLACEMENT, json.data);
    sl_buf_fini(&json);
    clu_placement_destroy(table);
}

static void fixture_open(fixture *f)
{
    static const clu_view_options VIEW = {.cluster = "t"};
    static const clu_view_events EVENTS = {0};
    *f = (fixture){.tuned = {.rebalance = RTR_PLAN_MODE_ACT,
                             .rebalance_window_ns = SL_S_NS,
                             .rebalance_windows = 1,
                             .rebalance_rows = 100,
                             .rebalance_over = 1.2,
                             .rebalance_gain = 0.05}};
    f->client = make_client();
    f->registry = sl_metrics_create();
    rtr_metrics_init(&f->metrics, f->registry);
    for (uint32_t number = 0; number < RANKS; number++)
        rank_start(f, number);
    f->fence = put(f->client, KEY "leader", "router-0");
    assert_ok(clu_view_create(f->client, &VIEW, &EVENTS, NULL, &f->view, &err), &err);
    wait_for(clu_view_ready(f->view));
    assert_int_equal(clu_view_count(f->view), RANKS);
    rtr_rebalancer_options options = {.etcd = f->client,
                                      .view = f->view,
                                      .cluster = "t",
                                      .router = "router-0",
                                      .tuned = &f->tuned,
                                      .events = &f->events,
                                      .metrics = &f->metrics};
    f->r = rtr_rebalancer_create(&options);
}

static void fixture_close(fixture *f)
{
    rtr_rebalancer_destroy(f->r);
    clu_view_destroy(f->view);
    for (uint32_t number = 0; number < RANKS; number++)
        rpc_server_destroy(f->ranks[number].server);
    clu_etcd_destroy(f->client);
    sl_metrics_destroy(f->registry);
}

/* The controller's timer, as often as the test's loop turns. */
static const rtr_rebalance *look(fixture *f)
{
    const char *name;
    rtr_rebalancer_look(f->r, f->fence, sl_now_ns());
    return rtr_rebalancer_at(f->r, 0, &name);
}

static bool says(fixture *f, const char *text)
{
    const rtr_rebalance *state = look(f);
    return state && strstr(state->reason, text);
}

static bool says_after_two_rounds(fixture *f, const char *text)
{
    uint32_t asked = f->ranks[0].asked;
    wait_for((look(f), f->ranks[0].asked >= asked + 3)); /* the first two have been taken in */
    return says(f, text);
}

static bool rolls_out(fixture *f)
{
    const rtr_rebalance *state = look(f);
    return state && state->phase == RTR_REBALANCE_PHASE_ROLLING_OUT;
}

TEST(an_uneven_load_is_spread)
{
    NEED_ETCD();
    fixture f;
    fixture_open(&f);
    table_put(&f, 1);
    wait_for(rolls_out(&f));
    assert_text_contains(get(f.client, PLACEMENT), "\"version\":2");
    assert_text_contains(get(f.client, KEY "audit/000"), "\"actor\":\"controller router-0\"");
    assert_text_contains(get(f.client, KEY "audit/000"), "version 2: heaviest rank / mean");
    assert_true(sl_metric_get(f.metrics.ep_imbalance, "decode-0") > 2);
    f.tuned.rebalance_pause_ns = 3600 * SL_S_NS;
    f.ranks[0].placement = f.ranks[1].placement = 2;
    for (uint32_t number = 0; number < RANKS; number++)
        f.ranks[number].formation = 2;
    sl_time_ns until = sl_now_ns() + SL_S_NS; /* two have it, one has not */
    while (sl_now_ns() < until) {
        assert_true(rolls_out(&f));
        sl_loop_run_once(loop, 50);
    }
    f.ranks[2].placement = 2;
    wait_for(says(&f, "a placement was rolled out"));
    assert_true(sl_metric_get(f.metrics.rebalances, "decode-0") == 1);
    assert_true(sl_metric_get(f.metrics.rebalance_seconds, "decode-0") > 0);
    assert_string_equal(get(f.client, KEY "audit/next"), "1");
    fixture_close(&f);
}

TEST(an_old_leader_spreads_nothing)
{
    NEED_ETCD();
    fixture f;
    fixture_open(&f);
    table_put(&f, 1);
    delete_key(f.client, KEY "leader"); /* it does not know yet that another one was elected */
    put(f.client, KEY "leader", "router-0");
    wait_for(says(&f, "no longer the leader: nothing was done"));
    assert_text_contains(get(f.client, PLACEMENT), "\"version\":1");
    assert_string_equal(get(f.client, KEY "audit/next"), "");
    f.fence = 0; /* now it does */
    assert_null(look(&f));
    assert_true(sl_metric_get(f.metrics.ep_imbalance, "decode-0") == 0);
    fixture_close(&f);
}

TEST(who_advises_writes_nothing)
{
    NEED_ETCD();
    fixture f;
    fixture_open(&f);
    f.tuned.rebalance = RTR_PLAN_MODE_ADVISE;
    table_put(&f, 1);
    wait_for(look(&f) && look(&f)->advised);
    assert_true(look(&f)->plan.moves > 0 && look(&f)->plan.bytes > 0);
    assert_string_equal(get(f.client, KEY "audit/next"), "");
    f.tuned.rebalance = RTR_PLAN_MODE_OFF;
    assert_null(look(&f));
    fixture_close(&f);
}

static bool is_in(fixture *f, rtr_rebalance_phase phase)
{
    const rtr_rebalance *state = look(f);
    return state && state->phase == phase;
}

static bool forgotten(fixture *f)
{
    const char *name;
    return rtr_rebalancer_at(f->r, 0, &name) == NULL;
}

/* Switched off between two looks: while ranks are asked, while the table is read, while the next
 * one is written. Nothing that ends meanwhile goes on, and all of it works again afterwards. */
TEST(switched_off_whatever_is_under_way)
{
    NEED_ETCD();
    fixture f;
    fixture_open(&f);
    table_put(&f, 1);
    f.ranks[2].holds = true;
    wait_for((look(&f), f.ranks[2].held));
    f.tuned.rebalance = RTR_PLAN_MODE_OFF;
    rank_answer(&f.ranks[2], f.ranks[2].held);
    f.ranks[2].holds = false;
    wait_for(forgotten(&f));
    static const rtr_rebalance_phase PHASES[] = {RTR_REBALANCE_PHASE_PLANNING,
                                                 RTR_REBALANCE_PHASE_WRITING};
    for (size_t i = 0; i < 2; i++) {
        f.tuned.rebalance = RTR_PLAN_MODE_ACT;
        wait_for(is_in(&f, PHASES[i]));
        f.tuned.rebalance = RTR_PLAN_MODE_OFF;
        wait_for(forgotten(&f));
        table_put(&f, 1);
    }
    f.tuned.rebalance = RTR_PLAN_MODE_ACT;
    wait_for(rolls_out(&f));
    fixture_close(&f);
}

TEST(a_table_that_is_not_used_or_not_there_is_no_ground)
{
    NEED_ETCD();
    fixture f;
    fixture_open(&f);
    wait_for(says(&f, "there is no placement of decode-0"));
    table_put(&f, 2); /* an operator's, on its way */
    wait_for(says(&f, "placement 2 is on its way"));
    assert_string_equal(get(f.client, KEY "audit/next"), "");
    fixture_close(&f);
}

TEST(answers_that_cannot_be_are_left_out)
{
    NEED_ETCD();
    fixture f;
    fixture_open(&f);
    table_put(&f, 1);
    f.ranks[2].instance = "No Instance";
    assert_true(says_after_two_rounds(&f, "a rank is silent"));
    f.ranks[2].instance = "decode-0";
    f.ranks[2].number = RANKS; /* no such rank */
    assert_true(says_after_two_rounds(&f, "a rank is silent"));
    f.ranks[2].number = 1; /* one that is there already */
    assert_true(says_after_two_rounds(&f, "a rank is silent"));
    f.ranks[2].number = 2;
    f.ranks[2].layers = LAYERS + 1; /* not as many rows as it says */
    assert_true(says_after_two_rounds(&f, "a rank is silent"));
    f.ranks[2].layers = LAYERS;
    f.ranks[2].formation = 2;
    wait_for(says(&f, "ranks go over to another formation"));
    assert_string_equal(get(f.client, KEY "audit/next"), "");
    f.ranks[2].formation = 1;
    wait_for(rolls_out(&f));
    fixture_close(&f);
}

static const struct CMUnitTest TESTS[] = {
    ETCD_TEST(an_uneven_load_is_spread),
    ETCD_TEST(an_old_leader_spreads_nothing),
    ETCD_TEST(who_advises_writes_nothing),
    ETCD_TEST(switched_off_whatever_is_under_way),
    ETCD_TEST(a_table_that_is_not_used_or_not_there_is_no_ground),
    ETCD_TEST(answers_that_cannot_be_are_left_out),
};
TEST_MAIN(TESTS)
