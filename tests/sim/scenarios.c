/* See scenarios.h. Delays are constant here, so that each time is a sum that can be written down:
 * WAKE until a thread looks, DELAY for a message of gRPC, KVT for one of kvtransfer. */
#include "tests/sim/scenarios.h"

#include <stdio.h>

#include "base/assert.h"
#include "decode/internal.h"
#include "kvtransfer/limits.h"
#include "node/internal.h"
#include "router/front_internal.h"
#include "router/router.h"
#include "tests/sim/checker.h"
#include "tests/sim/client.h"
#include "tests/sim/cluster.h"
#include "tests/sim/engine.h"
#include "tests/sim/rpc.h"
#include "tests/sim/worlds.h"

#define WAKE_NS       10000u
#define DELAY_NS      100000u
#define KVT_NS        (5 * SL_MS_NS)
#define LIMIT_NS      (60 * SL_S_NS)
#define KEEP_ALIVE_NS (400 * SL_MS_NS)

static const sim_shape SHAPE = {
    .routers = 1,
    .prefills = 2,
    .decodes = 1,
    .pages = 32,
    .sequences = 4,
    .queue_max = 4,
    .chunk_tokens = 64,
    .overcommit = 2.0,
    .router_queue = 16,
    .place_ms = 20000,
    .queue_ms = 20000,
    .admit_ms = 5000,
    .progress_ms = 1500,
    .token_ms = 5000,
    .prefill_ms = 10000,
    .lease_ms = 10000,
    .park_ms = 3000,
    .attach_ms = 2000,
    .recovery_rate = 20000,
};

static sim_request *asked;

static void begin_with(const sim_shape *shape, uint64_t seed, uint32_t tokens_min,
                       uint32_t tokens_max)
{
    const sim_load load = {.prompt_min = 440,
                           .prompt_max = 440,
                           .tokens_min = tokens_min,
                           .tokens_max = tokens_max,
                           .calm = true};
    const kvt_fake_faults even = {.delay_min_ns = KVT_NS, .delay_max_ns = KVT_NS};
    sim_worlds_begin(seed);
    sim.delay_min_ns = sim.delay_max_ns = DELAY_NS;
    sim.wake_min_ns = sim.wake_max_ns = WAKE_NS;
    kvt_fake_faults_set(sim.kvt, &even);
    sim_cluster_create(shape);
    sim_worlds_run(3 * SL_S_NS);
    for (uint32_t i = 0; i < sim.process_count; i++)
        sim.processes[i].engine_percent = 400; /* a step of 64 rows: 9.3 ms */
    asked = sim_clients_ask(&load, sim_process_named("router-0"));
}

static void begin(const sim_shape *shape)
{
    begin_with(shape, 77, 1, 20);
}

/* Of the two, the one that computes; NULL: none yet. */
static sim_process *computing(void)
{
    for (uint32_t i = 0; i < sim.process_count; i++)
        if (sim.processes[i].node && sim.processes[i].node->prefill &&
            pre_service_live(sim.processes[i].node->prefill) > 0)
            return &sim.processes[i];
    return NULL;
}

/* Until some pieces have moved. */
static sim_process *run_until_moving(void)
{
    kvt_stats stats = {0};
    while (sim.now < LIMIT_NS && stats.pieces_received < 2) {
        (void)sim_worlds_step(LIMIT_NS);
        kvt_stats_get(sim_process_named("decode-0")->node->kvt, &stats);
    }
    return computing();
}

static bool ends_well(void)
{
    while (asked->outcome == SIM_WAITING && sim_worlds_step(LIMIT_NS))
        ;
    return asked->outcome == SIM_ANSWERED;
}

static bool is(const char *what, sl_time_ns got, sl_time_ns wanted)
{
    printf("  %s: %.6f ms, must be %.6f ms\n", what, (double)got / 1e6, (double)wanted / 1e6);
    return got == wanted;
}

/* P's machine dies, nobody is told: the router gives it up when its progress deadline passes. */
static bool dead_prefill(void)
{
    begin(&SHAPE);
    sim_process *prefill = run_until_moving();
    sim_process_kill(prefill, true);
    while (sim_last.prefill_given_up == 0 && sim_worlds_step(LIMIT_NS))
        ;
    bool right =
        is("from the last sign of life to the retry",
           sim_last.prefill_given_up - sim_last.prefill_heard, SHAPE.progress_ms * SL_MS_NS);
    return ends_well() && right;
}

/* P stops while pieces move: D ends the fetch at its deadline, its transfer after the grace. */
static bool stuck_fetch(void)
{
    sim_shape shape = SHAPE;
    shape.prefill_ms = 2000;
    shape.progress_ms = 20000;
    begin(&shape);
    sim_process *prefill = run_until_moving();
    sim_process_pause(prefill, true);
    while (sim_last.fetch_given_up == 0 && sim_worlds_step(LIMIT_NS))
        ;
    sl_time_ns opened = sim_last.fetch_opened, given_up = sim_last.fetch_given_up;
    sim_last.fetch_closed = 0;
    while (sim_last.fetch_closed == 0 && sim_worlds_step(LIMIT_NS))
        ;
    bool right = is("from the ticket to the end of the fetch", given_up - opened,
                    shape.prefill_ms * SL_MS_NS);
    right = is("until no byte can come any more", sim_last.fetch_closed - given_up,
               KVT_CLOSE_GRACE_MS * SL_MS_NS + WAKE_NS) &&
            right;
    sim_process_pause(prefill, false);
    return ends_well() && right;
}

/* The client goes while P computes and nothing is on the way: both sides let go of their pages as
 * soon as the news, the transfer's end and the engine's next turn allow. */
static bool cancel(void)
{
    begin(&SHAPE);
    sim_process *prefill = NULL, *decode = sim_process_named("decode-0");
    while (!prefill || sim_engine_free_at(prefill) < sim.now + SL_MS_NS) {
        if (!sim_worlds_step(LIMIT_NS))
            return false;
        prefill = computing();
    }
    sl_time_ns at = sim.now, step_end = sim_engine_free_at(prefill);
    sim_clients_hang_up(asked);
    sim_worlds_run(at + SL_S_NS);
    /* router sees it, message, node sees it, its transfer has closed, its engine sees it */
    sl_time_ns told = at + WAKE_NS + DELAY_NS + WAKE_NS + WAKE_NS + WAKE_NS;
    bool right =
        is("until D's pages are free", sim_last.pages_given[decode->index] - at, told - at);
    sl_time_ns turn = told > step_end ? told : step_end;
    right = is("until P's pages are free", sim_last.pages_given[prefill->index] - at, turn - at) &&
            right;
    sim_worlds_run(sim.now + 20 * SL_S_NS);
    sim_checker_rest();
    return right;
}

/* Some of the answer has come, more is to come. */
static sim_process *run_until_streaming(void)
{
    begin(&SHAPE);
    sim_process *decode = sim_process_named("decode-0");
    while (decode->node->decode->slots[0].log_count < 3 && sim_worlds_step(LIMIT_NS))
        ;
    return decode;
}

/* The connection breaks, both live: the tokens on the way come again, nothing is computed twice. */
static bool reset_stream(void)
{
    sim_process *decode = run_until_streaming();
    sim_net_reset(sim_process_named("router-0"), decode, true);
    bool right = ends_well() && sim_seen.attached == 1 && sim_seen.migrations == 0;
    printf("  attached %llu, migrated %llu times\n", (unsigned long long)sim_seen.attached,
           (unsigned long long)sim_seen.migrations);
    return right;
}

/* The router is cut off: D keeps the sequence for so long and no longer. */
static bool router_cut_off(void)
{
    sim_process *decode = run_until_streaming();
    sim_process *router = sim_process_named("router-0");
    decode->engine_percent = 1000000; /* it has something to do meanwhile */
    sim_cluster_cut(router, decode, true, true);
    while (sim_last.park_given_up == 0 && sim_worlds_step(LIMIT_NS))
        ;
    bool right = is("from the broken stream until it is given up",
                    sim_last.park_given_up - sim_last.parked, SHAPE.park_ms * SL_MS_NS);
    sim_cluster_cut(router, decode, true, false);
    decode->engine_percent = 100;
    right = ends_well() && right;
    sim_worlds_run(sim.now + 20 * SL_S_NS);
    sim_checker_rest();
    return right;
}

/* ---- a decode node drains in the middle of an answer */

static uint32_t answering(const sim_process *decode)
{
    return decode->node->decode->slots[0].log_count;
}

/* The one that has given some of the answer drains; *out_to: the other one. */
static sim_process *drain_mid_answer(sim_process **out_to)
{
    sim_shape shape = SHAPE;
    shape.decodes = 2;
    for (uint64_t seed = 77;; seed++) { /* one whose answer is long */
        begin_with(&shape, seed, SIM_TOKENS_MAX, SIM_TOKENS_MAX);
        if (asked->choices[0].expected_count >= SIM_TOKENS_MAX / 2)
            break;
        sim_worlds_end();
    }
    sim_process *from = sim_process_named("decode-0"), *to = sim_process_named("decode-1");
    while (answering(from) < 3 && answering(to) < 3 && sim_worlds_step(LIMIT_NS))
        ;
    if (answering(to) >= 3) {
        sim_process *swap = from;
        from = to;
        to = swap;
    }
    sim_process_terminate(from);
    *out_to = to;
    return from;
}

/* Some of its pages have come, and not all. */
static void run_until_fetched(const sim_process *to)
{
    const kvt_fake_faults uneven = {.delay_min_ns = SL_MS_NS, .delay_max_ns = 4 * KVT_NS};
    kvt_stats stats = {0};
    kvt_fake_faults_set(sim.kvt, &uneven);
    while (stats.pieces_received < 2 && sim_worlds_step(LIMIT_NS))
        kvt_stats_get(to->node->kvt, &stats);
    sl_assert(to->node->decode->slots[0].core.state == DEC_STATE_FETCHING);
}

static bool moved(uint64_t kept, uint64_t computed)
{
    const rtr_metrics *metrics =
        &rtr_router_front(sim_process_named("router-0")->router)->shared->metrics;
    uint64_t got_kept = (uint64_t)sl_metric_get(metrics->migrated_tokens, "kept");
    uint64_t got_computed = (uint64_t)sl_metric_get(metrics->migrated_tokens, "computed");
    printf("  moved %llu times, %llu tokens kept, %llu computed again\n",
           (unsigned long long)sim_seen.moves, (unsigned long long)got_kept,
           (unsigned long long)got_computed);
    return sim_seen.moves == 1 && got_kept >= kept && got_computed <= computed;
}

static bool rests(void)
{
    sim_worlds_run(sim.now + 20 * SL_S_NS);
    sim_checker_rest();
    return true;
}

/* Its pages go along: no more is computed again than the last of them. */
static bool drain_moves(void)
{
    sim_process *to, *from = drain_mid_answer(&to);
    uint64_t before = sim_seen.retries;
    bool right = ends_well() && moved(384, 64) && sim_seen.retries == before;
    right = right && sim_seen.migrations == 1;
    sim_worlds_run(sim.now + 6 * SL_S_NS);
    right = right && !from->alive;
    sim_process_start(from);
    return rests() && right;
}

/* It dies while its pages are fetched: computed again, on the same node, which has some of them. */
static bool source_dies(void)
{
    sim_process *to, *from = drain_mid_answer(&to);
    run_until_fetched(to);
    sim_process_kill(from, true);
    bool right = ends_well() && moved(0, UINT64_MAX) && sim_seen.migrations == 2;
    sim_process_start(from);
    return rests() && right;
}

/* It stops while its pages are fetched, for longer than anybody waits. */
static bool source_stops(void)
{
    sim_process *to, *from = drain_mid_answer(&to);
    run_until_fetched(to);
    sim_process_pause(from, true);
    bool right = ends_well() && moved(0, UINT64_MAX) && sim_seen.migrations == 2;
    sim_process_pause(from, false);
    sim_worlds_run(sim.now + 6 * SL_S_NS);
    if (!from->alive)
        sim_process_start(from);
    return rests() && right;
}

/* So does the one that fetches: a third place is looked for, which here is the first again. */
static bool taker_dies(void)
{
    sim_process *to, *from = drain_mid_answer(&to);
    run_until_fetched(to);
    sim_process_kill(to, false);
    sim_process_start(to);
    bool right = ends_well();
    sim_worlds_run(sim.now + 6 * SL_S_NS);
    if (!from->alive)
        sim_process_start(from);
    return rests() && right;
}

/* P dies when D has some of the prompt: the next one fetches that, and computes the rest. */
static bool dead_prefill_pulls(void)
{
    sim_shape shape = SHAPE;
    shape.pull_min = 128;
    begin(&shape);
    const sim_process *decode = sim_process_named("decode-0");
    kvt_stats stats = {0};
    while (stats.pieces_received < 8 && sim_worlds_step(LIMIT_NS))
        kvt_stats_get(decode->node->kvt, &stats);
    sim_process *lost = computing();
    sim_process_kill(lost, false);
    bool right = ends_well();
    const rtr_metrics *metrics =
        &rtr_router_front(sim_process_named("router-0")->router)->shared->metrics;
    uint64_t tokens = (uint64_t)sl_metric_get(metrics->pulled_tokens, NULL);
    printf("  %llu tokens fetched\n", (unsigned long long)tokens);
    sim_process_start(lost);
    return rests() && right && tokens >= 128;
}

static bool hears_comments(sl_time_ns since, uint32_t count)
{
    uint32_t before = asked->comments;
    bool right = true;
    for (uint32_t i = 1; i <= count; i++) {
        while (asked->comments < before + i && sim_worlds_step(LIMIT_NS))
            ;
        right &= is("a comment in silence", asked->comment_at - since, i * KEEP_ALIVE_NS);
    }
    return right;
}

/* A stream that waits: P is dead and not given up yet; later D stands still between two tokens. */
static bool silent_stream(void)
{
    sim_shape shape = SHAPE;
    shape.keep_alive_ms = KEEP_ALIVE_NS / SL_MS_NS;
    for (uint64_t seed = 77;; seed++) {
        begin_with(&shape, seed, SIM_TOKENS_MAX, SIM_TOKENS_MAX);
        if (asked->stream && asked->choice_count == 1 &&
            asked->choices[0].expected_count >= SIM_TOKENS_MAX / 2)
            break;
        sim_worlds_end();
    }
    sim_process_kill(run_until_moving(), true);
    bool right = hears_comments(asked->asked_at + WAKE_NS + 2 * DELAY_NS,
                                SHAPE.progress_ms / shape.keep_alive_ms);
    sim_process *decode = sim_process_named("decode-0");
    while (answering(decode) < 3 && sim_worlds_step(LIMIT_NS))
        ;
    sim_process_pause(decode, true);
    uint32_t before = asked->comments;
    sim_worlds_run(sim.now + KEEP_ALIVE_NS / 2); /* what is on its way arrives */
    right &= asked->comments == before && hears_comments(asked->heard_at, 3);
    sim_process_pause(decode, false);
    return ends_well() && right;
}

static bool run(const char *name, bool (*scenario)(void))
{
    printf("%s\n", name);
    bool right = scenario();
    sim_worlds_end();
    printf("%s - %s\n", right ? "ok" : "not ok", name);
    return right;
}

int sim_scenarios(void)
{
    int passed = run("a dead prefill node is given up at its deadline", dead_prefill);
    passed += run("a stuck fetch ends at its deadline", stuck_fetch);
    passed += run("a cancel frees the pages on both sides", cancel);
    passed += run("a stream that breaks comes back", reset_stream);
    passed += run("a router that does not come back is given up at its deadline", router_cut_off);
    passed += run("a request moves away from a node that drains, with its pages", drain_moves);
    passed += run("the node that drains dies while its pages are fetched", source_dies);
    passed += run("the node that drains stops while its pages are fetched", source_stops);
    passed += run("the node that fetches the pages dies", taker_dies);
    passed +=
        run("what a dead prefill node had delivered is fetched, not computed", dead_prefill_pulls);
    passed += run("a silent stream is kept alive", silent_stream);
    printf("%d passed, %d failed, 0 skipped\n", passed, 11 - passed);
    return passed == 11 ? 0 : 1;
}
