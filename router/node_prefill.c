/* Prefill ranks: a Health.Watch that notices their death at once, and the Run calls.
 *
 * Thread: the loop's. */
#include "router/nodes_internal.h"

#include "base/alloc.h"
#include "base/assert.h"
#include "base/log.h"
#include "proto/grpc/health/v1/health.pb-c.h"

#include <stdio.h>
#include <string.h>

/* ---- health */

static void on_health(void *context, const ProtobufCMessage *base)
{
    rtr_node *node = context;
    rtr_nodes *nodes = node->nodes;
    const Grpc__Health__V1__HealthCheckResponse *reply =
        (const Grpc__Health__V1__HealthCheckResponse *)base;
    bool serving =
        reply->status == GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING;
    node->health_backoff = 0;
    if (serving == node->serving)
        return;
    node->serving = serving;
    sl_info("node %s is %s", node->info.name, serving ? "serving prefills" : "not serving");
    nodes->events.on_changed(nodes->context);
}

static void on_health_end(void *context, const sl_err *err)
{
    rtr_node *node = context;
    rtr_nodes *nodes = node->nodes;
    bool was_serving = node->serving;
    uint64_t id = node->id;
    char name[CLU_NAME_MAX];
    uint64_t incarnation = node->info.incarnation;
    snprintf(name, sizeof name, "%s", node->info.name);
    node->health = NULL;
    node->serving = false;
    sl_timer_set(node->health_retry, rtr_nodes_backoff(nodes, &node->health_backoff));
    if (was_serving) {
        sl_warn("node %s: health stream lost: %s", name,
                err->code == SL_OK ? "ended by the node" : err->text);
        /* A server that stops ends its watches well and lets its calls finish. */
        if (err->code != SL_OK)
            nodes->events.on_prefill_lost(nodes->context, id);
    }
    nodes->events.on_broken(nodes->context, name, incarnation); /* may remove the node */
}

static void health_open(rtr_node *node)
{
    rpc_stream_events events = {.on_message = on_health, .on_end = on_health_end};
    Grpc__Health__V1__HealthCheckRequest request = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;
    sl_err err;
    sl_status status = rpc_stream_open(node->channel, &rpc_method_health_watch, &request.base, NULL,
                                       &events, node, &node->health, &err);
    if (!sl_is_ok(status)) {
        node->health = NULL;
        sl_timer_set(node->health_retry, rtr_nodes_backoff(node->nodes, &node->health_backoff));
    }
}

static void health_retry(void *context, sl_time_ns now)
{
    rtr_node *node = context;
    if (!node->health)
        health_open(node);
}

void rtr_node_health_start(rtr_node *node)
{
    node->health_retry =
        sl_timer_create(rpc_runtime_loop(node->nodes->options.runtime), health_retry, node);
    health_open(node);
}

void rtr_node_health_stop(rtr_node *node)
{
    rpc_call_drop(node->health);
    node->health = NULL;
    node->serving = false;
    if (node->health_retry)
        sl_timer_set(node->health_retry, SL_NEVER);
}

/* ---- Run calls */

static void call_unlink(rtr_prefill_call *call)
{
    if (call->prev)
        call->prev->next = call->next;
    else
        call->node->calls = call->next;
    if (call->next)
        call->next->prev = call->prev;
}

/* Tells the result; the context may be gone afterwards. */
static void call_failed(rtr_prefill_call *call, sl_code code, const char *text)
{
    if (call->ended)
        return;
    call->ended = true;
    call->events.on_failed(call->context, code, text);
}

static void on_prefill_message(void *context, const ProtobufCMessage *base)
{
    rtr_prefill_call *call = context;
    const Sluice__V1__PrefillEvent *event = (const Sluice__V1__PrefillEvent *)base;
    call->heard = true;
    if (call->node->is_prefill) /* a decode rank that hands over tells its load by its stream */
        rtr_node_take_load(call->node, event->load);
    if (call->ended)
        return;
    switch (event->body_case) {
    case SLUICE__V1__PREFILL_EVENT__BODY_DONE:
        rtr_node_note_progress(call->node, &call->node->prefill_breaker);
        call->ended = true;
        call->events.on_done(call->context, event->done);
        break;
    case SLUICE__V1__PREFILL_EVENT__BODY_FAILED:
        call_failed(call, (sl_code)event->failed->code, event->failed->message);
        break;
    case SLUICE__V1__PREFILL_EVENT__BODY_ROWS:
        call->events.on_rows(call->context, event->rows);
        break;
    default:
        call->events.on_progress(call->context);
        break;
    }
}

static void on_prefill_end(void *context, const sl_err *err)
{
    rtr_prefill_call *call = context;
    rtr_nodes *nodes = call->node->nodes;
    call->call = NULL;
    call_unlink(call);
    if (err->code == SL_OK)
        call_failed(call, SL_INTERNAL, "the prefill node ended the call without a result");
    else
        call_failed(call, err->code, err->text);
    if (call->node->gone)
        rtr_node_end_soon(call->node);
    sl_free(call);
    nodes->events.on_changed(nodes->context);
}

sl_status rtr_nodes_run_prefill(rtr_nodes *nodes, uint64_t prefill,
                                const Sluice__V1__PrefillRequest *request,
                                const rtr_prefill_events *events, void *context,
                                rtr_prefill_call **out_call, sl_err *err)
{
    rtr_node *node = nodes->first;
    while (node && node->id != prefill)
        node = node->next;
    if (!node || node->gone)
        return sl_fail(err, SL_UNAVAILABLE, "the prefill node left");
    rtr_prefill_call *call = sl_alloc(1, sizeof *call, "router prefill");
    rpc_stream_events stream = {.on_message = on_prefill_message, .on_end = on_prefill_end};
    sl_status status = rpc_stream_open(node->channel, &rpc_method_prefill_run, &request->base, NULL,
                                       &stream, call, &call->call, err);
    if (!sl_is_ok(status)) {
        sl_free(call);
        return status;
    }
    call->node = node;
    call->events = *events;
    call->context = context;
    call->tokens = (uint32_t)request->n_tokens;
    call->next = node->calls;
    if (call->next)
        call->next->prev = call;
    node->calls = call;
    *out_call = call;
    return sl_ok();
}

void rtr_prefill_drop(rtr_prefill_call *call)
{
    if (!call || call->ended) /* an ended one goes with its call's end */
        return;
    call_unlink(call);
    rpc_call_drop(call->call);
    if (call->node->gone)
        rtr_node_end_soon(call->node);
    sl_free(call);
}

/* The node is being removed: its calls end now. */
void rtr_node_calls_fail(rtr_node *node, sl_code code, const char *text)
{
    while (node->calls) {
        rtr_prefill_call *call = node->calls;
        call_unlink(call);
        rpc_call_drop(call->call);
        call->call = NULL;
        call_failed(call, code, text);
        sl_free(call);
    }
}

void rtr_node_calls_drop(rtr_node *node)
{
    while (node->calls) {
        rtr_prefill_call *call = node->calls;
        call_unlink(call);
        rpc_call_drop(call->call);
        sl_free(call);
    }
}
