/* What a prefill node fetches before it computes a prompt, and from whom. Thread: the loop's. */
#include "router/front_internal.h"

#include "base/alloc.h"
#include "base/assert.h"

/* ---- who has what */

/* False: nothing is remembered of so few. */
static bool prefix_of(const rtr_live *live, const uint32_t *tokens, size_t count,
                      rtr_prefix *out_prefix)
{
    uint32_t pull_min = live->front->tuning.pull_min;
    *out_prefix = (rtr_prefix){live->prefix_root, tokens, count};
    return pull_min > 0 && count >= pull_min;
}

void rtr_live_note_admit(rtr_live *live, uint64_t decode)
{
    const rtr_front *front = live->front;
    const clu_stamp *stamp = rtr_nodes_decode_stamp(front->nodes, decode);
    live->decode_by = rtr_nodes_incarnation(front->nodes, rtr_nodes_process(front->nodes, decode));
    if (stamp)
        live->prefix_root = rtr_prefixes_root(front->prefixes, stamp, live->request->cache_space);
}

/* `node`: has the first `count` tokens of prompt and answer. */
static void note(rtr_live *live, uint64_t node, size_t count)
{
    rtr_prefix prefix;
    size_t all;
    uint32_t *tokens = rtr_live_tokens(live, &all);
    if (prefix_of(live, tokens, count < all ? count : all, &prefix))
        rtr_prefixes_note(live->front->prefixes, &prefix, node);
    sl_free(tokens);
}

void rtr_live_note_prefill(rtr_live *live)
{
    if (live->prefill_by)
        note(live, live->prefill_by, live->prefill_tokens);
    live->prefill_by = 0;
}

void rtr_live_note_answer(rtr_live *live)
{
    if (live->decode_by && live->token_count > 0) /* the last one was never stepped */
        note(live, live->decode_by, live->request->prompt.count + live->token_count - 1);
    live->decode_by = 0;
}

/* What is known of the pulled tokens' owners after a pull. */
static void learn(rtr_live *live, const struct rtr_pulled *pulled, rtr_pull_end end)
{
    rtr_prefixes *prefixes = live->front->prefixes;
    rtr_prefix prefix;
    size_t count;
    uint32_t *tokens = rtr_live_tokens(live, &count);
    sl_assert(pulled->tokens <= count);
    if (prefix_of(live, tokens, pulled->tokens, &prefix)) {
        if (end == RTR_PULL_FETCHED || end == RTR_PULL_KNOWN)
            rtr_prefixes_note(prefixes, &prefix, pulled->taker);
        if (end == RTR_PULL_STALE || end == RTR_PULL_FAILED)
            rtr_prefixes_forget(prefixes, &prefix, pulled->source);
    }
    if (end == RTR_PULL_LATE) /* whoever asks it for something else would wait as long */
        rtr_prefixes_forget_node(prefixes, pulled->source);
    sl_free(tokens);
}

/* ---- the pull */

void rtr_live_pull_drop(rtr_live *live)
{
    rtr_pull_drop(live->pull);
    live->pull = NULL;
    sl_free(live->pulled.ticket);
    live->pulled = (struct rtr_pulled){0};
}

static void on_pull_end(void *context, rtr_pull_end end)
{
    rtr_live *live = context;
    const rtr_metrics *metrics = &live->front->shared->metrics;
    struct rtr_pulled pulled = live->pulled;
    live->pull = NULL;
    live->pulled = (struct rtr_pulled){0};
    sl_metric_add(metrics->pulls, rtr_pull_end_name(end), 1);
    if (end == RTR_PULL_FETCHED)
        sl_metric_add(metrics->pulled_tokens, NULL, pulled.tokens);
    learn(live, &pulled, end);
    Sluice__V1__Ticket *ticket =
        sluice__v1__ticket__unpack(NULL, pulled.ticket_bytes, pulled.ticket);
    sl_assert(ticket); /* our own packing */
    live->depth++;     /* not to be freed in between */
    rtr_live_run_prefill(live, pulled.node, pulled.epoch, ticket);
    live->depth--;
    sluice__v1__ticket__free_unpacked(ticket, NULL);
    sl_free(pulled.ticket);
    rtr_live_settle(live);
}

typedef struct offer {
    uint64_t process; /* 0: nobody */
    uint32_t tokens;
} offer;

/* The decode node has the prompt's first blocks for certain, from an earlier request or a prefill
 * node that was lost; its ticket says so. Another node may have more, as far as was seen: it must
 * be worth a pull of its own, as it may have lost them. */
static offer choose_source(const rtr_live *live, const rtr_action *action, const uint32_t *tokens,
                           size_t count)
{
    const rtr_front *front = live->front;
    uint32_t pull_min = front->tuning.pull_min;
    offer best = {rtr_nodes_process(front->nodes, live->core.decode),
                  live->ticket->first_block * RTR_PAGE_TOKENS};
    if (best.process == action->node)
        best.tokens = 0;
    rtr_prefix prefix;
    rtr_prefix_match matches[RTR_PREFIX_MATCHES_MAX];
    if (prefix_of(live, tokens, count - 1, &prefix)) {
        uint64_t process;
        uint32_t taken;
        uint32_t found = rtr_prefixes_find(front->prefixes, &prefix, matches);
        const rtr_prefix_match *match = rtr_nodes_pull_source(
            front->nodes, matches, found, live->core.decode, action->node, &process, &taken);
        uint32_t more = match ? match->blocks * RTR_PAGE_TOKENS : 0;
        if (match && more >= best.tokens + pull_min && more >= taken * RTR_PAGE_TOKENS + pull_min)
            best = (offer){process, more};
    }
    return best.tokens >= pull_min ? best : (offer){0};
}

static bool start_pull(rtr_live *live, const rtr_action *action, const uint32_t *tokens,
                       size_t count)
{
    rtr_front *front = live->front;
    offer source = choose_source(live, action, tokens, count);
    rtr_pull_options options = {
        .nodes = front->nodes,
        .loop = front->loop,
        .request_id = live->id,
        .taker = rtr_nodes_stream(front->nodes, action->node),
        .source = source.process,
        .tokens = tokens,
        .token_count = source.tokens,
        .cache_space = live->request->cache_space,
        .priority = live->request->priority,
        .timeout_ns = live->limits.progress_timeout_ns / 2,
        .on_end = on_pull_end,
        .context = live,
    };
    bool apart = options.taker && options.source && options.source != action->node;
    if (apart && source.tokens > RTR_PAGE_TOKENS && source.tokens < count)
        live->pull = rtr_pull_start(&front->pulls, &options);
    if (!live->pull)
        return false;
    live->pulled = (struct rtr_pulled){
        .node = action->node,
        .epoch = action->epoch,
        .tokens = source.tokens,
        .source = rtr_nodes_incarnation(front->nodes, source.process),
        .taker = rtr_nodes_incarnation(front->nodes, action->node),
    };
    return true;
}

bool rtr_live_pull(rtr_live *live, const rtr_action *action)
{
    const Sluice__V1__Ticket *ticket = live->ticket;
    if (live->front->tuning.pull_min == 0 || action->node == live->core.source ||
        rtr_live_wants_rows(live))
        return false;
    size_t count;
    uint32_t *tokens = rtr_live_tokens(live, &count);
    bool started = start_pull(live, action, tokens, count);
    sl_free(tokens);
    if (!started)
        return false;
    live->pulled.ticket_bytes = sluice__v1__ticket__get_packed_size(ticket);
    live->pulled.ticket = sl_alloc(live->pulled.ticket_bytes, 1, "router pull");
    sluice__v1__ticket__pack(ticket, live->pulled.ticket);
    return true;
}
