/* The stream to one decode rank: hello, admissions, cancels and credits out; answers and tokens in.
 *
 * A stream gets its number with the rank's hello; when it breaks, the number dies and every request
 * on it learns so. Another attempt follows at once: a process that died refuses it, one that lives
 * has the requests parked and goes on with them. Thread: the loop's. */
#include "router/nodes_internal.h"

#include "base/alloc.h"
#include "base/assert.h"
#include "base/log.h"

#include <stdio.h>
#include <string.h>

#define SERVE_QUEUE_MESSAGES 4096
#define SERVE_QUEUE_BYTES    ((size_t)64 << 20)
#define PAUSE_SLACK_NS       (200 * SL_MS_NS)

static sl_status serve_write(rtr_node *node, const Sluice__V1__RouterMessage *message)
{
    if (!node->serve)
        return (sl_status){SL_UNAVAILABLE};
    return rpc_stream_write(node->serve, &message->base);
}

/* ---- admissions without an answer yet */

static void asks_clear(rtr_node *node)
{
    while (node->asks) {
        rtr_ask *ask = node->asks;
        node->asks = ask->next;
        sl_free(ask);
    }
    node->ask_count = 0;
    node->ask_pages = 0;
}

static void ask_add(rtr_node *node, const char *request_id, uint32_t epoch, uint32_t pages)
{
    rtr_ask *ask = sl_alloc(1, sizeof *ask, "router ask");
    snprintf(ask->request_id, sizeof ask->request_id, "%s", request_id);
    ask->epoch = epoch;
    ask->pages = pages;
    ask->next = node->asks;
    node->asks = ask;
    node->ask_count++;
    node->ask_pages += pages;
}

/* Also drops what the same request asked in earlier epochs: a later one replaces it. */
static void ask_answered(rtr_node *node, const char *request_id, uint32_t epoch)
{
    for (rtr_ask **at = &node->asks; *at;) {
        rtr_ask *ask = *at;
        if (strcmp(ask->request_id, request_id) != 0 || ask->epoch > epoch) {
            at = &ask->next;
            continue;
        }
        *at = ask->next;
        node->ask_count--;
        node->ask_pages -= ask->pages;
        sl_free(ask);
    }
}

/* ---- messages of the rank */

/* Another end than the one before, by more than a message may take. */
static bool is_moved(sl_time_ns before, sl_time_ns until)
{
    return (before > until ? before - until : until - before) > PAUSE_SLACK_NS;
}

/* Those whose prompts it computes. Once a pause, and again when its end moves. */
static void tell_rest(rtr_node *node)
{
    rtr_nodes *nodes = node->nodes;
    sl_time_ns until = node->rests ? node->paused_until : 0;
    if (!is_moved(node->rests_until, until))
        return;
    node->rests_until = until;
    nodes->events.on_prefill_rests(nodes->context, node->id, until);
}

static void take_pause(rtr_node *node, const Sluice__V1__Load *load)
{
    sl_time_ns now = rtr_nodes_now(node->nodes), until = node->paused_until;
    bool before = rtr_node_is_paused(node);
    if (node->rests) /* until this came, at the latest */
        node->rested_at = now < node->paused_until ? now : node->paused_until;
    node->paused_until = load->pause_ms ? now + (sl_time_ns)load->pause_ms * SL_MS_NS : 0;
    node->rests = load->rests;
    tell_rest(node);
    bool paused = rtr_node_is_paused(node);
    if (before != paused)
        sl_info("node %s %s", node->info.name, before ? "works again after a pause" : "is paused");
    /* Requests that wait count from the end that they know. */
    if (before != paused || (paused && is_moved(until, node->paused_until)))
        node->nodes->events.on_changed(node->nodes->context);
}

/* A prefill rank tells its load by its calls, and of a pause here. */
static void take_load(rtr_node *node, const Sluice__V1__Load *load)
{
    if (load)
        take_pause(node, load);
    if (node->is_decode)
        rtr_node_take_load(node, load);
}

static bool copy_stamp(const Sluice__V1__Stamp *wire, clu_stamp *out)
{
    sl_err err;
    clu_stamp stamp;
    if (!wire)
        return false;
    bool ok = sl_is_ok(clu_text_set(stamp.numerics_id, sizeof stamp.numerics_id, wire->numerics_id,
                                    "numerics_id", &err)) &&
              sl_is_ok(clu_text_set(stamp.model_hash, sizeof stamp.model_hash, wire->model_hash,
                                    "model_hash", &err)) &&
              sl_is_ok(clu_text_set(stamp.weights_version, sizeof stamp.weights_version,
                                    wire->weights_version, "weights_version", &err)) &&
              sl_is_ok(clu_text_set(stamp.cache_format, sizeof stamp.cache_format,
                                    wire->cache_format, "cache_format", &err));
    if (ok)
        *out = stamp;
    return ok;
}

static void on_hello(rtr_node *node, const Sluice__V1__HelloReply *hello)
{
    rtr_nodes *nodes = node->nodes;
    bool again = node->stream_id != 0; /* it has other weights, and what it had for us */
    clu_stamp before = node->stamp;
    if (hello->incarnation != node->info.incarnation || !copy_stamp(hello->stamp, &node->stamp)) {
        sl_warn("node %s at %s is another process than its record says", node->info.name,
                node->info.control);
        rpc_call_cancel(node->serve);
        return;
    }
    const char *own = nodes->options.model_identity;
    node->incompatible = !rtr_stamp_is_model(&node->stamp, own);
    if (node->incompatible)
        sl_warn("node %s serves another model (%.12s) than this router (%.12s): not used",
                node->info.name, node->stamp.model_hash, own);
    if (again) {
        sl_info("node %s has weights version %s now", node->info.name, node->stamp.weights_version);
        nodes->events.on_changed(nodes->context);
        return;
    }
    node->window = hello->window ? hello->window : 1;
    node->context_max = hello->context_max;
    node->serve_backoff = 0;
    node->stream_id = ++nodes->next_number;
    take_load(node, hello->load);
    sl_info("node %s is connected", node->info.name);
    if (!rtr_stamp_equal(&before, &node->stamp)) /* other weights: it kept nothing */
        rtr_node_give_up(node);
    uint64_t broken = node->broken_id;
    node->broken_id = 0;
    if (broken)
        nodes->events.on_decode_back(nodes->context, broken, node->stream_id);
    nodes->events.on_changed(nodes->context);
}

static void on_step(rtr_node *node, const Sluice__V1__Step *step)
{
    rtr_nodes *nodes = node->nodes;
    uint64_t stream = node->stream_id;
    uint32_t slots = node->load.slots_free, pages = node->load.pages_free;
    take_load(node, step->load);
    bool more = node->load.slots_free > slots || node->load.pages_free > pages;
    for (size_t i = 0; i < step->n_runs; i++) {
        more = more || step->runs[i]->finish != SLUICE__V1__FINISH__FINISH_NONE;
        ask_answered(node, step->runs[i]->request_id, step->runs[i]->epoch);
        if (step->runs[i]->n_ids > 0)
            rtr_node_note_progress(node, &node->decode_breaker);
        nodes->events.on_run(nodes->context, stream, step->runs[i]);
    }
    if (more)
        nodes->events.on_changed(nodes->context);
}

/* Every message counts; credits go back in halves of the window. */
static void give_credit(rtr_node *node)
{
    node->messages_taken++;
    if ((node->messages_taken - node->messages_credited) * 2 < node->window)
        return;
    Sluice__V1__Credit credit = SLUICE__V1__CREDIT__INIT;
    credit.messages_taken = node->messages_taken;
    Sluice__V1__RouterMessage message = SLUICE__V1__ROUTER_MESSAGE__INIT;
    message.body_case = SLUICE__V1__ROUTER_MESSAGE__BODY_CREDIT;
    message.credit = &credit;
    if (sl_is_ok(serve_write(node, &message)))
        node->messages_credited = node->messages_taken;
}

static void on_message(void *context, const ProtobufCMessage *base)
{
    rtr_node *node = context;
    rtr_nodes *nodes = node->nodes;
    const Sluice__V1__DecodeMessage *message = (const Sluice__V1__DecodeMessage *)base;
    bool is_hello = message->body_case == SLUICE__V1__DECODE_MESSAGE__BODY_HELLO;
    give_credit(node);
    if (!is_hello && !node->stream_id)
        return; /* before its hello, or after it was found to be another process */
    switch (message->body_case) {
    case SLUICE__V1__DECODE_MESSAGE__BODY_HELLO:
        on_hello(node, message->hello);
        break;
    case SLUICE__V1__DECODE_MESSAGE__BODY_ADMITTED:
        if (!message->admitted->ticket)
            break;
        ask_answered(node, message->admitted->ticket->request_id, message->admitted->ticket->epoch);
        take_load(node, message->admitted->load);
        nodes->events.on_admitted(nodes->context, node->stream_id, message->admitted);
        break;
    case SLUICE__V1__DECODE_MESSAGE__BODY_REFUSED:
        ask_answered(node, message->refused->request_id, message->refused->epoch);
        take_load(node, message->refused->load);
        nodes->events.on_refused(nodes->context, node->stream_id, message->refused);
        break;
    case SLUICE__V1__DECODE_MESSAGE__BODY_STEP:
        on_step(node, message->step);
        break;
    default:
        break; /* of a newer rank */
    }
}

/* ---- the stream's life */

void rtr_node_give_up(rtr_node *node)
{
    uint64_t broken = node->broken_id;
    node->broken_id = 0;
    if (broken)
        node->nodes->events.on_decode_lost(node->nodes->context, broken);
}

/* The handle is invalid already (ended or dropped). */
static void serve_broke(rtr_node *node, const char *why)
{
    rtr_nodes *nodes = node->nodes;
    node->broken_id = node->stream_id;
    node->stream_id = 0;
    node->broken_tries = 0;
    sl_warn("node %s: stream broke: %s", node->info.name, why);
    sl_timer_set(node->serve_retry, rtr_nodes_now(nodes));
    nodes->events.on_decode_broken(nodes->context, node->broken_id);
}

static void serve_failed(rtr_node *node, const char *why)
{
    sl_debug("node %s: no stream: %s", node->info.name, why);
    if (node->broken_id && ++node->broken_tries < RTR_BROKEN_TRIES) {
        sl_timer_set(node->serve_retry, rtr_nodes_now(node->nodes) + RTR_BROKEN_PAUSE_NS);
        return;
    }
    sl_timer_set(node->serve_retry, rtr_nodes_backoff(node->nodes, &node->serve_backoff));
    rtr_node_give_up(node);
}

static void on_end(void *context, const sl_err *err)
{
    rtr_node *node = context;
    rtr_nodes *nodes = node->nodes;
    char name[CLU_NAME_MAX];
    uint64_t incarnation = node->info.incarnation;
    const char *why = err->code == SL_OK ? "ended by the node" : err->text;
    node->serve = NULL;
    asks_clear(node);
    if (node->gone) {
        rtr_node_end_soon(node);
        return;
    }
    if (node->stream_id) {
        serve_broke(node, why);
        return;
    }
    snprintf(name, sizeof name, "%s", node->info.name);
    serve_failed(node, why);
    if (node->broken_id)
        return;
    nodes->events.on_broken(nodes->context, name, incarnation); /* may remove the node */
}

static void serve_open(rtr_node *node)
{
    rtr_nodes *nodes = node->nodes;
    rpc_stream_events events = {.on_message = on_message, .on_end = on_end};
    rpc_call_options options = {.write_messages_max = SERVE_QUEUE_MESSAGES,
                                .write_bytes_max = SERVE_QUEUE_BYTES};
    sl_err err;
    sl_status status = rpc_stream_open(node->channel, &rpc_method_decode_serve, NULL, &options,
                                       &events, node, &node->serve, &err);
    if (!sl_is_ok(status)) {
        node->serve = NULL;
        serve_failed(node, err.text);
        return;
    }
    node->messages_taken = 0;
    node->messages_credited = 0;
    Sluice__V1__Hello hello = SLUICE__V1__HELLO__INIT;
    hello.router = (char *)nodes->options.router_name;
    hello.incarnation = nodes->options.incarnation;
    hello.loop = nodes->options.loop_index;
    Sluice__V1__RouterMessage message = SLUICE__V1__ROUTER_MESSAGE__INIT;
    message.body_case = SLUICE__V1__ROUTER_MESSAGE__BODY_HELLO;
    message.hello = &hello;
    if (!sl_is_ok(serve_write(node, &message)))
        rpc_call_cancel(node->serve); /* on_end follows */
}

static void serve_retry(void *context, sl_time_ns now)
{
    rtr_node *node = context;
    if (!node->serve)
        serve_open(node);
}

void rtr_node_serve_start(rtr_node *node)
{
    node->serve_retry =
        sl_timer_create(rpc_runtime_loop(node->nodes->options.runtime), serve_retry, node);
    serve_open(node);
}

void rtr_node_serve_stop(rtr_node *node)
{
    rpc_call_drop(node->serve);
    node->serve = NULL;
    node->stream_id = node->broken_id = 0;
    asks_clear(node);
    if (node->serve_retry)
        sl_timer_set(node->serve_retry, SL_NEVER);
}

/* ---- messages to the rank */

static rtr_node *node_of_stream(rtr_nodes *nodes, uint64_t decode)
{
    for (rtr_node *node = nodes->first; node; node = node->next) {
        if (decode && node->stream_id == decode)
            return node;
    }
    return NULL;
}

sl_status rtr_nodes_admit(rtr_nodes *nodes, uint64_t decode, Sluice__V1__Admit *admit,
                          uint32_t pages)
{
    rtr_node *node = node_of_stream(nodes, decode);
    if (!node)
        return (sl_status){SL_UNAVAILABLE};
    Sluice__V1__RouterMessage message = SLUICE__V1__ROUTER_MESSAGE__INIT;
    message.body_case = SLUICE__V1__ROUTER_MESSAGE__BODY_ADMIT;
    message.admit = admit;
    sl_status status = serve_write(node, &message);
    if (sl_is_ok(status)) {
        ask_answered(node, admit->request_id, admit->epoch);
        ask_add(node, admit->request_id, admit->epoch, pages);
    }
    return status;
}

/* A router that does not keep its word with the rank is better off without the stream. */
static void write_or_break(rtr_node *node, const Sluice__V1__RouterMessage *message)
{
    sl_status status = serve_write(node, message);
    if (sl_is_ok(status) || status.code == SL_UNAVAILABLE)
        return;
    sl_warn("node %s does not take messages any more: its stream is broken off", node->info.name);
    rpc_call_cancel(node->serve); /* on_end tells the others */
}

void rtr_nodes_attach(rtr_nodes *nodes, uint64_t decode, Sluice__V1__Attach *attach)
{
    rtr_node *node = node_of_stream(nodes, decode);
    if (!node)
        return; /* it broke again */
    Sluice__V1__RouterMessage message = SLUICE__V1__ROUTER_MESSAGE__INIT;
    message.body_case = SLUICE__V1__ROUTER_MESSAGE__BODY_ATTACH;
    message.attach = attach;
    write_or_break(node, &message);
}

void rtr_nodes_extend(rtr_nodes *nodes, uint64_t decode, Sluice__V1__Extend *extend)
{
    rtr_node *node = node_of_stream(nodes, decode);
    if (!node)
        return;
    Sluice__V1__RouterMessage message = SLUICE__V1__ROUTER_MESSAGE__INIT;
    message.body_case = SLUICE__V1__ROUTER_MESSAGE__BODY_EXTEND;
    message.extend = extend;
    write_or_break(node, &message);
}

void rtr_nodes_cancel(rtr_nodes *nodes, uint64_t decode, const char *request_id, const char *reason,
                      bool moved)
{
    rtr_node *node = node_of_stream(nodes, decode);
    if (!node)
        return;
    Sluice__V1__Cancel cancel = SLUICE__V1__CANCEL__INIT;
    cancel.request_id = (char *)request_id;
    cancel.reason = (char *)reason;
    cancel.moved = moved;
    Sluice__V1__RouterMessage message = SLUICE__V1__ROUTER_MESSAGE__INIT;
    message.body_case = SLUICE__V1__ROUTER_MESSAGE__BODY_CANCEL;
    message.cancel = &cancel;
    ask_answered(node, request_id, UINT32_MAX);
    write_or_break(node, &message);
}
