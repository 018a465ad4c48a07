/* Members of the cluster as one router loop reaches them, and placement among them. Thread: the
 * loop's. */
#include "router/nodes_internal.h"

#include "base/alloc.h"
#include "base/assert.h"
#include "base/log.h"

#include <string.h>

sl_time_ns rtr_nodes_now(const rtr_nodes *nodes)
{
    return sl_loop_now(rpc_runtime_loop(nodes->options.runtime));
}

sl_time_ns rtr_nodes_backoff(rtr_nodes *nodes, sl_time_ns *backoff)
{
    *backoff = *backoff == 0 ? RTR_BACKOFF_FIRST_NS : *backoff * 2;
    if (*backoff > RTR_BACKOFF_MAX_NS)
        *backoff = RTR_BACKOFF_MAX_NS;
    return rtr_nodes_now(nodes) + *backoff;
}

/* Loads hold numbers only, so that a copy needs no memory of the message. */
void rtr_node_take_load(rtr_node *node, const Sluice__V1__Load *load)
{
    if (!load)
        return;
    Sluice__V1__Load copy = SLUICE__V1__LOAD__INIT;
    copy.slots_total = load->slots_total;
    copy.slots_free = load->slots_free;
    copy.pages_total = load->pages_total;
    copy.pages_free = load->pages_free;
    copy.running = load->running;
    copy.waiting = load->waiting;
    copy.queued_tokens = load->queued_tokens;
    node->load = copy;
    node->load_at = rtr_nodes_now(node->nodes);
}

bool rtr_node_is_paused(const rtr_node *node)
{
    return rtr_nodes_now(node->nodes) < node->paused_until;
}

/* ---- members */

static rtr_node *node_find(const rtr_nodes *nodes, const char *name)
{
    for (rtr_node *node = nodes->first; node; node = node->next) {
        if (!node->gone && strcmp(node->info.name, name) == 0)
            return node;
    }
    return NULL;
}

static void node_destroy(rtr_node *node)
{
    rtr_node_serve_stop(node);
    rtr_node_health_stop(node);
    sl_timer_destroy(node->serve_retry);
    sl_timer_destroy(node->health_retry);
    rpc_channel_destroy(node->channel);
    sl_free(node);
}

static void node_add(rtr_nodes *nodes, const clu_member_info *info, bool suspect)
{
    bool hybrid = strcmp(info->role, "hybrid") == 0;
    bool is_decode = hybrid || strcmp(info->role, "decode") == 0;
    bool is_prefill = hybrid || strcmp(info->role, "prefill") == 0;
    if (!is_decode && !is_prefill)
        return;
    if (nodes->count == RTR_NODES_MAX) {
        sl_warn("node %s is ignored: more than %u nodes", info->name, RTR_NODES_MAX);
        return;
    }
    rtr_node *node = sl_alloc(1, sizeof *node, "router node");
    sl_err err;
    rpc_channel_options options = {.own_connection = true, .tls = nodes->options.tls};
    sl_status status =
        rpc_channel_create(nodes->options.runtime, info->control, &options, &node->channel, &err);
    if (!sl_is_ok(status)) {
        sl_warn("node %s is ignored: %s", info->name, err.text);
        sl_free(node);
        return;
    }
    node->nodes = nodes;
    node->id = ++nodes->next_number;
    node->info = *info;
    node->suspect = suspect;
    node->is_decode = is_decode;
    node->is_prefill = is_prefill;
    sluice__v1__load__init(&node->load);
    node->next = nodes->first;
    nodes->first = node;
    nodes->count++;
    sl_info("node %s (%s at %s) joined", info->name, info->role, info->control);
    rtr_node_serve_start(node); /* a prefill rank fetches pages for its cache by it */
    if (is_prefill)
        rtr_node_health_start(node);
}

void rtr_nodes_set(rtr_nodes *nodes, const clu_member_info *info, bool suspect)
{
    rtr_node *node = node_find(nodes, info->name);
    bool same = node && node->info.incarnation == info->incarnation &&
                strcmp(node->info.role, info->role) == 0 &&
                strcmp(node->info.control, info->control) == 0;
    if (node && !same) {
        rtr_nodes_remove(nodes, node->info.name, node->info.incarnation);
        node = NULL;
    }
    if (!node) {
        node_add(nodes, info, suspect);
        return;
    }
    if (node->suspect != suspect || node->info.state != info->state)
        sl_info("node %s is %s%s", info->name, clu_member_state_name(info->state),
                suspect ? ", but its lease is lost" : "");
    node->info = *info;
    node->suspect = suspect;
    nodes->events.on_changed(nodes->context);
}

void rtr_nodes_set_frozen(rtr_nodes *nodes, bool frozen)
{
    if (nodes->frozen == frozen)
        return;
    nodes->frozen = frozen;
    nodes->events.on_changed(nodes->context);
}

/* Its streams end first, while the node can still be found, so that requests learn of it. */
static void node_remove(rtr_nodes *nodes, rtr_node *node)
{
    uint64_t stream = node->stream_id ? node->stream_id : node->broken_id;
    uint64_t process = node->is_prefill ? node->id : 0;
    rtr_node_serve_stop(node);
    node->serving = false;
    rtr_node_calls_fail(node, SL_UNAVAILABLE, "the prefill node left");
    for (rtr_node **at = &nodes->first; *at; at = &(*at)->next) {
        if (*at == node) {
            *at = node->next;
            break;
        }
    }
    nodes->count--;
    node_destroy(node);
    if (stream)
        nodes->events.on_decode_lost(nodes->context, stream);
    if (process)
        nodes->events.on_prefill_lost(nodes->context, process);
    nodes->events.on_changed(nodes->context);
}

static bool node_stands(const rtr_node *node)
{
    return (node->stream_id && node->serve) || node->calls;
}

void rtr_nodes_remove(rtr_nodes *nodes, const char *name, uint64_t incarnation)
{
    rtr_node *node = node_find(nodes, name);
    if (!node || node->info.incarnation != incarnation)
        return;
    sl_info("node %s left", name);
    if (!node_stands(node)) {
        node_remove(nodes, node);
        return;
    }
    node->gone = true;
    node->gone_until = rtr_nodes_now(nodes) + RTR_GONE_NS;
    rtr_node_health_stop(node);
    rtr_node_end_soon(node);
    nodes->events.on_changed(nodes->context);
}

void rtr_node_end_soon(rtr_node *node)
{
    sl_timer_set(node->nodes->gone_timer, rtr_nodes_now(node->nodes));
}

/* Removal calls back, so that the list is looked at anew after each. */
static void on_gone_timer(void *context, sl_time_ns now)
{
    rtr_nodes *nodes = context;
    sl_time_ns next = SL_NEVER;
    for (rtr_node *node = nodes->first; node;) {
        bool over = node->gone && (!node_stands(node) || now >= node->gone_until);
        if (over)
            node_remove(nodes, node);
        else if (node->gone && node->gone_until < next)
            next = node->gone_until;
        node = over ? nodes->first : node->next;
    }
    sl_timer_set(nodes->gone_timer, next);
}

/* ---- placement */

/* In doubt: only if no other will do. */
static bool is_trusted(const rtr_node *node, const rtr_breaker *breaker)
{
    return (!node->suspect || node->nodes->frozen) &&
           rtr_breaker_allows(breaker, rtr_nodes_now(node->nodes));
}

/* One that was started again after a reload may be back with what it was started with. */
static bool is_new_enough(const rtr_node *node, const clu_stamp *stamp)
{
    return clu_stamp_weights(stamp) >= node->nodes->weights_min;
}

void rtr_nodes_set_weights_min(rtr_nodes *nodes, uint32_t version)
{
    nodes->weights_min = version;
}

static bool decode_usable(const rtr_node *node, bool doubtful_too)
{
    return node->is_decode && node->stream_id && !node->incompatible && !node->gone &&
           node->info.state == CLU_MEMBER_STATE_READY && is_new_enough(node, &node->stamp) &&
           (doubtful_too || is_trusted(node, &node->decode_breaker));
}

static bool prefill_usable(const rtr_node *node, bool doubtful_too)
{
    return node->is_prefill && node->serving && !node->gone &&
           node->info.state == CLU_MEMBER_STATE_READY && is_new_enough(node, &node->info.stamp) &&
           (doubtful_too || is_trusted(node, &node->prefill_breaker));
}

static rtr_candidate decode_candidate(const rtr_node *node, bool doubtful_too)
{
    rtr_candidate c = {
        .id = node->stream_id,
        .name = node->info.name,
        .stamp = &node->stamp,
        .usable = decode_usable(node, doubtful_too),
        .paused = rtr_node_is_paused(node),
        .slots_free = node->load.slots_free,
        .pages = node->info.pages,
        .pages_free = node->load.pages_free,
        .running = node->load.running + node->load.waiting,
        .pending = node->ask_count,
        .pages_pending = node->ask_pages,
    };
    return c;
}

static rtr_candidate prefill_candidate(const rtr_node *node, bool doubtful_too)
{
    rtr_candidate c = {
        .id = node->id,
        .name = node->info.name,
        .stamp = &node->info.stamp,
        .usable = prefill_usable(node, doubtful_too),
        .paused = rtr_node_is_paused(node),
        .running = node->load.running + node->load.waiting,
        .queued_tokens = node->load.queued_tokens,
    };
    for (const rtr_prefill_call *call = node->calls; call; call = call->next) {
        if (call->heard)
            continue;
        c.pending++;
        c.tokens_pending += call->tokens;
    }
    /* Loads of a prefill node come with our own calls only: without one, what is old says nothing.
     */
    if (!node->calls && rtr_nodes_now(node->nodes) - node->load_at > RTR_LOAD_STALE_NS) {
        c.queued_tokens = 0;
        c.running = 0;
    }
    return c;
}

/* Hands pages over while it drains, so that no more is needed than that it can be reached. */
static rtr_candidate source_candidate(const rtr_node *node)
{
    return (rtr_candidate){.id = node->id,
                           .name = node->info.name,
                           .stamp = &node->stamp,
                           .usable = node->stream_id && !node->incompatible && !node->gone};
}

/* The tables of all that could be a place. */
static rtr_place_query make_query(rtr_nodes *nodes, const rtr_request *request, uint32_t pages,
                                  uint32_t tokens, bool doubtful_too, rtr_candidate *out_source)
{
    rtr_place_query query = {
        .tokens = tokens,
        .decodes = nodes->decodes,
        .prefills = nodes->prefills,
        .model_identity = nodes->options.model_identity,
        .keep_decode = request ? request->decode : 0,
        .pages = pages,
        .request = request,
    };
    for (const rtr_node *node = nodes->first; node; node = node->next) {
        if (node->is_decode && node->stream_id)
            nodes->decodes[query.decode_count++] = decode_candidate(node, doubtful_too);
        if (node->is_prefill)
            nodes->prefills[query.prefill_count++] = prefill_candidate(node, doubtful_too);
        if (request && request->source == node->id) {
            *out_source = source_candidate(node);
            query.source = out_source;
        }
    }
    return query;
}

static void place_among(rtr_nodes *nodes, const rtr_request *request, uint32_t pages,
                        uint32_t tokens, bool self_prefill, bool doubtful_too,
                        rtr_place_result *out_result)
{
    rtr_candidate source;
    rtr_place_query query = make_query(nodes, request, pages, tokens, doubtful_too, &source);
    query.self_prefill = self_prefill;
    rtr_place(&query, out_result);
}

static void explain_role(const rtr_place_query *query, const rtr_place_result *result,
                         bool is_decode, const rtr_candidate *decode,
                         void (*fn)(void *context, const rtr_node_candidate *candidate),
                         void *context)
{
    const rtr_candidate *table = is_decode ? query->decodes : query->prefills;
    size_t count = is_decode ? query->decode_count : query->prefill_count;
    uint64_t taken = is_decode ? result->decode : result->prefill;
    uint32_t told = 0;
    for (size_t i = 0; i < count; i++) {
        const rtr_candidate *c = &table[i];
        told += c->id != taken;
        if (c->id != taken && told >= RTR_EXPLAINED_MAX)
            continue;
        rtr_node_candidate at = {
            .name = c->name,
            .verdict = rtr_place_verdict(query, result, c, is_decode, decode),
            .is_decode = is_decode,
            .running = c->running + c->pending,
            .pages = c->pages,
            .pages_free = c->pages_free > c->pages_pending ? c->pages_free - c->pages_pending : 0,
            .queued_tokens = c->queued_tokens + c->tokens_pending,
        };
        fn(context, &at);
    }
}

void rtr_nodes_explain(rtr_nodes *nodes, const rtr_request *request, uint32_t pages,
                       uint32_t tokens, const rtr_place_result *result,
                       void (*fn)(void *context, const rtr_node_candidate *candidate),
                       void *context)
{
    rtr_candidate source;
    rtr_place_query query = make_query(nodes, request, pages, tokens, false, &source);
    const rtr_candidate *decode = NULL;
    for (size_t i = 0; i < query.decode_count; i++)
        if (result->decode && query.decodes[i].id == result->decode)
            decode = &query.decodes[i];
    explain_role(&query, result, true, decode, fn, context);
    explain_role(&query, result, false, decode, fn, context);
}

/* Some decode node, connected or not, has (or does not tell) the cache for so many pages. */
static bool any_could_hold(const rtr_nodes *nodes, uint32_t pages)
{
    for (const rtr_node *node = nodes->first; node; node = node->next) {
        if (node->is_decode && (node->info.pages == 0 || node->info.pages >= pages))
            return true;
    }
    return false;
}

static void note_given(rtr_nodes *nodes, const rtr_place_result *place)
{
    sl_time_ns now = rtr_nodes_now(nodes);
    for (rtr_node *node = nodes->first; node; node = node->next) {
        if (place->decode && node->stream_id == place->decode)
            rtr_breaker_note_given(&node->decode_breaker, now);
        if (place->prefill && node->id == place->prefill)
            rtr_breaker_note_given(&node->prefill_breaker, now);
    }
}

static void note_failure(rtr_node *node, rtr_breaker *breaker, bool grave)
{
    if (rtr_breaker_note_failure(breaker, grave, rtr_nodes_now(node->nodes)))
        sl_warn("node %s fails at its work: left alone for a while", node->info.name);
}

void rtr_nodes_note_blame(rtr_nodes *nodes, const rtr_blame *blame)
{
    for (rtr_node *node = nodes->first; node; node = node->next) {
        if (rtr_node_is_paused(node)) /* it does as it was told */
            continue;
        if (blame->decode && node->stream_id == blame->decode)
            note_failure(node, &node->decode_breaker, blame->grave);
        if (blame->prefill && node->id == blame->prefill)
            note_failure(node, &node->prefill_breaker, blame->grave);
    }
}

void rtr_node_note_progress(rtr_node *node, rtr_breaker *breaker)
{
    if (rtr_breaker_note_progress(breaker))
        sl_info("node %s works again", node->info.name);
}

void rtr_nodes_place(rtr_nodes *nodes, const rtr_request *request, uint32_t pages, uint32_t tokens,
                     bool self_prefill, rtr_place_result *out_result)
{
    place_among(nodes, request, pages, tokens, self_prefill, false, out_result);
    if (out_result->lack == RTR_LACK_DECODE || out_result->lack == RTR_LACK_PREFILL)
        place_among(nodes, request, pages, tokens, self_prefill, true, out_result);
    out_result->until = 0;
    for (const rtr_node *node = nodes->first; node; node = node->next)
        if (!node->gone && node->paused_until > out_result->until)
            out_result->until = node->paused_until;
    if (out_result->lack == RTR_LACK_NONE)
        note_given(nodes, out_result);
    if (out_result->lack == RTR_LACK_ROOM && !any_could_hold(nodes, pages))
        out_result->lack = RTR_LACK_SIZE;
}

bool rtr_nodes_ready(rtr_nodes *nodes, bool self_prefill)
{
    rtr_place_result result;
    place_among(nodes, NULL, 0, 0, self_prefill, true, &result);
    return result.lack == RTR_LACK_NONE || result.lack == RTR_LACK_ROOM ||
           result.lack == RTR_LACK_PAUSED;
}

/* ---- looking up */

static const rtr_node *node_by_stream(const rtr_nodes *nodes, uint64_t decode)
{
    for (const rtr_node *node = nodes->first; node; node = node->next) {
        if (decode && node->stream_id == decode)
            return node;
    }
    return NULL;
}

static const rtr_node *node_by_process(const rtr_nodes *nodes, uint64_t process)
{
    for (const rtr_node *node = nodes->first; node; node = node->next) {
        if (process && node->id == process)
            return node;
    }
    return NULL;
}

uint64_t rtr_nodes_process(const rtr_nodes *nodes, uint64_t stream)
{
    const rtr_node *node = node_by_stream(nodes, stream);
    return node && !node->gone ? node->id : 0;
}

uint64_t rtr_nodes_stream(const rtr_nodes *nodes, uint64_t process)
{
    const rtr_node *node = node_by_process(nodes, process);
    return node && !node->gone ? node->stream_id : 0;
}

static sl_time_ns rested_until(const rtr_node *node)
{
    if (!node)
        return 0;
    return node->rests && rtr_node_is_paused(node) ? rtr_nodes_now(node->nodes) : node->rested_at;
}

sl_time_ns rtr_nodes_rested_until(const rtr_nodes *nodes, uint64_t decode, uint64_t prefill)
{
    sl_time_ns a = rested_until(node_by_stream(nodes, decode));
    sl_time_ns b = rested_until(node_by_process(nodes, prefill));
    return a > b ? a : b;
}

static bool node_drains(const rtr_node *node)
{
    return node->is_decode && !node->gone && node->info.state == CLU_MEMBER_STATE_DRAINING;
}

bool rtr_nodes_any_drains(const rtr_nodes *nodes)
{
    for (const rtr_node *node = nodes->first; node; node = node->next) {
        if (node_drains(node))
            return true;
    }
    return false;
}

bool rtr_nodes_drains(const rtr_nodes *nodes, uint64_t decode)
{
    const rtr_node *node = node_by_stream(nodes, decode);
    return node && node_drains(node);
}

uint64_t rtr_nodes_move_source(rtr_nodes *nodes, const rtr_request *request, uint32_t pages,
                               uint32_t tokens)
{
    const rtr_node *node = node_by_stream(nodes, request->decode);
    rtr_request moved = *request;
    rtr_place_result result;
    if (!node)
        return 0;
    moved.decode = 0;
    moved.source = node->id;
    place_among(nodes, &moved, pages, tokens, false, false, &result);
    return result.lack == RTR_LACK_NONE && result.prefill == node->id ? node->id : 0;
}

uint64_t rtr_nodes_cache_tokens(const rtr_nodes *nodes)
{
    uint64_t pages = 0;
    for (const rtr_node *node = nodes->first; node; node = node->next) {
        if (node->is_decode && node->info.pages > pages)
            pages = node->info.pages;
    }
    return pages * RTR_PAGE_TOKENS;
}

uint32_t rtr_nodes_context_max(const rtr_nodes *nodes)
{
    uint32_t context_max = 0;
    for (const rtr_node *node = nodes->first; node; node = node->next) {
        if (node->is_decode && node->stream_id && node->context_max > context_max)
            context_max = node->context_max;
    }
    return context_max;
}

const char *rtr_nodes_decode_name(const rtr_nodes *nodes, uint64_t decode)
{
    const rtr_node *node = node_by_stream(nodes, decode);
    return node ? node->info.name : "";
}

const char *rtr_nodes_prefill_name(const rtr_nodes *nodes, uint64_t prefill)
{
    const rtr_node *node = node_by_process(nodes, prefill);
    return node ? node->info.name : "";
}

const clu_stamp *rtr_nodes_decode_stamp(const rtr_nodes *nodes, uint64_t decode)
{
    const rtr_node *node = node_by_stream(nodes, decode);
    return node ? &node->stamp : NULL;
}

uint64_t rtr_nodes_incarnation(const rtr_nodes *nodes, uint64_t process)
{
    const rtr_node *node = node_by_process(nodes, process);
    return node ? node->info.incarnation : 0;
}

static const rtr_node *node_by_incarnation(const rtr_nodes *nodes, uint64_t incarnation)
{
    for (const rtr_node *node = nodes->first; node; node = node->next) {
        if (node->info.incarnation == incarnation)
            return node;
    }
    return NULL;
}

static bool can_offer(const rtr_node *node, const clu_stamp *stamp)
{
    return source_candidate(node).usable && rtr_stamp_equal(&node->stamp, stamp) &&
           is_trusted(node, &node->decode_breaker) && is_trusted(node, &node->prefill_breaker);
}

const rtr_prefix_match *rtr_nodes_pull_source(const rtr_nodes *nodes,
                                              const rtr_prefix_match *matches, uint32_t count,
                                              uint64_t decode, uint64_t taker,
                                              uint64_t *out_process, uint32_t *out_taken)
{
    const clu_stamp *stamp = rtr_nodes_decode_stamp(nodes, decode);
    const rtr_prefix_match *best = NULL;
    uint64_t best_queued = 0;
    *out_process = 0;
    *out_taken = 0;
    for (uint32_t i = 0; stamp && i < count; i++) {
        const rtr_node *node = node_by_incarnation(nodes, matches[i].node);
        if (node && node->id == taker)
            *out_taken = matches[i].blocks;
        if (!node || node->id == taker || node->stream_id == decode || !can_offer(node, stamp))
            continue;
        uint64_t queued = node->load.queued_tokens;
        bool more = !best || matches[i].blocks > best->blocks;
        if (!more && (matches[i].blocks < best->blocks || queued >= best_queued))
            continue;
        best = &matches[i];
        best_queued = queued;
        *out_process = node->id;
    }
    return best;
}

void rtr_nodes_visit(rtr_nodes *nodes, rtr_node_visit_fn fn, void *context)
{
    for (const rtr_node *node = nodes->first; node; node = node->next) {
        bool usable = (!node->is_decode || decode_usable(node, false)) &&
                      (!node->is_prefill || prefill_usable(node, false));
        if (node->gone)
            continue;
        rtr_node_status status = {.info = &node->info,
                                  .suspect = node->suspect,
                                  .usable = usable,
                                  .incompatible = node->incompatible,
                                  .paused = rtr_node_is_paused(node),
                                  .load = &node->load};
        fn(context, &status);
    }
}

/* ---- life */

rtr_nodes *rtr_nodes_create(const rtr_nodes_options *options, const rtr_nodes_events *events,
                            void *context)
{
    sl_assert(options->runtime && events->on_changed && events->on_run);
    rtr_nodes *nodes = sl_alloc(1, sizeof *nodes, "router nodes");
    nodes->options = *options;
    nodes->events = *events;
    nodes->context = context;
    nodes->gone_timer = sl_timer_create(rpc_runtime_loop(options->runtime), on_gone_timer, nodes);
    return nodes;
}

void rtr_nodes_destroy(rtr_nodes *nodes)
{
    if (!nodes)
        return;
    while (nodes->first) {
        rtr_node *node = nodes->first;
        nodes->first = node->next;
        rtr_node_calls_drop(node);
        node_destroy(node);
    }
    sl_timer_destroy(nodes->gone_timer);
    sl_free(nodes);
}
