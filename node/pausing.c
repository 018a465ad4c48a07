/* Node.Pause and EndPause: the adapter around node/pause.h. Holds the calls that wait for the
 * engine's rest; has services, routers and the engine's thread do what the machine says.
 *
 * The process that pauses is as alive as any: its health stays what it is, its streams stand, its
 * lease is kept, requests can be cancelled, pages fetched. Thread: control loop. */
#include <stdio.h>

#include "base/alloc.h"
#include "base/log.h"
#include "node/internal.h"
#include "node/pause.h"

#define CALLS_MAX   8u /* that wait for one pause */
#define HOLD_NS     (600 * SL_S_NS)
#define HOLD_MAX_NS (86400 * SL_S_NS)

struct nod_pausing {
    nod_host *host;
    nod_pause core;
    sl_timer *timer;
    rpc_server_call *calls[CALLS_MAX]; /* NULL: free */
};

static void on_closed(void *context, rpc_server_call *call, bool cancelled)
{
    nod_pausing *pausing = context;
    for (uint32_t i = 0; i < CALLS_MAX; i++)
        if (pausing->calls[i] == call)
            pausing->calls[i] = NULL; /* the pause goes on */
}

static void reply(const nod_pausing *pausing, rpc_server_call *call, bool changed)
{
    const nod_pause *core = &pausing->core;
    Sluice__V1__Stamp stamp;
    nod_host_stamp(pausing->host, &stamp);
    Sluice__V1__PauseReply out = SLUICE__V1__PAUSE_REPLY__INIT;
    out.changed = changed;
    out.requests = nod_host_live(pausing->host);
    out.wait_us = (core->rested_at - core->asked_at) / 1000;
    out.hold_ms = (uint32_t)(core->hold_ns / SL_MS_NS);
    out.stamp = &stamp;
    rpc_server_call_reply(call, &out.base);
}

static const char *why_not(sl_code code)
{
    return code == SL_CONFLICT      ? "the pause was taken back"
           : code == SL_UNAVAILABLE ? "the node leaves: it does not pause"
                                    : "what runs did not end in time: the node serves on";
}

/* All who wait hear how it ended. code: SL_OK or why there is no pause. */
static void answer(nod_pausing *pausing, sl_code code)
{
    for (uint32_t i = 0; i < CALLS_MAX; i++) {
        rpc_server_call *call = pausing->calls[i];
        pausing->calls[i] = NULL;
        if (!call)
            continue;
        rpc_server_call_set(call, &(rpc_server_call_events){0}, NULL);
        if (code == SL_OK)
            reply(pausing, call, true);
        else
            /* A call's own deadline says something else. */
            rpc_server_call_finish(call, code == SL_DEADLINE ? SL_CONFLICT : code, why_not(code));
    }
}

static void tell(const nod_pausing *pausing)
{
    nod_host *host = pausing->host;
    bool rests = pausing->core.state == NOD_PAUSE_STATE_ON;
    nod_host_hold(host);
    dec_service_set_pause(host->decode, nod_pause_until(&pausing->core), rests);
    pre_service_set_rest(host->prefill, rests);
}

static void step(nod_pausing *pausing, const nod_pause_event *event)
{
    nod_host *host = pausing->host;
    sl_time_ns now = sl_loop_now(host->loop);
    nod_pause_outcome out = nod_pause_handle(&pausing->core, event, now);
    if (out.actions & NOD_PAUSE_ACTION_REST)
        eng_worker_set_rest(host->worker, true);
    if (out.actions & NOD_PAUSE_ACTION_GO)
        eng_worker_set_rest(host->worker, false);
    if (out.actions & NOD_PAUSE_ACTION_TELL)
        tell(pausing);
    if ((out.actions & NOD_PAUSE_ACTION_REPLY) && event->kind == NOD_PAUSE_EVENT_RESTS)
        sl_info("paused with %u requests, at most for %.1f s", nod_host_live(host),
                (double)pausing->core.hold_ns / 1e9);
    if (out.actions & NOD_PAUSE_ACTION_REPLY)
        answer(pausing, SL_OK);
    if (out.actions & NOD_PAUSE_ACTION_FAIL) {
        sl_warn("not paused: %s", why_not(out.code));
        answer(pausing, out.code);
    }
    if (out.actions & NOD_PAUSE_ACTION_EXPIRED)
        nod_audit_note(host->audit, NULL, "weights resume", "the pause was over in time");
    sl_timer_set(pausing->timer, pausing->core.deadline);
}

static void on_timer(void *context, sl_time_ns now)
{
    const nod_pause_event event = {.kind = NOD_PAUSE_EVENT_TICK};
    step(context, &event);
}

/* ---- the calls ---- */

static sl_status check(const nod_host *host, const Sluice__V1__PauseRequest *request, sl_err *err)
{
    if (host->state != NOD_STATE_READY)
        return sl_fail(err, SL_UNAVAILABLE, "the node is %s", nod_state_name(host->state));
    if (nod_role_changing(host->role_change))
        return sl_fail(err, SL_UNAVAILABLE, "the node changes its role");
    if ((uint64_t)request->hold_ms * SL_MS_NS > HOLD_MAX_NS)
        return sl_fail(err, SL_INVALID, "hold_ms: at most a day");
    return sl_ok();
}

void nod_pausing_on_begin(void *context, rpc_server_call *call, const ProtobufCMessage *base)
{
    static const rpc_server_call_events EVENTS = {.on_closed = on_closed};
    nod_pausing *pausing = context;
    nod_host *host = pausing->host;
    const Sluice__V1__PauseRequest *request = (const Sluice__V1__PauseRequest *)base;
    const nod_pause_event event = {
        .kind = NOD_PAUSE_EVENT_BEGIN,
        .wait = request->wait,
        .wait_ns = request->wait_ms ? (uint64_t)request->wait_ms * SL_MS_NS
                                    : host->options->drain_timeout_ns,
        .hold_ns = request->hold_ms ? (uint64_t)request->hold_ms * SL_MS_NS : HOLD_NS,
    };
    sl_err err;
    sl_status status = check(host, request, &err);
    uint32_t i = 0;
    while (i < CALLS_MAX && pausing->calls[i])
        i++;
    if (sl_is_ok(status) && i == CALLS_MAX)
        status = sl_fail(&err, SL_FULL, "%u others ask for this pause already", CALLS_MAX);
    if (!sl_is_ok(status)) {
        rpc_server_call_finish(call, status.code, err.text);
        return;
    }
    char detail[80];
    snprintf(detail, sizeof(detail), "%s, %u requests, at most for %.1f s",
             request->wait ? "wait" : "keep", nod_host_live(host), (double)event.hold_ns / 1e9);
    nod_audit_note(host->audit, call, "weights pause", detail);
    bool on = pausing->core.state == NOD_PAUSE_STATE_ON;
    if (!on) {
        pausing->calls[i] = call;
        rpc_server_call_set(call, &EVENTS, pausing);
    }
    step(pausing, &event);
    if (on)
        reply(pausing, call, false);
}

void nod_pausing_on_end(void *context, rpc_server_call *call, const ProtobufCMessage *base)
{
    static const nod_pause_event EVENT = {.kind = NOD_PAUSE_EVENT_END};
    nod_pausing *pausing = context;
    nod_host *host = pausing->host;
    nod_pause_state before = pausing->core.state;
    Sluice__V1__Stamp stamp;
    Sluice__V1__EndPauseReply out = SLUICE__V1__END_PAUSE_REPLY__INIT;
    out.changed = before != NOD_PAUSE_STATE_OFF;
    out.requests = nod_host_live(host);
    if (before == NOD_PAUSE_STATE_ON)
        out.pause_us = (sl_loop_now(host->loop) - pausing->core.rested_at) / 1000;
    nod_host_stamp(host, &stamp);
    out.stamp = &stamp;
    if (out.changed) {
        char detail[80];
        snprintf(detail, sizeof(detail), "%u requests, after %.1f s", out.requests,
                 (double)out.pause_us / 1e6);
        nod_audit_note(host->audit, call, "weights resume", detail);
    }
    step(pausing, &EVENT);
    rpc_server_call_reply(call, &out.base);
}

/* ---- for the others of node/ ---- */

void nod_pausing_continue(nod_pausing *pausing)
{
    nod_pause_event event = {.kind = NOD_PAUSE_EVENT_IDLE};
    if (pausing->core.state == NOD_PAUSE_STATE_WAITING && nod_host_live(pausing->host) == 0)
        step(pausing, &event);
    event.kind = NOD_PAUSE_EVENT_RESTS;
    if (pausing->core.state == NOD_PAUSE_STATE_STOPPING && eng_worker_rests(pausing->host->worker))
        step(pausing, &event);
}

void nod_pausing_leave(nod_pausing *pausing)
{
    static const nod_pause_event EVENT = {.kind = NOD_PAUSE_EVENT_LEAVE};
    if (pausing->core.state != NOD_PAUSE_STATE_OFF)
        sl_info("the pause ends: the node leaves");
    step(pausing, &EVENT);
}

bool nod_pausing_active(const nod_pausing *pausing)
{
    return pausing->core.state != NOD_PAUSE_STATE_OFF;
}

bool nod_pausing_rests(const nod_pausing *pausing)
{
    return pausing->core.state == NOD_PAUSE_STATE_ON;
}

nod_pausing *nod_pausing_create(nod_host *host)
{
    nod_pausing *pausing = sl_alloc(1, sizeof(*pausing), "node pause");
    pausing->host = host;
    nod_pause_init(&pausing->core);
    pausing->timer = sl_timer_create(host->loop, on_timer, pausing);
    return pausing;
}

void nod_pausing_destroy(nod_pausing *pausing)
{
    if (!pausing)
        return;
    sl_timer_destroy(pausing->timer);
    sl_free(pausing);
}
