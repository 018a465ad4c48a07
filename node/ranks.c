/* A node as one rank of an instance: meets the others at the start, goes over to other formations
 * with them, leaves together with them.
 *
 * What to do is decided over etcd (cluster/ranks.h), made ready on a thread of its own
 * (node/former.h) and taken over by the engine thread (engine/parallel.h); this carries words
 * between the three and keeps what was made until the engine has gone on from it. Thread: the
 * control loop. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/log.h"
#include "comm/ucx.h"
#include "model/config.h"
#include "node/former.h"
#include "node/internal.h"

#define TELL_NS (10 * SL_S_NS) /* who is still missing */
#define PASS_MS 100
#define MADE_MAX                                                                     \
    16u /* ready, and not in use any more or not yet: attempts that failed elsewhere \
         */

_Static_assert(CLU_RANKS_MAX == COM_RANKS_MAX, "cluster and comm agree on the largest instance");
_Static_assert(CLU_CONTACT_MAX >= COM_CONTACT_MAX, "a contact fits into its record");
_Static_assert(CLU_PLACE_EMPTY == COM_NO_EXPERT, "cluster and comm agree on an empty slot");

typedef struct nod_made {
    eng_formation formation;
    uint64_t mask, placement;
    uint16_t *slots; /* of all ranks */
    uint32_t loaded;
    double seconds;
} nod_made;

struct nod_ranks {
    nod_host *host;
    clu_ranks *records;
    nod_former *former;
    nod_made *made[MADE_MAX]; /* in the order of their numbers; where the engine looks at them */
    uint32_t made_count;
    bool met;    /* the model's hash is known */
    bool failed; /* records' last word */
    sl_err err;
    bool waiting; /* a formation is to be tried once the attempt under way has ended; with: */
    clu_formation next;
    uint16_t *next_slots;
    uint64_t next_placement;
    uint64_t trying_placement; /* of the attempt under way */
    uint64_t used, failed_seen, closed;
    sl_time_ns again_seen;
    int told; /* the engine's state was posted, and not looked at yet; atomic accesses only */
};

bool nod_ranks_used(const nod_host *host)
{
    return host->options->ep_size > 1;
}

static com_options group_options(const nod_host *host)
{
    const nod_options *options = host->options;
    return (com_options){
        .instance = options->instance,
        .rank = (uint32_t)options->ep_rank,
        .rank_count = (uint32_t)options->ep_size,
        .listen = options->ep_listen,
        .allow_wildcard = options->kv_allow_wildcard,
        .wait_ns = options->ep_timeout_ns,
        .carries = options->ep_micro_batch > 0,
        .backend = &com_backend_ucx,
    };
}

/* ---- attempts ---- */

static void try_now(nod_ranks *ranks)
{
    ranks->waiting = false;
    ranks->trying_placement = ranks->next_placement;
    bool taken = nod_former_try(ranks->former, &ranks->next, ranks->next_slots);
    sl_assert(taken); /* the last one has ended */
    ranks->next_slots = NULL;
}

static void on_join(void *context, const clu_formation *formation, const clu_placement *table)
{
    nod_ranks *ranks = context;
    sl_err err;
    bool busy = ranks->trying_placement != 0;
    uint16_t *slots =
        sl_alloc(clu_placement_entries(&table->shape), sizeof(uint16_t), "healed table");
    sl_status status = clu_place_heal(&table->shape, table->slots, formation->ranks, slots, &err);
    if (!sl_is_ok(status) || ranks->made_count == MADE_MAX) {
        sl_warn("formation %" PRIu64 " is not possible: %s", formation->number,
                sl_is_ok(status) ? "too many failed" : err.text);
        sl_free(slots);
        clu_ranks_tried(ranks->records, formation->number, false,
                        nod_former_contact(ranks->former));
        return;
    }
    sl_free(ranks->next_slots);
    ranks->next = *formation;
    ranks->next_slots = slots;
    ranks->next_placement = table->version;
    ranks->waiting = true;
    if (busy)
        nod_former_cancel(ranks->former);
    else if (!nod_reload_bars(ranks->host->reload))
        try_now(ranks);
}

static void on_met(void *context)
{
    nod_ranks *ranks = context;
    ranks->met = true;
}

static void on_ready(void *context, nod_attempt *attempt)
{
    nod_ranks *ranks = context;
    eng_ranks_state state;
    eng_engine_ranks_state(ranks->host->engine, &state);
    if (state.why && state.failed >= state.used && state.failed_at > attempt->begun_at)
        attempt->status = sl_fail(&attempt->err, SL_CANCELLED, "the one before it failed");
    if (!sl_is_ok(attempt->status))
        return; /* what it made goes with it */
    nod_made *made = sl_alloc(1, sizeof(*made), "formation");
    ranks->made[ranks->made_count++] = made;
    made->formation = attempt->made;
    made->mask = attempt->formation.ranks;
    made->slots = attempt->slots;
    attempt->slots = NULL;
    made->placement = ranks->trying_placement;
    made->loaded = attempt->loaded;
    made->seconds = (double)(attempt->ended_at - attempt->begun_at) / 1e9;
    attempt->made = (eng_formation){0};
    ranks->met = true;
    eng_engine_offer(ranks->host->engine, &made->formation);
}

static void on_tried(void *context, nod_attempt *attempt)
{
    nod_ranks *ranks = context;
    uint64_t number = attempt->formation.number;
    ranks->trying_placement = 0;
    if (!sl_is_ok(attempt->status))
        sl_info("formation %" PRIu64 " has not come about: %s", number, attempt->err.text);
    if (attempt->status.code == SL_INCOMPATIBLE && ranks->used == 0 && !ranks->failed) {
        ranks->failed = true;
        ranks->err = attempt->err;
    }
    clu_ranks_tried(ranks->records, number, sl_is_ok(attempt->status),
                    nod_former_contact(ranks->former));
    nod_reload_settle(ranks->host->reload, attempt->over);
    nod_attempt_destroy(attempt);
    if (ranks->waiting)
        try_now(ranks);
}

/* ---- what the engine does ---- */

static void list_ranks(uint64_t mask, char *out_text, size_t size)
{
    size_t at = 0;
    out_text[0] = '\0';
    for (uint32_t r = 0; r < COM_RANKS_MAX && at < size; r++)
        if (mask >> r & 1)
            at += (size_t)snprintf(out_text + at, size - at, "%s%u", at ? ", " : "", r);
}

static void made_free(nod_made *made)
{
    sl_free(made->slots);
    sl_free(made);
}

/* The engine knows those before `number` no more. The one that was in use before it must not close
 * as long as another rank may still be on its way from there. */
static void close_before(nod_ranks *ranks, uint64_t number)
{
    uint32_t kept = 0;
    ranks->closed = number;
    for (uint32_t i = 0; i < ranks->made_count; i++) {
        nod_made *made = ranks->made[i];
        if (made->formation.number >= number)
            ranks->made[kept++] = made;
        if (made->formation.number > number)
            continue;
        bool used = made->formation.number == number;
        nod_former_close(ranks->former, used ? NULL : made->formation.group,
                         made->formation.experts);
        made->formation.experts = NULL;
        if (!used)
            made_free(made);
    }
    ranks->made_count = kept;
}

static void took(nod_ranks *ranks, uint64_t number)
{
    char list[256];
    nod_host *host = ranks->host;
    for (uint32_t i = 0; i < ranks->made_count; i++) {
        nod_made *made = ranks->made[i];
        if (made->formation.number != number)
            continue;
        list_ranks(made->mask, list, sizeof(list));
        sl_info("formation %" PRIu64 ": ranks %s, placement %" PRIu64
                "; %u experts came, ready in %.3f s, %.1f MB of experts",
                number, list, made->placement, made->loaded, made->seconds,
                (double)eng_model_expert_bytes(host->model) / 1e6);
        host->formation = number;
        host->placement = made->placement;
        nod_gauges_group(host, made->formation.group);
        clu_ranks_used(ranks->records, number, made->mask, made->placement);
    }
    ranks->used = number;
    if (ranks->trying_placement == 0) /* else once that attempt ends, which looks at the weights */
        nod_reload_settle(host->reload, false);
}

static void look_at_engine(void *context)
{
    nod_ranks *ranks = context;
    eng_ranks_state state;
    __atomic_store_n(&ranks->told, 0, __ATOMIC_SEQ_CST);
    eng_engine_ranks_state(ranks->host->engine, &state);
    if (state.used > ranks->used)
        took(ranks, state.used);
    if (state.used > ranks->closed && state.settled == state.used)
        close_before(ranks, state.used);
    bool failed = state.why && state.failed >= state.used;
    if (failed && state.failed != ranks->failed_seen) {
        ranks->failed_seen = state.failed;
        sl_warn("formation %" PRIu64 " has failed: %s", state.used, state.why);
        clu_ranks_lost(ranks->records, state.lost);
    }
    if (state.again_at > ranks->again_seen) {
        ranks->again_seen = state.again_at;
        sl_info("the instance steps again %.1f ms after the failure was found",
                (double)(state.again_at - state.failed_at) / 1e6);
    }
}

/* Engine thread. */
static void on_engine(void *context)
{
    nod_ranks *ranks = context;
    if (__atomic_exchange_n(&ranks->told, 1, __ATOMIC_SEQ_CST) != 0)
        return;
    bool posted = sl_loop_post(ranks->host->loop, look_at_engine, ranks);
    sl_assert(posted); /* one at a time */
}

static void on_refused(void *context, const sl_err *err)
{
    sl_warn("the placement in etcd is not followed: %s", err->text);
}

static void on_failed(void *context, const sl_err *err)
{
    nod_ranks *ranks = context;
    ranks->failed = true;
    ranks->err = *err;
    if (ranks->host->engine) {
        sl_error("instance %s: %s", ranks->host->options->instance, err->text);
        eng_engine_give_up(ranks->host->engine, err->code == SL_CONFLICT
                                                    ? "the instance goes on without this rank"
                                                    : "no formation can follow");
    }
}

/* ---- reload ---- */

static const nod_made *made_in_use(const nod_ranks *ranks)
{
    for (uint32_t i = 0; i < ranks->made_count; i++)
        if (ranks->made[i]->formation.number == ranks->used)
            return ranks->made[i];
    return NULL;
}

uint16_t *nod_ranks_copy_table(const nod_host *host, uint64_t *out_formation)
{
    const nod_ranks *ranks = host->ranks;
    const nod_made *made = made_in_use(ranks);
    eng_ranks_state state;
    eng_engine_ranks_state(host->engine, &state);
    if (!made || state.used != ranks->used || (state.why && state.failed >= state.used))
        return NULL;
    size_t entries = clu_placement_entries(&clu_ranks_table(ranks->records)->shape);
    uint16_t *slots = sl_alloc(entries, sizeof(*slots), "table of a reload");
    memcpy(slots, made->slots, entries * sizeof(*slots));
    *out_formation = ranks->used;
    return slots;
}

bool nod_ranks_settled(const nod_host *host)
{
    const nod_ranks *ranks = host->ranks;
    return ranks->trying_placement == 0 && !ranks->waiting && ranks->made_count == 1 &&
           ranks->closed == ranks->used && nod_former_rests(ranks->former);
}

void nod_ranks_set_weights(nod_host *host, const eng_reload_doubt *weights)
{
    if (host->ranks)
        nod_former_set_weights(host->ranks->former, weights);
}

void nod_ranks_continue(nod_host *host)
{
    nod_ranks *ranks = host->ranks;
    if (ranks && ranks->waiting && ranks->trying_placement == 0)
        try_now(ranks);
}

void nod_ranks_reload(const nod_host *host, uint32_t version, nod_ranks_words *out_words)
{
    const nod_ranks *ranks = host->ranks;
    const nod_made *made = made_in_use(ranks);
    eng_reload_word words[COM_RANKS_MAX];
    eng_ranks_state state;
    eng_engine_reload_words(host->engine, words);
    eng_engine_ranks_state(host->engine, &state);
    *out_words = (nod_ranks_words){.formation = state.used,
                                   .failed = state.why && state.failed >= state.used,
                                   .least = ENG_RELOAD_GO};
    for (uint32_t r = 0; made && r < COM_RANKS_MAX; r++) {
        if ((made->mask >> r & 1) == 0)
            continue;
        eng_reload_stage stage = words[r].version == version ? words[r].stage : ENG_RELOAD_NONE;
        if (stage == ENG_RELOAD_REFUSED)
            out_words->refused |= 1ull << r;
        else if (stage == ENG_RELOAD_NONE)
            out_words->silent |= 1ull << r;
        stage = stage == ENG_RELOAD_REFUSED ? ENG_RELOAD_NONE : stage;
        if (stage < out_words->least)
            out_words->least = stage;
    }
}

void nod_ranks_list(uint64_t mask, char *out_text, size_t size)
{
    list_ranks(mask, out_text, size);
}

/* ---- start and end ---- */

/* Runs the loop until `done`. */
static sl_status run_until(nod_ranks *ranks, bool (*done)(const nod_ranks *ranks), sl_err *err)
{
    const nod_options *options = ranks->host->options;
    sl_time_ns give_up = sl_now_ns() + options->ep_start_timeout_ns;
    sl_time_ns tell_at = sl_now_ns() + TELL_NS;
    char missing[256];
    while (!done(ranks) && !ranks->failed) {
        sl_loop_run_once(ranks->host->loop, PASS_MS);
        sl_time_ns now = sl_now_ns();
        clu_ranks_missing(ranks->records, missing, sizeof(missing));
        if (now >= give_up)
            return sl_fail(err, SL_DEADLINE, "instance %s: %s%s%s within --ep-start-timeout",
                           options->instance, missing[0] ? "no rank " : "the ranks did not",
                           missing, missing[0] ? "" : " meet");
        if (now >= tell_at && missing[0]) {
            sl_info("instance %s: waiting for rank %s", options->instance, missing);
            tell_at = now + TELL_NS;
        }
    }
    if (!ranks->failed)
        return sl_ok();
    return sl_fail(err, ranks->err.code, "instance %s: %s", options->instance, ranks->err.text);
}

/* So many that all experts have room if a rank dies; of two, just their own. */
static uint32_t slots_of(const nod_options *options, uint32_t experts)
{
    uint32_t size = (uint32_t)options->ep_size, others = size > 2 ? size - 1 : size;
    return options->ep_slots ? (uint32_t)options->ep_slots : (experts + others - 1) / others;
}

static sl_status records_create(nod_ranks *ranks, sl_err *err)
{
    static const clu_ranks_events EVENTS = {on_join, on_refused, on_failed};
    const nod_options *options = ranks->host->options;
    mdl_shape shape;
    SL_TRY(mdl_shape_load(options->model, &shape, err));
    uint32_t size = (uint32_t)options->ep_size, experts = (uint32_t)shape.expert_count;
    uint32_t slots = slots_of(options, experts);
    const clu_ranks_options records = {
        .cluster = options->cluster,
        .instance = options->instance,
        .rank = (uint32_t)options->ep_rank,
        .size = size,
        .node = options->name,
        .shape = {.layers = eng_moe_layers(&shape),
                  .experts = experts,
                  .groups = (uint32_t)shape.group_count,
                  .ranks = size,
                  .slots = slots,
                  .fragile = (size - 1) * slots < experts},
        .lease_ns = options->lease_ns,
        .reform_ns = options->ep_timeout_ns,
    };
    return clu_ranks_create(ranks->host->etcd, &records, &EVENTS, ranks, &ranks->records, err);
}

static bool has_table(const nod_ranks *ranks)
{
    return clu_ranks_table(ranks->records) != NULL;
}

sl_status nod_ranks_open(nod_host *host, sl_err *err)
{
    static const nod_former_events EVENTS = {on_met, on_ready, on_tried};
    if (!nod_ranks_used(host))
        return sl_ok();
    nod_ranks *ranks = host->ranks = sl_alloc(1, sizeof(*ranks), "ranks");
    ranks->host = host;
    const com_options group = group_options(host);
    SL_TRY(sl_wrap(err, nod_former_create(host->loop, &group, &EVENTS, ranks, &ranks->former, err),
                   "--ep-listen"));
    SL_TRY(records_create(ranks, err));
    return run_until(ranks, has_table, err);
}

void nod_ranks_model_options(const nod_host *host, eng_model_options *options)
{
    const clu_placement *table = host->ranks ? clu_ranks_table(host->ranks->records) : NULL;
    if (!table)
        return;
    options->ep_table = table->slots;
    options->ep_slots = table->shape.slots;
}

static bool has_met(const nod_ranks *ranks)
{
    return ranks->met;
}

sl_status nod_ranks_meet(nod_host *host, sl_err *err)
{
    nod_ranks *ranks = host->ranks;
    if (!ranks)
        return sl_ok();
    const eng_reload_doubt weights = {.version = (uint32_t)host->options->weights_version};
    nod_former_set_model(ranks->former, host->model, host->rows_max);
    nod_former_set_weights(ranks->former, &weights);
    clu_ranks_enter(ranks->records, nod_former_contact(ranks->former));
    return run_until(ranks, has_met, err);
}

static bool has_formation(const nod_ranks *ranks)
{
    return ranks->used > 0;
}

sl_status nod_ranks_aboard(nod_host *host, sl_err *err)
{
    nod_ranks *ranks = host->ranks;
    if (!ranks)
        return sl_ok();
    nod_former_aboard(ranks->former);
    return run_until(ranks, has_formation, err);
}

void nod_ranks_watch(nod_host *host)
{
    if (host->ranks)
        eng_engine_on_ranks(host->engine, on_engine, host->ranks);
}

void nod_ranks_leave(nod_host *host, void (*on_left)(void *context))
{
    clu_ranks_leave(host->ranks->records, on_left, host);
}

void nod_ranks_stay(nod_host *host)
{
    if (host->ranks)
        clu_ranks_stay(host->ranks->records);
}

void nod_ranks_stop(nod_host *host)
{
    nod_ranks *ranks = host->ranks;
    if (!ranks)
        return;
    clu_ranks_destroy(ranks->records);
    ranks->records = NULL;
    if (host->engine)
        eng_engine_give_up(host->engine, "the process ends");
}

void nod_ranks_destroy(nod_host *host)
{
    nod_ranks *ranks = host->ranks;
    if (!ranks)
        return;
    nod_former_destroy(ranks->former);
    for (uint32_t i = 0; i < ranks->made_count; i++) {
        com_group_close(ranks->made[i]->formation.group);
        eng_experts_destroy(ranks->made[i]->formation.experts);
        made_free(ranks->made[i]);
    }
    sl_free(ranks->next_slots);
    sl_free(ranks);
    host->ranks = NULL;
}
