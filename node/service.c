/* The Node service: what this node is, and the operator's hand on it. Thread: control loop. */
#include <stdio.h>

#include "base/alloc.h"
#include "engine/parallel.h"
#include "node/internal.h"
#include "proto/sluice/v1/node.pb-c.h"

static void on_status(void *context, rpc_server_call *call, const ProtobufCMessage *request)
{
    const nod_host *host = context;
    Sluice__V1__Stamp stamp;
    nod_host_stamp(host, &stamp);
    Sluice__V1__Load load = SLUICE__V1__LOAD__INIT;
    nod_host_load(host, &load);
    kvt_stats stats;
    kvt_stats_get(host->kvt, &stats);
    Sluice__V1__NodeStatus status = SLUICE__V1__NODE_STATUS__INIT;
    status.name = (char *)host->options->name;
    status.role = (char *)nod_role_name(host->role);
    status.incarnation = host->incarnation;
    bool reloading = host->state == NOD_STATE_READY && nod_reload_active(host->reload);
    bool changing = host->state == NOD_STATE_READY && nod_role_changing(host->role_change);
    bool pausing = nod_pausing_active(host->pausing);
    status.state = pausing     ? nod_pausing_rests(host->pausing) ? "paused" : "pausing"
                   : reloading ? "reloading"
                   : changing  ? "changing role"
                               : (char *)nod_state_name(host->state);
    status.stamp = &stamp;
    status.load = &load;
    status.transfers_open = stats.sends_open + stats.recvs_open;
    status.peers_open = stats.peers_open;
    status.version = (char *)SL_VERSION;
    rpc_server_call_reply(call, &status.base);
}

static void on_drain(void *context, rpc_server_call *call, const ProtobufCMessage *base)
{
    nod_host *host = context;
    const Sluice__V1__DrainRequest *request = (const Sluice__V1__DrainRequest *)base;
    uint64_t timeout_ns = request->deadline_ms ? (uint64_t)request->deadline_ms * SL_MS_NS
                                               : host->options->drain_timeout_ns;
    Sluice__V1__Load load = SLUICE__V1__LOAD__INIT;
    nod_host_load(host, &load);
    Sluice__V1__DrainReply reply = SLUICE__V1__DRAIN_REPLY__INIT;
    reply.running = load.running + load.waiting;
    reply.deadline_ms = (uint32_t)(timeout_ns / SL_MS_NS);
    char detail[80];
    snprintf(detail, sizeof(detail), "%u requests, at most %.1f s", reply.running,
             (double)timeout_ns / 1e9);
    nod_audit_note(host->audit, call, "drain", detail);
    rpc_server_call_reply(call, &reply.base);
    nod_host_drain(host, timeout_ns);
}

static void on_resume(void *context, rpc_server_call *call, const ProtobufCMessage *request)
{
    nod_host *host = context;
    sl_err err;
    sl_status status = nod_host_resume(host, &err);
    if (!sl_is_ok(status)) {
        rpc_server_call_finish(call, status.code, err.text);
        return;
    }
    nod_audit_note(host->audit, call, "resume", "");
    Sluice__V1__ResumeReply reply = SLUICE__V1__RESUME_REPLY__INIT;
    reply.state = (char *)nod_state_name(host->state);
    rpc_server_call_reply(call, &reply.base);
}

static void on_experts(void *context, rpc_server_call *call, const ProtobufCMessage *request)
{
    const nod_host *host = context;
    if (!host->group) {
        rpc_server_call_finish(call, SL_UNSUPPORTED, "the node is no rank of several");
        return;
    }
    const mdl_shape *shape = eng_model_shape(host->model);
    size_t count = (size_t)eng_moe_layers(shape) * (size_t)shape->expert_count;
    Sluice__V1__ExpertsReply reply = SLUICE__V1__EXPERTS_REPLY__INIT;
    reply.instance = (char *)host->options->instance;
    reply.rank = (uint32_t)host->options->ep_rank;
    reply.ranks = (uint32_t)host->options->ep_size;
    reply.ranks_present = com_group_mask(host->group);
    reply.formation = host->formation;
    reply.placement_version = host->placement;
    reply.layers = eng_moe_layers(shape);
    reply.experts = (uint32_t)shape->expert_count;
    reply.expert_bytes = eng_model_expert_bytes(host->model);
    reply.n_rows = count;
    reply.rows = sl_alloc(count, sizeof(*reply.rows), "expert loads");
    eng_engine_expert_loads(host->engine, reply.rows);
    rpc_server_call_reply(call, &reply.base);
    sl_free(reply.rows);
}

typedef struct recall {
    Sluice__V1__TraceEvent *events;
    Sluice__V1__TraceEvent **pointers;
    size_t count;
} recall;

static void count_event(void *context, const sl_trace_event *event)
{
    ((recall *)context)->count++;
}

static void take_event(void *context, const sl_trace_event *event)
{
    recall *r = context;
    Sluice__V1__TraceEvent *out = &r->events[r->count];
    sluice__v1__trace_event__init(out);
    out->time_us = event->time_us;
    out->id = (char *)event->id;
    out->what = (char *)event->what;
    out->text = (char *)event->text;
    r->pointers[r->count++] = out;
}

static void on_trace(void *context, rpc_server_call *call, const ProtobufCMessage *base)
{
    const nod_host *host = context;
    const Sluice__V1__TraceRequest *request = (const Sluice__V1__TraceRequest *)base;
    Sluice__V1__TraceReply reply = SLUICE__V1__TRACE_REPLY__INIT;
    recall r = {0};
    (void)sl_trace_find(host->trace, request->id, count_event, &r);
    r.events = sl_alloc(r.count, sizeof(*r.events), "node trace");
    r.pointers = sl_alloc(r.count, sizeof(*r.pointers), "node trace");
    r.count = 0;
    reply.n_events = sl_trace_find(host->trace, request->id, take_event, &r);
    reply.events = r.pointers;
    reply.name = (char *)host->options->name;
    reply.since_us = sl_trace_since_us(host->trace);
    rpc_server_call_reply(call, &reply.base);
    sl_free(r.pointers);
    sl_free(r.events);
}

void nod_service_handlers(nod_host *host, rpc_handler out_handlers[NOD_HANDLERS])
{
    out_handlers[0] = (rpc_handler){&rpc_method_node_get_status, on_status, host};
    out_handlers[1] = (rpc_handler){&rpc_method_node_drain, on_drain, host};
    out_handlers[2] =
        (rpc_handler){&rpc_method_node_reload_weights, nod_reload_on_call, host->reload};
    out_handlers[3] = (rpc_handler){&rpc_method_node_resume, on_resume, host};
    out_handlers[4] = (rpc_handler){&rpc_method_node_get_ledger, nod_ledger_on_call, host->ledger};
    out_handlers[5] = (rpc_handler){&rpc_method_node_get_experts, on_experts, host};
    out_handlers[7] = (rpc_handler){&rpc_method_node_pause, nod_pausing_on_begin, host->pausing};
    out_handlers[8] = (rpc_handler){&rpc_method_node_end_pause, nod_pausing_on_end, host->pausing};
    out_handlers[9] = (rpc_handler){&rpc_method_node_trace, on_trace, host};
    out_handlers[6] = (rpc_handler){&rpc_method_node_set_role, nod_role_on_call, host->role_change};
}
